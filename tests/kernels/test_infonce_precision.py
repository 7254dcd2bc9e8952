"""Contrastive scores of inputs rounded to tf32 or bfloat16: every backend rounds alike, and nothing else changes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens import ops

sys.path.insert(0, str(Path(__file__).parent))
import contract
from contract import running
from test_infonce_scores import BACKENDS, EVERY_BACKEND, diagonal_inputs, matrix_of, truth_of

# Bits of the significand, the leading one included.
SIGNIFICANT_BITS = {"tf32": 11, "bfloat16": 8}


def rounded(tensor: Tensor, precision: str) -> Tensor:
    """The nearest number with so many significant bits, in float64; ties of tf32 go away from zero (PTX, cvt.rna)."""
    fraction, exponent = np.frexp(tensor.double().numpy())
    scale = 2.0 ** SIGNIFICANT_BITS[precision]
    whole = np.rint(fraction * scale)
    if precision == "tf32":
        whole = np.copysign(np.floor(np.abs(fraction) * scale + 0.5), fraction)
    return torch.from_numpy(np.ldexp(whole / scale, exponent))


@pytest.mark.parametrize("precision", SIGNIFICANT_BITS)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_scores_are_those_of_the_rounded_inputs(backend: str, precision: str) -> None:
    query, key = diagonal_inputs(140, 160, 43)(torch.float32, contract.generator(1))
    truth = truth_of(matrix_of(rounded(query, precision), rounded(key, precision)), np.arange(140))
    plain = truth_of(matrix_of(query, key), np.arange(140))
    with running(backend):
        outputs = ops.infonce_scores(query, key, precision=precision)
    for output, true in zip(outputs, truth, strict=True):
        assert contract.relative_error(output, true) <= 1e-6
    assert contract.relative_error(outputs.positive, plain[0]) > 1e-4  # the rounding is there


@pytest.mark.parametrize("shape", [(20, 30, 6), (150, 140, 131)], ids=str)
@pytest.mark.parametrize("precision", SIGNIFICANT_BITS)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_gradients_are_those_at_the_rounded_inputs(backend: str, precision: str, shape: tuple[int, int, int]) -> None:
    query, key = diagonal_inputs(*shape)(torch.float32, contract.generator(2))
    positive = torch.arange(shape[0]) % shape[1]

    def gradients(query: Tensor, key: Tensor, precision: str) -> tuple[Tensor, ...]:
        query, key = query.clone().requires_grad_(), key.clone().requires_grad_()
        outputs = ops.infonce_scores(query, key, positive=positive, scale=0.7, precision=precision)
        total = (outputs.row_logsumexp - outputs.positive).sum() + outputs.column_logsumexp.square().sum()
        return torch.autograd.grad(total, (query, key))

    query_rounded, key_rounded = rounded(query, precision), rounded(key, precision)
    with running("reference"):
        truth = gradients(query_rounded, key_rounded, "full")
    with running(backend):
        ours = gradients(query, key, precision)
    if backend != "cuda_on_cpu":
        for a, b in zip(ours, truth, strict=True):
            assert contract.relative_error(a, b) <= 4e-6
        return
    # Tensor cores take the gradient in each score rounded as well: at most half a unit of its last bit off.
    scores = (0.7 * query_rounded @ key_rounded.T).requires_grad_()
    chosen = scores.gather(1, positive[:, None]).squeeze(1)
    total = (scores.logsumexp(1) - chosen).sum() + scores.logsumexp(0).square().sum()
    (pull,) = torch.autograd.grad(total, scores)
    half_unit = 0.7 * 0.5 ** SIGNIFICANT_BITS[precision] * pull.abs()
    limits = (half_unit @ key_rounded.abs(), half_unit.T @ query_rounded.abs())
    for a, b, limit in zip(ours, truth, limits, strict=True):
        assert bool(((a - b).abs() <= limit + 4e-6 * b.abs().clamp(min=1)).all())
    assert contract.relative_error(ours[0], truth[0]) > 1e-5  # they were used


def test_centring_saves_the_digits_of_a_common_mean() -> None:
    """A Gaussian channel of 256 pixels whose images share a mean of 30 standard deviations of the noise."""
    generator = contract.generator(3)
    mean = 30 + torch.randn(50, 256, generator=generator, dtype=torch.float64) / 8
    measured = mean + torch.randn(50, 256, generator=generator, dtype=torch.float64)

    def information(mean: Tensor, measured: Tensor, precision: str) -> float:
        bias = -0.5 * mean.square().sum(dim=1)
        dtype = torch.float64 if precision == "full" else torch.float32
        outputs = ops.infonce_scores(measured.to(dtype), mean.to(dtype), key_bias=bias.to(dtype), precision=precision)
        return float((outputs.positive - outputs.row_logsumexp_negatives).mean())

    common = mean.mean(dim=0)
    truth = information(mean, measured, "full")
    for precision, bound in (("tf32", 1e-3), ("bfloat16", 1e-2)):
        assert abs(information(mean - common, measured - common, precision) - truth) < bound
        assert abs(information(mean, measured, precision) - truth) > 10 * bound


@pytest.mark.parametrize("precision", SIGNIFICANT_BITS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_precision_under_transforms(backend: str, precision: str) -> None:
    query, key = diagonal_inputs(5, 7, 3)(torch.float32, contract.generator(4))

    def loss(query: Tensor) -> Tensor:
        outputs = ops.infonce_scores(query, key, precision=precision)
        return (outputs.row_logsumexp - outputs.positive).sum()

    many = torch.stack([query, 2 * query])
    with running(backend):
        each = torch.stack([torch.func.grad(loss)(item) for item in many])
        torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(many), each)
        torch.compiler.reset()
        torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager")(query), loss(query))


@pytest.mark.parametrize("precision", SIGNIFICANT_BITS)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_undefined_inputs_are_nan_in_every_precision(backend: str, precision: str) -> None:
    all_ones = torch.tensor([-1], dtype=torch.int32).view(torch.float32)  # a NaN that an addition could turn into 0
    for bad in (float("inf"), float("-inf"), float("nan"), float(torch.finfo(torch.float32).max), all_ones[0]):
        query, key = diagonal_inputs(4, 5, 3)(torch.float32, contract.generator(5))
        query[2, 1] = bad
        with running(backend):
            rows = ops.infonce_scores(query, key, precision=precision).row_logsumexp
        assert bool(torch.isnan(rows[2]))
        assert not bool(torch.isnan(rows[[0, 1, 3]]).any())


def test_what_has_no_such_precision_says_so() -> None:
    query, key = torch.zeros(3, 4), torch.zeros(5, 4)
    error = contract.expect_error
    error(ValueError, ("precision", "tf32", "half"), lambda: ops.infonce_scores(query, key, precision="half"))
    error(
        ValueError,
        ("precision", "float64", "tf32"),
        lambda: ops.infonce_scores(query.double(), key.double(), precision="tf32"),
    )
