"""Bounds on error and accuracy against channels whose information and best decoder are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bitlens.densities import GaussianDensity
from bitlens.validation import (
    accuracy_bound,
    gaussian_entropy,
    gaussian_reconstruction_bound,
    reconstruction_bound,
    source_entropy,
)


def gaussian_channel(n_values: int, seed: int, noise_std: float) -> tuple[torch.Tensor, float, float]:
    """Covariance of x, bits and LMMSE per value of z = A x + n for a random A."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n_values, n_values, generator=generator, dtype=torch.float64)
    covariance = root @ root.T / n_values + 0.05 * torch.eye(n_values, dtype=torch.float64)
    matrix = torch.randn(n_values, n_values, generator=generator, dtype=torch.float64)
    signal = matrix @ covariance @ matrix.T / noise_std**2
    eye = torch.eye(n_values, dtype=torch.float64)
    bits = 0.5 * float(torch.logdet(eye + signal)) / math.log(2)
    posterior = torch.linalg.inv(torch.linalg.inv(covariance) + matrix.T @ matrix / noise_std**2)
    return covariance, bits, float(posterior.trace()) / n_values


@pytest.mark.parametrize("noise_std", [0.01, 0.3, 3.0, 30.0])
def test_no_gaussian_channel_beats_the_bounds(noise_std: float) -> None:
    for seed in range(5):
        covariance, bits, lmmse = gaussian_channel(12, seed, noise_std)
        shannon = reconstruction_bound(bits, entropy_nats=gaussian_entropy(covariance), n_values=12)
        exact = gaussian_reconstruction_bound(bits, torch.linalg.eigvalsh(covariance))
        assert shannon <= exact * (1 + 1e-12)
        assert exact <= lmmse * (1 + 1e-12)


def test_white_source_in_white_noise_meets_both_bounds() -> None:
    """x ~ N(0, 4), z = x + N(0, 1), 10 values: I = 5 log2 5 bits and the least error is 4/5."""
    bits = 5 * math.log2(5)
    assert gaussian_entropy(4 * torch.eye(10)) == pytest.approx(5 * math.log(2 * math.pi * math.e * 4), rel=1e-12)
    shannon = reconstruction_bound(bits, entropy_nats=gaussian_entropy(4 * torch.eye(10)), n_values=10)
    assert shannon == pytest.approx(0.8, rel=1e-12)
    assert gaussian_reconstruction_bound(bits, torch.full((10,), 4.0)) == pytest.approx(0.8, rel=1e-12)


def test_reverse_water_filling_by_its_definition() -> None:
    """For a level, bits and error by their sums; the function gets the bits and must give the error."""
    eigenvalues = torch.tensor([5.0, 2.0, 0.7, 0.1, 0.0], dtype=torch.float64)
    for level in (4.0, 1.0, 0.5, 0.05, 1e-6):
        inside = eigenvalues.clamp(min=level)
        bits = 0.5 * float(torch.log2(inside / level).sum())
        error = float(eigenvalues.clamp(max=level).mean())
        assert gaussian_reconstruction_bound(bits, eigenvalues) == pytest.approx(error, rel=1e-9)
    assert gaussian_reconstruction_bound(0.0, eigenvalues) == pytest.approx(float(eigenvalues.mean()), rel=1e-12)


def test_both_bounds_agree_above_the_least_eigenvalue() -> None:
    covariance, _, _ = gaussian_channel(6, 0, 1.0)
    values = torch.linalg.eigvalsh(covariance)
    bits = 0.5 * float(torch.log2(values / values.min()).sum()) + 3.0
    shannon = reconstruction_bound(bits, entropy_nats=gaussian_entropy(covariance), n_values=6)
    assert gaussian_reconstruction_bound(bits, values) == pytest.approx(shannon, rel=1e-10)


