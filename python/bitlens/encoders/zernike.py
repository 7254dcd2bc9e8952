"""Zernike polynomials of the unit disc in Noll's order, with unit root mean square over the disc."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def noll_to_radial_azimuthal(index: int) -> tuple[int, int]:
    """(n, m) of Noll index 1, 2, 3, ...; m > 0 stands for cos(m angle), m < 0 for sin(|m| angle).

    Raises:
        ValueError: `index` is below 1.

    Reference: Noll 1976, J. Opt. Soc. Am. 66, 207, Table I, doi:10.1364/JOSA.66.000207.
    """
    if index < 1:
        raise ValueError(f"index: need a Noll index of at least 1, got {index}")
    n = (math.isqrt(8 * index - 7) - 1) // 2
    position = index - n * (n + 1) // 2
    m = n % 2 + 2 * ((position - n % 2) // 2)
    return n, m if index % 2 == 0 else -m


@lru_cache(maxsize=256)
def _radial_coefficients(n: int, m: int) -> tuple[int, ...]:
    """Coefficients of R_n^m(rho) / rho^m as a polynomial in rho^2, highest power first."""
    half_sum, half_difference = (n + m) // 2, (n - m) // 2
    return tuple(
        (-1) ** s
        * math.factorial(n - s)
        // (math.factorial(s) * math.factorial(half_sum - s) * math.factorial(half_difference - s))
        for s in range(half_difference + 1)
    )


def zernike(index: int, column: Tensor, row: Tensor) -> Tensor:
    """Z_j = sqrt(n+1) R_n^0, or sqrt(2(n+1)) R_n^|m| cos(m angle) (even j), sin (odd j).

    The mean of Z_j Z_k over the unit disc is 1 for j = k, else 0: a coefficient is a root mean square.
    Written as a polynomial in `column` and `row`, hence with finite derivatives at the centre.

    Args:
        index: Noll index j, from 1 (piston); 4 is defocus.
        column, row: coordinates over the disc's radius, broadcast; the angle goes from +column to +row.

    Raises:
        ValueError: `index` is below 1.

    Reference: Noll 1976, J. Opt. Soc. Am. 66, 207, eqs. 1-3, doi:10.1364/JOSA.66.000207.
    """
    n, signed_m = noll_to_radial_azimuthal(index)
    m = abs(signed_m)
    radius_squared = column**2 + row**2
    radial = torch.zeros_like(radius_squared)
    for coefficient in _radial_coefficients(n, m):
        radial = radial * radius_squared + coefficient
    cosine, sine = torch.ones_like(radius_squared), torch.zeros_like(radius_squared)
    for _ in range(m):
        cosine, sine = cosine * column - sine * row, sine * column + cosine * row
    norm = math.sqrt(n + 1) if m == 0 else math.sqrt(2 * (n + 1))
    return norm * radial * (sine if signed_m < 0 else cosine)


def zernike_basis(indices: Sequence[int], column: Tensor, row: Tensor) -> Tensor:
    """(..., term, row, column): the polynomials of `indices`, stacked; see `zernike`."""
    return torch.stack([zernike(index, column, row) for index in indices], dim=-3)
