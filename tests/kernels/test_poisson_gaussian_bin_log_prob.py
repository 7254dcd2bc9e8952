"""Probability of a bin of a digitised, saturating sensor: the kernel contract, and truth by mpmath."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import mpmath
import pytest
import torch
from torch import Tensor

from bitlens import ops

sys.path.insert(0, str(Path(__file__).parent))
import contract
from contract import Case, running

BACKENDS = ("cpu", "numba", "cuda_on_cpu")
DIGITS = 60


def caller(below: float, above: float, full_well: float):
    def call(measured: Tensor, mean: Tensor, gain: Tensor, offset: Tensor, read_std: Tensor) -> Tensor:
        return ops.poisson_gaussian_bin_log_prob(
            measured,
            mean,
            gain=gain,
            offset=offset,
            read_std=read_std,
            below=below,
            above=above,
            full_well_electrons=full_well,
        )

    return call


def sensor_inputs(shape: tuple[int, ...], broadcast: bool = False):
    """Means of 0.1 to 100, read noise of 0.3 to 5 ADU, some pixels far outside the expected spread."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
        def uniform(low: float, high: float, size: tuple[int, ...]) -> Tensor:
            return low + (high - low) * torch.rand(size, generator=generator, dtype=torch.float64)

        small = (1,) * len(shape) if broadcast else shape
        mean = 10 ** uniform(-1, 2, shape)
        gain, offset = uniform(0.5, 2.5, small), uniform(-5, 20, small[-1:] if broadcast else shape)
        read_std = 10 ** uniform(-0.5, 0.7, ())
        spread = torch.sqrt(gain**2 * mean + read_std**2)
        measured = torch.round(gain * mean + offset + 2.5 * spread * uniform(-1, 1, shape))
        return tuple(t.to(dtype) for t in (measured, mean, gain, offset, read_std))

    return make


KINDS = {
    "code": (0.5, 0.5, math.inf),
    "code below the full well": (0.5, 0.5, 40.0),
    "top code": (0.5, math.inf, math.inf),
    "code zero, full well": (math.inf, 0.5, 25.5),
    "density below the full well": (0.0, 0.0, 40.0),
}
# Derivatives in gain and read_std are sums of terms some thousand times their result, in the reference as in ours.
CASES = {name: Case(caller(*kind), sensor_inputs((3, 5, 7), True), 1e-11) for name, kind in KINDS.items()}


def oracle(
    measured: float,
    mean: float,
    gain: float,
    offset: float,
    read_std: float,
    below: float,
    above: float,
    full_well: float,
) -> mpmath.mpf:
    """The sum in 60 digits, outward from the largest term of the counts below the full well."""
    with mpmath.workdps(DIGITS):
        y, g, o, s, z = (mpmath.mpf(v) for v in (mean, gain, offset, read_std, measured))
        # A log-concave sum may be cut in units of its largest term.
        filled = math.ceil(full_well) if math.isfinite(full_well) else None

        def log_mass(charge: mpmath.mpf) -> mpmath.mpf:
            middle = (z - o - g * charge) / s
            if below == above == 0:
                return -(middle**2) / 2 - mpmath.log(s * mpmath.sqrt(2 * mpmath.pi))
            a, b = middle - mpmath.mpf(below) / s, middle + mpmath.mpf(above) / s
            if a + b > 0:
                a, b = -b, -a
            # Digits beyond those that the difference of two nearly equal tails costs.
            root = mpmath.sqrt(2)
            if a == -mpmath.inf:
                return mpmath.log(mpmath.erfc(-b / root) / 2)
            return mpmath.log((mpmath.erfc(-b / root) - mpmath.erfc(-a / root)) / 2)

        def log_term(k: int) -> mpmath.mpf:
            return k * log_y - y - mpmath.loggamma(k + 1) + log_mass(mpmath.mpf(k))

        if mean == 0:
            return log_mass(mpmath.mpf(0))
        log_y = mpmath.log(y)
        low, high = 0, int(mean + 60 * math.sqrt(mean) + 400 + max(0.0, (measured - offset) / gain))
        if filled is not None:
            high = min(high, filled - 1)
        last = high
        while high - low > 2:  # log-concave: the largest term by bisection on the step
            k = (low + high) // 2
            if log_term(k + 1) > log_term(k):
                low = k + 1
            else:
                high = k
        best = max(range(low, high + 1), key=log_term)
        unit, total = log_term(best), mpmath.mpf(1)
        for step in (1, -1):
            k = best + step
            while 0 <= k <= last:
                term = mpmath.exp(log_term(k) - unit)
                total += term
                if term < total * mpmath.mpf(10) ** -20:
                    break
                k += step
        result = unit + mpmath.log(total)
        if filled is not None:
            if filled > mean:
                tail = mpmath.gammainc(filled, 0, y, regularized=True)
            else:
                tail = 1 - mpmath.gammainc(filled, y, regularized=True)
            other = mpmath.log(tail) + log_mass(mpmath.mpf(full_well))
            top = max(result, other)
            result = top + mpmath.log(mpmath.exp(result - top) + mpmath.exp(other - top))
        return result


