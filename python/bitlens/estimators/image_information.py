"""`estimate_image_information`: bits of whole large images, as a sum over patches given what precedes them.

Pixels are taken row by row. Each is scored once, by the conditional law of a density of windows, given those pixels of
its window that come before it: any such sum of -log q bounds the entropy of the whole image from above. The noise of
pixels is independent, so that what is taken off is exact.

Excess of the default (patch 8, context 4), bits per pixel of stationary Gaussian fields of 0.4 to 1.7 bits: what pixels
outside the window would add is below 0.0005 for exponential correlations and 1/f^2 spectra, 0.0023 (0.0072) for white
scenes seen through a Gaussian blur of 2 pixels at a variance 10 (100) times the noise; the fit adds 0.015 for one image
of 128 x 128, 0.003 for five, 0.0007 for one of 512 x 512 and 0.0003 for four. Patches of 16 with the same context: a
half of the first, three times the second. Patches of 8 (16) alone: 0.06 to 0.32 (0.03 to 0.15). On a photograph with
shot noise the stationary Gaussian lies at 0.41, a mixture at 0.14: where the images are not Gaussian, the density
decides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from bitlens import __version__
from bitlens.densities import AutoregressiveDensity, Density, GaussianMixtureDensity, StationaryGaussianDensity
from bitlens.estimators._image_folds import Folds, Places, make_folds, training_places
from bitlens.estimators._image_parts import Parts
from bitlens.estimators._image_pixels import pixel_laws
from bitlens.estimators._image_tiles import Tiles, cut, windows_at
from bitlens.estimators._inputs import images, open_share, whole_number
from bitlens.estimators._seeds import take_seed
from bitlens.estimators.result import InformationEstimate
from bitlens.kernels import _backend
from bitlens.kernels.infonce_scores.op import IMPLEMENTED
from bitlens.noise import GaussianNoise, NoiseModel, PoissonGaussianNoise
from bitlens.noise._abilities import ChecksMean, ChecksMeasured, HasLimits
from bitlens.noise.base import check_map

METHODS = ("auto", "stationary_gaussian", "gaussian_mixture", "autoregressive")
# Gain of a step of a stationary fit, nats per pixel, that is not worth more time.
_TOLERANCE = 3e-4
# Windows that each density is fitted to: what a mixture or a network gains from more is not worth its time.
_MOST_OF = {StationaryGaussianDensity: 6000, GaussianMixtureDensity: 4000, AutoregressiveDensity: 2000}
# Standard errors of the difference by which a density must lose the first fold to be left out of the others.
_HOPELESS_SIGMAS = 4.0
# Values of a window up to which "auto" tries a mixture, whose covariances are free.
_MOST_MIXTURE_VALUES = 800
_SCORED_VALUES = 2_000_000
_POOR_FIT_KURTOSIS = 3.5
# Standard errors beyond which a result that no channel can give is said to be one.
_IMPOSSIBLE_SIGMAS = 4.0
_MOST_AT_LIMIT = 0.01
_TO_BITS = 1.0 / math.log(2.0)


def estimate_image_information(
    measured: Tensor | NDArray[Any],
    noise: NoiseModel,
    *,
    patch: int = 8,
    context: int = 4,
    mean: Tensor | NDArray[Any] | None = None,
    method: str = "auto",
    groups: Sequence[object] | NDArray[Any] | Tensor | None = None,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> InformationEstimate:
    """Upper bound of I(scene; measured), bits of a whole image: sum of -log q(patch | before it) - h(patch | scene).

    Args:
        measured: one image (row, column), or (n, [channel,] row, column), in the noise model's unit.
        patch: side of the squares that an image is cut into.
        context: pixels above, left and right that a patch is seen with; 0: patches alone, whose bits add up to more.
        mean: noiseless images like `measured`, for an exact h; else from noisy data alone.
        method: "stationary_gaussian", "gaussian_mixture", "autoregressive" (minutes); "auto": of the first two the
            better on other folds.
        groups: one label per image. Folds are whole groups; of a single one, parts of images with a gap between, a
            bound up to the few nats that a fit learns about the same image.

    Raises:
        TypeError, ValueError: an argument that cannot be used, named with what it needs and what came.
    """
    return _checked(measured, noise, patch, context, mean, method, groups, confidence, generator)


def _checked(
    measured: object,
    noise: NoiseModel,
    patch: int,
    context: int,
    mean: object | None,
    method: str,
    groups: Sequence[object] | NDArray[Any] | Tensor | None,
    confidence: float,
    generator: torch.Generator | None,
) -> InformationEstimate:
    if method not in METHODS:
        raise ValueError(f"method: need one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if not isinstance(noise, NoiseModel):
        raise TypeError(f"noise: need a noise model such as bitlens.GaussianNoise, got {type(noise).__name__}")
    confidence = open_share("confidence", confidence)
    patch, context = whole_number("patch", patch, 2), whole_number("context", context, 0)
    seen = _as_stack("measured", measured)
    scene = None if mean is None else _as_stack("mean", mean)
    if scene is not None and scene.shape != seen.shape:
        raise ValueError(f"mean: need the shape of measured, {tuple(seen.shape)}, got {tuple(scene.shape)}")
    if min(seen.shape[-2:]) < patch:
        raise ValueError(f"patch: need at most the {seen.shape[-2]} x {seen.shape[-1]} pixels of an image, got {patch}")
    _check_domain(seen, scene, noise)
    backend = _backend.select("infonce_scores", seen.device, IMPLEMENTED)
    seed = take_seed(generator)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad(), _backend.reproducible():
        rows, columns = seen.shape[-2:]
        tiles = Tiles(cut(rows, patch, context, 0), cut(columns, patch, context, context))
        folds = make_folds(seen, tiles, groups, draws)
        density = _density_nats(seen, noise, tiles, folds, method, patch, draws)
        parts = Parts.of(seen, scene, noise, tiles, folds, density.nats)
    stderr, degrees, notes = parts.standard_error(folds, groups is not None)
    bits = float(parts.nats.sum()) / len(seen) * _TO_BITS
    stderr *= _TO_BITS
    half = float(stats.t.ppf(0.5 + 0.5 * confidence, degrees)) * stderr
    n_pixels = seen[0].numel()
    return InformationEstimate(
        bits=bits,
        bits_per_pixel=bits / n_pixels,
        bound="upper",
        lower_bits=None,
        upper_bits=bits,
        ceiling_bits=None,
        stderr_bits=stderr,
        confidence_interval_bits=(bits - half, bits + half),
        method=f"{density.name}; {_direction(patch, context)}",
        n_samples=len(seen),
        seed=seed,
        version=__version__,
        backend=backend,
        converged=density.converged,
        warnings=(
            *_impossible(bits, stderr),
            *parts.misfit(n_pixels * len(seen), stderr / _TO_BITS * len(seen)),
            *_at_limit(seen, noise),
            *notes,
            *density.warnings,
        ),
    )


# ---- Arguments ----


def _as_stack(name: str, value: object) -> Tensor:
    """(n, channel, row, column) float64."""
    given = images(name, value)
    if given.ndim not in (2, 3, 4):
        raise ValueError(f"{name}: need shape (row, column) or (n, [channel,] row, column), got {tuple(given.shape)}")
    return given if given.ndim == 4 else given.reshape(-1, 1, *given.shape[-2:])


def _check_domain(seen: Tensor, scene: Tensor | None, noise: NoiseModel) -> None:
    if isinstance(noise, ChecksMeasured):
        noise.check_measured(seen)
    if scene is not None and isinstance(noise, ChecksMean):
        noise.check_mean(scene)
    if isinstance(noise, GaussianNoise | PoissonGaussianNoise):
        for name, parameter in noise.state_dict().items():
            check_map(name, parameter, seen.shape[1:])


# ---- Densities ----


class _Chosen(NamedTuple):
    nats: Tensor
    name: str
    converged: bool
    warnings: tuple[str, ...]


def _density_nats(
    seen: Tensor, noise: NoiseModel, tiles: Tiles, folds: Folds, method: str, patch: int, draws: torch.Generator
) -> _Chosen:
    """-log q of all tiles; where there is a choice, each fold takes the density that is best on the others."""
    dithered = seen
    if noise.discrete:
        # Counts plus U[0, 1) have a density whose cross-entropy bounds the discrete entropy of the counts.
        dithered = seen + torch.rand(seen.shape, generator=draws, dtype=seen.dtype).to(seen.device)
    n_values = seen.shape[1] * tiles.rows.window * tiles.columns.window
    densities: dict[str, Density] = {}
    if method in ("auto", "stationary_gaussian"):
        densities["stationary_gaussian"] = StationaryGaussianDensity(tolerance_nats_per_pixel=_TOLERANCE)
    if method == "gaussian_mixture" or (method == "auto" and n_values <= _MOST_MIXTURE_VALUES):
        densities["gaussian_mixture"] = GaussianMixtureDensity()
    if method == "autoregressive":
        densities["autoregressive"] = AutoregressiveDensity()
    places = [training_places(folds, tiles, fold, patch, draws) for fold in range(folds.n_folds)]
    fits = {
        name: _Fits(density, torch.zeros(folds.of_tile.shape, dtype=seen.dtype)) for name, density in densities.items()
    }
    for fold in range(folds.n_folds):
        for fit in fits.values():
            fit.score(seen if fit.density.takes_counts else dithered, tiles, folds.of_tile == fold, places[fold])
        if fold == 0:
            # One that loses by far is left out: no noise in the rows of this fold can have chosen that.
            fits = _promising(fits, folds.of_tile == fold)
    nats = torch.empty(folds.of_tile.shape, dtype=seen.dtype)
    names = set()
    for fold in range(folds.n_folds):
        others, reported = folds.of_tile != fold, folds.of_tile == fold
        best = min(fits, key=lambda name: float(fits[name].nats[others].sum()))
        nats[reported] = fits[best].nats[reported]
        names.add(best)
    notes = []
    if names == {"stationary_gaussian"} and fits["stationary_gaussian"].kurtosis > _POOR_FIT_KURTOSIS:
        notes.append(
            f"the images are far from Gaussian (whitened pixels have kurtosis "
            f"{fits['stationary_gaussian'].kurtosis:.3g}, not 3): the upper bound from the stationary_gaussian "
            f"density may lie far above the truth"
        )
    converged = all(fits[name].converged for name in names)
    if not converged:
        notes.append("the likelihood was still rising when a fit stopped")
    return _Chosen(nats, " or ".join(sorted(names)), converged, tuple(notes))


class _Fits:
    """-log q of each tile, (image, row tile, column tile) nats, by fits of one density to other parts."""

    def __init__(self, density: Density, nats: Tensor) -> None:
        self.density, self.nats = density, nats
        self.converged = True
        self._second = self._fourth = 0.0
        self._n_whitened = 0

    @property
    def kurtosis(self) -> float:
        """Of whitened pixels of a Gaussian, 3 where the images are Gaussian too."""
        return self._fourth * self._n_whitened / self._second**2 if self._second > 0.0 else math.nan

    def score(self, seen: Tensor, tiles: Tiles, reported: Tensor, places: Places) -> None:
        """Fits to the windows at `places` and scores the tiles `reported`."""
        most = _MOST_OF[self.density.__class__]
        training = windows_at(seen, tiles, *(place[:most] for place in places))
        fitted = self.density.fit(training)
        if isinstance(fitted, StationaryGaussianDensity):
            # Places in a window are alike: one mean for them all.
            level = training.mean((0, 2, 3))[:, None, None].expand(training.shape[1:])
            fitted = dataclasses.replace(fitted, mean=level.clone())
        self.converged = self.converged and fitted.converged
        laws = pixel_laws(fitted)
        for some in torch.nonzero(reported).split(max(1, _SCORED_VALUES // training[0].numel())):
            image, row, column = some.unbind(1)
            log_prob = laws.log_prob(windows_at(seen, tiles, image, tiles.rows.start[row], tiles.columns.start[column]))
            scored = tiles.rows.scored(row)[:, None, :, None] & tiles.columns.scored(column)[:, None, None, :]
            scored = scored.to(log_prob.device)
            self.nats[image, row, column] = -torch.where(scored, log_prob, 0.0).sum((1, 2, 3)).cpu()
            if laws.highest is not None:
                power = torch.where(scored, 2.0 * (laws.highest - log_prob), 0.0)
                self._second += float(power.sum())
                self._fourth += float(power.square().sum())
                self._n_whitened += int(scored.sum()) * seen.shape[1]


def _promising(fits: dict[str, _Fits], reported: Tensor) -> dict[str, _Fits]:
    """Without those that lose to the best by more than `_HOPELESS_SIGMAS` standard errors on these tiles."""
    nats = {name: fit.nats[reported] for name, fit in fits.items()}
    best = nats[min(nats, key=lambda name: float(nats[name].sum()))]
    kept = {}
    for name, fit in fits.items():
        behind = nats[name] - best
        if len(behind) < 2 or float(behind.mean()) <= _HOPELESS_SIGMAS * float(behind.std()) / math.sqrt(len(behind)):
            kept[name] = fit
    return kept


# ---- What to say ----


def _direction(patch: int, context: int) -> str:
    """The direction of the bias, in words."""
    if context == 0:
        return (
            f"upper bound: bits of independent patches of {patch} x {patch} pixels added up, above those of the image "
            f"by what neighbouring patches share"
        )
    return (
        f"upper bound: chain rule over patches of {patch} x {patch} pixels, each given {context} pixels around it that "
        f"come before, above the image's bits by what pixels further away would add"
    )


def _impossible(bits: float, stderr: float) -> list[str]:
    if not bits < -_IMPOSSIBLE_SIGMAS * stderr - 1e-9:
        return []
    return [
        "the information comes out negative, which no channel allows: the noise model has more noise than the images "
        "show; check its parameters and units. The bits are not to be trusted"
    ]


def _at_limit(seen: Tensor, noise: NoiseModel) -> list[str]:
    share = float(noise.at_limit(seen).double().mean()) if isinstance(noise, HasLimits) else 0.0
    if share <= _MOST_AT_LIMIT:
        return []
    return [
        f"{100 * share:.2g} % of the values stand at an end of the sensor's scale: the density does not know of the "
        f"heap there, so that the upper bound may rise where the sensor clips"
    ]
