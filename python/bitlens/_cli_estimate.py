"""`bitlens estimate`: bits about the scene in the images of a file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from bitlens.datasets.stacks import Measurements
    from bitlens.estimators import InformationEstimate, TrainingSizes
    from bitlens.noise import NoiseModel

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
# Those of estimate_image_information.
IMAGE_METHODS = ("auto", "stationary_gaussian", "gaussian_mixture", "autoregressive")
# The covariance of more pixels than these does not fit into the memory of a small machine.
_MOST_PIXELS = 4096
_IMAGE_PATCH = 8

Read = TypeVar("Read")


@click.command()
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
@click.option("--repeats", "repeats_file", metavar="FILE", help="Exposures of one still scene, to check the noise by.")
@click.option("--array", metavar="NAME", help="Which array of FILE, when it is an npz or hdf5 with several.")
@click.option("--patch", type=click.IntRange(min=1), help="Cut images into squares of so many pixels per side.")
@click.option(
    "--whole-image",
    is_flag=True,
    help=f"Bits of whole large images, squares (--patch, else {_IMAGE_PATCH}) seen with what precedes them.",
)
@click.option("--groups", "groups_file", metavar="FILE", help="npy with one label per image, for its source.")
@click.option(
    "--method",
    default="auto",
    show_default=True,
    type=click.Choice(METHODS),
    help="The density to use, or the scores of known scenes alone; auto chooses by validation.",
)
@click.option(
    "--confidence",
    default=0.95,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Of the interval.",
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
    repeats_file: str | None,
    array: str | None,
    patch: int | None,
    whole_image: bool,
    groups_file: str | None,
    method: str,
    confidence: float,
    n_extrapolate: int,
    out: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Bits about the scene in the images of FILE, npy, npz, tiff or hdf5: (n, [channel,] row, column).

    Arrays named `measured` and `mean` of one npz or hdf5 are taken as such. With --patch the squares of one image form
    one group: splits and errors keep them together.
    """
    given = {"--std": std, "--gain": gain, "--offset": offset, "--read-std": read_std}
    given |= {"--adc-bits": adc_bits, "--full-well": full_well}
    parameters = _parameters(kind, {name: text for name, text in given.items() if text is not None})
    if whole_image:
        _check_whole_image(method, repeats_file, n_extrapolate)
    images = _images(file, array, mean_file, repeats_file, groups_file)
    noise = _noise(kind, parameters, tuple(images.measured.shape[1:]), None if whole_image else patch)
    if patch is not None and not whole_image:
        images = images.cut(patch)
    chosen = _Settings(method, confidence, n_extrapolate, seed)
    if whole_image:
        result = _of_whole_images(images, noise, chosen, _IMAGE_PATCH if patch is None else patch)
    else:
        result = _of_images(file, images, noise, chosen)
    shape = tuple(images.measured.shape[1:])
    click.echo(result.to_json(indent=2) if as_json else _table(result, shape, confidence))
    if out is not None:
        by_size, why_not = None, "whole images are fitted all at once"
        if not whole_image:
            by_size, why_not = _training_sizes(images, noise, chosen)
        if by_size is None:
            click.echo(f"no training_sizes.png: {why_not}", err=as_json)
        for written in _write_estimate(result, by_size, Path(out)):
            click.echo(written, err=as_json)


# ---- The images ----


