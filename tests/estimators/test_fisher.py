"""Fisher information: per pixel against plain sums, of parameters against closed forms and the best estimator."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats
from torch import Tensor, nn

from bitlens import GaussianNoise, PoissonGaussianNoise, PoissonNoise, ops
from bitlens.estimators import _fisher_pixel
from bitlens.estimators._fisher_pixel import information_per_pixel
from bitlens.estimators.fisher import fisher_information
from bitlens.noise import NoiseModel

pytestmark = pytest.mark.usefixtures("one_thread")
Array = NDArray[np.float64]


def per_pixel(noise: NoiseModel, *mean: float) -> Array:
    return information_per_pixel(noise, torch.tensor(mean, dtype=torch.float64)).numpy()


# ---- One pixel: plain sums over every count ----


def poisson_gaussian_truth(y: float, sigma: float, *, steps_per_sigma: float = 8.0, to_electrons: float = 0.0) -> float:
    """integral of (dp/dy)^2 / p over the output, p and dp/dy as plain sums over all counts that matter."""
    deviation = math.sqrt(y + sigma**2)
    step = min(deviation / 12, sigma / steps_per_sigma, max(sigma**2 / 3, sigma / 30))
    high = to_electrons or y + 14 * deviation + 16
    z = np.arange(max(y - 12 * deviation - 2, -12 * sigma), high + 12 * sigma, step)
    spread = 14 * math.sqrt(y)
    k = np.arange(max(0, math.floor(y - spread - 5)), math.ceil(to_electrons or y + spread + 40) + 1.0)
    log_weight = special.xlogy(k, y) - y - special.gammaln(k + 1)
    p, slope = np.zeros_like(z), np.zeros_like(z)
    for count, weight in zip(k, log_weight, strict=True):
        part = np.exp(weight - 0.5 * ((z - count) / sigma) ** 2)
        p += part
        slope += part * (count - y) / y
    there = p > 0
    return float((slope[there] ** 2 / p[there]).sum() * step / (sigma * math.sqrt(2 * math.pi)))


@pytest.mark.parametrize("sigma", [0.14, 0.25, 0.4, 0.7, 1.2, 1.9, 6.0, 40.0])
def test_poisson_gaussian_pixel_is_that_of_plain_sums(sigma: float) -> None:
    means = [1e-5, 0.02, 0.6, 3.0, 11.7, 140.0]
    truth = [poisson_gaussian_truth(y, sigma) for y in means]
    noise = PoissonGaussianNoise(read_std=sigma)
    np.testing.assert_allclose(per_pixel(noise, *means), truth, rtol=1e-8)
    maps = PoissonGaussianNoise(read_std=torch.linspace(sigma, sigma * (1 + 1e-14), len(means), dtype=torch.float64))
    np.testing.assert_allclose(per_pixel(maps, *means), truth, rtol=1e-8)


def test_faint_pixel_of_little_read_noise_is_that_of_thirty_digits() -> None:
    with mpmath.workdps(30):
        for y, sigma in ((1e-9, 0.1), (1e-12, 0.065), (1e-3, 0.16)):
            z, step, total = -12 * mpmath.mpf(sigma), mpmath.mpf(sigma) / 25, mpmath.mpf(0)
            while z < 3 + 12 * sigma:
                parts = [
                    mpmath.exp(-((z - k) ** 2) / (2 * mpmath.mpf(sigma) ** 2)) * mpmath.mpf(y) ** k / math.factorial(k)
                    for k in range(5)
                ]
                slope = sum(part * (k / mpmath.mpf(y) - 1) for k, part in enumerate(parts))
                total += slope**2 / sum(parts)
                z += step
            truth = total * step * mpmath.exp(-y) / (sigma * mpmath.sqrt(2 * mpmath.pi))
            assert per_pixel(PoissonGaussianNoise(read_std=sigma), y)[0] == pytest.approx(float(truth), rel=1e-8)


@pytest.mark.parametrize(("y", "sigma"), [(1003.0, 0.12), (1400.0, 0.35), (1100.0, 1.1), (1250.0, 1.3), (600.0, 25.0)])
def test_bright_pixel_of_a_series_or_a_table_is_that_of_plain_sums(y: float, sigma: float) -> None:
    truth = poisson_gaussian_truth(y, sigma, steps_per_sigma=7.0)
    assert per_pixel(PoissonGaussianNoise(read_std=sigma), y)[0] == pytest.approx(truth, rel=1e-8)


@pytest.mark.parametrize("sigma", [0.3, 0.9, 1.21, 30.0])
def test_pixel_has_no_seam_where_one_form_follows_another(sigma: float) -> None:
    seams = [_fisher_pixel._BRIGHT, _fisher_pixel._BRIGHT - sigma**2, 2.0, 256.0]
    below = per_pixel(PoissonGaussianNoise(read_std=sigma), *(y * (1 - 1e-12) for y in seams))
    above = per_pixel(PoissonGaussianNoise(read_std=sigma), *(y * (1 + 1e-12) for y in seams))
    np.testing.assert_allclose(below, above, rtol=1e-9)


def test_interpolation_errs_by_less_than_a_hundred_millionth() -> None:
    random = np.random.default_rng(0)
    for sigma in (0.08, 0.3, 0.75, 2.5):
        y = 10 ** random.uniform(-8, 3, 60)
        exact = _fisher_pixel._quadrature(y, np.full_like(y, sigma))
        np.testing.assert_allclose(per_pixel(PoissonGaussianNoise(read_std=sigma), *y), exact, rtol=2e-9)


def test_pixel_tends_to_shot_noise_and_to_gaussian_noise() -> None:
    means = [0.3, 7.0, 900.0, 2e5, 1e8]
    np.testing.assert_allclose(per_pixel(PoissonNoise(), *means), 1 / np.array(means), rtol=1e-15)
    for read_std in (0.05, 1e-3, 1e-8):
        np.testing.assert_allclose(
            per_pixel(PoissonGaussianNoise(read_std=read_std), *means), 1 / np.array(means), rtol=1e-10
        )
    # Read noise alone: the variance of the counts and what they tell by it fade as y / sigma^2 and 1 / sigma^2.
    np.testing.assert_allclose(per_pixel(PoissonGaussianNoise(read_std=1e4), 0.0, 0.5, 7.0), 1e-8, rtol=1e-7)
    # Bright: a Gaussian whose variance follows the mean, 1 / v + (1 - y / v)^2 / (2 v^2).
    y, sigma = 1e6, 1e3
    v = y + sigma**2
    expected = 1 / v + 0.5 * (1 - y / v) ** 2 / v**2
    assert per_pixel(PoissonGaussianNoise(read_std=sigma), y)[0] == pytest.approx(expected, rel=1e-12)


def test_gain_and_offset_change_nothing_but_the_unit_of_the_read_noise() -> None:
    means = [0.0, 0.2, 5.0, 80.0, 3000.0]
    plain = per_pixel(PoissonGaussianNoise(read_std=1.7), *means)
    np.testing.assert_allclose(per_pixel(PoissonGaussianNoise(0.4, 100.0, read_std=0.68), *means), plain, rtol=1e-12)
    gain = torch.tensor([0.4, 1.0, 3.0, 7.0, 0.02], dtype=torch.float64)
    maps = PoissonGaussianNoise(gain, -30.0 * gain, read_std=1.7 * gain)
    np.testing.assert_allclose(per_pixel(maps, *means), plain, rtol=1e-9)


def test_dark_pixel_tells_one_electron_from_none() -> None:
    # E_0[(N(z; 1) / N(z; 0) - 1)^2] = exp(1 / sigma^2) - 1.
    for sigma in (0.2, 1.0, 5.0):
        expected = math.expm1(sigma**-2)
        dark, faint = per_pixel(PoissonGaussianNoise(read_std=sigma), 0.0, 1e-300)
        assert dark == pytest.approx(expected, rel=1e-12)
        assert faint == pytest.approx(expected, rel=1e-8)
    assert per_pixel(PoissonGaussianNoise(read_std=0.01), 0.0)[0] == math.inf
    assert per_pixel(PoissonNoise(), 0.0)[0] == math.inf


def code_truth(y: float, gain: float, offset: float, read_std: float, bits: int, well: float) -> float:
    """sum over codes of (dp/dy)^2 / p, dp/dy from one electron more."""
    k = np.arange(0.0, y + 14 * math.sqrt(y) + 60)
    pmf = stats.poisson.pmf(k, y)
    change = np.concatenate([[0.0], pmf[:-1]]) - pmf
    level = gain * np.minimum(k, well) + offset
    edges = np.concatenate([[-np.inf], np.arange(0, 2**bits - 1) + 0.5, [np.inf]])
    # From the nearer end, so that small masses keep their digits.
    t = (edges[:, None] - level) / read_std
    middle = 0.5 * (t[1:] + t[:-1])
    mass = np.where(
        middle > 0, special.ndtr(-t[:-1]) - special.ndtr(-t[1:]), special.ndtr(t[1:]) - special.ndtr(t[:-1])
    )
    p, slope = mass @ pmf, mass @ change
    there = p > 1e-290
    return float((slope[there] ** 2 / p[there]).sum())


@pytest.mark.parametrize(
    ("gain", "offset", "read_std", "bits", "well"),
    [
        (1.0, 5.0, 1.5, 7, math.inf),
        (0.3, 2.0, 0.4, 5, math.inf),
        (1.0, 0.0, 0.2, 6, 40.0),
        (2.5, -10.0, 3.0, 8, 60.5),
    ],
)
def test_digitised_pixel_is_the_sum_over_its_codes(
    gain: float, offset: float, read_std: float, bits: int, well: float
) -> None:
    means = [1e-4, 0.7, 6.0, 21.0, 38.0, 55.0, 97.0]
    truth = np.array([code_truth(y, gain, offset, read_std, bits, well) for y in means])
    full_well = None if math.isinf(well) else well
    noise = PoissonGaussianNoise(gain, offset, read_std=read_std, adc_bits=bits, full_well_electrons=full_well)
    np.testing.assert_allclose(per_pixel(noise, *means), truth, rtol=1e-7, atol=1e-9)
    maps = PoissonGaussianNoise(
        torch.full((len(means),), gain), offset, read_std=read_std, adc_bits=bits, full_well_electrons=full_well
    )
    if gain in (1.0, 2.5):  # whole numbers of float32
        np.testing.assert_allclose(per_pixel(maps, *means), truth, rtol=1e-8, atol=1e-13)


def test_sensor_never_tells_more_than_without_its_limits_and_nothing_when_full() -> None:
    y = [0.0, 0.1, 3.0, 60.0, 180.0, 205.0, 260.0, 800.0]
    free = per_pixel(PoissonGaussianNoise(read_std=0.9), *y)
    coded = per_pixel(PoissonGaussianNoise(read_std=0.9, offset=10.0, adc_bits=8), *y)
    full = per_pixel(PoissonGaussianNoise(read_std=0.9, full_well_electrons=200), *y)
    both = per_pixel(PoissonGaussianNoise(read_std=0.9, offset=10.0, adc_bits=8, full_well_electrons=200), *y)
    for limited in (coded, full, both):
        assert (limited <= free * (1 + 1e-9)).all()
        assert limited[-1] < 1e-12
    assert (both <= np.minimum(coded, full) * (1 + 1e-7) + 1e-9).all()
    np.testing.assert_allclose(full[:4], free[:4], rtol=1e-9)


def test_full_well_without_an_adc_is_that_of_plain_sums() -> None:
    # With all counts from 30 at one level the slope of that level is the probability of one electron less.
    y, sigma, well = 27.0, 0.6, 30
    k = np.arange(well + 1.0)
    pmf = stats.poisson.pmf(k, y)
    pmf[-1] = stats.poisson.sf(well - 1, y)
    change = np.concatenate([[0.0], stats.poisson.pmf(k[:-1], y)]) - np.concatenate(
        [stats.poisson.pmf(k[:-1], y), [0.0]]
    )
    z = np.arange(-7.0, well + 8.0, 0.02)
    normal = stats.norm.pdf(z[:, None], k, sigma)
    truth = float(((normal @ change) ** 2 / (normal @ pmf)).sum() * 0.02)
    noise = PoissonGaussianNoise(2.0, 3.0, read_std=2 * sigma, full_well_electrons=well)
    assert per_pixel(noise, y)[0] == pytest.approx(truth, rel=1e-7)


class SquareRootNoise(NoiseModel):
    """A model of the user's own: Gaussian with variance y."""

    def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return mean

    def log_prob(self, measured: Tensor, mean: Tensor) -> Tensor:
        return mean

    def entropy(self, mean: Tensor) -> Tensor:
        return mean


