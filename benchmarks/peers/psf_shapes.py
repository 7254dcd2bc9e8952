"""The shapes that the tables of `psf_convolve` go through, and what no implementation of them can beat."""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

import torch
from pair_ratios import seconds_of

# Of arithmetic in transforms, two threads with wide vectors.
ASSUMED_GFLOPS = 60.0


class Shape(NamedTuple):
    """A batch of images, the sides of the one PSF, and the boundary."""

    batch: int
    height: int
    width: int
    h: int
    w: int
    boundary: str

    def __str__(self) -> str:
        return (
            f"{self.batch:4d} x {self.height:4d} x {self.width:4d}  psf {self.h:4d} x {self.w:4d}  {self.boundary:<8}"
        )


SQUARES = ((512, 32), (256, 64), (64, 128), (16, 256), (4, 512))
ZERO = [Shape(batch, n, n, n, n, "zero") for batch, n in SQUARES]
CIRCULAR = [shape._replace(boundary="circular") for shape in ZERO]
SMALL_PSF = [Shape(64, 128, 128, side, side, "zero") for side in (11, 31)]
FILTER = (16, 256, 256)
# Fields with a large prime factor: from 11 to 31, where fourier_filter takes torch's transform, and above.
FILTER_PRIMES = (
    (51, 88, 88),
    (36, 104, 104),
    (28, 119, 119),
    (26, 124, 124),
    (42, 97, 97),
    (16, 127, 129),
    (6, 254, 254),
)


def bar(shape: Shape, backward: bool) -> float:
    """The ratio to torch.fft that tables a and b ask for."""
    small = shape.height <= 128
    if shape.boundary == "circular":
        return 2.0 if small else 1.5
    if backward:
        return 2.0 if small else 1.7
    return 2.5 if small else 2.0


# batch, image, PSF: primes, sizes of detectors, odd and even PSFs, single images; each with both boundaries.
MANY = [
    Shape(*sizes, boundary)
    for sizes in (
        (64, 97, 97, 97, 97),
        (64, 100, 100, 100, 100),
        (16, 250, 250, 250, 250),
        (8, 317, 317, 317, 317),
        (4, 480, 640, 480, 640),
        (1, 2048, 2048, 2048, 2048),
        (1, 97, 97, 97, 97),
        (1, 100, 100, 15, 15),
        (1, 250, 250, 250, 250),
        (1, 317, 317, 31, 31),
        (1, 480, 640, 31, 31),
        (1, 64, 64, 64, 64),
        (1, 256, 256, 256, 256),
        (1, 512, 512, 512, 512),
        (1, 1024, 1024, 63, 63),
        (2000, 16, 16, 16, 16),
        (300, 28, 28, 9, 9),
        (32, 127, 129, 21, 20),
        (8, 200, 300, 40, 60),
        (3, 720, 1280, 25, 25),
    )
    for boundary in ("zero", "circular")
]


def operations(shape: Shape, backward: bool) -> float:
    """Floating-point operations that no transform can do without, by the usual count.

    Along an axis of n values and period p (n + h // 2, or n where circular), a complex transform that skips its zeros
    is 5 p log2 n operations, a real one half of it. A plane is n_rows real ones along its rows, then p_columns / 2 + 1
    complex ones along its columns. Forward: a plane there and one back for each image, one for the PSF, 6 operations a
    product. Backward, with the image's spectrum kept: a plane there and one back for each image, one back for the PSF,
    6 operations a product for the image and 8 for the PSF's sum over the batch.
    """
    circular = shape.boundary == "circular"
    p_rows = shape.height if circular else shape.height + shape.h // 2
    p_columns = shape.width if circular else shape.width + shape.w // 2
    kept = p_columns // 2 + 1

    def plane(rows: int, columns: int) -> float:
        return rows * 2.5 * p_columns * math.log2(columns) + kept * 5 * p_rows * math.log2(rows)

    image, psf, points = plane(shape.height, shape.width), plane(shape.h, shape.w), kept * p_rows
    total = shape.batch * (2 * image + 6 * points) + psf
    return total + (shape.batch * (2 * image + 14 * points) + psf if backward else 0)


def traffic(shape: Shape, backward: bool) -> int:
    """Bytes read and written once: image, output and PSF; backward also gradient, image again, and both gradients."""
    image, psf = 4 * shape.batch * shape.height * shape.width, 4 * shape.h * shape.w
    return (5 * image + 3 * psf) if backward else (2 * image + psf)


def bandwidth(shape: Shape) -> float:
    """Bytes a second of a copy of the image batch, read and write, in the caches that its size fits."""
    source = torch.rand(shape.batch, shape.height, shape.width)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = statistics.median(seconds_of(lambda: target.copy_(source)) for _ in range(15))
    return 2 * source.numel() * source.element_size() / seconds
