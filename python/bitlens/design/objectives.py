"""What a design climbs: nats per image that a batch's measurements carry, as a function that can be differentiated."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from bitlens import ops
from bitlens.densities import Density, GaussianMixtureDensity
from bitlens.design._adam import Adam
from bitlens.estimators._closed_form import gaussian_information
from bitlens.estimators._sampled_bound import sampled_lower_bound
from bitlens.noise import NoiseModel
from bitlens.noise._abilities import HasMoments
from bitlens.noise._surrogate import differentiable_sample


class Batch(NamedTuple):
    """One step's scenes (n, ...) and their means, float64, with the graph behind them.

    `noise` is the sensor, `draws` the generator of this step's noise, and `more(n)` gives n other scenes with
    measurements of them at the present design, without a graph.
    """

    scenes: Tensor
    mean: Tensor
    noise: NoiseModel
    draws: torch.Generator
    more: Callable[[int], tuple[Tensor, Tensor]]


class Objective(ABC):
    """Information of a batch in nats per image; it may hold what it learns from step to step.

    Raises:
        TypeError: a noise model that it cannot differentiate.
    """

    name: ClassVar[str]
    # Of the default learning rate: what lags behind the design wants smaller steps.
    step_share: ClassVar[float] = 1.0

    @abstractmethod
    def nats(self, batch: Batch) -> Tensor:
        """A number that differentiates in the encoder and the noise."""

    def settings(self) -> tuple[str, list[tuple[str, object]]]:
        """Its name, and the numbers that it was made with."""
        held = vars(self).items()
        return self.name, sorted((name, each) for name, each in held if isinstance(each, int | float | str | tuple))

    def state(self) -> dict[str, Tensor]:
        """All that the next step needs of the steps before."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:  # noqa: B027  # most hold nothing
        """Go on from what `state` gave."""


@final
class GaussianObjective(Objective):
    """0.5 log det(2 pi e Cov z) - E h(z|y) of the batch: no noise is drawn, an upper bound for many scenes.

    Reference: Pinkard et al. 2024, arXiv 2405.20559; `gaussian_information`.
    """

    name = "gaussian"

    def nats(self, batch: Batch) -> Tensor:
        """`gaussian_information` of the means."""
        return gaussian_information(batch.mean, batch.noise)


@final
class KnownChannelObjective(Objective):
    """The lower bound L_K = mean_i [log p(z_i|y_i) - log mean_j p(z_i|y_j)] <= log K of the K scenes of the batch.

    Exact for photons too: their gradient is E f(N + 1) - E f(N). Scenes must be independent of each other.

    Reference: Poole et al. 2019, arXiv 1905.06922, section 2.5.
    """

    name = "known_channel"

    def nats(self, batch: Batch) -> Tensor:
        """L_K with noise drawn for this step."""
        return sampled_lower_bound(batch.mean, batch.noise, batch.draws)


