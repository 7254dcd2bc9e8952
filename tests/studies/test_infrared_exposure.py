"""The study of infrared exposures: equal light where it says so, blur as the motion has it, and it runs through."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # On the path, because processes that measure costs import it by name.
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("infrared_exposure")


def test_light_grows_with_exposure_and_the_lens(study: ModuleType) -> None:
    scenes = torch.full((1, 1, study.LARGEST, study.LARGEST), study.MEAN_KELVIN)

    def light(**changes: float) -> float:
        encoder = study.camera(study.Design(**changes), scenes).encoder
        dark = encoder.detector.dark_electrons().item() * 1e-3 * float(encoder.exposure_ms)
        return float(encoder(study.camera(study.Design(**changes), scenes).scenes).double().mean()) - dark

    assert light(exposure_ms=0.6) == pytest.approx(2 * light(), rel=1e-4)
    assert light(f_number=4.0) == pytest.approx(light() * (4 * 2.5**2 + 1) / (4 * 4.0**2 + 1), rel=1e-4)
    assert light(pixel_um=30.0) == pytest.approx(4 * light(), rel=1e-4)


def test_transfer_of_a_line(study: ModuleType) -> None:
    """A smear over n samples has |sin(pi n f) / (n sin(pi f))| along it and 1 across it."""
    line, frequency = torch.ones(1, 7, dtype=torch.float64), 0.08
    angles = (torch.arange(4096, dtype=torch.float64) + 0.5) * math.pi / 4096
    along = frequency * angles.sin()
    expected = (torch.sin(math.pi * 7 * along) / (7 * torch.sin(math.pi * along))).abs().mean()
    assert study.transfer(line, frequency) == pytest.approx(float(expected), rel=1e-3)


def test_quick_form(study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = study.run(tmp_path, tmp_path / "none", quick=True, seeds=2)
    assert "bundled photographs" in capsys.readouterr().out
    for name in study.LISTS:
        assert len(found[name]["bits"]) >= 12
        assert all(math.isfinite(bits) for bits in found[name]["bits"].values())
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    light = found["infrared_equal_light"]["light"].values()
    assert max(light) < 1.05 * min(light)
    exposed = found["infrared_fixed_frame"]["bits"]
    # Ten times the light of a smear still below a pixel.
    assert exposed["mid-wave f/2.5, 0.3 ms"] > exposed["mid-wave f/2.5, 0.03 ms"] + 1
    assert (tmp_path / "infrared_frames.png").stat().st_size > 0
