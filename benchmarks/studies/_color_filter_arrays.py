"""The colour filter arrays of the study, what they pass, and the figures that the field judges them by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from _color_filter_scenes import BAND_NM
from _validation_study import standard_metrics
from matplotlib.figure import Figure
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from bitlens.encoders import BAYER, RGBW, XTRANS, ColorFilterArray, random_tile
from bitlens.encoders.masks import gaussian_bands
from bitlens.systems import ImagingSystem
from bitlens.systems.color_camera import ColorCamera, filter_spectra

RED, GREEN, BLUE, CLEAR, CYAN, MAGENTA, YELLOW = range(7)
LOWER_IS_BETTER = ("condition_number", "colour condition", "sampling gap")
_DRAWN_PIXELS = 8


class Mosaic(NamedTuple):
    """A tile of filter indices and the transmission (filter, band) of each."""

    tile: Tensor
    spectra: Tensor


def dyes() -> Tensor:
    """Transmission (7, 3) of red, green, blue, clear; cyan, magenta and yellow pass what those three hold back."""
    primary = filter_spectra(BAND_NM)
    return torch.cat([primary, primary[CLEAR] - primary[:CLEAR]])


def broad_dyes(width_nm: float = 200.0) -> Tensor:
    """Transmission (3, 3) of red, green and blue dyes twice as wide."""
    center = torch.tensor(BAND_NM, dtype=torch.float64)[:, None]
    return gaussian_bands(
        torch.tensor(BAND_NM, dtype=torch.float64),
        center_nm=center,
        width_nm=torch.full_like(center, width_nm),
        peak=torch.full_like(center, 0.9),
    )


def mosaics() -> dict[str, Mosaic]:
    """Every array of the study."""
    spectra = dyes()
    r, g, b = RED, GREEN, BLUE
    bayer = torch.tensor(BAYER)
    quarter = torch.full((4, 4), CLEAR)
    quarter[1:3, 1:3] = bayer
    draws = torch.Generator().manual_seed(0)
    tiles = {
        "Bayer": bayer,
        "quad Bayer": enlarged(bayer, 2),
        "hexadeca Bayer": enlarged(bayer, 4),
        # Bayer's with every second pair of rows shifted by a pixel: Lukac and Plataniotis 2005.
        "Lukac": torch.tensor([[g, r, g, r], [b, g, b, g], [r, g, r, g], [g, b, g, b]]),
        "Yamanaka": torch.tensor([[g, r, g, b], [g, b, g, r]]),
        "X-Trans": torch.tensor(XTRANS),
        "stripes": torch.tensor([[r, g, b]]),
        "wide stripes": torch.tensor([[r, r, g, g, b, b]]),
        "diagonal stripes": torch.tensor([[r, g, b], [g, b, r], [b, r, g]]),
        "random RGB, first": random_tile((8, 8), (1.0, 2.0, 1.0), generator=draws),
        "random RGB, second": random_tile((8, 8), (1.0, 2.0, 1.0), generator=draws),
        "RGBW": torch.tensor(RGBW),
        "random RGBW": random_tile((8, 8), (1.0, 2.0, 1.0, 4.0), generator=draws),
        "mostly clear": quarter,
        "CMY": torch.tensor([[CYAN, YELLOW], [YELLOW, MAGENTA]]),
        "CYGM": torch.tensor([[CYAN, YELLOW], [g, MAGENTA]]),
    }
    found = {name: Mosaic(tile, spectra) for name, tile in tiles.items()}
    found["Bayer, broad dyes"] = Mosaic(bayer, broad_dyes())
    found["Bayer, leaking dyes"] = Mosaic(bayer, 0.6 * spectra[:CLEAR] + 0.3)
    return found


def enlarged(tile: Tensor, factor: int) -> Tensor:
    """Each filter over `factor` x `factor` pixels."""
    return tile.repeat_interleave(factor, 0).repeat_interleave(factor, 1)


def free(array: Mosaic) -> Mosaic:
    """The array over 4 x 4 pixels, each with a spectrum of its own."""
    filters = array.tile.repeat(*(4 // side for side in array.tile.shape))
    return Mosaic(torch.arange(16).reshape(4, 4), array.spectra[filters.flatten()])


def random_start() -> Mosaic:
    """A random draw of 4 x 4 pixels, half of them clear."""
    return Mosaic(random_tile((4, 4), (1.0, 2.0, 1.0, 4.0), generator=torch.Generator().manual_seed(0)), dyes())


def filters_of(system: ImagingSystem) -> Tensor:
    """Transmission (band, row, column) over the tile."""
    encoder = system.encoder
    filters = encoder.filters if isinstance(encoder, ColorCamera) else encoder
    assert isinstance(filters, ColorFilterArray)
    return filters.transmission().detach().double()


def colour_condition(system: ImagingSystem) -> float:
    """Largest over smallest singular value of all pixels' spectra: how evenly the colours are told apart."""
    values = torch.linalg.svdvals(filters_of(system).flatten(1))
    return float(values[0] / values[-1])


def sampling_gap(system: ImagingSystem) -> float:
    """The farthest, pixels, that any pixel is from the pixels which see some band best."""
    tile = filters_of(system)
    tile = tile.repeat(1, *(math.ceil(24 / side) for side in tile.shape[1:]))[:, :24, :24]
    gaps = []
    for band in tile:
        share = band / tile.sum(0)
        distance = distance_transform_edt((share < 0.999 * share.max()).numpy())
        gaps.append(float(distance[8:16, 8:16].max()))
    return max(gaps)


def sensitivity(system: ImagingSystem) -> float:
    """Mean transmission."""
    return float(filters_of(system).mean())


def metrics(scene_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The traditional figures of an array."""
    return {
        "snr_db": standard_metrics(scene_shape)["snr_db"],
        "condition_number": standard_metrics(scene_shape)["condition_number"],
        "colour condition": colour_condition,
        "sampling gap": sampling_gap,
        "sensitivity": sensitivity,
    }


def picture(tiles: Mapping[str, Tensor], n_columns: int = 6, column_inches: float = 1.7) -> Figure:
    """What each array (3, row, column) passes, as colours."""
    n_rows = math.ceil(len(tiles) / n_columns)
    drawn = Figure(figsize=(column_inches * n_columns, (column_inches + 0.2) * n_rows), layout="constrained")
    axes = drawn.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, tile) in zip(axes, tiles.items(), strict=False):
        times = [math.ceil(_DRAWN_PIXELS / side) for side in tile.shape[1:]]
        axis.imshow(tile.repeat(1, *times)[:, :_DRAWN_PIXELS, :_DRAWN_PIXELS].movedim(0, -1).clamp(0, 1).numpy())
        axis.set_title(name, fontsize=8)
    return drawn
