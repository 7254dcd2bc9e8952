"""Contrastive scores with the full score matrix: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def infonce_scores(
    query: Tensor,
    key: Tensor,
    positive: Tensor | None,
    scale: Tensor,
    query_bias: Tensor | None,
    key_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """S_ij = scale q_i . k_j + query_bias_i + key_bias_j; its positives and log-sum-exps by row and column."""
    scores = scale[..., None, None] * (query @ key.mT)
    if query_bias is not None:
        scores = scores + query_bias[..., :, None]
    if key_bias is not None:
        scores = scores + key_bias[..., None, :]
    if positive is None:
        positive = torch.arange(scores.shape[-2], device=scores.device)
    index = positive.expand(scores.shape[:-1]).unsqueeze(-1)
    is_positive = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter(-1, index, True)
    negatives = scores.masked_fill(is_positive, -torch.inf)
    return (
        scores.gather(-1, index).squeeze(-1),
        torch.logsumexp(scores, dim=-1),
        torch.logsumexp(negatives, dim=-1),
        torch.logsumexp(scores, dim=-2),
    )
