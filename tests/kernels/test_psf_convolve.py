"""PSF convolution and Fourier filtering: the kernel contract, and truth by direct summation in SciPy."""

from __future__ import annotations

import importlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import scipy.fft
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitlens import ops
from bitlens.kernels import _compiled
from bitlens.kernels.psf_convolve import op

sys.path.insert(0, str(Path(__file__).parent))
import contract
from contract import Case, running

BACKENDS = ("cpu", "numba", "cuda_on_cpu")
MODES = (("same", "zero"), ("full", "zero"), ("valid", "zero"), ("same", "circular"))
MODE_IDS = [f"{mode}-{boundary}" for mode, boundary in MODES]


def convolution(mode: str, boundary: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda image, psf: ops.psf_convolve(image, psf, mode=mode, boundary=boundary)


def filtering(centered: bool = False) -> Callable[..., Tensor]:
    """The complex kernel as a function of real tensors, as the contract calls it."""

    def call(field_re: Tensor, field_im: Tensor, transfer_re: Tensor, transfer_im: Tensor) -> Tensor:
        field, transfer = torch.complex(field_re, field_im), torch.complex(transfer_re, transfer_im)
        return torch.view_as_real(ops.fourier_filter(field, transfer, centered=centered))

    return call


def normal(*shapes: tuple[int, ...]) -> Callable[[torch.dtype, torch.Generator], tuple[Tensor, ...]]:
    return lambda dtype, generator: tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    )


BROADCAST = normal((2, 1, 3, 9, 14), (4, 1, 5, 6))
PRIME_FIELD = normal(*((3, 1, 11, 26),) * 2, *((2, 11, 26),) * 2)
SMOOTH_FIELD = normal(*((3, 1, 10, 21),) * 2, *((2, 10, 21),) * 2)

CASES = {f"convolve-{i}": Case(convolution(*m), BROADCAST) for m, i in zip(MODES, MODE_IDS, strict=True)} | {
    "convolve-one-image-many-psfs": Case(convolution("same", "zero"), normal((13, 8), (6, 4, 3))),
    "convolve-wraps": Case(convolution("same", "circular"), normal((2, 11, 6), (25, 20))),
    "filter-prime": Case(filtering(), PRIME_FIELD),
    "filter-smooth-centered": Case(filtering(centered=True), SMOOTH_FIELD),
}
# Half spectra, and a line, of more than 227 KiB, the most that a block of a GPU has in shared memory, also in float32.
LARGE_CASES = {
    "large": Case(convolution("same", "zero"), normal((2, 1, 250, 240), (2, 9, 8))),
    "large-prime-period": Case(convolution("same", "circular"), normal((2, 211, 257), (30, 23))),
    "large-odd-period": Case(convolution("same", "circular"), normal((245, 243), (2, 20, 31))),
    "large-filter": Case(filtering(), normal(*((2, 1, 180, 175),) * 2, *((2, 180, 175),) * 2)),
    "long-line": Case(convolution("valid", "zero"), normal((2, 1, 40000), (1, 7))),
}
# Images that fill the batch: the compiled kernel makes both gradients at once.
JOINT_CASES = {
    "convolve": Case(convolution("same", "zero"), normal((9, 13, 12), (9, 8))),
    "channels": Case(convolution("full", "zero"), normal((2, 3, 11, 12), (3, 9, 7))),
    "circular": Case(convolution("same", "circular"), normal((2, 12, 15), (2, 5, 4))),
    "odd-period": Case(convolution("same", "circular"), normal((2, 11, 13), (9, 4))),
    "filter-centered": Case(filtering(centered=True), normal(*((3, 9, 21),) * 2, *((9, 21),) * 2)),
    "filter": Case(filtering(), normal(*((3, 10, 21),) * 2, *((10, 21),) * 2)),
}
MANY_TERMS = Case(convolution("same", "zero"), normal((300, 5, 6), (3, 3)))
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_dtype = pytest.mark.parametrize("dtype", contract.DTYPES)
every_mode = pytest.mark.parametrize(("mode", "boundary"), MODES, ids=MODE_IDS)


# ---- the contract ----


@every_dtype
@every_case
@every_backend
def test_agrees_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    contract.check_against_reference(case, backend, dtype)


