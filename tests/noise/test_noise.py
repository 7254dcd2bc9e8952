"""Noise models: one list, every contract over it; entropies and their estimate from noisy data against truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bitlens
from bitlens import ops
from bitlens.noise import (
    GaussianNoise,
    NoiseModel,
    PoissonGaussianNoise,
    PoissonNoise,
    conditional_entropy,
    conditional_entropy_per_sample,
)

MODELS: dict[str, NoiseModel] = {
    "gaussian": GaussianNoise(1.7),
    "poisson": PoissonNoise(),
    "poisson_gaussian": PoissonGaussianNoise(gain=1.6, offset=12.0, read_std=2.4),
    "quiet": PoissonGaussianNoise(gain=2.0, offset=-3.0, read_std=0.3),
}
MEANS = (0.0, 0.05, 0.7, 3.0, 20.0, 150.0)


def support(noise: NoiseModel, mean: float) -> tuple[Tensor, float]:
    """Measured values that carry all the probability, and the weight of each."""
    if noise.discrete:
        return torch.arange(0, mean + 14 * math.sqrt(mean) + 30, dtype=torch.float64), 1.0
    y = torch.tensor(mean, dtype=torch.float64)
    centre, spread = float(noise.expected(y)), math.sqrt(float(noise.variance(y)))
    gain = float(getattr(noise, "gain", torch.tensor(1.0)))
    step = min(spread, float(getattr(noise, "read_std", torch.tensor(spread)))) / 8
    z = torch.arange(centre - 12 * spread - 6 * gain, centre + 12 * spread + 25 * gain, step, dtype=torch.float64)
    return z, step


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("name", MODELS)
def test_probabilities_sum_to_one_and_have_the_stated_moments(name: str, mean: float) -> None:
    noise = MODELS[name]
    z, weight = support(noise, mean)
    y = torch.tensor(mean, dtype=torch.float64)
    p = torch.exp(noise.log_prob(z, y)) * weight
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-9)
    assert float((p * z).sum()) == pytest.approx(float(noise.expected(y)), rel=1e-8, abs=1e-8)
    variance = float((p * (z - noise.expected(y)) ** 2).sum())
    assert variance == pytest.approx(float(noise.variance(y)), rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("name", MODELS)
def test_entropy_is_the_sum_over_the_distribution(name: str, mean: float) -> None:
    noise = MODELS[name]
    z, weight = support(noise, mean)
    log_p = noise.log_prob(z, torch.tensor(mean, dtype=torch.float64))
    p = torch.exp(log_p)
    truth = -float((p * torch.where(p > 0, log_p, 0.0)).sum()) * weight
    assert float(noise.entropy(torch.tensor(mean, dtype=torch.float64))) == pytest.approx(truth, abs=2e-6)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("name", MODELS)
def test_samples_have_the_stated_moments(name: str, mean: float) -> None:
    noise = MODELS[name]
    y = torch.full((200_000,), mean, dtype=torch.float64)
    z = noise.sample(y, generator=torch.Generator().manual_seed(4))
    noise.check_measured(z)
    expected, variance = noise.expected(y), noise.variance(y)
    if float(variance[0]) == 0:
        assert bool((z == 0).all())
        return
    standard = (z - expected) / torch.sqrt(variance)
    assert abs(float(standard.mean())) < 5 / math.sqrt(z.numel())
    fourth = float((standard**4).mean()) - 1
    assert abs(float((standard**2).mean()) - 1) < 5 * math.sqrt(fourth / z.numel())


@pytest.mark.parametrize("name", MODELS)
def test_same_seed_same_samples(name: str) -> None:
    y = torch.linspace(0, 30, 500)
    one, two, three = (MODELS[name].sample(y, generator=torch.Generator().manual_seed(s)) for s in (7, 7, 8))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert one.dtype == y.dtype


@pytest.mark.parametrize("name", MODELS)
def test_entropy_derivative(name: str) -> None:
    mean = torch.tensor([0.03, 0.4, 2.0, 7.7, 42.0, 99.5, 101.0, 5e3], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(MODELS[name].entropy(mean).sum() + 0 * mean.sum(), mean)
    step = 1e-4 * mean.detach()
    with torch.no_grad():
        numerical = (MODELS[name].entropy(mean + step) - MODELS[name].entropy(mean - step)) / (2 * step)
    torch.testing.assert_close(slope, numerical, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.05, 0.12, 0.2, 0.31, 0.6, 1.0, 3.0, 9.0, 20.0])
def test_entropy_of_a_real_sensor_by_quadrature(sigma: float) -> None:
    """One read noise to 1e-5 nats, a map of them to 1e-4, from no light to where the expansion takes over."""
    means = torch.tensor([0.0, 1e-4, 0.01, 0.3, 1.0, 4.0, 25.0, 98.0, 103.0, 1e3], dtype=torch.float64)
    truth = []
    for mean in means.tolist():
        spread = math.sqrt(mean + sigma**2)
        step = sigma / 9
        z = torch.arange(mean - 10 * spread - 3, mean + 10 * spread + 15, step, dtype=torch.float64)
        log_p = ops.poisson_gaussian_log_prob(z, mean, read_std=sigma)
        truth.append(-float((torch.exp(log_p) * log_p.clamp(min=-700)).sum()) * step)
    one = PoissonGaussianNoise(read_std=sigma).entropy(means)
    per_pixel = PoissonGaussianNoise(read_std=torch.full((means.numel(),), sigma).double()).entropy(means)
    exact = torch.tensor(truth, dtype=torch.float64)
    assert float((one - exact).abs().max()) < 1e-5
    assert float((per_pixel - exact).abs().max()) < 1e-4


def test_poisson_entropy_by_summation() -> None:
    for mean in (1e-6, 1e-3, 0.1, 1.0, 10.0, 99.0, 101.0, 2e3, 1e5, 1e6):
        low = max(0, math.floor(mean - 12 * math.sqrt(mean) - 5))
        k = torch.arange(low, mean + 12 * math.sqrt(mean) + 40, dtype=torch.float64)
        log_p = k * math.log(mean) - mean - torch.lgamma(k + 1)
        truth = -float((torch.exp(log_p) * log_p).sum())
        value = float(PoissonNoise().entropy(torch.tensor(mean, dtype=torch.float64)))
        assert value == pytest.approx(truth, abs=4e-6)


def test_gain_and_read_noise_can_be_optimised() -> None:
    """The entropy's derivative in gain and read noise agrees with finite differences."""
    y = torch.linspace(0.5, 40, 9, dtype=torch.float64)
    gain = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))
    read_std = nn.Parameter(torch.tensor(2.1, dtype=torch.float64))
    noise = PoissonGaussianNoise(gain=gain, read_std=read_std)
    assert {name for name, _ in noise.named_parameters()} == {"gain", "read_std"}
    slopes = torch.autograd.grad(noise.entropy(y).sum(), [gain, read_std])

    def total(g: float, s: float) -> float:
        return float(PoissonGaussianNoise(gain=g, read_std=s).entropy(y).sum())

    assert float(slopes[0]) == pytest.approx((total(1.3005, 2.1) - total(1.2995, 2.1)) / 1e-3, abs=1e-3)
    assert float(slopes[1]) == pytest.approx((total(1.3, 2.1005) - total(1.3, 2.0995)) / 1e-3, abs=1e-3)


