"""The study of lensless cameras: masks send light where they should, at equal light, and it runs through."""

from __future__ import annotations

import importlib
import json
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
    return importlib.import_module("lensless")


def test_two_lenslets_make_two_images_of_equal_light(study: ModuleType) -> None:
    """Each image is that of a pinhole before the lenslet's middle: a sample next to another half a pixel further."""
    side, pixels = study.SCENE, study.PIXELS
    scene = torch.zeros(1, 1, side, side, dtype=torch.float64)
    scene[0, 0, 8, 16] = 1
    places = torch.tensor([[-8.0, 6.0], [8.0, -6.0]], dtype=torch.float64)
    mask = study.lenslets(study.HALF_PIXEL_UM * places)
    encoder = study.LenslessSensor(mask, 1.0, scene[0])
    image = encoder(scene)[0, 0]
    assert float(image.sum()) == pytest.approx(pixels**2, rel=1e-6)
    # In half pixels from the sensor's edge: the sample before it, and each image a lenslet's place further.
    at = torch.tensor([8, 16]) + (2 * pixels - side) // 2
    brightest = image.flatten().topk(2).indices.tolist()
    expected = [((at + place.long()) // 2).tolist() for place in places]
    assert sorted(divmod(index, pixels) for index in brightest) == sorted(map(tuple, expected))
    for row, column in expected:
        around = image[row - 2 : row + 3, column - 2 : column + 3]
        assert float(around.sum()) == pytest.approx(0.5 * pixels**2, rel=0.1)


def test_learned_places_are_those_of_the_fixed_mask(study: ModuleType) -> None:
    scenes = torch.rand(3, 1, study.SCENE, study.SCENE, generator=torch.Generator().manual_seed(0)).double()
    mask = study.lenslets(study.random_places(5, seed=1))
    fixed = study.LenslessSensor(mask, 20.0, scenes.mean(0))
    learned = study.LenslessSensor(mask, 20.0, scenes.mean(0), learn=True)
    assert torch.allclose(learned(scenes), fixed(scenes), rtol=1e-9)
    (gradient,) = torch.autograd.grad(learned(scenes)[:, :, 3:9, 2:8].sum(), learned.places_um)
    assert bool((gradient.abs() > 0).all())


def test_quick_form(study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = study.run(tmp_path, tmp_path / "none", quick=True, seeds=2)
    assert "bundled photographs" in capsys.readouterr().out
    for photons in (20, 320):
        ranking = found[f"lensless_{photons}_photons"]
        assert len(ranking["bits"]) >= 12
        assert all(math.isfinite(bits) for bits in ranking["bits"].values())
        light = ranking["light"].values()
        assert min(light) == pytest.approx(photons * study.PIXELS**2, rel=0.05)
        assert max(light) < 1.05 * min(light)
        # Without a mask hardly anything is seen.
        assert ranking["bits"]["no mask"] < 0.5 * ranking["bits"]["one lens"]
    for name in ("lensless_320_photons.png", "lensless_light.png", "lensless_masks.png", "lensless_design.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    comparison = json.loads((tmp_path / "lensless_comparison.json").read_text())
    assert set(comparison["cost"]) == {"designed by information", "trained end to end"}
