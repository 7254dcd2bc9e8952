"""Cross-fitted log densities: every sample is scored once, by a model that has not seen its group."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.densities import (
    Density,
    GaussianCopulaDensity,
    GaussianDensity,
    GaussianMixtureDensity,
    ScaleMixtureDensity,
    ShiftMixtureDensity,
    StationaryGaussianDensity,
    held_out_bias_nats,
)
from bitlens.densities._fitted import fitted_gaussian
from bitlens.estimators._inputs import N_FOLDS, Groups
from bitlens.estimators._refits import Refit, TrainingError, error_of_parameters, training_error

# A full covariance whose expected excess is above this many bits per pixel says little about truth.
_LARGE_EXCESS_BITS_PER_PIXEL = 0.1
# Spread of the held-out log densities over that of Gaussian images, above which the fit is called poor.
_POOR_FIT_SPREAD = 2.0
# Kurtosis of the whitened held-out pixels above which it is called poor; 3 for Gaussian images.
_POOR_FIT_KURTOSIS = 3.5
_LN2 = math.log(2.0)

# Images to which every density is fitted once, to see which are worth the whole work, and on which it is scored.
_TRIAL_IMAGES, _TRIAL_VALIDATION = 1200, 400
# Standard errors of the difference by which a density must lose that trial to be left out.
_HOPELESS_SIGMAS = 4.0
# Standard errors by which a density of unknown finite-sample cost must win the choice.
_DOUBT_SIGMAS = 2.0
# Images drawn from a density to see whether the data are typical of it; nats and standard errors beyond which not.
_TYPICAL_DRAWS = 400
_TYPICAL_NATS, _TYPICAL_NATS_PER_PIXEL, _TYPICAL_SIGMAS = 1.0, 0.02, 6.0


class DensityRows(NamedTuple):
    """For each sample log q(z) in nats and the expected finite-sample excess of -log q; notes on them.

    `training` is what the draw of the training images does to their mean, where refits tell. `conditional` is
    E_q[h(z|y) given z] of a density made of the noise model with one number (brightness, shift) behind all pixels, if
    the images are like its own.
    """

    log_prob: Tensor
    excess: Tensor
    name: str
    converged: bool
    warnings: tuple[str, ...]
    training: TrainingError | None = None
    conditional: Tensor | None = None


def cross_fit(
    measured: Tensor,
    dithered: Tensor,
    densities: dict[str, Density],
    groups: Groups,
    n_extrapolate: int = 0,
    to_the_limit: bool = False,
) -> DensityRows:
    """Each fold scored by a density fitted on the others, chosen among `densities` on a fold inside those.

    `dithered` is what densities that do not take counts see. Densities that lose by far on a part of the images are
    left out at once: the choice among the rest stays one of rows that are not reported. `to_the_limit`: the excess of a
    density that does not know its own is what refits to fewer images tell.
    """
    log_prob = measured.new_empty(measured.shape[0])
    excess = torch.zeros_like(log_prob)
    conditional = torch.full_like(log_prob, math.nan)
    fourth, second = torch.zeros_like(log_prob), torch.zeros_like(log_prob)
    names: list[str] = []
    converged, typical = True, True
    refits: list[Refit] = []
    densities = promising(measured, dithered, densities, groups)
    for fold in range(groups.n_folds):
        training, reported = groups.folds != fold, groups.folds == fold
        # With a choice to make, all folds have a fit to fewer images; a single density is fitted once more, save a
        # Gaussian.
        again = len(densities) > 1 or to_the_limit or (fold == 0 and not _counts_parameters(densities))
        name, start, fewer = select(measured, dithered, densities, groups, fold, again)
        images = measured if start.takes_counts else dithered
        density = start.fit(images[training])
        gaussian = isinstance(density, GaussianDensity | StationaryGaussianDensity)
        if isinstance(density, GaussianDensity | StationaryGaussianDensity):
            fitted = fitted_gaussian(name, density.mean, density.cholesky)
            whitened = fitted.whiten(images[reported])
            log_prob[reported] = fitted.log_prob_of_whitened(whitened)
            power = whitened.square()
            second[reported], fourth[reported] = power.mean(1), power.square().mean(1)
        else:
            log_prob[reported] = density.log_prob(images[reported])
        if fewer is not None:
            change = log_prob[reported] - fewer.density.log_prob(images[reported])
            refits.append(Refit(change, groups.labels[reported], int(training.sum()), fewer.n_images))
        if fold == 0 and not gaussian:
            typical = _typical(density, log_prob[reported])
        if fold == 0 and isinstance(density, GaussianCopulaDensity):
            typical = typical and _alike(density, images[training], images[reported])
        if isinstance(density, ScaleMixtureDensity | ShiftMixtureDensity):
            conditional[reported] = density.conditional_entropy(images[reported])
        excess[reported] = density.held_out_bias_nats
        if to_the_limit and fewer is not None and math.isnan(density.held_out_bias_nats):
            excess[reported] = refits[-1].to_the_limit * refits[-1].change
        if n_extrapolate:
            limit = _at_infinity(start, density, images, training, reported, groups, n_extrapolate)
            excess[reported] = limit - log_prob[reported]
        names.append(name)
        converged = converged and density.converged
    name = " or ".join(sorted(set(names))) + (" extrapolated" if n_extrapolate else "")
    whitened_rows = second > 0.0
    kurtosis = math.nan
    if bool(whitened_rows.any()):
        kurtosis = float(fourth[whitened_rows].mean() / second[whitened_rows].mean() ** 2)
    notes = _notes(log_prob, excess, kurtosis, name, measured[0].numel(), converged)
    if not typical:
        notes = (
            *notes,
            f"the images are not like those of the {name} density, the best at hand: the upper bound from it may lie "
            f"far above the truth",
        )
    of_noise = typical and bool(torch.isfinite(conditional).all())
    training_part = training_error(refits, len(log_prob))
    if not refits and bool(torch.isfinite(excess).all()) and not n_extrapolate:
        training_part = error_of_parameters(float(excess.mean()), len(log_prob))
    return DensityRows(log_prob, excess, name, converged, notes, training_part, conditional if of_noise else None)


def _counts_parameters(densities: dict[str, Density]) -> bool:
    """Whether all are Gaussians, whose number of parameters says what refits would."""
    return all(isinstance(density, GaussianDensity | StationaryGaussianDensity) for density in densities.values())


def _typical(density: Density, log_prob: Tensor) -> bool:
    """Whether images that the fit has not seen have the log densities that images drawn from it have, on average."""
    draws = density.sample(_TYPICAL_DRAWS, torch.Generator().manual_seed(0))
    drawn = density.log_prob(draws.to(log_prob.device))
    stderr = math.sqrt(float(drawn.var()) / len(drawn) + float(log_prob.var()) / len(log_prob))
    limit = max(_TYPICAL_NATS, _TYPICAL_NATS_PER_PIXEL * draws[0].numel(), _TYPICAL_SIGMAS * stderr)
    bias = density.held_out_bias_nats if math.isfinite(density.held_out_bias_nats) else 0.0
    return abs(float(drawn.mean() - log_prob.mean()) - bias) <= limit


def _alike(density: Density, training: Tensor, reported: Tensor) -> bool:
    """Whether a mixture takes images drawn from `density` for as likely as these, by ranks.

    The log densities of a copula are those of its draws whatever the images, whose marginals and correlations it has.
    Reference: Mann and Whitney 1947, doi:10.1214/aoms/1177730491.
    """
    mixture = GaussianMixtureDensity().fit(training)
    draws = density.sample(_TYPICAL_DRAWS, torch.Generator().manual_seed(0)).to(reported)
    drawn, given = mixture.log_prob(draws), mixture.log_prob(reported)
    share = float((drawn[:, None] < given).double().mean())
    stderr = math.sqrt((len(drawn) + len(given) + 1) / (12 * len(drawn) * len(given)))
    return abs(share - 0.5) <= _TYPICAL_SIGMAS * stderr


def _at_infinity(
    density: Density,
    fitted: Density,
    images: Tensor,
    training: Tensor,
    reported: Tensor,
    groups: Groups,
    n_extrapolate: int,
) -> Tensor:
    """log q(z) as infinitely many training images would give it: for each row the straight line in one over their
    number, at zero. What a density knows of its finite-sample cost is taken off first: near as many images as pixels
    that of a covariance is no straight line.

    Raises:
        ValueError: a part is too small for the density.
    """
    parts, counts = fits_of_parts(density, images, training, groups, n_extrapolate, "n_extrapolate")
    rows = [
        fit.log_prob(images[reported]) + (fit.held_out_bias_nats if math.isfinite(fit.held_out_bias_nats) else 0.0)
        for fit in (fitted, *parts)
    ]
    line = torch.tensor([[1.0, 1.0 / count] for count in [int(training.sum()), *counts]], dtype=torch.float64)
    weights = torch.linalg.pinv(line)[0].to(rows[0])
    return weights @ torch.stack(rows)


def fits_of_parts(
    density: Density, images: Tensor, training: Tensor, groups: Groups, n_parts: int, argument: str
) -> tuple[list[Density], list[int]]:
    """Fits to a half, a quarter, ... of the training rows, and how many these are.

    `argument` is what the caller's caller asked for parts by.

    Raises:
        ValueError: a part is too small for the density.
    """
    fits: list[Density] = []
    counts: list[int] = []
    for power in range(1, n_parts + 1):
        # Whole groups; labels of images without groups are their places.
        part = training & (groups.labels // N_FOLDS % 2**power == 0)
        try:
            fits.append(density.fit(images[part]))
        except ValueError as error:
            raise ValueError(
                f"{argument}: a fit to {int(part.sum())} images, 1 of {2**power} for training, failed: {error}"
            ) from error
        counts.append(int(part.sum()))
    return fits, counts


def promising(measured: Tensor, dithered: Tensor, densities: dict[str, Density], groups: Groups) -> dict[str, Density]:
    """Without those that lose by far a trial on a part of the training rows of the first fold."""
    if len(densities) < 3:
        return densities
    training, validation = _inner_split(groups, 0)
    training = torch.nonzero(training)[:_TRIAL_IMAGES, 0]
    validation = torch.nonzero(validation)[:_TRIAL_VALIDATION, 0]
    scores: dict[str, Tensor] = {}
    for name, density in densities.items():
        images = measured if density.takes_counts else dithered
        if name == "gaussian" and len(training) < measured[0].numel() + 3:
            continue
        try:
            scores[name] = density.fit(images[training]).log_prob(images[validation])
        except ValueError:  # pixels that are constant, for example: the others may serve
            continue
    if not scores:
        return densities
    best = max(scores, key=lambda name: float(scores[name].mean()))
    kept = {}
    for name, density in densities.items():
        if name not in scores and name != "gaussian":
            continue
        if name in scores:
            # An excess that more images shrink is forgiven.
            fewer = float(len(training)) / float((groups.folds != 0).sum())
            behind = scores[best] - scores[name]
            stderr = float(behind.std()) / math.sqrt(len(behind))
            gain = _expected_gain(name, measured[0].numel(), len(training), fewer)
            if float(behind.mean()) - gain > _HOPELESS_SIGMAS * stderr:
                continue
        kept[name] = density
    return kept


def _expected_gain(name: str, n_pixels: int, n_training: int, fewer: float) -> float:
    """What a full covariance gains by all images in place of a part, nats; little for the others."""
    if name != "gaussian":
        return 0.0
    return held_out_bias_nats(n_training, n_pixels) - held_out_bias_nats(round(n_training / fewer), n_pixels)


def _inner_split(groups: Groups, fold: int) -> tuple[Tensor, Tensor]:
    """Rows to fit and to validate, all outside `fold`."""
    training = groups.folds != fold
    validation = groups.folds == (fold + 1) % groups.n_folds
    if groups.n_folds == 2:
        # One group trains: every fifth of its samples validates.
        place = torch.cumsum(training, 0)
        validation = training & (place % 5 == 0)
    return training & ~validation, validation


class Fewer(NamedTuple):
    """A density fitted to a part of a fold's training images, and how many these were."""

    density: Density
    n_images: int


