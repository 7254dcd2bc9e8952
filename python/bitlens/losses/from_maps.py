"""Estimates of mutual information that need sums of another function of the scores than exp.

A row that is masked, whose positive is (a score of -inf), or to which masks leave no negative, is left out; a batch
element without rows adds nothing to the loss and has the value NaN.
"""

from __future__ import annotations

import math
import numbers
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from bitlens import ops
from bitlens.kernels import _check
from bitlens.kernels._autocast import full_precision
from bitlens.kernels.pairwise_map_sums.op import LARGEST_LIMIT
from bitlens.losses import _rows
from bitlens.losses._rows import Bound
from bitlens.losses.from_exponentials import DonskerVaradhan


class JensenShannon(nn.Module):
    """Loss mean_i log(1 + exp(-a_i)) + mean_pairs log(1 + exp S): trains S towards log p(x, z) / (p(x) p(z)).

    The loss itself measures another divergence. The value in nats is read off the scores: with "nwj"
    1 + mean a_i - mean_pairs exp S, a lower bound; with "dv" the Donsker-Varadhan value, NOT a bound. No ceiling.
    The loss charges a score S of a negative with S, both read-offs with exp S: a critic that overfits one batch gives
    a few negatives scores of tens of nats and reads off values far below 0. Read off on data it was not trained on.

    Args:
        read_off: "nwj" or "dv".

    Reference: Nowozin et al. (2016), arXiv:1606.00709; Poole et al. (2019), arXiv:1905.06922
    """

    bound: Bound

    def __init__(self, *, read_off: str = "nwj") -> None:
        super().__init__()
        self.read_off = _check.choice("read_off", read_off, ("nwj", "dv"))
        self.bound = "lower" if read_off == "nwj" else "none"

    def extra_repr(self) -> str:
        return f"read_off={self.read_off!r}"

    def ceiling_nats(self, n_queries: int, n_keys: int) -> float | None:
        """The largest value, whatever the critic: none."""
        return None

    @full_precision
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
        # torch's softplus drops terms below 2e-9; logsigmoid keeps them.
        joint = _rows.row_mean(-nn.functional.logsigmoid(sums.positive), sums.live)
        return _rows.mean_over_elements(joint + _mean_of_pairs(sums), sums.live)

    @full_precision
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
        rows = _rows.rows_of(scores, need_negatives=True)
        value = 1 + _rows.mean_of_positives(rows) - torch.exp(_rows.log_mean_exp_of_negatives(rows))
        return _rows.or_nan(value, rows.live)


