"""The tomograph: counts behind an ellipse and behind water, the Fourier slice theorem, one dose for all designs."""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitlens.datasets.phantoms_ellipses import body_slices, paint_ellipses
from bitlens.encoders.tomography import FanProjection, ParallelProjection, filtered_back_projection
from bitlens.systems.x_ray_ct import ATTENUATION_PER_MM, TransmissionTomography, XRayDesign, x_ray_ct

DESIGNS: tuple[XRayDesign, ...] = ("parallel", "fan", "sparse_view", "limited_angle")
CENTER, SEMI_AXES, TURN, VALUE = (12.0, -7.0), (38.0, 21.0), 0.5, 0.03  # mm, mm, rad, 1 / mm


def ellipse(shape: tuple[int, int], pixel: float) -> Tensor:
    image = paint_ellipses(
        torch.zeros(1, *shape, dtype=torch.float64),
        VALUE,
        center=torch.tensor([CENTER], dtype=torch.float64),
        semi_axes=torch.tensor([SEMI_AXES], dtype=torch.float64),
        angle_rad=TURN,
        pixel=pixel,
    )
    return image[:, None]


def chord(start: Tensor, direction: Tensor) -> Tensor:
    """Length within the ellipse of lines start + t direction (..., 2), direction of length 1: a quadratic in t."""
    turn = torch.tensor([[math.cos(TURN), math.sin(TURN)], [-math.sin(TURN), math.cos(TURN)]], dtype=torch.float64)
    axes = torch.tensor(SEMI_AXES, dtype=torch.float64)
    p = (start - torch.tensor(CENTER, dtype=torch.float64)) @ turn.T / axes
    d = direction @ turn.T / axes
    a, b, c = (d * d).sum(-1), (p * d).sum(-1), (p * p).sum(-1) - 1
    return 2 * (b * b - a * c).clamp(min=0).sqrt() / a


def rays(encoder: TransmissionTomography, n_inside: int) -> tuple[Tensor, Tensor]:
    """Starts and directions (view, bin, ray, 2) of `n_inside` rays within each bin."""
    projection = encoder.projection
    angle = projection.angles_rad[:, None, None]
    inside = (torch.arange(n_inside, dtype=torch.float64) + 0.5) / n_inside - 0.5
    bins = torch.arange(projection.bins, dtype=torch.float64)[:, None] - (projection.bins - 1) / 2
    s = (bins + inside) * projection.bin_mm
    detector = torch.stack(((s * angle.cos()), (s * angle.sin())), -1)
    along = torch.stack((-angle.sin(), angle.cos()), -1)
    if not hasattr(projection, "source_mm"):
        return detector, along.expand_as(detector)
    source = -projection.source_mm * along
    target = detector + projection.detector_mm * along
    return source.expand_as(target), torch.nn.functional.normalize(target - source, dim=-1)


@pytest.mark.parametrize("beam", ["parallel", "fan"])
def test_an_ellipse_converges_with_the_grid(beam: str) -> None:
    """Bins stay, pixels halve: the error falls to a 2.5th each time, to 2e-4 rms and 0.25 % of the largest chord."""
    views = (torch.arange(16, dtype=torch.float64) + 0.38) * (2 * math.pi / 16)
    largest, rms = [], []
    for pixel in (2.0, 1.0, 0.5, 0.25):
        shape = (round(120 / pixel), round(96 / pixel))
        if beam == "fan":
            projection = FanProjection(
                views, shape, bins=80, source_mm=200.0, detector_mm=150.0, pixel_mm=pixel, bin_mm=3.0
            )
        else:
            projection = ParallelProjection(views, shape, bins=80, pixel_mm=pixel, bin_mm=2.0)
        expected = chord(*rays(TransmissionTomography(projection, photons_per_view=1.0), 32)).mean(-1)
        error = projection.A(ellipse(shape, pixel))[0, 0] / VALUE - expected
        largest.append(float(error.abs().max()) / (2 * SEMI_AXES[0]))
        rms.append(float(error.square().mean().sqrt()) / (2 * SEMI_AXES[0]))
    assert all(coarse > 2.5 * fine for coarse, fine in itertools.pairwise(rms))
    assert rms[-1] < 2e-4
    assert largest[-1] < 2.5e-3


