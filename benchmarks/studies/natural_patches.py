"""Do 1000 and 4000 patches of photographs give the same bits, by noisy data alone?

Draws of 4000 patches under shot and read noise, each estimated as a whole and as four sets of 1000: the mean difference
over draws, in bits per pixel (at most 0.02), with its standard error; the spread of single estimates beside it.

    python benchmarks/studies/natural_patches.py [--draws 4] [--side 16] [--photons 200] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from tqdm import tqdm

import bitlens
from bitlens.datasets import scene_patches

MOST_DIFFERENCE = 0.02
ALL, PARTS = 4000, 4


def one_draw(seed: int, side: int, photons: float) -> tuple[float, list[float], float]:
    """Bits per pixel of all patches and of each part, and the CPU seconds of all."""
    noise = bitlens.PoissonGaussianNoise(read_std=2.0)
    scenes = scene_patches(ALL, side, mean=1.0, generator=torch.Generator().manual_seed(seed)).scenes[:, 0]
    order = torch.randperm(ALL, generator=torch.Generator().manual_seed(seed + 1))
    measured = noise.sample(photons * scenes[order].double(), torch.Generator().manual_seed(seed + 2)).double()

    def bits(images: torch.Tensor) -> float:
        return bitlens.estimate_information(
            images, noise, generator=torch.Generator().manual_seed(seed + 3)
        ).bits_per_pixel

    begin = time.process_time()
    whole = bits(measured)
    seconds = time.process_time() - begin
    return whole, [bits(part) for part in measured.chunk(PARTS)], seconds


def main() -> None:
    """Print each draw and the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--side", type=int, default=16, help="pixels")
    parser.add_argument("--photons", type=float, default=200.0, help="photo-electrons per pixel on average")
    parser.add_argument("--json", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    table = []
    for draw in tqdm(range(arguments.draws), disable=None):
        whole, parts, seconds = one_draw(10 * draw, arguments.side, arguments.photons)
        table.append({"all": whole, "parts": parts, "cpu_seconds": seconds})
        tqdm.write(
            f"N = {ALL}: {whole:.4f} bits per pixel in {seconds:.1f} CPU s; N = {ALL // PARTS}: "
            + ", ".join(f"{value:.4f}" for value in parts)
        )
    differences = torch.tensor([sum(row["parts"]) / PARTS - row["all"] for row in table], dtype=torch.float64)
    stderr = float(differences.std()) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    mean = float(differences.mean())
    print(
        f"N = {ALL // PARTS} less N = {ALL}: {mean:+.4f} +- {stderr:.4f} bits per pixel"
        f"{'' if abs(mean) <= MOST_DIFFERENCE else '  MISSED'}"
    )
    if arguments.json:
        temporary = arguments.json.with_suffix(".part")
        temporary.write_text(json.dumps({"draws": table, "difference": mean, "stderr": stderr}, indent=1))
        temporary.replace(arguments.json)


if __name__ == "__main__":
    main()
