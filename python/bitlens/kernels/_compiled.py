"""The one border to the compiled extension: tensors become addresses here and nowhere else."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

_PRECISIONS = ("full", "tf32", "bfloat16")  # enum Precision of csrc/kernels/infonce_scores/kernel.h
MAX_AXES = 12  # kMaxDims of csrc/common/broadcast.h

# torch comes first: its OpenMP runtime is then the one that the extension shares.


def _load(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"bitlens.{name}")
    except ModuleNotFoundError:
        return None


_native = _load("_native")
_native_cuda = _load("_native_cuda")


def has_cpu() -> bool:
    """Whether the compiled CPU kernels are installed."""
    return _native is not None


def has_cuda() -> bool:
    """Whether the compiled CUDA kernels are installed (a driver may still be missing)."""
    return _native_cuda is not None


def instruction_set() -> str:
    """The instruction set of the CPU kernels: "baseline", "avx2" or "avx512"; "none" without the extension."""
    return str(_native.instruction_set()) if _native is not None else "none"


def _set_instruction_set(name: str) -> None:
    """Force an instruction set, for tests and benchmarks."""
    if _native is None:
        raise RuntimeError("the compiled extension is not installed")
    _native.set_instruction_set(name)


def module(backend: str) -> ModuleType:
    """The extension module that holds the kernels of "cpu" or "cuda"."""
    found = _native_cuda if backend == "cuda" else _native
    if found is None:
        raise RuntimeError(f"the compiled extension for {backend!r} is not installed")
    return found


def handle(backend: str, device: torch.device, threads: int) -> int:
    """What a kernel needs besides addresses: the thread count on a CPU, the current stream on a GPU."""
    if backend == "cuda" and device.type == "cuda":
        return int(torch.cuda.current_stream(device).cuda_stream)
    return threads


def plain(tensor: Tensor) -> Tensor:
    """The tensor as its memory holds it: detached, with lazy conjugation and negation carried out."""
    # Step by step, since each of these costs microseconds even where there is nothing to do.
    if tensor.requires_grad or torch._C._are_functorch_transforms_active():
        tensor = tensor.detach()
    return tensor.resolve_conj().resolve_neg() if tensor.is_conj() or tensor.is_neg() else tensor


def with_constants(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Plain tensors in the precision of the first; single numbers may keep theirs."""
    first, *others = (plain(tensor) for tensor in tensors)
    # A constant that a transform has given an axis is no constant any more.
    return [first, *(tensor if tensor.numel() == 1 else tensor.to(first.dtype) for tensor in others)]


def _run(kernel: str, backend: str, like: Tensor, *arguments: object, threads: int) -> None:
    """Call a kernel for the precision and the device of `like`."""
    suffix = "float" if like.dtype == torch.float32 else "double"
    function = getattr(module(backend), f"{kernel}_{suffix}")
    with _on_device(like):
        function(*arguments, handle(backend, like.device, threads))


