"""Synthetic skies for telescopes: fields of stars, and bright stars with a faint companion. Float32, repeatable."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitlens.datasets.phantoms_microscopy import add_points


def star_field(
    n_scenes: int, shape: tuple[int, int], *, count: int, brightest: float, generator: torch.Generator
) -> Tensor:
    """Flux (n, 1, row, column) of `count` stars each, anywhere: N(> flux) ~ flux^-1 between 1 and `brightest`."""
    size = torch.tensor(shape, dtype=torch.float64) - 1
    place = torch.rand((n_scenes, count, 2), generator=generator, dtype=torch.float64) * size
    chance = torch.rand((n_scenes, count), generator=generator, dtype=torch.float64)
    scenes = torch.zeros((n_scenes, *shape), dtype=torch.float64)
    add_points(scenes, place, 1 / (1 - chance * (1 - 1 / brightest)))
    return scenes[:, None].float()


def companions(
    n_scenes: int,
    shape: tuple[int, int],
    *,
    separation_samples: tuple[float, float],
    contrast: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Flux (n, 1, row, column) of a star of 1 in the middle sample and a companion of log-uniform `contrast`.

    The separation is uniform in its range and the direction anywhere.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((n_scenes,), generator=generator, dtype=torch.float64)

    separation, angle = uniform(*separation_samples), uniform(0, 2 * math.pi)
    flux = uniform(math.log(contrast[0]), math.log(contrast[1])).exp()
    middle = torch.tensor([shape[0] // 2, shape[1] // 2], dtype=torch.float64)
    offset = separation[:, None] * torch.stack((angle.sin(), angle.cos()), dim=1)
    place = torch.stack((middle.expand(n_scenes, 2), middle + offset), dim=1)
    limit = torch.tensor(shape, dtype=torch.float64) - 1
    scenes = torch.zeros((n_scenes, *shape), dtype=torch.float64)
    add_points(scenes, torch.minimum(place.clamp(min=0), limit), torch.stack((torch.ones_like(flux), flux), dim=1))
    return scenes[:, None].float()
