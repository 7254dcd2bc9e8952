"""A widefield fluorescence microscope: aperture, immersion, focus and pupil phase before a scientific CMOS camera."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.datasets.phantoms_microscopy import nuclei, points
from bitlens.encoders import optics, pupils
from bitlens.encoders.convolution import adjoint_image_on_pixels, image_on_pixels
from bitlens.encoders.detector import as_planes, hold
from bitlens.encoders.zernike import zernike_basis
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems._camera_scenes import check_relative_light
from bitlens.systems._checks import check_count, check_positive, check_scenes, check_shape
from bitlens.systems._wave_checks import (
    check_choice,
    check_pupil_step,
    check_window,
    map_within,
    numbers_within,
    share_of,
    zernike_terms,
)
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
    whole sphere alike. Differentiable in every number and map, in float64. `A` and `A_adjoint` are the part without the
    background.

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
        margin_pixels: int = 12,
        learn: Sequence[str] = (),
    ) -> None:
        """Takes numbers in the units their names state.

        Args:
            wavelength_nm: of the emission, in vacuum.
            numerical_aperture, immersion_index: learned, the cone of light does not open beyond what is given.
            object_pixel_um: pitch of the camera over the magnification. Learned, it stretches the scene with the pixel.
            defocus_um: of the specimen beyond the plane in focus, seen from the objective.
            zernike_waves: {Noll index: rms}; pupil_phase_waves: (psf_size, psf_size), axis at psf_size // 2.
            emitted_photons: by the area of one pixel in the exposure, into all directions, where the scene is 1.
            efficiency: photo-electrons per photon that enters the objective.
            oversampling: scene samples per pixel side; default the fewest that resolve the PSF.
            learn: names of arguments to optimise: they become `nn.Parameter`, the others buffers.

        Raises:
            ValueError: a number out of its range, a map of the wrong shape, an unknown name in `learn`.
        """
        super().__init__()
        self.margin_pixels = check_count("margin_pixels", margin_pixels, least=1)
        values = numbers_within(
            {
                "wavelength_nm": (wavelength_nm, 1.0, math.inf),
                "immersion_index": (immersion_index, 1.0, 2.0),
                "numerical_aperture": (numerical_aperture, 1e-3, 0.999 * immersion_index),
                "object_pixel_um": (object_pixel_um, 1e-3, math.inf),
                "defocus_um": (defocus_um, -math.inf, math.inf),
                "emitted_photons": (emitted_photons, 0.0, math.inf),
                "efficiency": (efficiency, 0.0, 1.0),
                "background_electrons": (background_electrons, 0.0, math.inf),
            }
        )
        coarsest_um = 0.25e-3 * wavelength_nm / numerical_aperture
        needed = max(1, math.ceil(object_pixel_um / coarsest_um * (1 - 1e-12)))
        if oversampling is not None and check_count("oversampling", oversampling) < needed:
            raise ValueError(
                f"oversampling: need at least {needed} samples per pixel of {object_pixel_um} um for a PSF with a "
                f"Nyquist pitch of {coarsest_um:.4g} um, got {oversampling}"
            )
        self.oversampling = oversampling or needed
        sample_um = object_pixel_um / self.oversampling
        spread = check_pupil_step(
            1e-3 * wavelength_nm / (numerical_aperture * self.psf_size * sample_um), margin_pixels
        )
        self.zernike_indices, values["zernike_waves"] = zernike_terms(zernike_waves, (4,))
        values["pupil_phase_waves"] = map_within("pupil_phase_waves", pupil_phase_waves, self.psf_size, fill=0.0)
        # Light that is out of focus must not leave the window of the PSF.
        tangent = numerical_aperture / math.sqrt(immersion_index**2 - numerical_aperture**2)
        farthest_um = max(abs(defocus_um), self.margin_pixels * object_pixel_um / tangent)
        # What an optimiser may reach, each alone: the samples of the scene go on resolving the PSF, the window holding
        # it, and no more light comes than was given: the cone of the objective does not open.
        self.parameter_domain: dict[str, tuple[float | None, float | None]] = {
            "wavelength_nm": (4e3 * sample_um * numerical_aperture, spread * wavelength_nm),
            "numerical_aperture": (numerical_aperture / spread, numerical_aperture),
            "immersion_index": (immersion_index, 2.0),
            "object_pixel_um": (object_pixel_um / spread, coarsest_um * self.oversampling),
            "defocus_um": (-farthest_um, farthest_um),
            "emitted_photons": (0.0, emitted_photons),
            "efficiency": (0.0, efficiency),
            "background_electrons": (0.0, None),
        }
        self.parameter_scale: dict[str, float] = {
            "wavelength_nm": 0.3 * wavelength_nm,
            "numerical_aperture": 0.2 * numerical_aperture,
            "immersion_index": 0.2,
            "object_pixel_um": 0.3 * object_pixel_um,
            "defocus_um": 1e-3 * wavelength_nm * immersion_index / numerical_aperture**2,
            "zernike_waves": 0.25,
            "pupil_phase_waves": 0.25,
            "emitted_photons": share_of(emitted_photons, 0.3),
            "efficiency": share_of(efficiency, 0.3),
            "background_electrons": max(background_electrons, 5.0),
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
        """Mean photo-electrons (batch, 1, row, column) of `scene`: `A(scene)`, never negative, and the background."""
        light = self.A(scene)
        return light.clamp(min=0) + self.background_electrons.to(light.dtype)

    def _electrons(self) -> Tensor:
        """Photo-electrons of a pixel on which the scene is 1."""
        return self.emitted_photons * self.collected_share() * self.efficiency


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
    margin_pixels: int = 12,
    n_scenes: int = 256,
    scenes: Tensor | np.ndarray | None = None,
    learn: tuple[str, ...] = (),
) -> ImagingSystem:
    """A 20 x 0.75 air objective before 6.5 um pixels: z = N + n, N ~ Poisson(photons PSF * scene + background).

    Designs: "in_focus"; "defocused" by 3 um; "small_aperture", NA 0.4, which also collects a quarter of the light;
    "astigmatic", 0.15 waves rms of Noll 6; what is given replaces that. At equal emission, not equal light.

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
    check_choice("design", design, get_args(FluorescenceDesign))
    check_choice("specimen", specimen, get_args(Specimen))
    shape, n_scenes = check_shape(shape), check_count("n_scenes", n_scenes)
    if numerical_aperture is None:
        numerical_aperture = 0.4 if design == "small_aperture" else 0.75
    object_pixel_um = check_positive("pixel_um", pixel_um) / check_positive("magnification", magnification)
    check_positive("wavelength_nm", wavelength_nm)
    check_positive("immersion_index", immersion_index)
    # The finer samples serve every design, so that all see the same scenes.
    finest = max(check_positive("numerical_aperture", numerical_aperture), 0.75 if immersion_index < 1.2 else 0.0)
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
    noise = PoissonGaussianNoise(read_std=check_positive("read_electrons", read_electrons))
    if scenes is not None:
        check_relative_light(scenes)
        scenes = check_window(
            "scenes",
            check_scenes(scenes, channels=1),
            least=encoder.scene_shape((1, 1))[0],
            multiple=encoder.oversampling,
        )
    else:
        generator = torch.Generator().manual_seed(0)
        size, sample_um = encoder.scene_shape(shape), object_pixel_um / encoder.oversampling
        if specimen == "nuclei":
            scenes = nuclei(n_scenes, size, sample_um=sample_um, generator=generator)
        else:
            area = encoder.oversampling**2
            count = max(1, math.prod(size) // (64 * area))
            scenes = points(n_scenes, size, count=count, flux=(area, 10.0 * area), generator=generator)
    return ImagingSystem(encoder, noise, scenes)
