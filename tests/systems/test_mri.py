"""The scanner: a full scan keeps every bit, noise is what its name says, samples lie where they should."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bitlens.datasets.phantoms_ellipses import head_slices
from bitlens.design import optimize_design
from bitlens.systems.mri import MRIDesign, mri, with_smooth_phase

SHAPE = (8, 6)
PIXELS = 48
FLAT = torch.ones(1, 1, *SHAPE, dtype=torch.float64)
DESIGNS: tuple[MRIDesign, ...] = ("full", "uniform", "variable_density", "radial", "spiral")


def matrix(encoder: torch.nn.Module, shape: tuple[int, int], channels: int = 1) -> Tensor:
    """(datum, unknown) in real numbers: the map of every pixel's unit."""
    unknowns = channels * shape[0] * shape[1]
    units = torch.eye(unknowns, dtype=torch.float64).unflatten(-1, (channels, *shape))
    return encoder(units).flatten(1).T


def gaussian_bits(mapping: Tensor, covariance: Tensor, std: float) -> float:
    gram = mapping @ covariance @ mapping.T / std**2
    return float(torch.linalg.slogdet(torch.eye(len(gram), dtype=torch.float64) + gram)[1]) / math.log(4)


@pytest.mark.parametrize("coils", [1, 5])
@pytest.mark.parametrize("channels", [1, 2])
def test_full_scan_is_the_image_in_white_noise(coils: int, channels: int) -> None:
    """A unitary map: the bits of a Gaussian field are 0.5 log2 det(I + C snr^2), that of the image, exactly."""
    unknowns = channels * PIXELS
    encoder, noise, _ = mri(
        "full", shape=SHAPE, coils=coils, snr=7.0, complex_scene=channels == 2, scenes=FLAT.expand(1, channels, -1, -1)
    )
    mapping = matrix(encoder, SHAPE, channels)
    torch.testing.assert_close(mapping.T @ mapping, torch.eye(unknowns, dtype=torch.float64), rtol=0, atol=1e-12)
    place = torch.cartesian_prod(torch.arange(8.0), torch.arange(6.0)).double()
    field = torch.exp(-torch.cdist(place, place) / 3)
    covariance = torch.block_diag(*[field] * channels)
    expected = 0.5 * float(torch.log2(1 + 49.0 * torch.linalg.eigvalsh(covariance)).sum())
    assert gaussian_bits(mapping, covariance, float(noise.std)) == pytest.approx(expected, rel=1e-10)


def test_signal_to_noise_ratio_is_that_of_a_pixel_of_one() -> None:
    """The adjoint of a full scan gives the image and white noise of 1 / snr."""
    scenes = torch.ones(64, 1, 16, 12, dtype=torch.float64)
    encoder, noise, _ = mri("full", shape=(16, 12), coils=1, snr=25.0, scenes=scenes)
    measured = noise.sample(encoder(scenes), torch.Generator().manual_seed(0))
    image = encoder.A_adjoint(measured)
    spread = float((image - scenes).std())
    assert spread == pytest.approx(1 / 25.0, rel=4 / math.sqrt(2 * image.numel()))
    assert float(image.mean()) == pytest.approx(1.0, abs=4 / 25.0 / math.sqrt(image.numel()))


