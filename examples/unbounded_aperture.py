"""Mistake: a quantity that is free to grow. Information has no maximum along it; the limits are part of the design.

    python examples/unbounded_aperture.py [--out picture.png]

Here the openings of a mask, which say that they are not negative and nothing about how far they may open.
"""

import argparse
from typing import ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import bitlens
from bitlens.datasets import scene_patches
from bitlens.design import Box, Energy


class Masked(nn.Module):
    """mean = 50 electrons x opening x scene on 6 x 6 pixels, an opening for each pixel."""

    # What its parameters may be, lower and upper end. Right: (0.0, 1.0), as openings of 1 pass all light there is.
    parameter_domain: ClassVar = {"opening": (0.0, None)}

    def __init__(self) -> None:
        super().__init__()
        self.opening = nn.Parameter(torch.full((6, 6), 0.5, dtype=torch.float64))

    def forward(self, scene: Tensor) -> Tensor:
        return 50.0 * self.opening * scene


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", help="file for a picture")
arguments = parser.parse_args()
torch.set_num_threads(1)
noise = bitlens.PoissonGaussianNoise(read_std=2.0)
scenes = scene_patches(300, 6, generator=torch.Generator().manual_seed(0)).scenes.double()

runs = {}
for name, n_steps, constraints in (
    ("mistake: no constraint", 60, None),
    ("mistake: no constraint, more steps", 180, None),
    ("right: at most open", 180, {"opening": Box(0.0, 1.0)}),
    ("right: half open on average", 180, {"opening": [Box(0.0, 1.0), Energy(0.5)]}),
):
    result = bitlens.optimize_design(
        Masked(),
        noise,
        scenes[:200],
        objective="gaussian",
        n_steps=n_steps,
        schedule="constant",
        constraints=constraints,
        judge_scenes=scenes[200:],
        generator=torch.Generator().manual_seed(1),
    )
    runs[name] = result
    opening = result.parameters["opening"]
    print(
        f"{name}: {result.before.bits:.1f} -> {result.after.bits:.1f} bits per image in {n_steps} steps, "
        f"opening up to {opening.max():.2f}, {opening.mean():.2f} on average"
    )
    for warning in result.warnings:
        print(f"  bitlens says: {warning}")

if arguments.out:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, result in runs.items():
        axes.plot([step.objective_bits for step in result.history], label=name)
    axes.set(xlabel="step", ylabel="objective (bits per image)")
    axes.legend(frameon=False)
    figure.savefig(arguments.out)