def _on_device(like: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the tensor's GPU the current one, where it is on one."""
    return torch.cuda.device(like.device) if like.device.type == "cuda" else contextlib.nullcontext()


def address(tensor: Tensor | None) -> int:
    """Address of the first element; 0 stands for an absent tensor."""
    return 0 if tensor is None else tensor.data_ptr()


def poisson_gaussian_log_prob(
    backend: str,
    inputs: Sequence[Tensor],
    shape: torch.Size,
    order: int,
    wanted: Sequence[bool],
    threads: int,
) -> list[Tensor | None]:
    """Value and derivatives of broadcast inputs; `wanted` marks which of the 15 outputs to compute."""
    return elementwise("poisson_gaussian_log_prob", backend, inputs, shape, order, wanted, threads)


def elementwise(
    kernel: str,
    backend: str,
    inputs: Sequence[Tensor],
    shape: torch.Size,
    order: int,
    wanted: Sequence[bool],
    threads: int,
) -> list[Tensor | None]:
    """Value and derivatives up to `order` of broadcast inputs; `wanted` marks which of the outputs to compute.

    An input of one element may be in float64 whatever the precision of the first.
    """
    expanded = [tensor.expand(shape) for tensor in inputs]
    if sum(length != 1 for length in shape) > MAX_AXES:
        expanded = [tensor.reshape(-1) for tensor in expanded]
    first = expanded[0]
    constant = [tensor.dtype != first.dtype for tensor in inputs]
    outputs = [first.new_empty(shape) if want else None for want in wanted]
    _run(
        kernel,
        backend,
        first,
        first.shape,
        [tensor.stride() for tensor in expanded],
        [0 if is_constant else address(tensor) for tensor, is_constant in zip(expanded, constant, strict=True)],
        [address(tensor) if is_constant else 0 for tensor, is_constant in zip(expanded, constant, strict=True)],
        [address(tensor) for tensor in outputs],
        order,
        threads=threads,
    )
    return outputs


def poisson_gaussian_log_prob_pairs(backend: str, inputs: Sequence[Tensor], threads: int) -> Tensor:
    """All scores (n, m) of contiguous measured (n, pixels), mean (m, pixels) and three float64 (pixels,)."""
    (n, pixels), m = inputs[0].shape, inputs[1].shape[0]
    output = inputs[0].new_empty((n, m))
    _run(
        "poisson_gaussian_log_prob_pairs_scores",
        backend,
        output,
        [n, m, pixels],
        [address(tensor) for tensor in inputs],
        address(output),
        threads=threads,
    )
    return output


def poisson_gaussian_log_prob_pairs_statistics(
    backend: str, inputs: Sequence[Tensor | None], threads: int
) -> tuple[Tensor, ...]:
    """The five outputs of poisson_gaussian_score_rows: its nine operands, contiguous, None where not given."""
    measured, mean, bias = inputs[0], inputs[1], inputs[8]
    assert measured is not None
    assert mean is not None
    (n, pixels), m = measured.shape, mean.shape[0]
    outputs = tuple(measured.new_full((length,), torch.nan) for length in (n, n, n, m, m))
    bias_in_double = None if bias is None else bias.to(torch.float64)
    _run(
        "poisson_gaussian_log_prob_pairs_statistics",
        backend,
        measured,
        [n, m, pixels],
        [address(tensor) for tensor in inputs[:5]],
        [address(tensor) for tensor in (*inputs[5:8], bias_in_double)],
        [address(tensor) for tensor in outputs],
        threads=threads,
    )
    return outputs


def poisson_gaussian_log_prob_pairs_gradients(
    backend: str, inputs: Sequence[Tensor], weight: Tensor, wanted: Sequence[bool], threads: int
) -> list[Tensor | None]:
    """Gradients of the sum of weight (n, m) times scores, in the five inputs; None where not wanted."""
    (n, pixels), m = inputs[0].shape, inputs[1].shape[0]
    by_column = weight.t().contiguous()
    outputs = [torch.empty_like(tensor) if want else None for tensor, want in zip(inputs, wanted, strict=True)]
    _run(
        "poisson_gaussian_log_prob_pairs_gradients",
        backend,
        weight,
        [n, m, pixels],
        [address(tensor) for tensor in inputs],
        address(by_column),
        [address(tensor) for tensor in outputs],
        threads=threads,
    )
    return outputs


def infonce_scores_forward(
    backend: str, inputs: Sequence[Tensor | None], batch: torch.Size, precision: str, threads: int
) -> tuple[Tensor, ...]:
    """The four outputs of infonce_scores; `inputs` are query, key, positive, scale and the two biases."""
    query, key = _matrix(inputs[0], batch), _matrix(inputs[1], batch)
    small = [_flat(tensor, batch, rank) for tensor, rank in zip(inputs[2:], (1, 0, 1, 1), strict=True)]
    (queries, features), keys = query.shape[-2:], key.shape[-2]
    outputs = tuple(query.new_empty((*batch, length)) for length in (queries, queries, queries, keys))
    workspace = _infonce_workspace(backend, query, batch, keys, (False, False, False))
    _run(
        "infonce_scores_forward",
        backend,
        query,
        query.shape[:-2],
        queries,
        keys,
        features,
        [query.stride(), key.stride()],
        [address(tensor) for tensor in (query, key, *small)],
        [tensor.data_ptr() for tensor in outputs],
        workspace.data_ptr(),
        _PRECISIONS.index(precision),
        threads=threads,
    )
    return outputs


def infonce_scores_backward(
    backend: str,
    inputs: Sequence[Tensor | None],
    saved: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    wanted: Sequence[bool],
    batch: torch.Size,
    precision: str,
    threads: int,
) -> list[Tensor | None]:
    """Gradients in query, key, scale and the two biases, at the broadcast batch shape; None where not wanted."""
    query, key = _matrix(inputs[0], batch), _matrix(inputs[1], batch)
    small = [_flat(tensor, batch, rank) for tensor, rank in zip(inputs[2:], (1, 0, 1, 1), strict=True)]
    (queries, features), keys = query.shape[-2:], key.shape[-2]
    shapes = ((queries, features), (keys, features), (), (queries,), (keys,))
    outputs = [query.new_empty((*batch, *shape)) if want else None for shape, want in zip(shapes, wanted, strict=True)]
    kept = [_flat(tensor, batch, 1) for tensor in (*saved, *grads)]
    workspace = _infonce_workspace(backend, query, batch, keys, (True, wanted[0], wanted[1]))
    _run(
        "infonce_scores_backward",
        backend,
        query,
        query.shape[:-2],
        queries,
        keys,
        features,
        [query.stride(), key.stride()],
        [address(tensor) for tensor in (query, key, *small)],
        [address(tensor) for tensor in kept[:3]],
        [address(tensor) for tensor in kept[3:]],
        [address(tensor) for tensor in outputs],
        workspace.data_ptr(),
        _PRECISIONS.index(precision),
        threads=threads,
    )
    return outputs


def _matrix(tensor: Tensor | None, batch: torch.Size) -> Tensor:
    """A matrix operand with the batch axes in front, without a copy but for more axes than the kernels walk."""
    assert tensor is not None
    if not batch and tensor.ndim == 2:
        return plain(tensor)
    expanded = plain(tensor).expand(*batch, *tensor.shape[-2:])
    return expanded.reshape(batch.numel(), *tensor.shape[-2:]) if len(batch) > MAX_AXES else expanded


def _flat(tensor: Tensor | None, batch: torch.Size, rank: int) -> Tensor | None:
    """A small operand at the full batch shape, contiguous; `rank` axes follow the batch axes."""
    if tensor is None:
        return None
    if tensor.ndim != len(batch) + rank or tensor.shape[: len(batch)] != batch:
        tensor = tensor.expand((*batch, *tensor.shape[tensor.ndim - rank :]))
    return plain(tensor).contiguous()


def _infonce_workspace(
    backend: str, query: Tensor, batch: torch.Size, keys: int, kind: tuple[bool, bool, bool]
) -> Tensor:
    """Work space of a pass; `kind` says whether it is backward, and with gradients in queries and keys."""
    queries, features = query.shape[-2:]
    size = module(backend).infonce_scores_workspace_bytes(
        batch.numel(), queries, keys, features, query.element_size(), *kind
    )
    return torch.empty(size, dtype=torch.uint8, device=query.device)


def joint_critic_scores_forward(
    backend: str, inputs: Sequence[Tensor | None], batch: torch.Size, threads: int
) -> tuple[Tensor, ...]:
    """The four outputs; `inputs` are both hidden halves, positive, hidden weight and bias, and output weight."""
    full, sizes = _joint_critic_operands(inputs, batch)
    query = full[0]
    assert query is not None
    outputs = tuple(query.new_empty((*batch, sizes[i])) for i in (1, 1, 1, 2))
    workspace = _joint_critic_workspace(backend, query, sizes, False, [False] * 5)
    _run(
        "joint_critic_scores_forward",
        backend,
        query,
        sizes,
        [address(tensor) for tensor in full],
        [tensor.data_ptr() for tensor in outputs],
        workspace.data_ptr(),
        threads=threads,
    )
    return outputs


def joint_critic_scores_backward(
    backend: str,
    inputs: Sequence[Tensor | None],
    saved: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    wanted: Sequence[bool],
    batch: torch.Size,
    threads: int,
) -> list[Tensor | None]:
    """Gradients in both hidden halves, hidden weight and bias, and output weight, at the broadcast batch shape."""
    full, sizes = _joint_critic_operands(inputs, batch)
    query = full[0]
    assert query is not None
    _, n, m, h, h2 = sizes
    shapes = ((n, h), (m, h), (h2, h), (h2,), (h2 or h,))
    outputs = [query.new_empty((*batch, *shape)) if want else None for shape, want in zip(shapes, wanted, strict=True)]
    kept = [_flat(tensor, batch, 1) for tensor in (*saved, *grads)]
    workspace = _joint_critic_workspace(backend, query, sizes, True, wanted)
    _run(
        "joint_critic_scores_backward",
        backend,
        query,
        sizes,
        [address(tensor) for tensor in full],
        [address(tensor) for tensor in kept[:3]],
        [address(tensor) for tensor in kept[3:]],
        [address(tensor) for tensor in outputs],
        workspace.data_ptr(),
        threads=threads,
    )
    return outputs


def _joint_critic_operands(
    inputs: Sequence[Tensor | None], batch: torch.Size
) -> tuple[list[Tensor | None], tuple[int, ...]]:
    """All operands at the full batch shape, contiguous, and the sizes: batch, n, m, h, h2 (0 without second layer)."""
    full = [_flat(tensor, batch, rank) for tensor, rank in zip(inputs, (2, 2, 1, 2, 1, 1), strict=True)]
    query, key, weight = full[0], full[1], full[3]
    assert query is not None
    assert key is not None
    n, h = query.shape[-2:]
    return full, (batch.numel(), n, key.shape[-2], h, 0 if weight is None else weight.shape[-2])


def _joint_critic_workspace(
    backend: str, query: Tensor, sizes: Sequence[int], backward: bool, wanted: Sequence[bool]
) -> Tensor:
    """Work space of a pass; the backward pass needs more for each wanted gradient."""
    size = module(backend).joint_critic_scores_workspace_bytes(sizes, query.element_size(), backward, list(wanted))
    return torch.empty(size, dtype=torch.uint8, device=query.device)


def psf_convolve(
    backend: str,
    kind: int,
    first: Tensor,
    second: Tensor,
    window: tuple[int, ...],
    conjugate: bool,
    summed: int,
    threads: int,
    companion: tuple[Tensor, Tensor] | None = None,
    spectra: Tensor | None = None,
    centered: bool = False,
) -> Tensor:
    """One call of psf_convolve (kind 0), fourier_filter (1) or cross_spectrum (2); see its kernel.h.

    Bit i of `summed` says that batch axis -3 - i is summed over; it stays as an axis of length one. `companion` is the
    factor, contiguous and of the shape of the result, and the memory of the second result, contiguous as `second` is.
    `spectra` are those of `second`, which then is contiguous. `centered`: frequency zero of transfer functions and of
    cross-spectra is in the middle.
    """
    # Strides are worked out here: views made by torch would take longer than a small convolution.
    batch = first.shape[:-2]
    if second.ndim > 2 and second.shape[:-2] != batch:
        batch = torch.broadcast_shapes(batch, second.shape[:-2])
    axes = range(len(batch))
    inner = [axis for axis in axes if summed >> (len(batch) - 1 - axis) & 1] if summed else []
    outer = [axis for axis in axes if axis not in inner] if inner else list(axes)
    kept = [1 if axis in inner else length for axis, length in enumerate(batch)] if inner else list(batch)
    empty = any(batch[axis] == 0 for axis in inner)
    output = (first.new_zeros if empty else first.new_empty)((*kept, window[1], window[4]))
    # The kernel walks a row with stride one, and counts in real numbers.
    operands = [t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous() for t in (first, second)]
    shape, n_outer = [batch[axis] for axis in outer + inner], len(outer)
    strides = [_batch_strides(t, len(batch)) for t in operands]
    if inner:
        strides = [[own[axis] for axis in outer + inner] for own in strides]
    if len(batch) > MAX_AXES and sum(length != 1 for length in batch) > MAX_AXES:
        operands = [_flat_batch(t, batch, outer, inner) for t in operands]
        shape, n_outer = list(operands[0].shape[:-2]), min(n_outer, 1)
        strides = [_batch_strides(t, len(shape)) for t in operands]
    unit = 2 if first.is_complex() else 1
    strides = [[unit * stride for stride in own] for own in strides] if unit > 1 else strides
    layout = (kind, conjugate, shape, strides, n_outer)
    sizes = [(t.shape[-2], t.shape[-1], unit * t.stride(-2)) for t in operands]
    like = operands[0] if unit == 1 else torch.view_as_real(operands[0])
    workspace = _psf_convolve_workspace(backend, like, *layout, sizes, window)
    _run(
        "psf_convolve",
        backend,
        like,
        *layout,
        address(operands[0]),
        address(operands[1]),
        address(output),
        address(workspace),
        [address(tensor) for tensor in companion or (None, None)],
        address(spectra),
        centered,
        math.prod(kept),
        sizes,
        window,
        threads=threads,
    )
    return output


def _batch_strides(tensor: Tensor, n_axes: int) -> list[int]:
    """Strides of the batch axes as if expanded to `n_axes` of them; 0 where there is nothing to walk."""
    own = [0 if n == 1 else stride for n, stride in zip(tensor.shape[:-2], tensor.stride(), strict=False)]
    return [0] * (n_axes - len(own)) + own


def _flat_batch(tensor: Tensor, batch: torch.Size, outer: Sequence[int], inner: Sequence[int]) -> Tensor:
    """A copy with one axis for all outer and, if there are any, one for all inner axes."""
    lengths = [math.prod(batch[axis] for axis in axes) for axes in (outer, inner) if axes]
    moved = tensor.expand(*batch, *tensor.shape[-2:]).permute(*outer, *inner, -2, -1)
    return moved.reshape(*lengths, *tensor.shape[-2:])


def psf_convolve_spectra(
    psf: Tensor, image_size: tuple[int, int], window: tuple[int, ...], conjugate: bool, threads: int
) -> Tensor:
    """Spectra (..., numbers) of contiguous PSFs (..., h, w), for `psf_convolve` on the CPU with such images."""
    size = (psf.shape[-2], psf.shape[-1], psf.shape[-1])
    sizes = [(*image_size, image_size[1]), size]
    suffix = "float" if psf.dtype == torch.float32 else "double"
    numbers = getattr(module("cpu"), f"psf_convolve_spectrum_numbers_{suffix}")(conjugate, sizes, window)
    spectra = psf.new_empty((*psf.shape[:-2], numbers))
    batch = psf.shape[:-2].numel()
    _run(
        "psf_convolve_make_spectra",
        "cpu",
        psf,
        conjugate,
        batch,
        address(psf),
        address(spectra),
        sizes,
        window,
        threads=threads,
    )
    return spectra


def _psf_convolve_workspace(backend: str, like: Tensor, *arguments: object) -> Tensor | None:
    """Work space of a call; the CPU kernels have their own."""
    if backend != "cuda":
        return None
    suffix = "float" if like.dtype == torch.float32 else "double"
    with _on_device(like):
        size = getattr(module(backend), f"psf_convolve_workspace_bytes_{suffix}")(*arguments)
    return torch.empty(size, dtype=torch.uint8, device=like.device)


def pairwise_map_sums_forward(
    backend: str, inputs: Sequence[Tensor | None], kind: int, limit: float, batch: torch.Size, threads: int
) -> tuple[Tensor, ...]:
    """Positives and row sums; `inputs` are query, key, positive, scale and the two biases."""
    query, key, small, sizes = _pairwise_operands(inputs, batch)
    outputs = tuple(query.new_empty((*batch, sizes[0])) for _ in range(2))
    workspace = _pairwise_workspace(backend, query, batch, sizes, (False, False, False))
    _run(
        "pairwise_map_sums_forward",
        backend,
        query,
        query.shape[:-2],
        sizes,
        [query.stride(), key.stride()],
        [address(tensor) for tensor in (query, key, *small)],
        kind,
        limit,
        [tensor.data_ptr() for tensor in outputs],
        workspace.data_ptr(),
        threads=threads,
    )
    return outputs


def pairwise_map_sums_backward(
    backend: str,
    inputs: Sequence[Tensor | None],
    kind: int,
    limit: float,
    grads: Sequence[Tensor | None],
    wanted: Sequence[bool],
    batch: torch.Size,
    threads: int,
) -> list[Tensor | None]:
    """Gradients in query, key, scale and the two biases, at the broadcast batch shape; None where not wanted."""
    query, key, small, sizes = _pairwise_operands(inputs, batch)
    n, m, d = sizes
    shapes = ((n, d), (m, d), (), (n,), (m,))
    outputs = [query.new_empty((*batch, *shape)) if want else None for shape, want in zip(shapes, wanted, strict=True)]
    kept = [_flat(tensor, batch, 1) for tensor in grads]
    workspace = _pairwise_workspace(backend, query, batch, sizes, (True, wanted[0], wanted[1]))
    _run(
        "pairwise_map_sums_backward",
        backend,
        query,
        query.shape[:-2],
        sizes,
        [query.stride(), key.stride()],
        [address(tensor) for tensor in (query, key, *small)],
        kind,
        limit,
        [address(tensor) for tensor in kept],
        [address(tensor) for tensor in outputs],
        workspace.data_ptr(),
        threads=threads,
    )
    return outputs


def _pairwise_operands(
    inputs: Sequence[Tensor | None], batch: torch.Size
) -> tuple[Tensor, Tensor, list[Tensor | None], tuple[int, int, int]]:
    """Query and key with batch axes, the small operands, and the sizes n, m, d."""
    query, key = _matrix(inputs[0], batch), _matrix(inputs[1], batch)
    small = [_flat(tensor, batch, rank) for tensor, rank in zip(inputs[2:], (1, 0, 1, 1), strict=True)]
    return query, key, small, (query.shape[-2], key.shape[-2], query.shape[-1])


def _pairwise_workspace(
    backend: str, query: Tensor, batch: torch.Size, sizes: tuple[int, int, int], kind: tuple[bool, bool, bool]
) -> Tensor:
    """Work space of a pass; `kind` says whether it is backward, and with gradients in queries and keys."""
    size = module(backend).pairwise_map_sums_workspace_bytes(batch.numel(), sizes, query.element_size(), *kind)
    return torch.empty(size, dtype=torch.uint8, device=query.device)


def parallel_projection(
    backend: str, adjoint: bool, first: Tensor, views: Sequence[Tensor], output: Tensor, threads: int
) -> None:
    """Fill contiguous `output` with the bins (batch, view, bin) of an image (batch, row, column), or the other way.

    `views` are the five tensors of `parallel_projection.reference.Views` on the same device, numbers in float64.
    """
    if not output.numel():
        return
    first, views = first.contiguous(), [value.contiguous() for value in views]
    image, bins = (output, first) if adjoint else (first, output)
    sizes = (*image.shape, *bins.shape[1:])
    with _on_device(first):
        size = module(backend).parallel_projection_workspace_bytes(adjoint, sizes)
    workspace = torch.empty(size, dtype=torch.uint8, device=first.device)
    _run(
        "parallel_projection",
        backend,
        first,
        adjoint,
        sizes,
        [value.data_ptr() for value in views],
        first.data_ptr(),
        output.data_ptr(),
        workspace.data_ptr(),
        threads=threads,
    )
