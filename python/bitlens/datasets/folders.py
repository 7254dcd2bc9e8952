"""Folders of pictures as scenes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".ppm")


class FolderImages(NamedTuple):
    """Pictures (n, channel, row, column) float32 from 0 to 1, the folder each lies in, and their paths.

    `labels` are paths relative to the folder that was read, "." for pictures that lie in it: classes, or groups.
    """

    images: Tensor
    labels: tuple[str, ...]
    paths: tuple[Path, ...]


def read_images(folder: str | Path) -> FolderImages:
    """All pictures below `folder`, by name: PNG, JPEG, BMP, TIFF, PGM and PPM of one size and one number of channels.

    Values are those of the file over the largest of its type; photographs are encoded for screens, so that
    `linearize_srgb(images.numpy())` is their light. A transparent channel is left out.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.
        ValueError: pictures of different sizes, or one that cannot be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"folder: need a folder of pictures, got {str(root)!r}")
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"folder: need pictures ({', '.join(_SUFFIXES)}) below {str(root)!r}, found none")
    images: list[np.ndarray] = []
    for path in paths:
        image = _read(path)
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"folder: need pictures of one size, got {_size(images[0])} in {paths[0].name} and {_size(image)} in "
                f"{path.name}"
            )
        images.append(image)
    labels = tuple(path.parent.relative_to(root).as_posix() for path in paths)
    return FolderImages(torch.from_numpy(np.stack(images)), labels, tuple(paths))


def _read(path: Path) -> np.ndarray:
    """(channel, row, column) float32."""
    try:
        with Image.open(path) as file:
            values = np.asarray(file.convert("RGB") if file.mode in ("P", "CMYK", "YCbCr") else file)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"folder: need pictures that can be read, got {path.name}: {error}") from error
    if values.dtype == np.int32:  # how 16 bit greys may come
        values = values.astype(np.uint16)
    largest = 1.0 if values.dtype.kind in "bf" else float(np.iinfo(values.dtype).max)
    planes = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    if len(planes) in (2, 4):
        planes = planes[:-1]
    return np.ascontiguousarray(planes, dtype=np.float32) / np.float32(largest)


def _size(image: np.ndarray) -> str:
    channels, rows, columns = image.shape
    return f"{channels} x {rows} x {columns}"
