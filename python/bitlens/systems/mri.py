"""A magnetic resonance scanner: receive coils, a way through k-space, complex Gaussian noise."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from bitlens.datasets.phantoms_ellipses import head_slices
from bitlens.encoders import LinearEncoder, complex_to_channels
from bitlens.encoders.fourier_sampling import CartesianSampling, birdcage_sensitivities
from bitlens.encoders.nonuniform_fourier import NonuniformSampling, radial_trajectory, spiral_trajectory
from bitlens.noise import GaussianNoise
from bitlens.systems._checks import check_count, check_positive, scenes_and_shape
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription

MRIDesign = Literal["full", "uniform", "variable_density", "radial", "spiral"]

DESCRIPTION = SystemDescription(
    name="mri",
    designs=get_args(MRIDesign),
    formula="z_c(k) = mask(k) F(sensitivity_c x)(k) + n, real and imaginary part of n each ~ Normal(0, 1 / snr^2)",
    reference="Pruessmann et al. 1999, doi:10.1002/(SICI)1522-2594(199911)42:5<952::AID-MRM16>3.0.CO;2-S",
)

_CARTESIAN = ("full", "uniform", "variable_density")


def mri(
    design: MRIDesign = "variable_density",
    *,
    shape: tuple[int, int] | None = None,
    acceleration: float = 4.0,
    coils: int = 8,
    snr: float = 30.0,
    calibration_share: float = 0.08,
    complex_scene: bool = False,
    n_scenes: int = 256,
    scenes: Tensor | np.ndarray | None = None,
    learn: tuple[str, ...] = (),
) -> ImagingSystem:
    """z_c(k) = mask(k) F(sensitivity_c x)(k) + n, each of real and imaginary part of n ~ Normal(0, 1 / snr^2).

    "full": every line; "uniform": evenly spaced ones; "variable_density": random ones, denser in the middle; "radial",
    "spiral": as many samples. Equal time per line: "full" takes longer. A mask to learn has weights w of all lines,
    each for w^2 of its time, that start at the design's density; their mean square stays 1 / acceleration.

    Args:
        acceleration: lines of the image (`shape`, default 64 x 64) over lines measured.
        coils: as in `birdcage_sensitivities`; 1 is one coil of 1.
        snr: of a pixel of 1 in a full scan by one coil of sensitivity 1; 20 to 50 are common in brains.
        calibration_share: of all lines, in the middle, that "variable_density" takes whole.
        complex_scene: scenes (n, 2, row, column) with a smooth phase.
        learn: "mask" or, off the grid, "trajectory" (cycles per field of view; scanners limit its speed and slew, this
            does not); "sensitivities" of several coils.

    Reference: Pruessmann et al. 1999 (as above); Lustig et al. 2007, doi:10.1002/mrm.21391 (variable density).
    """
    if design not in get_args(MRIDesign):
        raise ValueError(f"design: need one of {get_args(MRIDesign)}, got {design!r}")
    scenes, shape = scenes_and_shape(
        scenes, shape, n_scenes, default=(64, 64), channels=2 if complex_scene else 1, lower=None
    )
    check_count("coils", coils)
    acceleration, snr = check_positive("acceleration", acceleration), check_positive("snr", snr)
    if not 1 <= acceleration <= shape[0]:
        raise ValueError(f"acceleration: need 1 to {shape[0]}, the number of lines, got {acceleration}")
    if not 0 <= calibration_share <= 1:
        raise ValueError(f"calibration_share: need 0 to 1, got {calibration_share}")
    maps = birdcage_sensitivities(coils, shape) if coils != 1 else None
    encoder: LinearEncoder
    if design in _CARTESIAN:
        relaxed = "mask" in learn
        mask = _density(design, shape[0], acceleration, calibration_share).sqrt()
        if not relaxed:
            mask = _lines(design, shape[0], acceleration, calibration_share)
        encoder = CartesianSampling(
            mask,
            sensitivities=maps,
            complex_scene=complex_scene,
            compact=not relaxed,
            mean_square=float(mask.square().mean()),
            learn=learn,
        )
    else:
        encoder = NonuniformSampling(
            _trajectory(design, shape, acceleration),
            shape,
            sensitivities=maps,
            complex_scene=complex_scene,
            learn=learn,
        )
    if scenes is None:
        generator = torch.Generator().manual_seed(0)
        scenes = head_slices(n_scenes, shape, generator=generator)
        if complex_scene:
            scenes = with_smooth_phase(scenes, generator=generator)
    return ImagingSystem(encoder, GaussianNoise(1 / snr), scenes)


def with_smooth_phase(scenes: Tensor, *, rms_rad: float = 0.7, generator: torch.Generator) -> Tensor:
    """Real and imaginary part (n, 2, row, column) of `scenes` (n, 1, row, column) times exp(i phase).

    The phase is a polynomial of second order over the image, as the field's inhomogeneity leaves it.
    """
    rows, columns = scenes.shape[-2:]
    y = torch.linspace(-1, 1, rows, dtype=torch.float64)[:, None].expand(rows, columns)
    x = torch.linspace(-1, 1, columns, dtype=torch.float64).expand(rows, columns)
    terms = torch.stack((torch.ones_like(x), x, y, x * y, x**2 - 1 / 3, y**2 - 1 / 3))
    terms = terms / terms.square().mean(dim=(1, 2), keepdim=True).sqrt()
    weights = torch.randn(len(scenes), len(terms), dtype=torch.float64, generator=generator)
    phase = rms_rad / math.sqrt(len(terms)) * torch.tensordot(weights, terms, dims=1)
    field = scenes.double() * torch.polar(torch.ones_like(phase), phase)[:, None]
    return complex_to_channels(field).to(scenes.dtype)


def _density(design: str, rows: int, acceleration: float, calibration_share: float) -> Tensor:
    """Chance of each line, (row,), of mean 1 / acceleration: 1 in the middle, as (1 - |k| / k_max)^3 elsewhere."""
    if design == "full":
        return torch.ones(rows, dtype=torch.float64)
    wanted = rows / acceleration
    if design == "uniform":
        return torch.full((rows,), 1 / acceleration, dtype=torch.float64)
    line = torch.arange(rows, dtype=torch.float64) - rows // 2
    middle = max(1, min(round(calibration_share * rows), int(wanted)))
    certain = torch.zeros(rows, dtype=torch.bool)
    first = rows // 2 - middle // 2
    certain[first : first + middle] = True
    ratio = (1 - line.abs() / (rows / 2 + 1)) ** 3
    # Lines that would be certain beyond the middle are, and the others take up the rest.
    while True:
        left = wanted - float(certain.sum())
        chance = ratio * (left / float(ratio[~certain].sum())) if not bool(certain.all()) else torch.ones_like(ratio)
        above = ~certain & (chance > 1)
        if not bool(above.any()):
            return torch.where(certain, 1.0, chance)
        certain = certain | above


def _lines(design: str, rows: int, acceleration: float, calibration_share: float) -> Tensor:
    """1 for lines measured, 0 for others, (row,): round(rows / acceleration), that in the middle among them."""
    density = _density(design, rows, acceleration, calibration_share)
    count = round(rows / acceleration)
    if design == "uniform":
        index = torch.arange(rows, dtype=torch.float64) - rows // 2
        place = (torch.arange(count, dtype=torch.float64) - count // 2) * (rows / count)
        return ((index[:, None] - place.floor()).abs() < 0.5).any(1).double()
    if design == "full":
        return density
    # Without replacement, with chances as near to the density as one draw in sequence gives.
    chance = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    key = torch.where(density >= 1, 2.0, chance ** (1 / density.clamp(min=1e-12)))
    return torch.zeros_like(density).index_fill(0, key.topk(count).indices, 1.0)


def _trajectory(design: str, shape: tuple[int, int], acceleration: float) -> Tensor:
    """(readout, sample, 2) in cycles per field of view: as many readouts and samples as the lines would have."""
    rows, columns = shape
    field = torch.tensor([rows, columns], dtype=torch.float64)
    readouts = max(1, round(rows / acceleration))
    if design == "radial":
        return field * radial_trajectory(readouts, columns, maximum_cycles=0.5)
    interleaves = max(1, round(readouts / 4))
    samples = round(readouts * columns / interleaves)
    # Turns so far apart as lines are.
    turns = max(rows, columns) / (2 * acceleration * interleaves)
    return field * spiral_trajectory(interleaves, samples, turns=turns, maximum_cycles=0.5)
