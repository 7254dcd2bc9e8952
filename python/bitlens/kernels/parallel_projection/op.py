"""Checks and dispatch of parallel projections; their gradients are in `bitlens.encoders._tomography_gradients`.

The gradients are there because fans share them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitlens.kernels import _backend, _compiled
from bitlens.kernels.parallel_projection import reference
from bitlens.kernels.parallel_projection.reference import Views

IMPLEMENTED = ("cuda", "cpu", "numba", "reference")

__all__ = ["Views", "backproject", "project"]


def project(image: Tensor, views: Views, n_bins: int) -> Tensor:
    """factor_v sum_i (P_i(edge b + 1) - P_i(edge b)), (batch, view, bin), of `image` (batch, row, column).

    P_i(x) is the integral of line i from 0 to x, linear within a pixel and constant outside the image. Of the image's
    dtype; in double inside. A pixel that is not finite spoils the bins that it touches and, of a line, all on one side.

    Raises:
        TypeError, ValueError: an image that is not float32 or float64, or shapes or devices that do not fit.

    Reference: De Man and Basu 2004, doi:10.1088/0031-9155/49/11/024.
    """
    backend = _checked("image", image, views)
    if image.device.type == "meta":
        return image.new_empty((len(image), len(views.factor), n_bins))
    image, views = _compiled.plain(image), _plain(views)
    if backend == "reference":
        return reference.project(image, views, n_bins)
    if backend == "numba":
        from bitlens.kernels.parallel_projection import fallback

        return fallback.project(image, views, n_bins, _backend.threads())
    output = image.new_empty((len(image), len(views.factor), n_bins))
    _compiled.parallel_projection(backend, False, image, views, output, _backend.threads())
    return output


def backproject(bins: Tensor, views: Views, shape: tuple[int, int]) -> Tensor:
    """(batch, row, column), the adjoint of `project`, of `bins` (batch, view, bin).

    Raises:
        TypeError, ValueError: as `project`.
    """
    backend = _checked("bins", bins, views)
    if bins.shape[1] != len(views.factor):
        raise ValueError(f"bins: need shape (batch, {len(views.factor)}, bin), got {tuple(bins.shape)}")
    if bins.device.type == "meta":
        return bins.new_empty((len(bins), *shape))
    bins, views = _compiled.plain(bins), _plain(views)
    if backend == "reference":
        return reference.backproject(bins, views, shape)
    if backend == "numba":
        from bitlens.kernels.parallel_projection import fallback

        return fallback.backproject(bins, views, shape, _backend.threads())
    output = bins.new_empty((len(bins), *shape))
    _compiled.parallel_projection(backend, True, bins, views, output, _backend.threads())
    return output


def _checked(name: str, value: Tensor, views: Views) -> str:
    """The backend, once the arguments fit together."""
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: need float32 or float64, got {value.dtype}")
    if value.ndim != 3:
        raise ValueError(f"{name}: need three axes, got shape {tuple(value.shape)}")
    if views.factor.ndim != 1:
        raise ValueError(f"views.factor: need shape (view,), got {tuple(views.factor.shape)}")
    for field, own in zip(Views._fields, views, strict=True):
        if field != "factor" and tuple(own.shape) != (2, len(views.factor)):
            raise ValueError(f"views.{field}: need shape (2, {len(views.factor)}), got {tuple(own.shape)}")
        if own.device != value.device:
            raise ValueError(f"{name}: need the device of the views, {own.device}, got {value.device}")
    # A subclass has no memory of its own that a kernel could read.
    if type(value) not in (Tensor, nn.Parameter) and not _backend.forced():
        return "reference"
    return _backend.select("parallel_projection", value.device, IMPLEMENTED)


def _plain(views: Views) -> Views:
    wide = [_compiled.plain(value).to(torch.float64) for value in (views.start, views.width, views.slope, views.factor)]
    return Views(wide[0], wide[1], wide[2], _compiled.plain(views.inside), wide[3])
