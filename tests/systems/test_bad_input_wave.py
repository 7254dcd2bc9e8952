"""What the systems of wave optics refuse, how far they may be learned, and that what was learned fits the plain one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bitlens.systems import ImagingSystem
from bitlens.systems.fluorescence_microscope import fluorescence_microscope
from bitlens.systems.fourier_ptychography import fourier_ptychography
from bitlens.systems.inline_holography import inline_holography
from bitlens.systems.optical_telescope import optical_telescope
from bitlens.systems.phase_contrast_microscope import phase_contrast_microscope, source_pattern

pytestmark = pytest.mark.usefixtures("one_thread")

System = Callable[..., ImagingSystem]
SYSTEMS: dict[System, tuple[str, ...]] = {
    fluorescence_microscope: (
        *("wavelength_nm", "numerical_aperture", "immersion_index", "object_pixel_um", "defocus_um", "zernike_waves"),
        *("pupil_phase_waves", "emitted_photons", "efficiency", "background_electrons"),
    ),
    optical_telescope: (
        *("diameter_m", "f_number", "wavelength_nm", "bandwidth_nm", "pixel_um", "obstruction_ratio", "vane_width"),
        *("vane_angle_rad", "zernike_waves", "pupil_phase_waves", "pupil_transmission", "magnitude", "exposure_s"),
        *("throughput", "sky_magnitude_per_arcsec2", "dark_electrons_per_s"),
    ),
    phase_contrast_microscope: (
        *("wavelength_nm", "numerical_aperture", "illumination_aperture", "object_pixel_um", "source_weights"),
        *("ring_radii", "ring_amplitude", "ring_phase_rad", "defocus_um", "zernike_waves", "photons", "dark_electrons"),
    ),
    inline_holography: (
        *("distance_mm", "wavelength_nm", "pixel_um", "tilt_rad", "shift_um", "particle_amplitude"),
        *("particle_phase_rad", "photons", "dark_electrons"),
    ),
    fourier_ptychography: (
        *("wavelength_nm", "numerical_aperture", "object_pixel_um", "led_position_mm", "led_height_mm", "led_gain"),
        *("defocus_um", "zernike_waves", "photons", "dark_electrons"),
    ),
}
systems = pytest.mark.parametrize("make", SYSTEMS, ids=lambda make: make.__name__)
LINEAR = pytest.mark.parametrize("make", [fluorescence_microscope, optical_telescope], ids=lambda make: make.__name__)


def small(make: System, **changes: Any) -> ImagingSystem:
    return make(**{"shape": (6, 7), "n_scenes": 3, **changes})


@systems
def test_arrays_are_scenes(make: System) -> None:
    scenes = small(make).scenes
    given = small(make, scenes=scenes.numpy())
    assert isinstance(given.scenes, torch.Tensor)
    assert torch.equal(given.scenes, scenes)
    assert given.encoder(given.scenes[:1]).shape[-2:] == (6, 7)
    assert torch.equal(given.encoder(scenes.numpy()), given.encoder(scenes))
    assert len(small(make, n_scenes=1).scenes) == 1


@systems
def test_scenes_that_cannot_be_used(make: System) -> None:
    scenes = small(make).scenes
    for wrong, error in (
        (scenes[0], ValueError),
        (scenes.repeat(1, 2, 1, 1), ValueError),
        (scenes[:0], ValueError),
        (torch.full_like(scenes, math.nan), ValueError),
        (scenes[..., :3, :], ValueError),
        (scenes.to(torch.complex64), TypeError),
        ([[1.0]], TypeError),
    ):
        with pytest.raises(error, match=r"^scenes: need"):
            small(make, scenes=wrong)
    if make in (fluorescence_microscope, optical_telescope):  # photographs are no linear light around 1
        with pytest.raises(TypeError, match=r"^scenes: need linear light around 1"):
            small(make, scenes=torch.full_like(scenes, 200).to(torch.uint8))
        with pytest.raises(TypeError, match=r"^scenes: need linear light around 1"):
            small(make, scenes=torch.full_like(scenes, 200).numpy().astype(np.uint16))
    if make is not fourier_ptychography:  # there real and imaginary part have either sign
        with pytest.raises(ValueError, match=r"^scenes: need (values|absorption) of at least 0"):
            small(make, scenes=-1.0 - scenes.abs())


@systems
@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("shape", (0, 8), ValueError),
        ("shape", (8.0, 8), TypeError),
        ("shape", 8, TypeError),
        ("n_scenes", 0, ValueError),
        ("n_scenes", 2.5, TypeError),
        ("margin_pixels", -1, ValueError),
        ("margin_pixels", 2.5, TypeError),
        ("wavelength_nm", 0.0, ValueError),
        ("wavelength_nm", math.nan, ValueError),
        ("wavelength_nm", "green", TypeError),
        ("read_electrons", -1.0, ValueError),
        ("design", "none such", ValueError),
        ("learn", ("colour",), ValueError),
        ("learn", "wavelength_nm", TypeError),
    ],
)
def test_arguments_that_cannot_be_used(make: System, argument: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{argument}: need"):
        small(make, **{argument: value})


@pytest.mark.parametrize(
    ("make", "argument", "value"),
    [
        (fluorescence_microscope, "magnification", 0.0),
        (fluorescence_microscope, "immersion_index", -1.0),
        (fluorescence_microscope, "numerical_aperture", 0.0),
        (fluorescence_microscope, "margin_pixels", 1),
        (fluorescence_microscope, "zernike_waves", {0: 0.1}),
        (fluorescence_microscope, "zernike_waves", {4: math.nan}),
        (fluorescence_microscope, "emitted_photons", math.inf),
        (optical_telescope, "pupil_transmission", 2 * torch.ones(49, 49)),
        (optical_telescope, "sky_magnitude_per_arcsec2", math.inf),
        (optical_telescope, "sky_magnitude_per_arcsec2", -5.0),
        (optical_telescope, "dark_electrons_per_s", -1.0),
        (optical_telescope, "exposure_s", -1.0),
        (phase_contrast_microscope, "magnification", math.nan),
        (phase_contrast_microscope, "source_weights", 1.5 * torch.ones(1, 3, 3)),
        (phase_contrast_microscope, "photons", -1.0),
        (inline_holography, "distance_mm", 0.0),
        (inline_holography, "depth_spacing_mm", -0.01),
        (inline_holography, "n_depths", 0),
        (inline_holography, "tilt_rad", (0.6, 0.0)),
        (inline_holography, "tilt_rad", (0.1, 0.0, 0.0)),
        (inline_holography, "scenes", 2 * torch.ones(1, 3, 96, 96)),
        (fourier_ptychography, "led_height_mm", 0.0),
        (fourier_ptychography, "led_gain", [-1.0] * 25),
        (fourier_ptychography, "upsampling", 0),
    ],
)
def test_numbers_that_cannot_be_used(make: System, argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: need"):
        make(**{"n_scenes": 2, argument: value})


@pytest.mark.parametrize(
    ("make", "argument", "value"),
    [
        (fluorescence_microscope, "defocus_um", True),
        (fluorescence_microscope, "emitted_photons", "many"),
        (fluorescence_microscope, "pupil_phase_waves", "flat"),
        (fluorescence_microscope, "pupil_phase_waves", torch.zeros(49, 49, dtype=torch.complex64)),
        (fluorescence_microscope, "zernike_waves", {4: "much"}),
        (optical_telescope, "exposure_s", None),
        (optical_telescope, "pupil_transmission", {}),
        (phase_contrast_microscope, "source_weights", "disc"),
        (phase_contrast_microscope, "source_weights", [[[1.0, 0.0], [1.0]]]),
        (phase_contrast_microscope, "illumination_aperture", "wide"),
        (inline_holography, "shift_um", "half"),
        (inline_holography, "tilt_rad", (1j, 0.0)),
        (fourier_ptychography, "led_position_mm", "middle"),
        (fourier_ptychography, "led_gain", {}),
    ],
)
def test_what_is_no_number_is_named(make: System, argument: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"^{argument}: need"):
        make(**{"n_scenes": 2, argument: value})


@systems
def test_what_was_learned_fits_the_plain_encoder(make: System) -> None:
    names = SYSTEMS[make]
    learned, _, scenes = small(make, learn=names)
    plain = small(make).encoder
    assert {name for name, _ in learned.named_parameters()} == set(names)
    with torch.no_grad():
        for name, value in learned.named_parameters():
            low, high = learned.parameter_domain.get(name, (None, None))
            moved = value + 0.05 * learned.parameter_scale[name]
            value.copy_(moved if low is None and high is None else moved.clamp(low, high))
    plain.load_state_dict(learned.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(plain(scenes), learned(scenes))


@systems
def test_a_start_lies_in_its_domain_and_light_does_not_grow(make: System) -> None:
    encoder = small(make, learn=SYSTEMS[make]).encoder
    assert set(encoder.parameter_scale) == set(SYSTEMS[make])
    assert set(encoder.parameter_domain) <= set(SYSTEMS[make])
    for name, parameter in encoder.named_parameters():
        value = parameter.detach()
        low, high = encoder.parameter_domain.get(name, (None, None))
        assert low is None or low <= float(value.min()), name
        assert high is None or float(value.max()) <= high, name
        assert encoder.parameter_scale[name] > 0
        if name in ("emitted_photons", "photons", "exposure_s", "efficiency", "throughput", "diameter_m", "led_gain"):
            assert high == float(value.max()), name
        if make is fluorescence_microscope and name in ("numerical_aperture", "immersion_index"):
            assert (high if name == "numerical_aperture" else low) == float(value), name


@pytest.mark.parametrize(
    ("make", "name", "end"),
    [
        (phase_contrast_microscope, "wavelength_nm", 0),
        (phase_contrast_microscope, "numerical_aperture", 1),
        (phase_contrast_microscope, "illumination_aperture", 1),
        (fourier_ptychography, "wavelength_nm", 0),
        (fourier_ptychography, "numerical_aperture", 1),
        (fourier_ptychography, "object_pixel_um", 1),
        (fourier_ptychography, "led_height_mm", 0),
    ],
)
def test_domains_end_where_the_constructor_refuses(make: System, name: str, end: int) -> None:
    edge = small(make).encoder.parameter_domain[name][end]
    within, beyond = (edge * (1 + (sign if end else -sign) * 1e-3) for sign in (-1, 1))
    small(make, **{name: within})
    with pytest.raises(ValueError, match=r"^(object_pixel_um|upsampling): need"):
        small(make, **{name: beyond})


@pytest.mark.parametrize("margin_pixels", [4, 12])
def test_domains_of_the_psf_end_where_samples_or_window_do(margin_pixels: int) -> None:
    microscope = small(fluorescence_microscope, margin_pixels=margin_pixels).encoder
    telescope = small(optical_telescope, margin_pixels=margin_pixels).encoder
    for encoder, pitch, fine, coarse in (
        (microscope, "object_pixel_um", [("wavelength_nm", 0)], "numerical_aperture"),
        (telescope, "pixel_um", [("wavelength_nm", 0), ("f_number", 0)], "f_number"),
    ):

        def spread_um(encoder: torch.nn.Module, changed: dict[str, float]) -> tuple[float, float, float]:
            """wavelength f-number, the pitch of the samples, and the window."""
            values = {name: float(value) for name, value in encoder.named_buffers() if value.ndim == 0} | changed
            f_number = values["f_number"] if "f_number" in values else 0.5 / values["numerical_aperture"]
            sample = (values["pixel_um"] if "pixel_um" in values else values["object_pixel_um"]) / encoder.oversampling
            return 1e-3 * values["wavelength_nm"] * f_number, sample, sample * encoder.psf_size

        domain = encoder.parameter_domain
        for name, end in (*fine, (pitch, 1)):
            width, sample, _ = spread_um(encoder, {name: domain[name][end]})
            assert sample == pytest.approx(width / 2, rel=1e-9), name
        widest = [("wavelength_nm", 1), (coarse, int(encoder is telescope)), (pitch, 0)]
        for name, end in widest:
            width, _, window = spread_um(encoder, {name: domain[name][end]})
            assert window >= 4 * width * (1 - 1e-9), name


@LINEAR
def test_the_linear_part_is_what_the_mean_has_beside_the_background(make: System) -> None:
    encoder, _, scenes = small(make)
    encoder, scenes = encoder.double(), scenes.double()
    with torch.no_grad():
        empty = encoder(torch.zeros_like(scenes))
        torch.testing.assert_close(encoder(scenes), encoder.A(scenes) + empty, rtol=1e-12, atol=0)
        assert float(empty.std()) == 0.0
        assert float(encoder.A(torch.zeros_like(scenes)).abs().max()) == 0.0
        other = torch.randn(scenes.shape, dtype=scenes.dtype, generator=torch.Generator().manual_seed(0))
        sum_of_both = encoder.A(scenes - 0.3 * other)
        torch.testing.assert_close(sum_of_both, encoder.A(scenes) - 0.3 * encoder.A(other), rtol=1e-9, atol=1e-9)
    scenes.requires_grad_()
    mean = encoder.A(scenes)
    weights = torch.randn(mean.shape, dtype=mean.dtype, generator=torch.Generator().manual_seed(1))
    (back,) = torch.autograd.grad(mean, scenes, weights)
    torch.testing.assert_close(encoder.A_adjoint(weights.numpy()).detach(), back, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"measured: need shape \(batch, 1, row, column\)"):
        encoder.A_adjoint(weights[0])


def test_sources_of_all_areas_give_equal_light_when_it_is_shared_by_their_area() -> None:
    empty = torch.zeros(1, 2, 16, 16, dtype=torch.float64)
    light = []
    for design in ("brightfield", "half_circles", "half_annuli"):
        weights = source_pattern(design)
        share = float(weights.mean(dim=0).sum() / source_pattern("brightfield").sum())
        encoder = phase_contrast_microscope(design, photons=8000 / share, illumination_aperture=0.3, n_scenes=1).encoder
        mean = encoder(empty) - 0.5
        light.append(float(mean.sum(dim=1).mean()))
    assert light == pytest.approx([8000.0] * 3, rel=1e-6)


def test_arrays_of_pixels_are_counted_in_the_messages() -> None:
    with pytest.raises(ValueError, match=r"scene: need at least 98 rows and columns that are multiples of 2, got"):
        optical_telescope(n_scenes=1, margin_pixels=24).encoder(np.zeros((1, 1, 97, 98)))
