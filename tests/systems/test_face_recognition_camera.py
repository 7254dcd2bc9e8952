"""The camera that tells faces apart: labelled scenes, light against detail, and bits about who it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bitlens import estimate_task_information
from bitlens.datasets import linearize_srgb
from bitlens.systems.face_recognition_camera import FaceCameraDesign, face_recognition_camera, face_scenes

pytestmark = pytest.mark.usefixtures("one_thread")

FLAT = torch.ones(1, 1, 128, 128, dtype=torch.float64)


@pytest.mark.parametrize(
    ("design", "side", "electrons"),
    [("fine_pixels", 48, 2.0 * 2.2**2), ("coarse_pixels", 12, 2.0 * 8.8**2), ("small_aperture", 48, 0.5 * 2.2**2)],
)
def test_light_and_pixels_of_each_design(design: FaceCameraDesign, side: int, electrons: float) -> None:
    mean = face_recognition_camera(design, scenes=FLAT).encoder(FLAT)
    assert mean.shape == (1, 1, side, side)
    torch.testing.assert_close(mean, torch.full_like(mean, electrons + 0.05), rtol=1e-6, atol=0.0)


def test_all_designs_see_the_same_light_on_the_same_face() -> None:
    """Coarse pixels are the sums of fine ones."""
    scene = torch.rand(2, 1, 128, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fine, coarse = (
        face_recognition_camera(design, scenes=scene).encoder(scene) for design in ("fine_pixels", "coarse_pixels")
    )
    sums = (fine - 0.05).reshape(2, 1, 12, 4, 12, 4).sum(dim=(3, 5))
    torch.testing.assert_close(coarse - 0.05, sums, rtol=1e-6, atol=1e-6)


def test_bundled_faces_come_with_labels() -> None:
    data = pytest.importorskip("skimage.data")
    scenes, labels = face_scenes(size=(25, 17), margin_samples=0)
    assert labels.tolist() == [1] * 100 + [0] * 100
    linear = torch.from_numpy(linearize_srgb(data.lfw_subset())[:, None, :, 4:21]).float()
    torch.testing.assert_close(scenes, linear / linear.mean())
    large, _ = face_scenes(size=(75, 51), margin_samples=8)
    assert large.shape == (200, 1, 91, 67)
    assert float(large[..., 8:-8, 8:-8].mean()) == pytest.approx(1.0, rel=1e-5)
    again = torch.nn.functional.avg_pool2d(large[..., 8:-8, 8:-8], 3)
    assert np.corrcoef(again.flatten().numpy(), scenes.flatten().numpy())[0, 1] > 0.99


def test_edge_repeats_the_last_samples() -> None:
    pytest.importorskip("skimage")
    scenes, _ = face_scenes(size=(32, 32), margin_samples=4)
    assert torch.equal(scenes[..., :4, 4:-4], scenes[..., 4:5, 4:-4].expand(-1, -1, 4, -1))


def test_faces_of_a_file(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 20, 30), dtype=np.uint8)
    np.savez(tmp_path / "faces.npz", images=images, subject=np.array([0, 0, 4, 4, 2, 2], dtype=np.uint8))
    scenes, labels = face_scenes(tmp_path / "faces.npz", size=(40, 60), margin_samples=2)
    assert scenes.shape == (6, 1, 44, 64)
    assert labels.tolist() == [0, 0, 4, 4, 2, 2]
    np.savez(tmp_path / "none.npz", images=images)
    with pytest.raises(ValueError, match="need arrays images and subject, got none named subject"):
        face_scenes(tmp_path / "none.npz")
    np.savez(tmp_path / "wrong.npz", images=images / 255, subject=np.zeros(6, dtype=int))
    with pytest.raises(ValueError, match=r"need images \(n, row, column\) of 8 bits"):
        face_scenes(tmp_path / "wrong.npz")


def bits(design: FaceCameraDesign, photons: float, scenes: torch.Tensor, labels: torch.Tensor) -> float:
    encoder, noise, _ = face_recognition_camera(design, photons_per_um2=photons, scenes=scenes)
    with torch.no_grad():
        measured = noise.sample(encoder(scenes), torch.Generator().manual_seed(0))
    return estimate_task_information(
        measured, labels, method="logistic", generator=torch.Generator().manual_seed(1)
    ).bits


def test_faces_are_told_from_other_things_where_there_is_light() -> None:
    pytest.importorskip("skimage")
    scenes, labels = face_scenes()
    bright, dark = (bits("coarse_pixels", photons, scenes, labels) for photons in (10.0, 0.003))
    assert 0.6 < bright <= 1.0
    assert dark < 0.35


def test_detail_gives_way_to_light_among_people() -> None:
    """ORL faces: in the dark coarse pixels under the same read noise say more about who it is."""
    file = Path(__file__).parents[2].resolve().parent / "shared" / "data" / "faces_orl" / "orl_faces.npz"
    if not file.is_file():
        pytest.skip(f"no real data at {file}")
    scenes, labels = face_scenes(file)
    assert scenes.shape == (400, 1, 128, 128)
    assert torch.equal(labels.bincount(), torch.full((40,), 10))
    dim = {design: bits(design, 0.02, scenes, labels) for design in ("fine_pixels", "coarse_pixels")}
    assert dim["coarse_pixels"] > dim["fine_pixels"] + 0.5


def test_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"design: need one of .*'fine_pixels'.*got 'huge_pixels'"):
        face_recognition_camera("huge_pixels", scenes=FLAT)  # type: ignore[arg-type]


def test_default_scenes_fit() -> None:
    pytest.importorskip("skimage")
    encoder, _, scenes = face_recognition_camera("coarse_pixels", shape=(12, 8))
    assert encoder(scenes).shape == (200, 1, 12, 8)


def test_light_goes_as_pixel_and_f_number_say() -> None:
    encoder = face_recognition_camera(
        "fine_pixels", f_number=8.0, pixel_um=4.4, dark_electrons=0.2, scenes=FLAT
    ).encoder
    mean = encoder(FLAT)
    assert mean.shape == (1, 1, 24, 24)
    torch.testing.assert_close(mean, torch.full_like(mean, 2.0 * 4.4**2 / 4 + 0.2), rtol=1e-6, atol=0.0)
    same = face_recognition_camera("small_aperture", pixel_um=4.4, scenes=FLAT).encoder
    # Half the diameter at f/4 is f/8, whether the aperture or the lens says so.
    scene = torch.rand(1, 1, 128, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encoder(scene) - 0.2, same(scene) - 0.05, rtol=0.02, atol=0.0)


def test_names_to_learn_are_those_that_the_docstring_lists() -> None:
    names = ("aperture_radius", "defocus_waves", "phase_mask_waves", "exposure_photons", "quantum_efficiency")
    encoder = face_recognition_camera("coarse_pixels", scenes=FLAT, learn=(*names, "dark_electrons")).encoder
    assert {name for name, _ in encoder.named_parameters()} == {*names, "dark_electrons"}
    for name in ("f_number", "zernike_waves", "wavelength_nm"):
        with pytest.raises(ValueError, match=f"learn: need names among .*got '{name}'"):
            face_recognition_camera(scenes=FLAT, learn=(name,))
    with pytest.raises(TypeError, match="learn: need a sequence of names, got 'defocus_waves'"):
        face_recognition_camera(scenes=FLAT, learn="defocus_waves")  # type: ignore[arg-type]
