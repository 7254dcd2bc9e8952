"""Holograms against the Rayleigh-Sommerfeld integral, the radii of Fresnel's zones, and geometry."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from bitlens.systems.inline_holography import InlineHologram, inline_holography

WAVELENGTH_UM = 0.5


def load_study(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "studies" / f"{name}.py"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


def shared_data(file: str) -> Path:
    folder = Path(__file__).parents[2].resolve().parent / "shared" / "data"
    if not (folder / file).is_file():
        pytest.skip(f"no real data at {folder / file}")
    return folder


def hologram(**changes) -> InlineHologram:
    numbers = {
        "distance_mm": 0.06,
        "wavelength_nm": 1e3 * WAVELENGTH_UM,
        "pixel_um": 0.5,
        "photons": 1.0,
        "oversampling": 1,
        "margin_pixels": 0,
    }
    return InlineHologram(**{**numbers, **changes})


def blob(place: tuple[float, float], size: int, width_samples: float = 1.2) -> np.ndarray:
    row, column = np.arange(size) - place[0], np.arange(size) - place[1]
    return np.exp(-(row[:, None] ** 2 + column[None, :] ** 2) / (2 * width_samples**2))


def rayleigh_sommerfeld(
    scene: np.ndarray, distances_um: list[float], sine: tuple[float, float], contrast: complex, at: np.ndarray
) -> np.ndarray:
    """|field|^2 at points (n, 2) in micrometres, by the explicit sum over the samples of every depth."""
    k, size, step = 2 * math.pi / WAVELENGTH_UM, scene.shape[-1], 0.5
    axis = (np.arange(size) - size // 2) * step
    cosine = math.sqrt(1 - sine[0] ** 2 - sine[1] ** 2)
    total = np.exp(1j * k * (sine[0] * at[:, 0] + sine[1] * at[:, 1]))
    for plane, distance in zip(scene, distances_um, strict=True):
        rows, columns = np.nonzero(plane > 1e-9)
        x = np.stack((axis[rows], axis[columns]), axis=1)
        incident = np.exp(1j * k * (x @ np.array(sine) - cosine * distance))
        r = np.sqrt(((at[:, None] - x[None]) ** 2).sum(axis=2) + distance**2)
        kernel = distance / (2 * math.pi * r**2) * (1 / r - 1j * k) * np.exp(1j * k * r)
        total -= contrast * step**2 * kernel @ (incident * plane[rows, columns])
    return np.abs(total) ** 2


@pytest.mark.parametrize(
    ("sine", "shift", "contrast"),
    [((0.0, 0.0), (0.0, 0.0), 1.0), ((0.1, -0.06), (3.0, -1.7), 1 - 0.6 * np.exp(0.8j))],
    ids=["on-axis", "tilted-shifted"],
)
def test_particles_in_depth_by_the_rayleigh_sommerfeld_integral(sine, shift, contrast: complex) -> None:
    size, distances = 96, [40.0, 60.0]
    scene = np.stack((blob((50.3, 45.0), size), 0.7 * blob((40.0, 55.5), size)))
    encoder = hologram(
        distance_mm=1e-3 * distances[0],
        depth_mm=[1e-3 * (z - distances[0]) for z in distances],
        tilt_rad=tuple(math.asin(s) for s in sine),
        shift_um=[shift],
        particle_amplitude=abs(1 - contrast),
        particle_phase_rad=float(np.angle(1 - contrast)) if contrast != 1 else 0.0,
        pad=3,
    )
    mean = encoder(torch.from_numpy(scene)[None])[0, 0].numpy()
    picked = np.random.default_rng(0).integers(24, 72, (60, 2))
    truth = rayleigh_sommerfeld(scene, distances, sine, contrast, (picked - size // 2) * 0.5 + np.array(shift))
    assert np.ptp(truth) > 0.2
    np.testing.assert_allclose(mean[picked[:, 0], picked[:, 1]], truth, rtol=0, atol=2e-3)


def test_fringes_of_a_small_particle_have_the_radii_of_fresnels_zones() -> None:
    # Intensity - 1 ~ sin(k (r - z)): rings where the detour is a multiple of half the wavelength.
    size, z = 128, 60.0
    scene = torch.from_numpy(0.02 * blob((64, 64), size, 1.0))[None, None]
    change = (hologram(pad=3)(scene)[0, 0, 64, 64:] - 1).numpy()
    sign = np.sign(change)
    at = np.nonzero(sign[1:] != sign[:-1])[0]
    crossing = 0.5 * (at + change[at] / (change[at] - change[at + 1]))
    m = np.arange(1, 9)
    radii = np.sqrt(m * WAVELENGTH_UM * z + (m * WAVELENGTH_UM / 2) ** 2)
    np.testing.assert_allclose(crossing[:8], radii, atol=0.06)
    assert change[0] < 0 < -change[2], "an opaque point on the axis is dark within the first ring"


def test_shadows_move_by_distance_times_the_tangent_of_the_tilt() -> None:
    scene = torch.zeros((1, 1, 96, 96), dtype=torch.float64)
    scene[0, 0] = torch.from_numpy(blob((40, 56), 96, 4.0))
    # 4 samples of 0.5 um down and none across at 20 um.
    dark = hologram(distance_mm=0.02, tilt_rad=(math.atan(2.0 / 20.0), 0.0))(scene)[0, 0]
    weight = (1 - dark).clamp(min=0) * (1 - dark > 0.3)
    row = float((weight.sum(1) * torch.arange(96)).sum() / weight.sum())
    column = float((weight.sum(0) * torch.arange(96)).sum() / weight.sum())
    assert (row, column) == (pytest.approx(44, abs=0.2), pytest.approx(56, abs=0.1))


def test_a_shift_of_the_sensor_by_whole_samples_is_the_same_hologram_moved() -> None:
    scene = torch.from_numpy(blob((48, 48), 96))[None, None]
    frames = hologram(shift_um=[(0.0, 0.0), (1.5, -1.0)], pad=3)(scene)[0]
    torch.testing.assert_close(frames[1, 16:80, 16:80], frames[0, 19:83, 14:78], rtol=0, atol=1e-3)


def test_light_without_an_object_is_shared_by_the_frames() -> None:
    system = inline_holography("shifted_frames", photons=1000.0, tilt_rad=(0.1, 0.2), n_scenes=64)
    mean = system.encoder(torch.zeros_like(system.scenes[:2]))
    torch.testing.assert_close(mean, torch.full((2, 4, 32, 32), 250.1), rtol=1e-5, atol=0)


def test_what_transmits_everything_is_not_seen() -> None:
    system = inline_holography(particle_amplitude=1.0, particle_phase_rad=0.0, n_scenes=64)
    mean = system.encoder(system.scenes[:2])
    torch.testing.assert_close(mean, torch.full_like(mean, 1000.1), rtol=1e-5, atol=0)


def test_a_learned_distance_moves_all_depths_together() -> None:
    scene = torch.from_numpy(np.stack((blob((50, 45), 96), blob((40, 55), 96))))[None]
    encoder = hologram(distance_mm=0.05, depth_mm=[0.0, 0.02], learn=["distance_mm"])
    assert encoder.distance_mm.ndim == 0
    assert [name for name, _ in encoder.named_parameters()] == ["distance_mm"]
    with torch.no_grad():
        encoder.distance_mm.add_(0.01)
        farther = encoder(scene)
        apart = hologram(distance_mm=0.06, depth_mm=[0.0, 0.02])(scene)
        torch.testing.assert_close(farther, apart, rtol=1e-9, atol=1e-12)
    low, high = encoder.parameter_domain["distance_mm"]
    assert (low, high) == pytest.approx((0.025, 0.1))
    for wrong in ([0.01, 0.02], [-0.01, 0.0]):
        with pytest.raises(ValueError, match="depth_mm: need"):
            hologram(depth_mm=wrong)


def test_the_scale_of_the_distance_is_the_depth_of_focus() -> None:
    # Fringes as fine as two pixels have NA = wavelength / (2 pixel); their phase turns by pi / 2 over half of it.
    encoder = hologram(pixel_um=1.0)
    aperture = WAVELENGTH_UM / 2.0
    assert encoder.parameter_scale["distance_mm"] == pytest.approx(1e-3 * WAVELENGTH_UM / aperture**2)


@pytest.mark.parametrize(("design", "most"), [("near", 0.01), ("far", 0.07)])
def test_padding_of_a_design_keeps_the_hologram(design: str, most: float) -> None:
    # Against a window three times as wide, from the same scene.
    system = inline_holography(design, n_scenes=2)  # type: ignore[arg-type]
    encoder, scenes = system.encoder, system.scenes.double()
    wide = InlineHologram(
        distance_mm=float(encoder.distance_mm),
        depth_mm=encoder.depth_mm.tolist(),
        wavelength_nm=530.0,
        pixel_um=1.12,
        dark_electrons=0.1,
        pad=3 * encoder.pad,
    )(scenes)
    error = (encoder(scenes) - wide).std() / wide.std()
    assert float(error) < most
    assert float((encoder(scenes) - wide).std()) < math.sqrt(1000.0) / 5, "of the shot noise"


@pytest.mark.parametrize("end", [0, 1])
def test_the_hologram_holds_at_both_ends_of_the_distances(end: int) -> None:
    # Finer samples and a wider window change 3 % of it.
    start = inline_holography(n_scenes=2)
    scenes = start.scenes.double()
    distance = start.encoder.parameter_domain["distance_mm"][end]
    numbers = {"distance_mm": distance, "depth_mm": [0.0, 0.02, 0.04], "wavelength_nm": 530.0, "pixel_um": 1.12}
    here = InlineHologram(**numbers, pad=start.encoder.pad)(scenes)
    finer = InlineHologram(**numbers, oversampling=4, pad=6)(scenes.repeat_interleave(2, -1).repeat_interleave(2, -2))
    assert float((here - finer).std() / finer.std()) < 0.035


def test_designs_and_errors() -> None:
    near, far = (inline_holography(design, n_scenes=64) for design in ("near", "far"))
    assert torch.equal(near.scenes, far.scenes)
    assert float(near.encoder.distance_mm) == pytest.approx(0.3)
    assert near.encoder.depth_mm.tolist() == pytest.approx([0.0, 0.02, 0.04])
    with pytest.raises(ValueError, match="design: need one of"):
        inline_holography("close")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shift_um: need shape \(frame, 2\)"):
        hologram(shift_um=[(0.0, 0.0, 1.0)])
    with pytest.raises(ValueError, match=r"scene: need shape \(batch, 3, row, column\)"):
        near.encoder(torch.zeros(1, 1, 96, 96))
    with pytest.raises(ValueError, match="tilt_rad: need values of"):
        hologram(pixel_um=2.0, tilt_rad=(0.2, 0.0))
    with pytest.raises(ValueError, match="pad: need a number of at least 1"):
        hologram(pad=0.5)


def test_recorded_hologram_of_a_target_is_sharp_at_the_stated_distance() -> None:
    study = load_study("real_holography")
    recording = study.read(shared_data(study.FILE))
    assert recording.carrier == (-238, -308)
    focus = study.find_focus(recording, torch.arange(20.0, 38.1, 3.0))
    depth_mm = 1e-6 * recording.wavelength_nm / recording.aperture**2
    assert abs(focus.best_mm - recording.stated_mm) < depth_mm < 4.0
    for elsewhere in (0.0, -30.0, 60.0):
        assert study.sharpness(study.refocused(recording, elsewhere)) < 0.85 * float(focus.sharpness.max())
