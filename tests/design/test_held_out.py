"""The judge of a design says no more than its scenes show."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bitlens.design import DesignResult, gaussian_information, optimize_design
from bitlens.design._held_out import HeldOut, judge_means
from bitlens.design.objectives import choose_objective
from bitlens.estimators._judge import stderr_of_difference_bits
from bitlens.noise import GaussianNoise

pytestmark = pytest.mark.usefixtures("one_thread")
NOISE = GaussianNoise(1.0)


def white(n: int, n_pixels: int, std: float = 3.0, seed: int = 0) -> Tensor:
    """White Gaussian means, which carry n_pixels log2(1 + std^2) / 2 bits."""
    return 10 + std * torch.randn(n, n_pixels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truth(n_pixels: int, std: float = 3.0) -> float:
    return 0.5 * n_pixels * math.log2(1 + std**2)


@pytest.mark.parametrize("method", ["known_channel", "auto"])
@pytest.mark.parametrize("n", [20, 40])
def test_few_scenes_are_a_floor_and_never_more_than_the_truth(n: int, method: str) -> None:
    mean = white(n, 64)
    judged = HeldOut(mean, None, 1, method).judge(mean, NOISE)
    estimate = judged.estimate
    assert estimate.bound == "lower"
    assert estimate.bits == estimate.lower_bits
    assert estimate.bits <= math.log2(n) + 1e-9 < truth(64)
    assert estimate.ceiling_bits == pytest.approx(math.log2(n))
    assert "the bits are a floor" in estimate.warnings[0]
    # What it was mended for: the scenes as a density say several times the truth.
    assert judge_means(mean, NOISE, None, 1, method).estimate.bits > 4 * truth(64)


def test_far_below_the_ceiling_both_bounds_are_used() -> None:
    mean = white(300, 2, std=1.0)
    estimate = HeldOut(mean, None, 1, "known_channel").judge(mean, NOISE).estimate
    assert estimate.bound == "two-sided"
    assert estimate.stderr_bits is not None
    assert estimate.bits == pytest.approx(truth(2, 1.0), abs=4 * estimate.stderr_bits)


def test_error_of_a_floor_is_its_spread_over_scenes() -> None:
    """A floor that is no ceiling: 60 scenes of about 3 bits, drawn 60 times."""
    found, errors = [], []
    for seed in range(60):
        mean = white(60, 2, std=2.0, seed=seed)
        held_out = HeldOut(mean, None, seed, "known_channel")
        floor = held_out.floor(held_out.judge(mean, NOISE), mean, NOISE)
        assert stderr_of_difference_bits(floor, floor) == 0.0
        assert floor.estimate.stderr_bits is not None
        found.append(floor.estimate.bits)
        errors.append(floor.estimate.stderr_bits)
    # sd of 60 repetitions: 9 %.
    assert sum(errors) / 60 == pytest.approx(torch.tensor(found).std().item(), rel=0.36)


def test_auto_does_not_believe_what_few_scenes_cannot_show() -> None:
    mean = white(40, 64)
    closed = gaussian_information(mean, NOISE).item() / math.log(2)
    # Above the closed form, which no channel of this covariance passes.
    absurd = choose_objective("auto", NOISE, mean, 600.0, 16.0, 512)
    assert absurd.objective.name == "gaussian"
    assert "close enough" not in absurd.reason
    assert "too few scenes judge" in absurd.reason
    floor = choose_objective("auto", NOISE, mean, 5.3, 0.0, 512, floor=True)
    assert floor.objective.name == "gaussian"
    assert f"{closed:.2f} bits per image and the estimate at least 5.30: too few scenes judge" in floor.reason
    # The closed form is an upper bound: below the ceiling's reach, so is the truth.
    two_levels = 4.0 * (torch.arange(40, dtype=torch.float64)[:, None] % 2)
    few = choose_objective("auto", NOISE, two_levels, 0.9, 0.02, 512, floor=True)
    assert few.objective.name == "known_channel"


class Gain(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))

    def forward(self, scene: Tensor) -> Tensor:
        return self.gain * scene


def designed(start: float, n_judges: int) -> DesignResult:
    return optimize_design(
        Gain(start), NOISE, white(100, 16), objective="gaussian", n_steps=40, learning_rate=0.2,
        judge_scenes=white(n_judges, 16, seed=1), judge_method="known_channel",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def test_both_ends_of_a_design_are_of_one_kind() -> None:
    dim = designed(0.02, 40)
    assert dim.before.bound == dim.after.bound == "lower"
    assert dim.before.bits < 0.5 * dim.after.bits <= 0.5 * math.log2(40)
    assert not any("floors near" in note or "no gain" in note for note in dim.warnings)
    bright = designed(3.0, 40)
    assert bright.before.bits == pytest.approx(math.log2(40), abs=0.05)
    assert any("before and after are floors near their ceiling of 5.32 bits" in note for note in bright.warnings)
    assert not any("no gain" in note for note in bright.warnings)
