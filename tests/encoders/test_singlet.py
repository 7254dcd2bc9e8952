"""The singlet against exact ray tracing by Snell's law and the closed forms of thin lenses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens.encoders import optics
from bitlens.encoders.singlet import (
    SingletPrescription,
    SphericalSinglet,
    back_focal_distance_mm,
    cauchy_index,
    first_order,
    focal_length_mm,
    seidel_path_mm,
    seidel_sums,
    sellmeier_index,
)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def lens_of(
    front: float = 60.0,
    back: float = -140.0,
    thickness: float = 4.0,
    index: float = 1.5168,
    aperture: float = 8.0,
    stop: float = 0.0,
    object_distance: float = math.inf,
) -> SingletPrescription:
    values = (front, back, thickness, index, aperture, stop, object_distance)
    return SingletPrescription(*(number(value) for value in values))


LENSES = {
    "biconvex": lens_of(),
    "plano-convex": lens_of(front=math.inf, back=-50.0),
    "convex-plano": lens_of(front=50.0, back=math.inf, aperture=6.0),
    "meniscus behind its stop": lens_of(front=-90.0, back=-31.0, stop=8.0, aperture=5.0),
    "thick, near object": lens_of(thickness=15.0, stop=-3.0, object_distance=260.0),
    "diverging": lens_of(front=-70.0, back=90.0, aperture=6.0),
}
lenses = pytest.mark.parametrize("lens", LENSES.values(), ids=LENSES.keys())


class Rays:
    """Real rays (n, 3) through a lens with its front vertex at the origin; `path` is the optical path so far."""

    def __init__(self, lens: SingletPrescription, pupil: np.ndarray, tangent: np.ndarray) -> None:
        self.lens = SingletPrescription(*(float(value) for value in lens))  # type: ignore[arg-type]
        stop = np.column_stack([pupil * self.lens.aperture_mm / 2, np.full(len(pupil), -self.lens.stop_mm)])
        if math.isinf(self.lens.object_distance_mm):
            direction = np.array([*tangent, 1.0]) / math.sqrt(1 + tangent @ tangent)
            self.direction = np.broadcast_to(direction, stop.shape).copy()
            self.path = (stop - [0, 0, -self.lens.stop_mm]) @ direction
        else:
            away = self.lens.object_distance_mm - self.lens.stop_mm
            source = np.array([*(-tangent * away), -self.lens.object_distance_mm])
            self.direction = (stop - source) / np.linalg.norm(stop - source, axis=1, keepdims=True)
            self.path = np.linalg.norm(stop - source, axis=1)
        self.position = stop
        self.refract(self.lens.front_radius_mm, 0.0, 1.0, self.lens.refractive_index)
        self.refract(self.lens.back_radius_mm, self.lens.thickness_mm, self.lens.refractive_index, 1.0)

    def refract(self, radius: float, vertex: float, before: float, after: float) -> None:
        curvature = 1 / radius
        start = self.position - [0, 0, vertex]
        # |p + t d|^2 curvature = 2 (z + t d_z), the root next to the vertex, in the form that a flat face has too.
        a, b = curvature, self.direction[:, 2] - curvature * (start * self.direction).sum(1)
        c = curvature * (start**2).sum(1) - 2 * start[:, 2]
        distance = c / (b + np.sqrt(b**2 - a * c))
        self.move(distance, before)
        normal = np.array([0, 0, 1.0]) - curvature * (self.position - [0, 0, vertex])
        ratio, cosine = before / after, (normal * self.direction).sum(1)
        bent = np.sqrt(1 - ratio**2 * (1 - cosine**2)) - ratio * cosine
        self.direction = ratio * self.direction + bent[:, None] * normal

    def move(self, distance: np.ndarray, index: float = 1.0) -> None:
        self.position = self.position + distance[:, None] * self.direction
        self.path = self.path + index * distance

    def to_plane(self, z: float) -> np.ndarray:
        self.move((z - self.position[:, 2]) / self.direction[:, 2])
        return self.position[:, :2]

    def to_sphere(self, centre: np.ndarray, through: np.ndarray) -> None:
        start = self.position - centre
        b = (start * self.direction).sum(1)
        reach = np.sqrt(b**2 - (start**2).sum(1) + ((through - centre) ** 2).sum())
        # Of both intersections the one on the side of `through`.
        side = np.sign((through - centre) @ [0, 0, 1.0])
        self.move(-b + side * reach)


def path_ahead_mm(lens: SingletPrescription, pupil: np.ndarray, tangent: np.ndarray) -> np.ndarray:
    """Path of the ray through the stop's centre less that of each ray, both to the paraxial reference sphere."""
    paraxial = first_order(lens)
    back = float(lens.thickness_mm)
    centre = np.array([*(float(paraxial.image_height_mm) * tangent), back + float(paraxial.image_distance_mm)])
    through = np.array([0.0, 0.0, back + float(paraxial.exit_pupil_mm)])
    rays = Rays(lens, np.vstack([[0.0, 0.0], pupil]), tangent)
    rays.to_sphere(centre, through)
    return rays.path[0] - rays.path[1:]


