"""Colour filter arrays: do the bits of a mosaic say how well its photographs can be demosaicked?

One lens, one sensor and 18 arrays, written down before any score: every array that has come into use or into the
literature by itself as a way to sample three colours (Bayer's and its binned, shifted and striped relatives, random
draws), those that trade colour for light (clear pixels, complementary dyes), and two with poorer dyes. Every one
distinguishes three colours. Poor and good ones so differ in the arrangement, in the pitch, in the light that passes
and in the spectra. None was left out afterwards.

1. At equal light: the exposure of each array is set so that its mean photo-electrons per image are those of Bayer's at
   `PHOTONS`. Bits against the error of a U-Net that starts from the best linear estimate, beside the traditional
   figures. MTF50 is not among them: a mosaic is no image, and the lens is one for all.
2. The same list at equal exposure, where clear pixels and complementary dyes get more light.
3. At equal exposure, Bayer's array as a start: the transmission of each of 4 x 4 pixels in each band is free between 0
   and that of a clear filter, designed by information alone, and trained end to end with the same decoder.

Regions of 128 samples that judge are not those designed on; splits and errors go by region.

Found: at equal light the bits rank the arrays by the PSNR of the demosaicked photographs, above every traditional
figure; the condition number of the whole camera, lens and pixels included, comes close, and is ahead by the mean
squared error, which the few brightest patches decide. The array of the coarsest fields stands apart: worse than its
bits. At equal exposure clear pixels and complementary dyes gain bits by their light, and the error does not follow.

    python benchmarks/studies/color_filters.py [--quick] [--out DIR] [--seeds N] [--data DIR]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _design_study import DESIGNED, START, TRAINED, Comparison, Settings, compare_designs
from _validation_study import Study, run_study, standard_metrics
from matplotlib.figure import Figure
from scipy.ndimage import distance_transform_edt
from scipy.stats import spearmanr
from torch import Tensor

from bitlens import report
from bitlens._files import replace_file
from bitlens.datasets import linearize_srgb, load_scene
from bitlens.design import Box, DensityObjective
from bitlens.encoders import BAYER, RGBW, XTRANS, Camera, ColorFilterArray, random_tile
from bitlens.encoders.masks import gaussian_bands
from bitlens.encoders.sensor import integrate_pixels
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.systems.color_camera import ColorCamera, filter_spectra
from bitlens.validation import LinearDecoder, Reconstruction, UNetDecoder

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
# Red, green and blue light, and a lens that two samples per pixel resolve.
BAND_NM, F_NUMBER, PIXEL_UM, OVERSAMPLING, MARGIN = (610.0, 540.0, 460.0), 8.0, 3.45, 2, 4
# Photo-electrons that one band gives a clear pixel where a photograph is white.
PHOTONS, READ_ELECTRONS = 1000.0, 2.4
SIZE, REGION, N_SCENES = 8, 128, 1000
BUNDLED = ("astronaut", "chelsea", "china", "coffee", "flower", "motorcycle", "rocket")
RED, GREEN, BLUE, CLEAR, CYAN, MAGENTA, YELLOW = range(7)
DECODER = UNetDecoder(n_steps=200)
SETTINGS = Settings(
    parameters=("filters.spectra",),
    constraints={"filters.spectra": Box(0.0, 0.95)},
    n_steps=120,
    objective=DensityObjective(refit_every=2),
    # At faster steps the density lags behind the design, which then moves to where it is wrong instead of to more bits.
    learning_rate={"filters.spectra": 0.005},
    end_to_end_steps=1000,
)
# Bits per pixel and PSNR, dB, at 1000 photons: Pinkard et al. 2024, arXiv 2405.20559.
PUBLISHED = {
    "Bayer": (0.91, 42.19),
    "random": (1.10, 42.48),
    TRAINED: (1.17, 42.58),
    DESIGNED: (1.21, 42.96),
}


class Mosaic(NamedTuple):
    """A tile of filter indices and the transmission (filter, band) of each."""

    tile: Tensor
    spectra: Tensor


def dyes() -> Tensor:
    """Transmission (7, 3) of red, green, blue, clear; cyan, magenta and yellow pass what those three hold back."""
    primary = filter_spectra(BAND_NM)
    return torch.cat([primary, primary[CLEAR] - primary[:CLEAR]])


def broad_dyes(width_nm: float = 200.0) -> Tensor:
    """Transmission (3, 3) of red, green and blue dyes twice as wide."""
    center = torch.tensor(BAND_NM, dtype=torch.float64)[:, None]
    return gaussian_bands(
        torch.tensor(BAND_NM, dtype=torch.float64),
        center_nm=center,
        width_nm=torch.full_like(center, width_nm),
        peak=torch.full_like(center, 0.9),
    )


def mosaics() -> dict[str, Mosaic]:
    """Every array of the study."""
    spectra = dyes()
    r, g, b = RED, GREEN, BLUE
    bayer = torch.tensor(BAYER)
    quarter = torch.full((4, 4), CLEAR)
    quarter[1:3, 1:3] = bayer
    draws = torch.Generator().manual_seed(0)
    tiles = {
        "Bayer": bayer,
        "quad Bayer": enlarged(bayer, 2),
        "hexadeca Bayer": enlarged(bayer, 4),
        # Bayer's with every second pair of rows shifted by a pixel: Lukac and Plataniotis 2005.
        "Lukac": torch.tensor([[g, r, g, r], [b, g, b, g], [r, g, r, g], [g, b, g, b]]),
        "Yamanaka": torch.tensor([[g, r, g, b], [g, b, g, r]]),
        "X-Trans": torch.tensor(XTRANS),
        "stripes": torch.tensor([[r, g, b]]),
        "wide stripes": torch.tensor([[r, r, g, g, b, b]]),
        "diagonal stripes": torch.tensor([[r, g, b], [g, b, r], [b, r, g]]),
        "random RGB, first": random_tile((8, 8), (1.0, 2.0, 1.0), generator=draws),
        "random RGB, second": random_tile((8, 8), (1.0, 2.0, 1.0), generator=draws),
        "RGBW": torch.tensor(RGBW),
        "random RGBW": random_tile((8, 8), (1.0, 2.0, 1.0, 4.0), generator=draws),
        "mostly clear": quarter,
        "CMY": torch.tensor([[CYAN, YELLOW], [YELLOW, MAGENTA]]),
        "CYGM": torch.tensor([[CYAN, YELLOW], [g, MAGENTA]]),
    }
    found = {name: Mosaic(tile, spectra) for name, tile in tiles.items()}
    found["Bayer, broad dyes"] = Mosaic(bayer, broad_dyes())
    found["Bayer, leaking dyes"] = Mosaic(bayer, 0.6 * spectra[:CLEAR] + 0.3)
    return found


def enlarged(tile: Tensor, factor: int) -> Tensor:
    """Each filter over `factor` x `factor` pixels."""
    return tile.repeat_interleave(factor, 0).repeat_interleave(factor, 1)


def free_bayer() -> Mosaic:
    """Bayer's array over 4 x 4 pixels, each with a spectrum of its own."""
    filters = torch.tensor(BAYER).repeat(2, 2)
    return Mosaic(torch.arange(16).reshape(4, 4), dyes()[filters.flatten()])


