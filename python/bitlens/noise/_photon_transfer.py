"""The photon transfer curve: shot-noise variance against signal over levels of light, its slope and its end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bitlens.noise import _temporal
from bitlens.noise._temporal import Frames, Map, Mask, Moments, PileUp

# EMVA 1288 fits the gain below this share of saturation.
_FIT_BELOW = 0.7
_TURNED = 0.8  # of the highest variance: below it, at a higher mean, the sensor is past its end
_CLIPPED_POINT, _CLIPPED_LEVEL = 1e-4, 1e-2  # share of values at the top code that a point may have


@dataclass(frozen=True)
class PhotonTransferPoint:
    """Pixels of one brightness at one level, ADU and ADU^2.

    `mean` is above the offset; `variance` is that of one frame, read noise included, and `shot_variance` what is
    left without the variance in the dark, with its standard error. `used` says whether the gain was fitted to it.
    """

    level: int
    mean: float
    variance: float
    shot_variance: float
    shot_variance_stderr: float
    n_pixels: int
    used: bool


@dataclass
class Level:
    """One level of light, measured."""

    moments: Moments
    mean: Map  # ADU above the offset
    variance: Map  # of the frames scaled to their mean, ADU^2, the bias of the cut put back
    scale: NDArray[np.float64]  # brightness of each frame relative to their mean
    ordinary: Mask
    bins: NDArray[np.int64]
    signal: float
    at_top: Map  # share of the frames in which a pixel sat at the top code
    top: PileUp | None
    drifted: bool  # by more than the noise of a frame's mean
    slow_change: bool
    usable: bool = True
    weight: float = 0.0

    def shot_variance(self, dark_variance: Map) -> Map:
        """Variance without that of the dark, as one frame of mean brightness has it."""
        shot: Map = (self.variance - float((self.scale**-2).mean()) * dark_variance) / float((1 / self.scale).mean())
        return shot


def measure_level(frames: Frames, offset: Map, ordinary: Mask, dark_variance: float, step: float) -> Level:
    """Moments of one level, its odd pixels set aside. Twice, so that odd pixels do not shift a frame's brightness.

    Raises:
        ValueError: no light above the dark.
    """
    mask = ordinary
    for _ in range(2):
        moments = _temporal.flat_moments(frames, offset, mask)
        signal = float(moments.mean[mask].mean())
        if signal <= 0:
            raise ValueError(
                f"flat_frames: need flats brighter than the darks, got a mean {-signal:.4g} ADU below that of the darks"
            )
        slow_change = len(frames) > 2 and _changes_slowly(moments, mask)
        variance = moments.pair_variance if slow_change else moments.variance
        bins = _temporal.illumination_bins(moments.mean, float(variance[mask].mean()) / len(frames), mask)
        mask, corrected = _ordinary_pixels(moments.mean, variance, dark_variance, bins, ordinary, len(frames), step)
    top = _temporal.pile_up(frames, mask, top=True)
    at_top = np.zeros(offset.shape) if top is None else (frames == top.code).mean(axis=0)
    scale = moments.frame_level / moments.frame_level.mean()
    if scale.min() <= 0.1:
        scale = np.ones(len(frames))
    by_noise = math.sqrt(float(corrected[mask].mean()) / np.count_nonzero(mask)) / signal
    drifted = float(scale.std(ddof=1)) > 3 * by_noise
    return Level(moments, moments.mean, corrected, scale, mask, bins, signal, at_top, top, drifted, slow_change)


def _changes_slowly(moments: Moments, mask: Mask) -> bool:
    excess = (moments.variance - moments.pair_variance)[mask]
    middle, error = float(excess.mean()), float(excess.std()) / math.sqrt(excess.size)
    return middle > 5 * error and middle > 0.01 * float(moments.variance[mask].mean())


def _ordinary_pixels(
    mean: Map,
    variance: Map,
    dark_variance: float,
    bins: NDArray[np.int64],
    ordinary: Mask,
    n_frames: int,
    step: float,
) -> tuple[Mask, Map]:
    """Pixels with neither a mean nor a variance out of the ordinary in their class, and the corrected variance."""
    mask, corrected = ordinary.copy(), variance.copy()
    for index in np.unique(bins[ordinary]):
        here = ordinary & (bins == index)
        values, level = variance[here], mean[here]
        centre = float(np.median(level))
        reach = 6 * 1.4826 * float(np.median(np.abs(level - centre)))
        keep = np.abs(level - centre) <= max(reach, 6 * math.sqrt(float(values.mean()) / n_frames), step)
        # A mean that a few wild pixels cannot move, low by little; each round it moves up to the right one.
        expected = float(values[values <= np.quantile(values, 0.975)].mean())
        factor = 1.0
        for _ in range(4):
            if expected <= step**2 / 12:
                break
            # The excess kurtosis of shot noise, gain^3 (mean - offset) / variance^2, lengthens the tail in dim light.
            gain = max(expected - dark_variance, 0.0) / max(centre, 1e-12)
            cut = _temporal.ordinary_variances(values, expected, n_frames, gain**3 * centre / expected**2, step)
            if not (keep & cut.mask).any():
                break
            expected, factor = float(values[keep & cut.mask].mean()) * cut.factor, cut.factor
            chosen = keep & cut.mask
        else:
            keep = chosen
        mask[here] = keep
        corrected[here] *= factor
    return mask, corrected


@dataclass(frozen=True)
class Curve:
    """The fitted photon transfer curve."""

    gain: float
    gain_stderr: float
    gain_freedom: int
    points: tuple[PhotonTransferPoint, ...]
    used_levels: tuple[bool, ...]
    full_well_electrons: float | None
    full_well_stderr: float | None
    linearity_error: float | None
    warnings: list[str] = field(default_factory=list)


@dataclass
class _Class:
    """Pixels of one brightness at one level."""

    level: int
    mask: Mask
    mean: float
    shot: float
    total: float
    stderr: float
    n_pixels: int
    clipped: float
    used: bool = True


def fit(levels: list[Level], offset: Map, dark_variance: Map, ordinary: Mask, block: NDArray[np.int64]) -> Curve:
    """Slope of shot-noise variance against signal below saturation, and where the variance turns over.

    Raises:
        ValueError: every level is saturated; no shot noise.
    """
    classes = [one for i, level in enumerate(levels) for one in _classes(i, level, dark_variance)]
    classes.sort(key=lambda one: one.mean)
    end = _find_end(classes)
    warnings: list[str] = []
    for one in classes:
        one.used = one.clipped <= _CLIPPED_POINT and (end is None or one.mean <= _FIT_BELOW * end)
    if not any(one.used for one in classes):
        _settle_for_clipped(classes, levels, end, warnings)
    used = [one for one in classes if one.used]
    gain, stderr, freedom = _slope(used, levels, dark_variance, block)
    dark_level = float(dark_variance[ordinary].mean())
    for index, level in enumerate(levels):
        level.usable = any(one.used and one.level == index for one in classes)
        level.weight = 1 / (gain * level.signal + dark_level) ** 2 * level.signal * (len(level.scale) - 1)
    points = tuple(PhotonTransferPoint(c.level, c.mean, c.total, c.shot, c.stderr, c.n_pixels, c.used) for c in classes)
    full_well = None if end is None else _full_well(classes, gain)
    linearity = None
    if len(used) > 1:
        distances = np.array([one.shot / (gain * one.mean) - 1 for one in used])
        errors = np.array([one.stderr / (gain * one.mean) for one in used])
        linearity = float(np.abs(distances).mean())
        chance = float(stats.chi2.sf(((distances / errors) ** 2).sum(), len(used) - 1))
        worst = int(np.abs(distances).argmax())
        if chance < 1e-3 and abs(distances[worst]) > 0.02:
            warnings.append(
                f"the shot-noise variance is not proportional to the signal: {100 * distances[worst]:+.1f} % off the "
                f"line at {used[worst].mean:.4g} ADU; the sensor is not linear, or the flats hold other noise"
            )
    return Curve(
        gain,
        stderr,
        freedom,
        points,
        tuple(level.usable for level in levels),
        None if full_well is None else full_well[0],
        None if full_well is None else math.hypot(full_well[1], full_well[0] * stderr / gain),
        linearity,
        warnings,
    )


def _classes(index: int, level: Level, dark_variance: Map) -> list[_Class]:
    shot = level.shot_variance(dark_variance)
    made = []
    for bin_index in np.unique(level.bins[level.ordinary]):
        mask = level.ordinary & (level.bins == bin_index)
        n = int(np.count_nonzero(mask))
        mean, values = float(level.mean[mask].mean()), shot[mask]
        total = float(values.mean()) + float(dark_variance[mask].mean())
        error = float(values.std()) / math.sqrt(n)
        made.append(_Class(index, mask, mean, float(values.mean()), total, error, n, float(level.at_top[mask].mean())))
    return made


def _find_end(classes: list[_Class]) -> float | None:
    """Mean at the highest variance, if a brighter class has clearly less of it; classes in order of mean."""
    peak = max(range(len(classes)), key=lambda i: classes[i].total)
    for later in classes[peak + 1 :]:
        gap = classes[peak].total - later.total
        if later.total < _TURNED * classes[peak].total and gap > 5 * math.hypot(later.stderr, classes[peak].stderr):
            return classes[peak].mean
    return None


def _settle_for_clipped(classes: list[_Class], levels: list[Level], end: float | None, warnings: list[str]) -> None:
    """With nothing better, a class clipped a little is used, with a warning; a saturated one never."""
    top = next((level.top for level in reversed(levels) if level.top is not None), None)
    least = min(classes, key=lambda one: (one.clipped, one.mean))
    if least.clipped > _CLIPPED_LEVEL or (end is not None and least.mean > end):
        code = "" if top is None else f", {top.code:g}"
        raise ValueError(
            f"flat_frames: need flats below saturation, got {100 * least.clipped:.3g} % of the values at the top "
            f"value{code} in the least saturated pixels; expose less"
        )
    for one in classes:
        one.used = one.clipped <= max(least.clipped, _CLIPPED_POINT) and one.mean <= max(least.mean, end or math.inf)
    warnings.append(
        f"all flats are close to saturation ({100 * least.clipped:.2g} % of values at the top): "
        "the gain is too low; expose less"
    )


def _slope(
    used: list[_Class], levels: list[Level], dark_variance: Map, block: NDArray[np.int64]
) -> tuple[float, float, int]:
    """gain = sum h (shot variance) / sum h (signal), h = mean / variance^2 of the class: gain, error, freedom."""
    signal = sum(one.mean * one.n_pixels for one in used)
    gain = sum(one.shot * one.n_pixels for one in used) / signal
    if gain <= 0:
        raise ValueError(
            "flat_frames: need flats that vary more from frame to frame than the darks do, "
            f"got {gain * signal / sum(one.n_pixels for one in used):.4g} ADU^2 of variance above the dark"
        )
    dark = [float(dark_variance[one.mask].mean()) for one in used]
    # From the line, not from the measured variance: a weight that knows the noise would favour low ones.
    weights = [
        one.mean / (gain * one.mean + variance) ** 2 * (len(levels[one.level].scale) - 1)
        for one, variance in zip(used, dark, strict=True)
    ]
    over = sum(w * one.mean * one.n_pixels for w, one in zip(weights, used, strict=True))
    gain = sum(w * one.shot * one.n_pixels for w, one in zip(weights, used, strict=True)) / over
    parts: NDArray[Any] = np.zeros(dark_variance.shape)
    for weight, one in zip(weights, used, strict=True):
        level = levels[one.level]
        residual = level.shot_variance(dark_variance) - gain * level.mean
        parts[one.mask] += (weight * residual / over)[one.mask]
    stderr, freedom = _temporal.stderr_of_sum(parts, block)
    if not gain > 0:
        raise ValueError("flat_frames: need flats that vary more from frame to frame than the darks do, got less")
    return gain, stderr, freedom


def _full_well(classes: list[_Class], gain: float) -> tuple[float, float]:
    """Electrons at the end of the scale, and half the distance of the points that bracket it."""
    peak = max(range(len(classes)), key=lambda i: classes[i].total)
    last = classes[-1]
    if last.total < 0.5 * gain * last.mean:
        # The brightest light fills the wells: the plateau is the end, whatever the steps of light.
        return last.mean / gain, 0.0
    following = classes[min(peak + 1, len(classes) - 1)].mean
    return classes[peak].mean / gain, (following - classes[peak].mean) / 2 / gain
