"""The thermal camera: Planck's law, electrons, noise-equivalent temperature, motion, real files."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import constants, integrate, special
from torch import Tensor

from bitlens import optimize_design
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems._thermal_radiation import (
    band_radiance,
    mercury_cadmium_cutoff_um,
    photodiode_efficiency,
    photon_radiance,
)
from bitlens.systems.infrared_camera import InfraredDesign, infrared_camera, kelvin_from_counts

pytestmark = pytest.mark.usefixtures("one_thread")


def watts(wavelength_um: np.ndarray, kelvin: float) -> np.ndarray:
    """Spectral radiance, W / (m^2 sr um), in the constants of tables: c1L = 1.191042972e8 W um^4 / (m^2 sr)."""
    return 1.191042972e8 / (wavelength_um**5 * np.expm1(14387.768775 / (wavelength_um * kelvin)))


def uniform(kelvin: float, pixels: int = 4, n: int = 1) -> Tensor:
    """Scenes for 4 pixels of margin of 3 samples."""
    side = 3 * (pixels + 8)
    return torch.full((n, 1, side, side), kelvin, dtype=torch.float64)


@pytest.mark.parametrize("kelvin", [77.0, 300.0, 1200.0])
def test_planck_law_has_its_known_integrals_and_peaks(kelvin: float) -> None:
    wavelength = torch.logspace(-1, 4.5, 200_001, dtype=torch.float64) * 300 / kelvin
    photons = photon_radiance(wavelength, kelvin)
    energy = photons * constants.h * constants.c / (1e-6 * wavelength)
    # Stefan and Boltzmann, and the photons' counterpart.
    exitance = math.pi * float(torch.trapezoid(energy, wavelength))
    assert exitance == pytest.approx(5.670374419e-8 * kelvin**4, rel=1e-5)
    of_photons = 4 * math.pi * special.zeta(3) * (constants.k * kelvin / constants.h) ** 3 / constants.c**2
    assert math.pi * float(torch.trapezoid(photons, wavelength)) == pytest.approx(of_photons, rel=1e-3)
    # Wien.
    assert float(wavelength[energy.argmax()]) * kelvin == pytest.approx(2897.771955, rel=2e-4)
    assert float(wavelength[photons.argmax()]) * kelvin == pytest.approx(3669.703, rel=2e-4)


def test_planck_law_at_10_um_and_300_kelvin() -> None:
    value = float(photon_radiance(torch.tensor(10.0, dtype=torch.float64), 300.0)) * constants.h * constants.c / 10e-6
    assert value == pytest.approx(9.924, rel=1e-4)  # W / (m^2 sr um)
    assert value == pytest.approx(float(watts(np.array(10.0), 300.0)), rel=1e-7)


@pytest.mark.parametrize(("short", "long"), [(3.7, 4.8), (7.7, 9.3), (8.0, 14.0)])
def test_band_against_quadrature(short: float, long: float) -> None:
    kelvin = torch.tensor([200.0, 300.0, 900.0], dtype=torch.float64)
    expected = [
        integrate.quad(lambda w, t=t: float(watts(w, t)) * w * 1e-6 / (constants.h * constants.c), short, long)[0]
        for t in kelvin.tolist()
    ]
    np.testing.assert_allclose(band_radiance(kelvin, short, long).numpy(), expected, rtol=1e-7)


def test_nothing_shines_at_zero_kelvin_and_gradients_stay_finite() -> None:
    cold = torch.zeros(3, requires_grad=True)
    light = band_radiance(cold, 3.7, 4.8)
    assert light.tolist() == [0.0, 0.0, 0.0]
    light.sum().backward()
    assert cold.grad is not None
    assert torch.isfinite(cold.grad).all()


@pytest.mark.parametrize(
    ("design", "short", "long", "efficiency", "exposure", "dark"),
    [("mid_wave", 3.7, 4.8, 0.8, 6e-3, 1e6), ("long_wave", 7.7, 9.3, 0.6, 5e-4, 5e8)],
)
def test_electrons_of_a_uniform_scene(
    design: InfraredDesign, short: float, long: float, efficiency: float, exposure: float, dark: float
) -> None:
    encoder, _, scenes = infrared_camera(design, response_std=0.0, lens_kelvin=290.0, scenes=uniform(310.0, 6))
    mean = encoder(scenes)

    def photons(kelvin: float) -> float:
        return integrate.quad(lambda w: float(watts(w, kelvin)) * w * 1e-6 / (constants.h * constants.c), short, long)[
            0
        ]

    per_s = (15e-6) ** 2 * math.pi / (4 * 2.5**2 + 1) * (0.9 * photons(310.0) + 0.1 * photons(290.0))
    expected = exposure * (efficiency * per_s + dark)
    torch.testing.assert_close(mean, torch.full_like(mean, expected), rtol=1e-6, atol=0.0)
    assert float(encoder.uniform_electrons(310.0)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("design", ["mid_wave", "long_wave"])
def test_wells_are_about_half_full_at_room_temperature(design: InfraredDesign) -> None:
    encoder, noise, _ = infrared_camera(design, scenes=uniform(300.0))
    assert isinstance(noise, PoissonGaussianNoise)
    assert noise.full_well_electrons is not None
    assert 0.4 < float(encoder.uniform_electrons(300.0) / noise.full_well_electrons) < 0.6


@pytest.mark.parametrize("design", ["mid_wave", "long_wave"])
def test_noise_equivalent_temperature_by_its_definition(design: InfraredDesign) -> None:
    """Noise of many frames over what a tenth of a kelvin changes."""
    encoder, noise, _ = infrared_camera(design, response_std=0.0, scenes=uniform(300.0, 8))
    with torch.no_grad():
        mean = encoder(uniform(300.0, 8, n=400))
        step = float((encoder(uniform(300.05)) - encoder(uniform(299.95))).mean()) / 0.1
        noise_std = float(noise.sample(mean, torch.Generator().manual_seed(0)).std())
    found = float(encoder.netd_kelvin(300.0, float(noise.read_std)))
    n = mean.numel()
    assert found == pytest.approx(noise_std / step, rel=5 / math.sqrt(2 * n) + 1e-5)
    assert 0.01 < found < 0.03


def test_four_times_the_exposure_halves_the_noise_equivalent_temperature() -> None:
    short, long = (
        float(infrared_camera(exposure_ms=t, scenes=uniform(300.0)).encoder.netd_kelvin(300.0, 0.0)) for t in (1.0, 4.0)
    )
    assert short == pytest.approx(2 * long, rel=1e-9)


def test_a_hot_scene_fills_the_well() -> None:
    encoder, noise, scenes = infrared_camera(scenes=uniform(360.0, 8))
    measured = noise.sample(encoder(scenes), torch.Generator().manual_seed(0))
    assert float(encoder(scenes).min()) > 1.5 * 7e6
    assert float((measured - 7e6).abs().max()) < 6 * 600.0


def test_fixed_pattern_is_that_of_the_pixels() -> None:
    scenes = torch.full((1, 1, 3 * 48, 3 * 68), 300.0, dtype=torch.float64)
    encoder, _, _ = infrared_camera(response_std=0.03, scenes=scenes)
    mean = encoder(scenes)[0, 0]
    assert mean.shape == (40, 60)
    assert float(mean.std() / mean.mean()) == pytest.approx(0.03, rel=0.1)
    light = mean - 6e-3 * 1e6
    torch.testing.assert_close(
        light / encoder.detector.photo_response, torch.full_like(light, light.mean()), rtol=2e-2, atol=0
    )
    again = infrared_camera(response_std=0.03, scenes=scenes).encoder
    assert torch.equal(again.detector.photo_response, encoder.detector.photo_response)


@pytest.mark.parametrize("pixels_per_s", [500.0, 1500.0])
def test_smear_is_as_long_as_the_image_moves(pixels_per_s: float) -> None:
    """The variance of a line of length L, and that of the interpolation between samples, along the columns only."""
    still, moving = (
        infrared_camera(pixels_per_s=speed, scenes=torch.full((1, 1, 120, 120), 300.0)).encoder.psf()
        for speed in (0.0, pixels_per_s)
    )

    def variance(psf: Tensor, dim: int) -> float:
        line = psf.sum(dim=dim)
        where = torch.arange(len(line), dtype=line.dtype) - len(line) // 2
        return float((where**2 * line).sum() / line.sum())

    length = 3 * pixels_per_s * 6e-3
    assert float(moving.sum()) == pytest.approx(1.0)
    assert variance(moving, 0) - variance(still, 0) == pytest.approx(length**2 / 12 + 1 / 6, rel=1e-6)
    assert variance(moving, 1) == pytest.approx(variance(still, 1), rel=1e-6)


def test_counts_to_kelvin_and_back() -> None:
    r1, r2, b, f, o = 17096.453125, 0.048084795475006104, 1428.0, 1.0, -370.0
    kelvin = torch.linspace(250.0, 400.0, 7, dtype=torch.float64)
    counts = r1 / (r2 * (torch.exp(b / kelvin) - f)) - o
    found = kelvin_from_counts(counts, planck_r1=r1, planck_r2=r2, planck_b=b, planck_f=f, planck_o=o)
    torch.testing.assert_close(found, kelvin)


def test_real_files_are_at_temperatures_of_the_day() -> None:
    data = Path(__file__).parents[2].resolve().parent / "shared" / "data"
    if not (data / "infrared" / "flir_raw16.npz").is_file():
        pytest.skip(f"no real data at {data}")
    path = Path(__file__).parents[2] / "benchmarks" / "studies" / "real_infrared.py"
    specification = importlib.util.spec_from_file_location("real_infrared", path)
    assert specification is not None
    assert specification.loader is not None
    study = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(study)
    scenes = study.load(data)
    assert len(scenes) == 7
    for name, kelvin in scenes.items():
        celsius = kelvin - 273.15
        # The room or the field, and in one file a mug of coffee.
        assert 23.0 < float(celsius.median()) < 27.0, name
        assert float(celsius.min()) > 18.0, name
        assert float(celsius.max()) < (61.0 if name == "flir_example" else 49.0), name


def test_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"design: need one of .*'mid_wave'.*got 'visible'"):
        infrared_camera("visible", scenes=uniform(300.0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"learn: need names among exposure_ms, .*, phase_mask_waves, got 'gain'"):
        infrared_camera(scenes=uniform(300.0), learn=("gain",))
    with pytest.raises(ValueError, match="scenes: need 24 rows and 24 columns for the edge and 3 more for each pixel"):
        infrared_camera(scenes=torch.full((1, 1, 24, 40), 300.0))
    with pytest.raises(ValueError, match="transmission: need a number above 0 and at most 1, got 0"):
        infrared_camera(scenes=uniform(300.0), transmission=0.0)


def test_default_scenes_fit() -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    encoder, _, scenes = infrared_camera(shape=(8, 12), n_scenes=16)
    assert encoder(scenes).shape == (16, 1, 8, 12)
    assert float(scenes.min()) >= 295.0
    assert float(scenes.mean()) == pytest.approx(300.0, abs=2.0)


def test_the_best_exposure_weighs_photons_against_smear_and_stays_within_the_psf() -> None:
    """Fast motion asks for a shorter exposure than a still scene."""
    coarse = torch.rand(96, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    scenes = 295.0 + 8.0 * torch.nn.functional.interpolate(coarse, size=(72, 72), mode="bilinear")
    found = {}
    for speed in (0.0, 4000.0):
        system = infrared_camera(
            exposure_ms=2.0,
            pixels_per_s=speed,
            margin_pixels=1,
            response_std=0.0,
            scenes=scenes,
            learn=("exposure_ms",),
        )
        # Without a full well, which is what ends a still scene's exposure.
        noise = PoissonGaussianNoise(read_std=600.0)
        result = optimize_design(system.encoder, noise, scenes, n_steps=12, generator=torch.Generator().manual_seed(1))
        found[speed] = float(result.encoder.exposure_ms.detach())
        assert 0.0 < found[speed] <= 4.0
    assert found[0.0] > 2.0
    assert found[4000.0] < found[0.0]


def test_whole_kelvin_are_temperatures() -> None:
    assert float(band_radiance(300, 3.7, 4.8)) == pytest.approx(float(band_radiance(300.0, 3.7, 4.8)), rel=1e-6)


@pytest.mark.parametrize(("short", "long"), [(3.7, 4.8), (3.7, 5.6), (2.5, 5.0)])
def test_band_under_a_response_against_quadrature(short: float, long: float) -> None:
    """The last bands pass the cut-off, and more than an octave: nothing beyond, and little error."""
    curve = photodiode_efficiency(5.4, peak=0.85)
    knots, values = (axis.numpy() for axis in curve)
    kelvin = torch.tensor([220.0, 300.0, 600.0], dtype=torch.float64)
    fine = np.linspace(short, min(long, 5.4), 400_001)
    response = np.interp(fine, knots, values)
    expected = [
        np.trapezoid(response * watts(fine, t) * fine * 1e-6 / (constants.h * constants.c), fine)
        for t in kelvin.tolist()
    ]
    np.testing.assert_allclose(band_radiance(kelvin, short, long, curve).numpy(), expected, rtol=2e-5)


def test_a_photodiode_sees_up_to_its_cut_off() -> None:
    wavelength, efficiency = photodiode_efficiency(5.4, peak=0.9)
    assert bool((wavelength.diff() > 0).all())
    assert float(wavelength[-1]) == pytest.approx(5.4)
    assert float(efficiency[-1]) == 0.0
    assert 0.85 < float(efficiency.max()) <= 0.9
    # Half of the peak within 2 % of the cut-off, as steep as such detectors are.
    half = float(wavelength[(efficiency > 0.45).nonzero().max()])
    assert 0.98 * 5.4 < half < 5.4
    with pytest.raises(ValueError, match="peak: need a number above 0 and at most 1, got 2"):
        photodiode_efficiency(5.4, peak=2.0)


def test_mercury_cadmium_telluride_has_its_known_cut_offs() -> None:
    # x = 0.225 and 0.3 at 77 K: about 10 and 5 um; CdTe at 300 K 1.5 eV.
    assert mercury_cadmium_cutoff_um(0.225, 77.0) == pytest.approx(10.0, rel=0.03)
    assert mercury_cadmium_cutoff_um(0.3, 77.0) == pytest.approx(5.1, rel=0.03)
    assert mercury_cadmium_cutoff_um(1.0, 300.0) == pytest.approx(1.2398 / 1.49, rel=0.01)
    with pytest.raises(ValueError, match="cadmium_share: need 0 to 1 with a gap above 0"):
        mercury_cadmium_cutoff_um(0.05, 77.0)


def test_a_flat_curve_is_a_number() -> None:
    curve = ([3.0, 5.0], np.array([0.7, 0.7]))
    one, other = (
        infrared_camera(quantum_efficiency=value, response_std=0.0, scenes=uniform(300.0)) for value in (0.7, curve)
    )
    torch.testing.assert_close(one.encoder(one.scenes), other.encoder(other.scenes), rtol=1e-9, atol=0.0)
    assert other.encoder.parameter_domain["long_um"][1] == 5.0


def test_a_curve_counts_photons_where_the_detector_sees_them() -> None:
    curve = photodiode_efficiency(4.4, peak=0.8)
    encoder, _, scenes = infrared_camera(
        quantum_efficiency=curve, response_std=0.0, transmission=1.0, dark_electrons_per_s=0.0, scenes=uniform(310.0)
    )
    knots, values = (axis.numpy() for axis in curve)
    fine = np.linspace(3.7, 4.4, 200_001)
    photons = np.trapezoid(
        np.interp(fine, knots, values) * watts(fine, 310.0) * fine * 1e-6 / (constants.h * constants.c), fine
    )
    expected = 6e-3 * (15e-6) ** 2 * math.pi / (4 * 2.5**2 + 1) * photons
    mean = encoder(scenes)
    torch.testing.assert_close(mean, torch.full_like(mean, expected), rtol=1e-4, atol=0.0)
    with pytest.raises(ValueError, match="short_um, long_um: need a band that meets"):
        infrared_camera(quantum_efficiency=([1.0, 2.0], [0.5, 0.5]), scenes=uniform(300.0))
    for wrong, message in (
        (([2.0, 1.0], [0.5, 0.5]), "response: need at least two ascending wavelengths"),
        (([1.0, 2.0], [0.5]), "response: need at least two ascending wavelengths"),
        (([3.0, 5.0], [0.0, 0.0]), "quantum_efficiency: need an efficiency above 0 somewhere"),
        (([3.0, 5.0], [0.5, 1.5]), "quantum_efficiency: need values of 0 to 1, got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            infrared_camera(quantum_efficiency=wrong, scenes=uniform(300.0))


def test_a_full_well_is_told_and_has_no_noise_equivalent_temperature() -> None:
    encoder = infrared_camera(exposure_ms=20.0, scenes=uniform(300.0)).encoder
    with pytest.raises(ValueError, match="temperature_kelvin: need a scene that leaves the well of 7e"):
        encoder.uniform_electrons(300.0)
    with pytest.raises(ValueError, match=r"temperature_kelvin: need .* at 20 ms, got 1\.\d+e\+07 electrons"):
        encoder.netd_kelvin(300.0, 600.0)
    assert float(encoder.netd_kelvin(270.0, 600.0)) > 0.0


def test_ends_of_the_band_do_not_cross_and_end_where_the_detector_does() -> None:
    encoder = infrared_camera("long_wave", scenes=uniform(300.0), learn=("short_um", "long_um")).encoder
    domain = encoder.parameter_domain
    assert domain["short_um"] == (1.0, 8.5)
    assert domain["long_um"] == (8.5, 10.0)


def test_an_optimiser_keeps_the_band_a_band() -> None:
    """Ends that start crossed, and steps as long as the band: they are put in order and stay there."""
    coarse = torch.rand(64, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    scenes = 295.0 + 8.0 * torch.nn.functional.interpolate(coarse, size=(36, 36), mode="bilinear")
    encoder, noise, scenes = infrared_camera(
        margin_pixels=1, response_std=0.0, scenes=scenes, learn=("short_um", "long_um")
    )
    with torch.no_grad():
        encoder.short_um.fill_(4.6)
        encoder.long_um.fill_(4.0)
    result = optimize_design(
        encoder, noise, scenes, n_steps=3, learning_rate=1.0, generator=torch.Generator().manual_seed(1)
    )
    short, long = (float(getattr(result.encoder, name).detach()) for name in ("short_um", "long_um"))
    assert 1.0 <= short <= 4.25 <= long <= 5.4


def test_learning_the_response_brings_no_light() -> None:
    """Before a uniform scene the mean over the pixels stays, whatever an optimiser makes of the map."""
    for std in (0.01, 0.0):
        system = infrared_camera(scenes=uniform(300.0), response_std=std, learn=("photo_response",))
        mean = system.encoder(system.scenes).detach()
        response = system.encoder.detector.photo_response
        assert response.shape == mean.shape[-2:]
        with torch.no_grad():
            response.mul_(3.0)
        torch.testing.assert_close(system.encoder(system.scenes).detach(), mean)
        upper = system.encoder.detector.parameter_domain["photo_response"][1]
        with torch.no_grad():
            response.fill_(upper)
        assert float(system.encoder(system.scenes).detach().mean()) == pytest.approx(float(mean.mean()), rel=1e-4)


def test_a_lower_f_number_widens_the_aperture_alone() -> None:
    """Learned or given: light as 1 / (4 F^2 + 1), and learned the same samples of the scene in a pixel."""
    alike = {"scenes": uniform(300.0), "dark_electrons_per_s": 0.0, "response_std": 0.0}
    given = infrared_camera(f_number=4.0, **alike).encoder
    learned = infrared_camera(learn=("f_number",), **alike).encoder
    size = learned.scene_size(4, 4)
    before = float(learned.uniform_electrons(300.0).detach())
    with torch.no_grad():
        learned.lens.f_number.fill_(4.0)
    after = float(learned.uniform_electrons(300.0).detach())
    assert learned.scene_size(4, 4) == size
    assert after / before == pytest.approx((4 * 2.5**2 + 1) / (4 * 4.0**2 + 1), rel=1e-6)
    assert float(given.uniform_electrons(300.0)) == pytest.approx(after, rel=1e-6)
