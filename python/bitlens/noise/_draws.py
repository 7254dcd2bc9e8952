"""Random numbers on the generator's device: one of the CPU gives one sample wherever the mean is."""

from __future__ import annotations

import torch
from torch import Tensor


def photon_counts(mean: Tensor, generator: torch.Generator | None) -> Tensor:
    """Poisson counts of `mean`, which gets no gradient, on its device."""
    device = mean.device if generator is None else generator.device
    return torch.poisson(mean.detach().to(device), generator=generator).to(mean.device)


def white_noise(mean: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of the shape and dtype of `mean`, on its device."""
    device = mean.device if generator is None else generator.device
    return torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=device).to(mean.device)
