"""Estimates of mutual information that need sums of another function of the scores than exp."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from bitlens import ops
from bitlens.kernels import _check
from bitlens.losses import _rows
from bitlens.losses._rows import Bound
from bitlens.losses.from_exponentials import DonskerVaradhan


class JensenShannon(nn.Module):
    """Loss mean_i log(1 + exp(-a_i)) + mean_pairs log(1 + exp S): trains S towards log p(x, z) / (p(x) p(z)).

    The loss itself measures another divergence. The value in nats is read off the scores: with "nwj"
    1 + mean a_i - mean_pairs exp S, a lower bound; with "dv" the Donsker-Varadhan value, NOT a bound. No ceiling.

    Args:
        read_off: "nwj" or "dv".

    Reference: Nowozin et al. (2016), arXiv:1606.00709; Poole et al. (2019), arXiv:1905.06922
    """

    bound: Bound

    def __init__(self, *, read_off: str = "nwj") -> None:
        super().__init__()
        self.read_off = _check.choice("read_off", read_off, ("nwj", "dv"))
        self.bound = "lower" if read_off == "nwj" else "none"

    def ceiling_nats(self, n_queries: int, n_keys: int) -> float | None:
        """The largest value, whatever the critic: none."""
        return None

    def forward(
        self,
        query: Tensor | ops.PairwiseMapSums,
        key: Tensor | None = None,
        *,
        positive: Tensor | None = None,
        scale: float | Tensor = 1.0,
        query_bias: Tensor | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """The loss, a mean over leading axes.

        Args:
            query: (..., n, d), or the `PairwiseMapSums` of "softplus" of any critic.
            key, positive, scale, query_bias, key_bias: as in `ops.pairwise_map_sums`.
        """
        sums = _sums_of("softplus", None, query, key, positive, scale, query_bias, key_bias)
        live = sums.n_negatives.expand_as(sums.positive) > 0
        own = torch.where(live, sums.positive, 0.0)
        # torch's softplus drops terms below 2e-9; logsigmoid keeps them.
        joint = _rows.row_mean(-nn.functional.logsigmoid(own), live)
        return (joint + _mean_of_pairs(sums)).mean()

    def value(
        self,
        query: Tensor | ops.InfoNCEScores,
        key: Tensor | None = None,
        *,
        positive: Tensor | None = None,
        scale: float | Tensor = 1.0,
        query_bias: Tensor | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """The value in nats, in the shape of the leading axes; takes `InfoNCEScores` in place of query and key."""
        scores = _rows.scores_of(query, key, positive, scale, query_bias, key_bias)
        if self.read_off == "dv":
            return DonskerVaradhan().value(scores)
        _rows.require_negatives(scores.column_logsumexp.shape[-1])
        rows = _rows.rows_of(scores)
        return 1 + _rows.mean_of_positives(rows) - torch.exp(_rows.log_mean_exp_of_negatives(rows))


class SMILE(nn.Module):
    """mean a_i - log mean_pairs exp(clip(S, -clip, clip)): an estimate of less variance, NOT a bound, no ceiling.

    Clipping trades the variance of Donsker-Varadhan for a bias of either sign. The loss is minus the value; the
    published code trains with `JensenShannon` and reads this value off.

    Args:
        clip: nats, above 0; at most 64 in float32 and 600 in float64.

    Reference: Song and Ermon (2020), arXiv:1910.06222
    """

    bound: ClassVar[Bound] = "none"

    def __init__(self, clip: float = 5.0) -> None:
        super().__init__()
        if not float(clip) > 0.0:
            raise ValueError(f"clip: need a number above 0, got {clip}")
        self.clip = float(clip)

    def ceiling_nats(self, n_queries: int, n_keys: int) -> float | None:
        """The largest value, whatever the critic: none."""
        return None

    def forward(
        self,
        query: Tensor | ops.PairwiseMapSums,
        key: Tensor | None = None,
        *,
        positive: Tensor | None = None,
        scale: float | Tensor = 1.0,
        query_bias: Tensor | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """The loss, a mean over leading axes; arguments as in `value`."""
        value = self.value(query, key, positive=positive, scale=scale, query_bias=query_bias, key_bias=key_bias)
        return -value.mean()

    def value(
        self,
        query: Tensor | ops.PairwiseMapSums,
        key: Tensor | None = None,
        *,
        positive: Tensor | None = None,
        scale: float | Tensor = 1.0,
        query_bias: Tensor | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """The value in nats, in the shape of the leading axes.

        Args:
            query: (..., n, d), or the `PairwiseMapSums` of "clipped_exp" of any critic, with limit = clip.
            key, positive, scale, query_bias, key_bias: as in `ops.pairwise_map_sums`.
        """
        sums = _sums_of("clipped_exp", self.clip, query, key, positive, scale, query_bias, key_bias)
        live = sums.n_negatives.expand_as(sums.positive) > 0
        return _rows.row_mean(sums.positive, live) - torch.log(_mean_of_pairs(sums))


def _sums_of(
    kind: str,
    limit: float | None,
    query: Tensor | ops.PairwiseMapSums,
    key: Tensor | None,
    positive: Tensor | None,
    scale: float | Tensor,
    query_bias: Tensor | None,
    key_bias: Tensor | None,
) -> ops.PairwiseMapSums:
    """The sums as they came from a critic, or those of query and key."""
    if isinstance(query, ops.PairwiseMapSums):
        _rows.refuse_beside_scores("PairwiseMapSums", key, scale, query_bias, key_bias)
        return query
    pair = _rows.pair_of("PairwiseMapSums", query, key)
    _rows.require_negatives(pair[1].shape[-2] if pair[1].ndim > 1 else 2)
    sums = ops.pairwise_map_sums(
        *pair,
        map=kind,
        limit=limit,
        positive=positive,
        scale=scale,
        query_bias=query_bias,
        key_bias=key_bias,
    )
    if sums.positive.shape[-1] == 0:
        raise ValueError(f"query: need at least one row, got shape {tuple(pair[0].shape)}")
    return sums


def _mean_of_pairs(sums: ops.PairwiseMapSums) -> Tensor:
    count = sums.n_negatives.expand_as(sums.row_sum_negatives)
    return _rows.row_sum(sums.row_sum_negatives) / _rows.row_sum(count)
