"""Thermal radiation in photons, and what of it a photodiode detects at each wavelength."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import constants
from torch import Tensor

from bitlens.encoders.detector import Values, as_values, within

# h c / k in um K.
SECOND_RADIATION_CONSTANT_UM_K = 1e6 * constants.h * constants.c / constants.k
# Wavelengths in um, ascending, and the detector's response at each.
Response = tuple[Values, Values]
_NODES = 8
_RESPONSE_NODES = 12
_COLDEST_KELVIN = 1.0


def photon_radiance(wavelength_um: Values, temperature_kelvin: Values) -> Tensor:
    """2 c / (wavelength^4 (exp(h c / (wavelength k T)) - 1)), photons / (s m^2 sr um), of a black body; they broadcast.

    Times h c / wavelength it is the spectral radiance in W. Below 1 K counts as 1 K, which emits nothing here.

    Reference: Planck's law, CODATA 2018 constants (exact).
    """
    wavelength, temperature = (_floating(value) for value in (wavelength_um, temperature_kelvin))
    ratio = SECOND_RADIATION_CONSTANT_UM_K / (wavelength * temperature.clamp(min=_COLDEST_KELVIN))
    # This does not overflow where exp(x) - 1 does; where x is small, in the far infrared, it loses eps / x.
    boltzmann = torch.exp(-ratio)
    return 2e18 * constants.c / wavelength**4 * (boltzmann / (1 - boltzmann))


def band_radiance(
    temperature_kelvin: Values, short_um: Values, long_um: Values, response: Response | None = None
) -> Tensor:
    """Integral of response x `photon_radiance` from `short_um` to `long_um`, photons / (s m^2 sr), per temperature.

    `response` is (wavelengths in um, ascending, response at each): linear between them, nothing beyond; None is 1
    everywhere. By 8 or 12 Gauss-Legendre nodes: better than 1e-7 for bands of one octave, 1e-6 for two, with a response
    1e-5. Differentiable in temperature and both ends.
    """
    temperature = _floating(temperature_kelvin)
    device = temperature.device
    short, long = (torch.as_tensor(edge, dtype=torch.float64, device=device) for edge in (short_um, long_um))
    middle, half = 0.5 * (long + short), 0.5 * (long - short)
    if response is None:
        nodes, shares = _nodes(_NODES)
        weights = shares * half
    else:
        nodes, _ = _nodes(_RESPONSE_NODES)
        knots, values = (torch.as_tensor(axis, dtype=torch.float64, device=device) for axis in response)
        weights = _response_weights(middle, half, knots, values)
    total = torch.zeros_like(temperature)
    for node, weight in zip(nodes.tolist(), weights.to(temperature.dtype).unbind(), strict=True):
        total = total + weight * photon_radiance((middle + half * node).to(temperature.dtype), temperature)
    # What is left of a scene near 0 K is rounding, of either sign under a response.
    return total if response is None else total.clamp(min=0)


def _nodes(count: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights)


def _response_weights(middle: Tensor, half: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Integrals (node,) of response x Lagrange polynomial over the band: exact where what they weight is a polynomial.

    The polynomial of node x_j is w_j sum_n (n + 1/2) P_n(x_j) P_n(x), P_n Legendre's. A response with an edge then
    takes hardly more evaluations of Planck's law than none.
    """
    nodes, shares = (value.to(knots.device) for value in _nodes(_RESPONSE_NODES))
    inner, inner_shares = (value.to(knots.device) for value in _nodes(_RESPONSE_NODES // 2 + 1))
    edges = torch.minimum(torch.maximum(knots, middle - half), middle + half)
    start, width = edges[:-1, None], (edges[1:] - edges[:-1])[:, None]
    wavelength = start + 0.5 * width * (1 + inner)
    slope = ((values[1:] - values[:-1]) / (knots[1:] - knots[:-1]))[:, None]
    weighted = 0.5 * width * inner_shares * (values[:-1, None] + slope * (wavelength - knots[:-1, None]))
    polynomials = shares[:, None] * (torch.arange(_RESPONSE_NODES, device=knots.device) + 0.5) * _legendre(nodes)
    return torch.einsum("ki,kin,jn->j", weighted, _legendre((wavelength - middle) / half), polynomials)


def _legendre(x: Tensor) -> Tensor:
    """(..., n) P_0 to P_(n - 1), n the nodes under a response."""
    rows = [torch.ones_like(x), x]
    for n in range(1, _RESPONSE_NODES - 1):
        rows.append(((2 * n + 1) * x * rows[n] - n * rows[n - 1]) / (n + 1))
    return torch.stack(rows, dim=-1)


def photodiode_efficiency(cutoff_um: float, *, peak: float = 0.9, optical_depth: float = 8.0) -> tuple[Tensor, Tensor]:
    """peak (1 - exp(-depth sqrt(u - 1) / u)), u = cut-off / wavelength: (wavelengths in um, quantum efficiency).

    A layer of a semiconductor with a direct gap at `cutoff_um`: 5.4 um for InSb at 77 K, for HgCdTe
    `mercury_cadmium_cutoff_um`. A depth of 8 is 10 um of 4000 / cm at twice the gap; `peak` is what is not reflected.

    Reference: Rogalski, Infrared Detectors, 2nd ed. 2011, ch. 9 (InSb) and 14 (HgCdTe).
    """
    for name, value in (("cutoff_um", cutoff_um), ("optical_depth", optical_depth)):
        if not value > 0:
            raise ValueError(f"{name}: need a positive number, got {value}")
    if not 0 < peak <= 1:
        raise ValueError(f"peak: need a number above 0 and at most 1, got {peak}")
    # Close together at the cut-off, where it falls as a square root.
    below = torch.linspace(math.sqrt(0.8), 0.0, 33, dtype=torch.float64).square()
    ratio = 1 / (1 - below)
    absorbed = -torch.expm1(-optical_depth * (ratio - 1).sqrt() / ratio)
    return cutoff_um / ratio, peak * absorbed


def mercury_cadmium_cutoff_um(cadmium_share: float, kelvin: float) -> float:
    """h c / gap of Hg(1-x)Cd(x)Te, um; gap = -0.302 + 1.93 x - 0.81 x^2 + 0.832 x^3 + 5.35e-4 (1 - 2 x) T, eV.

    Reference: Hansen, Schmit and Casselman 1982, J. Appl. Phys. 53, 7099, doi:10.1063/1.330018.
    """
    x = cadmium_share
    gap_ev = -0.302 + 1.93 * x - 0.81 * x**2 + 0.832 * x**3 + 5.35e-4 * (1 - 2 * x) * kelvin
    if not (0 <= x <= 1 and gap_ev > 0):
        raise ValueError(f"cadmium_share: need 0 to 1 with a gap above 0 at {kelvin} kelvin, got {cadmium_share}")
    return 1e6 * constants.h * constants.c / (constants.e * gap_ev)


def _floating(value: Values) -> Tensor:
    tensor = torch.as_tensor(value)
    return tensor if tensor.is_floating_point() else tensor.to(torch.float64)


def peak_and_response(quantum_efficiency: float | Response) -> tuple[float, Response | None]:
    """A number and None, or of (wavelengths in um, quantum efficiencies) the peak and the response relative to it.

    Raises:
        ValueError: not two, or an efficiency outside 0 to 1.
    """
    if not isinstance(quantum_efficiency, (tuple, list)):
        return quantum_efficiency, None
    if len(quantum_efficiency) != 2:
        raise ValueError(
            f"quantum_efficiency: need a number or (wavelengths, efficiencies), got {len(quantum_efficiency)} items"
        )
    knots, values = (
        as_values("quantum_efficiency", axis, "one number per wavelength", (1,)) for axis in quantum_efficiency
    )
    within("quantum_efficiency", values, 0.0, 1.0)
    peak = float(values.max())
    if not peak > 0:
        raise ValueError("quantum_efficiency: need an efficiency above 0 somewhere, got none")
    return peak, (knots, values / peak)


def checked_response(response: Response) -> tuple[Tensor, Tensor]:
    """Ascending wavelengths and a share of 0 to 1 for each, float64; otherwise ValueError."""
    knots, shares = (as_values("response", axis, "one number per wavelength", (1,)).double() for axis in response)
    if len(knots) != len(shares) or len(knots) < 2 or not bool((knots[1:] > knots[:-1]).all()):
        raise ValueError(
            "response: need at least two ascending wavelengths and a share for each, "
            f"got {len(knots)} and {len(shares)}"
        )
    within("response", knots, 0.0)
    return knots, within("response", shares, 0.0, 1.0)
