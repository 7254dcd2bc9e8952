"""Push-broom imagers: delay stages, lost synchronism, aperture and bands, at equal light and at equal scan time.

A line sensor in orbit reads blue, green and red radiance through one telescope; orbit, ground sample and line time are
those of all designs. What a design may choose is how many stages add up the light of a place, how well they follow it,
the aperture, and the bands. The rule of both lists, laid down before their scores: around one reference (16 stages that
follow the ground, f/20, bands of 60 nm) what the list lets differ is made better and worse, alone and together. At
equal light, set by neutral filters, that is sharpness (slip, drift, diffraction) and colour (where the bands are); at
equal scan time it is the light as well: stages, aperture and width bring it, from 0.06 to 4 times the reference's.

Scenes: Landsat 7 (radiance by the calibration of its high gain) and Sentinel 2 (from reflectance), regions that share
no pixel, three samples of either per pixel; bundled photographs where these are absent. Asked for is the mean radiance
within each pixel in the three bands. A band between or beside those of the data is interpolated from them.
Bits by the stationary Gaussian: a line that moves over the ground treats all places alike, and of the densities it
promises least, which for an upper bound is best; full covariances and mixtures have more parameters than there are
independent regions.

Designed by information: synchronism, and how a total width is shared among the bands, by gradients; the number of
stages of a line whose clock and heading are off, by choice from a list.

What was found: at equal light bits rank the images by every kind of lost sharpness and by bands that lie close, and
miss one design, the three panchromatic lines: these know the brightness of each place well and nothing of its colour,
which is many bits and a large error of colour. At equal scan time the same shows wherever light makes up for what
blur or missing colour took: each mode that is seen at all gains half a bit whenever its light doubles, but the squared
error hardly falls once a mode is seen well, and stays where one is lost. So information chooses more stages of a line
that slips than the squared error does. The SNR ranks well at equal light, since blur lowers the mean square of the
signal a little: it is a measure of contrast there.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _design_study import Settings, compare_designs
from _validation_study import Metric, run_study, standard_metrics
from torch import Tensor

from bitlens import estimate_information
from bitlens._files import replace_file
from bitlens.datasets import scene_patches
from bitlens.design import Box, Total
from bitlens.encoders import integrate_pixels
from bitlens.encoders.detector import detector_noise
from bitlens.systems import ImagingSystem
from bitlens.systems.satellite_imager import SatelliteImager
from bitlens.validation import Reconstruction, UNetDecoder, WienerDecoder, point_response

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
PIXELS, OVERSAMPLING, MARGIN, EDGE = 12, 3, 2, 5
SCENE = (PIXELS + 2 * EDGE) * OVERSAMPLING
CENTERS_NM = (485.0, 560.0, 660.0)
READ_ELECTRONS = 30.0
# Landsat 7, high gain, bands 1 to 3: W / (m^2 sr um) at 1 and at 255, Landsat 7 Science Data Users Handbook.
LANDSAT_RANGE = ((-6.2, 191.6), (-6.4, 196.5), (-5.0, 152.9))
# Solar irradiance of Sentinel 2's bands 2 to 4, W / (m^2 um), and the cosine of a sun 45 degrees high.
SUN, COSINE = (1941.0, 1823.0, 1513.0), 0.71
# Of the reference's light, in the list of equal light: what f/40 leaves.
LIGHT_SHARE = 0.25
METHOD = "stationary_gaussian"
TOTAL_WIDTH_NM = 180.0
# Less at the Nyquist frequency counts as none.
LEAST_TRANSFER = 0.01
STAGES = (1, 2, 4, 8, 16, 32, 64)
# Rows and columns that the image leaves the charge in each stage, where the number of stages is to be chosen.
SLIP_A_STAGE = 0.03


class Design(NamedTuple):
    """What differs between the imagers; slips are of rows or columns over all stages."""

    stages: int = 16
    row_slip: float = 0.0
    column_slip: float = 0.0
    f_number: float = 20.0
    center_nm: tuple[float, float, float] = CENTERS_NM
    width_nm: tuple[float, float, float] = (60.0, 60.0, 60.0)


CLOSE_NM, PANCHROMATIC_NM = (540.0, 560.0, 580.0), (575.0, 575.0, 575.0)
EQUAL_LIGHT = {
    "in step, f/20": Design(),
    "f/30": Design(f_number=30.0),
    "f/40": Design(f_number=40.0),
    "1 row of slip": Design(row_slip=1.0),
    "2 rows of slip": Design(row_slip=2.0),
    "2 columns of drift": Design(column_slip=2.0),
    "1 of slip and drift": Design(row_slip=1.0, column_slip=1.0),
    "2 of slip and drift": Design(row_slip=2.0, column_slip=2.0),
    "f/30, 1 row of slip": Design(f_number=30.0, row_slip=1.0),
    "f/40, 2 rows of slip": Design(f_number=40.0, row_slip=2.0),
    "close bands": Design(center_nm=CLOSE_NM),
    "close bands, 2 rows of slip": Design(center_nm=CLOSE_NM, row_slip=2.0),
    "close bands, f/40": Design(center_nm=CLOSE_NM, f_number=40.0),
    "panchromatic lines": Design(center_nm=PANCHROMATIC_NM, width_nm=(240.0, 240.0, 240.0)),
}
EQUAL_TIME = {
    "single line": Design(stages=1),
    "4 stages": Design(stages=4),
    "16 stages": Design(),
    "64 stages": Design(stages=64),
    "4 stages, 1 row of slip": Design(stages=4, row_slip=1.0),
    "16 stages, 1 row of slip": Design(row_slip=1.0),
    "16 stages, 2 rows of slip": Design(row_slip=2.0),
    "64 stages, 2 rows of slip": Design(stages=64, row_slip=2.0),
    "16 stages, 2 columns of drift": Design(column_slip=2.0),
    "64 stages, 2 of slip and drift": Design(stages=64, row_slip=2.0, column_slip=2.0),
    "16 stages, f/30": Design(f_number=30.0),
    "16 stages, f/40": Design(f_number=40.0),
    "bands of 15 nm": Design(width_nm=(15.0, 15.0, 15.0)),
    "bands of 150 nm": Design(width_nm=(150.0, 150.0, 150.0)),
    "bands close together": Design(center_nm=CLOSE_NM),
    "three panchromatic lines": Design(center_nm=PANCHROMATIC_NM, width_nm=(240.0, 240.0, 240.0)),
}


class Scenes(NamedTuple):
    """Spectral radiance (n, band, row, column), W / (m^2 sr um), the region of each, and what they are."""

    radiance: Tensor
    groups: Tensor
    source: str


def read_scenes(data: Path, n_scenes: int, seed: int = 0) -> Scenes:
    """Patches turned and mirrored at random, in turn from each region; bundled photographs without the data."""
    folder = data / "satellite"
    if not (folder / "landsat7_rgb_RGB.byte.tif").exists():
        generator = torch.Generator().manual_seed(seed)
        patches = scene_patches(n_scenes, SCENE, color=True, generator=generator)
        return Scenes(45.0 * patches.scenes.flip(1), patches.groups, "bundled photographs as radiance")
    regions = [*_landsat(folder), *_sentinel(folder)]
    random = np.random.default_rng(seed)
    groups = np.arange(n_scenes) % len(regions)
    found = np.empty((n_scenes, 3, SCENE, SCENE), dtype=np.float32)
    for index, group in enumerate(groups):
        region = regions[group]
        row, column = (random.integers(size - SCENE + 1) for size in region.shape[1:])
        patch = region[:, row : row + SCENE, column : column + SCENE]
        patch = np.rot90(patch, random.integers(4), (1, 2))
        found[index] = patch[:, ::-1] if random.integers(2) else patch
    return Scenes(
        torch.from_numpy(found), torch.from_numpy(groups), f"Landsat 7 and Sentinel 2, {len(regions)} regions"
    )


def _landsat(folder: Path) -> list[np.ndarray]:
    import tifffile

    # Stored red, green, blue; 0 is no data.
    counts = tifffile.imread(folder / "landsat7_rgb_RGB.byte.tif")[..., ::-1].transpose(2, 0, 1)
    seen = (counts > 0).any(0)
    radiance = np.stack(
        [low + (high - low) * (band - 1.0) / 254 for (low, high), band in zip(LANDSAT_RANGE, counts, strict=True)]
    )
    regions = []
    for row in range(0, counts.shape[1] - SCENE + 1, SCENE):
        # The seen part is a slanted strip: count from where it starts in these rows.
        columns = np.flatnonzero(seen[row : row + SCENE].all(0))
        if len(columns):
            starts = range(columns[0], columns[-1] + 2 - SCENE, SCENE)
            regions += [np.clip(radiance[:, row : row + SCENE, start : start + SCENE], 0, None) for start in starts]
    return regions


def _sentinel(folder: Path) -> list[np.ndarray]:
    reflectance = np.load(folder / "sentinel2_5x13band.npz")["reflectance"]
    scale = np.array(SUN)[:, None, None] * COSINE / math.pi
    return [scale * scene[..., 1:4].transpose(2, 0, 1) for scene in reflectance]


def band_mixture(design: Design) -> Tensor:
    """(band, 3): what of each band of the data is in each of the design's, linear between centres, constant beyond."""
    found = torch.zeros(3, 3, dtype=torch.float64)
    for band, (center, width) in enumerate(zip(design.center_nm, design.width_nm, strict=True)):
        wavelength = np.linspace(center - width / 2, center + width / 2, 201)
        for source in range(3):
            found[band, source] = float(np.interp(wavelength, CENTERS_NM, np.eye(3)[source]).mean())
    return found


