"""Critics: scores of all pairs against the same network on concatenated pairs, and what they can learn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bitlens import ops
from bitlens.critics import JointCritic


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on_pairs(critic: JointCritic, x: Tensor, z: Tensor) -> Tensor:
    """The score matrix, one row of [x_i, z_j] for each pair."""
    pairs = torch.cat([x[:, None].expand(-1, len(z), -1), z[None].expand(len(x), -1, -1)], dim=-1)
    units = torch.relu(pairs @ torch.cat([critic.query_weight, critic.key_weight], dim=1).T + critic.first_bias)
    if critic.hidden_weight is not None:
        units = torch.relu(units @ critic.hidden_weight.T + critic.hidden_bias)
    return units @ critic.output_weight + critic.output_bias


@pytest.mark.parametrize("hidden", [(16,), (16, 12)])
@pytest.mark.parametrize("backend", ["cpu", "numba", "reference"])
def test_scores_and_gradients_of_the_network_on_every_pair(backend: str, hidden: tuple[int, ...]) -> None:
    critic = JointCritic(4, 3, hidden, generator=generator(0), dtype=torch.float64)
    x, z = (torch.randn(n, d, generator=generator(n), dtype=torch.float64) for n, d in ((20, 4), (30, 3)))
    with ops.use_backend(backend):
        outputs = critic(x, z)
        ours = torch.autograd.grad((outputs.row_logsumexp - outputs.positive).sum(), list(critic.parameters()))
    scores = on_pairs(critic, x, z)
    expected = torch.autograd.grad(
        (torch.logsumexp(scores, 1) - scores.diagonal()).sum(), list(critic.parameters()), materialize_grads=True
    )
    negatives = scores.masked_fill(torch.eye(20, 30, dtype=torch.bool), -math.inf)
    truth = (scores.diagonal(), torch.logsumexp(scores, 1), torch.logsumexp(negatives, 1), torch.logsumexp(scores, 0))
    for a, b in zip(outputs, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_learns_a_dependence_that_no_bilinear_critic_sees() -> None:
    """z = x^2 + noise, uncorrelated with x; the learned bound exceeds half a nat out of log 256."""
    critic = JointCritic(1, 1, (32, 32), generator=generator(1))
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    source = generator(2)

    def bound() -> Tensor:
        x = torch.randn(256, 1, generator=source)
        z = x.square() + 0.3 * torch.randn(256, 1, generator=source)
        outputs = critic(x, z)
        return math.log(256) + (outputs.positive - outputs.row_logsumexp).mean()

    for _ in range(150):
        optimizer.zero_grad()
        (-bound()).backward()
        optimizer.step()
    with torch.no_grad():
        values = torch.stack([bound() for _ in range(10)])
    assert 0.5 < float(values.mean()) < math.log(256)


def test_initial_weights_come_from_the_generator_within_their_bounds() -> None:
    one, two = (JointCritic(5, 4, (8, 6), generator=generator(3)) for _ in range(2))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    for weight, inputs in ((one.query_weight, 9), (one.key_weight, 9), (one.hidden_weight, 8), (one.output_weight, 6)):
        assert weight is not None
        assert float(weight.detach().abs().max()) <= inputs**-0.5
        assert float(weight.detach().std()) > 0.3 * inputs**-0.5


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"hidden.*one or two.*\(\)"):
        JointCritic(2, 2, ())
    with pytest.raises(ValueError, match=r"hidden.*one or two.*\(4, 4, 4\)"):
        JointCritic(2, 2, (4, 4, 4))
    with pytest.raises(ValueError, match=r"key_features.*positive.*0"):
        JointCritic(2, 0)
    for bad in (64.5, "64", None):
        with pytest.raises(TypeError, match=rf"hidden: need a whole number.*got {type(bad).__name__}"):
            JointCritic(2, 2, bad)
    with pytest.raises(TypeError, match="hidden: need a whole number, got float"):
        JointCritic(2, 2, (64.5,))
    with pytest.raises(TypeError, match="query_features: need a whole number, got float"):
        JointCritic(2.0, 2)
    critic = JointCritic(2, 3)
    with pytest.raises(ValueError, match=r"z: need 3 features, got shape \(5, 2\)"):
        critic(torch.zeros(5, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"x: need shape .*\(2,\)"):
        critic(torch.zeros(2), torch.zeros(5, 3))
    with pytest.raises(TypeError, match="x: need float32, got float64"):
        critic(torch.zeros(5, 2).double(), torch.zeros(5, 3))


def test_a_number_is_one_hidden_layer() -> None:
    one, two = (JointCritic(2, 3, hidden, generator=generator(0)) for hidden in (5, (5,)))
    assert repr(one) == repr(two) == "JointCritic(2, 3, hidden=(5,))"
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
