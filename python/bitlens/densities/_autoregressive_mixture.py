"""Mixtures of logistic laws, of a real number or of the integer nearest to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Widths relative to the Gaussian's: a component can neither shrink onto one repeated value nor leave the images.
_LOG_WIDTH_RANGE = (-6.0, 4.0)


class Targets(NamedTuple):
    """Values as the likelihood wants them, each (n, D): relative to location and scale of the Gaussian.

    `half_bin` is half the width of an integer's bin, None for continuous values; `lower_open` and `upper_open` say
    which bins reach to -infinity and +infinity, None where none does.
    """

    residual: Tensor
    log_scale: Tensor
    half_bin: Tensor | None = None
    lower_open: Tensor | None = None
    upper_open: Tensor | None = None

    def rows(self, chosen: Tensor | slice) -> Targets:
        """Some of the images."""
        return self._each(lambda part: part[chosen])

    def flatten(self) -> Targets:
        """All values in a row, (n D,)."""
        return self._each(Tensor.flatten)

    def to(self, dtype: torch.dtype) -> Targets:
        """Numbers as `dtype`; flags stay."""
        return self._each(lambda part: part.to(dtype) if part.is_floating_point() else part)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Targets:
        optional = (None if part is None else change(part) for part in self[2:])
        return Targets(change(self.residual), change(self.log_scale), *optional)


class Mixture(NamedTuple):
    """Logits, locations and log widths of the components, (..., K) each, relative to the Gaussian."""

    logit: Tensor
    location: Tensor
    log_width: Tensor


def mixture(raw: Tensor) -> Mixture:
    """The three parts of `raw`, (..., 3 K)."""
    logit, location, log_width = raw.chunk(3, -1)
    return Mixture(logit, location, log_width.clamp(*_LOG_WIDTH_RANGE))


def log_prob(raw: Tensor, targets: Targets) -> Tensor:
    """Log probability (of an integer) or density of each value, nats: raw (n, D, 3 K) -> (n, D).

    With a, b the ends of a bin in units of a component's width, F(a) - F(b) = F(a) F(-b) (1 - exp(b - a)) for the
    logistic distribution function F: no difference of nearly equal numbers.
    """
    logit, location, log_width = mixture(raw)
    inverse = torch.exp(-log_width)
    centre = (targets.residual[..., None] - location) * inverse
    if targets.half_bin is None:
        component = functional.logsigmoid(centre) + functional.logsigmoid(-centre) - log_width
        component = component - targets.log_scale[..., None]
    else:
        half = targets.half_bin[..., None] * inverse
        below_upper = functional.logsigmoid(centre + half)
        above_lower = functional.logsigmoid(half - centre)
        between = torch.log(-torch.expm1(-2.0 * half))
        if targets.lower_open is not None:
            above_lower = above_lower.masked_fill(targets.lower_open[..., None], 0.0)
            between = between.masked_fill(targets.lower_open[..., None], 0.0)
        if targets.upper_open is not None:
            below_upper = below_upper.masked_fill(targets.upper_open[..., None], 0.0)
            between = between.masked_fill(targets.upper_open[..., None], 0.0)
        component = below_upper + above_lower + between
    return torch.logsumexp(logit + component, -1) - torch.logsumexp(logit, -1)


def sample(raw: Tensor, generator: torch.Generator | None) -> Tensor:
    """One residual of each mixture, relative to the Gaussian: raw (n, 3 K) -> (n,) float64."""
    # On the CPU, where the generator is.
    parts = mixture(raw.to("cpu", torch.float64))
    chosen = torch.multinomial(parts.logit.softmax(-1), 1, generator=generator)
    location, log_width = (part.gather(-1, chosen)[:, 0] for part in parts[1:])
    # Away from 0 and 1, where the quantile is infinite.
    uniform = torch.rand(len(raw), dtype=torch.float64, generator=generator).clamp(1e-15, 1.0 - 1e-15)
    return (location + log_width.exp() * torch.logit(uniform)).to(raw.device)


def start(targets: Targets, n_components: int, n_steps: int = 120, rate: float = 0.08) -> Tensor:
    """One mixture for all values, (3 K,): quantiles of the residuals, then ascent of their likelihood."""
    residual = targets.residual.flatten().double()
    levels = (torch.arange(n_components, dtype=torch.float64) + 0.5) / n_components
    location = torch.quantile(residual[: 2**20], levels.to(residual.device))
    spread = float(residual.std().clamp_min(1e-3))
    # A logistic law of width w has standard deviation w pi / sqrt(3); neighbours overlap at half their distance.
    width = torch.full_like(location, spread / (1.0 + 0.8 * (n_components - 1)) * 0.8).log()
    raw = torch.cat([torch.zeros_like(location), location, width]).to(targets.residual.dtype)
    first, second = torch.zeros_like(raw), torch.zeros_like(raw)
    with torch.enable_grad():
        for step in range(1, n_steps + 1):
            raw.requires_grad_(True)
            (gradient,) = torch.autograd.grad(-log_prob(raw, targets).mean(), raw)
            raw = raw.detach()
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient.square(), 0.05)
            scale = (second / (1 - 0.95**step)).sqrt() + 1e-8
            raw -= rate * (1.0 - step / (n_steps + 1)) * (first / (1 - 0.9**step)) / scale
    return raw
