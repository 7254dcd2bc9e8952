"""optimize_design against optima that are known, and its promises."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable, Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from bitlens.design import Box, Constraint, DesignResult, DesignStep, Energy, optimize_design
from bitlens.noise import GaussianNoise, NoiseModel, PoissonGaussianNoise

VARIANCES = torch.tensor([9.0, 4.0, 1.0, 0.1], dtype=torch.float64)
STD = 1.0


class Gains(nn.Module):
    """mean = amplitude * scene: the amplitudes of parallel Gaussian channels."""

    def __init__(self, amplitude: Tensor) -> None:
        super().__init__()
        self.amplitude = nn.Parameter(amplitude.clone())
        self.register_buffer("level", torch.tensor(0.0, dtype=torch.float64))
        self.spare = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, scene: Tensor) -> Tensor:
        return self.amplitude * scene + self.level


def scenes(n: int = 600, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator, dtype=torch.float64) * VARIANCES.sqrt()


def run(
    *,
    encoder: nn.Module | None = None,
    n_steps: int = 5,
    n_scenes: int = 200,
    callback: Callable[[DesignStep], None] | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> DesignResult:
    return optimize_design(
        Gains(torch.ones(4, dtype=torch.float64)) if encoder is None else encoder,
        GaussianNoise(STD),
        scenes(n_scenes),
        parameters=["amplitude"],
        constraints={"amplitude": Energy(1.0, measure="rms")},
        n_steps=n_steps,
        generator=torch.Generator().manual_seed(seed) if generator is None else generator,
        judge_scenes=scenes(n_scenes, 1),
        callback=callback,
    )


def water_filling(power: float) -> Tensor:
    """Squared amplitudes that maximise sum log(1 + a v / s^2) under sum a = power: bisection on the water level."""
    low, high = 0.0, 100.0
    for _ in range(200):
        level = 0.5 * (low + high)
        filled = (level - STD**2 / VARIANCES).clamp(min=0)
        low, high = (level, high) if filled.sum() < power else (low, level)
    return filled


def test_reaches_water_filling() -> None:
    data = scenes(1000)
    # Scenes of exactly the covariance that the formula is told, so that the optimum is exact.
    data = data - data.mean(0)
    covariance = data.mT @ data / (len(data) - 1)
    data = data @ torch.linalg.inv(torch.linalg.cholesky(covariance)).mT * VARIANCES.sqrt()
    result = optimize_design(
        Gains(torch.ones(4, dtype=torch.float64)),
        GaussianNoise(STD),
        data,
        parameters=["amplitude"],
        constraints={"amplitude": Energy(1.0, measure="rms")},
        n_steps=300,
        batch_size=1000,
        judge_scenes=scenes(200, 1),
        generator=torch.Generator().manual_seed(0),
    )
    found = result.parameters["amplitude"].square()
    assert found.sum().item() == pytest.approx(4.0, abs=1e-9)
    # The weakest channel gets nothing; its last crumbs of amplitude decay slowly because the gradient vanishes there.
    torch.testing.assert_close(found, water_filling(4.0), rtol=0, atol=0.01)
    best = 0.5 * torch.log2(1 + water_filling(4.0) * VARIANCES / STD**2).sum().item()
    # The correction for few scenes moves the value by less than 0.01 bits at 1000 scenes and 4 pixels.
    assert result.history[-1].objective_bits == pytest.approx(best, abs=0.01)


def test_judged_by_another_estimator_with_both_bounds() -> None:
    result = run(n_steps=150, n_scenes=500)
    best = 0.5 * torch.log2(1 + water_filling(4.0) * VARIANCES / STD**2).sum().item()
    start = 0.5 * torch.log2(1 + VARIANCES / STD**2).sum().item()
    for estimate, truth in ((result.before, start), (result.after, best)):
        assert estimate.lower_bits is not None
        assert estimate.upper_bits is not None
        assert estimate.ceiling_bits == pytest.approx(math.log2(500))
        assert estimate.stderr_bits is not None
        assert abs(estimate.bits - truth) < 4 * estimate.stderr_bits + 0.5 * (estimate.upper_bits - estimate.lower_bits)
    assert result.gain_bits_per_pixel == pytest.approx((result.after.bits - result.before.bits) / 4)


def test_the_arguments_stay_as_they_were() -> None:
    encoder = Gains(torch.ones(4, dtype=torch.float64))
    result = run(encoder=encoder)
    assert torch.equal(encoder.amplitude, torch.ones(4, dtype=torch.float64))
    assert encoder.amplitude.grad is None
    copy = result.encoder
    assert isinstance(copy, Gains)
    assert not torch.equal(copy.amplitude, encoder.amplitude)
    assert copy.spare.requires_grad
    assert torch.equal(copy.spare, encoder.spare)


def test_repeats_bit_for_bit_with_one_and_two_threads() -> None:
    n_threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 2):
            torch.set_num_threads(n)
            results.append(run(n_steps=8, n_scenes=300))
    finally:
        torch.set_num_threads(n_threads)
    first = json.dumps(results[0].to_dict())
    assert all(json.dumps(result.to_dict()) == first for result in results[1:])
    assert json.dumps(run(n_steps=8, n_scenes=300, seed=1).to_dict()) != first


@pytest.mark.parametrize("n_drawn", [0, 3])
def test_the_recorded_seed_repeats_the_design_of_any_generator(n_drawn: int) -> None:
    generator = torch.Generator().manual_seed(8)
    torch.rand(n_drawn, generator=generator)
    results = [run(n_steps=2, generator=generator) for _ in range(2)]
    assert (results[0].seed == 8) == (n_drawn == 0)
    assert len({result.seed for result in results}) == 2
    for result in results:
        again = run(n_steps=2, generator=torch.Generator().manual_seed(result.seed))
        assert json.dumps(again.to_dict()) == json.dumps(result.to_dict())


def test_without_a_generator_the_drawn_seed_repeats_the_design() -> None:
    def design(generator: torch.Generator | None) -> DesignResult:
        encoder = Gains(torch.ones(4, dtype=torch.float64))
        return optimize_design(encoder, GaussianNoise(STD), scenes(60), n_steps=2, generator=generator)

    first = design(None)
    again = design(torch.Generator().manual_seed(first.seed))
    assert json.dumps(again.to_dict()) == json.dumps(first.to_dict())


class Recorder(NoiseModel):
    """Gaussian noise that keeps the seeds its draws came from; the copies that a design makes share them."""

    seeds: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__()
        self.noise = GaussianNoise(STD)

    def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        assert generator is not None
        self.seeds.append(generator.initial_seed())
        return self.noise.sample(mean, generator)

    def log_prob(self, measured: Tensor, mean: Tensor) -> Tensor:
        return self.noise.log_prob(measured, mean)

    def entropy(self, mean: Tensor) -> Tensor:
        return self.noise.entropy(mean)

    def expected(self, mean: Tensor) -> Tensor:
        return mean

    def variance(self, mean: Tensor) -> Tensor:
        return self.noise.variance(mean)


def test_noise_splits_and_design_draw_from_seeds_of_their_own() -> None:
    Recorder.seeds.clear()
    encoder = Gains(torch.ones(4, dtype=torch.float64))
    generator = torch.Generator().manual_seed(5)
    result = optimize_design(encoder, Recorder(), scenes(60), n_steps=1, generator=generator)
    before, after = Recorder.seeds
    assert before == after
    assert result.before.seed == result.after.seed
    assert len({5, before, result.before.seed}) == 3


def test_error_of_the_gain_is_its_spread_over_scenes_and_noise() -> None:
    # All scenes in every step: each repetition makes the same design and judges it on other scenes.
    gains, errors, unpaired = [], [], []
    for seed in range(100):
        result = optimize_design(
            Gains(torch.full((4,), 0.5, dtype=torch.float64)),
            GaussianNoise(STD),
            scenes(60),
            parameters=["amplitude"],
            learning_rate=0.3,
            n_steps=3,
            judge_scenes=scenes(150, 1 + seed),
            generator=torch.Generator().manual_seed(seed),
        )
        assert result.before.stderr_bits is not None
        assert result.after.stderr_bits is not None
        gains.append(result.after.bits - result.before.bits)
        errors.append(result.gain_stderr_bits)
        unpaired.append(math.hypot(result.before.stderr_bits, result.after.stderr_bits))
    spread = torch.tensor(gains).std().item()
    # sd of 100 repetitions: 7 %.
    assert sum(errors) / 100 == pytest.approx(spread, rel=0.28)
    assert sum(unpaired) / 100 > 1.5 * spread


def test_result_is_read_only_and_can_be_copied_and_pickled() -> None:
    result = run(n_steps=2)
    with pytest.raises(TypeError, match="item assignment"):
        result.parameters["amplitude"] = torch.ones(4)  # type: ignore[index]
    for same in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert json.dumps(same.to_dict()) == json.dumps(result.to_dict())
        assert torch.equal(same.encoder.amplitude, result.parameters["amplitude"])
        with pytest.raises(TypeError, match="item assignment"):
            same.parameters["amplitude"] = torch.ones(4)
    assert result.gain_stderr_bits_per_pixel == result.gain_stderr_bits / 4


def test_history_has_a_row_for_every_step() -> None:
    seen: list[DesignStep] = []
    result = run(n_steps=6, callback=seen.append)
    assert tuple(seen) == result.history
    assert [row.step for row in result.history] == list(range(6))
    rates = [row.learning_rate for row in result.history]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(0.05)
    assert rates[-1] < 0.2 * rates[0]


def test_interrupt_returns_what_is_done() -> None:
    def stop(row: DesignStep) -> None:
        if row.step == 3:
            raise KeyboardInterrupt

    result = run(n_steps=50, callback=stop)
    assert len(result.history) == 4
    assert any("interrupted after 4 of 50 steps" in warning for warning in result.warnings)
    assert result.after.bits > result.before.bits


class BreaksDown(Gains):
    """Gives NaN once the first amplitude has passed a limit."""

    def forward(self, scene: Tensor) -> Tensor:
        broken = torch.where(self.amplitude[0] > 1.08, torch.nan, 1.0)
        return super().forward(scene) * broken


def test_not_finite_stops_at_the_last_good_step() -> None:
    result = run(encoder=BreaksDown(torch.ones(4, dtype=torch.float64)), n_steps=40)
    assert 0 < len(result.history) < 40
    assert any("not finite" in warning for warning in result.warnings)
    assert result.parameters["amplitude"][0] <= 1.08
    assert math.isfinite(result.after.bits)


def test_noise_parameter_that_is_a_buffer_can_change() -> None:
    result = optimize_design(
        Gains(torch.ones(4, dtype=torch.float64)),
        GaussianNoise(2.0),
        scenes(200),
        parameters=["std"],
        constraints={"std": Box(lower=1.5)},
        learning_rate={"std": 0.2},
        n_steps=30,
        judge_scenes=scenes(100, 1),
        generator=torch.Generator().manual_seed(0),
    )
    # Less noise is always more bits, so the bound is where it ends.
    assert result.noise.std.item() == pytest.approx(1.5)
    assert result.after.bits > result.before.bits


def test_default_changes_all_that_require_grad_and_holds_scenes_out() -> None:
    result = optimize_design(
        Gains(torch.full((4,), 0.5, dtype=torch.float64)),
        GaussianNoise(STD),
        scenes(100),
        n_steps=3,
        generator=torch.Generator().manual_seed(0),
    )
    assert set(result.parameters) == {"amplitude", "spare"}
    assert result.before.n_samples == 25
    assert any("held out" in warning for warning in result.warnings)


def test_poisson_gaussian_prefers_light() -> None:
    encoder = Gains(torch.full((4,), 5.0, dtype=torch.float64))
    result = optimize_design(
        encoder,
        PoissonGaussianNoise(read_std=2.0),
        scenes(200).abs(),
        parameters=["encoder.amplitude"],
        constraints={"encoder.amplitude": [Box(lower=0.0), Energy(6.0)]},
        learning_rate=0.3,
        n_steps=60,
        judge_scenes=scenes(100, 1).abs(),
        generator=torch.Generator().manual_seed(0),
    )
    # All of the budget is used, and the channel with hardly any signal gets the least.
    amplitude = result.parameters["encoder.amplitude"]
    assert amplitude.mean().item() == pytest.approx(6.0, abs=1e-6)
    assert int(amplitude.argmin()) == 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"objective": "lucky"}, ValueError, "objective"),
        ({"encoder": 3}, TypeError, "encoder"),
        ({"noise": 3}, TypeError, "noise"),
        ({"generator": 3}, TypeError, "generator: need a torch.Generator"),
        ({"n_steps": 0}, ValueError, "n_steps"),
        ({"scenes": "text"}, TypeError, "scenes"),
        ({"scenes": torch.ones(4)}, ValueError, "scenes"),
        ({"scenes": torch.ones(40, 4, dtype=torch.int64)}, TypeError, "scenes"),
        ({"scenes": torch.full((40, 4), math.nan)}, ValueError, "scenes: need finite"),
        ({"scenes": torch.ones(9, 4)}, ValueError, "scenes: need at least 12"),
        ({"judge_scenes": torch.ones(5, 4)}, ValueError, "judge_scenes"),
        ({"judge_groups": [1, 2]}, ValueError, "judge_groups"),
        ({"parameters": ["ampitude"]}, ValueError, "'ampitude' is unknown; there are amplitude"),
        ({"parameters": "amplitude"}, TypeError, "parameters"),
        ({"parameters": []}, ValueError, "at least one"),
        ({"parameters": ["amplitude", "encoder.amplitude"]}, ValueError, "twice"),
        ({"constraints": {"spare": Box(0, 1)}}, ValueError, "constraints: 'spare' is not among"),
        ({"constraints": {"amplitude": 3}}, TypeError, "constraints"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate"),
        ({"learning_rate": {}}, ValueError, "none for 'amplitude'"),
        ({"batch_size": 1}, ValueError, "batch_size"),
    ],
)
def test_bad_arguments(changes: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {
        "encoder": Gains(torch.ones(4, dtype=torch.float64)),
        "noise": GaussianNoise(STD),
        "scenes": scenes(40),
        "parameters": ["amplitude"],
        "n_steps": 2,
    } | changes
    with pytest.raises(error, match=message):
        optimize_design(**arguments)  # type: ignore[arg-type]


def test_interrupt_between_a_step_and_its_projection_still_obeys(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitlens.design import _climb

    calls = 0
    project = _climb.project

    def interrupted(name: str, given: Tensor, constraints: Sequence[Constraint]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return project(name, given, constraints)

    monkeypatch.setattr(_climb, "project", interrupted)
    result = run(n_steps=50)
    assert calls == 4
    assert len(result.history) == 3
    assert result.encoder.amplitude.square().mean().sqrt().item() <= 1.0 + 1e-9


class Transmission(nn.Module):
    """A filter that can only absorb, and says so."""

    parameter_domain = {"transmission": (0.0, 1.0), "exposure": (0.0, None)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.transmission = nn.Parameter(torch.full((4,), 0.8, dtype=torch.float64))
        self.exposure = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, scene: Tensor) -> Tensor:
        return self.exposure * self.transmission * scene


def test_a_parameter_stays_in_the_domain_that_its_module_states() -> None:
    result = optimize_design(
        Transmission(), GaussianNoise(STD), scenes(), parameters=["transmission"], n_steps=20, learning_rate=0.1,
        judge_scenes=scenes(seed=1), generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert float(result.encoder.transmission.detach().max()) == 1.0
    assert not any("without bound" in warning for warning in result.warnings)


@pytest.mark.parametrize("name", ["exposure", "std"])
def test_a_parameter_that_nothing_limits_is_said(name: str) -> None:
    result = optimize_design(
        Transmission(), GaussianNoise(STD), scenes(), parameters=[name], n_steps=3,
        judge_scenes=scenes(seed=1), generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert any(warning.startswith(f"{name}: no constraint was given") for warning in result.warnings)


def test_scenes_that_judge_are_not_among_those_that_are_climbed_on() -> None:
    from bitlens.design.optimize import _split

    given = torch.arange(40, dtype=torch.float64)[:, None]
    climbed, held_out, _ = _split(given, None, None, 3, "auto")
    assert sorted([*climbed[:, 0].tolist(), *held_out.scenes[:, 0].tolist()]) == given[:, 0].tolist()