@every_dtype
@pytest.mark.parametrize("case", JOINT_CASES.values(), ids=JOINT_CASES.keys())
def test_both_gradients_at_once_agree_with_the_reference(case: Case, dtype: torch.dtype) -> None:
    contract.check_against_reference(case, "cpu", dtype)
    contract.check_threads_agree(case, "cpu")
    contract.check_instruction_sets_agree(case, dtype, 100 * torch.finfo(dtype).eps)


@every_dtype
@pytest.mark.parametrize("case", LARGE_CASES.values(), ids=LARGE_CASES.keys())
@pytest.mark.parametrize("backend", ["cpu", "cuda_on_cpu"])
def test_large_images_agree_with_the_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    """In float32 by root mean squares: a PSF's gradient is a few hundred sums of 60,000 terms, near zero among them,
    whose largest relative error is 0.3 to 2 times torch's by chance where the root mean squares agree to 5 %."""
    if dtype == torch.float64:
        contract.check_against_reference(case, backend, dtype)
        return
    inputs = case.inputs(dtype, contract.generator())
    with ops.use_backend("reference"):
        truth = contract.value_and_gradients(case, tuple(t.double() for t in inputs))
        plain = contract.value_and_gradients(case, inputs)
    with running(backend):
        ours = contract.value_and_gradients(case, inputs)
    for value, in_torch, true in zip(ours, plain, truth, strict=True):
        assert value.dtype == dtype
        assert (value - true).norm() <= 2 * (in_torch - true).norm() + 4 * torch.finfo(dtype).eps * true.norm()


@every_backend
def test_partial_sums_of_many_terms_agree_with_the_reference(backend: str) -> None:
    """In float64: where sums are large, all of a transform's outputs have the error of the largest."""
    contract.check_against_reference(MANY_TERMS, backend, torch.float64)


@every_mode
@every_backend
def test_gradcheck_of_convolution(backend: str, mode: str, boundary: str) -> None:
    for shapes in (((2, 4, 5), (3, 2)), ((3, 5), (2, 1, 2, 3)), ((3, 4), (3, 4))):
        contract.check_gradcheck(Case(convolution(mode, boundary), normal(*shapes)), backend, second=True)
    if mode != "valid":
        contract.check_gradcheck(Case(convolution(mode, boundary), normal((2, 3), (7, 4))), backend, second=True)


@every_backend
def test_gradcheck_of_filter(backend: str) -> None:
    shapes = ((2, 1, 3, 4),) * 2 + ((2, 3, 4),) * 2
    contract.check_gradcheck(Case(filtering(), normal(*shapes)), backend, second=True)
    contract.check_gradcheck(Case(filtering(centered=True), normal(*((11, 2),) * 4)), backend, second=True)


@every_backend
def test_forward_mode_and_torch_func(backend: str) -> None:
    generator = contract.generator()
    calls = [
        (convolution("same", "zero"), normal((2, 4, 5), (3, 2))(torch.float64, generator)),
        (filtering(), normal(*((2, 3, 4),) * 2, *((3, 4),) * 2)(torch.float64, generator)),
    ]
    with running(backend):
        for call, inputs in calls:
            leaves = tuple(t.requires_grad_() for t in inputs)
            assert torch.autograd.gradcheck(call, leaves, check_forward_ad=True, check_backward_ad=False)
            values = tuple(t.detach() for t in inputs)
            expected = torch.autograd.grad((call(*leaves) ** 2).sum(), leaves[1])[0]
            found = torch.func.grad(lambda *a, call=call: (call(*a) ** 2).sum(), argnums=1)(*values)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@every_backend
def test_vmap_is_a_loop(backend: str) -> None:
    generator = contract.generator()
    image, psf = normal((3, 2, 6, 5), (2, 3, 3, 3))(torch.float64, generator)
    call = convolution("same", "zero")
    with running(backend):
        mapped = torch.func.vmap(call, in_dims=(0, 1))(image, psf)
        assert torch.equal(mapped, torch.stack([call(image[i], psf[:, i]) for i in range(3)]))
        shared = torch.func.vmap(call, in_dims=(None, 1))(image[0], psf)
        looped = torch.stack([call(image[0], psf[:, i]) for i in range(3)])
        torch.testing.assert_close(shared, looped, rtol=1e-13, atol=1e-13)  # here the image is what repeats
        field, transfer = torch.complex(image, -image), torch.complex(image.flip(-1), image)
        mapped = torch.func.vmap(ops.fourier_filter, in_dims=(0, None))(field, transfer[0])
        assert torch.equal(mapped, ops.fourier_filter(field, transfer[0]))