class InformedSquareRootNoise(SquareRootNoise):
    def fisher_information(self, mean: Tensor) -> Tensor:
        return 1 / mean + 0.5 / mean**2


def test_model_of_the_users_own_says_its_information_or_is_refused() -> None:
    assert per_pixel(InformedSquareRootNoise(), 2.0)[0] == pytest.approx(0.5 + 0.125)
    with pytest.raises(TypeError, match="fisher_information"):
        per_pixel(SquareRootNoise(), 2.0)


# ---- Parameters of a Gaussian spot ----

WIDTH = 1.6
SPOT = np.array([10.3, 9.1, 900.0, 2.5])  # row, column, flux, background
NAMES = ("row", "column", "flux", "background")


def spot(parameters: Tensor, size: int = 21) -> Tensor:
    axis = torch.arange(size, dtype=parameters.dtype)
    row, column = (torch.exp(-0.5 * ((axis - parameters[i]) / WIDTH) ** 2) for i in (0, 1))
    return parameters[2] * row[:, None] * column / (2 * math.pi * WIDTH**2) + parameters[3]


def spot_derivatives(p: Array, size: int = 21) -> tuple[Array, Array]:
    """Means and (4, size, size) their derivatives, by hand."""
    axis = np.arange(size)
    shape = np.exp(-0.5 * (((axis - p[0]) / WIDTH) ** 2)[:, None] - 0.5 * ((axis - p[1]) / WIDTH) ** 2)
    shape /= 2 * math.pi * WIDTH**2
    row = p[2] * shape * ((axis - p[0]) / WIDTH**2)[:, None]
    column = p[2] * shape * (axis - p[1]) / WIDTH**2
    return p[2] * shape + p[3], np.stack([row, column, shape, np.ones_like(shape)])


