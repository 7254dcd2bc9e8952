"""Batches of measurements from arrays, files and loaders that need not fit into memory."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitlens.datasets._packages import package_for
from bitlens.datasets._tiff import TiffStack
from bitlens.estimators._inputs import whole_number

_HDF5 = (".h5", ".hdf5", ".hdf")
_TIFF = (".tif", ".tiff")
_LARGEST_EXACT = 2**53


class Batch(NamedTuple):
    """`measured` (n, ...) and the noiseless images, `mean`, if the source has them: `metric.update(*batch)`."""

    measured: Tensor
    mean: Tensor | None


@runtime_checkable
class Sliceable(Protocol):
    """What an array offers that may lie on disk: NumPy, torch, h5py, zarr and their like."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, index: Any, /) -> Any: ...


def batches(source: object, batch_size: int, *, name: str | None = None) -> Iterator[Batch]:
    """Batches of at most `batch_size` images, one in memory at a time, finite, float32 or float64 as exactness needs.

    Args:
        source: an array (n, ...) or anything with shape, dtype and slicing; a tuple (measured, mean) of two such; a
            DataLoader or any iterable of batches (n, ...), of pairs or of {"measured": ..., "mean": ...}; a path to
            .npy, .npz, .tiff, .h5 or .zarr. Axes of a TIFF say which counts images. h5py, tifffile and zarr are loaded
            when needed.
        name: which array of an .npz, .h5 or .zarr with several; None takes "measured" and, if there, "mean".

    Raises:
        TypeError: not a source, or not real numbers.
        ValueError: empty, NaN or infinity, integers above 2^53, shapes that differ, an unknown kind of file.
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the package that reads such a file is not installed.
    """
    batch_size = whole_number("batch_size", batch_size, 1)
    what = str(source) if isinstance(source, str | Path) else "source"
    found = _checked(_parts(source, batch_size, name), what)
    # The first one now: what is wrong with a source is said where it is passed.
    first = next(found, None)
    if first is None:
        raise ValueError(f"{what}: need at least one image, got none")
    return itertools.chain([first], found)


_Raw = tuple[Any, Any]  # measured and mean or None, as they come


def _parts(source: object, batch_size: int, name: str | None) -> Iterator[_Raw]:
    if isinstance(source, str | Path):
        return _from_file(Path(source), batch_size, name)
    if name is not None:
        raise ValueError(f"name: need None for a source that is not a file, got {name!r}")
    if isinstance(source, tuple) and len(source) == 2 and all(isinstance(part, Sliceable) for part in source):
        return _slices(source[0], source[1], batch_size, "source")
    if isinstance(source, Sliceable):
        return _slices(source, None, batch_size, "source")
    if isinstance(source, Iterable) and not isinstance(source, bytes | Mapping):
        return _from_iterable(source, batch_size)
    raise TypeError(
        f"source: need an array, a (measured, mean) pair, an iterable of batches or a path, got {type(source).__name__}"
    )


def _slices(measured: Sliceable, mean: Sliceable | None, batch_size: int, what: str) -> Iterator[_Raw]:
    shape = _shape(measured)
    if len(shape) < 2:
        raise ValueError(f"{what}: need images (n, ...), got shape {shape}")
    _check_kind(measured.dtype, what)
    if mean is not None:
        if _shape(mean) != shape:
            raise ValueError(f"{what}: need mean of the shape of measured, {shape}, got {_shape(mean)}")
        _check_kind(mean.dtype, what)
    for first in range(0, shape[0], batch_size):
        part = slice(first, first + batch_size)
        yield measured[part], None if mean is None else mean[part]


def _from_iterable(source: Iterable[object], batch_size: int) -> Iterator[_Raw]:
    for index, item in enumerate(source):
        measured: object = item
        mean: object = None
        if isinstance(item, Mapping) and "measured" in item:
            measured, mean = item["measured"], item.get("mean")
        elif isinstance(item, list | tuple) and 1 <= len(item) <= 2:
            measured, mean = item[0], item[1] if len(item) == 2 else None
        if not isinstance(measured, Sliceable) or not (mean is None or isinstance(mean, Sliceable)):
            raise TypeError(
                f"source: need batches that are arrays, or (measured, mean) pairs of arrays, got "
                f"{type(item).__name__} as batch {index}"
            )
        if mean is not None and len(_shape(mean)) < 2 <= len(_shape(measured)):
            raise ValueError(
                f"source, batch {index}: need noiseless images of shape {_shape(measured)} as the second of a pair, "
                f"got shape {_shape(mean)}, as labels have; pass the images alone: (images for images, label in loader)"
            )
        yield from _slices(measured, mean, batch_size, f"source, batch {index}")


