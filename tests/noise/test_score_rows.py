"""Row and column sums of the scores of every noise model, against the elementwise likelihood of all pairs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bitlens import GaussianNoise, PoissonGaussianNoise, PoissonNoise
from bitlens.noise import NoiseModel, _rows


class LaplaceNoise(NoiseModel):
    """A model of the user's own, with the three methods and nothing else."""

    def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        uniform = torch.rand(mean.shape, generator=generator, dtype=mean.dtype) - 0.5
        return mean - uniform.sign() * torch.log1p(-2 * uniform.abs())

    def log_prob(self, measured: Tensor, mean: Tensor) -> Tensor:
        return -(measured - mean).abs() - math.log(2.0)

    def entropy(self, mean: Tensor) -> Tensor:
        return torch.full_like(mean, 1.0 + math.log(2.0))


MODELS: dict[str, NoiseModel] = {
    "gaussian": GaussianNoise(2.0),
    "gaussian map": GaussianNoise(torch.tensor([[1.0, 2.0, 3.0], [0.5, 1.0, 2.0]])),
    "poisson": PoissonNoise(),
    "poisson-gaussian": PoissonGaussianNoise(gain=2.0, offset=10.0, read_std=1.5),
    "digitised": PoissonGaussianNoise(gain=2.0, offset=10.0, read_std=1.5, adc_bits=10),
    "own": LaplaceNoise(),
}


def example(noise: NoiseModel, n: int = 11, m: int = 14) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    mean = 5.0 + 20.0 * torch.rand(m, 2, 3, generator=rng, dtype=torch.float64)
    positive = torch.randint(m, (n,), generator=rng)
    return noise.sample(mean[positive], rng), mean, positive


def statistics(noise: NoiseModel, measured: Tensor, mean: Tensor, positive: Tensor) -> tuple[Tensor, ...]:
    scores = noise.log_prob(measured[:, None], mean[None]).flatten(2).sum(2)
    negatives = scores.scatter(1, positive[:, None], -torch.inf)
    own = scores.gather(1, positive[:, None])[:, 0]
    return own, torch.logsumexp(scores, 1), torch.logsumexp(negatives, 1), torch.logsumexp(scores, 0)


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_those_of_the_likelihoods(name: str) -> None:
    noise = MODELS[name]
    measured, mean, positive = example(noise)
    found = _rows.score_rows(noise, measured, mean, positive=positive)
    for ours, expected in zip(found, statistics(noise, measured, mean, positive), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_the_likelihoods(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rows, "_CHUNK_PAIRS", 3 * 14)  # seams between chunks of rows
    noise = MODELS[name]
    measured, mean, positive = example(noise)
    gradients = []
    for function in (
        lambda *x: _rows.score_rows(noise, *x, positive=positive),
        lambda *x: statistics(noise, *x, positive),
    ):
        leaf = mean.clone().requires_grad_()
        outputs = function(measured, leaf)
        loss = sum((k + 1.0) * output.sum() for k, output in enumerate(outputs))
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)


def test_a_count_on_a_dark_mean_costs_much_and_leaves_other_sums_alone() -> None:
    noise = PoissonNoise()
    mean = torch.tensor([[0.0, 4.0], [3.0, 4.0], [5.0, 1.0]], dtype=torch.float64)
    measured = torch.tensor([[0.0, 3.0], [2.0, 4.0], [6.0, 0.0]], dtype=torch.float64)
    found = noise.score_rows(measured, mean)
    expected = statistics(noise, measured, mean, torch.arange(3))
    for ours, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


def test_a_model_with_a_way_of_its_own_goes_it() -> None:
    """The floor of 1e-30 under a dark mean: 69 nats for a count, where the likelihood itself is 0."""
    measured, mean = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    found = _rows.score_rows(PoissonNoise(), measured, mean)
    assert float(found.positive) == pytest.approx(-30 * math.log(10.0), rel=1e-12)


