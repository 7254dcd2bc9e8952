"""Stacks of images in TIFF files: which axis counts the images is read, not guessed."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, final

import numpy as np
from numpy.typing import NDArray

from bitlens.datasets._packages import package_for

MAGICS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


class _Layout(NamedTuple):
    """Which of the leading axes of a series counts images and which channels, and what a page holds."""

    image_axis: int | None
    channel_axis: int | None
    page_axes: str


@final
class TiffStack:
    """A TIFF file as an array (n, row, column) or (n, channel, row, column) that is read when it is sliced.

    Raises:
        ValueError: a file that is cut short or broken, or axes that do not say which of them counts the images.
        ModuleNotFoundError: tifffile is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._tifffile = package_for("tifffile", path)
        self._path = path
        _check_whole(path)
        try:
            self._file = self._tifffile.TiffFile(path)
        except (self._tifffile.TiffFileError, ValueError, OSError) as error:
            raise ValueError(f"{path}: cannot be read: {_line(error)}") from error
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        try:
            self._series = list(self._file.series)
        except Exception as error:  # whatever a damaged page makes the package do
            raise ValueError(f"{self._path}: cannot be read: {_line(error)}") from error
        if not self._series:
            raise ValueError(f"{self._path}: need at least one image, got none")
        first = self._series[0]
        kinds = {(series.axes, tuple(series.shape), str(series.dtype)) for series in self._series}
        if len(kinds) > 1:
            shapes = ", ".join(sorted({f"{axes} {shape}" for axes, shape, _ in kinds}))
            raise ValueError(f"{self._path}: need pages of one shape and type, got {shapes}")
        sizes = tuple(int(size) for size in first.shape)
        self._leading = sizes[: len(sizes) - _page_axes(first.axes, self._path)]
        self._layout = _layout(first, self._leading, self._path)
        self._memory = [self._checked_pages(series) for series in self._series]
        self.dtype = np.dtype(first.dtype)
        axis, channels = self._layout.image_axis, self._layout.channel_axis
        self._per_series = 1 if axis is None else self._leading[axis]
        page = dict(zip(self._layout.page_axes, sizes[len(self._leading) :], strict=True))
        n_channels = page.get("S") if channels is None else self._leading[channels]
        plane = (page["Y"], page["X"])
        self.shape = (self._per_series * len(self._series), *(() if n_channels is None else (n_channels,)), *plane)

    def _checked_pages(self, series: Any) -> NDArray[Any] | None:
        """One array on disk where all planes lie there in a row, else None: each plane has a page.

        Raises:
            ValueError: pages that the axes promise are not there, or end beyond the file.
        """
        n_planes, n_pages, size = math.prod(self._leading), len(series.pages), self._path.stat().st_size
        start, n_bytes = series.dataoffset, math.prod(series.shape) * np.dtype(series.dtype).itemsize
        if start is not None and start + n_bytes <= size:
            dtype = np.dtype(series.dtype).newbyteorder(self._file.byteorder)
            return np.memmap(self._path, dtype, "r", start, tuple(series.shape))
        if n_pages != n_planes:
            raise ValueError(
                f"{self._path}: need the {n_planes} images that its axes {series.axes} {tuple(series.shape)} promise, "
                f"got {n_pages} pages: the file is cut short or damaged"
            )
        for index, page in enumerate(series.pages):
            if page is None:
                raise ValueError(f"{self._path}: need all its pages, got none as page {index}")
            of = Path(page.parent.filehandle.path)  # a set of several files refers to the others
            ends = [first + count for first, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
            if max(ends, default=0) > (size if of == self._path.absolute() else of.stat().st_size):
                raise ValueError(f"{self._path}: the file ends early, within page {index} of {n_pages}")
        return None

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, part: slice) -> NDArray[Any]:
        """The images of a slice, in memory."""
        chosen = range(*part.indices(len(self)))
        if not chosen:
            return np.empty((0, *self.shape[1:]), self.dtype)
        try:
            return np.stack([self._image(index) for index in chosen])
        except Exception as error:  # damaged data fail in the package's many decoders
            raise ValueError(f"{self._path}: cannot be read: {_line(error)}") from error

    def _image(self, index: int) -> NDArray[Any]:
        which, within = divmod(index, self._per_series)
        channels = self._layout.channel_axis
        if channels is None:
            return self._plane(which, within)
        return np.stack([self._plane(which, within, channel) for channel in range(self._leading[channels])])

    def _plane(self, which: int, image: int, channel: int = 0) -> NDArray[Any]:
        """(row, column), or colours first, of one page."""
        place = tuple(
            image if axis == self._layout.image_axis else channel if axis == self._layout.channel_axis else 0
            for axis in range(len(self._leading))
        )
        memory = self._memory[which]
        if memory is not None:
            plane = np.asarray(memory[place], self.dtype)
        else:
            number = int(np.ravel_multi_index(place, self._leading)) if place else 0
            plane = self._series[which].pages[number].asarray()
        return np.moveaxis(plane, -1, 0) if self._layout.page_axes == "YXS" else plane

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def _page_axes(axes: str, path: Path) -> int:
    """How many of the last axes are those of a page."""
    for page in ("YXS", "SYX", "YX"):
        if axes.endswith(page):
            return len(page)
    raise ValueError(f"{path}: need pages with rows and columns, got axes {axes}")


