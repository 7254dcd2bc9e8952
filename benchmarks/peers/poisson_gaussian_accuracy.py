"""Largest error of the Poisson-Gaussian log-likelihood against mpmath (50 digits), by precision, backend and operand.

Error is |value - truth| / max(1, |truth|), the truth taken at the inputs as rounded to the precision; a Python number
(gain, offset, read_std) keeps float64 Points: mean 1e-3 to 1e6 and 0, read noise 0.01 to 100 electrons, measured
within 12 sigma of its mean and far outside.

    python benchmarks/peers/poisson_gaussian_accuracy.py [--points 2000] [--seed 20] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from bitlens import ops

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "oracles"))
import poisson_gaussian as oracle
import poisson_gaussian_calls as calls

ARGUMENTS = ("measured", "mean", "gain", "offset", "read_std")
QUANTITIES = ("value", *(f"d/d {name}" for name in ARGUMENTS))
VALUE_BAR = {torch.float64: 1e-10, torch.float32: 4 * torch.finfo(torch.float32).eps}
GRADIENT_BAR = {torch.float64: 1e-8, torch.float32: None}


class Row(NamedTuple):
    """The worst point of one quantity, on one backend, in one precision."""

    precision: str
    operands: str
    backend: str
    quantity: str
    worst_error: float
    in_eps: float
    bar: float | None
    worst_point: dict[str, float]


def measure(points: oracle.Points, backend: str, dtype: torch.dtype, operands: str) -> list[Row]:
    at = oracle.rounded(points, calls.NUMPY[dtype], operands)
    exact = oracle.truths(at)
    with ops.use_backend(backend):
        found = calls.outputs(at, dtype, operands, gradients=operands != "numbers")
    error = oracle.relative_error(found, exact[: len(found), :, None]).max(axis=2)
    precision = str(dtype).removeprefix("torch.")
    rows = []
    for quantity, errors in zip(QUANTITIES, error, strict=False):
        worst = int(errors.argmax())
        bar = (VALUE_BAR if quantity == "value" else GRADIENT_BAR)[dtype]
        where = dict(zip(ARGUMENTS, at[:, worst].tolist(), strict=True))
        largest = float(errors[worst])
        eps = torch.finfo(dtype).eps
        rows.append(Row(precision, operands, backend, quantity, largest, largest / eps, bar, where))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--backends", nargs="+", default=["cpu", "numba", "reference"])
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    arguments = parser.parse_args()
    points = oracle.random_points(arguments.points, arguments.seed)
    rows = []
    print(f"{arguments.points} points, seed {arguments.seed}; truth by mpmath; error / max(1, |truth|)")
    print(f"{'precision':9} {'sensor as':9} {'backend':9} {'quantity':11} {'worst':>9} {'in eps':>8} {'bar':>9}  at")
    for dtype in (torch.float64, torch.float32):
        for operands in ("tensors", "scalars", "numbers"):
            for backend in arguments.backends:
                for row in measure(points, backend, dtype, operands):
                    rows.append(row)
                    bar = "" if row.bar is None else f"{row.bar:.1e}{' ' if row.worst_error <= row.bar else '!'}"
                    where = ", ".join(f"{name} {value:.9g}" for name, value in row.worst_point.items())
                    left = f"{row.precision:9} {row.operands:9} {row.backend:9} {row.quantity:11}"
                    print(f"{left} {row.worst_error:9.1e} {row.in_eps:8.1f} {bar:>9}  {where}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([row._asdict() for row in rows], indent=2))


if __name__ == "__main__":
    main()
