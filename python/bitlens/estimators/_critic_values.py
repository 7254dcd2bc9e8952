"""Held-out values of a critic and what each pair adds to them: arXiv 1905.06922, 2107.01131, and 1910.06222 (SMILE).

All but SMILE are lower bounds in expectation, for any critic and setting that the pairs had no part in. The plug-in
Donsker-Varadhan value is none, since the log of a mean over few pairs is too small, and is not among them.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bitlens import losses, ops
from bitlens.estimators._critic_models import Scorer, SeparableScores

METHODS = ("infonce", "nwj", "donsker_varadhan", "smile", "jensen_shannon", "interpolated", "flo")
# Methods that need another sum than that of exp S, which there is for separable critics.
OF_MAPS = ("smile", "jensen_shannon")
BOUND: dict[str, Literal["lower", "estimate"]] = {
    **dict.fromkeys(METHODS, "lower"),
    "smile": "estimate",
}
# Weights of the leave-one-out marginal against the constant baseline: 1 is InfoNCE, towards 0 it is NWJ.
ALPHAS = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4)
SMILE_CLIP = 5.0


class Setting(NamedTuple):
    """What is chosen on validation rows: the log of the normaliser of exp S, nats, and the weight of `interpolated`."""

    log_normaliser: float
    alpha: float


class Held(NamedTuple):
    """A value in nats on pairs that the critic has not seen, its influence per pair (mean 0), and its ceiling.

    `effective_rows`: (sum of row means)^2 / sum of their squares of exp S, where the value is a mean of exp S.
    """

    value: float
    influence: Tensor
    ceiling: float | None
    effective_rows: float | None


def log_mean_exp_of_pairs(scores: ops.InfoNCEScores) -> float:
    """log of the mean of exp S over all pairs that are not positives."""
    n = scores.positive.shape[0]
    return float(torch.logsumexp(scores.row_logsumexp_negatives, 0)) - math.log(n * (n - 1))


def held_out_value(method: str, scorer: Scorer, setting: Setting) -> float:
    """The value alone, nats."""
    return value_of_scores(method, scorer, scorer.scores(), setting)


def value_of_scores(method: str, scorer: Scorer, scores: ops.InfoNCEScores, setting: Setting) -> float:
    """The value alone, nats, with the scores of the scorer at hand."""
    if method == "smile":
        return float(losses.SMILE(SMILE_CLIP).value(_map_sums(scorer)))
    return _value(method, scores, scorer.row_shift, setting)


def held_out(method: str, scorer: Scorer, setting: Setting) -> Held:
    """The value with the influence of each pair: as a row, and as the negative of all other rows."""
    scores = scorer.scores()
    n = scores.positive.shape[0]
    if method == "smile":
        sums, transposed = _map_sums(scorer), _map_sums(scorer, transposed=True)
        value = float(losses.SMILE(SMILE_CLIP).value(sums))
        by_row, by_column = (part.row_sum_negatives / (n - 1) for part in (sums, transposed))
        total = by_row.mean()
        return Held(value, _centred(sums.positive - (by_row + by_column) / total), None, None)
    value = _value(method, scores, scorer.row_shift, setting)
    rows, log_weight = _rows(method, scores, scorer.row_shift, setting)
    weighted = scorer.scores(row_weight=log_weight)
    # What the pair adds to other rows as their negative, without what it adds to its own.
    column = (torch.exp(weighted.column_logsumexp) - torch.exp(weighted.positive)).clamp(min=0.0)
    effective = None
    if method != "infonce":
        share = torch.softmax(scores.row_logsumexp_negatives, 0)
        effective = float(1.0 / share.square().sum())
    return Held(value, _centred(rows - column), ceiling(method, n, setting), effective)


def ceiling(method: str, n: int, setting: Setting) -> float | None:
    """The most that `n` pairs can give, nats; None without such a limit."""
    if method == "infonce":
        return losses.InfoNCE().ceiling_nats(n, n)
    return losses.Interpolated(setting.alpha).ceiling_nats(n, n) if method == "interpolated" else None


def _value(method: str, scores: ops.InfoNCEScores, row_shift: Tensor | None, setting: Setting) -> float:
    if method == "infonce":
        return float(losses.InfoNCE().value(scores))
    if method == "interpolated":
        baseline = torch.full_like(scores.positive, setting.log_normaliser)
        return float(losses.Interpolated(setting.alpha).value(scores, log_baseline=baseline))
    if method == "flo":
        return float(losses.FLO().value(scores, u=_second_critic(scores, row_shift, setting)))
    # NWJ is tight at 1 + the log ratio: with the normaliser of other rows it bounds from below for any critic.
    shift = 1.0 - setting.log_normaliser
    return float(losses.NWJ().value(ops.InfoNCEScores(*(part + shift for part in scores))))


def _rows(method: str, scores: ops.InfoNCEScores, row_shift: Tensor | None, setting: Setting) -> tuple[Tensor, Tensor]:
    """r_i, what row i adds, and log w_i, by how much r_i falls with the sum of exp S over its negatives."""
    n = scores.positive.shape[0]
    own, log_mean = scores.positive, scores.row_logsumexp_negatives - math.log(n - 1)
    if method == "infonce":
        return own - scores.row_logsumexp, -scores.row_logsumexp
    if method == "interpolated":
        alpha, log_q = setting.alpha, setting.log_normaliser
        log_own = torch.logaddexp(own, log_mean + math.log(n - 2)) - math.log(n - 1)
        mixed_own, mixed_other = _mixed(log_own, alpha, log_q), _mixed(log_mean, alpha, log_q)
        rows = own - mixed_own - torch.exp(log_mean - mixed_other)
        log_weight = math.log(alpha) - mixed_own + math.log((n - 2) / (n - 1))
        if alpha < 1.0:
            log_weight = torch.logaddexp(log_weight, math.log1p(-alpha) + log_q - 2.0 * mixed_other)
        return rows, log_weight - math.log(n - 1)
    if method == "flo":
        u = _second_critic(scores, row_shift, setting)
        return -u - torch.exp(log_mean - own - u), -u - own - math.log(n - 1)
    log_weight = torch.full_like(own, -setting.log_normaliser - math.log(n - 1))
    return own - torch.exp(log_mean - setting.log_normaliser), log_weight


def _second_critic(scores: ops.InfoNCEScores, row_shift: Tensor | None, setting: Setting) -> Tensor:
    """u of FLO: minus the log ratio of the pair, as the first critic has it, with what was learned beside it."""
    assert row_shift is not None
    return setting.log_normaliser + row_shift - scores.positive


def _mixed(log_mean: Tensor, alpha: float, log_q: float) -> Tensor:
    if alpha == 1.0:
        return log_mean
    base = log_mean.new_full((), log_q + math.log1p(-alpha))
    return torch.logaddexp(log_mean + math.log(alpha), base)


def _map_sums(scorer: Scorer, *, transposed: bool = False) -> ops.PairwiseMapSums:
    assert isinstance(scorer, SeparableScores)
    query, key, query_bias, key_bias = scorer.query, scorer.key, scorer.query_bias, scorer.key_bias
    if transposed:
        query, key, query_bias, key_bias = key, query, key_bias, query_bias
    return ops.pairwise_map_sums(
        query, key, map="clipped_exp", limit=SMILE_CLIP, query_bias=query_bias, key_bias=key_bias
    )


def _centred(values: Tensor) -> Tensor:
    return values - values.mean()