@every_case
@every_backend
def test_compiles_without_graph_breaks(backend: str, case: Case) -> None:
    contract.check_compiles(case, backend)


@every_dtype
@every_case
@every_backend
def test_non_contiguous(backend: str, case: Case, dtype: torch.dtype) -> None:
    contract.check_non_contiguous(case, backend, dtype)


@every_backend
def test_transposed_and_conjugated_views(backend: str) -> None:
    image, psf = normal((2, 3, 7, 6), (3, 4, 5))(torch.float32, contract.generator())
    with running(backend):
        plain = ops.psf_convolve(image.mT.contiguous(), psf.mT.contiguous())
        assert torch.equal(ops.psf_convolve(image.mT, psf.mT), plain)
        field = torch.complex(image, image.flip(-2))
        plain = ops.fourier_filter(field.mT.conj().resolve_conj().contiguous(), field[0].mT.contiguous())
        assert torch.equal(ops.fourier_filter(field.mT.conj(), field[0].mT), plain)


@every_case
@every_backend
def test_threads_agree(backend: str, case: Case) -> None:
    contract.check_threads_agree(case, backend)


@pytest.mark.parametrize(
    ("image", "psf"),
    [
        ((24, 90, 70), (20, 21)),
        ((24, 90, 70), (24, 20, 21)),
        ((24, 90, 70), (6, 1, 20, 21)),
        ((8, 3, 90, 70), (3, 20, 21)),
        ((200, 210), (20, 21)),
    ],
)
@every_backend
def test_threads_agree_where_work_is_split(backend: str, image: tuple[int, ...], psf: tuple[int, ...]) -> None:
    """The contract's cases are too small to be worth a second thread."""
    contract.check_threads_agree(Case(convolution("same", "zero"), normal(image, psf)), backend)


JOINT = {
    "shared": ((24, 30, 28), (11, 9)),
    "each": ((9, 30, 28), (9, 11, 9)),
    "channels": ((4, 3, 30, 28), (3, 11, 9)),
    "inner-axis": ((4, 3, 30, 28), (4, 1, 11, 9)),
    "single": ((30, 28), (30, 28)),
    "strided": ((28, 5, 30), (9, 11)),
}


@pytest.mark.parametrize(("image_shape", "psf_shape"), JOINT.values(), ids=JOINT.keys())
@every_mode
def test_both_gradients_at_once_are_those_one_by_one(
    mode: str, boundary: str, image_shape: tuple[int, ...], psf_shape: tuple[int, ...]
) -> None:
    image, psf = normal(image_shape, psf_shape)(torch.float64, contract.generator())
    if image_shape[0] == 28:
        image, psf = image.permute(1, 2, 0), psf.mT
    check_joint(convolution(mode, boundary), image, psf)


def test_both_gradients_of_a_filter_at_once_are_those_one_by_one() -> None:
    generator = contract.generator()
    field, transfer = (
        torch.randn(shape, dtype=torch.complex128, generator=generator) for shape in ((9, 2, 24, 21), (2, 24, 21))
    )
    check_joint(ops.fourier_filter, field, transfer)


def check_joint(call: Callable[[Tensor, Tensor], Tensor], image: Tensor, psf: Tensor) -> None:
    """Also with a gradient of strides zero, as that of a sum."""
    leaves = image.detach().requires_grad_(), psf.detach().requires_grad_()
    with mock.patch.object(op, "_both_gradients", wraps=op._both_gradients) as joint, running("cpu"):
        output = call(*leaves)
        noise = torch.randn(output.shape, generator=contract.generator(3), dtype=output.dtype)
        for count, grad in enumerate((noise, noise[..., :1, :1].expand_as(output)), start=1):
            both = torch.autograd.grad(output, leaves, grad, retain_graph=True)
            single = (
                torch.autograd.grad(call(leaves[0], psf), leaves[0], grad)[0],
                torch.autograd.grad(call(image, leaves[1]), leaves[1], grad)[0],
            )
            assert joint.call_count == count
            for together, alone in zip(both, single, strict=True):
                torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-11)


@every_dtype
@every_case
def test_instruction_sets_agree(case: Case, dtype: torch.dtype) -> None:
    # Sums of up to 500 products of size 1 pass through transforms some 30 times as large as their result.
    contract.check_instruction_sets_agree(case, dtype, 100 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (1, 4), (22, 9)])
