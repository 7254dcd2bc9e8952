"""The streaming estimate: what it says about known channels, and that the way the images come does not matter."""

from __future__ import annotations

import math
import pickle
import statistics

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens import GaussianNoise, PoissonGaussianNoise, PoissonNoise, estimate_information
from bitlens.estimators import InformationEstimate
from bitlens.estimators._streaming import Moments, row_keys, uniforms
from bitlens.estimators.metric import InformationMetric
from bitlens.noise import NoiseModel

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_channel(n: int, seed: int, power: float = 4.0, shape: tuple[int, ...] = (2, 3)) -> tuple[Tensor, Tensor]:
    """Correlated Gaussian scenes and their measurements with noise of standard deviation 1."""
    rng = generator(seed)
    white = torch.randn(n, math.prod(shape), generator=rng, dtype=torch.float64)
    mean = (white @ mixing(math.prod(shape), power)).reshape(n, *shape) + 30.0
    return mean, GaussianNoise(1.0).sample(mean, rng)


def mixing(n_pixels: int, power: float) -> Tensor:
    spread = torch.linspace(0.3, 1.7, n_pixels, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(n_pixels, n_pixels, generator=generator(7), dtype=torch.float64))[0]
    return torch.diag((power * spread).sqrt()) @ basis


def truth_bits(n_pixels: int, power: float = 4.0) -> float:
    spread = torch.linspace(0.3, 1.7, n_pixels, dtype=torch.float64)
    return float(torch.log2(1.0 + power * spread).sum()) / 2


def poisson_scenes(n: int, seed: int, photons: float) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    mean = torch.from_numpy(rng.gamma(4.0, photons / 4.0, (n, 1, 1)) * rng.uniform(0.5, 1.5, (n, 2, 2)))
    return mean, PoissonNoise().sample(mean, generator(seed))


def fed(
    noise: NoiseModel, measured: Tensor, mean: Tensor | None = None, batch: int = 100, **settings: int
) -> InformationMetric:
    metric = InformationMetric(noise, generator=generator(3), **settings)  # type: ignore[arg-type]
    for first in range(0, len(measured), batch):
        part = slice(first, first + batch)
        metric.update(measured[part], None if mean is None else mean[part])
    return metric


