"""`DispersedCodedAperture` beside a shear by convolution, which other libraries use.

The convolution is one of each band with a point moved by the band's columns, as groups of one `conv2d`, with kernels of
one row that hold only the shifts; --full adds kernels as large as the image, which take tens of seconds. Milliseconds
of one scene in float32: the median of interleaved calls, forward, adjoint, and forward with gradients in both.

    python benchmarks/peers/cassi.py [--bands 28] [--side 128] [--threads 1] [--rounds 20] [--full]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from pair_ratios import interleaved
from torch import Tensor
from torch.nn.functional import conv2d, pad

from bitlens.encoders.dispersion import DispersedCodedAperture


def shear_kernels(n_bands: int, rows: int, columns: int) -> Tensor:
    """(band, 1, rows, columns), odd, each with a one `band` columns before the middle: conv2d correlates."""
    kernels = torch.zeros(n_bands, 1, rows, columns)
    for band in range(n_bands):
        kernels[band, 0, rows // 2, columns // 2 - band] = 1.0
    return kernels


def by_convolution(scene: Tensor, mask: Tensor, kernels: Tensor) -> Tensor:
    """Masked, sheared and summed: (batch, 1, row, column + band - 1)."""
    n_bands = scene.shape[1]
    wide = pad(scene * mask, (0, n_bands - 1))
    sheared = conv2d(wide, kernels, padding=(kernels.shape[-2] // 2, kernels.shape[-1] // 2), groups=n_bands)
    return sheared.sum(dim=1, keepdim=True)


def main() -> None:
    """Print one line for each way and direction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bands", type=int, default=28)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    n_bands, side = arguments.bands, arguments.side
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(side, side, generator=generator) > 0.5).float()
    scene = torch.rand(1, n_bands, side, side, generator=generator)
    aperture = DispersedCodedAperture(mask, n_bands=n_bands, learn=("mask",))
    fractional = DispersedCodedAperture(mask, n_bands=n_bands, step=0.7)
    mean = aperture(scene).detach()
    learned_scene = scene.clone().requires_grad_()

    def gradients() -> object:
        return torch.autograd.grad(aperture(learned_scene).sum(), (learned_scene, aperture.mask))

    def ungraded(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return torch.no_grad()(call)

    calls: dict[str, Callable[[], object]] = {
        "forward": ungraded(lambda: aperture(scene)),
        "adjoint": ungraded(lambda: aperture.A_adjoint(mean)),
        "forward, gradients": gradients,
        "forward, 0.7 columns a band": ungraded(lambda: fractional(scene)),
    }
    narrow = shear_kernels(n_bands, 1, 2 * n_bands - 1)
    torch.testing.assert_close(by_convolution(scene, mask, narrow), mean)
    calls["convolution, one row"] = ungraded(lambda: by_convolution(scene, mask, narrow))
    times = interleaved(calls, arguments.rounds)
    if arguments.full:
        full = shear_kernels(n_bands, side // 2 * 2 + 1, (side + n_bands) // 2 * 2 + 1)
        # Once: beside so long a call, what a first one spends is little.
        began = time.perf_counter()
        by_full = by_convolution(scene, mask, full)
        times["convolution, as large as the image"] = [time.perf_counter() - began]
        torch.testing.assert_close(by_full, mean)
    print(f"{n_bands} x {side} x {side}, {arguments.threads} thread(s)")
    forward = statistics.median(times["forward"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:<36} {1e3 * median:10.3f} ms   {median / forward:8.1f} of forward")


if __name__ == "__main__":
    main()
