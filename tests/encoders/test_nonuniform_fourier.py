"""Fourier samples anywhere against the explicit sum."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens.encoders import nonuniform_fourier as nonuniform
from bitlens.encoders.fourier_sampling import CartesianSampling, birdcage_sensitivities, channels_to_samples
from bitlens.encoders.linear import channels_to_complex
from bitlens.encoders.nonuniform_fourier import NonuniformSampling, radial_trajectory, spiral_trajectory
from bitlens.encoders.tomography import ParallelProjection

PI = math.pi


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def anywhere(samples: int, reach: float, seed: int = 0) -> Tensor:
    uniform = torch.rand((samples, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return reach * (2 * uniform - 1)


def explicit(image: Tensor, k: Tensor) -> Tensor:
    """Sums over every pixel of complex (..., row, column), one phase for each pixel and sample."""
    rows, columns = image.shape[-2:]
    y = (torch.arange(rows, dtype=torch.float64) - rows // 2) / rows
    x = (torch.arange(columns, dtype=torch.float64) - columns // 2) / columns
    cycles = k[:, :1, None] * y[:, None] + k[:, 1:, None] * x
    return torch.einsum("...rc,src->...s", image, torch.exp(-2j * PI * cycles))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", [(24, 31), (64, 50)])
@pytest.mark.parametrize("reach", [10.0, 300.0])
def test_samples_are_the_explicit_sum(
    dtype: torch.dtype, tolerance: float, shape: tuple[int, int], reach: float
) -> None:
    """Also far beyond the pixels' Nyquist frequency, where the transform repeats itself."""
    k, coils = anywhere(300, reach), birdcage_sensitivities(3, shape)
    scene = random(2, 2, *shape, seed=1).to(dtype)
    encoder = NonuniformSampling(k, shape, sensitivities=coils, complex_scene=True)
    measured = channels_to_samples(encoder(scene))
    truth = explicit(channels_to_complex(scene.double()) * coils, k) / math.sqrt(shape[0] * shape[1])
    assert measured.shape == (2, 3, 300)
    assert measured.real.dtype == dtype
    assert float((measured - truth).abs().max() / truth.abs().max()) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_adjoint_of_a_larger_image(dtype: torch.dtype, tolerance: float) -> None:
    encoder = NonuniformSampling(anywhere(20_000, 64.0), (128, 128), complex_scene=True)
    scene = random(1, 2, 128, 128).to(dtype)
    measured = encoder(scene)
    other = random(*measured.shape, seed=2).to(dtype)
    left = (measured.double() * other).sum()
    right = (scene.double() * encoder.A_adjoint(other)).sum()
    assert abs(float(left - right)) < tolerance * float(measured.norm() * other.norm())


