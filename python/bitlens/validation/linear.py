"""Decoders in closed form: the linear estimate of least mean squared error, over all pixels or per frequency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from bitlens.estimators._seeds import derived_seed, take_seed
from bitlens.validation.decoder import (
    Decoder,
    FittedDecoder,
    GroupLabels,
    checked_pairs,
    fold_rows,
    group_codes,
    need_images,
    validation_split,
)

# Rows that choose a ridge: more change the choice little and cost a product with the whole cross-covariance.
_MOST_JUDGES = 256
_N_FOLDS = 5
_RIDGES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class LinearMap(nn.Module):
    """estimate = (measured - center) first second + offset, on flattened pixels; `second` None stands for 1."""

    def __init__(self, center: Tensor, first: Tensor, second: Tensor | None, offset: Tensor, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape
        self.center = nn.Parameter(center.float())
        self.first = nn.Parameter(first.float())
        self.second = None if second is None else nn.Parameter(second.float())
        self.offset = nn.Parameter(offset.float())

    def forward(self, measured: Tensor) -> Tensor:
        """Estimates (n, channel, row, column)."""
        product = (measured.flatten(1) - self.center) @ self.first
        if self.second is not None:
            product = product @ self.second
        return (product + self.offset).reshape(-1, *self.shape)


class _Ridge(NamedTuple):
    """Centred pixels in float64 and what a ridge regression of them needs."""

    inputs: Tensor
    outputs: Tensor
    center: Tensor
    offset: Tensor
    scale: float  # mean variance of a measured pixel, the unit of the ridge

    @property
    def primal(self) -> bool:
        return self.inputs.shape[1] <= self.inputs.shape[0]

    def predicted(self, inputs: Tensor, rows: Tensor, ridges: tuple[float, ...]) -> list[Tensor]:
        """Estimates for centred `inputs`, less the offset, by fits to `rows`, one for each ridge."""
        fitted, answers = self.inputs[rows], self.outputs[rows]
        gram = fitted.T @ fitted if self.primal else fitted @ fitted.T
        cross = fitted.T @ answers if self.primal else answers
        query = inputs.T if self.primal else fitted @ inputs.T
        found = []
        for ridge in ridges:
            solved = torch.cholesky_solve(query, self._factor(gram, ridge, len(rows)))
            found.append(solved.T @ cross)
        return found

    def weights(self, ridge: float) -> tuple[Tensor, Tensor | None]:
        """The factors of `LinearMap`, fitted to all rows."""
        inputs, outputs = self.inputs, self.outputs
        if self.primal:
            factor = self._factor(inputs.T @ inputs, ridge, len(inputs))
            return torch.cholesky_solve(inputs.T @ outputs, factor), None
        dual = torch.cholesky_solve(outputs, self._factor(inputs @ inputs.T, ridge, len(inputs)))
        # The product is formed only where it is the smaller one to keep.
        if inputs.shape[1] * outputs.shape[1] <= len(inputs) * (inputs.shape[1] + outputs.shape[1]):
            return inputs.T @ dual, None
        return inputs.T.contiguous(), dual

    def _factor(self, gram: Tensor, ridge: float, n_rows: int) -> Tensor:
        loaded = gram.clone()
        loaded.diagonal().add_(max(ridge, 1e-12) * self.scale * n_rows)
        factor, failed = torch.linalg.cholesky_ex(loaded)
        while int(failed):  # more than double precision resolves
            loaded.diagonal().add_(1e-10 * float(loaded.diagonal().mean()))
            factor, failed = torch.linalg.cholesky_ex(loaded)
        return factor


def _centred(measured: Tensor, target: Tensor) -> _Ridge:
    inputs, outputs = measured.flatten(1).double(), target.flatten(1).double()
    center, offset = inputs.mean(0), outputs.mean(0)
    inputs, outputs = inputs - center, outputs - offset
    return _Ridge(inputs, outputs, center, offset, float(inputs.square().mean().clamp(min=1e-300)))


class LinearFit(NamedTuple):
    """A linear map, its ridge, its squared error on the validation rows, and estimates of all rows by other rows."""

    module: nn.Module
    ridge: float
    validation_mse: float
    cross_fitted: Tensor | None


def fit_linear(
    measured: Tensor,
    target: Tensor,
    groups: GroupLabels | None,
    ridges: tuple[float, ...],
    seed: int,
    *,
    cross_fit: bool = False,
) -> LinearFit:
    """Ridge chosen on the validation rows, then a fit to all rows; with `cross_fit` each row's estimate by others.

    A network that refines the estimate must see it as it will be on new images: that of a fit's own rows is too good.
    """
    problem = _centred(measured, target)
    labels = group_codes(groups, len(measured))
    rows = validation_split(groups, len(measured), seed)
    judges = rows.validation[:: max(1, len(rows.validation) // _MOST_JUDGES)][:_MOST_JUDGES]
    truth = problem.outputs[judges]
    errors = [
        float((guess - truth).square().mean())
        for guess in problem.predicted(problem.inputs[judges], rows.training, ridges)
    ]
    best = min(range(len(ridges)), key=errors.__getitem__)
    first, second = problem.weights(ridges[best])
    module = LinearMap(problem.center, first, second, problem.offset, target.shape[1:])
    estimates = None
    if cross_fit:
        estimates = torch.empty_like(target)
        for fold in fold_rows(labels, _N_FOLDS, derived_seed(seed, "cross-fitted rows")):
            others = torch.ones(len(target), dtype=torch.bool)
            others[fold] = False
            guess = problem.predicted(problem.inputs[fold], torch.nonzero(others)[:, 0], (ridges[best],))[0]
            estimates[fold] = (guess + problem.offset).reshape(-1, *target.shape[1:]).to(target)
    return LinearFit(module, ridges[best], errors[best], estimates)


@final
@dataclass(frozen=True)
class LinearDecoder(Decoder):
    """estimate = E[x] + C_xz (C_zz + ridge v I)^-1 (z - E[z]), covariances of the training pairs, v = tr C_zz / d.

    The ridge is the best of `ridges` on the validation rows. For measurements of any shape, up to some thousand values.

    Reference: Hoerl and Kennard 1970, doi:10.1080/00401706.1970.10488634.
    """

    ridges: tuple[float, ...] = _RIDGES

    def fit(
        self,
        measured: Tensor | NDArray[Any],
        target: Tensor | NDArray[Any],
        *,
        groups: GroupLabels | None = None,
        generator: torch.Generator | None = None,
    ) -> FittedDecoder:
        """Fitted to measurements (n, ...) and images (n, channel, row, column)."""
        inputs, outputs = checked_pairs(measured, target)
        need_images(outputs, self)
        found = fit_linear(inputs, outputs, groups, self.ridges, take_seed(generator))
        return FittedDecoder(found.module.eval(), choice=f"ridge {found.ridge:g}")


class FrequencyFilter(nn.Module):
    """One complex matrix (row, column, output channel, input channel) per frequency of the reflected image."""

    def __init__(self, transfer: Tensor, center: Tensor, offset: Tensor, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.center = nn.Parameter(center.float())
        self.offset = nn.Parameter(offset.float())
        self.transfer = nn.Parameter(torch.view_as_real(transfer.to(torch.complex64)).contiguous())

    def forward(self, measured: Tensor) -> Tensor:
        """Estimates (n, channel, row, column)."""
        rows, columns = self.size
        top, left = rows // 2, columns // 2
        padded = functional.pad(
            measured - self.center, (left, columns - left - columns % 2, top, rows - top - rows % 2), mode="reflect"
        )
        grid = padded.shape[-2:]
        spectrum = torch.fft.rfft2(padded)
        filtered = torch.einsum("rcoi,nirc->norc", torch.view_as_complex(self.transfer), spectrum)
        image = torch.fft.irfft2(filtered, s=grid)
        return image[..., top : top + rows, left : left + columns] + self.offset


def fits_frequencies(measured: Tensor, target: Tensor) -> bool:
    """Whether a filter per frequency can map one to the other: images of one size, and channels few enough."""
    return (
        measured.ndim == 4
        and measured.shape[-2:] == target.shape[-2:]
        and min(target.shape[-2:]) >= 4
        and measured.shape[1] <= 64
    )


def fit_wiener(
    measured: Tensor, target: Tensor, groups: GroupLabels | None, ridges: tuple[float, ...], seed: int
) -> LinearFit:
    """Cross-spectra of the training rows, the ridge chosen on the validation rows."""
    rows = validation_split(groups, len(measured), seed)
    best: LinearFit | None = None
    for ridge, module in zip(ridges, _filters(measured, target, rows.training, ridges), strict=True):
        with torch.no_grad():
            errors = (module(measured[rows.validation]) - target[rows.validation]).square()
        mse = float(errors.mean())
        if best is None or mse < best.validation_mse:
            best = LinearFit(module, ridge, mse, None)
    assert best is not None
    everything = torch.arange(len(measured))
    return best._replace(module=_filters(measured, target, everything, (best.ridge,))[0])


def _filters(measured: Tensor, target: Tensor, rows: Tensor, ridges: tuple[float, ...]) -> list[FrequencyFilter]:
    inputs, outputs = measured[rows], target[rows]
    center, offset = (value.mean((0, 2, 3), keepdim=True)[0] for value in (inputs, outputs))
    size = (int(target.shape[-2]), int(target.shape[-1]))
    window = torch.outer(*(torch.hann_window(length + 2, periodic=False)[1:-1] for length in size)).to(inputs.device)
    # The grid of the reflected image; a windowed image in black has its spectrum on any finer grid.
    grid = [2 * length - length % 2 for length in size]
    z, x = (torch.fft.rfft2(value * window, s=grid) for value in (inputs - center, outputs - offset))
    power = torch.einsum("nirc,njrc->rcij", z, z.conj()).to(torch.complex128)
    cross = torch.einsum("nirc,njrc->rcij", x, z.conj()).to(torch.complex128)
    level = power.diagonal(dim1=-2, dim2=-1).real.mean()
    eye = torch.eye(power.shape[-1], dtype=power.dtype, device=power.device)
    found = []
    for ridge in ridges:
        transfer = torch.linalg.solve(power + max(ridge, 1e-12) * level * eye, cross, left=False)
        found.append(FrequencyFilter(transfer, center, offset, size))
    return found


@final
@dataclass(frozen=True)
class WienerDecoder(Decoder):
    """estimate(f) = S_xz(f) (S_zz(f) + ridge)^-1 z(f), for systems that treat all places alike.

    Spectra from training pairs under a Hann window; channels are coupled. The image is continued by reflection, so that
    its edges do not meet. Measurement and target have one grid; the ridge is relative to the mean of S_zz.

    Reference: Wiener 1949, Extrapolation, Interpolation and Smoothing of Stationary Time Series.
    """

    ridges: tuple[float, ...] = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)

    def fit(
        self,
        measured: Tensor | NDArray[Any],
        target: Tensor | NDArray[Any],
        *,
        groups: GroupLabels | None = None,
        generator: torch.Generator | None = None,
    ) -> FittedDecoder:
        """Fitted to measurements (n, channel, row, column) and images of the same rows and columns."""
        inputs, outputs = checked_pairs(measured, target)
        need_images(outputs, self)
        if not fits_frequencies(inputs, outputs):
            raise ValueError(
                f"measured: need images (n, channel, row, column) of the target's rows and columns "
                f"{tuple(outputs.shape[-2:])}, at least 4, got {tuple(inputs.shape)}"
            )
        found = fit_wiener(inputs, outputs, groups, self.ridges, take_seed(generator))
        return FittedDecoder(found.module.eval(), choice=f"ridge {found.ridge:g}")
