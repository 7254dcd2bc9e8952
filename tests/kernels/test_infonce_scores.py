"""Contrastive scores: the kernel contract, and truth by the full matrix in extended precision."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens import ops
from bitlens.kernels import _compiled

sys.path.insert(0, str(Path(__file__).parent))
import contract
from contract import Case, running

BACKENDS = ("cpu", "numba", "cuda_on_cpu")
EVERY_BACKEND = (*BACKENDS, "reference")
INFINITY = math.inf


def call(
    query: Tensor, key: Tensor, positive: Tensor, scale: Tensor, query_bias: Tensor, key_bias: Tensor
) -> ops.InfoNCEScores:
    return ops.infonce_scores(query, key, positive=positive, scale=scale, query_bias=query_bias, key_bias=key_bias)


def score_inputs(n: int, m: int, d: int, batch: tuple[int, ...] = (), broadcast: bool = False):
    """Scores of a few nats around 0; with `broadcast` every argument carries another part of the batch shape."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        lead, tail = (batch[:1] + (1,) * (len(batch) - 1), batch[1:]) if broadcast else (batch, batch)
        root = d**-0.25 if d else 1.0
        return (
            root * normal(*lead, n, d),
            root * normal(*tail, m, d),
            torch.randint(0, m, (*tail, n), generator=generator),
            0.5 + normal(*tail).abs(),
            normal(*lead, n),
            normal(*batch, m),
        )

    return make


def diagonal(query: Tensor, key: Tensor) -> ops.InfoNCEScores:
    return ops.infonce_scores(query, key)


def diagonal_inputs(n: int, m: int, d: int):
    make = score_inputs(n, m, d)
    return lambda dtype, generator: make(dtype, generator)[:2]


CASES = {
    "small": Case(call, score_inputs(5, 7, 3)),
    "one element": Case(call, score_inputs(1, 1, 1)),
    "batch": Case(call, score_inputs(9, 11, 6, (2, 3))),
    "broadcast": Case(call, score_inputs(9, 11, 6, (2, 3), broadcast=True)),
    "many small": Case(call, score_inputs(3, 4, 2, (3000,))),
    "whole tiles": Case(call, score_inputs(192, 288, 16)),
    "odd tiles": Case(call, score_inputs(101, 97, 33)),
    "several phases": Case(call, score_inputs(389, 205, 17)),
    "tall": Case(call, score_inputs(500, 3, 5)),
    "features in several blocks": Case(call, score_inputs(40, 50, 301)),
    "features of the information estimators": Case(call, score_inputs(64, 64, 768)),
    "diagonal": Case(diagonal, diagonal_inputs(130, 130, 12)),
    "diagonal and extra negatives": Case(diagonal, diagonal_inputs(50, 150, 12)),
    "more slabs than 32": Case(diagonal, diagonal_inputs(97, 3200, 3)),
}


def matrix_of(
    query: Tensor,
    key: Tensor,
    scale: float = 1.0,
    query_bias: Tensor | None = None,
    key_bias: Tensor | None = None,
) -> np.ndarray:
    """The full score matrix of one batch item in extended precision."""
    scores = np.longdouble(scale) * (query.numpy().astype(np.longdouble) @ key.numpy().astype(np.longdouble).T)
    if query_bias is not None:
        scores = scores + query_bias.numpy().astype(np.longdouble)[:, None]
    if key_bias is not None:
        scores = scores + key_bias.numpy().astype(np.longdouble)[None, :]
    return scores


def logsumexp(scores: np.ndarray, axis: int) -> np.ndarray:
    largest = scores.max(axis=axis, keepdims=True)
    largest = np.where(np.isneginf(largest), 0, largest)
    with np.errstate(divide="ignore"):
        return np.squeeze(largest, axis) + np.log(np.exp(scores - largest).sum(axis=axis))


