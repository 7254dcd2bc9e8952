"""Projections: allowed, unchanged when allowed, and nearest."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from bitlens.design import Binary, Box, Constraint, Energy, MinimumFeature, Monotone, Simplex, Total
from bitlens.design.constraints import project

CONSTRAINTS: list[Constraint] = [
    Box(-0.5, 0.5),
    Box(lower=0.2),
    Box(upper=-0.1),
    Energy(0.3),
    Energy(0.4, measure="rms"),
    Simplex(0.8),
    Total(0.8),
    Monotone(),
    Monotone("decreasing"),
]


def _allowed(constraint: Constraint, value: torch.Tensor) -> bool:
    slack = 1e-9
    if isinstance(constraint, Box):
        low, high = (
            (-math.inf if constraint.lower is None else constraint.lower),
            (math.inf if constraint.upper is None else constraint.upper),
        )
        return bool((value >= low - slack).all() and (value <= high + slack).all())
    if isinstance(constraint, Simplex):
        return bool((value >= 0).all()) and abs(value.sum().item() - constraint.total) <= slack
    if isinstance(constraint, Total):
        return bool((value >= 0).all() and value.sum() <= constraint.limit + slack)
    if isinstance(constraint, Monotone):
        rise = value.diff() if constraint.direction == "increasing" else -value.diff()
        return bool((rise >= -slack).all())
    assert isinstance(constraint, Energy)
    if constraint.measure == "rms":
        return bool(value.square().mean().sqrt() <= constraint.limit + slack)
    return bool((value >= 0).all() and value.mean() <= constraint.limit + slack)


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=str)
@given(values=st.lists(st.floats(-3, 3), min_size=1, max_size=9))
@settings(max_examples=30, deadline=None)
def test_projection_is_allowed_and_idempotent(constraint: Constraint, values: list[float]) -> None:
    once = constraint.project(torch.tensor(values, dtype=torch.float64))
    assert _allowed(constraint, once)
    torch.testing.assert_close(constraint.project(once), once, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=str)
def test_projection_is_the_nearest_allowed_value(constraint: Constraint) -> None:
    value = torch.tensor([0.9, -0.4, 0.05, 1.7, 0.3], dtype=torch.float64)
    projected = constraint.project(value)
    bounds, rules = None, []
    if isinstance(constraint, Box):
        bounds = [(constraint.lower, constraint.upper)] * 5
    elif isinstance(constraint, Energy) and constraint.measure == "mean":
        bounds = [(0, None)] * 5
        rules = [{"type": "ineq", "fun": lambda x: 0.3 - x.mean()}]
    elif isinstance(constraint, Simplex):
        bounds = [(0, None)] * 5
        rules = [{"type": "eq", "fun": lambda x: x.sum() - 0.8}]
    elif isinstance(constraint, Total):
        bounds = [(0, None)] * 5
        rules = [{"type": "ineq", "fun": lambda x: 0.8 - x.sum()}]
    elif isinstance(constraint, Monotone):
        sign = 1 if constraint.direction == "increasing" else -1
        rules = [{"type": "ineq", "fun": lambda x: sign * (x[1:] - x[:-1])}]
    else:
        rules = [{"type": "ineq", "fun": lambda x: 0.4**2 - (x**2).mean()}]
    found = minimize(
        lambda x: ((x - value.numpy()) ** 2).sum(),
        projected.numpy() * 0.5,
        bounds=bounds,
        constraints=rules,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    torch.testing.assert_close(projected, torch.from_numpy(found.x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Box(), "lower, upper or both"),
        (lambda: Box(1.0, 0.0), "lower <= upper"),
        (lambda: Box(math.nan, 0.0), "lower <= upper"),
        (lambda: Energy(0.0), "limit > 0"),
        (lambda: Energy(1.0, measure="sum"), "measure"),  # type: ignore[arg-type]
        (lambda: Simplex(-1.0), "Simplex: need total > 0, got -1"),
        (lambda: Total(math.inf), "Total: need limit > 0, got inf"),
        (lambda: Monotone("up"), "increasing"),  # type: ignore[arg-type]
        (lambda: Monotone().project(torch.tensor(1.0)), "Monotone: need values along an axis, got one number"),
        (lambda: MinimumFeature(0), "at least 1, got 0"),
        (lambda: MinimumFeature(2).project(torch.zeros(4)), r"need a map \(..., row, column\), got shape \(4,\)"),
        (lambda: Binary("hard"), "straight_through"),  # type: ignore[arg-type]
        (lambda: Binary(share=1.0), "share above 0 and below 1"),
    ],
)
def test_bad_constraints(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@given(values=st.lists(st.floats(-3, 3), min_size=2, max_size=9))
@settings(max_examples=30, deadline=None)
def test_several_constraints_are_met_together_at_the_nearest_value(order: tuple[int, int], values: list[float]) -> None:
    both = (Box(0.2, 1.0), Energy(0.5))
    start = torch.tensor(values, dtype=torch.float64)
    value = project("mask", start, [both[i] for i in order])
    assert all(_allowed(constraint, value) for constraint in both)
    # The nearest value is clip(start - c, 0.2, 1) for the smallest c >= 0 that meets the budget: by bisection.
    low, high = 0.0, 4.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if float((start - middle).clamp(0.2, 1.0).mean()) > 0.5 else (low, middle)
    nearest = start.clamp(0.2, 1.0) if float(start.clamp(0.2, 1.0).mean()) <= 0.5 else (start - high).clamp(0.2, 1.0)
    torch.testing.assert_close(value, nearest, rtol=0, atol=1e-7)


def test_constraints_without_a_common_value_are_an_error() -> None:
    with pytest.raises(ValueError, match="no value meets all of"):
        project("mask", torch.full((4,), 0.7, dtype=torch.float64), [Box(lower=0.6), Energy(0.5)])


def test_blocks_are_the_nearest_map_of_blocks() -> None:
    value = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = MinimumFeature(3).project(value)
    for rows in (slice(0, 3), slice(3, 5)):
        for columns in (slice(0, 3), slice(3, 6), slice(6, 7)):
            mean = value[:, rows, columns].mean(dim=(1, 2), keepdim=True)
            torch.testing.assert_close(found[:, rows, columns], mean.expand_as(found[:, rows, columns]))
    torch.testing.assert_close(MinimumFeature(3).project(found), found)


@pytest.mark.parametrize("share", [None, 0.3])
@pytest.mark.parametrize("progress", [0.0, 0.4, 0.9])
def test_annealed_steps_have_the_gradient_that_they_say(share: float | None, progress: float) -> None:
    free = torch.rand(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    limit = Binary("annealing", share=share)
    values = limit.realize(free.detach(), progress)
    assert float(values.min()) >= 0.0
    assert float(values.max()) <= 1.0
    if share is not None:
        assert values.mean().item() == pytest.approx(share, abs=1e-6)
    assert torch.autograd.gradcheck(lambda x: limit.realize(x, progress), (free,), eps=1e-6, atol=1e-5)
    hard = limit.realize(free, 1.0)
    assert set(hard.flatten().tolist()) <= {0.0, 1.0}
    if share is not None:
        assert hard.sum().item() == 9


def test_straight_through_passes_the_gradient_on() -> None:
    free = torch.tensor([0.1, 0.6, 0.9], dtype=torch.float64, requires_grad=True)
    values = Binary().realize(free, 0.0)
    assert values.tolist() == [0.0, 1.0, 1.0]
    weights = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    assert torch.autograd.grad((values * weights).sum(), free)[0].tolist() == [1.0, 2.0, 6.0]
    # At a fixed share, what all have in common changes nothing.
    one = Binary(share=0.34).realize(free, 0.0)
    assert one.tolist() == [0.0, 0.0, 1.0]
    assert torch.autograd.grad((one * weights).sum(), free)[0].tolist() == [-2.0, -1.0, 3.0]
