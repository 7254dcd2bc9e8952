"""What every system refuses: scenes, sizes and counts that it cannot use."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bitlens.systems._checks import check_count, check_scenes, check_shape


def test_scenes_come_back_as_they_are_given() -> None:
    scenes = torch.rand(3, 1, 4, 5, dtype=torch.float64)
    assert check_scenes(scenes, channels=1, rows=4, columns=5) is scenes
    given = np.arange(60, dtype=np.int32).reshape(3, 1, 4, 5)
    found = check_scenes(given)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), given)
    assert check_scenes(scenes.half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("scenes", "error", "message"),
    [
        (
            np.full((2, 1, 4, 4), 200, dtype=np.uint8),
            TypeError,
            r"scenes: .* 8 bit ones: bitlens\.datasets\.linearize_srgb",
        ),
        ([[1.0]], TypeError, "scenes: need a tensor or an array, got list"),
        (torch.ones(2, 4, 4), ValueError, r"scenes: need shape \(batch, 1, row, column\), got \(2, 4, 4\)"),
        (torch.ones(2, 3, 4, 4), ValueError, r"scenes: need shape \(batch, 1, row, column\), got \(2, 3, 4, 4\)"),
        (torch.ones(0, 1, 4, 4), ValueError, r"scenes: need at least one scene with pixels, got shape \(0, 1, 4, 4\)"),
        (torch.full((2, 1, 4, 4), math.nan), ValueError, "scenes: need finite values, got NaN or infinity"),
        (-torch.ones(2, 1, 4, 4), ValueError, "scenes: need values of at least 0, got -1"),
        (torch.ones(2, 1, 4, 4, dtype=torch.complex64), TypeError, "scenes: need float32 or float64 values"),
    ],
)
def test_scenes_that_cannot_be_used(scenes: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_scenes(scenes, channels=1)  # type: ignore[arg-type]


def test_sizes_and_counts() -> None:
    assert check_shape([4, np.int64(5)]) == (4, 5)
    assert check_count("n_scenes", 1) == 1
    with pytest.raises(ValueError, match="shape: need at least 1, got 0"):
        check_shape((4, 0))
    with pytest.raises(TypeError, match=r"shape: need \(rows, columns\), got 4"):
        check_shape(4)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"shape: need a whole number, got 4\.5"):
        check_shape((4.5, 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_scenes: need at least 1, got 0"):
        check_count("n_scenes", 0)
    with pytest.raises(TypeError, match="n_scenes: need a whole number, got True"):
        check_count("n_scenes", True)
