"""Optimisers, schedules, starts, plateaus and checkpoints of a design."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitlens.design import (
    Binary,
    Box,
    Constraint,
    CriticObjective,
    DensityObjective,
    DesignResult,
    DesignStep,
    Energy,
    MinimumFeature,
    Objective,
    Simplex,
    Total,
    has_plateaued,
    optimize_design,
)
from bitlens.noise import GaussianNoise

pytestmark = pytest.mark.usefixtures("one_thread")


class Bowl(nn.Module):
    """mean = exp(-|shift - optimum|^2 / 2) scene: one number to be found, in micrometres."""

    parameter_scale = {"shift_um": 100.0}  # noqa: RUF012

    def __init__(self, start: float, optimum: tuple[float, ...] = (300.0,), height: tuple[float, ...] = (1.0,)) -> None:
        super().__init__()
        self.shift_um = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.optimum, self.height = optimum, height

    def forward(self, scene: Tensor) -> Tensor:
        parts = [
            height * torch.exp(-0.5 * ((self.shift_um - optimum) / 100.0).square())
            for optimum, height in zip(self.optimum, self.height, strict=True)
        ]
        return torch.stack(parts).sum(0) * scene


def scenes(n: int = 300, seed: int = 0) -> Tensor:
    return 3.0 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bowl(encoder: nn.Module, *, n_steps: int = 150, seed: int = 1, **settings: object) -> DesignResult:
    return optimize_design(
        encoder,
        GaussianNoise(1.0),
        scenes(),
        n_steps=n_steps,
        generator=torch.Generator().manual_seed(seed),
        judge_scenes=scenes(200, 1),
        **({"objective": "gaussian"} | settings),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("settings", [{}, {"schedule": "linear"}, {"optimizer": "lbfgs"}], ids=str)
def test_steps_are_in_the_scale_that_the_module_states(settings: dict[str, object]) -> None:
    result = bowl(Bowl(150.0), **settings)
    assert result.parameters["shift_um"].item() == pytest.approx(300.0, abs=3.0)
    assert result.initial_parameters["shift_um"].item() == 150.0


def test_line_search_takes_few_steps_and_obeys_its_box() -> None:
    result = bowl(Bowl(150.0), optimizer="lbfgs", constraints={"shift_um": Box(100.0, 280.0)})
    assert result.parameters["shift_um"].item() == pytest.approx(280.0)
    assert len(result.history) < 20
    assert result.converged
    rounds = bowl(Bowl(150.0), optimizer="lbfgs", batch_size=100)
    assert rounds.parameters["shift_um"].item() == pytest.approx(300.0, abs=1.0)


def test_schedules() -> None:
    def rates(schedule: object) -> list[float]:
        return [row.learning_rate for row in bowl(Bowl(150.0), n_steps=10, schedule=schedule).history]

    assert rates("constant") == [5.0] * 10
    np.testing.assert_allclose(rates("linear")[:2], [5.0, 5.0 * (1 - 0.098)])
    np.testing.assert_allclose(rates("cosine")[5], 5.0 * (0.02 + 0.98 * 0.5))
    np.testing.assert_allclose(rates(lambda progress: 1 - progress)[9], 5.0 * 0.1)


def test_the_best_of_several_starts_is_kept() -> None:
    # The given start climbs the lower of two hills; some of the others reach the higher one.
    encoder = Bowl(0.0, optimum=(0.0, 600.0), height=(0.4, 1.0))
    alone = bowl(encoder, n_steps=150)
    assert alone.parameters["shift_um"].item() == pytest.approx(0.0, abs=10.0)
    several = bowl(encoder, n_steps=150, n_starts=6, start_spread=6.0)
    assert several.parameters["shift_um"].item() == pytest.approx(600.0, abs=10.0)
    assert len(several.starts) == 6
    best = max(several.starts, key=lambda start: start.objective_bits)
    assert {row.start for row in several.history} == {best.start}
    assert several.starts[0].objective_bits == pytest.approx(np.mean([r.objective_bits for r in alone.history[-15:]]))
    assert several.before == alone.before


def test_a_plateau_is_found_and_a_slope_is_not() -> None:
    draws = np.random.default_rng(0)
    missed = found = 0
    for _ in range(200):
        noise = 0.01 * draws.standard_normal(60)
        found += has_plateaued((5.0 + noise).tolist())
        # Another window like this one gains 1 %.
        missed += has_plateaued((5.0 + 0.05 * np.arange(60) / 60 + noise).tolist())
    assert found > 120
    assert missed == 0
    # A window too noisy to tell, one that is short, and one that is not finite.
    assert not has_plateaued((5.0 + draws.standard_normal(60)).tolist())
    assert not has_plateaued([1.0] * 5)
    assert not has_plateaued([1.0] * 30 + [math.nan])


def test_a_slope_under_noise_that_lasts_is_no_plateau() -> None:
    # Twice what counts, under noise whose neighbours correlate by 0.7.
    draws = np.random.default_rng(1)
    wrong = 0
    for _ in range(300):
        noise = draws.standard_normal(100)
        for i in range(1, 100):
            noise[i] = 0.7 * noise[i - 1] + math.sqrt(1 - 0.7**2) * noise[i]
        wrong += has_plateaued((5.0 + 0.02 * np.arange(60) / 60 + 0.01 * noise[40:]).tolist())
    assert wrong < 0.1 * 300


def test_stops_on_a_plateau() -> None:
    result = bowl(Bowl(290.0), n_steps=400, plateau_window=20, batch_size=300)
    assert 40 <= len(result.history) < 200
    assert result.converged
    assert "no longer rises" in result.starts[0].stopped
    assert not bowl(Bowl(290.0), n_steps=30, plateau_window=20).converged


def test_a_plateau_does_not_end_annealing_while_values_are_soft() -> None:
    """A dim scene under a mask, at its best from the start: flat, but not yet zeros and ones."""

    def steps(limit: Binary) -> int:
        result = optimize_design(
            Mask(2), GaussianNoise(1.0), mask_scenes(300, 2), objective="gaussian", constraints={"mask": limit},
            learning_rate=1e-9, n_steps=60, batch_size=225, plateau_window=10, judge_method="gaussian",
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return len(result.history)

    assert steps(Binary("straight_through", share=0.5)) == 20
    assert steps(Binary("annealing", share=0.5)) == 60


class Mask(nn.Module):
    """A mask before a scene, whose pixels carry the more the brighter they are on average."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.full((size, size), 0.5, dtype=torch.float64))

    def forward(self, scene: Tensor) -> Tensor:
        return self.mask * scene


