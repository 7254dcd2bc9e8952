"""`estimate_mutual_information` on samples whose mutual information is known: truth, estimate, error and cost of each.

    python benchmarks/studies/known_mutual_information.py [TASK ...] [--samples N] [--first-seed F] [--seeds S]
        [--method M] [--critic C] [--out FILE]

The distributions are those of Czyz et al., "Beyond Normal" (2023), arXiv:2306.11078, and Gaussians of 5 and 8 nats:
one recipe for all, which is the defaults. A TASK chooses all tasks whose name contains it. FILE is written after each
run, whole or not at all, and a study that was interrupted goes on from what FILE has. The column "known" is the mean
of the true log density ratio over the same pairs: no estimate from samples can be held to less than its error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special

from bitlens.estimators import mutual_information
from bitlens.estimators._inputs import N_FOLDS
from bitlens.estimators.mutual_information import estimate_mutual_information

Array = NDArray[np.float64]
Map = Callable[[Array], Array]
Row = dict[str, Any]


class Draw(NamedTuple):
    """Pairs (n, d_x) and (n, d_z), and log p(x, z) / (p(x) p(z)) of each, nats."""

    x: Array
    z: Array
    log_ratio: Array


@dataclass(frozen=True)
class Task:
    """`draw(n, random)` gives n pairs; `truth_nats` is their mutual information."""

    draw: Callable[[int, np.random.Generator], Draw]
    truth_nats: float

    def sample(self, n: int, random: np.random.Generator) -> tuple[Array, Array]:
        """The pairs alone."""
        x, z, _ = self.draw(n, random)
        return x, z


def squared_distance(values: Array, covariance: Array) -> Array:
    """v' C^-1 v of each row."""
    return np.asarray(np.einsum("ij,ij->i", values, np.linalg.solve(covariance, values.T).T))


def gaussian_nats(covariance: Array, n_x: int) -> float:
    """0.5 log(det C_xx det C_zz / det C)."""
    log_det = [np.linalg.slogdet(part)[1] for part in (covariance[:n_x, :n_x], covariance[n_x:, n_x:], covariance)]
    return float(0.5 * (log_det[0] + log_det[1] - log_det[2]))


def student_nats(covariance: Array, n_x: int, freedom: float) -> float:
    """I = h(x) + h(z) - h(x, z) of a multivariate Student distribution with this scale matrix."""

    def entropy_beyond_scale(size: int) -> float:
        half, all_half = 0.5 * freedom, 0.5 * (freedom + size)
        volume = special.gammaln(half) - special.gammaln(all_half) + 0.5 * size * math.log(freedom * math.pi)
        return float(volume + all_half * (special.digamma(all_half) - special.digamma(half)))

    n_z = len(covariance) - n_x
    tails = entropy_beyond_scale(n_x) + entropy_beyond_scale(n_z) - entropy_beyond_scale(n_x + n_z)
    return gaussian_nats(covariance, n_x) + tails


def additive_uniform_nats(half_width: float) -> float:
    """x ~ U(0, 1), z = x + U(-h, h): the entropy of a trapezoid less log 2h."""
    narrow, wide = sorted((1.0, 2.0 * half_width))
    return math.log(wide) + 0.5 * narrow / wide - math.log(2.0 * half_width)


def gaussian(covariance: Array, n_x: int) -> Task:
    root, truth = np.linalg.cholesky(covariance), gaussian_nats(covariance, n_x)

    def draw(n: int, random: np.random.Generator) -> Draw:
        values = random.standard_normal((n, len(root))) @ root.T
        x, z = values[:, :n_x], values[:, n_x:]
        alone = squared_distance(x, covariance[:n_x, :n_x]) + squared_distance(z, covariance[n_x:, n_x:])
        return Draw(x, z, truth + 0.5 * (alone - squared_distance(values, covariance)))

    return Task(draw, truth)


