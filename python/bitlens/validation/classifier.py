"""Decoders that name the class: a small convolutional network, and logistic regression on principal components."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor, nn
from torch.nn import functional

from bitlens.estimators._seeds import derived_seed, take_seed
from bitlens.validation._training import Schedule, train
from bitlens.validation.decoder import (
    Decoder,
    FittedDecoder,
    GroupLabels,
    TrainableDecoder,
    checked_pairs,
    need_classes,
    validation_split,
)
from bitlens.validation.unet import check_schedule

_TEMPERATURES = torch.logspace(-0.7, 1.3, 41)
_HIDDEN = 96


class Classifier(nn.Module):
    """log softmax(temperature^-1 layers((measured - mean) / std)): (n, ...) -> (n, class)."""

    center: Tensor
    std: Tensor
    temperature: Tensor

    def __init__(self, layers: nn.Module, center: Tensor, std: Tensor) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("center", center)
        self.register_buffer("std", std)
        self.register_buffer("temperature", torch.ones((), device=center.device))

    def forward(self, measured: Tensor) -> Tensor:
        """Log-probabilities, nats."""
        return functional.log_softmax(self.layers((measured - self.center) / self.std) / self.temperature, 1)

    def calibrate(self, measured: Tensor, labels: Tensor) -> None:
        """Choose the temperature that gives these rows the least cross-entropy.

        Reference: Guo et al. 2017, On calibration of modern neural networks, arXiv 1706.04599.
        """
        self.eval()
        with torch.no_grad():
            log_probability = torch.cat([self(part) for part in measured.split(256)])
            losses = [float(functional.cross_entropy(log_probability / value, labels)) for value in _TEMPERATURES]
            self.temperature = _TEMPERATURES[int(np.argmin(losses))].to(measured.device, copy=True)


def is_image(measured: Tensor) -> bool:
    """Whether convolutions make sense: (n, channel, row, column) of at least 8 rows and columns."""
    return measured.ndim == 4 and min(measured.shape[-2:]) >= 8


@final
@dataclass(frozen=True)
class ClassifierDecoder(TrainableDecoder):
    """Log-probabilities of the classes by three convolutions and a linear layer, trained on the cross-entropy.

    Measurements that are not images of at least 8 x 8 go through a perceptron of one hidden layer instead. The best
    look is kept and its temperature calibrated on the validation rows.

    Args:
        channels: of the first convolution. n_steps, batch_size, learning_rate, weight_decay: AdamW, half a cosine.
    """

    channels: int = 16
    n_steps: int = 500
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        check_schedule(self.channels, self.n_steps, self.batch_size, self.learning_rate)
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay: need a number of at least 0, got {self.weight_decay}")

    def fit(
        self,
        measured: Tensor | NDArray[Any],
        target: Tensor | NDArray[Any],
        *,
        groups: GroupLabels | None = None,
        generator: torch.Generator | None = None,
    ) -> FittedDecoder:
        """Fitted to measurements (n, ...) and classes (n,), numbered from 0."""
        inputs, labels = checked_pairs(measured, target)
        seed = take_seed(generator)
        module = self._start(inputs, labels, seed)
        rows = validation_split(groups, len(inputs), seed)

        def loss(numbers: Tensor) -> Tensor:
            return self.loss(module(inputs[numbers]), labels[numbers])

        schedule = Schedule(self.n_steps, self.batch_size, self.learning_rate, self.weight_decay)
        history = train(module, loss, rows, schedule, seed)
        module.calibrate(inputs[rows.validation], labels[rows.validation])
        return FittedDecoder(module, history, f"temperature {float(module.temperature):.2g}")

    def build(
        self,
        measured: Tensor,
        target: Tensor,
        *,
        groups: GroupLabels | None = None,
        generator: torch.Generator | None = None,
    ) -> nn.Module:
        """The untrained network for such measurements and classes."""
        inputs, labels = checked_pairs(measured, target)
        return self._start(inputs, labels, take_seed(generator))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy, nats."""
        return functional.nll_loss(output, target)

    def _start(self, measured: Tensor, labels: Tensor, seed: int) -> Classifier:
        n_classes = need_classes(labels, self)
        std = measured.std().clamp(min=1e-30)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "weights"))
            if is_image(measured):
                layers = _convolutions(measured.shape[1], self.channels, n_classes)
            else:
                n_inputs = measured[0].numel()
                layers = nn.Sequential(
                    nn.Flatten(),
                    nn.Linear(n_inputs, _HIDDEN),
                    nn.GELU(),
                    nn.Dropout(0.1),
                    nn.Linear(_HIDDEN, n_classes),
                )
        return Classifier(layers.to(measured.device), measured.mean(0), std)


