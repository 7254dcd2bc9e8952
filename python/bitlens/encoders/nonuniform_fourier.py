"""Samples of the Fourier transform of a scene anywhere: MRI trajectories and visibilities of an interferometer."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, final, get_args

import numpy as np
import torch
from torch import Tensor

from bitlens.encoders.detector import as_real
from bitlens.encoders.fourier_sampling import (
    channels_to_samples,
    coil_domain,
    coil_images,
    coil_maps,
    coil_power,
    coil_scale,
    join_coils,
    register,
    samples_to_channels,
    scene_shape,
    sensitivity_channels,
)
from bitlens.encoders.linear import LinearEncoder
from bitlens.kernels import _fallback

Order = Literal["even", "golden"]
Norm = Literal["ortho", "backward"]

# In double also for float32 scenes: single precision would round the points, an error of 1e-5 at 256 pixels, and spares
# half of the time at best.
_TOLERANCE = {torch.float32: 1e-7, torch.float64: 1e-12}
# Complex numbers at once in the formulation for other devices: 64 MB for each of a few temporaries.
_CHUNK = 4_000_000


@final
class NonuniformSampling(LinearEncoder):
    """measured_j = sum over row r and column c of scene sensitivity exp(-2 pi i (k_j0 y_r + k_j1 x_c)) / sqrt(n).

    y_r = (r - rows // 2) / rows and x_c = (c - columns // 2) / columns are positions in fields of view, k in cycles
    per field of view, n the number of pixels: at integer k, the samples of `CartesianSampling`. Norm "backward" does
    not divide. Differentiable in the trajectory as often as wanted.

    Shapes: scene (batch, 1, row, column) real, or (batch, 2, row, column) as real and imaginary part. Measured
    (batch, 2 coil, ...), ... as in the trajectory (..., 2), as real and imaginary part of each coil.
    Accuracy: 1e-12 of the largest in float64, 1e-7 in float32. On the CPU by finufft; elsewhere as a plain sum.

    Reference: Barnett, Magland and af Klinteberg 2019, doi:10.1137/18M120885X.
    """

    trajectory: Tensor
    sensitivities: Tensor | None
    coil_power: Tensor | None

    def __init__(
        self,
        trajectory: Tensor | np.ndarray,
        shape: tuple[int, int],
        *,
        sensitivities: Tensor | np.ndarray | None = None,
        complex_scene: bool = False,
        norm: Norm = "ortho",
        learn: Sequence[str] = (),
    ) -> None:
        """Takes k (..., 2), along rows' and columns' index, and the (row, column) `shape` of scenes.

        Args:
            sensitivities: complex (coil, row, column); default one coil of sensitivity 1. Held as pairs of real
                channels (2 coil, row, column).
            complex_scene: whether scenes have two channels, real and imaginary part.
            learn: "trajectory", "sensitivities" to optimise: `nn.Parameter` instead of buffers. Nothing limits the
                gradients and slew rates of a learned trajectory; of sensitivities the proportions between coils count.

        Raises:
            ImportError: finufft is not installed.
            ValueError: a wrong shape, a trajectory that is not finite, an unknown name in `learn` or norm.
        """
        super().__init__()
        _finufft()
        points = torch.as_tensor(trajectory).detach().to(torch.float64).clone()
        if points.ndim < 2 or points.shape[-1] != 2:
            raise ValueError(f"trajectory: need shape (..., 2), got {tuple(points.shape)}")
        _check_finite(points)
        if norm not in get_args(Norm):
            raise ValueError(f"norm: need one of {get_args(Norm)}, got {norm!r}")
        self.shape, self.complex_scene, self.norm = scene_shape(shape), complex_scene, norm
        coils = sensitivity_channels(sensitivities)
        if coils is not None and tuple(coils.shape[1:]) != self.shape:
            raise ValueError(f"sensitivities: need {self.shape} rows and columns, got {tuple(coils.shape[1:])}")
        register(self, {"trajectory": points, "sensitivities": coils}, learn)
        self.register_buffer("coil_power", coil_power(coils))
        # Beyond half a cycle per pixel the samples repeat those within.
        highest = max(max(self.shape) / 2, float(points.abs().max()) if points.numel() else 0.0)
        self.parameter_domain: Mapping[str, tuple[float | None, float | None]] = {
            "trajectory": (-highest, highest),
            **coil_domain(coils),
        }
        self.parameter_scale: Mapping[str, float] = {"trajectory": 1.0, **coil_scale(coils)}

    @classmethod
    def from_baselines(
        cls,
        baselines_wavelengths: Tensor | np.ndarray,
        shape: tuple[int, int],
        *,
        pixel_rad: float,
        learn: Sequence[str] = (),
    ) -> NonuniformSampling:
        """Visibilities V(u, v) = sum of scene exp(-2 pi i (u x + v y)) of baselines (..., 2), u and v in wavelengths.

        Pixels are pixel_rad apart; x grows with the column, y with the row, both 0 at index size // 2. An image with
        east on the left and north up, for u to the east and v to the north, is to be flipped both ways.

        Reference: Thompson, Moran and Swenson 2017, doi:10.1007/978-3-319-44431-4, ch. 3.
        """
        if not (math.isfinite(pixel_rad) and pixel_rad > 0):
            raise ValueError(f"pixel_rad: need a positive number, got {pixel_rad}")
        baselines = torch.as_tensor(baselines_wavelengths).to(torch.float64)
        if baselines.ndim < 2 or baselines.shape[-1] != 2:
            raise ValueError(f"baselines_wavelengths: need shape (..., 2), got {tuple(baselines.shape)}")
        size = torch.tensor(shape, dtype=torch.float64) * pixel_rad
        return cls(baselines.flip(-1) * size, shape, norm="backward", learn=learn)

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """Samples (batch, 2 coil, ...) as pairs of real channels."""
        images = coil_images(scene, coil_maps(self.sensitivities, self.coil_power), self.complex_scene)
        if tuple(images.shape[-2:]) != self.shape:
            raise ValueError(f"scene: need {self.shape} rows and columns, got {tuple(images.shape)}")
        values = image_to_samples(images.flatten(0, 1), self._points(), tolerance=_TOLERANCE[images.real.dtype])
        samples = (self._scale() * values).to(images.dtype).unflatten(0, images.shape[:2])
        return samples_to_channels(samples).unflatten(-1, self.trajectory.shape[:-1])

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """Scenes (batch, 1 or 2, row, column): the sum over the samples, of conjugate phases."""
        measured = as_real("measured", measured)
        if tuple(measured.shape[2:]) != tuple(self.trajectory.shape[:-1]):
            expected = ", ".join(map(str, self.trajectory.shape[:-1]))
            raise ValueError(f"measured: need shape (batch, 2 coil, {expected}), got {tuple(measured.shape)}")
        samples = channels_to_samples(measured.flatten(2))
        images = samples_to_image(
            samples.flatten(0, 1), self._points(), self.shape, tolerance=_TOLERANCE[measured.dtype]
        )
        images = (self._scale() * images).to(samples.dtype).unflatten(0, samples.shape[:2])
        return join_coils(images, coil_maps(self.sensitivities, self.coil_power), self.complex_scene)

    def extra_repr(self) -> str:
        learned = tuple(name for name, _ in self.named_parameters())
        coils = 1 if self.sensitivities is None else len(self.sensitivities) // 2
        return (
            f"samples={tuple(self.trajectory.shape[:-1])}, shape={self.shape}, coils={coils}, "
            f"complex_scene={self.complex_scene}, norm={self.norm!r}, learn={learned}"
        )

    def _points(self) -> Tensor:
        return self.trajectory.to(torch.float64).reshape(-1, 2)

    def _scale(self) -> float:
        return 1 / math.sqrt(self.shape[0] * self.shape[1]) if self.norm == "ortho" else 1.0


# ---- trajectories ----


def radial_trajectory(spokes: int, samples: int, *, maximum_cycles: float, order: Order = "even") -> Tensor:
    """k (spoke, sample, 2) of diameters through 0, in cycles per field of view, float64.

    A spoke at angle t is (k sin t, k cos t), k = maximum_cycles (2 j / samples - 1): 0 at j = samples // 2 where
    samples is even. Order "even" turns by pi / spokes from one to the next, "golden" by pi / 1.618, 111.2 degrees.

    Reference: Winkelmann et al. 2007, doi:10.1109/TMI.2006.885337.
    """
    _check_trajectory(spokes=spokes, samples=samples, maximum_cycles=maximum_cycles)
    angle = _turns(spokes, order, even=0.5 / spokes, golden=(math.sqrt(5) - 1) / 4)
    k = maximum_cycles * (2 * torch.arange(samples, dtype=torch.float64) / samples - 1)
    return torch.stack((torch.sin(angle)[:, None] * k, torch.cos(angle)[:, None] * k), -1)


def spiral_trajectory(
    interleaves: int,
    samples: int,
    *,
    turns: float,
    maximum_cycles: float,
    density_power: float = 1.0,
    order: Order = "even",
) -> Tensor:
    """k (interleaf, sample, 2) of spirals from 0 outwards, in cycles per field of view, float64.

    |k| = maximum_cycles s^density_power at the angle 2 pi turns s, s from 0 to 1: power 1 is the Archimedean spiral of
    even density, a larger one is denser in the middle. Samples follow each other at an even speed along the spiral
    (s = time^(1 / (density_power + 1)), exact far from 0). The field of view is covered evenly where turns of all
    interleaves together are at most 1 apart: maximum_cycles / (turns interleaves) <= 1 for power 1.
    Order "even" turns by 2 pi / interleaves from one to the next, "golden" by 137.5 degrees.

    Reference: Kim, Adalsteinsson and Spielman 2003, doi:10.1002/mrm.10493.
    """
    _check_trajectory(
        interleaves=interleaves, samples=samples, turns=turns, maximum_cycles=maximum_cycles,
        density_power=density_power,
    )  # fmt: skip
    angle = _turns(interleaves, order, even=1 / interleaves, golden=(3 - math.sqrt(5)) / 2)
    time = torch.linspace(0, 1, samples, dtype=torch.float64)
    s = time ** (1 / (density_power + 1))
    k, phase = maximum_cycles * s**density_power, 2 * math.pi * turns * s + angle[:, None]
    return torch.stack((k * torch.sin(phase), k * torch.cos(phase)), -1)


def _turns(count: int, order: Order, *, even: float, golden: float) -> Tensor:
    if order not in get_args(Order):
        raise ValueError(f"order: need one of {get_args(Order)}, got {order!r}")
    step = even if order == "even" else golden
    return 2 * math.pi * torch.remainder(step * torch.arange(count, dtype=torch.float64), 1.0)


def _check_trajectory(**numbers: float) -> None:
    for name, number in numbers.items():
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name}: need a positive number, got {number}")


# ---- the transform and its adjoint ----


def image_to_samples(image: Tensor, points: Tensor, *, tolerance: float) -> Tensor:
    """Complex128 (batch, sample) sums exp(-2 pi i k.position) of complex (batch, row, column) at k (sample, 2)."""
    return _ImageToSamples.apply(image.to(torch.complex128), points, tolerance)  # type: ignore[no-untyped-call]


def samples_to_image(samples: Tensor, points: Tensor, shape: tuple[int, int], *, tolerance: float) -> Tensor:
    """Complex128 (batch, row, column): the adjoint of `image_to_samples`."""
    return _SamplesToImage.apply(  # type: ignore[no-untyped-call]
        samples.to(torch.complex128), points, shape, tolerance
    )


def _positions(shape: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """2 pi i times the positions along rows (row, 1) and columns (1, column), in fields of view."""
    rows, columns = (
        2j * math.pi * (torch.arange(size, dtype=torch.float64, device=like.device) - size // 2) / size
        for size in shape
    )
    return rows[:, None], columns[None, :]


def _slopes(image: Tensor, points: Tensor, tolerance: float) -> Tensor:
    """(2, batch, sample): derivatives of the samples in k."""
    shape = (image.shape[1], image.shape[2])
    moved = torch.stack([-position * image for position in _positions(shape, image)])
    return image_to_samples(moved.flatten(0, 1), points, tolerance=tolerance).unflatten(0, (2, -1))


def _point_gradient(image: Tensor, samples: Tensor, points: Tensor, tolerance: float) -> Tensor:
    """(sample, 2): the gradient in k of the real part of sum(conj(samples) image_to_samples(image))."""
    return (samples.conj() * _slopes(image, points, tolerance)).real.sum(1).mT


def _over_batches(function: Any, info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
    """A vmap rule: one call with a longer batch where only the batch is mapped, else one for each entry."""
    if in_dims[1] is None:
        first = arguments[0].movedim(in_dims[0], 0)
        return function.apply(first.flatten(0, 1), *arguments[1:]).unflatten(0, first.shape[:2]), 0
    results = []
    for index in range(info.batch_size):
        entry = [
            value.select(dim, index) if isinstance(dim, int) else value
            for value, dim in zip(arguments, in_dims, strict=True)
        ]
        results.append(function.apply(*entry))
    return torch.stack(results), 0


@final
class _ImageToSamples(torch.autograd.Function):
    @staticmethod
    def forward(image: Tensor, points: Tensor, tolerance: float) -> Tensor:
        if image.device.type != "cpu":
            return _samples_by_sum(image, points)
        out = torch.zeros(len(image), len(points), dtype=torch.complex128)
        return _by_finufft("nufft2d2", image, points, (image.shape[1], image.shape[2]), out, tolerance)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])
        ctx.tolerance = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, points = ctx.saved_tensors
        shape = (image.shape[1], image.shape[2])
        back = samples_to_image(grad, points, shape, tolerance=ctx.tolerance) if ctx.needs_input_grad[0] else None
        along = _point_gradient(image, grad, points, ctx.tolerance) if ctx.needs_input_grad[1] else None
        return back, along, None

    @staticmethod
    def jvp(ctx: Any, image_step: Tensor | None, points_step: Tensor | None, _: None) -> Tensor:
        image, points = ctx.saved_tensors
        total = torch.zeros((), dtype=torch.complex128, device=image.device)
        if image_step is not None:
            total = total + image_to_samples(image_step, points, tolerance=ctx.tolerance)
        if points_step is not None:
            total = total + (_slopes(image, points, ctx.tolerance) * points_step.mT[:, None]).sum(0)
        return total

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        return _over_batches(_ImageToSamples, info, in_dims, *arguments)


@final
class _SamplesToImage(torch.autograd.Function):
    @staticmethod
    def forward(samples: Tensor, points: Tensor, shape: tuple[int, int], tolerance: float) -> Tensor:
        if samples.device.type != "cpu":
            return _image_by_sum(samples, points, shape)
        out = torch.zeros(len(samples), *shape, dtype=torch.complex128)
        return _by_finufft("nufft2d1", samples, points, shape, out, tolerance)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])
        ctx.shape, ctx.tolerance = inputs[2:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        samples, points = ctx.saved_tensors
        forth = image_to_samples(grad, points, tolerance=ctx.tolerance) if ctx.needs_input_grad[0] else None
        along = _point_gradient(grad, samples, points, ctx.tolerance) if ctx.needs_input_grad[1] else None
        return forth, along, None, None

    @staticmethod
    def jvp(ctx: Any, samples_step: Tensor | None, points_step: Tensor | None, *_: None) -> Tensor:
        samples, points = ctx.saved_tensors
        total = torch.zeros((), dtype=torch.complex128, device=samples.device)
        if samples_step is not None:
            total = total + samples_to_image(samples_step, points, ctx.shape, tolerance=ctx.tolerance)
        if points_step is not None:
            for position, step in zip(_positions(ctx.shape, samples), points_step.mT, strict=True):
                moved = samples_to_image(samples * step, points, ctx.shape, tolerance=ctx.tolerance)
                total = total + position * moved
        return total

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        return _over_batches(_SamplesToImage, info, in_dims, *arguments)


def _finufft() -> Any:
    try:
        return importlib.import_module("finufft")
    except ImportError as error:
        raise ImportError("NonuniformSampling needs finufft: pip install bitlens[mri]") from error


def _check_finite(points: Tensor) -> None:
    if not bool(points.isfinite().all()):
        raise ValueError("trajectory: need finite numbers")


def _by_finufft(
    name: str, values: Tensor, points: Tensor, shape: tuple[int, int], out: Tensor, tolerance: float
) -> Tensor:
    """`out`, filled by one of finufft's functions.

    A plan kept between calls would spare 0.2 ms of 0.6 at 4000 samples of 64^2 pixels, next to nothing of more. Each
    transform runs on one thread, so that its sums have one order and a fork does no harm; a batch is split.
    """
    if not out.numel() or not values.numel():
        return out
    _check_finite(points)
    transform = getattr(_finufft(), name)
    turns = points / torch.tensor(shape, dtype=torch.float64)
    x, y = (2 * math.pi * (turns - turns.round())).mT.contiguous().numpy()
    numbers, result = values.resolve_conj().resolve_neg().contiguous().numpy(), out.numpy()
    sign = -1 if name == "nufft2d2" else 1

    def run(begin: int, end: int) -> None:
        transform(x, y, numbers[begin:end], out=result[begin:end], eps=tolerance, isign=sign, nthreads=1)

    _fallback.in_threads(run, len(numbers), 1, torch.get_num_threads())
    return out


def _phases(points: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """exp(-2 pi i k position) along rows (sample, row) and columns (sample, column)."""
    rows, columns = _positions(shape, points)
    return torch.exp(-points[:, :1] * rows[:, 0]), torch.exp(-points[:, 1:] * columns[0])


def _samples_by_sum(image: Tensor, points: Tensor) -> Tensor:
    batch, rows, columns = image.shape
    chunks = []
    for some in points.split(max(1, _CHUNK // max(1, batch * rows))):
        along_rows, along_columns = _phases(some, (rows, columns))
        chunks.append(((image @ along_columns.mT) * along_rows.mT).sum(1))
    return torch.cat(chunks, -1) if chunks else image.new_zeros(batch, 0)


def _image_by_sum(samples: Tensor, points: Tensor, shape: tuple[int, int]) -> Tensor:
    out = samples.new_zeros(len(samples), *shape)
    size = max(1, _CHUNK // max(1, len(samples) * shape[0]))
    for values, some in zip(samples.split(size, -1), points.split(size), strict=True):
        along_rows, along_columns = _phases(some, shape)
        out = out + (values[:, None] * along_rows.mH) @ along_columns.conj()
    return out