def test_spot_is_the_direct_sum_over_pixels() -> None:
    mean, slopes = spot_derivatives(SPOT)
    sigma = 1.4
    cases: list[tuple[NoiseModel, Array]] = [
        (GaussianNoise(2.0), np.full_like(mean, 0.25)),
        (PoissonNoise(), 1 / mean),
        (
            PoissonGaussianNoise(0.5, 100.0, read_std=0.5 * sigma),
            np.reshape([poisson_gaussian_truth(y, sigma) for y in mean.reshape(-1)], mean.shape),
        ),
    ]
    for noise, weight in cases:
        truth = np.einsum("ars,brs,rs->ab", slopes, slopes, weight)
        result = fisher_information(spot, noise, SPOT, names=NAMES)
        np.testing.assert_allclose(result.information.numpy(), truth, rtol=1e-8, atol=1e-10 * truth.max())
        np.testing.assert_allclose(result.covariance_bound.numpy(), np.linalg.inv(truth), rtol=1e-6, atol=1e-12)
        bound = np.sqrt(np.diag(np.linalg.inv(truth)))
        np.testing.assert_allclose(result.standard_deviation_bound.numpy(), bound, rtol=1e-8)
        assert result.rank.item() == 4
        assert result.warnings == ()
        assert result.unidentified == ()