def test_per_pixel_maps() -> None:
    gain = torch.tensor([[1.0, 2.0], [0.5, 1.5]])
    noise = PoissonGaussianNoise(gain=gain, offset=np.array([[0.0, 1.0], [2.0, 3.0]]), read_std=1.2)
    mean = torch.full((3, 1, 2, 2), 8.0, dtype=torch.float64)
    z = noise.sample(mean, generator=torch.Generator().manual_seed(0))
    value = noise.log_prob(z, mean)
    for row in range(2):
        for column in range(2):
            pixel = PoissonGaussianNoise(float(gain[row, column]), 2.0 * row + column, read_std=1.2)
            torch.testing.assert_close(
                value[..., row, column], pixel.log_prob(z[..., row, column], mean[..., row, column])
            )


@pytest.mark.parametrize("name", MODELS)
def test_score_features_are_all_pairs(name: str) -> None:
    """Gaussian and Poisson: every log-likelihood exactly. Poisson-Gaussian: the surrogate they name."""
    noise = MODELS[name]
    generator = torch.Generator().manual_seed(1)
    mean = 5 + 40 * torch.rand(6, 1, 3, 2, generator=generator, dtype=torch.float64)
    measured = noise.sample(mean[:4], generator=generator)
    features = noise.score_features(measured, mean)
    scores = features.query @ features.key.T + features.query_bias[:, None] + features.key_bias
    pairs_z, pairs_y = measured[:, None], mean[None]
    if features.exact:
        truth = noise.log_prob(pairs_z, pairs_y)
    else:
        variance = noise.variance(pairs_y)
        truth = -0.5 * ((pairs_z - noise.expected(pairs_y)) ** 2 / variance + torch.log(2 * math.pi * variance))
    assert features.exact == (name in ("gaussian", "poisson"))
    torch.testing.assert_close(scores, truth.flatten(2).sum(-1), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.0, 0.2, 0.5, 1.0, 3.0, 8.0])