def select(
    measured: Tensor, dithered: Tensor, densities: dict[str, Density], groups: Groups, fold: int, fit: bool = False
) -> tuple[str, Density, Fewer | None]:
    """The best density on a validation fold, seen neither by its fit nor among the samples it will report.

    Also its fit to the images that neither validate nor are reported: of a single density only if `fit`.
    """
    if len(densities) == 1 and not fit:
        name, only = next(iter(densities.items()))
        return name, only, None
    fitting, validation = _inner_split(groups, fold)
    n_fitting = int(fitting.sum())
    fitted: dict[str, Density] = {}
    rows: dict[str, Tensor] = {}
    for name, density in densities.items():
        if name == "gaussian" and n_fitting < measured[0].numel() + 3:
            continue
        images = measured if density.takes_counts else dithered
        try:
            fitted[name] = density.fit(images[fitting])
        except ValueError:
            # Too few for the only one: whether all images are, its own fit says.
            if len(densities) > 1:
                raise
            continue
        if len(densities) > 1:
            rows[name] = fitted[name].log_prob(images[validation])
    if not fitted:
        name, only = next(iter(densities.items()))
        return name, only, None
    best = next(iter(fitted)) if len(densities) == 1 else _best(rows, fitted)
    start = fitted[best] if len(densities) > 1 else densities[best]
    return best, start, Fewer(fitted[best], n_fitting)


