"""The Gaussian that a density starts from, as a linear prediction of each value from those before it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.densities.gaussian import GaussianDensity
from bitlens.densities.stationary import StationaryGaussianDensity

# A fitted variance may fall to this fraction of the Gaussian's, where the predicted mean is lowest.
_LEAST_VARIANCE = 0.02
_REWEIGHTINGS = 8


class Prediction(NamedTuple):
    """Location and scale of each value given those before it, (n, D) each, in the order of `in_order`."""

    location: Tensor
    scale: Tensor


def in_order(images: Tensor) -> Tensor:
    """(n, channel, row, column) -> (n, D): row by row, the channels of one pixel next to each other."""
    return images.permute(0, 2, 3, 1).flatten(1)


def from_order(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(n, D, ...) -> (n, channel, row, column, ...), the inverse of `in_order`."""
    channels, rows, columns = shape
    return values.reshape(len(values), rows, columns, channels, *values.shape[2:]).movedim(3, 1)


def fit_linear(training: Tensor, validation: Tensor) -> dict[str, Tensor]:
    """The better Gaussian of two on `validation`, in causal form, and a variance that follows the mean.

    Both (n, channel, row, column) float64. With C = L L' in causal order, the conditional mean of value p is
    mean_p + sum_{q<p} W_pq (z_q - mean_q), W = 1 - diag(L) L^-1, and its standard deviation is L_pp; the variance
    is L_pp^2 (a + b t), t the predicted mean above the lowest value, 1 for the average one: Poisson noise has b.
    """
    n_samples, n_values = training.shape[0], training[0].numel()
    stationary = StationaryGaussianDensity().fit(training)
    mean, cholesky = stationary.mean, stationary.cholesky
    if n_samples >= 2 * n_values + 3:
        try:
            full = GaussianDensity().fit(training)
        except ValueError:  # values that are constant or repeated: the stationary one stands
            full = None
        if full is not None and full.log_prob(validation).mean() > stationary.log_prob(validation).mean():
            mean, cholesky = full.mean, full.cholesky
    assert mean is not None
    assert cholesky is not None
    place = in_order(torch.arange(n_values, device=training.device).reshape(1, *training.shape[1:]))[0]
    # Rows of a factor in another order are a factor no more: L' = R gives the new one without squaring L.
    factor = torch.linalg.qr(cholesky[place].mT, mode="r").R.mT
    factor = factor * factor.diagonal().sign()
    identity = torch.eye(n_values, dtype=factor.dtype, device=factor.device)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    deviation = factor.diagonal()
    lowest = training.min()
    parameters = {
        "mean": in_order(mean[None])[0],
        "weights": (identity - deviation[:, None] * inverse).tril(-1),
        "deviation": deviation,
        "lowest": lowest,
        "typical": (training.mean() - lowest).clamp_min(torch.finfo(training.dtype).tiny),
        "variance": training.new_tensor([1.0, 0.0]),
    }
    parameters["variance"] = _fit_variance(parameters, in_order(training))
    return parameters


def predict(parameters: dict[str, Tensor], values: Tensor) -> Prediction:
    """Location and scale of each of `values`, (n, D), from those before it: two matrices (n, D)."""
    location = parameters["mean"] + (values - parameters["mean"]) @ parameters["weights"].mT
    return Prediction(location, scale_of(parameters, location, slice(None)))


def predict_one(parameters: dict[str, Tensor], values: Tensor, place: int) -> Prediction:
    """Location and scale of value `place`, (n,), from `values[:, :place]`."""
    before = values[:, :place] - parameters["mean"][:place]
    location = parameters["mean"][place] + before @ parameters["weights"][place, :place]
    return Prediction(location, scale_of(parameters, location, place))


def scale_of(parameters: dict[str, Tensor], location: Tensor, place: int | slice) -> Tensor:
    """L_pp sqrt(a + b t) at the values `place` whose predicted means are `location`."""
    constant, slope = parameters["variance"]
    return parameters["deviation"][place] * (constant + slope * _relative_mean(parameters, location)).sqrt()


def _relative_mean(parameters: dict[str, Tensor], location: Tensor) -> Tensor:
    return ((location - parameters["lowest"]) / parameters["typical"]).clamp_min(0.0)


def _fit_variance(parameters: dict[str, Tensor], values: Tensor) -> Tensor:
    """(a, b): squared residuals on a + b t, each weighted by the inverse square of its own variance."""
    location = predict(parameters, values).location
    power = ((values - location) / parameters["deviation"]).square().flatten()
    relative = _relative_mean(parameters, location).flatten()
    constant, slope = power.new_tensor(1.0), power.new_tensor(0.0)
    for _ in range(_REWEIGHTINGS):
        weight = (constant + slope * relative).square().reciprocal()
        sums = [(weight * relative**k).sum() for k in range(3)]
        right = [(weight * power).sum(), (weight * relative * power).sum()]
        determinant = sums[0] * sums[2] - sums[1] ** 2
        if not bool(determinant > 1e-9 * sums[0] * sums[2]):
            return power.new_tensor([1.0, 0.0])
        slope = ((sums[0] * right[1] - sums[1] * right[0]) / determinant).clamp_min(0.0)
        constant = ((right[0] - slope * sums[1]) / sums[0]).clamp_min(_LEAST_VARIANCE)
    return torch.stack([constant, slope])
