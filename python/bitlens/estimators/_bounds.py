"""From rows of nats to an estimate: which bounds exist, which one is reported, and what to say about it."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bitlens.estimators import _density, _known_channel
from bitlens.estimators._candidates import candidates
from bitlens.estimators._density import DensityRows
from bitlens.estimators._inputs import Groups
from bitlens.estimators._interpolated import best_lower, scenes_of_own_fold
from bitlens.estimators._known_channel import KnownChannel, LowerBound, Terms
from bitlens.estimators._refits import TrainingError
from bitlens.noise import NoiseModel, conditional_entropy_per_sample

KNOWN_CHANNEL = "known channel"
# Share of its ceiling above which a lower bound is held back by the ceiling rather than by the channel.
_CEILING_SHARE = 0.7
# Mean of log p(measured | mean) + entropy, in nats per pixel and in standard errors, above which they do not fit.
_MISFIT_NATS_PER_PIXEL, _MISFIT_SIGMAS = 0.02, 6.0
_IMAGE_CHUNK_PIXELS = 1_000_000
# Weight of the leave-one-out marginal against the density: none, odds from 1e-4 to 1e4, all.
_WEIGHTS = torch.cat(
    [
        torch.zeros(1, dtype=torch.float64),
        torch.sigmoid(torch.linspace(-9.21, 9.21, 41, dtype=torch.float64)),
        torch.ones(1, dtype=torch.float64),
    ]
)


class Found(NamedTuple):
    """An estimate in nats per image; the mean of `influence` is `nats`, its spread the statistical error.

    `training` adds to that error what the spread does not show; `entropy` and `conditional` (n,) are the rows of
    -log q(z) and h(z|y) where the estimate is their difference, `excess` what the density's finite sample costs it.
    """

    nats: float
    influence: Tensor
    bound: Literal["two-sided", "upper", "lower", "estimate"]
    method: str
    lower: float | None = None
    upper: float | None = None
    ceiling: float | None = None
    converged: bool = True
    warnings: tuple[str, ...] = ()
    training: TrainingError | None = None
    entropy: Tensor | None = None
    conditional: Tensor | None = None
    lower_density: str = ""
    excess: float | None = None


class _Upper(NamedTuple):
    """Terms of an upper bound, nats; by how much the density's finite sample raises each, where that is known."""

    terms: Terms
    name: str
    uses_density: bool
    excess: Tensor | None = None

    def corrected(self) -> Terms:
        """The terms less their excess."""
        assert self.excess is not None
        return Terms(self.terms.rows - self.excess, self.terms.own - self.excess, self.terms.weight)


def estimate(
    measured: Tensor,
    mean: Tensor | None,
    noise: NoiseModel,
    method: str,
    groups: Groups,
    generator: torch.Generator,
    n_extrapolate: int = 0,
) -> Found:
    """The bounds and the estimate that `method` gives for checked float64 images.

    Raises:
        ValueError: too few images or no image axes for the method, or a `mean` that excludes `measured`.
    """
    density = None
    if method != "known_channel":
        density = _fitted_density(measured, noise, method, groups, generator, n_extrapolate)
        if density is None and mean is None:
            raise ValueError(
                f"measured: need more images to fit a Gaussian to {measured[0].numel()} pixels, or image "
                f"axes for a stationary one, got shape {tuple(measured.shape)}"
            )
    conditional = conditional_entropy_per_sample(noise, measured, mean)
    if mean is None:
        assert density is not None
        return _from_density(density, -density.log_prob - conditional, conditional, by_density=True)
    log_likelihood = _log_likelihood(noise, measured, mean)
    if not bool(torch.isfinite(log_likelihood).all()):
        raise ValueError("mean: need noiseless images under which `measured` is possible, got probability 0")
    misfit = _misfit_notes(log_likelihood + conditional, measured[0].numel(), groups)
    if density is not None and method != "auto":
        found = _from_density(density, _density_rows(density, log_likelihood, conditional, groups), conditional)
        return found._replace(warnings=(*misfit, *found.warnings))
    channel = _known_channel.known_channel(measured, mean, noise, groups)
    lower = None if channel is None else _known_channel.lower_bound(channel, groups)
    name = KNOWN_CHANNEL
    if lower is not None and density is not None and _at_ceiling(lower):
        assert channel is not None
        best = best_lower(channel, density, groups, scenes_of_own_fold(measured, mean, noise, groups))
        lower, name = LowerBound(best.terms, best.ceiling), best.name
    upper = _best_upper(channel, density, log_likelihood, conditional, groups)
    found = _from_bounds(channel, lower, name, upper, density, groups)
    training = density.training if density is not None and upper is not None and upper.uses_density else None
    return found._replace(
        warnings=(*misfit, *found.warnings),
        training=training,
        conditional=conditional,
        lower_density="" if name == KNOWN_CHANNEL or density is None else f"the {density.name} density",
    )