def test_whole_cycles_are_cartesian_samples() -> None:
    scene = random(2, 1, 9, 12)
    row, column = torch.meshgrid(torch.arange(9) - 4, torch.arange(12) - 6, indexing="ij")
    encoder = NonuniformSampling(torch.stack((row, column), -1), (9, 12))
    grid = CartesianSampling(torch.ones(9, 12))
    torch.testing.assert_close(encoder(scene), grid(scene), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(encoder.A_adjoint(grid(scene)), scene, rtol=1e-10, atol=1e-10)


# ---- gradients ----


def test_gradients_to_second_order() -> None:
    k, scene = anywhere(7, 3.0).requires_grad_(), random(1, 2, 5, 6, seed=1).requires_grad_()
    encoder = NonuniformSampling(k, (5, 6), complex_scene=True)

    def mean(scene: Tensor, k: Tensor) -> Tensor:
        return torch.func.functional_call(encoder, {"trajectory": k}, (scene,))

    assert torch.autograd.gradcheck(mean, (scene, k), rtol=1e-6, atol=1e-8)
    assert torch.autograd.gradgradcheck(mean, (scene, k), rtol=1e-6, atol=1e-7)
    samples = torch.complex(random(2, 7), random(2, 7, seed=3)).requires_grad_()

    def back(samples: Tensor, k: Tensor) -> Tensor:
        return nonuniform.samples_to_image(samples, k, (5, 6), tolerance=1e-13)

    assert torch.autograd.gradcheck(back, (samples, k), rtol=1e-6, atol=1e-8)
    assert torch.autograd.gradgradcheck(back, (samples, k), rtol=1e-6, atol=1e-7, fast_mode=True)


def test_gradient_in_the_trajectory_is_the_transform_of_the_scene_times_its_position() -> None:
    k, scene = anywhere(40, 9.0), random(1, 1, 24, 20)
    y = (torch.arange(24, dtype=torch.float64) - 12) / 24
    moved = explicit(-2j * PI * y[:, None] * scene[:, 0], k) / math.sqrt(480)
    jacobian = torch.func.jvp(
        lambda k: torch.func.functional_call(NonuniformSampling(k, (24, 20)), {"trajectory": k}, (scene,)),
        (k,),
        (torch.tensor([1.0, 0.0], dtype=torch.float64).expand_as(k),),
    )[1]
    torch.testing.assert_close(channels_to_samples(jacobian)[:, 0], moved, rtol=1e-9, atol=1e-9)


def test_forward_and_reverse_jacobians_agree() -> None:
    encoder = NonuniformSampling(anywhere(7, 3.0), (5, 6), sensitivities=birdcage_sensitivities(2, (5, 6)))
    point = (random(1, 1, 5, 6), encoder.trajectory.clone(), random(*encoder.sensitivities.shape, seed=2))

    def mean(values: tuple[Tensor, ...]) -> Tensor:
        names = ("trajectory", "sensitivities")
        return torch.func.functional_call(encoder, dict(zip(names, values[1:], strict=True)), (values[0],))

    for one, other in zip(torch.func.jacfwd(mean)(point), torch.func.jacrev(mean)(point), strict=True):
        assert float(one.abs().max()) > 1e-2
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)

    samples = torch.complex(random(1, 7), random(1, 7, seed=3))

    def back(k: Tensor) -> Tensor:
        return nonuniform.samples_to_image(samples, k, (5, 6), tolerance=1e-12).real

    one, other = torch.func.jacfwd(back)(point[1]), torch.func.jacrev(back)(point[1])
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_plain_sums_for_other_devices_agree() -> None:
    k, image = anywhere(50, 20.0), torch.complex(random(3, 9, 12), random(3, 9, 12, seed=1))
    samples = nonuniform.image_to_samples(image, k, tolerance=1e-13)
    torch.testing.assert_close(nonuniform._samples_by_sum(image, k), samples, rtol=1e-11, atol=1e-11)
    back = nonuniform.samples_to_image(samples, k, (9, 12), tolerance=1e-13)
    torch.testing.assert_close(nonuniform._image_by_sum(samples, k, (9, 12)), back, rtol=1e-11, atol=1e-10)


