"""Sums over channels, deconvolution, small PSFs, sums over a batch, and where torch's transform is taken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import scipy.signal
import torch
from torch import Tensor

from bitlens import ops
from bitlens.kernels import _compiled
from bitlens.kernels.psf_convolve import op

sys.path.insert(0, str(Path(__file__).parent))
import contract
from contract import Case, running

BACKENDS = ("cpu", "numba")
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_dtype = pytest.mark.parametrize("dtype", contract.DTYPES)


def normal(*shapes: tuple[int, ...]) -> Callable[[torch.dtype, torch.Generator], tuple[Tensor, ...]]:
    return lambda dtype, generator: tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    )


def channels(mode: str, boundary: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda image, psf: ops.psf_convolve_channels(image, psf, mode=mode, boundary=boundary)


def deconvolution(image: Tensor, psf: Tensor) -> Tensor:
    return ops.psf_deconvolve(image, psf, regularization=0.3)


CASES = {
    "channels": Case(channels("same", "zero"), normal((2, 3, 9, 14), (4, 3, 5, 6))),
    "channels-circular": Case(channels("same", "circular"), normal((2, 3, 10, 12), (2, 3, 5, 6))),
    "channels-many-outputs": Case(channels("full", "zero"), normal((3, 8, 7), (9, 3, 3, 4))),
    "channels-batch-of-psfs": Case(channels("valid", "zero"), normal((2, 1, 2, 9, 8), (3, 2, 2, 4, 3))),
    "one-psf-for-a-batch": Case(ops.psf_convolve, normal((20, 9, 11), (8, 9))),
    "one-image-for-psfs": Case(ops.psf_convolve, normal((9, 11), (20, 8, 9))),
    "direct": Case(ops.psf_convolve, normal((3, 21, 40), (5, 3))),
    "deconvolution": Case(deconvolution, normal((3, 10, 12), (5, 4))),
    "deconvolution-own-psfs": Case(deconvolution, normal((2, 3, 9, 8), (3, 12, 5))),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@every_dtype
@every_case
@every_backend
def test_agrees_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    contract.check_against_reference(case, backend, dtype)


@every_case
@every_backend
def test_compiles_without_graph_breaks(backend: str, case: Case) -> None:
    contract.check_compiles(case, backend)


@every_dtype
@every_case
@every_backend
def test_non_contiguous(backend: str, case: Case, dtype: torch.dtype) -> None:
    contract.check_non_contiguous(case, backend, dtype)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("deconvolution")])
@every_backend
def test_threads_agree(backend: str, name: str) -> None:
    """All but the inverse of a PSF, which torch's transform makes: its rounding depends on torch's threads."""
    contract.check_threads_agree(CASES[name], backend)


@every_dtype
@every_case
def test_instruction_sets_agree(case: Case, dtype: torch.dtype) -> None:
    contract.check_instruction_sets_agree(case, dtype, 1e-5 if dtype == torch.float32 else 1e-13)


@every_backend
def test_gradcheck(backend: str) -> None:
    for mode, boundary in (("same", "zero"), ("same", "circular"), ("full", "zero")):
        case = Case(channels(mode, boundary), normal((2, 2, 4, 5), (3, 2, 2, 3)))
        contract.check_gradcheck(case, backend, second=True)
    contract.check_gradcheck(Case(deconvolution, normal((2, 4, 5), (3, 2))), backend, second=True)
    weight = Case(
        lambda image, psf, x: ops.psf_deconvolve(image, psf, regularization=x.exp()), normal((4, 5), (2, 3, 3), (2,))
    )
    contract.check_gradcheck(weight, backend, second=True)


@every_backend
def test_channels_add_up(backend: str) -> None:
    image, psf = normal((2, 3, 12, 10), (4, 3, 5, 5))(torch.float64, contract.generator())
    with running(backend):
        found = ops.psf_convolve_channels(image, psf)
    direct = np.zeros((2, 4, 12, 10))
    for b, o, i in np.ndindex(2, 4, 3):
        direct[b, o] += scipy.signal.convolve2d(image[b, i].numpy(), psf[o, i].numpy(), mode="same")
    np.testing.assert_allclose(found.numpy(), direct, rtol=0, atol=1e-12)


@every_backend
def test_deconvolution_solves_the_normal_equations(backend: str) -> None:
    """h'(h x - y) + weight x = 0, with the adjoint taken by autograd."""
    image, psf = normal((2, 12, 15), (2, 5, 7))(torch.float64, contract.generator())
    weight = torch.tensor([0.02, 3.0], dtype=torch.float64)
    with running(backend):
        x = ops.psf_deconvolve(image, psf, regularization=weight).requires_grad_()
        misfit = (ops.psf_convolve(x, psf, boundary="circular") - image).square().sum((-2, -1))
        objective = misfit + weight * x.square().sum((-2, -1))
        slope = torch.autograd.grad(objective.sum(), x)[0]
    assert slope.abs().max() < 1e-11


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 7), (2, 3), (6, 8), (24, 2)])
@pytest.mark.parametrize("size", [(16, 16), (3, 33), (40, 129)])
@every_dtype
def test_direct_sums_against_scipy(shape: tuple[int, int], size: tuple[int, int], dtype: torch.dtype) -> None:
    """Small PSFs are summed over, larger ones transformed: both are there on either side of the limit."""
    image, psf = normal((3, *size), (3, *shape))(dtype, contract.generator())
    for mode in ("same", "full", "valid"):
        if mode == "valid" and (shape[0] > size[0] or shape[1] > size[1]):
            continue
        with running("cpu"):
            found = ops.psf_convolve(image, psf, mode=mode)
        for i in range(3):
            full = scipy.signal.convolve2d(image[i].double().numpy(), psf[i].double().numpy())
            top, left = {"same": (shape[0] // 2, shape[1] // 2), "full": (0, 0), "valid": (shape[0] - 1, shape[1] - 1)}[
                mode
            ]
            expected = full[top : top + found.shape[-2], left : left + found.shape[-1]]
            error = np.abs(found[i].double().numpy() - expected).max()
            assert error <= 4 * torch.finfo(dtype).eps * np.sqrt(psf[0].numel()) * np.abs(full).max()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [(0, 0), (9, 30)])
