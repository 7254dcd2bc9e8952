"""The line search against SciPy's L-BFGS-B, which is another program."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from bitlens.design._line_search import NOT_FINITE, Box, Function, first_point, next_point


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1].square()).square() + (1 - x[:-1]).square()).sum()


def quadratic(x: Tensor) -> Tensor:
    scales = torch.logspace(0, 4, len(x), dtype=torch.float64)
    return 0.5 * (scales * (x - torch.linspace(-1, 1, len(x), dtype=torch.float64)).square()).sum() + 0.1 * x.sum()


def saddle(x: Tensor) -> Tensor:
    return (x**4 - x**2).sum() + 0.3 * x.cos().prod()


def differentiated(function: object) -> tuple[Function, list[int]]:
    calls: list[int] = []

    def found(x: Tensor) -> tuple[float, Tensor]:
        calls.append(1)
        leaf = x.clone().requires_grad_()
        value = function(leaf)  # type: ignore[operator]
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.item(), gradient

    return found, calls


def descend(function: Function, x: Tensor, box: Box) -> tuple[Tensor, float, int]:
    point, n_iterations, why = first_point(function, x), 0, ""
    while not why and n_iterations < 500:
        before = point.value
        point, why = next_point(function, point, box)
        assert point.value <= before
        assert bool((point.x >= box.lower).all() and (point.x <= box.upper).all())
        n_iterations += 1
    return point.x, point.value, n_iterations


@pytest.mark.parametrize("function", [rosenbrock, quadratic, saddle])
@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (-0.5, 0.6), (0.3, math.inf)])
def test_ends_where_scipy_ends(function: object, bounds: tuple[float, float]) -> None:
    n = 12
    lower, upper = (torch.full((n,), end, dtype=torch.float64) for end in bounds)
    box = Box(lower, upper)
    start = box.clamp(torch.linspace(-0.9, 0.8, n, dtype=torch.float64))
    with_gradient, calls = differentiated(function)
    x, value, _ = descend(with_gradient, start, box)
    n_own = len(calls)

    def arrays(values: np.ndarray) -> tuple[float, np.ndarray]:
        found, gradient = with_gradient(torch.from_numpy(values.copy()))
        return found, gradient.numpy()

    reference = minimize(arrays, start.numpy(), jac=True, method="L-BFGS-B", bounds=[bounds] * n)
    assert value <= reference.fun + 1e-6 * max(1.0, abs(reference.fun))
    assert n_own <= 2 * reference.nfev + 10
    flat = box.clamp(x - with_gradient(x)[1]) - x
    assert flat.abs().max() < 1e-2


def test_a_function_that_falls_without_end_and_one_that_is_not_finite() -> None:
    open_box = Box(torch.full((2,), -math.inf, dtype=torch.float64), torch.full((2,), math.inf, dtype=torch.float64))
    closed = Box(torch.full((2,), -3.0, dtype=torch.float64), torch.full((2,), 3.0, dtype=torch.float64))
    falling, _ = differentiated(lambda x: x.sum())
    x, _, _ = descend(falling, torch.zeros(2, dtype=torch.float64), closed)
    assert x.tolist() == [-3.0, -3.0]
    wall, _ = differentiated(lambda x: (x - torch.log(x)).sum())  # NaN below zero, least at 1
    x, _, _ = descend(wall, torch.full((2,), 9.0, dtype=torch.float64), open_box)
    assert x.tolist() == pytest.approx([1.0, 1.0], abs=1e-4)
    point = first_point(wall, -torch.ones(2, dtype=torch.float64))
    assert next_point(wall, point, open_box)[1] == NOT_FINITE
