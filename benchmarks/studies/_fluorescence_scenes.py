"""The specimens of the study of fluorescence pupils: photographs of nuclei in layers, and what is asked of them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from bitlens.datasets.phantoms_microscopy import nuclei
from bitlens.encoders import integrate_pixels

DEPTHS_UM = (-5.0, 0.0, 5.0)
# Pixels of 6.5 um behind an objective of 10 x, and two samples of the scene for each.
PIXEL_UM, SAMPLES, MARGIN = 0.65, 2, 8
SAMPLE_UM = PIXEL_UM / SAMPLES
# A specimen has no grain of a camera: that of the photographs, an electron or two in each dark pixel, is smoothed by
# less than any PSF.
GRAIN_SAMPLES = 1.0


class Scenes(NamedTuple):
    """Layers (n, 3, row, column), the photograph of each scene, and what they are."""

    scenes: Tensor
    groups: Tensor
    source: str


def read_scenes(data: Path, n_scenes: int, pixels: int, *, half: int | None = None, seed: int = 0) -> Scenes:
    """Regions around nuclei of the photographs, turned and mirrored at random; phantoms without the photographs.

    The field diaphragm is closed to the `pixels` of 0.65 um in view: nothing shines beside them. `half`: 0 or 1 takes
    every second photograph only, so that the two halves share none.
    """
    size = (pixels + 2 * MARGIN) * SAMPLES
    path = data / "fluorescence" / "dsb2018_nuclei_256.npz"
    if not path.exists():
        phantoms = _phantoms(n_scenes, size, seed + (half or 0))
        return phantoms._replace(scenes=_in_view(phantoms.scenes))
    with np.load(path) as file:
        which = slice(None) if half is None else slice(half, None, 2)
        images, labels = file["images"][which].astype(np.float32), file["labels"][which]
    random = np.random.default_rng(seed)
    specimens = [_layered(image, label, random) for image, label in zip(images, labels, strict=True)]
    found = np.empty((n_scenes, 3, size, size), dtype=np.float32)
    groups = np.arange(n_scenes) % len(images)
    reach = size // 2
    for index, group in enumerate(groups):
        # The middle of the region is at most half a field from a nucleus.
        at = np.argwhere(labels[group] > 0)
        place = at[random.integers(len(at))] + random.integers(-pixels, pixels + 1, 2)
        row, column = np.clip(place, reach, 256 - reach) - reach
        window = (slice(row, row + size), slice(column, column + size))
        turns, mirrored = int(random.integers(4)), random.integers(2)
        region = np.rot90(specimens[group][(slice(None), *window)], turns, (1, 2))
        found[index] = region[..., ::-1] if mirrored else region
    source = f"{len(images)} photographs of stained nuclei"
    return Scenes(_in_view(torch.from_numpy(found)), torch.from_numpy(groups), source)


def _in_view(scenes: Tensor) -> Tensor:
    edge = MARGIN * SAMPLES
    lit = torch.zeros_like(scenes)
    lit[..., edge:-edge, edge:-edge] = scenes[..., edge:-edge, edge:-edge]
    return lit


def _layered(image: np.ndarray, label: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(3, row, column): each nucleus in one layer; the median nucleus is as bright as 1."""
    image = ndimage.gaussian_filter(image, GRAIN_SAMPLES)
    light = np.clip(image - np.percentile(image, 5), 0, None)
    light /= np.median(light[label > 0])
    nearest = ndimage.distance_transform_edt(label == 0, return_distances=False, return_indices=True)
    layer = random.integers(len(DEPTHS_UM), size=int(label.max()) + 1)[label[tuple(nearest)]]
    return np.stack([light * (layer == each) for each in range(len(DEPTHS_UM))])


def _phantoms(n_scenes: int, size: int, seed: int) -> Scenes:
    generator = torch.Generator().manual_seed(seed)
    layers = [nuclei(n_scenes, (size, size), sample_um=SAMPLE_UM, generator=generator)[:, 0] for _ in DEPTHS_UM]
    return Scenes(torch.stack(layers, 1), torch.arange(n_scenes), "phantoms of nuclei")


def flattened(scenes: Tensor) -> Tensor:
    """The same light, all of it in the middle layer."""
    found = torch.zeros_like(scenes)
    found[:, len(DEPTHS_UM) // 2] = scenes.sum(1)
    return found


def in_focus(scenes: Tensor) -> Tensor:
    """(n, 1, row, column): all layers together, the mean over each pixel of 0.65 um in view."""
    return integrate_pixels(scenes.sum(1, keepdim=True), SAMPLES)[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


def brightest_layer(scenes: Tensor) -> Tensor:
    """(n,): the layer that most of the light in view comes from."""
    edge = MARGIN * SAMPLES
    return scenes[..., edge:-edge, edge:-edge].sum((2, 3)).argmax(1)
