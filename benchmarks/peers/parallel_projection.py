"""Parallel projections side by side with the rotation of the image by torch.nn.functional.grid_sample, in one run.

Rotation: bilinear, all angles in one call on grids made beforehand, summed along the rows; its adjoint by autograd.
Medians of interleaved runs; ratios, with a bootstrap 95 % interval, are what to quote. Errors are those of the
projections of an ellipse against its chords, in the relative norm, and of the adjoint: |<A x, z> - <x, A* z>| over
|A x| |z|.

    python benchmarks/peers/parallel_projection.py [--size 256] [--angles 180] [--threads 2] [--repeats 21]
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
from collections.abc import Callable

import torch
from pair_ratios import OtherWork, interleaved, keep_freed_memory, pair_ratio
from torch import Tensor

from bitlens.encoders.tomography import ParallelProjection

BAR = 5.0
Project = Callable[[Tensor], Tensor]


def rotation(angles: Tensor, size: int) -> Project:
    """Projections (batch, 1, view, bin) of images (batch, 1, size, size) by rotating them."""
    cosine, sine = torch.cos(angles).float(), torch.sin(angles).float()
    zero = torch.zeros_like(cosine)
    # Output column s and row t sample the image at x = s cos - t sin, y = s sin + t cos.
    turns = torch.stack((torch.stack((cosine, -sine, zero), -1), torch.stack((sine, cosine, zero), -1)), 1)
    grids = torch.nn.functional.affine_grid(turns, [len(angles), 1, size, size], align_corners=False)

    def project(image: Tensor) -> Tensor:
        views = [
            torch.nn.functional.grid_sample(one.expand(len(angles), 1, size, size), grids, align_corners=False).sum(2)
            for one in image.split(1)
        ]
        return torch.stack(views).movedim(2, 1)

    return project


def with_adjoint(project: Project, image: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
    """The projection, and autograd's adjoint of it."""
    leaf = image.detach().requires_grad_()
    found = project(leaf)
    (back,) = torch.autograd.grad(found, leaf, views)
    return found.detach(), back


def ellipse(size: int, angles: Tensor) -> tuple[Tensor, Tensor]:
    """An ellipse as the share of every pixel it covers (1, 1, size, size), and its mean chords (1, 1, view, bin)."""
    finer, a, b, x0, y0 = 8, 0.34 * size, 0.19 * size, 0.06 * size, -0.09 * size
    axis = (torch.arange(size * finer, dtype=torch.float64) + 0.5) / finer - size / 2
    covered = ((axis[None, :] - x0) / a) ** 2 + ((axis[:, None] - y0) / b) ** 2 < 1
    image = torch.nn.functional.avg_pool2d(covered.double()[None, None], finer)
    half = torch.sqrt((a * torch.cos(angles)) ** 2 + (b * torch.sin(angles)) ** 2)[:, None]
    edges = torch.arange(size + 1, dtype=torch.float64) - size / 2
    s = ((edges - (x0 * torch.cos(angles) + y0 * torch.sin(angles))[:, None]) / half).clamp(-1, 1)
    return image, (a * b * (s * torch.sqrt(1 - s**2) + torch.asin(s))).diff(dim=-1)[None, None]


def print_errors(name: str, project: Project, size: int, angles: Tensor) -> None:
    image, truth = ellipse(size, angles)
    error = float((project(image.float()).double() - truth).norm() / truth.norm())
    generator = torch.Generator().manual_seed(0)
    scene = torch.randn(1, 1, size, size, generator=generator)
    views = torch.randn(truth.shape, generator=generator)
    found, back = with_adjoint(project, scene, views)
    gap = abs(float((found.double() * views).sum() - (scene.double() * back).sum()))
    print(f"{name:<10} ellipse {100 * error:.3f} %, adjoint {gap / float(found.norm() * views.norm()):.1e}")


def main() -> None:
    """Print times, ratios and errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--angles", type=int, default=180)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=21)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    size = arguments.size
    angles = torch.arange(arguments.angles, dtype=torch.float64) * math.pi / arguments.angles
    encoder = ParallelProjection(angles, (size, size), bins=size)
    projections: dict[str, Project] = {"bitlens": encoder, "rotation": rotation(angles, size)}
    for name, project in projections.items():
        print_errors(name, project, size, angles)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, size, size, generator=generator)
    views = torch.rand(1, 1, arguments.angles, size, generator=generator)
    other = OtherWork()
    for title, call in (("forward", None), ("forward and adjoint", with_adjoint)):
        calls: dict[str, Callable[[], object]] = {}
        for name, project in projections.items():
            calls[name] = functools.partial(project, image) if call is None else functools.partial(
                call, project, image, views
            )  # fmt: skip
        times = interleaved(calls, arguments.repeats)
        ratio = pair_ratio(times["rotation"], times["bitlens"], 0.95)
        text = ", ".join(f"{name} {1e3 * statistics.median(values):.1f}" for name, values in times.items())
        bar = "" if call is None else f" (bar {BAR:g} x)"
        print(
            f"{arguments.angles} angles x {size}^2, {arguments.threads} threads, {title}: {ratio.median:.1f} x "
            f"[{ratio.low:.1f}, {ratio.high:.1f}]{bar}  ms: {text}"
        )
    print(f"other processes used {other.cores():.2f} cores meanwhile  (above 0.1 the times say little)")


if __name__ == "__main__":
    main()