def assert_alike(first: InformationEstimate, second: InformationEstimate, rel: float = 1e-9) -> None:
    for name in ("bits", "upper_bits", "lower_bits", "ceiling_bits", "stderr_bits"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a == pytest.approx(b, rel=rel), name
    assert first.n_samples == second.n_samples


# ---- What it says ----


def test_gaussian_channel_from_noisy_images_alone() -> None:
    _, measured = gaussian_channel(20_000, 0)
    result = fed(GaussianNoise(1.0), measured).compute()
    assert result.bound == "estimate"
    assert result.stderr_bits is not None
    assert result.upper_bits is not None
    assert abs(result.bits - truth_bits(6)) < 4 * result.stderr_bits
    assert result.upper_bits > result.bits
    assert result.bits_per_pixel == pytest.approx(result.bits / 6)
    assert result.n_samples == 20_000
    assert result.warnings == ()
    whole = estimate_information(measured, GaussianNoise(1.0), method="gaussian", generator=generator(0))
    assert whole.stderr_bits is not None
    assert abs(result.bits - whole.bits) < 4 * math.hypot(result.stderr_bits, whole.stderr_bits)


def test_interval_covers_truth_and_upper_bound_holds_over_repetitions() -> None:
    n_repeats, hits, errors, upper = 300, 0, [], []
    truth = truth_bits(3)
    for seed in range(n_repeats):
        _, measured = gaussian_channel(400, seed, shape=(3,))
        result = fed(GaussianNoise(1.0), measured, batch=200).compute()
        assert result.confidence_interval_bits is not None
        assert result.upper_bits is not None
        hits += result.confidence_interval_bits[0] <= truth <= result.confidence_interval_bits[1]
        errors.append(result.bits - truth)
        upper.append(result.upper_bits - truth)
    # 300 tosses of 0.95: 285 with sd 3.8.
    assert 270 <= hits <= 299
    assert abs(statistics.mean(errors)) < 4 * statistics.stdev(errors) / math.sqrt(n_repeats)
    assert statistics.mean(upper) > -4 * statistics.stdev(upper) / math.sqrt(n_repeats)


@pytest.mark.parametrize("with_mean", [False, True])
@pytest.mark.parametrize(
    ("noise", "photons"),
    [(PoissonNoise(), 8.0), (PoissonNoise(), 0.4), (PoissonGaussianNoise(gain=2.0, offset=10.0, read_std=1.5), 8.0)],
)
def test_agrees_with_the_estimate_from_memory(noise: NoiseModel, photons: float, with_mean: bool) -> None:
    mean, _ = poisson_scenes(6_000, 1, photons)
    measured = noise.sample(mean, generator(1))
    means = mean if with_mean else None
    streamed = fed(noise, measured, means, method="gaussian").compute()  # type: ignore[arg-type]
    whole = estimate_information(measured, noise, mean=means, method="gaussian", generator=generator(0))
    assert streamed.stderr_bits is not None
    assert whole.stderr_bits is not None
    assert abs(streamed.bits - whole.bits) < 4 * math.hypot(streamed.stderr_bits, whole.stderr_bits)
    assert streamed.bound == whole.bound == "estimate"


def test_mean_gives_both_bounds_of_the_known_channel() -> None:
    mean, measured = gaussian_channel(8_000, 2, power=0.6)
    result = fed(GaussianNoise(1.0), measured, mean).compute()
    assert result.bound == "two-sided"
    assert result.lower_bits is not None
    assert result.upper_bits is not None
    assert result.stderr_bits is not None
    assert result.ceiling_bits == pytest.approx(10.0)
    assert result.lower_bits - 4 * result.stderr_bits < truth_bits(6, 0.6) < result.upper_bits + 4 * result.stderr_bits
    assert result.upper_bits - result.lower_bits < 0.3


def test_few_images_for_the_pixels_leave_the_known_channel() -> None:
    mean, measured = gaussian_channel(60, 2, power=0.1, shape=(8, 8))
    result = fed(GaussianNoise(1.0), measured, mean, held_out_share=0.9).compute()  # type: ignore[arg-type]
    assert "gaussian" not in result.method
    with pytest.raises(ValueError, match="measured: need at least 67 images beside the held-out ones"):
        fed(GaussianNoise(1.0), measured, held_out_share=0.9).compute()  # type: ignore[arg-type]


def test_all_images_sharpen_the_conditional_entropy_of_the_held_out_ones() -> None:
    _, measured = poisson_scenes(12_000, 4, 2.0)
    metric = fed(PoissonNoise(), measured, held_out=200)
    errors = []
    for seed in range(40):
        again = InformationMetric(PoissonNoise(), held_out=200, generator=generator(seed))
        again.update(measured)
        errors.append(again.compute().bits)
    result = metric.compute()
    assert result.stderr_bits is not None
    # The samples differ and the images do not: their spread is within the error that each one claims.
    assert 0.4 * result.stderr_bits < statistics.stdev(errors) < 1.25 * result.stderr_bits
    whole = estimate_information(measured, PoissonNoise(), method="gaussian", generator=generator(0))
    assert whole.stderr_bits is not None
    assert result.stderr_bits < 0.8 * whole.stderr_bits * math.sqrt(12_000 / 200)


# ---- What does not matter ----


@pytest.mark.parametrize("with_mean", [False, True])
@pytest.mark.parametrize("noise", [GaussianNoise(1.0), PoissonNoise()])
def test_batch_size_does_not_matter(noise: NoiseModel, with_mean: bool) -> None:
    mean = poisson_scenes(900, 0, 30.0)[0]
    measured = noise.sample(mean, generator(0))
    means = mean if with_mean else None
    first = fed(noise, measured, means, 900).compute()
    for batch in (1, 7, 250):
        assert_alike(first, fed(noise, measured, means, batch).compute())


def test_single_precision_images_are_the_same_images() -> None:
    measured = gaussian_channel(600, 0)[1].to(torch.float32)
    first = fed(GaussianNoise(1.0), measured).compute()
    assert first == fed(GaussianNoise(1.0), measured.to(torch.float64)).compute()
    metric = InformationMetric(GaussianNoise(1.0), generator=generator(3))
    for part in measured.split(100):
        metric.update(part.numpy())
    assert metric.compute() == first


@pytest.mark.parametrize("with_mean", [False, True])
def test_order_of_merging_does_not_matter(with_mean: bool) -> None:
    mean, measured = poisson_scenes(2_000, 0, 5.0)

    def worker(rank: int) -> InformationMetric:
        part = slice(500 * rank, 500 * (rank + 1))
        return fed(PoissonNoise(), measured[part], mean[part] if with_mean else None, held_out=64)

    workers = [worker(rank) for rank in range(4)]
    one_by_one = worker(0).merge(workers[1]).merge(workers[2]).merge(workers[3]).compute()
    backwards = workers[3] + workers[2] + workers[1] + workers[0]
    pairs = (workers[2] + workers[0]) + (workers[1] + workers[3])
    assert_alike(one_by_one, backwards.compute())
    assert_alike(one_by_one, pairs.compute())
    assert one_by_one.n_samples == 2_000
    # The parts are as they were.
    assert workers[3].compute() == worker(3).compute()
    fresh = InformationMetric(PoissonNoise(), held_out=64, generator=generator(0))
    assert_alike(fresh.merge(pairs).compute(), one_by_one)
    assert_alike(pairs.merge(InformationMetric(PoissonNoise(), held_out=64)).compute(), one_by_one)


def test_merged_workers_agree_with_truth_though_they_share_a_seed() -> None:
    _, measured = gaussian_channel(12_000, 5)
    parts = [fed(GaussianNoise(1.0), part) for part in measured.split(3_000)]
    result = (parts[0] + parts[1] + parts[2] + parts[3]).compute()
    assert result.stderr_bits is not None
    assert abs(result.bits - truth_bits(6)) < 4 * result.stderr_bits


def test_moments_in_parts_are_those_of_the_whole_far_from_zero() -> None:
    rows = 1e7 + torch.randn(5_000, 4, generator=generator(0), dtype=torch.float64)
    truth = torch.cov(rows.mT, correction=0) * 5_000
    moments = Moments.empty(4, rows.device)
    for part in rows.split(3):
        moments = moments.with_rows(part)
    halves = Moments.empty(4, rows.device).with_rows(rows[:4_000])
    halves = halves.merged(Moments.empty(4, rows.device).with_rows(rows[4_000:]))
    for found in (moments, halves):
        assert found.n == 5_000
        torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-14, atol=0)
        torch.testing.assert_close(found.scatter, truth, rtol=0, atol=1e-3)


