"""Dispatch of parallel projections; their gradients are in `bitlens.encoders._tomography_gradients`.

The layers that own the geometry have checked the arguments; fans share their gradients, which is why these are there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitlens.kernels import _backend, _compiled
from bitlens.kernels.parallel_projection import reference
from bitlens.kernels.parallel_projection.reference import Views

IMPLEMENTED = ("cuda", "cpu", "numba", "reference")

__all__ = ["Views", "backproject", "project"]


def project(image: Tensor, views: Views, n_bins: int) -> Tensor:
    """factor_v sum_i (P_i(edge b + 1) - P_i(edge b)), (batch, view, bin), of `image` (batch, row, column).

    P_i(x) is the integral of line i from 0 to x, linear within a pixel and constant outside the image. Of the image's
    dtype, float32 or float64; in double inside.

    Reference: De Man and Basu 2004, doi:10.1088/0031-9155/49/11/024.
    """
    backend = _backend.select("parallel_projection", image.device, IMPLEMENTED)
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
    """(batch, row, column), the adjoint of `project`, of `bins` (batch, view, bin)."""
    backend = _backend.select("parallel_projection", bins.device, IMPLEMENTED)
    bins, views = _compiled.plain(bins), _plain(views)
    if backend == "reference":
        return reference.backproject(bins, views, shape)
    if backend == "numba":
        from bitlens.kernels.parallel_projection import fallback

        return fallback.backproject(bins, views, shape, _backend.threads())
    output = bins.new_empty((len(bins), *shape))
    _compiled.parallel_projection(backend, True, bins, views, output, _backend.threads())
    return output


def _plain(views: Views) -> Views:
    wide = [_compiled.plain(value).to(torch.float64) for value in (views.start, views.width, views.slope, views.factor)]
    return Views(wide[0], wide[1], wide[2], _compiled.plain(views.inside), wide[3])
