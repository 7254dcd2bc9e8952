"""Parallel projections on every backend: against explicit overlaps, each other, and what they must do at the rims."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bitlens import ops
from bitlens.encoders import _tomography_gradients as gradients
from bitlens.encoders._tomography_rays import Rays
from bitlens.encoders.tomography import ParallelProjection
from bitlens.kernels.parallel_projection import op
from bitlens.kernels.parallel_projection.op import Views

sys.path.insert(0, str(Path(__file__).parent))
import contract
from contract import Case, running

BACKENDS = ("cpu", "numba", "cuda_on_cpu")
# Running sums of some hundred numbers cancel in every difference, and two orders of adding them differ by that.
CANCELLED = 1e-11

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_dtype = pytest.mark.parametrize("dtype", contract.DTYPES)


def encoder(views: int, shape: tuple[int, int], bins: int, bin_mm: float = 1.0) -> ParallelProjection:
    """Angles all around, so that bins run with and against rows and columns."""
    angles = torch.linspace(-4.0, 4.0, views, dtype=torch.float64)
    return ParallelProjection(angles, shape, bins=bins, bin_mm=bin_mm, offset_mm=0.3)


# Narrow, unit and wide bins, of which the last leave the 16 entries of a window; more bins than are summed at once.
ENCODERS = {
    # Where a pack's places just fit, or no longer do, into a window of 16 entries: steps of 1.4 to 2.9 and 0.35 to 0.7.
    **{f"bins of {width}": encoder(9, (40, 31), 26, width) for width in (1.98, 1.99, 2.0, 2.1)},
    "bins of half a pixel": encoder(9, (20, 40), 60, 0.5),
    "narrow": encoder(9, (5, 8), 30, 0.3),
    "square": encoder(16, (33, 33), 40),
    "wide": encoder(9, (40, 21), 11, 4.0),
    "long": encoder(5, (3, 700), 1300, 0.6),
    "small detector": encoder(9, (24, 30), 6),
    "one pixel": encoder(9, (1, 1), 1),
}
every_encoder = pytest.mark.parametrize("layer", ENCODERS.values(), ids=ENCODERS.keys())


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def views_of(layer: ParallelProjection) -> Views:
    rays = layer._rays()
    return Views(*rays.intercept.unbind(-1), rays.slope[..., 0], rays.inside[..., 0], rays.factor)


def case(layer: ParallelProjection) -> Case:
    """Projections of images with their gradients; the derivatives in the rays have tests of their own."""
    rays = layer._rays()
    return Case(
        lambda image: gradients.project(image, Rays(*(value.to(image.device) for value in rays))),
        lambda dtype, generator: (
            torch.randn((3, *layer.shape), generator=generator, dtype=torch.float64).to(dtype),
        ),
        float64_tolerance=CANCELLED,
    )  # fmt: skip


def by_overlaps(image: Tensor, views: Views, n_bins: int) -> Tensor:
    """(view, bin) as an explicit sum over the shares of pixels between the edges of bins."""
    out = torch.zeros(len(views.factor), n_bins, dtype=torch.float64)
    for view in range(len(out)):
        for part, lines in enumerate((image, image.T)):
            if not bool(views.inside[part, view]):
                continue
            pixel = torch.arange(lines.shape[1], dtype=torch.float64)
            for line, values in enumerate(lines):
                place = float(views.start[part, view] + views.slope[part, view] * line)
                for b in range(n_bins):
                    left, right = (place + float(views.width[part, view]) * edge for edge in (b, b + 1))
                    share = pixel.add(1).clamp(max=max(left, right)) - pixel.clamp(min=min(left, right))
                    out[view, b] += math.copysign(1, right - left) * (share.clamp(min=0) * values).sum()
    return out * views.factor[:, None]


# ---- truth ----


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("name", ["narrow", "wide", "small detector", "one pixel"])
def test_projection_is_the_sum_of_overlaps(backend: str, name: str) -> None:
    layer = ENCODERS[name]
    image = random(*layer.shape)
    truth = by_overlaps(image, views_of(layer), layer.bins)
    assert float(truth.abs().max()) > 0.1
    with running(backend):
        found = op.project(image[None], views_of(layer), layer.bins)[0]
    torch.testing.assert_close(found, truth, rtol=CANCELLED, atol=CANCELLED)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@every_encoder
def test_backprojection_is_the_adjoint(backend: str, layer: ParallelProjection) -> None:
    image, bins = random(2, *layer.shape), random(2, len(layer.angles_rad), layer.bins, seed=1)
    with running(backend):
        forth = op.project(image, views_of(layer), layer.bins)
        back = op.backproject(bins, views_of(layer), layer.shape)
    gap = (forth * bins).sum() - (image * back).sum()
    assert abs(float(gap)) <= 1e-12 * float(forth.norm() * bins.norm())
    assert float(forth.norm()) > 0.1


# ---- the contract ----


@every_backend
@every_dtype
@every_encoder
def test_against_the_reference(layer: ParallelProjection, backend: str, dtype: torch.dtype) -> None:
    contract.check_against_reference(case(layer), backend, dtype)


@every_backend
def test_gradcheck(backend: str) -> None:
    contract.check_gradcheck(case(encoder(7, (5, 8), 9)), backend, second=True)


@every_backend
@every_dtype
def test_non_contiguous(backend: str, dtype: torch.dtype) -> None:
    contract.check_non_contiguous(case(ENCODERS["square"]), backend, dtype)


@pytest.mark.parametrize("backend", ["cpu", "numba"])
def test_threads_agree(backend: str) -> None:
    contract.check_threads_agree(case(encoder(60, (64, 50), 70)), backend)


@every_dtype
@every_encoder
def test_instruction_sets_agree(layer: ParallelProjection, dtype: torch.dtype) -> None:
    tolerance = CANCELLED if dtype == torch.float64 else 2 * torch.finfo(dtype).eps
    contract.check_instruction_sets_agree(case(layer), dtype, tolerance)


@every_backend
def test_empty_batch(backend: str) -> None:
    layer = ENCODERS["square"]
    with running(backend):
        assert op.project(random(0, 33, 33), views_of(layer), 40).shape == (0, 16, 40)
        assert op.backproject(random(0, 16, 40), views_of(layer), (33, 33)).shape == (0, 33, 33)


@every_backend
@every_dtype
def test_a_batch_is_its_images_bit_for_bit(backend: str, dtype: torch.dtype) -> None:
    """Also where a batch is done in parts."""
    layer = encoder(3, (300, 300), 310)
    image, bins = random(13, 300, 300, dtype=dtype), random(13, 3, 310, seed=1, dtype=dtype)
    with running(backend):
        forth = op.project(image, views_of(layer), layer.bins)
        back = op.backproject(bins, views_of(layer), layer.shape)
        for i in (0, 12):
            assert torch.equal(op.project(image[i : i + 1], views_of(layer), layer.bins)[0], forth[i])
            assert torch.equal(op.backproject(bins[i : i + 1], views_of(layer), layer.shape)[0], back[i])


# ---- the rims ----


@every_backend
def test_a_long_line(backend: str) -> None:
    """A line of 65,537 pixels of 1 keeps each bin's sum to rounding."""
    layer = ParallelProjection([0.0], (1, 65_537), bins=65_537)
    with running(backend):
        found = layer.A(torch.ones(1, 1, 1, 65_537))
    torch.testing.assert_close(found, torch.ones(1, 1, 1, 65_537), rtol=1e-6, atol=1e-6)