def test_surrogate_of_a_sensor_is_that_of_its_pairs() -> None:
    noise = MODELS["poisson-gaussian"]
    assert isinstance(noise, PoissonGaussianNoise)
    measured, mean, positive = example(noise)
    scores = noise.log_prob_pairs(measured, mean, approximate=True)
    found = noise.score_rows(measured, mean, positive=positive, approximate=True)
    torch.testing.assert_close(found.row_logsumexp, torch.logsumexp(scores, 1))
    torch.testing.assert_close(found.column_logsumexp, torch.logsumexp(scores, 0))


@pytest.mark.parametrize("name", ["gaussian", "poisson-gaussian", "own"])
def test_more_rows_than_columns_need_positives(name: str) -> None:
    measured, mean, _ = example(MODELS[name], n=15, m=14)
    with pytest.raises(ValueError, match="positive"):
        _rows.score_rows(MODELS[name], measured, mean)
    for bad in (14, -1):
        with pytest.raises(ValueError, match="0 to 13"):
            _rows.score_rows(MODELS[name], measured, mean, positive=torch.full((15,), bad))
    with pytest.raises(ValueError, match=r"positive: need shape .*got \(14,\)"):
        _rows.score_rows(MODELS[name], measured, mean, positive=torch.arange(14))
    with pytest.raises(TypeError, match="positive: need int64, got int32"):
        _rows.score_rows(MODELS[name], measured, mean, positive=torch.zeros(15, dtype=torch.int32))
    with pytest.raises(TypeError, match=r"positive: need a torch.Tensor, got list"):
        _rows.score_rows(MODELS[name], measured, mean, positive=[0] * 15)


@pytest.mark.parametrize("undefined", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["gaussian", "gaussian map", "poisson", "poisson-gaussian", "surrogate"])
def test_an_undefined_value_spoils_what_it_touches_and_nothing_else(name: str, undefined: float) -> None:
    noise = MODELS["poisson-gaussian" if name == "surrogate" else name]
    arguments = {"approximate": True} if name == "surrogate" else {}
    measured, mean, positive = example(noise)
    clean = noise.score_rows(measured, mean, positive=positive, **arguments)
    pairs = noise.log_prob_pairs(measured, mean, **arguments)

    spoiled = measured.clone()
    spoiled[4, 1, 2] = undefined
    rows = torch.arange(11) != 4
    found = noise.score_rows(spoiled, mean, positive=positive, **arguments)
    for ours, true in zip(found[:3], clean[:3], strict=True):
        assert bool(ours[4].isnan())
        torch.testing.assert_close(ours[rows], true[rows], rtol=1e-11, atol=1e-11)
    assert bool(found.column_logsumexp.isnan().all())
    matrix = noise.log_prob_pairs(spoiled, mean, **arguments)
    assert not bool(torch.isfinite(matrix[4]).any())
    torch.testing.assert_close(matrix[rows], pairs[rows], rtol=1e-11, atol=1e-11)

    spoiled = mean.clone()
    spoiled[3, 0, 1] = undefined
    columns = torch.arange(14) != 3
    found = noise.score_rows(measured, spoiled, positive=positive, **arguments)
    own = positive != 3
    torch.testing.assert_close(found.positive[own], clean.positive[own], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found.column_logsumexp[columns], clean.column_logsumexp[columns], rtol=1e-11, atol=1e-11)
    assert bool(found.column_logsumexp[3].isnan())
    matrix = noise.log_prob_pairs(measured, spoiled, **arguments)
    assert not bool(torch.isfinite(matrix[:, 3]).any())
    torch.testing.assert_close(matrix[:, columns], pairs[:, columns], rtol=1e-11, atol=1e-11)


def test_an_undefined_count_on_a_dark_mean_is_not_impossible() -> None:
    noise = PoissonNoise()
    mean = torch.tensor([[0.0, 4.0], [3.0, 4.0]], dtype=torch.float64)
    measured = torch.tensor([[math.nan, 3.0], [2.0, 4.0]], dtype=torch.float64)
    scores = noise.log_prob_pairs(measured, mean)
    assert scores[0].isnan().tolist() == [True, True]
    assert torch.equal(scores[1], noise.log_prob(measured[1:], mean).sum(1))


