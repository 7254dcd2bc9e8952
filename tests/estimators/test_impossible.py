"""What no channel can give is said in words: wrong units, shuffled pairs, a noise model with too much noise."""

from __future__ import annotations

import pytest
import torch

from bitlens import GaussianNoise, PoissonGaussianNoise, PoissonNoise, estimate_information
from bitlens.estimators import InformationEstimate


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def warned(result: InformationEstimate, words: str) -> bool:
    return any(words in warning and "not to be trusted" in warning for warning in result.warnings)


@pytest.mark.parametrize("method", ["auto", "gaussian", "known_channel"])
@pytest.mark.parametrize("mistake", ["unit", "order"])
def test_a_mean_that_does_not_belong_to_the_images(mistake: str, method: str) -> None:
    noise = PoissonGaussianNoise(read_std=2.0)
    mean = 20 + 200 * torch.rand(300, 2, 2, generator=generator(), dtype=torch.float64)
    measured = noise.sample(mean, generator(1))
    wrong = 10 * mean if mistake == "unit" else mean.flip(0)
    assert warned(
        estimate_information(measured, noise, mean=wrong, method=method, generator=generator()), "does not follow"
    )
    right = estimate_information(measured, noise, mean=mean, method=method, generator=generator())
    assert not any("not to be trusted" in warning for warning in right.warnings)


def test_bounds_that_cross() -> None:
    noise = GaussianNoise(1.0)
    mean = 3 * torch.randn(400, 2, 2, generator=generator(), dtype=torch.float64)
    result = estimate_information(noise.sample(mean, generator(1)), noise, mean=mean.flip(0), generator=generator())
    assert warned(result, "does not follow")


def test_more_noise_in_the_model_than_in_the_images() -> None:
    measured = torch.randn(500, 3, 3, generator=generator(), dtype=torch.float64)
    assert warned(estimate_information(measured, GaussianNoise(10.0), generator=generator()), "comes out negative")
    constant = torch.ones(100, 3, 3, dtype=torch.float64)
    assert warned(estimate_information(constant, PoissonNoise(), generator=generator()), "comes out negative")


def test_pure_noise_is_not_called_impossible() -> None:
    for seed in range(20):
        measured = torch.randn(300, 3, 3, generator=generator(seed), dtype=torch.float64)
        result = estimate_information(measured, GaussianNoise(1.0), generator=generator(seed))
        assert not any("not to be trusted" in warning for warning in result.warnings)


def test_values_at_the_ends_of_the_scale_are_a_warning() -> None:
    draws = generator(3)
    mean = 100 * torch.rand(600, 1, generator=draws, dtype=torch.float64)
    for bits, warned in ((6, True), (9, False)):
        noise = PoissonGaussianNoise(1.0, 10.0, read_std=1.5, adc_bits=bits)
        measured = noise.sample(mean, draws)
        blind = estimate_information(measured, noise, generator=draws)
        assert any("end of the sensor's scale" in text for text in blind.warnings) == warned
        # The likelihood knows of the clipping: nothing to warn of.
        known = estimate_information(measured, noise, mean=mean, generator=draws)
        assert known.bound == "two-sided"
        assert not any("end of the sensor's scale" in text for text in known.warnings)
    full = PoissonGaussianNoise(1.0, 10.0, read_std=1.5, full_well_electrons=60.0)
    assert any("end of the" in t for t in estimate_information(full.sample(mean, draws), full).warnings)