def student(covariance: Array, n_x: int, freedom: float) -> Task:
    normal, n_all = gaussian(covariance, n_x), len(covariance)

    def log_density(values: Array, block: slice) -> Array:
        """Without the terms that every ratio is free of."""
        half = 0.5 * (freedom + values.shape[1])
        found = special.gammaln(half) - half * np.log1p(squared_distance(values, covariance[block, block]) / freedom)
        return np.asarray(found - special.gammaln(0.5 * freedom))

    def draw(n: int, random: np.random.Generator) -> Draw:
        x, z = normal.sample(n, random)
        width = np.sqrt(freedom / random.chisquare(freedom, n))[:, None]
        x, z = x * width, z * width
        alone = log_density(x, slice(0, n_x)) + log_density(z, slice(n_x, n_all))
        together = log_density(np.concatenate([x, z], axis=1), slice(0, n_all))
        return Draw(x, z, normal.truth_nats + together - alone)

    return Task(draw, student_nats(covariance, n_x, freedom))


def additive_uniform(half_width: float) -> Task:
    def draw(n: int, random: np.random.Generator) -> Draw:
        x = random.uniform(0.0, 1.0, (n, 1))
        z = x + random.uniform(-half_width, half_width, (n, 1))
        # p(z given x) / p(z), where 1 / 2h cancels: one over the length of the x that z may come from.
        length = np.minimum(1.0, z + half_width) - np.maximum(0.0, z - half_width)
        return Draw(x, z, -np.log(length[:, 0]))

    return Task(draw, additive_uniform_nats(half_width))


def mapped(task: Task, x_map: Map, z_map: Map) -> Task:
    """Invertible maps of either side leave the information as it is."""

    def draw(n: int, random: np.random.Generator) -> Draw:
        x, z, log_ratio = task.draw(n, random)
        return Draw(x_map(x), z_map(z), log_ratio)

    return Task(draw, task.truth_nats)


def dense(size: int) -> Array:
    """Every two of the 2 size coordinates have correlation 0.5."""
    return np.full((2 * size, 2 * size), 0.5) + 0.5 * np.eye(2 * size)


def paired(size: int, *correlations: float) -> Array:
    """Coordinate i of x has the i-th correlation with coordinate i of z; all else is independent."""
    covariance = np.eye(2 * size)
    for i, correlation in enumerate(correlations):
        covariance[i, size + i] = covariance[size + i, i] = correlation
    return covariance


def equal_pairs(size: int, nats: float) -> Array:
    """`size` pairs that share `nats`, behind a rotation of either side."""
    correlation = math.sqrt(-math.expm1(-2.0 * nats / size))
    random = np.random.default_rng(0)
    rotation = np.zeros((2 * size, 2 * size))
    for block in (slice(0, size), slice(size, 2 * size)):
        rotation[block, block] = np.linalg.qr(random.standard_normal((size, size)))[0]
    covariance: Array = rotation @ paired(size, *[correlation] * size) @ rotation.T
    return 0.5 * (covariance + covariance.T)


def half_cube(values: Array) -> Array:
    return np.sign(values) * np.abs(values) ** 1.5


def normal_cdf(values: Array) -> Array:
    return np.asarray(special.ndtr(values))


def wiggle(values: Array) -> Array:
    return values + 0.5 * np.sin(1.5 * values) + 0.1 * np.sin(2.0 * values + 1.0)


def spiral(first: int, second: int) -> Map:
    """A rotation in the plane of two coordinates, by an angle of a third of the squared length of the whole row."""

    def turn(values: Array) -> Array:
        angle = np.square(values).sum(axis=1) / 3.0
        a, b = values[:, first], values[:, second]
        turned = values.copy()
        turned[:, first] = np.cos(angle) * a - np.sin(angle) * b
        turned[:, second] = np.sin(angle) * a + np.cos(angle) * b
        return turned

    return turn


def bimodal(share: float, left: float, right: float) -> Map:
    """Normal scores to two unit Gaussians."""
    grid = np.linspace(left - 9.0, right + 9.0, 40001)
    below = share * special.ndtr(grid - left) + (1.0 - share) * special.ndtr(grid - right)

    def stretch(values: Array) -> Array:
        return np.interp(special.ndtr(values), below, grid)

    return stretch


