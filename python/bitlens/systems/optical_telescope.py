"""A space telescope: obscured aperture with vanes, a phase or transmission mask in the pupil, and a CCD."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bitlens import ops
from bitlens.datasets.phantoms_sky import companions, star_field
from bitlens.encoders import optics, pupils, sensor
from bitlens.encoders.detector import as_planes, as_values, hold, within
from bitlens.encoders.masks import binary_mask
from bitlens.encoders.zernike import zernike_basis
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription

TelescopeDesign = Literal["obscured", "clear", "phase_mask", "shaped_pupil"]
Sky = Literal["stars", "companions"]
PupilMask = Literal["grey", "binary"]

DESCRIPTION = SystemDescription(
    name="optical_telescope",
    designs=get_args(TelescopeDesign),
    formula="z = N + n, N ~ Poisson(exposure (throughput area bandwidth zero_point 10^(-0.4 magnitude) "
    "pixels(PSF * scene) + sky + dark))",
    reference="Goodman, Introduction to Fourier Optics, 3rd ed. 2005, ch. 6; Bessell, Castelli and Plez 1998, "
    "Astron. Astrophys. 333, 231",
)

# Of the clear aperture: 0.28 of the whole telescope (WFC3 handbook, appendix A), which counts its obstruction too, over
# the 0.873 that the obstruction passes. The PSF takes that off.
_THROUGHPUT = 0.28 / 0.873
# Photons of a star of V = 0 outside the atmosphere: 3.631e-9 erg / (cm^2 s A) at 545 nm (Bessell et al. 1998).
PHOTONS_PER_S_M2_NM = 9.96e7


@final
class Telescope(nn.Module):
    """mean = exposure (throughput area bandwidth zero_point 10^(-0.4 magnitude) pixels(PSF * scene) + sky + dark).

    PSF = |FFT(A exp(2 pi i (sum_j zernike_j Z_j + pupil_phase)))|^2, A = mask x annulus x vanes; its sum is the share
    of the full aperture that passes, so that obstructions cost light. area = pi diameter^2 / 4. One wavelength stands
    for the band. Differentiable in every number and map; they are held in float64.

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
    background_electrons_per_s: Tensor

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
        background_electrons_per_s: float = 0.0,
        oversampling: int | None = None,
        margin_pixels: int = 8,
        learn: Sequence[str] = (),
    ) -> None:
        """Takes numbers in the units their names state.

        Args:
            obstruction_ratio: central obstruction's diameter over the aperture's.
            vane_width, vane_angle_rad: over the aperture's radius; from +column to +row, one for each vane.
            zernike_waves: {Noll index: rms over the full aperture}.
            pupil_phase_waves, pupil_transmission: (psf_size, psf_size) over the pupil's grid: path error, and amplitude
                transmission 0..1; a "binary" `mask` passes what is above 0.5 (straight-through gradient).
            magnitude: V, of a star of flux 1.
            throughput: photo-electrons per photon that the open aperture takes.
            background_electrons_per_s: of sky and dark signal, per pixel.
            learn: names of arguments to optimise: they become `nn.Parameter`, the others buffers.

        Raises:
            ValueError: a number out of its range, a map of the wrong shape, an unknown name in `learn`.
        """
        super().__init__()
        if mask not in get_args(PupilMask):
            raise ValueError(f"mask: need one of {get_args(PupilMask)}, got {mask!r}")
        if margin_pixels < 1:
            raise ValueError(f"margin_pixels: need at least 1, got {margin_pixels}")
        ranges = {
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
            "background_electrons_per_s": (background_electrons_per_s, 0.0, math.inf),
        }
        values = {
            name: within(name, as_values(name, value, "a number", (0,)).double(), low, high)
            for name, (value, low, high) in ranges.items()
        }
        nyquist_um = 0.5e-3 * wavelength_nm * f_number
        needed = max(1, math.ceil(pixel_um / nyquist_um * (1 - 1e-12)))
        if oversampling is not None and oversampling < needed:
            raise ValueError(
                f"oversampling: need at least {needed} samples per pixel of {pixel_um} um for a PSF with a "
                f"Nyquist pitch of {nyquist_um:.4g} um, got {oversampling}"
            )
        self.oversampling, self.margin_pixels, self.mask = oversampling or needed, margin_pixels, mask
        self.zernike_indices = tuple(zernike_waves or (4,))
        shape = (self.psf_size, self.psf_size)
        values["vane_angle_rad"] = torch.tensor(list(vane_angle_rad), dtype=torch.float64)
        values["zernike_waves"] = torch.tensor(list((zernike_waves or {4: 0.0}).values()), dtype=torch.float64)
        phase = torch.zeros(shape) if pupil_phase_waves is None else pupil_phase_waves
        passed = torch.ones(shape) if pupil_transmission is None else pupil_transmission
        values["pupil_phase_waves"] = as_values("pupil_phase_waves", phase, f"{shape}", (2,)).double()
        values["pupil_transmission"] = within(
            "pupil_transmission", as_values("pupil_transmission", passed, f"{shape}", (2,)).double(), 0.0, 1.0
        )
        for name in ("pupil_phase_waves", "pupil_transmission"):
            if values[name].shape != shape:
                raise ValueError(f"{name}: need shape {shape}, got {tuple(values[name].shape)}")
        # What an optimiser may reach, each alone: the samples of the scene must go on resolving the PSF.
        sample_um = pixel_um / self.oversampling
        self.parameter_domain: dict[str, tuple[float | None, float | None]] = {
            "diameter_m": (1e-6, None),
            "f_number": (2e3 * sample_um / wavelength_nm, None),
            "wavelength_nm": (2e3 * sample_um / f_number, None),
            "bandwidth_nm": (0.0, None),
            "pixel_um": (1e-2, nyquist_um * self.oversampling),
            "obstruction_ratio": (0.0, 0.99),
            "vane_width": (0.0, 1.0),
            "pupil_transmission": (0.0, 1.0),
            "exposure_s": (0.0, None),
            "throughput": (0.0, 1.0),
            "background_electrons_per_s": (0.0, None),
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

    def psf(self) -> Tensor:
        """PSF on the scene's grid (psf_size, psf_size), whose sum is the share that passes of the full aperture."""
        grid = self.pupil_grid()
        opening, mask = self._opening(grid)
        # A sample half covered passes half of its light, which the square of the soft edge's amplitude would not.
        passed = (opening * mask**2).sum() * grid.step**2 / math.pi
        return optics.incoherent_psf(self.pupil(), passed)

    def star_electrons(self) -> Tensor:
        """Photo-electrons in the exposure of a star of flux 1 through the full open aperture."""
        area_m2 = math.pi / 4 * self.diameter_m**2
        rate = PHOTONS_PER_S_M2_NM * area_m2 * self.bandwidth_nm * 10 ** (-0.4 * self.magnitude)
        return self.exposure_s * self.throughput * rate

    def forward(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photo-electrons (batch, 1, row, column) of `scene`.

        Raises:
            ValueError: the scene is too small, or not a whole number of pixels.
        """
        scene = as_planes("scene", scene, channels=1)
        smallest, _ = self.scene_shape((1, 1))
        if min(scene.shape[-2:]) < smallest:
            raise ValueError(f"scene: need at least {smallest} rows and columns, got {tuple(scene.shape)}")
        flux = ops.psf_convolve(scene, self.psf().to(scene.dtype), mode="valid")
        # Flux is per sample: a pixel takes the sum of its samples, oversampling^2 times their mean.
        electrons = self.star_electrons() * self.oversampling**2
        return sensor.photoelectrons(
            sensor.integrate_pixels(flux, self.oversampling),
            exposure_photons=electrons.to(scene.dtype),
            quantum_efficiency=torch.ones_like(electrons).to(scene.dtype),
            dark_electrons=(self.exposure_s * self.background_electrons_per_s).to(scene.dtype),
        )


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
    read_electrons: float = 3.1,
    shape: tuple[int, int] = (32, 32),
    margin_pixels: int = 12,
    n_scenes: int = 256,
    scenes: Tensor | None = None,
    learn: tuple[str, ...] = (),
) -> ImagingSystem:
    """A 2.4 m telescope in space: z = N + n, N ~ Poisson(exposure (electrons per star pixels(PSF * scene) + sky)).

    Designs: "obscured", a third of the diameter, four vanes; "clear"; "phase_mask", a cubic phase of half a wave on the
    obscured aperture; "shaped_pupil", an opening between two Gaussian curves, dark beside the star along its columns.

    Args:
        sky: "stars", 6 of 1 to 30 times the flux at `magnitude` (default 24), or "companions", a star of `magnitude`
            (default 20) with a companion of 0.001 to 0.1 of its flux at 1 to 8 pixels.
        pupil_phase_waves, pupil_transmission: (encoder.psf_size, same), in place of the design's.
        shape, scenes: rows and columns measured; (n, 1, row, column) as `encoder.scene_shape(shape)` says.
        zernike_waves, mask, margin_pixels, learn: as in `Telescope`.

    Reference: WFC3 Instrument Handbook (UVIS: f/31, 15 um = 0.04 arcsec, F555W 531 nm, throughput 0.28, read noise 3.1,
        sky and dark 0.04 electrons/s); zero point: Bessell et al. 1998; shaped pupil: Kasdin et al. 2003,
        doi:10.1086/344751.
    """
    if design not in get_args(TelescopeDesign):
        raise ValueError(f"design: need one of {get_args(TelescopeDesign)}, got {design!r}")
    if sky not in get_args(Sky):
        raise ValueError(f"sky: need one of {get_args(Sky)}, got {sky!r}")
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
            background_electrons_per_s=0.04,
            margin_pixels=margin_pixels,
            learn=learn,
        )

    grid = telescope(None, None).pupil_grid()
    if design == "phase_mask" and pupil_phase_waves is None:
        pupil_phase_waves = (0.5 * (grid.column**3 + grid.row**3)).clamp(-1, 1).detach()
    if design == "shaped_pupil" and pupil_transmission is None:
        pupil_transmission = _gaussian_opening(grid)
    encoder = telescope(pupil_phase_waves, pupil_transmission)
    if scenes is None:
        generator, size = torch.Generator().manual_seed(0), encoder.scene_shape(shape)
        if sky == "stars":
            scenes = star_field(n_scenes, size, count=6, brightest=30.0, generator=generator)
        else:
            near, far = (pixels * encoder.oversampling for pixels in (1.0, 8.0))
            scenes = companions(
                n_scenes, size, separation_samples=(near, far), contrast=(1e-3, 1e-1), generator=generator
            )
    return ImagingSystem(encoder, PoissonGaussianNoise(read_std=read_electrons), scenes)


def _gaussian_opening(grid: optics.PupilGrid) -> Tensor:
    """Share (n, n) of each sample within |row| < 0.7 exp(-(2 column)^2)."""
    half = 0.7 * torch.exp(-((2 * grid.column) ** 2))
    low, high = grid.row - grid.step / 2, grid.row + grid.step / 2
    covered = torch.minimum(high, half) - torch.maximum(low, -half)
    return (covered / grid.step).clamp(0, 1).detach()
