"""The lensless camera: shadows, spots and caustics where optics says, and a real hand through a real diffuser."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve
from torch import Tensor

from bitlens.systems.lensless_camera import (
    LenslessCamera,
    LenslessDesign,
    diffuser_relief,
    lensless_camera,
    lenslet_relief,
)

pytestmark = pytest.mark.usefixtures("one_thread")

DESIGNS: tuple[LenslessDesign, ...] = ("lens", "lenslets", "diffuser", "coded_mask")
DARK = torch.zeros(1, 1, 32, 32)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("design", DESIGNS)
def test_light_that_the_mask_passes_arrives(design: LenslessDesign) -> None:
    encoder = lensless_camera(design, scenes=DARK, shape=(32, 32)).encoder
    psf = encoder.psf()
    assert float(psf.sum()) == pytest.approx(float((encoder.amplitude**2).mean()), rel=1e-6)
    assert float(psf.min()) >= 0.0
    if design == "coded_mask":
        assert 0.3 < float(psf.sum()) < 0.7


def test_square_lens_has_the_spot_of_its_aperture() -> None:
    """sinc(x D / (wavelength distance))^2 along each axis, averaged over the pixels."""
    n, pixel, distance, wavelength = 64, 4.0, 8.0, 0.532
    size = (2 * n, 2 * n)
    encoder = LenslessCamera(
        height_um=lenslet_relief(size, pixel / 2, torch.zeros(1, 2), focal_length_mm=distance),
        amplitude=torch.ones(size),
        distance_mm=distance,
        pixel_um=pixel,
        oversampling=2,
        psf_pixels=(4 * n, 4 * n),
    )
    psf = encoder.psf()[0]
    fine = (np.arange(4 * n * 10) + 0.5) / 10 - 2 * n - 0.5
    spot = np.sinc(fine * pixel * n * pixel / (wavelength * 1e3 * distance)) ** 2
    line = spot.reshape(-1, 10).mean(axis=1)
    expected = torch.from_numpy(np.outer(line, line))
    expected = expected / expected.sum()
    assert int(psf.argmax()) == 2 * n * 4 * n + 2 * n
    assert float((psf - expected).abs().max()) < 0.01 * float(expected.max())


def test_a_lens_is_sharp_where_the_thin_lens_equation_says() -> None:
    """A Gaussian aperture: variance ((1 - d (1 / f - 1 / z)) s)^2 + (wavelength d / (4 pi s))^2, and a pixel's."""
    distance, sharp, std, pixel = 8.0, 60.0, 90.0, 6.5
    n = 256
    axis = pixel / 2 * (torch.arange(n, dtype=torch.float64) - 0.5 * (n - 1))
    focal = 1 / (1 / distance + 1 / sharp)
    depths = (30.0, sharp, math.inf)
    encoder = LenslessCamera(
        height_um=lenslet_relief((n, n), pixel / 2, torch.zeros(1, 2), focal_length_mm=focal),
        amplitude=torch.exp(-(axis[:, None] ** 2 + axis**2) / (4 * std**2)),
        distance_mm=distance,
        pixel_um=pixel,
        oversampling=2,
        depths_mm=depths,
    )
    where = pixel * (torch.arange(n, dtype=torch.float64) - n // 2)
    for psf, depth in zip(encoder.psf(), depths, strict=True):
        geometric = 1 - distance * (1 / focal - 1 / depth)
        # A pixel adds two samples, half a pixel apart.
        expected = (geometric * std) ** 2 + (0.532e3 * distance / (4 * math.pi * std)) ** 2 + pixel**2 / 16
        for line in (psf.sum(dim=0), psf.sum(dim=1)):
            line = line / line.sum()
            assert float((where * line).sum()) == pytest.approx(0.0, abs=0.01)
            # The formula is paraxial, the propagation is not: 0.5 %, with the sign of the defocus.
            assert float((where**2 * line).sum()) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("depth", [10.0, 25.0, math.inf])
def test_shadow_grows_as_a_point_comes_near(depth: float) -> None:
    """Two holes off the axis cast their light 1 + distance / depth times as far from it."""
    amplitude = torch.zeros(128, 128, dtype=torch.float64)
    amplitude[14:22, 26:34] = 1.0
    amplitude[96:104, 100:108] = 1.0
    encoder = LenslessCamera(
        height_um=torch.zeros(128, 128),
        amplitude=amplitude,
        distance_mm=2.0,
        pixel_um=10.0,
        oversampling=4,
        depths_mm=(depth,),
    )
    psf = encoder.psf()[0]
    row, column = torch.arange(64.0)[:, None] - 32, torch.arange(64.0) - 32
    # From the middle of the mask, in pixels.
    holes = [((17.5 - 63.5) / 4, (29.5 - 63.5) / 4), ((99.5 - 63.5) / 4, (103.5 - 63.5) / 4)]
    for (down, across), half in zip(holes, (psf * (row + column < 0), psf * (row + column > 0)), strict=True):
        where = [float((axis * half).sum() / half.sum()) for axis in (row, column)]
        assert where == pytest.approx([down * (1 + 2.0 / depth), across * (1 + 2.0 / depth)], rel=0.02)


def test_coded_mask_close_to_the_sensor_casts_its_own_shadow() -> None:
    encoder = lensless_camera("coded_mask", distance_mm=0.02, scenes=DARK, shape=(32, 32)).encoder
    samples = encoder.oversampling
    shadow = (encoder.amplitude**2).reshape(16, samples, 16, samples).mean(dim=(1, 3)) / 256
    # An even window has its origin half a pixel behind the mask's middle: neighbours share the light.
    seen = encoder.psf()[0]
    padded = torch.nn.functional.pad(shadow, (8, 8, 8, 8))
    shifted = 0.25 * sum(padded.roll((a, b), (0, 1)) for a in (0, 1) for b in (0, 1))
    correlation = np.corrcoef(seen.flatten().numpy(), shifted.flatten().numpy())[0, 1]
    assert correlation > 0.98


def test_measurement_is_the_convolution_with_the_psf() -> None:
    scene = torch.rand(2, 3, 24, 32, dtype=torch.float64, generator=seeded())
    system = lensless_camera("lenslets", depths_mm=(20.0, 40.0, math.inf), photons=700.0, shape=(24, 32), scenes=scene)
    psf = system.encoder.psf().numpy()
    mean = system.encoder(scene)
    assert mean.shape == (2, 1, 24, 32)
    for image, planes in zip(mean[:, 0].numpy(), scene.numpy(), strict=True):
        full = sum(fftconvolve(plane, its) for plane, its in zip(planes, psf, strict=True))
        top, left = psf.shape[-2] // 2, psf.shape[-1] // 2
        np.testing.assert_allclose(image, 700.0 * full[top : top + 24, left : left + 32], rtol=1e-9, atol=1e-7)


def test_a_point_through_lenslets_is_one_spot_for_each() -> None:
    places = torch.tensor([[-150.0, -120.0], [140.0, -60.0], [10.0, 170.0]], dtype=torch.float64)
    size = (192, 192)
    encoder = LenslessCamera(
        height_um=lenslet_relief(size, 26 / 6, places, focal_length_mm=8.0),
        amplitude=torch.ones(size),
        distance_mm=8.0,
        pixel_um=26.0,
        oversampling=6,
    )
    psf = encoder.psf()[0]
    peaks = psf * (psf == torch.nn.functional.max_pool2d(psf[None], 5, 1, 2)[0])
    found = sorted(divmod(int(index), 64) for index in peaks.flatten().topk(3).indices)
    expected = sorted((round(32 + float(down) / 26), round(32 + float(across) / 26)) for down, across in places)
    for one, other in zip(found, expected, strict=True):
        assert max(abs(one[0] - other[0]), abs(one[1] - other[1])) <= 1


def test_diffuser_bends_light_as_stated_and_focuses_at_its_distance() -> None:
    relief = diffuser_relief((600, 600), 5.0, bump_um=60.0, focal_length_mm=8.0, generator=seeded())
    slope = 0.5 * torch.stack([(relief.roll(-1, dim) - relief.roll(1, dim))[1:-1, 1:-1] / 10.0 for dim in (0, 1)])
    assert float(slope.square().mean().sqrt()) == pytest.approx(math.sqrt(2 / 3) * 60.0 / 8000.0, rel=0.1)

    def sharpness(distance_mm: float) -> float:
        psf = LenslessCamera(
            height_um=relief[:192, :192],
            amplitude=torch.ones(192, 192),
            distance_mm=distance_mm,
            pixel_um=20.0,
            oversampling=4,
        ).psf()
        return float(psf.square().sum())

    assert sharpness(8.0) > 1.5 * sharpness(1.0)
    assert sharpness(8.0) > 1.5 * sharpness(40.0)


def test_arguments_are_named() -> None:
    maps = {"height_um": torch.zeros(8, 8), "amplitude": torch.ones(8, 8)}
    rest = {"distance_mm": 1.0, "pixel_um": 10.0, "oversampling": 2}
    with pytest.raises(ValueError, match=r"design: need one of .*'lens'.*got 'pinhole'"):
        lensless_camera("pinhole", scenes=DARK)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="oversampling: need an even number, got 3"):
        LenslessCamera(**maps, **(rest | {"oversampling": 3}))
    with pytest.raises(ValueError, match=r"depths_mm: need at least 0\.376 mm"):
        LenslessCamera(**maps, **rest, depths_mm=(0.1,))
    with pytest.raises(ValueError, match="depths_mm: need at least one, got none"):
        LenslessCamera(**maps, **rest, depths_mm=())
    with pytest.raises(ValueError, match="height_um, amplitude: need one shape"):
        LenslessCamera(height_um=torch.zeros(8, 6), amplitude=torch.ones(8, 8), **rest)
    with pytest.raises(ValueError, match=r"amplitude: need values of 0 to 1, got 1\.5"):
        LenslessCamera(height_um=torch.zeros(8, 8), amplitude=1.5 * torch.ones(8, 8), **rest)
    with pytest.raises(ValueError, match="distance_mm: need a positive number, got 0"):
        LenslessCamera(**maps, **(rest | {"distance_mm": 0.0}))
    with pytest.raises(ValueError, match="psf_pixels: need a window"):
        LenslessCamera(**maps, **rest, psf_pixels=(2, 2))


