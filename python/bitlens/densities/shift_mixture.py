"""One pattern at a random place: the density of images of a source that moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import torch
from torch import Tensor
from torch.nn import functional

from bitlens.densities._channel_mixture import (
    ChannelMixture,
    counts_photons,
    electrons,
    em_log_weights,
    fitted_mixture,
    fitting_scores,
    posteriors,
)
from bitlens.densities.base import Density, as_images
from bitlens.noise import NoiseModel

_EM_STEPS = 12
# Images' worth of the background that a place of the pattern which is hardly seen is pulled to.
_PRIOR_IMAGES = 2.0
_DARK = 1e-4


@final
@dataclass(frozen=True, eq=False)
class ShiftMixtureDensity(Density):
    """q(z) = sum_s w_s p(z | k shifted by s): one pattern k, twice as large as the image, at every whole shift s.

    Measured values as they are, no dither: for counts q is a probability. Pattern and weights by expectation
    maximisation, started from the images aligned at their brightest places. `held_out_bias_nats` = places / (2 n).
    """

    takes_counts: ClassVar[bool] = True

    noise: NoiseModel
    means: Tensor | None = field(default=None, repr=False)
    log_weights: Tensor | None = field(default=None, repr=False)
    n_samples: int = 0
    held_out_bias_nats: float = 0.0
    converged: bool = False

    @torch.no_grad()
    def fit(self, measured: Tensor) -> Self:
        """Pattern and weights of `measured`, (n, row, column) or (n, 1, row, column).

        Raises:
            ValueError: fewer than 4 images, not two image axes, or values that are not finite.
        """
        images = as_images(measured, minimum_samples=4)
        if images.ndim != 3 and (images.ndim != 4 or images.shape[1] != 1):
            raise ValueError(f"measured: need shape (n, row, column) or one channel, got {tuple(images.shape)}")
        image_shape = images.shape[1:]
        rows, columns = image_shape[-2:]
        signal = electrons(self.noise, images).reshape(-1, rows, columns)
        places = rows * columns
        smooth = functional.avg_pool2d(signal[:, None], 3, 1, 1, count_include_pad=False).flatten(1)
        share = functional.one_hot(smooth.argmax(1), places).to(torch.float64)
        least = _DARK * float(signal.mean().abs()) if counts_photons(self.noise, image_shape) else None
        weights = torch.full((places,), 1.0 / places, dtype=torch.float64, device=images.device).log()
        means = _shifted(signal, share)
        for _ in range(_EM_STEPS):
            means = means if least is None else means.clamp_min(least)
            scores = fitting_scores(self.noise, images, means.reshape(-1, *image_shape))
            weights = em_log_weights(scores, weights, 1)
            share = posteriors(scores, weights)
            means = _shifted(signal, share)
        means = means if least is None else means.clamp_min(least)
        # A place that no image took may be taken by the next one.
        counts = share.sum(0) + 1.0 / places
        weights = (counts / counts.sum()).log()
        means = means.reshape(-1, *image_shape)
        return type(self)(self.noise, means, weights, len(images), places / (2.0 * len(images)), True)

    def log_prob(self, measured: Tensor) -> Tensor:
        """log q(z) of each image, (n, row, column) -> (n,) nats."""
        return self._fitted().log_prob(measured)

    def conditional_entropy(self, measured: Tensor) -> Tensor:
        """E_q[h(z|mean) given z] of each image, (n, ...) -> (n,) nats: by the shift that all its pixels tell."""
        return self._fitted().conditional_entropy(measured)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """A shift drawn by its weight and the noise on the pattern there: n images, (n, row, column)."""
        return self._fitted().sample(n, generator)

    def _fitted(self) -> ChannelMixture:
        return fitted_mixture(type(self).__name__, self.noise, self.means, self.log_weights)


def _shifted(signal: Tensor, share: Tensor) -> Tensor:
    """The pattern that the shares (n, places) of shifts align, cut out at every shift: (places, row, column).

    k(d) = sum_{n, s} share_ns signal_n(s + d) / sum_s count_s over the s for which s + d lies in the image.
    """
    rows, columns = signal.shape[1:]
    count = share.sum(0)
    # For each shift the shares' sum of images, (places, row, column); then a sum over shifts at each displacement.
    sums = (share.mT @ signal.flatten(1)).reshape(-1, rows, columns)
    size = (2 * rows - 1, 2 * columns - 1)
    total, weight = signal.new_zeros(size), signal.new_zeros(size)
    for row in range(rows):
        for column in range(columns):
            at = row * columns + column
            window = (slice(rows - 1 - row, 2 * rows - 1 - row), slice(columns - 1 - column, 2 * columns - 1 - column))
            total[window] += sums[at]
            weight[window] += count[at]
    background = total.sum() / weight.sum()
    # Far from the source: the median over displacements that are well seen.
    seen = weight > 0.05 * weight.max()
    background = (total[seen] / weight[seen]).median() if bool(seen.any()) else background
    pattern = (total + _PRIOR_IMAGES * background) / (weight + _PRIOR_IMAGES)
    # Every shift's cut-out is a window of the pattern, the last place first.
    return pattern.unfold(0, rows, 1).unfold(1, columns, 1).flip(0, 1).reshape(rows * columns, rows, columns)
