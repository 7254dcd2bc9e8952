"""Single-pixel patterns against matrix products, Hadamard orders against counting, and what a detector can see."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from scipy.ndimage import label

from bitlens.encoders.patterns import (
    Display,
    HadamardOrder,
    HadamardPatterns,
    Patterns,
    hadamard_order,
    pair_differences,
    random_patterns,
    walsh_hadamard,
)

ORDERS: tuple[HadamardOrder, ...] = ("natural", "walsh", "cake_cutting")
DISPLAYS: tuple[Display, ...] = ("transmission", "signed", "differential")


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_patterns_are_inner_products() -> None:
    scene, patterns = rand(2, 3, 4, 5), rand(7, 4, 5, seed=1)
    mean = Patterns(patterns)(scene)
    assert mean.shape == (2, 3, 7, 1)
    np.testing.assert_allclose(mean[..., 0], np.einsum("mrk,ncrk->ncm", patterns, scene), rtol=1e-13)


def test_differential_pairs_are_positive_and_negative_parts() -> None:
    scene, patterns = rand(2, 1, 4, 5), 2 * rand(6, 4, 5, seed=1) - 1
    pairs = Patterns(patterns, display="differential")
    shown = pairs.shown()
    assert shown.shape == (12, 4, 5)
    assert float(shown.min()) == 0.0
    torch.testing.assert_close(shown[::2] - shown[1::2], patterns)
    assert not bool((shown[::2] * shown[1::2]).any())
    torch.testing.assert_close(pair_differences(pairs(scene)), Patterns(patterns, display="signed")(scene))


def test_what_an_optimiser_may_reach_depends_on_the_display() -> None:
    assert Patterns(rand(2, 3, 3)).parameter_domain == {"patterns": (0.0, 1.0)}
    assert Patterns(-rand(2, 3, 3), display="differential").parameter_domain == {"patterns": (-1.0, 1.0)}


@pytest.mark.parametrize("size", [1, 2, 64, 128, 1024])
def test_fast_transform_is_the_product_with_hadamards_matrix(size: int) -> None:
    values = rand(3, size) - 0.5
    expected = values.numpy() @ hadamard(size)
    np.testing.assert_allclose(walsh_hadamard(values).numpy(), expected, rtol=0, atol=1e-13 * size)
    single = walsh_hadamard(values.float()).double().numpy()
    assert np.abs(single - expected).max() < 1e-6 * math.sqrt(size)


@pytest.mark.parametrize("size", [4096, 2**14, 2**19])
def test_fast_transform_of_long_vectors(size: int) -> None:
    values = rand(size) - 0.5
    transformed = walsh_hadamard(values)
    for index in (0, 1, size // 2, size - 1, 0x5A5A5A5A % size):
        signs = 1 - 2.0 * (np.bitwise_count(np.arange(size) & index) % 2)
        assert float(transformed[index]) == pytest.approx(float(values.numpy() @ signs), abs=1e-10)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("display", DISPLAYS)
def test_hadamard_patterns_are_what_the_matrix_measures(order: HadamardOrder, display: Display) -> None:
    scene = rand(2, 2, 8, 16)
    fast = HadamardPatterns((8, 16), n_patterns=45, order=order, display=display)
    signed = fast.patterns()
    explicit = Patterns(0.5 * (1 + signed) if display == "transmission" else signed, display=display)
    torch.testing.assert_close(fast(scene), explicit(scene), rtol=1e-12, atol=1e-12)
    measured = rand(*fast(scene).shape, seed=1)
    torch.testing.assert_close(fast.A_adjoint(measured), explicit.A_adjoint(measured), rtol=1e-12, atol=1e-12)


def test_natural_order_is_sylvesters() -> None:
    patterns = HadamardPatterns((4, 8), order="natural", display="signed").patterns()
    np.testing.assert_array_equal(patterns.flatten(1), hadamard(32))


@pytest.mark.parametrize("size", [(1, 16), (8, 8), (4, 16), (32, 2)])
def test_walsh_order_counts_sign_changes(size: tuple[int, int]) -> None:
    lines = HadamardPatterns(size, order="walsh").patterns().flatten(1).numpy()
    changes = (np.diff(lines, axis=1) != 0).sum(axis=1)
    np.testing.assert_array_equal(changes, np.arange(size[0] * size[1]))


@pytest.mark.parametrize("size", [(8, 8), (4, 16), (16, 16)])
def test_cake_cutting_order_counts_pieces(size: tuple[int, int]) -> None:
    encoder = HadamardPatterns(size, order="cake_cutting")
    patterns = encoder.patterns().numpy()
    pieces = [label(pattern > 0)[1] + label(pattern < 0)[1] for pattern in patterns]
    assert pieces == sorted(pieces)
    assert pieces[0] == 1
    assert pieces[-1] == size[0] * size[1]
    assert sorted(encoder.indices.tolist()) == list(range(size[0] * size[1]))


@pytest.mark.parametrize("order", ORDERS)
def test_a_full_set_gives_the_scene_back(order: HadamardOrder) -> None:
    scene = rand(2, 1, 16, 8)
    signed = HadamardPatterns((16, 8), order=order, display="signed")
    torch.testing.assert_close(signed.A_adjoint(signed(scene)) / 128, scene)
    pairs = HadamardPatterns((16, 8), order=order, display="differential")
    torch.testing.assert_close(signed.A_adjoint(pair_differences(pairs(scene))) / 128, scene)


@pytest.mark.parametrize("display", ["transmission", "differential"])
def test_counts_are_never_negative(display: Display) -> None:
    # Where a pattern is open only beside the light, its signal is a difference of large sums.
    encoder = HadamardPatterns((32, 32), display=display)
    closed = (encoder.patterns() < 0).float()[1:40, None]
    noise = torch.rand(closed.shape, generator=torch.Generator().manual_seed(0))
    scene = noise * (1000 * closed + 1e-6)
    mean = encoder(scene)
    assert float(mean.min()) >= 0.0
    truth = Patterns(0.5 * (1 + encoder.patterns()))(scene.double())
    assert int((truth < 1e-3).sum()) == len(scene)
    step = 2 if display == "differential" else 1
    torch.testing.assert_close(mean[..., ::step, :].double(), truth, rtol=1e-6, atol=0.1)


def test_random_patterns_keep_their_share_and_repeat() -> None:
    binary = random_patterns(200, (8, 8), open_share=0.2, generator=torch.Generator().manual_seed(0))
    assert set(binary.unique().tolist()) == {0.0, 1.0}
    assert abs(float(binary.mean()) - 0.2) < 4 * math.sqrt(0.2 * 0.8 / binary.numel())
    assert torch.equal(binary, random_patterns(200, (8, 8), open_share=0.2, generator=torch.Generator().manual_seed(0)))
    uniform = random_patterns(200, (8, 8), kind="uniform", generator=torch.Generator().manual_seed(0))
    assert abs(float(uniform.var()) - 1 / 12) < 0.005
    Patterns(uniform)


def test_a_large_full_set_needs_no_matrix() -> None:
    # The matrix of 256 x 256 pixels would hold 4 G numbers.
    scene = torch.rand(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    encoder = HadamardPatterns((256, 256), display="signed")
    back = encoder.A_adjoint(encoder(scene)) / 256**2
    torch.testing.assert_close(back, scene, rtol=0, atol=1e-5)


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="patterns: need values of 0 to 1, got -1"):
        Patterns(-torch.ones(2, 3, 3))
    with pytest.raises(ValueError, match="patterns: need values of -1 to 1, got 2"):
        Patterns(2 * torch.ones(2, 3, 3), display="signed")
    with pytest.raises(ValueError, match=r"patterns: need \(m, row, column\), got shape \(3, 3\)"):
        Patterns(torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"display: need one of .*'differential'\), got 'dmd'"):
        Patterns(torch.ones(2, 3, 3), display="dmd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size: need a power of two, got 12"):
        HadamardPatterns((8, 12))
    with pytest.raises(ValueError, match=r"order: need one of .* got 'zigzag'"):
        hadamard_order((8, 8), "zigzag")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_patterns: need 1 to 64, got 65"):
        HadamardPatterns((8, 8), n_patterns=65)
    with pytest.raises(ValueError, match=r"scene: need shape \(batch, channel, 8, 8\), got \(1, 1, 8, 4\)"):
        HadamardPatterns((8, 8))(torch.ones(1, 1, 8, 4))
    with pytest.raises(ValueError, match=r"measured: need shape \(batch, channel, 64, 1\), got \(1, 1, 63, 1\)"):
        HadamardPatterns((8, 8)).A_adjoint(torch.ones(1, 1, 63, 1))
    with pytest.raises(ValueError, match="values: need a power of two, got 6"):
        walsh_hadamard(torch.ones(6))
    with pytest.raises(ValueError, match=r"measured: need shape \(\.\.\., 2 m, 1\), got \(1, 1, 3, 1\)"):
        pair_differences(torch.ones(1, 1, 3, 1))
    with pytest.raises(ValueError, match="n_patterns: need at least 1, got 0"):
        random_patterns(0, (2, 2), generator=torch.Generator())
    with pytest.raises(ValueError, match="open_share: need 0 to 1, got 2"):
        random_patterns(1, (2, 2), open_share=2, generator=torch.Generator())
