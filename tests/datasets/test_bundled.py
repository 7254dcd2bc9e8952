"""Scenes that come with scikit-image and scikit-learn: linear light, luminance, separate lists, no downloads."""

from __future__ import annotations

import socket
import sys

import numpy as np
import pytest
import torch

from bitlens.datasets import FITTING_SCENES, REPORTING_SCENES, SCENES, linearize_srgb, load_scene, scene_patches

skimage_data = pytest.importorskip("skimage.data")
pytest.importorskip("sklearn.datasets")


def test_srgb_transfer_curve() -> None:
    # Values of IEC 61966-2-1: black, the joint of the two pieces, middle grey and white.
    encoded = np.array([0.0, 0.04045, 0.5, 1.0])
    np.testing.assert_allclose(linearize_srgb(encoded), [0.0, 0.0031308, 0.21404114, 1.0], rtol=1e-5, atol=1e-12)
    # Its inverse, as the standard writes it.
    linear = np.linspace(0, 1, 201)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(linearize_srgb(encoded), linear, atol=1e-6)


def test_lists_are_apart_and_known() -> None:
    assert not set(FITTING_SCENES) & set(REPORTING_SCENES)
    assert set(FITTING_SCENES) | set(REPORTING_SCENES) <= set(SCENES)
    assert len(FITTING_SCENES) >= 7
    assert len(REPORTING_SCENES) >= 7


@pytest.mark.parametrize("name", SCENES)
def test_every_scene_loads_without_a_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a bundled scene must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    scene = load_scene(name)
    assert scene.dtype == torch.float32
    assert scene.shape[0] == 1
    assert min(scene.shape[1:]) >= 160
    assert float(scene.min()) >= 0
    assert float(scene.max()) <= 1
    assert float(scene.std()) > 0.01


def test_grey_and_color_agree_with_the_files() -> None:
    file = skimage_data.astronaut().astype(np.float64) / 255
    color = load_scene("astronaut", color=True)
    assert color.shape == (3, 512, 512)
    np.testing.assert_allclose(color[1, 100, 200].item(), linearize_srgb(file[100, 200, 1]), rtol=1e-6)
    luminance = 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2]
    torch.testing.assert_close(load_scene("astronaut")[0], luminance, rtol=1e-5, atol=1e-7)
    grey = load_scene("camera", color=True)
    assert torch.equal(grey[0], grey[2])
    assert torch.equal(grey[:1], load_scene("camera"))


def test_mean_is_that_of_the_whole_image() -> None:
    plain, exposed = load_scene("coffee", color=True), load_scene("coffee", color=True, mean=1.0)
    assert float(exposed.double().mean()) == pytest.approx(1.0, rel=1e-6)
    ratio = float(exposed.double().sum() / plain.double().sum())
    torch.testing.assert_close(exposed, plain * ratio, rtol=1e-5, atol=1e-7)


def test_patches_carry_the_position_of_their_image() -> None:
    names = ("coins", "moon")
    patches = scene_patches(6, 12, names=names, mean=None, generator=torch.Generator().manual_seed(0))
    assert patches.scenes.shape == (6, 1, 12, 12)
    assert patches.groups.tolist() == [0, 1, 0, 1, 0, 1]
    for scene, group in zip(patches.scenes, patches.groups.tolist(), strict=True):
        windows = load_scene(names[group])[0].unfold(0, 12, 1).unfold(1, 12, 1)
        assert bool((windows == scene[0]).all(dim=-1).all(dim=-1).any())


def test_unknown_scene_and_mean_are_named() -> None:
    with pytest.raises(ValueError, match=r"name: need one of astronaut, .*got 'lena'"):
        load_scene("lena")
    with pytest.raises(ValueError, match="mean: need a positive number or None, got 0"):
        load_scene("camera", mean=0.0)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("camera", "skimage.data", "scikit-image"), ("china", "sklearn.datasets", "scikit-learn")],
)
def test_a_missing_package_is_named(name: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=f"pip install {package}"):
        load_scene(name)
