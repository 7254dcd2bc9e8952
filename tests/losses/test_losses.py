"""Losses against their published definitions on full matrices, and against the truth of a Gaussian channel."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens import losses, ops

sys.path.insert(0, str(Path(__file__).parent))
from definitions import (
    FROM_SCORES,
    INFINITY,
    LOSSES,
    donsker_varadhan,
    extra_of,
    jensen_shannon,
    matrix,
    normal,
    nwj,
    problem,
    sign_of,
)


@pytest.mark.parametrize("shape", [(1, 2), (5, 5), (6, 9), (130, 140)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradients_are_those_of_the_definition(name: str, shape: tuple[int, int]) -> None:
    module, definition, keyword = LOSSES[name]
    query, key, query_bias, key_bias, extra, positive = problem(*shape)
    true = definition(matrix(query, key, query_bias, key_bias), positive, extra)
    leaves = [query, key, query_bias, key_bias] + ([extra] if keyword else [])
    if name == "Interpolated 1":
        leaves = leaves[:4]
    trained = jensen_shannon if name == "SMILE" else definition
    trained_on = trained(matrix(query, key, query_bias, key_bias), positive, extra)
    true_gradients = torch.autograd.grad(sign_of(name) * trained_on, leaves)
    arguments = {"positive": positive, "scale": 0.7, "query_bias": query_bias, "key_bias": key_bias}
    loss = module(query, key, **arguments, **extra_of(name, extra))
    assert loss.shape == ()
    if name != "JensenShannon":
        value = module.value(query, key, **arguments, **extra_of(name, extra))
        torch.testing.assert_close(value, true, rtol=1e-10, atol=1e-10)
    if not name.startswith("InfoNCE"):
        torch.testing.assert_close(loss, sign_of(name) * true, rtol=1e-10, atol=1e-10)
    for ours, gradient in zip(torch.autograd.grad(loss, leaves), true_gradients, strict=True):
        torch.testing.assert_close(ours, gradient, rtol=1e-10, atol=1e-10)


def test_the_loss_of_infonce_is_cross_entropy() -> None:
    query, key = normal(20, 4), normal(20, 4, seed=1)
    target = torch.arange(20)
    rows, columns = (torch.nn.functional.cross_entropy(s / 0.3, target) for s in (query @ key.T, key @ query.T))
    one_sided, two_sided = (losses.InfoNCE(temperature=0.3, two_sided=two)(query, key) for two in (False, True))
    torch.testing.assert_close(one_sided, rows, rtol=1e-12, atol=0)
    torch.testing.assert_close(two_sided, 0.5 * (rows + columns), rtol=1e-12, atol=0)


def test_jensen_shannon_reads_its_value_off() -> None:
    query, key, query_bias, key_bias, _, positive = problem(7, 9)
    scores = matrix(query, key, query_bias, key_bias)
    arguments = {"positive": positive, "scale": 0.7, "query_bias": query_bias, "key_bias": key_bias}
    for read_off, true in (
        ("nwj", nwj(scores + 1, positive, scores)),
        ("dv", donsker_varadhan(scores, positive, scores)),
    ):
        value = losses.JensenShannon(read_off=read_off).value(query, key, **arguments)
        torch.testing.assert_close(value, true, rtol=1e-12, atol=1e-12)


def test_a_positive_far_below_zero_keeps_its_exponential() -> None:
    """log(1 + exp 21) is 21 and 8e-10 more."""
    query, key = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[-21.0], [0.0]], dtype=torch.float64)
    expected = math.log1p(math.exp(-21.0)) + 21.0 + math.log(2.0)
    assert float(losses.JensenShannon()(query, key)) == pytest.approx(expected, rel=1e-14)


# ---- Temperature and normalisation ----


@pytest.mark.parametrize("learn", [False, True])
def test_the_scale_of_the_user_stands_beside_the_temperature(learn: bool) -> None:
    query, key = normal(9, 4), normal(12, 4, seed=1)
    module = losses.InfoNCE(temperature=0.2, learn_temperature=learn).double()
    expected = torch.nn.functional.cross_entropy(0.7 * query @ key.T / 0.2, torch.arange(9))
    for scale in (0.7, torch.tensor(0.7, dtype=torch.float64)):
        torch.testing.assert_close(module(query, key, scale=scale), expected, rtol=1e-7, atol=0, check_dtype=True)


def test_a_learned_temperature_has_the_gradient_of_the_definition() -> None:
    module = losses.InfoNCE(temperature=0.2, learn_temperature=True, normalize=True).double()
    query, key = normal(9, 4), normal(12, 4, seed=1)
    log_temperature = torch.tensor(math.log(0.2), dtype=torch.float64, requires_grad=True)
    cosine = torch.nn.functional.normalize(query, dim=1) @ torch.nn.functional.normalize(key, dim=1).T
    true = torch.nn.functional.cross_entropy(cosine * torch.exp(-log_temperature), torch.arange(9))
    (true_gradient,) = torch.autograd.grad(true, log_temperature)
    module.load_state_dict({"log_temperature": log_temperature.detach()})
    loss = module(query, key)
    (gradient,) = torch.autograd.grad(loss, list(module.parameters()))
    torch.testing.assert_close(loss, true, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, true_gradient, rtol=1e-11, atol=0)
    assert module.temperature == pytest.approx(0.2, rel=1e-12)
    assert list(losses.InfoNCE(temperature=0.2).parameters()) == []


# ---- Sides ----


def test_every_loss_says_which_side_it_bounds() -> None:
    sides = {name: module.bound for name, (module, _, _) in LOSSES.items()}
    assert sides["LeaveOneOut"] == "upper"
    assert {name for name, side in sides.items() if side == "none"} == {"DonskerVaradhan", "SMILE"}
    assert losses.JensenShannon(read_off="dv").bound == "none"
    for name, side in sides.items():
        doc = type(LOSSES[name][0]).__doc__ or ""
        assert ("NOT a bound" in doc) or side in ("lower", "upper"), name
        assert "eiling" in doc or side == "upper", name


def channel(correlation: float, n: int, n_batches: int, seed: int) -> tuple[dict[str, Tensor], float]:
    """Three correlated pairs of Gaussians with the optimal critic log p(x, z) / (p(x) p(z)); and the truth."""
    d = 3
    x = normal(n_batches, n, d, seed=seed)
    z = correlation * x + math.sqrt(1 - correlation**2) * normal(n_batches, n, d, seed=seed + 1)
    truth = -0.5 * d * math.log1p(-(correlation**2))
    square = -(correlation**2) / (2 * (1 - correlation**2))
    scores = {
        "query": z,
        "key": x,
        "scale": torch.tensor(correlation / (1 - correlation**2), dtype=torch.float64),
        "query_bias": square * z.square().sum(-1) + truth,
        "key_bias": square * x.square().sum(-1),
    }
    return scores, truth


def pointwise(scores: dict[str, Tensor]) -> Tensor:
    """log p(x, z) / (p(x) p(z)) of the pairs."""
    dots = (scores["query"] * scores["key"]).sum(-1)
    return scores["scale"] * dots + scores["query_bias"] + scores["key_bias"]


@pytest.mark.parametrize("correlation", [0.5, 0.8])
def test_bounds_lie_on_their_side_of_the_truth_in_order_of_tightness(correlation: float) -> None:
    n, n_batches = 64, 1500
    scores, truth = channel(correlation, n, n_batches, seed=20)
    zero = torch.zeros(n_batches, n, dtype=torch.float64)
    shifted = {**scores, "query_bias": scores["query_bias"] + 1}
    values = {
        "InfoNCE": losses.InfoNCE().value(**scores),
        "two-sided": losses.InfoNCE(two_sided=True).value(**scores),
        "I_1": losses.Interpolated(1.0).value(**scores),
        "I_0.5": losses.Interpolated(0.5).value(**scores, log_baseline=zero),
        "I_0.1": losses.Interpolated(0.1).value(**scores, log_baseline=zero),
        "NWJ": losses.NWJ().value(**shifted),
        "FLO": losses.FLO().value(**scores, u=-pointwise(scores)),
        "JS": losses.JensenShannon().value(**scores),
        "DV": losses.DonskerVaradhan().value(**scores),
        "upper": losses.LeaveOneOut().value(**scores),
    }
    mean = {name: float(value.mean()) for name, value in values.items()}
    error = {name: float(value.std()) / math.sqrt(n_batches) for name, value in values.items()}
    for name in ("InfoNCE", "two-sided", "I_1", "I_0.5", "I_0.1", "NWJ", "FLO", "JS"):
        assert mean[name] < truth + 4 * error[name], (name, mean[name], truth)
    assert mean["upper"] > truth - 4 * error["upper"]
    # With the optimal critic and baseline these are unbiased.
    for name in ("NWJ", "FLO", "JS"):
        assert abs(mean[name] - truth) < 4 * error[name], (name, mean[name], truth)
    # Bias is compared on the same batches, so that their differences have small errors.
    for worse, better in (("I_1", "I_0.5"), ("I_0.5", "I_0.1"), ("I_1", "InfoNCE"), ("InfoNCE", "upper")):
        difference = values[better] - values[worse]
        assert float(difference.mean()) > 4 * float(difference.std()) / math.sqrt(n_batches), (worse, better)
    assert truth - mean["InfoNCE"] < 0.2


def test_the_plug_in_exceeds_the_truth() -> None:
    """Why Donsker-Varadhan is called no bound: four rows, the optimal critic, 20 standard errors above."""
    scores, truth = channel(0.8, 4, 20_000, seed=30)
    value = losses.DonskerVaradhan().value(**scores)
    assert float(value.mean()) - truth > 20 * float(value.std()) / math.sqrt(20_000)


def test_clipping_exceeds_the_truth() -> None:
    """Why SMILE is called no bound: without its largest terms the mean of exp S is too small."""
    scores, truth = channel(0.95, 64, 300, seed=40)
    value = losses.SMILE(clip=1.0).value(**scores)
    assert float(value.mean()) - truth > 4 * float(value.std()) / math.sqrt(300)


def test_interpolated_lies_below_the_average_over_left_out_negatives() -> None:
    """Poole's estimator averages over the key left out of the joint term, which takes the matrix; ours bounds it."""
    scores = 2 * normal(30, 30, seed=50)
    q, alpha = torch.exp(normal(30, seed=51)), 0.4
    exps, a = torch.exp(scores), scores.diagonal()
    left_out = (exps.sum(dim=1, keepdim=True) - exps) / 29  # [i, k]: row i without key k
    joint = a[:, None] - torch.log(alpha * left_out + (1 - alpha) * q[:, None])
    off = ~torch.eye(30, dtype=torch.bool)
    marginal = left_out.diagonal() / (alpha * left_out.diagonal() + (1 - alpha) * q)
    published = float(1 + joint[off].mean() - marginal.mean())
    eye = torch.eye(30, dtype=torch.float64)
    ours = float(losses.Interpolated(alpha).value(scores, eye, log_baseline=torch.log(q)))
    assert published - 0.02 < ours < published