def test_spot_in_the_dark_has_the_bounds_everybody_knows() -> None:
    # Well sampled, shot noise alone: width / sqrt(photons) for the place, sqrt(photons) for the flux.
    result = fisher_information(lambda p: spot(torch.cat([p, p.new_full((1,), 1e-30)])), PoissonNoise(), SPOT[:3])
    expected = [WIDTH / 30, WIDTH / 30, 30.0]
    np.testing.assert_allclose(result.standard_deviation_bound.numpy(), expected, rtol=2e-7)


def test_spot_in_gaussian_noise_has_the_closed_form() -> None:
    # sum of squares of a Gaussian's derivative: flux^2 / (8 pi width^4) per axis; d flux: 1 / (4 pi width^2).
    result = fisher_information(lambda p: spot(torch.cat([p, p.new_zeros(1)])), GaussianNoise(3.0), SPOT[:3])
    place, flux = 900.0**2 / (8 * math.pi * WIDTH**4) / 9, 1 / (4 * math.pi * WIDTH**2) / 9
    np.testing.assert_allclose(result.information.diagonal().numpy(), [place, place, flux], rtol=1e-6)


@pytest.mark.parametrize(
    "noise",
    [PoissonNoise(), PoissonGaussianNoise(2.0, 10.0, read_std=1.0), PoissonGaussianNoise(read_std=2.0, adc_bits=7)],
)
def test_the_most_likely_parameters_scatter_as_the_bound_says(noise: NoiseModel) -> None:
    n_replicates, truth = 1500, np.array([5.2, 4.7, 700.0, 1.0])
    start, _ = spot_derivatives(truth, 11)
    rng = torch.Generator().manual_seed(2)
    images = noise.sample(torch.from_numpy(start).expand(n_replicates, 11, 11), rng)
    result = fisher_information(lambda p: spot(p, 11), noise, truth)
    inverse = result.covariance_bound
    found = torch.from_numpy(truth).expand(n_replicates, 4).clone()
    for _ in range(4):
        # Fisher scoring for all images at once.
        both = [spot_derivatives(p.numpy(), 11) for p in found]
        mean = torch.from_numpy(np.stack([m for m, _ in both])).requires_grad_(True)
        slopes = torch.from_numpy(np.stack([d for _, d in both]))
        (score,) = torch.autograd.grad(noise.log_prob(images, mean).sum(), mean)
        found = found + torch.einsum("nars,nrs->na", slopes, score) @ inverse
    ratio = found.var(dim=0) / inverse.diagonal()
    # The variance of a variance: sqrt(2 / n); a third of a percent for the curvature that is left at 700 photons.
    assert float((ratio - 1).abs().max()) < 4 * math.sqrt(2 / n_replicates) + 0.003
    off = (found - torch.from_numpy(truth)).mean(0) / torch.sqrt(inverse.diagonal() / n_replicates)
    assert float(off[:2].abs().max()) < 4