# ---- Files ----


def _from_file(path: Path, batch_size: int, name: str | None) -> Iterator[_Raw]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    kind = path.suffix.lower()
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    if kind in (".npy", *_TIFF) and name is not None:
        raise ValueError(f"name: need None for a {kind} file, got {name!r}")
    if kind == ".npy":
        return _from_npy(path, batch_size)
    if kind == ".npz":
        return _from_npz(path, batch_size, name)
    if kind in _TIFF:
        return _from_tiff(path, batch_size)
    if kind in _HDF5:
        return _from_hdf5(path, batch_size, name)
    if kind == ".zarr":
        return _from_zarr(path, batch_size, name)
    raise ValueError(f"{path}: need a .npy, .npz, .tiff, .h5 or .zarr file, got {kind or 'no suffix'}")


def _from_npy(path: Path, batch_size: int) -> Iterator[_Raw]:
    with path.open("rb") as file:
        start = file.read(2)
    # What numpy does not know, it takes for a pickle: text, too.
    if not start.startswith((b"\x93", b"PK", b"\x80")):
        raise ValueError(f"{path}: cannot be read: need a file that numpy.save wrote, got something else")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {_reason(error)}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path}: need a file that numpy.save wrote, got an archive; name it .npz")
    return _slices(array, None, batch_size, str(path))


def _from_npz(path: Path, batch_size: int, name: str | None) -> Iterator[_Raw]:
    try:
        with zipfile.ZipFile(path) as archive, ExitStack() as files:
            names = [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]
            measured, mean = _chosen(names, name, path)
            streams = [
                _member(files.enter_context(archive.open(f"{each}.npy")), batch_size, f"{path}, {each}")
                for each in (measured, mean)
                if each is not None
            ]
            for parts in itertools.zip_longest(*streams):
                yield parts[0], parts[1] if len(parts) == 2 else None
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{path}: cannot be read: {_reason(error)}") from error