# ---- Any critic, batches, masks, extremes ----


@pytest.mark.parametrize("name", LOSSES)
def test_scores_of_any_critic_plug_in(name: str) -> None:
    module = LOSSES[name][0]
    query, key, query_bias, key_bias, extra, positive = problem(6, 9)
    arguments = {"positive": positive, "scale": 0.7, "query_bias": query_bias, "key_bias": key_bias}
    kwargs = extra_of(name, extra)
    if name in FROM_SCORES:
        scores = ops.infonce_scores(query, key, **arguments)
    elif name == "SMILE":
        sums = ops.pairwise_map_sums(query, key, map="clipped_exp", limit=1.2, **arguments)
        assert torch.equal(module.value(sums), module.value(query, key, **arguments))
        return
    else:
        scores = ops.pairwise_map_sums(query, key, map="softplus", **arguments)
    beside = {"positive": positive} if name == "InfoNCE two-sided" else {}
    assert torch.equal(module(scores, **beside, **kwargs), module(query, key, **arguments, **kwargs))


@pytest.mark.parametrize("name", LOSSES)
def test_leading_axes_are_separate_problems(name: str) -> None:
    module = LOSSES[name][0]
    query, key, extra = normal(3, 5, 4), normal(3, 7, 4, seed=1), normal(3, 5, seed=2)
    together = module(query, key, **extra_of(name, extra))
    apart = torch.stack([module(query[b], key[b], **extra_of(name, extra[b])) for b in range(3)])
    torch.testing.assert_close(together, apart.mean(), rtol=1e-13, atol=1e-13)
    assert module.value(query, key, **extra_of(name, extra)).shape == (3,)