def test_direct_sums_lose_the_whole_image(where: tuple[int, int], bad: float) -> None:
    """Also where no output meets the value, as behind a transform."""
    image, psf = normal((3, 10, 40), (3, 3))(torch.float32, contract.generator())
    clean = ops.psf_convolve(image, psf, mode="valid")
    image[1, *where] = bad
    found = ops.psf_convolve(image, psf, mode="valid")
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], clean[[0, 2]])
    wide = torch.randn(20, 40, generator=contract.generator())
    psf[0, 2] = bad
    assert ops.psf_convolve(wide, psf).isnan().all()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(("boundary", "psf"), [("zero", 40), ("circular", 48), ("zero", 3)])
def test_threads_share_an_image(threads: int, batch: int, boundary: str, psf: int) -> None:
    image, kernel = normal((batch, 70, 48), (psf, psf))(torch.float32, contract.generator())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = ops.psf_convolve(image, kernel[:48], boundary=boundary)
        torch.set_num_threads(threads)
        for _ in range(5):
            assert torch.equal(ops.psf_convolve(image, kernel[:48], boundary=boundary), expected)
    finally:
        torch.set_num_threads(before)


def test_gradient_of_a_shared_psf_is_summed_before_it_is_stored() -> None:
    """No tensor of the batch's size but the image's own gradient is made."""
    image, psf = normal((64, 32, 32), (32, 32))(torch.float32, contract.generator())
    leaves = image, psf.requires_grad_()
    output = ops.psf_convolve(*leaves)
    shapes: list[torch.Size] = []
    original = _compiled.psf_convolve

    def recorded(*arguments: object, **options: object) -> Tensor:
        result = original(*arguments, **options)
        shapes.append(result.shape)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_compiled, "psf_convolve", recorded)
        output.sum().backward()
    assert shapes == [torch.Size([1, 32, 32])]


