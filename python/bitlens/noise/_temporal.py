"""Noise over time in stacks of frames: moments of each pixel, ordinary pixels told from odd ones, errors by blocks."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special
from torch import Tensor

Map = NDArray[np.float64]
Mask = NDArray[np.bool_]
Frames = NDArray[Any]

# A pixel whose variance is so high that one ordinary pixel in this many would show it is set aside.
_ONE_IN = 1e4
_MANY_SIGMAS = 6.0
_MOST_BLOCKS = 64


def as_array(name: str, value: object) -> Frames:
    """An array of finite real numbers, kept in its own type.

    Raises:
        TypeError: not real numbers.
        ValueError: empty, NaN or infinite.
    """
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name}: need frames of real numbers, got dtype {array.dtype}")
    if array.size == 0:
        raise ValueError(f"{name}: need frames of at least one pixel, got shape {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name}: need finite values, got NaN or infinity")
    return array


def check_frames(name: str, frames: Frames) -> None:
    """ValueError unless these are at least two frames (frame, row, column)."""
    if frames.ndim != 3:
        raise ValueError(f"{name}: need frames (frame, row, column), got shape {frames.shape}")
    if len(frames) < 2:
        raise ValueError(f"{name}: need at least 2 frames to see noise, got {len(frames)}")


def step_between_codes(*stacks: Frames) -> float:
    """Distance between neighbouring values of a digitised sensor; 0 where the values are not integers."""
    step, origin = 0, None
    for stack in stacks:
        values = stack.reshape(len(stack), -1)[:, :100_000].astype(np.float64)
        if not (values == np.round(values)).all() or np.abs(values).max() > 2**53:
            return 0.0
        origin = int(values.flat[0]) if origin is None else origin
        step = math.gcd(step, int(np.gcd.reduce(values.astype(np.int64).ravel() - origin)))
    return float(step)


class Moments(NamedTuple):
    """Each pixel over the frames, after what all pixels do together was taken out."""

    mean: Map
    variance: Map  # about the mean of all frames
    pair_variance: Map  # from differences of successive frames, which slow changes of each pixel do not reach
    frame_level: NDArray[np.float64]  # mean of every frame over ordinary pixels, before it was taken out


def dark_moments(frames: Frames, ordinary: Mask) -> Moments:
    """Moments of dark frames, each shifted by a constant to the mean of all."""
    level = np.array([frame.astype(np.float64)[ordinary].mean() for frame in frames])
    n = int(np.count_nonzero(ordinary))
    return moments_of(frames, np.zeros(frames.shape[1:]), level - level.mean(), np.ones(len(frames)), n)._replace(
        frame_level=level
    )


def flat_moments(frames: Frames, offset: Map | float, ordinary: Mask) -> Moments:
    """Moments of frames less the offset, each divided by its illumination relative to the mean of all."""
    dark = np.broadcast_to(np.asarray(offset, dtype=np.float64), frames.shape[1:])
    level = np.array([(frame.astype(np.float64) - dark)[ordinary].mean() for frame in frames])
    n = int(np.count_nonzero(ordinary))
    # Without light there is nothing to scale by.
    scale = level / level.mean() if level.mean() > 0 and level.min() > 0.1 * level.mean() else np.ones(len(frames))
    return moments_of(frames, dark, np.zeros(len(frames)), scale, n)._replace(frame_level=level)


def moments_of(frames: Frames, dark: Map, shift: Map, scale: Map, n_pixels: int) -> Moments:
    """Moments of (frame - dark - shift) / scale; n_pixels: over how many the level of a frame was fitted."""
    mean, squares, pairs = (np.zeros(frames.shape[1:]) for _ in range(3))
    previous = None
    for index, frame in enumerate(frames):
        value = (frame.astype(np.float64) - dark - shift[index]) / scale[index]
        step = value - mean
        mean = mean + step / (index + 1)
        squares += step * (value - mean)
        if previous is not None:
            pairs += (value - previous) ** 2
        previous = value
    # One degree of freedom per frame went into its level.
    lost = n_pixels / max(n_pixels - 1, 1)
    n = len(frames) - 1
    return Moments(mean, squares / n * lost, pairs / (2 * n) * lost, np.empty(0))


class Ordinary(NamedTuple):
    """Which variances belong to ordinary pixels, and the factor on their mean that makes up for the cut."""

    mask: Mask
    factor: float


def ordinary_variances(variance: Map, expected: float, n_frames: int, excess_kurtosis: float, step: float) -> Ordinary:
    """Cut of the sample variances at the tails of their gamma distribution, with its own bias.

    Args:
        variance: of any shape, sample variances over n_frames of pixels alike.
        expected: what they are about, > 0.
        excess_kurtosis: of one frame: zero for read noise, 1/counts for shot noise alone.
        step: distance of codes; variances near its square say nothing about a stuck pixel.
    """
    spread = 2 / (n_frames - 1) + excess_kurtosis / n_frames
    if spread > 100:
        return Ordinary(np.ones(variance.shape, dtype=np.bool_), 1.0)  # so few electrons that any variance may be
    shape = 1 / spread
    high = special.gammainccinv(shape, 1 / _ONE_IN)
    low = special.gammaincinv(shape, 1 / _ONE_IN**2) / shape * expected
    mask = variance <= high / shape * expected
    if low > step**2 / 12:
        mask &= variance >= low
    factor = special.gammainc(shape, high) / special.gammainc(shape + 1, high)
    return Ordinary(mask, float(factor))


def ordinary_dark_pixels(moments: Moments, n_frames: int, step: float) -> tuple[Mask, float]:
    """Pixels that are neither hot nor dead nor noisier than the rest, and the factor on their mean variance."""
    middle_variance = float(np.median(moments.variance))
    centre = float(np.median(moments.mean))
    half = (n_frames - 1) / 2
    # The median of a gamma distribution of n - 1 degrees of freedom lies below its mean.
    expected = middle_variance * half / float(special.gammaincinv(half, 0.5))
    spread = max(1.4826 * float(np.median(np.abs(moments.mean - centre))), math.sqrt(expected / n_frames), step / 10)
    mask = np.abs(moments.mean - centre) <= max(_MANY_SIGMAS * spread, 1e-9 * abs(centre))
    if expected <= step**2 / 12 or expected == 0:
        return mask, 1.0  # rounding hides the read noise: variances of single pixels say nothing
    ordinary = ordinary_variances(moments.variance, expected, n_frames, 0.0, step)
    return mask & ordinary.mask, ordinary.factor


def illumination_bins(mean: Map, variance_of_mean: float, ordinary: Mask, most: int = 8) -> NDArray[np.int64]:
    """Index of the brightness class of every pixel, darkest first, judged by its neighbours: its own noise has no say.

    All one class when the spread of brightness is small, or no more than noise makes it.
    """
    around = _ring_mean(mean, ordinary)
    low, high = np.quantile(around[ordinary], [0.05, 0.95])
    n_bins = min(most, int(np.count_nonzero(ordinary)) // 256)
    # 24 neighbours; 5 % to 95 % of a normal distribution are 3.3 standard deviations.
    by_noise = 3.3 * math.sqrt(variance_of_mean / 24)
    if n_bins < 2 or high - low <= max(0.05 * abs(float(around[ordinary].mean())), 2 * by_noise):
        return np.zeros(mean.shape, dtype=np.int64)
    edges = np.quantile(around[ordinary], np.arange(1, n_bins) / n_bins)
    return np.searchsorted(edges, around).astype(np.int64)


def _ring_mean(values: Map, ordinary: Mask) -> Map:
    weight = ordinary.astype(np.float64)
    kernel = np.ones((5, 5))
    kernel[2, 2] = 0.0
    total = ndimage.convolve(np.where(ordinary, values, 0.0), kernel, mode="constant")
    count = ndimage.convolve(weight, kernel, mode="constant")
    fallback = float(values[ordinary].mean())
    ring: Map = np.where(count > 0.5, total / np.maximum(count, 1.0), fallback)
    return ring


def blocks(shape: tuple[int, int]) -> NDArray[np.int64]:
    """Index of the block of neighbouring pixels that each pixel lies in: at most 64, as square as they can be."""
    rows, columns = shape
    side = int(math.sqrt(_MOST_BLOCKS))
    n_rows = min(rows, max(side, _MOST_BLOCKS // columns))
    n_columns = min(columns, _MOST_BLOCKS // n_rows)
    row = np.arange(rows) * n_rows // rows
    column = np.arange(columns) * n_columns // columns
    return (row[:, None] * n_columns + column).astype(np.int64)


def stderr_of_sum(parts: Map, block: NDArray[np.int64]) -> tuple[float, int]:
    """Standard error of a sum over pixels whose parts have mean zero, and the degrees of freedom it has.

    Summed by blocks first, so that correlation between neighbours is in it.
    """
    totals = np.bincount(block.ravel(), parts.ravel())
    n = len(totals)
    return math.sqrt(float((totals**2).sum()) * n / max(n - 1, 1)), max(n - 1, 1)


class PileUp(NamedTuple):
    """Values heaped at the end of the scale."""

    code: float
    share: float


def pile_up(frames: Frames, ordinary: Mask, *, top: bool) -> PileUp | None:
    """The extreme value and its share, when more values than one in 10,000 and than the next code have it."""
    values = frames[:, ordinary]
    code = values.max() if top else values.min()
    n_end = int(np.count_nonzero(values == code))
    rest = values[values != code]
    share = n_end / values.size
    if rest.size == 0:
        return PileUp(float(code), 1.0)
    if share <= 1e-4 or n_end < 3:
        return None
    following = rest.max() if top else rest.min()
    if n_end <= int(np.count_nonzero(rest == following)):
        return None
    return PileUp(float(code), share)


class Neighbours(NamedTuple):
    """Correlation of the noise of pixels next to each other, and its standard errors."""

    along_row: float
    along_column: float
    stderr_row: float
    stderr_column: float


def neighbour_correlation(
    frames: Frames, offset: Map, moments: Moments, std: Map, ordinary: Mask, scale: Map, shift: Map | None = None
) -> Neighbours:
    """Mean product of standardised residuals of neighbouring ordinary pixels."""
    row, column = ordinary[:, 1:] & ordinary[:, :-1], ordinary[1:] & ordinary[:-1]
    by_row, by_column = np.zeros(row.shape), np.zeros(column.shape)
    for index, frame in enumerate(frames):
        moved = frame.astype(np.float64) - offset - (0.0 if shift is None else shift[index])
        residual = (moved / scale[index] - moments.mean) / std
        # Without what all pixels do together.
        residual = np.where(ordinary, residual - residual[ordinary].mean(), 0.0)
        by_row += residual[:, 1:] * residual[:, :-1]
        by_column += residual[1:] * residual[:-1]
    found = []
    for products, pairs in ((by_row, row), (by_column, column)):
        values = products[pairs] / (len(frames) - 1)
        # Taking out the mean of all pixels correlates any two by -1 / n.
        middle = float(values.mean()) + 1 / np.count_nonzero(ordinary) if values.size else 0.0
        error = float(values.std()) / math.sqrt(values.size) if values.size > 1 else math.inf
        found.append((middle, max(error, 1e-300)))
    return Neighbours(found[0][0], found[1][0], found[0][1], found[1][1])
