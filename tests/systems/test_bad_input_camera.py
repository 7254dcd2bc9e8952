"""What the cameras make of scenes that a user may bring: arrays, photographs, wrong channels, degrees Celsius."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from bitlens import systems
from bitlens.datasets import linearize_srgb

pytestmark = pytest.mark.usefixtures("one_thread")

# Each with the channels that it takes, a size that fits, and what its scenes are of: light around 1 or not.
CAMERAS: dict[str, tuple[Callable[..., systems.ImagingSystem], int, int, bool]] = {
    "camera": (partial(systems.camera, margin_pixels=2), 1, 16, True),
    "color_camera": (partial(systems.color_camera, margin_pixels=2), 3, 24, True),
    "face_recognition_camera": (partial(systems.face_recognition_camera, "coarse_pixels"), 1, 64, True),
    "lensless_camera": (partial(systems.lensless_camera, shape=(16, 16)), 1, 16, True),
    "satellite_imager": (partial(systems.satellite_imager, margin_pixels=2), 1, 48, False),
    "infrared_camera": (partial(systems.infrared_camera, margin_pixels=1), 1, 24, False),
}
names = pytest.mark.parametrize("name", CAMERAS)


@names
def test_arrays_become_tensors(name: str) -> None:
    make, channels, side, _ = CAMERAS[name]
    scenes = np.full((2, channels, side, side), 290.0)
    scenes.setflags(write=False)
    encoder, _, found = make(scenes=scenes)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(encoder(found), encoder(torch.full((2, channels, side, side), 290.0).double()))


@names
def test_scenes_that_do_not_fit_are_named(name: str) -> None:
    make, channels, side, _ = CAMERAS[name]
    for wrong in (torch.full((2, channels + 1, side, side), 290.0), torch.full((2, side, side, channels), 290.0)):
        with pytest.raises(ValueError, match=rf"scenes: need shape \(batch, {channels}, row, column\), got "):
            make(scenes=wrong)
    if name != "lensless_camera":
        with pytest.raises(ValueError, match=r"scenes: need \d+ rows and \d+ columns for the edge"):
            make(scenes=torch.full((2, channels, side + 1, side), 290.0))
        with pytest.raises(ValueError, match=r"scenes: need \d+ rows and \d+ columns for the edge"):
            make(scenes=torch.full((2, channels, 2, side), 290.0))
    with pytest.raises(ValueError, match=r"scenes: need .* at least \d+"):
        make(scenes=torch.full((2, channels, side, side), -1.0))


@names
def test_photographs_are_no_scenes(name: str) -> None:
    make, channels, side, relative = CAMERAS[name]
    bytes_ = np.random.default_rng(0).integers(160, 256, (2, channels, side, side), dtype=np.uint8)
    if not relative:  # whole kelvin, or W / (m^2 sr um)
        assert float(make(scenes=bytes_).scenes.max()) == bytes_.max()
        return
    for photograph in (bytes_, torch.from_numpy(bytes_), bytes_.astype(np.uint16)):
        with pytest.raises(TypeError, match="scenes: need linear light around 1, got a photograph's whole numbers"):
            make(scenes=photograph)
    assert float(make(scenes=linearize_srgb(bytes_ / 255)).scenes.max()) <= 1.0
    # A mask of 0 and 1 is light.
    assert float(make(scenes=bytes_ // 200).scenes.max()) == 1.0


@pytest.mark.parametrize("celsius", [22.0, -40.0, 120.0])
def test_degrees_celsius_are_not_kelvin(celsius: float) -> None:
    make, _, side, _ = CAMERAS["infrared_camera"]
    with pytest.raises(ValueError, match=rf"scenes: need temperatures in kelvin, at least 150 .*got {celsius:g}"):
        make(scenes=torch.full((1, 1, side, side), celsius))
    with pytest.raises(ValueError, match="mean_kelvin, contrast_kelvin: need temperatures in kelvin"):
        make(mean_kelvin=celsius, n_scenes=2, shape=(4, 4))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("camera", "photons read_std margin_pixels patch_pixels"),
        ("face_recognition_camera", "photons_per_um2 read_std f_number pixel_um dark_electrons"),
        ("infrared_camera", "f_number pixel_um exposure_ms pixels_per_s lens_kelvin transmission quantum_efficiency"),
        ("infrared_camera", "dark_electrons_per_s response_std mean_kelvin contrast_kelvin margin_pixels"),
        ("satellite_imager", "n_stages mismatch_pixels drift_pixels radiance f_number center_nm width_nm altitude_km"),
        ("lensless_camera", "distance_mm pixel_um wavelength_nm depths_mm bump_um feature_um photons"),
    ],
)
def test_what_is_no_number_is_named(name: str, arguments: str) -> None:
    for argument in arguments.split():
        with pytest.raises(TypeError, match=rf"^{argument}: need a (whole )?number.*, got 'a'"):
            getattr(systems, name)(**{argument: "a"})


@names
def test_names_to_learn_are_a_sequence(name: str) -> None:
    make, channels, side, _ = CAMERAS[name]
    if name == "color_camera":
        return
    for learn in ("f_number", 3, None):
        with pytest.raises(TypeError, match=r"^learn: need a sequence of names, got "):
            make(learn=learn, scenes=torch.full((2, channels, side, side), 290.0))


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("camera", "photons", 0.0),
        ("camera", "patch_pixels", 0),
        ("color_camera", "tile_pixels", 2.5),
        ("face_recognition_camera", "f_number", 2.0),
        ("face_recognition_camera", "pixel_um", 3.0),
        ("lensless_camera", "mask_pixels", (0, 4)),
        ("lensless_camera", "n_lenslets", 0),
        ("lensless_camera", "bump_um", -1.0),
        ("satellite_imager", "n_stages", 0),
        ("satellite_imager", "margin_pixels", 0),
        ("satellite_imager", "radiance", 0.0),
        ("satellite_imager", "center_nm", (0.0,)),
        ("satellite_imager", "width_nm", (0.0,)),
        ("satellite_imager", "altitude_km", -1.0),
        ("infrared_camera", "quantum_efficiency", (1.0, 2.0, 3.0)),
        ("infrared_camera", "quantum_efficiency", 1.5),
        ("infrared_camera", "dark_electrons_per_s", -1.0),
        ("infrared_camera", "exposure_ms", 0.0),
        ("infrared_camera", "response_std", -1.0),
        ("infrared_camera", "mean_kelvin", float("nan")),
        ("face_recognition_camera", "photons_per_um2", 0.0),
        ("satellite_imager", "full_well_electrons", 0.0),
        ("lensless_camera", "depths_mm", -1.0),
        ("lensless_camera", "depths_mm", ()),
    ],
)
def test_numbers_that_cannot_be_used(name: str, argument: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{argument}.*: need "):
        getattr(systems, name)(**{argument: value})