@pytest.mark.parametrize("design", DESIGNS)
def test_counts_behind_an_ellipse(design: XRayDesign) -> None:
    """photons / views x exp(-attenuation x chord) + background."""
    scene = ellipse((120, 96), 1.0)
    encoder, _, _ = x_ray_ct(
        design, shape=(120, 96), pixel_mm=1.0, views=16, photons=1.6e6, background_photons=30.0, scenes=scene,
        source_mm=200.0, detector_mm=150.0,
    )  # fmt: skip
    counts = encoder(scene)[0, 0]
    views = len(encoder.projection.angles_rad)
    expected_thickness = (VALUE * chord(*rays(encoder, 8))).mean(-1)
    thickness = -torch.log((counts - 30.0) / (1.6e6 / views))
    error = (thickness - expected_thickness).abs()
    largest = VALUE * 2 * SEMI_AXES[0]
    # Boxes of 1 mm in place of a curve: a few bins at the edge are off by a pixel's share, 2.5 % of the largest.
    assert float(error.max()) < 0.03 * largest
    assert float(error.square().mean().sqrt()) < 0.004 * largest
    assert float(thickness.max()) == pytest.approx(float(expected_thickness.max()), rel=0.01)
    torch.testing.assert_close(encoder.attenuation(counts[None, None])[0, 0], thickness, rtol=1e-9, atol=1e-9)


