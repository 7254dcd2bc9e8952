"""Sources, microscope and specimens of `phase_contrast_source`: the list, Abbe's sum over its LEDs, and cells."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.datasets.phantoms_microscopy import transparent_cells
from bitlens.encoders.detector import as_planes
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.systems.phase_contrast_microscope import PhaseContrastMicroscope, source_points
from bitlens.validation import Reconstruction

WAVELENGTH_NM, APERTURE, ILLUMINATION, PIXEL_UM = 530.0, 0.16, 0.24, 0.65
SIDE, EXPOSURES = 11, 4
# Of all exposures together, per pixel of an empty bright field; dark signal of each.
LIGHT_ELECTRONS, DARK_ELECTRONS, READ_ELECTRONS = 4000.0, 0.5, 1.6
# Pure phase, so that all the bits there are about it; of a weak specimen, and of one that is not.
WEAK_RAD, THICK_RAD = 0.2, 0.5
MARGIN = 6


# ---- the list ----


def designs() -> dict[str, Tensor]:
    """Brightness of each LED in each exposure, (exposure, LED)."""
    points, _ = source_points(SIDE)
    # Radii over that of the lens's aperture.
    row, column = (points * ILLUMINATION / APERTURE).T
    radius = torch.hypot(row, column)
    bright, flat = radius <= 1, torch.ones_like(radius, dtype=torch.bool)
    halves = torch.stack([row > 1e-9, row < -1e-9, column > 1e-9, column < -1e-9])
    quarters = torch.stack([(row > 1e-9) & (column >= 0), (row >= 0) & (column < -1e-9)])
    quarters = torch.stack([*quarters, (row < -1e-9) & (column <= 0), (row <= 0) & (column > 1e-9)])
    draws = torch.Generator().manual_seed(0)
    noise = torch.rand(2, EXPOSURES, len(radius), generator=draws)
    found = {
        "half circles": halves & bright,
        "quarter circles": quarters & bright,
        "half annuli": halves & bright & (radius > 0.7),
        "quarter annuli": quarters & bright & (radius > 0.7),
        "discs near the axis": _beside(row, column, 0.4, 0.3),
        "discs at the edge": _beside(row, column, 0.8, 0.3),
        "single LEDs near the axis": _nearest(row, column, 0.3),
        "single LEDs at the edge": _nearest(row, column, 0.95),
        "single LEDs in the dark": _nearest(row, column, 1.3),
        "LED on the axis": (radius < 0.1).expand(EXPOSURES, -1),
        "disc": bright.expand(EXPOSURES, -1),
        "rings": torch.stack(
            [(radius > low) & (radius <= low + 0.25) | (radius < 0.1) for low in (0.0, 0.25, 0.5, 0.75)]
        ),
        "dark-field ring": (~bright).expand(EXPOSURES, -1),
        "dark-field quarters": quarters & ~bright,
        "random, half of the LEDs": noise[0] < 0.5,
        "random, a few LEDs": noise[1] < 0.06,
        "half circles, 30 % leak": torch.where(halves & bright, 1.0, 0.3 * bright),
        "half circles and dark field": halves & flat,
        "half circles, left and right": (halves & bright)[[2, 3, 2, 3]],
        "half circles, stopped to 0.5": halves & (radius <= 0.5),
    }
    return {name: brightness.double() for name, brightness in found.items()}


def _beside(row: Tensor, column: Tensor, distance: float, radius: float) -> Tensor:
    """A disc in each of the four directions."""
    middles = ((distance, 0.0), (-distance, 0.0), (0.0, distance), (0.0, -distance))
    return torch.stack([torch.hypot(row - down, column - across) <= radius for down, across in middles])


def _nearest(row: Tensor, column: Tensor, distance: float) -> Tensor:
    """One LED in each of the four directions."""
    found = torch.zeros(EXPOSURES, len(row), dtype=torch.bool)
    for index, (down, across) in enumerate(((distance, 0.0), (-distance, 0.0), (0.0, distance), (0.0, -distance))):
        found[index, torch.hypot(row - down, column - across).argmin()] = True
    return found


# ---- the microscope ----


def lens(brightness: Tensor) -> PhaseContrastMicroscope:
    """The microscope with this source (exposure, LED), brightness 0 to 1; one photo-electron per pixel and LED."""
    _, inside = source_points(SIDE)
    weights = torch.zeros(len(brightness), SIDE**2, dtype=torch.float64)
    weights[:, inside] = brightness
    return PhaseContrastMicroscope(
        wavelength_nm=WAVELENGTH_NM,
        numerical_aperture=APERTURE,
        illumination_aperture=ILLUMINATION,
        object_pixel_um=PIXEL_UM,
        source_weights=weights.reshape(-1, SIDE, SIDE),
        photons=float(int(inside.sum()) * len(brightness)),
        margin_pixels=MARGIN,
    )


def single_images(objects: Tensor) -> Tensor:
    """(n, LED, row, column): the image under each LED alone, 1 where the field is bright and empty."""
    count = len(source_points(SIDE)[0])
    microscope = lens(torch.eye(count, dtype=torch.float64))
    with torch.no_grad():
        return torch.cat([microscope(part) for part in objects.split(16)])


class MixedLight(nn.Module):
    """mean_m = light sum_s shares_ms image_s + dark: each LED gives its share of the light, shares being of sum 1.

    Shapes: shares (exposure, LED); scene (batch, LED, row, column) -> (batch, exposure, row, column).
    """

    shares: Tensor

    def __init__(self, shares: Tensor, light: float = LIGHT_ELECTRONS) -> None:
        super().__init__()
        self.shares = nn.Parameter(shares.double())
        self.light = light
        self.parameter_domain = {"shares": (0.0, 1.0)}
        # Twice an even share.
        self.parameter_scale = {"shares": 2.0 / shares.numel()}

    def weights(self) -> Tensor:
        """(exposure, LED): electrons per pixel where the LED's field is bright and empty."""
        return self.light * self.shares

    def forward(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photo-electrons (batch, exposure, row, column)."""
        scene = as_planes("scene", scene, channels=self.shares.shape[1])
        mixed = torch.einsum("ms,bsrc->bmrc", self.weights().to(scene.dtype), scene)
        return mixed.clamp(min=0) + DARK_ELECTRONS


def equal_dose(source: Tensor, images: Tensor) -> ImagingSystem:
    """The source (exposure, LED): `LIGHT_ELECTRONS` per pixel through the specimen, evenly over the exposures."""
    shares = source / source.sum(1, keepdim=True) / len(source)
    return ImagingSystem(MixedLight(shares), PoissonGaussianNoise(read_std=READ_ELECTRONS), images)


# ---- scenes ----


class Scenes(NamedTuple):
    """Images under single LEDs (n, LED, row, column), and (n, 1, row, column) the phase less its mean, and whitened."""

    images: Tensor
    phase: Tensor
    white: Tensor
    peak_rad: float
    source: str

    @property
    def phase_task(self) -> Reconstruction:
        """The phase, its range that of the thickest cell."""
        return Reconstruction(self.phase, data_range=self.peak_rad)

    @property
    def white_task(self) -> Reconstruction:
        """The whitened phase, over its standard deviation."""
        return Reconstruction(self.white, data_range=1.0)


def _seen(objects: Tensor, peak_rad: float, source: str) -> Scenes:
    phase, white = (
        planes[..., MARGIN:-MARGIN, MARGIN:-MARGIN] for planes in (objects[:, 1:], whitened(objects[:, 1:]))
    )
    return Scenes(single_images(objects), phase - phase.mean((2, 3), keepdim=True), white, peak_rad, source)


def whitened(phase: Tensor) -> Tensor:
    """Phase (n, 1, row, column) in which all frequencies that the microscope can pass are as strong, of variance 1."""
    spectrum = torch.fft.fft2(phase)
    power = spectrum.abs().square().mean(0).sqrt()
    passed = torch.where(passes(phase.shape[-1]), 1 / power.clamp(min=1e-6 * power.max()), 0.0)
    found = torch.fft.ifft2(spectrum * passed).real
    return found / found.std()


def passes(size: int) -> Tensor:
    """(size, size): frequencies, but zero, that a lens of this aperture and source can pass at all."""
    frequency = torch.fft.fftfreq(size, d=PIXEL_UM)
    radius = torch.hypot(frequency[:, None], frequency[None, :])
    return (radius > 0) & (radius < 1e3 * (APERTURE + ILLUMINATION) / WAVELENGTH_NM)


def phantoms(n_scenes: int, pixels: int, seed: int, peak_rad: float = WEAK_RAD) -> Scenes:
    """Phantoms of cells."""
    size = pixels + 2 * MARGIN
    objects = transparent_cells(
        n_scenes,
        (size, size),
        sample_um=PIXEL_UM,
        peak_phase_rad=peak_rad,
        absorption=0.0,
        generator=torch.Generator().manual_seed(seed),
    )
    return _seen(objects, peak_rad, "phantoms of cells")


def cells(data: Path, n_scenes: int, pixels: int, seed: int) -> Scenes:
    """Measured cells, turned, mirrored and shifted at random, so scaled that the phase of the thickest is `WEAK_RAD`.

    They fade out over the margin, since the object is periodic.
    """
    from skimage import data as bundled

    floating = torch.from_numpy(bundled.cell().astype(np.float32))
    fields = [(_above(floating), 0.107)]
    path = data / "holography" / "hl60_field_qlsi.npz"
    if path.exists():
        from skimage.restoration import unwrap_phase

        with np.load(path) as file:
            unwrapped = unwrap_phase(np.angle(file["field"])).astype(np.float32)
        # The cell of some 20 um spans 70 samples.
        fields.append((_above(torch.from_numpy(unwrapped)), 20.0 / 70))
    size = pixels + 2 * MARGIN
    generator = torch.Generator().manual_seed(seed)
    objects = torch.zeros(n_scenes, 2, size, size)
    for index, (field, sample_um) in enumerate(fields):
        rows = torch.arange(index, n_scenes, len(fields))
        objects[rows, 1] = _drawn(field, sample_um, len(rows), size, generator)
    fade = torch.ones(size)
    fade[:4] = torch.sin(torch.pi / 2 * (torch.arange(4) + 0.5) / 4) ** 2
    fade = torch.minimum(fade, fade.flip(0))
    return _seen(objects * fade[:, None] * fade, WEAK_RAD, f"{len(fields)} measured cells")


def _above(field: Tensor) -> Tensor:
    """Phase above the surroundings, the thickest part at `WEAK_RAD`."""
    field = (field - field.median()).clamp(min=0)
    return WEAK_RAD * field / field.flatten().topk(max(1, field.numel() // 1000)).values.min()


def _drawn(field: Tensor, sample_um: float, count: int, size: int, generator: torch.Generator) -> Tensor:
    """(count, size, size) on pixels, each around a place within the cell or at its edge."""
    at = torch.nonzero(field > 0.2 * WEAK_RAD)
    places = at[torch.randint(len(at), (count,), generator=generator)].float()
    angle = 2 * torch.pi * torch.rand(count, generator=generator)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, 1.0, -1.0)
    fine = 3
    axis = (torch.arange(fine * size) + 0.5) / fine - size / 2
    down, across = torch.meshgrid(axis, axis, indexing="ij")
    step = PIXEL_UM / sample_um
    cosine, sine = step * angle.cos()[:, None, None], step * angle.sin()[:, None, None]
    across = across * mirror[:, None, None]
    row = places[:, 0, None, None] + cosine * down + sine * across
    column = places[:, 1, None, None] - sine * down + cosine * across
    grid = torch.stack([2 * column / (field.shape[1] - 1) - 1, 2 * row / (field.shape[0] - 1) - 1], -1)
    source = field.expand(count, 1, *field.shape)
    sampled = torch.nn.functional.grid_sample(source, grid, padding_mode="zeros", align_corners=True)
    return torch.nn.functional.avg_pool2d(sampled, fine)[:, 0]
