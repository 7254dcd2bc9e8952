"""Sensor-side encoders on one thread: time forward, adjoint, and forward with gradients, with the encoder as axis."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bitlens.encoders.color_filter import RGB_SPECTRA, XTRANS, ColorFilterArray
from bitlens.encoders.convolution import DepthStackConvolution, PSFConvolution
from bitlens.encoders.detector import PixelSampling
from bitlens.encoders.dispersion import DispersedCodedAperture
from bitlens.encoders.linear import LinearEncoder
from bitlens.encoders.motion import MotionSmear, TimeDelayIntegration
from bitlens.encoders.patterns import HadamardPatterns, Patterns, random_patterns

Case = tuple[Callable[[], LinearEncoder], tuple[int, int, int, int]]


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _psf(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=_seeded())


CASES: dict[str, Case] = {
    "dispersed aperture": (lambda: DispersedCodedAperture(_psf(128, 128), n_bands=28), (1, 28, 128, 128)),
    "dispersed aperture, step 0.7": (
        lambda: DispersedCodedAperture(_psf(128, 128), n_bands=28, step=0.7),
        (1, 28, 128, 128),
    ),
    "X-Trans": (lambda: ColorFilterArray(XTRANS, RGB_SPECTRA), (8, 3, 256, 256)),
    "patterns": (lambda: Patterns(random_patterns(400, (64, 64), generator=_seeded())), (16, 1, 64, 64)),
    "Hadamard patterns": (lambda: HadamardPatterns((128, 128)), (16, 1, 128, 128)),
    "smear": (lambda: MotionSmear(12.5, direction_degrees=30.0), (8, 1, 256, 256)),
    "time delay integration": (
        lambda: TimeDelayIntegration(96, mismatch_pixels=0.02, n_phases=4),
        (8, 1, 256, 256),
    ),
    "pixels": (lambda: PixelSampling(4, fill_factor=0.6), (8, 1, 512, 512)),
    "PSF": (lambda: PSFConvolution(_psf(31, 31)), (8, 3, 128, 128)),
    "depths": (lambda: DepthStackConvolution(_psf(16, 128, 128)), (1, 16, 128, 128)),
}


class Encoders:
    """One encoder at a size that its cameras have."""

    param_names = ("encoder",)
    params = (list(CASES),)
    timeout = 120

    def setup(self, name: str) -> None:
        torch.set_num_threads(1)
        make, shape = CASES[name]
        self.encoder = make()
        self.scene = torch.rand(shape, generator=_seeded())
        self.learned = self.scene.clone().requires_grad_()
        with torch.no_grad():
            self.mean = self.encoder(self.scene)

    def time_forward(self, name: str) -> None:
        with torch.no_grad():
            self.encoder(self.scene)

    def time_adjoint(self, name: str) -> None:
        with torch.no_grad():
            self.encoder.A_adjoint(self.mean)

    def time_forward_backward(self, name: str) -> None:
        torch.autograd.grad(self.encoder(self.learned).sum(), self.learned)