def test_centered_transfer_functions_take_no_pass_of_their_own(shape: tuple[int, int]) -> None:
    generator = contract.generator()
    field, transfer = (torch.randn(n, dtype=torch.complex128, generator=generator) for n in ((3, *shape), shape))
    leaves = field.requires_grad_(), transfer.requires_grad_()
    shifted = torch.fft.ifftshift(transfer, dim=(-2, -1))
    with running("cpu"):
        expected = ops.fourier_filter(field, shifted)
        wanted = torch.autograd.grad(expected.abs().sum(), leaves)
        with mock.patch.object(torch.fft, "ifftshift", side_effect=AssertionError("a pass over the transfer function")):
            found = ops.fourier_filter(field, transfer, centered=True)
            gradients = torch.autograd.grad(found.abs().sum(), leaves, retain_graph=True)
            (alone,) = torch.autograd.grad(
                ops.fourier_filter(field.detach(), transfer, centered=True).abs().sum(), transfer
            )
    torch.testing.assert_close(found, expected)
    for ours, other in zip((*gradients, alone), (*wanted, wanted[1]), strict=True):
        torch.testing.assert_close(ours, other)


@every_mode
@every_backend
def test_empty_batch_has_zero_gradients(backend: str, mode: str, boundary: str) -> None:
    image, psf = torch.zeros(0, 3, 8, 9, requires_grad=True), torch.randn(3, 3, 4, requires_grad=True)
    with running("reference"):
        shape = ops.psf_convolve(torch.zeros(1, 3, 8, 9), psf, mode=mode, boundary=boundary).shape
    with running(backend):
        result = ops.psf_convolve(image, psf, mode=mode, boundary=boundary)
        assert result.shape == (0, *shape[1:])
        gradients = torch.autograd.grad(result.sum(), (image, psf))
    assert gradients[0].shape == image.shape
    assert torch.equal(gradients[1], torch.zeros_like(psf))


@every_backend
def test_empty_batch_of_fields(backend: str) -> None:
    with running(backend):
        assert ops.fourier_filter(torch.zeros(0, 2, 11, 4), torch.ones(11, 4)).shape == (0, 2, 11, 4)


@every_mode
@every_backend
def test_one_element(backend: str, mode: str, boundary: str) -> None:
    with running(backend):
        result = ops.psf_convolve(torch.tensor([[3.0]]), torch.tensor([[-2.0]]), mode=mode, boundary=boundary)
        assert torch.equal(result, torch.tensor([[-6.0]]))
        filtered = ops.fourier_filter(torch.tensor([[3.0 + 1j]]), torch.tensor([[2j]]))
        assert torch.equal(filtered, torch.tensor([[-2.0 + 6j]]))


@every_dtype
@pytest.mark.parametrize("transposed", [False, True], ids=["row", "column"])
@every_backend
def test_long_reduction(backend: str, transposed: bool, dtype: torch.dtype) -> None:
    """The gradient of a small PSF, and each of 64 valid outputs with a long one, are sums of 65,537 products."""

    def call(image: Tensor, psf: Tensor) -> tuple[Tensor, Tensor]:
        image, psf = (image.mT, psf.mT) if transposed else (image, psf)
        short = ops.psf_convolve(image, psf[..., :3, :3], mode="same")
        return short, ops.psf_convolve(image, psf, mode="valid")

    contract.check_against_reference(Case(call, normal((1, 65600), (1, 65537))), backend, dtype)


