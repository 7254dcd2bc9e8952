"""What a design by information costs on a GPU, beside training encoder and decoder end to end there.

    python benchmarks/studies/design_cost_on_gpu.py [--quick] [--out FOLDER] [--systems "single pixel" ...]

Each system is designed by information and trained end to end from the same start on the same scenes; then a new decoder
of the same kind and the same number of steps is trained on each of the start and the two designs, and scored on scenes
that nothing has seen. Seconds are of the wall with the GPU idle before and after; peak memory is torch's, above what
encoder and scenes take. The decoder that an information design needs in the end is counted apart: training it takes the
memory of training end to end, but only once for the design that is built and not for each that is tried. Its row holds
the estimate of the bits too.

Training end to end is tried with three rates of the decoder; the best by its own test counts, and what it alone cost.
Sizes of systems and networks were laid down before any result: a single-pixel camera of 64^2 pixels, a microscope's
pupil and a coded-aperture spectral imager, with U-Nets of 32 channels. A step of the design takes 256 scenes, of the
single-pixel camera 512. With 512 in a step the pupil's design took 388 MiB and training end to end 454, which is why it
takes 256.

What was found on an H200: designing takes a quarter to a half of the time, at a better score in all three. It takes a
quarter of the memory where few numbers are measured, and more than training where there are thousands: what a closed
form needs grows with the square of the measured values, what a network needs with its channels and the batch.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import bitlens
from bitlens._files import replace_file
from bitlens.design import Box
from bitlens.systems import ImagingSystem
from bitlens.validation import Reconstruction, UNetDecoder

DECODER_RATES = (3e-3, 1e-3, 3e-4)
START, DESIGNED, TRAINED = "start", "designed by information", "trained end to end"


class Problem(NamedTuple):
    """A start with its scenes, what the decoder is to show, and how it is designed.

    `limits` of its one learned parameter, the density that judges, and how many scenes a step takes.
    """

    system: ImagingSystem
    target: Tensor
    limits: Box | None
    method: str
    batch_size: int | None


class Spent(NamedTuple):
    """Seconds and bytes at the peak, and what came out."""

    seconds: float
    peak_bytes: int
    value: Any


def single_pixel(quick: bool) -> Problem:
    """Grey patterns, a sixteenth as many as pixels."""
    side, count = (16, 300) if quick else (64, 2000)
    system = bitlens.systems.single_pixel_camera(
        "random_binary", shape=(side, side), n_patterns=side * side // 16, n_scenes=count, learn=("patterns",)
    )
    return Problem(system, system.scenes, Box(0.0, 1.0), "gaussian", None)


def pupil(quick: bool) -> Problem:
    """The phase of a microscope's pupil, from astigmatism."""
    side, count = (24, 300) if quick else (48, 2000)
    system = bitlens.systems.fluorescence_microscope(
        "astigmatic", shape=(side, side), n_scenes=count, learn=("zernike_waves",)
    )
    margin = (system.scenes.shape[-1] - side) // 2
    return Problem(system, system.scenes[..., margin:-margin, margin:-margin], None, "stationary_gaussian", 256)


def spectral(quick: bool) -> Problem:
    """The aperture of a spectral imager, from random grey."""
    side, bands, count = (12, 6, 300) if quick else (32, 28, 1000)
    system = bitlens.systems.coded_aperture_spectral_imager(
        "random", shape=(side, side), n_bands=bands, dispersion_pixels=2.0 * (bands - 1), n_scenes=count,
        learn=("mask",),
    )  # fmt: skip
    return Problem(system, system.scenes, Box(0.0, 1.0), "stationary_gaussian", 256)


PROBLEMS: dict[str, Callable[[bool], Problem]] = {
    "single pixel": single_pixel,
    "fluorescence pupil": pupil,
    "spectral aperture": spectral,
}


def spent(device: torch.device, function: Callable[[], Any]) -> Spent:
    """Run the function once; memory is counted on a GPU alone."""
    gc.collect()
    on_gpu = device.type == "cuda"
    before = 0
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    begin = time.perf_counter()
    value = function()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    return Spent(seconds, torch.cuda.max_memory_allocated() - before if on_gpu else 0, value)


