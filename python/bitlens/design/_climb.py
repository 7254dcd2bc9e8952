"""One start of a design on its way up: the steps, and all that is needed to go on after an interruption."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from bitlens.design import _line_search
from bitlens.design._adam import Adam
from bitlens.design._plateau import has_plateaued
from bitlens.design.binary import is_hard, realized
from bitlens.design.constraints import Box, Constraint, project
from bitlens.design.objectives import Batch, Objective
from bitlens.design.result import DesignStep, Encoder
from bitlens.estimators._seeds import derived_seed
from bitlens.noise import NoiseModel

_ENCODE_BATCH = 256
# Iterations of L-BFGS on one batch of scenes, before the next one.
_ROUND = 20


class Problem(NamedTuple):
    """What all starts share: `learned` by name, `rates` the learning rates in the units of the parameters.

    `share` is the schedule: the share of the learning rate at a share of the steps.
    """

    encoder: Encoder
    noise: NoiseModel
    scenes: Tensor
    learned: Mapping[str, nn.Parameter]
    limits: Mapping[str, Sequence[Constraint]]
    rates: Mapping[str, float]
    n_steps: int
    n_batch: int
    share: Callable[[float], float]
    plateau_window: int | None
    seed: int


class Climb(ABC):
    """The free numbers behind the parameters of one start, and the history of its steps.

    Raises:
        ValueError: the measurements depend on none of the parameters.
    """

    def __init__(self, problem: Problem, objective: Objective, start: int, free: Mapping[str, Tensor]) -> None:
        self.problem, self.objective, self.start = problem, objective, start
        self.free = {name: value.detach().clone() for name, value in free.items()}
        self.history: list[DesignStep] = []
        self.stopped = ""  # why, before the last step
        self.converged = False
        self.without_effect: set[str] = set()  # parameters that the measurements of the last batch did not hang on
        # The same scenes and noise for every start, so that starts differ by nothing else.
        self._batches = torch.Generator().manual_seed(derived_seed(problem.seed, "batches"))
        device = problem.scenes.device
        self._draws = torch.Generator(device=device).manual_seed(derived_seed(problem.seed, "noise of steps"))
        self._whole: tuple[int, dict[str, Tensor]] | None = None  # the end of the last whole step

    @abstractmethod
    def advance(self, callback: Callable[[DesignStep], None]) -> None:
        """Some more steps."""

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to do."""
        return bool(self.stopped) or len(self.history) >= self.problem.n_steps

    def roll_back(self) -> None:
        """Back to the end of the last whole step, from what an interrupt has left half done."""
        if self._whole is not None:
            n_steps, moving = self._whole
            del self.history[n_steps:]
            self._load_moving(moving)

    def _step_done(self) -> None:
        self._whole = len(self.history), {name: value.clone() for name, value in self._moving().items()}

    def step_back(self) -> None:
        """To the last design that was evaluated and finite: the very last one has not been."""
        return

    def settle(self) -> None:
        """Put the design into encoder and noise."""
        put(self.problem, self.free)

    def state(self) -> dict[str, Tensor]:
        """All that the next step needs, and the history."""
        rows = [
            [row.objective_bits, row.objective_bits_per_pixel, row.gradient_norm, row.learning_rate]
            for row in self.history
        ]
        return self._moving() | {"history": torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        # Generators, and what a line search holds, are on the CPU; all else is where the scenes are.
        on_cpu, device = ("batches", "draws", "history", "chosen", "n_in_round"), self.problem.scenes.device
        state = {
            name: value if name in on_cpu or name.startswith("point.") else value.to(device)
            for name, value in state.items()
        }
        rows = enumerate(state["history"].tolist())
        self.history = [DesignStep(i, bits, each, norm, rate, self.start) for i, (bits, each, norm, rate) in rows]
        self._load_moving(state)
        self._step_done()

    def _moving(self) -> dict[str, Tensor]:
        """What a step changes, beside the history."""
        return {
            **{f"free.{name}": value for name, value in self.free.items()},
            **{f"objective.{name}": value for name, value in self.objective.state().items()},
            "batches": self._batches.get_state(),
            "draws": self._draws.get_state(),
        }

    def _load_moving(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.free.items():
            value.copy_(state[f"free.{name}"])
        self.objective.load_state(_below(state, "objective."))
        self._batches.set_state(state["batches"])
        self._draws.set_state(state["draws"])

    def final_bits(self) -> float:
        """Mean objective of the last tenth of the steps: what starts are compared by."""
        n_last = max(1, min(len(self.history), max(5, len(self.history) // 10)))
        return sum(row.objective_bits for row in self.history[-n_last:]) / n_last if self.history else -math.inf

    def _draw_batch(self) -> Tensor:
        scenes = self.problem.scenes
        return scenes[torch.randperm(scenes.shape[0], generator=self._batches)[: self.problem.n_batch]]

    def _evaluate(self, scenes: Tensor, progress: float) -> tuple[float, dict[str, Tensor], int]:
        """Bits per image, their gradient in the free numbers, and the number of pixels."""
        problem = self.problem
        values = {}
        for name, value in self.free.items():
            leaf = value.detach().requires_grad_()
            values[name] = leaf, realized(leaf, problem.limits.get(name, ()), progress)
            with torch.no_grad():
                problem.learned[name].copy_(values[name][1])
        mean = problem.encoder(scenes).to(torch.float64)
        batch = Batch(scenes, mean, problem.noise, self._draws, self._more)
        bits = self.objective.nats(batch) / math.log(2)
        learned = dict(problem.learned)
        found: Sequence[Tensor | None] = [None] * len(learned)
        if bits.requires_grad:
            found = torch.autograd.grad(bits, list(learned.values()), allow_unused=True)
        self.without_effect = {name for name, gradient in zip(values, found, strict=True) if gradient is None}
        if len(self.without_effect) == len(values):
            raise ValueError(f"parameters: what is measured of these scenes does not depend on {', '.join(values)}")
        gradients = {}
        for (name, (leaf, made)), gradient in zip(values.items(), found, strict=True):
            if gradient is None:
                gradients[name] = torch.zeros_like(leaf)
                continue
            if made is not leaf:
                (gradient,) = torch.autograd.grad(made, leaf, gradient)
            gradients[name] = gradient
        return bits.item(), gradients, mean[0].numel()

    @torch.no_grad()
    def _more(self, n: int) -> tuple[Tensor, Tensor]:
        """n other scenes, drawn again where there are fewer, and measurements of them."""
        scenes = self.problem.scenes
        orders = [torch.randperm(len(scenes), generator=self._batches) for _ in range(math.ceil(n / len(scenes)))]
        chosen = scenes[torch.cat(orders)[:n]]
        mean = torch.cat([self.problem.encoder(part) for part in chosen.split(_ENCODE_BATCH)]).to(torch.float64)
        return chosen, self.problem.noise.sample(mean, self._draws)


@final
class AdamClimb(Climb):
    """Steps of Adam on batches of scenes drawn afresh, with a projection after each."""

    def __init__(self, problem: Problem, objective: Objective, start: int, free: Mapping[str, Tensor]) -> None:
        super().__init__(problem, objective, start, free)
        # A box, and zeros and ones, act on each element alone; any other set may couple them.
        coupled = [
            name for name, several in problem.limits.items() if any(constraint.couples for constraint in several)
        ]
        self._adam = Adam(self.free, problem.rates, coupled)
        self._good = self.free
        self._step_done()

    def advance(self, callback: Callable[[DesignStep], None]) -> None:
        """One step."""
        problem, step = self.problem, len(self.history)
        progress = step / problem.n_steps
        bits, gradients, n_pixels = self._evaluate(self._draw_batch(), progress)
        norm = _norm(gradients)
        if not (math.isfinite(norm) and math.isfinite(bits)):
            self.free = self._good
            self.stopped = (
                f"stopped at step {step}: the objective or its gradient is not finite; "
                "the design is that of the last step where both were"
            )
            return
        self._good = {name: value.clone() for name, value in self.free.items()}
        share = float(problem.share(progress))
        if not (math.isfinite(share) and share >= 0):
            raise ValueError(f"schedule: need a share of at least 0, got {share} after {progress:.0%} of the steps")
        row = DesignStep(step, bits, bits / n_pixels, norm, share * max(problem.rates.values()), self.start)
        self.history.append(row)
        self._adam.step(self.free, gradients, share)
        for name, value in self.free.items():
            value.copy_(project(name, value, problem.limits.get(name, ())))
        self._step_done()
        window = problem.plateau_window
        due = window is not None and len(self.history) % max(1, window // 2) == 0 and len(self.history) >= 2 * window
        if window is not None and due and self._is_hard(progress):
            self.converged = has_plateaued([each.objective_bits for each in self.history[-window:]])
            if self.converged:
                self.stopped = f"stopped after {step + 1} of {problem.n_steps} steps: the objective no longer rises"
        callback(row)

    def _is_hard(self, progress: float) -> bool:
        """Whether the steps have seen what would be made: a design that is still soft is another one in the end."""
        limits = self.problem.limits
        return all(is_hard(value, limits.get(name, ()), progress) for name, value in self.free.items())

    def step_back(self) -> None:
        """To the design of the last evaluation."""
        self.free = {name: value.clone() for name, value in self._good.items()}

    def _moving(self) -> dict[str, Tensor]:
        good = {f"good.{name}": value for name, value in self._good.items()}
        return super()._moving() | good | {f"adam.{name}": value for name, value in self._adam.state().items()}

    def _load_moving(self, state: Mapping[str, Tensor]) -> None:
        super()._load_moving(state)
        self._adam.load_state(_below(state, "adam."))
        self._good = {name: value.clone() for name, value in _below(state, "good.").items()}


@final
class LineSearchClimb(Climb):
    """Iterations of L-BFGS within a box, on all scenes, or on fewer that are drawn afresh every 20 iterations.

    Its memory of curvature is part of the state: what is interrupted goes on as if it had not been.
    """

    def __init__(self, problem: Problem, objective: Objective, start: int, free: Mapping[str, Tensor]) -> None:
        super().__init__(problem, objective, start, free)
        self._box = self._bounds()
        self._chosen = torch.arange(len(problem.scenes))  # the scenes of this round
        self._n_in_round = 0
        self._n_pixels = 0
        self._point: _line_search.Point | None = None
        self._step_done()

    def advance(self, callback: Callable[[DesignStep], None]) -> None:
        """One iteration."""
        problem = self.problem
        all_scenes = problem.n_batch == len(problem.scenes)
        if not all_scenes and self._n_in_round % _ROUND == 0:
            self._chosen = torch.randperm(len(problem.scenes), generator=self._batches)[: problem.n_batch]
            self._n_in_round = 0
        scenes = problem.scenes if all_scenes else problem.scenes[self._chosen]

        def negative(x: Tensor) -> tuple[float, Tensor]:
            self._unpack(x)
            bits, gradients, self._n_pixels = self._evaluate(scenes, 1.0)
            parts = [gradients[name] * self._unit(name) for name in self.free]
            return -bits, -torch.cat([part.flatten().to("cpu", torch.float64) for part in parts])

        point = self._point
        if point is None:
            point = _line_search.first_point(negative, self._box.clamp(self._pack()))
        elif self._n_in_round == 0 and not all_scenes:
            value, gradient = negative(point.x)
            point = point._replace(value=value, gradient=gradient)
        found, why = _line_search.next_point(negative, point, self._box)
        moved = found.x is not point.x
        self._unpack(found.x)
        row: DesignStep | None = None
        if moved:
            row = self._row(found, self._n_pixels)
            self.history.append(row)
        # A round that ends early makes place for the next one; one that has not moved at all is the last.
        last = bool(why) and (all_scenes or (not moved and self._n_in_round == 0))
        self._n_in_round = 0 if why else self._n_in_round + 1
        self._point = found
        self._step_done()
        if last:
            self.converged = why in (_line_search.FLAT, _line_search.SMALL)
            self.stopped = f"stopped after {len(self.history)} of {problem.n_steps} steps: {why}"
        if row is not None:
            callback(row)

    def _row(self, point: _line_search.Point, n_pixels: int) -> DesignStep:
        units = torch.cat([torch.full((value.numel(),), self._unit(name)) for name, value in self.free.items()])
        norm = float(torch.linalg.vector_norm(point.gradient / units))
        rate = max(self.problem.rates.values())
        return DesignStep(len(self.history), -point.value, -point.value / n_pixels, norm, rate, self.start)

    def _unit(self, name: str) -> float:
        return 20.0 * self.problem.rates[name]

    def _pack(self) -> Tensor:
        parts = [(value / self._unit(name)).flatten().to("cpu", torch.float64) for name, value in self.free.items()]
        return torch.cat(parts)

    def _unpack(self, x: Tensor) -> None:
        parts = x.split([value.numel() for value in self.free.values()])
        for (name, value), part in zip(self.free.items(), parts, strict=True):
            value.copy_((part * self._unit(name)).reshape(value.shape))

    def _bounds(self) -> _line_search.Box:
        ends: list[Tensor] = []
        for name, value in self.free.items():
            boxes = [limit for limit in self.problem.limits.get(name, ()) if isinstance(limit, Box)]
            lower = max((box.lower for box in boxes if box.lower is not None), default=-math.inf)
            upper = min((box.upper for box in boxes if box.upper is not None), default=math.inf)
            pair = torch.tensor([[lower], [upper]], dtype=torch.float64) / self._unit(name)
            ends.append(pair.expand(2, value.numel()))
        lower_ends, upper_ends = torch.cat(ends, dim=1)
        return _line_search.Box(lower_ends, upper_ends)

    def _moving(self) -> dict[str, Tensor]:
        found = super()._moving() | {"chosen": self._chosen, "n_in_round": torch.tensor(self._n_in_round)}
        if self._point is None:
            return found
        held = self._point._replace(value=torch.tensor(self._point.value, dtype=torch.float64))  # type: ignore[arg-type]
        return found | {f"point.{name}": value for name, value in held._asdict().items()}

    def _load_moving(self, state: Mapping[str, Tensor]) -> None:
        super()._load_moving(state)
        self._chosen, self._n_in_round = state["chosen"].clone(), int(state["n_in_round"])
        held = _below(state, "point.")
        self._point = None
        if held:
            self._point = _line_search.Point(**(held | {"value": float(held["value"])}))  # type: ignore[arg-type]


@torch.no_grad()
def put(problem: Problem, free: Mapping[str, Tensor]) -> None:
    """What the free numbers stand for at the end of all steps goes into encoder and noise."""
    for name, value in free.items():
        problem.learned[name].copy_(realized(value, problem.limits.get(name, ()), 1.0))


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _norm(gradients: Mapping[str, Tensor]) -> float:
    """Euclidean norm of all gradients together; NaN where one of them is not finite."""
    total = sum(float(gradient.double().square().sum()) for gradient in gradients.values())
    return math.sqrt(total) if math.isfinite(total) else math.nan
