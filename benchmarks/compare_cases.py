"""The calls that `compare.py` times: every kernel at a few realistic sizes, of 1 to 20 ms on two threads."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

# Names of `ops` are looked up when a case is made, so that a package without one of them loses that case only.
from bitlens import ops

Function = Callable[..., object]
# Makes a function and the floating-point tensors to call it with; those are differentiated.
Make = Callable[[torch.dtype], tuple[Function, list[Tensor]]]


class Case(NamedTuple):
    """One call of one kernel."""

    kernel: str
    label: str
    dtype: torch.dtype
    backward: bool
    make: Make

    @property
    def name(self) -> str:
        kind = "forward+backward" if self.backward else "forward"
        return f"{self.kernel}: {self.label} {str(self.dtype).removeprefix('torch.')} {kind}"

    def prepare(self) -> Callable[[], object]:
        """The call, with operands of its own that are the same for whoever prepares it."""
        torch.manual_seed(0)
        function, operands = self.make(self.dtype)
        if not self.backward:

            def forward() -> object:
                with torch.no_grad():
                    return function(*operands)

            return forward
        leaves = [operand.requires_grad_() for operand in operands]
        # Noise: gradients of a sum are all ones, and expanded without memory of their own.
        weights = [torch.randn_like(output) for output in _differentiable(function(*leaves))]
        return lambda: torch.autograd.grad(_differentiable(function(*leaves)), leaves, weights)


def _differentiable(result: object) -> list[Tensor]:
    outputs = (result,) if isinstance(result, Tensor) else result
    return [output for output in outputs if isinstance(output, Tensor) and output.requires_grad]


def _frames(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Measured values of gain 2, offset 100 and read noise 3, and their means of up to 100 electrons."""
    mean = 100 * torch.rand(shape)
    measured = 2 * torch.poisson(mean) + 100 + 3 * torch.randn(shape)
    return measured.to(dtype), mean.to(dtype)


_SENSOR = {"gain": 2.0, "offset": 100.0, "read_std": 3.0}


