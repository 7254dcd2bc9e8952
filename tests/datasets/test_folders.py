"""Folders of pictures come back as they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitlens.datasets import read_images


def written(path: Path, values: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return values


def pixels(*shape: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape).astype(dtype)


def test_pictures_of_sub_folders_are_labelled(tmp_path: Path) -> None:
    first = written(tmp_path / "cat" / "1.png", pixels(4, 6, 3))
    second = written(tmp_path / "dog" / "0.bmp", pixels(4, 6, 3, seed=1))
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    found = read_images(tmp_path)
    assert found.labels == ("cat", "dog")
    assert [path.name for path in found.paths] == ["1.png", "0.bmp"]
    assert found.images.shape == (2, 3, 4, 6)
    for image, values in zip(found.images, (first, second), strict=True):
        np.testing.assert_allclose(image.numpy(), np.moveaxis(values, -1, 0) / 255, rtol=1e-6)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_of_grey_are_kept(name: str, tmp_path: Path) -> None:
    values = written(tmp_path / name, pixels(3, 5, dtype=np.uint16))
    found = read_images(tmp_path)
    assert found.labels == (".",)
    np.testing.assert_allclose(found.images[0, 0].numpy(), values / 65535, rtol=1e-6)


def test_a_transparent_channel_is_left_out(tmp_path: Path) -> None:
    values = written(tmp_path / "a.png", pixels(3, 5, 4))
    np.testing.assert_allclose(read_images(tmp_path).images[0].numpy() * 255, np.moveaxis(values[..., :3], -1, 0))


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="folder: need a folder of pictures"):
        read_images(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="found none"):
        read_images(tmp_path)
    written(tmp_path / "a.png", pixels(3, 5))
    written(tmp_path / "b.png", pixels(3, 6))
    with pytest.raises(ValueError, match=r"folder: need pictures of one size, got 1 x 3 x 5 in a\.png and 1 x 3 x 6"):
        read_images(tmp_path)
    (tmp_path / "b.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"folder: need pictures that can be read, got b\.png"):
        read_images(tmp_path)
