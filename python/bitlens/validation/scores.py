"""How good an estimate is: mean squared error, PSNR and SSIM of images, accuracy and cross-entropy of classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

# Wang et al. 2004: Gaussian window of deviation 1.5 over 11 x 11 pixels, and the two constants.
_SSIM_DEVIATION, _SSIM_WINDOW, _SSIM_K1, _SSIM_K2 = 1.5, 11, 0.01, 0.03

LOWER_IS_BETTER = ("mse", "cross_entropy_bits")


def mean_squared_error(estimate: Tensor, target: Tensor) -> Tensor:
    """mean((estimate - target)^2) of each image, (n, ...) -> (n,) float64."""
    _check_images(estimate, target)
    return (estimate.double() - target.double()).square().flatten(1).mean(1)


def psnr_db(estimate: Tensor, target: Tensor, *, data_range: float) -> Tensor:
    """10 log10(data_range^2 / MSE) of each image, (n, ...) -> (n,) float64 dB; infinite where both agree.

    Raises:
        ValueError: shapes that differ, or a range that is not a positive number.
    """
    _check_range(data_range)
    return 20 * math.log10(data_range) - 10 * torch.log10(mean_squared_error(estimate, target))


def ssim(estimate: Tensor, target: Tensor, *, data_range: float) -> Tensor:
    """Structural similarity of each image, mean over channels and pixels, (n, channel, row, column) -> (n,) float64.

    Gaussian window of deviation 1.5 over 11 x 11 pixels (fewer in a smaller image), only where it lies inside.

    Raises:
        ValueError: shapes that differ or are not (n, channel, row, column), a range that is not a positive number.

    Reference: Wang et al. 2004, doi:10.1109/TIP.2003.819861.
    """
    _check_range(data_range)
    _check_images(estimate, target)
    if target.ndim != 4:
        raise ValueError(f"target: need shape (n, channel, row, column), got {tuple(target.shape)}")
    x, y = (value.double().flatten(0, 1)[:, None] for value in (estimate, target))
    rows, columns = (_window(size).to(x.device) for size in target.shape[-2:])

    def local(value: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(value, rows[None, None, :, None]), columns[None, None, None, :])

    mean_x, mean_y = local(x), local(y)
    variance_x, variance_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    c1, c2 = (_SSIM_K1 * data_range) ** 2, (_SSIM_K2 * data_range) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return similarity.reshape(target.shape[0], -1).mean(1)


def accuracy(log_probability: Tensor, labels: Tensor) -> float:
    """Share of rows of `log_probability` (n, class) whose largest entry is at `labels` (n,)."""
    return float((log_probability.argmax(1) == labels.to(log_probability.device)).double().mean())


def cross_entropy_bits(log_probability: Tensor, labels: Tensor) -> float:
    """-mean log2 q(label) of log-probabilities (n, class), nats, at `labels` (n,)."""
    chosen = log_probability.double().gather(1, labels.to(log_probability.device)[:, None])
    return float(-chosen.mean() / math.log(2))


def _window(size: int) -> Tensor:
    width = min(_SSIM_WINDOW, size - 1 + size % 2)
    offset = torch.arange(width, dtype=torch.float64) - width // 2
    weight = torch.exp(-0.5 * (offset / _SSIM_DEVIATION) ** 2)
    return weight / weight.sum()


def _check_images(estimate: Tensor, target: Tensor) -> None:
    if estimate.shape != target.shape:
        raise ValueError(f"estimate: need the shape of target, {tuple(target.shape)}, got {tuple(estimate.shape)}")


def _check_range(data_range: float) -> None:
    if not (math.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data_range: need a positive number, got {data_range}")
