"""The score in bits, its decoder and its oracle, against closed forms of Gaussian scenes."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.validation import LinearDecoder, Reconstruction, validate

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"
# Deviations of the two channels of a white scene.
DEVIATIONS = (2.0, 0.5)


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("_decoded_bits")


def white_scenes(n: int, seed: int = 0) -> Tensor:
    scenes = torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    return scenes * torch.tensor(DEVIATIONS)[:, None, None]


def smooth_scenes(n: int, size: int) -> Tensor:
    """White noise summed over 9 x 9 pixels, of variance 1."""
    noise = torch.randn(n, 1, size + 8, size + 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return nn.functional.avg_pool2d(noise, 9, stride=1) * 9


def test_decoded_bits_of_white_scenes_in_white_noise(score: ModuleType) -> None:
    scenes = white_scenes(6000)
    measured = 10 * scenes + 5 * torch.randn(scenes.shape, generator=torch.Generator().manual_seed(1))
    expected = 16 * sum(0.5 * math.log2(1 + (10 * deviation / 5) ** 2) for deviation in DEVIATIONS)
    axes = score.components(scenes)
    found = score.decoded_bits(score.StationaryDecoder().fit(measured, scenes)(measured), scenes, axes)
    assert found == pytest.approx(expected, rel=0.01)
    # What any gain and offset of the estimate leave as it is.
    assert score.decoded_bits(7 * measured - 3, scenes, axes) == pytest.approx(expected, rel=0.01)
    assert score.decoded_bits(torch.zeros_like(scenes), scenes, axes) == 0.0


def test_decoded_bits_do_not_hang_on_the_units_of_a_channel(score: ModuleType) -> None:
    scenes = white_scenes(3000)
    estimate = scenes + torch.randn(scenes.shape, generator=torch.Generator().manual_seed(2))
    units = torch.tensor([10.0, 0.1])[:, None, None]
    found = [
        score.decoded_bits(estimate * unit, scenes * unit, score.components(scenes * unit)) for unit in (1.0, units)
    ]
    assert found[0] == pytest.approx(found[1], rel=0.01)


def test_components_are_uncorrelated_and_orthonormal(score: ModuleType) -> None:
    scenes = smooth_scenes(4000, 5)
    axes = score.components(scenes)
    torch.testing.assert_close(axes.mT @ axes, torch.eye(25, dtype=torch.float64))
    correlation = torch.corrcoef((scenes.flatten(1) @ axes).mT)
    correlation.fill_diagonal_(0)
    # Of 4000 images chance leaves 0.016 on average, at most about 0.06.
    assert float(correlation.abs().max()) < 0.08


def test_stationary_decoder_is_the_wiener_estimate_of_a_smooth_field(score: ModuleType) -> None:
    """The least error of a linear estimate, from the covariance of the field itself."""
    size = 5
    scenes = smooth_scenes(8000, size)
    measured = scenes + 2 * torch.randn(scenes.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    away = torch.arange(size)
    overlap = (9 - (away[:, None] - away).abs()).double()
    covariance = torch.kron(overlap, overlap) / 81
    left = covariance - covariance @ torch.linalg.solve(covariance + 4 * torch.eye(size**2), covariance)
    fitted = score.StationaryDecoder().fit(measured[:6000], scenes[:6000])
    error = (fitted(measured[6000:]) - scenes[6000:]).square().mean()
    assert float(error) == pytest.approx(float(left.trace()) / size**2, rel=0.05)


class Brighter(nn.Module):
    """Mean photo-electrons 1e4 + 100 scene."""

    def forward(self, scene: Tensor) -> Tensor:
        return 1e4 + 100 * scene


def test_oracle_and_score_of_a_validation(score: ModuleType) -> None:
    scenes = white_scenes(4000)
    read = 30.0
    system = ImagingSystem(Brighter(), PoissonGaussianNoise(read_std=read), scenes)
    expected = 16 * sum(0.5 * math.log2(1 + (100 * deviation) ** 2 / (1e4 + read**2)) for deviation in DEVIATIONS)
    variances = [deviation**2 for deviation in DEVIATIONS]
    left = [variance / (1 + 1e4 * variance / (1e4 + read**2)) for variance in variances]
    limits = score.oracle(system, scenes, read_electrons=read)
    assert limits.measured_bits == pytest.approx(expected, rel=0.02)
    assert limits.target_bits == pytest.approx(expected, rel=0.02)
    assert limits.signal_to_error_db == pytest.approx(10 * math.log10(sum(variances) / sum(left)), abs=0.1)
    result = validate(
        {"one": system},
        Reconstruction(scenes),
        decoder=LinearDecoder(),
        n_seeds=2,
        method="gaussian",
        generator=torch.Generator().manual_seed(0),
    )
    decoded = score.with_decoded_bits(result, {"one": system}, scenes, LinearDecoder())
    assert decoded.score_names == (score.SCORE,)
    assert decoded.mean(score.SCORE)["one"] == pytest.approx(expected, rel=0.03)
    assert decoded.mean("bits") == result.mean("bits")
