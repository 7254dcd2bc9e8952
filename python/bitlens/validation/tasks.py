"""What a decoder is asked to recover from a measurement, and how it is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitlens.densities._samples import samples
from bitlens.validation import scores


@final
@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Recover an image: scored by PSNR (dB, mean over images), SSIM and mean squared error.

    Args:
        target: (n, channel, row, column), what is recovered from each measurement; None: the scenes themselves.
        data_range: of PSNR and SSIM; None: the largest absolute value of the target.

    Raises:
        TypeError, ValueError: a target that is not such an array, or a range that is not a positive number.
    """

    target: Tensor | NDArray[Any] | None = None
    data_range: float | None = None

    def __post_init__(self) -> None:
        if self.target is not None:
            checked_images("target", self.target)
        if self.data_range is not None:
            scores._check_range(self.data_range)

    @property
    def score_names(self) -> tuple[str, ...]:
        """The scores, the main one first."""
        return ("psnr", "ssim", "mse")

    def targets(self, scenes: Tensor) -> Tensor:
        """The target of each scene, float32."""
        value = scenes if self.target is None else self.target
        images = checked_images("target", value).to(torch.float32)
        if len(images) != len(scenes):
            raise ValueError(f"target: need one image per scene, {len(scenes)}, got {len(images)}")
        return images

    def score(self, estimate: Tensor, target: Tensor, *, data_range: float) -> dict[str, float]:
        """Mean over images of each score."""
        return {
            "psnr": float(scores.psnr_db(estimate, target, data_range=data_range).mean()),
            "ssim": float(scores.ssim(estimate, target, data_range=data_range).mean()),
            "mse": float(scores.mean_squared_error(estimate, target).mean()),
        }

    def range_of(self, target: Tensor) -> float:
        """`data_range`, or the largest absolute value of all targets."""
        return float(target.abs().max()) if self.data_range is None else self.data_range


@final
@dataclass(frozen=True, eq=False)
class Classification:
    """Name the class: scored by accuracy and cross-entropy (bits).

    Args:
        labels: (n,) whole numbers or texts, one per scene.

    Raises:
        TypeError: labels that are neither.
        ValueError: not one row of labels, or fewer than two classes.
    """

    labels: Sequence[object] | NDArray[Any] | Tensor

    def __post_init__(self) -> None:
        _codes(self.labels)

    @property
    def score_names(self) -> tuple[str, ...]:
        """The scores, the main one first."""
        return ("accuracy", "cross_entropy_bits")

    def targets(self, scenes: Tensor) -> Tensor:
        """The number of the class of each scene, (n,) int64; classes in sorted order."""
        codes = _codes(self.labels)
        if len(codes) != len(scenes):
            raise ValueError(f"labels: need one per scene, {len(scenes)}, got {len(codes)}")
        return codes.to(scenes.device)

    def score(self, estimate: Tensor, target: Tensor, *, data_range: float) -> dict[str, float]:
        """Accuracy and cross-entropy of log-probabilities (n, class); `data_range` plays no part."""
        return {
            "accuracy": scores.accuracy(estimate, target),
            "cross_entropy_bits": scores.cross_entropy_bits(estimate, target),
        }

    def range_of(self, target: Tensor) -> float:
        """1: classes have no range."""
        return 1.0


Task = Reconstruction | Classification


def checked_images(name: str, value: object) -> Tensor:
    """`value` as a tensor (n, channel, row, column) of finite real numbers."""
    images = samples(name, value)
    if images.ndim != 4:
        raise ValueError(f"{name}: need shape (n, channel, row, column), got {tuple(images.shape)}")
    return images


def _codes(labels: Sequence[object] | NDArray[Any] | Tensor) -> Tensor:
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.dtype.kind not in "biuUS":
        raise TypeError(f"labels: need whole numbers or texts, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"labels: need shape (n,), got {array.shape}")
    classes, codes = np.unique(array, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"labels: need at least 2 classes, got {len(classes)}")
    return torch.from_numpy(codes.astype(np.int64))
