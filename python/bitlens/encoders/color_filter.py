"""Mosaics of colour filters before a sensor: one measurement per pixel of a scene of several bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from bitlens.encoders.detector import Values, as_planes, as_values, hold, within
from bitlens.encoders.linear import LinearEncoder

Tile = tuple[tuple[int, ...], ...]

RED, GREEN, BLUE, WHITE = range(4)

# Filters by their index in RGB_SPECTRA or RGBW_SPECTRA.
BAYER: Tile = ((RED, GREEN), (GREEN, BLUE))
"""Bayer 1976, US patent 3,971,065."""

RGBW: Tile = (
    (WHITE, GREEN, WHITE, RED),
    (GREEN, WHITE, RED, WHITE),
    (WHITE, BLUE, WHITE, GREEN),
    (BLUE, WHITE, GREEN, WHITE),
)
"""A checkerboard of clear pixels, colours in pairs along the diagonals: Compton and Hamilton 2007, US 2007/0024931."""

XTRANS: Tile = (
    (GREEN, BLUE, GREEN, GREEN, RED, GREEN),
    (RED, GREEN, RED, BLUE, GREEN, BLUE),
    (GREEN, BLUE, GREEN, GREEN, RED, GREEN),
    (GREEN, RED, GREEN, GREEN, BLUE, GREEN),
    (BLUE, GREEN, BLUE, RED, GREEN, RED),
    (GREEN, RED, GREEN, GREEN, BLUE, GREEN),
)
"""Every row and column has all three colours, and green comes in squares of four: Fujifilm's X-Trans."""

RGB_SPECTRA = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
"""Transmission (filter, band) of ideal filters for scenes of red, green and blue."""

RGBW_SPECTRA = (*RGB_SPECTRA, (1.0, 1.0, 1.0))
"""The same and a clear filter."""


