"""log_prob_pairs of every noise model against the broadcast sum of its log_prob."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bitlens.noise import GaussianNoise, NoiseModel, PoissonGaussianNoise, PoissonNoise
from bitlens.noise._abilities import HasPairs
from bitlens.noise._pairs import log_prob_pairs


def offset_map() -> Tensor:
    return torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)


MODELS: dict[str, NoiseModel] = {
    "gaussian": GaussianNoise(1.7),
    "gaussian map": GaussianNoise(offset_map()),
    "poisson": PoissonNoise(),
    "poisson_gaussian": PoissonGaussianNoise(gain=1.6, offset=12.0, read_std=2.4),
    "poisson_gaussian map": PoissonGaussianNoise(gain=2.0, offset=offset_map(), read_std=0.3 * offset_map()),
    "digitised": PoissonGaussianNoise(gain=1.6, offset=12.0, read_std=2.4, adc_bits=7, full_well_electrons=50.0),
}


def images(noise: NoiseModel, n: int = 31, m: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    mean = 5 + 40 * torch.rand(m, 1, 3, 2, generator=generator, dtype=torch.float64)
    return noise.sample(mean[:n], generator=generator), mean


def broadcast_sum(noise: NoiseModel, measured: Tensor, mean: Tensor) -> Tensor:
    return noise.log_prob(measured[:, None], mean[None]).flatten(2).sum(2)


@pytest.mark.parametrize("name", MODELS)
def test_all_pairs_are_the_broadcast_sum_with_every_constant(name: str) -> None:
    noise = MODELS[name]
    assert isinstance(noise, HasPairs)
    measured, mean = images(noise)
    truth = broadcast_sum(noise, measured, mean)
    torch.testing.assert_close(noise.log_prob_pairs(measured, mean), truth, rtol=1e-11, atol=1e-10)
    numpy_arrays = noise.log_prob_pairs(measured.numpy(), mean.numpy())
    torch.testing.assert_close(numpy_arrays, truth, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_the_broadcast_sum(name: str) -> None:
    noise = MODELS[name]
    measured, mean = images(noise)
    weight = torch.randn(31, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    leaves = [mean.requires_grad_()] if noise.discrete else [measured.requires_grad_(), mean.requires_grad_()]
    ours = torch.autograd.grad((weight * log_prob_pairs(noise, measured, mean)).sum(), leaves)
    truth = torch.autograd.grad((weight * broadcast_sum(noise, measured, mean)).sum(), leaves)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_gradient_in_a_parameter_of_the_sensor() -> None:
    std = torch.nn.Parameter(torch.tensor(1.3, dtype=torch.float64))
    read_std = torch.nn.Parameter(torch.tensor(1.3, dtype=torch.float64))
    for noise, parameter in ((GaussianNoise(std), std), (PoissonGaussianNoise(2.0, 1.0, read_std=read_std), read_std)):
        measured, mean = images(PoissonGaussianNoise(2.0, 1.0, read_std=1.3))
        ours = torch.autograd.grad(noise.log_prob_pairs(measured, mean)[:5].sum(), parameter)
        truth = torch.autograd.grad(broadcast_sum(noise, measured, mean)[:5].sum(), parameter)
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["gaussian", "poisson", "poisson_gaussian"])
def test_single_precision_is_right_on_1024_pixels_with_a_large_common_offset(name: str) -> None:
    """Scenes that carry about 3 nats on top of a bright background; the plain bilinear form is wrong by far more."""
    generator = torch.Generator().manual_seed(4)
    noise: NoiseModel = {
        "gaussian": GaussianNoise(1.0),
        "poisson": PoissonNoise(),
        "poisson_gaussian": PoissonGaussianNoise(read_std=2.0),
    }[name]
    background = 2000.0 if name == "gaussian" else 300.0
    noise_std = 1.0 if name == "gaussian" else math.sqrt(background)
    # 1024 pixels of signal-to-noise ratio 0.08: 1024 / 2 log(1 + 0.08^2) = 3.3 nats.
    mean = (background + 0.08 * noise_std * torch.randn(64, 32, 32, generator=generator)).float()
    measured = noise.sample(mean, generator=generator).float()
    truth = broadcast_sum(noise, measured.double(), mean.double())
    error = (noise.log_prob_pairs(measured, mean).double() - truth).abs().max()
    assert float(error) <= 1e-3
    if name == "poisson_gaussian":
        return
    z, y = measured.flatten(1), mean.flatten(1)
    if name == "gaussian":
        plain = z @ y.T - 0.5 * (z**2).sum(1)[:, None] - 0.5 * (y**2).sum(1) - 512 * math.log(2 * math.pi)
    else:
        plain = z @ torch.log(y).T - y.sum(1) - torch.lgamma(z + 1).sum(1)[:, None]
    assert float((plain.double() - truth).abs().max()) > 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_poisson_mean_of_zero_allows_no_count(dtype: torch.dtype) -> None:
    noise = PoissonNoise()
    mean = torch.tensor([[0.0, 3.0], [2.0, 0.0], [0.0, 0.0], [1.0, 1.0]], dtype=dtype)
    measured = torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 0.0], [4.0, 1.0]], dtype=dtype)
    truth = broadcast_sum(noise, measured, mean)
    assert int(torch.isinf(truth).sum()) == 7
    torch.testing.assert_close(noise.log_prob_pairs(measured, mean), truth)
    dark = torch.zeros(4, 2, dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(noise.log_prob_pairs(torch.zeros(3, 2, dtype=dtype), dark).sum(), dark)
    torch.testing.assert_close(gradient, torch.full_like(dark, -3.0))


def test_the_surrogate_is_that_of_the_score_features() -> None:
    noise = PoissonGaussianNoise(gain=1.6, offset=12.0, read_std=2.4)
    measured, mean = images(noise)
    variance = noise.variance(mean[None])
    residual = measured[:, None] - noise.expected(mean[None])
    truth = -0.5 * (residual**2 / variance + torch.log(2 * math.pi * variance)).flatten(2).sum(2)
    torch.testing.assert_close(noise.log_prob_pairs(measured, mean, approximate=True), truth, rtol=1e-10, atol=1e-9)


class LaplaceNoise(NoiseModel):
    """A model of the user's own, with the three methods and nothing else."""

    def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        raise NotImplementedError

    def log_prob(self, measured: Tensor, mean: Tensor) -> Tensor:
        return -(measured - mean).abs() - math.log(2.0)

    def entropy(self, mean: Tensor) -> Tensor:
        raise NotImplementedError