def test_bit_for_bit_whatever_the_threads() -> None:
    encoder = NonuniformSampling(anywhere(5000, 30.0), (60, 64), sensitivities=birdcage_sensitivities(5, (60, 64)))
    scene, threads = random(2, 1, 60, 64), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            measured = encoder(scene)
            found.append((measured, encoder.A_adjoint(measured)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


# ---- closed forms ----


def test_visibility_of_a_point_source() -> None:
    """V = S exp(-2 pi i (u x + v y)) for baselines of a thousand million wavelengths, microarcseconds apart."""
    pixel_rad, shape = math.radians(2e-6 / 3600), (32, 40)
    baselines = anywhere(200, 8e9)
    encoder = NonuniformSampling.from_baselines(baselines, shape, pixel_rad=pixel_rad)
    scene = torch.zeros(1, 1, *shape, dtype=torch.float64)
    scene[0, 0, 11, 29] = 0.7
    visibility = channels_to_samples(encoder(scene))[0, 0].numpy()
    x, y = (29 - 20) * pixel_rad, (11 - 16) * pixel_rad
    u, v = baselines.numpy().T
    assert np.ptp(u * x + v * y) > 0.5
    np.testing.assert_allclose(visibility, 0.7 * np.exp(-2j * np.pi * (u * x + v * y)), rtol=0, atol=1e-10)


def test_visibility_of_a_gaussian_source() -> None:
    pixel_rad, size = 1e-6, 64
    axis = (torch.arange(size, dtype=torch.float64) - 32) * pixel_rad
    rms = 4e-6
    source = torch.exp(-(axis[None, :] ** 2 + axis[:, None] ** 2) / (2 * rms**2))[None, None]
    baselines = anywhere(50, 6e4)
    visibility = channels_to_samples(
        NonuniformSampling.from_baselines(baselines, (size, size), pixel_rad=pixel_rad)(source / source.sum())
    )[0, 0]
    truth = torch.exp(-2 * (PI * rms) ** 2 * baselines.square().sum(-1))
    torch.testing.assert_close(visibility.real, truth, rtol=1e-9, atol=1e-9)
    assert float(visibility.imag.abs().max()) < 1e-9


def test_fourier_slice_theorem() -> None:
    """A spoke through 0 is the transform of the projection along it, for a smooth scene away from the edges.

    The boxes of pixel, shadow and bin cost at most (pi k)^2 / 3 in amplitude, k in cycles per pixel.
    """
    axis = torch.arange(64, dtype=torch.float64) - 32
    blobs = torch.exp(-(((axis - 5) / 4) ** 2)[None, :] / 2 - (((axis + 7) / 3) ** 2)[:, None] / 2)
    blobs = blobs + 0.5 * torch.exp(-(((axis + 9) / 3) ** 2)[None, :] / 2 - (((axis - 2) / 5) ** 2)[:, None] / 2)
    spokes, samples, highest = 10, 16, 4.0
    k = radial_trajectory(spokes, samples, maximum_cycles=highest)
    encoder = NonuniformSampling(k, (64, 64), norm="backward")
    measured = channels_to_samples(encoder(blobs[None, None]))[0, 0]
    angles = torch.arange(spokes, dtype=torch.float64) * PI / spokes
    view = ParallelProjection(angles, (64, 64), bins=96)(blobs[None, None])[0, 0]
    # Projections turn about the middle, half a pixel before index 32.
    place = (torch.arange(96, dtype=torch.float64) - 47.5) - 0.5 * (torch.cos(angles) + torch.sin(angles))[:, None]
    frequency = highest * (2 * torch.arange(samples, dtype=torch.float64) / samples - 1) / 64
    slices = torch.einsum("vb,vfb->vf", view.to(torch.complex128), torch.exp(
        -2j * PI * frequency[:, None] * place[:, None]
    ))  # fmt: skip
    bound = (PI * frequency) ** 2 / 3 * measured.abs() + 5e-4 * float(blobs.sum())
    assert bool(((slices - measured).abs() < bound).all())
    assert float((slices - measured).abs().max()) < 0.01 * float(blobs.sum())


# ---- trajectories ----


def test_radial_trajectories() -> None:
    even = radial_trajectory(6, 8, maximum_cycles=5.0)
    assert even.shape == (6, 8, 2)
    radius = torch.linalg.vector_norm(even, dim=-1)
    truth = torch.tensor([5, 3.75, 2.5, 1.25, 0, 1.25, 2.5, 3.75], dtype=torch.float64)
    torch.testing.assert_close(radius, truth.expand(6, -1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(even[3, 7], torch.tensor([3.75, 0], dtype=torch.float64), rtol=0, atol=1e-12)
    golden = radial_trajectory(5, 8, maximum_cycles=5.0, order="golden")
    turn = torch.atan2(golden[:, 7, 0], golden[:, 7, 1])
    steps = torch.rad2deg(turn.diff()).remainder(180)
    torch.testing.assert_close(steps, torch.full_like(steps, 111.24611797498108), rtol=1e-10, atol=0)


def test_archimedean_spirals_sample_evenly() -> None:
    interleaves, turns, highest = 4, 8.0, 32.0
    k = spiral_trajectory(interleaves, 20_000, turns=turns, maximum_cycles=highest)
    radius = torch.linalg.vector_norm(k, dim=-1)
    # As many samples in a disc as its area says, to the samples of one turn.
    for share in (0.25, 0.5, 0.8):
        inside = float((radius < share * highest).double().mean())
        assert inside == pytest.approx(share**2, abs=0.01)
    # The same distance between neighbours along the spiral, away from the first turn.
    step = torch.linalg.vector_norm(k.diff(dim=1), dim=-1)[:, 2000:]
    assert float(step.max() / step.min()) < 1.02
    # Turns of one interleaf are highest / turns apart on a ray, those of all together a quarter of that.
    crossing = radius[0][(torch.atan2(k[0, :, 0], k[0, :, 1]).diff() < -3).nonzero()[:, 0]]
    torch.testing.assert_close(crossing.diff(), torch.full_like(crossing[1:], highest / turns), rtol=0.005, atol=0)
    torch.testing.assert_close(k[1, -1], torch.stack((k[0, -1, 1], -k[0, -1, 0])), rtol=1e-9, atol=1e-9)


def test_variable_density_spirals_are_denser_in_the_middle() -> None:
    k = spiral_trajectory(1, 4000, turns=16, maximum_cycles=32, density_power=2.0, order="golden")[0]
    radius = torch.linalg.vector_norm(k, dim=-1)
    assert float(radius[-1]) == pytest.approx(32)
    # |k| = 32 s^2 and s = time^(1/3): the share inside r is (r / 32)^(3/2).
    for share in (0.1, 0.3, 0.7):
        assert float((radius < 32 * share).double().mean()) == pytest.approx(share**1.5, abs=1e-3)


# ---- arguments ----


def test_a_missing_finufft_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "finufft", None)
    with pytest.raises(ImportError, match=r"NonuniformSampling needs finufft: pip install bitlens\[mri\]"):
        NonuniformSampling(anywhere(3, 1.0), (5, 6))


def test_arguments_are_checked() -> None:
    k = anywhere(3, 1.0)
    wrong = (
        ((k[0], (5, 6)), {}, r"trajectory: need shape \(\.\.\., 2\), got \(2,\)"),
        ((k * math.nan, (5, 6)), {}, "trajectory: need finite numbers"),
        ((k, (5, 0)), {}, r"shape: need \(row, column\) of a scene, got \(5, 0\)"),
        ((k, (5, 6)), {"norm": "forward"}, "norm: need one of"),
        ((k, (5, 6)), {"learn": ("k",)}, "learn: need names among trajectory, sensitivities, got 'k'"),
        ((k, (5, 6)), {"sensitivities": birdcage_sensitivities(2, (6, 5))}, "sensitivities: need"),
    )
    for arguments, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            NonuniformSampling(*arguments, **options)
    encoder = NonuniformSampling(k, (5, 6))
    with pytest.raises(ValueError, match=r"scene: need \(5, 6\) rows and columns"):
        encoder(torch.zeros(1, 1, 6, 5))
    with pytest.raises(ValueError, match=r"measured: need shape \(batch, 2 coil, 3\), got \(1, 2, 4\)"):
        encoder.A_adjoint(torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="pixel_rad: need a positive number, got 0"):
        NonuniformSampling.from_baselines(k, (5, 6), pixel_rad=0)
    with pytest.raises(ValueError, match="turns: need a positive number, got -1"):
        spiral_trajectory(2, 9, turns=-1, maximum_cycles=3)
    with pytest.raises(ValueError, match="order: need one of"):
        radial_trajectory(2, 9, maximum_cycles=3, order="random")  # type: ignore[arg-type]


def test_numpy_empty_and_not_a_number() -> None:
    encoder, scene = NonuniformSampling(anywhere(3, 1.0).numpy(), (5, 6)), random(2, 1, 5, 6)
    assert torch.equal(encoder.A(scene.numpy()), encoder(scene))
    assert encoder.A_adjoint(encoder(scene[:0])).shape == (0, 1, 5, 6)
    with pytest.raises(ValueError, match="trajectory: need finite numbers"):
        torch.func.functional_call(encoder, {"trajectory": encoder.trajectory * math.inf}, (scene,))
    scene[0, 0, 0, 0] = math.nan
    assert bool(encoder(scene)[0].isnan().all())
    assert bool(encoder(scene)[1].isfinite().all())
