"""The part of the error that the training images bring, and the limit of infinitely many of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import bitlens
from bitlens import GaussianNoise, PoissonNoise, estimate_information
from bitlens.datasets import scene_patches
from bitlens.densities import GaussianDensity, held_out_bias_nats
from bitlens.estimators._refits import Refit, error_of_parameters, training_error

pytestmark = pytest.mark.usefixtures("one_thread")
D = 12


def draws(n: int, seed: int) -> Tensor:
    return torch.randn(n, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def refit_of(seed: int, n_fewer: int, n_all: int, n_held_out: int) -> tuple[Refit, float]:
    """Of a full Gaussian; and the mean over the held-out images of what it loses to the true law, nats."""
    images, held_out = draws(n_all, 2 * seed), draws(n_held_out, 2 * seed + 1)
    everything = GaussianDensity().fit(images).log_prob(held_out)
    fewer = GaussianDensity().fit(images[:n_fewer]).log_prob(held_out)
    true = -0.5 * (held_out.square().sum(1) + D * math.log(2.0 * math.pi))
    return Refit(everything - fewer, torch.arange(n_held_out), n_all, n_fewer), float((true - everything).mean())


def test_the_error_is_that_over_training_sets() -> None:
    """Of D + D (D + 1) / 2 parameters, p: log q of m held-out images varies by p / (n m) from one set to the next."""
    n, m = 2000, 150
    refits = [refit_of(seed, 1500, n, m) for seed in range(60)]
    found = [training_error([refit], m) for refit, _ in refits]
    assert all(error is not None and error.beyond_rows == 0.0 for error in found)
    parameters = D + D * (D + 1) / 2
    stated = sum(error.stderr**2 for error in found if error is not None) / len(found)
    assert stated == pytest.approx(parameters / (n * m), rel=0.25)
    # The number of parameters says the same without a refit.
    assert error_of_parameters(parameters / (2 * n), m).stderr ** 2 == pytest.approx(parameters / (n * m))
    # What really happens when one set of images is scored by fits to many others.
    held_out = draws(m, 1001)
    means = [float(GaussianDensity().fit(draws(n, 2000 + seed)).log_prob(held_out).mean()) for seed in range(60)]
    # 60 draws know the variance to 18 %, and this one set of held-out images has its own score.
    assert float(torch.tensor(means).var()) == pytest.approx(stated, rel=0.6)


def test_the_limit_is_what_infinitely_many_images_give() -> None:
    """At n = 1, the law that the change of a fit with a fixed number of parameters follows, and at the slower one."""
    n_fewer, n_all = 900, 1200
    gains = [
        (refit.variance_factor * float(refit.change.mean()), loss)
        for refit, loss in (refit_of(seed, n_fewer, n_all, 400) for seed in range(60))
    ]
    found, loss = (torch.tensor(values, dtype=torch.float64) for values in zip(*gains, strict=True))
    known = held_out_bias_nats(n_all, D)
    deviation = float(found.std()) / math.sqrt(len(found))
    # The law of one over n leaves out the next order, p / n of it.
    assert abs(float(found.mean()) - known) < 4.0 * deviation + 0.15 * known
    assert float(loss.mean()) == pytest.approx(known, rel=0.1)
    # Where the loss is a n^-3/4, its change from 900 to 1200 tells that of 1200.
    loss_of = [3.0 * n**-0.75 for n in (n_fewer, n_all)]
    refit = Refit(torch.full((4,), loss_of[0] - loss_of[1]), torch.arange(4), n_all, n_fewer)
    assert refit.to_the_limit * float(refit.change.mean()) == pytest.approx(loss_of[1], rel=1e-6)


def test_folds_that_jump_add_to_the_error() -> None:
    generator = torch.Generator().manual_seed(0)
    calm = [
        Refit(0.1 * torch.randn(200, dtype=torch.float64, generator=generator), torch.arange(200), 800, 600)
        for _ in range(5)
    ]
    jumping = [
        refit._replace(change=refit.change + jump)
        for refit, jump in zip(calm, (0.5, -0.5, 0.4, -0.6, 0.1), strict=True)
    ]
    steady, moved = training_error(calm, 1000), training_error(jumping, 1000)
    assert steady is not None
    assert moved is not None
    assert moved.beyond_rows > 10.0 * steady.beyond_rows
    # The mean of five folds that move by 0.48, three times as much at the limit's variance.
    assert moved.beyond_rows == pytest.approx(math.sqrt(3.0) * 0.497 / math.sqrt(5.0), rel=0.1)
    assert moved.stderr > moved.beyond_rows
    assert training_error([], 10) is None


def test_images_of_a_group_vary_together() -> None:
    change = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).repeat_interleave(4)
    together = training_error([Refit(change, torch.arange(50).repeat_interleave(4), 800, 600)], 1000)
    apart = training_error([Refit(change, torch.arange(200), 800, 600)], 1000)
    assert together is not None
    assert apart is not None
    assert together.stderr == pytest.approx(2.0 * apart.stderr, rel=0.02)


def test_an_estimate_lists_where_its_error_comes_from() -> None:
    rng = torch.Generator().manual_seed(0)
    mean = 100.0 + 5.0 * torch.randn(800, 3, 3, dtype=torch.float64, generator=rng)
    measured = PoissonNoise().sample(mean, rng).double()
    found = estimate_information(measured, PoissonNoise(), generator=rng)
    parts = found.stderr_parts_bits
    assert parts is not None
    assert parts.test_sampling_bits is not None
    assert parts.conditional_entropy_bits is not None
    assert parts.training_bits is not None
    assert found.stderr_bits is not None
    assert 0.0 < parts.training_bits < found.stderr_bits
    assert found.to_dict()["stderr_parts_bits"]["training_bits"] == parts.training_bits
    # Gaussian noise of one size has one entropy, whatever the scene.
    gaussian = estimate_information(measured, GaussianNoise(10.0), method="gaussian", generator=rng)
    assert gaussian.stderr_parts_bits is not None
    assert gaussian.stderr_parts_bits.conditional_entropy_bits == pytest.approx(0.0, abs=1e-9)
    assert gaussian.stderr_parts_bits.test_sampling_bits == pytest.approx(gaussian.stderr_bits, rel=1e-9)
    # Scores of a known channel fit nothing.
    known = estimate_information(measured, PoissonNoise(), mean=mean, method="known_channel", generator=rng)
    assert known.stderr_parts_bits is not None
    assert known.stderr_parts_bits.training_bits is None


def test_scores_alone_have_nothing_to_extrapolate() -> None:
    mean = torch.rand(40, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="n_extrapolate: method 'known_channel' fits nothing"):
        estimate_information(mean, GaussianNoise(0.1), mean=mean, method="known_channel", n_extrapolate=1)


@pytest.mark.slow
def test_a_thousand_and_four_thousand_patches_of_photographs_agree() -> None:
    noise = bitlens.PoissonGaussianNoise(read_std=2.0)
    differences = []
    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        scenes = scene_patches(4000, 12, generator=rng).scenes[:, 0].double()
        measured = noise.sample(200.0 * scenes[torch.randperm(4000, generator=rng)], rng).double()
        whole = estimate_information(measured, noise, generator=rng).bits_per_pixel
        parts = [estimate_information(part, noise, generator=rng).bits_per_pixel for part in measured.chunk(4)]
        differences.append(sum(parts) / 4 - whole)
    assert abs(sum(differences) / 3) < 0.02
