"""Bits of whole images: exact log determinants of whole fields, exact excess of independent patches, honest errors."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens import GaussianNoise, PoissonGaussianNoise, PoissonNoise
from bitlens.densities import (
    AutoregressiveDensity,
    Density,
    FlowDensity,
    GaussianMixtureDensity,
    StationaryGaussianDensity,
)
from bitlens.estimators._image_folds import make_folds, training_places
from bitlens.estimators._image_parts import sensor_part
from bitlens.estimators._image_pixels import pixel_laws
from bitlens.estimators._image_tiles import Tiles, cut
from bitlens.estimators.image_information import estimate_image_information
from bitlens.noise import conditional_entropy_per_sample

pytestmark = pytest.mark.usefixtures("one_thread")

LN2 = math.log(2.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlation(size: int, length: float) -> Tensor:
    place = torch.arange(size, dtype=torch.float64)
    return torch.exp(-(place[:, None] - place).abs() / length)


def along_axes(matrices: list[Tensor], images: Tensor) -> Tensor:
    """(n, channel, row, column) images with one matrix applied to each axis."""
    between, down, across = matrices
    return torch.einsum("ij,zjkl->zikl", between, down @ images @ across.mT)


class Field(NamedTuple):
    """Gaussian field of covariance B x R x C over channels, rows and columns, which makes its log determinant exact."""

    between: Tensor
    length: float
    noise_std: float

    def powers(self, rows: int, columns: int) -> Tensor:
        axes = [torch.linalg.eigvalsh(part) for part in self._axes(rows, columns)]
        return torch.einsum("a,b,c->abc", *axes)

    def bits(self, rows: int, columns: int) -> float:
        return 0.5 * float(torch.log2(1.0 + self.powers(rows, columns) / self.noise_std**2).sum())

    def draw(self, n: int, rows: int, columns: int, seed: int) -> Tensor:
        white = torch.randn(n, len(self.between), rows, columns, dtype=torch.float64, generator=generator(seed))
        factors = [torch.linalg.cholesky(part) for part in self._axes(rows, columns)]
        return along_axes(factors, white)

    def measured(self, n: int, rows: int, columns: int, seed: int) -> Tensor:
        return GaussianNoise(self.noise_std).sample(self.draw(n, rows, columns, seed), generator(1000 + seed))

    def realised_bits(self, measured: Tensor) -> float:
        """-log2 p(measured) by the true law less the entropy of the noise, bits of an image: its mean is `bits`."""
        rows, columns = measured.shape[-2:]
        axes = [torch.linalg.eigh(part)[1] for part in self._axes(rows, columns)]
        turned = along_axes([axis.mT for axis in axes], measured)
        variance = self.powers(rows, columns) + self.noise_std**2
        nats = 0.5 * ((turned.square() / variance).sum((1, 2, 3)).mean() + variance.log().sum())
        return float(nats - measured[0].numel() * (0.5 + math.log(self.noise_std))) / LN2

    def _axes(self, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.between, correlation(rows, self.length), correlation(columns, self.length)


GREY = Field(torch.ones(1, 1, dtype=torch.float64), 4.0, 0.3)


# ---- Truth ----


def test_the_bits_of_whole_images_lie_just_above_those_of_the_true_law() -> None:
    measured = GREY.measured(5, 128, 128, 0)
    n_pixels = 128 * 128
    truth = GREY.realised_bits(measured)
    noise = GaussianNoise(GREY.noise_std)
    chain = estimate_image_information(measured, noise, generator=generator())
    assert chain.bound == "upper"
    assert chain.upper_bits == chain.bits
    assert 0.0 < chain.bits - truth < 0.006 * n_pixels
    assert chain.stderr_bits is not None
    assert abs(chain.bits - GREY.bits(128, 128)) < 4.0 * chain.stderr_bits + 0.006 * n_pixels
    wide = estimate_image_information(measured, noise, patch=16, generator=generator())
    assert 0.0 < wide.bits - truth < 0.015 * n_pixels


@pytest.mark.parametrize("patch", [8, 16])
def test_independent_patches_lie_above_by_what_neighbours_share(patch: int) -> None:
    measured = GREY.measured(5, 128, 128, 0)
    shared = (128 // patch) ** 2 * GREY.bits(patch, patch) - GREY.bits(128, 128)
    alone = estimate_image_information(
        measured, GaussianNoise(GREY.noise_std), patch=patch, context=0, generator=generator()
    )
    excess = alone.bits - GREY.realised_bits(measured) - shared
    assert shared > 0.03 * 128 * 128
    assert -0.001 * 128 * 128 < excess < 0.006 * 128 * 128
    assert "independent patches" in alone.method
    assert "above" in alone.method


def test_one_image_is_fitted_to_its_own_parts() -> None:
    measured = GREY.measured(1, 256, 192, 3)[0, 0]
    result = estimate_image_information(measured, GaussianNoise(GREY.noise_std), generator=generator())
    excess = result.bits - GREY.realised_bits(measured[None, None])
    assert result.n_samples == 1
    assert 0.0 < excess < 0.01 * measured.numel()


def test_sizes_that_are_no_multiple_of_the_patch() -> None:
    measured = GREY.measured(6, 101, 77, 1)
    for patch, context in ((8, 4), (13, 3)):
        result = estimate_image_information(
            measured, GaussianNoise(GREY.noise_std), patch=patch, context=context, generator=generator()
        )
        assert 0.0 < result.bits - GREY.realised_bits(measured) < 0.02 * 101 * 77
        assert result.bits_per_pixel == result.bits / (101 * 77)


def test_channels_share_their_bits() -> None:
    between = torch.tensor([[1.0, 0.9], [0.9, 1.2]], dtype=torch.float64)
    field = Field(between, 3.0, 0.4)
    measured = field.measured(6, 96, 96, 2)
    result = estimate_image_information(
        measured, GaussianNoise(0.4), method="stationary_gaussian", generator=generator()
    )
    excess = result.bits - field.realised_bits(measured)
    single = Field(between[:1, :1], 3.0, 0.4).bits(96, 96) + Field(between[1:, 1:], 3.0, 0.4).bits(96, 96)
    assert 0.0 < excess < 0.01 * 2 * 96 * 96
    assert result.bits < 0.9 * single


def test_without_correlation_patches_alone_are_as_good() -> None:
    measured = 2.0 * torch.randn(4, 128, 128, dtype=torch.float64, generator=generator())
    noise = GaussianNoise(1.0)
    measured = noise.sample(measured, generator(1))
    truth = 0.5 * math.log2(5.0)
    for context in (0, 4):
        result = estimate_image_information(measured, noise, context=context, generator=generator())
        assert result.stderr_bits is not None
        assert abs(result.bits_per_pixel - truth) < 4.0 * result.stderr_bits / 128**2 + 0.004


def test_counts_stay_above_the_truth_of_independent_pixels() -> None:
    """Two equally likely levels, far apart: one bit a pixel at most, and the mixture's law is met by no density."""
    level = torch.where(torch.rand(3, 96, 96, generator=generator()) < 0.5, 4.0, 40.0).double()
    measured = PoissonNoise().sample(level, generator(1))
    counts = torch.arange(150, dtype=torch.float64)
    law = torch.stack([torch.distributions.Poisson(rate).log_prob(counts) for rate in (4.0, 40.0)]).double()
    marginal = torch.logsumexp(law, 0) - LN2
    truth = float((law.exp() * (law - marginal)).sum() / 2.0) / LN2
    for mean in (None, level):
        result = estimate_image_information(measured, PoissonNoise(), mean=mean, generator=generator())
        assert result.bits_per_pixel > truth
        assert not any("does not follow" in note for note in result.warnings)


