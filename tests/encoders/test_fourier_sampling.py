"""Cartesian Fourier samples against the explicit sum, and receive coils against the field of a wire."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens.encoders.fourier_sampling import CartesianSampling, birdcage_sensitivities
from bitlens.encoders.linear import channels_to_complex, complex_to_channels


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def explicit(image: Tensor) -> Tensor:
    """Unitary transform of complex (..., row, column) as a sum, position and frequency 0 at size // 2."""

    def matrix(size: int) -> Tensor:
        index = torch.arange(size, dtype=torch.float64) - size // 2
        return torch.exp(-2j * math.pi * index[:, None] * index / size) / math.sqrt(size)

    return matrix(image.shape[-2]) @ image @ matrix(image.shape[-1]).T


@pytest.mark.parametrize("shape", [(9, 12), (8, 7), (1, 5)])
def test_samples_are_the_explicit_sum(shape: tuple[int, int]) -> None:
    mask, scene = random(*shape).abs(), random(3, 2, *shape, seed=1)
    coils = torch.complex(random(4, *shape, seed=2), random(4, *shape, seed=3))
    measured = CartesianSampling(mask, sensitivities=coils, complex_scene=True)(scene)
    truth = mask * explicit(channels_to_complex(scene) * coils)
    assert measured.shape == (3, 8, *shape)
    torch.testing.assert_close(channels_to_complex(measured), truth, rtol=1e-12, atol=1e-12)
    real = CartesianSampling(mask, sensitivities=coils)(scene[:, :1])
    truth = mask * explicit(scene[:, :1].to(torch.complex128) * coils)
    torch.testing.assert_close(channels_to_complex(real), truth, rtol=1e-12, atol=1e-12)


def test_a_full_mask_loses_nothing() -> None:
    scene, shape = random(2, 2, 9, 12), (9, 12)
    for encoder in (
        CartesianSampling(torch.ones(shape), complex_scene=True),
        CartesianSampling(torch.ones(9), sensitivities=birdcage_sensitivities(6, shape), complex_scene=True),
        CartesianSampling(torch.ones(shape), complex_scene=True, compact=True),
    ):
        measured = encoder(scene)
        assert float(measured.square().sum()) == pytest.approx(float(scene.square().sum()), rel=1e-12)
        torch.testing.assert_close(encoder.A_adjoint(measured), scene, rtol=1e-12, atol=1e-12)


def test_compact_samples_are_those_of_the_grid() -> None:
    scene, coils = random(2, 1, 9, 12), birdcage_sensitivities(3, (9, 12))
    lines = torch.tensor([0, 1, 0, 0.5, 1, 0, 0, 2, 0], dtype=torch.float64)
    grid = CartesianSampling(lines, sensitivities=coils)
    few = CartesianSampling(lines, sensitivities=coils, compact=True)
    assert few(scene).shape == (2, 6, 4, 12)
    assert torch.equal(few(scene), grid(scene)[..., lines > 0, :])
    assert torch.equal(few.A_adjoint(few(scene)), grid.A_adjoint(grid(scene)))
    samples = torch.where(random(9, 12) > 0.5, random(9, 12), 0.0)
    grid, few = CartesianSampling(samples), CartesianSampling(samples, compact=True)
    assert few(scene).shape == (2, 2, int((samples > 0).sum()))
    assert torch.equal(few(scene), grid(scene)[..., samples > 0])
    assert torch.equal(few.A_adjoint(few(scene)), grid.A_adjoint(grid(scene)))


def test_a_shift_is_a_phase_ramp() -> None:
    """The middle of k-space is frequency 0: its line keeps its phase, the next ones turn by 2 pi / size each."""
    scene = random(1, 1, 9, 12)
    encoder = CartesianSampling(torch.ones(9, 12))
    here, there = (channels_to_complex(encoder(x))[0, 0] for x in (scene, scene.roll(1, -2)))
    ramp = torch.exp(-2j * math.pi * (torch.arange(9, dtype=torch.float64) - 4) / 9)
    torch.testing.assert_close(there, ramp[:, None] * here, rtol=1e-11, atol=1e-11)
    assert float(here[4, 6].real) == pytest.approx(float(scene.sum()) / math.sqrt(108), rel=1e-12)


