"""The loss against closed forms, exact sums and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitlens import GaussianNoise, PoissonGaussianNoise, PoissonNoise
from bitlens.design import gaussian_information
from bitlens.estimators.loss import InformationLoss
from bitlens.noise import NoiseModel

pytestmark = pytest.mark.usefixtures("one_thread")

LN2 = math.log(2.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scenes(n: int, *shape: int, seed: int = 0) -> Tensor:
    return 20.0 + 3.0 * torch.randn(n, *shape, generator=generator(seed), dtype=torch.float64)


class CountsWithoutGradient(NoiseModel):
    """Photon counts as a model of the user's own, of which the loss knows the three methods only."""

    discrete = True

    def sample(self, mean: Tensor | np.ndarray, generator: torch.Generator | None = None) -> Tensor:
        return torch.poisson(torch.as_tensor(mean).detach(), generator=generator)

    def log_prob(self, measured: Tensor | np.ndarray, mean: Tensor | np.ndarray) -> Tensor:
        return PoissonNoise().log_prob(measured, mean)

    def entropy(self, mean: Tensor | np.ndarray) -> Tensor:
        return PoissonNoise().entropy(mean)


class LaplaceNoise(NoiseModel):
    """Additive noise of the user's own, whose samples follow the mean."""

    def sample(self, mean: Tensor | np.ndarray, generator: torch.Generator | None = None) -> Tensor:
        y = torch.as_tensor(mean)
        uniform = torch.rand(y.shape, generator=generator, dtype=y.dtype) - 0.5
        return y - uniform.sign() * torch.log1p(-2 * uniform.abs())

    def log_prob(self, measured: Tensor | np.ndarray, mean: Tensor | np.ndarray) -> Tensor:
        return -(torch.as_tensor(measured) - torch.as_tensor(mean)).abs() - LN2

    def entropy(self, mean: Tensor | np.ndarray) -> Tensor:
        return torch.full_like(torch.as_tensor(mean), 1 + LN2)


# ---- Closed form ----


@pytest.mark.parametrize("noise", [GaussianNoise(1.3), PoissonNoise(), PoissonGaussianNoise(gain=2.0, read_std=1.0)])
def test_gaussian_objective_is_that_of_the_design(noise: NoiseModel) -> None:
    mean = scenes(12, 2, 3)
    loss = InformationLoss(noise)(mean)
    assert loss.item() == pytest.approx(-gaussian_information(mean, noise).item() / LN2, rel=1e-12)
    assert torch.autograd.gradcheck(InformationLoss(noise), mean.clone().requires_grad_(True), atol=1e-6)


def linear_truth(matrix: Tensor, std: float) -> Tensor:
    size = matrix.shape[0]
    return -0.5 * torch.logdet(torch.eye(size, dtype=matrix.dtype) + matrix @ matrix.mT / std**2) / LN2


def test_gaussian_objective_of_a_linear_channel() -> None:
    matrix = torch.tensor([[1.0, 0.4, 0.0], [0.2, 2.0, -0.5], [0.0, 0.3, 0.7]], dtype=torch.float64)
    truth_matrix = matrix.clone().requires_grad_(True)
    truth = linear_truth(truth_matrix, 0.8)
    truth.backward()  # type: ignore[no-untyped-call]
    matrix.requires_grad_(True)
    white = torch.randn(20_000, 3, generator=generator(), dtype=torch.float64)
    white = white - white.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(white.mT)), white.mT, upper=False).mT
    loss = InformationLoss(GaussianNoise(0.8))(white @ matrix.mT)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(truth.item(), rel=1e-3)
    assert truth_matrix.grad is not None
    torch.testing.assert_close(matrix.grad, truth_matrix.grad, rtol=2e-3, atol=1e-3)


def test_known_channel_of_a_linear_channel() -> None:
    base = torch.tensor([[1.0, 0.3], [-0.2, 0.6]], dtype=torch.float64)
    truth_matrix = base.clone().requires_grad_(True)
    truth = linear_truth(truth_matrix, 1.0)
    truth.backward()  # type: ignore[no-untyped-call]
    loss = InformationLoss(GaussianNoise(1.0), objective="known_channel", generator=generator(1))
    values, gradients = [], []
    for seed in range(40):
        matrix = base.clone().requires_grad_(True)
        white = torch.randn(1500, 2, generator=generator(seed), dtype=torch.float64)
        value = loss(white @ matrix.mT)
        (gradient,) = torch.autograd.grad(value, matrix)
        values.append(value.detach())
        gradients.append(gradient)
    for found, expected in ((torch.stack(values), truth.detach()), (torch.stack(gradients), truth_matrix.grad)):
        assert expected is not None
        stderr = found.std(0) / math.sqrt(40)
        # 1500 scenes leave the bound 0.002 bits short.
        assert bool(((found.mean(0) - expected).abs() < 4 * stderr + 0.003).all())
        assert bool((stderr < 0.02).all())


def test_training_finds_the_water_filling() -> None:
    # Exposure shared between two pixels whose scenes vary by 1 and 4: 0.5 sum log(1 + a_i s_i) at sum a_i = 3.
    variance = torch.tensor([1.0, 4.0], dtype=torch.float64)
    truth = torch.tensor([3 + 1 / 4 - 1.0, 3 + 1.0 - 1 / 4], dtype=torch.float64) / 2
    logit = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logit], lr=0.05)
    loss = InformationLoss(GaussianNoise(1.0))
    white = torch.randn(4_000, 2, generator=generator(3), dtype=torch.float64)
    for _ in range(150):
        optimizer.zero_grad()
        exposure = 3 * torch.softmax(logit, 0)
        loss(white * (exposure * variance).sqrt()).backward()
        optimizer.step()
    torch.testing.assert_close(3 * torch.softmax(logit, 0).detach(), truth, rtol=0.02, atol=0)


# ---- Gradients of the known channel ----


@pytest.mark.parametrize("noise", [GaussianNoise(4.0), LaplaceNoise()])
def test_gradient_is_that_of_finite_differences_with_common_random_numbers(noise: NoiseModel) -> None:
    def value(mean: Tensor) -> Tensor:
        result: Tensor = InformationLoss(noise, objective="known_channel", generator=generator(5))(mean)
        return result

    assert torch.autograd.gradcheck(value, scenes(6, 2, 2).requires_grad_(True), atol=1e-7)


def test_noise_parameter_has_the_gradient_of_finite_differences() -> None:
    std = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    loss = InformationLoss(GaussianNoise(std), objective="known_channel")
    assert list(loss.parameters()) == [std]
    for objective in ("known_channel", "gaussian"):

        def value(std: Tensor, objective: str = objective) -> Tensor:
            noise = GaussianNoise(1.0)
            noise.std = std
            result: Tensor = InformationLoss(noise, objective=objective, generator=generator(5))(scenes(6, 2))
            return result

        assert torch.autograd.gradcheck(value, std.detach().clone().requires_grad_(True), atol=1e-7)


# Levels of light, equally likely, for one pixel: the bound of many copies of them is their exact information.
LEVELS = torch.tensor([0.3, 0.8, 2.0, 4.0], dtype=torch.float64)
CAMERA = PoissonGaussianNoise(gain=1.5, offset=3.0, read_std=0.9)
DIGITAL = PoissonGaussianNoise(gain=1.0, offset=1.5, read_std=0.7, adc_bits=3)
FULL_WELL = PoissonGaussianNoise(gain=1.0, offset=0.0, read_std=0.8, full_well_electrons=4)