def test_a_mixture_is_chosen_where_contrast_varies() -> None:
    slow = Field(torch.ones(1, 1, dtype=torch.float64), 40.0, 1.0).draw(4, 128, 128, 5)
    scene = torch.exp(1.2 * slow) * GREY.draw(4, 128, 128, 6)
    noise = GaussianNoise(0.3)
    measured = noise.sample(scene, generator(7))
    auto = estimate_image_information(measured, noise, generator=generator())
    gaussian = estimate_image_information(measured, noise, method="stationary_gaussian", generator=generator())
    assert auto.method.startswith("gaussian_mixture;")
    assert auto.bits < gaussian.bits - 0.1 * 128 * 128
    assert any("far from Gaussian" in note for note in gaussian.warnings)


# ---- The chain rule ----


@pytest.mark.parametrize("size", [8, 9, 23, 24, 64, 101])
@pytest.mark.parametrize(("patch", "before", "after"), [(8, 0, 0), (8, 3, 0), (7, 4, 4), (8, 12, 5)])
def test_every_pixel_is_scored_once_with_its_context(size: int, patch: int, before: int, after: int) -> None:
    axis = cut(size, patch, before, after)
    times = torch.zeros(size, dtype=torch.int64)
    for start, first, last in zip(axis.start.tolist(), axis.first.tolist(), axis.last.tolist(), strict=True):
        assert 0 <= start <= size - axis.window
        assert first >= min(before, start + first)
        assert axis.window - last >= min(after, size - start - last)
        times[start + first : start + last] += 1
    assert bool((times == 1).all())


