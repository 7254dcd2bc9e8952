"""`validate`: does the number of bits predict what a decoder achieves with the measurement?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor
from tqdm import tqdm

from bitlens import __version__
from bitlens.densities._samples import samples
from bitlens.design._checkpoint import behaviour_of, fingerprint_of
from bitlens.estimators import estimate_information
from bitlens.estimators._judge import METHODS
from bitlens.estimators._seeds import derived_seed, take_seed
from bitlens.kernels import _backend
from bitlens.noise import NoiseModel, PoissonGaussianNoise, PoissonNoise
from bitlens.systems import ImagingSystem
from bitlens.validation import _checkpoint
from bitlens.validation.classifier import ClassifierDecoder
from bitlens.validation.decoder import Decoder, GroupLabels, Rows, group_codes, split_rows
from bitlens.validation.result import ValidationResult, ValidationRow, less_is_better
from bitlens.validation.tasks import Classification, Reconstruction, Task
from bitlens.validation.unet import UNetDecoder

_LEAST_SCENES = 20
_SAME_LIGHT = 0.05
_SCENES_AT_ONCE = 64

Metric = Callable[[ImagingSystem], float]


def validate(
    systems: Mapping[str, ImagingSystem],
    task: Task,
    *,
    decoder: Decoder | Literal["auto"] = "auto",
    n_test: float | int = 0.25,
    n_seeds: int = 3,
    groups: GroupLabels | None = None,
    method: str = "auto",
    metrics: Mapping[str, Metric] | None = None,
    lower_is_better: Sequence[str] = ("condition_number",),
    generator: torch.Generator | None = None,
    checkpoint: str | Path | None = None,
) -> ValidationResult:
    """Bits and task score of each design: a fresh decoder for each seed, all designs on the same scenes and splits.

    Args:
        systems: name -> system; as many scenes in each, scene i of all being one scene.
        decoder: "auto": `UNetDecoder()` for a `Reconstruction`, `ClassifierDecoder()` for a `Classification`.
        n_test: share of the scenes or their number that test; n_seeds: splits, noise draws and decoders per design.
        groups: one label per scene (its source image), whole in all splits, estimates and errors.
        method: of `estimate_information`, which gets all measurements and their means.
        metrics: name -> function of a system, the traditional figures; less is better for those named so.
        checkpoint: JSON file that keeps finished rows; the same call, or one for more seeds, goes on from it; another's
            file is refused.

    Raises:
        TypeError, ValueError: an argument that cannot be used, named with what it needs and what came.

    Reference: Pinkard et al. 2024, arXiv 2405.20559.
    """
    plan = _plan(systems, task, decoder, n_test, n_seeds, groups, method, dict(metrics or {}))
    names = tuple(name for name in lower_is_better if name in plan.metrics)
    mark = "" if checkpoint is None else _mark(plan)
    path = None if checkpoint is None else Path(checkpoint)
    kept = None if path is None else _checkpoint.read(path, mark)
    if kept is None:
        kept = _checkpoint.Kept(take_seed(generator), {})
    elif generator is not None and (given := take_seed(generator)) != kept.seed:
        raise ValueError(f"generator: need the seed of the checkpoint, {kept.seed}, got {given}")
    values = {
        metric: {name: float(function(system)) for name, system in plan.systems.items()}
        for metric, function in plan.metrics.items()
    }
    _fill(plan, kept, mark, path)
    rows = tuple(kept.rows[name, seed] for name in plan.systems for seed in range(n_seeds))
    split = _split(plan, kept.seed, 0)
    return ValidationResult(
        rows=rows,
        metrics=values,
        score_names=plan.task.score_names,
        lower_is_better=less_is_better(plan.task.score_names, names),
        decoder=repr(plan.decoder),
        n_training=len(split.training),
        n_test=len(split.validation),
        seed=kept.seed,
        version=__version__,
        warnings=_warnings(plan, rows),
    )


class _Plan(NamedTuple):
    """Checked arguments."""

    systems: dict[str, ImagingSystem]
    task: Task
    target: Tensor
    decoder: Decoder
    share: float
    n_seeds: int
    labels: Tensor
    grouped: bool
    method: str
    metrics: dict[str, Metric]


def _plan(
    systems: Mapping[str, ImagingSystem],
    task: Task,
    decoder: Decoder | Literal["auto"],
    n_test: float | int,
    n_seeds: int,
    groups: GroupLabels | None,
    method: str,
    metrics: dict[str, Metric],
) -> _Plan:
    if not isinstance(systems, Mapping) or not systems:
        raise TypeError(f"systems: need a mapping of names to systems, at least one, got {type(systems).__name__}")
    checked = {str(name): _checked_system(str(name), system) for name, system in systems.items()}
    first, *others = checked.values()
    n_scenes = len(first.scenes)
    for name, system in checked.items():
        if len(system.scenes) != n_scenes:
            raise ValueError(
                f"systems[{name!r}]: need {n_scenes} scenes as the first system has, got {len(system.scenes)}"
            )
    if n_scenes < _LEAST_SCENES:
        raise ValueError(f"systems: need at least {_LEAST_SCENES} scenes, got {n_scenes}")
    if not isinstance(task, Reconstruction | Classification):
        raise TypeError(f"task: need a Reconstruction or a Classification, got {type(task).__name__}")
    if isinstance(task, Reconstruction) and task.target is None:
        for other in others:
            if other.scenes is not first.scenes and not torch.equal(other.scenes, first.scenes):
                raise ValueError("target: need one for all designs where their scenes differ, got None")
    if decoder == "auto":
        decoder = UNetDecoder() if isinstance(task, Reconstruction) else ClassifierDecoder()
    if not isinstance(decoder, Decoder):
        raise TypeError(f'decoder: need a decoder or "auto", got {decoder!r}')
    if method not in METHODS:
        raise ValueError(f"method: need one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if isinstance(n_seeds, bool) or not isinstance(n_seeds, int) or n_seeds < 1:
        raise ValueError(f"n_seeds: need a whole number of at least 1, got {n_seeds!r}")
    for name, metric in metrics.items():
        if not callable(metric):
            raise TypeError(f"metrics[{name!r}]: need a function of a system, got {type(metric).__name__}")
        if name in (*task.score_names, "bits", "light"):
            raise ValueError(f"metrics: need names that no score has, got {name!r}")
    labels = group_codes(groups, n_scenes)
    return _Plan(
        checked,
        task,
        task.targets(first.scenes),
        decoder,
        test_share(n_test, n_scenes),
        n_seeds,
        labels,
        groups is not None,
        method,
        metrics,
    )


def _checked_system(name: str, system: ImagingSystem) -> ImagingSystem:
    try:
        encoder, noise, scenes = system
    except (TypeError, ValueError) as error:
        raise TypeError(f"systems[{name!r}]: need (encoder, noise, scenes), got {type(system).__name__}") from error
    if not callable(encoder):
        raise TypeError(f"systems[{name!r}]: need a callable encoder, got {type(encoder).__name__}")
    if not isinstance(noise, NoiseModel):
        raise TypeError(f"systems[{name!r}]: need a noise model, got {type(noise).__name__}")
    return ImagingSystem(encoder, noise, samples(f"systems[{name!r}].scenes", scenes))


def test_share(n_test: float | int, n_scenes: int) -> float:
    """`n_test`, a share or a number of scenes, as a share.

    Raises:
        TypeError, ValueError: neither, or nothing left on one side.
    """
    if isinstance(n_test, bool) or not isinstance(n_test, int | float):
        raise TypeError(f"n_test: need a share or a number of scenes, got {n_test!r}")
    share = n_test / n_scenes if isinstance(n_test, int) else float(n_test)
    if not 0.0 < share < 1.0:
        raise ValueError(f"n_test: need a share between 0 and 1 or 1 to {n_scenes - 1} scenes, got {n_test!r}")
    return share


test_share.__test__ = False  # type: ignore[attr-defined]


def _mark(plan: _Plan) -> str:
    modules: dict[str, object] = {}
    tensors = {"target": plan.target, "groups": plan.labels}
    for name, (encoder, noise, scenes) in plan.systems.items():
        modules |= {f"{name} encoder": encoder, f"{name} noise": noise}
        # What attributes that no state_dict holds decide shows in the means and a measurement.
        few = behaviour_of(encoder, cast(NoiseModel, noise), scenes)
        tensors |= {f"{name} scenes": scenes, **{f"{name} {key}": value for key, value in few.items()}}
    settings = {
        "version": __version__,
        "task": (plan.task.score_names, plan.task.range_of(plan.target)),
        "decoder": plan.decoder,
        "share": plan.share,
        "grouped": plan.grouped,
        "method": plan.method,
    }
    return fingerprint_of(modules, tensors, settings)


def _fill(plan: _Plan, kept: _checkpoint.Kept, mark: str, path: Path | None) -> None:
    """Compute what is not kept yet, one row at a time."""
    total = len(plan.systems) * plan.n_seeds
    progress = tqdm(
        total=total,
        initial=sum(name in plan.systems and index < plan.n_seeds for name, index in kept.rows),
        desc="validation",
        unit="fit",
        disable=None,
        leave=False,
    )
    with progress:
        for name, system in plan.systems.items():
            mean: Tensor | None = None
            for index in range(plan.n_seeds):
                if (name, index) in kept.rows:
                    continue
                progress.set_postfix_str(name, refresh=False)
                mean = mean_of(system, name) if mean is None else mean
                kept.rows[name, index] = _row(plan, name, mean, kept.seed, index)
                if path is not None:
                    _checkpoint.write(path, mark, kept)
                progress.update()


def mean_of(system: ImagingSystem, name: str) -> Tensor:
    """The noiseless measurements of all scenes (n, ...)."""
    encoder, _, scenes = system
    with torch.no_grad():
        mean = torch.cat([encoder(part) for part in scenes.split(_SCENES_AT_ONCE)])
    if len(mean) != len(scenes):
        raise ValueError(f"systems[{name!r}]: need one measurement per scene, {len(scenes)}, got {len(mean)}")
    if not bool(torch.isfinite(mean).all()):
        raise ValueError(f"systems[{name!r}]: need finite means, got NaN or infinity")
    return mean


def _split(plan: _Plan, seed: int, index: int) -> Rows:
    return split_rows(plan.labels, plan.share, derived_seed(seed, f"test scenes {index}"))


def _row(plan: _Plan, name: str, mean: Tensor, seed: int, index: int) -> ValidationRow:
    started = time.process_time()
    noise = cast(NoiseModel, plan.systems[name].noise)

    def drawn(purpose: str) -> torch.Generator:
        # The same for all designs: what chance gives one it gives all.
        return torch.Generator().manual_seed(derived_seed(seed, f"{purpose} {index}"))

    rows = _split(plan, seed, index)
    groups = plan.labels if plan.grouped else None
    with torch.no_grad():
        measured = noise.sample(mean, drawn("noise"))
    estimate = estimate_information(
        measured, noise, mean=mean, method=plan.method, groups=groups, generator=drawn("estimate")
    )
    training, test = rows
    if isinstance(plan.task, Classification):
        unseen = set(plan.target[test].tolist()) - set(plan.target[training].tolist())
        if unseen:
            raise ValueError(
                f"labels: need every class on both sides of each split, got class {min(unseen)} among the test scenes "
                "only: classes that are groups of their own cannot be recognised"
            )
    with _backend.reproducible():
        fitted = plan.decoder.fit(
            measured[training], plan.target[training], groups=plan.labels[training], generator=drawn("decoder")
        )
        scores = plan.task.score(fitted(measured[test]), plan.target[test], data_range=plan.task.range_of(plan.target))
    return ValidationRow(
        design=name,
        seed=index,
        bits=estimate.bits,
        stderr_bits=estimate.stderr_bits,
        lower_bits=estimate.lower_bits,
        upper_bits=estimate.upper_bits,
        bound=estimate.bound,
        method=estimate.method,
        scores=scores,
        light=float(mean.double().flatten(1).sum(1).mean()),
        seconds=time.process_time() - started,
    )


def _warnings(plan: _Plan, rows: tuple[ValidationRow, ...]) -> tuple[str, ...]:
    notes = []
    if all(isinstance(system.noise, PoissonNoise | PoissonGaussianNoise) for system in plan.systems.values()):
        light = {row.design: row.light for row in rows}
        low, high = min(light, key=light.__getitem__), max(light, key=light.__getitem__)
        if light[high] > (1 + _SAME_LIGHT) * light[low]:
            notes.append(
                f"the designs get unequal light: {light[low]:.4g} photo-electrons per image in {low!r}, "
                f"{light[high]:.4g} in {high!r}"
            )
    kinds = sorted({row.bound for row in rows})
    if len(kinds) > 1:
        notes.append(f"the bits are of different kinds ({', '.join(kinds)}), which need not compare: choose a method")
    loose = sorted(
        {row.design for row in rows if row.bound == "upper" and row.method.endswith("upper: leave-one-out scenes")}
    )
    if loose:
        notes.append(
            f"the bits of {', '.join(map(repr, loose))} are an upper bound that the scenes give on their own, which "
            "grows without end where each measurement is closest to its own scene: choose the method of a density"
        )
    if plan.grouped and (n_groups := int(plan.labels.max()) + 1) < 20:
        notes.append(f"{n_groups} groups are few: scores depend on which of them test")
    if not plan.grouped:
        notes.append("no groups were given: patches of one image may stand on both sides of a split")
    return tuple(notes)