def _layout(series: Any, leading: tuple[int, ...], path: Path) -> _Layout:
    """What the axes of a series mean.

    Raises:
        ValueError: they leave open which one counts the images.
    """
    names, page = series.axes[: len(leading)], series.axes[len(leading) :]
    what = f"axes {series.axes} {tuple(series.shape)}"
    if not names:
        if "S" in page and series.kind == "shaped":
            # An array (n, row, 3) and a picture with three colours give the same file.
            raise ValueError(
                f"{path}: need a page for each image, got one page with colours, {what}; "
                f"write a stack of {series.shape[0]} images with photometric='minisblack', or pass the array itself"
            )
        return _Layout(None, None, page)
    if len(names) == 1 and names != "C":
        return _Layout(0, None, page)
    if len(names) == 2 and "S" not in page and names != "CC":
        if "C" in names:
            return _Layout(1 - names.index("C"), names.index("C"), page)
        if names == "QQ":  # an array (n, channel, row, column) that was written without names
            return _Layout(0, 1, page)
    raise ValueError(
        f"{path}: need one axis of images, and at most one C of channels, before rows and columns, got {what}; "
        "pass the array itself as (n, channel, row, column)"
    )


def _check_whole(path: Path) -> None:
    """Follow the chain of pages to its end, which a file that was cut no longer has.

    Raises:
        ValueError: a page lies beyond the end of the file, or the chain is a ring.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        big = head[2:4] in (b"+\x00", b"\x00+")
        count, entry, offset = ("Q", 20, "Q") if big else ("H", 12, "I")
        if not head.startswith(MAGICS) or len(head) < 16:
            raise ValueError(f"{path}: cannot be read: it is not a TIFF file")
        (at,) = struct.unpack_from(order + offset, head, 8 if big else 4)
        seen: set[int] = set()
        while at:
            if at in seen:
                raise ValueError(f"{path}: cannot be read: its chain of pages is a ring")
            seen.add(at)
            file.seek(at)
            found = file.read(struct.calcsize(order + count))
            n_entries = struct.unpack(order + count, found)[0] if len(found) == struct.calcsize(order + count) else size
            after = at + len(found) + entry * n_entries
            if at >= size or after + struct.calcsize(order + offset) > size:
                raise ValueError(f"{path}: the file ends early, before page {len(seen)}: it is cut short or damaged")
            file.seek(after)
            (at,) = struct.unpack(order + offset, file.read(struct.calcsize(order + offset)))


def _line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
