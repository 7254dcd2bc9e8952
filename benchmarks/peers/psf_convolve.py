"""PSF convolution side by side with FFT libraries, in one run.

Peers: torch.fft padded to its fastest period, with autograd; the same with the gradients written out; scipy.fft; ducc0
and pyFFTW where they are installed (the last with measured plans). Ratios are medians over interleaved rounds of peer
over ours, and are what to quote; "best" is the fastest of all peers, in rounds of their own. The allocator keeps freed
memory, at which torch is at its best, unless --return-memory is given. SciPy and ducc0 have threads of their own, and
are at their best where torch's do not wait busily: OMP_WAIT_POLICY=passive.

    a  zeros outside, PSF of the size of the image        d  small PSFs on 128 x 128 images
    b  the same, circular                                 e  fourier_filter
    c  many shapes: never slower than torch               f  errors relative to torch's, and adjointness
    g  single images with a plan for the PSF, whose spectrum the peer keeps as well

    python benchmarks/peers/psf_convolve.py [--table a,b,c,d,e,f,g] [--repeats 21] [--threads 2] [--memory]
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable
from typing import NamedTuple

import psf_peers
import torch
from pair_ratios import OtherWork, PairRatio, interleaved, keep_freed_memory, pair_ratio, rounds_within
from peak_memory import extra_megabytes
from psf_peers import Library, Size
from psf_shapes import (
    ASSUMED_GFLOPS,
    CIRCULAR,
    FILTER,
    FILTER_PRIMES,
    MANY,
    SMALL_PSF,
    ZERO,
    Shape,
    bandwidth,
    bar,
    operations,
    traffic,
)
from torch import Tensor

from bitlens import ops
from bitlens.kernels import _compiled

MEBIBYTE = 2**20


class Operands(NamedTuple):
    """Leaves that need a gradient, and a gradient of the output: noise, since a constant would hide strided copies."""

    image: Tensor
    psf: Tensor
    grad: Tensor


def operands(shape: Shape, seed: int = 0) -> Operands:
    """The same operands for everyone."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand((shape.batch, shape.height, shape.width), generator=generator)
    psf = torch.rand((shape.h, shape.w), generator=generator)
    psf /= psf.sum()
    return Operands(image, psf, torch.randn(image.shape, generator=generator))


def differentiated(
    convolve: Callable[[Tensor, Tensor], Tensor], image: Tensor, psf: Tensor, grad: Tensor
) -> tuple[Tensor, ...]:
    """Output, and gradients in image and PSF by autograd."""
    leaves = [tensor.detach().requires_grad_() for tensor in (image, psf)]
    output = convolve(*leaves)
    return output.detach(), *torch.autograd.grad(output, leaves, grad)


def ours(image: Tensor, psf: Tensor, boundary: str) -> Tensor:
    return ops.psf_convolve(image, psf, mode="same", boundary=boundary)


def calls_of(
    shape: Shape, backward: bool, libraries: dict[str, Library]
) -> tuple[dict[str, Callable[[], object]], dict[str, Size]]:
    """What to time: a call without arguments each, and the size of its transforms; ours first."""
    image, psf, grad = operands(shape)
    own = functools.partial(ours, boundary=shape.boundary)
    calls: dict[str, Callable[[], object]] = {
        "ours": functools.partial(differentiated, own, image, psf, grad)
        if backward
        else functools.partial(own, image, psf)
    }
    sizes: dict[str, Size] = {}

    def add(name: str, call: Callable[[Size], object]) -> None:
        sizes[name] = psf_peers.fastest_size(call, image, psf, shape.boundary)
        calls[name] = functools.partial(call, sizes[name])

    for name, library in libraries.items():

        def forward(size: Size, library: Library = library, image: Tensor = image, psf: Tensor = psf) -> Tensor:
            return psf_peers.convolve(library, image, psf, shape.boundary, size)

        def by_autograd(size: Size) -> tuple[Tensor, ...]:
            return differentiated(
                lambda x, y: psf_peers.convolve(libraries["torch"], x, y, shape.boundary, size), image, psf, grad
            )

        def written_out(size: Size, library: Library = library) -> tuple[Tensor, ...]:
            return psf_peers.convolve_and_gradients(library, image, psf, grad, shape.boundary, size)

        if not backward:
            add(name, forward)
        elif name == "torch":
            add(name, by_autograd)
            add("torch, own gradients", written_out)
        else:
            add(name, written_out)
    return calls, sizes


