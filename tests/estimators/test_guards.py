"""Warnings about common mistakes: each is found where it is planted, and honest data of many kinds pass."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from bitlens import GaussianNoise, PoissonGaussianNoise, PoissonNoise, estimate_information
from bitlens.datasets import scene_patches
from bitlens.estimators import _guards, _guards_scenes
from bitlens.estimators._inputs import Groups, make_groups
from bitlens.noise import NoiseModel, conditional_entropy_per_sample

pytestmark = pytest.mark.usefixtures("one_thread")

CAMERA = PoissonGaussianNoise(2.0, 100.0, read_std=3.0)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gamma(shape: tuple[int, ...], level: float, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).gamma(4.0, level / 4.0, shape))


def field(n: int, size: int, seed: int) -> Tensor:
    """A smooth Gaussian field: white noise under a periodic blur."""
    white = torch.randn(n, size, size, generator=generator(seed), dtype=torch.float64)
    frequency = torch.fft.fftfreq(size, dtype=torch.float64)
    blur = 4.0 / (0.05 + frequency[:, None] ** 2 + frequency**2)
    return torch.fft.ifft2(torch.fft.fft2(white) * blur).real / blur.square().mean().sqrt()


def spots(n: int, size: int, photons: float, seed: int) -> Tensor:
    place = size * torch.rand(n, 2, generator=generator(seed), dtype=torch.float64)
    axis = torch.arange(size, dtype=torch.float64)
    row, column = (torch.exp(-0.5 * (axis - place[:, [k]]) ** 2) for k in range(2))
    return 0.2 + photons * row[:, :, None] * column[:, None]


def digits(photons: float) -> Tensor:
    return torch.from_numpy(load_digits().images) * photons / 16.0


def honest(name: str, seed: int) -> tuple[Tensor, NoiseModel, Tensor | None]:
    """Means, noise and groups of a set with nothing wrong."""
    if name.startswith("patches"):
        patches = scene_patches(600, 16, mean=200.0, generator=generator(seed))
        scenes = patches.scenes.double()
        if name == "patches in groups":
            return scenes, CAMERA, patches.groups
        return scenes * (0.05 if name == "patches in the dark" else 1.0), PoissonNoise(), None
    sets: dict[str, tuple[Tensor, NoiseModel]] = {
        "field": (3 * field(600, 16, seed), GaussianNoise(1.0)),
        "weak field": (0.5 * field(600, 8, seed), GaussianNoise(1.0)),
        "gamma pixels": (gamma((600, 8, 8), 100.0, seed), PoissonNoise()),
        "low light": (gamma((600, 8, 8), 0.1, seed), PoissonNoise()),
        "one level": (gamma((600, 1, 1), 0.5, seed).expand(600, 8, 8), PoissonNoise()),
        "digits": (digits(100.0), PoissonNoise()),
        "digits in the dark": (digits(3.0), PoissonNoise()),
        "digits, ADC": (digits(100.0), PoissonGaussianNoise(2.0, 100.0, read_std=3.0, adc_bits=12)),
        "many pixels": (gamma((150, 48, 48), 30.0, seed), CAMERA),
        "one pixel": (gamma((600, 1, 1), 5.0, seed), PoissonNoise()),
        "one bright pixel": (300.0 + 20 * field(600, 1, seed), GaussianNoise(1.0)),
        "spots": (spots(600, 12, 60.0, seed), PoissonNoise()),
    }
    return *sets[name], None


HONEST = (
    *("field", "weak field", "gamma pixels", "low light", "one level", "digits", "digits in the dark", "digits, ADC"),
    *("many pixels", "one pixel", "one bright pixel", "spots", "patches", "patches in the dark", "patches in groups"),
)


def setup(
    mean: Tensor, noise: NoiseModel, labels: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, Tensor, NoiseModel, Groups]:
    measured = noise.sample(mean, generator(seed + 1000)).to(torch.float64)
    return measured, mean, noise, make_groups(labels, measured, generator(seed))


def about_scenes(case: tuple[Tensor, Tensor, NoiseModel, Groups], known: bool, bits: float) -> tuple[str, ...]:
    measured, mean, noise, groups = case
    return _guards_scenes.scene_set_warnings(
        measured, mean if known else None, noise, groups, bits=bits, stderr_bits=0.1
    )


# ---- Honest data ----


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", HONEST)
def test_honest_scenes_pass(name: str, known: bool) -> None:
    for seed in range(3):
        mean, noise, labels = honest(name, seed)
        # Whatever the estimate: every bit of information that could be near the entropy of a set is claimed.
        assert about_scenes(setup(mean, noise, labels, seed), known, bits=1e6) == ()


@pytest.mark.parametrize("name", ["weak field", "low light", "one level", "one pixel"])
def test_honest_scenes_pass_with_their_own_estimate_where_there_is_little_light(name: str) -> None:
    mean, noise, _ = honest(name, 5)
    measured, mean, noise, groups = setup(mean, noise)
    found = estimate_information(measured, noise, generator=generator(5))
    stderr = found.stderr_bits
    assert stderr is not None
    for known in (None, mean):
        assert (
            _guards_scenes.scene_set_warnings(measured, known, noise, groups, bits=found.bits, stderr_bits=stderr) == ()
        )


@pytest.mark.parametrize("name", HONEST)
def test_what_the_noise_allows_is_not_called_too_much(name: str) -> None:
    """Oracle: an estimate at the entropy of Gaussian pixels is the most there can be, and must pass."""
    for seed in range(3):
        mean, noise, labels = honest(name, seed)
        measured, mean, noise, groups = setup(mean, noise, labels, seed)
        conditional = conditional_entropy_per_sample(noise, measured, mean)
        variance = measured.var(0)
        # That of the law, from the law of total variance: not of this sample.
        other = noise.sample(mean, generator(seed + 7)).to(torch.float64).var(0) if labels is None else variance
        rounding = 1 / 12 if noise.discrete else 0.0
        most = 0.5 * torch.log(2 * math.pi * math.e * (other + rounding)).sum() - conditional.mean()
        bits = float(most) / math.log(2.0)
        assert (
            _guards.certificate_warnings(
                measured, conditional, noise.discrete, groups, bits=bits, stderr_bits=0.0, lower_bits=1.0
            )
            == ()
        )


@pytest.mark.parametrize(
    ("noise", "level"),
    [
        (GaussianNoise(2.0), 50.0),
        (PoissonNoise(), 5.0),
        (PoissonNoise(), 0.3),
        (CAMERA, 100.0),
        (PoissonGaussianNoise(2.0, 100.0, read_std=3.0, adc_bits=12), 100.0),
        (PoissonGaussianNoise(1.0 + torch.rand(8, 8), 100.0, read_std=3.0), 30.0),
    ],
)
def test_right_noise_model_passes_its_repeats(noise: NoiseModel, level: float) -> None:
    found = 0
    for seed in range(6):
        scenes = gamma((4, 1, 8, 8), level, seed).expand(4, 12, 8, 8)
        repeats = noise.sample(scenes, generator(seed))
        found += bool(_guards.noise_warnings(noise, repeats, torch.Size((8, 8))))
        found += bool(_guards.noise_warnings(noise, repeats[0], torch.Size((8, 8))))
    assert found == 0


# ---- The noise model ----


@pytest.mark.parametrize("scenes", [1, 5])
@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_wrong_read_noise_is_found_with_the_bits_it_costs(factor: float, scenes: int) -> None:
    mean = gamma((scenes, 1, 3, 12, 12), 50.0, 0).expand(scenes, 30, 3, 12, 12)
    repeats = GaussianNoise(2.0 * factor).sample(mean, generator(1))
    (note,) = _guards.noise_warnings(GaussianNoise(2.0), repeats if scenes > 1 else repeats[0], torch.Size((3, 12, 12)))
    assert "does not fit the repeats" in note
    assert "read noise" in note
    assert (f"for {scenes} of {scenes} scenes" in note) == (scenes > 1)
    bits, side = re.search(r"about ([\d.]+) bits too (high|low)", note).groups()  # type: ignore[union-attr]
    # h(measured | scene) of the right model less that of the wrong one.
    assert float(bits) == pytest.approx(3 * 144 * abs(math.log2(factor)), rel=0.06)
    assert side == ("high" if factor > 1 else "low")


def test_wrong_gain_of_a_camera_is_found() -> None:
    mean = gamma((1, 16, 16), 200.0, 0).expand(40, 16, 16)
    repeats = CAMERA.sample(mean, generator(1))
    wrong = PoissonGaussianNoise(1.5, 100.0, read_std=3.0)
    (note,) = _guards.noise_warnings(wrong, repeats, torch.Size((16, 16)))
    assert "gain" in note
    assert "5 % more of a parameter moves it by (bits): gain" in note
    # Shot noise is nearly all: the variance that the wrong model expects is 1.5 / 2 of that found.
    bits = float(re.search(r"about ([\d.]+) bits too high", note).group(1))  # type: ignore[union-attr]
    assert bits == pytest.approx(256 * 0.5 * math.log2(2 / 1.5), rel=0.1)


def test_maps_of_noise_meet_images_with_channels() -> None:
    std = torch.tensor([1.0, 3.0]).reshape(2, 1, 1)
    repeats = GaussianNoise(std).sample(torch.zeros(50, 2, 6, 6, dtype=torch.float64), generator(1))
    assert _guards.noise_warnings(GaussianNoise(std), repeats, torch.Size((2, 6, 6))) == ()
    assert _guards.noise_warnings(GaussianNoise(std.flip(0)), repeats, torch.Size((2, 6, 6))) != ()


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (5, 8, 9), (2, 1, 8, 8), (1, 1, 5, 8, 8)])
def test_repeats_of_another_shape_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="repeats: need"):
        _guards.noise_warnings(GaussianNoise(1.0), torch.zeros(shape), torch.Size((8, 8)))


# ---- Sample size and certificates ----


def test_sample_too_small_for_the_density() -> None:
    (note,) = _guards.sample_size_warnings(300, 256, "gaussian", 400.0, 200.0)
    assert "200 % of the estimate" in note
    (note,) = _guards.sample_size_warnings(150, 64, "flow", math.nan, 200.0)
    assert "n_extrapolate" in note
    assert _guards.sample_size_warnings(2000, 64, "gaussian", 0.4, 100.0) == ()
    # Weak signals: 15 % of little is little.
    assert _guards.sample_size_warnings(2000, 16, "gaussian", 0.05, 0.1) == ()
    assert _guards.sample_size_warnings(500, 64, "flow", math.nan, 200.0) == ()


@pytest.mark.parametrize("excess", [1.0, 30.0])
def test_more_bits_than_the_noise_allows(excess: float) -> None:
    """White Gaussian pixels reach the bound: their information plus anything is too much."""
    noise, pixels = GaussianNoise(1.0), 16
    measured, mean, _, groups = setup(3 * torch.randn(4000, 4, 4, generator=generator(0), dtype=torch.float64), noise)
    conditional = conditional_entropy_per_sample(noise, measured, mean)
    truth = pixels * 0.5 * math.log2(10.0)
    above, at = (
        _guards.certificate_warnings(measured, conditional, False, groups, bits=bits, stderr_bits=0.05)
        for bits in (truth + excess, truth)
    )
    assert at == ()
    assert len(above) == 1
    assert "more than the" in above[0]


def test_lower_bound_past_the_logarithm_of_the_sample_is_labelled() -> None:
    measured, mean, noise, groups = setup(100 * field(256, 8, 0), GaussianNoise(1.0))
    conditional = conditional_entropy_per_sample(noise, measured, mean)

    def notes(lower: float) -> tuple[str, ...]:
        return _guards.certificate_warnings(
            measured,
            conditional,
            False,
            groups,
            bits=lower,
            stderr_bits=0.1,
            lower_bits=lower,
            lower_name="the gaussian density",
        )

    assert notes(7.9) == ()
    (note,) = notes(8.1)
    assert "log2(256) = 8.00" in note
    assert "the noise model and the gaussian density" in note


# ---- Sets of scenes ----


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("noise", [GaussianNoise(5.0), PoissonNoise(), CAMERA])
def test_few_scenes(noise: NoiseModel, known: bool) -> None:
    index = torch.randint(8, (500,), generator=generator(0))
    case = setup(gamma((8, 8, 8), 100.0, 0)[index], noise)
    (note,) = about_scenes(case, known, bits=2.9)
    assert "8 distinct scenes" in note
    entropy = float(re.search(r"entropy of ([\d.]+) bits", note).group(1))  # type: ignore[union-attr]
    share = torch.bincount(index).double() / 500
    assert entropy == pytest.approx(float(torch.special.entr(share).sum()) / math.log(2.0), abs=0.06)
    # Optics that leave most of it behind say something about themselves.
    assert about_scenes(case, known, bits=1.0) == ()


@pytest.mark.parametrize("known", [False, True])
def test_one_scene_most_of_the_time(known: bool) -> None:
    mean = gamma((400, 8, 8), 50.0, 0)
    mean[torch.rand(400, generator=generator(1)) < 0.7] = mean[0].clone()
    (note,) = about_scenes(setup(mean, PoissonNoise()), known, bits=3.0)
    share = float(re.search(r"makes (\d+) %", note).group(1))  # type: ignore[union-attr]
    assert share == pytest.approx(70.0, abs=7.0)


@pytest.mark.parametrize("noise", [GaussianNoise(2.0), PoissonNoise(), CAMERA])
def test_all_scenes_alike(noise: NoiseModel) -> None:
    for shape in ((8, 8), (1, 1), (32, 32)):
        case = setup(gamma((1, *shape), 3.0, 0).expand(300, *shape).contiguous(), noise)
        (note,) = about_scenes(case, False, bits=0.0)
        assert "no difference between the 300 images" in note
        (note,) = about_scenes(case, True, bits=0.0)
        assert "there is one scene" in note


def test_difference_between_scenes_of_one_noise_deviation_is_enough() -> None:
    """Two levels a noise deviation apart: 0.16 bits, which 300 images show."""
    mean = torch.randint(2, (300, 1, 1), generator=generator(0)).double()
    assert about_scenes(setup(mean, GaussianNoise(1.0)), False, bits=0.16) == ()


@pytest.mark.parametrize("known", [False, True])
def test_repeats_of_scenes_without_groups(known: bool) -> None:
    mean = gamma((90, 8, 8), 100.0, 0)
    labels = torch.arange(90).repeat_interleave(3)
    case = setup(mean[labels], PoissonNoise())
    (note,) = about_scenes(case, known, bits=150.0)
    assert "one label of `groups`" in note
    assert about_scenes(setup(mean[labels], PoissonNoise(), labels), known, bits=150.0) == ()


@pytest.mark.parametrize("noise", [GaussianNoise(1.0), PoissonNoise(), CAMERA])
def test_copies_of_measured_images(noise: NoiseModel) -> None:
    mean = gamma((300, 8, 8), 20.0, 0)
    measured, _, _, groups = setup(mean, noise)
    measured[100:110] = measured[:10]
    (note,) = _guards_scenes.scene_set_warnings(measured, None, noise, groups, bits=50.0, stderr_bits=0.1)
    assert "20 of 300 measured images are copies" in note
    labels = torch.arange(300)
    labels[100:110] = torch.arange(10)
    together = make_groups(labels, measured, generator(0))
    assert _guards_scenes.scene_set_warnings(measured, None, noise, together, bits=50.0, stderr_bits=0.1) == ()


def test_equal_counts_of_few_photons_are_no_copies() -> None:
    measured, _, noise, groups = setup(gamma((2000, 2, 2), 1.0, 0), PoissonNoise())
    assert len(torch.unique(measured.flatten(1), dim=0)) < 500
    assert _guards_scenes.scene_set_warnings(measured, None, noise, groups, bits=1.0, stderr_bits=0.1) == ()
    rounded = (100 + 2 * torch.randn(2000, 1, generator=generator(0), dtype=torch.float64)).round()
    assert _guards_scenes.scene_set_warnings(rounded, None, GaussianNoise(1.0), groups, bits=1.0, stderr_bits=0.1) == ()


def test_one_source_holds_most_of_the_images() -> None:
    labels = torch.cat([torch.zeros(200, dtype=torch.int64), torch.arange(1, 101)])
    (note,) = about_scenes(setup(gamma((300, 8, 8), 20.0, 0), PoissonNoise(), labels), False, bits=50.0)
    assert "67 % of the images" in note


def test_a_noise_model_of_the_users_own_has_its_means_looked_at() -> None:
    class Laplace(NoiseModel):
        def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
            return mean + torch.randn(mean.shape, generator=generator, dtype=mean.dtype)

        def log_prob(self, measured: Tensor, mean: Tensor) -> Tensor:
            return -(measured - mean).abs() - math.log(2.0)

        def entropy(self, mean: Tensor) -> Tensor:
            return torch.full_like(mean, 1.0 + math.log(2.0))

    case = setup(100 * torch.randint(2, (300, 1), generator=generator(0)).double(), Laplace())
    assert about_scenes(case, False, bits=1.0) == ()
    (note,) = about_scenes(case, True, bits=1.0)
    assert "2 distinct scenes" in note


# ---- The noise model against the values ----


def test_values_below_the_dark_level_are_named() -> None:
    rng = torch.Generator().manual_seed(0)
    noise = PoissonGaussianNoise(2.0, 100.0, read_std=3.0)
    measured = noise.sample(torch.full((50, 6, 6), 1.0, dtype=torch.float64), rng).double()
    assert _guards.value_warnings(measured, noise) == ()
    (note,) = _guards.value_warnings(measured - 50.0, noise)
    assert "below the dark level" in note
    found = estimate_information(measured - 50.0, noise, generator=rng)
    assert any("below the dark level" in warning for warning in found.warnings)


def test_whole_numbers_under_fine_noise_are_named() -> None:
    rng = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((50, 5, 5), 9.0, dtype=torch.float64), generator=rng)
    (note,) = _guards.value_warnings(counts, GaussianNoise(0.1))
    assert "whole numbers" in note
    assert _guards.value_warnings(counts, GaussianNoise(3.0)) == ()
    assert _guards.value_warnings(counts, PoissonNoise()) == ()
    assert _guards.value_warnings(counts + 0.01 * torch.randn(50, 5, 5, generator=rng), GaussianNoise(0.1)) == ()
    # A converter's whole numbers are what the model with a converter gives.
    assert _guards.value_warnings(counts, PoissonGaussianNoise(read_std=0.1, adc_bits=12)) == ()
