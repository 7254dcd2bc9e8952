"""Mixtures of Gaussians with covariances of their own, and steps of expectation maximisation for them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_LOG_2PI = math.log(2.0 * math.pi)
# Images' worth of the contrast of all that keeps a component of few images from collapsing.
_SCALE_PRIOR = 0.2
_INNER_STEPS = 2
_VARIANCE_FLOOR = 1e-6  # of the mean variance: kept above rounding where pixels are constant
_LEAST_SHARE = 1e-12  # posteriors below it are of no image
_CHUNK_VALUES = 20_000_000
FULL = -1  # in place of a rank


class Prior(NamedTuple):
    """What covariances are drawn to: c_k U diag(v_k) U' by `images`, no correlation by `diagonal_images`.

    `variances` are the v_k (K, D), c_k the contrasts that the fit finds, or 1 unless `scaled`; U None is the identity.
    A weight is the number of images that it equals: the second one divides the squares of loadings, and is that of a
    full covariance's own diagonal.
    """

    variances: Tensor
    axes: Tensor | None
    level: float
    images: float
    diagonal_images: float
    scaled: bool

    def of(self, component: int) -> Prior:
        """That of one component, whose variances are (D,): all that the methods below are for."""
        return self._replace(variances=self.variances[component])

    def times(self, matrix: Tensor) -> Tensor:
        """U diag(v) U' times a matrix, (D, r) -> (D, r)."""
        if self.axes is None:
            return self.variances[:, None] * matrix
        return self.axes @ (self.variances[:, None] * (self.axes.mT @ matrix))

    def diagonal(self) -> Tensor:
        """Of U diag(v) U', (D,)."""
        return self.variances if self.axes is None else self.axes.square() @ self.variances


