"""A coded aperture before a disperser: every band of the scene lands a little further along the columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from bitlens.encoders.detector import Values, as_planes, as_values, hold, within
from bitlens.encoders.linear import LinearEncoder


@final
class DispersedCodedAperture(LinearEncoder):
    """y[r, c] = sum_b mask[b, r, c - step b] scene[b, r, c - step b]: single-disperser CASSI.

    A step that is not whole, or one column for each band (a prism), shares each sample between its two neighbours by
    linear interpolation. Shift and add: O(band row column). Differentiable in scene and mask.

    Shapes: (batch, band, row, column) -> (batch, 1, row, column + ceil(last column of the bands)).

    Args:
        mask: transmission, 0 to 1, (row, column), or (band, row, column) for filters in place of holes.
        n_bands: spectral bands of the scene.
        step: columns from one band to the next, at least 0; or the column of each band, n_bands numbers from 0 up.
        learn: "mask", or nothing.

    Reference: Wagadarikar et al. 2008, eq. 4, doi:10.1364/AO.47.000B44.
    """

    parameter_domain: ClassVar[Mapping[str, tuple[float | None, float | None]]] = {"mask": (0.0, 1.0)}
    parameter_scale: ClassVar[Mapping[str, float]] = {"mask": 1.0}

    mask: Tensor

    def __init__(self, mask: Tensor | np.ndarray, *, n_bands: int, step: Values = 1, learn: Sequence[str] = ()) -> None:
        super().__init__()
        if n_bands < 1:
            raise ValueError(f"n_bands: need at least 1, got {n_bands}")
        columns = as_values("step", step, "a number or one per band", (0, 1))
        if columns.ndim == 0:
            columns = columns * torch.arange(n_bands, dtype=columns.dtype)
        if len(columns) != n_bands:
            raise ValueError(f"step: need a number or {n_bands} of them, one per band, got {len(columns)}")
        within("step", columns, 0.0)
        transmission = within("mask", as_values("mask", mask, "(row, column) or (band, row, column)", (2, 3)), 0.0, 1.0)
        if transmission.ndim == 3 and len(transmission) != n_bands:
            raise ValueError(f"mask: need {n_bands} bands or none, got shape {tuple(transmission.shape)}")
        self.n_bands = n_bands
        self.band_columns: tuple[float, ...] = tuple(columns.tolist())
        hold(self, {"mask": transmission}, learn)

    @property
    def measured_columns(self) -> int:
        """Columns that light of any band reaches."""
        return self.mask.shape[-1] + math.ceil(max(self.band_columns))

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """What the sensor sees of scenes (batch, band, row, column): (batch, 1, row, measured column)."""
        rows, columns = self.mask.shape[-2:]
        scene = as_planes("scene", scene, channels=self.n_bands, rows=rows, columns=columns)
        room = self.measured_columns - columns
        total: Tensor | None = None
        for column, band in zip(self.band_columns, (scene * self.mask.to(scene.dtype)).unbind(1), strict=True):
            for start, share in _neighbours(column):
                part = pad(band if share == 1 else share * band, (start, room - start))
                total = part if total is None else total + part
        assert total is not None
        return total.unsqueeze(1)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """The window of each band, times the mask: (batch, band, row, column)."""
        rows, columns = self.mask.shape[-2:]
        measured = as_planes("measured", measured, channels=1, rows=rows, columns=self.measured_columns)
        plane = measured[:, 0]
        bands = []
        for column in self.band_columns:
            parts = [plane[..., start : start + columns] * share for start, share in _neighbours(column)]
            bands.append(parts[0] if len(parts) == 1 else parts[0] + parts[1])
        return torch.stack(bands, dim=1) * self.mask.to(measured.dtype)


def _neighbours(column: float) -> list[tuple[int, float]]:
    """Whole columns beside `column` and their shares of its light."""
    start = math.floor(column)
    fraction = column - start
    return [(start, 1.0)] if fraction == 0 else [(start, 1 - fraction), (start + 1, fraction)]