def fitted(name: str) -> tuple[Density, Tensor]:
    """A density of windows of two channels, and other windows."""
    between = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    windows = Field(between, 2.0, 0.5).measured(400, 4, 5, 0)
    # Two contrasts, for the mixture.
    windows[::2] *= 3.0
    density: Density
    if name == "stationary_gaussian":
        density = StationaryGaussianDensity()
    elif name == "gaussian_mixture":
        density = GaussianMixtureDensity()
    else:
        density = AutoregressiveDensity(width=4, n_blocks=1, n_components=3, max_passes=1)
        if name == "counts":
            windows = (4.0 * windows).exp().clamp(max=60.0).round()
    return density.fit(windows[:300]), windows[300:]


@pytest.mark.parametrize("name", ["stationary_gaussian", "gaussian_mixture", "autoregressive", "counts"])
def test_pixels_of_a_window_add_up_to_its_log_density_and_see_none_that_follow(name: str) -> None:
    density, windows = fitted(name)
    laws = pixel_laws(density)
    log_prob = laws.log_prob(windows)
    assert log_prob.shape == windows.shape
    torch.testing.assert_close(log_prob.sum((1, 2, 3)), density.log_prob(windows), rtol=1e-9, atol=1e-7)
    changed = windows.clone()
    changed[:, :, 2, 3:] += 1.0
    changed[:, :, 3] += 2.0
    after = laws.log_prob(changed)
    torch.testing.assert_close(after[:, :, :2], log_prob[:, :, :2], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after[:, :, 2, :3], log_prob[:, :, 2, :3], rtol=1e-9, atol=1e-9)
    assert float((after - log_prob)[:, :, 2, 3].abs().max()) > 1e-3


def test_a_pixel_has_the_conditional_gaussian_of_those_before_it() -> None:
    density, windows = fitted("stationary_gaussian")
    assert isinstance(density, StationaryGaussianDensity)
    assert density.mean is not None
    assert density.cholesky is not None
    covariance = density.cholesky @ density.cholesky.mT
    # Second channel of row 2, column 1: rows 0 and 1, column 0 of row 2, and the first channel of the pixel.
    place = torch.arange(40).reshape(2, 4, 5)
    before = torch.cat([place[:, :2].flatten(), place[:, 2, 0], place[:1, 2, 1]])
    pixel = int(place[1, 2, 1])
    deviation = (windows - density.mean).flatten(1)
    weights = torch.linalg.solve(covariance[before][:, before], covariance[before, pixel])
    variance = covariance[pixel, pixel] - weights @ covariance[before, pixel]
    residual = deviation[:, pixel] - deviation[:, before] @ weights
    expected = -0.5 * (residual.square() / variance + variance.log() + math.log(2.0 * math.pi))
    torch.testing.assert_close(pixel_laws(density).log_prob(windows)[:, 1, 2, 1], expected)


def test_densities_without_exact_marginals_are_refused() -> None:
    with pytest.raises(TypeError, match="density: need one whose marginals are exact, got FlowDensity"):
        pixel_laws(FlowDensity())
    for density in (StationaryGaussianDensity(), GaussianMixtureDensity()):
        with pytest.raises(RuntimeError, match="call fit first"):
            pixel_laws(density)


def test_an_autoregressive_density_serves_too() -> None:
    measured = GREY.measured(2, 24, 24, 8)
    result = estimate_image_information(
        measured, GaussianNoise(0.3), patch=4, context=2, method="autoregressive", generator=generator()
    )
    assert result.method.startswith("autoregressive;")
    assert 0.0 < result.bits - GREY.realised_bits(measured) < 0.5 * 24 * 24


# ---- Folds and errors ----


