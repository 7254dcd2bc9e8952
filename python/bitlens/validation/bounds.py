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
# Values per image beyond which a mixture of Gaussians, ten seconds at this number, is tried only if all else fails.
_WIDE = 1024


def reconstruction_bound(bits: float, *, entropy_nats: float, n_values: int, n_constant: int = 0) -> float:
    """exp(2 (h - I) / n) / (2 pi e): no decoder of a measurement with `bits` has a lower mean squared error per value.

    Shannon's lower bound, for a target of `n_values` numbers with differential entropy h = `entropy_nats`. It holds for
    any I that is at least the true information, so give `upper_bits` where there are; an estimate from below, or an h
    that is estimated too high (as by every fitted density, see `source_entropy`), puts the result too high. Quantised
    targets have no differential entropy: h is then that of a smooth density, the result an estimate. `n_constant` more
    values are the same in all targets: they cost no error, and the mean is over them too.

    Raises:
        ValueError: bits that are not finite, fewer than one value, or a negative number of constant ones.

    Reference: Shannon 1959, Coding theorems for a discrete source with a fidelity criterion; Cover and Thomas 2006,
        Elements of Information Theory, sec. 10.3.
    """
    _check_bits(bits)
    if not math.isfinite(entropy_nats):
        raise ValueError(f"entropy_nats: need a finite number, got {entropy_nats}")
    if n_values < 1:
        raise ValueError(f"n_values: need at least 1, got {n_values}")
    if n_constant < 0:
        raise ValueError(f"n_constant: need at least 0, got {n_constant}")
    error = math.exp(2.0 * (entropy_nats - max(bits, 0.0) * _LN2) / n_values) / (2.0 * math.pi * math.e)
    return error * n_values / (n_values + n_constant)


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

    A cross-entropy: in expectation never below the entropy, so that `reconstruction_bound` with it errs upwards. It is
    that of `n_values` values; `n_constant` more were left out, for they are the same in all images.
    """

    nats: float
    stderr_nats: float
    density: str
    n_values: int
    n_constant: int = 0


def source_entropy(
    target: Tensor | NDArray[Any],
    *,
    densities: Sequence[Density] | None = None,
    groups: GroupLabels | None = None,
    generator: torch.Generator | None = None,
    drop_constant: bool = False,
) -> SourceEntropy:
    """-E log q(target) on held-out images (n, channel, row, column), nats per image, q the best of `densities`.

    Every image is scored by a fit to other groups, in five folds. Default densities: a full and a stationary Gaussian,
    a Gaussian mixture (beyond 1024 values, where it takes long, only if no other can be fitted); one that so few images
    cannot be fitted to is left out. `drop_constant` leaves out values that are the same in all images, which have no
    differential entropy: any density as narrow as its own floor would do for them, and the result says nothing.

    Raises:
        TypeError, ValueError: a target that cannot be used, named with what it needs.
    """
    images = checked_images("target", target).to("cpu", torch.float64)
    n_all = images[0].numel()
    if drop_constant:
        images = _varying(images)
    seed = take_seed(generator)
    folds = fold_rows(labels := group_codes(groups, len(images)), _N_FOLDS, derived_seed(seed, "entropy folds"))
    refused: list[str] = []
    found: list[tuple[float, Tensor, str]] = []
    wide = images[0].numel() > _WIDE
    if densities is not None:
        rounds: list[Sequence[Density]] = [densities]
    elif wide:
        rounds = [(GaussianDensity(), StationaryGaussianDensity()), (GaussianMixtureDensity(),)]
    else:
        rounds = [(GaussianDensity(), StationaryGaussianDensity(), GaussianMixtureDensity())]
    for several in rounds:
        for density in several if not found else ():
            try:
                rows = _cross_entropy(density, images, folds)
            except ValueError as error:  # such as a full Gaussian of more values than images
                refused.append(f"{type(density).__name__}: {error}")
                continue
            if bool(torch.isfinite(rows).all()):
                found.append((float(rows.mean()), rows, type(density).__name__))
    if not found:
        raise ValueError(f"target: need images that a density can be fitted to; {'; '.join(refused)}")
    value, rows, name = min(found, key=lambda each: each[0])
    totals = torch.zeros(int(labels.max()) + 1, dtype=torch.float64).index_add_(0, labels, rows - value)
    stderr = float(torch.linalg.vector_norm(totals)) / len(rows)
    n_values = images[0].numel()
    return SourceEntropy(value, stderr, name, n_values, n_all - n_values)


def _cross_entropy(density: Density, images: Tensor, folds: Sequence[Tensor]) -> Tensor:
    rows = torch.empty(len(images), dtype=torch.float64)
    for fold in folds:
        others = torch.ones(len(images), dtype=torch.bool)
        others[fold] = False
        rows[fold] = -density.fit(images[others]).log_prob(images[fold])
    return rows


def _varying(images: Tensor) -> Tensor:
    """Without the values that are the same in all images: cropped where that is a frame, else rows of numbers."""
    varies = images.amax(0) > images.amin(0)
    if not bool(varies.any()):
        raise ValueError("target: need images that differ, got one that repeats")
    if bool(varies.all()):
        return images
    channels, rows, columns = (varies.any(dim).nonzero().flatten() for dim in ((1, 2), (0, 2), (0, 1)))
    inside = (
        slice(None),
        channels,
        slice(int(rows.min()), int(rows.max()) + 1),
        slice(int(columns.min()), int(columns.max()) + 1),
    )
    return images[inside] if bool(varies[inside[1:]].all()) else images[:, varies]


def _check_bits(bits: float) -> None:
    if not math.isfinite(bits):
        raise ValueError(f"bits: need a finite number, got {bits}")
