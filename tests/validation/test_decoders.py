"""Decoders against the best there is: the exact linear estimate, the Wiener filter, the Bayes classifier."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import Tensor

from bitlens.validation import ClassifierDecoder, LinearDecoder, LogisticDecoder, UNetDecoder, WienerDecoder
from bitlens.validation.decoder import fold_rows, split_rows

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def field(n: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """A periodic Gaussian field (n, 1, size, size) and its power per frequency."""
    frequency = torch.fft.fftfreq(size, dtype=torch.float64)
    power = 1 / (0.02 + frequency[:, None] ** 2 + frequency**2) ** 1.5
    power = power / power.mean()
    white = torch.randn(n, 1, size, size, generator=seeded(seed), dtype=torch.float64)
    return torch.fft.ifft2(torch.fft.fft2(white) * power.sqrt()).real, power


def squared_error(decoder: object, measured: Tensor, target: Tensor) -> float:
    return float((decoder(measured) - target).square().mean())  # type: ignore[operator]


@pytest.mark.parametrize("n_measured", [20, 40])
def test_linear_decoder_comes_to_the_exact_linear_estimate(n_measured: int) -> None:
    """x ~ N(0, C), z = A x + n: the least error is tr(C - C A' (A C A' + S)^-1 A C) / d."""
    n_values, n = 30, 6000
    root = torch.randn(n_values, n_values, generator=seeded(0), dtype=torch.float64) / math.sqrt(n_values)
    matrix = torch.randn(n_measured, n_values, generator=seeded(1), dtype=torch.float64)
    covariance = root @ root.T
    gain = covariance @ matrix.T
    total = matrix @ gain + 0.25 * torch.eye(n_measured, dtype=torch.float64)
    least = float((covariance - gain @ torch.linalg.solve(total, gain.T)).trace()) / n_values
    scenes = torch.randn(n, n_values, generator=seeded(2), dtype=torch.float64) @ root.T + 3.0
    measured = scenes @ matrix.T + 0.5 * torch.randn(n, n_measured, generator=seeded(3), dtype=torch.float64)
    target = scenes.reshape(n, 1, 5, 6)
    fitted = LinearDecoder().fit(measured[:4000], target[:4000], generator=seeded(0))
    found = squared_error(fitted, measured[4000:], target[4000:])
    # A fit to n rows costs a share of d / n of the error; the error itself is known to 1.5 %.
    assert found == pytest.approx(least * (1 + n_measured / 4000), rel=0.06)
    assert found > 0.95 * least


def test_few_rows_are_the_same_fit_in_the_other_form() -> None:
    """More measured values than rows: the form with rows x rows must be that with values x values."""
    scenes, _ = field(60, 8, 0)
    measured = torch.cat([scenes, scenes**2], 1) + 0.1 * torch.randn(60, 2, 8, 8, generator=seeded(1)).double()
    ridge = 1e-3
    fitted = LinearDecoder(ridges=(ridge,)).fit(measured, scenes, generator=seeded(0))
    z, x = measured.float().double().flatten(1), scenes.float().double().flatten(1)
    z0, x0 = z - z.mean(0), x - x.mean(0)
    gram = z0.T @ z0 + ridge * z0.square().mean() * 60 * torch.eye(128, dtype=torch.float64)
    truth = z0 @ torch.linalg.solve(gram, z0.T @ x0) + x.mean(0)
    assert torch.allclose(fitted(measured).flatten(1).double(), truth, atol=1e-4)


def test_wiener_decoder_comes_to_the_wiener_filter() -> None:
    """A periodic field and blur; the interior, away from the edges where the decoder cannot know of the period."""
    size, n, noise = 24, 1500, 0.3
    scenes, power = field(n, size, 0)
    place = torch.minimum(torch.arange(size), size - torch.arange(size)).double()
    line = torch.exp(-0.5 * (place / 1.5) ** 2)
    # Away from symmetric: a decoder that forgets the phase would fail.
    psf = torch.roll(torch.outer(line, line), (2, -1), (0, 1))
    transfer = torch.fft.fft2(psf / psf.sum())
    clean = torch.fft.ifft2(torch.fft.fft2(scenes) * transfer).real
    measured = clean + noise * torch.randn(clean.shape, generator=seeded(1), dtype=torch.float64)
    filtered = torch.fft.fft2(measured) * transfer.conj() * power / (transfer.abs() ** 2 * power + noise**2)
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    best = float((torch.fft.ifft2(filtered).real - scenes)[1000:][inside].square().mean())
    fitted = WienerDecoder().fit(measured[:1000], scenes[:1000], generator=seeded(0))
    found = float((fitted(measured[1000:]) - scenes[1000:])[inside].square().mean())
    assert found < 1.05 * best
    assert found > 0.97 * best
    with pytest.raises(ValueError, match="of the target's rows and columns"):
        WienerDecoder().fit(measured[:20, :, :12], scenes[:20])


def discs(n: int, seed: int) -> Tensor:
    """Bright discs (n, 1, 16, 16), whose best estimate is far from linear."""
    places = torch.rand(n, 3, generator=seeded(seed))
    row = torch.arange(16.0)[:, None]
    column = torch.arange(16.0)
    distance = ((row - 16 * places[:, 0, None, None]) ** 2 + (column - 16 * places[:, 1, None, None]) ** 2).sqrt()
    return (distance < 2 + 3 * places[:, 2, None, None]).float()[:, None]


def test_unet_refines_the_linear_estimate_in_seconds() -> None:
    scenes = discs(900, 0)
    measured = scenes + 0.7 * torch.randn(scenes.shape, generator=seeded(1))
    linear = min(
        squared_error(decoder.fit(measured[:700], scenes[:700], generator=seeded(0)), measured[700:], scenes[700:])
        for decoder in (LinearDecoder(), WienerDecoder())
    )
    started = time.process_time()
    fitted = UNetDecoder(n_steps=300).fit(measured[:700], scenes[:700], generator=seeded(0))
    assert time.process_time() - started < 15
    assert squared_error(fitted, measured[700:], scenes[700:]) < 0.6 * linear
    assert fitted.history[-1].validation_loss < 0.6 * fitted.history[0].validation_loss


def test_unet_takes_measurements_of_any_shape_and_keeps_what_is_best() -> None:
    """Projections on 40 patterns; a Gaussian field, where nothing beats the linear estimate."""
    scenes, _ = field(500, 10, 0)
    patterns = torch.randn(40, 100, generator=seeded(1), dtype=torch.float64) / 10
    measured = scenes.flatten(1) @ patterns.T + 0.1 * torch.randn(500, 40, generator=seeded(2), dtype=torch.float64)
    linear = LinearDecoder().fit(measured[:400], scenes[:400], generator=seeded(0))
    refined = UNetDecoder(n_steps=40).fit(measured[:400], scenes[:400], generator=seeded(0))
    assert refined.choice.startswith("linear")
    truth = squared_error(linear, measured[400:], scenes[400:])
    assert squared_error(refined, measured[400:], scenes[400:]) == pytest.approx(truth, rel=0.05)
    with pytest.raises(ValueError, match=r'grid of the target, .* for initial="none"'):
        UNetDecoder(initial="none").fit(measured, scenes)
    with pytest.raises(ValueError, match='initial="wiener"'):
        UNetDecoder(initial="wiener").fit(measured, scenes)


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (15, 15)])
def test_unet_on_grids_finer_coarser_and_odd(size: tuple[int, int]) -> None:
    scenes = discs(60, 0)
    if size[0] == 15:
        scenes = scenes[..., :15, :15]
    measured = torch.nn.functional.interpolate(scenes, size=size) + 0.1 * torch.rand(60, 1, *size, generator=seeded(0))
    fitted = UNetDecoder(n_steps=3, initial="none").fit(measured, scenes, generator=seeded(0))
    assert fitted(measured).shape == scenes.shape


@pytest.mark.parametrize(
    "decoder",
    [LinearDecoder(), WienerDecoder(), UNetDecoder(n_steps=4), ClassifierDecoder(n_steps=4), LogisticDecoder()],
    ids=lambda decoder: type(decoder).__name__,
)
def test_a_seed_repeats_a_fit_bit_for_bit(decoder) -> None:
    scenes = discs(60, 0)
    measured = scenes + 0.5 * torch.randn(scenes.shape, generator=seeded(1))
    target = torch.arange(60) % 3 if isinstance(decoder, ClassifierDecoder | LogisticDecoder) else scenes
    before = torch.random.get_rng_state()
    first, second = (decoder.fit(measured, target, generator=seeded(5))(measured) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())
    numpy = decoder.fit(measured.numpy(), target.numpy(), generator=seeded(5))(measured.numpy())
    assert torch.equal(first, numpy)


def two_gaussians(n: int, seed: int) -> tuple[Tensor, Tensor, float]:
    """Images of two classes, white noise 1, means a distance of 2 apart; the best accuracy is Phi(1)."""
    labels = torch.randint(2, (n,), generator=seeded(seed))
    shape = torch.zeros(1, 12, 12)
    shape[0, 3:7, 4:8] = 2 / 4.0
    measured = shape * labels[:, None, None, None] + torch.randn(n, 1, 12, 12, generator=seeded(seed + 1)) + 5.0
    return measured, labels, 0.5 * (1 + math.erf(1 / math.sqrt(2)))


@pytest.mark.parametrize(
    ("decoder", "least"), [(ClassifierDecoder(n_steps=300), 0.04), (LogisticDecoder(n_components=144), 0.03)]
)
def test_classifiers_come_close_to_the_best_and_never_pass_it(decoder, least: float) -> None:
    measured, labels, best = two_gaussians(5000, 0)
    fitted = decoder.fit(measured[:3000], labels[:3000], generator=seeded(0))
    log_probability = fitted(measured[3000:])
    assert torch.allclose(log_probability.exp().sum(1), torch.ones(2000), atol=1e-5)
    found = float((log_probability.argmax(1) == labels[3000:]).double().mean())
    error = math.sqrt(best * (1 - best) / 2000)
    assert best - least - 3 * error < found < best + 3 * error
    # Calibrated: what it says of its own accuracy is so.
    said = float(log_probability.exp().max(1).values.mean())
    assert said == pytest.approx(found, abs=0.04)


def test_classifier_of_vectors() -> None:
    generator = seeded(0)
    labels = torch.randint(3, (900,), generator=generator)
    measured = 3 * torch.nn.functional.one_hot(labels, 7) + torch.randn(900, 7, generator=generator)
    fitted = ClassifierDecoder(n_steps=200).fit(measured[:600], labels[:600], generator=seeded(0))
    # Nearest of three means a distance of 3 sqrt 2 apart: at least 1 - 2 Phi(-3 / sqrt 2) = 0.966.
    assert float((fitted(measured[600:]).argmax(1) == labels[600:]).double().mean()) > 0.93


def test_groups_stay_whole() -> None:
    labels = torch.arange(100) % 13
    rows = split_rows(labels, 0.25, 3)
    assert not set(labels[rows.training].tolist()) & set(labels[rows.validation].tolist())
    assert sorted([*rows.training.tolist(), *rows.validation.tolist()]) == list(range(100))
    assert 15 <= len(rows.validation) <= 35
    folds = fold_rows(labels, 5, 0)
    members = [set(labels[fold].tolist()) for fold in folds]
    assert sum(len(member) for member in members) == 13
    assert sorted(row for fold in folds for row in fold.tolist()) == list(range(100))
    one = split_rows(torch.zeros(10, dtype=torch.int64), 0.2, 0)
    assert len(one.validation) == 2


def test_wrong_arguments() -> None:
    images, classes = torch.zeros(20, 1, 8, 8), torch.arange(20) % 2
    with pytest.raises(ValueError, match="target: need images for LinearDecoder"):
        LinearDecoder().fit(images, classes)
    with pytest.raises(ValueError, match="target: need classes for ClassifierDecoder"):
        ClassifierDecoder().fit(images, images)
    with pytest.raises(ValueError, match="target: need one per measurement, 20, got 19"):
        UNetDecoder().fit(images, images[1:])
    with pytest.raises(ValueError, match="at least 10 to fit"):
        UNetDecoder().fit(images[:5], images[:5])
    with pytest.raises(ValueError, match="groups: need one label per scene"):
        UNetDecoder().fit(images, images, groups=[1, 2])
    with pytest.raises(TypeError, match="target: need classes as whole numbers"):
        LogisticDecoder().fit(images, torch.rand(20))
    with pytest.raises(ValueError, match="n_steps: need at least 1"):
        UNetDecoder(n_steps=0)
    with pytest.raises(ValueError, match="initial: need one of"):
        UNetDecoder(initial="adjoint")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="learning_rate: need a positive number"):
        ClassifierDecoder(learning_rate=0.0)
