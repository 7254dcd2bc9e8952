"""Does a noise model fit repeats of one still scene, what is wrong if not, and what would that cost in bits."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats

from bitlens.noise import _repeats, _temporal
from bitlens.noise.base import NoiseModel
from bitlens.noise.gaussian import GaussianNoise
from bitlens.noise.poisson import PoissonNoise
from bitlens.noise.poisson_gaussian import PoissonGaussianNoise

_MOST_ENTROPIES = 65_536
_Concerns = Literal["dispersion", "gain", "offset", "shape", "correlation", "clipping", "drift"]


@dataclass(frozen=True)
class NoiseTest:
    """One question to the repeats: what it is about, a z-score (None where there is none) and a p-value."""

    name: str
    concerns: _Concerns
    z_score: float | None
    p_value: float


@dataclass(frozen=True)
class InformationShift:
    """Change of the information estimate in bits per pixel when a parameter is raised by 5 %; None: not in the model.

    The entropy of the measurements does not depend on the model, so the shift is that of -h(measured | mean).
    """

    gain: float | None
    offset: float | None
    read_std: float | None


@dataclass(frozen=True)
class NoiseCheck:
    """What repeats of a still scene say about a noise model.

    `p_value` is the smallest of the tests, times their number; the model fits when it is not below `level`.
    `dispersion` is the variance found over the variance predicted (1 is right). `pit_histogram` holds the share of
    the standardised residuals in ten classes that have a tenth each under the model (probability integral transform).
    `information_shift` is per 5 % of each parameter. `findings` says in words what looks wrong; empty if nothing.
    """

    fits: bool
    p_value: float
    level: float
    tests: tuple[NoiseTest, ...]
    dispersion: float
    dispersion_stderr: float
    pit_histogram: tuple[float, ...]
    information_shift: InformationShift
    findings: tuple[str, ...]
    n_frames: int
    n_pixels: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values."""
        fields = asdict(self)
        return fields | {name: list(fields[name]) for name in ("tests", "pit_histogram", "findings")}

    def to_json(self, *, indent: int | None = None) -> str:
        """The fields as strict JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)


def check_noise(
    noise: NoiseModel, repeats: object, *, level: float = 0.01, generator: torch.Generator | None = None
) -> NoiseCheck:
    """Whether repeats of one still scene vary as `noise` says, and how far the bits hang on its parameters.

    The mean of a pixel is estimated from its repeats; the degree of freedom that costs is accounted for. With an ADC
    or a full well in the model the pixels that reach an end of its scale are left out.

    Args:
        noise: Gaussian, Poisson or Poisson-Gaussian, its parameters numbers or (row, column) maps.
        repeats: (frame, row, column), in the unit of the sensor.
        level: share of right models that may be rejected.
        generator: for the simulated repeats that residuals are compared with; default seed 0.

    Raises:
        TypeError: another noise model, or not real numbers.
        ValueError: fewer than 2 frames, NaN, maps that do not fit, a level outside (0, 1).

    Reference: Gneiting, Balabdaoui and Raftery (2007), calibration and sharpness, doi:10.1111/j.1467-9868.2007.00587.x.
    """
    if not isinstance(noise, GaussianNoise | PoissonNoise | PoissonGaussianNoise):
        raise TypeError(f"noise: need Gaussian, Poisson or Poisson-Gaussian noise, got {type(noise).__name__}")
    if not 0 < level < 1:
        raise ValueError(f"level: need a number between 0 and 1, got {level!r}")
    frames = _temporal.as_array("repeats", repeats)
    _temporal.check_frames("repeats", frames)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    sensor = _repeats.sensor_of(noise, frames.shape[1:])
    limits: list[NoiseTest] = []
    if isinstance(noise, PoissonGaussianNoise) and noise.limited:
        frames, noise, limits = _within_limits(frames, noise, sensor)
        sensor = _repeats.sensor_of(noise, frames.shape[1:])
    seen = _repeats.observe(frames, sensor, generator)

    tests = [*limits, NoiseTest("variance over that predicted", "dispersion", *_two_sided(seen.dispersion_z))]
    if seen.slope is not None:
        tests.append(NoiseTest("growth of the variance with the mean", "gain", *_two_sided(seen.slope_z)))
        tests.append(NoiseTest("variance without light", "offset", *_two_sided(seen.intercept_z)))
    if seen.below_offset_z is not None:
        below = float(stats.norm.cdf(seen.below_offset_z))
        tests.append(NoiseTest("darkest pixels against the offset", "offset", seen.below_offset_z, below))
    for name, z in zip(("spread", "skewness", "tails"), seen.shape_z, strict=True):
        tests.append(NoiseTest(f"{name} of the residuals", "shape", *_two_sided(z)))
    for name, along in zip(("rows", "columns"), seen.neighbour_z, strict=True):
        if along is not None:
            tests.append(NoiseTest(f"correlation of neighbours along {name}", "correlation", *_two_sided(along)))
    tests.append(NoiseTest("brightness of the frames", "drift", None, seen.drift_p))
    tests.append(NoiseTest("values heaped at an end of the scale", "clipping", None, 0.0 if seen.clipped else 1.0))

    p_value = min(1.0, len(tests) * min(test.p_value for test in tests))
    no_codes = [
        "clipping: there are values that are no codes of the ADC: fractions, or outside its range"
        for test in limits
        if test.p_value == 0
    ]
    wrong = {test.concerns for test in tests if len(tests) * test.p_value < level}
    return NoiseCheck(
        fits=p_value >= level,
        p_value=p_value,
        level=level,
        tests=tuple(tests),
        dispersion=seen.dispersion,
        dispersion_stderr=seen.dispersion_stderr,
        pit_histogram=seen.pit_histogram,
        information_shift=_information_shift(noise, seen.mean),
        findings=tuple(no_codes + _findings(noise, seen, wrong, sensor)),
        n_frames=len(frames),
        n_pixels=int(np.prod(frames.shape[1:])),
    )


def _within_limits(
    frames: _temporal.Frames, noise: PoissonGaussianNoise, sensor: _repeats.Sensor
) -> tuple[_temporal.Frames, PoissonGaussianNoise, list[NoiseTest]]:
    """The pixels that stay clear of the ends of the scale, their model, and whether all values are within it."""
    tests = []
    if noise.adc_bits is not None:
        codes = (frames >= 0) & (frames <= 2**noise.adc_bits - 1) & (frames == np.round(frames))
        tests.append(NoiseTest("values that the ADC has", "clipping", None, 1.0 if codes.all() else 0.0))
    kept = _repeats.clear_of_ends(frames, noise, sensor)
    if kept.all():
        return frames, noise, tests
    if np.count_nonzero(kept) < 16:
        raise ValueError(
            f"repeats: need 16 pixels or more whose noise stays clear of the ends of the sensor's scale, got "
            f"{np.count_nonzero(kept)} of {kept.size}"
        )
    return *_repeats.only(frames, noise, kept), tests


def _two_sided(z: float) -> tuple[float, float]:
    return z, float(2 * stats.norm.sf(abs(z)))


def _information_shift(noise: NoiseModel, mean: _temporal.Map) -> InformationShift:
    """-(h' - h) / log 2 per pixel, h' with one parameter 5 % up and the means read from the data accordingly."""
    if isinstance(noise, GaussianNoise):
        return InformationShift(None, None, -math.log(1.05) / math.log(2))
    if not isinstance(noise, PoissonGaussianNoise):
        return InformationShift(None, None, None)
    # Some of the pixels do: the shift is a mean of a smooth function.
    chosen = np.arange(0, mean.size, math.ceil(mean.size / _MOST_ENTROPIES))
    observed = torch.from_numpy(mean.ravel()[chosen])
    parameters = {name: _pixels(getattr(noise, name), mean, chosen) for name in ("gain", "offset", "read_std")}
    well = None if noise.full_well_electrons is None else _pixels(noise.full_well_electrons, mean, chosen)

    def entropy(gain: float, offset: float, read_std: float) -> float:
        changed = PoissonGaussianNoise(
            parameters["gain"] * gain,
            parameters["offset"] * offset,
            read_std=parameters["read_std"] * read_std,
            adc_bits=noise.adc_bits,
            full_well_electrons=well,
        )
        electrons = ((observed - changed.offset) / changed.gain).clamp(min=0)
        return float(changed.entropy(electrons).mean())

    base = entropy(1, 1, 1)
    shifts = [base - entropy(*factors) for factors in ((1.05, 1, 1), (1, 1.05, 1), (1, 1, 1.05))]
    return InformationShift(*(shift / math.log(2) for shift in shifts))


def _pixels(parameter: torch.Tensor, mean: _temporal.Map, chosen: np.ndarray[Any, Any]) -> torch.Tensor:
    """A scalar as it is, a map at the chosen pixels."""
    value = parameter.detach().to(torch.float64).cpu()
    return value if value.numel() == 1 else value.expand(mean.shape).reshape(-1)[torch.from_numpy(chosen)]


def _findings(noise: NoiseModel, seen: _repeats.Observed, wrong: set[_Concerns], sensor: _repeats.Sensor) -> list[str]:
    found = []
    if "clipping" in wrong:
        found += [
            f"clipping: {100 * heap.share:.2g} % of the values sit at {heap.code:g}, the {end} of the scale"
            for end, heap in seen.clipped.items()
        ]
    if "drift" in wrong:
        relative = f", {100 * seen.drift_adu / seen.level_adu:.2g} %" if seen.level_adu > 5 * seen.drift_adu else ""
        found.append(
            f"drift: the mean of the frames varies by {seen.drift_adu:.3g} (standard deviation{relative}), more than "
            "noise of independent pixels explains; the other tests are on frames brought to one level"
        )
    if "correlation" in wrong:
        row, column = seen.neighbours.along_row, seen.neighbours.along_column
        found.append(
            f"correlation: the noise of neighbouring pixels is correlated, {row:+.3f} along rows and {column:+.3f} "
            "along columns; the model takes pixels as independent"
        )
    if wrong & {"dispersion", "gain", "offset"}:
        # Ten times the share that pixels alike would have.
        uneven = ""
        if seen.odd_share > 1e-3 and seen.odd_share * seen.mean.size > 5:
            uneven = (
                f"; {100 * seen.odd_share:.2g} % of the pixels vary far more or less than the others, "
                "which calls for per-pixel maps"
            )
        found.append(_variance_in_words(noise, seen, sensor) + uneven)
    elif "shape" in wrong:
        found.append(
            "shape: the variance fits and the distribution does not (spread of single pixels, skewness or tails): "
            "odd pixels, or noise of another kind"
        )
    return found


def _variance_in_words(noise: NoiseModel, seen: _repeats.Observed, sensor: _repeats.Sensor) -> str:
    if seen.dispersion <= 0:
        return "variance: the frames do not vary; repeats must be separate exposures, not copies or an average"
    ratio = f"the variance is {seen.dispersion:.3f} of that predicted"
    if seen.odd_share > 1e-3 and abs(seen.dispersion_of_others - 1) < 0.3 * abs(seen.dispersion - 1):
        return f"odd pixels: {ratio}, and {seen.dispersion_of_others:.3f} without pixels that are far off"
    if isinstance(noise, GaussianNoise):
        return f"read noise: {ratio}; std looks {_percent(1 / math.sqrt(seen.dispersion))}"
    if isinstance(noise, PoissonNoise):
        return f"gain: {ratio}; the values are not photon counts, use PoissonGaussianNoise with a gain"
    if seen.below_offset_z is not None and seen.below_offset_z < -5:
        return f"offset: the darkest pixels lie below it; {ratio}"
    if seen.slope is not None and max(abs(seen.slope_z), abs(seen.intercept_z)) > 3:
        if not 0.3 < seen.slope < 3:
            return (
                f"gain: {ratio}, but it does not grow with the signal as the model says ({seen.slope:.2g} times as "
                "fast): noise other than shot noise, a response that is not linear, or a gain that differs over pixels"
            )
        parts = []
        if abs(seen.slope_z) > 3:
            parts.append(
                f"gain: the variance grows {seen.slope:.3f} times as fast with the signal as the model says, "
                f"so the gain looks {_percent(1 / seen.slope)}"
            )
        if abs(seen.intercept_z) > 3:
            parts.append(
                f"offset or read noise: the variance without light is off by {seen.intercept:+.3g} ADU^2 "
                f"(the model has {sensor.dark_variance:.3g})"
            )
        return "; ".join(parts)
    if seen.shot_share > 0.5:
        return (
            f"gain: {ratio}, most of it shot noise; the gain looks {_percent(1 / seen.dispersion)} or the offset is off"
        )
    return f"read noise: {ratio}, most of it read noise; read_std looks {_percent(1 / math.sqrt(seen.dispersion))}"


def _percent(model_over_truth: float) -> str:
    return f"{100 * abs(model_over_truth - 1):.0f} % too {'high' if model_over_truth > 1 else 'low'}"
