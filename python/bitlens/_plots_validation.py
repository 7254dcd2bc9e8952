"""The figure of a validation: task score against bits and traditional metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from bitlens.validation import ValidationResult

_LABELS = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "mse": "mean squared error",
    "accuracy": "accuracy",
    "cross_entropy_bits": "cross-entropy (bits)",
    "bits": "information (bits per image)",
    "mtf50": "MTF50 (cycles per pixel)",
    "snr_db": "SNR (dB)",
    "condition_number": "condition number",
}
_COLOURS = tuple(f"C{index}" for index in range(10))
# Longer lists of designs are numbered without a legend.
_MOST_LABELS = 40


def validation(result: ValidationResult, bounds: Mapping[str, float] | None = None, *, title: str = "") -> Figure:
    """The main score against the bits with deviations over seeds, then against each metric; errors with their bound.

    Args:
        bounds: for each design the least mean squared error that its bits allow (`validation.reconstruction_bound`).
    """
    score = result.score_names[0]
    panels = ["bits", *result.metrics]
    with_bound = bounds is not None and "mse" in result.score_names
    n_panels = len(panels) + with_bound
    n_columns = min(3, n_panels)
    n_rows = math.ceil(n_panels / n_columns)
    drawn = Figure(figsize=(4.2 * n_columns + 1.5, 3.8 * n_rows), layout="constrained")
    axes = drawn.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axis, by in zip(axes, panels, strict=False):
        _scatter(axis, result, by, score)
    if with_bound:
        assert bounds is not None
        _errors(axes[len(panels)], result, bounds)
    for axis in axes[n_panels:]:
        axis.set_visible(False)
    if len(result.designs) <= _MOST_LABELS:
        drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    drawn.suptitle(title)
    return drawn


def _scatter(axis: Axes, result: ValidationResult, by: str, score: str) -> None:
    """One numbered point per design; bars are what seeds change beyond what they change for all designs alike."""
    x, y = result.mean(by), result.mean(score)
    dx, dy = result.deviation(by, paired=True), result.deviation(score, paired=True)
    for index, design in enumerate(result.designs):
        place, colour = (x[design], y[design]), _COLOURS[index % len(_COLOURS)]
        axis.errorbar(
            *place, xerr=dx[design], yerr=dy[design], fmt="o", ms=4, lw=1, color=colour, label=f"{index + 1} {design}"
        )
        axis.annotate(str(index + 1), place, (4, 3), textcoords="offset points", fontsize=7, color=colour)
    values = np.array(list(x.values()))
    if (values > 0).all() and values.max() > 50 * values.min():
        axis.set_xscale("log")
    axis.set(xlabel=_LABELS.get(by, by.replace("_", " ")), ylabel=_LABELS.get(score, score.replace("_", " ")))
    if len(result.designs) >= 3:
        found = result.rank_correlation(score, by=by)
        shown = "one value" if found.spearman is None else f"{found.spearman:.2f}"
        interval = "" if found.interval is None else f" [{found.interval[0]:.2f}, {found.interval[1]:.2f}]"
        axis.set_title(f"Spearman {shown}{interval}", fontsize=9)


def _errors(axis: Axes, result: ValidationResult, bounds: Mapping[str, float]) -> None:
    bits, error = result.mean("bits"), result.mean("mse")
    order = sorted(result.designs, key=bits.__getitem__)
    axis.plot([bits[d] for d in order], [error[d] for d in order], "o", ms=4, label="decoder")
    axis.plot([bits[d] for d in order], [bounds[d] for d in order], "k-", lw=1, label="least that the bits allow")
    axis.set(xlabel=_LABELS["bits"], ylabel=_LABELS["mse"], yscale="log")
    axis.legend(fontsize=7)
