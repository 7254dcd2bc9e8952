"""Bits of the parts of images, which vary independently enough to tell the error of their sum."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor, nn

from bitlens.estimators._image_folds import Folds
from bitlens.estimators._image_tiles import Tiles
from bitlens.noise import NoiseModel, conditional_entropy_per_sample

# Parts whose bits are taken as independent of each other for the standard error: enough to tell a spread by, and so
# as large as that allows.
_PARTS, _FEW_PARTS = 36, 20
# Groups of images from which their own spread is the standard error, and the level at which fewer must disagree.
_MANY_GROUPS, _DISAGREE_LEVEL = 20, 0.999
_MISFIT_NATS_PER_PIXEL, _SIGMAS = 0.02, 6.0


class Parts(NamedTuple):
    """For each part of each image, (image, part): nats of information, pixels, and log p(measured | mean) + h."""

    nats: Tensor
    pixels: Tensor
    residual: Tensor | None
    counts: tuple[int, int]  # parts along rows and columns

    @classmethod
    def of(
        cls, seen: Tensor, scene: Tensor | None, noise: NoiseModel, tiles: Tiles, folds: Folds, density: Tensor
    ) -> Parts:
        """From -log q of the tiles, (image, row tile, column tile), and the noise of their pixels."""
        counts = tiles.clusters(folds.n_groups, _PARTS)
        labels = tiles.parts(counts).flatten()
        n_parts = counts[0] * counts[1]
        nats = density.new_zeros(len(seen), n_parts).index_add_(1, labels, density.flatten(1))
        pixels = torch.zeros(n_parts, dtype=seen.dtype)
        residual = None if scene is None else torch.zeros_like(nats)
        for row in range(counts[0]):
            down = tiles.rows.span(torch.nonzero(tiles.rows.parts(counts[0]) == row))
            for column in range(counts[1]):
                across = tiles.columns.span(torch.nonzero(tiles.columns.parts(counts[1]) == column))
                part, sensor = row * counts[1] + column, sensor_part(noise, seen.shape[-2:], down, across)
                z = seen[..., down, across]
                y = None if scene is None else scene[..., down, across]
                conditional = conditional_entropy_per_sample(sensor, z, y).cpu()
                nats[:, part] -= conditional
                pixels[part] = z[0].numel()
                if residual is not None and y is not None:
                    residual[:, part] = _log_likelihood(sensor, z, y) + conditional
        return cls(nats, pixels.expand_as(nats), residual, counts)

    def standard_error(self, folds: Folds, given: bool) -> tuple[float, float, list[str]]:
        """Of the nats of an image, with its degrees of freedom, and what there is to say about it."""
        rate = self.nats.sum() / self.pixels.sum()
        rows = self.nats - rate * self.pixels
        by_group = rows.new_zeros(folds.n_groups, rows.shape[1]).index_add_(0, folds.group, rows)
        what = "groups" if given else "images"
        between = _error_of_sum(by_group.sum(1)) / len(rows) if folds.n_groups > 1 else 0.0
        if folds.n_groups >= _MANY_GROUPS:
            return between, folds.n_groups - 1, []
        n_parts = by_group.numel()
        if n_parts < 2:
            return math.nan, 1, ["one patch: there is no spread to tell a standard error by"]
        within, degrees = _error_with_neighbours(by_group.reshape(-1, *self.counts))
        within /= len(rows)
        notes = []
        if n_parts < _FEW_PARTS:
            notes.append(f"{n_parts} parts of images are few: the standard error needs at least {_FEW_PARTS}")
        if folds.n_groups > 1:
            # The parts of each group about its own mean: what the groups would differ by if that were all.
            own = by_group - by_group.mean(1, keepdim=True)
            alike = _error_with_neighbours(own.reshape(-1, *self.counts))[0] / len(rows)
            limit = float(stats.f.ppf(_DISAGREE_LEVEL, folds.n_groups - 1, degrees))
            if between**2 > limit * alike**2:
                notes.append(
                    f"the {what} differ by more than their parts do: the standard error is that of "
                    f"{folds.n_groups} {what}"
                )
                return max(between, within), folds.n_groups - 1, notes
        return within, degrees, notes

    def misfit(self, n_pixels: int, stderr: float) -> list[str]:
        """Says so when `measured` does not follow the noise model at `mean`: the residual's mean is then not zero."""
        if self.residual is None:
            return []
        per_pixel = float(self.residual.sum()) / n_pixels
        if abs(per_pixel) <= max(_MISFIT_NATS_PER_PIXEL, _SIGMAS * stderr / n_pixels):
            return []
        return [
            f"measured does not follow the noise model at mean: the log-likelihood lies {abs(per_pixel):.3g} nats per "
            f"pixel {'below' if per_pixel < 0 else 'above'} what the model expects; check the unit of mean "
            f"(photo-electrons), the order of the images and the noise parameters. The bits are not to be trusted"
        ]


def _log_likelihood(noise: NoiseModel, measured: Tensor, mean: Tensor) -> Tensor:
    """log p(measured | mean) of each image, (n,) nats."""
    return noise.log_prob(measured, mean).flatten(1).sum(1).cpu()


def _error_of_sum(rows: Tensor) -> float:
    """Standard error of the sum of independent `rows` (n,), whose mean is zero by construction."""
    return math.sqrt(float(rows.square().sum()) * len(rows) / (len(rows) - 1))


def _error_with_neighbours(rows: Tensor) -> tuple[float, float]:
    """Standard error of the sum of parts (group, row, column), neighbours correlated, and its degrees of freedom.

    Weights 1 - |lag| / 2 along both axes, those of sums over all squares of 2 x 2 parts: never a negative variance.

    Reference: Conley 1999, doi:10.1016/S0304-4076(98)00084-0.
    """
    kernel = [1.0 if size == 1 else 2.0 for size in rows.shape[1:]]
    padded = torch.nn.functional.pad(rows, (1, 1, 1, 1))
    squares = padded[:, 1:, 1:] + padded[:, :-1, 1:] + padded[:, 1:, :-1] + padded[:, :-1, :-1]
    power = 0.25 * float(squares.square().sum())
    # What the mean, taken off, takes of the variance of parts that are independent; and the spread of such a sum.
    taken, spread = kernel[0] * kernel[1], math.prod(1.0 if weight == 1.0 else 1.5 for weight in kernel)
    count = rows.numel()
    return math.sqrt(power * count / max(1.0, count - taken)), max(1.0, count / spread - 1.0)


def sensor_part(noise: NoiseModel, size: Sequence[int], down: slice, across: slice) -> NoiseModel:
    """The noise model of some rows and columns: its maps of the size of an image are cut, the rest stays."""
    cuts = {}
    for name, value in noise.state_dict().items():
        part = value
        if part.ndim >= 1 and part.shape[-1] == size[1] > 1:
            part = part[..., across]
        if part.ndim >= 2 and part.shape[-2] == size[0] > 1:
            part = part[..., down, :]
        if part.shape != value.shape:
            cuts[name] = part.detach()
    if not cuts:
        return noise
    cropped = copy.deepcopy(noise)
    for name, part in cuts.items():
        owner, _, leaf = name.rpartition(".")
        module = cropped.get_submodule(owner)
        is_parameter = isinstance(getattr(module, leaf), nn.Parameter)
        setattr(module, leaf, nn.Parameter(part, requires_grad=False) if is_parameter else part)
    return cropped
