"""Contrastive scores with the full score matrix: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from bitlens.kernels._autocast import full_precision


@full_precision
def infonce_scores(
    query: Tensor,
    key: Tensor,
    positive: Tensor | None,
    scale: Tensor,
    query_bias: Tensor | None,
    key_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """S_ij = scale q_i . k_j + query_bias_i + key_bias_j; its positives and log-sum-exps by row and column."""
    query, key, scale = finite_or_nan(query), finite_or_nan(key), finite_or_nan(scale)
    scores = scale[..., None, None] * (query @ key.mT)
    if query_bias is not None:
        scores = scores + bias_or_nan(query_bias)[..., :, None]
    if key_bias is not None:
        scores = scores + bias_or_nan(key_bias)[..., None, :]
    if positive is None:
        positive = torch.arange(scores.shape[-2], device=scores.device)
    scores = scores.expand(torch.broadcast_shapes(scores.shape, (*positive.shape, 1)))
    index = positive.expand(scores.shape[:-1]).unsqueeze(-1)
    is_positive = torch.arange(scores.shape[-1], device=scores.device) == index
    return (
        scores.gather(-1, index).squeeze(-1),
        logsumexp(scores, -1),
        logsumexp(scores.masked_fill(is_positive, -torch.inf), -1),
        logsumexp(scores, -2),
    )


def finite_or_nan(value: Tensor) -> Tensor:
    """An infinite input is undefined, whatever sign its products would get."""
    return value.masked_fill(value.isinf(), torch.nan)


def bias_or_nan(value: Tensor) -> Tensor:
    """A bias of -inf masks its row or column; +inf is undefined."""
    return value.masked_fill(value == torch.inf, torch.nan)


def logsumexp(scores: Tensor, dim: int) -> Tensor:
    """-inf with zero gradient where every score is -inf (torch.logsumexp has gradient NaN there)."""
    empty = (scores == -torch.inf).all(dim=dim, keepdim=True)
    total = torch.logsumexp(scores.masked_fill(empty, 0.0), dim=dim)
    return total.masked_fill(empty.squeeze(dim), -torch.inf)