class SMILE(nn.Module):
    """mean a_i - log mean_pairs exp(clip(S, -clip, clip)): an estimate of less variance, NOT a bound, no ceiling.

    Clipping trades the variance of Donsker-Varadhan for a bias of either sign. It also takes the gradient of what is
    clipped away, so that minus the value has no minimum. As in the published code, the loss therefore is minus the
    value with the gradient of `JensenShannon`, at the cost of a second pass over the pairs.

    Args:
        clip: nats, above 0; at most 64 in float32 and 600 in float64.

    Reference: Song and Ermon (2020), arXiv:1910.06222
    """

    bound: ClassVar[Bound] = "none"

    def __init__(self, clip: float = 5.0) -> None:
        super().__init__()
        self.clip = _checked_clip(clip)

    def extra_repr(self) -> str:
        return f"clip={self.clip:g}"

    def ceiling_nats(self, n_queries: int, n_keys: int) -> float | None:
        """The largest value, whatever the critic: none."""
        return None

    @full_precision
    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        *,
        positive: Tensor | None = None,
        scale: float | Tensor = 1.0,
        query_bias: Tensor | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """The loss, a mean over leading axes.

        Args:
            query: (..., n, d); `PairwiseMapSums` of the clipped map lack what the gradient is made of (TypeError).
            key, positive, scale, query_bias, key_bias: as in `ops.pairwise_map_sums`.
        """
        if isinstance(query, ops.PairwiseMapSums):
            raise TypeError(
                "query: need a torch.Tensor to train, since the gradient is that of JensenShannon, got PairwiseMapSums "
                "(`value` takes them)"
            )
        with torch.no_grad():
            value, live = self._value(query, key, positive, scale, query_bias, key_bias)
        arguments = {"positive": positive, "scale": scale, "query_bias": query_bias, "key_bias": key_bias}
        trained: Tensor = JensenShannon()(query, key, **arguments)
        return trained - trained.detach() - _rows.mean_over_elements(value, live)

    @full_precision
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
        """The value in nats, in the shape of the leading axes, with its own gradient.

        Args:
            query: (..., n, d), or the `PairwiseMapSums` of "clipped_exp" of any critic, with limit = clip.
            key, positive, scale, query_bias, key_bias: as in `ops.pairwise_map_sums`.
        """
        return _rows.or_nan(*self._value(query, key, positive, scale, query_bias, key_bias))

    def _value(
        self,
        query: Tensor | ops.PairwiseMapSums,
        key: Tensor | None,
        positive: Tensor | None,
        scale: float | Tensor,
        query_bias: Tensor | None,
        key_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The value, and which rows count."""
        if isinstance(query, Tensor) and self.clip > LARGEST_LIMIT.get(query.dtype, math.inf):
            raise ValueError(f"clip: need at most {LARGEST_LIMIT[query.dtype]:g} in {query.dtype}, got {self.clip:g}")
        sums = _sums_of("clipped_exp", self.clip, query, key, positive, scale, query_bias, key_bias)
        return _rows.row_mean(sums.positive, sums.live) - torch.log(_mean_of_pairs(sums)), sums.live


def _checked_clip(clip: object) -> float:
    if not isinstance(clip, numbers.Real):
        raise TypeError(f"clip: need a number, got {type(clip).__name__}")
    largest = max(LARGEST_LIMIT.values())
    if not 0.0 < float(clip) <= largest:
        raise ValueError(f"clip: need a number above 0 and at most {largest:g}, got {clip}")
    return float(clip)


class _Sums(NamedTuple):
    """(..., n) each, zeros where `live` is False."""

    positive: Tensor
    row_sum_negatives: Tensor
    n_negatives: Tensor
    live: Tensor


def _sums_of(
    kind: str,
    limit: float | None,
    query: Tensor | ops.PairwiseMapSums,
    key: Tensor | None,
    positive: Tensor | None,
    scale: float | Tensor,
    query_bias: Tensor | None,
    key_bias: Tensor | None,
) -> _Sums:
    """The sums as they came from a critic, or those of query and key."""
    if isinstance(query, ops.PairwiseMapSums):
        _rows.refuse_beside_scores("PairwiseMapSums", key, positive, scale, query_bias, key_bias)
        return _live_sums(_of_the_map(query, kind, limit or 0.0))
    pair = _rows.pair_of("PairwiseMapSums", query, key)
    _rows.require_negatives(pair[1].shape[-2] if pair[1].ndim > 1 else 2)
    sums = ops.pairwise_map_sums(
        *pair,
        map=kind,
        limit=limit,
        positive=positive,
        scale=_rows.checked_scale(scale),
        query_bias=query_bias,
        key_bias=key_bias,
    )
    return _live_sums(sums)


def _of_the_map(sums: ops.PairwiseMapSums, kind: str, limit: float) -> ops.PairwiseMapSums:
    """The sums when they are of this map and have negatives; ValueError otherwise, NaN where values are not seen."""
    right = sums.limit == limit
    if not _rows.may_look(right):
        wrong = torch.where(right, 0.0, torch.nan).to(sums.row_sum_negatives)
        return sums._replace(
            row_sum_negatives=sums.row_sum_negatives + (wrong if wrong.ndim == 0 else wrong[..., None])
        )
    if not bool(right.all()):
        made = [f"{value:g}" for value in sums.limit.unique().tolist()]
        raise ValueError(
            f"query: need PairwiseMapSums of {kind!r}, whose limit is {limit:g}, got those with limit {', '.join(made)}"
        )
    none = sums.n_negatives == 0
    if _rows.may_look(none) and bool(none.all()) and bool((sums.positive != -torch.inf).any()):
        raise ValueError("key: need at least 2 keys, so that rows have negatives, got PairwiseMapSums without any")
    return sums


def _live_sums(sums: ops.PairwiseMapSums) -> _Sums:
    _rows.require_rows(sums.positive)
    count = sums.n_negatives.expand_as(sums.positive)
    live = (count > 0) & (sums.positive.detach() != -torch.inf)
    own, total, count = (torch.where(live, part, 0.0) for part in (sums.positive, sums.row_sum_negatives, count))
    return _Sums(own, total, count, live)


def _mean_of_pairs(sums: _Sums) -> Tensor:
    """Mean of the map over the pairs of a live row and a negative; 0 without any."""
    return _rows.row_sum(sums.row_sum_negatives) / _rows.row_sum(sums.n_negatives).clamp(min=1)
