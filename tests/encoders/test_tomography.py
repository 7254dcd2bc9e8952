"""Projections against closed forms, and against sums over explicit overlaps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bitlens.encoders import _tomography_gradients as gradients
from bitlens.encoders import _tomography_loops as loops
from bitlens.encoders import _tomography_tensors as tensors
from bitlens.encoders._tomography_rays import Rays
from bitlens.encoders.tomography import FanProjection, ParallelProjection, filtered_back_projection
from bitlens.kernels.parallel_projection import reference as parallel_reference

PI = math.pi


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def even_angles(views: int) -> Tensor:
    return torch.arange(views, dtype=torch.float64) * PI / views


# ---- an ellipse of density 1: centre, half axes and tilt in mm and radians ----

CENTRE, HALF_AXES, TILT = (6.0, -9.0), (34.0, 19.0), 0.4
FIELD_MM = 100.0


def ellipse(pixels: int, finer: int = 8) -> Tensor:
    """(1, 1, row, column) share of every pixel that the ellipse covers, over FIELD_MM square."""
    count = pixels * finer
    axis = (torch.arange(count, dtype=torch.float64) + 0.5) * FIELD_MM / count - FIELD_MM / 2
    x, y = axis[None, :] - CENTRE[0], axis[:, None] - CENTRE[1]
    along = (x * math.cos(TILT) + y * math.sin(TILT)) / HALF_AXES[0]
    across = (y * math.cos(TILT) - x * math.sin(TILT)) / HALF_AXES[1]
    covered = (along**2 + across**2 < 1).double()[None, None]
    return torch.nn.functional.avg_pool2d(covered, finer)


def chord_means(angles: Tensor, edges_mm: Tensor) -> Tensor:
    """(view, bin) mean chord of the ellipse over parallel bins: Kak and Slaney 1988, eq. 3.6, integrated."""
    a, b = HALF_AXES
    half = torch.sqrt((a * torch.cos(angles - TILT)) ** 2 + (b * torch.sin(angles - TILT)) ** 2)[:, None]
    middle = CENTRE[0] * torch.cos(angles) + CENTRE[1] * torch.sin(angles)
    s = ((edges_mm - middle[:, None]) / half).clamp(-1, 1)
    area = a * b * (s * torch.sqrt(1 - s**2) + torch.asin(s))
    return area.diff(dim=-1) / edges_mm.diff()


def chord(start: tuple[Tensor, Tensor], towards: tuple[Tensor, Tensor]) -> Tensor:
    """Length within the ellipse of lines from `start` in direction `towards`."""

    def turned(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        along = (x * math.cos(TILT) + y * math.sin(TILT)) / HALF_AXES[0]
        return along, (y * math.cos(TILT) - x * math.sin(TILT)) / HALF_AXES[1]

    length = torch.hypot(*towards)
    px, py = turned(start[0] - CENTRE[0], start[1] - CENTRE[1])
    dx, dy = turned(towards[0] / length, towards[1] / length)
    a, half_b, c = dx**2 + dy**2, px * dx + py * dy, px**2 + py**2 - 1
    return 2 * torch.sqrt((half_b**2 - a * c).clamp(min=0)) / a


def assert_ellipse(views: Tensor, truth: Tensor, pixels: int, grazing: float) -> None:
    """Within 0.3 % (relative norm) at 256 pixels, falling like the pixel; rays that graze the edge, where the chord
    rises like a square root, within `grazing` / sqrt(pixels) of the longest chord.
    """
    error = views - truth
    assert float(error.norm() / truth.norm()) < 0.75 / pixels
    assert float(error.abs().max()) < grazing / math.sqrt(pixels) * 2 * max(HALF_AXES)


@pytest.mark.parametrize("pixels", [64, 128, 256])
def test_parallel_projection_of_an_ellipse(pixels: int) -> None:
    angles, width = even_angles(60), FIELD_MM / pixels
    encoder = ParallelProjection(angles, (pixels, pixels), bins=pixels, pixel_mm=width)
    edges = (torch.arange(pixels + 1, dtype=torch.float64) - pixels / 2) * width
    assert_ellipse(encoder.A(ellipse(pixels))[0, 0], chord_means(angles, edges), pixels, grazing=0.32)


@pytest.mark.parametrize("pixels", [64, 256])
def test_fan_projection_of_an_ellipse(pixels: int) -> None:
    angles = torch.arange(45, dtype=torch.float64) * 2 * PI / 45
    source, detector, width = 110.0, 60.0, FIELD_MM / pixels
    # A fan of 68 degrees: at most angles some rays are closer to the rows and others to the columns.
    encoder = FanProjection(
        angles, (pixels, pixels), bins=2 * pixels, source_mm=source, detector_mm=detector, pixel_mm=width,
        bin_mm=1.2 * width, offset_mm=2.0,
    )  # fmt: skip
    finer = 32
    u = (torch.arange(2 * pixels * finer, dtype=torch.float64) + 0.5) / finer - pixels
    u = u * 1.2 * width - 2.0
    cosine, sine = torch.cos(angles)[:, None], torch.sin(angles)[:, None]
    towards = (u * cosine - (source + detector) * sine, u * sine + (source + detector) * cosine)
    truth = chord((source * sine, -source * cosine), towards).unflatten(-1, (-1, finer)).mean(-1)
    # The bins are 0.78 pixels wide at the axis.
    assert_ellipse(encoder.A(ellipse(pixels))[0, 0], truth, pixels, grazing=0.55)


# ---- the definition, pixel by pixel ----


def overlap(a: float, b: float, pixel: int) -> float:
    low, high = min(a, b), max(a, b)
    return max(0.0, min(high, pixel + 1) - max(low, pixel))


def parallel_by_overlaps(image: Tensor, encoder: ParallelProjection) -> Tensor:
    out = torch.zeros(len(encoder.angles_rad), encoder.bins, dtype=torch.float64)
    for view, angle in enumerate(encoder.angles_rad.tolist()):
        cosine, sine, data = math.cos(angle), math.sin(angle), image
        if abs(cosine) < abs(sine):
            cosine, sine, data = sine, cosine, image.T
        rows, columns = data.shape
        for k in range(encoder.bins):
            s = [(k + e - encoder.bins / 2) * encoder.bin_mm - float(encoder.offset_mm) for e in (0, 1)]
            for row in range(rows):
                y = (row - (rows - 1) / 2) * encoder.pixel_mm
                a, b = (((value - y * sine) / cosine) / encoder.pixel_mm + columns / 2 for value in s)
                for column in range(columns):
                    share = overlap(a, b, column) / abs(b - a)
                    out[view, k] += encoder.pixel_mm / abs(cosine) * share * data[row, column]
    return out


def fan_by_overlaps(image: Tensor, encoder: FanProjection) -> Tensor:
    out = torch.zeros(len(encoder.angles_rad), encoder.bins, dtype=torch.float64)
    source, distance = float(encoder.source_mm), float(encoder.source_mm + encoder.detector_mm)
    for view, angle in enumerate(encoder.angles_rad.tolist()):
        cosine, sine = math.cos(angle), math.sin(angle)
        for k in range(encoder.bins):
            u = [(k + e - encoder.bins / 2) * encoder.bin_mm - float(encoder.offset_mm) for e in (0, 0.5, 1)]
            start, data = (source * sine, -source * cosine), image
            towards = [(v * cosine - distance * sine, v * sine + distance * cosine) for v in u]
            if abs(towards[1][0]) > abs(towards[1][1]):
                start, data, towards = start[::-1], image.T, [t[::-1] for t in towards]
            rows, columns = data.shape
            path = encoder.pixel_mm * math.hypot(*towards[1]) / abs(towards[1][1])
            for row in range(rows):
                down = (row - (rows - 1) / 2) * encoder.pixel_mm - start[1]
                if down * towards[1][1] <= 0:
                    continue
                a, b = (
                    (start[0] + t[0] / t[1] * down) / encoder.pixel_mm + columns / 2 for t in (towards[0], towards[2])
                )
                for column in range(columns):
                    out[view, k] += path * overlap(a, b, column) / abs(b - a) * data[row, column]
    return out


PARALLEL = ParallelProjection(
    torch.linspace(-4.0, 4.0, 9), (5, 8), bins=7, pixel_mm=0.7, bin_mm=0.9, offset_mm=0.3
)  # fmt: skip
FAN = FanProjection(
    torch.linspace(-4.0, 4.0, 9), (5, 8), bins=12, pixel_mm=0.7, bin_mm=1.2, source_mm=3.5, detector_mm=4.5,
    offset_mm=0.3,
)  # fmt: skip


def test_parallel_projection_is_the_sum_of_overlaps() -> None:
    image = random(5, 8)
    truth = parallel_by_overlaps(image, PARALLEL)
    torch.testing.assert_close(PARALLEL.A(image[None, None])[0, 0], truth, rtol=1e-12, atol=1e-12)


def test_fan_projection_is_the_sum_of_overlaps() -> None:
    image = random(5, 8)
    torch.testing.assert_close(FAN.A(image[None, None])[0, 0], fan_by_overlaps(image, FAN), rtol=1e-12, atol=1e-12)


# ---- symmetries and limits ----


def test_every_view_has_the_mass_of_the_scene() -> None:
    encoder = ParallelProjection(torch.linspace(-7, 7, 41), (9, 14), bins=20, pixel_mm=1.3, bin_mm=1.9, offset_mm=-0.4)
    scene = random(2, 3, 9, 14)
    mass = scene.sum((-2, -1)) * 1.3**2
    torch.testing.assert_close(encoder(scene).sum(-1) * 1.9, mass[..., None].expand(-1, -1, 41), rtol=1e-11, atol=1e-11)


def test_a_quarter_turn_of_the_scene_is_one_of_the_angles() -> None:
    scene, angles = random(1, 1, 9, 14), torch.linspace(0.1, 3.0, 11)
    straight = ParallelProjection(angles, (9, 14), bins=19, offset_mm=0.3)
    # rot90 takes (x, y), y down, to (y, -x).
    turned = ParallelProjection(angles - PI / 2, (14, 9), bins=19, offset_mm=0.3)
    torch.testing.assert_close(turned(torch.rot90(scene, 1, (-2, -1))), straight(scene), rtol=1e-5, atol=1e-5)
    fan = {"bins": 19, "source_mm": 12.0, "detector_mm": 7.0, "offset_mm": 0.3}
    straight_fan = FanProjection(angles.double(), (9, 14), **fan)
    turned_fan = FanProjection(angles.double() - PI / 2, (14, 9), **fan)
    torch.testing.assert_close(turned_fan(torch.rot90(scene, 1, (-2, -1))), straight_fan(scene), rtol=1e-10, atol=1e-10)


def test_half_a_turn_reverses_the_detector() -> None:
    scene, angles = random(1, 1, 9, 14), torch.linspace(0.1, 3.0, 11, dtype=torch.float64)
    here = ParallelProjection(angles, (9, 14), bins=19, bin_mm=0.8)
    there = ParallelProjection(angles + PI, (9, 14), bins=19, bin_mm=0.8)
    torch.testing.assert_close(there(scene), here(scene).flip(-1), rtol=1e-11, atol=1e-11)


def test_a_far_source_gives_parallel_rays() -> None:
    scene, angles = random(1, 1, 9, 14), torch.linspace(0.05, 6.0, 17, dtype=torch.float64)
    parallel = ParallelProjection(angles, (9, 14), bins=19, bin_mm=0.8, offset_mm=0.1)
    far = FanProjection(angles, (9, 14), bins=19, bin_mm=0.8, offset_mm=0.1, source_mm=1e7, detector_mm=0.0)
    torch.testing.assert_close(far(scene), parallel(scene), rtol=1e-4, atol=1e-4)


def test_fourier_slice_theorem() -> None:
    """The transform of a view is the scene's transform along its angle, for a Gaussian of 3 mm rms width."""
    axis = torch.arange(64, dtype=torch.float64) - 31.5
    blob = torch.exp(-(((axis - 4) / 3) ** 2)[None, :] / 2 - (((axis + 6) / 3) ** 2)[:, None] / 2)[None, None]
    angles = even_angles(12)
    view = ParallelProjection(angles, (64, 64), bins=64)(blob)[0, 0]
    frequency = torch.tensor([0.0, 0.01, 0.03, 0.06], dtype=torch.float64)
    transform = torch.exp(-2j * PI * frequency[:, None] * axis) @ view.to(torch.complex128).T
    place = 4 * torch.cos(angles) - 6 * torch.sin(angles)
    size = 2 * PI * 9 * torch.exp(-2 * (PI * 3 * frequency) ** 2)
    truth = size[:, None] * torch.exp(-2j * PI * frequency[:, None] * place)
    # Boxes for pixel, shadow and bin: at 0.06 cycles per mm they take at most 1.5 times (pi 0.06)^2 / 3 / 2.
    assert float((transform - truth).abs()[:3].max()) < 5e-3 * 2 * PI * 9
    assert float((transform - truth).abs().max()) < 1e-2 * 2 * PI * 9


