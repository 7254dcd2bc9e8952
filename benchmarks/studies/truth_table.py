"""`estimate_information` against channels whose information is known: estimate, truth, z-score, CPU time.

First from noisy images alone, method "auto": within 0.03 bits per pixel of truth on independent or correlated pixels,
within 1 bit per image and two standard errors elsewhere. Then with the noiseless images: truth within the bracket of
the bounds, less than four standard errors outside.

    python benchmarks/studies/truth_table.py [--n 4000] [--rows TEXT] [--without-means] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from truth_rows import Row, all_rows

import bitlens

PIXEL_BAR_BITS, IMAGE_BAR_BITS, BRACKET_SIGMAS = 0.03, 1.0, 4.0


def from_noisy(row: Row) -> dict[str, object]:
    """One estimate without means, judged."""
    start = time.process_time()
    found = bitlens.estimate_information(row.measured, row.noise, generator=torch.Generator().manual_seed(0))
    seconds = time.process_time() - start
    pixels = row.measured[0].numel()
    difference = found.bits - row.truth_bits
    stderr = math.hypot(found.stderr_bits, row.truth_stderr)
    if row.criterion == "pixel":
        holds = abs(difference) / pixels <= PIXEL_BAR_BITS
    else:
        holds = abs(difference) <= IMAGE_BAR_BITS + 2.0 * stderr
    return {
        "row": row.name,
        "estimate_bits": found.bits,
        "truth_bits": row.truth_bits,
        "difference_bits": difference,
        "difference_bits_per_pixel": difference / pixels,
        "z": difference / stderr,
        "cpu_s": seconds,
        "method": found.method,
        "holds": holds,
    }


def with_means(row: Row) -> dict[str, object]:
    """The bracket, and by how many standard errors truth lies outside."""
    start = time.process_time()
    found = bitlens.estimate_information(
        row.measured, row.noise, mean=row.mean, generator=torch.Generator().manual_seed(0)
    )
    seconds = time.process_time() - start
    stderr = math.hypot(found.stderr_bits, row.truth_stderr)
    below = 0.0 if found.lower_bits is None else max(0.0, found.lower_bits - row.truth_bits)
    above = 0.0 if found.upper_bits is None else max(0.0, row.truth_bits - found.upper_bits)
    outside = max(below, above) / stderr
    return {
        "row": row.name,
        "lower_bits": found.lower_bits,
        "upper_bits": found.upper_bits,
        "truth_bits": row.truth_bits,
        "sigmas_outside": outside,
        "cpu_s": seconds,
        "method": found.method,
        "holds": outside < BRACKET_SIGMAS,
    }


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=4000, help="images of a row")
    parser.add_argument("--rows", default="", help="only rows whose name holds this text")
    parser.add_argument("--without-means", action="store_true", help="leave the second table out")
    parser.add_argument("--json", type=Path, help="write both tables to this file")
    arguments = parser.parse_args()
    noisy, bracketed = [], []
    print(f"{'noisy images alone':44}{'estimate':>10}{'truth':>10}{'difference':>12}{'per pixel':>11}{'z':>8}  CPU s")
    for make in all_rows(arguments.n):
        row = make()
        if arguments.rows not in row.name:
            continue
        one = from_noisy(row)
        noisy.append(one)
        print(
            f"{row.name:44}{one['estimate_bits']:10.3f}{one['truth_bits']:10.3f}{one['difference_bits']:12.3f}"
            f"{one['difference_bits_per_pixel']:11.4f}{one['z']:8.1f}{one['cpu_s']:7.1f}"
            f"  {one['method']}{'' if one['holds'] else '  MISSED'}",
            flush=True,
        )
        if not arguments.without_means:
            bracketed.append(with_means(row))
    print(f"{sum(bool(one['holds']) for one in noisy)} of {len(noisy)} hold")
    if bracketed:
        print(f"\n{'with noiseless images':44}{'lower':>10}{'truth':>10}{'upper':>10}{'sigmas out':>12}{'CPU s':>7}")
    for two in bracketed:
        lower, upper = (math.nan if two[key] is None else two[key] for key in ("lower_bits", "upper_bits"))
        print(
            f"{two['row']:44}{lower:10.3f}{two['truth_bits']:10.3f}{upper:10.3f}{two['sigmas_outside']:12.2f}"
            f"{two['cpu_s']:7.1f}  {two['method']}{'' if two['holds'] else '  MISSED'}"
        )
    if bracketed:
        print(f"{sum(bool(two['holds']) for two in bracketed)} of {len(bracketed)} hold")
    if arguments.json:
        text = json.dumps({"noisy": noisy, "bracketed": bracketed}, indent=1)
        temporary = arguments.json.with_suffix(".part")
        temporary.write_text(text)
        temporary.replace(arguments.json)


if __name__ == "__main__":
    main()
