"""Scores against scikit-image and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bitlens.validation import Classification, Reconstruction, accuracy, cross_entropy_bits, psnr_db, ssim


@pytest.mark.parametrize("shape", [(3, 1, 24, 31), (2, 3, 16, 16)])
def test_psnr_and_ssim_are_those_of_scikit_image(shape: tuple[int, ...]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(shape, generator=generator, dtype=torch.float64)
    estimate = target + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
    for index in range(shape[0]):
        pair = target[index].numpy(), estimate[index].numpy()
        similarity = metrics.structural_similarity(
            *pair, data_range=1.3, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=0
        )
        assert ssim(estimate, target, data_range=1.3)[index] == pytest.approx(similarity, abs=1e-12)
        ratio = metrics.peak_signal_noise_ratio(*pair, data_range=1.3)
        assert psnr_db(estimate, target, data_range=1.3)[index] == pytest.approx(ratio, abs=1e-10)


def test_perfect_estimate_and_small_images() -> None:
    image = torch.rand(2, 1, 6, 5, generator=torch.Generator().manual_seed(0))
    assert torch.isinf(psnr_db(image, image, data_range=1.0)).all()
    assert torch.allclose(ssim(image, image, data_range=1.0), torch.ones(2, dtype=torch.float64))


def test_classes_by_hand() -> None:
    probability = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    labels = torch.tensor([0, 2])
    assert accuracy(probability.log(), labels) == 0.5
    assert cross_entropy_bits(probability.log(), labels) == pytest.approx((1 + math.log2(10)) / 2, abs=1e-6)


def test_tasks_check_what_comes() -> None:
    scenes = torch.zeros(4, 1, 8, 8)
    assert Reconstruction().targets(scenes) is not None
    assert Classification(["b", "a", "b", "c"]).targets(scenes).tolist() == [1, 0, 1, 2]
    assert Classification(np.array([7, 3, 3, 7])).targets(scenes).tolist() == [1, 0, 0, 1]
    with pytest.raises(ValueError, match="one image per scene, 4, got 3"):
        Reconstruction(torch.zeros(3, 1, 8, 8)).targets(scenes)
    with pytest.raises(ValueError, match="one per scene, 4, got 2"):
        Classification([0, 1]).targets(scenes)
    with pytest.raises(ValueError, match=r"target: need shape \(n, channel, row, column\)"):
        Reconstruction(torch.zeros(3, 8))
    with pytest.raises(ValueError, match="at least 2 classes"):
        Classification([1, 1, 1])
    with pytest.raises(TypeError, match="whole numbers or texts"):
        Classification([0.5, 1.5])
    with pytest.raises(ValueError, match="data_range: need a positive number"):
        Reconstruction(data_range=0.0)
    with pytest.raises(ValueError, match="need the shape of target"):
        psnr_db(torch.zeros(1, 1, 4, 4), torch.zeros(2, 1, 4, 4), data_range=1.0)
