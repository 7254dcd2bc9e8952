"""How many bits a batch of encoded scenes carries, as a differentiable function of the means."""

from __future__ import annotations

import torch
from torch import Tensor

from bitlens.estimators import _closed_form
from bitlens.noise import NoiseModel


def gaussian_information(mean: Tensor, noise: NoiseModel) -> Tensor:
    """0.5 log det(2 pi e Cov z) - E h(z|y), in nats per image: what a Gaussian z of that covariance would carry.

    Cov z = Cov E[z|y] + diag E Var(z|y), over the batch and in closed form over the noise: no noise is drawn. The
    noise on the diagonal keeps it regular for fewer scenes than pixels, and the log determinant of the covariance
    of n scenes is corrected to that of infinitely many (exact for Gaussian scenes as n and the pixels grow together).
    The maximum of entropy makes it an upper bound of the information up to that correction. Differentiable.

    Args:
        mean: (n, ...) encoded scenes, photo-electrons, n >= 2.

    Raises:
        ValueError: fewer than two scenes.
        TypeError: a noise model of the user's own without `expected` and `variance`.

    Reference: the correction inverts eq. 4 of Hachem et al. 2008, doi:10.1109/TIT.2008.928229.
    """
    if mean.ndim < 2 or mean.shape[0] < 2:
        raise ValueError(f"mean: need at least 2 encoded scenes (n, ...), got shape {tuple(mean.shape)}")
    return _closed_form.gaussian_information(mean.to(torch.float64), noise)
