"""The Gaussian objective against log determinants that are known."""

from __future__ import annotations

import math

import pytest
import torch

from bitlens.design import gaussian_information
from bitlens.noise import GaussianNoise, NoiseModel, PoissonGaussianNoise, PoissonNoise


def _field(n: int, eigenvalues: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(n, eigenvalues.numel(), generator=generator, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(eigenvalues.numel(), eigenvalues.numel(), generator=generator).double())
    return (white * eigenvalues.sqrt()) @ rotation.mT


# 40 scenes for 64 pixels are too few for a covariance; the share of a nat comes from the spread over 20 draws.
@pytest.mark.parametrize(("n_scenes", "relative"), [(40, 0.02), (80, 0.01), (600, 0.003)])
def test_linear_gaussian_truth_with_few_scenes(n_scenes: int, relative: float) -> None:
    eigenvalues = 300.0 * torch.arange(1, 65, dtype=torch.float64) ** -1.5
    std = 1.7
    truth = 0.5 * torch.log1p(eigenvalues / std**2).sum().item()
    values = [
        gaussian_information(_field(n_scenes, eigenvalues, seed), GaussianNoise(std)).item() for seed in range(20)
    ]
    mean = sum(values) / len(values)
    spread = torch.tensor(values).std().item() / math.sqrt(len(values))
    assert abs(mean - truth) < relative * truth + 3 * spread
    assert spread < 0.02 * truth


def test_poisson_gaussian_is_close_to_gaussian_with_many_photons() -> None:
    mean = 1e5 + _field(400, torch.full((9,), 4e5, dtype=torch.float64), 3)
    signal_dependent = gaussian_information(mean, PoissonGaussianNoise(read_std=30.0))
    constant = gaussian_information(mean, GaussianNoise(math.sqrt(1e5 + 30.0**2)))
    assert signal_dependent.item() == pytest.approx(constant.item(), abs=2e-3)


def test_gain_and_offset_do_not_change_information() -> None:
    mean = (50.0 + _field(300, torch.full((9,), 60.0, dtype=torch.float64), 5)).clamp(min=0)
    electrons = gaussian_information(mean, PoissonGaussianNoise(read_std=2.0))
    digital = gaussian_information(mean, PoissonGaussianNoise(gain=3.5, offset=100.0, read_std=7.0))
    assert digital.item() == pytest.approx(electrons.item(), abs=1e-8)


def test_counts_and_counts_with_a_little_read_noise_agree() -> None:
    mean = (80.0 + _field(300, torch.full((9,), 100.0, dtype=torch.float64), 6)).clamp(min=0)
    # At a read noise of 0.4 electrons, what it hides of 80 photons is below 0.01 nats a pixel.
    counts = gaussian_information(mean, PoissonNoise()).item()
    nearly = gaussian_information(mean, PoissonGaussianNoise(read_std=0.4)).item()
    assert counts == pytest.approx(nearly, abs=0.01 * 9)


@pytest.mark.parametrize("n_scenes", [4, 12])
@pytest.mark.parametrize("noise", [GaussianNoise(0.8), PoissonGaussianNoise(gain=2.0, read_std=1.3), PoissonNoise()])
def test_gradient(noise: torch.nn.Module, n_scenes: int) -> None:
    mean = (20.0 + _field(n_scenes, torch.linspace(0.2, 9.0, 6, dtype=torch.float64), 1)).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda value: gaussian_information(value, noise), mean, atol=1e-6)


def test_needs_two_scenes() -> None:
    with pytest.raises(ValueError, match="mean: need at least 2"):
        gaussian_information(torch.ones(1, 4), GaussianNoise(1.0))


def test_not_finite_goes_through() -> None:
    mean = torch.ones(5, 4, dtype=torch.float64)
    mean[2, 1] = math.nan
    assert gaussian_information(mean, GaussianNoise(1.0)).isnan()


class WithoutVariance(NoiseModel):
    """A model of the user's own that lacks half of what the closed form takes."""

    def sample(self, mean: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        return mean

    def log_prob(self, measured: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        return -((measured - mean) ** 2)

    def entropy(self, mean: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(mean)

    def expected(self, mean: torch.Tensor) -> torch.Tensor:
        return mean


def test_noise_without_moments_is_named() -> None:
    with pytest.raises(TypeError, match=r"variance\(mean\).*WithoutVariance"):
        gaussian_information(torch.ones(5, 4), WithoutVariance())


def test_a_scene_that_never_changes_leaves_only_the_shape_of_the_counts() -> None:
    """Counts of one mean y: a Gaussian of variance y + 1/12, as counts + Uniform(0, 1) have, less their entropy."""
    y = 2.5
    k = torch.arange(80, dtype=torch.float64)
    log_p = k * math.log(y) - y - torch.lgamma(k + 1)
    entropy = -float((torch.exp(log_p) * log_p).sum())
    truth = 6 * (0.5 * math.log(2 * math.pi * math.e * (y + 1 / 12)) - entropy)
    mean = torch.full((30, 6), y, dtype=torch.float64)
    assert gaussian_information(mean, PoissonNoise()).item() == pytest.approx(truth, abs=1e-6)
