"""A microscope for transparent objects: a source of any pattern, a phase ring in the pupil, Abbe's sum of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.datasets.phantoms_microscopy import transparent_cells
from bitlens.encoders import coherent_imaging, optics, pupils, sensor
from bitlens.encoders.detector import Values, as_planes, hold, within
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems._checks import check_count, check_positive, check_scenes, check_shape
from bitlens.systems._wave_checks import (
    check_choice,
    check_window,
    numbers_within,
    real_values,
    share_of,
    zernike_terms,
)
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription

PhaseContrastDesign = Literal["half_circles", "half_annuli", "zernike_ring", "brightfield"]
ObjectModel = Literal["abbe", "weak_object"]

DESCRIPTION = SystemDescription(
    name="phase_contrast_microscope",
    designs=get_args(PhaseContrastDesign),
    formula="z_m = N + n, N ~ Poisson(photons sum_s S_m(s) |F^-1{P(u + s) O(u)}|^2 + dark), "
    "O = F{exp(-absorption + i phase)}",
    reference="Tian and Waller 2015, Opt. Express 23, 11394, doi:10.1364/OE.23.011394",
)

# Scenes are encoded in parts with at most this many complex samples, for the sake of the cache and the memory.
_PART = 1 << 22


class TransferFunctions(NamedTuple):
    """Of a weak object: `background` (image,), `absorption` and `phase` (image, row, column), complex, zero at (0, 0).

    Intensity of image m: background_m + F^-1{absorption_m F{absorption} + phase_m F{phase}}.

    Reference: Tian and Waller 2015, Opt. Express 23, 11394, sec. 2, doi:10.1364/OE.23.011394.
    """

    background: Tensor
    absorption: Tensor
    phase: Tensor


@final
class PhaseContrastMicroscope(nn.Module):
    """mean_m = photons / images sum_s S_m(s) |F^-1{P(u + s) O(u)}|^2 / points + dark: Abbe's sum over source points.

    O = F{exp(-absorption + i phase)}, P = disc (1 + (ring_amplitude exp(i ring_phase) - 1) ring) exp(-2 pi i W), W of
    defocus and Zernike terms. The source is a grid of points over the disc of `illumination_aperture`. The model
    "weak_object" keeps what is linear in absorption and phase. Differentiable in all numbers and maps, in float64.

    Shapes: scene (batch, 2, row, column), absorption and phase in radians of a periodic object, one sample per pixel,
    `margin_pixels` around what is measured -> (batch, image, row, column) photo-electrons.

    Reference: Tian and Waller 2015, Opt. Express 23, 11394, sec. 2, doi:10.1364/OE.23.011394.
    """

    wavelength_nm: Tensor
    numerical_aperture: Tensor
    illumination_aperture: Tensor
    object_pixel_um: Tensor
    source_weights: Tensor
    ring_radii: Tensor
    ring_amplitude: Tensor
    ring_phase_rad: Tensor
    defocus_um: Tensor
    zernike_waves: Tensor
    photons: Tensor
    dark_electrons: Tensor

    def __init__(
        self,
        *,
        wavelength_nm: float,
        numerical_aperture: float,
        illumination_aperture: float,
        object_pixel_um: float,
        source_weights: Values,
        immersion_index: float = 1.0,
        ring_radii: tuple[float, float] = (0.0, 0.0),
        ring_amplitude: float = 1.0,
        ring_phase_rad: float = 0.0,
        defocus_um: float = 0.0,
        zernike_waves: Mapping[int, float] | None = None,
        photons: float = 1000.0,
        dark_electrons: float = 0.0,
        model: ObjectModel = "abbe",
        margin_pixels: int = 4,
        learn: Sequence[str] = (),
    ) -> None:
        """Takes numbers in the units their names state.

        Args:
            illumination_aperture: NA of the condenser, or of the outermost LED, the edge of the source's disc.
            object_pixel_um: pitch of the camera over the magnification, at most wavelength / (2 (NA + condenser NA)).
            source_weights: (image, n, n), brightness 0..1 of the source in each image, along rows and columns of the
                direction in which the light runs on, over the disc; `source_points` are their centres.
            ring_radii: inner and outer radius of the phase ring over the pupil's; none if the outer one is 0.
            defocus_um: of the object beyond the plane in focus.
            zernike_waves: {Noll index: rms over the pupil}; object_pixel_um, if learned, stretches the object.
            photons: photo-electrons per pixel without an object in all images together if all of the source shone.
            learn: names of arguments to optimise: they become `nn.Parameter`, the others buffers.

        Raises:
            ValueError: a number out of its range, samples too coarse, or an unknown name in `learn`.
        """
        super().__init__()
        check_choice("model", model, get_args(ObjectModel))
        self.model, self.margin_pixels = model, check_count("margin_pixels", margin_pixels, least=0)
        self.immersion_index = check_positive("immersion_index", immersion_index)
        values = numbers_within(
            {
                "wavelength_nm": (wavelength_nm, 1.0, math.inf),
                "numerical_aperture": (numerical_aperture, 1e-3, 0.999 * immersion_index),
                "illumination_aperture": (illumination_aperture, 0.0, 0.999 * immersion_index),
                "object_pixel_um": (object_pixel_um, 1e-3, math.inf),
                "ring_amplitude": (ring_amplitude, 0.0, 1.0),
                "ring_phase_rad": (ring_phase_rad, -math.inf, math.inf),
                "defocus_um": (defocus_um, -math.inf, math.inf),
                "photons": (photons, 0.0, math.inf),
                "dark_electrons": (dark_electrons, 0.0, math.inf),
            }
        )
        weights = real_values("source_weights", source_weights, "(image, n, n)", (3,))
        values["source_weights"] = within("source_weights", weights, 0.0, 1.0)
        if weights.shape[1] != weights.shape[2]:
            raise ValueError(f"source_weights: need shape (image, n, n), got {tuple(weights.shape)}")
        radii = within("ring_radii", real_values("ring_radii", ring_radii, "(inner, outer)", (1,)), 0.0, 1.0)
        if radii.shape != (2,) or not radii[0] <= radii[1]:
            raise ValueError(f"ring_radii: need (inner, outer), the inner one at most the outer, got {radii.tolist()}")
        values["ring_radii"] = radii
        self.zernike_indices, values["zernike_waves"] = zernike_terms(zernike_waves, (5, 6))
        total = numerical_aperture + illumination_aperture
        coarsest_um = 0.5e-3 * wavelength_nm / total
        if object_pixel_um > coarsest_um * (1 + 1e-9):
            raise ValueError(
                f"object_pixel_um: need at most {coarsest_um:.4g} for these apertures, got {object_pixel_um}"
            )
        reach = 0.5e-3 * wavelength_nm / object_pixel_um
        depth_um = 1e-3 * wavelength_nm * immersion_index / numerical_aperture**2
        # The object is periodic: what is out of focus spreads by no more than the margin.
        tangent = numerical_aperture / math.sqrt(immersion_index**2 - numerical_aperture**2)
        farthest_um = max(abs(defocus_um), depth_um, self.margin_pixels * object_pixel_um / tangent)
        # What an optimiser may reach, each alone: the pixels go on sampling the field, and no more light comes than
        # all of the source gives.
        self.parameter_domain: dict[str, tuple[float | None, float | None]] = {
            "wavelength_nm": (min(wavelength_nm, 2e3 * object_pixel_um * total), 2 * wavelength_nm),
            "numerical_aperture": (
                0.1 * numerical_aperture,
                min(0.999 * immersion_index, max(numerical_aperture, reach - illumination_aperture)),
            ),
            "illumination_aperture": (
                0.0,
                min(0.999 * immersion_index, max(illumination_aperture, reach - numerical_aperture)),
            ),
            "object_pixel_um": (0.5 * object_pixel_um, max(object_pixel_um, coarsest_um)),
            "source_weights": (0.0, 1.0),
            "ring_radii": (0.0, 1.0),
            "ring_amplitude": (0.0, 1.0),
            "defocus_um": (-farthest_um, farthest_um),
            "photons": (0.0, photons),
            "dark_electrons": (0.0, None),
        }
        self.parameter_scale: dict[str, float] = {
            "wavelength_nm": 0.1 * wavelength_nm,
            "numerical_aperture": 0.2 * numerical_aperture,
            "illumination_aperture": share_of(illumination_aperture, 0.2),
            "object_pixel_um": 0.1 * object_pixel_um,
            "source_weights": 0.5,
            "ring_radii": 0.2,
            "ring_amplitude": 0.5,
            "ring_phase_rad": 1.0,
            "defocus_um": depth_um,
            "zernike_waves": 0.25,
            "photons": share_of(photons, 0.3),
            # A tenth of the light of an image.
            "dark_electrons": max(dark_electrons, share_of(photons, 0.1) / len(weights)),
        }
        hold(self, values, learn)

    def scene_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of samples of a scene that gives a measurement of `shape` pixels."""
        return shape[0] + 2 * self.margin_pixels, shape[1] + 2 * self.margin_pixels

    def source(self) -> tuple[Tensor, Tensor]:
        """s (point, 2), cycles/um along rows and columns, and S (image, point) of the points within the disc."""
        side = self.source_weights.shape[-1]
        points, inside = source_points(side, device=self.source_weights.device)
        frequency = points * (1e3 * self.illumination_aperture.double() / self.wavelength_nm.double())
        return frequency, self.source_weights.double().flatten(1)[:, inside]

    def transfer(self, shape: tuple[int, int], center: Tensor, *, mirrored: bool = False) -> Tensor:
        """P(u + center), or P(center - u), complex (n, rows, columns), u = 0 in the middle; center (n, 2) cycles/um."""
        wavelength, aperture = self.wavelength_nm.double(), self.numerical_aperture.double()
        grid = coherent_imaging.pupil_coordinates(
            shape,
            sample_um=self.object_pixel_um.double(),
            wavelength_nm=wavelength,
            numerical_aperture=aperture,
            center=-center if mirrored else center,
        )
        if mirrored:
            grid = optics.PupilGrid(-grid.column, -grid.row, grid.step)
        pupil = coherent_imaging.objective_pupil(
            grid,
            wavelength_nm=wavelength,
            numerical_aperture=aperture,
            immersion_index=self.immersion_index,
            defocus_um=self.defocus_um.double(),
            zernike_indices=self.zernike_indices,
            zernike_waves=self.zernike_waves.double(),
        ).conj()
        inner, outer = self.ring_radii.double()
        inner = torch.minimum(inner, outer)  # an optimiser may cross them; a ring of negative area would amplify
        # The annulus divides by its radii, so that a ring that is not there needs some too.
        present = outer > 0
        ring = pupils.soft_annulus(grid, outer_radius=torch.where(present, outer, 1.0), inner_radius=inner)
        ring = torch.where(present, ring, torch.zeros_like(ring))
        phase = self.ring_phase_rad.double()
        plate = self.ring_amplitude.double() * torch.complex(phase.cos(), phase.sin())
        return pupil * (1 + (plate - 1) * ring)

    def transfer_functions(self, shape: tuple[int, int]) -> TransferFunctions:
        """Of a weak object of `shape`, over the background of a source of which all points shine without an objective.

        Reference: Tian and Waller 2015, sec. 2, doi:10.1364/OE.23.011394.
        """
        frequency, weights = self.source()
        weights = (weights / weights.shape[1]).to(torch.complex128)
        plus = torch.fft.ifftshift(self.transfer(shape, frequency), dim=(-2, -1))
        minus = torch.fft.ifftshift(self.transfer(shape, frequency, mirrored=True), dim=(-2, -1))
        straight = plus[:, 0, 0]
        first = torch.einsum("ms,s,sij->mij", weights, straight.conj(), plus)
        second = torch.einsum("ms,s,sij->mij", weights, straight, minus.conj())
        background = (weights.real * (straight.real**2 + straight.imag**2)).sum(dim=1)
        return TransferFunctions(background, -(first + second), 1j * (first - second))

    def forward(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photo-electrons (batch, image, row, column) of `scene`.

        Raises:
            ValueError: not two channels, or a scene that is too small.
        """
        scene = check_window("scene", as_planes("scene", scene, channels=2), least=self.scene_shape((1, 1))[0])
        if not len(scene):
            # Transforms of no fields at all are refused; the shape is that of one.
            return self.forward(scene.new_zeros((1, *scene.shape[1:])))[:0]
        light = self._abbe(scene) if self.model == "abbe" else self._weak(scene)
        margin = self.margin_pixels
        rows, columns = (size - 2 * margin for size in light.shape[-2:])
        return sensor.photoelectrons(
            light[..., margin : margin + rows, margin : margin + columns],
            exposure_photons=(self.photons / len(self.source_weights)).to(scene.dtype),
            quantum_efficiency=torch.ones_like(self.photons).to(scene.dtype),
            dark_electrons=self.dark_electrons.to(scene.dtype),
        )

    def _abbe(self, scene: Tensor) -> Tensor:
        frequency, weights = self.source()
        shape = (scene.shape[-2], scene.shape[-1])
        centers, remainder = coherent_imaging.window_centers(frequency, shape, self.object_pixel_um.double())
        transfer = self.transfer(shape, remainder)
        weights = (weights / weights.shape[1]).to(scene.dtype)
        field = torch.polar((-scene[:, 0]).exp(), scene[:, 1])
        parts = []
        for part in field.split(max(1, _PART // transfer.numel())):
            image = coherent_imaging.oblique_fields(part, transfer, centers)
            parts.append(torch.einsum("ms,bsij->bmij", weights, image.real**2 + image.imag**2))
        return torch.cat(parts)

    def _weak(self, scene: Tensor) -> Tensor:
        found = self.transfer_functions((scene.shape[-2], scene.shape[-1]))
        dtype = torch.complex128 if scene.dtype == torch.float64 else torch.complex64
        absorption, phase = (torch.fft.fft2(scene[:, channel, None]) for channel in (0, 1))
        change = torch.fft.ifft2(found.absorption.to(dtype) * absorption + found.phase.to(dtype) * phase).real
        return change + found.background.to(scene.dtype)[:, None, None]


def source_points(side: int, *, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Centres (point, 2) within the unit disc of a grid of side^2 cells over [-1, 1]^2, and which cells they are."""
    axis = (torch.arange(side, dtype=torch.float64, device=device) - (side - 1) / 2) * (2 / side)
    grid = torch.cartesian_prod(axis, axis).reshape(-1, 2)
    inside = (grid**2).sum(dim=1) <= 1
    return grid[inside], inside


def source_pattern(design: PhaseContrastDesign, side: int = 9) -> Tensor:
    """Weights (image, side, side): four halves of a disc or annulus (bottom, top, right, left), a thin ring, a disc."""
    axis = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * (2 / side)
    row, column = axis[:, None], axis[None, :]
    radius = torch.hypot(row, column)
    disc = (radius <= 1).double()
    if design == "brightfield":
        return disc[None]
    if design == "zernike_ring":
        return ((radius > 0.45) & (radius < 0.75)).double()[None]
    body = disc * (radius > 0.7) if design == "half_annuli" else disc
    flat = torch.zeros_like(radius)
    return torch.stack([body * (half > 1e-9) for half in (flat + row, flat - row, flat + column, flat - column)])


def phase_contrast_microscope(
    design: PhaseContrastDesign = "half_circles",
    *,
    source_weights: Values | None = None,
    wavelength_nm: float = 530.0,
    numerical_aperture: float = 0.4,
    illumination_aperture: float = 0.37,
    magnification: float = 20.0,
    pixel_um: float = 6.5,
    defocus_um: float = 0.0,
    zernike_waves: Mapping[int, float] | None = None,
    ring_amplitude: float | None = None,
    ring_phase_rad: float | None = None,
    model: ObjectModel = "abbe",
    photons: float = 8000.0,
    read_electrons: float = 1.6,
    shape: tuple[int, int] = (32, 32),
    margin_pixels: int = 4,
    n_scenes: int = 128,
    scenes: Tensor | np.ndarray | None = None,
    learn: tuple[str, ...] = (),
) -> ImagingSystem:
    """Cells under 20 x 0.4 NA: z_m = N + n, N ~ Poisson(photons sum_s S_m(s) |F^-1{P(u + s) O(u)}|^2 + dark).

    Designs: "half_circles", four images of differential phase contrast; "half_annuli", the same with the outer rim of
    the source; "zernike_ring", an annular source and a ring over its image in the pupil that halves the amplitude and
    advances it by a quarter wave; "brightfield". Images share one time of exposure, the source, of one brightness, is
    just within the pupil: more of it is more light. For equal light divide `photons` by `source_weights`' mean on it.

    Args:
        source_weights: (image, n, n) in place of the design's 9 x 9, for example to learn.
        photons: photo-electrons per pixel without an object over the whole time if all of the source shone.
        scenes: (n, 2, row, column), absorption and phase, as `encoder.scene_shape(shape)` says; default 0.5 rad cells.
        ring_amplitude, ring_phase_rad, defocus_um, zernike_waves, model, learn: as in `PhaseContrastMicroscope`.

    Reference: Tian and Waller 2015, doi:10.1364/OE.23.011394 (an array of LEDs as the source);
        camera as in `fluorescence_microscope`: 6.5 um pixels, read noise 1.6 electrons.
    """
    check_choice("design", design, get_args(PhaseContrastDesign))
    shape, n_scenes = check_shape(shape), check_count("n_scenes", n_scenes)
    noise = PoissonGaussianNoise(read_std=check_positive("read_electrons", read_electrons))
    object_pixel_um = check_positive("pixel_um", pixel_um) / check_positive("magnification", magnification)
    ring = design == "zernike_ring"
    # The ring lies where the source's image is in the pupil.
    coherence = check_positive("illumination_aperture", illumination_aperture) / check_positive(
        "numerical_aperture", numerical_aperture
    )
    encoder = PhaseContrastMicroscope(
        wavelength_nm=wavelength_nm,
        numerical_aperture=numerical_aperture,
        illumination_aperture=illumination_aperture,
        object_pixel_um=object_pixel_um,
        source_weights=source_pattern(design) if source_weights is None else source_weights,
        ring_radii=(0.4 * coherence, 0.8 * coherence) if ring else (0.0, 0.0),
        ring_amplitude=(0.5 if ring else 1.0) if ring_amplitude is None else ring_amplitude,
        ring_phase_rad=(-math.pi / 2 if ring else 0.0) if ring_phase_rad is None else ring_phase_rad,
        defocus_um=defocus_um,
        zernike_waves=zernike_waves,
        photons=photons,
        dark_electrons=0.5,
        model=model,
        margin_pixels=margin_pixels,
        learn=learn,
    )
    if scenes is not None:
        scenes = check_window(
            "scenes", check_scenes(scenes, channels=2, lower=None), least=encoder.scene_shape((1, 1))[0]
        )
        if float(scenes[:, 0].min()) < 0:
            raise ValueError(f"scenes: need absorption of at least 0, got {float(scenes[:, 0].min()):g}")
    else:
        scenes = transparent_cells(
            n_scenes,
            encoder.scene_shape(shape),
            sample_um=object_pixel_um,
            peak_phase_rad=0.5,
            absorption=0.05,
            generator=torch.Generator().manual_seed(0),
        )
    return ImagingSystem(encoder, noise, scenes)
