"""Sources of a phase microscope at equal dose: do bits rank half circles, rings, single LEDs and mixtures of them?

    python benchmarks/studies/phase_contrast_source.py [--quick] [--out FOLDER] [--seeds N] [--data FOLDER]

A transparent specimen under a lens of 10 x 0.16 is seen in four exposures, each under its own part of an array of LEDs
that reaches to 1.5 times the aperture of the lens: inside it the field is bright, beyond it dark. Every design sends
the same light through the specimen in all four together, evenly over the exposures (an equal dose, and an equal time of
LEDs of one power). Wanted is the phase, less its mean in view, which no intensity tells.

The rule of the list (`designs`), laid down before any score: the sets in use (half and quarter circles and annuli);
discs and single LEDs beside the axis, near to it and far out; sets that are the same on both sides (centre, disc,
rings), which a focused lens shows no weak phase with; dark field; random sets; and the half circles, spoilt by light of
the other half, by dark field, by two directions out of four, by a stop.

The images of the single LEDs add up, so a scene is here the stack of them, by Abbe's sum over the whole field (no weak
object); a design is the share of the light that each LED gives in each exposure. The list is scored four times: on
phantoms of weak cells (0.2 rad), which is what differential phase contrast is made for, by their phase and by their
whitened phase, where all frequencies count alike, as they do for bits; on the same cells of 0.5 rad; and on two weak
cells whose phase was measured (a floating one, by a hologram; an HL60 cell, by a wavefront sensor), turned, mirrored,
shifted and scaled to 0.2 rad. Designed by information: all the shares, of equal dose, from random ones.

What was found out: of weak cells bits rank the sources as the phase does, and better than any of the usual figures,
except where the phase is whitened: there the mean transfer of a weak phase does as well, being what carries the bits.
The phase itself is ranked a little worse, since light from near the axis shows the rims of cells and not their bodies:
bits of high frequencies, of which the error of a phase that is mostly low ones sees nothing. The thicker the cells, the
more the dark field and light near the axis tell by the square of the phase. These bits are there, and neither a linear
decoder nor a small network makes phase of them: the correlation falls with the phase, and in a first look at cells of
1 rad it was lower still, which is why the weak specimen leads; the list has stayed as it was. The information puts the
light on opposite arcs at the edge of the aperture, two by two.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _design_study import Comparison, Settings, by_information, compare_designs
from _validation_study import Metric, Study, run_study
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor, nn

from bitlens import report
from bitlens._files import replace_file
from bitlens.datasets.phantoms_microscopy import transparent_cells
from bitlens.design import Simplex
from bitlens.encoders.detector import as_planes
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.systems.phase_contrast_microscope import PhaseContrastMicroscope, source_points
from bitlens.validation import Decoder, LinearDecoder, Reconstruction, UNetDecoder, snr_db

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
WAVELENGTH_NM, APERTURE, ILLUMINATION, PIXEL_UM = 530.0, 0.16, 0.24, 0.65
SIDE, EXPOSURES = 11, 4
# Of all exposures together, per pixel of an empty bright field; dark signal of each.
LIGHT_ELECTRONS, DARK_ELECTRONS, READ_ELECTRONS = 4000.0, 0.5, 1.6
# Pure phase, so that all the bits there are about it; of a weak specimen, and of one that is not.
WEAK_RAD, THICK_RAD = 0.2, 0.5
PIXELS, QUICK_PIXELS, MARGIN = 8, 4, 6
N_SCENES, QUICK_SCENES = 700, 100
METHOD = "gaussian"
DECODER = UNetDecoder(channels=8, n_steps=150)


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


START = "random, half of the LEDs"


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


# ---- the traditional figures ----


def phase_gain(encoder: MixedLight, size: int = 24) -> Tensor:
    """sqrt(sum_m |H_m|^2) (size, size), electrons per radian of a weak phase: the transfer of all exposures."""
    weights = encoder.weights().detach()
    most = weights.max()
    found = lens(weights / most)
    transfer = found.transfer_functions((size, size)).phase * most * len(weights[0])
    gain = transfer.abs().square().sum(0).sqrt()
    # A symmetric source leaves a rounding error.
    return torch.where(gain > 1e-9 * encoder.light, gain, 0.0)


def metrics() -> dict[str, Metric]:
    """Transfer of a weak phase: mean, cut-off, condition number; the coherence parameter; and the SNR."""
    size = 24
    frequency = torch.fft.fftfreq(size, d=PIXEL_UM)
    radius = torch.hypot(frequency[:, None], frequency[None, :])
    seen = passes(size)

    @functools.lru_cache
    def gain_of(encoder: MixedLight) -> Tensor:
        return phase_gain(encoder, size)

    def gain(of: ImagingSystem) -> Tensor:
        assert isinstance(of.encoder, MixedLight)
        return gain_of(of.encoder)

    def half_cutoff(of: ImagingSystem) -> float:
        found = gain(of)
        rings = (radius * size * PIXEL_UM).round().long()
        profile = torch.stack([found[rings == ring].mean() for ring in range(1, size // 2 + 1)])
        above = torch.nonzero(profile >= 0.5 * profile.max())
        return float(above[-1] + 1) / (size * PIXEL_UM) if float(profile.max()) > 0 else 0.0

    # No source in use passes the rest.
    middle = (radius > 0) & (radius < 1.5e3 * APERTURE / WAVELENGTH_NM)

    def condition(of: ImagingSystem) -> float:
        found = gain(of)[middle]
        # No phase at all is as bad as it gets.
        return float(found.max() / found.clamp(min=1e-6 * found.max()).min()) if float(found.max()) > 0 else 1e6

    def coherence(of: ImagingSystem) -> float:
        assert isinstance(of.encoder, MixedLight)
        points, _ = source_points(SIDE)
        distance = points.norm(dim=1) * ILLUMINATION / APERTURE
        return float((of.encoder.shares.detach().sum(0) * distance).sum())

    def signal(of: ImagingSystem) -> float:
        with torch.no_grad():
            return snr_db(of.encoder(of.scenes[:256]), of.noise)  # type: ignore[arg-type]

    return {
        "mean transfer": lambda of: float(gain(of)[seen].mean()),
        "half transfer, 1/um": half_cutoff,
        "coherence parameter": coherence,
        "snr_db": signal,
        "condition_number": condition,
    }


def figure(sources: Mapping[str, Tensor]) -> Figure:
    """The exposures of each source side by side, from dark to its brightest LED; a circle is the lens's aperture."""
    points, _ = source_points(SIDE)
    points = points * ILLUMINATION / APERTURE
    drawn = Figure(figsize=(12, 1.15 * math.ceil(len(sources) / 3)), layout="constrained")
    axes = drawn.subplots(math.ceil(len(sources) / 3), 3, squeeze=False).ravel()
    for axis, (name, source) in zip(axes, sources.items(), strict=False):
        for exposure, light in enumerate(source):
            across, down = (points[:, 1] + 3.4 * exposure).numpy(), -points[:, 0].numpy()
            axis.scatter(across, down, c=(light / source.max()).numpy(), s=9, cmap="magma", vmin=0, vmax=1)
            axis.add_patch(Circle((3.4 * exposure, 0), 1.0, fill=False, ec="tab:cyan", lw=0.6))
        axis.set(aspect="equal", facecolor="0.8", xlim=(-1.7, 11.9), ylim=(-1.7, 1.7), xticks=[], yticks=[])
        axis.set_title(name, fontsize=8)
    for axis in axes[len(sources) :]:
        axis.set_visible(False)
    return drawn


