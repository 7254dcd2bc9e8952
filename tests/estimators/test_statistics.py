"""Standard errors, intervals and groups: what the numbers promise over many repetitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens import GaussianNoise, estimate_information

pytestmark = pytest.mark.usefixtures("one_thread")


def white_channel(n: int, shape: tuple[int, ...], seed: int, power: float = 4.0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    mean = math.sqrt(power) * torch.randn(n, *shape, generator=rng, dtype=torch.float64)
    return mean, GaussianNoise(1.0).sample(mean, rng)


def test_interval_of_the_gaussian_estimate_covers_truth() -> None:
    truth = 4 / 2 * math.log2(5.0)
    hits, errors = 0, []
    for seed in range(1000):
        _, measured = white_channel(200, (2, 2), seed)
        rng = torch.Generator().manual_seed(seed)
        result = estimate_information(measured, GaussianNoise(1.0), method="gaussian", generator=rng)
        assert result.confidence_interval_bits is not None
        low, high = result.confidence_interval_bits
        hits += low <= truth <= high
        errors.append(result.bits - truth)
    assert 926 <= hits <= 971
    assert abs(np.mean(errors)) < 4 * np.std(errors) / math.sqrt(1000)


@pytest.mark.parametrize("power", [0.5, 50.0])
def test_standard_error_of_the_known_channel_is_the_spread_over_repetitions(power: float) -> None:
    # Scenes are drawn anew too: the spread of the rows alone would be up to 1.6 times too small.
    truth = 0.5 * math.log2(1 + power)
    values, errors, hits = [], [], 0
    for seed in range(400):
        mean, measured = white_channel(128, (1,), seed, power)
        result = estimate_information(
            measured, GaussianNoise(1.0), mean=mean, method="known_channel", generator=torch.Generator()
        )
        assert result.stderr_bits is not None
        assert result.confidence_interval_bits is not None
        values.append(result.bits)
        errors.append(result.stderr_bits)
        low, high = result.confidence_interval_bits
        hits += low <= truth <= high
    # sd of 400: 3.5 %.
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.14)
    assert 364 <= hits <= 393


def test_bounds_miss_truth_on_their_own_side_seldom() -> None:
    truth = 4 / 2 * math.log2(5.0)
    lower, upper, below, above = [], [], 0, 0
    for seed in range(200):
        mean, measured = white_channel(200, (2, 2), seed)
        rng = torch.Generator().manual_seed(seed)
        result = estimate_information(measured, GaussianNoise(1.0), mean=mean, generator=rng)
        assert result.lower_bits is not None
        assert result.upper_bits is not None
        assert result.stderr_bits is not None
        lower.append(result.lower_bits)
        upper.append(result.upper_bits)
        below += result.lower_bits - 1.96 * result.stderr_bits > truth
        above += result.upper_bits + 1.96 * result.stderr_bits < truth
    assert below <= 13
    assert above <= 13
    assert np.mean(lower) <= truth + 4 * np.std(lower) / math.sqrt(200)
    assert np.mean(upper) >= truth - 4 * np.std(upper) / math.sqrt(200)


def test_wider_confidence_widens_the_interval() -> None:
    _, measured = white_channel(100, (2, 2), 0)
    widths = []
    for confidence in (0.5, 0.95, 0.999):
        rng = torch.Generator().manual_seed(0)
        result = estimate_information(measured, GaussianNoise(1.0), confidence=confidence, generator=rng)
        assert result.confidence_interval_bits is not None
        widths.append(result.confidence_interval_bits[1] - result.confidence_interval_bits[0])
    assert widths == sorted(widths)
    assert widths[2] > 2 * widths[1] * 0.8 > 0


def test_copies_of_an_image_in_one_group_do_not_shrink_the_error_or_raise_the_ceiling() -> None:
    mean, measured = white_channel(100, (2, 2), 0)
    groups = torch.arange(100)
    rng = torch.Generator().manual_seed(0)
    single = estimate_information(
        measured, GaussianNoise(1.0), mean=mean, groups=groups, method="known_channel", generator=rng
    )
    copied = estimate_information(
        measured.repeat(4, 1, 1),
        GaussianNoise(1.0),
        mean=mean.repeat(4, 1, 1),
        groups=groups.repeat(4),
        method="known_channel",
        generator=torch.Generator().manual_seed(0),
    )
    assert copied.n_samples == 400
    assert copied.bits == pytest.approx(single.bits, rel=1e-9)
    assert copied.stderr_bits == pytest.approx(single.stderr_bits, rel=1e-9)
    assert copied.ceiling_bits == pytest.approx(math.log2(100))
    assert copied.lower_bits == pytest.approx(single.lower_bits, rel=1e-9)
    assert copied.upper_bits == pytest.approx(single.upper_bits, rel=1e-9)


def test_lower_bound_stays_below_truth_when_scenes_of_a_group_are_alike() -> None:
    # 10 scenes, each measured 40 times: 400 are not independent, and counting them so breaks the bound.
    truth = 4 / 2 * math.log2(3.0)
    noise = GaussianNoise(1.0)
    labels = torch.arange(10).repeat_interleave(40)
    lower, counted_as_independent = [], []
    for seed in range(60):
        rng = torch.Generator().manual_seed(seed)
        scenes = math.sqrt(2.0) * torch.randn(10, 2, 2, generator=rng, dtype=torch.float64)
        mean = scenes.repeat_interleave(40, 0)
        measured = noise.sample(mean, rng)
        result = estimate_information(measured, noise, mean=mean, groups=labels, generator=rng)
        assert result.lower_bits is not None
        assert result.ceiling_bits == pytest.approx(math.log2(10))
        assert any("10 groups are few" in warning for warning in result.warnings)
        lower.append(result.lower_bits)
        scores = noise.log_prob(measured[:, None], mean[None]).sum((2, 3))
        outside = scores.masked_fill(labels[:, None] == labels, -math.inf)
        total = torch.logaddexp(scores.diagonal(), torch.logsumexp(outside, 1))
        counted_as_independent.append(float((scores.diagonal() - total).mean() + math.log(361)) / math.log(2))
    standard_error = np.std(lower) / math.sqrt(60)
    assert np.mean(lower) < truth + 4 * standard_error
    assert np.mean(counted_as_independent) > truth + 4 * standard_error


def test_groups_may_be_any_labels_in_any_order() -> None:
    mean, measured = white_channel(120, (2, 2), 0)
    numbers = np.arange(120) % 30
    words = np.array([f"image {number}" for number in numbers])
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    results = [
        estimate_information(
            measured, GaussianNoise(1.0), mean=mean, groups=labels, generator=torch.Generator().manual_seed(0)
        )
        for labels in (numbers, torch.from_numpy(numbers), list(numbers))
    ]
    assert results[0] == results[1] == results[2]
    named = estimate_information(
        measured, GaussianNoise(1.0), mean=mean, groups=words, generator=torch.Generator().manual_seed(0)
    )
    assert named.ceiling_bits == results[0].ceiling_bits
    shuffled = estimate_information(
        measured[order],
        GaussianNoise(1.0),
        mean=mean[order],
        groups=numbers[order.numpy()],
        method="known_channel",
        generator=torch.Generator().manual_seed(0),
    )
    plain = estimate_information(
        measured,
        GaussianNoise(1.0),
        mean=mean,
        groups=numbers,
        method="known_channel",
        generator=torch.Generator().manual_seed(0),
    )
    assert shuffled.lower_bits == pytest.approx(plain.lower_bits, rel=1e-12)


def test_standard_error_of_few_equal_groups_is_that_of_their_means() -> None:
    from bitlens.estimators._inputs import Groups

    rows = torch.randn(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(24) % 3
    groups = Groups(labels, 3, labels, 3, True)
    means = [float(rows[labels == group].mean()) for group in range(3)]
    assert groups.standard_error(rows) == pytest.approx(np.std(means, ddof=1) / math.sqrt(3), rel=1e-12)
