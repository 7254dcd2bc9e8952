"""Photographs for the study of colour filter arrays, the lens that all arrays share, and what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitlens.datasets import linearize_srgb, load_scene
from bitlens.encoders import Camera
from bitlens.encoders.sensor import integrate_pixels

# Red, green and blue light, and a lens that two samples per pixel resolve.
BAND_NM, F_NUMBER, PIXEL_UM, OVERSAMPLING, MARGIN = (610.0, 540.0, 460.0), 8.0, 3.45, 2, 4
# Photo-electrons that one band gives a clear pixel where a photograph is white.
PHOTONS = 1000.0
REGION = 128


def photographs(names: Sequence[str], folder: Path | None = None) -> list[Tensor]:
    """Bundled photographs and those of a folder of PNG files, linear light (3, row, column) from 0 to 1."""
    found = [load_scene(name, color=True) for name in names]
    if folder is not None:
        from skimage.io import imread

        for file in sorted(folder.glob("*.png")):
            linear = linearize_srgb(np.asarray(imread(file)) / 255)
            found.append(torch.from_numpy(np.moveaxis(linear, -1, 0).astype(np.float32)))
    return found


def regions_of(images: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The white and the black fields of a chessboard over each photograph: regions that judge, and others."""
    fields: tuple[list[Tensor], list[Tensor]] = ([], [])
    for image in images:
        rows, columns = (max(1, side // REGION) for side in image.shape[1:])
        for row, strip in enumerate(image.tensor_split(rows, 1)):
            for column, region in enumerate(strip.tensor_split(columns, 2)):
                fields[(row + column) % 2].append(region)
    return fields


def patches(regions: Sequence[Tensor], n_scenes: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Patches (n, 3, size, size) in turn from each region, turned and mirrored at random, and their regions (n,)."""
    draws = torch.Generator().manual_seed(seed)
    found = torch.empty(n_scenes, 3, size, size)
    for index in range(n_scenes):
        region = regions[index % len(regions)]
        row, column = (int(torch.randint(side - size + 1, (), generator=draws)) for side in region.shape[1:])
        turns, mirrored = torch.randint(4, (2,), generator=draws).tolist()
        patch = torch.rot90(region[:, row : row + size, column : column + size], turns, (1, 2))
        found[index] = patch.flip(2) if mirrored % 2 else patch
    return found, torch.arange(n_scenes) % len(regions)


def lens(photons: float = PHOTONS) -> Camera:
    """Scenes on the fine grid -> photo-electrons (n, band, row, column) that clear pixels would count."""
    return Camera(
        wavelength_nm=BAND_NM, f_number=F_NUMBER, pixel_um=PIXEL_UM, exposure_photons=photons, margin_pixels=MARGIN
    )


def target_of(scenes: Tensor) -> Tensor:
    """Mean light of each band on each pixel in view, without the lens."""
    return integrate_pixels(scenes, OVERSAMPLING)[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
