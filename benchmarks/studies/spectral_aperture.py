"""Snapshot spectral imaging with a coded aperture: which pattern of half open pixels carries most bits.

    python benchmarks/studies/spectral_aperture.py [--quick] [--out FOLDER] [--seeds N] [--data FOLDER]

One disperser, one shot (SD-CASSI): eight bands of 0.45 to 0.85 um, one column further each. Scenes are patches of three
measured cubes (Jasper Ridge and Salton Sea of AVIRIS, Pavia of ROSIS), turned and mirrored; splits and errors go by
region of 20 pixels, and regions share no pixel. Without the cubes they are synthetic patches of materials.

The list of apertures (`apertures`): every one has half of its pixels open, so that all get the same light. By rule:
random squares, checkerboards and stripes across the dispersion of 1, 2 and 4 pixels, stripes along it of 1 and 4, and
the patterns of the literature (blue noise, Hadamard rows, one shifted sequence of an S-matrix, one random code for all
rows), a bundle of slits in the middle, and half of the field. Bits: a full Gaussian, corrected for its number of
samples; all measurements have as many values, and the decoder is close to a linear one.

Then an aperture is designed by information from random pixels, zeros and ones of share one half, and held against one
trained end to end with the same decoder at the best of several pairs of rates, on regions that neither has seen. Once
more at a size at which the costs are those of the decoder: 32 x 32 pixels of synthetic materials, since the measured
cubes hold too few such patches, the package's U-Net and batch. What training the decoder after the design costs is a
row of its own (`spectral_aperture_large_costs.txt`).

What was found out: bits rank the apertures as the decoder does by PSNR, down to those that leave rows of the sensor
dark; by SSIM less well. SNR ranks the wrong way round: the aperture that puts all its light on few pixels has the best.
The gain of the designed aperture is judged by a full Gaussian on other regions, as the ranking is; the best of several
densities sees no gain beyond its own error on so few regions: why the two part is open.

Training end to end leaves its start on the measured cubes at three of eight pairs of rates in 200 steps, best at the
largest of both; in 400 steps its validation loss may rise from the first look on: the linear estimate has far more
weights than there are regions. Of 2000 independent scenes of 32 pixels it leaves it at all rates that were tried. There
both ways end within 0.2 dB of each other; design by information takes a twentieth of the time and a quarter of the
memory, and with a decoder trained after it a quarter of the time and as much memory.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _design_study import Comparison
from _spectral_aperture_designs import RATES, designs
from _validation_study import Metric, Study, run_study
from scipy.linalg import hadamard
from scipy.ndimage import gaussian_filter
from torch import Tensor

from bitlens import plots, report
from bitlens._files import replace_file
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.systems.coded_aperture_spectral_imager import (
    CodedApertureSpectralImager,
    DispersedLight,
    spectral_scenes,
)
from bitlens.validation import Reconstruction, UNetDecoder, gaussian_reconstruction_bound, snr_db
from bitlens.validation.metrics import jacobian

ROOT = Path(__file__).resolve().parents[2]
SIZE, N_BANDS, RANGE_UM = 16, 8, (0.45, 0.85)
PHOTONS, READ_ELECTRONS, DARK_ELECTRONS = 200.0, 2.4, 0.05
# Rows, columns of a region: larger than a patch, so that regions share no pixel.
REGION = 20
N_DECODER_STEPS = 150
# The larger form of the comparison, with the same decoder: pixels along a side, scenes that design, and three times as
# many that judge: with as many as design the gain was told to a quarter of itself only.
LARGE_SIZE, LARGE_N_SCENES, LARGE_RATES = 32, 2000, ((0.1,), (3e-4, 1e-3, 3e-3))


class Scenes(NamedTuple):
    """Reflectances (n, band, row, column), the region of each, and what they are."""

    cubes: Tensor
    groups: Tensor
    source: str


def apertures(size: int = SIZE, seed: int = 0) -> dict[str, Tensor]:
    """Every aperture of the study, (size, size) zeros and ones, half of them ones."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(size)
    row, column = index[:, None].expand(size, size), index.expand(size, size)
    found: dict[str, Tensor] = {}
    for feature in (1, 2, 4):
        found[f"random, {feature} px"] = random_aperture(size, feature, generator)
    found["blue noise"] = blue_noise(size, generator)
    found["Hadamard rows"] = hadamard_rows(size)
    found["one shifted sequence"] = shifted_sequence(size)
    for feature in (1, 2, 4):
        found[f"checkerboard, {feature} px"] = (row // feature + column // feature) % 2 == 0
    for feature in (1, 4):
        found[f"stripes along, {feature} px"] = (row // feature) % 2 == 0
    for feature in (1, 2, 4):
        found[f"stripes across, {feature} px"] = (column // feature) % 2 == 0
    found["random stripes across"] = half_open(torch.rand(size, generator=generator)).expand(size, size)
    found["slit bundle"] = (column - (size - 1) / 2).abs() < size / 4
    found["half field"] = row < size // 2
    return {name: aperture.double() for name, aperture in found.items()}


def half_open(level: Tensor) -> Tensor:
    """True at the larger half of the values."""
    order = level.flatten().argsort(descending=True, stable=True)
    chosen = torch.zeros(level.numel(), dtype=torch.bool)
    chosen[order[: level.numel() // 2]] = True
    return chosen.reshape(level.shape)


def random_aperture(size: int, feature: int, generator: torch.Generator) -> Tensor:
    """Half of the squares of `feature` pixels, drawn at random."""
    coarse = half_open(torch.rand(size // feature, size // feature, generator=generator))
    return coarse.repeat_interleave(feature, 0).repeat_interleave(feature, 1)


def blue_noise(size: int, generator: torch.Generator, sigma: float = 1.5) -> Tensor:
    """Ones as evenly spread as they get: the tightest cluster moves to the largest void until nothing moves.

    Reference: Ulichney 1993, The void-and-cluster method for dither array generation, doi:10.1117/12.152707.
    """
    pattern = random_aperture(size, 1, generator).numpy().astype(np.float64)
    for _ in range(20 * size * size):
        density = gaussian_filter(pattern, sigma, mode="wrap")
        cluster = np.unravel_index(np.where(pattern > 0, density, -np.inf).argmax(), pattern.shape)
        pattern[cluster] = 0
        density = gaussian_filter(pattern, sigma, mode="wrap")
        void = np.unravel_index(np.where(pattern > 0, np.inf, density).argmin(), pattern.shape)
        pattern[void] = 1
        if void == cluster:
            break
    return torch.from_numpy(pattern > 0)


def hadamard_rows(size: int) -> Tensor:
    """Rows of a Hadamard matrix, ones where it is positive, the row of all ones as the last row turned over."""
    matrix = torch.from_numpy(hadamard(size)) > 0
    return torch.cat([matrix[1:], ~matrix[size - 1 :]])


def shifted_sequence(size: int) -> Tensor:
    """A maximal-length sequence of `size` - 1 and a closed pixel, one column further from row to row: an S-matrix."""
    register, sequence = [1] + [0] * (size.bit_length() - 2), []
    for _ in range(size - 1):
        sequence.append(register[-1])
        # Primitive for three and four stages.
        register = [register[-1] ^ register[-2], *register[:-1]]
    code = torch.tensor([*sequence, 0]) > 0
    return torch.stack([code.roll(shift) for shift in range(size)])


def measured_scenes(folder: Path, n_scenes: int, size: int = SIZE, seed: int = 0) -> Scenes | None:
    """Patches of the cubes in `folder`, as many of each region, turned and mirrored at random; None without them."""
    names = ("jasper_ridge", "salton_sea_roi", "pavia_lowres")
    paths = [folder / f"{name}.npz" for name in names]
    if not all(path.is_file() for path in paths):
        return None
    jasper, salton, pavia = (np.load(path) for path in paths)
    aviris_um = salton["wavelength_um"]
    # Reflectances as counts of 1e-4, the bands by their number in AVIRIS.
    cubes = (
        (jasper["cube"] / 1e4, aviris_um[jasper["band_index_1based_of_224"].astype(int) - 1]),
        (salton["cube"], aviris_um),
        (pavia["cube"], pavia["wavelength_um"]),
    )
    regions = [region for cube, wavelength_um in cubes for region in _regions(_bands(cube, wavelength_um))]
    random = np.random.default_rng(seed)
    groups = np.arange(n_scenes) % len(regions)
    patches = np.empty((n_scenes, N_BANDS, size, size), dtype=np.float32)
    for index, group in enumerate(groups):
        region = regions[group]
        row, column = (random.integers(length - size + 1) for length in region.shape[1:])
        patch = np.rot90(region[:, row : row + size, column : column + size], int(random.integers(4)), (1, 2))
        patches[index] = patch[:, ::-1] if random.integers(2) else patch
    return Scenes(torch.from_numpy(patches), torch.from_numpy(groups), ", ".join(names))


def _bands(cube: np.ndarray, wavelength_um: np.ndarray) -> np.ndarray:
    """(band, row, column), 0 to 1: means of the cube's bands within each of ours, the brightest per mille at 1."""
    edges = np.linspace(*RANGE_UM, N_BANDS + 1)
    number = np.digitize(wavelength_um, edges) - 1
    bands = np.stack([cube[..., number == band].mean(-1) for band in range(N_BANDS)])
    return np.clip(bands / np.quantile(bands, 0.999), 0, 1)


def _regions(bands: np.ndarray) -> list[np.ndarray]:
    rows, columns = (np.array_split(np.arange(length), length // REGION) for length in bands.shape[1:])
    return [bands[:, row[0] : row[-1] + 1, column[0] : column[-1] + 1] for row in rows for column in columns]


def synthetic_scenes(n_scenes: int, size: int = SIZE) -> Scenes:
    """Patches of materials with smooth spectra, each a group of its own."""
    wavelength_nm = torch.linspace(1e3 * RANGE_UM[0], 1e3 * RANGE_UM[1], N_BANDS, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    cubes = spectral_scenes(n_scenes, wavelength_nm, (size, size), generator=generator)
    return Scenes(cubes, torch.arange(n_scenes), "synthetic materials")


def imager(aperture: Tensor, scenes: Tensor, learn: tuple[str, ...] = ()) -> ImagingSystem:
    """The imager with this aperture before these scenes (n, band, row, column); `learn`: "mask", or nothing."""
    n_bands = scenes.shape[1]
    linear = DispersedLight(
        aperture,
        band_positions=torch.linspace(0, 1, n_bands, dtype=torch.float64),
        dispersion_pixels=n_bands - 1.0,
        photons=PHOTONS,
        learn=learn,
    )
    return ImagingSystem(
        CodedApertureSpectralImager(linear, dark_electrons=DARK_ELECTRONS),
        PoissonGaussianNoise(read_std=READ_ELECTRONS),
        scenes,
    )


# ---- the traditional figures ----

LESS_IS_BETTER = ("condition_number", "largest_coherence", "mean_coherence")


def metrics(size: int) -> dict[str, Metric]:
    """SNR, condition number, rank, and the largest and the root mean square coherence of the sensing matrix."""
    shape = (N_BANDS, size, size)
    # The figures of one system are asked for one after the other.
    last: list[tuple[ImagingSystem, Tensor]] = []

    def matrix(system: ImagingSystem) -> Tensor:
        if not last or last[0][0] is not system:
            last[:] = [(system, jacobian(system.encoder, shape))]
        return last[0][1]

    def signal(system: ImagingSystem) -> float:
        with torch.no_grad():
            return snr_db(system.encoder(system.scenes[:256]), system.noise)  # type: ignore[arg-type]

    def seen(system: ImagingSystem) -> Tensor:
        values = torch.linalg.svdvals(matrix(system))
        return values[values > 1e-6 * values[0]]

    return {
        "snr_db": signal,
        "condition_number": lambda system: float(seen(system)[0] / seen(system)[-1]),
        "rank": lambda system: float(len(seen(system))),
        "largest_coherence": lambda system: coherence(matrix(system))[0],
        "mean_coherence": lambda system: coherence(matrix(system))[1],
    }


def coherence(matrix: Tensor) -> tuple[float, float]:
    """Largest and root mean square cosine between columns of `matrix` that are not dark.

    The largest is 1 for every aperture: two bands of neighbouring points meet on one pixel of the sensor.
    """
    length = matrix.norm(dim=0)
    seen = length > 1e-9 * length.max()
    columns = matrix[:, seen] / length[seen]
    gram = columns.T @ columns
    gram.fill_diagonal_(0.0)
    n = len(gram)
    return float(gram.abs().max()), math.sqrt(float(gram.square().sum()) / (n * (n - 1)))


# ---- the study ----


def least_errors(ranking: Study, cubes: Tensor, out: Path) -> dict[str, float]:
    """What the bits of each aperture allow at best, for Gaussian cubes of the same covariance; figure and files.

    Of more values than there are independent patches, an entropy of any other density cannot be had.
    """
    result = ranking.result
    eigenvalues = torch.linalg.eigvalsh(torch.cov(cubes.double().flatten(1).T)).clamp(min=0.0)
    upper: dict[str, list[float]] = {design: [] for design in result.designs}
    for row in result.rows:
        upper[row.design].append(row.bits if row.upper_bits is None else row.upper_bits)
    least = {design: gaussian_reconstruction_bound(float(np.mean(bits)), eigenvalues) for design, bits in upper.items()}
    error = result.mean("mse")
    rows = tuple((design, f"{error[design]:.4g}", f"{least[design]:.4g}") for design in result.designs)
    table = report.Table("", ("design", "mean squared error", "least for Gaussian cubes"), rows)
    text = report.to_text(table)
    print(text)
    replace_file(out / "spectral_aperture_bounds.txt", text.encode())
    replace_file(out / "spectral_aperture_bounds.json", json.dumps(least, indent=2).encode())
    replace_file(
        out / "spectral_aperture.png", report.to_png(plots.validation(result, least, title="spectral_aperture"))
    )
    return least


def larger_design(out: Path, n_seeds: int) -> Comparison:
    """The same for synthetic materials of `LARGE_SIZE` pixels: of such patches the measured cubes hold too few."""
    cubes = synthetic_scenes(4 * LARGE_N_SCENES, LARGE_SIZE).cubes
    return designs(
        "spectral_aperture_large",
        imager(apertures(LARGE_SIZE)["random, 1 px"], cubes[LARGE_N_SCENES:], learn=("mask",)),
        cubes[:LARGE_N_SCENES],
        (None, None),
        UNetDecoder(n_steps=N_DECODER_STEPS),
        LARGE_RATES,
        quick=False,
        n_seeds=n_seeds,
        out=out,
    )


def main(
    out: Path, *, quick: bool = False, n_seeds: int = 3, data: Path = ROOT.parent / "shared" / "data"
) -> tuple[Study, Comparison]:
    """Ranking and design; files go into `out`."""
    size, n_scenes = (8, 360) if quick else (SIZE, 2200)
    scenes = measured_scenes(data / "hyperspectral", n_scenes, size) or synthetic_scenes(n_scenes, size)
    print(f"scenes: {scenes.source}, {len(scenes.groups.unique())} groups")
    decoder = UNetDecoder(channels=4, n_steps=10) if quick else UNetDecoder(n_steps=N_DECODER_STEPS)
    ranking = run_study(
        "spectral_aperture",
        {name: imager(aperture, scenes.cubes) for name, aperture in apertures(size).items()},
        Reconstruction(data_range=1.0),
        metrics(size),
        quick=quick,
        out=out,
        groups=scenes.groups,
        decoder=decoder,
        n_seeds=1 if quick else n_seeds,
        method="gaussian",
        lower_is_better=LESS_IS_BETTER,
        bound=False,
        extra={"scenes": scenes.source, "light": "half of the pixels open in every aperture"},
    )
    least_errors(ranking, scenes.cubes, out)
    even = scenes.groups % 2 == 0
    comparison = designs(
        "spectral_aperture",
        imager(apertures(size)["random, 1 px"], scenes.cubes[even], learn=("mask",)),
        scenes.cubes[~even],
        (scenes.groups[even], scenes.groups[~even]),
        decoder,
        RATES,
        quick=quick,
        n_seeds=1 if quick else n_seeds,
        out=out,
    )
    if not quick:
        larger_design(out, n_seeds)
    return ranking, comparison


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for table, figure and JSON")
    parser.add_argument("--quick", action="store_true", help="few scenes, steps and seeds, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3, help="splits, noise draws and decoders per design")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real data")
    given = parser.parse_args()
    torch.set_num_threads(1)
    main(given.out, quick=given.quick, n_seeds=given.seeds, data=given.data)