@pytest.mark.parametrize("name", LOSSES)
def test_masked_rows_and_keys_are_not_there(name: str) -> None:
    module = LOSSES[name][0]
    query, key, _, _, extra, _ = problem(8, 11)
    rows, keys = torch.ones(8, dtype=torch.bool), torch.ones(11, dtype=torch.bool)
    rows[6:], keys[6:9] = False, False  # the last two rows, their keys, and one that is nobody's positive
    query_bias = torch.zeros(8, dtype=torch.float64).masked_fill(~rows, -INFINITY)
    key_bias = torch.zeros(11, dtype=torch.float64).masked_fill(~keys, -INFINITY)
    masked = module(query, key, query_bias=query_bias, key_bias=key_bias, **extra_of(name, extra))
    few = module(query[rows], key[keys], **extra_of(name, extra[rows]))
    torch.testing.assert_close(masked, few, rtol=1e-13, atol=1e-13)
    for ours, true in zip(
        torch.autograd.grad(masked, [query, key]), torch.autograd.grad(few, [query, key]), strict=True
    ):
        torch.testing.assert_close(ours, true, rtol=1e-12, atol=1e-12)
    if name != "JensenShannon":
        torch.testing.assert_close(
            module.value(query, key, query_bias=query_bias, key_bias=key_bias, **extra_of(name, extra)),
            module.value(query[rows], key[keys], **extra_of(name, extra[rows])),
            rtol=1e-12,
            atol=1e-12,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_positive_that_dominates_by_eighty_nats(dtype: torch.dtype) -> None:
    n, lead = 50, 80.0
    noise = normal(n, 4, seed=60, dtype=dtype)
    query = torch.cat([math.sqrt(lead) * torch.eye(n, dtype=dtype), noise], dim=1).requires_grad_()
    key = torch.cat([math.sqrt(lead) * torch.eye(n, dtype=dtype), noise.roll(1, dims=1)], dim=1)
    wide = query.detach().numpy().astype(np.longdouble) @ key.numpy().astype(np.longdouble).T
    a, off = np.diag(wide), wide[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    truths = {
        "LeaveOneOut": (a - np.log(np.exp(off).mean(axis=1))).mean(),
        "NWJ": a.mean() - np.exp(off - 1).mean(),
        "DonskerVaradhan": a.mean() - np.log(np.exp(off).mean()),
        "JensenShannon": 1 + a.mean() - np.exp(off).mean(),
    }
    for name, true in truths.items():
        value = LOSSES[name][0].value(query, key)
        assert float(value.detach()) == pytest.approx(float(true), rel=1e-5 if dtype == torch.float32 else 1e-12)
    for name in LOSSES:
        (gradient,) = torch.autograd.grad(
            LOSSES[name][0](query, key, **extra_of(name, torch.zeros(n, dtype=dtype))), query
        )
        assert bool(torch.isfinite(gradient).all()), name


def test_one_pair_carries_nothing_and_has_no_negatives() -> None:
    query, key = normal(1, 3), normal(1, 3, seed=1)
    for two_sided in (False, True):
        assert float(losses.InfoNCE(two_sided=two_sided).value(query, key)) == pytest.approx(0.0, abs=1e-15)
    for name in LOSSES:
        if name.startswith("InfoNCE"):
            continue
        for call in (LOSSES[name][0].forward, LOSSES[name][0].value):
            with pytest.raises(ValueError, match=r"key: need at least 2 keys.*got 1"):
                call(query, key, **extra_of(name, torch.zeros(1, dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"key: need at least 2 keys.*got 1"):
        losses.JensenShannon(read_off="dv").value(query, key)


@pytest.mark.parametrize("name", ["InfoNCE two-sided", "Interpolated 0.3", "FLO", "JensenShannon", "SMILE"])
def test_compiles_without_graph_break(name: str) -> None:
    module = LOSSES[name][0]
    query, key, _, _, extra, positive = problem(6, 9)
    arguments = {"positive": positive, **extra_of(name, extra)}
    torch.compiler.reset()
    traced = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected, value = (f(query, key, **arguments) for f in (module, traced))
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)
    for a, b in zip(torch.autograd.grad(value, [query, key]), torch.autograd.grad(expected, [query, key]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
