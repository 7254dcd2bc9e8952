"""Scores of a joint critic with every pair's activations kept: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from bitlens.kernels._autocast import full_precision
from bitlens.kernels.infonce_scores.reference import finite_or_nan, logsumexp


@full_precision
def joint_critic_scores(
    query_hidden: Tensor,
    key_hidden: Tensor,
    positive: Tensor | None,
    hidden_weight: Tensor | None,
    hidden_bias: Tensor | None,
    output_weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """S_ij = w . relu(V relu(q_i + k_j) + d), or w . relu(q_i + k_j); its positives and log-sum-exps."""
    query_hidden, key_hidden, output_weight = (finite_or_nan(t) for t in (query_hidden, key_hidden, output_weight))
    pairs = torch.relu(query_hidden[..., :, None, :] + key_hidden[..., None, :, :])
    if hidden_weight is not None:
        pairs = pairs @ finite_or_nan(hidden_weight).mT[..., None, :, :]
        if hidden_bias is not None:
            pairs = pairs + finite_or_nan(hidden_bias)[..., None, None, :]
        pairs = torch.relu(pairs)
    scores = (pairs @ output_weight[..., None, :, None]).squeeze(-1)
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
