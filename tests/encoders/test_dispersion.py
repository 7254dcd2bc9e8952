"""The dispersed coded aperture against explicit sums, its options and its errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bitlens.encoders.dispersion import DispersedCodedAperture


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def explicit_sum(scene: np.ndarray, mask: np.ndarray, band_columns: list[float]) -> np.ndarray:
    """Every sample on its own: to the two columns around where its band's shift takes it."""
    batch, n_bands, rows, columns = scene.shape
    mask = np.broadcast_to(mask, (n_bands, rows, columns))
    out = np.zeros((batch, 1, rows, columns + math.ceil(max(band_columns))))
    for image in range(batch):
        for band, shift in enumerate(band_columns):
            for row in range(rows):
                for column in range(columns):
                    light = scene[image, band, row, column] * mask[band, row, column]
                    for landing in range(out.shape[-1]):
                        out[image, 0, row, landing] += light * max(0.0, 1 - abs(landing - column - shift))
    return out


@pytest.mark.parametrize("per_band", [False, True])
@pytest.mark.parametrize("step", [0, 1, 3, 0.5, 1.3])
def test_against_an_explicit_sum(step: float, per_band: bool) -> None:
    scene = rand(2, 4, 5, 7)
    mask = rand(4, 5, 7, seed=1) if per_band else rand(5, 7, seed=1)
    aperture = DispersedCodedAperture(mask, n_bands=4, step=step)
    expected = explicit_sum(scene.numpy(), mask.numpy(), [step * band for band in range(4)])
    assert aperture(scene).shape == (2, 1, 5, 7 + math.ceil(3 * step))
    np.testing.assert_allclose(aperture(scene).numpy(), expected, rtol=1e-13, atol=1e-15)


def test_a_prism_takes_a_column_for_each_band() -> None:
    scene, mask, places = rand(1, 3, 4, 6), rand(4, 6, seed=1), [0.25, 2.0, 3.6]
    aperture = DispersedCodedAperture(mask.numpy(), n_bands=3, step=places)
    np.testing.assert_allclose(aperture(scene.numpy()), explicit_sum(scene.numpy(), mask.numpy(), places), rtol=1e-13)
    assert aperture.measured_columns == 10


def test_a_single_hole_draws_a_spectrum() -> None:
    mask = torch.zeros(3, 5)
    mask[1, 2] = 1.0
    scene = rand(1, 4, 3, 5)
    mean = DispersedCodedAperture(mask, n_bands=4)(scene)
    torch.testing.assert_close(mean[0, 0, 1, 2:6], scene[0, :, 1, 2])
    assert float(mean.sum()) == pytest.approx(float(scene[0, :, 1, 2].sum()))


def test_masks_are_mapped_in_one_call() -> None:
    scene, masks = rand(1, 3, 4, 5), rand(6, 4, 5, seed=1)
    aperture = DispersedCodedAperture(masks[0], n_bands=3, step=1.5)

    def mean(mask: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(aperture, {"mask": mask}, (scene,))

    together = torch.func.vmap(mean)(masks)
    for mask, one in zip(masks, together, strict=True):
        torch.testing.assert_close(one, DispersedCodedAperture(mask, n_bands=3, step=1.5)(scene))


def test_the_mean_has_the_scenes_precision() -> None:
    aperture = DispersedCodedAperture(rand(4, 5), n_bands=3, step=0.3)
    scene = rand(1, 3, 4, 5)
    single = aperture(scene.float())
    assert single.dtype == torch.float32
    assert aperture.A_adjoint(single).dtype == torch.float32
    torch.testing.assert_close(single.double(), aperture(scene), rtol=1e-6, atol=1e-7)


def test_arrays_that_are_not_writable_are_accepted() -> None:
    scene, mask = rand(1, 2, 4, 5).numpy(), rand(4, 5, seed=1).numpy()
    expected = DispersedCodedAperture(mask, n_bands=2)(scene)
    scene.flags.writeable = mask.flags.writeable = False
    assert torch.equal(DispersedCodedAperture(mask, n_bands=2)(scene), expected)


def test_learn_makes_the_mask_a_parameter() -> None:
    mask = rand(4, 5)
    aperture = DispersedCodedAperture(mask, n_bands=2, learn=("mask",))
    assert [name for name, _ in aperture.named_parameters()] == ["mask"]
    assert [name for name, _ in DispersedCodedAperture(mask, n_bands=2).named_buffers()] == ["mask"]
    aperture.mask.data.zero_()
    assert float(mask.min()) > 0, "the encoder holds a copy"


def test_what_is_wrong_is_named() -> None:
    mask = rand(4, 5)
    with pytest.raises(ValueError, match=r"mask: need values of 0 to 1, got 1\.5"):
        DispersedCodedAperture(mask + 1.5 - mask.max(), n_bands=2)
    with pytest.raises(ValueError, match=r"mask: need \(row, column\) or \(band, row, column\), got shape \(5,\)"):
        DispersedCodedAperture(mask[0], n_bands=2)
    with pytest.raises(ValueError, match=r"mask: need 3 bands or none, got shape \(2, 4, 5\)"):
        DispersedCodedAperture(rand(2, 4, 5), n_bands=3)
    with pytest.raises(ValueError, match="mask: need finite values, got NaN"):
        DispersedCodedAperture(mask * math.nan, n_bands=2)
    with pytest.raises(ValueError, match="n_bands: need at least 1, got 0"):
        DispersedCodedAperture(mask, n_bands=0)
    with pytest.raises(ValueError, match="step: need at least 0, got -1"):
        DispersedCodedAperture(mask, n_bands=2, step=-1)
    with pytest.raises(ValueError, match="step: need a number or 2 of them, one per band, got 3"):
        DispersedCodedAperture(mask, n_bands=2, step=(0, 1, 2))
    with pytest.raises(ValueError, match="learn: need names among mask, got 'step'"):
        DispersedCodedAperture(mask, n_bands=2, learn=("step",))
    with pytest.raises(TypeError, match="learn: need a sequence of names, got 'mask'"):
        DispersedCodedAperture(mask, n_bands=2, learn="mask")
    aperture = DispersedCodedAperture(mask, n_bands=2)
    with pytest.raises(ValueError, match=r"scene: need shape \(batch, 2, 4, 5\), got \(1, 3, 4, 5\)"):
        aperture(rand(1, 3, 4, 5))
    with pytest.raises(ValueError, match=r"measured: need shape \(batch, 1, 4, 6\), got \(1, 1, 4, 5\)"):
        aperture.A_adjoint(rand(1, 1, 4, 5))
    with pytest.raises(TypeError, match=r"scene: need float32 or float64 values, got int64"):
        aperture(torch.ones(1, 2, 4, 5, dtype=torch.int64))
