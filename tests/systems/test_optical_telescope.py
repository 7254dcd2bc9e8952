"""The telescope against the diffraction pattern of an annulus, photometry, and the light its obstructions take."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import j1, jn_zeros
from torch import Tensor

from bitlens.systems.optical_telescope import Telescope, optical_telescope


def telescope(margin_pixels: int = 100, **changes) -> Telescope:
    numbers = {
        "diameter_m": 1.0,
        "f_number": 10.0,
        "wavelength_nm": 500.0,
        "bandwidth_nm": 100.0,
        "pixel_um": 0.5,
        "margin_pixels": margin_pixels,
    }
    return Telescope(**{**numbers, **changes})


def image_of_a_star(encoder: Telescope, pixels: int = 41) -> Tensor:
    size = encoder.scene_shape((pixels, pixels))
    scene = torch.zeros((1, 1, *size), dtype=torch.float64)
    scene[..., size[0] // 2, size[1] // 2] = 1.0
    with torch.no_grad():
        return encoder.A(scene)[0, 0]


@pytest.mark.parametrize("ratio", [0.0, 0.33, 0.5])
def test_a_star_has_the_pattern_of_an_annulus(ratio: float) -> None:
    image = image_of_a_star(telescope(obstruction_ratio=ratio))
    v = math.pi / (0.5 * 10) * 0.5 * torch.arange(-20.0, 21.0).abs().clamp(min=1e-9).double()

    def airy(x: Tensor) -> Tensor:
        return 2 * torch.from_numpy(j1(x.numpy())) / x

    expected = airy(v) - (ratio**2 * airy(ratio * v) if ratio else 0)
    torch.testing.assert_close(image[20] / image.max(), (expected / (1 - ratio**2)) ** 2, rtol=0, atol=4e-3)


def test_first_dark_ring_is_at_1_22_wavelengths_over_the_diameter() -> None:
    radius_um = float(jn_zeros(1, 1)[0]) / math.pi * 0.5 * 10
    assert radius_um == pytest.approx(1.22 * 0.5 * 10, rel=1e-3)
    row = image_of_a_star(telescope(pixel_um=radius_um / 12))[20]
    assert float(row[32] / row[20]) < 3e-4
    assert float(row[32]) < 0.5 * min(float(row[31]), float(row[33]))


def test_photons_of_a_star() -> None:
    # V = 0: 3.631e-9 erg / (cm^2 s A) at 545 nm, h c / wavelength = 3.645e-12 erg: 996 photons / (cm^2 s A).
    rate = 3.631e-9 / (6.62607e-27 * 2.99792e10 / 545e-7)
    electrons = 20.0 * 0.3 * rate * (math.pi / 4 * 200.0**2) * 880.0 * 10 ** (-0.4 * 15)
    encoder = telescope(
        8, diameter_m=2.0, bandwidth_nm=88.0, magnitude=15.0, exposure_s=20.0, throughput=0.3, f_number=31.0,
        pixel_um=15.0, obstruction_ratio=0.33,
    )  # fmt: skip
    assert float(encoder.star_electrons()) == pytest.approx(electrons, rel=1e-3)
    # A window as wide as the PSF around a star in its middle takes all of the light.
    image = image_of_a_star(encoder, pixels=20)
    assert float(image.sum()) == pytest.approx(electrons * (1 - 0.33**2), rel=5e-3)


def test_vanes_take_their_area_and_throw_spikes_across_themselves() -> None:
    plain = telescope(60, obstruction_ratio=0.3)
    held = telescope(60, obstruction_ratio=0.3, vane_width=0.05, vane_angle_rad=[0.0, math.pi])
    lost = float(plain.psf().sum() - held.psf().sum())
    assert lost == pytest.approx(2 * 0.05 * 0.7 / math.pi, rel=0.05)
    # Thin vanes along the columns widen the PSF along the rows.
    change = (held.psf() - plain.psf()).abs()
    assert float(change[10:50, 60].sum()) > 2 * float(change[60, 10:50].sum())


def test_sky_and_dark_alone() -> None:
    # One pixel of 2.5 um at f/10 and 1 m is 2.5e-7 rad wide; V = 15 per square arcsecond on 7854 cm^2 in 1000 A.
    pixel_arcsec = 2.5e-7 * 180 * 3600 / math.pi
    sky = 30.0 * 996.0 * 7854.0 * 1000.0 * 10 ** (-0.4 * 15.0) * pixel_arcsec**2
    encoder = telescope(40, pixel_um=2.5, sky_magnitude_per_arcsec2=15.0, dark_electrons_per_s=0.2, exposure_s=30.0)
    mean = encoder(torch.zeros(1, 1, 84, 86))
    torch.testing.assert_close(mean, torch.full((1, 1, 4, 6), sky + 6.0), rtol=2e-3, atol=0)
    assert sky > 1.0


def test_sky_is_the_etendue_of_a_pixel_and_dark_current_is_not() -> None:
    base = {"obstruction_ratio": 0.3, "sky_magnitude_per_arcsec2": 20.0, "dark_electrons_per_s": 0.2, "pixel_um": 2.5}
    start = telescope(**base)
    sky, dark = float(start.sky_electrons()), float(start.dark_electrons())
    for change, factor, of_dark in (
        # At one f-number a larger telescope sees less sky in a pixel, through as much more aperture.
        ({"diameter_m": 2.0}, 1.0, 1.0),
        ({"f_number": 12.0}, 100 / 144, 1.0),
        ({"pixel_um": 2.0}, 0.64, 1.0),
        ({"bandwidth_nm": 150.0}, 1.5, 1.0),
        ({"throughput": 0.5}, 0.5, 1.0),
        ({"exposure_s": 25.0}, 2.5, 2.5),
        ({"sky_magnitude_per_arcsec2": 22.5}, 0.1, 1.0),
        ({"dark_electrons_per_s": 0.6}, 1.0, 3.0),
        ({"obstruction_ratio": 0.5}, 0.75 / 0.91, 1.0),
    ):
        found = telescope(**{**base, **change})
        assert float(found.sky_electrons()) == pytest.approx(factor * sky, rel=2e-3), change
        assert float(found.dark_electrons()) == pytest.approx(of_dark * dark, rel=1e-9), change


def test_an_even_scene_as_bright_as_the_sky_doubles_it() -> None:
    # The sky by its closed form against the sky as a scene, through PSF, pixels and star photometry.
    encoder = telescope(
        8, f_number=31.0, pixel_um=15.0, magnitude=20.0, sky_magnitude_per_arcsec2=20.0, obstruction_ratio=0.33,
        vane_width=0.05, vane_angle_rad=[0.3, 2.0],
    )  # fmt: skip
    sample_arcsec = 15e-6 / (31.0 * encoder.oversampling) * 180 * 3600 / math.pi
    scene = torch.full((1, 1, *encoder.scene_shape((3, 4))), sample_arcsec**2, dtype=torch.float64)
    dark = encoder(torch.zeros_like(scene))
    torch.testing.assert_close(encoder(scene), 2 * dark, rtol=1e-9, atol=0)


def test_default_sky_is_what_the_handbook_expects() -> None:
    encoder = optical_telescope(n_scenes=1).encoder
    per_s = float(encoder.sky_electrons() + encoder.dark_electrons()) / 10.0
    assert per_s == pytest.approx(0.03, abs=0.01)


def test_electrons_of_the_default_are_those_of_the_handbooks_throughput() -> None:
    encoder = optical_telescope(n_scenes=1).encoder
    # Of the whole telescope, its obstruction of a third and four vanes of 1.1 % of the diameter among it: 0.28.
    assert float(encoder.throughput * encoder.passed()) == pytest.approx(0.28, rel=2e-3)
    assert float(encoder.passed()) == pytest.approx(1 - 0.33**2 - 4 * 0.022 * (1 - 0.33) / math.pi, rel=2e-3)
    # V = 24, 10 s, 2.4 m, 156 nm: 0.28 * 10 * 996 * 45239 cm^2 * 1560 A * 2.512e-10.
    size = encoder.scene_shape((20, 20))
    scene = torch.zeros(1, 1, *size)
    scene[..., size[0] // 2, size[1] // 2] = 1.0
    assert float(encoder.A(scene).sum()) == pytest.approx(49.4, rel=0.01)


def test_a_bright_star_fills_the_well() -> None:
    # V = 12: 3.1 million electrons, most of them in a few pixels.
    bright = optical_telescope("clear", n_scenes=1, magnitude=12.0)
    size = bright.encoder.scene_shape((20, 20))
    scene = torch.zeros(1, 1, *size)
    scene[..., size[0] // 2, size[1] // 2] = 1.0
    with torch.no_grad():
        mean = bright.encoder(scene)
        measured = bright.noise.sample(mean, torch.Generator().manual_seed(0))
    assert float(mean.max()) > 1e5
    assert float(measured.max()) == pytest.approx(63000, abs=6 * 3.1)
    unlimited = optical_telescope("clear", n_scenes=1, magnitude=12.0, full_well_electrons=None).noise
    assert float(unlimited.sample(mean, torch.Generator().manual_seed(0)).max()) > 1e5
    with pytest.raises(ValueError, match="full_well_electrons: need a positive number"):
        optical_telescope(n_scenes=1, full_well_electrons=0.0)


def test_a_binary_mask_is_binary_and_can_be_learned() -> None:
    grey = torch.rand((17, 17), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    arguments = {"pixel_um": 2.5, "margin_pixels": 8}
    binary = telescope(**arguments, pupil_transmission=grey, mask="binary", learn=("pupil_transmission",))
    cut = telescope(**arguments, pupil_transmission=(grey > 0.5).double())
    torch.testing.assert_close(binary.psf(), cut.psf(), rtol=1e-12, atol=0)
    binary.psf()[8, 8].backward()
    assert float(binary.pupil_transmission.grad.abs().max()) > 0


def test_a_shaped_pupil_is_dark_beside_the_star() -> None:
    # Along the columns: the Fourier transform of a Gaussian; a clear aperture has rings there.
    def beside(design: str) -> float:
        encoder = optical_telescope(design, n_scenes=2, margin_pixels=24, magnitude=5.0).encoder  # type: ignore[arg-type]
        image = image_of_a_star(encoder, pixels=25)
        return float(image[12, 17:22].max() / image.max())

    assert beside("shaped_pupil") < 1e-5 < 0.02 * beside("clear")


def test_sky_and_designs() -> None:
    system = optical_telescope(sky="companions", n_scenes=64)
    assert system.encoder(system.scenes[:3]).shape == (3, 1, 32, 32)
    flux = system.scenes.sum(dim=(1, 2, 3)) - 1
    assert 1e-3 * 0.99 < float(flux.min()) < float(flux.max()) < 0.1 * 1.01
    stars = optical_telescope("clear", n_scenes=64).scenes.sum(dim=(1, 2, 3))
    assert 6 < float(stars.min()) < float(stars.max()) < 180
    # 15 um at f/31 and 2.4 m is 0.04 arcsec.
    scale = 15e-6 / (float(system.encoder.f_number) * float(system.encoder.diameter_m)) * 180 / math.pi * 3600
    assert scale == pytest.approx(0.04, abs=0.002)
    with pytest.raises(ValueError, match="design: need one of"):
        optical_telescope("large")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="oversampling: need at least 2"):
        telescope(pixel_um=4.0, oversampling=1)
    with pytest.raises(ValueError, match=r"obstruction_ratio: need values of 0 to 0\.99"):
        telescope(obstruction_ratio=1.5)
