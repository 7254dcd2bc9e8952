"""Adam that knows which parameters are projected onto a set that couples their elements."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import final

import torch
from torch import Tensor, nn

_BETA_MEAN, _BETA_SQUARE, _EPSILON = 0.9, 0.999, 1e-8


@final
class Adam:
    """Ascent along m / sqrt(v), m and v the running means of the gradient and of its square.

    v is elementwise, but one number for a parameter in `coupled`: a step that is scaled element by element is not
    along the gradient, and followed by a projection onto a sphere or simplex it comes to rest where it should not
    (all elements grow alike, and the projection takes it back).

    Reference: Kingma and Ba 2015, arXiv 1412.6980, algorithm 1.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float], coupled: Collection[str]
    ) -> None:
        self._parameters, self._rates, self._coupled = dict(parameters), dict(rates), frozenset(coupled)
        self._mean = {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        self._square = {name: self._power(name, torch.zeros_like(p)) for name, p in self._parameters.items()}
        self._n_steps = 0

    def clear_gradients(self) -> None:
        """Forget the gradients of the last step."""
        for parameter in self._parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, share: float) -> None:
        """One step uphill, `share` of the learning rate of each parameter long."""
        self._n_steps += 1
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            mean, square = self._mean[name], self._square[name]
            mean.lerp_(parameter.grad, 1 - _BETA_MEAN)
            square.lerp_(self._power(name, parameter.grad), 1 - _BETA_SQUARE)
            unbiased = mean / (1 - _BETA_MEAN**self._n_steps)
            scale = (square / (1 - _BETA_SQUARE**self._n_steps)).sqrt() + _EPSILON
            parameter.add_(share * self._rates[name] * unbiased / scale)

    def gradient_norm(self) -> float:
        """Euclidean norm of all gradients together; NaN where one of them is not finite."""
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        total = sum(float(gradient.double().square().sum()) for gradient in gradients)
        return math.sqrt(total) if math.isfinite(total) else math.nan

    def _power(self, name: str, gradient: Tensor) -> Tensor:
        return gradient.square().mean() if name in self._coupled else gradient.square()
