"""Pupils of a fluorescence microscope at equal light: do bits rank apertures, aberrations, phase plates and pixels?

    python benchmarks/studies/fluorescence_pupil.py [--quick] [--out FOLDER] [--seeds N] [--data FOLDER]

A widefield microscope looks at nuclei. Wanted is their image in focus, on pixels of 0.65 um. Every design brings the
camera the same mean number of photo-electrons in the same field: a smaller aperture waits for longer, a larger pixel
takes the light of those that it replaces, and their background. The field diaphragm is closed to the field.

The rule of the list (`DESIGNS`), laid down before any score: apertures alone, from 0.1 to 0.4; then wide apertures that
are spoilt or engineered in one way each, mildly and badly: focus beside the middle layer, spherical aberration, coma,
astigmatism, a turbid specimen; phase plates for depth (cubic) or for points (vortex, two halves in antiphase); larger
pixels.

Scenes: photographs of stained nuclei with the outline of each, a sample taken as 0.325 um, their grain smoothed;
phantoms where these are absent. Whole photographs train or test. The list is scored on three tasks: a flat specimen; a
thick one, every nucleus in one of three layers 5 um apart (with the light that is nearer to it than to any other), so
that no design has all of them in focus; and to name the layer of the thick one that shines most. Then the Zernike terms
of a deformable mirror are designed by information, from a specimen with spherical aberration, and trained end to end
from there (`_fluorescence_mirror`).

What was found out for the flat specimen. An earlier form had the coarse pixels too low by bits, below what the MTF50
ranked. Four causes were told apart, by bits and closed forms. (1) The density: a Gaussian, or a mixture of few,
of the counts has one variance for a pixel, bright or dark, and takes the quiet noise of dark pixels for information, by
a third of all bits for fine pixels and by little for coarse ones. The bound of stabilised values
(`_stabilized_information`) is that much lower on the same images, and is used. (2) Light from beside the field: in
closed form of Gaussian scenes up to three quarters of the bits of a wide PSF were about what lies outside of a field of
8 pixels, which nobody asks for; with that part left out the order agreed with the error. Hence the diaphragm. (3) Few
images: the slack of the mixture falls with their number, more for fine pixels, and in fields of 16 pixels from 900
images it differed by PSF as much as the middle of the list does by bits; the list, run so first, had the bits no better
than the mean transfer. Hence fields of 8 pixels and 3000 images. (4) The grain of the photographs' own camera counts as
specimen; it lifted the designs that pass high frequencies with little contrast. The field was made 8 pixels again,
the grain smoothed and the U-Net trained for longer after the scores at 16 were seen.

In the thick specimen bits count in which layer a nucleus lies, by how it is blurred; the image in focus does not ask
for that, and bits rank its designs loosely. Which layer shines is one question of 1.6 bits, of which all the bits
together say little. The mirror designed by information takes back the aberration of the specimen.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from _fluorescence_microscope import DESIGNS, figure, metrics, microscope
from _fluorescence_mirror import design_mirror
from _fluorescence_scenes import Scenes, brightest_layer, flattened, in_focus, read_scenes
from _stabilized_information import with_stabilized_bits
from _validation_study import arguments

from bitlens import plots, report
from bitlens._files import replace_file
from bitlens.systems import ImagingSystem
from bitlens.validation import (
    Classification,
    ClassifierDecoder,
    Decoder,
    LinearDecoder,
    LogisticDecoder,
    Reconstruction,
    UNetDecoder,
    ValidationResult,
    implied_bounds,
    validate,
)

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
PIXELS, QUICK_PIXELS = 8, 4
N_SCENES, QUICK_SCENES = 3000, 90
DECODER, CLASSIFIER = UNetDecoder(channels=16, n_steps=300), ClassifierDecoder(channels=16, n_steps=150)
LESS_IS_BETTER = ("condition_number",)
ONE_GAUSSIAN = "bits of one Gaussian"


def rank(out: Path, scenes: Scenes, *, quick: bool, seeds: int) -> dict[str, ValidationResult]:
    """The list for the flat and the layered specimen, scored by the image in focus; the latter by the layer too."""
    out.mkdir(parents=True, exist_ok=True)
    target = Reconstruction(in_focus(scenes.scenes), data_range=1.0)
    found = {}
    for name, specimen in (("flat", flattened(scenes.scenes)), ("layered", scenes.scenes)):
        systems = {each: microscope(design, specimen) for each, design in DESIGNS.items()}
        replace_file(out / f"fluorescence_pupil_{name}_psf.png", report.to_png(figure(systems)))
        decoder: Decoder = LinearDecoder() if quick else DECODER
        given = _validated(
            name, systems, target, decoder, scenes, out, quick, seeds if name == "flat" else min(seeds, 2)
        )
        found[name] = _told_as_figure(with_stabilized_bits(given, systems, scenes.groups), given)
        bounds = None
        if not quick:
            draws = torch.Generator().manual_seed(0)
            implied = implied_bounds(found[name], target, scenes.scenes, groups=scenes.groups, generator=draws)
            bounds = {each: bound.limit for each, bound in implied.designs.items()}
        _write(out, name, found[name], scenes, bounds)
    # The bits of the layered specimen answer both questions.
    task = Classification(brightest_layer(scenes.scenes))
    classifier: Decoder = LogisticDecoder() if quick else CLASSIFIER
    given = _validated("which_layer", systems, task, classifier, scenes, out, quick, min(seeds, 2))
    bits = {(row.design, row.seed): row for row in found["layered"].rows}
    rows = tuple(
        dataclasses.replace(bits[row.design, row.seed], scores=row.scores, seconds=row.seconds) for row in given.rows
    )
    found["which"] = _told_as_figure(dataclasses.replace(given, rows=rows), given)
    _write(out, "which_layer", found["which"], scenes, None)
    return found


def _validated(
    name: str,
    systems: Mapping[str, ImagingSystem],
    task: Reconstruction | Classification,
    decoder: Decoder,
    scenes: Scenes,
    out: Path,
    quick: bool,
    seeds: int,
) -> ValidationResult:
    return validate(
        systems,
        task,
        decoder=decoder,
        n_seeds=min(seeds, 1) if quick else seeds,
        groups=scenes.groups,
        method="gaussian",
        metrics=metrics(),
        lower_is_better=LESS_IS_BETTER,
        generator=torch.Generator().manual_seed(0),
        checkpoint=None if quick else out / f"fluorescence_pupil_{name}_rows.json",
    )


def _told_as_figure(result: ValidationResult, gaussian: ValidationResult) -> ValidationResult:
    """With the closed form of one Gaussian among the figures that the bits are held against."""
    return dataclasses.replace(result, metrics={ONE_GAUSSIAN: gaussian.mean("bits"), **result.metrics})


def _write(out: Path, name: str, result: ValidationResult, scenes: Scenes, bounds: Mapping[str, float] | None) -> None:
    """The table, the figure and the JSON of one ranking."""
    title = f"fluorescence_pupil_{name}"
    text = f"{title}\n\n{result.table()}\n"
    if bounds is not None:
        errors = result.mean("mse")
        heads = ("design", "mse", "least that the bits allow")
        lines = tuple((each, f"{errors[each]:.4g}", f"{bounds[each]:.4g}") for each in result.designs)
        text += f"\n{report.to_text(report.Table('', heads, lines))}\n"
    print(text)
    values = result.to_dict() | {
        "bounds": bounds,
        "advantages": [dataclasses.asdict(result.advantage(metric)) for metric in result.metrics],
        "extra": {"scenes": scenes.source, "designs": {each: design._asdict() for each, design in DESIGNS.items()}},
    }
    replace_file(out / f"{title}.txt", text.encode())
    replace_file(out / f"{title}.png", report.to_png(plots.validation(result, bounds, title=title)))
    replace_file(out / f"{title}.json", json.dumps(values, indent=2, allow_nan=False).encode())


def run(out: Path, data: Path = DATA, *, quick: bool = False, seeds: int = 3) -> None:
    """The list on its tasks, the mirror, and their files."""
    pixels, n_scenes = (QUICK_PIXELS, QUICK_SCENES) if quick else (PIXELS, N_SCENES)
    scenes = read_scenes(data, n_scenes, pixels)
    print(f"scenes: {scenes.source}\n")
    rank(out, scenes, quick=quick, seeds=seeds)
    design_mirror(out, data, quick=quick, seeds=seeds)


def main() -> None:
    """Everything, from the command line."""
    given = arguments(__doc__, DATA, "fluorescence/")
    torch.set_num_threads(given.threads)
    run(given.out, given.data, quick=given.quick, seeds=given.seeds)


if __name__ == "__main__":
    main()
