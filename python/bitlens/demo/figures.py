"""The figures of the demo's report."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bitlens import plots
from bitlens.demo.study import DESIGN_PHOTONS, DESIGNS, Example, Study
from bitlens.design import DesignResult
from bitlens.encoders import Camera
from bitlens.report import Picture, to_png

_REACH_UM = 30.0


def draw_all(study: Study) -> dict[str, Picture]:
    """Every figure by its file name."""
    drawn = (
        _psfs(study),
        _measurements(study),
        _bits(study),
        _history("history_pupil", study.pupil, study),
        _before_after_pupil(study),
        _history("history_phase_mask", study.phase, study),
        _before_after_phase_mask(study),
    )
    return {picture.name: picture for picture in drawn}


def _picture(name: str, caption: str, figure: Figure) -> Picture:
    return Picture(name, caption, to_png(figure))


def _psf(example: Example, title: str, axes: Axes, *, colorbar: bool) -> None:
    camera = example.encoder
    sample_um = float(camera.pixel_um) / camera.oversampling
    plots.psf(camera.psf().detach(), sample_um=sample_um, reach_um=_REACH_UM, colorbar=colorbar, axes=axes)
    axes.set_title(title)


def _psfs(study: Study) -> Picture:
    figure = Figure(figsize=(10.5, 3.5))
    for index, name in enumerate(DESIGNS):
        axes = figure.add_subplot(1, 3, index + 1)
        _psf(study.examples[name], name, axes, colorbar=index == 2)
        if index:
            axes.set_ylabel("")
    figure.subplots_adjust(left=0.07, right=0.90, top=0.90, bottom=0.15, wspace=0.2)
    caption = "Point spread functions of the three designs on the sensor, each relative to its own peak."
    return _picture("psf", caption, figure)


def _measurements(study: Study) -> Picture:
    names = (*DESIGNS, "aberrated lens", "designed pupil", "phase mask")
    figure = Figure(figsize=(10.5, 7.2))
    bright = study.examples["in focus"].mean
    limits = (0.0, float(torch.quantile(bright, 0.995)))
    for index, name in enumerate(names):
        axes = figure.add_subplot(2, 3, index + 1)
        plots.measurement(
            study.examples[name].measured, limits=limits, colorbar=index % 3 == 2, unit="electrons", axes=axes
        )
        axes.set_title(name)
    figure.subplots_adjust(left=0.02, right=0.91, top=0.94, bottom=0.02, wspace=0.06, hspace=0.14)
    caption = (
        f"One measurement of the same 64 x 64 pixels by each design, at {DESIGN_PHOTONS:g} photons per pixel where "
        "the scene has its mean brightness; one grey scale for all. The second row holds the lenses of the two designs."
    )
    return _picture("measurements", caption, figure)


def _bits(study: Study) -> Picture:
    axes = plots.bits_against_photons(study.photons, study.estimates)
    caption = "Bits per pixel against light, with 95 % intervals over images (not over patches)."
    return _picture("bits_against_photons", caption, _figure(axes))


def _history(name: str, result: DesignResult, study: Study) -> Picture:
    reference = ("camera in focus", study.in_focus_objective_bits_per_pixel)
    axes = plots.design(result, reference=reference)
    caption = (
        "The objective that is climbed, the Gaussian closed form on random batches of the fitting images, and its "
        "value for the camera in focus on the same images. The bits of the tables are another estimate on other images."
    )
    return _picture(name, caption, _figure(axes))


def _before_after_pupil(study: Study) -> Picture:
    figure = Figure(figsize=(11.5, 6.6))
    grid = figure.add_gridspec(2, 2, left=0.065, right=0.60, top=0.94, bottom=0.09, wspace=0.3, hspace=0.36)
    start, end = study.examples["aberrated lens"], study.examples["designed pupil"]
    limit = _largest_path(start.encoder)
    for column, (example, when) in enumerate(((start, "before"), (end, "after"))):
        last = column == 1
        above, below = figure.add_subplot(grid[0, column]), figure.add_subplot(grid[1, column])
        _wavefront(example.encoder, f"wavefront {when}", limit, above, colorbar=last)
        _psf(example, f"PSF {when}", below, colorbar=last)
        if last:
            above.set_ylabel("")
            below.set_ylabel("")
    bars = figure.add_axes((0.76, 0.16, 0.23, 0.72))
    named = {"before": study.pupil.before, "after": study.pupil.after, "in focus": study.in_focus}
    plots.before_after(named, axes=bars)
    caption = (
        "The pupil before and after: path error over the aperture, point spread function, and bits per pixel with "
        "95 % intervals over the same images, next to the camera in focus."
    )
    return _picture("before_after_pupil", caption, figure)


def _before_after_phase_mask(study: Study) -> Picture:
    figure = Figure(figsize=(11.5, 3.7))
    grid = figure.add_gridspec(1, 2, left=0.065, right=0.61, top=0.90, bottom=0.15, wspace=0.75)
    end = study.examples["phase mask"]
    _wavefront(end.encoder, "phase mask", None, figure.add_subplot(grid[0]), colorbar=True)
    _psf(end, "PSF with the mask", figure.add_subplot(grid[1]), colorbar=True)
    bars = figure.add_axes((0.78, 0.15, 0.21, 0.75))
    plots.before_after({"in focus": study.phase.before, "phase mask": study.phase.after}, axes=bars)
    caption = (
        "The free phase mask (note its colour scale), its point spread function, and its bits next to the bare lens."
    )
    return _picture("before_after_phase_mask", caption, figure)


def _wavefront(camera: Camera, title: str, limit: float | None, axes: Axes, *, colorbar: bool) -> None:
    grid = camera.pupil_grid()
    inside = (grid.column**2 + grid.row**2) <= 1
    path = camera.path_waves().detach()
    plots.wavefront(path, inside, step=float(grid.step), limit_waves=limit, colorbar=colorbar, axes=axes)
    axes.set_title(title)


@torch.no_grad()
def _largest_path(camera: Camera) -> float:
    grid = camera.pupil_grid()
    path = camera.path_waves()[(grid.column**2 + grid.row**2) <= 1]
    return float((path - path.mean()).abs().max())


def _figure(axes: Axes) -> Figure:
    figure = axes.figure
    assert isinstance(figure, Figure)
    return figure
