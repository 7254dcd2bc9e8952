"""Mixtures whose components are a noise model at fixed noiseless images: what densities made of them share."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.densities.base import as_images
from bitlens.noise import NoiseModel, PoissonGaussianNoise
from bitlens.noise._abilities import HasMoments, HasPairs
from bitlens.noise._pairs import log_prob_pairs

# Scores kept at a time while measurements are scored.
_CHUNK_PAIRS = 8_000_000
# A component never gets a weight of exactly zero: a held-out image may need it.
_LEAST_WEIGHT = 1e-12


class ChannelMixture(NamedTuple):
    """q(z) = sum_k w_k p(z | mean_k): means (K, ...) in photo-electrons, log weights (K,)."""

    noise: NoiseModel
    means: Tensor
    log_weights: Tensor

    @torch.no_grad()
    def log_prob(self, measured: Tensor) -> Tensor:
        """log q(z), (n, ...) -> (n,) nats."""
        images = as_images(measured, self.means.shape[1:])
        rows = max(1, _CHUNK_PAIRS // len(self.means))
        parts = [
            torch.logsumexp(log_prob_pairs(self.noise, part, self.means) + self.log_weights, 1)
            for part in images.split(rows)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def conditional_entropy(self, measured: Tensor) -> Tensor:
        """E_q[h(z|mean) given z], entropies of the components by their share in each image: (n, ...) -> (n,) nats."""
        images = as_images(measured, self.means.shape[1:])
        entropies = self.noise.entropy(self.means).flatten(1).sum(1).to(torch.float64)
        rows = max(1, _CHUNK_PAIRS // len(self.means))
        parts = [
            posteriors(log_prob_pairs(self.noise, part, self.means), self.log_weights) @ entropies
            for part in images.split(rows)
        ]
        return torch.cat(parts)

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """n measurements, (n, ...) float64."""
        component = torch.multinomial(self.log_weights.exp().cpu(), n, replacement=True, generator=generator)
        return self.noise.sample(self.means[component], generator).to(torch.float64)


def fitted_mixture(density: str, noise: NoiseModel, means: Tensor | None, log_weights: Tensor | None) -> ChannelMixture:
    """Noise, means and weights together.

    Raises:
        RuntimeError: there are none, because the density is not fitted yet.
    """
    if means is None or log_weights is None:
        raise RuntimeError(f"{density}: call fit first; it returns the fitted density")
    return ChannelMixture(noise, means, log_weights)


def is_fast(noise: NoiseModel) -> bool:
    """Whether scores of all pairs cost no more than a matrix product or one pass of a compiled kernel."""
    return isinstance(noise, HasMoments) and isinstance(noise, HasPairs) and noise.fast_pairs


def electrons(noise: NoiseModel, measured: Tensor) -> Tensor:
    """Unbiased estimate of the mean in photo-electrons behind each value, where the response is linear."""
    shape = measured.shape[1:]
    if not isinstance(noise, HasMoments):
        raise TypeError(f"noise: need a model that knows its expectation, got {type(noise).__name__}")
    zero = noise.expected(torch.zeros(shape, dtype=torch.float64, device=measured.device))
    one = noise.expected(torch.ones(shape, dtype=torch.float64, device=measured.device))
    return (measured - zero) / (one - zero)


def mean_level(signal: Tensor) -> float:
    """Mean of images in photo-electrons, which a pattern of light can be relative to.

    Raises:
        ValueError: it is not above zero.
    """
    level = float(signal.mean())
    if not level > 0.0:
        raise ValueError(f"measured: need images with light on average, got a mean of {level:.3g} photo-electrons")
    return level


def noise_variance(noise: NoiseModel, mean: Tensor) -> Tensor:
    """Variance of a measurement in squared photo-electrons at each mean."""
    assert isinstance(noise, HasMoments)
    gain = noise.expected(torch.ones_like(mean)) - noise.expected(torch.zeros_like(mean))
    return noise.variance(mean) / gain.square()


def counts_photons(noise: NoiseModel, image_shape: torch.Size) -> bool:
    """Whether the noise grows with the mean, which then cannot be negative."""
    zero = torch.zeros(image_shape, dtype=torch.float64)
    return isinstance(noise, HasMoments) and bool((noise.variance(zero + 1.0) > noise.variance(zero)).any())


def fitting_scores(noise: NoiseModel, images: Tensor, means: Tensor) -> Tensor:
    """log p(image | mean) of all pairs, (n, K) up to a constant of each row, close enough to fit by.

    Shot and read noise as a Poisson law of the same mean and variance: a matrix product instead of a sum for each pixel
    of each pair.
    """
    if not isinstance(noise, PoissonGaussianNoise):
        return log_prob_pairs(noise, images, means)
    dark = noise_variance(noise, torch.zeros(images.shape[1:], dtype=torch.float64, device=images.device))
    seen, expected = electrons(noise, images) + dark, means + dark
    return seen.flatten(1) @ expected.log().flatten(1).mT - expected.flatten(1).sum(1)


def posteriors(scores: Tensor, log_weights: Tensor) -> Tensor:
    """Share of each component in each image, (n, K), rows sum to one."""
    return torch.softmax(scores + log_weights, 1)


def em_log_weights(scores: Tensor, log_weights: Tensor, n_steps: int, smoothing: Tensor | None = None) -> Tensor:
    """Log weights after some steps of expectation maximisation, each followed by the (K, K) smoothing if given.

    Reference: Silverman et al. 1990, doi:10.1111/j.2517-6161.1990.tb01788.x (smoothed EM).
    """
    likelihood = _relative_likelihood(scores)
    weights = log_weights.exp()
    for _ in range(n_steps):
        weights = _em_step(likelihood, weights)
        if smoothing is not None:
            weights = smoothing @ weights
            weights = weights / weights.sum()
    return weights.clamp_min(_LEAST_WEIGHT).log()


def likeliest_log_weights(scores: Tensor, log_weights: Tensor, n_steps: int) -> Tensor:
    """Log weights near the maximum of the likelihood: expectation maximisation, three steps at a time extrapolated.

    Reference: Varadhan and Roland 2008, doi:10.1111/j.1467-9469.2007.00585.x (SQUAREM).
    """
    likelihood = _relative_likelihood(scores)
    weights = log_weights.exp()

    def score(candidate: Tensor) -> float:
        return float((likelihood @ candidate).clamp_min(1e-30).log().mean())

    for _ in range(n_steps):
        first = _em_step(likelihood, weights)
        second = _em_step(likelihood, first)
        change, curvature = first - weights, second - 2.0 * first + weights
        power = float(curvature.square().sum())
        if power > 0.0:
            length = max(1.0, math.sqrt(float(change.square().sum()) / power))
            far = (weights + 2.0 * length * change + length**2 * curvature).clamp_min(0.0)
            far = _em_step(likelihood, far / far.sum())
            second = far if score(far) >= score(second) else second
        weights = second
    return weights.clamp_min(_LEAST_WEIGHT).log()


def _relative_likelihood(scores: Tensor) -> Tensor:
    """Likelihoods relative to each row's largest: the weights only need ratios."""
    return torch.exp(scores - scores.amax(1, keepdim=True))


