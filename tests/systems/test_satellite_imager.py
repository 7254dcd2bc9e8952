"""The imager in orbit: electrons of a radiance, delay stages, modulation transfer of optics, pixels and motion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import constants
from torch import Tensor

from bitlens.noise import PoissonNoise
from bitlens.systems.satellite_imager import SatelliteDesign, SatelliteImager, line_time_s, satellite_imager

pytestmark = pytest.mark.usefixtures("one_thread")


def sinc(x: float) -> float:
    return float(np.sinc(x))


def imager(**changes: object) -> SatelliteImager:
    values: dict[str, object] = {
        "center_nm": (655.0,),
        "width_nm": (350.0,),
        "quantum_efficiency": (0.5,),
        "f_number": 19.85,
        "pixel_um": 13.0,
        "focal_length_m": 12.9,
        "altitude_km": 694.0,
    }
    return SatelliteImager(**(values | changes))  # type: ignore[arg-type]


def flat(encoder: SatelliteImager, radiance: float = 80.0) -> Tensor:
    return torch.full((1, len(encoder.center_nm), *encoder.scene_size(5, 7)), radiance, dtype=torch.float64)


def modulation(encoder: SatelliteImager, cycles_per_pixel: float, *, along_track: bool) -> float:
    """Contrast of what comes out over that of a sinusoid that goes in."""
    rows, columns = encoder.scene_size(24, 24)
    samples, n_pixels = encoder.oversampling, 24
    axis = torch.arange(rows if along_track else columns, dtype=torch.float64) / samples
    wave = torch.cos(2 * math.pi * cycles_per_pixel * axis), torch.sin(2 * math.pi * cycles_per_pixel * axis)
    scenes = []
    for phase in wave:
        pattern = 1 + 0.5 * phase
        scenes.append((pattern[:, None] if along_track else pattern[None, :]).expand(rows, columns))
    mean = encoder(torch.stack(scenes)[:, None]) / encoder.electrons()
    contrast = (mean - 1) / 0.5
    # Sine and cosine together are a phasor, whose modulus does not depend on the place.
    modulus = (contrast[0, 0] ** 2 + contrast[1, 0] ** 2).sqrt()
    assert modulus.shape == (n_pixels, n_pixels)
    assert float(modulus.std()) < 1e-6
    return float(modulus.mean())


def test_electrons_of_a_radiance() -> None:
    """Energy in the solid angle of the lens, over h c / wavelength."""
    encoder = imager(obscuration=0.3, transmission=0.7, n_stages=13)
    watts = 80.0 * 0.350 * (13e-6) ** 2 * math.pi / 4 / 19.85**2 * (1 - 0.3**2) * 0.7
    photons = watts * encoder.line_time_s * 13 / (constants.h * constants.c / 655e-9)
    mean = encoder(flat(encoder))
    torch.testing.assert_close(mean, torch.full_like(mean, 0.5 * photons), rtol=1e-9, atol=0.0)


def test_line_time_is_that_of_the_orbit() -> None:
    """7.5 km/s in the orbit at 694 km, 6.77 km/s on the ground."""
    assert 1 / line_time_s(1.0, 694.0) == pytest.approx(6768.0, rel=2e-3)
    # A circle of the Earth in a period of 98.6 minutes.
    assert 2 * math.pi * 6.371e6 * line_time_s(1.0, 694.0) == pytest.approx(98.6 * 60, rel=2e-3)
    encoder = imager()
    assert encoder.ground_sample_m == pytest.approx(0.7, rel=2e-3)
    assert encoder.line_time_s == pytest.approx(line_time_s(encoder.ground_sample_m, 694.0))


@pytest.mark.parametrize("n", [4, 16])
def test_stages_raise_signal_n_fold_and_signal_to_noise_by_the_root(n: int) -> None:
    one, many = imager(), imager(n_stages=n)
    single, stacked = one(flat(one)), many(flat(many))
    torch.testing.assert_close(stacked, n * single, rtol=1e-9, atol=0.0)
    noise, generator = PoissonNoise(), torch.Generator().manual_seed(0)
    ratio = []
    for mean in (single, stacked):
        samples = noise.sample(mean.expand(2000, -1, -1, -1), generator)
        ratio.append(float(samples.mean() / samples.std()))
    # The standard deviation of 70,000 samples is known to 0.27 %, and there are two.
    assert ratio[1] / ratio[0] == pytest.approx(math.sqrt(n), rel=4 * 0.0038)


def test_pixel_transfer_is_a_sinc() -> None:
    """Across the track a wide-open telescope leaves the pixel alone: sinc(f)."""
    encoder = imager(f_number=4.0, oversampling=16, margin_pixels=8)
    for cycles in (0.125, 0.25, 0.5):
        optics = lens_transfer(cycles, 655e-3 * 4.0 / 13.0)
        assert modulation(encoder, cycles, along_track=False) == pytest.approx(sinc(cycles) * optics, abs=0.006)


def test_a_single_line_smears_by_its_own_height() -> None:
    """Along the track the motion during the line time is a second sinc(f)."""
    encoder = imager(f_number=4.0, oversampling=16)
    for cycles in (0.125, 0.25, 0.5):
        across = modulation(encoder, cycles, along_track=False)
        assert modulation(encoder, cycles, along_track=True) == pytest.approx(sinc(cycles) * across, abs=0.002)


def test_four_clock_phases_smear_by_a_quarter_of_a_row() -> None:
    encoder = imager(n_stages=8)
    assert encoder.oversampling == 4
    for cycles in (0.125, 0.25, 0.5):
        across = modulation(encoder, cycles, along_track=False)
        # The line between samples is interpolated, which is another two factors.
        expected = sinc(cycles / 4) ** 3 * across
        assert modulation(encoder, cycles, along_track=True) == pytest.approx(expected, abs=0.002)


def test_mismatch_smears_by_what_it_adds_up_to() -> None:
    stages, mismatch = 16, 1 / 16
    still = imager(oversampling=8, n_stages=stages)
    slipping = imager(oversampling=8, n_stages=stages, mismatch_pixels=mismatch)
    for cycles in (0.125, 0.25, 0.5):
        before, after = (modulation(encoder, cycles, along_track=True) for encoder in (still, slipping))
        assert after / before == pytest.approx(sinc(cycles * stages * mismatch), abs=0.01)


def lens_transfer(cycles: float, wavelength_f_number: float) -> float:
    """2 / pi (acos s - s sqrt(1 - s^2)), s the frequency over that of the cut-off; all per pixel."""
    s = cycles * wavelength_f_number
    return 2 / math.pi * (math.acos(s) - s * math.sqrt(1 - s * s)) if s < 1 else 0.0


def test_telescope_transfer_is_that_of_a_round_aperture() -> None:
    encoder = imager(oversampling=4, margin_pixels=32)
    for cycles in (0.125, 0.25, 0.5):
        pixel = math.sin(math.pi * cycles) / (4 * math.sin(math.pi * cycles / 4))
        expected = pixel * lens_transfer(cycles, 0.655 * 19.85 / 13.0)
        # 0.2 wavelength f_number / margin of the light lies beyond the window: 0.6 %.
        assert modulation(encoder, cycles, along_track=False) == pytest.approx(expected, abs=0.007)


def test_system_transfer_at_the_sampling_limit_is_the_published_one() -> None:
    """About 0.2, panchromatic, in front of the atmosphere: eoportal.org, Pleiades-HR."""
    encoder = satellite_imager("panchromatic_tdi", scenes=torch.ones(1, 1, 100, 100)).encoder
    for along_track in (False, True):
        assert 0.17 < modulation(encoder, 0.5, along_track=along_track) < 0.25
    line = satellite_imager("panchromatic_line", scenes=torch.ones(1, 1, 100, 100)).encoder
    assert modulation(line, 0.5, along_track=True) < 0.7 * modulation(line, 0.5, along_track=False)


@pytest.mark.parametrize("design", ["panchromatic_tdi", "panchromatic_line", "multispectral"])
def test_default_scenes_fit(design: SatelliteDesign) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    encoder, _, scenes = satellite_imager(design, shape=(4, 6), n_scenes=8)
    with torch.no_grad():
        mean = encoder(scenes)
    n_bands = 4 if design == "multispectral" else 1
    assert mean.shape == (8, n_bands, 4, 6)
    # Automatic exposure of bundled images to 80 W / (m^2 sr um).
    assert float(scenes.mean()) == pytest.approx(80.0, rel=0.5)


def test_bands_get_light_by_their_widths() -> None:
    narrow, wide = imager(width_nm=(50.0,)), imager(width_nm=(200.0,))
    torch.testing.assert_close(wide(flat(wide)), 4 * narrow(flat(narrow)), rtol=1e-9, atol=0.0)


def test_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"design: need one of .*'multispectral'.*got 'radar'"):
        satellite_imager("radar", scenes=torch.ones(1, 1, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mismatch_pixels, drift_pixels: need delay stages"):
        imager(mismatch_pixels=0.1)
    with pytest.raises(ValueError, match="obscuration: need at least 0 and below 1, got 1"):
        imager(obscuration=1.0)
    with pytest.raises(ValueError, match="oversampling: need at least 2 to resolve the PSF, got 1"):
        imager(oversampling=1)
    with pytest.raises(ValueError, match="center_nm, width_nm, quantum_efficiency: need as many of each"):
        imager(width_nm=(100.0, 100.0))
    with pytest.raises(ValueError, match="learn: need names among"):
        imager(learn=("gain",))


def test_an_optimiser_cannot_leave_what_the_samples_resolve() -> None:
    encoder = satellite_imager(shape=(4, 4), n_scenes=2).encoder
    lowest = encoder.parameter_domain["f_number"][0]
    assert lowest is not None
    with torch.no_grad():
        encoder.f_number.fill_(lowest)
        assert torch.isfinite(encoder.psf()).all()
    # 13 um in 4 samples: Nyquist for wavelength x f-number / 2 at 655 nm.
    assert lowest == pytest.approx(2 * 13.0 / (4 * 0.655))


def test_bands_end_where_silicon_does() -> None:
    encoder = satellite_imager("panchromatic_tdi", shape=(4, 4), n_scenes=2).encoder
    assert encoder.parameter_domain["width_nm"] == (0.0, 2 * (655.0 - 350.0))
    assert encoder.parameter_scale["width_nm"] == pytest.approx(105.0)
