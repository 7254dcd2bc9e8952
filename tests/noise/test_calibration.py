"""Calibration: cameras with known parameters, everything that can be wrong with frames, and real detectors."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats

from bitlens import CalibrationResult, PoissonGaussianNoise, calibrate, check_noise, cli, plots, report
from bitlens.noise import _temporal

N_CAMERAS = 100
# 20 flats of 128 x 128 pixels give the gain to sqrt(2 / (19 * 16384)) = 0.25 % when shot noise rules, so that the
# largest of 100 errors stays below 1 %; of fewer pixels no method could keep that.
CAMERAS: dict[str, tuple[dict[str, Any], float]] = {
    "plain": ({"rounded": False, "fall_off": 0.0, "offset_spread": 0.0, "response_spread": 0.0}, 500.0),
    "hot pixels and flicker": ({"hot_share": 0.03, "drift": 0.1}, 500.0),
    "low read noise": ({"gain": 2.0, "read_std": 1.0, "drift": 0.02}, 100.0),
    "bright, small gain": ({"gain": 0.1, "read_std": 1.2, "hot_share": 0.01}, 20_000.0),
}


@pytest.mark.parametrize("name", CAMERAS)
def test_intervals_cover_and_estimates_are_close_and_unbiased(name: str, camera: Any) -> None:
    settings, electrons = CAMERAS[name]
    sensor = camera(**settings, shape=(128, 128))
    covered = {"gain": 0, "offset": 0, "read_std": 0}
    scores: dict[str, list[float]] = {key: [] for key in covered}
    for seed in range(N_CAMERAS):
        flats, darks = sensor.frames(np.random.default_rng(seed), (electrons,))
        result = calibrate(flats[0], darks)
        for key in covered:
            truth = getattr(sensor, key)
            low, high = getattr(result.confidence_intervals, key)
            covered[key] += low <= truth <= high
            error = float(getattr(result.noise, key)) - truth
            scores[key].append(error / getattr(result.standard_errors, key))
            assert abs(error) < {"gain": 0.01, "offset": 0.001, "read_std": 0.02}[key] * truth
    for key, values in scores.items():
        assert covered[key] >= 90, key
        # Unbiased to a fraction of the standard error, and the standard error is neither wishful nor wasteful.
        assert abs(np.mean(values)) < 4 / math.sqrt(N_CAMERAS) * np.std(values), key
        assert 0.75 < np.std(values) < 1.3, key


def test_few_photons(camera: Any) -> None:
    """A fifth of a photon per frame: the long tail of the variances is signal, not odd pixels."""
    sensor = camera(gain=1.0, read_std=0.2, rounded=False, offset_spread=0.0)
    scores = []
    for seed in range(40):
        flats, darks = sensor.frames(np.random.default_rng(seed), (0.2,))
        result = calibrate(flats, darks)
        scores.append((float(result.noise.gain) - 1) / result.standard_errors.gain)
    assert abs(np.mean(scores)) < 4 / math.sqrt(40)
    assert 0.7 < np.std(scores) < 1.35


def test_levels_of_light_find_the_full_well(camera: Any) -> None:
    sensor = camera(full_well_electrons=1800.0)
    levels = (20.0, 60.0, 200.0, 500.0, 1000.0, 1700.0, 2600.0, 4000.0)
    flats, darks = sensor.frames(np.random.default_rng(0), levels)
    result = calibrate(flats, darks)
    assert float(result.noise.gain) == pytest.approx(0.5, rel=0.01)
    assert result.full_well_electrons == pytest.approx(1800, rel=0.01)
    assert abs(result.full_well_electrons - 1800) < 4 * result.standard_errors.full_well_electrons  # type: ignore[operator]
    used = [point for point in result.photon_transfer if point.used]
    assert max(point.mean for point in used) <= 0.75 * 900
    # Every point that was used lies on the line of the true camera.
    for point in used:
        assert abs(point.shot_variance - 0.5 * point.mean) < 5 * point.shot_variance_stderr
    assert result.linearity_error is not None
    assert result.linearity_error < 0.02
    # Below the end of the scale nothing is said about it.
    dim = calibrate(flats[:4], darks)
    assert dim.full_well_electrons is None
    assert dim.standard_errors.full_well_electrons is None


def test_levels_with_other_numbers_of_frames(camera: Any) -> None:
    sensor = camera()
    flats, darks = sensor.frames(np.random.default_rng(0), (100.0, 400.0))
    mixed = calibrate([flats[0][:5], torch.from_numpy(flats[1])], darks)
    assert mixed.confidence_intervals.gain[0] < 0.5 < mixed.confidence_intervals.gain[1]
    assert {point.level for point in mixed.photon_transfer} == {0, 1}
    as_one = calibrate(flats, darks)
    assert as_one.to_dict() == calibrate(list(flats), darks).to_dict()
    assert as_one.to_dict() == calibrate(flats.astype(np.uint16), darks.astype(np.int32)).to_dict()


def test_two_frames_of_each(camera: Any) -> None:
    flats, darks = camera(shape=(256, 256)).frames(np.random.default_rng(3), (500.0,), n_frames=2)
    result = calibrate(flats, darks)
    assert float(result.noise.gain) == pytest.approx(0.5, rel=0.03)
    assert float(result.noise.read_std) == pytest.approx(2.0, rel=0.03)


def test_maps_when_there_are_frames_enough(camera: Any) -> None:
    sensor = camera(shape=(32, 32), hot_share=0.02)
    generator = np.random.default_rng(0)
    flats, darks = sensor.frames(generator, (500.0,), n_frames=240)
    result = calibrate(flats, darks)
    maps = result.noise_maps
    assert maps is not None
    assert maps.gain.shape == maps.offset.shape == maps.read_std.shape == (32, 32)
    assert not result.warnings
    ordinary = (maps.offset - 100).abs() < 10
    # The relative spread that 240 frames leave: sqrt(2 / 239) and half of it.
    assert float((maps.gain[ordinary] / 0.5 - 1).std()) == pytest.approx(math.sqrt(2 / 239), rel=0.15)
    assert float((maps.read_std[ordinary] / 2 - 1).std()) == pytest.approx(math.sqrt(0.5 / 239), rel=0.15)
    np.testing.assert_allclose(maps.offset, darks.mean(axis=0), atol=0.5)
    few = calibrate(flats[0][:20], darks)
    assert few.noise_maps is not None
    assert few.noise_maps.gain.ndim == 0
    assert any("one gain for all pixels" in text for text in few.warnings)
    fewer = calibrate(flats[0], darks[:20])
    assert fewer.noise_maps is None
    assert any("no per-pixel maps" in text for text in fewer.warnings)


def warned(result: CalibrationResult, words: str) -> bool:
    return any(words in text for text in result.warnings)


def test_says_what_is_odd(camera: Any) -> None:
    generator = np.random.default_rng(0)
    flats, darks = camera().frames(generator, (500.0,))
    clean = calibrate(flats, darks)
    assert len(clean.warnings) == 1
    assert warned(clean, "no per-pixel maps")
    assert clean.ordinary_pixel_share > 0.995

    hot = calibrate(*camera(hot_share=0.05).frames(generator, (500.0,)))
    assert warned(hot, "hot, stuck or noisier")
    assert hot.ordinary_pixel_share == pytest.approx(0.95, abs=0.01)
    assert warned(calibrate(*camera(drift=0.05).frames(generator, (500.0,))), "illumination drifted by")
    assert warned(calibrate(flats, darks + np.arange(20).reshape(-1, 1, 1)), "dark level wanders")
    assert warned(calibrate(flats, np.maximum(darks, 100) - 100), "raise the black level")

    blurred = (flats[0] + np.roll(flats[0], 1, axis=2)) / 2
    assert warned(calibrate(blurred, (darks + np.roll(darks, 1, axis=2)) / 2), "neighbouring pixels is correlated")
    nonlinear = calibrate(*camera_with_bent_response(generator))
    assert warned(nonlinear, "not proportional")


def camera_with_bent_response(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    shape = (20, 96, 96)
    flats = [0.5 * e * (1 - e / 40000) for e in (generator.poisson(level, shape) for level in (100.0, 1000.0, 2500.0))]
    read = [100 + 2 * generator.standard_normal(shape) for _ in range(4)]
    return np.stack([flat + noise for flat, noise in zip(flats, read[1:], strict=True)]), read[0]


def test_light_that_moves_is_measured_between_successive_frames(camera: Any) -> None:
    """A tilt of the light that grows over the frames looks like noise about the mean of all, not between two."""
    generator = np.random.default_rng(0)
    column = np.linspace(-1, 1, 96)
    light = 2000 * (1 + 0.05 * column * np.linspace(-1, 1, 20)[:, None, None]) * np.ones((20, 96, 96))
    flats = 0.5 * generator.poisson(light) + 100 + 2 * generator.standard_normal(light.shape)
    darks = 100 + 2 * generator.standard_normal(light.shape)
    result = calibrate(flats, darks)
    assert warned(result, "successive frames")
    assert float(result.noise.gain) == pytest.approx(0.5, rel=0.03)


def test_cosmic_rays_do_not_count(camera: Any) -> None:
    sensor = camera(rounded=False)
    generator = np.random.default_rng(0)
    flats, darks = sensor.frames(generator, (500.0,))
    hits = generator.random(flats.shape) < 1e-3
    result = calibrate(flats + hits * generator.exponential(2000, flats.shape), darks)
    assert float(result.noise.gain) == pytest.approx(0.5, rel=0.02)


def test_read_noise_below_a_code() -> None:
    generator = np.random.default_rng(0)
    shape = (20, 64, 64)
    darks = np.round(100 + 0.1 * generator.standard_normal(shape))
    flats = np.round(100 + 0.5 * generator.poisson(400, shape) + 0.1 * generator.standard_normal(shape))
    result = calibrate(flats, darks)
    assert warned(result, "below what a step of 1 ADU resolves")
    assert float(result.noise.read_std) == pytest.approx(math.sqrt(1 / 12))
    # 0.5 ADU steps of the electrons against codes of 1: rounding adds no more than 1/12 to a variance of 100.
    assert float(result.noise.gain) == pytest.approx(0.5, rel=0.02)


def test_codes_further_apart(camera: Any) -> None:
    """12 bits stored in the upper part of 16: the step of rounding is found."""
    flats, darks = camera(read_std=1.0).frames(np.random.default_rng(0), (500.0,))
    result = calibrate(16 * flats, 16 * darks)
    assert float(result.noise.read_std) == pytest.approx(16.0, rel=0.01)
    assert float(result.noise.gain) == pytest.approx(8.0, rel=0.02)


GOOD = np.random.default_rng(0).normal(100, 2, (4, 8, 8))
LIT = GOOD + np.random.default_rng(1).normal(200, 10, (4, 8, 8))


@pytest.mark.parametrize(
    ("flats", "darks", "words"),
    [
        (LIT[:1], GOOD, "flat_frames: need at least 2 frames to see noise, got 1"),
        (LIT, GOOD[:1], "dark_frames: need at least 2 frames to see noise, got 1"),
        (LIT, GOOD[0], r"dark_frames: need frames \(frame, row, column\), got shape \(8, 8\)"),
        (
            LIT[0],
            GOOD,
            r"flat_frames: need \(frame, row, column\) or \(level, frame, row, column\), got shape \(8, 8\)",
        ),
        (LIT[:, :4], GOOD, r"flat_frames: need the pixels of dark_frames, \(8, 8\), got \(4, 8\)"),
        ([], GOOD, "flat_frames: need at least one level"),
        (np.where(LIT.max() == LIT, np.nan, LIT), GOOD, "flat_frames: need finite values, got NaN"),
        (LIT, np.full_like(GOOD, np.inf), "dark_frames: need finite values"),
        (LIT[:, :0], GOOD, "flat_frames: need frames of at least one pixel"),
        (GOOD, LIT, "flat_frames: need flats brighter than the darks"),
        (GOOD[[0, 0, 0]] + 100, GOOD, "flat_frames: need flats that vary more"),
        (LIT, GOOD[[0, 0, 0]], "dark_frames: need frames that show read noise"),
        (np.full(LIT.shape, 4095), np.round(GOOD), "need flats below saturation, got 100 % .* 4095"),
        (np.minimum(np.round(LIT), 301), np.round(GOOD), "need flats below saturation"),
    ],
)
def test_what_cannot_be_calibrated_says_why(flats: Any, darks: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        calibrate(flats, darks)


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match="flat_frames: need frames of real numbers"):
        calibrate(LIT.astype(complex), GOOD)
    with pytest.raises(TypeError, match="dark_frames: need frames of real numbers"):
        calibrate(LIT, [["a"]])
    with pytest.raises(ValueError, match="confidence: need a number between 0 and 1"):
        calibrate(LIT, GOOD, confidence=1.0)


def test_result_is_frozen_and_plain_in_json(camera: Any) -> None:
    flats, darks = camera().frames(np.random.default_rng(0), (500.0,))
    result = calibrate(flats, darks, confidence=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.warnings = ()  # type: ignore[misc]
    fields = json.loads(result.to_json())
    assert list(fields) == [field.name for field in dataclasses.fields(CalibrationResult)]
    assert fields["noise"]["gain"] == float(result.noise.gain)
    low, high = fields["confidence_intervals"]["read_std"]
    # The quartiles of a t distribution of 63 degrees of freedom: there are 64 blocks.
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.75, 63) * result.standard_errors.read_std)


def test_cut_of_variances_is_made_good() -> None:
    """Gamma variances with and without the tail have one mean; the tail of another kind is cut."""
    variances = stats.gamma.rvs(9.5, scale=1 / 9.5, size=(1000, 1000), random_state=0)
    cut = _temporal.ordinary_variances(variances, 1.0, 20, 0.0, 0.0)
    assert 0.5e-4 < 1 - cut.mask.mean() < 2e-4
    mean, error = variances[cut.mask].mean() * cut.factor, variances.std() / 1000
    assert abs(mean - 1) < 4 * error
    assert cut.factor == pytest.approx(variances.mean() / variances[cut.mask].mean(), abs=2e-5)


def test_blocks_hold_neighbours() -> None:
    for shape in ((96, 96), (2, 640), (1, 5), (7, 3)):
        block = _temporal.blocks(shape)
        counts = np.bincount(block.ravel())
        assert counts.size <= 64
        assert counts.min() >= 1
        for index in range(counts.size):
            rows, columns = np.nonzero(block == index)
            # A filled rectangle.
            assert (np.ptp(rows) + 1) * (np.ptp(columns) + 1) == counts[index]


@pytest.fixture
def folder(tmp_path: Path, camera: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, made the working one, with flats of two levels and darks."""
    flats, darks = camera(shape=(48, 48)).frames(np.random.default_rng(0), (100.0, 500.0))
    np.save(tmp_path / "both.npy", flats.astype(np.uint16))
    np.save(tmp_path / "bright.npy", flats[1])
    np.savez(tmp_path / "dim.npz", flats=flats[0])
    np.save(tmp_path / "dark.npy", darks)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["calibrate", "both.npy", "--dark", "dark.npy", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields == calibrate(np.load("both.npy"), np.load("dark.npy")).to_dict()
    assert cli.main(["calibrate", "dim.npz", "bright.npy", "--dark", "dark.npy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["noise"] == fields["noise"]

    assert cli.main(["calibrate", "both.npy", "--dark", "dark.npy", "--out", "made", "--confidence", "0.5"]) == 0
    text = capsys.readouterr().out
    assert f"gain        {fields['noise']['gain']:.5g} ADU per electron (50 %" in text
    assert f"--read-std {fields['noise']['read_std']:.6g}" in text
    assert "warning: no per-pixel maps" in text
    assert (folder / "made" / "photon_transfer.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (folder / "made").iterdir()] == ["photon_transfer.png"]


def test_command_line_writes_maps_that_estimate_takes(
    folder: Path, camera: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    flats, darks = camera(shape=(8, 8)).frames(np.random.default_rng(0), (500.0,), n_frames=210)
    np.save("flats.npy", flats[0])
    np.save("many.npy", darks)
    assert cli.main(["calibrate", "flats.npy", "--dark", "many.npy", "--out", "made"]) == 0
    maps = [f"made/{name}.npy" for name in ("gain", "offset", "read_std")]
    assert all(np.load(path).shape == (8, 8) for path in maps)
    options = [part for pair in zip(("--gain", "--offset", "--read-std"), maps, strict=True) for part in pair]
    assert cli.main(["estimate", "flats.npy", "--noise", "poisson-gaussian", *options, "--method", "gaussian"]) == 0
    assert "bits per pixel" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bright.npy"], "--dark"),
        (["--dark", "dark.npy"], "FLATS"),
        (["absent.npy", "--dark", "dark.npy"], "absent.npy: no such file"),
        (["bright.npy", "--dark", "both.npy"], "--dark: both.npy: need (frame, row, column), got (2, 20, 48, 48)"),
        (["dark.npy", "--dark", "bright.npy"], "flat_frames: need flats brighter than the darks"),
        (["bright.npy", "--dark", "dark.npy", "--confidence", "1"], "--confidence"),
    ],
)
def test_command_line_errors(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert cli.main(["calibrate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("bitlens: error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_figure_shows_the_points_and_the_line(camera: Any) -> None:
    sensor = camera(full_well_electrons=1800.0)
    flats, darks = sensor.frames(np.random.default_rng(0), (100.0, 500.0, 1600.0, 3000.0))
    result = calibrate(flats, darks)
    given = Figure().add_subplot()
    assert plots.photon_transfer(result, given) is given
    axes = plots.photon_transfer(result)
    drawn = np.concatenate([container.lines[0].get_xydata() for container in axes.containers])
    expected = np.array([(point.mean, point.variance) for point in result.photon_transfer])
    np.testing.assert_allclose(drawn[drawn[:, 0].argsort()], expected)
    (line,) = (line for line in axes.get_lines() if str(line.get_label()).startswith("gain"))
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    np.testing.assert_allclose(y, float(result.noise.gain) * x + float(result.noise.read_std) ** 2)
    said = f"full well {result.full_well_electrons:,.0f} electrons"
    assert said in [text.get_text() for text in axes.get_legend().get_texts()]
    # One level in even light, read noise only just there: a figure all the same.
    assert report.to_png(plots.photon_transfer(calibrate(LIT, GOOD)).figure).startswith(b"\x89PNG")  # type: ignore[arg-type]


# Real detectors.


def tomography(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "ct" / "tooth.h5") as file:
        return file["exchange/data_white"][:], file["exchange/data_dark"][:]


def test_tomography_flats_and_darks(shared_data: Path) -> None:
    flats, darks = tomography(shared_data)
    result = calibrate(flats, darks)
    # Oracle: the photon transfer of textbooks, differences of two frames and medians, a third of the statistics.
    first = (flats[0::2] / flats[0::2].mean((1, 2), keepdims=True)) * flats.mean()
    second = (flats[1::2] / flats[1::2].mean((1, 2), keepdims=True)) * flats.mean()
    pairs = ((first - second) ** 2 / 2).mean() - np.median(darks.var(axis=0, ddof=1))
    assert float(result.noise.gain) == pytest.approx(pairs / (flats.mean() - darks.mean()), rel=0.08)
    assert float(result.noise.offset) == pytest.approx(np.median(darks), abs=2)
    # Halves of the detector agree within their errors.
    left, right = (calibrate(flats[..., half], darks[..., half]) for half in (slice(0, 320), slice(320, 640)))
    gap = float(left.noise.gain) - float(right.noise.gain)
    assert abs(gap) < 4 * math.hypot(left.standard_errors.gain, right.standard_errors.gain)
    # Values in quarters of an ADU: frames were binned or resampled, and neighbours share noise.
    assert warned(result, "neighbouring pixels is correlated")
    check = check_noise(result.noise, flats)
    assert not check.fits
    assert any(text.startswith("correlation") for text in check.findings)
    assert check.dispersion == pytest.approx(1, abs=0.03)
    # 27,000 ADU of signal: the bits hang on the gain alone.
    assert check.information_shift.gain == pytest.approx(-0.5 * math.log2(1.05), rel=0.01)
    assert abs(check.information_shift.read_std or 0) < 1e-3


@pytest.fixture
def scmos(shared_data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Measured maps of gain and read noise of an sCMOS sensor, 128 x 128 pixels of it."""
    with np.load(shared_data / "detector" / "scmos_gain_variance_maps.npz") as maps:
        gain, variance = (maps[name][100:228, 100:228].astype(np.float64) for name in ("gain", "variance"))
    assert gain.min() > 0
    return gain, np.sqrt(variance)


def expose(
    generator: np.random.Generator, gain: np.ndarray, read_std: np.ndarray, electrons: float, n_frames: int
) -> np.ndarray:
    counts = generator.poisson(electrons, (n_frames, *gain.shape))
    return gain * counts + 100 + read_std * generator.standard_normal(counts.shape)


def test_scmos_maps_are_recovered(scmos: tuple[np.ndarray, np.ndarray]) -> None:
    gain, read_std = scmos
    generator = np.random.default_rng(0)
    flats, darks = expose(generator, gain, read_std, 200, 240), expose(generator, gain, read_std, 0, 60)
    few = calibrate(flats[:20], darks[:20])
    assert float(few.noise.gain) == pytest.approx(gain.mean(), rel=0.01)
    assert warned(few, "hot, stuck or noisier")
    # Between the median pixel and the root mean square of all, which the noisy ones rule.
    assert np.median(read_std) < float(few.noise.read_std) < math.sqrt((read_std**2).mean())

    maps = calibrate(flats, darks).noise_maps
    assert maps is not None
    relative = maps.gain.numpy() / gain
    assert np.median(relative) == pytest.approx(1, abs=0.01)
    assert np.std(relative) < 0.11
    assert np.corrcoef(np.log(maps.read_std.numpy()).ravel(), np.log(read_std).ravel())[0, 1] > 0.95


def test_scmos_needs_its_maps(scmos: tuple[np.ndarray, np.ndarray]) -> None:
    gain, read_std = scmos
    generator = np.random.default_rng(0)
    scalar = calibrate(expose(generator, gain, read_std, 200, 20), expose(generator, gain, read_std, 0, 20)).noise
    repeats = expose(generator, gain, read_std, 5, 20)
    assert check_noise(PoissonGaussianNoise(gain, 100.0, read_std=read_std), repeats).fits
    found = check_noise(scalar, repeats)
    assert not found.fits
    assert any("per-pixel maps" in text for text in found.findings)


def test_ccd_sky_is_not_at_the_gain_of_its_header(shared_data: Path) -> None:
    """A frame of the night sky from a CCD: its header says gain 1, its noise says otherwise.

    Even and odd columns of the smooth sky stand for two repeats.
    """
    raw = (shared_data / "astro" / "sep_image.fits").read_bytes()
    end = raw.index(b"END" + b" " * 77)
    cards = [raw[start : start + 80].decode() for start in range(0, end, 80)]

    def number(key: str) -> float:
        (card,) = (card for card in cards if card.split("=")[0].strip() == key)
        return float(card.split("=")[1].split("/")[0])

    data = raw[(end // 2880 + 1) * 2880 :][: 2 * 256 * 256]
    sky = np.frombuffer(data, ">i2").reshape(256, 256) * number("BSCALE") + number("BZERO")
    tiles = np.stack([sky[:, 0::2], sky[:, 1::2]]).reshape(2, 32, 8, 16, 8).swapaxes(2, 3).reshape(2, -1, 64)
    # Tiles without a star: nothing in them stands out by five standard deviations.
    middle = np.median(sky)
    deviation = 1.4826 * np.median(np.abs(sky - middle))
    empty = tiles[:, (tiles < middle + 4.5 * deviation).all(axis=(0, 2))]
    assert empty.shape[1] > 100
    claimed = check_noise(PoissonGaussianNoise(number("HIERARCH ESO DET GAIN"), 0.0, read_std=5.0), empty)
    assert not claimed.fits
    assert claimed.findings[0].startswith("gain")
    assert 0.5 < claimed.dispersion < 0.75
    halves = [check_noise(PoissonGaussianNoise(1.0, 0.0, read_std=5.0), part) for part in np.array_split(empty, 2, 1)]
    gap = halves[0].dispersion - halves[1].dispersion
    assert abs(gap) < 4 * math.hypot(*(half.dispersion_stderr for half in halves))
    measured = check_noise(PoissonGaussianNoise(claimed.dispersion, 0.0, read_std=5.0), empty)
    assert abs(measured.dispersion - 1) < 0.02


def test_flats_without_light_do_not_determine_the_gain() -> None:
    generator = np.random.default_rng(5)
    dark = 100 + 3 * generator.standard_normal((20, 32, 32))
    said = 0
    for seed in range(6):
        generator = np.random.default_rng(seed)
        flats = 100.01 + 3 * generator.standard_normal((20, 32, 32))
        try:
            result = calibrate(flats, dark)
        except ValueError as error:
            said += "flat_frames: need flats" in str(error)
        else:
            said += any("gain is not determined" in text for text in result.warnings)
    assert said == 6