def _em_step(likelihood: Tensor, weights: Tensor) -> Tensor:
    total = (likelihood @ weights).clamp_min(1e-30)
    weights = weights * (likelihood.mT @ total.reciprocal()) / len(likelihood)
    return weights / weights.sum()


def smoothing_matrix(place: Tensor, bandwidth: Tensor, cells: Tensor) -> Tensor:
    """Gaussian kernels between places (K,) that stand for `cells`; columns sum to one: no weight is made or lost."""
    kernel = cells[:, None] * torch.exp(-0.5 * ((place[:, None] - place) / bandwidth).square())
    return kernel / kernel.sum(0)


def shrunk_to_constant(pattern: Tensor, sampling_variance: Tensor) -> tuple[Tensor, float]:
    """Means of pixels drawn to their common mean as far as their scatter is that of sampling, and the share kept.

    Reference: James and Stein 1961, Proc. Fourth Berkeley Symp. 1, 361.
    """
    deviation = pattern - pattern.mean()
    scatter = float(deviation.square().sum())
    sampling = float(sampling_variance.mean()) * (pattern.numel() - 3)
    kept = 1.0 - sampling / scatter if scatter > sampling > 0.0 else float(scatter > 0.0 and sampling <= 0.0)
    return pattern.mean() + kept * deviation, kept
