"""The study of lensless cameras: masks send light where they should, at equal light, and it runs through."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bitlens.densities import GaussianCopulaDensity, GaussianDensity
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import ImagingSystem

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # On the path, because processes that measure costs import it by name.
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("lensless")


def test_two_lenslets_make_two_images_of_equal_light(study: ModuleType) -> None:
    """Each image is that of a pinhole before the lenslet's middle: a sample next to another half a pixel further."""
    camera = importlib.import_module("_lensless_camera")
    side, pixels = camera.SCENE, camera.PIXELS
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
    mask = study.lenslets(importlib.import_module("_lensless_camera").random_places(5, seed=1))
    fixed = study.LenslessSensor(mask, 20.0, scenes.mean(0))
    learned = study.LenslessSensor(mask, 20.0, scenes.mean(0), learn=True)
    assert torch.allclose(learned(scenes), fixed(scenes), rtol=1e-9)
    (gradient,) = torch.autograd.grad(learned(scenes)[:, :, 3:9, 2:8].sum(), learned.places_um)
    assert bool((gradient.abs() > 0).all())


def light_or_dark(n: int, n_pixels: int, copies: int) -> torch.Tensor:
    """Photo-electrons of pixels that are bright or dark together, each (n, n_pixels) image repeated `copies` times."""
    lit = torch.rand(n, n_pixels, generator=torch.Generator().manual_seed(0)) < 0.2
    return (2.0 + 60.0 * lit.double()).repeat(1, copies)[:, None, None, :]


@pytest.mark.parametrize("copies", [1, 2])
def test_causal_density_bounds_rare_light_and_its_repetitions(study: ModuleType, copies: int) -> None:
    """Four pixels, each lit in a fifth of the images: 4 H(0.2) bits, however often the image is repeated."""
    density = importlib.import_module("_lensless_bits")
    noise = PoissonGaussianNoise(read_std=1.5)
    mean = light_or_dark(40000, 4, copies)
    truth = -4 * (0.2 * math.log2(0.2) + 0.8 * math.log2(0.8))
    system = ImagingSystem(torch.nn.Identity(), noise, mean)
    # A law for each pixel and bin: with so few of them, none is like another.
    found = density.bits(system, density.CausalDensity(1.5, 10, (40 * copies, 1)), 1000)
    gaussian, copula = (density.bits(system, each, 1000) for each in (GaussianDensity(), GaussianCopulaDensity()))
    assert truth - 4 * found.stderr < found.mean < truth + 0.7
    assert found.mean < gaussian.mean - 2
    assert copies == 1 or copula.mean - truth > 3 * (found.mean - truth)


def test_scenes_that_never_change_carry_nothing(study: ModuleType) -> None:
    density = importlib.import_module("_lensless_bits")
    mean = torch.tensor([0.0, 1.0, 5.0, 40.0, 700.0, 3.0], dtype=torch.float64).expand(9000, 1, 1, 6)
    system = ImagingSystem(torch.nn.Identity(), PoissonGaussianNoise(read_std=1.5), mean)
    found = density.bits(system, density.CausalDensity(1.5, 4, (3, 2)), 3000)
    assert -3 * found.stderr < found.mean < 0.2


def test_causal_density_integrates_to_one_and_draws_what_it_says(study: ModuleType) -> None:
    density = importlib.import_module("_lensless_bits")
    noise = PoissonGaussianNoise(read_std=1.5)
    measured = noise.sample(light_or_dark(20000, 1, 2), torch.Generator().manual_seed(1))
    fitted = density.CausalDensity(1.5, 6, (12, 1)).fit(measured)
    stable = torch.linspace(-10, 25, 1751, dtype=torch.float64)
    values = torch.where(stable < 0, 1.5 * stable, (0.5 * stable + 1.5).square() - 2.25)
    slope = torch.where(stable < 0, 1.5, 0.5 * stable + 1.5)
    pairs = torch.cartesian_prod(values, values)[:, None, None, :]
    mass = (fitted.log_prob(pairs).exp().reshape(1751, 1751) * slope * slope[:, None]).sum() * 0.02**2
    # What lies beyond is in the tails of the outliers' law.
    assert 0.995 < float(mass) < 1.0005
    drawn = fitted.log_prob(fitted.sample(4000, torch.Generator().manual_seed(2)))
    given = fitted.log_prob(measured)
    assert float(drawn.mean()) == pytest.approx(float(given.mean()), abs=4 * float(given.std()) / math.sqrt(2000))


def test_causal_density_differentiates(study: ModuleType) -> None:
    density = importlib.import_module("_lensless_bits")
    noise = PoissonGaussianNoise(read_std=1.5)
    measured = noise.sample(light_or_dark(2000, 3, 1), torch.Generator().manual_seed(1))
    # Its own images lie on the edges of bins, where the law changes.
    fitted = density.CausalDensity(1.5, 6, (3, 2)).fit(measured[20:])
    point = measured[:20].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(fitted.log_prob(point).sum(), point)
    step = 1e-5
    with torch.no_grad():
        for pixel in range(3):
            moved = torch.zeros_like(point)
            moved[..., pixel] = step
            slope = (fitted.log_prob(point + moved) - fitted.log_prob(point - moved)) / (2 * step)
            assert torch.allclose(slope, gradient[:, 0, 0, pixel], rtol=1e-3, atol=1e-5)


def test_start_of_the_design_is_whole_pixels_but_for_mounting(study: ModuleType) -> None:
    """All four see nearly the same points, and no two the points between."""
    camera = importlib.import_module("_lensless_camera")
    places = camera.mounted() / (2 * study.HALF_PIXEL_UM)
    apart = (places[:, None] - places).abs()
    assert float((apart - apart.round()).abs().max()) < 0.2
    assert float(apart.round().amax()) == 8


def test_quick_form(study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = study.run(tmp_path, tmp_path / "none", quick=True, seeds=2)
    assert "bundled photographs" in capsys.readouterr().out
    for photons in (20, 320):
        ranking = found[f"lensless_{photons}_photons"]
        assert len(ranking["bits"]) >= 12
        assert all(math.isfinite(bits) for bits in ranking["bits"].values())
        light = ranking["light"].values()
        assert min(light) == pytest.approx(photons * 20**2, rel=0.05)
        assert max(light) < 1.05 * min(light)
        # Without a mask hardly anything is seen.
        assert ranking["bits"]["no mask"] < 0.5 * ranking["bits"]["one lens"]
    for name in ("lensless_320_photons.png", "lensless_light.png", "lensless_masks.png", "lensless_design.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    comparison = json.loads((tmp_path / "lensless_comparison.json").read_text())
    assert set(comparison["cost"]) == {"designed by information", "trained end to end"}