def test_conditional_entropy_function_is_almost_unbiased(sigma: float) -> None:
    """Expectation of g over the exact distribution against the exact entropy, on a fine grid across the stitch."""
    means = torch.cat([torch.zeros(1), torch.logspace(-3, 2.7, 160)]).double()
    step = 1.0 if sigma == 0 else min(sigma, 1.0) / 8
    z = torch.arange(0 if sigma == 0 else -9 * sigma, 760, step, dtype=torch.float64)
    noise: NoiseModel = PoissonNoise() if sigma == 0 else PoissonGaussianNoise(read_std=sigma)
    g = conditional_entropy_per_sample(noise, z[:, None])
    p = torch.exp(noise.log_prob(z, means[:, None])) * step
    bias = ((p * g).sum(1) - noise.entropy(means)).abs()
    spread = torch.sqrt((p * g**2).sum(1) - (p * g).sum(1) ** 2)
    assert float(bias[means >= 5].max()) < 0.002
    assert float(bias[means >= 0.1].max()) < 0.02
    assert float(bias.max()) < 0.07
    assert float(spread.max()) < 2.0


def test_read_noise_maps_use_the_function_of_each_pixel() -> None:
    """A map of one read noise, between the nodes of the table, agrees with that read noise as a number."""
    z = torch.linspace(-2, 90, 400, dtype=torch.float64)[:, None].expand(400, 2)
    for sigma in (0.37, 0.8, 1.9, 6.1):
        number = conditional_entropy_per_sample(PoissonGaussianNoise(read_std=sigma), z)
        pair = PoissonGaussianNoise(read_std=torch.tensor([sigma, sigma * (1 + 1e-12)]))
        torch.testing.assert_close(conditional_entropy_per_sample(pair, z), number, rtol=0, atol=0.08)


def test_transforms_work_before_any_table_is_made() -> None:
    from bitlens.noise import _entropy

    _entropy._row.cache_clear()
    _entropy._grid.cache_clear()
    mean = torch.tensor([1.0, 5.0], dtype=torch.float64)
    noise = PoissonGaussianNoise(read_std=1.234)
    slope = torch.func.grad(lambda y: noise.entropy(y).sum())(mean)
    step = 1e-5
    truth = (noise.entropy(mean + step) - noise.entropy(mean - step)) / (2 * step)
    torch.testing.assert_close(slope, truth, rtol=1e-6, atol=1e-6)
    from bitlens.noise._entropy import poisson_gaussian_entropy

    sigma = torch.tensor(1.234, dtype=torch.float64)
    _, tangent = torch.func.jvp(lambda s: poisson_gaussian_entropy(mean, s).sum(), (sigma,), (torch.ones_like(sigma),))
    shifted = [poisson_gaussian_entropy(mean, sigma + sign * 1e-4).sum() for sign in (1, -1)]
    torch.testing.assert_close(tangent, (shifted[0] - shifted[1]) / 2e-4, rtol=1e-3, atol=1e-4)


def test_tables_do_not_depend_on_the_backend_that_asks_first() -> None:
    from bitlens.noise import _entropy

    mean = torch.linspace(0, 50, 200, dtype=torch.float64)
    results = []
    for name in ("numba", "cpu", "reference"):
        _entropy._row.cache_clear()
        with ops.use_backend(name):
            results.append(PoissonGaussianNoise(read_std=0.777).entropy(mean))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])


def test_conditional_entropy_of_images() -> None:
    """From noisy images alone within 5 standard errors and a small bias of the exact value, maps included."""
    generator = torch.Generator().manual_seed(3)
    mean = 2 + 30 * torch.rand(3000, 1, 4, 4, generator=generator, dtype=torch.float64)
    read_map = 1.0 + torch.rand(4, 4, generator=generator, dtype=torch.float64)
    for noise in (
        PoissonNoise(),
        PoissonGaussianNoise(1.4, 5.0, read_std=2.0),
        PoissonGaussianNoise(read_std=read_map),
    ):
        measured = noise.sample(mean, generator=generator)
        estimate = conditional_entropy(noise, measured)
        truth = conditional_entropy(noise, measured, mean=mean)
        assert truth.nats_per_pixel == pytest.approx(float(noise.entropy(mean).mean()), abs=1e-12)
        assert abs(estimate.nats_per_pixel - truth.nats_per_pixel) < 5 * estimate.stderr + 5e-4


