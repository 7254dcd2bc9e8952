"""A radio interferometer: antennas whose pairs sample the Fourier transform of the sky while the earth turns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, final, get_args

import numpy as np
import torch
from torch import Tensor

from bitlens.encoders import LinearEncoder
from bitlens.encoders.detector import Values, as_planes, as_values, hold, within
from bitlens.encoders.nonuniform_fourier import image_to_samples, samples_to_image
from bitlens.noise import GaussianNoise
from bitlens.systems._checks import check_count, check_positive, check_shape, scenes_and_shape
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription

InterferometerDesign = Literal["y_shaped", "circle", "random", "eht2017"]

DESCRIPTION = SystemDescription(
    name="radio_interferometer",
    designs=get_args(InterferometerDesign),
    formula="z_jk = sum x(l, m) exp(-2 pi i (u_jk l + v_jk m)) + n, both parts of n ~ Normal(0, std_jk^2), "
    "std_jk = sqrt(SEFD_j SEFD_k / (2 B t)) / efficiency",
    reference="Thompson, Moran and Swenson 2017, ch. 4 and 6, doi:10.1007/978-3-319-44431-4",
)

_TOLERANCE = {torch.float32: 1e-7, torch.float64: 1e-12}


class _Array(NamedTuple):
    """What an array of antennas is, unless the caller says otherwise."""

    latitude_degrees: float | None
    wavelength_mm: float
    sefd_jy: float | tuple[float, ...]
    bandwidth_hz: float
    integration_s: float
    efficiency: float
    hours: tuple[float, ...]
    declination_degrees: float
    flux_jy: float


# Antennas like those of the Very Large Array at 6 cm: one subband of 128 MHz, eight scans of a minute, of M87's place.
_LOCAL = _Array(34.0787, 60.0, 310.0, 128e6, 60.0, 0.93, tuple(-3.5 + hour for hour in range(8)), 12.391, 0.6)
# Event Horizon Telescope in April 2017: geocentric coordinates in metres, median zenith SEFDs in Jy.
_EHT2017 = {
    "ALMA": ((2225061.2, -5440057.4, -2481681.2), 74.0),
    "APEX": ((2225039.5, -5441197.6, -2479303.4), 4700.0),
    "JCMT": ((-5464584.7, -2493001.2, 2150654.0), 10500.0),
    "LMT": ((-768714.0, -5988541.8, 2063276.0), 4500.0),
    "PV": ((5088967.9, -301681.6, 3825015.8), 1900.0),
    "SMA": ((-5464523.4, -2493147.1, 2150611.8), 6200.0),
    "SMT": ((-1828796.2, -5054406.8, 3427865.2), 17100.0),
    "SPT": ((0.01, 0.01, -6359609.7), 19300.0),
}
_EHT_SEFD = tuple(sefd for _, sefd in _EHT2017.values())
# Ten minutes in every hour, by the hour angle at Greenwich; elevations choose. Sagittarius A* is above the horizon of
# every station at some time, the South Pole's too, which a northern source such as M87 never is.
_EHT = _Array(None, 1.3203, _EHT_SEFD, 1.856e9, 600.0, 0.88, tuple(float(hour) for hour in range(24)), -29.008, 2.4)


@final
class VisibilitySampling(LinearEncoder):
    """V_jk(H) = sum over pixels of scene exp(-2 pi i (u l + v m)): visibilities of a small field, in the scene's Jy.

    (u, v) = ((L_x sin H + L_y cos H), (-sin d (L_x cos H - L_y sin H) + L_z cos d)) / wavelength for the baseline L =
    position_j - position_k in the equatorial frame, hour angle H and declination d. The scene has north up and east
    left: l = -(column - columns // 2) pixel_rad to the east, m = -(row - rows // 2) pixel_rad to the north.

    Shapes: (batch, 1, row, column) -> (batch, 2, visibility, 1), real and imaginary part.

    Reference: Thompson, Moran and Swenson 2017, eq. 4.1, doi:10.1007/978-3-319-44431-4.
    """

    stations_m: Tensor
    hour_angles_rad: Tensor
    wavelength_mm: Tensor
    heights_m: Tensor
    pairs: Tensor
    times: Tensor

    def __init__(
        self,
        stations_m: Tensor | np.ndarray,
        shape: tuple[int, int],
        *,
        latitude_degrees: float | None,
        hour_angles_rad: Values,
        declination_rad: float,
        wavelength_mm: float,
        pixel_rad: float,
        lowest_elevation_rad: float = 0.0,
        learn: Sequence[str] = (),
    ) -> None:
        """Takes the antennas and when they look; the visibilities are those of all pairs that see the source then.

        Args:
            stations_m: (station, 3): east, north, up at `latitude_degrees`, with local hour angles; or, where that is
                None, geocentric x (Greenwich), y (90 degrees east), z (north), with Greenwich hour angles.
            shape: (row, column) of scenes.
            lowest_elevation_rad: both antennas see the source at least so high.
            learn: "stations_m" (along the ground: heights, or radii of geocentric ones, stay), "hour_angles_rad" of
                local antennas, "wavelength_mm"; what is visible stays as it was at first.

        Raises:
            ValueError: a value out of its range or shape, no pair that sees the source, or hour angles to learn of
                antennas all over the Earth, of which each moment shows others.
        """
        super().__init__()
        stations = as_values("stations_m", stations_m, "(station, 3)", (2,)).double()
        if stations.shape[1] != 3 or len(stations) < 2:
            raise ValueError(f"stations_m: need shape (station, 3) of at least two, got {tuple(stations.shape)}")
        hours = as_values("hour_angles_rad", hour_angles_rad, "(time,)", (1,)).double()
        wavelength = as_values("wavelength_mm", wavelength_mm, "a number", (0,)).double()
        for name, value in (("wavelength_mm", float(wavelength)), ("pixel_rad", pixel_rad)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: need a positive number, got {value}")
        self.shape, self.pixel_rad = check_shape(shape), float(pixel_rad)
        self.latitude_rad = None if latitude_degrees is None else math.radians(latitude_degrees)
        self.declination_rad = float(declination_rad)
        if "hour_angles_rad" in learn and latitude_degrees is None:
            raise ValueError("learn: need antennas of one latitude for hour_angles_rad, got geocentric ones")
        hold(self, {"stations_m": stations, "hour_angles_rad": hours, "wavelength_mm": wavelength}, learn)
        self.register_buffer(
            "heights_m", stations[:, 2].clone() if latitude_degrees is not None else stations.norm(dim=1)
        )
        with torch.no_grad():
            seen = self.elevation_rad() >= lowest_elevation_rad
        first, second = torch.triu_indices(len(stations), len(stations), 1)
        times, pair = (seen[:, first] & seen[:, second]).nonzero(as_tuple=True)
        if not len(times):
            raise ValueError("lowest_elevation_rad: need a pair that sees the source at some time, got none")
        self.register_buffer("pairs", torch.stack((first[pair], second[pair]), -1))
        self.register_buffer("times", times)
        longest, metres = float(torch.pdist(stations).max()) or 1.0, 1e-3 * float(wavelength)
        # A cell of (u, v), in which the phase of a source that fills the field turns once.
        cell = metres / (max(self.shape) * self.pixel_rad)
        self.parameter_scale: Mapping[str, float] = {
            "stations_m": cell,
            "hour_angles_rad": cell / longest,
            "wavelength_mm": float(wavelength) * cell / longest,
        }
        # Of half a cycle per pixel at most, unless there is more from the start; centred stations of twice that apart.
        reach = max(metres / (4 * self.pixel_rad), float(stations.abs().max()))
        self.parameter_domain: Mapping[str, tuple[float | None, float | None]] = {
            "stations_m": (-reach, reach),
            "wavelength_mm": (min(float(wavelength), 2e3 * self.pixel_rad * longest), None),
            **self._hours_above(lowest_elevation_rad),
        }

    def positions_m(self) -> Tensor:
        """Where the antennas stand, (station, 3), in the frame of `stations_m`: on the ground, at their heights."""
        if self.latitude_rad is None:
            return torch.nn.functional.normalize(self.stations_m, dim=-1) * self.heights_m[:, None]
        return torch.cat((self.stations_m[:, :2], self.heights_m[:, None]), dim=1)

    def _hours_above(self, lowest_elevation_rad: float) -> dict[str, tuple[float, float]]:
        """Hour angles at which the source is at least so high at the latitude, where there is one."""
        if self.latitude_rad is None:
            return {}
        product = math.cos(self.latitude_rad) * math.cos(self.declination_rad)
        height = math.sin(lowest_elevation_rad) - math.sin(self.latitude_rad) * math.sin(self.declination_rad)
        if product == 0 or height <= -product:
            return {"hour_angles_rad": (-math.pi, math.pi)}
        latest = math.acos(min(1.0, height / product))
        return {"hour_angles_rad": (-latest, latest)}

    def elevation_rad(self) -> Tensor:
        """Of the source above the horizon of each station on a sphere, (time, station)."""
        if self.latitude_rad is None:
            up = torch.nn.functional.normalize(self.positions_m(), dim=-1)
        else:
            up = _equatorial(torch.tensor([0.0, 0.0, 1.0]).to(self.stations_m), self.latitude_rad)
            up = up.expand_as(self.stations_m)
        hour = self.hour_angles_rad
        cosine = math.cos(self.declination_rad)
        to_source = (cosine * hour.cos(), -cosine * hour.sin(), math.sin(self.declination_rad) * torch.ones_like(hour))
        return torch.asin((torch.stack(to_source, -1) @ up.T).clamp(-1, 1))

    def baselines_wavelengths(self) -> Tensor:
        """u and v of every visibility, (visibility, 2)."""
        positions = self.positions_m()
        positions = positions if self.latitude_rad is None else _equatorial(positions, self.latitude_rad)
        x, y, z = (positions[self.pairs[:, 0]] - positions[self.pairs[:, 1]]).unbind(-1)
        hour = self.hour_angles_rad[self.times]
        u = x * hour.sin() + y * hour.cos()
        v = math.cos(self.declination_rad) * z - math.sin(self.declination_rad) * (x * hour.cos() - y * hour.sin())
        return torch.stack((u, v), -1) * (1e3 / self.wavelength_mm)

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """Visibilities (batch, 2, visibility, 1) of scenes (batch, 1, row, column), Jy per pixel."""
        rows, columns = self.shape
        scene = as_planes("scene", scene, channels=1, rows=rows, columns=columns)
        field = torch.complex(scene[:, 0].double(), torch.zeros_like(scene[:, 0], dtype=torch.float64))
        samples = image_to_samples(field, self._cycles(), tolerance=_TOLERANCE[scene.dtype])
        return torch.view_as_real(samples).movedim(-1, 1).unsqueeze(-1).to(scene.dtype)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """The real part of the sum of waves that the visibilities weigh, (batch, 1, row, column): the dirty image."""
        measured = as_planes("measured", measured, channels=2, rows=len(self.times), columns=1)
        samples = torch.complex(measured[:, 0, :, 0].double(), measured[:, 1, :, 0].double())
        field = samples_to_image(samples, self._cycles(), self.shape, tolerance=_TOLERANCE[measured.dtype])
        return field.real.unsqueeze(1).to(measured.dtype)

    def _cycles(self) -> Tensor:
        """Per field of view along rows and columns; both grow against north and east."""
        size = torch.tensor(self.shape, dtype=torch.float64, device=self.stations_m.device) * self.pixel_rad
        return -self.baselines_wavelengths().double().flip(-1) * size


def radio_interferometer(
    design: InterferometerDesign = "y_shaped",
    *,
    shape: tuple[int, int] | None = None,
    n_stations: int | None = None,
    extent_m: float = 1000.0,
    declination_degrees: float | None = None,
    hour_angles_h: Sequence[float] | None = None,
    wavelength_mm: float | None = None,
    pixel_rad: float | None = None,
    sefd_jy: float | Sequence[float] | None = None,
    bandwidth_hz: float | None = None,
    integration_s: float | None = None,
    efficiency: float | None = None,
    lowest_elevation_degrees: float = 10.0,
    flux_jy: float | None = None,
    n_scenes: int = 256,
    scenes: Tensor | np.ndarray | None = None,
    learn: tuple[str, ...] = (),
) -> ImagingSystem:
    """z_jk = sum x exp(-2 pi i (u l + v m)) + n, both parts of n ~ Normal(0, SEFD_j SEFD_k / (2 B t efficiency^2)).

    "y_shaped": three arms as at the Very Large Array; "circle"; "random", in a disc: `n_stations` (9) on flat ground
    within `extent_m`, at 6 cm; "eht2017": the eight stations of the Event Horizon Telescope at 1.3 mm. Equal scans.

    Args:
        declination_degrees: default 12.391 (M87); of "eht2017" -29.008, Sagittarius A*: all eight see it at some time.
        hour_angles_h: local, for "eht2017" of Greenwich; one scan of `integration_s` at each.
        shape, pixel_rad: default 32 x 32, and wavelength / (2.5 longest baseline).
        sefd_jy: system equivalent flux density, one or one per station. None here and above: as the real arrays.
        scenes: (n, 1, row, column), Jy per pixel; default `radio_sources` of `flux_jy` (0.6; "eht2017" 2.4).
        learn: "stations_m", "hour_angles_rad", "wavelength_mm", as in `VisibilitySampling`.

    Reference: Thompson et al. 2017, ch. 4 and 6, doi:10.1007/978-3-319-44431-4; Napier et al. 1983,
        doi:10.1109/PROC.1983.12765; EHT Collaboration 2019 and 2022, doi:10.3847/2041-8213/ab0c57, .../ac6674.
    """
    if design not in get_args(InterferometerDesign):
        raise ValueError(f"design: need one of {get_args(InterferometerDesign)}, got {design!r}")
    scenes, shape = scenes_and_shape(scenes, shape, n_scenes, default=(32, 32))
    if design == "eht2017" and n_stations is not None:
        raise ValueError(f"n_stations: need none with design 'eht2017', whose eight stations stand, got {n_stations}")
    n_stations = check_count("n_stations", 9 if n_stations is None else n_stations, least=3)
    if flux_jy is not None:
        check_positive("flux_jy", flux_jy)
    preset = _EHT if design == "eht2017" else _LOCAL
    stations = station_layout(design, n_stations, extent_m)
    wavelength = preset.wavelength_mm if wavelength_mm is None else wavelength_mm
    if pixel_rad is None:
        pixel_rad = 1e-3 * wavelength / (2.5 * float(torch.pdist(stations).max()))
    hours = torch.as_tensor(preset.hours if hour_angles_h is None else hour_angles_h, dtype=torch.float64)
    encoder = VisibilitySampling(
        stations,
        shape,
        latitude_degrees=preset.latitude_degrees,
        hour_angles_rad=hours * (math.pi / 12),
        declination_rad=math.radians(
            preset.declination_degrees if declination_degrees is None else declination_degrees
        ),
        wavelength_mm=wavelength,
        pixel_rad=pixel_rad,
        lowest_elevation_rad=math.radians(lowest_elevation_degrees),
        learn=learn,
    )
    sefd = as_values("sefd_jy", preset.sefd_jy if sefd_jy is None else sefd_jy, "a number or one per station", (0, 1))
    if sefd.ndim and len(sefd) != len(stations):
        raise ValueError(f"sefd_jy: need a number or {len(stations)}, one per station, got {len(sefd)}")
    of_pairs = sefd.double().expand(len(stations))[encoder.pairs]
    std = visibility_std_jy(
        of_pairs[:, :1],
        of_pairs[:, 1:],
        bandwidth_hz=preset.bandwidth_hz if bandwidth_hz is None else bandwidth_hz,
        integration_s=preset.integration_s if integration_s is None else integration_s,
        efficiency=preset.efficiency if efficiency is None else efficiency,
    )
    if scenes is None:
        flux = preset.flux_jy if flux_jy is None else flux_jy
        scenes = flux * radio_sources(n_scenes, shape, generator=torch.Generator().manual_seed(0))
    return ImagingSystem(encoder, GaussianNoise(std), scenes)


def visibility_std_jy(
    first_sefd_jy: Tensor, second_sefd_jy: Tensor, *, bandwidth_hz: float, integration_s: float, efficiency: float = 1.0
) -> Tensor:
    """sqrt(SEFD_1 SEFD_2 / (2 B t)) / efficiency: of the real, and of the imaginary part, Jy.

    Raises:
        ValueError: a number that is not positive.

    Reference: Thompson, Moran and Swenson 2017, sec. 6.2, doi:10.1007/978-3-319-44431-4.
    """
    for name, value in (("bandwidth_hz", bandwidth_hz), ("integration_s", integration_s), ("efficiency", efficiency)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}: need a positive number, got {value}")
    product = within("sefd_jy", first_sefd_jy * second_sefd_jy, 0.0)
    return (product / (2 * bandwidth_hz * integration_s)).sqrt() / efficiency


def station_layout(design: InterferometerDesign, n_stations: int, extent_m: float) -> Tensor:
    """(station, 3) in metres: east, north, up; geocentric x, y, z of the eight stations of "eht2017".

    Arms of "y_shaped" point to the azimuths 355, 115 and 236 degrees, station n of an arm of N at (n / N)^1.716 of its
    length, which is `extent_m` / sqrt 3. The diameter of the others is `extent_m`.

    Reference: Napier, Thompson and Ekers 1983, doi:10.1109/PROC.1983.12765.
    """
    if design == "eht2017":
        return torch.tensor([position for position, _ in _EHT2017.values()], dtype=torch.float64)
    if n_stations < 3 or not (math.isfinite(extent_m) and extent_m > 0):
        raise ValueError(f"n_stations, extent_m: need at least 3, and a positive number, got {n_stations}, {extent_m}")
    index = torch.arange(n_stations, dtype=torch.float64)
    if design == "y_shaped":
        azimuth = torch.deg2rad(torch.tensor([355.0, 115.0, 236.0], dtype=torch.float64))[torch.arange(n_stations) % 3]
        place = torch.div(index, 3, rounding_mode="floor") + 1
        radius = extent_m / math.sqrt(3) * (place / math.ceil(n_stations / 3)) ** 1.716
    elif design == "circle":
        azimuth = 2 * math.pi * index / n_stations
        radius = torch.full_like(index, extent_m / 2)
    else:
        chance = torch.rand(2, n_stations, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        azimuth, radius = 2 * math.pi * chance[0], extent_m / 2 * chance[1].sqrt()
    return torch.stack((radius * azimuth.sin(), radius * azimuth.cos(), torch.zeros_like(index)), -1)


def radio_sources(n_scenes: int, shape: tuple[int, int], *, generator: torch.Generator) -> Tensor:
    """Brightness (n, 1, row, column), float32, each of sum 1: a crescent of random size, and three Gaussian blobs."""
    rows, columns = shape
    y = (torch.arange(rows, dtype=torch.float64) - rows // 2)[:, None] / (min(shape) / 2)
    x = (torch.arange(columns, dtype=torch.float64) - columns // 2) / (min(shape) / 2)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n_scenes, 1, 1, dtype=torch.float64, generator=generator)

    right, down, radius, width = between(-0.2, 0.2), between(-0.2, 0.2), between(0.15, 0.5), between(0.06, 0.12)
    bright, angle = between(0.0, 0.9), between(0.0, 2 * math.pi)
    distance = torch.hypot(x - right, y - down)
    around = 1 + bright * torch.cos(torch.atan2(y - down, x - right) - angle)
    image = around * torch.exp(-0.5 * ((distance - radius) / width) ** 2)
    image = image / image.sum(dim=(1, 2), keepdim=True)
    for _ in range(3):
        share, size = between(0.0, 0.4), between(0.06, 0.2)
        blob = torch.exp(-0.5 * ((x - between(-0.6, 0.6)) ** 2 + (y - between(-0.6, 0.6)) ** 2) / size**2)
        image = image + share * blob / blob.sum(dim=(1, 2), keepdim=True)
    return (image / image.sum(dim=(1, 2), keepdim=True))[:, None].float()


def _equatorial(local: Tensor, latitude_rad: float) -> Tensor:
    """x (towards the meridian), y (east), z (north pole) of east, north, up (..., 3)."""
    east, north, up = local.unbind(-1)
    sine, cosine = math.sin(latitude_rad), math.cos(latitude_rad)
    return torch.stack((cosine * up - sine * north, east, cosine * north + sine * up), -1)
