"""Convolution with a point spread function, or with one for each depth, as linear encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from bitlens import ops
from bitlens.encoders import sensor
from bitlens.encoders.detector import as_planes, as_values, hold
from bitlens.encoders.linear import LinearEncoder

ConvolutionMode = Literal["same", "full", "valid"]
ConvolutionBoundary = Literal["zero", "circular"]


def adjoint_convolution(
    measured: Tensor, psf: Tensor, *, mode: ConvolutionMode = "same", boundary: ConvolutionBoundary = "zero"
) -> Tensor:
    """The adjoint of `ops.psf_convolve(image, psf, mode=mode, boundary=boundary)`: a correlation with the PSF.

    Shapes: measured (..., row, column) as the convolution gives it -> (..., row, column) of the image.
    """
    return ops.psf_convolve(measured, adjoint_psf(psf, mode), mode=_BACK[mode], boundary=boundary)


def adjoint_psf(psf: Tensor, mode: ConvolutionMode) -> Tensor:
    """The PSF with which a convolution is the adjoint one: turned by 180 degrees, its origin where that leaves it."""
    turned = psf.flip((-2, -1))
    if mode != "same":
        return turned
    # The origin h // 2 of an even side turns into h - 1 - h // 2, one before the middle: a zero in front moves it.
    rows, columns = (1 - size % 2 for size in psf.shape[-2:])
    return pad(turned, (columns, 0, rows, 0)) if rows or columns else turned


_BACK: dict[ConvolutionMode, ConvolutionMode] = {"same": "same", "full": "valid", "valid": "full"}


def never_below_zero(mean: Tensor, scene: Tensor, psf: Tensor) -> Tensor:
    """`mean` without the negative values that an FFT's rounding leaves where scene (batch, ...) and PSF have none.

    Values of scenes with negative parts, and every gradient, stay as they are: the map stays linear.
    """
    dims = tuple(range(1, scene.ndim))
    light = (scene.detach().amin(dim=dims, keepdim=True) >= 0) & (psf.detach() >= 0).all()
    return mean - torch.where(light, mean.detach().clamp(max=0), torch.zeros_like(mean))


def image_on_pixels(scene: Tensor, psf: Tensor, oversampling: int) -> Tensor:
    """Mean of `psf * scene` over pixels of `oversampling`^2 samples, where no edge of the scene enters.

    Shapes: scene (..., row, column), PSF (2 h + 1, 2 h + 1) on the same samples, h on each side being lost.
    """
    return sensor.integrate_pixels(ops.psf_convolve(scene, psf.to(scene.dtype), mode="valid"), oversampling)


def adjoint_image_on_pixels(measured: Tensor, psf: Tensor, oversampling: int) -> Tensor:
    """The adjoint of `image_on_pixels`: each pixel's value over its samples, correlated with the PSF."""
    samples = (measured / oversampling**2).repeat_interleave(oversampling, -2).repeat_interleave(oversampling, -1)
    return adjoint_convolution(samples, psf.to(measured.dtype), mode="valid")


def _mean_modulus(psf: Tensor) -> dict[str, float]:
    """What counts as a large change of every sample: it doubles the light."""
    return {"psf": float(psf.abs().mean()) or 1.0}


class _Window:
    """What of a convolution the sensor sees: its mode and boundary, and how much of the middle."""

    def __init__(
        self,
        psf: Tensor,
        mode: ConvolutionMode,
        boundary: ConvolutionBoundary,
        crop: tuple[int, int] | None,
        image_size: tuple[int, int] | None,
    ) -> None:
        for name, value, choices in (("mode", mode, ConvolutionMode), ("boundary", boundary, ConvolutionBoundary)):
            if value not in get_args(choices):
                raise ValueError(f"{name}: need one of {get_args(choices)}, got {value!r}")
        if boundary == "circular" and mode != "same":
            raise ValueError(f"mode: need 'same' with boundary 'circular', got {mode!r}")
        self.mode: ConvolutionMode = mode
        self.boundary: ConvolutionBoundary = boundary
        self._image_size = image_size
        self._crop = None if crop is None else _checked_crop(psf, mode, crop, image_size)

    def scene(self, value: Tensor | np.ndarray, channels: int | None) -> Tensor:
        """The scene as a tensor of the right sizes."""
        rows, columns = self._image_size or (None, None)
        return as_planes("scene", value, channels=channels, rows=rows, columns=columns)

    def cropped(self, mean: Tensor) -> Tensor:
        """The middle of the planes, from (size - crop) // 2 on."""
        if self._crop is None:
            return mean
        (top, rows, _), (left, columns, _) = self._crop
        return mean[..., top : top + rows, left : left + columns]

    def uncropped(self, value: Tensor | np.ndarray, channels: int | None) -> Tensor:
        """Measured values with zeros around the middle, up to the size of the convolution."""
        if self._crop is None:
            return as_planes("measured", value, channels=channels)
        (top, rows, below), (left, columns, beside) = self._crop
        measured = as_planes("measured", value, channels=channels, rows=rows, columns=columns)
        return pad(measured, (left, beside, top, below))


