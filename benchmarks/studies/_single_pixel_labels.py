"""How many labels does a decoder need behind each camera: designed by information, or trained end to end?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from _single_pixel_patterns import READ_ELECTRONS, Images, camera
from scipy import stats
from torch import Tensor

from bitlens import optimize_design
from bitlens.noise import PoissonGaussianNoise
from bitlens.validation import Classification, ClassifierDecoder, train_end_to_end

# Of 0.003 and 0.01 the better on validation rows; at 1000 steps the loss of the class has long been flat.
_END_TO_END_RATE = 0.01


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
                learning_rate=_END_TO_END_RATE,
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