def pupil_points() -> np.ndarray:
    radius, angle = np.meshgrid([0.3, 0.6, 0.8, 1.0], np.arange(8) * math.pi / 4 + 0.1, indexing="ij")
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1, 2)


def scaled(lens: SingletPrescription, scale: float) -> SingletPrescription:
    return lens._replace(aperture_mm=lens.aperture_mm * scale)


def seidel_of(lens: SingletPrescription, pupil: np.ndarray, tangent: np.ndarray) -> np.ndarray:
    points = torch.as_tensor(pupil)[:, :, None, None]
    field = (number(float(tangent[0])), number(float(tangent[1])))
    return seidel_path_mm(seidel_sums(lens), column=points[:, 0], row=points[:, 1], field=field)[:, 0, 0].numpy()


@lenses
def test_spherical_aberration_against_real_rays(lens: SingletPrescription) -> None:
    small = scaled(lens, 0.5)
    zone = np.array([[0.0, 1.0], [0.5, 0.0]])
    exact = path_ahead_mm(small, zone, np.zeros(2))
    spherical = float(seidel_sums(small).spherical)
    assert exact == pytest.approx([spherical / 8, spherical / 128], rel=2e-3)
    # Light from the rim of a converging lens crosses the axis early, by S_I / (2 u^2).
    rays = Rays(small, np.array([[0.0, 1.0]]), np.zeros(2))
    paraxial = first_order(small)
    slope = rays.direction[0, 1] / rays.direction[0, 2]
    crossing = rays.position[0, 2] - rays.position[0, 1] / slope - float(small.thickness_mm)
    assert crossing - float(paraxial.image_distance_mm) == pytest.approx(
        -spherical / (2 * float(paraxial.image_slope) ** 2), rel=5e-3
    )


@lenses
@pytest.mark.parametrize("tangent", [(0.0, 0.1), (0.08, -0.05)])
def test_all_five_against_real_skew_rays(lens: SingletPrescription, tangent: tuple[float, float]) -> None:
    """What third order leaves out is of sixth order in aperture and field: 64 times less at half of both."""
    errors = []
    for scale in (0.5, 0.25):
        field = scale * np.array(tangent)
        exact = path_ahead_mm(scaled(lens, scale), pupil_points(), field)
        third = seidel_of(scaled(lens, scale), pupil_points(), field)
        errors.append(np.abs(exact - third).max() / np.abs(third).max())
    assert errors[0] < 0.01
    # As shares of terms of fourth order: 4 times.
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.02)


@pytest.mark.parametrize("name", ["spherical", "coma", "astigmatism", "field_curvature", "distortion"])
@lenses
def test_none_of_the_five_could_be_missing(lens: SingletPrescription, name: str) -> None:
    field, small = np.array([0.004, 0.008]), scaled(lens, 0.05)
    exact = path_ahead_mm(small, pupil_points(), field)
    sums = seidel_sums(small)
    third = seidel_of(small, pupil_points(), field)
    without = sums._replace(**{name: torch.zeros_like(sums.coma)})
    points = torch.as_tensor(pupil_points())[:, :, None, None]
    missing = seidel_path_mm(without, column=points[:, 0], row=points[:, 1], field=(number(0.004), number(0.008)))
    change = np.abs(missing[:, 0, 0].numpy() - third).max()
    error = np.abs(exact - third).max()
    assert change > 10 * error


