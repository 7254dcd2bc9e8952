"""What a Gaussian of the measurements' covariance carries, as a differentiable function of noiseless images."""

from __future__ import annotations

import torch
from torch import Tensor

from bitlens.noise import NoiseModel
from bitlens.noise._abilities import HasMoments
from bitlens.noise.base import LOG_TWO_PI_E

# The correction for few scenes stops here: below, the sample covariance says too little about the true one.
_SMALLEST_SHARE = 0.02


def gaussian_information(mean: Tensor, noise: NoiseModel) -> Tensor:
    """0.5 log det(2 pi e Cov z) - E h(z|y), nats per image, from noiseless images (n, ...) float64, n >= 2.

    Cov z = Cov E[z|y] + diag E Var(z|y), in closed form over the noise: none is drawn. The log determinant of the
    covariance of n scenes is corrected to that of infinitely many. An upper bound of the information up to that
    correction, because a Gaussian has the largest entropy. Differentiable in `mean` and the parameters of the noise.

    Raises:
        TypeError: a noise model of the user's own without `expected` and `variance`.

    Reference: the correction inverts eq. 4 of Hachem et al. 2008, doi:10.1109/TIT.2008.928229.
    """
    moments = check_moments(noise)
    variance = moments.variance(mean).flatten(1).mean(dim=0)
    if noise.discrete:
        # The entropy of counts is the differential entropy of counts + Uniform(0, 1).
        variance = variance + 1 / 12
    expected = moments.expected(mean).flatten(1)
    whitened = (expected - expected.mean(dim=0)) / variance.sqrt()
    log_determinant = torch.log(variance).sum() + _log_det_one_plus(whitened)
    entropy_given_scene = noise.entropy(mean).flatten(1).sum(dim=1).mean()
    return 0.5 * (variance.numel() * LOG_TWO_PI_E + log_determinant) - entropy_given_scene


def check_moments(noise: NoiseModel) -> HasMoments:
    """The noise model, which has the expectation and variance that the closed form takes.

    Raises:
        TypeError: a model of the user's own without them.
    """
    if not isinstance(noise, HasMoments):
        raise TypeError(
            "noise: need methods expected(mean) and variance(mean) for the Gaussian objective; "
            f"{type(noise).__name__} has not both"
        )
    return noise


def _log_det_one_plus(centred: Tensor) -> Tensor:
    """log det(I + C) of the covariance C behind the n rows of `centred`, each with its sample mean taken off.

    With S the sample covariance of n degrees of freedom and kappa the largest root of
    kappa = 1 - tr[S (kappa I + S)^-1] / n, the value
    log det(kappa I + S) - (D - n) log kappa + n (1 - kappa) tends to log det(I + C) where D / n stays fixed.
    It is stationary in kappa, so the gradient at fixed kappa is the whole gradient.
    """
    if not bool(torch.isfinite(centred.detach()).all()):
        # A factorisation would raise; NaN goes on to whoever judges the value.
        return centred.sum() * torch.nan
    degrees, n_pixels = centred.shape[0] - 1, centred.shape[1]
    # The smaller of the two products has the same non-zero eigenvalues.
    by_scene = centred.shape[0] <= n_pixels
    product = (centred @ centred.mT if by_scene else centred.mT @ centred) / degrees
    size = product.shape[0]
    with torch.no_grad():
        kappa = _noise_share(torch.linalg.eigvalsh(product.detach()).clamp(min=0.0), degrees)
    identity = torch.eye(size, dtype=product.dtype, device=product.device)
    factor = torch.linalg.cholesky(product + kappa * identity)
    log_determinant = 2 * torch.log(factor.diagonal()).sum() + (n_pixels - size) * torch.log(kappa)
    return log_determinant - (n_pixels - degrees) * torch.log(kappa) + degrees * (1 - kappa)


def _noise_share(eigenvalues: Tensor, degrees: int) -> Tensor:
    """The largest root in (0, 1] of kappa - 1 + sum s / (kappa + s) / degrees, a convex function, by Newton from 1."""
    kappa = torch.ones((), dtype=eigenvalues.dtype, device=eigenvalues.device)
    for _ in range(50):
        value = kappa - 1 + (eigenvalues / (kappa + eigenvalues)).sum() / degrees
        slope = 1 - (eigenvalues / (kappa + eigenvalues) ** 2).sum() / degrees
        if not bool(slope > 0):
            return torch.full_like(kappa, _SMALLEST_SHARE)
        step = value / slope
        kappa = kappa - step
        if not bool(kappa > _SMALLEST_SHARE):
            return torch.full_like(kappa, _SMALLEST_SHARE)
        if bool(step.abs() < 1e-13):
            break
    return kappa
