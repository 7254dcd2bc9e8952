"""Row sums of a pointwise map: the kernel contract, and truth by the full matrix in extended precision."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens import ops
from bitlens.kernels import _compiled

sys.path.insert(0, str(Path(__file__).parent))
import contract
from contract import Case, running

BACKENDS = ("cpu", "numba")
EVERY_BACKEND = (*BACKENDS, "reference")
MAPS = (("softplus", None), ("clipped_exp", 1.5))
INFINITY = math.inf


def call_of(name: str, limit: float | None):
    def call(query: Tensor, key: Tensor, positive: Tensor, scale: Tensor, query_bias: Tensor, key_bias: Tensor):
        return ops.pairwise_map_sums(
            *(query, key),
            map=name,
            limit=limit,
            positive=positive,
            scale=scale,
            query_bias=query_bias,
            key_bias=key_bias,
        )[:2]

    return call


def inputs_of(n: int, m: int, d: int, batch: tuple[int, ...] = (), broadcast: bool = False, width: float = 1.0):
    """Scores of a few nats around 0; with `broadcast` every argument carries another part of the batch shape."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        lead, tail = (batch[:1] + (1,) * (len(batch) - 1), batch[1:]) if broadcast else (batch, batch)
        root = width * d**-0.25 if d else 1.0
        return (
            root * normal(*lead, n, d),
            root * normal(*tail, m, d),
            torch.randint(0, m, (*tail, n), generator=generator),
            0.5 + normal(*tail).abs(),
            normal(*lead, n),
            normal(*batch, m),
        )

    return make


SHAPES = {
    "small": inputs_of(5, 7, 3),
    "one element": inputs_of(1, 1, 1),
    "broadcast": inputs_of(9, 11, 6, (2, 3), broadcast=True),
    "many small": inputs_of(3, 4, 2, (700,)),
    "whole tiles": inputs_of(192, 288, 16),
    "several phases": inputs_of(389, 205, 17),
    "features in several blocks": inputs_of(40, 50, 301),
    "more slabs than 32": inputs_of(97, 3200, 3),
    "scores of tens": inputs_of(60, 70, 4, width=5.0),
}


def softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def truth_of(name: str, limit: float | None, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    query, key, positive, scale, query_bias, key_bias = (t.numpy() for t in inputs)
    wide = [t.astype(np.longdouble) for t in (query, key, query_bias, key_bias)]
    scores = np.longdouble(scale) * (wide[0] @ wide[1].T) + wide[2][:, None] + wide[3][None, :]
    rows = np.arange(scores.shape[0])
    mapped = softplus(scores) if name == "softplus" else np.exp(np.clip(scores, -limit, limit))
    mapped[rows, positive] = 0
    return [torch.from_numpy(part.astype(np.float64)) for part in (scores[rows, positive], mapped.sum(axis=1))]


# ---- The contract ----


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "limit"), MAPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_the_reference(
    backend: str, name: str, limit: float | None, shape: str, dtype: torch.dtype
) -> None:
    contract.check_against_reference(Case(call_of(name, limit), SHAPES[shape]), backend, dtype)


@pytest.mark.parametrize(("name", "limit"), MAPS)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_gradcheck(backend: str, name: str, limit: float | None) -> None:
    case = Case(call_of(name, limit), inputs_of(2, 3, 2, (2, 2), broadcast=True))
    contract.check_gradcheck(case, backend, second=backend == "reference")


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous(backend: str) -> None:
    for name, limit in MAPS:
        contract.check_non_contiguous(Case(call_of(name, limit), SHAPES["broadcast"]), backend, torch.float32)