def test_seidel_sums_of_a_thin_lens() -> None:
    """With the stop at a thin lens (Welford 1986, ch. 12), by its bending and its conjugates."""
    for front, back, object_mm in ((40.0, -200.0, math.inf), (-80.0, -30.0, 300.0), (55.0, 1000.0, 120.0)):
        lens = lens_of(front=front, back=back, thickness=0.0, index=1.6, aperture=6.0, object_distance=object_mm)
        n, h = 1.6, 3.0
        power = (n - 1) * (1 / front - 1 / back)
        bending = (1 / front + 1 / back) * (n - 1) / power
        slope_before = h / object_mm
        slope_after = slope_before - h * power
        conjugates = (slope_after + slope_before) / (slope_after - slope_before)
        invariant = h
        first = (
            h**4
            * power**3
            / 4
            * (
                (n / (n - 1)) ** 2
                + (n + 2) / (n * (n - 1) ** 2) * (bending - 2 * (n**2 - 1) / (n + 2) * conjugates) ** 2
                - n / (n + 2) * conjugates**2
            )
        )
        second = h**2 * power**2 * invariant / 2 * ((n + 1) / (n * (n - 1)) * bending - (2 * n + 1) / n * conjugates)
        sums = seidel_sums(lens)
        assert float(sums.spherical) == pytest.approx(first, rel=1e-10)
        assert abs(float(sums.coma)) == pytest.approx(abs(second), rel=1e-10)
        assert float(sums.astigmatism) == pytest.approx(invariant**2 * power, rel=1e-10)
        assert float(sums.field_curvature) == pytest.approx(invariant**2 * power / n, rel=1e-10)
        assert abs(float(sums.distortion)) < 1e-12


@pytest.mark.parametrize("index", [1.5, 1.6, 1.8])
def test_shape_of_least_spherical_aberration(index: float) -> None:
    """q = (R2 + R1) / (R2 - R1) = 2 (n^2 - 1) / (n + 2) for a distant object: 0.714 at n = 1.5 (Hecht, sec. 6.3)."""

    def curvatures(shape: Tensor) -> tuple[Tensor, Tensor]:
        difference = 1 / (100.0 * (index - 1))
        return (shape + 1) / 2 * difference, (shape - 1) / 2 * difference

    def spherical(shape: Tensor) -> Tensor:
        front, back = curvatures(shape)
        lens = lens_of(thickness=0.0, index=index)
        return seidel_sums(lens._replace(front_radius_mm=1 / front, back_radius_mm=1 / back)).spherical

    shape = number(0.1)
    for _ in range(3):
        shape = shape.detach().requires_grad_()
        (slope,) = torch.autograd.grad(spherical(shape), shape, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, shape)
        shape = shape - slope / curvature
    assert float(shape.detach()) == pytest.approx(2 * (index**2 - 1) / (index + 2), rel=1e-9)
    if index == 1.5:
        assert float(shape.detach()) == pytest.approx(0.714, abs=5e-4)
        # Longitudinal, in h^2 / f: 1.07 at best, 1.17 curved side first, 4.5 flat side first.
        for value, expected in ((float(shape.detach()), 1.0714), (1.0 - 1e-9, 7 / 6), (-1.0 + 1e-9, 4.5)):
            longitudinal = float(spherical(number(value))) / (2 * (4.0 / 100.0) ** 2)
            assert longitudinal == pytest.approx(expected * 4.0**2 / 100.0, rel=1e-4)


def test_a_concentric_and_an_aplanatic_object_have_no_spherical_aberration() -> None:
    # An aplanatic meniscus: object at R1 + R1 / n inside the ball, here reversed: converging light, first face
    # concentric with it, second aplanatic. The object distance is negative: light converges behind the lens.
    index, front, thickness = 1.5, 30.0, 3.0
    back = (front - thickness) * index / (index + 1)
    lens = lens_of(front=front, back=back, thickness=thickness, index=index, object_distance=-front, aperture=4.0)
    other = lens._replace(back_radius_mm=number(1.05 * back))
    assert abs(float(seidel_sums(lens).spherical)) < 1e-12
    assert abs(float(seidel_sums(other).spherical)) > 1e-6


