"""What studies that train end to end share: rates from a grid, and what a design costs together with its decoder."""

from __future__ import annotations

import functools
import itertools
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _design_study import DESIGNED, FEW_JUDGED, TRAINED, Settings, by_information
from torch import Tensor

from bitlens import report
from bitlens._files import replace_file
from bitlens.systems import ImagingSystem
from bitlens.validation import Reconstruction, measure_cost, train_end_to_end
from bitlens.validation._joint import JointStep
from bitlens.validation.decoder import TrainableDecoder

_WITH_DECODER = "designed by information, and its decoder"


class Trial(NamedTuple):
    """One training: rates of encoder and decoder, loss on the validation rows at the start and at its best look."""

    encoder_rate: float
    decoder_rate: float
    start_loss: float
    best_loss: float
    best_step: int


def tuned(
    name: str,
    start: ImagingSystem,
    scenes: Tensor,
    task: Reconstruction,
    groups: Any,
    decoder: TrainableDecoder,
    settings: Settings,
    rates: tuple[Sequence[float], Sequence[float]],
    *,
    n_steps: int,
    out: Path,
    seed: int = 0,
) -> Settings:
    """`settings` with the rates of encoder and decoder of least validation loss, of all pairs of `rates`.

    The one learned parameter is named in `settings`. Writes `name`_end_to_end.{txt,json}.
    """
    assert settings.parameters is not None
    (parameter,) = settings.parameters
    trials = []
    for encoder_rate, decoder_rate in itertools.product(*rates):
        tried = _with_rates(settings, parameter, encoder_rate, decoder_rate)
        history = _joint(start, scenes, task, groups, decoder, tried, n_steps, seed)
        best = min(history, key=lambda step: step.validation_loss)
        trials.append(Trial(encoder_rate, decoder_rate, history[0].validation_loss, best.validation_loss, best.step))
    chosen = min(trials, key=lambda trial: trial.best_loss)
    heads = ("rate of the encoder", "rate of the decoder", "loss at the start", "least loss", "at step")
    rows = tuple(
        (
            f"{trial.encoder_rate:g}",
            f"{trial.decoder_rate:g}",
            f"{trial.start_loss:.5g}",
            f"{trial.best_loss:.5g}",
            f"{trial.best_step}",
        )
        for trial in trials
    )
    text = report.to_text(report.Table("", heads, rows))
    print(f"{name}: end to end, {n_steps} steps at each pair of rates\n{text}")
    replace_file(out / f"{name}_end_to_end.txt", text.encode())
    found = {"chosen": chosen._asdict(), "trials": [trial._asdict() for trial in trials]}
    replace_file(out / f"{name}_end_to_end.json", json.dumps(found, indent=2).encode())
    return _with_rates(settings, parameter, chosen.encoder_rate, chosen.decoder_rate)


def _with_rates(settings: Settings, parameter: str, encoder_rate: float, decoder_rate: float) -> Settings:
    return replace(settings, end_to_end_rate={parameter: encoder_rate}, end_to_end_decoder_rate=decoder_rate)


def costs(
    name: str,
    start: ImagingSystem,
    scenes: Tensor,
    task: Reconstruction,
    groups: Any,
    decoder: TrainableDecoder,
    settings: Settings,
    measured: Mapping[str, Mapping[str, float]],
    *,
    out: Path,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """CPU seconds and peak bytes of both ways to a design, and of the information design with its decoder.

    Training end to end ends with a decoder, the other way does not: one trained on `scenes` after it is counted in the
    third row. `measured`: what `compare_designs` found. Writes `name`_costs.{txt,json}.
    """
    given = (start, scenes, task, groups, decoder)
    both = measure_cost(functools.partial(_with_decoder, *given, settings, seed))
    found = {
        DESIGNED: dict(measured[DESIGNED]),
        _WITH_DECODER: {"cpu_seconds": both.cpu_seconds, "peak_memory_bytes": both.peak_memory_bytes},
        TRAINED: dict(measured[TRAINED]),
    }
    for row in found.values():
        row["saved_time"] = 1 - row["cpu_seconds"] / found[TRAINED]["cpu_seconds"]
        row["saved_memory"] = 1 - row["peak_memory_bytes"] / found[TRAINED]["peak_memory_bytes"]
    heads = ("", "CPU seconds", "peak memory (MiB)", "time saved", "memory saved")
    rows = tuple(
        (
            key,
            f"{row['cpu_seconds']:.1f}",
            f"{row['peak_memory_bytes'] / 2**20:.0f}",
            f"{row['saved_time']:.0%}",
            f"{row['saved_memory']:.0%}",
        )
        for key, row in found.items()
    )
    text = report.to_text(report.Table("", heads, rows))
    print(f"{name}: what designs cost\n{text}")
    replace_file(out / f"{name}_costs.txt", text.encode())
    replace_file(out / f"{name}_costs.json", json.dumps(found, indent=2).encode())
    return found


def _with_decoder(
    start: ImagingSystem,
    scenes: Tensor,
    task: Reconstruction,
    groups: Any,
    decoder: TrainableDecoder,
    settings: Settings,
    seed: int,
) -> None:
    # As in the cost of the design alone: the judge is no part of making it.
    few = ImagingSystem(start.encoder, start.noise, start.scenes[:FEW_JUDGED])
    designed = by_information(start, scenes, few, None, replace(settings, judge_method="known_channel"), seed)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        measured = torch.cat([designed.noise.sample(designed.encoder(part), draws) for part in scenes.split(64)])
    decoder.fit(measured, task.targets(scenes), groups=groups, generator=draws)


def _joint(
    start: ImagingSystem,
    scenes: Tensor,
    task: Reconstruction,
    groups: Any,
    decoder: TrainableDecoder,
    settings: Settings,
    n_steps: int,
    seed: int,
) -> tuple[JointStep, ...]:
    """The looks of one training with the rates of `settings`; that the start was kept is for the caller to see."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="train_end_to_end: no gain")
        return train_end_to_end(
            start.encoder,
            start.noise,  # type: ignore[arg-type]
            scenes,
            task,
            decoder,
            parameters=settings.parameters,
            constraints=settings.constraints,
            n_steps=n_steps,
            batch_size=settings.end_to_end_batch,
            learning_rate=settings.end_to_end_rate,
            decoder_learning_rate=settings.end_to_end_decoder_rate,
            groups=groups,
            generator=torch.Generator().manual_seed(seed),
        ).history