def mask_scenes(n: int = 400, size: int = 8) -> Tensor:
    contrast = torch.linspace(0.1, 4.0, size * size, dtype=torch.float64).reshape(size, size)
    white = torch.randn(n, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return contrast * white


def masked(*limits: object, n_steps: int = 80) -> Tensor:
    result = optimize_design(
        Mask(),
        GaussianNoise(1.0),
        mask_scenes(),
        objective="gaussian",
        constraints={"mask": limits},  # type: ignore[dict-item]
        n_steps=n_steps,
        generator=torch.Generator().manual_seed(0),
    )
    assert torch.equal(result.encoder.mask, result.parameters["mask"])
    return result.parameters["mask"]


def test_binary_masks_open_where_there_is_contrast() -> None:
    quarter = masked(Binary("annealing", share=0.25))
    assert set(quarter.flatten().tolist()) == {0.0, 1.0}
    # The last quarter of the pixels has the most contrast; two of sixteen may be swapped at its edge.
    assert quarter.sum().item() == 16
    assert quarter.flatten()[-16:].sum().item() >= 14
    everywhere = masked(Binary("annealing"))
    assert set(everywhere.flatten().tolist()) <= {0.0, 1.0}
    assert everywhere.flatten()[8:].min().item() == 1.0


class Sum(nn.Module):
    """One number: the masked sum of a scene, whose closed pixels have a gradient because neighbours are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.full((16,), 0.6, dtype=torch.float64))

    def forward(self, scene: Tensor) -> Tensor:
        return (self.mask * scene).sum(1, keepdim=True)


def test_straight_through_masks_add_what_goes_together() -> None:
    # The second half of the pixels is the first with the sign changed: adding both gives nothing.
    half = torch.randn(400, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).expand(400, 8)
    result = optimize_design(
        Sum(),
        GaussianNoise(1.0),
        torch.cat((half, -0.9 * half), dim=1),
        objective="gaussian",
        constraints={"mask": Binary()},
        n_steps=60,
        generator=torch.Generator().manual_seed(0),
    )
    assert result.parameters["mask"].tolist() == [1.0] * 8 + [0.0] * 8


def test_features_of_a_mask_have_their_least_size() -> None:
    mask = masked(Binary("annealing", share=0.5), MinimumFeature(2), n_steps=40)
    blocks = mask.reshape(4, 2, 4, 2).movedim(1, 2).flatten(2)
    assert bool((blocks.amax(2) == blocks.amin(2)).all())
    assert mask.sum().item() == 32


def test_an_open_mask_with_a_budget_spends_it_where_it_pays() -> None:
    mask = masked(Box(0.0, 1.0), Energy(0.25))
    assert mask.mean().item() == pytest.approx(0.25, abs=1e-9)
    assert mask.flatten()[-16:].mean().item() > 4 * mask.flatten()[:32].mean().item()


# ---- Checkpoints ----


class _Stop:
    """Interrupts after some steps."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self, step: DesignStep) -> None:
        self.at -= 1
        if self.at == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "objective",
    ["gaussian", "known_channel", DensityObjective(refit_every=4, n_fit=100), CriticObjective(hidden=8, n_features=4)],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_an_interrupted_run_goes_on_to_the_same_end(objective: Objective | str, tmp_path: Path) -> None:
    def run(path: Path, callback: _Stop | None = None) -> DesignResult:
        return bowl(Bowl(150.0), n_steps=12, n_starts=2, objective=objective, checkpoint=path, callback=callback)

    whole = run(tmp_path / "whole")
    for at in (5, 17):
        path = tmp_path / f"interrupted after {at}"
        stopped = run(path, _Stop(at))
        assert "interrupted after" in " ".join(stopped.warnings)
        resumed = run(path)
        assert resumed.history == whole.history
        assert resumed.starts == whole.starts
        assert torch.equal(resumed.parameters["shift_um"], whole.parameters["shift_um"])
        assert resumed.after == whole.after
    assert run(tmp_path / "whole").history == whole.history


def test_a_drawn_seed_is_in_the_checkpoint(tmp_path: Path) -> None:
    def run(callback: _Stop | None = None) -> DesignResult:
        return optimize_design(
            Bowl(150.0),
            GaussianNoise(1.0),
            scenes(),
            objective="gaussian",
            n_steps=6,
            checkpoint=tmp_path / "file",
            callback=callback,
        )

    stopped = run(_Stop(3))
    assert run().seed == stopped.seed
    assert len(run().history) == 6


class Valley(nn.Module):
    """A gain that is largest at the end of a curved valley, which a line search takes many steps along."""

    parameter_domain = {"place": (-1.0, 0.8)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.linspace(-0.9, 0.4, 6, dtype=torch.float64))

    def forward(self, scene: Tensor) -> Tensor:
        first, second = self.place[:-1], self.place[1:]
        below = (100 * (second - first.square()).square() + (1 - first).square()).sum()
        return torch.exp(-0.01 * below) * scene


@pytest.mark.parametrize("batch_size", [None, 60])
def test_an_interrupted_line_search_goes_on_as_if_it_had_not_been(batch_size: int | None, tmp_path: Path) -> None:
    seen = torch.randn(150, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def run(path: Path, callback: _Stop | None = None, encoder: nn.Module | None = None) -> DesignResult:
        return optimize_design(
            Valley() if encoder is None else encoder, GaussianNoise(0.05), 3 * seen, objective="gaussian",
            optimizer="lbfgs", batch_size=batch_size, n_steps=45, n_starts=2, start_spread=0.2, checkpoint=path,
            callback=callback, judge_method="gaussian", generator=torch.Generator().manual_seed(3),
        )  # fmt: skip

    whole = run(tmp_path / "whole")
    n_first = whole.starts[0].n_steps
    assert n_first > 8
    for at in (1, 7, n_first + 3):
        path = tmp_path / f"interrupted after {at}"
        assert "interrupted after" in " ".join(run(path, _Stop(at)).warnings)
        resumed = run(path)
        assert resumed.history == whole.history
        assert resumed.starts == whole.starts
        assert torch.equal(resumed.parameters["place"], whole.parameters["place"])
        assert resumed.after == whole.after

    class StopsInside(Valley):
        """Interrupts in the middle of an iteration."""

        n_calls = 0

        def forward(self, scene: Tensor) -> Tensor:
            StopsInside.n_calls += 1
            if StopsInside.n_calls == 20:
                raise KeyboardInterrupt
            return super().forward(scene)

    path = tmp_path / "inside"
    stopped = run(path, encoder=StopsInside())
    assert "interrupted after" in " ".join(stopped.warnings)
    resumed = run(path, encoder=StopsInside())
    assert resumed.history == whole.history
    assert torch.equal(resumed.parameters["place"], whole.parameters["place"])


def test_checkpoints_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    bowl(Bowl(150.0), n_steps=3, checkpoint=path)
    with pytest.raises(ValueError, match=r"checkpoint: .* is of another run"):
        bowl(Bowl(151.0), n_steps=3, checkpoint=path)
    with pytest.raises(ValueError, match=r"checkpoint: .* is of another run"):
        bowl(Bowl(150.0), n_steps=4, checkpoint=path)
    with pytest.raises(ValueError, match="generator: need one of seed 1 to go on with the checkpoint, got seed 2"):
        bowl(Bowl(150.0), n_steps=3, checkpoint=path, seed=2)
    content = path.read_bytes()
    for damaged in (b"", content[:-30], content[:200] + bytes([content[200] ^ 1]) + content[201:], b"text"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="checkpoint: need a file written by optimize_design"):
            bowl(Bowl(150.0), n_steps=3, checkpoint=path)
        assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"objective": "mine"}, ValueError, "objective: need one of 'auto', 'gaussian'"),
        ({"optimizer": "sgd"}, ValueError, 'optimizer: need "adam" or "lbfgs"'),
        ({"schedule": "warm"}, ValueError, "schedule: need one of 'cosine', 'linear', 'constant'"),
        ({"n_starts": 0}, ValueError, "n_starts: need a whole number of at least 1, got 0"),
        ({"start_spread": -1.0}, ValueError, "start_spread: need a number above 0, got -1"),
        ({"plateau_window": 4}, ValueError, "plateau_window: need a whole number of at least 8, got 4"),
        ({"optimizer": "lbfgs", "objective": "auto"}, ValueError, 'objective: need "gaussian" with optimizer "lbfgs"'),
        (
            {"optimizer": "lbfgs", "constraints": {"shift_um": Energy(1.0)}},
            ValueError,
            r"constraints\['shift_um'\]: need Box with optimizer",
        ),
        (
            {"optimizer": "lbfgs", "schedule": "linear"},
            ValueError,
            'schedule: need the default with optimizer "lbfgs", which finds the length of its steps, got',
        ),
        ({"checkpoint": 3}, TypeError, "path: need a str or a path, got int"),
        ({"checkpoint": "/absent/file"}, ValueError, "checkpoint: need a file in a folder that exists"),
        ({"checkpoint": "/"}, ValueError, "checkpoint: need a file in a folder that exists"),
        ({"schedule": lambda progress: math.nan}, ValueError, "schedule: need a share of at least 0, got nan"),
        ({"judge_method": "mine"}, ValueError, "judge_method: need one of 'auto', 'gaussian'"),
    ],
    ids=str,
)
def test_bad_settings(settings: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bowl(Bowl(150.0), n_steps=2, **settings)


def test_a_parameter_without_effect_is_named() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, scene: Tensor) -> Tensor:
            return scene

    with pytest.raises(ValueError, match="parameters: what is measured of these scenes does not depend on idle"):
        bowl(Deaf())


