"""Scripts of the original with one import changed, and the numbers they give against truth."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats

from bitlens import GaussianNoise, PoissonGaussianNoise, conditional_entropy
from bitlens.compat.encoding_information import (
    add_noise,
    analytic_multivariate_gaussian_entropy,
    estimate_information,
    estimate_mutual_information,
    extract_patches,
    normalize_image_stack,
)
from bitlens.compat.encoding_information.models import (
    AnalyticComplexPixelGaussianNoiseModel,
    AnalyticGaussianNoiseModel,
    FullGaussianProcess,
    GaussianNoiseModel,
    MeasurementModel,
    PixelCNN,
    PoissonNoiseModel,
    StationaryGaussianProcess,
    UniformNoiseModel,
)
from bitlens.densities.autoregressive import AutoregressiveDensity

pytestmark = pytest.mark.usefixtures("one_thread")

Array = NDArray[np.float64]
LN2 = math.log(2.0)


def gaussian_channel(n: int, seed: int, size: int = 2, power: float = 4.0) -> Array:
    """White scenes of variance `power` about 30 in noise of variance 1: 0.5 log2(1 + power) bits per pixel."""
    random = np.random.default_rng(seed)
    return np.asarray(30.0 + math.sqrt(1 + power) * random.standard_normal((n, size, size)))


def poisson_pixels(n: int, seed: int, photons: float, size: int = 2) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    mean = random.gamma(4.0, photons / 4.0, (n, size, size))
    return mean, random.poisson(mean).astype(np.float64)


def poisson_entropy(mean: Array) -> Array:
    """Nats, by summation."""
    counts = np.arange(0, 200)
    return np.asarray(special.entr(stats.poisson(np.asarray(mean)[..., None]).pmf(counts)).sum(-1))


# ---- Scripts ----

QUICK_START = """
from encoding_information.models import PixelCNN, FullGaussianProcess, PoissonNoiseModel
from encoding_information import estimate_information, extract_patches
from encoding_information.image_utils import add_noise
from encoding_information.gpu_utils import limit_gpu_memory_growth
import numpy as np

limit_gpu_memory_growth()
measurements = np.random.default_rng(0).gamma(4.0, 25.0, (60, 32, 32)).astype(np.float32)
patches = extract_patches(measurements[:-20], patch_size=4, num_patches=500, seed=1, verbose=True)
test_patches = extract_patches(measurements[-20:], patch_size=4, num_patches=200, seed=2)
clean = np.concatenate([patches, test_patches])
patches, test_patches = add_noise(patches, seed=3), add_noise(test_patches, seed=4)