def swiss_roll(values: Array) -> Array:
    angle = 1.5 * math.pi * (1.0 + 2.0 * special.ndtr(values))
    return np.concatenate([angle * np.cos(angle), angle * np.sin(angle)], axis=1) / 21.0


def same(values: Array) -> Array:
    return values


def tasks() -> dict[str, Task]:
    """All tasks by name."""
    normal = gaussian(paired(1, 0.75), 1)
    sparse = {size: gaussian(paired(size, 0.8, 0.8), size) for size in (2, 3, 5, 25, 50)}
    found = {
        "normal 1x1": normal,
        "bimodal 1x1": mapped(normal, bimodal(0.3, 0.0, 5.0), bimodal(0.5, -1.0, 3.0)),
        "wiggly 1x1": mapped(normal, wiggle, wiggle),
        "half-cube 1x1": mapped(normal, half_cube, half_cube),
        "swiss roll 2x1": mapped(normal, swiss_roll, normal_cdf),
        "additive uniform 0.1": additive_uniform(0.1),
        "additive uniform 0.75": additive_uniform(0.75),
    }
    found |= {f"dense {size}x{size}": gaussian(dense(size), size) for size in (2, 3, 5, 25, 50)}
    found |= {f"sparse {size}x{size}": task for size, task in sparse.items()}
    found |= {f"half-cube sparse {size}x{size}": mapped(sparse[size], half_cube, half_cube) for size in (3, 5, 25)}
    found |= {f"spiral sparse {size}x{size}": mapped(sparse[size], spiral(0, 1), spiral(1, 2)) for size in (3, 5, 25)}
    for size in (3, 5):
        uniform = mapped(sparse[size], normal_cdf, normal_cdf)
        found[f"spiral uniform {size}x{size}"] = mapped(uniform, spiral(0, 1), spiral(1, 2))
    found["student 1x1, 1 dof"] = student(np.eye(2), 1, 1)
    for size, freedom in ((2, 1), (2, 2), (3, 2), (3, 3), (5, 2), (5, 3)):
        found[f"student {size}x{size}, {freedom} dof"] = student(np.eye(2 * size), size, freedom)
    for size in (3, 5):
        found[f"student sparse {size}x{size}, 2 dof"] = student(paired(size, 0.8, 0.8), size, 2)
        stretched = mapped(student(paired(size, 0.8, 0.8), size, 5), np.arcsinh, np.arcsinh)
        found[f"asinh student {size}x{size}, 5 dof"] = stretched
    found |= {f"{nats} nats 5x5": gaussian(equal_pairs(5, nats), 5) for nats in (5, 8)}
    found["8 nats 3x3"] = gaussian(equal_pairs(3, 8), 3)
    found["independent 3x3"] = gaussian(np.eye(6), 3)
    found["independent 20x20"] = gaussian(np.eye(40), 20)
    return found


