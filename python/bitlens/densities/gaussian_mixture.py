"""Mixture of Gaussians that share their principal axes: images that differ in brightness and contrast."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Self, final

import torch
from torch import Tensor

from bitlens.densities.base import Density, as_images
from bitlens.densities.scene_mixture import _clustered

_LOG_2PI = math.log(2.0 * math.pi)
_COUNTS = (1, 3, 8, 24, 64)
_IMAGES_PER_COMPONENT = 10
# Images' worth of the pooled variances that a component's own are drawn to.
_PRIOR_IMAGES = (2.0, 10.0, 50.0)
# Share of a component's variance that is spread evenly over all axes.
_WHITE_SHARES = (0.0, 1e-3, 1e-2, 0.05, 0.2, 0.5)
_PCA_AXES = 6
_TRIAL_STEPS, _FINAL_STEPS = 12, 60
_TOLERANCE_NATS_PER_PIXEL = 1e-4
# Of the mean variance: kept above rounding where pixels are constant.
_VARIANCE_FLOOR = 1e-6
# Squares, sums and reciprocals of variances stay far inside the range of float64.
_LEAST_VARIANCE = 1e-200


class _Mixture(NamedTuple):
    """log w_k (K,), means (K, D) and variances (K, D) along the columns of the basis (D, D)."""

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    basis: Tensor

    def scores(self, turned: Tensor) -> Tensor:
        """log w_k N(z; m_k, C_k) of images along the axes, (n, D) -> (n, K) nats."""
        # About the mean of all components, so that squares of a bright offset do not cancel.
        offset = self.means.mean(0)
        values, means = turned - offset, self.means - offset
        precision = 1.0 / self.variances
        squared = values.square() @ precision.mT - 2.0 * values @ (means * precision).mT
        constant = (means.square() * precision + self.variances.log()).sum(1) + turned.shape[1] * _LOG_2PI
        return self.log_weights - 0.5 * (squared + constant)

    def log_prob(self, flat: Tensor) -> Tensor:
        """log q of each image, (n, D) -> (n,) nats."""
        return self.scores(flat @ self.basis).logsumexp(1)


@final
@dataclass(frozen=True, eq=False)
class GaussianMixtureDensity(Density):
    """q(z) = sum_k w_k N(z; m_k, U diag(v_k) U'): free means and variances on principal axes U that all share.

    `GaussianMixtureDensity().fit(measured)` is the fitted density. One component is the full Gaussian; several follow
    images that differ in brightness and contrast. Number of components, their start and two shrinkage weights are
    the best on a fifth of the images kept from the trials. Covariances whose axes differ are met only approximately.
    `held_out_bias_nats` is NaN: shrinkage and selection leave no parameter count to state it by.

    Reference: Flury 1984, doi:10.1080/01621459.1984.10477108 (common principal components).
    """

    log_weights: Tensor | None = field(default=None, repr=False)
    means: Tensor | None = field(default=None, repr=False)
    variances: Tensor | None = field(default=None, repr=False)
    basis: Tensor | None = field(default=None, repr=False)
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
        held = torch.arange(len(flat), device=flat.device) % 5 == 4
        fitting, validation = flat[~held], flat[held]
        start, prior, white = self._chosen(fitting, validation)
        # Posteriors of the chosen trial on all images are where the final fit starts.
        share = start.scores(flat @ start.basis).softmax(1)
        final = _started(flat, share)
        mixture, converged = _fitted_mixture(final.turned, share, final.basis, prior, white, _FINAL_STEPS)
        means = unit * (mixture.means @ mixture.basis.mT).reshape(-1, *images.shape[1:])
        return type(self)(
            mixture.log_weights, means, unit**2 * mixture.variances, mixture.basis, len(flat), math.nan, converged
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

    def _fitted(self) -> tuple[_Mixture, torch.Size]:
        if self.log_weights is None or self.means is None or self.variances is None or self.basis is None:
            raise RuntimeError(f"{type(self).__name__}: call fit first; it returns the fitted density")
        turned = self.means.flatten(1) @ self.basis
        return _Mixture(self.log_weights, turned, self.variances, self.basis), self.means.shape[1:]

    def _chosen(self, fitting: Tensor, validation: Tensor) -> tuple[_Mixture, float, float]:
        """The best mixture on `validation`, with its prior images and white share, one choice after the other."""

        def trial(start: _Start, prior: float, white: float) -> tuple[float, _Mixture]:
            mixture, _ = _fitted_mixture(start.turned, start.share, start.basis, prior, white, _TRIAL_STEPS)
            return float(mixture.scores(validation @ start.basis).logsumexp(1).mean()), mixture

        prior, white = _PRIOR_IMAGES[1], 0.0
        best_start = _started(fitting, fitting.new_ones(len(fitting), 1))
        best, chosen = trial(best_start, prior, white)
        for value in _WHITE_SHARES[1:]:
            score, mixture = trial(best_start, prior, value)
            if score > best:
                best, chosen, white = score, mixture, value
        for points in (_brightness_and_contrast(fitting), _principal(fitting)):
            for count in _COUNTS[1:]:
                if count * _IMAGES_PER_COMPONENT > len(fitting):
                    break
                label = _clustered(points, count)
                start = _started(fitting, torch.nn.functional.one_hot(label, count).to(fitting.dtype))
                score, mixture = trial(start, prior, white)
                if score > best:
                    best, chosen, best_start = score, mixture, start
        if best_start.share.shape[1] > 1:
            for candidate in (_PRIOR_IMAGES[0], _PRIOR_IMAGES[2]):
                score, mixture = trial(best_start, candidate, white)
                if score > best:
                    best, chosen, prior = score, mixture, candidate
            for value in _WHITE_SHARES:
                score, mixture = trial(best_start, prior, value)
                if score > best:
                    best, chosen, white = score, mixture, value
        return chosen, prior, white


class _Start(NamedTuple):
    """Posteriors (n, K), their common axes (D, D) and the images along those, (n, D)."""

    share: Tensor
    basis: Tensor
    turned: Tensor


def _started(flat: Tensor, share: Tensor) -> _Start:
    basis = _common_axes(flat, share)
    return _Start(share, basis, flat @ basis)


def _fitted_mixture(
    turned: Tensor, share: Tensor, basis: Tensor, prior: float, white: float, n_steps: int
) -> tuple[_Mixture, bool]:
    """Expectation maximisation from posteriors `share` (n, K), and whether its last step gained little."""
    last, converged = -math.inf, False
    mixture = _maximised(turned, share, basis, prior, white)
    for _ in range(n_steps):
        scores = mixture.scores(turned)
        mean = float(scores.logsumexp(1).mean())
        converged = abs(mean - last) < _TOLERANCE_NATS_PER_PIXEL * turned.shape[1]
        if converged:
            break
        last = mean
        mixture = _maximised(turned, scores.softmax(1), basis, prior, white)
    return mixture, converged


def _moments(values: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images per component (K,), means and variances (K, D), about the mean of all images for accuracy."""
    offset = values.mean(0)
    centred = values - offset
    count = share.sum(0)
    divisor = count.clamp_min(1e-9)[:, None]
    means = share.mT @ centred / divisor
    variances = (share.mT @ centred.square() / divisor - means.square()).clamp_min(0.0)
    return count, means + offset, variances


def _common_axes(flat: Tensor, share: Tensor) -> Tensor:
    """Eigenvectors of the covariance within components, each scaled to the same mean variance: (D, D)."""
    count, means, variances = _moments(flat, share)
    scale = variances.mean(1)
    # A component of a single image has no variance of its own to be scaled by.
    scale = scale.clamp_min(1e-3 * float((scale * count).sum() / count.sum()) + 1e-300)
    offset = flat.mean(0)
    centred, means = flat - offset, means - offset
    weight = (share / scale).sum(1)
    within = (centred * weight[:, None]).mT @ centred - (means * (count / scale)[:, None]).mT @ means
    basis: Tensor = torch.linalg.eigh(0.5 * (within + within.mT) / len(flat))[1]
    return basis


def _maximised(turned: Tensor, share: Tensor, basis: Tensor, prior: float, white: float) -> _Mixture:
    """Weights, means and shrunk variances for the posteriors `share`, (n, K)."""
    count, means, variances = _moments(turned, share)
    pooled = (count[:, None] * variances).sum(0) / count.sum()
    level = pooled.mean().clamp_min(1e-300)
    # The pooled shape at the component's own contrast, itself drawn to the pooled one.
    own = (count * variances.mean(1) + level) / (count + 1.0)
    variances = (count[:, None] * variances + prior * own[:, None] * pooled / level) / (count[:, None] + prior)
    variances = (1.0 - white) * variances + white * variances.mean(1, keepdim=True)
    variances = variances.clamp_min(_VARIANCE_FLOOR * float(level))
    # A component that no image took keeps a share, and its mean is that of all.
    means = torch.where(count[:, None] > 1e-6, means, turned.mean(0))
    weights = (count + 0.5) / (count + 0.5).sum()
    return _Mixture(weights.log(), means, variances, basis)


def _brightness_and_contrast(flat: Tensor) -> Tensor:
    """Mean and log variance over the pixels of each image, each of unit variance: (n, 2)."""
    brightness, contrast = flat.mean(1), flat.var(1, correction=0)
    least = 1e-6 * float(contrast.mean()) + 1e-300
    if bool((brightness > 0.0).all()):
        brightness = brightness.log()
    return _standardised(torch.stack([brightness, contrast.clamp_min(least).log()], 1))


def _principal(flat: Tensor) -> Tensor:
    """The leading principal components of each image: (n, up to 6)."""
    centred = flat - flat.mean(0)
    vectors = torch.linalg.eigh(centred.mT @ centred)[1]
    return _standardised(centred @ vectors[:, -_PCA_AXES:])


def _standardised(points: Tensor) -> Tensor:
    spread = points.std(0)
    return (points - points.mean(0)) / torch.where(spread > 0.0, spread, 1.0)
