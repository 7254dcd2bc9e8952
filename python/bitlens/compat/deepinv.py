"""Systems as deepinv physics, and deepinv physics as encoders: `pip install bitlens[deepinv]`.

deepinv measures light in a unit of its own: gain Poisson(mean / gain). Here means are photo-electrons and Poisson noise
gives counts, so that what crosses the border is divided by the gain where it has one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from bitlens.encoders import LinearEncoder, channels_to_complex, complex_to_channels
from bitlens.noise import GaussianNoise, NoiseModel, PoissonGaussianNoise, PoissonNoise
from bitlens.systems import ImagingSystem

try:
    from deepinv import physics as deepinv_physics  # type: ignore  # has no types, where it is installed at all
except ImportError as error:
    raise ImportError(f"bitlens.compat.deepinv: need deepinv ({error}): pip install bitlens[deepinv]") from error

__all__ = ["ConvertedNoise", "as_encoder", "as_physics", "as_system", "noise_from_deepinv"]


# ---- Ours for deepinv ----


def as_physics(
    encoder: ImagingSystem | nn.Module | Callable[[Tensor], Tensor],
    noise: NoiseModel | None = None,
    *,
    scene_shape: tuple[int, ...] | None = None,
    generator: torch.Generator | None = None,
) -> Any:
    """A deepinv `LinearPhysics` of what is its `A`, else a `Physics` (A_vjp and A_jvp differentiate).

    What adds to its `A`, as dark signal does, has a `linear_part` without noise for solvers, given y - A(0). Gaussian
    noise of one number and Poisson noise become deepinv's own classes, any other noise one that draws with
    `noise.sample`; its measurements keep their unit, so that (y - offset) / gain is what compares with `A(x)`.

    Args:
        encoder: scene (batch, channel, row, column) -> mean; shared with the physics, not copied.
        noise: None takes that of an ImagingSystem, and no noise with any other encoder.
        scene_shape: (channel, row, column), deepinv's `img_size`; None takes that of an ImagingSystem's scenes, or
            counts as linear no other class than a `LinearEncoder`.
        generator: draws the noise; None takes torch's own.

    Raises:
        TypeError: an argument of another kind.

    Reference: Tachella et al. 2025, DeepInverse, doi:10.21105/joss.08923.
    """
    if isinstance(encoder, ImagingSystem):
        system = encoder
        encoder = system.encoder
        if noise is None:
            noise = system.noise  # type: ignore[assignment]  # any module in the tuple; checked below
        scene_shape = tuple(system.scenes.shape[1:]) if scene_shape is None else scene_shape
    if not callable(encoder):
        raise TypeError(f"encoder: need a callable scene -> mean, got {type(encoder).__name__}")
    if noise is not None and not isinstance(noise, NoiseModel):
        raise TypeError(f"noise: need a noise model such as bitlens.GaussianNoise, got {type(noise).__name__}")
    drawn = _noise_for_deepinv(noise, generator)
    physics: Any
    forward, adjoint = getattr(encoder, "A", None), getattr(encoder, "A_adjoint", None)
    has_linear_part = callable(forward) and callable(adjoint)
    if has_linear_part and _is_linear(encoder, scene_shape):
        physics = _linear_physics(encoder, scene_shape, drawn)
    else:
        physics = _NonlinearPhysics(A=_Map(encoder), noise_model=drawn)
        physics.img_size = scene_shape
        if has_linear_part:
            physics.linear_part = _linear_physics(encoder, scene_shape, deepinv_physics.ZeroNoise())
    physics.encoder = encoder  # so that .to(), parameters() and state_dict() of the physics reach a module
    return physics


def _linear_physics(encoder: Any, scene_shape: tuple[int, ...] | None, noise_model: Any) -> Any:
    forward, adjoint = _Map(encoder.A), _Map(encoder.A_adjoint)
    return deepinv_physics.LinearPhysics(A=forward, A_adjoint=adjoint, img_size=scene_shape, noise_model=noise_model)


def _is_linear(encoder: Any, scene_shape: tuple[int, ...] | None) -> bool:
    """Whether calling the encoder is its `A`: by its class, or tried on a scene of either sign, where a clamp shows."""
    if isinstance(encoder, LinearEncoder) and type(encoder).forward is LinearEncoder.forward:
        return True
    if scene_shape is None:
        return False
    tensors = (*encoder.parameters(), *encoder.buffers()) if isinstance(encoder, nn.Module) else ()
    device = next((value.device for value in tensors), torch.device("cpu"))
    dtype = next((value.dtype for value in tensors if value.is_floating_point()), torch.float32)
    scene = torch.randn(1, *scene_shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    with torch.no_grad():
        mean, linear = encoder(scene), encoder.A(scene)
        return mean.shape == linear.shape and torch.allclose(
            mean, linear, rtol=1e-5, atol=1e-6 * float(linear.abs().max())
        )


@final
@dataclass(frozen=True)
class _Map:
    """A function of one tensor that lets pass the options which deepinv hands to operator and noise alike.

    An object rather than a closure: a copy of the physics then has a copy of the encoder.
    """

    function: Callable[[Tensor], Tensor]

    def __call__(self, value: Tensor, **options: object) -> Tensor:
        return self.function(value)


@final
class _NonlinearPhysics(deepinv_physics.Physics):  # type: ignore[misc]
    """With both products of the Jacobian: `compute_norm` calls one that deepinv's base class leaves out."""

    def A_vjp(self, scene: Tensor, weights: Tensor) -> Tensor:
        """(d A / d scene)^T weights, differentiable where scene, weights or the encoder require grad."""
        differentiable = torch.is_grad_enabled() and (
            scene.requires_grad or weights.requires_grad or any(value.requires_grad for value in self.parameters())
        )
        with torch.enable_grad():
            point = scene.view_as(scene) if scene.requires_grad else scene.detach().requires_grad_()
            (product,) = torch.autograd.grad(self.A(point), point, weights, create_graph=differentiable)
        return product

    def A_jvp(self, scene: Tensor, direction: Tensor) -> Tensor:
        """(d A / d scene) direction."""
        tangent: Tensor = torch.func.jvp(self.A, (scene,), (direction,))[1]
        return tangent


