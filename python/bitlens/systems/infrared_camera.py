"""A thermal camera with a cooled photon detector: scenes in kelvin, means in photo-electrons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, final, get_args

import numpy as np
import torch
from scipy import constants
from torch import Tensor, nn

from bitlens import ops
from bitlens.datasets import scene_patches
from bitlens.encoders import Camera, Detector, detector_noise, path_psf, photo_response_map
from bitlens.encoders.detector import Values, as_planes, as_values, hold, within
from bitlens.encoders.pixel_blur import blurred_pixels
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription

InfraredDesign = Literal["mid_wave", "long_wave"]

DESCRIPTION = SystemDescription(
    name="infrared_camera",
    designs=get_args(InfraredDesign),
    formula="z = min(N, full well) + n, N ~ Poisson(t (response QE A pi / (4 F^2 + 1) tau PSF * L(T) + lens + dark))",
    reference="Planck 1901; Rogalski, Infrared Detectors, 2nd ed. 2011",
)

# h c / k in um K.
SECOND_RADIATION_CONSTANT_UM_K = 1e6 * constants.h * constants.c / constants.k
_NODES = 8
_COLDEST_KELVIN = 1.0


class _Detector(NamedTuple):
    """What a data sheet says."""

    short_um: float
    long_um: float
    quantum_efficiency: float
    exposure_ms: float
    dark_electrons_per_s: float
    read_electrons: float
    full_well_electrons: float


# The exposures half fill the wells at 300 K and f/2.5, as integration times of such cameras do.
_DETECTORS = {
    "mid_wave": _Detector(3.7, 4.8, 0.8, 6.0, 1e6, 600.0, 7e6),
    "long_wave": _Detector(7.7, 9.3, 0.6, 0.5, 5e8, 1000.0, 1.2e7),
}


def photon_radiance(wavelength_um: Values, temperature_kelvin: Values) -> Tensor:
    """2 c / (wavelength^4 (exp(h c / (wavelength k T)) - 1)), photons / (s m^2 sr um), of a black body; they broadcast.

    Times h c / wavelength it is the spectral radiance in W. Below 1 K counts as 1 K, which emits nothing here.

    Reference: Planck's law, CODATA 2018 constants (exact).
    """
    wavelength, temperature = (_floating(value) for value in (wavelength_um, temperature_kelvin))
    ratio = SECOND_RADIATION_CONSTANT_UM_K / (wavelength * temperature.clamp(min=_COLDEST_KELVIN))
    # This does not overflow where exp(x) - 1 does; where x is small, in the far infrared, it loses eps / x.
    boltzmann = torch.exp(-ratio)
    return 2e18 * constants.c / wavelength**4 * (boltzmann / (1 - boltzmann))


def band_radiance(temperature_kelvin: Values, short_um: Values, long_um: Values) -> Tensor:
    """Integral of `photon_radiance` from `short_um` to `long_um`, photons / (s m^2 sr), shape of the temperatures.

    By 8 Gauss-Legendre nodes, better than 1e-7 for bands of one octave, 1e-6 for two; differentiable in all three.
    """
    temperature = _floating(temperature_kelvin)
    short, long = (torch.as_tensor(edge, dtype=torch.float64) for edge in (short_um, long_um))
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    middle, half = 0.5 * (long + short), 0.5 * (long - short)
    total = torch.zeros_like(temperature)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        wavelength = (middle + half * node).to(temperature.dtype)
        total = total + (weight * half).to(temperature.dtype) * photon_radiance(wavelength, temperature)
    return total


def _floating(value: Values) -> Tensor:
    tensor = torch.as_tensor(value)
    return tensor if tensor.is_floating_point() else tensor.to(torch.float64)


def kelvin_from_counts(
    counts: Values, *, planck_r1: float, planck_r2: float, planck_b: float, planck_f: float, planck_o: float
) -> Tensor:
    """B / ln(R1 / (R2 (counts + O)) + F), kelvin: temperature of a black body that gives `counts`.

    Thermal cameras write the constants into their files beside the raw counts: B in kelvin, R1 / R2 and the offset O in
    counts. Emissivity, reflections and the air between are left out.

    Reference: Planck's law at one effective wavelength h c / (k B), as in FLIR's radiometric files.
    """
    signal = torch.as_tensor(counts).to(torch.float64) + planck_o
    return planck_b / torch.log(planck_r1 / (planck_r2 * signal) + planck_f)


@final
class InfraredCamera(nn.Module):
    """mean = t detector(A pi / (4 F^2 + 1) (tau pixels(PSF * smear * L(T)) + (1 - tau) L(T lens))), photo-electrons.

    L is the photon radiance of the band, A the pixel's area, F the f-number, tau the lens's transmission (what it does
    not pass it emits), t the exposure, the smear a line of speed times exposure along the columns.

    Shapes: scene in kelvin (batch, 1, row, column), `lens.oversampling` samples per pixel side, -> (batch, 1, row,
    column), pixels that see no boundary; `scene_size` says how large a scene is.

    Args:
        lens: gives PSF (at its own wavelength), f-number and pixel; boundary "crop", its electrons are not used.
        detector: of photons per pixel and second, its own exposure one second.
        longest_ms: exposure that an optimiser may reach and the PSF has room for, default the present.
        learn: "exposure_ms", "short_um", "long_um".

    Reference: Rogalski, Infrared Detectors, 2nd ed. 2011.
    """

    exposure_ms: Tensor
    short_um: Tensor
    long_um: Tensor

    def __init__(
        self,
        lens: Camera,
        detector: Detector,
        *,
        exposure_ms: float,
        short_um: float,
        long_um: float,
        transmission: float = 0.9,
        lens_kelvin: float = 300.0,
        pixels_per_s: float = 0.0,
        longest_ms: float | None = None,
        learn: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if lens.boundary != "crop":
            raise ValueError(f"lens: need boundary 'crop', got {lens.boundary!r}")
        if not 0 < short_um < long_um:
            raise ValueError(f"short_um, long_um: need 0 < short < long, got {short_um} and {long_um}")
        if not 0 < transmission <= 1:
            raise ValueError(f"transmission: need a number above 0 and at most 1, got {transmission}")
        if not (pixels_per_s >= 0 and lens_kelvin > 0):
            raise ValueError(
                f"pixels_per_s, lens_kelvin: need at least 0 and above 0, got {pixels_per_s} and {lens_kelvin}"
            )
        exposure = within("exposure_ms", as_values("exposure_ms", exposure_ms, "a number", (0,)), 0.0)
        if float(detector.exposure_s) != 1.0:
            raise ValueError(f"detector: need an exposure_s of 1, rates per second, got {float(detector.exposure_s)}")
        self.lens, self.detector = lens, detector
        self.transmission, self.lens_kelvin, self.pixels_per_s = transmission, lens_kelvin, pixels_per_s
        self.longest_ms = max(exposure_ms, longest_ms or 0.0)
        self.smear_pixels = math.ceil(0.5e-3 * pixels_per_s * self.longest_ms) + 1 if pixels_per_s else 0
        values = {
            "exposure_ms": exposure,
            "short_um": as_values("short_um", short_um, "a number", (0,)),
            "long_um": as_values("long_um", long_um, "a number", (0,)),
        }
        hold(self, values, learn)

    @property
    def parameter_domain(self) -> Mapping[str, tuple[float | None, float | None]]:
        """What an optimiser may reach: an exposure whose motion the PSF holds."""
        return {"exposure_ms": (0.0, self.longest_ms), "short_um": (0.5, None), "long_um": (0.5, None)}

    def scene_size(self, rows: int, columns: int) -> tuple[int, int]:
        """Scene samples along rows and columns that give a mean of `rows` x `columns` pixels."""
        edge = 2 * (self.lens.margin_pixels + self.smear_pixels)
        return (rows + edge) * self.lens.oversampling, (columns + edge) * self.lens.oversampling

    def psf(self) -> Tensor:
        """PSF of lens and motion on the scene's grid, sum 1 with the lens's aperture open."""
        psf = self.lens.psf()
        if not self.smear_pixels:
            return psf
        samples = self.lens.oversampling
        half = 0.5e-3 * self.pixels_per_s * samples * self.exposure_ms
        line = torch.stack((torch.zeros_like(half), half))[None]
        smear = path_psf(-line, line, torch.ones_like(half)[None], self.smear_pixels * samples)
        return ops.psf_convolve(psf, smear, mode="full")

    def photons_per_s(self, radiance: Tensor) -> Tensor:
        """Photons per pixel and second of blurred scene radiance, photons / (s m^2 sr), and of the warm lens."""
        area_m2 = (1e-6 * self.lens.pixel_um) ** 2
        throughput = (math.pi * area_m2 / (4 * self.lens.f_number**2 + 1)).to(radiance.dtype)
        warm = band_radiance(torch.tensor(self.lens_kelvin).to(self.short_um), self.short_um, self.long_um)
        emitted = ((1 - self.transmission) * warm).to(radiance.dtype)
        return throughput * (self.transmission * radiance + emitted)

    def forward(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photo-electrons (batch, 1, row, column) of scenes in kelvin."""
        radiance = band_radiance(as_planes("scene", scene, channels=1), self.short_um, self.long_um)
        rate = self.photons_per_s(blurred_pixels(radiance, self.psf(), self.lens.oversampling))
        return 1e-3 * self.exposure_ms.to(rate.dtype) * self.detector(rate)

    def uniform_electrons(self, temperature_kelvin: Values) -> Tensor:
        """Mean photo-electrons, float64, of the mean pixel before a uniform scene: shape of the temperatures."""
        temperature = torch.as_tensor(temperature_kelvin, dtype=torch.float64)
        rate = self.photons_per_s(band_radiance(temperature, self.short_um, self.long_um))
        dark = self.detector.dark_electrons().mean()
        return 1e-3 * self.exposure_ms * (self.detector.electrons_per_rate().mean() * rate + dark)

    def netd_kelvin(self, temperature_kelvin: float, read_electrons: float) -> Tensor:
        """sqrt(S + read^2) / (dS/dT): the change of temperature as large as the noise of one pixel, S electrons.

        Reference: Rogalski, Infrared Detectors, 2nd ed. 2011.
        """
        with torch.enable_grad():
            temperature = torch.tensor(temperature_kelvin, dtype=torch.float64, requires_grad=True)
            signal = self.uniform_electrons(temperature)
            (slope,) = torch.autograd.grad(signal, temperature)
        return (signal.detach() + read_electrons**2).sqrt() / slope


