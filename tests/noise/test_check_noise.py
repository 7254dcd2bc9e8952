"""check_noise: right models pass, wrong ones are found out and named, and the shift in bits is that of the entropy."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from bitlens import (
    GaussianNoise,
    NoiseCheck,
    PoissonGaussianNoise,
    PoissonNoise,
    calibrate,
    check_noise,
    conditional_entropy,
)
from bitlens.noise import _repeats

N_SEEDS = 100
IN_FULL = ("even light", "ramp, rounded", "one electron")  # the others take a quarter of the seeds
OFFSET = 100.0


def scene(kind: str, mean: float, shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Electrons per pixel."""
    row, column = np.mgrid[: shape[0], : shape[1]] / max(shape)
    if kind == "flat":
        return np.full(shape, mean)
    if kind == "ramp":
        return mean * (0.1 + 1.8 * column) * (1 + 0.2 * np.sin(9 * row))
    return mean * generator.gamma(1.5, 1 / 1.5, shape)


def frames(
    truth: PoissonGaussianNoise,
    kind: str,
    mean: float,
    seed: int,
    *,
    n_frames: int = 20,
    shape: tuple[int, int] = (40, 40),
    rounded: bool = False,
) -> np.ndarray:
    """Repeats of one scene, simulated apart from the library."""
    generator = np.random.default_rng(seed)
    electrons = generator.poisson(scene(kind, mean, shape, generator), (n_frames, *shape))
    white = generator.standard_normal(electrons.shape)
    adu = float(truth.gain) * electrons + float(truth.offset) + float(truth.read_std) * white
    return np.round(adu) if rounded else adu