def test_two_hundred_millimetres_of_water() -> None:
    """At 60 keV they let pass exp(-0.2059 x 20) = 1.63 % of the photons."""
    shape, pixel = (128, 128), 2.5
    scene = paint_ellipses(
        torch.zeros(1, *shape, dtype=torch.float64), ATTENUATION_PER_MM["water"], pixel=pixel,
        center=torch.zeros(1, 2, dtype=torch.float64), semi_axes=torch.full((1, 2), 100.0, dtype=torch.float64),
    )[:, None]  # fmt: skip
    encoder, noise, _ = x_ray_ct("parallel", shape=shape, pixel_mm=pixel, views=10, photons=1e5, scenes=scene)
    mean = encoder(scene)
    middle = mean[..., mean.shape[-1] // 2 - 1 : mean.shape[-1] // 2 + 1]
    torch.testing.assert_close(middle / 1e4, torch.full_like(middle, 0.0163), rtol=0.01, atol=0)
    torch.testing.assert_close(noise.variance(mean), mean + 9.0)


def test_fourier_slice_theorem() -> None:
    """Transform of a view along s = that of the object along the line at the view's angle through frequency 0."""
    shape, pixel = (96, 96), 0.5
    position = (torch.arange(96, dtype=torch.float64) - 47.5) * pixel
    blobs = ((3.0, -5.0, 2.5, 0.02), (-6.0, 4.0, 3.5, 0.01), (0.0, 8.0, 2.0, 0.015))  # x, y, sigma in mm; 1 / mm
    scene = torch.zeros(1, 1, *shape, dtype=torch.float64)
    for x, y, sigma, value in blobs:
        scene += value * torch.exp(-((position - x) ** 2 + (position[:, None] - y) ** 2) / (2 * sigma**2))
    encoder, _, _ = x_ray_ct("parallel", shape=shape, pixel_mm=pixel, views=9, photons=9e6, scenes=scene)
    views = encoder.attenuation(encoder(scene))[0, 0]
    bins = encoder.projection.bins
    s = (torch.arange(bins, dtype=torch.float64) - (bins - 1) / 2) * pixel
    frequency = torch.linspace(-0.12, 0.12, 13, dtype=torch.float64)  # 1 / mm
    slices = pixel * views.to(torch.complex128) @ torch.exp(-2j * math.pi * s[:, None] * frequency)
    expected = torch.zeros_like(slices)
    for x, y, sigma, value in blobs:
        along = x * encoder.projection.angles_rad.cos() + y * encoder.projection.angles_rad.sin()
        size = 2 * math.pi * sigma**2 * value * torch.exp(-2 * (math.pi * sigma * frequency) ** 2)
        expected += size * torch.exp(-2j * math.pi * along[:, None] * frequency)
    # Means over pixels and bins of 0.5 mm take off (pi f 0.5)^2 / 6 each, 0.6 % at 0.12 / mm.
    assert float((slices - expected).abs().max()) < 0.005 * float(expected.abs().max())


@pytest.mark.parametrize("design", DESIGNS)
def test_all_designs_share_one_dose(design: XRayDesign) -> None:
    nothing = torch.zeros(1, 1, 16, 12, dtype=torch.float64)
    encoder, _, _ = x_ray_ct(design, shape=(16, 12), views=24, photons=4.8e4, scenes=nothing)
    mean = encoder(nothing)
    torch.testing.assert_close(mean.sum(dim=2), torch.full_like(mean[:, :, 0], 4.8e4))
    angles = encoder.projection.angles_rad
    assert len(angles) == (6 if design == "sparse_view" else 24)
    covered = float(angles[1] - angles[0]) * len(angles)
    assert math.degrees(covered) == pytest.approx({"fan": 360.0, "limited_angle": 120.0}.get(design, 180.0))


def test_views_that_learn_share_the_dose() -> None:
    """Photons in proportion to what is learned; twice all of it is the same dose, and so is none."""
    nothing = torch.zeros(1, 1, 16, 12, dtype=torch.float64)
    encoder, _, _ = x_ray_ct(
        shape=(16, 12), views=4, photons=100.0, background_photons=1.0, scenes=nothing, learn=("photons_per_view",)
    )
    with torch.no_grad():
        encoder.photons_per_view.copy_(torch.tensor([80.0, 0.0, 40.0, 40.0]))
        expected = torch.tensor([50.0, 0.0, 25.0, 25.0], dtype=torch.float64)
        torch.testing.assert_close(encoder.photons(), expected)
        torch.testing.assert_close(encoder(nothing)[0, 0, :, 0], expected + 1.0)
        encoder.photons_per_view.mul_(2.0)
        torch.testing.assert_close(encoder.photons(), expected)
        encoder.photons_per_view.zero_()
        assert encoder.photons().tolist() == [0.0] * 4


@pytest.mark.parametrize("start", [(541.0, 408.0), (300.0, 600.0), (290.0, 400.0)])
def test_a_fan_stays_within_what_it_can_be(start: tuple[float, float]) -> None:
    """Wherever the source and the detector may go, a projection can be made anew with these numbers."""
    shape, angles = (64, 64), torch.arange(4, dtype=torch.float64)
    fan = {"bins": 60, "pixel_mm": 6.25, "bin_mm": 12.0}
    encoder = FanProjection(angles, shape, source_mm=start[0], detector_mm=start[1], **fan)
    lowest = [encoder.parameter_domain[name][0] for name in ("source_mm", "detector_mm")]
    assert all(low <= given for low, given in zip(lowest, start, strict=True))
    for source in (lowest[0], start[0], 2e3):
        for detector in (lowest[1], start[1], 2e3):
            FanProjection(angles, shape, source_mm=source, detector_mm=detector, **fan)


@pytest.mark.parametrize("design", ["parallel", "fan"])
def test_default_detector_holds_the_whole_image(design: XRayDesign) -> None:
    """A spot in each corner is seen in every view: nothing of it falls beside the detector."""
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        scene = torch.zeros(1, 1, 12, 16, dtype=torch.float64)
        scene[(0, 0, *corner)] = 0.01
        encoder, _, _ = x_ray_ct(design, shape=(12, 16), views=24, scenes=scene)
        thickness = encoder.attenuation(encoder(scene))[0, 0]
        assert thickness.sum(-1).min() > 0.5 * thickness.sum(-1).max()


def test_chests_reconstruct() -> None:
    encoder, noise, scenes = x_ray_ct(shape=(96, 96), pixel_mm=4.2, views=120, n_scenes=2)
    assert scenes.shape == (2, 1, 96, 96)
    assert 0.0 <= float(scenes.min()) <= float(scenes.max()) <= ATTENUATION_PER_MM["bone"] + 1e-6
    found = filtered_back_projection(encoder.attenuation(encoder(scenes)), encoder.projection)
    assert float((found - scenes).square().mean().sqrt()) < 0.15 * float(scenes.std())
    measured = noise.sample(encoder(scenes), torch.Generator().manual_seed(0))
    noisy = filtered_back_projection(encoder.attenuation(measured), encoder.projection)
    assert float((noisy - found).square().mean().sqrt()) > 1e-4


def test_painted_area() -> None:
    area = float(ellipse((120, 96), 1.0).sum()) / VALUE
    assert area == pytest.approx(math.pi * SEMI_AXES[0] * SEMI_AXES[1], rel=1e-3)
    again = [
        body_slices(3, (20, 24), pixel_mm=18.0, attenuation_per_mm=ATTENUATION_PER_MM, generator=generator)
        for generator in (torch.Generator().manual_seed(5), torch.Generator().manual_seed(5))
    ]
    assert torch.equal(*again)


def test_what_is_wrong_is_named() -> None:
    scene = torch.zeros(1, 1, 16, 12)
    with pytest.raises(ValueError, match=r"design: need one of .*'fan'.*got 'helical'"):
        x_ray_ct("helical", scenes=scene)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"photons: need a positive number, got -1"):
        x_ray_ct(shape=(16, 12), views=1, photons=-1.0, scenes=scene)
    with pytest.raises(ValueError, match=r"source_mm: need more than"):
        x_ray_ct("fan", shape=(16, 12), source_mm=10.0, scenes=scene)
    with pytest.raises(
        ValueError, match=r"learn: need names among photons_per_view, angles_rad, offset_mm, got 'dose'"
    ):
        x_ray_ct(shape=(16, 12), scenes=scene, learn=("dose",))


