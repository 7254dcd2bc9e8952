"""A camera designed by what it tells about who someone is, from photographs with names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from bitlens import optimize_design
from bitlens.design import Objective
from bitlens.design.objectives import Batch
from bitlens.estimators import task_information
from bitlens.estimators._inputs import make_groups
from bitlens.kernels import _backend
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import ImagingSystem


@final
class Named(nn.Module):
    """The encoder of scenes whose second channel holds the number of the person: it sees the first alone."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, scene: Tensor) -> Tensor:
        """What the encoder gives for the faces."""
        found = self.encoder(scene[:, :1])
        assert isinstance(found, Tensor)
        return found


def named(scenes: Tensor, labels: Tensor) -> Tensor:
    """Scenes (n, 2, row, column): faces, and the number of the person in every sample."""
    return torch.cat([scenes, labels.to(scenes)[:, None, None, None].expand_as(scenes)], 1)


@final
class IdentityObjective(Objective):
    """0.5 log det(B + W + N) / det(W + N): people as a Gaussian population, photographs of each as another.

    B the covariance of the people's mean measurements, W that of the photographs of one person around their mean, N the
    mean variance of the noise. Takes scenes of `named`.

    Reference: Ioffe 2006, Probabilistic linear discriminant analysis, doi:10.1007/11744085_41.
    """

    name: ClassVar[str] = "identity"

    def nats(self, batch: Batch) -> Tensor:
        """Of the means of all photographs in the batch."""
        assert isinstance(batch.noise, PoissonGaussianNoise)
        labels = batch.scenes[:, 1].flatten(1)[:, 0].round().long()
        mean = batch.mean.flatten(1)
        people, codes = labels.unique(return_inverse=True)
        member = nn.functional.one_hot(codes, len(people)).to(mean)
        own = (member.T @ mean) / member.sum(0)[:, None]
        inside = mean - own[codes]
        within = inside.T @ inside / (len(mean) - len(people))
        within = within + torch.diag(batch.noise.variance(batch.mean).flatten(1).mean(0))
        # What photographs differ by does not average out of the mean of some: it is no difference between people.
        between = torch.cov(own.T) - (inside.T @ inside / (len(mean) - len(people))) * float((1 / member.sum(0)).mean())
        return 0.5 * _log_det_ratio(between, within)


def _log_det_ratio(between: Tensor, within: Tensor) -> Tensor:
    """log det(between + within) / det(within), directions with less than nothing between them counting nothing."""
    factor = torch.linalg.cholesky(within)
    half = torch.linalg.solve_triangular(factor, between, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
    return torch.log1p(torch.linalg.eigvalsh((whitened + whitened.T) / 2).clamp(min=0)).sum()


class IdentityBits(NamedTuple):
    """I(identity; Z) of each camera in bits, with the error of each, and of what the others have over the first."""

    bits: dict[str, float]
    stderr_bits: dict[str, float]
    gain_stderr_bits: dict[str, float]


def identity_information(
    systems: Mapping[str, ImagingSystem], labels: Tensor, groups: Tensor, method: str
) -> IdentityBits:
    """The better of likelihoods over other photographs and learned classifiers, as `estimate_task_information`.

    The same photographs, noise draws and folds for every camera: the error of a difference is that of pairs.
    """
    bits, stderr, gain_stderr = {}, {}, {}
    first: Tensor | None = None
    for name, (encoder, noise, scenes) in systems.items():
        with torch.no_grad():
            mean = torch.cat([encoder(part) for part in scenes[: len(labels)].split(256)]).double()
        assert isinstance(noise, PoissonGaussianNoise)
        measured = noise.sample(mean, torch.Generator().manual_seed(1))
        partition = make_groups(groups, measured, torch.Generator().manual_seed(2))
        target = task_information._target(labels, measured)
        assert target is not None
        with _backend.reproducible():
            found = task_information._found(measured, target, noise, mean, method, partition, 2)
            first = found.influence if first is None else first
            bits[name] = float(found.rows.mean()) / math.log(2)
            stderr[name] = partition.standard_error(found.influence) / math.log(2)
            gain_stderr[name] = partition.standard_error(found.influence - first) / math.log(2)
    return IdentityBits(bits, stderr, gain_stderr)


def design_by_identity(start: ImagingSystem, labels: Tensor, *, n_steps: int, learning_rate: float) -> Any:
    """The camera that tells most about the people of `start.scenes`, from all of their photographs at each step."""
    assert isinstance(start.encoder, nn.Module)
    scenes = named(start.scenes, labels)
    found = optimize_design(
        Named(start.encoder),
        start.noise,  # type: ignore[arg-type]
        scenes,
        objective=IdentityObjective(),
        n_steps=n_steps,
        batch_size=len(scenes),
        learning_rate=learning_rate,
        # Judged elsewhere, by the people of others.
        judge_scenes=scenes[:40],
        judge_method="known_channel",
        generator=torch.Generator().manual_seed(0),
    )
    assert isinstance(found.encoder, Named)
    return found


def gain_text(found: IdentityBits, start: str, designed: str) -> tuple[float, str]:
    """The gain over its standard error, and all in words; `start` the first camera of all."""
    gain, stderr = found.bits[designed] - found.bits[start], found.gain_stderr_bits[designed]
    sigmas = gain / stderr if stderr > 0 else 0.0
    lines = [f"  {name}: {found.bits[name]:.3f} +- {found.stderr_bits[name]:.3f} bits about who" for name in found.bits]
    lines.append(f"  {designed}: {gain:+.3f} +- {stderr:.3f} bits over the start ({sigmas:.1f} standard errors)")
    return sigmas, "\n".join(lines) + "\n"
