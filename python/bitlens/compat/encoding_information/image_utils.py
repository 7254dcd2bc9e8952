"""Patches and synthetic noise for stacks of images (n, row, column[, channel])."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def extract_patches(
    stack: ArrayLike,
    patch_size: int,
    num_patches: int = 1000,
    seed: int | None = None,
    verbose: bool = False,
    return_locations: bool = False,
) -> NDArray[np.generic] | tuple[NDArray[np.generic], NDArray[np.float32]]:
    """`num_patches` random squares (num_patches, patch_size, patch_size[, channel]) of a stack (n, row, column, ...).

    With `return_locations` also the row and column of their centres. The positions are other ones than those of the
    original for the same seed, and patches overlap: what depends on their number being independent counts too few
    errors. `verbose` prints nothing.

    Raises:
        ValueError: not a stack, or images smaller than a patch.
    """
    images = np.asarray(stack)
    if images.ndim < 3:
        raise ValueError(f"stack: need (n, row, column) or (n, row, column, channel), got {images.shape}")
    if images.shape[0] < 1 or not 1 <= patch_size <= min(images.shape[1:3]):
        raise ValueError(f"patch_size: need 1 to the rows and columns of {images.shape}, got {patch_size}")
    random = np.random.default_rng(seed)
    index = random.integers(0, images.shape[0], num_patches)
    row = random.integers(0, images.shape[1] - patch_size + 1, num_patches)
    column = random.integers(0, images.shape[2] - patch_size + 1, num_patches)
    within = np.arange(patch_size)
    rows, columns = row[:, None] + within, column[:, None] + within
    patches = images[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    if not return_locations:
        return patches
    return patches, (np.stack([row, column], axis=1) + patch_size // 2).astype(np.float32)


def add_noise(
    images: ArrayLike,
    ensure_positive: bool | None = None,
    gaussian_sigma: float | None = None,
    key: ArrayLike | None = None,
    seed: int | None = None,
    batch_size: int = 1000,
) -> NDArray[np.float32]:
    """Poisson counts of the images, or with `gaussian_sigma` the images plus Gaussian noise: float32, same shape.

    `ensure_positive` sets negative values to 0; unlike in the original only when asked, because clipped noise is not
    the noise that an AnalyticGaussianNoiseModel stands for. `key` is a seed too; `batch_size` changes nothing.

    Raises:
        ValueError: negative or infinite means of Poisson noise.
    """
    mean = np.asarray(images, dtype=np.float64)
    random = np.random.default_rng(seed if key is None else np.asarray(key).astype(np.uint32).ravel())
    if gaussian_sigma is not None:
        noisy = mean + gaussian_sigma * random.standard_normal(mean.shape)
    else:
        if mean.size and not (np.isfinite(mean).all() and mean.min() >= 0):
            raise ValueError(f"images: need finite means of at least 0 for Poisson noise, got {mean.min():g}")
        noisy = random.poisson(mean).astype(np.float64)
    if ensure_positive:
        noisy = np.maximum(noisy, 0.0)
    return noisy.astype(np.float32)


def normalize_image_stack(stack: ArrayLike) -> NDArray[np.float64]:
    """The stack over its mean: different systems at the same average energy per pixel; noise is scaled along."""
    images = np.asarray(stack, dtype=np.float64)
    return np.asarray(images / images.mean())