def test_a_model_of_the_users_own_is_evaluated_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, mean = images(MODELS["gaussian"])
    noise = LaplaceNoise()
    monkeypatch.setattr("bitlens.noise._pairs._CHUNK_EVALUATIONS", 7 * mean.numel())
    torch.testing.assert_close(log_prob_pairs(noise, measured, mean), broadcast_sum(noise, measured, mean))
    assert log_prob_pairs(noise, measured[:, 0, 0, 0], mean[:, 0, 0, 0]).shape == (31, 40)


@pytest.mark.parametrize("name", MODELS)
def test_no_rows_or_no_columns(name: str) -> None:
    measured, mean = images(MODELS[name])
    assert MODELS[name].log_prob_pairs(measured[:0], mean).shape == (0, 40)
    assert MODELS[name].log_prob_pairs(measured, mean[:0]).shape == (31, 0)


@pytest.mark.parametrize("name", MODELS)
def test_images_of_two_shapes_are_refused(name: str) -> None:
    measured, mean = images(MODELS[name])
    with pytest.raises(ValueError, match=r"mean.*need.*got"):
        MODELS[name].log_prob_pairs(measured[:, :, :1], mean)
    with pytest.raises(ValueError, match=r"measured"):
        MODELS[name].log_prob_pairs(measured[0, 0, 0, 0], mean)
