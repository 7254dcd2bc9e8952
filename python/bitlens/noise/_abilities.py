"""What a noise model may offer beyond its three methods; a model of the user's own need not."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from bitlens.noise.base import ScoreFeatures
from bitlens.ops import InfoNCEScores


@runtime_checkable
class HasFeatures(Protocol):
    """Likelihoods of all pairs in bilinear form."""

    def score_features(self, measured: Tensor, mean: Tensor) -> ScoreFeatures: ...


@runtime_checkable
class HasPairs(Protocol):
    """Likelihoods of all pairs; `fast_pairs` without one array element for each pair and pixel."""

    @property
    def fast_pairs(self) -> bool: ...

    def log_prob_pairs(self, measured: Tensor, mean: Tensor) -> Tensor: ...


@runtime_checkable
class HasLimits(Protocol):
    """Says which measurements stand at an end of the sensor's scale."""

    def at_limit(self, measured: Tensor) -> Tensor: ...


@runtime_checkable
class HasScoreRows(Protocol):
    """Row and column statistics of the likelihoods of all pairs, which are never kept."""

    def score_rows(self, measured: Tensor, mean: Tensor, *, positive: Tensor | None = None) -> InfoNCEScores: ...


@runtime_checkable
class HasScoresOutside(Protocol):
    """Positives, and log-sum-exps of exact likelihoods over the pairs of different groups: (n,) each.

    `row_bias` is added to every score of a row; None where the model has no way that keeps no matrix.
    """

    def scores_outside(
        self, measured: Tensor, mean: Tensor, groups: Tensor, *, row_bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor] | None: ...


@runtime_checkable
class HasMoments(Protocol):
    """Expectation and variance of a measurement, for closed forms."""

    def expected(self, mean: Tensor) -> Tensor: ...

    def variance(self, mean: Tensor) -> Tensor: ...


@runtime_checkable
class ChecksMeasured(Protocol):
    """Says which measurements are possible."""

    def check_measured(self, measured: Tensor) -> None: ...


@runtime_checkable
class ChecksMean(Protocol):
    """Says which means are possible."""

    def check_mean(self, mean: Tensor) -> None: ...
