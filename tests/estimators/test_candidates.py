"""Which densities "auto" tries: free marginals where pixels are far from normal, and not where they cannot help."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitlens.estimators import estimate_information
from bitlens.estimators._candidates import candidates
from bitlens.noise import GaussianNoise, PoissonNoise

SIDE = 4
SIGMA = 0.6


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def factor() -> Tensor:
    """Cholesky factor of a correlation that falls off with the distance of pixels."""
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*(torch.arange(SIDE).double(),) * 2, indexing="ij"))
    distance = ((rows[:, None] - rows).square() + (columns[:, None] - columns).square()).sqrt()
    return torch.linalg.cholesky(torch.exp(-distance / 2.0))


def normal_images(n: int, seed: int) -> Tensor:
    drawn = torch.randn(n, SIDE**2, dtype=torch.float64, generator=generator(seed))
    return (drawn @ factor().mT).reshape(n, SIDE, SIDE)


def tried(measured: Tensor, n_training: int | None = None) -> set[str]:
    return set(candidates("auto", measured, GaussianNoise(0.01), len(measured) if n_training is None else n_training))


def test_a_copula_is_tried_where_marginals_are_far_from_normal() -> None:
    assert "gaussian_copula" in tried((SIGMA * normal_images(1000, 0)).exp())
    # Rare light: nine of ten images are dark at a pixel.
    assert "gaussian_copula" in tried(normal_images(1000, 1).sub(1.3).clamp(min=0) + 0.05 * normal_images(1000, 2))


def test_a_copula_is_not_tried_where_it_cannot_help() -> None:
    for n in (500, 4000):
        assert "gaussian_copula" not in tried(5.0 + normal_images(n, 3))
    bright = PoissonNoise().sample(torch.full((1000, SIDE, SIDE), 300.0), generator(4))
    assert "gaussian_copula" not in tried(bright)
    skew = (SIGMA * normal_images(1000, 0)).exp()
    framed = torch.nn.functional.pad(5.0 + normal_images(1000, 3), (4, 4, 4, 4))
    assert "gaussian_copula" not in tried(framed)
    # Fewer images than the mixtures need, or than pixels.
    assert "gaussian_copula" not in tried(skew[:390])
    assert "gaussian_copula" not in tried(skew.repeat(1, 8, 8), n_training=1000)
    assert set(candidates("gaussian_copula", skew, GaussianNoise(0.01), 1000)) == {"gaussian_copula"}


def test_auto_finds_the_bits_of_skew_correlated_pixels() -> None:
    """exp of correlated normals in little noise: h(y) is that of the normals and the sum of their means, here 0."""
    std = 0.01
    mean = (SIGMA * normal_images(2500, 5)).exp()
    noise = GaussianNoise(std)
    measured = noise.sample(mean, generator(6))
    truth = (SIDE**2 * math.log(SIGMA / std) + float(factor().diagonal().log().sum())) / math.log(2)
    auto = estimate_information(measured, noise, generator=generator(0))
    gaussian = estimate_information(measured, noise, method="gaussian", generator=generator(0))
    assert auto.method.startswith("gaussian_copula")
    assert not any("above the truth" in warning for warning in auto.warnings)
    assert auto.stderr_bits is not None
    assert abs(auto.bits - truth) < 4 * auto.stderr_bits + 0.2
    assert gaussian.bits > truth + 2.0
