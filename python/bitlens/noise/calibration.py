"""A sensor's noise model from flat and dark frames: photon transfer, as EMVA 1288 has it.

Everything is measured over time at each pixel, so that fixed patterns cancel: the shot noise of a pixel is its
variance in the light less its variance in the dark, and its signal the mean in the light less the mean in the dark.
The gain is the ratio of their weighted sums over ordinary pixels (hot and stuck ones are set aside, and the bias of
that cut is put back). The weights depend on the brightness around a pixel, never on its own noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from bitlens.noise import _photon_transfer, _temporal
from bitlens.noise._photon_transfer import Level, PhotonTransferPoint
from bitlens.noise._temporal import Frames, Map, Mask
from bitlens.noise.poisson_gaussian import PoissonGaussianNoise

# Frames for a map: the read noise of one pixel to 10 %, and its gain to 10 %.
_DARKS_FOR_MAPS, _FLATS_FOR_GAIN_MAP = 50, 200
_MOST_GAIN_ERROR = 0.3  # standard error relative to the gain beyond which the gain means nothing


@dataclass(frozen=True)
class StandardErrors:
    """One standard deviation of each scalar parameter; None where there is no such parameter."""

    gain: float
    offset: float
    read_std: float
    full_well_electrons: float | None


@dataclass(frozen=True)
class ConfidenceIntervals:
    """(low, high) of each scalar parameter."""

    gain: tuple[float, float]
    offset: tuple[float, float]
    read_std: tuple[float, float]


@dataclass(frozen=True)
class CalibrationResult:
    """What flat and dark frames say about a sensor.

    `noise` has scalar parameters: gain (ADU per photo-electron), offset and read_std (ADU, rounding not included
    where it could be told apart). `noise_maps` has them per pixel, or is None with the reason in `warnings`.
    `full_well_electrons` is None when no turn-over of the variance was reached; it is not put into `noise`, since what
    saturates may be the ADC: give `adc_bits` or `full_well_electrons` to PoissonGaussianNoise. `linearity_error` is
    the mean relative distance of the shot-noise variance from the line through the used points; None for one point.
    """

    noise: PoissonGaussianNoise
    standard_errors: StandardErrors
    photon_transfer: tuple[PhotonTransferPoint, ...]
    full_well_electrons: float | None
    warnings: tuple[str, ...]
    confidence: float
    confidence_intervals: ConfidenceIntervals
    linearity_error: float | None
    noise_maps: PoissonGaussianNoise | None
    ordinary_pixel_share: float

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values; of the maps, whether there are any."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        noise = {name: float(getattr(self.noise, name)) for name in ("gain", "offset", "read_std")}
        return fields | {
            "noise": noise,
            "standard_errors": asdict(self.standard_errors),
            "photon_transfer": [asdict(point) for point in self.photon_transfer],
            "warnings": list(self.warnings),
            "confidence_intervals": {k: list(v) for k, v in asdict(self.confidence_intervals).items()},
            "noise_maps": self.noise_maps is not None,
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """The fields as strict JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)


