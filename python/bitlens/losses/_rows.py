"""What the losses share: scores from whatever a caller has, and means over rows that are not masked."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bitlens import ops
from bitlens.kernels import _backend, _check

Bound = Literal["lower", "upper", "none"]


class Rows(NamedTuple):
    """Statistics of the rows that are not masked; zeros stand where `live` is False.

    Attributes:
        positive, total, negatives: (..., n), the first three of `InfoNCEScores`.
        live: (..., n), False in a masked row.
        n_keys: (...), the keys that are not masked.
    """

    positive: Tensor
    total: Tensor
    negatives: Tensor
    live: Tensor
    n_keys: Tensor


def scores_of(
    query: Tensor | ops.InfoNCEScores,
    key: Tensor | None,
    positive: Tensor | None,
    scale: float | Tensor,
    query_bias: Tensor | None,
    key_bias: Tensor | None,
) -> ops.InfoNCEScores:
    """The scores as they came from a critic, or those of query and key."""
    if isinstance(query, ops.InfoNCEScores):
        refuse_beside_scores("InfoNCEScores", key, scale, query_bias, key_bias)
        return query
    return ops.infonce_scores(
        *pair_of("InfoNCEScores", query, key),
        positive=positive,
        scale=scale,
        query_bias=query_bias,
        key_bias=key_bias,
    )


def pair_of(kind: str, query: object, key: object) -> tuple[Tensor, Tensor]:
    if not isinstance(query, Tensor):
        raise TypeError(f"query: need a torch.Tensor or {kind}, got {type(query).__name__}")
    return query, _check.tensor("key", key)


def refuse_beside_scores(
    kind: str, key: Tensor | None, scale: float | Tensor, query_bias: Tensor | None, key_bias: Tensor | None
) -> None:
    """ValueError when an argument would change scores that are already made."""
    for name, value in (("key", key), ("query_bias", query_bias), ("key_bias", key_bias)):
        if value is not None:
            raise ValueError(f"{name}: need None beside {kind}, got {type(value).__name__}")
    if isinstance(scale, Tensor) or scale != 1.0:
        raise ValueError(f"scale: need 1 beside {kind}, got {scale}")


def require_negatives(n_keys: int) -> None:
    if n_keys < 2:
        raise ValueError(f"key: need at least 2 keys, so that rows have negatives, got {n_keys}")


def rows_of(scores: ops.InfoNCEScores) -> Rows:
    """A row is masked when all its scores are -inf, a key when all its column is."""
    if scores.positive.shape[-1] == 0:
        raise ValueError(f"query: need at least one row, got shape {tuple(scores.positive.shape)}")
    live = scores.row_logsumexp.detach() != -torch.inf
    n_keys = (scores.column_logsumexp.detach() != -torch.inf).sum(dim=-1).to(scores.positive.dtype)
    positive, total, negatives = (torch.where(live, part, 0.0) for part in scores[:3])
    return Rows(positive, total, negatives, live, n_keys)


def row_sum(values: Tensor) -> Tensor:
    """Sum over the last axis in an order that does not depend on the number of threads."""
    return _backend.sum_to_shape(values, torch.Size((*values.shape[:-1], 1))).squeeze(-1)


def row_mean(values: Tensor, live: Tensor) -> Tensor:
    """Mean over the live rows."""
    return row_sum(torch.where(live, values, 0.0)) / live.sum(dim=-1)


def mean_of_positives(rows: Rows) -> Tensor:
    """Mean score of the positives."""
    return row_mean(rows.positive, rows.live)


def log_mean_exp_of_negatives(rows: Rows) -> Tensor:
    """log of the mean of exp S over all pairs of a live row and a key that is not its positive."""
    negatives = rows.negatives.masked_fill(~rows.live, -torch.inf)
    largest = negatives.detach().amax(dim=-1)
    largest = torch.where(largest == -torch.inf, 0.0, largest)
    total = largest + torch.log(row_sum(torch.exp(negatives - largest.unsqueeze(-1))))
    return total - torch.log(rows.live.sum(dim=-1) * (rows.n_keys - 1))
