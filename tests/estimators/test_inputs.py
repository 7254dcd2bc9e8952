"""What callers pass in: what is wrong is named before anything is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitlens import GaussianNoise, PoissonGaussianNoise, PoissonNoise, estimate_information
from bitlens.estimators._inputs import check_samples, make_groups, open_share, whole_number
from bitlens.noise import NoiseModel


def images(n: int = 60) -> torch.Tensor:
    return torch.randn(n, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("noise", "name"),
    [
        (GaussianNoise(torch.ones(4, 3)), "std"),
        (GaussianNoise(torch.ones(60, 3, 4)), "std"),
        (PoissonGaussianNoise(torch.ones(5), read_std=1.0), "gain"),
        (PoissonGaussianNoise(read_std=torch.ones(2, 4)), "read_std"),
        (PoissonGaussianNoise(read_std=1.0, full_well_electrons=torch.full((3, 3), 9.0)), "full_well_electrons"),
    ],
)
@pytest.mark.parametrize("with_mean", [False, True])
def test_noise_maps_of_another_shape_are_named(noise: NoiseModel, name: str, with_mean: bool) -> None:
    mean = images().abs() if with_mean else None
    with pytest.raises(ValueError, match=rf"^{name}: need a number or a map that fits images \(3, 4\), got \("):
        estimate_information(images(), noise, mean=mean)


def test_noise_maps_that_broadcast_are_taken() -> None:
    for shape in ((), (1,), (4,), (3, 1), (3, 4)):
        check_samples(images(), None, GaussianNoise(torch.ones(shape)))


def test_constant_pixels_are_listed_where_the_noise_excludes_them() -> None:
    measured = images().abs().round()
    measured[:, 1, 2] = 7.0
    for noise in (GaussianNoise(1.0), PoissonGaussianNoise(read_std=1.0)):
        for mean in (None, measured):
            with pytest.raises(ValueError, match=r"got pixel \(1, 2\) with one value in all 60 images"):
                estimate_information(measured, noise, mean=mean)
    measured[:, :2] = 3.0
    with pytest.raises(ValueError, match=r"got 8 pixels, \(0, 0\), .*\(1, 0\), \.\.\. with one value"):
        check_samples(measured, None, GaussianNoise(1.0))
    # Counts and codes may well be the same.
    for discrete in (PoissonNoise(), PoissonGaussianNoise(read_std=1.0, adc_bits=8)):
        check_samples(measured, None, discrete)


def test_labels_of_several_types_are_named() -> None:
    labels = np.array([None, 1, "a"] * 20, dtype=object)
    with pytest.raises(TypeError, match="groups: need labels of one type that can be sorted, got NoneType and int and"):
        estimate_information(images(), GaussianNoise(0.5), groups=labels)  # type: ignore[arg-type]
    words = make_groups(["b", "a"] * 30, images(), torch.Generator().manual_seed(0))
    assert words.labels.tolist() == [1, 0] * 30


def test_whole_numbers_and_shares() -> None:
    for value in (3, np.int64(3), np.uint8(3)):
        assert whole_number("n", value, 0, 6) == 3
        assert type(whole_number("n", value, 0, 6)) is int
    for wrong in (True, 3.0, "3", None, -1, 7, np.float64(3.0)):
        with pytest.raises(ValueError, match="n: need a whole number from 0 to 6, got"):
            whole_number("n", wrong, 0, 6)
    for share in (0.3, np.float32(0.5)):
        assert open_share("s", share) == pytest.approx(float(share))
    for outside in (0, 1, -0.5, float("nan")):
        with pytest.raises(ValueError, match="s: need a value between 0 and 1"):
            open_share("s", outside)
    for no_number in ("0.95", None, True, [0.5]):
        with pytest.raises(TypeError, match="s: need a number between 0 and 1, got"):
            open_share("s", no_number)