@every_backend
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_shows(backend: str, value: float) -> None:
    """In every bin that the pixel reaches and every pixel that the bin reaches, and not in an image beside it."""
    layer = ENCODERS["square"]
    views = views_of(layer)
    pixel, a_bin = torch.zeros(1, 33, 33, dtype=torch.float64), torch.zeros(1, 16, 40, dtype=torch.float64)
    pixel[0, 15, 16], a_bin[0, 3, 20] = 1.0, 1.0
    with ops.use_backend("reference"):
        bins_reached = op.project(pixel, views, layer.bins)[0].abs() > 1e-9
        pixels_reached = op.backproject(a_bin, views, layer.shape)[0].abs() > 1e-9
    image, bins = random(2, 33, 33), random(2, 16, 40, seed=1)
    image[0, 15, 16], bins[0, 3, 20] = value, value
    with running(backend):
        forth = op.project(image, views, layer.bins)
        back = op.backproject(bins, views, layer.shape)
    assert int(bins_reached.sum()) > 10
    assert int(pixels_reached.sum()) > 10
    assert not bool(forth[0][bins_reached].isfinite().any())
    assert not bool(back[0][pixels_reached].isfinite().any())
    assert bool(forth[1].isfinite().all())
    assert bool(back[1].isfinite().all())


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_an_angle_that_is_not_a_number_spoils_its_view_alone(backend: str) -> None:
    layer = encoder(4, (9, 7), 12)
    layer.angles_rad[1] = math.nan
    with running(backend):
        found, back = layer.A(random(1, 1, 9, 7))[0, 0], layer.A_adjoint(random(1, 1, 4, 12))
    assert bool(found[1].isnan().all())
    assert bool(found[[0, 2, 3]].isfinite().all())
    assert bool(back.isnan().all())


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_a_view_in_no_part_gives_and_takes_nothing(backend: str) -> None:
    views = views_of(encoder(4, (9, 7), 12))
    views.inside[:, 2] = False
    image, bins = random(1, 9, 7), torch.zeros(1, 4, 12, dtype=torch.float64)
    bins[0, 2] = 1.0
    with running(backend):
        forth, back = op.project(image, views, 12), op.backproject(bins, views, (9, 7))
    assert float(forth[0, 2].abs().max()) == 0.0
    assert float(forth[0, 1].abs().max()) > 0.0
    assert float(back.abs().max()) == 0.0


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_far_from_the_detector_there_is_nothing(backend: str) -> None:
    for offset in (-500.0, 500.0):
        layer = ParallelProjection(torch.linspace(-4, 4, 9), (9, 7), bins=12, offset_mm=offset)
        with running(backend):
            assert float(layer.A(torch.ones(1, 1, 9, 7)).abs().max()) == 0.0
            assert float(layer.A_adjoint(torch.ones(1, 1, 9, 12)).abs().max()) == 0.0