def _best(rows: dict[str, Tensor], fitted: dict[str, Density]) -> str:
    """The highest mean of log q, finite-sample costs as they will be at the end added to it.

    A density that does not know its cost must win beyond doubt.
    """
    known = [name for name in rows if math.isfinite(fitted[name].held_out_bias_nats)]
    corrected = {name: rows[name] + (fitted[name].held_out_bias_nats if name in known else 0.0) for name in rows}
    best = max(known or rows, key=lambda name: float(corrected[name].mean()))
    for name in [name for name in rows if name not in known]:
        gain = rows[name] - corrected[best]
        if float(gain.mean()) > _DOUBT_SIGMAS * float(gain.std()) / math.sqrt(len(gain)):
            best = name
    return best


def _notes(
    log_prob: Tensor, excess: Tensor, kurtosis: float, name: str, n_pixels: int, converged: bool
) -> tuple[str, ...]:
    n_samples = len(log_prob)
    notes: list[str] = []
    excess_bits = float(excess.nan_to_num().mean()) / _LN2
    if excess_bits / n_pixels > _LARGE_EXCESS_BITS_PER_PIXEL:
        notes.append(
            f"{n_samples} images are few for the {n_pixels} pixels of each: fitting the density costs "
            f"an expected {excess_bits:.3g} bits per image, which the upper bound carries"
        )
    if math.isnan(kurtosis):  # not a Gaussian
        return (*notes, *([] if converged else ["the fit of the density had not converged when it stopped"]))
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
