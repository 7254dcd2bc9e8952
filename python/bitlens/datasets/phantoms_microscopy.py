"""Synthetic specimens for microscopes: nuclei, beads, transparent cells, particles in depth. Float32, repeatable."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def nuclei(n_scenes: int, shape: tuple[int, int], *, sample_um: float, generator: torch.Generator) -> Tensor:
    """Stained nuclei (n, 1, row, column) >= 0: ellipsoids of 2.5 to 5 um radius seen from above, with texture.

    One per 150 um^2 on average and at least one; the brightness of the thickest part is around 1.
    """
    rows, columns = shape
    count = max(1, round(rows * columns * sample_um**2 / 150))
    thickness = _ellipsoids(n_scenes, shape, count, (2.5, 5.0), sample_um, generator)
    brightness = 0.6 + 0.8 * torch.rand((n_scenes, count, 1, 1), generator=generator)
    texture = _smooth_noise(n_scenes, shape, 0.6 / sample_um, generator)
    return ((brightness * thickness).sum(dim=1) * (1 + 0.3 * texture)).clamp(min=0)[:, None]


def points(
    n_scenes: int, shape: tuple[int, int], *, count: int, flux: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """(n, 1, row, column): `count` points each, anywhere between the samples, their flux log-uniform within `flux`.

    A point is shared among its four neighbours by bilinear weights, so that its sum is its flux.
    """
    scenes = torch.zeros((n_scenes, *shape), dtype=torch.float64)
    size = torch.tensor(shape, dtype=torch.float64) - 1
    place = torch.rand((n_scenes, count, 2), generator=generator, dtype=torch.float64) * size
    low, high = math.log(flux[0]), math.log(flux[1])
    value = (low + (high - low) * torch.rand((n_scenes, count), generator=generator, dtype=torch.float64)).exp()
    add_points(scenes, place, value)
    return scenes[:, None].float()


def add_points(scenes: Tensor, place: Tensor, flux: Tensor) -> None:
    """Adds points of `flux` (n, point) at `place` (n, point, 2), in samples, to scenes (n, row, column) in place."""
    corner = place.floor().long()
    corner = torch.minimum(corner, torch.tensor(scenes.shape[-2:]) - 2).clamp(min=0)
    part = place - corner
    which = torch.arange(len(scenes))[:, None].expand(flux.shape)
    for down in (0, 1):
        for across in (0, 1):
            share = (part[..., 0] if down else 1 - part[..., 0]) * (part[..., 1] if across else 1 - part[..., 1])
            scenes.index_put_((which, corner[..., 0] + down, corner[..., 1] + across), flux * share, accumulate=True)


def transparent_cells(
    n_scenes: int,
    shape: tuple[int, int],
    *,
    sample_um: float,
    peak_phase_rad: float,
    absorption: float,
    generator: torch.Generator,
) -> Tensor:
    """Absorption and phase (n, 2, row, column) of cells in water: amplitude transmission exp(-absorption + i phase).

    Ellipsoids of 3 to 7 um radius, the phase of the thickest `peak_phase_rad`, with granules; periodic.
    """
    rows, columns = shape
    count = max(1, round(rows * columns * sample_um**2 / 250))
    cells = _ellipsoids(n_scenes, shape, count, (3.0, 7.0), sample_um, generator).amax(dim=1)
    grain = _smooth_noise(n_scenes, shape, 0.7 / sample_um, generator)
    stain = _smooth_noise(n_scenes, shape, 1.2 / sample_um, generator)
    phase = peak_phase_rad * cells * (1 + 0.25 * grain)
    return torch.stack((absorption * cells * (1 + 0.5 * stain).clamp(min=0), phase), dim=1)


def particles(
    n_scenes: int,
    n_depths: int,
    shape: tuple[int, int],
    *,
    sample_um: float,
    radius_um: tuple[float, float],
    per_mm2: float,
    generator: torch.Generator,
) -> Tensor:
    """Coverage 0..1 (n, depth, row, column): discs of random radius, place and depth, their edges in part.

    Args:
        per_mm2: particles per square millimetre over all depths; at least one in each scene.
    """
    rows, columns = shape
    count = max(1, round(rows * columns * sample_um**2 * 1e-6 * per_mm2))
    low, high = radius_um
    radius = low + (high - low) * torch.rand((n_scenes, count, 1, 1), generator=generator)
    place = torch.rand((n_scenes, count, 2), generator=generator) * torch.tensor([rows, columns])
    depth = torch.randint(n_depths, (n_scenes, count), generator=generator)
    scenes = torch.zeros((n_scenes, n_depths, rows, columns))
    for index in range(count):
        row = torch.arange(rows) - place[:, index, 0, None]
        column = torch.arange(columns) - place[:, index, 1, None]
        distance = torch.hypot(row[:, :, None], column[:, None, :])
        disc = (radius[:, index] / sample_um - distance + 0.5).clamp(0, 1)
        here = (torch.arange(n_scenes), depth[:, index])
        scenes[here] = torch.maximum(scenes[here], disc)
    return scenes


def _ellipsoids(
    n_scenes: int,
    shape: tuple[int, int],
    count: int,
    radius_um: tuple[float, float],
    sample_um: float,
    generator: torch.Generator,
) -> Tensor:
    """Thickness (n, count, row, column) of ellipsoids over that of their middle, on a periodic field."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((n_scenes, count, 1, 1), generator=generator)

    def offset(size: int, axis: int) -> Tensor:
        along = torch.arange(size).reshape((-1, 1) if axis == 0 else (1, -1)) - uniform(0, size)
        return (along + size / 2).remainder(size) - size / 2

    row, column = offset(shape[0], 0), offset(shape[1], 1)
    angle, first, second = uniform(0, math.pi), uniform(*radius_um) / sample_um, uniform(*radius_um) / sample_um
    along = column * angle.cos() + row * angle.sin()
    across = row * angle.cos() - column * angle.sin()
    return (1 - (along / first) ** 2 - (across / second) ** 2).clamp(min=0).sqrt()


def _smooth_noise(n_scenes: int, shape: tuple[int, int], width_samples: float, generator: torch.Generator) -> Tensor:
    """White noise blurred by a periodic Gaussian of that standard deviation, of variance 1: (n, row, column)."""
    white = torch.randn((n_scenes, *shape), generator=generator)
    row, column = torch.fft.fftfreq(shape[0])[:, None], torch.fft.rfftfreq(shape[1])[None, :]
    transfer = torch.exp(-2 * (math.pi * width_samples) ** 2 * (row**2 + column**2))
    smooth: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * transfer, s=shape)
    smooth = smooth - smooth.mean(dim=(-2, -1), keepdim=True)
    return smooth / smooth.std(dim=(-2, -1), keepdim=True).clamp(min=1e-6)