def _convolutions(n_in: int, channels: int, n_classes: int) -> nn.Sequential:
    layers = nn.Sequential(
        nn.Conv2d(n_in, channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(2 * channels, 2 * channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(32 * channels, n_classes),
    )
    return layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@final
@dataclass(frozen=True)
class LogisticDecoder(Decoder):
    """Log-probabilities of the classes by multinomial logistic regression on `n_components` principal components.

    The ridge is the best of `ridges` on the validation rows, by cross-entropy.

    Reference: Bishop, Pattern Recognition and Machine Learning 2006, section 4.3.4.
    """

    n_components: int = 64
    ridges: tuple[float, ...] = (1.0, 0.1, 0.01, 1e-3, 1e-4)

    def fit(
        self,
        measured: Tensor | NDArray[Any],
        target: Tensor | NDArray[Any],
        *,
        groups: GroupLabels | None = None,
        generator: torch.Generator | None = None,
    ) -> FittedDecoder:
        """Fitted to measurements (n, ...) and classes (n,), numbered from 0."""
        # On the CPU, where SciPy minimises.
        given, labels = checked_pairs(measured, target)
        inputs, labels = given.cpu(), labels.cpu()
        n_classes = need_classes(labels, self)
        rows = validation_split(groups, len(inputs), take_seed(generator))
        flat = inputs.flatten(1).double()
        center = flat[rows.training].mean(0)
        _, singular, axes = torch.linalg.svd(flat[rows.training] - center, full_matrices=False)
        kept = int((singular > 1e-9 * singular[0].clamp(min=1e-300)).sum().clamp(1, self.n_components))
        scale = (singular[0] / math.sqrt(len(rows.training))).clamp(min=1e-300)
        features = (flat - center) @ axes[:kept].T / scale
        start = torch.zeros(kept + 1, n_classes, dtype=torch.float64)
        best: tuple[float, float, Tensor] | None = None
        for ridge in self.ridges:
            start = _logistic(features[rows.training], labels[rows.training], n_classes, ridge, start)
            logits = features[rows.validation] @ start[:-1] + start[-1]
            loss = float(functional.cross_entropy(logits, labels[rows.validation]))
            if best is None or loss < best[0]:
                best = loss, ridge, start
        assert best is not None
        _, ridge, weights = best
        layer = nn.utils.skip_init(nn.Linear, flat.shape[1], n_classes)
        with torch.no_grad():
            layer.weight.copy_((axes[:kept].T @ weights[:-1] / scale).T)
            layer.bias.copy_(weights[-1])
        module = Classifier(
            nn.Sequential(nn.Flatten(), layer), center.float().reshape(inputs.shape[1:]), torch.ones(())
        )
        return FittedDecoder(module.to(given.device).eval(), choice=f"ridge {ridge:g}, {kept} components")


def _logistic(inputs: Tensor, labels: Tensor, n_classes: int, ridge: float, start: Tensor) -> Tensor:
    """Weights (features + 1, class) of the least mean cross-entropy plus ridge |weights|^2 / 2."""
    truth = functional.one_hot(labels, n_classes).double()

    def value(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = torch.from_numpy(flat.reshape(-1, n_classes))
        log_p = functional.log_softmax(inputs @ weights[:-1] + weights[-1], 1)
        excess = (log_p.exp() - truth) / len(inputs)
        loss = -(truth * log_p).sum() / len(inputs) + 0.5 * ridge * weights[:-1].square().sum()
        slope = torch.cat([inputs.T @ excess + ridge * weights[:-1], excess.sum(0)[None]])
        return float(loss), slope.numpy().reshape(-1)

    found = optimize.minimize(value, start.numpy().reshape(-1), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return torch.from_numpy(found.x.reshape(-1, n_classes))
