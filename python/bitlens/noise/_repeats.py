"""What repeats of a still scene show, beside what a noise model predicts for their means."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from bitlens.noise import _temporal
from bitlens.noise._temporal import Frames, Map, Mask, Neighbours, PileUp
from bitlens.noise.gaussian import GaussianNoise
from bitlens.noise.poisson import PoissonNoise
from bitlens.noise.poisson_gaussian import PoissonGaussianNoise

_MOST_VALUES = 400_000  # of the residuals whose distribution is looked at
_MOST_SIMULATED = 400_000
_CERTAIN_DRIFT = 1e-4  # below this chance, frames are scaled to one brightness before anything else


@dataclass(frozen=True)
class Sensor:
    """A noise model as variance = gain (measured mean - offset) + read_variance, every parameter a map."""

    noise: GaussianNoise | PoissonNoise | PoissonGaussianNoise
    gain: Map
    offset: Map
    read_variance: Map

    @property
    def dark_variance(self) -> float:
        """Mean variance without light."""
        return float(self.read_variance.mean())

    @property
    def counts_light(self) -> bool:
        """Whether the variance grows with the mean."""
        return not isinstance(self.noise, GaussianNoise)


def sensor_of(noise: GaussianNoise | PoissonNoise | PoissonGaussianNoise, pixels: tuple[int, ...]) -> Sensor:
    """ValueError when a map of the model does not fit these pixels."""

    def full(name: str, value: Tensor | float) -> Map:
        parameter = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
        try:
            return np.broadcast_to(parameter, pixels)
        except ValueError:
            raise ValueError(f"noise: need {name} as a number or a map {pixels}, got {parameter.shape}") from None

    if isinstance(noise, GaussianNoise):
        return Sensor(noise, full("gain", 0.0), full("offset", 0.0), full("std", noise.std) ** 2)
    if isinstance(noise, PoissonNoise):
        return Sensor(noise, full("gain", 1.0), full("offset", 0.0), full("read_std", 0.0))
    return Sensor(noise, full("gain", noise.gain), full("offset", noise.offset), full("read_std", noise.read_std) ** 2)


@dataclass(frozen=True)
class Observed:
    """Statistics of the repeats; each z is about standard normal under the right model."""

    mean: Map  # ADU
    dispersion: float
    dispersion_stderr: float
    dispersion_z: float
    odd_share: float  # of pixels that vary far more or less than most; 1e-4 where all are alike
    dispersion_of_others: float
    shot_share: float
    slope: float | None  # of the variance against that predicted for the shot noise; 1 is right
    slope_z: float
    intercept: float  # ADU^2 beyond the predicted variance in the dark
    intercept_z: float
    below_offset_z: float | None
    shape_z: tuple[float, float, float]
    pit_histogram: tuple[float, ...]
    neighbours: Neighbours
    neighbour_z: tuple[float | None, float | None]
    drift_adu: float  # standard deviation of the frames' mean signal
    level_adu: float  # the mean signal
    drift_p: float
    clipped: dict[str, PileUp]


def observe(frames: Frames, sensor: Sensor, generator: torch.Generator) -> Observed:
    """Everything that the tests of a noise model look at."""
    n_frames, pixels = len(frames), frames.shape[1:]
    n_pixels = math.prod(pixels)
    everything = np.ones(pixels, dtype=np.bool_)
    step = 0.0 if isinstance(sensor.noise, PoissonNoise) else _temporal.step_between_codes(frames)
    rounding = step**2 / 12

    zeros, ones = np.zeros(n_frames), np.ones(n_frames)
    # Far more pixels than one frame level: no degree of freedom is lost while the levels are left alone.
    moments = _temporal.moments_of(frames, sensor.offset, zeros, ones, 2**62)
    level = np.array([(frame - sensor.offset).mean() for frame in frames])
    middle, spread = float(level.mean()), float(level.std(ddof=1))
    statistic = (n_frames - 1) * spread**2 * n_pixels / max(float(moments.variance.mean()), 1e-300)
    drift_p = float(stats.chi2.sf(statistic, n_frames - 1))
    shift, scale = zeros, ones
    if drift_p < _CERTAIN_DRIFT:
        if sensor.counts_light and level.min() > 0.1 * middle > 0:
            scale = level / middle
        else:
            shift = level - middle
        moments = _temporal.moments_of(frames, sensor.offset, shift, scale, n_pixels)

    signal = moments.mean
    k_shot, k_read = float((1 / scale).mean()), float((scale**-2).mean())
    shot = k_shot * sensor.gain * signal
    base = k_read * (sensor.read_variance + rounding)
    classes = _temporal.illumination_bins(signal, float(moments.variance.mean()) / n_frames, everything, most=12)
    dispersion = _dispersion(moments.variance, shot, base, classes)
    odd_share, of_others = _without_odd_pixels(moments.variance, shot, base, classes, sensor, n_frames, step)
    slope = _slope(moments.variance - base, shot, base, classes)

    below = None
    if sensor.counts_light:
        darkest = classes == classes.min()
        error = math.sqrt(float(moments.variance[darkest].mean()) / (np.count_nonzero(darkest) * n_frames))
        below = float(signal[darkest].mean()) / max(error, 1e-300)

    std = np.sqrt(np.maximum(_class_means(moments.variance, classes), 1e-300))
    neighbours = _temporal.neighbour_correlation(
        frames, sensor.offset + 0.0, moments, std, everything, scale, shift=shift
    )
    shape_z, histogram = _shape(frames, sensor, signal, moments.variance, classes, scale, shift, step, generator)
    return Observed(
        mean=signal + sensor.offset,
        dispersion=dispersion[0],
        dispersion_stderr=dispersion[1],
        odd_share=odd_share,
        dispersion_of_others=of_others,
        dispersion_z=(dispersion[0] - 1) / max(dispersion[1], 1e-300),
        shot_share=float(np.maximum(shot, 0).mean() / max((np.maximum(shot, 0) + base).mean(), 1e-300)),
        slope=None if slope is None else slope[0],
        slope_z=0.0 if slope is None else (slope[0] - 1) / max(slope[1], 1e-300),
        intercept=0.0 if slope is None else slope[2],
        intercept_z=0.0 if slope is None else slope[2] / max(slope[3], 1e-300),
        below_offset_z=below,
        shape_z=shape_z,
        pit_histogram=histogram,
        neighbours=neighbours,
        neighbour_z=(
            float(neighbours.along_row / neighbours.stderr_row) if pixels[1] > 2 else None,
            float(neighbours.along_column / neighbours.stderr_column) if pixels[0] > 2 else None,
        ),
        drift_adu=spread,
        level_adu=middle,
        drift_p=drift_p,
        clipped=_clipped(frames, moments.variance, everything, sensor),
    )


def _class_means(values: Map, classes: NDArray[np.int64]) -> Map:
    """The mean over its class, at every pixel."""
    counts = np.maximum(np.bincount(classes.ravel()), 1)
    means: Map = (np.bincount(classes.ravel(), values.ravel()) / counts)[classes]
    return means


def _dispersion(variance: Map, shot: Map, base: Map, classes: NDArray[np.int64]) -> tuple[float, float]:
    """sum w variance / sum w predicted, and its standard error; exact in expectation, for the prediction is linear."""
    predicted = shot + base
    weight = 1 / np.maximum(np.maximum(_class_means(predicted, classes), base), 1e-12)
    over = float((weight * predicted).sum())
    if over <= 0:
        over = float((weight * np.maximum(predicted, base)).sum())
    excess = weight * (variance - predicted)
    centred = excess - _class_means(excess, classes)
    return 1 + float(excess.sum()) / over, math.sqrt(float((centred**2).sum())) / abs(over)


def _without_odd_pixels(
    variance: Map, shot: Map, base: Map, classes: NDArray[np.int64], sensor: Sensor, n_frames: int, step: float
) -> tuple[float, float]:
    """Share of the pixels that vary out of the ordinary next to the others, and the dispersion of those."""
    predicted = np.maximum(np.maximum(shot, 0) + base, 1e-12)
    # Of the signal around a pixel: its own would let a noisy pixel excuse itself.
    of_class = np.maximum(_class_means(predicted, classes), 1e-12)
    kurtosis = float(np.median(sensor.gain**2 * np.maximum(_class_means(shot, classes), 0) / of_class**2))
    relative = variance / predicted
    code = step / math.sqrt(float(predicted.min()))
    expected = max(float(relative[relative <= np.quantile(relative, 0.95)].mean()), 1e-12)
    share = 1.0
    for _ in range(4):
        ordinary = _temporal.ordinary_variances(relative, expected, n_frames, kurtosis, code)
        if not ordinary.mask.any():
            break
        share, expected = float(ordinary.mask.mean()), float(relative[ordinary.mask].mean()) * ordinary.factor
    return 1 - share, expected


def _slope(variance: Map, shot: Map, base: Map, classes: NDArray[np.int64]) -> tuple[float, float, float, float] | None:
    """variance = a shot + b by weighted moments: a, its error, b, its error; None in even light.

    The instrument is the mean of a class, which the noise of a pixel itself does not move.
    """
    known = _class_means(shot, classes)
    if classes.max() == 0 or not known.max() > known.min():
        return None
    weight = 1 / np.maximum(known + base, np.maximum(base, 1e-12)) ** 2
    left = np.array([[(weight * known * shot).sum(), (weight * known).sum()], [(weight * shot).sum(), weight.sum()]])
    if not abs(np.linalg.det(left)) > 1e-12 * abs(left[0, 0] * left[1, 1]):
        return None
    a, b = np.linalg.solve(left, [(weight * known * variance).sum(), (weight * variance).sum()])
    residual = weight * (variance - a * shot - b)
    influence = np.linalg.solve(left, np.stack([(residual * known).ravel(), residual.ravel()]))
    errors = np.sqrt((influence**2).sum(axis=1))
    return float(a), float(errors[0]), float(b), float(errors[1])


def _shape(
    frames: Frames,
    sensor: Sensor,
    signal: Map,
    variance: Map,
    classes: NDArray[np.int64],
    scale: Map,
    shift: Map,
    step: float,
    generator: torch.Generator,
) -> tuple[tuple[float, float, float], tuple[float, ...]]:
    """Probability-integral transform of standardised residuals against repeats simulated from the model.

    The simulated repeats lose the same degree of freedom to their own means, so the transform is uniform under the
    right model. Its second to fourth Legendre moments, as z-scores over pixels, and its histogram in ten classes.
    """
    n_frames = len(frames)
    stride = max(1, math.ceil(variance.size * n_frames / _MOST_VALUES))
    chosen = np.arange(0, variance.size, stride)
    gain, offset = sensor.gain.ravel()[chosen], sensor.offset.ravel()[chosen]
    read = sensor.read_variance.ravel()[chosen] + step**2 / 12
    expected = _likely_means(sensor, signal, variance, classes, n_frames).ravel()[chosen]
    measured = frames.reshape(n_frames, -1)[:, chosen].astype(np.float64)
    measured = (measured - offset - shift[:, None]) / scale[:, None] + offset

    def residuals(values: Map) -> Map:
        own = values.mean(axis=0)
        predicted = np.maximum(gain * np.maximum(own - offset, 0) + read, 1e-12 + 0.25 * gain**2)
        standardised: Map = (values - own) / np.sqrt(predicted)
        return standardised

    n_simulated = int(np.clip(_MOST_SIMULATED // measured.size, 3, 8))
    noise = _part_of(sensor, chosen)
    simulated = []
    for _ in range(n_simulated):
        drawn = noise.sample(torch.from_numpy(expected).expand(n_frames, -1), generator=generator).numpy()
        if step > 0:
            drawn = np.round(drawn / step) * step
        simulated.append(residuals(drawn).ravel())
    known = np.sort(np.concatenate(simulated))
    found = residuals(measured)
    # The middle of a tie, so that discrete values do as well; rounding errors must not part what is equal.
    small = 1e-9
    low, high = np.searchsorted(known, found - small, "left"), np.searchsorted(known, found + small, "right")
    transform = (low + high) / (2 * known.size)
    x = 2 * transform - 1
    moments = ((3 * x**2 - 1) / 2, (5 * x**3 - 3 * x) / 2, (35 * x**4 - 30 * x**2 + 3) / 8)
    ties = step > 0 or isinstance(sensor.noise, PoissonNoise)
    of_ties = _moments_of_ties(known, small) if ties else (0.0, 0.0, 0.0)
    z_scores = []
    for order, (moment, of_tie) in enumerate(zip(moments, of_ties, strict=True), start=2):
        per_pixel = moment.mean(axis=0) - of_tie
        error = float(per_pixel.std(ddof=1)) / math.sqrt(per_pixel.size) if per_pixel.size > 1 else math.inf
        if n_frames == 2 and order == 3:
            z_scores.append(0.0)  # two residuals of a pixel mirror each other
            continue
        z_scores.append(float(per_pixel.mean()) / max(error * math.sqrt(1 + 1 / n_simulated), 1e-300))
    histogram = np.histogram(transform, bins=10, range=(0, 1))[0] / transform.size
    return (z_scores[0], z_scores[1], z_scores[2]), tuple(float(share) for share in histogram)


def _moments_of_ties(known: Map, small: float) -> tuple[float, float, float]:
    """What the moments are when the values come from the simulation itself: zero but for ties."""
    low, high = np.searchsorted(known, known - small, "left"), np.searchsorted(known, known + small, "right")
    x = (low + high) / known.size - 1
    second, third, fourth = (float(np.polynomial.legendre.legval(x, np.eye(5)[k]).mean()) for k in (2, 3, 4))
    return second, third, fourth


def _likely_means(sensor: Sensor, signal: Map, variance: Map, classes: NDArray[np.int64], n_frames: int) -> Map:
    """Means to simulate from, drawn together in each class so that they scatter as the true ones do.

    The mean of a few repeats scatters more than the scene, which would make simulated noise too wide.
    """
    middle = _class_means(signal, classes)
    total = _class_means((signal - middle) ** 2, classes)
    by_noise = _class_means(variance, classes) / n_frames
    shrink = np.sqrt(np.clip(1 - by_noise / np.maximum(total, 1e-300), 0, 1))
    likely: Map = middle + shrink * (signal - middle)
    if not sensor.counts_light:
        return likely
    return np.maximum(likely / sensor.gain, 0)


def _part_of(sensor: Sensor, chosen: NDArray[np.int64]) -> GaussianNoise | PoissonNoise | PoissonGaussianNoise:
    noise = sensor.noise
    if isinstance(noise, PoissonNoise):
        return noise
    read_std = np.sqrt(sensor.read_variance.ravel()[chosen])
    if isinstance(noise, GaussianNoise):
        return GaussianNoise(read_std)
    well = noise.full_well_electrons
    if well is not None and well.numel() > 1:
        well = well.detach().to(torch.float64).expand(sensor.gain.shape).reshape(-1)[torch.from_numpy(chosen)]
    return PoissonGaussianNoise(
        sensor.gain.ravel()[chosen],
        sensor.offset.ravel()[chosen],
        read_std=read_std,
        adc_bits=noise.adc_bits,
        full_well_electrons=well,
    )


def clear_of_ends(frames: Frames, noise: PoissonGaussianNoise, sensor: Sensor) -> Mask:
    """Pixels whose noise stays within the scale of a sensor with an ADC or a full well, (row, column).

    What an end cuts off varies less than the linear model says, so the tests of the variance leave those out.
    """
    mean = frames.mean(axis=0, dtype=np.float64)
    reach = 6 * np.sqrt(sensor.gain * np.maximum(mean - sensor.offset, 0) + sensor.read_variance) + 6 * sensor.gain
    clear = np.ones(mean.shape, dtype=np.bool_)
    if noise.full_well_electrons is not None:
        well = np.broadcast_to(noise.full_well_electrons.detach().cpu().numpy(), mean.shape)
        clear &= mean + reach < sensor.gain * well + sensor.offset
    if noise.adc_bits is not None:
        # At the lower end there is nothing but read noise: six standard deviations of it.
        clear &= mean + reach < 2**noise.adc_bits - 1
        clear &= (
            mean
            - np.minimum(reach, 6 * np.sqrt(sensor.gain * np.maximum(mean - sensor.offset, 0) + sensor.read_variance))
            > 0
        )
    return clear


def only(frames: Frames, noise: PoissonGaussianNoise, kept: Mask) -> tuple[Frames, PoissonGaussianNoise]:
    """Frames of one row with the chosen pixels, and the noise model of these."""

    def part(value: Tensor | None) -> Tensor | None:
        if value is None or value.numel() == 1:
            return value
        return value.detach().to(torch.float64).expand(kept.shape)[torch.from_numpy(kept)][None]

    chosen = PoissonGaussianNoise(
        part(noise.gain),
        part(noise.offset),
        read_std=part(noise.read_std),
        adc_bits=noise.adc_bits,
        full_well_electrons=part(noise.full_well_electrons),
    )
    return frames[:, kept][:, None, :], chosen


def _clipped(
    frames: Frames, variance: Map, everything: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], sensor: Sensor
) -> dict[str, PileUp]:
    """Heaps of values at the ends of the scale; counts of no photon are no heap."""
    found = {}
    for end, top in (("top", True), ("bottom", False)):
        heap = _temporal.pile_up(frames, everything, top=top)
        if heap is None or (not top and isinstance(sensor.noise, PoissonNoise)):
            continue
        at_end = (frames == heap.code).any(axis=0)
        # Where codes are wider than the noise, many values share the last one without being cut off there.
        step = _temporal.step_between_codes(frames)
        predicted = np.maximum(sensor.gain * (heap.code - sensor.offset), 0) + sensor.read_variance
        if float(predicted[at_end].mean()) > step**2:
            found[end] = heap
    return found
