"""Lensless camera: one lens, several lenslets, diffusers and masks, few photons and many.

    python benchmarks/studies/lensless.py [--data FOLDER] [--out FOLDER] [--quick] [--seeds N]

Equal in all designs is the light on the sensor: each is exposed until a pixel has 20, or 320, photo-electrons in the
mean. The sensor is hardly larger than a lens's image and its pixels twice the scene's samples, so that several
lenslets see between each other's pixels, and what their images share of the sensor costs them shot noise.

The list was not changed after its scores, though some masks like these had been scored before: a lens in and out of
focus, more and more lenslets (at half and at whole pixels, in a grid and at random), diffusers of small to large
bumps, an amplitude mask, a pinhole and nothing at all. Scenes are handwritten digits at random places.

Which estimate can be trusted, one pair of masks tells: four lenslets a whole number of pixels apart make four equal
images of a quarter of the light each, no more than one lens's image dealt out to four. By the Gaussian the four carry
about as much as the one, but both some three times too much; by a Gaussian copula, which bounds one lens much lower,
they carry far more than the one, which cannot be: what is too much in its bits differs from mask to mask.
`CausalDensity`, made for such images, is lower than both; by it the four carry as much as the one at few photons, and a
fifth more at many, so that some of the difference between masks is still its own. By it the masks are ranked.

What remains at few photons: the seven best masks lie within a seventh by their bits, and a finer density (also of what
is left when light is cut off at two levels, fitted to three times the scenes) lowers nine and five lenslets half as
much again as one and two, two fifths of the lead that the former have in bits and not in error. So the order of these
is not known to that accuracy, and the Gaussian's better ranking there is no sign of better bits: its gain is that of a
linear decoder, and by the pair above it is far from the truth. Diffusers are bounded lower, by a sixth to a quarter, by
a mixture of Gaussians fitted to tens of thousands of scenes and sent through each mask, which leaves their order alone.

The decoder is a network that refines a linear estimate, since a linear one does not know that digits are sparse: the
network gains decibels for every mask and hardly changes their order, nor do more steps and channels. No scene is cut:
images of lenslets on the grid lie on the sensor whole.

Designed are the places of four lenslets, which begin where a grid of whole pixels puts them, but for errors of
mounting: all see the same points of the scene. The design climbs the Gaussian information, whose height is wrong but
whose slope is not, in batches of more scenes than pixels; `CausalDensity` judges on other scenes, paired.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _design_study import DESIGNED, START, Comparison, Settings, compare_designs
from _lensless_bits import Bits, CausalDensity, bits
from _lensless_camera import (
    FEW,
    HALF_PIXEL_UM,
    MANY,
    MASK,
    READ_ELECTRONS,
    SCENE,
    LenslessSensor,
    autocorrelation_peak,
    cameras,
    digits,
    lenslets,
    masks,
    mounted,
)
from _validation_study import standard_metrics
from matplotlib.figure import Figure
from torch import Tensor

from bitlens import plots, report
from bitlens._files import replace_file
from bitlens.densities import Density, GaussianCopulaDensity, StationaryGaussianDensity
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.validation import Decoder, LinearDecoder, Reconstruction, UNetDecoder, ValidationResult, validate

ROOT = Path(__file__).resolve().parents[2]
ONE, FOUR = "one lens", "four, whole pixels apart"
SWEPT = (ONE, "two lenslets", "four, half pixels apart", "nine lenslets", "diffuser, bumps of 60 um")
LEVELS = (5.0, 20.0, 80.0, 320.0)
# Over the last fifth of them the validation loss falls by some 2 %.
END_TO_END_STEPS = 800


class Sizes(NamedTuple):
    """Numbers of scenes, and which density gives the bits.

    `fitted` scenes fit a density and `scored` ones, a part for each seed, are what it is judged by; `decoded` train
    and test decoders; `swept` are those of each light; `designed` make the design.
    """

    fitted: int
    scored: int
    decoded: int
    swept: int
    designed: int
    density: Density
    network: UNetDecoder


FULL = Sizes(
    8000, 1500, 4000, 5000, 4000, CausalDensity(READ_ELECTRONS), UNetDecoder(channels=8, n_steps=150, initial="linear")
)
# Of few images, and of other scenes, a density with fewer numbers.
QUICK = Sizes(100, 40, 140, 60, 60, StationaryGaussianDensity(), UNetDecoder(channels=8, n_steps=3, initial="linear"))


def once(metric: Callable[[ImagingSystem], float]) -> Callable[[ImagingSystem], float]:
    """`metric`, computed once for each mask: all that differs at another light is a factor."""
    known: dict[float, float] = {}

    def found(system: ImagingSystem) -> float:
        encoder = system.encoder
        assert isinstance(encoder, LenslessSensor)
        assert encoder.fixed is not None
        mark = round(float(encoder.fixed.square().sum().sqrt() / encoder.photons), 9)
        if mark not in known:
            known[mark] = metric(system)
        return known[mark]

    return found


def with_bits(result: ValidationResult, found: Mapping[str, Bits], others: Mapping[str, Bits]) -> ValidationResult:
    """`found` in place of the Gaussian's bits, which become a metric as the copula's, `others`, do.

    Each seed has its own part of the scored images.
    """
    rows = []
    for row in result.rows:
        part = Bits(found[row.design].rows[row.seed :: result.n_seeds])
        value, stderr = part.mean, part.stderr
        rows.append(replace(row, bits=value, upper_bits=value, stderr_bits=stderr, lower_bits=None, method="causal"))
    metrics = {"gaussian_bits": result.mean("bits"), "copula_bits": {name: each.mean for name, each in others.items()}}
    return replace(result, rows=tuple(rows), metrics=dict(result.metrics) | metrics)


def write(name: str, result: ValidationResult, out: Path, extra: Any) -> None:
    """Print the table; `name`.txt, .png and .json in `out`."""
    text = f"{name}\n\n{result.table()}\n"
    print(text)
    found = result.to_dict() | {
        "advantages": [asdict(result.advantage(metric)) for metric in result.metrics],
        "extra": extra,
    }
    replace_file(out / f"{name}.txt", text.encode())
    replace_file(out / f"{name}.png", report.to_png(plots.validation(result, title=name)))
    replace_file(out / f"{name}.json", json.dumps(found, indent=2).encode())


def sweep(scenes: Tensor, out: Path, density: Density, levels: tuple[float, ...]) -> dict[str, list[float]]:
    """Bits of some masks for each light, and which mask carries most."""
    found: dict[str, list[float]] = {name: [] for name in SWEPT}
    chosen = {name: mask for name, mask in masks().items() if name in SWEPT}
    for photons in levels:
        for name, system in cameras(scenes, photons, chosen).items():
            found[name].append(bits(system, density, len(scenes) // 5).mean)
    heads = ("photo-electrons a pixel", *(f"{level:g}" for level in levels))
    rows = [(name, *(f"{value:.0f}" for value in values)) for name, values in found.items()]
    best = [max(found, key=lambda name: found[name][index]) for index in range(len(levels))]
    text = report.to_text(report.Table("", heads, tuple(rows))) + f"\nmost bits: {', '.join(best)}\n"
    print(text)
    replace_file(out / "lensless_light.txt", text.encode())
    drawn = Figure(figsize=(8, 4), layout="constrained")
    axis = drawn.subplots()
    for name, values in found.items():
        axis.plot(levels, [value / found[ONE][k] for k, value in enumerate(values)], "o-", label=name)
    axis.set(xscale="log", xlabel="photo-electrons per pixel", ylabel="bits relative to one lens")
    axis.set_xticks(levels, [f"{level:g}" for level in levels])
    axis.minorticks_off()
    drawn.legend(loc="outside right center", fontsize=8)
    replace_file(out / "lensless_light.png", report.to_png(drawn))
    return found


def show_masks(out: Path) -> None:
    """Every relief or amplitude with the PSF that it makes."""
    found = masks()
    drawn = Figure(figsize=(2 * len(found) / 2, 9), layout="constrained")
    axes = drawn.subplots(4, (len(found) + 1) // 2)
    for axis in axes.ravel():
        axis.set_axis_off()
    for index, (name, mask) in enumerate(found.items()):
        block, column = divmod(index, axes.shape[1])
        encoder = LenslessSensor(mask, 1.0, torch.ones(SCENE, SCENE))
        with torch.no_grad():
            psf = encoder.psf()
        relief = mask.amplitude if float(mask.amplitude.min()) < 1 else mask.height_um
        axes[2 * block, column].imshow(relief.numpy(), cmap="gray")
        axes[2 * block, column].set_title(name.replace(", ", ",\n"), fontsize=7)
        axes[2 * block + 1, column].imshow(psf.sqrt().numpy(), cmap="inferno")
    drawn.suptitle("masks (relief or amplitude), and below each the root of its PSF")
    replace_file(out / "lensless_masks.png", report.to_png(drawn))


class Gain(NamedTuple):
    """Bits gained over the start, the error that of the paired difference on the same digits and draws of noise."""

    bits: float
    stderr_bits: float

    @property
    def sigmas(self) -> float:
        """Gain over its standard error; 0 for a design that is the start."""
        return self.bits / self.stderr_bits if self.stderr_bits > 0 else 0.0


def design(scenes: Tensor, out: Path, sizes: Sizes, *, quick: bool, seeds: int) -> tuple[Comparison, dict[str, Gain]]:
    """Places of four lenslets that began on a grid of whole pixels, by information and end to end, at many photons."""
    judged, given = scenes[: -sizes.designed], scenes[-sizes.designed :]
    encoder = LenslessSensor(lenslets(mounted()), MANY, scenes.double().mean(dim=0), learn=True)
    start = ImagingSystem(encoder, PoissonGaussianNoise(read_std=READ_ELECTRONS), judged[: sizes.decoded])
    settings = Settings(
        parameters=("places_um",),
        n_steps=8 if quick else 80,
        batch_size=16 if quick else 500,
        objective="gaussian",
        # Bits of the designs are taken below, by the density of the rankings.
        judge_method="known_channel" if quick else "gaussian",
        end_to_end_steps=END_TO_END_STEPS,
        end_to_end_rate={"places_um": 0.05 * encoder.parameter_scale["places_um"]},
    )
    comparison, _ = compare_designs(
        "lensless",
        start,
        given,
        Reconstruction(start.scenes, data_range=1.0),
        settings,
        quick=quick,
        out=out,
        design_task=Reconstruction(given, data_range=1.0),
        decoder=sizes.network,
        n_seeds=1 if quick else seeds,
        method=settings.judge_method,
    )
    found = {
        name: bits(system._replace(scenes=judged), sizes.density, sizes.scored)
        for name, system in comparison.systems.items()
    }
    gains: dict[str, Gain] = {}
    lines = [f"lensless by the causal density, {sizes.scored} digits that no step and no fit saw:"]
    for name, each in found.items():
        difference = Bits(each.rows - found[START].rows)
        gain = Gain(difference.mean, difference.stderr)
        lines.append(f"  {name}: {each.mean:.1f} bits")
        if name != START:
            gains[name] = gain
            lines[-1] += f", {gain.bits:+.1f} +- {gain.stderr_bits:.1f} ({gain.sigmas:.1f} standard errors)"
    text = "\n".join(lines) + "\n"
    print(text)
    replace_file(out / "lensless_gain.txt", text.encode())
    show_places({name: system.encoder.places_um.detach() for name, system in comparison.systems.items()}, out)
    return comparison, gains


def show_places(found: Mapping[str, Tensor], out: Path) -> None:
    """Middles of the lenslets on the mask, and where each lies within a pixel."""
    drawn = Figure(figsize=(9, 4.5), layout="constrained")
    whole, within = drawn.subplots(1, 2)
    pixel = 2 * HALF_PIXEL_UM
    half = 0.5 * MASK * HALF_PIXEL_UM
    for (name, places), mark in zip(found.items(), "os^", strict=False):
        row, column = places.mT.numpy()
        whole.plot(column, row, mark, label=name, alpha=0.7)
        # From the first lenslet: a common shift moves all images alike.
        apart = (((place - place[0]) / pixel + 0.5) % 1 - 0.5 for place in (column, row))
        within.plot(*apart, mark, alpha=0.7)
    whole.set(xlim=(-half, half), ylim=(half, -half), aspect="equal", xlabel="column on the mask (um)")
    whole.set(ylabel="row (um)", title="middles of lenslets")
    within.set(xlim=(-0.55, 0.55), ylim=(0.55, -0.55), aspect="equal", title="from the first one, less whole pixels")
    within.set(xlabel="column (pixels)", ylabel="row (pixels)")
    drawn.legend(loc="outside lower center", ncols=3, fontsize=8)
    replace_file(out / "lensless_places.png", report.to_png(drawn))


def run(out: Path, data: Path, *, quick: bool, seeds: int) -> dict[str, Any]:
    """Masks, both rankings, the light between them, and the design; what the summary file says."""
    out.mkdir(parents=True, exist_ok=True)
    sizes = QUICK if quick else FULL
    seeds = 1 if quick else seeds
    every, source = digits(data, sizes.fitted + sizes.scored + sizes.designed)
    scenes = every[: sizes.fitted + sizes.scored]
    decoded = scenes[: sizes.decoded]
    print(f"scenes: {source}\n")
    show_masks(out)
    found: dict[str, Any] = {"scenes": source}
    metrics = standard_metrics((1, SCENE, SCENE), samples_per_pixel=2) | {"autocorrelation_peak": autocorrelation_peak}
    metrics |= {name: once(metric) for name, metric in metrics.items() if name != "snr_db"}

    def rank(photons: float) -> None:
        systems = cameras(scenes, photons, masks())
        carried = {name: bits(system, sizes.density, sizes.scored) for name, system in systems.items()}
        # The copula takes long, and its bits hardly change with more.
        fewer = scenes[: sizes.decoded] if quick else scenes[: sizes.scored + 1500]
        others = {
            name: bits(system._replace(scenes=fewer), GaussianCopulaDensity(), min(sizes.scored, len(fewer) // 3))
            for name, system in systems.items()
        }
        shown = {name: system._replace(scenes=decoded) for name, system in systems.items()}
        task = Reconstruction(decoded, data_range=1.0)
        extra = {"scenes": source, "equal": "light on the sensor", "photo_electrons_per_pixel": photons}
        name = f"lensless_{photons:g}_photons"
        decoders: dict[str, Decoder] = {name: sizes.network, f"{name}_linear": LinearDecoder()}
        for each, decoder in decoders.items():
            result = validate(
                shown,
                task,
                decoder=decoder,
                n_seeds=seeds,
                method="known_channel" if quick else "gaussian",
                metrics=metrics,
                generator=torch.Generator().manual_seed(0),
                checkpoint=None if quick else out / f"{each}_rows.json",
            )
            result = with_bits(result, carried, others)
            write(each, result, out, extra)
            scores = {score: result.rank_correlation("psnr", by=score).spearman for score in ("bits", *result.metrics)}
            found[each] = {
                "light": {row.design: row.light for row in result.rows},
                "bits": {design: value.mean for design, value in carried.items()},
                "psnr": result.mean("psnr"),
                "spearman": scores,
            }
        pairs = {
            "causal": {each: carried[each].mean for each in (ONE, FOUR)},
            "copula": {each: others[each].mean for each in (ONE, FOUR)},
            "gaussian": {each: result.metrics["gaussian_bits"][each] for each in (ONE, FOUR)},
        }
        found[name]["one image dealt out to four"] = pairs
        text = f"{photons:g} photons, bits of {ONE}, and of {FOUR}, which see no more:\n" + "".join(
            f"  {density}: {pair[ONE]:.0f}, {pair[FOUR]:.0f}\n" for density, pair in pairs.items()
        )
        print(text)
        replace_file(out / f"{name}_pair.txt", text.encode())

    comparison, gains = design(every, out, sizes, quick=quick, seeds=seeds)
    found["design"] = comparison.to_dict() | {
        "gains": {name: gain._asdict() | {"sigmas": gain.sigmas} for name, gain in gains.items()},
        "score_gain": comparison.score_gain,
        "designed": DESIGNED,
    }
    for photons in (FEW, MANY):
        rank(photons)
    levels = LEVELS[1::2] if quick else LEVELS
    found["light"] = {"levels": levels, "bits": sweep(scenes[: sizes.swept], out, sizes.density, levels)}
    replace_file(out / "lensless.json", json.dumps(found, indent=2).encode())
    return found


def main() -> None:
    """Everything of the study, and its files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for tables, figures and JSON")
    parser.add_argument("--quick", action="store_true", help="few scenes, steps and seeds, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3, help="splits, noise draws and decoders per design")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder that holds mnist/")
    given = parser.parse_args()
    torch.set_num_threads(1)
    run(given.out, given.data, quick=given.quick, seeds=given.seeds)


if __name__ == "__main__":
    main()
