"""Scores of every measurement under every noiseless image, and the bounds they give."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens import ops
from bitlens.estimators._inputs import Groups, independent_scenes
from bitlens.noise import NoiseModel, ScoreFeatures
from bitlens.noise._abilities import HasFeatures, HasPairs, HasScoresOutside
from bitlens.noise._pairs import log_prob_pairs

# Pairs times pixels up to which likelihoods that are not bilinear are used, by time on two cores. Poisson-Gaussian
# noise, which has all pairs at once: 8 s for means of some 10 electrons, a minute for means of some 1e5. Likelihoods
# evaluated pair by pair: a minute when each takes 0.6 us, as those of a digitised sensor do.
_MAX_PAIR_EVALUATIONS = 4_500_000_000
_MAX_EXACT_EVALUATIONS = 50_000_000
# Scores at a time of a likelihood that has no kernel for its sums; the last ones computed are remembered.
_CHUNK_PAIRS = 4_000_000
# Error of the mean log marginal, nats, up to which scores are multiplied in single precision, four times as fast.
_SINGLE_PRECISION_ERROR_NATS = 1e-3
# Products of a pair of features below which double precision takes no more than some hundredths of a second.
_FEW_PRODUCTS = 100_000_000
# Products that the kernel adds up before they join a sum of sums.
_DEPTH = 128


class KnownChannel(NamedTuple):
    """What the pairwise scores say about each sample, in nats; `outside` is all samples of other groups.

    `positive` S_ii; `log_marginal` log of the mean over `outside` of exp S_ij; `column_shares(weight)` for
    each j the sum over the i outside j's group of weight_i exp S_ij / sum_k exp S_ik, k outside i's group, which costs
    as much as all the rest; `exact` whether S is the log-likelihood.
    """

    positive: Tensor
    log_marginal: Tensor
    column_shares: Callable[[Tensor], Tensor]
    exact: bool


def known_channel(measured: Tensor, mean: Tensor, noise: NoiseModel, groups: Groups) -> KnownChannel | None:
    """The scores of a channel through the bilinear kernel, or all likelihoods where that is exact and affordable.

    No matrix of all pairs is kept. Returns None where the likelihood has no bilinear form and too many pairs.
    """
    fast = isinstance(noise, HasPairs) and noise.fast_pairs
    limit = _MAX_PAIR_EVALUATIONS if fast else _MAX_EXACT_EVALUATIONS
    affordable = measured.shape[0] * measured.numel() <= limit
    if isinstance(noise, HasFeatures):
        bilinear = _bilinear(noise, measured, mean, groups)
        if bilinear.exact or not affordable:
            return _from_bilinear(bilinear, groups)
    if not affordable:
        return None
    if isinstance(noise, HasScoresOutside):
        channel = _from_kernel(noise, measured, mean, groups)
        if channel is not None:
            return channel
    return _from_likelihood(measured, mean, noise, groups)


def _per_outside(outside: Tensor, groups: Groups) -> Tensor:
    """The log of a sum over other groups as that of a mean."""
    count = len(outside) - torch.bincount(groups.labels, minlength=groups.count)[groups.labels]
    return outside - torch.log(count.to(outside.dtype))


# ---- Bilinear scores ----


class _Bilinear(NamedTuple):
    """Scores sorted by group in working precision; what is added to a whole row or column stays in double.

    S_ij = query_i . key_j + query_bias_i + key_bias_j; `positive` S_ii in double.
    """

    query: Tensor
    key: Tensor
    query_bias: Tensor
    key_bias: Tensor
    positive: Tensor
    order: Tensor
    exact: bool


def single_precision_error_nats(features: ScoreFeatures) -> float:
    """Bound on the error of the mean over i of log sum_j exp S_ij from single precision, query_bias in double.

    The error of a log-sum-exp is at most that of its scores. With u = 2^-24, those of query_i . key_j are within
    (d' + 2) u |query_i| |key_j| (Higham 2002, sec. 3.1), d' the longest chain of additions; sums and results round to
    3 u of the largest score; exponentials and the sums of a tile add less than 256 u.
    """
    d = features.query.shape[1]
    chain = min(d, _DEPTH) + math.ceil(d / _DEPTH)
    product = float(torch.linalg.vector_norm(features.query, dim=1).mean())
    product *= float(torch.linalg.vector_norm(features.key, dim=1).max())
    bias = features.key_bias - features.key_bias.mean()
    return 2.0**-24 * ((chain + 5) * product + 4 * float(bias.abs().max()) + 256)


def _bilinear(noise: HasFeatures, measured: Tensor, mean: Tensor, groups: Groups) -> _Bilinear:
    features = noise.score_features(measured, mean)
    query, key, query_bias, key_bias, exact = features
    positive = torch.linalg.vecdot(query, key) + query_bias + key_bias
    # A critic may have any rounding: its bound holds for the scores as they are.
    single = query.shape[0] * query.numel() > _FEW_PRODUCTS and (
        not exact or single_precision_error_nats(features) <= _SINGLE_PRECISION_ERROR_NATS
    )
    dtype = torch.float32 if single else torch.float64
    del features  # so that one matrix in double goes before the next one is rounded
    query = query.to(dtype)
    key = key.to(dtype)
    # Sorted by group, the samples outside a group are two slices: no copies, and no difference of large sums.
    order = torch.argsort(groups.labels, stable=True)
    if groups.given:
        query, key, query_bias, key_bias = (value[order] for value in (query, key, query_bias, key_bias))
    return _Bilinear(query, key, query_bias, key_bias, positive, order, exact)


def _from_bilinear(scores: _Bilinear, groups: Groups) -> KnownChannel:
    sizes = torch.bincount(groups.labels, minlength=groups.count)

    def unsorted(value: Tensor) -> Tensor:
        return torch.empty_like(value).index_copy_(0, scores.order, value)

    # Without query_bias, which only shifts its row.
    outside = _logsumexp_outside(scores.query, scores.key, scores.key_bias, sizes)

    def column_shares(weight: Tensor) -> Tensor:
        per_query = torch.log(weight[scores.order]) - outside
        return unsorted(torch.exp(_logsumexp_outside(scores.key, scores.query, per_query, sizes) + scores.key_bias))

    log_marginal = _per_outside(unsorted(outside + scores.query_bias), groups)
    return KnownChannel(scores.positive, log_marginal, column_shares, scores.exact)


def _logsumexp_outside(query: Tensor, key: Tensor, key_bias: Tensor, sizes: Tensor) -> Tensor:
    """Over the columns outside each row's group, rows and columns sorted by group: (n,), float64."""
    finite = key_bias[torch.isfinite(key_bias)]
    shift = finite.mean() if len(finite) else key_bias.new_zeros(())
    bias = (key_bias - shift).to(query.dtype)
    if len(sizes) == len(query):
        return ops.infonce_scores(query, key, key_bias=bias).row_logsumexp_negatives.to(torch.float64) + shift
    result = torch.full_like(key_bias, -torch.inf)
    begin = 0
    for size in sizes.tolist():
        end = begin + size
        for part in (slice(0, begin), slice(end, None)):
            if key[part].shape[0] == 0:
                continue
            positive = torch.zeros(size, dtype=torch.int64, device=query.device)
            scores = ops.infonce_scores(query[begin:end], key[part], positive=positive, key_bias=bias[part])
            result[begin:end] = torch.logaddexp(result[begin:end], scores.row_logsumexp.to(torch.float64))
        begin = end
    return result + shift


# ---- Likelihoods that are not bilinear ----


def _from_kernel(noise: HasScoresOutside, measured: Tensor, mean: Tensor, groups: Groups) -> KnownChannel | None:
    found = noise.scores_outside(measured, mean, groups.labels)
    if found is None:
        return None
    positive, outside, _ = found

    def column_shares(weight: Tensor) -> Tensor:
        weighted = noise.scores_outside(measured, mean, groups.labels, row_bias=torch.log(weight) - outside)
        assert weighted is not None
        return torch.exp(weighted[2])

    return KnownChannel(positive, _per_outside(outside, groups), column_shares, True)


def _from_likelihood(measured: Tensor, mean: Tensor, noise: NoiseModel, groups: Groups) -> KnownChannel:
    n_samples = measured.shape[0]
    chunk = max(1, _CHUNK_PAIRS // n_samples)
    remembered: dict[int, tuple[Tensor, Tensor]] = {}

    def outside_scores(rows: slice) -> tuple[Tensor, Tensor]:
        if rows.start not in remembered:
            remembered.clear()
            scores = log_prob_pairs(noise, measured[rows], mean)
            same = groups.labels[rows, None] == groups.labels[None, :]
            positive = scores.diagonal(rows.start).clone()
            remembered[rows.start] = scores.masked_fill_(same, -torch.inf), positive
        return remembered[rows.start]

    slices = [slice(begin, min(begin + chunk, n_samples)) for begin in range(0, n_samples, chunk)]
    positive, outside = measured.new_empty(n_samples), measured.new_empty(n_samples)
    for rows in slices:
        negatives, positive[rows] = outside_scores(rows)
        outside[rows] = torch.logsumexp(negatives, 1)

    def column_shares(weight: Tensor) -> Tensor:
        total = torch.zeros_like(weight)
        for rows in slices:
            negatives, _ = outside_scores(rows)
            total += (weight[rows, None] * torch.exp(negatives - outside[rows, None])).sum(0)
        return total

    return KnownChannel(positive, _per_outside(outside, groups), column_shares, True)


# ---- Bounds ----


class Terms(NamedTuple):
    """Terms of a bound, (n,) nats, and what its influence is made of: `own` less the column shares of `weight`.

    Influence: dependence of the mean on the share of each scene among the rows and among the columns, to first order.
    Its spread is the standard error of the bound, that of the rows alone is up to 1.6 times too small. It is linear in
    `own` and `weight`: that of a mean of bounds takes one pass over the pairs, not one for each.
    """

    rows: Tensor
    own: Tensor
    weight: Tensor | None

    def influence(self, channel: KnownChannel | None) -> Tensor:
        """Of each sample on the mean of the rows."""
        if self.weight is None:
            return self.own
        assert channel is not None
        return self.own - channel.column_shares(self.weight)


def midpoint(first: Terms, second: Terms) -> Terms:
    """The mean of two bounds."""
    weights = [terms.weight for terms in (first, second) if terms.weight is not None]
    weight = None if not weights else 0.5 * torch.stack(weights).sum(0)
    return Terms(0.5 * (first.rows + second.rows), 0.5 * (first.own + second.own), weight)


class LowerBound(NamedTuple):
    """For each sample its term of the lower bound; the ceiling log K."""

    terms: Terms
    ceiling: float


def lower_bound(channel: KnownChannel, groups: Groups) -> LowerBound:
    """a_i - log((exp a_i + (K - 1) exp m_i) / K), m_i the log marginal outside the group: at most log K.

    Noiseless images of one group may depend on each other: a group counts as one of the K independent scenes of
    InfoNCE, and fewer where a large one outweighs the others; averaging over its members inside the logarithm only
    lowers the bound (Jensen).
    """
    count = independent_scenes(groups.labels) + 1
    others = channel.log_marginal + math.log(count - 1)
    total = torch.logaddexp(channel.positive, others)
    rows = channel.positive - total + math.log(count)
    own = rows + 1.0 - torch.exp(channel.positive - total)
    return LowerBound(Terms(rows, own, torch.exp(others - total)), math.log(count))