def _log_prob(pixels: int, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    measured, mean = _frames((pixels,), dtype)
    return lambda mean: ops.poisson_gaussian_log_prob(measured, mean, **_SENSOR), [mean]


def _bin_log_prob(pixels: int, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    measured, mean = _frames((pixels,), dtype)
    measured = measured.round()
    return lambda mean: ops.poisson_gaussian_bin_log_prob(measured, mean, **_SENSOR), [mean]


def _pairs(rows: int, pixels: int, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    measured, mean = _frames((rows, pixels), dtype)
    return lambda mean: ops.poisson_gaussian_log_prob_pairs(measured, mean, **_SENSOR), [mean]


def _score_rows(rows: int, pixels: int, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    measured, mean = _frames((rows, pixels), dtype)
    return lambda mean: ops.poisson_gaussian_score_rows(measured, mean, **_SENSOR)[:2], [mean]


def _convolve(batch: int, side: int, psf_side: int, boundary: str, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    image, psf = torch.rand(batch, side, side, dtype=dtype), torch.rand(psf_side, psf_side, dtype=dtype)
    return functools.partial(ops.psf_convolve, boundary=boundary), [image, psf]


def _filter(batch: int, side: int, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    kind = torch.complex64 if dtype == torch.float32 else torch.complex128
    field, transfer = torch.randn(batch, side, side, dtype=kind), torch.randn(side, side, dtype=kind)
    return ops.fourier_filter, [field, transfer]


def _features(rows: int, features: int, dtype: torch.dtype) -> list[Tensor]:
    return [torch.nn.functional.normalize(torch.randn(rows, features, dtype=dtype), dim=1) for _ in range(2)]


def _infonce(rows: int, features: int, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    return functools.partial(ops.infonce_scores, scale=10.0), _features(rows, features, dtype)


def _map_sums(rows: int, features: int, kind: str, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    options = {"map": "softplus"} if kind == "softplus" else {"map": "clipped_exp", "limit": 5.0}
    return functools.partial(ops.pairwise_map_sums, scale=10.0, **options), _features(rows, features, dtype)


def _joint_critic(rows: int, hidden: int, second: int, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    operands = [torch.randn(rows, hidden, dtype=dtype) for _ in range(2)]
    operands.append(torch.randn(second or hidden, dtype=dtype) / 8)
    if not second:
        return ops.joint_critic_scores, operands
    operands.append(torch.randn(second, hidden, dtype=dtype) / 8)

    def two_layers(query: Tensor, key: Tensor, output: Tensor, weight: Tensor) -> object:
        return ops.joint_critic_scores(query, key, output, hidden_weight=weight)

    return two_layers, operands


def _projection(side: int, views: int, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    # Not of `ops`: imported where it is used, for packages without it.
    from bitlens.encoders.tomography import ParallelProjection

    encoder = ParallelProjection(torch.arange(views) * math.pi / views, (side, side), bins=side)
    return encoder.A, [torch.rand(1, 1, side, side, dtype=dtype)]


_SINGLE, _DOUBLE, _BOTH = (torch.float32,), (torch.float64,), (torch.float32, torch.float64)
_SIZES: tuple[tuple[str, str, Make, tuple[torch.dtype, ...]], ...] = (
    ("poisson_gaussian_log_prob", "500000 pixels", functools.partial(_log_prob, 500_000), _SINGLE),
    ("poisson_gaussian_log_prob", "1000000 pixels", functools.partial(_log_prob, 1_000_000), _SINGLE),
    ("poisson_gaussian_log_prob", "100000 pixels", functools.partial(_log_prob, 100_000), _DOUBLE),
    ("poisson_gaussian_bin_log_prob", "10000 pixels", functools.partial(_bin_log_prob, 10_000), _BOTH),
    ("poisson_gaussian_bin_log_prob", "50000 pixels", functools.partial(_bin_log_prob, 50_000), _SINGLE),
    ("poisson_gaussian_log_prob_pairs", "pairs 48, 64 pixels", functools.partial(_pairs, 48, 64), _DOUBLE),
    ("poisson_gaussian_log_prob_pairs", "pairs 256, 256 pixels", functools.partial(_pairs, 256, 256), _SINGLE),
    ("poisson_gaussian_log_prob_pairs", "rows 256, 64 pixels", functools.partial(_score_rows, 256, 64), _SINGLE),
    ("psf_convolve", "zero 1024 x 32^2, PSF 32^2", functools.partial(_convolve, 1024, 32, 32, "zero"), _SINGLE),
    ("psf_convolve", "zero 64 x 128^2, PSF 31^2", functools.partial(_convolve, 64, 128, 31, "zero"), _BOTH),
    ("psf_convolve", "zero 4 x 512^2, PSF 512^2", functools.partial(_convolve, 4, 512, 512, "zero"), _SINGLE),
    ("psf_convolve", "circular 256 x 64^2, PSF 64^2", functools.partial(_convolve, 256, 64, 64, "circular"), _SINGLE),
    ("psf_convolve", "circular 64 x 97^2, PSF 97^2", functools.partial(_convolve, 64, 97, 97, "circular"), _SINGLE),
    ("psf_convolve", "filter 16 x 256^2", functools.partial(_filter, 16, 256), _SINGLE),
    ("infonce_scores", "1536 rows, 64 features", functools.partial(_infonce, 1536, 64), _BOTH),
    ("infonce_scores", "512 rows, 512 features", functools.partial(_infonce, 512, 512), _SINGLE),
    ("pairwise_map_sums", "softplus 1536 rows, 64 features", functools.partial(_map_sums, 1536, 64, "softplus"), _BOTH),
    ("pairwise_map_sums", "clipped 512 rows, 512 features", functools.partial(_map_sums, 512, 512, "clipped"), _SINGLE),
    ("joint_critic_scores", "1024 rows, 64 hidden", functools.partial(_joint_critic, 1024, 64, 0), _BOTH),
    ("joint_critic_scores", "256 rows, 64 and 64 hidden", functools.partial(_joint_critic, 256, 64, 64), _SINGLE),
    ("parallel_projection", "180 angles x 256^2", functools.partial(_projection, 256, 180), _BOTH),
    ("parallel_projection", "60 angles x 128^2", functools.partial(_projection, 128, 60), _SINGLE),
)

CASES = tuple(
    Case(kernel, label, dtype, backward, make)
    for kernel, label, make, dtypes in _SIZES
    for dtype in dtypes
    for backward in (False, True)
)


def cases_of(kernels: Iterable[str]) -> list[Case]:
    """The cases of some kernels, in the order of the list."""
    wanted = set(kernels)
    return [case for case in CASES if case.kernel in wanted]