# ---- numerics ----


def backproject_in_torch(measured: Tensor, rays: Rays, shape: tuple[int, int]) -> Tensor:
    return parallel_reference.backproject(measured, loops._views(rays), shape)


@pytest.mark.parametrize("encoder", [PARALLEL, FAN], ids=["parallel", "fan"])
def test_loops_and_torch_agree(encoder: ParallelProjection | FanProjection) -> None:
    scene, measured = random(3, 5, 8), random(3, 9, encoder.bins, seed=1)
    rays = encoder._rays() if isinstance(encoder, ParallelProjection) else encoder._rays_and_scale()[0]
    edges = gradients._at_edges(random(9, encoder.bins, seed=2), rays)[:, None]
    back = tensors.adjoint_in_torch if rays.fan else backproject_in_torch
    pairs = (
        (loops.bin_sums(scene, rays), tensors.sums_in_torch(scene, rays)),
        (loops.bin_sums_adjoint(measured, rays, (5, 8)), back(measured, rays, (5, 8))),
        (edges * loops._slopes_on_cpu(scene, rays), edges * tensors.slopes_in_torch(scene, rays)),
    )
    for own, torch_s in pairs:
        assert float(own.abs().max()) > 0.1
        torch.testing.assert_close(own, torch_s, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("beam", ["parallel", "fan"])
def test_bit_for_bit_whatever_the_threads(beam: str) -> None:
    angles = even_angles(90)
    encoder: ParallelProjection | FanProjection
    if beam == "parallel":
        encoder = ParallelProjection(angles, (64, 60), bins=70, learn=("angles_rad",))
    else:
        encoder = FanProjection(angles, (64, 60), bins=70, source_mm=80, detector_mm=60, learn=("angles_rad",))
    scene = torch.rand(2, 1, 64, 60, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            view = encoder(scene)
            (slope,) = torch.autograd.grad(view.square().sum(), encoder.angles_rad)
            found.append((view.detach(), encoder.A_adjoint(view).detach(), slope))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("encoder", [PARALLEL, FAN], ids=["parallel", "fan"])
def test_higher_derivatives(encoder: ParallelProjection | FanProjection) -> None:
    scene = random(1, 1, 5, 8).requires_grad_()
    measured = random(1, 1, 9, encoder.bins, seed=1).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: encoder.A(x).square(), (scene,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda z: encoder.A_adjoint(z).square(), (measured,), fast_mode=True)


@pytest.mark.parametrize("encoder", [PARALLEL, FAN], ids=["parallel", "fan"])
def test_adjoint_is_differentiable_in_the_geometry(encoder: ParallelProjection | FanProjection) -> None:
    measured = random(1, 1, 9, encoder.bins, seed=1)
    for name, value in encoder.named_buffers():
        moved = value.detach().clone().requires_grad_()

        def back(value: Tensor, name: str = name) -> Tensor:
            return torch.func.functional_call(_Adjoint(encoder), {f"encoder.{name}": value}, (measured,))

        assert torch.autograd.gradcheck(back, (moved,), eps=1e-6, atol=1e-5, rtol=1e-4), name


class _Adjoint(torch.nn.Module):
    def __init__(self, encoder: ParallelProjection | FanProjection) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, measured: Tensor) -> Tensor:
        return self.encoder.A_adjoint(measured)


@pytest.mark.parametrize("encoder", [PARALLEL, FAN], ids=["parallel", "fan"])
def test_forward_and_reverse_jacobians_agree(encoder: ParallelProjection | FanProjection) -> None:
    scene = random(1, 1, 5, 8)
    names = [name for name, _ in encoder.named_buffers()]

    def mean(values: tuple[Tensor, ...]) -> Tensor:
        return torch.func.functional_call(encoder, dict(zip(names, values[1:], strict=True)), (values[0],))

    point = (scene, *(value.clone() for _, value in encoder.named_buffers()))
    forth, back = torch.func.jacfwd(mean)(point), torch.func.jacrev(mean)(point)
    for name, one, other in zip(("scene", *names), forth, back, strict=True):
        assert float(one.abs().max()) > 1e-3, name
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_second_derivatives_in_the_geometry_are_refused() -> None:
    angles = PARALLEL.angles_rad.clone().requires_grad_()
    scene = random(1, 1, 5, 8).requires_grad_()
    mean = torch.func.functional_call(PARALLEL, {"angles_rad": angles}, (scene,))
    (slope,) = torch.autograd.grad(mean.square().sum(), angles, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        slope.sum().backward()


def test_not_a_number_does_no_harm() -> None:
    scene = random(1, 1, 5, 8)
    for encoder in (PARALLEL, FAN):
        angles = encoder.angles_rad.clone()
        angles[3] = math.nan
        view = torch.func.functional_call(encoder, {"angles_rad": angles}, (scene,))
        assert bool(view[0, 0, 3].isnan().all())
        assert bool(view[0, 0, 4:].isfinite().all())


# ---- use ----


def test_filtered_back_projection_of_an_ellipse() -> None:
    angles = even_angles(180)
    image = ellipse(128)
    encoder = ParallelProjection(angles, (128, 128), bins=140, pixel_mm=FIELD_MM / 128, offset_mm=0.7)
    found = filtered_back_projection(encoder(image), encoder)
    inner = -torch.nn.functional.max_pool2d(-image, 9, 1, 4) > 0.999
    outer = torch.nn.functional.max_pool2d(image, 9, 1, 4) < 1e-3
    assert float((found[inner] - 1).abs().max()) < 0.05
    assert abs(float(found[inner].mean()) - 1) < 2e-3
    # The corners lie outside the circle that all views see.
    row = torch.arange(128) - 63.5
    disc = (torch.hypot(row[:, None], row[None, :]) < 60)[None, None]
    assert float(found[outer & disc].abs().max()) < 0.05
    assert abs(float(found[outer & disc].mean())) < 2e-3
    once_more = filtered_back_projection(encoder(image).float(), encoder, window="hann")
    assert once_more.dtype == torch.float32
    assert abs(float(once_more[inner].mean()) - 1) < 2e-3


def test_axis_of_rotation_is_found_by_its_gradient() -> None:
    """Gauss-Newton on one number, from 2 bins off."""
    image = ellipse(64)
    settings = {"shape": (64, 64), "bins": 70, "pixel_mm": FIELD_MM / 64}
    measured = ParallelProjection(even_angles(40), offset_mm=3.3, **settings)(image)
    encoder = ParallelProjection(even_angles(40), offset_mm=0.0, **settings)
    offset = torch.zeros((), dtype=torch.float64)
    for _ in range(12):
        mean, slope = torch.func.jvp(
            lambda value: torch.func.functional_call(encoder, {"offset_mm": value}, (image,)),
            (offset,),
            (torch.ones_like(offset),),
        )
        offset = offset + ((measured - mean) * slope).sum() / slope.square().sum()
    assert float(offset) == pytest.approx(3.3, abs=1e-6)


def test_offsets_may_differ_between_the_views() -> None:
    scene, angles = random(1, 1, 9, 14), torch.linspace(0.1, 3.0, 3, dtype=torch.float64)
    together = ParallelProjection(angles, (9, 14), bins=19, offset_mm=[0.1, -0.2, 0.7])(scene)
    for view, offset in enumerate((0.1, -0.2, 0.7)):
        alone = ParallelProjection(angles[view : view + 1], (9, 14), bins=19, offset_mm=offset)(scene)
        assert torch.equal(alone[0, 0, 0], together[0, 0, view])


def test_arguments_are_checked() -> None:
    def make(**changes: object) -> ParallelProjection:
        return ParallelProjection(**({"angles_rad": [0.0, 1.0], "shape": (4, 5), "bins": 6} | changes))

    wrong = (
        ({"angles_rad": 0.0}, r"angles_rad: need shape \(view,\), got \(\)"),
        ({"angles_rad": [math.nan]}, "angles_rad: need finite numbers"),
        ({"bins": 0}, "bins: need at least 1, got 0"),
        ({"pixel_mm": -1.0}, "pixel_mm: need a positive number, got -1.0"),
        ({"offset_mm": [0.0] * 3}, "offset_mm: need one number or 2, one per view"),
        ({"learn": ("angle",)}, "learn: need names among angles_rad, offset_mm, got 'angle'"),
        ({"shape": (0, 3)}, r"shape: need \(row, column\) of an image, got \(0, 3\)"),
    )
    for changes, message in wrong:
        with pytest.raises(ValueError, match=message):
            make(**changes)
    with pytest.raises(ValueError, match=r"scene: need shape \(batch, channel, row, column\) with \(4, 5\) last"):
        make()(torch.zeros(1, 1, 5, 4))
    with pytest.raises(ValueError, match=r"measured: need shape \(batch, channel, view, bin\) with \(2, 6\) last"):
        make().A_adjoint(torch.zeros(1, 1, 5, 4))
    with pytest.raises(TypeError, match=r"scene: need float32 or float64 values, got int64"):
        make()(torch.zeros(1, 1, 4, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"source_mm: need more than 3\.20156, the image's half diagonal, got 3"):
        FanProjection([0.0], (4, 5), bins=6, source_mm=3, detector_mm=1)
    with pytest.raises(ValueError, match="bins: need a fan within 45 degrees of its axis"):
        FanProjection([0.0], (4, 5), bins=60, source_mm=4, detector_mm=1)
    with pytest.raises(ValueError, match="window: need one of"):
        filtered_back_projection(torch.zeros(1, 1, 2, 6), make(), window="sinc")


def test_numpy_and_empty_batches() -> None:
    scene = random(1, 1, 5, 8)
    for encoder in (PARALLEL, FAN):
        assert torch.equal(encoder.A(scene.numpy()), encoder(scene))
        assert encoder(scene[:0]).shape == (0, 1, 9, encoder.bins)
        assert encoder.A_adjoint(encoder(scene[:0])).shape == (0, 1, 5, 8)
        assert torch.equal(encoder(scene.mT.contiguous().mT), encoder(scene))
