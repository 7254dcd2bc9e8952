"""Contrastive scores side by side with torch eager, in one run.

The peer is the symmetric loss as it is usually written: one matrix product and two cross-entropies. Medians of
interleaved runs; ratios are what to quote. The rate counts the four matrix products that a forward and a backward pass
cannot do without, next to that of torch's own product.

    python benchmarks/peers/infonce.py [--repeats 5] [--threads 2] [--memory] [--largest]
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

SCALE = 1 / 0.07
# (n, d), whether forward and backward, the ratio to reach
CASES = (
    (8192, 64, True, 8.0),
    (4096, 512, True, 1.7),
    (1024, 64, True, 3.0),
    (8192, 64, False, 8.0),
    (4096, 256, True, None),
)


def eager(query: Tensor, key: Tensor) -> Tensor:
    """Symmetric InfoNCE by two cross-entropies of the score matrix."""
    scores = SCALE * query @ key.T
    labels = torch.arange(len(query))
    cross_entropy = torch.nn.functional.cross_entropy
    return 0.5 * (cross_entropy(scores, labels) + cross_entropy(scores.T, labels))


def ours(query: Tensor, key: Tensor) -> Tensor:
    """The same loss from `infonce_scores`."""
    scores = ops.infonce_scores(query, key, scale=SCALE)
    return 0.5 * (scores.row_logsumexp + scores.column_logsumexp - 2 * scores.positive).mean()


def timed(loss: Callable[[Tensor, Tensor], Tensor], query: Tensor, key: Tensor, backward: bool) -> float:
    """Seconds of one pass."""
    leaves = [tensor.clone().requires_grad_(backward) for tensor in (query, key)]
    begin = time.perf_counter()
    value = loss(*leaves)
    if backward:
        torch.autograd.grad(value, leaves)
    return time.perf_counter() - begin


def product_rate(n: int, d: int, repeats: int) -> float:
    """GFLOP/s of torch's own n x d by d x n product."""
    query, key, out = torch.randn(n, d), torch.randn(n, d), torch.empty(n, n)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        torch.mm(query, key.T, out=out)
        times.append(time.perf_counter() - begin)
    return 2 * n * n * d / statistics.median(times) / 1e9


def one_call(n: int, d: int) -> Callable[[], object]:
    """A forward and backward pass whose memory is to be measured."""
    query, key = (torch.nn.functional.normalize(torch.randn(n, d), dim=1) for _ in range(2))
    timed(ours, query[:200], key[:200], True)
    return functools.partial(timed, ours, query, key, True)


def print_memory(threads: int) -> None:
    """Peak memory of forward and backward beside the inputs, and its growth with n."""
    sizes = (2048, 8192, 32768, 65536)
    extra = [extra_megabytes(one_call, (n, 64), threads=threads) for n in sizes]
    for n, megabytes in zip(sizes, extra, strict=True):
        print(f"n {n:5d} d   64 forward+backward extra memory {megabytes:6.1f} MB")
    slope = (math.log(extra[-1]) - math.log(extra[0])) / (math.log(sizes[-1]) - math.log(sizes[0]))
    print(f"slope of log memory against log n {slope:.2f}  (bar 1.05; 150 MB at 65536)")


def print_largest(n: int = 262144, d: int = 64) -> None:
    """One forward and backward pass whose score matrix would take 256 GiB."""
    query, key = (torch.nn.functional.normalize(torch.randn(n, d), dim=1) for _ in range(2))
    seconds = timed(ours, query, key, True)
    print(f"n {n} d {d} forward+backward {seconds:.0f} s, {8 * n * n * d / seconds / 1e9:.0f} GFLOP/s")


def main() -> None:
    """Print one row a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="measure memory up to n = 65536 too: a minute")
    parser.add_argument("--largest", action="store_true", help="one pass at n = 262144: minutes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {_compiled.instruction_set()}, {arguments.threads} threads, float32, medians")
    for n, d, backward, bar in CASES:
        query, key = (torch.nn.functional.normalize(torch.randn(n, d), dim=1) for _ in range(2))
        times: dict[str, list[float]] = {"eager": [], "ours": []}
        repeats = arguments.repeats if n > 2000 else 10 * arguments.repeats
        for _ in range(repeats):
            for name, loss in (("eager", eager), ("ours", ours)):
                times[name].append(timed(loss, query, key, backward))
        peer, own = (statistics.median(times[name]) for name in ("eager", "ours"))
        kind = "forward+backward" if backward else "forward"
        row = f"n {n:5d} d {d:4d} {kind:<16} eager {1e3 * peer:8.1f} ms  ours {1e3 * own:8.1f} ms  {peer / own:5.2f} x"
        row += "" if bar is None else f"  (bar {bar} x)"
        flops = (4 if backward else 1) * 2 * n * n * d
        rate = product_rate(n, d, arguments.repeats)
        print(f"{row}  {flops / own / 1e9:6.1f} GFLOP/s, {100 * flops / own / 1e9 / rate:4.0f} % of torch's product")
    if arguments.memory:
        print_memory(arguments.threads)
    if arguments.largest:
        print_largest()


if __name__ == "__main__":
    main()
