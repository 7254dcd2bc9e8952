"""Pupils of a fluorescence microscope at equal light: do bits rank apertures, aberrations, phase plates and pixels?

    python benchmarks/studies/fluorescence_pupil.py [--quick] [--out FOLDER] [--seeds N] [--data FOLDER]

A widefield microscope looks at nuclei. Wanted is their image in focus, on pixels of 0.65 um. Every design brings the
camera the same mean number of photo-electrons in the same field: a smaller aperture waits for longer, a larger pixel
takes the light of those that it replaces, and their background.

The rule of the list (`DESIGNS`), laid down before any score: apertures alone, from 0.1 to 0.4; then wide apertures that
are spoilt or engineered in one way each, mildly and badly: focus beside the middle layer, spherical aberration, coma,
astigmatism, a turbid specimen; phase plates for depth (cubic) or for points (vortex, two halves in antiphase); larger
pixels.

Scenes: photographs of stained nuclei with the outline of each, a sample taken as 0.325 um; phantoms where these are
absent. Whole photographs train or test. The list is scored on three tasks: a flat specimen; a thick one, every nucleus
in one of three layers 5 um apart (with the light that is nearer to it than to any other), so that no design has all of
them in focus; and to name the layer of the thick one that shines most. Then the Zernike terms of a deformable mirror
are designed by information, from a specimen with spherical aberration, and trained end to end from there.

What was found out: for the flat specimen bits rank apertures, aberrations and plates as the image does, and the two
coarse pixels too low. What these lose is fine detail of little energy, which bits count like any other and a mean
squared error hardly sees, since nuclei are smooth; the bound by a mixture may also be slacker for more values, which
has not been told apart. The MTF50 does a little better on the PSNR, the bits on the squared error. In the thick
specimen bits count in which layer a nucleus lies, by how it is blurred; the image in focus does not ask for that, so
that an aperture of 0.4 tells more and shows less than one of 0.15. A closed form of Gaussian scenes ranks the thick
designs otherwise than the mixture: a few bright nuclei rule its covariance. Which layer shines is one question of
1.6 bits, which most pupils answer by chance and those with the focus aside or astigmatism do not: all the bits together
say nothing of it. The designed mirror is flat.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _design_study import Comparison, Settings, compare_designs
from _validation_study import Metric, Study, run_study
from matplotlib.figure import Figure
from scipy import ndimage
from torch import Tensor, nn

from bitlens import report
from bitlens._files import replace_file
from bitlens.datasets.phantoms_microscopy import nuclei
from bitlens.design import Box
from bitlens.encoders import integrate_pixels, optics, pupils
from bitlens.encoders.convolution import image_on_pixels
from bitlens.encoders.detector import as_planes
from bitlens.encoders.zernike import zernike_basis
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.systems.fluorescence_microscope import FluorescenceMicroscope
from bitlens.validation import (
    Classification,
    ClassifierDecoder,
    LinearDecoder,
    LogisticDecoder,
    Reconstruction,
    UNetDecoder,
    condition_number,
    mtf50,
    point_response,
    snr_db,
)

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
DEPTHS_UM = (-5.0, 0.0, 5.0)
# Pixels of 6.5 um behind an objective of 10 x, and two samples of the scene for each.
PIXEL_UM, SAMPLES, MARGIN, WAVELENGTH_NM = 0.65, 2, 8, 525.0
SAMPLE_UM = PIXEL_UM / SAMPLES
# Per pixel of 0.65 um: from the specimen on average, and of the medium and dark signal; a scientific CMOS camera.
LIGHT_ELECTRONS, BACKGROUND_ELECTRONS, READ_ELECTRONS = 60.0, 5.0, 1.6
PIXELS, QUICK_PIXELS = 8, 4
N_SCENES, QUICK_SCENES = 600, 90
METHOD, QUICK_METHOD = "gaussian_mixture", "gaussian"
MIRROR = tuple(range(4, 16))


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


# ---- scenes ----


class Scenes(NamedTuple):
    """Layers (n, 3, row, column), the photograph of each scene, and what they are."""

    scenes: Tensor
    groups: Tensor
    source: str


def read_scenes(data: Path, n_scenes: int, pixels: int, *, half: int | None = None, seed: int = 0) -> Scenes:
    """Regions around nuclei of the photographs, turned and mirrored at random; phantoms without the photographs.

    `half`: 0 or 1 takes every second photograph only, so that the two halves share none.
    """
    size = (pixels + 2 * MARGIN) * SAMPLES
    path = data / "fluorescence" / "dsb2018_nuclei_256.npz"
    if not path.exists():
        return _phantoms(n_scenes, size, seed + (half or 0))
    with np.load(path) as file:
        which = slice(None) if half is None else slice(half, None, 2)
        images, labels = file["images"][which].astype(np.float32), file["labels"][which]
    random = np.random.default_rng(seed)
    specimens = [_layered(image, label, random) for image, label in zip(images, labels, strict=True)]
    found = np.empty((n_scenes, 3, size, size), dtype=np.float32)
    groups = np.arange(n_scenes) % len(images)
    reach = size // 2
    for index, group in enumerate(groups):
        # The middle of the region is at most half a field from a nucleus.
        at = np.argwhere(labels[group] > 0)
        place = at[random.integers(len(at))] + random.integers(-pixels, pixels + 1, 2)
        row, column = np.clip(place, reach, 256 - reach) - reach
        window = (slice(row, row + size), slice(column, column + size))
        turns, mirrored = random.integers(4), random.integers(2)
        region = np.rot90(specimens[group][(slice(None), *window)], turns, (1, 2))
        found[index] = region[..., ::-1] if mirrored else region
    source = f"{len(images)} photographs of stained nuclei"
    return Scenes(torch.from_numpy(found), torch.from_numpy(groups), source)


def _layered(image: np.ndarray, label: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(3, row, column): each nucleus in one layer; the median nucleus is as bright as 1."""
    light = np.clip(image - np.percentile(image, 5), 0, None)
    light /= np.median(light[label > 0])
    nearest = ndimage.distance_transform_edt(label == 0, return_distances=False, return_indices=True)
    layer = random.integers(len(DEPTHS_UM), size=int(label.max()) + 1)[label[tuple(nearest)]]
    return np.stack([light * (layer == each) for each in range(len(DEPTHS_UM))])


