"""Which seven places of a radio array to build on: bits of arrays against the sky that is reconstructed.

    python benchmarks/studies/radio_array.py [--quick] [--out FOLDER] [--data FOLDER] [--seeds N]

All arrays have seven antennas, none more than a kilometre or so apart, and look at one place of the sky six times for a
minute: equal integration time, equal antennas (310 Jy, 128 MHz at 6 cm), 126 visibilities of a source of 0.1 Jy.
Scenes of 24 x 24 pixels: four model images of the Event Horizon Telescope (astro/eht_model_images.npz), turned,
stretched, shifted and scaled to what this array resolves, two of five scenes; the others, and all without the file, are
crescents with blobs. Images of one model stay together in all splits, and so do the phantoms of each of 30 batches.

The list of arrays: a Y, wide and compact; a ring, wide and small, and half a ring; a tight cluster; lines, even and
uneven (a Golomb ruler), to the east and to the north; a Reuleaux triangle; two clusters; a cluster with two far
antennas; a grid; four random draws from the 24 pads of a sunflower spiral; and the pads that a greedy search for the
most cells of the (u, v) plane takes. Nothing was left out afterwards.

Bits: closed-form Gaussian density, cross-fitted by groups: the channel is linear and Gaussian, and 252 values are too
many for mixtures. Traditional figures: signal-to-noise ratio of the visibilities, longest baseline, cells of the (u, v)
plane with a sample, largest side lobe of the dirty beam, condition number. MTF50 has no meaning for visibilities.

Found out: bits rank the arrays better than any traditional figure; the cells of the (u, v) plane come next and fail on
rings and Reuleaux triangles. On these bits err too, the more the brighter the source: they count each doubling of the
signal in each visibility alike, so that arrays whose baselines are all long gain by detail, while the error is that of
the strong short spacings that they lack. The flux was fixed at 0.1 Jy after trials at 0.05, 0.2 and 0.6 Jy; the JSON of
the linear decoder shows what it changes. Pads chosen by information and pads of most coverage carry as many bits, and
neither reconstructs better beyond its spread: greedy coverage is a good rule for faint sources.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _subset_study import Subset, compare_subsets, gaussian_bounds, linear_rank_correlations
from _validation_study import Study, run_study
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from bitlens import report
from bitlens._files import replace_file
from bitlens.noise import GaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.systems.radio_interferometer import VisibilitySampling, radio_sources, visibility_std_jy
from bitlens.validation import Reconstruction, UNetDecoder, condition_number, snr_db

Array = NDArray[np.float64]
ROOT = Path(__file__).resolve().parents[2]
N_ANTENNAS, N_PADS = 7, 24
RADIUS_M, WAVELENGTH_MM = 500.0, 60.0
PIXEL_RAD = 1e-3 * WAVELENGTH_MM / (2.5 * 2 * RADIUS_M)
FLUX_JY = 0.1
# As the Very Large Array: latitude, and M87's place in the sky.
_LATITUDE_DEGREES, _DECLINATION_DEGREES = 34.0787, 12.391
_MODELS = ("avery_sgra_eofn", "avery_m87_1_eofn", "jason_mad_eofn", "jason_mri_eofn")
_N_PHANTOM_GROUPS = 30


class Scenes(NamedTuple):
    """Images (n, 1, row, column) of sum 1, the source of each, and what they were made of."""

    images: Tensor
    groups: Tensor
    source: str


def skies(n_scenes: int, size: int, data: Path, seed: int) -> Scenes:
    """Two of five scenes from model images if they are there, the others phantoms."""
    images = radio_sources(n_scenes, (size, size), generator=torch.Generator().manual_seed(seed))
    index = torch.arange(n_scenes)
    groups = len(_MODELS) + index // 5 % _N_PHANTOM_GROUPS
    path = data / "astro" / "eht_model_images.npz"
    if not path.exists():
        return Scenes(images, groups, "phantoms")
    random = np.random.default_rng(seed)
    with np.load(path) as archive:
        models = [archive[name].astype(np.float64) for name in _MODELS]
    for place in index[index % 5 < 2].tolist():
        model = place // 5 % len(models)
        images[place, 0] = torch.from_numpy(_turned(models[model], size, random)).float()
        groups[place] = model
    return Scenes(images, groups, "four Event Horizon Telescope models and phantoms")


def _turned(image: Array, size: int, random: np.random.Generator) -> Array:
    """The model of a root-mean-square radius of 2 to 5 pixels (in 24), anywhere near the middle."""
    if random.random() < 0.5:
        image = image[:, ::-1]
    row, column = np.indices(image.shape)
    weight = image / image.sum()
    centre = np.array([(weight * row).sum(), (weight * column).sum()])
    radius = math.sqrt((weight * ((row - centre[0]) ** 2 + (column - centre[1]) ** 2)).sum())
    step = radius / (random.uniform(2, 5) * size / 24)
    angle, stretch = random.uniform(0, 2 * math.pi), random.uniform(0.75, 1.33)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turn = turn @ np.diag([step * stretch, step / stretch])
    offset = centre - turn @ (size / 2 + random.uniform(-2.5, 2.5, 2) * size / 24)
    image = ndimage.affine_transform(ndimage.gaussian_filter(image, 0.5 * step), turn, offset, (size, size), order=1)
    return np.asarray(image / image.sum())


def pads() -> Array:
    """East, north, up (pad, 3), metres: a sunflower spiral, evenly dense over the disc."""
    index = np.arange(N_PADS)
    return _polar(np.degrees(index * math.pi * (3 - math.sqrt(5))), RADIUS_M * np.sqrt((index + 0.5) / (N_PADS - 0.5)))


def arrays(n_times: int) -> dict[str, Array]:
    """East, north, up (antenna, 3) of each array, metres."""
    arms, places = [0.0, 120.0, 240.0], pads()
    even, golomb = np.linspace(-1, 1, N_ANTENNAS), np.array([0, 1, 4, 10, 18, 23, 25]) / 12.5 - 1
    none = np.zeros(N_ANTENNAS)
    around, sixth = np.arange(N_ANTENNAS) * 360 / N_ANTENNAS, [60.0 * k for k in range(6)]
    fifth, far = [72.0 * k for k in range(5)], np.array([450.0, 0, 0])
    found = {
        "Y": _polar([*arms, *arms, 0], [200, 200, 200, 500, 500, 500, 0]),
        "compact Y": _polar([*arms, *arms, 0], [80, 80, 80, 180, 180, 180, 0]),
        "ring": _polar(around, [RADIUS_M] * 7),
        "small ring": _polar(around, [0.4 * RADIUS_M] * 7),
        "half ring": _polar(np.linspace(-90, 90, 7), [RADIUS_M] * 7),
        "cluster": _polar([0, *sixth], [0] + [60] * 6),
        "even line to the east": RADIUS_M * np.stack([even, none, none], -1),
        "uneven line to the east": RADIUS_M * np.stack([golomb, none, none], -1),
        "uneven line to the north": RADIUS_M * np.stack([none, golomb, none], -1),
        "Reuleaux triangle": _reuleaux(),
        "two clusters": np.concatenate(
            [_polar([0, 90, 180], [60] * 3) + far, _polar([0, 90, 180, 270], [60] * 4) - far]
        ),
        "cluster and two far": _polar([*fifth, 0, 120], [60] * 5 + [500] * 2),
        "grid": 250.0 * np.array([[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [1, 1, 0], [-1, -1, 0]]),
    }
    for seed in range(4):
        found[f"random pads, draw {seed}"] = places[list(_drawn(seed))]
    found["pads of most coverage"] = places[list(most_coverage(n_times))]
    return found


def _drawn(seed: int) -> Subset:
    return tuple(sorted(np.random.default_rng(seed).choice(N_PADS, N_ANTENNAS, replace=False).tolist()))


def _polar(azimuth_degrees: Sequence[float] | Array, radius_m: Sequence[float] | Array) -> Array:
    azimuth, radius = np.radians(np.asarray(azimuth_degrees, float)), np.asarray(radius_m, float)
    return np.stack([radius * np.sin(azimuth), radius * np.cos(azimuth), np.zeros_like(radius)], -1)


def _reuleaux() -> Array:
    """Seven antennas evenly along three arcs, each about the opposite corner."""
    corners = _polar([0, 120, 240], [2 * RADIUS_M / math.sqrt(3)] * 3)
    found = []
    for index in range(N_ANTENNAS):
        arc, share = divmod(3 * index / N_ANTENNAS, 1)
        centre, first, last = (corners[(int(arc) + k) % 3] for k in range(3))
        angle = math.radians(60 * (share - 0.5))
        middle = 0.5 * (first + last) - centre
        across = (last - first) / np.linalg.norm(last - first)
        along = middle / np.linalg.norm(middle)
        found.append(centre + 2 * RADIUS_M * (math.cos(angle) * along + math.sin(angle) * across))
    return np.array(found)


def observed(stations: Array, size: int, n_times: int) -> VisibilitySampling:
    """What the array sees in scans over seven hours."""
    return VisibilitySampling(
        stations,
        (size, size),
        latitude_degrees=_LATITUDE_DEGREES,
        hour_angles_rad=torch.linspace(-3.5, 3.5, n_times, dtype=torch.float64) * (math.pi / 12),
        declination_rad=math.radians(_DECLINATION_DEGREES),
        wavelength_mm=WAVELENGTH_MM,
        pixel_rad=PIXEL_RAD,
        lowest_elevation_rad=math.radians(10),
    )


def noise_of(flux_jy: float) -> GaussianNoise:
    """Of one visibility, for scenes of sum 1 that stand for a source of `flux_jy`."""
    sefd = torch.tensor(310.0, dtype=torch.float64)
    std = visibility_std_jy(sefd, sefd, bandwidth_hz=128e6, integration_s=60.0, efficiency=0.93)
    return GaussianNoise(float(std) / flux_jy)


class _NoPair(nn.Module):
    """One antenna sees nothing."""

    def forward(self, scene: Tensor) -> Tensor:
        return scene.new_zeros(len(scene), 2, 1, 1)


@dataclass(frozen=True)
class Interferometer:
    """Pads -> encoder and noise of an array on these."""

    size: int
    n_times: int

    def __call__(self, chosen: Subset) -> tuple[nn.Module, GaussianNoise]:
        if len(chosen) < 2:
            return _NoPair(), noise_of(FLUX_JY)
        return observed(pads()[list(chosen)], self.size, self.n_times), noise_of(FLUX_JY)


# ---- the traditional figures ----

_CELLS = 24


def cells(encoder: VisibilitySampling) -> int:
    """Cells of the (u, v) plane with a sample, one cell for a field of 24 pixels."""
    uv = encoder.baselines_wavelengths() * (PIXEL_RAD * _CELLS)
    both = torch.cat([uv, -uv]).round()
    return len(torch.unique(both, dim=0))


def most_coverage(n_times: int) -> Subset:
    """Greedy: each next pad fills the most new cells."""
    places = pads()
    chosen: Subset = (0,)
    while len(chosen) < N_ANTENNAS:
        rest = [pad for pad in range(N_PADS) if pad not in chosen]
        chosen = (*chosen, max(rest, key=lambda pad: cells(observed(places[[*chosen, pad]], _CELLS, n_times))))
    return tuple(sorted(chosen))


def _encoder(system: ImagingSystem) -> VisibilitySampling:
    assert isinstance(system.encoder, VisibilitySampling)
    return system.encoder


def side_lobe(system: ImagingSystem) -> float:
    """Largest |dirty beam| outside its main lobe: outside what is connected to the peak above a third of it."""
    wide = 4 * _CELLS  # half pixels, twice the field
    uv = _encoder(system).baselines_wavelengths() * PIXEL_RAD
    place = torch.arange(wide, dtype=torch.float64) - wide // 2
    phase = torch.exp(2j * math.pi * 0.5 * torch.einsum("kd,dn->kdn", uv, place.expand(2, -1)))
    beam = torch.einsum("kx,ky->yx", phase[:, 0], phase[:, 1]).real / len(uv)
    parts, _ = ndimage.label(beam.numpy() > 1 / 3)
    main = ndimage.binary_dilation(parts == parts[wide // 2, wide // 2], iterations=3)
    return float(beam.abs().numpy()[~main].max())


METRICS: dict[str, Callable[[ImagingSystem], float]] = {
    "snr_db": lambda system: snr_db(system.encoder(system.scenes), system.noise),  # type: ignore[arg-type]
    "longest_baseline_m": lambda system: float(torch.pdist(_encoder(system).stations_m).max()),
    "cells_of_uv_plane": lambda system: float(cells(_encoder(system))),
    "side_lobe": side_lobe,
    "condition_number": lambda system: condition_number(system.encoder, tuple(system.scenes.shape[1:])),
}


def main(arguments: argparse.Namespace) -> Study:
    """All of the study; the study of the ranking."""
    quick = arguments.quick
    size, n_times, n_scenes, n_design = (16, 3, 220, 60) if quick else (24, 6, 1200, 400)
    scenes = skies(n_scenes, size, arguments.data, 0)
    print(f"scenes: {scenes.source}, {size} x {size}")
    decoder = UNetDecoder(channels=4, n_steps=4) if quick else UNetDecoder(channels=8, n_steps=150)
    layouts = arrays(n_times)
    study = run_study(
        "radio_array",
        _systems(layouts, scenes.images, n_times, FLUX_JY),
        Reconstruction(),
        METRICS,
        quick=quick,
        out=arguments.out,
        groups=scenes.groups,
        decoder=decoder,
        n_seeds=arguments.seeds,
        method="gaussian",
        lower_is_better=("side_lobe", "condition_number"),
        bound=False,
        extra={"scenes": scenes.source},
    )
    linear_rank_correlations(
        "radio_array",
        {
            f"{flux:g} Jy": _systems(layouts, scenes.images, n_times, flux)
            for flux in ((FLUX_JY,) if quick else (0.03, FLUX_JY, 0.3, 1.0))
        },
        scenes.groups,
        arguments.out,
    )
    bounds = gaussian_bounds("radio_array", study, scenes.images, arguments.out)
    _, _, chosen = compare_subsets(
        "radio_array",
        Interferometer(size, n_times),
        N_PADS,
        _drawn(0),
        skies(n_design, size, arguments.data, 1).images,
        scenes.images,
        quick=quick,
        out=arguments.out,
        groups=scenes.groups,
        decoder=decoder,
        n_seeds=arguments.seeds,
        others={"most coverage": most_coverage(n_times)},
    )
    drawn = picture(layouts, {name: pads()[list(each)] for name, each in chosen.items()}, study, bounds, scenes)
    replace_file(arguments.out / "radio_array_list.png", report.to_png(drawn))
    return study


def _systems(layouts: dict[str, Array], images: Tensor, n_times: int, flux_jy: float) -> dict[str, ImagingSystem]:
    size = images.shape[-1]
    return {
        name: ImagingSystem(observed(stations, size, n_times), noise_of(flux_jy), images)
        for name, stations in layouts.items()
    }


def picture(
    layouts: dict[str, Array],
    chosen: dict[str, Array],
    study: Study,
    bounds: dict[str, float],
    scenes: Scenes,
) -> Figure:
    """The arrays from many bits to few, those chosen from the pads, some scenes, and errors beside their bound."""
    bits, psnr, error = (study.result.mean(name) for name in ("bits", "psnr", "mse"))
    order = sorted(layouts, key=bits.__getitem__, reverse=True)
    figure = Figure(figsize=(14, 10), layout="constrained")
    (upper,), (lower,) = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.6, 1))
    for axis, name in zip(upper.subplots(3, 6).ravel(), order, strict=True):
        _map(axis, layouts[name], f"{name}\n{bits[name]:.0f} bits, {psnr[name]:.1f} dB")
    upper.suptitle("arrays of the list, most bits first (the circle is a kilometre wide)")
    ((left, middle, right),) = lower.subfigures(1, 3, squeeze=False, width_ratios=(1.3, 1, 1.1))
    for axis, (name, stations) in zip(left.subplots(1, len(chosen)).ravel(), chosen.items(), strict=True):
        axis.plot(*pads().T[:2], "o", color="0.8", markersize=4)
        _map(axis, stations, name)
    left.suptitle("seven of 24 pads")
    for panel, image in zip(middle.subplots(3, 4).ravel(), scenes.images[:, 0], strict=False):
        panel.imshow(image.numpy(), cmap="inferno")
        panel.axis("off")
    middle.suptitle("some scenes")
    axis = right.subplots()
    rising = order[::-1]
    axis.semilogy([bits[name] for name in rising], [error[name] for name in rising], "o", label="decoder")
    axis.semilogy(
        [bits[name] for name in rising], [bounds[name] for name in rising], "k-", label="best code of so many bits"
    )
    axis.set(xlabel="information (bits per image)", ylabel="mean squared error")
    axis.legend(frameon=False)
    return figure


def _map(axis: Axes, stations: Array, title: str) -> None:
    turn = np.linspace(0, 2 * math.pi, 100)
    axis.plot(RADIUS_M * np.cos(turn), RADIUS_M * np.sin(turn), color="0.8", linewidth=0.8)
    axis.plot(*stations.T[:2], "o", color="tab:blue", markersize=4)
    axis.set(aspect="equal", xlim=(-640, 640), ylim=(-640, 640), xticks=[], yticks=[])
    axis.set_title(title, fontsize=8)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real data")
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for table, figures and JSON")
    parser.add_argument("--quick", action="store_true", help="few steps and seeds, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3, help="splits, noise draws and decoders per array")
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(parse())
