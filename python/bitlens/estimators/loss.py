"""`InformationLoss`: minus the information of a batch of noiseless images, for training loops."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from bitlens.estimators._closed_form import gaussian_information
from bitlens.estimators._sampled_bound import sampled_lower_bound
from bitlens.kernels._autocast import full_precision
from bitlens.noise import NoiseModel
from bitlens.noise._abilities import ChecksMean

OBJECTIVES = ("gaussian", "known_channel")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@final
class InformationLoss(nn.Module):
    """forward(mean) = -I in bits per image: minus what measurements of the noiseless images carry about the scene.

    "gaussian": 0.5 log2 det(2 pi e Cov z) - h(z|y) over the batch, in closed form, no noise drawn: an upper bound of
    the information up to the correction for few scenes. "known_channel": the lower bound
    L_K <= log2 K of K images, independent draws of the scene; noise is drawn afresh from `generator` in every call.
    Both differentiate in `mean` and the noise's parameters. Photon counts have an exact gradient in the mean,
    E f(N + 1) - E f(N); a noise model of the user's own without differentiable samples has the score function's.

    Args:
        noise: the sensor; where its parameters require grad, they are parameters of the loss.
        generator: of the noise; None takes torch's own.

    Reference: Pinkard et al. 2024, arXiv 2405.20559; Poole et al. 2019, arXiv 1905.06922, section 2.5.
    """

    def __init__(
        self, noise: NoiseModel, *, objective: str = "gaussian", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if not isinstance(noise, NoiseModel):
            raise TypeError(f"noise: need a noise model such as bitlens.GaussianNoise, got {type(noise).__name__}")
        if objective not in OBJECTIVES:
            raise ValueError(f"objective: need one of {', '.join(map(repr, OBJECTIVES))}, got {objective!r}")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator: need a torch.Generator or None, got {type(generator).__name__}")
        self.noise = noise
        self.objective = objective
        self.generator = generator

    def forward(self, mean: Tensor) -> Tensor:
        """Minus bits per image of (n, ...) noiseless images, n >= 2, photo-electrons; the dtype and device of `mean`.

        Computed in float64. NaN or infinity in `mean` gives NaN.

        Raises:
            TypeError: not a tensor of floats, or for "gaussian" a noise model without `expected` and `variance`.
            ValueError: fewer than two images, or means outside the domain of the noise.
        """
        if not isinstance(mean, Tensor) or mean.dtype not in _FLOATS:
            got = mean.dtype if isinstance(mean, Tensor) else type(mean).__name__
            raise TypeError(f"mean: need a tensor of floats, got {got}")
        if mean.ndim < 2 or mean.shape[0] < 2 or mean.numel() == 0:
            raise ValueError(f"mean: need at least 2 images (n, ...), got shape {tuple(mean.shape)}")
        return (_nats(mean, self.noise, self.objective, self.generator) / -math.log(2.0)).to(mean.dtype)

    def extra_repr(self) -> str:
        """What is printed beside the noise."""
        return f"objective={self.objective!r}"


@full_precision
def _nats(mean: Tensor, noise: NoiseModel, objective: str, generator: torch.Generator | None) -> Tensor:
    wide = mean.to(torch.float64)
    if not bool(torch.isfinite(wide.detach()).all()):
        return wide.sum() * torch.nan
    if isinstance(noise, ChecksMean):
        noise.check_mean(wide.detach())
    if objective == "gaussian":
        return gaussian_information(wide, noise)
    return sampled_lower_bound(wide, noise, generator)