model = {model}
noise_model = PoissonNoiseModel()
history = model.fit(patches)
info, lower_bound, upper_bound = estimate_information(
    model, noise_model, patches, test_patches, {clean}confidence_interval=0.95, num_bootstraps=3
)
print(f"Information: {{info:.2f}} +- {{(upper_bound - lower_bound) / 2:.2f}} bits/pixel")
samples = model.generate_samples(3, ensure_nonnegative=True, seed=0, verbose=False)
"""


@pytest.mark.parametrize("clean", ["", "clean_data=clean, "])
@pytest.mark.parametrize("model", ["FullGaussianProcess()", "FullGaussianProcess(patches)"])
def test_quick_start_runs_after_one_import_is_changed(model: str, clean: str) -> None:
    script = QUICK_START.format(model=model, clean=clean).replace(
        "from encoding_information", "from bitlens.compat.encoding_information"
    )
    names: dict[str, object] = {}
    exec(script, names)
    info = names["info"]
    assert isinstance(info, float)
    assert names["lower_bound"] < info < names["upper_bound"]  # type: ignore[operator]
    # Independent gamma pixels, 100 photons, shape 4: 2.318 bits; a Gaussian is 0.04 above.
    assert 2.1 < info < 2.6
    assert names["samples"].shape == (3, 4, 4)  # type: ignore[attr-defined]
    assert isinstance(names["history"], list)


def test_black_hole_script_gives_bits_of_the_whole_measurement() -> None:
    random = np.random.default_rng(0)
    sigma = np.array([0.5, 1.0, 2.0])
    deviation = np.concatenate([sigma, sigma])

    def measurements(n: int) -> Array:
        return np.asarray(2.0 * random.standard_normal((n, 6)) + deviation * random.standard_normal((n, 6)))

    training, test = measurements(4_000), measurements(4_000)
    model = FullGaussianProcess(training, add_uniform_noise=False)
    model.fit(training)
    noise_model = AnalyticComplexPixelGaussianNoiseModel(sigma)
    assert noise_model.estimate_conditional_entropy() == pytest.approx(
        0.5 * np.log(2 * math.pi * math.e * deviation**2).sum()
    )
    value = estimate_information(model, noise_model, training, test, scale_total_mi=True, confidence_interval=0.95)
    assert isinstance(value, tuple)
    truth = 0.5 * np.log2(1 + 4.0 / deviation**2).sum()
    assert value[1] < truth < value[2]
    assert value[2] - value[1] < 0.25
    per_pixel = estimate_information(model, noise_model, training, test)
    assert per_pixel == pytest.approx(value[0] / 6)


def test_nothing_of_the_original_is_loaded() -> None:
    code = """
        import sys
        from bitlens.compat.encoding_information.models import FullGaussianProcess, PixelCNN
        assert not {"jax", "tensorflow", "flax", "encoding_information"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


# ---- Numbers ----


@pytest.mark.parametrize("kind", [FullGaussianProcess, StationaryGaussianProcess])
def test_gaussian_channel_has_its_information(kind: type[FullGaussianProcess | StationaryGaussianProcess]) -> None:
    training, test = gaussian_channel(600, 0, 4), gaussian_channel(3_000, 1, 4)
    truth = 0.5 * math.log2(5.0)
    model = kind(training)
    found = estimate_information(model, AnalyticGaussianNoiseModel(1.0), training, test, confidence_interval=0.95)
    assert isinstance(found, tuple)
    value, low, high = found
    # 1.96 sd of 3000 test images is 0.0093; a factor of 2 for a truth outside of one interval in twenty.
    assert abs(value - truth) < (high - low)
    assert high - low < 0.05
    bound = estimate_information(model, AnalyticGaussianNoiseModel(1.0), training, test, subtract_excess=False)
    assert isinstance(bound, float)
    assert bound == pytest.approx(value + model.excess_nats_per_pixel / LN2)
    assert bound > truth - (high - low) / 2
    # A bitlens noise model is one too.
    assert estimate_information(model, GaussianNoise(1.0), training, test) == pytest.approx(value)


@pytest.mark.parametrize("analytic", [False, True])
@pytest.mark.parametrize("entropy_model", ["gaussian", "full_gaussian"])
def test_older_call_has_the_same_information(entropy_model: str, analytic: bool) -> None:
    images = gaussian_channel(4_000, 3)
    found = estimate_mutual_information(
        images,
        entropy_model=entropy_model,
        test_set_fraction=0.5,
        gaussian_noise_sigma=1.0,
        analytic_marginal_entropy=analytic,
        return_entropy_model=True,
        max_epochs=60,
    )
    assert isinstance(found, tuple)
    # Four sd of 2000 images of four pixels.
    assert found[0] == pytest.approx(0.5 * math.log2(5.0), abs=4 * math.sqrt(0.5 / 8_000) / LN2)
    assert isinstance(found[1], StationaryGaussianProcess if entropy_model == "gaussian" else FullGaussianProcess)
    mean, counts = poisson_pixels(4_000, 0, 20.0)
    values = [estimate_mutual_information(counts, clean, entropy_model=entropy_model) for clean in (None, mean)]
    assert values[0] == pytest.approx(values[1], abs=0.05)


def test_interval_covers_truth_where_the_training_set_is_small() -> None:
    truth = 0.5 * math.log2(5.0)
    hits, hits_of_test_alone, errors = 0, 0, []
    noise = AnalyticGaussianNoiseModel(1.0)
    for seed in range(200):
        training, test = gaussian_channel(40, 2 * seed), gaussian_channel(800, 2 * seed + 1)
        model = FullGaussianProcess(training)
        found = estimate_information(model, noise, training, test, confidence_interval=0.95)
        alone = estimate_information(model, noise, training, test, confidence_interval=0.95, num_refits=0)
        assert isinstance(found, tuple)
        assert isinstance(alone, tuple)
        hits += found[1] <= truth <= found[2]
        hits_of_test_alone += alone[1] <= truth <= alone[2]
        errors.append(found[0] - truth)
    # 200 tosses of 0.95: 190 with sd 3.1. The jackknife is rather too wide here.
    assert hits >= 178
    assert hits_of_test_alone < 150
    assert abs(statistics.mean(errors)) < 4 * statistics.stdev(errors) / math.sqrt(200)


@pytest.mark.parametrize("photons", [0.5, 1.0, 2.0, 5.0, 20.0])
def test_poisson_entropy_is_that_of_the_sum(photons: float) -> None:
    mean = np.full((2_000, 8, 8), photons)
    truth = float(poisson_entropy(np.array(photons)))
    assert PoissonNoiseModel().estimate_conditional_entropy(mean + 1e-9) == pytest.approx(truth, abs=1e-5)
    assert PoissonNoiseModel().estimate_conditional_entropy(mean, clean=True) == pytest.approx(truth, abs=1e-5)
    counts = np.random.default_rng(0).poisson(mean)
    assert PoissonNoiseModel().estimate_conditional_entropy(counts) == pytest.approx(truth, abs=0.025)
    # What the original takes, in bits below the truth.
    positive = np.maximum(counts, 1)
    original = np.where(counts > 0, 0.5 * np.log(2 * math.pi * math.e * positive), 0.0).mean()
    expected = {0.5: 0.48, 1.0: 0.42, 2.0: 0.26, 5.0: 0.07, 20.0: 0.013}[photons]
    assert (truth - original) / LN2 == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("photons", [1.0, 10.0])
def test_poisson_pixels_have_their_information(photons: float) -> None:
    _, training = poisson_pixels(3_000, 0, photons)
    clean, test = poisson_pixels(3_000, 1, photons)
    counts = np.arange(0, 2_000)
    marginal = stats.nbinom(4.0, 4.0 / (4.0 + photons)).pmf(counts)
    nodes, weights = special.roots_genlaguerre(60, 3.0)
    conditional = float((weights * poisson_entropy(nodes * photons / 4.0)).sum() / weights.sum())
    truth = (float(special.entr(marginal).sum()) - conditional) / LN2
    model = FullGaussianProcess(training)
    for clean_set in (None, clean):
        found = estimate_information(
            model, PoissonNoiseModel(), training, test, clean_set=clean_set, confidence_interval=0.95
        )
        assert isinstance(found, tuple)
        # The cross-entropy of a Gaussian to a negative binomial law of these means is above its entropy.
        edges = np.arange(0, 2_000)
        variance = photons + photons**2 / 4 + 1 / 12
        third = 1 / 24  # of U[0, 1) within a bin, in the mean of squares
        squares = (edges + 0.5 - photons - 0.5) ** 2
        cross = 0.5 * math.log(2 * math.pi * variance) + 0.5 * ((marginal * squares).sum() + 2 * third) / variance
        gaussian = (cross - conditional) / LN2
        assert abs(found[0] - gaussian) < found[2] - found[1]
        assert found[0] > truth


def test_clean_images_of_other_scenes_serve_as_well() -> None:
    clean, training = poisson_pixels(2_000, 0, 2.0)
    _, test = poisson_pixels(2_000, 1, 2.0)
    model = FullGaussianProcess(training)
    values = [
        estimate_information(model, PoissonNoiseModel(), training, test, given, 0.95)
        for given in (None, clean, clean[:700])
    ]
    for value in values[1:]:
        assert isinstance(value, tuple)
        assert isinstance(values[0], tuple)
        assert abs(value[0] - values[0][0]) < value[2] - value[1]


def test_continuous_data_get_no_uniform_noise_and_counts_do() -> None:
    training, test = gaussian_channel(2_000, 0) / 10.0, gaussian_channel(2_000, 1) / 10.0
    truth = 0.5 * math.log2(5.0)
    for asked in (None, True, False):
        model = FullGaussianProcess(training, add_uniform_noise=asked)
        value = estimate_information(model, AnalyticGaussianNoiseModel(0.1), training, test)
        assert isinstance(value, float)
        assert abs(value - truth) < 0.05
    _, counts = poisson_pixels(2_000, 0, 4.0)
    with_noise = FullGaussianProcess(counts).cov_mat
    without = FullGaussianProcess(counts, add_uniform_noise=False).cov_mat
    assert np.diag(with_noise - without).mean() == pytest.approx(1 / 12, abs=0.06)
    assert without == pytest.approx(np.cov(counts.reshape(2_000, -1).T))


def test_oblique_field_is_stationary() -> None:
    # The original has C(dy, dx) = C(dy, -dx), 0.09 bits per pixel above the truth for such a field.
    size, period = 8, 32
    frequency = np.fft.fftfreq(period)
    along = (frequency[:, None] + frequency) / math.sqrt(2.0)
    across = (frequency[:, None] - frequency) / math.sqrt(2.0)
    spectrum = 1 / (along**2 + (4 * across) ** 2 + period**-2.0)
    correlation = np.fft.ifft2(spectrum * (4 / spectrum.mean())).real
    row, column = np.repeat(np.arange(size), size), np.tile(np.arange(size), size)
    covariance = correlation[(row[:, None] - row) % period, (column[:, None] - column) % period]
    truth = np.linalg.slogdet(np.eye(64) + covariance)[1] / 2 / 64 / LN2
    factor = np.linalg.cholesky(covariance + np.eye(64))
    random = np.random.default_rng(0)
    images = (random.standard_normal((1_500, 64)) @ factor.T).reshape(-1, size, size)
    model = StationaryGaussianProcess(images[:500])
    found = estimate_information(model, GaussianNoiseModel(1.0), images[:500], images[500:], confidence_interval=0.95)
    assert isinstance(found, tuple)
    assert found[1] - 0.01 < truth < found[2] + 0.01
    assert model.get_cov_mat() == pytest.approx(covariance + np.eye(64), abs=1.2)


def test_pixel_cnn_of_counts() -> None:
    _, training = poisson_pixels(1_500, 0, 10.0, 4)
    _, test = poisson_pixels(1_500, 1, 10.0, 4)
    start = AutoregressiveDensity(width=8, n_blocks=1, max_passes=2)
    model = PixelCNN(density=start)
    history = model.fit(training, seed=3, learning_rate=1e-3, do_lr_decay=False, steps_per_epoch=500, patience=20)
    assert history == model.val_loss_history
    assert all(isinstance(value, float) for value in history)
    rows = model.compute_negative_log_likelihood(test, average=False)
    assert isinstance(rows, np.ndarray)
    assert rows.shape == (1_500,)
    assert model.compute_negative_log_likelihood(test) == pytest.approx(rows.mean())
    marginal = stats.nbinom(4.0, 4.0 / 14.0).pmf(np.arange(0, 2_000))
    entropy = float(special.entr(marginal).sum())
    stderr = rows.std() / math.sqrt(1_500)
    assert -4 * stderr < rows.mean() - entropy < 0.02 + 4 * stderr
    found = estimate_information(model, PoissonNoiseModel(), training, test, confidence_interval=0.95, num_bootstraps=2)
    assert isinstance(found, tuple)
    assert found[1] < 0.880 + 0.03
    assert found[2] > 0.880
    again = PixelCNN(density=start)
    again.fit(training[..., None], model_seed=3)
    assert again.compute_negative_log_likelihood(test[..., None]) == model.compute_negative_log_likelihood(test)
    samples = model.generate_samples(5, seed=0)
    assert samples.shape == (5, 4, 4)
    assert again.generate_samples(5, seed=0).shape == (5, 4, 4, 1)
    assert (samples >= 0).all()
    assert (samples == np.round(samples)).all()
    assert model.generate_samples(2, sample_shape=2, seed=0).shape == (2, 2, 2)
    sized = PixelCNN(num_hidden_channels=16, num_mixture_components=7)._start
    assert (sized.width, sized.n_components) == (16, 7)


def test_read_noise_has_a_model() -> None:
    noise = PoissonGaussianNoise(gain=2.0, offset=100.0, read_std=3.0)
    mean, _ = poisson_pixels(2_000, 0, 5.0)
    measured = noise.sample(torch.from_numpy(mean), torch.Generator().manual_seed(0)).numpy()
    model = FullGaussianProcess(measured[:1_000])
    value = estimate_information(model, noise, measured[:1_000], measured[1_000:], confidence_interval=0.95)
    nll = model.compute_negative_log_likelihood(measured[1_000:])
    expected = nll - conditional_entropy(noise, measured).nats_per_pixel - model.excess_nats_per_pixel
    assert isinstance(value, tuple)
    assert value[0] == pytest.approx(expected / LN2, abs=0.02)
    with_means = estimate_information(model, noise, measured[:1_000], measured[1_000:], mean, 0.95)
    assert isinstance(with_means, tuple)
    assert abs(with_means[0] - value[0]) < value[2] - value[1]


def test_a_model_of_the_users_own_is_taken() -> None:
    class StandardNormal(MeasurementModel):
        def fit(self, train_images: object) -> list[float]:  # type: ignore[override]
            return []

        def compute_negative_log_likelihood(self, data: Array, average: bool = True) -> float | Array:  # type: ignore[override]
            rows = (0.5 * np.square(data) + 0.5 * math.log(2 * math.pi)).mean((1, 2))
            return float(rows.mean()) if average else np.asarray(rows)

        def generate_samples(self, num_samples: int) -> Array:
            return np.zeros((num_samples, 2, 2))

    images = (gaussian_channel(2_000, 0) - 30.0) / math.sqrt(5.0)
    found = estimate_information(
        StandardNormal(), UniformNoiseModel(0.0, 0.5), images[:1_000], images[1_000:], confidence_interval=0.9
    )
    assert isinstance(found, tuple)
    truth = (0.5 * math.log(2 * math.pi * math.e) - math.log(0.5)) / LN2
    assert found[1] < truth < found[2]


# ---- Models ----


@pytest.mark.parametrize("kind", [FullGaussianProcess, StationaryGaussianProcess])
@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 1), (3, 3, 2)])
def test_likelihoods_come_in_the_order_of_the_images(
    kind: type[FullGaussianProcess | StationaryGaussianProcess], shape: tuple[int, ...]
) -> None:
    images = np.random.default_rng(0).standard_normal((300, *shape)).cumsum(axis=1)
    model = kind()
    model.fit(images)
    rows = model.compute_negative_log_likelihood(images, average=False)
    assert isinstance(rows, np.ndarray)
    assert model.compute_negative_log_likelihood(images) == pytest.approx(rows.mean())
    backwards = model.compute_negative_log_likelihood(images[::-1], average=False)
    assert isinstance(backwards, np.ndarray)
    assert backwards[::-1] == pytest.approx(rows)
    flat = model.get_mean_vec()
    moved = np.moveaxis(images, 3, 1) if kind is StationaryGaussianProcess and shape == (3, 3, 2) else images
    truth = stats.multivariate_normal(flat, model.get_cov_mat()).logpdf(moved.reshape(300, -1))
    assert rows == pytest.approx(-truth / math.prod(shape))
    entropy = analytic_multivariate_gaussian_entropy(model.get_cov_mat())
    assert model.compute_analytic_entropy() == pytest.approx(entropy)
    samples = model.generate_samples(4_000, seed=1)
    assert samples.shape == (4_000, *shape)
    assert samples.mean(0).ravel() == pytest.approx(images.mean(0).ravel(), abs=0.15)
    assert np.array_equal(samples, model.generate_samples(4_000, seed=1))
    assert not np.array_equal(samples, model.generate_samples(4_000))
    assert (samples < 0).any()
    assert (model.generate_samples(10, ensure_nonnegative=True) >= 0).all()


