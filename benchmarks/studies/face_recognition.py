"""A camera that is to tell people apart: detail or light, and which bits say so?

A face 35 micrometres wide on the sensor, and 16 cameras at equal light: the exposure of each is set so that the whole
image has the same mean photo-electrons. What they do with these is different: pixels of five sizes, which share them
among more or fewer readouts; apertures, which cost sharpness by diffraction when they are small; a subject out of
focus; a lens with spherical aberration; a subject that moves during the exposure; and bursts of short exposures, which
are read more often. The list was written down before any score, each way to spoil an image at two strengths or at two
pixel sizes, and none was left out afterwards.

The one list is scored on two tasks. Reconstruction: the face at its full sampling, by the best linear estimate.
Identity: who it is, by logistic regression on principal components ("eigenfaces"). Beside the bits about the whole
scene stand the bits about the identity, I(identity; Z), and the traditional figures. The bits are those of a Gaussian
whose covariance depends on displacement: the one density that bears 4 as well as 1024 pixels of some hundred faces.

Then a camera that is out of focus, whose exposure time is fixed: its aperture trades light for sharpness. It is
designed twice. By all bits, on faces of strangers without names, and judged by bits and recognition of all people. And
by the bits about the identity, those of a Gaussian population of people on the photographs of half of them, and judged
by the bits about the identity and the recognition of the other half.

Found: the bits about the identity rank the cameras by recognition, which all bits together do less well, since they
count detail that no decision needs: pixels of 4.4 micrometres carry fewer bits than those of 2.2 and recognise more.
All bits together rank them by the error of the image, the better the less the estimate has to learn: one that is told
the sensor's noise follows them closer, the finest pixels gaining most, and more shifted copies change nothing. Where
readouts drown the image, the likelihoods of the known sensor give more bits about the identity than a classifier that
has to learn the noise can use.

Designed by all bits on strangers, the camera out of focus closes its aperture to about half: a quarter of the light,
and yet more bits about everything, more about the identity, and more faces named by the decoder of the list (a network
of convolutions sees no gain). Designed by the identity it closes it about as far and names as many; bits about who of
twenty people it is do not tell that gain from none.

    python benchmarks/studies/face_recognition.py [--quick] [--out DIR] [--seeds N] [--data DIR]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _design_study import DESIGNED, START, Comparison, Settings, compare_designs
from _face_identity import IdentityBits, design_by_identity, gain_text, identity_information
from _face_image import told_error, told_text
from _validation_study import Study, run_study
from torch import Tensor, nn

from bitlens import report
from bitlens._files import replace_file
from bitlens.densities import StationaryGaussianDensity
from bitlens.encoders import Camera, MotionSmear
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.systems.face_recognition_camera import face_scenes
from bitlens.validation import (
    Classification,
    LinearDecoder,
    LogisticDecoder,
    Reconstruction,
    condition_number,
    mtf50,
    point_response,
    reconstruction_bound,
    snr_db,
    source_entropy,
)

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
# Samples of the scenes, and the edge around a face that the PSF reaches into.
SAMPLE_UM, WAVELENGTH_NM, F_NUMBER, MARGIN = 1.1, 550.0, 4.0, 16
SIZE, COPIES, SHIFT = 32, 4, 2
# Mean photo-electrons of a whole image, read noise of a readout, dark signal of a pixel.
LIGHT, READ_ELECTRONS, DARK_ELECTRONS = 3000.0, 2.0, 0.01
# A bright scene at full aperture: a smaller one is not in the dark yet.
DESIGN_LIGHT, DESIGN_DEFOCUS = 60000.0, 1.5
BITS = "stationary_gaussian"
# Copies of each photograph that the bits about the identity are estimated from: more change little, and take long.
IDENTITY_COPIES = 2
SETTINGS = Settings(
    parameters=("aperture_radius",),
    n_steps=40,
    batch_size=200,
    objective="gaussian",
    learning_rate=0.2,
    # What ranks the list: 256 pixels of some hundred faces bear no density with more numbers.
    judge_method=BITS,
)
BY_IDENTITY = "designed by identity"


@dataclass(frozen=True)
class Design:
    """Samples per pixel side, aperture over the full one, waves of defocus and of spherical aberration (rms), the
    path of the subject in samples, and the readouts of the exposure."""

    samples: int
    aperture_radius: float = 1.0
    defocus_waves: float = 0.0
    spherical_waves: float = 0.0
    path_samples: float = 0.0
    n_frames: int = 1


DESIGNS = {
    "1.1 um": Design(1),
    "2.2 um": Design(2),
    "4.4 um": Design(4),
    "8.8 um": Design(8),
    "17.6 um": Design(16),
    "1.1 um, 4 frames": Design(1, n_frames=4),
    "2.2 um, 4 frames": Design(2, n_frames=4),
    "2.2 um, 16 frames": Design(2, n_frames=16),
    "2.2 um, f/8": Design(2, aperture_radius=0.5),
    "2.2 um, f/16": Design(2, aperture_radius=0.25),
    "2.2 um, 1 wave of defocus": Design(2, defocus_waves=1.0),
    "2.2 um, 2 waves of defocus": Design(2, defocus_waves=2.0),
    "4.4 um, 1 wave of defocus": Design(4, defocus_waves=1.0),
    "2.2 um, spherical aberration": Design(2, spherical_waves=0.3),
    "2.2 um, moving by 8.8 um": Design(2, path_samples=8.0),
    "4.4 um, moving by 8.8 um": Design(4, path_samples=8.0),
}


class Faces(NamedTuple):
    """Linear light (n, 1, row, column) with the edge, labels (n,), photograph of each (n,), and what they are."""

    scenes: Tensor
    labels: Tensor
    groups: Tensor
    source: str


def faces(file: Path | None, copies: int, size: int, seed: int = 0, photographs: slice = slice(None)) -> Faces:
    """`copies` of each photograph, shifted by up to `SHIFT` samples each way and mirrored at random."""
    found = face_scenes(file, size=(size, size), margin_samples=MARGIN + SHIFT)
    draws = torch.Generator().manual_seed(seed)
    scenes, labels = found.scenes[photographs], found.labels[photographs]
    side = size + 2 * MARGIN
    shifted = []
    for scene in scenes.repeat(copies, 1, 1, 1):
        row, column, mirrored = (int(torch.randint(n, (), generator=draws)) for n in (*([2 * SHIFT + 1] * 2), 2))
        part = scene[:, row : row + side, column : column + side]
        shifted.append(part.flip(2) if mirrored else part)
    source = "100 faces and 100 other patches of LFW" if file is None else "ORL faces, 40 people"
    return Faces(torch.stack(shifted), labels.repeat(copies), torch.arange(len(scenes)).repeat(copies), source)


def camera(design: Design, scenes: Tensor, photons: float, learn: tuple[str, ...] = ()) -> ImagingSystem:
    """The camera with `photons` photo-electrons on a pixel where the scene is 1, at full aperture."""
    lens = Camera(
        wavelength_nm=WAVELENGTH_NM,
        f_number=F_NUMBER,
        pixel_um=design.samples * SAMPLE_UM,
        aperture_radius=design.aperture_radius,
        defocus_waves=design.defocus_waves,
        zernike_waves={11: design.spherical_waves} if design.spherical_waves else None,
        exposure_photons=photons,
        dark_electrons=DARK_ELECTRONS,
        oversampling=design.samples,
        margin_pixels=MARGIN // design.samples,
        learn=learn,
    )
    encoder: nn.Module = lens
    if design.path_samples:
        encoder = nn.Sequential(MotionSmear(design.path_samples, boundary="zero"), lens)
    noise = PoissonGaussianNoise(read_std=READ_ELECTRONS * math.sqrt(design.n_frames))
    return ImagingSystem(encoder, noise, scenes)


def mean_of(system: ImagingSystem) -> Tensor:
    """Mean photo-electrons of all scenes, float64."""
    with torch.no_grad():
        return torch.cat([system.encoder(part) for part in system.scenes.split(256)]).double()


def light_of(system: ImagingSystem) -> float:
    """Mean photo-electrons of an image."""
    return float(mean_of(system).flatten(1).sum(1).mean())


def at_equal_light(design: Design, scenes: Tensor, light: float = LIGHT, learn: tuple[str, ...] = ()) -> ImagingSystem:
    """The camera whose exposure gives an image `light` photo-electrons on average."""
    dark = light_of(camera(design, torch.zeros_like(scenes[:1]), 1.0))
    per_photon = light_of(camera(design, scenes, 1.0)) - dark
    return camera(design, scenes, (light - dark) / per_photon, learn)


def target_of(scenes: Tensor) -> Tensor:
    """The face without its edge."""
    return scenes[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


def lens_of(system: ImagingSystem) -> Camera:
    """The camera, behind what moves."""
    lens = system.encoder[-1] if isinstance(system.encoder, nn.Sequential) else system.encoder
    assert isinstance(lens, Camera)
    return lens


def identity_bits(systems: Mapping[str, ImagingSystem], found: Faces, method: str) -> IdentityBits:
    """I(identity; Z) of each camera, from the first copies of each photograph."""
    kept = slice(IDENTITY_COPIES * (int(found.groups.max()) + 1))
    return identity_information(systems, found.labels[kept], found.groups[kept], method)


def metrics(
    systems: Mapping[str, ImagingSystem], found: Faces, task_bits: Mapping[str, float], size: int = SIZE
) -> dict[str, Any]:
    """The bits about the identity, and the traditional figures; frequencies in cycles per micrometre of the sensor."""
    shape = tuple(found.scenes.shape[1:])
    names = {id(system.encoder): name for name, system in systems.items()}

    def resolution(system: ImagingSystem) -> float:
        samples = lens_of(system).oversampling
        response = point_response(system.encoder, shape, samples_per_pixel=samples)
        return mtf50(response, samples_per_pixel=samples) / (samples * SAMPLE_UM)

    def signal(system: ImagingSystem) -> float:
        return snr_db(mean_of(system), system.noise)  # type: ignore[arg-type]

    part = (1, size + 2 * MARGIN, size + 2 * MARGIN)
    conditions = {name: condition_number(system.encoder, part) for name, system in systems.items()}
    return {
        "identity bits": lambda system: task_bits[names[id(system.encoder)]],
        "MTF50 (cycles per um)": resolution,
        "snr_db": signal,
        "condition_number": lambda system: conditions[names[id(system.encoder)]],
        "pixels across": lambda system: float(target_of(found.scenes).shape[-1] // lens_of(system).oversampling),
    }


def bound_table(image: Study, task: Reconstruction, found: Faces) -> str:
    """Each camera's error beside the least that its bits allow, by the one density that fits so many pixels quickly."""
    target = task.targets(found.scenes)
    entropy = source_entropy(
        target,
        densities=(StationaryGaussianDensity(),),
        groups=found.groups,
        generator=torch.Generator().manual_seed(0),
    )
    error, bits = image.result.mean("mse"), image.result.mean("bits")
    rows = tuple(
        (
            name,
            f"{error[name]:.4f}",
            f"{reconstruction_bound(bits[name], entropy_nats=entropy.nats, n_values=entropy.n_values):.4f}",
        )
        for name in error
    )
    return report.to_text(report.Table("", ("camera", "mean squared error", "least that the bits allow"), rows))


