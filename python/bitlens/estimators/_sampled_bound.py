"""The known-channel lower bound on measurements drawn here, with a gradient that is unbiased for every noise.

L = mean_i [ log p(z_i | y_i) - log (1/K) sum_j p(z_i | y_j) ] + const is h(q) - mean_i h(z | y_i) of the mixture q of
the K channels. Differentiating it by y_i moves z_i alone: at fixed z, both terms have gradients of mean zero. What is
left is d/dy_i E f(z_i), f = log p(. | y_i) - log q:

* Gaussian noise and others whose samples follow the mean: through the samples.
* Photons: d/dy E f(z(N)) = E[f(z(N + 1)) - f(z(N))], N ~ Poisson(y), is an identity, while the derivative of
  y + sqrt(y) e is 33 % off at half a photon. One electron more at a pixel changes one factor of each likelihood, so
  that the difference is log r_ii - log sum_j w_ij r_ij, r the ratio of that factor, w the posterior of the scenes. For
  pure Poisson noise r_ij = y_j / (z_i + 1) up to what cancels: log y_i less the log of the posterior mean.
* Any other: (f - its mean over the other images) times the score, whose variance grows with the pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitlens.noise import GaussianNoise, NoiseModel, PoissonGaussianNoise, PoissonNoise
from bitlens.noise._pairs import DARK_FLOOR, log_prob_pairs
from bitlens.noise._pixel_codes import output_of
from bitlens.noise._rows import score_rows

_CHUNK_EVALUATIONS = 2_000_000


def sampled_lower_bound(mean: Tensor, noise: NoiseModel, generator: torch.Generator | None) -> Tensor:
    """L_K in nats per image, at most log K, from noiseless images (K, ...) float64; noise is drawn at every call."""
    fixed = mean.detach()
    if isinstance(noise, GaussianNoise):
        return _bound(noise, _drawn(noise, mean, generator), mean)
    if isinstance(noise, PoissonNoise):
        measured = _drawn(noise, fixed, generator)
        slope = _poisson_slope(noise, measured, fixed) if mean.requires_grad else None
    elif isinstance(noise, PoissonGaussianNoise):
        measured, brighter = _one_electron_more(noise, fixed, generator)
        slope = None
        if mean.requires_grad:
            slope = _photon_slope(noise, measured.detach(), brighter.detach(), fixed)
    else:
        measured = _drawn(noise, mean, generator)
        if not noise.discrete and _follows(measured, mean):
            return _bound(noise, measured, mean)
        return _by_score(noise, measured.detach(), mean)
    value = _bound(noise, measured, fixed)
    return value if slope is None else value + _with_slope(slope, mean)


def _bound(noise: NoiseModel, measured: Tensor, mean: Tensor) -> Tensor:
    return _rows(noise, measured, mean).mean() + math.log(len(mean))


def _rows(noise: NoiseModel, measured: Tensor, mean: Tensor) -> Tensor:
    """log p(z_i | y_i) - log sum_j p(z_i | y_j), (K,)."""
    scores = score_rows(noise, measured, mean)
    return scores.positive - scores.row_logsumexp


def _with_slope(slope: Tensor, mean: Tensor) -> Tensor:
    """0 with gradient slope / K."""
    return (slope * (mean - mean.detach())).sum() / len(mean)


def _drawn(noise: NoiseModel, mean: Tensor, generator: torch.Generator | None) -> Tensor:
    """Noise drawn where the generator is."""
    device = mean.device if generator is None else generator.device
    return noise.sample(mean.to(device), generator).to(mean.device)


def _follows(measured: Tensor, mean: Tensor) -> bool:
    """Whether a gradient reaches `mean` through the samples."""
    if not (measured.requires_grad and mean.requires_grad):
        return not mean.requires_grad
    (found,) = torch.autograd.grad(measured.sum(), mean, retain_graph=True, allow_unused=True)
    return found is not None


@torch.no_grad()
def _poisson_slope(noise: PoissonNoise, measured: Tensor, mean: Tensor) -> Tensor:
    posterior = torch.softmax(noise.log_prob_pairs(measured, mean), dim=1)
    expected = (posterior @ mean.flatten(1)).reshape(mean.shape)
    return torch.log(mean.clamp(min=DARK_FLOOR)) - torch.log(expected.clamp(min=DARK_FLOOR))


def _one_electron_more(
    noise: PoissonGaussianNoise, mean: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """A measurement, and that with one photo-electron more in every pixel and the same read noise."""
    device = mean.device if generator is None else generator.device
    counts = torch.poisson(mean.to(device), generator=generator).to(mean.device)
    white = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=device).to(mean.device)
    gain, offset, read_std = (value.to(mean) for value in (noise.gain, noise.offset, noise.read_std))
    well = noise.full_well_electrons

    def reported(electrons: Tensor) -> Tensor:
        kept = electrons if well is None else torch.minimum(electrons, well.to(mean))
        return output_of(gain * kept + offset + read_std * white, noise.adc_bits)

    return reported(counts), reported(counts + 1)


@torch.no_grad()
def _photon_slope(noise: PoissonGaussianNoise, measured: Tensor, brighter: Tensor, mean: Tensor) -> Tensor:
    """log r_ii - log sum_j w_ij r_ij of each pixel, some rows at a time."""
    log_posterior = torch.log_softmax(log_prob_pairs(noise, measured, mean), dim=1)
    chunk = max(1, _CHUNK_EVALUATIONS // max(1, mean.numel()))
    columns = (1,) * (mean.ndim - 1)
    parts = []
    for first in range(0, len(mean), chunk):
        rows = slice(first, first + chunk)
        before, after = measured[rows, None], brighter[rows, None]
        ratio = noise.log_prob(after, mean[None]) - noise.log_prob(before, mean[None])
        index = torch.arange(ratio.shape[0], device=mean.device)
        own = ratio[index, index + first]
        weight = log_posterior[rows].reshape(*ratio.shape[:2], *columns)
        # A scene that excludes the measurement has no ratio and no weight.
        weighted = torch.where(weight == -torch.inf, -torch.inf, ratio + weight)
        parts.append(own - torch.logsumexp(weighted, dim=1))
    return torch.cat(parts)


def _by_score(noise: NoiseModel, measured: Tensor, mean: Tensor) -> Tensor:
    fixed = mean.detach()
    rows = _rows(noise, measured, fixed)
    value = rows.mean() + math.log(len(mean))
    if not mean.requires_grad:
        return value
    others = (rows.sum() - rows) / (len(rows) - 1)
    own = noise.log_prob(measured, mean).flatten(1).sum(1)
    return value + ((rows - others).detach() * (own - own.detach())).mean()
