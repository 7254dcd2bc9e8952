"""`bitlens design`: a ready-made system, made to carry more bits about its scenes."""

from __future__ import annotations

import inspect
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bitlens.design import DesignResult
    from bitlens.systems import ImagingSystem

# Those of optimize_design, whose import takes longer than help should.
OBJECTIVES = ("auto", "gaussian", "known_channel", "density", "critic")


@click.command()
@click.argument("system")
@click.argument("start")
@click.option("--learn", "names", multiple=True, required=True, metavar="NAME", help="What may change; repeatable.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Argument of the system; VALUE is JSON.")
@click.option("--box", "boxes", multiple=True, metavar="NAME=LOWER,UPPER", help="Keep NAME within; one side may miss.")
@click.option("--objective", default="auto", show_default=True, type=click.Choice(OBJECTIVES), help="What is climbed.")
@click.option("--steps", "n_steps", default=200, show_default=True, type=click.IntRange(1), help="Steps at most.")
@click.option("--starts", "n_starts", default=1, show_default=True, type=click.IntRange(1), help="The best is kept.")
@click.option("--optimizer", default="adam", show_default=True, type=click.Choice(["adam", "lbfgs"]), help="Ascent.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="First step, in each parameter's scale.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Repeats the run.")
@click.option("--checkpoint", metavar="FILE", help="Keeps what is done; after Ctrl-C the same command goes on.")
@click.option("--out", metavar="DIR", help="Folder for the figure, the numbers and an npy of each parameter.")
@click.option("--json", "as_json", is_flag=True, help="Print the fields of the result as JSON.")
def design(
    system: str,
    start: str,
    names: tuple[str, ...],
    settings: tuple[str, ...],
    boxes: tuple[str, ...],
    objective: str,
    n_steps: int,
    n_starts: int,
    optimizer: str,
    rate: float | None,
    seed: int,
    checkpoint: str | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Change what --learn names of SYSTEM, in its design START, so that it carries more bits about its scenes.

    `bitlens systems` lists systems and designs: bitlens design camera defocused --learn defocus_waves --set photons=200
    """
    import torch

    from bitlens.design import Box, Constraint, optimize_design

    made = _made(system, start, names, settings)
    limits: dict[str, Constraint] = {}
    for name, text in (_pair("--box", box) for box in boxes):
        ends = [_number("--box", end) for end in text.split(",")]
        if len(ends) != 2:
            raise click.UsageError(f"--box: need NAME=LOWER,UPPER, got {name}={text}")
        limits[name] = Box(*ends)
    result = optimize_design(
        made.encoder,
        made.noise,  # type: ignore[arg-type]
        made.scenes,
        objective=objective,  # type: ignore[arg-type]
        n_steps=n_steps,
        n_starts=n_starts,
        optimizer=optimizer,  # type: ignore[arg-type]
        learning_rate=rate,
        constraints=limits,
        checkpoint=checkpoint,
        generator=torch.Generator().manual_seed(seed),
    )
    written = [] if out is None else _write(result, Path(out))
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else "\n".join([_table(result), *written]))


def _made(system: str, start: str, names: tuple[str, ...], settings: tuple[str, ...]) -> ImagingSystem:
    from bitlens import systems

    rows = {row.name: row for row in systems.descriptions()}
    if system not in rows:
        raise click.UsageError(f"SYSTEM: need one of {', '.join(rows)}, got {system}")
    make = getattr(systems, system)
    known = inspect.signature(make).parameters
    arguments: dict[str, Any] = {}
    for name, text in (_pair("--set", setting) for setting in settings):
        if name not in known or name in ("design", "learn", "scenes"):
            usable = [each for each in known if each not in ("design", "learn", "scenes")]
            raise click.UsageError(f"--set: {system} takes {', '.join(usable)}; got {name}")
        try:
            arguments[name] = json.loads(text)
        except json.JSONDecodeError:
            arguments[name] = text
    made: ImagingSystem = make(start, learn=names, **arguments)
    return made


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.UsageError(f"{option}: need NAME=VALUE, got {text}")
    return name, value


def _number(option: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        raise click.UsageError(f"{option}: need numbers, got {text!r}") from None


def _table(result: DesignResult) -> str:
    from bitlens.report import Table, to_text

    gain = result.after.bits - result.before.bits
    rows = [
        ("information before", f"{result.before.bits:.2f} bits per image", result.before.bound),
        ("information after", f"{result.after.bits:.2f} bits per image", result.after.bound),
        ("gain", f"{gain:+.2f} +- {result.gain_stderr_bits:.2f} bits", "on the same scenes and noise"),
        ("objective", result.objective, result.objective_reason),
        ("steps", str(len(result.history)), "converged" if result.converged else ""),
    ]
    for name, value in result.parameters.items():
        first = result.initial_parameters[name]
        if value.numel() == 1:
            rows.append((name, f"{first.item():.5g} -> {value.item():.5g}", ""))
        else:
            moved = float((value - first).double().square().mean().sqrt())
            rows.append((name, f"{tuple(value.shape)}", f"moved by {moved:.3g} rms"))
    text = to_text(Table("", ("", "value", ""), tuple(rows)))
    return "\n".join([text.strip("\n"), *(f"warning: {warning}" for warning in result.warnings)])


def _write(result: DesignResult, folder: Path) -> list[str]:
    """The figure, the numbers and each parameter as an array, and a line for each file."""
    import numpy as np

    from bitlens import plots
    from bitlens._files import replace_file
    from bitlens.report import to_png

    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "design.png": to_png(plots.design_overview(result)),
        "design.json": json.dumps(result.to_dict(), indent=2).encode(),
    }
    for name, value in result.parameters.items():
        buffer = io.BytesIO()
        np.save(buffer, value.cpu().numpy())
        files[f"{name}.npy"] = buffer.getvalue()
    for file_name, content in files.items():
        replace_file(folder / file_name, content)
    return [f"wrote {folder / file_name}" for file_name in files]
