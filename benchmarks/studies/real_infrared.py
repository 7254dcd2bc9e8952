"""Raw counts of thermal cameras to kelvin, and what a cooled camera would make of those scenes.

    python benchmarks/studies/real_infrared.py [--data FOLDER] [--out FOLDER]

The counts and each camera's Planck constants come from radiometric files that the ThermStats package publishes (MIT)
and from read_thermal.py (CC0).
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
from bitlens.report import Table
from bitlens.systems.infrared_camera import infrared_camera, kelvin_from_counts

ROOT = Path(__file__).resolve().parents[2]
_COUNTS, _CONSTANTS = "infrared/flir_raw16.npz", "infrared/flir_raw16_meta.json"
_ZERO_CELSIUS = 273.15


def load(data: Path) -> dict[str, Tensor]:
    """Temperature (row, column), kelvin, of each image, by the constants in its file."""
    constants = json.loads((data / _CONSTANTS).read_text())
    scenes = {}
    with np.load(data / _COUNTS) as archive:
        for name, its in constants.items():
            scenes[name] = kelvin_from_counts(
                archive[name].astype(np.float64),
                planck_r1=its["planckR1"],
                planck_r2=its["planckR2"],
                planck_b=its["planckB"],
                planck_f=its["planckF"],
                planck_o=its["planckO"],
            )
    return scenes


def pictures(scenes: dict[str, Tensor]) -> tuple[Figure, dict[str, Any]]:
    """The largest scenes, and as a cooled camera measures them: standing still, moving, before a full well."""
    name = max(scenes, key=lambda key: scenes[key].numel())
    scene = scenes[name].to(torch.float32)[None, None]
    figure = Figure(figsize=(14, 8), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for axis, key in zip(axes, (name, "flir_example", "FLIR8589"), strict=False):
        shown = axis.imshow(scenes[key].numpy() - _ZERO_CELSIUS, cmap="inferno")
        axis.set(title=f"{key}, degrees Celsius", xlabel="column", ylabel="row")
        figure.colorbar(shown, ax=axis)
    found: dict[str, Any] = {}
    settings = {
        "still, 6 ms": {"exposure_ms": 6.0},
        "2000 pixels/s, 6 ms": {"exposure_ms": 6.0, "pixels_per_s": 2000.0},
        "2000 pixels/s, 1 ms": {"exposure_ms": 1.0, "pixels_per_s": 2000.0},
    }
    generator = torch.Generator().manual_seed(0)
    for axis, (title, setting) in zip(axes[3:], settings.items(), strict=True):
        rows, columns = (size - size % 3 for size in scene.shape[-2:])
        encoder, noise, cut = infrared_camera("mid_wave", scenes=scene[..., :rows, :columns], **setting)
        with torch.no_grad():
            mean = encoder(cut)
            measured = noise.sample(mean, generator)[0, 0]
            netd = float(encoder.netd_kelvin(300.0, 600.0))
        full = float((measured >= 0.999 * noise.full_well_electrons).double().mean())
        found[title] = {"netd_at_300_K_mK": 1e3 * netd, "mean_electrons": float(mean.mean()), "full_wells": full}
        shown = axis.imshow(measured.numpy(), cmap="inferno")
        axis.set(title=f"{title}: NETD {1e3 * netd:.1f} mK", xlabel="column", ylabel="row")
        figure.colorbar(shown, ax=axis, label="electrons")
    return figure, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real data")
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for figure and JSON")
    arguments = parser.parse_args()
    if not all((arguments.data / file).is_file() for file in (_COUNTS, _CONSTANTS)):
        print(f"infrared: skipped, no data at {arguments.data / _COUNTS}")
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    scenes = load(arguments.data)
    celsius = {name: scene - _ZERO_CELSIUS for name, scene in scenes.items()}
    rows = tuple(
        (name, f"{float(c.min()):.1f}", f"{float(c.median()):.1f}", f"{float(c.max()):.1f}")
        for name, c in celsius.items()
    )
    table = Table("", ("image", "lowest, C", "median, C", "highest, C"), rows)
    figure, found = pictures(scenes)
    print(f"infrared: {__doc__.splitlines()[0]}\n{report.to_text(table)}\n{json.dumps(found, indent=2)}")
    (arguments.out / "infrared.png").write_bytes(report.to_png(figure))
    found |= {name: [float(c.min()), float(c.max())] for name, c in celsius.items()}
    (arguments.out / "infrared.json").write_text(json.dumps(found, indent=2, allow_nan=False))


if __name__ == "__main__":
    main()
