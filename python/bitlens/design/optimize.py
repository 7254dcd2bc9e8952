"""`optimize_design`: climb the information with gradients through encoder and noise."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from bitlens.densities._samples import samples
from bitlens.design import _parameters
from bitlens.design._adam import Adam
from bitlens.design._held_out import HeldOut
from bitlens.design.constraints import Box, Constraint, check_constraints, project_
from bitlens.design.objective import gaussian_information
from bitlens.design.result import DesignResult, DesignStep, Encoder
from bitlens.estimators._closed_form import check_moments
from bitlens.estimators._judge import stderr_of_difference_bits
from bitlens.estimators._seeds import derived_seed, take_seed
from bitlens.kernels import _backend
from bitlens.noise import NoiseModel

_HELD_OUT_SHARE = 0.25
_MINIMUM_JUDGED = 10
# The learning rate falls along a cosine to this share of its start.
_FINAL_RATE = 0.02


def optimize_design(
    encoder: Encoder,
    noise: NoiseModel,
    scenes: Tensor | NDArray[Any],
    *,
    parameters: Sequence[str] | None = None,
    objective: Literal["auto", "gaussian"] = "auto",
    n_steps: int = 200,
    constraints: Mapping[str, Constraint | Sequence[Constraint]] | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[DesignStep], None] | None = None,
    learning_rate: float | Mapping[str, float] = 0.05,
    batch_size: int | None = None,
    judge_scenes: Tensor | NDArray[Any] | None = None,
    judge_groups: Sequence[object] | NDArray[Any] | Tensor | None = None,
) -> DesignResult:
    """A copy of encoder and noise that carries more bits: Adam up `gaussian_information`, decaying steps.

    Args:
        scenes: (n, ...) what the encoder takes; `batch_size` random ones (default at most 512) a step.
        parameters: names of what may change, in encoder or noise; default all that require grad.
        constraints: name -> Box, Energy or several, met after each step beside what the modules themselves allow.
        generator: gives the seed, moves on by one draw; a fresh one with `result.seed` repeats any result.
        callback: gets every step; Ctrl-C ends the steps and returns what is done.
        learning_rate: first step size in the unit of the parameter, for all or by name.
        judge_scenes: scenes of other images, for `before` and `after`; default a quarter of `scenes`, held out.

    Raises:
        TypeError, ValueError: an argument that cannot be used, named with what it needs and what came.

    Reference: Pinkard et al. 2024, arXiv 2405.20559; Kingma and Ba 2015, arXiv 1412.6980.
    """
    if objective not in ("auto", "gaussian"):
        raise ValueError(f'objective: need "auto" or "gaussian", got {objective!r}')
    if not callable(encoder):
        raise TypeError(f"encoder: need a callable scene -> mean, got {type(encoder).__name__}")
    if not isinstance(noise, NoiseModel):
        raise TypeError(f"noise: need a noise model such as bitlens.GaussianNoise, got {type(noise).__name__}")
    check_moments(noise)
    if n_steps < 1:
        raise ValueError(f"n_steps: need at least 1, got {n_steps}")
    encoder, noise = copy.deepcopy(encoder), copy.deepcopy(noise)
    learned, frozen = _parameters.choose_parameters(encoder, noise, parameters)
    limits = check_constraints(constraints)
    rates = _rates(learning_rate, learned)
    _check_names("constraints", limits, learned)
    notes = _add_domains(limits, _parameters.domains(encoder, noise, learned))
    given_scenes = _scenes("scenes", scenes)
    seed = take_seed(generator)
    fitting, held_out, warnings = _split(given_scenes, judge_scenes, judge_groups, seed)
    n_batch = _batch_size(batch_size, fitting.shape[0])
    with _backend.reproducible():
        for name, several in limits.items():
            project_(name, learned[name], several)
        before = held_out.judge(encoder, noise)
        draws = torch.Generator().manual_seed(derived_seed(seed, "batches"))
        history, ends = _climb(encoder, noise, fitting, learned, limits, rates, n_steps, n_batch, draws, callback)
        warnings += notes + ends
        after = held_out.judge(encoder, noise)
    for parameter in frozen:
        parameter.requires_grad_(True)
    if after.estimate.bits <= before.estimate.bits:
        warnings.append("no gain: the design carries no more bits than its start on the scenes that judge it")
    return DesignResult(
        encoder=encoder,
        noise=noise,
        history=tuple(history),
        before=before.estimate,
        after=after.estimate,
        warnings=tuple(warnings),
        parameters=_parameters.copy_of(learned),
        seed=seed,
        gain_stderr_bits=stderr_of_difference_bits(before, after),
    )


def _add_domains(
    limits: dict[str, tuple[Constraint, ...]], domains: Mapping[str, tuple[float | None, float | None]]
) -> list[str]:
    """Append to `limits` what the modules themselves allow; says which parameters have no limit on one side."""
    notes = []
    for name, (lower, upper) in domains.items():
        if name not in limits and (lower is None or upper is None):
            notes.append(
                f"{name}: no constraint was given, and its own range is open ({lower} to {upper}): information may "
                "grow without bound along it"
            )
        limits[name] = (*limits.get(name, ()), Box(lower, upper))
    return notes


def _climb(
    encoder: Encoder,
    noise: NoiseModel,
    scenes: Tensor,
    learned: dict[str, nn.Parameter],
    limits: Mapping[str, Sequence[Constraint]],
    rates: Mapping[str, float],
    n_steps: int,
    n_batch: int,
    generator: torch.Generator,
    callback: Callable[[DesignStep], None] | None,
) -> tuple[list[DesignStep], list[str]]:
    # A box acts on each element alone; any other set may couple them.
    coupled = [name for name, several in limits.items() if not all(isinstance(limit, Box) for limit in several)]
    optimizer = Adam(learned, rates, coupled)
    largest_rate = max(rates.values())
    history: list[DesignStep] = []
    good = _parameters.copy_of(learned)
    progress = tqdm(total=n_steps, desc="design", unit="step", disable=None, leave=False)
    try:
        for step in range(n_steps):
            batch = scenes[torch.randperm(scenes.shape[0], generator=generator)[:n_batch]]
            optimizer.clear_gradients()
            mean = encoder(batch)
            objective = gaussian_information(mean, noise) / math.log(2)
            objective.backward()
            bits, norm = objective.item(), optimizer.gradient_norm()
            if not (math.isfinite(norm) and math.isfinite(bits)):
                _parameters.restore_(learned, good)
                return history, [
                    f"stopped at step {step}: the objective or its gradient is not finite; "
                    "the design is that of the last step where both were"
                ]
            good = _parameters.copy_of(learned)
            share = _FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * step / n_steps))
            row = DesignStep(step, bits, bits / mean[0].numel(), norm, share * largest_rate)
            history.append(row)
            optimizer.step(share)
            for name, several in limits.items():
                project_(name, learned[name], several)
            progress.set_postfix_str(f"{row.objective_bits_per_pixel:.3f} bits per pixel", refresh=False)
            progress.update()
            if callback is not None:
                callback(row)
    except KeyboardInterrupt:
        for name, several in limits.items():  # the interrupt may have come between a step and its projection
            project_(name, learned[name], several)
        return history, [f"interrupted after {len(history)} of {n_steps} steps: the design is as it was then"]
    finally:
        progress.close()
    return history, []


def _scenes(name: str, value: Tensor | NDArray[Any]) -> Tensor:
    tensor = samples(name, value)
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name}: need real floating-point numbers, got {tensor.dtype}")
    return tensor


def _split(
    scenes: Tensor,
    judge_scenes: Tensor | NDArray[Any] | None,
    judge_groups: Sequence[object] | NDArray[Any] | Tensor | None,
    seed: int,
) -> tuple[Tensor, HeldOut, list[str]]:
    """Scenes to climb on, those that judge, and what to say about them."""
    if judge_scenes is not None:
        judged = _scenes("judge_scenes", judge_scenes)
        if judged.shape[0] < _MINIMUM_JUDGED:
            raise ValueError(f"judge_scenes: need at least {_MINIMUM_JUDGED}, got {judged.shape[0]}")
        if scenes.shape[0] < 2:
            raise ValueError(f"scenes: need at least 2, got {scenes.shape[0]}")
        return scenes, HeldOut(judged, judge_groups, seed), []
    if judge_groups is not None:
        raise ValueError("judge_groups: need judge_scenes with them, got none")
    n_judged = max(_MINIMUM_JUDGED, round(_HELD_OUT_SHARE * scenes.shape[0]))
    if scenes.shape[0] < n_judged + 2:
        raise ValueError(f"scenes: need at least {n_judged + 2} without judge_scenes, got {scenes.shape[0]}")
    generator = torch.Generator().manual_seed(derived_seed(seed, "held-out scenes"))
    order = torch.randperm(scenes.shape[0], generator=generator)
    note = (
        f"before and after are judged on {n_judged} of the given scenes, held out: if these come from the same "
        "images as the others the gain may look larger than on new images; pass judge_scenes"
    )
    return scenes[order[n_judged:]], HeldOut(scenes[order[:n_judged]], None, seed), [note]


def _batch_size(given: int | None, n_scenes: int) -> int:
    if given is None:
        return min(512, n_scenes)
    if not 2 <= given <= n_scenes:
        raise ValueError(f"batch_size: need 2 to {n_scenes} scenes, got {given}")
    return given


def _rates(learning_rate: float | Mapping[str, float], learned: Mapping[str, nn.Parameter]) -> dict[str, float]:
    if isinstance(learning_rate, Mapping):
        _check_names("learning_rate", learning_rate, learned)
        missing = [name for name in learned if name not in learning_rate]
        if missing:
            raise ValueError(f"learning_rate: need one for each parameter, got none for {missing[0]!r}")
        rates = {name: float(rate) for name, rate in learning_rate.items()}
    else:
        rates = dict.fromkeys(learned, float(learning_rate))
    for name, rate in rates.items():
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"learning_rate: need a number above 0 for {name!r}, got {rate}")
    return rates


def _check_names(argument: str, given: Mapping[str, object], learned: Mapping[str, nn.Parameter]) -> None:
    for name in given:
        if name not in learned:
            raise ValueError(f"{argument}: {name!r} is not among what may change: {', '.join(learned)}")
