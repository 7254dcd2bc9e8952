"""The radio interferometer: delays of plane waves, point sources, elevations, sensitivity."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens.design import optimize_design
from bitlens.systems.radio_interferometer import (
    InterferometerDesign,
    VisibilitySampling,
    radio_interferometer,
    radio_sources,
    station_layout,
    visibility_std_jy,
)

FLAT = torch.ones(1, 1, 16, 12, dtype=torch.float64)


def direction(hour_angle: float, declination: float) -> Tensor:
    """Unit vector to a source: x to the meridian on the equator, y east, z north."""
    return torch.tensor(
        [
            math.cos(declination) * math.cos(hour_angle),
            -math.cos(declination) * math.sin(hour_angle),
            math.sin(declination),
        ],
        dtype=torch.float64,
    )


def visibilities(encoder: VisibilitySampling, scene: Tensor) -> Tensor:
    real, imaginary = encoder.A(scene)[0, :, :, 0]
    return torch.complex(real, imaginary)


@pytest.mark.parametrize("design", ["y_shaped", "eht2017"])
@pytest.mark.parametrize(("row", "column"), [(8, 6), (3, 6), (8, 10), (14, 1)])
def test_point_source_is_the_delay_of_a_plane_wave(design: InterferometerDesign, row: int, column: int) -> None:
    """exp(-2 pi i baseline . (s - s_0) / wavelength): s from the spherical angles of the source, no u and no v."""
    encoder, _, _ = radio_interferometer(design, shape=(16, 12), scenes=FLAT)
    scene = torch.zeros_like(FLAT)
    scene[0, 0, row, column] = 2.5
    declination = encoder.declination_rad
    # North is up and east, where the right ascension grows and the hour angle falls, on the left.
    north = (8 - row) * encoder.pixel_rad
    east = (6 - column) * encoder.pixel_rad
    found = visibilities(encoder, scene)
    positions = encoder.stations_m
    if encoder.latitude_rad is not None:
        latitude = encoder.latitude_rad
        axes = torch.tensor(
            [
                [0.0, 1.0, 0.0],
                [-math.sin(latitude), 0.0, math.cos(latitude)],
                [math.cos(latitude), 0.0, math.sin(latitude)],
            ],
            dtype=torch.float64,
        )
        positions = positions @ axes
    expected = []
    for (first, second), time in zip(encoder.pairs.tolist(), encoder.times.tolist(), strict=True):
        hour = float(encoder.hour_angles_rad[time])
        source = direction(hour - east / math.cos(declination), declination + north)
        change = source - direction(hour, declination)
        turns = (positions[first] - positions[second]) @ change * 1e3 / encoder.wavelength_mm
        expected.append(2.5 * torch.polar(torch.ones_like(turns), -2 * math.pi * turns))
    # Exact but for the field's curvature, and the rounding of the two directions whose difference counts.
    longest = 2 * math.pi * float(torch.pdist(positions).max()) * 1e3 / float(encoder.wavelength_mm)
    tolerance = 2.5 * longest * ((16 * encoder.pixel_rad) ** 2 + 4 * 2.2e-16)
    assert tolerance < (0.5 if design == "y_shaped" else 1e-3)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=tolerance + 1e-9)
    torch.testing.assert_close(found.abs(), torch.full_like(found.abs(), 2.5), rtol=1e-10, atol=0)


def test_flat_east_west_pair_at_transit() -> None:
    """100 m east-west: u = 100 m / wavelength for any declination, v = 0; 50 m north-south: foreshortened."""
    stations = torch.tensor([[100.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 50.0, 0.0]], dtype=torch.float64)
    latitude, declination = 40.0, math.radians(10.0)
    encoder = VisibilitySampling(
        stations, (8, 8), latitude_degrees=latitude, hour_angles_rad=[0.0], declination_rad=declination,
        wavelength_mm=200.0, pixel_rad=1e-4,
    )  # fmt: skip
    baselines = encoder.baselines_wavelengths()
    assert encoder.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    torch.testing.assert_close(baselines[0], torch.tensor([500.0, 0.0], dtype=torch.float64), rtol=1e-12, atol=1e-9)
    north = 250.0 * math.cos(math.radians(30.0))
    torch.testing.assert_close(baselines[2], torch.tensor([0.0, -north], dtype=torch.float64), rtol=1e-12, atol=1e-9)
    # It culminates at 90 - (40 - 10) degrees.
    assert math.degrees(float(encoder.elevation_rad()[0, 0])) == pytest.approx(60.0)


def test_only_pairs_that_see_the_source_are_there() -> None:
    """The South Pole never sees a northern source; stations 180 degrees apart never see one together."""
    encoder, _, _ = radio_interferometer("eht2017", shape=(16, 12), declination_degrees=12.391, scenes=FLAT)
    assert encoder.pairs.unique().tolist() == list(range(7))
    # A place on the pole itself sees it that far below the horizon, always.
    torch.testing.assert_close(
        encoder.elevation_rad()[:, 7].rad2deg(), torch.full((24,), -12.391).double(), rtol=0, atol=1e-3
    )
    high = encoder.elevation_rad()
    for (first, second), time in zip(encoder.pairs.tolist(), encoder.times.tolist(), strict=True):
        assert min(float(high[time, first]), float(high[time, second])) >= math.radians(10.0)
    with pytest.raises(ValueError, match=r"lowest_elevation_rad: need a pair that sees the source"):
        radio_interferometer(shape=(16, 12), declination_degrees=-80.0, scenes=FLAT)


def test_every_station_sees_the_default_source() -> None:
    """Highest at 90 degrees less the distance between latitude and declination: 10 degrees and more for all eight."""
    for design in ("y_shaped", "circle", "random", "eht2017"):
        encoder, _, _ = radio_interferometer(design, shape=(16, 12), scenes=FLAT)
        assert encoder.pairs.unique().tolist() == list(range(len(encoder.stations_m)))
    latitude = torch.rad2deg(torch.asin(encoder.stations_m[:, 2] / encoder.stations_m.norm(dim=1)))
    highest = 90 - (latitude + 29.008).abs()
    assert float(highest.min()) > 20.0
    # Within what the source moves in half of the hour between scans.
    found = encoder.elevation_rad().max(0).values.rad2deg()
    assert float((highest - found).abs().max()) < 7.5
    assert bool((found <= highest + 1e-5).all())


def test_sensitivity() -> None:
    """SEFDs of 100 and 400 Jy, 1 GHz, 10 s, efficiency 0.8: sqrt(40000 / 2e10) / 0.8 Jy."""
    value = visibility_std_jy(
        torch.tensor(100.0), torch.tensor(400.0), bandwidth_hz=1e9, integration_s=10, efficiency=0.8
    )
    assert float(value) == pytest.approx(math.sqrt(2e-6) / 0.8)
    _, noise, _ = radio_interferometer("y_shaped", shape=(16, 12), scenes=FLAT)
    torch.testing.assert_close(noise.std, torch.full_like(noise.std, 310 / math.sqrt(2 * 128e6 * 60) / 0.93))
    encoder, noise, _ = radio_interferometer("eht2017", shape=(16, 12), scenes=FLAT, integration_s=10.0)
    first = [encoder.pairs.tolist().index(pair) for pair in ([0, 1], [5, 6])]
    expected = [math.sqrt(sefd / (2 * 1.856e9 * 10)) / 0.88 for sefd in (74 * 4700, 6200 * 17100)]
    torch.testing.assert_close(noise.std[first, 0], torch.tensor(expected, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"sefd_jy: need a number or 9, one per station, got 2"):
        radio_interferometer(shape=(16, 12), scenes=FLAT, sefd_jy=(1.0, 2.0))


def test_layouts() -> None:
    for design in ("y_shaped", "circle", "random"):
        stations = station_layout(design, 9, 600.0)
        assert stations.shape == (9, 3)
        # The widest pair of arms is 121 degrees apart.
        assert float(torch.pdist(stations).max()) <= 1200 * math.sin(math.radians(60.5)) / math.sqrt(3) + 1e-9
    arms = station_layout("y_shaped", 9, 600.0)
    radius = arms.norm(dim=1)
    torch.testing.assert_close(radius[6:], torch.full((3,), 600 / math.sqrt(3)).double())
    torch.testing.assert_close(radius[:3] / radius[6:], torch.full((3,), (1 / 3) ** 1.716).double())
    assert math.degrees(math.atan2(float(arms[7, 0]), float(arms[7, 1]))) == pytest.approx(115.0)
    earth = station_layout("eht2017", 3, 1.0).norm(dim=1)
    assert float(earth.min()) > 6.35e6
    assert float(earth.max()) < 6.385e6


def test_total_flux_is_the_visibility_of_no_baseline() -> None:
    scenes = radio_sources(5, (16, 12), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scenes.sum(dim=(1, 2, 3)), torch.ones(5))
    close = torch.tensor([[0.0, 0.0, 0.0], [1e-6, 0.0, 0.0]], dtype=torch.float64)
    encoder = VisibilitySampling(
        close, (16, 12), latitude_degrees=0.0, hour_angles_rad=[0.0], declination_rad=0.0, wavelength_mm=1.0,
        pixel_rad=1e-6,
    )  # fmt: skip
    torch.testing.assert_close(encoder(scenes)[:, :, 0, 0], torch.tensor([[1.0, 0.0]] * 5), rtol=0, atol=1e-6)


def test_antennas_move_to_where_there_is_more_information() -> None:
    system = radio_interferometer(
        "circle", shape=(12, 12), n_stations=4, extent_m=400.0, pixel_rad=3e-5, hour_angles_h=(-1.0, 1.0),
        sefd_jy=5e3, n_scenes=200, learn=("stations_m",),
    )  # fmt: skip
    result = optimize_design(*system, n_steps=20, objective="gaussian", generator=torch.Generator().manual_seed(0))
    assert result.after.bits > result.before.bits
    moved = (result.encoder.stations_m - system.encoder.stations_m).detach().norm(dim=1)
    assert float(moved.max()) > 2.0


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match=r"design: need one of .*'circle'.*got 'square'"):
        radio_interferometer("square", scenes=FLAT)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"wavelength_mm: need a positive number, got 0"):
        radio_interferometer(scenes=FLAT, wavelength_mm=0.0, pixel_rad=1e-5)
    with pytest.raises(ValueError, match=r"bandwidth_hz: need a positive number, got 0"):
        radio_interferometer(scenes=FLAT, bandwidth_hz=0.0)


def test_published_baselines_of_the_event_horizon_telescope() -> None:
    """u and v of 15,000 real visibilities of M87 from stations, times and the source's place: to 2e-4, sign and all."""
    folder = Path(__file__).parents[2].resolve().parent / "shared" / "data" / "astro" / "eht_m87"
    paths = sorted(folder.glob("*.csv.gz"))
    if not paths:
        pytest.skip(f"no real data at {folder}")
    specification = importlib.util.spec_from_file_location(
        "real_radio", Path(__file__).parents[2] / "benchmarks" / "studies" / "real_radio.py"
    )
    assert specification is not None
    assert specification.loader is not None
    study = importlib.util.module_from_spec(specification)
    sys.modules["real_radio"] = study
    specification.loader.exec_module(study)
    rows = study.read_rows(paths[0])
    own, lowest = study.own_baselines(rows)
    length = np.hypot(*rows.baselines.T)
    # Pairs on one mountain, of a few hundred metres, have their stations to a metre or so.
    long = length > 1e8
    assert long.sum() > 4000
    assert (np.hypot(*(own - rows.baselines).T)[long] < 2e-4 * length[long]).all()
    assert np.degrees(lowest.min()) > 10.0


