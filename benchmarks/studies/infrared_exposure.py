"""Infrared camera: how long to expose what moves, with which lens, pixel and band.

    python benchmarks/studies/infrared_exposure.py [--data FOLDER] [--out FOLDER] [--quick] [--seeds N]

Held fixed in the first list: the object, its speed, the field and the focal length; every design exposes each frame
once. Exposure, lens, pixel and band decide how much light that is, so that light is not equal there. A second list
holds the light equal as well: all its exposures give as many electrons per frame.

The lists were not changed after their scores, though some exposures had been scored before: exposures from where read
noise rules to half a well, then what else may change, one choice at a time, around the middle of them. A uniform
background surrounds the field: what a smear brought in from beyond it would be information, but none about the
temperatures that are scored.

What was found: a longer exposure betters NETD and a shorter one MTF50, so that neither ranks cameras that differ in
both; bits do, and the minimum resolvable temperature, NETD over MTF at one frequency, comes near. The bits of smears of
three and six pixels stand higher than their error says: a long exposure measures more finely what it still sees, and
the error is that of what the smear took.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _design_study import Comparison, Settings, compare_designs
from _validation_study import run_study
from matplotlib.figure import Figure
from real_infrared import load
from torch import Tensor
from torch.nn.functional import pad

from bitlens import ops, report
from bitlens._files import replace_file
from bitlens.datasets import load_scene
from bitlens.design import Box
from bitlens.encoders import Camera, Detector, detector_noise
from bitlens.encoders.pixel_blur import blurred_pixels
from bitlens.systems import ImagingSystem
from bitlens.systems.infrared_camera import InfraredCamera
from bitlens.validation import LinearDecoder, Reconstruction, UNetDecoder, condition_number, mtf50, snr_db

ROOT = Path(__file__).resolve().parents[2]
# The focal plane's grid of the scenes; a field of 36 samples is 18, 12, 9 or 6 pixels wide.
SAMPLE_UM, FIELD = 5.0, 36
MARGIN, PART = 12, 64
# Room for the smear of 6 ms.
LARGEST = 114
SPEED_UM_PER_MS = 15.0
MEAN_KELVIN, CONTRAST_KELVIN = 300.0, 1.0
LENS_KELVIN, TRANSMISSION = 300.0, 0.9
_MRT_CYCLES_PER_MM = 16.7


class Band(NamedTuple):
    """A detector behind its filter; read noise and well are those of a pixel of 15 um."""

    wavelength_um: float
    short_um: float
    long_um: float
    cutoff_um: float
    quantum_efficiency: float
    dark_electrons_per_s: float
    read_electrons: float
    full_well_electrons: float


MID = Band(4.25, 3.7, 4.8, 5.4, 0.8, 1e6, 600.0, 7e6)
LONG = Band(8.5, 7.7, 9.3, 10.0, 0.6, 5e8, 1000.0, 1.2e7)
NARROW, WIDE = MID._replace(short_um=4.5), MID._replace(short_um=3.0, long_um=5.0)


class Design(NamedTuple):
    """Band, f-number, pixel and exposure."""

    band: Band = MID
    f_number: float = 2.5
    pixel_um: float = 15.0
    exposure_ms: float = 0.3


# One exposure after another, then the other choices around the middle ones.
DESIGNS: Mapping[str, Design] = {
    "mid-wave f/2.5, 0.03 ms": Design(exposure_ms=0.03),
    "mid-wave f/2.5, 0.1 ms": Design(exposure_ms=0.1),
    "mid-wave f/2.5, 0.3 ms": Design(exposure_ms=0.3),
    "mid-wave f/2.5, 1 ms": Design(exposure_ms=1.0),
    "mid-wave f/2.5, 3 ms": Design(exposure_ms=3.0),
    "mid-wave f/2.5, 6 ms": Design(exposure_ms=6.0),
    "mid-wave f/4, 0.3 ms": Design(f_number=4.0),
    "mid-wave f/8, 1 ms": Design(f_number=8.0, exposure_ms=1.0),
    "pixel 10 um, 0.3 ms": Design(pixel_um=10.0),
    "pixel 20 um, 0.3 ms": Design(pixel_um=20.0),
    "pixel 30 um, 0.3 ms": Design(pixel_um=30.0),
    "4.5-4.8 um, 1 ms": Design(NARROW, exposure_ms=1.0),
    "3-5 um, 0.3 ms": Design(WIDE),
    "long-wave f/2.5, 0.03 ms": Design(LONG, exposure_ms=0.03),
    "long-wave f/2.5, 0.3 ms": Design(LONG, exposure_ms=0.3),
    "long-wave f/1.4, 0.1 ms": Design(LONG, f_number=1.4, exposure_ms=0.1),
}
# Each with the exposure that gives the light of the first.
EQUAL_LIGHT: Mapping[str, Design] = {
    "f/2.5, 15 um": Design(),
    "f/4, 15 um": Design(f_number=4.0),
    "f/5.6, 15 um": Design(f_number=5.6),
    "f/8, 15 um": Design(f_number=8.0),
    "f/2.5, 10 um": Design(pixel_um=10.0),
    "f/2.5, 20 um": Design(pixel_um=20.0),
    "f/2.5, 30 um": Design(pixel_um=30.0),
    "f/5.6, 10 um": Design(f_number=5.6, pixel_um=10.0),
    "f/5.6, 30 um": Design(f_number=5.6, pixel_um=30.0),
    "4.5-4.8 um": Design(NARROW),
    "3-5 um": Design(WIDE),
    "long-wave f/2.5": Design(LONG),
    "long-wave f/8": Design(LONG, f_number=8.0),
    "long-wave f/8, 30 um": Design(LONG, f_number=8.0, pixel_um=30.0),
}


def camera(
    design: Design, scenes: Tensor, longest_ms: float | None = None, learn: tuple[str, ...] = ()
) -> ImagingSystem:
    """The camera of a design before the middle of scenes (n, 1, row, column) in kelvin, large enough for its blur."""
    band, samples = design.band, round(design.pixel_um / SAMPLE_UM)
    lens = Camera(
        wavelength_nm=1e3 * band.wavelength_um,
        f_number=design.f_number,
        pixel_um=design.pixel_um,
        oversampling=samples,
        margin_pixels=MARGIN // samples,
    )
    relative_area = (design.pixel_um / 15.0) ** 2
    well = relative_area * band.full_well_electrons
    encoder = InfraredCamera(
        lens,
        Detector(
            quantum_efficiency=band.quantum_efficiency, dark_electrons_per_s=relative_area * band.dark_electrons_per_s
        ),
        exposure_ms=design.exposure_ms,
        short_um=band.short_um,
        long_um=band.long_um,
        transmission=TRANSMISSION,
        lens_kelvin=LENS_KELVIN,
        pixels_per_s=1e3 * SPEED_UM_PER_MS / design.pixel_um,
        longest_ms=longest_ms,
        sensitive_um=(1.0, band.cutoff_um),
        full_well_electrons=well,
        learn=learn,
    )
    # The noise of a reset capacitor grows with the root of its size.
    noise = detector_noise(read_electrons=math.sqrt(relative_area) * band.read_electrons, full_well_electrons=well)
    rows, columns = encoder.scene_size(*[FIELD // samples] * 2)
    return ImagingSystem(encoder, noise, cropped(scenes, rows, columns))


def cropped(scenes: Tensor, rows: int, columns: int) -> Tensor:
    """The middle of the scenes."""
    top, left = (scenes.shape[-2] - rows) // 2, (scenes.shape[-1] - columns) // 2
    if min(top, left) < 0:
        raise ValueError(f"scenes: need at least {rows} x {columns} samples, got {tuple(scenes.shape[-2:])}")
    return scenes[..., top : top + rows, left : left + columns]


LOWER_IS_BETTER = ("netd_kelvin", "mrt_kelvin", "condition_number")


class Scenes(NamedTuple):
    """Temperatures (n, 1, row, column), kelvin, which part of which image each is from, and what they are."""

    kelvin: Tensor
    groups: Tensor
    source: str


def thermal_scenes(data: Path, n_scenes: int, size: int, *, seed: int = 0) -> Scenes:
    """Patches of real thermal images, or of bundled photographs where there are none, turned and mirrored at random.

    Each image is scaled to a mean of 300 K and a deviation of 1 K, the contrast of a street at night. Of the real ones
    those whose own noise is far below their contrast: a railing outdoors, and a cup. Parts of 64 samples are groups, so
    that no two groups share a sample.
    """
    if (data / "infrared" / "flir_raw16.npz").is_file():
        kelvin = load(data)
        images, source = [kelvin["zenmuse_xtr"], kelvin["flir_example"]], "thermal images"
    else:
        images, source = [load_scene(name)[0] for name in ("moon", "camera", "coins")], "bundled photographs"
    parts: list[Tensor] = []
    for image in images:
        scaled = MEAN_KELVIN + CONTRAST_KELVIN * (image - image.mean()) / image.std()
        rows, columns = image.shape[0] // PART, image.shape[1] // PART
        for strip in scaled.tensor_split(rows):
            parts += strip.tensor_split(columns, dim=1)
    random = np.random.default_rng(seed)
    groups = np.arange(n_scenes) % len(parts)
    edge = (size - FIELD) // 2
    scenes = torch.full((n_scenes, 1, size, size), MEAN_KELVIN)
    for index, group in enumerate(groups):
        part = parts[group]
        top, left = (int(random.integers(length - FIELD + 1)) for length in part.shape)
        patch = torch.rot90(part[top : top + FIELD, left : left + FIELD], int(random.integers(4)))
        scenes[index, 0, edge : edge + FIELD, edge : edge + FIELD] = patch.flip(0) if random.integers(2) else patch
    return Scenes(scenes, torch.from_numpy(groups), source)


def temperature_map(scenes: Tensor) -> Tensor:
    """Mean temperature over squares of 10 um of the field, (n, 1, 18, 18), less 300 K."""
    return torch.nn.functional.avg_pool2d(cropped(scenes, FIELD, FIELD), 2) - MEAN_KELVIN


def with_light(design: Design, electrons: float) -> Design:
    """The design, exposed so that its frame of a scene of 300 K takes `electrons` in all."""
    system = camera(design, torch.empty(1, 1, 256, 256))
    pixels = (FIELD * SAMPLE_UM / design.pixel_um) ** 2
    return design._replace(exposure_ms=design.exposure_ms * electrons / (pixels * _uniform(system)))


def _uniform(system: ImagingSystem) -> float:
    encoder = system.encoder
    assert isinstance(encoder, InfraredCamera)
    return float(encoder.uniform_electrons(MEAN_KELVIN))


def metrics() -> dict[str, Callable[[ImagingSystem], float]]:
    """NETD, MTF50 on the focal plane, minimum resolvable temperature, SNR and condition number."""

    def encoder_of(system: ImagingSystem) -> InfraredCamera:
        assert isinstance(system.encoder, InfraredCamera)
        return system.encoder

    def netd(system: ImagingSystem) -> float:
        read = float(torch.as_tensor(system.noise.read_electrons))
        return float(encoder_of(system).netd_kelvin(MEAN_KELVIN, read))

    def blur(system: ImagingSystem) -> Tensor:
        encoder = encoder_of(system)
        side = encoder.lens.oversampling
        with torch.no_grad():
            psf = encoder.psf().double()
        return ops.psf_convolve(psf, torch.ones(side, side, dtype=psf.dtype), mode="full")

    def resolution(system: ImagingSystem) -> float:
        return mtf50(blur(system)) * 1e3 / SAMPLE_UM

    def resolvable(system: ImagingSystem) -> float:
        return netd(system) / transfer(blur(system), 1e-3 * SAMPLE_UM * _MRT_CYCLES_PER_MM)

    def signal(system: ImagingSystem) -> float:
        with torch.no_grad():
            mean = torch.cat([system.encoder(part) for part in system.scenes[:256].split(64)])
        return snr_db(mean, system.noise)  # type: ignore[arg-type]

    def condition(system: ImagingSystem) -> float:
        encoder, edge = encoder_of(system), (system.scenes.shape[-1] - FIELD) // 2
        with torch.no_grad():
            psf = encoder.psf()

        # Before a uniform scene radiance and detector are factors, which do not matter here.
        def linear(field: Tensor) -> Tensor:
            return blurred_pixels(pad(field, [edge] * 4), psf, encoder.lens.oversampling)

        return condition_number(linear, (1, FIELD, FIELD))

    return {
        "netd_kelvin": netd,
        "mtf50_cycles_per_mm": resolution,
        "mrt_kelvin": resolvable,
        "snr_db": signal,
        "condition_number": condition,
    }


def transfer(psf: Tensor, frequency: float) -> float:
    """|FT(psf)| / FT(psf)(0) at `frequency`, cycles per sample, mean over directions."""
    row, column = (torch.arange(length, dtype=psf.dtype) for length in psf.shape)
    angles = (torch.arange(64, dtype=psf.dtype) + 0.5) * (math.pi / 64)
    down = torch.exp(-2j * math.pi * frequency * angles.cos()[:, None] * row)
    across = torch.exp(-2j * math.pi * frequency * angles.sin()[:, None] * column)
    values = torch.einsum("ar,rc,ac->a", down, psf.to(down.dtype), across)
    return float(values.abs().mean() / psf.sum())


START = Design(NARROW, exposure_ms=6.0)
# The atmosphere's window, and what the well of the brightest design holds.
SHORTEST_UM, LONGEST_UM = 3.0, 5.0


def design(scenes: Scenes, out: Path, *, quick: bool, seeds: int) -> Comparison:
    """Exposure and the ends of the band, from a long exposure behind a narrow filter."""
    judged = scenes.groups % 2 == 0
    names = ("exposure_ms", "short_um", "long_um")
    start = camera(START, scenes.kelvin[judged], longest_ms=START.exposure_ms, learn=names)
    given = camera(START, scenes.kelvin[~judged], longest_ms=START.exposure_ms).scenes
    comparison, _ = compare_designs(
        "infrared",
        start,
        given,
        Reconstruction(temperature_map(scenes.kelvin[judged]), data_range=DATA_RANGE_KELVIN),
        Settings(
            parameters=names,
            constraints={"short_um": Box(lower=SHORTEST_UM), "long_um": Box(upper=LONGEST_UM)},
            n_steps=80,
            batch_size=16 if quick else 200,
            objective="gaussian",
        ),
        quick=quick,
        out=out,
        groups=scenes.groups[judged],
        decoder=UNetDecoder(channels=8, n_steps=3 if quick else 200, initial="linear"),
        n_seeds=1 if quick else seeds,
        method=METHOD,
    )
    return comparison


METHOD = "gaussian_mixture"
DATA_RANGE_KELVIN = 6.0
LISTS = ("infrared_fixed_frame", "infrared_equal_light")


def show(scenes: Scenes, systems: Mapping[str, ImagingSystem], names: tuple[str, ...], out: Path) -> None:
    """One scene and what some cameras measure of it."""
    index = int(scenes.kelvin.flatten(1).std(1).argmax())
    drawn = Figure(figsize=(2.6 * (len(names) + 1), 2.9), layout="constrained")
    axes = drawn.subplots(1, len(names) + 1)
    axes[0].imshow(temperature_map(scenes.kelvin[index : index + 1])[0, 0].numpy(), cmap="inferno")
    axes[0].set_title("temperatures scored", fontsize=8)
    for axis, name in zip(axes[1:], names, strict=True):
        encoder, noise, seen = systems[name]
        with torch.no_grad():
            measured = noise.sample(encoder(seen[index : index + 1]), torch.Generator().manual_seed(0))  # type: ignore[operator]
        axis.imshow(measured[0, 0].numpy(), cmap="inferno")
        axis.set_title(name, fontsize=8)
    for axis in axes:
        axis.set_axis_off()
    replace_file(out / "infrared_frames.png", report.to_png(drawn))


def run(out: Path, data: Path, *, quick: bool, seeds: int) -> dict[str, Any]:
    """Both lists and the design; what the summary file says."""
    out.mkdir(parents=True, exist_ok=True)
    scenes = thermal_scenes(data, 60 if quick else 800, LARGEST)
    print(f"scenes: {scenes.source}\n")
    light = (FIELD * SAMPLE_UM / 15.0) ** 2 * _uniform(camera(Design(), scenes.kelvin[:1]))
    equal = {name: with_light(its, light) for name, its in EQUAL_LIGHT.items()}
    held = ("object, speed, field, focal length, one frame; light is not", "the same, and light")
    task = Reconstruction(temperature_map(scenes.kelvin), data_range=DATA_RANGE_KELVIN)
    found: dict[str, Any] = {"scenes": scenes.source}
    for name, designs, what in zip(LISTS, (DESIGNS, equal), held, strict=True):
        systems = {key: camera(its, scenes.kelvin) for key, its in designs.items()}
        result = run_study(
            name,
            systems,
            task,
            metrics(),
            quick=quick,
            out=out,
            groups=scenes.groups,
            decoder=LinearDecoder(),
            n_seeds=1 if quick else seeds,
            method="stationary_gaussian" if quick else METHOD,
            lower_is_better=LOWER_IS_BETTER,
            extra={
                "scenes": scenes.source,
                "equal": what,
                "exposure_ms": {key: its.exposure_ms for key, its in designs.items()},
            },
        ).result
        found[name] = {
            "exposure_ms": {key: its.exposure_ms for key, its in designs.items()},
            "light": {row.design: row.light for row in result.rows},
            "bits": result.mean("bits"),
            "psnr": result.mean("psnr"),
        }
        if name == LISTS[0]:
            show(scenes, systems, (*list(designs)[1:6:2], "pixel 30 um, 0.3 ms"), out)
    found["design"] = design(scenes, out, quick=quick, seeds=seeds).to_dict()
    replace_file(out / "infrared_exposure.json", json.dumps(found, indent=2).encode())
    return found


def main() -> None:
    """Everything of the study, and its files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for tables, figures and JSON")
    parser.add_argument("--quick", action="store_true", help="few scenes, steps and seeds, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3, help="splits, noise draws and decoders per design")
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder that holds infrared/"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    run(given.out, given.data, quick=given.quick, seeds=given.seeds)


if __name__ == "__main__":
    main()
