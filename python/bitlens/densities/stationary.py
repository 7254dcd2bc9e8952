"""Gaussian whose covariance depends on the displacement between two pixels only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Self, final

import torch
from torch import Tensor

from bitlens.densities._fitted import FittedGaussian, fitted_gaussian
from bitlens.densities.base import Density, as_images

# Kept above the rounding of a float64 Cholesky factor: a spectrum may fall to this fraction of its mean.
_SPECTRUM_FLOOR = 1e-10
# Of the periodogram's mean power: what the start of a fit is at least at each frequency.
_LEAST_SHARE = 0.05
# Power of the share of pairs that a displacement has: 1 is the periodogram, 0 the unbiased means.
_TAPER = 0.2
# From its own start the first step gains at least so many times what the second one does: 12 to 20 times for fields of
# 8 x 8 to 32 x 32 pixels and photographs.
_FIRST_STEP = 8.0
# Of the expected cost of the finite sample, below which a gain in likelihood is not worth its time.
_SHARE_OF_BIAS = 0.03
_IMAGES_PER_PIXEL = 4
_TRANSFORMED_IMAGES = 128  # at a time, for the sake of memory


@final
@dataclass(frozen=True, eq=False)
class StationaryGaussianDensity(Density):
    """q(z) = N(z; mean, C), C[(a, p), (b, q)] = c_ab(p - q): exact likelihood of a block, free mean image.

    `StationaryGaussianDensity().fit(measured)` is the fitted density; measured is (n, [channel,] row,
    column). Maximum likelihood over non-negative spectra on a torus of twice the size, so C is positive
    definite by construction and needs no repair; only c_ab(d) = c_ba(-d) is imposed, all four quadrants are
    free. `held_out_bias_nats` = parameters / (2 n), the leading order for data that follow the model.

    Reference: Miller and Snyder 1987, doi:10.1109/PROC.1987.13825 (likelihood through a periodic extension).
    """

    max_iterations: int = 300
    tolerance_nats_per_pixel: float = 5e-5
    mean: Tensor | None = field(default=None, repr=False)
    cholesky: Tensor | None = field(default=None, repr=False)
    spectrum: Tensor | None = field(default=None, repr=False)
    n_samples: int = 0
    n_iterations: int = 0
    held_out_bias_nats: float = math.nan
    converged: bool = False

    def fit(self, measured: Tensor) -> Self:
        """The stationary Gaussian of largest likelihood for `measured`, (n, [channel,] row, column).

        The iteration P <- X P^-1 X, X A X = P B P, with A and B the spectra of C^-1 and C^-1 S C^-1 (for one
        channel P <- P B / A), starts at the mean products at each displacement and stops after a step that leaves
        less than 0.4 `tolerance_nats_per_pixel` to gain, or less than 0.03 of what the finite sample costs anyway.
        A density that is fitted already starts from its own spectrum.

        Raises:
            ValueError: fewer than 4 images, no two image axes, NaN or infinity, or images without variation.
        """
        images = as_images(measured, minimum_samples=4)
        if images.ndim not in (3, 4):
            raise ValueError(f"measured: need shape (n, [channel,] row, column), got {tuple(images.shape)}")
        image_shape = images.shape[1:]
        n_samples = images.shape[0]
        mean = images.mean(0)
        deviation = images - mean
        if not bool((deviation != 0.0).any()):
            raise ValueError("measured: need images that vary, got constant ones")

        torus = _Torus(image_shape, images.device)
        spectrum = self.spectrum
        fresh = spectrum is None or spectrum.shape != torus.spectrum_shape
        flat = deviation.flatten(1)
        # Of many more images than pixels their products are the smaller thing to work on: 16 x 16 pixels, 2000 images
        # 1.6 times as fast, 32 x 32 pixels 0.8 times.
        gram = flat.mT @ flat if n_samples >= _IMAGES_PER_PIXEL * flat.shape[1] else None
        if spectrum is None or fresh:
            spectrum = torus.start(torus.periodogram(deviation) if gram is None else torus.adjoint(gram), n_samples)
        spectrum = _lift(spectrum)
        bias = torus.n_parameters / (2.0 * n_samples)
        least_gain = max(0.4 * self.tolerance_nats_per_pixel * deviation[0].numel(), _SHARE_OF_BIAS * bias)
        converged = False
        n_iterations = 0
        while not converged and n_iterations < self.max_iterations:
            n_iterations += 1
            cholesky = _cholesky(torus.covariance(spectrum))
            inverse = torch.cholesky_inverse(cholesky)
            precision = torus.adjoint(inverse)
            if gram is None:
                weighted = torus.periodogram((flat @ inverse).reshape(deviation.shape)) / (n_samples - 1)
            else:
                weighted = torus.adjoint(inverse @ gram @ inverse) / (n_samples - 1)
            step = _lift(_multiplicative_step(spectrum, precision, weighted))
            # Half the gradient along the step: the likelihood is flat to first order at its end.
            change = (precision - weighted).mT * (spectrum - step)
            gain = 0.25 * float(change.real.sum()) / (torus.size[0] * torus.size[1])
            left = gain / _FIRST_STEP if fresh and n_iterations == 1 else gain
            converged = left < least_gain
            spectrum = step
        cholesky = _cholesky(torus.covariance(spectrum))
        settings = (self.max_iterations, self.tolerance_nats_per_pixel)
        return type(self)(*settings, mean, cholesky, spectrum, n_samples, n_iterations, bias, converged)

    def log_prob(self, measured: Tensor) -> Tensor:
        """log N(z; mean, C) of each image, (n, [channel,] row, column) -> (n,) nats."""
        return self._fitted().log_prob(measured)

    def whiten(self, measured: Tensor) -> Tensor:
        """Each image less the mean, made uncorrelated and of unit variance: (n, ...) -> (n, D)."""
        return self._fitted().whiten(measured)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """mean + L e, e standard normal: n images, (n, [channel,] row, column)."""
        return self._fitted().sample(n, generator)

    def _fitted(self) -> FittedGaussian:
        return fitted_gaussian(type(self).__name__, self.mean, self.cholesky)


class _Torus:
    """The linear map from spectra on a torus to covariances of a block of pixels, and its adjoint."""

    def __init__(self, image_shape: torch.Size, device: torch.device) -> None:
        channels = image_shape[0] if len(image_shape) == 3 else 1
        rows, columns = image_shape[-2:]
        self.channels, self.pixels = channels, rows * columns
        # Twice the size: every displacement inside the block has its own place, so none is forced on another.
        self.size = (2 * rows, 2 * columns)
        self.spectrum_shape = torch.Size((*self.size, channels, channels))
        row = torch.arange(rows, device=device).repeat_interleave(columns)
        column = torch.arange(columns, device=device).repeat(rows)
        self.place = (row[:, None] - row) % self.size[0] * self.size[1] + (column[:, None] - column) % self.size[1]
        displacements = (2 * rows - 1) * (2 * columns - 1)
        self.n_parameters = (channels**2 * displacements + channels) // 2 + channels * self.pixels

    def covariance(self, spectrum: Tensor) -> Tensor:
        """C[(a, p), (b, q)] = c_ab(p - q), c = inverse transform of the spectrum: (D, D)."""
        by_place: Tensor = torch.fft.ifft2(spectrum, dim=(0, 1)).real.flatten(0, 1)
        blocks = by_place[self.place].permute(2, 0, 3, 1)
        return blocks.reshape(self.channels * self.pixels, self.channels * self.pixels)

    def periodogram(self, images: Tensor) -> Tensor:
        """The adjoint of sum_i x_i x_i' for `images` (n, [channel,] row, column), by transforms of the images."""
        channels = images.reshape(len(images), self.channels, *images.shape[-2:])
        half = images.new_zeros(
            self.size[0], self.size[1] // 2 + 1, self.channels, self.channels, dtype=torch.complex128
        )
        for part in channels.split(_TRANSFORMED_IMAGES):
            spectra = torch.fft.rfft2(part, s=self.size)
            if self.channels == 1:
                half[..., 0, 0] += (spectra[:, 0].real.square() + spectra[:, 0].imag.square()).sum(0)
            else:
                half += torch.einsum("napq,nbpq->pqab", spectra, spectra.conj())
        # The other half is that of the opposite frequencies, conjugated.
        rows = -torch.arange(self.size[0], device=images.device) % self.size[0]
        columns = torch.arange(self.size[1] // 2 - 1, 0, -1, device=images.device)
        return torch.cat([half, half[rows][:, columns].conj()], 1)

    def start(self, periodogram: Tensor, n_samples: int) -> Tensor:
        """Spectrum of the mean products of pixels at each displacement, drawn to zero where pairs are few.

        Between the periodogram, which the edges of the block blur, and unbiased means, which are noisy far out and not
        always semidefinite: no eigenvalue stays far below the periodogram's.
        """
        rows, columns = self.size[0] // 2, self.size[1] // 2
        sums = torch.fft.ifft2(periodogram, dim=(0, 1)).real / (n_samples - 1)
        pairs = [
            (n - torch.fft.fftfreq(2 * n, 0.5 / n, dtype=torch.float64).abs()).to(periodogram.device)
            for n in (rows, columns)
        ]
        count = pairs[0][:, None] * pairs[1]
        share = (count / self.pixels).pow(_TAPER)
        weight = torch.where(count > 0.5, share / count.clamp_min(1.0), 0.0)
        products = sums * weight[..., None, None]
        spectrum = torch.fft.fft2(products, dim=(0, 1))
        spectrum = 0.5 * (spectrum + spectrum.mH)
        blurred: Tensor = torch.fft.fft2(sums, dim=(0, 1)) / self.pixels
        power = blurred.diagonal(dim1=-2, dim2=-1).real.clamp_min(0.0).mean(-1)
        if self.channels == 1:
            return spectrum.real.clamp_min(_LEAST_SHARE * power[..., None, None]).to(spectrum.dtype)
        values, vectors = torch.linalg.eigh(spectrum)
        values = values.maximum(_LEAST_SHARE * power[..., None])
        lifted: Tensor = (vectors * values[..., None, :]) @ vectors.mH
        return lifted

    def adjoint(self, matrix: Tensor) -> Tensor:
        """Transform of the sums of `matrix` (D, D) over equal displacements: semidefinite if `matrix` is."""
        blocks = matrix.reshape(self.channels, self.pixels, self.channels, self.pixels)
        by_pair = blocks.permute(1, 3, 0, 2).reshape(self.pixels**2, self.channels, self.channels)
        sums = matrix.new_zeros(self.size[0] * self.size[1], self.channels, self.channels)
        sums.index_add_(0, self.place.flatten(), by_pair)
        spectrum: Tensor = torch.fft.fft2(sums.reshape(self.spectrum_shape), dim=(0, 1))
        return spectrum


def _cholesky(covariance: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed) or not bool(torch.isfinite(factor).all()):
        raise ValueError("measured: need values whose covariance float64 can hold, got too wide a range")
    return factor


def _lift(spectrum: Tensor) -> Tensor:
    """`spectrum` made Hermitian, no eigenvalue below the floor times its mean power."""
    floor = _SPECTRUM_FLOOR * spectrum.diagonal(dim1=-2, dim2=-1).real.mean()
    if spectrum.shape[-1] == 1:
        return spectrum.real.clamp_min(floor).to(spectrum.dtype)
    return 0.5 * (spectrum + spectrum.mH) + floor * torch.eye(spectrum.shape[-1], device=spectrum.device)


def _multiplicative_step(spectrum: Tensor, precision: Tensor, weighted: Tensor) -> Tensor:
    """X P^-1 X with X A X = P B P: P B / A for one channel; fixed where A = B, the gradient's zero.

    P = L L^H and L^H A L = M M^H: X = L M^-H (M^H L^H B L M)^(1/2) M^-1 L^H, one small matrix per frequency.
    """
    if spectrum.shape[-1] == 1:
        return spectrum.real * weighted.real / precision.real + 0j
    factor = torch.linalg.cholesky(spectrum)
    inner = torch.linalg.cholesky(factor.mH @ precision @ factor)
    inner_inverse = torch.linalg.solve_triangular(inner, torch.eye(inner.shape[-1]).to(inner), upper=False)
    product = factor @ inner
    power, vectors = torch.linalg.eigh(product.mH @ weighted @ product)
    root = (vectors * power.clamp_min(0.0).sqrt().unsqueeze(-2)) @ vectors.mH
    half_step = factor @ inner_inverse.mH @ root @ inner_inverse
    step: Tensor = half_step @ half_step.mH
    return step
