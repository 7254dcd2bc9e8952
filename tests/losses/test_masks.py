"""Masked rows, keys and positives: what is left out, and that the rest keeps its value and a finite gradient."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitlens import ops

sys.path.insert(0, str(Path(__file__).parent))
from definitions import FROM_SCORES, INFINITY, LOSSES, extra_of, normal, problem

NEEDS_NEGATIVES = [name for name in LOSSES if not name.startswith("InfoNCE")]
HAS_VALUE_OF_ITS_LOSS = [name for name in LOSSES if name != "JensenShannon"]


def masked(length: int, *which: int) -> Tensor:
    return torch.zeros(length, dtype=torch.float64).index_fill(0, torch.tensor(which, dtype=torch.int64), -INFINITY)


@pytest.fixture(autouse=True)
def _no_nan_on_the_way_back() -> Iterator[None]:
    """Anomaly detection, which users turn on, raises at a NaN even where it meets a mask later."""
    with torch.autograd.set_detect_anomaly(True):
        yield


def loss_and_gradients(name: str, query: Tensor, key: Tensor, extra: Tensor, **biases: Tensor) -> list[Tensor]:
    leaves = [query.detach().requires_grad_(), key.detach().requires_grad_(), extra.detach().requires_grad_()]
    loss = LOSSES[name][0](*leaves[:2], **biases, **extra_of(name, leaves[2]))
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [loss.detach(), *gradients]


def value_of(name: str, query: Tensor, key: Tensor, extra: Tensor, **biases: Tensor) -> Tensor:
    return LOSSES[name][0].value(query, key, **biases, **extra_of(name, extra)).detach()


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_whose_positive_is_masked_is_left_out(name: str) -> None:
    query, key, _, _, extra, _ = problem(8, 11)
    kept = [0, 1, 2, 4, 5, 6, 7]
    own = torch.tensor([0, 1, 2, 3, 4, 5, 6])  # columns of the kept rows' positives among the kept keys
    found = loss_and_gradients(name, query, key, extra, key_bias=masked(11, 3))
    if name == "InfoNCE two-sided":
        # The row stays a query that others' keys are told apart from.
        scores = query @ key.T
        columns = torch.logsumexp(scores, 0)[kept]
        rows = torch.logsumexp(scores + masked(11, 3), 1)[kept]
        expected = (0.5 * (rows + columns) - scores.diagonal()[kept]).mean()
        torch.testing.assert_close(found[0], expected.detach(), rtol=1e-12, atol=1e-12)
        value = value_of(name, query, key, extra, key_bias=masked(11, 3))
        reference = 0.5 * (math.log(10) + math.log(8))
        torch.testing.assert_close(value, reference - expected.detach(), rtol=1e-12, atol=1e-12)
    else:
        keys = [j for j in range(11) if j != 3]
        leaves = [query[kept], key[keys], extra[kept]]
        module = LOSSES[name][0]
        expected = module(*leaves[:2], positive=own, **extra_of(name, leaves[2]))
        torch.testing.assert_close(found[0], expected.detach(), rtol=1e-12, atol=1e-12)
        if name in HAS_VALUE_OF_ITS_LOSS:
            value = module.value(*leaves[:2], positive=own, **extra_of(name, leaves[2])).detach()
            torch.testing.assert_close(value_of(name, query, key, extra, key_bias=masked(11, 3)), value)
    for gradient in found[1:]:
        assert bool(torch.isfinite(gradient).all())
    assert not bool(found[1][3].any()) or name == "InfoNCE two-sided"
    assert not bool(found[2][3].any())
    assert not bool(found[3][3].any())


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_element_without_rows_adds_nothing(name: str) -> None:
    query, key, extra = normal(3, 5, 4), normal(3, 7, 4, seed=1), normal(3, 5, seed=2)
    bias = torch.zeros(3, 5, dtype=torch.float64)
    bias[1] = -INFINITY
    found = loss_and_gradients(name, query, key, extra, query_bias=bias)
    rest = [0, 2]
    expected = loss_and_gradients(name, query[rest], key[rest], extra[rest])
    torch.testing.assert_close(found[0], expected[0], rtol=1e-13, atol=1e-13)
    for gradient, true in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(gradient[rest], true, rtol=1e-12, atol=1e-12)
        assert not bool(gradient[1].any())
    value = value_of(name, query, key, extra, query_bias=bias)
    assert value.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(value[rest], value_of(name, query[rest], key[rest], extra[rest]))


@pytest.mark.parametrize("name", LOSSES)
def test_without_any_row_the_loss_is_nan_and_its_gradient_zero(name: str) -> None:
    query, key, _, _, extra, _ = problem(5, 7)
    found = loss_and_gradients(name, query, key, extra, query_bias=masked(5, *range(5)))
    assert bool(found[0].isnan())
    for gradient in found[1:]:
        assert not bool(gradient.any())
    assert bool(value_of(name, query, key, extra, query_bias=masked(5, *range(5))).isnan())


@pytest.mark.parametrize("name", LOSSES)
def test_one_key_left_leaves_no_negative(name: str) -> None:
    query, key, extra = normal(2, 5, 4), normal(2, 7, 4, seed=1), normal(2, 5, seed=2)
    bias = torch.zeros(2, 7, dtype=torch.float64)
    bias[1, 1:] = -INFINITY
    found = loss_and_gradients(name, query, key, extra, key_bias=bias)
    for gradient in found[1:]:
        assert bool(torch.isfinite(gradient).all())
    value = value_of(name, query, key, extra, key_bias=bias)
    if name in NEEDS_NEGATIVES:
        expected = loss_and_gradients(name, query[:1], key[:1], extra[:1])
        torch.testing.assert_close(found[0], expected[0], rtol=1e-13, atol=1e-13)
        assert value.isnan().tolist() == [False, True]
    elif name == "InfoNCE":
        assert float(value[1]) == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("undefined", [math.nan, math.inf])
def test_what_stands_in_a_masked_row_does_not_matter(name: str, undefined: float) -> None:
    query, key, _, _, extra, _ = problem(6, 9)
    clean = loss_and_gradients(name, query, key, extra, query_bias=masked(6, 4))
    spoiled = extra.detach().index_fill(0, torch.tensor([4]), undefined)
    found = loss_and_gradients(name, query, key, spoiled, query_bias=masked(6, 4))
    for ours, true in zip(found, clean, strict=True):
        assert torch.equal(ours, true)
    assert torch.equal(
        value_of(name, query, key, spoiled, query_bias=masked(6, 4)),
        value_of(name, query, key, extra, query_bias=masked(6, 4)),
    )


@pytest.mark.parametrize("name", [*FROM_SCORES, "JensenShannon", "SMILE"])
def test_nan_in_a_live_row_shows(name: str) -> None:
    query, key, _, _, extra, _ = problem(6, 9)
    spoiled = query.detach().index_fill(0, torch.tensor([2]), math.nan)
    assert bool(LOSSES[name][0](spoiled, key.detach(), **extra_of(name, extra.detach())).isnan())


def test_negatives_that_are_all_impossible_are_no_mask() -> None:
    """Scores of -inf at every negative with no key masked: exact likelihoods without overlap."""
    own = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    none = torch.full((3,), -INFINITY, dtype=torch.float64, requires_grad=True)
    scores = ops.InfoNCEScores(own, own + 0, none, own + 0)
    assert float(LOSSES["LeaveOneOut"][0].value(scores).detach()) == INFINITY
    assert float(LOSSES["DonskerVaradhan"][0].value(scores).detach()) == INFINITY
    for name, expected in (("NWJ", 0.0), ("JensenShannon", 1.0)):
        value = LOSSES[name][0].value(scores)
        assert float(value.detach()) == expected
        gradient, in_none = torch.autograd.grad(value, [own, none])
        torch.testing.assert_close(gradient, torch.full_like(gradient, 1 / 3))
        assert not bool(in_none.any())
