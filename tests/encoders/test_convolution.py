"""PSF convolutions against direct sums, their crops, and what rounding must not leave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from bitlens.encoders.convolution import (
    ConvolutionBoundary,
    ConvolutionMode,
    DepthStackConvolution,
    PSFConvolution,
    adjoint_convolution,
    never_below_zero,
)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def direct(image: np.ndarray, psf: np.ndarray, mode: str, boundary: str) -> np.ndarray:
    """Origin (h // 2, w // 2), by SciPy's direct sums and by rolled copies."""
    rows, columns = image.shape
    top, left = psf.shape[0] // 2, psf.shape[1] // 2
    if boundary == "circular":
        out = np.zeros_like(image)
        for (row, column), weight in np.ndenumerate(psf):
            out += weight * np.roll(image, (row - top, column - left), axis=(0, 1))
        return out
    if mode == "same":
        return convolve2d(image, psf)[top : top + rows, left : left + columns]
    return convolve2d(image, psf, mode=mode)


SETTINGS: list[tuple[ConvolutionMode, ConvolutionBoundary]] = [
    ("same", "zero"),
    ("same", "circular"),
    ("full", "zero"),
    ("valid", "zero"),
]
settings = pytest.mark.parametrize(("mode", "boundary"), SETTINGS)
sizes = pytest.mark.parametrize("size", [(3, 4), (8, 9), (10, 7)])


@settings
@sizes
def test_against_direct_sums(mode: ConvolutionMode, boundary: ConvolutionBoundary, size: tuple[int, int]) -> None:
    scene, psf = rand(2, 3, 11, 9), rand(*size, seed=1)
    mean = PSFConvolution(psf, mode=mode, boundary=boundary)(scene)
    for image in range(2):
        for channel in range(3):
            expected = direct(scene[image, channel].numpy(), psf.numpy(), mode, boundary)
            np.testing.assert_allclose(mean[image, channel].numpy(), expected, rtol=0, atol=1e-13)


@settings
@sizes
def test_adjoint_is_the_transposed_matrix(
    mode: ConvolutionMode, boundary: ConvolutionBoundary, size: tuple[int, int]
) -> None:
    psf = rand(*size, seed=1)
    points = torch.eye(99, dtype=torch.float64).reshape(99, 11, 9)
    columns = [torch.from_numpy(direct(point.numpy(), psf.numpy(), mode, boundary)) for point in points]
    matrix = torch.stack(columns)  # one row for each sample of the scene
    measured = rand(*matrix.shape[1:], seed=2)
    expected = (matrix * measured).sum(dim=(-2, -1)).reshape(11, 9)
    back = adjoint_convolution(measured, psf, mode=mode, boundary=boundary)
    torch.testing.assert_close(back, expected, rtol=1e-12, atol=1e-12)


def test_a_psf_for_each_channel() -> None:
    scene, psf = rand(2, 3, 8, 9), rand(3, 4, 5, seed=1)
    together = PSFConvolution(psf)(scene)
    for channel in range(3):
        alone = PSFConvolution(psf[channel])(scene[:, channel : channel + 1])
        torch.testing.assert_close(together[:, channel : channel + 1], alone)


@pytest.mark.parametrize(("mode", "crop"), [("same", (5, 4)), ("full", (6, 11)), ("valid", (3, 2))])
def test_a_crop_is_the_middle(mode: ConvolutionMode, crop: tuple[int, int]) -> None:
    scene, psf = rand(1, 2, 9, 10), rand(4, 3, seed=1)
    whole = PSFConvolution(psf, mode=mode)(scene)
    top, left = ((n - m) // 2 for n, m in zip(whole.shape[-2:], crop, strict=True))
    sensor = PSFConvolution(psf.numpy(), mode=mode, crop=crop, image_size=(9, 10))
    torch.testing.assert_close(sensor(scene.numpy()), whole[..., top : top + crop[0], left : left + crop[1]])


@settings
def test_depths_add_up(mode: ConvolutionMode, boundary: ConvolutionBoundary) -> None:
    scene, psf = rand(2, 4, 11, 9), rand(3, 4, 5, 6, seed=1)
    mean = DepthStackConvolution(psf, mode=mode, boundary=boundary)(scene)
    for image in range(2):
        for output in range(3):
            planes = [direct(scene[image, d].numpy(), psf[output, d].numpy(), mode, boundary) for d in range(4)]
            np.testing.assert_allclose(mean[image, output].numpy(), sum(planes), rtol=0, atol=1e-12)
    one = DepthStackConvolution(psf[0], mode=mode, boundary=boundary)(scene)
    torch.testing.assert_close(one, mean[:, :1])


def test_no_mean_is_negative_where_nothing_is() -> None:
    psf = torch.zeros(32, 32)
    psf[::7, ::5] = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    scene = torch.zeros(1, 3, 48, 48)
    scene[..., 3::16, 5::16] = 1e4
    raw = torch.nn.functional.conv2d(
        torch.nn.functional.pad(scene, (15, 16, 15, 16)), psf.flip((0, 1)).expand(3, 1, 32, 32), groups=3
    )
    for encoder in (PSFConvolution(psf), DepthStackConvolution(psf.expand(3, 32, 32))):
        mean = encoder(scene)
        assert float(mean.min()) >= 0.0
        truth = raw if isinstance(encoder, PSFConvolution) else raw.sum(dim=1, keepdim=True)
        torch.testing.assert_close(mean, truth, rtol=1e-5, atol=0.05)


def test_what_is_negative_stays_negative() -> None:
    mean = torch.tensor([-1e-9, 2.0]).reshape(1, 1, 1, 2)
    light, mixed, psf = torch.ones(1, 1, 2, 2), torch.tensor([1.0, -1.0]).reshape(1, 1, 1, 2), torch.ones(2, 2)
    assert never_below_zero(mean, light, psf).flatten().tolist() == [0.0, 2.0]
    assert torch.equal(never_below_zero(mean, mixed, psf), mean)
    assert torch.equal(never_below_zero(mean, light, -psf), mean)
    # One scene with negative parts does not speak for the others of its batch.
    both = never_below_zero(mean.expand(2, 1, 1, 2), torch.stack((light[0], -light[0])), psf)
    assert both[:, 0, 0, 0].tolist() == [0.0, mean[0, 0, 0, 0].item()]
    learned = mean.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(never_below_zero(learned, light, psf).sum(), learned)
    assert bool((gradient == 1).all())


def test_a_psf_is_learned_from_point_sources() -> None:
    truth = rand(5, 5, seed=1)
    scene = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    scene[..., 4, 4] = 1.0
    target = PSFConvolution(truth)(scene)
    encoder = PSFConvolution(torch.full((5, 5), 0.1, dtype=torch.float64), learn=("psf",))
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.25)
    for _ in range(60):
        optimizer.zero_grad()
        (encoder(scene) - target).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(encoder.psf.detach(), truth, rtol=0, atol=1e-8)


def test_the_mean_has_the_scenes_precision() -> None:
    scene, psf = rand(1, 2, 8, 9), rand(2, 3, 3, seed=1)
    for encoder in (PSFConvolution(psf), DepthStackConvolution(psf)):
        single = encoder(scene.float())
        assert single.dtype == torch.float32
        assert encoder.A_adjoint(single).dtype == torch.float32


def test_what_is_wrong_is_named() -> None:
    psf = rand(3, 3)
    with pytest.raises(ValueError, match=r"psf: need \(h, w\) or \(channel, h, w\), got shape \(3,\)"):
        PSFConvolution(psf[0])
    with pytest.raises(ValueError, match=r"psf: need \(depth, h, w\) or .*, got shape \(3, 3\)"):
        DepthStackConvolution(psf)
    with pytest.raises(ValueError, match=r"mode: need one of \('same', 'full', 'valid'\), got 'crop'"):
        PSFConvolution(psf, mode="crop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"boundary: need one of \('zero', 'circular'\), got 'wrap'"):
        PSFConvolution(psf, boundary="wrap")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode: need 'same' with boundary 'circular', got 'full'"):
        PSFConvolution(psf, mode="full", boundary="circular")
    with pytest.raises(ValueError, match="image_size: need the scenes' rows and columns with crop"):
        PSFConvolution(psf, crop=(4, 4))
    with pytest.raises(ValueError, match=r"crop: need at least 1 and at most .* got \(0, 4\)"):
        PSFConvolution(psf, crop=(0, 4), image_size=(8, 8))
    with pytest.raises(
        ValueError, match=r"crop: need at least 1 and at most the \(8, 8\) that the convolution gives, got \(9, 4\)"
    ):
        PSFConvolution(psf, crop=(9, 4), image_size=(8, 8))
    sensor = PSFConvolution(psf, crop=(4, 5), image_size=(8, 9))
    with pytest.raises(ValueError, match=r"scene: need shape \(batch, channel, 8, 9\), got \(1, 1, 8, 8\)"):
        sensor(rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"measured: need shape \(batch, channel, 4, 5\), got \(1, 1, 5, 5\)"):
        sensor.A_adjoint(rand(1, 1, 5, 5))
    with pytest.raises(ValueError, match=r"scene: need shape \(batch, 3, row, column\), got \(1, 2, 8, 8\)"):
        DepthStackConvolution(rand(3, 2, 2))(rand(1, 2, 8, 8))
