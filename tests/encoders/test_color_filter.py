"""Colour filter arrays against a loop over pixels, the named tiles, soft choices and errors."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from bitlens.encoders.color_filter import (
    BAYER,
    BLUE,
    GREEN,
    RED,
    RGB_SPECTRA,
    RGBW,
    WHITE,
    XTRANS,
    ColorFilterArray,
    choice_logits,
    random_tile,
)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tile", [BAYER, RGBW, XTRANS], ids=["Bayer", "RGBW", "X-Trans"])
def test_every_pixel_sees_its_filter(tile: tuple[tuple[int, ...], ...]) -> None:
    scene, spectra = rand(2, 5, 9, 13), rand(4, 5, seed=1)
    mean = ColorFilterArray(tile, spectra)(scene).numpy()
    assert mean.shape == (2, 1, 9, 13)
    for row in range(9):
        for column in range(13):
            chosen = spectra[tile[row % len(tile)][column % len(tile[0])]].numpy()
            np.testing.assert_allclose(mean[:, 0, row, column], scene[:, :, row, column].numpy() @ chosen, rtol=1e-13)


def test_bayer_picks_one_colour_of_a_colour_image() -> None:
    scene = rand(1, 3, 4, 4)
    mean = ColorFilterArray(BAYER, RGB_SPECTRA)(scene)
    assert torch.equal(mean[0, 0, ::2, ::2], scene[0, 0, ::2, ::2])
    assert torch.equal(mean[0, 0, ::2, 1::2], scene[0, 1, ::2, 1::2])
    assert torch.equal(mean[0, 0, 1::2, ::2], scene[0, 1, 1::2, ::2])
    assert torch.equal(mean[0, 0, 1::2, 1::2], scene[0, 2, 1::2, 1::2])


def test_the_named_tiles_are_what_their_makers_say() -> None:
    assert Counter(np.ravel(BAYER)) == {GREEN: 2, RED: 1, BLUE: 1}
    # Clear pixels on a checkerboard, the others in the ratio of Bayer's.
    white = np.asarray(RGBW) == WHITE
    assert (white == (np.add.outer(np.arange(4), np.arange(4)) % 2 == 0)).all()
    assert Counter(np.asarray(RGBW)[~white]) == {GREEN: 4, RED: 2, BLUE: 2}
    # Every row and column has all three colours, 20 of 36 are green, and there are squares of four green ones.
    trans = np.asarray(XTRANS)
    assert Counter(trans.ravel()) == {GREEN: 20, RED: 8, BLUE: 8}
    assert all(set(line) == {RED, GREEN, BLUE} for line in (*trans, *trans.T))
    green = np.tile(trans == GREEN, (2, 2))
    squares = green[:-1, :-1] & green[1:, :-1] & green[:-1, 1:] & green[1:, 1:]
    assert squares[:6, :6].sum() == 4
    # Three rows down, red and blue have changed places.
    swapped = np.choose(np.roll(trans, 3, axis=0), [BLUE, GREEN, RED])
    assert (swapped == trans).all()


def test_a_soft_choice_mixes_spectra() -> None:
    logits, spectra = 2 * rand(3, 2, 2) - 1, rand(3, 4, seed=1)
    array = ColorFilterArray(logits, spectra, sharpness=2.5)
    weights = np.exp(2.5 * logits.numpy())
    weights /= weights.sum(axis=0)
    np.testing.assert_allclose(array.weights().numpy(), weights, rtol=1e-13)
    np.testing.assert_allclose(array.transmission().numpy(), np.einsum("fhw,fb->bhw", weights, spectra), rtol=1e-13)


def test_a_sharp_soft_choice_is_a_hard_one() -> None:
    logits, spectra, scene = rand(4, 3, 5), rand(4, 6, seed=1), rand(1, 6, 7, 9)
    soft = ColorFilterArray(logits, spectra, sharpness=1e5, learn=("choice_logits",))
    hard = soft.hardened()
    assert torch.equal(hard.tile, logits.argmax(dim=0))
    assert not list(hard.parameters())
    torch.testing.assert_close(soft(scene).detach(), hard(scene))


def test_logits_start_near_a_tile() -> None:
    logits = choice_logits(XTRANS, 3, share=0.8)
    weights = ColorFilterArray(logits, RGB_SPECTRA).weights()
    expected = torch.full((3, 6, 6), 0.1, dtype=torch.float64)
    expected.scatter_(0, torch.tensor(XTRANS)[None], 0.8)
    torch.testing.assert_close(weights, expected)


def test_a_soft_choice_learns_the_filter_that_passes_more() -> None:
    spectra = torch.tensor([[0.9, 0.1], [0.2, 0.6]], dtype=torch.float64)
    scene = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    scene[0, 0, 0], scene[0, 1, 1] = 1.0, 1.0  # the first row red, the second blue
    array = ColorFilterArray(torch.zeros(2, 2, 2, dtype=torch.float64), spectra, learn=("choice_logits",))
    optimizer = torch.optim.SGD(array.parameters(), lr=5.0)
    for _ in range(20):
        optimizer.zero_grad()
        (-array(scene).sum()).backward()
        optimizer.step()
    assert array.hardened().tile.tolist() == [[0, 0], [1, 1]]


def test_random_tiles_keep_their_shares_and_repeat() -> None:
    tile = random_tile((6, 10), (0.25, 0.5, 0.25), generator=torch.Generator().manual_seed(3))
    assert tile.shape == (6, 10)
    assert Counter(tile.flatten().tolist()) == {0: 15, 1: 30, 2: 15}
    assert torch.equal(tile, random_tile((6, 10), (1, 2, 1), generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(tile, random_tile((6, 10), (1, 2, 1), generator=torch.Generator().manual_seed(4)))
    uneven = random_tile((3, 3), (1, 1), generator=torch.Generator().manual_seed(0))
    assert sorted(Counter(uneven.flatten().tolist()).values()) == [4, 5]


def test_the_mean_has_the_scenes_precision() -> None:
    array, scene = ColorFilterArray(BAYER, RGB_SPECTRA), rand(1, 3, 4, 4)
    assert array.spectra.dtype == torch.float64
    assert array(scene.float()).dtype == torch.float32
    torch.testing.assert_close(array(scene.numpy()), array(scene))


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="tile: need filters 0 to 2, got 3"):
        ColorFilterArray(RGBW, RGB_SPECTRA)
    with pytest.raises(ValueError, match="tile: need filters 0 to 2, got -1"):
        ColorFilterArray(((0, -1),), RGB_SPECTRA)
    with pytest.raises(ValueError, match=r"tile: need \(h, w\) indices, or \(filter, h, w\) logits, got shape \(2,\)"):
        ColorFilterArray((0, 1), RGB_SPECTRA)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"tile: need logits of 3 filters, got shape \(2, 4, 4\)"):
        ColorFilterArray(rand(2, 4, 4), RGB_SPECTRA)
    with pytest.raises(TypeError, match=r"tile: need whole numbers, got torch\.bool"):
        ColorFilterArray(torch.ones(2, 2, dtype=torch.bool), RGB_SPECTRA)
    with pytest.raises(ValueError, match=r"spectra: need values of 0 to 1, got 1\.2"):
        ColorFilterArray(BAYER, 1.2 * torch.eye(3))
    with pytest.raises(ValueError, match=r"spectra: need \(filter, band\), got shape \(3,\)"):
        ColorFilterArray(BAYER, (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="sharpness: need a positive number, got 0"):
        ColorFilterArray(rand(3, 2, 2), RGB_SPECTRA, sharpness=0)
    with pytest.raises(ValueError, match="learn: need names among spectra, got 'choice_logits'"):
        ColorFilterArray(BAYER, RGB_SPECTRA, learn=("choice_logits",))
    with pytest.raises(ValueError, match=r"scene: need shape \(batch, 3, row, column\), got \(1, 4, 5, 5\)"):
        ColorFilterArray(BAYER, RGB_SPECTRA)(rand(1, 4, 5, 5))
    with pytest.raises(ValueError, match="share: need a number from 1 / n_filters to below 1, got 1"):
        choice_logits(BAYER, 3, share=1)
    with pytest.raises(ValueError, match="shares: need at least 0, got -1"):
        random_tile((2, 2), (-1, 2), generator=torch.Generator())
    with pytest.raises(ValueError, match="shares: need at least one above 0, got none"):
        random_tile((2, 2), (0, 0), generator=torch.Generator())