def test_windows_that_fit_lie_apart_from_the_patches_that_are_reported() -> None:
    tiles = Tiles(cut(150, 8, 4, 0), cut(130, 8, 4, 4))
    folds = make_folds(torch.zeros(1, 1, 150, 130), tiles, None, generator())
    assert folds.n_folds > 1
    for fold in range(folds.n_folds):
        places = training_places(folds, tiles, fold, 8, generator())
        fitting = torch.zeros(150, 130, dtype=torch.bool)
        for row, column in zip(places.row.tolist(), places.column.tolist(), strict=True):
            fitting[row : row + tiles.rows.window, column : column + tiles.columns.window] = True
        reported = torch.zeros(1, 1, 150, 130)
        for row, column in torch.nonzero(folds.of_tile[0] == fold).tolist():
            top, left = int(tiles.rows.start[row]), int(tiles.columns.start[column])
            reported[..., top : top + tiles.rows.window, left : left + tiles.columns.window] = 1.0
        # Pixels up to 4 away from what a reported patch sees.
        near = torch.nn.functional.max_pool2d(reported, 9, stride=1, padding=4)[0, 0] > 0.0
        assert not bool((fitting & near).any())
        assert float(fitting.double().mean()) > 0.1


def test_frames_of_one_group_share_their_folds() -> None:
    tiles = Tiles(cut(100, 8, 4, 0), cut(100, 8, 4, 4))
    seen = torch.zeros(3, 1, 100, 100, dtype=torch.float64)
    one = make_folds(seen, tiles, ["a", "a", "a"], generator())
    assert one.n_groups == 1
    assert bool((one.of_tile == one.of_tile[0]).all())
    two = make_folds(seen, tiles, torch.tensor([0, 0, 1]), generator())
    assert bool((two.of_tile[0] == two.of_tile[1]).all())
    assert bool((two.of_tile[0] != two.of_tile[2]).all())


@pytest.mark.parametrize("n_images", [1, 3])
def test_standard_errors_hold_where_neighbouring_patches_vary_together(n_images: int) -> None:
    """Contrast that varies over several patches: with patches as units the error would be far too small."""
    noise, size, n_replicates = GaussianNoise(0.5), 96, 60
    slow = Field(torch.ones(1, 1, dtype=torch.float64), 4.0, 1.0)
    bits, errors, naive = [], [], []
    for seed in range(n_replicates):
        scene = torch.exp(0.5 * slow.draw(n_images, size, size, seed))
        scene = scene * torch.randn(scene.shape, dtype=torch.float64, generator=generator(10_000 + seed))
        measured = noise.sample(scene, generator(20_000 + seed))
        result = estimate_image_information(
            measured, noise, patch=4, context=0, method="stationary_gaussian", generator=generator(seed)
        )
        assert result.stderr_bits is not None
        bits.append(result.bits)
        errors.append(result.stderr_bits)
        power = measured.square().unfold(2, 4, 4).unfold(3, 4, 4).sum((4, 5)).flatten()
        variance = float(measured.var())
        naive.append(float(power.std()) / (2.0 * variance * LN2) * math.sqrt(len(power)) / n_images)
    spread = float(np.std(bits, ddof=1))
    ratio = float(np.mean(errors)) / spread
    # Sixty replicates know the spread to 9 %.
    assert 0.75 < ratio < 1.25
    assert float(np.mean(naive)) / spread < 0.65


def test_images_that_differ_as_wholes_set_the_standard_error() -> None:
    contrast = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)[:, None, None, None]
    noise = GaussianNoise(0.3)
    measured = noise.sample(contrast * GREY.draw(4, 64, 64, 9), generator())
    result = estimate_image_information(measured, noise, method="stationary_gaussian", generator=generator())
    assert any("images differ by more than their parts do" in note for note in result.warnings)
    alike = estimate_image_information(
        GREY.measured(4, 64, 64, 9), noise, method="stationary_gaussian", generator=generator()
    )
    assert not any("differ" in note for note in alike.warnings)
    assert result.stderr_bits is not None
    assert alike.stderr_bits is not None
    assert result.stderr_bits > 5.0 * alike.stderr_bits


# ---- Noise ----