def test_dither_repeats_and_has_a_seed() -> None:
    _, counts = poisson_pixels(500, 0, 5.0)
    model = FullGaussianProcess(counts, seed=1)
    first = model.compute_negative_log_likelihood(counts)
    assert model.compute_negative_log_likelihood(counts) == first
    assert model.compute_negative_log_likelihood(counts, data_seed=4) != first
    assert np.array_equal(FullGaussianProcess(counts, seed=1).cov_mat, model.cov_mat)
    assert not np.array_equal(FullGaussianProcess(counts, seed=2).cov_mat, model.cov_mat)
    noise = PoissonNoiseModel()
    results = {estimate_information(model, noise, counts[:300], counts[300:], confidence_interval=0.9) for _ in "ab"}
    assert len(results) == 1


# ---- Images ----


def test_patches_are_pieces_of_the_images() -> None:
    stack = np.arange(3 * 20 * 30 * 2).reshape(3, 20, 30, 2)
    patches, centres = extract_patches(stack, 5, num_patches=200, seed=1, return_locations=True)
    assert patches.shape == (200, 5, 5, 2)
    assert patches.dtype == stack.dtype
    for patch, (row, column) in zip(patches, centres.astype(int), strict=True):
        image = patch[0, 0, 0] // (20 * 30 * 2)
        assert np.array_equal(patch, stack[image, row - 2 : row + 3, column - 2 : column + 3])
    assert centres.min(0).tolist() == [2, 2]
    assert centres.max(0).tolist() == [17, 27]
    assert np.array_equal(patches, extract_patches(stack, 5, num_patches=200, seed=1))
    assert extract_patches(stack[..., 0], patch_size=20).shape == (1000, 20, 20)


