"""Accuracy of the Poisson-Gaussian log-likelihood and its gradient against 50 digits on 2000 random points."""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
sys.path.insert(0, str(Path(__file__).parent))
import poisson_gaussian as oracle
import poisson_gaussian_calls as calls
from contract import running

BACKENDS = ("cpu", "numba", "cuda_on_cpu")
N_POINTS = 2000
VALUE = {torch.float64: 1e-10, torch.float32: 4 * torch.finfo(torch.float32).eps}
GRADIENT = 1e-8


@functools.cache
def points_and_truth(dtype: torch.dtype, operands: str) -> tuple[oracle.Points, oracle.Points]:
    points = oracle.rounded(oracle.random_points(N_POINTS), calls.NUMPY[dtype], operands)
    return points, oracle.truths(points)


def worst(error: np.ndarray, points: oracle.Points) -> str:
    index = int(error.argmax())
    named = zip(("measured", "mean", "gain", "offset", "read_std"), points[:, index].tolist(), strict=True)
    where = ", ".join(f"{name}={value!r}" for name, value in named)
    return f"{error[index]:.2g} at {where}"


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_value_and_gradient_in_float64(backend: str) -> None:
    points, truth = points_and_truth(torch.float64, "tensors")
    with running(backend):
        found = calls.outputs(points, torch.float64, "tensors", gradients=True)
    error = oracle.relative_error(found, truth[..., None]).max(axis=2)
    assert error[0].max() <= VALUE[torch.float64], worst(error[0], points)
    for derivative in error[1:]:
        assert derivative.max() <= GRADIENT, worst(derivative, points)


@pytest.mark.parametrize("operands", ["tensors", "scalars", "numbers"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_value_in_float32(backend: str, operands: str) -> None:
    """Numbers keep float64 whatever the precision of the tensors: the truth takes them as they are."""
    points, truth = points_and_truth(torch.float32, operands)
    with running(backend):
        found = calls.outputs(points, torch.float32, operands, gradients=False)
    error = oracle.relative_error(found, truth[:1, :, None]).max(axis=2)[0]
    assert error.max() <= VALUE[torch.float32], worst(error, points)


@pytest.mark.parametrize("operands", ["tensors", "scalars"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_in_float32_is_a_number(backend: str, operands: str) -> None:
    """And right to 1 %: a sum that started in the wrong place is wrong as a whole."""
    points, truth = points_and_truth(torch.float32, operands)
    with running(backend):
        found = calls.outputs(points, torch.float32, operands, gradients=True)
    for error in oracle.relative_error(found, truth[..., None]).max(axis=2):
        assert error.max() <= 0.01, worst(error, points)


def test_reference_in_float32_is_finite() -> None:
    """Plain torch in single precision is no more accurate than that: it is held to giving numbers."""
    points, truth = points_and_truth(torch.float32, "tensors")
    with running("reference"):
        found = calls.outputs(points, torch.float32, "tensors", gradients=True)[..., 0]
    within = np.abs(truth) < torch.finfo(torch.float32).max
    assert np.isfinite(found[0]).all()
    assert np.isfinite(found[within]).all()


def test_points_cover_what_they_should() -> None:
    measured, mean, gain, offset, read_std = oracle.random_points(N_POINTS)
    sigmas = np.abs(measured - gain * mean - offset) / np.sqrt(gain**2 * mean + read_std**2)
    assert np.count_nonzero(mean == 0) >= 100
    for values, low, high in ((mean[mean > 0], 1e-3, 1e6), (read_std / gain, 0.01, 100), (gain, 0.01, 100)):
        assert values.min() < 1.1 * low
        assert values.max() > high / 1.1
    assert np.count_nonzero(sigmas > 12.001) > 350
    assert np.count_nonzero((sigmas > 12.001) & (mean == 0)) > 30
    assert np.count_nonzero((sigmas > 6) & (sigmas < 12)) > 500


def explicit_sum(point: np.ndarray, n_terms: int) -> list[mpmath.mpf]:
    """Value and gradient, every factor of every term from its definition."""
    z, y, g, o, s = (mpmath.mpf(float(value)) for value in point)
    counts = range(n_terms if y > 0 else 1)
    residuals = [z - o - g * k for k in counts]
    terms = [mpmath.exp(-y - (residuals[k] / s) ** 2 / 2) * y**k / mpmath.factorial(k) for k in counts]
    total = mpmath.fsum(terms)

    def expected(factors: list[mpmath.mpf]) -> mpmath.mpf:
        return mpmath.fdot(terms, factors) / total

    in_mean = mpmath.exp((g * (z - o) - g * g / 2) / s**2) - 1 if y == 0 else expected(list(counts)) / y - 1
    in_offset = expected(residuals) / s**2
    in_gain = expected([k * residuals[k] for k in counts]) / s**2
    in_read_std = expected([r**2 for r in residuals]) / s**3 - 1 / s
    return [mpmath.log(total / (s * mpmath.sqrt(2 * mpmath.pi))), -in_offset, in_mean, in_gain, in_offset, in_read_std]


def test_oracle_is_the_explicit_sum() -> None:
    points = oracle.random_points(400, seed=1)
    n_compared = 0
    with mpmath.workdps(80):
        for point in points.T:
            largest = point[1] + abs(point[0] - point[3]) / point[2]
            n_terms = int(largest + 30 * math.sqrt(largest)) + 200
            if n_terms > 1500 or n_compared == 60:
                continue
            n_compared += 1
            found = oracle.poisson_gaussian(*map(float, point))
            for ours, theirs in zip((found.value, *found.gradient), explicit_sum(point, n_terms), strict=True):
                assert abs(ours - theirs) <= mpmath.mpf(10) ** -45 * max(1, abs(theirs)), point
    assert n_compared == 60


def test_oracle_of_bright_pixels_is_the_density_of_the_sum() -> None:
    """A million photons and 100 electrons of read noise: the sum over counts is an integral, done by quadrature."""
    point = (1.0e6 + 1234.5, 1e6, 1.0, 0.0, 100.0)
    z, y, _, _, s = (mpmath.mpf(value) for value in point)
    with mpmath.workdps(30):

        def term(k: mpmath.mpf) -> mpmath.mpf:
            log_poisson = k * mpmath.log(y) - y - mpmath.loggamma(k + 1)
            return mpmath.exp(log_poisson - ((z - k) / s) ** 2 / 2)

        nodes = mpmath.linspace(y - 3000, y + 5000, 41)
        integral = mpmath.log(mpmath.quad(term, nodes) / (s * mpmath.sqrt(2 * mpmath.pi)))
        found = oracle.poisson_gaussian(*point).value
    assert math.isclose(float(found), float(integral), rel_tol=1e-14)
    assert abs(found - integral) < mpmath.mpf(10) ** -18
