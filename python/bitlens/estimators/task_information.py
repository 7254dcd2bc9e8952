"""`estimate_task_information`: bits that a measurement carries about labels or a number, not about all of the scene."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize, stats
from torch import Tensor, nn

from bitlens import __version__
from bitlens.densities._samples import samples
from bitlens.estimators import _bounds, _known_channel
from bitlens.estimators._inputs import MINIMUM_SAMPLES, Groups, check_samples, images, make_groups, open_share
from bitlens.estimators._seeds import derived_seed, take_seed
from bitlens.estimators.result import InformationEstimate
from bitlens.kernels import _backend
from bitlens.kernels.infonce_scores.op import IMPLEMENTED
from bitlens.noise import NoiseModel
from bitlens.noise._abilities import HasPairs
from bitlens.noise._pairs import log_prob_pairs

_LEARNED = ("logistic", "perceptron", "convolution")
_METHODS = ("auto", *_LEARNED, "known_channel")
_MINIMUM_GROUPS = 20
_FEW_PER_CLASS = 20
_UNEQUAL = 10.0  # largest class over smallest
_NEAR_CEILING = 0.95
_MOST_FEATURES = 256
_RIDGES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)
_TEMPERATURES = torch.logspace(-1.0, 1.6, 27, dtype=torch.float64)
# Share of the answer without a measurement that is mixed in: it keeps one wrong and certain answer from costing all.
_SHARES = (1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3)
_EPOCHS, _PATIENCE, _BATCH, _HIDDEN = 80, 10, 128, 96
_TO_BITS = 1.0 / math.log(2.0)


def estimate_task_information(
    measured: Tensor | NDArray[Any],
    labels: Sequence[object] | NDArray[Any] | Tensor,
    noise: NoiseModel | None = None,
    *,
    mean: Tensor | NDArray[Any] | None = None,
    method: str = "auto",
    groups: Sequence[object] | NDArray[Any] | Tensor | None = None,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> InformationEstimate:
    """I(T; Z) >= H(T) + E[log q(t | z)] in bits per image, q fitted on other images than those it is scored on.

    Args:
        measured: images (n, ...). labels: (n,) whole numbers or texts, classes; (n,) real numbers, one parameter by
            its ranks, I >= h(T) + E[log q]; (n, d) real numbers go to `estimate_mutual_information`.
        mean: noiseless images like `measured`, for `noise`: classes by likelihood, exact (`bound` "two-sided") where
            all images of a class have one mean, else over the other images' means.
        method: "logistic", "perceptron", "convolution", "known_channel"; "auto" chooses among all but "convolution".
        groups, confidence, generator: as in `estimate_information`. `ceiling_bits` is H(T) of the classes.

    Raises: TypeError, ValueError: an argument that cannot be used, named with what it needs and what came.

    Reference: Barber and Agakov 2003, The IM algorithm, NeurIPS 16, eq. 3.
    """
    if method not in _METHODS:
        raise ValueError(f"method: need one of {', '.join(map(repr, _METHODS))}, got {method!r}")
    confidence = open_share("confidence", confidence)
    if noise is not None and not isinstance(noise, NoiseModel):
        raise TypeError(f"noise: need a noise model such as bitlens.GaussianNoise or None, got {type(noise).__name__}")
    if (mean is not None and noise is None) or (method == "known_channel" and (mean is None or noise is None)):
        raise ValueError("noise: the likelihoods of a known channel need both `noise` and `mean`, got one or none")
    pictures = images("measured", measured)
    noiseless = None if mean is None else images("mean", mean)
    if len(pictures) < MINIMUM_SAMPLES:
        raise ValueError(f"measured: need at least {MINIMUM_SAMPLES} images, got {len(pictures)}")
    if noise is not None:
        check_samples(pictures, noiseless, noise)
    target = _target(labels, pictures)
    if target is None:
        from bitlens.estimators.mutual_information import estimate_mutual_information

        if method != "auto" or mean is not None:
            raise ValueError("labels: several real numbers per image go with method 'auto' and no mean")
        values = samples("labels", labels)
        return estimate_mutual_information(values, pictures, groups=groups, confidence=confidence, generator=generator)
    if target.classes is None and mean is not None:
        raise ValueError("mean: goes with classes; for labels that are real numbers need None")
    if method == "convolution" and not _is_image(pictures):
        raise ValueError(f"measured: 'convolution' needs images of at least 8 x 8 pixels, got {tuple(pictures.shape)}")
    backend = _backend.select("infonce_scores", pictures.device, IMPLEMENTED)
    seed = take_seed(generator)
    with _backend.reproducible():
        partition = make_groups(groups, pictures, torch.Generator().manual_seed(seed))
        found = _found(pictures, target, noise, noiseless, method, partition, seed)
        stderr = partition.standard_error(found.influence) * _TO_BITS
    bits = float(found.rows.mean()) * _TO_BITS
    ceiling = target.entropy
    notes = (*found.notes, *_notes(float(found.rows.mean()), stderr / _TO_BITS, found.exact, target, partition))
    half = float(stats.t.ppf(0.5 + 0.5 * confidence, partition.count - 1)) * stderr
    bound: Literal["two-sided", "lower"] = "two-sided" if found.exact else "lower"
    return InformationEstimate(
        bits=bits,
        bits_per_pixel=bits / pictures[0].numel(),
        bound=bound,
        lower_bits=bits,
        upper_bits=bits if found.exact else None,
        ceiling_bits=None if ceiling is None else ceiling * _TO_BITS,
        stderr_bits=stderr,
        confidence_interval_bits=(bits - half, bits + half),
        method=found.name,
        n_samples=len(pictures),
        seed=seed,
        version=__version__,
        backend=backend,
        converged=found.converged,
        warnings=notes,
    )


# ---- The task ----


class _Target(NamedTuple):
    """What is asked: class numbers or normal scores (n,), the log probability of each without a measurement, nats."""

    values: Tensor
    base: Tensor
    log_prior: Tensor  # of the classes; empty for a number
    classes: tuple[str, ...] | None
    entropy: float | None

    def log_q(self, output: Tensor, rows: Tensor, temperature: Tensor) -> Tensor:
        """Of a model's output (n, classes), or (n, 2) mean and log deviation of the score, at the truth: (n,)."""
        truth = self.values[rows]
        if self.classes is not None:
            log_p = torch.log_softmax(output / temperature, dim=1)
            return log_p.gather(1, truth[:, None])[:, 0]
        log_std = output[:, 1] + torch.log(temperature)
        return -0.5 * ((truth.to(output) - output[:, 0]) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)


