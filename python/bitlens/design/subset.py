"""`choose_subset`: which antennas, angles, patterns or masks to take, by the information they give together."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, final

import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from bitlens.densities._samples import samples
from bitlens.design._checkpoint import SavedSubset, behaviour_of, fingerprint_of, load_subset, save_subset
from bitlens.design._held_out import End, HeldOut, Labels, few_scenes_notes, of_one_kind
from bitlens.design.objectives import Batch, DensityObjective, GaussianObjective, KnownChannelObjective, Objective
from bitlens.estimators import InformationEstimate
from bitlens.estimators._inputs import whole_number
from bitlens.estimators._judge import METHODS, Judged, stderr_of_difference_bits
from bitlens.estimators._seeds import derived_seed, take_seed
from bitlens.kernels import _backend
from bitlens.noise import NoiseModel

Encoder = Callable[[Tensor], Tensor]
Subset = tuple[int, ...]
_ENCODE_BATCH = 256
_SMALLEST_GAIN_BITS = 1e-9
_LEAST_FOR_DENSITY, _FEWEST_JUDGED = 40, 10


@final
@dataclass(frozen=True)
class SubsetStep:
    """One change of the subset: what came in, what went out (None for a first fill), and the bits then."""

    added: int
    removed: int | None
    objective_bits: float


@final
@dataclass(frozen=True)
class SubsetResult:
    """`chosen` (sorted), its objective in bits per image, the way there, and how many subsets were evaluated.

    `converged`: no single exchange that was allowed gains anything ("exchange"), or all members are in ("greedy").
    With `judge_scenes`, `before` and `after` are independent estimates of `reference` and of `chosen` on them, with the
    same noise draws, and `gain_stderr_bits` the standard error of after - before, scene by scene; None without.
    """

    chosen: Subset
    objective_bits: float
    history: tuple[SubsetStep, ...]
    n_evaluations: int
    converged: bool
    objective: str
    seed: int
    warnings: tuple[str, ...]
    reference: Subset | None = None
    before: InformationEstimate | None = None
    after: InformationEstimate | None = None
    gain_stderr_bits: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return asdict(self)


def choose_subset(
    make: Callable[[Subset], tuple[Encoder, NoiseModel]],
    n_candidates: int,
    size: int,
    scenes: Tensor | NDArray[Any],
    *,
    method: Literal["greedy", "exchange"] = "exchange",
    objective: Literal["gaussian", "known_channel", "density"] | Objective = "gaussian",
    required: Sequence[int] = (),
    submodular: bool = False,
    max_exchanges: int = 100,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    judge_scenes: Tensor | NDArray[Any] | None = None,
    judge_groups: Labels = None,
    judge_method: str = "auto",
    reference: Sequence[int] | None = None,
) -> SubsetResult:
    """`size` of `n_candidates` parts of a system whose measurement carries the most bits about the scenes.

    "greedy" adds the part that gains most until the subset is full; "exchange" goes on to swap one part for another
    while that gains. All subsets see the same scenes and the same noise.

    Args:
        make: indices, sorted -> (encoder, noise) of the system of those parts.
        objective: a name, or a `DensityObjective`: fitted anew for each subset to one half of the scenes.
        required: indices that are always in.
        submodular: a part gains less the more others there are, as where parts are independent given the scene: greedy
            then asks only the parts that may still win, with the same result.
        max_exchanges: swaps at most. checkpoint: a file that keeps every evaluation; the same call goes on.
        judge_scenes: other scenes, that `before` and `after` are judged on; judge_groups, judge_method: as in
            `optimize_design`. reference: what `before` is of; default required and evenly spread indices.

    Raises:
        TypeError, ValueError: an argument that cannot be used, named with what it needs and what came.

    Reference: Nemhauser et al. 1978, doi:10.1007/BF01588971; Minoux 1978, doi:10.1007/BFb0006528 (lazy greedy).
    """
    n_candidates = whole_number("n_candidates", n_candidates, 1)
    size = whole_number("size", size, 1, n_candidates)
    max_exchanges = whole_number("max_exchanges", max_exchanges, 0)
    if method not in ("greedy", "exchange"):
        raise ValueError(f'method: need "greedy" or "exchange", got {method!r}')
    climbed = _objective(objective)
    if judge_method not in METHODS:
        raise ValueError(f"judge_method: need one of {', '.join(map(repr, METHODS))}, got {judge_method!r}")
    if judge_scenes is None and (judge_groups is not None or reference is not None):
        raise ValueError("judge_scenes: need them with judge_groups or reference, got None")
    if not callable(make):
        raise TypeError(f"make: need a callable indices -> (encoder, noise), got {type(make).__name__}")
    kept = _required(required, n_candidates, size)
    given = samples("scenes", scenes)
    if isinstance(climbed, DensityObjective) and len(given) < _LEAST_FOR_DENSITY:
        raise ValueError(f"scenes: need at least {_LEAST_FOR_DENSITY} with a density, got {len(given)}")
    judges = None if judge_scenes is None else samples("judge_scenes", judge_scenes)
    if judges is not None and len(judges) < _FEWEST_JUDGED:
        raise ValueError(f"judge_scenes: need at least {_FEWEST_JUDGED}, got {len(judges)}")
    compared = _reference(reference, kept, n_candidates, size)
    seed = take_seed(generator)
    fingerprint = ""
    known: dict[Subset, float] = {}
    if checkpoint is not None:
        named = objective if isinstance(objective, str) else objective.settings()
        settings = (n_candidates, size, method, named, kept, submodular)
        encoder, noise = _system(make, tuple(range(n_candidates))[:size])
        behaviour = behaviour_of(encoder, noise, given)
        fingerprint = fingerprint_of({"make": make}, {"scenes": given, **behaviour}, {"settings": settings})
        saved = load_subset(checkpoint, fingerprint)
        if saved is not None:
            if generator is not None and saved.seed != seed:
                raise ValueError(
                    f"generator: need one of seed {saved.seed} to go on with the checkpoint, got seed {seed}"
                )
            seed, known = saved.seed, dict(saved.values)
    values = _Values(make, given, climbed, seed)
    values.known |= known
    held_out = None if judges is None else HeldOut(judges, judge_groups, seed, judge_method)
    # Before the search, so that scenes or a method that cannot be judged by are refused first.
    first = None if held_out is None else _end(held_out, *_system(make, compared))
    history: list[SubsetStep] = []
    chosen: Subset = kept
    warnings: list[str] = []
    converged = False
    progress = tqdm(desc=f"subset of {size}", unit=" subsets", disable=None, leave=False)

    def value(subset: Subset) -> float:
        bits = values(subset)
        progress.set_postfix_str(f"{len(chosen)} chosen", refresh=False)
        progress.update()
        return bits

    def keep() -> None:
        if checkpoint is not None:
            save_subset(checkpoint, fingerprint, SavedSubset(seed, values.known))

    try:
        with torch.no_grad(), _backend.reproducible():
            for step in _greedy(value, n_candidates, size, chosen, submodular):
                chosen = _with(chosen, step.added)
                history.append(step)
                keep()
            converged = method == "greedy"
            if method == "exchange":
                for step in _exchanges(value, n_candidates, chosen, kept):
                    if len(history) - (size - len(kept)) >= max_exchanges:
                        warnings.append(f"max_exchanges: stopped after {max_exchanges}, and another would still gain")
                        break
                    assert step.removed is not None
                    chosen = _with(_without(chosen, step.removed), step.added)
                    history.append(step)
                    keep()
                else:
                    converged = True
    except KeyboardInterrupt:
        warnings.append(f"interrupted: {len(chosen)} of {size} were chosen then")
    finally:
        progress.close()
        keep()
    judged: tuple[Judged, Judged] | None = None
    if held_out is not None and first is not None and len(chosen) == size:
        second = _end(held_out, *_system(make, chosen))
        warnings += few_scenes_notes(second.mean, judge_method)
        before, after, untold = of_one_kind(held_out, first, second)
        judged, warnings = (before, after), warnings + untold
    return SubsetResult(
        chosen=chosen,
        objective_bits=history[-1].objective_bits if history else values.known.get(chosen, math.nan),
        history=tuple(history),
        n_evaluations=len(values.known),
        converged=converged,
        objective=climbed.name,
        seed=seed,
        warnings=tuple(warnings),
        reference=None if judged is None else compared,
        before=None if judged is None else judged[0].estimate,
        after=None if judged is None else judged[1].estimate,
        gain_stderr_bits=None if judged is None else stderr_of_difference_bits(*judged),
    )


def _objective(given: str | Objective) -> Objective:
    if isinstance(given, GaussianObjective | KnownChannelObjective | DensityObjective):
        return given
    if given not in ("gaussian", "known_channel", "density"):
        raise ValueError(f'objective: need "gaussian", "known_channel", "density" or a DensityObjective, got {given!r}')
    if given == "density":
        return DensityObjective()
    return GaussianObjective() if given == "gaussian" else KnownChannelObjective()


def _end(held_out: HeldOut, encoder: Encoder, noise: NoiseModel) -> End:
    mean = held_out.means(encoder)
    return End(held_out.judge(mean, noise), mean, noise)


def _reference(given: Sequence[int] | None, kept: Subset, n_candidates: int, size: int) -> Subset:
    """What `before` is of: as given, or the required indices and others at even distances."""
    if given is not None:
        subset = tuple(sorted(whole_number("reference", part, 0, n_candidates - 1) for part in given))
        if len(set(subset)) != len(subset) or len(subset) != size:
            raise ValueError(f"reference: need {size} indices, each once, got {list(given)}")
        return subset
    others = [part for part in range(n_candidates) if part not in kept]
    n_missing = size - len(kept)
    return tuple(sorted((*kept, *(others[place * len(others) // n_missing] for place in range(n_missing)))))


def _system(make: Callable[[Subset], tuple[Encoder, NoiseModel]], subset: Subset) -> tuple[Encoder, NoiseModel]:
    made = make(subset)
    fits = isinstance(made, tuple) and len(made) >= 2 and callable(made[0]) and isinstance(made[1], NoiseModel)
    if not fits:
        raise TypeError(f"make: need (encoder, noise) for parts {list(subset)}, got {type(made).__name__}")
    return made[0], made[1]


@final
class _Values:
    """Bits of a subset, evaluated once; the same noise for all."""

    def __init__(
        self, make: Callable[[Subset], tuple[Encoder, NoiseModel]], scenes: Tensor, objective: Objective, seed: int
    ) -> None:
        self._make, self._scenes, self._objective, self._seed = make, scenes, objective, seed
        self.known: dict[Subset, float] = {}

    def __call__(self, subset: Subset) -> float:
        if subset not in self.known:
            encoder, noise = _system(self._make, subset)
            mean = torch.cat([encoder(part) for part in self._scenes.split(_ENCODE_BATCH)]).to(torch.float64)
            draws = torch.Generator(device=mean.device).manual_seed(derived_seed(self._seed, "noise"))

            # A density is fitted to one half of the scenes and scored on the other; nothing else draws more.
            n_fit = len(mean) // 2 if isinstance(self._objective, DensityObjective) else 0

            def more(n: int) -> tuple[Tensor, Tensor]:
                first = slice(0, min(n, n_fit))
                return self._scenes[first], noise.sample(mean[first], draws)

            objective = copy.deepcopy(self._objective)  # what it learns of one subset is not for another
            bits = float(objective.nats(Batch(self._scenes[n_fit:], mean[n_fit:], noise, draws, more))) / math.log(2)
            if not math.isfinite(bits):
                raise ValueError(f"make: need a system of finite information, got {bits} bits for parts {list(subset)}")
            self.known[subset] = bits
        return self.known[subset]


def _greedy(
    value: Callable[[Subset], float], n_candidates: int, size: int, chosen: Subset, submodular: bool
) -> Iterator[SubsetStep]:
    """Each next part that gains most; of equal ones the first."""
    present = value(chosen) if chosen else 0.0
    # What each part gained when it was last asked: the most that it can still gain where gains only fall.
    gains = {part: math.inf for part in range(n_candidates) if part not in chosen}
    while len(chosen) < size:
        asked: set[int] = set()
        best = _largest(gains)
        while best not in asked if submodular else len(asked) < len(gains):
            part = best if submodular else next(each for each in gains if each not in asked)
            gains[part] = value(_with(chosen, part)) - present
            asked.add(part)
            best = _largest(gains)
        present, chosen = present + gains.pop(best), _with(chosen, best)
        yield SubsetStep(best, None, present)


def _largest(gains: Mapping[int, float]) -> int:
    return max(gains, key=lambda part: (gains[part], -part))


def _exchanges(
    value: Callable[[Subset], float], n_candidates: int, chosen: Subset, kept: Subset
) -> Iterator[SubsetStep]:
    """Swaps of one part for another, the best of all for each part in turn, until none gains."""
    present, idle = value(chosen), 0
    movable = [part for part in chosen if part not in kept]
    while movable and idle < len(movable):
        removed = movable.pop(0)
        rest = _without(chosen, removed)
        others = [part for part in range(n_candidates) if part not in chosen]
        gains = {part: value(_with(rest, part)) - present for part in others}
        best = _largest(gains) if gains else removed
        if gains and gains[best] > _SMALLEST_GAIN_BITS:
            present, chosen, idle = present + gains[best], _with(rest, best), 0
            movable.append(best)
            yield SubsetStep(best, removed, present)
        else:
            idle += 1
            movable.append(removed)


def _with(subset: Subset, part: int) -> Subset:
    return tuple(sorted((*subset, part)))


def _without(subset: Subset, part: int) -> Subset:
    return tuple(each for each in subset if each != part)


def _required(required: Sequence[int], n_candidates: int, size: int) -> Subset:
    kept = tuple(sorted(whole_number("required", part, 0, n_candidates - 1) for part in required))
    if len(set(kept)) != len(kept):
        raise ValueError(f"required: need each index once, got {list(required)}")
    if len(kept) > size:
        raise ValueError(f"required: need at most {size} indices, got {len(kept)}")
    return kept