@final
class _DrawnNoise(deepinv_physics.NoiseModel):  # type: ignore[misc]
    """deepinv's noise interface over `noise.sample`."""

    def __init__(self, noise: NoiseModel, generator: torch.Generator | None) -> None:
        super().__init__(rng=generator)
        self.noise = noise

    def forward(self, mean: Tensor, seed: int | None = None, **options: object) -> Tensor:
        """One measurement of each mean; `seed` restarts the generator, other options are the operator's."""
        self.rng_manual_seed(seed)
        return self.noise.sample(mean, generator=self.rng)

    def update_parameters(self, **options: object) -> None:
        """Nothing: the parameters are those of `noise`, under other names and in other units than deepinv's."""


def _noise_for_deepinv(noise: NoiseModel | None, generator: torch.Generator | None) -> Any:
    if noise is None:
        return deepinv_physics.ZeroNoise()
    if isinstance(noise, PoissonNoise):
        return deepinv_physics.PoissonNoise(gain=1.0, rng=generator)
    # A Parameter is shared, for gradients; deepinv reads a vector as one number for each image of a batch.
    if isinstance(noise, GaussianNoise) and noise.std.ndim == 0 and not isinstance(noise.std, nn.Parameter):
        return deepinv_physics.GaussianNoise(sigma=float(noise.std), rng=generator)
    return _DrawnNoise(noise, generator)


# ---- deepinv's for us ----


