"""What the studies of single-pixel cameras look at, and the pattern sets that they compare."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import hadamard
from torch import Tensor
from torch.nn import functional

from bitlens.encoders import Patterns, random_patterns
from bitlens.encoders.patterns import HadamardOrder, hadamard_order
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.systems.single_pixel_camera import PatternExposure, SinglePixelCamera

SIZE, N_PATTERNS = 16, 64
# Of a pixel of 1 of SIZE x SIZE, all mirrors open; the same light falls on more and smaller ones.
EXPOSURE_PHOTONS, DARK_ELECTRONS, READ_ELECTRONS = 1e5, 1e5, 1000.0


class Images(NamedTuple):
    """Images (n, 1, row, column) in 0 to 1, their labels, and what they are."""

    scenes: Tensor
    labels: Tensor
    source: str

    def part(self, start: int, stop: int) -> Images:
        """Images start to stop."""
        return Images(self.scenes[start:stop], self.labels[start:stop], self.source)


def read_images(data: Path, size: int = SIZE) -> tuple[Images, Images]:
    """Images to design, train and judge on in random order, and others for tests, `size` pixels wide."""
    folder = data / "mnist"
    if (folder / "train-images-idx3-ubyte.gz").exists():
        return _mnist(folder, "train", size), _mnist(folder, "t10k", size)
    from sklearn.datasets import load_digits

    digits = load_digits()
    scenes = torch.from_numpy(digits.images).float()[:, None] / 16
    scenes = functional.interpolate(scenes, size=(size, size), mode="bilinear", antialias=True)
    images = Images(scenes, torch.from_numpy(digits.target).long(), "digits bundled with scikit-learn")
    return images.part(0, 1300), images.part(1300, len(scenes))


def _mnist(folder: Path, part: str, size: int) -> Images:
    pixels = np.frombuffer(gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    scenes = torch.from_numpy(pixels.reshape(-1, 1, 28, 28)[:20000].copy()).float() / 255
    if size >= 28:
        edge = (size - 28) // 2
        scenes = functional.pad(scenes, (edge, size - 28 - edge) * 2)
    else:
        scenes = functional.interpolate(scenes, size=(size, size), mode="bilinear", antialias=True)
    return Images(scenes, torch.from_numpy(labels[:20000].copy()).long(), "MNIST")


def hadamard_patterns(order: HadamardOrder | Tensor, size: int = SIZE) -> Tensor:
    """The first 64 of the Hadamard patterns of size x size mirrors in this order, 0 and 1."""
    natural = torch.from_numpy(hadamard(size * size)).double().unflatten(-1, (size, size))
    rows = hadamard_order((size, size), order) if isinstance(order, str) else order
    return (1 + natural[rows[:N_PATTERNS]]) / 2


def pattern_sets(others: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Every set of the study, (64, row, column) in 0 to 1; the principal components are those of `others`."""
    generator = torch.Generator().manual_seed(seed)

    def random(kind: str = "binary", open_share: float = 0.5, feature: int = 1) -> Tensor:
        size = (SIZE // feature, SIZE // feature)
        found = random_patterns(N_PATTERNS, size, kind=kind, open_share=open_share, generator=generator)  # type: ignore[arg-type]
        return found.double().repeat_interleave(feature, 1).repeat_interleave(feature, 2)

    mirrors = torch.eye(SIZE * SIZE, dtype=torch.float64).unflatten(-1, (SIZE, SIZE))
    blocks = torch.eye(N_PATTERNS, dtype=torch.float64).unflatten(-1, (SIZE // 2, SIZE // 2))
    cosines = _cosines()
    lines = torch.eye(SIZE, dtype=torch.float64)
    rows, columns = lines[:, :, None].expand(-1, -1, SIZE), lines[:, None, :].expand(-1, SIZE, -1)
    components = torch.linalg.svd(others.flatten(1).double() - others.flatten(1).double().mean(0))[2][:N_PATTERNS]
    components = components / components.abs().amax(1, keepdim=True)
    return {
        "Hadamard, cake cutting": hadamard_patterns("cake_cutting"),
        "Hadamard, Walsh order": hadamard_patterns("walsh"),
        "Hadamard, natural order": hadamard_patterns("natural"),
        "Hadamard, drawn at random": hadamard_patterns(torch.randperm(SIZE * SIZE, generator=generator)),
        "Hadamard, cake cutting, last": hadamard_patterns(hadamard_order((SIZE, SIZE), "cake_cutting").flip(0)),
        "random binary": random(),
        "random binary, 5 % open": random(open_share=0.05),
        "random binary, 2 px": random(feature=2),
        "random binary, 4 px": random(feature=4),
        "random grey": random("uniform"),
        "every fourth mirror": mirrors.unflatten(0, (SIZE, SIZE))[::2, ::2].flatten(0, 1),
        "2 x 2 mirrors at a time": blocks.repeat_interleave(2, 1).repeat_interleave(2, 2),
        "S-matrix": _s_matrix(),
        "cosines, low": (1 + cosines[:N_PATTERNS]) / 2,
        "cosines, high": (1 + cosines[-N_PATTERNS:]) / 2,
        "rows and columns, twice": torch.cat([rows, columns, rows, columns]),
        "principal components": (1 + components.unflatten(-1, (SIZE, SIZE))) / 2,
    }


def _cosines() -> Tensor:
    """The products of cosines (256, row, column) in order of their frequency, each of largest value 1."""
    index = torch.arange(SIZE, dtype=torch.float64)
    one = torch.cos(math.pi * (index + 0.5) * index[:, None] / SIZE)
    products = torch.einsum("ir,jc->ijrc", one, one).flatten(0, 1)
    frequency = (index[:, None].square() + index.square()).flatten()
    products = products[frequency.argsort(stable=True)]
    return products / products.abs().amax((1, 2), keepdim=True)


def _s_matrix() -> Tensor:
    """64 shifts of a maximal-length sequence of 255 and a closed mirror; feedback 8, 6, 5, 4."""
    register, sequence = [1] * 8, []
    for _ in range(255):
        sequence.append(register[-1])
        register = [register[7] ^ register[5] ^ register[4] ^ register[3], *register[:-1]]
    code = torch.tensor(sequence, dtype=torch.float64)
    shifted = torch.stack([code.roll(4 * shift) for shift in range(N_PATTERNS)])
    return functional.pad(shifted, (0, 1)).unflatten(-1, (SIZE, SIZE))


def camera(patterns: Tensor, scenes: Tensor, *, learn: bool = False, light: float = 1.0) -> ImagingSystem:
    """The camera that shows `patterns` within one exposure of `light` times the usual photo-electrons."""
    shown = Patterns(patterns, learn=("patterns",) if learn else ())
    photons = light * EXPOSURE_PHOTONS * (SIZE / patterns.shape[-1]) ** 2
    linear = PatternExposure(shown, exposure_photons=photons)
    return ImagingSystem(
        SinglePixelCamera(linear, dark_electrons=DARK_ELECTRONS), PoissonGaussianNoise(read_std=READ_ELECTRONS), scenes
    )
