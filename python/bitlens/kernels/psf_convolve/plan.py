"""A PSF and a size of images whose transform is made once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens.kernels import _autograd, _backend, _check, _compiled
from bitlens.kernels.psf_convolve import op, reference


class _Spectra(NamedTuple):
    """The PSF, no larger than a circular image, and its spectra for the call and for its adjoint."""

    psf: Tensor
    there: Tensor
    back: Tensor


class PSFConvolvePlan:
    """`psf_convolve` with one PSF for many calls: `plan(image)` spares the PSF's transform in both directions.

    It pays where batches are small: for a single image up to a third of the time. The PSF is copied and constant;
    gradients, of any order, flow to the image. On a GPU, with the Numba and reference backends and with a PSF of up to
    49 values it is the plain call. Not to be made under `torch.func` transforms or inside `torch.compile`, where an
    existing plan can be called.

    Args:
        psf: (..., h, w), float32 or float64, without gradient.
        image_size: (H, W) of the images to come.
        mode, boundary: as in `psf_convolve`.

    Raises:
        TypeError, ValueError: as `psf_convolve`; the PSF needs a gradient, or a transform has wrapped it.
    """

    def __init__(self, psf: Tensor, image_size: tuple[int, int], *, mode: str = "same", boundary: str = "zero") -> None:
        _check.at_least_dims("psf", _check.tensor("psf", psf), 2, "(..., h, w)")
        if psf.requires_grad:
            raise ValueError("psf: a plan holds a constant, need a tensor without gradient; psf_convolve has gradients")
        if type(psf) not in (Tensor, torch.nn.Parameter) or torch._C._are_functorch_transforms_active():
            raise ValueError(f"psf: need a plain tensor outside of torch.func transforms, got {type(psf).__name__}")
        if 0 in psf.shape[-2:]:
            raise ValueError(f"psf: need at least one row and one column, got {tuple(psf.shape)}")
        self.image_size = _checked_size(image_size)
        self.mode, self.boundary = mode, boundary
        size = (psf.shape[-2], psf.shape[-1])
        op.check_mode(self.image_size, size, mode, boundary)
        self._window = op.window_of(self.image_size, size, mode, boundary)
        with torch.inference_mode(False):
            self._psf = psf.detach().clone(memory_format=torch.contiguous_format)
        self._instruction_set = _compiled.instruction_set()
        self._made: dict[str, _Spectra] = {}
        if _backend.select("psf_convolve", self._psf.device, op.IMPLEMENTED) == "cpu":
            self._spectra()

    @property
    def psf(self) -> Tensor:
        """A copy of the PSF (..., h, w)."""
        return self._psf.clone()

    def __call__(self, image: Tensor) -> Tensor:
        """`psf_convolve(image, psf)` for an image (..., H, W) of the dtype and device of the PSF."""
        _check.tensor("image", image)
        _check.like("image", image, self._psf, "psf")
        _check.at_least_dims("image", image, 2, "(..., H, W)")
        if tuple(image.shape[-2:]) != self.image_size:
            raise ValueError(f"image: need the plan's rows and columns {self.image_size}, got {tuple(image.shape)}")
        _check.broadcast_shape(
            ("leading axes of image", "leading axes of psf"), [image.shape[:-2], self._psf.shape[:-2]]
        )
        backend = _backend.select("psf_convolve", self._psf.device, op.IMPLEMENTED)
        spectra = self._spectra() if backend == "cpu" else None
        if spectra is None:
            return op.psf_convolve(image, self._psf, mode=self.mode, boundary=self.boundary)
        return _planned(image, *spectra, (*self._window, False, 0, "cpu"))

    def __getstate__(self) -> dict[str, Any]:
        """Without the spectra, which belong to this processor and this version."""
        return {**self.__dict__, "_made": {}}

    def _spectra(self) -> _Spectra | None:
        """Those of the present instruction set, made where there are none yet; None where the plain call serves."""
        (height, width), (h, w) = self.image_size, self._psf.shape[-2:]
        if self._psf.device.type != "cpu" or (self.boundary == "zero" and h * w <= op.MOST_TAPS):
            return None
        # A traced call cannot ask the extension; it was traced on this processor.
        compiling = torch.compiler.is_compiling()
        name = self._instruction_set if compiling else _compiled.instruction_set()
        found = self._made.get(name)
        if found is not None or compiling:
            return found
        if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
            return None  # a transform would wrap what is to be kept
        outputs, threads = (self._window[1], self._window[4]), _backend.threads()
        back = _adjoint(self._window, self.image_size)
        with torch.inference_mode(False), torch.no_grad():
            wraps = self.boundary == "circular" and (h > height or w > width)
            psf = reference.fold(self._psf, height, width).contiguous() if wraps else self._psf
            there = _compiled.psf_convolve_spectra(psf, self.image_size, self._window, False, threads)
            made = _Spectra(psf, there, _compiled.psf_convolve_spectra(psf, outputs, back, True, threads))
        self._instruction_set = name
        self._made[name] = made
        return made


def _checked_size(image_size: object) -> tuple[int, int]:
    sizes = tuple(image_size) if isinstance(image_size, Sequence) else ()
    wrong = [n for n in sizes if type(n) is bool or not isinstance(n, int | np.integer) or n < 1]
    if len(sizes) != 2 or wrong:
        raise ValueError(f"image_size: need two positive integers (H, W), got {image_size!r}")
    return int(sizes[0]), int(sizes[1])


def _adjoint(window: tuple[int, ...], size: tuple[int, int]) -> tuple[int, ...]:
    """Of the call that takes a gradient back to operands of that size."""
    return (-window[0], size[0], window[2], -window[3], size[1], window[5])


# ---- options are those of a convolution; the spectra are those of the PSF for this call and for its adjoint ----


def _planned(image: Tensor, psf: Tensor, spectra: Tensor, adjoint: Tensor, options: tuple[Any, ...]) -> Tensor:
    return _autograd.apply(_PLANNED, (image, psf, spectra, adjoint), options)[0]


def _forward(tensors: Any, options: Any, needs: Any) -> tuple[tuple[Tensor, ...], Any]:
    image, psf, spectra, _ = (_compiled.plain(tensor) for tensor in tensors)
    *window, conjugate, summed, backend = options
    # With more axes than the kernel walks, operands are copied at the full batch shape, to which no spectra belong.
    fits = max(image.ndim, psf.ndim) - 2 <= _compiled.MAX_AXES
    output = _compiled.psf_convolve(
        backend,
        op.CONVOLVE_KIND,
        image,
        psf,
        tuple(window),
        conjugate,
        summed,
        _backend.threads(),
        spectra=spectra if fits else None,
    )
    return (output,), None


def _backward(
    grads: Any, tensors: Any, outputs: Any, saved: Any, options: Any, needs: Any
) -> tuple[Tensor | None, ...]:
    grad, (image, psf, spectra, adjoint) = grads[0], tensors
    if grad is None or not needs[0]:
        return (None,) * 4
    window, correlates, backend = options[:6], options[6], options[8]
    back = _adjoint(window, (image.shape[-2], image.shape[-1]))

    def convolve(first: Tensor, second: Tensor, summed: int) -> Tensor:
        return _planned(first, second, adjoint, spectra, (*back, not correlates, summed, backend))

    return op.onto_batch(image, grad, psf, convolve), None, None, None


def _jvp(tensors: Any, tangents: Any, outputs: Any, options: Any) -> tuple[Tensor, ...]:
    if tangents[0] is None:
        return (torch.zeros_like(outputs[0]),)
    return (_planned(tangents[0], tensors[1], tensors[2], tensors[3], options),)


_PLANNED = _autograd.register(
    _autograd.Rule(
        name="psf_convolve_planned",
        arguments=("image", "psf", "spectra", "adjoint"),
        options=op.CONVOLVE_OPTIONS,
        core_dims=(2, 2, 1, 1),
        n_outputs=1,
        forward=_forward,
        fake=op.convolve_fake,
        backward=_backward,
        jvp=_jvp,
    )
)
