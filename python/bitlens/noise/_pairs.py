"""log p(measured_i | mean_j) of all pairs, summed over pixels, for every noise model."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.kernels._autocast import full_precision
from bitlens.noise._abilities import HasPairs
from bitlens.noise.base import NoiseModel, ScoreFeatures

_CHUNK_EVALUATIONS = 2_000_000
# Stands for a mean of exactly 0 in the bilinear form: a count there costs 69 nats instead of infinitely many.
DARK_FLOOR = 1e-30


class Bilinear(NamedTuple):
    """S_ij = query_i . key_j + query_bias_i + key_bias_j, in the precision of the mean."""

    query: Tensor
    key: Tensor
    query_bias: Tensor
    key_bias: Tensor

    @full_precision
    def matrix(self) -> Tensor:
        """All scores."""
        return self.query @ self.key.T + self.query_bias[:, None] + self.key_bias


def log_prob_pairs(noise: NoiseModel, measured: Tensor, mean: Tensor) -> Tensor:
    """(n, ...), (m, ...) -> (n, m) nats, by the model's own way if it has one."""
    return noise.log_prob_pairs(measured, mean) if isinstance(noise, HasPairs) else one_by_one(noise, measured, mean)


def one_by_one(noise: NoiseModel, measured: Tensor, mean: Tensor) -> Tensor:
    """All pairs from `log_prob`, some rows at a time."""
    check_pixels(measured, mean)
    chunk = max(1, _CHUNK_EVALUATIONS // max(1, mean.numel()))
    rows = [
        noise.log_prob(part[:, None], mean[None]).reshape(len(part), len(mean), math.prod(mean.shape[1:])).sum(2)
        for part in measured.split(chunk)
    ]
    return torch.cat(rows)


def check_pixels(measured: Tensor, mean: Tensor) -> None:
    """ValueError unless both have a first axis of images of one shape."""
    if measured.ndim == 0 or mean.ndim == 0 or measured.shape[1:] != mean.shape[1:]:
        raise ValueError(
            f"measured, mean: need (n, ...) and (m, ...) images of one shape, got {tuple(measured.shape)} and "
            f"{tuple(mean.shape)}"
        )


def _rows(images: Tensor) -> Tensor:
    return images.reshape(len(images), math.prod(images.shape[1:]))


def centre_of(images: Tensor) -> Tensor:
    """Mean over the first axis without images that hold a NaN or an infinity: those spoil their own scores only."""
    values = images.detach()
    finite = torch.isfinite(_rows(values)).all(dim=1)
    kept = torch.where(finite.reshape(-1, *(1,) * (values.ndim - 1)), values, 0.0)
    return kept.sum(dim=0) / finite.sum()


def gaussian(measured: Tensor, mean: Tensor, std: Tensor) -> Bilinear:
    """Whitened and centred on the mean image: z . y - |z|^2 / 2 - |y|^2 / 2 and the constants.

    Centring and biases are in float64, so that a large common offset costs single precision nothing.
    """
    check_pixels(measured, mean)
    z, y = (tensor.to(torch.float64) for tensor in (measured, mean))
    std = std.to(y)
    centre = centre_of(y)
    z, y = (_rows((tensor - centre) / std) for tensor in (z, y))
    constant = torch.log(std).expand(mean.shape[1:]).sum() + 0.5 * math.log(2 * math.pi) * math.prod(mean.shape[1:])
    return _rounded(z, y, -0.5 * (z**2).sum(1) - constant, -0.5 * (y**2).sum(1), mean.dtype)


def poisson(measured: Tensor, mean: Tensor) -> Tensor:
    """All scores of counts; -inf where a mean of 0 would have to count."""
    check_pixels(measured, mean)
    z, y = (_rows(tensor.to(torch.float64)) for tensor in (measured, mean))
    dark = y == 0
    centre = centre_of(y)
    # A mean of 0 allows no count, so any logarithm does for it: that of the mean image leaves nothing to round.
    log_y = torch.log(torch.where(dark, torch.where(centre > 0, centre, 1.0), y))
    scores = _poisson(z, y, log_y, mean.dtype).matrix()
    if not bool(dark.any()):
        return scores
    impossible = (z.detach() != 0).to(mean.dtype) @ dark.to(mean.dtype).T
    return scores.masked_fill((impossible > 0) & ~scores.detach().isnan(), -torch.inf)


def poisson_with_floor(measured: Tensor, mean: Tensor) -> Bilinear:
    """The bilinear form of counts, in which a count at a mean of 0 costs 69 nats."""
    check_pixels(measured, mean)
    z, y = (_rows(tensor.to(torch.float64)) for tensor in (measured, mean))
    return _poisson(z, y, torch.log(y.clamp(min=DARK_FLOOR)), mean.dtype)


def _poisson(z: Tensor, y: Tensor, log_y: Tensor, dtype: torch.dtype) -> Bilinear:
    """(z - m) . (log y - l) with m . log y and l . z in the biases."""
    centre, centre_log = centre_of(y), centre_of(log_y)
    row_bias = (z - centre) @ centre_log - torch.lgamma(z + 1).sum(1)
    return _rounded(z - centre, log_y - centre_log, row_bias, log_y @ centre - y.sum(1), dtype)


def from_features(features: ScoreFeatures, dtype: torch.dtype) -> Bilinear:
    """The scores that the features stand for, in this precision."""
    return _rounded(features.query, features.key, features.query_bias, features.key_bias, dtype)


def _rounded(z: Tensor, y: Tensor, row_bias: Tensor, column_bias: Tensor, dtype: torch.dtype) -> Bilinear:
    # Biases may be far larger than their sum: what rows have in common moves to the columns before rounding.
    common = centre_of(row_bias)
    return Bilinear(z.to(dtype), y.to(dtype), (row_bias - common).to(dtype), (column_bias + common).to(dtype))
