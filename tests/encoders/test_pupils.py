"""Pupils and their PSFs against Bessel functions, integrals over the pupil, and propagation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import j0, j1, jn_zeros
from torch import Tensor

from bitlens.encoders import optics
from bitlens.encoders.propagation import angular_spectrum
from bitlens.encoders.pupils import (
    aplanatic_amplitude,
    coherent_psf,
    depth_psf,
    gaussian_apodization,
    high_aperture_defocus_waves,
    microscope_psf,
    object_defocus_waves,
    polychromatic_psf,
    pupil_transmission,
    soft_annulus,
    spider,
    strehl_ratio,
)
from bitlens.encoders.zernike import zernike

WAVELENGTH_NM, F_NUMBER = 550.0, 8.0
AIRY_UM = WAVELENGTH_NM * 1e-3 * F_NUMBER


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def grid_of(size: int = 513, sample_um: float = AIRY_UM / 4, wavelength_nm: float = WAVELENGTH_NM) -> optics.PupilGrid:
    return optics.pupil_grid(
        size, sample_um=number(sample_um), wavelength_nm=number(wavelength_nm), f_number=number(F_NUMBER)
    )


def jinc(argument: np.ndarray) -> np.ndarray:
    """2 J1(v) / v."""
    argument = np.where(argument == 0, 1e-9, argument)
    return 2 * j1(argument) / argument


def middle(psf: Tensor, half: int) -> np.ndarray:
    centre = psf.shape[-1] // 2
    return psf[..., centre - half : centre + half + 1, centre - half : centre + half + 1].numpy()


def radii_um(half: int, sample_um: float) -> np.ndarray:
    offset = np.arange(-half, half + 1) * sample_um
    return np.hypot(offset[:, None], offset[None, :])


def test_coherent_psf_of_a_disc_is_the_airy_amplitude() -> None:
    sample_um = AIRY_UM / 4
    psf = coherent_psf(optics.soft_disc(grid_of(), number(1.0)))
    amplitude = np.pi / 4 * (sample_um / AIRY_UM) ** 2 * jinc(np.pi * radii_um(40, sample_um) / AIRY_UM)
    assert np.abs(middle(psf.imag, 40)).max() < 1e-15
    # 64 samples in the pupil's radius, with an edge one sample wide.
    assert np.abs(middle(psf.real, 40) - amplitude).max() < 2e-3 * amplitude.max()
    assert complex(psf.sum()) == pytest.approx(1.0, abs=1e-12)


def test_first_zero_lies_at_1_22_wavelength_f_number() -> None:
    sample_um = AIRY_UM / 20
    grid = grid_of(1201, sample_um)
    profile = coherent_psf(optics.soft_disc(grid, number(1.0))).real[600, 600:640].numpy()
    before = int(np.argmax(profile < 0)) - 1
    zero = before + profile[before] / (profile[before] - profile[before + 1])
    # 30 samples in the pupil's radius place the edge, and with it the zero, to 1 / 300.
    assert zero * sample_um == pytest.approx(jn_zeros(1, 1)[0] / np.pi * AIRY_UM, rel=1 / 300)
    assert jn_zeros(1, 1)[0] / np.pi == pytest.approx(1.22, abs=4e-4)


def test_coherent_and_incoherent_psf_belong_together() -> None:
    grid = grid_of(64)
    pupil = optics.pupil(optics.soft_disc(grid, number(1.0)), 0.2 * zernike(7, grid.column, grid.row) + grid.column)
    incoherent = optics.incoherent_psf(pupil, pupil_transmission(pupil, grid))
    coherent = coherent_psf(pupil)
    share = coherent.abs() ** 2 * (incoherent.sum() / (coherent.abs() ** 2).sum())
    torch.testing.assert_close(incoherent, share, rtol=1e-10, atol=1e-18)
    # Parseval: the energy of the amplitudes is that of the pupil.
    torch.testing.assert_close((coherent.abs() ** 2).sum(), (pupil.abs() ** 2).mean(), rtol=1e-12, atol=0)
    # Coherent imaging of an even field with unit amplitude.
    assert abs(complex(coherent.sum()) - complex(pupil[32, 32])) < 1e-14


@pytest.mark.parametrize("obscuration", [0.2, 0.35, 0.6])
def test_annulus(obscuration: float) -> None:
    sample_um = AIRY_UM / 4
    grid = grid_of()
    pupil = soft_annulus(grid, outer_radius=1.0, inner_radius=obscuration)
    argument = np.pi * radii_um(40, sample_um) / AIRY_UM
    closed = jinc(argument) - obscuration**2 * jinc(obscuration * argument)
    amplitude = np.pi / 4 * (sample_um / AIRY_UM) ** 2 * closed
    assert np.abs(middle(coherent_psf(pupil).real, 40) - amplitude).max() < 2e-3 * amplitude.max()
    # Half the light within the soft step of one sample is lost in the square of the amplitude.
    expected = 1 - obscuration**2
    assert float(pupil_transmission(pupil, grid)) == pytest.approx(expected, abs=0.3 * (1 + obscuration) * 2 / 64)
    assert float(pupil.sum() * grid.step**2) == pytest.approx(np.pi * expected, rel=2e-3)


def test_annulus_without_obscuration_is_the_disc() -> None:
    grid = grid_of(65)
    inner = number(0.0).requires_grad_()
    outer = number(0.9).requires_grad_()
    annulus = soft_annulus(grid, outer_radius=outer, inner_radius=inner)
    torch.testing.assert_close(annulus, optics.soft_disc(grid, outer), rtol=0, atol=0)
    gradients = torch.autograd.grad(annulus.sum(), (inner, outer))
    assert float(gradients[0]) == 0.0
    assert float(gradients[1]) > 0.0


@pytest.mark.parametrize("width", [0.004, 0.02, 0.1])
@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2, 3.0])
def test_vane_covers_width_times_length(width: float, angle: float) -> None:
    # The thinnest vane is an eighth of a sample wide.
    grid = grid_of(257, AIRY_UM / 4)
    disc = optics.soft_disc(grid, number(0.8))
    vane = spider(grid, angle_rad=torch.tensor([angle]), width=width)
    covered = float((disc * (1 - vane)).sum() * grid.step**2)
    assert covered == pytest.approx(0.8 * width, rel=0.02)
    assert float(vane.min()) >= 0.0
    assert float(vane.max()) == 1.0
    # It lies on the side of its angle.
    along = disc * (1 - vane) * (grid.column * math.cos(angle) + grid.row * math.sin(angle))
    assert float(along.sum() * grid.step**2) == pytest.approx(0.8**2 / 2 * width, rel=0.03)


def test_four_vanes_make_four_spikes() -> None:
    # A strip of width w across the pupil diffracts along its normal as the strip's own pattern (Babinet).
    grid = grid_of()
    angles = torch.tensor([0.0, 0.5, 1.0, 1.5], dtype=torch.float64) * math.pi
    disc = optics.soft_disc(grid, number(1.0))
    pattern = coherent_psf(disc * spider(grid, angle_rad=angles, width=0.04)).abs() ** 2
    spike, between = pattern[256, 256 + 60], pattern[256 + 42, 256 + 42]
    assert spike > 20 * between
    torch.testing.assert_close(pattern, pattern.rot90(), rtol=1e-8, atol=1e-16)


def test_gaussian_apodization_gives_a_gaussian() -> None:
    # Amplitude exp(-rho^2 / w^2): intensity exp(-2 r^2 / r0^2), r0 = 2 wavelength N / (pi w).
    sample_um, waist = AIRY_UM / 4, 0.3
    grid = grid_of()
    amplitude = optics.soft_disc(grid, number(1.0)) * gaussian_apodization(grid, waist=waist)
    intensity = middle(coherent_psf(amplitude).abs() ** 2, 24)
    expected = np.exp(-2 * (radii_um(24, sample_um) * np.pi * waist / (2 * AIRY_UM)) ** 2)
    assert np.abs(intensity / intensity.max() - expected).max() < 2e-4


def test_polychromatic_psf_is_the_weighted_mean() -> None:
    sample_um = AIRY_UM / 5
    wavelengths = torch.tensor([450.0, 550.0, 650.0], dtype=torch.float64)
    grid = optics.pupil_grid(257, sample_um=number(sample_um), wavelength_nm=wavelengths, f_number=number(F_NUMBER))
    pupil = optics.pupil(optics.soft_disc(grid, number(1.0)), torch.zeros(257, 257, dtype=torch.float64))
    weights = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
    psf = polychromatic_psf(pupil, weights=weights, transmission=torch.ones(3, dtype=torch.float64))
    density = np.zeros((41, 41))
    for wavelength, weight in zip(wavelengths.tolist(), weights.tolist(), strict=True):
        airy_um = wavelength * 1e-3 * F_NUMBER
        density += weight / 4 * np.pi / 4 / airy_um**2 * jinc(np.pi * radii_um(20, sample_um) / airy_um) ** 2
    # 26 Airy units to each side: 0.8 % of the light is beyond them, and as much lies in the soft edge.
    assert np.abs(middle(psf, 20) / sample_um**2 - density).max() < 0.02 * density.max()
    assert float(psf.sum()) == pytest.approx(1.0, abs=1e-12)


def test_the_pupil_scales_with_the_wavelength() -> None:
    one = grid_of(129, AIRY_UM / 6, WAVELENGTH_NM)
    twice = grid_of(129, AIRY_UM / 3, 2 * WAVELENGTH_NM)
    for grid in (one, twice):
        assert float(grid.step) == pytest.approx(12 / 129, rel=1e-12)
    finer = grid_of(129, AIRY_UM / 6, 2 * WAVELENGTH_NM)
    assert float(finer.step) == pytest.approx(2 * float(one.step), rel=1e-12)


@pytest.mark.parametrize("indices", [(4,), (6,), (7,), (11,), (4, 6, 7, 11)])
@pytest.mark.parametrize("rms_waves", [0.01, 0.03, 0.05])
def test_strehl_ratio_of_small_aberrations(indices: tuple[int, ...], rms_waves: float) -> None:
    grid = grid_of(257)
    share = rms_waves / math.sqrt(len(indices))
    path = sum((share * zernike(index, grid.column, grid.row) for index in indices), number(0.0))
    ratio = float(strehl_ratio(optics.pupil(optics.soft_disc(grid, number(1.0)), path)))
    variance = (2 * math.pi * rms_waves) ** 2
    # What the exponential drops is of the order of variance^2; the soft edge leaves 2 % of the variance.
    assert ratio == pytest.approx(math.exp(-variance), abs=0.3 * variance**2 + 0.02 * variance)


@pytest.mark.parametrize("waves", [0.25, 0.5, 1.0, 1.5])
def test_strehl_ratio_of_defocus_is_a_sinc(waves: float) -> None:
    grid = grid_of()
    path = waves * (grid.column**2 + grid.row**2)
    pupil = optics.pupil(optics.soft_disc(grid, number(1.0)), path)
    assert float(strehl_ratio(pupil)) == pytest.approx(float(np.sinc(waves)) ** 2, abs=2e-3)
    peak = coherent_psf(pupil).abs()[256, 256] ** 2
    sharp = coherent_psf(pupil.abs()).abs()[256, 256] ** 2
    assert float(strehl_ratio(pupil)) == pytest.approx(float(peak / sharp), rel=1e-10)


def test_object_defocus_is_that_of_the_shifted_image() -> None:
    focal_mm, f_number, wavelength_nm, focus_mm = 50.0, 4.0, 550.0, 1000.0
    image_mm = 1 / (1 / focal_mm - 1 / focus_mm)
    for object_mm in (1003.0, 995.0):
        # The sensor stands at image_mm; a point at object_mm has its image elsewhere.
        moved_mm = 1 / (1 / focal_mm - 1 / object_mm)
        working = image_mm / (focal_mm / f_number)
        expected = optics.defocus_waves(1e3 * (image_mm - moved_mm), wavelength_nm=wavelength_nm, f_number=working)
        waves = object_defocus_waves(
            object_mm,
            focus_distance_mm=focus_mm,
            aperture_diameter_mm=focal_mm / f_number,
            wavelength_nm=wavelength_nm,
        )
        assert float(waves) == pytest.approx(expected, rel=1e-3)
    # From the rim of the aperture against its centre, by Pythagoras.
    rim_mm = focal_mm / f_number / 2
    path_mm = (math.hypot(focus_mm, rim_mm) - focus_mm) - (math.hypot(2000.0, rim_mm) - 2000.0)
    waves = object_defocus_waves(2000.0, focus_distance_mm=focus_mm, aperture_diameter_mm=12.5, wavelength_nm=550.0)
    assert float(waves) == pytest.approx(path_mm * 1e6 / 550.0, rel=1e-4)
    beyond = object_defocus_waves(math.inf, focus_distance_mm=1e3, aperture_diameter_mm=12.5, wavelength_nm=550.0)
    assert float(beyond) == pytest.approx(12.5**2 / (8 * 550e-6 * 1e3), rel=1e-12)


CAMERA = {"focal_length_mm": 50.0, "f_number": 4.0, "focus_distance_mm": 1000.0, "wavelength_nm": 550.0}


def test_depth_psf_in_focus_is_the_airy_pattern_of_the_working_f_number() -> None:
    image_mm = 1 / (1 / 50.0 - 1 / 1000.0)
    airy_um = 0.55 * image_mm / 12.5
    sample_um = airy_um / 4
    psf = depth_psf(513, sample_um=sample_um, object_distance_mm=1000.0, **CAMERA)
    density = np.pi / 4 * (sample_um / airy_um) ** 2 * jinc(np.pi * radii_um(24, sample_um) / airy_um) ** 2
    assert np.abs(middle(psf, 24) - density).max() < 0.006 * density.max()


@pytest.mark.parametrize("object_mm", [1500.0, 800.0, 1050.0])
def test_depth_psf_out_of_focus(object_mm: float) -> None:
    """Against |2 integral of exp(2 pi i W rho^2) J0(pi r rho / (wavelength N)) rho d rho|^2, and geometry's disc."""
    image_mm = 1 / (1 / 50.0 - 1 / 1000.0)
    airy_um, sample_um, size = 0.55 * image_mm / 12.5, 1.0, 801
    psf = depth_psf(size, sample_um=sample_um, object_distance_mm=object_mm, **CAMERA).numpy()
    vergence = 1 / 1000.0 - 1 / object_mm
    node, weight = np.polynomial.legendre.leggauss(1000)
    rho, waves = (node + 1) / 2, 12.5**2 * vergence / (8 * 550e-6)
    r_um = np.arange(0, 200, 3) * sample_um
    kernel = np.exp(2j * np.pi * waves * rho**2) * j0(np.pi * r_um[:, None] * rho / airy_um)
    expected = np.pi / 4 * (sample_um / airy_um) ** 2 * np.abs((kernel * rho) @ weight) ** 2
    there = psf[400, 400 : 400 + 200 : 3]
    # 173 samples in the pupil's radius, which a soft edge ends.
    assert np.abs(there - expected).max() < 0.03 * expected.max()
    radius_um = 1e3 * 12.5 / 2 * image_mm * abs(vergence)
    distance = radii_um(size // 2, sample_um)
    if radius_um > 60:
        assert psf[distance < 0.5 * radius_um].sum() == pytest.approx(0.25, abs=0.02)
        assert psf[distance < 1.1 * radius_um].sum() > 0.97


def test_depths_and_wavelengths_broadcast_into_one_spectrum() -> None:
    wavelengths, weights = torch.tensor([500.0, 600.0]).double(), torch.tensor([1.0, 3.0]).double()
    depths = torch.tensor([900.0, 1000.0, 1200.0]).double()[:, None]
    settings = {**CAMERA, "wavelength_nm": wavelengths}
    psf = depth_psf(33, sample_um=1.0, object_distance_mm=depths, **settings)
    assert psf.shape == (3, 2, 33, 33)
    spectrum = (weights[:, None, None] * psf).sum(1) / 4
    for row, depth in enumerate(depths[:, 0].tolist()):
        image_mm = 1 / (1 / 50.0 - 1 / 1000.0)
        grid = optics.pupil_grid(33, sample_um=number(1.0), wavelength_nm=wavelengths, f_number=number(image_mm / 12.5))
        defocus = object_defocus_waves(
            depth, focus_distance_mm=1000.0, aperture_diameter_mm=12.5, wavelength_nm=wavelengths
        )
        path = defocus[:, None, None] * (grid.column**2 + grid.row**2)
        pupil = optics.pupil(optics.soft_disc(grid, torch.ones(2).double()), path)
        expected = polychromatic_psf(pupil, weights=weights, transmission=torch.ones(2).double())
        torch.testing.assert_close(spectrum[row], expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("aperture", "index"), [(0.3, 1.0), (0.9, 1.0), (1.4, 1.515)])
@pytest.mark.parametrize("depth_um", [0.2, 1.0, -1.0])
def test_intensity_on_the_axis_of_a_microscope(aperture: float, index: float, depth_um: float) -> None:
    """|integral of exp(i k n z cos theta) over the pupil|^2, the pupil even in sin theta."""
    wavelength_um = 0.52
    settings = {"sample_um": 0.08, "wavelength_nm": 520.0, "numerical_aperture": aperture, "immersion_index": index}
    edge = (aperture / index) ** 2
    wave = 2 * math.pi / wavelength_um * index * depth_um
    real, imaginary = (quad(lambda t, f=f: f(wave * math.sqrt(1 - t)) / edge, 0, edge)[0] for f in (math.cos, math.sin))
    sharp = microscope_psf(401, **settings)[200, 200]
    there = microscope_psf(401, depth_um=depth_um, **settings)[200, 200]
    assert float(there / sharp) == pytest.approx(real**2 + imaginary**2, abs=5e-3)


def test_apodization_of_a_high_aperture() -> None:
    """Amplitude sqrt(cos) or 1 / sqrt(cos) over the pupil, out of focus, again as an integral over t = sin^2 theta."""
    wavelength_um, aperture, index, depth_um = 0.52, 1.2, 1.33, 0.6
    edge, wave = (aperture / index) ** 2, 2 * math.pi / wavelength_um * index * depth_um
    settings = {"sample_um": 0.08, "wavelength_nm": 520.0, "numerical_aperture": aperture, "immersion_index": index}
    for apodization, power in (("focusing", 0.25), ("collecting", -0.25)):

        def amplitude(t: float, power: float = power) -> float:
            return (1 - t) ** power

        parts = (
            quad(lambda t: amplitude(t) * math.cos(wave * math.sqrt(1 - t)), 0, edge)[0],
            quad(lambda t: amplitude(t) * math.sin(wave * math.sqrt(1 - t)), 0, edge)[0],
        )
        expected = (parts[0] ** 2 + parts[1] ** 2) / quad(amplitude, 0, edge)[0] ** 2
        sharp = microscope_psf(401, apodization=apodization, **settings)[200, 200]
        there = microscope_psf(401, apodization=apodization, depth_um=depth_um, **settings)[200, 200]
        assert float(there / sharp) == pytest.approx(expected, abs=5e-3)


def test_depth_is_propagation_in_the_medium() -> None:
    wavelength_nm, aperture, index, sample_um, depth_um = 520.0, 1.1, 1.33, 0.1, 0.8
    settings = {
        "sample_um": sample_um,
        "wavelength_nm": wavelength_nm,
        "numerical_aperture": aperture,
        "immersion_index": index,
    }
    grid = optics.pupil_grid(
        256, sample_um=number(sample_um), wavelength_nm=number(wavelength_nm), f_number=number(0.5 / aperture)
    )
    focus = coherent_psf(optics.soft_disc(grid, number(1.0)) + 0j)
    there = angular_spectrum(
        focus, distance_mm=1e-3 * depth_um, wavelength_nm=wavelength_nm / index, sample_um=sample_um, pad=1
    )
    intensity = there.abs() ** 2 / (there.abs() ** 2).sum()
    psf = microscope_psf(256, depth_um=depth_um, **settings)
    torch.testing.assert_close(psf, intensity, rtol=0, atol=1e-9 * float(psf.max()))


def test_high_aperture_defocus_is_paraxial_for_small_apertures() -> None:
    grid = optics.pupil_grid(33, sample_um=number(2.0), wavelength_nm=number(500.0), f_number=number(10.0))
    path = high_aperture_defocus_waves(
        grid, depth_um=number(30.0), wavelength_nm=number(500.0), numerical_aperture=number(0.05), immersion_index=1.0
    )
    peak = optics.defocus_waves(30.0, wavelength_nm=500.0, f_number=10.0)
    paraxial = peak * (grid.column**2 + grid.row**2)
    # The next term of the series is a quarter of sin^2 theta, 6e-4 at the edge.
    assert float((path - paraxial)[paraxial <= peak].abs().max()) < 7e-4 * peak


def test_leading_axes_are_depths_and_wavelengths() -> None:
    depths = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)[:, None]
    wavelengths = torch.tensor([480.0, 600.0], dtype=torch.float64)
    settings = {"sample_um": 0.1, "numerical_aperture": 0.8}
    together = microscope_psf(31, depth_um=depths, wavelength_nm=wavelengths, **settings)
    assert together.shape == (3, 2, 31, 31)
    for row, depth in enumerate(depths[:, 0].tolist()):
        for column, wavelength in enumerate(wavelengths.tolist()):
            alone = microscope_psf(31, depth_um=depth, wavelength_nm=wavelength, **settings)
            torch.testing.assert_close(together[row, column], alone, rtol=0, atol=1e-15)