def imager(
    design: Design, radiance: Tensor, *, transmission: float = 0.7, learn: tuple[str, ...] = ()
) -> ImagingSystem:
    """The push-broom imager and what it sees of `radiance`: its bands, and as much around the pixels as it needs."""
    encoder = SatelliteImager(
        center_nm=design.center_nm,
        width_nm=design.width_nm,
        quantum_efficiency=(0.5, 0.5, 0.5),
        f_number=design.f_number,
        pixel_um=13.0,
        focal_length_m=13.0,
        altitude_km=694.0,
        n_stages=design.stages,
        mismatch_pixels=design.row_slip / design.stages,
        drift_pixels=design.column_slip / design.stages,
        obscuration=0.3,
        transmission=transmission,
        oversampling=OVERSAMPLING,
        margin_pixels=MARGIN,
        learn=learn,
    )
    crop = (EDGE - encoder.edge_pixels) * OVERSAMPLING
    seen = radiance[..., crop : SCENE - crop, crop : SCENE - crop]
    bands = torch.einsum("bs,nsrc->nbrc", band_mixture(design).to(seen.dtype), seen)
    return ImagingSystem(encoder, detector_noise(read_electrons=READ_ELECTRONS), bands)


def light(system: ImagingSystem) -> float:
    """Mean photo-electrons of an image."""
    with torch.no_grad():
        return float(system.encoder(system.scenes[:400]).double().sum((1, 2, 3)).mean())