def test_conditional_entropy_of_gaussian_noise_is_exact() -> None:
    estimate = conditional_entropy(GaussianNoise(2.0), np.zeros((3, 4, 4)))
    assert estimate.nats_per_pixel == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 4.0), abs=1e-12)
    assert estimate.stderr == 0.0


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: GaussianNoise(0.0), ValueError, ("std", "above 0", "0")),
        (lambda: GaussianNoise("1"), TypeError, ("std", "number", "str")),
        (lambda: PoissonGaussianNoise(gain=-1.0, read_std=1.0), ValueError, ("gain", "above 0", "-1")),
        (lambda: PoissonGaussianNoise(read_std=0.0), ValueError, ("read_std", "above 0")),
        (lambda: PoissonGaussianNoise(offset=math.nan, read_std=1.0), ValueError, ("offset", "finite")),
        (lambda: PoissonGaussianNoise(gain=np.zeros(0), read_std=1.0), ValueError, ("gain", "(0,)")),
        (lambda: conditional_entropy(PoissonNoise(), np.zeros((1, 2, 2))), ValueError, ("measured", "2 images")),
        (lambda: conditional_entropy(PoissonNoise(), np.zeros((0, 2))), ValueError, ("measured", "(0, 2)")),
        (
            lambda: conditional_entropy(PoissonNoise(), np.zeros((3, 2)), mean=np.zeros((3, 1))),
            ValueError,
            ("mean", "(3, 2)", "(3, 1)"),
        ),
        (lambda: conditional_entropy(PoissonNoise(), np.full((3, 2), 0.5)), ValueError, ("measured", "whole")),
        (
            lambda: conditional_entropy(PoissonGaussianNoise(read_std=1.0), np.full((3, 2), np.nan)),
            ValueError,
            ("measured", "NaN"),
        ),
        (lambda: PoissonNoise().check_measured(torch.tensor([0.5])), ValueError, ("measured", "whole")),
        (lambda: PoissonNoise().check_measured(torch.tensor([-1.0])), ValueError, ("measured", "-1")),
        (lambda: PoissonNoise().check_mean(torch.tensor([-1.0])), ValueError, ("mean", "-1")),
        (lambda: GaussianNoise(1.0).check_measured(torch.tensor([math.nan])), ValueError, ("measured", "NaN")),
    ],
)
def test_wrong_arguments(make, error: type[Exception], words: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        make()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", MODELS)
def test_arrays_and_whole_numbers_are_taken(name: str) -> None:
    noise = MODELS[name]
    mean = np.array([[3, 5], [7, 9]])
    measured = noise.sample(mean, generator=torch.Generator().manual_seed(0))
    assert measured.dtype == torch.get_default_dtype()
    torch.testing.assert_close(
        noise.log_prob(measured.numpy(), mean), noise.log_prob(measured, torch.as_tensor(mean).float())
    )
    torch.testing.assert_close(noise.entropy(mean.astype(np.float64)), noise.entropy(torch.as_tensor(mean).double()))


def test_a_map_of_another_shape_is_named() -> None:
    noise = PoissonGaussianNoise(gain=np.ones((4, 4)), read_std=1.0)
    images = np.ones((5, 3, 3))
    for call in (
        lambda: conditional_entropy(noise, images),
        lambda: noise.score_features(*[torch.as_tensor(images)] * 2),
    ):
        with pytest.raises(ValueError, match="gain") as caught:
            call()
        assert "(3, 3)" in str(caught.value)
        assert "(4, 4)" in str(caught.value)


def test_public_names() -> None:
    assert bitlens.PoissonGaussianNoise is PoissonGaussianNoise
    assert bitlens.GaussianNoise is GaussianNoise


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_and_complex_means_are_refused(name: str) -> None:
    for dtype in (torch.float16, torch.complex64):
        with pytest.raises(TypeError, match="mean: need float32"):
            MODELS[name].entropy(torch.ones(3, dtype=dtype))


def test_a_complex_parameter_is_refused() -> None:
    with pytest.raises(TypeError, match="gain: need a number"):
        PoissonGaussianNoise(gain=1 + 2j, read_std=1.0)


@pytest.mark.parametrize("name", MODELS)
def test_conditional_entropy_refuses_means_outside_the_domain(name: str) -> None:
    measured = MODELS[name].sample(torch.full((5, 3), 4.0, dtype=torch.float64))
    for bad in (-1.0, math.nan):
        if name.startswith("gaussian") and bad == -1.0:
            continue
        with pytest.raises(ValueError, match="mean: need"):
            conditional_entropy(MODELS[name], measured, mean=torch.full((5, 3), bad, dtype=torch.float64))


def test_conditional_entropy_needs_a_noise_model() -> None:
    with pytest.raises(TypeError, match="noise: need a noise model"):
        conditional_entropy(None, torch.ones(5, 3), mean=torch.ones(5, 3))  # type: ignore[arg-type]


def test_a_single_precision_parameter_joins_double_precision_images() -> None:
    mean = torch.linspace(1, 9, 5, dtype=torch.float64)
    noise = PoissonGaussianNoise(torch.nn.Parameter(torch.tensor(1.5)), 10.0, read_std=1.5)
    value = noise.log_prob(noise.sample(mean), mean)
    (slope,) = torch.autograd.grad(value.sum(), [noise.gain])
    assert value.dtype == torch.float64
    assert slope.dtype == torch.float32
    assert bool(torch.isfinite(slope))