def _phantoms(n_scenes: int, size: int, seed: int) -> Scenes:
    generator = torch.Generator().manual_seed(seed)
    layers = [nuclei(n_scenes, (size, size), sample_um=SAMPLE_UM, generator=generator)[:, 0] for _ in DEPTHS_UM]
    return Scenes(torch.stack(layers, 1), torch.arange(n_scenes), "phantoms of nuclei")


def flattened(scenes: Tensor) -> Tensor:
    """The same light, all of it in the middle layer."""
    found = torch.zeros_like(scenes)
    found[:, len(DEPTHS_UM) // 2] = scenes.sum(1)
    return found


def in_focus(scenes: Tensor) -> Tensor:
    """(n, 1, row, column): all layers together, the mean over each pixel of 0.65 um in view."""
    return integrate_pixels(scenes.sum(1, keepdim=True), SAMPLES)[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


def brightest_layer(scenes: Tensor) -> Tensor:
    """(n,): the layer that most of the light in view comes from."""
    edge = MARGIN * SAMPLES
    return scenes[..., edge:-edge, edge:-edge].sum((2, 3)).argmax(1)


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


# ---- the study ----


def rank(out: Path, scenes: Scenes, *, quick: bool, seeds: int) -> dict[str, Study]:
    """The list for the flat and the layered specimen, scored by the image in focus; the latter by the layer too."""
    figures = metrics()
    extra = {"scenes": scenes.source, "designs": {name: design._asdict() for name, design in DESIGNS.items()}}
    target = Reconstruction(in_focus(scenes.scenes), data_range=1.0)
    found = {}
    out.mkdir(parents=True, exist_ok=True)
    for name, specimen in (("flat", flattened(scenes.scenes)), ("layered", scenes.scenes)):
        systems = {each: microscope(design, specimen) for each, design in DESIGNS.items()}
        replace_file(out / "fluorescence_pupil_psf.png", report.to_png(figure(systems)))
        found[name] = run_study(
            f"fluorescence_pupil_{name}",
            systems,
            target,
            figures,
            quick=quick,
            out=out,
            groups=scenes.groups,
            decoder=LinearDecoder() if quick else DECODER,
            n_seeds=seeds if name == "flat" else min(seeds, 2),
            method=QUICK_METHOD if quick else METHOD,
            lower_is_better=LESS_IS_BETTER,
            extra=extra,
        )
    # The bits of the first task once more: a closed form in their place here costs nothing.
    bits = found["layered"].result.mean("bits")
    known = {id(system.encoder): bits[each] for each, system in systems.items()}
    found["which"] = run_study(
        "fluorescence_pupil_which_layer",
        systems,
        Classification(brightest_layer(scenes.scenes)),
        {"bits of the mixture": lambda system: known[id(system.encoder)], **figures},
        quick=quick,
        out=out,
        groups=scenes.groups,
        decoder=LogisticDecoder() if quick else CLASSIFIER,
        n_seeds=min(seeds, 2),
        method="gaussian",
        lower_is_better=LESS_IS_BETTER,
        bound=False,
        extra=extra,
    )
    return found


def design_mirror(out: Path, data: Path, pixels: int, n_scenes: int, *, quick: bool, seeds: int) -> Comparison:
    """A deformable mirror behind NA 0.4 and a specimen with spherical aberration: by information, and end to end."""
    judged, designed = (read_scenes(data, n_scenes, pixels, half=half, seed=half) for half in (0, 1))
    flat = dict.fromkeys(MIRROR, 0.0)
    layers = microscope(Design(0.4, zernike_waves=flat | {11: 0.5}), flattened(judged.scenes), learn=("zernike_waves",))
    assert isinstance(layers.encoder, LayeredMicroscope)
    # Of a flat specimen one layer is enough.
    start = ImagingSystem(layers.encoder.microscope, layers.noise, judged.scenes.sum(1, keepdim=True))
    comparison, _ = compare_designs(
        "fluorescence_pupil",
        start,
        designed.scenes.sum(1, keepdim=True),
        Reconstruction(in_focus(judged.scenes), data_range=1.0),
        Settings(
            parameters=("zernike_waves",),
            constraints={"zernike_waves": Box(-1.0, 1.0)},
            n_steps=150,
            batch_size=min(96, n_scenes // 2),
            objective="gaussian",
            end_to_end_steps=500,
            end_to_end_rate={"zernike_waves": 0.0125},
        ),
        quick=quick,
        out=out,
        groups=judged.groups,
        design_task=Reconstruction(in_focus(designed.scenes), data_range=1.0),
        design_groups=designed.groups,
        decoder=dataclasses.replace(DECODER, n_steps=8) if quick else DECODER,
        n_seeds=seeds,
        method=QUICK_METHOD if quick else METHOD,
    )
    return comparison


DECODER, CLASSIFIER = UNetDecoder(channels=8, n_steps=150), ClassifierDecoder(channels=16, n_steps=150)


def run(out: Path, data: Path = DATA, *, quick: bool = False, seeds: int = 3) -> None:
    """The list on both tasks, the mirror, and their files."""
    pixels, n_scenes = (QUICK_PIXELS, QUICK_SCENES) if quick else (PIXELS, N_SCENES)
    scenes = read_scenes(data, n_scenes, pixels)
    print(f"scenes: {scenes.source}\n")
    rank(out, scenes, quick=quick, seeds=seeds)
    design_mirror(out, data, pixels, n_scenes, quick=quick, seeds=seeds)


def main() -> None:
    """Everything, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for tables, figures and JSON")
    parser.add_argument("--quick", action="store_true", help="few scenes, steps and seeds, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3, help="splits, noise draws and decoders per design")
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds fluorescence/")
    parser.add_argument("--threads", type=int, default=1, help="threads of encoders and estimates")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    run(given.out, given.data, quick=given.quick, seeds=given.seeds)


if __name__ == "__main__":
    main()
