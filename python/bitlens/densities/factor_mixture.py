"""Mixture of Gaussians with covariances of their own: factor analysers, or full covariances."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self, final

import torch
from torch import Tensor

from bitlens.densities._factor_models import FULL, Factors, Fit, Full, Model, Prior, expectation_maximisation
from bitlens.densities._starts import brightness_and_contrast, clustered, principal
from bitlens.densities.base import Density, as_images
from bitlens.densities.gaussian_mixture import GaussianMixtureDensity

_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_FIRST_COUNT, _FULL_COUNTS = 4, (1, 2, 4, 8, 16, 32, 64)
_RANKS = (0, 1, 2, 4, 8, 16, 32)
_FIRST_RANK = 4
_PRIOR_IMAGES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
_FIRST_PRIOR_IMAGES, _MIXTURE_PRIOR_IMAGES = 10.0, 1000.0
# Images for each pixel: about that many correlations of nothing but noise are as large as those of a signal.
_DIAGONAL_IMAGES = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_FIRST_DIAGONAL_IMAGES, _FULL_DIAGONAL_IMAGES = 1.0, 10.0
_LEAST_IMAGES, _IMAGES_PER_COMPONENT = 20, 10
_TRIAL_STEPS, _STEPS_AT_A_TIME, _LAST_STEPS = 15, 5, 20
_TOLERANCE_NATS_PER_PIXEL = 2e-5
_STOP_NATS_PER_PIXEL = 5e-5  # of the images kept from the trials, in _STEPS_AT_A_TIME
# What factors of the pixels may lack of the best trial and still be tried further.
_HOPELESS_NATS_PER_PIXEL = 0.2
_LEAST_VARIANCE = 1e-200
_VARIANCE_FLOOR = 1e-6  # of the mean variance: kept above rounding where pixels are constant
# What components start from: clusters of images, or a fitted mixture on common axes.
_BY_BRIGHTNESS, _BY_PRINCIPAL, _BY_MIXTURE = 0, 1, 2


class _Choice(NamedTuple):
    """Components, what they start from, and how they are shrunk; `turned` to the common axes."""

    components: int
    start: int
    rank: int
    turned: bool
    images: float
    diagonal_images: float


class _Trial(NamedTuple):
    """A fit to some of the images, None before its first step, and its mean log density of the others."""

    choice: _Choice
    score: float
    model: Model | None
    axes: Tensor
    prior: Prior
    steps: int = 0


@final
@dataclass(frozen=True, eq=False)
class FactorMixtureDensity(Density):
    """q(z) = sum_k w_k N(z; m_k, U C_k U'), C_k = W_k W_k' + diag(psi_k) ("low_rank") or free ("full").

    `FactorMixtureDensity().fit(measured)` is the fitted density. U is the identity or axes that all share, those
    of `GaussianMixtureDensity` where the number of components is free. Each C_k is drawn to one on common axes and to
    no correlation, and is never singular. What is None, U and both weights are the best on a fifth of the images kept
    from the trials, which also end them. `held_out_bias_nats` is NaN: selection leaves no parameter count for it.

    Raises:
        ValueError: another covariance, n_components or max_iterations below 1, rank below 0.

    Reference: McLachlan and Peel 2000, doi:10.1002/0471721182, ch. 8; Rubin and Thayer 1982, doi:10.1007/BF02293851.
    """

    covariance: Literal["low_rank", "full"] = "low_rank"
    n_components: int | None = None
    rank: int | None = None
    max_iterations: int = 100
    seed: int = 0
    log_weights: Tensor | None = field(default=None, repr=False)
    means: Tensor | None = field(default=None, repr=False)
    axes: Tensor | None = field(default=None, repr=False)
    loadings: Tensor | None = field(default=None, repr=False)
    variances: Tensor | None = field(default=None, repr=False)
    cholesky: Tensor | None = field(default=None, repr=False)
    n_samples: int = 0
    held_out_bias_nats: float = math.nan
    converged: bool = False

    def __post_init__(self) -> None:
        if self.covariance not in ("low_rank", "full"):
            raise ValueError(f'covariance: need "low_rank" or "full", got {self.covariance!r}')
        least = {"n_components": 1, "rank": 0, "max_iterations": 1}
        for name, value in least.items():
            given = getattr(self, name)
            if given is not None and given < value:
                raise ValueError(f"{name}: need at least {value}, got {given}")

    def fit(self, measured: Tensor) -> Self:
        """Components for `measured`, (n, ...): trials on four fifths of the images, then a fit to all.

        Raises:
            ValueError: fewer than 20 images or 2 per component, values that are not finite, images without variation,
                or a rank of as many as there are pixels.
        """
        images = as_images(measured, minimum_samples=max(_LEAST_IMAGES, 2 * (self.n_components or 1)))
        flat = images.flatten(1)
        n_pixels = flat.shape[1]
        if self.rank is not None and self.rank > max(n_pixels - 1, 0):
            raise ValueError(f"rank: need less than the {n_pixels} pixels of an image, got {self.rank}")
        total = float(flat.var(0).mean())
        if not (bool((flat != flat[0]).any()) and _LEAST_VARIANCE < total < 1.0 / _LEAST_VARIANCE):
            raise ValueError("measured: need images that vary within the range of float64, got constant or too wide")
        # A power of two, so that the unit of the images changes no digit of the fit.
        unit = 2.0 ** round(0.5 * math.log2(total))
        offset = flat.mean(0)
        values = (flat - offset) / unit
        trial, starts = self._chosen(images / unit, values)
        if trial.choice.start == _BY_MIXTURE:
            # The common axes and the variances along them take their share of the images kept from the trials.
            starts = starts.of_all(images / unit, values)
            share = starts.shares(trial.choice.components, _BY_MIXTURE)
            axes, prior = starts.common(share, trial.choice)
            trial = trial._replace(model=None, axes=axes, prior=prior)
            turned = _turned(values, trial)
        else:
            turned = _turned(values, trial)
            share = _posteriors(trial, turned)
        model, _, converged = self._steps(turned, share, trial, _LAST_STEPS if trial.model else trial.steps)
        means = model.means @ trial.axes.mT if trial.choice.turned else model.means
        factors = model if isinstance(model, Factors) else None
        return type(self)(
            self.covariance,
            self.n_components,
            self.rank,
            self.max_iterations,
            self.seed,
            model.log_weights,
            (unit * means + offset).reshape(-1, *images.shape[1:]),
            trial.axes if trial.choice.turned else None,
            unit * factors.loadings if factors is not None else None,
            unit**2 * factors.variances if factors is not None else None,
            unit * model.cholesky if isinstance(model, Full) else None,
            len(images),
            math.nan,
            converged,
        )

    def log_prob(self, measured: Tensor) -> Tensor:
        """log q(z) of each image, (n, ...) -> (n,) nats."""
        model, offset, shape = self._fitted()
        values = as_images(measured, shape).flatten(1) - offset
        return model.scores(values if self.axes is None else values @ self.axes).logsumexp(1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """A component drawn by its weight and a Gaussian image from it: n images, (n, ...)."""
        model, offset, shape = self._fitted()
        uniform = torch.rand(n, dtype=torch.float64, generator=generator)
        normal = torch.randn(n, offset.numel(), dtype=torch.float64, generator=generator).to(offset.device)
        edges = model.log_weights.exp().cumsum(0)
        drawn = torch.searchsorted(edges, uniform.to(edges.device)).clamp_max(len(edges) - 1)
        values = model.means[drawn]
        if isinstance(model, Factors):
            values = values + model.variances[drawn].sqrt() * normal
            normal = torch.randn(n, model.loadings.shape[2], dtype=torch.float64, generator=generator).to(values.device)
        mixing = model.loadings if isinstance(model, Factors) else model.cholesky
        for component, matrix in enumerate(mixing):
            chosen = drawn == component
            values[chosen] += normal[chosen] @ matrix.mT
        return ((values if self.axes is None else values @ self.axes.mT) + offset).reshape(n, *shape)

    def _fitted(self) -> tuple[Model, Tensor, torch.Size]:
        if self.log_weights is None or self.means is None:
            raise RuntimeError(f"{type(self).__name__}: call fit first; it returns the fitted density")
        # About the mean of all components, so that squares of a bright offset do not cancel.
        offset = self.means.flatten(1).mean(0)
        means = self.means.flatten(1) - offset
        means = means if self.axes is None else means @ self.axes
        if self.cholesky is not None:
            return Full(self.log_weights, means, self.cholesky), offset, self.means.shape[1:]
        assert self.loadings is not None
        assert self.variances is not None
        return Factors(self.log_weights, means, self.loadings, self.variances), offset, self.means.shape[1:]

    def _chosen(self, images: Tensor, values: Tensor) -> tuple[_Trial, _Starts]:
        """The best mixture on a fifth of the images, one choice after the other, and what it started from."""
        held = torch.arange(len(values), device=values.device) % 5 == 4
        fitting, validation = values[~held], values[held]
        starts = _Starts(images[~held], fitting, self.seed)

        def trial(choice: _Choice) -> _Trial:
            share = starts.shares(choice.components, choice.start)
            axes, prior = starts.common(share, choice)
            start = _Trial(choice, -math.inf, None, axes, prior)
            return self._stopped(fitting, validation, share, start, _TRIAL_STEPS)

        limit = max(1, len(fitting) // _IMAGES_PER_COMPONENT)
        counts = tuple(count for count in _COUNTS if count <= limit)
        counts = counts if self.n_components is None else (self.n_components,)
        first = _Choice(0, _BY_MIXTURE, 0, True, _MIXTURE_PRIOR_IMAGES, values.shape[1] * _FIRST_DIAGONAL_IMAGES)
        if self.n_components is None:
            first = first._replace(components=starts.n_mixture)
        else:
            first = first._replace(components=counts[0], start=_BY_BRIGHTNESS, images=_FIRST_PRIOR_IMAGES)
        choose = self._with_factors if self.covariance == "low_rank" else _with_full_covariances
        best = choose(first, trial, counts, values.shape[1])
        share = _posteriors(best, _turned(fitting, best))
        return self._stopped(fitting, validation, share, best, self.max_iterations), starts

    def _with_factors(self, first: _Choice, trial: _Tried, counts: tuple[int, ...], n_pixels: int) -> _Trial:
        """Factors of the common axes, or of the pixels, where they are better."""
        diagonal = tuple(n_pixels * share for share in _DIAGONAL_IMAGES)
        ranks = tuple(rank for rank in _RANKS if rank < n_pixels) if self.rank is None else (self.rank,)
        rank = min(_FIRST_RANK, max(ranks)) if self.rank is None else self.rank
        best = trial(first._replace(rank=min(ranks)))
        if first.start != _BY_MIXTURE:
            best = _best(best, (best.choice._replace(start=_BY_PRINCIPAL),), trial)
        best = _climbed(best, "images", _PRIOR_IMAGES, trial)
        best = _climbed(_best(best, (best.choice._replace(rank=rank),), trial), "rank", ranks, trial)
        if best.choice.rank:
            best = _climbed(best, "diagonal_images", diagonal, trial)
        count = min(_FIRST_COUNT, max(counts)) if self.n_components is None else self.n_components
        choice = _Choice(count, _BY_BRIGHTNESS, rank, False, _FIRST_PRIOR_IMAGES, 0.0)
        pixels = _best(trial(choice), (choice._replace(start=_BY_PRINCIPAL),), trial)
        if pixels.score < best.score - _HOPELESS_NATS_PER_PIXEL * n_pixels:
            return best
        pixels = _climbed(_climbed(pixels, "components", counts, trial), "rank", ranks, trial)
        pixels = _climbed(_climbed(pixels, "diagonal_images", diagonal, trial), "images", _PRIOR_IMAGES, trial)
        return pixels if pixels.score > best.score else best

    def _stopped(self, fitting: Tensor, validation: Tensor, share: Tensor, trial: _Trial, n_steps: int) -> _Trial:
        """The trial after steps as long as they raise the mean log density of `validation`."""
        values, others = _turned(fitting, trial), _turned(validation, trial)
        best = current = trial
        for done in range(0, n_steps, _STEPS_AT_A_TIME):
            steps = min(_STEPS_AT_A_TIME, n_steps - done)
            fit = self._steps(values, share, current, steps)
            score = float(fit.model.scores(others).logsumexp(1).mean())
            current = current._replace(model=fit.model, score=score, steps=current.steps + steps)
            gain = current.score - best.score
            best = current if gain > 0.0 else best
            if fit.converged or gain < _STOP_NATS_PER_PIXEL * values.shape[1]:
                break
            share = _posteriors(current, values)
        return best

    def _steps(self, values: Tensor, share: Tensor, trial: _Trial, n_steps: int) -> Fit:
        return expectation_maximisation(
            values, share, trial.prior, trial.choice.rank, n_steps, _TOLERANCE_NATS_PER_PIXEL, trial.model
        )


_Tried = Callable[[_Choice], _Trial]


def _with_full_covariances(first: _Choice, trial: _Tried, counts: tuple[int, ...], n_pixels: int) -> _Trial:
    """Full covariances close to the common axes for many components, or free of them for few."""
    diagonal = tuple(n_pixels * share for share in _DIAGONAL_IMAGES)
    near = trial(first._replace(rank=FULL, diagonal_images=n_pixels * _FULL_DIAGONAL_IMAGES))
    near = _climbed(near, "diagonal_images", diagonal, trial)
    choice = _Choice(counts[0], _BY_PRINCIPAL, FULL, True, _FIRST_PRIOR_IMAGES, 0.0)
    tried = [count for count in counts if count in _FULL_COUNTS][1:]
    free = _best(trial(choice), (choice._replace(components=count) for count in tried), trial)
    free = _climbed(_climbed(free, "components", counts, trial), "diagonal_images", diagonal, trial)
    free = _climbed(free, "images", _PRIOR_IMAGES, trial)
    return free if free.score > near.score else near


class _Starts:
    """What components start from: clusters of images (n, ...), or a mixture on common axes; each found once."""

    def __init__(self, images: Tensor, values: Tensor, seed: int) -> None:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        flat = images.flatten(1)
        self._order = order.to(flat.device)
        self._images, self._values = images, values
        self._points = (brightness_and_contrast(flat), principal(flat))
        self._labels: dict[tuple[int, int], Tensor] = {}
        self._mixture: GaussianMixtureDensity | None = None

    @property
    def n_mixture(self) -> int:
        """Components of the mixture on common axes."""
        return len(self._parts()[0])

    def shares(self, count: int, start: int) -> Tensor:
        """Posteriors to start from, (n, count)."""
        if start == _BY_MIXTURE:
            log_weights, means, variances, basis = self._parts()
            loadings = variances[:, :, None][:, :, :0]
            offset = means.mean(0)
            model = Factors(log_weights, (means - offset) @ basis, loadings, variances)
            return model.scores((self._images.flatten(1) - offset) @ basis).softmax(1)
        if (count, start) not in self._labels:
            label = torch.empty_like(self._order)
            label[self._order] = clustered(self._points[start][self._order], count)
            self._labels[count, start] = label
        return torch.nn.functional.one_hot(self._labels[count, start], count).to(torch.float64)

    def common(self, share: Tensor, choice: _Choice) -> tuple[Tensor, Prior]:
        """Axes (D, D) and the prior about them: those of the mixture, or of the covariance within clusters."""
        if choice.start == _BY_MIXTURE:
            _, _, variances, axes = self._parts()
            level = float(share.mean(0) @ variances.mean(1))
            variances = variances.clamp_min(_VARIANCE_FLOOR * level)
        else:
            axes, variances, level = _common_covariance(self._values, share)
        drawn = None if choice.turned else axes
        # Variances of a mixture's components have their contrasts already.
        scaled = choice.start != _BY_MIXTURE
        return axes, Prior(variances, drawn, level, choice.images, choice.diagonal_images, scaled)

    def of_all(self, images: Tensor, values: Tensor) -> _Starts:
        """The same mixture, fitted to these images."""
        starts = _Starts(images, values, 0)
        assert self._mixture is not None
        starts._mixture = self._mixture.fit(images)
        return starts

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self._mixture is None:
            self._mixture = GaussianMixtureDensity().fit(self._images)
        found = self._mixture
        assert found.log_weights is not None
        assert found.means is not None
        assert found.variances is not None
        assert found.basis is not None
        return found.log_weights, found.means.flatten(1), found.variances, found.basis


def _turned(values: Tensor, trial: _Trial) -> Tensor:
    return values @ trial.axes if trial.choice.turned else values


def _posteriors(trial: _Trial, turned: Tensor) -> Tensor:
    assert trial.model is not None
    return trial.model.scores(turned).softmax(1)


def _best(best: _Trial, choices: Iterable[_Choice], trial: _Tried) -> _Trial:
    """The best of `best` and the choices, of which two that are worse, one after the other, are the last."""
    worse = 0
    for choice in choices:
        candidate = trial(choice)
        worse = 0 if candidate.score > best.score else worse + 1
        best = candidate if candidate.score > best.score else best
        if worse == 2:
            break
    return best


def _climbed(best: _Trial, name: str, options: tuple[float, ...], trial: _Tried) -> _Trial:
    """The best trial as one choice goes up its ordered options, or down, as long as each is better."""
    values = sorted({*options, getattr(best.choice, name)})
    first = values.index(getattr(best.choice, name))
    for direction in (1, -1):
        place = first + direction
        while 0 <= place < len(values):
            candidate = trial(best.choice._replace(**{name: values[place]}))
            if candidate.score <= best.score:
                break
            best = candidate
            place += direction
        if place != first + direction:
            break
    return best


def _common_covariance(values: Tensor, share: Tensor) -> tuple[Tensor, Tensor, float]:
    """Axes (D, D), variances (K, D) and level of the covariance within clusters, all at the same mean variance."""
    count = share.sum(0).clamp_min(1e-9)
    means = share.mT @ values / count[:, None]
    deviation = values - share @ means
    each = (share.mT @ deviation.square()).mean(1) / count
    level = float((each * count).sum() / count.sum())
    # A cluster of a single image has no variance of its own to be scaled by.
    weight = share @ (level / each.clamp_min(1e-3 * level))
    variances, axes = torch.linalg.eigh((deviation * weight[:, None]).mT @ deviation / len(values))
    # Of fewer images than pixels, most axes are empty; a share of the variance goes to all of them.
    white = min(0.5, 0.05 * values.shape[1] / len(values)) if len(values) < 2 * values.shape[1] else 0.0
    variances = ((1.0 - white) * variances + white * level).clamp_min(_VARIANCE_FLOOR * level)
    return axes, variances.expand(len(count), -1), level