def test_maps_of_a_sensor_are_cut_with_the_image() -> None:
    shape = (70, 90)
    gain = torch.full(shape, 1.1, dtype=torch.float64)
    gain[20:50, 40:] = 1.0
    noise = PoissonGaussianNoise(gain=gain, offset=torch.arange(90.0), read_std=1.5)
    mean = 30.0 * torch.rand(2, *shape, dtype=torch.float64, generator=generator(1)) + 5.0
    measured = noise.sample(mean, generator(2))[:, None]
    whole = conditional_entropy_per_sample(noise, measured).sum()
    parts = torch.zeros((), dtype=torch.float64)
    for down in (slice(0, 33), slice(33, 70)):
        for across in (slice(0, 90),):
            sensor = sensor_part(noise, shape, down, across)
            parts += conditional_entropy_per_sample(sensor, measured[..., down, across]).sum()
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=0.0)
    assert noise.gain.shape == shape
    std = torch.full((70, 90), 0.3, dtype=torch.float64)
    std[:, 50:] = 0.6
    images = GREY.draw(2, 70, 90, 3)
    measured, gaussian = GaussianNoise(std).sample(images, generator()), torch.distributions.Normal(0.0, std)
    result = estimate_image_information(measured, GaussianNoise(std), mean=images, generator=generator())
    flat = estimate_image_information(measured, GaussianNoise(0.3), generator=generator())
    more = float(gaussian.entropy().sum()) - 70 * 90 * (0.5 * math.log(2.0 * math.pi * math.e) + math.log(0.3))
    assert flat.bits - result.bits == pytest.approx(more / LN2, rel=1e-9)


def test_a_mean_in_another_unit_is_noticed() -> None:
    scene = GREY.draw(2, 64, 64, 4)
    measured = GaussianNoise(0.3).sample(scene, generator())
    fine = estimate_image_information(measured, GaussianNoise(0.3), mean=scene, generator=generator())
    wrong = estimate_image_information(measured, GaussianNoise(0.3), mean=2.0 * scene, generator=generator())
    assert fine.warnings == ()
    assert any("does not follow the noise model" in note for note in wrong.warnings)


def test_more_noise_than_the_images_show_is_noticed() -> None:
    result = estimate_image_information(GREY.measured(2, 64, 64, 4), GaussianNoise(5.0), generator=generator())
    assert any("negative" in note for note in result.warnings)


# ---- Arguments ----


def test_results_repeat_and_take_arrays() -> None:
    measured = GREY.measured(2, 64, 64, 4)[:, 0]
    noise = GaussianNoise(0.3)
    first = estimate_image_information(measured, noise, generator=generator(5))
    again = estimate_image_information(measured.numpy(), noise, generator=generator(first.seed))
    assert dataclasses.asdict(first) == dataclasses.asdict(again)
    channel = estimate_image_information(measured[:, None], noise, generator=generator(5))
    assert channel.bits == first.bits
    assert estimate_image_information(measured, noise, generator=generator(6)).bits != first.bits


def test_bad_arguments_are_named() -> None:
    image = torch.zeros(40, 40, dtype=torch.float64)
    noise = GaussianNoise(1.0)
    broken = image.clone()
    broken[3, 4] = math.nan
    with pytest.raises(ValueError, match="measured: need finite values"):
        estimate_image_information(broken, noise)
    with pytest.raises(ValueError, match=r"measured: need shape \(row, column\) or"):
        estimate_image_information(torch.zeros(1, 1, 1, 40, 40), noise)
    with pytest.raises(ValueError, match=r"measured: need shape \(n, \.\.\.\)"):
        estimate_image_information(torch.zeros(40), noise)
    with pytest.raises(ValueError, match="patch: need at most the 40 x 40 pixels of an image, got 41"):
        estimate_image_information(image, noise, patch=41)
    with pytest.raises(ValueError, match="patch: need a whole number of at least 2, got 1"):
        estimate_image_information(image, noise, patch=1)
    with pytest.raises(ValueError, match="context: need a whole number of at least 0, got -1"):
        estimate_image_information(image, noise, context=-1)
    with pytest.raises(ValueError, match="mean: need the shape of measured"):
        estimate_image_information(image, noise, mean=image[:20])
    with pytest.raises(ValueError, match="method: need one of 'auto'"):
        estimate_image_information(image, noise, method="gaussian")
    with pytest.raises(TypeError, match="noise: need a noise model"):
        estimate_image_information(image, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="confidence: need a value between 0 and 1"):
        estimate_image_information(image, noise, confidence=1.0)
    with pytest.raises(ValueError, match="groups: need one label per sample"):
        estimate_image_information(image, noise, groups=[0, 1])
    with pytest.raises(ValueError, match="measured: need more or larger images, or a smaller patch: 0 windows"):
        estimate_image_information(GREY.measured(1, 40, 40, 0), noise, patch=30)
    with pytest.raises(ValueError, match="measured: need images that vary"):
        estimate_image_information(torch.zeros(3, 40, 40), noise)
    with pytest.raises(ValueError, match=r"std: need a number or a map that fits images \(1, 40, 40\)"):
        estimate_image_information(image, GaussianNoise(torch.ones(30, 30)))
