"""What the studies of designs share: the designs come back, and training end to end has rates of its own."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from bitlens.noise import GaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.validation import Reconstruction, UNetDecoder

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"

pytestmark = pytest.mark.usefixtures("one_thread")


class Blend(nn.Module):
    """10 ((1 - share) constant + share scene): a share of 1 sees the scene best, 0 sees nothing of it."""

    parameter_domain = {"share": (0.0, 1.0)}  # noqa: RUF012

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))

    def forward(self, scene: Tensor) -> Tensor:
        return 10 * ((1 - self.share) + self.share * scene)


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("_design_study")


def blended(n: int, share: float = 0.3) -> ImagingSystem:
    white = torch.randn(n, 1, 10, 10, generator=torch.Generator().manual_seed(1))
    scenes = (1 + nn.functional.avg_pool2d(white, 3, stride=1)).clamp(min=0.05)
    return ImagingSystem(Blend(share), GaussianNoise(1.0), scenes)


def test_designs_come_back_and_stay_out_of_the_file(study: ModuleType, tmp_path: Path) -> None:
    start = blended(120)
    settings = study.Settings(n_steps=8, objective="gaussian", learning_rate=0.05, judge_method="gaussian")
    comparison, _ = study.compare_designs(
        "blend", start, start.scenes, Reconstruction(), settings, quick=True, out=tmp_path, n_seeds=1, method="gaussian"
    )
    assert list(comparison.systems) == [study.START, study.DESIGNED]
    assert float(comparison.systems[study.START].encoder.share.detach()) == pytest.approx(0.3)
    # More of the scene passes, by as much as eight steps of 0.05 can move it.
    assert 0.4 < float(comparison.systems[study.DESIGNED].encoder.share.detach()) <= 0.7 + 1e-6
    assert comparison.systems[study.DESIGNED].scenes is start.scenes
    written = json.loads((tmp_path / "blend_comparison.json").read_text())
    assert "systems" not in written
    assert written["gain_bits"] == comparison.gain_bits


def test_rates_of_training_end_to_end_are_its_own(study: ModuleType) -> None:
    start, decoder = blended(120), UNetDecoder(channels=4)
    task = Reconstruction()
    slow = study.Settings(learning_rate=0.05, end_to_end_steps=30, end_to_end_rate=1e-9)

    def trained(settings: object) -> Tensor:
        encoder, _, _ = study._trained(start, start.scenes, task, None, decoder, settings, 0)
        return encoder.share.detach()

    assert float(trained(slow)) == pytest.approx(0.3, abs=1e-6)
    quick = trained(dataclasses.replace(slow, end_to_end_rate={"share": 0.05}))
    assert float(quick) > 0.4
    # The decoder's own rate arrives: this one is far too large, which keeps the start and is said.
    with pytest.warns(UserWarning, match=r"decoder_learning_rate \(0.3\)"):
        other = trained(dataclasses.replace(slow, end_to_end_rate={"share": 0.05}, end_to_end_decoder_rate=0.3))
    assert float(other) == pytest.approx(0.3, abs=1e-6)


def test_rates_are_those_of_least_validation_loss(study: ModuleType, tmp_path: Path) -> None:
    tuning = importlib.import_module("_end_to_end_tuning")
    start, decoder, task = blended(120), UNetDecoder(channels=4, n_steps=5), Reconstruction()
    settings = study.Settings(parameters=("share",), n_steps=4, objective="gaussian", learning_rate=0.05)
    found = tuning.tuned(
        *("blend", start, start.scenes, task, None, decoder, settings, ((1e-9, 0.05), (3e-3, 3.0))),
        n_steps=30,
        out=tmp_path,
    )
    written = json.loads((tmp_path / "blend_end_to_end.json").read_text())
    losses = {(trial["encoder_rate"], trial["decoder_rate"]): trial["best_loss"] for trial in written["trials"]}
    assert len(losses) == 4
    # A decoder that leaps is no better than the start; an encoder that stands still sees less of the scene.
    assert losses[0.05, 3.0] == written["trials"][0]["start_loss"]
    assert losses[0.05, 3e-3] < losses[1e-9, 3e-3]
    assert (found.end_to_end_rate, found.end_to_end_decoder_rate) == ({"share": 0.05}, 3e-3)
    seconds = {
        study.DESIGNED: {"cpu_seconds": 1.0, "peak_memory_bytes": 1e6},
        study.TRAINED: {"cpu_seconds": 4.0, "peak_memory_bytes": 4e6},
    }
    cost = tuning.costs("blend", start, start.scenes, task, None, decoder, found, seconds, out=tmp_path)
    designed, with_decoder, trained = cost.values()
    assert designed["saved_time"] == 0.75
    assert (trained["saved_time"], trained["saved_memory"]) == (0.0, 0.0)
    assert with_decoder["cpu_seconds"] > 0
    # A decoder beside the design takes memory of its own.
    assert 0 < designed["peak_memory_bytes"] < with_decoder["peak_memory_bytes"]
    assert designed["saved_memory"] == 1 - designed["peak_memory_bytes"] / trained["peak_memory_bytes"]