# ---- memory, devices and arguments ----


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_lazily_negated_memory(backend: str) -> None:
    views = views_of(ENCODERS["square"])
    image, bins = random(1, 33, 33), random(1, 16, 40, seed=1)
    with running(backend):
        assert torch.equal(op.project(torch._neg_view(image), views, 40), op.project(-image, views, 40))
        back = op.backproject(torch._neg_view(bins), views, (33, 33))
        assert torch.equal(back, op.backproject(-bins, views, (33, 33)))


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_geometry_in_single_precision(backend: str) -> None:
    views = views_of(ENCODERS["square"])
    single = Views(*(value if value.dtype == torch.bool else value.float() for value in views))
    image = random(1, 33, 33)
    with running(backend):
        torch.testing.assert_close(op.project(image, single, 40), op.project(image, views, 40), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_no_views_give_nothing(backend: str) -> None:
    none = Views(*(value[..., :0] for value in views_of(ENCODERS["square"])))
    with running(backend):
        assert op.project(random(1, 33, 33), none, 40).shape == (1, 0, 40)
        assert torch.equal(op.backproject(random(1, 0, 40), none, (3, 4)), torch.zeros(1, 3, 4, dtype=torch.float64))


def test_shapes_on_no_device() -> None:
    layer = encoder(5, (9, 7), 12).to("meta")
    assert layer.A(torch.zeros(2, 1, 9, 7, device="meta")).shape == (2, 1, 5, 12)
    assert layer.A_adjoint(torch.zeros(2, 1, 5, 12, device="meta")).shape == (2, 1, 9, 7)
    layer = encoder(5, (9, 7), 12)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layer.A(torch.zeros(2, 1, 9, 7)).shape == (2, 1, 5, 12)


def test_bad_arguments() -> None:
    layer = encoder(5, (9, 7), 12)
    views, image, bins = views_of(layer), random(1, 9, 7), random(1, 5, 12)
    error = contract.expect_error
    error(ValueError, ("scene", "angles_rad", "meta"), lambda: layer.A(torch.zeros(1, 1, 9, 7, device="meta")))
    error(ValueError, ("measured", "meta"), lambda: layer.A_adjoint(torch.zeros(1, 1, 5, 12, device="meta")))
    error(ValueError, ("image", "device", "meta"), lambda: op.project(image.to("meta"), views, 12))
    error(TypeError, ("image", "float32", "bfloat16"), lambda: op.project(image.bfloat16(), views, 12))
    error(ValueError, ("image", "three axes", "(9, 7)"), lambda: op.project(image[0], views, 12))
    error(ValueError, ("bins", "(batch, 5, bin)", "4"), lambda: op.backproject(bins[:, :4], views, (9, 7)))
    error(ValueError, ("views.start",), lambda: op.project(image, views._replace(start=views.start[:, :4]), 12))
    error(ValueError, ("views.factor",), lambda: op.project(image, views._replace(factor=views.width), 12))


# ---- forward mode ----


def test_forward_mode_and_second_derivatives_in_the_image() -> None:
    layer = encoder(5, (4, 3), 6)
    scene, step, seen = random(1, 1, 4, 3), random(1, 1, 4, 3, seed=1), random(1, 1, 5, 6, seed=2)
    _, forth = torch.func.jvp(layer.A, (scene,), (step,))
    torch.testing.assert_close(forth, layer.A(step))
    _, back = torch.func.jvp(layer.A_adjoint, (seen,), (seen,))
    torch.testing.assert_close(back, layer.A_adjoint(seen))
    found = torch.func.hessian(lambda image: layer.A(image).square().sum())(scene).reshape(12, 12)
    columns = [layer.A(one.reshape(1, 1, 4, 3)).flatten() for one in torch.eye(12, dtype=torch.float64)]
    matrix = torch.stack(columns, 1)
    torch.testing.assert_close(found, 2 * matrix.T @ matrix)
