"""Sources of a phase microscope at equal dose: do bits rank half circles, rings, single LEDs and mixtures of them?

    python benchmarks/studies/phase_contrast_source.py [--quick] [--out FOLDER] [--seeds N] [--data FOLDER]

A transparent specimen under a lens of 10 x 0.16 is seen in four exposures, each under its own part of an array of LEDs
that reaches to 1.5 times the aperture of the lens: inside it the field is bright, beyond it dark. Every design sends
the same light through the specimen in all four together, evenly over the exposures (an equal dose, and an equal time of
LEDs of one power). Wanted is the phase, less its mean in view, which no intensity tells.

The rule of the list (`designs`), laid down before any score: the sets in use (half and quarter circles and annuli);
discs and single LEDs beside the axis, near to it and far out; sets that are the same on both sides (centre, disc,
rings), which a focused lens shows no weak phase with; dark field; random sets; and the half circles, spoilt by light of
the other half, by dark field, by two directions out of four, by a stop.

The images of the single LEDs add up, so a scene is here the stack of them, by Abbe's sum over the whole field (no weak
object); a design is the share of the light that each LED gives in each exposure. The specimens: phantoms of weak cells
(0.2 rad), which is what differential phase contrast is made for; the same cells of 0.5 rad; and two weak cells whose
phase was measured (a floating one, by a hologram; an HL60 cell, by a wavefront sensor), turned, mirrored, shifted and
scaled to 0.2 rad. Each is scored by decoded bits of the phase, which weigh bodies, rims and grains alike on a scale of
their own, and by the squared error, which is that of the bodies; weak phantoms by that of the whitened phase as well.
That decoded bits come first was decided when the squared error's ranking was known and theirs was not. Designed by
information: all the shares, of equal dose, from random ones.

What was found out: of weak cells, drawn or measured, bits rank the sources as decoded bits do, and better than any of
the usual figures; the mean transfer of a weak phase comes next, being what carries the bits. The squared error of the
phase is ranked less well, and neither near ties nor the decoder nor the estimate of the bits is why: with three times
the scenes, which cut the errors of the bits to a fifth, the correlation stayed as it was, and that of an oracle, the
best linear decoder with its covariances known, is the same. Light near the axis shows rims and not bodies: bits of high
frequencies, of which the error of a phase that is mostly low ones sees nothing. The thicker the cells, the more the
dark field and light near the axis tell by the square of the phase. These bits are there, and neither a linear decoder
nor a small network makes phase of them: the correlation falls with the phase, and in a first look at cells of 1 rad it
was lower still, which is why the weak specimen leads; the list has stayed as it was. The information puts the light on
arcs at the edge of the aperture; from a random start it ends below the best of the list, single LEDs there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from _decoded_bits import oracle, with_decoded_bits, write
from _design_study import DESIGNED, Comparison, Settings, compare_designs
from _phase_contrast_scenes import (
    APERTURE,
    ILLUMINATION,
    PIXEL_UM,
    READ_ELECTRONS,
    SIDE,
    THICK_RAD,
    WAVELENGTH_NM,
    MixedLight,
    Scenes,
    cells,
    designs,
    equal_dose,
    lens,
    passes,
    phantoms,
)
from _validation_study import Metric, Study, arguments, run_study
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from bitlens import report
from bitlens._files import replace_file
from bitlens.design import Simplex
from bitlens.systems import ImagingSystem
from bitlens.systems.phase_contrast_microscope import source_points
from bitlens.validation import Decoder, LinearDecoder, Reconstruction, UNetDecoder, snr_db

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
PIXELS, QUICK_PIXELS = 8, 4
N_SCENES, N_DESIGNED_ON, QUICK_SCENES = 2000, 700, 100
METHOD = "gaussian"
DECODER = UNetDecoder(channels=8, n_steps=150)
START = "random, half of the LEDs"


# ---- the traditional figures ----


def phase_gain(encoder: MixedLight, size: int = 24) -> Tensor:
    """sqrt(sum_m |H_m|^2) (size, size), electrons per radian of a weak phase: the transfer of all exposures."""
    weights = encoder.weights().detach()
    most = weights.max()
    found = lens(weights / most)
    transfer = found.transfer_functions((size, size)).phase * most * len(weights[0])
    gain = transfer.abs().square().sum(0).sqrt()
    # A symmetric source leaves a rounding error.
    return torch.where(gain > 1e-9 * encoder.light, gain, 0.0)


def metrics() -> dict[str, Metric]:
    """Transfer of a weak phase: mean, cut-off, condition number; the coherence parameter; and the SNR."""
    size = 24
    frequency = torch.fft.fftfreq(size, d=PIXEL_UM)
    radius = torch.hypot(frequency[:, None], frequency[None, :])
    seen = passes(size)

    @functools.lru_cache
    def gain_of(encoder: MixedLight) -> Tensor:
        return phase_gain(encoder, size)

    def gain(of: ImagingSystem) -> Tensor:
        assert isinstance(of.encoder, MixedLight)
        return gain_of(of.encoder)

    def half_cutoff(of: ImagingSystem) -> float:
        found = gain(of)
        rings = (radius * size * PIXEL_UM).round().long()
        profile = torch.stack([found[rings == ring].mean() for ring in range(1, size // 2 + 1)])
        above = torch.nonzero(profile >= 0.5 * profile.max())
        return float(above[-1] + 1) / (size * PIXEL_UM) if float(profile.max()) > 0 else 0.0

    # No source in use passes the rest.
    middle = (radius > 0) & (radius < 1.5e3 * APERTURE / WAVELENGTH_NM)

    def condition(of: ImagingSystem) -> float:
        found = gain(of)[middle]
        # No phase at all is as bad as it gets.
        return float(found.max() / found.clamp(min=1e-6 * found.max()).min()) if float(found.max()) > 0 else 1e6

    def coherence(of: ImagingSystem) -> float:
        assert isinstance(of.encoder, MixedLight)
        points, _ = source_points(SIDE)
        distance = points.norm(dim=1) * ILLUMINATION / APERTURE
        return float((of.encoder.shares.detach().sum(0) * distance).sum())

    def signal(of: ImagingSystem) -> float:
        with torch.no_grad():
            return snr_db(of.encoder(of.scenes[:256]), of.noise)  # type: ignore[arg-type]

    return {
        "mean transfer": lambda of: float(gain(of)[seen].mean()),
        "half transfer, 1/um": half_cutoff,
        "coherence parameter": coherence,
        "snr_db": signal,
        "condition_number": condition,
    }


def figure(sources: Mapping[str, Tensor]) -> Figure:
    """The exposures of each source side by side, from dark to its brightest LED; a circle is the lens's aperture."""
    points, _ = source_points(SIDE)
    points = points * ILLUMINATION / APERTURE
    drawn = Figure(figsize=(12, 1.15 * math.ceil(len(sources) / 3)), layout="constrained")
    axes = drawn.subplots(math.ceil(len(sources) / 3), 3, squeeze=False).ravel()
    for axis, (name, source) in zip(axes, sources.items(), strict=False):
        for exposure, light in enumerate(source):
            across, down = (points[:, 1] + 3.4 * exposure).numpy(), -points[:, 0].numpy()
            axis.scatter(across, down, c=(light / source.max()).numpy(), s=9, cmap="magma", vmin=0, vmax=1)
            axis.add_patch(Circle((3.4 * exposure, 0), 1.0, fill=False, ec="tab:cyan", lw=0.6))
        axis.set(aspect="equal", facecolor="0.8", xlim=(-1.7, 11.9), ylim=(-1.7, 1.7), xticks=[], yticks=[])
        axis.set_title(name, fontsize=8)
    for axis in axes[len(sources) :]:
        axis.set_visible(False)
    return drawn


