"""Poisson-Gaussian log-likelihood side by side with vectorised torch, in one run.

The peer is a log-sum-exp over the shortest window of counts around the posterior mean whose truncation, measured in
float64 against the kernel's double precision, is below 4 units in the last place of float32. Medians of interleaved
runs; ratios are what to quote.

    python benchmarks/peers/poisson_gaussian.py [--pixels 1000000] [--repeats 7] [--threads 2]
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable

import torch
from peak_memory import extra_megabytes
from torch import Tensor

from bitlens import ops
from bitlens.kernels import _compiled

READ_STD = 1.5
CASES = {"mean 0.5 to 50": (0.5, 50.0), "mean 1e4": (0.99e4, 1.01e4)}
TOLERANCE = 4 * torch.finfo(torch.float32).eps


def torch_window(measured: Tensor, mean: Tensor, half_width: int) -> Tensor:
    """log sum_k Poisson(k; mean) Normal(measured; k, READ_STD^2) over 2 half_width + 1 counts."""
    with torch.no_grad():
        posterior = (mean * READ_STD**2 + measured * mean) / (mean + READ_STD**2)
        start = (posterior.round() - half_width).clamp(min=0)
    k = start + torch.arange(2 * half_width + 1, dtype=mean.dtype).reshape(-1, 1)
    terms = torch.xlogy(k, mean) - mean - torch.lgamma(k + 1) - 0.5 * ((measured - k) / READ_STD) ** 2
    return torch.logsumexp(terms, dim=0) - math.log(READ_STD * math.sqrt(2 * math.pi))


def shortest_window(measured: Tensor, mean: Tensor) -> int:
    """The smallest half-width whose truncation error is below the tolerance on a sample of the pixels."""
    z, y = measured[:20_000].double(), mean[:20_000].double()
    truth = ops.poisson_gaussian_log_prob(z, y, read_std=READ_STD)
    for half_width in range(2, 200):
        error = (torch_window(z, y, half_width) - truth).abs() / truth.abs().clamp(min=1)
        if float(error.max()) <= TOLERANCE:
            return half_width
    raise RuntimeError("no window reaches the tolerance")


def ours(backend: str) -> Callable[[Tensor, Tensor], Tensor]:
    def call(measured: Tensor, mean: Tensor) -> Tensor:
        with ops.use_backend(backend):
            return ops.poisson_gaussian_log_prob(measured, mean, read_std=READ_STD)

    return call


def timed(call: Callable[[Tensor, Tensor], Tensor], measured: Tensor, mean: Tensor, backward: bool) -> float:
    leaf = mean.clone().requires_grad_(backward)
    begin = time.perf_counter()
    value = call(measured, leaf)
    if backward:
        torch.autograd.grad(value.sum(), leaf)
    return time.perf_counter() - begin


def one_call(pixels: int, low: float, high: float) -> Callable[[], object]:
    """A forward call whose memory is to be measured."""
    measured, mean = inputs(pixels, low, high)
    call = ours("cpu")
    call(measured[:100], mean[:100])
    return functools.partial(call, measured, mean)


def inputs(pixels: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Measured values and means."""
    torch.manual_seed(0)
    mean = low + (high - low) * torch.rand(pixels)
    return torch.poisson(mean) + READ_STD * torch.randn(pixels), mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {_compiled.instruction_set()}, {arguments.threads} threads, float32")
    for name, (low, high) in CASES.items():
        measured, mean = inputs(arguments.pixels, low, high)
        half_width = shortest_window(measured, mean)
        calls = {
            "torch": lambda z, y, half_width=half_width: torch_window(z, y, half_width),
            "cpu": ours("cpu"),
            "numba": ours("numba"),
        }
        truth = ops.poisson_gaussian_log_prob(measured.double(), mean.double(), read_std=READ_STD)
        print(f"\n{name}, {arguments.pixels} pixels, torch window of {2 * half_width + 1} counts")
        for label, call in calls.items():
            error = (call(measured, mean).double() - truth).abs() / truth.abs().clamp(min=1)
            print(f"  {label:<6} largest error {float(error.max()) / torch.finfo(torch.float32).eps:9.1f} eps")
        for backward in (False, True):
            times: dict[str, list[float]] = {label: [] for label in calls}
            for _ in range(arguments.repeats):
                for label, call in calls.items():
                    times[label].append(timed(call, measured, mean, backward))
            peer = statistics.median(times["torch"])
            for label, values in times.items():
                median = statistics.median(values)
                kind = "forward+backward" if backward else "forward"
                rate = arguments.pixels / median / 1e6
                row = f"  {kind:<17} {label:<6} {1e3 * median:9.1f} ms  {rate:8.1f} Mpixel/s"
                print(f"{row}  {peer / median:7.1f} x torch")
        pixels = max(arguments.pixels, 16_000_000)
        extra = extra_megabytes(one_call, (pixels, low, high), threads=arguments.threads)
        print(
            f"  forward           cpu    extra memory {extra / (4 * pixels / 2**20):.2f} x the output ({pixels} pixels)"
        )


if __name__ == "__main__":
    main()
