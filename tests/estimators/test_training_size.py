"""Bits against training size: the law of Gaussian fits, agreement with the estimate, and errors."""

from __future__ import annotations

import math

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bitlens import GaussianNoise, PoissonNoise, estimate_information, plots
from bitlens.densities import held_out_bias_nats
from bitlens.estimators import TrainingSizes, bits_by_training_size


def white(n: int, pixels: int, seed: int) -> Tensor:
    return 2.0 * torch.randn(n, pixels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_follows_the_law_of_gaussian_fits() -> None:
    """4 log2 pixels of truth, and the exact excess of a full covariance at each size."""
    noise, truth = GaussianNoise(1.0), 8 * 0.5 * math.log2(5.0)
    curves = []
    for seed in range(20):
        scenes = white(600, 8, seed)
        measured = noise.sample(scenes, torch.Generator().manual_seed(100 + seed))
        curves.append(bits_by_training_size(measured, noise, method="gaussian", n_sizes=4, generator=generator()))
    first = curves[0]
    assert first.n_training == (480, 240, 120, 60)
    assert first.method == "gaussian"
    upper = torch.tensor([curve.upper_bits for curve in curves]).mean(0)
    spread = torch.tensor([curve.upper_bits for curve in curves]).std(0) / math.sqrt(len(curves))
    for bits, error, count in zip(upper.tolist(), spread.tolist(), first.n_training, strict=True):
        assert abs(bits - truth - held_out_bias_nats(count, 8) / math.log(2)) < 4 * error
    limit = sum(curve.limit_bits for curve in curves) / len(curves)
    assert abs(limit - truth) < 4 * float(spread[0]) + 0.02


def test_the_largest_size_is_the_estimate() -> None:
    measured = PoissonNoise().sample(white(300, 16, 0).reshape(300, 4, 4).exp(), generator())
    curve = bits_by_training_size(measured, PoissonNoise(), method="stationary_gaussian", generator=generator())
    result = estimate_information(measured, PoissonNoise(), method="stationary_gaussian", generator=generator())
    assert result.upper_bits == pytest.approx(curve.upper_bits[0], rel=1e-12)


def test_figure_shows_every_size() -> None:
    sizes = TrainingSizes((400, 200, 100), (10.0, 11.0, 13.0), (0.3, 0.3, 0.3), 9.0, 0.4, 64, "stationary_gaussian")
    axes = plots.training_sizes(sizes)
    assert isinstance(axes.figure, Figure)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["∞", "400", "200", "100"]
    assert "stationary gaussian" in axes.get_xlabel()


def test_bad_arguments_are_named() -> None:
    measured, noise = white(60, 20, 0), GaussianNoise(1.0)
    with pytest.raises(ValueError, match="n_sizes: need a whole number"):
        bits_by_training_size(measured, noise, n_sizes=1)
    with pytest.raises(ValueError, match="method: need one of"):
        bits_by_training_size(measured, noise, method="known_channel")
    with pytest.raises(TypeError, match="noise: need a noise model"):
        bits_by_training_size(measured, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"n_sizes: a fit to .* failed: measured: need at least 23 images"):
        bits_by_training_size(measured, noise, method="gaussian")
