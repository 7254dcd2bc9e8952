"""A thermal camera with a cooled photon detector: scenes in kelvin, means in photo-electrons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bitlens import ops
from bitlens.encoders import Camera, Detector, detector_noise, path_psf, photo_response_map
from bitlens.encoders.detector import Values, as_planes, as_values, hold
from bitlens.encoders.pixel_blur import blurred_pixels
from bitlens.systems._camera_scenes import camera_scenes, lens_names
from bitlens.systems._checks import check_count, check_number, check_positive
from bitlens.systems._thermal_radiation import Response, band_radiance, checked_response, peak_and_response
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription

InfraredDesign = Literal["mid_wave", "long_wave"]

DESCRIPTION = SystemDescription(
    name="infrared_camera",
    designs=get_args(InfraredDesign),
    formula="z = min(N, full well) + n, N ~ Poisson(t (response QE A pi / (4 F^2 + 1) tau PSF * L(T) + lens + dark))",
    reference="Planck 1901; Rogalski, Infrared Detectors, 2nd ed. 2011; Hansen et al. 1982, doi:10.1063/1.330018",
)

# Colder scenes do not occur before a camera; temperatures in degrees Celsius are all below.
_COLDEST_SCENE_KELVIN = 150.0
_IN_DETECTOR = ("quantum_efficiency", "dark_electrons_per_s", "photo_response")
_IN_LENS = ("f_number", "defocus_waves", "phase_mask_waves")
_IN_CAMERA = ("exposure_ms", "short_um", "long_um")


class _Detector(NamedTuple):
    """What a data sheet says."""

    short_um: float
    long_um: float
    cutoff_um: float
    quantum_efficiency: float
    exposure_ms: float
    dark_electrons_per_s: float
    read_electrons: float
    full_well_electrons: float


# The exposures half fill the wells at 300 K and f/2.5, as integration times of such cameras do.
_DETECTORS = {
    "mid_wave": _Detector(3.7, 4.8, 5.4, 0.8, 6.0, 1e6, 600.0, 7e6),
    "long_wave": _Detector(7.7, 9.3, 10.0, 0.6, 0.5, 5e8, 1000.0, 1.2e7),
}


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
        response: of the detector over wavelength, 1 at its peak; None is the same for all.
        sensitive_um: wavelengths beyond which a filter that is learned lets nothing more be detected.
        full_well_electrons: beyond which `uniform_electrons` and `netd_kelvin` say that a scene saturates.
        learn: "exposure_ms", "short_um", "long_um".

    Reference: Rogalski, Infrared Detectors, 2nd ed. 2011.
    """

    exposure_ms: Tensor
    short_um: Tensor
    long_um: Tensor
    response_um: Tensor | None
    response: Tensor | None

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
        response: Response | None = None,
        sensitive_um: tuple[float, float] = (0.5, 30.0),
        full_well_electrons: float | None = None,
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
        check_positive("exposure_ms", exposure_ms)
        exposure = as_values("exposure_ms", exposure_ms, "a number", (0,))
        if float(detector.exposure_s) != 1.0:
            raise ValueError(f"detector: need an exposure_s of 1, rates per second, got {float(detector.exposure_s)}")
        self.lens, self.detector = lens, detector
        self.transmission, self.lens_kelvin, self.pixels_per_s = transmission, lens_kelvin, pixels_per_s
        self.longest_ms = max(exposure_ms, longest_ms or 0.0)
        self.full_well_electrons = full_well_electrons
        knots, shares = (None, None) if response is None else checked_response(response)
        self.register_buffer("response_um", knots)
        self.register_buffer("response", shares)
        ends = sensitive_um if knots is None else (float(knots[0]), float(knots[-1]))
        if not (ends[0] < long_um and short_um < ends[1]):
            raise ValueError(
                f"short_um, long_um: need a band that meets {ends[0]:g} to {ends[1]:g} um, where the detector sees, "
                f"got {short_um} to {long_um}"
            )
        self._ends_um = (min(short_um, ends[0]), 0.5 * (short_um + long_um), max(long_um, ends[1]))
        self.parameter_scale: Mapping[str, float] = {
            "exposure_ms": 0.3 * float(exposure),
            **dict.fromkeys(("short_um", "long_um"), 0.3 * (long_um - short_um)),
        }
        self.smear_pixels = math.ceil(0.5e-3 * pixels_per_s * self.longest_ms) + 1 if pixels_per_s else 0
        values = {
            "exposure_ms": exposure,
            "short_um": as_values("short_um", short_um, "a number", (0,)),
            "long_um": as_values("long_um", long_um, "a number", (0,)),
        }
        hold(self, values, learn)

    @property
    def parameter_domain(self) -> Mapping[str, tuple[float | None, float | None]]:
        """What an optimiser may reach: a motion that the PSF holds, ends on their sides of the first band's middle."""
        least, middle, most = self._ends_um
        return {"exposure_ms": (0.0, self.longest_ms), "short_um": (least, middle), "long_um": (middle, most)}

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

    def radiance(self, temperature_kelvin: Values) -> Tensor:
        """Photons / (s m^2 sr) of black bodies that the filter passes, weighted with the detector's response."""
        curve = None if self.response_um is None or self.response is None else (self.response_um, self.response)
        return band_radiance(temperature_kelvin, self.short_um, self.long_um, curve)

    def photons_per_s(self, radiance: Tensor) -> Tensor:
        """Photons per pixel and second of blurred scene radiance, photons / (s m^2 sr), and of the warm lens."""
        area_m2 = (1e-6 * self.lens.pixel_um) ** 2
        throughput = (math.pi * area_m2 / (4 * self.lens.f_number**2 + 1)).to(radiance.dtype)
        warm = self.radiance(torch.tensor(self.lens_kelvin).to(self.short_um))
        emitted = ((1 - self.transmission) * warm).to(radiance.dtype)
        return throughput * (self.transmission * radiance + emitted)

    def forward(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photo-electrons (batch, 1, row, column) of scenes in kelvin."""
        radiance = self.radiance(as_planes("scene", scene, channels=1))
        rate = self.photons_per_s(blurred_pixels(radiance, self.psf(), self.lens.oversampling))
        return 1e-3 * self.exposure_ms.to(rate.dtype) * self.detector(rate)

    def uniform_electrons(self, temperature_kelvin: Values) -> Tensor:
        """Mean photo-electrons, float64, of the mean pixel before a uniform scene: shape of the temperatures.

        Raises:
            ValueError: they fill the well, so that no change of the temperature would be seen.
        """
        temperature = torch.as_tensor(temperature_kelvin, dtype=torch.float64)
        rate = self.photons_per_s(self.radiance(temperature))
        dark = self.detector.dark_electrons().mean()
        electrons = 1e-3 * self.exposure_ms * (self.detector.electrons_per_rate().mean() * rate + dark)
        if self.full_well_electrons is not None and bool((electrons >= self.full_well_electrons).any()):
            raise ValueError(
                f"temperature_kelvin: need a scene that leaves the well of {self.full_well_electrons:g} electrons "
                f"unfilled at {float(self.exposure_ms.detach()):g} ms, got "
                f"{float(electrons.detach().max()):.3g} electrons"
            )
        return electrons

    def netd_kelvin(self, temperature_kelvin: float, read_electrons: float) -> Tensor:
        """sqrt(S + read^2) / (dS/dT): the change of temperature as large as the noise of one pixel, S electrons.

        Raises:
            ValueError: S fills the well.

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
    quantum_efficiency: float | Response | None = None,
    dark_electrons_per_s: float | None = None,
    response_std: float = 0.01,
    mean_kelvin: float = 300.0,
    contrast_kelvin: float = 5.0,
    margin_pixels: int = 4,
    shape: tuple[int, int] = (16, 16),
    n_scenes: int = 512,
    scenes: Tensor | np.ndarray | None = None,
    learn: tuple[str, ...] = (),
) -> ImagingSystem:
    """mean = t (response QE A pi / (4 F^2 + 1) (tau PSF * L(T) + (1 - tau) L(T lens)) + dark), photo-electrons.

    "mid_wave": InSb, 3.7 to 4.8 um, 6 ms, well of 7 million electrons. "long_wave": HgCdTe, 7.7 to 9.3 um, 0.5 ms,
    12 million. Exposures half fill the wells at 300 K (not equal light); longer ones smear what moves.

    Args:
        quantum_efficiency: a number, default 0.8 or 0.6, or (wavelengths in um, efficiencies) such as
            `photodiode_efficiency(5.4)`.
        dark_electrons_per_s: default 1e6 or 5e8.
        response_std: spread of the pixels' responses, as a share: fixed pattern, before any correction; 0 leaves the
            encoder without a map, for scenes of any size.
        mean_kelvin, contrast_kelvin: of the default scenes, mean + contrast (x - 1), x bundled images of mean 1.
        shape: pixels, rows and columns, of the default scenes. scenes: (n, 1, row, column), kelvin, at least 150.
        learn: "short_um", "long_um", "exposure_ms", "quantum_efficiency" (of a curve its peak),
            "dark_electrons_per_s", "photo_response", "defocus_waves", "phase_mask_waves", and "f_number": the diameter
            changes, and with it light, while the focal length and what a pixel sees stay.

    Reference: Rogalski, Infrared Detectors, 2nd ed. 2011: arrays of 15 um, wells of 6 to 12 million
        electrons, NETD of 10 to 30 mK.
    """
    if design not in get_args(InfraredDesign):
        raise ValueError(f"design: need one of {get_args(InfraredDesign)}, got {design!r}")
    sheet = _DETECTORS[design]
    exposure = sheet.exposure_ms if exposure_ms is None else check_positive("exposure_ms", exposure_ms)
    check_positive("f_number", f_number)
    check_positive("pixel_um", pixel_um)
    if not check_number("response_std", response_std) >= 0:
        raise ValueError(f"response_std: need at least 0, got {response_std}")
    check_count("margin_pixels", margin_pixels)
    for name, value in (
        *(("pixels_per_s", pixels_per_s), ("lens_kelvin", lens_kelvin), ("transmission", transmission)),
        *(("mean_kelvin", mean_kelvin), ("contrast_kelvin", contrast_kelvin)),
    ):
        check_number(name, value)
    _check_no_text("quantum_efficiency", quantum_efficiency)
    dark = sheet.dark_electrons_per_s
    if dark_electrons_per_s is not None:
        dark = check_number("dark_electrons_per_s", dark_electrons_per_s)
    efficiency, curve = peak_and_response(
        sheet.quantum_efficiency if quantum_efficiency is None else quantum_efficiency
    )
    lens = Camera(
        wavelength_nm=500 * (sheet.short_um + sheet.long_um),
        f_number=f_number,
        pixel_um=pixel_um,
        margin_pixels=margin_pixels,
        learn=lens_names(learn, (*_IN_CAMERA, *_IN_DETECTOR), of_lens=_IN_LENS),
    )

    def encoder(response: Tensor) -> InfraredCamera:
        detector = Detector(
            quantum_efficiency=efficiency,
            dark_electrons_per_s=dark,
            photo_response=response,
            learn=tuple(name for name in learn if name in _IN_DETECTOR),
        )
        # A twentieth of the well is a lot; beside the light, what the detector has of its own may be next to nothing.
        large_dark = 0.05 * sheet.full_well_electrons / (1e-3 * exposure)
        detector.parameter_scale = {**detector.parameter_scale, "dark_electrons_per_s": large_dark}
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
            response=curve,
            sensitive_um=(1.0, sheet.cutoff_um),
            full_well_electrons=sheet.full_well_electrons,
            learn=tuple(name for name in learn if name in _IN_CAMERA),
        )

    generator = torch.Generator().manual_seed(0)
    scene_size = encoder(torch.ones(1, 1)).scene_size
    found = camera_scenes(
        scenes, scene_size, shape=shape, n_scenes=n_scenes, relative=False, generator=generator, lower=None
    )
    if scenes is None:
        found = mean_kelvin + contrast_kelvin * (found - 1)
    _check_kelvin("mean_kelvin, contrast_kelvin" if scenes is None else "scenes", found)
    noise = detector_noise(read_electrons=sheet.read_electrons, full_well_electrons=sheet.full_well_electrons)
    edge = scene_size(0, 0)[0]
    pixels = ((found.shape[-2] - edge) // lens.oversampling, (found.shape[-1] - edge) // lens.oversampling)
    if response_std:
        response = photo_response_map(pixels, response_std, generator=generator)
    else:
        response = torch.ones(pixels if "photo_response" in learn else ())
    return ImagingSystem(encoder(response), noise, found)


def _check_no_text(name: str, value: object) -> None:
    if isinstance(value, str):
        raise TypeError(f"{name}: need a number, or wavelengths and efficiencies, got {value!r}")


def _check_kelvin(name: str, scenes: Tensor) -> None:
    if not float(scenes.min()) >= _COLDEST_SCENE_KELVIN:
        raise ValueError(
            f"{name}: need temperatures in kelvin, at least {_COLDEST_SCENE_KELVIN:g} (degrees Celsius + 273.15), "
            f"got {float(scenes.min()):g}"
        )
