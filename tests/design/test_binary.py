"""Zeros and ones under other limits, against all masks of a small size, one by one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from bitlens.design import Binary, Box, Constraint, Energy, MinimumFeature, Monotone, Simplex, Total
from bitlens.design.binary import check_ones, is_hard, realized, share_notes
from bitlens.design.constraints import project

SHAPE = (3, 4)


def free_numbers(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def meets(mask: Tensor, limits: Sequence[Constraint]) -> bool:
    return all(torch.allclose(limit.project(mask), mask, atol=1e-9) for limit in limits)


ALL = [torch.tensor(bits, dtype=torch.float64).reshape(SHAPE) for bits in itertools.product((0.0, 1.0), repeat=12)]


@pytest.mark.parametrize("method", ["straight_through", "annealing"])
@pytest.mark.parametrize(
    "limits",
    [
        (Total(4.0),),
        (Energy(0.3),),
        (Energy(0.8, "rms"), Total(7.0)),
        (Simplex(5.0),),
        (MinimumFeature(2),),
        (Total(5.0), MinimumFeature(2)),
        (Simplex(6.0), MinimumFeature(2)),
        (Simplex(9.0), MinimumFeature(3)),
        (Monotone(),),
        (Monotone("decreasing"),),
        (Simplex(5.0), Monotone()),
        (Total(6.0), Monotone("decreasing"), MinimumFeature(2)),
    ],
    ids=str,
)
def test_no_mask_that_meets_all_limits_is_nearer(method: str, limits: tuple[Constraint, ...]) -> None:
    """The nearest to the free numbers, where the number of ones is given or budgets do not bind."""
    several = (Binary(method), *limits)  # type: ignore[arg-type]
    allowed = [mask for mask in ALL if meets(mask, limits)]
    assert allowed
    for seed in range(8):
        free = project("mask", free_numbers(seed), several)
        check_ones("mask", free, several)
        mask = realized(free, several, 1.0)
        assert set(mask.flatten().tolist()) <= {0.0, 1.0}
        assert meets(mask, limits)
        # A straight-through mask spends what its free numbers spend, which may be more than is nearest.
        alike = [each for each in allowed if each.sum() == mask.sum()]
        nearest = min(float((each - free).square().sum()) for each in alike)
        assert float((mask - free).square().sum()) == pytest.approx(nearest, abs=1e-9)
        if method == "annealing" and not any(isinstance(limit, Simplex) for limit in limits):
            nearest = min(float((each - free).square().sum()) for each in allowed)
            assert float((mask - free).square().sum()) == pytest.approx(nearest, abs=1e-9)


def test_one_straight_through_mask_opens_what_its_budget_pays_for() -> None:
    free = torch.full((8,), 0.25, dtype=torch.float64)
    assert realized(free, (Binary(), Total(2.0)), 1.0).sum().item() == 2
    assert realized(free, (Binary(), Total(1.9)), 1.0).sum().item() == 1
    assert realized(free, (Binary(),), 1.0).sum().item() == 0


@pytest.mark.parametrize("progress", [0.0, 0.4, 0.9, 0.999])
def test_values_that_are_soft_keep_the_budget(progress: float) -> None:
    for seed in range(5):
        free = project("mask", free_numbers(seed, (6, 6)), (Binary(), Total(9.0)))
        assert realized(free, (Binary("annealing"), Total(9.0)), progress).sum().item() <= 9.0 + 1e-6
        exact = realized(free, (Binary("annealing"), Simplex(9.0)), progress).sum().item()
        assert exact == pytest.approx(9.0, abs=1e-6)


def test_the_gradient_of_soft_values_is_that_of_their_numbers() -> None:
    free = free_numbers(0, (3, 3)).requires_grad_()
    for limits in ((Binary("annealing"), Total(2.0)), (Binary("annealing"), Simplex(4.0)), (Binary("annealing"),)):
        assert torch.autograd.gradcheck(lambda x, limits=limits: realized(x, limits, 0.5), (free,), atol=1e-6)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((Simplex(2.5),), "2.5 is no whole number of ones"),
        ((Total(0.7),), "not a single one fits"),
        ((Simplex(13.0),), "13 ones are more than the 12 that fit"),
        ((Simplex(5.0), Total(4.0)), "5 ones are more than the 4 that fit"),
        ((Simplex(5.0), MinimumFeature(2)), "no blocks of 2 x 2 hold 5 ones together"),
    ],
    ids=str,
)
def test_limits_that_no_zeros_and_ones_meet_are_refused(limits: tuple[Constraint, ...], message: str) -> None:
    free = free_numbers(0)
    with pytest.raises(
        ValueError, match=rf"constraints\['mask'\]: need limits that zeros and ones can meet.*{message}"
    ):
        check_ones("mask", free, (Binary(), *limits))
    # The same numbers between zero and one are nobody's business here.
    check_ones("mask", free, limits)


def test_a_share_that_contradicts_is_refused_and_one_that_blocks_miss_is_said() -> None:
    free = free_numbers(0)
    with pytest.raises(ValueError, match=r"a share of 0\.5 is 6 ones, not 4"):
        check_ones("mask", free, (Binary(share=0.5), Simplex(4.0)))
    with pytest.raises(ValueError, match="6 ones are more than the 4 that fit"):
        check_ones("mask", free, (Binary(share=0.5), Total(4.0)))
    limits = (Binary(share=0.4), MinimumFeature(2), Box(0.0, 1.0))
    check_ones("mask", free, limits)
    # Blocks of 4 and, in the last row, of 2: 5 ones are not to be had.
    assert realized(free, limits, 1.0).sum().item() in (4.0, 6.0)
    assert "not a share of 0.4" in share_notes("mask", realized(free, limits, 1.0), limits)[0]
    limits = (Binary(share=0.5), MinimumFeature(2))
    assert share_notes("mask", realized(free, limits, 1.0), limits) == []


def test_hard_is_where_annealing_ends() -> None:
    limits = (Binary("annealing"),)
    clear = torch.tensor([0.0, 1.0, 0.1, 0.9], dtype=torch.float64)
    assert not is_hard(clear, limits, 0.3)
    assert is_hard(clear, limits, 0.9)
    assert not is_hard(torch.tensor([0.5, 1.0], dtype=torch.float64), limits, 0.99)
    assert is_hard(torch.tensor([0.5, 1.0], dtype=torch.float64), (Binary(),), 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.25, 0.75])
def test_zeros_and_ones_are_exact_in_either_precision(share: float, dtype: torch.dtype) -> None:
    free = torch.rand(20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    mask = realized(free, [Binary(share=share)], 0.5)
    assert set(mask.flatten().tolist()) == {0.0, 1.0}
    assert int(mask.sum()) == round(share * 400)
    stuck = realized(torch.ones(6, 6, dtype=dtype), [Binary("annealing", share=share)], 0.9)
    assert bool(stuck.isfinite().all())
