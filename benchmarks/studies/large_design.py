"""A design of 1e5 numbers on two cores: does its memory grow with the steps?

A free-form phase mask of 317 x 317 before a camera one wave out of focus, and the relief of 316 x 316 of a lensless
camera, each climbed on a few scenes at a time and judged on other photographs. Light passes the fifth of the mask that
lies in the pupil, and there the truth is known: the mask has to undo the defocus. All of the relief passes light.

    python benchmarks/studies/large_design.py [--out FOLDER] [--quick] [--steps N] [--batch N] [--threads N]

Each design runs in processes of its own: once plainly, and once with a checkpoint written after every step, interrupted
half-way and resumed, which has to end where the plain run does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import theilslopes
from torch import Tensor

import bitlens
from bitlens import report
from bitlens._files import replace_file
from bitlens.datasets import FITTING_SCENES, REPORTING_SCENES, scene_patches
from bitlens.design import DesignStep, _starts
from bitlens.encoders import Camera
from bitlens.systems import ImagingSystem
from bitlens.validation import measure_cost

DESIGNS = {"camera": "phase_mask_waves", "lensless_camera": "height_um"}
MOST_GROWTH_MB = 5.0
# Steps after which the buffers of the libraries are made; the first row of the table.
SETTLED = 5
# Photographs lower than the camera's scenes with their margin.
_TOO_SMALL = ("clock", "chelsea", "coins")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Course:
    """One run: seconds and resident MB after each step, bits on scenes that no step saw, the map at both ends.

    `resumed_at` is the step at which it was interrupted, 0 without; `write_s` and `checkpoint_bytes`: of checkpoints.
    """

    n_parameters: int
    step_s: list[float]
    resident_mb: list[float]
    before_bits: float
    after_bits: float
    gain_stderr_bits: float
    warnings: list[str]
    initial: np.ndarray
    final: np.ndarray
    write_s: list[float]
    checkpoint_bytes: int
    resumed_at: int

    @property
    def growth_mb(self) -> float:
        """Median slope over all pairs of steps of the last call, after `SETTLED` ones, times their number.

        Single steps swing by tens of MB as the allocator gives memory back; what leaks does so at every step.
        """
        memory = self.resident_mb[self.resumed_at :][SETTLED - 1 :]
        return float(theilslopes(memory).slope) * len(memory)


def resident_mb() -> float:
    """What this process holds in memory, MB; Linux only."""
    found = re.search(r"VmRSS:\s+(\d+) kB", _STATUS.read_text())
    assert found is not None
    return int(found.group(1)) * 1024 / 1e6


def system(name: str, n_scenes: int) -> tuple[ImagingSystem, Tensor]:
    """The start with the scenes to climb on, and scenes of other photographs to judge by."""
    side = 16
    if name == "lensless_camera":
        scenes, judged = (_patches(names, n_scenes, side) for names in (FITTING_SCENES, REPORTING_SCENES))
        made = bitlens.systems.lensless_camera(
            "diffuser", mask_pixels=(79, 79), shape=(side, side), scenes=scenes, learn=(DESIGNS[name],)
        )
        return made, judged
    margin, samples_per_pixel = 79, 2
    size = (side + 2 * margin) * samples_per_pixel
    scenes, judged = (_patches(names, n_scenes, size) for names in (FITTING_SCENES, REPORTING_SCENES))
    made = bitlens.systems.camera("defocused", margin_pixels=margin, scenes=scenes, learn=(DESIGNS[name],))
    return made, judged


def _patches(names: tuple[str, ...], n: int, size: int) -> Tensor:
    large = [name for name in names if name not in _TOO_SMALL]
    return scene_patches(n, size, names=large, generator=torch.Generator().manual_seed(0)).scenes


def course(name: str, n_steps: int, n_batch: int, n_scenes: int, *, interrupted: bool) -> Course:
    """Optimises the design in this process; `interrupted`: half-way, and resumed from a checkpoint."""
    (encoder, noise, scenes), judged = system(name, n_scenes)
    step_s: list[float] = []
    memory: list[float] = []
    write_s: list[float] = []
    last = time.perf_counter()
    save = _starts.save

    def look(step: DesignStep) -> None:
        nonlocal last
        now = time.perf_counter()
        step_s.append(now - last)
        memory.append(resident_mb())
        last = now
        if interrupted and len(step_s) == n_steps // 2:
            raise KeyboardInterrupt

    def timed_save(*arguments: object) -> None:
        begin = time.perf_counter()
        save(*arguments)  # type: ignore[arg-type]
        write_s.append(time.perf_counter() - begin)

    def run(checkpoint: Path | None) -> bitlens.DesignResult:
        return bitlens.optimize_design(
            encoder,
            noise,
            scenes,
            objective="gaussian",
            n_steps=n_steps,
            batch_size=n_batch,
            judge_scenes=judged,
            callback=look,
            checkpoint=checkpoint,
            generator=torch.Generator().manual_seed(0),
        )

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(_starts, "save", timed_save),
        mock.patch.object(_starts, "_SAVE_EVERY_S", -1.0),
    ):
        path = Path(folder) / "design.npz" if interrupted else None
        result = run(path)
        if interrupted:
            result = run(path)
        n_bytes = 0 if path is None else path.stat().st_size
    parameter = DESIGNS[name]
    return Course(
        n_parameters=result.parameters[parameter].numel(),
        step_s=step_s,
        resident_mb=memory,
        before_bits=result.before.bits,
        after_bits=result.after.bits,
        gain_stderr_bits=result.gain_stderr_bits,
        warnings=list(result.warnings),
        initial=result.initial_parameters[parameter].numpy(),
        final=result.parameters[parameter].numpy(),
        write_s=write_s,
        checkpoint_bytes=n_bytes,
        resumed_at=n_steps // 2 if interrupted else 0,
    )


def residual_waves(mask: np.ndarray) -> float:
    """Rms over the pupil of what mask and defocus leave together, tilt taken off: it moves the image alone."""
    (encoder, _, _), _ = system("camera", 2)
    assert isinstance(encoder, Camera)
    grid = encoder.pupil_grid()
    column, row = grid.column.numpy(), grid.row.numpy()
    squares = column**2 + row**2
    inside = squares <= 1.0
    row, column = (np.broadcast_to(axis, squares.shape)[inside] for axis in (row, column))
    path = (mask + float(encoder.defocus_waves.detach()) * squares)[inside]
    planes = np.stack([np.ones_like(row), row, column], axis=1)
    return float((path - planes @ np.linalg.lstsq(planes, path, rcond=None)[0]).std())


def table(courses: dict[str, tuple[Course, Course]]) -> str:
    """Seconds and memory at chosen steps, growth, gain and checkpoint of each design."""
    lines = []
    for name, (plain, resumed) in courses.items():
        n_steps = len(plain.step_s)
        shown = [step for step in (SETTLED, *range(50, n_steps, 50), n_steps) if step <= n_steps]
        lines += [
            f"{name}: {plain.n_parameters} free numbers, {n_steps} steps of {np.median(plain.step_s[1:]):.3f} s",
            "  resident memory (MB) at step " + ", ".join(f"{s}: {plain.resident_mb[s - 1]:.1f}" for s in shown),
            f"  growth {plain.growth_mb:+.2f} MB, with a checkpoint after every step {resumed.growth_mb:+.2f} MB "
            f"(at most {MOST_GROWTH_MB:g}){'' if _steady(plain, resumed) else '  MISSED'}",
            f"  {plain.before_bits:.1f} -> {plain.after_bits:.1f} bits per image "
            f"(gain {plain.after_bits - plain.before_bits:+.1f} +- {plain.gain_stderr_bits:.1f})",
            f"  checkpoint {resumed.checkpoint_bytes / 1e6:.2f} MB, written in {np.median(resumed.write_s):.3f} s; "
            f"interrupted and resumed it ends {'where' if _same(plain, resumed) else 'NOT where'} the plain run does",
        ]
        if name == "camera":
            ends = [residual_waves(mask) for mask in (plain.initial, plain.final)]
            lines.append(f"  rms path error in the pupil {ends[0]:.3f} -> {ends[1]:.3f} waves")
        lines += [f"  warning: {warning}" for warning in plain.warnings]
    return "\n".join(lines) + "\n"


def _steady(*runs: Course) -> bool:
    return all(run.growth_mb <= MOST_GROWTH_MB for run in runs)


def _same(plain: Course, resumed: Course) -> bool:
    return bool(np.array_equal(plain.final, resumed.final))


def figure(courses: dict[str, tuple[Course, Course]]) -> Figure:
    """The map before, after and its change; memory over the steps."""
    made = Figure(figsize=(15, 3.9 * len(courses)), layout="constrained")
    axes = made.subplots(len(courses), 4, squeeze=False)
    for row, (name, (plain, resumed)) in zip(axes, courses.items(), strict=True):
        unit = "waves" if name == "camera" else "um"
        most = max(float(np.abs(plain.initial).max()), float(np.abs(plain.final).max()))
        change = plain.final - plain.initial
        for place, values, title, limit in (
            (row[0], plain.initial, f"{name}: start", most),
            (row[1], plain.final, f"after {len(plain.step_s)} steps", most),
            (row[2], change, "change", float(np.abs(change).max())),
        ):
            picture = place.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
            place.set(title=title, xticks=[], yticks=[])
            made.colorbar(picture, ax=place, label=unit, shrink=0.8)
        for run, label in ((plain, "plain"), (resumed, "checkpoint at every step")):
            row[3].plot(range(1, len(run.resident_mb) + 1), run.resident_mb, label=label)
        middle = plain.resident_mb[-1]
        low, high = min(plain.resident_mb + resumed.resident_mb), max(plain.resident_mb + resumed.resident_mb)
        row[3].set(xlabel="step", ylabel="resident memory (MB)", ylim=(min(low, middle - 50), max(high, middle + 50)))
        row[3].legend(frameon=False)
        row[3].spines[["top", "right"]].set_visible(False)
    return made


def main() -> None:
    """Run both designs, print the table, write table, figure and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for table, figure and JSON")
    parser.add_argument("--quick", action="store_true", help="40 steps, to see that it runs")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8, help="scenes of a step")
    parser.add_argument("--scenes", type=int, default=64, help="scenes to climb on, and as many to judge by")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    n_steps = 40 if arguments.quick else arguments.steps
    arguments.out.mkdir(parents=True, exist_ok=True)
    courses = {}
    for name in DESIGNS:
        run = partial(course, name, n_steps, arguments.batch, arguments.scenes)
        plain, resumed = (
            measure_cost(partial(run, interrupted=interrupted), n_threads=arguments.threads).value
            for interrupted in (False, True)
        )
        courses[name] = plain, resumed
        print(table({name: courses[name]}), flush=True)
    text = table(courses)
    values = {
        name: {
            key: _plain(run)
            | {"growth_mb": run.growth_mb, "steady": _steady(run), "resumes_bit_for_bit": _same(plain, resumed)}
            for key, run in (("plain", plain), ("checkpoint", resumed))
        }
        for name, (plain, resumed) in courses.items()
    }
    replace_file(arguments.out / "large_design.json", json.dumps(values, indent=1, allow_nan=False).encode())
    replace_file(arguments.out / "large_design.txt", text.encode())
    replace_file(arguments.out / "large_design.png", report.to_png(figure(courses)))


def _plain(run: Course) -> dict[str, object]:
    """Everything but the maps; their size is that of the rms change."""
    fields = dataclasses.asdict(run)
    change = fields.pop("final") - fields.pop("initial")
    return fields | {"rms_change": math.sqrt(float(np.square(change).mean()))}


if __name__ == "__main__":
    main()
