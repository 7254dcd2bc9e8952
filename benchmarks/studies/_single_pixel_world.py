"""The list of pattern sets where all is known: Gaussian images of the digits' mean and covariance.

There the bits and the least squared error of any decoder have closed forms, so that neither an estimate nor a decoder
can be what parts them. The light is varied: bits count the logarithm of what is learned of each mode of the images and
a squared error counts its variance, which are alike only while little is learned of any mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from scipy import stats
from torch import Tensor

from bitlens import report
from bitlens.systems import ImagingSystem

LIGHTS = (0.01, 0.1, 1.0, 10.0)


class GaussianImages(NamedTuple):
    """Mean (pixel,) and covariance (pixel, pixel) of images."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, scenes: Tensor) -> GaussianImages:
        """Those of images (n, 1, row, column)."""
        flat = scenes.flatten(1).double()
        return cls(flat.mean(0), torch.cov(flat.T))

    @property
    def variance(self) -> float:
        """Mean variance of a pixel."""
        return float(self.covariance.diagonal().mean())


class _Channel(NamedTuple):
    """z = matrix x + noise of this variance (reading,)."""

    matrix: Tensor
    noise_variance: Tensor


def _channel(system: ImagingSystem, images: GaussianImages, light: float) -> _Channel:
    rows, columns = system.scenes.shape[-2:]
    single = torch.eye(rows * columns, dtype=torch.float64).reshape(-1, 1, rows, columns)
    with torch.no_grad():
        dark = system.encoder(torch.zeros_like(single[:1])).flatten().double()
        matrix = light * (system.encoder(single).flatten(1).double() - dark).T
    read = float(system.noise.read_std)  # type: ignore[attr-defined]
    # Shot noise is that of the mean image, which adds some percent to the read noise of 1000 electrons.
    return _Channel(matrix, matrix @ images.mean + dark + read**2)


def exact_bits(system: ImagingSystem, images: GaussianImages, light: float = 1.0) -> float:
    """0.5 log2 det(1 + N^-1 A C A^T), bits per image."""
    matrix, noise = _channel(system, images, light)
    scaled = matrix / noise.sqrt()[:, None]
    return _log2_det(torch.eye(len(noise), dtype=torch.float64) + scaled @ images.covariance @ scaled.T) / 2


def exact_error(system: ImagingSystem, images: GaussianImages, light: float = 1.0) -> float:
    """Mean over pixels of the least mean squared error."""
    return float(_remaining(system, images, light).diagonal().mean())


def coarse_bits(system: ImagingSystem, images: GaussianImages) -> float:
    """Bits of a measurement about the images in white noise as strong as they are: what is left of fine detail is none.

    0.5 log2 det(C + D) / det(C_z + D), C_z the covariance that the measurement leaves, D the mean variance of a pixel.
    """
    tolerance = images.variance * torch.eye(len(images.mean), dtype=torch.float64)
    after = _remaining(system, images, 1.0)
    return (_log2_det(images.covariance + tolerance) - _log2_det(after + tolerance)) / 2


def _remaining(system: ImagingSystem, images: GaussianImages, light: float) -> Tensor:
    matrix, noise = _channel(system, images, light)
    cross = images.covariance @ matrix.T
    return images.covariance - cross @ torch.linalg.solve(matrix @ cross + torch.diag(noise), cross.T)


def _log2_det(matrix: Tensor) -> float:
    return float(torch.logdet(matrix)) / math.log(2.0)


def world_of(
    systems: Mapping[str, ImagingSystem],
    images: GaussianImages,
    bits: Mapping[str, float],
    psnr: Mapping[str, float],
) -> dict[str, Any]:
    """Spearman of exact bits with exact errors at each light, and of both with what the study found."""
    exact = {light: [exact_bits(system, images, light) for system in systems.values()] for light in LIGHTS}
    errors = {light: [-exact_error(system, images, light) for system in systems.values()] for light in LIGHTS}
    found, scores = ([values[name] for name in systems] for values in (bits, psnr))
    return {
        "by light": {
            str(light): {"spearman": _spearman(exact[light], errors[light]), "most bits": max(exact[light])}
            for light in LIGHTS
        },
        "estimated bits with exact bits": _spearman(found, exact[1.0]),
        "PSNR with exact errors": _spearman(scores, errors[1.0]),
        "exact errors (mean squared)": dict(zip(systems, (-error for error in errors[1.0]), strict=True)),
        "exact bits": dict(zip(systems, exact[1.0], strict=True)),
    }


def _spearman(first: list[float], second: list[float]) -> float:
    return float(stats.spearmanr(first, second)[0])


def world_text(found: Mapping[str, Any]) -> str:
    """The correlations in words."""
    rows = tuple(
        (light, f"{row['most bits']:.1f}", f"{row['spearman']:.3f}") for light, row in found["by light"].items()
    )
    heads = ("light", "most bits of a set", "Spearman of bits and least error")
    table = report.to_text(report.Table("Gaussian images of the same mean and covariance, all exact", heads, rows))
    return (
        f"{table}\n"
        f"Spearman of the digits' estimated bits with these: {found['estimated bits with exact bits']:.3f}\n"
        f"Spearman of the decoder's PSNR with the least error: {found['PSNR with exact errors']:.3f}\n"
    )
