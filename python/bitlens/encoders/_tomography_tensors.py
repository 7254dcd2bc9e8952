"""The sums of `_tomography_loops` as operations on whole tensors, for devices other than the CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.encoders._tomography_rays import NEAR, Rays

# Lookups at once: 32 MB for each of a few temporaries.
_CHUNK = 4_000_000


class _Lookup(NamedTuple):
    """What the edges of some views find in the rows' running sums: all (batch, view, edge, row) but `weight`."""

    weight: Tensor
    left: Tensor
    step: Tensor
    after: Tensor


def _views_at_once(rays: Rays, per_view: int) -> list[slice]:
    count = max(1, _CHUNK // max(1, per_view))
    return [slice(begin, begin + count) for begin in range(0, len(rays.intercept), count)]


def _look_up(image: Tensor, rays: Rays, views: slice) -> _Lookup:
    _, rows, columns = image.shape
    running = torch.nn.functional.pad(image.cumsum(-1), (1, 1))
    running[..., -1] = running[..., -2]
    row = torch.arange(rows, device=image.device)
    x = rays.intercept_of_edges()[views, :, None] + rays.slope[views, :, None] * row
    weight = rays.factor[views, None, None].expand_as(x)
    if rays.fan:
        distance = row - rays.source_row[views, None]
        ahead = distance * rays.direction[views, None] > NEAR
        weight = weight * torch.where(ahead, 1 / torch.where(ahead, distance, 1.0), 0.0)[:, None]
    within = torch.where(x > 0, x, 0.0).clamp(max=columns)
    pixel = within.long()
    flat, index = running.flatten(1), pixel + (columns + 2) * row
    left = flat[:, index]
    step = flat[:, index + 1] - left
    return _Lookup(weight, left + (within - pixel) * step, torch.where(x > 0, step, 0.0), x > 0)


def sums_in_torch(image: Tensor, rays: Rays) -> Tensor:
    """(batch, view, bin) of `image` (batch, row, column), of its dtype."""
    views, bins = rays.inside.shape[1], len(rays.edge) - 1
    out = torch.zeros(len(image), views, bins, dtype=torch.float64, device=image.device)
    for index, lines in enumerate((image.double(), image.double().mT)):
        part = rays.part(index)
        for some in _views_at_once(part, lines[..., 0].numel() * (bins + 1)):
            found = _look_up(lines, part, some)
            sums = (found.weight * found.left).sum(-1).diff(dim=-1)
            out[:, some] += torch.where(part.inside[some], sums, 0.0)
    return out.to(image.dtype)


def slopes_in_torch(image: Tensor, rays: Rays) -> Tensor:
    """(3, part, batch, view, edge): d (sum up to an edge) / d its intercept, slope and source row, float64."""
    views, edges = rays.inside.shape[1], len(rays.edge)
    out = torch.zeros(3, 2, len(image), views, edges, dtype=torch.float64, device=image.device)
    for index, lines in enumerate((image.double(), image.double().mT)):
        part, row = rays.part(index), torch.arange(lines.shape[1], device=image.device)
        for some in _views_at_once(part, lines[..., 0].numel() * edges):
            found = _look_up(lines, part, some)
            out[0, index, :, some] = (found.weight * found.step).sum(-1)
            out[1, index, :, some] = (found.weight * row * found.step).sum(-1)
            if rays.fan:
                factor = torch.where(part.factor == 0, 1.0, part.factor)[some, None, None]
                out[2, index, :, some] = (found.weight**2 / factor * found.left * found.after).sum(-1)
    return out


def pieces(bins: Tensor, rays: Rays) -> tuple[Tensor, Tensor]:
    """(part, batch, view, bin + 2): intercept and slope over q of a fan's integrated bins, constant on both sides."""
    key = rays.slope[:, None]
    values = torch.where(rays.inside[:, None], rays.factor[:, None] * bins, 0.0)
    integral = torch.nn.functional.pad((values * key.diff(dim=-1)).cumsum(-1), (1, 0))
    constants = torch.nn.functional.pad(integral[..., :-1] - values * key[..., :-1], (1, 1))
    constants[..., -1] = integral[..., -1]
    return constants, torch.nn.functional.pad(values, (1, 1))


def adjoint_in_torch(bins: Tensor, rays: Rays, shape: tuple[int, int]) -> Tensor:
    """(batch, row, column) of a fan's `bins` (batch, view, bin), of their dtype: the adjoint of `sums_in_torch`."""
    constants, values = pieces(bins.double(), rays)
    of_rows = _part_adjoint_in_torch(constants[0], values[0], rays.part(0), shape)
    of_columns = _part_adjoint_in_torch(constants[1], values[1], rays.part(1), shape[::-1])
    return (of_rows + of_columns.mT).to(bins.dtype)


def _part_adjoint_in_torch(constants: Tensor, values: Tensor, rays: Rays, shape: tuple[int, int]) -> Tensor:
    rows, columns = shape
    batch, _, size = constants.shape
    row = torch.arange(rows, dtype=torch.float64, device=constants.device)[:, None]
    column = torch.arange(columns + 1, dtype=torch.float64, device=constants.device)
    first = rays.inside.int().argmax(-1, keepdim=True)
    last = first + rays.inside.sum(-1, keepdim=True)
    alpha, beta = (value.gather(-1, first)[..., None] for value in (rays.intercept, rays.slope))
    sign = torch.sign(rays.slope.gather(-1, last)[..., None] - beta) * rays.direction[:, None, None]
    a, b, c, d = (value[:, None, None] for value in rays.inverse.unbind(-1))
    sums = torch.zeros(batch, rows, columns + 1, dtype=torch.float64, device=constants.device)
    for views in _views_at_once(rays, batch * rows * (columns + 1)):
        source = rays.source_row[views, None, None]
        distance = row - source
        ahead = distance * rays.direction[views, None, None] > NEAR
        q = (column - alpha[views] - beta[views] * source) / torch.where(ahead, distance, 1.0)
        position = 1 + (a[views] - c[views] * q) / (d[views] * q - b[views])
        index = position.nan_to_num(0.0).clamp(0, size - 1).long()
        index = index + size * torch.arange(len(q), device=q.device)[:, None, None]
        constant, value = (table[:, views].flatten(1)[:, index] for table in (constants, values))
        sums += (torch.where(ahead, sign[views], 0.0) * (constant + value * q)).sum(1)
    return sums.diff(dim=-1)
