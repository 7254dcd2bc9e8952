"""A tooth in a synchrotron beam: flat field, logarithm, axis of rotation, filtered back projection, residual.

    python benchmarks/studies/real_ct.py [--data FOLDER] [--out FOLDER]

Takes ct/tooth.h5: 181 views over half a turn of two detector rows. Without it the study says so and does nothing.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bitlens import report
from bitlens.encoders.tomography import ParallelProjection, filtered_back_projection
from bitlens.systems.x_ray_ct import TransmissionTomography

ROOT = Path(__file__).resolve().parents[2]


class Scan(NamedTuple):
    """Line integrals (detector row, view, bin) and counts over flat field's, the same; angles (view,)."""

    thickness: Tensor
    transmission: Tensor
    flat_counts: float
    angles_rad: Tensor


class Reconstruction(NamedTuple):
    """What comes out of one detector row."""

    image: Tensor
    sinogram: Tensor
    projected: Tensor
    axis_bin: float
    residual: float
    rounding: float


def read_scan(path: Path) -> Scan:
    """The scan of a file in the layout of the Data Exchange."""
    import h5py

    with h5py.File(path) as file:
        counts, white, dark = (
            torch.from_numpy(file[f"exchange/{name}"][:].astype(np.float64))
            for name in ("data", "data_white", "data_dark")
        )
        degrees = torch.from_numpy(np.asarray(file["exchange/theta"][:], dtype=np.float64))
    flat = white.mean(0) - dark.mean(0)
    transmission = ((counts - dark.mean(0)) / flat).movedim(1, 0)
    thickness = -torch.log(transmission.clamp(min=1e-3))
    # The beam drifts from view to view: the air beside the tooth, the outer 40 bins, is at 0.
    air = torch.cat((thickness[..., :20], thickness[..., -20:]), -1).mean(-1, keepdim=True)
    return Scan(thickness - air, transmission, float(flat.mean()), torch.deg2rad(degrees))


def axis_of_rotation(first: Tensor, opposite: Tensor) -> float:
    """Bin of the axis, at which half a turn mirrors a view (bin,): least squares over shifts, refined by a parabola.

    The last of the views, one step before half a turn, stands for the opposite of the first.
    """
    bins = len(first)
    mirrored = opposite.flip(0)
    shifts = torch.arange(-bins // 4, bins // 4)
    costs = []
    for shift in shifts.tolist():
        low, high = max(0, shift), min(bins, bins + shift)
        costs.append(float((first[low:high] - mirrored[low - shift : high - shift]).square().mean()))
    best = int(np.argmin(costs))
    left, middle, right = costs[best - 1 : best + 2]
    fine = float(shifts[best]) + 0.5 * (left - right) / (left - 2 * middle + right)
    return (bins - 1 + fine) / 2


def reconstruct(scan: Scan, row: int = 0, size: int = 512) -> Reconstruction:
    """The slice of a detector row, lengths in bins; `size` pixels a side."""
    thickness = scan.thickness[row]
    axis = axis_of_rotation(thickness[0], thickness[-1])
    sinogram = thickness[None, None]
    bins = sinogram.shape[-1]
    encoder = ParallelProjection(scan.angles_rad, (size, size), bins=bins, offset_mm=axis - (bins - 1) / 2)
    image = filtered_back_projection(sinogram, encoder, window="hann")
    projected = encoder.A(image)
    inside = projected > 0.05 * projected.max()
    residual = float((projected - sinogram)[inside].square().mean().sqrt() / sinogram[inside].square().mean().sqrt())
    # The same image through the system's mean and back: what the model's exponential and logarithm leave.
    system = TransmissionTomography(encoder, photons_per_view=scan.flat_counts)
    rounding = float((system.attenuation(system(image)) - projected).abs().max())
    return Reconstruction(image[0, 0], sinogram[0, 0], projected[0, 0], axis, residual, rounding)


def picture(found: Reconstruction) -> Figure:
    """Measured and reprojected line integrals, the slice, and a line through it."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    top = float(found.sinogram.max())
    for axis, data, name in (
        (axes[0, 0], found.sinogram, "measured line integrals"),
        (axes[0, 1], found.projected, "projections of the reconstruction"),
    ):
        shown = axis.imshow(data, cmap="gray", aspect="auto", vmin=0, vmax=top)
        axis.axvline(found.axis_bin, color="tab:red", linewidth=0.8)
        axis.set(title=name, xlabel="detector bin", ylabel="view")
        figure.colorbar(shown, ax=axis)
    image = found.image
    shown = axes[1, 0].imshow(image, cmap="gray", vmin=0, vmax=float(image.quantile(0.999)))
    figure.colorbar(shown, ax=axes[1, 0], label="attenuation, 1 / bin")
    axes[1, 0].set(title="filtered back projection", xlabel="column", ylabel="row")
    middle = image.shape[0] // 2
    axes[1, 1].plot(image[middle])
    axes[1, 1].set(title=f"row {middle}", xlabel="column", ylabel="attenuation, 1 / bin")
    return figure


def study(path: Path) -> tuple[Figure, dict[str, Any]]:
    """The picture and the numbers of the first detector row."""
    scan = read_scan(path)
    found = reconstruct(scan)
    image = found.image
    side = torch.arange(len(image)) - (len(image) - 1) / 2
    distance = torch.hypot(side[:, None], side)
    outside = image[(distance > 0.45 * len(image)) & (distance < 0.49 * len(image))]
    fields = {
        "axis_bin": found.axis_bin,
        "residual_of_projections": found.residual,
        "largest_difference_of_the_model": found.rounding,
        "attenuation_per_bin_99th_percentile": float(image.flatten()[::4].quantile(0.99)),
        "air_mean_per_bin": float(outside.mean()),
        "air_sd_per_bin": float(outside.std()),
        "least_transmission": float(scan.transmission.min()),
        "views": len(found.sinogram),
        "degrees": math.degrees(float(scan.angles_rad[-1] - scan.angles_rad[0])),
    }
    return picture(found), fields


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real data")
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for the figure and JSON")
    arguments = parser.parse_args()
    path = arguments.data / "ct" / "tooth.h5"
    if not path.is_file():
        print(f"tooth: skipped, no data at {path}")
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    figure, fields = study(path)
    (arguments.out / "tooth.png").write_bytes(report.to_png(figure))
    (arguments.out / "tooth.json").write_text(json.dumps(fields, indent=2, allow_nan=False))
    for name, value in fields.items():
        print(f"{name}: {value:.5g}")


if __name__ == "__main__":
    main()
