"""Pattern sets of a single-pixel camera: one list of designs, scored on two tasks, and designed by information.

64 patterns for the 256 pixels of an image (25 %), shown within one exposure; time is equal for all sets and light is
not: a set that opens few mirrors wastes it, which is a property of the set. The rule of the list, laid down before any
score: sets in use (Hadamard in several orders, random, raster, cosines, S-matrix), each family in a better and a worse
form: fine and coarse, dense and sparse, the low half of an ordering and the high one; and sets known to lack rank.

Images: handwritten digits (MNIST, 16 x 16) for both tasks, to recover the image and to name the digit; the digits that
scikit-learn bundles where MNIST is absent. Bits about the image and bits about the label are estimated without regard
to any decoder and held against PSNR and accuracy.

Designed by information, from no label: grey patterns and binary ones, against their start and against training end to
end with the decoder, for either task, at 32 x 32 mirrors, what MNIST's 28 pixels are padded to, from 4000 images, with
the decoder's own 16 channels and batches of 32. What each way costs is reported twice: the camera alone, and the camera
with the decoder that whoever wants pictures trains afterwards. And does the information-designed camera with a decoder
trained on half of the labelled images keep the accuracy of the one trained end to end on all of them?

What was found: bits rank both tasks well above any traditional figure, which all but ignore how scenes are spread over
the patterns; bits about the label rank the accuracy better still. For PSNR the bits stay below that, and neither
estimate, nor decoder, nor the digits' distribution is why: Gaussian images of the same mean and covariance, whose bits
and least errors are known exactly, part as far. Bits count the logarithm of what is learned of each mode of the images,
a squared error its variance: sets that look at few modes again and again gain bits and no picture, while one poor look
at every mode (2 x 2 mirrors at a time) gives few bits and a fair picture. Where this is why, the two must agree as soon
as no mode is known well: the exact ones do at a tenth of the light, and the whole list was therefore run again there
("dim"). And bits that stop counting where the picture is good enough, those about the image in noise as strong as
itself, must agree at full light: a column of the table, added after the cause was known.

The camera designed by information gives as good pictures as the one trained end to end when each gets a new decoder,
and making it takes a small part of the time and memory. That holds for the camera alone: a decoder trained for it as
long as the joint training takes all of the time and memory again, and gives the better pictures; one fitted in a third
of the steps saves time, gives worse ones, and saves no memory, since it is decoders that fill it, not cameras. To name
the digit, the camera trained on the labels of all its images is the better one, and its decoder so small that there is
little memory to save.

Half of the labels do not do: with as many labels the information-designed camera is about as accurate as the one
trained end to end, a little less so where there are many; with half of them it loses what the decoder would have
learned from the other half. Information needs no labels to choose the patterns, but the decoder still does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from _design_study import Limits, Settings, compare_designs
from _single_pixel_labels import half_the_labels, labels_text
from _single_pixel_patterns import SIZE, camera, hadamard_patterns, pattern_sets, read_images
from _single_pixel_whole import Way, whole_cost, whole_text
from _single_pixel_world import GaussianImages, coarse_bits, world_of, world_text
from _validation_study import Metric, arguments, run_study, standard_metrics
from torch import Tensor

from bitlens import estimate_task_information
from bitlens._files import replace_file
from bitlens.design import Binary
from bitlens.encoders import random_patterns
from bitlens.systems import ImagingSystem
from bitlens.validation import Classification, ClassifierDecoder, Cost, Reconstruction, UNetDecoder

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
METHOD = "gaussian_mixture"
LEARNED = "linear.shown.patterns"
# Where exact bits and exact errors agree.
DIM = 0.1
# Mirrors across and images of the designs.
DESIGN_SIZE, N_DESIGN_IMAGES = 32, 4000
# Of 0.003 to 0.1 the best on validation rows, grey and binary; the last tenth of the 1000 steps gains 2 % of the loss.
END_TO_END_RATE = 0.1
# Labelled images of the question about half of them.
LABELLED = (1000, 4000)
# Decoders of the designs, fewer than those of the list.
LONGER = {"reconstruction": UNetDecoder(n_steps=300), "classification": ClassifierDecoder(n_steps=600)}


def metrics(labels: Tensor | None, images: GaussianImages, task_method: str = "perceptron") -> dict[str, Metric]:
    """SNR, condition number, coherence, open share; no tradition: coarse bits, with `labels` those about them."""
    shape = (1, SIZE, SIZE)
    found = {name: standard_metrics(shape)[name] for name in ("snr_db", "condition_number")}
    found |= {"mutual coherence": coherence, "open share": lambda system: float(_patterns(system).mean())}
    found["coarse bits"] = lambda system: coarse_bits(system, images)
    if labels is not None:
        found["bits about the label"] = lambda system: task_bits(system, labels, task_method)
    return found


def _patterns(system: ImagingSystem) -> Tensor:
    encoder = system.encoder
    return dict([*encoder.named_parameters(), *encoder.named_buffers()])[LEARNED].detach()


def coherence(system: ImagingSystem) -> float:
    """max |<h_i, h_j>| / (|h_i| |h_j|) over the columns of the patterns less their mean, those of no light left out."""
    columns = _patterns(system).flatten(1)
    columns = columns - columns.mean()
    norm = columns.norm(dim=0)
    columns = columns[:, norm > 1e-9] / norm[norm > 1e-9]
    gram = (columns.T @ columns).abs()
    return float(gram.fill_diagonal_(0.0).max())


def task_bits(system: ImagingSystem, labels: Tensor, method: str) -> float:
    """Bits of the measurement about the label, a lower bound."""
    with torch.no_grad():
        mean = torch.cat([system.encoder(part) for part in system.scenes.split(256)])
        measured = system.noise.sample(mean, torch.Generator().manual_seed(0))  # type: ignore[operator]
    return estimate_task_information(measured, labels, method=method, generator=torch.Generator().manual_seed(0)).bits


def design_starts(size: int) -> dict[str, Tensor]:
    """The sets that designs start at: grey patterns at Hadamard ones, binary patterns at random ones."""
    random = random_patterns(64, (size, size), kind="binary", generator=torch.Generator().manual_seed(0))
    return {"grey": hadamard_patterns("cake_cutting", size), "binary": random.double()}


def run(out: Path, data: Path, *, quick: bool, seeds: int) -> dict[str, Any]:
    """One list on two tasks, the designs, and the question about labels; what the summary file says."""
    out.mkdir(parents=True, exist_ok=True)
    images, test = read_images(data)
    n_images = min(60 if quick else 1000, len(images.scenes) // 2)
    judged, others = images.part(0, n_images), images.part(n_images, 2 * n_images)
    sets = pattern_sets(others.scenes)
    world = GaussianImages.of(others.scenes)
    found: dict[str, Any] = {"images": images.source, "n_images": n_images}
    print(f"images: {images.source}; equal time, not equal light\n")
    lists = (
        ("reconstruction", Reconstruction(), None, 1.0),
        ("classification", Classification(judged.labels), judged.labels, 1.0),
        ("dim", Reconstruction(), None, DIM),
    )
    decoders = {
        "reconstruction": UNetDecoder(n_steps=3 if quick else 150),
        "classification": ClassifierDecoder(n_steps=20 if quick else 400),
    }
    decoders["dim"] = decoders["reconstruction"]
    for name, task, labels, light in lists:
        systems = {each: camera(patterns, judged.scenes, light=light) for each, patterns in sets.items()}
        result = run_study(
            f"single_pixel_{name}",
            systems,
            task,
            metrics(labels, world, "logistic" if quick else "perceptron"),
            quick=quick,
            out=out,
            decoder=decoders[name],
            n_seeds=1 if quick else seeds,
            method=METHOD,
            lower_is_better=("condition_number", "mutual coherence"),
            bound=not quick and light == 1.0,
            extra={"images": images.source, "equal": "time", "light": light},
        ).result
        found[name] = {"bits": result.mean("bits"), "score": result.mean(result.score_names[0])}
        if name == "reconstruction":
            found["world"] = world_of(systems, world, found[name]["bits"], found[name]["score"])
            _write(out, "single_pixel_world", world_text(found["world"]))
    found |= _designs(out, data, quick=quick, seeds=seeds)
    found["labels"] = []
    text = ""
    for n_labelled in (200,) if quick else LABELLED:
        if n_labelled > len(images.scenes):
            continue
        answer = half_the_labels(
            images,
            test.part(0, 200 if quick else 4000),
            sets["Hadamard, cake cutting"],
            n_labelled,
            2 if quick else max(5, seeds),
            quick,
        )
        found["labels"].append(answer)
        text += labels_text(answer)
    _write(out, "single_pixel_labels", text)
    replace_file(out / "single_pixel.json", json.dumps(found, indent=2).encode())
    return found


def _write(out: Path, name: str, text: str) -> None:
    print(text)
    replace_file(out / f"{name}.txt", text.encode())


def _designs(out: Path, data: Path, *, quick: bool, seeds: int) -> dict[str, Any]:
    """Each kind of patterns against its start and against training end to end; then with its decoder."""
    images, test = read_images(data, DESIGN_SIZE)
    n_judged = 40 if quick else min(1000, len(images.scenes) // 2)
    judged, others = images.part(0, n_judged), images.part(n_judged, n_judged + (60 if quick else N_DESIGN_IMAGES))
    starts = {
        kind: camera(patterns, judged.scenes, learn=True) for kind, patterns in design_starts(DESIGN_SIZE).items()
    }
    tasks = {
        "reconstruction": (Reconstruction(), Reconstruction()),
        "classification": (Classification(judged.labels), Classification(others.labels)),
    }
    kinds: tuple[tuple[str, Limits | None, str], ...] = (
        ("grey", None, "classification"),
        ("binary", {LEARNED: Binary()}, "reconstruction"),
        ("grey", None, "reconstruction"),
    )
    found: dict[str, Any] = {}
    for kind, constraints, name in kinds[: 2 if quick else 3]:
        decoder = UNetDecoder(channels=4, n_steps=3) if quick and name == "reconstruction" else LONGER[name]
        comparison, _ = compare_designs(
            f"single_pixel_{kind}_{name}",
            starts[kind],
            others.scenes,
            tasks[name][0],
            settings(name, constraints),
            quick=quick,
            out=out,
            # Of what it costs the short form measures one.
            design_task=None if quick and constraints else tasks[name][1],
            decoder=decoder,
            n_seeds=1 if quick else seeds,
            method=METHOD,
        )
        values = {key: value for key, value in vars(comparison).items() if key != "systems"}
        found[f"{kind}, {name}"] = values | {
            "saved_memory": comparison.saved_memory,
            "saved_time": comparison.saved_time,
        }
    way = Way(
        starts["grey"],
        others.scenes,
        test.part(0, 40 if quick else 1000).scenes,
        UNetDecoder(channels=4, n_steps=3) if quick else UNetDecoder(n_steps=300),
        settings("reconstruction", None, quick),
    )
    whole = whole_cost(way, measure=_unmeasured) if quick else whole_cost(way)
    _write(out, "single_pixel_whole", whole_text(whole))
    return {"designs": found, "whole": whole}


def settings(name: str, constraints: Limits | None, quick: bool = False) -> Settings:
    """How the designs are made for a task."""
    return Settings(
        constraints=constraints,
        n_steps=4 if quick else 150,
        learning_rate=0.1,
        objective="gaussian",
        end_to_end_steps=4 if quick else 1000,
        end_to_end_batch=32 if name == "reconstruction" else 64,
        end_to_end_rate={LEARNED: END_TO_END_RATE},
    )


def _unmeasured(function: Any) -> Cost:
    """The short form has no processes to spare."""
    return Cost(0.0, 0.0, 0, function())


def main() -> None:
    """Both tasks, the designs and the question about labels, and their files."""
    given = arguments(__doc__, DATA, "mnist/")
    torch.set_num_threads(given.threads)
    run(given.out, given.data, quick=given.quick, seeds=given.seeds)


if __name__ == "__main__":
    main()
