"""A machine-vision camera: in focus, out of focus, or stopped down."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from torch import Tensor

from bitlens.encoders import Camera
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems._camera_scenes import camera_scenes
from bitlens.systems._checks import check_count, check_names, check_number, check_positive
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription

CameraDesign = Literal["in_focus", "defocused", "small_aperture"]

DESCRIPTION = SystemDescription(
    name="camera",
    designs=get_args(CameraDesign),
    formula="z = N + n, N ~ Poisson(photons pixels(PSF * scene) + dark), n ~ Normal(0, read_std^2)",
    reference="Goodman, Introduction to Fourier Optics, 3rd ed. 2005, ch. 6; EMVA 1288 release 4.0",
)

_DEFOCUS_WAVES = {"in_focus": 0.0, "defocused": 1.0, "small_aperture": 0.0}
_APERTURE_RADIUS = {"in_focus": 1.0, "defocused": 1.0, "small_aperture": 0.5}


def camera(
    design: CameraDesign = "in_focus",
    *,
    photons: float = 200.0,
    read_std: float = 2.0,
    patch_pixels: int = 16,
    margin_pixels: int = 12,
    scenes: Tensor | np.ndarray | None = None,
    learn: tuple[str, ...] = (),
) -> ImagingSystem:
    """A lens of f/8 at 550 nm before 3.45 um pixels, in three designs at equal exposure time.

    "in_focus": diffraction limited. "defocused": one wave (peak) of defocus, the sensor 0.28 mm off focus.
    "small_aperture": half the diameter (f/16), so a quarter of the light: equal exposure, not equal light.

    Args:
        photons: detected per pixel (photo-electrons) where the scene is 1, at full aperture; dark signal is 0.05.
        read_std: read noise, electrons; the gain is 1.
        patch_pixels: pixels per side of a measurement of the default scenes.
        scenes: (n, 1, row, column), linear light, 2 samples per pixel side; default 512 patches of bundled images.
        margin_pixels, learn: as in `bitlens.encoders.Camera`.

    Reference: data sheet of the mvBlueFOX3-2051 camera (Sony IMX250, 3.45 um; 40.3 and 71.2 dB by EMVA 1288,
        which are a full well of 10,700 and a read noise of 2.4 electrons).
    """
    if design not in get_args(CameraDesign):
        raise ValueError(f"design: need one of {get_args(CameraDesign)}, got {design!r}")
    check_positive("photons", photons)
    check_number("read_std", read_std)
    check_count("margin_pixels", margin_pixels)
    check_names(learn)
    encoder = Camera(
        wavelength_nm=550,
        f_number=8,
        pixel_um=3.45,
        aperture_radius=_APERTURE_RADIUS[design],
        defocus_waves=_DEFOCUS_WAVES[design],
        exposure_photons=photons,
        dark_electrons=0.05,
        margin_pixels=margin_pixels,
        learn=learn,
    )
    side = check_count("patch_pixels", patch_pixels)
    found = camera_scenes(
        scenes,
        lambda rows, columns: (encoder.scene_size(rows), encoder.scene_size(columns)),
        shape=(side, side),
        n_scenes=512,
    )
    return ImagingSystem(encoder, PoissonGaussianNoise(read_std=read_std), found)
