"""Kernels under `torch.autocast`, which would run plain matrix products in half precision."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitlens import ops

sys.path.insert(0, str(Path(__file__).parent))
from contract import as_tuple, generator

BACKENDS = ("cpu", "numba", "reference")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def softplus(query: Tensor, key: Tensor) -> ops.PairwiseMapSums:
    return ops.pairwise_map_sums(query, key, map="softplus")


def joint(query: Tensor, key: Tensor) -> ops.InfoNCEScores:
    return ops.joint_critic_scores(query, key, normal(8, seed=2), hidden_weight=normal(8, 8, seed=3))


KERNELS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, ...]]] = {
    "infonce_scores": ops.infonce_scores,
    "joint_critic_scores": joint,
    "pairwise_map_sums": softplus,
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients_are_those_without_autocast(backend: str, name: str) -> None:
    results = []
    for enabled in (False, True):
        query, key = (normal(n, 8, seed=n).requires_grad_() for n in (20, 30))
        with ops.use_backend(backend), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs = as_tuple(KERNELS[name](query, key))
        with ops.use_backend(backend):
            gradients = torch.autograd.grad(sum(output.sum() for output in outputs[:2]), [query, key])
        results.append((*outputs, *gradients))
    for without, under in zip(*results, strict=True):
        assert torch.equal(without, under)


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_are_those_without_autocast(backend: str) -> None:
    results = []
    for enabled in (False, True):
        query, key = (normal(n, 8, seed=n).requires_grad_() for n in (20, 30))
        with ops.use_backend(backend), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            total = ops.infonce_scores(query, key).row_logsumexp.sum()
        if backend == "reference":
            enabled = False  # plain torch has its own backward, whose products autocast would run in half precision
        with ops.use_backend(backend), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            (first,) = torch.autograd.grad(total, query, create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), key)
        results.append(second)
    assert torch.equal(*results)


def test_half_precision_is_refused_as_ever() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match=r"query: need float32 or float64, got b?float16"):
            ops.infonce_scores(normal(3, 2).to(dtype), normal(4, 2).to(dtype))


def test_compiles_under_autocast_without_graph_break() -> None:
    query, key = normal(5, 3), normal(6, 3, seed=1)
    torch.compiler.reset()
    traced = torch.compile(ops.infonce_scores, fullgraph=True, backend="aot_eager")
    for backend in ("cpu", "reference"):
        with ops.use_backend(backend):
            expected = ops.infonce_scores(query, key)
            with torch.autocast("cpu", torch.bfloat16):
                found = traced(query, key)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
