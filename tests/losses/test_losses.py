"""Losses against their published definitions on full matrices, and against the truth of a Gaussian channel."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens import losses, ops

INFINITY = math.inf


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


# ---- Definitions on the full matrix: S (n, m), positive (n,), extra = u or log baseline (n,) ----


def own(scores: Tensor, positive: Tensor) -> Tensor:
    return scores[torch.arange(len(scores)), positive]


def negatives(scores: Tensor, positive: Tensor) -> Tensor:
    """The scores of every row's negatives, (n, m - 1)."""
    keep = torch.ones_like(scores, dtype=torch.bool)
    keep[torch.arange(len(scores)), positive] = False
    return scores[keep].reshape(len(scores), -1)


def info_nce(scores: Tensor, positive: Tensor, extra: Tensor) -> Tensor:
    return math.log(scores.shape[1]) - torch.nn.functional.cross_entropy(scores, positive)


def info_nce_two_sided(scores: Tensor, positive: Tensor, extra: Tensor) -> Tensor:
    columns = torch.nn.functional.cross_entropy(scores[:, positive].T, torch.arange(len(scores)))
    return 0.5 * (info_nce(scores, positive, extra) + math.log(len(scores)) - columns)


def nwj(scores: Tensor, positive: Tensor, extra: Tensor) -> Tensor:
    return own(scores, positive).mean() - torch.exp(negatives(scores, positive) - 1).mean()


def donsker_varadhan(scores: Tensor, positive: Tensor, extra: Tensor) -> Tensor:
    return own(scores, positive).mean() - torch.exp(negatives(scores, positive)).mean().log()


def leave_one_out(scores: Tensor, positive: Tensor, extra: Tensor) -> Tensor:
    return (own(scores, positive) - torch.exp(negatives(scores, positive)).mean(dim=1).log()).mean()


def interpolated(alpha: float) -> Callable[..., Tensor]:
    def value(scores: Tensor, positive: Tensor, extra: Tensor) -> Tensor:
        k, q = scores.shape[1], torch.exp(extra)
        a, other = own(scores, positive), torch.exp(negatives(scores, positive))
        m_own = (torch.exp(a) + (k - 2) / (k - 1) * other.sum(dim=1)) / (k - 1)
        m_other = other.mean(dim=1)
        joint = a - torch.log(alpha * m_own + (1 - alpha) * q)
        return 1 + joint.mean() - (m_other / (alpha * m_other + (1 - alpha) * q)).mean()

    return value


def flo(scores: Tensor, positive: Tensor, extra: Tensor) -> Tensor:
    contrast = torch.exp(-extra[:, None] + negatives(scores, positive) - own(scores, positive)[:, None])
    return 1 - (extra + contrast.mean(dim=1)).mean()


def jensen_shannon(scores: Tensor, positive: Tensor, extra: Tensor) -> Tensor:
    def softplus(x: Tensor) -> Tensor:
        return torch.log1p(torch.exp(x))

    return -softplus(-own(scores, positive)).mean() - softplus(negatives(scores, positive)).mean()


def smile(scores: Tensor, positive: Tensor, extra: Tensor) -> Tensor:
    clipped = torch.exp(negatives(scores, positive).clamp(-1.2, 1.2))
    return own(scores, positive).mean() - clipped.mean().log()


# name -> module, definition of minus its loss up to a constant, sign of the value in the loss, name of the extra input
LOSSES: dict[str, tuple[torch.nn.Module, Callable[..., Tensor], str | None]] = {
    "InfoNCE": (losses.InfoNCE(), info_nce, None),
    "InfoNCE two-sided": (losses.InfoNCE(two_sided=True), info_nce_two_sided, None),
    "NWJ": (losses.NWJ(), nwj, None),
    "DonskerVaradhan": (losses.DonskerVaradhan(), donsker_varadhan, None),
    "LeaveOneOut": (losses.LeaveOneOut(), leave_one_out, None),
    "Interpolated 0": (losses.Interpolated(0.0), interpolated(0.0), "log_baseline"),
    "Interpolated 0.3": (losses.Interpolated(0.3), interpolated(0.3), "log_baseline"),
    "Interpolated 1": (losses.Interpolated(1.0), interpolated(1.0), "log_baseline"),
    "FLO": (losses.FLO(), flo, "u"),
    "JensenShannon": (losses.JensenShannon(), jensen_shannon, None),
    "SMILE": (losses.SMILE(clip=1.2), smile, None),
}
FROM_SCORES = [name for name in LOSSES if name not in ("JensenShannon", "SMILE")]


def extra_of(name: str, extra: Tensor) -> dict[str, Tensor]:
    keyword = LOSSES[name][2]
    return {} if keyword is None else {keyword: extra}


