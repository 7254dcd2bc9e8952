"""The lensless cameras of the study: masks, the sensor behind them, and the digits before them."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.datasets import scene_patches
from bitlens.encoders.detector import as_planes
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.systems.lensless_camera import LenslessCamera, binary_squares, diffuser_relief, lenslet_relief

SCENE, PIXELS, MASK, WINDOW = 24, 20, 48, 72
PIXEL_UM, DISTANCE_MM, WAVELENGTH_NM, OVERSAMPLING = 26.0, 4.0, 532.0, 4
READ_ELECTRONS = 1.5
FEW, MANY = 20.0, 320.0
HALF_PIXEL_UM = PIXEL_UM / 2
SAMPLE_UM = HALF_PIXEL_UM / OVERSAMPLING
SIZE = (MASK * OVERSAMPLING, MASK * OVERSAMPLING)
# Middles of lenslets in half pixels: an odd number apart, one sees between the pixels of the other.
_FOUR_HALVES, _FOUR_WHOLES = ((a, b) for a in (-8, 7) for b in (-8, 7)), ((a, b) for a in (-8, 8) for b in (-8, 8))
_NINE = ((a, b) for a in (-8, -1, 8) for b in (-8, -1, 8))
GRIDS: Mapping[str, tuple[tuple[float, float], ...]] = {
    "one lens": ((0, 0),),
    "two lenslets": ((-7.5, -7.5), (7.5, 7.5)),
    "four, half pixels apart": tuple(_FOUR_HALVES),
    "four, whole pixels apart": tuple(_FOUR_WHOLES),
    "nine lenslets": tuple(_NINE),
}


class Mask(NamedTuple):
    """Relief (um) and amplitude of a mask, both (row, column), and the middles of its lenslets, if it has any."""

    height_um: Tensor
    amplitude: Tensor
    places_um: Tensor | None = None


def masks() -> dict[str, Mask]:
    """Every mask of the study."""
    found = {name: lenslets(HALF_PIXEL_UM * torch.tensor(grid).double()) for name, grid in GRIDS.items()}
    for share in (0.05, 0.2):
        found[f"one lens, {share:.0%} out of focus"] = lenslets(torch.zeros(1, 2).double(), focus=1 + share)
    for name, count in (("five", 5), ("sixteen", 16)):
        found[f"{name} at random places"] = lenslets(random_places(count, seed=count))
    for bump in (30, 60, 120):
        draws = torch.Generator().manual_seed(bump)
        relief = diffuser_relief(SIZE, SAMPLE_UM, bump_um=bump, focal_length_mm=DISTANCE_MM, generator=draws)
        found[f"diffuser, bumps of {bump} um"] = Mask(relief, torch.ones_like(relief))
    flat = torch.zeros(SIZE, dtype=torch.float64)
    squares = binary_squares(SIZE, round(52 / SAMPLE_UM), generator=torch.Generator().manual_seed(0))
    found["random squares of 52 um"] = Mask(flat, squares)
    row = SAMPLE_UM * (torch.arange(SIZE[0], dtype=torch.float64) - 0.5 * (SIZE[0] - 1))
    # Where diffraction at this distance is as wide as the hole.
    found["pinhole of 70 um"] = Mask(flat, (torch.hypot(row[:, None], row) < 35).double())
    found["no mask"] = Mask(flat, torch.ones_like(flat))
    return found


def lenslets(places_um: Tensor, focus: float = 1.0) -> Mask:
    """Lenslets (lenslet, 2) side by side, focused at `focus` times the sensor's distance."""
    relief = lenslet_relief(SIZE, SAMPLE_UM, places_um, focal_length_mm=focus * DISTANCE_MM)
    return Mask(relief, torch.ones_like(relief), places_um if focus == 1.0 else None)


def random_places(count: int, seed: int) -> Tensor:
    """(lenslet, 2) um, uniform within ten half pixels of the middle, where most of an image falls on the sensor."""
    draws = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(count, 2, dtype=torch.float64, generator=draws) - 1) * 10 * HALF_PIXEL_UM


def mounted(seed: int = 0) -> Tensor:
    """(lenslet, 2) um: four a whole number of pixels apart, but for errors of up to a tenth of a pixel in mounting."""
    draws = torch.Generator().manual_seed(seed)
    grid = torch.tensor(GRIDS["four, whole pixels apart"], dtype=torch.float64)
    errors = 0.2 * (2 * torch.rand(grid.shape, dtype=torch.float64, generator=draws) - 1)
    return HALF_PIXEL_UM * (grid + errors)


