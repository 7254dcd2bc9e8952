"""The systems of wave optics in small, for test_system_contract.py."""

from __future__ import annotations

import torch
from system_case import SystemCase

from bitlens.systems import ImagingSystem
from bitlens.systems.fluorescence_microscope import fluorescence_microscope
from bitlens.systems.fourier_ptychography import fourier_ptychography
from bitlens.systems.inline_holography import inline_holography
from bitlens.systems.optical_telescope import optical_telescope
from bitlens.systems.phase_contrast_microscope import phase_contrast_microscope, source_pattern

_SHAPES = ((8, 8), (7, 10))


def _random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def _fluorescence(shape: tuple[int, int], learn: tuple[str, ...]) -> ImagingSystem:
    return fluorescence_microscope(
        "defocused",
        zernike_waves={5: 0.05, 11: -0.08},
        pupil_phase_waves=0.1 * _random(17, 17),
        margin_pixels=4,
        shape=shape,
        n_scenes=96,
        learn=learn,
    )


def _telescope(shape: tuple[int, int], learn: tuple[str, ...]) -> ImagingSystem:
    return optical_telescope(
        "obscured",
        zernike_waves={4: 0.05, 7: -0.06},
        pupil_phase_waves=0.1 * _random(25, 25),
        pupil_transmission=0.5 + 0.5 * _random(25, 25),
        margin_pixels=6,
        shape=shape,
        n_scenes=96,
        learn=learn,
    )


def _phase_contrast(shape: tuple[int, int], learn: tuple[str, ...]) -> ImagingSystem:
    return phase_contrast_microscope(
        "zernike_ring",
        source_weights=torch.cat((0.5 * source_pattern("half_circles", 5)[:2], source_pattern("brightfield", 5))),
        defocus_um=1.0,
        zernike_waves={5: 0.05, 8: 0.03},
        margin_pixels=2,
        shape=shape,
        n_scenes=96,
        learn=learn,
    )


def _holography(shape: tuple[int, int], learn: tuple[str, ...]) -> ImagingSystem:
    return inline_holography(
        "shifted_frames",
        distance_mm=0.05,
        n_depths=2,
        tilt_rad=(0.05, -0.03),
        particle_amplitude=0.3,
        particle_phase_rad=0.6,
        margin_pixels=2,
        shape=shape,
        n_scenes=96,
        learn=learn,
    )


def _ptychography(shape: tuple[int, int], learn: tuple[str, ...]) -> ImagingSystem:
    return fourier_ptychography(
        "sparse_array",
        defocus_um=10.0,
        zernike_waves={5: 0.05, 7: -0.04},
        photons=2000.0,
        margin_pixels=1,
        shape=shape,
        n_scenes=96,
        learn=learn,
    )


CASES = [
    SystemCase(
        "fluorescence_microscope",
        _fluorescence,
        _SHAPES,
        parameters=(
            *("wavelength_nm", "numerical_aperture", "immersion_index", "object_pixel_um", "defocus_um"),
            *("zernike_waves", "pupil_phase_waves", "emitted_photons", "efficiency", "background_electrons"),
        ),
        linear=True,
        counts=True,
    ),
    SystemCase(
        "optical_telescope",
        _telescope,
        _SHAPES,
        parameters=(
            *("diameter_m", "f_number", "wavelength_nm", "bandwidth_nm", "pixel_um", "obstruction_ratio"),
            *("vane_width", "vane_angle_rad", "zernike_waves", "pupil_phase_waves", "pupil_transmission"),
            *("magnitude", "exposure_s", "throughput", "sky_magnitude_per_arcsec2", "dark_electrons_per_s"),
        ),
        linear=True,
        counts=True,
    ),
    SystemCase(
        "phase_contrast_microscope",
        _phase_contrast,
        _SHAPES,
        parameters=(
            *("wavelength_nm", "numerical_aperture", "illumination_aperture", "object_pixel_um", "source_weights"),
            *("ring_radii", "ring_amplitude", "ring_phase_rad", "defocus_um", "zernike_waves", "photons"),
            "dark_electrons",
        ),
        linear=False,
        counts=True,
    ),
    SystemCase(
        "inline_holography",
        _holography,
        _SHAPES,
        parameters=(
            *("distance_mm", "wavelength_nm", "pixel_um", "tilt_rad", "shift_um", "particle_amplitude"),
            *("particle_phase_rad", "photons", "dark_electrons"),
        ),
        linear=False,
        counts=True,
    ),
    SystemCase(
        "fourier_ptychography",
        _ptychography,
        _SHAPES,
        parameters=(
            *("wavelength_nm", "numerical_aperture", "object_pixel_um", "led_position_mm", "led_height_mm", "led_gain"),
            *("defocus_um", "zernike_waves", "photons", "dark_electrons"),
        ),
        linear=False,
        counts=True,
    ),
]
