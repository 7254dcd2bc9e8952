"""Coded apertures designed by information and end to end, from one start, and what either costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _design_study import Comparison, Settings, compare_designs
from _end_to_end_tuning import costs, tuned
from matplotlib.figure import Figure
from torch import Tensor

from bitlens import report
from bitlens._files import replace_file
from bitlens.design import Binary
from bitlens.systems import ImagingSystem
from bitlens.validation import Reconstruction, UNetDecoder

END_TO_END_STEPS = 600
# Rates of the aperture and of the decoder that training end to end may have, and steps at each pair of them.
RATES, RATE_STEPS = ((0.02, 0.1), (1e-4, 3e-4, 1e-3, 3e-3)), 200

Rates = tuple[Sequence[float], Sequence[float]]


def designs(
    name: str,
    start: ImagingSystem,
    scenes: Tensor,
    groups: tuple[Any, Any],
    decoder: UNetDecoder,
    rates: Rates,
    *,
    quick: bool,
    n_seeds: int,
    out: Path,
) -> Comparison:
    """The aperture of `start`, one designed by information on `scenes`, and one trained end to end on them.

    `groups`: of the scenes of `start`, which judge, and of `scenes`. `rates`: those that training end to end may have.
    """
    task = Reconstruction(data_range=1.0)
    settings = Settings(
        parameters=("linear.mask",),
        constraints={"linear.mask": Binary("annealing", share=0.5)},
        n_steps=60,
        # With 400 the design took half of the memory of training end to end, with 200 half of that.
        batch_size=100 if quick else 200,
        objective="gaussian",
        # As in the ranking; the best of several densities has an error here that is as large as the gain.
        judge_method="gaussian",
        learning_rate=0.1,
        end_to_end_steps=END_TO_END_STEPS,
    )
    if quick:
        rates = (rates[0][:1], rates[1][:1])
    settings = tuned(
        name,
        start,
        scenes,
        task,
        groups[1],
        decoder,
        settings,
        rates,
        n_steps=8 if quick else RATE_STEPS,
        out=out,
    )
    comparison, _ = compare_designs(
        name,
        start,
        scenes,
        task,
        settings,
        quick=quick,
        out=out,
        groups=groups[0],
        design_task=task,
        design_groups=groups[1],
        decoder=decoder,
        n_seeds=n_seeds,
        method="gaussian",
    )
    if not quick:
        costs(name, start, scenes, task, groups[1], decoder, settings, comparison.cost, out=out)
    drawn = {design: system.encoder.linear.mask for design, system in comparison.systems.items()}  # type: ignore[union-attr]
    replace_file(out / f"{name}_apertures.png", report.to_png(picture(drawn)))
    return comparison


def picture(drawn: Mapping[str, Tensor]) -> Figure:
    """Each aperture, white where it is open."""
    figure = Figure(figsize=(2.6 * len(drawn), 2.9), layout="constrained")
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axis, (name, mask) in zip(axes, drawn.items(), strict=True):
        axis.imshow(mask.detach().numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set_title(name, fontsize=9)
        axis.set_axis_off()
    return figure