class _Images(NamedTuple):
    """What the files hold: (n, channel, row, column), and the labels of the images (n,)."""

    measured: Tensor
    mean: Tensor | None
    repeats: Tensor | None
    labels: NDArray[Any] | None

    def cut(self, patch: int) -> _Images:
        """Squares in place of images: those of one image share its label, or a label of their own."""
        import numpy as np

        measured = _cut(self.measured, patch)
        labels = np.arange(len(self.measured)) if self.labels is None else self.labels
        repeats = self.repeats
        if repeats is not None:
            # Each square of a still scene is a still scene.
            scenes = repeats if repeats.ndim == 5 else repeats[None]
            squares = _cut(scenes.flatten(0, 1), patch).unflatten(0, (*scenes.shape[:2], -1))
            repeats = squares.transpose(1, 2).flatten(0, 1)
        return _Images(
            measured,
            None if self.mean is None else _cut(self.mean, patch),
            repeats,
            labels.repeat(len(measured) // len(self.measured)),
        )


def _images(
    file: str, array: str | None, mean_file: str | None, repeats_file: str | None, groups_file: str | None
) -> _Images:
    """What the options name, checked against each other."""
    from bitlens.datasets import read_stack
    from bitlens.datasets.stacks import read_measurements

    found: Measurements = read_for("--array", lambda: read_measurements(file, name=array))
    measured, mean = found
    shape = tuple(measured.shape)
    if mean_file is not None:
        other = read_for("--mean", lambda: read_measurements(mean_file))
        mean = other.measured if other.mean is None else other.mean
        if mean.shape != measured.shape:
            raise click.UsageError(f"--mean: need the shape of {file}, {shape}, got {tuple(mean.shape)} in {mean_file}")
    repeats = None
    if repeats_file is not None:
        repeats = read_for("--repeats", lambda: read_stack(repeats_file))
        if shape[1] == 1 and repeats.shape[1] != 1:  # (n_scenes, n_repeats, row, column)
            repeats = repeats[:, :, None]
        if repeats.shape[-3:] != measured.shape[1:]:
            raise click.UsageError(
                f"--repeats: need exposures of the shape of the images of {file}, {shape[1:]}, "
                f"got {tuple(repeats.shape)} in {repeats_file}"
            )
    return _Images(measured, mean, repeats, None if groups_file is None else _labels(groups_file, shape[0]))


def read_for(option: str, read: Callable[[], Read]) -> Read:
    """What `read` gives; what it raises in the words of the command line, where `option` names the file."""
    # What is wrong with a file is said once, in one line.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        return read()
    except ValueError as error:
        text = str(error)
        if option != "--array":
            text = f"{option}: {text.replace('; choose one with name=', ', need one alone, got')}"
        text = text.replace("with name=", "with --array").replace("need name to be", "need --array to be")
        raise click.UsageError(f"--array{text.removeprefix('name')}" if text.startswith("name:") else text) from None


# ---- The estimate ----


class _Settings(NamedTuple):
    method: str
    confidence: float
    n_extrapolate: int
    seed: int

    def generator(self) -> torch.Generator:
        """A fresh one: each call repeats what the library gives for the seed."""
        import torch

        return torch.Generator().manual_seed(self.seed)


def _check_whole_image(method: str, repeats_file: str | None, n_extrapolate: int) -> None:
    if method not in IMAGE_METHODS:
        raise click.UsageError(f"--method: --whole-image needs one of {', '.join(IMAGE_METHODS)}, got {method}")
    for option, has in (("--repeats", repeats_file is not None), ("--n-extrapolate", n_extrapolate > 0)):
        if has:
            raise click.UsageError(f"{option}: does not go with --whole-image")


def _of_whole_images(images: _Images, noise: NoiseModel, chosen: _Settings, patch: int) -> InformationEstimate:
    from bitlens.estimators import estimate_image_information

    try:
        return estimate_image_information(
            images.measured,
            noise,
            patch=patch,
            mean=images.mean,
            method=chosen.method,
            groups=images.labels,
            confidence=chosen.confidence,
            generator=chosen.generator(),
        )
    except ValueError as error:
        raise click.UsageError(str(error).replace("patch:", "--patch:", 1)) from None


def _of_images(file: str, images: _Images, noise: NoiseModel, chosen: _Settings) -> InformationEstimate:
    from bitlens.estimators import estimate_information

    if images.measured[0].numel() > _MOST_PIXELS:
        raise click.UsageError(
            f"{file}: need images of at most {_MOST_PIXELS} pixels, got {tuple(images.measured.shape[1:])}; "
            "cut them with --patch 16, or take --whole-image"
        )
    return estimate_information(
        images.measured,
        noise,
        mean=images.mean,
        method=chosen.method,
        groups=images.labels,
        repeats=images.repeats,
        confidence=chosen.confidence,
        n_extrapolate=chosen.n_extrapolate,
        generator=chosen.generator(),
    )


def _training_sizes(images: _Images, noise: NoiseModel, chosen: _Settings) -> tuple[TrainingSizes | None, str]:
    """Bits against the number of training images, or why there are none."""
    from bitlens.estimators import bits_by_training_size

    if chosen.method == "known_channel":
        return None, "the method fits no density"
    try:
        found = bits_by_training_size(
            images.measured,
            noise,
            method=chosen.method,
            n_sizes=3,
            groups=images.labels,
            generator=chosen.generator(),
        )
    except ValueError as error:  # too few images for a part of them
        return None, str(error)
    return found, ""


# ---- The noise ----

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


# ---- What is printed and drawn ----


def _table(result: InformationEstimate, image_shape: tuple[int, ...], confidence: float) -> str:
    size = " x ".join(map(str, image_shape))
    rows = [("bits per pixel", f"{result.bits_per_pixel:.4f}")]
    if result.confidence_interval_bits_per_pixel is not None:
        low, high = result.confidence_interval_bits_per_pixel
        rows.append((f"{100 * confidence:g} % interval", f"{low:.4f} to {high:.4f} (statistical)"))
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
    from bitlens._files import replace_file
    from bitlens.report import to_png

    folder.mkdir(parents=True, exist_ok=True)
    figures = {"bounds.png": plots.estimate(result).figure}
    if by_size is not None:
        figures["training_sizes.png"] = plots.training_sizes(by_size).figure
    for file_name, figure in figures.items():
        replace_file(folder / file_name, to_png(figure))  # type: ignore[arg-type]
    return [f"wrote {folder / file_name}" for file_name in figures]
