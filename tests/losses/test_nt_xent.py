"""NT-Xent against the published formula and against the truth for discrete symbols."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitlens import losses

sys.path.insert(0, str(Path(__file__).parent))
from definitions import generator, normal


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """As pytorch-metric-learning writes it: positive and negative pairs by label, one log of a ratio for each pair."""
    views = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    labels = torch.arange(len(first)).repeat(2)
    matches = (labels[:, None] == labels[None, :]).fill_diagonal_(False)
    anchors, partners = torch.where(matches)
    similarity = views @ views.T / temperature
    terms = []
    for anchor, partner in zip(anchors.tolist(), partners.tolist(), strict=True):
        negative = similarity[anchor][labels != labels[anchor]]
        largest = torch.cat([similarity[anchor, partner : partner + 1], negative]).max().detach()
        numerator = torch.exp(similarity[anchor, partner] - largest)
        terms.append(-torch.log(numerator / (torch.exp(negative - largest).sum() + numerator)))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("n", [1, 2, 60])
def test_nt_xent_is_the_published_formula(n: int, temperature: float) -> None:
    first, second = (normal(n, 8, seed=seed).requires_grad_() for seed in (1, 2))
    true, module = nt_xent(first, second, temperature), losses.NTXent(temperature=temperature)
    loss = module(first, second)
    torch.testing.assert_close(loss, true, rtol=1e-10, atol=1e-10)
    for ours, gradient in zip(
        torch.autograd.grad(loss, [first, second]), torch.autograd.grad(true, [first, second]), strict=True
    ):
        torch.testing.assert_close(ours, gradient, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(module.value(first, second), math.log(n) - true, rtol=1e-10, atol=1e-10)


def test_nt_xent_lies_below_the_truth_by_at_most_log_two() -> None:
    """Both views show the same one of 8 equally likely symbols: the information is log 8.

    Of the 2n - 1 candidates log(2n - 1) - loss would count all; log n - loss gives away log((2n - 1) / n).
    """
    symbols = torch.randint(0, 8, (400, 64), generator=generator(3))
    views = torch.nn.functional.one_hot(symbols, 8).double()
    value = losses.NTXent(temperature=0.05).value(views, views)
    truth = math.log(8)
    assert value.shape == (400,)
    assert truth - math.log(2) - 0.1 < float(value.mean()) < truth - math.log(2) + 0.1
