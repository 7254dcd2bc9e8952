"""Row sums of a pointwise map with the full score matrix: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from bitlens.kernels._autocast import full_precision
from bitlens.kernels.infonce_scores.reference import bias_or_nan, finite_or_nan


@full_precision
def pairwise_map_sums(
    query: Tensor,
    key: Tensor,
    positive: Tensor | None,
    scale: Tensor,
    query_bias: Tensor | None,
    key_bias: Tensor | None,
    kind: str,
    limit: float,
) -> tuple[Tensor, Tensor]:
    """Positives, and sums over j != positive_i of softplus(S_ij) or exp(clip(S_ij)); a masked pair adds nothing."""
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
    left_out = (torch.arange(scores.shape[-1], device=scores.device) == index) | (scores == -torch.inf)
    kept = scores.masked_fill(left_out, 0.0)
    if kind == "softplus":  # torch's own drops exp(-x) above its threshold; logsigmoid never does
        mapped = -torch.nn.functional.logsigmoid(-kept)
    else:  # the gradient of a clamped NaN would be 0
        mapped = torch.where(kept.isnan(), kept, kept.clamp(-limit, limit)).exp()
    return scores.gather(-1, index).squeeze(-1), mapped.masked_fill(left_out, 0.0).sum(dim=-1)