def test_a_share_that_blocks_cannot_hold_is_said() -> None:
    def result(*limits: object) -> DesignResult:
        return optimize_design(
            Mask(), GaussianNoise(1.0), mask_scenes(), objective="gaussian",
            constraints={"mask": limits},  # type: ignore[dict-item]
            n_steps=10, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    # 19 of 64 pixels are no whole number of blocks of 16.
    missed = result(Binary("annealing", share=0.3), MinimumFeature(4))
    assert "mask: 16 of 64 values are ones, not a share of 0.3" in " ".join(missed.warnings)
    assert missed.parameters["mask"].sum().item() == 16
    assert "do not meet" not in " ".join(missed.warnings)
    assert " of 64 values" not in " ".join(result(Binary("annealing", share=0.25), MinimumFeature(2)).warnings)


@pytest.mark.parametrize("method", ["annealing", "straight_through"])
@pytest.mark.parametrize(
    ("limits", "n_ones"),
    [
        ((Total(16.0),), 16),
        ((Energy(0.25),), 16),
        ((Energy(0.5, "rms"),), 16),
        ((Simplex(16.0),), 16),
        ((Total(16.5), MinimumFeature(2)), 16),
        ((Energy(0.3), MinimumFeature(4)), 16),
        ((Simplex(25.0), MinimumFeature(3)), 25),
    ],
    ids=str,
)
def test_zeros_and_ones_meet_a_budget_and_spend_it(method: str, limits: tuple[Constraint, ...], n_ones: int) -> None:
    """All pixels gain by opening, those of the last rows most; closed ones only tell so while annealing."""
    mask = masked(Binary(method), *limits)  # type: ignore[arg-type]
    assert set(mask.flatten().tolist()) == {0.0, 1.0}
    assert mask.sum().item() == n_ones
    if method == "annealing":
        assert mask[4:].sum().item() >= 0.8 * n_ones
    for limit in limits:
        assert torch.allclose(limit.project(mask), mask, atol=1e-9)


class Multiplied(Bowl):
    """A factor that no state_dict holds."""

    def __init__(self, factor: float) -> None:
        super().__init__(150.0)
        self.factor = factor

    def forward(self, scene: Tensor) -> Tensor:
        return self.factor * super().forward(scene)


def test_a_checkpoint_knows_what_attributes_and_settings_decide(tmp_path: Path) -> None:
    path = tmp_path / "file"
    bowl(Multiplied(1.0), n_steps=3, checkpoint=path)
    bowl(Multiplied(1.0), n_steps=3, checkpoint=path)
    with pytest.raises(ValueError, match=r"checkpoint: .* is of another run"):
        bowl(Multiplied(2.0), n_steps=3, checkpoint=path)
    with pytest.raises(ValueError, match=r"checkpoint: .* is of another run"):
        bowl(Multiplied(1.0), n_steps=3, checkpoint=path, schedule=lambda progress: 0.5)
    other = tmp_path / "other"
    bowl(Bowl(150.0), n_steps=3, checkpoint=other, objective=CriticObjective(hidden=4, n_features=2))
    with pytest.raises(ValueError, match=r"checkpoint: .* is of another run"):
        bowl(Bowl(150.0), n_steps=3, checkpoint=other, objective=CriticObjective(hidden=8, n_features=2))


def test_a_last_step_to_nowhere_is_taken_back() -> None:
    class Cliff(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

        def forward(self, scene: Tensor) -> Tensor:
            return torch.where(self.gain > 1.12, torch.nan, self.gain) * scene

    result = bowl(Cliff(), n_steps=2, schedule="constant", learning_rate={"gain": 0.1})
    assert any("not finite" in warning for warning in result.warnings)
    assert result.parameters["gain"].item() == pytest.approx(1.1, abs=1e-3)


def test_a_critic_interrupted_in_its_first_step_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitlens.design import objectives

    def interrupted(*arguments: object) -> Tensor:
        raise KeyboardInterrupt

    def run(path: Path) -> DesignResult:
        critic = CriticObjective(hidden=8, n_features=4)
        return bowl(Bowl(150.0), n_steps=4, objective=critic, checkpoint=path)

    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(objectives, "differentiable_sample", interrupted)
        assert len(run(tmp_path / "cut").history) == 0
    assert run(tmp_path / "cut").history == whole.history