def test_every_row_is_either_held_out_or_in_the_moments() -> None:
    _, measured = gaussian_channel(1_500, 6)
    halves = fed(GaussianNoise(1.0), measured[:700], held_out=20)
    halves.merge(fed(GaussianNoise(1.0), measured[700:], batch=33, held_out=20))
    state = halves.state_dict()
    rows, held = measured.flatten(1), state["held_out_measured"]
    assert len(held) == 20
    assert int(state["count"]) == 1_480
    others = rows[~(rows[:, None] == held[None]).all(2).any(1)]
    torch.testing.assert_close(state["mean"], others.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(state["scatter"] / 1_479, torch.cov(others.mT), rtol=1e-10, atol=1e-10)


def test_memory_does_not_grow() -> None:
    metric = InformationMetric(PoissonNoise(), held_out=32, generator=generator(0))
    sizes = []
    for seed in range(30):
        mean, measured = poisson_scenes(100, seed, 5.0)
        metric.update(measured, mean)
        state = metric.state_dict()
        sizes.append(sum(value.numel() for value in state.values()))
        storages = (state["scatter"], state["held_out_measured"], state["held_out_mean"])
        assert all(value.untyped_storage().nbytes() == 8 * value.numel() for value in storages)
    assert len(set(sizes[3:])) == 1
    assert len(pickle.dumps(metric)) < 20_000


# ---- Its random choices ----


def test_held_out_rows_are_a_fair_sample_and_dither_is_uniform() -> None:
    # 40,000 images of which most are equal: the content alone must not decide.
    rows = torch.poisson(torch.full((40_000, 2), 0.3, dtype=torch.float64), generator=generator(0))
    keys = row_keys(rows, 0, 11)
    assert len(torch.unique(keys)) == len(keys)
    held = rows[torch.argsort(keys)[:8_000]]
    spread = float(rows.std()) / math.sqrt(16_000)
    assert abs(float(held.mean() - rows.mean())) < 4 * spread
    dither = uniforms(keys, 2)
    assert 0.0 <= float(dither.min()) < float(dither.max()) < 1.0
    assert abs(float(dither.mean()) - 0.5) < 4 / math.sqrt(12 * 80_000)
    assert abs(float(dither.var()) - 1 / 12) < 4 * math.sqrt(1 / 180 / 80_000)
    assert abs(float(torch.corrcoef(dither.mT)[0, 1])) < 4 / math.sqrt(40_000)
    # Also among the rows that are held out.
    assert abs(float(dither[torch.argsort(keys)[:8_000]].mean()) - 0.5) < 4 / math.sqrt(12 * 16_000)
    assert not torch.equal(keys, row_keys(rows, 0, 12))
    assert torch.equal(keys[100:], row_keys(rows[100:], 100, 11))


def test_seed_repeats_and_reset_forgets() -> None:
    _, measured = poisson_scenes(500, 0, 5.0)
    metric = fed(PoissonNoise(), measured)
    first = metric.compute()
    assert metric.compute() == first
    assert first.seed == 3
    metric.reset()
    with pytest.raises(RuntimeError, match="call update first"):
        metric.compute()
    metric.update(measured)
    assert_alike(metric.compute(), first)
    other = InformationMetric(PoissonNoise(), generator=generator(4))
    other.update(measured)
    assert other.compute().bits != first.bits


@pytest.mark.parametrize("with_mean", [False, True])
def test_state_goes_on_where_it_was_taken(with_mean: bool) -> None:
    mean, measured = poisson_scenes(800, 0, 5.0)
    first, second = slice(0, 300), slice(300, 800)
    metric = fed(PoissonNoise(), measured[first], mean[first] if with_mean else None)
    state = {name: value.clone() for name, value in metric.state_dict().items()}
    assert all(isinstance(value, Tensor) for value in state.values())
    restored = InformationMetric(PoissonNoise())
    restored.load_state_dict(state)
    for each in (metric, restored):
        each.update(measured[second], mean[second] if with_mean else None)
    assert restored.compute() == metric.compute()
    # What went on has not written into the state.
    assert torch.equal(
        state["scatter"],
        fed(PoissonNoise(), measured[first], mean[first] if with_mean else None).state_dict()["scatter"],
    )
    empty = InformationMetric(PoissonNoise(), generator=generator(9)).state_dict()
    restored.load_state_dict(empty)
    assert restored.n_samples == 0


# ---- What it refuses ----


def test_arguments_are_named() -> None:
    noise = GaussianNoise(1.0)
    with pytest.raises(TypeError, match="noise: need a noise model"):
        InformationMetric(1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="method: need 'auto' or 'gaussian', got 'best'"):
        InformationMetric(noise, method="best")
    with pytest.raises(ValueError, match="held_out: need a whole number of at least 10, got 3"):
        InformationMetric(noise, held_out=3)
    with pytest.raises(ValueError, match="held_out_share: need a value between 0 and 1"):
        InformationMetric(noise, held_out_share=1.0)
    with pytest.raises(ValueError, match="confidence: need a value between 0 and 1"):
        InformationMetric(noise, confidence=95)
    with pytest.raises(TypeError, match=r"confidence: need a number between 0 and 1, got '0.95' \(str\)"):
        InformationMetric(noise, confidence="0.95")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"device: need a torch.device or its name, got torch.float32"):
        InformationMetric(noise).to(torch.float32)  # type: ignore[arg-type]
    assert InformationMetric(noise, held_out=np.int64(30)).held_out == 30  # type: ignore[arg-type]


