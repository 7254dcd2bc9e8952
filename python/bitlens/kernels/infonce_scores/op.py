"""Public signature, checks and dispatch of `infonce_scores`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from bitlens.kernels import _check
from bitlens.kernels.infonce_scores import reference


class InfoNCEScores(NamedTuple):
    """Row and column statistics of a score matrix that is never kept."""

    positive: Tensor
    row_logsumexp: Tensor
    row_logsumexp_negatives: Tensor
    column_logsumexp: Tensor


def infonce_scores(
    query: Tensor,
    key: Tensor,
    *,
    positive: Tensor | None = None,
    scale: float | Tensor = 1.0,
    query_bias: Tensor | None = None,
    key_bias: Tensor | None = None,
) -> InfoNCEScores:
    scale = _check.like("scale", scale, query, "query")
    return InfoNCEScores(*reference.infonce_scores(query, key, positive, scale, query_bias, key_bias))
