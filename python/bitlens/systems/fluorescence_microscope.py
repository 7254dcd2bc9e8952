"""A widefield fluorescence microscope: aperture, immersion, focus and pupil phase before a scientific CMOS camera."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bitlens import ops
from bitlens.datasets.phantoms_microscopy import nuclei, points
from bitlens.encoders import optics, pupils, sensor
from bitlens.encoders.detector import as_planes, as_values, hold, within
from bitlens.encoders.zernike import zernike_basis
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription

FluorescenceDesign = Literal["in_focus", "defocused", "small_aperture", "astigmatic"]
Specimen = Literal["nuclei", "beads"]

DESCRIPTION = SystemDescription(
    name="fluorescence_microscope",
    designs=get_args(FluorescenceDesign),
    formula="z = N + n, N ~ Poisson(photons (1 - cos theta) / 2 efficiency pixels(PSF * scene) + background), "
    "sin theta = NA / index",
    reference="Gibson and Lanni 1989, J. Opt. Soc. Am. A 6, 1969, doi:10.1364/JOSAA.6.001969",
)

_DEFOCUS_UM = {"in_focus": 0.0, "defocused": 3.0, "small_aperture": 0.0, "astigmatic": 0.0}
# A cylindrical lens as for localisation in depth: 0.15 waves rms part the two line foci by some micrometres.
_ZERNIKE_WAVES = {"astigmatic": {6: 0.15}}


@final
class FluorescenceMicroscope(nn.Module):
    """mean = emitted_photons (1 - cos theta) / 2 efficiency pixels(PSF * scene) + background_electrons.

    PSF = |FFT(disc exp(2 pi i W))|^2 with sum 1, W = index defocus (1 - cos theta) / wavelength + sum_j zernike_j Z_j +
    pupil_phase, in waves; sin theta = NA / index at the pupil's edge. Scalar theory, one wavelength, light into the
    whole sphere alike. Differentiable in every number and map; they are held in float64.

    Shapes: scene (batch, 1, row, column) >= 0, `oversampling` samples per pixel side and `margin_pixels` around what is
    measured -> (batch, 1, row, column) photo-electrons.

    Reference: Gibson and Lanni 1989, J. Opt. Soc. Am. A 6, 1969, doi:10.1364/JOSAA.6.001969.
    """

    wavelength_nm: Tensor
    numerical_aperture: Tensor
    immersion_index: Tensor
    object_pixel_um: Tensor
    defocus_um: Tensor
    zernike_waves: Tensor
    pupil_phase_waves: Tensor
    emitted_photons: Tensor
    efficiency: Tensor
    background_electrons: Tensor

    def __init__(
        self,
        *,
        wavelength_nm: float,
        numerical_aperture: float,
        immersion_index: float,
        object_pixel_um: float,
        defocus_um: float = 0.0,
        zernike_waves: Mapping[int, float] | None = None,
        pupil_phase_waves: Tensor | np.ndarray | None = None,
        emitted_photons: float = 2000.0,
        efficiency: float = 0.5,
        background_electrons: float = 0.0,
        oversampling: int | None = None,
        margin_pixels: int = 8,
        learn: Sequence[str] = (),
    ) -> None:
        """Takes numbers in the units their names state.

        Args:
            wavelength_nm: of the emission, in vacuum.
            object_pixel_um: pitch of the camera over the magnification.
            defocus_um: of the specimen beyond the plane in focus, seen from the objective.
            zernike_waves: {Noll index: rms over the pupil}.
            pupil_phase_waves: (psf_size, psf_size) over the pupil's grid, optical axis at psf_size // 2.
            emitted_photons: by the area of one pixel in the exposure, into all directions, where the scene is 1.
            efficiency: photo-electrons per photon that enters the objective.
            oversampling: scene samples per pixel side; default the fewest that resolve the PSF.
            learn: names of arguments to optimise: they become `nn.Parameter`, the others buffers.

        Raises:
            ValueError: a number out of its range, a map of the wrong shape, an unknown name in `learn`.
        """
        super().__init__()
        ranges = {
            "wavelength_nm": (wavelength_nm, 1.0, math.inf),
            "numerical_aperture": (numerical_aperture, 1e-3, 0.999 * immersion_index),
            "immersion_index": (immersion_index, 1.0, 2.0),
            "object_pixel_um": (object_pixel_um, 1e-3, math.inf),
            "defocus_um": (defocus_um, -math.inf, math.inf),
            "emitted_photons": (emitted_photons, 0.0, math.inf),
            "efficiency": (efficiency, 0.0, 1.0),
            "background_electrons": (background_electrons, 0.0, math.inf),
        }
        values = {
            name: within(name, as_values(name, value, "a number", (0,)).double(), low, high)
            for name, (value, low, high) in ranges.items()
        }
        if margin_pixels < 1:
            raise ValueError(f"margin_pixels: need at least 1, got {margin_pixels}")
        coarsest_um = 0.25e-3 * wavelength_nm / numerical_aperture
        needed = max(1, math.ceil(object_pixel_um / coarsest_um * (1 - 1e-12)))
        if oversampling is not None and oversampling < needed:
            raise ValueError(
                f"oversampling: need at least {needed} samples per pixel of {object_pixel_um} um for a PSF with a "
                f"Nyquist pitch of {coarsest_um:.4g} um, got {oversampling}"
            )
        self.oversampling, self.margin_pixels = oversampling or needed, margin_pixels
        self.zernike_indices = tuple(zernike_waves or (4,))
        shape = (self.psf_size, self.psf_size)
        phase = torch.zeros(shape) if pupil_phase_waves is None else pupil_phase_waves
        values["zernike_waves"] = torch.tensor(list((zernike_waves or {4: 0.0}).values()), dtype=torch.float64)
        values["pupil_phase_waves"] = as_values("pupil_phase_waves", phase, f"{shape}", (2,)).double()
        if values["pupil_phase_waves"].shape != shape:
            raise ValueError(f"pupil_phase_waves: need shape {shape}, got {tuple(values['pupil_phase_waves'].shape)}")
        # What an optimiser may reach, each alone: the samples of the scene must go on resolving the PSF.
        sample_um = object_pixel_um / self.oversampling
        self.parameter_domain: dict[str, tuple[float | None, float | None]] = {
            "wavelength_nm": (4e3 * sample_um * numerical_aperture, None),
            "numerical_aperture": (1e-3, min(0.999 * immersion_index, 0.25e-3 * wavelength_nm / sample_um)),
            "immersion_index": (max(1.0, 1.001 * numerical_aperture), 2.0),
            "object_pixel_um": (1e-3, coarsest_um * self.oversampling),
            "emitted_photons": (0.0, None),
            "efficiency": (0.0, 1.0),
            "background_electrons": (0.0, None),
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

    def pupil(self) -> Tensor:
        """Complex (psf_size, psf_size): aperture and path error."""
        grid = optics.pupil_grid(
            self.psf_size,
            sample_um=self.object_pixel_um / self.oversampling,
            wavelength_nm=self.wavelength_nm,
            f_number=0.5 / self.numerical_aperture,
        )
        path = pupils.high_aperture_defocus_waves(
            grid,
            depth_um=self.defocus_um,
            wavelength_nm=self.wavelength_nm,
            numerical_aperture=self.numerical_aperture,
            immersion_index=self.immersion_index,
        )
        basis = zernike_basis(self.zernike_indices, grid.column, grid.row)
        path = path + (self.zernike_waves[:, None, None] * basis).sum(dim=0) + self.pupil_phase_waves
        return optics.pupil(optics.soft_disc(grid, torch.ones_like(self.numerical_aperture)), path)

    def psf(self) -> Tensor:
        """PSF on the scene's grid (psf_size, psf_size), whose sum is 1."""
        return optics.incoherent_psf(self.pupil(), torch.ones_like(self.numerical_aperture))

    def collected_share(self) -> Tensor:
        """(1 - cos theta) / 2: the share of the sphere that the objective's cone takes."""
        sine_squared = (self.numerical_aperture / self.immersion_index) ** 2
        # Without the difference of nearly equal numbers that a small aperture would make.
        return 0.5 * sine_squared / (1 + (1 - sine_squared).clamp(min=1e-12).sqrt())

    def forward(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photo-electrons (batch, 1, row, column) of `scene`.

        Raises:
            ValueError: the scene is too small, or not a whole number of pixels.
        """
        scene = as_planes("scene", scene, channels=1)
        smallest, _ = self.scene_shape((1, 1))
        if min(scene.shape[-2:]) < smallest:
            raise ValueError(f"scene: need at least {smallest} rows and columns, got {tuple(scene.shape)}")
        irradiance = ops.psf_convolve(scene, self.psf().to(scene.dtype), mode="valid")
        return sensor.photoelectrons(
            sensor.integrate_pixels(irradiance, self.oversampling),
            exposure_photons=(self.emitted_photons * self.collected_share()).to(scene.dtype),
            quantum_efficiency=self.efficiency.to(scene.dtype),
            dark_electrons=self.background_electrons.to(scene.dtype),
        )


def fluorescence_microscope(
    design: FluorescenceDesign = "in_focus",
    *,
    specimen: Specimen = "nuclei",
    numerical_aperture: float | None = None,
    immersion_index: float = 1.0,
    magnification: float = 20.0,
    wavelength_nm: float = 525.0,
    defocus_um: float | None = None,
    zernike_waves: Mapping[int, float] | None = None,
    pupil_phase_waves: Tensor | np.ndarray | None = None,
    emitted_photons: float = 2000.0,
    background_electrons: float = 5.0,
    read_electrons: float = 1.6,
    pixel_um: float = 6.5,
    shape: tuple[int, int] = (32, 32),
    margin_pixels: int = 8,
    n_scenes: int = 256,
    scenes: Tensor | None = None,
    learn: tuple[str, ...] = (),
) -> ImagingSystem:
    """A 20 x 0.75 air objective before 6.5 um pixels: z = N + n, N ~ Poisson(photons PSF * scene + background).

    Designs: "in_focus"; "defocused" by 3 um; "small_aperture", NA 0.4, which also collects a quarter of the light;
    "astigmatic", 0.15 waves rms of Noll 6. What is given replaces what the design sets.

    Args:
        emitted_photons: per pixel's area and exposure into all directions, where the scene is 1; the objective takes
            (1 - cos theta) / 2 of them, of which filters (0.7) and camera (0.82) turn 0.57 into electrons.
        background_electrons: of the medium and dark signal, per pixel.
        specimen: "nuclei" or "beads", points of 1 to 10 pixels' brightness.
        shape, scenes: rows and columns measured; (n, 1, row, column) as `encoder.scene_shape(shape)` says.
        zernike_waves, pupil_phase_waves, margin_pixels, learn: as in `FluorescenceMicroscope`.

    Reference: Gibson and Lanni 1989, doi:10.1364/JOSAA.6.001969; camera: data sheet of Hamamatsu ORCA-Flash4.0 V3
        (6.5 um, peak quantum efficiency 82 %, read noise 1.6 electrons rms).
    """
    if design not in get_args(FluorescenceDesign):
        raise ValueError(f"design: need one of {get_args(FluorescenceDesign)}, got {design!r}")
    if specimen not in get_args(Specimen):
        raise ValueError(f"specimen: need one of {get_args(Specimen)}, got {specimen!r}")
    if numerical_aperture is None:
        numerical_aperture = 0.4 if design == "small_aperture" else 0.75
    # The finer samples serve every design, so that all see the same scenes.
    object_pixel_um = pixel_um / magnification
    finest = max(numerical_aperture, 0.75 if immersion_index < 1.2 else 0.0)
    encoder = FluorescenceMicroscope(
        wavelength_nm=wavelength_nm,
        numerical_aperture=numerical_aperture,
        immersion_index=immersion_index,
        object_pixel_um=object_pixel_um,
        defocus_um=_DEFOCUS_UM[design] if defocus_um is None else defocus_um,
        zernike_waves=_ZERNIKE_WAVES.get(design) if zernike_waves is None else zernike_waves,
        pupil_phase_waves=pupil_phase_waves,
        emitted_photons=emitted_photons,
        efficiency=0.7 * 0.82,
        background_electrons=background_electrons,
        oversampling=max(1, math.ceil(object_pixel_um * 4e3 * finest / wavelength_nm * (1 - 1e-12))),
        margin_pixels=margin_pixels,
        learn=learn,
    )
    if scenes is None:
        generator = torch.Generator().manual_seed(0)
        size, sample_um = encoder.scene_shape(shape), object_pixel_um / encoder.oversampling
        if specimen == "nuclei":
            scenes = nuclei(n_scenes, size, sample_um=sample_um, generator=generator)
        else:
            area = encoder.oversampling**2
            count = max(1, math.prod(size) // (64 * area))
            scenes = points(n_scenes, size, count=count, flux=(area, 10.0 * area), generator=generator)
    return ImagingSystem(encoder, PoissonGaussianNoise(read_std=read_electrons), scenes)
