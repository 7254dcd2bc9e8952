"""The study of push-broom imagers: its lists, its light, its scenes, and that it runs through."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("satellite_stages")


@pytest.fixture
def imager(study: ModuleType) -> ModuleType:
    return importlib.import_module("_satellite_imager")


def test_lists_are_long_enough_and_without_repeats(study: ModuleType) -> None:
    for designs in (study.EQUAL_LIGHT, study.EQUAL_TIME):
        assert len(designs) >= 12
        assert len(set(designs.values())) == len(designs)


def test_light_is_equal_behind_the_filters(study: ModuleType, imager: ModuleType) -> None:
    radiance = 40 * torch.rand(30, 3, imager.SCENE, imager.SCENE, generator=torch.Generator().manual_seed(0)) + 20
    light = [study.light(system) for system in study.equal_light(radiance).values()]
    assert max(light) < 1.001 * min(light)


def test_bands_of_a_flat_scene_in_closed_form(imager: ModuleType) -> None:
    """What one colour gives: electrons of stages, aperture and width, in the band that sees it."""
    radiance = torch.zeros(1, 3, imager.SCENE, imager.SCENE, dtype=torch.float64)
    radiance[:, 1] = 50.0
    mean = imager.imager(imager.Design(stages=16, width_nm=(60.0, 1.0, 60.0)), radiance).encoder
    seen = imager.imager(imager.Design(stages=16, width_nm=(60.0, 1.0, 60.0)), radiance).scenes
    with torch.no_grad():
        green = mean(seen)[0, 1]
    assert green.shape == (imager.PIXELS, imager.PIXELS)
    ground_m = 13e-6 * 694e3 / 13.0
    speed = math.sqrt(3.986004418e14 / 7.065e6) * 6.371e6 / 7.065e6
    watts = 50.0 * math.pi * (1 - 0.3**2) / (4 * 20**2) * 0.7 * (13e-6) ** 2 * 1e-3
    photons = watts * 560e-9 / (6.62607015e-34 * 299792458.0)
    # A band of 1 nm at the middle of the green one still sees a little of its neighbours, which are dark here.
    share = float(imager.band_mixture(imager.Design(width_nm=(60.0, 1.0, 60.0)))[1, 1])
    assert share == pytest.approx(1.0, abs=0.01)
    torch.testing.assert_close(green, torch.full_like(green, 16 * ground_m / speed * 0.5 * photons * share))


def test_band_mixture_keeps_a_grey_scene_grey(study: ModuleType, imager: ModuleType) -> None:
    for design in study.EQUAL_TIME.values():
        torch.testing.assert_close(imager.band_mixture(design).sum(1), torch.ones(3, dtype=torch.float64))
    identical = imager.band_mixture(imager.Design(width_nm=(1e-6, 1e-6, 1e-6)))
    torch.testing.assert_close(identical, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)


def test_transfer_at_nyquist_of_the_pixel_and_the_aperture(study: ModuleType, imager: ModuleType) -> None:
    """A larger f-number passes less at the Nyquist frequency; so does slip; each by what theory says for the slip."""
    radiance = torch.ones(20, 3, imager.SCENE, imager.SCENE)
    transfer = study.metrics()["transfer at Nyquist"]
    sharp, slow, slipped = (
        transfer(study.imager(design, radiance))
        for design in (study.Design(), study.Design(f_number=40.0), study.Design(row_slip=2.0, column_slip=2.0))
    )
    assert slow < sharp
    # A slip of two pixels is a box of two, whose transfer at half a cycle per pixel is sinc(1) = 0.
    assert slipped == study.LEAST_TRANSFER


def test_short_form_runs_through(
    study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    found = study.run(tmp_path / "out", tmp_path / "none", quick=True, seeds=1)
    assert found["scenes"] == "bundled photographs as radiance"
    for name, designs in (("satellite_equal_light", study.EQUAL_LIGHT), ("satellite_equal_time", study.EQUAL_TIME)):
        assert set(found[name]["bits"]) == set(designs)
        assert all(np.isfinite(list(found[name][key].values())).all() for key in ("bits", "psnr", "decoded_bits"))
        for file in (f"{each}.{ending}" for each in (name, f"{name}_decoded") for ending in ("txt", "png", "json")):
            assert (tmp_path / "out" / file).stat().st_size > 0
    light = found["satellite_equal_light"]["light"].values()
    assert max(light) < 1.05 * min(light)
    # In step, more stages add light; nothing else changes.
    bits = found["satellite_equal_time"]["bits"]
    assert bits["single line"] < bits["4 stages"] < bits["16 stages"] < bits["64 stages"]
    stages = [value["bits"] for value in found["stages"]["of"].values()]
    assert np.isfinite(stages).all()
    assert (
        json.loads((tmp_path / "out" / "satellite_stages.json").read_text())["design"]["gain_bits"]
        == (found["design"]["gain_bits"])
    )
    assert "chosen by information" in capsys.readouterr().out
