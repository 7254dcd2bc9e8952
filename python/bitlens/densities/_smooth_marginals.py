"""Smooth laws of single pixels: penalised log densities between quantiles, tails beyond the data."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_LOG_2PI = math.log(2.0 * math.pi)
# Images beyond the outermost knot on either side: few, because a hard edge of the data costs 0.3 nats for each.
_MOST_TAIL_IMAGES = 4
_IMAGES_PER_TAIL_IMAGE = 100
# Exponents of the survival of a tail: 0 is exponential, whose held-out outliers would have no bound on their cost.
_TAIL_SHAPES = (0.1, 0.25, 0.5, 1.0)
_TAIL_STEPS = 50
_EVEN_SHARE = 0.3  # of the knots, evenly apart; the others are at quantiles
_LEAST_PIECES, _MOST_PIECES = 4, 96
_LEAST_SPACING = 1e-6  # of knots, in their range
# Precisions of third differences of the log density between knots; the strongest leaves a Gaussian.
_ROUGHNESS = (1e8, 1e6, 1e5, 1e4, 1e3, 1e2, 1e1, 1.0, 0.1)
_NEWTON_STEPS = 60
_NEWTON_TOLERANCE = 1e-3  # nats of all images together
_LARGEST_STEP = 2.0  # of a log density in one Newton step, inside which the expansion of the exponential holds
_HALVINGS = 12
# Beyond it the probability of a tail leaves the range of float64.
_LARGEST_SCORE = 37.0
_LEAST_PROBABILITY = 1e-299
_LARGEST_EXCESS = 1e300


class Tails(NamedTuple):
    """Probability, scale and shape of what lies below the first knot and above the last, each (2, D)."""

    mass: Tensor
    scale: Tensor
    shape: Tensor


class Marginals(NamedTuple):
    """Density of each pixel: exp of linear pieces between knots (D, K + 1), generalised Pareto tails outside."""

    knots: Tensor
    log_density: Tensor
    tails: Tails

    def masses(self) -> Tensor:
        """Probability between neighbouring knots, (D, K)."""
        return self.knots.diff(dim=1) * self.log_density[:, :-1].exp() * _relative_mass(self.log_density.diff(dim=1))

    def scores(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normal scores and log densities of values, (D, n) -> twice (D, n)."""
        n_pieces = self.knots.shape[1] - 1
        piece = (torch.searchsorted(self.knots, pixels, right=True) - 1).clamp(0, n_pieces - 1)
        left, level = self.knots.gather(1, piece), self.log_density.gather(1, piece)
        width = self.knots.gather(1, piece + 1) - left
        slope = self.log_density.gather(1, piece + 1) - level
        place = ((pixels - left) / width).clamp(0.0, 1.0)
        log_density = level + slope * place
        masses = self.masses()
        inside = width * level.exp() * place * _relative_mass(slope * place)
        before = torch.cat([self.tails.mass[0][:, None], masses], 1).cumsum(1)
        after = torch.cat([masses, self.tails.mass[1][:, None]], 1).flip(1).cumsum(1).flip(1)
        # The smaller of the two tails, so that no digits of a probability near one are lost.
        lower = before.gather(1, piece) + inside
        upper = after.gather(1, piece) - inside
        for side in (0, 1):
            excess = self.knots[:, :1] - pixels if side == 0 else pixels - self.knots[:, -1:]
            outside = excess > 0.0
            mass, scale, shape = (each[side][:, None] for each in self.tails)
            grown = torch.log1p((shape * excess.clamp_min(0.0) / scale).clamp_max(_LARGEST_EXCESS))
            log_density = torch.where(outside, (mass / scale).log() - (1.0 + 1.0 / shape) * grown, log_density)
            probability = mass * (-grown / shape).exp()
            lower = torch.where(outside, probability if side == 0 else 1.0 - probability, lower)
            upper = torch.where(outside, 1.0 - probability if side == 0 else probability, upper)
        below = lower < upper
        least = torch.where(below, lower, upper).clamp_min(_LEAST_PROBABILITY)
        score = torch.special.ndtri(least)
        return torch.where(below, score, -score).clamp(-_LARGEST_SCORE, _LARGEST_SCORE), log_density

    def values(self, scores: Tensor) -> Tensor:
        """Values that have these normal scores, (D, n) -> (D, n): the inverse of `scores`."""
        # torch.special.ndtr has no digits left below 1e-16.
        lower, upper = (0.5 * torch.erfc(sign * scores / math.sqrt(2.0)) for sign in (-1.0, 1.0))
        edges = torch.cat([self.tails.mass[0][:, None], self.masses()], 1).cumsum(1)
        n_pieces = self.knots.shape[1] - 1
        piece = (torch.searchsorted(edges, lower, right=True) - 1).clamp(0, n_pieces - 1)
        left, level = self.knots.gather(1, piece), self.log_density.gather(1, piece)
        width = self.knots.gather(1, piece + 1) - left
        slope = self.log_density.gather(1, piece + 1) - level
        share = (lower - edges.gather(1, piece)).clamp_min(0.0) / (width * level.exp())
        flat = slope.abs() < 1e-9
        bent = torch.log1p((share * slope).clamp_min(-1.0 + 1e-15)) / torch.where(flat, 1.0, slope)
        value = left + width * torch.where(flat, share, bent).clamp(0.0, 1.0)
        for side, probability in ((0, lower), (1, upper)):
            mass, scale, shape = (each[side][:, None] for each in self.tails)
            excess = scale / shape * torch.expm1(-shape * (probability / mass).clamp(1e-300, 1.0).log())
            edge = self.knots[:, :1] - excess if side == 0 else self.knots[:, -1:] + excess
            value = torch.where(probability < mass, edge, value)
        return value


