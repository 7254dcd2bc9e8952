"""Zeros and ones as a constraint, made so that they meet the other limits of their parameter too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from bitlens.design.constraints import Constraint, Energy, MinimumFeature, Monotone, Simplex, Total

_SOFTEST, _HARDEST = 1.0, 64.0
# What a budget may be over by rounding of its own number.
_SLACK = 1e-9


@final
@dataclass(frozen=True)
class Binary(Constraint):
    """Zeros and ones, made from free numbers in [0, 1] that are climbed in their place.

    "straight_through": ones where the free number is above 1/2, under a budget alone as many as the free numbers sum
    to, the largest first; with the gradient of the identity. "annealing": a smooth step that grows steeper, from nearly
    the identity to a hard one at the end: for masks whose closed pixels have no gradient. With `share`, ones are that
    share of all values, those of the largest free numbers. Other constraints of the parameter act on the free numbers,
    and the ones meet them too: no more than a `Total` or `Energy` allows and as many as a `Simplex` asks, in the blocks
    of a `MinimumFeature`, in the order of a `Monotone`.

    Raises:
        ValueError: an unknown method, or a share that is not within (0, 1).

    Reference: Bengio et al. 2013, arXiv 1308.3432; Wang et al. 2011, doi:10.1007/s00158-010-0602-y, eq. 9.
    """

    couples = False

    method: Literal["straight_through", "annealing"] = "straight_through"
    share: float | None = None

    def __post_init__(self) -> None:
        if self.method not in ("straight_through", "annealing"):
            raise ValueError(f'Binary: need "straight_through" or "annealing", got {self.method!r}')
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(f"Binary: need a share above 0 and below 1, got {self.share}")

    def project(self, value: Tensor) -> Tensor:
        """Free numbers within [0, 1]."""
        return value.clamp(0.0, 1.0)

    def realize(self, free: Tensor, progress: float) -> Tensor:
        """Zeros and ones; while annealing, values between them."""
        return self._realize(free, progress, _rules((self,), free))

    def _realize(self, free: Tensor, progress: float, rules: _Rules) -> Tensor:
        if self.method == "annealing" and progress < 1:
            return _soft(free, progress, rules)
        ones = _ones(free.detach(), rules, fill=self.method == "straight_through")
        if rules.number is not None:
            free = free - free.mean()  # along the number of ones, which does not change
        return ones.to(free) + (free - free.detach())  # zeros and ones without rounding


def realized(free: Tensor, limits: Sequence[Constraint], progress: float) -> Tensor:
    """What the encoder gets for the free numbers of a parameter under all its limits together; differentiable."""
    for limit in limits:
        if isinstance(limit, Binary):
            free = limit._realize(free, progress, _rules(limits, free))
        else:
            free = limit.realize(free, progress)
    return free


@torch.no_grad()
def is_hard(free: Tensor, limits: Sequence[Constraint], progress: float) -> bool:
    """Whether annealing has nothing left to do: no value is further than 1 % from what it ends as."""
    if not any(isinstance(limit, Binary) and limit.method == "annealing" for limit in limits):
        return True
    left = realized(free, limits, progress) - realized(free, limits, 1.0)
    return bool(left.abs().max() <= 0.01) if left.numel() else True


def check_ones(name: str, value: Tensor, limits: Sequence[Constraint]) -> None:
    """ValueError where no zeros and ones of the shape of `value` meet every limit."""
    if not any(isinstance(limit, Binary) for limit in limits):
        return
    rules = _rules(limits, value)
    n, exact = value.numel(), rules.number is not None and not rules.near
    need = f"constraints[{name!r}]: need limits that zeros and ones can meet, got {list(limits)}"
    for limit in limits:
        if isinstance(limit, Simplex) and abs(limit.total - round(limit.total)) > _SLACK * max(1.0, limit.total):
            raise ValueError(f"{need}: {limit.total:g} is no whole number of ones")
    if rules.most is not None and rules.most < 1:
        raise ValueError(f"{need}: not a single one fits")
    if rules.number is not None and (rules.number > n or (rules.most is not None and rules.number > rules.most)):
        most = n if rules.most is None else min(n, rules.most)
        raise ValueError(f"{need}: {rules.number} ones are more than the {most} that fit")
    for limit in limits:
        if isinstance(limit, Binary) and limit.share is not None and exact and _share(limit.share, n) != rules.number:
            raise ValueError(f"{need}: a share of {limit.share:g} is {_share(limit.share, n)} ones, not {rules.number}")
    if exact and int(_ones(torch.zeros_like(value), rules, fill=False).sum()) != rules.number:
        raise ValueError(f"{need}: no blocks of {rules.block} x {rules.block} hold {rules.number} ones together")


def share_notes(name: str, value: Tensor, limits: Sequence[Constraint]) -> list[str]:
    """Says so where whole blocks cannot hold the share of ones that was asked for."""
    wanted = [limit.share for limit in limits if isinstance(limit, Binary) and limit.share is not None]
    found = round(float(value.detach().sum()))
    return [
        f"{name}: {found} of {value.numel()} values are ones, not a share of {share:g}: features of their least size "
        "allow no other number closer to it"
        for share in wanted
        if found != _share(share, value.numel()) and _rules(limits, value).block > 1
    ]


class _Rules(NamedTuple):
    """How many ones: `number`, or as `near` to it as blocks allow, and at most `most`; side of a block; directions."""

    number: int | None
    near: bool
    most: int | None
    block: int
    directions: tuple[Literal["increasing", "decreasing"], ...]


def _rules(limits: Sequence[Constraint], value: Tensor) -> _Rules:
    n = value.numel()
    number: int | None = None
    near = False
    most: list[float] = []
    block = 1
    directions: list[Literal["increasing", "decreasing"]] = []
    for limit in limits:
        if isinstance(limit, Simplex):
            number, near = round(limit.total), False
        elif isinstance(limit, Binary) and limit.share is not None and number is None:
            number, near = _share(limit.share, n), True
        elif isinstance(limit, Total):
            most.append(limit.limit)
        elif isinstance(limit, Energy):
            # Of zeros and ones the mean and the mean square are one number.
            most.append(n * (limit.limit if limit.measure == "mean" else limit.limit**2))
        elif isinstance(limit, MinimumFeature):
            block = math.lcm(block, limit.pixels)
        elif isinstance(limit, Monotone):
            directions.append(limit.direction)
    bound = math.floor(min(most) * (1 + _SLACK)) if most else None
    return _Rules(number, near, bound if bound is None or bound < n else None, block, tuple(directions))


def _share(share: float, n: int) -> int:
    return max(1, round(share * n))


def _soft(free: Tensor, progress: float, rules: _Rules) -> Tensor:
    """A step of finite steepness at 1/2, or where the mean of what it makes is the share of ones."""
    steepness = _SOFTEST * (_HARDEST / _SOFTEST) ** progress
    edge = math.tanh(0.5 * steepness)

    def step(values: Tensor, middle: float | Tensor) -> Tensor:
        return (0.5 * (1 + torch.tanh(steepness * (values - middle)) / edge)).clamp(0.0, 1.0)

    share = None if rules.number is None else rules.number / free.numel()
    if share is None and rules.most is not None:
        most = rules.most / free.numel()
        share = most if float(step(free.detach(), 0.5).mean()) > most else None
    if share is None:
        return step(free, 0.5)
    fixed = free.detach()
    low, high = -1.0, 2.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if float(step(fixed, middle).mean()) > share else (low, middle)
    # The mean stays: the middle moves by the mean of the moves, weighted by the slopes.
    values = 0.5 * (1 + torch.tanh(steepness * (fixed - middle)) / edge)
    slope = torch.where((values > 0) & (values < 1), 1 / torch.cosh(steepness * (fixed - middle)).square(), 0.0)
    weight = slope / slope.sum().clamp_min(torch.finfo(slope.dtype).tiny)
    return step(free, 0.5 * (low + high) + (weight * (free - fixed)).sum())


# ---- Which values are ones ----


def _ones(free: Tensor, rules: _Rules, fill: bool) -> Tensor:
    """Where ones are: above 1/2, or the largest free numbers, as many as the rules say, in whole blocks.

    Under a budget alone, `fill` spends as much of it as the free numbers do, so that a budget that keeps all of them
    below 1/2 does not close everything.
    """
    units, sizes = _blocks(free, rules.block)
    for direction in rules.directions:
        units = Monotone(direction).project(units)
    above = units > 0.5
    wanted, threshold = rules.number, 0.5
    if wanted is None:
        if rules.most is None:
            return _spread(above, free, rules.block)
        n_above = int(sizes[above].sum())
        wanted = min(rules.most, n_above)
        if fill and round(float(free.sum())) > n_above:
            wanted, threshold = min(rules.most, round(float(free.sum()))), 0.0
    kinds = _Kinds(units, sizes, rules.directions, threshold)
    if rules.number is None:
        chosen = kinds.best(wanted, exactly=False)
    elif not rules.near:
        chosen = kinds.best(wanted, exactly=True)
    else:
        chosen = kinds.nearest(wanted, free.numel() if rules.most is None else rules.most)
    ones = torch.zeros(units.numel(), dtype=torch.bool, device=free.device)
    if chosen is not None:
        ones[chosen] = True
    return _spread(ones.reshape(units.shape), free, rules.block)


def _blocks(free: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The mean of each block of the last two axes, and the number of values in it."""
    if side == 1:
        return free, torch.ones(free.shape, dtype=torch.int64, device=free.device)
    rows, columns = (-(-size // side) for size in free.shape[-2:])
    missing = (0, columns * side - free.shape[-1], 0, rows * side - free.shape[-2])

    def summed(value: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(value, missing)
        return padded.reshape(*free.shape[:-2], rows, side, columns, side).sum((-3, -1))

    sizes = summed(torch.ones_like(free))
    return summed(free) / sizes, sizes.round().to(torch.int64)


def _spread(ones: Tensor, like: Tensor, side: int) -> Tensor:
    if side == 1:
        return ones
    wide = ones.repeat_interleave(side, -2).repeat_interleave(side, -1)
    return wide[..., : like.shape[-2], : like.shape[-1]]


def _falling(units: Tensor, directions: Sequence[str]) -> Tensor:
    """Flat indices by falling value; of equal ones the end of the row that a `Monotone` fills first."""
    if "increasing" not in directions:
        return units.flatten().argsort(descending=True, stable=True)
    index = torch.arange(units.numel(), device=units.device).reshape(units.shape).flip(-1).flatten()
    return index[units.flip(-1).flatten().argsort(descending=True, stable=True)]


class _Kinds:
    """Units by their size: whole blocks, and those that an edge cuts, which are few."""

    def __init__(self, units: Tensor, sizes: Tensor, directions: Sequence[str], threshold: float) -> None:
        order, sizes = _falling(units, directions), sizes.flatten()
        self._sizes = sorted(set(sizes.tolist()), reverse=True)
        self._orders = [order[sizes[order] == size] for size in self._sizes]
        # Sum of (value - threshold) over the first 0, 1, 2, ... units of a size.
        values = units.flatten().double() - threshold
        self._gains = [
            torch.cat((values.new_zeros(1), (values[each] * size).cumsum(0)))
            for each, size in zip(self._orders, self._sizes, strict=True)
        ]
        self._edges: dict[int, tuple[float, tuple[int, ...]]] | None = None

    def best(self, wanted: int, exactly: bool) -> Tensor | None:
        """The units of the largest gain that hold `wanted` values, or no more than that; None where none do."""
        size, gains = self._sizes[0], self._gains[0]
        n_units = len(gains) - 1
        found: list[tuple[float, tuple[int, ...]]] = []
        for total, (gain, counts) in self._edge_totals().items():
            n_whole, left = divmod(wanted - total, size)
            if n_whole < 0 or (exactly and (left or n_whole > n_units)):
                continue
            if not exactly:  # gains of falling values: up to the first one that loses
                n_whole = min(n_whole, int((gains.diff() > 0).sum()))
            found.append((gain + float(gains[n_whole]), (n_whole, *counts)))
        if not found:
            return None
        counts = max(found)[1]
        return torch.cat([order[:count] for order, count in zip(self._orders, counts, strict=True)])

    def nearest(self, wanted: int, most: int) -> Tensor | None:
        """Units that hold as near to `wanted` values as can be, at least one and at most `most`."""
        for distance in range(wanted + self._sizes[0] + 1):
            for total in (wanted - distance, wanted + distance):
                if 0 < total <= most:
                    found = self.best(total, exactly=True)
                    if found is not None:
                        return found
        return None

    def _edge_totals(self) -> dict[int, tuple[float, tuple[int, ...]]]:
        """For every number of values that blocks at edges can hold, the best gain and how many of each size."""
        if self._edges is None:
            best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
            for size, gains in zip(self._sizes[1:], self._gains[1:], strict=True):
                grown: dict[int, tuple[float, tuple[int, ...]]] = {}
                for total, (value, counts) in best.items():
                    for count, gain in enumerate(gains.tolist()):
                        if value + gain > grown.get(total + count * size, (-math.inf, ()))[0]:
                            grown[total + count * size] = value + gain, (*counts, count)
                best = grown
            self._edges = best
        return self._edges