def test_distortion_agrees_with_the_quotient_form() -> None:
    """S_V = sum (B / A) (S_III + S_IV), from rays traced here."""
    lens = LENSES["meniscus behind its stop"]
    front, back, thickness, index, aperture, stop, _ = (float(value) for value in lens)
    height, slope, chief_height, chief_slope = aperture / 2, 0.0, stop, 1.0
    total = 0.0
    for curvature, before, after in ((1 / front, 1.0, index), (1 / back, index, 1.0)):
        bent = (before * slope - height * curvature * (after - before)) / after
        chief_bent = (before * chief_slope - chief_height * curvature * (after - before)) / after
        rim = before * (height * curvature + slope)
        chief = before * (chief_height * curvature + chief_slope)
        invariant = before * (slope * chief_height - chief_slope * height)
        third = -(chief**2) * height * (bent / after - slope / before)
        fourth = -(invariant**2) * curvature * (1 / after - 1 / before)
        total += chief / rim * (third + fourth)
        height, chief_height = height + thickness * bent, chief_height + thickness * chief_bent
        slope, chief_slope = bent, chief_bent
    assert float(seidel_sums(lens).distortion) == pytest.approx(total, rel=1e-10)


@lenses
def test_first_order_is_the_limit_of_real_rays(lens: SingletPrescription) -> None:
    tiny = scaled(lens, 1e-4)
    paraxial = first_order(tiny)
    rays = Rays(tiny, np.array([[0.0, 1.0]]), np.zeros(2))
    slope = rays.direction[0, 1] / rays.direction[0, 2]
    distance = rays.position[0, 2] - rays.position[0, 1] / slope - float(lens.thickness_mm)
    assert float(paraxial.image_distance_mm) == pytest.approx(distance, rel=1e-6)
    assert float(paraxial.image_slope) == pytest.approx(slope, rel=1e-6)
    chief = Rays(lens, np.zeros((1, 2)), np.array([0.0, 1e-4]))
    image = chief.to_plane(float(lens.thickness_mm + paraxial.image_distance_mm))
    assert float(paraxial.image_height_mm) == pytest.approx(image[0, 1] / 1e-4, rel=1e-6)
    if math.isinf(float(lens.object_distance_mm)):
        shape = {
            "front_radius_mm": lens.front_radius_mm,
            "back_radius_mm": lens.back_radius_mm,
            "refractive_index": lens.refractive_index,
            "thickness_mm": lens.thickness_mm,
        }
        assert float(back_focal_distance_mm(**shape)) == pytest.approx(distance, rel=1e-6)
        assert float(focal_length_mm(**shape)) == pytest.approx(image[0, 1] / 1e-4, rel=1e-6)
        assert float(focal_length_mm(**shape)) == pytest.approx(-float(tiny.aperture_mm) / 2 / slope, rel=1e-6)


def test_index_of_n_bk7() -> None:
    """Schott's data sheet: n_d, n_F, n_C, n_i and the Abbe number."""
    lines = torch.tensor([587.5618, 486.1327, 656.2725, 365.0146], dtype=torch.float64)
    index = sellmeier_index(lines)
    assert index.tolist() == pytest.approx([1.51680, 1.52238, 1.51432, 1.53627], abs=6e-6)
    assert float((index[0] - 1) / (index[1] - index[2])) == pytest.approx(64.17, abs=0.01)


def test_index_by_cauchy() -> None:
    coefficients = torch.tensor([1.5046, 0.0042, 1e-4], dtype=torch.float64)
    assert float(cauchy_index(500.0, coefficients)) == pytest.approx(1.5046 + 0.0042 / 0.25 + 1e-4 / 0.0625, rel=1e-12)


def singlet(**changes: object) -> SphericalSinglet:
    settings: dict[str, object] = {
        "front_radius_mm": 51.0,
        "back_radius_mm": -300.0,
        "thickness_mm": 3.0,
        "refractive_index": 1.5168,
        "aperture_mm": 6.0,
        "wavelength_nm": 587.6,
    }
    return SphericalSinglet(**{**settings, **changes})  # type: ignore[arg-type]