def correlations(identity: Study, reconstruction: Study) -> dict[str, dict[str, Any]]:
    """Spearman of each figure with the accuracy and with the PSNR, and their intervals."""
    table: dict[str, dict[str, Any]] = {}
    for by in ("bits", *identity.result.metrics):
        table[by] = {}
        for score, study in (("accuracy", identity), ("psnr", reconstruction)):
            found = study.result.rank_correlation(score, by=by)
            table[by][score] = {"spearman": found.spearman, "interval": found.interval}
    return table


def correlation_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per figure."""

    def shown(one: Mapping[str, Any]) -> str:
        if one["spearman"] is None:
            return "one value"
        interval = "" if one["interval"] is None else " [{:.2f}, {:.2f}]".format(*one["interval"])
        return f"{one['spearman']:.2f}{interval}"

    rows = tuple((by, shown(row["accuracy"]), shown(row["psnr"])) for by, row in found.items())
    return report.to_text(report.Table("", ("Spearman of", "with identity (accuracy)", "with the image (PSNR)"), rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the list on both tasks, then the design."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for tables, figures and JSON")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with faces_orl/orl_faces.npz")
    parser.add_argument("--quick", action="store_true", help="few scenes, steps and seeds, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3, help="splits, noise draws and decoders per design")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    run(given.out, data=given.data, quick=given.quick, n_seeds=given.seeds)


def by_identity(designed: Mapping[str, ImagingSystem], found: Faces, method: str, common: Mapping[str, Any]) -> str:
    """The aperture designed by the identity of half of the people, judged with the others by that of the other half."""
    people = found.labels.unique()
    # Faces and other patches are two "people" that cannot be halved: then half of the photographs.
    first = found.labels < people[len(people) // 2] if len(people) > 3 else found.groups % 2 == 0
    start = designed[START]
    chosen = design_by_identity(
        ImagingSystem(start.encoder, start.noise, found.scenes[first]),
        found.labels[first],
        n_steps=4 if common["quick"] else SETTINGS.n_steps,
        learning_rate=0.2,
    )
    judged = Faces(found.scenes[~first], found.labels[~first], found.groups[~first].unique(return_inverse=True)[1], "")
    systems = {
        name: ImagingSystem(system.encoder, system.noise, judged.scenes)
        for name, system in (
            *designed.items(),
            (BY_IDENTITY, ImagingSystem(chosen.encoder, chosen.noise, start.scenes)),
        )
    }
    study = run_study(
        "face_recognition_other_half",
        systems,
        Classification(judged.labels),
        {},
        decoder=LogisticDecoder(),
        bound=False,
        **{**common, "groups": judged.groups},
    )
    # All copies: as many rows as the whole list of people has in its first ones.
    bits = identity_information(systems, judged.labels, judged.groups, method)
    accuracy = study.result.mean("accuracy")
    radii = {name: _aperture_radius(system) for name, system in systems.items()}
    sigmas, text = gain_text(bits, START, BY_IDENTITY)
    lines = [f"  {name}: aperture {radii[name]:.2f}, accuracy {accuracy[name]:.3f}" for name in systems]
    text = f"\ndesigned by the identity of half of the people, judged by the other half:\n{text}" + "\n".join(lines)
    values = {"accuracy": accuracy, "aperture_radius": radii, "gain_sigmas": sigmas}
    return bits._asdict() | values, text + "\n"


def _aperture_radius(system: ImagingSystem) -> float:
    (lens,) = (part for part in system.encoder.modules() if isinstance(part, Camera))  # type: ignore[union-attr]
    return float(lens.aperture_radius.detach())


def run(out: Path, *, data: Path = DATA, quick: bool = False, n_seeds: int = 3) -> tuple[Study, Study, Comparison]:
    """The list scored on identity and on reconstruction, and the design; all files go into `out`."""
    file: Path | None = data / "faces_orl" / "orl_faces.npz"
    assert file is not None
    copies = 1 if quick else COPIES
    if file.is_file():
        # Designed on other people's faces than those that judge.
        found = faces(file, copies, SIZE, photographs=slice(100) if quick else slice(None))
        others = faces(None, 4, SIZE, seed=1, photographs=slice(100))
    else:
        found = faces(None, copies, SIZE, photographs=slice(0, None, 2))
        others = faces(None, 4, SIZE, seed=1, photographs=slice(1, None, 2))
    seeds = 1 if quick else n_seeds
    systems = {name: at_equal_light(design, found.scenes) for name, design in DESIGNS.items()}
    method = "known_channel" if quick else "auto"
    figures = metrics(systems, found, identity_bits(systems, found, method).bits, 16 if quick else SIZE)
    identity_task = Classification(found.labels)
    image_task = Reconstruction(target_of(found.scenes))
    extra = {"scenes": found.source, "designed_on": others.source}
    print(f"judged on {found.source}; designed on {others.source}\n")
    common: dict[str, Any] = {"quick": quick, "out": out, "groups": found.groups, "n_seeds": seeds, "method": BITS}
    image = run_study(
        "face_recognition_image",
        systems,
        image_task,
        figures,
        decoder=LinearDecoder(),
        bound=False,
        extra=extra,
        **common,
    )
    identity = run_study(
        "face_recognition_identity", systems, identity_task, figures, decoder=LogisticDecoder(), extra=extra, **common
    )
    table = correlations(identity, image)
    text = correlation_table(table)
    errors = {
        name: told_error(mean_of(system), system.noise, image_task.targets(found.scenes), found.groups)  # type: ignore[arg-type]
        for name, system in systems.items()
    }
    text += "\n" + told_text(image.result.mean("bits"), image.result.mean("psnr"), errors)
    print(text)
    replace_file(out / "face_recognition.txt", text.encode())
    replace_file(out / "face_recognition.json", json.dumps({**extra, "spearman": table}, indent=2).encode())
    start = at_equal_light(Design(2, defocus_waves=DESIGN_DEFOCUS), found.scenes, DESIGN_LIGHT, ("aperture_radius",))
    # The decoder of the list: nothing is trained end to end here, which any other than a network could not be.
    decoder: Any = LogisticDecoder()
    comparison, _ = compare_designs(
        "face_recognition", start, others.scenes, identity_task, SETTINGS, decoder=decoder, **common
    )
    both = identity_bits({name: comparison.systems[name] for name in (START, DESIGNED)}, found, method)
    sigmas, text = gain_text(both, START, DESIGNED)
    halves, more = by_identity(comparison.systems, found, method, common)
    text = f"designed by all bits, on strangers:\n{text}{more}"
    print(text)
    replace_file(out / "face_recognition_by_identity.txt", text.encode())
    values = {"by all bits": both._asdict() | {"gain_sigmas": sigmas}, "by identity": halves}
    replace_file(out / "face_recognition_by_identity.json", json.dumps(values, indent=2).encode())
    if not quick:
        text = bound_table(image, image_task, found)
        print(text)
        replace_file(out / "face_recognition_bound.txt", text.encode())
    return identity, image, comparison


if __name__ == "__main__":
    main()
