"""All pairs of Poisson-Gaussian likelihoods side by side with a chunked torch broadcast, in one run.

The peer is the log-sum-exp of `poisson_gaussian.py` over the shortest window of counts that reaches single precision
on these pairs, far ones included, for as many rows at a time as fit in 1 GB of terms. It is timed on a few of the rows
and scaled to all of them, since all would take minutes. Medians of interleaved runs; ratios are what to quote. Errors
are against the elementwise kernel in float64 on the same rows; memory is what a fresh process needs beyond its inputs.

    python benchmarks/peers/poisson_gaussian_pairs.py [--rows 1024] [--columns 1024] [--pixels 256] [--threads 2]
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
TOLERANCE = 4 * torch.finfo(torch.float32).eps
BYTES = 1_000_000_000
CASES = {"mean 0.5 to 50": (0.5, 50.0), "mean 1e4": (0.99e4, 1.01e4)}


def inputs(rows: int, columns: int, pixels: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mean = low + (high - low) * torch.rand(columns, pixels, generator=generator)
    source = mean[torch.arange(rows) % columns]
    noise = torch.randn(source.shape, generator=generator)
    return torch.poisson(source, generator=generator) + READ_STD * noise, mean


def torch_window(measured: Tensor, mean: Tensor, half_width: int) -> Tensor:
    """(rows, 1, pixels), (columns, pixels) -> (rows, columns): 2 half_width + 1 counts for each pair and pixel."""
    with torch.no_grad():
        # The mode of the summand to first order in log k, which far pairs need.
        k = (mean * READ_STD**2 + measured * mean) / (mean + READ_STD**2)
        for _ in range(4):
            k = k.clamp(min=0.05)
            k = k * torch.exp(((measured - k) / READ_STD**2 - torch.log(k / mean)) / (1 + k / READ_STD**2))
        start = (k.round() - half_width).clamp(min=0)
    count = start + torch.arange(2 * half_width + 1, dtype=mean.dtype).reshape(-1, *(1,) * start.ndim)
    terms = torch.xlogy(count, mean) - mean - torch.lgamma(count + 1) - 0.5 * ((measured - count) / READ_STD) ** 2
    return (torch.logsumexp(terms, dim=0) - math.log(READ_STD * math.sqrt(2 * math.pi))).sum(-1)


def truth(measured: Tensor, mean: Tensor) -> Tensor:
    return ops.poisson_gaussian_log_prob(measured.double()[:, None], mean.double(), read_std=READ_STD).sum(-1)


def shortest_window(measured: Tensor, mean: Tensor) -> int:
    """The smallest half-width whose truncation error in float64 is below the tolerance for each pair and pixel."""
    z, y = measured[:16, None, :32].double(), mean[:64, :32].double()
    exact = ops.poisson_gaussian_log_prob(z, y, read_std=READ_STD)
    for half_width in range(2, 200):
        value = torch_window(z[..., None], y[..., None], half_width)
        if float(((value - exact).abs() / exact.abs().clamp(min=1)).max()) <= TOLERANCE:
            return half_width
    raise RuntimeError("no window reaches the tolerance")


def torch_pairs(measured: Tensor, mean: Tensor, half_width: int) -> Tensor:
    # Some three arrays of terms live at once.
    chunk = max(1, BYTES // (3 * 4 * (2 * half_width + 1) * mean.numel()))
    columns = max(1, min(len(mean), BYTES // (3 * 4 * (2 * half_width + 1) * mean.shape[1])))
    return torch.cat(
        [
            torch.cat([torch_window(z, y, half_width) for y in mean.split(columns)], dim=1)
            for z in measured[:, None].split(chunk)
        ]
    )


def pairs(measured: Tensor, mean: Tensor) -> Tensor:
    return ops.poisson_gaussian_log_prob_pairs(measured, mean, read_std=READ_STD)


def timed(call: Callable[[Tensor, Tensor], Tensor], measured: Tensor, mean: Tensor, backward: bool) -> float:
    leaf = mean.clone().requires_grad_(backward)
    begin = time.perf_counter()
    value = call(measured, leaf)
    if backward:
        torch.autograd.grad(value.sum(), leaf)
    return time.perf_counter() - begin


def timed_peer(measured: Tensor, mean: Tensor, half_width: int, backward: bool) -> float:
    """Row by row: that is faster for the peer than its 1 GB at once, and a backward pass fits too."""
    begin = time.perf_counter()
    for z in measured.split(1):
        timed(lambda z, y: torch_pairs(z, y, half_width), z, mean, backward)
    return time.perf_counter() - begin


def one_call(shape: tuple[int, int, int], low: float, high: float, backward: bool) -> Callable[[], object]:
    """A call whose memory is to be measured."""
    measured, mean = inputs(*shape, low, high)
    timed(pairs, measured[:2], mean[:2], backward)
    return functools.partial(timed, pairs, measured, mean, backward)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--peer-rows", type=int, default=4, help="rows the peer is timed on; its time is scaled")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape = (arguments.rows, arguments.columns, arguments.pixels)
    few = min(arguments.peer_rows, arguments.rows)
    print(f"torch {torch.__version__}, {_compiled.instruction_set()}, {arguments.threads} threads, float32")
    for name, (low, high) in CASES.items():
        measured, mean = inputs(*shape, low, high)
        half_width = shortest_window(measured, mean)
        print(f"\n{name}, {shape[0]} x {shape[1]} pairs of {shape[2]} pixels; torch: {2 * half_width + 1} counts")
        exact, eps = truth(measured[:few], mean), torch.finfo(torch.float32).eps
        for label, value in (
            ("torch", torch_pairs(measured[:few], mean, half_width)),
            ("pairs", pairs(measured, mean)[:few]),
        ):
            error = (value.double() - exact).abs() / exact.abs().clamp(min=1)
            print(f"  {label} largest error {float(error.max()) / eps:9.2f} eps")
        scale = arguments.rows / few
        for backward in (False, True):
            times: dict[str, list[float]] = {"torch": [], "pairs": []}
            for _ in range(arguments.repeats):
                times["torch"].append(scale * timed_peer(measured[:few], mean, half_width, backward))
                times["pairs"].append(timed(pairs, measured, mean, backward))
            peer, ours = (statistics.median(values) for values in times.values())
            kind = "forward+backward" if backward else "forward"
            extra = extra_megabytes(one_call, (shape, low, high, backward), threads=arguments.threads)
            output = 4 * shape[0] * shape[1] / 2**20
            print(
                f"  {kind:<17} torch {peer:8.1f} s (from {few} rows)   pairs {1e3 * ours:8.1f} ms"
                f"   {peer / ours:8.0f} x torch   extra memory {extra:.0f} MB, scores {output:.0f} MB"
            )


if __name__ == "__main__":
    main()
