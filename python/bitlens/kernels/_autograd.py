"""The one gradient factory: a kernel states forward, backward and forward-mode once, every torch mode works.

Three routes, because no single torch mechanism serves all of them: a custom operator under `torch.compile`
(and for tensor subclasses), a Function with `vmap` and `jvp` under `torch.func` and forward-mode AD (a custom
operator would return zero tangents there), and in plain eager mode the raw kernel or a Function with the least
overhead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
MaybeTensors = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Rule:
    """What a kernel states about itself.

    Attributes:
        name: operator name under the `bitlens` namespace of torch.library.
        arguments: names of the tensor arguments; a trailing "?" marks one that may be None.
        options: (name, schema type) of the other arguments; the last one is always ("backend", "str").
        core_dims: for each tensor argument the number of trailing axes that are not batch axes.
        n_outputs: number of output tensors.
        forward: (tensors, options, needs) -> (outputs, saved). `needs` says which tensors want a gradient; `saved`
            is anything that spares `backward` work, or None.
        fake: (tensors, options) -> outputs of the right shape, without values.
        backward: (grads, tensors, outputs, saved, options, needs) -> one gradient or None for each tensor; made of
            differentiable operations of `tensors` and `grads` whenever gradients are enabled or `saved` is None.
        jvp: (tensors, tangents, outputs, options) -> tangents of the outputs; None if forward mode is not offered.
    """

    name: str
    arguments: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    core_dims: tuple[int, ...]
    n_outputs: int
    forward: Callable[[MaybeTensors, tuple[Any, ...], tuple[bool, ...]], tuple[Tensors, Any]]
    fake: Callable[[MaybeTensors, tuple[Any, ...]], Tensors]
    backward: Callable[[MaybeTensors, MaybeTensors, Tensors, Any, tuple[Any, ...], tuple[bool, ...]], MaybeTensors]
    jvp: Callable[[MaybeTensors, MaybeTensors, Tensors, tuple[Any, ...]], Tensors] | None = None
    _routes: dict[str, Any] = field(default_factory=dict, repr=False)


def apply(rule: Rule, tensors: MaybeTensors, options: tuple[Any, ...]) -> Tensors:
    """Run a kernel through the route that the present torch mode needs; always a tuple of outputs."""
    routes = rule._routes
    present = [tensor for tensor in tensors if tensor is not None]
    if present[0].device.type == "meta":
        result: Any = rule.fake(tensors, options)
    elif torch.compiler.is_compiling() or any(type(t) not in (Tensor, torch.nn.Parameter) for t in present):
        result = routes["operator"](*tensors, *options)
    elif torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        result = routes["functional"].apply(*tensors, *options)
    elif torch.is_grad_enabled() and any(t.requires_grad for t in present):
        result = routes["eager"].apply(*tensors, *options)
    else:
        result, _ = rule.forward(tensors, options, (False,) * len(tensors))
    return (result,) if isinstance(result, Tensor) else tuple(result)


def register(rule: Rule) -> Rule:
    """Build all routes at once, so that the operator exists before anything is traced."""
    rule._routes.update(eager=_eager(rule), functional=_functional(rule), operator=_operator(rule))
    return rule


def _packed(rule: Rule, outputs: Tensors) -> Any:
    return outputs[0] if rule.n_outputs == 1 else outputs


def _full(rule: Rule, gradients: Sequence[Tensor | None]) -> tuple[Any, ...]:
    return (*gradients, *(None,) * len(rule.options))


def _eager(rule: Rule) -> type[torch.autograd.Function]:
    n = len(rule.arguments)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            needs = tuple(ctx.needs_input_grad[:n])
            outputs, saved = rule.forward(arguments[:n], arguments[n:], needs)
            ctx.options, ctx.saved = arguments[n:], saved
            ctx.save_for_backward(*arguments[:n], *outputs)
            ctx.set_materialize_grads(False)
            return _packed(rule, outputs)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            everything = ctx.saved_tensors  # torch.utils.checkpoint gives them once only
            tensors, outputs = everything[:n], everything[n:]
            saved = None if torch.is_grad_enabled() else ctx.saved
            needs = tuple(ctx.needs_input_grad[:n])
            return _full(rule, rule.backward(grads, tensors, outputs, saved, ctx.options, needs))

    Eager.__name__ = f"{rule.name}_eager"
    return Eager


def _functional(rule: Rule) -> type[torch.autograd.Function]:
    n = len(rule.arguments)

    class Functional(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> Any:
            outputs, _ = rule.forward(arguments[:n], arguments[n:], (False,) * n)
            return _packed(rule, outputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            outputs = (output,) if isinstance(output, Tensor) else output
            ctx.options = inputs[n:]
            ctx.save_for_backward(*inputs[:n], *outputs)
            ctx.save_for_forward(*inputs[:n], *outputs)
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            everything = _alive(ctx.saved_tensors)  # torch.utils.checkpoint gives them once only
            tensors, outputs = everything[:n], everything[n:]
            needs = tuple(ctx.needs_input_grad[:n])
            return _full(rule, rule.backward(grads, tensors, outputs, None, ctx.options, needs))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            if rule.jvp is None:
                raise RuntimeError(f"{rule.name}: forward-mode AD is offered by the reference backend only")
            everything = ctx.saved_tensors  # torch.utils.checkpoint gives them once only
            tensors, outputs = everything[:n], everything[n:]
            return _packed(rule, rule.jvp(tensors, tangents[:n], outputs, ctx.options))

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
            moved = _batch_first(rule, arguments[:n], in_dims[:n], info.batch_size)
            outputs = apply(rule, moved, arguments[n:])
            return _packed(rule, outputs), 0 if rule.n_outputs == 1 else (0,) * rule.n_outputs

    Functional.__name__ = f"{rule.name}_functional"
    return Functional


def _alive(tensors: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """Without the wrappers of transforms that have ended, which have no data: `torch.func.vjp` goes back after its own.

    Outside of any transform a kernel takes the plain route, which reads addresses.
    """
    return tuple(None if t is None else torch._C._functorch.unwrap_if_dead(t) for t in tensors)


def _batch_first(rule: Rule, tensors: MaybeTensors, dims: Sequence[int | None], batch_size: int) -> MaybeTensors:
    """Put the mapped axis first and pad the other batch axes, so that plain broadcasting does the mapping."""
    batch_rank = max(
        t.ndim - (dim is not None) - core
        for t, dim, core in zip(tensors, dims, rule.core_dims, strict=True)
        if t is not None
    )
    moved: list[Tensor | None] = []
    for t, dim, core in zip(tensors, dims, rule.core_dims, strict=True):
        if t is None:
            moved.append(None)
            continue
        first = t.unsqueeze(0) if dim is None else t.movedim(dim, 0)
        missing = batch_rank - (first.ndim - 1 - core)
        moved.append(first.reshape(first.shape[0], *(1,) * missing, *first.shape[1:]))
    if all(t is None or t.shape[0] == 1 for t in moved) and batch_size != 1:
        raise RuntimeError(f"{rule.name}: no argument carries the mapped axis")
    return tuple(moved)


def _operator(rule: Rule) -> Any:
    n = len(rule.arguments)
    schema = ", ".join(
        [f"Tensor{'?' if name.endswith('?') else ''} {name.rstrip('?')}" for name in rule.arguments]
        + [f"{kind} {name}" for name, kind in rule.options]
    )
    returns = "Tensor" if rule.n_outputs == 1 else f"({', '.join(['Tensor'] * rule.n_outputs)})"

    def run(*arguments: Any) -> Any:
        outputs, _ = rule.forward(arguments[:n], arguments[n:], (False,) * n)
        return _packed(rule, outputs)

    def fake(*arguments: Any) -> Any:
        return _packed(rule, rule.fake(arguments[:n], arguments[n:]))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = (output,) if isinstance(output, Tensor) else output
        ctx.options = inputs[n:]
        ctx.present = [t is not None for t in (*inputs[:n], *outputs)]
        ctx.save_for_backward(*[t for t in (*inputs[:n], *outputs) if t is not None])

    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        kept = iter(ctx.saved_tensors)
        everything = tuple(next(kept) if present else None for present in ctx.present)
        needs = tuple(ctx.needs_input_grad[:n])
        tensors, outputs = everything[:n], everything[n:]
        return _full(rule, rule.backward(grads, tensors, outputs, None, ctx.options, needs))  # type: ignore[arg-type]

    def mapped(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        moved = _batch_first(rule, arguments[:n], in_dims[:n], info.batch_size)
        return operator(*moved, *arguments[n:]), 0 if rule.n_outputs == 1 else (0,) * rule.n_outputs

    operator = torch.library.custom_op(f"bitlens::{rule.name}", run, mutates_args=(), schema=f"({schema}) -> {returns}")
    operator.register_fake(fake)
    operator.register_autograd(backward, setup_context=setup_context)
    operator.register_vmap(mapped)
    return operator
