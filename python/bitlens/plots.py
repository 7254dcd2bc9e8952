"""Figures of results: functions that draw on an Axes, or on a new figure of their own, and return it.

Nothing here touches pyplot or its global state, so it works without a display and in threads;
`axes.figure.savefig(path)` writes a figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from mpl_toolkits.axes_grid1.inset_locator import inset_axes

from bitlens._plots_validation import validation as validation

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from bitlens.design import DesignResult
    from bitlens.estimators import InformationEstimate, TrainingSizes
    from bitlens.noise import CalibrationResult

COLORS = ("#0b6e99", "#c8553d", "#7a6c9d", "#3a7d44", "#b8860b", "#555555")
"""One colour per line, told apart in print and by most colour-blind readers."""
_MARKERS = ("o", "s", "^", "D", "v", "P")


def psf(
    intensity: Tensor | NDArray[np.floating],
    *,
    sample_um: float,
    reach_um: float | None = None,
    colorbar: bool = True,
    axes: Axes | None = None,
) -> Axes:
    """Point spread function over the sensor, on a square-root scale that keeps its rings visible.

    Args:
        intensity: (row, column) with its origin at (rows // 2, columns // 2).
        sample_um: pitch of its samples, micrometres.
        reach_um: half width of what is shown; default all.
    """
    axes = _axes(axes)
    values = _array(intensity)
    low, high = _edges(values.shape[0], sample_um), _edges(values.shape[1], sample_um)
    picture = axes.imshow(
        np.sqrt(np.clip(values, 0, None) / values.max()), extent=(*high, low[1], low[0]), cmap="magma", vmin=0, vmax=1
    )
    if reach_um is not None:
        axes.set(xlim=(-reach_um, reach_um), ylim=(reach_um, -reach_um))
    axes.set(xlabel="µm", ylabel="µm")
    if colorbar:
        _colorbar(axes, picture, "√(intensity / peak)")
    return axes


def wavefront(
    path_waves: Tensor | NDArray[np.floating],
    inside: Tensor | NDArray[np.bool_],
    *,
    step: float,
    limit_waves: float | None = None,
    colorbar: bool = True,
    axes: Axes | None = None,
) -> Axes:
    """Optical path error over the pupil, in waves, less its mean over the aperture.

    Args:
        path_waves: (row, column) with the optical axis at (rows // 2, columns // 2).
        inside: True within the aperture; what is outside stays blank.
        step: pitch of the samples in units of the full aperture's radius.
        limit_waves: end of the colour scale; default the largest value.
    """
    axes = _axes(axes)
    values, mask = _array(path_waves), _array(inside).astype(bool)
    shown = np.where(mask, values - values[mask].mean(), np.nan)
    limit = limit_waves if limit_waves is not None else max(float(np.nanmax(np.abs(shown))), 1e-3)
    low, high = _edges(shown.shape[0], step), _edges(shown.shape[1], step)
    picture = axes.imshow(shown, extent=(*high, low[1], low[0]), cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set(xlim=(-1.1, 1.1), ylim=(1.1, -1.1), xlabel="pupil coordinate", ylabel="pupil coordinate")
    if colorbar:
        _colorbar(axes, picture, "waves")
    return axes


def measurement(
    image: Tensor | NDArray[np.floating],
    *,
    unit: str = "electrons",
    limits: tuple[float, float] | None = None,
    colorbar: bool = True,
    axes: Axes | None = None,
) -> Axes:
    """One image (row, column) in grey, in the unit of the sensor; `limits` are those of the grey scale."""
    axes = _axes(axes)
    low, high = limits if limits is not None else (None, None)
    picture = axes.imshow(_array(image), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    if colorbar:
        _colorbar(axes, picture, unit)
    return axes


def bits_against_photons(
    photons: Sequence[float],
    estimates: Mapping[str, Sequence[InformationEstimate]],
    *,
    axes: Axes | None = None,
) -> Axes:
    """Bits per pixel of several designs at several photon levels, with their confidence intervals.

    Args:
        photons: mean photons per pixel, ascending.
        estimates: name of a design -> one estimate per photon level.
    """
    axes = _axes(axes)
    middle = (len(estimates) - 1) / 2
    for index, (name, row) in enumerate(estimates.items()):
        place = np.asarray(photons, dtype=float) * 1.035 ** (index - middle)  # beside each other, not on top
        axes.errorbar(
            place,
            [estimate.bits_per_pixel for estimate in row],
            yerr=_error_bars_per_pixel(row),
            label=name,
            color=COLORS[index % len(COLORS)],
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=6,
            linewidth=1.8,
            capsize=4,
        )
    axes.set_xscale("log")
    axes.set_xticks(list(photons))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.set(xlabel="photons per pixel (scene mean)", ylabel="information (bits per pixel)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="upper left")
    return _plain(axes)


def design(result: DesignResult, *, reference: tuple[str, float] | None = None, axes: Axes | None = None) -> Axes:
    """The objective at every step of a design, on the random batch of that step, and its moving mean.

    Args:
        reference: a name and the objective of something to compare with, in bits per pixel on the same scenes.
    """
    axes = _axes(axes)
    steps = np.array([row.step for row in result.history])
    climbed = np.array([row.objective_bits_per_pixel for row in result.history])
    axes.plot(steps, climbed, color=COLORS[0], alpha=0.4, linewidth=1, label="one batch of scenes")
    width = max(5, len(climbed) // 12)
    if len(climbed) >= 2 * width:
        smooth = np.convolve(climbed, np.full(width, 1 / width), mode="valid")
        place = steps[: len(smooth)] + (width - 1) / 2
        axes.plot(place, smooth, color=COLORS[0], linewidth=2.2, label=f"mean over {width} steps")
    if reference is not None:
        axes.axhline(reference[1], color="#333333", linestyle=":", linewidth=1.5, label=reference[0])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="step", ylabel="objective (bits per pixel)")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
    axes.legend(frameon=False, loc="upper left", ncols=3, fontsize="small", columnspacing=1.2, handlelength=1.6)
    return _plain(axes)


def design_overview(result: DesignResult) -> Figure:
    """The objective at every step, bits before and after with their intervals, and each parameter before and after.

    Maps are pictures on one colour scale, several numbers are lines over their index, and one number is two points.
    """
    names = list(result.parameters)
    shown = names[:_MOST_PARAMETERS]
    figure = Figure(figsize=(10, 3.6 + 2.9 * len(shown)), layout="constrained")
    rows = figure.subfigures(1 + len(shown), 1, squeeze=False)[:, 0]
    left, right = rows[0].subplots(1, 2, width_ratios=(2, 1))
    design(result, axes=left)
    before_after({"before": result.before, "after": result.after}, axes=right)
    for row, name in zip(rows[1:], shown, strict=True):
        _parameter(row, name, result.initial_parameters[name], result.parameters[name])
    return figure


_MOST_PARAMETERS = 6


def _parameter(figure: SubFigure, name: str, before: Tensor, after: Tensor) -> None:
    first, last = (np.asarray(value.detach().cpu(), dtype=np.float64) for value in (before, after))
    figure.suptitle(name if first.ndim <= 2 else f"{name}, the first of {int(np.prod(first.shape[:-2]))} maps")
    if first.ndim >= 2 and min(first.shape[-2:]) > 1:
        low, high = min(first.min(), last.min()), max(first.max(), last.max())
        for axes, title, value in zip(figure.subplots(1, 2), ("before", "after"), (first, last), strict=True):
            picture = axes.imshow(value.reshape(-1, *value.shape[-2:])[0], vmin=low, vmax=high, cmap="viridis")
            axes.set(title=title, xlabel="column", ylabel="row")
        figure.colorbar(picture, ax=figure.axes, shrink=0.9)
        return
    axes = figure.subplots()
    for title, value, color in (("before", first, COLORS[5]), ("after", last, COLORS[0])):
        axes.plot(value.ravel(), marker="o", markersize=4, color=color, label=f"{title}", linewidth=1.4)
    if first.size == 1:
        axes.set(xticks=[])
        for value in (first, last):
            axes.annotate(f"{value.item():.4g}", (0, value.item()), xytext=(8, 0), textcoords="offset points")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="" if first.size == 1 else "index", ylabel=name)
    axes.legend(frameon=False)
    _plain(axes)


def before_after(estimates: Mapping[str, InformationEstimate], *, axes: Axes | None = None) -> Axes:
    """Bars of bits per pixel with confidence intervals, one for each named estimate."""
    axes = _axes(axes)
    names = list(estimates)
    values = [estimate.bits_per_pixel for estimate in estimates.values()]
    errors = _error_bars_per_pixel(estimates.values())
    axes.bar(
        range(len(names)), values, color=[COLORS[i % len(COLORS)] for i in range(len(names))], width=0.6, alpha=0.85
    )
    axes.errorbar(range(len(names)), values, yerr=errors, color="#222222", linestyle="none", capsize=5)
    for index, value in enumerate(values):
        top = value + errors[1, index]
        axes.annotate(f"{value:.3f}", (index, top), xytext=(0, 4), textcoords="offset points", ha="center")
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(0, 1.15 * max(value + errors[1, i] for i, value in enumerate(values)))
    axes.set(ylabel="information (bits per pixel)")
    return _plain(axes)


def estimate(result: InformationEstimate, *, axes: Axes | None = None) -> Axes:
    """The bracket of an estimate in bits per image: bounds, what is reported with its interval, and the ceiling.

    The bar is the statistical interval around the reported value; the pale band is the bracket of the bounds.
    """
    axes = _axes(axes, height=2.6)
    if result.lower_bits is not None and result.upper_bits is not None:
        axes.axvspan(result.lower_bits, result.upper_bits, color=COLORS[0], alpha=0.12, linewidth=0)
    for value, marker, label in (
        (result.lower_bits, ">", "lower bound"),
        (result.upper_bits, "<", "upper bound"),
    ):
        if value is not None:
            axes.plot([value], [0], marker=marker, color=COLORS[0], markersize=10, linestyle="none", label=label)
    below, above = _error_bar(result.bits, result.confidence_interval_bits)
    axes.errorbar(
        [result.bits],
        [0.6],
        xerr=[[below], [above]],
        marker="o",
        color=COLORS[1],
        capsize=5,
        linestyle="none",
        label=f"reported ({result.bound})",
    )
    if result.ceiling_bits is not None:
        axes.axvline(result.ceiling_bits, color="#333333", linestyle=":", label="ceiling of the lower bound")
    axes.set(yticks=[], ylim=(-0.8, 2.4), xlabel="information (bits per image)")
    axes.legend(frameon=False, loc="upper center", ncols=2, fontsize="small")
    axes.spines[["top", "left", "right"]].set_visible(False)
    return axes


def training_sizes(sizes: TrainingSizes, *, axes: Axes | None = None) -> Axes:
    """Upper bounds per pixel against one over the number of training images, and the line's end at infinity."""
    axes = _plain(_axes(axes))
    inverse = 1.0 / np.asarray(sizes.n_training, dtype=np.float64)
    bits, error = (np.asarray(values) / sizes.n_pixels for values in (sizes.upper_bits, sizes.stderr_bits))
    axes.errorbar(inverse, bits, yerr=1.96 * error, fmt="o", color=COLORS[0], capsize=3, label="upper bound")
    limit = sizes.limit_bits / sizes.n_pixels
    slope = float(((bits - limit) * inverse).sum() / inverse.dot(inverse))
    line = np.array([0.0, 1.05 * inverse.max()])
    axes.plot(line, limit + slope * line, color=COLORS[0], linewidth=1, alpha=0.6)
    reach = 1.96 * sizes.limit_stderr_bits / sizes.n_pixels
    axes.errorbar([0.0], [limit], yerr=[reach], fmt="s", color=COLORS[1], capsize=3, label="limit of many images")
    axes.set_xlim(-0.04 * inverse.max(), 1.08 * inverse.max())
    axes.set_xticks([0.0, *inverse], ["∞", *(str(n) for n in sizes.n_training)])
    axes.set(xlabel=f"training images ({sizes.method.replace('_', ' ')})", ylabel="bits per pixel")
    axes.legend(frameon=False)
    return axes


def photon_transfer(result: CalibrationResult, axes: Axes | None = None) -> Axes:
    """Temporal variance against the signal on log scales, with the calibrated model through it (EMVA 1288).

    Filled points were used for the gain; the dotted line is the read noise, the dashed one the full well.
    """
    axes = _axes(axes)
    gain, read_std = float(result.noise.gain), float(result.noise.read_std)
    points = result.photon_transfer
    error = 100 * result.standard_errors.gain / gain
    for used, label in ((True, "used for the gain"), (False, "not used: close to or past the end of the scale")):
        chosen = [point for point in points if point.used is used]
        if not chosen:
            continue
        axes.errorbar(
            [point.mean for point in chosen],
            [point.variance for point in chosen],
            yerr=[1.96 * point.shot_variance_stderr for point in chosen],
            color=COLORS[0] if used else COLORS[5],
            marker="o",
            markerfacecolor=COLORS[0] if used else "white",
            markersize=6,
            linestyle="none",
            capsize=4,
            label=label,
        )
    means = [point.mean for point in points]
    # From where read noise is all there is to past the brightest point.
    signal = np.geomspace(min(0.3 * min(means), 0.1 * read_std**2 / gain), 1.5 * max(means), 200)
    label = f"gain {gain:.4g} ADU per electron ± {error:.2g} %"
    axes.plot(signal, gain * signal + read_std**2, color=COLORS[1], linewidth=1.8, label=label, zorder=1)
    axes.axhline(
        read_std**2, color="#333333", linestyle=":", linewidth=1.5, label=f"read noise {read_std:.3g} ADU, squared"
    )
    if result.full_well_electrons is not None:
        full = result.full_well_electrons
        axes.axvline(
            gain * full, color=COLORS[2], linestyle="--", linewidth=1.5, label=f"full well {full:,.0f} electrons"
        )
    axes.set(xscale="log", yscale="log", xlabel="signal above the offset (ADU)", ylabel="variance over time (ADU²)")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.45)  # room for the legend
    axes.legend(frameon=False, loc="upper left", fontsize="small")
    return _plain(axes)


def _axes(axes: Axes | None, height: float = 4.2) -> Axes:
    if axes is not None:
        return axes
    made: Axes = Figure(figsize=(6.0, height), layout="constrained").add_subplot()
    return made


def _plain(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)
    return axes


def _colorbar(axes: Axes, picture: object, label: str) -> None:
    # Inside the height of the picture, so that pictures in a row keep one size with or without a bar.
    bar = inset_axes(
        axes,
        width="5%",
        height="100%",
        loc="lower left",
        bbox_to_anchor=(1.04, 0, 1, 1),
        bbox_transform=axes.transAxes,
        borderpad=0,
    )
    figure = axes.figure
    figure.colorbar(picture, cax=bar, label=label)  # type: ignore[arg-type]


def _error_bar(value: float, interval: tuple[float, float] | None) -> tuple[float, float]:
    """How far the interval reaches below and above the value; zero where there is none."""
    return (0.0, 0.0) if interval is None else (max(0.0, value - interval[0]), max(0.0, interval[1] - value))


def _error_bars_per_pixel(estimates: Iterable[InformationEstimate]) -> NDArray[np.float64]:
    """(2, n): below and above each estimate."""
    bars = [_error_bar(one.bits_per_pixel, one.confidence_interval_bits_per_pixel) for one in estimates]
    return np.array(bars).T


def _edges(n: int, pitch: float) -> tuple[float, float]:
    return (-(n // 2) - 0.5) * pitch, (n - n // 2 - 0.5) * pitch


def _array(value: Tensor | NDArray[np.generic]) -> NDArray[np.float64]:
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"need a picture (row, column), got shape {array.shape}")
    return array
