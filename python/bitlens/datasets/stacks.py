"""Readers of image stacks. Nothing in a file is ever executed: pickled arrays are refused."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NPY_MAGIC = b"\x93NUMPY"
_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")


def read_stack(path: str | Path, *, name: str | None = None) -> Tensor:
    """Images (n, channel, row, column) of an npy or npz file, finite, float32 or float64.

    The file holds (n, row, column), which gets one channel, or (n, channel, row, column). float64 and
    integers of more than 16 bits give float64, the rest float32: every value stays what it is.

    Args:
        name: which array of an npz file with several.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one line with the file, the need and what came, for anything else that is wrong.
    """
    path = Path(path)
    array = _load(path, name)
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


def _load(path: Path, name: str | None) -> np.ndarray:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path}: need a file, got a directory")
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        raise ValueError(f"{path}: the file is empty")
    if not start.startswith((_NPY_MAGIC, *_ZIP_MAGICS)):
        kind = "a pickle" if start[0] == 0x80 else "something else"
        raise ValueError(f"{path}: need a file that numpy.save or numpy.savez wrote, got {kind}")
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


def _member(archive: Mapping[str, np.ndarray], path: Path, name: str | None) -> np.ndarray:
    names = list(archive)
    if not names:
        raise ValueError(f"{path}: the npz file holds no arrays")
    if name is None:
        if len(names) > 1:
            raise ValueError(
                f"{path}: holds {len(names)} arrays; choose one with name= (--array on the command line): "
                f"{', '.join(names)}"
            )
        name = names[0]
    if name not in names:
        raise ValueError(f"{path}: need name to be one of {', '.join(names)}, got {name!r}")
    array = archive[name]
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: need {name!r} to be an array, got a file of another kind")
    return array
