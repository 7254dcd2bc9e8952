"""Baselines of the Event Horizon Telescope at M87: the system's own geometry against the published u, v and errors.

    python benchmarks/studies/real_radio.py [--data FOLDER] [--out FOLDER]

Takes astro/eht_m87/*.csv.gz (Event Horizon Telescope Collaboration 2019, doi:10.3847/2041-8213/ab0c57). Without them
the study says so and does nothing.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from bitlens import report
from bitlens.systems.radio_interferometer import VisibilitySampling, radio_interferometer, station_layout

Array = NDArray[np.float64]
ROOT = Path(__file__).resolve().parents[2]
# In the order of the stations of "eht2017".
CODES = ("AA", "AP", "JC", "LM", "PV", "SM", "AZ", "SP")
# M87 at J2000.
RIGHT_ASCENSION_DEGREES = 15 * (12 + 30 / 60 + 49.42338 / 3600)
DECLINATION_DEGREES = 12 + 23 / 60 + 28.0439 / 3600
MICROARCSECOND = math.radians(1 / 3600) * 1e-6


class Rows(NamedTuple):
    """Published visibilities: UTC days (row,), pairs (row, 2) of stations, u and v in wavelengths (row, 2), Jy."""

    modified_julian_date: Array
    pairs: NDArray[np.int64]
    baselines: Array
    std_jy: Array
    frequency_hz: float


def read_rows(path: Path) -> Rows:
    """The visibilities of one day."""
    with gzip.open(path, "rt") as file:
        header = file.readline()
        fields = dict(part.split(":") for part in header.lstrip("#").strip().split(","))
        day = float(fields["DATE(MJD)"])
        frequency = 1e9 * float(fields["FREQ"].removesuffix("GHz"))
        file.readline()
        rows = list(csv.reader(file))
    hours = np.array([float(row[0]) for row in rows])
    pairs = np.array([[CODES.index(row[1]), CODES.index(row[2])] for row in rows])
    baselines = np.array([[float(row[3]), float(row[4])] for row in rows])
    return Rows(day + hours / 24, pairs, baselines, np.array([float(row[7]) for row in rows]), frequency)


def greenwich_hour_angles_rad(modified_julian_date: Array) -> Array:
    """Hour angles of M87 at Greenwich, radians, from mean sidereal time and the right ascension of J2000.

    Published u and v take the place of J2000 as if it were that of the day: with precession they would be 0.2 % off.
    Reference: Meeus, Astronomical Algorithms, 2nd ed. 1998, eq. 12.4.
    """
    sidereal_degrees = 280.46061837 + 360.98564736629 * (modified_julian_date - 51544.5)
    return np.radians((sidereal_degrees - RIGHT_ASCENSION_DEGREES) % 360)


def own_baselines(rows: Rows) -> tuple[Array, Array]:
    """u and v (row, 2) of the system for stations and times of the rows, and the lower elevation of each, radians."""
    hour_angles = greenwich_hour_angles_rad(rows.modified_julian_date)
    unique, index = np.unique(hour_angles, return_inverse=True)
    encoder = VisibilitySampling(
        station_layout("eht2017", 8, 1.0),
        (32, 32),
        latitude_degrees=None,
        hour_angles_rad=unique,
        declination_rad=math.radians(DECLINATION_DEGREES),
        wavelength_mm=299_792_458e3 / rows.frequency_hz,
        pixel_rad=5 * MICROARCSECOND,
        lowest_elevation_rad=-math.pi / 2,
    )
    all_baselines = encoder.baselines_wavelengths().numpy()
    keys = {
        (time, *pair): number
        for number, (time, pair) in enumerate(zip(encoder.times.tolist(), encoder.pairs.tolist(), strict=True))
    }
    elevations = encoder.elevation_rad().numpy()
    found, visible = np.empty_like(rows.baselines), np.empty(len(index))
    for number, (time, (first, second)) in enumerate(zip(index.tolist(), rows.pairs.tolist(), strict=True)):
        sign = 1 if first < second else -1
        found[number] = sign * all_baselines[keys[time, min(first, second), max(first, second)]]
        visible[number] = elevations[time, [first, second]].min()
    return found, visible


def study(paths: list[Path]) -> tuple[Figure, dict[str, Any]]:
    """The picture and the numbers of all days."""
    days = [read_rows(path) for path in paths]
    published = np.concatenate([day.baselines for day in days])
    own, lowest = (np.concatenate(parts) for parts in zip(*map(own_baselines, days), strict=True))
    long = np.hypot(*published.T) > 1e8
    error = np.hypot(*(own - published).T)[long] / np.hypot(*published.T)[long]
    system = radio_interferometer(
        "eht2017",
        declination_degrees=DECLINATION_DEGREES,
        hour_angles_h=np.arange(0, 24, 0.1).tolist(),
        integration_s=10.0,
        scenes=torch.zeros(1, 1, 32, 32),
    )
    coverage = system.encoder.baselines_wavelengths().numpy()
    ratios, table = [], {}
    model = {tuple(pair): float(system.noise.std[i, 0]) for i, pair in enumerate(system.encoder.pairs.tolist())}
    pairs = np.sort(np.concatenate([day.pairs for day in days]), axis=1)
    std = np.concatenate([day.std_jy for day in days])
    for pair in sorted({tuple(pair) for pair in pairs.tolist()}):
        if pair in model:
            median = float(np.median(std[(pairs == pair).all(axis=1)]))
            ratios.append(median / model[pair])
            table["-".join(CODES[i] for i in pair)] = [1e3 * median, 1e3 * model[pair]]
    figure = Figure(figsize=(13, 6.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for data, style, name in (
        (coverage, {"color": "0.8", "markersize": 2}, "system, above 10 degrees"),
        (published, {"color": "tab:blue", "markersize": 6}, "published"),
        (own, {"color": "tab:orange", "markersize": 1.5}, "system, at the same times"),
    ):
        both = np.concatenate((data, -data)) / 1e9
        left.plot(*both.T, ".", label=name, **style)
    left.legend(frameon=False)
    left.set(xlabel="u, billions of wavelengths", ylabel="v, billions of wavelengths", aspect="equal")
    left.set(title="M87, 230 GHz, April 2017", xlim=(9.5, -9.5), ylim=(-9.5, 9.5))
    measured, predicted = np.array(list(table.values())).T
    right.loglog(predicted, measured, "o")
    right.xaxis.set_minor_formatter(NullFormatter())
    for name, (value, expected) in table.items():
        right.annotate(name, (expected, value), fontsize=8, xytext=(4, 2), textcoords="offset points")
    ends = [predicted.min(), predicted.max()]
    right.plot(ends, ends, "k-", linewidth=1, label="equal")
    right.set(xlabel="system: sqrt(SEFD SEFD / (2 B t)) / efficiency, mJy", ylabel="published median error, mJy")
    right.set(title="10 s, one band of 1.856 GHz, zenith SEFDs")
    right.legend(frameon=False)
    fields = {
        "rows": len(published),
        "rows_of_long_baselines": int(long.sum()),
        "largest_relative_error_of_u_v": float(error.max()),
        "rms_relative_error_of_u_v": float(np.sqrt((error**2).mean())),
        "lowest_elevation_degrees": float(np.degrees(lowest.min())),
        "median_ratio_of_errors": float(np.median(ratios)),
        "ratio_of_errors_from": min(ratios),
        "ratio_of_errors_to": max(ratios),
    }
    return figure, fields


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real data")
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for the figure and JSON")
    arguments = parser.parse_args()
    paths = sorted((arguments.data / "astro" / "eht_m87").glob("*.csv.gz"))
    if not paths:
        print(f"baselines: skipped, no data at {arguments.data / 'astro' / 'eht_m87'}")
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    figure, fields = study(paths)
    (arguments.out / "baselines.png").write_bytes(report.to_png(figure))
    (arguments.out / "baselines.json").write_text(json.dumps(fields, indent=2, allow_nan=False))
    for name, value in fields.items():
        print(f"{name}: {value:.5g}")


if __name__ == "__main__":
    main()
