"""Scores of a joint critic side by side with torch eager, which keeps an n x n x hidden tensor, in one run.

Loss: the symmetric contrastive one, forward and backward into both halves of the first layer and all weights. Medians
of interleaved runs; ratios are what to quote. Memory is what a fresh process needs beyond its inputs, and the slope of
its logarithm against that of n. Errors are of the loss's gradients against float64 eager at a size where that is quick.
Eager needs 12 GB for 4096 rows and 64 hidden units, 17 GB with a second layer.

    python benchmarks/peers/joint_critic.py [--rows 4096] [--hidden 64] [--threads 2] [--repeats 3]
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bitlens import ops
from bitlens.kernels import _compiled

Loss = Callable[..., Tensor]


def inputs(rows: int, hidden: int, layers: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(dtype).requires_grad_()

    root = hidden**-0.5
    first = [leaf(rows, hidden), leaf(rows, hidden), leaf(hidden, scale=root)]
    return first if layers == 1 else [*first, leaf(hidden, hidden, scale=root), leaf(hidden)]


def eager(
    query: Tensor, key: Tensor, output: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    units = torch.relu(query[:, None] + key)
    if weight is not None:
        units = torch.relu(torch.nn.functional.linear(units, weight, bias))
    scores = units @ output
    return (torch.logsumexp(scores, 1) + torch.logsumexp(scores, 0) - 2 * scores.diagonal()).mean()


def fused(
    query: Tensor, key: Tensor, output: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    scores = ops.joint_critic_scores(query, key, output, hidden_weight=weight, hidden_bias=bias)
    return (scores.row_logsumexp + scores.column_logsumexp - 2 * scores.positive).mean()


def timed(loss: Loss, leaves: list[Tensor]) -> tuple[float, float]:
    """Seconds of the forward pass and of both."""
    begin = time.perf_counter()
    value = loss(*leaves)
    middle = time.perf_counter()
    torch.autograd.grad(value, leaves)
    return middle - begin, time.perf_counter() - begin


def resident_megabytes(field: str) -> float:
    """VmRSS, the memory held now, or VmHWM, the most held since the last reset (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def extra_megabytes(name: str, rows: int, hidden: int, layers: int, threads: int) -> float:
    """Peak memory of a step beyond what this (fresh) process held before it."""
    torch.set_num_threads(threads)
    loss = {"eager": eager, "fused": fused}[name]
    leaves = inputs(rows, hidden, layers)
    timed(loss, inputs(128, hidden, layers))  # libraries and threads
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_megabytes("VmRSS")
    timed(loss, leaves)
    return resident_megabytes("VmHWM") - before


def in_a_fresh_process(*arguments: object) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(extra_megabytes, arguments)


def largest_error(loss: Loss, rows: int, hidden: int, layers: int) -> float:
    """Largest |error| / max |gradient| over all gradients, against float64 eager."""
    ours = inputs(rows, hidden, layers)
    exact = [leaf.detach().double().requires_grad_() for leaf in ours]
    pairs = zip(torch.autograd.grad(loss(*ours), ours), torch.autograd.grad(eager(*exact), exact), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def slope(sizes: list[int], values: list[float]) -> float:
    """Of the straight line through log(value) against log(size)."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--memory-rows", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows, hidden = arguments.rows, arguments.hidden
    print(f"torch {torch.__version__}, {_compiled.instruction_set()}, {arguments.threads} threads, float32")
    for layers in arguments.layers:
        print(f"\n{rows} x {rows} pairs, hidden {'-'.join([str(hidden)] * layers)}")
        for name, loss in (("eager", eager), ("fused", fused)):
            print(f"  {name} largest error of a gradient, 512 rows: {largest_error(loss, 512, hidden, layers):.1e}")
        times: dict[str, list[tuple[float, float]]] = {"eager": [], "fused": []}
        leaves = inputs(rows, hidden, layers)
        for _ in range(arguments.repeats):
            times["eager"].append(timed(eager, leaves))
            times["fused"].append(timed(fused, leaves))
        for kind, which in (("forward", 0), ("forward+backward", 1)):
            peer, ours = (statistics.median(run[which] for run in runs) for runs in times.values())
            print(f"  {kind:<17} eager {1e3 * peer:9.1f} ms   fused {1e3 * ours:8.1f} ms   {peer / ours:6.1f} x eager")
        few = rows // 4
        peer = in_a_fresh_process("eager", few, hidden, layers, arguments.threads)
        print(f"  eager, {few} rows: {peer:.0f} MB extra")
        sizes = arguments.memory_rows if layers == 1 else arguments.memory_rows[:3]
        extra = [in_a_fresh_process("fused", size, hidden, layers, arguments.threads) for size in sizes]
        listing = ", ".join(f"{size}: {value:.1f}" for size, value in zip(sizes, extra, strict=True))
        print(f"  fused, rows: MB extra   {listing}   slope {slope(sizes, extra):.2f}")


if __name__ == "__main__":
    main()
