"""The camera against a direct simulation, its borders, its numbers per channel and its errors."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from scipy.special import j1

from bitlens.encoders import Camera

LENS: dict[str, Any] = {"wavelength_nm": 550, "f_number": 8, "pixel_um": 3.45}


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def numpy_psf(camera: Camera, defocus_waves: float, coma_waves: float) -> np.ndarray:
    """PSF by the Fourier integral as a plain matrix product over the pupil's samples."""
    size, sample_um = camera.psf_size, 3.45 / camera.oversampling
    index = np.arange(size) - size // 2
    frequency = index / (size * sample_um)
    rho = frequency * 2 * 0.55 * 8
    x, y = rho[None, :], rho[:, None]
    width = rho[1] - rho[0]
    ramp = np.clip((1 - x**2 - y**2) / (2 * width) + 0.5, 0, 1)
    waves = defocus_waves * (x**2 + y**2) + coma_waves * math.sqrt(8) * (3 * (x**2 + y**2) - 2) * x
    pupil = ramp**2 * (3 - 2 * ramp) * np.exp(2j * np.pi * waves)
    kernel = np.exp(-2j * np.pi * np.outer(index, index) / size)
    intensity = np.abs(kernel @ pupil @ kernel.T) ** 2
    return np.asarray(intensity / intensity.sum())