@final
class DensityObjective(Objective):
    """-E log q(z) - E h(z|y): an upper bound, q fitted to other measurements every `refit_every` steps.

    The gradient at fixed q is the whole one where q is the best of its family (envelope theorem). It goes through the
    measurements by their mean and standard deviation: 0.2 % off for photons at 20 electrons, 12 % at 2, 33 % at 0.5.

    Args:
        density: what is fitted; default a Gaussian mixture whose settings are chosen at the first fit.
        refit_every: steps with one q.
        n_fit: measurements that q is fitted to, at most; fewer scenes are drawn again.

    Reference: Pinkard et al. 2024, arXiv 2405.20559.
    """

    name = "density"
    # Larger steps climb the errors of a density that was fitted to the design of some steps before.
    step_share = 0.2

    def __init__(self, density: Density | None = None, *, refit_every: int = 5, n_fit: int = 1000) -> None:
        if density is not None and not isinstance(density, Density):
            raise TypeError(f"density: need a density of bitlens.densities or None, got {type(density).__name__}")
        _at_least("refit_every", refit_every, 1)
        _at_least("n_fit", n_fit, 10)
        self._density = GaussianMixtureDensity() if density is None else density
        self._refit_every, self._n_fit = refit_every, n_fit
        self._step = 0
        # The first one chooses what later fits keep, such as a mixture's number of components.
        self._fitted_to: tuple[Tensor, ...] = ()

    def nats(self, batch: Batch) -> Tensor:
        """Mean over the batch of -log q(z) - h(z|y); q has not seen these measurements."""
        if self._step % self._refit_every == 0:
            measured = _dithered(batch.more(self._n_fit)[1], batch.noise, batch.draws)
            self._fitted_to = (*self._fitted_to[:1], measured)
            self._density = self._density.fit(measured)
        self._step += 1
        entropy_given_scene = batch.noise.entropy(batch.mean).flatten(1).sum(dim=1).mean()
        measured = _dithered(differentiable_sample(batch.noise, batch.mean, batch.draws), batch.noise, batch.draws)
        return -self._density.log_prob(measured).mean() - entropy_given_scene

    def state(self) -> dict[str, Tensor]:
        """The number of steps and what the density was fitted to first and last."""
        fitted_to = {f"fitted_to.{place}": measured for place, measured in enumerate(self._fitted_to)}
        return {"step": torch.tensor(self._step), **fitted_to}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Fit again to the same measurements."""
        self._step = int(state["step"])
        self._fitted_to = tuple(value for name, value in sorted(state.items()) if name.startswith("fitted_to"))
        for measured in self._fitted_to:
            self._density = self._density.fit(measured)


@final
class CriticObjective(Objective):
    """InfoNCE of a learned critic of scene and measurement: a lower bound, at most log n of the batch.

    S_ij = f(x_i) . g(z_j) of two networks with one hidden layer, which take `n_inner` steps at every step of the
    design, on scenes of their own. For channels whose likelihood is not at hand; the gradient goes through the
    measurements as that of `DensityObjective`.

    Args:
        hidden: units of the hidden layers. n_features: length of f and g. learning_rate: of the networks' Adam.

    Reference: van den Oord et al. 2018, arXiv 1807.03748; Poole et al. 2019, arXiv 1905.06922.
    """

    name = "critic"

    def __init__(
        self, *, hidden: int = 128, n_features: int = 32, n_inner: int = 4, learning_rate: float = 2e-3
    ) -> None:
        for name, value in (("hidden", hidden), ("n_features", n_features), ("n_inner", n_inner)):
            _at_least(name, value, 1)
        if not (math.isfinite(learning_rate) and learning_rate > 0):
            raise ValueError(f"learning_rate: need a number above 0, got {learning_rate}")
        self._sizes, self._n_inner, self._rate = (hidden, n_features), n_inner, learning_rate
        self._weights: dict[str, Tensor] = {}
        self._optimizer: Adam | None = None

    def nats(self, batch: Batch) -> Tensor:
        """InfoNCE of the batch after the networks' own steps."""
        n = len(batch.scenes)
        if not self._weights:
            self._start(batch)
        assert self._optimizer is not None
        for _ in range(self._n_inner):
            scenes, measured = batch.more(n)
            weights = {name: value.detach().requires_grad_() for name, value in self._weights.items()}
            with torch.enable_grad():
                bound = self._bound(weights, scenes, measured)
                learned = {name: value for name, value in weights.items() if not name.startswith("_")}
                gradients = torch.autograd.grad(bound, list(learned.values()))
            own = {name: self._weights[name] for name in learned}
            self._optimizer.step(own, dict(zip(learned, gradients, strict=True)), 1.0)
        return self._bound(self._weights, batch.scenes, differentiable_sample(batch.noise, batch.mean, batch.draws))

    def state(self) -> dict[str, Tensor]:
        """The networks and their optimiser."""
        if self._optimizer is None:
            return {}
        return {f"weight.{k}": v for k, v in self._weights.items()} | {
            f"adam.{k}": v for k, v in self._optimizer.state().items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on with these networks."""
        if not state:
            self._weights, self._optimizer = {}, None
            return
        self._weights = {k.removeprefix("weight."): v.clone() for k, v in state.items() if k.startswith("weight.")}
        self._optimizer = self._new_optimizer()
        self._optimizer.load_state({k.removeprefix("adam."): v for k, v in state.items() if k.startswith("adam.")})

    def _start(self, batch: Batch) -> None:
        hidden, n_features = self._sizes
        scenes, measured = batch.more(max(200, len(batch.scenes)))
        for side, values in (("x", scenes), ("z", measured)):
            flat = values.flatten(1).to(torch.float64)
            # Networks see each side centred and of unit mean square.
            self._weights[f"_{side}_centre"] = flat.mean(0)
            self._weights[f"_{side}_scale"] = (flat - flat.mean(0)).square().mean().sqrt().clamp_min(1e-12)
            n_in = flat.shape[1]
            for layer, (n_from, n_to) in enumerate(((n_in, hidden), (hidden, n_features))):
                weight = torch.empty(n_to, n_from, dtype=torch.float64, device=flat.device)
                nn.init.normal_(weight, std=math.sqrt(1.0 / n_from), generator=batch.draws)
                self._weights[f"{side}{layer}.weight"] = weight
                self._weights[f"{side}{layer}.bias"] = torch.zeros(n_to, dtype=torch.float64, device=flat.device)
        self._optimizer = self._new_optimizer()

    def _new_optimizer(self) -> Adam:
        learned = {name: value for name, value in self._weights.items() if not name.startswith("_")}
        return Adam(learned, dict.fromkeys(learned, self._rate), ())

    def _bound(self, weights: dict[str, Tensor], scenes: Tensor, measured: Tensor) -> Tensor:
        sides = [_network(weights, side, values) for side, values in (("x", scenes), ("z", measured))]
        scale = 1.0 / math.sqrt(self._sizes[1])
        scores = ops.infonce_scores(sides[1], sides[0], scale=scale)
        return (scores.positive - scores.row_logsumexp).mean() + math.log(len(scenes))


def _network(weights: dict[str, Tensor], side: str, values: Tensor) -> Tensor:
    flat = (values.flatten(1).to(torch.float64) - weights[f"_{side}_centre"]) / weights[f"_{side}_scale"]
    hidden = nn.functional.linear(flat, weights[f"{side}0.weight"], weights[f"{side}0.bias"])
    return nn.functional.linear(nn.functional.silu(hidden), weights[f"{side}1.weight"], weights[f"{side}1.bias"])


def _dithered(measured: Tensor, noise: NoiseModel, draws: torch.Generator) -> Tensor:
    """Whole counts plus Uniform(0, 1), whose differential entropy is the entropy of the counts."""
    if not noise.discrete:
        return measured
    return measured + torch.rand(measured.shape, dtype=measured.dtype, device=measured.device, generator=draws)


_BY_NAME: dict[str, Callable[[], Objective]] = {
    kind.name: kind for kind in (GaussianObjective, KnownChannelObjective, DensityObjective, CriticObjective)
}
OBJECTIVES = ("auto", *_BY_NAME)
# Share of log K below which a lower bound follows the information instead of its own ceiling.
FLOOR_SHARE = 0.7
# The closed form stands while it exceeds the estimate by less than this share of it.
_CLOSE = 0.2
# Less information than this leaves the lower bound without a slope, such as where every pixel is saturated.
_LITTLE_BITS = 0.5
_MOST_PIXELS_OF_DENSITY = 1024


class Chosen(NamedTuple):
    """An objective and why it is the one."""

    objective: Objective
    reason: str


def choose_objective(
    given: str | Objective,
    noise: NoiseModel,
    mean: Tensor,
    judged_bits: float,
    stderr_bits: float,
    n_batch: int,
    *,
    floor: bool = False,
) -> Chosen:
    """The objective of that name; for "auto" the one that fits what the start's `mean` (n, ...) carries.

    The closed form, unless it is not there or exceeds the judge's estimate by a fifth: then scenes are not Gaussian,
    and the lower bound is climbed where it is below its ceiling, a fitted density where it is not. A start that
    carries next to nothing is climbed by the closed form, which has a slope there. A `floor`, or an estimate above the
    closed form, which is the most that such a covariance allows, does not say how close the closed form is.
    """
    if isinstance(given, Objective):
        return Chosen(given, "given by the caller")
    if given != "auto":
        return Chosen(_BY_NAME[given](), "named by the caller")
    ceiling = math.log2(n_batch)
    low_enough = judged_bits < FLOOR_SHARE * ceiling
    if not isinstance(noise, HasMoments):
        return Chosen(
            KnownChannelObjective(), f"{type(noise).__name__} has no expected and variance for the closed form"
        )
    with torch.no_grad():
        closed_form = float(gaussian_information(mean, noise)) / math.log(2)
    at_least = "at least " if floor else ""
    said = (
        f"at the start the closed form is {closed_form:.2f} bits per image and the estimate {at_least}{judged_bits:.2f}"
    )
    margin = max(_CLOSE * judged_bits, 3 * stderr_bits)
    if closed_form <= judged_bits + margin:
        above = judged_bits > closed_form + max(_CLOSE * closed_form, 3 * stderr_bits)
        why = "too few scenes judge to say how close, and it has a slope everywhere" if above else "close enough"
        return Chosen(GaussianObjective(), f"{said}: {why}")
    if floor and closed_form < FLOOR_SHARE * ceiling:
        return Chosen(KnownChannelObjective(), f"{said}; the lower bound's ceiling, {ceiling:.1f} bits, is above both")
    if floor:
        return Chosen(
            GaussianObjective(), f"{said}: too few scenes judge to say how close, and it has a slope everywhere"
        )
    if judged_bits < _LITTLE_BITS:
        return Chosen(GaussianObjective(), f"{said}: so little that the lower bound would have no slope")
    if low_enough:
        return Chosen(KnownChannelObjective(), f"{said}; the lower bound's ceiling, {ceiling:.1f} bits, is far above")
    if mean[0].numel() > _MOST_PIXELS_OF_DENSITY:
        return Chosen(
            GaussianObjective(),
            f"{said}, but the lower bound's ceiling is {ceiling:.1f} bits and {mean[0].numel()} pixels are too many "
            "for a density in every step",
        )
    return Chosen(DensityObjective(), f"{said}, and the lower bound's ceiling only {ceiling:.1f} bits")


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: need a whole number of at least {least}, got {value!r}")