def truth_of(scores: np.ndarray, positive: np.ndarray) -> list[Tensor]:
    rows = np.arange(scores.shape[0])
    negatives = scores.copy()
    negatives[rows, positive] = -np.inf
    parts = (scores[rows, positive], logsumexp(scores, 1), logsumexp(negatives, 1), logsumexp(scores, 0))
    return [torch.from_numpy(part.astype(np.float64)) for part in parts]


# ---- The contract ----


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_the_reference(backend: str, name: str, dtype: torch.dtype) -> None:
    contract.check_against_reference(CASES[name], backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    contract.check_gradcheck(Case(call, score_inputs(3, 4, 2)), backend, second=False)
    contract.check_gradcheck(Case(call, score_inputs(2, 3, 2, (2, 2), broadcast=True)), backend, second=False)


def test_reference_gradcheck_first_and_second_order() -> None:
    contract.check_gradcheck(Case(call, score_inputs(3, 4, 2)), "reference", second=True)


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous(backend: str, dtype: torch.dtype) -> None:
    contract.check_non_contiguous(CASES["broadcast"], backend, dtype)
    contract.check_non_contiguous(CASES["odd tiles"], backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_transposed_operands_need_no_copy(backend: str) -> None:
    query, key = (torch.randn(d, n, generator=contract.generator(n)).mT for d, n in ((7, 20), (7, 30)))
    with running(backend):
        strided, plain = diagonal(query, key), diagonal(query.contiguous(), key.contiguous())
    for a, b in zip(strided, plain, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["several phases", "many small", "broadcast", "more slabs than 32"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_and_two_threads_give_the_same_bits(backend: str, name: str) -> None:
    contract.check_threads_agree(CASES[name], backend)


@pytest.mark.parametrize(("n", "m"), [(700, 700), (100, 3000), (3000, 100), (1900, 900)])
def test_more_threads_than_cores_give_the_same_bits(n: int, m: int) -> None:
    """Phases have no barrier between them: each tile waits for those before it in its rows and columns."""
    query, key = (torch.randn(length, 5, generator=contract.generator(length)) for length in (n, m))
    positive = torch.randint(m, (n,), generator=contract.generator(1))

    def outputs_and_gradients() -> tuple[Tensor, ...]:
        leaves = [tensor.clone().requires_grad_() for tensor in (query, key)]
        outputs = ops.infonce_scores(*leaves, positive=positive)
        return (*outputs, *torch.autograd.grad(sum(output.sin().sum() for output in outputs), leaves))

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = outputs_and_gradients()
        torch.set_num_threads(7)
        for _ in range(15):
            for got, one in zip(outputs_and_gradients(), expected, strict=True):
                torch.testing.assert_close(got, one, rtol=0, atol=0)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("name", ["broadcast", "diagonal and extra negatives"])
def test_compiles_without_graph_break(backend: str, name: str) -> None:
    contract.check_compiles(CASES[name], backend)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 4e-6), (torch.float64, 1e-14)])
def test_instruction_sets_agree(dtype: torch.dtype, tolerance: float) -> None:
    for name in ("several phases", "features in several blocks"):
        contract.check_instruction_sets_agree(CASES[name], dtype, tolerance)


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_gradients_on_every_instruction_set(name: str) -> None:
    best = _compiled.instruction_set()
    try:
        _compiled._set_instruction_set(name)
    except ValueError:
        pytest.skip(f"this processor lacks {name}")
    try:
        for dtype in contract.DTYPES:
            contract.check_against_reference(CASES["odd tiles"], "cpu", dtype)
    finally:
        _compiled._set_instruction_set(best)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_empty_batch(backend: str, batch: tuple[int, ...]) -> None:
    inputs = [
        t.requires_grad_(t.is_floating_point())
        for t in score_inputs(4, 5, 3, batch)(torch.float32, contract.generator())
    ]
    with running(backend):
        outputs = call(*inputs)
        sum(output.sum() for output in outputs).backward()
    assert [output.shape for output in outputs] == [(*batch, 4)] * 3 + [(*batch, 5)]
    assert inputs[0].grad is not None
    assert inputs[0].grad.shape == inputs[0].shape


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_no_queries_and_no_features(backend: str) -> None:
    with running(backend):
        empty = diagonal(torch.zeros(0, 3), torch.zeros(5, 3))
        flat = diagonal(torch.zeros(2, 0), torch.zeros(5, 0))
    assert [tuple(output.shape) for output in empty] == [(0,), (0,), (0,), (5,)]
    assert torch.equal(empty.column_logsumexp, torch.full((5,), -INFINITY))
    torch.testing.assert_close(flat.row_logsumexp, torch.full((2,), math.log(5)))
    torch.testing.assert_close(flat.row_logsumexp_negatives, torch.full((2,), math.log(4)))
    torch.testing.assert_close(flat.column_logsumexp, torch.full((5,), math.log(2)))


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("shape", [(2, 65537, 3), (65537, 2, 3), (2, 3, 65537)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_long_reduction(backend: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    contract.check_against_reference(Case(call, score_inputs(*shape)), backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_batch_axes_than_the_kernels_walk(backend: str) -> None:
    batch = (1, 2) * 7
    case = Case(call, score_inputs(2, 3, 2, batch, broadcast=True))
    contract.check_against_reference(case, backend, torch.float64)


# ---- Truth ----


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("n", [1, 5, 130])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_outputs_are_those_of_the_full_matrix(backend: str, n: int, dtype: torch.dtype) -> None:
    query, key, positive, scale, query_bias, key_bias = score_inputs(n, n + 20, 24)(dtype, contract.generator(n))
    truth = truth_of(matrix_of(query, key, float(scale), query_bias, key_bias), positive.numpy())
    with running(backend):
        outputs = call(query, key, positive, scale, query_bias, key_bias)
    tolerance = 1e-12 if dtype == torch.float64 else 4e-6
    for output, true in zip(outputs, truth, strict=True):
        assert contract.relative_error(output, true) <= tolerance


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_a_permutation_of_the_keys_is_a_permutation_of_the_positives(backend: str) -> None:
    query, key = diagonal_inputs(120, 120, 8)(torch.float64, contract.generator(2))
    order = torch.randperm(120, generator=contract.generator(3))
    with running(backend):
        plain = ops.infonce_scores(query, key)
        permuted = ops.infonce_scores(query, key[order], positive=torch.argsort(order))
    torch.testing.assert_close(permuted.positive, plain.positive, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(permuted.row_logsumexp_negatives, plain.row_logsumexp_negatives, rtol=1e-13, atol=0)
    torch.testing.assert_close(permuted.column_logsumexp, plain.column_logsumexp[order], rtol=1e-13, atol=0)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_default_positive_is_the_diagonal(backend: str) -> None:
    query, key = diagonal_inputs(7, 9, 3)(torch.float64, contract.generator(4))
    with running(backend):
        for a, b in zip(
            ops.infonce_scores(query, key), ops.infonce_scores(query, key, positive=torch.arange(7)), strict=True
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("lead", [80.0, 800.0, 1e4])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_leave_one_out_is_exact_below_a_dominating_positive(backend: str, lead: float) -> None:
    """log(exp a - exp b) would lose every digit here; 1e4 nats also leave the range of one shared exponential."""
    n = 120
    noise = torch.randn(n, 6, generator=contract.generator(5), dtype=torch.float64)
    own = math.sqrt(lead) * torch.eye(n, dtype=torch.float64)
    query, key = torch.cat([own, noise], dim=1), torch.cat([own, noise.roll(1, dims=1)], dim=1)
    scores = matrix_of(query, key)
    truth = truth_of(scores, np.arange(n))
    with running(backend):
        outputs = ops.infonce_scores(query, key)
    for output, true in zip(outputs, truth, strict=True):
        assert contract.relative_error(output, true) <= 1e-12
    # Only the spread of the negatives, a few nats, is left in their sum.
    assert float((outputs.row_logsumexp_negatives - truth[2]).abs().max()) < 1e-12
    assert float(outputs.row_logsumexp_negatives.max()) < 40.0


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_of_magnitude_ten_thousand(backend: str, dtype: torch.dtype) -> None:
    generator = contract.generator(6)
    query = 100 * torch.randn(150, 4, generator=generator, dtype=torch.float64).to(dtype)
    key = 50 * torch.randn(200, 4, generator=generator, dtype=torch.float64).to(dtype)
    scores = matrix_of(query, key)
    assert np.abs(scores).max() > 1e4
    assert scores.max(axis=1).max() - scores.max(axis=1).min() > 1e3  # no reference serves every row
    truth = truth_of(scores, np.arange(150))
    with running("reference"):
        in_torch = ops.infonce_scores(query, key)
    with running(backend):
        outputs = ops.infonce_scores(query, key)
    for output, plain, true in zip(outputs, in_torch, truth, strict=True):
        limit = contract.FLOAT64_TOLERANCE
        if dtype == torch.float32:
            limit = 2 * contract.relative_error(plain, true) + 4 * torch.finfo(dtype).eps
        assert contract.relative_error(output, true) <= limit


# exp(S - total) turns the rounding of S itself, 1e4 * 2e-16 in any order of summation, into a relative error.
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_at_magnitude_ten_thousand(backend: str) -> None:
    def inputs(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
        query = 100 * torch.randn(110, 4, generator=generator, dtype=torch.float64)
        return query.to(dtype), 50 * torch.randn(130, 4, generator=generator, dtype=torch.float64).to(dtype)

    contract.check_against_reference(Case(diagonal, inputs, float64_tolerance=1e-10), backend, torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_where_rows_and_columns_lie_far_apart(backend: str) -> None:
    """Biases spread rows and columns over 4000 nats, so that some tiles have no common reference."""

    def inputs(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
        query, key, positive, scale, query_bias, key_bias = score_inputs(130, 140, 3)(dtype, generator)
        return query, key, positive, scale, 2000 * query_bias, 1000 * key_bias

    contract.check_against_reference(Case(call, inputs, float64_tolerance=1e-11), backend, torch.float64)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_gradient_of_a_row_is_its_softmax(backend: str) -> None:
    query, key = diagonal_inputs(4, 6, 3)(torch.float64, contract.generator(7))
    query.requires_grad_()
    with running(backend):
        ops.infonce_scores(query, key).row_logsumexp.sum().backward()
    expected = torch.softmax(query.detach() @ key.T, dim=1) @ key
    torch.testing.assert_close(query.grad, expected, rtol=1e-12, atol=1e-12)


# ---- Masks, NaN and infinity ----


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_one_key_leaves_no_negatives(backend: str) -> None:
    query = torch.randn(3, 1, 2, generator=contract.generator(8), dtype=torch.float64, requires_grad=True)
    key = torch.randn(3, 1, 2, generator=contract.generator(9), dtype=torch.float64)
    with running(backend):
        outputs = ops.infonce_scores(query, key)
        (outputs.row_logsumexp + outputs.row_logsumexp_negatives).sum().backward()
    assert torch.equal(outputs.row_logsumexp_negatives, torch.full((3, 1), -INFINITY, dtype=torch.float64))
    torch.testing.assert_close(outputs.row_logsumexp, outputs.positive, rtol=1e-14, atol=0)
    torch.testing.assert_close(query.grad, key, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_a_masked_key_is_a_key_that_is_not_there(backend: str) -> None:
    query, key, positive, scale, query_bias, key_bias = score_inputs(100, 230, 5)(torch.float64, contract.generator(10))
    keep = torch.rand(230, generator=contract.generator(11)) > 0.3
    keep[positive] = True
    masked = torch.where(keep, key_bias, -INFINITY)
    new_column = torch.cumsum(keep, 0) - 1

    def gradients(*inputs: Tensor) -> tuple[ops.InfoNCEScores, tuple[Tensor, ...]]:
        leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in inputs]
        outputs = call(*leaves)
        total = outputs.row_logsumexp.sum() + outputs.row_logsumexp_negatives.sum()
        finite = torch.isfinite(outputs.column_logsumexp)
        total = total + outputs.column_logsumexp[finite].square().sum()
        return outputs, torch.autograd.grad(total, [leaves[0], leaves[1], leaves[5]])

    with running(backend):
        all_keys, all_gradients = gradients(query, key, positive, scale, query_bias, masked)
        few_keys, few_gradients = gradients(query, key[keep], new_column[positive], scale, query_bias, key_bias[keep])
    for a, b in zip(all_keys[:3], few_keys[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(all_keys[3][keep], few_keys[3], rtol=1e-13, atol=1e-13)
    assert bool((all_keys[3][~keep] == -INFINITY).all())
    torch.testing.assert_close(all_gradients[0], few_gradients[0], rtol=1e-12, atol=1e-12)
    for wide, narrow in zip(all_gradients[1:], few_gradients[1:], strict=True):
        torch.testing.assert_close(wide[keep], narrow, rtol=1e-12, atol=1e-12)
        assert bool((wide[~keep] == 0).all())


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_a_tile_of_masked_keys_leaves_low_rows_alone(backend: str) -> None:
    """The rows lie 3000 nats below 0, the only level that a tile without terms has."""
    query, key = diagonal_inputs(50, 300, 4)(torch.float64, contract.generator(20))
    key_bias = torch.zeros(300, dtype=torch.float64)
    key_bias[96:] = -INFINITY
    query_bias = torch.full((50,), -3000.0, dtype=torch.float64)
    with running(backend):
        outputs = ops.infonce_scores(query, key, query_bias=query_bias, key_bias=key_bias)
    scores = matrix_of(query, key[:96], query_bias=query_bias)
    truth = truth_of(scores, np.arange(50))
    for output, true in zip(outputs, truth, strict=True):
        assert contract.relative_error(output[: true.numel()], true) <= 1e-12


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_sums_of_nothing_are_minus_infinity_with_gradient_zero(backend: str) -> None:
    query, key = (t.requires_grad_() for t in diagonal_inputs(4, 6, 3)(torch.float64, contract.generator(12)))
    query_bias = torch.tensor([0.0, -INFINITY, 1.0, 2.0], dtype=torch.float64)
    key_bias = torch.tensor([0.0, 1.0, 2.0, -INFINITY, 1.0, -INFINITY], dtype=torch.float64)
    with running(backend):
        outputs = ops.infonce_scores(query, key, query_bias=query_bias, key_bias=key_bias)
        gradients = torch.autograd.grad([o.sum() for o in outputs[1:]], [query, key])
    dead_rows = torch.tensor([False, True, False, False])
    assert torch.equal(torch.isneginf(outputs.row_logsumexp), dead_rows)
    assert torch.equal(torch.isneginf(outputs.row_logsumexp_negatives), dead_rows)
    assert torch.equal(torch.isneginf(outputs.positive), torch.tensor([False, True, False, True]))
    assert torch.equal(torch.isneginf(outputs.column_logsumexp), torch.isneginf(key_bias))
    assert not any(bool(torch.isnan(t).any()) for t in (*outputs, *gradients))
    assert bool((gradients[0][1] == 0).all())


@pytest.mark.parametrize("bad", [math.nan, INFINITY, -INFINITY])
@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_undefined_inputs_give_nan_where_they_touch(backend: str, dtype: torch.dtype, bad: float) -> None:
    make = score_inputs(100, 110, 6)

    def broken(argument: int, where: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        inputs = make(dtype, contract.generator(13))
        inputs[argument][where] = bad
        with running(backend):
            outputs = call(*inputs)
        rows = torch.stack([torch.isnan(o) for o in outputs[1:3]])
        return rows, torch.isnan(outputs.column_logsumexp)

    masks = bad == -INFINITY
    rows, columns = broken(0, (40, 2))  # query
    assert torch.equal(rows[0], torch.arange(100) == 40)
    assert torch.equal(rows[1], torch.arange(100) == 40)
    assert bool(columns.all())
    rows, columns = broken(1, (97, 0))  # key
    assert bool(rows[0].all())
    assert torch.equal(columns, torch.arange(110) == 97)
    rows, columns = broken(3, ())  # scale
    assert bool(rows.all())
    assert bool(columns.all())
    rows, columns = broken(4, (3,))  # query_bias
    assert torch.equal(rows[0], torch.arange(100) == (-1 if masks else 3))
    assert bool(columns.all()) != masks
    rows, columns = broken(5, (3,))  # key_bias
    assert bool(rows[0].all()) != masks
    assert torch.equal(columns, torch.arange(110) == (-1 if masks else 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_reaches_the_gradients_it_touches_and_no_others(backend: str) -> None:
    query, key = (t.requires_grad_() for t in diagonal_inputs(100, 110, 6)(torch.float64, contract.generator(14)))
    with torch.no_grad():
        query[5, 1] = math.nan
    with running(backend):
        (gradient,) = torch.autograd.grad(ops.infonce_scores(query, key).row_logsumexp.sum(), query)
    assert torch.equal(torch.isnan(gradient).any(dim=1), torch.arange(100) == 5)


# ---- Errors ----


def test_wrong_shapes_and_types_are_named() -> None:
    query, key = torch.zeros(3, 4), torch.zeros(5, 4)
    error = contract.expect_error
    scores = ops.infonce_scores
    error(ValueError, ("key", "4 features", "(5, 3)"), lambda: scores(query, torch.zeros(5, 3)))
    error(ValueError, ("query", "(..., n, d)", "(4,)"), lambda: scores(torch.zeros(4), key))
    error(ValueError, ("key", "(..., m, d)", "(4,)"), lambda: scores(query, torch.zeros(4)))
    error(ValueError, ("positive", "more queries than keys", "5", "3"), lambda: scores(key, query))
    error(ValueError, ("leading axes", "(2,)", "(3,)"), lambda: scores(torch.zeros(2, 3, 4), torch.zeros(3, 5, 4)))
    error(
        ValueError,
        ("positive", "(..., n)", "3", "(5,)"),
        lambda: scores(query, key, positive=torch.zeros(5, dtype=torch.int64)),
    )
    error(ValueError, ("query_bias", "(..., n)", "3", "(5,)"), lambda: scores(query, key, query_bias=torch.zeros(5)))
    error(ValueError, ("key_bias", "(..., m)", "5", "(3,)"), lambda: scores(query, key, key_bias=torch.zeros(3)))
    error(ValueError, ("key_bias", "(..., m)", "()"), lambda: scores(query, key, key_bias=torch.zeros(())))
    error(TypeError, ("query", "float32 or float64", "float16"), lambda: scores(query.half(), key))
    error(TypeError, ("query", "torch.Tensor", "ndarray"), lambda: scores(query.numpy(), key))
    error(TypeError, ("key", "torch.Tensor", "float"), lambda: scores(query, 1.0))
    error(TypeError, ("key", "float32", "float64"), lambda: scores(query, key.double()))
    error(TypeError, ("positive", "int64", "int32"), lambda: scores(query, key, positive=torch.zeros(3).int()))
    error(TypeError, ("scale", "float32", "float64"), lambda: scores(query, key, scale=torch.ones(()).double()))
    error(TypeError, ("key_bias", "torch.Tensor", "float"), lambda: scores(query, key, key_bias=0.0))


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("bad", [-1, 5])
def test_a_positive_outside_the_columns_is_refused(backend: str, bad: int) -> None:
    positive = torch.tensor([0, bad, 2])
    with running(backend):
        contract.expect_error(
            ValueError,
            ("positive", "0 to 4", str(bad)),
            lambda: ops.infonce_scores(torch.zeros(3, 4), torch.zeros(5, 4), positive=positive),
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_positive_outside_the_columns_is_nan_where_nobody_may_look(backend: str) -> None:
    positive = torch.tensor([0, 9, -3])
    compiled = torch.compile(lambda q, k, p: ops.infonce_scores(q, k, positive=p), fullgraph=True, backend="aot_eager")
    torch.compiler.reset()
    with running(backend):
        outputs = compiled(torch.ones(3, 4), torch.ones(5, 4), positive)
    for output in outputs[:3]:
        assert torch.equal(torch.isnan(output), torch.tensor([False, True, True]))
    torch.testing.assert_close(outputs.column_logsumexp, torch.full((5,), 4 + math.log(3)))


# ---- torch.func, memory ----


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_function_transforms(backend: str) -> None:
    make = score_inputs(4, 5, 3, (6,))
    query, key, positive, scale, query_bias, key_bias = make(torch.float64, contract.generator(15))

    def loss(q: Tensor, k: Tensor, p: Tensor, s: Tensor, bias: Tensor) -> Tensor:
        outputs = ops.infonce_scores(q, k, positive=p, scale=s, query_bias=bias, key_bias=key_bias[0])
        weights = torch.arange(5, dtype=q.dtype)
        return (outputs.row_logsumexp_negatives - outputs.positive).sum() + (weights * outputs.column_logsumexp).sum()

    arguments = (query, key[0], positive, scale, query_bias)
    dims = (0, None, 0, 0, 0)
    with running(backend):
        values = torch.func.vmap(loss, dims)(*arguments)
        per_sample = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 3)), dims)(*arguments)
        for i in range(6):
            own = [t if dim is None else t[i] for t, dim in zip(arguments, dims, strict=True)]
            leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in own]
            value = loss(*leaves)
            torch.testing.assert_close(values[i], value.detach(), rtol=1e-12, atol=1e-12)
            expected = torch.autograd.grad(value, [leaves[0], leaves[1], leaves[3]])
            for a, b in zip(per_sample, expected, strict=True):
                torch.testing.assert_close(a[i], b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("argument", [0, 1, 3, 4, 5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_gradient_alone_equals_the_joint_one(backend: str, argument: int) -> None:
    case = CASES["odd tiles"]
    inputs = case.inputs(torch.float64, contract.generator(16))

    def gradient(wanted: list[int]) -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
        total = sum((output.square()).sum() for output in call(*leaves))
        return torch.autograd.grad(total, [leaves[i] for i in wanted])

    with running(backend):
        alone, joint = gradient([argument])[0], gradient([0, 1, 3, 4, 5])
    assert torch.equal(alone, joint[(0, 1, 3, 4, 5).index(argument)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("output", range(4))
def test_each_output_alone_has_the_reference_gradient(backend: str, output: int) -> None:
    inputs = CASES["odd tiles"].inputs(torch.float64, contract.generator(17))
    case = Case(lambda *tensors: call(*tensors)[output], lambda *_: inputs)

    def gradients() -> tuple[Tensor | None, ...]:
        leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in inputs]
        total = case.call(*leaves).sum()
        return torch.autograd.grad(total, [leaves[i] for i in (0, 1, 3, 4, 5)], allow_unused=True)

    with running("reference"):
        truth = gradients()
    with running(backend):
        ours = gradients()
    for a, b in zip(ours, truth, strict=True):
        assert a is not None
        assert b is not None
        assert contract.relative_error(a, b) <= 1e-12


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["cpu", "cuda_on_cpu"])
def test_the_work_space_is_neither_read_unwritten_nor_left(backend: str, name: str) -> None:
    """It starts as NaN here, and 4 KiB after its end stay as they are."""
    allocate = _compiled._infonce_workspace
    guarded: list[tuple[Tensor, int]] = []

    def poisoned(*arguments: Any) -> Tensor:
        size = allocate(*arguments).numel()
        space = torch.full((size + 4096,), 0xFF, dtype=torch.uint8)
        space[size:] = 0xA5
        guarded.append((space, size))
        return space

    inputs = CASES[name].inputs(torch.float32, contract.generator(18))
    with running(backend):
        expected = contract.value_and_gradients(CASES[name], inputs)
        with mock.patch.object(_compiled, "_infonce_workspace", poisoned):
            got = contract.value_and_gradients(CASES[name], inputs)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert len(guarded) == 2
    for space, size in guarded:
        assert bool((space[size:] == 0xA5).all())


_MEMORY_PROGRAM = """
import resource, sys, torch
from bitlens import ops
torch.set_num_threads(2)
query, key = torch.randn(2, 8192, 8)
query.requires_grad_(), key.requires_grad_()
def step(n):
    outputs = ops.infonce_scores(query[:n], key[:n])
    sum(output.sum() for output in outputs).backward()
with ops.use_backend(sys.argv[1]):
    step(512)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(8192)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("backend", ["cpu", "numba"])
def test_memory_grows_like_the_inputs_not_like_the_matrix(backend: str) -> None:
    """The 8192 x 8192 matrix would be 256 MiB, the inputs are 0.5 MiB."""
    finished = subprocess.run(
        [sys.executable, "-c", _MEMORY_PROGRAM, backend], capture_output=True, text=True, check=True
    )
    assert int(finished.stdout) < 24 * 1024  # KiB


@pytest.mark.parametrize("value_bytes", [4, 8])
@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_work_space_of_the_cuda_kernels_grows_like_the_inputs(batch: int, value_bytes: int) -> None:
    """Forward: 1 KiB a row at most. Backward: a few times the gradients, or the tiles of one filled GPU."""
    size = importlib.import_module("bitlens._native_cuda_on_cpu").infonce_scores_workspace_bytes
    for n in (100, 1000, 8192, 65536, 1 << 20):
        for d in (1, 64, 768):
            assert size(batch, n, n, d, value_bytes, False, False, False) <= 1024 * batch * n
            inputs = batch * n * (d * value_bytes + 32)
            filled = 264 * 128 * (d * value_bytes + 32)
            assert size(batch, n, n, d, value_bytes, True, True, True) <= 2 * max(inputs, filled)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lazily_negated_inputs(backend: str) -> None:
    """A view with torch's negation bit holds the opposite of its memory."""
    generator = contract.generator()
    query = torch.randn(5, 3, generator=generator, dtype=torch.complex128).conj().imag
    key = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    assert query.is_neg()
    with running(backend):
        lazy = ops.infonce_scores(query, key, query_bias=query[:, 0])
        plain = ops.infonce_scores(query.resolve_neg(), key, query_bias=query[:, 0].resolve_neg())
    for a, b in zip(lazy, plain, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_batch_axes_of_nothing(backend: str) -> None:
    with running(backend):
        scores = ops.infonce_scores(torch.zeros((1,) * 13 + (3, 0)), torch.zeros((1,) * 13 + (3, 0)))
        empty = ops.infonce_scores(torch.zeros((0,) + (1,) * 12 + (3, 2)), torch.zeros((0,) + (1,) * 12 + (3, 2)))
    torch.testing.assert_close(scores.row_logsumexp, torch.full((1,) * 13 + (3,), 3.0).log())
    assert empty.positive.shape == (0, *(1,) * 12, 3)