def calibrate(
    flat_frames: object | Sequence[object], dark_frames: object, *, confidence: float = 0.95
) -> CalibrationResult:
    """gain = sum w (var_flat - var_dark) / sum w (mean_flat - mean_dark); offset and read noise from the dark.

    Args:
        flat_frames: ADU, (frame, row, column) at one illumination, or (level, frame, row, column), or a sequence
            of levels; still and evenly lit, exposed as long as the darks. Frames may drift in brightness.
        dark_frames: ADU, (frame, row, column).
        confidence: of the intervals.

    Raises:
        TypeError: not real numbers.
        ValueError: fewer than 2 frames, shapes that differ, NaN, saturated flats, flats no brighter than the darks.

    Reference: EMVA 1288 standard, release 4.0 (2021), sections 2, 6 and 7.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: need a number between 0 and 1, got {confidence!r}")
    darks = _temporal.as_array("dark_frames", dark_frames)
    _temporal.check_frames("dark_frames", darks)
    levels_of_frames = _levels(flat_frames, darks.shape[1:])
    step = _temporal.step_between_codes(darks, *levels_of_frames)
    warnings: list[str] = []

    dark = _dark(darks, step, warnings)
    block = _temporal.blocks(darks.shape[1:])
    in_dark = float(dark.variance[dark.ordinary].mean())
    levels = [_photon_transfer.measure_level(f, dark.mean, dark.ordinary, in_dark, step) for f in levels_of_frames]
    curve = _photon_transfer.fit(levels, dark.mean, dark.variance * dark.factor, dark.ordinary, block)
    warnings += _level_warnings(levels, levels_of_frames, dark, curve, step) + curve.warnings

    read_std, read_stderr, read_freedom = _read_noise(dark, block, step, warnings)
    offset, offset_stderr, offset_freedom = _offset(dark)
    noise = PoissonGaussianNoise(curve.gain, offset, read_std=read_std)
    return CalibrationResult(
        noise=noise,
        standard_errors=StandardErrors(curve.gain_stderr, offset_stderr, read_stderr, curve.full_well_stderr),
        photon_transfer=curve.points,
        full_well_electrons=curve.full_well_electrons,
        warnings=tuple(warnings + _too_few_frames(levels, len(darks))),
        confidence=confidence,
        confidence_intervals=ConfidenceIntervals(
            _interval(curve.gain, curve.gain_stderr, curve.gain_freedom, confidence),
            _interval(offset, offset_stderr, offset_freedom, confidence),
            _interval(read_std, read_stderr, read_freedom, confidence),
        ),
        linearity_error=curve.linearity_error,
        noise_maps=_maps(levels, dark, noise, step),
        ordinary_pixel_share=float(dark.ordinary.mean()),
    )


def _levels(flat_frames: object | Sequence[object], pixels: tuple[int, ...]) -> list[Frames]:
    name = "flat_frames"
    parts: list[Frames]
    if isinstance(flat_frames, list | tuple):
        if not flat_frames:
            raise ValueError(f"{name}: need at least one level of frames, got none")
        parts = [_temporal.as_array(name, part) for part in flat_frames]
        if all(part.ndim == 2 for part in parts):
            if any(part.shape != parts[0].shape for part in parts):
                raise ValueError(f"{name}: need frames of one shape, got {sorted({p.shape for p in parts})}")
            parts = [np.stack(parts)]
    else:
        array = _temporal.as_array(name, flat_frames)
        if array.ndim not in (3, 4):
            raise ValueError(
                f"{name}: need (frame, row, column) or (level, frame, row, column), got shape {array.shape}"
            )
        parts = [array] if array.ndim == 3 else list(array)
    for part in parts:
        _temporal.check_frames(name, part)
        if part.shape[1:] != pixels:
            raise ValueError(f"{name}: need the pixels of dark_frames, {pixels}, got {part.shape[1:]}")
    return parts


@dataclass(frozen=True)
class _Dark:
    mean: Map
    variance: Map
    ordinary: Mask
    factor: float
    frame_level: Map


def _dark(darks: Frames, step: float, warnings: list[str]) -> _Dark:
    everything = np.ones(darks.shape[1:], dtype=np.bool_)
    ordinary, _ = _temporal.ordinary_dark_pixels(_temporal.dark_moments(darks, everything), len(darks), step)
    if not ordinary.any():
        ordinary = everything
    # Again, now that odd pixels no longer shift the level of a frame.
    moments = _temporal.dark_moments(darks, ordinary)
    ordinary, factor = _temporal.ordinary_dark_pixels(moments, len(darks), step)
    if not ordinary.any():
        raise ValueError("dark_frames: need pixels that behave alike, got none")
    odd = 1 - ordinary.mean()
    if odd > 0.02:
        warnings.append(
            f"{100 * odd:.1f} % of the pixels are hot, stuck or noisier than the rest in the dark; "
            "the scalar parameters are those of the others"
        )
    lowest = _temporal.pile_up(darks, ordinary, top=False)
    if lowest is not None and lowest.code <= 0:
        warnings.append(
            f"{100 * lowest.share:.1f} % of the dark values are at {lowest.code:g}, the end of the scale: "
            "offset is too high and read_std too low; raise the black level"
        )
    expected = math.sqrt(float(moments.variance[ordinary].mean()) / np.count_nonzero(ordinary))
    wander = float(moments.frame_level.std(ddof=1))
    if wander > 5 * expected and wander**2 > 1e-2 * float(moments.variance[ordinary].mean()):
        warnings.append(
            f"the dark level wanders by {wander:.3g} ADU from frame to frame; read_std is what remains within a frame"
        )
    return _Dark(moments.mean, moments.variance, ordinary, factor, moments.frame_level)


def _read_noise(
    dark: _Dark, block: np.ndarray[Any, np.dtype[np.int64]], step: float, warnings: list[str]
) -> tuple[float, float, int]:
    """read_std in ADU without the noise of rounding, its standard error and degrees of freedom."""
    mask = dark.ordinary
    total = float(dark.variance[mask].mean()) * dark.factor
    if total == 0 and step == 0:
        raise ValueError("dark_frames: need frames that show read noise, got frames without any change")
    parts = np.where(mask, dark.variance * dark.factor - total, 0.0) / np.count_nonzero(mask)
    stderr, freedom = _temporal.stderr_of_sum(parts, block)
    rounding = step**2 / 12
    # Rounding adds a variance of step^2 / 12 only where the noise spreads over more than a code.
    if step > 0 and total <= step**2 / 4 + rounding:
        warnings.append(
            f"the read noise, {math.sqrt(total):.2g} ADU, is below what a step of {step:g} ADU resolves: "
            "read_std has the noise of rounding in it"
        )
        total = max(total, rounding)
    else:
        total -= rounding
    std = math.sqrt(total)
    return std, stderr / (2 * std), freedom


def _offset(dark: _Dark) -> tuple[float, float, int]:
    """offset in ADU, its standard error and degrees of freedom: pixels differ, and so do frames."""
    values = dark.mean[dark.ordinary]
    between_pixels = float(values.var(ddof=1)) / values.size if values.size > 1 else 0.0
    n_frames = len(dark.frame_level)
    between_frames = float(dark.frame_level.var(ddof=1)) / n_frames
    within = float(dark.variance[dark.ordinary].mean()) / (values.size * n_frames)
    # With few frames their scatter is a poor estimate: it counts where it says more than independent noise would.
    if between_frames > between_pixels:
        return float(values.mean()), math.sqrt(between_frames), n_frames - 1
    return float(values.mean()), math.sqrt(max(between_pixels, within)), max(values.size - 1, 1)


def _interval(value: float, stderr: float, freedom: int, confidence: float) -> tuple[float, float]:
    reach = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * stderr
    return value - reach, value + reach


def _level_warnings(
    levels: list[Level], frames: list[Frames], dark: _Dark, curve: _photon_transfer.Curve, step: float
) -> list[str]:
    found = []
    drifts = [float(level.scale.max() - level.scale.min()) for level in levels if level.drifted]
    if max(drifts, default=0.0) > 0.01:
        found.append(f"the illumination drifted by {100 * max(drifts):.1f} % between frames; each frame was scaled")
    if any(level.slow_change for level in levels):
        found.append(
            "pixels change from frame to frame by more than one brightness per frame explains; "
            "variances come from successive frames"
        )
    best = max((i for i, level in enumerate(levels) if curve.used_levels[i]), key=lambda i: levels[i].signal)
    level = levels[best]
    if curve.gain_stderr > _MOST_GAIN_ERROR * curve.gain:
        found.append(
            f"the gain is not determined: {curve.gain:.2g} with a standard error of {curve.gain_stderr:.2g} ADU per "
            f"electron; the flats are too little brighter than the darks, or too few"
        )
    std = np.sqrt(curve.gain * np.maximum(level.mean, 0) + dark.variance[dark.ordinary].mean() + step**2 / 12 + 1e-300)
    seen = _temporal.neighbour_correlation(
        frames[best], dark.mean, level.moments, std, dark.ordinary & level.ordinary, level.scale
    )
    worst = max(seen.along_row, seen.along_column, key=abs)
    if abs(worst) > max(0.02, 5 * max(seen.stderr_row, seen.stderr_column)):
        low = 1 - 1 / (1 + 2 * max(seen.along_row, 0) + 2 * max(seen.along_column, 0))
        found.append(
            f"the noise of neighbouring pixels is correlated ({seen.along_row:.3f} along rows, {seen.along_column:.3f} "
            f"along columns): light or charge is shared between pixels, or frames were resampled; "
            f"the gain may be about {100 * low:.0f} % too low"
        )
    return found


def _maps(levels: list[Level], dark: _Dark, noise: PoissonGaussianNoise, step: float) -> PoissonGaussianNoise | None:
    n_darks = len(dark.frame_level)
    if n_darks < _DARKS_FOR_MAPS:
        return None
    variance = dark.variance - (step**2 / 12 if float(noise.read_std) > step / 2 else 0.0)
    read_std = np.sqrt(np.maximum(variance, (0.1 * float(noise.read_std)) ** 2))
    gain: Map | float = float(noise.gain)
    usable = [level for level in levels if level.usable]
    if sum(len(level.scale) - 1 for level in usable) >= _FLATS_FOR_GAIN_MAP:
        shot = sum((level.shot_variance(dark.variance) * level.weight for level in usable), np.zeros(dark.mean.shape))
        signal = sum((level.mean * level.weight for level in usable), np.zeros(dark.mean.shape))
        known = (signal > 0) & (shot > 0.1 * gain * signal)
        gain = np.where(known, shot / np.where(known, signal, 1.0), gain)
    return PoissonGaussianNoise(gain, dark.mean, read_std=read_std)


def _too_few_frames(levels: list[Level], n_darks: int) -> list[str]:
    n_flats = sum(len(level.scale) - 1 for level in levels if level.usable)
    if n_darks < _DARKS_FOR_MAPS:
        percent = 100 / math.sqrt(2 * (n_darks - 1))
        return [
            f"no per-pixel maps: {n_darks} dark frames give the read noise of one pixel to {percent:.0f} % only; "
            f"take {_DARKS_FOR_MAPS} or more"
        ]
    if n_flats < _FLATS_FOR_GAIN_MAP:
        percent = 100 * math.sqrt(2 / n_flats)
        return [
            f"noise_maps has one gain for all pixels: the flat frames give that of one pixel to {percent:.0f} % only; "
            f"take {_FLATS_FOR_GAIN_MAP} or more"
        ]
    return []
