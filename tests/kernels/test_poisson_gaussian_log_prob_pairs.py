"""All pairs of Poisson-Gaussian likelihoods: the kernel contract, and the elementwise kernel as the oracle."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitlens import ops

sys.path.insert(0, str(Path(__file__).parent))
import contract
from contract import Case, running

BACKENDS = ("cpu", "numba", "cuda_on_cpu")


def call(measured: Tensor, mean: Tensor, gain: Tensor, offset: Tensor, read_std: Tensor) -> Tensor:
    return ops.poisson_gaussian_log_prob_pairs(measured, mean, gain=gain, offset=offset, read_std=read_std)


def inputs(n: int, m: int, pixels: tuple[int, ...], maps: bool = True, faintest: float = -1.0):
    """Means of 0.1 to 100, measured values of one of them; a sensor of maps, or of numbers."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
        def uniform(low: float, high: float, size: tuple[int, ...]) -> Tensor:
            return low + (high - low) * torch.rand(size, generator=generator, dtype=torch.float64)

        mean = 10 ** uniform(faintest, 2, (m, *pixels))
        gain = uniform(0.5, 2.5, pixels if maps else ())
        offset = uniform(-5, 20, pixels[-1:] if maps else ())
        read_std = gain * 10 ** uniform(-0.5, 0.7, pixels if maps else ())
        source = mean[torch.randint(m, (n,), generator=generator)]
        spread = torch.sqrt(gain**2 * source + read_std**2)
        measured = gain * source + offset + 2 * spread * uniform(-1, 1, source.shape)
        return tuple(t.to(dtype) for t in (measured, mean, gain, offset, read_std))

    return make


