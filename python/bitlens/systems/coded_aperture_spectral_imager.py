"""A snapshot spectral imager (SD-CASSI): a coded aperture, a disperser, and one monochrome sensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from bitlens.encoders import N_BK7, DispersedCodedAperture, LinearEncoder, gaussian_bands, sellmeier_index
from bitlens.encoders.detector import Values, as_planes, as_values, hold, within
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems._checks import check_count, scenes_and_shape
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription

SpectralImagerDesign = Literal["random", "colored", "slits", "open"]
Disperser = Literal["grating", "prism"]

DESCRIPTION = SystemDescription(
    name="coded_aperture_spectral_imager",
    designs=get_args(SpectralImagerDesign),
    formula="z[r, c] = N + n, N ~ Poisson(sum_b photons_b mask[b, r, c - d_b] scene[b, r, c - d_b] + dark)",
    reference="Wagadarikar et al. 2008, eq. 4, doi:10.1364/AO.47.000B44",
)


@final
class DispersedLight(LinearEncoder):
    """y[r, c] = sum_b photons_b mask[b, r, c - d_b] scene[b, r, c - d_b], d_b = dispersion_pixels position_b.

    `DispersedCodedAperture` with light, differentiable in the dispersion too: between whole columns by linear
    interpolation, so that the derivative jumps where a band passes one.
    Shapes: (batch, band, row, column) -> (batch, 1, row, column + spare column).

    Reference: Wagadarikar et al. 2008, eq. 4, doi:10.1364/AO.47.000B44.
    """

    # Two columns are the step between bands of a common design.
    parameter_scale: ClassVar[Mapping[str, float]] = {"mask": 1.0, "dispersion_pixels": 2.0}

    mask: Tensor
    dispersion_pixels: Tensor
    photons: Tensor
    band_positions: Tensor
    spare_columns: Tensor

    def __init__(
        self,
        mask: Tensor | np.ndarray,
        *,
        band_positions: Tensor | np.ndarray,
        dispersion_pixels: float,
        photons: Values,
        largest_dispersion_pixels: float | None = None,
        learn: Sequence[str] = (),
    ) -> None:
        """Takes the aperture's transmission (row, column) or (band, row, column), and where the bands go.

        Args:
            band_positions: (band,) from 0 to 1: each band's place along the dispersion.
            dispersion_pixels: columns from position 0 to position 1.
            photons: photo-electrons of a pixel of 1 behind an open aperture; a number, or one per band.
            largest_dispersion_pixels: for which the sensor has spare columns; default the given dispersion.
            learn: "mask", "dispersion_pixels".

        Raises:
            ValueError: a value out of range or of another shape.
        """
        super().__init__()
        positions = as_values("band_positions", band_positions, "(band,)", (1,)).double()
        self.register_buffer("band_positions", within("band_positions", positions, 0.0, 1.0))
        dispersion = within(
            "dispersion_pixels", as_values("dispersion_pixels", dispersion_pixels, "a number", (0,)), 0.0
        )
        dispersion = dispersion.double()
        largest = float(dispersion) if largest_dispersion_pixels is None else largest_dispersion_pixels
        transmission = as_values("mask", mask, "(row, column) or (band, row, column)", (2, 3)).double()
        light = as_values("photons", photons, "a number or one per band", (0, 1)).double()
        if light.ndim and len(light) != len(positions):
            raise ValueError(f"photons: need a number or {len(positions)}, one per band, got {len(light)}")
        self.register_buffer("photons", within("photons", light, 0.0).expand(len(positions)).clone())
        within("dispersion_pixels", dispersion, 0.0, largest)
        self.register_buffer("spare_columns", torch.tensor(math.ceil(largest)))
        hold(self, {"mask": within("mask", transmission, 0.0, 1.0), "dispersion_pixels": dispersion}, learn)
        self._aperture(positions.tolist())  # checks the number of bands of the mask

    @property
    def parameter_domain(self) -> Mapping[str, tuple[float | None, float | None]]:
        """What an optimiser may reach; the sensor's width limits the dispersion."""
        return {"mask": (0.0, 1.0), "dispersion_pixels": (0.0, float(self.spare_columns))}

    @property
    def sensor_columns(self) -> int:
        """Columns of the sensor."""
        return self.mask.shape[-1] + int(self.spare_columns)

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photo-electrons of light, (batch, 1, row, sensor column)."""
        scene = as_planes("scene", scene, channels=len(self.band_positions))
        scene = scene * self.photons.to(scene.dtype)[:, None, None]
        whole, share = self._columns()
        mask = {"mask": self.mask}
        aperture = self._aperture(whole)
        if not share.requires_grad and not bool(share.any()):
            return self._on_sensor(torch.func.functional_call(aperture, mask, (scene,)), 0)
        share = share.to(scene.dtype)[:, None, None]
        left = torch.func.functional_call(aperture, mask, ((1 - share) * scene,))
        right = torch.func.functional_call(aperture, mask, (share * scene,))
        return self._on_sensor(left, 0) + self._on_sensor(right, 1)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """What each band sees of the measurement, (batch, band, row, column)."""
        rows = self.mask.shape[-2]
        measured = as_planes("measured", measured, channels=1, rows=rows, columns=self.sensor_columns)
        whole, share = self._columns()
        aperture = self._aperture(whole)
        width, share = aperture.measured_columns, share.to(measured.dtype)[:, None, None]
        wide = pad(measured, (0, 1))
        near = aperture.A_adjoint(wide[..., :width])
        back = near + share * (aperture.A_adjoint(wide[..., 1 : 1 + width]) - near)
        return back * (self.photons[:, None, None] * self.mask).to(measured.dtype)

    def _columns(self) -> tuple[list[float], Tensor]:
        columns = self.dispersion_pixels * self.band_positions
        if not self.dispersion_pixels.requires_grad:
            # Rounding, in float32 too, must not make two columns of a whole one: that doubles the work.
            columns = torch.where((columns - columns.round()).abs() < 1e-5, columns.round(), columns)
        whole = columns.detach().floor()
        return whole.tolist(), columns - whole

    def _aperture(self, columns: Sequence[float]) -> DispersedCodedAperture:
        # Open: a check of the learned mask's range would refuse the steps of a finite difference.
        return DispersedCodedAperture(torch.ones_like(self.mask.detach()), n_bands=len(columns), step=columns)

    def _on_sensor(self, plane: Tensor, shift: int) -> Tensor:
        wide = pad(plane, (shift, max(0, self.sensor_columns - plane.shape[-1] - shift)))
        return wide[..., : self.sensor_columns]


@final
class CodedApertureSpectralImager(nn.Module):
    """mean = linear.A(scene) + dark_electrons, photo-electrons; `linear` is a `DispersedLight`: see its shapes.

    Reference: Wagadarikar et al. 2008, eq. 4, doi:10.1364/AO.47.000B44.
    """

    dark_electrons: Tensor

    def __init__(self, linear: DispersedLight, *, dark_electrons: float = 0.0) -> None:
        super().__init__()
        self.linear = linear
        dark = within("dark_electrons", as_values("dark_electrons", dark_electrons, "a number", (0,)), 0.0)
        self.register_buffer("dark_electrons", dark)

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """The linear part, without the dark signal: `linear.A(scene)`."""
        return self.linear.A(scene)

    def A_adjoint(self, measured: Tensor) -> Tensor:
        """The adjoint of `A`: `linear.A_adjoint(measured)`."""
        return self.linear.A_adjoint(measured)

    def forward(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photo-electrons (batch, 1, row, sensor column)."""
        light = self.linear.A(scene)
        return light + self.dark_electrons.to(light.dtype)