def test_best_focus_lies_between_paraxial_and_marginal_rays() -> None:
    """The wavefront is flattest half way from the paraxial to the marginal focus, on the side of the lens."""
    lens = singlet()
    rays = Rays(lens.prescription(), np.array([[0.0, 1.0]]), np.zeros(2))
    slope = rays.direction[0, 1] / rays.direction[0, 2]
    marginal = rays.position[0, 2] - rays.position[0, 1] / slope - 3.0
    paraxial = float(lens.first_order().image_distance_mm)
    assert marginal < paraxial
    grid = lens.pupil_grid(257, sample_um=2.0)
    disc = optics.soft_disc(grid, number(1.0))
    sensors = torch.linspace(marginal, paraxial, 41, dtype=torch.float64)
    variances = []
    for sensor in sensors:
        lens.sensor_mm.fill_(float(sensor))
        path = lens.path_waves(grid)
        mean = (disc * path).sum() / disc.sum()
        variances.append(float((disc * (path - mean) ** 2).sum()))
    best = float(sensors[int(np.argmin(variances))])
    assert best == pytest.approx((marginal + paraxial) / 2, abs=0.05 * (paraxial - marginal))


@pytest.mark.parametrize("shift_mm", [-0.4, 0.0, 0.4])
@pytest.mark.parametrize("field_mm", [(0.0, 6.0), (-4.0, 3.0)])
def test_the_psf_lies_where_the_rays_land(shift_mm: float, field_mm: tuple[float, float]) -> None:
    """The centroid of the PSF is that of the rays: coma and distortion have the right size and side."""
    focused = singlet(stop_mm=10.0)
    lens = singlet(stop_mm=10.0, sensor_mm=float(focused.sensor_mm) + shift_mm)
    paraxial = lens.first_order()
    tangent = np.array(field_mm) / float(paraxial.image_height_mm)
    # Rings of equal area.
    radius, angle = np.meshgrid(np.sqrt((np.arange(40) + 0.5) / 40), np.arange(24) * math.pi / 12, indexing="ij")
    pupil = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1, 2)
    plane = 3.0 + float(lens.sensor_mm)
    landed = Rays(lens.prescription(), pupil, tangent).to_plane(plane).mean(axis=0)
    exit_pupil = float(paraxial.exit_pupil_mm)
    chief = np.array(field_mm) * (float(lens.sensor_mm) - exit_pupil) / (float(focused.sensor_mm) - exit_pupil)
    expected_um = 1e3 * (landed - chief)
    # The mean slope of W over the pupil, by which a centroid moves, 2 N wavelength for each wave per radius.
    grid = lens.pupil_grid(257, sample_um=2.0)
    disc = optics.soft_disc(grid, number(1.0))
    path = lens.path_waves(grid, field_mm)
    slopes = [path.diff(dim=axis) / grid.step for axis in (-1, -2)]
    weights = [disc[:, 1:] * disc[:, :-1], disc[1:] * disc[:-1]]
    moved = [float((slope * weight).sum() / weight.sum()) for slope, weight in zip(slopes, weights, strict=True)]
    scale_um = 2e-3 * 587.6 * float(paraxial.f_number)
    assert np.linalg.norm(expected_um) > 3.0
    assert np.array(moved) * scale_um == pytest.approx(expected_um, abs=0.06 * float(np.linalg.norm(expected_um)))
    # And the image does go there.
    psf = lens.psf(257, sample_um=1.0, field_mm=field_mm).numpy()
    index = np.arange(257) - 128
    centroid = np.array([(psf.sum(0) * index).sum(), (psf.sum(1) * index).sum()])
    assert centroid == pytest.approx(np.array(moved) * scale_um, abs=0.05 * float(np.linalg.norm(expected_um)))


def test_psf_of_a_slow_singlet_is_diffraction_limited() -> None:
    slow = singlet(aperture_mm=2.0)
    grid = slow.pupil_grid(129, sample_um=7.0)
    assert float(slow.path_waves(grid)[grid.column**2 + grid.row**2 <= 1].abs().max()) < 0.01
    disc = optics.soft_disc(grid, number(1.0))
    ideal = optics.incoherent_psf(disc + 0j, number(1.0))
    torch.testing.assert_close(slow.psf(129, sample_um=7.0), ideal, rtol=0, atol=2e-3 * float(ideal.max()))


