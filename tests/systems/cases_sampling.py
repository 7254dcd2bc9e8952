"""Systems that sample transforms of a scene, in small."""

from __future__ import annotations

import functools

import torch
from system_case import SystemCase
from torch import Tensor

from bitlens.systems import ImagingSystem
from bitlens.systems.coded_aperture_spectral_imager import coded_aperture_spectral_imager
from bitlens.systems.mri import MRIDesign, mri
from bitlens.systems.radio_interferometer import radio_interferometer
from bitlens.systems.single_pixel_camera import single_pixel_camera
from bitlens.systems.x_ray_ct import XRayDesign, x_ray_ct

N_SCENES = 96


def _squares(shape: tuple[int, int]) -> Tensor:
    """(n, 1, row, column): a bright rectangle at a random place on a random ground."""
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(N_SCENES, 2, 1, generator=generator)
    inside = [((torch.arange(size) / size - start[:, axis]).abs() < 0.25).float() for axis, size in enumerate(shape)]
    ground = torch.rand(N_SCENES, 1, 1, 1, generator=generator)
    return 0.2 + ground + (inside[0][:, :, None] * inside[1][:, None, :])[:, None]


def _single_pixel_camera(shape: tuple[int, int], learn: tuple[str, ...]) -> ImagingSystem:
    return single_pixel_camera(
        "hadamard",
        shape=shape,
        exposure_photons=2e4,
        dark_electrons=100.0,
        read_electrons=1000.0,
        scenes=_squares(shape),
        learn=learn,
    )


def _spectral_imager(shape: tuple[int, int], learn: tuple[str, ...]) -> ImagingSystem:
    return coded_aperture_spectral_imager(
        "random", shape=shape, n_bands=5, dispersion_pixels=4.6, photons=5.0, n_scenes=N_SCENES, learn=learn
    )


def _x_ray_ct(design: XRayDesign, shape: tuple[int, int], learn: tuple[str, ...]) -> ImagingSystem:
    return x_ray_ct(
        design,
        shape=shape,
        pixel_mm=400.0 / max(shape),
        views=5,
        photons=5e3,
        background_photons=1.0,
        n_scenes=N_SCENES,
        learn=learn,
    )


def _mri(design: MRIDesign, shape: tuple[int, int], learn: tuple[str, ...]) -> ImagingSystem:
    return mri(design, shape=shape, acceleration=2.0, coils=2, snr=5.0, n_scenes=N_SCENES, learn=learn)


def _radio_interferometer(shape: tuple[int, int], learn: tuple[str, ...]) -> ImagingSystem:
    return radio_interferometer(
        "y_shaped",
        shape=shape,
        n_stations=4,
        extent_m=300.0,
        hour_angles_h=(-2.0, 0.0, 2.0),
        sefd_jy=2e4,
        n_scenes=N_SCENES,
        learn=learn,
    )


CASES = (
    SystemCase(
        "single_pixel_camera",
        _single_pixel_camera,
        shapes=((8, 8), (8, 16)),
        parameters=("patterns", "time_weights"),
        linear=True,
        counts=True,
    ),
    SystemCase(
        "coded_aperture_spectral_imager",
        _spectral_imager,
        shapes=((8, 8), (6, 9)),
        parameters=("mask", "dispersion_pixels"),
        linear=True,
        counts=True,
    ),
    SystemCase(
        "x_ray_ct",
        functools.partial(_x_ray_ct, "parallel"),
        shapes=((8, 8), (8, 6)),
        parameters=("photons_per_view", "angles_rad", "offset_mm"),
        linear=False,
        counts=True,
    ),
    SystemCase(
        "x_ray_ct",
        functools.partial(_x_ray_ct, "fan"),
        shapes=((8, 8), (8, 6)),
        parameters=("photons_per_view", "angles_rad", "offset_mm", "source_mm", "detector_mm"),
        linear=False,
        counts=True,
    ),
    SystemCase(
        "mri",
        functools.partial(_mri, "variable_density"),
        shapes=((8, 8), (8, 6)),
        parameters=("mask", "sensitivities"),
        linear=True,
        counts=False,
    ),
    SystemCase(
        "mri",
        functools.partial(_mri, "spiral"),
        shapes=((8, 8), (8, 6)),
        parameters=("trajectory", "sensitivities"),
        linear=True,
        counts=False,
    ),
    SystemCase(
        "radio_interferometer",
        _radio_interferometer,
        shapes=((8, 8), (8, 12)),
        parameters=("stations_m", "hour_angles_rad", "wavelength_mm"),
        linear=True,
        counts=False,
    ),
)
