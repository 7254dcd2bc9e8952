"""The traditional figures of an imaging system: MTF50, signal-to-noise ratio, condition number."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitlens.noise import NoiseModel
from bitlens.noise._abilities import HasMoments
from bitlens.noise.base import as_mean

_N_ANGLES, _N_FREQUENCIES = 64, 512
_ROWS_AT_ONCE = 64
_MOST_DENSE = 16_000_000  # elements of a matrix
_N_DRAWS = 64


def mtf50(psf: Tensor | NDArray[Any], *, samples_per_pixel: int = 1) -> float:
    """Spatial frequency, cycles per pixel, at which |FT(psf)| / FT(psf)(0), mean over directions, falls to 1/2.

    At most `samples_per_pixel` / 2, the highest that the samples tell; that of a point. The mean is over directions of
    the modulus, so a pattern of several points counts by how it passes each frequency, not by its extent.

    Args:
        psf: (row, column) or (channel, row, column), summed over channels; from `point_response` or an encoder's own.

    Raises:
        ValueError: a shape that is not such, or a sum that is not positive.

    Reference: ISO 12233:2017, Photography, resolution and spatial frequency responses.
    """
    image = torch.as_tensor(psf).detach().to("cpu", torch.float64)
    if image.ndim == 3:
        image = image.sum(0)
    if image.ndim != 2:
        raise ValueError(f"psf: need shape (row, column) or (channel, row, column), got {tuple(image.shape)}")
    if samples_per_pixel < 1:
        raise ValueError(f"samples_per_pixel: need at least 1, got {samples_per_pixel}")
    total = float(image.sum())
    if not (math.isfinite(total) and total > 0):
        raise ValueError(f"psf: need a positive sum, got {total}")
    frequency = torch.linspace(0.0, 0.5, _N_FREQUENCIES + 1, dtype=torch.float64)
    row, column = (torch.arange(size, dtype=torch.float64) for size in image.shape)
    mean = torch.zeros_like(frequency)
    for angle in (torch.arange(_N_ANGLES, dtype=torch.float64) + 0.5) * (math.pi / _N_ANGLES):
        # A separable sum at each frequency of the ray: exact, without an interpolation of an FFT.
        across = torch.exp(-2j * math.pi * torch.outer(frequency * torch.cos(angle), column))
        down = torch.exp(-2j * math.pi * torch.outer(frequency * torch.sin(angle), row))
        mean += ((down @ image.to(down.dtype)) * across).sum(1).abs() / (total * _N_ANGLES)
    below = torch.nonzero(mean < 0.5)[:, 0]
    if not len(below):
        return 0.5 * samples_per_pixel
    last = int(below[0])
    high, low = float(mean[last - 1]), float(mean[last])
    step = float(frequency[1])
    return samples_per_pixel * step * (last - 1 + (high - 0.5) / (high - low))


def point_response(
    encoder: Callable[[Tensor], Tensor], shape: Sequence[int], *, samples_per_pixel: int = 1, frame: int | None = None
) -> Tensor:
    """The image of a point on `samples_per_pixel` samples per pixel, (row, column), float64: the PSF, pixel included.

    What a scene sample of 1 near the middle adds to the mean of a dark scene, for each of the
    `samples_per_pixel`^2 places of the point within a pixel, woven into one finer image. For encoders whose
    measurement is one image of whole pixels of the scene.

    Args:
        shape: of a scene, (channel, row, column); the point is in all channels.
        frame: which channel of the measurement; None sums them.

    Raises:
        ValueError: a shape that is not such, or a measurement that is not (batch, channel, row, column).
    """
    channels, rows, columns = _scene_shape(shape)
    k = samples_per_pixel
    if k < 1:
        raise ValueError(f"samples_per_pixel: need at least 1, got {k}")
    encoder = _double(encoder)
    top, left = rows // 2 // k * k, columns // 2 // k * k
    points = torch.zeros(k * k + 1, channels, rows, columns, dtype=torch.float64, device=_device_of(encoder))
    for index in range(k * k):
        points[index, :, top + index // k, left + index % k] = 1.0
    with torch.no_grad():
        image = torch.cat([encoder(point[None]) for point in points])
    if image.ndim != 4:
        raise ValueError(f"encoder: need a measurement (batch, channel, row, column), got {tuple(image.shape)}")
    response = image[:-1] - image[-1]
    flat = response.sum(1) if frame is None else response[:, frame]
    # A point further right by one sample is an image read one sample further left.
    fine = torch.flip(flat.reshape(k, k, *flat.shape[1:]), (0, 1))
    return fine.permute(2, 0, 3, 1).reshape(flat.shape[1] * k, flat.shape[2] * k)


def snr_db(mean: Tensor | NDArray[Any], noise: NoiseModel, *, generator: torch.Generator | None = None) -> float:
    """10 log10(mean of signal^2 / mean of noise variance) over all pixels and images of `mean`, dB.

    The signal is the expected measurement less that of a dark pixel (the offset). Noise models that know no variance
    are sampled, 64 draws.

    Args:
        mean: noiseless measurements (n, ...), photo-electrons.

    Raises:
        ValueError: no signal at all.

    Reference: EMVA 1288 release 4.0, section 2.
    """
    value = as_mean(mean).detach().to(torch.float64)
    with torch.no_grad():
        if isinstance(noise, HasMoments):
            signal = noise.expected(value) - noise.expected(torch.zeros_like(value))
            power, level = float(signal.square().mean()), float(noise.variance(value).mean())
        else:
            draws, dark = (
                torch.stack([noise.sample(light, generator).to(torch.float64) for _ in range(_N_DRAWS)])
                for light in (value, torch.zeros_like(value))
            )
            power, level = float((draws.mean(0) - dark.mean(0)).square().mean()), float(draws.var(0).mean())
            # What chance adds to the square of a mean of draws.
            power -= (level + float(dark.var(0).mean())) / _N_DRAWS
    if not power > 0:
        raise ValueError("mean: need a signal, got a measurement that is dark everywhere")
    return 10 * math.log10(power / level) if level > 0 else math.inf


def condition_number(
    encoder: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    *,
    at: Tensor | NDArray[Any] | None = None,
    tolerance: float = 1e-6,
) -> float:
    """Largest over smallest singular value of the encoder's Jacobian, values below `tolerance` x largest left out.

    Directions that a measurement does not see at all (fewer pixels than scene values, frequencies beyond a cut-off)
    would make it infinite for nearly every camera; without them it says how unevenly the rest is seen.

    Args:
        shape: of a scene, (channel, row, column).
        at: scene (channel, row, column) where a nonlinear encoder is linearised, default 1 everywhere.

    Raises:
        ValueError: a Jacobian of more than 16 million values, or one that is zero.

    Reference: Golub and Van Loan 2013, Matrix Computations, 4th ed., sec. 2.6.
    """
    values = singular_values(encoder, shape, at=at)
    if not float(values[0]) > 0:
        raise ValueError("encoder: need a measurement that depends on the scene, got a Jacobian of zeros")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance: need a value between 0 and 1, got {tolerance}")
    return float(values[0] / values[values > tolerance * values[0]][-1])


def singular_values(
    encoder: Callable[[Tensor], Tensor], shape: Sequence[int], *, at: Tensor | NDArray[Any] | None = None
) -> Tensor:
    """All singular values of the encoder's Jacobian, falling, float64.

    Raises:
        ValueError: as `condition_number`.
    """
    return torch.linalg.svdvals(jacobian(encoder, shape, at=at))


def jacobian(
    encoder: Callable[[Tensor], Tensor], shape: Sequence[int], *, at: Tensor | NDArray[Any] | None = None
) -> Tensor:
    """d mean / d scene as a matrix (measured value, scene value), float64, by one backward pass for 64 rows.

    Raises:
        ValueError: as `condition_number`.
    """
    channels, rows, columns = _scene_shape(shape)
    encoder = _double(encoder)
    scene = torch.ones(channels, rows, columns, dtype=torch.float64, device=_device_of(encoder))
    if at is not None:
        scene = torch.as_tensor(at).detach().to(scene)
        if tuple(scene.shape) != (channels, rows, columns):
            raise ValueError(f"at: need shape {(channels, rows, columns)}, got {tuple(scene.shape)}")
    with torch.no_grad():
        n_values = encoder(scene[None])[0].numel()
    if n_values * scene.numel() > _MOST_DENSE:
        raise ValueError(
            f"shape: need a Jacobian of at most {_MOST_DENSE} values, got {n_values} x {scene.numel()}: "
            "take a smaller scene"
        )
    parts = []
    for wanted in torch.arange(n_values).split(_ROWS_AT_ONCE):
        batch = scene.expand(len(wanted), *scene.shape).clone().requires_grad_(True)
        with torch.enable_grad():
            # Images of a batch do not meet, so that each scene's gradient is that of its own measured value.
            total = encoder(batch).flatten(1).gather(1, wanted[:, None]).sum()
        parts.append(torch.autograd.grad(total, batch)[0].flatten(1))
    return torch.cat(parts)


def _double(encoder: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return copy.deepcopy(encoder).double().eval() if isinstance(encoder, nn.Module) else encoder


def _device_of(encoder: Callable[[Tensor], Tensor]) -> torch.device:
    """Where an encoder's parameters and buffers are."""
    if isinstance(encoder, nn.Module):
        for value in (*encoder.parameters(), *encoder.buffers()):
            return value.device
    return torch.device("cpu")


def _scene_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    sizes = tuple(int(size) for size in np.asarray(shape).reshape(-1))
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"shape: need (channel, row, column), got {shape}")
    return sizes[0], sizes[1], sizes[2]