def _target(labels: object, pictures: Tensor) -> _Target | None:
    """None for several real numbers per image."""
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    n_samples, device = len(pictures), pictures.device
    if array.ndim == 0 or array.shape[0] != n_samples:
        raise ValueError(f"labels: need one for each of {n_samples} images, got shape {array.shape}")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError("labels: need finite values, got NaN or infinity")
        if array.ndim == 2 and array.shape[1] > 1:
            return None
    if array.dtype.kind not in "fbiuUS":
        raise TypeError(f"labels: need whole numbers, texts or real numbers, got {array.dtype}")
    if array.size != n_samples:
        raise ValueError(f"labels: need one class or one row of real numbers per image, got shape {array.shape}")
    array = array.reshape(-1)
    unique, codes, counts = np.unique(array, return_inverse=True, return_counts=True)
    if len(unique) < 2:
        raise ValueError("labels: need at least two different ones, got one")
    if array.dtype.kind == "f":
        if len(unique) < n_samples / 2:
            raise ValueError(
                f"labels: {len(unique)} different real numbers in {n_samples} images are classes; "
                "need whole numbers or texts"
            )
        # Information is invariant under the map to normal scores, whose entropy is known.
        score = torch.from_numpy(stats.norm.ppf((stats.rankdata(array) - 0.5) / n_samples)).to(device)
        base = -0.5 * score**2 - 0.5 * math.log(2 * math.pi)
        return _Target(score, base, base.new_empty(0), None, None)
    if len(unique) > n_samples / 2:
        raise ValueError(f"labels: need at least two images per class on average, got {len(unique)} classes")
    log_prior = torch.log(torch.from_numpy(counts / n_samples)).to(device)
    number = torch.from_numpy(codes).to(device)
    entropy = -float((log_prior.exp() * log_prior).sum())
    return _Target(number, log_prior[number], log_prior, tuple(str(name) for name in unique), entropy)


