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
3. At equal exposure, two starts, named beforehand: Bayer's array, and a random draw of 4 x 4 pixels, half of it clear.
   The transmission of each pixel in each band is free between 0 and that of a clear filter, designed by information
   alone, and trained end to end with the same decoder, at the best of nine pairs of rates. The lens is fixed, so that
   both work on what it gives the pixels. Then starts and designs once more, with the light of the one that gets least.

Regions of 128 samples that judge are not those designed on; splits and errors go by region. For the designs there are
4000 patches on either side, so that the error of a gain is small.

Found: at equal light the bits rank the arrays by the PSNR of the demosaicked photographs, above every traditional
figure; the condition number of the whole camera, lens and pixels included, comes close, and is ahead by the mean
squared error, which the few brightest patches decide. The array of the coarsest fields stands apart: worse than its
bits. At equal exposure clear pixels and complementary dyes gain bits by their light, and the error does not follow.

The closed form for Gaussians suits as the objective, though photographs are not Gaussian and it overstates their bits
by half: it draws no noise and has nothing to fit, so that the steps climb one function of the design, and a mixture of
Gaussians fitted to other regions sees the gain. Climbing such a mixture itself gains a quarter of it at small steps and
loses bits at larger ones. Its slope at the start is the same (cosine 0.9); later, a mixture fitted some steps before is
a loose bound for the design of now, and the steps climb the looseness: to 145 bits by the objective where a new fit
finds 48. The lower bound of a known channel has its ceiling, log K of K scenes, far below these bits.

By bits the order of Pinkard et al. 2024 (arXiv 2405.20559) holds: Bayer < random < end to end < information. By error
the random array stays behind Bayer's, and both ways to a design are equal. From Bayer's array the error falls because
the design takes more light: at equal light it has more bits, yet a larger error. With a decoder's rate of 0.01 training
end to end never leaves Bayer's array. The closed form takes all patches in each step, and so more memory than training
with 32 of them, but a third of the time.

    python benchmarks/studies/color_filters.py [--quick] [--out DIR] [--seeds N] [--data DIR]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from _color_filter_arrays import LOWER_IS_BETTER, Mosaic, filters_of, metrics, mosaics, picture
from _color_filter_designs import READ_ELECTRONS, designs
from _color_filter_scenes import MARGIN, OVERSAMPLING, PHOTONS, lens, patches, photographs, regions_of, target_of
from _design_study import Comparison
from _validation_study import Study, run_study
from scipy.stats import spearmanr
from torch import Tensor

from bitlens import report
from bitlens._files import replace_file
from bitlens.encoders import ColorFilterArray
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.systems.color_camera import ColorCamera
from bitlens.validation import LinearDecoder, Reconstruction, UNetDecoder

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
# Patches of N_SCENES for the list; designs and their judge have more, so that a gain has a small error.
SIZE, N_SCENES, N_DESIGN_SCENES = 8, 1000, 4000
BUNDLED = ("astronaut", "chelsea", "china", "coffee", "flower", "motorcycle", "rocket")
DECODER = UNetDecoder(n_steps=200)


def camera(mosaic: Mosaic, scenes: Tensor, photons: float = PHOTONS) -> ImagingSystem:
    """The array before the sensor, behind the lens that all share."""
    filters = ColorFilterArray(mosaic.tile, mosaic.spectra)
    return ImagingSystem(ColorCamera(lens(photons), filters), PoissonGaussianNoise(read_std=READ_ELECTRONS), scenes)


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


def run(
    out: Path, *, data: Path = DATA, quick: bool = False, n_seeds: int = 3
) -> tuple[Study, Study, dict[str, Comparison]]:
    """The list at equal light, the list at equal exposure, and the designs; all files go into `out`."""
    folder = data / "natural_rgb"
    photographs_in = folder if folder.is_dir() else None
    names = [*BUNDLED, *(() if photographs_in is None else sorted(file.stem for file in folder.glob("*.png")))]
    n_scenes, n_design_scenes, n_seeds = (80, 120, 1) if quick else (N_SCENES, N_DESIGN_SCENES, n_seeds)
    side = OVERSAMPLING * (SIZE + 2 * MARGIN)
    judging, designing = regions_of(photographs(BUNDLED, photographs_in))
    scenes, groups = patches(judging, n_scenes, side, seed=1)
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
    comparisons = designs(
        patches(judging, n_design_scenes, side, seed=3),
        patches(designing, n_design_scenes, side, seed=2),
        quick=quick,
        out=out,
        n_seeds=n_seeds,
    )
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
    drawn = {name: filters_of(camera(array, scenes[:1])) for name, array in arrays.items()}
    replace_file(out / "color_filters_arrays.png", report.to_png(picture(drawn)))
    return equal_light, exposure, comparisons


if __name__ == "__main__":
    main()
