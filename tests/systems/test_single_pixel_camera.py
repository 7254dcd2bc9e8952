"""The single-pixel camera: light of each reading, and what multiplexing gains and loses in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bitlens import optimize_design
from bitlens.encoders import pair_differences
from bitlens.encoders.masks import MaskKind
from bitlens.systems.single_pixel_camera import SinglePixelDesign, single_pixel_camera

SHAPE = (8, 8)
PIXELS = 64
FLAT = torch.ones(1, 1, *SHAPE, dtype=torch.float64)


def matrix(encoder: torch.nn.Module) -> Tensor:
    """(reading, pixel): the derivative of the means."""
    pixels = torch.eye(PIXELS, dtype=torch.float64).unflatten(-1, SHAPE)[:, None]
    return encoder.linear.A(pixels)[:, 0, :, 0].T


def errors_of_pixels(design: SinglePixelDesign, *, photons: float, read: float) -> Tensor:
    """Variance of each pixel of a scene of ones, from all patterns, by the least squares that the noise weights."""
    encoder, noise, _ = single_pixel_camera(
        design, shape=SHAPE, n_patterns=PIXELS, exposure_photons=photons, dark_electrons=0.0, read_electrons=read,
        order="natural", scenes=FLAT,
    )  # fmt: skip
    mapping, variance = matrix(encoder), noise.variance(encoder(FLAT)).flatten()
    information = mapping.T @ (mapping / variance[:, None])
    return torch.linalg.inv(information).diagonal()


def test_read_noise_multiplexing_gains_half_the_root_of_the_pixels() -> None:
    """With x = H'(2 y - y_0) / N the error of a pixel is 2 read / sqrt(N) of that of the raster, save the first."""
    raster = errors_of_pixels("raster", photons=1.0, read=1e6)
    hadamard = errors_of_pixels("hadamard", photons=1.0, read=1e6)
    gain = (raster / hadamard).sqrt()
    # The first pixel is open in every pattern: only the one of all open pixels tells its sum from theirs.
    torch.testing.assert_close(gain[1:], torch.full_like(gain[1:], math.sqrt(PIXELS) / 2), rtol=1e-5, atol=0)
    assert gain[0].item() == pytest.approx(1.0, rel=1e-5)
    # N readings of T / N each: one pixel's light is photons / N.
    torch.testing.assert_close(raster.sqrt(), torch.full_like(raster, 1e6 * PIXELS), rtol=1e-5, atol=0)


