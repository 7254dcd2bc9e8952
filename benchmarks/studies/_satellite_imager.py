"""A line sensor in orbit for `satellite_stages`: its designs, what they see, and the radiance that is asked for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens.datasets import scene_patches
from bitlens.encoders import integrate_pixels
from bitlens.encoders.detector import detector_noise
from bitlens.systems import ImagingSystem
from bitlens.systems.satellite_imager import SatelliteImager

PIXELS, OVERSAMPLING, MARGIN, EDGE = 12, 3, 2, 5
SCENE = (PIXELS + 2 * EDGE) * OVERSAMPLING
CENTERS_NM = (485.0, 560.0, 660.0)
READ_ELECTRONS = 30.0
# Landsat 7, high gain, bands 1 to 3: W / (m^2 sr um) at 1 and at 255, Landsat 7 Science Data Users Handbook.
LANDSAT_RANGE = ((-6.2, 191.6), (-6.4, 196.5), (-5.0, 152.9))
# Solar irradiance of Sentinel 2's bands 2 to 4, W / (m^2 um), and the cosine of a sun 45 degrees high.
SUN, COSINE = (1941.0, 1823.0, 1513.0), 0.71


class Design(NamedTuple):
    """What differs between the imagers; slips are of rows or columns over all stages."""

    stages: int = 16
    row_slip: float = 0.0
    column_slip: float = 0.0
    f_number: float = 20.0
    center_nm: tuple[float, float, float] = CENTERS_NM
    width_nm: tuple[float, float, float] = (60.0, 60.0, 60.0)


class Scenes(NamedTuple):
    """Spectral radiance (n, band, row, column), W / (m^2 sr um), the region of each, and what they are."""

    radiance: Tensor
    groups: Tensor
    source: str


def read_scenes(data: Path, n_scenes: int, seed: int = 0) -> Scenes:
    """Patches turned and mirrored at random, in turn from each region; bundled photographs without the data."""
    folder = data / "satellite"
    if not (folder / "landsat7_rgb_RGB.byte.tif").exists():
        generator = torch.Generator().manual_seed(seed)
        patches = scene_patches(n_scenes, SCENE, color=True, generator=generator)
        return Scenes(45.0 * patches.scenes.flip(1), patches.groups, "bundled photographs as radiance")
    regions = [*_landsat(folder), *_sentinel(folder)]
    random = np.random.default_rng(seed)
    groups = np.arange(n_scenes) % len(regions)
    found = np.empty((n_scenes, 3, SCENE, SCENE), dtype=np.float32)
    for index, group in enumerate(groups):
        region = regions[group]
        row, column = (random.integers(size - SCENE + 1) for size in region.shape[1:])
        patch = region[:, row : row + SCENE, column : column + SCENE]
        patch = np.rot90(patch, random.integers(4), (1, 2))
        found[index] = patch[:, ::-1] if random.integers(2) else patch
    return Scenes(
        torch.from_numpy(found), torch.from_numpy(groups), f"Landsat 7 and Sentinel 2, {len(regions)} regions"
    )


def _landsat(folder: Path) -> list[np.ndarray]:
    import tifffile

    # Stored red, green, blue; 0 is no data.
    counts = tifffile.imread(folder / "landsat7_rgb_RGB.byte.tif")[..., ::-1].transpose(2, 0, 1)
    seen = (counts > 0).any(0)
    radiance = np.stack(
        [low + (high - low) * (band - 1.0) / 254 for (low, high), band in zip(LANDSAT_RANGE, counts, strict=True)]
    )
    regions = []
    for row in range(0, counts.shape[1] - SCENE + 1, SCENE):
        # The seen part is a slanted strip: count from where it starts in these rows.
        columns = np.flatnonzero(seen[row : row + SCENE].all(0))
        if len(columns):
            starts = range(columns[0], columns[-1] + 2 - SCENE, SCENE)
            regions += [np.clip(radiance[:, row : row + SCENE, start : start + SCENE], 0, None) for start in starts]
    return regions


def _sentinel(folder: Path) -> list[np.ndarray]:
    reflectance = np.load(folder / "sentinel2_5x13band.npz")["reflectance"]
    scale = np.array(SUN)[:, None, None] * COSINE / math.pi
    return [scale * scene[..., 1:4].transpose(2, 0, 1) for scene in reflectance]


def band_mixture(design: Design) -> Tensor:
    """(band, 3): what of each band of the data is in each of the design's, linear between centres, constant beyond."""
    found = torch.zeros(3, 3, dtype=torch.float64)
    for band, (center, width) in enumerate(zip(design.center_nm, design.width_nm, strict=True)):
        wavelength = np.linspace(center - width / 2, center + width / 2, 201)
        for source in range(3):
            found[band, source] = float(np.interp(wavelength, CENTERS_NM, np.eye(3)[source]).mean())
    return found


def imager(
    design: Design, radiance: Tensor, *, transmission: float = 0.7, learn: tuple[str, ...] = ()
) -> ImagingSystem:
    """The push-broom imager and what it sees of `radiance`: its bands, and as much around the pixels as it needs."""
    encoder = SatelliteImager(
        center_nm=design.center_nm,
        width_nm=design.width_nm,
        quantum_efficiency=(0.5, 0.5, 0.5),
        f_number=design.f_number,
        pixel_um=13.0,
        focal_length_m=13.0,
        altitude_km=694.0,
        n_stages=design.stages,
        mismatch_pixels=design.row_slip / design.stages,
        drift_pixels=design.column_slip / design.stages,
        obscuration=0.3,
        transmission=transmission,
        oversampling=OVERSAMPLING,
        margin_pixels=MARGIN,
        learn=learn,
    )
    crop = (EDGE - encoder.edge_pixels) * OVERSAMPLING
    seen = radiance[..., crop : SCENE - crop, crop : SCENE - crop]
    bands = torch.einsum("bs,nsrc->nbrc", band_mixture(design).to(seen.dtype), seen)
    return ImagingSystem(encoder, detector_noise(read_electrons=READ_ELECTRONS), bands)


def light(system: ImagingSystem) -> float:
    """Mean photo-electrons of an image."""
    with torch.no_grad():
        return float(system.encoder(system.scenes[:400]).double().sum((1, 2, 3)).mean())


def pixel_radiance(radiance: Tensor) -> Tensor:
    """(n, 3, row, column): the mean over each pixel."""
    edge = EDGE * OVERSAMPLING
    inner = radiance[..., edge : SCENE - edge, edge : SCENE - edge]
    return integrate_pixels(inner, OVERSAMPLING) / OVERSAMPLING**2
