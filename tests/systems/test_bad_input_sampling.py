"""What systems that sample transforms refuse, and what they take as it is: scenes, shapes and measurements."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from bitlens import systems
from bitlens.systems import ImagingSystem

Make = Callable[..., ImagingSystem]

# Name, what makes it cheap, channels of its scenes, whether their values are light.
SYSTEMS: tuple[tuple[Make, dict[str, object], int, bool], ...] = (
    (systems.coded_aperture_spectral_imager, {"n_bands": 3, "dispersion_pixels": 2.0}, 3, True),
    (systems.single_pixel_camera, {"design": "raster"}, 1, True),
    (systems.x_ray_ct, {"views": 3}, 1, True),
    (systems.x_ray_ct, {"design": "fan", "views": 3}, 1, True),
    (systems.mri, {"coils": 2}, 1, False),
    (systems.mri, {"design": "spiral", "coils": 1, "complex_scene": True}, 2, False),
    (systems.radio_interferometer, {"n_stations": 3}, 1, True),
)
all_systems = pytest.mark.parametrize(
    ("make", "arguments", "channels", "light"), SYSTEMS, ids=lambda value: getattr(value, "__name__", None)
)


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@all_systems
def test_arrays_are_tensors(make: Make, arguments: dict[str, object], channels: int, light: bool) -> None:
    """A float64 array that is not writable, and whole numbers: as the tensors that they become."""
    array = rand(2, channels, 8, 6).double().numpy()
    array.flags.writeable = False
    encoder, _, scenes = make(scenes=array, **arguments)
    assert isinstance(scenes, torch.Tensor)
    assert scenes.dtype == torch.float64
    torch.testing.assert_close(encoder(array), encoder(scenes), rtol=0, atol=0)
    codes = make(scenes=np.full((2, channels, 8, 6), 3, dtype=np.int16), **arguments).scenes
    assert codes.dtype == torch.float32
    assert set(codes.flatten().tolist()) == {3.0}


@all_systems
def test_scenes_fit_the_system(make: Make, arguments: dict[str, object], channels: int, light: bool) -> None:
    with pytest.raises(ValueError, match=rf"^scenes: need shape \(batch, {channels}, row, column\)"):
        make(scenes=rand(2, channels + 1, 8, 6), **arguments)
    with pytest.raises(ValueError, match=rf"^scenes: need shape \(batch, {channels}, 8, 8\)"):
        make(scenes=rand(2, channels, 8, 6), shape=(8, 8), **arguments)
    with pytest.raises(ValueError, match=r"^scenes: need finite values, got NaN or infinity"):
        make(scenes=rand(2, channels, 8, 6).log() / 0.0, **arguments)
    with pytest.raises(TypeError, match=r"^scenes: need float32 or float64 values, got complex64"):
        make(scenes=torch.complex(rand(2, channels, 8, 6), rand(2, channels, 8, 6)), **arguments)
    if light:
        with pytest.raises(ValueError, match=r"^scenes: need values of at least 0, got -"):
            make(scenes=rand(2, channels, 8, 6) - 0.5, **arguments)
    else:
        make(scenes=rand(2, channels, 8, 6) - 0.5, **arguments)


@all_systems
def test_an_encoder_names_what_it_cannot_take(
    make: Make, arguments: dict[str, object], channels: int, light: bool
) -> None:
    encoder, _, scenes = make(scenes=rand(2, channels, 8, 6), **arguments)
    mean = encoder(scenes)
    back = encoder.A_adjoint if hasattr(encoder, "A_adjoint") else encoder.attenuation
    for dtype in (torch.float16, torch.int64):
        with pytest.raises(TypeError, match=rf"^scene: need float32 or float64 values, got {str(dtype)[6:]}"):
            encoder(scenes.to(dtype))
        with pytest.raises(TypeError, match=rf"^measured: need float32 or float64 values, got {str(dtype)[6:]}"):
            back(mean.to(dtype))
    with pytest.raises(ValueError, match=r"^scene: need "):
        encoder(scenes[0])
    with pytest.raises(ValueError, match=r"^scene: need "):
        encoder(scenes[..., :5])


@pytest.mark.parametrize(
    ("make", "argument", "value"),
    [
        (systems.coded_aperture_spectral_imager, "n_bands", 0),
        (systems.single_pixel_camera, "n_patterns", 2.5),
        (systems.x_ray_ct, "views", 0),
        (systems.x_ray_ct, "views", 4.5),
        (systems.x_ray_ct, "pixel_mm", 0.0),
        (systems.mri, "coils", 0),
        (systems.mri, "calibration_share", -0.1),
        (systems.mri, "snr", float("nan")),
        (systems.radio_interferometer, "n_stations", 2),
        (systems.radio_interferometer, "pixel_rad", -1.0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_numbers_are_named(make: Make, argument: str, value: float) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{argument}: need "):
        make(shape=(8, 8), n_scenes=2, **{argument: value})