@final
class ColorFilterArray(LinearEncoder):
    """y[r, c] = sum_b spectra[filter(r mod h, c mod w), b] scene[b, r, c]: what each pixel's filter passes.

    The choice is fixed (a tile of indices) or soft (logits): then a pixel of the tile has the mixture of spectra with
    weights softmax(sharpness logits), until `hardened` chooses. Differentiable in spectra and logits.

    Shapes: (batch, band, row, column) -> (batch, 1, row, column), of any size; the tile starts at (0, 0).

    Args:
        tile: (h, w) whole numbers below the number of filters, or logits (filter, h, w), real.
        spectra: transmission 0 to 1, (filter, band).
        sharpness: of the soft choice, > 0; raise it during an optimisation to approach a hard one.
        learn: "spectra", "choice_logits", both or nothing.

    Reference: Chakrabarti 2016, Learning sensor multiplexing design, arXiv 1605.07078, eq. 3 (soft choice).
    """

    parameter_domain: ClassVar[Mapping[str, tuple[float | None, float | None]]] = {"spectra": (0.0, 1.0)}
    parameter_scale: ClassVar[Mapping[str, float]] = {"spectra": 1.0, "choice_logits": 2.0, "sharpness": 1.0}

    spectra: Tensor
    tile: Tensor
    choice_logits: Tensor
    sharpness: Tensor

    def __init__(
        self,
        tile: Sequence[Sequence[int]] | Tensor | np.ndarray,
        spectra: Values,
        *,
        sharpness: float = 1.0,
        learn: Sequence[str] = (),
    ) -> None:
        super().__init__()
        transmission = within("spectra", as_values("spectra", spectra, "(filter, band)", (2,)), 0.0, 1.0)
        if not sharpness > 0:
            raise ValueError(f"sharpness: need a positive number, got {sharpness}")
        given = torch.as_tensor(tile if isinstance(tile, Tensor) else np.asarray(tile)).detach().clone()
        self.soft = given.is_floating_point()
        if self.soft:
            logits = as_values("tile", given, "(h, w) indices or (filter, h, w) logits", (3,))
            if len(logits) != len(transmission):
                raise ValueError(f"tile: need logits of {len(transmission)} filters, got shape {tuple(logits.shape)}")
            self.register_buffer("sharpness", torch.tensor(sharpness, dtype=torch.float64))
            hold(self, {"spectra": transmission, "choice_logits": logits}, learn)
        else:
            _check_tile(given, len(transmission))
            self.register_buffer("tile", given.to(torch.int64))
            hold(self, {"spectra": transmission}, learn)

    def weights(self) -> Tensor:
        """Share of each filter (filter, h, w) in every pixel of the tile; they add up to one."""
        if self.soft:
            return (self.sharpness.to(self.choice_logits.dtype) * self.choice_logits).softmax(dim=0)
        one_hot = torch.nn.functional.one_hot(self.tile, len(self.spectra))
        return one_hot.movedim(-1, 0).to(self.spectra.dtype)

    def transmission(self) -> Tensor:
        """Transmission (band, h, w) over the tile."""
        weights = self.weights()
        return torch.einsum("fhw,fb->bhw", weights, self.spectra.to(weights.dtype))

    def hardened(self) -> ColorFilterArray:
        """A fixed array of the likeliest filters, with the same spectra."""
        return ColorFilterArray(self.weights().detach().argmax(dim=0), self.spectra.detach())

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """Light (batch, 1, row, column) behind the filters of scenes (batch, band, row, column)."""
        scene = as_planes("scene", scene, channels=self.spectra.shape[1])
        return (scene * self._mosaic(scene)).sum(dim=1, keepdim=True)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """Each pixel's value times its filter's spectrum."""
        measured = as_planes("measured", measured, channels=1)
        return measured * self._mosaic(measured)

    def _mosaic(self, planes: Tensor) -> Tensor:
        tile = self.transmission().to(planes.dtype)
        rows, columns = planes.shape[-2:]
        times = (1, -(-rows // tile.shape[-2]), -(-columns // tile.shape[-1]))
        return tile.repeat(*times)[:, :rows, :columns]


def choice_logits(tile: Sequence[Sequence[int]] | Tensor | np.ndarray, n_filters: int, *, share: float = 0.9) -> Tensor:
    """Logits (filter, h, w), float64, whose softmax gives `share` to the tile's filters and the rest evenly to others.

    Raises:
        ValueError: an index out of range, fewer than two filters, or `share` not between 1 / n_filters and 1.
    """
    indices = torch.as_tensor(tile if isinstance(tile, Tensor) else np.asarray(tile))
    if n_filters < 2:
        raise ValueError(f"n_filters: need at least 2, got {n_filters}")
    _check_tile(indices, n_filters)
    if not 1 / n_filters <= share < 1:
        raise ValueError(f"share: need a number from 1 / n_filters to below 1, got {share}")
    advantage = float(np.log(share / (1 - share) * (n_filters - 1)))
    one_hot = torch.nn.functional.one_hot(indices.to(torch.int64), n_filters)
    return advantage * one_hot.movedim(-1, 0).to(torch.float64)


def random_tile(size: tuple[int, int], shares: Sequence[float], *, generator: torch.Generator) -> Tensor:
    """(h, w) filter indices in random order, each filter as often as its share of h w says, to within one pixel.

    Raises:
        ValueError: a negative share, or none above 0.
    """
    share = as_values("shares", shares, "one number per filter", (1,))
    within("shares", share, 0.0)
    if not float(share.sum()) > 0:
        raise ValueError("shares: need at least one above 0, got none")
    n_pixels = size[0] * size[1]
    exact = share / share.sum() * n_pixels
    counts = exact.floor().to(torch.int64)
    most = (exact - counts).argsort(descending=True, stable=True)
    counts[most[: n_pixels - int(counts.sum())]] += 1
    filters = torch.arange(len(counts)).repeat_interleave(counts)
    return filters[torch.randperm(n_pixels, generator=generator)].reshape(size)


def _check_tile(tile: Tensor, n_filters: int) -> None:
    if tile.is_floating_point() or tile.is_complex() or tile.dtype == torch.bool:
        raise TypeError(f"tile: need whole numbers, got {tile.dtype}")
    if tile.ndim != 2 or tile.numel() == 0:
        raise ValueError(f"tile: need (h, w) indices, or (filter, h, w) logits, got shape {tuple(tile.shape)}")
    low, high = int(tile.min()), int(tile.max())
    if low < 0 or high >= n_filters:
        raise ValueError(f"tile: need filters 0 to {n_filters - 1}, got {low if low < 0 else high}")
