"""Discrete designs against all subsets, one by one."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bitlens.densities import GaussianDensity
from bitlens.design import DensityObjective, SubsetResult, choose_subset, gaussian_information
from bitlens.noise import GaussianNoise

pytestmark = pytest.mark.usefixtures("one_thread")

N = 8


def projections() -> Tensor:
    """Eight directions in six dimensions, some of them nearly alike."""
    generator = torch.Generator().manual_seed(4)
    free = torch.randn(4, 6, dtype=torch.float64, generator=generator)
    return torch.cat((free, free + 0.2 * torch.randn(4, 6, dtype=torch.float64, generator=generator)))


def scenes(n: int = 400) -> Tensor:
    return torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Projected(nn.Module):
    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, scene: Tensor) -> Tensor:
        return scene @ self.rows.mT


class Maker:
    """Counts the systems that are made."""

    def __init__(self, stop_at: int = 0) -> None:
        self.made: list[tuple[int, ...]] = []
        self.stop_at = stop_at

    def __call__(self, chosen: tuple[int, ...]) -> tuple[nn.Module, GaussianNoise]:
        self.made.append(chosen)
        if len(self.made) == self.stop_at:
            raise KeyboardInterrupt
        return Projected(projections()[list(chosen)]), GaussianNoise(0.5)


def bits(chosen: tuple[int, ...]) -> float:
    encoder, noise = Maker()(chosen)
    return gaussian_information(encoder(scenes()), noise).item() / math.log(2)


def choose(make: Maker, **settings: object) -> SubsetResult:
    return choose_subset(
        make,
        N,
        int(settings.pop("size", 3)),  # type: ignore[call-overload]
        scenes(),
        **({"generator": torch.Generator().manual_seed(0)} | settings),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("size", [1, 3, 5, 8])
def test_exchange_finds_the_best_of_all_subsets(size: int) -> None:
    best = max(itertools.combinations(range(N), size), key=bits)
    found = choose(Maker(), size=size)
    assert found.chosen == best
    assert found.objective_bits == pytest.approx(bits(best))
    assert found.converged
    assert [step.removed for step in found.history[:size]] == [None] * size


def test_greedy_takes_the_part_that_gains_most() -> None:
    chosen: tuple[int, ...] = ()
    for step in choose(Maker(), size=4, method="greedy").history:
        gains = {part: bits(tuple(sorted((*chosen, part)))) for part in range(N) if part not in chosen}
        assert step.added == max(gains, key=lambda part: gains[part])
        assert step.objective_bits == pytest.approx(max(gains.values()))
        chosen = (*chosen, step.added)


def test_lazy_greedy_asks_less_and_finds_the_same() -> None:
    all_asked, few_asked = Maker(), Maker()
    everything = choose(all_asked, size=5, method="greedy")
    lazily = choose(few_asked, size=5, method="greedy", submodular=True)
    assert lazily.chosen == everything.chosen
    assert lazily.n_evaluations < everything.n_evaluations
    assert len(few_asked.made) == lazily.n_evaluations


def test_required_parts_stay() -> None:
    found = choose(Maker(), required=[7, 2])
    assert {2, 7} <= set(found.chosen)
    best = max((subset for subset in itertools.combinations(range(N), 3) if {2, 7} <= set(subset)), key=bits)
    assert found.chosen == best


def test_the_lower_bound_sees_the_same_noise_for_all_subsets() -> None:
    first = choose(Maker(), objective="known_channel")
    assert choose(Maker(), objective="known_channel") == first
    assert bits(first.chosen) > bits((0, 4, 1)) - 0.1


def exact_bits(chosen: tuple[int, ...]) -> float:
    """Of white scenes through the rows of these parts in noise of standard deviation 0.5."""
    rows = projections()[list(chosen)]
    return 0.5 * torch.logdet(torch.eye(len(chosen)) + rows @ rows.mT / 0.25).item() / math.log(2)


def test_before_and_after_are_judged_on_other_scenes_by_another_estimator() -> None:
    other = torch.randn(800, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    found = choose(Maker(), judge_scenes=other, judge_method="gaussian", reference=[0, 4, 1])
    assert found.before is not None
    assert found.after is not None
    assert found.gain_stderr_bits is not None
    assert found.reference == (0, 1, 4)
    for subset, judged in ((found.reference, found.before), (found.chosen, found.after)):
        assert judged.n_samples == 800
        assert judged.stderr_bits is not None
        assert judged.bits == pytest.approx(exact_bits(subset), abs=4 * judged.stderr_bits)
    gain = found.after.bits - found.before.bits
    assert gain == pytest.approx(exact_bits(found.chosen) - exact_bits((0, 1, 4)), abs=4 * found.gain_stderr_bits)
    assert gain > 3 * found.gain_stderr_bits
    # Paired: less than if the ends had nothing in common.
    assert found.gain_stderr_bits < 0.9 * math.hypot(found.before.stderr_bits or 0, found.after.stderr_bits or 0)
    json.dumps(found.to_dict())
    assert choose(Maker()).before is None
    spread = choose(Maker(), judge_scenes=other, judge_method="gaussian", required=[7])
    assert spread.reference == (0, 3, 7)


def test_few_scenes_that_judge_are_floors() -> None:
    found = choose(Maker(), size=6, judge_scenes=scenes(12), judge_method="known_channel")
    assert found.before is not None
    assert found.after is not None
    assert found.before.bound == found.after.bound == "lower"
    assert found.after.bits <= math.log2(12) + 1e-9
    assert any("floors near their ceiling" in note for note in found.warnings)


def test_a_density_sees_what_a_covariance_does_not() -> None:
    """Part 0 tells four levels apart; part 1 has a Gaussian of a little more variance, which is fewer bits there."""
    levels = torch.tensor([-3.0, -1.0, 1.0, 3.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    four = levels[torch.randint(4, (600, 1), generator=generator)]
    normal = 0.9 * torch.randn(600, 1, dtype=torch.float64, generator=generator)
    both = torch.cat((four, normal), dim=1)

    def make(chosen: tuple[int, ...]) -> tuple[nn.Module, GaussianNoise]:
        return Projected(torch.eye(2, dtype=torch.float64)[list(chosen)]), GaussianNoise(0.15)

    # Exactly: 2 bits of the levels, 0.5 log2(1 + 36) = 2.6 of the Gaussian; the closed form says 3.9 of the levels.
    by_name = {
        objective: choose_subset(
            make,
            2,
            1,
            both,
            objective=objective,
            generator=torch.Generator().manual_seed(0),  # type: ignore[arg-type]
        )
        for objective in ("gaussian", "density")
    }
    assert by_name["gaussian"].chosen == (0,)
    assert by_name["density"].chosen == (1,)
    assert by_name["density"].objective_bits == pytest.approx(0.5 * math.log2(37), abs=0.15)
    own = choose_subset(
        make, 2, 1, both, objective=DensityObjective(GaussianDensity()), generator=torch.Generator().manual_seed(0)
    )
    assert own.chosen == (0,)
    with pytest.raises(ValueError, match="scenes: need at least 40 with a density, got 30"):
        choose_subset(make, 2, 1, both[:30], objective="density")


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    whole = choose(Maker())
    path = tmp_path / "file"
    stopped = choose(Maker(stop_at=13), checkpoint=path)
    assert stopped.warnings == (f"interrupted: {len(stopped.chosen)} of 3 were chosen then",)
    assert not stopped.converged
    again = Maker()
    resumed = choose(again, checkpoint=path)
    assert resumed.chosen == whole.chosen
    assert resumed.history == whole.history
    # One more tells the file of this system from that of another.
    assert len(again.made) == whole.n_evaluations - 11 + 1
    with pytest.raises(ValueError, match="of another run"):
        choose(Maker(), size=4, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="checkpoint: need a file written by choose_subset"):
        choose(Maker(), checkpoint=path)


def test_few_exchanges_are_said() -> None:
    found = choose(Maker(), size=4, max_exchanges=0)
    greedy = choose(Maker(), size=4, method="greedy")
    assert found.chosen == greedy.chosen
    assert found.converged or found.warnings == ("max_exchanges: stopped after 0, and another would still gain",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size: need a whole number from 1 to 8, got 0"),
        ({"size": 9}, "size: need a whole number from 1 to 8, got 9"),
        ({"method": "all"}, 'method: need "greedy" or "exchange"'),
        ({"objective": "critic"}, 'objective: need "gaussian", "known_channel", "density" or a DensityObjective'),
        ({"judge_method": "mine"}, "judge_method: need one of 'auto', 'gaussian'"),
        ({"reference": [1, 2, 3]}, "judge_scenes: need them with judge_groups or reference, got None"),
        ({"reference": [1, 2], "judge_scenes": scenes(40)}, "reference: need 3 indices, each once, got"),
        ({"judge_scenes": scenes(9)}, "judge_scenes: need at least 10, got 9"),
        ({"required": [8]}, "required: need a whole number from 0 to 7, got 8"),
        ({"required": [1, 1]}, "required: need each index once"),
        ({"required": [1, 2, 3, 4]}, "required: need at most 3 indices, got 4"),
    ],
    ids=str,
)
def test_bad_arguments(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(Maker(), **settings)


def test_what_is_made_must_be_a_system() -> None:
    with pytest.raises(TypeError, match=r"make: need \(encoder, noise\) for parts \[0\], got int"):
        choose_subset(lambda chosen: 3, N, 2, scenes())  # type: ignore[arg-type, return-value]


def test_a_checkpoint_knows_what_a_closure_decides(tmp_path: Path) -> None:
    def maker(std: float) -> Maker:
        def make(chosen: tuple[int, ...]) -> tuple[nn.Module, GaussianNoise]:
            return Projected(projections()[list(chosen)]), GaussianNoise(std)

        return make  # type: ignore[return-value]

    choose(maker(0.5), checkpoint=tmp_path / "file")
    with pytest.raises(ValueError, match="of another run"):
        choose(maker(0.1), checkpoint=tmp_path / "file")
