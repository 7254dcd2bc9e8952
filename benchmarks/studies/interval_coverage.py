"""Do the intervals of `estimate_information` cover truth as often as they say, and no wider than they need?

Three channels with known information, noisy images alone; for each the misses of the 95 % interval (39 to 74 of 1000
replicates, 7 to 36 of 400 are what chance allows), the mean error in its standard errors, and the mean width over
2 x 1.96 x the standard deviation over replicates (0.75 to 1.25). Then, with noiseless images, the misses of either end
of the bounds (at most 42 of 1000, 13 of 200).

    python benchmarks/studies/interval_coverage.py [--replicates 200] [--n 800] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from scipy import stats
from tqdm import tqdm
from truth_rows import Row, constant_images, gaussian_field, independent_gamma

import bitlens

CONFIDENCE = 0.95


def channels(n: int) -> dict[str, tuple[Callable[[int], Row], str]]:
    """A row for each seed, and the method."""
    return {
        "linear-Gaussian field, 6 x 6": (lambda seed: gaussian_field(n, 6, False, 2 * seed), "auto"),
        "independent gamma pixels at 10, 6 x 6": (lambda seed: independent_gamma(n, 6, 10.0, 2 * seed), "auto"),
        "constant intensity at 100, 6 x 6": (lambda seed: constant_images(n, 6, 100.0, 2 * seed), "auto"),
    }


def allowed(replicates: int, share: float) -> tuple[int, int]:
    """Counts of misses that a rate of `share` gives in all but 1 of 1000 studies."""
    law = stats.binom(replicates, share)
    return int(law.ppf(5e-4)), int(law.ppf(1 - 5e-4))


def study(make: Callable[[int], Row], method: str, replicates: int, name: str) -> dict[str, object]:
    """Replicates of one channel."""
    errors, widths, below, above = [], [], 0, 0
    lower_misses, upper_misses = 0, 0
    for seed in tqdm(range(replicates), desc=name, disable=None):
        row = make(seed)
        generator = torch.Generator().manual_seed(seed)
        found = bitlens.estimate_information(row.measured, row.noise, method=method, generator=generator)
        low, high = found.confidence_interval_bits
        errors.append(found.bits - row.truth_bits)
        widths.append(high - low)
        below += high < row.truth_bits
        above += low > row.truth_bits
        both = bitlens.estimate_information(row.measured, row.noise, mean=row.mean, method=method, generator=generator)
        reach = 1.96 * both.stderr_bits
        lower_misses += both.lower_bits is not None and both.lower_bits - reach > row.truth_bits
        upper_misses += both.upper_bits is not None and both.upper_bits + reach < row.truth_bits
    error = torch.tensor(errors)
    spread = float(error.std())
    low_count, high_count = allowed(replicates, 1 - CONFIDENCE)
    ratio = sum(widths) / len(widths) / (2 * 1.96 * spread)
    mean_z = float(error.mean()) / (spread / math.sqrt(replicates))
    most_bound_misses = allowed(replicates, 0.025)[1]
    return {
        "channel": name,
        "replicates": replicates,
        "misses_below": below,
        "misses_above": above,
        "misses_allowed": [low_count, high_count],
        "mean_error_bits": float(error.mean()),
        "mean_error_standard_errors": mean_z,
        "standard_deviation_bits": spread,
        "width_over_needed": ratio,
        "lower_bound_misses": lower_misses,
        "upper_bound_misses": upper_misses,
        "bound_misses_allowed": most_bound_misses,
        "holds": low_count <= below + above <= high_count
        and 0.75 <= ratio <= 1.25
        and abs(mean_z) < 4
        and max(lower_misses, upper_misses) <= most_bound_misses,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--n", type=int, default=800, help="images of a replicate")
    parser.add_argument("--json", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    table = []
    for name, (make, method) in channels(arguments.n).items():
        one = study(make, method, arguments.replicates, name)
        table.append(one)
        print(
            f"{name:40} misses {one['misses_below']} + {one['misses_above']} of {one['replicates']}"
            f" (allowed {one['misses_allowed']})  mean error {one['mean_error_bits']:+.3f} bits"
            f" ({one['mean_error_standard_errors']:+.1f} sigmas)  width {one['width_over_needed']:.2f}"
            f"  bounds missed {one['lower_bound_misses']}, {one['upper_bound_misses']}"
            f" (allowed {one['bound_misses_allowed']}){'' if one['holds'] else '  MISSED'}",
            flush=True,
        )
    if arguments.json:
        temporary = arguments.json.with_suffix(".part")
        temporary.write_text(json.dumps(table, indent=1))
        temporary.replace(arguments.json)


if __name__ == "__main__":
    main()
