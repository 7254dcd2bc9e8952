"""What the choice of training images adds to the error of a cross-fitted entropy, and what more of them would gain.

A density fitted to fewer of a fold's training images, and to all of them, is evaluated on the same held-out images. A
fit to n images misses log q of infinitely many by an error of variance ~ 1 / n: that of the change from n_fewer to
n_all images, times n_fewer / (n_all - n_fewer), is the variance of the fit to n_all. The mean loss falls with 1 / n
where the parameters are a fixed number, and more slowly where more images afford more of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Of n in the mean loss of a mixture that is chosen by its images: photographs, 600 to 15,000 patches of 16 x 16 pixels.
_EXPONENT = 0.75
# Folds below which their scatter says nothing.
_LEAST_FOLDS = 3


class Refit(NamedTuple):
    """log q of a fold's rows after a fit to all its training rows less that after one to fewer: (m,) nats."""

    change: Tensor
    labels: Tensor
    n_all: int
    n_fewer: int

    @property
    def variance_factor(self) -> float:
        """What the variance of the change is to be multiplied by for that of the fit to all."""
        return self.n_fewer / (self.n_all - self.n_fewer)

    @property
    def to_the_limit(self) -> float:
        """What the change is to be multiplied by for infinitely many images."""
        return 1.0 / ((self.n_all / self.n_fewer) ** _EXPONENT - 1.0)


class TrainingError(NamedTuple):
    """Standard deviation over training sets, nats, and the part of it that the spread of the rows does not show."""

    stderr: float
    beyond_rows: float


def training_error(refits: list[Refit], n_samples: int) -> TrainingError | None:
    """The error of the mean over all rows from the draw of the training images.

    Rows that are scored by a fit to some images vary by that fit's error too: of a fit that errs smoothly all of it is
    in their spread. Fits that jump from one training set to the next move whole folds: what their means scatter beyond
    the spread of the rows is added.
    """
    if not refits:
        return None
    within, between, squared = [], [], []
    for refit in refits:
        centred = refit.change - refit.change.mean()
        variance = _variance_of_mean(centred, refit.labels)
        between.append(float(refit.change.mean()) * refit.variance_factor**0.5)
        squared.append(refit.variance_factor * variance)
        within.append(refit.variance_factor * variance * len(refit.change) / n_samples)
    smooth = sum(within) / len(within)
    jumps = 0.0
    if len(refits) >= _LEAST_FOLDS:
        scatter = float(torch.tensor(between, dtype=torch.float64).var())
        jumps = max(0.0, scatter - sum(squared) / len(squared)) / len(refits)
    return TrainingError(math.sqrt(smooth + jumps), math.sqrt(jumps))


def error_of_parameters(bias_nats: float, n_samples: int) -> TrainingError:
    """That of a density of p parameters, p / (2 n) its bias, without refits: p / (n_training n_samples)."""
    return TrainingError(math.sqrt(2.0 * max(bias_nats, 0.0) / n_samples), 0.0)


def _variance_of_mean(centred: Tensor, labels: Tensor) -> float:
    """Of rows that vary together in groups; 0 for a single group."""
    _, places = labels.unique(return_inverse=True)
    count = int(places.max()) + 1
    totals = centred.new_zeros(count).index_add_(0, places, centred)
    return float(totals.square().sum()) * count / max(count - 1, 1) / len(centred) ** 2