class _Found(NamedTuple):
    """Rows (n,) nats whose mean is the bound, and what each image contributes to its error."""

    rows: Tensor
    influence: Tensor
    name: str
    exact: bool = False
    converged: bool = True
    notes: tuple[str, ...] = ()


def _found(
    pictures: Tensor,
    target: _Target,
    noise: NoiseModel | None,
    mean: Tensor | None,
    method: str,
    groups: Groups,
    seed: int,
) -> _Found:
    notes: tuple[str, ...] = ()
    known = None
    if mean is not None and method in ("auto", "known_channel"):
        assert noise is not None
        with torch.no_grad():
            likelihood = _bounds._log_likelihood(noise, pictures, mean)
            if not bool(torch.isfinite(likelihood).all()):
                raise ValueError("mean: need noiseless images under which `measured` is possible, got probability 0")
            entropy = torch.cat([noise.entropy(part).flatten(1).sum(1) for part in mean.split(256)])
            notes = _bounds._misfit_notes(likelihood + entropy, pictures[0].numel(), groups)
            known = _by_likelihood(pictures, mean, noise, target, groups)
        if known is None and method == "known_channel":
            raise ValueError(f"measured: too many pairs of images for this noise model, got {len(pictures)} images")
        if known is not None and (known.exact or method == "known_channel"):
            return known._replace(notes=notes)
    learned = _learned(pictures, target, method, groups, seed)
    if known is None:
        return learned._replace(notes=notes)
    # For every fold the better one on the others, so that no row is among those it is chosen by.
    rows, influence, names = learned.rows.clone(), learned.influence.clone(), set()
    for fold in range(groups.n_folds):
        inside = groups.folds == fold
        better = known if bool(known.rows[~inside].mean() > learned.rows[~inside].mean()) else learned
        rows[inside], influence[inside] = better.rows[inside], better.influence[inside]
        names.add(better.name)
    return _Found(rows, influence, " or ".join(sorted(names)), converged=learned.converged, notes=notes)


def _notes(nats: float, stderr: float, exact: bool, target: _Target, groups: Groups) -> tuple[str, ...]:
    notes = []
    if groups.count < _MINIMUM_GROUPS:
        what = "groups" if groups.given else "images"
        notes.append(f"{groups.count} {what} are few: the standard error needs at least {_MINIMUM_GROUPS}")
    if nats < -4.0 * stderr - 1e-9:
        notes.append(
            "the bits are below 0, which the task allows only through chance: "
            + ("the noise model and `mean` do not fit `measured`" if exact else "the classifier does not generalise")
        )
    if target.classes is None or target.entropy is None:
        return tuple(notes)
    counts = torch.bincount(target.values, minlength=len(target.classes))
    few = torch.nonzero(counts < _FEW_PER_CLASS)[:, 0].tolist()
    if few and not exact:
        first = f"{target.classes[few[0]]!r} has {int(counts[few[0]])}"
        notes.append(
            f"{len(few)} of {len(counts)} classes have fewer than {_FEW_PER_CLASS} images ({first}): what a "
            "classifier cannot learn of them is missing from the bits"
        )
    if float(counts.max()) > _UNEQUAL * float(counts.min()):
        notes.append(
            f"the classes are unequal, {int(counts.min())} to {int(counts.max())} images: the ceiling is their "
            f"entropy, {target.entropy * _TO_BITS:.2f} bits, not log2({len(counts)}) = {math.log2(len(counts)):.2f}"
        )
    if nats > _NEAR_CEILING * target.entropy:
        notes.append(
            f"{nats * _TO_BITS:.3f} bits are close to the ceiling H(T) = {target.entropy * _TO_BITS:.3f}: the task is "
            "all but solved, and cannot tell this design from a better one"
        )
    return tuple(notes)


