"""Readers of image stacks. Nothing in a file is ever executed: pickled arrays are refused."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens.datasets._packages import package_for
from bitlens.datasets._tiff import MAGICS as _TIFF_MAGICS
from bitlens.datasets._tiff import TiffStack

_NPY_MAGIC = b"\x93NUMPY"
_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


class Measurements(NamedTuple):
    """Images (n, channel, row, column), and the noiseless ones if the file holds them."""

    measured: Tensor
    mean: Tensor | None


def read_stack(path: str | Path, *, name: str | None = None) -> Tensor:
    """Images (n, channel, row, column) of an npy, npz, TIFF or HDF5 file, finite, float32 or float64.

    The file holds (n, row, column), which gets one channel, or (n, channel, row, column). float64 and
    integers of more than 16 bits give float64, the rest float32: every value stays what it is.

    Args:
        name: which array of an npz or HDF5 file with several.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: tifffile or h5py, which such files need, is not installed.
        ValueError: one line with the file, the need and what came, for anything else that is wrong.
    """
    path = Path(path)
    return _checked(path, _load(path, name))


def read_measurements(path: str | Path, *, name: str | None = None) -> Measurements:
    """What `read_stack` reads; of a file with arrays `measured` and `mean`, both of them.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: as `read_stack` does; or the two have different shapes.
    """
    path = Path(path)
    names = _names(path) if name is None else []
    if "measured" not in names:
        return Measurements(read_stack(path, name=name), None)
    measured = read_stack(path, name="measured")
    mean = read_stack(path, name="mean") if "mean" in names else None
    if mean is not None and mean.shape != measured.shape:
        raise ValueError(
            f"{path}: need mean of the shape of measured, {tuple(measured.shape)}, got {tuple(mean.shape)}"
        )
    return Measurements(measured, mean)


def _checked(path: Path, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: need real numbers, got dtype {array.dtype}")
    if array.ndim not in (3, 4):
        raise ValueError(f"{path}: need (n, row, column) or (n, channel, row, column), got {array.shape}")
    if array.size == 0:
        raise ValueError(f"{path}: need at least one image of at least one pixel, got shape {array.shape}")
    kind, bits = array.dtype.kind, 8 * array.dtype.itemsize
    wide = bits > 32 if kind == "f" else bits > 16
    if kind in "iu" and bits == 64 and (abs(array.astype(np.float64)) > 2**53).any():
        raise ValueError(f"{path}: need integers of at most 2^53 in size, got larger ones in {array.dtype}")
    values = np.ascontiguousarray(array, dtype=np.float64 if wide else np.float32)
    not_finite = int(np.count_nonzero(~np.isfinite(values)))
    if not_finite:
        raise ValueError(f"{path}: need finite values, got {not_finite} NaN or infinite of {values.size}")
    stack = torch.from_numpy(values)
    return stack[:, None] if stack.ndim == 3 else stack


def _start(path: Path) -> bytes:
    """The first bytes, which tell the kind of file."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path}: need a file, got a directory")
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        raise ValueError(f"{path}: the file is empty")
    return start


def _names(path: Path) -> list[str]:
    """The names of the arrays of an archive; none for other files."""
    start = _start(path)
    if start == _HDF5_MAGIC:
        with _hdf5(path) as file:
            return _datasets(file)
    if not start.startswith(_ZIP_MAGICS):
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return [each.removesuffix(".npy") for each in archive.namelist() if each.endswith(".npy")]
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _load(path: Path, name: str | None) -> np.ndarray:
    start = _start(path)
    if start.startswith(_TIFF_MAGICS):
        if name is not None:
            raise ValueError(f"name: need None for a TIFF file, got {name!r}")
        with TiffStack(path) as stack:
            return stack[:]
    if start == _HDF5_MAGIC:
        return _load_hdf5(path, name)
    if not start.startswith((_NPY_MAGIC, *_ZIP_MAGICS)):
        kind = "a pickle" if start[0] == 0x80 else "something else"
        raise ValueError(
            f"{path}: need a file that numpy.save or numpy.savez wrote, a TIFF or an HDF5 file, got {kind}"
        )
    try:
        # Opened here: given a path, numpy leaves the file open when a zip turns out to be broken.
        with path.open("rb") as file:
            loaded: Any = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.ndarray):
                with loaded:
                    return _member(loaded, path, name)
            if name is not None:
                raise ValueError(f"name: need None for an npy file, got {name!r}")
            return loaded
    except (OSError, EOFError, MemoryError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if reason.startswith((str(path), "name:")):
            raise
        if "allow_pickle" in reason:
            reason = "it holds Python objects (a pickle), which could run code, not numbers"
        raise ValueError(f"{path}: cannot be read: {reason}") from error


def _hdf5(path: Path) -> Any:
    try:
        return package_for("h5py", path).File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error


def _datasets(file: Any) -> list[str]:
    """Full names of the data sets of an open HDF5 file: those of its groups have slashes."""
    kind = package_for("h5py", Path(file.filename)).Dataset
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, kind) else None)
    return names


def _load_hdf5(path: Path, name: str | None) -> np.ndarray:
    with _hdf5(path) as file:
        chosen = _chosen(_datasets(file), path, name, "HDF5")
        try:
            return np.asarray(file[chosen][()])
        except (OSError, TypeError) as error:
            raise ValueError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error


def _chosen(names: list[str], path: Path, name: str | None, kind: str) -> str:
    """The array to read."""
    if not names:
        raise ValueError(f"{path}: the {kind} file holds no arrays")
    if name is None:
        if len(names) > 1:
            raise ValueError(f"{path}: holds {len(names)} arrays; choose one with name=: {', '.join(names)}")
        return names[0]
    if name not in names:
        raise ValueError(f"{path}: need name to be one of {', '.join(names)}, got {name!r}")
    return name


def _member(archive: Mapping[str, np.ndarray], path: Path, name: str | None) -> np.ndarray:
    name = _chosen(list(archive), path, name, "npz")
    array = archive[name]
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: need {name!r} to be an array, got a file of another kind")
    return array
