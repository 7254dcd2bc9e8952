"""Random patches of images, each with the label of the image it came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Patches(NamedTuple):
    """`scenes` (n, channel, row, column) and `groups` (n,) int64, the index of each one's source image."""

    scenes: Tensor
    groups: Tensor


def random_patches(
    images: Sequence[Tensor | np.ndarray],
    n_patches: int,
    size: int,
    *,
    generator: torch.Generator | None = None,
) -> Patches:
    """`n_patches` squares of `size` samples, in turn from each image, at uniformly random positions.

    Patch i comes from image i modulo the number of images: every image weighs the same, and any leading part
    of the result is as balanced as the whole.

    Args:
        images: (channel, row, column) each, with the same channels and dtype; rows and columns may differ.

    Raises:
        ValueError: no images, one smaller than `size`, channels or dtypes that differ, or a number below 1.
    """
    if len(images) == 0:
        raise ValueError("images: need at least one, got none")
    if n_patches < 1 or size < 1:
        raise ValueError(f"n_patches, size: need at least 1, got {n_patches}, {size}")
    tensors = [torch.as_tensor(image) for image in images]
    first = tensors[0]
    for index, image in enumerate(tensors):
        if image.ndim != 3 or min(image.shape[-2:]) < size:
            raise ValueError(
                f"images[{index}]: need (channel, row, column) with at least {size} rows and columns, "
                f"got {tuple(image.shape)}"
            )
        if image.shape[0] != first.shape[0] or image.dtype != first.dtype:
            raise ValueError(
                f"images[{index}]: need {first.shape[0]} channels of {first.dtype} like the first, "
                f"got {image.shape[0]} of {image.dtype}"
            )
    # Two uniform numbers a patch, drawn at once: positions depend on the generator and the sizes alone.
    positions = torch.rand((n_patches, 2), generator=generator, dtype=torch.float64).tolist()
    scenes = first.new_empty((n_patches, first.shape[0], size, size))
    for patch, (down, across) in enumerate(positions):
        image = tensors[patch % len(tensors)]
        row = int(down * (image.shape[-2] - size + 1))
        column = int(across * (image.shape[-1] - size + 1))
        scenes[patch] = image[:, row : row + size, column : column + size]
    return Patches(scenes, torch.arange(n_patches) % len(images))
