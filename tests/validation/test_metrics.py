"""MTF50, signal-to-noise ratio and condition number against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from bitlens.encoders import Camera, Patterns, PSFConvolution
from bitlens.noise import GaussianNoise, NoiseModel, PoissonGaussianNoise, PoissonNoise
from bitlens.validation import condition_number, jacobian, mtf50, point_response, singular_values, snr_db

pytestmark = pytest.mark.usefixtures("one_thread")


def gaussian_psf(size: int, deviation: float) -> Tensor:
    place = torch.arange(size, dtype=torch.float64) - size // 2
    line = torch.exp(-0.5 * (place / deviation) ** 2)
    return torch.outer(line, line)


@pytest.mark.parametrize("deviation", [1.0, 1.7, 3.0])
def test_mtf50_of_a_gaussian(deviation: float) -> None:
    """exp(-2 pi^2 s^2 f^2) = 1/2 at f = sqrt(ln 2 / 2) / (pi s)."""
    truth = math.sqrt(math.log(2) / 2) / (math.pi * deviation)
    assert mtf50(gaussian_psf(41, deviation)) == pytest.approx(truth, rel=1e-4)
    assert mtf50(gaussian_psf(41, deviation), samples_per_pixel=4) == pytest.approx(4 * truth, rel=1e-4)


def diffraction_mtf(share_of_cutoff: float) -> float:
    return 2 / math.pi * (math.acos(share_of_cutoff) - share_of_cutoff * math.sqrt(1 - share_of_cutoff**2))


def test_mtf50_of_a_circular_aperture() -> None:
    """Of a lens at f/8, 550 nm: 0.404 of the cut-off 1 / (wavelength f_number); the window and soft edge cost 2 %."""
    share = brentq(lambda x: diffraction_mtf(x) - 0.5, 0.1, 0.9)
    assert share == pytest.approx(0.40397, abs=1e-4)
    camera = Camera(wavelength_nm=550, f_number=8, pixel_um=3.45, margin_pixels=24)
    per_um = share / (0.55 * 8)
    found = mtf50(camera.psf(), samples_per_pixel=camera.oversampling)
    assert found == pytest.approx(per_um * 3.45, rel=0.02)


def test_point_response_of_a_camera_is_its_psf_over_a_pixel() -> None:
    camera = Camera(wavelength_nm=550, f_number=8, pixel_um=3.45, margin_pixels=8, defocus_waves=0.5, oversampling=3)
    k, size = camera.oversampling, camera.scene_size(9)
    found = point_response(camera, (1, size, size), samples_per_pixel=k)
    box = torch.ones(1, 1, k, k, dtype=torch.float64)
    truth = nn.functional.conv2d(camera.psf()[None, None], box, padding=k - 1)[0, 0] * camera.exposure_photons
    # The same peak and the same values around it, wherever the frame puts them.
    row, column = divmod(int(found.argmax()), found.shape[1])
    there, across = divmod(int(truth.argmax()), truth.shape[1])
    reach = 6
    mine = found[row - reach : row + reach + 1, column - reach : column + reach + 1]
    theirs = truth[there - reach : there + reach + 1, across - reach : across + reach + 1]
    # What a pixel makes of light counts its mean, or its sum: one factor.
    assert torch.allclose(mine / mine.sum(), theirs / theirs.sum(), rtol=1e-6, atol=1e-9)


def test_mtf50_of_points_and_wrong_shapes() -> None:
    point = torch.zeros(9, 9)
    point[4, 4] = 1
    assert mtf50(point) == 0.5
    assert mtf50(point, samples_per_pixel=2) == 1.0
    shifted = torch.zeros(9, 9)
    shifted[1, 7] = 3
    assert mtf50(shifted) == 0.5
    with pytest.raises(ValueError, match="psf: need a positive sum"):
        mtf50(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="psf: need shape"):
        mtf50(torch.zeros(3))


def test_snr() -> None:
    mean = torch.full((2, 1, 4, 4), 100.0, dtype=torch.float64)
    assert snr_db(mean, GaussianNoise(5.0)) == pytest.approx(20 * math.log10(20), abs=1e-9)
    assert snr_db(mean, PoissonNoise()) == pytest.approx(20.0, abs=1e-9)
    sensor = PoissonGaussianNoise(gain=2.0, offset=50.0, read_std=6.0)
    assert snr_db(mean, sensor) == pytest.approx(10 * math.log10(200**2 / (4 * 100 + 36)), abs=1e-9)

    class Drawn(NoiseModel):
        def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
            return GaussianNoise(5.0).sample(mean, generator)

        def log_prob(self, measured: Tensor, mean: Tensor) -> Tensor:
            return measured

        def entropy(self, mean: Tensor) -> Tensor:
            return mean

    drawn = snr_db(mean[:1].expand(50, 1, 4, 4), Drawn(), generator=torch.Generator().manual_seed(0))
    assert drawn == pytest.approx(20 * math.log10(20), abs=0.1)
    with pytest.raises(ValueError, match="dark everywhere"):
        snr_db(torch.zeros(1, 1, 2, 2), PoissonNoise())


class Matrix(nn.Module):
    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, scene: Tensor) -> Tensor:
        return (scene.flatten(1) @ self.matrix.T)[:, None, None]


def test_condition_number_of_known_matrices() -> None:
    diagonal = torch.diag(torch.tensor([4.0, 2.0, 0.5, 0.0, 1e-9, 0.25], dtype=torch.float64))
    assert condition_number(Matrix(diagonal), (1, 2, 3)) == pytest.approx(16.0, rel=1e-12)
    assert condition_number(Matrix(diagonal), (1, 2, 3), tolerance=0.1) == pytest.approx(8.0, rel=1e-12)
    wide = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(wide)
    assert condition_number(Matrix(wide), (2, 2, 2)) == pytest.approx(float(values[0] / values[-1]), rel=1e-10)
    with pytest.raises(ValueError, match="Jacobian of zeros"):
        condition_number(Matrix(torch.zeros(2, 4)), (1, 2, 2))


def test_condition_number_of_a_circular_convolution_is_that_of_its_transfer() -> None:
    psf = gaussian_psf(5, 0.8)
    psf = psf / psf.sum()
    padded = torch.zeros(12, 12, dtype=torch.float64)
    padded[:5, :5] = psf
    transfer = torch.fft.fft2(padded).abs()
    encoder = PSFConvolution(psf, boundary="circular", image_size=(12, 12))
    assert condition_number(encoder, (1, 12, 12)) == pytest.approx(float(transfer.max() / transfer.min()), rel=1e-8)


def test_jacobian_is_the_matrix_of_a_linear_encoder_and_the_derivative_of_another() -> None:
    patterns = torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(0))
    found = jacobian(Patterns(patterns), (1, 3, 4))
    basis = torch.eye(12, dtype=torch.float64).reshape(12, 1, 3, 4)
    truth = Patterns(patterns).double()(basis).flatten(1).T
    assert torch.allclose(found, truth, atol=1e-12)
    at = torch.rand(1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    squared = jacobian(lambda scene: scene**2, (1, 2, 2), at=at)
    assert torch.allclose(squared, torch.diag(2 * at.flatten()), atol=1e-12)
    assert torch.allclose(singular_values(lambda scene: scene**2, (1, 2, 2), at=at)[0], 2 * at.max())
    with pytest.raises(ValueError, match="take a smaller scene"):
        jacobian(lambda scene: scene, (1, 80, 80))
    with pytest.raises(ValueError, match=r"at: need shape \(1, 2, 2\)"):
        jacobian(lambda scene: scene, (1, 2, 2), at=torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match="shape: need"):
        jacobian(lambda scene: scene, (2, 2))
