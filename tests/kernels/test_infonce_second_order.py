"""Second derivatives and forward mode of the contrastive scores, which no backend keeps the matrix for."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from bitlens import ops
from bitlens.kernels.infonce_scores import directional

sys.path.insert(0, str(Path(__file__).parent))
import contract
from contract import Case, running
from test_infonce_scores import BACKENDS, EVERY_BACKEND, call, diagonal_inputs, score_inputs


def double_leaves(case: Case, seed: int = 0) -> list[Tensor]:
    inputs = case.inputs(torch.float64, contract.generator(seed))
    return [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]


def finite_sum(outputs: tuple[Tensor, ...]) -> Tensor:
    """A sum in which every output counts differently and not linearly."""
    terms = [(i + 1) * torch.where(torch.isfinite(t), t, 0.0).square().sum() for i, t in enumerate(outputs)]
    return torch.stack(terms).sum()


def masked(query: Tensor, key: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    """Row 1 and key 3 take no part; the positive of row 2 is masked and still has its own derivative."""
    query_bias = torch.tensor([0.3, -math.inf, 1.0], dtype=torch.float64)
    key_bias = torch.tensor([0.1, 0.0, -0.2, -math.inf], dtype=torch.float64)
    outputs = ops.infonce_scores(
        query, key, positive=torch.tensor([2, 0, 3]), scale=scale, query_bias=query_bias, key_bias=key_bias
    )
    return tuple(torch.where(torch.isfinite(output), output, 0.0) for output in outputs)


def masked_inputs(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
    query, key, _, scale, _, _ = score_inputs(3, 4, 2)(dtype, generator)
    return query, key, scale


SMALL = Case(call, score_inputs(3, 4, 2))
BATCHED = Case(call, score_inputs(2, 2, 1, (2, 2), broadcast=True))
MASKED = Case(masked, masked_inputs)


@pytest.mark.parametrize("case", [SMALL, BATCHED, MASKED], ids=["all arguments", "batch axes", "masks"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradgradcheck(backend: str, case: Case) -> None:
    contract.check_gradcheck(case, backend, second=True)


@pytest.mark.parametrize("case", [SMALL, MASKED], ids=["all arguments", "masks"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_mode(backend: str, case: Case) -> None:
    inputs = double_leaves(case)
    with running(backend):
        assert torch.autograd.gradcheck(case.call, inputs, check_forward_ad=True, check_backward_ad=False)
        assert torch.autograd.gradgradcheck(
            case.call, inputs, check_fwd_over_rev=True, check_rev_over_rev=False, check_undefined_grad=False
        )


@pytest.mark.parametrize("block", [1, 60, 200, 1 << 20])
def test_blocks_of_any_size_agree_with_the_reference(block: int) -> None:
    """Part of a row, some rows, some items, and all at once."""
    case = Case(call, score_inputs(9, 11, 6, (2, 3), broadcast=True))

    def second() -> tuple[Tensor, ...]:
        leaves = double_leaves(case)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        first = torch.autograd.grad(finite_sum(call(*leaves)), wanted, create_graph=True)
        pull = [torch.randn(t.shape, generator=contract.generator(7), dtype=t.dtype) for t in first]
        return torch.autograd.grad(first, wanted, pull)

    with running("reference"):
        truth = second()
    with running("cpu"), mock.patch.object(directional, "_BLOCK_SCORES", block):
        ours = second()
    for a, b in zip(ours, truth, strict=True):
        # Second derivatives are sums of terms some hundred times their size here.
        assert contract.relative_error(a, b) <= 1e-11


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_penalty(backend: str, dtype: torch.dtype) -> None:
    """InfoNCE plus the squared norm of its gradient in the queries, as a critic is regularised."""
    query, key = diagonal_inputs(20, 30, 5)(dtype, contract.generator(3))

    def gradients(query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        query, key = query.clone().requires_grad_(), key.clone().requires_grad_()
        outputs = ops.infonce_scores(query, key)
        loss = (outputs.row_logsumexp - outputs.positive).mean()
        (slope,) = torch.autograd.grad(loss, query, create_graph=True)
        return torch.autograd.grad(loss + slope.square().sum(), (query, key))

    with running("reference"):
        truth = gradients(query.double(), key.double())
    with running(backend):
        ours = gradients(query, key)
    for a, b in zip(ours, truth, strict=True):
        assert contract.relative_error(a, b) <= (1e-14 if dtype == torch.float64 else 4e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_function_transforms_of_second_order(backend: str) -> None:
    query, key = diagonal_inputs(4, 5, 2)(torch.float64, contract.generator(5))
    change = torch.randn(query.shape, generator=contract.generator(6), dtype=torch.float64)

    def loss(query: Tensor, key: Tensor) -> Tensor:
        return finite_sum(ops.infonce_scores(query, key))

    def slope(query: Tensor) -> Tensor:
        return torch.func.jvp(lambda q: loss(q, key), (query,), (change,))[1]

    def second() -> list[Tensor]:
        many = torch.stack([query, 2 * query])
        return [
            torch.func.hessian(loss)(query, key),
            torch.func.jacrev(torch.func.jacrev(loss, argnums=1))(query, key),
            torch.func.vmap(torch.func.hessian(loss), (0, None))(many, key),
            torch.func.grad(slope)(query),
        ]

    with running("reference"):
        truth = second()
    with running(backend):
        ours = second()
    for a, b in zip(ours, truth, strict=True):
        assert contract.relative_error(a, b) <= 1e-12


@pytest.mark.parametrize("second", [False, True])
def test_the_operator_keeps_the_rules_of_torch(second: bool) -> None:
    """What torch.compile builds on: the schema, and shapes without values."""
    inputs = score_inputs(4, 5, 3, (2,))(torch.float64, contract.generator(9))
    outputs = ops.infonce_scores(inputs[0], inputs[1])
    changes = (torch.ones_like(inputs[0]), None, torch.ones(2, dtype=torch.float64), None, None)
    operator = torch.ops.bitlens.infonce_scores_directional.default
    arguments = (*inputs, *outputs[1:], *outputs, *changes, second, "cpu")
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_reaches_the_second_derivatives_it_touches_and_no_others(backend: str) -> None:
    query, key = (t.requires_grad_() for t in diagonal_inputs(9, 10, 4)(torch.float64, contract.generator(14)))
    with torch.no_grad():
        query[5, 1] = math.nan
    with running(backend):
        (first,) = torch.autograd.grad(ops.infonce_scores(query, key).row_logsumexp.sum(), query, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), query)
    assert torch.equal(torch.isnan(second).any(dim=1), torch.arange(9) == 5)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_nothing_in_nothing_out(backend: str) -> None:
    for shape in ((0, 4, 3), (0, 1, 0)):
        query, key = (t.requires_grad_() for t in diagonal_inputs(*shape)(torch.float64, contract.generator()))
        with running(backend):
            outputs = ops.infonce_scores(query, key)
            (first,) = torch.autograd.grad(outputs.row_logsumexp.sum(), key, create_graph=True)
            (second,) = torch.autograd.grad(first.sum() + key.square().sum(), key)
        assert torch.equal(second, 2 * key)


@pytest.mark.parametrize("backend", BACKENDS)
def test_third_order_says_who_offers_it(backend: str) -> None:
    query, key = (t.requires_grad_() for t in diagonal_inputs(3, 4, 2)(torch.float64, contract.generator()))
    with running(backend):
        (first,) = torch.autograd.grad(ops.infonce_scores(query, key).row_logsumexp.sum(), query, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), query, create_graph=True)
        contract.expect_error(RuntimeError, ("third derivatives", "reference"), lambda: second.sum().backward())


_MEMORY_PROGRAM = """
import resource, sys, torch
from bitlens import ops
torch.set_num_threads(2)
query, key = torch.randn(2, 8192, 8)
query.requires_grad_(), key.requires_grad_()
def step(n):
    outputs = ops.infonce_scores(query[:n], key[:n])
    slopes = torch.autograd.grad(sum(output.sum() for output in outputs), (query, key), create_graph=True)
    sum(slope.square().sum() for slope in slopes).backward()
with ops.use_backend("cpu"):
    step(512)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(8192)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_grows_like_the_inputs_not_like_the_matrix() -> None:
    """One 8192 x 8192 matrix would be 256 MiB, and eager torch keeps several; a block of 2^20 scores is 4 MiB."""
    finished = subprocess.run([sys.executable, "-c", _MEMORY_PROGRAM], capture_output=True, text=True, check=True)
    assert int(finished.stdout) < 96 * 1024  # KiB