@pytest.mark.parametrize("design", ["radial", "spiral"])
@pytest.mark.parametrize("coils", [1, 3])
def test_samples_off_the_grid_are_explicit_sums(design: MRIDesign, coils: int) -> None:
    scene = torch.rand(2, 1, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    encoder, _, _ = mri(design, shape=SHAPE, acceleration=2.0, coils=coils, scenes=scene)
    k = encoder.trajectory
    y = (torch.arange(8, dtype=torch.float64) - 4) / 8
    x = (torch.arange(6, dtype=torch.float64) - 3) / 6
    wave = torch.exp(-2j * math.pi * (k[..., 0, None, None] * y[:, None] + k[..., 1, None, None] * x))
    if coils == 1:
        maps = torch.ones(1, *SHAPE, dtype=torch.complex128)
    else:
        pairs = encoder.sensitivities.unflatten(0, (coils, 2))
        maps = torch.complex(pairs[:, 0], pairs[:, 1])
    expected = torch.einsum("ijrc,krc,brc->bkij", wave, maps, scene[:, 0].to(maps.dtype)) / math.sqrt(PIXELS)
    found = encoder(scene).unflatten(1, (coils, 2))
    torch.testing.assert_close(torch.complex(found[:, :, 0], found[:, :, 1]), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("design", DESIGNS)
def test_a_quarter_of_the_samples(design: MRIDesign) -> None:
    shape = (32, 24)
    scene = torch.ones(1, 1, *shape)
    encoder, _, _ = mri(design, shape=shape, acceleration=4.0, coils=1, scenes=scene)
    samples = encoder(scene).numel() // 2
    assert samples == (32 * 24 if design == "full" else 32 * 24 // 4)
    if design in ("radial", "spiral"):
        k = encoder.trajectory
        assert float(k[..., 0].abs().max()) <= 16.0
        assert float(k[..., 1].abs().max()) <= 12.0
        # It reaches the edge, and the middle.
        assert float((k / torch.tensor([16.0, 12.0])).norm(dim=-1).max()) == pytest.approx(1.0)
        assert float(k.norm(dim=-1).min()) == pytest.approx(0.0, abs=1e-9)
    else:
        assert 16 in encoder.sampled.tolist()
    if design == "uniform":
        assert encoder.sampled.diff().tolist() == [4] * 7
    if design == "variable_density":
        # 8 % of 32 lines, three, in the middle.
        assert {15, 16, 17}.issubset(encoder.sampled.tolist())


@pytest.mark.parametrize("acceleration", [1.0, 1.5, 2.7, 8.0])
@pytest.mark.parametrize("design", ["uniform", "variable_density"])
def test_weights_to_learn_have_the_time_of_the_scan(design: MRIDesign, acceleration: float) -> None:
    scene = torch.ones(1, 1, 32, 24)
    encoder, _, _ = mri(design, shape=(32, 24), acceleration=acceleration, scenes=scene, learn=("mask",))
    weights = encoder.mask.detach()
    assert weights.square().mean().item() == pytest.approx(1 / acceleration, rel=1e-9)
    assert float(weights.min()) > 0.0
    assert float(weights.max()) <= 1.0 + 1e-12
    lines, _, _ = mri(design, shape=(32, 24), acceleration=acceleration, scenes=scene)
    assert len(lines.sampled) == round(32 / acceleration)


def test_low_frequencies_carry_more_of_a_head() -> None:
    shape = (16, 16)
    scenes = head_slices(600, shape, generator=torch.Generator().manual_seed(0)).flatten(1).double()
    covariance = torch.cov(scenes.T)

    def bits(design: MRIDesign) -> float:
        encoder, noise, _ = mri(design, shape=shape, acceleration=2.0, coils=1, scenes=torch.ones(1, 1, *shape))
        return gaussian_bits(matrix(encoder, shape), covariance, float(noise.std))

    full, uniform, variable = bits("full"), bits("uniform"), bits("variable_density")
    assert full > variable > uniform


@pytest.mark.parametrize("design", ["full", "uniform", "variable_density"])
def test_a_mask_does_not_gain_by_growing(design: MRIDesign) -> None:
    """Three times the weights are the same scan; a fixed mask of lines is what it was given as."""
    scene = torch.rand(1, 1, 32, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    encoder, _, _ = mri(design, shape=(32, 24), acceleration=2.7, scenes=scene, learn=("mask",))
    with torch.no_grad():
        torch.testing.assert_close(encoder.weights(), encoder.mask, rtol=1e-12, atol=0)
        before = encoder(scene)
        encoder.mask.mul_(3.0)
        torch.testing.assert_close(encoder(scene), before)
        encoder.mask.zero_()
        assert float(encoder(scene).abs().max()) == 0.0
    lines, _, _ = mri(design, shape=(32, 24), acceleration=2.7, scenes=scene)
    assert torch.equal(lines.weights(), lines.mask)
    assert set(lines.mask.tolist()) <= {0.0, 1.0}


def test_lines_gain_bits_within_the_time_of_the_scan() -> None:
    """From even weights: time moves to the middle, and there is no more of it than before."""
    system = mri("uniform", shape=(16, 12), acceleration=4.0, coils=1, snr=20.0, n_scenes=400, learn=("mask",))
    result = optimize_design(
        *system, n_steps=30, objective="gaussian", generator=torch.Generator().manual_seed(0)
    )  # fmt: skip
    mask = result.encoder.weights().detach()
    assert float(mask.square().mean()) == pytest.approx(0.25, rel=1e-6)
    assert float(mask[6:11].mean()) > 1.2 * float(mask[[0, 1, 2, 13, 14, 15]].mean())
    assert result.after.bits > result.before.bits


def test_heads() -> None:
    heads = head_slices(4, (32, 24), generator=torch.Generator().manual_seed(2))
    assert heads.shape == (4, 1, 32, 24)
    assert 0.0 <= float(heads.min()) <= float(heads.max()) <= 1.2
    assert float(heads[:, :, 0].abs().max()) == 0.0
    complex_heads = with_smooth_phase(heads, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(complex_heads.square().sum(1, keepdim=True).sqrt(), heads, rtol=1e-5, atol=1e-6)
    encoder, _, scenes = mri(shape=(32, 24), complex_scene=True, n_scenes=3)
    assert scenes.shape == (3, 2, 32, 24)
    assert encoder(scenes).shape == (3, 16, 8, 24)


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match=r"design: need one of .*'spiral'.*got 'rosette'"):
        mri("rosette", scenes=FLAT)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"acceleration: need 1 to 8, the number of lines, got 9"):
        mri(shape=SHAPE, acceleration=9.0, scenes=FLAT)
    with pytest.raises(ValueError, match=r"snr: need a positive number, got 0"):
        mri(shape=SHAPE, snr=0.0, scenes=FLAT)
    with pytest.raises(ValueError, match=r"learn: need names among trajectory, sensitivities, got 'mask'"):
        mri("spiral", shape=SHAPE, scenes=FLAT, learn=("mask",))


def test_learned_sensitivities_keep_their_power() -> None:
    """Scaled by any number, and by another for each pixel, they give what they gave."""
    encoder, _, scenes = mri(shape=(8, 6), coils=3, n_scenes=2, learn=("sensitivities",))
    before = encoder(scenes)
    with torch.no_grad():
        encoder.sensitivities.mul_(1.0 + torch.rand(8, 6, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(encoder(scenes), before)
