"""A colour camera: one lens, and a mosaic of colour filters before the pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.encoders import BAYER, RGBW, XTRANS, Camera, ColorFilterArray, choice_logits, random_tile
from bitlens.encoders.detector import Values, as_planes, as_values, hold, within
from bitlens.encoders.masks import gaussian_bands
from bitlens.encoders.pixel_blur import blurred_pixels, blurred_pixels_adjoint
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems._camera_scenes import camera_scenes, lens_names
from bitlens.systems._checks import check_count
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription

ColorCameraDesign = Literal["bayer", "rgbw", "xtrans", "random", "learned"]

DESCRIPTION = SystemDescription(
    name="color_camera",
    designs=get_args(ColorCameraDesign),
    formula="z[p] = N + n, N ~ Poisson(photons sum_b filter[p, b] pixels(PSF_b * scene_b)[p] + dark), n ~ N(0, std^2)",
    reference="Bayer 1976, US patent 3,971,065; Chakrabarti 2016, arXiv:1605.07078",
)

_FILTERS = ("spectra", "choice_logits")
# Full width at half maximum of 100 nm, and what an absorbing dye passes at its best.
_CENTER_NM, _WIDTH_NM, _PEAK, _CLEAR = (610.0, 540.0, 460.0), 100.0, 0.9, 0.95
_SHARES = (1.0, 2.0, 1.0, 4.0)  # of red, green, blue and clear, as in the RGBW tile


def filter_spectra(band_nm: Sequence[float]) -> Tensor:
    """Transmission (4, band), float64, of red, green, blue and clear filters at the wavelengths `band_nm`.

    Dyes as Gaussians around 610, 540 and 460 nm, 100 nm wide at half their peak of 0.9; the clear filter passes 0.95.
    """
    wavelength = as_values("band_nm", band_nm, "one wavelength per band", (1,))
    center = torch.tensor(_CENTER_NM, dtype=torch.float64)[:, None]
    dyes = gaussian_bands(
        wavelength,
        center_nm=center,
        width_nm=torch.full_like(center, _WIDTH_NM),
        peak=torch.full_like(center, _PEAK),
    )
    return torch.cat((dyes, torch.full_like(dyes[:1], _CLEAR)))


@final
class ColorCamera(nn.Module):
    """mean[p] = sum_b filter[p, b] efficiency_b exposure_photons_b pixels(PSF_b * scene_b)[p] + dark, electrons.

    Affine: `A` and `A_adjoint` are the linear part, to which `forward` adds the dark signal. Differentiable in it, in
    the filters (`filters.spectra`, `filters.choice_logits`) and in all numbers and maps of the lens.

    Shapes: scene (batch, band, row, column) on the fine grid of `lens` -> (batch, 1, row, column), pixels whose whole
    PSF lies in the scene; the filters' tile starts at the first of them. `scene_size` says how large a scene is.

    Args:
        lens: a camera without dark signal and with boundary "crop"; each band may have its own numbers.
        filters: the mosaic, with a spectrum for each band of the scene.
        dark_electrons: dark signal of a pixel; with `learn=("dark_electrons",)` it is optimised.

    Reference: Chakrabarti 2016, arXiv:1605.07078, eq. 1 (each pixel sees the scene through its filter).
    """

    parameter_domain: ClassVar[Mapping[str, tuple[float | None, float | None]]] = {"dark_electrons": (0.0, None)}

    dark_electrons: Tensor

    def __init__(
        self, lens: Camera, filters: ColorFilterArray, *, dark_electrons: float = 0.0, learn: Sequence[str] = ()
    ) -> None:
        super().__init__()
        if lens.boundary != "crop":
            raise ValueError(f"lens: need boundary 'crop', got {lens.boundary!r}")
        if bool((lens.dark_electrons != 0).any()):
            raise ValueError("lens: need a camera without dark_electrons, which do not pass the filters")
        self.lens = lens
        if lens.n_channels not in (None, 1, filters.spectra.shape[1]):
            raise ValueError(f"lens: need numbers for {filters.spectra.shape[1]} bands, got {lens.n_channels}")
        self.filters = filters
        self.parameter_scale: Mapping[str, float] = {"dark_electrons": lens.parameter_scale["dark_electrons"]}
        dark = as_values("dark_electrons", dark_electrons, "a number", (0,)).double()
        hold(self, {"dark_electrons": within("dark_electrons", dark, 0.0)}, learn)

    def scene_size(self, rows: int, columns: int) -> tuple[int, int]:
        """Scene samples along rows and columns that give a mean of `rows` x `columns` pixels."""
        return self.lens.scene_size(rows), self.lens.scene_size(columns)

    def electrons(self) -> Tensor:
        """Photo-electrons where the scene is 1 and the filter clear: a number or (band, 1, 1)."""
        return (self.lens.exposure_photons * self.lens.quantum_efficiency)[..., None, None]

    def forward(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photo-electrons (batch, 1, row, column), of light and in the dark."""
        light = self.A(scene)
        return light + self.dark_electrons.to(light.dtype)

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """Photo-electrons (batch, 1, row, column) from light behind the mosaic."""
        scene = as_planes("scene", scene, channels=self.filters.spectra.shape[1])
        light = blurred_pixels(scene, self.lens.psf(), self.lens.oversampling)
        return self.filters.A(light * self.electrons().to(scene.dtype))

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """Each pixel's value to the bands that its filter passes, and back through the lens."""
        measured = as_planes("measured", measured, channels=1)
        light = self.filters.A_adjoint(measured) * self.electrons().to(measured.dtype)
        return blurred_pixels_adjoint(light, self.lens.psf(), self.lens.oversampling)


