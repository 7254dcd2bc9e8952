"""Scores of every measurement under every noiseless image, and the bounds they give."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens import ops
from bitlens.estimators._inputs import Groups
from bitlens.noise import NoiseModel, ScoreFeatures
from bitlens.noise._abilities import HasFeatures, HasPairs
from bitlens.noise._pairs import log_prob_pairs

# Pairs times pixels up to which likelihoods that are not bilinear are used, by time on two cores. Poisson-Gaussian
# noise, which has all pairs at once: 8 s for means of some 10 electrons, a minute for means of some 1e5. Likelihoods
# evaluated pair by pair: a minute when each takes 0.6 us, as those of a digitised sensor do.
_MAX_PAIR_EVALUATIONS = 4_500_000_000
_MAX_EXACT_EVALUATIONS = 50_000_000
_CHUNK_PAIRS = 8_000_000  # up to this many the scores are kept, beyond they are computed a second time


class KnownChannel(NamedTuple):
    """What the pairwise scores say about each sample, in nats; `outside` is all samples of other groups.

    `positive` S_ii; `log_marginal` log of the mean over `outside` of exp S_ij; `column_shares(weight)` for
    each j the sum over the i outside j's group of weight_i exp S_ij / sum_k exp S_ik, k outside i's group;
    `exact` whether S is the log-likelihood.
    """

    positive: Tensor
    log_marginal: Tensor
    column_shares: Callable[[Tensor], Tensor]
    exact: bool


def known_channel(measured: Tensor, mean: Tensor, noise: NoiseModel, groups: Groups) -> KnownChannel | None:
    """The scores of a channel through the bilinear kernel, or all likelihoods where that is exact and affordable.

    Returns None where the likelihood has no bilinear form and there are too many pairs.
    """
    features = noise.score_features(measured, mean) if isinstance(noise, HasFeatures) else None
    fast = isinstance(noise, HasPairs) and noise.fast_pairs
    limit = _MAX_PAIR_EVALUATIONS if fast else _MAX_EXACT_EVALUATIONS
    affordable = measured.shape[0] * measured.numel() <= limit
    if features is not None and (features.exact or not affordable):
        return _from_features(features, groups)
    return _from_likelihood(measured, mean, noise, groups) if affordable else None


def _from_features(features: ScoreFeatures, groups: Groups) -> KnownChannel:
    # Sorted by group, the samples outside a group are two slices: no copies, and no difference of large sums.
    order = torch.argsort(groups.labels, stable=True)
    sizes = torch.bincount(groups.labels, minlength=groups.count)
    query, key = features.query[order], features.key[order]
    query_bias, key_bias = features.query_bias[order], features.key_bias[order]

    def unsorted(value: Tensor) -> Tensor:
        return torch.empty_like(value).index_copy_(0, order, value)

    outside = _logsumexp_outside(query, key, query_bias, key_bias, sizes)
    positive = (query * key).sum(1) + query_bias + key_bias
    n_outside = len(order) - sizes[groups.labels[order]]

    def column_shares(weight: Tensor) -> Tensor:
        per_query = query_bias - outside + torch.log(weight[order].clamp_min(torch.finfo(weight.dtype).tiny))
        return unsorted(torch.exp(_logsumexp_outside(key, query, key_bias, per_query, sizes)))

    log_marginal = outside - torch.log(n_outside.to(outside.dtype))
    return KnownChannel(unsorted(positive), unsorted(log_marginal), column_shares, features.exact)


def _logsumexp_outside(query: Tensor, key: Tensor, query_bias: Tensor, key_bias: Tensor, sizes: Tensor) -> Tensor:
    """Over the columns outside each row's group, rows and columns sorted by group: (n,)."""
    if len(sizes) == len(query):
        return ops.infonce_scores(query, key, query_bias=query_bias, key_bias=key_bias).row_logsumexp_negatives
    result = torch.full_like(query_bias, -torch.inf)
    begin = 0
    for size in sizes.tolist():
        end = begin + size
        for part in (slice(0, begin), slice(end, None)):
            if key[part].shape[0] == 0:
                continue
            scores = ops.infonce_scores(
                query[begin:end],
                key[part],
                positive=torch.zeros(size, dtype=torch.int64, device=query.device),
                query_bias=query_bias[begin:end],
                key_bias=key_bias[part],
            )
            result[begin:end] = torch.logaddexp(result[begin:end], scores.row_logsumexp)
        begin = end
    return result


def _from_likelihood(measured: Tensor, mean: Tensor, noise: NoiseModel, groups: Groups) -> KnownChannel:
    n_samples = measured.shape[0]
    chunk = max(1, _CHUNK_PAIRS // n_samples)

    def outside_scores(rows: slice) -> tuple[Tensor, Tensor]:
        scores = log_prob_pairs(noise, measured[rows], mean)
        same = groups.labels[rows, None] == groups.labels[None, :]
        return scores.masked_fill(same, -torch.inf), scores

    slices = [slice(begin, min(begin + chunk, n_samples)) for begin in range(0, n_samples, chunk)]
    kept = outside_scores(slices[0]) if len(slices) == 1 else None
    positive, outside = measured.new_empty(n_samples), measured.new_empty(n_samples)
    for rows in slices:
        negatives, scores = kept or outside_scores(rows)
        positive[rows] = scores.diagonal(rows.start)
        outside[rows] = torch.logsumexp(negatives, 1)

    def column_shares(weight: Tensor) -> Tensor:
        total = torch.zeros_like(weight)
        for rows in slices:
            negatives, _ = kept or outside_scores(rows)
            total += (weight[rows, None] * torch.exp(negatives - outside[rows, None])).sum(0)
        return total

    n_outside = n_samples - torch.bincount(groups.labels)[groups.labels]
    return KnownChannel(positive, outside - torch.log(n_outside.to(outside.dtype)), column_shares, True)


class LowerBound(NamedTuple):
    """For each sample its term of the lower bound and its influence on their mean; the ceiling log K."""

    rows: Tensor
    influence: Tensor
    ceiling: float


def lower_bound(channel: KnownChannel, groups: Groups) -> LowerBound:
    """a_i - log((exp a_i + (G - 1) exp m_i) / G), m_i the log marginal outside the group: at most log G.

    Noiseless images of one of the G groups may depend on each other, so a group counts as one of the K
    independent scenes of InfoNCE; averaging over its members inside the logarithm only lowers the bound
    (Jensen).

    Influence: dependence of the mean on the share of each scene among the rows and among the columns, to
    first order. Its spread is the standard error of the bound, that of the rows alone is up to 1.6 times too
    small.
    """
    others = channel.log_marginal + math.log(groups.count - 1)
    total = torch.logaddexp(channel.positive, others)
    rows = channel.positive - total + math.log(groups.count)
    shares = channel.column_shares(torch.exp(others - total)) + torch.exp(channel.positive - total)
    return LowerBound(rows, rows - (shares - 1.0), math.log(groups.count))
