"""A lens of one glass with two spherical faces: first-order optics, Seidel aberrations, and the pupil they make.

Light runs to +z; a radius is positive when its centre of curvature lies behind the face. Lengths are in millimetres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from bitlens.encoders import optics

PerWavelength = float | Sequence[float]

_POSITIVE = ("wavelength_nm", "refractive_index", "aperture_mm", "object_distance_mm")


class SellmeierGlass(NamedTuple):
    """n^2 - 1 = sum_i strength_i w^2 / (w^2 - resonance_i), w in micrometres, resonances in square micrometres."""

    strengths: tuple[float, ...]
    resonances_um2: tuple[float, ...]


# Schott AG, data sheet of N-BK7 (glass code 517642): n = 1.51680 at 587.56 nm, Abbe number 64.17.
N_BK7 = SellmeierGlass(
    strengths=(1.03961212, 0.231792344, 1.01046945),
    resonances_um2=(0.00600069867, 0.0200179144, 103.560653),
)


def sellmeier_index(wavelength_nm: float | Tensor, glass: SellmeierGlass = N_BK7) -> Tensor:
    """sqrt(1 + sum_i strength_i w^2 / (w^2 - resonance_i)): refractive index against air, shape of the wavelength.

    Reference: Sellmeier 1872, Ann. Phys. 223, 386, doi:10.1002/andp.18722231105.
    """
    squared = (1e-3 * torch.as_tensor(wavelength_nm, dtype=torch.float64)) ** 2
    total = torch.ones_like(squared)
    for strength, resonance in zip(glass.strengths, glass.resonances_um2, strict=True):
        total = total + strength * squared / (squared - resonance)
    return total.sqrt()


def cauchy_index(wavelength_nm: float | Tensor, coefficients: Tensor) -> Tensor:
    """A + B / w^2 + C / w^4 + ..., w in micrometres, of `coefficients` (term,): shape of the wavelength.

    Reference: Born and Wolf, Principles of Optics, 7th ed. 1999, sec. 2.3.4.
    """
    inverse = (1e-3 * torch.as_tensor(wavelength_nm, dtype=torch.float64)) ** -2
    index = torch.zeros_like(inverse)
    for coefficient in coefficients.flip(0):
        index = index * inverse + coefficient
    return index


class SingletPrescription(NamedTuple):
    """Tensors (...) that broadcast: an infinite radius is a flat face, an infinite distance a collimated beam.

    The stop, `aperture_mm` wide, stands `stop_mm` before the front vertex; the object `object_distance_mm` before it.
    """

    front_radius_mm: Tensor
    back_radius_mm: Tensor
    thickness_mm: Tensor
    refractive_index: Tensor
    aperture_mm: Tensor
    stop_mm: Tensor
    object_distance_mm: Tensor


class FirstOrder(NamedTuple):
    """What the paraxial rays say; distances are from the back vertex.

    `image_slope` is that of the ray through the stop's upper rim; `image_height_mm` and `exit_pupil_mm` those of the
    ray through the stop's centre with slope 1, that is, height per tangent of the field angle.
    """

    image_distance_mm: Tensor
    image_slope: Tensor
    image_height_mm: Tensor
    exit_pupil_mm: Tensor

    @property
    def f_number(self) -> Tensor:
        """1 / (2 |image slope|): the working f-number, of the cone that makes the image."""
        return 0.5 / self.image_slope.abs()


class SeidelSums(NamedTuple):
    """S_I to S_V (...) in millimetres at the stop's rim, for a tangent of the field angle of 1.

    S_I stays over the field; the others go with the tangent t as t, t^2, t^2 and t^3. `field_curvature` is Petzval's.
    """

    spherical: Tensor
    coma: Tensor
    astigmatism: Tensor
    field_curvature: Tensor
    distortion: Tensor


def focal_length_mm(
    *, front_radius_mm: Tensor, back_radius_mm: Tensor, refractive_index: Tensor, thickness_mm: Tensor
) -> Tensor:
    """1 / f = (n - 1) (1/R1 - 1/R2 + (n - 1) d / (n R1 R2)): lensmaker's equation, in air.

    Reference: Hecht, Optics, 5th ed. 2017, sec. 6.1.
    """
    front, back = 1 / front_radius_mm, 1 / back_radius_mm
    excess = refractive_index - 1
    return 1 / (excess * (front - back + excess * thickness_mm * front * back / refractive_index))


def back_focal_distance_mm(
    *, front_radius_mm: Tensor, back_radius_mm: Tensor, refractive_index: Tensor, thickness_mm: Tensor
) -> Tensor:
    """f (1 - (n - 1) d / (n R1)): from the back vertex to the focus of a collimated beam.

    Reference: Hecht, Optics, 5th ed. 2017, sec. 6.1.
    """
    focal = focal_length_mm(
        front_radius_mm=front_radius_mm,
        back_radius_mm=back_radius_mm,
        refractive_index=refractive_index,
        thickness_mm=thickness_mm,
    )
    return focal * (1 - (refractive_index - 1) * thickness_mm / (refractive_index * front_radius_mm))


def first_order(lens: SingletPrescription) -> FirstOrder:
    """Image distance, cone and scale of `lens`, from its paraxial rays through rim and centre of the stop.

    Reference: Welford, Aberrations of Optical Systems, 1986, ch. 3.
    """
    _, back = _paraxial(lens)
    image_distance = -back.height / back.slope_after
    image_height = back.chief_height + back.chief_slope_after * image_distance
    return FirstOrder(image_distance, back.slope_after, image_height, -back.chief_height / back.chief_slope_after)


def seidel_sums(lens: SingletPrescription) -> SeidelSums:
    """S_I = -sum A^2 h D(u/n), S_II = -sum A B h D(u/n), S_III, S_IV, S_V over both faces; D is after minus before.

    A and B are n (h c + u) of the rays through rim and centre of the stop. A positive S_I is undercorrected: the rim
    focuses short of the axis.

    Reference: Welford, Aberrations of Optical Systems, 1986, ch. 8.
    """
    sums = [torch.zeros((), dtype=lens.refractive_index.dtype, device=lens.refractive_index.device)] * 5
    for face in _paraxial(lens):
        rim = face.index_before * (face.height * face.curvature + face.slope_before)
        chief = face.index_before * (face.chief_height * face.curvature + face.chief_slope_before)
        invariant = face.index_before * (face.slope_before * face.chief_height - face.chief_slope_before * face.height)
        bending = face.height * (face.slope_after / face.index_after - face.slope_before / face.index_before)
        petzval = face.curvature * (1 / face.index_after - 1 / face.index_before)
        # Free of the quotient B / A, which is undefined for an object at the face's centre of curvature.
        distortion = chief**3 * face.height * (1 / face.index_after**2 - 1 / face.index_before**2)
        distortion = distortion - (
            face.chief_height * chief * (2 * face.height * chief - face.chief_height * rim) * petzval
        )
        terms = (rim**2 * bending, rim * chief * bending, chief**2 * bending, invariant**2 * petzval, distortion)
        sums = [total - term for total, term in zip(sums, terms, strict=True)]
    return SeidelSums(*sums)


def seidel_path_mm(sums: SeidelSums, *, column: Tensor, row: Tensor, field: tuple[Tensor, Tensor]) -> Tensor:
    """S_I r^4 / 8 + S_II (t.r) r^2 / 2 + S_III (t.r)^2 / 2 + (S_III + S_IV) t^2 r^2 / 4 + S_V t^2 (t.r) / 2.

    Args:
        sums: (...), each broadcast over the pupil's axes.
        column, row: r, coordinates in the stop over its radius, (..., 1, n) and (..., n, 1).
        field: t, tangents (column, row) of the chief ray's angle, (...).

    Returns:
        (..., n, n) of the wavefront ahead of the sphere around the paraxial image point.

    Reference: Welford, Aberrations of Optical Systems, 1986, ch. 8.
    """
    spherical, coma, astigmatism, petzval, distortion = (value[..., None, None] for value in sums)
    across, down = (value[..., None, None] for value in field)
    radius_squared = column**2 + row**2
    along = across * column + down * row
    field_squared = across**2 + down**2
    return (
        spherical * radius_squared**2 / 8
        + coma * along * radius_squared / 2
        + astigmatism * along**2 / 2
        + (astigmatism + petzval) * field_squared * radius_squared / 4
        + distortion * field_squared * along / 2
    )


@final
class SphericalSinglet(nn.Module):
    """A singlet with its stop and a sensor behind it, as pupil phase and PSF at any point of the field.

    Third order: the aberrations are Seidel's, and what they leave out falls by 64 when aperture and field are halved.
    Differentiable in every number; they are held in float64. Index and wavelength may be one per wavelength, with the
    sensor common to all, so that the chromatic change of focus is in the PSF.

    Reference: Welford, Aberrations of Optical Systems, 1986, ch. 8.
    """

    front_radius_mm: Tensor
    back_radius_mm: Tensor
    thickness_mm: Tensor
    refractive_index: Tensor
    aperture_mm: Tensor
    stop_mm: Tensor
    object_distance_mm: Tensor
    sensor_mm: Tensor
    wavelength_nm: Tensor

    def __init__(
        self,
        *,
        front_radius_mm: float,
        back_radius_mm: float,
        thickness_mm: float,
        refractive_index: PerWavelength,
        aperture_mm: float,
        wavelength_nm: PerWavelength,
        sensor_mm: float | None = None,
        stop_mm: float = 0.0,
        object_distance_mm: float = math.inf,
        learn: Sequence[str] = (),
    ) -> None:
        """Takes numbers in the units their names state; see `SingletPrescription` for signs.

        Args:
            sensor_mm: behind the back vertex; default the paraxial image of the first wavelength.
            learn: names of arguments to optimise: they become `nn.Parameter`, the others buffers.

        Raises:
            ValueError: a number out of its range, or an unknown name in `learn`.
        """
        super().__init__()
        numbers: dict[str, PerWavelength] = {
            "front_radius_mm": front_radius_mm,
            "back_radius_mm": back_radius_mm,
            "thickness_mm": thickness_mm,
            "refractive_index": refractive_index,
            "aperture_mm": aperture_mm,
            "stop_mm": stop_mm,
            "object_distance_mm": object_distance_mm,
            "wavelength_nm": wavelength_nm,
        }
        values = {name: torch.as_tensor(value, dtype=torch.float64).clone() for name, value in numbers.items()}
        for name, value in values.items():
            if value.ndim > 1 or value.numel() == 0 or bool(value.isnan().any()):
                raise ValueError(f"{name}: need a number or one per wavelength, got {numbers[name]}")
            if name in _POSITIVE and bool((value <= 0).any()):
                raise ValueError(f"{name}: need a positive number, got {numbers[name]}")
            if name.endswith("radius_mm") and bool((value == 0).any()):
                raise ValueError(f"{name}: need a number other than 0, got {numbers[name]}")
        if bool((values["thickness_mm"] < 0).any()):
            raise ValueError(f"thickness_mm: need at least 0, got {thickness_mm}")
        if sensor_mm is None:
            lens = SingletPrescription(*(values[name] for name in SingletPrescription._fields))
            values["sensor_mm"] = first_order(lens).image_distance_mm.flatten()[0].clone()
        else:
            values["sensor_mm"] = torch.as_tensor(sensor_mm, dtype=torch.float64).clone()
        if not bool(values["sensor_mm"].isfinite()):
            raise ValueError(f"sensor_mm: need a finite number, got {values['sensor_mm'].tolist()}")
        unknown = [name for name in learn if name not in values]
        if unknown:
            raise ValueError(f"learn: need names among {', '.join(values)}, got {unknown[0]!r}")
        for name, value in values.items():
            if name in learn:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def prescription(self) -> SingletPrescription:
        """The lens as tensors, for the functions of this module."""
        return SingletPrescription(*(getattr(self, name) for name in SingletPrescription._fields))

    def first_order(self) -> FirstOrder:
        """Image distance, f-number and scale; see `first_order`."""
        return first_order(self.prescription())

    def seidel_sums(self) -> SeidelSums:
        """S_I to S_V; see `seidel_sums`."""
        return seidel_sums(self.prescription())

    def pupil_grid(self, size: int, *, sample_um: float | Tensor) -> optics.PupilGrid:
        """Coordinates over the stop's radius, of a PSF with `size` samples of pitch `sample_um` on the sensor."""
        sample = torch.as_tensor(sample_um, dtype=torch.float64, device=self.refractive_index.device)
        f_number = self.first_order().f_number
        return optics.pupil_grid(size, sample_um=sample, wavelength_nm=self.wavelength_nm, f_number=f_number)

    def path_waves(self, grid: optics.PupilGrid, field_mm: Tensor | tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """W (..., n, n) in waves, as `optics.pupil` takes it: Seidel's terms and the defocus of the sensor.

        Relative to the point where the paraxial chief ray meets the sensor; distortion is a tilt.

        Args:
            field_mm: (..., 2) paraxial image point (column, row); its leading axes broadcast with the wavelengths.
        """
        field = torch.as_tensor(field_mm, dtype=torch.float64, device=self.refractive_index.device)
        lens = self.prescription()
        rays = first_order(lens)
        # Rays cross between stop and image, and a path error moves the image by + its slope in `grid`.
        sign = torch.sign(rays.image_slope)[..., None, None]
        tangent = (field[..., 0] / rays.image_height_mm, field[..., 1] / rays.image_height_mm)
        path = seidel_path_mm(seidel_sums(lens), column=sign * grid.column, row=sign * grid.row, field=tangent)
        shift = (self.sensor_mm - rays.image_distance_mm) * rays.image_slope**2 / 2
        path = path + shift[..., None, None] * (grid.column**2 + grid.row**2)
        return 1e6 * path / self.wavelength_nm[..., None, None]

    def psf(
        self, size: int, *, sample_um: float | Tensor, field_mm: Tensor | tuple[float, float] = (0.0, 0.0)
    ) -> Tensor:
        """Incoherent PSF (..., size, size) at `field_mm`, sum 1; see `path_waves`."""
        grid = self.pupil_grid(size, sample_um=sample_um)
        amplitude = optics.soft_disc(grid, torch.ones_like(grid.step))
        path = self.path_waves(grid, field_mm)
        return optics.incoherent_psf(optics.pupil(amplitude, path), torch.ones_like(grid.step))

    def extra_repr(self) -> str:
        names = (*SingletPrescription._fields, "sensor_mm", "wavelength_nm")
        return ", ".join(f"{name}={getattr(self, name).tolist()}" for name in names)


class _Face(NamedTuple):
    """One face with both paraxial rays at it."""

    curvature: Tensor
    index_before: Tensor
    index_after: Tensor
    height: Tensor
    slope_before: Tensor
    slope_after: Tensor
    chief_height: Tensor
    chief_slope_before: Tensor
    chief_slope_after: Tensor


def _paraxial(lens: SingletPrescription) -> tuple[_Face, _Face]:
    """Rays through the upper rim of the stop, from the axial object point, and through its centre with slope 1."""
    radius, air = lens.aperture_mm / 2, torch.ones_like(lens.refractive_index)
    vergence = 1 / lens.object_distance_mm
    slope = radius * vergence / (1 - lens.stop_mm * vergence)
    height, chief_height, chief_slope = radius + slope * lens.stop_mm, lens.stop_mm, air
    faces = []
    for curvature, before, after, gap in (
        (1 / lens.front_radius_mm, air, lens.refractive_index, lens.thickness_mm),
        (1 / lens.back_radius_mm, lens.refractive_index, air, 0.0),
    ):
        slope_after = (before * slope - height * curvature * (after - before)) / after
        chief_after = (before * chief_slope - chief_height * curvature * (after - before)) / after
        faces.append(
            _Face(curvature, before, after, height, slope, slope_after, chief_height, chief_slope, chief_after)
        )
        height, chief_height = height + gap * slope_after, chief_height + gap * chief_after
        slope, chief_slope = slope_after, chief_after
    return faces[0], faces[1]
