"""How a large image is cut: tiles that are scored, the windows they are seen in, and which parts belong together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Side of the parts of one image that folds are made of, in windows: what a gap costs is then a half of the rest.
_PART_WINDOWS = 6
_LEAST_PARTS = 2


class Axis(NamedTuple):
    """Tiles along one axis: window t starts at `start[t]`, its pixels `first[t]` to `last[t]` - 1 are scored there."""

    size: int
    window: int
    start: Tensor
    first: Tensor
    last: Tensor

    @property
    def n_tiles(self) -> int:
        return len(self.start)

    @property
    def lengths(self) -> Tensor:
        """Pixels that each tile scores."""
        return self.last - self.first

    def scored(self, tiles: Tensor) -> Tensor:
        """Which pixels of the windows of these tiles are scored, (n, window)."""
        place = torch.arange(self.window, device=tiles.device)
        return (place >= self.first[tiles, None]) & (place < self.last[tiles, None])

    def parts(self, count: int) -> Tensor:
        """For each tile its part, of `count` parts of about equal length."""
        return torch.arange(self.n_tiles) * count // self.n_tiles

    def span(self, tiles: Tensor) -> slice:
        """Pixels of the image that these neighbouring tiles score."""
        begin, end = int(tiles.min()), int(tiles.max())
        return slice(int(self.start[begin] + self.first[begin]), int(self.start[end] + self.last[end]))


def cut(size: int, patch: int, before: int, after: int) -> Axis:
    """Every pixel scored once, with `before` and `after` pixels around it or all that there are up to the border."""
    window = min(before + patch + after, size)
    rows = []
    done = 0
    while done < size:
        start = min(max(0, done - before), size - window)
        last = window if start + window == size else window - after
        rows.append((start, done - start, last))
        done = start + last
    start_, first_, last_ = torch.tensor(rows).unbind(1)
    return Axis(size, window, start_, first_, last_)


class Tiles(NamedTuple):
    """The two axes; a table of tiles is (row tiles, column tiles)."""

    rows: Axis
    columns: Axis

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.n_tiles, self.columns.n_tiles

    def parts(self, counts: tuple[int, int]) -> Tensor:
        """Label of the part that each tile is in, of counts[0] x counts[1] parts."""
        return self.rows.parts(counts[0])[:, None] * counts[1] + self.columns.parts(counts[1])

    def clusters(self, n_images: int, at_least: int) -> tuple[int, int]:
        """Numbers of parts along both axes: the fewest, and so the largest, of `at_least` in all the images."""
        for side in range(max(self.shape), 0, -1):
            counts = (-(-self.shape[0] // side), -(-self.shape[1] // side))
            if n_images * counts[0] * counts[1] >= at_least:
                return counts
        return self.shape

    def fold_parts(self) -> tuple[int, int]:
        """Numbers of parts along both axes that folds of one image are made of."""
        side = _PART_WINDOWS * max(self.rows.window, self.columns.window)
        counts = [min(axis.n_tiles, max(_LEAST_PARTS, axis.size // side)) for axis in self]
        return counts[0], counts[1]

    def near(self, chosen: Tensor, gap: int) -> Tensor:
        """Pixels that windows of the `chosen` tiles see, and those less than `gap` away: (row, column) bool."""
        mask = torch.zeros(self.rows.size, self.columns.size, dtype=torch.bool)
        for row, column in chosen.nonzero().tolist():
            top, left = int(self.rows.start[row]), int(self.columns.start[column])
            bottom, right = top + self.rows.window + gap, left + self.columns.window + gap
            mask[max(0, top - gap) : bottom, max(0, left - gap) : right] = True
        return mask

    def clear(self, mask: Tensor) -> Tensor:
        """Where windows start that hold no pixel of `mask`: (row, column) bool."""
        total = torch.zeros(mask.shape[0] + 1, mask.shape[1] + 1, dtype=torch.int64)
        total[1:, 1:] = mask.to(torch.int64).cumsum(0).cumsum(1)
        down, across = self.rows.window, self.columns.window
        inside = total[down:, across:] - total[:-down, across:] - total[down:, :-across] + total[:-down, :-across]
        return inside == 0


def windows_at(images: Tensor, tiles: Tiles, image: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Windows of (n, channel, row, column) images that start at these places, (k, channel, row, column)."""
    every = images.unfold(2, tiles.rows.window, 1).unfold(3, tiles.columns.window, 1)
    return every[image, :, row, column].contiguous()