@every_backend
def test_more_batch_axes_than_the_kernel_walks(backend: str) -> None:
    image, psf = normal((2,) * 14 + (3, 2), (2, 1) * 7 + (2, 2))(torch.float32, contract.generator())
    with running("reference"):
        truth = ops.psf_convolve(image, psf)
    with running(backend):
        torch.testing.assert_close(ops.psf_convolve(image, psf), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "shapes",
    [((2,) * 13 + (4, 4), (3, 3)), ((4, 4), (2,) * 13 + (3, 3)), ((2,) * 13 + (4, 4), (2,) + (1,) * 12 + (3, 3))],
)
@every_backend
def test_gradients_over_more_batch_axes_than_the_kernel_walks(
    backend: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    contract.check_against_reference(Case(convolution("same", "zero"), normal(*shapes)), backend, torch.float64)


def test_transfer_gradient_over_more_batch_axes_than_the_kernel_walks() -> None:
    generator = contract.generator()
    field, transfer = (
        torch.randn(shape, dtype=torch.complex128, generator=generator) for shape in ((2,) * 13 + (4, 4), (4, 4))
    )
    results = []
    for backend in ("cpu", "reference"):
        leaf = transfer.detach().requires_grad_()
        with running(backend):
            results.append(torch.autograd.grad(ops.fourier_filter(field, leaf).abs().sum(), leaf)[0])
    torch.testing.assert_close(*results)


def test_forward_over_reverse() -> None:
    """Tangents of both gradients, also where the graph of the gradients is not kept."""
    image, psf, tangent = normal((3, 12, 13), (9, 8), (3, 12, 13))(torch.float64, contract.generator())
    found = []
    for backend in ("cpu", "reference"):
        with running(backend), torch.autograd.forward_ad.dual_level():
            leaves = image.clone().requires_grad_(), psf.clone().requires_grad_()
            dual = torch.autograd.forward_ad.make_dual(leaves[0], tangent)
            gradients = torch.autograd.grad(ops.psf_convolve(dual, leaves[1]).square().sum(), leaves)
            found.append([torch.autograd.forward_ad.unpack_dual(gradient).tangent for gradient in gradients])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("shape", [(17, 17), (16, 12), (11, 4)])
def test_empty_batches_where_no_backend_is_forced(shape: tuple[int, int]) -> None:
    field = torch.zeros(0, *shape, dtype=torch.complex64, requires_grad=True)
    transfer = torch.ones(shape, dtype=torch.complex64, requires_grad=True)
    gradients = torch.autograd.grad(ops.fourier_filter(field, transfer).abs().sum(), (field, transfer))
    assert gradients[0].shape == field.shape
    assert not gradients[1].any()
    image = torch.zeros(0, *shape)
    for backend in ("cpu", "reference"):
        with running(backend):
            assert ops.psf_convolve(image, torch.ones(3, 3)).shape == image.shape
            assert ops.psf_deconvolve(image, torch.ones(0, 3, 3), regularization=1.0).shape == image.shape


FORKED = """
import os, threading, torch, warnings
from bitlens import ops
warnings.simplefilter("ignore")
torch.set_num_threads(1)
# The first call imports, and a fork may leave Python's lock of a module with the other thread.
ops.psf_convolve(torch.ones(4, 300), torch.ones(4, 60))
stop = False
def churn():
    n = 300
    while not stop:
        n = 300 + (n + 7) % 900
        ops.psf_convolve(torch.ones(4, n), torch.ones(4, 60))
thread = threading.Thread(target=churn)
thread.start()
children = []
for i in range(12):
    child = os.fork()
    if child == 0:
        ops.psf_convolve(torch.ones(4, 2000 + i), torch.ones(4, 60))
        os._exit(0)
    children.append(child)
stop = True
thread.join()
for child in children:
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_wait_for_another_thread() -> None:
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=100)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@every_mode
@every_backend
def test_not_finite_spreads_over_its_image_only(backend: str, mode: str, boundary: str, bad: float) -> None:
    image, psf = normal((3, 14, 9), (4, 5))(torch.float32, contract.generator())
    call = convolution(mode, boundary)
    with running(backend):
        clean = call(image, psf)
        for row, column in ((0, 0), (13, 8), (6, 4)):
            spoiled = image.clone()
            spoiled[1, row, column] = bad
            result = call(spoiled, psf)
            assert result[1].isnan().all()
            assert torch.equal(result[0], clean[0])
            assert torch.equal(result[2], clean[2])
        many = torch.stack((psf, psf.clone(), psf))
        many[1, 2, 2] = bad
        result = call(image[0], many)
        assert result[1].isnan().all()
        assert torch.equal(result[0], result[2])
        assert result[0].isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), complex(0, float("nan")), complex(1, -float("inf"))])
@pytest.mark.parametrize("shape", [(12, 10), (11, 13), (1, 2)])
@every_backend
def test_not_finite_spreads_over_its_field_only(backend: str, shape: tuple[int, int], bad: complex) -> None:
    field = torch.view_as_complex(torch.randn((3, *shape, 2), generator=contract.generator()))
    transfer = torch.ones(shape)
    with running(backend):
        clean = ops.fourier_filter(field, transfer)
        field[1, -1, -1] = bad
        result = torch.view_as_real(ops.fourier_filter(field, transfer))
    assert result[1].isnan().all()
    assert torch.equal(result[::2], torch.view_as_real(clean)[::2])


def test_bad_arguments_are_named() -> None:
    image, psf = torch.ones(2, 8, 9), torch.ones(3, 4)
    convolve, fourier = ops.psf_convolve, ops.fourier_filter
    expect = contract.expect_error
    expect(TypeError, ("image", "Tensor", "ndarray"), lambda: convolve(np.ones((8, 9)), psf))
    expect(TypeError, ("image", "float32", "int64"), lambda: convolve(image.long(), psf))
    expect(TypeError, ("image", "float32", "complex64"), lambda: convolve(image * 1j, psf))
    expect(TypeError, ("psf", "float32", "float64"), lambda: convolve(image, psf.double()))
    expect(TypeError, ("psf", "Tensor", "float"), lambda: convolve(image, 2.0))
    expect(ValueError, ("psf", "(..., h, w)", "(4,)"), lambda: convolve(image, psf[0]))
    expect(ValueError, ("image", "row", "(2, 0, 9)"), lambda: convolve(image[:, :0], psf))
    expect(ValueError, ("psf", "column", "(3, 0)"), lambda: convolve(image, psf[:, :0]))
    expect(ValueError, ("image", "psf", "(2,)", "(3,)"), lambda: convolve(image, psf.expand(3, 3, 4)))
    expect(ValueError, ("mode", "'valid'", "'inner'"), lambda: convolve(image, psf, mode="inner"))
    expect(ValueError, ("boundary", "'circular'", "'wrap'"), lambda: convolve(image, psf, boundary="wrap"))
    expect(ValueError, ("mode", "same", "full"), lambda: convolve(image, psf, mode="full", boundary="circular"))
    expect(ValueError, ("psf", "(8, 9)", "(3, 10)"), lambda: convolve(image, torch.ones(3, 10), mode="valid"))
    expect(ValueError, ("psf", "device", "meta"), lambda: convolve(image, psf.to("meta")))
    expect(TypeError, ("field", "complex64", "int64"), lambda: fourier(image.long(), image))
    expect(TypeError, ("transfer", "complex64", "complex128"), lambda: fourier(image, image.double()))
    expect(ValueError, ("transfer", "(8, 9)", "(8, 1)"), lambda: fourier(image, torch.ones(8, 1)))
    expect(ValueError, ("field", "(2, 0, 9)"), lambda: fourier(image[:, :0], image[:, :0]))


# ---- the work space of the CUDA kernels ----


@every_dtype
@pytest.mark.parametrize("name", [*CASES, *LARGE_CASES, "many-terms"])
def test_the_work_space_is_neither_read_unwritten_nor_left(name: str, dtype: torch.dtype) -> None:
    """It starts as NaN here, and 4 KiB after its end stay as they are."""
    allocate = _compiled._psf_convolve_workspace
    guarded: list[tuple[Tensor, int]] = []

    def poisoned(*arguments: Any) -> Tensor:
        space = allocate(*arguments)
        assert space is not None
        size = space.numel()
        space = torch.full((size + 4096,), 0xFF, dtype=torch.uint8)
        space[size:] = 0xA5
        guarded.append((space, size))
        return space

    case = (CASES | LARGE_CASES | {"many-terms": MANY_TERMS})[name]
    inputs = case.inputs(dtype, contract.generator(18))
    with running("cuda_on_cpu"):
        expected = contract.value_and_gradients(case, inputs)
        with mock.patch.object(_compiled, "_psf_convolve_workspace", poisoned):
            got = contract.value_and_gradients(case, inputs)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    assert len(guarded) == 3
    for space, size in guarded:
        assert bool((space[size:] == 0xA5).all())


@pytest.mark.parametrize("precision", ["float", "double"])
def test_work_space_holds_spectra_of_filters_and_large_images_only(precision: str) -> None:
    size = getattr(importlib.import_module("bitlens._native_cuda_on_cpu"), f"psf_convolve_workspace_bytes_{precision}")
    value_bytes = 4 if precision == "float" else 8

    def work_space(images: int, side: int, psfs: int) -> int:
        strides = [[side * side], [49 if psfs > 1 else 0]]
        window = (3, side, 0) * 2
        return int(size(0, False, [images], strides, 1, [[side, side, side], [7, 7, 7]], window))

    spectrum = 2 * value_bytes * (72 // 2 + 1) * 72
    assert work_space(1000, 64, 1) <= spectrum
    assert work_space(1000, 64, 1000) <= 1000 * spectrum
    assert work_space(10**6, 64, 10**6) <= 2048 * spectrum
    image = value_bytes * 1024 * 1024
    assert image <= work_space(1, 1024, 1) <= 4 * image
    assert work_space(10**4, 1024, 1) <= 2**28 + 4 * image
    assert work_space(10**4, 1024, 10**4) <= 2**28 + 4 * image


# ---- truth ----

SHAPES = [
    ((16, 16), (5, 5)),
    ((16, 16), (4, 6)),
    ((17, 12), (3, 8)),
    ((31, 29), (7, 11)),
    ((23, 37), (23, 37)),
    ((5, 7), (9, 12)),
    ((12, 13), (40, 3)),
    ((1, 50), (1, 7)),
    ((64, 40), (33, 17)),
]


def summed(image: Tensor, psf: Tensor, mode: str, boundary: str) -> Tensor:
    """The convolution by direct summation, in float64, for images without leading axes."""
    (height, width), (h, w) = image.shape, psf.shape
    full = scipy.signal.convolve(image.double().numpy(), psf.double().numpy(), mode="full", method="direct")
    if boundary == "circular":
        result = np.zeros((height, width))
        rows = (np.arange(full.shape[0]) - h // 2) % height
        columns = (np.arange(full.shape[1]) - w // 2) % width
        np.add.at(result, (rows[:, None], columns[None, :]), full)
    elif mode == "valid":
        result = full[h - 1 : height, w - 1 : width]
    elif mode == "same":
        result = full[h // 2 :, w // 2 :][:height, :width]
    else:
        result = full
    return torch.from_numpy(np.array(result, order="C"))


def limit(in_torch: Tensor, truth: Tensor) -> float:
    """The contract's tolerance: torch's own error in float32 sets it."""
    if in_torch.dtype in (torch.float64, torch.complex128):
        return contract.FLOAT64_TOLERANCE
    return 2 * contract.relative_error(in_torch, truth) + 4 * torch.finfo(torch.float32).eps


@every_dtype
@every_mode
@pytest.mark.parametrize(("image_shape", "psf_shape"), SHAPES)
@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_convolution_against_direct_summation(
    backend: str, image_shape: tuple[int, int], psf_shape: tuple[int, int], mode: str, boundary: str, dtype: torch.dtype
) -> None:
    image, psf = normal(image_shape, psf_shape)(dtype, contract.generator())
    if mode == "valid" and (psf_shape[0] > image_shape[0] or psf_shape[1] > image_shape[1]):
        with running(backend), pytest.raises(ValueError, match="psf: need at most"):
            ops.psf_convolve(image, psf, mode=mode)
        return
    truth = summed(image, psf, mode, boundary)
    with running("reference"):
        in_torch = ops.psf_convolve(image, psf, mode=mode, boundary=boundary)
    with running(backend):
        result = ops.psf_convolve(image, psf, mode=mode, boundary=boundary)
    assert result.shape == truth.shape
    assert contract.relative_error(result, truth) <= limit(in_torch, truth)


@every_backend
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_convolution_of_any_shape(backend: str, data: st.DataObject) -> None:
    mode, boundary = data.draw(st.sampled_from(MODES))
    image_shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    largest = image_shape if mode == "valid" else (45, 45)
    psf_shape = data.draw(st.tuples(*(st.integers(1, size) for size in largest)))
    batches = data.draw(st.sampled_from([((), ()), ((2,), ()), ((), (2,)), ((2, 1), (3,)), ((3,), (3,))]))
    dtype = torch.float64
    image, psf = normal(batches[0] + image_shape, batches[1] + psf_shape)(dtype, contract.generator(7))
    with running(backend):
        result = ops.psf_convolve(image, psf, mode=mode, boundary=boundary)
    batch = torch.broadcast_shapes(*batches)
    images = image.expand(*batch, *image_shape).reshape(-1, *image_shape)
    psfs = psf.expand(*batch, *psf_shape).reshape(-1, *psf_shape)
    truth = torch.stack([summed(a, b, mode, boundary) for a, b in zip(images, psfs, strict=True)])
    assert contract.relative_error(result, truth.reshape(*batch, *truth.shape[1:])) <= contract.FLOAT64_TOLERANCE


@every_backend
def test_origin_of_the_psf(backend: str) -> None:
    """A point at (h//2, w//2) leaves the image where it is; one at (0, 0) moves it up and left."""
    image = torch.rand(6, 7, dtype=torch.float64)
    for h, w in itertools.product((1, 4, 5, 9), (1, 2, 3, 10)):
        centred, corner = torch.zeros(2, h, w, dtype=torch.float64)
        centred[h // 2, w // 2] = 1
        corner[0, 0] = 1
        with running(backend):
            for boundary in ("zero", "circular"):
                unmoved = ops.psf_convolve(image, centred, boundary=boundary)
                torch.testing.assert_close(unmoved, image, rtol=0, atol=1e-14)
            rolled = ops.psf_convolve(image, corner, boundary="circular")
        torch.testing.assert_close(rolled, image.roll((-(h // 2), -(w // 2)), (0, 1)), rtol=0, atol=1e-14)


@every_backend
def test_an_image_does_not_depend_on_its_batch(backend: str) -> None:
    """Bit for bit, also past the memory that holds filters at one time (64 MiB, here some 300 of them)."""
    n = 330 if backend == "cpu" else 6
    image, psf = normal((n, 150, 160), (n, 3, 3))(torch.float64, contract.generator())
    with running(backend):
        together = ops.psf_convolve(image, psf)
        for i in (0, n // 2, n - 1):
            assert torch.equal(together[i], ops.psf_convolve(image[i], psf[i]))


@every_dtype
@pytest.mark.parametrize("shape", [(8, 8), (1, 1), (11, 13), (2, 67), (63, 22), (37, 100), (3, 521), (97, 1)])
@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_filter_against_scipy(backend: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    field, transfer = (torch.complex(*normal(shape, shape)(dtype, contract.generator(seed))) for seed in (1, 2))
    spectrum = scipy.fft.fft2(field.to(torch.complex128).numpy()) * transfer.to(torch.complex128).numpy()
    truth = torch.from_numpy(scipy.fft.ifft2(spectrum))
    with running("reference"):
        in_torch = ops.fourier_filter(field, transfer)
    with running(backend):
        result = ops.fourier_filter(field, transfer)
        centered = ops.fourier_filter(field, torch.fft.fftshift(transfer), centered=True)
    assert result.dtype == field.dtype
    assert contract.relative_error(result, truth) <= limit(in_torch, truth)
    assert torch.equal(result, centered)


@every_backend
@pytest.mark.parametrize("shape", [(12, 15), (13, 34)])
def test_a_phase_ramp_shifts(backend: str, shape: tuple[int, int]) -> None:
    rows, columns = shape
    turns = torch.fft.fftfreq(rows, dtype=torch.float64)[:, None] * 2 - 3 * torch.fft.fftfreq(
        columns, dtype=torch.float64
    )
    image = torch.rand(4, *shape, dtype=torch.float64, requires_grad=True)
    with running(backend):
        shifted = ops.fourier_filter(image, torch.polar(torch.ones_like(turns), -2 * torch.pi * turns))
        (gradient,) = torch.autograd.grad((shifted * torch.arange(columns)).real.sum(), image)
    truth = image.detach().roll((2, -3), (1, 2))
    torch.testing.assert_close(shifted.detach(), truth.to(torch.complex128), rtol=0, atol=1e-13)
    expected = torch.arange(columns, dtype=torch.float64).roll(3).expand_as(gradient)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("boundary", ["zero", "circular"])
@every_backend
def test_gradients_are_adjoints(backend: str, boundary: str) -> None:
    """<psf * image, weight> = <image, gradient> for the image as for the PSF, at sizes that gradcheck cannot reach."""
    image, psf, weight = normal((5, 61, 48), (2, 1, 37, 64), (2, 5, 61, 48))(torch.float64, contract.generator())
    leaves = (image.requires_grad_(), psf.requires_grad_())
    with running(backend):
        product = (ops.psf_convolve(*leaves, boundary=boundary) * weight).sum()
        gradients = torch.autograd.grad(product, leaves)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close((leaf * gradient).sum(), product, rtol=1e-10, atol=1e-8)


def test_expected_backends_are_offered() -> None:
    assert set(op.IMPLEMENTED) == {"cuda", "cpu", "numba", "reference"}
    assert {"cpu", "numba"} <= set(ops.available_backends())
