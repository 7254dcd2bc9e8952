"""One list of encoders, every contract over the list."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bitlens.encoders import Camera

EVERY_NUMBER = (
    *("wavelength_nm", "f_number", "pixel_um", "aperture_radius", "defocus_waves"),
    *("exposure_photons", "quantum_efficiency", "dark_electrons"),
)


def in_focus() -> Camera:
    return Camera(wavelength_nm=550, f_number=8, pixel_um=3.45, margin_pixels=2, learn=EVERY_NUMBER)


def defocused() -> Camera:
    return Camera(
        wavelength_nm=532,
        f_number=4,
        pixel_um=1.0,
        defocus_waves=0.6,
        margin_pixels=4,
        boundary="circular",
        learn=EVERY_NUMBER,
    )


def aberrated() -> Camera:
    generator = torch.Generator().manual_seed(1)
    return Camera(
        wavelength_nm=550,
        f_number=4,
        pixel_um=1.5,
        aperture_radius=0.8,
        defocus_waves=-0.3,
        zernike_waves={5: 0.05, 8: -0.1, 11: 0.07},
        phase_mask_waves=0.1 * torch.randn(9, 9, dtype=torch.float64, generator=generator),
        exposure_photons=350,
        quantum_efficiency=0.65,
        dark_electrons=1.5,
        margin_pixels=2,
        boundary="zero",
        learn=(*EVERY_NUMBER, "zernike_waves", "phase_mask_waves"),
    )


def color() -> Camera:
    return Camera(
        wavelength_nm=(610, 540, 460),
        f_number=5.6,
        pixel_um=2.4,
        defocus_waves=(0.1, 0.0, -0.2),
        zernike_waves={7: 0.06},
        quantum_efficiency=(0.4, 0.6, 0.5),
        dark_electrons=0.2,
        oversampling=3,
        margin_pixels=2,
        learn=(*EVERY_NUMBER, "zernike_waves"),
    )


ENCODERS = [in_focus, defocused, aberrated, color]

encoders = pytest.mark.parametrize("make", ENCODERS, ids=lambda make: make.__name__)
Make = Callable[[], Camera]


def random_scene(camera: Camera, pixels: int, *, batch: int = 2, seed: int = 0) -> Tensor:
    """Positive everywhere, so that the clamp of negative means stays out of the way."""
    channels = max(camera.wavelength_nm.numel(), camera.quantum_efficiency.numel())
    size = camera.scene_size(pixels)
    generator = torch.Generator().manual_seed(seed)
    return 0.1 + torch.rand(batch, channels, size, size, dtype=torch.float64, generator=generator)


def scene_within(camera: Camera, pixels: int, *, content_pixels: int = 2) -> Tensor:
    """A scene that is dark but for a block in the middle, far from every border."""
    scene = random_scene(camera, pixels)
    start = (scene.shape[-1] // camera.oversampling - content_pixels) // 2 * camera.oversampling
    stop = start + content_pixels * camera.oversampling
    inside = torch.zeros_like(scene)
    inside[..., start:stop, start:stop] = scene[..., start:stop, start:stop]
    return inside


def dark(camera: Camera) -> Tensor:
    return camera.dark_electrons[..., None, None]


@encoders
def test_flux(make: Make) -> None:
    camera = make()
    scene = scene_within(camera, 4 * camera.margin_pixels)
    with torch.no_grad():
        detected = (camera(scene) - dark(camera)).sum(dim=(-2, -1))
        arriving = scene.sum(dim=(-2, -1)) / camera.oversampling**2 * camera.aperture_radius**2
        expected = arriving * camera.exposure_photons * camera.quantum_efficiency
    torch.testing.assert_close(detected, expected, rtol=1e-11, atol=0)


@encoders
def test_shift_equivariance(make: Make) -> None:
    camera = make()
    scene = scene_within(camera, 4 * camera.margin_pixels + 6)
    down, across = 2, -1
    shifted = torch.roll(scene, (down * camera.oversampling, across * camera.oversampling), dims=(-2, -1))
    with torch.no_grad():
        expected = torch.roll(camera(scene), (down, across), dims=(-2, -1))
        torch.testing.assert_close(camera(shifted), expected, rtol=1e-10, atol=1e-9)


@encoders
def test_linear_in_the_scene_above_the_dark_signal(make: Make) -> None:
    camera = make()
    one, two = random_scene(camera, 5, seed=1), random_scene(camera, 5, seed=2)
    with torch.no_grad():
        both = camera(0.3 * one + 1.7 * two) - dark(camera)
        apart = 0.3 * (camera(one) - dark(camera)) + 1.7 * (camera(two) - dark(camera))
    torch.testing.assert_close(both, apart, rtol=1e-11, atol=0)


@encoders
def test_adjoint_is_the_vector_jacobian_product(make: Make) -> None:
    # <A x, y> = <x, A' y> for an x other than the scene at which the product is taken.
    camera = make()
    at, x = random_scene(camera, 5, seed=3).requires_grad_(), random_scene(camera, 5, seed=4)
    mean = camera(at)
    y = torch.randn(mean.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    (adjoint,) = torch.autograd.grad(mean, at, y)
    with torch.no_grad():
        forward = ((camera(x) - dark(camera)) * y).sum()
        scale = float((camera(x) * y).abs().sum())
    assert abs(float(forward) - float((x * adjoint).sum())) < 1e-13 * scale


@encoders
def test_gradient_in_every_parameter(make: Make) -> None:
    camera = make()
    scene = random_scene(camera, 2, batch=1)
    base = {name: value.detach().clone() for name, value in camera.named_parameters()}
    assert set(base) >= set(EVERY_NUMBER)
    # Relative steps: a finite difference of 1e-6 nm would drown in rounding.
    scales = {name: value.abs().max().clamp(min=1.0) for name, value in base.items()}

    def mean(*steps: Tensor) -> Tensor:
        moved = {name: value + scales[name] * step for (name, value), step in zip(base.items(), steps, strict=True)}
        out: Tensor = torch.func.functional_call(camera, moved, (scene,))
        return out / camera.exposure_photons.detach()

    steps = [torch.zeros_like(value).requires_grad_() for value in base.values()]
    assert torch.autograd.gradcheck(mean, steps, atol=1e-6, rtol=1e-5)


@encoders
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_never_below_the_dark_signal(make: Make, dtype: torch.dtype) -> None:
    camera = make()
    scene = torch.zeros_like(random_scene(camera, 24), dtype=dtype)
    scene[..., ::17, ::13] = 1e4
    with torch.no_grad():
        mean = camera(scene)
    assert mean.dtype == dtype
    assert bool((mean >= dark(camera).to(dtype)).all())
    assert bool((camera(torch.zeros_like(scene)) == dark(camera).to(dtype)).all())


@encoders
def test_each_scene_of_a_batch_is_encoded_alone(make: Make) -> None:
    camera = make()
    scene = random_scene(camera, 4, batch=3)
    with torch.no_grad():
        together = camera(scene)
        assert camera(scene[:0]).shape == (0, *together.shape[1:])
        for index in range(3):
            torch.testing.assert_close(camera(scene[index : index + 1])[0], together[index], rtol=1e-12, atol=0)


@encoders
def test_forward_leaves_the_encoder_as_it_is(make: Make) -> None:
    camera = make()
    before = {name: value.clone() for name, value in camera.state_dict().items()}
    camera(random_scene(camera, 3)).sum().backward()
    after = camera.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name])
