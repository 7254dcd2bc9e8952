"""All pairs by broadcasting the elementwise definition, some rows at a time: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from bitlens.kernels.poisson_gaussian_log_prob import reference

_CHUNK = 2_000_000  # pairs times pixels at a time; each takes some hundred numbers of the explicit sum


def poisson_gaussian_log_prob_pairs(
    measured: Tensor, mean: Tensor, gain: Tensor, offset: Tensor, read_std: Tensor
) -> Tensor:
    """measured (..., n, pixels), mean (..., m, pixels), sensor (..., pixels) -> (..., n, m)."""
    chunk = max(1, _CHUNK // max(1, mean.numel()))
    sensor = [tensor.to(measured.dtype)[..., None, None, :] for tensor in (gain, offset, read_std)]
    parts = [
        reference.poisson_gaussian_log_prob(rows[..., :, None, :], mean[..., None, :, :], *sensor).sum(-1)
        for rows in measured.split(chunk, dim=-2)
    ]
    return torch.cat(parts, dim=-2)
