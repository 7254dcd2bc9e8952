"""Which quarter of the lines of k-space to measure: bits of Cartesian masks against reconstruction.

    python benchmarks/studies/mri_mask.py [--quick] [--out FOLDER] [--data FOLDER] [--seeds N]

All masks take a quarter of the lines at one time per line (averaging a line takes it twice): equal scan time. One coil,
complex images: axial slices of the MNI152 template (mri/mni152_t1_24axial.npz; without it head phantoms), bent, turned,
with random tissue contrast, shading and smooth phase, at 24 x 24 pixels (the shares of time at 48 x 48), a pixel of 1
at a signal-to-noise ratio of 12 in a full scan. Slices of one number stay together in all splits. Slices with hardly
any brain are left out.

The list of masks: one for each principle in use (middle only, middle averaged, even spacing with and without the
middle, a denser even middle, asymmetric, even spacing with a full middle, outermost lines, widening gaps), and random
draws of chances (1 - |k| / k_max)^p, p = 1, 3, 6 and 0, two seeds each, three for p = 0. Draws with p > 0 take the two
middle lines whole. Nothing was left out afterwards.

Bits: the Gaussian density, cross-fitted by slices and corrected for the finite sample: it follows measurements of some
hundred values, where a mixture of Gaussians overfits. Traditional figures: signal-to-noise ratio (equal to the captured
energy), highest frequency, largest side lobe of the point response, condition number (1 for each mask: it says
nothing). MTF50 is not defined for masks without the middle line.

Designs: six whole lines, by greedy choice and exchanges, against every fourth line; and shares of the time of all
lines, as many averages allow, by information and end to end with the decoder. A mask of zeros and ones cannot be
trained end to end from its start: lines that are not measured have weights near zero in the decoder, hence no gradient
(straight-through stays at its start; annealing leaves too few steps for the decoder of the final mask). The steps of
the end-to-end training are as many as its validation loss needs to flatten; the losses are in the JSON.

Found out: the slices of one template, moved rigidly only and at a signal-to-noise ratio of 30, have few degrees of
freedom and leave nine of the masks within half a decibel of each other. The network then orders these otherwise than a
Gaussian does (it fills in outer lines from what it knows of the head, and unfolds aliases less well than it sharpens):
0.85, at 0.96 for the linear decoder. So all scenes are bent, with a head that fills the field, and the ratio is 12, a
fast scan's, fixed after trials at 15, 30 and 60; masks then spread, and both decoders agree. The linear decoder's
correlations from poor to good signal are in mri_mask_linear.json. Captured energy ranks the masks nearly as well.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _design_study import DESIGNED, FEW_JUDGED, START, TRAINED
from _subset_study import Subset, compare_subsets, gaussian_bounds, linear_rank_correlations
from _validation_study import Study, run_study
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from bitlens import report
from bitlens._files import replace_file
from bitlens.datasets.phantoms_ellipses import head_slices
from bitlens.design import optimize_design
from bitlens.encoders.fourier_sampling import CartesianSampling
from bitlens.estimators._closed_form import gaussian_information
from bitlens.noise import GaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.systems.mri import with_smooth_phase
from bitlens.validation import (
    Reconstruction,
    UNetDecoder,
    condition_number,
    measure_cost,
    snr_db,
    train_end_to_end,
    validate,
)

Array = NDArray[np.float64]
ROOT = Path(__file__).resolve().parents[2]
ACCELERATION = 4
SNR = 12.0
# Of the pixels of a slice: those with less brain are left out.
_LEAST_BRAIN = 0.1
_RATE = 0.05  # of weights of 0 to 1
_BEND_PIXELS, _BEND_NODES = 0.35, 5


class Scenes(NamedTuple):
    """Complex images (n, 2, row, column), the slice of each, and what they were made of."""

    images: Tensor
    groups: Tensor
    source: str


def brains(n_scenes: int, size: int, data: Path, seed: int) -> Scenes:
    """Bent slices with smooth phase, in turn of all slices; head phantoms where there are no slices."""
    path = data / "mri" / "mni152_t1_24axial.npz"
    generator = torch.Generator().manual_seed(seed)
    if not path.exists():
        images = head_slices(n_scenes, (size, size), generator=generator)
        groups, source = torch.arange(n_scenes), "head phantoms"
    else:
        slices = np.load(path)["slices"].astype(np.float64).transpose(0, 2, 1)[:, ::-1] / 255
        slices = slices[(slices > 0.1).mean(axis=(1, 2)) > _LEAST_BRAIN]
        random = np.random.default_rng(seed)
        groups = torch.arange(n_scenes) % len(slices)
        bent = [_bent(slices[index], size, random) for index in groups.tolist()]
        images = torch.from_numpy(np.stack(bent)[:, None]).float()
        source = f"{len(slices)} axial slices of MNI152, bent"
    return Scenes(with_smooth_phase(images, generator=generator), groups, source)


def _bent(image: Array, size: int, random: np.random.Generator) -> Array:
    """The slice on `size` x `size` pixels: turned, scaled, shifted, bent; contrast and shading changed."""
    step = 0.9 * max(image.shape) / size
    image = ndimage.gaussian_filter(np.pad(image, image.shape[0] // 8), 0.4 * step)
    if random.random() < 0.5:
        image = image[:, ::-1]
    angle, scale = random.uniform(-0.15, 0.15), step * random.uniform(0.95, 1.15) * random.uniform((1, 0.95), (1, 1.05))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) * scale
    middle, shift = (np.array(image.shape) - 1) / 2, random.uniform(-1, 1, 2)
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij")).reshape(2, -1) - (size - 1) / 2
    bend = np.stack([_smooth(random, size, _BEND_NODES).ravel() for _ in range(2)]) * (_BEND_PIXELS * step)
    places = middle[:, None] + turn @ (grid + shift[:, None]) + bend
    values = ndimage.map_coordinates(image, places, order=1).reshape(size, size)
    levels = np.concatenate([[0.0], np.cumsum(random.uniform(0.3, 1.0, 5))])
    values = np.interp(values, np.linspace(0, 1, 6), levels / levels[-1])
    return np.asarray(values * np.exp(0.15 * _smooth(random, size, 3)))


def _smooth(random: np.random.Generator, size: int, nodes: int) -> Array:
    return np.asarray(ndimage.zoom(random.standard_normal((nodes, nodes)), size / nodes, order=3)[:size, :size])


def masks(n_lines: int) -> dict[str, Tensor]:
    """Weights of the lines (line,), squares the time of each: `n_lines` / 4 in all. The middle is at n_lines // 2."""
    half, count = n_lines // 2, n_lines // ACCELERATION
    lines = range(-half, n_lines - half)
    middle = list(range(-(count // 4), count // 2 - count // 4))
    rest = [line for line in lines if line not in middle]
    spread = [rest[int((j + 0.5) * len(rest) / (count - len(middle)))] for j in range(count - len(middle))]
    widening = [0, *(sign * (2**step - 1) for step in range(1, count) for sign in (1, -1))]
    found = {
        "middle lines": list(range(-(count // 2), count - count // 2)),
        "half of them, twice": 2 * middle,
        "every 4th": [line for line in lines if line % 4 == 0],
        "every 4th, not the middle": [line for line in lines if line % 4 == 2],
        "every 2nd, in the middle": list(range(-count, count, 2)),
        "one side of the middle": list(range(-1, count - 1)),
        "half in the middle, rest even": [*middle, *spread],
        "outermost": [*lines[: count // 2], *lines[n_lines - (count - count // 2) :]],
        "widening gaps": widening[:count],
    }
    for power in (1, 3, 6):
        for seed in (0, 1):
            found[f"density power {power}, draw {seed}"] = _draw(lines, count, power, 2, seed)
    for seed in (0, 1, 2):
        found[f"random, draw {seed}"] = _draw(lines, count, 0, 0, seed)
    return {name: _weights(chosen, n_lines) for name, chosen in found.items()}


def _draw(lines: range, count: int, power: float, certain: int, seed: int) -> list[int]:
    middle = list(range(-(certain // 2), certain - certain // 2))
    rest = [line for line in lines if line not in middle]
    chance = (1 - np.abs(rest) / (len(lines) / 2 + 1)) ** power
    drawn = np.random.default_rng(seed).choice(rest, count - certain, replace=False, p=chance / chance.sum())
    return [*middle, *drawn.tolist()]


def _weights(chosen: list[int], n_lines: int) -> Tensor:
    times = torch.zeros(n_lines, dtype=torch.float64)
    for line in chosen:
        times[n_lines // 2 + line] += 1
    return times.sqrt()


@dataclass(frozen=True)
class Scanner:
    """Lines -> encoder and noise of a scan of these."""

    n_lines: int
    snr: float = SNR

    def __call__(self, lines: Subset) -> tuple[CartesianSampling, GaussianNoise]:
        mask = torch.zeros(self.n_lines, dtype=torch.float64)
        mask[list(lines)] = 1.0
        return self.with_mask(mask)

    def with_mask(self, mask: Tensor) -> tuple[CartesianSampling, GaussianNoise]:
        """The same for weights."""
        return CartesianSampling(mask, complex_scene=True, compact=True), GaussianNoise(1 / self.snr)


# ---- shares of the time, by information and end to end ----


def _shares_to_learn(n_lines: int) -> CartesianSampling:
    """Weights of all lines, squares the time of each, a quarter in all; three fifths of it on every fourth line."""
    even = torch.arange(n_lines) % ACCELERATION == n_lines // 2 % ACCELERATION
    time = torch.where(even, 0.6, 0.4 / (ACCELERATION - 1)).double()
    return CartesianSampling(time.sqrt(), complex_scene=True, mean_square=1 / ACCELERATION, learn=("mask",))


def shares_by_information(scenes: Scenes, n_steps: int, batch_size: int = 128) -> Tensor:
    """Weights of the lines (line,) that climb the closed form of a Gaussian."""
    result = optimize_design(
        _shares_to_learn(scenes.images.shape[-2]),
        GaussianNoise(1 / SNR),
        scenes.images,
        objective="gaussian",
        n_steps=n_steps,
        batch_size=min(batch_size, len(scenes.images)),
        learning_rate={"mask": _RATE},
        # Nobody reads the judge here: the designs are judged together below.
        judge_scenes=scenes.images[:FEW_JUDGED],
        judge_method="known_channel",
        generator=torch.Generator().manual_seed(0),
    )
    return _weights_of(result.parameters["mask"])


def shares_end_to_end(scenes: Scenes, decoder: UNetDecoder, n_steps: int) -> tuple[Tensor, list[tuple[int, float]]]:
    """Weights of the lines that are trained together with a decoder, and its validation loss at some steps."""
    result = train_end_to_end(
        _shares_to_learn(scenes.images.shape[-2]),
        GaussianNoise(1 / SNR),
        scenes.images,
        Reconstruction(),
        decoder,
        n_steps=n_steps,
        learning_rate=0.02,
        groups=scenes.groups,
        generator=torch.Generator().manual_seed(0),
    )
    return _weights_of(result.parameters["mask"]), [(step.step, step.validation_loss) for step in result.history]


def _weights_of(mask: Tensor) -> Tensor:
    return CartesianSampling(mask, mean_square=1 / ACCELERATION).weights().detach()


def compare_shares(
    scenes: Scenes, design: Scenes, decoder: UNetDecoder, *, quick: bool, out: Path, n_seeds: int
) -> dict[str, Any]:
    """Start, information and end to end with all lines for a share of the time each; scores and costs.

    Scores: a new decoder for each, on scenes that no design has seen. Bits are the closed form on these, corrected to
    many scenes: they are too few for a density of all lines. Writes mri_mask_shares.{txt,json}.
    """
    informed = measure_cost(functools.partial(shares_by_information, design, 4 if quick else 60))
    trained = measure_cost(functools.partial(shares_end_to_end, design, decoder, 4 if quick else 1500))
    chosen = {
        START: _weights_of(_shares_to_learn(scenes.images.shape[-2]).mask),
        DESIGNED: informed.value,
        TRAINED: trained.value[0],
    }
    noise = GaussianNoise(1 / SNR)
    encoders = {name: CartesianSampling(mask, complex_scene=True) for name, mask in chosen.items()}
    result = validate(
        {name: ImagingSystem(encoder, noise, scenes.images) for name, encoder in encoders.items()},
        Reconstruction(),
        decoder=decoder,
        n_seeds=min(n_seeds, 2) if quick else n_seeds,
        groups=scenes.groups,
        method="known_channel",
        generator=torch.Generator().manual_seed(0),
    )
    bits = {
        name: float(gaussian_information(encoder(scenes.images).double(), noise)) / math.log(2)
        for name, encoder in encoders.items()
    }
    cost = {
        name: {"cpu_seconds": each.cpu_seconds, "peak_memory_bytes": each.peak_memory_bytes}
        for name, each in ((DESIGNED, informed), (TRAINED, trained))
    }
    saved = {key: 1 - cost[DESIGNED][key] / cost[TRAINED][key] for key in cost[DESIGNED]}
    found = {
        "bits": bits,
        "scores": {score: dict(result.mean(score)) for score in result.score_names},
        "psnr_by_seed": {name: each.tolist() for name, each in zip(result.designs, result.values("psnr"), strict=True)},
        "cost": cost,
        "saved": saved,
        "time_of_lines": {name: mask.square().tolist() for name, mask in chosen.items()},
        "validation_loss": trained.value[1],
    }
    lines = ["mri_mask, each line for a share of the time"]
    for name in chosen:
        scores = ", ".join(f"{score} {values[name]:.4g}" for score, values in found["scores"].items())
        lines.append(f"  {name}: {bits[name]:.1f} bits (closed form), {scores}")
        lines.append("    time of lines: " + " ".join(f"{float(weight) ** 2:.2f}" for weight in chosen[name]))
    for name, values in cost.items():
        lines.append(f"  {name}: {values['cpu_seconds']:.1f} CPU s, {values['peak_memory_bytes'] / 2**20:.0f} MiB")
    lines.append(f"  saved: {saved['peak_memory_bytes']:.0%} of the memory, {saved['cpu_seconds']:.0%} of the time")
    lines.append("  loss of the end-to-end training: " + ", ".join(f"{s}: {v:.4f}" for s, v in trained.value[1]))
    text = "\n".join(lines) + "\n"
    print(text)
    replace_file(out / "mri_mask_shares.txt", text.encode())
    replace_file(out / "mri_mask_shares.json", json.dumps(found, indent=2).encode())
    return found


# ---- the traditional figures ----


def highest_frequency(system: ImagingSystem) -> float:
    """Of the lines measured, cycles per pixel."""
    mask = system.encoder.mask
    assert isinstance(mask, Tensor)
    lines = mask.nonzero()[:, 0] - len(mask) // 2
    return float(lines.abs().max()) / len(mask)


def side_lobe(system: ImagingSystem) -> float:
    """Largest value of the point response beside its peak, over the peak (Lustig et al. 2007, doi:10.1002/mrm.21391).

    Along lines, of the zero-filled image.
    """
    mask = system.encoder.mask
    assert isinstance(mask, Tensor)
    response = torch.fft.fft((mask > 0).double()).abs()
    return float(response[1:].max() / response[0])


def main(arguments: argparse.Namespace) -> Study:
    """All of the study; the study of the ranking."""
    quick = arguments.quick
    size, n_scenes, n_design = (16, 220, 60) if quick else (24, 1200, 600)
    scenes = brains(n_scenes, size, arguments.data, 0)
    print(f"scenes: {scenes.source}, {size} x {size}")
    decoder = UNetDecoder(channels=4, n_steps=4) if quick else UNetDecoder(channels=8, n_steps=150)
    weights = masks(size)
    study = run_study(
        "mri_mask",
        _systems(weights, scenes.images, SNR),
        Reconstruction(),
        {
            "snr_db": lambda system: snr_db(system.encoder(system.scenes), system.noise),  # type: ignore[arg-type]
            "highest_frequency": highest_frequency,
            "side_lobe": side_lobe,
            # Without the rounding of float64, which would rank masks of equal singular values.
            "condition_number": lambda system: round(condition_number(system.encoder, system.scenes.shape[1:]), 6),
        },
        quick=quick,
        out=arguments.out,
        groups=scenes.groups,
        decoder=decoder,
        n_seeds=arguments.seeds,
        method="gaussian",
        lower_is_better=("side_lobe", "condition_number"),
        bound=False,
        extra={"scenes": scenes.source},
    )
    # The same masks in worse and better signal, for a decoder that no training can fail.
    linear_rank_correlations(
        "mri_mask",
        {
            f"signal-to-noise ratio {snr:g}": _systems(weights, scenes.images, snr)
            for snr in ((SNR,) if quick else (6.0, SNR, 24.0, 48.0))
        },
        scenes.groups,
        arguments.out,
    )
    bounds = gaussian_bounds("mri_mask", study, scenes.images, arguments.out)
    design = brains(n_design, size, arguments.data, 1)
    start = tuple(range(0, size, ACCELERATION))
    compare_subsets(
        "mri_mask",
        Scanner(size),
        size,
        start,
        design.images,
        scenes.images,
        quick=quick,
        out=arguments.out,
        groups=scenes.groups,
        decoder=decoder,
        n_seeds=arguments.seeds,
    )
    # Of twice the lines: at 24 x 24 pixels what is fixed rules the memory of either way, and 60 % of it are saved.
    lines = size if quick else 2 * size
    compare_shares(
        brains(n_scenes, lines, arguments.data, 0),
        brains(n_design, lines, arguments.data, 1),
        decoder,
        quick=quick,
        out=arguments.out,
        n_seeds=arguments.seeds,
    )
    replace_file(arguments.out / "mri_mask_list.png", report.to_png(picture(weights, study, bounds, scenes)))
    return study


def _systems(weights: dict[str, Tensor], images: Tensor, snr: float) -> dict[str, ImagingSystem]:
    scanner = Scanner(images.shape[-2], snr)
    return {name: ImagingSystem(*scanner.with_mask(mask), images) for name, mask in weights.items()}


def picture(weights: dict[str, Tensor], study: Study, bounds: dict[str, float], scenes: Scenes) -> Figure:
    """The masks, most bits on top; some of the scenes; errors beside their bound."""
    bits, psnr, error = (study.result.mean(name) for name in ("bits", "psnr", "mse"))
    order = sorted(weights, key=bits.__getitem__, reverse=True)
    figure = Figure(figsize=(13, 7), layout="constrained")
    ((left, right),) = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.3, 1))
    axis = left.subplots()
    shown = torch.stack([weights[name] for name in order]).numpy()
    axis.imshow(shown, cmap="gray_r", aspect="auto", interpolation="nearest")
    axis.set_yticks(
        range(len(order)), [f"{name}: {bits[name]:.0f} bits, {psnr[name]:.1f} dB" for name in order], fontsize=8
    )
    n_lines = len(weights[order[0]])
    axis.set_xticks(range(0, n_lines, 4), [str(line - n_lines // 2) for line in range(0, n_lines, 4)])
    axis.set(xlabel="line of k-space", title="masks (darker: measured twice)")
    (above,), (below,) = right.subfigures(2, 1, squeeze=False)
    for panel, image in zip(above.subplots(3, 6).ravel(), scenes.images[::7], strict=False):
        panel.imshow(image.double().square().sum(0).sqrt().numpy(), cmap="gray")
        panel.axis("off")
    above.suptitle("some scenes, magnitude")
    axis = below.subplots()
    axis.semilogy([bits[name] for name in order], [error[name] for name in order], "o", label="decoder")
    axis.semilogy(
        [bits[name] for name in order], [bounds[name] for name in order], "k-", label="best code of so many bits"
    )
    axis.set(xlabel="information (bits per image)", ylabel="mean squared error")
    axis.legend(frameon=False)
    return figure


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real data")
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for table, figures and JSON")
    parser.add_argument("--quick", action="store_true", help="few steps and seeds, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3, help="splits, noise draws and decoders per mask")
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(parse())
