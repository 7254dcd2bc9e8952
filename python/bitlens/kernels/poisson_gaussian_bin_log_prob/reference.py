"""Bin probability of a digitised, saturating sensor as the explicit sum, in differentiable torch: the definition."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_WIDTHS, _EXTRA_TERMS = 9.5, 24
_LARGEST_MEAN = 1e9
_FAINT = 1e-290


def poisson_gaussian_bin_log_prob(
    measured: Tensor,
    mean: Tensor,
    gain: Tensor,
    offset: Tensor,
    read_std: Tensor,
    below: Tensor,
    above: Tensor,
    full_well: Tensor,
) -> Tensor:
    """log P(measured - below < gain min(N, full_well) + offset + read_std n <= measured + above); NaN outside."""
    tensors = torch.broadcast_tensors(measured, mean, gain, offset, read_std, below, above, full_well)
    measured, mean, gain, offset, read_std, below, above, full_well = tensors
    valid = (mean >= 0) & (mean <= _LARGEST_MEAN) & (gain > 0) & (read_std > 0) & (full_well > 0)
    valid = valid & (below >= 0) & (above >= 0) & torch.isfinite(torch.minimum(below, above))
    for tensor in tensors[:5]:
        valid = valid & torch.isfinite(tensor)

    def inside(tensor: Tensor, harmless: float) -> Tensor:
        return torch.where(valid, tensor, torch.full_like(tensor, harmless))

    z, y, g, o, s = (inside(t, h) for t, h in zip(tensors[:5], (0.0, 1.0, 1.0, 0.0, 1.0), strict=True))
    down, up, well = inside(below, 1.0), inside(above, 1.0), inside(full_well, 1.0)
    if z.numel() == 0:
        return z + y + g + o + s
    low, high, filled = _window(z, y, g, o, s, down, up, well)
    count = low.unsqueeze(-1) + torch.arange(int((high - low).max().item()) + 1, device=z.device, dtype=z.dtype)
    kept = (count <= high.unsqueeze(-1)) & (count < filled.unsqueeze(-1))
    k = torch.where(kept, count, torch.zeros_like(count))
    dark = y < _FAINT
    lit = torch.where(dark, torch.ones_like(y), y).unsqueeze(-1)
    # Without light a first-order term stands for the electron that a little light would bring.
    log_poisson = torch.xlogy(k, lit) - lit - torch.lgamma(k + 1)
    wide = [t.unsqueeze(-1) for t in (z, g, o, s, down, up)]
    terms = (log_poisson + _log_mass(k, *wide)).masked_fill(~kept, -torch.inf)
    full = _log_tail(filled, lit[..., 0], well) + _log_mass(
        torch.where(torch.isfinite(well), well, 0.0), z, g, o, s, down, up
    )
    total = torch.logsumexp(torch.cat([terms, full.unsqueeze(-1)], dim=-1), dim=-1)
    none = _log_mass(torch.zeros_like(y), z, g, o, s, down, up)
    one = _log_mass(torch.clamp(well, max=1.0), z, g, o, s, down, up)
    in_dark = none + torch.where(dark, y, torch.zeros_like(y)) * torch.expm1((one - none).detach().clamp(max=700.0))
    return torch.where(valid, torch.where(dark, in_dark, total), torch.full_like(total, torch.nan))


def _log_mass(k: Tensor, z: Tensor, g: Tensor, o: Tensor, s: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """log of the normal mass between the edges for k electrons; of the density where the edges are one."""
    middle = (z - o - g * k) / s
    density = (below + above) == 0
    open_below, open_above = torch.isinf(below), torch.isinf(above)
    # Gradients must not meet an infinite edge, nor one bin without width.
    a = middle - torch.where(open_below | density, torch.ones_like(below), below) / s
    b = middle + torch.where(open_above | density, torch.ones_like(above), above) / s
    flipped = (open_above | (a + b > 0)) & ~open_below
    near = torch.where(flipped, -a, b)  # both edges on the side of the tail, this the larger
    far = torch.where(flipped, -b, a)
    log_near = torch.special.log_ndtr(near)
    one_edge = open_below | open_above
    ratio = torch.where(one_edge, torch.full_like(near, -1.0), torch.special.log_ndtr(far) - log_near)
    mass = log_near + torch.where(one_edge, torch.zeros_like(near), torch.log(-torch.expm1(ratio)))
    log_density = -0.5 * middle**2 - torch.log(s) - 0.5 * math.log(2 * math.pi)
    return torch.where(density, log_density, mass)


def _log_tail(filled: Tensor, y: Tensor, well: Tensor) -> Tensor:
    """log P(N >= filled), -inf without a full well; differentiable in y through the last count below."""
    finite = torch.isfinite(well)
    count = torch.where(finite, filled, torch.ones_like(filled))
    with torch.no_grad():
        reach = int((_WIDTHS * 1.3 * y.max().sqrt() + 60).item())
    step = torch.arange(reach, dtype=y.dtype, device=y.device)
    up = count.unsqueeze(-1) + step
    down = (count - 1).unsqueeze(-1) - step
    light = y.unsqueeze(-1)
    above = torch.logsumexp(torch.xlogy(up, light) - light - torch.lgamma(up + 1), dim=-1)
    safe = down.clamp(min=0)
    terms = (torch.xlogy(safe, light) - light - torch.lgamma(safe + 1)).masked_fill(down < 0, -torch.inf)
    below = torch.logsumexp(terms, dim=-1)
    above_small = count > y
    rest = torch.log1p(-torch.exp(torch.where(above_small, torch.full_like(below, -1.0), below)))
    return torch.where(finite, torch.where(above_small, above, rest), torch.full_like(above, -torch.inf))


@torch.no_grad()
def _window(
    z: Tensor, y: Tensor, g: Tensor, o: Tensor, s: Tensor, below: Tensor, above: Tensor, well: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """First and last count of the sum, and the first count that fills the well."""
    filled = torch.where(torch.isfinite(well), torch.ceil(well), torch.full_like(well, 1e15))
    root = y.sqrt()
    edges = []
    for edge in (z - below, z + above):
        point = torch.minimum(torch.maximum(edge, o - s), g * y + o + 40 * (g * root + s) + 40 * g)
        edges.append(_mode(point, y, g, o, s))
    middle = torch.minimum(torch.maximum(y, edges[0]), edges[1])
    low, high = torch.minimum(edges[0], middle), torch.maximum(edges[1], middle)
    a = (g / s) ** 2

    def spread(mode: Tensor) -> Tensor:
        return _WIDTHS * (1 / (1 / mode.clamp(min=1) + a)).sqrt() + _EXTRA_TERMS

    low = (low - spread(low)).clamp(min=0)
    high = torch.minimum(high + spread(high), y + 12 * root + 60 + high)
    last = (filled - 1).clamp(max=9e15)
    low = torch.minimum(low, (last - spread(last)).clamp(min=0))
    return low.floor(), torch.minimum(high.ceil(), last), filled


def _mode(z: Tensor, y: Tensor, g: Tensor, o: Tensor, s: Tensor) -> Tensor:
    a = (g.double() / s.double()) ** 2
    level = torch.log(y.double().clamp(min=1e-290)) + a * (z.double() - o.double()) / g.double()
    log_k = torch.minimum(level, torch.log(torch.clamp(level / a, min=1e-300)).clamp(min=0) + 1)
    for _ in range(60):
        slope = 1 + a * torch.exp(log_k)
        log_k = log_k - ((log_k + a * torch.exp(log_k) - level) / slope).clamp(-5, 5)
    return torch.exp(log_k).round().to(z.dtype)