@pytest.mark.parametrize("shape", ["several phases", "many small"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_and_two_threads_give_the_same_bits(backend: str, shape: str) -> None:
    for name, limit in MAPS:
        contract.check_threads_agree(Case(call_of(name, limit), SHAPES[shape]), backend)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_compiles_without_graph_break(backend: str) -> None:
    for name, limit in MAPS:
        contract.check_compiles(Case(call_of(name, limit), SHAPES["broadcast"]), backend)


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(name: str) -> None:
    best = _compiled.instruction_set()
    try:
        _compiled._set_instruction_set(name)
    except ValueError:
        pytest.skip(f"this processor lacks {name}")
    try:
        for dtype in contract.DTYPES:
            for kind, limit in MAPS:
                contract.check_against_reference(Case(call_of(kind, limit), SHAPES["several phases"]), "cpu", dtype)
    finally:
        _compiled._set_instruction_set(best)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_empty_batch_and_no_features(backend: str) -> None:
    inputs = inputs_of(4, 5, 3, (2, 0))(torch.float32, contract.generator())
    with running(backend):
        empty = call_of("softplus", None)(*inputs)
        flat = ops.pairwise_map_sums(torch.zeros(2, 0), torch.zeros(5, 0), map="softplus")
    assert [tuple(output.shape) for output in empty] == [(2, 0, 4)] * 2
    torch.testing.assert_close(flat.row_sum_negatives, torch.full((2,), 4 * math.log(2)))


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("shape", [(2, 65537, 3), (65537, 2, 3)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_long_reduction(backend: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    contract.check_against_reference(Case(call_of("softplus", None), inputs_of(*shape)), backend, dtype)


# ---- Truth ----


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize(("name", "limit"), MAPS)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_outputs_are_those_of_the_full_matrix(backend: str, name: str, limit: float | None, dtype: torch.dtype) -> None:
    inputs = inputs_of(130, 150, 24)(dtype, contract.generator(3))
    with running(backend):
        outputs = call_of(name, limit)(*inputs)
    tolerance = 1e-13 if dtype == torch.float64 else 2e-6
    for output, true in zip(outputs, truth_of(name, limit, inputs), strict=True):
        assert contract.relative_error(output, true) <= tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("level", [-60.0, -25.0, -3.0, 25.0, 90.0])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_softplus_keeps_its_digits_far_from_zero(
    backend: str, level: float, dtype: torch.dtype, tolerance: float
) -> None:
    """The scores of a trained critic: log(1 + exp S) is exp S, of which 1 + exp S has no digit left."""
    query, key = torch.zeros(3, 2, dtype=dtype), torch.zeros(11, 2, dtype=dtype)
    with running(backend):
        sums = ops.pairwise_map_sums(query, key, map="softplus", key_bias=torch.full((11,), level, dtype=dtype))
    true = 10 * float(softplus(np.longdouble(level)))
    assert float((sums.row_sum_negatives.double() / true - 1).abs().max()) <= tolerance


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_the_largest_limit_neither_overflows_nor_stops_short(backend: str, dtype: torch.dtype) -> None:
    limit = 64.0 if dtype == torch.float32 else 600.0
    bias = torch.tensor([0.0, 1000.0, -1000.0, limit - 1], dtype=dtype)
    zeros = torch.zeros(4, 1, dtype=dtype)
    with running(backend):
        sums = ops.pairwise_map_sums(zeros[:1], zeros, map="clipped_exp", limit=limit, key_bias=bias)
    true = math.exp(limit) + math.exp(-limit) + math.exp(limit - 1)
    # exp(x) inherits the rounding of the reduction of x, 600 * 1e-16.
    assert float(sums.row_sum_negatives[0]) == pytest.approx(true, rel=1e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize(("name", "limit"), MAPS)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_a_masked_key_is_a_key_that_is_not_there(backend: str, name: str, limit: float | None) -> None:
    generator = contract.generator(10)
    query, key, positive, _, query_bias, key_bias = inputs_of(50, 130, 5)(torch.float64, generator)
    keep = torch.rand(130, generator=generator) > 0.3
    keep[positive] = True
    masked = torch.where(keep, key_bias, -INFINITY)
    query_bias[7] = -INFINITY
    new_column = torch.cumsum(keep, 0) - 1

    def run(key: Tensor, positive: Tensor, key_bias: Tensor) -> tuple[ops.PairwiseMapSums, list[Tensor]]:
        leaves = [t.clone().requires_grad_() for t in (query, key, key_bias)]
        sums = ops.pairwise_map_sums(
            *leaves[:2], map=name, limit=limit, positive=positive, query_bias=query_bias, key_bias=leaves[2]
        )
        return sums, list(torch.autograd.grad(sums.row_sum_negatives.sum(), leaves))

    with running(backend):
        wide, wide_gradients = run(key, positive, masked)
        narrow, narrow_gradients = run(key[keep], new_column[positive], key_bias[keep])
    torch.testing.assert_close(wide.row_sum_negatives, narrow.row_sum_negatives, rtol=1e-13, atol=1e-13)
    assert float(wide.row_sum_negatives[7].detach()) == 0.0
    count = torch.full((50,), float(keep.sum()) - 1, dtype=torch.float64)
    count[7] = 0
    assert torch.equal(wide.n_negatives, count)
    assert torch.equal(narrow.n_negatives, count)
    torch.testing.assert_close(wide_gradients[0], narrow_gradients[0], rtol=1e-12, atol=1e-12)
    for all_keys, few_keys in zip(wide_gradients[1:], narrow_gradients[1:], strict=True):
        torch.testing.assert_close(all_keys[keep], few_keys, rtol=1e-12, atol=1e-12)
        assert bool((all_keys[~keep] == 0).all())


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_one_key_leaves_nothing_to_sum(backend: str) -> None:
    with running(backend):
        sums = ops.pairwise_map_sums(torch.ones(1, 2), torch.ones(1, 2), map="softplus")
    assert [float(part) for part in sums[:3]] == [2.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, INFINITY, -INFINITY])
@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize(("name", "limit"), MAPS)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_undefined_inputs_give_nan_where_they_touch(
    backend: str, name: str, limit: float | None, dtype: torch.dtype, bad: float
) -> None:
    def broken(argument: int, where: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        inputs = inputs_of(100, 110, 6)(dtype, contract.generator(13))
        inputs[2].clamp_(5, 96)  # the broken keys are nobody's positive, which is left out of the sum
        inputs[argument][where] = bad
        leaves = [t.requires_grad_(t.is_floating_point()) for t in inputs]
        with running(backend):
            sums = call_of(name, limit)(*leaves)[1]
            (gradient,) = torch.autograd.grad(sums.sum(), leaves[0])
        return torch.isnan(sums), torch.isnan(gradient).any(dim=-1)

    for where in broken(0, (40, 2)):
        assert torch.equal(where, torch.arange(100) == 40)
    for where in broken(1, (97, 0)):
        assert bool(where.all())
    assert bool(broken(3, ())[0].all())
    masks = bad == -INFINITY
    assert torch.equal(broken(4, (3,))[0], torch.arange(100) == (-1 if masks else 3))
    assert bool(broken(5, (3,))[0].all()) != masks


@pytest.mark.parametrize("backend", ["cpu"])
def test_memory_grows_with_rows_not_with_pairs(backend: str) -> None:
    """40,000 x 40,000 scores would be 6.4 GB; the work space and the gradients are a few hundred bytes a row."""
    module = _compiled.module(backend)
    small, large = (
        module.pairwise_map_sums_workspace_bytes(1, (n, n, 8), 4, True, True, True) for n in (10_000, 40_000)
    )
    assert large < 40_000 * 500
    assert large < 4.1 * small


# ---- Errors ----


def test_wrong_arguments_are_named() -> None:
    query, key = torch.zeros(3, 4), torch.zeros(5, 4)
    error, sums = contract.expect_error, ops.pairwise_map_sums
    error(ValueError, ("map", "softplus", "clipped_exp", "exp"), lambda: sums(query, key, map="exp"))
    error(ValueError, ("limit", "None", "2.0"), lambda: sums(query, key, map="softplus", limit=2.0))
    error(TypeError, ("limit", "number", "NoneType"), lambda: sums(query, key, map="clipped_exp"))
    for limit in (0.0, -1.0, math.nan, 65.0):
        error(ValueError, ("limit", "64", str(limit)), lambda x=limit: sums(query, key, map="clipped_exp", limit=x))
    error(ValueError, ("key", "4 features", "(5, 3)"), lambda: sums(query, torch.zeros(5, 3), map="softplus"))
    error(ValueError, ("positive", "more queries than keys"), lambda: sums(key, query, map="softplus"))
    error(TypeError, ("query", "float16"), lambda: sums(query.half(), key, map="softplus"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_are_refused(backend: str) -> None:
    query = torch.ones(3, 2, requires_grad=True)
    with running(backend):
        sums = ops.pairwise_map_sums(query, torch.ones(4, 2), map="softplus").row_sum_negatives
        (gradient,) = torch.autograd.grad(sums.sum(), query, create_graph=True)
        contract.expect_error(RuntimeError, ("second derivatives", "reference"), lambda: gradient.sum().backward())
