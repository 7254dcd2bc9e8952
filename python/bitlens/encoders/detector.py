"""What a pixel does to light: its active area, quantum efficiency, dark signal, and how they differ between pixels.

Shot noise, gain, read noise, full well and converter are in `bitlens.PoissonGaussianNoise`, which takes the means from
here; `detector_noise` states one by the numbers of a data sheet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, final

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from bitlens.encoders.linear import LinearEncoder
from bitlens.noise import PoissonGaussianNoise

Values = ArrayLike | Tensor


def as_planes(
    name: str,
    value: Tensor | np.ndarray,
    *,
    channels: int | None = None,
    rows: int | None = None,
    columns: int | None = None,
) -> Tensor:
    """`value` as a float32 or float64 tensor (batch, channel, row, column), of the sizes that are given.

    Raises:
        TypeError: another dtype.
        ValueError: another number of axes, or other sizes.
    """
    tensor = as_real(name, value)
    wanted = (channels, rows, columns)
    sizes_fit = all(size in (None, given) for size, given in zip(wanted, tensor.shape[1:], strict=False))
    if tensor.ndim != 4 or not sizes_fit:
        names = zip(wanted, ("channel", "row", "column"), strict=True)
        axes = ", ".join(axis if size is None else str(size) for size, axis in names)
        raise ValueError(f"{name}: need shape (batch, {axes}), got {tuple(tensor.shape)}")
    return tensor


def as_real(name: str, value: Tensor | np.ndarray) -> Tensor:
    """`value` as a float32 or float64 tensor of any shape.

    Raises:
        TypeError: another dtype.
    """
    tensor = _tensor(value)
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: need float32 or float64 values, got {str(tensor.dtype).removeprefix('torch.')}")
    return tensor


def as_values(name: str, value: Values, shapes: str, n_axes: Sequence[int]) -> Tensor:
    """A finite copy of `value` that floats (float64 unless it is a floating-point tensor or array already).

    Raises:
        ValueError: another number of axes than `shapes` describes, an empty axis, NaN or infinity.
    """
    tensor = _tensor(value).detach()
    tensor = tensor.clone() if tensor.is_floating_point() else tensor.to(torch.float64)
    if tensor.ndim not in n_axes or tensor.numel() == 0:
        raise ValueError(f"{name}: need {shapes}, got shape {tuple(tensor.shape)}")
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name}: need finite values, got NaN or infinity")
    return tensor


def _tensor(value: Values) -> Tensor:
    # Torch warns of arrays that are not writable, such as mapped files: those are copied.
    return value if isinstance(value, Tensor) else torch.from_numpy(np.require(value, requirements="W"))


def hold(module: nn.Module, values: Mapping[str, Tensor], learn: Sequence[str]) -> None:
    """Registers the values that `learn` names as parameters of the module and the others as buffers.

    Raises:
        TypeError: `learn` is one string.
        ValueError: an unknown name.
    """
    if isinstance(learn, str):
        raise TypeError(f"learn: need a sequence of names, got {learn!r}")
    unknown = [name for name in learn if name not in values]
    if unknown:
        raise ValueError(f"learn: need names among {', '.join(values)}, got {unknown[0]!r}")
    for name, value in values.items():
        if name in learn:
            module.register_parameter(name, nn.Parameter(value))
        else:
            module.register_buffer(name, value)


def within(name: str, value: Tensor, lower: float, upper: float = math.inf) -> Tensor:
    """`value`, if all of it lies between `lower` and `upper`; otherwise ValueError."""
    low, high = value.min().item(), value.max().item()
    if low < lower or high > upper:
        need = f"at least {lower:g}" if math.isinf(upper) else f"values of {lower:g} to {upper:g}"
        raise ValueError(f"{name}: need {need}, got {low if low < lower else high:g}")
    return value


def active_area_weights(samples: int, fill_factor: Tensor) -> Tensor:
    """Length of each of `samples` samples within the middle sqrt(fill_factor) of a pixel, over the pixel's side.

    Their sum is sqrt(fill_factor): the active area is a centred square, and its edges may cut samples.
    """
    edge = torch.arange(samples + 1, dtype=fill_factor.dtype, device=fill_factor.device) / samples - 0.5
    half = 0.5 * fill_factor.sqrt()
    inside = torch.minimum(torch.maximum(edge, -half), half)
    return inside[1:] - inside[:-1]


@final
class PixelSampling(LinearEncoder):
    """Mean of the scene over each pixel, of `factor` x `factor` samples, as far as the active area reaches.

    The active area is a centred square of `fill_factor` times the pixel's area; light beside it is lost, so a scene of
    ones gives `fill_factor`. Differentiable in it where factor > 1.

    Shapes: (batch, channel, factor row, factor column) -> (batch, channel, row, column).

    Args:
        factor: samples per side of a pixel.
        fill_factor: active share of a pixel's area, above 0 and at most 1.
        learn: "fill_factor", or nothing.

    Reference: Boreman 2001, Modulation Transfer Function in Optical and Electro-Optical Systems, ch. 2.
    """

    parameter_domain: ClassVar[Mapping[str, tuple[float | None, float | None]]] = {"fill_factor": (1e-3, 1.0)}
    parameter_scale: ClassVar[Mapping[str, float]] = {"fill_factor": 0.3}

    fill_factor: Tensor

    def __init__(self, factor: int, *, fill_factor: float = 1.0, learn: Sequence[str] = ()) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"factor: need at least 1, got {factor}")
        if not 0 < fill_factor <= 1:
            raise ValueError(f"fill_factor: need a number above 0 and at most 1, got {fill_factor}")
        self.factor = factor
        hold(self, {"fill_factor": as_values("fill_factor", fill_factor, "a number", (0,))}, learn)

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """Pixels (batch, channel, row, column) of a scene of `factor` times as many rows and columns.

        Raises:
            ValueError: not a whole number of pixels.
        """
        scene = as_planes("scene", scene)
        *leading, rows, columns = scene.shape
        if rows % self.factor or columns % self.factor:
            raise ValueError(
                f"scene: need rows and columns that are multiples of factor = {self.factor}, got {tuple(scene.shape)}"
            )
        weights = active_area_weights(self.factor, self.fill_factor).to(scene.dtype)
        # Rows first: their sums run along whole lines of memory.
        lines = (scene.reshape(*leading, rows // self.factor, self.factor, columns) * weights[:, None]).sum(dim=-2)
        return lines.reshape(*leading, rows // self.factor, columns // self.factor, self.factor) @ weights

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """Each pixel's value times the weights of its samples."""
        measured = as_planes("measured", measured)
        weights = active_area_weights(self.factor, self.fill_factor).to(measured.dtype)
        lines = (measured[..., None] * weights).flatten(-2)
        return (lines[..., None, :] * weights[:, None]).flatten(-3, -2)


