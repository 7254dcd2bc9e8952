"""Positives and log-sum-exps of log p(measured_i | mean_j), summed over pixels, without the matrix of all pairs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bitlens import ops
from bitlens.kernels import _check
from bitlens.noise import _pairs
from bitlens.noise._abilities import HasScoreRows
from bitlens.noise.base import NoiseModel
from bitlens.ops import InfoNCEScores

_CHUNK_PAIRS = 2_000_000  # scores at a time of a model without a kernel for them


def score_rows(noise: NoiseModel, measured: Tensor, mean: Tensor, *, positive: Tensor | None = None) -> InfoNCEScores:
    """Statistics of all pairs by the model's own way if it has one, else from its `log_prob`, some rows at a time."""
    if isinstance(noise, HasScoreRows):
        return noise.score_rows(measured, mean, positive=positive)
    return by_chunks(lambda rows: _pairs.one_by_one(noise, rows, mean), measured, mean, positive)


def from_features(features: _pairs.Bilinear, positive: Tensor | None) -> InfoNCEScores:
    """Through the bilinear kernel."""
    query, key, query_bias, key_bias = features
    return ops.infonce_scores(query, key, positive=positive, query_bias=query_bias, key_bias=key_bias)


def by_chunks(
    scores_of: Callable[[Tensor], Tensor], measured: Tensor, mean: Tensor, positive: Tensor | None
) -> InfoNCEScores:
    """From all scores of some rows at a time, which a gradient computes again.

    Raises:
        TypeError, ValueError: `positive` is not a column for each row, or absent with more rows than columns.
    """
    _pairs.check_pixels(measured, mean)
    n, m = len(measured), len(mean)
    columns = _positives(positive, n, m, mean)
    chunk = max(1, _CHUNK_PAIRS // max(1, m))

    def statistics(rows: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scores = scores_of(rows)
        negatives = scores.scatter(1, index[:, None], -torch.inf)
        return scores.gather(1, index[:, None])[:, 0], _total(scores, 1), _total(negatives, 1), _total(scores, 0)

    parts = [
        checkpoint(statistics, rows, index, use_reentrant=False) if torch.is_grad_enabled() else statistics(rows, index)
        for rows, index in zip(measured.split(chunk), columns.split(chunk), strict=True)
    ]
    own, total, negatives = (torch.cat([part[k] for part in parts]) for k in range(3))
    column = parts[0][3]
    for part in parts[1:]:
        column = torch.logaddexp(column, part[3])
    return InfoNCEScores(own, total, negatives, column)


def _total(scores: Tensor, dim: int) -> Tensor:
    """Log-sum-exp; -inf with gradient 0 where every score is -inf."""
    empty = (scores == -torch.inf).all(dim=dim, keepdim=True)
    return torch.logsumexp(scores.masked_fill(empty, 0.0), dim).masked_fill(empty.squeeze(dim), -math.inf)


def _positives(positive: Tensor | None, n: int, m: int, like: Tensor) -> Tensor:
    if positive is None:
        if n > m:
            raise ValueError(f"positive: need it with more rows than columns, got None for {n} and {m}")
        return torch.arange(n, device=like.device)
    _check.tensor("positive", positive, (torch.int64,))
    if positive.shape != (n,):
        raise ValueError(f"positive: need shape ({n},), got {tuple(positive.shape)}")
    if n and not 0 <= int(positive.min()) <= int(positive.max()) < m:
        raise ValueError(
            f"positive: need columns from 0 to {m - 1}, got {int(positive.min())} to {int(positive.max())}"
        )
    return positive
