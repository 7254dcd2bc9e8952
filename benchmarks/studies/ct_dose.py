"""X-ray CT, angles against dose: which scan of one dose carries most bits, and is best reconstructed.

    python benchmarks/studies/ct_dose.py [--quick] [--out FOLDER] [--seeds N] [--data FOLDER]

A rat-sized chest in a parallel beam. Every scan spends the same dose, photons sent per mm of beam width times that
width, summed over the views; every read-out of a detector element costs electronic noise. Fewer views are therefore
less noisy, more views see more.

The list of scans (`DESIGNS`): the number of views from 2 to 48, evenly over half a turn; then, from 24 such views, one
thing spoilt at a time, mildly or badly: the range of angles, their spacing, the shares of the dose, the width of an
element, the width of the beam. Bits: a full Gaussian corrected for its number of samples, since what a bound by
a mixture loses grows with the number of values, which differs here between 48 and 1152.

Then one dose is designed by information, angles and photons of each view, from 16 equal views. Last, the same list
scans sections of a real tooth, where its file is at hand.

What was found out: with electronic noise bits and error agree that neither few views nor many are best, but 8 to 12
for the chests and 24 for the tooth, whose outline is any turn of itself. The one scan that the bits put far elsewhere
is the beam on the inner half: it tells more about the middle than any other tells about the whole, and nothing about
what is outside, which the error counts as much; its light differs too, since no air is in the beam. A mixture's bound
must not compare scans of different sizes: its excess grows with the number of values, and it put 48 views first. The
SNR of the raw counts says nothing: air is the brightest thing there is. The least error that the bits allow is drawn
from the uncorrected bound, hence its dip at 48 views. The tooth was scanned with one split and a linear estimate.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from _design_study import Comparison, Settings, compare_designs
from _validation_study import Metric, Study, run_study
from real_ct import read_scan, reconstruct
from torch import Tensor

from bitlens.datasets.phantoms_ellipses import body_slices
from bitlens.design import Simplex
from bitlens.encoders.tomography import ParallelProjection
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.systems.x_ray_ct import ATTENUATION_PER_MM, TransmissionTomography
from bitlens.validation import Decoder, LinearDecoder, Reconstruction, UNetDecoder, condition_number, snr_db
from bitlens.validation.metrics import jacobian

ROOT = Path(__file__).resolve().parents[2]
# A chest of 400 mm at a sixth: a rat.
FIELD_MM, SCALE = 400.0 / 6, 6.0
SIZE, QUICK_SIZE = 24, 8
# Photons of all views on an element as wide as a pixel, with nothing before it.
DOSE_PHOTONS = 2.0e5
# An element of 2.8 mm stands for some 900 detector pixels of 0.1 mm with 2 photons of electronic noise each.
ELECTRONIC_PHOTONS = 60.0
# Uniform, of the attenuation of water: tissue is not as even as a drawing, nor is the bed's foam.
TEXTURE = 0.02
N_DECODER_STEPS = 100


class Scan(NamedTuple):
    """Angles (view,), the shares of the dose (view,), width of an element in pixels, width of the beam in fields."""

    angles_rad: Tensor
    shares: Tensor
    element: float = 1.0
    beam: float = 1.0


def even(views: int, turn_degrees: float = 180.0) -> Tensor:
    """Angles evenly over a turn, rad; not along pixels."""
    return (torch.arange(views, dtype=torch.float64) + 0.382) * math.radians(turn_degrees) / views


def equal(views: int) -> Tensor:
    """The same dose in each view."""
    return torch.full((views,), 1.0 / views, dtype=torch.float64)


def _one_quarter() -> Tensor:
    return torch.where(torch.arange(24) < 6, 0.8 / 6, 0.2 / 18).double()


def _bunches() -> Tensor:
    view = torch.arange(24)
    return 0.2 + (view // 6) * (math.pi / 4) + (view % 6) * math.radians(2)


DESIGNS: Mapping[str, Scan] = {
    "48 views": Scan(even(48), equal(48)),
    "24 views": Scan(even(24), equal(24)),
    "12 views": Scan(even(12), equal(12)),
    "8 views": Scan(even(8), equal(8)),
    "6 views": Scan(even(6), equal(6)),
    "4 views": Scan(even(4), equal(4)),
    "2 views": Scan(even(2), equal(2)),
    "24 over 120 degrees": Scan(even(24, 120), equal(24)),
    "24 over 60 degrees": Scan(even(24, 60), equal(24)),
    "24 over 30 degrees": Scan(even(24, 30), equal(24)),
    "24, crowded at one end": Scan(math.pi * (even(24) / math.pi) ** 2, equal(24)),
    "24, in four bunches": Scan(_bunches().double(), equal(24)),
    "24, 80 % of dose in a quarter": Scan(even(24), _one_quarter()),
    "24, elements twice as wide": Scan(even(24), equal(24), element=2.0),
    "24, elements four times as wide": Scan(even(24), equal(24), element=4.0),
    "24, beam on the inner half": Scan(even(24), equal(24), beam=0.5),
}


def scanner(scan: Scan, scenes: Tensor, learn: tuple[str, ...] = ()) -> ImagingSystem:
    """The scan of these scenes (n, 1, row, column), 1 / mm; `learn` "angles_rad", "photons_per_view"."""
    size = scenes.shape[-1]
    pixel_mm = FIELD_MM / size
    bins = round(size * scan.beam / scan.element)
    projection = ParallelProjection(
        scan.angles_rad,
        (size, size),
        bins=bins,
        pixel_mm=pixel_mm,
        bin_mm=scan.element * pixel_mm,
        learn=tuple(name for name in learn if name == "angles_rad"),
    )
    # Elements grow with a coarser grid and take more photons; a narrower beam is brighter.
    photons = DOSE_PHOTONS * (SIZE / size) * scan.element / scan.beam
    encoder = TransmissionTomography(
        projection,
        photons_per_view=photons * scan.shares,
        learn=tuple(name for name in learn if name == "photons_per_view"),
    )
    return ImagingSystem(encoder, PoissonGaussianNoise(read_std=ELECTRONIC_PHOTONS), scenes)


def dose(system: ImagingSystem) -> float:
    """Photons sent through the field in all views."""
    encoder = system.encoder
    assert isinstance(encoder, TransmissionTomography)
    return float(encoder.photons().sum()) * encoder.projection.bins


def chests(n_scenes: int, size: int, seed: int) -> Tensor:
    """Sections (n, 1, row, column) of rat-sized chests with texture, 1 / mm."""
    generator = torch.Generator().manual_seed(seed)
    drawn = body_slices(
        n_scenes,
        (size, size),
        pixel_mm=FIELD_MM * SCALE / size,
        attenuation_per_mm=ATTENUATION_PER_MM,
        generator=generator,
    )
    return drawn + TEXTURE * ATTENUATION_PER_MM["water"] * torch.rand(drawn.shape, generator=generator)


def tooth_sections(path: Path, n_scenes: int, size: int, seed: int = 0) -> Tensor:
    """Two sections of a tooth, turned, mirrored, shifted and scaled at random: (n, 1, row, column), 1 / mm.

    Their thickness is the measured one: a pixel of the reconstruction attenuates as it did in the beam.
    """
    scan = read_scan(path)
    images = torch.stack([reconstruct(scan, row).image for row in (0, 1)]).clamp(min=0).float()
    generator = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n_scenes, generator=generator)

    turn, mirror = between(0, 2 * math.pi), torch.where(between(-1, 1) > 0, 1.0, -1.0)
    # The tooth is half as wide as its image.
    scale, stretch = between(0.6, 0.75), between(0.87, 1.15)
    cosine, sine = scale * turn.cos(), scale * turn.sin()
    place = torch.stack(
        [
            torch.stack([cosine * stretch * mirror, -sine / stretch, between(-0.1, 0.1) + 0.05], -1),
            torch.stack([sine * stretch * mirror, cosine / stretch, between(-0.1, 0.1) - 0.08], -1),
        ],
        1,
    )
    fine = 4 * size
    sections = []
    for part in torch.arange(n_scenes).split(250):
        grid = torch.nn.functional.affine_grid(place[part], [len(part), 1, fine, fine], align_corners=False)
        source = images[part % 2][:, None]
        sampled = torch.nn.functional.grid_sample(source, grid, align_corners=False)
        # Thickness of a sample in pixels of the reconstruction, kept whatever the scale.
        sections.append(torch.nn.functional.avg_pool2d(sampled, 4))
    bins_per_pixel = 0.675 * images.shape[-1] / size
    return torch.cat(sections) * bins_per_pixel * size / FIELD_MM


# ---- the traditional figures ----


def metrics(scenes: Tensor) -> dict[str, Metric]:
    """SNR, noise-equivalent quanta, condition number, coherence, and the largest gap between angles."""
    middle = scenes.mean(0)
    shape = tuple(middle.shape)

    def mean_of(system: ImagingSystem) -> Tensor:
        with torch.no_grad():
            return system.encoder(system.scenes[:256])

    def quanta(system: ImagingSystem) -> float:
        mean = mean_of(system)
        return float((mean.square() / (mean + ELECTRONIC_PHOTONS**2)).flatten(1).sum(1).mean())

    return {
        "snr_db": lambda system: snr_db(mean_of(system), system.noise),  # type: ignore[arg-type]
        "neq": quanta,
        "condition_number": lambda system: condition_number(system.encoder, shape, at=middle),
        "coherence": lambda system: coherence(jacobian(system.encoder, shape, at=middle)),
        "largest_gap_deg": largest_gap_degrees,
    }


LESS_IS_BETTER = ("condition_number", "coherence", "largest_gap_deg")


def coherence(matrix: Tensor) -> float:
    """Root mean square cosine between the columns of `matrix` that are not dark."""
    columns = matrix[:, matrix.norm(dim=0) > 1e-9 * matrix.norm()]
    columns = columns / columns.norm(dim=0)
    gram = columns.T @ columns
    n = len(gram)
    return math.sqrt(float(gram.square().sum() - n) / (n * (n - 1)))


def largest_gap_degrees(system: ImagingSystem) -> float:
    """Between neighbouring views that get a tenth of their share of the dose or more, half a turn being round.

    Resolution goes with its inverse: Crowther, DeRosier and Klug 1970, doi:10.1098/rspa.1970.0119.
    """
    encoder = system.encoder
    assert isinstance(encoder, TransmissionTomography)
    photons = encoder.photons().detach()
    used = encoder.projection.angles_rad.detach()[photons > 0.1 * photons.mean()].remainder(math.pi).sort().values
    return math.degrees(float(torch.cat([used, used[:1] + math.pi]).diff().max()))


# ---- the study ----


def main(
    out: Path, *, quick: bool = False, n_seeds: int = 3, data: Path = ROOT.parent / "shared" / "data"
) -> tuple[Study, Comparison]:
    """Ranking on chests and on the tooth, and design; files go into `out`."""
    # The closed form needs more scenes than the 48 views have values.
    size, n_scenes = (QUICK_SIZE, 640) if quick else (SIZE, 4000)
    decoder = UNetDecoder(channels=4, n_steps=8) if quick else UNetDecoder(channels=8, n_steps=N_DECODER_STEPS)
    n_seeds = 1 if quick else n_seeds
    water = ATTENUATION_PER_MM["water"]

    def ranking(name: str, scenes: Tensor, decoder: Decoder, seeds: int, source: str, bound: bool) -> Study:
        systems = {design: scanner(scan, scenes) for design, scan in DESIGNS.items()}
        print(f"{name}: {source}")
        return run_study(
            name,
            systems,
            Reconstruction(scenes / water),
            metrics(scenes),
            quick=quick,
            out=out,
            decoder=decoder,
            n_seeds=seeds,
            method="gaussian",
            lower_is_better=LESS_IS_BETTER,
            bound=bound,
            extra={"scenes": source, "photons_sent": {design: dose(system) for design, system in systems.items()}},
        )

    found = ranking("ct_dose", chests(n_scenes, size, 1), decoder, n_seeds, "drawn chests of rat size", True)
    views = 8 if quick else 16
    start_scan = Scan(even(views), equal(views))
    start = scanner(start_scan, chests(200 if quick else 1200, size, 2), ("angles_rad", "photons_per_view"))
    comparison, _ = compare_designs(
        "ct_dose",
        start,
        chests(300 if quick else 3000, size, 3),
        Reconstruction(start.scenes / water),
        Settings(
            constraints={
                "photons_per_view": Simplex(DOSE_PHOTONS * SIZE / size),
            },
            n_steps=80,
            batch_size=200 if quick else 768,
            objective="gaussian",
            judge_method="gaussian",
            learning_rate=0.1,
        ),
        quick=quick,
        out=out,
        decoder=decoder,
        n_seeds=n_seeds,
        method="gaussian",
    )
    path = data / "ct" / "tooth.h5"
    if path.is_file() and not quick:
        teeth = tooth_sections(path, n_scenes, size)
        ranking("ct_dose_tooth", teeth, LinearDecoder(), 1, "sections of a measured tooth, all of one", False)
    return found, comparison


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for table, figure and JSON")
    parser.add_argument("--quick", action="store_true", help="few scenes, steps and seeds, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3, help="splits, noise draws and decoders per design")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real data")
    given = parser.parse_args()
    torch.set_num_threads(1)
    main(given.out, quick=given.quick, n_seeds=given.seeds, data=given.data)
