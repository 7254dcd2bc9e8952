"""Gaussian copula: a free law for each pixel, and correlations of the normal scores."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Self, final

import torch
from torch import Tensor

from bitlens.densities._smooth_marginals import Marginals, Tails, fitted_marginals
from bitlens.densities.base import Density, as_images

_LEAST_IMAGES = 20
_FOLDS = 5
_INDEPENDENCE = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 2e-2, *(step / 20.0 for step in range(1, 21)))
# Of a pixel's largest value, below which float64 cannot tell its knots apart; and of its range.
_LEAST_SPREAD, _LEAST_RANGE = 1e-9, 1e-200


@final
@dataclass(frozen=True, eq=False)
class GaussianCopulaDensity(Density):
    """q(z) = phi_R(s) prod_p f_p(z_p) / phi(s_p), s_p = Phi^-1(F_p(z_p)): free marginals, Gaussian dependence.

    `GaussianCopulaDensity().fit(measured)` is the fitted density. log f_p is linear between knots at quantiles, its
    third differences penalised, so that little data leave a Gaussian; generalised Pareto tails reach beyond the data.
    R is the correlation of the scores, drawn to independence by `independence` in [0, 1], the best on held-out folds.
    `held_out_bias_nats` is NaN: penalty and shrinkage leave no parameter count to state it by.

    Reference: Liu, Lafferty and Wasserman 2009, jmlr.org/papers/v10/liu09a.html (nonparanormal); Silverman 1982,
    doi:10.1214/aos/1176345872 (penalty on third derivatives).
    """

    knots: Tensor | None = field(default=None, repr=False)
    log_densities: Tensor | None = field(default=None, repr=False)
    tail_masses: Tensor | None = field(default=None, repr=False)
    tail_scales: Tensor | None = field(default=None, repr=False)
    tail_shapes: Tensor | None = field(default=None, repr=False)
    cholesky: Tensor | None = field(default=None, repr=False)
    independence: float = math.nan
    n_samples: int = 0
    held_out_bias_nats: float = math.nan
    converged: bool = False

    def fit(self, measured: Tensor) -> Self:
        """Marginals and correlations for `measured`, (n, ...).

        Raises:
            ValueError: fewer than 20 images, values that are not finite, or pixels that are constant.
        """
        images = as_images(measured, minimum_samples=_LEAST_IMAGES)
        pixels = images.flatten(1).mT.contiguous()
        low, high = pixels.amin(1), pixels.amax(1)
        spread = high - low
        usable = (spread > _LEAST_SPREAD * torch.maximum(low.abs(), high.abs())) & (spread > _LEAST_RANGE)
        if not bool((usable & (spread < 1.0 / _LEAST_RANGE)).all()):
            raise ValueError("measured: need pixels that vary within the range of float64, got constant or too wide")
        # Powers of two, so that the units of the pixels change no digit of the fit.
        unit = 2.0 ** spread.log2().round()[:, None]
        centre = pixels.median(1, keepdim=True)[0]
        scaled, converged = fitted_marginals((pixels - centre) / unit)
        scores, _ = scaled.scores((pixels - centre) / unit)
        correlation, independence = _shrunk_correlation(scores.mT)
        marginals = Marginals(
            scaled.knots * unit + centre,
            scaled.log_density - unit.log(),
            scaled.tails._replace(scale=scaled.tails.scale * unit.mT),
        )
        shape = images.shape[1:]
        mass, scale, tail_shape = (each.reshape(2, *shape).contiguous() for each in marginals.tails)
        return type(self)(
            marginals.knots.mT.reshape(-1, *shape).contiguous(),
            marginals.log_density.mT.reshape(-1, *shape).contiguous(),
            mass,
            scale,
            tail_shape,
            torch.linalg.cholesky(correlation),
            independence,
            len(images),
            math.nan,
            converged,
        )

    def log_prob(self, measured: Tensor) -> Tensor:
        """log q(z) of each image, (n, ...) -> (n,) nats."""
        marginals, cholesky, shape = self._fitted()
        pixels = as_images(measured, shape).flatten(1).mT.contiguous()
        scores, log_density = marginals.scores(pixels)
        white = torch.linalg.solve_triangular(cholesky, scores, upper=False)
        dependence = 0.5 * (scores.square() - white.square()).sum(0) - cholesky.diagonal().log().sum()
        return log_density.sum(0) + dependence

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Correlated normal scores, each turned into its pixel's value: n images, (n, ...)."""
        marginals, cholesky, shape = self._fitted()
        normal = torch.randn(n, len(cholesky), dtype=torch.float64, generator=generator).to(cholesky.device)
        return marginals.values(cholesky @ normal.mT).mT.reshape(n, *shape)

    def _fitted(self) -> tuple[Marginals, Tensor, torch.Size]:
        if (
            self.knots is None
            or self.log_densities is None
            or self.tail_masses is None
            or self.tail_scales is None
            or self.tail_shapes is None
            or self.cholesky is None
        ):
            raise RuntimeError(f"{type(self).__name__}: call fit first; it returns the fitted density")
        knots, log_density = (each.flatten(1).mT.contiguous() for each in (self.knots, self.log_densities))
        tails = Tails(*(each.flatten(1) for each in (self.tail_masses, self.tail_scales, self.tail_shapes)))
        return Marginals(knots, log_density, tails), self.cholesky, self.knots.shape[1:]


def _shrunk_correlation(scores: Tensor) -> tuple[Tensor, float]:
    """Correlation of the scores (n, D) drawn to the identity, and by how much: the best over held-out folds."""
    candidates = scores.new_tensor(_INDEPENDENCE)
    fold = torch.arange(len(scores), device=scores.device) % _FOLDS
    total = torch.zeros_like(candidates)
    for held in range(_FOLDS):
        fitting, validation = scores[fold != held], scores[fold == held]
        values, vectors = torch.linalg.eigh(_correlation(fitting))
        squared = (validation @ vectors).square().sum(0)
        for place, share in enumerate(candidates.tolist()):
            shrunk = (1.0 - share) * values.clamp_min(0.0) + share
            total[place] -= 0.5 * float((squared / shrunk).sum() + len(validation) * shrunk.log().sum())
    share = float(candidates[total.argmax()])
    correlation = _correlation(scores)
    identity = torch.eye(len(correlation), dtype=scores.dtype, device=scores.device)
    return (1.0 - share) * correlation + share * identity, share


def _correlation(scores: Tensor) -> Tensor:
    covariance = scores.mT @ scores / len(scores)
    scale = covariance.diagonal().sqrt()
    correlation: Tensor = covariance / torch.outer(scale, scale)
    return correlation
