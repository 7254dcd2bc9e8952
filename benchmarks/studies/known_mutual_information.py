"""`estimate_mutual_information` on samples whose mutual information is known: a table of truth, estimate and cost.

    python benchmarks/studies/known_mutual_information.py [TASK ...] [--samples N] [--seeds S] [--method M] [--critic C]
        [--out FILE]

The distributions are those of Czyz et al., "Beyond Normal" (2023), arXiv:2306.11078, and Gaussians of 5 and 8 nats:
one recipe for all, which is the defaults. A TASK chooses all tasks whose name contains it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special

from bitlens.estimators.mutual_information import estimate_mutual_information

Array = NDArray[np.float64]
Map = Callable[[Array], Array]
Pair = tuple[Array, Array]


@dataclass(frozen=True)
class Task:
    """`sample(n, random)` gives n pairs; `truth_nats` is their mutual information."""

    sample: Callable[[int, np.random.Generator], Pair]
    truth_nats: float


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
    root = np.linalg.cholesky(covariance)

    def sample(n: int, random: np.random.Generator) -> Pair:
        values = random.standard_normal((n, len(root))) @ root.T
        return values[:, :n_x], values[:, n_x:]

    return Task(sample, gaussian_nats(covariance, n_x))


def student(covariance: Array, n_x: int, freedom: float) -> Task:
    normal = gaussian(covariance, n_x)

    def sample(n: int, random: np.random.Generator) -> Pair:
        x, z = normal.sample(n, random)
        width = np.sqrt(freedom / random.chisquare(freedom, n))[:, None]
        return x * width, z * width

    return Task(sample, student_nats(covariance, n_x, freedom))


def additive_uniform(half_width: float) -> Task:
    def sample(n: int, random: np.random.Generator) -> Pair:
        x = random.uniform(0.0, 1.0, (n, 1))
        return x, x + random.uniform(-half_width, half_width, (n, 1))

    return Task(sample, additive_uniform_nats(half_width))


def mapped(task: Task, x_map: Map, z_map: Map) -> Task:
    """Invertible maps of either side leave the information as it is."""

    def sample(n: int, random: np.random.Generator) -> Pair:
        x, z = task.sample(n, random)
        return x_map(x), z_map(z)

    return Task(sample, task.truth_nats)


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


def run(name: str, task: Task, n: int, seed: int, method: str | None, critic: str) -> dict[str, float | str]:
    x, z = task.sample(n, np.random.default_rng([seed, 11]))
    options = {} if method is None else {"method": method}
    start = time.process_time()
    result = estimate_mutual_information(x, z, critic=critic, generator=torch.Generator().manual_seed(seed), **options)
    seconds = time.process_time() - start
    assert result.stderr_bits is not None
    nats, stderr = result.bits * math.log(2.0), result.stderr_bits * math.log(2.0)
    error = nats - task.truth_nats
    return {
        "task": name,
        "seed": seed,
        "truth_nats": task.truth_nats,
        "estimate_nats": nats,
        "stderr_nats": stderr,
        "relative_error": error / task.truth_nats if task.truth_nats > 1e-9 else math.nan,
        "z_score": error / stderr,
        "cpu_s": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--method")
    parser.add_argument("--critic", default="separable")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    chosen = {
        name: task
        for name, task in tasks().items()
        if not arguments.tasks or any(part in name for part in arguments.tasks)
    }
    print(f"{'task':28}{'truth':>8}{'estimate':>10}{'+- 1 sd':>9}{'error':>8}{'z':>7}{'CPU s':>7}", flush=True)
    rows = []
    for name, task in chosen.items():
        for seed in range(arguments.seeds):
            row = run(name, task, arguments.samples, seed, arguments.method, arguments.critic)
            rows.append(row)
            print(
                f"{name:28}{row['truth_nats']:8.3f}{row['estimate_nats']:10.3f}{row['stderr_nats']:9.3f}"
                f"{row['relative_error']:8.1%}{row['z_score']:7.1f}{row['cpu_s']:7.1f}",
                flush=True,
            )
    errors = np.abs([row["relative_error"] for row in rows if not math.isnan(float(row["relative_error"]))])
    if len(errors):
        print(f"median |relative error| {np.median(errors):.1%}, largest {errors.max():.1%}, {len(errors)} runs")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps([{k: None if v != v else v for k, v in r.items()} for r in rows], indent=1))


if __name__ == "__main__":
    main()
