"""The ready-made camera: three designs, the light each gets, and calls that unpack."""

from __future__ import annotations

import typing

import pytest
import torch

from bitlens import systems
from bitlens.noise import PoissonGaussianNoise

DESIGNS = ("in_focus", "defocused", "small_aperture")
FLAT = torch.ones(1, 1, 64, 64)


@pytest.mark.parametrize(("design", "share"), [("in_focus", 1.0), ("defocused", 1.0), ("small_aperture", 0.25)])
@pytest.mark.parametrize("photons", [20.0, 2000.0])
def test_light_of_each_design(design: systems.CameraDesign, share: float, photons: float) -> None:
    encoder, noise, scenes = systems.camera(design, photons=photons, scenes=FLAT)
    mean = encoder(scenes)
    torch.testing.assert_close(mean, torch.full_like(mean, share * photons + 0.05), rtol=1e-5, atol=0)
    assert isinstance(noise, PoissonGaussianNoise)
    torch.testing.assert_close(noise.variance(mean).double(), mean.double() + 4.0, rtol=1e-6, atol=0, check_dtype=False)


def test_sharpness_of_each_design() -> None:
    # Mean square of the PSF's transfer function, per unit of light: the sharper, the larger.
    def sharpness(design: systems.CameraDesign) -> float:
        psf = systems.camera(design, scenes=FLAT).encoder.psf()
        return float((psf**2).sum() / psf.sum() ** 2)

    assert sharpness("in_focus") > 2 * sharpness("small_aperture")
    assert sharpness("in_focus") > 5 * sharpness("defocused")


def test_one_wave_of_peak_defocus_leaves_no_light_on_the_axis() -> None:
    psf = systems.camera("defocused", scenes=torch.ones(1, 1, 98, 98), margin_pixels=24).encoder.psf()
    centre = psf.shape[-1] // 2
    assert float(psf[centre, centre] / psf.max()) < 0.01


def test_default_scenes_give_patches_of_the_size_asked_for() -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    system = systems.camera("in_focus", photons=200, patch_pixels=8)
    mean = system.encoder(system.scenes)
    assert mean.shape == (512, 1, 8, 8)
    # Images are exposed to a mean of 200 each; random patches scatter around it.
    assert 150 < float(mean.mean()) < 250
    again = systems.camera("defocused", patch_pixels=8)
    assert torch.equal(system.scenes, again.scenes)


def test_parameters_to_learn_are_passed_on() -> None:
    encoder = systems.camera("in_focus", scenes=FLAT, learn=("phase_mask_waves",)).encoder
    assert [name for name, _ in encoder.named_parameters()] == ["phase_mask_waves"]


def test_unknown_design_is_named() -> None:
    with pytest.raises(ValueError, match=r"design: need one of .*'in_focus'.*got 'blurry'"):
        systems.camera("blurry", scenes=FLAT)  # type: ignore[arg-type]


def test_descriptions_name_what_can_be_called() -> None:
    for description in systems.descriptions():
        build = getattr(systems, description.name)
        assert typing.get_args(typing.get_type_hints(build)["design"]) == description.designs
        with pytest.raises(ValueError, match=rf"design: need one of .*{description.designs[0]!r}.*got 'none of them'"):
            build("none of them")
        assert all("\n" not in line for line in (description.formula, description.reference))
    (camera,) = (item for item in systems.descriptions() if item.name == "camera")
    assert camera.designs == DESIGNS
