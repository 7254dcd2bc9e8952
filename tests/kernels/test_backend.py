"""Dispatch: what runs where, the one switch, threads, forks."""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from bitlens import ops
from bitlens.kernels import _backend, _compiled


def test_every_backend_that_is_expected_here_is_available() -> None:
    assert ops.available_backends()[-3:] == ("cpu", "numba", "reference")
    assert _compiled.instruction_set() in ("baseline", "avx2", "avx512")


def test_use_backend_nests_and_restores() -> None:
    def chosen() -> str:
        return _backend.select("any", torch.device("cpu"), _backend.BACKENDS)

    assert chosen() == "cpu"
    with ops.use_backend("numba"):
        with pytest.raises(ValueError, match="name"), ops.use_backend("reference"), ops.use_backend("no such"):
            pass
        with ops.use_backend("reference"):
            assert chosen() == "reference"
        assert chosen() == "numba"
        seen: list[str] = []
        other = threading.Thread(target=lambda: seen.append(chosen()))
        other.start()
        other.join()
        assert seen == ["cpu"]
    assert chosen() == "cpu"


def test_a_forced_backend_never_falls_back() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ops.BackendUnavailable, match="cuda"), ops.use_backend("cuda"):
            pass
    with ops.use_backend("cpu"):
        with pytest.raises(ops.BackendUnavailable, match="cuda:0"):
            _backend.select("any", torch.device("cuda", 0), _backend.BACKENDS)
        with pytest.raises(ops.BackendUnavailable, match="no such kernel"):
            _backend.select("any", torch.device("cpu"), ("reference",))


def test_without_the_extension_numba_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compiled, "_native", None)
    assert ops.available_backends()[-2:] == ("numba", "reference")
    assert _backend.select("any", torch.device("cpu"), _backend.BACKENDS) == "numba"


def test_a_device_without_kernels_gets_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compiled, "_native_cuda", None)
    assert _backend.select("any", torch.device("cuda", 0), _backend.BACKENDS) == "reference"


def test_meta_tensors_give_shapes() -> None:
    value = ops.poisson_gaussian_log_prob(torch.zeros(2, device="meta"), 1.0, read_std=1.0)
    assert value.shape == (2,)
    assert value.device.type == "meta"


def test_reproducible_pins_torch_but_not_the_kernels() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with _backend.reproducible():
            assert (torch.get_num_threads(), _backend.threads()) == (1, 2)
            with _backend.reproducible():
                assert (torch.get_num_threads(), _backend.threads()) == (1, 2)
            assert (torch.get_num_threads(), _backend.threads()) == (1, 2)
        assert (torch.get_num_threads(), _backend.threads()) == (2, 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(1, 1_000_000), (3_000_001,), (7, 50_000), (20_000_000,)])
def test_a_sum_to_one_number_does_not_depend_on_threads(shape: tuple[int, ...]) -> None:
    value = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(_backend.sum_to_shape(value, torch.Size([])))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)
    assert float(results[0]) == pytest.approx(float(value.double().sum()), rel=1e-5)


def test_sum_to_shape_is_sum_to_size() -> None:
    value = torch.rand((4, 3, 5), dtype=torch.float64)
    for shape in [(4, 3, 5), (3, 5), (1, 5), (4, 1, 1), (1,), ()]:
        torch.testing.assert_close(_backend.sum_to_shape(value, torch.Size(shape)), value.sum_to_size(shape))


FORK = """
import os, torch
from bitlens import ops
torch.set_num_threads(2)
z = torch.ones(100_000)
before = ops.poisson_gaussian_log_prob(z, 3.0, read_std=1.0)
child = os.fork()
if child == 0:
    after = ops.poisson_gaussian_log_prob(z, 3.0, read_std=1.0)
    os._exit(0 if bytes(after.numpy().data) == bytes(before.numpy().data) else 3)
_, status = os.waitpid(child, 0)
raise SystemExit(os.waitstatus_to_exitcode(status))
"""


def test_kernels_run_in_a_forked_child() -> None:
    """DataLoader workers are forks: a kernel there must neither hang nor change its result."""
    result = subprocess.run([sys.executable, "-c", FORK], timeout=120, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_extension_does_not_link_torch() -> None:
    module = _compiled.module("cpu")
    assert module.__file__ is not None
    needed = subprocess.run(["ldd", module.__file__], capture_output=True, text=True, check=True).stdout
    assert "libtorch" not in needed
    assert "libc10" not in needed


def test_stub_names_every_function_of_the_extension() -> None:
    module = _compiled.module("cpu")
    stub = Path(_backend.__file__).parents[1] / "_native.pyi"
    named = {node.name for node in ast.parse(stub.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert named == {name for name in dir(module) if not name.startswith("_")}


def test_reproducible_blocks_of_two_threads_take_turns() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen: list[tuple[int, int, int]] = []
    entered = threading.Event()

    def other() -> None:
        torch.set_num_threads(2)
        with _backend.reproducible():
            entered.set()
            inside = _backend.threads()
        seen.append((inside, torch.get_num_threads(), _backend.threads()))

    try:
        with _backend.reproducible():
            thread = threading.Thread(target=other)
            thread.start()
            assert not entered.wait(0.2)
        thread.join(10)
        assert seen == [(2, 2, 2)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_real_gpu_gives_the_reference(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    mean = 50 * torch.rand(1000, generator=generator, dtype=torch.float64)
    measured = torch.poisson(mean, generator=generator) + torch.randn(1000, generator=generator, dtype=torch.float64)
    results = []
    for device, kind in (("cuda", dtype), ("cpu", torch.float64)):
        leaf = mean.to(dtype).to(device, kind).requires_grad_()
        value = ops.poisson_gaussian_log_prob(measured.to(dtype).to(device, kind), leaf, read_std=1.0)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        results.append((value.detach().cpu().double(), gradient.cpu().double()))
    tolerance = 2e-6 if dtype == torch.float32 else 1e-11
    for ours, true in zip(*results, strict=True):
        assert float(((ours - true).abs() / true.abs().clamp(min=1)).max()) < tolerance