class Factors(NamedTuple):
    """log w_k (K,), means (K, D), loadings W_k (K, D, r), variances psi_k (K, D): covariances W W' + diag(psi)."""

    log_weights: Tensor
    means: Tensor
    loadings: Tensor
    variances: Tensor

    def scores(self, values: Tensor) -> Tensor:
        """log w_k N(z; m_k, C_k) of each image, (n, D) -> (n, K) nats."""
        n_components, n_pixels, rank = self.loadings.shape
        rows = max(1, _CHUNK_VALUES // (n_components * max(rank, 1)))
        precision = 1.0 / self.variances
        squared_means = (self.means.square() * precision).sum(1)
        log_determinant = self.variances.log().sum(1)
        if rank:
            weighted = self.loadings * precision[:, :, None]
            inner = torch.linalg.cholesky(_plus_identity(self.loadings.mT @ weighted))
            log_determinant = log_determinant + 2.0 * inner.diagonal(dim1=1, dim2=2).log().sum(1)
            # L^-1 W' psi^-1, so that its product with an image is what the factors explain.
            explaining = torch.linalg.solve_triangular(inner, weighted.mT, upper=False)
            columns = explaining.reshape(-1, n_pixels).mT
            offset = (explaining @ self.means[:, :, None])[:, :, 0]
        parts = []
        for part in values.split(rows):
            squared = part.square() @ precision.mT - 2.0 * part @ (self.means * precision).mT + squared_means
            if rank:
                explained = (part @ columns).reshape(len(part), n_components, rank) - offset
                squared = squared - explained.square().sum(2)
            parts.append(self.log_weights - 0.5 * (squared + log_determinant + n_pixels * _LOG_2PI))
        return torch.cat(parts)


class Full(NamedTuple):
    """log w_k (K,), means (K, D), lower triangular L_k (K, D, D): covariances L L'."""

    log_weights: Tensor
    means: Tensor
    cholesky: Tensor

    def scores(self, values: Tensor) -> Tensor:
        """log w_k N(z; m_k, C_k) of each image, (n, D) -> (n, K) nats."""
        parts = []
        for mean, cholesky in zip(self.means, self.cholesky, strict=True):
            white = torch.linalg.solve_triangular(cholesky, (values - mean).mT, upper=False)
            parts.append(-0.5 * white.square().sum(0) - cholesky.diagonal().log().sum())
        return torch.stack(parts, 1) + self.log_weights - 0.5 * values.shape[1] * _LOG_2PI


Model = Factors | Full


class Fit(NamedTuple):
    """A mixture, its penalised log likelihoods step by step, and whether the last step gained little."""

    model: Model
    objectives: list[float]
    converged: bool


def expectation_maximisation(
    values: Tensor, share: Tensor, prior: Prior, rank: int, n_steps: int, tolerance: float, start: Model | None = None
) -> Fit:
    """Steps from posteriors `share` (n, K) of images (n, D), none of which lowers the penalised log likelihood.

    It ends after `n_steps`, or after one that gains less than `tolerance` nats per pixel. A rank of FULL is a full
    covariance. The step is a generalised one: the covariances are improved, not maximised, given the posteriors.
    """
    model = _maximised(values, share, prior, rank, start)
    objectives: list[float] = []
    converged = False
    for step in range(n_steps):
        scores = model.scores(values)
        objectives.append(float(scores.logsumexp(1).sum()) + _log_prior(model, prior))
        converged = step > 0 and objectives[-1] - objectives[-2] < tolerance * values.numel()
        if converged or step == n_steps - 1:
            break
        model = _maximised(values, scores.softmax(1), prior, rank, model)
    return Fit(model, objectives, converged)


class _Component(NamedTuple):
    """Images (n, D) about their mean with posteriors (n,), and what the prior adds to their products.

    `added` (D,) is the diagonal of `added_images` more images.
    """

    deviation: Tensor
    share: Tensor
    prior: Prior
    scale: float
    added: Tensor
    added_images: float

    def total(self) -> float:
        """Images behind the shrunk covariance."""
        return float(self.share.sum()) + self.prior.images + self.added_images

    def times(self, matrix: Tensor) -> Tensor:
        """Shrunk covariance times a matrix, (D, r) -> (D, r)."""
        own = self.deviation.mT @ (self.share[:, None] * (self.deviation @ matrix))
        common = self.prior.images * self.scale * self.prior.times(matrix)
        return (own + common + self.added_images * self.added[:, None] * matrix) / self.total()

    def diagonal(self) -> Tensor:
        """Of the shrunk covariance, (D,)."""
        own = self.share @ self.deviation.square() + self.prior.images * self.scale * self.prior.diagonal()
        return (own + self.added_images * self.added) / self.total()


class _LowRank(NamedTuple):
    """C = W W' + diag(psi): loadings (D, r) and variances (D,)."""

    loadings: Tensor
    variances: Tensor

    def log_determinant(self) -> float:
        return float(self.variances.log().sum() + torch.linalg.slogdet(self._inner())[1])

    def correlated(self, prior: Prior) -> float:
        """Nats that the prior takes for correlations."""
        return 0.5 * prior.diagonal_images * float((self.loadings.square() / self.variances[:, None]).sum())

    def trace(self, prior: Prior) -> float:
        """Of C^-1 times what it is drawn to."""
        weighted = self.loadings / self.variances[:, None]
        explained = torch.linalg.solve(self._inner(), weighted.mT @ prior.times(weighted)).trace()
        return float((prior.diagonal() / self.variances).sum() - explained)

    def improved(self, deviation: Tensor, share: Tensor, prior: Prior, scale: float) -> _LowRank:
        """Closer to the shrunk covariance (Rubin and Thayer 1982, doi:10.1007/BF02293851)."""
        part = _Component(deviation, share, prior, scale, self.variances, 0.0)
        weighted = self.loadings / self.variances[:, None]
        expecting = torch.linalg.solve(self._inner(), weighted.mT).mT
        products = part.times(expecting)
        second = _plus_identity(expecting.mT @ products - self.loadings.mT @ expecting)
        second.diagonal().add_(prior.diagonal_images / part.total())
        loadings = torch.linalg.solve(0.5 * (second + second.mT), products.mT).mT
        variances = part.diagonal() - (loadings * products).sum(1)
        return _LowRank(loadings, variances.clamp_min(_VARIANCE_FLOOR * part.prior.level))

    def _inner(self) -> Tensor:
        return _plus_identity(self.loadings.mT @ (self.loadings / self.variances[:, None]))


class _Free(NamedTuple):
    """C = L L' with lower triangular L (D, D)."""

    cholesky: Tensor

    def log_determinant(self) -> float:
        return 2.0 * float(self.cholesky.diagonal().log().sum())

    def correlated(self, prior: Prior) -> float:
        """Nats that the prior takes for correlations: zero for a diagonal covariance."""
        return 0.5 * prior.diagonal_images * (self.log_determinant() + float(self._inverse_diagonal().log().sum()))

    def _inverse_diagonal(self) -> Tensor:
        """Of C^-1, (D,)."""
        identity = torch.eye(len(self.cholesky), dtype=self.cholesky.dtype, device=self.cholesky.device)
        return torch.linalg.solve_triangular(self.cholesky, identity, upper=False).square().sum(0)

    def trace(self, prior: Prior) -> float:
        """Of C^-1 times what it is drawn to."""
        if prior.axes is None:
            return float((self._inverse_diagonal() * prior.variances).sum())
        root = prior.axes * prior.variances.sqrt()
        return float(torch.linalg.solve_triangular(self.cholesky, root, upper=False).square().sum())

    def improved(self, deviation: Tensor, share: Tensor, prior: Prior, scale: float) -> _Free:
        """The shrunk covariance itself."""
        added = 1.0 / self._inverse_diagonal()
        return _free(_Component(deviation, share, prior, scale, added, prior.diagonal_images))


_Covariance = _LowRank | _Free


def _maximised(values: Tensor, share: Tensor, prior: Prior, rank: int, start: Model | None) -> Model:
    """Weights, means and shrunk covariances for the posteriors `share`, from the covariances of `start`."""
    count = share.sum(0)
    weights = (count + 0.5) / (count + 0.5).sum()
    means, covariances = [], []
    for component in range(share.shape[1]):
        chosen = share[:, component] > _LEAST_SHARE
        images, weight = values[chosen], share[chosen, component]
        # A component that no image took goes where all are.
        mean = weight @ images / weight.sum() if float(weight.sum()) > 1e-6 else values.mean(0)
        deviation, own = images - mean, prior.of(component)
        if start is None:
            covariance = _first(deviation, weight, own, rank)
        else:
            covariance = _of_component(start, component)
            for _ in range(_INNER_STEPS):
                scale = _likeliest_scale(covariance, own)
                covariance = covariance.improved(deviation, weight, own, scale)
        means.append(mean)
        covariances.append(covariance)
    parts = [torch.stack(each) for each in zip(*covariances, strict=True)]
    if len(parts) == 1:
        return Full(weights.log(), torch.stack(means), parts[0])
    return Factors(weights.log(), torch.stack(means), parts[0], parts[1])


def _of_component(model: Model, component: int) -> _Covariance:
    if isinstance(model, Full):
        return _Free(model.cholesky[component])
    return _LowRank(model.loadings[component], model.variances[component])


def _first(deviation: Tensor, share: Tensor, prior: Prior, rank: int) -> _Covariance:
    """A covariance to start from, its scale and diagonal those of the images."""
    count, squared = float(share.sum()), share @ deviation.square()
    own = float(squared.mean() / prior.variances.mean())
    scale = (own + 1.0) / (count + 1.0) if prior.scaled else 1.0
    diagonal = (squared + prior.images * scale * prior.diagonal()) / (count + prior.images)
    if rank == FULL:
        return _free(_Component(deviation, share, prior, scale, diagonal, prior.diagonal_images))
    return _leading(_Component(deviation, share, prior, scale, diagonal, 0.0), rank)


def _free(part: _Component) -> _Free:
    identity = torch.eye(part.deviation.shape[1], dtype=part.deviation.dtype, device=part.deviation.device)
    weighted = part.share.sqrt()[:, None] * part.deviation
    added = part._replace(deviation=weighted[:0], share=part.share[:0])
    covariance = weighted.mT @ weighted / part.total() + added.times(identity) * (added.total() / part.total())
    return _Free(torch.linalg.cholesky(0.5 * (covariance + covariance.mT)))


def _leading(part: _Component, rank: int) -> _LowRank:
    """Loadings along the leading axes of the correlation, and what they leave of the variances."""
    variances = part.diagonal().clamp_min(_VARIANCE_FLOOR * part.prior.level)
    std = variances.sqrt()[:, None]
    # Any start will do: four products turn it to the leading axes.
    generator = torch.Generator().manual_seed(0)
    axes = torch.randn(len(variances), rank, generator=generator, dtype=torch.float64).to(std.device)
    for _ in range(4):
        axes = torch.linalg.qr(part.times(axes / std) / std)[0]
    small = axes.mT @ (part.times(axes / std) / std)
    values, vectors = torch.linalg.eigh(0.5 * (small + small.mT))
    loadings = std * (axes @ vectors) * (values - 1.0).clamp_min(1e-2).sqrt()
    return _LowRank(loadings, torch.maximum(variances - loadings.square().sum(1), 0.1 * variances))


def _likeliest_scale(covariance: _Covariance, prior: Prior) -> float:
    """argmax over c of images / 2 (D log c - c trace) - b / c."""
    if not prior.scaled:
        return 1.0
    n_pixels = len(prior.variances)
    half, least = 0.5 * prior.images, 0.5 * _SCALE_PRIOR * n_pixels
    trace, linear = covariance.trace(prior), half * n_pixels
    return (linear + math.sqrt(linear * linear + 4.0 * half * trace * least)) / (2.0 * half * trace)


def _log_prior(model: Model, prior: Prior) -> float:
    """Of weights and covariances at their likeliest contrasts and diagonals, up to a constant."""
    total = 0.5 * float(model.log_weights.sum())
    n_pixels = prior.variances.shape[1]
    for component in range(len(model.log_weights)):
        covariance, own = _of_component(model, component), prior.of(component)
        scale, log_determinant = _likeliest_scale(covariance, own), covariance.log_determinant()
        drawn = log_determinant + scale * covariance.trace(own) - n_pixels * math.log(scale)
        total -= 0.5 * prior.images * drawn + covariance.correlated(own)
        total -= 0.5 * _SCALE_PRIOR * n_pixels / scale
    return total


def _plus_identity(matrix: Tensor) -> Tensor:
    return matrix + torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
