"""Bounds and estimates of mutual information that need sums of exp S only, which log-sum-exps give exactly.

In all of them S_ij scores query i with key j, a_i = S_{i, positive_i}, and pairs are those with j != positive_i. A row
that is masked, whose positive is (a score of -inf), or to which masks leave no negative, is left out; a batch element
without rows adds nothing to the loss and has the value NaN.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from bitlens import ops
from bitlens.kernels import _check
from bitlens.kernels._autocast import full_precision
from bitlens.losses import _rows
from bitlens.losses._rows import Bound, Rows


class _FromScores(nn.Module):
    """A loss made of row statistics and nothing else."""

    bound: ClassVar[Bound]
    _sign: ClassVar[float] = -1.0  # of the value in the loss

    @full_precision
    def forward(
        self,
        query: Tensor | ops.InfoNCEScores,
        key: Tensor | None = None,
        *,
        positive: Tensor | None = None,
        scale: float | Tensor = 1.0,
        query_bias: Tensor | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """The loss, a mean over leading axes; arguments as in `InfoNCE`."""
        rows = _checked_rows(query, key, positive, scale, query_bias, key_bias)
        return self._sign * _rows.mean_over_elements(self._value(rows), rows.live)

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
        """The value in nats, in the shape of the leading axes; ValueError with a single key."""
        rows = _checked_rows(query, key, positive, scale, query_bias, key_bias)
        return _rows.or_nan(self._value(rows), rows.live)

    @abstractmethod
    def _value(self, rows: Rows) -> Tensor: ...

    def ceiling_nats(self, n_queries: int, n_keys: int) -> float | None:
        """The largest value, whatever the critic: none here."""
        return None


class NWJ(_FromScores):
    """mean a_i - mean_pairs exp(S - 1): a lower bound, without ceiling, tight at S = 1 + log p(x, z) / (p(x) p(z)).

    Its variance grows like e^I. The loss is minus the value.

    Reference: Nguyen, Wainwright and Jordan (2010), arXiv:0809.0853; Poole et al. (2019), sec. 2.2, arXiv:1905.06922
    """

    bound: ClassVar[Bound] = "lower"

    def _value(self, rows: Rows) -> Tensor:
        return _rows.mean_of_positives(rows) - torch.exp(_rows.log_mean_exp_of_negatives(rows) - 1)


class DonskerVaradhan(_FromScores):
    """mean a_i - log mean_pairs exp S, the estimate that MINE maximises: NOT a bound, and without ceiling.

    The log of a mean over a finite batch lies below the log of the expectation on average, so the value can exceed the
    information. Its gradient is biased in small batches for the same reason. The loss is minus the value.

    Reference: Belghazi et al. (2018), arXiv:1801.04062; Poole et al. (2019), sec. 2.2
    """

    bound: ClassVar[Bound] = "none"

    def _value(self, rows: Rows) -> Tensor:
        return _rows.mean_of_positives(rows) - _rows.log_mean_exp_of_negatives(rows)


class LeaveOneOut(_FromScores):
    """mean_i [ a_i - log mean_{j != positive_i} exp S_ij ]: an upper bound when S is log p(query given key).

    A term that depends on the query alone cancels. With any other critic it is NOT a bound. The loss is the value
    itself: minimise it to keep information out.

    Reference: Poole et al. (2019), sec. 2.5, arXiv:1905.06922
    """

    bound: ClassVar[Bound] = "upper"
    _sign: ClassVar[float] = 1.0

    def _value(self, rows: Rows) -> Tensor:
        return _rows.row_mean(rows.positive - _log_mean_of_negatives(rows), rows.live)


class Interpolated(nn.Module):
    """1 + mean[a_i - log(alpha m_i + (1 - alpha) q_i)] - mean[m'_i / (alpha m'_i + (1 - alpha) q_i)]: a lower bound.

    q_i is a baseline for query i, p(query_i) in the units of exp S; m'_i the mean of exp S over the K - 1 negatives of
    a row; m_i that of its positive and K - 2 negatives, each counted with weight (K - 2) / (K - 1), which by the
    concavity of log lies below the average of Poole's bound over the negative left out. So alpha = 1 lies below the
    average of InfoNCE over the K - 1 ways to leave one negative out, and alpha = 0 is NWJ with the baseline. Ceiling:
    log((K - 1) / alpha) + 1, without the 1 at alpha = 1. The loss is minus the value.

    Args:
        alpha: between 0 and 1.

    Reference: Poole et al. (2019), sec. 2.4, arXiv:1905.06922
    """

    bound: ClassVar[Bound] = "lower"

    def __init__(self, alpha: float) -> None:
        super().__init__()
        if not 0.0 <= float(alpha) <= 1.0:
            raise ValueError(f"alpha: need a number from 0 to 1, got {alpha}")
        self.alpha = float(alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}"

    def ceiling_nats(self, n_queries: int, n_keys: int) -> float | None:
        """The largest value, whatever critic and baseline; None at alpha = 0."""
        _rows.require_count("n_queries", n_queries, 1)
        _rows.require_count("n_keys", n_keys, 2)
        if self.alpha == 0.0:
            return None
        return math.log((n_keys - 1) / self.alpha) + (1.0 if self.alpha < 1.0 else 0.0)

    @full_precision
    def forward(
        self,
        query: Tensor | ops.InfoNCEScores,
        key: Tensor | None = None,
        *,
        log_baseline: Tensor | None = None,
        positive: Tensor | None = None,
        scale: float | Tensor = 1.0,
        query_bias: Tensor | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """The loss, a mean over leading axes.

        Args:
            log_baseline: log q_i, (..., n) in nats; may be left out when alpha is 1.
            query, key, positive, scale, query_bias, key_bias: as in `InfoNCE`.
        """
        rows = _checked_rows(query, key, positive, scale, query_bias, key_bias)
        return -_rows.mean_over_elements(self._value(rows, log_baseline), rows.live)

    @full_precision
    def value(
        self,
        query: Tensor | ops.InfoNCEScores,
        key: Tensor | None = None,
        *,
        log_baseline: Tensor | None = None,
        positive: Tensor | None = None,
        scale: float | Tensor = 1.0,
        query_bias: Tensor | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """The lower bound in nats, in the shape of the leading axes; ValueError with a single key."""
        rows = _checked_rows(query, key, positive, scale, query_bias, key_bias)
        return _rows.or_nan(self._value(rows, log_baseline), rows.live)

    def _value(self, rows: Rows, log_baseline: object) -> Tensor:
        log_q = None
        if self.alpha < 1.0:
            if log_baseline is None:
                raise ValueError(f"log_baseline: need a tensor (..., n) with alpha = {self.alpha}, got None")
            log_q = torch.where(rows.live, _per_row("log_baseline", log_baseline, rows), 0.0)
        n_negatives = _rows.n_negatives(rows).unsqueeze(-1)
        log_other = _log_mean_of_negatives(rows)  # m'
        # (K - 2) m' is the sum of exp S over K - 2 negatives; with two keys nothing is left of it.
        log_own = torch.logaddexp(rows.positive, log_other + torch.log(n_negatives - 1)) - torch.log(n_negatives)
        joint = _rows.row_mean(rows.positive - self._mixed(log_own, log_q), rows.live)
        return 1 + joint - _rows.row_mean(torch.exp(log_other - self._mixed(log_other, log_q)), rows.live)

    def _mixed(self, log_mean: Tensor, log_q: Tensor | None) -> Tensor:
        """log(alpha exp(log_mean) + (1 - alpha) q)."""
        if log_q is None:
            return log_mean
        if self.alpha == 0.0:
            return log_q
        return torch.logaddexp(log_mean + math.log(self.alpha), log_q + math.log1p(-self.alpha))


class FLO(nn.Module):
    """1 - mean_i [ u_i + exp(-u_i) mean_{j != positive_i} exp(S_ij - a_i) ]: a lower bound, without ceiling.

    u_i = u(query_i, its positive key) is a second critic, best at minus the log density ratio of the pair. It must not
    look at the negatives: a u fitted to this very batch gives the leave-one-out value, which is no lower bound. The
    loss is minus the value.

    Reference: Guo et al. (2021), arXiv:2107.01131
    """

    bound: ClassVar[Bound] = "lower"

    def ceiling_nats(self, n_queries: int, n_keys: int) -> float | None:
        """The largest value, whatever the critics: none."""
        return None

    @full_precision
    def forward(
        self,
        query: Tensor | ops.InfoNCEScores,
        key: Tensor | None = None,
        *,
        u: Tensor,
        positive: Tensor | None = None,
        scale: float | Tensor = 1.0,
        query_bias: Tensor | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """The loss, a mean over leading axes; u (..., n) in nats, the others as in `InfoNCE`."""
        rows = _checked_rows(query, key, positive, scale, query_bias, key_bias)
        return -_rows.mean_over_elements(self._value(rows, u), rows.live)

    @full_precision
    def value(
        self,
        query: Tensor | ops.InfoNCEScores,
        key: Tensor | None = None,
        *,
        u: Tensor,
        positive: Tensor | None = None,
        scale: float | Tensor = 1.0,
        query_bias: Tensor | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """The lower bound in nats, in the shape of the leading axes; ValueError with a single key."""
        rows = _checked_rows(query, key, positive, scale, query_bias, key_bias)
        return _rows.or_nan(self._value(rows, u), rows.live)

    def _value(self, rows: Rows, u: object) -> Tensor:
        own = torch.where(rows.live, _per_row("u", u, rows), 0.0)
        excess = torch.exp(_log_mean_of_negatives(rows) - rows.positive - own)
        return 1 - _rows.row_mean(own + excess, rows.live)


def _checked_rows(
    query: Tensor | ops.InfoNCEScores,
    key: Tensor | None,
    positive: Tensor | None,
    scale: float | Tensor,
    query_bias: Tensor | None,
    key_bias: Tensor | None,
) -> Rows:
    scores = _rows.scores_of(query, key, positive, scale, query_bias, key_bias)
    _rows.require_negatives(scores.column_logsumexp.shape[-1])
    return _rows.rows_of(scores, need_negatives=True)


def _log_mean_of_negatives(rows: Rows) -> Tensor:
    """log of the mean of exp S over each row's negatives."""
    return rows.negatives - torch.log(_rows.n_negatives(rows)).unsqueeze(-1)


def _per_row(name: str, values: object, rows: Rows) -> Tensor:
    checked = _check.like(name, values, rows.positive, "query")
    if checked.ndim == 0 or checked.shape[-1] != rows.positive.shape[-1]:
        n = rows.positive.shape[-1]
        raise ValueError(f"{name}: need shape (..., n) with {n} at the end, got {tuple(checked.shape)}")
    return checked
