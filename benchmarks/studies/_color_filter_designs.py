"""Colour filter arrays designed by information and end to end, from two starts, and the order of what comes out."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _color_filter_arrays import Mosaic, filters_of, free, mosaics, picture, random_start
from _color_filter_scenes import lens, target_of
from _design_study import DESIGNED, START, TRAINED, Comparison, Settings, compare_designs
from _end_to_end_tuning import costs, tuned
from _validation_study import Study, run_study
from torch import Tensor

from bitlens import report
from bitlens._files import replace_file
from bitlens.design import Box
from bitlens.encoders import ColorFilterArray
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.validation import Reconstruction, UNetDecoder

READ_ELECTRONS = 2.4
DECODER = UNetDecoder(n_steps=300)
# What an array may be: each pixel passes of each band at most what a clear filter does.
SETTINGS = Settings(
    parameters=("spectra",),
    constraints={"spectra": Box(0.0, 0.95)},
    n_steps=150,
    objective="gaussian",
    learning_rate={"spectra": 0.03},
    judge_method="gaussian_mixture",
    end_to_end_steps=2000,
)
# Rates of encoder and decoder that training end to end may have, and steps at each pair of them.
RATES, RATE_STEPS = ((0.01, 0.03, 0.1), (1e-3, 3e-3, 1e-2)), 1000
# Bits per pixel and PSNR, dB, at 1000 photons: Pinkard et al. 2024, arXiv 2405.20559.
PUBLISHED = {
    "Bayer": (0.91, 42.19),
    "random": (1.10, 42.48),
    TRAINED: (1.17, 42.58),
    DESIGNED: (1.21, 42.96),
}


def starts() -> dict[str, Mosaic]:
    """Tiles of 4 x 4 pixels, each with a spectrum of its own: Bayer's array, and a random one, half of it clear."""
    return {"Bayer": free(mosaics()["Bayer"]), "random": free(random_start())}


def behind_lens(scenes: Tensor) -> Tensor:
    """Photo-electrons (n, band, row, column) that clear pixels would count: the same for every array."""
    through = lens()
    with torch.no_grad():
        return torch.cat([through(part) for part in scenes.split(256)])


def before_pixels(array: Mosaic, light: Tensor, learn: tuple[str, ...] = ()) -> ImagingSystem:
    """The array before the pixels, the light behind the lens as its scenes."""
    filters = ColorFilterArray(array.tile, array.spectra, learn=learn)
    return ImagingSystem(filters, PoissonGaussianNoise(read_std=READ_ELECTRONS), light)


def designs(
    judging: tuple[Tensor, Tensor], designing: tuple[Tensor, Tensor], *, quick: bool, out: Path, n_seeds: int
) -> dict[str, Comparison]:
    """Designs from each start, judged on the scenes and regions `judging`; tables, figures and JSON go into `out`."""
    (scenes, groups), (design_scenes, design_groups) = judging, designing
    light, design_light = behind_lens(scenes), behind_lens(design_scenes)
    task = Reconstruction(target_of(scenes), data_range=1.0)
    design_task = Reconstruction(target_of(design_scenes), data_range=1.0)
    common: dict[str, Any] = {"quick": quick, "out": out, "groups": groups, "n_seeds": n_seeds, "decoder": DECODER}
    decoder = UNetDecoder(channels=4, n_steps=8) if quick else DECODER
    rates = tuple(values[:1] for values in RATES) if quick else RATES
    # The closed form draws no noise: of all scenes it is one function of the design.
    settings = dataclasses.replace(SETTINGS, batch_size=len(design_light))
    settings = tuned(
        "color_filters",
        before_pixels(starts()["Bayer"], light, ("spectra",)),
        design_light,
        design_task,
        design_groups,
        decoder,
        settings,
        rates,  # type: ignore[arg-type]
        n_steps=8 if quick else RATE_STEPS,
        out=out,
    )
    found: dict[str, Comparison] = {}
    studies: dict[str, Study] = {}
    for name, array in starts().items():
        title = f"color_filters_from_{name.lower()}"
        start = before_pixels(array, light, ("spectra",))
        found[name], studies[name] = compare_designs(
            title,
            start,
            design_light,
            task,
            settings,
            # Each training end to end starts a process of its own.
            design_task=None if quick and name != "Bayer" else design_task,
            design_groups=design_groups,
            method="gaussian_mixture",
            **common,
        )
        if name == "Bayer" and not quick:
            costs(title, start, design_light, design_task, design_groups, decoder, settings, found[name].cost, out=out)
    several = {
        "Bayer": found["Bayer"].systems[START],
        "random": found["random"].systems[START],
        f"{DESIGNED}, from Bayer": found["Bayer"].systems[DESIGNED],
        f"{DESIGNED}, from random": found["random"].systems[DESIGNED],
        f"{TRAINED}, from Bayer": found["Bayer"].systems[TRAINED],
    }
    least = min(_mean(system) for system in several.values())
    equal = {name: _dimmed(system, least / _mean(system)) for name, system in several.items()}
    run_study("color_filters_designs_equal_light", equal, task, {}, bound=False, method="gaussian_mixture", **common)
    ordered = order(studies["Bayer"], studies["random"], light[0, 0].numel())
    text = order_table(ordered)
    print(text)
    replace_file(out / "color_filters_order.txt", text.encode())
    replace_file(out / "color_filters_order.json", json.dumps(ordered, indent=2).encode())
    drawn = {
        f"{name}: {design}": filters_of(system)
        for name, comparison in found.items()
        for design, system in comparison.systems.items()
    }
    replace_file(
        out / "color_filters_designed_arrays.png", report.to_png(picture(drawn, n_columns=3, column_inches=2.6))
    )
    return found


