"""Where fits of mixtures start: what images are alike in, and clusters of those alike."""

from __future__ import annotations

import torch
from torch import Tensor

_PCA_AXES = 6
_LLOYD_STEPS = 5
_SEED = 0  # of the first centres, which the steps that follow forget


def brightness_and_contrast(flat: Tensor) -> Tensor:
    """Mean and log variance over the pixels of each image, each of unit variance: (n, 2)."""
    brightness, contrast = flat.mean(1), flat.var(1, correction=0)
    least = 1e-6 * float(contrast.mean()) + 1e-300
    if bool((brightness > 0.0).all()):
        brightness = brightness.log()
    return _standardised(torch.stack([brightness, contrast.clamp_min(least).log()], 1))


def principal(flat: Tensor) -> Tensor:
    """The leading principal components of each image: (n, up to 6)."""
    centred = flat - flat.mean(0)
    vectors = torch.linalg.eigh(centred.mT @ centred)[1]
    return _standardised(centred @ vectors[:, -_PCA_AXES:])


def _standardised(points: Tensor) -> Tensor:
    spread = points.std(0)
    return (points - points.mean(0)) / torch.where(spread > 0.0, spread, 1.0)


def clustered(points: Tensor, count: int) -> Tensor:
    """Label of each point after k-means from seeds far apart (Arthur and Vassilvitskii 2007)."""
    generator = torch.Generator().manual_seed(_SEED)
    power = points.square().sum(1)
    centres = points[:1]
    distance = (points - centres).square().sum(1)
    for _ in range(count - 1):
        total = float(distance.sum())
        if not total > 0.0:
            break
        place = total * float(torch.rand((), generator=generator, dtype=torch.float64))
        drawn = torch.searchsorted(distance.cumsum(0), place)
        centre = points[min(int(drawn), len(points) - 1)]
        centres = torch.cat([centres, centre[None]])
        distance = torch.minimum(distance, (power - 2.0 * points @ centre + centre.square().sum()).clamp_min(0.0))
    label = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for _ in range(_LLOYD_STEPS):
        label = (centres.square().sum(1) - 2.0 * points @ centres.mT).argmin(1)
        size = torch.bincount(label, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, label, points)
        centres = torch.where(size[:, None] > 0, sums / size.clamp_min(1)[:, None], centres)
    return label
