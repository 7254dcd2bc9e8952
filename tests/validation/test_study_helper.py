"""What the studies of designs share writes its three files, and says what the bits allow."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bitlens.noise import GaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.validation import Classification, LinearDecoder, LogisticDecoder, Reconstruction

pytestmark = pytest.mark.usefixtures("one_thread")


def _load(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    specification.loader.exec_module(module)
    return module


helper = _load(Path(__file__).parents[2] / "benchmarks" / "studies" / "_validation_study.py")
small_systems = _load(Path(__file__).parent / "small_systems.py")


@pytest.mark.parametrize("quick", [True, False])
def test_files_of_a_study(quick: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = small_systems.textures(200)
    systems = small_systems.gains(scenes, (0.3, 1.0, 3.0))
    metrics = helper.standard_metrics((1, 8, 8))
    study = helper.run_study(
        *("gains", systems, Reconstruction(), metrics),
        quick=quick,
        out=tmp_path,
        n_seeds=2,
        decoder=LinearDecoder(),
        method="gaussian",
    )
    assert "Spearman of" in capsys.readouterr().out
    text, picture, content = study.files
    assert "gain 0.3" in text.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(content.read_text())
    assert found["rank_correlations"][0]["spearman"] == pytest.approx(1.0)
    # A pixel sees one scene value: whatever the gain, nothing blurs and all is equally well conditioned.
    assert found["metrics"]["condition_number"] == pytest.approx(dict.fromkeys(systems, 1.0))
    assert found["metrics"]["mtf50"] == dict.fromkeys(systems, 0.5)
    decibel = found["metrics"]["snr_db"]
    assert decibel["gain 3"] - decibel["gain 1"] == pytest.approx(20 * math.log10(3), abs=1e-6)
    if quick:
        assert found["bounds"] is None
        assert not (tmp_path / "gains_rows.json").exists()
    else:
        assert (tmp_path / "gains_rows.json").exists()
        for design, least in found["bounds"].items():
            assert 0 < least < found["mean"]["mse"][design]


def test_bound_of_a_white_source_is_what_the_best_decoder_reaches(tmp_path: Path) -> None:
    """White Gaussian scenes of variance 4 in white noise: the bound is 4 / (1 + 4 gain^2), which a decoder meets."""
    scenes = 2 * torch.randn(3000, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + 9
    systems = {
        f"gain {gain:g}": ImagingSystem(small_systems.Gain(gain), GaussianNoise(1.0), scenes)
        for gain in (0.5, 1.0, 2.0)
    }
    study = helper.run_study(
        *("white", systems, Reconstruction(), {}),
        quick=False,
        out=tmp_path,
        n_seeds=1,
        decoder=LinearDecoder(),
        method="gaussian",
    )
    assert study.bounds is not None
    for gain in (0.5, 1.0, 2.0):
        assert study.bounds[f"gain {gain:g}"] == pytest.approx(4 / (1 + 4 * gain**2), rel=0.08)


def test_most_accuracy_that_bits_allow(tmp_path: Path) -> None:
    labels = torch.arange(240) % 4
    scenes = small_systems.textures(240) + labels[:, None, None, None]
    study = helper.run_study(
        *("classes", small_systems.gains(scenes, (0.01, 0.1, 1.0)), Classification(labels), {}),
        quick=False,
        out=tmp_path,
        n_seeds=2,
        decoder=LogisticDecoder(),
        method="gaussian",
    )
    assert study.bounds is not None
    assert study.bounds["gain 1"] == 1.0
    assert all(0.25 <= most <= 1.0 for most in study.bounds.values())
