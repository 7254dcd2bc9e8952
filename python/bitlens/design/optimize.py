"""`optimize_design`: climb the information with gradients through encoder and noise."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from bitlens.densities._samples import samples
from bitlens.design import _checkpoint, _parameters
from bitlens.design._climb import Problem, put
from bitlens.design._held_out import End, HeldOut, few_scenes_notes, of_one_kind
from bitlens.design._starts import Run, climb_all
from bitlens.design.binary import Binary, check_ones, share_notes
from bitlens.design.constraints import Box, Constraint, check_constraints, project
from bitlens.design.objectives import OBJECTIVES, GaussianObjective, Objective, choose_objective
from bitlens.design.result import DesignResult, DesignStep, Encoder
from bitlens.estimators._closed_form import check_moments
from bitlens.estimators._inputs import whole_number
from bitlens.estimators._judge import METHODS, stderr_of_difference_bits
from bitlens.estimators._seeds import derived_seed, take_seed
from bitlens.kernels import _backend
from bitlens.noise import NoiseModel

_HELD_OUT_SHARE = 0.25
_MINIMUM_JUDGED = 10
# The learning rate falls to this share of its start.
_FINAL_RATE = 0.02
# First steps, in what counts as a large change of each parameter.
_FIRST_STEP = 0.05
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: _FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - (1 - _FINAL_RATE) * progress,
    "constant": lambda progress: 1.0,
}


def optimize_design(
    encoder: Encoder,
    noise: NoiseModel,
    scenes: Tensor | NDArray[Any],
    *,
    parameters: Sequence[str] | None = None,
    objective: Literal["auto", "gaussian", "known_channel", "density", "critic"] | Objective = "auto",
    n_steps: int = 200,
    constraints: Mapping[str, Constraint | Sequence[Constraint]] | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[DesignStep], None] | None = None,
    learning_rate: float | Mapping[str, float] | None = None,
    schedule: Literal["cosine", "linear", "constant"] | Callable[[float], float] = "cosine",
    optimizer: Literal["adam", "lbfgs"] = "adam",
    batch_size: int | None = None,
    n_starts: int = 1,
    start_spread: float = 1.0,
    plateau_window: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    judge_scenes: Tensor | NDArray[Any] | None = None,
    judge_groups: Sequence[object] | NDArray[Any] | Tensor | None = None,
    judge_method: str = "auto",
) -> DesignResult:
    """A copy of encoder and noise that carries more bits: steps up an estimate of the information, noise drawn afresh.

    Args:
        scenes: (n, ...) what the encoder takes; `batch_size` random ones (default at most 512) a step.
        parameters: names of what may change, in encoder or noise; default all that require grad.
        objective: a name, or one of `bitlens.design`'s; "auto" says why in `objective_reason`.
        constraints: name -> Box, Binary, ... or several, met after each step beside the modules' own domains.
        learning_rate: first step: by name in the parameter's unit; one number in its module's `parameter_scale`.
        optimizer: "lbfgs" searches along lines for its own steps: no `schedule`, only boxes, the Gaussian objective.
        n_starts: the given one, and others `start_spread` scales away at random; the best is kept.
        plateau_window: stop once this many steps gain nothing more (see `has_plateaued`); None: all steps.
        checkpoint: a file that keeps what is done: Ctrl-C ends the steps, the same call goes on.
        judge_scenes: scenes of other images, for `before` and `after`; default a quarter of `scenes`, held out.
        judge_method: of `estimate_information`; "auto" tries many densities, which may take longer than the steps. The
            scenes alone ("known_channel") show no more than log2 of their number: bits are then a floor, and say so.

    Raises:
        TypeError, ValueError: an argument that cannot be used, named with what it needs and what came.

    Reference: Pinkard et al. 2024, arXiv 2405.20559; Kingma and Ba 2015, arXiv 1412.6980.
    """
    _check_choices(encoder, noise, objective, optimizer, n_steps, judge_method)
    share = _schedule(schedule)
    n_starts = whole_number("n_starts", n_starts, 1)
    if not (math.isfinite(start_spread) and start_spread > 0):
        raise ValueError(f"start_spread: need a number above 0, got {start_spread}")
    if plateau_window is not None:
        plateau_window = whole_number("plateau_window", plateau_window, 8)
    encoder, noise = copy.deepcopy(encoder), copy.deepcopy(noise)
    learned, frozen = _parameters.choose_parameters(encoder, noise, parameters)
    limits = check_constraints(constraints)
    scales = _parameters.scales(encoder, noise, learned)
    rates = _parameters.learning_rates(learning_rate, _FIRST_STEP, scales)
    _parameters.check_names("constraints", limits, learned)
    notes = _add_domains(
        limits, _parameters.domains(encoder, noise, learned), _parameters.without_domain(encoder, noise, learned)
    )
    if optimizer == "lbfgs":
        _check_line_search(objective, limits, schedule)
        if plateau_window is not None:
            raise ValueError('plateau_window: need None with optimizer "lbfgs", which has a test of its own')
    for name, several in limits.items():
        check_ones(name, learned[name], several)
    given_scenes = _scenes("scenes", scenes)
    # What a line search keeps on file is more than it once was.
    kind = "lbfgs with memory" if optimizer == "lbfgs" else optimizer
    judged = {} if judge_scenes is None else {"judge_scenes": _scenes("judge_scenes", judge_scenes)}
    settings = {
        "parameters": list(learned),
        "limits": limits,
        "rates": rates,
        "steps": (n_steps, schedule if isinstance(schedule, str) else "own", kind, batch_size, plateau_window),
        "objective": objective if isinstance(objective, str) else objective.settings(),
        "schedule": [share(step / 8) for step in range(9)],
        "starts": (n_starts, start_spread),
        "judge": (judge_method, None if judge_groups is None else list(judge_groups)),
    }
    seed = take_seed(generator)
    fingerprint, saved = "", None
    if checkpoint is not None:
        fingerprint = _checkpoint.fingerprint_of(
            {"encoder": encoder, "noise": noise},
            {"scenes": given_scenes, **judged, **_checkpoint.behaviour_of(encoder, noise, given_scenes)},
            settings,
        )
        saved = _checkpoint.load(checkpoint, fingerprint)
        if saved is not None and generator is not None and saved.seed != seed:
            raise ValueError(f"generator: need one of seed {saved.seed} to go on with the checkpoint, got seed {seed}")
        seed = seed if saved is None else saved.seed
    run = Run(optimizer, n_starts, start_spread, callback, checkpoint, fingerprint, saved)
    fitting, held_out, warnings = _split(given_scenes, judged.get("judge_scenes"), judge_groups, seed, judge_method)
    n_batch = _batch_size(batch_size, fitting.shape[0])
    problem = Problem(encoder, noise, fitting, learned, limits, rates, n_steps, n_batch, share, plateau_window, seed)
    with _backend.reproducible():
        first = {name: project(name, learned[name], limits.get(name, ())) for name in learned}
        put(problem, first)
        initial = _parameters.copy_of(learned)
        means, first_noise = held_out.means(encoder), copy.deepcopy(noise)
        before = held_out.judge(means, noise)
        estimate = before.estimate
        warnings += few_scenes_notes(means, judge_method)
        chosen = choose_objective(
            objective,
            noise,
            means,
            estimate.bits,
            estimate.stderr_bits or 0.0,
            n_batch,
            floor=estimate.bound == "lower",
        )
        if learning_rate is None and chosen.objective.step_share != 1:
            rates = {name: chosen.objective.step_share * rate for name, rate in rates.items()}
            problem = problem._replace(rates=rates)
        best, starts, ends = climb_all(problem, chosen.objective, first, scales, run)
        warnings += notes + ends
        best.settle()
        ends_in = held_out.means(encoder)
        if not bool(ends_in.isfinite().all()):
            best.step_back()
            best.settle()
            ends_in = held_out.means(encoder)
            warnings.append("the last step led to means that are not finite: the design is that of the step before")
        warnings += _broken(best.problem.learned, limits)
        after = held_out.judge(ends_in, noise)
        before, after, untold = of_one_kind(held_out, End(before, means, first_noise), End(after, ends_in, noise))
        warnings += untold
    for parameter in frozen:
        parameter.requires_grad_(True)
    if after.estimate.bits <= before.estimate.bits and not untold:
        warnings.append("no gain: the design carries no more bits than its start on the scenes that judge it")
    return DesignResult(
        encoder=encoder,
        noise=noise,
        history=tuple(best.history),
        before=before.estimate,
        after=after.estimate,
        warnings=tuple(warnings),
        parameters=_parameters.copy_of(learned),
        seed=seed,
        gain_stderr_bits=stderr_of_difference_bits(before, after),
        initial_parameters=initial,
        objective=chosen.objective.name,
        objective_reason=chosen.reason,
        converged=best.converged,
        starts=starts,
    )


def _broken(learned: Mapping[str, Tensor], limits: Mapping[str, Sequence[Constraint]]) -> list[str]:
    """Constraints that zeros and ones made from free numbers do not meet, though the free numbers do."""
    notes = []
    for name, several in limits.items():
        if not any(isinstance(limit, Binary) for limit in several):
            continue
        value = learned[name].detach()
        others = [limit for limit in several if not isinstance(limit, Binary)]
        notes += [
            f"{name}: its zeros and ones do not meet {limit}, which holds for the free numbers alone"
            for limit in others
            if float((limit.project(value) - value).abs().max()) > 1e-6
        ]
        notes += share_notes(name, value, several)
    return notes


def _check_choices(
    encoder: object, noise: object, objective: object, optimizer: object, n_steps: int, judge_method: str
) -> None:
    if not (isinstance(objective, Objective) or objective in OBJECTIVES):
        raise ValueError(f"objective: need one of {', '.join(map(repr, OBJECTIVES))}, got {objective!r}")
    if optimizer not in ("adam", "lbfgs"):
        raise ValueError(f'optimizer: need "adam" or "lbfgs", got {optimizer!r}')
    if not callable(encoder):
        raise TypeError(f"encoder: need a callable scene -> mean, got {type(encoder).__name__}")
    if not isinstance(noise, NoiseModel):
        raise TypeError(f"noise: need a noise model such as bitlens.GaussianNoise, got {type(noise).__name__}")
    if objective == "gaussian":
        check_moments(noise)
    whole_number("n_steps", n_steps, 1)
    if judge_method not in METHODS:
        raise ValueError(f"judge_method: need one of {', '.join(map(repr, METHODS))}, got {judge_method!r}")


def _check_line_search(objective: object, limits: Mapping[str, Sequence[Constraint]], schedule: object) -> None:
    """A line search needs one function of the design, without noise, and boxes; how far it steps is its own affair."""
    if schedule != "cosine":
        raise ValueError(
            f'schedule: need the default with optimizer "lbfgs", which finds the length of its steps, got {schedule!r}'
        )
    if not (objective == "gaussian" or isinstance(objective, GaussianObjective)):
        raise ValueError(
            f'objective: need "gaussian" with optimizer "lbfgs", whose line searches see no noise, got {objective!r}'
        )
    for name, several in limits.items():
        for limit in several:
            if not isinstance(limit, Box):
                raise ValueError(f'constraints[{name!r}]: need Box with optimizer "lbfgs", got {limit!r}')


def _schedule(given: object) -> Callable[[float], float]:
    if isinstance(given, str) and given in SCHEDULES:
        return SCHEDULES[given]
    if isinstance(given, str) or not callable(given):
        raise ValueError(
            f"schedule: need one of {', '.join(map(repr, SCHEDULES))}, or a function of the share of steps done, "
            f"got {given!r}"
        )
    return given


def _add_domains(
    limits: dict[str, tuple[Constraint, ...]],
    domains: Mapping[str, tuple[float | None, float | None]],
    without: Sequence[str],
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
    notes += [
        f"{name}: no constraint was given, and its module states no parameter_domain: information may grow without "
        "bound along it"
        for name in without
        if name not in limits
    ]
    return notes


def _scenes(name: str, value: Tensor | NDArray[Any]) -> Tensor:
    tensor = samples(name, value)
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name}: need real floating-point numbers, got {tensor.dtype}")
    return tensor


def _split(
    scenes: Tensor,
    judge_scenes: Tensor | None,
    judge_groups: Sequence[object] | NDArray[Any] | Tensor | None,
    seed: int,
    judge_method: str,
) -> tuple[Tensor, HeldOut, list[str]]:
    """Scenes to climb on, those that judge, and what to say about them."""
    if judge_scenes is not None:
        if judge_scenes.shape[0] < _MINIMUM_JUDGED:
            raise ValueError(f"judge_scenes: need at least {_MINIMUM_JUDGED}, got {judge_scenes.shape[0]}")
        if scenes.shape[0] < 2:
            raise ValueError(f"scenes: need at least 2, got {scenes.shape[0]}")
        return scenes, HeldOut(judge_scenes, judge_groups, seed, judge_method), []
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
    return scenes[order[n_judged:]], HeldOut(scenes[order[:n_judged]], None, seed, judge_method), [note]


def _batch_size(given: int | None, n_scenes: int) -> int:
    if given is None:
        return min(512, n_scenes)
    if not 2 <= given <= n_scenes:
        raise ValueError(f"batch_size: need 2 to {n_scenes} scenes, got {given}")
    return given
