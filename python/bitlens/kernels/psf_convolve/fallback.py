"""`psf_convolve` and `fourier_filter` in Numba: the transforms of csrc/kernels/psf_convolve/math.h, always in double.

Per image: rows forward, columns forward times the spectrum and back, rows back. Real operands run as complex ones.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from bitlens.kernels import _fallback

_FILTER_KIND, _CROSS_SPECTRUM_KIND = 1, 2


class _Plan(NamedTuple):
    """Tables of one transform length; `chirp` is empty unless the length has a prime factor above 7."""

    radices: np.ndarray
    twiddles: np.ndarray  # per stage [step, radix]
    roots: np.ndarray  # [8, 8] exp(-2 pi i q / radix)
    frequency: np.ndarray  # at each position
    chirp: np.ndarray
    chirp_spectrum: np.ndarray


def _radices(size: int) -> list[int] | None:
    found = []
    for radix in (4, 2, 3, 5, 7):
        while size % radix == 0:
            found.append(radix)
            size //= radix
    return found if size == 1 else None


def _good_size(least: int) -> int:
    while _radices(least) is None:
        least += 1
    return least


def _root_of_unity(index: np.ndarray, size: int) -> np.ndarray:
    """exp(-2 pi i index / size) to rounding: the angle is reduced to an eighth of a turn in integers."""
    index = index % size
    quarter = (8 * index // size + 1) // 2
    angle = 2 * np.pi * ((4 * index - quarter * size) / (4 * size))
    return np.exp(-1j * angle) * np.array([1, -1j, -1, 1j])[quarter % 4]


@lru_cache(maxsize=64)
def _plan(size: int) -> _Plan:
    radices = _radices(size)
    empty = np.empty(0, dtype=np.complex128)
    roots = np.ones((8, 8), dtype=np.complex128)
    for radix in range(2, 8):
        roots[radix, :radix] = _root_of_unity(np.arange(radix), radix)
    if radices is None:
        inner = _plan(_good_size(2 * size - 1))
        k = np.arange(size)
        chirp = _root_of_unity(k * k % (2 * size), 2 * size)
        filter_ = np.zeros(inner.frequency.size, dtype=np.complex128)
        filter_[:size] = np.conj(chirp)
        filter_[-(size - 1) :] = np.conj(chirp[:0:-1])
        _split(filter_, inner.radices, inner.twiddles, inner.roots)
        return _Plan(inner.radices, inner.twiddles, roots, k, chirp, filter_ / filter_.size)
    twiddles, length, weight = [empty], size, 1
    position, frequency = np.arange(size), np.zeros(size, dtype=np.int64)
    for radix in radices:
        step = length // radix
        twiddles.append(_root_of_unity(np.outer(np.arange(step), np.arange(radix)), length).ravel())
        frequency += weight * (position // step)
        position, length, weight = position % step, step, weight * radix
    return _Plan(np.array(radices, dtype=np.int64), np.concatenate(twiddles), roots, frequency, empty, empty)


@numba.njit(nogil=True, cache=True)
def _stage(x: np.ndarray, length: int, radix: int, twiddles: np.ndarray, roots: np.ndarray, merge: bool) -> None:
    step = length // radix
    values = np.empty(8, dtype=np.complex128)
    for block in range(0, x.size, length):
        for j in range(step):
            for q in range(radix):
                value = x[block + j + q * step]
                values[q] = value * twiddles[j * radix + q] if merge else value
            for k in range(radix):
                total = values[0]
                for q in range(1, radix):
                    total += values[q] * roots[radix, (q * k) % radix]
                x[block + j + k * step] = total if merge else total * twiddles[j * radix + k]


@numba.njit(nogil=True, cache=True)
def _split(x: np.ndarray, radices: np.ndarray, twiddles: np.ndarray, roots: np.ndarray) -> None:
    length, at = x.size, 0
    for radix in radices:
        _stage(x, length, radix, twiddles[at : at + length], roots, False)
        at += length
        length //= radix


@numba.njit(nogil=True, cache=True)
def _merge(x: np.ndarray, radices: np.ndarray, twiddles: np.ndarray, roots: np.ndarray) -> None:
    length, at = 1, twiddles.size
    for i in range(radices.size - 1, -1, -1):
        length *= radices[i]
        at -= length
        _stage(x, length, radices[i], twiddles[at : at + length], roots, True)


@numba.njit(nogil=True, cache=True)
def _swap(x: np.ndarray) -> None:
    for i in range(x.size):
        x[i] = complex(x[i].imag, x[i].real)


@numba.njit(nogil=True, cache=True)
def _transform(x: np.ndarray, plan: _Plan, merge: bool) -> None:
    if plan.chirp.size == 0:
        if merge:
            _merge(x, plan.radices, plan.twiddles, plan.roots)
        else:
            _split(x, plan.radices, plan.twiddles, plan.roots)
        return
    padded = np.zeros(plan.chirp_spectrum.size, dtype=np.complex128)
    padded[: x.size] = x * plan.chirp
    _split(padded, plan.radices, plan.twiddles, plan.roots)
    padded *= plan.chirp_spectrum
    _swap(padded)
    _merge(padded, plan.radices, plan.twiddles, plan.roots)
    _swap(padded)
    x[:] = padded[: x.size] * plan.chirp


@numba.njit(nogil=True, cache=True)
def _window_sum(values: np.ndarray, index: int, start: int, period: int, support: int) -> complex:
    at = start + index
    if period > 0:
        at %= period
    total = 0j
    if 0 <= at < support:
        total += values[at]
    if period > 0 and at + period < support:
        total += values[at + period]
    return total


@numba.njit(nogil=True, cache=True)
def _rows_forward(source: np.ndarray, plane: np.ndarray, horizontal: _Plan) -> None:
    plane[:] = 0.0
    for row in range(source.shape[0]):
        plane[row, : source.shape[1]] = source[row]
        _transform(plane[row], horizontal, False)


@numba.njit(nogil=True, cache=True)
def _spectrum(
    kind: int, source: np.ndarray, plane: np.ndarray, target: np.ndarray, vertical: _Plan, horizontal: _Plan
) -> None:
    """target[q, p] at position q of the row transform and p of the column transform."""
    if kind == _FILTER_KIND:
        for q in range(plane.shape[1]):
            for p in range(plane.shape[0]):
                target[q, p] = source[vertical.frequency[p], horizontal.frequency[q]] / plane.size
        return
    _rows_forward(source, plane, horizontal)
    for q in range(plane.shape[1]):
        target[q] = plane[:, q] / plane.size
        _transform(target[q], vertical, False)


@numba.njit(nogil=True, cache=True)
def _run(
    kind: int,
    images: np.ndarray,
    filters: np.ndarray,
    order: np.ndarray,
    image_of: np.ndarray,
    filter_of: np.ndarray,
    window: tuple[int, int, int, int, int, int],
    support: tuple[int, int],
    vertical: _Plan,
    horizontal: _Plan,
    outputs: np.ndarray,
    begin: int,
    end: int,
) -> None:
    shape = (vertical.frequency.size, horizontal.frequency.size)
    # A window may reach further than the transform, over zeros.
    result = np.empty((max(shape[0], outputs.shape[1]), shape[1]), dtype=np.complex128)
    plane = result[: shape[0]]
    spectrum = np.empty((shape[1], shape[0]), dtype=np.complex128)
    column = np.empty(shape[0], dtype=np.complex128)
    last = -1
    for i in range(begin, end):
        b = order[i]
        if filter_of[b] != last:
            last = filter_of[b]
            _spectrum(kind, filters[last], plane, spectrum, vertical, horizontal)
        _rows_forward(images[image_of[b]], plane, horizontal)
        for q in range(shape[1]):
            column[:] = plane[:, q]
            _transform(column, vertical, False)
            if kind == _CROSS_SPECTRUM_KIND:
                for p in range(shape[0]):
                    value = column[p] * np.conj(spectrum[q, p])
                    outputs[b, vertical.frequency[p], horizontal.frequency[q]] = value
                continue
            column *= spectrum[q]
            _swap(column)
            _transform(column, vertical, True)
            for row in range(outputs.shape[1]):
                result[row, q] = _window_sum(column, row, window[0], window[2], support[0])
        if kind == _CROSS_SPECTRUM_KIND:
            continue
        for row in range(outputs.shape[1]):
            _transform(result[row], horizontal, True)
            for c in range(outputs.shape[2]):
                value = _window_sum(result[row], c, window[3], window[5], support[1])
                outputs[b, row, c] = complex(value.imag, value.real)


def _axis(kind: int, first: int, second: int, start: int, count: int, period: int) -> tuple[int, int]:
    """(transform length, length of the full convolution or the period where the transform is exact)."""
    full = first + second - 1
    if kind != 0 or (period > 0 and _radices(period) is not None):
        return period, period
    if period > 0:
        return _good_size(full), full
    # No alias may fall on a wanted output.
    return _good_size(max(first, second, min(start + count, full), full - max(start, 0))), full


def psf_convolve(
    kind: int, first: Tensor, second: Tensor, window: tuple[int, ...], conjugate: bool, summed: int, threads: int
) -> Tensor:
    """One call of psf_convolve (kind 0), fourier_filter (1) or cross_spectrum (2); see the kernel's kernel.h."""
    if conjugate and kind == 0:
        second = second.flip(-2, -1)
        shift = tuple(size - 1 for size in second.shape[-2:])
        window = (window[0] + shift[0], *window[1:3], window[3] + shift[1], *window[4:])
    elif conjugate:
        second = second.conj().resolve_conj()
    outputs = _outputs(kind, first, second, window, threads)
    axes = [axis for axis in range(outputs.ndim - 2) if summed >> (outputs.ndim - 3 - axis) & 1]
    # NumPy does the last steps: a Function's output must not be a view of a torch tensor in forward mode.
    values = outputs.sum(axis=tuple(axes), keepdims=True) if axes else outputs
    dtype = torch.empty(0, dtype=first.dtype).numpy().dtype
    return torch.from_numpy((values if first.is_complex() else values.real).astype(dtype))


