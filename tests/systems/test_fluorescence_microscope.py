"""The fluorescence microscope against the Airy pattern, an integral over the pupil, and its budget of light."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.special import j1, jn_zeros
from torch import Tensor

from bitlens import optimize_design
from bitlens.systems.fluorescence_microscope import FluorescenceMicroscope, fluorescence_microscope

APERTURE, WAVELENGTH_UM = 0.5, 0.5
# Twelve samples to the first zero, at 0.61 wavelength / NA.
FIRST_ZERO_UM = float(jn_zeros(1, 1)[0]) / (2 * math.pi) * WAVELENGTH_UM / APERTURE
SAMPLE_UM = FIRST_ZERO_UM / 12


def microscope(margin_pixels: int = 100, **changes) -> FluorescenceMicroscope:
    numbers = {
        "wavelength_nm": 1e3 * WAVELENGTH_UM,
        "numerical_aperture": APERTURE,
        "immersion_index": 1.0,
        "object_pixel_um": SAMPLE_UM,
        "emitted_photons": 1e4,
        "efficiency": 0.5,
        "margin_pixels": margin_pixels,
    }
    return FluorescenceMicroscope(**{**numbers, **changes})


def image_of_a_point(encoder: FluorescenceMicroscope, pixels: int = 41) -> Tensor:
    size = encoder.scene_shape((pixels, pixels))
    scene = torch.zeros((1, 1, *size), dtype=torch.float64)
    scene[..., size[0] // 2, size[1] // 2] = 1.0
    with torch.no_grad():
        return encoder(scene)[0, 0]


def test_a_point_has_the_airy_pattern_and_its_first_zero() -> None:
    image = image_of_a_point(microscope())
    row = image[20] / image.max()
    v = 2 * math.pi * APERTURE / WAVELENGTH_UM * SAMPLE_UM * torch.arange(-20.0, 21.0).abs().clamp(min=1e-9).double()
    airy = (2 * torch.from_numpy(j1(v.numpy())) / v) ** 2
    torch.testing.assert_close(row, airy, rtol=0, atol=2e-3)
    assert float(row[32]) < 3e-4
    assert float(row[32]) < 0.5 * min(float(row[31]), float(row[33]))


@pytest.mark.parametrize(("aperture", "index"), [(0.2, 1.0), (0.9, 1.33)])
def test_light_on_the_axis_falls_with_defocus_as_the_integral_over_the_pupil(aperture: float, index: float) -> None:
    depth_um = 0.7 * 0.5 / (index - math.sqrt(index**2 - aperture**2))

    def amplitude(part: str) -> float:
        def integrand(rho: float) -> float:
            path = index * depth_um / 0.5 * (1 - math.sqrt(1 - (aperture * rho / index) ** 2))
            return 2 * rho * getattr(math, part)(2 * math.pi * path)

        return quad(integrand, 0, 1)[0]

    encoder = {"numerical_aperture": aperture, "immersion_index": index, "object_pixel_um": 0.1 / aperture}
    sharp, blurred = (image_of_a_point(microscope(defocus_um=z, **encoder))[20, 20] for z in (0.0, depth_um))
    assert float(blurred / sharp) == pytest.approx(amplitude("cos") ** 2 + amplitude("sin") ** 2, abs=4e-3)


@pytest.mark.parametrize("depth_um", [-12.0, 12.0])
def test_a_specimen_beyond_the_focus_is_sharp_again_under_the_opposite_zernike_term(depth_um: float) -> None:
    # Beyond the plane in focus W = depth NA^2 rho^2 / (2 wavelength), of which Noll 4 has the rms over 2 sqrt 3.
    defocus = depth_um * 0.2**2 / (2 * WAVELENGTH_UM) / (2 * math.sqrt(3))
    encoder = {"numerical_aperture": 0.2, "object_pixel_um": 0.5}
    sharp, against, along = (
        float(image_of_a_point(microscope(60, zernike_waves={4: waves}, defocus_um=z, **encoder))[20, 20])
        for waves, z in ((0.0, 0.0), (-defocus, depth_um), (defocus, depth_um))
    )
    assert against > 0.99 * sharp
    assert along < 0.3 * sharp


def test_line_foci_of_the_astigmatic_design_lie_along_rows_and_columns() -> None:
    def spread(depth_um: float) -> tuple[float, float]:
        encoder = fluorescence_microscope("astigmatic", defocus_um=depth_um, n_scenes=1).encoder
        psf = encoder.psf()[17:-17, 17:-17]  # rings of the soft edge far out weigh too much
        axis = torch.arange(len(psf), dtype=psf.dtype) - len(psf) // 2
        return float((psf.sum(1) * axis**2).sum()), float((psf.sum(0) * axis**2).sum())

    (before_rows, before_columns), (beyond_rows, beyond_columns) = spread(-0.5), spread(0.5)
    assert before_rows == pytest.approx(beyond_columns, rel=0.02)
    assert before_columns == pytest.approx(beyond_rows, rel=0.02)
    assert max(before_rows / before_columns, before_columns / before_rows) > 1.3


def test_electrons_of_the_default_by_hand() -> None:
    # sin theta = 0.75: (1 - sqrt(0.4375)) / 2 = 0.16928 of 2000 photons, filters of 0.7, a camera of 0.82, 5 beside.
    encoder = fluorescence_microscope(n_scenes=1).encoder
    mean = encoder(torch.ones(1, 1, *encoder.scene_shape((3, 4))))
    torch.testing.assert_close(mean, torch.full((1, 1, 3, 4), 199.33), rtol=1e-4, atol=0)


def test_no_aperture_and_no_index_that_is_in_reach_collects_more_light() -> None:
    for numbers in ({}, {"numerical_aperture": 1.2, "immersion_index": 1.518}):
        encoder = fluorescence_microscope(n_scenes=1, margin_pixels=12, **numbers).encoder
        given = float(encoder.collected_share())
        for name in ("numerical_aperture", "immersion_index"):
            start = float(getattr(encoder, name))
            for end in encoder.parameter_domain[name]:
                with torch.no_grad():
                    getattr(encoder, name).fill_(end)
                    assert float(encoder.collected_share()) <= given * (1 + 1e-12), (name, end)
                    getattr(encoder, name).fill_(start)


def test_tilt_moves_the_image_towards_the_column_by_its_slope() -> None:
    # W = 2 a rho moves by 2 a wavelength / NA.
    shift_um = 4 * SAMPLE_UM
    tilt = shift_um * APERTURE / WAVELENGTH_UM / 2
    image = image_of_a_point(microscope(40, zernike_waves={2: tilt}))
    assert divmod(int(image.argmax()), 41) == (20, 24)


@pytest.mark.parametrize("index", [1.0, 1.33])
def test_light_of_an_even_scene(index: float) -> None:
    # A cone of 30 degrees holds (1 - cos 30 degrees) / 2 of the sphere.
    encoder = microscope(
        8, numerical_aperture=index * 0.5, immersion_index=index, background_electrons=3.0, object_pixel_um=0.15
    )
    scene = torch.full((1, 1, *encoder.scene_shape((5, 7))), 0.5, dtype=torch.float64)
    expected = 0.5 * 1e4 * 0.5 * (1 - math.sqrt(0.75)) / 2 + 3
    torch.testing.assert_close(
        encoder(scene), torch.full((1, 1, 5, 7), expected, dtype=torch.float64), rtol=1e-9, atol=0
    )


def test_pixels_are_those_of_the_camera_over_the_magnification() -> None:
    scenes = fluorescence_microscope(n_scenes=64).scenes
    encoder = fluorescence_microscope(magnification=20.0, pixel_um=6.5, scenes=scenes).encoder
    assert float(encoder.object_pixel_um) == pytest.approx(0.325)
    assert encoder.oversampling == 2
    assert encoder(scenes[:2]).shape == (2, 1, 32, 32)


def test_designs_differ_as_they_say() -> None:
    beads = fluorescence_microscope(specimen="beads", n_scenes=64).scenes
    means = {
        design: fluorescence_microscope(design, scenes=beads, background_electrons=0.0).encoder(beads)
        for design in ("in_focus", "defocused", "small_aperture", "astigmatic")
    }
    contrast = {design: float((mean**2).mean() / mean.mean() ** 2) for design, mean in means.items()}
    assert contrast["in_focus"] > 1.2 * max(contrast[name] for name in contrast if name != "in_focus")
    share = float(means["small_aperture"].mean() / means["in_focus"].mean())
    assert share == pytest.approx((1 - math.sqrt(1 - 0.16)) / (1 - math.sqrt(1 - 0.5625)), rel=0.05)


@pytest.mark.parametrize("design", ["in_focus", "defocused", "small_aperture", "astigmatic"])
def test_the_window_holds_the_psf_of_every_design(design: str) -> None:
    encoder = fluorescence_microscope(design, n_scenes=1).encoder  # type: ignore[arg-type]
    wide = fluorescence_microscope(design, n_scenes=1, margin_pixels=48).encoder  # type: ignore[arg-type]
    psf, whole = encoder.psf(), wide.psf()
    half, middle = encoder.psf_size // 2, wide.psf_size // 2
    seen = whole[middle - half : middle + half + 1, middle - half : middle + half + 1]
    # Rings of an edge fall off slowly: what lies outside comes back in, for all of them alike.
    assert float(whole.sum() - seen.sum()) < 0.04
    assert float((psf - seen).abs().sum()) < 0.12


def test_design_finds_the_focus() -> None:
    system = fluorescence_microscope(
        defocus_um=2.0, shape=(6, 6), margin_pixels=5, n_scenes=128, learn=("defocus_um", "numerical_aperture")
    )
    result = optimize_design(
        *system, n_steps=25, learning_rate={"defocus_um": 0.2, "numerical_aperture": 0.02}, generator=torch.Generator()
    )
    assert abs(float(result.parameters["defocus_um"])) < 0.7
    assert float(result.parameters["numerical_aperture"]) <= system.encoder.parameter_domain["numerical_aperture"][1]
    assert result.after.bits > result.before.bits


def test_what_cannot_be_built_is_named() -> None:
    with pytest.raises(ValueError, match="numerical_aperture: need values of"):
        fluorescence_microscope(numerical_aperture=1.2)
    with pytest.raises(ValueError, match="oversampling: need at least 2"):
        microscope(object_pixel_um=0.3, oversampling=1)
    with pytest.raises(ValueError, match="design: need one of"):
        fluorescence_microscope("blurry")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"pupil_phase_waves: need shape \(49, 49\)"):
        fluorescence_microscope(pupil_phase_waves=torch.zeros(3, 3))
