"""The command line: `bitlens demo | estimate | calibrate | systems | info`.

torch and matplotlib are imported by the commands that need them, so that help comes at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitlens import __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from bitlens.estimators import InformationEstimate, TrainingSizes
    from bitlens.noise import CalibrationResult, NoiseModel

_ERROR, _INTERRUPTED = 2, 130
# Those of estimate_information, whose import takes longer than help should.
METHODS = (
    "auto",
    "gaussian",
    "stationary_gaussian",
    "gaussian_mixture",
    "factor_mixture",
    "gaussian_copula",
    "scale_mixture",
    "independent_pixels",
    "scene_mixture",
    "shift_mixture",
    "autoregressive",
    "flow",
    "known_channel",
)
# The covariance of more pixels than these does not fit into the memory of a small machine.
_MOST_PIXELS = 4096


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


@bitlens.command()
@click.argument("file")
@click.option(
    "--noise",
    "kind",
    required=True,
    type=click.Choice(["gaussian", "poisson", "poisson-gaussian"]),
    help="What the sensor adds to the mean.",
)
@click.option("--std", help="Gaussian: standard deviation, in the unit of FILE; a number or an npy map.")
@click.option("--gain", help="Poisson-Gaussian: ADU per photo-electron, a number or an npy map.  [default: 1]")
@click.option("--offset", help="Poisson-Gaussian: ADU of a dark pixel, a number or an npy map.  [default: 0]")
@click.option("--read-std", help="Poisson-Gaussian: read noise in ADU, a number or an npy map.")
@click.option("--adc-bits", help="Poisson-Gaussian: FILE holds codes of so many bits, rounded and clipped.")
@click.option("--full-well", help="Poisson-Gaussian: electrons that a pixel holds at most, a number or an npy map.")
@click.option("--mean", "mean_file", metavar="FILE", help="Noiseless images, photo-electrons: adds the lower bound.")
@click.option("--array", metavar="NAME", help="Which array of FILE, when it is an npz with several.")
@click.option("--patch", type=click.IntRange(min=1), help="Cut images into squares of so many pixels per side.")
@click.option("--groups", "groups_file", metavar="FILE", help="npy with one label per image, for its source.")
@click.option(
    "--method",
    default="auto",
    show_default=True,
    type=click.Choice(METHODS),
    help="The density to use, or the scores of known scenes alone; auto chooses by validation.",
)
@click.option(
    "--n-extrapolate",
    default=0,
    show_default=True,
    type=click.IntRange(0, 6),
    help="Fit to a half, a quarter, ... of the images too and report the limit of infinitely many.",
)
@click.option("--out", metavar="DIR", help="Folder for figures of the bounds and of bits against training size.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Repeats the result.")
@click.option("--json", "as_json", is_flag=True, help="Print the fields of the estimate as JSON.")
def estimate(
    file: str,
    kind: str,
    std: str | None,
    gain: str | None,
    offset: str | None,
    read_std: str | None,
    adc_bits: str | None,
    full_well: str | None,
    mean_file: str | None,
    array: str | None,
    patch: int | None,
    groups_file: str | None,
    method: str,
    n_extrapolate: int,
    out: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Bits about the scene in the images of FILE: npy or npz, (n, row, column) or (n, channel, row, column).

    With --patch the squares of one image form one group: splits and errors keep them together.
    """
    given = {"--std": std, "--gain": gain, "--offset": offset, "--read-std": read_std}
    given |= {"--adc-bits": adc_bits, "--full-well": full_well}
    parameters = _parameters(kind, {name: text for name, text in given.items() if text is not None})
    import torch

    from bitlens.datasets import read_stack
    from bitlens.estimators import estimate_information

    measured = read_stack(file, name=array)
    mean = None if mean_file is None else read_stack(mean_file)
    if mean is not None and mean.shape != measured.shape:
        raise click.UsageError(
            f"--mean: need the shape of {file}, {tuple(measured.shape)}, got {tuple(mean.shape)} in {mean_file}"
        )
    groups = None if groups_file is None else _labels(groups_file, measured.shape[0])
    noise = _noise(kind, parameters, tuple(measured.shape[1:]), patch)
    if patch is not None:
        cut = _cut(measured, patch)
        n_cut = cut.shape[0] // measured.shape[0]
        groups = torch.arange(measured.shape[0]).numpy() if groups is None else groups
        groups = groups.repeat(n_cut)
        measured, mean = cut, None if mean is None else _cut(mean, patch)
    if measured[0].numel() > _MOST_PIXELS:
        raise click.UsageError(
            f"{file}: need images of at most {_MOST_PIXELS} pixels, got {tuple(measured.shape[1:])}; "
            "cut them with --patch 16"
        )
    generator = torch.Generator().manual_seed(seed)
    result = estimate_information(
        measured, noise, mean=mean, method=method, groups=groups, n_extrapolate=n_extrapolate, generator=generator
    )
    click.echo(result.to_json(indent=2) if as_json else _table(result, tuple(measured.shape[1:])))
    if out is not None:
        from bitlens.estimators import bits_by_training_size

        by_size, why_not = None, "the method fits no density"
        if method != "known_channel":
            draws = torch.Generator().manual_seed(seed)
            try:
                by_size = bits_by_training_size(
                    measured, noise, method=method, n_sizes=3, groups=groups, generator=draws
                )
            except ValueError as error:  # too few images for a part of them
                why_not = str(error)
        if by_size is None:
            click.echo(f"no training_sizes.png: {why_not}", err=as_json)
        for written in _write_estimate(result, by_size, Path(out)):
            click.echo(written, err=as_json)


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

    FLATS are npy or npz files in ADU: (frame, row, column) at one illumination each, or (level, frame, row, column).
    """
    from bitlens.datasets import read_stack
    from bitlens.noise import calibrate as calibrate_frames

    darks = read_stack(dark_file)
    if darks.shape[1] != 1:
        raise click.UsageError(f"--dark: {dark_file}: need (frame, row, column), got {tuple(darks.shape)}")
    levels: list[Tensor] = []
    for path in flats:
        stack = read_stack(path)
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


# Options that a noise model takes, with their defaults: None where one has to be given, "" where it may be left out.
_TAKES: dict[str, dict[str, str | None]] = {
    "gaussian": {"--std": None},
    "poisson": {},
    "poisson-gaussian": {"--gain": "1", "--offset": "0", "--read-std": None, "--adc-bits": "", "--full-well": ""},
}


def _parameters(kind: str, given: dict[str, str]) -> dict[str, float | NDArray[Any]]:
    """The noise parameters as numbers or maps, by option; defaults filled in."""
    takes = _TAKES[kind]
    for option in given:
        if option not in takes:
            raise click.UsageError(f"{option}: does not go with --noise {kind}")
    chosen = takes | given
    missing = [option for option, text in chosen.items() if text is None]
    if missing:
        raise click.UsageError(f"{missing[0]}: --noise {kind} needs it")
    return {option: _number_or_map(option, text) for option, text in chosen.items() if text}


def _number_or_map(option: str, text: str) -> float | NDArray[Any]:
    try:
        return float(text)
    except ValueError:
        pass
    if Path(text).suffix != ".npy":
        raise click.UsageError(f"{option}: need a number or an .npy map, got {text!r}")
    return _load_array(option, text)


def _load_array(option: str, path: str) -> NDArray[Any]:
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise click.UsageError(f"{option}: {path}: no such file") from None
    except (ValueError, OSError, EOFError) as error:
        raise click.UsageError(f"{option}: {path}: need an npy file of numbers ({error})") from None
    if not isinstance(array, np.ndarray):
        raise click.UsageError(f"{option}: {path}: need one array, as numpy.save writes it, got an archive")
    return array


def _labels(path: str, n_images: int) -> NDArray[Any]:
    labels = _load_array("--groups", path)
    if labels.shape != (n_images,):
        raise click.UsageError(f"--groups: {path}: need one label per image, shape ({n_images},), got {labels.shape}")
    return labels


def _noise(
    kind: str, parameters: dict[str, float | NDArray[Any]], image_shape: tuple[int, ...], patch: int | None
) -> NoiseModel:
    from bitlens.noise import GaussianNoise, PoissonGaussianNoise, PoissonNoise

    for option, value in parameters.items():
        if isinstance(value, float):
            continue
        if patch is not None:
            raise click.UsageError(f"{option}: a per-pixel map needs whole images, without --patch")
        if value.shape not in (image_shape, image_shape[-2:]):
            raise click.UsageError(
                f"{option}: need a map of one image, shape {image_shape[-2:]} or {image_shape}, got {value.shape}"
            )
    try:
        if kind == "gaussian":
            return GaussianNoise(parameters["--std"])
        if kind == "poisson":
            return PoissonNoise()
        bits = parameters.get("--adc-bits")
        if bits is not None and not (isinstance(bits, float) and bits.is_integer()):
            raise click.UsageError(f"--adc-bits: need a whole number of bits, got {bits}")
        return PoissonGaussianNoise(
            parameters["--gain"],
            parameters["--offset"],
            read_std=parameters["--read-std"],
            adc_bits=None if bits is None else int(bits),
            full_well_electrons=parameters.get("--full-well"),
        )
    except (ValueError, TypeError) as error:
        name, _, rest = str(error).partition(":")
        option = name.removesuffix("_electrons").replace("_", "-")
        raise click.UsageError(f"--{option}:{rest}") from None


def _cut(stack: Tensor, patch: int) -> Tensor:
    """(n, channel, row, column) -> (n k, channel, patch, patch): whole squares from the top left, image by image."""
    rows, columns = stack.shape[-2] // patch, stack.shape[-1] // patch
    if rows == 0 or columns == 0:
        raise click.UsageError(f"--patch: need at most {min(stack.shape[-2:])} for these images, got {patch}")
    cropped = stack[..., : rows * patch, : columns * patch]
    tiles = cropped.unflatten(-1, (columns, patch)).unflatten(-3, (rows, patch))
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def _table(result: InformationEstimate, image_shape: tuple[int, ...]) -> str:
    size = " x ".join(map(str, image_shape))
    rows = [("bits per pixel", f"{result.bits_per_pixel:.4f}")]
    if result.confidence_interval_bits_per_pixel is not None:
        low, high = result.confidence_interval_bits_per_pixel
        rows.append(("95 % interval", f"{low:.4f} to {high:.4f} (statistical)"))
    rows.append(("bits per image", f"{result.bits:.2f}, images of {size}"))
    meaning = {
        "two-sided": "the middle of both bounds",
        "upper": "an upper bound",
        "lower": "a lower bound",
        "estimate": "an estimate: an upper bound less its expected excess",
    }
    rows.append(("this is", meaning[result.bound]))
    if result.upper_bits is not None:
        rows.append(("upper bound", f"{result.upper_bits:.2f} bits per image"))
    if result.lower_bits is not None:
        ceiling = "" if result.ceiling_bits is None else f", of at most {result.ceiling_bits:.2f} (its ceiling)"
        rows.append(("lower bound", f"{result.lower_bits:.2f} bits per image{ceiling}"))
    rows.append(("method", result.method))
    rows.append(("samples, seed", f"{result.n_samples}, {result.seed}"))
    lines = [f"{name:<15} {value}" for name, value in rows]
    return "\n".join([*lines, *(f"warning: {text}" for text in result.warnings)])


def _write_estimate(result: InformationEstimate, by_size: TrainingSizes | None, folder: Path) -> list[str]:
    """Figures of the bounds and of bits against training size, and a line for each file."""
    from bitlens import plots
    from bitlens.report import to_png, write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    figures = {"bounds.png": plots.estimate(result).figure}
    if by_size is not None:
        figures["training_sizes.png"] = plots.training_sizes(by_size).figure
    for file_name, figure in figures.items():
        write_atomically(folder / file_name, to_png(figure))  # type: ignore[arg-type]
    return [f"wrote {folder / file_name}" for file_name in figures]


def _write_calibration(result: CalibrationResult, folder: Path) -> list[str]:
    """The figure and the maps, and a line for each file."""
    import io

    import numpy as np

    from bitlens import plots
    from bitlens.report import to_png, write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    files = {"photon_transfer.png": to_png(plots.photon_transfer(result).figure)}  # type: ignore[arg-type]
    for name in ("gain", "offset", "read_std") if result.noise_maps is not None else ():
        buffer = io.BytesIO()
        np.save(buffer, getattr(result.noise_maps, name).numpy())
        files[f"{name}.npy"] = buffer.getvalue()
    for file_name, content in files.items():
        write_atomically(folder / file_name, content)
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