def _checked_crop(
    psf: Tensor, mode: ConvolutionMode, crop: tuple[int, int], image_size: tuple[int, int] | None
) -> list[tuple[int, int, int]]:
    """What lies before the crop, in it and behind it, along rows and columns."""
    if image_size is None:
        raise ValueError("image_size: need the scenes' rows and columns with crop, which leaves them open, got None")
    growth = {"same": 0, "full": 1, "valid": -1}[mode]
    sizes = tuple(n + growth * (m - 1) for n, m in zip(image_size, psf.shape[-2:], strict=True))
    if any(not 1 <= wanted <= size for wanted, size in zip(crop, sizes, strict=True)):
        raise ValueError(f"crop: need at least 1 and at most the {sizes} that the convolution gives, got {crop}")
    before = [(size - wanted) // 2 for wanted, size in zip(crop, sizes, strict=True)]
    return [(start, wanted, size - wanted - start) for start, wanted, size in zip(before, crop, sizes, strict=True)]


@final
class PSFConvolution(LinearEncoder):
    """y = crop(psf * scene): every channel blurred by the PSF, or by its own.

    Differentiable in scene and PSF; of scenes and PSFs without negative values no negative mean comes out.

    Shapes: (batch, channel, row, column) -> (batch, channel, row, column), as large as mode and crop leave it.

    Args:
        psf: (h, w) for all channels or (channel, h, w); its origin is at (h // 2, w // 2).
        mode, boundary: as in `bitlens.ops.psf_convolve`.
        crop: rows and columns of the sensor, in the middle of the convolution; None for all of it.
        image_size: rows and columns of the scenes, which `A_adjoint` cannot tell after a crop.
        learn: "psf", or nothing.

    Reference: Goodman, Introduction to Fourier Optics, 3rd ed. 2005, eq. 6-9.
    """

    parameter_domain: ClassVar[Mapping[str, tuple[float | None, float | None]]] = {"psf": (0.0, None)}

    psf: Tensor

    def __init__(
        self,
        psf: Tensor | np.ndarray,
        *,
        mode: ConvolutionMode = "same",
        boundary: ConvolutionBoundary = "zero",
        crop: tuple[int, int] | None = None,
        image_size: tuple[int, int] | None = None,
        learn: Sequence[str] = (),
    ) -> None:
        super().__init__()
        value = as_values("psf", psf, "(h, w) or (channel, h, w)", (2, 3))
        self._window = _Window(value, mode, boundary, crop, image_size)
        self.parameter_scale = _mean_modulus(value)
        hold(self, {"psf": value}, learn)

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """The blurred scene (batch, channel, row, column), as far as the sensor sees it."""
        window = self._window
        scene = window.scene(scene, self._channels())
        psf = self.psf.to(scene.dtype)
        mean = ops.psf_convolve(scene, psf, mode=window.mode, boundary=window.boundary)
        return never_below_zero(window.cropped(mean), scene, psf)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """The correlation with the PSF: (batch, channel, row, column) of the scene."""
        window = self._window
        whole = window.uncropped(measured, self._channels())
        return adjoint_convolution(whole, self.psf.to(whole.dtype), mode=window.mode, boundary=window.boundary)

    def _channels(self) -> int | None:
        return len(self.psf) if self.psf.ndim == 3 else None


@final
class DepthStackConvolution(LinearEncoder):
    """y[o] = crop(sum_d psf[o, d] * scene[d]): light of every depth on one sensor, as a diffuser camera records it.

    The sum is taken in the Fourier domain. Differentiable in scene and PSFs; of scenes and PSFs without negative values
    no negative mean comes out.

    Shapes: (batch, depth, row, column) -> (batch, 1 or output channel, row, column).

    Args:
        psf: (depth, h, w), or (output channel, depth, h, w) for a sensor of several colours.
        mode, boundary, crop, image_size: as in `PSFConvolution`.
        learn: "psf", or nothing.

    Reference: Antipa et al. 2018, DiffuserCam, eq. 5, doi:10.1364/OPTICA.5.000001.
    """

    parameter_domain: ClassVar[Mapping[str, tuple[float | None, float | None]]] = {"psf": (0.0, None)}

    psf: Tensor

    def __init__(
        self,
        psf: Tensor | np.ndarray,
        *,
        mode: ConvolutionMode = "same",
        boundary: ConvolutionBoundary = "zero",
        crop: tuple[int, int] | None = None,
        image_size: tuple[int, int] | None = None,
        learn: Sequence[str] = (),
    ) -> None:
        super().__init__()
        value = as_values("psf", psf, "(depth, h, w) or (output channel, depth, h, w)", (3, 4))
        self._window = _Window(value, mode, boundary, crop, image_size)
        self.parameter_scale = _mean_modulus(value)
        hold(self, {"psf": value}, learn)

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """The sensor's image (batch, output channel, row, column) of scenes (batch, depth, row, column)."""
        psf, window = self._matrix(), self._window
        scene = window.scene(scene, psf.shape[1])
        psf = psf.to(scene.dtype)
        mean = ops.psf_convolve_channels(scene, psf, mode=window.mode, boundary=window.boundary)
        return never_below_zero(window.cropped(mean), scene, psf)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """The correlation with each depth's PSFs: (batch, depth, row, column)."""
        psf, window = self._matrix(), self._window
        whole = window.uncropped(measured, psf.shape[0])
        back = adjoint_psf(psf.to(whole.dtype).movedim(0, 1), window.mode)
        return ops.psf_convolve_channels(whole, back, mode=_BACK[window.mode], boundary=window.boundary)

    def _matrix(self) -> Tensor:
        return self.psf if self.psf.ndim == 4 else self.psf.unsqueeze(0)