def test_colours_focus_apart() -> None:
    """Thin lens: the focal lengths of F and C differ by f / V_d, to the first order in the dispersion."""
    wavelengths = torch.tensor([587.5618, 486.1327, 656.2725], dtype=torch.float64)
    lens = singlet(
        thickness_mm=0.0, refractive_index=sellmeier_index(wavelengths).tolist(), wavelength_nm=wavelengths.tolist()
    )
    distance = lens.first_order().image_distance_mm
    assert float(lens.sensor_mm) == pytest.approx(float(distance[0]), rel=1e-12)
    assert float(distance[2] - distance[1]) == pytest.approx(float(distance[0]) / 64.17, rel=0.01)
    grid = lens.pupil_grid(65, sample_um=4.0)
    path = lens.path_waves(grid)
    assert path.shape == (3, 65, 65)
    shift_um = 1e3 * float(distance[0] - distance[1])
    f_number = float(lens.first_order().f_number[1])
    defocus = optics.defocus_waves(shift_um, wavelength_nm=486.1327, f_number=f_number)
    spherical = 1e6 * float(lens.seidel_sums().spherical[1]) / 8 / 486.1327
    rho_squared = (grid.column**2 + grid.row**2)[1]
    torch.testing.assert_close(path[1], defocus * rho_squared + spherical * rho_squared**2, rtol=1e-9, atol=1e-12)
    psf = lens.psf(65, sample_um=4.0, field_mm=torch.tensor([[[0.0, 0.0]], [[1.0, 2.0]]]))
    assert psf.shape == (2, 3, 65, 65)


def test_gradients() -> None:
    names = (
        *("front_radius_mm", "back_radius_mm", "thickness_mm", "refractive_index", "aperture_mm", "stop_mm"),
        *("object_distance_mm", "sensor_mm", "wavelength_nm"),
    )
    lens = singlet(stop_mm=4.0, object_distance_mm=900.0, learn=names)
    base = {name: value.detach().clone() for name, value in lens.named_parameters()}
    assert set(base) == set(names)
    grid_size = 9

    class Psf(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lens = lens

        def forward(self, field: Tensor) -> tuple[Tensor, ...]:
            psf = self.lens.psf(grid_size, sample_um=2.0, field_mm=field)
            return psf, *self.lens.seidel_sums(), *self.lens.first_order()

    def measured(field: Tensor, *steps: Tensor) -> tuple[Tensor, ...]:
        # Relative steps: 1e-6 nm would drown in rounding.
        moved = {f"lens.{name}": base[name] * (1 + step) for name, step in zip(base, steps, strict=True)}
        return torch.func.functional_call(Psf(), moved, (field,))

    steps = [number(0.0).requires_grad_() for _ in base]
    field = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(measured, (field, *steps), eps=1e-7, atol=1e-4, rtol=1e-4)


def test_a_flat_face_has_finite_gradients() -> None:
    lens = singlet(back_radius_mm=math.inf, learn=["front_radius_mm", "back_radius_mm", "object_distance_mm"])
    lens.psf(17, sample_um=2.0, field_mm=(1.0, 1.0)).max().backward()
    assert float(lens.front_radius_mm.grad) != 0.0
    assert float(lens.back_radius_mm.grad) == 0.0
    assert float(lens.object_distance_mm.grad) == 0.0


def test_errors_name_the_argument() -> None:
    for wrong, message in (
        ({"front_radius_mm": 0.0}, "front_radius_mm: need a number other than 0"),
        ({"refractive_index": -1.5}, "refractive_index: need a positive number"),
        ({"thickness_mm": -1.0}, "thickness_mm: need at least 0"),
        ({"wavelength_nm": []}, "wavelength_nm: need a number or one per wavelength"),
        ({"front_radius_mm": math.inf, "back_radius_mm": math.inf}, "sensor_mm: need a finite number"),
        ({"learn": ["glass"]}, "learn: need names among"),
    ):
        with pytest.raises(ValueError, match=message):
            singlet(**wrong)
