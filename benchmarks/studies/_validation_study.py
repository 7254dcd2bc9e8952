"""What the studies of designs share: bits against task scores, beside the traditional metrics and the bound."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bitlens import plots, report
from bitlens._files import replace_file
from bitlens.densities import Density
from bitlens.systems import ImagingSystem
from bitlens.validation import (
    Classification,
    ClassifierDecoder,
    Decoder,
    ImpliedBounds,
    Reconstruction,
    UNetDecoder,
    ValidationResult,
    condition_number,
    implied_bounds,
    mtf50,
    point_response,
    snr_db,
    validate,
)

Metric = Callable[[ImagingSystem], float]
_QUICK_STEPS, _QUICK_SEEDS = 40, 2


class Study(NamedTuple):
    """What `run_study` gives: the validation, the bound of each design (None without one), the files written."""

    result: ValidationResult
    bounds: Mapping[str, float] | None
    files: tuple[Path, ...]


def arguments(description: str | None, data: Path | None = None, holds: str = "") -> argparse.Namespace:
    """The command line of a study: --out, --quick, --seeds, --threads and, where it `holds` something, --data.

    `description`: the first line of this text is shown.
    """
    description = description.splitlines()[0] if description else None
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for table, figure and JSON")
    parser.add_argument("--quick", action="store_true", help="few steps and seeds, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3, help="splits, noise draws and decoders per design")
    parser.add_argument("--threads", type=int, default=1, help="threads of the encoders and estimates")
    if data is not None:
        parser.add_argument("--data", type=Path, default=data, help=f"folder that holds {holds}")
    return parser.parse_args()


def standard_metrics(
    scene_shape: Sequence[int], *, samples_per_pixel: int = 1, frame: int | None = None
) -> dict[str, Metric]:
    """MTF50 of the point response, SNR of the mean measurement, condition number of the Jacobian.

    `scene_shape` (channel, row, column) as each system takes it; MTF50 is for measurements that are images.
    """

    def resolution(system: ImagingSystem) -> float:
        response = point_response(system.encoder, scene_shape, samples_per_pixel=samples_per_pixel, frame=frame)
        return mtf50(response, samples_per_pixel=samples_per_pixel)

    def signal(system: ImagingSystem) -> float:
        with torch.no_grad():
            mean = torch.cat([system.encoder(part) for part in system.scenes[:256].split(64)])
        return snr_db(mean, system.noise)  # type: ignore[arg-type]

    return {
        "mtf50": resolution,
        "snr_db": signal,
        "condition_number": lambda system: condition_number(system.encoder, scene_shape),
    }


def run_study(
    name: str,
    systems: Mapping[str, ImagingSystem],
    task: Reconstruction | Classification,
    metrics: Mapping[str, Metric],
    *,
    quick: bool,
    out: Path,
    groups: Any = None,
    decoder: Decoder | None = None,
    n_seeds: int = 3,
    n_test: float | int = 0.25,
    method: str = "auto",
    lower_is_better: Sequence[str] = ("condition_number",),
    seed: int = 0,
    bound: bool = True,
    densities: Sequence[Density] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Study:
    """Validate the designs, print the table, and write `name`.txt, .png and .json into `out`.

    Finished rows are kept in `name`_rows.json, so that the same call goes on after an interruption. `bound` adds what
    the bits allow at best, with the entropy of the target by `densities` (see `source_entropy`; a wide target wants one
    that is quick to fit). `extra` goes into the JSON as it is. With `quick` few steps and seeds, and no bound.
    """
    out.mkdir(parents=True, exist_ok=True)
    if quick:
        n_seeds = min(n_seeds, _QUICK_SEEDS)
        decoder = _shorter(decoder, task)
    result = validate(
        systems,
        task,
        decoder="auto" if decoder is None else decoder,
        n_test=n_test,
        n_seeds=n_seeds,
        groups=groups,
        method=method,
        metrics=metrics,
        lower_is_better=lower_is_better,
        generator=torch.Generator().manual_seed(seed),
        checkpoint=None if quick else out / f"{name}_rows.json",
    )
    implied = None
    bounds = None
    if bound and not quick:
        scenes = next(iter(systems.values())).scenes
        draws = torch.Generator().manual_seed(seed)
        implied = implied_bounds(result, task, scenes, groups=groups, densities=densities, generator=draws)
        bounds = {design: each.limit for design, each in implied.designs.items()}
    text = f"{name}\n\n{result.table()}\n"
    if implied is not None:
        text += f"\n{_bound_table(result, implied)}\n"
    print(text)
    found = result.to_dict() | {
        "bounds": bounds,
        "implied_bounds": None if implied is None else dataclasses.asdict(implied),
        "advantages": [dataclasses.asdict(result.advantage(metric)) for metric in metrics]
        if len(result.designs) >= 3
        else [],
        "extra": dict(extra or {}),
    }
    files = tuple(out / f"{name}.{ending}" for ending in ("txt", "png", "json"))
    replace_file(files[0], text.encode())
    replace_file(files[1], report.to_png(plots.validation(result, bounds, title=name)))
    replace_file(files[2], json.dumps(_finite(found), indent=2, allow_nan=False).encode())
    return Study(result, bounds, files)


def _bound_table(result: ValidationResult, implied: ImpliedBounds) -> str:
    means = result.mean(implied.score)
    word = "least" if implied.score == "mse" else "most"
    heads = ("design", implied.score, f"{word} that the bits allow", "by the bits as they are", "bits from")
    rows = tuple(
        (design, f"{means[design]:.4g}", f"{each.limit:.4g}", f"{each.estimate:.4g}", each.bits_from)
        for design, each in implied.designs.items()
    )
    return report.to_text(report.Table("", heads, rows))


def _shorter(decoder: Decoder | None, task: Reconstruction | Classification) -> Decoder:
    if decoder is None:
        decoder = UNetDecoder() if isinstance(task, Reconstruction) else ClassifierDecoder()
    if isinstance(decoder, UNetDecoder | ClassifierDecoder):
        return dataclasses.replace(decoder, n_steps=min(decoder.n_steps, _QUICK_STEPS))
    return decoder


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