def equal_light(radiance: Tensor) -> dict[str, ImagingSystem]:
    """The designs behind neutral filters that leave each the same light."""
    full = {name: light(imager(design, radiance)) for name, design in EQUAL_LIGHT.items()}
    level = LIGHT_SHARE * full["in step, f/20"]
    return {
        name: imager(design, radiance, transmission=0.7 * level / full[name]) for name, design in EQUAL_LIGHT.items()
    }


def pixel_radiance(radiance: Tensor) -> Tensor:
    """(n, 3, row, column): the mean over each pixel."""
    edge = EDGE * OVERSAMPLING
    inner = radiance[..., edge : SCENE - edge, edge : SCENE - edge]
    return integrate_pixels(inner, OVERSAMPLING) / OVERSAMPLING**2


def metrics() -> dict[str, Metric]:
    """MTF50, SNR and condition number; the transfer at the Nyquist frequency, and its product with the SNR."""

    def shape(system: ImagingSystem, pixels: int) -> tuple[int, int, int]:
        encoder = system.encoder
        assert isinstance(encoder, SatelliteImager)
        return (3, *encoder.scene_size(pixels, pixels))

    def nyquist(system: ImagingSystem) -> float:
        response = point_response(system.encoder, shape(system, 12), samples_per_pixel=OVERSAMPLING)
        transfer = torch.fft.fft2(response / response.sum()).abs()
        quarter = response.shape[0] // (2 * OVERSAMPLING)
        along = float(transfer[quarter, 0] + transfer[0, response.shape[1] // (2 * OVERSAMPLING)])
        return max(LEAST_TRANSFER, 0.5 * along)

    def standard(name: str, pixels: int) -> Metric:
        return lambda system: standard_metrics(shape(system, pixels), samples_per_pixel=OVERSAMPLING)[name](system)

    signal = standard("snr_db", 12)
    return {
        "mtf50": standard("mtf50", 12),
        "snr_db": signal,
        "condition_number": standard("condition_number", 4),
        "transfer at Nyquist": nyquist,
        "SNR x transfer": lambda system: nyquist(system) * 10 ** (signal(system) / 20),
    }


def choose_stages(
    scenes: Scenes, slip_a_stage: float, numbers: Sequence[int] = STAGES, seed: int = 0
) -> dict[int, dict[str, float]]:
    """Bits of each number of stages of a line that is off by as much a stage, and the PSNR of a Wiener estimate."""
    found = {}
    target = pixel_radiance(scenes.radiance)
    test = scenes.groups % 4 == 0
    for stages in numbers:
        system = imager(Design(stages=1) if stages == 1 else _slipping(stages, slip_a_stage), scenes.radiance)
        with torch.no_grad():
            mean = torch.cat([system.encoder(part) for part in system.scenes.split(64)])
            measured = system.noise.sample(mean, torch.Generator().manual_seed(seed))  # type: ignore[operator]
        estimate = estimate_information(
            measured,
            system.noise,  # type: ignore[arg-type]
            mean=mean,
            method=METHOD,
            groups=scenes.groups,
            generator=torch.Generator().manual_seed(seed),
        )
        decoder = WienerDecoder().fit(
            measured[~test],
            target[~test],
            groups=scenes.groups[~test],
            generator=torch.Generator().manual_seed(seed),
        )
        score = Reconstruction(target).score(decoder(measured[test]), target[test], data_range=float(target.max()))
        found[stages] = {"bits": estimate.bits, "stderr_bits": estimate.stderr_bits, "psnr": score["psnr"]}
    return found


def _slipping(stages: int, slip_a_stage: float) -> Design:
    return Design(stages=stages, row_slip=slip_a_stage * stages, column_slip=slip_a_stage * stages)


def run(out: Path, data: Path, *, quick: bool, seeds: int) -> dict[str, Any]:
    """Both lists, the choice of stages and the design by gradients; what the summary file says."""
    scenes = read_scenes(data, 40 if quick else 800)
    target = pixel_radiance(scenes.radiance)
    decoder = UNetDecoder(n_steps=3 if quick else 200)
    print(f"scenes: {scenes.source}\n")
    lists = {
        "satellite_equal_light": (equal_light(scenes.radiance), "light"),
        "satellite_equal_time": (
            {name: imager(design, scenes.radiance) for name, design in EQUAL_TIME.items()},
            "scan time; light is not",
        ),
    }
    found: dict[str, Any] = {"scenes": scenes.source}
    for name, (systems, equal) in lists.items():
        result = run_study(
            name,
            systems,
            Reconstruction(target),
            metrics(),
            quick=quick,
            out=out,
            groups=scenes.groups,
            decoder=decoder,
            n_seeds=1 if quick else seeds,
            method=METHOD,
            bound=not quick,
            extra={"scenes": scenes.source, "equal": equal},
        ).result
        found[name] = {
            "light": {row.design: row.light for row in result.rows},
            "bits": result.mean("bits"),
            "psnr": result.mean("psnr"),
        }
    chosen = choose_stages(scenes, SLIP_A_STAGE, STAGES[::3] if quick else STAGES)
    best = {by: max(chosen, key=lambda stages: chosen[stages][by]) for by in ("bits", "psnr")}
    lines = [f"stages of a line that is off by {SLIP_A_STAGE} rows and columns a stage"]
    lines += [
        f"  {stages:>2}: {value['bits']:.0f} +- {value['stderr_bits']:.0f} bits, {value['psnr']:.2f} dB"
        for stages, value in chosen.items()
    ]
    lines += [f"  chosen by information: {best['bits']}; best for the squared error: {best['psnr']}", ""]
    print("\n".join(lines))
    replace_file(out / "satellite_chosen_stages.txt", "\n".join(lines).encode())
    found["stages"] = {"slip_a_stage": SLIP_A_STAGE, "of": chosen, "best": best}
    found["design"] = design(scenes, out, quick=quick, seeds=seeds)
    replace_file(out / "satellite_stages.json", json.dumps(found, indent=2).encode())
    return found


START = Design(row_slip=1.6, column_slip=1.0)


def design(scenes: Scenes, out: Path, *, quick: bool, seeds: int) -> dict[str, Any]:
    """Synchronism and the shares of the total width of the bands, from a line that is off and even shares."""
    names = ("width_nm", "mismatch_pixels", "drift_pixels")
    judged = scenes.groups % 2 == 0
    start = imager(START, scenes.radiance, learn=names)
    comparison, _ = compare_designs(
        "satellite",
        start._replace(scenes=start.scenes[judged]),
        start.scenes[~judged],
        Reconstruction(pixel_radiance(scenes.radiance[judged])),
        Settings(
            constraints={"width_nm": (Box(lower=5.0), Total(TOTAL_WIDTH_NM))},
            n_steps=30,
            batch_size=8 if quick else 256,
            objective="gaussian",
        ),
        quick=quick,
        out=out,
        groups=scenes.groups[judged],
        decoder=UNetDecoder(n_steps=3 if quick else 200),
        n_seeds=1 if quick else seeds,
        method=METHOD,
    )
    return asdict(comparison)


def main() -> None:
    """Both lists, the designs, and their files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for tables, figures and JSON")
    parser.add_argument("--quick", action="store_true", help="few scenes, steps and seeds, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3, help="splits, noise draws and decoders per design")
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds satellite/")
    parser.add_argument("--threads", type=int, default=1, help="threads of encoders and estimates")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    run(given.out, given.data, quick=given.quick, seeds=given.seeds)


if __name__ == "__main__":
    main()