# 20 frames of 40 x 40 pixels give the dispersion to sqrt(2 / (19 * 1600)) = 0.8 %. Shot noise must be a good part of
# the variance for a gain 10 % off to show: at (gain 1, read noise 1) and one electron half of it is, which makes 5 %.
SETTINGS: dict[str, tuple[PoissonGaussianNoise, str, float, dict[str, Any]]] = {
    "even light": (PoissonGaussianNoise(1.0, OFFSET, read_std=2.0), "flat", 200.0, {}),
    "ramp, rounded": (PoissonGaussianNoise(0.5, OFFSET, read_std=2.0), "ramp", 50.0, {"rounded": True}),
    "texture": (PoissonGaussianNoise(2.0, OFFSET, read_std=1.0), "texture", 20.0, {}),
    "one electron": (PoissonGaussianNoise(1.0, OFFSET, read_std=1.0), "texture", 1.0, {}),
    "single electrons seen": (PoissonGaussianNoise(1.0, OFFSET, read_std=0.3), "flat", 2.0, {}),
    "five frames": (
        PoissonGaussianNoise(0.25, OFFSET, read_std=1.5),
        "ramp",
        1000.0,
        {"n_frames": 5, "shape": (64, 64)},
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_right_model_passes_and_wrong_gain_does_not(name: str) -> None:
    truth, kind, mean, options = SETTINGS[name]
    wrong = [PoissonGaussianNoise(truth.gain * f, OFFSET, read_std=truth.read_std) for f in (0.9, 1.1)]
    passed = flagged = 0
    n_seeds = N_SEEDS if name in IN_FULL else N_SEEDS // 4
    for seed in range(n_seeds):
        repeats = frames(truth, kind, mean, seed, **options)
        passed += check_noise(truth, repeats).fits
        flagged += not check_noise(wrong[seed % 2], repeats).fits
    assert passed >= 0.97 * n_seeds
    assert flagged >= 0.95 * n_seeds


def test_dark_scene_passes() -> None:
    """Nothing but read noise: half the means lie below the offset, and no electron is inferred from that."""
    truth = PoissonGaussianNoise(1.0, OFFSET, read_std=2.0)
    assert sum(check_noise(truth, frames(truth, "flat", 0.0, seed)).fits for seed in range(30)) >= 29


def test_z_scores_are_standard_normal_under_the_right_model() -> None:
    truth = PoissonGaussianNoise(0.5, OFFSET, read_std=2.0)
    checks = [check_noise(truth, frames(truth, "ramp", 50.0, seed, shape=(48, 48))) for seed in range(60)]
    for index, test in enumerate(checks[0].tests):
        if test.z_score is None or test.name.startswith("darkest"):
            continue
        z = np.array([check.tests[index].z_score for check in checks])
        assert abs(z.mean()) < 4 / math.sqrt(60), test.name
        assert 0.6 < z.std() < 1.4, test.name
    counts = np.mean([check.pit_histogram for check in checks], axis=0)
    np.testing.assert_allclose(counts, 0.1, atol=0.002)
    dispersion = np.array([check.dispersion for check in checks])
    assert dispersion.std() == pytest.approx(np.mean([check.dispersion_stderr for check in checks]), rel=0.35)


def test_lost_degree_of_freedom() -> None:
    """Of three frames a third of the variance goes into their mean: a right model still has dispersion 1."""
    truth = PoissonGaussianNoise(1.0, OFFSET, read_std=2.0)
    check = check_noise(truth, frames(truth, "flat", 100.0, 0, n_frames=3, shape=(128, 128)))
    assert check.fits
    assert check.dispersion == pytest.approx(1, abs=0.05)
    two = check_noise(truth, frames(truth, "flat", 100.0, 1, n_frames=2, shape=(128, 128)))
    assert two.fits


TRUTH = PoissonGaussianNoise(0.5, OFFSET, read_std=2.0)


def words(check: NoiseCheck) -> str:
    assert not check.fits
    assert check.findings
    return " | ".join(check.findings)


def test_names_the_gain() -> None:
    # 128 x 128 pixels: the percentage is sure to 0.3.
    repeats = frames(TRUTH, "flat", 500.0, 0, shape=(128, 128))
    assert "the gain looks 10 % too high" in words(
        check_noise(PoissonGaussianNoise(0.55, OFFSET, read_std=2.0), repeats)
    )
    ramp = frames(TRUTH, "ramp", 500.0, 0, shape=(96, 96))
    found = words(check_noise(PoissonGaussianNoise(0.4, OFFSET, read_std=2.0), ramp))
    assert found.startswith("gain: the variance grows")
    assert any(f"{percent} % too low" in found for percent in (19, 20, 21))


def test_names_offset_and_read_noise() -> None:
    dark = frames(TRUTH, "flat", 0.0, 0)
    assert words(check_noise(PoissonGaussianNoise(0.5, OFFSET, read_std=2.5), dark)).startswith("read noise")
    assert "read_std looks 25 % too high" in words(check_noise(PoissonGaussianNoise(0.5, OFFSET, read_std=2.5), dark))
    assert words(check_noise(PoissonGaussianNoise(0.5, OFFSET + 3, read_std=2.0), dark)).startswith(
        "offset: the darkest"
    )
    ramp = frames(TRUTH, "ramp", 100.0, 0, shape=(96, 96))
    found = words(check_noise(PoissonGaussianNoise(0.5, OFFSET - 20, read_std=2.0), ramp))
    # variance = gain (mean - offset) + read_std^2: with an offset 20 too low, 10 ADU^2 too much is expected.
    assert "offset or read noise: the variance without light is off by -" in found
    off_by = float(found.split("is off by ")[1].split()[0])
    assert off_by == pytest.approx(-10, abs=1.5)
    assert "gain" not in found


def test_names_correlation() -> None:
    repeats = frames(TRUTH, "flat", 200.0, 0)
    blurred = ndimage.convolve1d(repeats, [0.25, 0.75], axis=2)
    # Neighbours share 0.25 * 0.75 of a variance of 0.25^2 + 0.75^2.
    found = words(check_noise(TRUTH, blurred))
    assert "correlation" in found
    assert float(found.split("correlated, ")[1].split()[0]) == pytest.approx(0.3, abs=0.02)


def test_names_drift_without_blaming_the_gain() -> None:
    generator = np.random.default_rng(0)
    flicker = 1 + 0.03 * generator.standard_normal((20, 1, 1))
    electrons = generator.poisson(500 * flicker * np.ones((20, 48, 48)))
    check = check_noise(TRUTH, 0.5 * electrons + OFFSET + 2 * generator.standard_normal(electrons.shape))
    assert [text.split(":")[0] for text in check.findings] == ["drift"]
    assert check.dispersion == pytest.approx(1, abs=0.03)
    found = float(words(check).split("deviation, ")[1].split(" %")[0])
    assert found == pytest.approx(100 * flicker.std(ddof=1) / flicker.mean(), rel=0.1)


def test_names_clipping() -> None:
    repeats = frames(TRUTH, "ramp", 500.0, 0, rounded=True)
    found = words(check_noise(TRUTH, np.minimum(repeats, 400)))
    assert "clipping" in found
    assert "at 400, the top of the scale" in found
    dark = frames(TRUTH, "flat", 1.0, 0, rounded=True)
    assert "bottom of the scale" in words(check_noise(TRUTH, np.maximum(dark, 100)))


def test_names_odd_pixels() -> None:
    repeats = frames(TRUTH, "flat", 100.0, 0)
    generator = np.random.default_rng(1)
    noisy = generator.random(repeats.shape[1:]) < 0.02
    found = words(check_noise(TRUTH, repeats + 30 * noisy * generator.standard_normal(repeats.shape)))
    assert "odd pixels" in found
    assert "per-pixel maps" in found


def test_poisson_and_gaussian_models() -> None:
    generator = np.random.default_rng(0)
    counts = generator.poisson(scene("texture", 5.0, (40, 40), generator), (20, 40, 40))
    assert check_noise(PoissonNoise(), counts).fits
    assert "not photon counts" in words(check_noise(PoissonNoise(), 3 * counts))
    assert check_noise(PoissonNoise(), counts).information_shift == _shift(None, None, None)

    white = scene("ramp", 5.0, (128, 128), generator) + 0.7 * generator.standard_normal((20, 128, 128))
    right = check_noise(GaussianNoise(0.7), white)
    assert right.fits
    assert right.information_shift.gain is None
    assert right.information_shift.read_std == pytest.approx(-math.log2(1.05))
    assert "std looks 14 % too low" in words(check_noise(GaussianNoise(0.6), white))


def _shift(*values: float | None) -> Any:
    from bitlens.noise.check import InformationShift

    return InformationShift(*values)


def test_information_shift_is_the_change_of_entropy() -> None:
    """Against entropies at the true means, and against those from the noisy frames alone."""
    generator = np.random.default_rng(0)
    electrons = scene("texture", 40.0, (40, 40), generator)
    repeats = frames(TRUTH, "texture", 40.0, 0)
    shift = check_noise(TRUTH, repeats).information_shift
    base = TRUTH.entropy(torch.from_numpy(electrons)).mean().item()
    adu = 0.5 * electrons + OFFSET
    images = torch.from_numpy(repeats)
    for name, factors in {"gain": (1.05, 1, 1), "offset": (1, 1.05, 1), "read_std": (1, 1, 1.05)}.items():
        changed = PoissonGaussianNoise(0.5 * factors[0], OFFSET * factors[1], read_std=2.0 * factors[2])
        inferred = torch.from_numpy(np.maximum((adu - float(changed.offset)) / float(changed.gain), 0))
        truth = (base - changed.entropy(inferred).mean().item()) / math.log(2)
        assert getattr(shift, name) == pytest.approx(truth, abs=0.002), name
        if name == "offset":
            continue  # 10 electrons more than there are put dim pixels below zero, where only the clamp is defined
        alone = conditional_entropy(TRUTH, images).nats_per_pixel - conditional_entropy(changed, images).nats_per_pixel
        assert getattr(shift, name) == pytest.approx(alone / math.log(2), abs=0.01), name
    assert check_noise(PoissonGaussianNoise(0.5, 0.0, read_std=2.0), repeats - OFFSET).information_shift.offset == 0


def test_calibrated_camera_passes(camera: Any) -> None:
    sensor = camera(offset_spread=0.0, response_spread=0.02)
    flats, darks = sensor.frames(np.random.default_rng(0), (100.0, 300.0, 900.0))
    noise = calibrate(flats, darks).noise
    repeats, _ = sensor.frames(np.random.default_rng(1), (200.0,))
    check = check_noise(noise, repeats[0])
    assert check.fits, check.findings


def test_maps_of_the_model() -> None:
    generator = np.random.default_rng(0)
    gain = generator.uniform(0.5, 2, (40, 40))
    read_std = generator.uniform(1, 3, (40, 40))
    offset = generator.uniform(50, 150, (40, 40))
    model = PoissonGaussianNoise(gain, offset, read_std=read_std)
    repeats = gain * generator.poisson(30, (20, 40, 40)) + offset + read_std * generator.standard_normal((20, 40, 40))
    assert check_noise(model, torch.from_numpy(repeats)).fits
    assert not check_noise(PoissonGaussianNoise(1.25, 100.0, read_std=2.0), repeats).fits
    with pytest.raises(ValueError, match=r"noise: need gain as a number or a map \(40, 39\), got \(40, 40\)"):
        check_noise(model, repeats[..., :39])


def test_repeats_itself_and_takes_a_generator() -> None:
    repeats = frames(TRUTH, "ramp", 50.0, 0)
    first, second = check_noise(TRUTH, repeats), check_noise(TRUTH, repeats)
    assert first == second
    other = check_noise(TRUTH, repeats, generator=torch.Generator().manual_seed(5))
    assert other.dispersion == first.dispersion
    assert other.pit_histogram != first.pit_histogram


def test_result_is_frozen_and_plain_in_json() -> None:
    check = check_noise(TRUTH, frames(TRUTH, "ramp", 50.0, 0), level=0.05)
    with pytest.raises(dataclasses.FrozenInstanceError):
        check.fits = False  # type: ignore[misc]
    fields = json.loads(check.to_json())
    assert list(fields) == [field.name for field in dataclasses.fields(NoiseCheck)]
    assert fields["level"] == 0.05
    assert fields["n_frames"] == 20
    assert fields["n_pixels"] == 1600
    assert sum(fields["pit_histogram"]) == pytest.approx(1)


def test_simulated_means_scatter_like_the_scene() -> None:
    """The means of five repeats scatter more than the scene; what is simulated from must not."""
    truth = PoissonGaussianNoise(1.0, OFFSET, read_std=5.0)
    generator = np.random.default_rng(0)
    electrons = 30 + 3 * generator.standard_normal((100, 100))
    repeats = generator.poisson(electrons, (5, 100, 100)) + OFFSET + 5 * generator.standard_normal((5, 100, 100))
    sensor = _repeats.sensor_of(truth, (100, 100))
    signal, variance = repeats.mean(axis=0) - OFFSET, repeats.var(axis=0, ddof=1)
    likely = _repeats._likely_means(sensor, signal, variance, np.zeros((100, 100), dtype=np.int64), 5)
    assert signal.std() > 1.3 * electrons.std()
    assert likely.std() == pytest.approx(electrons.std(), rel=0.1)


@pytest.mark.parametrize(
    ("noise", "repeats", "error", "match"),
    [
        (TRUTH, np.ones((1, 4, 4)), ValueError, "repeats: need at least 2 frames"),
        (TRUTH, np.ones((4, 4)), ValueError, r"repeats: need frames \(frame, row, column\), got shape \(4, 4\)"),
        (TRUTH, np.full((3, 4, 4), np.nan), ValueError, "repeats: need finite values"),
        (TRUTH, np.ones((3, 4, 4), dtype=complex), TypeError, "repeats: need frames of real numbers"),
        (1.0, np.ones((3, 4, 4)), TypeError, "noise: need Gaussian, Poisson or Poisson-Gaussian noise, got float"),
    ],
)
def test_wrong_input(noise: Any, repeats: np.ndarray, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        check_noise(noise, repeats)


def test_wrong_level() -> None:
    with pytest.raises(ValueError, match="level: need a number between 0 and 1, got 0"):
        check_noise(TRUTH, np.ones((3, 4, 4)), level=0)


def test_frames_that_do_not_vary() -> None:
    """A stack of copies is no repeat: nothing divides by zero, and the model does not fit."""
    check = check_noise(TRUTH, np.full((5, 20, 20), 150.0))
    assert not check.fits
    assert check.dispersion == 0
    assert any("the frames do not vary" in text for text in check.findings)
