"""The study of single-pixel cameras: its pattern sets, its metrics, and that it runs through."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from bitlens.validation import Cost

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # On the path, because processes that measure costs import it by name.
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("single_pixel")


@pytest.fixture
def patterns(study: ModuleType) -> ModuleType:
    return importlib.import_module("_single_pixel_patterns")


@pytest.fixture
def world(study: ModuleType) -> ModuleType:
    return importlib.import_module("_single_pixel_world")


@pytest.fixture
def sets(study: ModuleType) -> dict[str, torch.Tensor]:
    others = torch.rand(300, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return study.pattern_sets(others)


def test_sets_are_what_mirrors_can_show_and_differ(sets: dict[str, torch.Tensor]) -> None:
    assert len(sets) >= 12
    names = list(sets)
    for index, name in enumerate(names):
        assert sets[name].shape == (64, 16, 16)
        assert float(sets[name].min()) >= 0
        assert float(sets[name].max()) <= 1
        assert not any(torch.equal(sets[name], sets[other]) for other in names[:index])


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("Hadamard, cake cutting", 64),
        ("Hadamard, Walsh order", 64),
        ("random binary", 64),
        ("random binary, 4 px", 16),
        ("every fourth mirror", 64),
        ("2 x 2 mirrors at a time", 64),
        ("S-matrix", 64),
        ("rows and columns, twice", 31),
    ],
)
def test_rank(sets: dict[str, torch.Tensor], name: str, rank: int) -> None:
    assert int(torch.linalg.matrix_rank(sets[name].flatten(1))) == rank


def test_s_matrix_has_one_inner_product(sets: dict[str, torch.Tensor]) -> None:
    """Shifts of a maximal-length sequence of 255: 128 open, any two with 64 in common."""
    shown = sets["S-matrix"].flatten(1)
    gram = shown @ shown.T
    torch.testing.assert_close(gram, 64.0 + 64.0 * torch.eye(64, dtype=torch.float64))


def test_cosines_are_orthogonal_in_order_of_frequency(patterns: ModuleType) -> None:
    cosines = patterns._cosines().flatten(1)
    gram = cosines @ cosines.T
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), atol=1e-10, rtol=0)
    torch.testing.assert_close(cosines[0], torch.ones(256, dtype=torch.float64))


def test_coherence(study: ModuleType) -> None:
    """Two columns alike: 1; orthogonal ones: 0."""
    scenes = torch.zeros(20, 1, 2, 2)
    alike = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]]).double()
    assert study.coherence(study.camera(alike, scenes)) == pytest.approx(1.0)
    apart = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).double() * 0.5 + 0.25
    rotated = torch.tensor([[[0.9, 0.9]], [[0.9, 0.1]]]).double()
    assert study.coherence(study.camera(apart, scenes)) == pytest.approx(1.0)
    less_mean = (rotated - rotated.mean()).flatten(1)
    cosine = abs(float(less_mean[:, 0] @ less_mean[:, 1])) / float(less_mean.norm(dim=0).prod())
    assert study.coherence(study.camera(rotated, scenes)) == pytest.approx(cosine)


def test_interval_is_students(study: ModuleType) -> None:
    found = importlib.import_module("_single_pixel_labels")._interval(np.array([0.0, 2.0]))
    # Mean 1, standard error 1, one degree of freedom: 12.706.
    assert found == pytest.approx({"mean": 1.0, "low": -11.706, "high": 13.706}, abs=1e-3)


def test_scenes_send_the_same_light_at_any_sampling(study: ModuleType) -> None:
    light = []
    for size in (16, 32):
        grey = study.design_starts(size)["grey"]
        assert grey.shape == (64, size, size)
        system = study.camera(grey, torch.full((1, 1, size, size), 0.5))
        light.append(float(system.encoder.A(system.scenes).sum()))
    assert light[1] == pytest.approx(light[0], rel=0.03)
    binary = study.design_starts(32)["binary"]
    assert set(binary.unique().tolist()) == {0.0, 1.0}


def test_exact_bits_and_errors_of_independent_pixels(patterns: ModuleType, world: ModuleType) -> None:
    """One mirror at a time: each seen pixel of variance v gives log2(1 + s) / 2 bits and keeps v / (1 + s)."""
    torch.manual_seed(0)
    variance = torch.rand(16, dtype=torch.float64) + 0.5
    images = world.GaussianImages(torch.full((16,), 0.5, dtype=torch.float64), torch.diag(variance))
    mirrors = torch.eye(16, dtype=torch.float64)[:5].unflatten(-1, (4, 4))
    system = patterns.camera(mirrors, torch.zeros(20, 1, 4, 4, dtype=torch.float64))
    gain = patterns.EXPOSURE_PHOTONS * 16 / 5
    noise = 0.5 * gain + patterns.DARK_ELECTRONS / 5 + patterns.READ_ELECTRONS**2
    ratio = gain**2 * variance[:5] / noise
    assert world.exact_bits(system, images) == pytest.approx(float(torch.log2(1 + ratio).sum()) / 2)
    left = torch.cat([variance[:5] / (1 + ratio), variance[5:]])
    assert world.exact_error(system, images) == pytest.approx(float(left.mean()))
    tolerance = variance.mean()
    coarse = float(torch.log2((variance + tolerance) / (left + tolerance)).sum()) / 2
    assert world.coarse_bits(system, images) == pytest.approx(coarse)


def test_whole_cost_says_what_is_saved(study: ModuleType) -> None:
    whole = importlib.import_module("_single_pixel_whole")
    costs = iter([Cost(2.0, 2.0, 30, 20.0), Cost(6.0, 6.0, 120, 20.5), Cost(8.0, 8.0, 120, 19.0)])
    found = whole.whole_cost(None, measure=lambda _: next(costs))
    assert found[whole.INFORMED]["saved_time"] == pytest.approx(0.75)
    assert found[whole.INFORMED]["saved_memory"] == pytest.approx(0.75)
    assert found[whole.INFORMED_LONG]["saved_time"] == pytest.approx(0.25)
    assert found[whole.INFORMED_LONG]["saved_memory"] == 0.0
    assert "20.00 dB, 2.0 CPU s" in whole.whole_text(found)


@pytest.mark.filterwarnings("ignore:train_end_to_end. no gain:UserWarning")  # in the few steps of the short form
def test_short_form_runs_through(
    study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    found = study.run(tmp_path / "out", tmp_path / "none", quick=True, seeds=1)
    assert found["images"] == "digits bundled with scikit-learn"
    for name in ("reconstruction", "classification", "dim"):
        assert len(found[name]["bits"]) >= 12
        assert np.isfinite(list(found[name]["bits"].values())).all()
        for ending in ("txt", "png", "json"):
            assert (tmp_path / "out" / f"single_pixel_{name}.{ending}").stat().st_size > 0
    assert found["classification"]["bits"] == found["reconstruction"]["bits"]
    assert max(found["dim"]["bits"].values()) < max(found["reconstruction"]["bits"].values())
    by_light = [row["spearman"] for row in found["world"]["by light"].values()]
    # What the exact world says: bits and squared errors order the sets alike while little is learned of any mode.
    assert by_light[0] > 0.95 > by_light[-1]
    assert found["whole"]["designed by information, then its decoder"]["psnr"] > 0
    cost = found["designs"]["grey, classification"]["cost"]
    assert all(value > 0 for design in cost.values() for value in design.values())
    answer = found["labels"][0]
    assert all(0 <= value <= 1 for values in answer["accuracy"].values() for value in values)
    assert all(each["low"] <= each["mean"] <= each["high"] for each in answer["differences"].values())
    assert json.loads((tmp_path / "out" / "single_pixel.json").read_text())["labels"][0]["n_labelled"] == 200
    assert "labelled images" in capsys.readouterr().out
