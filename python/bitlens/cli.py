"""The command line: `bitlens demo | estimate | calibrate | design | systems | info`.

torch and matplotlib are imported by the commands that need them, so that help comes at once.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitlens import __version__
from bitlens._cli_design import design
from bitlens._cli_estimate import estimate, read_for

if TYPE_CHECKING:
    from torch import Tensor

    from bitlens.noise import CalibrationResult

_ERROR, _INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 after one line on stderr, 130 after Ctrl-C."""
    try:
        result = bitlens.main(arguments, prog_name="bitlens", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (click.Abort, KeyboardInterrupt):
        click.echo("bitlens: interrupted", err=True)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has left; stdout must not be flushed again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except click.ClickException as error:
        return _fail(error.format_message())
    except MemoryError:
        return _fail("not enough memory; use fewer images or a smaller --patch")
    except Exception as error:
        # Whatever went wrong, a user gets a line and not a traceback.
        known = isinstance(error, ValueError | TypeError | OSError | ImportError)
        return _fail(str(error) if known and str(error) else f"{type(error).__name__}: {error}")


def _fail(message: str) -> int:
    click.echo(f"bitlens: error: {' '.join(message.split())}", err=True)
    return _ERROR


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bitlens")
@click.pass_context
def bitlens(context: click.Context) -> None:
    """How many bits about the scene a measurement carries, and how to make it carry more."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@bitlens.command()
@click.option("--quick", is_flag=True, help="Fewer patches and steps: half a minute instead of two.")
@click.option("--out", default="demo_report", show_default=True, help="Folder for the report and its figures.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Repeats the run.")
@click.option("--json", "as_json", is_flag=True, help="Print the content of results.json; progress goes to stderr.")
def demo(quick: bool, out: str, seed: int, as_json: bool) -> None:
    """Three cameras and two designs on real scenes: a table of bits per pixel, and a report."""
    from bitlens.demo import full_settings, quick_settings, run_demo

    settings = quick_settings(seed) if quick else full_settings(seed)
    study = run_demo(settings, out, say=lambda line: click.echo(line, err=as_json))
    if as_json:
        click.echo(study.to_json())


bitlens.add_command(estimate)
bitlens.add_command(design)


@bitlens.command()
@click.argument("flats", nargs=-1, required=True, metavar="FLATS...")
@click.option("--dark", "dark_file", required=True, metavar="FILE", help="Dark frames (frame, row, column).")
@click.option(
    "--confidence",
    default=0.95,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Of the intervals.",
)
@click.option("--out", metavar="DIR", help="Folder for the photon transfer figure, and for maps if there are any.")
@click.option("--json", "as_json", is_flag=True, help="Print the fields of the result as JSON.")
def calibrate(flats: tuple[str, ...], dark_file: str, confidence: float, out: str | None, as_json: bool) -> None:
    """Gain, offset, read noise and full well of a sensor from flat and dark frames.

    FLATS are npy, npz, tiff or hdf5 files in ADU: (frame, row, column) at one illumination each, or (level, frame,
    row, column).
    """
    from bitlens.datasets import read_stack
    from bitlens.noise import calibrate as calibrate_frames

    darks = read_for("--dark", lambda: read_stack(dark_file))
    if darks.shape[1] != 1:
        raise click.UsageError(f"--dark: {dark_file}: need (frame, row, column), got {tuple(darks.shape)}")
    levels: list[Tensor] = []
    for path in flats:
        stack = read_for("FLATS", functools.partial(read_stack, path))
        levels += [stack[:, 0]] if stack.shape[1] == 1 else list(stack)
    result = calibrate_frames(levels, darks[:, 0], confidence=confidence)
    written = [] if out is None else _write_calibration(result, Path(out))
    click.echo(result.to_json(indent=2) if as_json else "\n".join([_calibration_table(result), *written]))


@bitlens.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def systems(as_json: bool) -> None:
    """The ready-made imaging systems."""
    from bitlens.systems import descriptions

    listed = [description._asdict() for description in descriptions()]
    if as_json:
        click.echo(json.dumps(listed, indent=2))
        return
    for system in listed:
        click.echo(f"{system['name']}\n  designs    {', '.join(system['designs'])}")
        click.echo(f"  formula    {system['formula']}\n  reference  {system['reference']}")


@bitlens.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(as_json: bool) -> None:
    """Version, backends, instruction set, threads and CUDA of this installation."""
    import torch

    from bitlens.kernels import _backend, _compiled

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    found: dict[str, Any] = {
        "version": __version__,
        "backends": list(_backend.available_backends()),
        "instruction_set": _compiled.instruction_set(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "cuda": {"compiled": _compiled.has_cuda(), "device": device},
    }
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    found["backends"] = ", ".join(found["backends"])
    found["instruction set"] = found.pop("instruction_set")
    kernels = "kernels compiled" if _compiled.has_cuda() else "kernels not compiled"
    found["cuda"] = f"{kernels}, {device if device is not None else 'no device'}"
    for name, value in found.items():
        click.echo(f"{name:<16} {value}")


def _write_calibration(result: CalibrationResult, folder: Path) -> list[str]:
    """The figure and the maps, and a line for each file."""
    import io

    import numpy as np

    from bitlens import plots
    from bitlens._files import replace_file
    from bitlens.report import to_png

    folder.mkdir(parents=True, exist_ok=True)
    files = {"photon_transfer.png": to_png(plots.photon_transfer(result).figure)}  # type: ignore[arg-type]
    for name in ("gain", "offset", "read_std") if result.noise_maps is not None else ():
        buffer = io.BytesIO()
        np.save(buffer, getattr(result.noise_maps, name).numpy())
        files[f"{name}.npy"] = buffer.getvalue()
    for file_name, content in files.items():
        replace_file(folder / file_name, content)
    return [f"wrote {folder / file_name}" for file_name in files]


def _calibration_table(result: CalibrationResult) -> str:
    intervals, percent = result.confidence_intervals, f"{100 * result.confidence:g} %"
    gain = float(result.noise.gain)
    rows = []
    for name, value, interval, unit in (
        ("gain", gain, intervals.gain, "ADU per electron"),
        ("offset", float(result.noise.offset), intervals.offset, "ADU"),
        ("read noise", float(result.noise.read_std), intervals.read_std, "ADU"),
    ):
        rows.append((name, f"{value:.5g} {unit} ({percent}: {interval[0]:.5g} to {interval[1]:.5g})"))
    rows.append(("", f"= {float(result.noise.read_std) / gain:.4g} electrons"))
    full = result.full_well_electrons
    rows.append(("full well", "not reached" if full is None else f"{full:.4g} electrons"))
    if result.linearity_error is not None:
        rows.append(("linearity", f"shot noise off its line by {100 * result.linearity_error:.2g} % on average"))
    rows.append(("pixels", f"{100 * result.ordinary_pixel_share:.4g} % ordinary in the dark"))
    parameters = " ".join(
        f"--{name.replace('_', '-')} {float(getattr(result.noise, name)):.6g}"
        for name in ("gain", "offset", "read_std")
    )
    rows.append(("to use it", f"bitlens estimate FILE --noise poisson-gaussian {parameters}"))
    lines = [f"{name:<11} {value}" for name, value in rows]
    return "\n".join([*lines, *(f"warning: {text}" for text in result.warnings)])