def test_sums_over_many_terms_keep_their_digits() -> None:
    """Partial sums of a thousand images against float64."""
    image, grad = normal((1000, 12, 12), (1000, 12, 12))(torch.float32, contract.generator())
    results = []
    for dtype in (torch.float32, torch.float64):
        psf = torch.zeros(5, 5, dtype=dtype, requires_grad=True)
        results.append(torch.autograd.grad(ops.psf_convolve(image.to(dtype), psf), psf, grad.to(dtype))[0].double())
    assert (results[0] - results[1]).abs().max() < 1e-6 * image.norm() * grad.norm() / 12


@pytest.mark.parametrize(("shape", "routed"), [((88, 30), True), ((31, 6), True), ((97, 34), False), ((48, 30), False)])
def test_torch_serves_fields_with_middling_prime_factors(shape: tuple[int, int], routed: bool) -> None:
    (field,) = normal((2, *shape))(torch.float64, contract.generator())
    with ops.use_backend("cpu"):
        own = ops.fourier_filter(field, field)
    with mock.patch.object(op._compiled, "psf_convolve", wraps=op._compiled.psf_convolve) as kernel:
        torch.testing.assert_close(ops.fourier_filter(field, field), own, rtol=1e-11, atol=1e-11)
    assert kernel.call_count == (0 if routed else 1)


WORK_SPACE = """
import resource, torch
from bitlens import ops
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20
def run(sizes):
    for n in sizes:
        image = torch.rand(2, n, n)
        ops.psf_convolve(image, image[0])
run([200, 201])
before = resident()
run(range(200, 700, 9))
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident memory from /proc")
def test_kept_work_space_is_bounded() -> None:
    """Images of 56 sizes need 3 to 27 MB of work space each, 700 MB in all; 32 MB are kept."""
    result = subprocess.run([sys.executable, "-c", WORK_SPACE], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 80


def test_regularizations_that_are_not_positive_give_nan() -> None:
    image, psf = normal((3, 12, 13), (3, 5, 5))(torch.float64, contract.generator())
    result = ops.psf_deconvolve(image, psf, regularization=torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64))
    assert bool(result[0].isfinite().all())
    assert bool(result[1:].isnan().all())
    with pytest.raises(ValueError, match="regularization, leading axes of psf, leading axes of image"):
        ops.psf_deconvolve(image[:2], psf[0], regularization=torch.ones(3, dtype=torch.float64))


def test_bad_arguments_are_named() -> None:
    image, psf = torch.zeros(2, 3, 8, 8), torch.zeros(4, 3, 3, 3)
    expect = contract.expect_error
    expect(ValueError, ("psf", "3 channels", "(4, 2, 3, 3)"), lambda: ops.psf_convolve_channels(image, psf[:, :2]))
    expect(ValueError, ("image", "(..., I, H, W)"), lambda: ops.psf_convolve_channels(image[0, 0], psf))
    expect(ValueError, ("psf", "(..., O, I, h, w)"), lambda: ops.psf_convolve_channels(image, psf[0]))
    expect(TypeError, ("image", "list"), lambda: ops.psf_convolve_channels([1.0], psf))
    expect(TypeError, ("psf", "float32"), lambda: ops.psf_convolve_channels(image, psf.double()))
    expect(ValueError, ("mode",), lambda: ops.psf_convolve_channels(image, psf, mode="half"))
    for value in (0.0, -1.0, float("nan")):
        expect(
            ValueError,
            ("regularization", "positive"),
            lambda v=value: ops.psf_deconvolve(image, psf[0, 0], regularization=v),
        )
    expect(TypeError, ("regularization", "str"), lambda: ops.psf_deconvolve(image, psf[0, 0], regularization="a"))
    expect(
        ValueError,
        ("regularization", "broadcast"),
        lambda: ops.psf_deconvolve(image, psf[0], regularization=torch.ones(2)),
    )
