"""Zernike polynomials against the published table, explicit forms and their orthonormality."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitlens.encoders import noll_to_radial_azimuthal, zernike, zernike_basis

# Noll 1976, Table I: (n, |m|) by index; even indices are cosines, odd ones sines.
NOLL_TABLE = [
    *[(0, 0), (1, 1), (1, 1), (2, 0), (2, 2), (2, 2), (3, 1), (3, 1), (3, 3), (3, 3)],
    *[(4, 0), (4, 2), (4, 2), (4, 4), (4, 4), (5, 1), (5, 1), (5, 3), (5, 3), (5, 5), (5, 5), (6, 0)],
]


def test_noll_order_is_the_published_one() -> None:
    for index, (n, m) in enumerate(NOLL_TABLE, start=1):
        signed = m if index % 2 == 0 else -m
        assert noll_to_radial_azimuthal(index) == (n, signed)


def test_every_mode_of_a_radial_order_appears_once() -> None:
    pairs = [noll_to_radial_azimuthal(index) for index in range(1, 67)]
    assert sorted(pairs) == [(n, m) for n in range(11) for m in range(-n, n + 1, 2)]


@pytest.mark.parametrize("index", [0, -3])
def test_index_below_one_is_an_error(index: int) -> None:
    with pytest.raises(ValueError, match="index: need a Noll index of at least 1"):
        noll_to_radial_azimuthal(index)


def test_explicit_forms() -> None:
    rho, angle = torch.rand(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angle = angle * 2 * np.pi
    column, row = rho * torch.cos(angle), rho * torch.sin(angle)
    explicit = {
        1: torch.ones_like(rho),
        2: 2 * rho * torch.cos(angle),
        3: 2 * rho * torch.sin(angle),
        4: 3**0.5 * (2 * rho**2 - 1),
        5: 6**0.5 * rho**2 * torch.sin(2 * angle),
        6: 6**0.5 * rho**2 * torch.cos(2 * angle),
        7: 8**0.5 * (3 * rho**3 - 2 * rho) * torch.sin(angle),
        8: 8**0.5 * (3 * rho**3 - 2 * rho) * torch.cos(angle),
        10: 8**0.5 * rho**3 * torch.cos(3 * angle),
        11: 5**0.5 * (6 * rho**4 - 6 * rho**2 + 1),
        13: 10**0.5 * (4 * rho**4 - 3 * rho**2) * torch.sin(2 * angle),
    }
    for index, expected in explicit.items():
        torch.testing.assert_close(zernike(index, column, row), expected, rtol=1e-12, atol=1e-12)


def test_orthonormal_over_the_disc() -> None:
    # Gauss-Legendre in rho^2 and equal angles integrate these polynomials exactly.
    nodes, weights = np.polynomial.legendre.leggauss(12)
    rho = torch.from_numpy(np.sqrt((nodes + 1) / 2))
    angle = torch.arange(32, dtype=torch.float64) * (2 * np.pi / 32)
    column, row = rho[:, None] * torch.cos(angle), rho[:, None] * torch.sin(angle)
    basis = zernike_basis(range(1, 46), column, row)
    weight = torch.from_numpy(weights / 2)[:, None] / 32
    gram = torch.einsum("iab,jab,ab->ij", basis, basis, weight.expand(-1, 32))
    torch.testing.assert_close(gram, torch.eye(45, dtype=torch.float64), rtol=0, atol=1e-11)


@pytest.mark.parametrize("index", range(1, 16))
def test_gradient_is_right_also_at_the_centre(index: int) -> None:
    column = torch.tensor([0.0, 0.3, -0.7], dtype=torch.float64, requires_grad=True)
    row = torch.tensor([0.0, -0.5, 0.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c, r: zernike(index, c, r), (column, row))
