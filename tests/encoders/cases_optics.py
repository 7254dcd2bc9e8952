"""The linear encoders of wave optics and masks, for test_linear_contract.py."""

from __future__ import annotations

import torch
from linear_case import LinearCase
from torch import Tensor

from bitlens.encoders.masks import AmplitudeMask, FourierMask, MaskTransmission, PhaseMask
from bitlens.encoders.propagation import FreeSpace


def _map(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _near() -> FreeSpace:
    return FreeSpace(distance_mm=0.05, wavelength_nm=550.0, sample_um=1.2)


def _two_wavelengths_back() -> FreeSpace:
    return FreeSpace(distance_mm=(-0.04, 0.03), wavelength_nm=(480.0, 620.0), sample_um=1.2, pad=1.5)


def _off_axis() -> FreeSpace:
    return FreeSpace(distance_mm=0.06, wavelength_nm=550.0, sample_um=1.2, shift_um=(6.0, -3.0))


def _paraxial_periodic() -> FreeSpace:
    return FreeSpace(distance_mm=0.05, wavelength_nm=550.0, sample_um=1.2, pad=1, model="fresnel")


def _evanescent() -> FreeSpace:
    return FreeSpace(distance_mm=2e-5, wavelength_nm=550.0, sample_um=0.12, pad=1)


def _grey_mask() -> AmplitudeMask:
    return AmplitudeMask(MaskTransmission(_map(9, 12), learn=True))


def _annealed_mask() -> AmplitudeMask:
    return AmplitudeMask(MaskTransmission(_map(3, 9, 12), kind="annealed", sharpness=3.0))


def _binary_mask() -> AmplitudeMask:
    return AmplitudeMask(MaskTransmission(_map(9, 12).round(), kind="binary"))


def _relief() -> PhaseMask:
    return PhaseMask(_map(9, 12), refractive_index=(1.46, 1.45), wavelength_nm=(480.0, 620.0), learn=["height_um"])


def _fourier_mask() -> FourierMask:
    return FourierMask(MaskTransmission(_map(10, 13), learn=True))


# The step of the contract's finite differences, 1e-6, is not small against 2e-5 mm: test_propagation.py has that one.
_PLACES = ("distance_mm", "wavelength_nm", "sample_um")

CASES = [
    LinearCase("free_space", _near, (2, 14, 18), parameters=_PLACES),
    LinearCase("free_space_two_wavelengths", _two_wavelengths_back, (4, 14, 17), parameters=_PLACES),
    LinearCase("free_space_off_axis", _off_axis, (2, 14, 18), parameters=(*_PLACES, "shift_um")),
    LinearCase("free_space_periodic", _paraxial_periodic, (2, 14, 18), parameters=_PLACES, flux=1.0, shifts=True),
    LinearCase("free_space_evanescent", _evanescent, (2, 14, 18), parameters=_PLACES[1:], flux=1.0, shifts=True),
    LinearCase("grey_mask", _grey_mask, (3, 9, 12), parameters=("mask.parameter",), flux=float(_map(9, 12).mean())),
    LinearCase("annealed_mask", _annealed_mask, (3, 9, 12), parameters=("mask.parameter", "mask.sharpness")),
    LinearCase("binary_mask", _binary_mask, (3, 9, 12), flux=float(_map(9, 12).round().mean())),
    LinearCase("phase_mask", _relief, (4, 9, 12), parameters=("height_um", "refractive_index", "wavelength_nm")),
    LinearCase("fourier_mask", _fourier_mask, (4, 10, 13), parameters=("mask.parameter",), shifts=True),
]
