"""Cameras in small: colour, lensless, thermal, from orbit, and one that tells faces apart."""

from __future__ import annotations

import math

import torch
from system_case import SystemCase
from torch import Tensor

from bitlens.encoders import Camera
from bitlens.systems import ImagingSystem
from bitlens.systems._thermal_radiation import photodiode_efficiency
from bitlens.systems.color_camera import color_camera
from bitlens.systems.face_recognition_camera import face_recognition_camera
from bitlens.systems.infrared_camera import infrared_camera
from bitlens.systems.lensless_camera import lensless_camera
from bitlens.systems.satellite_imager import satellite_imager

Learn = tuple[str, ...]
Shape = tuple[int, int]

N_SCENES = 96


def blobs(n_channels: int, rows: int, columns: int) -> Tensor:
    """Smooth positive scenes (n, channel, row, column) around 1."""
    coarse = torch.rand(N_SCENES, n_channels, 5, 5, generator=torch.Generator().manual_seed(0))
    return 0.2 + 1.6 * torch.nn.functional.interpolate(coarse, size=(rows, columns), mode="bicubic").clamp(min=0)


def aberrated(lens: Camera) -> None:
    """Off focus and off a flat phase, where the mean depends on them to first order."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        lens.defocus_waves.fill_(0.3)
        size = lens.phase_mask_waves.shape
        lens.phase_mask_waves.copy_(0.1 * torch.randn(size, dtype=torch.float64, generator=generator))


def color(shape: Shape, learn: Learn) -> ImagingSystem:
    # The lens of f/5.6 takes 3 samples per pixel for blue.
    rows, columns = (3 * (n + 4) for n in shape)
    scenes = blobs(3, rows, columns)
    # Filters away from 0 and 1, so that a finite difference stays within.
    spectra = 0.1 + 0.8 * torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    system = color_camera(
        "learned",
        tile_pixels=3,
        margin_pixels=2,
        spectra=spectra,
        dark_electrons=2.0,
        scenes=scenes,
        learn=learn,
    )
    aberrated(system.encoder.lens)
    return system


def lensless(shape: Shape, learn: Learn) -> ImagingSystem:
    # Bumps of 60 um keep the light of so small a mask within its window.
    scenes = blobs(2, *shape)
    return lensless_camera(
        "diffuser", depths_mm=(20.0, math.inf), bump_um=60.0, shape=shape, scenes=scenes, learn=learn
    )


def infrared(shape: Shape, learn: Learn) -> ImagingSystem:
    # Two pixels of motion in 6 ms: five at each edge, of 3 samples.
    rows, columns = (3 * (n + 2 * (1 + 3)) for n in shape)
    scenes = 295.0 + 5.0 * blobs(1, rows, columns)
    # A warm detector, whose dark signal counts.
    system = infrared_camera(
        "mid_wave",
        pixels_per_s=330.0,
        dark_electrons_per_s=1e8,
        quantum_efficiency=photodiode_efficiency(5.4),
        margin_pixels=1,
        scenes=scenes,
        shape=shape,
        learn=learn,
    )
    aberrated(system.encoder.lens)
    return system


def satellite(shape: Shape, learn: Learn) -> ImagingSystem:
    rows, columns = (4 * (n + 2 * (3 + 1)) for n in shape)
    scenes = 80.0 * blobs(2, rows, columns)
    return satellite_imager(
        n_stages=4,
        # Off zero, where the interpolation of a drift has a kink.
        mismatch_pixels=0.02,
        drift_pixels=-0.03,
        center_nm=(655.0, 850.0),
        width_nm=(350.0, 200.0),
        # With less the pupil of 850 nm has too few samples for a higher f-number.
        margin_pixels=3,
        scenes=scenes,
        learn=learn,
    )


def face(shape: Shape, learn: Learn) -> ImagingSystem:
    rows, columns = (8 * (n + 4) for n in shape)
    system = face_recognition_camera("coarse_pixels", scenes=blobs(1, rows, columns), learn=learn)
    aberrated(system.encoder)
    return system


LENS = ("aperture_radius", "defocus_waves", "phase_mask_waves", "exposure_photons", "quantum_efficiency")

CASES = [
    SystemCase(
        "color_camera",
        color,
        ((6, 6), (5, 8)),
        ("choice_logits", "spectra", "dark_electrons", *LENS),
        linear=True,
        counts=True,
    ),
    SystemCase(
        "lensless_camera",
        lensless,
        ((12, 12), (10, 14)),
        ("height_um", "amplitude", "distance_mm", "wavelength_nm", "exposure_photons"),
        linear=True,
        counts=True,
    ),
    SystemCase(
        "infrared_camera",
        infrared,
        ((6, 6), (5, 8)),
        (
            *("short_um", "long_um", "exposure_ms", "quantum_efficiency", "dark_electrons_per_s", "photo_response"),
            *("f_number", "defocus_waves", "phase_mask_waves"),
        ),
        linear=False,
        counts=True,
    ),
    SystemCase(
        "satellite_imager",
        satellite,
        ((6, 6), (5, 8)),
        ("width_nm", "f_number", "quantum_efficiency", "mismatch_pixels", "drift_pixels"),
        linear=True,
        counts=True,
    ),
    SystemCase(
        "face_recognition_camera",
        face,
        ((6, 6), (5, 8)),
        (*LENS, "dark_electrons"),
        linear=True,
        counts=True,
    ),
]
