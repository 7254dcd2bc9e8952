"""Autoregressive network density: a density, causal, equal to a loop over pixels, near the truth of known laws."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from bitlens.densities import GaussianDensity, StationaryGaussianDensity
from bitlens.densities.autoregressive import AutoregressiveDensity

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = AutoregressiveDensity(width=8, n_blocks=1, n_components=3, max_passes=3)


def counts(n: int, shape: tuple[int, ...], seed: int, mean: float = 2.0) -> Tensor:
    """Poisson counts of a positive random field with neighbours that share half of their intensity."""
    generator = torch.Generator().manual_seed(seed)
    intensity = torch.empty(n, *shape, dtype=torch.float64).exponential_(1.0, generator=generator)
    intensity = mean * 0.5 * (intensity + intensity.roll(1, -1))
    return torch.poisson(intensity, generator=generator)


def gamma_poisson(n: int, shape: tuple[int, ...], mean: float, seed: int) -> Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.poisson(random.gamma(4.0, mean / 4.0, (n, *shape))).astype(np.float64))


def negative_binomial_entropy_nats(mean: float) -> float:
    """Entropy of a Poisson count whose intensity follows a gamma law of shape 4: by summation."""
    log_p = stats.nbinom.logpmf(np.arange(int(40 * mean + 200)), 4, 4 / (4 + mean))
    return float(-(np.exp(log_p) * log_p).sum())


def gaussian_field(n: int, size: int, seed: int) -> tuple[Tensor, float]:
    """Images of correlation exp(-distance / 3) and white noise of variance 0.1; their entropy in nats."""
    row, column = torch.arange(size).repeat_interleave(size).double(), torch.arange(size).repeat(size).double()
    distance = torch.hypot(row[:, None] - row, column[:, None] - column)
    covariance = torch.exp(-distance / 3) + 0.1 * torch.eye(size**2, dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(torch.zeros(size**2, dtype=torch.float64), covariance)
    white = torch.randn(n, size**2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (white @ torch.linalg.cholesky(covariance).mT).reshape(n, size, size), float(law.entropy())


def scrambled(density: AutoregressiveDensity) -> AutoregressiveDensity:
    """With random last layers: the start of a fit, where the network gives nothing, would pass any test of it."""
    assert density.parameters is not None
    generator = torch.Generator().manual_seed(4)
    parameters = {
        name: value + 0.3 * torch.randn(value.shape, generator=generator) if "out_weight" in name else value
        for name, value in density.parameters.items()
    }
    return dataclasses.replace(density, parameters=parameters)


def all_images(values: range, shape: tuple[int, ...]) -> Tensor:
    levels = torch.tensor(list(values), dtype=torch.float64)
    return torch.cartesian_prod(*[levels] * math.prod(shape)).reshape(-1, *shape)


@pytest.mark.parametrize("shape", [(2, 2), (2, 1, 2), (1, 3)])
def test_probabilities_of_all_images_sum_to_one(shape: tuple[int, ...]) -> None:
    density = scrambled(dataclasses.replace(SMALL, limits=(0.0, 2.0)).fit(counts(200, shape, 0).clamp_max(2)))
    total = density.log_prob(all_images(range(3), shape)).logsumexp(0)
    assert float(total) == pytest.approx(0.0, abs=1e-12)


def test_counts_without_an_upper_limit_sum_to_one() -> None:
    density = SMALL.fit(counts(200, (1, 2), 1))
    assert density.is_discrete
    log_prob = density.log_prob(all_images(range(150), (1, 2)))
    assert float(log_prob.logsumexp(0)) == pytest.approx(0.0, abs=1e-9)
    assert bool((log_prob[:3] < 0).all())
    assert bool(torch.isneginf(density.log_prob(torch.tensor([[[-1.0, 1.0]]]))).all())


def test_integers_of_both_signs_have_no_end() -> None:
    density = SMALL.fit(counts(200, (1, 2), 1) - 2.0)
    log_prob = density.log_prob(all_images(range(-100, 150), (1, 2)))
    assert float(log_prob.logsumexp(0)) == pytest.approx(0.0, abs=1e-9)
    assert float(log_prob.reshape(250, 250)[:98].exp().sum()) > 1e-12


def test_density_of_continuous_images_integrates_to_one() -> None:
    images, _ = gaussian_field(400, 2, 3)
    density = scrambled(SMALL.fit(images[:, :1]))
    assert not density.is_discrete
    axis = torch.linspace(-30, 30, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).reshape(-1, 1, 2)
    integral = density.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(integral) == pytest.approx(1.0, abs=1e-5)


def slow_log_prob(density: AutoregressiveDensity, image: Tensor) -> float:
    """Pixel by pixel from what precedes it alone: everything else is replaced by zeros; mixtures by scipy."""
    channels, rows, columns = image.shape
    total = 0.0
    for row in range(rows):
        for column in range(columns):
            for channel in range(channels):
                seen = torch.zeros_like(image)
                seen[:, :row] = image[:, :row]
                seen[:, row, :column] = image[:, row, :column]
                seen[:channel, row, column] = image[:channel, row, column]
                law = density.conditionals(seen[None])
                place = (0, channel, row, column)
                weight, location, scale = (part[place].numpy() for part in law)
                value = float(image[channel, row, column])
                if density.is_discrete:
                    upper, lower = (stats.logistic.cdf(value + half, location, scale) for half in (0.5, -0.5))
                    lower = np.where(value <= 0.0, 0.0, lower)
                    total += math.log(float((weight * (upper - lower)).sum()))
                else:
                    total += math.log(float((weight * stats.logistic.pdf(value, location, scale)).sum()))
    return total


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_log_prob_is_that_of_a_loop_over_pixels(discrete: bool, channels: int) -> None:
    images = counts(120, (channels, 4, 5), 5, mean=6.0)
    if not discrete:
        images = images + torch.rand(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    density = scrambled(SMALL.fit(images))
    fast = density.log_prob(images[:3])
    slow = [slow_log_prob(density, image) for image in images[:3]]
    np.testing.assert_allclose(fast.numpy(), slow, rtol=1e-9)


def test_a_later_pixel_leaves_earlier_conditionals_alone() -> None:
    images = counts(100, (2, 5, 6), 6)
    density = scrambled(dataclasses.replace(SMALL, n_blocks=2).fit(images))
    before = density.conditionals(images[:4])
    changed = images[:4].clone()
    changed[:, 1, 2, 3] += 7.0
    order = torch.arange(60).reshape(5, 6, 2).permute(2, 0, 1)
    until = order <= order[1, 2, 3]
    for one, other in zip(before, density.conditionals(changed), strict=True):
        assert torch.equal(one[:, until], other[:, until])
        assert not torch.equal(one[:, ~until], other[:, ~until])


def test_independent_counts_are_within_a_hundredth_of_a_bit_of_truth() -> None:
    train, test = gamma_poisson(2000, (6, 6), 100.0, 0), gamma_poisson(2000, (6, 6), 100.0, 1)
    density = AutoregressiveDensity().fit(train)
    truth = stats.nbinom.logpmf(test.numpy(), 4, 4 / 104).sum((1, 2))
    excess = (truth - density.log_prob(test).numpy()).mean() / 36 / math.log(2)
    assert 0.0 < excess < 0.01
    assert density.converged


def test_few_photons_are_near_the_truth() -> None:
    test = gamma_poisson(4000, (4, 4), 1.0, 1)
    density = AutoregressiveDensity().fit(gamma_poisson(2000, (4, 4), 1.0, 0))
    cross_entropy = -density.log_prob(test) / 16
    excess = float(cross_entropy.mean()) - negative_binomial_entropy_nats(1.0)
    assert abs(excess) < 0.01 + 4 * float(cross_entropy.std()) / math.sqrt(4000)


def test_a_gaussian_field_costs_little_more_than_its_entropy() -> None:
    train, entropy = gaussian_field(1500, 8, 0)
    test, _ = gaussian_field(4000, 8, 1)
    density = AutoregressiveDensity().fit(train)
    cross_entropy = -density.log_prob(test)
    stderr = float(cross_entropy.std()) / math.sqrt(4000)
    assert -4 * stderr < float(cross_entropy.mean()) - entropy < 0.02 * math.log(2) * 64 + 4 * stderr


def test_the_network_learns_what_no_gaussian_can() -> None:
    """White images, each with a contrast of 0.2 or 2: the past tells which; truth by the mixture of both laws."""
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> Tensor:
        contrast = torch.where(torch.rand(n, 1, 1, generator=generator) < 0.5, 0.2, 2.0).double()
        return contrast * torch.randn(n, 6, 6, generator=generator, dtype=torch.float64)

    train, test = draw(1500), draw(1500)
    one, other = (
        torch.distributions.Normal(0.0, torch.tensor(contrast, dtype=torch.float64)).log_prob(test).sum((1, 2))
        for contrast in (0.2, 2.0)
    )
    truth = torch.logaddexp(one, other) - math.log(2.0)
    excess = float((truth - AutoregressiveDensity().fit(train).log_prob(test)).mean()) / 36
    gaussian = float((truth - GaussianDensity().fit(train).log_prob(test)).mean()) / 36
    assert gaussian > 0.3
    assert 0.0 < excess < 0.06


def test_channels_know_each_other() -> None:
    """The second channel repeats the first with a sign that the pixel before decides: 1 bit less than apart."""
    generator = torch.Generator().manual_seed(3)

    def draw(n: int) -> Tensor:
        first = torch.randn(n, 4, 4, generator=generator, dtype=torch.float64)
        noise = 0.3 * torch.randn(n, 4, 4, generator=generator, dtype=torch.float64)
        return torch.stack([first, first.abs() + noise], 1)

    train, test = draw(1500), draw(1500)
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    truth = normal.log_prob(test[:, 0]) + normal.log_prob((test[:, 1] - test[:, 0].abs()) / 0.3) - math.log(0.3)
    density = AutoregressiveDensity(max_passes=30).fit(train)
    stationary = StationaryGaussianDensity().fit(train)
    excess, gaussian = (float((truth.sum((1, 2)) - d.log_prob(test)).mean()) / 32 for d in (density, stationary))
    assert gaussian > 0.3
    assert 0.0 < excess < 0.1


def test_samples_have_the_statistics_of_the_images() -> None:
    images = counts(3000, (5, 5), 8, mean=5.0)
    density = AutoregressiveDensity(width=16, n_blocks=1).fit(images)
    drawn = density.sample(3000, torch.Generator().manual_seed(1))
    assert drawn.shape == (3000, 5, 5)
    assert drawn.dtype == torch.float64
    assert bool((drawn == drawn.round()).all())
    assert bool((drawn >= 0).all())

    def moments(z: Tensor) -> Tensor:
        z = z - 5.0
        rows = [z, z**2, (z + 5.0 == 0).double(), z * z.roll(1, -1), z * z.roll(1, -2)]
        return torch.stack([row.flatten(1).mean(1) for row in rows])

    seen, expected = moments(drawn), moments(images)
    error = ((seen.var(1) + expected.var(1)) / 3000).sqrt()
    # The fit itself is off by a little more than noise.
    assert bool(((seen.mean(1) - expected.mean(1)).abs() < 6 * error).all())


def test_cross_entropy_of_own_samples_is_the_entropy_that_follows_from_the_conditionals() -> None:
    density = scrambled(dataclasses.replace(SMALL, limits=(0.0, 2.0)).fit(counts(300, (2, 1, 2), 9).clamp_max(2)))
    log_prob = density.log_prob(all_images(range(3), (2, 1, 2)))
    entropy = -float((log_prob.exp() * log_prob).sum())
    own = density.log_prob(density.sample(4000, torch.Generator().manual_seed(0)))
    assert float(-own.mean()) == pytest.approx(entropy, abs=4 * float(own.std()) / math.sqrt(4000))


def test_one_seed_gives_one_fit_bit_for_bit() -> None:
    images = counts(150, (4, 4), 10)
    before = torch.get_rng_state()
    first, second = SMALL.fit(images), SMALL.fit(images.numpy())
    assert torch.equal(before, torch.get_rng_state())
    assert first.parameters is not None
    assert second.parameters is not None
    for name, value in first.parameters.items():
        assert torch.equal(value, second.parameters[name]), name
    given = SMALL.fit(images, generator=torch.Generator().manual_seed(7))
    again = SMALL.fit(images, generator=torch.Generator().manual_seed(7))
    assert torch.equal(given.log_prob(images), again.log_prob(images))
    assert not torch.equal(given.log_prob(images), first.log_prob(images))
    draws = [given.sample(5, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)


def test_fits_where_gradients_are_off_and_leaves_no_graph() -> None:
    with torch.no_grad():
        density = SMALL.fit(counts(60, (3, 3), 11))
    assert density.parameters is not None
    assert not any(value.requires_grad for value in density.parameters.values())
    assert not density.log_prob(counts(60, (3, 3), 11)).requires_grad


def test_units_only_shift_a_continuous_density() -> None:
    images, _ = gaussian_field(300, 4, 12)
    plain, scaled = SMALL.fit(images), SMALL.fit(1000.0 * images + 5000.0)
    difference = plain.log_prob(images) - scaled.log_prob(1000.0 * images + 5000.0)
    assert float(difference.mean()) == pytest.approx(16 * math.log(1000.0), abs=0.05)


def test_fitted_state_is_numbers_and_tensors() -> None:
    density = SMALL.fit(counts(60, (3, 3), 13))
    for entry in dataclasses.fields(density):
        value = getattr(density, entry.name)
        values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
        assert all(isinstance(v, int | float | str | Tensor | None) for v in values), entry.name
    rebuilt = type(density)(**{f.name: getattr(density, f.name) for f in dataclasses.fields(density)})
    images = counts(5, (3, 3), 14)
    assert torch.equal(rebuilt.log_prob(images), density.log_prob(images))
    with pytest.raises(dataclasses.FrozenInstanceError):
        density.width = 3  # type: ignore[misc]


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (9, 1)])
def test_any_image_size_has_finite_densities(size: tuple[int, int]) -> None:
    images = counts(40, size, 15)
    assert bool(torch.isfinite(SMALL.fit(images).log_prob(images)).all())


@pytest.mark.parametrize(
    ("change", "measured", "match"),
    [
        ({}, torch.zeros(40, 4), "row, column"),
        ({}, torch.rand(5, 4, 4), "at least 10 images"),
        ({}, torch.ones(20, 4, 4), "vary"),
        ({}, torch.full((20, 4, 4), math.nan), "finite"),
        ({"discrete": True}, torch.rand(40, 4, 4), "whole numbers"),
        ({"limits": (0.0, 3.0)}, 5.0 + counts(40, (4, 4), 0), "limits"),
        ({"limits": (0.0, 3.0)}, torch.rand(40, 4, 4), "limits"),
    ],
)
def test_bad_images_are_named(change: dict[str, object], measured: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(SMALL, **change).fit(measured)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"width": 0}, ValueError),
        ({"n_blocks": -1}, ValueError),
        ({"n_components": 2.5}, TypeError),
        ({"max_passes": 0}, ValueError),
        ({"learning_rate": 0.0}, ValueError),
        ({"validation_fraction": 1.0}, ValueError),
        ({"limits": (3.0, 0.0)}, ValueError),
        ({"limits": (0.5, 3.0)}, ValueError),
    ],
)
def test_bad_settings_are_named(change: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(change))):
        AutoregressiveDensity(**change)  # type: ignore[arg-type]


def test_use_before_fit_and_other_shapes_are_refused() -> None:
    with pytest.raises(RuntimeError, match="call fit first"):
        AutoregressiveDensity().log_prob(torch.rand(3, 2, 2))
    with pytest.raises(RuntimeError, match="call fit first"):
        AutoregressiveDensity().sample(3)
    density = SMALL.fit(counts(60, (3, 3), 0))
    with pytest.raises(ValueError, match="shape"):
        density.log_prob(torch.ones(5, 3, 4))
    with pytest.raises(ValueError, match="whole numbers"):
        density.log_prob(torch.rand(5, 3, 3))
    with pytest.raises(TypeError, match="generator"):
        SMALL.fit(counts(60, (3, 3), 0), generator=3)  # type: ignore[arg-type]