def test_tooth_reconstructs() -> None:
    """Real counts: the axis is found, air is 0, enamel is denser than dentine, and projections come back."""
    path = Path(__file__).parents[2].resolve().parent / "shared" / "data" / "ct" / "tooth.h5"
    if not path.is_file():
        pytest.skip(f"no real data at {path}")
    pytest.importorskip("h5py")
    specification = importlib.util.spec_from_file_location(
        "real_ct", Path(__file__).parents[2] / "benchmarks" / "studies" / "real_ct.py"
    )
    assert specification is not None
    assert specification.loader is not None
    study = importlib.util.module_from_spec(specification)
    sys.modules["real_ct"] = study
    specification.loader.exec_module(study)
    scan = study.read_scan(path)
    found = study.reconstruct(scan)
    assert found.axis_bin == pytest.approx(296, abs=1.5)
    assert found.residual < 0.02
    air = found.image[20:80, 20:80]
    assert abs(float(air.mean())) < 2e-4
    # Enamel of the rim and dentine, in one row through both; 10 bins wide means.
    enamel, dentine = float(found.image[251:261, 368:378].mean()), float(found.image[251:261, 310:340].mean())
    assert 1.4 < enamel / dentine < 2.2
    # Where the detector stands does not matter.
    moved = study.reconstruct(scan._replace(thickness=scan.thickness.roll(6, dims=-1)), row=1)
    assert moved.axis_bin == pytest.approx(found.axis_bin + 6, abs=1.0)
    assert moved.residual < 0.02


def test_a_fan_that_grows_spreads_its_dose() -> None:
    encoder, _, _ = x_ray_ct("fan", shape=(8, 8), views=4, n_scenes=2, learn=("source_mm", "detector_mm"))
    before = encoder.photons()
    with torch.no_grad():
        encoder.projection.source_mm.mul_(2.0)
        encoder.projection.detector_mm.mul_(2.0)
    torch.testing.assert_close(encoder.photons(), before / 4)
