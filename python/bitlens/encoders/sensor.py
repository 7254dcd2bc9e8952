"""From irradiance on a fine grid to mean photo-electrons on pixels: functions of tensors."""

from __future__ import annotations

from torch import Tensor


def integrate_pixels(irradiance: Tensor, oversampling: int) -> Tensor:
    """Mean of `irradiance` (..., row, column) over squares of `oversampling` samples: one value per pixel.

    Raises:
        ValueError: the last two sizes are not multiples of `oversampling`.
    """
    if irradiance.shape[-2] % oversampling or irradiance.shape[-1] % oversampling:
        raise ValueError(
            f"irradiance: need rows and columns that are multiples of oversampling = {oversampling}, "
            f"got {tuple(irradiance.shape)}"
        )
    if oversampling == 1:
        return irradiance
    *leading, rows, columns = irradiance.shape
    blocks = (rows // oversampling, oversampling, columns // oversampling, oversampling)
    return irradiance.reshape(*leading, *blocks).mean(dim=(-3, -1))


def photoelectrons(
    irradiance: Tensor, *, exposure_photons: Tensor, quantum_efficiency: Tensor, dark_electrons: Tensor
) -> Tensor:
    """exposure_photons quantum_efficiency max(irradiance, 0) + dark_electrons: mean per pixel.

    Args:
        irradiance: (..., row, column), relative to the one for which `exposure_photons` is stated. Negative
            values of the size of a rounding error, which a convolution by FFT leaves, become zero.
        exposure_photons: photons that reach one pixel during the exposure where the irradiance is 1.
        quantum_efficiency: photo-electrons per photon.
        dark_electrons: dark signal per pixel and exposure.
    """
    return exposure_photons * quantum_efficiency * irradiance.clamp(min=0) + dark_electrons