def photographs(names: Sequence[str], folder: Path | None = None) -> list[Tensor]:
    """Bundled photographs and those of a folder of PNG files, linear light (3, row, column) from 0 to 1."""
    found = [load_scene(name, color=True) for name in names]
    if folder is not None:
        from skimage.io import imread

        for file in sorted(folder.glob("*.png")):
            linear = linearize_srgb(np.asarray(imread(file)) / 255)
            found.append(torch.from_numpy(np.moveaxis(linear, -1, 0).astype(np.float32)))
    return found


def regions_of(images: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The white and the black fields of a chessboard over each photograph: regions that judge, and others."""
    fields: tuple[list[Tensor], list[Tensor]] = ([], [])
    for image in images:
        rows, columns = (max(1, side // REGION) for side in image.shape[1:])
        for row, strip in enumerate(image.tensor_split(rows, 1)):
            for column, region in enumerate(strip.tensor_split(columns, 2)):
                fields[(row + column) % 2].append(region)
    return fields


def patches(regions: Sequence[Tensor], n_scenes: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Patches (n, 3, size, size) in turn from each region, turned and mirrored at random, and their regions (n,)."""
    draws = torch.Generator().manual_seed(seed)
    found = torch.empty(n_scenes, 3, size, size)
    for index in range(n_scenes):
        region = regions[index % len(regions)]
        row, column = (int(torch.randint(side - size + 1, (), generator=draws)) for side in region.shape[1:])
        turns, mirrored = torch.randint(4, (2,), generator=draws).tolist()
        patch = torch.rot90(region[:, row : row + size, column : column + size], turns, (1, 2))
        found[index] = patch.flip(2) if mirrored % 2 else patch
    return found, torch.arange(n_scenes) % len(regions)


def camera(mosaic: Mosaic, scenes: Tensor, photons: float = PHOTONS, learn: tuple[str, ...] = ()) -> ImagingSystem:
    """The array before the sensor, behind the lens that all share."""
    lens = Camera(
        wavelength_nm=BAND_NM, f_number=F_NUMBER, pixel_um=PIXEL_UM, exposure_photons=photons, margin_pixels=MARGIN
    )
    filters = ColorFilterArray(mosaic.tile, mosaic.spectra, learn=learn)
    return ImagingSystem(ColorCamera(lens, filters), PoissonGaussianNoise(read_std=READ_ELECTRONS), scenes)


def light_of(system: ImagingSystem) -> float:
    """Mean photo-electrons per pixel."""
    with torch.no_grad():
        total = sum(float(system.encoder(part).double().sum()) for part in system.scenes.split(256))
        return total / (len(system.scenes) * system.encoder(system.scenes[:1]).numel())


def at_equal_light(arrays: Mapping[str, Mosaic], scenes: Tensor) -> dict[str, ImagingSystem]:
    """Each with the exposure that gives it the light of Bayer's array."""
    wanted = light_of(camera(arrays["Bayer"], scenes))
    return {
        name: camera(array, scenes, PHOTONS * wanted / light_of(camera(array, scenes)))
        for name, array in arrays.items()
    }


def target_of(scenes: Tensor) -> Tensor:
    """Mean light of each band on each pixel in view, without the lens."""
    return integrate_pixels(scenes, OVERSAMPLING)[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


def filters_of(system: ImagingSystem) -> Tensor:
    """Transmission (band, row, column) over the tile."""
    encoder = system.encoder
    assert isinstance(encoder, ColorCamera)
    return encoder.filters.transmission().detach().double()


def colour_condition(system: ImagingSystem) -> float:
    """Largest over smallest singular value of all pixels' spectra: how evenly the colours are told apart."""
    values = torch.linalg.svdvals(filters_of(system).flatten(1))
    return float(values[0] / values[-1])


def sampling_gap(system: ImagingSystem) -> float:
    """The farthest, pixels, that any pixel is from the pixels which see some band best."""
    tile = filters_of(system)
    tile = tile.repeat(1, *(math.ceil(24 / side) for side in tile.shape[1:]))[:, :24, :24]
    gaps = []
    for band in tile:
        share = band / tile.sum(0)
        distance = distance_transform_edt((share < 0.999 * share.max()).numpy())
        gaps.append(float(distance[8:16, 8:16].max()))
    return max(gaps)


def sensitivity(system: ImagingSystem) -> float:
    """Mean transmission."""
    return float(filters_of(system).mean())


def metrics(scene_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The traditional figures of an array."""
    return {
        "snr_db": standard_metrics(scene_shape)["snr_db"],
        "condition_number": standard_metrics(scene_shape)["condition_number"],
        "colour condition": colour_condition,
        "sampling gap": sampling_gap,
        "sensitivity": sensitivity,
    }


LOWER_IS_BETTER = ("condition_number", "colour condition", "sampling gap")


def order(random: Study, designs: Study, n_pixels: int) -> dict[str, dict[str, float]]:
    """Bits per pixel and PSNR at equal exposure, by the U-Net, in the published order."""
    found = {}
    for name, (study, design) in {
        "Bayer": (designs, START),
        "random": (random, "random"),
        TRAINED: (designs, TRAINED),
        DESIGNED: (designs, DESIGNED),
    }.items():
        rows = [row for row in study.result.rows if row.design == design]
        bits, psnr = PUBLISHED[name]
        found[name] = {
            "bits_per_pixel": float(np.mean([row.bits for row in rows])) / n_pixels,
            "psnr": float(np.mean([row.scores["psnr"] for row in rows])),
            "light": rows[0].light / n_pixels,
            "published_bits_per_pixel": bits,
            "published_psnr": psnr,
        }
    return found


def linear_scores(systems: Mapping[str, ImagingSystem], task: Reconstruction, groups: Tensor) -> dict[str, float]:
    """PSNR of the best linear estimate of each array, dB: regions of four folds in turn, one draw of the noise."""
    target = task.targets(next(iter(systems.values())).scenes)
    found = {}
    for name, (encoder, noise, scenes) in systems.items():
        with torch.no_grad():
            mean = torch.cat([encoder(part) for part in scenes.split(64)])
        assert isinstance(noise, PoissonGaussianNoise)
        measured = noise.sample(mean, torch.Generator().manual_seed(3))
        estimate = torch.empty_like(target)
        for fold in range(4):
            test = groups % 4 == fold
            draws = torch.Generator().manual_seed(4)
            fitted = LinearDecoder().fit(measured[~test], target[~test], groups=groups[~test], generator=draws)
            estimate[test] = fitted(measured[test])
        found[name] = task.score(estimate, target, data_range=1.0)["psnr"]
    return found


def order_table(found: Mapping[str, Mapping[str, float]]) -> str:
    """The published order, and ours."""
    heads = ("at equal exposure", "bits per pixel", "PSNR (dB)", "electrons per pixel", "published", "published (dB)")
    rows = tuple(
        (
            name,
            f"{row['bits_per_pixel']:.3f}",
            f"{row['psnr']:.2f}",
            f"{row['light']:.0f}",
            f"{row['published_bits_per_pixel']:.2f}",
            f"{row['published_psnr']:.2f}",
        )
        for name, row in found.items()
    )
    return report.to_text(report.Table("", heads, rows))


def picture(tiles: Mapping[str, Tensor]) -> Figure:
    """What each array (3, row, column) passes, as colours."""
    n_columns = 6
    n_rows = math.ceil(len(tiles) / n_columns)
    drawn = Figure(figsize=(1.7 * n_columns, 1.9 * n_rows), layout="constrained")
    axes = drawn.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, tile) in zip(axes, tiles.items(), strict=False):
        times = [math.ceil(SIZE / side) for side in tile.shape[1:]]
        axis.imshow(tile.repeat(1, *times)[:, :SIZE, :SIZE].movedim(0, -1).clamp(0, 1).numpy())
        axis.set_title(name, fontsize=8)
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the three parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for tables, figures and JSON")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with natural_rgb/*.png")
    parser.add_argument("--quick", action="store_true", help="few scenes, steps and seeds, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3, help="splits, noise draws and decoders per design")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    run(given.out, data=given.data, quick=given.quick, n_seeds=given.seeds)


def run(out: Path, *, data: Path = DATA, quick: bool = False, n_seeds: int = 3) -> tuple[Study, Study, Comparison]:
    """The list at equal light, the list at equal exposure, and the designs; all files go into `out`."""
    folder = data / "natural_rgb"
    photographs_in = folder if folder.is_dir() else None
    names = [*BUNDLED, *(() if photographs_in is None else sorted(file.stem for file in folder.glob("*.png")))]
    pixels, n_scenes, n_seeds = (8, 80, 1) if quick else (SIZE, N_SCENES, n_seeds)
    side = OVERSAMPLING * (pixels + 2 * MARGIN)
    judging, designing = regions_of(photographs(BUNDLED, photographs_in))
    scenes, groups = patches(judging, n_scenes, side, seed=1)
    design_scenes, design_groups = patches(designing, n_scenes, side, seed=2)
    task = Reconstruction(target_of(scenes), data_range=1.0)
    shape = (3, side, side)
    arrays = mosaics()
    common = {
        "quick": quick,
        "out": out,
        "groups": groups,
        "decoder": DECODER,
        "method": "gaussian_mixture",
    }
    extra = {"scenes": f"{len(judging)} regions of the photographs {', '.join(names)}"}
    print(f"judged on {extra['scenes']}; designed on {len(designing)} others\n")
    equal_light = run_study(
        "color_filters",
        at_equal_light(arrays, scenes),
        task,
        metrics(shape),
        n_seeds=n_seeds,
        lower_is_better=LOWER_IS_BETTER,
        extra=extra,
        **common,
    )
    bits, linear = equal_light.result.mean("bits"), linear_scores(at_equal_light(arrays, scenes), task, groups)
    rank = float(spearmanr([bits[name] for name in arrays], [linear[name] for name in arrays]).statistic)
    text = f"equal light, best linear estimate: Spearman of its PSNR with the bits {rank:.2f}\n" + "".join(
        f"  {name}: {bits[name]:.1f} bits, {linear[name]:.2f} dB\n" for name in arrays
    )
    print(text)
    replace_file(out / "color_filters_linear.txt", text.encode())
    replace_file(out / "color_filters_linear.json", json.dumps({"spearman": rank, "psnr": linear}, indent=2).encode())
    exposure = run_study(
        "color_filters_equal_exposure",
        {name: camera(array, scenes) for name, array in arrays.items()},
        task,
        metrics(shape),
        n_seeds=1,
        lower_is_better=LOWER_IS_BETTER,
        bound=False,
        extra=extra,
        **common | {"decoder": LinearDecoder()},
    )
    random = run_study(
        "color_filters_random",
        {"random": camera(arrays["random RGBW"], scenes)},
        task,
        {},
        n_seeds=n_seeds,
        bound=False,
        **common,
    )
    comparison, designs = compare_designs(
        "color_filters",
        camera(free_bayer(), scenes, learn=("spectra",)),
        design_scenes,
        task,
        dataclasses.replace(SETTINGS, batch_size=min(256, n_scenes)),
        design_task=Reconstruction(target_of(design_scenes), data_range=1.0),
        design_groups=design_groups,
        n_seeds=n_seeds,
        **common,
    )
    found = order(random, designs, pixels**2)
    text = order_table(found)
    print(text)
    replace_file(out / "color_filters_order.txt", text.encode())
    replace_file(out / "color_filters_order.json", json.dumps(found, indent=2).encode())
    drawn = {name: filters_of(camera(array, scenes[:1])) for name, array in arrays.items()}
    replace_file(out / "color_filters_arrays.png", report.to_png(picture(drawn)))
    return equal_light, exposure, comparison


if __name__ == "__main__":
    main()