def _member(file: Any, batch_size: int, what: str) -> Iterator[NDArray[Any]]:
    """An array of an archive, unpacked some images at a time."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"{what}: need version 1 or 2 of the npy format, got {version}")
    shape, fortran_order, dtype = readers[version](file)
    if len(shape) < 2:
        raise ValueError(f"{what}: need images (n, ...), got shape {shape}")
    _check_kind(dtype, what)
    if fortran_order:
        raise ValueError(f"{what}: need an array in C order to read it in parts, got Fortran order")
    n_values = int(np.prod(shape[1:]))
    for first in range(0, shape[0], batch_size):
        n_images = min(batch_size, shape[0] - first)
        size = n_images * n_values * dtype.itemsize
        values = file.read(size)
        if len(values) != size:
            raise ValueError(f"{what}: the file ends early, after {first} of {shape[0]} images")
        yield np.frombuffer(values, dtype).reshape(n_images, *shape[1:])


def _from_tiff(path: Path, batch_size: int) -> Iterator[_Raw]:
    with TiffStack(path) as stack:
        yield from _slices(stack, None, batch_size, str(path))


def _from_hdf5(path: Path, batch_size: int, name: str | None) -> Iterator[_Raw]:
    h5py = package_for("h5py", path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {_reason(error)}") from error
    with file:
        names: list[str] = []
        file.visititems(lambda key, item: names.append(key) if isinstance(item, h5py.Dataset) else None)
        measured, mean = _chosen(names, name, path)
        yield from _slices(file[measured], None if mean is None else file[mean], batch_size, f"{path}, {measured}")


def _from_zarr(path: Path, batch_size: int, name: str | None) -> Iterator[_Raw]:
    store = package_for("zarr", path).open(str(path), mode="r")
    if hasattr(store, "dtype"):
        if name is not None:
            raise ValueError(f"name: need None for a single array, got {name!r}")
        yield from _slices(store, None, batch_size, str(path))
        return
    measured, mean = _chosen(list(store.array_keys()), name, path)
    yield from _slices(store[measured], None if mean is None else store[mean], batch_size, f"{path}, {measured}")


def _chosen(names: list[str], name: str | None, path: Path) -> tuple[str, str | None]:
    """The array with the measurements, and that with the noiseless images if it goes with them."""
    if not names:
        raise ValueError(f"{path}: need at least one array, got none")
    if name is not None:
        if name not in names:
            raise ValueError(f"name: need one of {', '.join(names)}, got {name!r}")
        return name, None
    if "measured" in names:
        return "measured", "mean" if "mean" in names else None
    if len(names) > 1:
        raise ValueError(f"{path}: holds {len(names)} arrays; choose one with name=: {', '.join(names)}")
    return names[0], None


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    reason = lines[0] if lines else type(error).__name__
    pickled = "allow_pickle" in reason or "Python objects" in reason
    return "it holds Python objects (a pickle), which could run code, not numbers" if pickled else reason


# ---- Values ----


def _checked(parts: Iterator[_Raw], what: str) -> Iterator[Batch]:
    """Tensors of one image shape, finite, with or without means throughout."""
    shape: torch.Size | None = None
    has_mean = False
    n_images = 0
    for raw, raw_mean in parts:
        place = f"{what}, from image {n_images}"
        measured = _tensor(raw, place)
        mean = None if raw_mean is None else _tensor(raw_mean, f"{place}, mean")
        if measured.numel() == 0:
            continue
        if shape is None:
            shape, has_mean = measured.shape[1:], mean is not None
        if measured.shape[1:] != shape:
            raise ValueError(f"{place}: need images of shape {tuple(shape)} as before, got {tuple(measured.shape[1:])}")
        if (mean is not None) != has_mean:
            raise ValueError(f"{place}: need {'a mean' if has_mean else 'no mean'} in every batch, as before")
        if mean is not None and mean.shape != measured.shape:
            raise ValueError(f"{place}: need mean of shape {tuple(measured.shape)}, got {tuple(mean.shape)}")
        n_images += measured.shape[0]
        yield Batch(measured, mean)


def _shape(array: Sliceable) -> tuple[int, ...]:
    return tuple(int(size) for size in array.shape)


def _check_kind(dtype: Any, what: str) -> None:
    if isinstance(dtype, torch.dtype):
        real = not dtype.is_complex
    else:
        real = np.dtype(dtype).kind in "biuf"
    if not real:
        raise TypeError(f"{what}: need real numbers, got {dtype}")


def _check_exact(integers: NDArray[Any], what: str) -> None:
    if integers.size and max(-int(integers.min()), int(integers.max())) > _LARGEST_EXACT:
        raise ValueError(f"{what}: need integers of at most 2^53 in size, got larger ones")


def _tensor(values: Any, what: str) -> Tensor:
    """float64 for that and for integers of more than 16 bits, else float32: every value stays what it is.

    Raises:
        TypeError: not real numbers.
        ValueError: NaN, infinity, or integers above 2^53.
    """
    if isinstance(values, Tensor):
        _check_kind(values.dtype, what)
        tensor = values.detach()
        floating = tensor.dtype.is_floating_point
        wide = tensor.dtype == torch.float64 if floating else tensor.dtype.itemsize > 2
        if not floating and tensor.dtype.itemsize == 8:
            _check_exact(tensor.cpu().numpy(), what)
        tensor = tensor.to(torch.float64 if wide else torch.float32)
    else:
        array = np.asarray(values)
        _check_kind(array.dtype, what)
        floating = array.dtype.kind == "f"
        wide = array.dtype.itemsize > (4 if floating else 2)
        if not floating and array.dtype.itemsize == 8:
            _check_exact(array, what)
        # A copy, because torch takes neither read-only memory, negative strides nor foreign byte order.
        tensor = torch.from_numpy(np.array(array, dtype=np.float64 if wide else np.float32, order="C"))
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        bad = tensor.numel() - int(finite.sum())
        raise ValueError(f"{what}: need finite values, got {bad} NaN or infinite of {tensor.numel()}")
    return tensor