def infrared_camera(
    design: InfraredDesign = "mid_wave",
    *,
    f_number: float = 2.5,
    pixel_um: float = 15.0,
    exposure_ms: float | None = None,
    pixels_per_s: float = 0.0,
    lens_kelvin: float = 300.0,
    transmission: float = 0.9,
    response_std: float = 0.01,
    mean_kelvin: float = 300.0,
    contrast_kelvin: float = 5.0,
    margin_pixels: int = 4,
    shape: tuple[int, int] = (16, 16),
    n_scenes: int = 512,
    scenes: Tensor | None = None,
    learn: tuple[str, ...] = (),
) -> ImagingSystem:
    """mean = t (response QE A pi / (4 F^2 + 1) (tau PSF * L(T) + (1 - tau) L(T lens)) + dark), photo-electrons.

    "mid_wave": InSb, 3.7 to 4.8 um, 6 ms, well of 7 million electrons. "long_wave": HgCdTe, 7.7 to 9.3 um, 0.5 ms,
    12 million. Default exposures half fill the wells at 300 K; longer ones smear what moves by `pixels_per_s`.

    Args:
        response_std: spread of the pixels' responses, as a share: fixed pattern, before any correction; 0 leaves the
            encoder without a map, for scenes of any size.
        mean_kelvin, contrast_kelvin: of the default scenes, mean + contrast (x - 1), x bundled images of mean 1.
        shape: pixels, rows and columns, of the default scenes. scenes: (n, 1, row, column), kelvin.
        learn: "short_um", "long_um", "exposure_ms", "quantum_efficiency", "dark_electrons_per_s", "photo_response",
            "f_number", and the lens's "defocus_waves", "phase_mask_waves".

    Reference: Rogalski, Infrared Detectors, 2nd ed. 2011: arrays of 15 um, wells of 6 to 12 million
        electrons, NETD of 10 to 30 mK.
    """
    if design not in get_args(InfraredDesign):
        raise ValueError(f"design: need one of {get_args(InfraredDesign)}, got {design!r}")
    known = ("f_number", "defocus_waves", "phase_mask_waves")
    in_detector = ("quantum_efficiency", "dark_electrons_per_s", "photo_response")
    sheet = _DETECTORS[design]
    exposure = sheet.exposure_ms if exposure_ms is None else exposure_ms
    lens = Camera(
        wavelength_nm=500 * (sheet.short_um + sheet.long_um),
        f_number=f_number,
        pixel_um=pixel_um,
        margin_pixels=margin_pixels,
        learn=tuple(name for name in learn if name in known),
    )

    def encoder(response: Tensor) -> InfraredCamera:
        detector = Detector(
            quantum_efficiency=sheet.quantum_efficiency,
            dark_electrons_per_s=sheet.dark_electrons_per_s,
            photo_response=response,
            learn=tuple(name for name in learn if name in in_detector),
        )
        return InfraredCamera(
            lens,
            detector,
            exposure_ms=exposure,
            short_um=sheet.short_um,
            long_um=sheet.long_um,
            transmission=transmission,
            lens_kelvin=lens_kelvin,
            pixels_per_s=pixels_per_s,
            longest_ms=2 * exposure,
            learn=tuple(name for name in learn if name not in (*known, *in_detector)),
        )

    generator = torch.Generator().manual_seed(0)
    rows, columns = encoder(torch.ones(())).scene_size(*shape)
    if scenes is None:
        patches = scene_patches(n_scenes, max(rows, columns), generator=generator).scenes[..., :rows, :columns]
        scenes = mean_kelvin + contrast_kelvin * (patches - 1)
    else:
        edge = rows - shape[0] * lens.oversampling
        shape = ((scenes.shape[-2] - edge) // lens.oversampling, (scenes.shape[-1] - edge) // lens.oversampling)
        if min(shape) < 1:
            raise ValueError(f"scenes: need more than {edge} rows and columns, got {tuple(scenes.shape)}")
    noise = detector_noise(read_electrons=sheet.read_electrons, full_well_electrons=sheet.full_well_electrons)
    response = photo_response_map(shape, response_std, generator=generator) if response_std else torch.ones(())
    return ImagingSystem(encoder(response), noise, scenes)