def test_noise_has_its_moments() -> None:
    mean = np.full((200, 10, 10), 3.0)
    counts = add_noise(mean, seed=0)
    assert counts.dtype == np.float32
    assert (counts == np.round(counts)).all()
    assert counts.mean() == pytest.approx(3.0, abs=4 * math.sqrt(3 / 20_000))
    assert counts.var() == pytest.approx(3.0, abs=0.15)
    noisy = add_noise(np.zeros_like(mean), gaussian_sigma=2.0, seed=0)
    assert noisy.std() == pytest.approx(2.0, abs=0.04)
    assert noisy.mean() == pytest.approx(0.0, abs=0.06)
    assert (add_noise(np.zeros_like(mean), ensure_positive=True, gaussian_sigma=2.0, seed=0) >= 0).all()
    assert np.array_equal(counts, add_noise(mean, seed=0))
    assert not np.array_equal(counts, add_noise(mean, seed=1))
    assert np.array_equal(add_noise(mean, key=[0, 7]), add_noise(mean, key=np.array([0, 7])))
    assert normalize_image_stack(counts).mean() == pytest.approx(1.0)


# ---- What is refused ----


def test_arguments_are_named() -> None:
    images = gaussian_channel(100, 0)
    model = FullGaussianProcess(images)
    noise = AnalyticGaussianNoiseModel(1.0)
    with pytest.raises(ValueError, match="confidence_interval: need a value between 0 and 1"):
        estimate_information(model, noise, images, images, confidence_interval=95)
    with pytest.raises(ValueError, match="test_set: need images of shape"):
        estimate_information(model, noise, images, images[:, :1])
    with pytest.raises(ValueError, match="clean_data: need one"):
        estimate_information(model, noise, images, images, images, clean_data=images)
    with pytest.raises(ValueError, match="data: need images of shape"):
        model.compute_negative_log_likelihood(images[:, :1])
    with pytest.raises(TypeError, match="images: need an array of real numbers, got complex128"):
        FullGaussianProcess(images * 1j)
    with pytest.raises(ValueError, match="images: need finite values"):
        FullGaussianProcess(images * math.nan)
    with pytest.raises(ValueError, match="train_images: need images here or in the constructor"):
        StationaryGaussianProcess().fit()
    with pytest.raises(RuntimeError, match="PixelCNN: call fit first"):
        PixelCNN().generate_samples(1)
    with pytest.raises(RuntimeError, match="FullGaussianProcess: call fit first"):
        FullGaussianProcess().get_cov_mat()
    with pytest.raises(ValueError, match="condition_vectors: need None"):
        PixelCNN().fit(images, condition_vectors=np.zeros((100, 2)))
    with pytest.raises(ValueError, match="sample_shape: need at most"):
        model.generate_samples(1, sample_shape=(3, 3))
    with pytest.raises(ValueError, match="patch_size: need 1 to"):
        extract_patches(images, 3)
    with pytest.raises(ValueError, match="sigma: need standard deviations above 0"):
        GaussianNoiseModel(0.0)
    with pytest.raises(ValueError, match="images: need finite means of at least 0"):
        add_noise(-images)
    with pytest.raises(ValueError, match="entropy_model: need 'gaussian'"):
        estimate_mutual_information(images, entropy_model="mixture")
    with pytest.raises(ValueError, match="test_set_fraction: need both sets"):
        estimate_mutual_information(images, test_set_fraction=0.001)
    with pytest.raises(ValueError, match="cov_matrix: need a positive definite matrix"):
        analytic_multivariate_gaussian_entropy(-np.eye(3))
    with pytest.warns(UserWarning, match="counts of photons are whole numbers"):
        estimate_information(model, PoissonNoiseModel(), images, images)


