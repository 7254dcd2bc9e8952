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


def hand_electrons(center_nm: float, width_um: float, pixel_m: float, stages: int, radiance: float) -> float:
    """Of 0.65 m at f/19.85 with 30 % of the diameter obscured, 70 % of glass, 50 % of silicon, 694 km above ground."""
    radius_m = 7.065e6
    speed_m_per_s = math.sqrt(3.986004418e14 / radius_m) * 6.371e6 / radius_m
    exposure_s = stages * (694e3 * pixel_m / (0.65 * 19.85)) / speed_m_per_s
    steradian = math.pi * (0.5 * 0.65) ** 2 * (1 - 0.3**2) / (0.65 * 19.85) ** 2
    watts = radiance * width_um * steradian * 0.7 * pixel_m**2
    return 0.5 * exposure_s * watts * center_nm * 1e-9 / (6.62607015e-34 * 299792458.0)


@pytest.mark.parametrize(
    ("design", "stages", "pixel_m", "bands"),
    [
        ("panchromatic_tdi", 13, 13e-6, [(655.0, 0.35)]),
        ("panchromatic_line", 1, 13e-6, [(655.0, 0.35)]),
        ("multispectral", 1, 52e-6, [(490.0, 0.12), (550.0, 0.12), (660.0, 0.12), (850.0, 0.20)]),
    ],
)
def test_electrons_of_the_ready_made_designs(
    design: SatelliteDesign, stages: int, pixel_m: float, bands: list[tuple[float, float]]
) -> None:
    side = 99 if design == "multispectral" else 96
    scenes = torch.full((1, len(bands), side, side), 80.0, dtype=torch.float64)
    mean = satellite_imager(design, scenes=scenes).encoder(scenes)
    expected = [hand_electrons(center, width, pixel_m, stages, 80.0) for center, width in bands]
    np.testing.assert_allclose(mean.mean(dim=(0, 2, 3)).numpy(), expected, rtol=1e-6)


def test_f_number_is_one_thing_given_or_learned() -> None:
    """It changes the diameter; ground sample, line time and so light are those of the one that was learned."""
    scenes = torch.full((1, 1, 100, 100), 80.0, dtype=torch.float64)
    wide, stopped = (satellite_imager(f_number=f, scenes=scenes).encoder for f in (19.85, 30.0))
    assert stopped.ground_sample_m == pytest.approx(wide.ground_sample_m)
    assert float(stopped.diameter_m) == pytest.approx(0.65 * 19.85 / 30.0)
    given = stopped(scenes)
    torch.testing.assert_close(given, wide(scenes) * (19.85 / 30.0) ** 2, rtol=1e-9, atol=0)
    wide.load_state_dict(stopped.state_dict())
    torch.testing.assert_close(wide(scenes), given, rtol=1e-12, atol=0)


def test_no_parameter_brings_more_light_than_was_given() -> None:
    learn = ("width_nm", "f_number", "quantum_efficiency")
    for changes in ({}, {"center_nm": (490.0, 850.0), "width_nm": (60.0, 120.0), "quantum_efficiency": (0.4, 0.4)}):
        encoder = imager(learn=learn, **changes)
        before = encoder.electrons().detach()
        with torch.no_grad():
            for name, value in encoder.named_parameters():
                lower, upper = encoder.parameter_domain[name]
                value.fill_(lower if name == "f_number" else upper)
            after = encoder.electrons() / encoder.center_nm[:, None, None]
        before = before / encoder.center_nm[:, None, None]
        assert float(after.sum()) == pytest.approx(float(before.sum()), rel=1e-9)