def test_batches_that_do_not_belong_together_leave_the_metric_as_it_was() -> None:
    mean, measured = gaussian_channel(200, 0)
    metric = fed(GaussianNoise(1.0), measured)
    before = metric.compute()
    with pytest.raises(ValueError, match=r"measured: need images of shape \(2, 3\), got \(3, 2\)"):
        metric.update(measured.mT)
    with pytest.raises(ValueError, match="mean: need None in every batch"):
        metric.update(measured, mean)
    with pytest.raises(ValueError, match="measured: need finite values"):
        metric.update(measured / 0)
    with pytest.raises(ValueError, match="mean: need the shape of measured"):
        metric.update(measured, mean[:3])
    assert metric.compute() == before
    counts = InformationMetric(PoissonNoise())
    with pytest.raises(ValueError, match="need whole counts"):
        counts.update(measured.abs())
    assert counts.n_samples == 0
    with pytest.raises(ValueError, match="other: need the same noise model"):
        metric.merge(fed(GaussianNoise(2.0), measured))
    with pytest.raises(ValueError, match="other: need the same held_out"):
        metric.merge(fed(GaussianNoise(1.0), measured, held_out=10))
    with pytest.raises(ValueError, match="other: need images of shape"):
        metric.merge(fed(GaussianNoise(1.0), measured.mT))
    with pytest.raises(TypeError, match="other: need an InformationMetric, got str"):
        metric.merge("statistics")  # type: ignore[arg-type]
    assert metric.compute() == before


