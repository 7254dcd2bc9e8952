"""X-ray projections of an image onto a line of detector bins, in parallel and in fan beams, with exact adjoints.

Column c of an image lies at x = (c - (columns - 1) / 2) pixel_mm, row r at y = (r - (rows - 1) / 2) pixel_mm, so that y
points down the image; the axis of rotation is at x = y = 0. At an angle t the detector's axis points along
(cos t, sin t) and the rays along (-sin t, cos t).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.encoders._tomography_gradients import backproject, project
from bitlens.encoders._tomography_rays import Rays
from bitlens.encoders.detector import as_real
from bitlens.encoders.linear import LinearEncoder

Values = float | Sequence[float] | Tensor | np.ndarray
Window = Literal["ramp", "hann"]


@final
class ParallelProjection(LinearEncoder):
    """measured[view, bin] = mean over the bin of the integral of the scene along s = x cos t + y sin t, in mm.

    Pixels and bins are taken as boxes, and a pixel's shadow on the detector as one too (distance-driven): the sum of a
    view times bin_mm is the scene's integral exactly, if the detector is wide enough. Bin b is centred at
    s = (b - (bins - 1) / 2) bin_mm - offset_mm. Differentiable in the angles and the offset. In double inside.

    Shapes: scene (batch, channel, row, column), in 1 / mm for attenuation; measured (batch, channel, view, bin).
    Gradients in angles and offset are those of a function that is piecewise smooth: once differentiable.

    Reference: De Man and Basu 2004, doi:10.1088/0031-9155/49/11/024.
    """

    angles_rad: Tensor
    offset_mm: Tensor

    def __init__(
        self,
        angles_rad: Values,
        shape: tuple[int, int],
        *,
        bins: int,
        pixel_mm: float = 1.0,
        bin_mm: float | None = None,
        offset_mm: Values = 0.0,
        learn: Sequence[str] = (),
    ) -> None:
        """Takes the angles of the views and the (row, column) `shape` of scenes.

        Args:
            bin_mm: width of a bin; default pixel_mm.
            offset_mm: where the axis of rotation falls on the detector, from its middle; one, or one per view.
            learn: "angles_rad", "offset_mm" to optimise: `nn.Parameter` instead of buffers.

        Raises:
            ValueError: a number out of its range, an unknown name in `learn`.
        """
        super().__init__()
        self.shape, self.bins = _image_shape(shape), _count("bins", bins)
        self.pixel_mm = _positive("pixel_mm", pixel_mm)
        self.bin_mm = self.pixel_mm if bin_mm is None else _positive("bin_mm", bin_mm)
        self.parameter_scale: Mapping[str, float] = _view_scale(self.pixel_mm, self.shape)
        _register_views(self, angles_rad, offset_mm, learn)

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """Projections (batch, channel, view, bin)."""
        scene = _planes("scene", scene, self.shape, self.angles_rad)
        return project(scene.flatten(0, 1), self._rays()).unflatten(0, scene.shape[:2])

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """Backprojection (batch, channel, row, column): bin_mm / pixel_mm^2 of it averages the views over a pixel."""
        measured = _planes("measured", measured, (len(self.angles_rad), self.bins), self.angles_rad)
        return backproject(measured.flatten(0, 1), self._rays(), self.shape).unflatten(0, measured.shape[:2])

    def extra_repr(self) -> str:
        return _shown(self, "pixel_mm", "bin_mm")

    def _rays(self) -> Rays:
        angle, offset = self.angles_rad.double(), self.offset_mm.double()
        first = (-self.bins / 2 * self.bin_mm - offset).expand_as(angle)
        cosine, sine = _cosine_and_sine(angle)
        # Each view is in one part, a tie and one that is not a number in the first.
        steep = ~(sine.abs() > cosine.abs())
        parts, factor = [], torch.zeros_like(angle)
        for index, (across, along) in enumerate(((cosine, sine), (sine, cosine))):
            chosen = ~steep if index else steep
            lines, pixels = self.shape[::-1] if index else self.shape
            across = torch.where(chosen, across, 1.0)
            tangent = torch.where(chosen, along, 0.0) / across
            steps = self.bin_mm / (self.pixel_mm * across)
            start = first / (self.pixel_mm * across) + ((lines - 1) / 2 * tangent + pixels / 2)
            parts.append((torch.stack((start, steps), -1), -tangent[:, None], chosen[:, None], torch.ones_like(steps)))
            factor = factor + torch.where(chosen, torch.sign(across.detach()), 0.0)
        intercept, slope, inside, one = (torch.stack(values) for values in zip(*parts, strict=True))
        factor = factor * (self.pixel_mm**2 / self.bin_mm)
        none, edges = angle.new_zeros(2, 0), _edge_numbers(self.bins, angle)
        return Rays(intercept, slope, none, none, inside, one, edges, factor)


@final
class FanProjection(LinearEncoder):
    """measured[view, bin] = mean over the bin of the scene's integral along rays from a point source, in mm.

    The source is at source_mm (sin t, -cos t), the middle of a flat detector at detector_mm (-sin t, cos t) and bin b
    at (b - (bins - 1) / 2) bin_mm - offset_mm along (cos t, sin t) from there. Far away both ways it is
    `ParallelProjection`. Differentiable in the angles, the offset and both distances. In double inside.

    Shapes: scene (batch, channel, row, column), in 1 / mm for attenuation; measured (batch, channel, view, bin).
    Gradients in the geometry are those of a function that is piecewise smooth: once differentiable.

    Reference: De Man and Basu 2004, doi:10.1088/0031-9155/49/11/024.
    """

    angles_rad: Tensor
    offset_mm: Tensor
    source_mm: Tensor
    detector_mm: Tensor

    def __init__(
        self,
        angles_rad: Values,
        shape: tuple[int, int],
        *,
        bins: int,
        source_mm: float,
        detector_mm: float,
        pixel_mm: float = 1.0,
        bin_mm: float | None = None,
        offset_mm: Values = 0.0,
        learn: Sequence[str] = (),
    ) -> None:
        """Takes the angles of the views and the (row, column) `shape` of scenes.

        Args:
            source_mm, detector_mm: from the axis of rotation to the source, outside the circle around the image, and
                to the detector.
            bin_mm: width of a bin; default that of a pixel's shadow, pixel_mm (source_mm + detector_mm) / source_mm.
            offset_mm: where the axis of rotation falls on the detector, from its middle; one, or one per view.
            learn: "angles_rad", "offset_mm", "source_mm", "detector_mm" to optimise.

        Raises:
            ValueError: a number out of its range, a fan of 90 degrees or more, an unknown name in `learn`.
        """
        super().__init__()
        self.shape, self.bins = _image_shape(shape), _count("bins", bins)
        self.pixel_mm = _positive("pixel_mm", pixel_mm)
        _positive("source_mm", source_mm)
        if not (math.isfinite(detector_mm) and detector_mm >= 0):
            raise ValueError(f"detector_mm: need a number of at least 0, got {detector_mm}")
        magnified = self.pixel_mm * (source_mm + detector_mm) / source_mm
        self.bin_mm = magnified if bin_mm is None else _positive("bin_mm", bin_mm)
        _register_views(self, angles_rad, offset_mm, learn, source_mm=source_mm, detector_mm=detector_mm)
        radius = self.pixel_mm * math.hypot(*self.shape) / 2
        if source_mm <= radius:
            raise ValueError(f"source_mm: need more than {radius:.6g}, the image's half diagonal, got {source_mm}")
        reach = self.bins * self.bin_mm / 2 + float(self.offset_mm.detach().abs().max())
        if reach >= source_mm + detector_mm:
            raise ValueError(f"bins: need a fan within 45 degrees of its axis, got {reach:.6g} mm on either side")
        self.parameter_scale: Mapping[str, float] = {
            **_view_scale(self.pixel_mm, self.shape),
            "source_mm": 0.1 * source_mm,
            "detector_mm": 0.1 * (source_mm + detector_mm),
        }
        # The source stays outside the image, and the fan within 45 degrees wherever both distances go.
        nearest_source, margin = min(1.001 * radius, source_mm), 1.001 * reach
        nearest_detector = min(max(0.0, margin - nearest_source), detector_mm)
        nearest_source = min(max(nearest_source, margin - nearest_detector), source_mm)
        self.parameter_domain: Mapping[str, tuple[float | None, float | None]] = {
            "source_mm": (nearest_source, None),
            "detector_mm": (nearest_detector, None),
        }

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """Projections (batch, channel, view, bin)."""
        scene = _planes("scene", scene, self.shape, self.angles_rad)
        rays, scale = self._rays_and_scale()
        views = scale * project(scene.double().flatten(0, 1), rays)
        return views.to(scene.dtype).unflatten(0, scene.shape[:2])

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """Backprojection (batch, channel, row, column)."""
        measured = _planes("measured", measured, (len(self.angles_rad), self.bins), self.angles_rad)
        rays, scale = self._rays_and_scale()
        image = backproject(scale * measured.double().flatten(0, 1), rays, self.shape)
        return image.to(measured.dtype).unflatten(0, measured.shape[:2])

    def extra_repr(self) -> str:
        return f"source_mm={self.source_mm.item()}, detector_mm={self.detector_mm.item()}, " + _shown(
            self, "pixel_mm", "bin_mm"
        )

    def _rays_and_scale(self) -> tuple[Rays, Tensor]:
        angle, offset = self.angles_rad.double(), self.offset_mm.double()
        source, distance = self.source_mm.double(), self.source_mm.double() + self.detector_mm.double()
        middle_bin = _edge_numbers(self.bins, angle) - self.bins / 2
        edge = middle_bin * self.bin_mm - offset.expand_as(angle)[:, None]
        middle = edge[:, :-1] + self.bin_mm / 2
        cosine, sine = (value[:, None] for value in _cosine_and_sine(angle))
        # Each side's first entry is along x, the second along y.
        start = (source * sine[:, 0], -source * cosine[:, 0])
        towards_edge = (edge * cosine - distance * sine, edge * sine + distance * cosine)
        towards_middle = (middle * cosine - distance * sine, middle * sine + distance * cosine)
        step = (self.bin_mm * cosine[:, 0], self.bin_mm * sine[:, 0])
        steep = ~(towards_middle[0].abs() > towards_middle[1].abs())
        parts, scale = [], torch.zeros_like(middle)
        for index, (x, y) in enumerate(((0, 1), (1, 0))):
            inside = ~steep if index else steep
            lines, pixels = self.shape[::-1] if index else self.shape
            used = torch.nn.functional.pad(inside, (1, 0)) | torch.nn.functional.pad(inside, (0, 1))
            slope = torch.where(used, towards_edge[x], 0.0) / torch.where(used, towards_edge[y], 1.0)
            source_column = start[x] / self.pixel_mm + pixels / 2
            source_row = start[y] / self.pixel_mm + (lines - 1) / 2
            inverse = torch.stack((towards_edge[x][:, 0], step[x], towards_edge[y][:, 0], step[y]), -1).detach()
            direction = torch.sign(torch.where(inside, towards_middle[y], 0.0).detach().sum(-1))
            intercept = source_column[:, None] - slope * source_row[:, None]
            parts.append((intercept, slope, source_row, inverse, inside, direction))
            tangent = torch.where(inside, towards_middle[x], 0.0) / torch.where(inside, towards_middle[y], 1.0)
            width = torch.where(inside, slope.diff(dim=-1), 1.0)
            scale = scale + torch.where(inside, self.pixel_mm * torch.sqrt(1 + tangent**2) / width, 0.0)
        numbers = _edge_numbers(self.bins, angle)
        return Rays._make([*map(torch.stack, zip(*parts, strict=True)), numbers, torch.ones_like(angle)]), scale


def filtered_back_projection(
    sinogram: Tensor | np.ndarray, encoder: ParallelProjection, *, window: Window = "ramp"
) -> Tensor:
    """(batch, channel, row, column) image of `sinogram` (batch, channel, view, bin): ramp filter, backprojection.

    The views of `encoder` must cover half a turn or whole turns evenly. The ramp is that of a detector band-limited at
    1 / (2 bin_mm), sampled in space so that the mean comes out right; "hann" tapers it for less noise.

    Raises:
        ValueError: a sinogram of another shape than the encoder's, an unknown window.

    Reference: Kak and Slaney, Principles of Computerized Tomographic Imaging, 1988, eqs. 3.61 and 3.67.
    """
    sinogram = _planes("sinogram", sinogram, (len(encoder.angles_rad), encoder.bins), encoder.angles_rad)
    if window not in get_args(Window):
        raise ValueError(f"window: need one of {get_args(Window)}, got {window!r}")
    bins, width = encoder.bins, encoder.bin_mm
    size = 2 ** math.ceil(math.log2(max(2, 2 * bins)))
    lag = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64, device=sinogram.device)
    odd = lag.remainder(2) == 1
    kernel = torch.where(odd, -1 / (math.pi * width * torch.where(odd, lag, 1.0)) ** 2, 0.0)
    kernel[0] = 1 / (4 * width**2)
    transfer = torch.fft.rfft(kernel).real * width
    if window == "hann":
        transfer = (
            transfer
            * torch.cos(math.pi / 2 * torch.arange(len(transfer), device=lag.device) / (len(transfer) - 1)) ** 2
        )
    filtered = torch.fft.irfft(torch.fft.rfft(sinogram.double(), size) * transfer, size)[..., :bins]
    # Each view counts for pi / views, and the adjoint for pixel_mm^2 / bin_mm times the view's value at a pixel.
    share = math.pi / len(encoder.angles_rad) * width / encoder.pixel_mm**2
    return (share * encoder.A_adjoint(filtered)).to(sinogram.dtype)


# ---- what both beams share ----


def _planes(name: str, value: Tensor | np.ndarray, last: tuple[int, int], angles_rad: Tensor) -> Tensor:
    axes = "row, column" if name == "scene" else "view, bin"
    tensor = as_real(name, value)
    if tensor.device != angles_rad.device:
        if isinstance(value, Tensor):
            raise ValueError(f"{name}: need the device of angles_rad, {angles_rad.device}, got {tensor.device}")
        tensor = tensor.to(angles_rad.device)
    if tensor.ndim != 4 or tuple(tensor.shape[-2:]) != last:
        raise ValueError(f"{name}: need shape (batch, channel, {axes}) with {last} last, got {tuple(tensor.shape)}")
    return tensor


def _cosine_and_sine(angle: Tensor) -> tuple[Tensor, Tensor]:
    # torch.cos and torch.sin of 180 angles wait for all threads: 16 ms on a busy machine, this microseconds.
    turned = torch.polar(torch.ones_like(angle), angle)
    return turned.real, turned.imag


def _edge_numbers(bins: int, like: Tensor) -> Tensor:
    return torch.arange(bins + 1, dtype=torch.float64, device=like.device)


def _register_views(
    encoder: ParallelProjection | FanProjection, angles: Values, offset: Values, learn: Sequence[str], **more: float
) -> None:
    values = {"angles_rad": _numbers("angles_rad", angles), "offset_mm": _numbers("offset_mm", offset)}
    values |= {name: _numbers(name, number) for name, number in more.items()}
    views, offsets = values["angles_rad"], values["offset_mm"]
    if views.ndim != 1 or not len(views):
        raise ValueError(f"angles_rad: need shape (view,), got {tuple(views.shape)}")
    if offsets.shape not in ((), views.shape):
        raise ValueError(f"offset_mm: need one number or {len(views)}, one per view, got {tuple(offsets.shape)}")
    unknown = [name for name in learn if name not in values]
    if unknown:
        raise ValueError(f"learn: need names among {', '.join(values)}, got {unknown[0]!r}")
    for name, value in values.items():
        if name in learn:
            encoder.register_parameter(name, nn.Parameter(value))
        else:
            encoder.register_buffer(name, value)


def _view_scale(pixel_mm: float, shape: tuple[int, int]) -> dict[str, float]:
    # Four pixels at the image's corner, and one.
    return {"angles_rad": 8 / math.hypot(*shape), "offset_mm": pixel_mm}


def _numbers(name: str, value: Values) -> Tensor:
    numbers = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    if not numbers.isfinite().all():
        raise ValueError(f"{name}: need finite numbers, got {value}")
    return numbers


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: need a positive number, got {value}")
    return float(value)


def _count(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name}: need at least 1, got {value}")
    return int(value)


def _image_shape(shape: tuple[int, int]) -> tuple[int, int]:
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape: need (row, column) of an image, got {tuple(shape)}")
    return int(shape[0]), int(shape[1])


def _shown(encoder: ParallelProjection | FanProjection, *names: str) -> str:
    numbers = [f"{name}={getattr(encoder, name)}" for name in names]
    learned = tuple(name for name, _ in encoder.named_parameters())
    return ", ".join([f"views={len(encoder.angles_rad)}, bins={encoder.bins}", *numbers, f"learn={learned}"])
