"""Losses and critics under `torch.autocast`: half precision comes in, single precision is computed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bitlens import losses, ops
from bitlens.critics import JointCritic

sys.path.insert(0, str(Path(__file__).parent))
from definitions import FROM_SCORES, LOSSES, extra_of, normal

BACKENDS = ("cpu", "numba", "reference")


def layers() -> tuple[nn.Linear, nn.Linear]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 4), nn.Linear(3, 4)


@pytest.mark.parametrize("name", [*LOSSES, "NTXent"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_of_a_layer_is_taken_in_single(backend: str, name: str) -> None:
    module = losses.NTXent() if name == "NTXent" else LOSSES[name][0]
    first, second = layers()
    x, z = (normal(12, 3, seed=seed, dtype=torch.float32) for seed in (1, 2))
    extra = {} if name == "NTXent" else extra_of(name, normal(12, seed=3, dtype=torch.float32).bfloat16())
    single = {word: value.float() for word, value in extra.items()}
    with ops.use_backend(backend):
        with torch.autocast("cpu", torch.bfloat16):
            query, key = first(x), second(z)
            assert query.dtype == torch.bfloat16
            loss = module(query, key, **extra)
            value = module.value(query, key, **extra)
        expected = module(query.float(), key.float(), **single)
        assert loss.dtype == value.dtype == torch.float32
        assert torch.equal(loss, expected)
        assert torch.equal(value, module.value(query.float(), key.float(), **single))
        loss.backward()
    assert bool(torch.isfinite(first.weight.grad).all())
    with pytest.raises(TypeError, match="need float32 or float64, got bfloat16"):
        module(query, key, **extra)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("hidden", [(16,), (16, 12)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_critic_scores_in_single_precision(backend: str, hidden: tuple[int, ...], dtype: torch.dtype) -> None:
    critic = JointCritic(3, 3, hidden, generator=torch.Generator().manual_seed(0))
    x, z = (normal(12, 3, seed=seed, dtype=torch.float32) for seed in (1, 2))
    with ops.use_backend(backend):
        with torch.autocast("cpu", torch.bfloat16):
            single, half = critic(x, z), critic(x.to(dtype), z.to(dtype))
        expected = (*critic(x, z), *critic(x.to(dtype).float(), z.to(dtype).float()))
        for ours, true in zip((*single, *half), expected, strict=True):
            assert torch.equal(ours, true)
    with pytest.raises(TypeError, match="x: need float32, got"):
        critic(x.to(dtype), z)


def test_scores_of_a_critic_go_into_losses_under_autocast() -> None:
    critic = JointCritic(3, 3, generator=torch.Generator().manual_seed(0))
    x, z = (normal(12, 3, seed=seed, dtype=torch.float32) for seed in (1, 2))
    extra = normal(12, seed=3, dtype=torch.float32)
    for name in FROM_SCORES:
        beside = {"positive": torch.arange(12)} if name == "InfoNCE two-sided" else {}
        expected = LOSSES[name][0](critic(x, z), **beside, **extra_of(name, extra))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(LOSSES[name][0](critic(x, z), **beside, **extra_of(name, extra)), expected)


@pytest.mark.parametrize("name", ["InfoNCE", "SMILE"])
def test_compiles_under_autocast(name: str) -> None:
    module = LOSSES[name][0]
    query, key = (normal(n, 3, seed=n, dtype=torch.float32).bfloat16() for n in (5, 7))

    def loss(query: Tensor, key: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return module(query, key)

    torch.compiler.reset()
    traced = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(query, key), loss(query, key))


def test_half_precision_scores_are_taken_in_single() -> None:
    query, key = (normal(n, 3, seed=n, dtype=torch.float32) for n in (5, 7))
    half = ops.InfoNCEScores(*(part.bfloat16() for part in ops.infonce_scores(query, key)))
    single = ops.InfoNCEScores(*(part.float() for part in half))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(losses.NWJ()(half), losses.NWJ()(single))


@pytest.mark.parametrize("name", LOSSES)
def test_tensors_without_values_have_a_shape(name: str) -> None:
    """The meta device knows no autocast, and no values to look at."""
    query, key, extra = (torch.empty(shape, device="meta") for shape in ((2, 5, 3), (2, 7, 3), (2, 5)))
    assert LOSSES[name][0](query, key, **extra_of(name, extra)).shape == ()
    assert LOSSES[name][0].value(query, key, **extra_of(name, extra)).shape == (2,)