def recipe() -> str:
    """A digest of the source that the estimates come from."""
    folder = Path(mutual_information.__file__).parent
    sources = [folder / "mutual_information.py", *sorted(folder.glob("_critic_*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def run(name: str, task: Task, n: int, seed: int, method: str | None, critic: str) -> Row:
    x, z, log_ratio = task.draw(n, np.random.default_rng([seed, 11]))
    options = {} if method is None else {"method": method}
    start = time.process_time()
    result = estimate_mutual_information(x, z, critic=critic, generator=torch.Generator().manual_seed(seed), **options)
    seconds = time.process_time() - start
    assert result.stderr_bits is not None
    nats, stderr = result.bits * math.log(2.0), result.stderr_bits * math.log(2.0)
    truth, known = task.truth_nats, float(log_ratio.mean())
    return {
        "task": name,
        "seed": seed,
        "truth_nats": truth,
        "estimate_nats": nats,
        "stderr_nats": stderr,
        "known_nats": known,
        "relative_error": (nats - truth) / truth if truth > 0.0 else None,
        "known_relative_error": (known - truth) / truth if truth > 0.0 else None,
        "z_score": (nats - truth) / stderr if stderr > 0.0 else None,
        "cpu_s": seconds,
    }


class Bar(NamedTuple):
    """What is held to a bar, over all runs of a study, as number and as text."""

    what: str
    found: float
    largest: float
    unit: str

    def __str__(self) -> str:
        scale = 100.0 if self.unit == "%" else 1.0
        verdict = "kept" if self.found <= self.largest else "MISSED"
        return (
            f"{self.what:44}{scale * self.found:9.3g} {self.unit:4} bar {scale * self.largest:g} {self.unit}: {verdict}"
        )


def bars(rows: list[Row]) -> list[Bar]:
    """Every bar that the rows can say something about."""
    errors = {(row["task"], row["seed"]): abs(row["relative_error"]) for row in rows if row["truth_nats"] > 0.0}
    tails = [error for (name, _), error in errors.items() if name.startswith("student")]
    nothing = [abs(row["estimate_nats"]) for row in rows if row["truth_nats"] == 0.0]
    seconds = max(row["cpu_s"] for row in rows)
    found = []
    if errors:
        found.append(Bar("median |relative error|", float(np.median(list(errors.values()))), 0.03, "%"))
        found.append(Bar("largest |relative error|", max(errors.values()), 0.30, "%"))
    if tails:
        found.append(Bar("largest |relative error| of heavy tails", max(tails), 0.08, "%"))
    if nothing:
        found.append(Bar("largest |estimate| of independent samples", max(nothing), 0.01, "nats"))
    found.append(Bar("most CPU time of an estimate", seconds, 60.0, "s"))
    found.append(Bar("most CPU time of a fit, the mean of its folds", seconds / N_FOLDS, 10.0, "s"))
    return found


def read_rows(path: Path, settings: Row) -> list[Row]:
    """What an interrupted study of these settings left.

    Raises:
        ValueError: the file is of other settings.
    """
    if not path.exists():
        return []
    study = json.loads(path.read_text())
    if study["settings"] != settings:
        raise ValueError(f"out: need a new file or one of the settings {settings}, got one of {study['settings']}")
    rows: list[Row] = study["rows"]
    return rows


def write_rows(path: Path, settings: Row, rows: list[Row]) -> None:
    """The whole file at once: an interruption leaves the one before."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))
    os.replace(unfinished, path)


def line(row: Row) -> str:
    def share(value: float | None) -> str:
        return f"{'-':>8}" if value is None else f"{value:8.1%}"

    return (
        f"{row['task']:28}{row['seed']:5}{row['truth_nats']:8.3f}{row['estimate_nats']:10.3f}{row['stderr_nats']:9.3f}"
        f"{share(row['relative_error'])}{share(row['known_relative_error'])}{row['cpu_s']:7.1f}"
    )


def main(arguments_given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--method")
    parser.add_argument("--critic", default="separable")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(arguments_given)
    chosen = {
        name: task
        for name, task in tasks().items()
        if not arguments.tasks or any(part in name for part in arguments.tasks)
    }
    if not chosen:
        parser.error(f"tasks: need parts of the names of tasks, got {arguments.tasks}")
    settings = {
        "samples": arguments.samples,
        "method": arguments.method,
        "critic": arguments.critic,
        "recipe": recipe(),
    }
    try:
        rows = [] if arguments.out is None else read_rows(arguments.out, settings)
    except ValueError as error:
        parser.error(str(error))
    print(
        f"{'task':28}{'seed':>5}{'truth':>8}{'estimate':>10}{'+- 1 sd':>9}{'error':>8}{'known':>8}{'CPU s':>7}",
        flush=True,
    )
    there = {(row["task"], row["seed"]): row for row in rows}
    shown = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for name, task in chosen.items():
            row = there.get((name, seed))
            if row is None:
                row = run(name, task, arguments.samples, seed, arguments.method, arguments.critic)
                rows.append(row)
                if arguments.out is not None:
                    write_rows(arguments.out, settings, rows)
            shown.append(row)
            print(line(row), flush=True)
    for bar in bars(shown):
        print(bar)


if __name__ == "__main__":
    main()
