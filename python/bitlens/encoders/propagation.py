"""Free-space propagation of complex fields: angular spectrum and Fresnel, functions of tensors and an encoder.

Fields have the time dependence exp(-i omega t), so that a wave running to +z gains exp(i k z); that carrier is dropped.
Frequency zero of every transfer function is at (0, 0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, final, get_args
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from bitlens import ops
from bitlens.encoders.detector import as_planes, hold
from bitlens.encoders.linear import LinearEncoder, channels_to_complex, complex_to_channels

Number = float | Tensor
Model = Literal["angular_spectrum", "fresnel"]


def angular_spectrum(
    field: Tensor | np.ndarray,
    *,
    distance_mm: Number,
    wavelength_nm: Number,
    sample_um: Number,
    shift_um: tuple[Number, Number] = (0.0, 0.0),
    pad: float = 3,
    band_limit: bool = True,
) -> Tensor:
    """ifft2(fft2(field) H) with H of `angular_spectrum_transfer`: the field after `distance_mm`, of either sign.

    Args:
        field: (..., row, column), complex, or real, which is promoted; the result has its shape and precision.
        distance_mm, wavelength_nm, sample_um: numbers or tensors (...) that broadcast with the field's leading axes;
            the wavelength is the one in the medium. Differentiable in all three, except in where the band ends.
        shift_um: (row, column) by which the window of the result lies off that of the field.
        pad: width of the zero-padded grid over the field's; 1 makes the field periodic. The band's end rings: beside a
            hard aperture of half the field by 0.5 % of the peak at 2, 0.06 % at 3. 2 is enough, and 0.4 of the work,
            where the spectrum has faded to 0.04 at padded width / (2 wavelength distance): then it is 0.03 %.

    Raises:
        TypeError, ValueError: not an image, or a number out of its range.

    Reference: Matsushima and Shimobaba 2009, Opt. Express 17, 19662, doi:10.1364/OE.17.019662.
    """
    setting = _setting(field, distance_mm, wavelength_nm, sample_um, shift_um)
    return _propagate("angular_spectrum", field, setting, pad, band_limit)


def fresnel(
    field: Tensor | np.ndarray,
    *,
    distance_mm: Number,
    wavelength_nm: Number,
    sample_um: Number,
    shift_um: tuple[Number, Number] = (0.0, 0.0),
    pad: float = 3,
    band_limit: bool = True,
) -> Tensor:
    """ifft2(fft2(field) H) with the paraxial H = exp(-i pi wavelength z f^2); arguments as in `angular_spectrum`.

    The phase it leaves out against the angular spectrum is k z s^2 / 8 at s = (wavelength f)^2.

    Reference: Goodman, Introduction to Fourier Optics, 3rd ed. 2005, sec. 4.2.
    """
    return _propagate(
        "fresnel", field, _setting(field, distance_mm, wavelength_nm, sample_um, shift_um), pad, band_limit
    )


def angular_spectrum_transfer(
    shape: tuple[int, int],
    *,
    distance_mm: Number,
    wavelength_nm: Number,
    sample_um: Number,
    shift_um: tuple[Number, Number] = (0.0, 0.0),
    band_limit: bool = True,
) -> Tensor:
    """H = exp(-i k z s / (1 + sqrt(1 - s))), s = (wavelength f)^2, complex128 (..., *shape): exp(i k z) is left out.

    Where s > 1 it is exp(-k |z| sqrt(s - 1) - i k z): those waves decay whichever the sign of z. The band limit keeps
    what H samples finely enough: |f| <= 1 / (wavelength sqrt((2 df z)^2 + 1)) along each axis, df the step of f, moved
    by the shift; by the same rule of s > 1 what has s (1 - (2 df z)^2) >= 1, so that z = 0 is the identity.

    Reference: Matsushima and Shimobaba 2009, doi:10.1364/OE.17.019662; with a shift Matsushima 2010,
    doi:10.1364/OE.18.018453.
    """
    setting = _setting(None, distance_mm, wavelength_nm, sample_um, shift_um)
    return _transfer("angular_spectrum", shape, setting, band_limit, torch.complex128)


def fresnel_transfer(
    shape: tuple[int, int],
    *,
    distance_mm: Number,
    wavelength_nm: Number,
    sample_um: Number,
    shift_um: tuple[Number, Number] = (0.0, 0.0),
    band_limit: bool = True,
) -> Tensor:
    """H = exp(-i pi wavelength z f^2), complex128 (..., *shape), kept where |f| <= 1 / (2 df wavelength |z|).

    Reference: Goodman, Introduction to Fourier Optics, 3rd ed. 2005, sec. 4.2.
    """
    setting = _setting(None, distance_mm, wavelength_nm, sample_um, shift_um)
    return _transfer("fresnel", shape, setting, band_limit, torch.complex128)


@final
class FreeSpace(LinearEncoder):
    """Propagation of complex fields, as pairs of real channels, over a distance; see `angular_spectrum`.

    While nothing of it requires gradients the last transfer function is kept: a call with fields of the same size, and
    with the same numbers, filters only.

    Shapes: scene and measurement (batch, 2 n, row, column), n complex fields as `complex_to_channels` makes them.

    Reference: Matsushima and Shimobaba 2009, doi:10.1364/OE.17.019662; Goodman 2005, sec. 4.2.
    """

    distance_mm: Tensor
    wavelength_nm: Tensor
    sample_um: Tensor
    shift_um: Tensor

    def __init__(
        self,
        *,
        distance_mm: float | Sequence[float],
        wavelength_nm: float | Sequence[float],
        sample_um: float,
        shift_um: tuple[float, float] = (0.0, 0.0),
        pad: float = 3,
        band_limit: bool = True,
        model: Model = "angular_spectrum",
        learn: Sequence[str] = (),
    ) -> None:
        """Takes numbers in the units their names state, distance and wavelength also one per complex field.

        Args:
            learn: names among distance_mm, wavelength_nm, sample_um, shift_um that become `nn.Parameter`.

        Raises:
            ValueError: a number out of its range, or an unknown name.
        """
        super().__init__()
        if model not in get_args(Model):
            raise ValueError(f"model: need one of {get_args(Model)}, got {model!r}")
        numbers = {
            "distance_mm": distance_mm,
            "wavelength_nm": wavelength_nm,
            "sample_um": sample_um,
            "shift_um": shift_um,
        }
        values = {name: torch.as_tensor(number, dtype=torch.float64).clone() for name, number in numbers.items()}
        for name, most in (("distance_mm", 1), ("wavelength_nm", 1), ("sample_um", 0)):
            if values[name].ndim > most:
                need = "a number" if most == 0 else "a number or one per field"
                raise ValueError(f"{name}: need {need}, got shape {tuple(values[name].shape)}")
        if values["shift_um"].shape != (2,):
            raise ValueError(f"shift_um: need (row, column), got shape {tuple(values['shift_um'].shape)}")
        for name, value in values.items():
            for number in value.flatten().tolist():
                _check_number(name, number)
        self.pad, self.band_limit, self.model = _check_pad(pad), band_limit, model
        shortest, longest, pitch = (
            float(x) for x in (values["wavelength_nm"].min(), values["wavelength_nm"].max(), values["sample_um"])
        )
        # The depth of focus of what the samples resolve, 4 pitch^2 / wavelength, and what is like it in the others.
        depth_mm = 4 * pitch**2 / shortest
        share = min(0.1, depth_mm / max(1e-9, float(values["distance_mm"].abs().max())))
        self.parameter_domain: dict[str, tuple[float | None, float | None]] = {
            "wavelength_nm": (0.5 * shortest, 2 * longest),
            "sample_um": (0.5 * pitch, 2 * pitch),
        }
        self.parameter_scale: dict[str, float] = {
            "distance_mm": depth_mm,
            "wavelength_nm": share * shortest,
            "sample_um": share * pitch,
            "shift_um": pitch,
        }
        hold(self, values, learn)

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """The fields after the distance (batch, 2 n, row, column)."""
        return self._filtered("scene", scene, adjoint=False)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """Filtered by conj(H): back over the distance, where waves propagate and stay in the window."""
        return self._filtered("measured", measured, adjoint=True)

    def extra_repr(self) -> str:
        shown = ("distance_mm", "wavelength_nm", "sample_um")
        numbers = [f"{name}={getattr(self, name).tolist()}" for name in shown]
        return ", ".join([*numbers, f"pad={self.pad}", f"model={self.model!r}"])

    def _filtered(self, name: str, channels: Tensor | np.ndarray, *, adjoint: bool) -> Tensor:
        channels = as_planes(name, channels)
        field = channels_to_complex(channels)
        for number in ("distance_mm", "wavelength_nm"):
            value = getattr(self, number)
            if value.ndim and value.shape[0] != field.shape[-3]:
                raise ValueError(
                    f"{name}: need 2 x {value.shape[0]} channels, one pair per {number}, got {tuple(channels.shape)}"
                )
        shape = _padded(field, self.pad)
        return complex_to_channels(_filter(field, self._transfer(shape, field.dtype), shape, adjoint=adjoint))

    def _transfer(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        values = (self.distance_mm, self.wavelength_nm, self.sample_um, self.shift_um)
        if not _may_be_read(values):
            return self._built(shape, dtype, shifted=True)
        # One look at them: on a GPU it waits some 10 us, where the transfer function takes 40 kernels.
        numbers = torch.cat([value.detach().reshape(-1).double() for value in values]).tolist()
        key = _Key(shape, dtype, self.distance_mm.device, self.model, self.band_limit, tuple(numbers))
        kept = _KEPT.get(self)
        if kept is None or kept[0] != key:
            # Not one of inference mode, which no later gradient could pass through.
            with torch.inference_mode(False):
                kept = (key, self._built(shape, dtype, shifted=any(numbers[-2:])))
            _KEPT[self] = kept
        return kept[1]

    def _built(self, shape: tuple[int, int], dtype: torch.dtype, *, shifted: bool) -> Tensor:
        distance, wavelength, sample, shift = (
            value.to(torch.float64) for value in (self.distance_mm, self.wavelength_nm, self.sample_um, self.shift_um)
        )
        # Without a shift the transfer is even, and a quarter of it is worked out.
        setting = _Setting(distance, wavelength, sample, (shift[0], shift[1]) if shifted else None)
        return _transfer(self.model, shape, setting, self.band_limit, dtype)


class _Key(NamedTuple):
    """All that a transfer function depends on."""

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    model: Model
    band_limit: bool
    numbers: tuple[float, ...]


# Beside the encoders, which forward leaves as they are, and with which it goes.
_KEPT: WeakKeyDictionary[FreeSpace, tuple[_Key, Tensor]] = WeakKeyDictionary()


def _may_be_read(values: Sequence[Tensor]) -> bool:
    """Whether these are plain numbers: no gradient of any kind, no graph that is being recorded."""
    return not (
        any(type(value) not in (Tensor, nn.Parameter) or value.requires_grad or value.is_meta for value in values)
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or (values[0].is_cuda and torch.cuda.is_current_stream_capturing())
    )


class _Setting(NamedTuple):
    """Float64 tensors (...), without the axes of the image; no shift is None."""

    distance_mm: Tensor
    wavelength_nm: Tensor
    sample_um: Tensor
    shift_um: tuple[Tensor, Tensor] | None


def _setting(
    field: Tensor | np.ndarray | None,
    distance_mm: Number,
    wavelength_nm: Number,
    sample_um: Number,
    shift_um: tuple[Number, Number],
) -> _Setting:
    given = (field, distance_mm, wavelength_nm, sample_um, *shift_um)
    device = next((value.device for value in given if isinstance(value, Tensor)), None)

    def number(name: str, value: Number) -> Tensor:
        # The values of tensors are not looked at: that would stall a GPU.
        if isinstance(value, (int, float)):
            _check_number(name, value)
        return torch.as_tensor(value, dtype=torch.float64, device=device)

    centered = all(isinstance(value, (int, float)) and value == 0 for value in shift_um)
    return _Setting(
        number("distance_mm", distance_mm),
        number("wavelength_nm", wavelength_nm),
        number("sample_um", sample_um),
        None if centered else (number("shift_um", shift_um[0]), number("shift_um", shift_um[1])),
    )


def _check_number(name: str, value: float) -> None:
    if name in ("wavelength_nm", "sample_um") and not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: need a positive number, got {value}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: need a finite number, got {value}")


def _check_pad(pad: float) -> float:
    if not (math.isfinite(pad) and pad >= 1):
        raise ValueError(f"pad: need a number of at least 1, got {pad}")
    return pad


def _propagate(model: Model, field: Tensor | np.ndarray, setting: _Setting, pad: float, band_limit: bool) -> Tensor:
    field = torch.as_tensor(field)
    if field.ndim < 2 or 0 in field.shape[-2:]:
        raise ValueError(f"field: need shape (..., row, column), got {tuple(field.shape)}")
    if not (field.is_complex() or field.is_floating_point()):
        raise TypeError(f"field: need a real or complex floating-point tensor, got {field.dtype}")
    if not field.is_complex():
        field = torch.complex(field, torch.zeros_like(field))
    shape = _padded(field, _check_pad(pad))
    return _filter(field, _transfer(model, shape, setting, band_limit, field.dtype), shape)


def _padded(field: Tensor, pad: float) -> tuple[int, int]:
    return math.ceil(pad * field.shape[-2]), math.ceil(pad * field.shape[-1])


def _filter(field: Tensor, transfer: Tensor, shape: tuple[int, int], *, adjoint: bool = False) -> Tensor:
    rows, columns = field.shape[-2:]
    if adjoint:
        transfer = transfer.conj().resolve_conj()
    if shape != (rows, columns):
        field = nn.functional.pad(field, (0, shape[1] - columns, 0, shape[0] - rows))
    return ops.fourier_filter(field, transfer)[..., :rows, :columns]


class _Axis(NamedTuple):
    """Frequencies in cycles per micrometre along one axis, half the grid's width and the window's shift."""

    frequency: Tensor
    half_width_um: Tensor
    shift_um: Tensor


def _axis(size: int, sample_um: Tensor, shift_um: Tensor | None, dim: int) -> _Axis:
    """Without a shift the frequencies from 0 up only."""
    count = size // 2 + 1 if shift_um is None else size
    index = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64, device=sample_um.device)[:count].clone()
    index = index[:, None] if dim == -2 else index[None, :]
    shift = torch.zeros_like(sample_um) if shift_um is None else shift_um[..., None, None]
    return _Axis(index / (size * sample_um), size * sample_um / 2, shift)


def _transfer(model: Model, shape: tuple[int, int], setting: _Setting, band_limit: bool, dtype: torch.dtype) -> Tensor:
    distance_um = 1e3 * setting.distance_mm[..., None, None]
    wavelength_um = 1e-3 * setting.wavelength_nm[..., None, None]
    sample_um = setting.sample_um[..., None, None]
    shift_um = (None, None) if setting.shift_um is None else setting.shift_um
    row = _axis(shape[0], sample_um, shift_um[0], -2)
    column = _axis(shape[1], sample_um, shift_um[1], -1)
    wavenumber = 2 * math.pi / wavelength_um
    s = wavelength_um**2 * (row.frequency**2 + column.frequency**2)
    if model == "fresnel":
        phase = -wavenumber * distance_um * s / 2
        modulus = torch.ones_like(phase)
    else:
        propagating = s < 1
        root = torch.where(propagating, 1 - s, 1.0).sqrt()
        # The root's slope is infinite at s = 1; below the limit the clamp passes none on.
        decay = (s - 1).clamp(min=1e-30).sqrt()
        phase = -wavenumber * distance_um * torch.where(propagating, s / (1 + root), 1.0)
        modulus = torch.where(propagating, torch.ones_like(s), (-wavenumber * distance_um.abs() * decay).exp())
    if band_limit:
        with torch.no_grad():
            within = _sampled(model, row, distance_um, wavelength_um)
            within = within & _sampled(model, column, distance_um, wavelength_um)
            if model == "angular_spectrum":
                reach = distance_um / torch.minimum(row.half_width_um, column.half_width_um)
                within = torch.where(s < 1, within, s * (1 - reach**2) >= 1)
        modulus = modulus * within
    if setting.shift_um is not None:
        phase = phase + 2 * math.pi * (row.frequency * row.shift_um + column.frequency * column.shift_um)
    # So far in float64 whatever the field's precision: at 1 m the phase is some 1e4 rad, of which float32 keeps 1e-3.
    transfer = torch.complex(modulus * phase.cos(), modulus * phase.sin()).to(dtype)
    if setting.shift_um is not None:
        return transfer
    for dim, size in ((-2, shape[0]), (-1, shape[1])):
        index = torch.arange(size, device=transfer.device)
        transfer = transfer.index_select(dim, torch.minimum(index, size - index))
    return transfer


def _sampled(model: Model, axis: _Axis, distance_um: Tensor, wavelength_um: Tensor) -> Tensor:
    """Where a wave of that frequency leads from the field's centre into the padded window of the result."""
    sign = torch.where(distance_um < 0, -1.0, 1.0)
    edges = []
    for edge_um in (axis.shift_um - axis.half_width_um, axis.shift_um + axis.half_width_um):
        length_um = distance_um.abs() if model == "fresnel" else (edge_um**2 + distance_um**2).sqrt()
        edges.append(edge_um / (wavelength_um * length_um))
    return (sign * axis.frequency >= edges[0]) & (sign * axis.frequency <= edges[1])
