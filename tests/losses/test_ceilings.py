"""Ceilings of the losses: held and reached by the best critics."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitlens import losses

sys.path.insert(0, str(Path(__file__).parent))
from definitions import LOSSES


def test_ceilings_hold_for_the_best_critic_and_are_reached() -> None:
    n, k = 6, 9
    perfect = 300 * torch.eye(k, dtype=torch.float64)
    query, key = perfect[:n], torch.eye(k, dtype=torch.float64)
    baseline = torch.full((n,), -1000.0, dtype=torch.float64)
    cases: list[tuple[torch.nn.Module, float, dict[str, Tensor]]] = [
        (losses.InfoNCE(), math.log(k), {}),
        (losses.InfoNCE(two_sided=True), 0.5 * (math.log(n) + math.log(k)), {}),
        (losses.Interpolated(1.0), math.log(k - 1), {}),
    ]
    for module, ceiling, extra in cases:
        assert module.ceiling_nats(n, k) == pytest.approx(ceiling, rel=1e-14)
        assert float(module.value(query, key, **extra)) == pytest.approx(ceiling, rel=1e-12)
    # A baseline far above the negatives takes the marginal term away and leaves the own key's term in the joint one.
    module = losses.Interpolated(0.25)
    value = float(module.value(query, key, log_baseline=torch.full((n,), 100.0, dtype=torch.float64)))
    assert module.ceiling_nats(n, k) == pytest.approx(math.log((k - 1) / 0.25) + 1, rel=1e-14)
    assert value == pytest.approx(math.log((k - 1) / 0.25) + 1, rel=1e-12)
    assert float(module.value(query, key, log_baseline=baseline)) < value
    assert losses.Interpolated(0.0).ceiling_nats(n, k) is None
    for name in ("NWJ", "DonskerVaradhan", "LeaveOneOut", "FLO", "JensenShannon", "SMILE"):
        assert LOSSES[name][0].ceiling_nats(n, k) is None


@pytest.mark.parametrize(("temperature", "n"), [(0.6, 64), (2.0, 64)])
def test_cosine_scores_stay_below_their_ceiling(temperature: float, n: int) -> None:
    """The best that rows of length one can do: own key along the query, all others against it."""
    key = torch.full((n, 2), 0.0, dtype=torch.float64)
    key[:, 0] = -1.0
    key[0, 0] = 1.0
    module = losses.InfoNCE(temperature=temperature, normalize=True)
    exact = math.log(n) - math.log1p((n - 1) * math.exp(-2 / temperature))
    value = float(module.value(key[:1], key))
    assert value == pytest.approx(exact, rel=1e-12)
    ceiling = module.ceiling_nats(1, n)
    assert ceiling == min(math.log(n), 2 / temperature)
    assert 0.6 * ceiling < value < ceiling


@pytest.mark.parametrize(("temperature", "ceiling"), [(0.05, math.log(6)), (2.0, 1.0)])
def test_ceiling_of_nt_xent(temperature: float, ceiling: float) -> None:
    """Where cosines do not limit it, orthogonal items whose views agree reach log n."""
    module = losses.NTXent(temperature=temperature)
    assert module.ceiling_nats(6) == pytest.approx(ceiling, rel=1e-14)
    items = torch.eye(6, dtype=torch.float64)
    value = float(module.value(items, items))
    assert value < ceiling
    if temperature < 1:
        assert value == pytest.approx(ceiling, rel=1e-6)


def test_the_cosine_ceiling_of_nt_xent_is_approached_at_high_temperature() -> None:
    """Two items at opposite ends: log n - log(1 + 2 (n - 1) e^(-2/T)), the log 2 of the two views aside."""
    ends = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    module = losses.NTXent(temperature=8.0)
    value = float(module.value(ends, ends))
    assert value == pytest.approx(math.log(2) - math.log1p(2 * math.exp(-2 / 8.0)), rel=1e-12)
    assert module.ceiling_nats(2) == 0.25
