"""The steps of a joint training: one graph from the design's numbers through noise and decoder to the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bitlens.design._adam import Adam
from bitlens.design.binary import realized
from bitlens.design.constraints import Constraint, project
from bitlens.estimators._seeds import derived_seed
from bitlens.validation._training import rate_at, shuffled_batches
from bitlens.validation.decoder import Rows
from bitlens.validation.linear import FrequencyFilter, LinearMap

_N_LOOKS = 10
_MOST_JUDGES = 256
_ROWS_AT_ONCE = 64
_CLIP_NORM = 1.0
# Rate of a linear estimate in units of its weights' size, over that of the network. Of 1, 5 and 20 the last led to the
# least error in three cases of three; one rate for all weights sent the error up two hundred times, for good.
_LINEAR = 20.0


class JointStep(NamedTuple):
    """One look at a joint training: steps done, training loss since the last look, loss on the validation rows."""

    step: int
    training_loss: float
    validation_loss: float


class Design:
    """The free numbers that are trained, and the parameters of encoder and noise that they stand for."""

    def __init__(
        self,
        learned: Mapping[str, nn.Parameter],
        limits: Mapping[str, Sequence[Constraint]],
        rates: Mapping[str, float],
    ) -> None:
        self.learned, self.limits, self.rates = learned, limits, rates
        self.free = {
            name: project(name, value.detach(), limits.get(name, ())).clone().requires_grad_(True)
            for name, value in learned.items()
        }
        self._realized: dict[str, Tensor] = {}

    def put(self, progress: float) -> None:
        """Give the parameters the values of the free numbers, as they are at this share of the steps."""
        for name, leaf in self.free.items():
            with torch.enable_grad():
                value = realized(leaf, self.limits.get(name, ()), progress)
            self._realized[name] = value
            with torch.no_grad():
                self.learned[name].copy_(value)

    def pull(self) -> None:
        """Hand the gradients of the parameters on to the free numbers."""
        for name, leaf in self.free.items():
            gradient, realized = self.learned[name].grad, self._realized[name]
            if gradient is not None and realized is not leaf:
                (gradient,) = torch.autograd.grad(realized, leaf, gradient)
            leaf.grad = None if gradient is None else gradient.clone()
            self.learned[name].grad = None

    @torch.no_grad()
    def project(self) -> None:
        """Bring the free numbers back into their sets."""
        for name, leaf in self.free.items():
            leaf.copy_(project(name, leaf.detach(), self.limits.get(name, ())))

    def copy(self) -> dict[str, Tensor]:
        """The free numbers as they are."""
        return {name: leaf.detach().clone() for name, leaf in self.free.items()}

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Put copies of the free numbers back."""
        for name, leaf in self.free.items():
            leaf.copy_(values[name])


class JointSchedule(NamedTuple):
    """How many steps of how many rows, and the decoder's largest rate."""

    n_steps: int
    batch_size: int
    learning_rate: float


def _parameter_groups(network: nn.Module, rate: float) -> list[dict[str, Any]]:
    """The network's weights with their rates: a linear estimate, started at its best, moves by shares of its size."""
    linear = [
        parameter
        for module in network.modules()
        if isinstance(module, LinearMap | FrequencyFilter)
        for parameter in module.parameters(recurse=False)
    ]
    groups: list[dict[str, Any]] = [
        {"params": [parameter], "lr": _LINEAR * rate * float(parameter.detach().square().mean().sqrt())}
        for parameter in linear
    ]
    known = {id(parameter) for parameter in linear}
    groups.append({"params": [p for p in network.parameters() if id(p) not in known], "lr": rate})
    return groups


def train_jointly(
    design: Design,
    network: nn.Module,
    loss: Callable[[Tensor, torch.Generator], Tensor],
    rows: Rows,
    schedule: JointSchedule,
    seed: int,
) -> tuple[list[JointStep], list[str]]:
    """Train both in place, `loss(row numbers, source of noise)` a mean over rows; ends at the best look.

    Looks take the design as it would be built, zeros and ones where it has those, and the same noise each time.
    """
    n_steps = schedule.n_steps
    weights = list(network.parameters())
    groups = _parameter_groups(network, schedule.learning_rate)
    largest = [group["lr"] for group in groups]
    optimizer = torch.optim.Adam(groups)
    # Elementwise steps followed by a projection that couples elements come to rest where they should not.
    coupled = [name for name, several in design.limits.items() if any(limit.couples for limit in several)]
    climber = Adam(design.free, design.rates, coupled)
    batches = shuffled_batches(rows.training, schedule.batch_size, derived_seed(seed, "batches"))
    draws = torch.Generator().manual_seed(derived_seed(seed, "noise of steps"))
    judges = rows.validation[:: max(1, len(rows.validation) // _MOST_JUDGES)]
    looks = {round(n_steps * (look + 1) / _N_LOOKS) for look in range(_N_LOOKS)}

    def look() -> float:
        design.put(1.0)
        network.eval()
        source = torch.Generator().manual_seed(derived_seed(seed, "noise of looks"))
        with torch.no_grad():
            total = sum(float(loss(part, source)) * len(part) for part in judges.split(_ROWS_AT_ONCE))
        network.train()
        return total / len(judges)

    history, notes = [JointStep(0, math.nan, look())], []
    best, kept = history[0].validation_loss, ([p.detach().clone() for p in weights], design.copy())
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]), tqdm(total=n_steps, desc="end to end", disable=None, leave=False) as bar:
        torch.manual_seed(derived_seed(seed, "dropout"))
        for step in range(n_steps):
            for group, rate in zip(optimizer.param_groups, largest, strict=True):
                group["lr"] = rate * rate_at(step, n_steps)
            design.put(step / n_steps)
            optimizer.zero_grad()
            with torch.enable_grad():
                value = loss(batches(), draws)
            losses.append(value.item())
            if not math.isfinite(losses[-1]):
                notes.append(f"stopped at step {step}: the loss is not finite; the result is that of the best look")
                break
            value.backward()
            design.pull()
            nn.utils.clip_grad_norm_(weights, _CLIP_NORM)
            optimizer.step()
            downhill = {name: -leaf.grad for name, leaf in design.free.items() if leaf.grad is not None}
            climber.step(design.free, downhill, rate_at(step, n_steps))
            design.project()
            bar.update()
            if step + 1 in looks:
                history.append(JointStep(step + 1, sum(losses) / len(losses), look()))
                losses = []
                if history[-1].validation_loss < best:
                    best, kept = history[-1].validation_loss, ([p.detach().clone() for p in weights], design.copy())
    with torch.no_grad():
        for parameter, saved in zip(weights, kept[0], strict=True):
            parameter.copy_(saved)
    design.restore(kept[1])
    design.put(1.0)
    network.eval()
    return history, notes
