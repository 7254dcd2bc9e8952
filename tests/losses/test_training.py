"""Encoders trained with every loss reach the information between Gaussians, and do not run past it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bitlens import losses, ops

# Two pairs with this correlation: 1.66 nats.
CORRELATION = 0.9
TRUTH = -math.log(1 - CORRELATION**2)


class Encoders(nn.Module):
    """Two perceptrons, and the second critic and the baseline that some bounds need."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.second = (nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(2))
            self.of_pair = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
            self.of_query = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))


# name -> module, what else its loss takes
TRAINED: dict[str, tuple[nn.Module, Callable[[Encoders, Tensor, Tensor], dict[str, Tensor]]]] = {
    "InfoNCE": (losses.InfoNCE(), lambda *_: {}),
    "InfoNCE two-sided": (losses.InfoNCE(two_sided=True), lambda *_: {}),
    "NTXent": (losses.NTXent(temperature=0.3), lambda *_: {}),
    "NWJ": (losses.NWJ(), lambda *_: {}),
    "DonskerVaradhan": (losses.DonskerVaradhan(), lambda *_: {}),
    "Interpolated": (losses.Interpolated(0.5), lambda e, x, z: {"log_baseline": e.of_query(x).squeeze(-1)}),
    "FLO": (losses.FLO(), lambda e, x, z: {"u": e.of_pair(torch.cat([x, z], dim=-1)).squeeze(-1)}),
    "JensenShannon": (losses.JensenShannon(), lambda *_: {}),
    "SMILE": (losses.SMILE(), lambda *_: {}),
}


def batch(source: torch.Generator) -> tuple[Tensor, Tensor]:
    x, noise = (torch.randn(256, 2, generator=source) for _ in range(2))
    return x, CORRELATION * x + math.sqrt(1 - CORRELATION**2) * noise


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", TRAINED)
def test_the_value_rises_to_the_truth_and_stays_there(name: str) -> None:
    module, extra = TRAINED[name]
    encoders, source = Encoders(seed=1), torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam(encoders.parameters(), lr=3e-3)
    history, values = [], []
    for _ in range(150):
        x, z = batch(source)
        arguments = (encoders.first(x), encoders.second(z))
        loss = module(*arguments, **extra(encoders, x, z))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
        with torch.no_grad():
            values.append(float(module.value(*arguments, **extra(encoders, x, z))))
    assert sum(history[-10:]) < sum(history[:10]) - 3
    # A batch of 256 gives a value with a standard error of about 0.1; NT-Xent lies log 2 below the others.
    reached = sum(values[-10:]) / 10
    assert reached < TRUTH + 0.1
    assert reached > TRUTH - (math.log(2) if name == "NTXent" else 0.0) - 0.35
    assert max(values) < TRUTH + 0.4


@pytest.mark.usefixtures("one_thread")
def test_minimising_the_upper_bound_drives_information_out() -> None:
    """The likelihood p(query given key) of a learned channel, query = gain key + unit noise: log(1 + gain^2) nats."""
    gain = nn.Parameter(torch.tensor(2.0))
    source = torch.Generator().manual_seed(3)
    optimizer = torch.optim.Adam([gain], lr=2e-2)
    module, values = losses.LeaveOneOut(), []
    for _ in range(150):
        key = torch.randn(256, 2, generator=source)
        query = gain * key + torch.randn(256, 2, generator=source)
        scores = {"scale": gain, "key_bias": -0.5 * (gain * key).square().sum(dim=-1)}
        loss = module(query, key, **scores)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[0] > math.log(5.0) - 0.2
    assert abs(values[-1]) < 0.05
    assert abs(float(gain.detach())) < 0.2


@pytest.mark.usefixtures("one_thread")
def test_smile_on_one_batch_has_no_way_past_what_jensen_shannon_finds() -> None:
    """Minus the clipped value itself has no minimum: one batch, 200 steps, and it stood at 100 nats."""
    encoders, (x, z) = Encoders(seed=1), batch(torch.Generator().manual_seed(2))
    optimizer = torch.optim.Adam(encoders.parameters(), lr=3e-3)
    module = losses.SMILE()
    for _ in range(200):
        loss = module(encoders.first(x), encoders.second(z))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    value = float(module.value(encoders.first(x), encoders.second(z)).detach())
    assert TRUTH - 0.35 < value < TRUTH + 0.2


def test_the_loss_of_smile_is_minus_its_value_with_the_gradient_of_jensen_shannon() -> None:
    query, key = (torch.randn(3, n, 4, generator=torch.Generator().manual_seed(n)).double() for n in (5, 7))
    query.requires_grad_()
    module = losses.SMILE(clip=0.7)
    torch.testing.assert_close(module(query, key), -module.value(query, key).mean(), rtol=1e-14, atol=0)
    (ours,), (true,) = (torch.autograd.grad(loss(query, key), query) for loss in (module, losses.JensenShannon()))
    assert torch.equal(ours, true)
    sums = ops.pairwise_map_sums(query, key, map="clipped_exp", limit=0.7)
    with pytest.raises(TypeError, match=r"query: need a torch.Tensor to train.*got PairwiseMapSums"):
        module(sums)
    assert torch.equal(module.value(sums), module.value(query, key))
