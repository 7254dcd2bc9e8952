"""Joint training finds the design that is best for the task, and what a computation costs."""

from __future__ import annotations

import functools
import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitlens.design import Binary, Box, Simplex, Total
from bitlens.noise import GaussianNoise, PoissonGaussianNoise, PoissonNoise
from bitlens.validation import (
    Classification,
    ClassifierDecoder,
    LinearDecoder,
    Reconstruction,
    UNetDecoder,
    differentiable_sample,
    measure_cost,
    train_end_to_end,
)
from bitlens.validation._joint import Design, JointSchedule, train_jointly
from bitlens.validation.decoder import Rows

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Blend(nn.Module):
    """10 ((1 - share) constant + share scene): a share of 1 sees the scene best, 0 sees nothing of it."""

    parameter_domain = {"share": (0.0, 1.0)}  # noqa: RUF012

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))

    def forward(self, scene: Tensor) -> Tensor:
        return 10 * ((1 - self.share) + self.share * scene)


def fields(n: int) -> Tensor:
    white = torch.randn(n, 1, 10, 10, generator=seeded(1))
    return (1 + nn.functional.avg_pool2d(white, 3, stride=1)).clamp(min=0.05)


def test_joint_training_goes_to_the_best_design_and_respects_its_range() -> None:
    scenes = fields(400)
    start = Blend(0.3)
    result = train_end_to_end(
        *(start, GaussianNoise(1.0), scenes, Reconstruction(), UNetDecoder(channels=8)),
        n_steps=120,
        learning_rate=0.05,
        generator=seeded(),
    )
    assert start.share.item() == pytest.approx(0.3)
    assert float(result.parameters["share"]) > 0.9
    assert float(result.parameters["share"]) <= 1.0
    assert result.history[-1].validation_loss < 0.6 * result.history[0].validation_loss
    assert set(result.scores) == {"psnr", "ssim", "mse"}
    assert result.seconds > 0
    measured = GaussianNoise(1.0).sample(result.encoder(scenes[:5]).detach(), seeded())
    assert result.decoder(measured).shape == scenes[:5].shape


def test_constraints_of_the_caller_hold_and_a_seed_repeats() -> None:
    def once() -> tuple[float, dict[str, float]]:
        result = train_end_to_end(
            *(Blend(0.3), PoissonNoise(), fields(120), Reconstruction(), UNetDecoder(channels=4)),
            constraints={"share": Box(0.0, 0.5)},
            n_steps=30,
            learning_rate=0.05,
            generator=seeded(3),
        )
        return float(result.parameters["share"]), dict(result.scores)

    share, scores = once()
    assert share == pytest.approx(0.5)
    assert (share, scores) == once()


def test_joint_training_of_a_classifier() -> None:
    labels = torch.arange(300) % 2
    scenes = fields(300) + 0.5 * labels[:, None, None, None]
    result = train_end_to_end(
        *(
            Blend(0.2),
            PoissonGaussianNoise(read_std=1.0),
            scenes,
            Classification(labels),
            ClassifierDecoder(channels=8),
        ),
        n_steps=150,
        learning_rate=0.05,
        generator=seeded(),
    )
    assert float(result.parameters["share"]) > 0.5
    assert result.scores["accuracy"] > 0.85
    assert any("Gaussian surrogate" in note for note in result.warnings) == (float(10 * scenes.mean()) < 10)


def test_wrong_arguments() -> None:
    given = (Blend(0.3), GaussianNoise(1.0), fields(40), Reconstruction())
    with pytest.raises(TypeError, match="decoder: need a network"):
        train_end_to_end(*given, LinearDecoder())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_steps: need at least 1"):
        train_end_to_end(*given, n_steps=0)
    with pytest.raises(ValueError, match="learning_rate: need a number above 0 for 'share'"):
        train_end_to_end(*given, learning_rate=0.0)
    with pytest.raises(ValueError, match="constraints: 'other' is not among what may change: share"):
        train_end_to_end(*given, constraints={"other": Box(0, 1)})
    with pytest.raises(ValueError, match="parameters: 'other' is unknown"):
        train_end_to_end(*given, parameters=("other",))


@pytest.mark.parametrize(
    "noise", [PoissonNoise(), PoissonGaussianNoise(gain=2.0, offset=3.0, read_std=1.5), GaussianNoise(2.0)]
)
def test_differentiable_sample_is_a_sample_with_the_right_slopes(noise) -> None:
    """d E[z] / dy and d E[(z - E z)^2] / dy from the sample's gradient, against the moments of the noise model."""
    light = torch.tensor(50.0, dtype=torch.float64, requires_grad=True)
    mean = light.expand(400_000)
    measured = differentiable_sample(noise, mean, seeded())
    assert torch.allclose(measured.detach(), noise.sample(mean.detach(), seeded()))
    by_gain = torch.autograd.grad(measured.mean(), light, retain_graph=True)[0]
    reference = light.detach().clone().requires_grad_(True)
    slope = torch.autograd.grad(noise.expected(reference), reference)[0]
    assert float(by_gain) == pytest.approx(float(slope), rel=0.01)
    spread = (measured - noise.expected(mean)).square().mean()
    by_spread = torch.autograd.grad(spread, light)[0]
    variance = noise.variance(reference)
    truth = torch.autograd.grad(variance, reference)[0] if variance.requires_grad else torch.zeros(())
    assert float(by_spread) == pytest.approx(float(truth), rel=0.02, abs=0.02)


