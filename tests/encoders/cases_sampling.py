"""Linear encoders that sample Fourier transforms and projections."""

from __future__ import annotations

import torch
from linear_case import LinearCase

from bitlens.encoders.fourier_sampling import CartesianSampling, birdcage_sensitivities
from bitlens.encoders.nonuniform_fourier import NonuniformSampling, radial_trajectory, spiral_trajectory
from bitlens.encoders.tomography import FanProjection, ParallelProjection

ANGLES = torch.linspace(-3.0, 4.0, 13, dtype=torch.float64)


def weights(*shape: int) -> torch.Tensor:
    """Between 0.1 and 0.9, a third of them 0."""
    values = 0.1 + 0.8 * torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values.view(-1)[::3] = 0.0
    return values


CASES = [
    # ---- Fourier transforms on a grid ----
    LinearCase(
        "Cartesian sampling, a relaxed mask",
        lambda: CartesianSampling(weights(9, 12) + 0.1, learn=("mask",)),
        (1, 9, 12),
        ("mask",),
    ),
    LinearCase(
        "Cartesian sampling, relaxed lines, four coils, a complex scene",
        lambda: CartesianSampling(
            weights(9) + 0.1, sensitivities=birdcage_sensitivities(4, (9, 12)), complex_scene=True
        ),
        (2, 9, 12),
        ("mask", "sensitivities"),
    ),
    LinearCase(
        "Cartesian sampling, some lines, three coils",
        lambda: CartesianSampling(weights(9), sensitivities=birdcage_sensitivities(3, (9, 12)), compact=True),
        (1, 9, 12),
        ("sensitivities",),
    ),
    LinearCase(
        "Cartesian sampling, some samples, a complex scene",
        lambda: CartesianSampling(weights(9, 12), complex_scene=True, compact=True),
        (2, 9, 12),
    ),
    LinearCase(
        "Cartesian sampling, lines that share a scan's time",
        lambda: CartesianSampling(weights(9) + 0.1, mean_square=0.25, learn=("mask",)),
        (1, 9, 12),
        ("mask",),
    ),
    # ---- Fourier transforms anywhere ----
    LinearCase(
        "radial sampling, three coils",
        lambda: NonuniformSampling(
            radial_trajectory(7, 12, maximum_cycles=5, order="golden"),
            (9, 12),
            sensitivities=birdcage_sensitivities(3, (9, 12)),
            learn=("trajectory",),
        ),
        (1, 9, 12),
        ("trajectory", "sensitivities"),
    ),
    LinearCase(
        "spiral sampling, a complex scene",
        lambda: NonuniformSampling(spiral_trajectory(2, 40, turns=4, maximum_cycles=6), (9, 12), complex_scene=True),
        (2, 9, 12),
        ("trajectory",),
    ),
    LinearCase(
        "visibilities",
        lambda: NonuniformSampling.from_baselines(4e3 * (weights(17, 2) - 0.4), (9, 12), pixel_rad=1e-4),
        (1, 9, 12),
        ("trajectory",),
    ),
    # ---- projections ----
    LinearCase(
        "parallel projection",
        lambda: ParallelProjection(ANGLES, (9, 12), bins=17, pixel_mm=0.7, bin_mm=0.9, learn=("angles_rad",)),
        (1, 9, 12),
        ("angles_rad", "offset_mm"),
        flux=13 * 0.7**2 / 0.9,
    ),
    LinearCase(
        "parallel projection, an offset for each view, a short detector, three energies",
        lambda: ParallelProjection(ANGLES, (9, 12), bins=7, offset_mm=0.1 * ANGLES),
        (3, 9, 12),
        ("angles_rad", "offset_mm"),
    ),
    LinearCase(
        "fan projection",
        lambda: FanProjection(ANGLES, (9, 12), bins=21, source_mm=12.0, detector_mm=8.0, offset_mm=0.3),
        (1, 9, 12),
        ("angles_rad", "offset_mm", "source_mm", "detector_mm"),
    ),
    LinearCase(
        "fan projection, as close as it gets",
        lambda: FanProjection(ANGLES, (9, 12), bins=30, bin_mm=0.6, source_mm=7.6, detector_mm=2.0, offset_mm=0.2),
        (2, 9, 12),
        ("angles_rad", "offset_mm", "source_mm", "detector_mm"),
    ),
]