def exact_bits(noise: NoiseModel, levels: Tensor) -> float:
    """sum_z p(z|y) log2 p(z|y) / p(z), over counts or codes, or by quadrature."""
    step = 1.0 if noise.discrete else 0.02
    first = 0.0 if noise.discrete else -8.0
    last = 7.0 if noise is DIGITAL else 60.0
    grid = torch.arange(first, last + 0.5 * step, step, dtype=torch.float64)
    log_prob = noise.log_prob(grid[:, None], levels[None]).detach()
    log_marginal = torch.logsumexp(log_prob, 1, keepdim=True) - math.log(len(levels))
    terms = torch.where(log_prob > -700, log_prob.exp() * (log_prob - log_marginal), 0.0)
    return float(terms.sum() * step / len(levels) / LN2)


def exact_gradient(noise: NoiseModel, step: float = 1e-4) -> Tensor:
    shifts = step * torch.eye(4, dtype=torch.float64)
    return torch.tensor(
        [(exact_bits(noise, LEVELS + d) - exact_bits(noise, LEVELS - d)) / (2 * step) for d in shifts],
        dtype=torch.float64,
    )


@pytest.mark.parametrize(
    ("noise", "copies", "resolution"),
    [
        (PoissonNoise(), 700, 0.05),
        (CAMERA, 400, 0.06),
        (DIGITAL, 250, 0.10),
        (FULL_WELL, 250, 0.10),
        (CountsWithoutGradient(), 700, 0.25),
    ],
    ids=["poisson", "camera", "digital", "full_well", "score_function"],
)
def test_photon_noise_has_the_exact_gradient_on_average(noise: NoiseModel, copies: int, resolution: float) -> None:
    # The derivative of y + sqrt(y) e would be 33 % off at half a photon.
    mean = LEVELS.repeat(copies)[:, None].requires_grad_(True)
    loss = InformationLoss(noise, objective="known_channel", generator=generator(2))
    values, gradients = [], []
    for _ in range(4):
        value = loss(mean)
        (gradient,) = torch.autograd.grad(value, mean)
        values.append(-value.item())
        gradients.append(-gradient.reshape(copies, 4) * copies)
    sample = torch.cat(gradients)
    truth, stderr = exact_gradient(noise), sample.std(0) / math.sqrt(len(sample))
    assert bool(((sample.mean(0) - truth).abs() < 4 * stderr + 1e-4).all()), (sample.mean(0), truth, stderr)
    # Of the largest of the four.
    assert float(stderr.max()) < resolution * float(truth.abs().max())
    assert np.mean(values) == pytest.approx(exact_bits(noise, LEVELS), abs=0.03)


def test_read_noise_has_the_exact_gradient_on_average() -> None:
    read_std = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))
    noise = PoissonGaussianNoise(gain=1.5, offset=3.0, read_std=read_std)
    loss = InformationLoss(noise, objective="known_channel", generator=generator(2))
    mean = LEVELS.repeat(150)[:, None]
    found = torch.stack([torch.autograd.grad(-loss(mean), read_std)[0] for _ in range(30)])
    ends = [exact_bits(PoissonGaussianNoise(gain=1.5, offset=3.0, read_std=0.9 + d), LEVELS) for d in (-1e-3, 1e-3)]
    truth = (ends[1] - ends[0]) / 2e-3
    stderr = float(found.std()) / math.sqrt(30)
    assert abs(float(found.mean()) - truth) < 4 * stderr + 1e-4
    assert stderr < 0.1 * abs(truth)