def _log_likelihood(noise: NoiseModel, measured: Tensor, mean: Tensor) -> Tensor:
    """log p(measured_i | mean_i), (n,) nats, some images at a time for the sake of memory."""
    step = max(1, _IMAGE_CHUNK_PIXELS // max(1, measured[0].numel()))
    parts = zip(measured.split(step), mean.split(step), strict=True)
    return torch.cat([noise.log_prob(z, y).flatten(1).sum(1) for z, y in parts])


def _misfit_notes(residual: Tensor, n_pixels: int, groups: Groups) -> tuple[str, ...]:
    """Says so when `measured` does not follow the noise model at `mean`: the residual's mean is then not zero."""
    per_pixel = float(residual.mean()) / n_pixels
    stderr = groups.standard_error(residual) / n_pixels
    if abs(per_pixel) <= max(_MISFIT_NATS_PER_PIXEL, _MISFIT_SIGMAS * stderr):
        return ()
    return (
        f"measured does not follow the noise model at mean: the log-likelihood lies {abs(per_pixel):.3g} nats per "
        f"pixel {'below' if per_pixel < 0 else 'above'} what the model expects; check the unit of mean "
        f"(photo-electrons), the order of the images and the noise parameters. The bits are not to be trusted",
    )


def _fitted_density(
    measured: Tensor,
    noise: NoiseModel,
    method: str,
    groups: Groups,
    generator: torch.Generator,
    n_extrapolate: int,
) -> DensityRows | None:
    largest_fold = int(torch.bincount(groups.folds).max())
    densities = candidates(method, measured, noise, measured.shape[0] - largest_fold)
    if not densities:
        return None
    dithered = measured
    if noise.discrete:
        # Counts plus U[0, 1) have a density whose cross-entropy bounds the discrete entropy of the counts.
        dither = torch.rand(measured.shape, generator=generator, dtype=measured.dtype, device=generator.device)
        dithered = measured + dither.to(measured.device)
    return _density.cross_fit(measured, dithered, densities, groups, n_extrapolate, to_the_limit=method == "auto")


def _from_density(density: DensityRows, rows: Tensor, conditional: Tensor, by_density: bool = False) -> Found:
    """`by_density`: the estimate, not the bound, takes h(z|y) from the density, which knows y by all pixels at once."""
    # Where nobody knows what the finite sample costs, the bound is all there is.
    known = bool(torch.isfinite(density.excess).all())
    corrected = rows - density.excess if known else rows
    upper = float(rows.mean())
    if known and by_density and density.conditional is not None:
        conditional = density.conditional
        corrected = -density.log_prob - conditional - density.excess
    return Found(
        nats=float(corrected.mean()),
        influence=corrected,
        bound="estimate" if known else "upper",
        method=density.name,
        upper=upper,
        converged=density.converged,
        warnings=density.warnings,
        training=density.training,
        entropy=corrected + conditional,
        excess=float(density.excess.mean()),
        conditional=conditional,
    )


def _best_upper(
    channel: KnownChannel | None,
    density: DensityRows | None,
    log_likelihood: Tensor,
    conditional: Tensor,
    groups: Groups,
) -> _Upper | None:
    """E[log p(z|y) - log(w m(z) + (1 - w) q(z))], m the leave-one-out marginal, w fitted on other folds.

    w = 1 is the leave-one-out bound, w = 0 that of the density. Through m the other folds know of this one by a
    share of 1/n each; w is one number near its optimum, where that moves nothing.
    """
    excess = density.excess if density is not None and bool(torch.isfinite(density.excess).all()) else None
    weight = torch.zeros_like(conditional)
    if channel is not None and channel.exact:
        weight = weight + 1.0 if density is None else _mixture_weight(channel, density, groups)
    if density is not None and not bool(weight.any()):
        rows = _density_rows(density, log_likelihood, conditional, groups)
        return _Upper(Terms(rows, rows, None), density.name, True, excess)
    if channel is None or not channel.exact:
        return None
    log_marginal, name = channel.log_marginal, "leave-one-out scenes"
    uses_density = False
    if density is not None:
        log_marginal = _log_mixture(weight, channel.log_marginal, density.log_prob)
        uses_density = bool((weight < 1.0).any())
        if uses_density:
            name = f"mixture of {name} and {density.name}"
    rows = log_likelihood - log_marginal
    # How much of each term's marginal comes from the scenes, whose draw is random too; shares sum to the weights.
    share = torch.exp(torch.log(weight) + channel.log_marginal - log_marginal)
    left = None if excess is None or not uses_density else excess * (1.0 - share)
    return _Upper(Terms(rows, rows + share.mean(), share), name, uses_density, left)


def _log_mixture(weight: Tensor, log_marginal: Tensor, log_density: Tensor) -> Tensor:
    return torch.logaddexp(torch.log(weight) + log_marginal, torch.log1p(-weight) + log_density)


def _mixture_weight(channel: KnownChannel, density: DensityRows, groups: Groups) -> Tensor:
    """For each sample the weight of the tightest bound over the samples of the other folds."""
    weights = _WEIGHTS.to(channel.log_marginal)
    terms = _log_mixture(weights[:, None], channel.log_marginal, density.log_prob)
    result = torch.empty_like(channel.log_marginal)
    for fold in range(groups.n_folds):
        others = terms[:, groups.folds != fold].mean(1)
        result[groups.folds == fold] = weights[int(others.argmax())]
    return result


def _density_rows(density: DensityRows, log_likelihood: Tensor, conditional: Tensor, groups: Groups) -> Tensor:
    """-log q(z) - h(z|y), plus the share of log p(z|y) + h(z|y) that made it vary least in the other folds.

    That sum has mean zero given the scene: none of it suits strong signals, all of it weak ones.
    """
    rows = -density.log_prob - conditional
    residual = log_likelihood + conditional
    result = rows.clone()
    for fold in range(groups.n_folds):
        others, reported = groups.folds != fold, groups.folds == fold
        centred = residual[others] - residual[others].mean()
        power = float(centred.square().sum())
        if power > 0.0:
            slope = -float((centred * rows[others]).sum()) / power
            result[reported] += slope * residual[reported]
    return result


def _from_bounds(
    channel: KnownChannel | None,
    lower: LowerBound | None,
    lower_name: str,
    upper: _Upper | None,
    density: DensityRows | None,
    groups: Groups,
) -> Found:
    uses_density = upper is not None and upper.uses_density
    warnings = density.warnings if density is not None and uses_density else ()
    converged = density is None or not uses_density or density.converged
    if lower is None:
        note = "no lower bound: the noise model has no bilinear scores and the pairs are too many to evaluate"
        if upper is None:
            raise ValueError(f"measured: {note}; need fewer images or pixels, got {len(groups.labels)} images")
        return Found(
            nats=float(upper.terms.rows.mean()),
            influence=upper.terms.influence(channel),
            bound="upper",
            method=f"upper: {upper.name}",
            upper=float(upper.terms.rows.mean()),
            converged=converged,
            warnings=(*warnings, note),
        )
    lower_nats = float(lower.terms.rows.mean())
    upper_nats = None if upper is None else float(upper.terms.rows.mean())
    at_ceiling = _at_ceiling(lower)
    if at_ceiling:
        note = _ceiling_note(lower_nats, lower.ceiling, lower_name, groups)
        if upper is not None and not uses_density:
            note += "; the leave-one-out upper bound is loose there too"
        warnings = (note, *warnings)
    method = f"lower: {lower_name}" if upper is None else f"lower: {lower_name}; upper: {upper.name}"
    bound: Literal["two-sided", "upper", "lower", "estimate"]
    if upper is None:
        bound, terms = "lower", lower.terms
    elif at_ceiling and upper.excess is None:
        bound, terms = "upper", upper.terms
    elif at_ceiling:
        # What is known to be too much goes, as without the noiseless images.
        bound, terms = "estimate", upper.corrected()
    else:
        # The bracket says how good the density is; notes on its fit would only repeat it.
        warnings = ()
        bound, terms = "two-sided", _known_channel.midpoint(lower.terms, upper.terms)
    return Found(
        nats=float(terms.rows.mean()),
        influence=terms.influence(channel),
        bound=bound,
        method=method,
        lower=lower_nats,
        upper=upper_nats,
        ceiling=lower.ceiling,
        converged=converged,
        warnings=warnings,
    )


def _at_ceiling(lower: LowerBound) -> bool:
    return float(lower.terms.rows.mean()) > _CEILING_SHARE * lower.ceiling


def _ceiling_note(lower: float, ceiling: float, name: str, groups: Groups) -> str:
    scenes = "groups of scenes" if groups.given else "scenes"
    if name != KNOWN_CHANNEL:
        return (
            f"the lower bound of {lower / math.log(2.0):.2f} bits stands near its ceiling of "
            f"{ceiling / math.log(2.0):.2f} bits for {groups.count} independent {scenes}, so it does not say how far "
            f"below the upper bound the truth lies"
        )
    return (
        f"the lower bound of {lower / math.log(2.0):.2f} bits stands at its ceiling: with {groups.count} "
        f"independent {scenes} it cannot pass log2({groups.count}) = {ceiling / math.log(2.0):.2f} bits, so "
        f"it does not say how far below the upper bound the truth lies"
    )
