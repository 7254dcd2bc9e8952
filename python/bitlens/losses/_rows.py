"""What the losses share: scores from whatever a caller has, and means over rows that are not masked."""

from __future__ import annotations

import numbers
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bitlens import ops
from bitlens.kernels import _backend, _check
from bitlens.kernels.infonce_scores.op import _check_positive

Bound = Literal["lower", "upper", "none"]


class Rows(NamedTuple):
    """Statistics of the rows that count; zeros stand where `live` is False.

    Attributes:
        positive, total, negatives: (..., n), the first three of `InfoNCEScores`.
        live: (..., n), False in a row that is masked, whose positive is, or that lacks the negatives that it needs.
        n_queries, n_keys: (...), the rows and keys that are not masked.
    """

    positive: Tensor
    total: Tensor
    negatives: Tensor
    live: Tensor
    n_queries: Tensor
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
        refuse_beside_scores("InfoNCEScores", key, positive, scale, query_bias, key_bias)
        return query
    return ops.infonce_scores(
        *pair_of("InfoNCEScores", query, key),
        positive=positive,
        scale=checked_scale(scale),
        query_bias=query_bias,
        key_bias=key_bias,
    )


def pair_of(kind: str, query: object, key: object) -> tuple[Tensor, Tensor]:
    if not isinstance(query, Tensor):
        raise TypeError(f"query: need a torch.Tensor or {kind}, got {type(query).__name__}")
    return query, _check.tensor("key", key)


def checked_scale(scale: object) -> float | Tensor:
    """TypeError unless it is a number or a tensor."""
    if isinstance(scale, Tensor):
        return scale
    if not isinstance(scale, numbers.Real):
        raise TypeError(f"scale: need a number or a torch.Tensor, got {type(scale).__name__}")
    return float(scale)


def refuse_beside_scores(
    kind: str,
    key: Tensor | None,
    positive: Tensor | None,
    scale: float | Tensor,
    query_bias: Tensor | None,
    key_bias: Tensor | None,
) -> None:
    """ValueError when an argument would change scores that are already made."""
    for name, value in (("key", key), ("positive", positive), ("query_bias", query_bias), ("key_bias", key_bias)):
        if value is not None:
            raise ValueError(f"{name}: need None beside {kind}, got {type(value).__name__}")
    if isinstance(scale, Tensor) or scale != 1.0:
        raise ValueError(f"scale: need 1 beside {kind}, got {scale}")


def require_negatives(n_keys: int) -> None:
    if n_keys < 2:
        raise ValueError(f"key: need at least 2 keys, so that rows have negatives, got {n_keys}")


def require_rows(positive: Tensor) -> None:
    if positive.shape[-1] == 0:
        raise ValueError(f"query: need at least one row, got shape {tuple(positive.shape)}")


def require_count(name: str, count: int, least: int) -> None:
    if count < least:
        raise ValueError(f"{name}: need at least {least}, got {count}")


def may_look(tensor: Tensor) -> bool:
    """Whether a check of its values stalls no GPU and breaks no trace."""
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type == "cpu"
    return plain and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


def rows_of(scores: ops.InfoNCEScores, *, need_negatives: bool) -> Rows:
    """A row is masked when all its scores are -inf, a key when all its column is, a positive when its score is."""
    require_rows(scores.positive)
    present = scores.row_logsumexp.detach() != -torch.inf
    n_queries, n_keys = (
        there.sum(dim=-1).to(scores.positive.dtype)
        for there in (present, scores.column_logsumexp.detach() != -torch.inf)
    )
    live = scores.positive.detach() != -torch.inf  # which it is in a masked row as well
    if need_negatives:
        live = live & (n_keys > 1).unsqueeze(-1)
    positive, total, negatives = (torch.where(live, part, 0.0) for part in scores[:3])
    return Rows(positive, total, negatives, live, n_queries, n_keys)


def own_columns(positive: object, scores: ops.InfoNCEScores, live: Tensor) -> Tensor:
    """Column log-sum-exps of the positives, (..., n), each row's by a key of its own.

    Raises:
        TypeError, ValueError: `positive` is no int64 tensor of that shape, no column, or repeats among live rows.
    """
    n, column = scores.positive.shape[-1], scores.column_logsumexp
    if positive is None:
        return column[..., :n]
    index, m = _check.tensor("positive", positive, (torch.int64,)), column.shape[-1]
    lead = scores.positive.shape[:-1]
    if index.ndim == 0 or index.shape[-1] != n or not _fits(index.shape[:-1], lead):
        raise ValueError(f"positive: need shape (..., n), here {(*lead, n)}, got {tuple(index.shape)}")
    if index.device != column.device:
        raise ValueError(f"positive: need the device of the scores, {column.device}, got {index.device}")
    _check_positive(index, n, m)
    index = index.expand(*lead, n)
    if may_look(index) and may_look(live):
        # Rows that do not count may point anywhere: numbers that are no columns stand for them.
        ordered = torch.where(live, index, m + torch.arange(n)).sort(dim=-1).values
        if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
            raise ValueError("positive: need a key of its own for every query when two-sided, got one more than once")
    return column.gather(-1, index)


def _fits(shape: torch.Size, target: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, target) == target
    except RuntimeError:
        return False


def row_sum(values: Tensor) -> Tensor:
    """Sum over the last axis in an order that does not depend on the number of threads."""
    return _backend.sum_to_shape(values, torch.Size((*values.shape[:-1], 1))).squeeze(-1)


def row_mean(values: Tensor, live: Tensor) -> Tensor:
    """Mean over the live rows; 0 without any."""
    return row_sum(torch.where(live, values, 0.0)) / live.sum(dim=-1).clamp(min=1)


def or_nan(values: Tensor, live: Tensor) -> Tensor:
    """(...) values, NaN where no row is live."""
    return values.masked_fill(~live.any(dim=-1), torch.nan)


def mean_over_elements(values: Tensor, live: Tensor) -> Tensor:
    """Mean of (...) values over the batch elements that have a live row; NaN, with gradient 0, without any."""
    present = live.any(dim=-1)
    return _backend.sum_to_shape(torch.where(present, values, 0.0), torch.Size([])) / present.sum()


def mean_of_positives(rows: Rows) -> Tensor:
    """Mean score of the positives."""
    return row_mean(rows.positive, rows.live)


def n_negatives(rows: Rows) -> Tensor:
    """(...), how many negatives a live row has; at least 1, so that nothing is divided by 0 where no row is live."""
    return (rows.n_keys - 1).clamp(min=1)


def log_mean_exp_of_negatives(rows: Rows) -> Tensor:
    """log of the mean of exp S over all pairs of a live row and a key that is not its positive."""
    negatives = rows.negatives.masked_fill(~rows.live, -torch.inf)
    largest = negatives.detach().amax(dim=-1)
    largest = torch.where(largest == -torch.inf, 0.0, largest)
    total = row_sum(torch.exp(negatives - largest.unsqueeze(-1)))
    empty = total == 0
    log_total = torch.log(torch.where(empty, 1.0, total)).masked_fill(empty, -torch.inf)
    return largest + log_total - torch.log(rows.live.sum(dim=-1).clamp(min=1) * n_negatives(rows))