class ConvertedNoise(NamedTuple):
    """`noise` of `mean_scale` times deepinv's mean; its measurements are `measured_scale` times deepinv's.

    `clip_negative`: deepinv takes a negative mean for 0.
    """

    noise: GaussianNoise | PoissonNoise | PoissonGaussianNoise
    mean_scale: float
    measured_scale: float
    clip_negative: bool

    def measured(self, theirs: Tensor) -> Tensor:
        """Measurements of deepinv's in the units of `noise`, counts whole again.

        Values that are no multiple of the gain stay fractions, which estimators refuse.
        """
        scaled = self.measured_scale * theirs
        if not self.noise.discrete:
            return scaled
        nearest = scaled.round()
        return torch.where((scaled - nearest).abs() <= _ROUNDING * nearest.abs().clamp(min=1), nearest, scaled)


_ROUNDING = 1e-5  # of a count in single precision, through gain and scale


def noise_from_deepinv(noise_model: nn.Module) -> ConvertedNoise:
    """The noise model of a deepinv one, with what turns deepinv's mean and measurement into its units.

    GaussianNoise(sigma): the same, scales 1. PoissonNoise(gain): counts, mean and normalised measurement over the gain
    (a measurement that is not normalised is counts already). PoissonGaussianNoise(gain, sigma): the mean over the gain,
    the measurement as it is; Gaussian or Poisson where gain or sigma is 0. The noise has the values of now.

    Raises:
        TypeError: any other noise model, ZeroNoise among them: without noise no finite number of bits is to be had.
        ValueError: a gain or sigma for each image of a batch, or out of range.
    """
    kind = type(noise_model)
    if kind is deepinv_physics.GaussianNoise:
        return ConvertedNoise(GaussianNoise(_number(noise_model, "sigma")), 1.0, 1.0, False)
    if kind is deepinv_physics.PoissonNoise:
        clip, normalized = bool(noise_model.clip_positive), bool(noise_model.normalize)
        return _counts(_number(noise_model, "gain"), normalized, clip)
    if kind is deepinv_physics.PoissonGaussianNoise:
        gain, sigma = _number(noise_model, "gain"), _number(noise_model, "sigma")
        clip = bool(noise_model.clip_positive)
        if sigma == 0:
            return _counts(gain, True, clip)
        if gain == 0:
            return ConvertedNoise(GaussianNoise(sigma), 1.0, 1.0, clip)
        _check_gain(gain)
        return ConvertedNoise(PoissonGaussianNoise(gain=gain, read_std=sigma), 1.0 / gain, 1.0, clip)
    raise TypeError(
        f"noise_model: need deepinv's GaussianNoise, PoissonNoise or PoissonGaussianNoise, got {kind.__name__}"
    )


def _counts(gain: float, normalized: bool, clip: bool) -> ConvertedNoise:
    _check_gain(gain)
    return ConvertedNoise(PoissonNoise(), 1.0 / gain, 1.0 / gain if normalized else 1.0, clip)


def _check_gain(gain: float) -> None:
    if not gain > 0:
        raise ValueError(f"noise_model.gain: need a number above 0, got {gain:g}")


def _number(noise_model: nn.Module, name: str) -> float:
    value = torch.as_tensor(getattr(noise_model, name))
    if value.numel() != 1:
        raise ValueError(f"noise_model.{name}: need one number for all images, got shape {tuple(value.shape)}")
    return float(value.detach())


def as_encoder(
    physics: nn.Module,
    *,
    mean_scale: float = 1.0,
    clip_negative: bool = False,
    complex_scenes: bool = False,
    learn: Sequence[str] = (),
) -> nn.Module:
    """scene -> mean_scale physics.A(scene) as real numbers; the physics itself, called, would add its noise.

    Complex measurements become pairs of real channels, those of stacked physics one row of values. The physics is
    shared, not copied; no `sensor_model` enters. Its tensors are named with "physics." in front.

    Args:
        physics: a deepinv `Physics`, of the precision of the scenes.
        mean_scale: photo-electrons per unit of deepinv's mean, see `noise_from_deepinv`.
        clip_negative: a mean below 0 counts as 0.
        complex_scenes: scenes are pairs of real channels of the complex ones that the physics takes.
        learn: arguments of `physics.A`, such as "filter" or "mask", that become parameters of the encoder, started at
            what the physics holds; what the physics derives from them follows.

    Raises: TypeError, ValueError: `physics` is none, or has no such argument.
    """
    _check_physics(physics)
    return _PhysicsEncoder(physics, mean_scale, clip_negative, complex_scenes, learn)


