"""`InformationMetric`: bits about the scene in measurements that come in batches and never lie in memory together."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from bitlens import __version__
from bitlens.densities import GaussianDensity, held_out_bias_nats
from bitlens.estimators import _bounds, _density, _judge, _known_channel
from bitlens.estimators._bounds import Found
from bitlens.estimators._density import DensityRows
from bitlens.estimators._inputs import (
    N_FOLDS,
    Groups,
    check_noise_maps,
    check_varying,
    images,
    open_share,
    whole_number,
)
from bitlens.estimators._seeds import take_seed
from bitlens.estimators._streaming import (
    Moments,
    Scalars,
    from_word,
    key_below,
    row_keys,
    scalars_of,
    to_word,
    uniforms,
)
from bitlens.estimators.result import InformationEstimate
from bitlens.kernels import _backend
from bitlens.kernels.infonce_scores.op import IMPLEMENTED
from bitlens.noise import NoiseModel, conditional_entropy_per_sample
from bitlens.noise._abilities import ChecksMean, ChecksMeasured

_TO_BITS = 1.0 / math.log(2.0)
_CHUNK_PIXELS = 4_000_000  # values in float64 at a time, whatever the size of a batch
_FEWEST_HELD_OUT = 10


class _HeldOut(NamedTuple):
    """Rows that the density does not see, by rising key: keys (k,), measured and mean (k, D); mean may have no rows."""

    keys: Tensor
    measured: Tensor
    mean: Tensor

    def joined(self, other: _HeldOut) -> _HeldOut:
        parts = (torch.cat([mine, its]) for mine, its in zip(self, other, strict=True))
        return _HeldOut(*parts)

    def taken(self, index: Tensor) -> _HeldOut:
        mean = self.mean[index] if self.mean.shape[0] else self.mean
        return _HeldOut(self.keys[index], self.measured[index], mean)


@final
class InformationMetric:
    """I(scene; measured) from a stream: update with batches, compute at any time, merge the parts of several workers.

    Kept are the mean and covariance of all rows but a random sample of at most `held_out`, that sample, and sums of
    h(measured | mean): (D^2 + held_out D) numbers for D pixels however many images come. A Gaussian of those moments
    is scored on the sample: `upper_bits` = -E log q - h(measured | mean) bounds the information from above in
    expectation, `bits` is that less its expected finite-sample excess. With noiseless images the sample also gives the
    lower and upper bounds of the known channel, with log2 of its size as ceiling, as `estimate_information` does.

    Args:
        method: "auto", or "gaussian" for the density alone though there are noiseless images.
        held_out: most rows in the sample; held_out_share: most of all rows, so that short streams can fit.
        confidence: of the interval, between 0 and 1.
        generator: gives the seed; one draw advances it. Workers may share a seed.
    """

    def __init__(
        self,
        noise: NoiseModel,
        *,
        method: str = "auto",
        held_out: int = 1024,
        held_out_share: float = 0.2,
        confidence: float = 0.95,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(noise, NoiseModel):
            raise TypeError(f"noise: need a noise model such as bitlens.GaussianNoise, got {type(noise).__name__}")
        if method not in ("auto", "gaussian"):
            raise ValueError(f"method: need 'auto' or 'gaussian', got {method!r}")
        self.noise = noise
        self.method = method
        self.held_out = whole_number("held_out", held_out, _FEWEST_HELD_OUT)
        self.held_out_share = open_share("held_out_share", held_out_share)
        self.confidence = open_share("confidence", confidence)
        self._device: torch.device | None = None
        self._seed = take_seed(generator)
        self.reset()

    def reset(self) -> None:
        """Forget all images; the seed stays, so that the same stream gives the same result."""
        self._n_samples = 0
        self._shape: torch.Size | None = None
        self._has_mean = False
        self._entropy = Scalars()
        self._moments = Moments.empty(0, torch.device("cpu"))
        nothing = torch.zeros(0, 0, dtype=torch.float64)
        self._sample = _HeldOut(torch.zeros(0, dtype=torch.int64), nothing, nothing)

    @property
    def n_samples(self) -> int:
        """Images seen."""
        return self._n_samples

    @torch.no_grad()
    def update(self, measured: Tensor | NDArray[Any], mean: Tensor | NDArray[Any] | None = None) -> None:
        """Add a batch of images (n, ...), n >= 1, in the noise model's unit, and their noiseless images if there are.

        Raises:
            TypeError, ValueError: what cannot be used, or differs from earlier batches in shape or in having a mean;
                nothing has been added then.
        """
        z = images("measured", measured)
        if isinstance(mean, Tensor | np.ndarray) and mean.ndim < 2:
            raise ValueError(
                f"mean: need noiseless images of the shape of measured, {tuple(z.shape)}, got shape "
                f"{tuple(mean.shape)}: labels of a loader are no means, leave them out"
            )
        y = None if mean is None else images("mean", mean)
        if isinstance(self.noise, ChecksMeasured):
            self.noise.check_measured(z)
        check_noise_maps(self.noise, z.shape[1:])
        if y is not None:
            if y.shape != z.shape:
                raise ValueError(f"mean: need the shape of measured, {tuple(z.shape)}, got {tuple(y.shape)}")
            if isinstance(self.noise, ChecksMean):
                self.noise.check_mean(y)
        if self._shape is None:
            self._start(z, y is not None)
        assert self._shape is not None
        if z.shape[1:] != self._shape:
            raise ValueError(f"measured: need images of shape {tuple(self._shape)}, got {tuple(z.shape[1:])}")
        if (y is not None) != self._has_mean:
            raise ValueError(f"mean: need {'it' if self._has_mean else 'None'} in every batch, as in the first")
        step = max(1, _CHUNK_PIXELS // max(1, z[0].numel()))
        for first in range(0, z.shape[0], step):
            part = slice(first, first + step)
            self._add(z[part], None if y is None else y[part])

    def __call__(
        self, measured: Tensor | NDArray[Any], mean: Tensor | NDArray[Any] | None = None
    ) -> InformationEstimate | None:
        """`update`, and the estimate from this batch alone; None where that is too small for one.

        Raises:
            TypeError, ValueError: what `update` raises; nothing has been added then.
        """
        alone = self._like()
        alone.update(measured, mean)
        self.update(measured, mean)
        try:
            return alone.compute()
        except ValueError:  # too few images
            return None

    def to(self, device: torch.device | str) -> Self:
        """Keep what has been seen, and what will be, on this device; the noise model stays where it is.

        Raises:
            TypeError: not a device: all is kept in float64.
        """
        if not isinstance(device, torch.device | str):
            raise TypeError(f"device: need a torch.device or its name, got {device!r}")
        self._device = torch.device(device)
        self._moments = Moments(self._moments.n, *(value.to(self._device) for value in self._moments[1:]))
        self._sample = _HeldOut(*(value.to(self._device) for value in self._sample))
        return self

    def compute(self) -> InformationEstimate:
        """The information in all images so far; changes nothing.

        Raises:
            RuntimeError: no images yet.
            ValueError: too few images for the pixels, or a `mean` under which `measured` is impossible.
        """
        if self._shape is None:
            raise RuntimeError("InformationMetric: call update first; there are no images yet")
        n_held = self._sample.keys.shape[0]
        if n_held < _FEWEST_HELD_OUT:
            raise ValueError(
                f"measured: need about {math.ceil(_FEWEST_HELD_OUT / self.held_out_share)} images to hold "
                f"{_FEWEST_HELD_OUT} out, got {self._n_samples} with {n_held} held out"
            )
        z = self._sample.measured.reshape(n_held, *self._shape)
        y = self._sample.mean.reshape(n_held, *self._shape) if self._has_mean else None
        order = torch.arange(n_held, device=z.device)
        groups = Groups(order, n_held, order % N_FOLDS, N_FOLDS, False)
        backend = _backend.select("infonce_scores", z.device, IMPLEMENTED)
        with torch.no_grad(), _backend.reproducible():
            found, stderr = self._find(z, y, groups)
        notes = [*_judge._impossible(found, stderr), *_judge._at_limit(z, self.noise, found), *found.warnings]
        if n_held < _judge.MINIMUM_GROUPS:
            notes.insert(0, f"{n_held} held-out images are few: the standard error needs at least 20")
        bits, stderr_bits = found.nats * _TO_BITS, stderr * _TO_BITS
        half = float(stats.t.ppf(0.5 + 0.5 * self.confidence, n_held - 1)) * stderr_bits
        return InformationEstimate(
            bits=bits,
            bits_per_pixel=bits / z[0].numel(),
            bound=found.bound,
            lower_bits=None if found.lower is None else found.lower * _TO_BITS,
            upper_bits=None if found.upper is None else found.upper * _TO_BITS,
            ceiling_bits=None if found.ceiling is None else found.ceiling * _TO_BITS,
            stderr_bits=stderr_bits,
            confidence_interval_bits=(bits - half, bits + half),
            method=found.method,
            n_samples=self._n_samples,
            seed=self._seed,
            version=__version__,
            backend=backend,
            converged=found.converged,
            warnings=tuple(notes),
        )

    @torch.no_grad()
    def merge(self, other: InformationMetric) -> Self:
        """Add what `other` has seen, which stays as it is; returns this metric.

        Raises:
            TypeError: not an InformationMetric.
            ValueError: this very metric, another noise model, other settings or images of another shape.
        """
        if not isinstance(other, InformationMetric):
            raise TypeError(f"other: need an InformationMetric, got {type(other).__name__}")
        if other is self:
            raise ValueError("other: need another metric, got this one, whose images would count twice")
        if not _same_noise(self.noise, other.noise):
            raise ValueError("other: need the same noise model with the same parameters")
        if not torch.equal(self._settings(), other._settings()):
            raise ValueError("other: need the same held_out and held_out_share, got different ones")
        if other._shape is None:
            return self
        device = other._moments.mean.device if self._shape is None else self._moments.mean.device
        device = device if self._device is None else self._device
        moments = Moments(other._moments.n, *(value.to(device) for value in other._moments[1:]))
        sample = _HeldOut(*(value.to(device) for value in other._sample))
        if self._shape is None:
            self._shape, self._has_mean = other._shape, other._has_mean
            self._moments, self._sample = moments.merged(Moments.empty(0, device)), sample
        else:
            if self._shape != other._shape or self._has_mean != other._has_mean:
                raise ValueError(
                    f"other: need images of shape {tuple(self._shape)} {_with(self._has_mean)} mean, "
                    f"got {tuple(other._shape)} {_with(other._has_mean)}"
                )
            self._moments = self._moments.merged(moments)
            self._hold(self._sample.joined(sample))
        self._entropy = self._entropy.merged(other._entropy)
        self._n_samples += other._n_samples
        return self

    def __add__(self, other: InformationMetric) -> InformationMetric:
        """What both have seen, in a new metric with the seed of the first."""
        if not isinstance(other, InformationMetric):
            return NotImplemented
        if other is self:
            raise ValueError("other: need another metric, got this one, whose images would count twice")
        return self._like().merge(self).merge(other)

    def __radd__(self, other: object) -> InformationMetric:
        """So that `sum(metrics)` is what all of them have seen, in a new metric."""
        return self._like().merge(self) if type(other) is int and other == 0 else NotImplemented

    def state_dict(self) -> dict[str, Tensor]:
        """All that has been seen, as tensors: for a checkpoint, or to gather from other processes."""
        state = {
            "settings": self._settings(),
            "seed": torch.tensor(to_word(self._seed)),
            "n_samples": torch.tensor(self._n_samples),
        }
        if self._shape is not None:
            state |= {
                "image_shape": torch.tensor(self._shape, dtype=torch.int64),
                "conditional_entropy": torch.tensor(tuple(self._entropy), dtype=torch.float64),
                "count": torch.tensor(self._moments.n),
                "mean": self._moments.mean.clone(),
                "scatter": self._moments.scatter.clone(),
                "held_out_keys": self._sample.keys.clone(),
                "held_out_measured": self._sample.measured.clone(),
                "held_out_mean": self._sample.mean.clone(),
            }
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from where `state_dict` was taken.

        Raises:
            KeyError: not a state of this class.
            ValueError: a state with other `held_out` or `held_out_share`.
        """
        if not torch.equal(state["settings"].cpu(), self._settings()):
            raise ValueError("state: need the same held_out and held_out_share as this metric, got different ones")
        self.reset()
        self._seed = from_word(int(state["seed"]))
        self._n_samples = int(state["n_samples"])
        if "image_shape" not in state:
            return
        count, mean, squares = state["conditional_entropy"].tolist()
        self._shape = torch.Size(state["image_shape"].tolist())
        self._entropy = Scalars(int(count), mean, squares)
        self._moments = Moments(int(state["count"]), state["mean"].clone(), state["scatter"].clone())
        names = ("held_out_keys", "held_out_measured", "held_out_mean")
        self._sample = _HeldOut(*(state[name].clone() for name in names))
        self._has_mean = self._sample.mean.shape[1] > 0
        if self._device is not None:
            self.to(self._device)

    # ---- What the calls above are made of ----

    def _like(self) -> InformationMetric:
        """A new metric of these settings and this seed that has seen nothing."""
        made = InformationMetric(
            self.noise,
            method=self.method,
            held_out=self.held_out,
            held_out_share=self.held_out_share,
            confidence=self.confidence,
            generator=torch.Generator().manual_seed(0),
        )
        made._seed, made._device = self._seed, self._device
        return made

    def _settings(self) -> Tensor:
        return torch.tensor([self.held_out, self.held_out_share], dtype=torch.float64)

    def _start(self, measured: Tensor, has_mean: bool) -> None:
        n_pixels = measured[0].numel()
        self._shape, self._has_mean = measured.shape[1:], has_mean
        device = measured.device if self._device is None else self._device
        self._moments = Moments.empty(n_pixels, device)
        keys = torch.zeros(0, dtype=torch.int64, device=device)
        nothing = torch.zeros(0, n_pixels, dtype=torch.float64, device=device)
        # No mean has no columns either: the state says so though no row is held yet.
        self._sample = _HeldOut(keys, nothing, nothing if has_mean else nothing.new_zeros(0, 0))

    def _add(self, measured: Tensor, mean: Tensor | None) -> None:
        conditional = conditional_entropy_per_sample(self.noise, measured, mean)
        device = self._moments.mean.device
        rows = measured.flatten(1).to(device)
        keys = row_keys(rows, self._n_samples, self._seed)
        means = self._sample.mean[:0] if mean is None else mean.flatten(1).to(device)
        batch = _HeldOut(keys, rows, means)
        eligible = keys < key_below(self.held_out_share)
        self._moments = self._moments.with_rows(self._scored(batch.taken((~eligible).nonzero()[:, 0])))
        self._hold(self._sample.joined(batch.taken(eligible.nonzero()[:, 0])))
        self._entropy = self._entropy.merged(scalars_of(conditional))
        self._n_samples += len(keys)

    def _hold(self, candidates: _HeldOut) -> None:
        """Keep the rows of the smallest keys, a sample without replacement; the others go to the moments."""
        order = torch.argsort(candidates.keys, stable=True)
        self._moments = self._moments.with_rows(self._scored(candidates.taken(order[self.held_out :])))
        self._sample = candidates.taken(order[: self.held_out])

    def _scored(self, rows: _HeldOut) -> Tensor:
        """What the density sees: counts plus U[0, 1) have a density whose cross-entropy bounds their entropy."""
        if not self.noise.discrete:
            return rows.measured
        return rows.measured + uniforms(rows.keys, rows.measured.shape[1])

    def _fitted(self) -> GaussianDensity | None:
        """The Gaussian of the moments; None where there are too few images for one.

        Raises:
            ValueError: pixels that are constant or repeated.
        """
        assert self._shape is not None
        n_fitted, mean, scatter = self._moments
        n_pixels = len(mean)
        if n_fitted < n_pixels + 3:
            return None
        cholesky, failed = torch.linalg.cholesky_ex(scatter / (n_fitted - 1))
        if int(failed) or not bool(torch.isfinite(cholesky).all()):
            held = self._sample.measured
            # What rounding makes of the spread of a constant.
            still = scatter.diagonal() <= n_fitted * (1e-12 * mean).square()
            constant = (still & (held == held[0]).all(dim=0)).reshape(self._shape)
            check_varying(constant, self._n_samples, self.noise)
            raise ValueError("measured: need a covariance of full rank, got pixels that are constant or repeated")
        bias = held_out_bias_nats(n_fitted, n_pixels)
        return GaussianDensity(mean.reshape(self._shape), cholesky, n_fitted, bias, True)

    def _density_rows(self) -> DensityRows | None:
        density = self._fitted()
        if density is None:
            return None
        assert self._shape is not None
        scored = self._scored(self._sample).reshape(-1, *self._shape)
        log_prob = density.log_prob(scored)
        power = density.whiten(scored).square()
        kurtosis = float(power.square().mean() / power.mean() ** 2)
        excess = torch.full_like(log_prob, density.held_out_bias_nats)
        notes = _density._notes(log_prob, excess, kurtosis, "gaussian", power.shape[1], True)
        return DensityRows(log_prob, excess, "gaussian", True, notes)

    def _find(self, z: Tensor, y: Tensor | None, groups: Groups) -> tuple[Found, float]:
        """The estimate in nats and its standard error."""
        density = self._density_rows()
        if density is None and (y is None or self.method == "gaussian"):
            raise ValueError(
                f"measured: need at least {z[0].numel() + 3} images beside the held-out ones to fit "
                f"{z[0].numel()} pixels, got {self._moments.n}"
            )
        conditional = conditional_entropy_per_sample(self.noise, z, y)
        if y is None:
            assert density is not None
            rows, stderr = self._adjusted(-density.log_prob - conditional, conditional, groups)
            return _bounds._from_density(density, rows, conditional), stderr
        log_likelihood = _bounds._log_likelihood(self.noise, z, y)
        if not bool(torch.isfinite(log_likelihood).all()):
            raise ValueError("mean: need noiseless images under which `measured` is possible, got probability 0")
        misfit = _bounds._misfit_notes(log_likelihood + conditional, z[0].numel(), groups)
        if self.method == "gaussian":
            assert density is not None
            rows = _bounds._density_rows(density, log_likelihood, conditional, groups)
            rows, stderr = self._adjusted(rows, conditional, groups)
            found = _bounds._from_density(density, rows, conditional)
        else:
            channel = _known_channel.known_channel(z, y, self.noise, groups)
            lower = None if channel is None else _known_channel.lower_bound(channel, groups)
            upper = _bounds._best_upper(channel, density, log_likelihood, conditional, groups)
            found = _bounds._from_bounds(channel, lower, _bounds.KNOWN_CHANNEL, upper, density, groups)
            stderr = groups.standard_error(found.influence)
        return found._replace(warnings=(*misfit, *found.warnings)), stderr

    def _adjusted(self, rows: Tensor, conditional: Tensor, groups: Groups) -> tuple[Tensor, float]:
        """Rows less what their conditional entropies differ by from those of all images; the error of their mean.

        The sample is part of the images, so the difference has mean zero; its slope comes from other folds.

        Reference: Cochran 1977, Sampling Techniques, sec. 12.6 (regression in double sampling).
        """
        spread = conditional - conditional.mean()
        if float(spread.square().sum()) <= 1e-20 * float(conditional.square().sum()):
            return rows, groups.standard_error(rows)
        adjusted = rows.clone()
        for fold in range(groups.n_folds):
            others, reported = groups.folds != fold, groups.folds == fold
            centred = conditional[others] - conditional[others].mean()
            slope = float((centred * rows[others]).sum() / centred.square().sum())
            adjusted[reported] -= slope * (conditional[reported] - self._entropy.mean)
        share = len(rows) / self._n_samples
        left, whole = groups.standard_error(adjusted), groups.standard_error(rows)
        return adjusted, math.sqrt((1.0 - share) * left**2 + share * whole**2)


def _with(has_mean: bool) -> str:
    return "with" if has_mean else "without"


def _same_noise(first: NoiseModel, second: NoiseModel) -> bool:
    mine, its = first.state_dict(), second.state_dict()
    same = type(first) is type(second) and mine.keys() == its.keys() and first.discrete == second.discrete
    return same and all(torch.equal(mine[name].cpu(), its[name].cpu()) for name in mine)
