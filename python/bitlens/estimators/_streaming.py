"""Statistics of a stream of images that can be merged, and random numbers that belong to a row."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_WORD = 2**64
_GOLDEN = 0x9E3779B97F4A7C15  # the increment of splitmix64
_LEAST = -(2**63)


class Moments(NamedTuple):
    """Of `n` rows: their mean (D,) and the sum of the outer products of their deviations (D, D), float64."""

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, n_pixels: int, device: torch.device) -> Moments:
        """Of no rows."""
        mean = torch.zeros(n_pixels, dtype=torch.float64, device=device)
        return cls(0, mean, torch.zeros(n_pixels, n_pixels, dtype=torch.float64, device=device))

    def with_rows(self, rows: Tensor) -> Moments:
        """With (n, D) more rows; takes the scatter matrix over, so that one is kept and not two.

        Reference: Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115, eq. 2.1.
        """
        added = rows.shape[0]
        if added == 0:
            return self
        total = self.n + added
        mean = rows.mean(0)
        difference = mean - self.mean
        # The step between the two means is one more row: a single product adds everything.
        step = difference * math.sqrt(self.n * added / total)
        deviation = torch.cat([rows - mean, step[None]])
        scatter = self.scatter.addmm_(deviation.mT, deviation)
        return Moments(total, self.mean + difference * (added / total), scatter)

    def merged(self, other: Moments) -> Moments:
        """Of the rows of both; neither is changed."""
        if other.n == 0 or self.n == 0:
            kept = other if self.n == 0 else self
            return Moments(kept.n, kept.mean.clone(), kept.scatter.clone())
        total = self.n + other.n
        difference = other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter.addr_(difference, difference, alpha=self.n * (other.n / total))
        return Moments(total, self.mean + difference * (other.n / total), scatter)


class Scalars(NamedTuple):
    """Of `n` numbers: their mean and the sum of their squared deviations."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def merged(self, other: Scalars) -> Scalars:
        """Of the numbers of both."""
        total = self.n + other.n
        if total == 0:
            return self
        difference = other.mean - self.mean
        squares = self.squares + other.squares + difference**2 * self.n * other.n / total
        return Scalars(total, self.mean + difference * other.n / total, squares)


def scalars_of(values: Tensor) -> Scalars:
    """Of the numbers in `values`."""
    mean = values.mean()
    return Scalars(values.numel(), float(mean), float((values - mean).square().sum()))


# ---- Random numbers that belong to a row, however the rows come in batches ----


def row_keys(rows: Tensor, first_index: int, seed: int) -> Tensor:
    """A uniform int64 for each of (n, D) float64 rows, from the row, its place in the stream and the seed.

    The place makes equal images differ; the content makes workers differ that share a seed.
    """
    words = rows.contiguous().view(torch.int64)
    place = torch.arange(rows.shape[1], device=rows.device)
    checksum = (words * (_mixed(place) | 1)).sum(1)
    index = torch.arange(first_index, first_index + rows.shape[0], device=rows.device)
    return _mixed(_mixed(checksum + to_word(seed * _GOLDEN)) ^ _mixed(index + to_word(~seed)))


def uniforms(keys: Tensor, n_pixels: int) -> Tensor:
    """U[0, 1) for each pixel of the rows with these keys, (n, D) float64."""
    place = torch.arange(1, n_pixels + 1, device=keys.device) * to_word(_GOLDEN)
    return (_shifted(_mixed(keys[:, None] ^ _mixed(place)), 11)).to(torch.float64) * 2.0**-53


def key_below(share: float) -> int:
    """The int64 below which a uniform key falls with probability `share`."""
    return min(_LEAST + int(share * _WORD), 2**63 - 1)


def _mixed(value: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014, doi:10.1145/2714064.2660195); int64 wraps around."""
    value = value + to_word(_GOLDEN)
    value = (value ^ _shifted(value, 30)) * to_word(0xBF58476D1CE4E5B9)
    value = (value ^ _shifted(value, 27)) * to_word(0x94D049BB133111EB)
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """To the right, zeros coming in."""
    return (value >> bits) & (2 ** (64 - bits) - 1)


def to_word(value: int) -> int:
    """The int64 with the last 64 bits of a whole number."""
    value %= _WORD
    return value - _WORD if value >= _WORD // 2 else value


def from_word(value: int) -> int:
    """The number of 0 .. 2^64 - 1 with the bits of an int64."""
    return value % _WORD