def test_shot_noise_multiplexing_loses() -> None:
    """Var = 2 (N + 1) / N of the raster's: N c / 2 counts of each pattern come from all pixels, N c of the first."""
    raster = errors_of_pixels("raster", photons=6.4e6, read=1e-3)
    hadamard = errors_of_pixels("hadamard", photons=6.4e6, read=1e-3)
    loss = (hadamard / raster).sqrt()
    torch.testing.assert_close(
        loss[1:], torch.full_like(loss[1:], math.sqrt(2 * (PIXELS + 1) / PIXELS)), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(raster, torch.full_like(raster, PIXELS / 6.4e6), rtol=1e-6, atol=0)


def test_bits_follow_multiplexing() -> None:
    """White Gaussian scenes: 0.5 log2 det(I + A A' / variance); Hadamard wins under read noise, loses under shot."""

    def bits(design: SinglePixelDesign, read: float) -> float:
        encoder, noise, _ = single_pixel_camera(
            design, shape=SHAPE, n_patterns=PIXELS, exposure_photons=6.4e5, dark_electrons=0.0, read_electrons=read,
            scenes=FLAT,
        )  # fmt: skip
        weighted = matrix(encoder) / noise.variance(encoder(FLAT)).flatten().sqrt()[:, None]
        return float(torch.linalg.slogdet(torch.eye(PIXELS) + 0.05 * weighted @ weighted.T)[1]) / math.log(4)

    assert bits("hadamard", 1e4) > 4 * bits("raster", 1e4)
    assert bits("hadamard", 0.1) < bits("raster", 0.1) - 10


@pytest.mark.parametrize("design", ["hadamard", "hadamard_differential", "random_binary", "random_real", "raster"])
@pytest.mark.parametrize("count", [8, 32])
def test_one_exposure_is_shared_by_all_readings(design: SinglePixelDesign, count: int) -> None:
    """The sum over readings is photons x mean open share x pixels: of pairs half, however many there are."""
    encoder, _, _ = single_pixel_camera(
        design, shape=SHAPE, n_patterns=count, exposure_photons=500.0, dark_electrons=7.0, scenes=FLAT
    )
    mean = encoder(FLAT)
    readings = 2 * count if design == "hadamard_differential" else count
    assert mean.shape == (1, 1, readings, 1)
    total = float(mean.sum()) - 7.0
    if design == "hadamard_differential":
        assert total == pytest.approx(500.0 * PIXELS / 2, rel=1e-9)
    elif design == "raster":
        assert total == pytest.approx(500.0, rel=1e-9)
    elif design == "hadamard":
        # All patterns are half open, save the first, which is open.
        assert total == pytest.approx(500.0 * PIXELS * (1 + (count - 1) / 2) / count, rel=1e-9)
    else:
        assert total == pytest.approx(500.0 * PIXELS / 2, rel=0.1)


def test_pairs_give_signed_patterns() -> None:
    scene = torch.rand(2, 1, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    encoder, _, _ = single_pixel_camera(
        "hadamard_differential", shape=SHAPE, n_patterns=16, exposure_photons=32.0, scenes=scene
    )
    signed = torch.einsum("mrc,bxrc->bxm", encoder.linear.shown.patterns(), scene)
    torch.testing.assert_close(pair_differences(encoder(scene))[..., 0], signed, rtol=1e-9, atol=1e-9)


def test_patterns_to_learn_start_where_the_fast_transform_is() -> None:
    scene = torch.rand(2, 1, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for design in ("hadamard", "hadamard_differential"):
        fast = single_pixel_camera(design, shape=SHAPE, scenes=scene).encoder
        learned = single_pixel_camera(design, shape=SHAPE, scenes=scene, learn=("patterns",)).encoder
        assert [name for name, _ in learned.named_parameters()] == ["linear.shown.patterns"]
        torch.testing.assert_close(learned(scene), fast(scene), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["grey", "binary", "annealed"])
@pytest.mark.parametrize("design", ["hadamard", "hadamard_differential", "random_real", "raster"])
def test_learned_patterns_load_into_the_plain_camera(design: SinglePixelDesign, kind: MaskKind) -> None:
    scene = torch.rand(2, 1, *SHAPE, generator=torch.Generator().manual_seed(1))
    learned = single_pixel_camera(design, shape=SHAPE, scenes=scene, kind=kind, learn=("patterns", "time_weights"))
    encoder = learned.encoder
    with torch.no_grad():
        for value in encoder.parameters():
            value.add_(0.1 * torch.rand(value.shape, generator=torch.Generator().manual_seed(4)))
    plain = single_pixel_camera(design, shape=SHAPE, scenes=scene, kind=kind).encoder
    assert not list(plain.parameters())
    before = plain(scene)
    plain.load_state_dict(encoder.state_dict(), strict=True)
    assert not list(plain.parameters())
    torch.testing.assert_close(plain(scene), encoder(scene).detach())
    assert not torch.equal(plain(scene), before)


@pytest.mark.parametrize("design", ["hadamard", "hadamard_differential", "random_binary"])
def test_binary_patterns_stay_binary_while_they_learn(design: SinglePixelDesign) -> None:
    """The fast transform at first; a step along the straight-through gradient turns whole mirrors, none half."""
    scene = torch.rand(3, 1, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fixed = single_pixel_camera(design, shape=SHAPE, scenes=scene).encoder
    encoder = single_pixel_camera(design, shape=SHAPE, scenes=scene, learn=("patterns",), kind="binary").encoder
    torch.testing.assert_close(encoder(scene), fixed(scene), rtol=1e-9, atol=1e-9)
    (parameter,) = encoder.parameters()
    weight = torch.randn(encoder(scene).shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((encoder(scene) * weight).sum(), parameter)
    with torch.no_grad():
        parameter -= 1.2 * gradient.sign()
    mask = encoder.linear.shown.mask().detach()
    assert 0.1 < float((mask != (parameter + 1.2 * gradient.sign() > 0)).double().mean()) < 0.9
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    z = torch.randn(encoder(scene).shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    left, right = (encoder.linear.A(scene) * z).sum(), (scene * encoder.linear.A_adjoint(z)).sum()
    assert left.item() == pytest.approx(right.item(), rel=1e-12)


def test_time_goes_where_the_weights_say() -> None:
    encoder = single_pixel_camera("raster", shape=SHAPE, scenes=FLAT, learn=("time_weights",)).encoder
    even = encoder(FLAT).detach()
    with torch.no_grad():
        encoder.linear.time_weights[0] = 65.0
    uneven = encoder(FLAT).detach()
    # 65 of 128 parts instead of 1 of 64.
    torch.testing.assert_close(uneven[0, 0, :2, 0] / even[0, 0, :2, 0], torch.tensor([32.5, 0.5]).double())
    assert uneven.sum().item() == pytest.approx(even.sum().item(), rel=1e-9)


def test_default_scenes() -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    encoder, _, scenes = single_pixel_camera(shape=(8, 16), n_scenes=14)
    assert scenes.shape == (14, 1, 8, 16)
    assert encoder(scenes).shape == (14, 1, 32, 1)


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match=r"design: need one of .*'raster'.*got 'sudoku'"):
        single_pixel_camera("sudoku", scenes=FLAT)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"learn: need names among patterns, time_weights, got 'dark'"):
        single_pixel_camera(scenes=FLAT, learn=("dark",))
    with pytest.raises(ValueError, match=r"n_patterns: need 1 to 64, got 65"):
        single_pixel_camera("raster", shape=SHAPE, n_patterns=65, scenes=FLAT)
    with pytest.raises(ValueError, match=r"kind: need one of .*'binary'.*got 'glass'"):
        single_pixel_camera(shape=SHAPE, scenes=FLAT, kind="glass")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape: need powers of two for Hadamard patterns, got \(8, 12\)"):
        single_pixel_camera(shape=(8, 12))
    with pytest.raises(ValueError, match=r"exposure_photons: need at least 0, got -1"):
        single_pixel_camera(shape=SHAPE, exposure_photons=-1.0, scenes=FLAT)


def test_annealed_patterns_move() -> None:
    system = single_pixel_camera("hadamard", shape=(4, 4), n_scenes=64, kind="annealed", learn=("patterns",))
    start = {name: value.detach().clone() for name, value in system.encoder.named_parameters()}
    found = optimize_design(*system, n_steps=5, generator=torch.Generator().manual_seed(0))
    (name,) = start
    moved = dict(found.encoder.named_parameters())[name].detach() - start[name]
    assert float(moved.abs().mean()) > 0.02
