"""The command line: what it prints, and one line instead of a traceback for everything that can go wrong."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch

from bitlens import __version__, _cli_estimate, cli
from bitlens.estimators import InformationEstimate, estimate_image_information, estimate_information
from bitlens.noise import GaussianNoise, PoissonGaussianNoise

POISSON_GAUSSIAN = ("--noise", "poisson-gaussian", "--read-std", "2")


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, made the working one, with measurements z.npy (60, 6, 6) and means y.npy."""
    generator = np.random.default_rng(0)
    mean = generator.gamma(4, 25, (60, 1, 1)) * np.ones((60, 6, 6))
    measured = generator.poisson(mean) + 2 * generator.standard_normal(mean.shape)
    np.save(tmp_path / "z.npy", measured)
    np.save(tmp_path / "y.npy", mean)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of an error; everything else about failing is the same for all."""
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("bitlens: error: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    return captured.err.removeprefix("bitlens: error: ").rstrip("\n")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        text = run(capsys, *arguments)
        for command in ("demo", "estimate", "info", "systems"):
            assert command in text
    assert __version__ in run(capsys, "--version")


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys, bitlens.cli; bitlens.cli.main(['--help']); bitlens.cli.main(['estimate', '--help']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib', 'numba')))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def test_estimate_json_is_the_estimate(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["estimate", "z.npy", *POISSON_GAUSSIAN, "--mean", "y.npy", "--seed", "7", "--json"]
    fields = json.loads(run(capsys, *arguments))
    assert list(fields) == [field.name for field in dataclasses.fields(InformationEstimate)]
    expected = estimate_information(
        torch.from_numpy(np.load("z.npy"))[:, None],
        PoissonGaussianNoise(read_std=2.0),
        mean=torch.from_numpy(np.load("y.npy"))[:, None],
        generator=torch.Generator().manual_seed(7),
    )
    assert fields == expected.to_dict()
    assert fields["seed"] == 7


def test_estimate_of_codes(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = PoissonGaussianNoise(0.5, 3.0, read_std=2.0, adc_bits=6, full_well_electrons=110.0)
    codes = noise.sample(np.load("y.npy"), torch.Generator().manual_seed(0))
    np.save("codes.npy", codes.numpy())
    sensor = ("--noise", "poisson-gaussian", "--gain", "0.5", "--offset", "3", "--read-std", "2")
    limits = ("--adc-bits", "6", "--full-well", "110")
    fields = json.loads(run(capsys, "estimate", "codes.npy", *sensor, *limits, "--mean", "y.npy", "--json"))
    expected = estimate_information(
        codes[:, None],
        noise,
        mean=torch.from_numpy(np.load("y.npy"))[:, None],
        generator=torch.Generator().manual_seed(0),
    )
    assert fields == expected.to_dict()
    # Codes of another sensor are refused.
    assert "codes" in fail(capsys, "estimate", "codes.npy", *sensor, "--adc-bits", "4")


def test_estimate_without_mean_has_null_bounds(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = json.loads(run(capsys, "estimate", "z.npy", *POISSON_GAUSSIAN, "--json"))
    assert fields["lower_bits"] is None
    assert fields["ceiling_bits"] is None
    assert fields["upper_bits"] is not None


def test_estimate_table(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "estimate", "z.npy", *POISSON_GAUSSIAN, "--mean", "y.npy")
    fields = json.loads(run(capsys, "estimate", "z.npy", *POISSON_GAUSSIAN, "--mean", "y.npy", "--json"))
    rows = dict(line.split("  ", 1) for line in text.splitlines() if "  " in line and not line.startswith("warning"))
    assert float(rows["bits per pixel"].strip()) == pytest.approx(fields["bits_per_pixel"], abs=1e-4)
    assert f"{fields['ceiling_bits']:.2f}" in rows["lower bound"]
    for warning in fields["warnings"]:
        assert f"warning: {warning}" in text


def test_number_and_constant_map_agree(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("read.npy", np.full((6, 6), 2.0))
    np.save("gain.npy", np.full((1, 6, 6), 1.0))
    by_map = ("--noise", "poisson-gaussian", "--read-std", "read.npy", "--gain", "gain.npy", "--json")
    from_map = json.loads(run(capsys, "estimate", "z.npy", *by_map))
    from_number = json.loads(run(capsys, "estimate", "z.npy", *POISSON_GAUSSIAN, "--json"))
    assert from_map["bits"] == pytest.approx(from_number["bits"], abs=1e-9)


def test_patch_cuts_every_image_into_squares_of_one_group(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.load("z.npy")
    np.savez("cut.npz", np.concatenate([images[:, r : r + 3, c : c + 3] for r in (0, 3) for c in (0, 3)]))
    np.save("labels.npy", np.tile(np.arange(60), 4))
    # A density whose fit does not depend on the order of the images.
    method = ("--method", "gaussian", "--json")
    by_patch = json.loads(run(capsys, "estimate", "z.npy", *POISSON_GAUSSIAN, "--patch", "3", *method))
    by_hand = json.loads(run(capsys, "estimate", "cut.npz", *POISSON_GAUSSIAN, "--groups", "labels.npy", *method))
    assert by_patch["n_samples"] == 240
    # The same patches in another order: the folds and with them the value agree up to rounding.
    assert by_patch["bits"] == pytest.approx(by_hand["bits"], abs=1e-6)
    assert by_patch["stderr_bits"] == pytest.approx(by_hand["stderr_bits"], abs=1e-6)


def test_cut_keeps_pixels_in_place() -> None:
    stack = torch.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
    cut = _cli_estimate._cut(stack, 2)
    assert cut.shape == (2 * 2 * 3, 3, 2, 2)
    for image in range(2):
        for row in range(2):
            for column in range(3):
                expected = stack[image, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                assert torch.equal(cut[image * 6 + row * 3 + column], expected)


def _write_bad_files(folder: Path) -> None:
    (folder / "empty_file.npy").write_bytes(b"")
    (folder / "text.npy").write_text("not an array\n")
    (folder / "pickle.npy").write_bytes(pickle.dumps([1, 2]))
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(folder / "no_images.npy", np.zeros((0, 6, 6)))
    np.save(folder / "flat.npy", np.zeros((60, 36)))
    np.save(folder / "other.npy", np.zeros((60, 5, 6)))
    np.save(folder / "words.npy", np.array([[["a"]]]))
    np.save(folder / "large.npy", np.zeros((12, 80, 80)))
    np.save(folder / "labels.npy", np.array([None, 1, "a"] * 20, dtype=object), allow_pickle=True)
    tifffile.imwrite(folder / "cut.tif", np.zeros((60, 6, 6), dtype=np.uint16), photometric="minisblack")
    (folder / "cut.tif").write_bytes((folder / "cut.tif").read_bytes()[:5_000])
    dead = np.load(folder / "z.npy")
    dead[:, 2, 3] = 7.0
    np.save(folder / "dead.npy", dead)
    with h5py.File(folder / "two.h5", "w") as file:
        file["first"], file["second"] = dead, dead
    for name, value in (("nan", np.nan), ("negative", -1.0)):
        values = np.load(folder / "y.npy")
        values[3, 2, 1] = value
        np.save(folder / f"{name}.npy", values)
    (folder / "cut_short.npy").write_bytes((folder / "z.npy").read_bytes()[:500])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.npy", *POISSON_GAUSSIAN], "nothing.npy: no such file"),
        (["empty_file.npy", *POISSON_GAUSSIAN], "empty_file.npy: the file is empty"),
        (["text.npy", *POISSON_GAUSSIAN], "text.npy: need"),
        (["pickle.npy", *POISSON_GAUSSIAN], "pickle"),
        (["objects.npy", *POISSON_GAUSSIAN], "pickle"),
        (["no_images.npy", *POISSON_GAUSSIAN], "at least one image"),
        (["flat.npy", *POISSON_GAUSSIAN], "(60, 36)"),
        (["words.npy", *POISSON_GAUSSIAN], "real numbers"),
        (["cut_short.npy", *POISSON_GAUSSIAN], "cut_short.npy"),
        (["nan.npy", *POISSON_GAUSSIAN], "finite"),
        (["large.npy", *POISSON_GAUSSIAN], "--patch"),
        ([".", *POISSON_GAUSSIAN], "got a directory"),
        (["z.npy", *POISSON_GAUSSIAN, "--mean", "negative.npy"], "mean: need values of at least 0"),
        (["z.npy", *POISSON_GAUSSIAN, "--mean", "other.npy"], "--mean: need the shape"),
        (["z.npy", *POISSON_GAUSSIAN, "--patch", "7"], "--patch: need at most 6"),
        (["z.npy", *POISSON_GAUSSIAN, "--patch", "0"], "--patch"),
        (["z.npy", *POISSON_GAUSSIAN, "--groups", "y.npy"], "--groups"),
        (["z.npy", *POISSON_GAUSSIAN, "--seed", "-1"], "--seed"),
        (["cut.tif", *POISSON_GAUSSIAN], "cut.tif: the file ends early"),
        (["cut.tif", *POISSON_GAUSSIAN, "--array", "x"], "--array: need None for a TIFF file"),
        (["two.h5", *POISSON_GAUSSIAN], "two.h5: holds 2 arrays; choose one with --array: first, second"),
        (["dead.npy", *POISSON_GAUSSIAN], "pixel (0, 2, 3) with one value in all 60 images"),
        (["z.npy", *POISSON_GAUSSIAN, "--groups", "labels.npy"], "--groups: labels.npy: need"),
        (["z.npy", *POISSON_GAUSSIAN, "--confidence", "95"], "--confidence"),
        (["z.npy", *POISSON_GAUSSIAN, "--confidence", "high"], "--confidence"),
        (["z.npy", *POISSON_GAUSSIAN, "--repeats", "no.npy"], "no.npy: no such file"),
        (["z.npy", *POISSON_GAUSSIAN, "--repeats", "other.npy"], "--repeats: need exposures of the shape"),
        (["z.npy", *POISSON_GAUSSIAN, "--repeats", "text.npy"], "--repeats: text.npy: need"),
        (["z.npy", *POISSON_GAUSSIAN, "--whole-image"], "--patch: need at most the 6 x 6 pixels"),
        (["z.npy", *POISSON_GAUSSIAN, "--whole-image", "--method", "flow"], "--method: --whole-image needs one of"),
        (["z.npy", *POISSON_GAUSSIAN, "--whole-image", "--n-extrapolate", "1"], "--n-extrapolate: does not go with"),
        (["z.npy", *POISSON_GAUSSIAN, "--whole-image", "--repeats", "z.npy"], "--repeats: does not go with"),
        (["z.npy", *POISSON_GAUSSIAN, "--method", "known_channel"], "mean"),
        (["z.npy", "--noise", "poisson"], "whole counts"),
        (["z.npy", "--noise", "poisson", "--std", "1"], "--std: does not go with --noise poisson"),
        (["z.npy", "--noise", "gaussian"], "--std: --noise gaussian needs it"),
        (["z.npy", "--noise", "gaussian", "--std", "0"], "--std: need values above 0"),
        (["z.npy", "--noise", "gaussian", "--std", "nan"], "--std: need finite"),
        (["z.npy", "--noise", "gaussian", "--std", "two"], "--std: need a number or an .npy map"),
        (["z.npy", "--noise", "gaussian", "--std", "no.npy"], "--std: no.npy: no such file"),
        (["z.npy", "--noise", "gaussian", "--std", "text.npy"], "--std: text.npy: need an npy file"),
        (["z.npy", "--noise", "gaussian", "--std", "other.npy"], "--std: need a map of one image"),
        (["z.npy", "--noise", "poisson-gaussian", "--read-std", "0"], "--read-std: need values above 0"),
        (["z.npy", *POISSON_GAUSSIAN, "--adc-bits", "0"], "--adc-bits: need 1 to 32, got 0"),
        (["z.npy", *POISSON_GAUSSIAN, "--adc-bits", "2.5"], "--adc-bits: need a whole number of bits, got 2.5"),
        (["z.npy", *POISSON_GAUSSIAN, "--adc-bits", "8"], "measured: need whole codes"),
        (["z.npy", *POISSON_GAUSSIAN, "--full-well", "-1"], "--full-well: need values above 0"),
        (["z.npy", "--noise", "poisson", "--adc-bits", "8"], "--adc-bits: does not go with --noise poisson"),
        (["z.npy", "--noise", "uniform"], "uniform"),
        (["z.npy"], "--noise"),
        ([*POISSON_GAUSSIAN], "FILE"),
        (["z.npy", *POISSON_GAUSSIAN, "--turbo"], "--turbo"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_estimate_errors_are_one_line(
    stack: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], message: str
) -> None:
    _write_bad_files(stack)
    assert message in fail(capsys, "estimate", *arguments)


def test_map_does_not_go_with_patch(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("read.npy", np.full((6, 6), 2.0))
    arguments = ("--noise", "poisson-gaussian", "--read-std", "read.npy", "--patch", "3")
    assert "without --patch" in fail(capsys, "estimate", "z.npy", *arguments)


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "frobnicate" in fail(capsys, "frobnicate")


def test_demo_into_a_file_fails_before_it_works(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "z.npy" in fail(capsys, "demo", "--quick", "--out", "z.npy")


@pytest.mark.parametrize("error", [RuntimeError("of two\nlines"), ZeroDivisionError(), MemoryError()])
def test_whatever_goes_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr(cli.systems, "callback", lambda **_: broken())
    fail(capsys, "systems")


def test_interrupt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.systems, "callback", interrupt)
    assert cli.main(["systems"]) == 130
    assert capsys.readouterr().err.strip() == "bitlens: interrupted"


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    fields = json.loads(run(capsys, "info", "--json"))
    assert fields["version"] == __version__
    assert fields["threads"] == torch.get_num_threads()
    assert "reference" in fields["backends"]
    assert fields["instruction_set"] in ("baseline", "avx2", "avx512", "none")
    assert set(fields["cuda"]) == {"compiled", "device"}
    text = run(capsys, "info")
    for name in ("version", "backends", "instruction set", "threads", "cuda"):
        assert name in text


def test_systems(capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(run(capsys, "systems", "--json"))
    assert "camera" in [system["name"] for system in listed]
    text = run(capsys, "systems")
    for system in listed:
        assert system["name"] in text
        assert system["formula"] in text


def test_as_a_process(stack: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import sys; from bitlens.cli import main; sys.exit(main())", "estimate", "no.npy"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert "Traceback" not in found.stderr
    assert found.stderr.startswith("bitlens: error: ")


def test_one_array_of_an_archive(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(stack / "both.npz", z=np.load(stack / "z.npy"), y=np.load(stack / "y.npy"))
    several = fail(capsys, "estimate", "both.npz", *POISSON_GAUSSIAN)
    assert several == "both.npz: holds 2 arrays; choose one with --array: z, y"
    assert "--array: need None" in fail(capsys, "estimate", "z.npy", *POISSON_GAUSSIAN, "--array", "z")
    assert "--mean: both.npz: holds 2 arrays, need one alone, got: z, y" in fail(
        capsys, "estimate", "z.npy", *POISSON_GAUSSIAN, "--mean", "both.npz"
    )
    assert "need --array to be one of z, y, got 'x'" in fail(
        capsys, "estimate", "both.npz", *POISSON_GAUSSIAN, "--array", "x"
    )
    chosen = run(capsys, "estimate", "both.npz", *POISSON_GAUSSIAN, "--array", "z", "--json")
    assert chosen == run(capsys, "estimate", "z.npy", *POISSON_GAUSSIAN, "--json")


def test_every_method_is_offered() -> None:
    from bitlens.estimators import _judge, image_information

    assert _cli_estimate.METHODS == _judge.METHODS
    assert _cli_estimate.IMAGE_METHODS == image_information.METHODS


def test_estimate_draws_bounds_and_training_sizes(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run(capsys, "estimate", "z.npy", *POISSON_GAUSSIAN, "--out", "figures", "--n-extrapolate", "1")
    assert "extrapolated" in printed
    assert printed.count("wrote ") == 2
    for name in ("bounds.png", "training_sizes.png"):
        assert (stack / "figures" / name).read_bytes().startswith(b"\x89PNG")
    printed = run(capsys, "estimate", "z.npy", *POISSON_GAUSSIAN, "--out", "few", "--method", "gaussian")
    assert "no training_sizes.png: n_sizes: a fit to" in printed
    assert sorted(path.name for path in (stack / "few").iterdir()) == ["bounds.png"]


def test_every_kind_of_file_gives_the_same_bits(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = np.load("z.npy").astype(np.float32)
    np.save("single.npy", measured)
    tifffile.imwrite("z.tif", measured, photometric="minisblack")
    with h5py.File("z.h5", "w") as file:
        file["entry/data"], file["other"] = measured, measured + 1
    expected = run(capsys, "estimate", "single.npy", *POISSON_GAUSSIAN, "--json")
    assert run(capsys, "estimate", "z.tif", *POISSON_GAUSSIAN, "--json") == expected
    assert run(capsys, "estimate", "z.h5", *POISSON_GAUSSIAN, "--array", "entry/data", "--json") == expected


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_measured_and_mean_of_one_file(stack: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    arrays = {"measured": np.load("z.npy"), "mean": np.load("y.npy")}
    if kind == "npz":
        np.savez("both.npz", **arrays)  # type: ignore[arg-type]
    else:
        with h5py.File("both.h5", "w") as file:
            for name, values in arrays.items():
                file[name] = values
    expected = run(capsys, "estimate", "z.npy", *POISSON_GAUSSIAN, "--mean", "y.npy", "--json")
    assert run(capsys, "estimate", f"both.{kind}", *POISSON_GAUSSIAN, "--json") == expected
    assert run(capsys, "estimate", "z.npy", *POISSON_GAUSSIAN, "--mean", f"both.{kind}", "--json") == expected
    alone = run(capsys, "estimate", f"both.{kind}", *POISSON_GAUSSIAN, "--array", "measured", "--json")
    assert json.loads(alone)["lower_bits"] is None


def test_confidence_widens_the_interval(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    widths = []
    for confidence in ("0.5", "0.999"):
        low, high = json.loads(
            run(capsys, "estimate", "z.npy", *POISSON_GAUSSIAN, "--confidence", confidence, "--json")
        )["confidence_interval_bits"]
        widths.append(high - low)
    assert widths[1] > 4 * widths[0]
    assert "50 % interval" in run(capsys, "estimate", "z.npy", *POISSON_GAUSSIAN, "--confidence", "0.5")


def test_repeats_check_the_noise(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(1)
    mean = np.load("y.npy")[:3, None] * np.ones((1, 40, 1, 1))
    repeats = generator.poisson(mean) + 2 * generator.standard_normal(mean.shape)
    np.save("right.npy", repeats)
    np.save("wrong.npy", repeats[0] + 30 * generator.standard_normal(mean.shape[1:]))
    said = "does not fit the repeats"
    assert said not in run(capsys, "estimate", "z.npy", *POISSON_GAUSSIAN, "--repeats", "right.npy")
    assert said in run(capsys, "estimate", "z.npy", *POISSON_GAUSSIAN, "--repeats", "wrong.npy")


def test_squares_of_repeats_stay_scenes() -> None:
    exposures = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 1, 4, 4)
    cut = _cli_estimate._Images(torch.zeros(5, 1, 4, 4), None, exposures, None).cut(2)
    assert cut.repeats is not None
    assert cut.repeats.shape == (8, 3, 1, 2, 2)
    for scene in range(2):
        for row in range(2):
            for column in range(2):
                expected = exposures[scene, :, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                assert torch.equal(cut.repeats[4 * scene + 2 * row + column], expected)
    assert cut.labels is not None
    assert cut.labels.tolist() == np.repeat(np.arange(5), 4).tolist()


def test_whole_images(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = 3 * torch.randn(4, 24, 24, generator=generator, dtype=torch.float64)
    np.save("images.npy", images.numpy())
    arguments = ("estimate", "images.npy", "--noise", "gaussian", "--std", "1", "--whole-image", "--patch", "6")
    settings = ("--method", "stationary_gaussian", "--confidence", "0.8")
    fields = json.loads(run(capsys, *arguments, *settings, "--json"))
    expected = estimate_image_information(
        images,
        GaussianNoise(1.0),
        patch=6,
        method="stationary_gaussian",
        confidence=0.8,
        generator=torch.Generator().manual_seed(0),
    )
    assert fields == expected.to_dict()
    # White images: 0.5 log2(9) bits in each pixel; the bound carries what the fit to three small ones costs.
    assert -0.02 < fields["bits_per_pixel"] - 0.5 * np.log2(9.0) < 0.2
    printed = run(capsys, *arguments, *settings, "--out", "figures")
    assert "images of 1 x 24 x 24" in printed
    assert "no training_sizes.png" in printed
    assert [path.name for path in (stack / "figures").iterdir()] == ["bounds.png"]


def test_calibrate_names_the_file_that_it_cannot_use(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = np.load("z.npy")
    np.savez("two.npz", a=frames, b=frames)
    assert fail(capsys, "calibrate", "z.npy", "--dark", "two.npz").startswith(
        "--dark: two.npz: holds 2 arrays, need one"
    )
    assert fail(capsys, "calibrate", "two.npz", "--dark", "z.npy").startswith(
        "FLATS: two.npz: holds 2 arrays, need one"
    )
