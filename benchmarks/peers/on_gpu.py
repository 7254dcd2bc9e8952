"""Kernels on a GPU side by side with torch eager on the same GPU, in one run.

Times are of CUDA events around one call, medians of interleaved runs; ratios, with a bootstrap 95 % interval, are what
to quote. Peak memory is torch's, above what the inputs take. Forward and backward together, but where it says forward.

    python benchmarks/peers/on_gpu.py [--repeats 21]
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
from collections.abc import Callable

import scipy.fft
import torch
from infonce import SCALE, eager, ours
from pair_ratios import pair_ratio
from parallel_projection import rotation
from torch import Tensor

import bitlens
from bitlens import ops
from bitlens.encoders.tomography import ParallelProjection

Loss = Callable[..., Tensor]


def timed_ms(loss: Loss, inputs: list[Tensor], backward: bool) -> float:
    """Milliseconds of one call on the GPU."""
    leaves = [tensor.detach().requires_grad_(backward) for tensor in inputs]
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    value = loss(*leaves)
    if backward:
        torch.autograd.grad(value.float().sum() if value.ndim else value, leaves, allow_unused=True)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def peak_megabytes(loss: Loss, inputs: list[Tensor], backward: bool) -> float:
    """Most memory of one call above what there was."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    timed_ms(loss, inputs, backward)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def compare(title: str, peer: Loss, own: Loss, inputs: list[Tensor], repeats: int, backward: bool = True) -> None:
    """Print times, their ratio and peak memory."""
    calls = {"torch": peer, "bitlens": own}
    for call in calls.values():
        for _ in range(3):
            timed_ms(call, inputs, backward)
    memory = {name: peak_megabytes(call, inputs, backward) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(timed_ms(call, inputs, backward))
    ratio = pair_ratio(times["torch"], times["bitlens"], 0.95)
    shown = ", ".join(f"{name} {statistics.median(t):.3f} ms {memory[name]:.0f} MB" for name, t in times.items())
    print(f"{title:<58} {ratio.median:6.2f} x [{ratio.low:.2f}, {ratio.high:.2f}]  {shown}", flush=True)


def fft_convolve(image: Tensor, psf: Tensor) -> Tensor:
    """Zero-padded convolution, same size, by torch.fft with fast lengths."""
    rows, columns = (image.shape[axis] + psf.shape[axis] - 1 for axis in (-2, -1))
    size = [scipy.fft.next_fast_len(length, real=True) for length in (rows, columns)]
    product = torch.fft.rfft2(image, s=size) * torch.fft.rfft2(psf, s=size)
    top, left = psf.shape[-2] // 2, psf.shape[-1] // 2
    full = torch.fft.irfft2(product, s=size)
    return full[..., top : top + image.shape[-2], left : left + image.shape[-1]]


def eager_in_half(query: Tensor, key: Tensor) -> Tensor:
    """`eager` with the matrix product in bfloat16."""
    return eager(query.bfloat16(), key.bfloat16()).float()


def ours_in_half(query: Tensor, key: Tensor) -> Tensor:
    """`ours` with the matrix product in bfloat16."""
    scores = ops.infonce_scores(query, key, scale=SCALE, precision="bfloat16")
    return 0.5 * (scores.row_logsumexp + scores.column_logsumexp - 2 * scores.positive).mean()


def gaussian_log_prob(measured: Tensor, mean: Tensor) -> Tensor:
    """What one writes in torch: a Gaussian of the mean's variance."""
    variance = mean + 4.0
    return -0.5 * ((measured - mean) ** 2 / variance + torch.log(2 * math.pi * variance))


def main() -> None:
    """Print one line for each kernel and size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=21)
    repeats = parser.parse_args().repeats
    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bitlens {bitlens.__version__}")
    random = functools.partial(torch.randn, device=device, generator=torch.Generator(device).manual_seed(0))

    for n, d in ((1024, 64), (8192, 64), (4096, 512), (16384, 128)):
        inputs = [torch.nn.functional.normalize(random(n, d), dim=-1) for _ in range(2)]
        compare(f"InfoNCE, {n} x {d}", _on(device, eager), ours, inputs, repeats)
    inputs = [torch.nn.functional.normalize(random(32768, 256), dim=-1) for _ in range(2)]
    compare("InfoNCE, 32768 x 256, bfloat16", _on(device, eager_in_half), ours_in_half, inputs, 5)

    for batch, size, psf in ((256, 64, 64), (64, 128, 128), (16, 256, 256), (4, 512, 512), (64, 128, 11)):
        inputs = [random(batch, size, size), random(psf, psf)]
        torch.testing.assert_close(fft_convolve(*inputs), ops.psf_convolve(*inputs), rtol=1e-3, atol=1e-2)
        compare(f"convolution, {batch} x {size}^2, PSF {psf}^2, forward", fft_convolve, ops.psf_convolve, inputs,
                repeats, backward=False)  # fmt: skip
        compare(f"convolution, {batch} x {size}^2, PSF {psf}^2", fft_convolve, ops.psf_convolve, inputs, repeats)

    mean = 50 * torch.rand(64, 256, 256, device=device)
    measured = mean + torch.sqrt(mean + 4) * random(*mean.shape)
    own = functools.partial(ops.poisson_gaussian_log_prob, read_std=2.0)
    with_reference = _reference(own)
    compare("Poisson-Gaussian log-likelihood, 4.2 M, against torch's", with_reference, own, [measured, mean], 5)
    compare("the same, against a Gaussian's", gaussian_log_prob, own, [measured, mean], repeats)

    for size, views in ((256, 180), (512, 360)):
        angles = torch.arange(views, dtype=torch.float64) * math.pi / views
        encoder = ParallelProjection(angles, (size, size), bins=size).to(device)
        rotate = rotation(angles.to(device), size)
        image = [torch.rand(1, 1, size, size, device=device)]
        compare(f"projection and adjoint, {views} angles x {size}^2", rotate, encoder, image, repeats)


def _on(device: torch.device, loss: Loss) -> Loss:
    def call(*inputs: Tensor) -> Tensor:
        with device:
            return loss(*inputs)

    return call


def _reference(loss: Loss) -> Loss:
    def call(*inputs: Tensor) -> Tensor:
        with ops.use_backend("reference"):
            return loss(*inputs)

    return call


if __name__ == "__main__":
    main()
