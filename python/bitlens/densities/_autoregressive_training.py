"""Training of a network: Adam with a falling rate, the best parameters on rows that it does not train on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_LEAST_STEPS = 300
_BETA_MEAN, _BETA_SQUARE, _EPSILON = 0.9, 0.99, 1e-8
_LARGEST_GRADIENT_NORM = 1.0
_WARM_UP = 0.08
_PATIENCE = 3
# A pass that gains less, nats per value, is as good as none; a fit that gained ten times as much has learned.
_LEAST_GAIN = 2e-4
# Share of the passes in which the rate comes down; progress that has come to rest earlier goes on there.
_DESCENT = 0.3

Parameters = dict[str, Tensor]


class Trained(NamedTuple):
    """The parameters that did best on the validation rows, and the loss there before and after each pass."""

    parameters: Parameters
    validation: tuple[float, ...]
    stopped_early: bool


def train(
    parameters: Parameters,
    loss: Callable[[Parameters, Tensor], Tensor],
    validate: Callable[[Parameters], float],
    *,
    n_samples: int,
    batch: int,
    max_passes: int,
    learning_rate: float,
    generator: torch.Generator,
) -> Trained:
    """Up to `max_passes` passes over the rows; fewer where `validate` comes to rest for three.

    What has learned by then still gains from a falling rate and gets the passes at the end of the schedule.
    `loss` takes parameters and the indices of some rows; it and `validate` give nats per value.
    """
    n_batches = math.ceil(n_samples / batch)
    # Few rows make short passes: a pass is then several times through them.
    repeats = max(1, math.ceil(_LEAST_STEPS / (max_passes * n_batches)))
    pass_steps = repeats * n_batches
    n_steps = max_passes * pass_steps
    descent = n_steps - math.ceil(_DESCENT * max_passes) * pass_steps
    parameters = _copy(parameters)
    adam = _Adam(parameters)
    best, history = _copy(parameters), [validate(parameters)]
    mark, idle, step = history[0], 0, 0
    while step < n_steps:
        for _ in range(repeats):
            order = torch.randperm(n_samples, generator=generator)
            for chosen in order.tensor_split(n_batches):
                adam.step(loss, chosen, learning_rate * _share(step / n_steps))
                step += 1
        history.append(validate(parameters))
        if history[-1] < min(history[:-1]):
            best = _copy(parameters)
        if history[-1] < mark - _LEAST_GAIN:
            mark, idle = history[-1], 0
        else:
            idle += 1
        if idle == _PATIENCE:
            if step >= descent or history[0] - mark < 10.0 * _LEAST_GAIN:
                return Trained(best, tuple(history), True)
            step, idle = descent, 0
    return Trained(best, tuple(history), False)


class _Adam:
    """Kingma and Ba 2015, arXiv 1412.6980, algorithm 1, on gradients of limited norm."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._mean = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self._square = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self._n_steps = 0

    def step(self, loss: Callable[[Parameters, Tensor], Tensor], chosen: Tensor, rate: float) -> None:
        """One step of length `rate` downhill; none where the gradient is not finite."""
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_(True) for name, value in self._parameters.items()}
            gradients = torch.autograd.grad(loss(leaves, chosen), list(leaves.values()))
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        if not math.isfinite(norm):
            return
        shrink = min(1.0, _LARGEST_GRADIENT_NORM / (norm + _EPSILON))
        self._n_steps += 1
        with torch.no_grad():
            for (name, parameter), gradient in zip(self._parameters.items(), gradients, strict=True):
                limited = gradient * shrink
                mean = self._mean[name].lerp_(limited, 1 - _BETA_MEAN)
                square = self._square[name].lerp_(limited.square(), 1 - _BETA_SQUARE)
                scale = (square / (1 - _BETA_SQUARE**self._n_steps)).sqrt() + _EPSILON
                parameter.sub_(mean / scale, alpha=rate / (1 - _BETA_MEAN**self._n_steps))


def _share(progress: float) -> float:
    """Share of the learning rate: a linear rise, then half a cosine down to zero."""
    if progress < _WARM_UP:
        return (progress + 0.1 * _WARM_UP) / (1.1 * _WARM_UP)
    return 0.5 * (1.0 + math.cos(math.pi * (progress - _WARM_UP) / (1.0 - _WARM_UP)))


def _copy(parameters: Parameters) -> Parameters:
    return {name: value.detach().clone() for name, value in parameters.items()}
