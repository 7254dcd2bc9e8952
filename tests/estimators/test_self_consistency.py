"""What any information obeys, whatever the channel: data processing, additivity, invariance, and 0 for no signal."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bitlens import (
    GaussianNoise,
    InformationEstimate,
    PoissonGaussianNoise,
    PoissonNoise,
    estimate_information,
    estimate_mutual_information,
)
from bitlens.noise import NoiseModel

pytestmark = pytest.mark.usefixtures("one_thread")

N_IMAGES = 500
SIGMAS = 4.0


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Channel:
    """Measurements, their noise and the noiseless images."""

    measured: Tensor
    noise: NoiseModel
    mean: Tensor

    def estimate(self, with_mean: bool, method: str = "auto") -> InformationEstimate:
        mean = self.mean if with_mean else None
        return estimate_information(self.measured, self.noise, mean=mean, method=method, generator=generator(0))


# ---- Scenes ----


def field(n: int, rows: int, columns: int, seed: int) -> Tensor:
    """Smooth Gaussian fields of variance 4, (n, rows, columns)."""
    white = torch.randn(n, 1, rows + 4, columns + 4, generator=generator(seed), dtype=torch.float64)
    return 10.0 * functional.avg_pool2d(white, 5, 1)[:, 0]


def gamma(n: int, shape: tuple[int, ...], level: float, seed: int) -> Tensor:
    """Independent gamma values of shape 4, photo-electrons."""
    normal = torch.randn(8, n, *shape, generator=generator(seed), dtype=torch.float64)
    return level / 8 * normal.square().sum(0)


def constant(n: int, side: int, level: float, seed: int) -> Tensor:
    """Images of one gamma value each."""
    return gamma(n, (1, 1), level, seed).expand(n, side, side).contiguous()


def channel(mean: Tensor, noise: NoiseModel, seed: int = 100) -> Channel:
    return Channel(noise.sample(mean, generator(seed)), noise, mean)


# ---- Steps after the measurement, with the noise that then holds ----


def binned(images: Tensor, size: int = 2) -> Tensor:
    return size**2 * functional.avg_pool2d(images[:, None], size)[:, 0]


def bin_gaussian(before: Channel) -> Channel:
    assert isinstance(before.noise, GaussianNoise)
    return Channel(binned(before.measured), GaussianNoise(2.0 * float(before.noise.std)), binned(before.mean))


def add_gaussian(before: Channel) -> Channel:
    assert isinstance(before.noise, GaussianNoise)
    more = torch.randn(before.measured.shape, generator=generator(7), dtype=torch.float64)
    return Channel(before.measured + more, GaussianNoise(math.hypot(float(before.noise.std), 1.0)), before.mean)


def bin_photons(before: Channel) -> Channel:
    return Channel(binned(before.measured), before.noise, binned(before.mean))


def thin(before: Channel, share: float) -> Channel:
    """Each counted photon kept with probability `share`: Poisson again."""
    kept = torch.binomial(before.measured, torch.full_like(before.measured, share), generator=generator(8))
    return Channel(kept, before.noise, share * before.mean)


def add_read_noise(before: Channel) -> Channel:
    noise = before.noise
    assert isinstance(noise, PoissonGaussianNoise)
    more = 3.0 * torch.randn(before.measured.shape, generator=generator(9), dtype=torch.float64)
    wider = PoissonGaussianNoise(noise.gain, noise.offset, read_std=math.hypot(float(noise.read_std), 3.0))
    return Channel(before.measured + more, wider, before.mean)


def crop(before: Channel) -> Channel:
    return Channel(before.measured[:, :, 1:], before.noise, before.mean[:, :, 1:])


def stderr_of(*estimates: InformationEstimate) -> float:
    parts = [found.stderr_bits for found in estimates]
    return math.hypot(*(part for part in parts if part is not None))


CHANNELS: dict[str, Callable[[], Channel]] = {
    "gaussian field": lambda: channel(field(N_IMAGES, 8, 8, 1), GaussianNoise(1.0)),
    "photons, independent pixels": lambda: channel(gamma(400, (4, 4), 20.0, 2), PoissonNoise()),
    "photons, constant images": lambda: channel(constant(400, 6, 10.0, 3), PoissonNoise()),
    "photons and read noise": lambda: channel(
        gamma(300, (4, 4), 20.0, 4), PoissonGaussianNoise(2.0, 100.0, read_std=3.0)
    ),
}
STEPS: list[tuple[str, str, Callable[[Channel], Channel]]] = [
    ("gaussian field", "binning", bin_gaussian),
    ("gaussian field", "added noise", add_gaussian),
    ("gaussian field", "crop", crop),
    ("photons, independent pixels", "binning", bin_photons),
    ("photons, independent pixels", "thinning", lambda before: thin(before, 0.1)),
    ("photons, constant images", "thinning", lambda before: thin(before, 0.05)),
    ("photons, constant images", "crop", crop),
    ("photons and read noise", "added noise", add_read_noise),
    ("photons and read noise", "crop", crop),
]


@functools.cache
def made(name: str) -> Channel:
    return CHANNELS[name]()


@functools.cache
def estimated(name: str, with_mean: bool) -> InformationEstimate:
    return made(name).estimate(with_mean)


WITH_MEAN = pytest.mark.parametrize("with_mean", [False, True], ids=["noisy", "mean"])


def side_by_side(left: Channel, right: Channel) -> Channel:
    measured = torch.cat([left.measured, right.measured], 2)
    return Channel(measured, left.noise, torch.cat([left.mean, right.mean], 2))


def mapped(before: Channel, change: Callable[[Tensor], Tensor]) -> Channel:
    """The same change of places of the pixels of both."""
    return Channel(change(before.measured), before.noise, change(before.mean))


def shuffled(images: Tensor) -> Tensor:
    order = torch.randperm(images[0].numel(), generator=generator(2))
    return images.flatten(1)[:, order].reshape(images.shape)


# ---- Data processing ----


@WITH_MEAN
@pytest.mark.parametrize(
    ("name", "step"), [(name, step) for name, _, step in STEPS], ids=[" ".join(s[:2]) for s in STEPS]
)
def test_a_step_after_the_measurement_never_adds_information(
    name: str, step: Callable[[Channel], Channel], with_mean: bool
) -> None:
    first, second = estimated(name, with_mean), step(made(name)).estimate(with_mean)
    assert second.bits <= first.bits + SIGMAS * stderr_of(first, second)
    assert first.upper_bits is not None
    assert second.upper_bits is not None
    assert second.upper_bits <= first.upper_bits + SIGMAS * stderr_of(first, second)
    if with_mean:
        assert first.lower_bits is not None
        assert second.lower_bits is not None
        assert second.lower_bits <= first.lower_bits + SIGMAS * stderr_of(first, second)


@WITH_MEAN
@pytest.mark.parametrize("noise", [PoissonNoise(), GaussianNoise(1.0)], ids=["photons", "gaussian"])
def test_the_sum_of_a_constant_image_carries_all_that_the_image_does(noise: NoiseModel, with_mean: bool) -> None:
    # A sufficient statistic of the level: nothing is lost, which is more than nothing is gained.
    images = channel(constant(600, 8, 0.5, 3), noise)
    sum_noise = GaussianNoise(8.0) if isinstance(noise, GaussianNoise) else noise
    pixel = Channel(binned(images.measured, 8), sum_noise, binned(images.mean, 8))
    first, second = images.estimate(with_mean), pixel.estimate(with_mean)
    assert abs(first.bits - second.bits) < SIGMAS * stderr_of(first, second)
    if with_mean:
        assert first.lower_bits == pytest.approx(second.lower_bits, abs=1e-4)


@WITH_MEAN
@pytest.mark.parametrize(
    ("scenes", "noise"),
    [
        (lambda level: gamma(300, (4, 4), level, 2), PoissonNoise()),
        (lambda level: gamma(300, (2, 2), level, 2), PoissonGaussianNoise(2.0, 100.0, read_std=3.0)),
        (lambda level: constant(300, 6, level, 2), PoissonNoise()),
    ],
    ids=["photons, independent pixels", "photons and read noise", "photons, constant images"],
)
def test_more_light_never_means_fewer_bits(
    scenes: Callable[[float], Tensor], noise: NoiseModel, with_mean: bool
) -> None:
    found = [channel(scenes(level), noise).estimate(with_mean) for level in (0.3, 3.0, 30.0)]
    for darker, brighter in itertools.pairwise(found):
        assert brighter.bits >= darker.bits - SIGMAS * stderr_of(darker, brighter)


# ---- Additivity ----


@WITH_MEAN
@pytest.mark.parametrize("method", ["auto", "gaussian"])
def test_independent_gaussian_fields_side_by_side_carry_the_sum(method: str, with_mean: bool) -> None:
    left = channel(field(2000, 6, 4, 11), GaussianNoise(1.0), 101)
    right = channel(field(2000, 6, 4, 12), GaussianNoise(1.0), 102)
    parts = left.estimate(with_mean, method).bits + right.estimate(with_mean, method).bits
    assert side_by_side(left, right).estimate(with_mean, method).bits == pytest.approx(parts, rel=0.05)


@WITH_MEAN
@pytest.mark.parametrize(
    ("n", "side", "noise"),
    [
        (400, 3, PoissonNoise()),
        (400, 3, PoissonGaussianNoise(2.0, 100.0, read_std=3.0)),
        (800, 1, PoissonNoise()),
    ],
    ids=["photons", "photons and read noise", "photons, single pixels"],
)
def test_independent_pixels_side_by_side_carry_the_sum(n: int, side: int, noise: NoiseModel, with_mean: bool) -> None:
    left = channel(gamma(n, (side, side), 20.0, 11), noise, 101)
    right = channel(gamma(n, (side, side), 8.0, 12), noise, 102)
    parts = left.estimate(with_mean).bits + right.estimate(with_mean).bits
    assert side_by_side(left, right).estimate(with_mean).bits == pytest.approx(parts, rel=0.05)


# ---- Invariance to invertible maps, the noise mapped along ----


@WITH_MEAN
@pytest.mark.parametrize("method", ["auto", "gaussian", "stationary_gaussian"])
@pytest.mark.parametrize(("scale", "shift"), [(2.5, 7.0), (-0.4, 1000.0), (1e5, -1e7)])
def test_the_unit_of_gaussian_noise_does_not_matter(scale: float, shift: float, method: str, with_mean: bool) -> None:
    before = channel(field(400, 6, 4, 1), GaussianNoise(1.0))
    after = Channel(scale * before.measured + shift, GaussianNoise(abs(scale)), scale * before.mean + shift)
    first, second = before.estimate(with_mean, method), after.estimate(with_mean, method)
    assert second.bits == pytest.approx(first.bits, abs=1e-8)
    assert second.stderr_bits == pytest.approx(first.stderr_bits, rel=1e-6)


@WITH_MEAN
@pytest.mark.parametrize("method", ["auto", "gaussian"])
def test_gain_and_offset_of_the_sensor_do_not_matter(method: str, with_mean: bool) -> None:
    before = channel(gamma(N_IMAGES, (4, 4), 5.0, 2), PoissonGaussianNoise(read_std=1.5))
    noise = PoissonGaussianNoise(gain=3.0, offset=100.0, read_std=4.5)
    after = Channel(3.0 * before.measured + 100.0, noise, before.mean)
    first, second = before.estimate(with_mean, method), after.estimate(with_mean, method)
    # Interpolation tables of the mixture have their nodes elsewhere.
    assert second.bits == pytest.approx(first.bits, abs=2e-3 if method == "auto" else 1e-8)
    assert second.stderr_bits == pytest.approx(first.stderr_bits, rel=1e-3)
    if with_mean:
        assert second.lower_bits == pytest.approx(first.lower_bits, abs=1e-6)


@WITH_MEAN
def test_the_places_of_pixels_do_not_matter_to_a_full_covariance(with_mean: bool) -> None:
    before = channel(field(400, 6, 4, 1), GaussianNoise(1.0))
    first = before.estimate(with_mean, "gaussian")
    assert mapped(before, shuffled).estimate(with_mean, "gaussian").bits == pytest.approx(first.bits, abs=1e-8)
    # The density that knows of places is the control: a smooth field shuffled is no longer smooth.
    stationary = before.estimate(with_mean, "stationary_gaussian").bits
    assert mapped(before, shuffled).estimate(with_mean, "stationary_gaussian").bits > stationary + 1.0


def test_the_places_of_pixels_do_not_matter_to_scores_of_known_scenes() -> None:
    before = channel(gamma(N_IMAGES, (2, 2), 5.0, 2), PoissonNoise())
    first = before.estimate(True, "known_channel")
    second = mapped(before, shuffled).estimate(True, "known_channel")
    for name in ("bits", "lower_bits", "upper_bits", "stderr_bits"):
        assert getattr(second, name) == pytest.approx(getattr(first, name), abs=1e-8)


@WITH_MEAN
@pytest.mark.parametrize(
    "change",
    [lambda x: x.flip(1), lambda x: x.flip(2), lambda x: x.mT, lambda x: x.rot90(1, (1, 2))],
    ids=["rows", "columns", "transpose", "rotation"],
)
def test_flips_and_rotations_do_not_matter_to_a_stationary_covariance(
    change: Callable[[Tensor], Tensor], with_mean: bool
) -> None:
    # Oblique, so that a flip changes the covariance.
    before = channel(field(400, 8, 6, 1), GaussianNoise(1.0))
    oblique = mapped(before, lambda x: x + x.roll((1, 1), (1, 2)))
    oblique = channel(oblique.mean, GaussianNoise(1.0))
    first = oblique.estimate(with_mean, "stationary_gaussian")
    second = mapped(oblique, change).estimate(with_mean, "stationary_gaussian")
    assert second.bits == pytest.approx(first.bits, abs=1e-6)


# ---- No signal, and repetition ----


@WITH_MEAN
@pytest.mark.parametrize(
    "noise",
    [GaussianNoise(2.0), PoissonNoise(), PoissonGaussianNoise(2.0, 100.0, read_std=3.0)],
    ids=["gaussian", "photons", "both"],
)
@pytest.mark.parametrize("level", [1.0])
def test_one_scene_carries_nothing(level: float, noise: NoiseModel, with_mean: bool) -> None:
    found = channel(torch.full((300, 4, 4), level, dtype=torch.float64), noise).estimate(with_mean)
    assert found.stderr_bits is not None
    assert abs(found.bits) < SIGMAS * found.stderr_bits + 0.01
    if with_mean:
        assert found.bits == pytest.approx(0.0, abs=0.01)
        assert found.lower_bits == pytest.approx(0.0, abs=1e-9)


@WITH_MEAN
@pytest.mark.parametrize("name", list(CHANNELS))
def test_a_seed_repeats_every_bit(name: str, with_mean: bool) -> None:
    images, first = made(name), estimated(name, with_mean)
    again = Channel(images.measured.clone(), images.noise, images.mean.clone())
    assert again.estimate(with_mean) == first
    mean = images.mean if with_mean else None
    other = estimate_information(images.measured, images.noise, mean=mean, generator=generator(1))
    assert other.bits != first.bits
    assert other.seed == 1
    assert abs(other.bits - first.bits) < stderr_of(other, first)


@pytest.mark.parametrize("name", list(CHANNELS))
def test_noiseless_images_agree_with_noisy_ones_alone(name: str) -> None:
    noisy, known = estimated(name, False), estimated(name, True)
    assert noisy.upper_bits is not None
    assert known.lower_bits is not None
    assert noisy.upper_bits > known.lower_bits - SIGMAS * stderr_of(noisy, known)
    assert abs(noisy.bits - known.bits) < SIGMAS * stderr_of(noisy, known)


# ---- Learned critics ----


def pair(n: int, correlation: float, seed: int) -> tuple[Tensor, Tensor]:
    rng = generator(seed)
    x = torch.randn(n, 1, generator=rng, dtype=torch.float64)
    noise = torch.randn(n, 1, generator=rng, dtype=torch.float64)
    return x, correlation * x + math.sqrt(1 - correlation**2) * noise


def critic(x: Tensor, z: Tensor) -> InformationEstimate:
    return estimate_mutual_information(x, z, method="infonce", n_refits=1, generator=generator(0))


@pytest.mark.slow
def test_rising_maps_of_coordinates_do_not_matter_to_critics_of_ranks() -> None:
    x, z = pair(400, 0.8, 1)
    # Equal up to how values between those of the training rows are placed.
    assert critic(x**3, torch.exp(z)).bits == pytest.approx(critic(x, z).bits, abs=2e-3)


@pytest.mark.slow
def test_a_step_after_the_pair_never_adds_information_to_critics() -> None:
    x, z = pair(400, 0.8, 1)
    more = torch.randn(z.shape, generator=generator(3), dtype=torch.float64)
    first, second = critic(x, z), critic(x, z + more)
    assert second.bits <= first.bits + SIGMAS * stderr_of(first, second)
    assert first.bits > SIGMAS * stderr_of(first)
    nothing = critic(x, more)
    assert abs(nothing.bits) < SIGMAS * stderr_of(nothing) + 0.01


@pytest.mark.slow
def test_critics_of_independent_pairs_side_by_side_find_the_sum() -> None:
    x, z = pair(2000, 0.8, 1)
    u, w = pair(2000, 0.6, 2)
    parts = critic(x, z).bits + critic(u, w).bits
    assert critic(torch.cat([x, u], 1), torch.cat([z, w], 1)).bits == pytest.approx(parts, rel=0.05)