def color_camera(
    design: ColorCameraDesign = "bayer",
    *,
    photons: float = 1000.0,
    read_std: float = 2.4,
    f_number: float = 5.6,
    pixel_um: float = 3.45,
    dark_electrons: float = 0.0,
    band_nm: Sequence[float] = (610.0, 540.0, 460.0),
    spectra: Values | None = None,
    tile_pixels: int = 8,
    margin_pixels: int = 6,
    shape: tuple[int, int] = (16, 16),
    n_scenes: int = 512,
    scenes: Tensor | np.ndarray | None = None,
    learn: tuple[str, ...] = (),
) -> ImagingSystem:
    """mean[p] = photons sum_b filter[p, b] pixels(PSF_b * scene_b)[p] + dark, in electrons, p the mosaic's pixels.

    "bayer", "rgbw" (half of the pixels clear), "xtrans"; "random": a tile of the RGBW filters in random order;
    "learned": a soft choice among them for each pixel of a tile, from an almost even start, for
    `learn=("choice_logits",)`; `encoder.filters.hardened()` is the tile that it found. All are compared at equal
    exposure, not equal light: clear pixels get more of it.

    Args:
        photons: photo-electrons that one band gives a pixel without filter where the scene is 1, at any f-number.
        band_nm: wavelength of each band of the scenes: red, green, blue by default, more for hyperspectral scenes.
        spectra: (4, band) transmission of red, green, blue, clear; default `filter_spectra(band_nm)`.
        tile_pixels: side of the tile of the last two. shape: pixels, rows and columns, of the default scenes.
        scenes: (n, band, row, column), linear light: of photographs `datasets.linearize_srgb(images / 255)`.
        learn: "choice_logits" (design "learned"), "spectra", "dark_electrons", and of the lens "aperture_radius",
            "defocus_waves", "phase_mask_waves", "exposure_photons", "quantum_efficiency".

    Reference: Chakrabarti 2016, arXiv:1605.07078; Sony IMX250: 3.45 um, 2.4 electrons of read noise (EMVA 1288).
    """
    if design not in get_args(ColorCameraDesign):
        raise ValueError(f"design: need one of {get_args(ColorCameraDesign)}, got {design!r}")
    of_lens = lens_names(learn, (*_FILTERS, "dark_electrons"))
    lens = Camera(
        wavelength_nm=band_nm,
        f_number=f_number,
        pixel_um=pixel_um,
        exposure_photons=photons,
        margin_pixels=margin_pixels,
        learn=of_lens,
    )
    filters = ColorFilterArray(
        _tile(design, check_count("tile_pixels", tile_pixels)),
        filter_spectra(band_nm) if spectra is None else spectra,
        learn=tuple(name for name in learn if name in _FILTERS),
    )
    encoder = ColorCamera(
        lens,
        filters,
        dark_electrons=dark_electrons,
        learn=tuple(name for name in learn if name == "dark_electrons"),
    )
    if scenes is None and len(band_nm) != 3:
        raise ValueError(f"scenes: need scenes of {len(band_nm)} bands, the bundled ones have 3, got None")
    found = camera_scenes(scenes, encoder.scene_size, channels=len(band_nm), shape=shape, n_scenes=n_scenes, color=True)
    return ImagingSystem(encoder, PoissonGaussianNoise(read_std=read_std), found)


def _tile(design: ColorCameraDesign, tile_pixels: int) -> Tensor:
    if design in ("bayer", "rgbw", "xtrans"):
        return torch.tensor({"bayer": BAYER, "rgbw": RGBW, "xtrans": XTRANS}[design])
    generator = torch.Generator().manual_seed(0)
    tile = random_tile((tile_pixels, tile_pixels), _SHARES, generator=generator)
    # Not quite even, or all pixels of the tile would learn the same.
    return tile if design == "random" else choice_logits(tile, len(_SHARES), share=0.4)