# Few pairs are evaluated one by one, many through tables. As in the elementwise kernel, derivatives in gain and
# read_std are sums of terms some thousand times their result, and here of some thousand pairs besides.
FEW = Case(call, inputs(3, 4, (2, 3)), float64_tolerance=1e-11)
MANY = Case(call, inputs(44, 34, (2, 1)), float64_tolerance=1e-10)
ONE_SENSOR = Case(call, inputs(66, 34, (2,), maps=False), float64_tolerance=1e-10)


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("case", [FEW, MANY, ONE_SENSOR], ids=["few", "many", "one_sensor"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    contract.check_against_reference(case, backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    contract.check_gradcheck(Case(call, inputs(2, 3, (2,))), backend, second=False)


def test_gradcheck_of_tables() -> None:
    contract.check_gradcheck(Case(call, inputs(36, 34, (1,))), "cpu", second=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_are_an_error_that_says_where_they_are(backend: str) -> None:
    measured, mean, *sensor = inputs(2, 3, (2,))(torch.float64, contract.generator())
    mean.requires_grad_()
    with running(backend):
        (gradient,) = torch.autograd.grad(call(measured, mean, *sensor).sum(), mean, create_graph=True)
        contract.expect_error(RuntimeError, ("second derivatives", "reference"), gradient.sum().backward)
    with running("reference"):
        assert torch.autograd.gradgradcheck(lambda y: call(measured, y, *sensor), (mean,))


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous(backend: str, dtype: torch.dtype) -> None:
    contract.check_non_contiguous(MANY if backend == "cpu" else FEW, backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_and_two_threads_agree(backend: str) -> None:
    contract.check_threads_agree(Case(call, inputs(150, 40, (9,))), backend)


@pytest.mark.parametrize("case", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_compile(backend: str, case: Case) -> None:
    contract.check_compiles(case, backend)


@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_instruction_sets_agree(dtype: torch.dtype) -> None:
    contract.check_instruction_sets_agree(MANY, dtype, 1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_and_grad(backend: str) -> None:
    """Mapped over measured sets, over sensors, and over the gradient of each set's total."""
    measured, mean, gain, offset, read_std = inputs(6, 3, (2,), maps=False)(torch.float64, contract.generator())
    sets, gains = measured.reshape(2, 3, 2), torch.stack([gain, 1.1 * gain])
    with running(backend):
        mapped = torch.func.vmap(lambda z, g: call(z, mean, g, offset, read_std))(sets, gains)
        each = torch.stack([call(z, mean, g, offset, read_std) for z, g in zip(sets, gains, strict=True)])
        torch.testing.assert_close(mapped, each)
        total = torch.func.grad(lambda y, z: call(z, y, gain, offset, read_std).sum())
        mapped = torch.func.vmap(total, in_dims=(None, 0))(mean, sets)
        torch.testing.assert_close(mapped, torch.stack([total(mean, z) for z in sets]))


def truth_by_element(measured: Tensor, mean: Tensor, **sensor: float) -> Tensor:
    """Each pair and pixel by the elementwise kernel in float64, which has mpmath for its oracle."""
    return ops.poisson_gaussian_log_prob(measured.double()[:, None], mean.double()[None], **sensor)


SCENES = {
    "usual": (0.5, 50.0, 1.5, 1.0, 0.0),
    "quiet sensor": (0.0, 5.0, 0.3, 2.0, 100.1),
    "eight decades": (1e-5, 1e3, 3.0, 0.5, 10.0),
    "bright": (0.99e4, 1.01e4, 1.5, 1.0, 0.0),
    "faint to bright": (1.0, 1e4, 1.5, 1.0, 0.0),
    "loud": (5.0, 50.0, 30.0, 1.0, 0.0),
    "very loud": (0.0, 3.0, 100.0, 1.0, 0.0),
    "full wells": (1e3, 1e6, 10.0, 1.0, 0.0),
    "dark": (0.0, 1e-3, 0.5, 1.0, 0.0),
}


def scene(name: str, dtype: torch.dtype, n: int = 130, m: int = 200, pixels: int = 3) -> tuple[Tensor, Tensor]:
    low, high, read_std, gain, offset = SCENES[name]
    generator = contract.generator(3)
    mean = low + (high - low) * torch.rand((m, pixels), generator=generator, dtype=torch.float64)
    if low == 0.0:
        mean[::3] = 0.0
    elif high / low > 1e3:
        mean = low * (high / low) ** torch.rand((m, pixels), generator=generator, dtype=torch.float64)
    source = mean[torch.randint(m, (n,), generator=generator)]
    noise = torch.randn(source.shape, generator=generator, dtype=torch.float64)
    return (gain * torch.poisson(source, generator=generator) + offset + read_std * noise).to(dtype), mean.to(dtype)


@pytest.mark.parametrize("name", SCENES)
def test_tables_are_as_good_as_the_elementwise_kernel(name: str) -> None:
    """One pixel and several, near and far pairs alike: 4 eps in single precision, 2e-12 in double.

    Interpolation takes 1e-7 of the single precision bound, rounding of table and weights the rest.
    """
    _, _, read_std, gain, offset = SCENES[name]
    for dtype, bound in ((torch.float32, 4 * torch.finfo(torch.float32).eps), (torch.float64, 2e-12)):
        measured, mean = scene(name, dtype)
        truth = truth_by_element(measured, mean, gain=gain, offset=offset, read_std=read_std)
        with ops.use_backend("cpu"):
            for pixels in (slice(0, 1), slice(0, 3)):
                ours = ops.poisson_gaussian_log_prob_pairs(
                    measured[:, pixels], mean[:, pixels], gain=gain, offset=offset, read_std=read_std
                )
                assert contract.relative_error(ours, truth[..., pixels].sum(-1)) <= bound


@pytest.mark.parametrize("name", [name for name in SCENES if name != "full wells"])
def test_gradients_of_tables_are_those_of_the_elementwise_kernel(name: str) -> None:
    """In all five arguments, relative to the largest element: 1e-12 in double, 2e-6 in single precision."""
    _, _, read_std, gain, offset = SCENES[name]
    weight = torch.rand((130, 200), generator=contract.generator(5), dtype=torch.float64)

    def gradients(dtype: torch.dtype, by_element: bool) -> tuple[Tensor, ...]:
        leaves = [t.to(torch.float64) if by_element else t for t in scene(name, dtype)]
        leaves += [torch.tensor(value, dtype=torch.float64) for value in (gain, offset, read_std)]
        for leaf in leaves:
            leaf.requires_grad_()
        sensor = dict(zip(("gain", "offset", "read_std"), leaves[2:], strict=True))
        if by_element:
            scores = ops.poisson_gaussian_log_prob(leaves[0][:, None], leaves[1][None], **sensor).sum(-1)
        else:
            scores = ops.poisson_gaussian_log_prob_pairs(leaves[0], leaves[1], **sensor)
        return torch.autograd.grad((weight * scores).sum(), leaves)

    with ops.use_backend("cpu"):
        for dtype, bound in ((torch.float32, 2e-6), (torch.float64, 1e-12)):
            for ours, truth in zip(gradients(dtype, False), gradients(dtype, True), strict=True):
                # A slope of more than 3e38 at no light, on a quiet sensor, is an infinity in single precision.
                fits = truth.abs() < torch.finfo(dtype).max
                assert bool(fits.any())
                error = (ours.double() - truth)[fits].abs().max() / truth[fits].abs().max().clamp(min=1)
                assert float(error) <= bound


def test_interpolation_error_alone() -> None:
    """Single precision at counts where rounding is smallest: the mean of many pairs' errors is interpolation's."""
    measured, mean = scene("usual", torch.float32, n=1000, m=800, pixels=1)
    truth = truth_by_element(measured, mean, read_std=1.5)[..., 0]
    with ops.use_backend("cpu"):
        error = ops.poisson_gaussian_log_prob_pairs(measured, mean, read_std=1.5).double() - truth
    near = truth > -8.0
    assert int(near.sum()) > 10_000
    assert float((error[near] / truth[near].abs().clamp(min=1)).abs().mean()) <= 1e-7


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_of_the_sensor_keep_double_precision(backend: str) -> None:
    measured, mean = torch.full((40, 1), 100_000.7), torch.full((50, 1), 12_000.0)
    sensor = {"gain": 8.1, "offset": 2800.3, "read_std": 9.7}
    truth = truth_by_element(measured, mean, **sensor)[..., 0]
    with running(backend):
        ours = ops.poisson_gaussian_log_prob_pairs(measured, mean, **sensor)
    assert contract.relative_error(ours, truth) <= 4 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_gives_nan_only_where_it_touches(backend: str, bad: float) -> None:
    for n, m in ((3, 4), (70, 60))[: 1 if backend == "reference" else 2]:
        measured, mean, *sensor = inputs(n, m, (2,))(torch.float64, contract.generator())
        measured[2, 1] = bad
        mean[1, 0] = bad
        mean[3, 1] = 0.0
        expected = torch.zeros(n, m, dtype=torch.bool)
        expected[2] = True
        expected[:, 1] = True
        with running(backend):
            assert torch.equal(torch.isnan(call(measured, mean, *sensor)), expected)
            sensor[2] = sensor[2].clone()
            sensor[2][1] = bad
            assert bool(torch.isnan(call(measured, mean, *sensor)).all())


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_outside_the_domain_is_nan(backend: str) -> None:
    for n, m in ((2, 3), (60, 50))[: 1 if backend == "reference" else 2]:
        measured, mean = torch.ones(n, 2, dtype=torch.float64), torch.ones(m, 2, dtype=torch.float64)
        negative = mean.clone()
        negative[1, 1] = -1e-9
        with running(backend):
            value = ops.poisson_gaussian_log_prob_pairs(measured, negative, read_std=1.0)
            assert bool(torch.isnan(value[:, 1]).all())
            assert bool(torch.isfinite(value[:, [0, 2]]).all())
            for gain, read_std in ((0.0, 1.0), (-1.0, 1.0), (1.0, 0.0)):
                value = ops.poisson_gaussian_log_prob_pairs(measured, mean, gain=gain, read_std=read_std)
                assert bool(torch.isnan(value).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_light(backend: str) -> None:
    """At mean 0 the score is the read noise's alone, and its slope in the mean that of one photon."""
    measured = torch.linspace(-2, 4, 60, dtype=torch.float64)[:, None]
    mean = torch.zeros(50, 1, dtype=torch.float64, requires_grad=True)
    with running(backend):
        scores = ops.poisson_gaussian_log_prob_pairs(measured, mean, read_std=0.8)
        (slope,) = torch.autograd.grad(scores.sum(), mean)
    normal = -0.5 * (measured / 0.8) ** 2 - math.log(0.8 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(scores, normal.expand(60, 50), rtol=1e-12, atol=1e-12)
    expected = (torch.exp((measured - 0.5) / 0.64) - 1).sum().expand(50, 1)
    torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_empty_and_single(backend: str) -> None:
    one = torch.ones(1, dtype=torch.float64)
    with running(backend):
        pairs = ops.poisson_gaussian_log_prob_pairs
        assert pairs(torch.zeros(0, 4), torch.zeros(3, 4), read_std=1.0).shape == (0, 3)
        assert pairs(torch.zeros(2, 4), torch.zeros(0, 4), read_std=1.0).shape == (2, 0)
        torch.testing.assert_close(pairs(torch.zeros(2, 0), torch.zeros(3, 0), read_std=1.0), torch.zeros(2, 3))
        leaf = torch.zeros(0, 4, requires_grad=True)
        pairs(leaf, torch.ones(3, 4), read_std=1.0).sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.shape == (0, 4)
        single = pairs(one, one, read_std=0.5)
        torch.testing.assert_close(single, ops.poisson_gaussian_log_prob(one, one, read_std=0.5)[None])


def test_one_long_reduction() -> None:
    """65,537 pixels in single precision: the sum is carried in double."""
    generator = contract.generator()
    mean = 5 + torch.rand(24, 65_537, generator=generator)
    measured = torch.poisson(mean[:20], generator=generator)
    with ops.use_backend("cpu"):
        ours = ops.poisson_gaussian_log_prob_pairs(measured, mean, read_std=1.0)
        truth = ops.poisson_gaussian_log_prob_pairs(measured[:3].double(), mean.double(), read_std=1.0)
        exact = truth_by_element(measured[:1], mean[:2], read_std=1.0).sum(-1)
    assert contract.relative_error(truth[:1, :2], exact) <= 1e-12
    assert contract.relative_error(ours[:3], truth) <= 4 * torch.finfo(torch.float32).eps


def test_only_what_is_asked_for_has_a_gradient() -> None:
    measured, mean, *sensor = inputs(60, 50, (3,))(torch.float64, contract.generator())
    read_std = sensor[2].clone().requires_grad_()
    with ops.use_backend("cpu"):
        call(measured, mean, sensor[0], sensor[1], read_std).sum().backward()
        both = [t.clone().requires_grad_() for t in (measured, mean, *sensor)]
        call(*both).sum().backward()
    assert measured.grad is None
    torch.testing.assert_close(read_std.grad, both[4].grad, rtol=1e-12, atol=1e-12)


def test_wrong_arguments() -> None:
    z, y = torch.zeros(2, 3), torch.zeros(4, 3)
    pairs = ops.poisson_gaussian_log_prob_pairs
    contract.expect_error(TypeError, ("measured", "float32", "int64"), lambda: pairs(z.long(), y, read_std=1.0))
    contract.expect_error(TypeError, ("mean", "float32", "float64"), lambda: pairs(z, y.double(), read_std=1.0))
    contract.expect_error(ValueError, ("mean", "(3,)", "(4, 2)"), lambda: pairs(z, torch.zeros(4, 2), read_std=1.0))
    contract.expect_error(ValueError, ("measured", "(n, ...)"), lambda: pairs(z[0, 0], y, read_std=1.0))
    contract.expect_error(ValueError, ("gain", "(3,)", "(2,)"), lambda: pairs(z, y, gain=torch.ones(2), read_std=1.0))
    contract.expect_error(TypeError, ("read_std", "torch.Tensor", "str"), lambda: pairs(z, y, read_std="1"))  # type: ignore[arg-type]
