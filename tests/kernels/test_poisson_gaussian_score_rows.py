"""Row and column statistics of the Poisson-Gaussian pairs, against the matrix of elementwise likelihoods."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitlens import ops

sys.path.insert(0, str(Path(__file__).parent))
from contract import running

SENSOR = {"gain": 2.0, "offset": 100.0, "read_std": 3.0}
BACKENDS = ("cpu", "numba", "cuda_on_cpu", "reference")


def images(n: int, m: int, pixels: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    mean = 20.0 * torch.rand(max(n, m), pixels, generator=rng, dtype=torch.float64)
    noise = 3.0 * torch.randn(mean.shape, generator=rng, dtype=torch.float64)
    measured = 2.0 * torch.poisson(mean, generator=rng) + 100.0 + noise
    return measured[:n].to(dtype), mean[:m].to(dtype)


def from_matrix(
    measured: Tensor, mean: Tensor, positive: Tensor | None = None, groups: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, ...]:
    """The five statistics in float64, from one likelihood for each pair and pixel."""
    z, y = measured.double(), mean.double()
    scores = ops.poisson_gaussian_log_prob(z[:, None], y[None], **SENSOR).flatten(2).sum(2)
    columns = torch.arange(len(z)) if positive is None else positive
    excluded = torch.arange(len(y)) == columns[:, None]
    if groups is not None:
        excluded = excluded | (groups[0][:, None] == groups[1])
    negatives = scores.masked_fill(excluded, -torch.inf)
    return (
        scores.gather(1, columns[:, None])[:, 0],
        torch.logsumexp(scores, 1),
        torch.logsumexp(negatives, 1),
        torch.logsumexp(scores, 0),
        torch.logsumexp(negatives, 0),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("n", "m", "pixels"), [(1, 2, 1), (9, 9, 4), (66, 70, 2)])
def test_statistics_are_those_of_the_matrix(
    backend: str, dtype: torch.dtype, grouped: bool, n: int, m: int, pixels: int
) -> None:
    measured, mean = images(n, m, pixels, dtype)
    rng = torch.Generator().manual_seed(1)
    positive = torch.randint(m, (n,), generator=rng)
    groups = (torch.randint(5, (n,), generator=rng), torch.randint(5, (m,), generator=rng)) if grouped else None
    row_group, column_group = groups or (None, None)
    with running(backend):
        found = ops.poisson_gaussian_score_rows(
            measured, mean, positive=positive, row_group=row_group, column_group=column_group, **SENSOR
        )
    tolerance = 2e-6 if dtype == torch.float32 else 1e-11
    for ours, expected in zip(found, from_matrix(measured, mean, positive, groups), strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=tolerance, atol=tolerance)


def test_many_tiles_blocks_and_slabs_join_without_a_seam() -> None:
    # Three blocks of 1024 columns, more row tiles than slabs, neither a whole number.
    measured, mean = images(700, 2100, 2)
    found = ops.poisson_gaussian_score_rows(measured, mean, **SENSOR)
    for ours, expected in zip(found, from_matrix(measured, mean), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_leave_one_out_keeps_its_digits_where_the_positive_dominates() -> None:
    measured, mean = images(40, 40, 200)
    found = ops.poisson_gaussian_score_rows(measured, mean, **SENSOR)
    expected = from_matrix(measured, mean)
    assert float((found.positive - found.row_logsumexp_negatives).median()) > 80.0
    torch.testing.assert_close(found.row_logsumexp_negatives, expected[2], rtol=1e-12, atol=0)
    torch.testing.assert_close(found.column_logsumexp_negatives, expected[4], rtol=1e-12, atol=0)


def test_number_of_threads_does_not_change_a_bit() -> None:
    measured, mean = images(1200, 1200, 3, torch.float32)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            results.append(ops.poisson_gaussian_score_rows(measured, mean, **SENSOR))
        finally:
            torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_row_bias_shifts_every_score_of_its_row() -> None:
    measured, mean = images(12, 15, 3)
    bias = 10.0 * torch.randn(12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    bias[3] = -torch.inf
    found = ops.poisson_gaussian_score_rows(measured, mean, row_bias=bias, **SENSOR)
    scores = ops.poisson_gaussian_log_prob_pairs(measured, mean, **SENSOR) + bias[:, None]
    torch.testing.assert_close(found.positive, scores.diagonal())
    torch.testing.assert_close(found.row_logsumexp, torch.logsumexp(scores, 1))
    torch.testing.assert_close(found.column_logsumexp, torch.logsumexp(scores, 0))
    negatives = scores.masked_fill(torch.eye(12, 15, dtype=torch.bool), -torch.inf)
    torch.testing.assert_close(found.column_logsumexp_negatives, torch.logsumexp(negatives, 0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pair_outside_the_domain_touches_its_row_and_column_alone(backend: str) -> None:
    measured, mean = images(6, 7, 2)
    measured[1, 0], mean[2, 1] = torch.nan, -1.0
    with running(backend):
        found = ops.poisson_gaussian_score_rows(measured, mean, **SENSOR)
    # Row 2's positive lies outside, its negatives do not.
    assert found.positive.isnan().tolist() == [False, True, True, False, False, False]
    assert found.row_logsumexp.isnan().all()
    assert found.row_logsumexp_negatives.isnan().tolist() == [True, True, False, True, True, True]
    assert found.column_logsumexp.isnan().all()


@pytest.mark.parametrize("backend", ["cpu", "numba", "cuda_on_cpu"])
def test_a_sum_without_terms_is_minus_infinity_with_gradient_zero(backend: str) -> None:
    measured, mean = images(3, 3, 2)
    mean.requires_grad_()
    group = torch.zeros(3, dtype=torch.int64)
    with running(backend):
        found = ops.poisson_gaussian_score_rows(measured, mean, row_group=group, column_group=group, **SENSOR)
        assert (found.row_logsumexp_negatives == -torch.inf).all()
        assert (found.column_logsumexp_negatives == -torch.inf).all()
        (gradient,) = torch.autograd.grad(found.row_logsumexp_negatives.sum(), mean)
    assert (gradient == 0).all()


@pytest.mark.parametrize("backend", ["cpu", "numba", "cuda_on_cpu"])
@pytest.mark.parametrize("rows_at_a_time", [2, 256])
def test_gradients_of_every_output_in_every_argument(
    backend: str, rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitlens.kernels.poisson_gaussian_log_prob_pairs import rows

    monkeypatch.setattr(rows, "_ROWS_AT_A_TIME", rows_at_a_time)
    measured, mean = images(5, 6, 2)
    groups = (torch.tensor([0, 1, 1, 2, 0]), torch.tensor([0, 1, 2, 2, 1, 0]))
    sensor = [torch.full((2,), value, dtype=torch.float64) for value in SENSOR.values()]
    leaves = [measured, mean, torch.linspace(-1, 1, 5, dtype=torch.float64), *sensor]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def function(z: Tensor, y: Tensor, bias: Tensor, gain: Tensor, offset: Tensor, std: Tensor) -> tuple[Tensor, ...]:
        return ops.poisson_gaussian_score_rows(
            z, y, row_group=groups[0], column_group=groups[1], row_bias=bias, gain=gain, offset=offset, read_std=std
        )

    with running(backend):
        assert torch.autograd.gradcheck(function, leaves)
        mapped = torch.func.vmap(lambda z: ops.poisson_gaussian_score_rows(z, mean, **SENSOR))(
            torch.stack([measured, measured + 1]).detach()
        )
    torch.testing.assert_close(mapped[2][1], from_matrix(measured + 1, mean)[2].detach())


def test_single_precision_gradients_agree_with_double() -> None:
    measured, mean = images(90, 90, 30)
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = mean.to(dtype).requires_grad_()
        scores = ops.poisson_gaussian_score_rows(measured.to(dtype), leaf, **SENSOR)
        loss = (scores.positive - scores.row_logsumexp).sum() - scores.column_logsumexp.sum()
        found.append(torch.autograd.grad(loss, leaf)[0].double())
    assert float((found[0] - found[1]).abs().max()) <= 1e-4 * float(found[1].abs().max())


def test_empty_rows_and_one_column() -> None:
    measured, mean = images(4, 4, 3)
    none = ops.poisson_gaussian_score_rows(measured[:0], mean, **SENSOR)
    assert none.positive.shape == (0,)
    assert (none.column_logsumexp == -torch.inf).all()
    one = ops.poisson_gaussian_score_rows(measured, mean[:1], positive=torch.zeros(4, dtype=torch.int64), **SENSOR)
    assert (one.row_logsumexp_negatives == -torch.inf).all()
    torch.testing.assert_close(one.row_logsumexp, one.positive)


def test_arguments_that_do_not_fit_are_named() -> None:
    measured, mean = images(4, 3, 3)
    with pytest.raises(ValueError, match="positive"):
        ops.poisson_gaussian_score_rows(measured, mean, **SENSOR)
    positive = torch.tensor([0, 1, 2, 3])
    with pytest.raises(ValueError, match="columns from 0 to 2"):
        ops.poisson_gaussian_score_rows(measured, mean, positive=positive, **SENSOR)
    with pytest.raises(TypeError, match="positive"):
        ops.poisson_gaussian_score_rows(measured, mean, positive=positive.double(), **SENSOR)
    with pytest.raises(ValueError, match="column_group"):
        ops.poisson_gaussian_score_rows(measured[:3], mean, row_group=positive[:3], **SENSOR)
    with pytest.raises(ValueError, match="row_bias"):
        ops.poisson_gaussian_score_rows(measured[:3], mean, row_bias=mean[0, :2], **SENSOR)


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(name: str, dtype: torch.dtype) -> None:
    from bitlens import _native

    usual = _native.instruction_set()
    measured, mean = images(130, 130, 5, dtype)
    try:
        try:
            _native.set_instruction_set(name)
        except ValueError:
            pytest.skip(f"this processor has no {name}")
        found = ops.poisson_gaussian_score_rows(measured, mean, **SENSOR)
    finally:
        _native.set_instruction_set(usual)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-11
    for ours, expected in zip(found, from_matrix(measured, mean), strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=tolerance, atol=tolerance)


def test_compiled_graph_gives_the_same_values_and_gradient() -> None:
    measured, mean = images(20, 20, 3)

    def loss(y: Tensor) -> Tensor:
        found = ops.poisson_gaussian_score_rows(measured, y, **SENSOR)
        return (found.positive - found.row_logsumexp_negatives).mean()

    values, gradients = [], []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = mean.clone().requires_grad_()
        value = function(leaf)
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, leaf)[0])
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)
