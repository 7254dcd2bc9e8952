"""Mixtures of Gaussians on axes that all components share: axes, expectation maximisation, shrinkage."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor

_LOG_2PI = math.log(2.0 * math.pi)
_TOLERANCE_NATS_PER_PIXEL = 1e-4
# Of the mean variance: kept above rounding where pixels are constant.
_VARIANCE_FLOOR = 1e-6
# Width, in log(1 + frequency) along each side, over which a component's variances are smoothed.
_SMOOTHING_WIDTH = 0.3


class Mixture(NamedTuple):
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


class Axes(NamedTuple):
    """Orthonormal columns (D, D), the averaging over neighbouring ones (D, D) along which variances vary slowly, and
    which of them carry the level of a channel (D,).

    The last two are None where the order of the axes says nothing.
    """

    basis: Tensor
    smoothing: Tensor | None
    levels: Tensor | None


def cosine_axes(images: Tensor) -> Axes:
    """Two-dimensional cosines of each channel, the principal axes of the channels between them, (..., row, column).

    Reference: Ahmed, Natarajan and Rao 1974, doi:10.1109/T-C.1974.223784.
    """
    *leading, rows, columns = images.shape[1:]
    sides = [torch.from_numpy(dct(np.eye(size), norm="ortho", axis=0)).to(images) for size in (rows, columns)]
    basis = torch.kron(*sides).mT.contiguous()
    row, column = (torch.arange(size, dtype=images.dtype, device=images.device).log1p() for size in (rows, columns))
    squared = (row[:, None] - row).square()[:, None, :, None] + (column[:, None] - column).square()[None, :, None, :]
    smoothing = torch.exp(-0.5 * squared / _SMOOTHING_WIDTH**2).reshape(rows * columns, rows * columns)
    smoothing = smoothing / smoothing.sum(1, keepdim=True)
    channels = math.prod(leading)
    if channels > 1:
        values = images.reshape(len(images), channels, -1)
        values = values - values.mean(0)
        between = torch.einsum("ncp,ndp->cd", values, values)
        basis = torch.kron(torch.linalg.eigh(between)[1].contiguous(), basis)
        smoothing = torch.block_diag(*[smoothing] * channels)
    levels = torch.zeros(len(basis), dtype=torch.bool, device=images.device)
    levels[:: rows * columns] = True
    return Axes(basis, smoothing, levels)


def principal_axes(flat: Tensor, share: Tensor) -> Axes:
    """Eigenvectors of the covariance within components, each scaled to the same mean variance: (D, D)."""
    count, means, variances = _moments(flat, share)
    scale = variances.mean(1)
    # A component of a single image has no variance of its own to be scaled by.
    scale = scale.clamp_min(1e-3 * float((scale * count).sum() / count.sum()) + 1e-300)
    offset = flat.mean(0)
    centred, means = flat - offset, means - offset
    weight = (share / scale).sum(1)
    within = (centred * weight[:, None]).mT @ centred - (means * (count / scale)[:, None]).mT @ means
    return Axes(torch.linalg.eigh(0.5 * (within + within.mT) / len(flat))[1], None, None)


def fitted_mixture(
    turned: Tensor, share: Tensor, axes: Axes, prior: float, white: float, n_steps: int
) -> tuple[Mixture, bool]:
    """Expectation maximisation from posteriors `share` (n, K), and whether its last step gained little."""
    last, converged = -math.inf, False
    mixture = _maximised(turned, share, axes, prior, white)
    for _ in range(n_steps):
        scores = mixture.scores(turned)
        mean = float(scores.logsumexp(1).mean())
        converged = abs(mean - last) < _TOLERANCE_NATS_PER_PIXEL * turned.shape[1]
        if converged:
            break
        last = mean
        mixture = _maximised(turned, scores.softmax(1), axes, prior, white)
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


def _maximised(turned: Tensor, share: Tensor, axes: Axes, prior: float, white: float) -> Mixture:
    """Weights, means and shrunk variances for the posteriors `share`, (n, K)."""
    count, means, variances = _moments(turned, share)
    pooled = (count[:, None] * variances).sum(0) / count.sum()
    level = pooled.mean().clamp_min(1e-300)
    # The pooled shape at the component's own contrast, itself drawn to the pooled one.
    own = (count * variances.mean(1) + level) / (count + 1.0)
    target = own[:, None] * pooled / level
    if axes.smoothing is not None:
        # The component's own shape, relative to the pooled one and smooth; one image's worth of the pooled one.
        shape = (variances / pooled.clamp_min(_VARIANCE_FLOOR * level)) @ axes.smoothing.mT
        target = (count[:, None] * shape * pooled + target) / (count[:, None] + 1.0)
    variances = (count[:, None] * variances + prior * target) / (count[:, None] + prior)
    variances = (1.0 - white) * variances + white * variances.mean(1, keepdim=True)
    variances = variances.clamp_min(_VARIANCE_FLOOR * float(level))
    if axes.levels is not None:
        means, moved = _shrunk_means(count, means, variances, axes.levels)
        variances = variances + moved
    # A component that no image took keeps a share, and its mean is that of all.
    means = torch.where(count[:, None] > 1e-6, means, turned.mean(0))
    weights = (count + 0.5) / (count + 0.5).sum()
    return Mixture(weights.log(), means, variances, axes.basis)


def _shrunk_means(count: Tensor, means: Tensor, variances: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Means (K, D) drawn to the common one, levels aside, as far as chance explains them; squared distances moved.

    Reference: James and Stein 1961, Proc. Fourth Berkeley Symp. 1, 361, for each component.
    """
    common = (count[:, None] * means).sum(0) / count.sum()
    deviation = torch.where(levels, 0.0, means - common)
    scatter = (count[:, None] * deviation.square() / variances).sum(1)
    degrees = float((~levels).sum()) - 2.0
    kept = (1.0 - degrees / scatter.clamp_min(1e-300)).clamp(0.0, 1.0)[:, None]
    moved = (1.0 - kept) * deviation
    return means - moved, moved.square()
