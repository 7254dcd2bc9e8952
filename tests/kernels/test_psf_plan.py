"""A plan is `psf_convolve` with a constant PSF: the same numbers, and every way to differentiate in the image."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from bitlens import ops
from bitlens.kernels import _compiled

sys.path.insert(0, str(Path(__file__).parent))
import contract
from contract import running

MODES = (("same", "zero"), ("full", "zero"), ("valid", "zero"), ("same", "circular"))
SIZES = {
    "shared": ((5, 18, 20), (9, 8)),
    "single": ((18, 20), (9, 8)),
    "single-large": ((190, 210), (21, 20)),
    "channels": ((4, 3, 18, 20), (3, 9, 8)),
    "many-psfs": ((18, 20), (2, 3, 9, 8)),
    "summed-gradient": ((4, 1, 18, 20), (3, 9, 8)),
    "direct": ((5, 18, 20), (3, 4)),
    "prime": ((5, 23, 19), (9, 8)),
}
every_mode = pytest.mark.parametrize(("mode", "boundary"), MODES, ids=["-".join(mode) for mode in MODES])
every_size = pytest.mark.parametrize(("image_shape", "psf_shape"), SIZES.values(), ids=SIZES.keys())
every_backend = pytest.mark.parametrize("backend", ["cpu", "numba", "reference"])


def pair(image_shape: tuple[int, ...], psf_shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = contract.generator()
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in (image_shape, psf_shape)]


@pytest.mark.parametrize("dtype", contract.DTYPES)
@every_mode
@every_size
@every_backend
def test_agrees_with_the_call(
    backend: str,
    image_shape: tuple[int, ...],
    psf_shape: tuple[int, ...],
    mode: str,
    boundary: str,
    dtype: torch.dtype,
) -> None:
    image, psf = pair(image_shape, psf_shape, dtype)
    image.requires_grad_()
    with running(backend):
        plan = ops.PSFConvolvePlan(psf, (image_shape[-2], image_shape[-1]), mode=mode, boundary=boundary)
        results = []
        for convolve in (plan, lambda image: ops.psf_convolve(image, psf, mode=mode, boundary=boundary)):
            output = convolve(image)
            grad = torch.randn(output.shape, generator=contract.generator(1), dtype=dtype)
            results.append((output.detach(), *torch.autograd.grad(output, image, grad)))
    for planned, plain in zip(*results, strict=True):
        scale = float(plain.abs().max())
        torch.testing.assert_close(planned, plain, rtol=0, atol=20 * torch.finfo(dtype).eps * scale)


@every_mode
def test_the_transform_of_the_psf_is_not_made_again(mode: str, boundary: str) -> None:
    image, psf = pair((4, 30, 28), (11, 9))
    image.requires_grad_()
    with (
        running("cpu"),
        mock.patch.object(_compiled, "psf_convolve_spectra", wraps=_compiled.psf_convolve_spectra) as m,
    ):
        plan = ops.PSFConvolvePlan(psf, (30, 28), mode=mode, boundary=boundary)
        for _ in range(3):
            plan(image).sum().backward()
        assert m.call_count == 2  # for the call and for its gradient
        with mock.patch.object(_compiled, "psf_convolve", wraps=_compiled.psf_convolve) as calls:
            plan(image).sum().backward()
        assert all(call.kwargs["spectra"] is not None for call in calls.call_args_list)
        assert calls.call_count == 2


@every_mode
@pytest.mark.parametrize("shapes", [((2, 9, 8), (8, 7)), ((2, 1, 9, 8), (3, 8, 7))])
def test_gradcheck(mode: str, boundary: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    image, psf = pair(*shapes)
    image.requires_grad_()
    with running("cpu"):
        plan = ops.PSFConvolvePlan(psf, (9, 8), mode=mode, boundary=boundary)
        assert torch.autograd.gradcheck(plan, image, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(plan, image)


@every_mode
def test_torch_func_and_compile(mode: str, boundary: str) -> None:
    image, psf = pair((3, 4, 20, 18), (9, 8))
    with running("cpu"):
        plan = ops.PSFConvolvePlan(psf, (20, 18), mode=mode, boundary=boundary)
        expected = plan(image)
        torch.testing.assert_close(torch.func.vmap(plan)(image), expected)
        torch.testing.assert_close(
            torch.func.vmap(plan, in_dims=2, out_dims=2)(image.movedim(0, 2)), expected.movedim(0, 2)
        )
        torch.testing.assert_close(torch.func.jvp(plan, (image,), (image,))[1], expected)

        def loss(x: Tensor) -> Tensor:
            return plan(x).square().sum()

        (gradient,) = torch.autograd.grad(loss(image.requires_grad_()), image)
        torch.testing.assert_close(torch.func.grad(loss)(image.detach()), gradient)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(torch.autograd.grad(compiled(image), image)[0], gradient)


def test_follows_the_backend_and_the_instruction_set() -> None:
    image, psf = pair((3, 40, 36), (12, 11))
    with running("cpu"):
        plan = ops.PSFConvolvePlan(psf, (40, 36))
        expected = plan(image)
        best = _compiled.instruction_set()
        try:
            for name in ("baseline", best, "avx2"):
                try:
                    _compiled._set_instruction_set(name)
                except ValueError:
                    continue  # this processor has it not
                torch.testing.assert_close(plan(image), expected)
        finally:
            _compiled._set_instruction_set(best)
    for backend in ("numba", "reference", "cpu"):
        with running(backend):
            torch.testing.assert_close(plan(image), expected)


def test_forced_backends_hold_in_compiled_and_transformed_calls() -> None:
    image, psf = pair((3, 40, 36), (12, 11))
    with running("numba"):
        plan = ops.PSFConvolvePlan(psf, (40, 36))
    expected = ops.psf_convolve(image, psf)

    def loss(x: Tensor) -> Tensor:
        return plan(x).square().sum()

    # The first call on the compiled kernel is one inside a transform, which cannot keep spectra.
    torch.testing.assert_close(torch.func.grad(loss)(image), torch.func.grad(lambda x: loss(x))(image))
    torch.testing.assert_close(plan(image), expected)
    with running("reference"), mock.patch.object(_compiled, "psf_convolve", wraps=_compiled.psf_convolve) as kernel:
        compiled = torch.compile(plan, backend="aot_eager")
        torch.testing.assert_close(compiled(image), expected)
    assert kernel.call_count == 0


def test_pickles_without_its_spectra() -> None:
    image, psf = pair((2, 70, 64), (9, 8))
    plan = ops.PSFConvolvePlan(psf, (70, 64))
    text = pickle.dumps(plan)
    assert len(text) < 8 * psf.numel() + 4000
    torch.testing.assert_close(pickle.loads(text)(image), plan(image))


def test_made_in_inference_mode_and_on_the_meta_device() -> None:
    image, psf = pair((2, 12, 13), (9, 8))
    with torch.inference_mode():
        plan = ops.PSFConvolvePlan(psf, (12, 13))
    image.requires_grad_()
    (gradient,) = torch.autograd.grad(plan(image).sum(), image)
    torch.testing.assert_close(gradient, torch.autograd.grad(ops.psf_convolve(image, psf).sum(), image)[0])
    shape_only = ops.PSFConvolvePlan(psf.to("meta"), (12, 13))(image.detach().to("meta"))
    assert shape_only.shape == (2, 12, 13)


def test_a_plan_made_under_one_thread_count_serves_another() -> None:
    image, psf = pair((200, 190), (20, 21), torch.float32)
    before = torch.get_num_threads()
    with running("cpu"):
        plan = ops.PSFConvolvePlan(psf, (200, 190))
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            try:
                results.append((plan(image), ops.PSFConvolvePlan(psf, (200, 190))(image)))
            finally:
                torch.set_num_threads(before)
    assert all(torch.equal(result, results[0][0]) for both in results for result in both)


def test_holds_a_copy() -> None:
    image, psf = pair((4, 18, 20), (9, 8))
    plan = ops.PSFConvolvePlan(psf.mT.contiguous().mT, (18, 20))
    expected = ops.psf_convolve(image, psf)
    given = psf.clone()
    psf.zero_()
    plan.psf.zero_()
    torch.testing.assert_close(plan(image), expected)
    torch.testing.assert_close(plan.psf, given)
    torch.testing.assert_close(copy.deepcopy(plan)(image), expected)


def test_wraps_a_psf_larger_than_the_image_and_takes_many_axes() -> None:
    image, psf = pair((4, 12, 10), (25, 31))
    plan = ops.PSFConvolvePlan(psf, (12, 10), boundary="circular")
    torch.testing.assert_close(plan(image), ops.psf_convolve(image, psf, boundary="circular"))
    image, psf = pair((*((2, 1) * 7)[:13], 9, 8), (8, 7))
    psf = psf.expand(*((1, 2) * 7)[:13], 8, 7)
    image.requires_grad_()
    plan = ops.PSFConvolvePlan(psf, (9, 8))
    torch.testing.assert_close(plan(image), ops.psf_convolve(image, psf))
    gradients = [torch.autograd.grad(output.sum(), image)[0] for output in (plan(image), ops.psf_convolve(image, psf))]
    torch.testing.assert_close(*gradients)


def test_empty_batches_and_values_that_are_not_finite() -> None:
    image, psf = pair((3, 18, 20), (9, 8))
    plan = ops.PSFConvolvePlan(psf, (18, 20))
    empty = image[:0].requires_grad_()
    assert plan(empty).shape == (0, 18, 20)
    assert torch.autograd.grad(plan(empty).sum(), empty)[0].shape == (0, 18, 20)
    image[1, 3, 4] = float("nan")
    finite = plan(image).isfinite()
    assert not finite[1].any()
    assert finite[0].all()
    assert finite[2].all()
    psf[2, 2] = float("inf")
    assert not ops.PSFConvolvePlan(psf, (18, 20))(image).isfinite().any()


def test_bad_arguments_are_named() -> None:
    image, psf = pair((3, 18, 20), (9, 8))
    plan = ops.PSFConvolvePlan(psf, (18, 20))
    for kind, words, call in (
        (ValueError, ("psf", "gradient"), lambda: ops.PSFConvolvePlan(psf.clone().requires_grad_(), (18, 20))),
        (TypeError, ("psf", "Tensor"), lambda: ops.PSFConvolvePlan(psf.numpy(), (18, 20))),
        (TypeError, ("psf", "int64"), lambda: ops.PSFConvolvePlan(psf.long(), (18, 20))),
        (ValueError, ("psf", "(9,)"), lambda: ops.PSFConvolvePlan(psf[:, 0], (18, 20))),
        (ValueError, ("psf", "(0, 8)"), lambda: ops.PSFConvolvePlan(psf[:0], (18, 20))),
        (ValueError, ("image_size", "(18,)"), lambda: ops.PSFConvolvePlan(psf, (18,))),
        (ValueError, ("image_size", "18"), lambda: ops.PSFConvolvePlan(psf, 18)),
        (ValueError, ("image_size", "0"), lambda: ops.PSFConvolvePlan(psf, (0, 20))),
        (ValueError, ("image_size", "True"), lambda: ops.PSFConvolvePlan(psf, (True, 20))),
        (ValueError, ("image_size", "2.5"), lambda: ops.PSFConvolvePlan(psf, (2.5, 20))),
        (ValueError, ("mode", "sme"), lambda: ops.PSFConvolvePlan(psf, (18, 20), mode="sme")),
        (ValueError, ("mode", "full"), lambda: ops.PSFConvolvePlan(psf, (18, 20), mode="full", boundary="circular")),
        (ValueError, ("psf", "valid"), lambda: ops.PSFConvolvePlan(psf, (8, 20), mode="valid")),
        (ValueError, ("image", "(3, 18, 19)"), lambda: plan(image[..., :-1])),
        (ValueError, ("image", "(20,)"), lambda: plan(image[0, 0])),
        (TypeError, ("image", "float32"), lambda: plan(image.float())),
        (TypeError, ("image", "ndarray"), lambda: plan(image.numpy())),
        (ValueError, ("image", "psf", "(2,)"), lambda: ops.PSFConvolvePlan(psf.expand(2, 9, 8), (18, 20))(image)),
        (ValueError, ("psf", "torch.func"), lambda: torch.func.vmap(lambda p: ops.PSFConvolvePlan(p, (9, 9)))(image)),
    ):
        contract.expect_error(kind, words, call)