def as_system(
    physics: nn.Module, scenes: Tensor, *, complex_scenes: bool = False, learn: Sequence[str] = ()
) -> ImagingSystem:
    """`encoder, noise, scenes` of a deepinv physics and its noise model, in photo-electrons where there is shot noise.

    Measurements that the physics made are `noise_from_deepinv(physics.noise_model).measured(...)` in these units.

    Args:
        physics: a deepinv `Physics` whose noise `noise_from_deepinv` takes.
        scenes: (n, channel, row, column).
        complex_scenes, learn: as for `as_encoder`.

    Raises:
        TypeError, ValueError: a physics or noise model that cannot be used.
    """
    _check_physics(physics)
    noise, mean_scale, _, clip_negative = noise_from_deepinv(physics.get_submodule("noise_model"))
    encoder = _PhysicsEncoder(physics, mean_scale, clip_negative, complex_scenes, learn)
    return ImagingSystem(encoder, noise, scenes)


def _check_physics(physics: object) -> None:
    if not isinstance(physics, deepinv_physics.Physics):
        raise TypeError(f"physics: need a deepinv Physics, got {type(physics).__name__}")


@final
class _PhysicsEncoder(nn.Module):
    def __init__(
        self,
        physics: nn.Module,
        mean_scale: float,
        clip_negative: bool,
        complex_scenes: bool,
        learn: Sequence[str],
    ) -> None:
        super().__init__()
        self.physics = physics
        self.mean_scale = mean_scale
        self.clip_negative = clip_negative
        self.complex_scenes = complex_scenes
        self.learn = tuple(learn)
        for name in self.learn:
            self.register_parameter(name, nn.Parameter(_argument(physics, name).detach().clone()))

    def forward(self, scene: Tensor) -> Tensor:
        """The noiseless measurements (batch, ...) of scenes (batch, channel, row, column)."""
        mean = self.mean_scale * _real(self._measured(channels_to_complex(scene) if self.complex_scenes else scene))
        return mean.clamp(min=0) if self.clip_negative else mean

    def _measured(self, scene: Tensor) -> Any:
        operator = _Operator(self.physics)
        if not self.learn:
            return operator(scene)
        # A physics keeps the arguments of its last call and what it derives from them, with their graph; a call with
        # tensors from outside puts its own back. A plain tensor, because a buffer of a module cannot be a Parameter.
        arguments = {name: (value := self.get_parameter(name)).view_as(value) for name in self.learn}
        return torch.func.functional_call(operator, dict(operator.named_buffers()), (scene,), arguments)


def _argument(physics: nn.Module, name: str) -> Tensor:
    """The tensor that the physics holds for an argument of its `A`."""
    value = getattr(physics, name, None)
    accepted = inspect.signature(physics.A).parameters  # type: ignore[arg-type]
    if name not in accepted or not isinstance(value, Tensor):
        held = [other for other in accepted if isinstance(getattr(physics, other, None), Tensor)]
        raise ValueError(
            f"learn: need arguments of {type(physics).__name__}.A that it holds as tensors "
            f"({', '.join(held) or 'none'}), got {name!r}"
        )
    return value


@final
class _Operator(nn.Module):
    """`physics.A` as a module's forward, which `functional_call` needs."""

    def __init__(self, physics: nn.Module) -> None:
        super().__init__()
        self.physics = physics

    def forward(self, scene: Tensor, **arguments: Tensor) -> Any:
        return self.physics.A(scene, **arguments)  # type: ignore[operator]


def _real(measured: Any) -> Tensor:
    if not isinstance(measured, Tensor):  # deepinv's TensorList
        return torch.cat([_real(part).flatten(1) for part in measured], dim=1)
    if not measured.is_complex():
        return measured
    if measured.ndim >= 4:
        return complex_to_channels(measured)
    return torch.view_as_real(measured.resolve_conj()).flatten(1)