def coded_aperture_spectral_imager(
    design: SpectralImagerDesign = "random",
    *,
    shape: tuple[int, int] | None = None,
    n_bands: int | None = None,
    wavelength_range_nm: tuple[float, float] = (450.0, 650.0),
    dispersion_pixels: float = 54.0,
    disperser: Disperser = "grating",
    photons: Values = 200.0,
    dark_electrons: float = 0.05,
    read_electrons: float = 2.4,
    n_scenes: int = 256,
    scenes: Tensor | np.ndarray | None = None,
    learn: tuple[str, ...] = (),
) -> ImagingSystem:
    """z = N + n, N ~ Poisson(sum_b photons_b mask[b, r, c - d_b] scene[b, r, c - d_b] + dark), n ~ Normal(0, read^2).

    "random": half of the aperture open; "colored": a random band-pass filter on every pixel; "slits": one column in
    four; "open": no code. d_b: even steps (grating), or as the index of N-BK7 (prism, most bent first). Compared at
    equal exposure, not equal light: "random" keeps half of it out, "slits" three quarters.

    Args:
        shape, n_bands, dispersion_pixels: default 32 x 32 pixels in 28 bands; columns from the first band to the last.
        photons: one or (band,), per band, of reflectance 1 and no mask; a sensor pixel gets the sum over the bands.
        scenes: (n, band, row, column) reflectances; default `spectral_scenes`.
        learn: "mask" (starts between 0.2 and 0.8), "dispersion_pixels" (half as many columns to spare).

    Reference: Wagadarikar et al. 2008, eq. 4, doi:10.1364/AO.47.000B44; Meng 2020, doi:10.1007/978-3-030-58592-1_12.
    """
    if design not in get_args(SpectralImagerDesign):
        raise ValueError(f"design: need one of {get_args(SpectralImagerDesign)}, got {design!r}")
    bands = None if n_bands is None else check_count("n_bands", n_bands)
    scenes, shape = scenes_and_shape(scenes, shape, n_scenes, default=(32, 32), channels=bands)
    n_bands = bands or (28 if scenes is None else scenes.shape[1])
    wavelength_nm = torch.linspace(*wavelength_range_nm, n_bands, dtype=torch.float64)
    mask = _mask(design, shape, wavelength_nm)
    if "mask" in learn:
        # At 0 and 1 every gradient points out of what a mask can be.
        mask = 0.2 + 0.6 * mask
    linear = DispersedLight(
        mask,
        band_positions=band_positions(wavelength_nm, disperser),
        dispersion_pixels=dispersion_pixels,
        photons=photons,
        largest_dispersion_pixels=1.5 * dispersion_pixels if "dispersion_pixels" in learn else None,
        learn=learn,
    )
    if scenes is None:
        scenes = spectral_scenes(n_scenes, wavelength_nm, shape, generator=torch.Generator().manual_seed(0))
    encoder = CodedApertureSpectralImager(linear, dark_electrons=dark_electrons)
    return ImagingSystem(encoder, PoissonGaussianNoise(read_std=read_electrons), scenes)