# ---- Likelihoods of a known channel ----


def _by_likelihood(pictures: Tensor, mean: Tensor, noise: NoiseModel, target: _Target, groups: Groups) -> _Found | None:
    """q(t|z) from p(z|t), the mean likelihood over the class's scenes of other groups; None for too many pairs."""
    log_prior, number = target.log_prior, target.values
    first = torch.tensor([int(torch.nonzero(number == c)[0, 0]) for c in range(len(log_prior))], device=mean.device)
    if bool((mean == mean[first[number]]).all()):
        scores = torch.cat([log_prob_pairs(noise, part, mean[first]) for part in pictures.split(4096)])
        rows = scores.gather(1, number[:, None])[:, 0] - torch.logsumexp(scores + log_prior, dim=1)
        return _Found(rows, rows, "known channel, one mean per class", exact=True)
    fast = isinstance(noise, HasPairs) and noise.fast_pairs
    limit = _known_channel._MAX_PAIR_EVALUATIONS if fast else _known_channel._MAX_EXACT_EVALUATIONS
    n_samples = len(pictures)
    if n_samples * pictures.numel() > limit:
        return None
    member = torch.nn.functional.one_hot(number, len(log_prior)).to(torch.float64)
    floor = 1.0 / n_samples
    rows, shares = torch.empty_like(target.base), torch.zeros_like(target.base)
    for part in torch.arange(n_samples, device=mean.device).split(max(1, 4_000_000 // n_samples)):
        scores = log_prob_pairs(noise, pictures[part], mean)
        outside = groups.labels[part, None] != groups.labels
        scores = torch.where(outside, scores, -torch.inf)
        weight = torch.exp(scores - scores.amax(1, keepdim=True))
        total = weight @ member
        log_p = log_prior + torch.log(total / (outside.to(torch.float64) @ member).clamp(min=1.0))
        log_q = torch.log_softmax(log_p, dim=1)
        at_truth = log_q.gather(1, number[part, None])[:, 0]
        mixed = torch.logaddexp(math.log1p(-floor) + at_truth, math.log(floor) + target.base[part])
        rows[part] = mixed - target.base[part]
        # The derivative of the rows by the weight of each scene, which a class's prior and likelihood share.
        kept = torch.exp(math.log1p(-floor) + at_truth - mixed)
        gain = kept[:, None] * (member[part] - log_q.exp())
        mine = torch.where(total > 0, gain / total.clamp(min=1e-300), torch.zeros_like(gain))
        shares += (weight * mine[:, number]).sum(0)
    return _Found(rows, rows + shares, "known channel, scenes of other groups")


# ---- Learned models, every row scored by one that has not seen its group ----


def _is_image(pictures: Tensor) -> bool:
    return pictures.ndim in (3, 4) and min(pictures.shape[-2:]) >= 8


class _Model(NamedTuple):
    """Outputs for all rows, from the rows it was fitted to; whether the fit ended by itself."""

    outputs: Tensor
    name: str
    converged: bool
    refit: Callable[[Tensor], Tensor] | None = None


def _learned(pictures: Tensor, target: _Target, method: str, groups: Groups, seed: int) -> _Found:
    rows = torch.empty_like(target.base)
    names: set[str] = set()
    converged = True
    for fold in range(groups.n_folds):
        training = groups.folds != fold
        validation = groups.folds == (fold + 1) % groups.n_folds
        if groups.n_folds == 2:
            # One group trains: every fifth of its images validates.
            validation = training & (torch.cumsum(training, 0) % 5 == 0)
        fit, check, reported = (
            torch.nonzero(mask)[:, 0] for mask in (training & ~validation, validation, groups.folds == fold)
        )
        best: tuple[float, Tensor, float, _Model] | None = None
        for model in _models(pictures, target, method, fit, check, derived_seed(seed, f"task {fold}")):
            gain, temperature, share = _calibrated(model.outputs[check], check, target, groups)
            if best is None or gain > best[0]:
                best = gain, temperature, share, model
        assert best is not None
        _, temperature, share, model = best
        outputs = model.outputs
        if model.refit is not None and share < 1.0:
            outputs = model.refit(torch.nonzero(training)[:, 0])
        rows[reported] = _mixed(outputs[reported], reported, target, temperature, share) - target.base[reported]
        names.add(model.name if share < 1.0 else "no model")
        converged = converged and model.converged
    return _Found(rows, rows, " or ".join(sorted(names)), converged=converged)


def _mixed(output: Tensor, rows: Tensor, target: _Target, temperature: Tensor, share: float) -> Tensor:
    if share >= 1.0:
        return target.base[rows]
    log_q = target.log_q(output, rows, temperature)
    return torch.logaddexp(math.log1p(-share) + log_q, math.log(share) + target.base[rows])


def _calibrated(output: Tensor, rows: Tensor, target: _Target, groups: Groups) -> tuple[float, Tensor, float]:
    """Gain over no measurement on these rows, nats, with the temperature and the share of the latter that give it.

    The share is 1 where the gain is within its standard error of nothing: then 0 bits are the better bound.
    """
    temperatures = _TEMPERATURES.to(output)
    log_q = torch.cat([target.log_q(output, rows, t)[None] for t in temperatures])
    best = (0.0, temperatures[0], 1.0)
    for share in _SHARES:
        mixed = torch.logaddexp(math.log1p(-share) + log_q, math.log(share) + target.base[rows]) - target.base[rows]
        gains = mixed.mean(1)
        index = int(gains.argmax())
        gain = float(gains[index])
        centred = mixed[index] - gains[index]
        totals = centred.new_zeros(groups.count).index_add_(0, groups.labels[rows], centred)
        if gain > best[0] and gain > float(torch.linalg.vector_norm(totals)) / len(rows):
            best = (gain, temperatures[index], share)
    return best


def _models(pictures: Tensor, target: _Target, method: str, fit: Tensor, check: Tensor, seed: int) -> Iterator[_Model]:
    if method == "convolution":
        scale = pictures[fit].std().clamp(min=1e-300)
        scaled = (pictures - pictures[fit].mean(0)) / scale
        yield _network("convolution", scaled, target, fit, check, seed)
        return
    components, deviations = _principal(pictures, fit)
    for scaled in (components / deviations[0], components / deviations):
        if method != "perceptron":
            yield from _linear(scaled, target, fit)
    if method != "logistic":
        yield _network("perceptron", components / torch.sqrt((deviations**2).mean()), target, fit, check, seed)


def _principal(pictures: Tensor, fit: Tensor) -> tuple[Tensor, Tensor]:
    """Principal components of all rows (n, k), those of the fitted rows with a variance, and their deviations (k,)."""
    flat = pictures.flatten(1)
    flat = flat - flat[fit].mean(0)
    _, singular, axes = torch.linalg.svd(flat[fit], full_matrices=False)
    kept = int((singular > 1e-9 * singular[0].clamp(min=1e-300)).sum().clamp(1, _MOST_FEATURES))
    return flat @ axes[:kept].T, (singular[:kept] / math.sqrt(len(fit))).clamp(min=1e-300)


def _linear(features: Tensor, target: _Target, fit: Tensor) -> Iterator[_Model]:
    """Logistic or linear regression along a path of ridges."""
    ones = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
    start: Tensor | None = None
    for ridge in _RIDGES:
        make = _logistic if target.classes is not None else _regression
        start, converged = make(ones, target, fit, ridge, start)

        def refit(rows: Tensor, ridge: float = ridge, start: Tensor = start, make: Any = make) -> Tensor:
            return _outputs(ones, make(ones, target, rows, ridge, start)[0], target)

        name = "logistic regression" if target.classes is not None else "linear regression"
        yield _Model(_outputs(ones, start, target), name, converged, refit)


def _outputs(ones: Tensor, weights: Tensor, target: _Target) -> Tensor:
    if target.classes is not None:
        return ones @ weights
    return torch.stack([ones @ weights[:-1], weights[-1].expand(len(ones))], dim=1)


def _logistic(ones: Tensor, target: _Target, rows: Tensor, ridge: float, start: Tensor | None) -> tuple[Tensor, bool]:
    """Weights (features + 1, classes) of the least mean cross-entropy plus ridge |weights|^2 / 2."""
    inputs, n_classes = ones[rows], len(target.log_prior)
    truth = torch.nn.functional.one_hot(target.values[rows], n_classes).to(inputs)
    if start is None:
        start = torch.zeros(ones.shape[1], n_classes).to(inputs)
        start[-1] = target.log_prior

    def value(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = torch.from_numpy(flat.reshape(-1, n_classes)).to(inputs)
        log_p = torch.log_softmax(inputs @ weights, dim=1)
        penalised = weights.clone()
        penalised[-1] = 0.0
        loss = -(truth * log_p).sum() / len(rows) + 0.5 * ridge * penalised.square().sum()
        slope = inputs.T @ (log_p.exp() - truth) / len(rows) + ridge * penalised
        return float(loss), slope.cpu().numpy().reshape(-1)

    found = optimize.minimize(
        value, start.cpu().numpy().reshape(-1), jac=True, method="L-BFGS-B", options={"maxiter": 200, "gtol": 1e-4}
    )
    return torch.from_numpy(found.x.reshape(-1, n_classes)).to(inputs), bool(found.success)


def _regression(ones: Tensor, target: _Target, rows: Tensor, ridge: float, start: Tensor | None) -> tuple[Tensor, bool]:
    """Weights (features + 1) of the normal score, and the log deviation of what they leave."""
    inputs, truth = ones[rows], target.values[rows]
    penalty = torch.full_like(inputs[0], ridge)
    penalty[-1] = 0.0
    weights = torch.linalg.solve(inputs.T @ inputs / len(rows) + torch.diag(penalty), inputs.T @ truth / len(rows))
    rest = (truth - inputs @ weights).square().mean().clamp(min=1e-12)
    return torch.cat([weights, 0.5 * torch.log(rest)[None]]), True


def _network(name: str, inputs: Tensor, target: _Target, fit: Tensor, check: Tensor, seed: int) -> _Model:
    """A small network, stopped where the validation rows are scored best."""
    n_outputs = 2 if target.classes is None else len(target.classes)
    inputs = inputs.to(torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "perceptron":
            layers: list[nn.Module] = [nn.Linear(inputs.shape[1], _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, n_outputs)]
        else:
            inputs = inputs if inputs.ndim == 4 else inputs[:, None]
            layers = [nn.Conv2d(inputs.shape[1], 16, 3, padding=1), nn.GELU(), nn.AvgPool2d(2)]
            layers += [nn.Conv2d(16, 32, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
            layers += [nn.Linear(512, n_outputs)]
        network = nn.Sequential(*layers).to(inputs.device)
    draws = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.03)
    best, kept, waited = math.inf, [p.detach().clone() for p in network.parameters()], 0
    ended = False
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(fit), generator=draws).split(_BATCH):
            rows = fit[batch.to(fit.device)]
            with torch.enable_grad():
                loss = -target.log_q(network(inputs[rows]), rows, torch.ones(())).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            score = -float(target.log_q(network(inputs[check]), check, torch.ones(())).mean())
        if score < best:
            best, kept, waited = score, [p.detach().clone() for p in network.parameters()], 0
        else:
            waited += 1
        if waited >= _PATIENCE:
            ended = True
            break
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), kept, strict=True):
            parameter.copy_(value)
        outputs = torch.cat([network(part) for part in inputs.split(1024)])
    return _Model(outputs.to(torch.float64), name, ended)