def test_default_scenes_fit() -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    system = lensless_camera("diffuser", depths_mm=(20.0, math.inf), shape=(16, 24), n_scenes=8)
    assert system.scenes.shape == (8, 2, 16, 24)
    assert system.encoder(system.scenes).shape == (8, 1, 16, 24)


@pytest.fixture
def measured_hand() -> tuple[Tensor, Tensor]:
    data = Path(__file__).parents[2].resolve().parent / "shared" / "data"
    if not (data / "lensless" / "diffusercam_tutorial.npz").is_file():
        pytest.skip(f"no real data at {data}")
    study = _study()
    return study.load(data, 16)


def test_a_real_hand_through_a_real_diffuser(measured_hand: tuple[Tensor, Tensor]) -> None:
    psf, image = measured_hand
    study = _study()
    scene, residuals = study.reconstruct(psf, image, 150)
    assert residuals[-1] < 0.02
    found = study.hand_is_there(scene)
    # A bright hand before a dark room, while the measured image is spread over the sensor.
    assert found["light_in_brightest_tenth"] > 0.9
    assert found["light_within_sensor"] > 0.9
    spread = image.flatten().sort(descending=True).values
    assert float(spread[: spread.numel() // 10].sum() / spread.sum()) < 0.35
    # Turned by half a turn the PSF explains nothing of the kind.
    _, wrong = study.reconstruct(psf.flip((-2, -1)), image, 150)
    assert wrong[-1] > 4 * residuals[-1]


def _study():
    path = Path(__file__).parents[2] / "benchmarks" / "studies" / "real_lensless.py"
    specification = importlib.util.spec_from_file_location("real_lensless", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("times", [4.0, 6.0, 8.0])
def test_light_that_leaves_the_window_is_that_of_the_cone_behind_the_focus(times: float) -> None:
    """Behind its focus a square lens lights a square (times - 1) masks wide, the window is two."""
    encoder = lensless_camera("lens", scenes=DARK, shape=(32, 32)).encoder
    expected = 1 - (2 / (times - 1)) ** 2
    assert encoder.light_outside_window(times * 8.0) == pytest.approx(expected, abs=0.03)
    assert encoder.light_outside_window() < 0.01


@pytest.mark.parametrize("design", DESIGNS)
def test_an_optimiser_cannot_send_the_light_out_of_the_window(design: LenslessDesign) -> None:
    encoder = lensless_camera(design, scenes=DARK, shape=(32, 32)).encoder
    lower, upper = encoder.parameter_domain["distance_mm"]
    distance = float(encoder.distance_mm)
    assert lower is not None
    assert upper is not None
    assert lower < distance < upper
    assert encoder.light_outside_window(upper) <= 0.1
    if upper < 60 * distance:
        assert encoder.light_outside_window(1.05 * upper) > 0.1
    assert encoder.parameter_domain["exposure_photons"] == (0.0, 1000.0)


def test_a_distance_from_which_light_leaves_is_refused() -> None:
    with pytest.raises(ValueError, match=r"distance_mm: need one from which at most 10 % of the light .* got 300 with"):
        lensless_camera("coded_mask", distance_mm=300.0, scenes=DARK, shape=(32, 32))
    with pytest.raises(ValueError, match="distance_mm: need a positive number, got 0"):
        lensless_camera(distance_mm=0.0, scenes=DARK, shape=(32, 32))


def test_waves_too_short_for_the_relief_are_out_of_reach() -> None:
    encoder = lensless_camera("lens", scenes=DARK, shape=(32, 32)).encoder
    shortest = encoder.parameter_domain["wavelength_nm"][0]
    assert shortest is not None
    # The lens turns light aside by half its width at its focal length: half a period per sample there.
    half_um, sample = 0.5 * 16 * 26.0, 26.0 / encoder.oversampling
    assert shortest == pytest.approx(2e3 * sample * (half_um - sample) / 8000.0, rel=0.01)
    assert shortest < 532.0


def test_one_depth_may_be_a_number() -> None:
    one, several = (
        lensless_camera("lens", depths_mm=depths, scenes=DARK, shape=(32, 32)).encoder for depths in (100.0, (100.0,))
    )
    assert one.depths_mm == (100.0,)
    torch.testing.assert_close(one.psf(), several.psf(), rtol=0, atol=0)
