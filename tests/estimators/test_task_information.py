"""Information about a task against closed forms, exhaustive Monte Carlo and the inequalities that hold for any task."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from bitlens import GaussianNoise, PoissonGaussianNoise, PoissonNoise, estimate_information
from bitlens.estimators import mutual_information, task_information
from bitlens.estimators._inputs import make_groups
from bitlens.estimators.result import InformationEstimate
from bitlens.estimators.task_information import estimate_task_information
from bitlens.noise import NoiseModel

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stderr(result: InformationEstimate) -> float:
    assert result.stderr_bits is not None
    return result.stderr_bits


def is_valid_and_tight(result: InformationEstimate, truth: float, slack: float) -> bool:
    """No more than the truth within its error, and no less than it but for what learning costs."""
    return truth - slack - 4 * stderr(result) <= result.bits <= truth + 4 * stderr(result)


# ---- Constellations ----


def constellation_truth(noise: NoiseModel, means: Tensor, prior: Tensor, n_samples: int = 100_000) -> float:
    """Bits by Monte Carlo over fresh samples with likelihoods written out pixel by pixel."""
    rng = generator(99)
    label = torch.multinomial(prior, n_samples, replacement=True, generator=rng)
    measured = noise.sample(means[label], rng)
    log_p = torch.stack([noise.log_prob(measured, mean).flatten(1).sum(1) for mean in means], dim=1)
    rows = log_p.gather(1, label[:, None])[:, 0] - torch.logsumexp(log_p + prior.log(), dim=1)
    return rows.mean().item() / math.log(2)


def constellation(
    noise: NoiseModel, means: Tensor, n_samples: int, prior: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    rng = generator(seed)
    weights = torch.ones(len(means)) if prior is None else prior
    label = torch.multinomial(weights, n_samples, replacement=True, generator=rng)
    return noise.sample(means[label], rng), label, means[label]


MEANS = 6.0 + 1.6 * torch.randn(4, 3, 3, generator=generator(7), dtype=torch.float64)
PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


@pytest.mark.parametrize(
    "noise", [GaussianNoise(2.5), PoissonNoise(), PoissonGaussianNoise(2.0, 100.0, read_std=3.0, adc_bits=10)]
)
def test_known_channel_of_one_mean_per_class_is_exact(noise: NoiseModel) -> None:
    truth = constellation_truth(noise, MEANS, PRIOR)
    measured, label, mean = constellation(noise, MEANS, 4000, PRIOR)
    result = estimate_task_information(measured, label, noise, mean=mean, generator=generator())
    assert result.bound == "two-sided"
    assert result.lower_bits == result.upper_bits == result.bits
    assert abs(result.bits - truth) < 4 * math.hypot(stderr(result), 0.002)
    assert stderr(result) < 0.03
    share = torch.bincount(label) / 4000
    assert result.ceiling_bits == pytest.approx(-(share * share.log2()).sum().item())
    assert result.bits_per_pixel == pytest.approx(result.bits / 9)
    assert result.warnings == ()


@pytest.mark.parametrize("method", ["logistic", "perceptron", "auto"])
def test_learned_bound_of_a_constellation_is_below_the_truth_and_close(method: str) -> None:
    noise = GaussianNoise(2.5)
    truth = constellation_truth(noise, MEANS, torch.full((4,), 0.25, dtype=torch.float64))
    measured, label, _ = constellation(noise, MEANS, 2000)
    result = estimate_task_information(measured, label, method=method, generator=generator())
    assert result.bound == "lower"
    assert result.upper_bits is None
    assert result.lower_bits == result.bits
    assert is_valid_and_tight(result, truth, 0.03)


def test_one_pixel_of_two_levels_of_light_is_the_sum_over_counts() -> None:
    k = np.arange(80)
    p = stats.poisson.pmf(k, [[3.0], [9.0]])
    truth = 0.5 * (p * np.log2(p / p.mean(axis=0))).sum()
    noise = PoissonNoise()
    measured, label, mean = constellation(noise, torch.tensor([[3.0], [9.0]], dtype=torch.float64), 3000)
    exact = estimate_task_information(measured, label, noise, mean=mean, generator=generator())
    assert abs(exact.bits - truth) < 4 * stderr(exact)
    learned = estimate_task_information(measured, label, noise, generator=generator())
    assert is_valid_and_tight(learned, truth, 0.01)


@pytest.mark.parametrize("flip", [0.02, 0.11, 0.3])
def test_binary_symmetric_channel_has_the_closed_form(flip: float) -> None:
    rng = generator(1)
    bit = torch.randint(2, (2500,), generator=rng)
    measured = (bit ^ (torch.rand(2500, generator=rng) < flip).long())[:, None]
    truth = 1 + flip * math.log2(flip) + (1 - flip) * math.log2(1 - flip)
    result = estimate_task_information(measured.numpy(), bit.bool().numpy(), generator=generator())
    assert is_valid_and_tight(result, truth, 0.01)


def test_a_task_that_no_plane_divides_needs_the_perceptron() -> None:
    # Exclusive or of the signs of two pixels, 6 deviations apart.
    rng = generator(2)
    signs = 2.0 * torch.randint(2, (1200, 2), generator=rng) - 1.0
    measured, label = 3 * signs + torch.randn(1200, 2, generator=rng), (signs.prod(1) > 0).long()
    linear = estimate_task_information(measured, label, method="logistic", generator=generator())
    assert abs(linear.bits) < 0.01 + 4 * stderr(linear)
    best = estimate_task_information(measured, label, generator=generator())
    # Mistakes come at 2 Phi(-3) = 0.0027 and cost about 0.02 bits.
    assert is_valid_and_tight(best, 0.98, 0.05)
    assert "perceptron" in best.method


def test_objects_anywhere_in_the_field_need_the_convolution() -> None:
    rng = generator(3)
    label = torch.randint(2, (600,), generator=rng)
    images = 0.1 * torch.randn(600, 12, 12, generator=rng)
    row, column = torch.randint(1, 11, (2, 600), generator=rng)
    index = torch.arange(600)
    for step in (-1, 0, 1):
        images[index, row + step * label, column + step * (1 - label)] += 1.0
    result = estimate_task_information(images, label, method="convolution", generator=generator())
    assert result.bits > 0.9
    assert result.method == "convolution"


# ---- Scenes that vary within a class ----


def levels(n_samples: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """One pixel: mean +-1 by class, scattered by 0.7 from scene to scene, in noise of 0.8."""
    rng = generator(seed)
    label = torch.randint(2, (n_samples,), generator=rng)
    mean = (2.0 * label - 1 + 0.7 * torch.randn(n_samples, generator=rng))[:, None].double()
    return mean + 0.8 * torch.randn(n_samples, 1, generator=rng), label, mean


def levels_truth() -> float:
    spread = math.hypot(0.7, 0.8)

    def density(z: float) -> float:
        p = np.array([stats.norm.pdf(z, -1, spread), stats.norm.pdf(z, 1, spread)])
        return float(0.5 * (p * np.log2(p / p.mean())).sum())

    return float(integrate.quad(density, -12, 12)[0])


def test_scenes_of_other_images_make_the_likelihood_of_a_class() -> None:
    measured, label, mean = levels(2000, 0)
    known = estimate_task_information(
        measured, label, GaussianNoise(0.8), mean=mean, method="known_channel", generator=generator()
    )
    assert known.bound == "lower"
    assert is_valid_and_tight(known, levels_truth(), 0.005)
    both = estimate_task_information(measured, label, GaussianNoise(0.8), mean=mean, generator=generator())
    assert is_valid_and_tight(both, levels_truth(), 0.01)


def test_error_of_the_known_channel_counts_the_draw_of_the_scenes() -> None:
    results = []
    for seed in range(150):
        measured, label, mean = levels(120, 100 + seed)
        results.append(
            estimate_task_information(
                measured, label, GaussianNoise(0.8), mean=mean, method="known_channel", generator=generator()
            )
        )
    spread = np.std([result.bits for result in results], ddof=1)
    ratio = np.mean([stderr(result) for result in results]) / spread
    # A deviation from 150 values is known to 6 %.
    assert abs(ratio - 1) < 0.24
    assert np.mean([result.bits for result in results]) < levels_truth() + 4 * spread / math.sqrt(150)


def test_influence_is_the_derivative_by_the_weight_of_a_scene() -> None:
    measured, label, mean = levels(40, 4)
    noise = GaussianNoise(0.4)
    target = task_information._target(label, measured)
    assert target is not None
    groups = make_groups(torch.arange(40) % 17, measured, generator())
    found = task_information._by_likelihood(measured, mean, noise, target, groups)
    assert found is not None
    outside = groups.labels[:, None] != groups.labels
    likelihood = torch.exp(noise.log_prob(measured, mean[:, 0])) * outside
    member = torch.nn.functional.one_hot(label).double()
    prior = member.mean(0)

    def bound(weight: Tensor) -> Tensor:
        joint = prior * ((likelihood * weight) @ member) / (outside.double() @ member)
        q = (joint / joint.sum(1, keepdim=True))[torch.arange(40), label]
        rows = torch.log((1 - 1 / 40) * q + prior[label] / 40) - prior[label].log()
        return (weight * rows).sum() / weight.sum()

    ones = torch.ones(40, dtype=torch.float64, requires_grad=True)
    value = bound(ones)
    (gradient,) = torch.autograd.grad(value, ones)
    assert found.rows.mean().item() == pytest.approx(value.item(), rel=1e-12)
    torch.testing.assert_close((found.influence - found.influence.mean()) / 40, gradient)


def test_task_has_no_more_than_the_scene_nor_than_its_entropy() -> None:
    rng = generator(5)
    base = torch.randn(3, 4, 4, generator=rng, dtype=torch.float64)
    label = torch.randint(3, (1500,), generator=rng)
    mean = 3 * base[label] + torch.randn(1500, 4, 4, generator=rng, dtype=torch.float64)
    noise = GaussianNoise(4.0)
    measured = noise.sample(mean, rng)
    scene = estimate_information(measured, noise, mean=mean, generator=generator())
    task = estimate_task_information(measured, label, noise, mean=mean, generator=generator())
    assert scene.upper_bits is not None
    assert task.ceiling_bits is not None
    assert task.bits < scene.upper_bits + 4 * stderr(scene)
    assert 0.1 < task.bits <= task.ceiling_bits
    # Noise added to the measurement takes information away.
    worse = measured + 8 * torch.randn(measured.shape, generator=rng, dtype=torch.float64)
    assert estimate_task_information(worse, label, generator=generator()).bits < task.bits


# ---- Nothing to find ----


@pytest.mark.parametrize("method", ["logistic", "perceptron"])
@pytest.mark.parametrize("n_classes", [2, 7])
def test_independent_labels_have_nothing(method: str, n_classes: int) -> None:
    rng = generator(6)
    measured = torch.randn(700, 25, generator=rng)
    label = torch.randint(n_classes, (700,), generator=rng)
    result = estimate_task_information(measured, label, method=method, generator=generator())
    assert abs(result.bits) < 4 * stderr(result) + 1e-9
    assert abs(result.bits) < 0.02


def test_nothing_costs_nothing_on_average() -> None:
    results = []
    for seed in range(12):
        rng = generator(seed)
        measured, label = torch.randn(400, 9, generator=rng), torch.randint(3, (400,), generator=rng)
        results.append(estimate_task_information(measured, label, method="logistic", generator=rng).bits)
    assert abs(np.mean(results)) < 0.002
    assert 0.0 in results


def test_independent_scenes_and_values_have_nothing() -> None:
    rng = generator(8)
    measured, _, mean = levels(600, 3)
    label = torch.randint(2, (600,), generator=rng)
    known = estimate_task_information(
        measured, label, GaussianNoise(0.8), mean=mean, method="known_channel", generator=generator()
    )
    assert abs(known.bits) < 4 * stderr(known) + 0.005
    value = estimate_task_information(measured, torch.randn(600, generator=rng), generator=generator())
    assert abs(value.bits) < 4 * stderr(value) + 1e-9


def test_images_of_one_group_do_not_vouch_for_each_other() -> None:
    rng = generator(9)
    source = torch.randn(60, 80, generator=rng)
    group = torch.arange(60).repeat_interleave(10)
    measured = source[group] + 0.05 * torch.randn(600, 80, generator=rng)
    label = torch.randint(2, (60,), generator=rng)[group]
    # More pixels than sources: a plane divides the sources however they are labelled.
    grouped = estimate_task_information(measured, label, groups=group, generator=generator())
    assert abs(grouped.bits) < 4 * stderr(grouped) + 1e-9
    assert estimate_task_information(measured, label, method="logistic", generator=generator()).bits > 0.5


# ---- A number ----


def test_one_parameter_in_gaussian_noise_has_the_closed_form() -> None:
    rng = generator(10)
    value = torch.randn(2000, generator=rng, dtype=torch.float64)
    pattern = torch.tensor([1.0, -0.5, 0.0, 2.0], dtype=torch.float64)
    measured = value[:, None] * pattern + 1.5 * torch.randn(2000, 4, generator=rng, dtype=torch.float64)
    truth = 0.5 * math.log2(1 + pattern.square().sum().item() / 1.5**2)
    result = estimate_task_information(measured, value, generator=generator())
    assert result.bound == "lower"
    assert result.ceiling_bits is None
    assert is_valid_and_tight(result, truth, 0.02)
    # A map of the parameter that can be undone changes nothing.
    mapped = estimate_task_information(measured, torch.exp(3 * value), generator=generator())
    assert mapped.bits == result.bits


def test_error_bars_follow_a_parameter_that_scales_the_noise() -> None:
    # z ~ N(0, exp(2 t)): nothing in the mean, all in the spread; 40 pixels tell t to 1 / sqrt(80).
    rng = generator(11)
    value = torch.randn(1500, generator=rng, dtype=torch.float64)
    measured = torch.exp(value)[:, None] * torch.randn(1500, 40, generator=rng, dtype=torch.float64)
    result = estimate_task_information(measured.abs().log(), value, generator=generator())
    upper = 0.5 * math.log2(1 + 80)
    assert 0.75 * upper < result.bits < upper + 4 * stderr(result)


def test_several_parameters_go_to_the_estimator_of_mutual_information(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, label, _ = levels(100, 0)
    exact = estimate_task_information(measured, label, generator=generator())
    seen = []

    def stand_in(x: Tensor, z: Tensor, **options: object) -> InformationEstimate:
        seen.append((x.shape, z.shape, sorted(options)))
        return exact

    monkeypatch.setattr(mutual_information, "estimate_mutual_information", stand_in)
    assert estimate_task_information(measured, np.random.default_rng(0).normal(size=(100, 2))) is exact
    assert seen == [((100, 2), (100, 1), ["confidence", "generator", "groups"])]


# ---- What is said, repeated and refused ----


def test_warnings_name_few_images_unequal_classes_and_a_task_that_is_solved() -> None:
    rng = generator(12)
    label = np.array(["cat"] * 300 + ["dog"] * 15)
    measured = torch.randn(315, 3, generator=rng)
    measured[300:] += 50.0
    result = estimate_task_information(measured, label, method="logistic", generator=generator())
    text = " | ".join(result.warnings)
    assert "1 of 2 classes have fewer than 20 images ('dog' has 15)" in text
    assert "unequal, 15 to 300" in text
    assert "close to the ceiling" in text
    assert result.ceiling_bits is not None
    assert result.ceiling_bits == pytest.approx(stats.entropy([300, 15], base=2))
    assert result.bits <= result.ceiling_bits
    grouped = estimate_task_information(
        measured, label, method="logistic", groups=np.arange(315) % 7, generator=generator()
    )
    assert "7 groups are few" in grouped.warnings[0]


def test_means_that_do_not_belong_to_the_images_are_noticed() -> None:
    noise = PoissonNoise()
    measured, label, mean = constellation(noise, MEANS, 500)
    result = estimate_task_information(measured, label, noise, mean=3 * mean, generator=generator())
    assert "does not follow the noise model" in result.warnings[0]


def test_result_repeats_bit_for_bit_and_leaves_the_global_generator() -> None:
    measured, label, _ = levels(200, 1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = estimate_task_information(measured, label, generator=generator(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    second = estimate_task_information(measured.numpy(), label.numpy(), generator=generator(first.seed))
    assert first == second
    assert first.seed == 3


def test_arguments_that_cannot_be_used_are_named() -> None:
    measured, label, mean = levels(60, 2)
    with pytest.raises(ValueError, match=r"^method: need one of 'auto'"):
        estimate_task_information(measured, label, method="forest")
    with pytest.raises(ValueError, match=r"^confidence: "):
        estimate_task_information(measured, label, confidence=1.0)
    with pytest.raises(TypeError, match=r"^noise: need a noise model"):
        estimate_task_information(measured, label, 0.8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^noise: the likelihoods"):
        estimate_task_information(measured, label, mean=mean)
    with pytest.raises(ValueError, match=r"^noise: the likelihoods"):
        estimate_task_information(measured, label, GaussianNoise(1.0), method="known_channel")
    with pytest.raises(ValueError, match=r"^labels: need one for each of 60"):
        estimate_task_information(measured, label[:5])
    with pytest.raises(ValueError, match=r"^labels: need at least two different"):
        estimate_task_information(measured, 0 * label)
    with pytest.raises(ValueError, match=r"^labels: need at least two images per class"):
        estimate_task_information(measured, torch.arange(60))
    with pytest.raises(ValueError, match=r"are classes"):
        estimate_task_information(measured, label.double())
    with pytest.raises(ValueError, match=r"^labels: need finite"):
        estimate_task_information(measured, np.full(60, np.nan))
    with pytest.raises(TypeError, match=r"^labels: need whole numbers"):
        estimate_task_information(measured, [object()] * 60)
    with pytest.raises(ValueError, match=r"^mean: goes with classes"):
        estimate_task_information(measured, measured[:, 0], GaussianNoise(1.0), mean=mean)
    with pytest.raises(ValueError, match=r"^measured: 'convolution' needs images"):
        estimate_task_information(measured, label, method="convolution")
    with pytest.raises(ValueError, match=r"^measured: need at least 10 images"):
        estimate_task_information(measured[:8], label[:8])
