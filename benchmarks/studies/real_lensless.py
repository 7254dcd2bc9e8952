"""A hand through a diffuser: the scene of a measured lensless image by projected gradient steps.

    python benchmarks/studies/real_lensless.py [--data FOLDER] [--out FOLDER] [--binning N] [--steps N]

The data are the point spread function and the image that the DiffuserCam tutorial publishes (BSD-3).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bitlens import report
from bitlens.encoders import PSFConvolution, integrate_pixels
from bitlens.report import Table

ROOT = Path(__file__).resolve().parents[2]
_FILE = "lensless/diffusercam_tutorial.npz"
_DARK_CORNER = 15


def load(data: Path, binning: int) -> tuple[Tensor, Tensor]:
    """PSF (row, column) of sum 1 and image (1, 1, row, column), without the dark level, in bins of pixels."""
    with np.load(data / _FILE) as archive:
        frames = [torch.from_numpy(archive[name].astype(np.float32)) for name in ("psf", "raw")]
    # Both frames have the same dark level, seen in the corner of the PSF, where no light falls.
    dark = frames[0][:_DARK_CORNER, :_DARK_CORNER].mean()
    psf, image = (integrate_pixels((frame - dark).clamp(min=0), binning) for frame in frames)
    return psf / psf.sum(), (image / image.max())[None, None]


def reconstruct(psf: Tensor, image: Tensor, n_steps: int) -> tuple[Tensor, list[float]]:
    """Scene (row, column) >= 0 of twice the sensor's size, whose light reaches the sensor, and |A x - y| / |y|.

    Accelerated projected gradient steps (Beck and Teboulle 2009, doi:10.1137/080716542).
    """
    rows, columns = image.shape[-2:]
    camera = PSFConvolution(psf, crop=(rows, columns), image_size=(2 * rows, 2 * columns))
    scene = torch.zeros(1, 1, 2 * rows, 2 * columns)
    ahead, momentum, residuals = scene, 1.0, []
    with torch.no_grad():
        for _ in range(n_steps):
            difference = camera.A(ahead) - image
            # A PSF of sum 1 has no singular value above 1.
            stepped = (ahead - camera.A_adjoint(difference)).clamp(min=0)
            following = 0.5 * (1 + (1 + 4 * momentum**2) ** 0.5)
            ahead = stepped + (momentum - 1) / following * (stepped - scene)
            scene, momentum = stepped, following
            residuals.append(float(difference.norm() / image.norm()))
    return scene[0, 0], residuals


def hand_is_there(scene: Tensor) -> dict[str, float]:
    """How compact the scene is: share of its light in the brightest tenth of the samples, and within the sensor's."""
    values = scene.flatten().sort(descending=True).values
    rows, columns = scene.shape
    middle = scene[rows // 4 : -(rows // 4), columns // 4 : -(columns // 4)]
    return {
        "light_in_brightest_tenth": float(values[: values.numel() // 10].sum() / values.sum()),
        "light_within_sensor": float(middle.sum() / scene.sum()),
    }


def picture(psf: Tensor, image: Tensor, scene: Tensor, residuals: list[float]) -> Figure:
    """PSF, measured image, scene and residual."""
    figure = Figure(figsize=(12, 9), layout="constrained")
    rows, columns = image.shape[-2:]
    middle = scene[rows // 2 : rows // 2 + rows, columns // 2 : columns // 2 + columns]
    axes = figure.subplots(2, 2).ravel()
    shown = (("point spread function", psf), ("measured", image[0, 0]), ("scene", middle))
    for axis, (title, values) in zip(axes, shown, strict=False):
        axis.imshow(values.numpy(), cmap="gray", vmin=0, vmax=float(values.flatten().quantile(0.998)))
        axis.set(title=title, xlabel="column", ylabel="row")
    axes[3].semilogy(range(1, len(residuals) + 1), residuals)
    axes[3].set(title="residual", xlabel="step", ylabel="|A x - y| / |y|")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real data")
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for figure and JSON")
    parser.add_argument("--binning", type=int, default=5, help="pixels per side of a bin")
    parser.add_argument("--steps", type=int, default=150, help="gradient steps")
    arguments = parser.parse_args()
    if not (arguments.data / _FILE).is_file():
        print(f"lensless: skipped, no data at {arguments.data / _FILE}")
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    psf, image = load(arguments.data, arguments.binning)
    scene, residuals = reconstruct(psf, image, arguments.steps)
    found: dict[str, Any] = {"binning": arguments.binning, "steps": arguments.steps, "residual": residuals[-1]}
    found |= hand_is_there(scene)
    rows = tuple((name, f"{value:.4g}") for name, value in found.items())
    print(f"lensless: {__doc__.splitlines()[0]}\n{report.to_text(Table('', ('quantity', 'value'), rows))}")
    (arguments.out / "lensless.png").write_bytes(report.to_png(picture(psf, image, scene, residuals)))
    (arguments.out / "lensless.json").write_text(json.dumps(found, indent=2, allow_nan=False))


if __name__ == "__main__":
    main()