def band_positions(wavelength_nm: Tensor, disperser: Disperser) -> Tensor:
    """Where bands (band,) of growing wavelength land, from 0, the first, to 1, the last.

    A grating bends in proportion to the wavelength; a thin prism to n - 1 of its glass, N-BK7, less for a longer one.

    Raises:
        ValueError: an unknown disperser, or wavelengths that do not grow.
    """
    if disperser not in get_args(Disperser):
        raise ValueError(f"disperser: need one of {get_args(Disperser)}, got {disperser!r}")
    if not bool((wavelength_nm.diff() > 0).all()):
        raise ValueError(f"wavelength_nm: need growing wavelengths, got {wavelength_nm.tolist()}")
    if len(wavelength_nm) == 1:
        return torch.zeros_like(wavelength_nm)
    bent = wavelength_nm if disperser == "grating" else sellmeier_index(wavelength_nm, N_BK7)
    return (bent - bent[0]) / (bent[-1] - bent[0])


def spectral_scenes(
    n_scenes: int,
    wavelength_nm: Tensor,
    shape: tuple[int, int],
    *,
    n_materials: int = 4,
    generator: torch.Generator,
) -> Tensor:
    """Reflectances (n, band, row, column) in 0 to 1, float32: patches of materials with smooth spectra, shaded.

    Each point belongs to the nearest of `n_materials` random centres. A spectrum is 1 / (1 + exp(-g)), g a Gaussian
    process of 60 nm correlation length: as smooth as those of natural surfaces. Shading varies over the scene's size.

    Reference: Maloney 1986, doi:10.1364/JOSAA.3.001673 (smoothness of natural reflectances).
    """
    rows, columns = shape
    distance = wavelength_nm[:, None] - wavelength_nm
    covariance = torch.exp(-0.5 * (distance / 60.0) ** 2) + 1e-9 * torch.eye(len(wavelength_nm), dtype=torch.float64)
    root = torch.linalg.cholesky(covariance)

    def white(*size: int) -> Tensor:
        return torch.randn(size, dtype=torch.float64, generator=generator)

    process = white(n_scenes, n_materials, 1) - 0.5 + 1.5 * white(n_scenes, n_materials, len(root)) @ root.T
    spectra = torch.sigmoid(process)
    centres = torch.rand(n_scenes, n_materials, 2, dtype=torch.float64, generator=generator)
    row = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    column = (torch.arange(columns, dtype=torch.float64) + 0.5) / columns
    gap = (row[:, None] - centres[..., :1, None]) ** 2 + (column - centres[..., 1:, None]) ** 2
    material = gap.argmin(dim=1).flatten(1)
    slope = 0.5 * white(n_scenes, 2, 1, 1)
    shade = torch.sigmoid(1.0 + slope[:, 0] * (4 * row[:, None] - 2) + slope[:, 1] * (4 * column - 2))
    patches = spectra.gather(1, material[..., None].expand(-1, -1, len(root))).mT.unflatten(-1, shape)
    return (patches * shade[:, None]).float()


def _mask(design: SpectralImagerDesign, shape: tuple[int, int], wavelength_nm: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if design == "open":
        return torch.ones(shape, dtype=torch.float64)
    if design == "slits":
        return (torch.arange(shape[1]) % 4 == 0).double().expand(shape).clone()
    chance = torch.rand(shape, dtype=torch.float64, generator=generator)
    if design == "random":
        return (chance < 0.5).double()
    first, last = float(wavelength_nm[0]), float(wavelength_nm[-1])
    center = first + (last - first) * chance[..., None]
    width = torch.full_like(center, max(last - first, 1.0) / 2)
    return gaussian_bands(wavelength_nm, center_nm=center, width_nm=width, peak=torch.ones_like(center)).movedim(-1, 0)
