"""The colour camera: what each pixel's filter passes, the light it gets, and a tile that learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitlens import optimize_design
from bitlens.encoders import BAYER, RGBW, RGBW_SPECTRA, XTRANS, Camera, ColorFilterArray
from bitlens.systems.color_camera import ColorCamera, ColorCameraDesign, color_camera, filter_spectra

FIXED: dict[ColorCameraDesign, tuple[tuple[int, ...], ...]] = {"bayer": BAYER, "rgbw": RGBW, "xtrans": XTRANS}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(rows: int, columns: int, light: tuple[float, ...] = (0.7, 1.1, 0.4)) -> Tensor:
    """One colour all over, for a camera with 6 pixels of margin and 3 samples per pixel."""
    values = torch.tensor(light, dtype=torch.float64)
    return values[:, None, None].expand(1, -1, 3 * (rows + 12), 3 * (columns + 12))


@pytest.mark.parametrize("design", FIXED)
def test_each_pixel_reads_what_its_filter_passes(design: ColorCameraDesign) -> None:
    encoder, _, scenes = color_camera(design, photons=500.0, scenes=flat(9, 14))
    mean = encoder(scenes)[0, 0]
    spectra, tile = filter_spectra((610.0, 540.0, 460.0)), FIXED[design]
    assert mean.shape == (9, 14)
    for row in range(9):
        for column in range(14):
            filter_ = tile[row % len(tile)][column % len(tile[0])]
            passed = sum(float(spectra[filter_, band]) * light for band, light in enumerate((0.7, 1.1, 0.4)))
            assert float(mean[row, column]) == pytest.approx(500.0 * passed, rel=1e-9)


@pytest.mark.parametrize("design", ["bayer", "rgbw", "xtrans", "random"])
def test_against_a_camera_for_each_band(design: ColorCameraDesign) -> None:
    scenes = torch.rand(2, 3, 60, 66, dtype=torch.float64, generator=seeded())
    encoder, _, _ = color_camera(design, photons=300.0, scenes=scenes)
    bands = torch.cat(
        [
            Camera(
                wavelength_nm=wavelength,
                f_number=5.6,
                pixel_um=3.45,
                exposure_photons=300.0,
                oversampling=3,
                margin_pixels=6,
            )(scenes[:, band : band + 1])
            for band, wavelength in enumerate((610.0, 540.0, 460.0))
        ],
        dim=1,
    )
    tile = encoder.filters.tile
    rows, columns = bands.shape[-2:]
    chosen = tile[torch.arange(rows) % tile.shape[0]][:, torch.arange(columns) % tile.shape[1]]
    expected = (filter_spectra((610.0, 540.0, 460.0))[chosen].movedim(-1, 0) * bands).sum(dim=1, keepdim=True)
    torch.testing.assert_close(encoder(scenes), expected, rtol=1e-9, atol=1e-9)


def test_blue_is_sharper_than_red() -> None:
    psf = color_camera("bayer", scenes=flat(4, 4)).encoder.lens.psf()
    peak = psf.amax(dim=(-2, -1))
    # The PSF's peak goes as 1 / wavelength^2, up to what of the light falls beyond the window.
    assert float(peak[2] / peak[0]) == pytest.approx((610 / 460) ** 2, rel=0.05)


def test_filters_half_open_where_their_width_says() -> None:
    spectra = filter_spectra((610.0, 660.0, 560.0, 540.0, 460.0))
    torch.testing.assert_close(spectra[0, :3], torch.tensor([0.9, 0.45, 0.45], dtype=torch.float64))
    torch.testing.assert_close(spectra[1, 3], torch.tensor(0.9, dtype=torch.float64))
    torch.testing.assert_close(spectra[2, 4], torch.tensor(0.9, dtype=torch.float64))
    torch.testing.assert_close(spectra[3], torch.full((5,), 0.95, dtype=torch.float64))


def test_clear_pixels_of_ideal_filters_get_all_bands() -> None:
    encoder, _, scenes = color_camera("rgbw", photons=100.0, spectra=RGBW_SPECTRA, scenes=flat(4, 4))
    mean = encoder(scenes)[0, 0]
    torch.testing.assert_close(mean[0, 0], torch.tensor(100.0 * 2.2, dtype=torch.float64))
    # Half of the pixels are clear, a quarter green.
    assert float(mean.mean()) == pytest.approx(100.0 * (0.5 * 2.2 + 0.25 * 1.1 + 0.125 * (0.7 + 0.4)))


def test_random_tile_has_the_shares_of_the_rgbw_tile() -> None:
    encoder = color_camera("random", scenes=flat(4, 4)).encoder
    assert torch.bincount(encoder.filters.tile.flatten()).tolist() == [8, 16, 8, 32]
    assert torch.equal(encoder.filters.tile, color_camera("random", scenes=flat(4, 4)).encoder.filters.tile)


def test_hyperspectral_scenes_take_a_spectrum_of_their_bands() -> None:
    band_nm = (440.0, 500.0, 560.0, 620.0, 680.0)
    encoder, _, _ = color_camera("bayer", band_nm=band_nm, scenes=torch.ones(1, 5, 60, 60))
    rows = encoder.scene_size(4, 6)
    scene = torch.ones(1, 5, *rows, dtype=torch.float64)
    mean = encoder(scene)
    assert mean.shape == (1, 1, 4, 6)
    assert float(mean[0, 0, 0, 0]) == pytest.approx(1000.0 * float(filter_spectra(band_nm)[0].sum()))
    with pytest.raises(ValueError, match="scenes: need scenes of 5 bands"):
        color_camera("bayer", band_nm=band_nm)


@pytest.mark.usefixtures("one_thread")
def test_a_learned_tile_gains_information_and_hardens() -> None:
    coarse = torch.rand(96, 3, 6, 6, generator=seeded(1))
    scenes = torch.nn.functional.interpolate(coarse, size=(24, 24), mode="bilinear")
    system = color_camera("learned", tile_pixels=2, margin_pixels=2, scenes=scenes, learn=("choice_logits",))
    result = optimize_design(*system, n_steps=15, generator=seeded(2))
    assert result.after.bits is not None
    assert result.after.bits > result.before.bits
    hard = result.encoder.filters.hardened()
    assert hard.tile.shape == (2, 2)
    assert not hard.soft


def test_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"design: need one of .*'bayer'.*got 'foveon'"):
        color_camera("foveon", scenes=flat(4, 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="learn: need names among spectra, got 'choice_logits'"):
        color_camera("bayer", scenes=flat(4, 4), learn=("choice_logits",))
    lens = {"wavelength_nm": 550.0, "f_number": 8.0, "pixel_um": 3.45}
    filters = ColorFilterArray(BAYER, RGBW_SPECTRA)
    with pytest.raises(ValueError, match="lens: need a camera without dark_electrons"):
        ColorCamera(Camera(**lens, dark_electrons=0.1), filters)
    with pytest.raises(ValueError, match="lens: need boundary 'crop', got 'zero'"):
        ColorCamera(Camera(**lens, boundary="zero"), filters)
    with pytest.raises(ValueError, match="scene: need rows and columns of 36 and 36 samples more"):
        color_camera("bayer", scenes=flat(4, 4)).encoder(torch.ones(1, 3, 37, 39))


def test_default_scenes_fit() -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    encoder, _, scenes = color_camera("xtrans", shape=(8, 12), n_scenes=16)
    assert encoder(scenes).shape == (16, 1, 8, 12)


@pytest.mark.parametrize("name", ["f_number", "pixel_um"])
def test_what_changes_the_light_per_pixel_is_not_learned(name: str) -> None:
    with pytest.raises(ValueError, match=f"learn: .* got '{name}', an argument alone: the light of a pixel"):
        color_camera(shape=(4, 4), n_scenes=2, learn=(name,))


def test_dark_signal_adds_behind_the_filters() -> None:
    scenes = torch.rand(2, 3, 60, 66, dtype=torch.float64, generator=seeded())
    bright, dark = (color_camera(dark_electrons=value, scenes=scenes).encoder for value in (0.0, 3.5))
    torch.testing.assert_close(dark(scenes), bright(scenes) + 3.5)
    torch.testing.assert_close(dark.A(scenes), bright(scenes))
    with pytest.raises(ValueError, match="dark_electrons: need at least 0, got -1"):
        color_camera(dark_electrons=-1.0, scenes=scenes)
    with pytest.raises(ValueError, match="lens: need numbers for 3 bands, got 2"):
        ColorCamera(
            Camera(wavelength_nm=(550.0, 600.0), f_number=8.0, pixel_um=3.45), ColorFilterArray(BAYER, RGBW_SPECTRA)
        )