def test_against_a_direct_simulation() -> None:
    camera = Camera(
        **LENS,
        defocus_waves=0.4,
        zernike_waves={8: 0.1},
        exposure_photons=120,
        quantum_efficiency=0.7,
        dark_electrons=2,
        margin_pixels=3,
    )
    size = camera.scene_size(4)
    scene = rand(1, 1, size, size)
    psf = numpy_psf(camera, 0.4, 0.1)
    np.testing.assert_allclose(camera.psf().numpy(), psf, rtol=0, atol=1e-14)
    blurred = convolve2d(scene[0, 0].numpy(), psf, mode="valid")
    pixels = blurred.reshape(4, 2, 4, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(camera(scene)[0, 0].numpy(), 120 * 0.7 * pixels + 2, rtol=1e-12)


@pytest.mark.parametrize("margin_pixels", [8, 12, 24])
@pytest.mark.parametrize("aperture_radius", [0.5, 0.55, 0.9, 1.0])
def test_accuracy_that_the_docstring_states(margin_pixels: int, aperture_radius: float) -> None:
    camera = Camera(**LENS, margin_pixels=margin_pixels, aperture_radius=aperture_radius)
    airy_um = 0.55 * 8 / aperture_radius
    offset = (np.arange(camera.psf_size) - camera.psf_size // 2) * 3.45 / camera.oversampling
    argument = np.pi * np.hypot(offset[:, None], offset[None, :]) / airy_um + 1e-9
    density = np.pi / 4 / airy_um**2 * (2 * j1(argument) / argument) ** 2
    expected = density * (3.45 / camera.oversampling) ** 2 * aperture_radius**2
    folded = 0.2 * airy_um / (margin_pixels * 3.45)
    assert np.abs(camera.psf().numpy() - expected).max() < 2 * folded * expected.max()


def test_a_crop_does_not_depend_on_what_lies_beyond_its_scene() -> None:
    crop = Camera(**LENS, defocus_waves=1.0, margin_pixels=4)
    zero = Camera(**LENS, defocus_waves=1.0, margin_pixels=4, boundary="zero")
    wide = rand(1, 1, 60, 60)
    margin = crop.margin_pixels
    patch = crop(wide)
    assert patch.shape[-1] == 30 - 2 * margin
    torch.testing.assert_close(patch, zero(wide)[..., margin:-margin, margin:-margin], rtol=1e-11, atol=0)
    part = slice(10, 10 + crop.scene_size(5))
    torch.testing.assert_close(crop(wide[..., part, part]), patch[..., 5:10, 5:10], rtol=1e-11, atol=0)
    # And none of the margin is wasted: every sample of the scene reaches the patch.
    scene = rand(1, 1, crop.scene_size(1), crop.scene_size(1)).requires_grad_()
    (reach,) = torch.autograd.grad(crop(scene).sum(), scene)
    assert bool((reach > 0).all())


def test_scene_size_and_patch_agree_for_every_boundary() -> None:
    for boundary in ("crop", "zero", "circular"):
        camera = Camera(**LENS, margin_pixels=2, boundary=boundary)
        assert camera(rand(1, 1, camera.scene_size(5), camera.scene_size(7))).shape == (1, 1, 5, 7)


def test_channels_are_cameras_of_their_own() -> None:
    wavelengths, defocus, efficiency = (620.0, 540.0, 460.0), (0.3, 0.0, -0.2), (0.4, 0.6, 0.5)
    together = Camera(
        wavelength_nm=wavelengths,
        f_number=4,
        pixel_um=1.2,
        defocus_waves=defocus,
        quantum_efficiency=efficiency,
        margin_pixels=3,
        oversampling=2,
    )
    scene = rand(2, 3, together.scene_size(3), together.scene_size(3))
    mean = together(scene)
    assert together.psf().shape == (3, 13, 13)
    for channel in range(3):
        alone = Camera(
            wavelength_nm=wavelengths[channel],
            f_number=4,
            pixel_um=1.2,
            defocus_waves=defocus[channel],
            quantum_efficiency=efficiency[channel],
            margin_pixels=3,
            oversampling=2,
        )
        torch.testing.assert_close(alone(scene[:, channel : channel + 1])[:, 0], mean[:, channel])


def test_default_oversampling_is_the_least_that_resolves_the_psf() -> None:
    # Nyquist pitch of an intensity with the cut-off 1 / (wavelength f_number) is half its inverse.
    for wavelength_nm, f_number, pixel_um in [(550, 8, 3.45), (550, 4, 1.5), (500, 2, 0.5), (450, 1.4, 5.0)]:
        camera = Camera(wavelength_nm=wavelength_nm, f_number=f_number, pixel_um=pixel_um, margin_pixels=1)
        nyquist_um = wavelength_nm * 1e-3 * f_number / 2
        least = math.ceil(round(pixel_um / nyquist_um, 9))
        assert camera.oversampling == least
    with pytest.raises(ValueError, match=r"oversampling: need at least 2 samples per pixel of 3\.45 um"):
        Camera(**LENS, oversampling=1)


def test_learn_makes_parameters_and_the_rest_buffers() -> None:
    camera = Camera(**LENS, zernike_waves={5: 0.1, 11: 0.2}, learn=("defocus_waves", "zernike_waves"))
    assert [name for name, _ in camera.named_parameters()] == ["defocus_waves", "zernike_waves"]
    assert "wavelength_nm" in dict(camera.named_buffers())
    assert camera.zernike_indices == (5, 11)
    fresh = Camera(**LENS, margin_pixels=2, learn=("phase_mask_waves",))
    assert fresh.phase_mask_waves is not None
    assert fresh.phase_mask_waves.shape == (fresh.psf_size, fresh.psf_size)


def test_a_copy_learns_on_its_own() -> None:
    camera = Camera(**LENS, margin_pixels=3, defocus_waves=0.5, learn=("defocus_waves",))
    twin = copy.deepcopy(camera)
    with torch.no_grad():
        twin.defocus_waves.zero_()
    assert camera.defocus_waves.item() == 0.5
    restored = Camera(**LENS, margin_pixels=3, learn=("defocus_waves",))
    restored.load_state_dict(camera.state_dict())
    torch.testing.assert_close(restored.psf(), camera.psf(), rtol=0, atol=0)


def test_a_gradient_step_sharpens_a_defocused_camera() -> None:
    camera = Camera(**LENS, margin_pixels=6, defocus_waves=0.4, learn=("defocus_waves",))
    centre = camera.psf_size // 2
    optimizer = torch.optim.LBFGS(camera.parameters(), max_iter=20, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = -camera.psf()[centre, centre].log()
        value.backward()
        return value

    optimizer.step(loss)
    assert abs(camera.defocus_waves.item()) < 1e-3


def test_numpy_scenes_are_accepted() -> None:
    camera = Camera(**LENS, margin_pixels=2)
    scene = rand(1, 1, 16, 16)
    torch.testing.assert_close(camera(scene.numpy()), camera(scene), rtol=0, atol=0)


def test_representation_shows_the_numbers() -> None:
    text = repr(Camera(**LENS, defocus_waves=1.0, learn=("defocus_waves",)))
    assert "f_number=8.0" in text
    assert "defocus_waves=1.0" in text
    assert "learn=('defocus_waves',)" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wavelength_nm": 0}, "wavelength_nm: need a positive number, got 0"),
        ({"pixel_um": float("nan")}, "pixel_um: need finite numbers, got nan"),
        ({"pixel_um": (1.0, 2.0)}, "pixel_um: need one number for all channels"),
        ({"f_number": ()}, "f_number: need a number or one per channel"),
        ({"aperture_radius": 1.5}, "aperture_radius: need at most 1"),
        ({"quantum_efficiency": 1.2}, "quantum_efficiency: need at most 1"),
        ({"dark_electrons": -1}, "dark_electrons: need at least 0"),
        ({"margin_pixels": 0}, "margin_pixels: need at least 1"),
        ({"boundary": "mirror"}, "boundary: need one of .*got 'mirror'"),
        ({"learn": ("focus",)}, "learn: need names among wavelength_nm.*got 'focus'"),
        ({"learn": ("zernike_waves",)}, "zernike_waves: need {Noll index: waves} to learn"),
        ({"zernike_waves": {0: 0.1}}, "index: need a Noll index of at least 1, got 0"),
        ({"phase_mask_waves": torch.zeros(3, 3)}, r"phase_mask_waves: need shape \(49, 49\), got \(3, 3\)"),
    ],
)
def test_wrong_numbers_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Camera(**{**LENS, **change})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((20, 20), "scene: need shape"),
        ((1, 1, 8, 20), "scene: need at least 10 rows and columns for one pixel"),
        ((1, 1, 21, 20), "scene: need rows and columns that are multiples of oversampling = 2"),
    ],
)
def test_wrong_scenes_are_named(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Camera(**LENS, margin_pixels=2)(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("boundary", ["crop", "zero", "circular"])
def test_adjoint_of_the_linear_part(boundary: Any, dtype: torch.dtype) -> None:
    camera = Camera(
        wavelength_nm=(620.0, 540.0, 460.0),
        f_number=5.6,
        pixel_um=2.4,
        defocus_waves=0.3,
        zernike_waves={8: 0.1},
        quantum_efficiency=(0.4, 0.6, 0.5),
        dark_electrons=5.0,
        margin_pixels=2,
        boundary=boundary,
    ).to(dtype)
    x = rand(2, 3, camera.scene_size(5), camera.scene_size(8)).to(dtype)
    image = camera.A(x)
    torch.testing.assert_close(camera(x), image + 5.0)
    z = torch.randn(image.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    back = camera.A_adjoint(z)
    assert back.shape == x.shape
    left, right = (image.double() * z.double()).sum(), (x.double() * back.double()).sum()
    bound = 1e-6 if dtype == torch.float32 else 1e-13
    assert abs(float(left - right)) <= bound * float(image.double().norm() * z.double().norm())
    # Linear in scenes of either sign, which forward takes as dark where they are negative.
    torch.testing.assert_close(camera.A(-x), -image, rtol=1e-4, atol=1e-4 * float(image.abs().max()))
    assert float(camera(-x).min().detach()) == 5.0


@pytest.mark.parametrize("learn", [("f_number",), ("wavelength_nm", "f_number"), ("f_number", "pixel_um")])
@pytest.mark.parametrize("side", [0, 1])
def test_an_optimiser_stays_where_the_samples_resolve_the_psf(learn: tuple[str, ...], side: int) -> None:
    """With all that is learned at its ends together, a camera of those numbers takes the same samples."""
    camera = Camera(**{**LENS, "f_number": 9.0}, margin_pixels=6, learn=learn)
    changed = {name: camera.parameter_domain[name][1 - side if name == "pixel_um" else side] for name in learn}
    again = Camera(**{**LENS, "f_number": 9.0, **changed}, margin_pixels=6, oversampling=camera.oversampling)
    assert again.psf_size == camera.psf_size
    light = float(again.wavelength_nm * again.f_number) * 1e-3 / float(again.pixel_um) * camera.oversampling
    if side == 0:
        assert light == pytest.approx(2.0)
    else:
        # Two samples of the pupil in the aperture's radius.
        assert float(again.pupil_grid().step) == pytest.approx(0.5)


def test_an_optimiser_gets_no_more_photons_than_are_given() -> None:
    camera = Camera(**LENS, exposure_photons=(100.0, 300.0), learn=("exposure_photons",))
    assert camera.parameter_domain["exposure_photons"] == (0.0, 300.0)
    assert camera.parameter_scale["exposure_photons"] == pytest.approx(90.0)


def test_what_is_learned_loads_into_the_plain_camera() -> None:
    learn = ("phase_mask_waves", "defocus_waves", "f_number")
    learned, plain = Camera(**LENS, margin_pixels=2, learn=learn), Camera(**LENS, margin_pixels=2)
    with torch.no_grad():
        learned.phase_mask_waves.copy_(0.1 * rand(9, 9))
    plain.load_state_dict(learned.state_dict(), strict=True)
    torch.testing.assert_close(plain.psf(), learned.psf().detach(), rtol=0, atol=0)
    assert not list(plain.parameters())


def test_scenes_of_other_kinds_are_named() -> None:
    camera = Camera(**{**LENS, "wavelength_nm": (600.0, 500.0)}, margin_pixels=2)
    with pytest.raises(TypeError, match="scene: need float32 or float64 values, got uint8"):
        camera(np.ones((1, 2, 16, 16), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"scene: need shape \(batch, 2, row, column\), got \(1, 3, 16, 16\)"):
        camera(torch.ones(1, 3, 16, 16))
    with pytest.raises(ValueError, match="wavelength_nm, f_number: need as many numbers of each, one per channel"):
        Camera(**{**LENS, "wavelength_nm": (600.0, 500.0), "f_number": (8.0, 8.0, 8.0)})
    with pytest.raises(TypeError, match="learn: need a sequence of names, got 'defocus_waves'"):
        Camera(**LENS, learn="defocus_waves")
