"""Encoders: differentiable maps from a scene to the mean measurement, and their building blocks."""

from bitlens.encoders.camera import Camera
from bitlens.encoders.optics import (
    PupilGrid,
    defocus_peak_to_rms,
    defocus_waves,
    incoherent_psf,
    pupil,
    pupil_grid,
    soft_disc,
)
from bitlens.encoders.sensor import integrate_pixels, photoelectrons
from bitlens.encoders.zernike import noll_to_radial_azimuthal, zernike, zernike_basis

__all__ = [
    "Camera",
    "PupilGrid",
    "defocus_peak_to_rms",
    "defocus_waves",
    "incoherent_psf",
    "integrate_pixels",
    "noll_to_radial_azimuthal",
    "photoelectrons",
    "pupil",
    "pupil_grid",
    "soft_disc",
    "zernike",
    "zernike_basis",
]
