"""A PSF and pixels in one step: against SciPy, and its adjoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from bitlens.encoders.pixel_blur import blurred_pixels, blurred_pixels_adjoint


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("each", [False, True], ids=["one-psf", "psf-per-channel"])
def test_against_scipy(each: bool) -> None:
    scene, psf = rand(2, 3, 16, 21), rand(3, 5, 4, seed=1) if each else rand(5, 4, seed=1)
    found = blurred_pixels(scene, psf, 3)
    assert found.shape == (2, 3, 4, 6)
    for batch in range(2):
        for channel in range(3):
            kernel = (psf[channel] if each else psf).numpy()
            valid = convolve2d(scene[batch, channel].numpy(), kernel, mode="valid")
            means = valid.reshape(4, 3, 6, 3).mean(axis=(1, 3))
            np.testing.assert_allclose(found[batch, channel].numpy(), means, rtol=1e-10)


@pytest.mark.parametrize("each", [False, True], ids=["one-psf", "psf-per-channel"])
def test_adjoint(each: bool) -> None:
    scene, psf = rand(2, 3, 16, 21) - 0.5, rand(3, 5, 4, seed=1) if each else rand(5, 4, seed=1)
    image = blurred_pixels(scene, psf, 3)
    other = rand(*image.shape, seed=2)
    back = blurred_pixels_adjoint(other, psf, 3)
    assert back.shape == scene.shape
    torch.testing.assert_close((image * other).sum(), (scene * back).sum(), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("shape", [(16, 22), (4, 21), (17, 21)])
def test_sizes_that_do_not_fit_are_named(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="scene: need rows and columns of 4 and 3 samples more"):
        blurred_pixels(rand(1, 1, *shape), rand(5, 4), 3)
