"""What a design climbs: every objective finds an optimum that is known, and "auto" says why it chose."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bitlens.densities import GaussianDensity
from bitlens.design import (
    Batch,
    CriticObjective,
    DensityObjective,
    DesignResult,
    GaussianObjective,
    KnownChannelObjective,
    Objective,
    Simplex,
    optimize_design,
)
from bitlens.design.objectives import choose_objective
from bitlens.noise import GaussianNoise, NoiseModel, PoissonGaussianNoise, PoissonNoise
from bitlens.noise._surrogate import differentiable_sample

# Two Gaussian channels share one budget: variances 4 and 1, noise 1. By water-filling, shares a with a_1 + a_2 = 2 are
# level - 1/4 and level - 1, level = 13/8: 1.375 and 0.625.
VARIANCES = torch.tensor([4.0, 1.0], dtype=torch.float64)
BEST = torch.tensor([1.375, 0.625], dtype=torch.float64)


class Shares(nn.Module):
    """mean = sqrt(share) scene."""

    def __init__(self, share: Tensor) -> None:
        super().__init__()
        self.share = nn.Parameter(share.clone())

    def forward(self, scene: Tensor) -> Tensor:
        return self.share.clamp_min(1e-12).sqrt() * scene


def scenes(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=generator, dtype=torch.float64) * VARIANCES.sqrt()


def designed(objective: Objective | str, n_steps: int, rate: float = 0.1) -> DesignResult:
    return optimize_design(
        Shares(torch.tensor([0.4, 1.6], dtype=torch.float64)),
        GaussianNoise(1.0),
        scenes(4000),
        objective=objective,  # type: ignore[arg-type]
        constraints={"share": Simplex(2.0)},
        n_steps=n_steps,
        learning_rate=rate,
        generator=torch.Generator().manual_seed(5),
        judge_scenes=scenes(1000, 1),
    )


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("objective", "n_steps", "tolerance"),
    [
        (GaussianObjective(), 150, 0.06),
        (KnownChannelObjective(), 200, 0.1),
        (DensityObjective(GaussianDensity(), refit_every=5), 300, 0.1),
        (CriticObjective(hidden=32, n_features=8), 300, 0.25),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_every_objective_finds_the_water_level(objective: Objective, n_steps: int, tolerance: float) -> None:
    result = designed(objective, n_steps)
    found = result.parameters["share"]
    assert result.objective == objective.name
    assert result.objective_reason == "given by the caller"
    assert found.sum().item() == pytest.approx(2.0, abs=1e-9)
    # Noise drawn afresh at every step leaves the shares trembling about the optimum, which is flat.
    torch.testing.assert_close(found, BEST, rtol=0, atol=tolerance)
    truth = 0.5 * torch.log2(1 + BEST * VARIANCES).sum().item()
    assert result.history[-1].objective_bits == pytest.approx(truth, abs=0.25)
    assert result.gain_bits_per_pixel > 5 * (result.gain_stderr_bits_per_pixel or math.inf)


def test_objectives_are_values_of_the_information_they_name() -> None:
    x = scenes(2000)
    noise = GaussianNoise(1.0)
    truth = 0.5 * torch.log(1 + VARIANCES).sum().item()

    def batch() -> Batch:
        draws = torch.Generator().manual_seed(3)
        return Batch(x, x, noise, draws, lambda n: (scenes(n, 7), noise.sample(scenes(n, 7), draws)))

    assert GaussianObjective().nats(batch()).item() == pytest.approx(truth, abs=0.05)
    assert KnownChannelObjective().nats(batch()).item() == pytest.approx(truth, abs=0.1)
    upper = DensityObjective(GaussianDensity(), n_fit=4000).nats(batch()).item()
    assert upper == pytest.approx(truth, abs=0.1)


@pytest.mark.parametrize("noise", [PoissonNoise(), PoissonGaussianNoise(2.0, 100.0, read_std=3.0)])
def test_measurements_follow_their_means(noise: NoiseModel) -> None:
    mean = torch.full((4000, 1), 30.0, dtype=torch.float64, requires_grad=True)
    measured = differentiable_sample(noise, mean, torch.Generator().manual_seed(0))
    # The very samples of the noise ...
    torch.testing.assert_close(
        measured.detach(), noise.sample(mean.detach(), torch.Generator().manual_seed(0)), rtol=1e-12, atol=1e-9
    )
    # ... and the gradient of E z^2 = Var z + (E z)^2 for z = g N + o: g^2 (2 y + 1) + 2 g o.
    (slope,) = torch.autograd.grad(measured.square().mean(), mean)
    gain, offset = (2.0, 100.0) if isinstance(noise, PoissonGaussianNoise) else (1.0, 0.0)
    expected = gain**2 * (2 * 30.0 + 1) + 2 * gain * offset
    assert slope.sum().item() == pytest.approx(expected, rel=0.02)


class _OwnNoise(NoiseModel):
    """Laplace noise without moments, whose samples have no graph."""

    def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:  # type: ignore[override]
        uniform = torch.rand(mean.shape, generator=generator, dtype=mean.dtype) - 0.5
        return (mean - uniform.sign() * torch.log1p(-2 * uniform.abs())).detach()

    def log_prob(self, measured: Tensor, mean: Tensor) -> Tensor:  # type: ignore[override]
        return -(measured - mean).abs() - math.log(2)

    def entropy(self, mean: Tensor) -> Tensor:  # type: ignore[override]
        return torch.full_like(mean, 1 + math.log(2))


def test_measurements_that_cannot_follow_are_refused() -> None:
    mean = torch.ones(3, 1, dtype=torch.float64, requires_grad=True)
    with pytest.raises(TypeError, match="noise: need differentiable samples, or methods expected"):
        differentiable_sample(_OwnNoise(), mean, torch.Generator())


def test_auto_says_why() -> None:
    gaussian = scenes(800)
    two_levels = 6.0 * torch.randint(2, (800, 2), generator=torch.Generator().manual_seed(0)).to(torch.float64)
    noise = GaussianNoise(1.0)
    truth = 0.5 * torch.log2(1 + VARIANCES).sum().item()
    close = choose_objective("auto", noise, gaussian, truth, 0.02, 512)
    assert isinstance(close.objective, GaussianObjective)
    assert "close enough" in close.reason
    # Two pixels of two levels carry 2 bits; a Gaussian of their covariance log2(1 + 9) = 3.3.
    low = choose_objective("auto", noise, two_levels, 2.0, 0.02, 512)
    assert isinstance(low.objective, KnownChannelObjective)
    assert "closed form is 3.3" in low.reason
    nothing = choose_objective("auto", noise, two_levels, 0.1, 0.02, 512)
    assert isinstance(nothing.objective, GaussianObjective)
    assert "no slope" in nothing.reason
    high = choose_objective("auto", noise, two_levels, 2.0, 0.02, 4)
    assert isinstance(high.objective, DensityObjective)
    own = choose_objective("auto", _OwnNoise(), gaussian, truth, 0.02, 512)
    assert isinstance(own.objective, KnownChannelObjective)
    assert "_OwnNoise" in own.reason
    assert choose_objective("density", noise, gaussian, truth, 0.02, 512).reason == "named by the caller"


@pytest.mark.usefixtures("one_thread")
def test_a_noise_model_without_moments_is_climbed_by_the_lower_bound() -> None:
    result = optimize_design(
        Shares(torch.tensor([0.4, 1.6], dtype=torch.float64)),
        _OwnNoise(),
        scenes(600),
        constraints={"share": Simplex(2.0)},
        n_steps=80,
        batch_size=200,
        learning_rate=0.2,
        generator=torch.Generator().manual_seed(0),
    )
    assert result.objective == "known_channel"
    assert result.parameters["share"][0].item() > 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DensityObjective(refit_every=0), "refit_every: need a whole number of at least 1, got 0"),
        (lambda: DensityObjective(n_fit=3), "n_fit: need a whole number of at least 10, got 3"),
        (lambda: CriticObjective(hidden=0), "hidden: need a whole number of at least 1, got 0"),
        (lambda: CriticObjective(learning_rate=math.nan), "learning_rate: need a number above 0, got nan"),
    ],
)
def test_bad_settings(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"density: need a density of bitlens\.densities or None, got str"):
        DensityObjective("gaussian")  # type: ignore[arg-type]


@pytest.mark.usefixtures("one_thread")
def test_what_lags_behind_takes_smaller_steps_unless_told() -> None:
    def first_rate(objective: Objective | str, rate: float | None) -> float:
        result = optimize_design(
            Shares(torch.tensor([0.4, 1.6], dtype=torch.float64)),
            GaussianNoise(1.0),
            scenes(200),
            objective=objective,  # type: ignore[arg-type]
            n_steps=1,
            learning_rate=rate,
            generator=torch.Generator().manual_seed(0),
        )
        return result.history[0].learning_rate

    assert first_rate("gaussian", None) == pytest.approx(0.05)
    assert first_rate(DensityObjective(GaussianDensity()), None) == pytest.approx(0.01)
    assert first_rate(DensityObjective(GaussianDensity()), 0.05) == pytest.approx(0.05)
