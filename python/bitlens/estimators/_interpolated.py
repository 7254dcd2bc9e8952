"""A lower bound that passes log K: scenes and a fitted density share the marginal of a known channel.

I_w = 1 + E[a - log(w m + (1 - w) q)] - E[m' / (w m' + (1 - w) q')], a = log p(z|y), m the mean of p(z|y_j) over K
scenes with z's own, m' that over K scenes without it. It needs scenes that q does not depend on: a density is higher
near the scenes that it was fitted to, so that m' / q' comes out too small by as much as the fit costs on unseen images,
and the bound too high. A row therefore takes the scenes of its own fold, which cross-fitting kept from its q.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.estimators._density import DensityRows
from bitlens.estimators._inputs import Groups, independent_scenes
from bitlens.estimators._known_channel import KnownChannel, LowerBound, Terms, known_channel, lower_bound
from bitlens.noise import NoiseModel

# Near its ceiling the second mean lives on a share w of the rows, each worth 1 / w: fewer of them than this would leave
# a standard error that most samples do not show (30: 0.18 nats).
_LEAST_HITS = 30.0
_MOST_ODDS = 9.0
_N_WEIGHTS = 25


class UnseenScenes(NamedTuple):
    """Scores of each sample under scenes that its density does not depend on.

    `channel` has as "outside" the scenes of other groups in the same part; `parts` (n,) int64; `n_scenes` (n,) for how
    many independent scenes these count.
    """

    channel: KnownChannel
    parts: Tensor
    n_scenes: Tensor


class BestLower(NamedTuple):
    """Terms of a lower bound, what gave it, and the most it can say, nats; influence by the channel of all scenes."""

    terms: Terms
    name: str
    ceiling: float


def all_scenes(channel: KnownChannel, groups: Groups) -> UnseenScenes:
    """Every scene, for a density that owes nothing to these samples."""
    count = torch.full_like(channel.positive, independent_scenes(groups.labels))
    return UnseenScenes(channel, torch.zeros_like(groups.folds), count)


def scenes_of_own_fold(measured: Tensor, mean: Tensor, noise: NoiseModel, groups: Groups) -> UnseenScenes | None:
    """Each fold's scenes for its own samples, a fifth of the pairs; None where a fold has one group or pairs too many.

    `measured`, `mean` (n, ...) float64; `groups` those of the cross-fitted density.
    """
    folds = [torch.nonzero(groups.folds == fold)[:, 0] for fold in range(groups.n_folds)]
    channels: list[KnownChannel] = []
    n_scenes = measured.new_zeros(measured.shape[0])
    for rows in folds:
        labels = torch.unique(groups.labels[rows], return_inverse=True)[1]
        count = independent_scenes(labels)
        if count < 1:
            return None
        inside = Groups(labels, int(labels.max()) + 1, torch.zeros_like(labels), 1, groups.given)
        channel = known_channel(measured[rows], mean[rows], noise, inside)
        if channel is None:
            return None
        channels.append(channel)
        n_scenes[rows] = float(count)

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.empty_like(n_scenes).index_copy_(0, torch.cat(folds), torch.cat(parts))

    def column_shares(weight: Tensor) -> Tensor:
        pairs = zip(folds, channels, strict=True)
        return joined(
            [
                channel.column_shares(weight[rows]) if bool(weight[rows].any()) else torch.zeros_like(weight[rows])
                for rows, channel in pairs
            ]
        )

    together = KnownChannel(
        joined([channel.positive for channel in channels]),
        joined([channel.log_marginal for channel in channels]),
        column_shares,
        all(channel.exact for channel in channels),
    )
    return UnseenScenes(together, groups.folds, n_scenes)


def interpolated_bound(scenes: UnseenScenes, log_density: Tensor, weight: Tensor, groups: Groups) -> Terms:
    """Rows of I_w, nats, at most 1 + log(K / w) each, and their influence by `scenes.channel`.

    Where z' has K other scenes, m has z's own and K - 1 others, in place of which the mean of all K stands: both terms
    have the same number of scenes, as the bound needs, and by Jensen the mean only lowers it. So do averages over the
    members of a group. The influence leaves a scene's own p(z|y) / K as it is and takes q as given.

    Args:
        log_density: log q(z_i), (n,), q fitted without the scenes of the row's part.
        weight: w in (0, 1) of the scenes, (n,).

    Reference: Poole et al. 2019, arXiv 1905.06922, section 2.4.
    """
    positive, log_marginal = scenes.channel.positive, scenes.channel.log_marginal
    log_weight, log_rest = torch.log(weight), torch.log1p(-weight) + log_density
    others = log_weight + log_marginal + torch.log((scenes.n_scenes - 1.0) / scenes.n_scenes)
    joint = torch.logaddexp(torch.logaddexp(log_weight + positive - torch.log(scenes.n_scenes), others), log_rest)
    product = torch.logaddexp(log_weight + log_marginal, log_rest)
    # No scene may have given z': then the density of z' does not matter.
    possible = torch.isfinite(log_marginal)
    ratio = torch.where(possible, torch.exp(log_marginal - product), 0.0)
    rows = 1.0 + positive - joint - ratio
    # By how much a row falls when its log marginal rises.
    slope = torch.exp(others - joint) + ratio * torch.where(possible, torch.exp(log_rest - product), 0.0)
    return Terms(rows, rows + _mean_of_columns(slope, scenes.parts, groups), slope)


def _mean_of_columns(slope: Tensor, parts: Tensor, groups: Groups) -> Tensor:
    """For each sample j the sum of slope_i / N_i over the i of other groups in its part, N_i scenes outside i's group.

    Column shares sum to one over j; this is what the shares of equal columns would be.
    """
    label = torch.unique(torch.stack([parts, groups.labels]), dim=1, return_inverse=True)[1]

    def total(value: Tensor, of: Tensor) -> Tensor:
        return value.new_zeros(int(of.max()) + 1).index_add_(0, of, value)[of]

    ones = torch.ones_like(slope)
    each = slope / (total(ones, parts) - total(ones, label))
    return total(each, parts) - total(each, label)


def weight_grid(groups: Groups) -> Tensor:
    """Weights of the scenes to choose from: none so small that fewer than 30 groups carry the second mean."""
    least = min(0.5, _LEAST_HITS / groups.count)
    odds = torch.linspace(math.log(least / (1.0 - least)), math.log(_MOST_ODDS), _N_WEIGHTS, dtype=torch.float64)
    return torch.sigmoid(odds)


def best_lower(
    channel: KnownChannel, density: DensityRows | None, groups: Groups, scenes: UnseenScenes | None
) -> BestLower:
    """For each fold the tightest on the other folds of L_K and I_w over a grid of w: a lower bound in expectation.

    Without `density` or `scenes` it is L_K. The pass over the pairs for the influence of I_w is made here; terms that
    go on to `Terms.influence` want the channel of all scenes.

    Args:
        channel: all scenes, for L_K.
        scenes: those that the density does not depend on, from `scenes_of_own_fold`, or from `all_scenes` for a
            density that owes nothing to the samples.
    """
    plain: LowerBound = lower_bound(channel, groups)
    only = BestLower(plain.terms, "known channel", plain.ceiling)
    if density is None or scenes is None:
        return only
    weights = weight_grid(groups).to(plain.terms.rows)
    tried = torch.stack(
        [
            interpolated_bound(scenes, density.log_prob, weight.expand_as(plain.terms.rows), groups).rows
            for weight in weights
        ]
    )
    weight = torch.zeros_like(plain.terms.rows)
    for fold in range(groups.n_folds):
        others, here = groups.folds != fold, groups.folds == fold
        values = tried[:, others].mean(1)
        best = int(values.nan_to_num(nan=-math.inf).argmax())
        if float(values[best]) > float(plain.terms.rows[others].mean()):
            weight[here] = weights[best]
    chosen = weight > 0.0
    if not bool(chosen.any()):
        return only
    safe = torch.where(chosen, weight, 0.5)
    found = interpolated_bound(scenes, density.log_prob, safe, groups)
    slope = torch.where(chosen, found.weight if found.weight is not None else 0.0, 0.0)
    own = torch.where(chosen, found.rows, plain.terms.own)
    own = own + _mean_of_columns(slope, scenes.parts, groups) - scenes.channel.column_shares(slope)
    rest = None
    if not bool(chosen.all()):
        assert plain.terms.weight is not None
        rest = torch.where(chosen, 0.0, plain.terms.weight)
    ceilings = torch.where(chosen, 1.0 + torch.log(scenes.n_scenes / safe), plain.ceiling)
    name = f"known channel and {density.name}"
    return BestLower(
        Terms(torch.where(chosen, found.rows, plain.terms.rows), own, rest),
        name if bool(chosen.all()) else f"{name} or known channel",
        float(ceilings.mean()),
    )
