"""Digitised and saturating sensors: likelihood, samples, entropy, its estimate from codes, checks and design."""

from __future__ import annotations

import copy
import io
import math

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bitlens
from bitlens.noise import PoissonGaussianNoise, check_noise, conditional_entropy, conditional_entropy_per_sample

WELL = 60.0
SENSORS: dict[str, PoissonGaussianNoise] = {
    "8 bit": PoissonGaussianNoise(1.3, 4.0, read_std=1.1, adc_bits=8),
    "clipped zero": PoissonGaussianNoise(0.8, -3.0, read_std=1.6, adc_bits=7),
    "well below the top": PoissonGaussianNoise(1.3, 4.0, read_std=0.7, adc_bits=8, full_well_electrons=WELL),
    "quiet, 5 bit": PoissonGaussianNoise(0.5, 1.0, read_std=0.12, adc_bits=5),
    "fractional well": PoissonGaussianNoise(2.0, 6.0, read_std=0.9, adc_bits=7, full_well_electrons=20.4),
    "1 bit": PoissonGaussianNoise(0.3, 0.1, read_std=0.2, adc_bits=1),
}
ANALOGUE = PoissonGaussianNoise(2.0, 5.0, read_std=1.4, full_well_electrons=WELL)
MEANS = (0.0, 0.03, 0.9, 7.0, 55.0, 61.0, 190.0, 3000.0, 1e6)


def codes(noise: PoissonGaussianNoise) -> Tensor:
    assert noise.adc_bits is not None
    return torch.arange(2**noise.adc_bits, dtype=torch.float64)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def by_definition(noise: PoissonGaussianNoise, code: int, mean: float) -> float:
    """log p(code | mean) by summing the rounded, clipped normal over every count, in 40 digits."""
    gain, offset, read_std = (mpmath.mpf(float(p)) for p in (noise.gain, noise.offset, noise.read_std))
    well = math.inf if noise.full_well_electrons is None else float(noise.full_well_electrons)
    assert noise.adc_bits is not None

    def tail(x: mpmath.mpf) -> mpmath.mpf:
        return mpmath.erfc(x / mpmath.sqrt(2)) / 2

    with mpmath.workdps(60):
        # A margin of many standard deviations above the mean and above what the code stands for.
        last = max(mean + 40 * math.sqrt(mean), (code - float(offset)) / float(gain)) + 120
        total, p, k = mpmath.mpf(0), mpmath.exp(-mpmath.mpf(mean)), 0
        while k <= last:
            signal = gain * min(k, well) + offset
            low = (code - mpmath.mpf(0.5) - signal) / read_std
            high = (code + mpmath.mpf(0.5) - signal) / read_std
            if code == 0:
                total += p * tail(-high)
            elif code == 2**noise.adc_bits - 1:
                total += p * tail(low)
            else:  # the difference of the two tails that are small
                total += p * (tail(low) - tail(high) if low + high > 0 else tail(-high) - tail(-low))
            k += 1
            p *= mpmath.mpf(mean) / k
        return float(mpmath.log(total))


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("name", SENSORS)
def test_masses_of_all_codes_sum_to_one_with_the_stated_moments(name: str, mean: float) -> None:
    noise = SENSORS[name]
    c = codes(noise)
    p = torch.exp(noise.log_prob(c, scalar(mean)))
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-12)
    expected, variance = float((p * c).sum()), float((p * c**2).sum() - (p * c).sum() ** 2)
    assert float(noise.expected(scalar(mean))) == pytest.approx(expected, abs=1e-4 * math.sqrt(variance + 0.01))
    assert float(noise.variance(scalar(mean))) == pytest.approx(variance, abs=1e-4 * (variance + 0.01))


