"""Poisson-Gaussian log-likelihood: the kernel contract, and truth by mpmath."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitlens import ops

sys.path.insert(0, str(Path(__file__).parent))
import contract
from contract import Case, running

BACKENDS = ("cpu", "numba", "cuda_on_cpu")


def call(measured: Tensor, mean: Tensor, gain: Tensor, offset: Tensor, read_std: Tensor) -> Tensor:
    return ops.poisson_gaussian_log_prob(measured, mean, gain=gain, offset=offset, read_std=read_std)


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
        measured = gain * mean + offset + 3 * spread * uniform(-1, 1, shape)
        return tuple(t.to(dtype) for t in (measured, mean, gain, offset, read_std))

    return make


# Derivatives in gain and read_std are sums of terms some thousand times their result, in the reference as in ours.
CASE = Case(call, sensor_inputs((3, 5, 7), broadcast=True), float64_tolerance=1e-11)
PLAIN = Case(call, sensor_inputs((200,)), float64_tolerance=1e-11)


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("case", [CASE, PLAIN], ids=["broadcast", "plain"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    contract.check_against_reference(case, backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_agree_to_float64_tolerance(backend: str) -> None:
    inputs = PLAIN.inputs(torch.float64, contract.generator(5))
    with running("reference"):
        truth = call(*inputs)
    with running(backend):
        assert contract.relative_error(call(*inputs), truth) <= contract.FLOAT64_TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_first_and_second_order(backend: str) -> None:
    contract.check_gradcheck(Case(call, sensor_inputs((6,))), backend, second=True)
    contract.check_gradcheck(Case(call, sensor_inputs((2, 3), broadcast=True)), backend, second=True)


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous(backend: str, dtype: torch.dtype) -> None:
    contract.check_non_contiguous(CASE, backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_and_two_threads_agree(backend: str) -> None:
    contract.check_threads_agree(Case(call, sensor_inputs((50, 300), broadcast=True)), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_compile(backend: str) -> None:
    contract.check_compiles(CASE, backend)


def test_instruction_sets_agree() -> None:
    contract.check_instruction_sets_agree(PLAIN, torch.float64, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_and_single(backend: str) -> None:
    with running(backend):
        empty = call(*(torch.zeros((0, 4)) for _ in range(5)))
        assert empty.shape == (0, 4)
        leaf = torch.zeros((0, 4), requires_grad=True)
        ops.poisson_gaussian_log_prob(leaf, leaf, read_std=1.0).sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.shape == (0, 4)
        single = ops.poisson_gaussian_log_prob(torch.tensor(0.0), 0.0, read_std=2.0)
        assert single.shape == ()
        assert single.item() == pytest.approx(-math.log(2.0) - 0.5 * math.log(2 * math.pi), abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_long_reduction(backend: str) -> None:
    """The gradient of a scalar that 65,537 pixels share is one long sum."""
    measured = 12 + 5 * torch.randn(65_537, generator=contract.generator(), dtype=torch.float32)
    gradients = []
    for name, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        leaf = torch.tensor(2.0, dtype=dtype, requires_grad=True)
        with running(name):
            values = ops.poisson_gaussian_log_prob(measured.to(dtype), 10.0, offset=2.0, read_std=leaf)
        gradients.append(torch.autograd.grad(values.sum(), leaf)[0].item())
    assert gradients[0] == pytest.approx(gradients[1], rel=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_axes_that_cannot_be_merged(backend: str) -> None:
    shape = (2,) * 13
    generator = contract.generator()
    mean = torch.rand(shape, generator=generator, dtype=torch.float64).permute(*reversed(range(13)))
    measured = torch.rand((2, 1) * 6 + (2,), generator=generator, dtype=torch.float64)
    with running(backend):
        value = ops.poisson_gaussian_log_prob(measured, mean, read_std=0.5)
    with running("reference"):
        torch.testing.assert_close(value, ops.poisson_gaussian_log_prob(measured, mean, read_std=0.5))


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("argument", range(5))
def test_not_finite_gives_nan_only_where_it_touches(backend: str, argument: int, bad: float) -> None:
    inputs = [t.clone() for t in sensor_inputs((17,))(torch.float64, contract.generator())]
    inputs[4] = inputs[4].expand(17).clone()
    inputs[argument][3] = bad
    with running(backend):
        value = call(*inputs)
    expected = torch.zeros(17, dtype=torch.bool)
    expected[3] = True
    assert torch.equal(torch.isnan(value), expected)


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_outside_the_domain_is_nan(backend: str) -> None:
    one = torch.ones(3, dtype=torch.float64)
    with running(backend):
        for mean, gain, read_std in ((-1e-9, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, 0.0)):
            value = ops.poisson_gaussian_log_prob(one, mean, gain=gain, read_std=read_std)
            assert bool(torch.isnan(value).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_arguments_end(backend: str) -> None:
    """Nothing here may hang or overflow: every value is a number, or NaN beyond 1e15 photo-electrons."""
    with running(backend):
        for mean in (0.0, 1e-300, 1e-5, 1.0, 1e5, 1e12, 1e300):
            for sigma in (1e-6, 1.0, 1e6, 1e100):
                for measured in (-1e9, 0.0, 3.5, 1e9):
                    value = ops.poisson_gaussian_log_prob(
                        torch.tensor([measured], dtype=torch.float64), mean, read_std=sigma
                    )
                    assert math.isnan(value.item()) if mean > 1e15 else value.item() < 14


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_no_photons_is_gaussian_and_has_a_finite_gradient(backend: str) -> None:
    z = torch.tensor([0.4, -1.0, 2.0], dtype=torch.float64)
    mean = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    with running(backend):
        value = ops.poisson_gaussian_log_prob(z, mean, gain=1.5, offset=0.2, read_std=0.8)
        (gradient,) = torch.autograd.grad(value.sum(), mean, create_graph=True)
        (second,) = torch.autograd.grad(gradient.sum(), mean)
    normal = [-0.5 * ((z - 1.5 * k - 0.2) / 0.8) ** 2 - math.log(0.8 * math.sqrt(2 * math.pi)) for k in range(3)]
    one, two = torch.exp(normal[1] - normal[0]), torch.exp(normal[2] - normal[0])
    torch.testing.assert_close(value.detach(), normal[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient.detach(), one - 1, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(second, two - one**2, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_no_photons_far_from_the_offset(backend: str) -> None:
    """The one-photon ratio overflows here; the value must not."""
    z = torch.tensor([2.0, 2.1], dtype=torch.float64)
    with running(backend):
        value = ops.poisson_gaussian_log_prob(z, 0.0, read_std=0.05)
    truth = -0.5 * (z / 0.05) ** 2 - math.log(0.05 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(value, truth, rtol=1e-13, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gain_slope_of_a_bright_pixel_and_a_quiet_sensor(backend: str) -> None:
    """gain k needs more digits than a double has: 1e5 electrons, read noise 0.05 electrons."""
    point = (2.301e5, 1e5, 2.3, 100.0, 0.115)
    exact = [float(v) for v in true_log_prob(*point)]
    leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in point]
    with running(backend):
        value = call(*leaves)
    gradients = [g.item() for g in torch.autograd.grad(value, leaves)]
    for ours, true in zip([value.item(), *gradients], exact, strict=True):
        assert abs(ours - true) <= 1e-7 * max(1.0, abs(true))


@pytest.mark.parametrize("backend", BACKENDS)
def test_functional_transforms(backend: str) -> None:
    measured, mean, gain, offset, read_std = sensor_inputs((4,))(torch.float64, contract.generator())

    def total(y: Tensor) -> Tensor:
        return call(measured, y, gain, offset, read_std).sum()

    with running("reference"):
        leaf = mean.clone().requires_grad_()
        truth = torch.autograd.grad(total(leaf), leaf)[0]
        second = torch.autograd.functional.hessian(total, mean)
    with running(backend):
        torch.testing.assert_close(torch.func.grad(total)(mean), truth, rtol=1e-9, atol=1e-9)
        _, tangent = torch.func.jvp(total, (mean,), (torch.ones_like(mean),))
        torch.testing.assert_close(tangent, truth.sum(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(torch.func.hessian(total)(mean), second, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(total))(mean), second, rtol=1e-8, atol=1e-8)
        per_pixel = torch.func.vmap(
            lambda z, y: ops.poisson_gaussian_log_prob(z, y, gain=gain, offset=offset, read_std=read_std),
            in_dims=(None, 0),
        )(measured, torch.stack([mean, 2 * mean]))
        torch.testing.assert_close(per_pixel[1], call(measured, 2 * mean, gain, offset, read_std))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(mean, torch.ones_like(mean))
            tangent = torch.autograd.forward_ad.unpack_dual(total(dual)).tangent
            torch.testing.assert_close(tangent, truth.sum(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_only_where_asked(backend: str) -> None:
    inputs = list(sensor_inputs((5,))(torch.float64, contract.generator()))
    for index in range(5):
        leaves = [t.clone().requires_grad_(i == index) for i, t in enumerate(inputs)]
        with running(backend):
            call(*leaves).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [i == index for i in range(5)]


def test_operator_registration_is_sound() -> None:
    inputs = tuple(t.requires_grad_() for t in sensor_inputs((3,))(torch.float64, contract.generator()))
    operator = torch.ops.bitlens.poisson_gaussian_log_prob.default
    torch.library.opcheck(operator, (*inputs, "cpu"))


def test_backend_of_the_forward_pass_serves_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitlens.kernels.poisson_gaussian_log_prob import op

    used = []
    evaluate = op._evaluate
    monkeypatch.setattr(op, "_evaluate", lambda t, backend, *rest: used.append(backend) or evaluate(t, backend, *rest))
    mean = torch.ones(3, dtype=torch.float64, requires_grad=True)
    with running("numba"):
        value = ops.poisson_gaussian_log_prob(torch.ones(3, dtype=torch.float64), mean, read_std=1.0)
    torch.autograd.grad(value.sum(), mean, create_graph=True)
    assert used == ["numba", "numba"]


def test_wrong_arguments() -> None:
    z = torch.zeros(3)
    f = ops.poisson_gaussian_log_prob
    expect = contract.expect_error
    expect(TypeError, ("measured", "torch.Tensor", "ndarray"), lambda: f(np.zeros(3), z, read_std=1.0))
    expect(
        TypeError,
        ("measured", "float32", "int64"),
        lambda: f(torch.zeros(3, dtype=torch.int64), z, read_std=1.0),
    )
    expect(TypeError, ("mean", "float32", "float64"), lambda: f(z, z.double(), read_std=1.0))
    expect(TypeError, ("read_std", "str"), lambda: f(z, z, read_std="2"))
    expect(ValueError, ("mean", "broadcast", "(3,)", "(4,)"), lambda: f(z, torch.zeros(4), read_std=1.0))
    expect(ValueError, ("name", "reference", "fast"), lambda: ops.use_backend("fast").__enter__())


def true_log_prob(z: float, y: float, g: float, o: float, s: float, digits: int = 40) -> list[mpmath.mpf]:
    """Value and derivatives in the five arguments by the explicit sum in high precision."""
    with mpmath.workdps(digits):
        z, y, g, o, s = (mpmath.mpf(float(v)) for v in (z, y, g, o, s))
        if y == 0:
            low, high = 0, 0
        else:
            centre, width = _posterior(float(z), float(y), float(g), float(o), float(s))
            low, high = max(0, math.floor(centre - 14 * width - 40)), math.ceil(centre + 14 * width + 60)
        log_term = -y + (low * mpmath.log(y) if low else 0) - mpmath.loggamma(low + 1)
        sums = [mpmath.mpf(0)] * 5
        peak = None
        for k in range(low, high + 1):
            r = z - o - g * k
            exponent = log_term - r * r / (2 * s * s)
            peak = exponent if peak is None else peak
            weight = mpmath.exp(exponent - peak)
            for i, moment in enumerate((1, k, k * r, r, r * r)):
                sums[i] += weight * moment
            if y > 0:
                log_term += mpmath.log(y) - mpmath.log(k + 1)
        total = sums[0]
        value = peak + mpmath.log(total) - mpmath.log(s) - mpmath.log(2 * mpmath.pi) / 2
        k_mean, kr, r_mean, rr = (part / total for part in sums[1:])
        if y == 0:
            slope = mpmath.exp((g * (z - o) - g * g / 2) / (s * s)) - 1
        else:
            slope = k_mean / y - 1
        return [value, -r_mean / s**2, slope, kr / s**2, r_mean / s**2, rr / s**3 - 1 / s]


def _posterior(z: float, y: float, g: float, o: float, s: float) -> tuple[float, float]:
    low, high = -700.0, 60.0  # bisection on log k of the summand's slope
    for _ in range(200):
        middle = 0.5 * (low + high)
        slope = math.log(y) - middle + (g / s**2) * (z - o - g * math.exp(middle))
        low, high = (middle, high) if slope > 0 else (low, middle)
    k = math.exp(low)
    return k, 1 / math.sqrt(1 / max(k, 1.0) + (g / s) ** 2)


def truth_points(count: int) -> np.ndarray:
    random = np.random.default_rng(20)
    mean = np.where(np.arange(count) % 25 == 0, 0.0, 10 ** random.uniform(-4, 5, count))
    gain = random.uniform(0.3, 3.0, count)
    read_std = gain * 10 ** random.uniform(math.log10(0.05), math.log10(50), count)
    offset = random.uniform(-100, 100, count)
    measured = gain * random.poisson(mean) + offset + read_std * random.standard_normal(count)
    far = np.arange(count) % 10 == 3
    measured[far] += 6 * np.sqrt(gain**2 * mean + read_std**2)[far]
    return np.stack([measured, mean, gain, offset, read_std])


@pytest.fixture(scope="module")
def truth() -> tuple[np.ndarray, np.ndarray]:
    points = truth_points(500)
    return points, np.array([[float(v) for v in true_log_prob(*point)] for point in points.T]).T


@pytest.mark.parametrize("backend", BACKENDS)
def test_against_mpmath(backend: str, truth: tuple[np.ndarray, np.ndarray]) -> None:
    """500 points: mean 0 to 1e5, read noise 0.05 to 50 electrons; value to 1e-9, every gradient to 1e-7."""
    points, exact = truth
    leaves = [torch.from_numpy(row).clone().requires_grad_() for row in points]
    with running(backend):
        value = call(*leaves)
    gradients = torch.autograd.grad(value.sum(), leaves)
    scale = np.maximum(1.0, np.abs(exact))
    error = np.abs(np.stack([value.detach().numpy(), *(g.numpy() for g in gradients)]) - exact) / scale
    assert error[0].max() <= 1e-9, error[0].max()
    assert error[1:].max() <= 1e-7, error[1:].max(axis=1)


@settings(max_examples=60, deadline=None)
@given(
    mean=st.floats(0.0, 300.0),
    sigma=st.floats(0.05, 40.0),
    gain=st.floats(0.2, 5.0),
)
def test_integrates_to_one(mean: float, sigma: float, gain: float) -> None:
    """The density over all measured values integrates to 1 whatever the sensor."""
    spread = gain * math.sqrt(mean + sigma**2)
    step = gain * min(sigma, 1.0) / 6
    low, high = gain * mean - 9.5 * spread - 10 * gain, gain * mean + 9.5 * spread + 15 * gain
    z = torch.arange(low, high, step, dtype=torch.float64)
    density = torch.exp(ops.poisson_gaussian_log_prob(z, mean, gain=gain, read_std=gain * sigma))
    assert float(density.sum()) * step == pytest.approx(1.0, abs=1e-9)