def _relative_mass(slope: Tensor) -> Tensor:
    """The integral over [0, 1] of exp(slope t)."""
    small = slope.abs() < 1e-4
    return torch.where(
        small, 1.0 + slope / 2.0 + slope.square() / 6.0, torch.expm1(slope) / torch.where(small, 1.0, slope)
    )


def fitted_marginals(pixels: Tensor) -> tuple[Marginals, bool]:
    """Laws of the pixels, (D, n), and whether all their fits converged."""
    ordered = pixels.sort(1)[0]
    n_samples = ordered.shape[1]
    knots = _quantile_knots(ordered)
    below, above = (ordered < knots[:, :1]).sum(1), (ordered > knots[:, -1:]).sum(1)
    tail_count = torch.stack([below, above]).to(torch.float64)
    # Midway between two order statistics, which have count and count + 1 shares below them on average.
    tail_mass = (tail_count + 0.5) / (n_samples + 1.0)
    inner_mass = 1.0 - tail_mass.sum(0)
    statistics = _hat_means(ordered, knots)
    log_density, converged = _penalised_log_density(statistics, knots, n_samples - tail_count.sum(0))
    log_density = log_density + inner_mass.log()[:, None]
    return Marginals(knots, log_density, _fitted_tails(ordered, knots, log_density, tail_mass)), converged


