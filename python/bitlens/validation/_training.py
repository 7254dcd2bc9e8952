"""One training loop for all networks: Adam, a cosine decay, looks at the validation rows, the best look is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bitlens.estimators._seeds import derived_seed
from bitlens.validation.decoder import FitStep, Rows

_WARM_UP = 0.05  # share of the steps over which the rate rises
_FINAL_RATE = 0.01
_MOST_JUDGES = 256
_CLIP_NORM = 1.0


class Schedule(NamedTuple):
    """How many steps of how many rows, the largest rate, the decay of weights, and looks in all."""

    n_steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    n_looks: int = 10


def rate_at(step: int, n_steps: int) -> float:
    """Share of the largest rate: a short rise, then half a cosine."""
    rise = max(1, round(_WARM_UP * n_steps))
    fall = 0.5 * (1 + math.cos(math.pi * step / n_steps))
    return min(1.0, (step + 1) / rise) * (_FINAL_RATE + (1 - _FINAL_RATE) * fall)


def train(
    network: nn.Module,
    loss: Callable[[Tensor], Tensor],
    rows: Rows,
    schedule: Schedule,
    seed: int,
) -> tuple[FitStep, ...]:
    """Train `network` in place; `loss(row numbers)` is the mean loss of these rows. Ends at its best look."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    batches = shuffled_batches(rows.training, schedule.batch_size, derived_seed(seed, "batches"))
    judges = rows.validation[:: max(1, len(rows.validation) // _MOST_JUDGES)]
    looks = {round(schedule.n_steps * (look + 1) / schedule.n_looks) for look in range(schedule.n_looks)}
    history = [FitStep(0, math.nan, look_at(network, loss, judges))]
    best, kept = history[0].validation_loss, _copy(network)
    total, count = 0.0, 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "dropout"))
        network.train()
        for step in range(schedule.n_steps):
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate * rate_at(step, schedule.n_steps)
            optimizer.zero_grad()
            with torch.enable_grad():
                value = loss(batches())
            value.backward()
            nn.utils.clip_grad_norm_(parameters, _CLIP_NORM)
            optimizer.step()
            total, count = total + value.item(), count + 1
            if step + 1 in looks:
                found = look_at(network, loss, judges)
                history.append(FitStep(step + 1, total / count, found))
                total, count = 0.0, 0
                if found < best:
                    best, kept = found, _copy(network)
    restore(network, kept)
    network.eval()
    return tuple(history)


def look_at(network: nn.Module, loss: Callable[[Tensor], Tensor], judges: Tensor) -> float:
    """Mean loss of the judging rows, the network as it is used."""
    network.eval()
    with torch.no_grad():
        parts = judges.split(64)
        value = sum(float(loss(part)) * len(part) for part in parts) / len(judges)
    network.train()
    return value


def shuffled_batches(rows: Tensor, size: int, seed: int) -> Callable[[], Tensor]:
    """A function that gives the next `size` row numbers, in a new random order whenever all were given."""
    generator = torch.Generator().manual_seed(seed)
    size = min(size, len(rows))
    waiting = rows[torch.randperm(len(rows), generator=generator)]

    def following() -> Tensor:
        nonlocal waiting
        if len(waiting) < size:
            waiting = torch.cat([waiting, rows[torch.randperm(len(rows), generator=generator)]])
        batch, waiting = waiting[:size], waiting[size:]
        return batch

    return following


@torch.no_grad()
def _copy(network: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters() if parameter.requires_grad]


@torch.no_grad()
def restore(network: nn.Module, values: Sequence[Tensor]) -> None:
    """Put copies of the parameters that are trained back."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter, value in zip(trained, values, strict=True):
        parameter.copy_(value)