def compare(name: str, quick: bool, device: torch.device) -> dict[str, Any]:
    """Costs and scores of one system."""
    problem = PROBLEMS[name](quick)
    scenes, target = problem.system.scenes.to(device), problem.target.to(device)
    encoder, noise = problem.system.encoder.to(device), problem.system.noise
    (parameter,) = (key for key, value in encoder.named_parameters() if value.requires_grad)
    constraints = {} if problem.limits is None else {parameter: problem.limits}
    n_design = len(scenes) // 2
    steps = 10 if quick else 1000
    decoder = UNetDecoder(channels=4 if quick else 32, n_steps=steps)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    informed = spent(device, lambda: bitlens.optimize_design(
        encoder, noise, scenes[:n_design], parameters=(parameter,), constraints=constraints,
        batch_size=64 if quick and problem.batch_size else problem.batch_size, objective="gaussian",
        n_steps=10 if quick else 200, judge_method=problem.method, judge_scenes=scenes[n_design:],
        generator=generator(),
    ))  # fmt: skip
    with warnings.catch_warnings():  # the result says so too
        warnings.filterwarnings("ignore", message="train_end_to_end: no gain")
        trials = [
            spent(device, functools.partial(
                bitlens.train_end_to_end, encoder, noise, scenes[:n_design], Reconstruction(target[:n_design]),
                decoder, parameters=(parameter,), constraints=constraints, n_steps=steps, decoder_learning_rate=rate,
                generator=generator(),
            ))
            for rate in DECODER_RATES
        ]  # fmt: skip
    trained = max(trials, key=lambda trial: trial.value.scores["psnr"])
    designs = {START: encoder, DESIGNED: informed.value.encoder, TRAINED: trained.value.encoder}
    systems = {title: ImagingSystem(design, noise, scenes[n_design:]) for title, design in designs.items()}
    judged = spent(device, lambda: bitlens.validate(
        systems, Reconstruction(target[n_design:]), decoder=decoder, n_seeds=1, method=problem.method,
        generator=generator(),
    ))  # fmt: skip
    return {
        "bits_before": informed.value.before.bits,
        "bits_after": informed.value.after.bits,
        "gain_stderr_bits": informed.value.gain_stderr_bits,
        "psnr_db": judged.value.mean("psnr"),
        "seconds": {DESIGNED: informed.seconds, TRAINED: trained.seconds, "a decoder": judged.seconds / len(systems)},
        "peak_mib": {
            DESIGNED: informed.peak_bytes / 2**20,
            TRAINED: trained.peak_bytes / 2**20,
            "a decoder": judged.peak_bytes / 2**20,
        },
        "warnings": [*informed.value.warnings, *trained.value.warnings],
    }


def text_of(name: str, found: dict[str, Any]) -> str:
    """One system in four lines."""
    seconds, memory = found["seconds"], found["peak_mib"]
    lines = [
        f"{name}: {found['bits_after'] - found['bits_before']:+.1f} +- {found['gain_stderr_bits']:.1f} bits",
        "  PSNR " + ", ".join(f"{title} {value:.2f} dB" for title, value in found["psnr_db"].items()),
        "  " + ", ".join(f"{title} {seconds[title]:.1f} s {memory[title]:.0f} MiB" for title in seconds),
    ]
    if memory[TRAINED] > 0:
        saved = 1 - memory[DESIGNED] / memory[TRAINED], 1 - seconds[DESIGNED] / seconds[TRAINED]
        lines.append(f"  saved: {saved[0]:.0%} of the memory, {saved[1]:.0%} of the time")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Print the table and write it with its numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("design_cost_on_gpu"))
    parser.add_argument("--systems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), metavar="NAME")
    given = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    title = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{title}, torch {torch.__version__}, bitlens {bitlens.__version__}", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in given.systems:
        results[name] = compare(name, given.quick, device)
        print(text_of(name, results[name]), flush=True)
        replace_file(given.out / "design_cost.json", json.dumps({"device": title, **results}, indent=2).encode())
    text = "\n".join(text_of(name, found) for name, found in results.items())
    replace_file(given.out / "design_cost.txt", f"{title}, torch {torch.__version__}\n{text}\n".encode())


if __name__ == "__main__":
    main()
