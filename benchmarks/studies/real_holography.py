"""An off-axis hologram of a resolution target, recorded out of focus: at which distance is it sharp?

    python benchmarks/studies/real_holography.py [--data FOLDER] [--out FOLDER]

The carrier is found and taken off, the object's order cut out of the spectrum, and the field propagated on over a range
of distances. The file states 30 mm. (-P: this folder's coverage.py must not stand in for the package of that name.)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bitlens import report
from bitlens.encoders import angular_spectrum
from bitlens.report import Table

FILE = "holography/usaf_defocus_pydhm.npz"
ROOT = Path(__file__).resolve().parents[2]


class Recording(NamedTuple):
    """`field` (row, column), the object's order around frequency zero, and the numbers of the set-up."""

    field: Tensor
    carrier: tuple[int, int]
    aperture: float
    wavelength_nm: float
    pixel_um: float
    stated_mm: float


class Focus(NamedTuple):
    """Sharpness (distance,) at `distance_mm` and the vertex of the parabola through the largest and its neighbours."""

    distance_mm: Tensor
    sharpness: Tensor
    best_mm: float


def read(data: Path, *, radius_bins: float = 170.0) -> Recording:
    """Finds the carrier, the strongest frequency away from zero, and keeps what lies within a smooth disc around it."""
    with np.load(data / FILE) as file:
        hologram = torch.from_numpy(file["hologram"].astype(np.float64))
        wavelength_m, pixel_m, distance_m = (float(file[name]) for name in ("wavelength_m", "pixel_m", "distance_m"))
    rows, columns = hologram.shape
    spectrum = torch.fft.fft2(hologram - hologram.mean())
    row = torch.fft.fftfreq(rows, 1 / rows, dtype=torch.float64)[:, None]
    column = torch.fft.fftfreq(columns, 1 / columns, dtype=torch.float64)[None, :]
    # Of the two orders, which are each other's conjugates, the one with light on its negative rows.
    searched = spectrum.abs() * ((torch.hypot(row, column) > 150) & (row < 0))
    peak = int(searched.argmax())
    carrier = (int(row[peak // columns, 0]), int(column[0, peak % columns]))
    distance = torch.hypot(row - carrier[0], column - carrier[1])
    window = ((radius_bins - distance) / 20 + 0.5).clamp(0, 1)
    order = torch.roll(spectrum * window, (-carrier[0], -carrier[1]), (0, 1))
    aperture = radius_bins / max(rows, columns) * wavelength_m / pixel_m
    return Recording(torch.fft.ifft2(order), carrier, aperture, 1e9 * wavelength_m, 1e6 * pixel_m, 1e3 * distance_m)


def refocused(recording: Recording, distance_mm: float) -> Tensor:
    """The field `distance_mm` behind the sensor, complex (row, column)."""
    return angular_spectrum(
        recording.field,
        distance_mm=distance_mm,
        wavelength_nm=recording.wavelength_nm,
        sample_um=recording.pixel_um,
        pad=1.25,
    )


def sharpness(field: Tensor) -> float:
    """Mean square of the gradient of the amplitude over its mean square, in the middle three quarters of the field."""
    rows, columns = field.shape
    amplitude = field.abs()[rows // 8 : -rows // 8, columns // 8 : -columns // 8]
    slope = amplitude.diff(dim=0)[:, 1:] ** 2 + amplitude.diff(dim=1)[1:] ** 2
    return float(slope.mean() / (amplitude**2).mean())


def find_focus(recording: Recording, distances_mm: Tensor) -> Focus:
    """Sharpness over equally spaced distances, and where it peaks."""
    values = torch.tensor([sharpness(refocused(recording, z)) for z in distances_mm.tolist()], dtype=torch.float64)
    at = int(values[1:-1].argmax()) + 1
    before, peak, after = values[at - 1 : at + 2].tolist()
    step = float(distances_mm[1] - distances_mm[0])
    vertex = 0.5 * (before - after) / (before - 2 * peak + after)
    return Focus(distances_mm, values, float(distances_mm[at]) + step * vertex)


def picture(recording: Recording, focus: Focus) -> Figure:
    """Amplitude on the sensor and in focus, a detail of both, and sharpness over distance."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    axes = figure.subplots(2, 3)
    fields = (
        ("on the sensor", recording.field),
        (f"{focus.best_mm:.1f} mm behind", refocused(recording, focus.best_mm)),
    )
    for line, (name, field) in zip(axes, fields, strict=True):
        amplitude = field.abs().float()
        high = float(amplitude.flatten()[::7].quantile(0.995))
        rows, columns = amplitude.shape
        middle = amplitude[rows // 3 : 2 * rows // 3, columns // 3 : 2 * columns // 3]
        for panel, image, title in ((line[0], amplitude, name), (line[1], middle, f"{name}, middle")):
            panel.imshow(image, cmap="gray", vmin=0, vmax=high)
            panel.set(title=title, xlabel="column, pixels", ylabel="row, pixels")
    axes[0, 2].plot(focus.distance_mm, focus.sharpness, ".-")
    axes[0, 2].axvline(recording.stated_mm, color="black", linewidth=1, label=f"stated: {recording.stated_mm:.0f} mm")
    axes[0, 2].set(xlabel="distance, mm", ylabel="sharpness", title=f"sharpest at {focus.best_mm:.2f} mm")
    axes[0, 2].legend(frameon=False)
    axes[1, 2].imshow(refocused(recording, focus.best_mm).angle(), cmap="twilight")
    axes[1, 2].set(title="phase in focus, rad", xlabel="column, pixels", ylabel="row, pixels")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real data")
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for figures and JSON")
    arguments = parser.parse_args()
    if not (arguments.data / FILE).is_file():
        print(f"holography: skipped, no data at {arguments.data / FILE}")
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    recording = read(arguments.data)
    focus = find_focus(recording, torch.arange(-40.0, 80.1, 2.0))
    depth_mm = 1e-6 * recording.wavelength_nm / recording.aperture**2
    rows = (
        ("stated", f"{recording.stated_mm:.1f}"),
        ("sharpest", f"{focus.best_mm:.2f}"),
        ("depth of focus, wavelength / NA²", f"{depth_mm:.2f}"),
    )
    print(f"carrier at {recording.carrier} bins\n{report.to_text(Table('', ('distance', 'mm'), rows))}")
    (arguments.out / "holography.png").write_bytes(report.to_png(picture(recording, focus)))
    fields = {
        "carrier_bins": recording.carrier,
        "stated_mm": recording.stated_mm,
        "sharpest_mm": focus.best_mm,
        "depth_of_focus_mm": depth_mm,
        "distance_mm": focus.distance_mm.tolist(),
        "sharpness": focus.sharpness.tolist(),
    }
    (arguments.out / "holography.json").write_text(json.dumps(fields, indent=2, allow_nan=False))


if __name__ == "__main__":
    main()