@pytest.mark.parametrize("name", SENSORS)
def test_codes_by_definition(name: str) -> None:
    """Every end of the scale, the middle and far tails, to 1e-10 of log p."""
    noise = SENSORS[name]
    top = 2 ** int(noise.adc_bits or 0) - 1
    for mean in (0.0, 0.4, 12.0, 90.0):
        for code in sorted({0, 1, top // 4, top // 2, top - 1, top} - {-1}):
            truth = by_definition(noise, code, mean)
            value = float(noise.log_prob(scalar(code), scalar(mean)))
            assert abs(value - truth) <= 1e-10 * max(1.0, abs(truth)), (code, mean, value, truth)


def test_impossible_codes_have_no_probability() -> None:
    noise = SENSORS["8 bit"]
    measured = torch.tensor([-1.0, 0.0, 3.5, 255.0, 256.0, math.inf, math.nan], dtype=torch.float64)
    mean = torch.full_like(measured, 3.0).requires_grad_()
    value = noise.log_prob(measured, mean)
    assert torch.isinf(value).tolist() == [True, False, True, False, True, True, False]
    assert math.isnan(float(value[-1].detach()))
    (slope,) = torch.autograd.grad(value[:6].nan_to_num(neginf=0.0).sum(), mean)
    assert bool(torch.isfinite(slope[:6]).all())
    for bad, words in ((-1.0, "0 to 255"), (256.0, "adc_bits=8"), (1.5, "fractions")):
        with pytest.raises(ValueError, match=words):
            noise.check_measured(torch.tensor([bad, 2.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_precision_and_maps(dtype: torch.dtype) -> None:
    """Maps give what the scalar sensor of each pixel gives, in the dtype of the mean."""
    gain = torch.tensor([0.5, 1.0, 2.0])
    offset, read_std = torch.tensor([3.0, 0.0, 5.0]), torch.tensor([0.4, 1.0, 1.6])
    well = torch.tensor([300.0, 40.0, 33.0])
    maps = PoissonGaussianNoise(gain, offset, read_std=read_std, adc_bits=6, full_well_electrons=well)
    mean = torch.tensor([[0.0, 3.0, 9.0], [80.0, 41.0, 15.0], [170.0, 500.0, 31.0]], dtype=dtype)
    measured = torch.tensor([[3.0, 2.0, 20.0], [44.0, 40.0, 38.0], [63.0, 40.0, 63.0]], dtype=dtype)
    results = (maps.log_prob(measured, mean), maps.entropy(mean), maps.expected(mean), maps.variance(mean))
    for pixel in range(3):
        one = PoissonGaussianNoise(
            gain[pixel],
            offset[pixel],
            read_std=read_std[pixel],
            adc_bits=6,
            full_well_electrons=well[pixel],
        )
        y = mean[:, pixel].double()
        singles = (one.log_prob(measured[:, pixel].double(), y), one.entropy(y), one.expected(y), one.variance(y))
        for many, single, scale in zip(results, singles, (1.0, 1.0, 63.0, 63.0), strict=True):
            assert many.dtype == dtype
            tolerance = 2e-6 * scale if dtype == torch.float32 else 2e-5
            torch.testing.assert_close(many[:, pixel].double(), single, rtol=tolerance, atol=tolerance)


def test_per_pixel_entropy_in_closed_form_and_by_summation_agree() -> None:
    """A map whose pixels lie on either side of what is taken in closed form: 1e-4 nats from each other's truth."""
    read_std = torch.linspace(0.6, 3.0, 13, dtype=torch.float64)
    mean = torch.logspace(-1, 3, 29, dtype=torch.float64)[:, None]
    maps = PoissonGaussianNoise(0.7, 40.0, read_std=read_std, adc_bits=10, full_well_electrons=900.0)
    entropy = maps.entropy(mean)
    c = torch.arange(1024, dtype=torch.float64)[:, None, None]
    log_p = maps.log_prob(c, mean)
    truth = -(torch.exp(log_p) * torch.where(torch.isfinite(log_p), log_p, 0.0)).sum(0)
    assert float((entropy - truth).abs().max()) < 1e-4


@pytest.mark.parametrize("name", [*SENSORS, "analogue"])
def test_gradients(name: str) -> None:
    """In the measured value (density only), the mean and every parameter, scalar and per-pixel, by differences."""
    noise = ANALOGUE if name == "analogue" else SENSORS[name]
    mean = torch.tensor([0.3, 2.0, 40.0, 58.0, 66.0], dtype=torch.float64, requires_grad=True)
    measured = noise.sample(mean.detach(), generator=torch.Generator().manual_seed(3))
    measured = measured.requires_grad_(noise.adc_bits is None)

    def value(mean: Tensor, gain: Tensor, offset: Tensor, read_std: Tensor, measured: Tensor = measured) -> Tensor:
        changed = copy.copy(noise)
        changed._parameters, changed._buffers = {}, dict(noise._buffers)
        for key, parameter in (("gain", gain), ("offset", offset), ("read_std", read_std)):
            changed._buffers[key] = parameter
        return changed.log_prob(measured, mean)

    for shape in ((), (5,)):
        parameters = [
            p.detach().expand(shape).clone().requires_grad_() for p in (noise.gain, noise.offset, noise.read_std)
        ]
        inputs = (mean, *parameters, measured) if noise.adc_bits is None else (mean, *parameters)
        assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [*SENSORS, "analogue"])
def test_samples_follow_the_probabilities(name: str) -> None:
    noise = ANALOGUE if name == "analogue" else SENSORS[name]
    for mean in (0.0, 1.5, 58.0, 400.0):
        y = torch.full((100_000,), mean, dtype=torch.float32)
        z = noise.sample(y, generator=torch.Generator().manual_seed(9))
        assert z.dtype == y.dtype
        noise.check_measured(z)
        deviation = math.sqrt(float(noise.variance(scalar(mean))))
        error = float(z.double().mean()) - float(noise.expected(scalar(mean)))
        assert abs(error) < 5 * deviation / math.sqrt(z.numel()) + 1e-5
        if noise.adc_bits is None:
            continue
        p = torch.exp(noise.log_prob(codes(noise), scalar(mean)))
        found = torch.bincount(z.long(), minlength=p.numel()).double()
        kept = p * z.numel() > 10
        chi = float(((found - p * z.numel())[kept] ** 2 / (p * z.numel())[kept]).sum())
        n = int(kept.sum())
        assert chi < n + 5 * math.sqrt(2 * n) + 5
        assert int(found[~kept].sum()) < 10 + 5 * math.sqrt(10) + float(p[~kept].sum()) * z.numel()


@pytest.mark.parametrize("name", SENSORS)
def test_entropy_by_summation_over_codes(name: str) -> None:
    noise = SENSORS[name]
    generator = torch.Generator().manual_seed(5)
    far = 10 ** (8 * torch.rand(120, generator=generator, dtype=torch.float64) - 2)
    saturating = 300 * torch.rand(120, generator=generator, dtype=torch.float64)
    mean = torch.cat([torch.tensor(MEANS, dtype=torch.float64), far, saturating])
    log_p = noise.log_prob(codes(noise)[:, None], mean)
    truth = -(torch.exp(log_p) * torch.where(torch.isfinite(log_p), log_p, 0.0)).sum(0)
    assert float((noise.entropy(mean) - truth).abs().max()) < 1e-5
    assert bool(torch.isnan(noise.entropy(scalar(-1.0))))


def test_entropy_and_moments_of_many_codes() -> None:
    """A noise of 190 codes, cut off by the end of the scale or not: codes in blocks against every one of 16,384."""
    noise = PoissonGaussianNoise(3.0, 100.0, read_std=20.0, adc_bits=14)
    mean = torch.tensor([0.0, 3.0, 1500.0, 4800.0, 5300.0, 5428.0, 5500.0, 5700.0], dtype=torch.float64)
    c = codes(noise)[:, None]
    log_p = noise.log_prob(c, mean)
    p = torch.exp(log_p)
    truth = -(p * torch.where(torch.isfinite(log_p), log_p, 0.0)).sum(0)
    assert float((noise.entropy(mean) - truth).abs().max()) < 1e-5
    expected = (p * c).sum(0)
    variance = (p * (c - expected) ** 2).sum(0)
    assert float(((noise.expected(mean) - expected).abs() / torch.sqrt(variance)).max()) < 3e-5
    assert float((noise.variance(mean) / variance - 1).abs().max()) < 3e-5


@pytest.mark.parametrize(
    ("gain", "read_std", "well"), [(2.0, 1.4, 60.0), (1.0, 0.2, 25.0), (0.5, 3.0, 900.0), (1.0, 0.4, 9.5)]
)
def test_entropy_of_a_full_well_by_quadrature(gain: float, read_std: float, well: float) -> None:
    noise = PoissonGaussianNoise(gain, 5.0, read_std=read_std, full_well_electrons=well)
    step = read_std / 10
    z = torch.arange(5 - 9 * read_std, 5 + gain * well + 9 * read_std, step, dtype=torch.float64)
    for mean in (0.0, 0.2, 3.0, 0.6 * well, 0.9 * well, well, 1.1 * well, 2 * well, 50 * well, 1e6):
        log_p = noise.log_prob(z, scalar(mean))
        p = torch.exp(log_p)
        assert float(p.sum()) * step == pytest.approx(1.0, abs=1e-9)
        truth = -float((p * torch.where(p > 0, log_p, 0.0)).sum()) * step
        assert float(noise.entropy(scalar(mean))) == pytest.approx(truth, abs=2e-5)
        assert float(noise.expected(scalar(mean))) == pytest.approx(float((p * z).sum()) * step, abs=1e-3)


@pytest.mark.parametrize("name", [*SENSORS, "analogue"])
def test_entropy_and_moments_differentiate(name: str) -> None:
    """In mean, gain, offset and read noise, against differences of sums over codes or of quadratures."""
    noise = ANALOGUE if name == "analogue" else SENSORS[name]
    mean = torch.tensor([0.3, 4.0, 41.0, 57.0, 63.0, 160.0], dtype=torch.float64)
    if noise.adc_bits is None:
        z, weight = torch.arange(-10.0, 150.0, 0.1, dtype=torch.float64)[:, None], 0.1
    else:
        z, weight = codes(noise)[:, None], 1.0

    def truth(which: str, y: Tensor, parameters: dict[str, float]) -> Tensor:
        changed = PoissonGaussianNoise(
            parameters["gain"],
            parameters["offset"],
            read_std=parameters["read_std"],
            adc_bits=noise.adc_bits,
            full_well_electrons=noise.full_well_electrons,
        )
        log_p = changed.log_prob(z, y)
        p = torch.exp(log_p) * weight
        if which == "entropy":
            return -(p * torch.where(p > 0, log_p, 0.0)).sum(0)
        expected = (p * z).sum(0)
        return expected if which == "expected" else (p * (z - expected) ** 2).sum(0)

    values = {key: float(getattr(noise, key)) for key in ("gain", "offset", "read_std")}
    learned = PoissonGaussianNoise(
        **{key: nn.Parameter(scalar(v)) for key, v in values.items()},
        adc_bits=noise.adc_bits,
        full_well_electrons=noise.full_well_electrons,
    )
    y = mean.clone().requires_grad_()
    for which in ("entropy", "expected", "variance"):
        scale = max(1.0, float(truth(which, mean, values).abs().max()))
        for pixel in range(mean.numel()):
            result = getattr(learned, which)(y)[pixel]
            slopes = torch.autograd.grad(result, [y, learned.gain, learned.offset, learned.read_std])
            by_hand = (truth(which, mean * (1 + 1e-5), values) - truth(which, mean * (1 - 1e-5), values)) / (
                2e-5 * mean
            )
            assert float(slopes[0][pixel]) == pytest.approx(float(by_hand[pixel]), rel=3e-3, abs=3e-4 * scale)
            for slope, key in zip(slopes[1:], values, strict=True):
                ends = [truth(which, mean, values | {key: values[key] + sign * 1e-5})[pixel] for sign in (-1, 1)]
                difference = float(ends[1] - ends[0]) / 2e-5
                assert float(slope) == pytest.approx(difference, rel=3e-3, abs=1e-3 * scale), (which, key, pixel)


def test_limits() -> None:
    """Fine codes approach the density, an endless well no well, and a deep saturation no entropy at all."""
    y = torch.tensor([0.5, 20.0, 300.0], dtype=torch.float64)
    plain = PoissonGaussianNoise(0.9, 13.0, read_std=1.3)
    fine = PoissonGaussianNoise(0.9 * 1024, 13.0 * 1024, read_std=1.3 * 1024, adc_bits=20)
    z = torch.tensor([14.0, 28.0, 289.0], dtype=torch.float64)
    mass, density = fine.log_prob(z * 1024, y), plain.log_prob(z, y)
    torch.testing.assert_close(mass, density - math.log(1024), rtol=0, atol=1e-7)
    torch.testing.assert_close(fine.entropy(y), plain.entropy(y) + math.log(1024), rtol=0, atol=1e-4)
    deep = PoissonGaussianNoise(0.9, 13.0, read_std=1.3, full_well_electrons=1e8)
    torch.testing.assert_close(deep.log_prob(z, y), density, rtol=0, atol=1e-12)
    torch.testing.assert_close(deep.entropy(y), plain.entropy(y), rtol=0, atol=1e-6)
    saturated = PoissonGaussianNoise(1.0, read_std=2.0, adc_bits=8)
    bright = torch.tensor([400.0, 1e4, 1e6, 1e8], dtype=torch.float64)
    assert bool((saturated.log_prob(torch.tensor(255.0), bright) > -1e-6).all())
    assert float(saturated.entropy(bright).abs().max()) < 1e-5
    assert float(saturated.variance(bright).abs().max()) < 1e-4


def test_arguments_are_checked() -> None:
    for bad in (8.0, True, "8", np.float64(8)):
        with pytest.raises(TypeError, match="adc_bits"):
            PoissonGaussianNoise(read_std=1.0, adc_bits=bad)  # type: ignore[arg-type]
    for bits in (0, -3, 33):
        with pytest.raises(ValueError, match="adc_bits: need 1 to 32"):
            PoissonGaussianNoise(read_std=1.0, adc_bits=bits)
    assert PoissonGaussianNoise(read_std=1.0, adc_bits=np.int64(12)).adc_bits == 12  # type: ignore[arg-type]
    for well in (0.0, -5.0, math.inf):
        with pytest.raises(ValueError, match="full_well_electrons"):
            PoissonGaussianNoise(read_std=1.0, full_well_electrons=well)
    with pytest.raises(TypeError, match="full_well_electrons"):
        PoissonGaussianNoise(read_std=1.0, full_well_electrons=nn.Parameter(scalar(9.0)))
    with pytest.raises(ValueError, match="mean: need at most"):
        SENSORS["8 bit"].check_mean(torch.tensor([2e9]))


def test_plain_sensors_are_as_they_were() -> None:
    noise = PoissonGaussianNoise(1.5, 3.0, read_std=2.0)
    assert not noise.discrete
    assert set(noise.state_dict()) == {"gain", "offset", "read_std"}
    y = torch.tensor([0.0, 4.0, 90.0], dtype=torch.float64)
    torch.testing.assert_close(noise.variance(y), 2.25 * y + 4.0)
    torch.testing.assert_close(noise.expected(y), 1.5 * y + 3.0)


def test_state_and_copies() -> None:
    noise = SENSORS["well below the top"]
    same = copy.deepcopy(noise)
    assert same.discrete
    assert same.adc_bits == 8
    other = PoissonGaussianNoise(1.0, 0.0, read_std=1.0, adc_bits=8, full_well_electrons=1.0)
    other.load_state_dict(noise.state_dict())
    buffer = io.BytesIO()
    torch.save(noise, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    y, z = torch.linspace(0, 90, 7).double(), torch.arange(0.0, 70.0, 10.0).double()
    for model in (same, other, loaded):
        torch.testing.assert_close(model.log_prob(z, y), noise.log_prob(z, y), rtol=0, atol=0)
        torch.testing.assert_close(model.entropy(y), noise.entropy(y), rtol=0, atol=0)


def test_numpy() -> None:
    noise = SENSORS["8 bit"]
    mean = np.linspace(0.5, 80, 12)
    z = noise.sample(mean, generator=torch.Generator().manual_seed(0)).numpy().astype(np.uint8)
    expected = noise.log_prob(torch.from_numpy(z).double(), torch.from_numpy(mean))
    torch.testing.assert_close(noise.log_prob(z, mean), expected)
    torch.testing.assert_close(noise.entropy(mean), noise.entropy(torch.from_numpy(mean)))


# Codes that the noise spreads over; the last two are narrower than half a code somewhere.
ESTIMATED = {
    "8 bit, gain 0.5": (PoissonGaussianNoise(0.5, 3.0, read_std=0.8, adc_bits=8), 0.02, 0.004),
    "10 bit, quarter of a code": (PoissonGaussianNoise(0.25, 10.0, read_std=0.7, adc_bits=8), 0.02, 0.002),
    "clipped zero": (PoissonGaussianNoise(0.5, 0.0, read_std=2.0, adc_bits=10), 0.02, 0.005),
    "zero below the scale": (PoissonGaussianNoise(0.5, -2.0, read_std=0.9, adc_bits=8), 0.02, 0.006),
    "full well in 6 bit": (
        PoissonGaussianNoise(1.0, 5.0, read_std=1.0, adc_bits=6, full_well_electrons=30.0),
        0.02,
        0.01,
    ),
    "12 bit": (PoissonGaussianNoise(1.0, 100.0, read_std=2.0, adc_bits=12), 0.02, 0.002),
    "full well alone": (PoissonGaussianNoise(2.0, 10.0, read_std=2.0, full_well_electrons=300.0), 0.02, 0.005),
}


@pytest.mark.parametrize("name", ESTIMATED)
def test_conditional_entropy_from_codes_is_almost_unbiased(name: str) -> None:
    """E g - h at every mean from 0.1 to far beyond saturation, by summation; tighter where the sensor is linear."""
    noise, limit, limit_linear = ESTIMATED[name]
    well = math.inf if noise.full_well_electrons is None else float(noise.full_well_electrons)
    if noise.adc_bits is None:
        step = float(noise.read_std) / 8
        z = torch.arange(-10.0, 10 + 2 * well + 20, step, dtype=torch.float64)
        saturated = well
    else:
        z, step = codes(noise), 1.0
        saturated = min(well, (2**noise.adc_bits - 1 - float(noise.offset)) / float(noise.gain))
    g = conditional_entropy_per_sample(noise, z[:, None])
    linear = torch.logspace(-1, math.log10(0.6 * saturated), 60, dtype=torch.float64)
    shoulder = saturated + math.sqrt(saturated) * torch.linspace(-12, 12, 90, dtype=torch.float64)
    mean = torch.cat([linear, shoulder.clamp(min=0.6 * saturated), saturated * torch.tensor([1.5, 3, 100]).double()])
    log_p = noise.log_prob(z[:, None], mean)
    p = torch.exp(log_p) * step
    entropy = -(p * torch.where(p > 0, log_p, 0.0)).sum(0)
    average = (p * g[:, None]).sum(0)
    bias = (average - entropy).abs()
    spread = torch.sqrt((p * g[:, None] ** 2).sum(0) - average**2)
    assert float(bias.max()) < limit
    assert float(bias[:60][linear >= 5].max()) < limit_linear
    assert float(spread[:60].max()) < 2.0
    assert float(spread.max()) < 5.0


def test_conditional_entropy_of_maps() -> None:
    """Pixels of many sensors, some saturated: the mean over pixels agrees with the exact one within its error."""
    generator = torch.Generator().manual_seed(1)
    shape = (6, 6)
    noise = PoissonGaussianNoise(
        0.5 + 0.02 * torch.rand(shape, generator=generator),
        12 + torch.randn(shape, generator=generator),
        read_std=1.5 + 0.3 * torch.rand(shape, generator=generator),
        adc_bits=8,
    )
    mean = torch.linspace(2, 560, 36, dtype=torch.float64).reshape(shape).expand(600, *shape).clone()
    measured = noise.sample(mean, generator=generator)
    estimate = conditional_entropy(noise, measured)
    exact = conditional_entropy(noise, measured, mean=mean)
    assert abs(estimate.nats_per_pixel - exact.nats_per_pixel) < 4 * estimate.stderr + 0.01
    assert estimate.stderr < 0.01


def repeats(noise: PoissonGaussianNoise, seed: int, brightest: float = 400.0) -> np.ndarray:
    light = torch.linspace(0.05, 1.0, 64, dtype=torch.float64)[:, None] * torch.linspace(0.6, 1.0, 64).double()
    generator = torch.Generator().manual_seed(seed)
    return noise.sample((brightest * light).expand(24, 64, 64), generator=generator).numpy()


def test_check_noise_accepts_a_right_sensor_and_rejects_wrong_ones() -> None:
    right = PoissonGaussianNoise(0.5, 10.0, read_std=1.2, adc_bits=8)
    dark = PoissonGaussianNoise(0.5, 10.0, read_std=1.2, adc_bits=7)  # saturates at half of the light
    passed = [check_noise(right, repeats(right, seed)) for seed in range(6)]
    passed += [check_noise(dark, repeats(dark, seed)) for seed in range(6)]
    assert sum(result.fits for result in passed) >= 11, [r.findings for r in passed if not r.fits]
    assert passed[0].information_shift.gain is not None
    frames = repeats(dark, 30)
    assert not check_noise(PoissonGaussianNoise(0.55, 10.0, read_std=1.2, adc_bits=7), frames).fits
    assert not check_noise(PoissonGaussianNoise(0.5, 10.0, read_std=1.8, adc_bits=7), frames).fits
    assert not check_noise(right, frames).fits  # the heap at code 127 is not the end of an 8-bit scale
    analogue = check_noise(right, frames + 0.25)
    assert not analogue.fits
    assert any("codes" in finding for finding in analogue.findings)


def test_estimators_take_codes() -> None:
    """One pixel on two levels, both codes of a 4-bit sensor: information by summation, by every route to it."""
    noise = PoissonGaussianNoise(0.4, 2.0, read_std=0.6, adc_bits=4)
    generator = torch.Generator().manual_seed(2)
    levels = torch.tensor([8.0, 15.0], dtype=torch.float64)
    mean = levels[torch.randint(2, (1500, 1), generator=generator)]
    measured = noise.sample(mean, generator=generator)
    p = torch.exp(noise.log_prob(codes(noise)[:, None], levels))
    marginal = p.mean(1)
    truth = float((p * torch.where(p > 0, torch.log2(p / marginal[:, None]), 0.0)).sum() / 2)
    result = bitlens.estimate_information(measured, noise, mean=mean, generator=torch.Generator().manual_seed(0))
    assert result.lower_bits is not None
    assert result.upper_bits is not None
    low, high = result.lower_bits - 4 * result.stderr_bits, result.upper_bits + 4 * result.stderr_bits
    assert low <= truth <= high
    assert not any("does not follow" in warning for warning in result.warnings)
    with pytest.raises(ValueError, match="whole codes"):
        bitlens.estimate_information(measured + 0.5, noise, mean=mean)


def information(gain: Tensor, levels: Tensor) -> Tensor:
    """Of equiprobable levels through a 4-bit sensor, by summation over its codes, nats."""
    noise = PoissonGaussianNoise(1.0, 1.0, read_std=0.2, adc_bits=4)
    noise._buffers["gain"] = gain
    log_p = noise.log_prob(codes(noise)[:, None], levels)
    entropy = noise.entropy(levels).mean()
    log_marginal = torch.logsumexp(log_p, dim=1) - math.log(levels.numel())
    return -(torch.exp(log_marginal) * log_marginal).sum() - entropy


def test_the_best_gain_trades_quantisation_against_saturation() -> None:
    """Too little gain wastes codes, too much saturates: a maximum inside, which the gradient finds."""
    levels = torch.tensor([4.0, 9.0, 16.0, 30.0, 50.0, 75.0], dtype=torch.float64)
    gains = torch.logspace(-2, 1, 61, dtype=torch.float64)
    values = torch.stack([information(gain, levels) for gain in gains])
    best = int(values.argmax())
    assert 0.08 < float(gains[best]) < 0.5
    assert float(values[0]) < 0.5 * float(values[best])
    assert float(values[-1]) < 0.5 * float(values[best])
    found = []
    for start in (0.03, 1.0):
        log_gain = scalar(math.log(start)).requires_grad_()
        optimizer = torch.optim.Adam([log_gain], lr=0.1)
        for _ in range(60):
            optimizer.zero_grad()
            (-information(torch.exp(log_gain), levels)).backward()
            optimizer.step()
        found.append(float(information(torch.exp(log_gain.detach()), levels)))
    assert min(found) > float(values.max()) - 0.02


@pytest.mark.parametrize("start", [0.01, 20.0])
def test_optimize_design_chooses_a_gain(start: float) -> None:
    """From a gain that wastes codes up, from one that saturates every scene down, to more bits by another estimate."""
    generator = torch.Generator().manual_seed(4)
    scenes = 10 + 190 * torch.rand((200, 1, 2, 2), generator=generator, dtype=torch.float64)
    noise = PoissonGaussianNoise(nn.Parameter(scalar(start)), 4.0, read_std=0.8, adc_bits=6)
    result = bitlens.optimize_design(
        nn.Identity(),
        noise,
        scenes,
        n_steps=60,
        learning_rate=0.02 if start < 1 else 0.5,
        constraints={"gain": bitlens.design.Box(0.005, 30.0)},
        generator=generator,
    )
    assert isinstance(result.noise, PoissonGaussianNoise)
    assert 0.15 < float(result.noise.gain.detach()) < 4.0
    assert result.history[-1].objective_bits > result.history[0].objective_bits + 1.0
    assert result.after.bits > result.before.bits + 0.5
