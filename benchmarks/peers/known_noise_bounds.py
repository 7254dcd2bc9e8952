"""Two-sided bounds of a linear-Gaussian channel of known information: width, time and memory.

Scenes are 8 x 8 Gaussian images with a falling spectrum, white noise of standard deviation 1 is added, and
I = 0.5 sum log(1 + eigenvalue) is 5 nats. Seconds are the least of `--repeats` calls of `estimate_information`, after
one on a few images; next to them those of one single-precision product of the size of a pass over all pairs, which is
what the machine can do at the time.

    python benchmarks/peers/known_noise_bounds.py [--samples 16384 65536] [--nats 5] [--repeats 2] [--threads 2]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
from peak_memory import extra_megabytes
from torch import Tensor

import bitlens

SIDE = 8


def channel(n: int, nats: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Measured and noiseless images, (n, 8, 8) float64."""
    generator = torch.Generator().manual_seed(seed)
    pixels = SIDE * SIDE
    shape = torch.exp(-torch.arange(pixels, dtype=torch.float64) / 4)
    low, high = -30.0, 30.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        too_little = float(0.5 * torch.log1p(math.exp(middle) * shape).sum()) < nats
        low, high = (middle, high) if too_little else (low, middle)
    rotation, _ = torch.linalg.qr(torch.randn(pixels, pixels, generator=generator, dtype=torch.float64))
    mean = torch.randn(n, pixels, generator=generator, dtype=torch.float64)
    mean.mul_((math.exp(low) * shape).sqrt())
    mean = (mean @ rotation.T).add_(100.0).reshape(n, SIDE, SIDE)
    measured = mean.clone()
    for part in measured.split(4096):
        part.add_(torch.randn(part.shape, generator=generator, dtype=torch.float64))
    return measured, mean


def estimate(measured: Tensor, mean: Tensor) -> bitlens.InformationEstimate:
    """Bounds with a fixed seed."""
    noise = bitlens.GaussianNoise(1.0)
    return bitlens.estimate_information(measured, noise, mean=mean, generator=torch.Generator().manual_seed(1))


def prepared(n: int, nats: float) -> Callable[[], object]:
    """The call on n images, everything loaded and warm."""
    measured, mean = channel(n, nats)
    estimate(measured[:2000], mean[:2000])
    return lambda: estimate(measured, mean)


def product_seconds(n: int) -> float:
    """One n x 64 by 64 x n product, in blocks of rows."""
    features = torch.randn(n, SIDE * SIDE)
    out = torch.empty(1024, n)
    begin = time.perf_counter()
    for rows in features.split(1024):
        torch.mm(rows, features.T, out=out[: len(rows)])
    return time.perf_counter() - begin


def main() -> None:
    """Print one line for each number of scenes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[16384, 65536])
    parser.add_argument("--nats", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'K':>7} {'lower':>8} {'upper':>8} {'truth':>6} {'width':>7} {'s':>7} {'product s':>9} {'extra MB':>8}")
    for n in arguments.samples:
        call = prepared(n, arguments.nats)
        seconds, products = math.inf, math.inf
        for _ in range(arguments.repeats):
            products = min(products, product_seconds(n))
            begin = time.perf_counter()
            result = call()
            seconds = min(seconds, time.perf_counter() - begin)
        del call
        assert isinstance(result, bitlens.InformationEstimate)
        lower, upper = (bits * math.log(2.0) for bits in (result.lower_bits or math.nan, result.upper_bits or math.nan))
        extra = extra_megabytes(prepared, (n, arguments.nats), threads=arguments.threads)
        print(
            f"{n:7d} {lower:8.4f} {upper:8.4f} {arguments.nats:6.2f} {upper - lower:7.4f} {seconds:7.2f} "
            f"{products:9.2f} {extra:8.0f}"
        )


if __name__ == "__main__":
    main()