def test_too_few_images_for_refits_leave_the_interval_open() -> None:
    images = gaussian_channel(200, 0, 4)
    model = FullGaussianProcess(images[:20])
    found = estimate_information(model, GaussianNoiseModel(1.0), images[:20], images[20:], confidence_interval=0.9)
    assert isinstance(found, tuple)
    assert found[1:] == (-math.inf, math.inf)


# ---- What is not offered says what is ----

COMPAT = "bitlens.compat.encoding_information"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import {}.datasets", "has no datasets: bitlens.datasets.read_stack reads"),
        ("from {}.datasets import MNISTDataset", "has no datasets"),
        ("from {}.datasets.cfa_dataset import ColorFilterArrayDataset", "has no datasets"),
        ("from {} import datasets", "has no datasets"),
        ("from {}.bsccm_utils import *", "has no bsccm_utils: read the images with the package bsccm"),
        ("from {}.models.multichannel_pixel_cnn import MultiChannelPixelCNN", "models.PixelCNN takes images"),
        ("from {}.models.image_distribution_models import train_model", "has no train_model: call `fit`"),
        ("from {}.plot_utils import plot_intensity_coord_histogram", "use matplotlib's Axes.hist2d"),
        ("from {}.plot_utils import something_else", "cannot import name 'something_else'"),
    ],
)
def test_what_is_not_offered_says_what_is(line: str, message: str) -> None:
    with pytest.raises(ImportError, match=message):
        exec(line.format(COMPAT), {})


