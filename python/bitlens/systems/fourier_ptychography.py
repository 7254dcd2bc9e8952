"""A Fourier ptychographic microscope: a low aperture, and an LED array that lights the object from many directions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.datasets.phantoms_microscopy import transparent_cells
from bitlens.encoders import coherent_imaging, sensor
from bitlens.encoders.detector import Values, as_planes, hold, within
from bitlens.encoders.linear import channels_to_complex, complex_to_channels
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

PtychographyDesign = Literal["dense_array", "sparse_array", "on_axis"]

DESCRIPTION = SystemDescription(
    name="fourier_ptychography",
    designs=get_args(PtychographyDesign),
    formula="z_n = N + e, N ~ Poisson(photons gain_n |F^-1{P(u) O(u - k_n / 2 pi)}|^2 + dark), "
    "k_n = k X_n / sqrt(|X_n|^2 + h^2)",
    reference="Zheng, Horstmeyer and Yang 2013, Nat. Photonics 7, 739, doi:10.1038/nphoton.2013.187",
)

_ARRAY = {"dense_array": (5, 4.0), "sparse_array": (3, 8.0), "on_axis": (1, 4.0)}
# Scenes are encoded in parts with at most this many complex samples, for the sake of the cache and the memory.
_PART = 1 << 22


@final
class FourierPtychography(nn.Module):
    """mean_n = photons gain_n / LEDs |F^-1{P(u) O(u - k_n / 2 pi)}|^2 + dark, k_n = k X_n / sqrt(|X_n|^2 + h^2).

    P: disc of the numerical aperture, defocus and Zernike terms. X_n points where the light of LED n runs to, across
    the optical axis: opposite to where the LED stands. Evaluated as P(u + k_n / 2 pi) O(u), so that LED positions move
    the pupil by any part of a sample. Differentiable in every number; they are held in float64.

    Shapes: scene (batch, 2, row, column), real and imaginary part of a periodic object's transmission, `upsampling`
    samples per pixel side and `margin_pixels` around what is measured -> (batch, LED, row, column) photo-electrons.

    Reference: Zheng, Horstmeyer and Yang 2013, Nat. Photonics 7, 739, doi:10.1038/nphoton.2013.187.
    """

    wavelength_nm: Tensor
    numerical_aperture: Tensor
    object_pixel_um: Tensor
    led_position_mm: Tensor
    led_height_mm: Tensor
    led_gain: Tensor
    defocus_um: Tensor
    zernike_waves: Tensor
    photons: Tensor
    dark_electrons: Tensor

    def __init__(
        self,
        *,
        wavelength_nm: float,
        numerical_aperture: float,
        object_pixel_um: float,
        led_position_mm: Values,
        led_height_mm: float,
        led_gain: Values | None = None,
        defocus_um: float = 0.0,
        zernike_waves: Mapping[int, float] | None = None,
        photons: float = 1000.0,
        dark_electrons: float = 0.0,
        upsampling: int = 2,
        pixel_samples: int = 1,
        margin_pixels: int = 0,
        learn: Sequence[str] = (),
    ) -> None:
        """Takes numbers in the units their names state.

        Args:
            object_pixel_um: pitch of the camera over the magnification; its samples at most wavelength / (2 NA).
                Learned, it stretches the object, so many samples to the pixel, with it.
            led_position_mm: X (LED, 2) along rows and columns; `led_height_mm` is h, from the array to the object.
            led_gain: brightness of each LED, default 1.
            defocus_um: of the object beyond the plane in focus.
            zernike_waves: {Noll index: rms over the pupil}.
            photons: photo-electrons per pixel of an empty brightfield, over all LEDs together, gain 1.
            pixel_samples: per side of a pixel, over which the intensity is averaged; 1 takes that of its first sample.
            learn: names of arguments to optimise: they become `nn.Parameter`, the others buffers.

        Raises:
            ValueError: a number out of its range, samples too coarse, or an unknown name in `learn`.
        """
        super().__init__()
        self.upsampling = check_count("upsampling", upsampling)
        self.pixel_samples = check_count("pixel_samples", pixel_samples)
        self.margin_pixels = check_count("margin_pixels", margin_pixels, least=0)
        if upsampling % pixel_samples:
            raise ValueError(f"upsampling: need a multiple of pixel_samples = {pixel_samples}, got {upsampling}")
        values = numbers_within(
            {
                "wavelength_nm": (wavelength_nm, 1.0, math.inf),
                "numerical_aperture": (numerical_aperture, 1e-3, 0.999),
                "led_height_mm": (led_height_mm, 1e-3, math.inf),
                "defocus_um": (defocus_um, -math.inf, math.inf),
                "photons": (photons, 0.0, math.inf),
                "dark_electrons": (dark_electrons, 0.0, math.inf),
            }
        )
        coarsest_um = 0.5e-3 * wavelength_nm / numerical_aperture * pixel_samples
        values |= numbers_within({"object_pixel_um": (object_pixel_um, 1e-3, coarsest_um)})
        position = real_values("led_position_mm", led_position_mm, "(LED, 2)", (2,))
        if position.shape[1] != 2:
            raise ValueError(f"led_position_mm: need shape (LED, 2), got {tuple(position.shape)}")
        values["led_position_mm"] = position
        gain = torch.ones(len(position)) if led_gain is None else led_gain
        values["led_gain"] = within("led_gain", real_values("led_gain", gain, "(LED,)", (1,)), 0.0)
        if values["led_gain"].shape != position.shape[:1]:
            raise ValueError(f"led_gain: need one of {len(position)} LEDs, got {tuple(values['led_gain'].shape)}")
        self.zernike_indices, values["zernike_waves"] = zernike_terms(zernike_waves, (5, 6))
        # Along one axis: the farthest LED, its sine, and the largest sine that the samples of the scene resolve.
        outermost_mm = float(position.abs().max())
        sine = float((position / torch.hypot(position.norm(dim=1, keepdim=True), values["led_height_mm"])).abs().max())
        scene_um = object_pixel_um / upsampling
        finest_um = 0.5e-3 * wavelength_nm / (sine + numerical_aperture)
        if scene_um > finest_um * (1 + 1e-9):
            raise ValueError(
                f"upsampling: need at least {math.ceil(object_pixel_um / finest_um)} samples per pixel of "
                f"{object_pixel_um} um for what the outermost LED shows, got {upsampling}"
            )
        resolved = 0.5e-3 * wavelength_nm / scene_um
        widest = min(resolved - numerical_aperture, 0.999)
        slope = widest / math.sqrt(1 - widest**2)
        depth_um = 1e-3 * wavelength_nm / numerical_aperture**2
        # The object is periodic: what is out of focus spreads by no more than the margin.
        margin_um = self.margin_pixels * object_pixel_um
        farthest_um = max(abs(defocus_um), depth_um, margin_um * math.sqrt(1 / numerical_aperture**2 - 1))
        # What an optimiser may reach, each alone: pixels and samples of the scene go on resolving what the pupil and
        # the outermost LED show, and no LED becomes brighter.
        self.parameter_domain: dict[str, tuple[float | None, float | None]] = {
            "wavelength_nm": (
                max(wavelength_nm * object_pixel_um / coarsest_um, wavelength_nm * min(1.0, scene_um / finest_um)),
                2 * wavelength_nm,
            ),
            "numerical_aperture": (
                0.1 * numerical_aperture,
                max(
                    numerical_aperture,
                    min(0.999, 0.5e-3 * wavelength_nm / object_pixel_um * pixel_samples, resolved - sine),
                ),
            ),
            "object_pixel_um": (
                0.5 * object_pixel_um,
                max(object_pixel_um, min(coarsest_um, finest_um * upsampling)),
            ),
            "led_position_mm": (-max(outermost_mm, led_height_mm * slope), max(outermost_mm, led_height_mm * slope)),
            "led_height_mm": (min(led_height_mm, max(0.1 * led_height_mm, outermost_mm / slope)), 2 * led_height_mm),
            "led_gain": (0.0, float(values["led_gain"].max())),
            "defocus_um": (-farthest_um, farthest_um),
            "photons": (0.0, photons),
            "dark_electrons": (0.0, None),
        }
        self.parameter_scale: dict[str, float] = {
            "wavelength_nm": 0.1 * wavelength_nm,
            "numerical_aperture": 0.2 * numerical_aperture,
            "object_pixel_um": 0.1 * object_pixel_um,
            # A quarter of the pupil's radius.
            "led_position_mm": 0.25 * led_height_mm * numerical_aperture,
            "led_height_mm": 0.2 * led_height_mm,
            "led_gain": 0.3,
            "defocus_um": depth_um,
            "zernike_waves": 0.25,
            "photons": share_of(photons, 0.3),
            # A tenth of the light of a brightfield image.
            "dark_electrons": max(dark_electrons, share_of(photons, 0.1) / len(position)),
        }
        hold(self, values, learn)

    def scene_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of samples of a scene that gives a measurement of `shape` pixels."""
        rows, columns = ((size + 2 * self.margin_pixels) * self.upsampling for size in shape)
        return rows, columns

    def illumination(self) -> Tensor:
        """k_n / 2 pi (LED, 2), cycles per micrometre along rows and columns."""
        position, height = self.led_position_mm.double(), self.led_height_mm.double()
        sine = position / ((position**2).sum(dim=1, keepdim=True) + height**2).sqrt()
        return 1e3 * sine / self.wavelength_nm.double()

    def transfers(self, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """P(u + k_n / 2 pi) (LED, rows, columns) around, and index of, the object's frequency that is its middle."""
        sample_um = self.object_pixel_um.double() / self.pixel_samples
        wavelength, aperture = self.wavelength_nm.double(), self.numerical_aperture.double()
        centers, remainder = coherent_imaging.window_centers(self.illumination(), shape, sample_um)
        grid = coherent_imaging.pupil_coordinates(
            shape, sample_um=sample_um, wavelength_nm=wavelength, numerical_aperture=aperture, center=remainder
        )
        pupil = coherent_imaging.objective_pupil(
            grid,
            wavelength_nm=wavelength,
            numerical_aperture=aperture,
            immersion_index=1.0,
            defocus_um=self.defocus_um.double(),
            zernike_indices=self.zernike_indices,
            zernike_waves=self.zernike_waves.double(),
        )
        return pupil.conj().resolve_conj(), centers

    def forward(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photo-electrons (batch, LED, row, column) of `scene`.

        Raises:
            ValueError: not a pair of channels, a scene too small, or not a whole number of pixels.
        """
        least = self.scene_shape((1, 1))[0]
        scene = check_window("scene", as_planes("scene", scene, channels=2), least=least, multiple=self.upsampling)
        sizes, samples = scene.shape[-2:], self.upsampling // self.pixel_samples
        if not len(scene):
            # Transforms of no fields at all are refused; the shape is that of one.
            return self.forward(scene.new_zeros((1, *scene.shape[1:])))[:0]
        transfer, centers = self.transfers((sizes[0] // samples, sizes[1] // samples))
        part = max(1, _PART // transfer.numel())
        object_field = channels_to_complex(scene)[:, 0]
        light = [self._intensity(field, transfer, centers) for field in object_field.split(part)]
        return sensor.photoelectrons(
            torch.cat(light),
            exposure_photons=(self.photons * self.led_gain / len(centers)).to(scene.dtype)[:, None, None],
            quantum_efficiency=torch.ones_like(self.photons).to(scene.dtype),
            dark_electrons=self.dark_electrons.to(scene.dtype),
        )

    def _intensity(self, field: Tensor, transfer: Tensor, centers: Tensor) -> Tensor:
        image = coherent_imaging.oblique_fields(field, transfer, centers)
        pixels = sensor.integrate_pixels(image.real**2 + image.imag**2, self.pixel_samples)
        margin = self.margin_pixels
        rows, columns = (size - 2 * margin for size in pixels.shape[-2:])
        return pixels[..., margin : margin + rows, margin : margin + columns]


def led_array(side: int, pitch_mm: float) -> Tensor:
    """X (side^2, 2) of a square array around the optical axis, row by row, millimetres."""
    axis = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * pitch_mm
    return torch.cartesian_prod(axis, axis).reshape(-1, 2)


def fourier_ptychography(
    design: PtychographyDesign = "dense_array",
    *,
    wavelength_nm: float = 532.0,
    numerical_aperture: float = 0.1,
    object_pixel_um: float = 1.845,
    led_position_mm: Values | None = None,
    led_height_mm: float = 70.0,
    led_gain: Values | None = None,
    defocus_um: float = 0.0,
    zernike_waves: Mapping[int, float] | None = None,
    photons: float = 20000.0,
    read_electrons: float = 5.0,
    shape: tuple[int, int] = (32, 32),
    upsampling: int = 2,
    margin_pixels: int = 4,
    n_scenes: int = 128,
    scenes: Tensor | np.ndarray | None = None,
    learn: tuple[str, ...] = (),
) -> ImagingSystem:
    """Cells under 2 x 0.1 NA, LEDs 70 mm off: z_n = N + e, N ~ Poisson(photons |F^-1{P O(u - k_n / 2 pi)}|^2 + dark).

    Designs: "dense_array", 5 x 5 LEDs 4 mm apart, neighbours 0.057 NA; "sparse_array", 3 x 3 LEDs 8 mm apart, the same
    reach with less overlap; "on_axis", one LED. All have the same time of exposure in all, shared evenly, with LEDs of
    one brightness: not equal light, of which dark fields let hardly any pass.

    Args:
        photons: photo-electrons per pixel of an empty brightfield over the whole time.
        shape: rows and columns of each image.
        scenes: (n, 2, row, column), real and imaginary part of the transmission, as `encoder.scene_shape(shape)` says;
            default cells of 1.5 rad, absorbing up to 0.1.
        led_position_mm, led_gain, defocus_um, zernike_waves, upsampling, learn: as in `FourierPtychography`.

    Reference: Zheng, Horstmeyer and Yang 2013, doi:10.1038/nphoton.2013.187 (2 x objective, LEDs 4 mm apart, about 8 cm
        below; here 70 mm: none at the pupil's rim); pixels and NA: UConn open data (0.1, 1.845 um); read noise assumed.
    """
    check_choice("design", design, get_args(PtychographyDesign))
    shape, n_scenes = check_shape(shape), check_count("n_scenes", n_scenes)
    noise = PoissonGaussianNoise(read_std=check_positive("read_electrons", read_electrons))
    encoder = FourierPtychography(
        wavelength_nm=wavelength_nm,
        numerical_aperture=numerical_aperture,
        object_pixel_um=object_pixel_um,
        led_position_mm=led_array(*_ARRAY[design]) if led_position_mm is None else led_position_mm,
        led_height_mm=led_height_mm,
        led_gain=led_gain,
        defocus_um=defocus_um,
        zernike_waves=zernike_waves,
        photons=photons,
        dark_electrons=0.5,
        upsampling=upsampling,
        margin_pixels=margin_pixels,
        learn=learn,
    )
    if scenes is not None:
        scenes = check_window(
            "scenes",
            check_scenes(scenes, channels=2, lower=None),
            least=encoder.scene_shape((1, 1))[0],
            multiple=encoder.upsampling,
        )
    else:
        cells = transparent_cells(
            n_scenes,
            encoder.scene_shape(shape),
            sample_um=object_pixel_um / upsampling,
            peak_phase_rad=1.5,
            absorption=0.1,
            generator=torch.Generator().manual_seed(0),
        )
        scenes = complex_to_channels(torch.polar((-cells[:, :1]).exp(), cells[:, 1:]))
    return ImagingSystem(encoder, noise, scenes)
