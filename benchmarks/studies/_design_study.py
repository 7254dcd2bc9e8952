"""What the studies of designs share: designed by information against its start, and against training end to end."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from _validation_study import Study, run_study
from torch import Tensor

from bitlens import optimize_design, plots, report
from bitlens._files import replace_file
from bitlens.design import Constraint, DesignResult, Objective
from bitlens.systems import ImagingSystem
from bitlens.validation import Classification, Reconstruction, measure_cost, train_end_to_end
from bitlens.validation.decoder import TrainableDecoder

Task = Reconstruction | Classification
Limits = Mapping[str, Constraint | Sequence[Constraint]]
# Scenes of a judge that nobody reads, where only the design or its cost is wanted.
FEW_JUDGED = 40
START, DESIGNED, TRAINED = "start", "designed by information", "trained end to end"


@dataclass(frozen=True)
class Settings:
    """How a design is made, by information and end to end.

    Learning rates as `optimize_design` and `train_end_to_end` take them; those of training end to end are its own.
    """

    parameters: Sequence[str] | None = None
    constraints: Limits | None = None
    n_steps: int = 200
    batch_size: int | None = None
    objective: str | Objective = "auto"
    learning_rate: float | Mapping[str, float] | None = None
    n_starts: int = 1
    judge_method: str = "auto"
    end_to_end_steps: int = 500
    end_to_end_batch: int = 32
    end_to_end_rate: float | Mapping[str, float] | None = None
    end_to_end_decoder_rate: float = 3e-3


@dataclass(frozen=True)
class Comparison:
    """Bits and scores of the start, the information design and, where there is one, the end-to-end design.

    `gain_sigmas`: bits gained over their standard error, paired on scenes that no step saw. `scores`: name -> design ->
    mean over seeds of a decoder trained anew for each design; `score_gain`: that of the information design less the
    start's, for each seed. `cost`: CPU seconds and peak bytes of making each design. `systems`: the start and the
    designs, before the scenes that judge, by the names of `scores`; not in the JSON.
    """

    gain_bits: float
    gain_stderr_bits: float
    gain_sigmas: float
    objective: str
    objective_reason: str
    scores: dict[str, dict[str, float]]
    score_gain: tuple[float, ...]
    cost: dict[str, dict[str, float]]
    warnings: tuple[str, ...]
    systems: Mapping[str, ImagingSystem] = field(default_factory=dict, repr=False)

    @property
    def saved_memory(self) -> float | None:
        """Share of the end-to-end training's peak memory that designing by information does without."""
        return self._saved("peak_memory_bytes")

    @property
    def saved_time(self) -> float | None:
        """The same of its CPU time."""
        return self._saved("cpu_seconds")

    def to_dict(self) -> dict[str, Any]:
        """All but the systems, as JSON takes it."""
        values = asdict(replace(self, systems={}))
        del values["systems"]
        return values

    def _saved(self, what: str) -> float | None:
        if TRAINED not in self.cost:
            return None
        return 1.0 - self.cost[DESIGNED][what] / self.cost[TRAINED][what]


def by_information(
    start: ImagingSystem,
    scenes: Tensor,
    judged: ImagingSystem,
    judge_groups: Any,
    settings: Settings,
    seed: int,
) -> DesignResult:
    """The design that carries more bits about `scenes`, judged on the scenes of `judged`."""
    return optimize_design(
        start.encoder,
        start.noise,  # type: ignore[arg-type]
        scenes,
        parameters=settings.parameters,
        constraints=settings.constraints,
        objective=settings.objective,  # type: ignore[arg-type]
        n_steps=settings.n_steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        n_starts=settings.n_starts,
        judge_scenes=judged.scenes,
        judge_groups=judge_groups,
        judge_method=settings.judge_method,
        generator=torch.Generator().manual_seed(seed),
    )


