"""What the bits allow at best: least mean squared error of a reconstruction, largest accuracy of a classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor

from bitlens.densities import Density, GaussianDensity, GaussianMixtureDensity, StationaryGaussianDensity
from bitlens.estimators._seeds import derived_seed, take_seed
from bitlens.validation.decoder import GroupLabels, fold_rows, group_codes
from bitlens.validation.tasks import checked_images

_LN2 = math.log(2.0)
_N_FOLDS = 5


def reconstruction_bound(bits: float, *, entropy_nats: float, n_values: int) -> float:
    """exp(2 (h - I) / n) / (2 pi e): no decoder of a measurement with `bits` has a lower mean squared error per value.

    Shannon's lower bound, for a target of `n_values` numbers with differential entropy h = `entropy_nats`. It holds for
    any I that is at least the true information, so give `upper_bits` where there are; an estimate from below, or an h
    that is estimated too high (as by every fitted density, see `source_entropy`), puts the result too high. Quantised
    targets have no differential entropy: h is then that of a smooth density, the result an estimate.

    Raises:
        ValueError: bits that are not finite, or fewer than one value.

    Reference: Shannon 1959, Coding theorems for a discrete source with a fidelity criterion; Cover and Thomas 2006,
        Elements of Information Theory, sec. 10.3.
    """
    _check_bits(bits)
    if not math.isfinite(entropy_nats):
        raise ValueError(f"entropy_nats: need a finite number, got {entropy_nats}")
    if n_values < 1:
        raise ValueError(f"n_values: need at least 1, got {n_values}")
    return math.exp(2.0 * (entropy_nats - max(bits, 0.0) * _LN2) / n_values) / (2.0 * math.pi * math.e)


def gaussian_entropy(covariance: Tensor | NDArray[Any]) -> float:
    """log det(2 pi e C) / 2 in nats, the differential entropy of a Gaussian target, exact.

    Raises:
        ValueError: not a square positive definite matrix.
    """
    matrix = torch.as_tensor(covariance, dtype=torch.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"covariance: need a square matrix, got shape {tuple(matrix.shape)}")
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        raise ValueError("covariance: need a positive definite matrix")
    return float(torch.log(factor.diagonal()).sum() + 0.5 * len(matrix) * math.log(2 * math.pi * math.e))


def gaussian_reconstruction_bound(bits: float, eigenvalues: Tensor | NDArray[Any]) -> float:
    """The distortion-rate function of a Gaussian target: mean of min(level, eigenvalue), with the level that I allows.

    Reverse water-filling: sum of max(log(eigenvalue / level), 0) / 2 = I over the eigenvalues of the target's
    covariance. Exact for a Gaussian target and at least Shannon's lower bound; a target of another distribution and the
    same covariance may be recovered better.

    Raises:
        ValueError: bits that are not finite, or eigenvalues that are negative or all zero.

    Reference: Cover and Thomas 2006, Elements of Information Theory, sec. 10.3.3.
    """
    _check_bits(bits)
    values = np.sort(np.asarray(torch.as_tensor(eigenvalues, dtype=torch.float64)).reshape(-1))[::-1]
    if not (np.isfinite(values).all() and values.size and values[-1] >= 0 and values[0] > 0):
        raise ValueError("eigenvalues: need finite numbers of at least 0, not all 0")
    positive = values[values > 0]
    logs = np.log(positive)
    count = np.arange(1, len(positive) + 1)
    # With the k largest above the level: k log level = sum of their logarithms - 2 I.
    levels = (np.cumsum(logs) - 2.0 * max(bits, 0.0) * _LN2) / count
    inside = np.nonzero(levels <= logs)[0]
    level = math.exp(min(levels[inside[-1]], logs[0])) if len(inside) else float(positive[0])
    return float(np.minimum(level, values).mean())


def accuracy_bound(bits: float, labels: Sequence[object] | NDArray[Any] | Tensor) -> float:
    """The largest accuracy that I bits about the class allow: H(T) - I <= h(e) + e log2(K - 1), e = 1 - accuracy.

    Fano's inequality with H(T) and the number of classes K from `labels`. It holds for any I that is at least the
    information about the class, that about the scene included; with `bits` of H(T) or more it is 1.

    Raises:
        ValueError: bits that are not finite, or fewer than two classes.

    Reference: Fano 1961; Cover and Thomas 2006, Elements of Information Theory, sec. 2.10.
    """
    _check_bits(bits)
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    _, counts = np.unique(array, return_counts=True)
    n_classes = len(counts)
    if n_classes < 2:
        raise ValueError(f"labels: need at least 2 classes, got {n_classes}")
    share = counts / counts.sum()
    missing = float(-(share * np.log2(share)).sum()) - max(bits, 0.0)
    if missing <= 0:
        return 1.0

    def excess(error: float) -> float:
        inside = [p for p in (error, 1 - error) if p > 0]
        return -sum(p * math.log2(p) for p in inside) + error * math.log2(n_classes - 1) - missing

    most = 1 - 1 / n_classes  # where the right side is largest, log2 K
    if excess(most) <= 0:
        return 1 - most
    return 1 - float(optimize.brentq(excess, 0.0, most, xtol=1e-14))


@final
@dataclass(frozen=True)
class SourceEntropy:
    """Differential entropy of a target, nats per image, by the best of some densities on images it was not fitted to.

    A cross-entropy: in expectation never below the entropy, so that `reconstruction_bound` with it errs upwards.
    """

    nats: float
    stderr_nats: float
    density: str
    n_values: int


def source_entropy(
    target: Tensor | NDArray[Any],
    *,
    densities: Sequence[Density] | None = None,
    groups: GroupLabels | None = None,
    generator: torch.Generator | None = None,
) -> SourceEntropy:
    """-E log q(target) on held-out images (n, channel, row, column), nats per image, q the best of `densities`.

    Every image is scored by a fit to other groups, in five folds. Default densities: a full and a stationary Gaussian,
    a Gaussian mixture; one that so few images cannot be fitted to is left out.

    Raises:
        TypeError, ValueError: a target that cannot be used, named with what it needs.
    """
    images = checked_images("target", target).to(torch.float64)
    seed = take_seed(generator)
    labels = group_codes(groups, len(images))
    if densities is None:
        densities = (GaussianDensity(), StationaryGaussianDensity(), GaussianMixtureDensity())
    best: tuple[float, Tensor, str] | None = None
    refused: list[str] = []
    for density in densities:
        rows = torch.empty(len(images), dtype=torch.float64)
        try:
            for fold in fold_rows(labels, _N_FOLDS, derived_seed(seed, "entropy folds")):
                others = torch.ones(len(images), dtype=torch.bool)
                others[fold] = False
                rows[fold] = -density.fit(images[others]).log_prob(images[fold])
        except ValueError as error:  # such as a full Gaussian of more values than images
            refused.append(f"{type(density).__name__}: {error}")
            continue
        value = float(rows.mean())
        if math.isfinite(value) and (best is None or value < best[0]):
            best = value, rows, type(density).__name__
    if best is None:
        raise ValueError(f"target: need images that a density can be fitted to; {'; '.join(refused)}")
    value, rows, name = best
    totals = torch.zeros(int(labels.max()) + 1, dtype=torch.float64).index_add_(0, labels, rows - value)
    stderr = float(torch.linalg.vector_norm(totals)) / len(rows)
    return SourceEntropy(value, stderr, name, images[0].numel())


def _check_bits(bits: float) -> None:
    if not math.isfinite(bits):
        raise ValueError(f"bits: need a finite number, got {bits}")