@pytest.mark.parametrize("name", [*MODELS, "surrogate"])
def test_images_of_two_shapes_are_refused(name: str) -> None:
    noise = MODELS["poisson-gaussian" if name == "surrogate" else name]
    measured, mean, _ = example(noise)

    def call(measured: Tensor, mean: Tensor) -> object:
        if name == "surrogate":
            return noise.score_rows(measured, mean, approximate=True)
        return _rows.score_rows(noise, measured, mean)

    for bad in (
        (measured[:, :, :1], mean),
        (measured, mean[:, :1]),
        (measured[0, 0, 0], mean),
        (measured, mean[0, 0, 0]),
    ):
        with pytest.raises(ValueError, match=r"(measured|mean).*need.*got"):
            call(*bad)


@pytest.mark.parametrize("name", ["gaussian", "poisson", "surrogate"])
def test_pairs_keep_single_precision_under_autocast(name: str) -> None:
    noise = MODELS["poisson-gaussian" if name == "surrogate" else name]
    arguments = {"approximate": True} if name == "surrogate" else {}
    measured, mean, _ = example(noise)
    expected = noise.log_prob_pairs(measured.float(), mean.float(), **arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(noise.log_prob_pairs(measured.float(), mean.float(), **arguments), expected)


class BoundedNoise(LaplaceNoise):
    """Nothing further than 30 from the mean."""

    def log_prob(self, measured: Tensor, mean: Tensor) -> Tensor:
        distance = (measured - mean).abs()
        return torch.where(distance > 30, -math.inf, 0.0) - distance


def test_a_row_that_no_mean_allows_has_no_sum_and_no_gradient() -> None:
    noise = BoundedNoise()
    measured, mean, positive = example(noise)
    measured[4] = 1000.0
    mean.requires_grad_()
    found = _rows.score_rows(noise, measured, mean, positive=positive)
    for part in found[:3]:
        assert float(part[4].detach()) == -math.inf
    rows = torch.arange(11) != 4
    expected = _rows.score_rows(noise, measured[rows], mean, positive=positive[rows])
    (gradient,) = torch.autograd.grad(found.row_logsumexp.sum() + found.column_logsumexp.sum(), mean)
    (true,) = torch.autograd.grad(expected.row_logsumexp.sum() + expected.column_logsumexp.sum(), mean)
    torch.testing.assert_close(gradient, true, rtol=1e-12, atol=1e-12)


def test_gradients_of_chunks_keep_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of a chunk are made again on the way back, so that one chunk exists at a time."""
    monkeypatch.setattr(_rows, "_CHUNK_PAIRS", 3 * 14)
    measured, mean, positive = example(MODELS["own"])
    mean.requires_grad_()
    chunks = []

    def scores_of(rows: Tensor) -> Tensor:
        chunks.append(len(rows))
        return -(rows[:, None] - mean[None]).abs().flatten(2).sum(2)

    found = _rows.by_chunks(scores_of, measured, mean, positive)
    assert chunks == [3, 3, 3, 2]
    found.row_logsumexp.sum().backward()
    assert sorted(chunks) == sorted(2 * [3, 3, 3, 2])


def test_nothing_against_nothing() -> None:
    measured, mean, _ = example(MODELS["own"])
    found = _rows.score_rows(MODELS["own"], measured[:0], mean[:0])
    assert [tuple(part.shape) for part in found] == [(0,)] * 4


@pytest.mark.parametrize("name", MODELS)
def test_columns_without_rows_have_no_sum(name: str) -> None:
    measured, mean, _ = example(MODELS[name])
    found = _rows.score_rows(MODELS[name], measured[:0], mean)
    assert torch.equal(found.column_logsumexp, torch.full((14,), -math.inf, dtype=torch.float64))
