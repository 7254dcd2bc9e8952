"""The numbers of the demo: what three cameras carry about real scenes, and two designs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, final

import torch
from scipy import stats
from torch import Tensor

from bitlens.datasets import FITTING_SCENES, REPORTING_SCENES, Patches, load_scene, scene_patches
from bitlens.design import Box, DesignResult, DesignStep, gaussian_information, optimize_design
from bitlens.design._held_out import judge_means
from bitlens.encoders import Camera
from bitlens.estimators import InformationEstimate
from bitlens.estimators._seeds import derived_seed
from bitlens.kernels import _backend
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import CameraDesign, camera

PHOTONS = (20.0, 200.0, 2000.0)
DESIGN_PHOTONS = 200.0
READ_STD_ELECTRONS = 2.0
DESIGNS: dict[str, CameraDesign] = {
    "in focus": "in_focus",
    "1 wave of defocus": "defocused",
    "half the aperture": "small_aperture",
}

# Where the aberrated design starts: peak waves of defocus, and rms waves of the Zernike terms by Noll index:
# astigmatism (5, 6), coma (7, 8), trefoil (9, 10) and spherical aberration (11).
START_DEFOCUS_WAVES = 1.0
START_ZERNIKE_WAVES = {5: 0.12, 6: -0.08, 7: 0.10, 8: -0.06, 9: 0.05, 10: 0.0, 11: 0.08}

# A corner of the photograph "camera" with fine and coarse detail, for the example measurements.
_EXAMPLE_SCENE, _EXAMPLE_ROW, _EXAMPLE_COLUMN, _EXAMPLE_PIXELS = "camera", 60, 150, 64
_ENCODE_BATCH = 250


@final
@dataclass(frozen=True)
class Settings:
    """How much work the demo does."""

    n_patches: int
    patch_pixels: int
    n_pupil_steps: int
    n_phase_steps: int
    batch_size: int
    seed: int = 0


def full_settings(seed: int = 0) -> Settings:
    """A minute or two on two cores."""
    return Settings(n_patches=2000, patch_pixels=16, n_pupil_steps=120, n_phase_steps=120, batch_size=192, seed=seed)


def quick_settings(seed: int = 0) -> Settings:
    """Some twenty seconds on two cores."""
    return Settings(n_patches=1000, patch_pixels=12, n_pupil_steps=60, n_phase_steps=30, batch_size=128, seed=seed)


@final
@dataclass(frozen=True)
class Example:
    """What one design makes of a piece of a photograph: its PSF, the mean and one measurement, all (row, column)."""

    encoder: Camera
    mean: Tensor
    measured: Tensor


@final
@dataclass(frozen=True)
class Study:
    """All the demo found: estimates of each design at each photon level, and two design runs.

    `pupil` starts from an aberrated, defocused lens; `phase` gives the lens in focus a free phase mask;
    `phase_gain_by_image` is what the mask adds to the Gaussian closed form of each reporting image, bits per pixel.
    `in_focus` is the camera in focus, judged on the scenes and noise draws that judge both;
    `in_focus_objective_bits_per_pixel` is what both climb, for that camera on the fitting scenes.
    """

    settings: Settings
    photons: tuple[float, ...]
    estimates: Mapping[str, tuple[InformationEstimate, ...]]
    pupil: DesignResult
    phase: DesignResult
    phase_gain_by_image: tuple[float, ...]
    in_focus_objective_bits_per_pixel: float
    examples: Mapping[str, Example]
    seconds: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "estimates", MappingProxyType(dict(self.estimates)))
        object.__setattr__(self, "examples", MappingProxyType(dict(self.examples)))

    @property
    def in_focus(self) -> InformationEstimate:
        """The start of the phase mask, which is the camera in focus."""
        return self.phase.before

    @property
    def pupil_share_of_in_focus(self) -> float:
        """Bits of the designed pupil over those of the camera in focus."""
        return self.pupil.after.bits / self.in_focus.bits

    @property
    def phase_mask_gains(self) -> bool:
        """Whether the mask carries more: as judged, and image by image in a one-sided t-test at 97.5 %."""
        mean, error = paired_gain(self.phase_gain_by_image)
        quantile = float(stats.t.ppf(0.975, len(self.phase_gain_by_image) - 1))
        return self.phase.gain_bits_per_pixel > 0 and mean > quantile * error

    def to_dict(self) -> dict[str, Any]:
        """Every number of the study as plain Python values."""
        return {
            "photons": list(self.photons),
            "read_std_electrons": READ_STD_ELECTRONS,
            "patch_pixels": self.settings.patch_pixels,
            "n_patches": self.settings.n_patches,
            "seed": self.settings.seed,
            "fitting_scenes": list(FITTING_SCENES),
            "reporting_scenes": list(REPORTING_SCENES),
            "estimates": {name: [e.to_dict() for e in row] for name, row in self.estimates.items()},
            "designed_pupil": self.pupil.to_dict(),
            "phase_mask": self.phase.to_dict(),
            "in_focus_objective_bits_per_pixel": self.in_focus_objective_bits_per_pixel,
            "pupil_share_of_in_focus": self.pupil_share_of_in_focus,
            "phase_gain_by_image": list(self.phase_gain_by_image),
            "phase_mask_gains": self.phase_mask_gains,
        }

    def to_json(self) -> str:
        """`to_dict` as strict JSON."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)