# ---- tables ----


def ratios_to(times: dict[str, list[float]], names: list[str], confidence: float) -> tuple[str, PairRatio]:
    """The fastest of `names`, and its ratio to ours."""
    best = min(names, key=lambda name: statistics.median(times[name]))
    return best, pair_ratio(times[best], times["ours"], confidence)


def verdict(value: float, least: float) -> str:
    return f"(bar {least} x)" + ("" if value >= least else "  BELOW")


def print_squares(shapes: list[Shape], libraries: dict[str, Library], repeats: int) -> None:
    """Tables a and b."""
    for shape in shapes:
        for backward in (False, True):
            calls, sizes = calls_of(shape, backward, libraries)
            # Alone with ours first: other libraries have threads of their own, which torch's would meet.
            times = interleaved({name: calls[name] for name in ("ours", "torch")}, repeats)
            own, peer = (statistics.median(times[name]) for name in ("ours", "torch"))
            _, to_torch = ratios_to(times, ["torch"], 0.95)
            times = interleaved(calls, repeats)
            best, to_best = ratios_to(times, list(sizes), 0.95)
            by_traffic = traffic(shape, backward) / bandwidth(shape)
            by_operations = operations(shape, backward) / ASSUMED_GFLOPS / 1e9
            floor, reason = max((by_traffic, "bytes"), (by_operations, "operations"))
            print(
                f"{shape.batch:4d} x {shape.height:3d}^2 {'forward+backward' if backward else 'forward':<16}"
                f" ours {1e3 * own:7.2f} ms  torch {1e3 * peer:7.2f} ms"
                f" (period {sizes['torch'][0]})"
                f"  {to_torch.median:5.2f} x {verdict(to_torch.median, bar(shape, backward))}"
                f"  best {best} {to_best.median:5.2f} x"
                f"  {own / floor:4.1f} x the floor of {1e3 * floor:.2f} ms by {reason}"
            )
            others = (f"{name} {1e3 * statistics.median(times[name]):.2f} ({size[0]})" for name, size in sizes.items())
            print(f"{'':11}ms (period): {', '.join(others)}")