# ---- What cannot be identified ----


def test_a_product_cannot_be_taken_apart() -> None:
    def encoder(p: Tensor) -> Tensor:
        return p[0] * p[1] * torch.linspace(1.0, 2.0, 9, dtype=p.dtype) + p[2]

    result = fisher_information(encoder, PoissonNoise(), [4.0, 0.5, 3.0], names=("flux", "exposure", "dark"))
    assert result.rank.item() == 2
    assert result.condition_number.item() == math.inf
    assert result.standard_deviation_bound[:2].tolist() == [math.inf, math.inf]
    assert len(result.unidentified) == 1
    assert result.unidentified[0] in ("+0.71 flux -0.71 exposure", "+0.71 exposure -0.71 flux")
    assert "1 of 3 directions cannot be identified" in result.warnings[0]
    # What is left of the problem is that of the product alone.
    known = fisher_information(lambda p: encoder(torch.stack([4.0 + 0 * p[0], *p])), PoissonNoise(), [0.5, 3.0])
    assert result.standard_deviation_bound[2].item() == pytest.approx(known.standard_deviation_bound[1].item())


def test_a_parameter_that_moves_nothing_is_named() -> None:
    result = fisher_information(lambda p: 5.0 + p[:1] ** 2, GaussianNoise(1.0), [1.0, 2.0], names=("a", "unused"))
    assert result.unidentified == ("unused",)
    assert result.standard_deviation_bound.tolist() == [0.5, math.inf]
    assert math.isnan(result.covariance_bound[0, 1].item())
    nothing = fisher_information(lambda p: 5.0 + 0 * p, GaussianNoise(1.0), [1.0, 2.0])
    assert nothing.rank.item() == 0
    assert torch.isinf(nothing.standard_deviation_bound).all()