def paired_gain(gains: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of gains that were each taken on one image."""
    values = torch.tensor(gains, dtype=torch.float64)
    return float(values.mean()), float(values.std()) / math.sqrt(len(gains))


def lens(photons: float, **changes: Any) -> Camera:
    """The lens and sensor of `systems.camera` in focus, with some arguments of `Camera` changed."""
    base = camera("in_focus", photons=photons, scenes=torch.ones(1, 1, 50, 50)).encoder
    assert isinstance(base, Camera)
    arguments: dict[str, Any] = {
        "wavelength_nm": float(base.wavelength_nm),
        "f_number": float(base.f_number),
        "pixel_um": float(base.pixel_um),
        "exposure_photons": float(base.exposure_photons),
        "dark_electrons": float(base.dark_electrons),
        "margin_pixels": base.margin_pixels,
    }
    return Camera(**(arguments | changes))


def aberrated_lens(photons: float) -> Camera:
    """A lens with defocus and third-order aberrations, all of which may be changed."""
    return lens(
        photons,
        defocus_waves=START_DEFOCUS_WAVES,
        zernike_waves=START_ZERNIKE_WAVES,
        learn=("defocus_waves", "zernike_waves"),
    )


def run_study(
    settings: Settings,
    *,
    say: Callable[[str], None] = lambda _: None,
    callback: Callable[[DesignStep], None] | None = None,
) -> Study:
    """The whole study; `say` is told what happens, one line at a time; `callback` gets every step of both designs.

    Raises:
        KeyboardInterrupt: also when it came while a design was running.
    """
    with _backend.reproducible():
        return _run_study(settings, say, callback)


def _run_study(settings: Settings, say: Callable[[str], None], callback: Callable[[DesignStep], None] | None) -> Study:
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(derived_seed(settings.seed, "patches"))
    size = lens(DESIGN_PHOTONS).scene_size(settings.patch_pixels)
    say(
        f"cutting {settings.n_patches} patches each from {len(FITTING_SCENES)} images to fit and "
        f"{len(REPORTING_SCENES)} others to report ..."
    )
    fitting = scene_patches(settings.n_patches, size, names=FITTING_SCENES, generator=generator)
    reporting = scene_patches(settings.n_patches, size, names=REPORTING_SCENES, generator=generator)
    dark = lens(DESIGN_PHOTONS).dark_electrons
    noise = PoissonGaussianNoise(read_std=READ_STD_ELECTRONS)
    estimates: dict[str, tuple[InformationEstimate, ...]] = {}
    for name, design in DESIGNS.items():
        unit = _encode_unit_exposure(design, reporting.scenes)
        judged = [judge_means(unit * photons + dark, noise, reporting.groups, settings.seed) for photons in PHOTONS]
        row = estimates[name] = tuple(found.estimate for found in judged)
        values = ", ".join(f"{estimate.bits_per_pixel:.3f}" for estimate in row)
        say(f"  {name}: {values} bits per pixel at {', '.join(f'{p:g}' for p in PHOTONS)} photons")

    def designed(encoder: Camera, n_steps: int, rate: float, limits: Mapping[str, Box]) -> DesignResult:
        result = optimize_design(
            encoder,
            noise,
            fitting.scenes,
            n_steps=n_steps,
            learning_rate=rate,
            constraints=limits,
            batch_size=settings.batch_size,
            judge_scenes=reporting.scenes,
            judge_groups=reporting.groups,
            generator=torch.Generator().manual_seed(settings.seed),
            callback=callback,
        )
        if any(warning.startswith("interrupted") for warning in result.warnings):
            # A design cut short is worth returning to whoever designs; half a demo is not.
            raise KeyboardInterrupt
        say(f"  {result.before.bits_per_pixel:.3f} -> {result.after.bits_per_pixel:.3f} bits per pixel")
        return result

    say("designing a pupil from an aberrated, defocused lens ...")
    start = aberrated_lens(DESIGN_PHOTONS)
    pupil = designed(start, settings.n_pupil_steps, 0.1, {})
    say("designing a free phase mask for the lens in focus ...")
    masked = lens(DESIGN_PHOTONS, learn=("phase_mask_waves",))
    phase = designed(masked, settings.n_phase_steps, 0.02, {"phase_mask_waves": Box(-0.5, 0.5)})
    assert isinstance(pupil.encoder, Camera)
    assert isinstance(phase.encoder, Camera)
    encoders: dict[str, Camera] = {}
    for name, design in DESIGNS.items():
        encoder = camera(design, photons=DESIGN_PHOTONS, scenes=reporting.scenes).encoder
        assert isinstance(encoder, Camera)
        encoders[name] = encoder
    encoders |= {"aberrated lens": start, "designed pupil": pupil.encoder, "phase mask": phase.encoder}
    examples = {name: _example(encoder, settings.seed) for name, encoder in encoders.items()}
    objective = _objective_bits_per_pixel(encoders["in focus"], fitting.scenes, settings)
    by_image = _gain_by_image(encoders["in focus"], phase.encoder, reporting, settings.patch_pixels)
    seconds = time.perf_counter() - started
    return Study(settings, PHOTONS, estimates, pupil, phase, by_image, objective, examples, seconds)


@torch.no_grad()
def _encode_unit_exposure(design: CameraDesign, scenes: Tensor) -> Tensor:
    """Mean at one photon without dark signal: proportional to the exposure, so that one pass serves every level."""
    encoder = camera(design, photons=1.0, scenes=scenes).encoder
    assert isinstance(encoder, Camera)
    encoded = torch.cat([encoder(part) for part in scenes.split(_ENCODE_BATCH)]).to(torch.float64)
    return (encoded - encoder.dark_electrons).clamp(min=0.0)


@torch.no_grad()
def _objective_bits_per_pixel(encoder: Camera, scenes: Tensor, settings: Settings) -> float:
    """Mean of the objective over batches of the size that the design runs take."""
    noise = PoissonGaussianNoise(read_std=READ_STD_ELECTRONS)
    batches = [part for part in scenes.split(settings.batch_size)[:10] if part.shape[0] == settings.batch_size]
    values = [gaussian_information(encoder(part), noise) for part in batches]
    return float(torch.stack(values).mean()) / (math.log(2) * settings.patch_pixels**2)


@torch.no_grad()
def _gain_by_image(before: Camera, after: Camera, patches: Patches, patch_pixels: int) -> tuple[float, ...]:
    """What `after` adds to the Gaussian closed form of each image, so that differences between images cancel."""
    noise = PoissonGaussianNoise(read_std=READ_STD_ELECTRONS)
    gains = []
    for image in patches.groups.unique().tolist():
        scenes = patches.scenes[patches.groups == image]
        gain = gaussian_information(after(scenes), noise) - gaussian_information(before(scenes), noise)
        gains.append(float(gain) / (math.log(2) * patch_pixels**2))
    return tuple(gains)


@torch.no_grad()
def _example(encoder: Camera, seed: int) -> Example:
    side = encoder.scene_size(_EXAMPLE_PIXELS)
    scene = load_scene(_EXAMPLE_SCENE, mean=1.0)
    piece = scene[:, _EXAMPLE_ROW : _EXAMPLE_ROW + side, _EXAMPLE_COLUMN : _EXAMPLE_COLUMN + side]
    mean = encoder(piece[None])
    noise = PoissonGaussianNoise(read_std=READ_STD_ELECTRONS)
    measured = noise.sample(mean, torch.Generator().manual_seed(derived_seed(seed, "example")))
    return Example(encoder, mean[0, 0], measured[0, 0])
