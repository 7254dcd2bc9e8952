"""Scores of a joint critic: the kernel contract, and truth by the full matrix in extended precision."""

from __future__ import annotations

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

BACKENDS = ("cpu", "numba")
EVERY_BACKEND = (*BACKENDS, "reference")
INFINITY = math.inf


def one(query: Tensor, key: Tensor, positive: Tensor, output: Tensor, output_bias: Tensor) -> ops.InfoNCEScores:
    return ops.joint_critic_scores(query, key, output, output_bias=output_bias, positive=positive)


def two(
    query: Tensor, key: Tensor, positive: Tensor, output: Tensor, output_bias: Tensor, weight: Tensor, bias: Tensor
) -> ops.InfoNCEScores:
    return ops.joint_critic_scores(
        query, key, output, hidden_weight=weight, hidden_bias=bias, output_bias=output_bias, positive=positive
    )


def inputs_of(n: int, m: int, h: int, h2: int = 0, batch: tuple[int, ...] = (), broadcast: bool = False):
    """Scores of a few nats around 0; with `broadcast` every argument carries another part of the batch shape."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        lead, tail = (batch[:1] + (1,) * (len(batch) - 1), batch[1:]) if broadcast else (batch, batch)
        last = h2 or h
        made = (
            normal(*lead, n, h),
            normal(*tail, m, h),
            torch.randint(0, m, (*tail, n), generator=generator),
            (last or 1) ** -0.5 * normal(*tail, last),
            normal(*lead),
        )
        return (*made, (h or 1) ** -0.5 * normal(*lead, h2, h), normal(*tail, h2)) if h2 else made

    return make


def diagonal(query: Tensor, key: Tensor, output: Tensor) -> ops.InfoNCEScores:
    return ops.joint_critic_scores(query, key, output)


def diagonal_inputs(n: int, m: int, h: int):
    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
        query, key, _, output, _ = inputs_of(n, m, h)(dtype, generator)
        return query, key, output

    return make


CASES = {
    "small": Case(one, inputs_of(5, 7, 3)),
    "one element": Case(one, inputs_of(1, 1, 1)),
    "batch": Case(one, inputs_of(9, 11, 6, batch=(2, 3))),
    "broadcast": Case(one, inputs_of(9, 11, 6, batch=(2, 3), broadcast=True)),
    "whole tiles": Case(one, inputs_of(96, 192, 16)),
    "odd tiles": Case(one, inputs_of(101, 97, 33)),
    "several phases": Case(one, inputs_of(289, 105, 17)),
    "tall": Case(one, inputs_of(200, 3, 5)),
    "hidden units in several blocks": Case(one, inputs_of(20, 30, 301)),
    "diagonal": Case(diagonal, diagonal_inputs(130, 130, 12)),
    "diagonal and extra negatives": Case(diagonal, diagonal_inputs(50, 150, 12)),
    "more slabs than 32": Case(diagonal, diagonal_inputs(7, 3200, 3)),
    "two layers, small": Case(two, inputs_of(5, 7, 3, 4)),
    "two layers, one element": Case(two, inputs_of(1, 1, 1, 1)),
    "two layers, broadcast": Case(two, inputs_of(9, 11, 6, 5, batch=(2, 3), broadcast=True)),
    "two layers, odd tiles": Case(two, inputs_of(101, 97, 33, 21)),
    "two layers, whole tiles": Case(two, inputs_of(96, 96, 32, 48)),
    "two layers, several phases": Case(two, inputs_of(205, 130, 7, 9)),
    "two layers, hidden units in several blocks": Case(two, inputs_of(9, 13, 150, 140)),
}


def matrix_of(inputs: tuple[Tensor, ...]) -> np.ndarray:
    """The full score matrix of one batch item in extended precision, pair by pair."""
    query, key, output, output_bias, *second = (
        t.detach().numpy().astype(np.longdouble) for t in (*inputs[:2], *inputs[3:])
    )
    units = np.maximum(query[:, None, :] + key[None, :, :], 0)
    if second:
        weight, bias = second
        units = np.maximum(np.einsum("ijc,kc->ijk", units, weight) + bias, 0)
    return units @ output + output_bias


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


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_gradcheck(backend: str) -> None:
    contract.check_gradcheck(Case(one, inputs_of(3, 4, 2)), backend, second=False)
    contract.check_gradcheck(Case(two, inputs_of(2, 3, 2, 3, (2, 2), broadcast=True)), backend, second=False)


def test_reference_gradgradcheck() -> None:
    contract.check_gradcheck(Case(two, inputs_of(3, 4, 2, 2)), "reference", second=True)


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("name", ["broadcast", "two layers, odd tiles"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous(backend: str, name: str, dtype: torch.dtype) -> None:
    contract.check_non_contiguous(CASES[name], backend, dtype)


@pytest.mark.parametrize("name", ["several phases", "more slabs than 32", "two layers, several phases"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_and_two_threads_give_the_same_bits(backend: str, name: str) -> None:
    contract.check_threads_agree(CASES[name], backend)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("name", ["diagonal", "two layers, broadcast"])
def test_compiles_without_graph_break(backend: str, name: str) -> None:
    contract.check_compiles(CASES[name], backend)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 4e-6), (torch.float64, 1e-14)])
def test_instruction_sets_agree(dtype: torch.dtype, tolerance: float) -> None:
    for name in ("several phases", "two layers, odd tiles"):
        contract.check_instruction_sets_agree(CASES[name], dtype, tolerance)


@pytest.mark.parametrize("instructions", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("name", ["odd tiles", "two layers, odd tiles", "two layers, several phases"])
def test_gradients_on_every_instruction_set(name: str, instructions: str) -> None:
    best = _compiled.instruction_set()
    try:
        _compiled._set_instruction_set(instructions)
    except ValueError:
        pytest.skip(f"this processor lacks {instructions}")
    try:
        for dtype in contract.DTYPES:
            contract.check_against_reference(CASES[name], "cpu", dtype)
    finally:
        _compiled._set_instruction_set(best)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("batch", [(0,), (2, 0)])
@pytest.mark.parametrize("second", [0, 3])
def test_empty_batch(backend: str, batch: tuple[int, ...], second: int) -> None:
    inputs = inputs_of(4, 5, 3, second, batch)(torch.float32, contract.generator())
    leaves = [t.requires_grad_(t.is_floating_point()) for t in inputs]
    with running(backend):
        outputs = (two if second else one)(*leaves)
        sum(output.sum() for output in outputs).backward()
    assert [output.shape for output in outputs] == [(*batch, 4)] * 3 + [(*batch, 5)]
    for leaf in leaves:
        assert not leaf.requires_grad or (leaf.grad is not None and leaf.grad.shape == leaf.shape)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_no_queries_and_no_hidden_units(backend: str) -> None:
    with running(backend):
        empty = diagonal(torch.zeros(0, 3), torch.zeros(5, 3), torch.ones(3))
        flat = diagonal(torch.zeros(2, 0), torch.zeros(5, 0), torch.ones(0))
        output = torch.ones(4, requires_grad=True)
        second = ops.joint_critic_scores(
            torch.zeros(0, 3), torch.zeros(5, 3), output, hidden_weight=torch.ones(4, 3, requires_grad=True)
        )
        (gradient,) = torch.autograd.grad(second.positive.sum(), output)
    assert [tuple(part.shape) for part in empty] == [(0,), (0,), (0,), (5,)]
    assert torch.equal(empty.column_logsumexp, torch.full((5,), -INFINITY))
    torch.testing.assert_close(flat.row_logsumexp, torch.full((2,), math.log(5)))
    torch.testing.assert_close(flat.row_logsumexp_negatives, torch.full((2,), math.log(4)))
    torch.testing.assert_close(flat.column_logsumexp, torch.full((5,), math.log(2)))
    assert torch.equal(gradient, torch.zeros(4))


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("shape", [(2, 65537, 2, 2), (65537, 2, 2, 0), (2, 3, 65537, 0)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_long_reduction(backend: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    contract.check_against_reference(Case(two if shape[3] else one, inputs_of(*shape)), backend, dtype)


# ---- Truth ----


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("second", [0, 20])
@pytest.mark.parametrize("n", [1, 5, 130])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_outputs_are_those_of_the_full_matrix(backend: str, n: int, second: int, dtype: torch.dtype) -> None:
    inputs = inputs_of(n, n + 20, 24, second)(dtype, contract.generator(n))
    truth = truth_of(matrix_of(inputs), inputs[2].numpy())
    with running(backend):
        outputs = (two if second else one)(*inputs)
    tolerance = 1e-12 if dtype == torch.float64 else 4e-6
    for output, true in zip(outputs, truth, strict=True):
        assert contract.relative_error(output, true) <= tolerance


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_scores_are_those_of_a_network_on_concatenated_inputs(backend: str) -> None:
    """Linear, ReLU, Linear, ReLU, Linear on [x_i, z_j], split into the two halves of its first layer."""
    generator = contract.generator(3)
    x, z = (torch.randn(6, d, generator=generator, dtype=torch.float64) for d in (4, 3))
    layers = [torch.nn.Linear(a, b, dtype=torch.float64) for a, b in ((7, 10), (10, 8), (8, 1))]
    network = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    pairs = torch.cat([x[:, None].expand(6, 6, 4), z[None].expand(6, 6, 3)], dim=-1)
    scores = network(pairs).squeeze(-1)
    with running(backend):
        outputs = ops.joint_critic_scores(
            x @ layers[0].weight[:, :4].T + layers[0].bias,
            z @ layers[0].weight[:, 4:].T,
            layers[2].weight[0],
            hidden_weight=layers[1].weight,
            hidden_bias=layers[1].bias,
            output_bias=layers[2].bias[0],
        )

        def gradients(positive: Tensor, row: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad((positive - row).mean(), list(network.parameters()))

        ours = gradients(outputs.positive, outputs.row_logsumexp)
    torch.testing.assert_close(outputs.positive, scores.diagonal(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(outputs.column_logsumexp, torch.logsumexp(scores, 0), rtol=1e-13, atol=1e-13)
    for a, b in zip(ours, gradients(scores.diagonal(), torch.logsumexp(scores, 1)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("lead", [80.0, 800.0, 1e4])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_leave_one_out_is_exact_below_a_dominating_positive(backend: str, lead: float) -> None:
    """relu(e_i - e_j - 1 + 1e-3) separates pairs; log(exp a - exp b) would lose every digit here."""
    n = 120
    generator = contract.generator(5)
    noise = torch.randn(2, n, 6, generator=generator, dtype=torch.float64)
    own = lead * torch.eye(n, dtype=torch.float64)
    # Units of the first kind are 0 but at i = j, where they are lead.
    query = torch.cat([own - lead, noise[0]], dim=1)
    key = torch.cat([own, noise[1]], dim=1)
    positive, output = torch.arange(n), torch.ones(n + 6, dtype=torch.float64)
    inputs = (query, key, positive, output, torch.zeros((), dtype=torch.float64))
    truth = truth_of(matrix_of(inputs), positive.numpy())
    assert float((truth[0] - truth[2]).min()) > lead - 40
    with running(backend):
        outputs = ops.joint_critic_scores(query, key, output)
    for result, true in zip(outputs, truth, strict=True):
        assert contract.relative_error(result, true) <= 1e-12
    assert float((outputs.row_logsumexp_negatives - truth[2]).abs().max()) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("second", [0, 9])
def test_gradients_where_rows_and_columns_lie_far_apart(backend: str, second: int) -> None:
    """One large weight spreads the scores over thousands of nats, so that some tiles have no common reference."""

    def inputs(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
        query, key, positive, output, *rest = inputs_of(130, 140, 8, second)(dtype, generator)
        return query, key, positive, 2000 * output, *rest

    # exp(S - total) turns the rounding of S, 5e3 * 2e-16, into a relative error, and w multiplies the gradients.
    case = Case(two if second else one, inputs, float64_tolerance=1e-9)
    contract.check_against_reference(case, backend, torch.float64)


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_halves_that_cancel_keep_the_gradient_of_the_output_weight(backend: str, dtype: torch.dtype) -> None:
    """Both halves lie near +1000 and -1000; their sums are of order 1. Exact powers of two make the offset lossless."""

    def inputs(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
        query, key, *rest = inputs_of(100, 110, 5)(dtype, generator)
        offset = torch.tensor([1024.0, -1024.0, 512.0, 0.0, 2048.0], dtype=dtype)
        grid = 2.0**-10
        return (query / grid).round() * grid + offset, (key / grid).round() * grid - offset, *rest

    contract.check_against_reference(Case(one, inputs), backend, dtype)


@pytest.mark.parametrize("output", range(4))
@pytest.mark.parametrize("name", ["odd tiles", "two layers, odd tiles"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_output_alone_has_the_reference_gradient(backend: str, name: str, output: int) -> None:
    case = CASES[name]
    inputs = case.inputs(torch.float64, contract.generator(17))

    def gradients() -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in inputs]
        return torch.autograd.grad(case.call(*leaves)[output].sum(), [t for t in leaves if t.requires_grad])

    with running("reference"):
        truth = gradients()
    with running(backend):
        ours = gradients()
    for a, b in zip(ours, truth, strict=True):
        assert contract.relative_error(a, b) <= 1e-12


@pytest.mark.parametrize("name", ["odd tiles", "two layers, odd tiles"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_gradient_alone_equals_the_joint_one(backend: str, name: str) -> None:
    case = CASES[name]
    inputs = case.inputs(torch.float64, contract.generator(16))
    floating = [i for i, t in enumerate(inputs) if t.is_floating_point()]

    def gradient(wanted: list[int]) -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
        total = sum(output.square().sum() for output in case.call(*leaves))
        return torch.autograd.grad(total, [leaves[i] for i in wanted])

    with running(backend):
        joint = gradient(floating)
        for position, argument in enumerate(floating):
            assert torch.equal(gradient([argument])[0], joint[position])


# ---- NaN and infinity ----


@pytest.mark.parametrize("bad", [math.nan, INFINITY, -INFINITY])
@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("second", [0, 5])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_undefined_inputs_give_nan_where_they_touch(backend: str, second: int, dtype: torch.dtype, bad: float) -> None:
    def broken(argument: int, where: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        inputs = inputs_of(100, 110, 6, second)(dtype, contract.generator(13))
        inputs[argument][where] = bad
        with running(backend):
            outputs = (two if second else one)(*inputs)
        return torch.stack([torch.isnan(o) for o in outputs[1:3]]), torch.isnan(outputs.column_logsumexp)

    rows, columns = broken(0, (40, 2))
    assert torch.equal(rows, (torch.arange(100) == 40).expand(2, 100))
    assert bool(columns.all())
    rows, columns = broken(1, (97, 0))
    assert bool(rows[0].all())
    assert torch.equal(columns, torch.arange(110) == 97)
    weights = [(3, (1,))] + ([(5, (2, 3)), (6, (4,))] if second else [])
    for argument, where in weights:
        rows, columns = broken(argument, where)
        assert bool(rows.all())
        assert bool(columns.all())


@pytest.mark.parametrize("second", [0, 5])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_nan_reaches_the_gradients_it_touches_and_no_others(backend: str, second: int) -> None:
    query, *others = inputs_of(100, 110, 6, second)(torch.float64, contract.generator(14))
    query[5, 1] = math.nan
    query.requires_grad_()
    with running(backend):
        row = (two if second else one)(query, *others).row_logsumexp
        (gradient,) = torch.autograd.grad(row.sum(), query)
    assert torch.equal(torch.isnan(gradient).any(dim=1), torch.arange(100) == 5)
    assert math.isnan(gradient[5, 1])


# ---- Errors ----


def test_wrong_shapes_and_types_are_named() -> None:
    query, key, output = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(4)
    error, scores = contract.expect_error, ops.joint_critic_scores
    error(ValueError, ("query_hidden", "(..., n, h)", "(4,)"), lambda: scores(torch.zeros(4), key, output))
    error(ValueError, ("key_hidden", "4", "(5, 3)"), lambda: scores(query, torch.zeros(5, 3), output))
    error(ValueError, ("key_hidden", "(..., m, h)", "(4,)"), lambda: scores(query, torch.zeros(4), output))
    error(ValueError, ("output_weight", "(..., h)", "4", "(5,)"), lambda: scores(query, key, torch.zeros(5)))
    error(ValueError, ("positive", "more queries than keys", "5", "3"), lambda: scores(key, query, output))
    error(
        ValueError,
        ("hidden_weight", "(..., h2, h)", "4", "(6, 5)"),
        lambda: scores(query, key, torch.zeros(6), hidden_weight=torch.zeros(6, 5)),
    )
    error(
        ValueError,
        ("hidden_weight", "at least one unit", "(0, 4)"),
        lambda: scores(query, key, torch.zeros(0), hidden_weight=torch.zeros(0, 4)),
    )
    error(
        ValueError,
        ("output_weight", "(..., h2)", "6", "(4,)"),
        lambda: scores(query, key, output, hidden_weight=torch.zeros(6, 4)),
    )
    error(
        ValueError,
        ("hidden_bias", "(..., h2)", "6", "(4,)"),
        lambda: scores(query, key, torch.zeros(6), hidden_weight=torch.zeros(6, 4), hidden_bias=torch.zeros(4)),
    )
    error(
        ValueError,
        ("hidden_bias", "hidden_weight", "None"),
        lambda: scores(query, key, output, hidden_bias=torch.zeros(4)),
    )
    error(
        ValueError,
        ("positive", "(..., n)", "3", "(5,)"),
        lambda: scores(query, key, output, positive=torch.zeros(5, dtype=torch.int64)),
    )
    error(
        ValueError,
        ("leading axes", "(2,)", "(3,)"),
        lambda: scores(torch.zeros(2, 3, 4), torch.zeros(3, 5, 4), output),
    )
    error(ValueError, ("positive", "0 to 4", "9"), lambda: scores(query, key, output, positive=torch.tensor([0, 9, 1])))
    error(TypeError, ("query_hidden", "float32 or float64", "float16"), lambda: scores(query.half(), key, output))
    error(TypeError, ("query_hidden", "torch.Tensor", "ndarray"), lambda: scores(query.numpy(), key, output))
    error(TypeError, ("key_hidden", "float32", "float64"), lambda: scores(query, key.double(), output))
    error(TypeError, ("output_weight", "torch.Tensor", "float"), lambda: scores(query, key, 1.0))
    error(TypeError, ("positive", "int64", "int32"), lambda: scores(query, key, output, positive=torch.zeros(3).int()))
    error(TypeError, ("output_bias", "torch.Tensor", "str"), lambda: scores(query, key, output, output_bias="0"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_positive_outside_the_columns_is_nan_where_nobody_may_look(backend: str) -> None:
    positive = torch.tensor([0, 9, -3])
    compiled = torch.compile(
        lambda q, k, w, p: ops.joint_critic_scores(q, k, w, positive=p), fullgraph=True, backend="aot_eager"
    )
    torch.compiler.reset()
    with running(backend):
        outputs = compiled(torch.ones(3, 4), torch.ones(5, 4), torch.ones(4), positive)
    for output in outputs[:3]:
        assert torch.equal(torch.isnan(output), torch.tensor([False, True, True]))
    torch.testing.assert_close(outputs.column_logsumexp, torch.full((5,), 8 + math.log(3)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_offered_says_so(backend: str) -> None:
    query, key, output = (t.requires_grad_() for t in diagonal_inputs(3, 4, 2)(torch.float64, contract.generator()))
    with running(backend):
        row = diagonal(query, key, output).row_logsumexp
        (gradient,) = torch.autograd.grad(row.sum(), query, create_graph=True)
        contract.expect_error(RuntimeError, ("second derivatives", "reference"), lambda: gradient.sum().backward())
        x, others = query.detach(), (key.detach(), output.detach())
        contract.expect_error(
            RuntimeError,
            ("forward-mode", "reference"),
            lambda: torch.func.jvp(lambda q: diagonal(q, *others).positive, (x,), (x,)),
        )


# ---- torch.func, memory ----


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_function_transforms(backend: str) -> None:
    query, key, positive, output, output_bias, weight, bias = inputs_of(4, 5, 3, 2, (6,))(
        torch.float64, contract.generator(15)
    )

    def loss(q: Tensor, k: Tensor, p: Tensor, w: Tensor, v: Tensor, d: Tensor) -> Tensor:
        outputs = two(q, k, p, w, output_bias[0], v, d)
        weights = torch.arange(5, dtype=q.dtype)
        return (outputs.row_logsumexp_negatives - outputs.positive).sum() + (weights * outputs.column_logsumexp).sum()

    arguments = (query, key[0], positive, output, weight[0], bias)
    dims = (0, None, 0, 0, None, 0)
    wanted = (0, 1, 3, 4, 5)
    with running(backend):
        values = torch.func.vmap(loss, dims)(*arguments)
        per_sample = torch.func.vmap(torch.func.grad(loss, argnums=wanted), dims)(*arguments)
        for i in range(6):
            own = [t if dim is None else t[i] for t, dim in zip(arguments, dims, strict=True)]
            leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in own]
            value = loss(*leaves)
            torch.testing.assert_close(values[i], value.detach(), rtol=1e-12, atol=1e-12)
            expected = torch.autograd.grad(value, [leaves[argument] for argument in wanted])
            for a, b in zip(per_sample, expected, strict=True):
                torch.testing.assert_close(a[i], b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_work_space_is_neither_read_unwritten_nor_left(name: str) -> None:
    """It starts as NaN here, and 4 KiB after its end stay as they are."""
    allocate = _compiled._joint_critic_workspace
    guarded: list[tuple[Tensor, int]] = []

    def poisoned(*arguments: Any) -> Tensor:
        size = allocate(*arguments).numel()
        space = torch.full((size + 4096,), 0xFF, dtype=torch.uint8)
        space[size:] = 0xA5
        guarded.append((space, size))
        return space

    inputs = CASES[name].inputs(torch.float32, contract.generator(18))
    with running("cpu"):
        expected = contract.value_and_gradients(CASES[name], inputs)
        with mock.patch.object(_compiled, "_joint_critic_workspace", poisoned):
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
query, key = torch.randn(2, 4096, 16)
output = torch.randn(16, requires_grad=True)
query.requires_grad_(), key.requires_grad_()
def step(n):
    outputs = ops.joint_critic_scores(query[:n], key[:n], output)
    sum(output.sum() for output in outputs).backward()
with ops.use_backend(sys.argv[1]):
    step(512)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(4096)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_grows_like_the_inputs_not_like_the_matrix(backend: str) -> None:
    """The 4096 x 4096 matrix would be 64 MiB, its hidden units 1 GiB; the inputs are 0.5 MiB."""
    finished = subprocess.run(
        [sys.executable, "-c", _MEMORY_PROGRAM, backend], capture_output=True, text=True, check=True
    )
    assert int(finished.stdout) < 24 * 1024  # KiB