def use_memory(n_bytes: int, seconds: float) -> int:
    ends = time.process_time() + seconds
    kept = np.ones(n_bytes, dtype=np.uint8)
    del kept
    while time.process_time() < ends:
        pass
    return 7


def fail() -> None:
    raise KeyError("nothing there")


def make_a_function() -> object:
    return lambda: 1


def leave() -> None:
    import os

    os._exit(3)


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_cost_of_known_memory_and_time(start) -> None:
    found = measure_cost(functools.partial(use_memory, 120_000_000, 0.3), start=start)
    assert found.value == 7
    assert found.peak_memory_bytes == pytest.approx(120e6, rel=0.05)
    assert 0.3 <= found.cpu_seconds < 0.5
    assert found.wall_seconds >= 0.29


def test_memory_of_before_does_not_count() -> None:
    kept = np.ones(200_000_000, dtype=np.uint8)
    del kept
    small = measure_cost(functools.partial(use_memory, 20_000_000, 0.0), start="fork")
    assert small.peak_memory_bytes == pytest.approx(20e6, rel=0.2)


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_tensors_come_back(start) -> None:
    found = measure_cost(functools.partial(torch.arange, 100_000), start=start)
    assert torch.equal(found.value, torch.arange(100_000))


def test_failures_of_the_function_are_said() -> None:
    with pytest.raises(RuntimeError, match="nothing there"):
        measure_cost(fail, start="fork")
    with pytest.raises(RuntimeError, match="ended with exit code 3"):
        measure_cost(leave, start="fork")
    with pytest.raises(RuntimeError, match="its result cannot be pickled"):
        measure_cost(make_a_function, start="fork")
    with pytest.raises(TypeError, match="can be pickled"):
        measure_cost(lambda: 1)
    with pytest.raises(TypeError, match="need a callable"):
        measure_cost(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_threads: need at least 1"):
        measure_cost(fail, n_threads=0)
    with pytest.raises(ValueError, match="start: need"):
        measure_cost(fail, start="thread")  # type: ignore[arg-type]
    assert math.isfinite(measure_cost(functools.partial(use_memory, 1, 0.0), start="fork").cpu_seconds)


def test_numbers_that_share_a_total_move_along_their_gradient() -> None:
    """Elementwise steps would grow all alike, and the projection onto the simplex would take them back."""
    worth = torch.tensor([1.0, 2.0, 3.0, 4.0])
    share = nn.Parameter(torch.full((4,), 0.25))
    network = nn.Linear(1, 1)
    train_jointly(
        Design({"share": share}, {"share": (Simplex(1.0),)}, {"share": 0.01}),
        network,
        lambda rows, source: 5.0 - (worth * share).sum() + 0 * network(torch.zeros(1, 1)).sum(),
        Rows(torch.arange(40), torch.arange(10)),
        JointSchedule(500, 8, 1e-3),
        0,
    )
    assert float(share.detach()[3]) > 0.9
    assert float(share.detach().sum()) == pytest.approx(1.0, abs=1e-6)


def test_a_training_that_keeps_its_start_is_said() -> None:
    """A start that is best already, and a decoder whose rate is far too large."""
    scenes = fields(80)
    with pytest.warns(UserWarning, match=r"no gain, the result is the start.*decoder_learning_rate \(3\)"):
        result = train_end_to_end(
            *(Blend(1.0), GaussianNoise(1.0), scenes, Reconstruction(), UNetDecoder(channels=2)),
            n_steps=10,
            learning_rate=0.05,
            decoder_learning_rate=3.0,
            generator=seeded(),
        )
    assert float(result.parameters["share"]) == pytest.approx(1.0)
    assert not any(step.validation_loss < result.history[0].validation_loss for step in result.history[1:])
    assert any("no gain" in note for note in result.warnings)


def test_the_start_is_judged_on_rows_that_its_linear_estimate_has_not_seen() -> None:
    """White scenes that the start does not show: on new rows no estimate is better than the mean, a loss of 1."""
    scenes = 1 + 0.2 * torch.randn(120, 1, 8, 8, generator=seeded(2))
    result = train_end_to_end(
        *(Blend(0.0), GaussianNoise(1.0), scenes, Reconstruction(), UNetDecoder(channels=2, initial="linear")),
        n_steps=10,
        learning_rate=0.05,
        generator=seeded(),
    )
    assert result.history[0].validation_loss > 0.95


class Masked(nn.Module):
    """The scene behind a mask of its size."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.rand(8, 8, generator=seeded(3)))

    def forward(self, scene: Tensor) -> Tensor:
        return 10 * self.mask * scene


@pytest.mark.filterwarnings("ignore:train_end_to_end. no gain")
@pytest.mark.parametrize("method", ["straight_through", "annealing"])
def test_zeros_and_ones_meet_a_budget(method: str) -> None:
    limits = {"mask": [Binary(method), Total(16.0)]}
    result = train_end_to_end(
        *(Masked(), GaussianNoise(1.0), fields(100), Reconstruction(), UNetDecoder(channels=2)),
        n_steps=6,
        constraints=limits,
        generator=seeded(),
    )
    mask = result.encoder.mask.detach()
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert float(mask.sum()) <= 16.0 + 1e-5


def test_a_budget_that_no_ones_meet_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask.*whole number of ones"):
        train_end_to_end(
            *(Masked(), GaussianNoise(1.0), fields(100), Reconstruction(), UNetDecoder(channels=2)),
            n_steps=6,
            constraints={"mask": [Binary(), Simplex(2.5)]},
        )
