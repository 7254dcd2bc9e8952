"""Mixture of Gaussians that share their principal axes: images that differ in brightness and contrast."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Self, final

import torch
from torch import Tensor

from bitlens.densities._common_axes import Axes, Mixture, cosine_axes, fitted_mixture, principal_axes
from bitlens.densities._starts import brightness_and_contrast, clustered, principal
from bitlens.densities.base import Density, as_images

_COUNTS = (1, 3, 8, 24, 64)
_IMAGES_PER_COMPONENT = 10
# Images' worth of what a component's own variances are drawn to: the pooled ones, or their own made smooth.
_PRIOR_POOLED, _PRIOR_SMOOTH = (2.0, 10.0, 50.0), (10.0, 100.0, 1000.0)
# Share of a component's variance that is spread evenly over all axes.
_WHITE_SHARES = (0.0, 1e-3, 1e-2, 0.05, 0.2, 0.5)
_LEAST_SIDE = 4  # of images whose cosines are tried
_TRIAL_STEPS, _FINAL_STEPS = 12, 60
# More images change the choice little, and its time much.
_MOST_TRIAL_IMAGES, _MOST_VALIDATION_IMAGES = 1500, 800
# Squares, sums and reciprocals of variances stay far inside the range of float64.
_LEAST_VARIANCE = 1e-200


@final
@dataclass(frozen=True, eq=False)
class GaussianMixtureDensity(Density):
    """q(z) = sum_k w_k N(z; m_k, U diag(v_k) U'): free means and variances on axes U that all components share.

    `GaussianMixtureDensity().fit(measured)` is the fitted density. One component is the full Gaussian; several follow
    images that differ in brightness and contrast. Axes (principal ones, or cosines, along which variances are drawn to
    smooth ones), number of components, their start and shrinkage are the best on a fifth of the images kept from the
    trials; a fitted density's own `fit` keeps them. Covariances whose axes differ are met only approximately.
    `held_out_bias_nats` is NaN: shrinkage and selection leave no parameter count to state it by.

    Reference: Flury 1984, doi:10.1080/01621459.1984.10477108 (common principal components).
    """

    log_weights: Tensor | None = field(default=None, repr=False)
    means: Tensor | None = field(default=None, repr=False)
    variances: Tensor | None = field(default=None, repr=False)
    basis: Tensor | None = field(default=None, repr=False)
    settings: tuple[int, bool, bool, float, float] | None = None
    n_samples: int = 0
    held_out_bias_nats: float = math.nan
    converged: bool = False

    def fit(self, measured: Tensor) -> Self:
        """Components for `measured`, (n, ...): trials on four fifths of the images, then a fit to all.

        Raises:
            ValueError: fewer than 10 images, values that are not finite, or images without variation.
        """
        images = as_images(measured, minimum_samples=10)
        flat = images.flatten(1)
        total = flat.var(0).mean()
        if not (bool((flat != flat[0]).any()) and _LEAST_VARIANCE < float(total) < 1.0 / _LEAST_VARIANCE):
            raise ValueError("measured: need images that vary within the range of float64, got constant or too wide")
        # A power of two, so that the unit of the images changes no digit of the fit.
        unit = 2.0 ** round(0.5 * math.log2(float(total)))
        flat = flat / unit
        cosines = cosine_axes(images) if images.ndim > 2 and min(images.shape[-2:]) >= _LEAST_SIDE else None
        settings = _chosen(flat, cosines) if self.settings is None else _Settings(*self.settings)
        share = _start(flat, min(settings.n_components, len(flat)), settings.by_brightness)
        axes = cosines if settings.cosines and cosines is not None else principal_axes(flat, share)
        mixture, converged = fitted_mixture(
            flat @ axes.basis, share, axes, settings.prior_images, settings.white_share, _FINAL_STEPS
        )
        means = unit * (mixture.means @ mixture.basis.mT).reshape(-1, *images.shape[1:])
        return type(self)(
            mixture.log_weights,
            means,
            unit**2 * mixture.variances,
            mixture.basis,
            (*settings,),
            len(flat),
            math.nan,
            converged,
        )

    def log_prob(self, measured: Tensor) -> Tensor:
        """log q(z) of each image, (n, ...) -> (n,) nats."""
        mixture, shape = self._fitted()
        return mixture.log_prob(as_images(measured, shape).flatten(1))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """A component drawn by its weight and a Gaussian image from it: n images, (n, ...)."""
        mixture, shape = self._fitted()
        uniform = torch.rand(n, dtype=torch.float64, generator=generator)
        normal = torch.randn(n, len(mixture.basis), dtype=torch.float64, generator=generator)
        edges = mixture.log_weights.exp().cumsum(0)
        drawn = torch.searchsorted(edges, uniform.to(edges.device)).clamp_max(len(edges) - 1)
        turned = mixture.means[drawn] + mixture.variances[drawn].sqrt() * normal.to(edges.device)
        return (turned @ mixture.basis.mT).reshape(n, *shape)

    def _fitted(self) -> tuple[Mixture, torch.Size]:
        if self.log_weights is None or self.means is None or self.variances is None or self.basis is None:
            raise RuntimeError(f"{type(self).__name__}: call fit first; it returns the fitted density")
        turned = self.means.flatten(1) @ self.basis
        return Mixture(self.log_weights, turned, self.variances, self.basis), self.means.shape[1:]


class _Settings(NamedTuple):
    """What a fit does not learn by its likelihood: how many components, from which start, on which axes, how shrunk."""

    n_components: int
    by_brightness: bool
    cosines: bool
    prior_images: float
    white_share: float


class _Trial(NamedTuple):
    """Settings and their score on validation images, nats per image."""

    score: float
    settings: _Settings


def _score(trial: _Trial) -> float:
    return trial.score


def _start(flat: Tensor, count: int, by_brightness: bool) -> Tensor:
    """Posteriors (n, K) to start from: clusters of images alike in brightness and contrast, or in all they show."""
    if count == 1:
        return flat.new_ones(len(flat), 1)
    points = brightness_and_contrast(flat) if by_brightness else principal(flat)
    return torch.nn.functional.one_hot(clustered(points, count), count).to(flat.dtype)


def _chosen(flat: Tensor, cosines: Axes | None) -> _Settings:
    """The best settings on a fifth of the images that trials do not see, one choice after the other."""
    held = torch.arange(len(flat), device=flat.device) % 5 == 4
    fitting, validation = flat[~held][:_MOST_TRIAL_IMAGES], flat[held][:_MOST_VALIDATION_IMAGES]
    best: _Trial | None = None
    for axes in (None,) if cosines is None else (None, cosines):
        found = _best_on(axes, fitting, validation)
        best = found if best is None else max(best, found, key=_score)
    assert best is not None
    return best.settings


def _best_on(axes: Axes | None, fitting: Tensor, validation: Tensor) -> _Trial:
    """The best settings on these axes, or on the principal ones of each start for None."""
    search = _Search(fitting, validation, axes)
    priors = _PRIOR_POOLED if axes is None else _PRIOR_SMOOTH
    one = _Settings(1, True, axes is not None, priors[1], 0.0)
    found = max((search.trial(one._replace(white_share=white)) for white in _WHITE_SHARES), key=_score)
    for by_brightness in (True, False):
        for count in _COUNTS[1:]:
            if count * _IMAGES_PER_COMPONENT > len(fitting):
                break
            trial = search.trial(found.settings._replace(n_components=count, by_brightness=by_brightness))
            if trial.score <= found.score and count > found.settings.n_components:
                break
            found = max(found, trial, key=_score)
    if found.settings.n_components > 1:
        others = [prior for prior in priors if prior != found.settings.prior_images]
        trials = [search.trial(found.settings._replace(prior_images=prior)) for prior in others]
        found = max(found, *trials, key=_score)
        whites = [white for white in _WHITE_SHARES if white != found.settings.white_share]
        trials = [search.trial(found.settings._replace(white_share=white)) for white in whites]
        found = max(found, *trials, key=_score)
    return found


class _Search:
    """Short fits whose start and images along the axes are made once for each number of components."""

    def __init__(self, fitting: Tensor, validation: Tensor, axes: Axes | None) -> None:
        self._fitting, self._validation, self._axes = fitting, validation, axes
        self._made: tuple[tuple[int, bool], Tensor, Axes, Tensor, Tensor] | None = None

    def trial(self, settings: _Settings) -> _Trial:
        """The settings' score."""
        key = (settings.n_components, settings.by_brightness)
        if self._made is None or self._made[0] != key:
            share = _start(self._fitting, *key)
            axes = principal_axes(self._fitting, share) if self._axes is None else self._axes
            self._made = key, share, axes, self._fitting @ axes.basis, self._validation @ axes.basis
        _, share, axes, fitting, validation = self._made
        mixture, _ = fitted_mixture(fitting, share, axes, settings.prior_images, settings.white_share, _TRIAL_STEPS)
        return _Trial(float(mixture.scores(validation).logsumexp(1).mean()), settings)