def test_bands_share_the_width_that_was_given() -> None:
    encoder = imager(
        center_nm=(490.0, 850.0), width_nm=(60.0, 120.0), quantum_efficiency=(0.5, 0.5), learn=("width_nm",)
    )
    for widths, passed in (
        ((60.0, 120.0), (60.0, 120.0)),
        ((150.0, 150.0), (90.0, 90.0)),
        ((20.0, 90.0), (20.0, 90.0)),
    ):
        with torch.no_grad():
            encoder.width_nm.copy_(torch.tensor(widths))
        torch.testing.assert_close(encoder.widths_nm().tolist(), list(passed))
    assert encoder.parameter_domain["width_nm"] == (0.0, pytest.approx(180.0))
    with torch.no_grad():
        encoder.width_nm.zero_()
    assert float(encoder.electrons().detach().abs().max()) == 0.0


def test_charge_ends_at_the_full_well() -> None:
    scenes = torch.full((1, 1, 96, 96), 80.0)
    generator = torch.Generator().manual_seed(0)
    encoder, noise, _ = satellite_imager(n_stages=1000, scenes=scenes)
    mean = encoder(scenes)
    assert float(mean.min()) > 9e5
    assert float(noise.sample(mean, generator).max()) < 2e5 + 6 * 30
    open_ended = satellite_imager(n_stages=1000, scenes=scenes, full_well_electrons=None).noise
    assert float(open_ended.sample(mean, generator).min()) > 9e5


def test_centers_are_not_learned() -> None:
    names = r"width_nm, f_number, quantum_efficiency, mismatch_pixels, drift_pixels, got 'center_nm'"
    with pytest.raises(ValueError, match=rf"learn: need names among {names}"):
        imager(learn=("center_nm",))


def test_numbers_stand_for_one_band_and_what_is_no_number_is_named() -> None:
    scenes = torch.ones(1, 1, 100, 100)
    encoder = satellite_imager(center_nm=700.0, width_nm=np.float64(100.0), scenes=scenes).encoder
    assert encoder.center_nm.tolist() == [700.0]
    assert encoder.width_nm.tolist() == [100.0]
    assert imager(center_nm=655.0, width_nm=350.0, quantum_efficiency=0.5).center_nm.tolist() == [655.0]
    for name in ("altitude_km", "radiance", "f_number", "center_nm", "width_nm", "mismatch_pixels", "drift_pixels"):
        with pytest.raises(TypeError, match=f"^{name}: need a number, got 'a'"):
            satellite_imager(**{name: "a"}, scenes=scenes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="need as many of each, got 2, 1 and 2"):
        satellite_imager(center_nm=(655.0, 500.0))
    with pytest.raises(TypeError, match="learn: need a sequence of names, got 'width_nm'"):
        satellite_imager(learn="width_nm", scenes=scenes)  # type: ignore[arg-type]


def test_an_optimiser_cannot_leave_what_the_samples_resolve() -> None:
    encoder = satellite_imager(shape=(4, 4), n_scenes=2).encoder
    lowest, highest = encoder.parameter_domain["f_number"]
    # 13 um in 4 samples: Nyquist for wavelength x f-number / 2 at 655 nm; and no larger aperture than was given.
    assert lowest == 19.85 >= 2 * 13.0 / (4 * 0.655)
    # A pupil of two samples in the radius: 65 samples of 3.25 um are four times wavelength x f-number.
    assert highest == pytest.approx(65 * 3.25 / (4 * 0.655))
    for f_number in (lowest, highest):
        with torch.no_grad():
            encoder.f_number.fill_(f_number)
            assert float(encoder.psf().sum()) == pytest.approx(1.0, abs=1e-3)


def test_bands_end_where_silicon_does() -> None:
    bands = imager(center_nm=(450.0, 650.0), width_nm=(100.0, 300.0), quantum_efficiency=(0.5, 0.5))
    assert bands.parameter_domain["width_nm"] == (0.0, 300.0)
    bands = imager(center_nm=(550.0, 650.0), width_nm=(300.0, 300.0), quantum_efficiency=(0.5, 0.5))
    assert bands.parameter_domain["width_nm"] == (0.0, 2 * (550.0 - 350.0))
    assert bands.parameter_scale["width_nm"] == pytest.approx(90.0)
    # A band alone has no more than its own.
    assert imager().parameter_domain["width_nm"] == (0.0, 350.0)
