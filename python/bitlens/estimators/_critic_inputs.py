"""Samples as learned critics take them: maps of each coordinate, fitted on training rows alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

PREPROCESSING = ("auto", "rank", "standardize")
# Sample quantiles of more coordinates than these cost more than the rest of a fit.
MOST_RANKED_COORDINATES = 64
# Outliers of a standardised coordinate would drown the others; a tanh far out keeps them apart.
_LARGEST_STANDARDISED = 8.0

# Sharp edges and fast turns along a single coordinate are slow to learn from the coordinate itself.
_WAVES = 8

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class InputMap:
    """(n, d) samples -> (n, d) coordinates and, for d > 1, their common size; for d = 1, waves of the rank.

    "rank": each coordinate becomes the normal score of its rank among the training rows, linear in between, so that
    heavy tails and invertible maps of single coordinates make no difference. "standardize": mean 0 and deviation 1.
    The common size is the normal score of log sum (coordinate / median magnitude)^2 of the samples as they came:
    rows of heavy-tailed data, or images of varying brightness, share it, and ranks of single coordinates hide it.
    """

    knots: tuple[tuple[_Array, _Array], ...]
    centre: _Array
    width: _Array
    middle: _Array
    magnitude: _Array
    size_knots: tuple[_Array, _Array] | None
    n_coordinates: int

    def __call__(self, samples: Tensor) -> Tensor:
        """float32 (n, d + 1), or (n, 1 + waves) of a single coordinate."""
        values = samples.cpu().numpy()
        if self.knots:
            mapped = np.stack([np.interp(values[:, i], *knots) for i, knots in enumerate(self.knots)], axis=1)
        else:
            mapped = (values - self.centre) / self.width
            mapped = _LARGEST_STANDARDISED * np.tanh(mapped / _LARGEST_STANDARDISED)
        if self.n_coordinates == 1:
            share = special.ndtr(mapped)
            waves = [wave(math.pi * k * share) for k in range(1, _WAVES + 1) for wave in (np.cos, np.sin)]
            mapped = np.concatenate([mapped, *waves], axis=1)
        if self.size_knots is not None:
            size = np.interp(_log_size(values, self.middle, self.magnitude), *self.size_knots)
            mapped = np.concatenate([mapped, size[:, None]], axis=1)
        return torch.from_numpy(mapped.astype(np.float32)).to(samples.device)


def fit_input_map(training: Tensor, preprocess: str) -> InputMap:
    """The map of (n, d) float64 training rows; `preprocess` is one of PREPROCESSING."""
    values = training.cpu().numpy()
    n_coordinates = values.shape[1]
    ranked = preprocess == "rank" or (preprocess == "auto" and n_coordinates <= MOST_RANKED_COORDINATES)
    knots = tuple(_normal_scores(values[:, i]) for i in range(n_coordinates)) if ranked else ()
    # Squares of the largest float64 overflow.
    largest = np.maximum(np.abs(values).max(axis=0), 1e-300)
    centre, width = (largest * moment for moment in ((values / largest).mean(axis=0), (values / largest).std(axis=0)))
    middle = np.median(values, axis=0)
    magnitude = np.median(np.abs(values - middle), axis=0)
    magnitude = np.where(magnitude > 0.0, magnitude, np.where(width > 0.0, width, 1.0))
    size_knots = _normal_scores(_log_size(values, middle, magnitude)) if n_coordinates > 1 else None
    return InputMap(
        knots=knots,
        centre=centre,
        width=np.where(width > 0.0, width, 1.0),
        middle=middle,
        magnitude=magnitude,
        size_knots=size_knots,
        n_coordinates=n_coordinates,
    )


def _normal_scores(values: _Array) -> tuple[_Array, _Array]:
    """Distinct values in order, and the normal score of the middle rank of each."""
    distinct, counts = np.unique(values, return_counts=True)
    ranks = np.cumsum(counts) - 0.5 * (counts - 1)
    return distinct, special.ndtri(ranks / (len(values) + 1))


def _log_size(values: _Array, middle: _Array, magnitude: _Array) -> _Array:
    scaled = np.abs((values - middle) / magnitude)
    largest = np.maximum(scaled.max(axis=1), 1e-300)
    # A row in the middle of everything has no size: its place is below all others.
    scaled[scaled.max(axis=1) == 0.0] = 1e-300
    total: _Array = np.log(largest) + 0.5 * np.log(np.square(scaled / largest[:, None]).sum(axis=1))
    return total
