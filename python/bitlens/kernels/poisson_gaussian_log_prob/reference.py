"""Poisson-Gaussian log-likelihood as the explicit sum, in differentiable torch: the definition."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Half-widths of the sum in standard deviations of the summand, and a few terms more for small counts.
_WIDTHS, _EXTRA_TERMS = 9.0, 24


def poisson_gaussian_log_prob(measured: Tensor, mean: Tensor, gain: Tensor, offset: Tensor, read_std: Tensor) -> Tensor:
    """log sum_k Poisson(k; mean) Normal(measured; gain k + offset, read_std^2), NaN outside the domain."""
    measured, mean, gain, offset, read_std = torch.broadcast_tensors(measured, mean, gain, offset, read_std)
    valid = (mean >= 0) & (mean <= 1e15) & (gain > 0) & (read_std > 0)
    for tensor in (measured, mean, gain, offset, read_std):
        valid = valid & torch.isfinite(tensor)

    def inside(tensor: Tensor, harmless: float) -> Tensor:
        return torch.where(valid, tensor, torch.full_like(tensor, harmless))

    z, y = inside(measured, 0.0), inside(mean, 1.0)
    g, o, s = inside(gain, 1.0), inside(offset, 0.0), inside(read_std, 1.0)
    if z.numel() == 0:
        return z + y + g + o + s

    # Below 1e-30 photons the sum is its first three terms; written so that y = 0 has finite derivatives.
    faint = y < 1e-30
    one = ((g * (z - o)) - 0.5 * g**2) / s**2
    pair = (2 * g * (z - o) - 2 * g**2) / s**2
    y_faint = torch.where(faint, y, torch.zeros_like(y))
    # Clamped: an overflow times y = 0 would be NaN.
    largest = 600 if z.dtype == torch.float64 else 80
    one_faint, pair_faint = (torch.where(faint, t, torch.zeros_like(t)).clamp(max=largest) for t in (one, pair))
    dark = -y_faint + torch.log1p(y_faint * torch.exp(one_faint) + 0.5 * y_faint**2 * torch.exp(pair_faint))
    dark = dark - 0.5 * ((z - o) / s) ** 2 - torch.log(s) - 0.5 * math.log(2 * math.pi)

    lit = torch.where(faint, torch.ones_like(y), y)
    centre, half = _window(z, lit, g, o, s)
    k = centre.unsqueeze(-1) + torch.arange(-half, half + 1, device=z.device, dtype=z.dtype)
    inside_support = k >= 0
    k = k.clamp(min=0)
    log_poisson = _log_poisson(k, lit.unsqueeze(-1))
    residual = _residual(z.unsqueeze(-1), o.unsqueeze(-1), g.unsqueeze(-1), k)
    log_normal = -0.5 * (residual / s.unsqueeze(-1)) ** 2 - torch.log(s).unsqueeze(-1) - 0.5 * math.log(2 * math.pi)
    total = torch.logsumexp((log_poisson + log_normal).masked_fill(~inside_support, -torch.inf), dim=-1)
    return torch.where(valid, torch.where(faint, dark, total), torch.full_like(total, torch.nan))


def _residual(z: Tensor, o: Tensor, g: Tensor, k: Tensor) -> Tensor:
    """z - o - g k, with the rounding of z - o put back and, in float64, g k without rounding up to 5e8 counts."""
    signal = z - o
    head = g.detach().float().to(g.dtype)
    with torch.no_grad():
        virtual = z - signal
        error = (z - (signal + virtual)) + (virtual - o)
    return ((signal - head * k) - (g - head) * k) + error


def _log_poisson(k: Tensor, y: Tensor) -> Tensor:
    """k log y - y - log k!, by Stirling's formula and Loader's (2000) deviance: k log y alone costs 1e-9 at 1e6."""
    count = k.clamp(min=1)
    excess = (count - y) / y
    deviance = y * ((1 + excess) * torch.log1p(excess) - excess)
    return torch.where(k > 0, -deviance - _stirling_error(count) - 0.5 * torch.log(2 * math.pi * count), -y)


def _stirling_error(k: Tensor) -> Tensor:
    """log k! - (k + 1/2) log k + k - log(2 pi) / 2 for k of 1 or more."""
    inverse_square = 1 / k**2
    series = (1 / 12 - (1 / 360 - (1 / 1260 - inverse_square / 1680) * inverse_square) * inverse_square) / k
    difference = torch.lgamma(k + 1) - (k + 0.5) * torch.log(k) + k - 0.5 * math.log(2 * math.pi)
    return torch.where(k > 15.5, series, difference)


@torch.no_grad()
def _window(z: Tensor, y: Tensor, g: Tensor, o: Tensor, s: Tensor) -> tuple[Tensor, int]:
    """Mode of the summand in k (Newton steps on log k) and a half-width that covers every element."""
    a = (g.double() / s.double()) ** 2
    level = torch.log(y.double()) + a * (z.double() - o.double()) / g.double()
    log_k = torch.minimum(level, torch.log(torch.clamp(level / a, min=1e-300)).clamp(min=0) + 1)
    for _ in range(60):
        slope = 1 + a * torch.exp(log_k)
        log_k = log_k - ((log_k + a * torch.exp(log_k) - level) / slope).clamp(-5, 5)
    mode = torch.exp(log_k)
    width = (1 / (1 / mode.clamp(min=1) + a)).sqrt().max().item()
    return mode.round().to(z.dtype), math.ceil(_WIDTHS * width) + _EXTRA_TERMS
