"""The edges of detector bins in every view of a projection, as numbers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# Rows this close to the source of a fan lie outside the image wherever its rays are.
NEAR = 1e-9


class Rays(NamedTuple):
    """The edges of the bins in every view, once for each part; parallel rays in few numbers, a fan's edge by edge.

    Attributes:
        intercept: (part, view, edge), differentiable; of parallel rays (part, view, 2), first edge and step.
        slope: (part, view, edge), differentiable; of parallel rays (part, view, 1).
        source_row: (part, view) the row where the rays of a fan start, differentiable; empty for parallel rays.
        inverse: (part, view, 4) a, b, c, d of q = (a + b edge) / (c + d edge), the inverse of which finds the bin that
            a pixel's edge falls into; q is the slope of a fan's ray; empty for parallel rays.
        inside: (part, view, bin) whether the bin is in the part: neighbours, and each bin in one part; (part, view, 1)
            for parallel rays.
        direction: (part, view) sign of the change of row along a fan's rays; 1 for parallel rays.
        edge: (edge,) 0, 1, ... as numbers.
        factor: (view,) by which the sums are multiplied.
    """

    intercept: Tensor
    slope: Tensor
    source_row: Tensor
    inverse: Tensor
    inside: Tensor
    direction: Tensor
    edge: Tensor
    factor: Tensor

    @property
    def fan(self) -> bool:
        return self.source_row.numel() > 0

    def intercept_of_edges(self) -> Tensor:
        """(..., view, edge)."""
        return self.intercept if self.fan else self.intercept[..., :1] + self.intercept[..., 1:] * self.edge

    def part(self, index: int) -> Rays:
        """One part alone, without the first axis."""
        return Rays._make([*(value[index] for value in self[:-2]), self.edge, self.factor])
