"""Pattern sets of a single-pixel camera: one list of designs, scored on two tasks, and designed by information.

64 patterns for the 256 pixels of an image (25 %), shown within one exposure; time is equal for all sets and light is
not: a set that opens few mirrors wastes it, which is a property of the set. The rule of the list, laid down before any
score: sets in use (Hadamard in several orders, random, raster, cosines, S-matrix), each family in a better and a worse
form: fine and coarse, dense and sparse, the low half of an ordering and the high one; and sets known to lack rank.

Images: handwritten digits (MNIST, 16 x 16) for both tasks, to recover the image and to name the digit; the digits that
scikit-learn bundles where MNIST is absent. Bits about the image and bits about the label are estimated without regard
to any decoder and held against PSNR and accuracy.

Designed by information, from no label: grey patterns and binary ones, against their start and against training end to
end with the decoder, for either task. And does the information-designed camera with a decoder trained on half of the
labelled images keep the accuracy of the one trained end to end on all of them?

What was found: bits rank both tasks well above any traditional figure, which all but ignore how scenes are spread over
the patterns; bits about the label rank the accuracy better still. Sets that look at few modes again and again are where
bits and scores part: each look at a mode that is known adds bits and no new digit, while one poor look at every mode (2
x 2 mirrors at a time) gives few bits and a fair picture. Designed by information from no label, patterns carry more
bits than any set of the list and serve both tasks, the binary ones as well as the grey.
Half of the labels do not do: with as many labels the information-designed camera is about as accurate as the one
trained end to end, a little less so where there are many; with half of them it loses what the decoder would have
learned from the other half. Information needs no labels to choose the patterns, but the decoder still does.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _design_study import Limits, Settings, compare_designs
from _validation_study import Metric, run_study, standard_metrics
from scipy import stats
from scipy.linalg import hadamard
from torch import Tensor
from torch.nn import functional

from bitlens import estimate_task_information, optimize_design
from bitlens._files import replace_file
from bitlens.design import Binary
from bitlens.encoders import Patterns, random_patterns
from bitlens.encoders.patterns import hadamard_order
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.systems.single_pixel_camera import PatternExposure, SinglePixelCamera
from bitlens.validation import Classification, ClassifierDecoder, Reconstruction, UNetDecoder, train_end_to_end

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SIZE, N_PATTERNS = 16, 64
EXPOSURE_PHOTONS, DARK_ELECTRONS, READ_ELECTRONS = 1e5, 1e5, 1000.0
METHOD = "gaussian_mixture"
LEARNED = "linear.shown.patterns"
# Of 0.003 and 0.01 the better on validation rows. At 1000 steps the loss of the class has long been flat; the image
# gained 0.5 dB from 500 to 1000 steps.
END_TO_END_RATE = 0.01
# Labelled images of the question about half of them.
LABELLED = (1000, 4000)
# Decoders of the designs, fewer than those of the list.
LONGER = {"reconstruction": UNetDecoder(n_steps=300), "classification": ClassifierDecoder(n_steps=600)}


class Images(NamedTuple):
    """Images (n, 1, row, column) in 0 to 1, their labels, and what they are."""

    scenes: Tensor
    labels: Tensor
    source: str

    def part(self, start: int, stop: int) -> Images:
        """Images start to stop."""
        return Images(self.scenes[start:stop], self.labels[start:stop], self.source)


def read_images(data: Path) -> tuple[Images, Images]:
    """Images to design, train and judge on in random order, and others for tests."""
    folder = data / "mnist"
    if (folder / "train-images-idx3-ubyte.gz").exists():
        return _mnist(folder, "train"), _mnist(folder, "t10k")
    from sklearn.datasets import load_digits

    digits = load_digits()
    scenes = torch.from_numpy(digits.images).float()[:, None] / 16
    scenes = functional.interpolate(scenes, size=(SIZE, SIZE), mode="bilinear", antialias=True)
    images = Images(scenes, torch.from_numpy(digits.target).long(), "digits bundled with scikit-learn")
    return images.part(0, 1300), images.part(1300, len(scenes))


def _mnist(folder: Path, part: str) -> Images:
    pixels = np.frombuffer(gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    scenes = torch.from_numpy(pixels.reshape(-1, 1, 28, 28)[:20000].copy()).float() / 255
    scenes = functional.interpolate(scenes, size=(SIZE, SIZE), mode="bilinear", antialias=True)
    return Images(scenes, torch.from_numpy(labels[:20000].copy()).long(), "MNIST")


def pattern_sets(others: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Every set of the study, (64, row, column) in 0 to 1; the principal components are those of `others`."""
    generator = torch.Generator().manual_seed(seed)
    natural = torch.from_numpy(hadamard(SIZE * SIZE)).double().unflatten(-1, (SIZE, SIZE))

    def ordered(order: Tensor) -> Tensor:
        return (1 + natural[order[:N_PATTERNS]]) / 2

    def random(kind: str = "binary", open_share: float = 0.5, feature: int = 1) -> Tensor:
        size = (SIZE // feature, SIZE // feature)
        found = random_patterns(N_PATTERNS, size, kind=kind, open_share=open_share, generator=generator)  # type: ignore[arg-type]
        return found.double().repeat_interleave(feature, 1).repeat_interleave(feature, 2)

    mirrors = torch.eye(SIZE * SIZE, dtype=torch.float64).unflatten(-1, (SIZE, SIZE))
    blocks = torch.eye(N_PATTERNS, dtype=torch.float64).unflatten(-1, (SIZE // 2, SIZE // 2))
    cosines = _cosines()
    lines = torch.eye(SIZE, dtype=torch.float64)
    rows, columns = lines[:, :, None].expand(-1, -1, SIZE), lines[:, None, :].expand(-1, SIZE, -1)
    components = torch.linalg.svd(others.flatten(1).double() - others.flatten(1).double().mean(0))[2][:N_PATTERNS]
    components = components / components.abs().amax(1, keepdim=True)
    cake = hadamard_order((SIZE, SIZE), "cake_cutting")
    return {
        "Hadamard, cake cutting": ordered(cake),
        "Hadamard, Walsh order": ordered(hadamard_order((SIZE, SIZE), "walsh")),
        "Hadamard, natural order": ordered(hadamard_order((SIZE, SIZE), "natural")),
        "Hadamard, drawn at random": ordered(torch.randperm(SIZE * SIZE, generator=generator)),
        "Hadamard, cake cutting, last": ordered(cake.flip(0)),
        "random binary": random(),
        "random binary, 5 % open": random(open_share=0.05),
        "random binary, 2 px": random(feature=2),
        "random binary, 4 px": random(feature=4),
        "random grey": random("uniform"),
        "every fourth mirror": mirrors.unflatten(0, (SIZE, SIZE))[::2, ::2].flatten(0, 1),
        "2 x 2 mirrors at a time": blocks.repeat_interleave(2, 1).repeat_interleave(2, 2),
        "S-matrix": _s_matrix(),
        "cosines, low": (1 + cosines[:N_PATTERNS]) / 2,
        "cosines, high": (1 + cosines[-N_PATTERNS:]) / 2,
        "rows and columns, twice": torch.cat([rows, columns, rows, columns]),
        "principal components": (1 + components.unflatten(-1, (SIZE, SIZE))) / 2,
    }


def _cosines() -> Tensor:
    """The products of cosines (256, row, column) in order of their frequency, each of largest value 1."""
    index = torch.arange(SIZE, dtype=torch.float64)
    one = torch.cos(math.pi * (index + 0.5) * index[:, None] / SIZE)
    products = torch.einsum("ir,jc->ijrc", one, one).flatten(0, 1)
    frequency = (index[:, None].square() + index.square()).flatten()
    products = products[frequency.argsort(stable=True)]
    return products / products.abs().amax((1, 2), keepdim=True)


def _s_matrix() -> Tensor:
    """64 shifts of a maximal-length sequence of 255 and a closed mirror; feedback 8, 6, 5, 4."""
    register, sequence = [1] * 8, []
    for _ in range(255):
        sequence.append(register[-1])
        register = [register[7] ^ register[5] ^ register[4] ^ register[3], *register[:-1]]
    code = torch.tensor(sequence, dtype=torch.float64)
    shifted = torch.stack([code.roll(4 * shift) for shift in range(N_PATTERNS)])
    return functional.pad(shifted, (0, 1)).unflatten(-1, (SIZE, SIZE))


def camera(patterns: Tensor, scenes: Tensor, *, learn: bool = False) -> ImagingSystem:
    """The camera that shows `patterns` within one exposure."""
    shown = Patterns(patterns, learn=("patterns",) if learn else ())
    linear = PatternExposure(shown, exposure_photons=EXPOSURE_PHOTONS)
    return ImagingSystem(
        SinglePixelCamera(linear, dark_electrons=DARK_ELECTRONS), PoissonGaussianNoise(read_std=READ_ELECTRONS), scenes
    )


def metrics(labels: Tensor | None, task_method: str = "perceptron") -> dict[str, Metric]:
    """SNR, condition number, mutual coherence and open share; with `labels` the bits about them, no tradition."""
    shape = (1, SIZE, SIZE)
    found = {name: standard_metrics(shape)[name] for name in ("snr_db", "condition_number")}
    found |= {"mutual coherence": coherence, "open share": lambda system: float(_patterns(system).mean())}
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


def half_the_labels(
    images: Images, test: Images, start: Tensor, n_labelled: int, seeds: int, quick: bool
) -> dict[str, Any]:
    """Test accuracy of each camera by the number of labelled images its decoder learns from, for every seed.

    Each seed has other images, start of the decoder and noise; the information design sees the same images as training
    end to end, without their labels. "retrained": a new decoder for the camera that was trained end to end.
    """
    accuracies: dict[str, list[float]] = {}
    steps = (20, 20, 8) if quick else (600, 1000, 150)
    decoder = ClassifierDecoder(n_steps=steps[0])
    for seed in range(seeds):
        rows = torch.randperm(len(images.scenes), generator=torch.Generator().manual_seed(seed))[:n_labelled]
        scenes, labels = images.scenes[rows], images.labels[rows]
        begun = camera(start, scenes, learn=True)
        informed = optimize_design(
            *begun,  # type: ignore[arg-type]
            n_steps=steps[2],
            learning_rate=0.1,
            objective="gaussian",
            judge_scenes=scenes[:40],
            generator=torch.Generator().manual_seed(seed),
        ).encoder
        found: dict[str, float] = {}
        half = n_labelled // 2
        for count, name in ((n_labelled, "all"), (half, "half")):
            trained = train_end_to_end(
                begun.encoder,
                begun.noise,  # type: ignore[arg-type]
                scenes[:count],
                Classification(labels[:count]),
                decoder,
                n_steps=steps[1],
                learning_rate=END_TO_END_RATE,
                n_test=1,
                batch_size=64,
                generator=torch.Generator().manual_seed(seed),
            )
            measured_test = _measured(trained.encoder, test.scenes, seed)
            found[f"end to end, {name}"] = _accuracy(trained.decoder(measured_test), test.labels)
            cameras = (("start", begun.encoder), ("information", informed), ("end to end, retrained", trained.encoder))
            for kind, encoder in cameras:
                fitted = decoder.fit(
                    _measured(encoder, scenes[:count], seed + 1),
                    labels[:count],
                    generator=torch.Generator().manual_seed(seed),
                )
                found[f"{kind}, {name}"] = _accuracy(fitted(_measured(encoder, test.scenes, seed)), test.labels)
        for name, value in found.items():
            accuracies.setdefault(name, []).append(value)
    differences = {
        f"information, {share} less {other}, all": _interval(
            np.subtract(accuracies[f"information, {share}"], accuracies[f"{other}, all"])
        )
        for share in ("half", "all")
        for other in ("end to end", "end to end, retrained")
    }
    return {"n_labelled": n_labelled, "accuracy": accuracies, "differences": differences}


def _measured(encoder: Any, scenes: Tensor, seed: int) -> Tensor:
    with torch.no_grad():
        mean = torch.cat([encoder(part) for part in scenes.split(256)])
        return PoissonGaussianNoise(read_std=READ_ELECTRONS).sample(mean, torch.Generator().manual_seed(seed))


def _accuracy(log_probability: Tensor, labels: Tensor) -> float:
    return float((log_probability.argmax(1) == labels).double().mean())


def _interval(values: np.ndarray) -> dict[str, float]:
    """Mean over seeds and its 95 % interval by Student's t."""
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return {"mean": mean, "low": -1.0, "high": 1.0}
    half = float(stats.t.ppf(0.975, count - 1)) * float(values.std(ddof=1)) / math.sqrt(count)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def labels_text(found: dict[str, Any]) -> str:
    """The accuracies and their differences in words."""
    lines = [
        f"{found['n_labelled']} labelled images, test accuracy, mean over {len(found['accuracy']['start, all'])} seeds"
    ]
    lines += [f"  {name}: {np.mean(values):.4f}" for name, values in sorted(found["accuracy"].items())]
    lines += [
        f"  {name}: {value['mean']:+.4f} [{value['low']:+.4f}, {value['high']:+.4f}]"
        for name, value in found["differences"].items()
    ]
    return "\n".join(lines) + "\n"


def run(out: Path, data: Path, *, quick: bool, seeds: int) -> dict[str, Any]:
    """One list on two tasks, the designs, and the question about labels; what the summary file says."""
    out.mkdir(parents=True, exist_ok=True)
    images, test = read_images(data)
    n_images = min(60 if quick else 1000, len(images.scenes) // 2)
    judged, others = images.part(0, n_images), images.part(n_images, 2 * n_images)
    sets = pattern_sets(others.scenes)
    systems = {name: camera(patterns, judged.scenes) for name, patterns in sets.items()}
    decoders = {
        "reconstruction": UNetDecoder(n_steps=3 if quick else 150),
        "classification": ClassifierDecoder(n_steps=20 if quick else 400),
    }
    tasks = {
        "reconstruction": (Reconstruction(), Reconstruction()),
        "classification": (Classification(judged.labels), Classification(others.labels)),
    }
    found: dict[str, Any] = {"images": images.source, "n_images": n_images}
    print(f"images: {images.source}; equal time, not equal light\n")
    for name, (task, _) in tasks.items():
        result = run_study(
            f"single_pixel_{name}",
            systems,
            task,
            metrics(judged.labels if name == "classification" else None, "logistic" if quick else "perceptron"),
            quick=quick,
            out=out,
            decoder=decoders[name],
            n_seeds=1 if quick else seeds,
            method=METHOD,
            lower_is_better=("condition_number", "mutual coherence"),
            bound=not quick,
            extra={"images": images.source, "equal": "time"},
        ).result
        found[name] = {"bits": result.mean("bits"), "score": result.mean(result.score_names[0])}
    found["designs"] = {}
    kinds: tuple[tuple[str, str, Limits | None, str], ...] = (
        ("grey", "Hadamard, cake cutting", None, "classification"),
        ("binary", "random binary", {LEARNED: Binary()}, "reconstruction"),
        ("grey", "Hadamard, cake cutting", None, "reconstruction"),
    )
    for kind, begin, constraints, name in kinds[: 2 if quick else 3]:
        found["designs"][f"{kind}, {name}"] = _design(
            f"single_pixel_{kind}_{name}",
            camera(sets[begin], judged.scenes, learn=True),
            others.scenes,
            tasks[name],
            constraints,
            decoders[name] if quick else LONGER[name],
            out,
            quick,
            seeds,
        )
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
    print(text)
    replace_file(out / "single_pixel_labels.txt", text.encode())
    replace_file(out / "single_pixel.json", json.dumps(found, indent=2).encode())
    return found


def _design(
    name: str,
    start: ImagingSystem,
    scenes: Tensor,
    tasks: tuple[Any, Any],
    constraints: Limits | None,
    decoder: UNetDecoder | ClassifierDecoder,
    out: Path,
    quick: bool,
    seeds: int,
) -> dict[str, Any]:
    comparison, _ = compare_designs(
        name,
        start,
        scenes,
        tasks[0],
        Settings(
            constraints=constraints,
            n_steps=150,
            learning_rate=0.1,
            objective="gaussian",
            end_to_end_steps=1000,
            end_to_end_batch=32 if isinstance(decoder, UNetDecoder) else 64,
            end_to_end_rate={LEARNED: END_TO_END_RATE},
        ),
        quick=quick,
        out=out,
        # Of what it costs the short form measures one.
        design_task=None if quick and constraints else tasks[1],
        decoder=decoder,
        n_seeds=1 if quick else seeds,
        method=METHOD,
    )
    return asdict(comparison) | {"saved_memory": comparison.saved_memory, "saved_time": comparison.saved_time}


def main() -> None:
    """Both tasks, the designs and the question about labels, and their files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for tables, figures and JSON")
    parser.add_argument("--quick", action="store_true", help="few images, steps and seeds, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3, help="splits, noise draws and decoders per design")
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds mnist/")
    parser.add_argument("--threads", type=int, default=1, help="threads of encoders and estimates")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    run(given.out, given.data, quick=given.quick, seeds=given.seeds)


if __name__ == "__main__":
    main()
