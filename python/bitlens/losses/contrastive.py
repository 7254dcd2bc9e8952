"""InfoNCE and its normalised form."""

from __future__ import annotations

import math
import numbers
from typing import ClassVar

import torch
from torch import Tensor, nn

from bitlens import ops
from bitlens.kernels import _check
from bitlens.kernels._autocast import full_precision
from bitlens.losses import _rows
from bitlens.losses._rows import Bound


class InfoNCE(nn.Module):
    """mean_i [ log sum_j exp S_ij - S_{i, positive_i} ], S = q k' / temperature; value log K - loss, a lower bound.

    Two-sided, half of it is the same over the columns. Ceiling: log K of the K keys, two-sided the mean of log K and
    log n; with normalised rows also 2 / temperature. The bound holds when keys are drawn independently of each other.
    A row that is masked or whose positive is (a score of -inf) is left out; a batch element without rows adds nothing.

    Args:
        temperature: above 0. learn_temperature: whether `log_temperature` is a parameter.
        two_sided: queries also compete for the keys; every query then needs a key of its own.
        normalize: rows of query and key to length one.

    Reference: van den Oord, Li and Vinyals (2018), eq. 4, arXiv:1807.03748; Poole et al. (2019), sec. 2.3
    """

    bound: ClassVar[Bound] = "lower"
    log_temperature: Tensor

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        learn_temperature: bool = False,
        two_sided: bool = False,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        start = torch.tensor(math.log(_checked_temperature(temperature)))
        self.learn_temperature, self.two_sided, self.normalize = learn_temperature, two_sided, normalize
        self._fixed_temperature = None if learn_temperature else float(temperature)
        if learn_temperature:
            self.log_temperature = nn.Parameter(start)

    @property
    def temperature(self) -> float:
        """What the scores are divided by now."""
        return self._fixed_temperature or math.exp(float(self.log_temperature.detach()))

    def extra_repr(self) -> str:
        learned = ", learn_temperature=True" if self.learn_temperature else ""
        return f"temperature={self.temperature:g}{learned}, two_sided={self.two_sided}, normalize={self.normalize}"

    def ceiling_nats(self, n_queries: int, n_keys: int) -> float:
        """The largest value, whatever the critic; for scores with scale 1 and without biases where normalised."""
        _rows.require_count("n_queries", n_queries, 1)
        _rows.require_count("n_keys", n_keys, 1)
        ceiling = 0.5 * (math.log(n_queries) + math.log(n_keys)) if self.two_sided else math.log(n_keys)
        return min(ceiling, 2 / self.temperature) if self.normalize else ceiling

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
        """The loss, a mean over rows and leading axes.

        Args:
            query: (..., n, d), or the `InfoNCEScores` of any critic, with nothing beside it one-sided. Two-sided they
                need the `positive` that they were made with, since they do not tell whose column is whose.
            key, positive, scale, query_bias, key_bias: as in `ops.infonce_scores`. More keys than queries are extra
                negatives. A bias of -inf masks its row or key. Two-sided, no positive may repeat among the rows.
        """
        loss, _, live = self._parts(query, key, positive, scale, query_bias, key_bias)
        return _rows.mean_over_elements(loss, live)

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
        """The lower bound in nats, in the shape of the leading axes; NaN where no row is left."""
        loss, reference, live = self._parts(query, key, positive, scale, query_bias, key_bias)
        return _rows.or_nan(reference - loss, live)

    def _parts(
        self,
        query: Tensor | ops.InfoNCEScores,
        key: Tensor | None,
        positive: Tensor | None,
        scale: float | Tensor,
        query_bias: Tensor | None,
        key_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss and the log of the number of candidates, by leading axes, and which rows count."""
        beside_scores = isinstance(query, ops.InfoNCEScores)
        if beside_scores:
            if self.learn_temperature or self.temperature != 1.0 or self.normalize:
                raise ValueError(
                    "query: need a torch.Tensor where there is a temperature or rows are normalised, got InfoNCEScores"
                )
            if self.two_sided and positive is None:
                raise ValueError(
                    "positive: need the column of each row's positive beside InfoNCEScores when two-sided, since the "
                    "scores do not tell it, got None"
                )
        elif isinstance(query, Tensor) and isinstance(key, Tensor):
            if self.normalize:
                query, key = (nn.functional.normalize(rows, dim=-1) for rows in (query, key))
            scale = _rows.checked_scale(scale)
            if self.learn_temperature:
                scale = scale * torch.exp(-self.log_temperature).to(query)
            else:
                scale = scale / self.temperature
        made_with = None if beside_scores and self.two_sided else positive
        scores = _rows.scores_of(query, key, made_with, scale, query_bias, key_bias)
        rows = _rows.rows_of(scores, need_negatives=False)
        loss, reference = _rows.row_mean(rows.total - rows.positive, rows.live), torch.log(rows.n_keys)
        if not self.two_sided:
            return loss, reference, rows.live
        own = _rows.own_columns(positive, scores, rows.live)
        other = _rows.row_mean(own - rows.positive, rows.live)
        return 0.5 * (loss + other), 0.5 * (reference + torch.log(rows.n_queries)), rows.live


class NTXent(nn.Module):
    """mean over 2n rows of log sum_{j != i} exp(cos_ij / T) - cos_{i, other view of i} / T (SimCLR's loss).

    The value log n - loss is a lower bound on the information between the views. log(2n - 1) - loss, larger by up to
    log 2, is not known to be one: its proof needs independent candidates, and the two views of another item are not.
    Ceiling: min(log n, 2 / T).

    Reference: Chen et al. (2020), eq. 1, arXiv:2002.05709
    """

    bound: ClassVar[Bound] = "lower"

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = _checked_temperature(temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:g}"

    def ceiling_nats(self, n_pairs: int) -> float:
        """The largest value, whatever the encoder."""
        _rows.require_count("n_pairs", n_pairs, 1)
        return min(math.log(n_pairs), 2 / self.temperature)

    @full_precision
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss for views (..., n, d) of the same n items, normalised here; a mean over rows and leading axes."""
        return self._loss(first, second).mean()

    @full_precision
    def value(self, first: Tensor, second: Tensor) -> Tensor:
        """The lower bound in nats, in the shape of the leading axes."""
        loss = self._loss(first, second)
        return math.log(first.shape[-2]) - loss

    def _loss(self, first: Tensor, second: Tensor) -> Tensor:
        one = _check.tensor("first", first)
        two = _check.like("second", second, one, "first")
        _check.at_least_dims("first", one, 2, "(..., n, d)")
        if one.shape != two.shape or one.shape[-2] == 0:
            raise ValueError(f"second: need the shape of first, {tuple(one.shape)}, n > 0, got {tuple(two.shape)}")
        one, two = (nn.functional.normalize(view, dim=-1) for view in (one, two))
        views = torch.cat([one, two], dim=-2)
        # The kernel leaves a row's "positive" out of its sum; here that is the row itself, on the diagonal.
        others = ops.infonce_scores(views, views, scale=1 / self.temperature).row_logsumexp_negatives
        pairs = (one * two).sum(dim=-1) / self.temperature
        n = pairs.shape[-1]
        return _rows.row_sum(0.5 * (others[..., :n] + others[..., n:]) - pairs) / n


def _checked_temperature(temperature: object) -> float:
    if not isinstance(temperature, numbers.Real):
        raise TypeError(f"temperature: need a number, got {type(temperature).__name__}")
    if not 0.0 < float(temperature) < math.inf:
        raise ValueError(f"temperature: need a finite number above 0, got {temperature}")
    return float(temperature)