def test_dark_pixels_have_finite_gradients() -> None:
    mean = torch.tensor([[0.0, 3.0], [2.0, 0.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    for noise in (PoissonNoise(), CAMERA):
        value = InformationLoss(noise, objective="known_channel", generator=generator())(mean)
        (gradient,) = torch.autograd.grad(value, mean)
        assert bool(torch.isfinite(gradient).all())


# ---- Noise, types, ceiling ----


@pytest.mark.parametrize("noise", [GaussianNoise(3.0), PoissonNoise(), CAMERA])
def test_noise_is_fresh_in_every_step_and_repeats_with_its_seed(noise: NoiseModel) -> None:
    mean = scenes(20, 3)
    loss = InformationLoss(noise, objective="known_channel", generator=generator(7))
    first, second = loss(mean).item(), loss(mean).item()
    assert first != second
    again = InformationLoss(noise, objective="known_channel", generator=generator(7))
    assert [again(mean).item(), again(mean).item()] == [first, second]
    closed = InformationLoss(noise, generator=generator(7))
    assert closed(mean).item() == closed(mean).item()


def test_bound_stays_below_its_ceiling_and_the_closed_form() -> None:
    mean = scenes(32, 4, 4)
    bound = InformationLoss(GaussianNoise(0.01), objective="known_channel", generator=generator())(mean)
    assert -bound.item() == pytest.approx(5.0, abs=1e-6)
    mean = scenes(2_000, 2)
    noise = PoissonGaussianNoise(read_std=8.0)
    bound = InformationLoss(noise, objective="known_channel", generator=generator())(mean)
    assert 0.0 < -bound.item() < -InformationLoss(noise)(mean).item() + 0.02


@pytest.mark.parametrize("objective", ["gaussian", "known_channel"])
@pytest.mark.parametrize("noise", [GaussianNoise(3.0), PoissonNoise(), CAMERA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_is_kept_and_nothing_is_lost_inside(noise: NoiseModel, objective: str, dtype: torch.dtype) -> None:
    mean = scenes(30, 2, 2).to(dtype).requires_grad_(True)
    loss = InformationLoss(noise, objective=objective, generator=generator(1))(mean)
    assert loss.dtype == dtype
    assert loss.ndim == 0
    (gradient,) = torch.autograd.grad(loss, mean)
    assert gradient.dtype == dtype
    wide = mean.detach().double().requires_grad_(True)
    truth = InformationLoss(noise, objective=objective, generator=generator(1))(wide)
    (wide_gradient,) = torch.autograd.grad(truth, wide)
    eps = torch.finfo(dtype).eps
    assert loss.item() == pytest.approx(truth.item(), rel=eps)
    torch.testing.assert_close(
        gradient.double(), wide_gradient, rtol=4 * eps, atol=4 * eps * float(gradient.abs().max())
    )


def test_autocast_changes_nothing() -> None:
    mean = scenes(30, 2, 2).float()
    loss = InformationLoss(GaussianNoise(3.0), objective="known_channel", generator=generator(1))
    plain = loss(mean)
    loss.generator = generator(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(mean), plain)


def test_not_finite_goes_through() -> None:
    mean = scenes(5, 2)
    mean[2, 1] = math.nan
    for objective in ("gaussian", "known_channel"):
        assert InformationLoss(PoissonNoise(), objective=objective)(mean).isnan()


def test_arguments_are_named() -> None:
    noise = GaussianNoise(1.0)
    with pytest.raises(TypeError, match="noise: need a noise model"):
        InformationLoss(1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="objective: need one of 'gaussian', 'known_channel', got 'bits'"):
        InformationLoss(noise, objective="bits")
    with pytest.raises(TypeError, match=r"generator: need a torch.Generator or None, got int"):
        InformationLoss(noise, generator=0)  # type: ignore[arg-type]
    loss = InformationLoss(noise)
    with pytest.raises(ValueError, match=r"mean: need at least 2 images \(n, ...\), got shape \(1, 4\)"):
        loss(torch.ones(1, 4))
    with pytest.raises(TypeError, match=r"mean: need a tensor of floats, got torch.int64"):
        loss(torch.ones(3, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="mean: need a tensor of floats, got list"):
        loss([[1.0], [2.0]])
    with pytest.raises(ValueError, match="mean: need values of at least 0"):
        InformationLoss(PoissonNoise())(-torch.ones(3, 4))
    with pytest.raises(TypeError, match=r"variance\(mean\).*LaplaceNoise"):
        InformationLoss(LaplaceNoise())(torch.ones(3, 4))
