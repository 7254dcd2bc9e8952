"""Rank correlations of designs that were measured with few seeds, and how far they may be from those of many."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import isotonic_regression

Values = NDArray[np.float64]


def spearman(first: Values, second: Values) -> Values:
    """Coefficient of each row of two arrays (resample, design); NaN where a row has one value only."""
    ranks = [stats.rankdata(value, axis=1) for value in (first, second)]
    x, y = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    scale = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(scale > 0, (x * y).sum(1) / scale, np.nan))


def interval_over_seeds(
    first: Values, second: Values, share: float, random: np.random.Generator
) -> tuple[float, float]:
    """Where Spearman's coefficient of two arrays (design, seed) may lie for these designs and endless seeds.

    Noise is drawn around the means from the residuals of all designs together, so that two seeds suffice. As the means
    have such noise already, the coefficient falls once more by about as much as it fell before: the interval is the
    quantiles together with those mirrored at the coefficient, by Fisher's z. It ends at 1 (or -1) where a perfect
    ranking close to the means would give a coefficient as low (as high) as this one.

    Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap, sec. 13.3 and 13.4; inversion of a test for
        the ends, sec. 12.
    """
    n_designs, n_seeds = first.shape
    means = first.mean(1), second.mean(1)
    noise = seed_noise((first, second), 2000, random)
    found = spearman(means[0][None], means[1][None])[0]
    drawn = spearman(means[0] + noise[0], means[1] + noise[1])
    # Half a step of the coefficient from 1, where Fisher's z is still finite.
    largest = np.arctanh(1 - 6 / (n_designs * (n_designs**2 - 1)))

    def fisher(value: Values) -> Values:
        return np.clip(np.arctanh(np.clip(value, -1 + 1e-15, 1 - 1e-15)), -largest, largest)

    low, high = np.quantile(fisher(drawn[np.isfinite(drawn)]), [0.5 - share / 2, 0.5 + share / 2])
    centre = float(fisher(np.array(found)))
    low, high = min(low, 2 * centre - high), max(high, 2 * centre - low)
    ends = [np.sign(end) if abs(end) >= largest - 1e-9 else np.tanh(end) for end in (low, high)]
    miss = 0.5 - share / 2
    degrees = n_designs - 1, (n_designs - 1) * (n_seeds - 1)
    furthest = degrees[0] * float(stats.f.ppf(1 - miss, *degrees))
    if _may_be_perfect(means, noise, found, furthest, miss):
        ends[1] = 1.0
    if _may_be_perfect((means[0], -means[1]), noise, -found, furthest, miss):
        ends[0] = -1.0
    return float(min(ends[0], found)), float(max(ends[1], found))


def seed_noise(values: tuple[Values, ...], n_draws: int, random: np.random.Generator) -> tuple[Values, ...]:
    """Noise (draw, design) of means over seeds, from the residuals of arrays (design, seed), the same cells in all.

    What a seed does to all designs alike is no noise of a ranking.
    """
    n_designs, n_seeds = values[0].shape
    shape = n_draws, n_designs, n_seeds
    design, seed = random.integers(n_designs, size=shape), random.integers(n_seeds, size=shape)
    # Residuals of fitted means are too small by the degrees of freedom that the means took.
    scale = np.sqrt(n_designs * n_seeds / ((n_designs - 1) * (n_seeds - 1)))
    found = []
    for value in values:
        residual = value - value.mean(0)
        residual = (residual - residual.mean(1, keepdims=True)) * scale
        found.append(residual[design, seed].mean(2))
    return tuple(found)


def _may_be_perfect(
    means: tuple[Values, ...], noises: tuple[Values, ...], found: float, furthest: float, miss: float
) -> bool:
    """Whether means that rise together, no further away than noise is, give a coefficient as low as `found`.

    Their order is by the sum of both, each in units of its noise and weighted by its spread in these units. `furthest`
    is the sum of squares in units of the noise.
    """
    key = np.zeros_like(means[0])
    for mean, noise in zip(means, noises, strict=True):
        centred = mean - mean.mean()
        key += centred * centred.std() / max(noise.var(), 1e-12 * centred.var())
    order = np.argsort(key, kind="stable")
    rising = []
    for mean, noise in zip(means, noises, strict=True):
        fitted = np.empty_like(mean)
        fitted[order] = isotonic_regression(mean[order]).x
        if ((mean - fitted) ** 2).sum() > furthest * noise.var() + 1e-12 * mean.var():
            return False
        rising.append(fitted + noise)
    drawn = spearman(*rising)
    # Equal values without noise have no order: as good as perfect.
    return bool(np.mean(np.where(np.isfinite(drawn), drawn, 1.0) <= found + 1e-9) >= miss)
