"""Scenes of the cameras: the caller's, checked against what the encoder takes, or patches of bundled images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from bitlens.datasets import scene_patches
from bitlens.systems._checks import check_count, check_names, check_number, check_scenes, check_shape

LENS_NAMES = ("aperture_radius", "defocus_waves", "phase_mask_waves", "exposure_photons", "quantum_efficiency")


def camera_scenes(
    scenes: Tensor | np.ndarray | None,
    scene_size: Callable[[int, int], tuple[int, int]],
    *,
    channels: int = 1,
    shape: tuple[int, int],
    n_scenes: int = 1,
    color: bool = False,
    relative: bool = True,
    lower: float | None = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Scenes (n, channel, row, column) for an encoder whose `scene_size(rows, columns)` says how large they are.

    Args:
        shape, n_scenes: of the bundled ones, which have one channel, or three with `color`.
        relative: scenes are light relative to 1, so that 8 bit photographs are no scenes yet.
        lower: the least value of a scene, None for any.

    Raises:
        TypeError: scenes that are no array of real numbers, or photographs of whole numbers.
        ValueError: scenes of other channels, too small, not a whole number of pixels, NaN or negative.
    """
    shape = check_shape(shape)
    n_scenes = check_count("n_scenes", n_scenes)
    if scenes is None:
        rows, columns = scene_size(*shape)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        patches = scene_patches(n_scenes, max(rows, columns), color=color, generator=generator)
        return patches.scenes[..., :rows, :columns]
    if relative:
        check_relative_light(scenes)
    elif isinstance(scenes, (Tensor, np.ndarray)) and _is_8_bit(scenes):
        # Whole kelvin or W / (m^2 sr um) may be of 8 bits, and need not be a photograph's.
        scenes = scenes.float() if isinstance(scenes, Tensor) else scenes.astype(np.float32)
    found = check_scenes(scenes, channels=channels, lower=lower)
    edge, least = scene_size(0, 0), scene_size(1, 1)
    samples = least[0] - edge[0]
    fits = all(
        size >= smallest and (size - around) % samples == 0
        for size, smallest, around in zip(found.shape[-2:], least, edge, strict=True)
    )
    if not fits:
        raise ValueError(
            f"scenes: need {edge[0]} rows and {edge[1]} columns for the edge and {samples} more for each pixel, "
            f"got {tuple(found.shape)}"
        )
    return found


def lens_names(
    learn: Sequence[str], others: Sequence[str] = (), *, of_lens: Sequence[str] = LENS_NAMES
) -> tuple[str, ...]:
    """What of `learn` the lens of a camera holds, where its light per pixel is given whatever lens and pixel are.

    Raises:
        TypeError: one string.
        ValueError: a name that neither the lens nor `others` has.
    """
    check_names(learn)
    known = (*others, *of_lens)
    for name in learn:
        if name not in known:
            fixed = name in ("f_number", "pixel_um")
            hint = ", an argument alone: the light of a pixel is stated at its value" if fixed else ""
            raise ValueError(f"learn: need names among {', '.join(known)}, got {name!r}{hint}")
    return tuple(name for name in learn if name not in others)


def as_sequence(name: str, value: object) -> tuple[float, ...]:
    """One number or several as a tuple.

    Raises:
        TypeError: something else.
        ValueError: none, or NaN.
    """
    iterable = isinstance(value, (Sequence, np.ndarray, Tensor)) and not isinstance(value, str) and np.ndim(value) > 0
    several: Iterable[object] = value if iterable else (value,)  # type: ignore[assignment]
    found = tuple(check_number(name, each) for each in several)
    if not found:
        raise ValueError(f"{name}: need at least one, got none")
    if any(math.isnan(each) for each in found):
        raise ValueError(f"{name}: need numbers, got {value}")
    return found


def check_relative_light(scenes: Tensor | np.ndarray) -> None:
    """TypeError for unsigned whole numbers above 1, as photographs have them: they are not linear light around 1."""
    if isinstance(scenes, np.ndarray):
        photograph = scenes.dtype.kind == "u" and scenes.size > 0 and int(scenes.max()) > 1
    else:
        photograph = isinstance(scenes, Tensor) and scenes.dtype == torch.uint8 and bool((scenes > 1).any())
    if photograph:
        raise TypeError(
            "scenes: need linear light around 1, got a photograph's whole numbers: give "
            f"bitlens.datasets.linearize_srgb(images / {'255' if _is_8_bit(scenes) else '65535'})"
        )


def _is_8_bit(scenes: Tensor | np.ndarray) -> bool:
    return scenes.itemsize == 1 if isinstance(scenes, np.ndarray) else scenes.element_size() == 1