class LenslessSensor(nn.Module):
    """mean = exposure pixels(PSF * scene), the exposure such that a pixel has `photons` electrons for `mean_scene`.

    Scenes (batch, 1, 24, 24) before the middle of a mask of 24 x 24 pixels, on a sensor of 20 x 20; a scene's sample
    moves the mask's image by half a pixel. With `learn` the middles of the lenslets may move and make the relief.
    """

    places_um: Tensor
    indices: Tensor
    mean_scene: Tensor
    fixed: Tensor | None

    def __init__(self, mask: Mask, photons: float, mean_scene: Tensor, *, learn: bool = False) -> None:
        super().__init__()
        # Held apart: nothing of the camera but the relief, which its caller gives, is optimised here.
        self._camera = (
            LenslessCamera(
                height_um=mask.height_um,
                amplitude=mask.amplitude,
                distance_mm=DISTANCE_MM,
                pixel_um=HALF_PIXEL_UM,
                oversampling=OVERSAMPLING,
                wavelength_nm=WAVELENGTH_NM,
                exposure_photons=1.0,
                psf_pixels=(WINDOW, WINDOW),
            ),
        )
        self.photons = photons
        self.register_buffer("mean_scene", mean_scene.double().flatten())
        line = 2 * torch.arange(PIXELS)[:, None] - torch.arange(SCENE) - (2 * PIXELS - SCENE) // 2 + WINDOW // 2
        index = line[:, None, :, None] * (WINDOW - 1) + line[None, :, None, :]
        self.register_buffer("indices", index.reshape(-1), persistent=False)
        # A quarter of an image's side changes a lot.
        self.parameter_scale = {"places_um": 0.25 * SCENE * HALF_PIXEL_UM}
        if learn:
            if mask.places_um is None:
                raise ValueError("mask: need lenslets to learn their places, got none")
            self.places_um = nn.Parameter(mask.places_um.clone())
            self.register_buffer("fixed", None)
        else:
            with torch.no_grad():
                self.register_buffer("fixed", self.matrix(self._camera[0].psf()[0]))

    @property
    def parameter_domain(self) -> Mapping[str, tuple[float, float]]:
        """Middles of lenslets stay on the mask."""
        half = 0.5 * MASK * HALF_PIXEL_UM
        return {"places_um": (-half, half)}

    def psf(self) -> Tensor:
        """(WINDOW, WINDOW) on half pixels."""
        (camera,) = self._camera
        if self.fixed is not None:
            return camera.psf()[0]
        relief = lenslet_relief(SIZE, SAMPLE_UM, self.places_um, focal_length_mm=DISTANCE_MM)
        return torch.func.functional_call(_Response(camera), {"camera.height_um": relief}, ())

    def matrix(self, psf: Tensor) -> Tensor:
        """(pixel, scene sample), electrons, of a PSF (row, column) on half pixels."""
        pixel = psf[:-1, :-1] + psf[1:, :-1] + psf[:-1, 1:] + psf[1:, 1:]
        weights = pixel.reshape(-1).index_select(0, self.indices).reshape(PIXELS**2, SCENE**2)
        return weights * (self.photons * PIXELS**2 / (weights @ self.mean_scene).sum())

    def forward(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean electrons (batch, 1, row, column)."""
        scene = as_planes("scene", scene, channels=1, rows=SCENE, columns=SCENE)
        matrix = self.fixed
        if matrix is None:
            matrix = self.matrix(self.psf())
        mean = scene.flatten(1) @ matrix.to(scene.dtype).T
        return mean.clamp(min=0).reshape(-1, 1, PIXELS, PIXELS)


class _Response(nn.Module):
    """The PSF as a module's call, which takes another relief in place of the camera's own."""

    def __init__(self, camera: LenslessCamera) -> None:
        super().__init__()
        self.camera = camera

    def forward(self) -> Tensor:
        return self.camera.psf()[0]


def digits(data: Path, n_scenes: int) -> tuple[Tensor, str]:
    """Digits (n, 1, 24, 24) at random places, and what they are: bundled photographs where there are no digits."""
    file = data / "mnist" / "train-images-idx3-ubyte.gz"
    if not file.is_file():
        draws = torch.Generator().manual_seed(0)
        return scene_patches(n_scenes, SCENE, generator=draws).scenes, "bundled photographs"
    with gzip.open(file) as opened:
        images = np.frombuffer(opened.read(16 + n_scenes * 28**2)[16:], np.uint8).reshape(-1, 28, 28)
    random = np.random.default_rng(0)
    places = random.integers(0, 28 - SCENE + 1, (len(images), 2))
    cut = np.stack([image[a : a + SCENE, b : b + SCENE] for image, (a, b) in zip(images, places, strict=True)])
    # Grey levels have a width; values that only ever are whole would have no density to bound an error by.
    light = (cut + random.random(cut.shape)) / 256
    return torch.from_numpy(light.astype(np.float32))[:, None], "handwritten digits"


def cameras(scenes: Tensor, photons: float, chosen: Mapping[str, Mask]) -> dict[str, ImagingSystem]:
    """Masks before one sensor, at equal light."""
    mean = scenes.double().mean(dim=0)
    return {
        name: ImagingSystem(LenslessSensor(mask, photons, mean), PoissonGaussianNoise(read_std=READ_ELECTRONS), scenes)
        for name, mask in chosen.items()
    }


def autocorrelation_peak(system: ImagingSystem) -> float:
    """sum PSF^2 / (sum PSF)^2: the height of the PSF's autocorrelation, by which lensless masks are compared."""
    assert isinstance(system.encoder, LenslessSensor)
    with torch.no_grad():
        psf = system.encoder.psf()
    return float(psf.square().sum() / psf.sum() ** 2)