def _quantile_knots(ordered: Tensor) -> Tensor:
    """Knots (D, K + 1) at quantiles of sorted values (D, n), denser towards both ends."""
    n_samples = ordered.shape[1]
    n_pieces = max(_LEAST_PIECES, min(_MOST_PIECES, round(2.0 * n_samples**0.35)))
    tail = max(1, min(_MOST_TAIL_IMAGES, n_samples // _IMAGES_PER_TAIL_IMAGE))
    inner = ordered[:, tail : n_samples - tail]
    span = inner[:, -1:] - inner[:, :1]
    rank = torch.linspace(0.0, 1.0, inner.shape[1], dtype=torch.float64, device=ordered.device)
    # A share of the knots evenly apart, for gaps between values.
    level = (1.0 - _EVEN_SHARE) * rank.sqrt().asin() * (2.0 / math.pi)
    level = level + _EVEN_SHARE * (inner - inner[:, :1]) / span.clamp_min(1e-300)
    wanted = torch.linspace(0.0, 1.0, n_pieces + 1, dtype=torch.float64, device=ordered.device) * level[:, -1:]
    first = (torch.searchsorted(level, wanted, right=True) - 1).clamp(0, inner.shape[1] - 2)
    start = level.gather(1, first)
    share = ((wanted - start) / (level.gather(1, first + 1) - start)).clamp(0.0, 1.0)
    left = inner.gather(1, first)
    knots = left + share * (inner.gather(1, first + 1) - left)
    # At no value, where the density jumps.
    knots[:, 0] = 0.5 * (inner[:, 0] + ordered[:, tail - 1])
    knots[:, -1] = 0.5 * (inner[:, -1] + ordered[:, n_samples - tail])
    # Of values that repeat, knots fall together; of nearly constant pixels, all of them.
    least = _LEAST_SPACING * span
    distinct = (knots.diff(dim=1) > least).all(1)
    for pixel in (~distinct).nonzero().flatten().tolist():
        knots[pixel] = _spread_knots(knots[pixel], ordered[pixel], float(least[pixel]))
    return knots


def _spread_knots(knots: Tensor, ordered: Tensor, least: float) -> Tensor:
    """Knots that fell together, moved evenly apart between those that did not."""
    kept = [0]
    for index in range(1, len(knots)):
        if float(knots[index] - knots[kept[-1]]) > least:
            kept.append(index)
    if len(kept) == 1:
        return torch.linspace(0.0, 1.0, len(knots)).to(knots) * (ordered[-1] - ordered[0]) + ordered[0]
    at = torch.linspace(0.0, len(kept) - 1.0, len(knots), dtype=torch.float64)
    first = at.floor().to(torch.int64).clamp_max(len(kept) - 2)
    values = knots[kept]
    return values[first] + (at - first).to(knots) * (values[first + 1] - values[first])


def _hat_means(ordered: Tensor, knots: Tensor) -> Tensor:
    """Means of the linear hat functions of the knots over the values between the outermost, (D, K + 1)."""
    piece = (torch.searchsorted(knots, ordered, right=True) - 1).clamp(0, knots.shape[1] - 2)
    left = knots.gather(1, piece)
    place = (ordered - left) / (knots.gather(1, piece + 1) - left)
    inside = (place >= 0.0) & (place <= 1.0)
    place = place.clamp(0.0, 1.0)
    weight = inside.to(torch.float64)
    sums = torch.zeros_like(knots)
    sums.scatter_add_(1, piece, weight * (1.0 - place))
    sums.scatter_add_(1, piece + 1, weight * place)
    return sums / weight.sum(1, keepdim=True)


def _hat_integrals(knots: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
    """Integrals of exp(g) times hats (D, K + 1), and times products of two hats (D, K + 1, K + 1)."""
    nodes, weights = _gauss_legendre(knots)
    level, slope = log_density[:, :-1, None], log_density.diff(dim=1)[:, :, None]
    density = knots.diff(dim=1)[:, :, None] * weights * (level + slope * nodes).exp()
    right, left = density * nodes, density * (1.0 - nodes)
    first = torch.zeros_like(knots)
    first[:, :-1] += left.sum(2)
    first[:, 1:] += right.sum(2)
    diagonal = torch.zeros_like(knots)
    diagonal[:, :-1] += (left * (1.0 - nodes)).sum(2)
    diagonal[:, 1:] += (right * nodes).sum(2)
    beside = (left * nodes).sum(2)
    second = torch.diag_embed(diagonal) + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
    return first, second


def _gauss_legendre(like: Tensor) -> tuple[Tensor, Tensor]:
    # Five nodes: exact to 1e-9 of a piece over which the density changes e-fold.
    inner, outer = (math.sqrt(5.0 + sign * 2.0 * math.sqrt(10.0 / 7.0)) / 3.0 for sign in (-1.0, 1.0))
    light, heavy = ((322.0 + sign * 13.0 * math.sqrt(70.0)) / 900.0 for sign in (-1.0, 1.0))
    nodes = like.new_tensor([-outer, -inner, 0.0, inner, outer])
    weights = like.new_tensor([light, heavy, 128.0 / 225.0, heavy, light])
    return 0.5 * (nodes + 1.0), 0.5 * weights


def _third_differences(knots: Tensor) -> Tensor:
    """Rows that take third divided differences at the knots' spacing, zero for a parabola: (D, K - 2, K + 1)."""
    n_rows = knots.shape[1] - 3
    rows = torch.zeros(len(knots), n_rows, n_rows + 3, dtype=knots.dtype, device=knots.device)
    at = torch.arange(n_rows, device=knots.device)
    four = torch.stack([knots[:, place : place + n_rows] for place in range(4)])
    spacing = (four[3] - four[0]) / 3.0
    for place in range(4):
        product = torch.ones_like(spacing)
        for other in range(4):
            if other != place:
                product = product * (four[place] - four[other]) / spacing
        rows[:, at, at + place] = 1.0 / product
    # As long as (-1, 3, -3, 1), that of knots evenly apart, however close two of them are.
    return rows * (math.sqrt(20.0) / rows.norm(dim=2, keepdim=True))


def _penalised_log_density(statistics: Tensor, knots: Tensor, count: Tensor) -> tuple[Tensor, bool]:
    """Log densities at the knots (D, K + 1), integrating to one, with the roughness of least information criterion."""
    differences = _third_differences(knots)
    penalty = differences.mT @ differences / count[:, None, None]
    # One image's worth of a uniform density, so that a knot without values stays finite.
    span = knots[:, -1:] - knots[:, :1]
    uniform = _hat_integrals(knots, torch.zeros_like(knots) - span.log())[0]
    statistics = (count[:, None] * statistics + uniform) / (count[:, None] + 1.0)
    mean = (statistics * knots).sum(1, keepdim=True)
    variance = (statistics * (knots - mean).square()).sum(1, keepdim=True)
    # No knot further out than six standard deviations, where a start would leave nothing to be improved.
    variance = torch.maximum(variance, (knots - mean).square().amax(1, keepdim=True) / 36.0)
    current = -0.5 * ((knots - mean).square() / variance + variance.log() + _LOG_2PI)
    best = torch.full_like(count, math.inf)
    chosen, settled = current, torch.zeros_like(count, dtype=torch.bool)
    for roughness in _ROUGHNESS:
        current, done = _newton(current, statistics, knots, roughness * penalty, count)
        _, information = _hat_integrals(knots, current)
        degrees = torch.linalg.solve(information + roughness * penalty, information)
        degrees = degrees.diagonal(dim1=1, dim2=2).sum(1)
        # Of Akaike, corrected for few images (Hurvich and Tsai 1989, doi:10.1093/biomet/76.2.297).
        cost = degrees * count / (count - degrees - 1.0).clamp_min(1.0)
        criterion = cost - count * (statistics * current).sum(1)
        # Pixels tend to be alike, and the criterion of one alone is noisy.
        criterion = criterion + criterion.mean()
        better = criterion < best
        best = torch.where(better, criterion, best)
        chosen = torch.where(better[:, None], current, chosen)
        settled = torch.where(better, done, settled)
    masses = knots.diff(dim=1) * chosen[:, :-1].exp() * _relative_mass(chosen.diff(dim=1))
    return chosen - masses.sum(1, keepdim=True).log(), bool(settled.all())


def _newton(start: Tensor, statistics: Tensor, knots: Tensor, penalty: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """argmax of sum_j T_j g_j - integral exp(g) - g' P g / 2, where exp(g) integrates to one; and if it converged."""

    def objective(log_density: Tensor) -> Tensor:
        mass = (knots.diff(dim=1) * log_density[:, :-1].exp() * _relative_mass(log_density.diff(dim=1))).sum(1)
        bent = (penalty @ log_density[:, :, None])[:, :, 0]
        return (statistics * log_density).sum(1) - mass - 0.5 * (log_density * bent).sum(1)

    current, value = start, objective(start)
    done = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    for _ in range(_NEWTON_STEPS):
        expected, information = _hat_integrals(knots, current)
        gradient = statistics - expected - (penalty @ current[:, :, None])[:, :, 0]
        step = torch.linalg.solve(information + penalty, gradient)
        done = count * (gradient * step).sum(1) < _NEWTON_TOLERANCE
        if bool(done.all()):
            break
        step = step * (_LARGEST_STEP / step.abs().amax(1, keepdim=True)).clamp_max(1.0)
        for _ in range(_HALVINGS):
            trial = objective(current + step)
            worse = ~(trial >= value)
            if not bool(worse.any()):
                break
            step = torch.where(worse[:, None], 0.5 * step, step)
        moved = trial >= value
        current = torch.where(moved[:, None], current + step, current)
        value = torch.where(moved, trial, value)
        if not bool(moved.any()):
            break
    return current, done


def _fitted_tails(ordered: Tensor, knots: Tensor, log_density: Tensor, mass: Tensor) -> Tails:
    """Likeliest generalised Pareto tails, with one value's worth of the density at the outermost knot: (2, D)."""
    reach = max(1, min(_MOST_TAIL_IMAGES, ordered.shape[1] // 2))
    excess = torch.stack([knots[:, :1] - ordered[:, :reach], ordered[:, -reach:] - knots[:, -1:]])
    prior = mass / torch.stack([log_density[:, 0], log_density[:, -1]]).exp()
    prior = torch.maximum(prior, 1e-6 * (knots[:, -1] - knots[:, 0]))
    excess = torch.cat([excess, prior[:, :, None]], 2)
    used = (excess > 0.0).to(torch.float64)
    excess = excess.clamp_min(0.0)
    count = used.sum(2)
    best = torch.full_like(prior, -math.inf)
    chosen_scale, chosen_shape = prior, torch.full_like(prior, _TAIL_SHAPES[0])
    for shape in _TAIL_SHAPES:
        scale = excess.sum(2) / count
        for _ in range(_TAIL_STEPS):
            ratio = excess / scale[:, :, None]
            scale = scale * ((1.0 + shape) * ratio / (1.0 + shape * ratio)).sum(2) / count
        grown = torch.log1p(shape * excess / scale[:, :, None]).sum(2)
        likelihood = -count * scale.log() - (1.0 + 1.0 / shape) * grown
        better = likelihood > best
        best = torch.where(better, likelihood, best)
        chosen_scale = torch.where(better, scale, chosen_scale)
        chosen_shape = torch.where(better, shape, chosen_shape)
    return Tails(mass, chosen_scale, chosen_shape)
