"""A camera as an encoder: scene in, mean photo-electrons on the pixels out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bitlens import ops
from bitlens.encoders import optics, sensor
from bitlens.encoders.zernike import noll_to_radial_azimuthal, zernike_basis

PerChannel = float | Sequence[float]
Boundary = Literal["crop", "zero", "circular"]

_POSITIVE = (
    *("wavelength_nm", "f_number", "pixel_um", "aperture_radius"),
    *("exposure_photons", "quantum_efficiency"),
)


@final
class Camera(nn.Module):
    """mean = exposure_photons quantum_efficiency pixels(PSF * scene) + dark_electrons, photo-electrons.

    PSF = |FFT(aperture exp(2 pi i W))|^2, W = defocus rho^2 + sum_j zernike_j Z_j + phase mask, in waves.
    Differentiable in every number and map. They are held in float64; the mean has the scene's dtype.

    Shapes: scene (batch, channel, row, column) >= 0, `oversampling` samples per pixel side. "crop" returns
    only pixels whose whole PSF window lies in the scene: `scene_size(patch)` says how large a scene a patch
    takes. "zero" and "circular" return every pixel of a scene with black or with itself around it.
    Accuracy: light that would fall beyond the margin is folded back into the window, a share of about
    0.2 wavelength f_number / margin (all lengths in one unit); the aperture's soft edge adds as much.

    Reference: Goodman, Introduction to Fourier Optics, 3rd ed. 2005, ch. 6.
    """

    # What an optimiser may reach; None leaves a side open.
    parameter_domain: ClassVar[Mapping[str, tuple[float | None, float | None]]] = {
        "wavelength_nm": (1.0, None),
        "f_number": (0.1, None),
        "pixel_um": (0.01, None),
        "aperture_radius": (1e-3, 1.0),
        "exposure_photons": (0.0, None),
        "quantum_efficiency": (0.0, 1.0),
        "dark_electrons": (0.0, None),
    }

    wavelength_nm: Tensor
    f_number: Tensor
    pixel_um: Tensor
    aperture_radius: Tensor
    defocus_waves: Tensor
    zernike_waves: Tensor | None
    phase_mask_waves: Tensor | None
    exposure_photons: Tensor
    quantum_efficiency: Tensor
    dark_electrons: Tensor

    def __init__(
        self,
        *,
        wavelength_nm: PerChannel,
        f_number: PerChannel,
        pixel_um: float,
        aperture_radius: PerChannel = 1.0,
        defocus_waves: PerChannel = 0.0,
        zernike_waves: Mapping[int, float] | None = None,
        phase_mask_waves: Tensor | np.ndarray | None = None,
        exposure_photons: PerChannel = 1000.0,
        quantum_efficiency: PerChannel = 1.0,
        dark_electrons: PerChannel = 0.0,
        oversampling: int | None = None,
        margin_pixels: int = 12,
        boundary: Boundary = "crop",
        learn: Sequence[str] = (),
    ) -> None:
        """Takes numbers, or sequences of one number per channel, in the units their names state.

        Args:
            aperture_radius: over the full aperture's, that of `f_number`; its square is the light passed.
            defocus_waves: peak: edge of the full aperture against its centre (rms is peak / (2 sqrt 3)).
            zernike_waves: {Noll index: rms over the full aperture}; 4 is defocus again.
            phase_mask_waves: (psf_size, psf_size) over the pupil grid, optical axis at psf_size // 2.
            exposure_photons: reaching one pixel in the exposure, where the scene is 1, at full aperture.
            oversampling: scene samples per pixel side; default the fewest that resolve the PSF.
            margin_pixels: reach of the PSF window; psf_size = 2 margin_pixels oversampling + 1.
            learn: names of arguments to optimise: they become `nn.Parameter`, the others buffers.

        Raises:
            ValueError: a number out of its range, a map of the wrong shape, an unknown name in `learn`.
        """
        super().__init__()
        numbers: dict[str, PerChannel] = {
            "wavelength_nm": wavelength_nm,
            "f_number": f_number,
            "pixel_um": pixel_um,
            "aperture_radius": aperture_radius,
            "defocus_waves": defocus_waves,
            "exposure_photons": exposure_photons,
            "quantum_efficiency": quantum_efficiency,
            "dark_electrons": dark_electrons,
        }
        values = {name: _per_channel(name, number) for name, number in numbers.items()}
        if values["pixel_um"].ndim:
            raise ValueError(f"pixel_um: need one number for all channels, got {pixel_um}")
        if (values["aperture_radius"] > 1).any():
            raise ValueError(f"aperture_radius: need at most 1, the full aperture, got {aperture_radius}")
        if (values["quantum_efficiency"] > 1).any():
            raise ValueError(f"quantum_efficiency: need at most 1, got {quantum_efficiency}")
        if (values["dark_electrons"] < 0).any():
            raise ValueError(f"dark_electrons: need at least 0, got {dark_electrons}")
        if margin_pixels < 1:
            raise ValueError(f"margin_pixels: need at least 1, got {margin_pixels}")
        if boundary not in get_args(Boundary):
            raise ValueError(f"boundary: need one of {get_args(Boundary)}, got {boundary!r}")
        self.oversampling = _oversampling(values, oversampling)
        self.margin_pixels = margin_pixels
        self.boundary: Boundary = boundary
        self.zernike_indices = tuple(zernike_waves or ())
        maps = {
            "zernike_waves": self._zernike_vector(zernike_waves, "zernike_waves" in learn),
            "phase_mask_waves": self._phase_map(phase_mask_waves, "phase_mask_waves" in learn),
        }
        known = (*values, *maps)
        unknown = [name for name in learn if name not in known]
        if unknown:
            raise ValueError(f"learn: need names among {', '.join(known)}, got {unknown[0]!r}")
        for name, value in {**values, **maps}.items():
            if name in learn:
                assert value is not None
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    @property
    def psf_size(self) -> int:
        """Samples per side of the PSF and of the pupil: odd, so that the origin is in the middle."""
        return 2 * self.margin_pixels * self.oversampling + 1

    def scene_size(self, patch_pixels: int) -> int:
        """Scene samples per side that give a mean of `patch_pixels` pixels per side."""
        margin = 2 * self.margin_pixels if self.boundary == "crop" else 0
        return (patch_pixels + margin) * self.oversampling

    def pupil_grid(self) -> optics.PupilGrid:
        """Coordinates of the pupil's samples; radius 1 is the edge of the full aperture."""
        return optics.pupil_grid(
            self.psf_size,
            sample_um=self.pixel_um / self.oversampling,
            wavelength_nm=self.wavelength_nm,
            f_number=self.f_number,
        )

    def path_waves(self) -> Tensor:
        """W (..., psf_size, psf_size): optical path error over the pupil, in waves."""
        grid = self.pupil_grid()
        path = self.defocus_waves[..., None, None] * (grid.column**2 + grid.row**2)
        if self.zernike_waves is not None:
            basis = zernike_basis(self.zernike_indices, grid.column, grid.row)
            path = path + (self.zernike_waves[:, None, None] * basis).sum(dim=-3)
        if self.phase_mask_waves is not None:
            path = path + self.phase_mask_waves
        return path

    def pupil(self) -> Tensor:
        """Complex (psf_size, psf_size) or (channel, psf_size, psf_size): aperture and path error."""
        amplitude = optics.soft_disc(self.pupil_grid(), self.aperture_radius)
        return optics.pupil(amplitude, self.path_waves())

    def psf(self) -> Tensor:
        """PSF on the scene's grid, (psf_size, psf_size) or (channel, ...), whose sum is aperture_radius^2."""
        return optics.incoherent_psf(self.pupil(), self.aperture_radius**2)

    def forward(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photo-electrons (batch, channel, row, column) of `scene`; see the class for shapes.

        Raises:
            ValueError: the scene is too small, or not a whole number of pixels.
        """
        scene = torch.as_tensor(scene)
        self._check_scene(scene)
        psf = self.psf().to(scene.dtype)
        if self.boundary == "crop":
            irradiance = ops.psf_convolve(scene, psf, mode="valid")
        else:
            irradiance = ops.psf_convolve(scene, psf, mode="same", boundary=self.boundary)
        return sensor.photoelectrons(
            sensor.integrate_pixels(irradiance, self.oversampling),
            exposure_photons=_over_pixels(self.exposure_photons, scene),
            quantum_efficiency=_over_pixels(self.quantum_efficiency, scene),
            dark_electrons=_over_pixels(self.dark_electrons, scene),
        )

    def extra_repr(self) -> str:
        shown = ("wavelength_nm", "f_number", "pixel_um", "aperture_radius", "defocus_waves")
        numbers = [f"{name}={getattr(self, name).tolist()}" for name in shown]
        learned = tuple(name for name, _ in self.named_parameters())
        return ", ".join(
            [*numbers, f"oversampling={self.oversampling}", f"boundary={self.boundary!r}", f"learn={learned}"]
        )

    def _zernike_vector(self, coefficients: Mapping[int, float] | None, learned: bool) -> Tensor | None:
        if not coefficients:
            if learned:
                raise ValueError("zernike_waves: need {Noll index: waves} to learn, got none")
            return None
        for index in coefficients:
            noll_to_radial_azimuthal(index)
        return _per_channel("zernike_waves", list(coefficients.values()))

    def _phase_map(self, phase: Tensor | np.ndarray | None, learned: bool) -> Tensor | None:
        shape = (self.psf_size, self.psf_size)
        if phase is None:
            return torch.zeros(shape, dtype=torch.float64) if learned else None
        value = torch.as_tensor(phase).detach().to(torch.float64).clone()
        if tuple(value.shape) != shape:
            raise ValueError(f"phase_mask_waves: need shape {shape}, got {tuple(value.shape)}")
        return value

    def _check_scene(self, scene: Tensor) -> None:
        if scene.ndim < 3:
            raise ValueError(f"scene: need shape (batch, channel, row, column), got {tuple(scene.shape)}")
        smallest = self.scene_size(1)
        if min(scene.shape[-2:]) < smallest:
            raise ValueError(
                f"scene: need at least {smallest} rows and columns for one pixel away from the boundary "
                f"(margin_pixels = {self.margin_pixels}, oversampling = {self.oversampling}), "
                f"got {tuple(scene.shape)}"
            )
        if any(size % self.oversampling for size in scene.shape[-2:]):
            raise ValueError(
                f"scene: need rows and columns that are multiples of oversampling = {self.oversampling}, "
                f"got {tuple(scene.shape)}"
            )


def _per_channel(name: str, value: PerChannel) -> Tensor:
    number = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    if number.ndim > 1 or number.numel() == 0:
        raise ValueError(f"{name}: need a number or one per channel, got shape {tuple(number.shape)}")
    if not number.isfinite().all():
        raise ValueError(f"{name}: need finite numbers, got {value}")
    if name in _POSITIVE and (number <= 0).any():
        raise ValueError(f"{name}: need a positive number, got {value}")
    return number


def _over_pixels(value: Tensor, scene: Tensor) -> Tensor:
    return value.to(scene.dtype)[..., None, None]


def _oversampling(values: Mapping[str, Tensor], oversampling: int | None) -> int:
    """The fewest samples per pixel with a pitch of at most wavelength f_number / 2, Nyquist for the PSF."""
    nyquist_um = 0.5e-3 * float((values["wavelength_nm"] * values["f_number"]).min())
    pixel_um = float(values["pixel_um"])
    # The margin lets a pitch that equals the limit up to rounding pass.
    needed = max(1, math.ceil(pixel_um / nyquist_um * (1 - 1e-12)))
    if oversampling is None:
        return needed
    if oversampling < needed:
        raise ValueError(
            f"oversampling: need at least {needed} samples per pixel of {pixel_um} um to resolve a PSF whose "
            f"Nyquist pitch is {nyquist_um:.4g} um, got {oversampling}"
        )
    return oversampling