def test_older_name_of_the_base_of_models() -> None:
    from bitlens.compat.encoding_information.models import image_distribution_models, model_base_class

    assert image_distribution_models.ProbabilisticImageModel is model_base_class.MeasurementModel
    assert not hasattr(image_distribution_models, "anything")


def test_samples_are_drawn_beside_the_images() -> None:
    from matplotlib import pyplot

    from bitlens.compat.encoding_information.plot_utils import plot_samples

    random = np.random.default_rng(0)
    truth = random.normal(50.0, 5.0, (20, 6, 5))
    samples = [random.normal(50.0, 5.0, (9, 6, 5)), random.normal(50.0, 5.0, (3, 6, 5))]
    try:
        plot_samples(samples, truth, ["one", "two"], contrast_cutoff=95)
        axes = pyplot.gcf().axes
        assert [len(axis.images) for axis in axes] == [1] * 8 + [1] * 3 + [0] * 5 + [1] * 8
        assert [axes[8 * row].get_title(loc="left") for row in range(3)] == ["one", "two", "Ground truth"]
        np.testing.assert_array_equal(axes[9].images[0].get_array(), samples[1][1])
        assert {axis.images[0].get_clim() for axis in axes if axis.images} == {tuple(np.percentile(truth, [5, 95]))}
        plot_samples(samples[0], truth)
    finally:
        pyplot.close("all")
    with pytest.raises(ValueError, match="model_names: need a name for each of 2 stacks, got 1"):
        plot_samples(samples, truth)
