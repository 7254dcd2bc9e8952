"""Scenes that come inside the scikit-image and scikit-learn wheels: nothing is downloaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens.datasets.patches import Patches, random_patches

# Photographs, textures and a scientific image in each list. Left out of both: images that are black in large
# parts (hubble_deep_field, retina) and print (page, text).
FITTING_SCENES = ("astronaut", "brick", "china", "clock", "coffee", "gravel", "moon")
REPORTING_SCENES = (
    *("camera", "chelsea", "coins", "flower"),
    *("grass", "immunohistochemistry", "motorcycle", "rocket"),
)

_SKIMAGE_FUNCTIONS = {
    name: name
    for name in (
        *("astronaut", "brick", "camera", "chelsea", "clock", "coffee", "coins", "grass", "gravel"),
        *("hubble_deep_field", "immunohistochemistry", "moon", "page", "retina", "rocket", "text"),
    )
} | {"motorcycle": "stereo_motorcycle"}
_SKLEARN_FILES = {"china": "china.jpg", "flower": "flower.jpg"}

SCENES = tuple(sorted({*_SKIMAGE_FUNCTIONS, *_SKLEARN_FILES}))

# Relative luminance of linear Rec. 709 / sRGB primaries (ITU-R BT.709, IEC 61966-2-1).
_LUMINANCE = (0.2126, 0.7152, 0.0722)


class _Source(NamedTuple):
    package: str
    module: str
    read: Callable[[Any], Any]


def linearize_srgb(encoded: np.ndarray) -> np.ndarray:
    """c / 12.92 up to c = 0.04045, ((c + 0.055) / 1.055)^2.4 above: linear light 0..1 from sRGB values 0..1.

    Reference: IEC 61966-2-1:1999, sec. 5.2.
    """
    return np.asarray(np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4))


def load_scene(name: str, *, color: bool = False, mean: float | None = None) -> Tensor:
    """Bundled image `name` in linear light, float32: luminance (1, row, column) or `color` (3, row, column).

    Args:
        name: one of `SCENES`.
        color: linear red, green, blue; a grey image is repeated three times.
        mean: scales the image so that its mean over all pixels and channels is this; None keeps 0..1.

    Raises:
        ValueError: unknown name or a mean that is not positive.
        ModuleNotFoundError: scikit-image or scikit-learn is not installed.
    """
    if mean is not None and not mean > 0:
        raise ValueError(f"mean: need a positive number or None, got {mean}")
    linear = linearize_srgb(np.arange(256) / 255)[_read(name)]
    if linear.ndim == 2:
        channels = np.repeat(linear[None], 3 if color else 1, axis=0)
    elif color:
        channels = np.moveaxis(linear, -1, 0)
    else:
        channels = (linear @ np.array(_LUMINANCE))[None]
    if mean is not None:
        channels = channels * (mean / channels.mean())
    return torch.from_numpy(np.ascontiguousarray(channels, dtype=np.float32))


def scene_patches(
    n_patches: int,
    size: int,
    *,
    names: Sequence[str] = FITTING_SCENES,
    color: bool = False,
    mean: float | None = 1.0,
    generator: torch.Generator | None = None,
) -> Patches:
    """`n_patches` random (channel, size, size) patches of the images `names`, with their image's index.

    Fit on `FITTING_SCENES` and report on `REPORTING_SCENES`: no image is in both.

    Args:
        names: of `SCENES`; a patch's group is the position of its image here.
        color, mean: as in `load_scene`. With mean 1, as if every image had been exposed automatically, an
            exposure of 200 photons gives 200 on average over each whole image.

    Raises:
        ValueError: unknown name, or an image smaller than `size`.
        ModuleNotFoundError: scikit-image or scikit-learn is not installed.
    """
    images = [load_scene(name, color=color, mean=mean) for name in names]
    return random_patches(images, n_patches, size, generator=generator)


def _source(name: str) -> _Source:
    if name in _SKIMAGE_FUNCTIONS:
        function = _SKIMAGE_FUNCTIONS[name]
        return _Source("scikit-image", "skimage.data", lambda module: getattr(module, function)())
    if name in _SKLEARN_FILES:
        file = _SKLEARN_FILES[name]
        return _Source("scikit-learn", "sklearn.datasets", lambda module: module.load_sample_image(file))
    raise ValueError(f"name: need one of {', '.join(SCENES)}, got {name!r}")


def _read(name: str) -> np.ndarray:
    source = _source(name)
    try:
        module = importlib.import_module(source.module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"name: {name!r} needs {source.package}, which is not installed: pip install {source.package}"
        ) from error
    image = source.read(module)
    return np.asarray(image[0] if isinstance(image, tuple) else image)
