"""What a camera costs with its decoder: designed by information and then given one, or trained together with it.

To design by information takes no decoder, but whoever wants pictures trains one afterwards. Here all ways go from the
same images to camera and decoder, each in a process of its own, and their pictures of other images are compared. After
the design by information the decoder is either fitted as those that rank the cameras are, in fewer steps to one draw of
the noise, or trained exactly as the one of the joint training is, fresh noise at every step, the camera held.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from _design_study import FEW_JUDGED, Settings
from torch import Tensor

from bitlens import optimize_design
from bitlens.systems import ImagingSystem
from bitlens.validation import Cost, Reconstruction, UNetDecoder, measure_cost, train_end_to_end

# A rate at which a joint training leaves the camera as it is.
_HELD = 1e-12
INFORMED = "designed by information, then its decoder"
INFORMED_LONG = "designed by information, then its decoder trained as long"
TRAINED = "trained end to end"


class Way(NamedTuple):
    """Where both ways start, and what they are given: images to learn from and other ones to be judged by."""

    start: ImagingSystem
    scenes: Tensor
    test: Tensor
    decoder: UNetDecoder
    settings: Settings
    seed: int = 0


def informed(way: Way) -> float:
    """PSNR on the test images of a camera designed by information and of the decoder that is then fitted to it."""
    encoder, noise = _designed(way)
    measured = _measured(encoder, noise, way.scenes, way.seed)
    decoder = way.decoder.fit(measured, way.scenes, generator=torch.Generator().manual_seed(way.seed))
    return _psnr(encoder, noise, decoder, way)


def informed_long(way: Way) -> float:
    """The same with the decoder trained as in a joint training."""
    rates = way.settings.end_to_end_rate
    assert isinstance(rates, Mapping)
    return _trained(*_designed(way), way, dict.fromkeys(rates, _HELD))


def trained(way: Way) -> float:
    """The same of camera and decoder that were trained together."""
    return _trained(way.start.encoder, way.start.noise, way, way.settings.end_to_end_rate)


def _designed(way: Way) -> tuple[Any, Any]:
    settings = way.settings
    found = optimize_design(
        way.start.encoder,
        way.start.noise,  # type: ignore[arg-type]
        way.scenes,
        constraints=settings.constraints,
        n_steps=settings.n_steps,
        learning_rate=settings.learning_rate,
        objective=settings.objective,  # type: ignore[arg-type]
        # Nobody reads what these few say.
        judge_scenes=way.scenes[:FEW_JUDGED],
        judge_method="known_channel",
        generator=torch.Generator().manual_seed(way.seed),
    )
    return found.encoder, found.noise


def _trained(encoder: Any, noise: Any, way: Way, rates: Any) -> float:
    settings = way.settings
    found = train_end_to_end(
        encoder,
        noise,
        way.scenes,
        Reconstruction(),
        way.decoder,
        constraints=settings.constraints,
        n_steps=settings.end_to_end_steps,
        batch_size=settings.end_to_end_batch,
        learning_rate=rates,
        n_test=1,
        generator=torch.Generator().manual_seed(way.seed),
    )
    return _psnr(found.encoder, found.noise, found.decoder, way)


def whole_cost(way: Way, *, measure: Callable[[Callable[[], Any]], Cost] = measure_cost) -> dict[str, Any]:
    """CPU seconds, peak bytes and PSNR of each way, and the shares that information saves."""
    found: dict[str, Any] = {}
    for name, function in ((INFORMED, informed), (INFORMED_LONG, informed_long), (TRAINED, trained)):
        cost = measure(functools.partial(function, way))
        found[name] = {
            "cpu_seconds": cost.cpu_seconds,
            "peak_memory_bytes": cost.peak_memory_bytes,
            "psnr": float(cost.value),
        }
    for name in (INFORMED, INFORMED_LONG):
        for saved, what in (("saved_memory", "peak_memory_bytes"), ("saved_time", "cpu_seconds")):
            found[name][saved] = 1.0 - found[name][what] / max(found[TRAINED][what], 1e-9)
    return found


def whole_text(found: dict[str, Any]) -> str:
    """The ways in words."""
    lines = ["camera and decoder, all from the same images, judged on others:"]
    for name, row in found.items():
        lines.append(
            f"  {name}: {row['psnr']:.2f} dB, {row['cpu_seconds']:.1f} CPU s, "
            f"{row['peak_memory_bytes'] / 2**20:.0f} MiB at the peak"
            + (f"; saved {row['saved_memory']:.0%} and {row['saved_time']:.0%}" if "saved_time" in row else "")
        )
    return "\n".join(lines) + "\n"


def _measured(encoder: Any, noise: Any, scenes: Tensor, seed: int) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return torch.cat([noise.sample(encoder(part), draws) for part in scenes.split(256)]).float()


def _psnr(encoder: Any, noise: Any, decoder: Any, way: Way) -> float:
    estimate = decoder(_measured(encoder, noise, way.test, way.seed + 1))
    task = Reconstruction(data_range=1.0)
    return task.score(estimate, way.test, data_range=1.0)["psnr"]