def test_entropy_of_a_gaussian_source_is_found_from_above() -> None:
    generator = torch.Generator().manual_seed(1)
    covariance, _, _ = gaussian_channel(9, 2, 1.0)
    images = torch.randn(4000, 9, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    found = source_entropy(images.reshape(-1, 1, 3, 3), densities=(GaussianDensity(),), generator=generator)
    truth = gaussian_entropy(covariance)
    # A fit to 3200 images costs (54 parameters) / (2 x 3200) = 0.008 nats.
    assert found.nats - truth - 0.008 == pytest.approx(0.0, abs=4 * found.stderr_nats)
    assert found.n_values == 9
    assert 0.5 * math.sqrt(4.5 / 4000) < found.stderr_nats < 2 * math.sqrt(4.5 / 4000)


def test_values_that_never_change_carry_nothing_and_cost_nothing() -> None:
    """Nine correlated values among 16: a frame that is cropped, or scattered ones that are left out."""
    generator = torch.Generator().manual_seed(1)
    covariance, bits, _ = gaussian_channel(9, 2, 1.0)
    drawn = torch.randn(4000, 9, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    framed = torch.full((4000, 1, 4, 4), 7.0, dtype=torch.float64)
    framed[:, :, 1:, :3] = drawn.reshape(-1, 1, 3, 3)
    scattered = torch.full((4000, 1, 4, 4), 7.0, dtype=torch.float64)
    scattered.flatten(1)[:, [0, 2, 3, 5, 8, 9, 10, 14, 15]] = drawn
    truth = gaussian_entropy(covariance)
    for images in (framed, scattered):
        found = source_entropy(images, generator=torch.Generator().manual_seed(0), drop_constant=True)
        assert (found.n_values, found.n_constant, found.density) == (9, 7, "GaussianDensity")
        assert found.nats - truth - 0.008 == pytest.approx(0.0, abs=4 * found.stderr_nats)
    per_value = reconstruction_bound(bits, entropy_nats=truth, n_values=9)
    whole = reconstruction_bound(bits, entropy_nats=truth, n_values=9, n_constant=7)
    assert whole == pytest.approx(per_value * 9 / 16)
    with pytest.raises(ValueError, match="target: need images that differ"):
        source_entropy(framed[:1].expand(40, -1, -1, -1), drop_constant=True)
    with pytest.raises(ValueError, match="n_constant: need at least 0"):
        reconstruction_bound(1.0, entropy_nats=0.0, n_values=1, n_constant=-1)


def test_a_wide_target_is_left_to_gaussians_unless_they_cannot_be_fitted() -> None:
    """White images of 33 x 33, whose entropy is that of their values; a few that repeat spoil the stationary one."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(60, 1, 33, 33, generator=generator, dtype=torch.float64)
    found = source_entropy(images, generator=generator)
    assert found.density == "StationaryGaussianDensity"
    assert found.nats / found.n_values == pytest.approx(0.5 * math.log(2 * math.pi * math.e), abs=0.05)
    images[:, :, 5, 7] = 2.0
    spoilt = source_entropy(images[:20], generator=generator, drop_constant=True)
    assert (spoilt.density, spoilt.n_constant) == ("GaussianMixtureDensity", 1)


def test_fano_is_met_by_the_symmetric_channel() -> None:
    """A channel that errs with probability e, uniformly to the others, has I = log2 K - h(e) - e log2(K - 1)."""
    for n_classes, error in ((2, 0.1), (4, 0.3), (10, 0.02), (10, 0.85)):
        entropy = -error * math.log2(error) - (1 - error) * math.log2(1 - error)
        bits = math.log2(n_classes) - entropy - error * math.log2(n_classes - 1)
        labels = np.repeat(np.arange(n_classes), 7)
        assert accuracy_bound(bits, labels) == pytest.approx(1 - error, abs=1e-9)


def test_ends_of_the_accuracy_bound() -> None:
    labels = ["a", "b", "c", "d"]
    assert accuracy_bound(0.0, labels) == pytest.approx(0.25, abs=1e-6)
    assert accuracy_bound(2.0, labels) == 1.0
    assert accuracy_bound(50.0, labels) == 1.0


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="bits: need a finite number"):
        reconstruction_bound(math.nan, entropy_nats=0.0, n_values=1)
    with pytest.raises(ValueError, match="n_values: need at least 1"):
        reconstruction_bound(1.0, entropy_nats=0.0, n_values=0)
    with pytest.raises(ValueError, match="eigenvalues"):
        gaussian_reconstruction_bound(1.0, torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="positive definite"):
        gaussian_entropy(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="at least 2 classes"):
        accuracy_bound(1.0, [3, 3])
