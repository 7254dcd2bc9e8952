"""Pixel integration and photo-electrons against direct sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitlens.encoders import integrate_pixels, photoelectrons


@pytest.mark.parametrize("oversampling", [1, 2, 3])
def test_pixels_are_means_of_squares(oversampling: int) -> None:
    rows, columns = 4 * oversampling, 5 * oversampling
    fine = torch.rand(2, 3, rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pixels = integrate_pixels(fine, oversampling)
    assert pixels.shape == (2, 3, 4, 5)
    for row in range(4):
        for column in range(5):
            down, across = row * oversampling, column * oversampling
            square = fine.numpy()[..., down : down + oversampling, across : across + oversampling]
            np.testing.assert_allclose(pixels[..., row, column].numpy(), square.mean(axis=(-2, -1)), rtol=1e-14)


def test_a_part_of_a_pixel_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"irradiance: need rows and columns that are multiples .* \(1, 6, 7\)"):
        integrate_pixels(torch.zeros(1, 6, 7), 2)


def test_photoelectrons_are_photons_times_efficiency_plus_dark() -> None:
    mean = photoelectrons(
        torch.tensor([-1e-9, 0.0, 0.5, 2.0]),
        exposure_photons=torch.tensor(400.0),
        quantum_efficiency=torch.tensor(0.6),
        dark_electrons=torch.tensor(3.0),
    )
    torch.testing.assert_close(mean, torch.tensor([3.0, 3.0, 123.0, 483.0]))
