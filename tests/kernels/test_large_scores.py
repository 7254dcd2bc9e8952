"""Gradients in single precision where scores are so large that one rounding of a score is worth a part of a nat."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitlens import ops

sys.path.insert(0, str(Path(__file__).parent))
import contract
from contract import Case, running

BACKENDS = ("cpu", "numba")
INFONCE_BACKENDS = (*BACKENDS, "cuda_on_cpu")


def normal(*shape: int) -> Callable[[torch.dtype, torch.Generator], Tensor]:
    return lambda dtype, generator: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def infonce(query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    return ops.infonce_scores(query, key, scale=1e4)


def softplus(query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    return ops.pairwise_map_sums(query, key, map="softplus", scale=1e4)[:2]


def clipped(query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    return ops.pairwise_map_sums(query, key, map="clipped_exp", limit=2.0, scale=1e4)[:2]


def one_layer(query: Tensor, key: Tensor, output: Tensor) -> tuple[Tensor, ...]:
    return ops.joint_critic_scores(query, key, (3e4 / output.shape[0] ** 0.5) * output)


def two_layers(query: Tensor, key: Tensor, output: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    hidden = weight / weight.shape[1] ** 0.5
    return ops.joint_critic_scores(query, key, (3e4 / output.shape[0] ** 0.5) * output, hidden_weight=hidden)


def case_of(call: Callable[..., tuple[Tensor, ...]], *shapes: tuple[int, ...]) -> Case:
    return Case(call, lambda dtype, generator: tuple(normal(*shape)(dtype, generator) for shape in shapes))


CASES = {
    "infonce_scores": case_of(infonce, (9, 4), (12, 4)),
    "infonce_scores, several tiles": case_of(infonce, (140, 5), (150, 5)),
    "softplus": case_of(softplus, (60, 4), (70, 4)),
    "clipped_exp": case_of(clipped, (60, 4), (70, 4)),
    # 300 units are more than one partial sum of a score holds.
    "joint_critic_scores": case_of(one_layer, (9, 300), (12, 300), (300,)),
    "joint_critic_scores, two layers": case_of(two_layers, (9, 150), (12, 150), (140,), (140, 150)),
}


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize(
    ("backend", "name"),
    [(backend, name) for name in CASES for backend in (INFONCE_BACKENDS if name.startswith("infonce") else BACKENDS)],
)
def test_scores_of_ten_thousand_agree_with_the_reference(backend: str, name: str, dtype: torch.dtype) -> None:
    contract.check_against_reference(CASES[name], backend, dtype)


@pytest.mark.parametrize("scale", [1e3, 1e4, 1e6, 1e30])
@pytest.mark.parametrize("output", ["row_logsumexp", "row_logsumexp_negatives", "column_logsumexp"])
@pytest.mark.parametrize("backend", INFONCE_BACKENDS)
def test_gradients_of_log_sum_exps_at_any_scale(backend: str, output: str, scale: float) -> None:
    """One key takes all of a row, so that the gradient in the query is scale times that key."""
    inputs = (normal(9, 4)(torch.float32, contract.generator()), normal(12, 4)(torch.float32, contract.generator(1)))

    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        return torch.autograd.grad(getattr(ops.infonce_scores(*leaves, scale=scale), output).sum(), leaves)

    with running("reference"):
        truth = gradients(*(tensor.double() for tensor in inputs))
        plain = gradients(*inputs)
    with running(backend):
        ours = gradients(*inputs)
    for gradient, in_torch, true in zip(ours, plain, truth, strict=True):
        limit = (
            2 * contract.relative_error(in_torch.double() / scale, true / scale) + 4 * torch.finfo(torch.float32).eps
        )
        assert contract.relative_error(gradient.double() / scale, true / scale) <= limit


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_a_joint_critic_are_relative_to_their_size(backend: str, seed: int) -> None:
    make = CASES["joint_critic_scores"].inputs(torch.float32, contract.generator(seed))

    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        outputs = one_layer(*leaves)
        return torch.autograd.grad(outputs[1].sum() + outputs[3].sum(), leaves)

    with running("reference"):
        truth = gradients(*(tensor.double() for tensor in make))
    with running(backend):
        ours = gradients(*make)
    for gradient, true in zip(ours, truth, strict=True):
        assert float((gradient - true).norm() / true.norm()) < 1e-6