def print_many(repeats: int) -> None:
    """Table c: forward, and forward with backward, against the faster of torch's ways."""
    below = []
    for shape in MANY:
        row = str(shape)
        for backward in (False, True):
            calls, _ = calls_of(shape, backward, {"torch": psf_peers.torch_library()})
            calls.pop("torch, own gradients", None)
            add_direct(calls, shape, backward)
            # The interval needs many rounds, which small images afford.
            rounds = rounds_within(calls, 0.05 * repeats, max(7, repeats // 2), 20 * repeats)
            times = interleaved(calls, rounds)
            best, ratio = ratios_to(times, [name for name in calls if name != "ours"], 0.95)
            row += (
                f"  {'both' if backward else 'forward'} {1e3 * statistics.median(times['ours']):7.2f} ms"
                f" {best:>6} {ratio.median:6.2f} x (from {ratio.low:5.2f})"
            )
            if ratio.low < 0.97:
                below.append(f"{shape} {'forward+backward' if backward else 'forward'} {ratio.low:.2f}")
        print(row)
    print(f"{2 * len(MANY) - len(below)} of {2 * len(MANY)} never slower  (bar: all from 0.97 x)")
    print("".join(f"BELOW: {line}\n" for line in below), end="")


def add_direct(calls: dict[str, Callable[[], object]], shape: Shape, backward: bool) -> None:
    """torch's conv2d, where it serves: zeros outside and a PSF of few taps."""
    if shape.boundary != "zero" or shape.h % 2 == 0 or shape.w % 2 == 0 or shape.h * shape.w > 31 * 31:
        return
    image, psf, grad = operands(shape)
    if backward:
        calls["conv2d"] = functools.partial(differentiated, psf_peers.direct, image, psf, grad)
    else:
        calls["conv2d"] = functools.partial(psf_peers.direct, image, psf)


def print_small_psfs(libraries: dict[str, Library], repeats: int) -> None:
    """Table d: against the faster of torch's conv2d and torch.fft."""
    for shape in SMALL_PSF:
        for backward in (False, True):
            calls, sizes = calls_of(shape, backward, libraries)
            add_direct(calls, shape, backward)
            rounds = max(5, repeats // 2)
            # Alone with torch's transform first, as in tables a and b; its conv2d empties the caches for all.
            alone = interleaved({name: calls[name] for name in ("ours", "torch")}, repeats)
            times = interleaved(calls, rounds)
            torch_best = min(("torch", "conv2d"), key=lambda name: statistics.median(times[name]))
            _, to_torch = ratios_to(alone if torch_best == "torch" else times, [torch_best], 0.95)
            best, to_best = ratios_to(times, [*sizes, "conv2d"], 0.95)
            others = (f"{name} {1e3 * statistics.median(values):.2f}" for name, values in times.items())
            print(
                f"{shape} {'forward+backward' if backward else 'forward':<16} {torch_best} {to_torch.median:5.2f} x"
                f" {verdict(to_torch.median, 2.0)}  best {best} {to_best.median:5.2f} x  ms: {', '.join(others)}"
            )


def print_filter(libraries: dict[str, Library], repeats: int) -> None:
    """Table e: complex fields."""
    generator = torch.Generator().manual_seed(0)
    field = torch.randn(FILTER, dtype=torch.complex64, generator=generator)
    transfer = torch.randn(FILTER[1:], dtype=torch.complex64, generator=generator)
    grad = torch.randn(FILTER, dtype=torch.complex64, generator=generator)

    def torch_filter(field: Tensor, transfer: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(field) * transfer)

    def library_filter(library: Library) -> Tensor:
        return library.ifft2(library.fft2(field).mul_(transfer))

    for backward in (False, True):
        calls: dict[str, Callable[[], object]] = {}
        for name, function in (("ours", ops.fourier_filter), ("torch", torch_filter)):
            calls[name] = (
                functools.partial(differentiated, function, field, transfer, grad)
                if backward
                else functools.partial(function, field, transfer)
            )
        if not backward:
            others = {name: library for name, library in libraries.items() if name != "torch"}
            calls |= {name: functools.partial(library_filter, library) for name, library in others.items()}
        times = interleaved(calls, repeats)
        _, to_torch = ratios_to(times, ["torch"], 0.95)
        best, to_best = ratios_to(times, [name for name in calls if name != "ours"], 0.95)
        texts = (f"{name} {1e3 * statistics.median(values):.2f}" for name, values in times.items())
        print(
            f"{FILTER} complex64 {'forward+backward' if backward else 'forward':<16} {to_torch.median:5.2f} x torch"
            f" {verdict(to_torch.median, 1.8)}  best {best} {to_best.median:5.2f} x  ms: {', '.join(texts)}"
        )


def print_plans(repeats: int) -> None:
    """Table g: image and, backward, its gradient; the PSF is constant for everyone."""
    for shape in (shape._replace(batch=1) for shape in (*ZERO, *CIRCULAR)):
        image, psf, grad = operands(shape)
        size = tuple(
            psf_peers.periods(n, m, shape.boundary)[0] for n, m in ((shape.height, shape.h), (shape.width, shape.w))
        )
        spectrum = torch.fft.rfft2(psf, s=size)
        # The shift of the circular origin costs nothing: it is in the spectrum.
        corner = (shape.h // 2, shape.w // 2) if shape.boundary == "zero" else (0, 0)

        def by_torch(image: Tensor, size: Size = size, spectrum: Tensor = spectrum, at: Size = corner) -> Tensor:
            full = torch.fft.irfft2(torch.fft.rfft2(image, s=size) * spectrum, s=size)
            return full[..., at[0] : at[0] + image.shape[-2], at[1] : at[1] + image.shape[-1]]

        plan = ops.PSFConvolvePlan(psf, (shape.height, shape.width), boundary=shape.boundary)
        convolvers = {
            "plan": plan,
            "call": functools.partial(ours, psf=psf, boundary=shape.boundary),
            "torch": by_torch,
        }
        for backward in (False, True):
            calls: dict[str, Callable[[], object]] = {
                name: functools.partial(with_image_gradient, convolve, image, grad)
                if backward
                else functools.partial(convolve, image)
                for name, convolve in convolvers.items()
            }
            times = interleaved(calls, rounds_within(calls, 0.05 * repeats, repeats, 20 * repeats))
            text = ", ".join(f"{name} {1e3 * statistics.median(values):.3f}" for name, values in times.items())
            to_torch, to_call = (pair_ratio(times[name], times["plan"], 0.95).median for name in ("torch", "call"))
            print(
                f"{shape} {'forward+backward' if backward else 'forward':<16} {to_torch:5.2f} x torch {to_call:5.2f} x"
                f" the call without a plan  ms: {text}"
            )


def with_image_gradient(convolve: Callable[[Tensor], Tensor], image: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    leaf = image.detach().requires_grad_()
    output = convolve(leaf)
    return output.detach(), *torch.autograd.grad(output, leaf, grad)


def print_filter_primes(repeats: int) -> None:
    """Sizes with a large prime factor: the kernel itself, and the call, which may take torch's transform instead."""
    generator = torch.Generator().manual_seed(0)
    for shape in FILTER_PRIMES:
        field, transfer = (torch.randn(n, dtype=torch.complex64, generator=generator) for n in (shape, shape[1:]))
        call = functools.partial(ops.fourier_filter, field, transfer)
        calls = {"call": call, "kernel": on_backend("cpu", call), "torch": on_backend("reference", call)}
        times = interleaved(calls, repeats)
        to_call, to_kernel = (pair_ratio(times["torch"], times[name], 0.95).median for name in ("call", "kernel"))
        print(f"{shape} complex64 forward  call {to_call:5.2f} x torch, kernel {to_kernel:5.2f} x torch")


def on_backend(backend: str, call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with ops.use_backend(backend):
            return call()

    return run


def errors(shape: Shape, draws: int) -> list[tuple[float, float]]:
    """Largest errors of output and both gradients over a few draws, ours and torch's, against float64."""
    size = tuple(
        psf_peers.periods(length, psf_length, shape.boundary)[0]
        for length, psf_length in ((shape.height, shape.h), (shape.width, shape.w))
    )
    own = functools.partial(ours, boundary=shape.boundary)
    peer = functools.partial(psf_peers.convolve, psf_peers.torch_library(), boundary=shape.boundary, size=size)
    largest = [[0.0, 0.0] for _ in range(3)]
    for seed in range(draws):
        image, psf, grad = operands(shape, seed)
        with ops.use_backend("reference"):
            truth = differentiated(own, image.double(), psf.double(), grad.double())
        for column, function in enumerate((own, peer)):
            for row, value in enumerate(differentiated(function, image, psf, grad)):
                error = float((value.double() - truth[row]).abs().max())
                largest[row][column] = max(largest[row][column], error)
    return [(row[0], row[1]) for row in largest]


def adjointness(shape: Shape, dtype: torch.dtype) -> float:
    """The larger of |<A x, y> - <x, A' y>| / <A x, y> for the image and for the PSF; sums in float64."""
    image, psf, grad = (tensor.to(dtype) for tensor in operands(shape))
    # Positive like the others: the products then do not cancel, and hold nothing back.
    grad = grad.abs()
    output, *gradients = differentiated(functools.partial(ours, boundary=shape.boundary), image, psf, grad)

    def inner(a: Tensor, b: Tensor) -> float:
        return float((a.double() * b.double()).sum())

    there = inner(output, grad)
    return max(abs(there - inner(x, back)) for x, back in zip((image, psf), gradients, strict=True)) / there


def print_accuracy() -> None:
    """Table f."""
    missed = 0
    for shape in dict.fromkeys(ZERO + CIRCULAR + SMALL_PSF + MANY):
        # A largest error of few values is a draw itself.
        draws = 1 if shape.batch * shape.height * shape.width > 10**6 else 8
        ratios = [own / peer for own, peer in errors(shape, draws)]
        adjoint = [adjointness(shape, dtype) for dtype in (torch.float32, torch.float64)]
        holds = max(ratios) <= 2 and adjoint[0] <= 1e-6 and adjoint[1] <= 1e-13
        missed += not holds
        print(
            f"{shape}  error / torch's: output {ratios[0]:4.2f}, image gradient {ratios[1]:4.2f}, PSF gradient"
            f" {ratios[2]:4.2f}  adjoint to {adjoint[0]:.0e}, in float64 {adjoint[1]:.0e}{'' if holds else '  MISSED'}"
        )
    print_filter_accuracy()
    print(f"{missed} missed  (bars: 2 x torch's error, 1e-6, 1e-13)")


def print_filter_accuracy() -> None:
    generator = torch.Generator().manual_seed(0)
    field, transfer = (torch.randn(size, dtype=torch.complex128, generator=generator) for size in (FILTER, FILTER[1:]))
    narrow = field.to(torch.complex64), transfer.to(torch.complex64)
    exact = torch.fft.ifft2(torch.fft.fft2(narrow[0].to(torch.complex128)) * narrow[1].to(torch.complex128))
    own = (ops.fourier_filter(*narrow) - exact).abs().max()
    peer = (torch.fft.ifft2(torch.fft.fft2(narrow[0]) * narrow[1]) - exact).abs().max()
    print(f"fourier_filter {FILTER}  error / torch's: {float(own / peer):.2f}")


# ---- memory ----


def one_call(shape: Shape, backward: bool, name: str) -> Callable[[], object]:
    """A call whose memory is to be measured; a few of its images first, so that threads and tables are there."""
    image, psf, grad = operands(shape)
    size = tuple(psf_peers.periods(image.shape[axis], psf.shape[axis], shape.boundary)[0] for axis in psf_peers.AXES)
    library = psf_peers.torch_library()

    def convolve(image: Tensor, psf: Tensor) -> Tensor:
        if name == "ours":
            return ours(image, psf, shape.boundary)
        return psf_peers.convolve(library, image, psf, shape.boundary, size)

    if backward:
        differentiated(convolve, image[:2], psf, grad[:2])
        return functools.partial(differentiated, convolve, image, psf, grad)
    convolve(image[:2], psf)
    return functools.partial(convolve, image, psf)


def print_memory(threads: int) -> None:
    """Peak memory of a call beyond its inputs, outputs included, over inputs and output."""
    for shape in ZERO + CIRCULAR:
        # Tens of megabytes, beside which the allocator's own pages do not count.
        larger = shape._replace(batch=32 * 2**20 // (4 * shape.height * shape.width))
        image = 4 * larger.batch * larger.height * larger.width / MEBIBYTE
        for backward in (False, True):
            text = f"{larger} {'forward+backward' if backward else 'forward':<16}"
            for name in ("ours", "torch"):
                extra = extra_megabytes(one_call, (larger, backward, name), threads=threads)
                ratio = extra / (2 * image)
                text += f"  {name} {extra:6.0f} MB {ratio:5.2f} x input and output"
                text += " (bar 1.5 x)" if name == "ours" else ""
            print(text)


def main() -> None:
    """Print the chosen tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--table", default="a,b,c,d,e,f,g", help="letters, separated by commas; see the top of the file"
    )
    parser.add_argument("--memory", action="store_true", help="measure memory too: a minute")
    parser.add_argument("--return-memory", action="store_true", help="let the allocator return memory to the system")
    arguments = parser.parse_args()
    chosen = [letter for letter in arguments.table.split(",") if letter]
    unknown = sorted(set(chosen) - set("abcdefg"))
    if unknown:
        parser.error(f"--table: need letters of a,b,c,d,e,f,g, got {', '.join(unknown)}")
    if not arguments.return_memory:
        keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    libraries = psf_peers.libraries(arguments.threads)
    print(f"torch {torch.__version__}, {_compiled.instruction_set()}, {arguments.threads} threads, float32, medians")
    repeats, other = arguments.repeats, OtherWork()
    tables: dict[str, tuple[str, Callable[[], object]]] = {
        "a": ("zeros outside, PSF of the size of the image", lambda: print_squares(ZERO, libraries, repeats)),
        "b": ("circular, PSF of the size of the image", lambda: print_squares(CIRCULAR, libraries, repeats)),
        "c": ("many shapes against the faster of torch's ways", lambda: print_many(repeats)),
        "d": ("small PSFs", lambda: print_small_psfs(libraries, repeats)),
        "e": ("fourier_filter", lambda: (print_filter(libraries, repeats), print_filter_primes(repeats))),
        "f": ("errors and adjointness", print_accuracy),
        "g": ("plans", lambda: print_plans(repeats)),
    }
    for letter in chosen:
        title, show = tables[letter]
        print(f"\n{letter}  {title}")
        show()
    if arguments.memory:
        print("\nmemory")
        print_memory(arguments.threads)
    print(f"\nother processes used {other.cores():.2f} cores meanwhile  (above 0.1 the times say little)")


if __name__ == "__main__":
    main()
