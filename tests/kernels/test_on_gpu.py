"""The kernels on a GPU: the contract's cases there against the reference on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU on this machine", allow_module_level=True)

from bitlens import ops
from bitlens.kernels import _compiled

sys.path.insert(0, str(Path(__file__).parent))
import contract
import test_infonce_scores
import test_joint_critic_scores
import test_pairwise_map_sums
import test_parallel_projection
import test_poisson_gaussian_bin_log_prob
import test_poisson_gaussian_log_prob
import test_poisson_gaussian_log_prob_pairs
import test_psf_convolve
from contract import Case

COMPILED: dict[str, Case] = {
    **{f"infonce {name}": case for name, case in test_infonce_scores.CASES.items()},
    **{f"bin {name}": case for name, case in test_poisson_gaussian_bin_log_prob.CASES.items()},
    "poisson gaussian": test_poisson_gaussian_log_prob.CASE,
    "poisson gaussian, one axis": test_poisson_gaussian_log_prob.PLAIN,
    "pairs, few": test_poisson_gaussian_log_prob_pairs.FEW,
    "pairs, many": test_poisson_gaussian_log_prob_pairs.MANY,
    "pairs, one sensor": test_poisson_gaussian_log_prob_pairs.ONE_SENSOR,
    **{f"psf {name}": case for name, case in test_psf_convolve.CASES.items()},
    **{f"psf {name}": case for name, case in test_psf_convolve.LARGE_CASES.items()},
    **{f"psf joint {name}": case for name, case in test_psf_convolve.JOINT_CASES.items()},
    "psf many": test_psf_convolve.MANY_TERMS,
    **{
        f"projection {name}": test_parallel_projection.case(layer)
        for name, layer in test_parallel_projection.ENCODERS.items()
    },
}
# Run as plain torch on a GPU.
COMPOSED: dict[str, Case] = {
    **{
        f"{kind} {name}": Case(test_pairwise_map_sums.call_of(kind, limit), inputs)
        for name, inputs in test_pairwise_map_sums.SHAPES.items()
        for kind, limit in test_pairwise_map_sums.MAPS
    },
    **{f"joint {name}": case for name, case in test_joint_critic_scores.CASES.items()},
}
every_dtype = pytest.mark.parametrize("dtype", contract.DTYPES)


def test_the_gpu_kernels_are_built() -> None:
    assert _compiled.has_cuda()
    assert "cuda" in ops.available_backends()


@every_dtype
@pytest.mark.parametrize("name", COMPILED)
def test_agrees_with_the_reference(name: str, dtype: torch.dtype) -> None:
    contract.check_against_reference(COMPILED[name], "cuda", dtype)


@pytest.mark.parametrize("name", ["infonce batch", "psf convolve-same-zero", "psf filter-prime", "projection square"])
def test_strided_inputs(name: str) -> None:
    contract.check_non_contiguous(COMPILED[name], "cuda", torch.float32)


@every_dtype
@pytest.mark.parametrize("name", COMPOSED)
def test_what_torch_runs_agrees_with_the_reference(name: str, dtype: torch.dtype) -> None:
    """Without a choice of backend, as users call it."""
    case = COMPOSED[name]
    inputs = case.inputs(dtype, contract.generator())
    exact = tuple(t.double() if t.is_floating_point() else t for t in inputs)
    with ops.use_backend("reference"):
        truth, plain = (contract.value_and_gradients(case, some) for some in (exact, inputs))
    found = contract.value_and_gradients(case, inputs, device="cuda")
    for value, in_torch, true in zip(found, plain, truth, strict=True):
        limit = case.float64_tolerance
        if dtype == torch.float32:
            limit = 4 * contract.relative_error(in_torch, true) + 8 * torch.finfo(dtype).eps
        assert contract.relative_error(value, true) <= limit


def test_repeats_bit_for_bit() -> None:
    for name in ("infonce odd tiles", "psf joint channels", "pairs, many", "projection long"):
        inputs = COMPILED[name].inputs(torch.float32, contract.generator())
        first, second = (contract.value_and_gradients(COMPILED[name], inputs, device="cuda") for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), name


def test_a_stream_of_its_own() -> None:
    """Work on another stream gives what the default one gives."""
    case = COMPILED["psf convolve-same-zero"]
    inputs = case.inputs(torch.float32, contract.generator())
    truth = contract.value_and_gradients(case, inputs, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        found = contract.value_and_gradients(case, inputs, device="cuda")
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, truth, strict=True))