def test_learned_antennas_stay_on_the_ground() -> None:
    flat = radio_interferometer(shape=(8, 8), n_stations=4, n_scenes=2, learn=("stations_m",)).encoder
    globe = radio_interferometer("eht2017", shape=(8, 8), n_scenes=2, learn=("stations_m",)).encoder
    radius = globe.stations_m.detach().norm(dim=1)
    with torch.no_grad():
        for encoder in (flat, globe):
            encoder.stations_m.add_(0.1 * encoder.stations_m.abs().max() * torch.rand(encoder.stations_m.shape))
    assert not flat.positions_m()[:, 2].any()
    torch.testing.assert_close(flat.positions_m()[:, :2], flat.stations_m[:, :2])
    torch.testing.assert_close(globe.positions_m().norm(dim=1), radius)


def test_learned_hours_see_the_source() -> None:
    encoder = radio_interferometer(
        shape=(8, 8), n_stations=4, n_scenes=2, lowest_elevation_degrees=20.0, learn=("hour_angles_rad",)
    ).encoder
    low, high = encoder.parameter_domain["hour_angles_rad"]
    with torch.no_grad():
        encoder.hour_angles_rad.fill_(high)
        lowest = float(encoder.elevation_rad().min())
    assert lowest == pytest.approx(math.radians(20.0), abs=1e-9)
    assert low == -high
    with pytest.raises(ValueError, match="learn: need antennas of one latitude for hour_angles_rad"):
        radio_interferometer("eht2017", shape=(8, 8), n_scenes=2, learn=("hour_angles_rad",))
