"""The contract that every kernel passes on every backend: one list of checks, applied to a kernel's `Case`."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from bitlens import ops
from bitlens.kernels import _backend, _compiled

DTYPES = (torch.float32, torch.float64)
FLOAT64_TOLERANCE = 1e-12


@contextlib.contextmanager
def running(backend: str) -> Iterator[None]:
    """Run every kernel on one backend; "cuda_on_cpu" is the CUDA source executed on the CPU."""
    if backend != "cuda_on_cpu":
        with ops.use_backend(backend):
            yield
        return
    emulated = importlib.import_module("bitlens._native_cuda_on_cpu")
    with (
        mock.patch.object(_compiled, "_native_cuda", emulated),
        mock.patch.object(_backend, "select", lambda *_: "cuda"),
        mock.patch.object(_backend, "forced", lambda: True),
    ):
        yield


@dataclass(frozen=True)
class Case:
    """One way of calling a kernel.

    Attributes:
        call: the public function on tensors, returning one tensor or a tuple of them.
        inputs: (dtype, generator) -> tensors, each of which takes a gradient unless it is integer.
        float64_tolerance: a looser bound than the contract's needs a reason beside the case.
    """

    call: Callable[..., Any]
    inputs: Callable[[torch.dtype, torch.Generator], tuple[Tensor, ...]]
    float64_tolerance: float = FLOAT64_TOLERANCE


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Largest |error| / max(1, |truth|); places where truth is not finite must agree exactly."""
    value, truth = value.detach().to(truth.dtype), truth.detach()
    finite = torch.isfinite(truth)
    torch.testing.assert_close(value[~finite], truth[~finite], equal_nan=True)
    if not bool(finite.any()):
        return 0.0
    error = (value[finite] - truth[finite]).abs() / truth[finite].abs().clamp(min=1.0)
    return float(error.max().nan_to_num(nan=float("inf")))


def value_and_gradients(
    case: Case, inputs: tuple[Tensor, ...], weights_seed: int = 1, device: str = "cpu"
) -> list[Tensor]:
    """Outputs, then the gradients of a random weighted sum of the outputs; computed on a device, given on the CPU."""
    leaves = [t.detach().to(device, copy=True).requires_grad_(t.is_floating_point()) for t in inputs]
    outputs = [output.cpu() for output in as_tuple(case.call(*leaves))]
    weights_generator = generator(weights_seed)
    total = torch.zeros((), dtype=leaves[0].dtype)
    for output in outputs:
        weight = torch.randn(output.shape, generator=weights_generator, dtype=torch.float64).to(output.dtype)
        total = total + (torch.where(torch.isfinite(output), output, 0.0) * weight).sum()
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [output.detach() for output in outputs] + [t.cpu() for t in torch.autograd.grad(total, wanted)]


def check_against_reference(case: Case, backend: str, dtype: torch.dtype) -> None:
    """Value and gradients against the float64 reference at the inputs as rounded to `dtype`."""
    inputs = case.inputs(dtype, generator())
    exact_inputs = tuple(t.double() if t.is_floating_point() else t for t in inputs)
    with ops.use_backend("reference"):
        truth = value_and_gradients(case, exact_inputs)
        plain = value_and_gradients(case, inputs)
    with running(backend):
        ours = value_and_gradients(case, inputs, device="cuda" if backend == "cuda" else "cpu")
    for index, (value, in_torch, true) in enumerate(zip(ours, plain, truth, strict=True)):
        assert value.dtype == dtype
        assert value.shape == true.shape
        if dtype == torch.float64:
            limit = case.float64_tolerance
        else:
            limit = 2 * relative_error(in_torch, true) + 4 * torch.finfo(dtype).eps
        error = relative_error(value, true)
        assert error <= limit, f"output {index}: error {error:.3g} > {limit:.3g}"


def check_gradcheck(case: Case, backend: str, *, second: bool) -> None:
    """Analytic against numerical derivatives in float64."""
    device = "cuda" if backend == "cuda" else "cpu"
    inputs = tuple(
        t.detach().to(device, copy=True).requires_grad_(t.is_floating_point())
        for t in case.inputs(torch.float64, generator())
    )
    with running(backend):
        assert torch.autograd.gradcheck(case.call, inputs, eps=1e-6, atol=1e-5, rtol=1e-5)
        if second:
            assert torch.autograd.gradgradcheck(case.call, inputs, eps=1e-6, atol=1e-4, rtol=1e-4)


def check_non_contiguous(case: Case, backend: str, dtype: torch.dtype) -> None:
    """Strided inputs give what their contiguous copies give, bit for bit."""
    inputs = tuple(t.to("cuda" if backend == "cuda" else "cpu") for t in case.inputs(dtype, generator()))
    strided = tuple(_strided(t) for t in inputs)
    with running(backend):
        for a, b in zip(as_tuple(case.call(*strided)), as_tuple(case.call(*inputs)), strict=True):
            assert torch.equal(a, b)


def _strided(t: Tensor) -> Tensor:
    wide = t.new_empty((*t.shape[:-1], 2 * t.shape[-1]) if t.ndim else (2,))
    view = wide[..., ::2] if t.ndim else wide[0]
    view.copy_(t)
    return view


def check_threads_agree(case: Case, backend: str) -> None:
    """Values and gradients are the same bits with one and with two threads, in both precisions."""
    for dtype in DTYPES:
        _check_threads_agree(case, backend, dtype)


def _check_threads_agree(case: Case, backend: str, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype, generator())
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with running(backend):
                results.append(value_and_gradients(case, inputs))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)


def check_compiles(case: Case, backend: str) -> None:
    """torch.compile without graph breaks gives the eager values and gradients."""
    inputs = case.inputs(torch.float64, generator())
    compiled = Case(torch.compile(case.call, fullgraph=True, backend="aot_eager"), case.inputs)
    with running(backend):
        eager = value_and_gradients(case, inputs)
        torch.compiler.reset()
        traced = value_and_gradients(compiled, inputs)
    for a, b in zip(eager, traced, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def check_instruction_sets_agree(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    """Every instruction set this processor has gives the same values to rounding."""
    inputs = case.inputs(dtype, generator())
    best = _compiled.instruction_set()
    results: dict[str, tuple[Tensor, ...]] = {}
    try:
        for name in ("baseline", "avx2", "avx512"):
            try:
                _compiled._set_instruction_set(name)
            except ValueError:
                continue
            with ops.use_backend("cpu"):
                results[name] = as_tuple(case.call(*inputs))
    finally:
        _compiled._set_instruction_set(best)
    assert best in results
    for name, outputs in results.items():
        for a, b in zip(outputs, results["baseline"], strict=True):
            assert relative_error(a, b) <= tolerance, name


def expect_error(kind: type[Exception], words: tuple[str, ...], call: Callable[[], object]) -> None:
    """The call fails with an error whose text has every word."""
    with pytest.raises(kind) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)
