"""A camera as an encoder: scene in, mean photo-electrons on the pixels out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.encoders import optics, sensor
from bitlens.encoders.convolution import never_below_zero
from bitlens.encoders.detector import as_planes, hold
from bitlens.encoders.motion import Boundary, blurred, blurred_back, check_boundary
from bitlens.encoders.zernike import noll_to_radial_azimuthal, zernike_basis

PerChannel = float | Sequence[float]

_POSITIVE = (
    *("wavelength_nm", "f_number", "pixel_um", "aperture_radius"),
    *("exposure_photons", "quantum_efficiency"),
)


@final
class Camera(nn.Module):
    """mean = exposure_photons quantum_efficiency pixels(PSF * scene) + dark_electrons, photo-electrons.

    PSF = |FFT(aperture exp(2 pi i W))|^2, W = defocus rho^2 + sum_j zernike_j Z_j + phase mask, in waves.
    `A` and `A_adjoint` are the linear part, without dark signal. Differentiable in every number and map, which are
    held in float64; the mean has the scene's dtype.

    Shapes: scene (batch, channel, row, column) >= 0, `oversampling` samples per pixel side. "crop" returns only
    pixels whose whole PSF window lies in the scene: `scene_size(patch)` says how large a scene a patch takes.
    "zero" and "circular" return every pixel of a scene with black or with itself around it.
    Accuracy: light that would fall beyond the margin is folded back into the window, a share of about
    0.2 wavelength f_number / margin (all lengths in one unit); the aperture's soft edge adds as much.

    Reference: Goodman, Introduction to Fourier Optics, 3rd ed. 2005, ch. 6.
    """

    wavelength_nm: Tensor
    f_number: Tensor
    pixel_um: Tensor
    aperture_radius: Tensor
    defocus_waves: Tensor
    zernike_waves: Tensor | None
    phase_mask_waves: Tensor
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
            phase_mask_waves: (psf_size, psf_size) over the pupil grid, optical axis at psf_size // 2; default flat.
            exposure_photons: reaching one pixel in the exposure, where the scene is 1, at full aperture.
            oversampling: scene samples per pixel side; default the fewest that resolve the PSF.
            margin_pixels: reach of the PSF window; psf_size = 2 margin_pixels oversampling + 1.
            learn: names of arguments to optimise: they become `nn.Parameter`, the others buffers.

        Raises:
            ValueError: a number out of its range, a map of the wrong shape, an unknown name in `learn`.
        """
        super().__init__()
        boundary = check_boundary(boundary)
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
        self.n_channels = _n_channels(values)
        self.oversampling = _oversampling(values, oversampling)
        self.margin_pixels = margin_pixels
        self.boundary: Boundary = boundary
        self.zernike_indices = tuple(zernike_waves or ())
        values["phase_mask_waves"] = self._phase_map(phase_mask_waves)
        if zernike_waves:
            values["zernike_waves"] = self._zernike_vector(zernike_waves)
        elif "zernike_waves" in learn:
            raise ValueError("zernike_waves: need {Noll index: waves} to learn, got none")
        else:
            self.register_buffer("zernike_waves", None)
        hold(self, values, learn)
        self._most_photons = float(self.exposure_photons.detach().max())
        self.parameter_scale: Mapping[str, float] = {
            **{name: float(getattr(self, name).detach().max()) for name in ("wavelength_nm", "f_number", "pixel_um")},
            "aperture_radius": 0.3,
            "defocus_waves": 2.0,
            "zernike_waves": 0.3,
            "phase_mask_waves": 0.3,
            "exposure_photons": 0.3 * self._most_photons,
            "quantum_efficiency": 0.3,
            "dark_electrons": 0.1 * self._most_photons,
        }

    @property
    def parameter_domain(self) -> Mapping[str, tuple[float | None, float | None]]:
        """What an optimiser may reach: a PSF that the samples resolve, a pupil that the window does, no more photons.

        Where several numbers that share a limit are learned, each gets an equal share of the way to it.
        """
        wavelength, f_number, radius = (
            getattr(self, name).detach() for name in ("wavelength_nm", "f_number", "aperture_radius")
        )
        light, pixel = wavelength * f_number, float(self.pixel_um.detach())
        # Shorter waves, a lower f-number and larger pixels make the PSF finer than its samples; the contrary and a
        # smaller aperture make the pupil coarser: its disc needs two samples in the radius, or its light the window.
        finer = max(0.5e-3 * float(light.min()) * self.oversampling / pixel, 1.0)
        samples = self.psf_size * pixel / self.oversampling * float(radius.min()) / (2e-3 * float(light.max()))
        finer = finer ** (1 / self._n_learned("wavelength_nm", "f_number", "pixel_um"))
        coarser = max(0.5 * samples, 1.0) ** (
            1 / self._n_learned("wavelength_nm", "f_number", "pixel_um", "aperture_radius")
        )
        least, most = float(light.min()) / finer, float(light.max()) * coarser
        return {
            "wavelength_nm": (least / float(f_number.min()), most / float(f_number.max())),
            "f_number": (least / float(wavelength.min()), most / float(wavelength.max())),
            "pixel_um": (pixel / coarser, pixel * finer),
            "aperture_radius": (float(radius.min()) / coarser, 1.0),
            "exposure_photons": (0.0, self._most_photons),
            "quantum_efficiency": (0.0, 1.0),
            "dark_electrons": (0.0, None),
        }

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
        return path + self.phase_mask_waves

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
        scene = self._checked_scene(scene)
        return sensor.photoelectrons(
            self._irradiance(scene, self.psf()),
            exposure_photons=_over_pixels(self.exposure_photons, scene),
            quantum_efficiency=_over_pixels(self.quantum_efficiency, scene),
            dark_electrons=_over_pixels(self.dark_electrons, scene),
        )

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """Photo-electrons (batch, channel, row, column) from light alone, linear in the scene."""
        scene, psf = self._checked_scene(scene), self.psf()
        return never_below_zero(self._irradiance(scene, psf), scene, psf) * self._electrons(scene)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """Each pixel's value over its samples, and the correlation with the PSF: (batch, channel, row, column)."""
        measured = as_planes("measured", measured, channels=self.n_channels)
        light = measured * self._electrons(measured) / self.oversampling**2
        fine = light.repeat_interleave(self.oversampling, dim=-2).repeat_interleave(self.oversampling, dim=-1)
        return blurred_back(fine, self.psf(), self.boundary)

    def extra_repr(self) -> str:
        shown = ("wavelength_nm", "f_number", "pixel_um", "aperture_radius", "defocus_waves")
        numbers = [f"{name}={getattr(self, name).tolist()}" for name in shown]
        learned = tuple(name for name, _ in self.named_parameters())
        return ", ".join(
            [*numbers, f"oversampling={self.oversampling}", f"boundary={self.boundary!r}", f"learn={learned}"]
        )

    def _irradiance(self, scene: Tensor, psf: Tensor) -> Tensor:
        return sensor.integrate_pixels(blurred(scene, psf, self.boundary), self.oversampling)

    def _electrons(self, planes: Tensor) -> Tensor:
        return _over_pixels(self.exposure_photons, planes) * _over_pixels(self.quantum_efficiency, planes)

    def _n_learned(self, *names: str) -> int:
        return max(1, sum(getattr(self, name).requires_grad for name in names))

    def _zernike_vector(self, coefficients: Mapping[int, float]) -> Tensor:
        for index in coefficients:
            noll_to_radial_azimuthal(index)
        return _per_channel("zernike_waves", list(coefficients.values()))

    def _phase_map(self, phase: Tensor | np.ndarray | None) -> Tensor:
        shape = (self.psf_size, self.psf_size)
        if phase is None:
            return torch.zeros(shape, dtype=torch.float64)
        value = torch.as_tensor(phase).detach().to(torch.float64).clone()
        if tuple(value.shape) != shape:
            raise ValueError(f"phase_mask_waves: need shape {shape}, got {tuple(value.shape)}")
        return value

    def _checked_scene(self, scene: Tensor | np.ndarray) -> Tensor:
        scene = as_planes("scene", scene, channels=self.n_channels)
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
        return scene


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


def _n_channels(values: Mapping[str, Tensor]) -> int | None:
    """What the numbers per channel say; None where all channels share them."""
    counts = {name: len(value) for name, value in values.items() if value.ndim}
    if len(set(counts.values())) > 1:
        named = ", ".join(f"{count} for {name}" for name, count in counts.items())
        raise ValueError(f"{', '.join(counts)}: need as many numbers of each, one per channel, got {named}")
    return next(iter(counts.values()), None)


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