def problem(n: int, m: int, d: int = 3, seed: int = 0) -> tuple[Tensor, ...]:
    """query, key, query_bias, key_bias, extra, and distinct positives."""
    parts = (normal(n, d, seed=seed), normal(m, d, seed=seed + 1), normal(n, seed=seed + 2), normal(m, seed=seed + 3))
    positive = torch.randperm(m, generator=generator(seed + 4))[:n]
    return (*(part.requires_grad_() for part in (*parts, normal(n, seed=seed + 5))), positive)


def matrix(query: Tensor, key: Tensor, query_bias: Tensor, key_bias: Tensor) -> Tensor:
    return 0.7 * (query @ key.T) + query_bias[:, None] + key_bias[None, :]


def sign_of(name: str) -> float:
    return 1.0 if name == "LeaveOneOut" else -1.0


@pytest.mark.parametrize("shape", [(1, 2), (5, 5), (6, 9), (130, 140)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradients_are_those_of_the_definition(name: str, shape: tuple[int, int]) -> None:
    module, definition, keyword = LOSSES[name]
    query, key, query_bias, key_bias, extra, positive = problem(*shape)
    true = definition(matrix(query, key, query_bias, key_bias), positive, extra)
    leaves = [query, key, query_bias, key_bias] + ([extra] if keyword else [])
    if name == "Interpolated 1":
        leaves = leaves[:4]
    true_gradients = torch.autograd.grad(sign_of(name) * true, leaves)
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


# ---- Temperature, normalisation, NT-Xent ----


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


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """As pytorch-metric-learning writes it: positive and negative pairs by label, one log of a ratio for each pair."""
    views = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    labels = torch.arange(len(first)).repeat(2)
    matches = (labels[:, None] == labels[None, :]).fill_diagonal_(False)
    anchors, partners = torch.where(matches)
    similarity = views @ views.T / temperature
    terms = []
    for anchor, partner in zip(anchors.tolist(), partners.tolist(), strict=True):
        negative = similarity[anchor][labels != labels[anchor]]
        largest = torch.cat([similarity[anchor, partner : partner + 1], negative]).max().detach()
        numerator = torch.exp(similarity[anchor, partner] - largest)
        terms.append(-torch.log(numerator / (torch.exp(negative - largest).sum() + numerator)))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("n", [1, 2, 60])
def test_nt_xent_is_the_published_formula(n: int, temperature: float) -> None:
    first, second = (normal(n, 8, seed=seed).requires_grad_() for seed in (1, 2))
    true, module = nt_xent(first, second, temperature), losses.NTXent(temperature=temperature)
    loss = module(first, second)
    torch.testing.assert_close(loss, true, rtol=1e-10, atol=1e-10)
    for ours, gradient in zip(
        torch.autograd.grad(loss, [first, second]), torch.autograd.grad(true, [first, second]), strict=True
    ):
        torch.testing.assert_close(ours, gradient, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(module.value(first, second), math.log(n) - true, rtol=1e-10, atol=1e-10)


def test_nt_xent_lies_below_the_truth_by_at_most_log_two() -> None:
    """Both views show the same one of 8 equally likely symbols: the information is log 8.

    Of the 2n - 1 candidates log(2n - 1) - loss would count all; log n - loss gives away log((2n - 1) / n).
    """
    symbols = torch.randint(0, 8, (400, 64), generator=generator(3))
    views = torch.nn.functional.one_hot(symbols, 8).double()
    value = losses.NTXent(temperature=0.05).value(views, views)
    truth = math.log(8)
    assert value.shape == (400,)
    assert truth - math.log(2) - 0.1 < float(value.mean()) < truth - math.log(2) + 0.1


# ---- Ceilings and sides ----


def test_ceilings_hold_for_the_best_critic_and_are_reached() -> None:
    n, k = 6, 9
    perfect = 300 * torch.eye(k, dtype=torch.float64)
    query, key = perfect[:n], torch.eye(k, dtype=torch.float64)
    baseline = torch.full((n,), -1000.0, dtype=torch.float64)
    cases: list[tuple[torch.nn.Module, float, dict[str, Tensor]]] = [
        (losses.InfoNCE(), math.log(k), {}),
        (losses.InfoNCE(two_sided=True), 0.5 * (math.log(n) + math.log(k)), {}),
        (losses.Interpolated(1.0), math.log(k - 1), {}),
    ]
    for module, ceiling, extra in cases:
        assert module.ceiling_nats(n, k) == pytest.approx(ceiling, rel=1e-14)
        assert float(module.value(query, key, **extra)) == pytest.approx(ceiling, rel=1e-12)
    # A baseline far above the negatives takes the marginal term away and leaves the own key's term in the joint one.
    module = losses.Interpolated(0.25)
    value = float(module.value(query, key, log_baseline=torch.full((n,), 100.0, dtype=torch.float64)))
    assert module.ceiling_nats(n, k) == pytest.approx(math.log((k - 1) / 0.25) + 1, rel=1e-14)
    assert value == pytest.approx(math.log((k - 1) / 0.25) + 1, rel=1e-12)
    assert float(module.value(query, key, log_baseline=baseline)) < value
    assert losses.Interpolated(0.0).ceiling_nats(n, k) is None
    for name in ("NWJ", "DonskerVaradhan", "LeaveOneOut", "FLO", "JensenShannon", "SMILE"):
        assert LOSSES[name][0].ceiling_nats(n, k) is None


@pytest.mark.parametrize(("temperature", "n"), [(0.6, 64), (2.0, 64)])
def test_cosine_scores_stay_below_their_ceiling(temperature: float, n: int) -> None:
    """The best that rows of length one can do: own key along the query, all others against it."""
    key = torch.full((n, 2), 0.0, dtype=torch.float64)
    key[:, 0] = -1.0
    key[0, 0] = 1.0
    module = losses.InfoNCE(temperature=temperature, normalize=True)
    exact = math.log(n) - math.log1p((n - 1) * math.exp(-2 / temperature))
    value = float(module.value(key[:1], key))
    assert value == pytest.approx(exact, rel=1e-12)
    ceiling = module.ceiling_nats(1, n)
    assert ceiling == min(math.log(n), 2 / temperature)
    assert 0.6 * ceiling < value < ceiling


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
        scores = ops.pairwise_map_sums(query, key, map="clipped_exp", limit=1.2, **arguments)
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
        with pytest.raises(ValueError, match=r"key: need at least 2 keys.*got 1"):
            LOSSES[name][0](query, key, **extra_of(name, torch.zeros(1, dtype=torch.float64)))


@pytest.mark.parametrize("name", ["InfoNCE two-sided", "Interpolated 0.3", "FLO", "JensenShannon", "SMILE"])
def test_compiles_without_graph_break(name: str) -> None:
    module = LOSSES[name][0]
    query, key, _, _, extra, _ = problem(6, 9)
    torch.compiler.reset()
    traced = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected, value = (f(query, key, **extra_of(name, extra)) for f in (module, traced))
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)
    for a, b in zip(torch.autograd.grad(value, [query, key]), torch.autograd.grad(expected, [query, key]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_wrong_arguments_are_named() -> None:
    query, key = torch.ones(3, 2), torch.ones(4, 2)
    scores = ops.infonce_scores(query, key)
    for kind, match, call in (
        (TypeError, "query: need a torch.Tensor or InfoNCEScores, got list", lambda: losses.NWJ()([1.0], key)),
        (TypeError, "key: need a torch.Tensor, got NoneType", lambda: losses.NWJ()(query)),
        (TypeError, "key: need a torch.Tensor, got NoneType", lambda: losses.SMILE()(query)),
        (TypeError, "PairwiseMapSums, got InfoNCEScores", lambda: losses.SMILE()(scores)),
        (ValueError, "key: need None beside InfoNCEScores", lambda: losses.NWJ()(scores, key)),
        (ValueError, "scale: need 1 beside InfoNCEScores, got 2", lambda: losses.NWJ()(scores, scale=2.0)),
        (ValueError, "temperature", lambda: losses.InfoNCE(temperature=0.5)(scores)),
        (ValueError, "temperature: need a finite number above 0, got -1", lambda: losses.InfoNCE(temperature=-1.0)),
        (TypeError, "temperature: need a number, got str", lambda: losses.NTXent(temperature="1")),
        (ValueError, "alpha: need a number from 0 to 1, got 1.5", lambda: losses.Interpolated(1.5)),
        (ValueError, "clip: need a number above 0, got 0", lambda: losses.SMILE(clip=0.0)),
        (ValueError, "read_off: need one of 'nwj', 'dv', got 'kl'", lambda: losses.JensenShannon(read_off="kl")),
        (ValueError, r"log_baseline: need a tensor .* got None", lambda: losses.Interpolated(0.5)(query, key)),
        (ValueError, r"u: need shape \(..., n\) with 3", lambda: losses.FLO()(query, key, u=torch.zeros(4))),
        (TypeError, "u: need float32, got float64", lambda: losses.FLO()(query, key, u=torch.zeros(3).double())),
        (ValueError, r"second: need the shape of first, \(3, 2\)", lambda: losses.NTXent()(query, key)),
        (ValueError, r"query: need at least one row", lambda: losses.NWJ()(query[:0], key)),
        (ValueError, r"query: need at least one row", lambda: losses.SMILE()(query[:0], key)),
    ):
        with pytest.raises(kind, match=match):
            call()