def _outputs(kind: int, first: Tensor, second: Tensor, window: tuple[int, ...], threads: int) -> np.ndarray:
    """The complex results at the full batch shape."""
    batch = torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    if kind == 0 and first.shape[:-2].numel() < second.shape[:-2].numel():
        first, second = second, first  # the operand that repeats is transformed once
    planes, indices = [], []
    for tensor in (first, second):
        # An infinity becomes NaN: it has no spectrum.
        flat = tensor.reshape(-1, *tensor.shape[-2:]).to(torch.complex128)
        planes.append((flat + 0.0 * flat).numpy())
        index = torch.arange(flat.shape[0]).reshape(tensor.shape[:-2])
        indices.append(index.expand(batch).reshape(-1).numpy())
    row_size, row_support = _axis(kind, first.shape[-2], second.shape[-2], *window[:3])
    column_size, column_support = _axis(kind, first.shape[-1], second.shape[-1], *window[3:])
    outputs = np.empty((indices[0].size, window[1], window[4]), dtype=np.complex128)
    vertical, horizontal = _plan(row_size), _plan(column_size)
    order = np.argsort(indices[1], kind="stable")
    support = (row_support, column_support)
    if outputs.size:
        _fallback.in_threads(
            lambda begin, end: _run(
                kind, *planes, order, *indices, window, support, vertical, horizontal, outputs, begin, end
            ),
            order.size,
            1 + 4096 // (row_size * column_size),
            threads,
        )
    return outputs.reshape(*batch, window[1], window[4])