@pytest.mark.parametrize("coils", [1, 2, 8])
def test_coils_see_the_field_of_long_wires(coils: int) -> None:
    """Biot and Savart: B of a wire along z is perpendicular to the distance and falls like it; s = B_x - i B_y."""
    shape, radius = (10, 13), 1.6
    maps = birdcage_sensitivities(coils, shape, radius=radius).numpy()
    np.testing.assert_allclose((np.abs(maps) ** 2).sum(0), 1.0, rtol=1e-12)
    y, x = np.meshgrid((np.arange(10) - 5) / 5, (np.arange(13) - 6) / 6.5, indexing="ij")
    field = []
    for rung in range(coils):
        angle = 2 * np.pi * rung / coils
        dx, dy = x - radius * np.cos(angle), y - radius * np.sin(angle)
        bx, by = -dy / (dx**2 + dy**2), dx / (dx**2 + dy**2)
        field.append((bx - 1j * by) * np.exp(1j * angle))
    field = np.array(field)
    field = field / np.sqrt((np.abs(field) ** 2).sum(0)) / (-1j) * -1
    np.testing.assert_allclose(maps, field, rtol=1e-10, atol=1e-12)
    # In the middle all coils see the same: alike in size and phase.
    np.testing.assert_allclose(maps[:, 5, 6], 1 / np.sqrt(coils), rtol=1e-12)


def test_a_rung_is_strongest_next_to_its_place() -> None:
    maps = birdcage_sensitivities(4, (32, 32)).abs()
    row, column = divmod(int(maps[0].argmax()), 32)
    assert column == 31
    assert abs(row - 16) <= 1
    assert divmod(int(maps[1].argmax()), 32)[0] == 31  # a quarter turn on, y down


def test_relaxed_mask_has_its_gradient() -> None:
    """d |mask k|^2 / d mask = 2 mask |k|^2, summed over coils."""
    scene, coils = random(1, 1, 9, 12), birdcage_sensitivities(3, (9, 12))
    encoder = CartesianSampling(random(9).abs(), sensitivities=coils, learn=("mask",))
    assert [name for name, _ in encoder.named_parameters()] == ["mask"]
    encoder(scene).square().sum().backward()
    power = explicit(scene * coils).abs().square().sum((0, 1, 3))
    torch.testing.assert_close(encoder.mask.grad, 2 * encoder.mask.detach() * power, rtol=1e-10, atol=1e-10)


def test_single_precision_and_numpy() -> None:
    scene = random(1, 1, 9, 12)
    encoder = CartesianSampling(torch.ones(9), sensitivities=birdcage_sensitivities(3, (9, 12)))
    assert torch.equal(encoder.A(scene.numpy()), encoder(scene))
    single = encoder(scene.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), encoder(scene), rtol=1e-5, atol=1e-6)
    assert encoder.to(torch.float32).A_adjoint(single).dtype == torch.float32


def test_arguments_are_checked() -> None:
    coils = birdcage_sensitivities(3, (9, 12))
    wrong = (
        ({"mask": torch.ones(1, 9, 12)}, r"mask: need shape \(row,\) or \(row, column\), got \(1, 9, 12\)"),
        ({"mask": -torch.ones(9)}, r"mask: need finite weights of at least 0, got -1\.0"),
        ({"mask": torch.zeros(9), "compact": True}, "mask: need a weight above 0, got none"),
        ({"mask": torch.ones(9), "compact": True, "learn": ("mask",)}, "learn: need a mask on the whole grid"),
        ({"mask": torch.ones(9), "learn": ("masks",)}, "learn: need names among mask, sensitivities, got 'masks'"),
        ({"mask": torch.ones(9), "learn": ("sensitivities",)}, "sensitivities: need a start to learn from"),
        ({"mask": torch.ones(8), "sensitivities": coils}, "sensitivities: need shape .* to go with a mask of"),
        ({"mask": torch.ones(9), "sensitivities": coils[0]}, r"sensitivities: need shape \(coil, row, column\)"),
    )
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            CartesianSampling(**arguments)
    encoder = CartesianSampling(torch.ones(9), sensitivities=coils)
    with pytest.raises(ValueError, match=r"scene: need shape \(batch, 1, row, column\), got \(1, 2, 9, 12\)"):
        encoder(torch.zeros(1, 2, 9, 12))
    with pytest.raises(ValueError, match=r"scene: need \(9, 12\) rows and columns for the coils"):
        encoder(torch.zeros(1, 1, 9, 11))
    with pytest.raises(ValueError, match=r"scene: need \(9,\) for the mask"):
        CartesianSampling(torch.ones(9))(torch.zeros(1, 1, 8, 12))
    with pytest.raises(TypeError, match="scene: need float32 or float64"):
        encoder(torch.zeros(1, 1, 9, 12, dtype=torch.complex64))
    with pytest.raises(ValueError, match="mean_square: need a positive number, got 0"):
        CartesianSampling(torch.ones(9), mean_square=0.0)
    with pytest.raises(ValueError, match=r"shape: need \(row, column\) of a scene, got \(0, 8\)"):
        birdcage_sensitivities(2, (0, 8))
    with pytest.raises(ValueError, match="radius: need more than sqrt 2"):
        birdcage_sensitivities(4, (8, 8), radius=1.2)
    with pytest.raises(ValueError, match="coils: need at least 1"):
        birdcage_sensitivities(0, (8, 8))
    assert complex_to_channels(coils).shape == encoder.sensitivities.shape
