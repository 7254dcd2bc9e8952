"""Masks that light passes: binary, grey and phase masks, masks of the Fourier plane, spectral filters, feature size.

Functions of tensors take free parameters to physical maps; the encoders hold those parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bitlens import ops
from bitlens.encoders.detector import as_planes, as_values, hold
from bitlens.encoders.linear import LinearEncoder, channels_to_complex, complex_to_channels

Number = float | Tensor
StraightThrough = Literal["clipped", "identity"]
MaskKind = Literal["grey", "binary", "annealed"]


def binary_mask(parameter: Tensor, *, straight_through: StraightThrough = "clipped") -> Tensor:
    """1 where `parameter` > 0, else 0, exactly; the gradient passes as if it were the parameter itself.

    "clipped" passes it where |parameter| <= 1 only, so that no parameter runs off; "identity" passes it everywhere.

    Reference: Bengio, Leonard and Courville 2013, arXiv:1308.3432.
    """
    if straight_through not in get_args(StraightThrough):
        raise ValueError(f"straight_through: need one of {get_args(StraightThrough)}, got {straight_through!r}")
    followed = parameter.clamp(-1, 1) if straight_through == "clipped" else parameter
    # The difference is 0 to the bit, unlike that of the mask and the parameter.
    return (parameter > 0).to(parameter.dtype) + (followed - followed.detach())


def annealed_mask(parameter: Tensor, *, sharpness: Number) -> Tensor:
    """1 / (1 + exp(-sharpness parameter)): a grey mask that becomes `binary_mask` as the sharpness grows."""
    return torch.sigmoid(sharpness * parameter)


def annealed_sharpness(step: int, *, n_steps: int, first: float = 1.0, last: float = 100.0) -> float:
    """first (last / first)^(step / (n_steps - 1)): a geometric schedule for `annealed_mask`, `last` from there on.

    Raises:
        ValueError: fewer than two steps, or a sharpness that is not positive.
    """
    if n_steps < 2:
        raise ValueError(f"n_steps: need at least 2, got {n_steps}")
    for name, value in (("first", first), ("last", last)):
        if not value > 0:
            raise ValueError(f"{name}: need a positive number, got {value}")
    share = min(max(step / (n_steps - 1), 0.0), 1.0)
    return float(first * (last / first) ** share)


def bounded_transmission(parameter: Tensor, *, lowest: Number = 0.0, highest: Number = 1.0) -> Tensor:
    """lowest + (highest - lowest) / (1 + exp(-parameter)): any real parameter as a transmission within bounds."""
    return lowest + (highest - lowest) * torch.sigmoid(parameter)


def transmission_parameter(transmission: Tensor, *, lowest: Number = 0.0, highest: Number = 1.0) -> Tensor:
    """The parameter of which `bounded_transmission` makes `transmission`; what is on a bound or beyond goes 1e-6 in."""
    share = (transmission - lowest) / (highest - lowest)
    return torch.logit(share, eps=1e-6)


def mask_delay_waves(
    height_um: Tensor, *, refractive_index: Number, wavelength_nm: Number, surrounding_index: Number = 1.0
) -> Tensor:
    """(n - n0) height / wavelength: waves by which a transparent relief delays light; shape of `height_um` (...).

    The path error W of `optics.pupil` counts the wavefront ahead: a relief in the pupil adds minus this, with the map
    laid out along the grid. Index and wavelength broadcast against the height.
    """
    return 1e3 * (refractive_index - surrounding_index) * height_um / wavelength_nm


def phase_mask(
    height_um: Tensor, *, refractive_index: Number, wavelength_nm: Number, surrounding_index: Number = 1.0
) -> Tensor:
    """exp(2 pi i (n - n0) height / wavelength), complex: a thin relief as a factor of fields of `propagation`.

    Reference: Goodman, Introduction to Fourier Optics, 3rd ed. 2005, sec. 5.1.
    """
    phase = (2 * math.pi) * mask_delay_waves(
        height_um,
        refractive_index=refractive_index,
        wavelength_nm=wavelength_nm,
        surrounding_index=surrounding_index,
    )
    return torch.complex(phase.cos(), phase.sin())


def gaussian_bands(wavelength_nm: Tensor, *, center_nm: Tensor, width_nm: Tensor, peak: Tensor) -> Tensor:
    """sum_b peak_b 2^(-(2 (wavelength - center_b) / width_b)^2): a spectral filter as a sum of Gaussian bands.

    A filter absorbs: its transmission is at most 1 for certain where the peaks of its bands add up to at most 1.

    Args:
        wavelength_nm: (wavelength,).
        center_nm, width_nm, peak: (..., band); the width is full at half the peak.

    Returns:
        (..., wavelength).
    """
    distance = (wavelength_nm[..., None, :] - center_nm[..., None]) / width_nm[..., None]
    return (peak[..., None] * torch.exp(-4 * math.log(2) * distance**2)).sum(dim=-2)


def conic_filter(density: Tensor, *, radius_samples: float) -> Tensor:
    """Mean of `density` (..., row, column) with the weights max(0, 1 - distance / radius), of what lies inside.

    Raises:
        ValueError: the radius is not positive.

    Reference: Bourdin 2001, Int. J. Numer. Meth. Eng. 50, 2143, doi:10.1002/nme.116.
    """
    if not (math.isfinite(radius_samples) and radius_samples > 0):
        raise ValueError(f"radius_samples: need a positive number, got {radius_samples}")
    reach = max(math.ceil(radius_samples) - 1, 0)
    return _weighted_mean(density, (1 - _distances(reach, density) / radius_samples).clamp(min=0))


def gaussian_filter(density: Tensor, *, std_samples: float) -> Tensor:
    """Mean of `density` (..., row, column) with the weights exp(-distance^2 / (2 std^2)), cut off at 4 std.

    Raises:
        ValueError: the standard deviation is not positive.
    """
    if not (math.isfinite(std_samples) and std_samples > 0):
        raise ValueError(f"std_samples: need a positive number, got {std_samples}")
    distance = _distances(math.ceil(4 * std_samples), density)
    return _weighted_mean(density, torch.exp(-0.5 * (distance / std_samples) ** 2))


def project(density: Tensor, *, sharpness: Number, threshold: Number = 0.5) -> Tensor:
    """(tanh(b t) + tanh(b (density - t))) / (tanh(b t) + tanh(b (1 - t))): a smooth step at the threshold t.

    0 and 1 stay; as the sharpness b grows everything else goes to one of them.

    Reference: Wang, Lazarov and Sigmund 2011, Struct. Multidisc. Optim. 43, 767, doi:10.1007/s00158-010-0602-y.
    """
    sharpness = torch.as_tensor(sharpness, dtype=density.dtype, device=density.device)
    low = torch.tanh(sharpness * threshold)
    high = torch.tanh(sharpness * (1 - threshold))
    return (low + torch.tanh(sharpness * (density - threshold))) / (low + high)


def minimum_feature(density: Tensor, *, radius_samples: float, sharpness: Number, threshold: Number = 0.5) -> Tensor:
    """`project(conic_filter(density))`: features of `density` in [0, 1] much smaller than the radius disappear.

    At the threshold 0.5 a straight line or gap stays if it is wider than 0.57 radius, a disc if its radius is above
    0.5 radius.

    Reference: Wang, Lazarov and Sigmund 2011, Struct. Multidisc. Optim. 43, 767, doi:10.1007/s00158-010-0602-y.
    """
    return project(conic_filter(density, radius_samples=radius_samples), sharpness=sharpness, threshold=threshold)


@final
class MaskTransmission(nn.Module):
    """A transmission in [0, 1] with the free parameter that stands for it: grey, binary or annealed.

    "grey" is `bounded_transmission`, "binary" `binary_mask` (clipped), "annealed" `annealed_mask` at the buffer
    `sharpness`, which an optimisation may raise between its steps.

    Reference: Bengio, Leonard and Courville 2013, arXiv:1308.3432 (the gradient of a binary mask).
    """

    parameter_scale: ClassVar[Mapping[str, float]] = {"parameter": 1.0}

    parameter: Tensor
    sharpness: Tensor

    def __init__(
        self,
        transmission: Tensor | np.ndarray,
        *,
        kind: MaskKind = "grey",
        sharpness: float = 1.0,
        learn: bool = False,
    ) -> None:
        """Starts at `transmission` in [0, 1]; the smooth kinds start at most 1 - 1e-6, at least 1e-6.

        Raises:
            ValueError: a value out of range, or an unknown kind.
        """
        super().__init__()
        if kind not in get_args(MaskKind):
            raise ValueError(f"kind: need one of {get_args(MaskKind)}, got {kind!r}")
        if not (math.isfinite(sharpness) and sharpness > 0):
            raise ValueError(f"sharpness: need a positive number, got {sharpness}")
        start = torch.as_tensor(transmission, dtype=torch.float64).detach()
        if start.numel() == 0:
            raise ValueError(f"transmission: need at least one value, got shape {tuple(start.shape)}")
        if not bool(((start >= 0) & (start <= 1)).all()):
            raise ValueError(f"transmission: need values in [0, 1], got {float(start.min())} to {float(start.max())}")
        self.kind: MaskKind = kind
        if kind == "binary":
            parameter = 2 * start - 1
        else:
            parameter = transmission_parameter(start) / (sharpness if kind == "annealed" else 1.0)
        # Beyond 1 the clipped gradient of a binary mask is zero, and a parameter would stay where it is.
        self.parameter_domain: Mapping[str, tuple[float | None, float | None]] = (
            {"parameter": (-1.0, 1.0)} if kind == "binary" else {}
        )
        self.register_buffer("sharpness", torch.tensor(sharpness, dtype=torch.float64))
        hold(self, {"parameter": parameter}, ("parameter",) if learn else ())

    def forward(self) -> Tensor:
        """The transmission, of the shape it started with."""
        if self.kind == "binary":
            return binary_mask(self.parameter)
        return annealed_mask(self.parameter, sharpness=self.sharpness if self.kind == "annealed" else 1.0)


@final
class AmplitudeMask(LinearEncoder):
    """transmission x scene: a mask in the plane of the scene, or of a field, whose pairs of channels it scales alike.

    Shapes: scene and measurement (batch, channel, row, column); the mask (row, column) or (channel, row, column).

    Reference: Goodman, Introduction to Fourier Optics, 3rd ed. 2005, sec. 4.1 (the transmittance of an aperture).
    """

    def __init__(self, mask: MaskTransmission) -> None:
        super().__init__()
        self.mask = _checked_map(mask)

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """What the mask lets pass, (batch, channel, row, column)."""
        return self._scaled("scene", scene)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """The same product."""
        return self._scaled("measured", measured)

    def _scaled(self, name: str, value: Tensor | np.ndarray) -> Tensor:
        mask = self.mask()
        planes = _planes_of(name, value, mask, 1)
        return planes * mask.to(planes.dtype)


@final
class PhaseMask(LinearEncoder):
    """exp(2 pi i (n - n0) height / wavelength) x field: a transparent relief, on fields as pairs of real channels.

    Shapes: scene and measurement (batch, 2 n, row, column); wavelength and index are numbers or one per field.
    Differentiable in height, index and wavelength; see `phase_mask`.

    Reference: Goodman, Introduction to Fourier Optics, 3rd ed. 2005, sec. 5.1.
    """

    parameter_domain: ClassVar[Mapping[str, tuple[float | None, float | None]]] = {
        "refractive_index": (1.0, None),
        "wavelength_nm": (1.0, None),
    }

    height_um: Tensor
    refractive_index: Tensor
    wavelength_nm: Tensor

    def __init__(
        self,
        height_um: Tensor | np.ndarray,
        *,
        refractive_index: float | Sequence[float],
        wavelength_nm: float | Sequence[float],
        surrounding_index: float = 1.0,
        learn: Sequence[str] = (),
    ) -> None:
        """Takes a map (row, column) in micrometres; `learn` names arguments that become `nn.Parameter`.

        Raises:
            ValueError: a wavelength or index that is not positive, or an unknown name in `learn`.
        """
        super().__init__()
        values = {"height_um": as_values("height_um", height_um, "shape (row, column)", (2,)).double()}
        for name, value in (("refractive_index", refractive_index), ("wavelength_nm", wavelength_nm)):
            values[name] = as_values(name, value, "a number, or one per field", (0, 1)).double()
            if not bool((values[name] > 0).all()):
                raise ValueError(f"{name}: need a positive number, or one per field, got {values[name].tolist()}")
        counts = {name: len(value) for name, value in values.items() if value.ndim == 1}
        if len(set(counts.values())) > 1:
            raise ValueError(f"refractive_index, wavelength_nm: need as many of each, got {counts}")
        self.surrounding_index = surrounding_index
        self._n_fields = next(iter(counts.values()), None)
        wavelength = float(values["wavelength_nm"].mean())
        step = max(abs(float(values["refractive_index"].mean()) - surrounding_index), 1e-3)
        # A third of a wave counts as much; for the others where the relief is a few waves high.
        self.parameter_scale: Mapping[str, float] = {
            "height_um": 3e-4 * wavelength / step,
            "refractive_index": 0.3 * step,
            "wavelength_nm": 0.3 * wavelength,
        }
        hold(self, values, learn)

    def factor(self) -> Tensor:
        """Complex (row, column) or (field, row, column)."""
        return phase_mask(
            self.height_um,
            refractive_index=self.refractive_index[..., None, None],
            wavelength_nm=self.wavelength_nm[..., None, None],
            surrounding_index=self.surrounding_index,
        )

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """The fields behind the relief."""
        field = self._fields("scene", scene)
        return complex_to_channels(field * self.factor().to(field.dtype))

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """The product with the conjugate factor."""
        field = self._fields("measured", measured)
        return complex_to_channels(field * self.factor().conj().to(field.dtype))

    def _fields(self, name: str, value: Tensor | np.ndarray) -> Tensor:
        rows, columns = self.height_um.shape
        channels = None if self._n_fields is None else 2 * self._n_fields
        return channels_to_complex(as_planes(name, value, channels=channels, rows=rows, columns=columns))


@final
class FourierMask(LinearEncoder):
    """ifft2(fft2(field) transmission): a mask in the Fourier plane, on fields as pairs of real channels.

    Shapes: scene and measurement (batch, 2 n, row, column); the mask (row, column) or (n, row, column) with frequency
    zero in its middle, at (rows // 2, columns // 2). The field is periodic. The map is its own adjoint.

    Reference: Goodman, Introduction to Fourier Optics, 3rd ed. 2005, sec. 8.2.
    """

    def __init__(self, mask: MaskTransmission) -> None:
        super().__init__()
        self.mask = _checked_map(mask)

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """The filtered fields."""
        return self._filtered("scene", scene)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """The same filter, whose transfer is real."""
        return self._filtered("measured", measured)

    def _filtered(self, name: str, value: Tensor | np.ndarray) -> Tensor:
        mask = self.mask()
        planes = _planes_of(name, value, mask, 2)
        return complex_to_channels(
            ops.fourier_filter(channels_to_complex(planes), mask.to(planes.dtype), centered=True)
        )


def _checked_map(mask: MaskTransmission) -> MaskTransmission:
    if mask.parameter.ndim not in (2, 3):
        raise ValueError(
            f"mask: need a map (row, column) or (channel, row, column), got shape {tuple(mask.parameter.shape)}"
        )
    return mask


def _planes_of(name: str, value: Tensor | np.ndarray, mask: Tensor, channels_per_map: int) -> Tensor:
    """`value` (batch, channel, row, column) as large as the mask, with a channel or a pair of them for each map."""
    channels = channels_per_map * len(mask) if mask.ndim == 3 and len(mask) > 1 else None
    return as_planes(name, value, channels=channels, rows=mask.shape[-2], columns=mask.shape[-1])


def _distances(reach: int, like: Tensor) -> Tensor:
    axis = torch.arange(-reach, reach + 1, dtype=like.dtype, device=like.device)
    return torch.hypot(axis[:, None], axis[None, :])


def _weighted_mean(density: Tensor, weight: Tensor) -> Tensor:
    # Outside nothing is known: there the weights are left out, so that a constant stays a constant.
    inside = ops.psf_convolve(torch.ones(density.shape[-2:], dtype=density.dtype, device=density.device), weight)
    return ops.psf_convolve(density, weight) / inside
