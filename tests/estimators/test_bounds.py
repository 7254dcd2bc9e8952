"""Influence and variance reduction of the bounds, exactly: no statistics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bitlens import GaussianNoise
from bitlens.estimators import _bounds, _known_channel
from bitlens.estimators._density import DensityRows
from bitlens.estimators._inputs import make_groups

pytestmark = pytest.mark.usefixtures("one_thread")


def density_with(log_prob: Tensor) -> DensityRows:
    return DensityRows(log_prob, torch.zeros_like(log_prob), "made", True, ())


@pytest.mark.parametrize("share", [1.0, 0.3, -2.0])
def test_what_varies_with_the_noise_alone_is_taken_out_of_the_upper_bound(share: float) -> None:
    """-log q - h = 3 + share (log p + h) in every image: without the noise's part each image says 3."""
    rng = torch.Generator().manual_seed(0)
    residual = torch.randn(60, generator=rng, dtype=torch.float64)
    conditional = 2 + torch.rand(60, generator=rng, dtype=torch.float64)
    groups = make_groups(None, residual, rng)
    density = density_with(-(3 + share * residual) - conditional)
    rows = _bounds._density_rows(density, residual - conditional, conditional, groups)
    torch.testing.assert_close(rows, torch.full_like(rows, 3.0), rtol=0, atol=1e-12)


def test_share_of_the_noise_that_is_taken_out_is_fitted_on_other_folds() -> None:
    rng = torch.Generator().manual_seed(1)
    residual, noise = torch.randn(2, 40, generator=rng, dtype=torch.float64)
    conditional = torch.zeros_like(residual)
    groups = make_groups(None, residual, rng)
    plain = residual + 0.5 * noise
    rows = _bounds._density_rows(density_with(-plain), residual, conditional, groups)
    for fold in range(groups.n_folds):
        others, here = groups.folds != fold, groups.folds == fold
        slope, _ = torch.linalg.lstsq(
            torch.stack([residual[others], torch.ones(int(others.sum()), dtype=torch.float64)], 1), plain[others, None]
        ).solution[:, 0]
        torch.testing.assert_close(rows[here], plain[here] - slope * residual[here])


@pytest.mark.parametrize("share", [0.2, 0.7, 1.0])
def test_influence_on_the_upper_bound_is_its_derivative_by_the_weight_of_a_scene(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raising the weight of a scene moves the bound through its own row and through the marginal of all the others.

    Oracle: the bound written out with a weight per scene, differentiated by torch. The two differ by how the row
    that leaves its own scene out is normalised, which is 1 / (n - 1) at most.
    """
    n = 80
    noise = GaussianNoise(1.0)
    rng = torch.Generator().manual_seed(0)
    mean = 1.5 * torch.randn(n, 1, 2, generator=rng, dtype=torch.float64)
    measured = noise.sample(mean, rng)
    groups = make_groups(None, measured, rng)
    channel = _known_channel.known_channel(measured, mean, noise, groups)
    assert channel is not None
    log_density = -0.5 * (measured**2 / 3.25).flatten(1).sum(1) - math.log(2 * math.pi * 3.25)
    monkeypatch.setattr(_bounds, "_mixture_weight", lambda *_: torch.full((n,), share, dtype=torch.float64))
    upper = _bounds._best_upper(channel, density_with(log_density), channel.positive, torch.zeros(n), groups)
    assert upper is not None

    scores = noise.log_prob(measured[:, None], mean[None]).flatten(2).sum(2)
    outside = torch.exp(scores).masked_fill(torch.eye(n, dtype=torch.bool), 0.0)
    weight = torch.ones(n, dtype=torch.float64, requires_grad=True)
    marginal = (outside * weight).sum(1) / (weight.sum() - weight)
    rows = scores.diagonal() - torch.log(share * marginal + (1 - share) * torch.exp(log_density))
    bound = (weight * rows).sum() / weight.sum()
    (derivative,) = torch.autograd.grad(bound, weight)
    assert float(upper.terms.rows.mean()) == pytest.approx(bound.item(), abs=1e-12)
    influence = upper.terms.influence(channel)
    torch.testing.assert_close(influence, bound.detach() + n * derivative, rtol=0, atol=1 / (n - 1))
    # The rows alone are far from it: the test sees the part of the columns.
    assert float((rows.detach() - influence).abs().max()) > 10 / (n - 1)
