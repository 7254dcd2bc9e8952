"""Bits of sparse scenes: a density made for pixels that are mostly dark and images that repeat each other.

Two things make the densities at hand too loose here, and not alike for all masks. A pixel that digits seldom light is
noise of known width most of the time, to which a Gaussian gives the width of the light. And the images of several
lenslets repeat each other: what one shows to be dark is dark in the other, which a Gaussian copula, whose correlation
is one number for dark and lit pixels, cannot say. So here each pixel is predicted from those before it, and what is
left has a law that goes by the prediction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self, cast, final

import torch
from torch import Tensor

from bitlens.densities import Density
from bitlens.noise import NoiseModel
from bitlens.systems import ImagingSystem

_BRIGHT_END = 1.5  # exponent by which bins of the prediction narrow towards the bright end
_RIDGE = 1e-3  # of a variance that noise makes about 1
_REACH, _NODES = 8.0, 161
# Images' worth of a Cauchy law in each class of residuals, which bounds the cost of an outlier.
_CAUCHY = 20.0
_PRIOR = 2.0  # images' worth of no mean residual and of the noise's variance in each bin
_SCENES_AT_ONCE = 1000


class Laws(NamedTuple):
    """What a prediction says of its residual: for each pixel and bin a mean and a log deviation, and a class of laws.

    `centers` (pixel, bin) predictions at which `mean` and `log_deviation` (pixel, bin) hold, `kind` (pixel, bin) the
    row of `heights` (class, node), densities at nodes of the residual in deviations, `weight` (class, 1) of the Cauchy.
    """

    edges: Tensor
    centers: Tensor
    mean: Tensor
    log_deviation: Tensor
    kind: Tensor
    heights: Tensor
    weight: Tensor


@final
@dataclass(frozen=True, eq=False)
class CausalDensity(Density):
    """q(z) = prod_p q(t_p | t_<p) dt_p/dz_p: a linear prediction of t, whose noise is 1, and a law that goes by it.

    t is linear below zero and 2 sqrt(z + r^2) above. The prediction is that of the covariance of t. Residuals have a
    mean and a deviation by pixel and prediction, and beyond that a law shared by pixels of like deviation and skewness.
    `held_out_bias_nats` is NaN: it is not known.
    """

    read_electrons: float
    n_bins: int = 20
    n_classes: tuple[int, int] = (24, 6)
    center: Tensor | None = field(default=None, repr=False)
    weights: Tensor | None = field(default=None, repr=False)
    laws: Laws | None = field(default=None, repr=False)
    shape: tuple[int, ...] = ()
    held_out_bias_nats: float = math.nan
    converged: bool = False

    def fit(self, measured: Tensor) -> Self:
        """Prediction and laws for `measured`, (n, ...) electrons."""
        values, _ = self._stabilised(measured.double().flatten(1))
        center = values.mean(0)
        centered = values - center
        covariance = centered.mT @ centered / len(values)
        covariance.diagonal().add_(_RIDGE)
        cholesky = torch.linalg.cholesky(covariance)
        identity = torch.eye(len(center), dtype=torch.float64)
        inverse = torch.linalg.solve_triangular(cholesky / cholesky.diagonal(), identity, upper=False)
        weights = (identity - inverse).tril(-1)
        found = replace(self, center=center, weights=weights, shape=tuple(measured.shape[1:]), converged=True)
        prediction, residual = found._residuals(values)
        return replace(found, laws=_fitted_laws(prediction, residual, self.n_bins, self.n_classes))

    def log_prob(self, measured: Tensor) -> Tensor:
        """log q(z) of each image, nats; differentiable in `measured`."""
        if self.laws is None:
            raise RuntimeError("CausalDensity: call fit first; it returns the fitted density")
        return torch.cat([self._log_prob(part) for part in measured.double().flatten(1).split(_SCENES_AT_ONCE)])

    def _log_prob(self, flat: Tensor) -> Tensor:
        assert self.laws is not None
        values, slope = self._stabilised(flat)
        prediction, residual = self._residuals(values)
        kind, mean, log_deviation = _at(self.laws, prediction)
        scaled = (residual - mean) * (-log_deviation).exp()
        return (_law(self.laws, kind, scaled).log() - log_deviation).sum(0) + slope.log().sum(1)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Pixel after pixel, each from its law: n images."""
        if self.laws is None or self.center is None or self.weights is None:
            raise RuntimeError("CausalDensity: call fit first; it returns the fitted density")
        n_pixels = len(self.center)
        values = self.center.expand(n, -1).clone()
        step = 2 * _REACH / (_NODES - 1)
        for pixel in range(n_pixels):
            prediction = self.center[pixel] + (values[:, :pixel] - self.center[:pixel]) @ self.weights[pixel, :pixel]
            laws = Laws(*(each[pixel : pixel + 1] for each in self.laws[:5]), *self.laws[5:])
            kind, mean, log_deviation = (each[0] for each in _at(laws, prediction[None]))
            node = torch.multinomial(self.laws.heights[kind], 1, generator=generator)[:, 0]
            # A hat about each node.
            uniform = torch.rand(2, n, dtype=torch.float64, generator=generator).sum(0) - 1
            drawn = (node + uniform) * step - _REACH
            wide = torch.rand(n, dtype=torch.float64, generator=generator) < self.laws.weight[kind, 0]
            turn = math.pi * (torch.rand(n, dtype=torch.float64, generator=generator) - 0.5)
            values[:, pixel] = prediction + mean + log_deviation.exp() * torch.where(wide, turn.tan(), drawn)
        read = self.read_electrons
        bright = (0.5 * values.clamp(min=0) + read).square() - read**2
        return torch.where(values < 0, read * values, bright).reshape(n, *self.shape)

    def _stabilised(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Values whose noise has unit variance nearly, and their slopes."""
        deviation = (flat.clamp(min=0) + self.read_electrons**2).sqrt()
        values = torch.where(flat < 0, flat / self.read_electrons, 2 * (deviation - self.read_electrons))
        return values, 1 / deviation

    def _residuals(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and what they miss, (pixel, n) each."""
        assert self.center is not None
        assert self.weights is not None
        # Never as value less residual: its rounding would tell a constant prediction of the value.
        prediction = self.center[:, None] + self.weights @ (values - self.center).mT
        return prediction, values.mT - prediction


def _fitted_laws(prediction: Tensor, residual: Tensor, n_bins: int, n_classes: tuple[int, int]) -> Laws:
    n_pixels, n_images = prediction.shape
    share = 1 - (1 - torch.linspace(0, 1, n_bins + 1, dtype=torch.float64)[1:-1]) ** _BRIGHT_END
    ordered = prediction.sort(1)[0]
    edges = ordered[:, (share * (n_images - 1)).long()].contiguous()
    group = (torch.searchsorted(edges, prediction) + n_bins * torch.arange(n_pixels)[:, None]).flatten()
    n_groups = n_pixels * n_bins

    def total(value: Tensor) -> Tensor:
        return torch.zeros(n_groups, dtype=torch.float64).index_add_(0, group, value.flatten())

    count = total(torch.ones_like(residual))
    # Equal predictions leave bins empty.
    centers = torch.where(count > 0, total(prediction) / count.clamp(min=1), torch.nan).reshape(n_pixels, n_bins)
    bounds = torch.cat([ordered[:, :1], edges, ordered[:, -1:]], 1)
    centers = torch.where(centers.isnan(), 0.5 * (bounds[:, :-1] + bounds[:, 1:]), centers)
    mean = (total(residual) / (count + _PRIOR)).reshape(n_pixels, n_bins)
    empty = Laws(edges, centers, mean, mean, mean.long(), mean, mean)
    left = residual - _at(empty, prediction)[1]
    log_deviation = 0.5 * ((total(left.square()) + _PRIOR) / (count + _PRIOR)).log().reshape(n_pixels, n_bins)
    scaled = left * (-_at(empty._replace(log_deviation=log_deviation), prediction)[2]).exp()
    skewness = total(scaled**3) / (count + _PRIOR)
    kind = _classes(log_deviation.flatten(), skewness, n_classes)
    n_kinds = n_classes[0] * n_classes[1]
    heights, weight = _histograms(kind[group], scaled.flatten(), n_kinds)
    return Laws(edges, centers, mean, log_deviation, kind.reshape(n_pixels, n_bins), heights, weight[:, None])


def _classes(deviation: Tensor, skewness: Tensor, n_classes: tuple[int, int]) -> Tensor:
    """Groups of like deviation, and among these of like skewness, as many in each."""
    kind = torch.empty(len(deviation), dtype=torch.long)
    for outer, alike in enumerate(deviation.argsort().tensor_split(n_classes[0])):
        for inner, members in enumerate(alike[skewness[alike].argsort()].tensor_split(n_classes[1])):
            kind[members] = outer * n_classes[1] + inner
    return kind


def _histograms(kind: Tensor, scaled: Tensor, n_kinds: int) -> tuple[Tensor, Tensor]:
    """Densities at the nodes, linear between them and zero at both ends, and the weight of what lies beyond."""
    step = 2 * _REACH / (_NODES - 1)
    inside = scaled.abs() < _REACH - step
    place = (scaled[inside] + _REACH) / step
    left = place.floor()
    weight = torch.cat([left + 1 - place, place - left])
    cell = torch.cat([left.long(), left.long() + 1]) + _NODES * kind[inside].repeat(2)
    counts = torch.bincount(cell, weights=weight, minlength=n_kinds * _NODES).reshape(n_kinds, _NODES)
    outside = torch.bincount(kind[~inside], minlength=n_kinds)
    held = counts.sum(1)
    weight = (outside + _CAUCHY) / (held + outside + _CAUCHY)
    return counts / (held.clamp(min=1e-9)[:, None] * step), weight


def _at(laws: Laws, prediction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Class, mean and log deviation of the residual for predictions (pixel, n), the latter two linear between bins."""
    kind = laws.kind.gather(1, torch.searchsorted(laws.edges, prediction.detach()))
    last = laws.centers.shape[1] - 1
    left = (torch.searchsorted(laws.centers, prediction.detach()) - 1).clamp(0, max(last - 1, 0))
    right = (left + 1).clamp(max=last)
    low, high = laws.centers.gather(1, left), laws.centers.gather(1, right)
    share = ((prediction - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    mean, log_deviation = (
        torch.lerp(values.gather(1, left), values.gather(1, right), share) for values in (laws.mean, laws.log_deviation)
    )
    return kind, mean, log_deviation


def _law(laws: Laws, kind: Tensor, scaled: Tensor) -> Tensor:
    """Density of residuals in deviations: between nodes linear, and beside that a Cauchy law."""
    step = 2 * _REACH / (_NODES - 1)
    place = ((scaled + _REACH) / step).clamp(0, _NODES - 1)
    left = place.detach().floor().clamp(max=_NODES - 2)
    cell = kind * _NODES + left.long()
    flat = laws.heights.flatten()
    inside = torch.lerp(flat[cell], flat[cell + 1], place - left)
    weight = laws.weight[:, 0][kind]
    return (1 - weight) * inside + weight / (math.pi * (1 + scaled.square()))


class Bits(NamedTuple):
    """-log2 q(z) - h(z | scene) of each scored image, whose mean bounds the information from above."""

    rows: Tensor

    @property
    def mean(self) -> float:
        """Bits per image."""
        return float(self.rows.mean())

    @property
    def stderr(self) -> float:
        """Of `mean`, the fit being held."""
        return float(self.rows.std()) / math.sqrt(len(self.rows))


@torch.no_grad()
def bits(system: ImagingSystem, density: Density, n_scored: int, seed: int = 0) -> Bits:
    """Of the first `n_scored` scenes, by `density` fitted to measurements of all others."""
    noise = cast(NoiseModel, system.noise)
    mean = torch.cat([system.encoder(part) for part in system.scenes.split(_SCENES_AT_ONCE)]).double()
    measured = noise.sample(mean, torch.Generator().manual_seed(seed)).double()
    known = noise.entropy(mean[:n_scored]).double().flatten(1).sum(1)
    fitted = density.fit(measured[n_scored:])
    return Bits((-fitted.log_prob(measured[:n_scored]) - known) / math.log(2))
