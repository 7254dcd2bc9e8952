"""Projections and backprojections that autograd, torch.func and forward mode go through; see `_tomography_loops`."""

from __future__ import annotations

from types import ModuleType
from typing import Any, final

import torch
from torch import Tensor

from bitlens.encoders._tomography_rays import Rays


def _loops() -> ModuleType:
    """The compiled loops: imported when the first projection is made, as numba takes half a second."""
    from bitlens.encoders import _tomography_loops

    return _tomography_loops


def project(image: Tensor, rays: Rays) -> Tensor:
    """`bin_sums`, differentiable; once in the rays."""
    return _BinSums.apply(image, *rays)  # type: ignore[no-untyped-call]


def backproject(bins: Tensor, rays: Rays, shape: tuple[int, int]) -> Tensor:
    """`bin_sums_adjoint`, differentiable; once in the rays."""
    return _BinSumsAdjoint.apply(bins, *rays, shape)  # type: ignore[no-untyped-call]


def _slopes(image: Tensor, rays: Rays) -> Tensor:
    """`edge_slopes`, whose derivatives are refused."""
    return _Slopes.apply(image, *rays)  # type: ignore[no-untyped-call]


def _at_edges(bins: Tensor, rays: Rays) -> Tensor:
    """(part, ..., view, edge), float64: the adjoint of the difference between the edges of a bin."""
    views, width = rays.inside.shape[1:]
    shape = (2, *(1,) * (bins.ndim - 2), views, width)
    values = torch.where(rays.inside.reshape(shape), bins.double(), 0.0)
    return -torch.nn.functional.pad(values, (1, 1)).diff(dim=-1)


def _gradients(image: Tensor, bins: Tensor, rays: Rays, needs: tuple[bool, ...]) -> list[Tensor | None]:
    """Gradients of sum(bin_sums(image) bins) in intercept, slope and source row."""
    if not any(needs):
        return [None] * 3
    weighted = (_slopes(image, rays) * _at_edges(bins, rays)).sum(2)
    intercept, slope, source_row = weighted[0], weighted[1], weighted[2].sum(-1)
    if not rays.fan:
        intercept = torch.stack((intercept.sum(-1), (intercept * rays.edge).sum(-1)), -1)
        slope, source_row = slope.sum(-1, keepdim=True), source_row[:, :0]
    return [value if need else None for value, need in zip((intercept, slope, source_row), needs, strict=True)]


def _over_batches(function: Any, info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
    """A vmap rule: one call for each entry of the mapped axis."""
    results = []
    for index in range(info.batch_size):
        entry = [
            value.select(dim, index) if isinstance(dim, int) else value
            for value, dim in zip(arguments, in_dims, strict=True)
        ]
        results.append(function.apply(*entry))
    return torch.stack(results), 0


@final
class _BinSums(torch.autograd.Function):
    @staticmethod
    def forward(image: Tensor, *rays: Tensor) -> Tensor:
        return _loops().bin_sums(image, Rays(*rays))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        # A tangent that is not there stays None: a derivative in the rays is not taken for nothing.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * (1 + len(Rays._fields))
        image, *rest = ctx.saved_tensors
        rays = Rays(*rest)
        shape = (image.shape[1], image.shape[2])
        back = backproject(grad, rays, shape) if ctx.needs_input_grad[0] else None
        return back, *_gradients(image, grad, rays, ctx.needs_input_grad[1:4]), None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, image_step: Tensor | None, *steps: Tensor | None) -> Tensor:
        image, *rest = ctx.saved_tensors
        rays = Rays(*rest)
        total = torch.zeros((), dtype=image.dtype, device=image.device)
        if image_step is not None:
            total = total + project(image_step, rays)
        if any(step is not None for step in steps[:3]):
            intercept, slope, source_row = steps[:3]
            if not rays.fan and intercept is not None:
                intercept = intercept[..., :1] + intercept[..., 1:] * rays.edge
            source_row = source_row[..., None] if rays.fan and source_row is not None else None
            for gained, step in zip(_slopes(image, rays), (intercept, slope, source_row), strict=True):
                if step is not None:
                    per_edge = gained * step[:, None]
                    moved = torch.where(rays.inside[:, None], per_edge.diff(dim=-1), 0.0).sum(0)
                    total = total + moved.to(image.dtype)
        return total

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        return _over_batches(_BinSums, info, in_dims, *arguments)


@final
class _BinSumsAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(bins: Tensor, *rays_and_shape: Any) -> Tensor:
        *rays, shape = rays_and_shape
        return _loops().bin_sums_adjoint(bins, Rays(*rays), shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:-1])
        ctx.save_for_forward(*inputs[:-1])
        ctx.shape = inputs[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * (2 + len(Rays._fields))
        bins, *rest = ctx.saved_tensors
        rays = Rays(*rest)
        forth = project(grad, rays) if ctx.needs_input_grad[0] else None
        return forth, *_gradients(grad, bins, rays, ctx.needs_input_grad[1:4]), None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, bins_step: Tensor | None, *steps: Tensor | None) -> Tensor:
        if bins_step is None or any(step is not None for step in steps[:3]):
            raise NotImplementedError("A_adjoint: forward-mode derivatives are in the measurements only")
        return backproject(bins_step, Rays(*ctx.saved_tensors[1:]), ctx.shape)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        return _over_batches(_BinSumsAdjoint, info, in_dims, *arguments)


@final
class _Slopes(torch.autograd.Function):
    @staticmethod
    def forward(image: Tensor, *rays: Tensor) -> Tensor:
        return _loops().edge_slopes(image, Rays(*rays))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del ctx, inputs, output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError("projections: second derivatives that involve the angles or offsets do not exist")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        return _over_batches(_Slopes, info, in_dims, *arguments)
