"""A real sensor: shot noise, gain, offset and read noise."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from bitlens import ops
from bitlens.noise import _entropy, _pairs, _pixel_codes, _rows
from bitlens.noise._draws import photon_counts, white_noise
from bitlens.noise.base import (
    NoiseModel,
    ScoreFeatures,
    as_mean,
    check_finite,
    check_map,
    check_mean,
    flat_float64,
    operand,
    set_parameter,
)
from bitlens.ops import InfoNCEScores


@final
class PoissonGaussianNoise(NoiseModel):
    """measured = gain min(N, full well) + offset + n, N ~ Poisson(mean), n ~ Normal(0, read_std^2); then the ADC.

    Args:
        gain: ADU per photo-electron, > 0; a number or a per-pixel map, as the next three.
        offset: ADU of a dark pixel.
        read_std: standard deviation of the read noise in ADU, > 0; of the part behind the amplifier where
            `read_electrons`, > 0, states the part before it, which grows with the gain. One of the two may be left out.
        adc_bits: 1 to 32; `measured` is then rounded and clipped to the codes 0 .. 2**adc_bits - 1, and log_prob and
            entropy are those of a code, a discrete value. None: `measured` is a real number, log_prob a density.
        full_well_electrons: the charge that a pixel holds at most, > 0, whole or not; None for no limit.

    Means are at most 1e9 photo-electrons with the last two. Reference: EMVA 1288, release 4.0, section 2.
    """

    # What an optimiser may reach; None leaves a side open.
    parameter_domain: ClassVar[dict[str, tuple[float | None, float | None]]] = {
        "gain": (1e-6, None),
        "read_std": (1e-6, None),
        "read_electrons": (1e-6, None),
    }

    gain: Tensor
    offset: Tensor
    read_std: Tensor
    full_well_electrons: Tensor | None

    def __init__(
        self,
        gain: object = 1.0,
        offset: object = 0.0,
        *,
        read_std: object | None = None,
        read_electrons: object | None = None,
        adc_bits: int | None = None,
        full_well_electrons: object | None = None,
    ) -> None:
        super().__init__()
        set_parameter(self, "gain", gain, positive=True)
        set_parameter(self, "offset", offset, positive=False)
        if read_std is None and read_electrons is None:
            raise TypeError("read_std: need a number or a per-pixel map, or read_electrons, got neither")
        if read_electrons is not None:
            set_parameter(self, "read_electrons", read_electrons, positive=True)
        set_parameter(self, "read_std", 0.0 if read_std is None else read_std, positive=read_std is not None)
        self.adc_bits = _checked_bits(adc_bits)
        self.discrete = adc_bits is not None
        if full_well_electrons is None:
            self.register_buffer("full_well_electrons", None)
        elif isinstance(full_well_electrons, nn.Parameter):
            raise TypeError("full_well_electrons: need a number or a map that stays as it is, got a Parameter")
        else:
            set_parameter(self, "full_well_electrons", full_well_electrons, positive=True)

    def __getattr__(self, name: str) -> Any:
        """As of any module; `read_std` is all read noise, sqrt((gain read_electrons)^2 + read_std^2), at this gain."""
        value = super().__getattr__(name)
        if name != "read_std" or not isinstance(value, Tensor):
            return value
        held = {**self._parameters, **self._buffers}
        gain, electrons = held.get("gain"), held.get("read_electrons")
        return value if gain is None or electrons is None else torch.hypot(gain * electrons, value)

    @property
    def limited(self) -> bool:
        """Whether there is an ADC or a full well."""
        return self.discrete or self.full_well_electrons is not None

    @property
    def fast_pairs(self) -> bool:
        """Whether `log_prob_pairs` does without one array element for each pair and pixel."""
        return not self.limited

    def _check_precision(self, mean: Tensor) -> None:
        if self.adc_bits is not None and self.adc_bits > 24 and mean.dtype != torch.float64:
            raise ValueError(
                f"mean: need float64 for codes of more than 24 bits, got float32 with adc_bits={self.adc_bits}"
            )

    def _sensor(self, mean: Tensor) -> _pixel_codes.Parameters:
        values = (self.gain, self.offset, self.read_std, self.full_well_electrons)
        return _pixel_codes.Parameters(mean, values, self.adc_bits)

    def sample(self, mean: Tensor | np.ndarray, generator: torch.Generator | None = None) -> Tensor:
        """ADU, whole codes with an ADC; no gradient passes through the photon counts."""
        mean = as_mean(mean)
        self._check_precision(mean)
        counts = photon_counts(mean, generator)
        if self.full_well_electrons is not None:
            counts = torch.minimum(counts, self.full_well_electrons.to(mean))
        white = white_noise(mean, generator)
        analogue = self.gain.to(mean) * counts + self.offset.to(mean) + self.read_std.to(mean) * white
        return _pixel_codes.output_of(analogue, self.adc_bits)

    def log_prob(self, measured: Tensor | np.ndarray, mean: Tensor | np.ndarray) -> Tensor:
        """log sum_k Poisson(k; mean) Normal(measured; gain k + offset, read_std^2), in nats per ADU; exact.

        With an ADC the normal mass of the code's bin instead, the first and the last code with all beyond them; -inf
        for what is not a code. Counts at or above the full well are one.
        """
        mean = as_mean(mean)
        self._check_precision(mean)
        measured = torch.as_tensor(measured).to(mean.dtype)
        if self.limited:
            return _pixel_codes.log_prob(measured, mean, self._sensor(mean))
        return ops.poisson_gaussian_log_prob(
            measured,
            mean,
            gain=operand(self.gain, mean),
            offset=operand(self.offset, mean),
            read_std=operand(self.read_std, mean),
        )

    def log_prob_pairs(
        self, measured: Tensor | np.ndarray, mean: Tensor | np.ndarray, *, approximate: bool = False
    ) -> Tensor:
        """All log p(measured_i | mean_j), summed over pixels: (n, ...), (m, ...) -> (n, m) nats per ADU^pixels.

        `approximate` gives the variance-weighted Gaussian surrogate of `score_features` instead, without gradients:
        a critic for lower bounds, not the likelihood.
        """
        mean = as_mean(mean)
        measured = torch.as_tensor(measured).to(mean.dtype)
        if approximate:
            return _pairs.from_features(self.score_features(measured, mean), mean.dtype).matrix()
        if self.limited:
            return _pairs.one_by_one(self, measured, mean)
        gain, offset, read_std = (tensor.to(mean.device) for tensor in (self.gain, self.offset, self.read_std))
        return ops.poisson_gaussian_log_prob_pairs(measured, mean, gain=gain, offset=offset, read_std=read_std)

    def score_rows(
        self,
        measured: Tensor | np.ndarray,
        mean: Tensor | np.ndarray,
        *,
        positive: Tensor | None = None,
        approximate: bool = False,
    ) -> InfoNCEScores:
        """Positives and log-sum-exps by row and column of `log_prob_pairs`, whose matrix is never kept.

        measured (n, ...), mean (m, ...); `positive` (n,) the column of each row's own mean, default the diagonal;
        `approximate` as there. Once differentiable; with an ADC or a full well from chunks of `log_prob`.
        """
        mean = as_mean(mean)
        measured = torch.as_tensor(measured).to(mean.dtype)
        if approximate:
            return _rows.from_features(_pairs.from_features(self.score_features(measured, mean), mean.dtype), positive)
        if self.limited:
            return _rows.by_chunks(lambda rows: _pairs.one_by_one(self, rows, mean), measured, mean, positive)
        gain, offset, read_std = (tensor.to(mean.device) for tensor in (self.gain, self.offset, self.read_std))
        found = ops.poisson_gaussian_score_rows(
            measured, mean, positive=positive, gain=gain, offset=offset, read_std=read_std
        )
        return InfoNCEScores(*found[:4])

    def scores_outside(
        self, measured: Tensor, mean: Tensor, groups: Tensor, *, row_bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """(n,) nats each: S_ii, and log-sum-exps by row and column over the pairs of different groups.

        measured and mean (n, ...), groups (n,) int64; `row_bias` (n,) is added to every score of a row. None with an
        ADC or a full well.
        """
        if self.limited:
            return None
        gain, offset, read_std = (tensor.to(mean.device) for tensor in (self.gain, self.offset, self.read_std))
        found = ops.poisson_gaussian_score_rows(
            measured,
            mean,
            row_group=groups,
            column_group=groups,
            row_bias=row_bias,
            gain=gain,
            offset=offset,
            read_std=read_std,
        )
        return found.positive, found.row_logsumexp_negatives, found.column_logsumexp_negatives

    def entropy(self, mean: Tensor | np.ndarray) -> Tensor:
        """h(measured | mean) in nats per ADU, of the code with an ADC, to 1e-4; differentiable in mean and parameters.

        With an ADC or a full well once only, and maps of them are summed pixel by pixel where they matter.
        """
        mean = as_mean(mean)
        if self.limited:
            return _pixel_codes.quantity(_pixel_codes.ENTROPY, mean, self._sensor(mean))
        gain = self.gain.to(mean)
        return _entropy.poisson_gaussian_entropy(mean, self.read_std.to(mean) / gain) + torch.log(gain)

    def variance(self, mean: Tensor) -> Tensor:
        """gain^2 mean + read_std^2, ADU^2; with an ADC or a full well that of what the sensor reports."""
        if self.limited:
            return _pixel_codes.quantity(_pixel_codes.VARIANCE, mean, self._sensor(mean))
        return self.gain.to(mean) ** 2 * mean + self.read_std.to(mean) ** 2

    def expected(self, mean: Tensor) -> Tensor:
        """gain mean + offset, ADU; with an ADC or a full well that of what the sensor reports."""
        if self.limited:
            return _pixel_codes.quantity(_pixel_codes.EXPECTED, mean, self._sensor(mean))
        return self.gain.to(mean) * mean + self.offset.to(mean)

    def check_measured(self, measured: Tensor) -> None:
        """ValueError unless every value is finite, and a code where there is an ADC."""
        check_finite("measured", measured)
        if self.adc_bits is not None and not bool(_pixel_codes.is_code(measured, self.adc_bits).all()):
            raise ValueError(
                f"measured: need whole codes of 0 to {2**self.adc_bits - 1} for adc_bits={self.adc_bits}, got values "
                f"of {measured.min().item():g} to {measured.max().item():g}"
                + (" with fractions" if bool((measured != torch.round(measured)).any()) else "")
            )

    def at_limit(self, measured: Tensor) -> Tensor:
        """Which values are the first or the last code, or within three read noises of the full well and beyond."""
        found = torch.zeros_like(measured, dtype=torch.bool)
        if self.adc_bits is not None:
            found = (measured <= 0) | (measured >= 2**self.adc_bits - 1)
        if self.full_well_electrons is not None:
            gain, offset, read_std, well = (
                operand(p, measured) for p in (self.gain, self.offset, self.read_std, self.full_well_electrons)
            )
            found = found | (measured > gain * well + offset - 3 * read_std)
        return found

    def check_mean(self, mean: Tensor) -> None:
        """ValueError unless every mean is finite and not negative; with an ADC or a full well at most 1e9."""
        check_mean(mean)
        if self.limited and bool((mean > _pixel_codes.LARGEST_MEAN).any()):
            raise ValueError(
                f"mean: need at most {_pixel_codes.LARGEST_MEAN:g} photo-electrons, got {mean.max().item():g}"
            )

    def score_features(self, measured: Tensor, mean: Tensor) -> ScoreFeatures:
        """Variance-weighted Gaussian surrogate of the log-likelihoods of all pairs: a critic, not the likelihood."""
        _pairs.check_pixels(measured, mean)
        shape = mean.shape[1:]
        for name in ("gain", "offset", "read_std"):
            check_map(name, getattr(self, name), shape)
        z = flat_float64(measured)
        wide = mean.detach().to(torch.float64)
        # A saturated pixel has no variance left, which a rare other code would be charged for without a bound.
        floor = 1 / 12 if self.discrete else 0.0
        variance = flat_float64(self.variance(wide)).clamp(min=floor)
        signal = flat_float64(self.expected(wide))
        centre = _pairs.centre_of(signal)
        z, signal = z - centre, signal - centre
        quadratic, linear = -0.5 / variance, signal / variance
        middle_square = _pairs.centre_of(z**2)
        middle_quadratic, middle_linear = _pairs.centre_of(quadratic), _pairs.centre_of(linear)
        query = torch.cat([z**2 - middle_square, z], dim=1)
        key = torch.cat([quadratic - middle_quadratic, linear - middle_linear], dim=1)
        constant = -0.5 * (signal * linear + torch.log(variance) + math.log(2 * math.pi)).sum(1)
        query_bias = (z**2 - middle_square) @ middle_quadratic + z @ middle_linear
        return ScoreFeatures(query, key, query_bias, constant + quadratic @ middle_square, False)


def _checked_bits(adc_bits: object) -> int | None:
    if adc_bits is None:
        return None
    if isinstance(adc_bits, bool) or not isinstance(adc_bits, Integral):
        raise TypeError(f"adc_bits: need a whole number of bits or None, got {adc_bits!r}")
    if not 1 <= int(adc_bits) <= 32:
        raise ValueError(f"adc_bits: need 1 to 32, got {adc_bits}")
    return int(adc_bits)
