"""Entropy of every noise model and its derivative in the mean, from no light to a million photo-electrons."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import gammaln

from bitlens import InformationLoss, optimize_design
from bitlens.noise import GaussianNoise, NoiseModel, PoissonGaussianNoise, PoissonNoise

Array = NDArray[np.float64]
MEANS = np.array(
    [0, 1e-5, 1e-3, 0.02, 0.1, 0.4, 1, 2.3, 5, 11, 28, 60, 95, 99.9, 100.1, 107, 140, 400, 2e3, 1.5e4, 1.2e5, 1e6]
)
# Read noise in electrons: between and beyond the tables.
SIGMAS = (0.05, 0.069, 0.071, 0.15, 0.33, 0.5, 1.0, 1.7, 4.0, 9.9, 10.1, 40.0)


def exact(mean: float, sigma: float) -> tuple[float, float]:
    """h and dh/dy by the sum or the trapezoidal rule, the density from its definition.

    dp(z|y)/dy = p(z - 1|y) - p(z|y), and probabilities keep summing to one, so dh/dy = -sum dp/dy log p.
    """
    low = max(0, math.floor(mean - 11 * math.sqrt(mean) - 5))
    k = np.arange(low, math.ceil(mean + 11 * math.sqrt(mean) + 25) + 1.0)
    pmf = np.exp((k * math.log(mean) if mean > 0 else np.where(k == 0, 0.0, -np.inf)) - mean - gammaln(k + 1))
    pmf /= pmf.sum()  # lgamma has 9 digits of a probability at 1e6
    per_electron = 1 if sigma == 0 else max(1, math.ceil(6 / sigma))
    comb = np.zeros((k.size + 1) * per_electron)
    comb[: k.size * per_electron : per_electron] = pmf
    density = comb
    if sigma > 0:
        reach = math.ceil(9 * sigma * per_electron)
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (per_electron * sigma)) ** 2)
        density = np.convolve(comb, kernel) / (sigma * math.sqrt(2 * math.pi))
    # One photon more for certain: everything one electron up.
    shifted = np.concatenate([np.zeros(per_electron), density[:-per_electron]])
    log_p = np.log(np.maximum(density, 1e-300))
    return -float((density * log_p).sum()) / per_electron, -float(((shifted - density) * log_p).sum()) / per_electron


def dark_sensors() -> list[NoiseModel]:
    """Every kind of noise and every way its entropy is computed, for images of (2, 3) pixels."""
    sensors: list[NoiseModel] = [GaussianNoise(1.0), PoissonNoise()]
    sensors += [PoissonGaussianNoise(read_std=sigma) for sigma in (0.05, 1.0, 20.0)]
    sensors += [PoissonGaussianNoise(read_std=torch.full((2, 3), sigma)) for sigma in (0.05, 1.0, 20.0)]
    sensors += [PoissonGaussianNoise(read_std=1.0, adc_bits=8), PoissonGaussianNoise(read_std=0.05, adc_bits=8)]
    return [*sensors, PoissonGaussianNoise(read_std=1.0, full_well_electrons=50.0)]


def check(noise: NoiseModel, sigma: float, means: Array) -> None:
    y = torch.from_numpy(means).requires_grad_()
    value = noise.entropy(y)
    (slope,) = torch.autograd.grad(value.sum(), y)
    truth = np.array([exact(float(mean), sigma) for mean in means])
    lit = means > 0  # in the dark the slope of counts is infinite
    error = np.abs(slope.numpy() - truth[:, 1])[lit]
    assert np.abs(value.detach().numpy() - truth[:, 0]).max() <= 1e-4
    # The slope goes from -log y without read noise to 1 / (2 y) in bright light.
    assert (error * np.maximum(means[lit], 1))[means[lit] >= 1e-3].max() <= 1e-3
    assert (error / np.maximum(np.abs(truth[lit, 1]), 1)).max() <= 2e-3


@pytest.mark.parametrize("sigma", SIGMAS)
def test_real_sensor(sigma: float) -> None:
    """Its read noise one number, and a map."""
    means = MEANS if sigma >= 0.3 else MEANS[MEANS < 1e5]
    check(PoissonGaussianNoise(read_std=sigma), sigma, means)
    check(PoissonGaussianNoise(read_std=torch.full((means.size,), sigma, dtype=torch.float64)), sigma, means)


def test_poisson() -> None:
    check(PoissonNoise(), 0.0, MEANS)


@pytest.mark.parametrize(("gain", "offset"), [(0.25, 100.0), (7.5, -3.0)])
def test_in_adu_the_entropy_is_that_in_electrons_and_log_gain(gain: float, offset: float) -> None:
    truth = np.array([exact(float(mean), 1.3)[0] for mean in MEANS]) + math.log(gain)
    noise = PoissonGaussianNoise(gain, offset, read_std=1.3 * gain)
    assert np.abs(noise.entropy(torch.from_numpy(MEANS)).numpy() - truth).max() <= 1e-4


def test_gaussian_noise_has_one_entropy() -> None:
    y = torch.from_numpy(MEANS).requires_grad_()
    value = GaussianNoise(1.7).entropy(y)
    truth = torch.full_like(value, 0.5 * math.log(2 * math.pi * math.e * 1.7**2))
    torch.testing.assert_close(value.detach(), truth.detach(), rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad((value + 0 * y).sum(), y)
    assert bool((slope == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("place", range(len(dark_sensors())))
def test_slope_is_finite_in_the_dark(place: int, dtype: torch.dtype) -> None:
    noise = dark_sensors()[place]
    for dark in (0.0, 1e-40, 1e-20):
        y = torch.tensor([[0.0, dark, 1e-3], [0.5, 7.0, 300.0]], dtype=dtype, requires_grad=True)
        value = noise.entropy(y)
        (slope,) = torch.autograd.grad((value + 0 * y).sum(), y)
        assert bool(torch.isfinite(slope).all()), slope
        # The true slope is that of -y log y, and infinite: what stands for it is steeper than where there is light.
        if isinstance(noise, PoissonNoise):
            assert float(slope[0, 0]) > -math.log(1e-3) + 10


def test_no_value_moves_by_what_keeps_the_slope_finite() -> None:
    y = torch.from_numpy(np.concatenate([[0.0], np.geomspace(1e-16, 1e-8, 60)]))
    value = PoissonNoise().entropy(y)
    truth = y - torch.xlogy(y, y) + 0.5 * math.log(2.0) * y**2
    assert float((value - truth).abs().max()) < 1e-12


def test_mean_that_is_clamped_to_the_dark_has_a_slope() -> None:
    scene = torch.tensor([[0.0, -2.0, 3.0], [0.0, 5.0, 1.0]], dtype=torch.float64)
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(PoissonNoise().entropy((scene * weight).clamp(min=0)).sum(), weight)
    lit = scene[scene > 0]
    step = 1e-6
    above, below = (PoissonNoise().entropy(lit * (0.7 + way * step)).sum() for way in (1, -1))
    assert float(slope) == pytest.approx(float(above - below) / (2 * step), rel=1e-6)


class Exposure(torch.nn.Module):
    """Scenes times a time that is to be found, none of it negative."""

    def __init__(self) -> None:
        super().__init__()
        self.log_time = torch.nn.Parameter(torch.tensor(0.0, dtype=torch.float64))

    def forward(self, scene: torch.Tensor) -> torch.Tensor:
        """Photo-electrons."""
        return (scene * torch.exp(self.log_time)).clamp(min=0)


def scenes_with_a_dark_row() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scenes = 20 * torch.rand(64, 1, 3, 4, generator=generator, dtype=torch.float64)
    scenes[:, :, 1] = 0.0
    return scenes


@pytest.mark.parametrize("objective", ["gaussian", "known_channel"])
@pytest.mark.parametrize("place", range(len(dark_sensors())))
def test_loss_of_scenes_with_a_dark_row_has_a_gradient(place: int, objective: str) -> None:
    noise = dark_sensors()[place]
    scenes = scenes_with_a_dark_row()[:, 0, :2, :3]
    encoder = Exposure()
    loss = InformationLoss(noise, objective=objective, generator=torch.Generator().manual_seed(0))
    loss(encoder(scenes)).backward()
    assert encoder.log_time.grad is not None
    # More light, more bits.
    assert float(encoder.log_time.grad) < 0


def test_design_of_scenes_with_a_dark_row_takes_its_steps() -> None:
    result = optimize_design(
        Exposure(),
        PoissonNoise(),
        scenes_with_a_dark_row(),
        objective="gaussian",
        n_steps=5,
        generator=torch.Generator().manual_seed(0),
    )
    assert float(result.encoder.log_time.detach()) > 0.01  # type: ignore[operator]


def test_a_dark_pixel_without_a_count_has_a_finite_slope() -> None:
    """log p(0 | y) = -y, at y = 0 too; a count there is impossible."""
    mean = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    log_prob = PoissonNoise().log_prob(torch.zeros(3), mean)
    log_prob.sum().backward()
    assert torch.equal(log_prob.detach(), torch.zeros(3, dtype=torch.float64))
    assert mean.grad is not None
    assert torch.equal(mean.grad, -torch.ones(3, dtype=torch.float64))
    assert float(PoissonNoise().log_prob(torch.ones(1), torch.zeros(1))) == -math.inf
    assert bool(PoissonNoise().log_prob(torch.tensor([1.0, 1.0]), torch.tensor([-1.0, math.nan])).isnan().all())
