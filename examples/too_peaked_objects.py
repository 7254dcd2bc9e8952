"""Mistake: a set of scenes with few members, or with one that outweighs all. The bits then count the set.

    python examples/too_peaked_objects.py [--out picture.png]

Information is about the scenes that were given. Of K scenes no optics can say more than log2 K bits, so that a good
lens and one stopped down look nearly alike.
"""

import argparse
import math

import torch
from matplotlib.figure import Figure

import bitlens
from bitlens.datasets import scene_patches


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", help="file for a picture")
arguments = parser.parse_args()
torch.set_num_threads(1)

N_IMAGES, FEW = 500, 16
cameras = {
    design: bitlens.systems.camera(design, photons=100, margin_pixels=4) for design in ("in_focus", "small_aperture")
}
varied = scene_patches(N_IMAGES, cameras["in_focus"].encoder.scene_size(5), generator=seed(0)).scenes
# 16 scenes over and over, and one scene in seven images of ten.
which = torch.randint(0, FEW, (N_IMAGES,), generator=seed(1))
often = torch.rand(N_IMAGES, generator=seed(2)) < 0.7
sets = {
    f"mistake: {FEW} scenes": varied[which],
    "mistake: one scene in 70 % of the images": torch.where(often[:, None, None, None], varied[:1], varied),
    "right: every image another scene": varied,
}
bits: dict[str, list[float]] = {}
for name, scenes in sets.items():
    for design, (encoder, noise, _) in cameras.items():
        with torch.no_grad():
            mean = encoder(scenes).double()
        estimate = bitlens.estimate_information(noise.sample(mean, seed(3)), noise, mean=mean, generator=seed(4))
        bits.setdefault(name, []).append(estimate.bits)
        print(f"{name}, {design}: {estimate.bits:.1f} +- {estimate.stderr_bits:.1f} bits per image ({estimate.bound})")
        for warning in estimate.warnings:
            print(f"  bitlens says: {warning}")
print(f"log2 {FEW} = {math.log2(FEW):.1f} bits are all that {FEW} scenes have")
for name, (good, bad) in bits.items():
    print(f"{name}: the lens in focus is ahead by {good - bad:.1f} bits")

if arguments.out:
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.add_subplot()
    for place, design in enumerate(cameras):
        rows = [row + 0.4 * place for row in range(len(bits))]
        axes.barh(rows, [values[place] for values in bits.values()], height=0.38, label=design)
    axes.set_yticks([row + 0.2 for row in range(len(bits))], list(bits))
    axes.axvline(math.log2(FEW), linestyle=":", color="k", label=f"log2 {FEW}")
    axes.set_xlabel("bits per image")
    axes.legend(frameon=False)
    figure.savefig(arguments.out)
