"""Projections: allowed, unchanged when allowed, and nearest."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from bitlens.design import Box, Constraint, Energy
from bitlens.design.constraints import project_

CONSTRAINTS: list[Constraint] = [
    Box(-0.5, 0.5),
    Box(lower=0.2),
    Box(upper=-0.1),
    Energy(0.3),
    Energy(0.4, measure="rms"),
]


def _allowed(constraint: Constraint, value: torch.Tensor) -> bool:
    slack = 1e-9
    if isinstance(constraint, Box):
        low, high = (
            (-math.inf if constraint.lower is None else constraint.lower),
            (math.inf if constraint.upper is None else constraint.upper),
        )
        return bool((value >= low - slack).all() and (value <= high + slack).all())
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
    parameter = torch.nn.Parameter(start.clone())
    project_("mask", parameter, [both[i] for i in order])
    value = parameter.detach()
    assert all(_allowed(constraint, value) for constraint in both)
    # The nearest value is clip(start - c, 0.2, 1) for the smallest c >= 0 that meets the budget: by bisection.
    low, high = 0.0, 4.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if float((start - middle).clamp(0.2, 1.0).mean()) > 0.5 else (low, middle)
    nearest = start.clamp(0.2, 1.0) if float(start.clamp(0.2, 1.0).mean()) <= 0.5 else (start - high).clamp(0.2, 1.0)
    torch.testing.assert_close(value, nearest, rtol=0, atol=1e-7)


def test_constraints_without_a_common_value_are_an_error() -> None:
    parameter = torch.nn.Parameter(torch.full((4,), 0.7, dtype=torch.float64))
    with pytest.raises(ValueError, match="no value meets all of"):
        project_("mask", parameter, [Box(lower=0.6), Energy(0.5)])