def test_fewer_pixels_than_parameters_leave_directions_open() -> None:
    matrix = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = fisher_information(lambda p: matrix @ p, GaussianNoise(1.0), torch.ones(5, dtype=torch.float64))
    assert result.rank.item() == 3
    assert len(result.unidentified) == 2
    null = result.directions[:, :2] / torch.linalg.vector_norm(matrix, dim=0)[:, None]
    torch.testing.assert_close(matrix @ null, torch.zeros(3, 2, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("distance", "known"), [(1e-3, False), (0.5, True)])
def test_two_spots_close_together_can_hardly_be_told_apart(distance: float, known: bool) -> None:
    axis = torch.arange(15, dtype=torch.float64)

    def encoder(p: Tensor) -> Tensor:
        return 1.0 + 100 * (torch.exp(-0.5 * (axis - p[0]) ** 2) + torch.exp(-0.5 * (axis - p[1]) ** 2))

    result = fisher_information(encoder, PoissonNoise(), [7.0 - distance / 2, 7.0 + distance / 2])
    assert result.unidentified == ()
    assert torch.isfinite(result.standard_deviation_bound).all()
    if known:
        assert result.warnings == ()
    else:
        closer = fisher_information(encoder, PoissonNoise(), [7.0 - distance / 200, 7.0 + distance / 200])
        assert "can hardly be identified" in closer.warnings[0]
        # The error of the difference grows as one over the distance.
        growth = closer.standard_deviation_bound / result.standard_deviation_bound
        np.testing.assert_allclose(growth.numpy(), 100.0, rtol=1e-3)


def test_units_of_the_parameters_change_no_verdict() -> None:
    scale = torch.tensor([1e-9, 1e6, 1e-3, 1.0], dtype=torch.float64)
    plain = fisher_information(spot, PoissonNoise(), SPOT)
    scaled = fisher_information(lambda p: spot(p * scale), PoissonNoise(), torch.from_numpy(SPOT) / scale)
    torch.testing.assert_close(scaled.eigenvalues, plain.eigenvalues, rtol=1e-10, atol=0)
    torch.testing.assert_close(scaled.standard_deviation_bound * scale, plain.standard_deviation_bound)
    assert plain.condition_number.item() == pytest.approx(
        (plain.eigenvalues[-1] / plain.eigenvalues[0]).item(), rel=1e-12
    )
    # Eigenvectors of the information with a diagonal of ones.
    d = plain.information.diagonal().sqrt()
    unit = plain.information / d / d[:, None]
    torch.testing.assert_close(unit @ plain.directions, plain.directions * plain.eigenvalues, atol=1e-12, rtol=0)


# ---- Priors ----


def test_linear_gaussian_bound_is_the_posterior_covariance() -> None:
    rng = torch.Generator().manual_seed(1)
    matrix = torch.randn(4, 6, generator=rng, dtype=torch.float64)
    half = torch.randn(6, 6, generator=rng, dtype=torch.float64)
    prior = half @ half.T + 0.1 * torch.eye(6, dtype=torch.float64)
    result = fisher_information(
        lambda p: matrix @ p, GaussianNoise(0.7), torch.zeros(6, dtype=torch.float64), prior_covariance=prior.numpy()
    )
    innovation = matrix @ prior @ matrix.T + 0.49 * torch.eye(4, dtype=torch.float64)
    posterior = prior - prior @ matrix.T @ torch.linalg.inv(innovation) @ matrix @ prior
    torch.testing.assert_close(result.covariance_bound, posterior, rtol=1e-9, atol=1e-11)
    assert result.bayesian
    assert "the prior" in result.warnings[0]
    assert result.rank.item() == 4


def test_van_trees_averages_over_draws_from_the_prior() -> None:
    rng = torch.Generator().manual_seed(3)
    draws = 20.0 + 2.0 * torch.randn(500, 1, generator=rng, dtype=torch.float64)
    result = fisher_information(
        lambda p: p.expand(3), PoissonNoise(), draws, prior_covariance=torch.tensor([[4.0]]), average=True
    )
    truth = 3 * (1 / draws).mean().item() + 0.25
    assert result.information.shape == (1, 1)
    assert result.information.item() == pytest.approx(truth, rel=1e-12)
    # No estimator does better, the posterior mean included: here by grid over the prior.
    grid = torch.linspace(8.0, 32.0, 400, dtype=torch.float64)
    counts = torch.poisson(draws.expand(500, 3), generator=rng).sum(1)
    log_posterior = torch.xlogy(counts[:, None], grid) - 3 * grid - 0.5 * ((grid - 20) / 2) ** 2
    estimate = (torch.softmax(log_posterior, 1) * grid).sum(1)
    square = (estimate - draws[:, 0]) ** 2
    assert square.mean().item() > 1 / truth - 4 * square.std().item() / math.sqrt(500)
    assert square.mean().item() < 1.5 / truth


# ---- Modules and batches ----


class Camera(nn.Module):
    """Blurs scenes by a Gaussian PSF of learnable width, magnified pixel by pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))
        self.register_buffer("dark", torch.tensor([[0.4, 0.6]], dtype=torch.float64))
        self.register_buffer("counter", torch.tensor(3))

    def forward(self, scene: Tensor) -> Tensor:
        axis = torch.arange(-3, 4, dtype=torch.float64)
        line = torch.exp(-0.5 * (axis / self.width) ** 2)
        psf = line[:, None] * line / line.sum() ** 2
        return ops.psf_convolve(scene, psf) + self.dark.sum()


def test_batch_of_scenes_gives_a_batch_of_matrices() -> None:
    scenes = 20 * torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    camera = Camera()
    result = fisher_information(camera, PoissonNoise(), ["width", "dark"], scene=scenes)
    assert result.names == ("width", "dark[0, 0]", "dark[0, 1]")
    assert result.information.shape == (3, 3, 3)
    assert result.rank.tolist() == [2, 2, 2]
    assert "3 of 3 of the batch" in result.warnings[0]
    assert camera.width.grad is None
    for scene, matrix in zip(scenes, result.information, strict=True):
        mean = camera(scene).detach()
        with torch.no_grad():
            camera.width += 1e-5
            above = camera(scene)
            camera.width -= 2e-5
            below = camera(scene)
            camera.width += 1e-5
        by_width = (above - below) / 2e-5
        slopes = torch.stack([by_width, torch.ones_like(mean), torch.ones_like(mean)]).flatten(1)
        torch.testing.assert_close(matrix, (slopes / mean.flatten()) @ slopes.T, rtol=1e-7, atol=1e-7)
    together = fisher_information(camera, PoissonNoise(), ["width", "dark"], scene=scenes, average=True)
    torch.testing.assert_close(together.information, result.information.mean(0))


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_both_ways_of_differentiation_agree_in_chunks(chunk_size: int | None) -> None:
    scenes = 20 * torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [
        fisher_information(
            Camera(), PoissonNoise(), ["width"], scene=scenes, differentiation=way, chunk_size=chunk_size
        ).information
        for way in ("forward", "reverse", "auto")
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(found[0], found[2], rtol=1e-12, atol=0)


def test_maps_of_read_noise_follow_the_pixels_of_a_batch() -> None:
    read_std = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    points = torch.tensor([[2.0], [9.0]], dtype=torch.float64)
    result = fisher_information(
        lambda p: p * torch.tensor([1.0, 2.0, 0.1]), PoissonGaussianNoise(read_std=read_std), points
    )
    for y, matrix in zip((2.0, 9.0), result.information, strict=True):
        slopes = np.array([1.0, 2.0, np.float64(np.float32(0.1))])
        truth = sum(d**2 * poisson_gaussian_truth(d * y, s.item()) for d, s in zip(slopes, read_std, strict=True))
        assert matrix.item() == pytest.approx(truth, rel=1e-8)


def test_single_precision_is_judged_by_its_own_rounding() -> None:
    def encoder(p: Tensor) -> Tensor:
        return torch.exp(p[0]) * torch.exp(p[1]) * torch.linspace(1.0, 2.0, 50, dtype=p.dtype) + p[2] ** 2

    result = fisher_information(encoder, PoissonNoise(), torch.tensor([1.0, 0.3, 2.0]))
    assert result.information.dtype == torch.float64
    assert result.rank.item() == 2


# ---- What is refused ----


def test_arguments_that_cannot_be_used_are_named() -> None:
    noise = GaussianNoise(1.0)
    with pytest.raises(TypeError, match=r"^noise: "):
        fisher_information(spot, 1.0, SPOT)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^encoder: need a callable"):
        fisher_information(3.0, noise, SPOT)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^encoder: need means"):
        fisher_information(lambda p: 3.0, noise, SPOT)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match=r"^parameters: need values"):
        fisher_information(Camera(), noise, "width", scene=torch.ones(1, 6, 6))
    with pytest.raises(ValueError, match=r"^parameters: need shape"):
        fisher_information(spot, noise, np.ones((2, 2, 2)))
    with pytest.raises(ValueError, match=r"^parameters: need finite"):
        fisher_information(spot, noise, [math.nan])
    with pytest.raises(ValueError, match=r"^parameters: 'height' is unknown; there are dark, width"):
        fisher_information(Camera(), noise, ["height"], scene=torch.ones(1, 6, 6))
    with pytest.raises(ValueError, match=r"^scene: need scenes"):
        fisher_information(Camera(), noise, ["width"])
    with pytest.raises(ValueError, match=r"^names: need one for each of 4"):
        fisher_information(spot, noise, SPOT, names=("a",))
    with pytest.raises(ValueError, match=r"^prior_covariance: need shape \(4, 4\)"):
        fisher_information(spot, noise, SPOT, prior_covariance=np.eye(3))
    with pytest.raises(ValueError, match=r"^prior_covariance: need a symmetric positive"):
        fisher_information(spot, noise, SPOT, prior_covariance=-np.eye(4))
    with pytest.raises(ValueError, match=r"^differentiation: "):
        fisher_information(spot, noise, SPOT, differentiation="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^chunk_size: "):
        fisher_information(spot, noise, SPOT, chunk_size=0)
    with pytest.raises(ValueError, match=r"^mean: need values of at least 0"):
        fisher_information(spot, PoissonNoise(), -SPOT)
    with pytest.raises(ValueError, match=r"^encoder: need finite derivatives"):
        fisher_information(lambda p: torch.sqrt(p), noise, [0.0])


def test_dark_pixels_count_only_where_a_parameter_lights_them() -> None:
    result = fisher_information(lambda p: torch.cat([p, p.new_zeros(3)]), PoissonNoise(), [4.0])
    assert result.information.item() == pytest.approx(0.25)
    with pytest.raises(ValueError, match="dark floor"):
        fisher_information(lambda p: torch.cat([p, p - p.detach()]), PoissonNoise(), [4.0])
