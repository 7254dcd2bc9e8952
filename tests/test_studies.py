"""The studies of real detectors on data whose truth is known, and without data."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def studies() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "studies" / "real_detectors.py"
    spec = importlib.util.spec_from_file_location("real_detectors", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_absent_data_is_said_and_skipped(
    studies: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["study", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    studies.main()
    lines = capsys.readouterr().out.split("\n\n")
    assert [line.split(":")[0] for line in lines if line] == list(studies.STUDIES)
    assert all("skipped, no data at" in line for line in lines if line)


def test_fluorescence_pair_of_a_known_sensor(
    studies: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gain 3, offset 10, read noise 2: the gain is found and the model fits; photons of uneven height are found out."""
    random = np.random.default_rng(0)
    electrons = np.broadcast_to(np.linspace(1, 45, 512), (512, 512))

    def pair(electrons: np.ndarray, uneven: bool) -> tuple[np.ndarray, np.ndarray]:
        total = np.zeros(electrons.shape)
        for _ in range(50):
            counts = random.poisson(electrons)
            # A photomultiplier: the height of a pulse is random, the sum of a few skewed.
            heights = random.gamma(counts) if uneven else counts
            frame = np.clip(np.round(3 * heights + 10 + 2 * random.standard_normal(counts.shape)), 0, 255)
            total += frame
        return frame.astype(np.uint8), np.round(total / 50).astype(np.uint8)

    # Of many photons only the variance is left to see.
    right, wrong = pair(electrons, uneven=False), pair(electrons / 5, uneven=True)
    (tmp_path / "fluorescence").mkdir()
    np.savez(
        tmp_path / "fluorescence" / "fmd_noisy_clean_pairs.npz",
        confocal_fish_noisy=wrong[0],
        confocal_fish_avg50=wrong[1],
        widefield_bpae_noisy=np.stack([right[0]] * 3, axis=-1),
        widefield_bpae_avg50=np.stack([right[1]] * 3, axis=-1),
    )
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["study", "fluorescence", "--data", str(tmp_path), "--out", str(out)])
    studies.main()
    assert "variance / predicted" in capsys.readouterr().out
    assert (out / "fluorescence.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((out / "fluorescence.json").read_text())
    green = found["widefield, green"]
    assert green["fits"]
    assert green["gain"] == pytest.approx(3, rel=0.05)
    assert green["gain_of_the_line"] == pytest.approx(3, rel=0.05)
    # Offset and read noise move together along a line; the variance that they give does not. A fiftieth of it is in
    # the average as well.
    at_20_electrons = green["gain"] * (70 - green["offset"]) + green["read_std"] ** 2
    assert at_20_electrons == pytest.approx(0.98 * (9 * 20 + 4 + 1 / 12), rel=0.02)
    assert not found["confocal"]["fits"], found["confocal"]
    assert found["confocal"]["gain_of_the_line"] == pytest.approx(6, rel=0.1)
