"""Synthetic slices through a body and a head, painted with ellipses: for scanners. Float32, repeatable."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def paint_ellipses(
    image: Tensor,
    value: Tensor | float,
    *,
    center: Tensor,
    semi_axes: Tensor,
    angle_rad: Tensor | float = 0.0,
    pixel: float,
    ripple: Tensor | None = None,
) -> Tensor:
    """`image` (n, row, column) with `value` wherever an ellipse of each image covers it, as far as it covers a pixel.

    Lengths share one unit, that of `pixel`; the middle of the image is 0, x grows with the column, y with the row.

    Args:
        value: one number, or one per image (n,).
        center, semi_axes: (n, 2), x and y before the turn by `angle_rad` (n,) from x to y.
        ripple: (n, harmonic): the radius is that of the ellipse times 1 + sum_j ripple_j cos((j + 3) angle).
    """
    rows, columns = image.shape[-2:]
    turn = torch.as_tensor(angle_rad, dtype=torch.float64).expand(len(image))[:, None, None]
    x = (torch.arange(columns, dtype=torch.float64) - (columns - 1) / 2) * pixel - center[:, :1, None]
    y = (torch.arange(rows, dtype=torch.float64) - (rows - 1) / 2)[:, None] * pixel - center[:, 1:, None]
    across = (x * turn.cos() + y * turn.sin()) / semi_axes[:, :1, None]
    down = (y * turn.cos() - x * turn.sin()) / semi_axes[:, 1:, None]
    radius = torch.hypot(across, down)
    if ripple is not None:
        harmonic = torch.arange(ripple.shape[1], dtype=torch.float64) + 3
        direction = torch.atan2(down, across)[..., None]
        radius = radius / (1 + (ripple[:, None, None] * torch.cos(harmonic * direction)).sum(-1))
    slope = torch.hypot(across / semi_axes[:, :1, None], down / semi_axes[:, 1:, None])
    # The distance from the edge to first order, which is exact there: the rest is all in or all out.
    distance = (1 - radius) * radius / slope.clamp(min=1e-12 / float(semi_axes.min()))
    distance = torch.where(radius < 0.5, pixel, distance)
    if ripple is None:
        # Beyond the tip of a thin ellipse the first order is too near: no point is nearer than the box around it.
        beyond = torch.maximum((across.abs() - 1) * semi_axes[:, :1, None], (down.abs() - 1) * semi_axes[:, 1:, None])
        distance = torch.minimum(distance, torch.where(beyond > 0, -beyond, distance))
    # What is thinner than a pixel fills none.
    thickness = 2 / pixel * semi_axes.min(dim=1).values[:, None, None]
    cover = torch.minimum((0.5 + distance / pixel).clamp(0, 1), thickness)
    level = torch.as_tensor(value, dtype=torch.float64).expand(len(image))[:, None, None]
    return image + cover * (level - image)


def body_slices(
    n_scenes: int,
    shape: tuple[int, int],
    *,
    pixel_mm: float,
    attenuation_per_mm: Mapping[str, float],
    generator: torch.Generator,
) -> Tensor:
    """Chests (n, 1, row, column) in 1 / mm: fat, soft tissue, two lungs with nodules, heart, spine and aorta.

    `attenuation_per_mm` has "fat", "soft_tissue", "lung", "bone", "blood". The body is 320 to 370 mm wide.
    """
    body = _Painter(n_scenes, shape, pixel_mm, generator)
    fat, tissue, lung, bone, blood = (
        attenuation_per_mm[name] for name in ("fat", "soft_tissue", "lung", "bone", "blood")
    )
    width, depth = body.between(160, 185), body.between(105, 125)
    body.paint(fat, (0, 0), (width, depth))
    body.paint(tissue, (0, 0), (width - body.between(8, 20), depth - body.between(8, 20)))
    for side in (-1, 1):
        middle = side * width * body.between(0.42, 0.5)
        body.paint(lung, (middle, body.between(-8, 8)), (width * 0.34, depth * body.between(0.6, 0.72)), turn=0.15)
        for _ in range(3):
            radius = body.between(3, 12)
            place = (middle + body.between(-40, 40), body.between(-50, 50))
            body.paint(tissue, place, (radius, radius * body.between(0.7, 1.3)), turn=math.pi)
    body.paint(
        blood, (body.between(10, 35), body.between(-35, -15)), (body.between(45, 60), body.between(35, 48)), turn=0.5
    )
    body.paint(bone, (body.between(-4, 4), depth * 0.68), (body.between(17, 22), body.between(14, 18)))
    body.paint(blood, (body.between(18, 28), depth * 0.45), (body.between(10, 14), body.between(10, 14)))
    return body.image[:, None].float()


def head_slices(n_scenes: int, shape: tuple[int, int], *, generator: torch.Generator) -> Tensor:
    """Brains (n, 1, row, column), T1-weighted, white matter at 1: scalp, skull, folded cortex, ventricles, lesions.

    The field of view is 220 mm along the longer side; levels are rough ratios of a gradient echo at 3 T.
    """
    head = _Painter(n_scenes, shape, 220.0 / max(shape), generator)
    width, length = head.between(66, 74), head.between(84, 94)
    head.paint(0.9, (0, 0), (width, length))
    head.paint(0.05, (0, 0), (width - 5, length - 5))
    head.paint(0.25, (0, 0), (width - 11, length - 11))
    inner = (width - 13, length - 13)
    head.paint(0.65, (0, 0), inner, ripple=0.01)
    head.paint(1.0, (0, 0), (inner[0] * 0.86, inner[1] * 0.88), ripple=0.05)
    head.paint(0.25, (0, 0), (head.between(0.8, 1.6), inner[1] * 0.95))
    for side in (-1, 1):
        head.paint(0.65, (side * head.between(17, 22), head.between(-2, 8)), (8, head.between(12, 17)), turn=0.3)
        size = (head.between(3, 8), head.between(15, 24))
        head.paint(0.25, (side * head.between(7, 10), head.between(-10, 0)), size, turn=0.3)
        radius = head.between(1.5, 6)
        place = (side * head.between(15, 40), head.between(-45, 45))
        head.paint(head.between(0.3, 1.2), place, (radius, radius * head.between(0.6, 1.6)), turn=math.pi)
    return head.image[:, None].float()


class _Painter:
    """Ellipses of random numbers, one set per scene, on a growing image."""

    def __init__(self, n_scenes: int, shape: tuple[int, int], pixel: float, generator: torch.Generator) -> None:
        self.pixel, self.generator = pixel, generator
        self.image = torch.zeros((n_scenes, *shape), dtype=torch.float64)

    def between(self, low: float, high: float) -> Tensor:
        """(n,) uniform numbers."""
        chance = torch.rand(len(self.image), dtype=torch.float64, generator=self.generator)
        return low + (high - low) * chance

    def paint(
        self,
        value: Tensor | float,
        center: tuple[Tensor | float, Tensor | float],
        semi_axes: tuple[Tensor | float, Tensor | float],
        *,
        turn: float = 0.0,
        ripple: float = 0.0,
    ) -> None:
        """An ellipse in each image, turned by up to `turn` either way, its radius rippled by `ripple` rms."""
        n_scenes = len(self.image)
        waves = None
        if ripple:
            waves = ripple / 2 * torch.randn(n_scenes, 8, dtype=torch.float64, generator=self.generator)
        self.image = paint_ellipses(
            self.image,
            value,
            center=_pairs(center, n_scenes),
            semi_axes=_pairs(semi_axes, n_scenes),
            angle_rad=self.between(-turn, turn) if turn else 0.0,
            pixel=self.pixel,
            ripple=waves,
        )


def _pairs(values: tuple[Tensor | float, Tensor | float], n_scenes: int) -> Tensor:
    return torch.stack([torch.as_tensor(value, dtype=torch.float64).expand(n_scenes) for value in values], -1)