# ---- the study ----


def rank(
    name: str,
    out: Path,
    scenes: Scenes,
    task: Reconstruction,
    decoder: Decoder,
    *,
    quick: bool,
    seeds: int,
) -> Study:
    """The list on these scenes."""
    sources = designs()
    return run_study(
        name,
        {each: equal_dose(source, scenes.images) for each, source in sources.items()},
        task,
        metrics(),
        quick=quick,
        out=out,
        decoder=decoder,
        n_seeds=seeds,
        method=METHOD,
        extra={"scenes": scenes.source, "designs": {each: source.tolist() for each, source in sources.items()}},
    )


def design_source(out: Path, judged: Scenes, designed: Scenes, *, quick: bool, seeds: int) -> Comparison:
    """Shares of all LEDs in all exposures, of the same dose, from random ones."""
    out.mkdir(parents=True, exist_ok=True)
    start = equal_dose(designs()[START], judged.images)
    settings = Settings(
        parameters=("shares",), constraints={"shares": Simplex(1.0)}, n_steps=8 if quick else 150, objective="gaussian"
    )
    found = by_information(start, designed.images, start, None, settings, 0).parameters["shares"]
    sources = {**designs(), "designed by information": found}
    replace_file(out / "phase_contrast_source_sources.png", report.to_png(figure(sources)))
    comparison, _ = compare_designs(
        "phase_contrast_source",
        start,
        designed.images,
        judged.phase_task,
        settings,
        quick=quick,
        out=out,
        decoder=DECODER,
        n_seeds=seeds,
        method=METHOD,
    )
    return comparison


def run(out: Path, data: Path = DATA, *, quick: bool = False, seeds: int = 3) -> Mapping[str, Study]:
    """The four lists, the design, and their files."""
    pixels, n_scenes = (QUICK_PIXELS, QUICK_SCENES) if quick else (PIXELS, N_SCENES)
    drawn, measured = phantoms(n_scenes, pixels, 0), cells(data, n_scenes, pixels, 0)
    print(f"scenes: {drawn.source}; {measured.source}\n")
    design_source(out, drawn, phantoms(n_scenes, pixels, 1), quick=quick, seeds=seeds)
    thick = phantoms(n_scenes, pixels, 0, THICK_RAD)
    # A linear estimate is as good as any of a weak specimen.
    lists = {
        "phase": (drawn, drawn.phase_task, LinearDecoder(), seeds),
        "whitened": (drawn, drawn.white_task, LinearDecoder(), seeds),
        "cells": (measured, measured.phase_task, LinearDecoder(), seeds),
        "thick": (thick, thick.phase_task, DECODER, min(seeds, 2)),
    }
    return {
        name: rank(f"phase_contrast_source_{name}", out, scenes, task, decoder, quick=quick, seeds=n_seeds)
        for name, (scenes, task, decoder, n_seeds) in lists.items()
    }


def main() -> None:
    """Everything, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for tables, figures and JSON")
    parser.add_argument("--quick", action="store_true", help="few scenes, steps and seeds, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3, help="splits, noise draws and decoders per design")
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds holography/")
    parser.add_argument("--threads", type=int, default=1, help="threads of encoders and estimates")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    run(given.out, given.data, quick=given.quick, seeds=given.seeds)


if __name__ == "__main__":
    main()