# ---- the study ----


def rank(
    name: str,
    out: Path,
    scenes: Scenes,
    task: Reconstruction,
    decoder: Decoder,
    *,
    quick: bool,
    seeds: int,
) -> Study:
    """The list on these scenes: the squared error of the task, and decoded bits of the phase."""
    sources = designs()
    systems = {each: equal_dose(source, scenes.images) for each, source in sources.items()}
    extra = {"scenes": scenes.source, "designs": {each: source.tolist() for each, source in sources.items()}}
    study = run_study(
        name, systems, task, metrics(), quick=quick, out=out, decoder=decoder, n_seeds=seeds, method=METHOD, extra=extra
    )
    # The whitened phase has the components of the phase.
    if task.target is not scenes.phase:
        return study
    if quick and isinstance(decoder, UNetDecoder):
        decoder = LinearDecoder()
    decoded = with_decoded_bits(study.result, systems, scenes.phase, decoder)
    limits = {each: oracle(system, scenes.phase, read_electrons=READ_ELECTRONS) for each, system in systems.items()}
    write(f"{name}_decoded", decoded, limits, out, extra)
    return study


def design_source(out: Path, judged: Scenes, designed: Scenes, *, quick: bool, seeds: int) -> Comparison:
    """Shares of all LEDs in all exposures, of the same dose, from random ones."""
    start = equal_dose(designs()[START], judged.images)
    settings = Settings(
        parameters=("shares",), constraints={"shares": Simplex(1.0)}, n_steps=8 if quick else 150, objective="gaussian"
    )
    comparison, _ = compare_designs(
        "phase_contrast_source",
        start,
        designed.images,
        judged.phase_task,
        settings,
        quick=quick,
        out=out,
        decoder=DECODER,
        n_seeds=seeds,
        method=METHOD,
    )
    found = comparison.systems[DESIGNED].encoder
    assert isinstance(found, MixedLight)
    sources = {**designs(), DESIGNED: found.shares.detach()}
    replace_file(out / "phase_contrast_source_sources.png", report.to_png(figure(sources)))
    return comparison


def run(out: Path, data: Path = DATA, *, quick: bool = False, seeds: int = 3) -> Mapping[str, Study]:
    """The four lists, the design, and their files."""
    pixels, n_scenes = (QUICK_PIXELS, QUICK_SCENES) if quick else (PIXELS, N_SCENES)
    drawn, measured = phantoms(n_scenes, pixels, 0), cells(data, n_scenes, pixels, 0)
    print(f"scenes: {drawn.source}; {measured.source}\n")
    designed_on = phantoms(min(n_scenes, N_DESIGNED_ON), pixels, 1)
    design_source(out, drawn, designed_on, quick=quick, seeds=seeds)
    thick = phantoms(n_scenes, pixels, 0, THICK_RAD)
    # A linear estimate is as good as any of a weak specimen.
    lists = {
        "phase": (drawn, drawn.phase_task, LinearDecoder(), seeds),
        "whitened": (drawn, drawn.white_task, LinearDecoder(), seeds),
        "cells": (measured, measured.phase_task, LinearDecoder(), seeds),
        "thick": (thick, thick.phase_task, DECODER, seeds),
    }
    return {
        name: rank(f"phase_contrast_source_{name}", out, scenes, task, decoder, quick=quick, seeds=n_seeds)
        for name, (scenes, task, decoder, n_seeds) in lists.items()
    }


def main() -> None:
    """Everything, from the command line."""
    given = arguments(__doc__, DATA, "holography/")
    torch.set_num_threads(given.threads)
    run(given.out, given.data, quick=given.quick, seeds=given.seeds)


if __name__ == "__main__":
    main()