def test_gradients() -> None:
    def of_microscope(depth: Tensor, wavelength: Tensor, aperture: Tensor, index: Tensor, sample: Tensor) -> Tensor:
        return microscope_psf(
            15,
            sample_um=0.1 * sample,
            wavelength_nm=520 * wavelength,
            numerical_aperture=1.2 * aperture,
            immersion_index=1.33 * index,
            depth_um=depth,
            apodization="focusing",
        )

    ones = [number(value).requires_grad_() for value in (0.4, 1.0, 1.0, 1.0, 1.0)]
    assert torch.autograd.gradcheck(of_microscope, ones, atol=1e-6, rtol=1e-4)

    grid = grid_of(16, AIRY_UM / 3)
    angles = torch.tensor([0.3, 1.9], dtype=torch.float64, requires_grad=True)

    def of_aperture(outer: Tensor, inner: Tensor, width: Tensor, waist: Tensor, angles: Tensor) -> Tensor:
        annulus = soft_annulus(grid, outer_radius=outer, inner_radius=inner)
        return annulus * spider(grid, angle_rad=angles, width=width) * gaussian_apodization(grid, waist=waist)

    numbers = [number(value).requires_grad_() for value in (0.93, 0.47, 0.31, 1.2)]
    assert torch.autograd.gradcheck(of_aperture, (*numbers, angles), atol=1e-6, rtol=1e-4)

    path = (0.1 * zernike(7, grid.column, grid.row)).requires_grad_()
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True)

    def of_spectrum(path: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pupil = optics.pupil(optics.soft_disc(grid, number(1.0)), torch.stack([path, 0.8 * path]))
        transmission = pupil_transmission(pupil, grid)
        return polychromatic_psf(pupil, weights=weights, transmission=transmission), strehl_ratio(pupil), transmission

    assert torch.autograd.gradcheck(of_spectrum, (path, weights), fast_mode=True)
    assert torch.autograd.gradcheck(lambda path: coherent_psf(optics.pupil(torch.ones_like(path), path)), (path,))

    def of_object(distance: Tensor, focus: Tensor, diameter: Tensor, wavelength: Tensor) -> Tensor:
        return object_defocus_waves(
            distance, focus_distance_mm=focus, aperture_diameter_mm=diameter, wavelength_nm=wavelength
        )

    def of_depth(*relative: Tensor) -> Tensor:
        names = ("sample_um", "wavelength_nm", "focal_length_mm", "f_number", "focus_distance_mm", "object_distance_mm")
        values = (1.0, 550.0, 50.0, 4.0, 1000.0, 1100.0)
        return depth_psf(15, **{name: value * one for name, value, one in zip(names, values, relative, strict=True)})

    assert torch.autograd.gradcheck(of_depth, [number(1.0).requires_grad_() for _ in range(6)], atol=1e-5, rtol=1e-4)
    numbers = [number(value).requires_grad_() for value in (900.0, 1000.0, 12.5, 550.0)]
    assert torch.autograd.gradcheck(of_object, numbers)


def test_gradients_stay_finite_where_the_aperture_reaches_the_index() -> None:
    aperture = number(1.32).requires_grad_()
    grid = optics.pupil_grid(32, sample_um=number(0.09), wavelength_nm=number(520.0), f_number=0.5 / aperture)
    factor = aplanatic_amplitude(grid, numerical_aperture=aperture, immersion_index=1.33)
    path = high_aperture_defocus_waves(
        grid, depth_um=number(1.0), wavelength_nm=number(520.0), numerical_aperture=aperture, immersion_index=1.33
    )
    for value in (factor, path):
        (gradient,) = torch.autograd.grad(value.sum(), aperture, retain_graph=True)
        assert bool(value.isfinite().all())
        assert bool(gradient.isfinite())


def test_numbers_follow_a_tensor_to_its_device() -> None:
    depth = torch.zeros(2, dtype=torch.float64, device="meta")
    assert (
        object_defocus_waves(depth, focus_distance_mm=1e3, aperture_diameter_mm=12.5, wavelength_nm=550.0).device
        == depth.device
    )
    assert depth_psf(8, sample_um=1.0, object_distance_mm=depth, **CAMERA).device == depth.device
    settings = {"sample_um": 0.1, "wavelength_nm": 520.0, "numerical_aperture": 0.9, "apodization": "focusing"}
    assert microscope_psf(8, depth_um=depth, **settings).device == depth.device


def test_errors_name_the_argument() -> None:
    good = {"sample_um": 0.1, "wavelength_nm": 520.0, "numerical_aperture": 1.2, "immersion_index": 1.33}
    for wrong, message in (
        ({"numerical_aperture": 1.4}, "numerical_aperture: need more than 0 and less than the index"),
        ({"sample_um": 0.2}, "sample_um: need more than 0 and at most 0.1083"),
        ({"apodization": "sine"}, "apodization: need one of"),
    ):
        with pytest.raises(ValueError, match=message):
            microscope_psf(15, **{**good, **wrong})
