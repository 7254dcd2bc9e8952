"""`estimate_mutual_information`: bits that two measured quantities share, from paired samples alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from bitlens import __version__
from bitlens.estimators._critic_inputs import PREPROCESSING, fit_input_map
from bitlens.estimators._critic_training import Layers, fit_critic, scorers_of
from bitlens.estimators._critic_values import BOUND, METHODS, OF_MAPS, Held, held_out, held_out_value
from bitlens.estimators._inputs import Groups, images, make_groups, open_share
from bitlens.estimators._seeds import derived_seed, take_seed
from bitlens.estimators.result import InformationEstimate
from bitlens.kernels import _backend
from bitlens.kernels.infonce_scores.op import IMPLEMENTED

CRITICS = ("separable", "joint")
MINIMUM_SAMPLES, MINIMUM_GROUPS, FEW_GROUPS = 60, 20, 100
_VALIDATION_SHARE = 0.15
# Share of its ceiling above which a bound is held back by the ceiling rather than by the data.
_CEILING_SHARE = 0.7
# Fewer effective rows in a mean of exp S than these make its error larger than it looks.
_FEWEST_EFFECTIVE_ROWS = 20.0
_IMPOSSIBLE_SIGMAS = 4.0
_TO_BITS = 1.0 / math.log(2.0)


class _Part(NamedTuple):
    """Pairs (global row numbers) scored together, the value on them, and the variance of its mean over refits."""

    rows: Tensor
    held: Held
    refit_variance: float


def estimate_mutual_information(
    x: Tensor | NDArray[Any],
    z: Tensor | NDArray[Any],
    *,
    method: str = "interpolated",
    critic: str = "separable",
    preprocess: str = "auto",
    groups: Sequence[object] | NDArray[Any] | Tensor | None = None,
    n_refits: int = 2,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> InformationEstimate:
    """I(x; z) in bits per pair, by critics trained on four folds, stopped within them and scored on the fifth.

    Args:
        x, z: (n, ...) samples, row by row a pair, n >= 60. `bits_per_pixel` is per value of z.
        method: "infonce" (at most log2 K of the K pairs scored together), "nwj", "flo"; "donsker_varadhan" and
            "jensen_shannon", scored as "nwj"; "interpolated", trained as "infonce", scored between it and "nwj": these
            bound from below in expectation, as pairs scored were not seen in training. "smile": from neither side.
        critic: "separable", a Gaussian log ratio plus learned phi(x) . psi(z); "joint", a perceptron of [x, z].
        preprocess: "rank" (normal scores of each coordinate), "standardize"; "auto": rank up to 64 coordinates.
        groups: one label per pair; whole in folds and errors, and no pair meets a negative of its own group.
        n_refits: critics per fold, whose mean is scored. confidence, generator: as in `estimate_information`.

    Raises:
        TypeError, ValueError: an argument that cannot be used, named with what it needs and what came.

    Reference: Poole et al. 2019, arXiv 1905.06922; Guo et al. 2021, arXiv 2107.01131 ("flo").
    """
    _check_choices(method, critic, preprocess, n_refits, confidence)
    x_samples, z_samples = images("x", x), images("z", z)
    if x_samples.shape[0] != z_samples.shape[0]:
        raise ValueError(f"z: need one sample for each of x, {x_samples.shape[0]}, got {z_samples.shape[0]}")
    if x_samples.device != z_samples.device:
        raise ValueError(f"z: need the device of x, {x_samples.device}, got {z_samples.device}")
    n_samples = x_samples.shape[0]
    if n_samples < MINIMUM_SAMPLES:
        raise ValueError(f"x: need at least {MINIMUM_SAMPLES} samples, got {n_samples}")
    backend = _backend.select("infonce_scores", x_samples.device, IMPLEMENTED)
    seed = take_seed(generator)
    with torch.no_grad(), _backend.reproducible():
        partition = make_groups(groups, x_samples, torch.Generator().manual_seed(derived_seed(seed, "folds")))
        if partition.count < MINIMUM_GROUPS:
            raise ValueError(f"groups: need at least {MINIMUM_GROUPS} groups, got {partition.count}")
        parts: list[_Part] = []
        converged = True
        for fold in range(partition.n_folds):
            found, stopped = _fold(
                x_samples.flatten(1), z_samples.flatten(1), partition, fold, seed, method, critic, preprocess, n_refits
            )
            parts += found
            converged = converged and stopped
        return _assembled(parts, partition, z_samples, method, critic, n_refits, confidence, seed, backend, converged)


def _check_choices(method: object, critic: object, preprocess: object, n_refits: object, confidence: float) -> None:
    for name, value, choices in (
        ("method", method, METHODS),
        ("critic", critic, CRITICS),
        ("preprocess", preprocess, PREPROCESSING),
    ):
        if value not in choices:
            raise ValueError(f"{name}: need one of {', '.join(map(repr, choices))}, got {value!r}")
    if critic == "joint" and method in OF_MAPS:
        raise ValueError(f"critic: need 'separable' for method {method!r}, got 'joint'")
    if not isinstance(n_refits, int):
        raise TypeError(f"n_refits: need a whole number, got {type(n_refits).__name__}")
    if n_refits < 1:
        raise ValueError(f"n_refits: need at least 1, got {n_refits}")
    confidence = open_share("confidence", confidence)


def _fold(
    x: Tensor,
    z: Tensor,
    partition: Groups,
    fold: int,
    seed: int,
    method: str,
    critic: str,
    preprocess: str,
    n_refits: int,
) -> tuple[list[_Part], bool]:
    """The pairs of one fold scored by critics of the others."""
    draws = torch.Generator().manual_seed(derived_seed(seed, f"fold {fold}"))
    tested = torch.nonzero(partition.folds == fold).squeeze(1)
    held_back = _held_back(partition, fold, draws)
    training = torch.nonzero((partition.folds != fold) & ~held_back).squeeze(1)
    validation = torch.nonzero(held_back).squeeze(1)
    maps = [fit_input_map(side[training], preprocess) for side in (x, z)]

    def inputs(rows: Tensor) -> tuple[Tensor, Tensor]:
        return maps[0](x[rows]), maps[1](z[rows])

    fit = fit_critic(
        method,
        critic,
        inputs(training),
        inputs(validation),
        _layers(partition.labels[validation], draws),
        n_coordinates=(maps[0].n_coordinates, maps[1].n_coordinates),
        n_members=n_refits,
        generator=draws,
    )
    mean, members = scorers_of(fit, *inputs(tested))
    parts = []
    for layer in _layers(partition.labels[tested], draws):
        held = held_out(method, mean.take(layer), fit.setting)
        refits = torch.tensor([held_out_value(method, one.take(layer), fit.setting) for one in members])
        spread = float(refits.var()) / n_refits if n_refits > 1 else 0.0
        parts.append(_Part(tested[layer], held, spread))
    return parts, fit.converged


def _held_back(partition: Groups, fold: int, draws: torch.Generator) -> Tensor:
    """Which rows stop the training of a fold: whole groups of the others, about a share of their rows."""
    others = torch.unique(partition.labels[partition.folds != fold])
    order = others[torch.randperm(len(others), generator=draws).to(others.device)]
    sizes = torch.bincount(partition.labels, minlength=partition.count)[order]
    wanted = _VALIDATION_SHARE * float(sizes.sum())
    n_groups = max(4, int((torch.cumsum(sizes, 0) <= wanted).sum()))
    chosen = torch.zeros(partition.count, dtype=torch.bool, device=order.device)
    chosen[order[:n_groups]] = True
    return chosen[partition.labels]


def _layers(labels: Tensor, draws: torch.Generator) -> Layers:
    """Rows split so that no two of a group are in one layer; layers with fewer than 3 rows are left out.

    Negatives have to be independent of the pair that they stand beside.
    """
    order = torch.randperm(len(labels), generator=draws).to(labels.device)
    ordered = labels[order]
    by_group = torch.argsort(ordered, stable=True)
    sizes = torch.bincount(ordered)
    starts = torch.cumsum(sizes, 0) - sizes
    rank = torch.empty_like(order)
    rank[order[by_group]] = torch.arange(len(order), device=order.device) - starts[ordered[by_group]]
    layers = [torch.nonzero(rank == number).squeeze(1) for number in range(int(sizes.max()))]
    return tuple(layer for layer in layers if len(layer) > 2)


def _assembled(
    parts: list[_Part],
    partition: Groups,
    z: Tensor,
    method: str,
    critic: str,
    n_refits: int,
    confidence: float,
    seed: int,
    backend: str,
    converged: bool,
) -> InformationEstimate:
    rows = torch.cat([part.rows for part in parts])
    terms = torch.cat([part.held.value + part.held.influence for part in parts])
    shares = [len(part.rows) / len(rows) for part in parts]
    nats = sum(share * part.held.value for share, part in zip(shares, parts, strict=True))
    # A row that is in no layer has no part in the mean.
    all_terms = terms.new_full((len(z),), nats)
    all_terms[rows] = terms
    sampling = partition.standard_error(all_terms) * len(z) / len(rows)
    refit_variance = sum(share**2 * part.refit_variance for share, part in zip(shares, parts, strict=True))
    stderr = math.sqrt(sampling**2 + refit_variance)
    ceilings = [part.held.ceiling for part in parts]
    ceiling = (
        sum(share * value for share, value in zip(shares, ceilings, strict=True) if value is not None)
        if None not in ceilings
        else None
    )
    half = float(stats.t.ppf(0.5 + 0.5 * confidence, partition.count - 1)) * stderr
    bound = BOUND[method]
    return InformationEstimate(
        bits=nats * _TO_BITS,
        bits_per_pixel=nats * _TO_BITS / z[0].numel(),
        bound=bound,
        lower_bits=nats * _TO_BITS if bound == "lower" else None,
        upper_bits=None,
        ceiling_bits=None if ceiling is None else ceiling * _TO_BITS,
        stderr_bits=stderr * _TO_BITS,
        confidence_interval_bits=((nats - half) * _TO_BITS, (nats + half) * _TO_BITS),
        method=method,
        n_samples=len(z),
        seed=seed,
        version=__version__,
        backend=backend,
        converged=converged,
        warnings=tuple(_notes(parts, partition, method, n_refits, nats, stderr, ceiling, len(rows), converged)),
    )


def _notes(
    parts: list[_Part],
    partition: Groups,
    method: str,
    n_refits: int,
    nats: float,
    stderr: float,
    ceiling: float | None,
    n_scored: int,
    converged: bool,
) -> list[str]:
    notes = []
    if BOUND[method] == "estimate":
        notes.append(f"method {method!r} bounds the information from neither side: clipping biases it either way")
    if nats < -_IMPOSSIBLE_SIGMAS * stderr:
        notes.append("the value is negative, which no information is: the critics learned what the other folds lack")
    if ceiling is not None and nats > _CEILING_SHARE * ceiling:
        notes.append(
            f"the lower bound stands at {100 * nats / ceiling:.0f} % of its ceiling of {ceiling * _TO_BITS:.3g} bits: "
            "the information may be far above it"
        )
    effective = [part.held.effective_rows for part in parts if part.held.effective_rows is not None]
    if effective and min(effective) < _FEWEST_EFFECTIVE_ROWS:
        notes.append(
            f"the mean over pairs rests on {min(effective):.0f} of {len(parts[0].rows)} rows: its error is larger "
            "than the standard error says, and the value is not to be trusted"
        )
    if partition.count < FEW_GROUPS:
        what = "groups" if partition.given else "samples"
        notes.append(f"{partition.count} {what} are few to learn from: the information may be far above the value")
    if n_scored < int(partition.labels.numel()):
        notes.append(
            f"{partition.labels.numel() - n_scored} pairs of large groups have no negatives outside their group "
            "beside them and are not scored"
        )
    if n_refits == 1:
        notes.append("one critic per fold: the standard error lacks the spread of refits")
    if not converged:
        notes.append("training ended before the validation value stopped rising: the information may be above it")
    return notes