def random_points(count: int) -> list[tuple[float, ...]]:
    generator = contract.generator(11)
    u = torch.rand((count, 8), generator=generator, dtype=torch.float64).tolist()
    points = []
    for i, row in enumerate(u):
        mean = 0.0 if i % 17 == 0 else 10 ** (-3 + 6 * row[0])
        gain = 10 ** (-1.5 + 3 * row[1])
        read_std = gain * 10 ** (-2 + 3.5 * row[2])
        offset = -50 + 200 * row[3]
        well = math.inf if i % 3 else max(math.ceil(10 * mean ** (0.9 + 0.2 * row[4])) / 10, 0.7) + 0.5 * (i % 2)
        spread = math.sqrt(gain**2 * mean + read_std**2)
        reach = (1, 6, 40)[i % 3]
        measured = float(round(gain * min(mean, well) + offset + reach * spread * (2 * row[5] - 1)))
        below, above = ((0.5, 0.5), (0.5, 0.5), (math.inf, 0.5), (0.5, math.inf), (0.0, 0.0))[i % 5]
        points.append((measured, mean, gain, offset, read_std, below, above, well))
    return points


@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_mpmath(backend: str) -> None:
    points = random_points(150)
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True)]
    with running(backend):
        values = ops.poisson_gaussian_bin_log_prob(
            columns[0],
            columns[1],
            **dict(
                zip(
                    ("gain", "offset", "read_std", "below", "above", "full_well_electrons"),
                    columns[2:],
                    strict=True,
                )
            ),
        )
    for value, point in zip(values.tolist(), points, strict=True):
        truth = oracle(*point)
        assert abs(value - float(truth)) <= 1e-10 * max(1.0, abs(float(truth))), (point, value, float(truth))


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_the_reference(backend: str, kind: str, dtype: torch.dtype) -> None:
    contract.check_against_reference(CASES[kind], backend, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str, kind: str) -> None:
    contract.check_gradcheck(Case(caller(*KINDS[kind]), sensor_inputs((2, 3), True)), backend, second=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_agree_with_mpmath(backend: str) -> None:
    """Against central differences of the 60-digit sum."""
    points = [p for p in random_points(60) if p[1] > 0][:40]
    leaves = [torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True)]
    learned = [leaf.requires_grad_() for leaf in leaves[:5]]
    keywords = dict(zip(("below", "above", "full_well_electrons"), leaves[5:], strict=True))
    with running(backend):
        value = ops.poisson_gaussian_bin_log_prob(
            learned[0], learned[1], gain=learned[2], offset=learned[3], read_std=learned[4], **keywords
        )
    slopes = torch.autograd.grad(value.sum(), learned)
    for row, point in enumerate(points):
        for column in range(5):
            with mpmath.workdps(DIGITS):
                step = mpmath.mpf(10) ** -9 * max(1, abs(point[column])) if column in (0, 3) else None
                step = step or mpmath.mpf(10) ** -9 * point[column]
                ends = [
                    oracle(*point[:column], mpmath.mpf(point[column]) + sign * step, *point[column + 1 :])
                    for sign in (-1, 1)
                ]
                truth = float((ends[1] - ends[0]) / (2 * step))
            found = slopes[column][row].item()
            assert abs(found - truth) <= 1e-8 * max(1.0, abs(truth)), (point, column, found, truth)


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous(backend: str, dtype: torch.dtype) -> None:
    contract.check_non_contiguous(CASES["code"], backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_and_two_threads_agree(backend: str) -> None:
    contract.check_threads_agree(Case(caller(0.5, 0.5, 60.0), sensor_inputs((20, 150), True)), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_compile(backend: str) -> None:
    contract.check_compiles(CASES["code below the full well"], backend)


def test_instruction_sets_agree() -> None:
    for kind in KINDS:
        contract.check_instruction_sets_agree(CASES[kind], torch.float64, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_and_single(backend: str) -> None:
    with running(backend):
        leaf = torch.zeros((0, 4), requires_grad=True)
        value = ops.poisson_gaussian_bin_log_prob(leaf, leaf, read_std=1.0)
        value.sum().backward()
        assert value.shape == (0, 4)
        single = ops.poisson_gaussian_bin_log_prob(torch.tensor(0.0), 0.0, read_std=2.0)
    assert single.shape == ()
    assert single.item() == pytest.approx(math.log(math.erf(0.25 / math.sqrt(2))), abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_long_reduction(backend: str) -> None:
    """The gradient of a scalar that 65,537 pixels share is one long sum."""
    measured = torch.round(12 + 5 * torch.randn(65_537, generator=contract.generator(), dtype=torch.float32))
    gradients = []
    for name, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        leaf = torch.tensor(2.0, dtype=dtype, requires_grad=True)
        with running(name):
            values = ops.poisson_gaussian_bin_log_prob(measured.to(dtype), 10.0, offset=2.0, read_std=leaf)
        gradients.append(torch.autograd.grad(values.sum(), leaf)[0].item())
    assert gradients[0] == pytest.approx(gradients[1], rel=2e-5)


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("argument", range(5))
def test_not_finite_gives_nan_only_where_it_touches(backend: str, argument: int, bad: float) -> None:
    inputs = [t.clone() for t in sensor_inputs((17,))(torch.float64, contract.generator())]
    inputs[4] = inputs[4].expand(17).clone()
    inputs[argument][3] = bad
    with running(backend):
        value = caller(0.5, 0.5, 50.0)(*inputs)
    assert torch.isnan(value).tolist() == [i == 3 for i in range(17)]


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_outside_the_domain_is_nan(backend: str) -> None:
    one = torch.ones(3, dtype=torch.float64)
    good = {"mean": 1.0, "gain": 1.0, "read_std": 1.0, "below": 0.5, "above": 0.5, "full_well_electrons": 9.0}
    bad = (
        ("mean", -1e-9),
        ("mean", 2e9),
        ("gain", 0.0),
        ("read_std", -1.0),
        ("below", -0.1),
        ("full_well_electrons", 0.0),
    )
    with running(backend):
        for name, value in (*bad, ("above", math.nan)):
            result = ops.poisson_gaussian_bin_log_prob(one, **(good | {name: value}))
            assert bool(torch.isnan(result).all()), name
        everything = ops.poisson_gaussian_bin_log_prob(one, **(good | {"below": math.inf, "above": math.inf}))
        assert bool(torch.isnan(everything).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_arguments_end(backend: str) -> None:
    """Nothing here may hang or overflow; a probability is at most one."""
    with running(backend):
        for mean in (0.0, 1e-300, 1e-5, 1.0, 1e5, 1e8):
            for sigma in (1e-6, 1.0, 1e6, 1e100):
                for measured in (-1e9, 0.0, 3.0, 1e9):
                    for well in (0.3, 1e4, math.inf):
                        value = ops.poisson_gaussian_bin_log_prob(
                            torch.tensor([measured], dtype=torch.float64),
                            mean,
                            read_std=sigma,
                            full_well_electrons=well,
                        )
                        assert value.item() <= 0.0


def test_wrong_arguments() -> None:
    z = torch.zeros(3)
    op = ops.poisson_gaussian_bin_log_prob
    contract.expect_error(TypeError, ("measured", "Tensor", "list"), lambda: op([1.0], 1.0, read_std=1.0))
    contract.expect_error(
        TypeError, ("below", "float32", "float64"), lambda: op(z, 1.0, read_std=1.0, below=torch.zeros(3).double())
    )
    contract.expect_error(
        ValueError, ("full_well_electrons", "(2,)"), lambda: op(z, z, read_std=1.0, full_well_electrons=torch.ones(2))
    )


def test_second_derivatives_say_where_they_are() -> None:
    leaf = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    with running("cpu"):
        (slope,) = torch.autograd.grad(
            ops.poisson_gaussian_bin_log_prob(leaf.detach(), leaf, read_std=1.0), leaf, create_graph=True
        )
        with pytest.raises(RuntimeError, match="reference backend"):
            torch.autograd.grad(slope, leaf)


@pytest.mark.parametrize("backend", BACKENDS)
def test_slope_without_light_of_a_quiet_sensor(backend: str) -> None:
    """Codes are counts: d/dy log(exp(-y) y^k / k!) = k / y - 1, also at y = 0 for code 0."""
    code = torch.tensor([0.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    mean = torch.tensor([0.0, 1e-3, 1e-3, 1e-3], dtype=torch.float64, requires_grad=True)
    below = torch.tensor([math.inf, math.inf, 0.5, 0.5], dtype=torch.float64)
    with running(backend):
        value = ops.poisson_gaussian_bin_log_prob(code, mean, read_std=0.01, below=below)
        (slope,) = torch.autograd.grad(value.sum(), mean)
    counts = torch.tensor([0.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(slope, torch.where(counts > 0, counts / 1e-3, 0.0) - 1.0, rtol=1e-9, atol=1e-12)
