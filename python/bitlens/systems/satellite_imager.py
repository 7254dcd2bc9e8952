"""A push-broom imager in orbit: telescope, line sensor with or without delay stages, spectral bands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, final, get_args

import numpy as np
import torch
from scipy import constants
from torch import Tensor

from bitlens.encoders import LinearEncoder, MotionSmear, TimeDelayIntegration, incoherent_psf, pupil, pupil_grid
from bitlens.encoders.detector import Values, as_planes, as_values, detector_noise, hold, within
from bitlens.encoders.pixel_blur import blurred_pixels, blurred_pixels_adjoint
from bitlens.encoders.pupils import soft_annulus
from bitlens.systems._camera_scenes import as_sequence, camera_scenes
from bitlens.systems._checks import check_count, check_names, check_number, check_positive
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription

SatelliteDesign = Literal["panchromatic_tdi", "panchromatic_line", "multispectral"]

DESCRIPTION = SystemDescription(
    name="satellite_imager",
    designs=get_args(SatelliteDesign),
    formula="z = N + n, N ~ Poisson(stages t QE tau A pi (1 - e^2) / (4 F^2) width wl / (h c) pixels(PSF * smear * L))",
    reference="Wong, Yao and Schowengerdt 1992, doi:10.1147/rd.361.0083; Schowengerdt, Remote Sensing, 2007, ch. 3",
)

_METERS_PER_EARTH_RADIUS = 6.371e6
_EARTH_GRAVITY_M3_PER_S2 = 3.986004418e14
_SILICON_NM = (350.0, 1100.0)
_FOCAL_LENGTH_M = 12.9025
_OF_IMAGER = ("width_nm", "f_number", "quantum_efficiency")
_OF_SMEAR = ("mismatch_pixels", "drift_pixels")


def line_time_s(ground_sample_m: float, altitude_km: float) -> float:
    """Time in which the ground track of a circular orbit moves by one ground sample, seconds; the Earth does not turn.

    Ground speed = sqrt(GM / r) R / r, R = 6371 km, r = R + altitude.
    """
    radius_m = _METERS_PER_EARTH_RADIUS + 1e3 * altitude_km
    speed = math.sqrt(_EARTH_GRAVITY_M3_PER_S2 / radius_m) * _METERS_PER_EARTH_RADIUS / radius_m
    return ground_sample_m / speed


@final
class SatelliteImager(LinearEncoder):
    """mean_b = stages t electrons_b pixels(PSF_b * smear * L_b), photo-electrons, L_b spectral radiance.

    electrons_b = QE_b tau A pi (1 - e^2) / (4 F^2) width_b wavelength_b / (h c) per second, W / (m^2 sr um) and pixel:
    A the pixel's area, e the obscured share of the diameter, t the line time. A single line smears by one row; with
    delay stages the charge follows the ground in `oversampling` steps a row, but for mismatch and drift.

    Shapes: scene (batch, band, row, column), rows along the track, `oversampling` samples per pixel side -> (batch,
    band, row, column), pixels that see no boundary.

    Args:
        center_nm, width_nm, quantum_efficiency: a number or one per band. Widths beyond their first sum are scaled to
            it, so that bands share the spectrum; no efficiency is learned above the best band's.
        f_number: sets the diameter, learned at most the first one; the focal length stays.
        altitude_km: sets the line time, with the ground sample altitude pixel / focal length.
        margin_pixels: reach of the PSF; 0.2 wavelength F / margin of the light is folded back into it.
        learn: "width_nm", "f_number", "quantum_efficiency", and with stages "mismatch_pixels", "drift_pixels".

    Reference: Wong, Yao and Schowengerdt 1992, doi:10.1147/rd.361.0083; Schowengerdt, Remote Sensing, 2007, ch. 3.
    """

    center_nm: Tensor
    width_nm: Tensor
    f_number: Tensor
    quantum_efficiency: Tensor
    total_width_nm: Tensor

    def __init__(
        self,
        *,
        center_nm: Values,
        width_nm: Values,
        quantum_efficiency: Values,
        f_number: float,
        pixel_um: float,
        focal_length_m: float,
        altitude_km: float,
        n_stages: int = 1,
        mismatch_pixels: float = 0.0,
        drift_pixels: float = 0.0,
        obscuration: float = 0.0,
        transmission: float = 1.0,
        oversampling: int = 4,
        margin_pixels: int = 4,
        learn: Sequence[str] = (),
    ) -> None:
        super().__init__()
        _check_learn(learn)
        for name, value in (
            *(("f_number", f_number), ("pixel_um", pixel_um)),
            *(("focal_length_m", focal_length_m), ("altitude_km", altitude_km)),
        ):
            check_positive(name, value)
        for name, value in (
            *(("transmission", transmission), ("obscuration", obscuration)),
            *(("mismatch_pixels", mismatch_pixels), ("drift_pixels", drift_pixels)),
        ):
            check_number(name, value)
        if not 0 < transmission <= 1:
            raise ValueError(f"transmission: need a number above 0 and at most 1, got {transmission}")
        n_stages, margin_pixels = check_count("n_stages", n_stages), check_count("margin_pixels", margin_pixels)
        if not 0 <= obscuration < 1:
            raise ValueError(f"obscuration: need at least 0 and below 1, got {obscuration}")
        center, width, efficiency = (
            within(name, as_values(name, value, "a number or one per band", (0, 1)).double().reshape(-1), 0.0)
            for name, value in (
                ("center_nm", center_nm),
                ("width_nm", width_nm),
                ("quantum_efficiency", quantum_efficiency),
            )
        )
        if not len(center) == len(width) == len(efficiency):
            raise ValueError(
                f"center_nm, width_nm, quantum_efficiency: need as many of each, got {len(center)}, {len(width)} and "
                f"{len(efficiency)}"
            )
        for name, least in (("center_nm", float(center.min())), ("width_nm", float(width.min()))):
            if not least > 0:
                raise ValueError(f"{name}: need positive numbers, got {least:g}")
        needed = math.ceil(2 * pixel_um / (1e-3 * float(center.min()) * f_number) * (1 - 1e-12))
        if oversampling < needed:
            raise ValueError(f"oversampling: need at least {needed} to resolve the PSF, got {oversampling}")
        self.pixel_um, self.oversampling, self.margin_pixels = float(pixel_um), oversampling, margin_pixels
        # What an optimiser may reach: no more light than was given, beyond what silicon sees a wider band would bring
        # none, and a pupil of at least two samples in the radius, or the PSF would leave its window.
        widest_nm = 2 * float(torch.minimum(center - _SILICON_NM[0], _SILICON_NM[1] - center).min())
        smallest = (2 * margin_pixels * oversampling + 1) * pixel_um / oversampling / (4e-3 * float(center.max()))
        self.parameter_domain: dict[str, tuple[float | None, float | None]] = {
            "width_nm": (0.0, min(max(widest_nm, float(width.max())), float(width.sum()))),
            "f_number": (float(f_number), max(smallest, float(f_number))),
            "quantum_efficiency": (0.0, min(float(efficiency.max()), 1.0)),
        }
        self.parameter_scale: Mapping[str, float] = {
            "width_nm": 0.3 * float(width.min()),
            "f_number": 0.3 * f_number,
            "quantum_efficiency": 0.3,
        }
        self.obscuration, self.transmission, self.n_stages = obscuration, transmission, n_stages
        self.ground_sample_m = 1e-3 * altitude_km * pixel_um / focal_length_m
        self.line_time_s = line_time_s(self.ground_sample_m, altitude_km)
        self.focal_length_m = float(focal_length_m)
        of_smear = tuple(name for name in learn if name in _OF_SMEAR)
        self.smear = _smear(n_stages, mismatch_pixels, drift_pixels, oversampling, of_smear)
        values = {
            "width_nm": width,
            "f_number": as_values("f_number", f_number, "a number", (0,)).double(),
            "quantum_efficiency": within("quantum_efficiency", efficiency, 0.0, 1.0),
        }
        hold(self, values, tuple(name for name in learn if name in _OF_IMAGER))
        self.register_buffer("center_nm", center)
        self.register_buffer("total_width_nm", width.sum())

    @property
    def diameter_m(self) -> Tensor:
        """Of the aperture: focal length / f-number."""
        return self.focal_length_m / self.f_number

    def widths_nm(self) -> Tensor:
        """Widths of the bands as they pass light: `width_nm`, scaled down where their sum is above the first one."""
        present = self.width_nm.sum()
        return self.width_nm * torch.minimum(self.total_width_nm, present) / torch.where(present > 0, present, 1.0)

    @property
    def edge_pixels(self) -> int:
        """Pixels on each side of a scene that only serve the PSF and the smear."""
        return self.margin_pixels + self.smear.reach_pixels // self.oversampling

    def scene_size(self, rows: int, columns: int) -> tuple[int, int]:
        """Scene samples along rows and columns that give a mean of `rows` x `columns` pixels."""
        edge = 2 * self.edge_pixels
        return (rows + edge) * self.oversampling, (columns + edge) * self.oversampling

    def psf(self) -> Tensor:
        """(band, n, n) of the telescope, sum 1, on the scene's grid."""
        size = 2 * self.margin_pixels * self.oversampling + 1
        grid = pupil_grid(
            size, sample_um=self.f_number.new_tensor(self.pixel_um / self.oversampling), wavelength_nm=self.center_nm,
            f_number=self.f_number,
        )  # fmt: skip
        full = torch.ones_like(self.center_nm)
        amplitude = soft_annulus(grid, outer_radius=full, inner_radius=self.obscuration * full)
        return incoherent_psf(pupil(amplitude, torch.zeros_like(amplitude)), full)

    def electrons(self) -> Tensor:
        """Photo-electrons (band, 1, 1) of all stages for a scene of 1 W / (m^2 sr um)."""
        solid_angle = math.pi * (1 - self.obscuration**2) / (4 * self.f_number**2)
        power = solid_angle * self.transmission * (1e-6 * self.pixel_um) ** 2 * 1e-3 * self.widths_nm()
        photons_per_joule = 1e-9 * self.center_nm / (constants.h * constants.c)
        exposure_s = self.n_stages * self.line_time_s
        return (exposure_s * self.quantum_efficiency * power * photons_per_joule)[:, None, None]

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photo-electrons (batch, band, row, column) of scenes in W / (m^2 sr um)."""
        scene = as_planes("scene", scene, channels=len(self.center_nm))
        light = blurred_pixels(self.smear.A(scene), self.psf(), self.oversampling)
        return light * self.electrons().to(scene.dtype)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """Back through pixels, telescope and smear: (batch, band, row, column) of the scene."""
        measured = as_planes("measured", measured, channels=len(self.center_nm))
        light = measured * self.electrons().to(measured.dtype)
        return self.smear.A_adjoint(blurred_pixels_adjoint(light, self.psf(), self.oversampling))


def _check_learn(learn: Sequence[str]) -> None:
    check_names(learn)
    for name in learn:
        if name not in (*_OF_IMAGER, *_OF_SMEAR):
            raise ValueError(f"learn: need names among {', '.join((*_OF_IMAGER, *_OF_SMEAR))}, got {name!r}")


def _smear(
    n_stages: int, mismatch_pixels: float, drift_pixels: float, oversampling: int, learn: tuple[str, ...]
) -> MotionSmear | TimeDelayIntegration:
    """On the fine grid: there a stage is `oversampling` stages of one sample each, with the same relative mismatch."""
    if n_stages == 1:
        if learn or mismatch_pixels or drift_pixels:
            raise ValueError("mismatch_pixels, drift_pixels: need delay stages, n_stages above 1, got 1")
        return MotionSmear(oversampling, direction_degrees=90.0, reach_pixels=oversampling)
    steps = n_stages * oversampling
    # Room for the slip of one pixel over all stages, or twice the present one, in whole pixels.
    slip = max(1.0, 2 * n_stages * abs(mismatch_pixels), 2 * n_stages * abs(drift_pixels))
    reach = oversampling * math.ceil(0.5 * slip + 2 / oversampling)
    return TimeDelayIntegration(
        steps, mismatch_pixels=mismatch_pixels, drift_pixels=drift_pixels, reach_pixels=reach, learn=learn
    )


def satellite_imager(
    design: SatelliteDesign = "panchromatic_tdi",
    *,
    n_stages: int | None = None,
    mismatch_pixels: float = 0.0,
    drift_pixels: float = 0.0,
    radiance: float = 80.0,
    f_number: float = 19.85,
    center_nm: float | Sequence[float] | None = None,
    width_nm: float | Sequence[float] | None = None,
    altitude_km: float = 694.0,
    full_well_electrons: float | None = 2e5,
    margin_pixels: int | None = None,
    shape: tuple[int, int] = (16, 16),
    n_scenes: int = 256,
    scenes: Tensor | np.ndarray | None = None,
    learn: tuple[str, ...] = (),
) -> ImagingSystem:
    """mean_b = stages t QE tau A pi (1 - e^2) / (4 F^2) width wavelength / (h c) pixels(PSF * smear * L_b), electrons.

    12.9 m focal length, f/19.85 (0.65 m), 694 km. "panchromatic_tdi": 655 nm, 350 nm wide, 13 um (0.7 m on the ground),
    13 delay stages; "panchromatic_line": a single line; "multispectral": blue, green, red, near infrared, 52 um, a
    single line each.
    They are compared at one scene and orbit, not at equal light: stages add up.

    Args:
        n_stages: 1 for a line. mismatch_pixels, drift_pixels: rows, columns that the image leaves the charge a stage.
        radiance: mean of the default scenes (bundled images, alike in all bands), W / (m^2 sr um) at the aperture.
        f_number: given or learned, it changes the diameter alone. full_well_electrons: where pixels saturate, or None.
        center_nm, width_nm: of the bands, a number or several, as many as the scenes have channels.
        margin_pixels: reach of the telescope's PSF; default 104 um.
        shape: pixels, rows (along the track) and columns, of the default scenes.
        learn: "width_nm", "f_number", "quantum_efficiency", and with stages "mismatch_pixels", "drift_pixels".

    Reference: Pleiades-HR on eoportal.org (aperture, pixels, bands, stages, altitude; noise, efficiency and full well
        are usual for such CCDs); Schowengerdt, Remote Sensing, 3rd ed. 2007, ch. 3.
    """
    if design not in get_args(SatelliteDesign):
        raise ValueError(f"design: need one of {get_args(SatelliteDesign)}, got {design!r}")
    multispectral = design == "multispectral"
    if center_nm is None:
        center_nm = (490.0, 550.0, 660.0, 850.0) if multispectral else (655.0,)
    if width_nm is None:
        width_nm = (120.0, 120.0, 120.0, 200.0) if multispectral else (350.0,)
    centers, widths = as_sequence("center_nm", center_nm), as_sequence("width_nm", width_nm)
    check_positive("radiance", radiance)
    check_positive("f_number", f_number)
    if full_well_electrons is not None:
        check_positive("full_well_electrons", full_well_electrons)
    if not min(centers) > 0:  # before the samples are chosen by it
        raise ValueError(f"center_nm: need positive numbers, got {centers}")
    stages = (13 if design == "panchromatic_tdi" else 1) if n_stages is None else n_stages
    pixel_um = 52.0 if multispectral else 13.0
    encoder = SatelliteImager(
        center_nm=centers,
        width_nm=widths,
        quantum_efficiency=[0.5] * len(centers),
        f_number=f_number,
        pixel_um=pixel_um,
        focal_length_m=_FOCAL_LENGTH_M,
        altitude_km=altitude_km,
        n_stages=stages,
        mismatch_pixels=mismatch_pixels,
        drift_pixels=drift_pixels,
        obscuration=0.3,
        transmission=0.7,
        oversampling=max(4, math.ceil(2e3 * pixel_um / (min(centers) * f_number))),
        margin_pixels=(2 if multispectral else 8) if margin_pixels is None else margin_pixels,
        learn=learn,
    )
    found = camera_scenes(
        scenes, encoder.scene_size, channels=len(centers), shape=shape, n_scenes=n_scenes, relative=False
    )
    if scenes is None:
        found = radiance * found.expand(-1, len(centers), -1, -1)
    return ImagingSystem(encoder, detector_noise(read_electrons=30.0, full_well_electrons=full_well_electrons), found)
