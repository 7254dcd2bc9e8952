"""Samples of the Fourier transform of a scene on its Cartesian grid, as receive coils of an MRI scanner see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.encoders.detector import as_planes, as_real
from bitlens.encoders.linear import LinearEncoder, channels_to_complex, complex_to_channels


@final
class CartesianSampling(LinearEncoder):
    """measured = mask F(sensitivity_c scene) for every coil c, F the unitary Fourier transform with 0 in the middle.

    Position 0 of scene and transform is at (rows // 2, columns // 2). The mask's weights are real, so that a relaxed
    mask has gradients. A sample whose weight is 0 holds noise only: `compact` leaves those of a fixed mask out, which
    spares an estimate of information their noise entropies.

    Shapes: scene (batch, 1, row, column) real, or (batch, 2, row, column) as real and imaginary part. Measured
    (batch, 2 coil, row, column) as real and imaginary part of each coil; compact, (batch, 2 coil, line, column) for
    a mask of lines and (batch, 2 coil, sample) in the order of rows for one of samples.

    Reference: Pruessmann et al. 1999, doi:10.1002/(SICI)1522-2594(199911)42:5<952::AID-MRM16>3.0.CO;2-S.
    """

    mask: Tensor
    sensitivities: Tensor | None
    coil_power: Tensor | None
    sampled: Tensor | None
    mean_square: Tensor | None

    def __init__(
        self,
        mask: Tensor | np.ndarray,
        *,
        sensitivities: Tensor | np.ndarray | None = None,
        complex_scene: bool = False,
        compact: bool = False,
        mean_square: float | None = None,
        learn: Sequence[str] = (),
    ) -> None:
        """Takes the weights of k-space lines (row,) or samples (row, column).

        Args:
            mean_square: of all weights, the time of the scan over a full one's: the mask then counts in proportion
                only, and does not gain by growing. Default: the mask as it is.
            sensitivities: complex (coil, row, column); default one coil of sensitivity 1. Held as pairs of real
                channels (2 coil, row, column).
            complex_scene: whether scenes have two channels, real and imaginary part.
            learn: "mask", "sensitivities" to optimise: `nn.Parameter` instead of buffers; of the latter the proportions
                between coils, whose sum of squares at each pixel stays.

        Raises:
            ValueError: a wrong shape, a mask that is negative or empty, a compact mask to learn, an unknown name.
        """
        super().__init__()
        weights = torch.as_tensor(mask).detach().to(torch.float64).clone()
        if weights.ndim not in (1, 2) or not weights.numel():
            raise ValueError(f"mask: need shape (row,) or (row, column), got {tuple(weights.shape)}")
        if not bool((weights >= 0).all()) or not bool(weights.isfinite().all()):
            raise ValueError(f"mask: need finite weights of at least 0, got {float(weights.min())}")
        self.complex_scene, self.compact = complex_scene, compact
        if compact and "mask" in learn:
            raise ValueError("learn: need a mask on the whole grid, compact=False, got a compact one")
        if compact and not bool(weights.any()):
            raise ValueError("mask: need a weight above 0, got none")
        # Known from the mask, so that what is stored is the same for every encoder.
        self.register_buffer("sampled", _sampled(weights) if compact else None, persistent=False)
        if mean_square is not None and not (math.isfinite(mean_square) and mean_square > 0):
            raise ValueError(f"mean_square: need a positive number, got {mean_square}")
        self.register_buffer("mean_square", None if mean_square is None else weights.new_tensor(mean_square))
        coils = sensitivity_channels(sensitivities)
        if coils is not None and tuple(coils.shape[1 : 1 + weights.ndim]) != tuple(weights.shape):
            raise ValueError(
                f"sensitivities: need shape (coil, row, column) to go with a mask of {tuple(weights.shape)}, "
                f"got {tuple(coils.shape[1:])}"
            )
        register(self, {"mask": weights, "sensitivities": coils}, learn)
        self.register_buffer("coil_power", coil_power(coils))
        # A weight is an amplitude; without a mean square, what they add up to is for a constraint to hold.
        self.parameter_domain: Mapping[str, tuple[float | None, float | None]] = {
            "mask": (0.0, None),
            **coil_domain(coils),
        }
        self.parameter_scale: Mapping[str, float] = {"mask": 1.0, **coil_scale(coils)}

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        if self.compact:
            self.sampled = _sampled(self.mask.detach())

    def weights(self) -> Tensor:
        """What the samples are multiplied by, of the shape of the mask."""
        if self.mean_square is None:
            return self.mask
        present = self.mask.square().mean()
        # No mask has no proportions: 0 of 1.
        return self.mask * (self.mean_square / torch.where(present > 0, present, 1.0)).sqrt()

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """k-space samples as pairs of real channels; see the class for shapes."""
        images = coil_images(scene, coil_maps(self.sensitivities, self.coil_power), self.complex_scene)
        rows_and_columns = tuple(self.mask.shape)
        if tuple(images.shape[-2 : -2 + self.mask.ndim or None]) != rows_and_columns:
            raise ValueError(f"scene: need {rows_and_columns} for the mask, got shape {tuple(images.shape)}")
        transform = _centred(images, torch.fft.fft2)
        weights = self.weights().to(transform.real.dtype)
        if self.mask.ndim == 1:
            weights = weights[:, None]
        if self.sampled is None:
            return complex_to_channels(transform * weights)
        if self.mask.ndim == 1:
            return complex_to_channels(transform[..., self.sampled, :] * weights[self.sampled])
        samples = transform.flatten(-2)[..., self.sampled] * weights.flatten()[self.sampled]
        return samples_to_channels(samples)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """Scenes (batch, 1 or 2, row, column): unitary inverse transform, coils joined by their conjugates."""
        measured = as_real("measured", measured)
        weights = self.weights().to(measured.dtype)
        if self.sampled is None or self.mask.ndim == 1:
            samples = channels_to_complex(measured)
            weights = weights if self.mask.ndim == 2 else weights[:, None]
            if self.sampled is None:
                transform = samples * weights
            else:
                transform = samples.new_zeros(*samples.shape[:2], len(self.mask), samples.shape[-1])
                transform = transform.index_copy(-2, self.sampled, samples * weights[self.sampled])
        else:
            samples = channels_to_samples(measured) * weights.flatten()[self.sampled]
            flat = samples.new_zeros(*samples.shape[:2], self.mask.numel())
            transform = flat.index_copy(-1, self.sampled, samples).unflatten(-1, tuple(self.mask.shape))
        maps = coil_maps(self.sensitivities, self.coil_power)
        return join_coils(_centred(transform, torch.fft.ifft2), maps, self.complex_scene)

    def extra_repr(self) -> str:
        share = float((self.mask.detach() != 0).double().mean())
        coils = 1 if self.sensitivities is None else len(self.sensitivities) // 2
        learned = tuple(name for name, _ in self.named_parameters())
        return (
            f"mask={tuple(self.mask.shape)}, sampled={share:.3g}, coils={coils}, complex_scene={self.complex_scene}, "
            f"compact={self.compact}, learn={learned}"
        )


def birdcage_sensitivities(coils: int, shape: tuple[int, int], *, radius: float = 1.5) -> Tensor:
    """Complex (coil, row, column) receive sensitivities of straight rungs around the image, of root sum of squares 1.

    Rung c stands at z_c = radius exp(2 pi i c / coils) and has s_c = exp(2 pi i c / coils) / (z_c - z), the field of a
    long wire, over the root sum of squares at z = x + i y; the phases make the coils' fields agree in the middle.

    Args:
        coils: number of rungs, evenly around the circle, the first at the end of the row of the middle.
        shape: (row, column); x and y run from -1 to 1 over columns and rows, 0 at the sample of index size // 2.
        radius: of the circle, in half fields of view; above sqrt 2, so that no rung is within the image.

    Raises:
        ValueError: less than one coil, no pixel, or too small a radius.

    Reference: Hayes et al. 1985, doi:10.1016/0022-2364(85)90257-4.
    """
    if coils < 1:
        raise ValueError(f"coils: need at least 1, got {coils}")
    if not radius > math.sqrt(2):
        raise ValueError(f"radius: need more than sqrt 2, so that the rungs lie outside the image, got {radius}")
    rows, columns = scene_shape(shape)
    y = (torch.arange(rows, dtype=torch.float64) - rows // 2) * (2 / rows)
    x = (torch.arange(columns, dtype=torch.float64) - columns // 2) * (2 / columns)
    turn = 2 * math.pi * torch.arange(coils, dtype=torch.float64) / coils
    phase = torch.polar(torch.ones_like(turn), turn)[:, None, None]
    field = phase / (radius * phase - torch.complex(x.expand(rows, -1), y[:, None].expand(-1, columns)))
    return field / field.abs().square().sum(0).sqrt()


def _sampled(weights: Tensor) -> Tensor:
    """Index of every weight that is not 0, in the order of rows."""
    return weights.flatten().nonzero()[:, 0]


def _centred(images: Tensor, transform: Callable[..., Tensor]) -> Tensor:
    if not images.numel():
        return images  # MKL refuses an empty batch
    axes = (-2, -1)
    return torch.fft.fftshift(transform(torch.fft.ifftshift(images, dim=axes), norm="ortho"), dim=axes)


# ---- what Fourier encoders share: coils and pairs of channels ----


def scene_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(row, column) of at least one pixel."""
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape: need (row, column) of a scene, got {tuple(shape)}")
    return int(shape[0]), int(shape[1])


def sensitivity_channels(sensitivities: Tensor | np.ndarray | None) -> Tensor | None:
    """Real (2 coil, row, column), float64, of complex (coil, row, column)."""
    if sensitivities is None:
        return None
    maps = torch.as_tensor(sensitivities).detach()
    if maps.ndim != 3 or not len(maps):
        raise ValueError(f"sensitivities: need shape (coil, row, column), got {tuple(maps.shape)}")
    channels = complex_to_channels(maps.to(torch.complex128)).clone()
    if not bool(channels.isfinite().all()):
        raise ValueError("sensitivities: need finite numbers")
    return channels


def register(encoder: nn.Module, values: dict[str, Tensor | None], learn: Sequence[str]) -> None:
    """Hold `values` as parameters where `learn` names them, else as buffers."""
    if isinstance(learn, str):
        raise TypeError(f"learn: need a sequence of names, got {learn!r}")
    for name in learn:
        if name not in values:
            raise ValueError(f"learn: need names among {', '.join(values)}, got {name!r}")
        if values[name] is None:
            raise ValueError(f"{name}: need a start to learn from, got none")
    for name, value in values.items():
        if name in learn and value is not None:
            encoder.register_parameter(name, nn.Parameter(value))
        else:
            encoder.register_buffer(name, value)


def coil_power(coils: Tensor | None) -> Tensor | None:
    """Sum of squares of all coils at each pixel, (row, column), of sensitivities as channels."""
    return None if coils is None else coils.detach().square().sum(0)


def coil_maps(sensitivities: Tensor | None, power: Tensor | None) -> Tensor | None:
    """Sensitivities as channels whose sum of squares at each pixel is `power`: none grows for nothing when learned."""
    if sensitivities is None or power is None:
        return sensitivities
    present = sensitivities.square().sum(0)
    # No sensitivity has no proportions: 0 of 1.
    return sensitivities * (power / torch.where(present > 0, present, 1.0)).sqrt()


def coil_domain(coils: Tensor | None) -> dict[str, tuple[float | None, float | None]]:
    """Of sensitivities as channels: `coil_maps` takes their proportions alone."""
    if coils is None:
        return {}
    largest = float(coils.abs().max())
    return {"sensitivities": (-largest, largest)}


def coil_scale(coils: Tensor | None) -> dict[str, float]:
    """Of sensitivities as channels: their root mean square."""
    return {} if coils is None else {"sensitivities": float(coils.square().mean().sqrt()) or 1.0}


def coil_images(scene: Tensor | np.ndarray, sensitivities: Tensor | None, complex_scene: bool) -> Tensor:
    """Complex (batch, coil, row, column): what each coil sees of a scene (batch, 1 or 2, row, column).

    Raises:
        TypeError, ValueError: a scene that is not real, or of another shape.
    """
    scene = as_planes("scene", scene, channels=2 if complex_scene else 1)
    image = channels_to_complex(scene) if complex_scene else torch.complex(scene, torch.zeros_like(scene))
    if sensitivities is None:
        return image
    if scene.shape[-2:] != sensitivities.shape[-2:]:
        expected = tuple(sensitivities.shape[-2:])
        raise ValueError(f"scene: need {expected} rows and columns for the coils, got {tuple(scene.shape)}")
    return image * channels_to_complex(sensitivities.to(scene.dtype))


def join_coils(images: Tensor, sensitivities: Tensor | None, complex_scene: bool) -> Tensor:
    """Real (batch, 1 or 2, row, column): the adjoint of `coil_images`."""
    if sensitivities is None:
        image = images
    else:
        maps = channels_to_complex(sensitivities.to(images.real.dtype))
        image = (maps.conj() * images).sum(1, keepdim=True)
    return complex_to_channels(image) if complex_scene else image.real.clone()


def samples_to_channels(samples: Tensor) -> Tensor:
    """Real (batch, 2 coil, ...) of complex (batch, coil, ...): real, imaginary, real, ..."""
    return torch.view_as_real(samples.resolve_conj()).movedim(-1, 2).flatten(1, 2)


def channels_to_samples(channels: Tensor) -> Tensor:
    """Complex (batch, coil, ...) of real (batch, 2 coil, ...).

    Raises:
        ValueError: an odd number of channels.
    """
    if channels.ndim < 3 or channels.shape[1] % 2:
        raise ValueError(f"measured: need shape (batch, 2 coil, ...), got {tuple(channels.shape)}")
    pairs = channels.unflatten(1, (channels.shape[1] // 2, 2))
    return torch.complex(pairs[:, :, 0], pairs[:, :, 1])
