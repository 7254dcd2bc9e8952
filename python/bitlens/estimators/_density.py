"""Cross-fitted log densities: every sample is scored once, by a model that has not seen its group."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.densities import GaussianDensity, StationaryGaussianDensity
from bitlens.estimators._inputs import Groups

# A full covariance whose expected excess is above this many bits per pixel says little about truth.
_LARGE_EXCESS_BITS_PER_PIXEL = 0.1
# Spread of the held-out log densities over that of Gaussian images, above which the fit is called poor.
_POOR_FIT_SPREAD = 2.0
# Kurtosis of the whitened held-out pixels above which it is called poor; 3 for Gaussian images.
_POOR_FIT_KURTOSIS = 3.5
_LN2 = math.log(2.0)

_Gaussian = GaussianDensity | StationaryGaussianDensity


class DensityRows(NamedTuple):
    """For each sample log q(z) in nats and the expected finite-sample excess of -log q; notes on them."""

    log_prob: Tensor
    excess: Tensor
    name: str
    converged: bool
    warnings: tuple[str, ...]


def candidates(method: str, measured: Tensor, n_training: int) -> dict[str, _Gaussian]:
    """The densities that `method` may use for images of this shape; none for "auto" when there are too few.

    Raises:
        ValueError: a density that was asked for by name cannot be fitted to these images.
    """
    n_pixels = measured[0].numel()
    is_image = measured.ndim in (3, 4)
    enough = n_training >= n_pixels + 3
    if method == "gaussian" and not enough:
        raise ValueError(
            f"measured: method 'gaussian' needs at least {n_pixels + 3} images to fit {n_pixels} pixels, "
            f"got {n_training} of {measured.shape[0]} for fitting"
        )
    if method == "stationary_gaussian" and not is_image:
        raise ValueError(
            f"measured: method 'stationary_gaussian' needs shape (n, [channel,] row, column), "
            f"got {tuple(measured.shape)}"
        )
    chosen: dict[str, _Gaussian] = {}
    if method in ("auto", "stationary_gaussian") and is_image:
        chosen["stationary_gaussian"] = StationaryGaussianDensity()
    if method in ("auto", "gaussian") and enough:
        chosen["gaussian"] = GaussianDensity()
    return chosen


def cross_fit(measured: Tensor, densities: dict[str, _Gaussian], groups: Groups) -> DensityRows:
    """Each fold scored by a density fitted on the others, chosen among `densities` on a fold inside those."""
    log_prob = measured.new_empty(measured.shape[0])
    excess = torch.zeros_like(log_prob)
    fourth, second = torch.zeros_like(log_prob), torch.zeros_like(log_prob)
    names: list[str] = []
    converged = True
    for fold in range(groups.n_folds):
        training, reported = groups.folds != fold, groups.folds == fold
        name, start = _select(measured, densities, groups, fold)
        density = start.fit(measured[training])
        log_prob[reported] = density.log_prob(measured[reported])
        power = density.whiten(measured[reported]).square()
        second[reported], fourth[reported] = power.mean(1), power.square().mean(1)
        excess[reported] = density.held_out_bias_nats
        names.append(name)
        converged = converged and density.converged
    name = " or ".join(sorted(set(names)))
    kurtosis = float(fourth.mean() / second.mean() ** 2)
    notes = _notes(log_prob, excess, kurtosis, name, measured[0].numel(), converged)
    return DensityRows(log_prob, excess, name, converged, notes)


def _select(measured: Tensor, densities: dict[str, _Gaussian], groups: Groups, fold: int) -> tuple[str, _Gaussian]:
    """The best density on a validation fold, seen neither by its fit nor among the samples it will report."""
    if len(densities) == 1:
        return next(iter(densities.items()))
    training = groups.folds != fold
    validation = groups.folds == (fold + 1) % groups.n_folds
    if groups.n_folds == 2:
        # One group trains: every fifth of its samples validates.
        place = torch.cumsum(training, 0)
        validation = training & (place % 5 == 0)
    fitting = training & ~validation
    fitted: dict[str, _Gaussian] = {}
    score: dict[str, float] = {}
    for name, density in densities.items():
        if name == "gaussian" and int(fitting.sum()) < measured[0].numel() + 3:
            continue
        fitted[name] = density.fit(measured[fitting])
        score[name] = float(fitted[name].log_prob(measured[validation]).mean())
    best = max(score, key=score.__getitem__)
    return best, fitted[best]


def _notes(
    log_prob: Tensor, excess: Tensor, kurtosis: float, name: str, n_pixels: int, converged: bool
) -> tuple[str, ...]:
    n_samples = len(log_prob)
    notes: list[str] = []
    excess_bits = float(excess.mean()) / _LN2
    if excess_bits / n_pixels > _LARGE_EXCESS_BITS_PER_PIXEL:
        notes.append(
            f"{n_samples} images are few for the {n_pixels} pixels of each: fitting the density costs "
            f"an expected {excess_bits:.3g} bits per image, which the upper bound carries"
        )
    spread = float(log_prob.std()) / math.sqrt(0.5 * n_pixels)
    # Five standard deviations of the sample kurtosis of Gaussian pixels spare small samples.
    kurtosis_limit = _POOR_FIT_KURTOSIS + 5.0 * math.sqrt(24.0 / (n_samples * n_pixels))
    # A covariance fitted to few images spreads them by itself; that is what the first note says.
    if not notes and (spread > _POOR_FIT_SPREAD or kurtosis > kurtosis_limit):
        notes.append(
            f"the images are far from Gaussian (whitened pixels have kurtosis {kurtosis:.3g}, not 3; log "
            f"densities spread {spread:.3g} times as far): the upper bound from the {name} density may lie far "
            f"above the truth"
        )
    if not converged:
        notes.append("the likelihood of the stationary density was still rising when its fit stopped")
    return tuple(notes)
