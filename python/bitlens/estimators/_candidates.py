"""Which densities an estimate may use: by name, or those that "auto" chooses among."""

from __future__ import annotations

import torch
from torch import Tensor

from bitlens.densities import (
    AutoregressiveDensity,
    Density,
    FactorMixtureDensity,
    FlowDensity,
    GaussianCopulaDensity,
    GaussianDensity,
    GaussianMixtureDensity,
    IndependentPixelsDensity,
    ScaleMixtureDensity,
    SceneMixtureDensity,
    ShiftMixtureDensity,
    StationaryGaussianDensity,
)
from bitlens.densities._channel_mixture import counts_photons, electrons, is_fast
from bitlens.noise import NoiseModel

# Images below which "auto" keeps to Gaussians.
_LEAST_FOR_MIXTURES = 100
_LEAST_FOR_GAUSSIAN_MIXTURE = 400
# Nats an image that free marginals must promise, beside what some four numbers a pixel cost by being fitted.
_LEAST_MARGINAL_NATS, _MARGINAL_COST = 0.5, 2.0
# Images x shifts x pixels up to which shifts of a pattern are tried, a second on two cores.
_MOST_SHIFT_SCORES = 400_000_000

METHODS = (
    "gaussian",
    "stationary_gaussian",
    "gaussian_mixture",
    "factor_mixture",
    "gaussian_copula",
    "scale_mixture",
    "independent_pixels",
    "scene_mixture",
    "shift_mixture",
    "autoregressive",
    "flow",
)
_OF_NOISE = ("scale_mixture", "independent_pixels", "scene_mixture", "shift_mixture")


def candidates(method: str, measured: Tensor, noise: NoiseModel, n_training: int) -> dict[str, Density]:
    """The densities that `method` may use for images of this shape; none for "auto" when there are too few.

    Raises:
        ValueError: a density that was asked for by name cannot be fitted to these images.
    """
    n_pixels = measured[0].numel()
    is_image = measured.ndim in (3, 4)
    enough = n_training >= n_pixels + 3
    fast, counts = is_fast(noise), counts_photons(noise, measured.shape[1:])
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
    one_channel = measured.ndim == 3 or (measured.ndim == 4 and measured.shape[1] == 1)
    if method == "shift_mixture" and not one_channel:
        raise ValueError(
            f"measured: method 'shift_mixture' needs shape (n, row, column) or one channel, got {tuple(measured.shape)}"
        )
    if method == "gaussian_mixture":
        return {"gaussian_mixture": GaussianMixtureDensity()}
    if method == "factor_mixture":
        return {"factor_mixture": FactorMixtureDensity()}
    if method == "gaussian_copula":
        return {"gaussian_copula": GaussianCopulaDensity()}
    if method == "autoregressive":
        return {"autoregressive": AutoregressiveDensity()}
    if method == "flow":
        return {"flow": FlowDensity()}
    if method in _OF_NOISE:
        if not fast:
            raise ValueError(
                f"noise: method {method!r} needs Gaussian, Poisson or Poisson-Gaussian noise without ADC and full "
                f"well, got {type(noise).__name__}"
            )
        if method in ("scale_mixture", "independent_pixels") and not counts:
            raise ValueError(
                f"noise: method {method!r} needs noise that grows with the mean, got {type(noise).__name__}"
            )
    chosen: dict[str, Density] = {}
    if method in ("auto", "stationary_gaussian") and is_image:
        chosen["stationary_gaussian"] = StationaryGaussianDensity()
    if method in ("auto", "gaussian") and enough:
        chosen["gaussian"] = GaussianDensity()
    if method == "auto" and is_image and n_training >= _LEAST_FOR_GAUSSIAN_MIXTURE:
        chosen["gaussian_mixture"] = GaussianMixtureDensity()
    if method == "auto" and enough and n_training >= _LEAST_FOR_GAUSSIAN_MIXTURE and _marginals_promise(measured):
        chosen["gaussian_copula"] = GaussianCopulaDensity()
    auto = method == "auto" and fast and n_training >= _LEAST_FOR_MIXTURES
    lit = counts and auto and float(electrons(noise, measured).mean()) > 0.0
    if method == "scale_mixture" or lit:
        chosen["scale_mixture"] = ScaleMixtureDensity(noise)
    if method == "independent_pixels" or lit:
        chosen["independent_pixels"] = IndependentPixelsDensity(noise)
    if method == "scene_mixture" or auto:
        chosen["scene_mixture"] = SceneMixtureDensity(noise)
    shifts_fit = one_channel and measured.shape[0] * n_pixels**2 <= _MOST_SHIFT_SCORES
    if method == "shift_mixture" or (auto and shifts_fit):
        chosen["shift_mixture"] = ShiftMixtureDensity(noise)
    return chosen


def _marginals_promise(measured: Tensor) -> bool:
    """Whether pixels are so far from normal, each alone, that a free law for each may repay its fit.

    By third and fourth cumulants: skewness^2 / 12 + excess^2 / 48 nats a pixel, 1 / n of that by chance.
    Reference: Comon 1994, doi:10.1016/0165-1684(94)90029-9 (negentropy).
    """
    pixels = measured.flatten(1).to(torch.float64)
    pixels = pixels[:, pixels.amax(0) > pixels.amin(0)]  # one that never changes has no law to be found
    centred = pixels - pixels.mean(0)
    scaled = centred / centred.square().mean(0).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    power = scaled.square()
    skewness, excess = (power * scaled).mean(0), power.square().mean(0) - 3.0
    gain = float((skewness.square() / 12.0 + excess.square() / 48.0).sum())
    cost = (1.0 + _MARGINAL_COST) * pixels.shape[1] / len(pixels)
    return gain > cost + _LEAST_MARGINAL_NATS
