"""Training of critics on some rows, stopped by others."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens import losses
from bitlens.estimators._critic_models import (
    Expansion,
    JointCritics,
    Scorer,
    SeparableCritic,
    SeparableScores,
    fit_expansion,
    fit_gaussian_ratio,
)
from bitlens.estimators._critic_values import (
    ALPHAS,
    OF_MAPS,
    SMILE_CLIP,
    Setting,
    log_mean_exp_of_pairs,
    value_of_scores,
)

HIDDEN, FEATURES, JOINT_HIDDEN = 128, 32, 64
BATCH, JOINT_BATCH = 256, 256
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 0.3
# Weights that are judged and reported are a running mean, which a single step moves by this share.
_MEAN_SHARE = 0.02
STEPS_BETWEEN_LOOKS, PATIENCE_LOOKS, MOST_STEPS = 20, 15, 1000
# A stage with few inputs ends soon, and smaller gains than this do not keep any going.
_MOST_STEPS_OF_SUMMARIES, _GAIN_THAT_COUNTS_NATS = 300, 5e-4
_STOPPING_ALPHAS = (1.0, 0.03)
_LEAST_GAIN_NATS = 0.01

Critic = SeparableCritic | JointCritics
Layers = tuple[Tensor, ...]


class Fit(NamedTuple):
    """A critic, what validation rows chose for it, and whether they stopped its training."""

    critic: Critic
    expansion: Expansion
    setting: Setting
    converged: bool


def fit_critic(
    method: str,
    kind: str,
    training: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    layers: Layers,
    *,
    n_coordinates: tuple[int, int],
    n_members: int,
    generator: torch.Generator,
) -> Fit:
    """The critic of the step at which validation pairs scored highest; `layers` are validation rows, alone in a group.

    First the sizes of rows alone are learned from, then variates as well, then coordinates: few inputs overfit less.
    The start, which for a separable critic is the Gaussian log ratio, is a candidate too.
    """
    expansion = fit_expansion(*training, n_coordinates)
    x, z = expansion(*training)
    judges = expansion(*validation)
    critic = _new_critic(method, kind, x, z, n_coordinates, n_members, generator)
    best = _look(method, critic, judges, layers)[0]
    converged = True
    for hidden in _hidden_inputs(critic, n_coordinates, (x.shape[1], z.shape[1])):
        if isinstance(critic, SeparableCritic):
            critic.hide(*hidden)
        most_steps = min(MOST_STEPS, _MOST_STEPS_OF_SUMMARIES) if any(hidden) else MOST_STEPS
        critic, best, converged = _trained(method, kind, critic, best, (x, z), judges, layers, generator, most_steps)
    return Fit(critic, expansion, _look(method, critic, judges, layers, choose=True)[1], converged)


def _hidden_inputs(critic: Critic, n_coordinates: tuple[int, int], n_inputs: tuple[int, int]) -> list[tuple[int, int]]:
    """How many of the first inputs of x and z are hidden in each stage: all but sizes, coordinates, none."""
    if isinstance(critic, JointCritics) or min(n_coordinates) < 2:
        return [(0, 0)]
    but_sizes = (n_inputs[0] - 1, n_inputs[1] - 1)
    return [but_sizes, (0, 0)] if but_sizes == n_coordinates else [but_sizes, n_coordinates, (0, 0)]


def _trained(
    method: str,
    kind: str,
    critic: Critic,
    best_value: float,
    training: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    layers: Layers,
    generator: torch.Generator,
    most_steps: int,
) -> tuple[Critic, float, bool]:
    """The best critic from here on, its value, and whether validation pairs stopped it."""
    (x, z), n_members = training, critic.n_members
    judged = copy.deepcopy(critic)
    best_state, counted, looks_since = _state(judged), best_value, 0
    loss = _loss(method, critic)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, foreach=True)
    size = min(BATCH if kind == "separable" else JOINT_BATCH, len(x))
    batches = _batches(len(x), size, n_members, generator)
    trained: list[Tensor] = list(critic.parameters())
    averaged: list[Tensor] = list(judged.parameters())
    step = 0
    while step < most_steps and looks_since < PATIENCE_LOOKS:
        step += 1
        rows = next(batches)
        with torch.enable_grad():
            objective = n_members * loss(x[rows], z[rows])
            optimizer.zero_grad()
            objective.backward()
        torch.nn.utils.clip_grad_norm_(trained, 10.0 * n_members, foreach=True)
        optimizer.step()
        torch._foreach_lerp_(averaged, [p.detach() for p in trained], max(_MEAN_SHARE, 1.0 / (1 + step)))
        if step % STEPS_BETWEEN_LOOKS:
            continue
        value, _ = _look(method, judged, validation, layers)
        looks_since += 1
        if value > counted + _GAIN_THAT_COUNTS_NATS:
            counted, looks_since = value, 0
        if value > best_value:
            best_value, best_state = value, _state(judged)
    judged.load_state_dict(best_state)
    return judged, best_value, looks_since >= PATIENCE_LOOKS


def _new_critic(
    method: str,
    kind: str,
    x: Tensor,
    z: Tensor,
    n_coordinates: tuple[int, int],
    n_members: int,
    generator: torch.Generator,
) -> Critic:
    with_row_shift, n_inputs = method == "flo", (x.shape[1], z.shape[1])
    critic: Critic
    if kind == "joint":
        critic = JointCritics(
            n_members, *n_inputs, hidden=JOINT_HIDDEN, generator=generator, with_row_shift=with_row_shift
        )
    else:
        critic = SeparableCritic(
            n_members,
            fit_gaussian_ratio(x[:, : n_coordinates[0]], z[:, : n_coordinates[1]]),
            n_coordinates,
            n_inputs,
            hidden=HIDDEN,
            features=FEATURES,
            generator=generator,
            with_row_shift=with_row_shift,
        )
    return critic.to(x.device)


def _state(critic: Critic) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in critic.state_dict().items()}


def _loss(method: str, critic: Critic) -> Callable[[Tensor, Tensor], Tensor]:
    """x, z (members, batch, ...) -> the mean loss of the members."""
    if isinstance(critic, SeparableCritic) and method in OF_MAPS:
        of_maps = losses.SMILE(SMILE_CLIP) if method == "smile" else losses.JensenShannon()

        def from_maps(x: Tensor, z: Tensor) -> Tensor:
            found = critic(x, z)
            loss: Tensor = of_maps(found.query, found.key, query_bias=found.query_bias, key_bias=found.key_bias)
            return loss

        return from_maps
    infonce, nwj, donsker_varadhan = losses.InfoNCE(two_sided=True), losses.NWJ(), losses.DonskerVaradhan()
    flo = losses.FLO()

    def from_scores(x: Tensor, z: Tensor) -> Tensor:
        if isinstance(critic, SeparableCritic):
            found: SeparableScores = critic(x, z)
            scores, shift = found.scores(), found.row_shift
        else:
            scores, shift = critic.train_scores(x, z)
        loss: Tensor
        if method in ("infonce", "interpolated"):
            # Both directions leave no term of x or z alone undetermined, and every batch has a bounded gradient.
            own = torch.arange(x.shape[-2], device=x.device)
            loss = infonce(scores, positive=own)
        elif method == "flo":
            assert shift is not None
            loss = flo(scores, u=shift - scores.positive)
        elif method == "nwj":
            loss = nwj(type(scores)(*(part + 1.0 for part in scores)))
        else:
            loss = donsker_varadhan(scores)
        return loss

    return from_scores


def _batches(n: int, size: int, n_members: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows (members, size) without end, each member going through all rows in its own order."""
    n_batches = n // size
    while True:
        order = torch.stack([torch.randperm(n, generator=generator) for _ in range(n_members)])
        for batch in range(n_batches):
            yield order[:, batch * size : (batch + 1) * size]


@torch.no_grad()
def _look(
    method: str, critic: Critic, validation: tuple[Tensor, Tensor], layers: Layers, *, choose: bool = False
) -> tuple[float, Setting]:
    """Value of the mean critic on validation pairs, and the normaliser (and with `choose` the alpha) for it."""
    scorers = [critic.mean(validation[0][rows], validation[1][rows]) for rows in layers]
    weights = [len(rows) for rows in layers]
    found = [scorer.scores() for scorer in scorers]
    log_normaliser = sum(w * log_mean_exp_of_pairs(part) for w, part in zip(weights, found, strict=True)) / sum(weights)
    if not math.isfinite(log_normaliser):
        return -math.inf, Setting(0.0, 1.0)
    # A row can lower the mean by 1 / (alpha K): below 1 / K a single one could outweigh all others.
    alphas = [alpha for alpha in (ALPHAS if choose else _STOPPING_ALPHAS) if alpha * min(weights) >= 1.0]
    if method != "interpolated":
        alphas = [1.0]
    settings = [Setting(log_normaliser, alpha) for alpha in alphas]
    values = [
        sum(
            w * value_of_scores(method, scorer, scores, setting)
            for w, scorer, scores in zip(weights, scorers, found, strict=True)
        )
        / sum(weights)
        for setting in settings
    ]
    # The larger alpha is, the less a few pairs of large exp S weigh: a smaller one has to be worth it.
    enough = max(values) - _LEAST_GAIN_NATS
    best = next(i for i, value in enumerate(values) if value >= enough)
    return (values[best] if choose else max(values)), settings[best]


def scorers_of(fit: Fit, x: Tensor, z: Tensor) -> tuple[Scorer, list[Scorer]]:
    """The mean critic and each member on the pairs."""
    inputs = fit.expansion(x, z)
    return fit.critic.mean(*inputs), list(fit.critic.members(*inputs))
