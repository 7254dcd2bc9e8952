"""Random patches: each is a piece of the image its label names, drawn evenly and repeatably."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitlens.datasets import random_patches


def numbered_image(index: int, rows: int, columns: int) -> torch.Tensor:
    """Every pixel tells its image, row and column."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return (index * 1_000_000 + row * 1_000 + column).to(torch.float64)[None]


IMAGES = [numbered_image(0, 20, 30), numbered_image(1, 12, 9), numbered_image(2, 9, 40)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_patch_is_a_square_of_the_image_it_is_labelled_with() -> None:
    scenes, groups = random_patches(IMAGES, 300, 9, generator=generator())
    assert scenes.shape == (300, 1, 9, 9)
    assert groups.dtype == torch.int64
    assert torch.bincount(groups).tolist() == [100, 100, 100]
    for scene, group in zip(scenes, groups, strict=True):
        first = int(scene[0, 0, 0])
        row, column = first // 1000 % 1000, first % 1000
        expected = IMAGES[int(group)][:, row : row + 9, column : column + 9]
        assert torch.equal(scene, expected)


def test_positions_are_uniform_up_to_both_ends() -> None:
    scenes, groups = random_patches(IMAGES[:1], 12_000, 9, generator=generator())
    assert bool((groups == 0).all())
    corner = scenes[:, 0, 0, 0].long()
    row, column = corner // 1000, corner % 1000
    for counts, places in [(torch.bincount(row), 12), (torch.bincount(column), 22)]:
        assert len(counts) == places
        expected = 12_000 / places
        chi_squared = float(((counts - expected) ** 2 / expected).sum())
        assert chi_squared < places + 6 * (2 * places) ** 0.5


def test_repeats_with_its_generator_and_only_with_it() -> None:
    first = random_patches(IMAGES, 50, 5, generator=generator(3)).scenes
    assert torch.equal(first, random_patches(IMAGES, 50, 5, generator=generator(3)).scenes)
    assert not torch.equal(first, random_patches(IMAGES, 50, 5, generator=generator(4)).scenes)


def test_a_patch_may_be_a_whole_image_and_images_may_be_numpy() -> None:
    image = np.arange(27.0, dtype=np.float32).reshape(3, 3, 3)
    scenes = random_patches([image], 2, 3, generator=generator()).scenes
    assert scenes.dtype == torch.float32
    np.testing.assert_array_equal(scenes.numpy(), np.stack([image, image]))


@pytest.mark.parametrize(
    ("images", "n_patches", "size", "message"),
    [
        ([], 3, 5, "images: need at least one"),
        (IMAGES, 0, 5, "n_patches, size: need at least 1, got 0, 5"),
        (IMAGES, 3, 10, r"images\[1\]: need .* at least 10 rows and columns, got \(1, 12, 9\)"),
        ([torch.zeros(9, 9)], 3, 5, r"images\[0\]: need \(channel, row, column\)"),
        ([torch.zeros(1, 9, 9), torch.zeros(3, 9, 9)], 3, 5, r"images\[1\]: need 1 channels"),
    ],
)
def test_wrong_arguments_are_named(images: list[torch.Tensor], n_patches: int, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_patches(images, n_patches, size)
