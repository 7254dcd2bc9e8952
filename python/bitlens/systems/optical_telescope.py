"""A space telescope: obscured aperture with vanes, a phase or transmission mask in the pupil, and a CCD."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.datasets.phantoms_sky import companions, star_field
from bitlens.encoders import optics, pupils
from bitlens.encoders.convolution import adjoint_image_on_pixels, image_on_pixels
from bitlens.encoders.detector import as_planes, detector_noise, hold
from bitlens.encoders.masks import binary_mask
from bitlens.encoders.zernike import zernike_basis
from bitlens.systems._camera_scenes import check_relative_light
from bitlens.systems._checks import check_count, check_positive, check_scenes, check_shape
from bitlens.systems._wave_checks import (
    check_choice,
    check_pupil_step,
    check_window,
    map_within,
    numbers_within,
    real_values,
    share_of,
    zernike_terms,
)
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription

TelescopeDesign = Literal["obscured", "clear", "phase_mask", "shaped_pupil"]
Sky = Literal["stars", "companions"]
PupilMask = Literal["grey", "binary"]

DESCRIPTION = SystemDescription(
    name="optical_telescope",
    designs=get_args(TelescopeDesign),
    formula="z = N + n, N ~ Poisson(exposure (throughput area bandwidth zero_point (10^(-0.4 magnitude) "
    "pixels(PSF * scene) + passed arcsec^2 10^(-0.4 sky)) + dark))",
    reference="Goodman, Introduction to Fourier Optics, 3rd ed. 2005, ch. 6; Bessell, Castelli and Plez 1998, "
    "Astron. Astrophys. 333, 231",
)

# Of the clear aperture: 0.28 of the whole telescope (WFC3 handbook, appendix A), which counts its obstruction too, over
# the 0.873 that the obstruction passes. The PSF takes that off.
_THROUGHPUT = 0.28 / 0.873
# Photons of a star of V = 0 outside the atmosphere: 3.631e-9 erg / (cm^2 s A) at 545 nm (Bessell et al. 1998).
PHOTONS_PER_S_M2_NM = 9.96e7
_ARCSEC_PER_RADIAN = 180 * 3600 / math.pi
# From the surface of the full moon to darker than between galaxies.
_SKY_MAGNITUDES = (3.0, 40.0)


@final
class Telescope(nn.Module):
    """mean = exposure (throughput area bandwidth zero_point (10^(-0.4 magnitude) pixels(PSF * scene) + sky) + dark).

    PSF = |FFT(A exp(2 pi i (sum_j zernike_j Z_j + pupil_phase)))|^2, A = mask x annulus x vanes; its sum, `passed`, is
    the share of the full aperture that is open. area = pi diameter^2 / 4. sky = passed 10^(-0.4 surface magnitude) per
    arcsec^2, over a pixel of pixel / (f_number diameter) rad. One wavelength stands for the band. Differentiable in
    every number and map, in float64. `A` and `A_adjoint` are the part without sky and dark signal.

    Shapes: scene (batch, 1, row, column) >= 0, flux per sample over that of a star of `magnitude`, `oversampling`
    samples per pixel side and `margin_pixels` around what is measured -> (batch, 1, row, column) photo-electrons.

    Reference: Goodman, Introduction to Fourier Optics, 3rd ed. 2005, ch. 6.
    """

    diameter_m: Tensor
    f_number: Tensor
    wavelength_nm: Tensor
    bandwidth_nm: Tensor
    pixel_um: Tensor
    obstruction_ratio: Tensor
    vane_width: Tensor
    vane_angle_rad: Tensor
    zernike_waves: Tensor
    pupil_phase_waves: Tensor
    pupil_transmission: Tensor
    magnitude: Tensor
    exposure_s: Tensor
    throughput: Tensor
    sky_magnitude_per_arcsec2: Tensor
    dark_electrons_per_s: Tensor

    def __init__(
        self,
        *,
        diameter_m: float,
        f_number: float,
        wavelength_nm: float,
        bandwidth_nm: float,
        pixel_um: float,
        obstruction_ratio: float = 0.0,
        vane_width: float = 0.0,
        vane_angle_rad: Sequence[float] = (),
        zernike_waves: Mapping[int, float] | None = None,
        pupil_phase_waves: Tensor | np.ndarray | None = None,
        pupil_transmission: Tensor | np.ndarray | None = None,
        mask: PupilMask = "grey",
        magnitude: float = 20.0,
        exposure_s: float = 10.0,
        throughput: float = 1.0,
        sky_magnitude_per_arcsec2: float = 22.7,
        dark_electrons_per_s: float = 0.0,
        oversampling: int | None = None,
        margin_pixels: int = 8,
        learn: Sequence[str] = (),
    ) -> None:
        """Takes numbers in the units their names state.

        Args:
            f_number, pixel_um: learned, they stretch the scene, whose samples are parts of a pixel.
            obstruction_ratio, vane_width: over the aperture's diameter; over its radius.
            vane_angle_rad: from +column to +row, one for each vane.
            zernike_waves: {Noll index: rms over the full aperture}.
            pupil_phase_waves, pupil_transmission: (psf_size, psf_size) over the pupil's grid: path error, and amplitude
                transmission 0..1; a "binary" `mask` passes what is above 0.5 (straight-through gradient).
            magnitude, throughput: V, of a star of flux 1; photo-electrons per photon that the open aperture takes.
            sky_magnitude_per_arcsec2, dark_electrons_per_s: V of the sky; of a pixel without light.
            learn: names of arguments to optimise: they become `nn.Parameter`, the others buffers.

        Raises:
            ValueError: a number out of its range, a map of the wrong shape, an unknown name in `learn`.
        """
        super().__init__()
        check_choice("mask", mask, get_args(PupilMask))
        self.mask, self.margin_pixels = mask, check_count("margin_pixels", margin_pixels, least=1)
        values = numbers_within(
            {
                "diameter_m": (diameter_m, 1e-6, math.inf),
                "f_number": (f_number, 0.1, math.inf),
                "wavelength_nm": (wavelength_nm, 1.0, math.inf),
                "bandwidth_nm": (bandwidth_nm, 0.0, math.inf),
                "pixel_um": (pixel_um, 1e-2, math.inf),
                "obstruction_ratio": (obstruction_ratio, 0.0, 0.99),
                "vane_width": (vane_width, 0.0, 1.0),
                "magnitude": (magnitude, -math.inf, math.inf),
                "exposure_s": (exposure_s, 0.0, math.inf),
                "throughput": (throughput, 0.0, 1.0),
                "sky_magnitude_per_arcsec2": (sky_magnitude_per_arcsec2, *_SKY_MAGNITUDES),
                "dark_electrons_per_s": (dark_electrons_per_s, 0.0, math.inf),
            }
        )
        nyquist_um = 0.5e-3 * wavelength_nm * f_number
        needed = max(1, math.ceil(pixel_um / nyquist_um * (1 - 1e-12)))
        if oversampling is not None and check_count("oversampling", oversampling) < needed:
            raise ValueError(
                f"oversampling: need at least {needed} samples per pixel of {pixel_um} um for a PSF with a "
                f"Nyquist pitch of {nyquist_um:.4g} um, got {oversampling}"
            )
        self.oversampling = oversampling or needed
        sample_um = pixel_um / self.oversampling
        spread = check_pupil_step(2e-3 * wavelength_nm * f_number / (self.psf_size * sample_um), margin_pixels)
        self.zernike_indices, values["zernike_waves"] = zernike_terms(zernike_waves, (4,))
        angles = list(vane_angle_rad)
        values["vane_angle_rad"] = (
            real_values("vane_angle_rad", angles, "one angle per vane", (1,))
            if angles
            else torch.zeros(0, dtype=torch.float64)
        )
        values["pupil_phase_waves"] = map_within("pupil_phase_waves", pupil_phase_waves, self.psf_size, fill=0.0)
        values["pupil_transmission"] = map_within(
            "pupil_transmission", pupil_transmission, self.psf_size, fill=1.0, lowest=0.0, highest=1.0
        )
        # What an optimiser may reach, each alone: the samples of the scene go on resolving the PSF, the window holding
        # it, and no more light comes than was given.
        self.parameter_domain: dict[str, tuple[float | None, float | None]] = {
            "diameter_m": (1e-6, diameter_m),
            "f_number": (2e3 * sample_um / wavelength_nm, spread * f_number),
            "wavelength_nm": (2e3 * sample_um / f_number, spread * wavelength_nm),
            "bandwidth_nm": (0.0, bandwidth_nm),
            "pixel_um": (pixel_um / spread, nyquist_um * self.oversampling),
            "obstruction_ratio": (0.0, 0.99),
            "vane_width": (0.0, 1.0),
            "pupil_transmission": (0.0, 1.0),
            "magnitude": (magnitude, None),
            "exposure_s": (0.0, exposure_s),
            "throughput": (0.0, throughput),
            "sky_magnitude_per_arcsec2": _SKY_MAGNITUDES,
            "dark_electrons_per_s": (0.0, None),
        }
        self.parameter_scale: dict[str, float] = {
            "diameter_m": 0.3 * diameter_m,
            "f_number": 0.1 * f_number,
            "wavelength_nm": 0.1 * wavelength_nm,
            "bandwidth_nm": share_of(bandwidth_nm, 0.3),
            "pixel_um": 0.1 * pixel_um,
            "obstruction_ratio": 0.2,
            "vane_width": 0.1,
            "vane_angle_rad": 0.5,
            "zernike_waves": 0.25,
            "pupil_phase_waves": 0.25,
            "pupil_transmission": 0.5,
            "magnitude": 0.5,
            "exposure_s": share_of(exposure_s, 0.3),
            "throughput": share_of(throughput, 0.3),
            "sky_magnitude_per_arcsec2": 2.0,
            # One electron in the exposure.
            "dark_electrons_per_s": max(dark_electrons_per_s, 1.0 / max(exposure_s, 1e-3)),
        }
        hold(self, values, learn)

    @property
    def psf_size(self) -> int:
        """Samples per side of the PSF and of the pupil: odd, so that the origin is in the middle."""
        return 2 * self.margin_pixels * self.oversampling + 1

    def scene_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of samples of a scene that gives a measurement of `shape` pixels."""
        rows, columns = ((size + 2 * self.margin_pixels) * self.oversampling for size in shape)
        return rows, columns

    def pupil_grid(self) -> optics.PupilGrid:
        """Coordinates of the pupil's samples; radius 1 is the edge of the full aperture."""
        return optics.pupil_grid(
            self.psf_size,
            sample_um=self.pixel_um / self.oversampling,
            wavelength_nm=self.wavelength_nm,
            f_number=self.f_number,
        )

    def _opening(self, grid: optics.PupilGrid) -> tuple[Tensor, Tensor]:
        """Share of each sample that annulus and vanes leave open, and the mask's amplitude transmission."""
        annulus = pupils.soft_annulus(grid, outer_radius=1.0, inner_radius=self.obstruction_ratio)
        opening = annulus * pupils.spider(grid, angle_rad=self.vane_angle_rad, width=self.vane_width)
        mask = self.pupil_transmission
        return opening, binary_mask(2 * mask - 1) if self.mask == "binary" else mask

    def pupil(self) -> Tensor:
        """Complex (psf_size, psf_size): aperture, vanes, mask and path error."""
        grid = self.pupil_grid()
        opening, mask = self._opening(grid)
        basis = zernike_basis(self.zernike_indices, grid.column, grid.row)
        path = (self.zernike_waves[:, None, None] * basis).sum(dim=0) + self.pupil_phase_waves
        return optics.pupil(opening * mask, path)

    def passed(self) -> Tensor:
        """Share of the full aperture's light that annulus, vanes and mask pass."""
        grid = self.pupil_grid()
        opening, mask = self._opening(grid)
        # A sample half covered passes half of its light, which the square of the soft edge's amplitude would not.
        return (opening * mask**2).sum() * grid.step**2 / math.pi

    def psf(self) -> Tensor:
        """PSF on the scene's grid (psf_size, psf_size), whose sum is `passed()`."""
        return optics.incoherent_psf(self.pupil(), self.passed())

    def star_electrons(self) -> Tensor:
        """Photo-electrons in the exposure of a star of flux 1 through the full open aperture."""
        return self._electrons_of(self.magnitude)

    def sky_electrons(self) -> Tensor:
        """Photo-electrons of the sky on each pixel in the exposure, through what the aperture passes."""
        pixel_arcsec = 1e-6 * _ARCSEC_PER_RADIAN * self.pixel_um / (self.f_number * self.diameter_m)
        return self.passed() * pixel_arcsec**2 * self._electrons_of(self.sky_magnitude_per_arcsec2)

    def dark_electrons(self) -> Tensor:
        """Electrons of the dark current in each pixel in the exposure."""
        return self.exposure_s * self.dark_electrons_per_s

    def _electrons_of(self, magnitude: Tensor) -> Tensor:
        area_m2 = math.pi / 4 * self.diameter_m**2
        rate = PHOTONS_PER_S_M2_NM * area_m2 * self.bandwidth_nm * 10 ** (-0.4 * magnitude)
        return self.exposure_s * self.throughput * rate

    def _electrons(self) -> Tensor:
        # Flux is per sample: a pixel takes the sum of its samples, oversampling^2 times their mean.
        return self.star_electrons() * self.oversampling**2

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """Photo-electrons (batch, 1, row, column) of the light of `scene` alone.

        Raises:
            ValueError: the scene is too small, or not a whole number of pixels.
        """
        least = self.scene_shape((1, 1))[0]
        scene = check_window("scene", as_planes("scene", scene, channels=1), least=least, multiple=self.oversampling)
        return self._electrons().to(scene.dtype) * image_on_pixels(scene, self.psf(), self.oversampling)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """The adjoint of `A`: (batch, 1, row, column) of the scene."""
        measured = as_planes("measured", measured, channels=1)
        return adjoint_image_on_pixels(self._electrons().to(measured.dtype) * measured, self.psf(), self.oversampling)

    def forward(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photo-electrons (batch, 1, row, column) of `scene`: `A(scene)`, never negative, sky and dark signal."""
        light = self.A(scene)
        return light.clamp(min=0) + (self.sky_electrons() + self.dark_electrons()).to(light.dtype)


def optical_telescope(
    design: TelescopeDesign = "obscured",
    *,
    sky: Sky = "stars",
    diameter_m: float = 2.4,
    f_number: float = 31.0,
    wavelength_nm: float = 531.0,
    bandwidth_nm: float = 156.0,
    pixel_um: float = 15.0,
    zernike_waves: Mapping[int, float] | None = None,
    pupil_phase_waves: Tensor | np.ndarray | None = None,
    pupil_transmission: Tensor | np.ndarray | None = None,
    mask: PupilMask = "grey",
    magnitude: float | None = None,
    exposure_s: float = 10.0,
    sky_magnitude_per_arcsec2: float = 22.7,
    dark_electrons_per_s: float = 0.0017,
    read_electrons: float = 3.1,
    shape: tuple[int, int] = (32, 32),
    margin_pixels: int = 12,
    n_scenes: int = 256,
    scenes: Tensor | np.ndarray | None = None,
    learn: tuple[str, ...] = (),
    full_well_electrons: float | None = 63000.0,
) -> ImagingSystem:
    """A 2.4 m telescope in space: z = N + n, N ~ Poisson(electrons per star pixels(PSF * scene) + sky + dark).

    Designs: "obscured", a third of the diameter, four vanes; "clear"; "phase_mask", a cubic phase of half a wave on the
    obscured aperture; "shaped_pupil", an opening between two Gaussian curves, dark beside the star along its columns.

    Args:
        sky: "stars", 6 of 1 to 30 times the flux at `magnitude` (default 24), or "companions", a star of `magnitude`
            (default 20) with a companion of 0.001 to 0.1 of its flux at 1 to 8 pixels.
        pupil_phase_waves, pupil_transmission: (encoder.psf_size, same), in place of the design's.
        shape, scenes: rows and columns measured; (n, 1, row, column) as `encoder.scene_shape(shape)` says.
        zernike_waves, mask, margin_pixels, learn: as in `Telescope`; a `full_well_electrons` of None never saturates.

    Reference: WFC3 Instrument Handbook, ch. 5 (UVIS: f/31, 15 um = 0.04 arcsec, F555W 531 nm, throughput 0.28, read
        noise 3.1, dark current 6 electrons/h, full well 63,000); zodiacal light, the middle level of three: Giavalisco
        et al. 2002, WFC3 ISR 2002-12; zero point: Bessell et al. 1998; mask: Kasdin et al. 2003, doi:10.1086/344751.
    """
    check_choice("design", design, get_args(TelescopeDesign))
    check_choice("sky", sky, get_args(Sky))
    shape, n_scenes = check_shape(shape), check_count("n_scenes", n_scenes)
    if full_well_electrons is not None:
        check_positive("full_well_electrons", full_well_electrons)
    noise = detector_noise(
        read_electrons=check_positive("read_electrons", read_electrons), full_well_electrons=full_well_electrons
    )
    obstructed = design in ("obscured", "phase_mask")

    def telescope(phase: Tensor | np.ndarray | None, passed: Tensor | np.ndarray | None) -> Telescope:
        return Telescope(
            diameter_m=diameter_m,
            f_number=f_number,
            wavelength_nm=wavelength_nm,
            bandwidth_nm=bandwidth_nm,
            pixel_um=pixel_um,
            obstruction_ratio=0.33 if obstructed else 0.0,
            vane_width=0.022 if obstructed else 0.0,
            vane_angle_rad=[(index + 0.5) * math.pi / 2 for index in range(4)] if obstructed else (),
            zernike_waves=zernike_waves,
            pupil_phase_waves=phase,
            pupil_transmission=passed,
            mask=mask,
            magnitude=(24.0 if sky == "stars" else 20.0) if magnitude is None else magnitude,
            exposure_s=exposure_s,
            throughput=_THROUGHPUT,
            sky_magnitude_per_arcsec2=sky_magnitude_per_arcsec2,
            dark_electrons_per_s=dark_electrons_per_s,
            margin_pixels=margin_pixels,
            learn=learn,
        )

    grid = telescope(None, None).pupil_grid()
    if design == "phase_mask" and pupil_phase_waves is None:
        pupil_phase_waves = (0.5 * (grid.column**3 + grid.row**3)).clamp(-1, 1).detach()
    if design == "shaped_pupil" and pupil_transmission is None:
        pupil_transmission = _gaussian_opening(grid)
    encoder = telescope(pupil_phase_waves, pupil_transmission)
    if scenes is not None:
        check_relative_light(scenes)
        scenes = check_window(
            "scenes",
            check_scenes(scenes, channels=1),
            least=encoder.scene_shape((1, 1))[0],
            multiple=encoder.oversampling,
        )
    else:
        generator, size = torch.Generator().manual_seed(0), encoder.scene_shape(shape)
        if sky == "stars":
            scenes = star_field(n_scenes, size, count=6, brightest=30.0, generator=generator)
        else:
            near, far = (pixels * encoder.oversampling for pixels in (1.0, 8.0))
            scenes = companions(
                n_scenes, size, separation_samples=(near, far), contrast=(1e-3, 1e-1), generator=generator
            )
    return ImagingSystem(encoder, noise, scenes)


def _gaussian_opening(grid: optics.PupilGrid) -> Tensor:
    """Share (n, n) of each sample within |row| < 0.7 exp(-(2 column)^2)."""
    half = 0.7 * torch.exp(-((2 * grid.column) ** 2))
    low, high = grid.row - grid.step / 2, grid.row + grid.step / 2
    covered = torch.minimum(high, half) - torch.maximum(low, -half)
    return (covered / grid.step).clamp(0, 1).detach()
