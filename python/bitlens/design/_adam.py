"""Adam that knows which parameters are projected onto a set that couples their elements."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import final

import torch
from torch import Tensor

_BETA_MEAN, _BETA_SQUARE, _EPSILON = 0.9, 0.999, 1e-8


@final
class Adam:
    """Ascent along m / sqrt(v), m and v the running means of the gradient and of its square.

    v is elementwise, but one number for a parameter in `coupled`: a step that is scaled element by element is not
    along the gradient, and followed by a projection onto a sphere or simplex it comes to rest where it should not
    (all elements grow alike, and the projection takes it back).

    Reference: Kingma and Ba 2015, arXiv 1412.6980, algorithm 1.
    """

    def __init__(self, values: Mapping[str, Tensor], rates: Mapping[str, float], coupled: Collection[str]) -> None:
        self._rates, self._coupled = dict(rates), frozenset(coupled)
        self._mean = {name: torch.zeros_like(value.detach()) for name, value in values.items()}
        self._square = {name: self._power(name, torch.zeros_like(value.detach())) for name, value in values.items()}
        self._n_steps = 0

    @torch.no_grad()
    def step(self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor], share: float) -> None:
        """Moves `values` one step uphill, `share` of the learning rate of each parameter long."""
        self._n_steps += 1
        for name, gradient in gradients.items():
            mean, square = self._mean[name], self._square[name]
            mean.lerp_(gradient, 1 - _BETA_MEAN)
            square.lerp_(self._power(name, gradient), 1 - _BETA_SQUARE)
            unbiased = mean / (1 - _BETA_MEAN**self._n_steps)
            # The smallest gradient that counts is in the unit of the step: none may hang on the unit of a parameter.
            scale = (square / (1 - _BETA_SQUARE**self._n_steps)).sqrt() + _EPSILON / self._rates[name]
            values[name].add_(share * self._rates[name] * unbiased / scale)

    def state(self) -> dict[str, Tensor]:
        """Running means and the number of steps."""
        means = {f"mean.{name}": value for name, value in self._mean.items()}
        squares = {f"square.{name}": value for name, value in self._square.items()}
        return means | squares | {"n_steps": torch.tensor(self._n_steps)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for name in self._mean:
            self._mean[name] = state[f"mean.{name}"].clone()
            self._square[name] = state[f"square.{name}"].clone()
        self._n_steps = int(state["n_steps"])

    def _power(self, name: str, gradient: Tensor) -> Tensor:
        return gradient.square().mean() if name in self._coupled else gradient.square()
