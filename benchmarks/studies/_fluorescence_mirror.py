"""A deformable mirror designed by information, and trained end to end, with what each costs.

Information is that of small fields of the photographs, 16 pixels wide, since it is told per field and asks for no field
much larger than the PSF. A U-Net that undoes a blur is trained on fields of 64 pixels; the mirror trained end to end
with it is trained on both sizes here. All mirrors are judged on fields of 64 pixels of other photographs, by U-Nets
trained anew for each.

Two costs of the design by information are told: of the mirror alone, as one counts them who must know what to build;
and with a U-Net trained for it once, of as many steps as end-to-end training takes, since that ends with one too. The
first saves most of memory and time, the second little of either: what costs is the U-Net.

On large fields the loss of end-to-end training flattens while most of the spherical aberration is still there: the
U-Net learns to undo the first mirror, and the mirror then has little to gain alone. Four times the rate, tried in a
shorter run, left it there too. That is no contest of the scores, and a decoder started before the mirror moves is part
of why; what each costs does not hang on it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from _design_study import FEW_JUDGED
from _fluorescence_microscope import Design, LayeredMicroscope, microscope
from _fluorescence_scenes import Scenes, flattened, in_focus, read_scenes
from _stabilized_information import group_error, image_bits
from torch import Tensor

from bitlens import optimize_design, plots, report
from bitlens._files import replace_file
from bitlens.design import Box, DesignResult
from bitlens.noise import NoiseModel, PoissonGaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.systems.fluorescence_microscope import FluorescenceMicroscope
from bitlens.validation import Cost, Reconstruction, UNetDecoder, measure_cost, train_end_to_end
from bitlens.validation.compare import mean_of
from bitlens.validation.decoder import split_rows

START, DESIGNED, TRAINED, TRAINED_SMALL = "start", "by information", "end to end", "end to end, small fields"
WITH_DECODER = "by information, and a U-Net"
LEARNED = "zernike_waves"
MIRROR = tuple(range(4, 16))
LIMITS = {LEARNED: Box(-1.0, 1.0)}


class Sizes(NamedTuple):
    """Pixels of the fields, their number for each half of the photographs, steps, and the U-Net."""

    pixels: int = 64
    small_pixels: int = 16
    n_scenes: int = 300
    n_small: int = 600
    design_steps: int = 150
    design_batch: int = 96
    end_to_end_steps: int = 500
    end_to_end_batch: int = 32
    decoder: UNetDecoder = UNetDecoder(channels=16, n_steps=150, initial="wiener")


QUICK = Sizes(8, 4, 40, 60, 8, 30, 8, 16, UNetDecoder(channels=4, n_steps=8, initial="wiener"))


class Mirror(NamedTuple):
    """What was found: bits gained, scores by name and mirror for each seed, costs by mirror, the terms of each."""

    gain_bits: float
    gain_stderr_bits: float
    scores: dict[str, dict[str, list[float]]]
    cost: dict[str, dict[str, float]]
    mirrors: dict[str, list[float]]
    validation_losses: dict[str, list[float]]

    def saved(self, mirror: str, what: str) -> float:
        """Share of the cost of end-to-end training on large fields that `mirror` does without."""
        return 1.0 - self.cost[mirror][what] / self.cost[TRAINED][what]


def design_mirror(out: Path, data: Path, *, quick: bool, seeds: int, sizes: Sizes | None = None) -> Mirror:
    """Mirrors behind NA 0.4 and a specimen with spherical aberration: start, by information, end to end; their files.

    One half of the photographs designs, the other judges.
    """
    out.mkdir(parents=True, exist_ok=True)
    sizes = sizes or (QUICK if quick else Sizes())
    judged, given = (_specimen(data, sizes.n_scenes, sizes.pixels, half) for half in (0, 1))
    small_judged, small = (_specimen(data, sizes.n_small, sizes.small_pixels, half) for half in (0, 1))
    flat = dict.fromkeys(MIRROR, 0.0)
    start = _first(Design(0.4, zernike_waves=flat | {11: 0.5}), judged)
    noise = start.noise
    assert isinstance(noise, PoissonGaussianNoise)
    designed = _informed(start, small.scenes, small_judged.scenes, sizes, "gaussian")
    gain = _gain_bits(start, designed, small_judged)
    made = {DESIGNED: measure_cost(functools.partial(_parameters, start, small.scenes, small_judged.scenes, sizes))}
    made[TRAINED] = measure_cost(functools.partial(_trained, start, given, sizes))
    if not quick:
        made[TRAINED_SMALL] = measure_cost(functools.partial(_trained, start, small, sizes))
    decoded = measure_cost(functools.partial(_decoded, designed.encoder, noise, given, sizes))
    trained = {name: each.value for name, each in made.items() if name != DESIGNED}
    systems = {
        name: ImagingSystem(encoder, noise, judged.scenes)
        for name, encoder in (
            (START, start.encoder),
            (DESIGNED, designed.encoder),
            *((name, encoder) for name, (encoder, _) in trained.items()),
        )
    }
    scores = scored(systems, judged, sizes.decoder, min(seeds, 1) if quick else seeds)
    found = Mirror(
        float(gain.mean()),
        group_error(gain, small_judged.groups),
        scores,
        {**{name: _numbers(each) for name, each in made.items()}, WITH_DECODER: _one_after_the_other(made, decoded)},
        {name: [round(value, 4) for value in _terms(system.encoder)] for name, system in systems.items()},
        {name: [look.validation_loss for look in history] for name, (_, history) in trained.items()},
    )
    text = summary(found)
    print(text)
    values = found._asdict() | {"sizes": repr(sizes), "scenes": judged.source}
    replace_file(out / "fluorescence_pupil_mirror.png", report.to_png(plots.design_overview(designed)))
    replace_file(out / "fluorescence_pupil_mirror.json", json.dumps(values, indent=2, allow_nan=False).encode())
    replace_file(out / "fluorescence_pupil_mirror.txt", text.encode())
    return found


def scored(
    systems: Mapping[str, ImagingSystem], judged: Scenes, decoder: UNetDecoder, seeds: int
) -> dict[str, dict[str, list[float]]]:
    """Score -> mirror -> value for each seed, of decoders trained anew; noise and splits are the same for all."""
    task = Reconstruction(in_focus(judged.scenes), data_range=1.0)
    target = task.targets(judged.scenes)
    found: dict[str, dict[str, list[float]]] = {score: {name: [] for name in systems} for score in task.score_names}
    for name, system in systems.items():
        mean, noise = mean_of(system, name), cast(NoiseModel, system.noise)
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(seed)
            training, test = split_rows(judged.groups, 0.25, seed)
            measured = noise.sample(mean, generator).float()
            groups = judged.groups[training]
            fitted = decoder.fit(measured[training], target[training], groups=groups, generator=generator)
            values = task.score(fitted(measured[test]), target[test], data_range=1.0)
            for score, value in values.items():
                found[score][name].append(value)
    return found


def _gain_bits(start: ImagingSystem, designed: DesignResult, judged: Scenes) -> Tensor:
    """Of each small field (n,), the same noise before and after."""
    noise = start.noise
    assert isinstance(noise, PoissonGaussianNoise)
    found = []
    with torch.no_grad():
        for encoder in (start.encoder, designed.encoder):
            mean = torch.cat([encoder(part) for part in judged.scenes.split(64)])
            measured = noise.sample(mean, torch.Generator().manual_seed(1))
            found.append(image_bits(measured, mean, noise, judged.groups))
    return found[1] - found[0]


def _numbers(cost: Cost) -> dict[str, float]:
    return {"cpu_seconds": cost.cpu_seconds, "peak_memory_bytes": float(cost.peak_memory_bytes)}


def _one_after_the_other(made: Mapping[str, Cost], decoded: Cost) -> dict[str, float]:
    """The mirror by information, then its U-Net: seconds add up, of the peaks the higher counts."""
    first, then = _numbers(made[DESIGNED]), _numbers(decoded)
    return {
        "cpu_seconds": first["cpu_seconds"] + then["cpu_seconds"],
        "peak_memory_bytes": max(first["peak_memory_bytes"], then["peak_memory_bytes"]),
    }


def summary(found: Mirror) -> str:
    """The comparison in words."""
    sigmas = found.gain_bits / found.gain_stderr_bits
    lines = [
        f"mirror: {found.gain_bits:+.2f} +- {found.gain_stderr_bits:.2f} bits per small field ({sigmas:.0f} standard "
        "errors) by information against the start"
    ]
    for score, values in found.scores.items():
        shown = ", ".join(f"{name} {_mean(each):.4g} +- {_error(each):.2g}" for name, each in values.items())
        lines.append(f"  {score}: {shown}")
    for name, cost in found.cost.items():
        seconds, peak = cost["cpu_seconds"], cost["peak_memory_bytes"] / 2**20
        line = f"  {name}: {seconds:.1f} CPU s, {peak:.0f} MiB at the peak"
        if name != TRAINED:
            time, memory = found.saved(name, "cpu_seconds"), found.saved(name, "peak_memory_bytes")
            line += f"; saves {memory:.0%} of the memory and {time:.0%} of the time of training end to end"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _error(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _specimen(data: Path, n_scenes: int, pixels: int, half: int) -> Scenes:
    """Flat, as one layer (n, 1, row, column), from one half of the photographs."""
    found = read_scenes(data, n_scenes, pixels, half=half, seed=half)
    return found._replace(scenes=found.scenes.sum(1, keepdim=True))


def _first(design: Design, specimen: Scenes) -> ImagingSystem:
    """The microscope of a flat specimen, one layer, exposed for these fields."""
    layers = torch.cat([torch.zeros_like(specimen.scenes), specimen.scenes, torch.zeros_like(specimen.scenes)], 1)
    found = microscope(design, flattened(layers), learn=(LEARNED,))
    assert isinstance(found.encoder, LayeredMicroscope)
    return ImagingSystem(found.encoder.microscope, found.noise, specimen.scenes)


def _terms(encoder: Any) -> list[float]:
    assert isinstance(encoder, FluorescenceMicroscope)
    values: list[float] = encoder.zernike_waves.detach().tolist()
    return values


def _informed(start: ImagingSystem, scenes: Tensor, judged: Tensor, sizes: Sizes, judge: str) -> DesignResult:
    return optimize_design(
        start.encoder,
        start.noise,  # type: ignore[arg-type]
        scenes,
        parameters=(LEARNED,),
        constraints=LIMITS,
        objective="gaussian",
        n_steps=sizes.design_steps,
        batch_size=sizes.design_batch,
        judge_scenes=judged,
        judge_method=judge,
        generator=torch.Generator().manual_seed(0),
    )


def _parameters(start: ImagingSystem, scenes: Tensor, judged: Tensor, sizes: Sizes) -> dict[str, Tensor]:
    # Judging is no part of making the design: few scenes and the simplest density, whose result nobody reads.
    start = start._replace(scenes=start.scenes[:1])
    return dict(_informed(start, scenes, judged[:FEW_JUDGED], sizes, "known_channel").parameters)


def _trained(start: ImagingSystem, specimen: Scenes, sizes: Sizes) -> tuple[Any, Any]:
    result = train_end_to_end(
        start.encoder,
        start.noise,  # type: ignore[arg-type]
        specimen.scenes,
        Reconstruction(in_focus(specimen.scenes), data_range=1.0),
        sizes.decoder,
        parameters=(LEARNED,),
        constraints=LIMITS,
        n_steps=sizes.end_to_end_steps,
        batch_size=sizes.end_to_end_batch,
        learning_rate={LEARNED: 0.0125},
        groups=specimen.groups,
        generator=torch.Generator().manual_seed(0),
    )
    return result.encoder, result.history


def _decoded(encoder: Any, noise: PoissonGaussianNoise, specimen: Scenes, sizes: Sizes) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        mean = torch.cat([encoder(part) for part in specimen.scenes.split(64)])
        measured = noise.sample(mean, generator).float()
    decoder = dataclasses.replace(sizes.decoder, n_steps=sizes.end_to_end_steps, batch_size=sizes.end_to_end_batch)
    decoder.fit(measured, in_focus(specimen.scenes), groups=specimen.groups, generator=generator)
