"""Several starts of one design, one after the other, kept in a checkpoint as they go."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from bitlens.design._checkpoint import Saved, save
from bitlens.design._climb import AdamClimb, Climb, LineSearchClimb, Problem
from bitlens.design.constraints import project
from bitlens.design.objectives import Objective
from bitlens.design.result import DesignStep, StartSummary
from bitlens.estimators._seeds import derived_seed

# Between two writes of a checkpoint.
_SAVE_EVERY_S = 30.0


class Run(NamedTuple):
    """How the starts are climbed, who is told, and what an earlier run has left in its checkpoint."""

    optimizer: str
    n_starts: int
    start_spread: float
    callback: Callable[[DesignStep], None] | None
    checkpoint: str | os.PathLike[str] | None
    fingerprint: str
    saved: Saved | None


def climb_all(
    problem: Problem, objective: Objective, first: Mapping[str, Tensor], scales: Mapping[str, float], run: Run
) -> tuple[Climb, tuple[StartSummary, ...], list[str]]:
    """The best start by the objective of its last steps, a line on each, and what to say about them."""
    climbs: list[Climb] = []
    kind: type[Climb] = LineSearchClimb if run.optimizer == "lbfgs" else AdamClimb
    notes: list[str] = []
    n_saved = 0 if run.saved is None else len(run.saved.states)
    progress = tqdm(total=problem.n_steps * run.n_starts, desc="design", unit="step", disable=None, leave=False)
    keeper = _Keeper(problem, run, climbs)
    try:
        for start in range(run.n_starts):
            free = _started(problem, first, scales, start, run.start_spread)
            climb: Climb = kind(problem, copy.deepcopy(objective), start, free)
            climbs.append(climb)
            if run.saved is not None and start < n_saved:
                climb.load_state(run.saved.states[start])
                climb.stopped, climb.converged = run.saved.stops[start]
                progress.update(len(climb.history))

            def told(row: DesignStep) -> None:
                progress.set_postfix_str(f"{row.objective_bits_per_pixel:.3f} bits per pixel", refresh=False)
                progress.update()
                if run.callback is not None:
                    run.callback(row)

            while not climb.finished:
                climb.advance(told)
                keeper.keep_now_and_then()
    except KeyboardInterrupt:
        if not climbs:
            raise
        climbs[-1].roll_back()
        done = sum(len(climb.history) for climb in climbs)
        notes.append(
            f"interrupted after {done} of {run.n_starts * problem.n_steps} steps: the design is as it was then"
        )
    finally:
        progress.close()
    for climb in climbs:
        climb.settle()
    keeper.keep()
    best = max(climbs, key=lambda climb: climb.final_bits())
    notes += [f"{name}: no effect on what is measured of these scenes" for name in sorted(best.without_effect)]
    if best.stopped and not best.converged:
        notes.append(best.stopped)
    starts = tuple(
        StartSummary(climb.start, len(climb.history), climb.final_bits(), climb.converged, climb.stopped)
        for climb in climbs
    )
    return best, starts, notes


class _Keeper:
    """Writes the checkpoint, if there is one."""

    def __init__(self, problem: Problem, run: Run, climbs: list[Climb]) -> None:
        self._problem, self._run, self._climbs = problem, run, climbs
        self._last = time.monotonic()

    def keep_now_and_then(self) -> None:
        if time.monotonic() - self._last > _SAVE_EVERY_S:
            self.keep()

    def keep(self) -> None:
        if self._run.checkpoint is None:
            return
        stops = tuple((climb.stopped, climb.converged) for climb in self._climbs)
        states = tuple(climb.state() for climb in self._climbs)
        save(self._run.checkpoint, self._run.fingerprint, Saved(self._problem.seed, stops, states))
        self._last = time.monotonic()


def _started(
    problem: Problem, first: Mapping[str, Tensor], scales: Mapping[str, float], start: int, spread: float
) -> dict[str, Tensor]:
    """The given start for 0, else one `spread` scales away from it at random, within what is allowed."""
    if start == 0:
        return {name: value.clone() for name, value in first.items()}
    draws = torch.Generator().manual_seed(derived_seed(problem.seed, f"start {start}"))
    found = {}
    for name, value in first.items():
        away = torch.randn(value.shape, generator=draws, dtype=torch.float64).to(value)
        found[name] = project(name, value + spread * scales[name] * away, problem.limits.get(name, ()))
    return found
