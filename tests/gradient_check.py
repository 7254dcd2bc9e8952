"""A parameter's gradient against central differences, in units in which the parameter may change by about 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

_STEP = 1e-5


@dataclasses.dataclass(frozen=True)
class Along:
    """u -> mean at start + scale u of one parameter or buffer, over the root mean square of the mean at u = 0.

    `scale` is what the module that holds it says in `parameter_scale`, 1 where it says nothing.
    """

    encoder: nn.Module
    key: str
    start: Tensor
    scale: float
    domain: tuple[float | None, float | None]
    scene: Tensor
    size: float

    @classmethod
    def of(cls, encoder: nn.Module, key: str, scene: Tensor) -> Along:
        """Of the parameter or buffer with the dotted name `key`."""
        path, _, attribute = key.rpartition(".")
        module = encoder.get_submodule(path)
        with torch.no_grad():
            size = float(encoder(scene).square().mean().sqrt())
        return cls(
            encoder,
            key,
            getattr(module, attribute).detach().clone(),
            getattr(module, "parameter_scale", {}).get(attribute, 1.0),
            getattr(module, "parameter_domain", {}).get(attribute, (None, None)),
            scene,
            size,
        )

    def __call__(self, u: Tensor, *, within_domain: bool = False) -> Tensor:
        value = self.start + self.scale * u
        if within_domain and self.domain != (None, None):
            value = value.clamp(*self.domain)
        mean: Tensor = torch.func.functional_call(self.encoder, {self.key: value}, (self.scene,))
        return mean / self.size


def check_gradient(mean: Callable[[Tensor], Tensor], like: Tensor, name: str, *, least: float = 1e-4) -> None:
    """Along random directions from u = 0, float64 like `like`: off by at most 1e-3 of the derivative's own size.

    Raises:
        AssertionError: a gradient that is off, or a derivative of rms below `least`, with which nothing is checked.
    """
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        direction = torch.randn(like.shape, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            slope = (mean(_STEP * direction) - mean(-_STEP * direction)) / (2 * _STEP)
        rms = float(slope.square().mean().sqrt())
        assert rms > least, f"{name}: the case starts at a stationary point, where the derivative is {rms:.2g}"
        u = torch.zeros_like(like, dtype=torch.float64).requires_grad_()
        value = mean(u)
        # Along the slope itself no part of it cancels: a gradient of zero or twice the true one is off by all of it.
        for weights in (slope, rms * torch.randn(slope.shape, dtype=torch.float64, generator=generator)):
            (gradient,) = torch.autograd.grad(value, u, weights, retain_graph=True)
            error = float((gradient * direction).sum() - (slope * weights).sum())
            assert abs(error) <= 1e-3 * float(slope.square().sum()), f"{name}: off by {error:.3g} of {rms:.3g}"
