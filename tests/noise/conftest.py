"""Simulated cameras whose parameters are known, and where real frames may lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """A sensor of 96 x 96 pixels in light that falls off towards the corners and flickers."""

    gain: float = 0.5  # ADU per electron
    offset: float = 100.0
    read_std: float = 2.0  # ADU
    offset_spread: float = 1.0  # ADU between pixels
    response_spread: float = 0.01  # of the light that pixels see
    hot_share: float = 0.0
    drift: float = 0.0  # largest relative change of the light of a frame
    fall_off: float = 0.3
    full_well_electrons: float = np.inf
    rounded: bool = True
    shape: tuple[int, int] = (96, 96)

    def frames(
        self, generator: np.random.Generator, levels: tuple[float, ...], n_frames: int = 20
    ) -> tuple[Array, Array]:
        """Flats (level, frame, row, column) at these electrons in the middle, and darks (frame, row, column)."""
        row, column = (np.linspace(-1, 1, n) for n in self.shape)
        light = 1 - self.fall_off * (row[:, None] ** 2 + column**2) / 2
        light = light * (1 + self.response_spread * generator.standard_normal(self.shape))
        offset = self.offset + self.offset_spread * generator.standard_normal(self.shape)
        hot = (generator.random(self.shape) < self.hot_share) * (50 + generator.exponential(400, self.shape))

        def expose(level: float) -> Array:
            flicker = 1 + self.drift * generator.uniform(-1, 1, (n_frames, 1, 1))
            electrons = generator.poisson(level * flicker * light + hot / self.gain)
            electrons = np.minimum(electrons, self.full_well_electrons)
            adu = self.gain * electrons + offset + self.read_std * generator.standard_normal(electrons.shape)
            return np.round(adu) if self.rounded else adu

        return np.stack([expose(level) for level in levels]), expose(0.0)


@pytest.fixture
def camera() -> type[Camera]:
    return Camera


@pytest.fixture
def shared_data() -> Path:
    """Folder of real data beside the repository; a test that needs it is skipped where it is absent."""
    folder = Path(__file__).parents[2].resolve().parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder
