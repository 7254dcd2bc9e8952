"""Critics that learn a log density ratio: several members trained at once, scored each alone or as their mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from bitlens import ops
from bitlens.critics import JointCritic

# Samples for each principal component in which canonical correlations are looked for.
_SAMPLES_PER_COMPONENT = 20
_MOST_VARIATES, _LARGEST_VARIATE = 6, 5.0
_LARGEST_SQUARED_CORRELATION = 1.0 - 1e-8


class GaussianRatio(NamedTuple):
    """log p(x, z) / (p(x) p(z)) of the Gaussian with the canonical correlations of the training rows.

    u = (x - x_mean) @ x_axes and v = (z - z_mean) @ z_axes have unit variance, and correlation by correlation.
    """

    x_mean: Tensor
    z_mean: Tensor
    x_axes: Tensor
    z_axes: Tensor
    correlation: Tensor


def fit_gaussian_ratio(x: Tensor, z: Tensor) -> GaussianRatio:
    """Canonical correlations above what independent samples of this size show, freed of their sampling excess.

    Reference: Bao, Hu, Pan and Zhou (2019), arXiv:1704.02408, theorem 1.8 (limit of a sample canonical correlation).
    """
    n = x.shape[0]
    x_mean, x_white = _whitening(x.double())
    z_mean, z_white = _whitening(z.double())
    cross = x_white.mT @ ((x.double() - x_mean).mT @ (z.double() - z_mean) / n) @ z_white
    left, sample, right = torch.linalg.svd(cross, full_matrices=False)
    free_x, free_z = x_white.shape[1] / n, z_white.shape[1] / n
    kept_x, kept_z = 1.0 - free_x, 1.0 - free_z
    edge = free_x * kept_z + free_z * kept_x + 2.0 * math.sqrt(free_x * free_z * kept_x * kept_z)
    # Squared sample correlation L of a true T: L T = (kept_x T + free_x) (kept_z T + free_z).
    half = 0.5 * (sample.square() - kept_x * free_z - kept_z * free_x)
    root = (half.square() - kept_x * kept_z * free_x * free_z).clamp(min=0.0).sqrt()
    squared = ((half + root) / (kept_x * kept_z)).clamp(0.0, _LARGEST_SQUARED_CORRELATION)
    seen = sample.square() > edge
    x_axes, z_axes = x_white @ left[:, seen], z_white @ right.mT[:, seen]
    return GaussianRatio(
        x_mean.to(x.dtype), z_mean.to(x.dtype), x_axes.to(x.dtype), z_axes.to(x.dtype), squared[seen].sqrt()
    )


def _whitening(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and axes (d, components) along which the values have unit variance."""
    mean = values.mean(dim=0)
    centred = values - mean
    variance, axes = torch.linalg.eigh(centred.mT @ centred / values.shape[0])
    n_kept = max(1, values.shape[0] // _SAMPLES_PER_COMPONENT)
    variance, axes = variance[-n_kept:], axes[:, -n_kept:]
    real = variance > 1e-8 * variance[-1].clamp(min=1e-30)
    return mean, axes[:, real] / variance[real].sqrt()


class Expansion(NamedTuple):
    """Canonical variates of lifted coordinates, which critics get as further inputs; None where there are too few rows.

    `n_coordinates`: how many of the first inputs of x and z are coordinates.
    """

    lifted_ratio: GaussianRatio | None
    n_coordinates: tuple[int, int]

    def __call__(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """(n, inputs) of either side -> coordinates, variates, and the size of the row where there is one."""
        if self.lifted_ratio is None:
            return x, z
        ratio, (n_x, n_z) = self.lifted_ratio, self.n_coordinates
        u = (_lifted(x, n_x) - ratio.x_mean) @ ratio.x_axes
        v = (_lifted(z, n_z) - ratio.z_mean) @ ratio.z_axes
        return _behind_coordinates(x, u, n_x), _behind_coordinates(z, v, n_z)


def _behind_coordinates(side: Tensor, variates: Tensor, n_coordinates: int) -> Tensor:
    squashed = _LARGEST_VARIATE * torch.tanh(variates[:, :_MOST_VARIATES] / _LARGEST_VARIATE)
    return torch.cat([side[:, :n_coordinates], squashed, side[:, n_coordinates:]], dim=1)


def fit_expansion(x: Tensor, z: Tensor, n_coordinates: tuple[int, int]) -> Expansion:
    """From training rows; without variates for single coordinates, which have nothing to be found."""
    is_possible = len(x) >= _SAMPLES_PER_COMPONENT * (8 * max(n_coordinates) + 3) and max(n_coordinates) > 1
    if not is_possible:
        return Expansion(None, n_coordinates)
    sides = (_lifted(side, count) for side, count in zip((x, z), n_coordinates, strict=True))
    return Expansion(fit_gaussian_ratio(*sides), n_coordinates)


def _lifted(values: Tensor, n_coordinates: int) -> Tensor:
    """Coordinates, their squares, and their products with waves of the size of the row, (n, features).

    What turns or grows with the size of a row, and sizes that go together, are linear in these: canonical correlations
    find them where gradients from a random start do not.
    """
    coordinates = values[:, :n_coordinates]
    found = [coordinates, coordinates.square() - 1.0]
    if n_coordinates == 1:
        found.append(coordinates * (coordinates.square() - 3.0))
        return torch.cat(found, dim=1)
    size = values[:, n_coordinates:]
    for frequency in (1.0, 2.0, 3.0):
        found += [coordinates * torch.cos(frequency * size), coordinates * torch.sin(frequency * size)]
    found += [size, size.square() - 1.0, size * (size.square() - 3.0)]
    return torch.cat(found, dim=1)


class Scorer(Protocol):
    """A critic on n pairs: what the values are made of."""

    def scores(self, row_weight: Tensor | None = None) -> ops.InfoNCEScores:
        """Positives and log-sum-exps of all n x n scores; `row_weight` (n,) nats is added to each row."""

    def take(self, rows: Tensor) -> Scorer:
        """The same on some of the pairs."""

    @property
    def row_shift(self) -> Tensor | None:
        """(n,) what the second critic of FLO says beyond minus the score of the pair; None without one."""


@dataclass(frozen=True)
class SeparableScores:
    """S_ij = query_i . key_j + query_bias_i + key_bias_j, leading axes for members."""

    query: Tensor
    key: Tensor
    query_bias: Tensor
    key_bias: Tensor
    row_shift: Tensor | None = None

    def scores(self, row_weight: Tensor | None = None) -> ops.InfoNCEScores:
        bias = self.query_bias if row_weight is None else self.query_bias + row_weight
        return ops.infonce_scores(self.query, self.key, query_bias=bias, key_bias=self.key_bias)

    def take(self, rows: Tensor) -> SeparableScores:
        shift = None if self.row_shift is None else self.row_shift[rows]
        return SeparableScores(
            self.query[rows], self.key[rows], self.query_bias[rows], self.key_bias[rows], row_shift=shift
        )


@dataclass(frozen=True)
class JointScores:
    """S_ij = w . relu(V relu(q_i + k_j) + d) + b."""

    query_hidden: Tensor
    key_hidden: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    output_weight: Tensor
    output_bias: Tensor
    row_shift: Tensor | None = None

    def scores(self, row_weight: Tensor | None = None) -> ops.InfoNCEScores:
        query, key, weight, bias = self.query_hidden, self.key_hidden, self.hidden_weight, self.hidden_bias
        output, shift = self.output_weight, self.output_bias
        if row_weight is not None:
            # One more unit in each layer carries the weight of a row, lifted above 0, where a ReLU passes it on.
            lowest = row_weight.min()
            query = torch.cat([query, (row_weight - lowest)[:, None]], dim=1)
            key = nn.functional.pad(key, (0, 1))
            weight = torch.block_diag(weight, weight.new_ones(1, 1))
            bias, output = nn.functional.pad(bias, (0, 1)), nn.functional.pad(output, (0, 1), value=1.0)
            shift = shift + lowest
        return ops.joint_critic_scores(query, key, output, hidden_weight=weight, hidden_bias=bias, output_bias=shift)

    def take(self, rows: Tensor) -> JointScores:
        shift = None if self.row_shift is None else self.row_shift[rows]
        return JointScores(
            self.query_hidden[rows],
            self.key_hidden[rows],
            self.hidden_weight,
            self.hidden_bias,
            self.output_weight,
            self.output_bias,
            row_shift=shift,
        )


class Perceptrons(nn.Module):
    """One perceptron with two hidden layers per member, (members, n, inputs) -> (members, n, outputs)."""

    def __init__(
        self, n_members: int, inputs: int, hidden: int, outputs: int, *, generator: torch.Generator, silent: bool
    ) -> None:
        super().__init__()
        sizes = (inputs, hidden, hidden, outputs)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            bound = 1 / math.sqrt(fan_in)
            weight, bias = torch.zeros(n_members, fan_in, fan_out), torch.zeros(n_members, 1, fan_out)
            if not (silent and layer == 2):
                weight.uniform_(-bound * math.sqrt(3), bound * math.sqrt(3), generator=generator)
                bias.uniform_(-bound, bound, generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))

    def forward(self, values: Tensor) -> Tensor:
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = torch.baddbmm(bias, values, weight)
            if layer < 2:
                values = nn.functional.silu(values)
        return values


class SeparableCritic(nn.Module):
    """S = Gaussian log ratio + phi(x) . psi(z) + a(x) + b(z), starting at the Gaussian log ratio.

    Quadratic and exact for Gaussian data, so that only what is not Gaussian is left to learn.
    """

    x_mean: Tensor
    z_mean: Tensor
    x_axes: Tensor
    z_axes: Tensor
    correlation: Tensor

    def __init__(
        self,
        n_members: int,
        ratio: GaussianRatio,
        n_coordinates: tuple[int, int],
        n_inputs: tuple[int, int],
        *,
        hidden: int,
        features: int,
        generator: torch.Generator,
        with_row_shift: bool,
    ) -> None:
        super().__init__()
        self.n_members, self.n_coordinates = n_members, n_coordinates
        self.n_hidden = (0, 0)
        x_inputs, z_inputs = n_inputs
        for name, part in ratio._asdict().items():
            self.register_buffer(name, part)
        # With phi = 0 and psi not, the first step already has a direction.
        self.of_x = Perceptrons(n_members, x_inputs, hidden, features + 1, generator=generator, silent=True)
        self.of_z = Perceptrons(n_members, z_inputs, hidden, features + 1, generator=generator, silent=False)
        with torch.no_grad():
            self.of_z.weights[2][..., -1].zero_()
            self.of_z.biases[2][..., -1].zero_()
        self.of_pair = (
            Perceptrons(n_members, x_inputs + z_inputs, hidden, 1, generator=generator, silent=True)
            if with_row_shift
            else None
        )

    def hide(self, n_x: int, n_z: int) -> None:
        """Keep the first inputs of x and z from the perceptrons; what was learned stays as it is when they come in."""
        with torch.no_grad():
            for perceptrons, count in zip((self.of_x, self.of_z), (n_x, n_z), strict=True):
                perceptrons.weights[0][:, :count].zero_()
        self.n_hidden = (n_x, n_z)

    def forward(self, x: Tensor, z: Tensor) -> SeparableScores:
        """x (members, n, ...) and z alike -> scores of each member."""
        phi, psi = (
            perceptrons(torch.cat([torch.zeros_like(side[..., :count]), side[..., count:]], dim=-1))
            for perceptrons, side, count in zip((self.of_x, self.of_z), (x, z), self.n_hidden, strict=True)
        )
        query, query_bias, key, key_bias = self._gaussian(x, z)
        return SeparableScores(
            torch.cat([query, phi[..., :-1]], dim=-1),
            torch.cat([key, psi[..., :-1]], dim=-1),
            query_bias + phi[..., -1],
            key_bias + psi[..., -1],
            row_shift=self._row_shift(x, z),
        )

    def _gaussian(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u, v = (
            (side[..., :count] - mean) @ axes
            for side, count, mean, axes in zip(
                (x, z), self.n_coordinates, (self.x_mean, self.z_mean), (self.x_axes, self.z_axes), strict=True
            )
        )
        squared = self.correlation.square()
        gain, loss = self.correlation / (1.0 - squared), 0.5 * squared / (1.0 - squared)
        level = -0.5 * torch.log1p(-squared).sum()
        return (
            u * gain.to(u),
            (level - u.double().square() @ loss).to(u),
            v,
            -(v.double().square() @ loss).to(v),
        )

    def _row_shift(self, x: Tensor, z: Tensor) -> Tensor | None:
        return None if self.of_pair is None else self.of_pair(torch.cat([x, z], dim=-1)).squeeze(-1)

    def members(self, x: Tensor, z: Tensor) -> list[SeparableScores]:
        """(n, ...) -> each member's scores, in double precision."""
        found = self(x.expand(self.n_members, *x.shape), z.expand(self.n_members, *z.shape))
        return [
            SeparableScores(
                found.query[i].double(),
                found.key[i].double(),
                found.query_bias[i].double(),
                found.key_bias[i].double(),
                row_shift=None if found.row_shift is None else found.row_shift[i].double(),
            )
            for i in range(self.n_members)
        ]

    def mean(self, x: Tensor, z: Tensor) -> SeparableScores:
        """(n, ...) -> scores of the mean over members, in double precision."""
        parts, n_gaussian, count = self.members(x, z), len(self.correlation), self.n_members
        shifts = [part.row_shift for part in parts if part.row_shift is not None]
        return SeparableScores(
            torch.cat([parts[0].query[:, :n_gaussian], *(part.query[:, n_gaussian:] / count for part in parts)], 1),
            torch.cat([parts[0].key[:, :n_gaussian], *(part.key[:, n_gaussian:] for part in parts)], 1),
            torch.stack([part.query_bias for part in parts]).mean(0),
            torch.stack([part.key_bias for part in parts]).mean(0),
            row_shift=torch.stack(shifts).mean(0) if shifts else None,
        )


class JointCritics(nn.Module):
    """S = MLP([x, z]) with two hidden layers, a `JointCritic` for each member."""

    def __init__(
        self,
        n_members: int,
        x_inputs: int,
        z_inputs: int,
        *,
        hidden: int,
        generator: torch.Generator,
        with_row_shift: bool,
    ) -> None:
        super().__init__()
        self.n_members = n_members
        self.critics = nn.ModuleList(
            JointCritic(x_inputs, z_inputs, (hidden, hidden), generator=generator) for _ in range(n_members)
        )
        self.of_pair = (
            Perceptrons(n_members, x_inputs + z_inputs, hidden, 1, generator=generator, silent=True)
            if with_row_shift
            else None
        )

    def _of(self, member: int, x: Tensor, z: Tensor) -> JointScores:
        critic = self.critics[member]
        assert isinstance(critic, JointCritic)
        assert critic.hidden_weight is not None
        assert critic.hidden_bias is not None
        return JointScores(
            nn.functional.linear(x, critic.query_weight, critic.first_bias),
            nn.functional.linear(z, critic.key_weight),
            critic.hidden_weight,
            critic.hidden_bias,
            critic.output_weight,
            critic.output_bias,
        )

    def _row_shift(self, x: Tensor, z: Tensor) -> Tensor | None:
        return None if self.of_pair is None else self.of_pair(torch.cat([x, z], dim=-1)).squeeze(-1)

    def train_scores(self, x: Tensor, z: Tensor) -> tuple[ops.InfoNCEScores, Tensor | None]:
        """x (members, n, ...) and z alike -> scores of each member, and the shift of FLO."""
        each = [self._of(member, x[member], z[member]).scores() for member in range(self.n_members)]
        return ops.InfoNCEScores(*(torch.stack(parts) for parts in zip(*each, strict=True))), self._row_shift(x, z)

    def members(self, x: Tensor, z: Tensor) -> list[JointScores]:
        """(n, ...) -> each member's scores, in double precision."""
        shift = self._row_shift(x.expand(self.n_members, *x.shape), z.expand(self.n_members, *z.shape))
        found = []
        for member in range(self.n_members):
            one = self._of(member, x, z)
            found.append(
                JointScores(
                    one.query_hidden.double(),
                    one.key_hidden.double(),
                    one.hidden_weight.double(),
                    one.hidden_bias.double(),
                    one.output_weight.double(),
                    one.output_bias.double(),
                    row_shift=None if shift is None else shift[member].double(),
                )
            )
        return found

    def mean(self, x: Tensor, z: Tensor) -> JointScores:
        """(n, ...) -> scores of the mean over members, in double precision."""
        parts = self.members(x, z)
        shifts = [part.row_shift for part in parts if part.row_shift is not None]
        return JointScores(
            torch.cat([part.query_hidden for part in parts], dim=1),
            torch.cat([part.key_hidden for part in parts], dim=1),
            torch.block_diag(*(part.hidden_weight for part in parts)),
            torch.cat([part.hidden_bias for part in parts]),
            torch.cat([part.output_weight for part in parts]) / self.n_members,
            torch.stack([part.output_bias for part in parts]).mean(0),
            row_shift=torch.stack(shifts).mean(0) if shifts else None,
        )