def test_too_few_images_and_dead_pixels_are_named() -> None:
    _, measured = gaussian_channel(20, 0)
    with pytest.raises(ValueError, match="measured: need about 50 images to hold 10 out, got 20"):
        fed(GaussianNoise(1.0), measured).compute()
    _, measured = gaussian_channel(300, 0)
    measured[:, 0, 0] = 1.0
    with pytest.raises(ValueError, match=r"full rank.*got pixel \(0, 0\) with one value in all 300 images"):
        fed(GaussianNoise(1.0), measured).compute()
    measured[:, 0, 0] = measured[:, 0, 1]
    with pytest.raises(ValueError, match="need a covariance of full rank"):
        fed(GaussianNoise(1.0), measured).compute()


def test_a_noise_model_that_does_not_fit_is_said() -> None:
    mean, measured = gaussian_channel(1_000, 0)
    result = fed(GaussianNoise(3.0), measured, mean).compute()
    assert any("does not follow the noise model" in note for note in result.warnings)
    assert any("negative" in note for note in fed(GaussianNoise(30.0), measured).compute().warnings)


# ---- The habits of torchmetrics ----


def test_a_call_adds_the_batch_and_gives_its_own_estimate() -> None:
    _, measured = gaussian_channel(900, 0)
    metric, alone = (InformationMetric(GaussianNoise(1.0), generator=generator(3)) for _ in range(2))
    alone.update(measured[:600])
    assert metric(measured[:600]) == alone.compute()
    # Too small for an estimate of its own, but it counts.
    assert metric(measured[600:620]) is None
    alone.update(measured[600:620])
    assert metric.compute() == alone.compute()
    with pytest.raises(ValueError, match="need finite values"):
        metric(measured / 0)
    assert metric.n_samples == 620


def test_sum_is_what_all_have_seen() -> None:
    _, measured = gaussian_channel(900, 0)
    parts = [fed(GaussianNoise(1.0), part) for part in measured.split(300)]
    first = parts[0].compute()
    assert_alike(sum(parts).compute(), (parts[0] + parts[1] + parts[2]).compute())  # type: ignore[union-attr]
    only = sum(parts[:1])
    assert isinstance(only, InformationMetric)
    only.update(measured)
    assert parts[0].compute() == first
    with pytest.raises(TypeError):
        sum(parts, start=3)  # type: ignore[call-overload]


def test_the_same_images_are_not_merged_twice() -> None:
    _, measured = gaussian_channel(300, 0)
    metric = fed(GaussianNoise(1.0), measured)
    for twice in (lambda: metric.merge(metric), lambda: metric + metric):
        with pytest.raises(ValueError, match="other: need another metric, got this one"):
            twice()
    assert metric.n_samples == 300


def test_to_a_device() -> None:
    _, measured = gaussian_channel(300, 0)
    metric = InformationMetric(GaussianNoise(1.0), generator=generator(3))
    assert metric.to("cpu") is metric
    for part in measured.split(100):
        metric.update(part)
        metric.to(torch.device("cpu"))
    assert metric.compute() == fed(GaussianNoise(1.0), measured).compute()
    # What lies elsewhere cannot be computed with; that all of it goes, and stays, there can be seen.
    metric.to("meta")
    assert {state.device.type for name, state in metric.state_dict().items() if "held" in name} == {"meta"}
    metric.reset()
    metric._start(measured, False)
    assert metric._moments.scatter.device.type == metric._sample.keys.device.type == "meta"


def test_labels_and_maps_of_another_shape_are_named() -> None:
    _, measured = gaussian_channel(60, 0)
    metric = InformationMetric(GaussianNoise(1.0))
    with pytest.raises(ValueError, match=r"mean: need noiseless .* got shape \(60,\): labels of a loader"):
        metric.update(measured, torch.zeros(60, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"std: need a number or a map that fits images \(2, 3\), got \(4, 4\)"):
        InformationMetric(GaussianNoise(torch.ones(4, 4))).update(measured)