@final
class Detector(nn.Module):
    """mean = exposure_s (min(1, quantum_efficiency response) photons_per_s + dark_electrons_per_s), photo-electrons.

    Affine in the scene, photons per pixel and second (batch, channel, row, column); `A` and `A_adjoint` are the linear
    part, to which `forward` adds `dark_electrons()`; negative light, a rounding error of an FFT, is none. The response
    is `photo_response`, scaled to the mean that was given: learning it moves sensitivity between pixels, adding none.
    The full well is the noise model's (`detector_noise`): it clips counts, whose mean is no clipped mean.

    Args:
        quantum_efficiency: photo-electrons per photon, 0 to 1; a number or one per channel.
        exposure_s: exposure time, seconds.
        dark_electrons_per_s: dark signal of a pixel, at least 0; a number or a map (row, column), as the next.
        photo_response: each pixel's response over the mean pixel's, at least 0.
        learn: names of arguments to optimise, of `photo_response` a map.

    Reference: EMVA 1288, release 4.0, sections 2 and 4.
    """

    quantum_efficiency: Tensor
    exposure_s: Tensor
    dark_electrons_per_s: Tensor
    photo_response: Tensor
    mean_response: Tensor

    def __init__(
        self,
        *,
        quantum_efficiency: Values = 1.0,
        exposure_s: float = 1.0,
        dark_electrons_per_s: Values = 0.0,
        photo_response: Values = 1.0,
        learn: Sequence[str] = (),
    ) -> None:
        super().__init__()
        efficiency = as_values("quantum_efficiency", quantum_efficiency, "a number or one per channel", (0, 1))
        exposure = as_values("exposure_s", exposure_s, "a number", (0,))
        dark = as_values("dark_electrons_per_s", dark_electrons_per_s, "a number or (row, column)", (0, 2))
        response = as_values("photo_response", photo_response, "a number or (row, column)", (0, 2))
        values = {
            "quantum_efficiency": within("quantum_efficiency", efficiency, 0.0, 1.0),
            "exposure_s": within("exposure_s", exposure, 0.0),
            "dark_electrons_per_s": within("dark_electrons_per_s", dark, 0.0),
            "photo_response": within("photo_response", response, 0.0),
        }
        if response.ndim == 0 and "photo_response" in learn:
            raise ValueError("learn: need a map (row, column) to learn photo_response, got a number")
        # Beyond it a pixel would free more than one electron per photon.
        largest = float(response.max())
        if float(efficiency.max()) > 0:
            largest = max(largest, 1 / float(efficiency.max()))
        self.parameter_domain: Mapping[str, tuple[float | None, float | None]] = {
            "quantum_efficiency": (0.0, 1.0),
            "exposure_s": (0.0, None),
            "dark_electrons_per_s": (0.0, None),
            "photo_response": (0.0, largest),
        }
        # Of a dark signal of none, an electron in the exposure.
        dark_scale = 0.3 * float(dark.mean()) or 1.0 / (float(exposure) or 1.0)
        self.parameter_scale: Mapping[str, float] = {
            "quantum_efficiency": 0.3,
            "exposure_s": 0.3 * float(exposure) or 1.0,
            "dark_electrons_per_s": dark_scale,
            "photo_response": 0.3,
        }
        hold(self, values, learn)
        self.register_buffer("mean_response", response.mean())

    def electrons_per_rate(self) -> Tensor:
        """Photo-electrons for a photon per second: a number, or (channel or 1, row or 1, column or 1)."""
        efficiency = self.quantum_efficiency[..., None, None] if self.quantum_efficiency.ndim else None
        scale = self.quantum_efficiency if efficiency is None else efficiency
        return self.exposure_s * (scale * self._response()).clamp(max=1.0)

    def _response(self) -> Tensor:
        if self.photo_response.ndim == 0:
            return self.photo_response
        present = self.photo_response.mean()
        # A dead map has no proportions: 0 of 1.
        return self.photo_response * (self.mean_response / torch.where(present > 0, present, 1.0))

    def dark_electrons(self) -> Tensor:
        """Dark signal of the exposure, electrons: a number or (row, column)."""
        return self.exposure_s * self.dark_electrons_per_s

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """Photo-electrons (batch, channel, row, column) from light alone."""
        return self._scaled("scene", scene)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """`A` again: it scales each pixel."""
        return self._scaled("measured", measured)

    def forward(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean electrons of `scene`: light, where negative none, and dark signal."""
        light = self.A(as_planes("scene", scene).clamp(min=0))
        return light + self.dark_electrons().to(light.dtype)

    def _scaled(self, name: str, value: Tensor | np.ndarray) -> Tensor:
        planes = as_planes(name, value)
        for given in (self.photo_response, self.dark_electrons_per_s):
            if given.ndim and planes.shape[-2:] != given.shape:
                raise ValueError(
                    f"{name}: need the maps' rows and columns {tuple(given.shape)}, got {tuple(planes.shape)}"
                )
        if self.quantum_efficiency.ndim and planes.shape[1] != self.quantum_efficiency.numel():
            raise ValueError(
                f"{name}: need {self.quantum_efficiency.numel()} channels, one per quantum_efficiency, "
                f"got {tuple(planes.shape)}"
            )
        return self.electrons_per_rate().to(planes.dtype) * planes


def photo_response_map(size: tuple[int, int], std: float, *, generator: torch.Generator) -> Tensor:
    """max(0, 1 + std n), n ~ Normal(0, 1), float64 of `size` (rows, columns): photo-response non-uniformity.

    Raises:
        ValueError: `std` negative.

    Reference: EMVA 1288, release 4.0, section 4 (PRNU as a share of the mean response).
    """
    if std < 0:
        raise ValueError(f"std: need at least 0, got {std}")
    return (1 + std * torch.randn(size, dtype=torch.float64, generator=generator)).clamp(min=0)


def dark_signal_map(size: tuple[int, int], mean: float, std: float, *, generator: torch.Generator) -> Tensor:
    """Log-normal dark signals of this mean and standard deviation, float64 of `size` (rows, columns).

    Never negative, and with a tail of warm pixels, as generation centres leave them.

    Raises:
        ValueError: `mean` not positive or `std` negative.

    Reference: EMVA 1288, release 4.0, section 4 (DSNU).
    """
    if mean <= 0:
        raise ValueError(f"mean: need a positive number, got {mean}")
    if std < 0:
        raise ValueError(f"std: need at least 0, got {std}")
    log_variance = math.log1p((std / mean) ** 2)
    white = torch.randn(size, dtype=torch.float64, generator=generator)
    return mean * torch.exp(math.sqrt(log_variance) * white - 0.5 * log_variance)


def detector_noise(
    *,
    read_electrons: float,
    gain: float | nn.Parameter = 1.0,
    converter_std: float = 0.0,
    offset: float = 0.0,
    adc_bits: int | None = None,
    full_well_electrons: float | None = None,
) -> PoissonGaussianNoise:
    """`PoissonGaussianNoise` with read_std^2 = (gain read_electrons)^2 + converter_std^2, ADU^2.

    Args:
        read_electrons: read noise before the amplifier, electrons; with `converter_std` it must not vanish.
        gain: ADU per electron; an `nn.Parameter` is optimised, and `read_electrons` grows with it.
        converter_std: noise behind the amplifier, ADU, without the rounding that `adc_bits` adds.
        offset, adc_bits, full_well_electrons: as in `PoissonGaussianNoise`.

    Raises:
        ValueError: a negative noise, or none at all.

    Reference: EMVA 1288, release 4.0, eq. 11.
    """
    for name, value in (("read_electrons", read_electrons), ("converter_std", converter_std)):
        if value < 0:
            raise ValueError(f"{name}: need at least 0, got {value}")
    if read_electrons == 0 and converter_std == 0:
        raise ValueError("read_electrons: need read noise, or a converter_std, above 0, got 0")
    return PoissonGaussianNoise(
        gain,
        offset,
        read_std=converter_std or None,
        read_electrons=read_electrons or None,
        adc_bits=adc_bits,
        full_well_electrons=full_well_electrons,
    )
