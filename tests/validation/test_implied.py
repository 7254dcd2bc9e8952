"""What bits allow, against channels whose best decoder is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bitlens.noise import GaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.validation import (
    Classification,
    ImpliedBounds,
    LinearDecoder,
    Reconstruction,
    ValidationResult,
    ValidationRow,
    implied_bounds,
    validate,
)

pytestmark = pytest.mark.usefixtures("one_thread")
GAINS = (0.5, 1.0, 2.0)


def white(n: int) -> torch.Tensor:
    """Scenes of variance 4 with a frame that never changes: 16 of 36 values vary."""
    scenes = torch.full((n, 1, 6, 6), 9.0)
    scenes[:, :, 1:5, 1:5] += 2 * torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return scenes


def test_white_scenes_in_white_noise_meet_the_bound() -> None:
    """The least error is 16 / 36 of 4 / (1 + 4 gain^2), the frame costing nothing."""

    class Inside(torch.nn.Module):
        def __init__(self, gain: float) -> None:
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(gain))

        def forward(self, scene: torch.Tensor) -> torch.Tensor:
            return self.gain * scene[:, :, 1:5, 1:5]

    scenes = white(2000)
    systems = {f"{gain:g}": ImagingSystem(Inside(gain), GaussianNoise(1.0), scenes) for gain in GAINS}
    result = validate(
        systems, Reconstruction(), decoder=LinearDecoder(), method="gaussian", n_seeds=2,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    found = implied_bounds(result, Reconstruction(), scenes, generator=torch.Generator().manual_seed(0))
    assert (found.score, found.source.n_values, found.source.n_constant) == ("mse", 16, 20)  # type: ignore[union-attr]
    for gain in GAINS:
        truth = 16 / 36 * 4 / (1 + 4 * gain**2)
        bound = found.designs[f"{gain:g}"]
        assert bound.bits_from == "corrected estimate"
        assert bound.estimate == pytest.approx(truth, rel=0.05)
        assert 0.9 * truth < bound.limit < truth
        assert bound.limit < result.mean("mse")[f"{gain:g}"]


def made_up(bound: str, **changes: Any) -> ImpliedBounds:
    given = {"bits": 20.0, "stderr_bits": 1.0, "lower_bits": None, "upper_bits": 30.0} | changes
    rows = tuple(
        ValidationRow(
            design="a", seed=seed, bound=bound, method="", scores={"mse": 1.0}, light=0.0, seconds=0.0, **given
        )
        for seed in range(2)
    )
    result = ValidationResult(rows, {}, ("mse",), ("mse",), "", 10, 5, 1, "0", ())
    return implied_bounds(result, Reconstruction(), white(200), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("bound", "changes", "most", "bits_from"),
    [
        # An upper bound of few scenes that was corrected is not used uncorrected.
        ("estimate", {}, 20 + 1.645, "corrected estimate"),
        ("two-sided", {"bits": 28.0}, 30 + 1.645, "upper bound"),
        ("upper", {"bits": 30.0}, 30 + 1.645, "upper bound"),
        ("upper", {"bits": 30.0, "stderr_bits": None}, 30, "upper bound"),
        ("lower", {"upper_bits": None}, None, "lower bound alone"),
    ],
)
def test_which_bits_count(bound: str, changes: dict[str, Any], most: float | None, bits_from: str) -> None:
    found = made_up(bound, **changes).designs["a"]
    assert found.bits_from == bits_from
    assert found.most_bits == (None if most is None else pytest.approx(most, abs=1e-3))
    if most is None:
        assert found.limit == 0.0 < found.estimate
    else:
        assert found.limit < found.estimate
        # 2 ln 2 / 16 nats per bit.
        at_least = found.estimate * math.exp(-2 * math.log(2) / 16 * (most - found.bits))
        assert found.limit == pytest.approx(at_least, rel=0.1)


def test_classes() -> None:
    labels = torch.arange(40) % 4
    rows = tuple(
        ValidationRow(name, 0, bits, 0.1, None, bits, kind, "", {"accuracy": 0.3}, 0.0, 0.0)
        for name, bits, kind in (("few", 0.5, "upper"), ("more", 5.0, "upper"), ("open", 0.5, "lower"))
    )
    result = ValidationResult(rows, {}, ("accuracy",), (), "", 10, 5, 1, "0", ())
    found = implied_bounds(result, Classification(labels), torch.zeros(40, 1, 2, 2))
    assert found.score == "accuracy"
    assert found.designs["few"].estimate < found.designs["few"].limit < 0.8
    assert found.designs["more"].limit == 1.0
    assert found.designs["open"].limit == 1.0


def test_wrong_arguments() -> None:
    result = ValidationResult((), {}, ("mse",), (), "", 10, 5, 1, "0", ())
    with pytest.raises(ValueError, match="confidence: need a value between 0 and 1, got 1"):
        implied_bounds(result, Reconstruction(), white(20), confidence=1.0)
    with pytest.raises(TypeError, match="task: need a Reconstruction or a Classification"):
        implied_bounds(result, "mse", white(20))  # type: ignore[arg-type]
