"""Learned critics: modules that score every pair of x and z, and return the statistics that contrastive bounds need."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bitlens import ops
from bitlens.kernels import _check
from bitlens.kernels._autocast import full_precision

__all__ = ["JointCritic"]


class JointCritic(nn.Module):
    """Scores S_ij = MLP([x_i, z_j]) of all pairs, with ReLU and one or two hidden layers, in O((n + m) hidden) memory.

    `critic(x, z)` takes x (..., n, query_features) and z (..., m, key_features) and returns `ops.InfoNCEScores`.
    Weights start as those of `nn.Linear` layers on the concatenated inputs; the first one is kept in two halves.

    Args:
        query_features, key_features: last axis of x and of z.
        hidden: units of the hidden layers, one or two numbers; a number alone is one layer.
        generator: for the initial weights. device, dtype: of the parameters, default torch's.

    Raises:
        TypeError, ValueError: `hidden` has neither one nor two entries, or a number is not whole or not positive.

    Reference: Poole et al. (2019), sec. 3 (joint critics). arXiv:1905.06922
    """

    def __init__(
        self,
        query_features: int,
        key_features: int,
        hidden: int | Sequence[int] = (64,),
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        layers = _layers(hidden)
        if len(layers) not in (1, 2):
            raise ValueError(f"hidden: need one or two layers, got {layers}")
        counts = (("query_features", query_features), ("key_features", key_features), *(("hidden", h) for h in layers))
        for name, count in counts:
            _check_count(name, count)

        def uniform(inputs: int, *shape: int) -> nn.Parameter:
            values = torch.empty(shape, device=device, dtype=dtype)
            bound = 1 / math.sqrt(inputs)
            return nn.Parameter(values.uniform_(-bound, bound, generator=generator))

        first, last = layers[0], layers[-1]
        together = query_features + key_features
        self.query_weight = uniform(together, first, query_features)
        self.key_weight = uniform(together, first, key_features)
        self.first_bias = uniform(together, first)
        self.hidden_weight = uniform(first, last, first) if len(layers) == 2 else None
        self.hidden_bias = uniform(first, last) if len(layers) == 2 else None
        self.output_weight = uniform(last, last)
        self.output_bias = uniform(last)

    @full_precision
    def forward(self, x: Tensor, z: Tensor, *, positive: Tensor | None = None) -> ops.InfoNCEScores:
        """Positives and log-sum-exps of all pairs of rows of x and z; `positive` as in `ops.joint_critic_scores`."""
        for name, value, weight in (("x", x, self.query_weight), ("z", z, self.key_weight)):
            _check.tensor(name, value, (weight.dtype,))
            _check.at_least_dims(name, value, 2, "(..., samples, features)")
            if value.shape[-1] != weight.shape[1]:
                raise ValueError(f"{name}: need {weight.shape[1]} features, got shape {tuple(value.shape)}")
        return ops.joint_critic_scores(
            nn.functional.linear(x, self.query_weight, self.first_bias),
            nn.functional.linear(z, self.key_weight),
            self.output_weight,
            hidden_weight=self.hidden_weight,
            hidden_bias=self.hidden_bias,
            output_bias=self.output_bias,
            positive=positive,
        )

    def extra_repr(self) -> str:
        hidden = [len(weight) for weight in (self.query_weight, self.hidden_weight) if weight is not None]
        return f"{self.query_weight.shape[1]}, {self.key_weight.shape[1]}, hidden={tuple(hidden)}"


def _layers(hidden: object) -> tuple[int, ...]:
    if isinstance(hidden, Sequence) and not isinstance(hidden, str):
        return tuple(hidden)
    if not isinstance(hidden, numbers.Integral):
        raise TypeError(f"hidden: need a whole number or a sequence of them, got {type(hidden).__name__}")
    return (int(hidden),)


def _check_count(name: str, count: object) -> None:
    if not isinstance(count, numbers.Integral):
        raise TypeError(f"{name}: need a whole number, got {type(count).__name__}")
    if count < 1:
        raise ValueError(f"{name}: need a positive number, got {count}")
