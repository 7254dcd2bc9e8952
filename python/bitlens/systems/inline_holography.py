"""A lensless in-line holographic microscope: particles in depth, a plane wave, and the intensity on a bare sensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.datasets.phantoms_microscopy import particles
from bitlens.encoders import sensor
from bitlens.encoders.detector import Values, as_planes, hold, within
from bitlens.encoders.propagation import angular_spectrum
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems._checks import check_count, check_positive, check_scenes, check_shape
from bitlens.systems._wave_checks import check_choice, check_window, numbers_within, real_values, share_of
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription

HolographyDesign = Literal["near", "far", "shifted_frames"]

DESCRIPTION = SystemDescription(
    name="inline_holography",
    designs=get_args(HolographyDesign),
    formula="z = N + n, N ~ Poisson(photons pixels(|R - sum_d propagate(contrast R scene_d, distance + depth_d)|^2) "
    "+ dark)",
    reference="Gabor 1948, doi:10.1038/161777a0; Brady et al. 2009, doi:10.1364/OE.17.013040",
)

_DISTANCE_MM = {"near": 0.3, "far": 1.2, "shifted_frames": 0.3}


@final
class InlineHologram(nn.Module):
    """mean = photons / frames pixels(|R + S|^2) + dark, S = -sum_d propagate(c R scene_d, distance + depth_d).

    distance is the nearest depth's: where it is learned all depths move together. R is the plane wave of the tilt, c =
    1 - particle_amplitude exp(i particle_phase): what covers a sample multiplies its field by 1 - c. Single scattering:
    no particle stands in the light of another one. Propagation by the angular spectrum of what is scattered, so that no
    edge of the window diffracts. The source is coherent. Differentiable in every number, in float64.

    Shapes: scene (batch, depth, row, column), coverage 0..1, `oversampling` samples per pixel side and `margin_pixels`
    around what is measured -> (batch, frame, row, column) photo-electrons.

    Reference: Brady et al. 2009, Compressive holography, doi:10.1364/OE.17.013040.
    """

    distance_mm: Tensor
    depth_mm: Tensor
    wavelength_nm: Tensor
    pixel_um: Tensor
    tilt_rad: Tensor
    shift_um: Tensor
    particle_amplitude: Tensor
    particle_phase_rad: Tensor
    photons: Tensor
    dark_electrons: Tensor

    def __init__(
        self,
        *,
        distance_mm: float,
        depth_mm: Sequence[float] = (0.0,),
        wavelength_nm: float,
        pixel_um: float,
        tilt_rad: tuple[float, float] = (0.0, 0.0),
        shift_um: Values = ((0.0, 0.0),),
        particle_amplitude: float = 0.0,
        particle_phase_rad: float = 0.0,
        photons: float = 1000.0,
        dark_electrons: float = 0.0,
        oversampling: int = 2,
        margin_pixels: int = 8,
        pad: float = 3,
        learn: Sequence[str] = (),
    ) -> None:
        """Takes numbers in the units their names state.

        Args:
            distance_mm: from the depth of the scene that is nearest to the sensor.
            depth_mm: of each depth of the scene beyond the nearest one, whose own is 0; fixed, never learned.
            wavelength_nm, pixel_um: in the medium before the sensor; learned, it stretches the scene with the pixel.
            tilt_rad: angles towards +row and +column at which the light runs on; shadows move by distance tan(tilt).
            shift_um: (frame, 2), by which the sensor lies off its place, along rows and columns, in each frame.
            particle_amplitude, particle_phase_rad: transmission of what covers a sample; 0 is opaque.
            photons, dark_electrons: per pixel, in all frames together without an object; in each frame.
            pad: width of the padded grid over the scene's, as in `angular_spectrum`.
            learn: names of arguments to optimise: they become `nn.Parameter`, the others buffers.

        Raises:
            ValueError: a number out of its range, or an unknown name in `learn`.
        """
        super().__init__()
        self.oversampling = check_count("oversampling", oversampling)
        self.margin_pixels = check_count("margin_pixels", margin_pixels, least=0)
        if not pad >= 1:
            raise ValueError(f"pad: need a number of at least 1, got {pad}")
        self.pad = pad
        values = numbers_within(
            {
                "distance_mm": (distance_mm, 1e-6, math.inf),
                "wavelength_nm": (wavelength_nm, 1.0, math.inf),
                "pixel_um": (pixel_um, 1e-3, math.inf),
                "particle_amplitude": (particle_amplitude, 0.0, 1.0),
                "particle_phase_rad": (particle_phase_rad, -math.inf, math.inf),
                "photons": (photons, 0.0, math.inf),
                "dark_electrons": (dark_electrons, 0.0, math.inf),
            }
        )
        depth = within("depth_mm", real_values("depth_mm", depth_mm, "one number per depth", (1,)), 0.0)
        if float(depth.min()) != 0:
            raise ValueError(f"depth_mm: need 0 for the nearest depth, got {depth.tolist()}")
        values["shift_um"] = real_values("shift_um", shift_um, "(frame, 2)", (2,))
        if values["shift_um"].shape[-1] != 2:
            raise ValueError(f"shift_um: need shape (frame, 2), got {tuple(values['shift_um'].shape)}")
        # The plane wave itself must be sampled.
        steepest = math.asin(min(0.93, 0.5e-3 * wavelength_nm * self.oversampling / pixel_um))
        tilt = real_values("tilt_rad", tilt_rad, "two angles", (1,))
        values["tilt_rad"] = within("tilt_rad", tilt, -steepest, steepest)
        if tilt.shape != (2,):
            raise ValueError(f"tilt_rad: need two angles, got shape {tuple(tilt.shape)}")
        # Depth of focus of what the pixels resolve, lambda / NA^2 with NA = lambda / (2 pixel), and the margin.
        focus_mm = 4 * pixel_um**2 / wavelength_nm
        margin_um = max(1, self.margin_pixels) * pixel_um
        tilted = min(steepest, max(float(tilt.abs().max()), math.atan(1e-3 * margin_um / distance_mm)))
        shifted = max(float(values["shift_um"].abs().max()), margin_um)
        # What an optimiser may reach, each alone. From half to twice the distance padding and samples, chosen for it,
        # go on carrying the hologram; by tilt and shift shadows move over no more than the margin; light does not grow.
        self.parameter_domain: dict[str, tuple[float | None, float | None]] = {
            "distance_mm": (0.5 * distance_mm, 2 * distance_mm),
            "wavelength_nm": (0.5 * wavelength_nm, 2 * wavelength_nm),
            "pixel_um": (0.5 * pixel_um, 2 * pixel_um),
            "tilt_rad": (-tilted, tilted),
            "shift_um": (-shifted, shifted),
            "particle_amplitude": (0.0, 1.0),
            "photons": (0.0, photons),
            "dark_electrons": (0.0, None),
        }
        share = min(0.1, focus_mm / distance_mm)
        self.parameter_scale: dict[str, float] = {
            "distance_mm": focus_mm,
            "wavelength_nm": share * wavelength_nm,
            "pixel_um": share * pixel_um,
            "tilt_rad": min(0.5, 1e-3 * pixel_um / distance_mm),
            "shift_um": pixel_um,
            "particle_amplitude": 0.5,
            "particle_phase_rad": 1.0,
            "photons": share_of(photons, 0.3),
            # A tenth of the light of a frame.
            "dark_electrons": max(dark_electrons, share_of(photons, 0.1) / len(values["shift_um"])),
        }
        hold(self, values, learn)
        self.register_buffer("depth_mm", depth)

    def scene_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of samples of a scene that gives a measurement of `shape` pixels."""
        rows, columns = ((size + 2 * self.margin_pixels) * self.oversampling for size in shape)
        return rows, columns

    def fields(self, scene: Tensor | np.ndarray) -> Tensor:
        """R + S on the sensor, complex (batch, frame, row, column), on the samples of the whole scene."""
        scene = as_planes("scene", scene, channels=len(self.depth_mm))
        dtype = torch.complex128 if scene.dtype == torch.float64 else torch.complex64
        shape = (scene.shape[-2], scene.shape[-1])
        sample_um = (self.pixel_um / self.oversampling).double()
        distance = self.distance_mm.double() + self.depth_mm.double()
        wavelength, shift = self.wavelength_nm.double(), self.shift_um.double()
        sine = self.tilt_rad.double().sin()
        sine_squared = (sine**2).sum()
        # Relative to the wave exp(i k z) along the axis, which propagation leaves out, as far back as the depth lies.
        lag = 1e3 * distance * sine_squared / (1 + (1 - sine_squared).clamp(min=0).sqrt())
        incident = _plane_wave(shape, sample_um, wavelength, sine, torch.zeros_like(shift[:1]), lag[:, None, None])
        phase = self.particle_phase_rad.double()
        contrast = 1 - self.particle_amplitude.double() * torch.complex(phase.cos(), phase.sin())
        scattered = angular_spectrum(
            -(contrast * incident).to(dtype) * scene[:, None],
            distance_mm=distance,
            wavelength_nm=wavelength,
            sample_um=sample_um,
            shift_um=(shift[:, None, 0], shift[:, None, 1]),
            pad=self.pad,
        ).sum(dim=-3)
        return scattered + _plane_wave(shape, sample_um, wavelength, sine, shift, 0.0).to(dtype)

    def forward(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photo-electrons (batch, frame, row, column) of `scene`.

        Raises:
            ValueError: another number of depths, a scene too small, or not a whole number of pixels.
        """
        scene = check_window(
            "scene",
            as_planes("scene", scene, channels=len(self.depth_mm)),
            least=self.scene_shape((1, 1))[0],
            multiple=self.oversampling,
        )
        field = self.fields(scene)
        margin = self.margin_pixels * self.oversampling
        rows, columns = (size - 2 * margin for size in scene.shape[-2:])
        field = field[..., margin : margin + rows, margin : margin + columns]
        return sensor.photoelectrons(
            sensor.integrate_pixels(field.real**2 + field.imag**2, self.oversampling),
            exposure_photons=(self.photons / len(self.shift_um)).to(scene.dtype),
            quantum_efficiency=scene.new_ones(()),
            dark_electrons=self.dark_electrons.to(scene.dtype),
        )


def _plane_wave(
    shape: tuple[int, int],
    sample_um: Tensor,
    wavelength_nm: Tensor,
    sine: Tensor,
    shift_um: Tensor,
    lag_um: Tensor | float,
) -> Tensor:
    """exp(2 pi i (sine . x + lag) / wavelength), complex128 (n, row, column); x = 0 in the middle of the scene."""
    row, column = ((torch.arange(size, device=sine.device) - size // 2) * sample_um for size in shape)
    path_um = sine[0] * (row[:, None] + shift_um[:, 0, None, None]) + sine[1] * (column + shift_um[:, 1, None, None])
    phase = 2e3 * math.pi / wavelength_nm * (path_um + lag_um)
    return torch.complex(phase.cos(), phase.sin())


def inline_holography(
    design: HolographyDesign = "near",
    *,
    distance_mm: float | None = None,
    depth_spacing_mm: float = 0.02,
    n_depths: int = 3,
    wavelength_nm: float = 530.0,
    pixel_um: float = 1.12,
    tilt_rad: tuple[float, float] = (0.0, 0.0),
    shift_um: Values | None = None,
    particle_amplitude: float = 0.0,
    particle_phase_rad: float = 0.0,
    photons: float = 1000.0,
    read_electrons: float = 3.0,
    shape: tuple[int, int] = (32, 32),
    margin_pixels: int = 8,
    n_scenes: int = 256,
    scenes: Tensor | np.ndarray | None = None,
    learn: tuple[str, ...] = (),
) -> ImagingSystem:
    """Opaque particles before a bare sensor of 1.12 um pixels: z = N + n, N ~ Poisson(photons |R + S|^2 + dark).

    Designs: "near", 0.3 mm from the sensor to the nearest depth; "far", 1.2 mm; "shifted_frames", near, four frames of
    a quarter of the light with the sensor half a pixel aside, for the super-resolution of pixels: all at equal light.
    What the padded window cuts off stays below 7 % of these holograms, a fifth of their shot noise.

    Args:
        distance_mm, depth_spacing_mm: of the nearest depth, and from each to the next.
        photons: photo-electrons per pixel in all frames together, without an object; a pixel holds some thousands.
        scenes: (n, depth, row, column) coverage 0..1, of `encoder.scene_shape(shape)` for a measurement of `shape`;
            default discs of 1 to 3 um radius, 3,000 per mm^2.
        tilt_rad, shift_um, particle_amplitude, particle_phase_rad, learn: as in `InlineHologram`.

    Reference: Gabor 1948, doi:10.1038/161777a0; numbers: Greenbaum et al. 2012, Nat. Methods 9, 889,
        doi:10.1038/nmeth.2114 (pixels of 1.12 um, object below 1 mm, sub-pixel shifts).
    """
    check_choice("design", design, get_args(HolographyDesign))
    shape, n_scenes = check_shape(shape), check_count("n_scenes", n_scenes)
    n_depths, margin_pixels = check_count("n_depths", n_depths), check_count("margin_pixels", margin_pixels, least=0)
    check_positive("pixel_um", pixel_um)
    check_positive("wavelength_nm", wavelength_nm)
    noise = PoissonGaussianNoise(read_std=check_positive("read_electrons", read_electrons))
    nearest = check_positive("distance_mm", _DISTANCE_MM[design] if distance_mm is None else distance_mm)
    depths = [index * check_positive("depth_spacing_mm", depth_spacing_mm) for index in range(n_depths)]
    if shift_um is None:
        half = pixel_um / 2 if design == "shifted_frames" else 0.0
        shift_um = [(0.0, 0.0), (0.0, half), (half, 0.0), (half, half)] if half else [(0.0, 0.0)]
    # Beside the two windows that a wave leads from and to, two zones of Fresnel's.
    half_um = 0.5 * pixel_um * (min(shape) + 2 * margin_pixels)
    pad = math.ceil(2 + max(1.0, 2 * math.sqrt(wavelength_nm * (nearest + depths[-1])) / half_um))
    encoder = InlineHologram(
        distance_mm=nearest,
        depth_mm=depths,
        wavelength_nm=wavelength_nm,
        pixel_um=pixel_um,
        tilt_rad=tilt_rad,
        shift_um=shift_um,
        particle_amplitude=particle_amplitude,
        particle_phase_rad=particle_phase_rad,
        photons=photons,
        dark_electrons=0.1,
        margin_pixels=margin_pixels,
        pad=pad,
        learn=learn,
    )
    if scenes is not None:
        scenes = check_window(
            "scenes",
            check_scenes(scenes, channels=n_depths),
            least=encoder.scene_shape((1, 1))[0],
            multiple=encoder.oversampling,
        )
        if float(scenes.max()) > 1:
            raise ValueError(f"scenes: need coverage of at most 1, got {float(scenes.max()):g}")
    else:
        scenes = particles(
            n_scenes,
            n_depths,
            encoder.scene_shape(shape),
            sample_um=pixel_um / encoder.oversampling,
            radius_um=(1.0, 3.0),
            per_mm2=3000,
            generator=torch.Generator().manual_seed(0),
        )
    return ImagingSystem(encoder, noise, scenes)
