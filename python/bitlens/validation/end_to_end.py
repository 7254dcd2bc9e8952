"""Encoder and decoder trained together on the task: what designing by information is held against."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitlens import __version__
from bitlens.densities._samples import samples
from bitlens.design import _parameters
from bitlens.design.binary import check_ones
from bitlens.design.constraints import Box, Constraint, check_constraints
from bitlens.estimators._seeds import derived_seed, take_seed
from bitlens.kernels import _backend
from bitlens.noise import GaussianNoise, NoiseModel
from bitlens.noise._surrogate import differentiable_sample
from bitlens.validation._joint import Design, JointSchedule, JointStep, train_jointly
from bitlens.validation.classifier import Classifier, ClassifierDecoder
from bitlens.validation.compare import test_share
from bitlens.validation.cost import PeakMemory
from bitlens.validation.decoder import (
    FittedDecoder,
    GroupLabels,
    Rows,
    TrainableDecoder,
    group_codes,
    split_rows,
    validation_split,
)
from bitlens.validation.tasks import Reconstruction, Task
from bitlens.validation.unet import UNetDecoder

_SURROGATE_PHOTONS = 10.0
# First steps of the design, in what counts as a large change of each parameter.
_FIRST_STEP = 0.01


@final
@dataclass(frozen=True, eq=False)
class EndToEndResult:
    """Encoder, noise and decoder as trained together, and what that cost.

    `scores`: of the decoder on the test scenes, fresh noise. `seconds`: CPU time of the joint steps;
    `peak_memory_bytes`: resident memory at its peak above that at its start, in this process (`measure_cost` runs a
    call in a fresh one). `parameters`: the learned values by name.
    """

    encoder: Callable[[Tensor], Tensor]
    noise: NoiseModel
    decoder: FittedDecoder
    history: tuple[JointStep, ...]
    scores: Mapping[str, float]
    seconds: float
    peak_memory_bytes: int
    parameters: Mapping[str, Tensor]
    seed: int
    version: str
    warnings: tuple[str, ...]


def train_end_to_end(
    encoder: Callable[[Tensor], Tensor],
    noise: NoiseModel,
    scenes: Tensor | NDArray[Any],
    task: Task,
    decoder: TrainableDecoder | None = None,
    *,
    parameters: Sequence[str] | None = None,
    constraints: Mapping[str, Constraint | Sequence[Constraint]] | None = None,
    n_steps: int = 500,
    batch_size: int = 32,
    learning_rate: float | Mapping[str, float] | None = None,
    decoder_learning_rate: float = 3e-3,
    groups: GroupLabels | None = None,
    n_test: float | int = 0.25,
    generator: torch.Generator | None = None,
) -> EndToEndResult:
    """A copy of encoder and noise trained with a decoder on the task, in one graph: Adam, fresh noise each step.

    Args:
        scenes: (n, ...), a part of which (whole groups) validates and another tests.
        decoder: the network and its loss; default `UNetDecoder()` or `ClassifierDecoder()`. It starts at what `build`
            gives for measurements of the first design, its linear estimate included, and all of it is trained.
        parameters, constraints: as in `bitlens.optimize_design`, met after every step.
        learning_rate: of the design: by name in the parameter's unit; one number, default 0.01, in its module's
            `parameter_scale`. `decoder_learning_rate`: of the decoder; its linear estimate moves by shares of its size.

    Raises:
        TypeError, ValueError: an argument that cannot be used, named with what it needs and what came.
        UserWarning: no look was better than the start, which then is the result (a warning; `warnings` holds it too).

    Reference: Sitzmann et al. 2018, doi:10.1145/3197517.3201333.
    """
    if decoder is None:
        decoder = UNetDecoder() if isinstance(task, Reconstruction) else ClassifierDecoder()
    if not isinstance(decoder, TrainableDecoder):
        raise TypeError(f"decoder: need a network such as UNetDecoder, got {type(decoder).__name__}")
    if not isinstance(noise, NoiseModel):
        raise TypeError(f"noise: need a noise model, got {type(noise).__name__}")
    for name, number in (("n_steps", n_steps), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name}: need at least 1, got {number}")
    given = samples("scenes", scenes)
    target = task.targets(given)
    share = test_share(n_test, len(given))
    encoder, noise = copy.deepcopy(encoder), copy.deepcopy(noise)
    learned = _parameters.choose_parameters(encoder, noise, parameters).learned
    rates = _parameters.learning_rates(learning_rate, _FIRST_STEP, _parameters.scales(encoder, noise, learned))
    seed = take_seed(generator)
    labels = group_codes(groups, len(given))
    rest, test = split_rows(labels, share, derived_seed(seed, "test scenes 0"))
    rows = Rows(*(rest[part] for part in validation_split(labels[rest], len(rest), seed)))
    design = Design(learned, _limits(encoder, noise, learned, constraints), rates)
    with _backend.reproducible():
        design.put(1.0)

        def measured(rows: Tensor, source: torch.Generator) -> Tensor:
            return differentiable_sample(noise, encoder(given[rows]), source).to(torch.float32)

        def all_measured(rows: Tensor, purpose: str) -> Tensor:
            source = torch.Generator().manual_seed(derived_seed(seed, purpose))
            with torch.no_grad():
                return torch.cat([measured(part, source) for part in rows.split(64)])

        weights = torch.Generator().manual_seed(derived_seed(seed, "decoder"))
        # Its linear estimate sees no validation row: of those it would be too good for any later look to be better.
        start = all_measured(rows.training, "noise of the start")
        network = decoder.build(start, target[rows.training], groups=labels[rows.training], generator=weights)
        del start
        # A squared error is counted in variances of the target, so that the decoder's rate fits any unit.
        unit = float(target.double().var()) if target.is_floating_point() else 1.0

        def loss(rows: Tensor, source: torch.Generator) -> Tensor:
            return decoder.loss(network(measured(rows, source)), target[rows]) / max(unit, 1e-30)

        memory, started = PeakMemory(), time.process_time()
        memory.start()
        schedule = JointSchedule(n_steps, batch_size, decoder_learning_rate)
        history, notes = train_jointly(design, network, loss, rows, schedule, seed)
        seconds, peak = time.process_time() - started, memory.bytes()
        if not any(step.validation_loss < history[0].validation_loss for step in history[1:]):
            notes.append(_kept_start(history, schedule))
            warnings.warn(f"train_end_to_end: {notes[-1]}", UserWarning, stacklevel=2)
        if isinstance(network, Classifier):
            network.calibrate(all_measured(rows.validation, "calibration noise"), target[rows.validation])
        fitted = FittedDecoder(network)
        scores = task.score(fitted(all_measured(test, "test noise")), target[test], data_range=task.range_of(target))
        with torch.no_grad():
            dim = encoder(given[:64]).mean().item()
    if not isinstance(noise, GaussianNoise) and dim < _SURROGATE_PHOTONS:
        notes.append(
            f"{dim:.3g} photo-electrons a pixel: the gradient through the counts is that of a Gaussian surrogate, "
            f"too rough below {_SURROGATE_PHOTONS:g}"
        )
    return EndToEndResult(
        encoder=encoder,
        noise=noise,
        decoder=fitted,
        history=tuple(history),
        scores=scores,
        seconds=seconds,
        peak_memory_bytes=peak,
        parameters=_parameters.copy_of(learned),
        seed=seed,
        version=__version__,
        warnings=tuple(notes),
    )


def _kept_start(history: Sequence[JointStep], schedule: JointSchedule) -> str:
    after = min((step.validation_loss for step in history[1:]), default=math.nan)
    return (
        f"no gain, the result is the start: loss on the validation rows {history[0].validation_loss:.4g} at step 0, at "
        f"best {after:.4g} in {schedule.n_steps} steps after it. Lower decoder_learning_rate "
        f"({schedule.learning_rate:g}) if that loss rises from the first look on, change learning_rate, take more "
        "n_steps, a larger batch_size or more scenes"
    )


def _limits(
    encoder: Callable[[Tensor], Tensor],
    noise: NoiseModel,
    learned: dict[str, nn.Parameter],
    constraints: Mapping[str, Constraint | Sequence[Constraint]] | None,
) -> dict[str, tuple[Constraint, ...]]:
    limits = check_constraints(constraints)
    _parameters.check_names("constraints", limits, learned)
    for name, (lower, upper) in _parameters.domains(encoder, noise, learned).items():
        limits[name] = (*limits.get(name, ()), Box(lower, upper))
    for name, several in limits.items():
        check_ones(name, learned[name], several)
    return limits
