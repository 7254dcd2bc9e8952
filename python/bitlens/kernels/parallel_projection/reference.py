"""Sums over pixels between the edges of bins and their adjoint, in torch on any device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Lookups at once: 32 MB for each of a few temporaries.
_CHUNK = 4_000_000


class Views(NamedTuple):
    """Where the edges of bins cross an image: its rows (part 0) or its columns (part 1).

    Edge b of a view crosses line i at start + width b + slope i, in pixels from the first pixel's outer edge.

    Attributes:
        start, width, slope: (part, view), float64; a width is not 0.
        inside: (part, view) whether the view is in the part, each in at most one.
        factor: (view,) float64, by which the sums are multiplied.
    """

    start: Tensor
    width: Tensor
    slope: Tensor
    inside: Tensor
    factor: Tensor


def project(image: Tensor, views: Views, n_bins: int) -> Tensor:
    """factor_v sum_i (P_i(edge b + 1) - P_i(edge b)), (batch, view, bin), of `image` (batch, row, column).

    P_i(x) is the integral of line i from 0 to x, linear within a pixel and constant outside the image.
    """
    edge = torch.arange(n_bins + 1, dtype=torch.float64, device=image.device)
    out = torch.zeros(len(image), len(views.factor), n_bins, dtype=torch.float64, device=image.device)
    for part, lines in enumerate((image.double(), image.double().mT)):
        line = torch.arange(lines.shape[1], device=image.device)
        table = _running_sums(lines)
        for some in _chunks(len(views.factor), lines[..., 0].numel() * (n_bins + 1)):
            start, width, slope = (values[part, some, None, None] for values in views[:3])
            places = start + width * edge[:, None] + slope * line
            sums = _look_up(table, line, places).sum(-1).diff(dim=-1) * views.factor[some, None]
            out[:, some] += torch.where(views.inside[part, some, None], sums, 0.0)
    return out.to(image.dtype)


def backproject(bins: Tensor, views: Views, shape: tuple[int, int]) -> Tensor:
    """(batch, row, column), the adjoint of `project`, of `bins` (batch, view, bin)."""
    rows, columns = shape
    weight = torch.where(views.inside, views.factor * views.width.abs(), 0.0).sum(0)
    table = _running_sums(bins.double() * weight[:, None])
    parts = []
    for part, (lines, pixels) in enumerate(((rows, columns), (columns, rows))):
        line = torch.arange(lines, dtype=torch.float64, device=bins.device)[:, None, None]
        edge = torch.arange(pixels + 1, dtype=torch.float64, device=bins.device)[:, None]
        sums = torch.zeros(len(bins), lines, pixels + 1, dtype=torch.float64, device=bins.device)
        for some in _chunks(len(views.factor), len(bins) * lines * (pixels + 1)):
            start, width, slope = (values[part, some] for values in views[:3])
            index = torch.arange(len(views.factor), device=bins.device)[some]
            found = _look_up(table, index, (edge - start - slope * line) / width)
            sums += torch.where(views.inside[part, some], found, 0.0).sum(-1)
        parts.append(sums.diff(dim=-1))
    return (parts[0] + parts[1].mT).to(bins.dtype)


def _chunks(views: int, per_view: int) -> list[slice]:
    count = max(1, _CHUNK // max(1, per_view))
    return [slice(begin, begin + count) for begin in range(0, views, count)]


def _running_sums(values: Tensor) -> Tensor:
    """(batch, line, n + 2): the sum up to every edge, the last one twice."""
    sums = torch.nn.functional.pad(values.cumsum(-1), (1, 1))
    sums[..., -1] = sums[..., -2]
    return sums


def _look_up(table: Tensor, line: Tensor, places: Tensor) -> Tensor:
    """(batch, ..., line) of `table` (batch, every line, n + 2) at `places` (..., line); NaN at a place that is NaN."""
    size = table.shape[-1]
    within = places.nan_to_num(0.0).clamp(0, size - 2)
    entry = within.long()
    flat, index = table.flatten(1), entry + size * line
    left = flat[:, index]
    found = left + (within - entry) * (flat[:, index + 1] - left)
    return torch.where(places.isfinite(), found, torch.nan)