def compare_designs(
    name: str,
    start: ImagingSystem,
    design_scenes: Tensor,
    task: Task,
    settings: Settings,
    *,
    quick: bool,
    out: Path,
    groups: Any = None,
    design_task: Task | None = None,
    design_groups: Any = None,
    decoder: TrainableDecoder | None = None,
    n_seeds: int = 3,
    method: str = "auto",
    seed: int = 0,
) -> tuple[Comparison, Study]:
    """Design on `design_scenes`, then judge start and designs on `start.scenes` with `task`, a new decoder for each.

    Writes `name`_design.png, `name`_comparison.{txt,json} and `name`_designs.{txt,png,json} into `out`. With a
    `design_task`, the task on the scenes designed on, a third design is trained end to end with the same kind of
    decoder; what each design costs is measured in processes of their own, one after the other.
    """
    if quick:
        settings = _shorter(settings)
    out.mkdir(parents=True, exist_ok=True)
    designed = by_information(start, design_scenes, start, groups, settings, seed)
    systems = {START: start, DESIGNED: ImagingSystem(designed.encoder, designed.noise, start.scenes)}
    cost: dict[str, dict[str, float]] = {}
    notes: tuple[str, ...] = ()
    if design_task is not None:
        # The objective that "auto" chose by the judge, which the measured run has not.
        chosen = replace(settings, objective=designed.objective) if settings.objective == "auto" else settings
        informed = measure_cost(functools.partial(_informed, start, design_scenes, groups, chosen, seed))
        trained = measure_cost(
            functools.partial(_trained, start, design_scenes, design_task, design_groups, decoder, settings, seed)
        )
        for key, measured in ((DESIGNED, informed), (TRAINED, trained)):
            cost[key] = {"cpu_seconds": measured.cpu_seconds, "peak_memory_bytes": measured.peak_memory_bytes}
        encoder, noise, notes = trained.value
        systems[TRAINED] = ImagingSystem(encoder, noise, start.scenes)
    study = run_study(
        f"{name}_designs",
        systems,
        task,
        {},
        quick=quick,
        out=out,
        groups=groups,
        decoder=decoder,
        n_seeds=n_seeds,
        method=method,
        seed=seed,
        bound=False,
    )
    result = study.result
    main = result.score_names[0]
    gains = [
        result.values(main)[result.designs.index(DESIGNED)][each]
        - result.values(main)[result.designs.index(START)][each]
        for each in range(result.n_seeds)
    ]
    gain = designed.after.bits - designed.before.bits
    comparison = Comparison(
        gain_bits=gain,
        gain_stderr_bits=designed.gain_stderr_bits,
        gain_sigmas=gain / designed.gain_stderr_bits if designed.gain_stderr_bits > 0 else 0.0,
        objective=designed.objective,
        objective_reason=designed.objective_reason,
        scores={score: dict(result.mean(score)) for score in result.score_names},
        score_gain=tuple(float(each) for each in gains),
        cost=cost,
        warnings=(*designed.warnings, *(f"end to end: {note}" for note in notes)),
        systems=systems,
    )
    replace_file(out / f"{name}_design.png", report.to_png(plots.design_overview(designed)))
    text = summary(name, comparison)
    print(text)
    values = comparison.to_dict() | {"saved_memory": comparison.saved_memory, "saved_time": comparison.saved_time}
    replace_file(out / f"{name}_comparison.json", json.dumps(values, indent=2, allow_nan=False).encode())
    replace_file(out / f"{name}_comparison.txt", text.encode())
    return comparison, study


def summary(name: str, comparison: Comparison) -> str:
    """The comparison in words."""
    lines = [
        f"{name}: {comparison.gain_bits:+.2f} +- {comparison.gain_stderr_bits:.2f} bits per image "
        f"({comparison.gain_sigmas:.1f} standard errors), objective {comparison.objective} "
        f"({comparison.objective_reason})"
    ]
    for score, values in comparison.scores.items():
        lines.append(f"  {score}: " + ", ".join(f"{design} {value:.4g}" for design, value in values.items()))
    lines.append(f"  gain of the main score by seed: {', '.join(f'{gain:+.4g}' for gain in comparison.score_gain)}")
    for design, values in comparison.cost.items():
        lines.append(
            f"  {design}: {values['cpu_seconds']:.1f} CPU s, {values['peak_memory_bytes'] / 2**20:.0f} MiB at the peak"
        )
    if comparison.saved_memory is not None and comparison.saved_time is not None:
        lines.append(f"  saved: {comparison.saved_memory:.0%} of the memory, {comparison.saved_time:.0%} of the time")
    return "\n".join(lines) + "\n"


def _informed(start: ImagingSystem, scenes: Tensor, groups: Any, settings: Settings, seed: int) -> dict[str, Tensor]:
    # The judge is no part of making the design: few scenes and the simplest density, whose result nobody reads.
    few = ImagingSystem(start.encoder, start.noise, start.scenes[:FEW_JUDGED])
    settings = replace(settings, judge_method="known_channel")
    return dict(by_information(start, scenes, few, None, settings, seed).parameters)


def _trained(
    start: ImagingSystem,
    scenes: Tensor,
    task: Task,
    groups: Any,
    decoder: TrainableDecoder | None,
    settings: Settings,
    seed: int,
) -> tuple[Any, Any, tuple[str, ...]]:
    result = train_end_to_end(
        start.encoder,
        start.noise,  # type: ignore[arg-type]
        scenes,
        task,
        decoder,
        parameters=settings.parameters,
        constraints=settings.constraints,
        n_steps=settings.end_to_end_steps,
        batch_size=settings.end_to_end_batch,
        learning_rate=settings.end_to_end_rate,
        decoder_learning_rate=settings.end_to_end_decoder_rate,
        groups=groups,
        generator=torch.Generator().manual_seed(seed),
    )
    return result.encoder, result.noise, result.warnings


def _shorter(settings: Settings) -> Settings:
    return replace(settings, n_steps=min(settings.n_steps, 8), end_to_end_steps=min(settings.end_to_end_steps, 8))
