"""The microscopes of the study of fluorescence pupils: their list, what differs between them, their figures."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from _fluorescence_scenes import DEPTHS_UM, MARGIN, PIXEL_UM, SAMPLE_UM, SAMPLES
from _validation_study import Metric
from matplotlib.figure import Figure
from torch import Tensor, nn

from bitlens.encoders import optics, pupils
from bitlens.encoders.convolution import image_on_pixels
from bitlens.encoders.detector import as_planes
from bitlens.encoders.zernike import zernike_basis
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.systems.fluorescence_microscope import FluorescenceMicroscope
from bitlens.validation import condition_number, mtf50, point_response, snr_db

WAVELENGTH_NM = 525.0
# Per pixel of 0.65 um: from the specimen on average, and of the medium and dark signal; a scientific CMOS camera.
LIGHT_ELECTRONS, BACKGROUND_ELECTRONS, READ_ELECTRONS = 60.0, 5.0, 1.6


class Design(NamedTuple):
    """What differs between the microscopes: terms in waves rms, a phase plate, pixels as multiples of 0.65 um."""

    aperture: float
    focus_um: float = 0.0
    zernike_waves: Mapping[int, float] = {}
    plate: str = ""
    plate_waves: float = 0.0
    pixel: int = 1


DESIGNS: Mapping[str, Design] = {
    "NA 0.4": Design(0.4),
    "NA 0.3": Design(0.3),
    "NA 0.2": Design(0.2),
    "NA 0.15": Design(0.15),
    "NA 0.1": Design(0.1),
    "0.3, focus on the upper layer": Design(0.3, focus_um=5.0),
    "0.4, focus 10 um off": Design(0.4, focus_um=10.0),
    "0.3, spherical 0.25": Design(0.3, zernike_waves={11: 0.25}),
    "0.4, spherical 0.5": Design(0.4, zernike_waves={11: 0.5}),
    "0.3, coma 0.3": Design(0.3, zernike_waves={8: 0.3}),
    "0.3, astigmatism 0.15": Design(0.3, zernike_waves={6: 0.15}),
    "0.3, astigmatism 0.5": Design(0.3, zernike_waves={6: 0.5}),
    "0.3, turbid 0.3": Design(0.3, plate="turbid", plate_waves=0.3),
    "0.4, cubic plate 1": Design(0.4, plate="cubic", plate_waves=1.0),
    "0.4, cubic plate 3": Design(0.4, plate="cubic", plate_waves=3.0),
    "0.3, vortex": Design(0.3, plate="vortex", plate_waves=1.0),
    "0.3, halves in antiphase": Design(0.3, plate="halves", plate_waves=0.5),
    "0.3, pixels of 1.3 um": Design(0.3, pixel=2),
    "0.3, pixels of 2.6 um": Design(0.3, pixel=4),
}


def plate_phase(name: str, waves: float, aperture: float, size: int) -> Tensor | None:
    """Waves (size, size) on the pupil's grid: `waves` times x^3 + y^3, a full turn, a step, or a random aberration."""
    if not name:
        return None
    step = 1e-3 * WAVELENGTH_NM / (aperture * size * SAMPLE_UM)
    axis = step * (torch.arange(size, dtype=torch.float64) - size // 2)
    row, column = torch.meshgrid(axis, axis, indexing="ij")
    if name == "cubic":
        found = column**3 + row**3
    elif name == "vortex":
        found = torch.atan2(row, column) / (2 * math.pi)
    elif name == "halves":
        found = (column > 0).double()
    else:
        terms = tuple(range(5, 37))
        weights = torch.randn(len(terms), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        found = torch.einsum("z,zrc->rc", weights / weights.norm(), zernike_basis(terms, column[:1], row[:, :1]))
    # Beyond the aperture nothing passes; a cubic term would only grow there.
    return waves * torch.where(torch.hypot(row, column) < 1.2, found, 0.0)


class LayeredMicroscope(nn.Module):
    """Mean photo-electrons of a specimen in layers: each layer through the PSF of its depth, their light added up.

    Shapes: scene (batch, layer, row, column) as of the microscope's one layer -> (batch, 1, row, column).
    """

    depths_um: Tensor

    def __init__(self, microscope: FluorescenceMicroscope, depths_um: tuple[float, ...] = DEPTHS_UM) -> None:
        super().__init__()
        self.microscope = microscope
        self.register_buffer("depths_um", torch.tensor(depths_um, dtype=torch.float64))

    def pupils(self) -> Tensor:
        """Complex (layer, psf_size, psf_size)."""
        microscope = self.microscope
        grid = optics.pupil_grid(
            microscope.psf_size,
            sample_um=microscope.object_pixel_um / microscope.oversampling,
            wavelength_nm=microscope.wavelength_nm,
            f_number=0.5 / microscope.numerical_aperture,
        )
        path = pupils.high_aperture_defocus_waves(
            grid,
            depth_um=self.depths_um,
            wavelength_nm=microscope.wavelength_nm,
            numerical_aperture=microscope.numerical_aperture,
            immersion_index=microscope.immersion_index,
        )
        return microscope.pupil() * optics.pupil(torch.ones_like(path), path)

    def psf(self) -> Tensor:
        """(layer, psf_size, psf_size), each of sum 1."""
        return optics.incoherent_psf(self.pupils(), torch.ones_like(self.depths_um))

    def forward(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photo-electrons (batch, 1, row, column)."""
        scene = as_planes("scene", scene, channels=len(self.depths_um))
        microscope = self.microscope
        electrons = microscope.emitted_photons * microscope.collected_share() * microscope.efficiency
        image = image_on_pixels(scene, self.psf(), microscope.oversampling).sum(1, keepdim=True)
        return electrons.to(scene.dtype) * image.clamp(min=0) + microscope.background_electrons.to(scene.dtype)


def microscope(design: Design, scenes: Tensor, learn: tuple[str, ...] = ()) -> ImagingSystem:
    """The design, exposed until the scenes bring as much light on average as they do in every other."""
    size = 2 * MARGIN * SAMPLES + 1
    background = BACKGROUND_ELECTRONS * design.pixel**2

    def exposed(photons: float) -> LayeredMicroscope:
        return LayeredMicroscope(
            FluorescenceMicroscope(
                wavelength_nm=WAVELENGTH_NM,
                numerical_aperture=design.aperture,
                immersion_index=1.0,
                object_pixel_um=PIXEL_UM * design.pixel,
                defocus_um=design.focus_um,
                zernike_waves=design.zernike_waves or None,
                pupil_phase_waves=plate_phase(design.plate, design.plate_waves, design.aperture, size),
                emitted_photons=photons,
                efficiency=1.0,
                background_electrons=background,
                oversampling=SAMPLES * design.pixel,
                margin_pixels=MARGIN // design.pixel,
                learn=learn,
            )
        )

    with torch.no_grad():
        found = exposed(1.0)(scenes) - background
    photons = LIGHT_ELECTRONS * design.pixel**2 / float(found.double().mean())
    return ImagingSystem(exposed(photons), PoissonGaussianNoise(read_std=READ_ELECTRONS), scenes)


# ---- the traditional figures ----


def metrics() -> dict[str, Metric]:
    """MTF50 and mean transfer per micrometre, Strehl ratio, SNR, condition number; over all layers alike."""

    def microscope_of(system: ImagingSystem) -> FluorescenceMicroscope:
        assert isinstance(system.encoder, LayeredMicroscope)
        return system.encoder.microscope

    @functools.lru_cache
    def response_of(encoder: nn.Module) -> Tensor:
        # Five margins hold the PSF of a point in the middle.
        assert isinstance(encoder, LayeredMicroscope)
        side = 5 * MARGIN * SAMPLES
        return point_response(encoder, (len(DEPTHS_UM), side, side), samples_per_pixel=encoder.microscope.oversampling)

    @functools.lru_cache
    def condition_of(encoder: nn.Module) -> float:
        side = (8 + 2 * MARGIN) * SAMPLES
        return condition_number(encoder, (len(DEPTHS_UM), side, side))

    def response(system: ImagingSystem) -> Tensor:
        return response_of(system.encoder)

    def resolution(system: ImagingSystem) -> float:
        one = microscope_of(system)
        return mtf50(response(system), samples_per_pixel=one.oversampling) / float(one.object_pixel_um)

    def transfer(system: ImagingSystem) -> float:
        psf = response(system)
        modulus = torch.fft.fft2(psf / psf.sum()).abs()
        axes = [torch.fft.fftfreq(side, d=SAMPLE_UM) for side in modulus.shape]
        seen = torch.hypot(axes[0][:, None], axes[1][None, :]) < 0.5 / PIXEL_UM
        return float(modulus[seen].mean())

    def strehl(system: ImagingSystem) -> float:
        assert isinstance(system.encoder, LayeredMicroscope)
        with torch.no_grad():
            return float(pupils.strehl_ratio(system.encoder.pupils()).mean())

    def signal(system: ImagingSystem) -> float:
        with torch.no_grad():
            return snr_db(system.encoder(system.scenes[:256]), system.noise)  # type: ignore[arg-type]

    def condition(system: ImagingSystem) -> float:
        return condition_of(system.encoder)

    return {
        "MTF50 per um": resolution,
        "mean transfer": transfer,
        "Strehl ratio": strehl,
        "snr_db": signal,
        "condition_number": condition,
    }


LESS_IS_BETTER = ("condition_number",)


def figure(systems: Mapping[str, ImagingSystem]) -> Figure:
    """The PSF of each design in the three layers, without the pixel's area, each from dark to its peak."""
    drawn = Figure(figsize=(12, 1.3 * math.ceil(len(systems) / 4)), layout="constrained")
    axes = drawn.subplots(math.ceil(len(systems) / 4), 4, squeeze=False).ravel()
    for axis, (name, system) in zip(axes, systems.items(), strict=False):
        assert isinstance(system.encoder, LayeredMicroscope)
        with torch.no_grad():
            psf = system.encoder.psf()
        axis.imshow(torch.cat(list(psf / psf.amax((1, 2), keepdim=True)), 1).sqrt().numpy(), cmap="magma")
        for layer in range(1, len(psf)):
            axis.axvline(layer * psf.shape[-1] - 0.5, color="w", lw=0.5)
        axis.set_axis_off()
        axis.set_title(name, fontsize=8)
    for axis in axes[len(systems) :]:
        axis.set_visible(False)
    drawn.suptitle("square root of the PSF at -5, 0 and 5 um, 10.7 um wide", fontsize=9)
    return drawn