def _mean(system: ImagingSystem) -> float:
    with torch.no_grad():
        return float(system.encoder(system.scenes).double().mean())


def _dimmed(system: ImagingSystem, share: float) -> ImagingSystem:
    """The array at an exposure of `share`, as filters that pass as much less."""
    encoder = system.encoder
    assert isinstance(encoder, ColorFilterArray)
    return before_pixels(Mosaic(encoder.tile, encoder.spectra.detach() * share), system.scenes)


def order(bayer: Study, random: Study, n_pixels: int) -> dict[str, dict[str, float]]:
    """Bits per pixel and PSNR at equal exposure, by the U-Net, in the published order."""
    found = {}
    for name, (study, design) in {
        "Bayer": (bayer, START),
        "random": (random, START),
        TRAINED: (bayer, TRAINED),
        DESIGNED: (bayer, DESIGNED),
        f"{TRAINED}, from random": (random, TRAINED),
        f"{DESIGNED}, from random": (random, DESIGNED),
    }.items():
        if design not in study.result.designs:
            continue
        rows = [row for row in study.result.rows if row.design == design]
        first = [row for row in bayer.result.rows if row.design == START]
        bits, psnr = PUBLISHED.get(name, (math.nan, math.nan))
        found[name] = {
            "bits_per_pixel": float(np.mean([row.bits for row in rows])) / n_pixels,
            "psnr": float(np.mean([row.scores["psnr"] for row in rows])),
            "light": rows[0].light / n_pixels,
        }
        for key, values in {
            "bits_per_pixel_above_bayer": [(a.bits - b.bits) / n_pixels for a, b in zip(rows, first, strict=True)],
            "psnr_above_bayer": [a.scores["psnr"] - b.scores["psnr"] for a, b in zip(rows, first, strict=True)],
        }.items():
            found[name][key] = float(np.mean(values))
            if len(values) > 1:
                found[name][f"{key}_stderr"] = float(np.std(values, ddof=1)) / math.sqrt(len(values))
        if name in PUBLISHED:
            found[name] |= {"published_bits_per_pixel": bits, "published_psnr": psnr}
    return found


def order_table(found: Mapping[str, Mapping[str, float]]) -> str:
    """The published order, and ours."""
    heads = (
        "at equal exposure",
        "bits per pixel",
        "above Bayer",
        "PSNR (dB)",
        "above Bayer",
        "electrons per pixel",
        "published",
        "published (dB)",
    )

    def above(row: Mapping[str, float], key: str, digits: int) -> str:
        error = f" ± {row[f'{key}_stderr']:.{digits}f}" if f"{key}_stderr" in row else ""
        return f"{row[key]:+.{digits}f}{error}"

    rows = tuple(
        (
            name,
            f"{row['bits_per_pixel']:.3f}",
            above(row, "bits_per_pixel_above_bayer", 3),
            f"{row['psnr']:.2f}",
            above(row, "psnr_above_bayer", 2),
            f"{row['light']:.0f}",
            f"{row['published_bits_per_pixel']:.2f}" if "published_psnr" in row else "",
            f"{row['published_psnr']:.2f}" if "published_psnr" in row else "",
        )
        for name, row in found.items()
    )
    return report.to_text(report.Table("", heads, rows))
