"""Densities as files: a NumPy archive of tensors under a JSON header, without pickle and with a checksum."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import secrets
import zipfile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitlens import __version__
from bitlens.densities.autoregressive import AutoregressiveDensity
from bitlens.densities.base import Density
from bitlens.densities.copula import GaussianCopulaDensity
from bitlens.densities.factor_mixture import FactorMixtureDensity
from bitlens.densities.flow import FlowDensity
from bitlens.densities.gaussian import GaussianDensity
from bitlens.densities.gaussian_mixture import GaussianMixtureDensity
from bitlens.densities.independent_pixels import IndependentPixelsDensity
from bitlens.densities.scale_mixture import ScaleMixtureDensity
from bitlens.densities.scene_mixture import SceneMixtureDensity
from bitlens.densities.shift_mixture import ShiftMixtureDensity
from bitlens.densities.stationary import StationaryGaussianDensity
from bitlens.noise import GaussianNoise, NoiseModel, PoissonGaussianNoise, PoissonNoise

_FORMAT = "bitlens density"
# A change of the layout below, or of the fields of a class, is a new version.
_FORMAT_VERSION = 1

_DENSITIES: dict[str, type[Density]] = {
    kind.__name__: kind
    for kind in (
        AutoregressiveDensity,
        FactorMixtureDensity,
        FlowDensity,
        GaussianCopulaDensity,
        GaussianDensity,
        GaussianMixtureDensity,
        IndependentPixelsDensity,
        ScaleMixtureDensity,
        SceneMixtureDensity,
        ShiftMixtureDensity,
        StationaryGaussianDensity,
    )
}
_NOISES: dict[str, tuple[type[NoiseModel], tuple[str, ...]]] = {
    "GaussianNoise": (GaussianNoise, ("std",)),
    "PoissonNoise": (PoissonNoise, ()),
    "PoissonGaussianNoise": (
        PoissonGaussianNoise,
        ("gain", "offset", "read_std", "adc_bits", "full_well_electrons"),
    ),
}

_HEADER, _CHECKSUM, _TENSOR = "header", "sha256", "tensor."
_ARRAY_SUFFIX = ".npy"
_ARCHIVE_START, _ARCHIVE_END = b"PK\x03\x04", b"PK\x05\x06"
_ARCHIVE_END_BYTES = 22
_DTYPES = {
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
}


class _RefusedError(ValueError):
    """What is wrong with a file, in words of its own."""


def save_density(density: Density, path: str | os.PathLike[str]) -> None:
    """One file with all that `density`, fitted or not, holds; the path is used as it is given, no suffix is added.

    A NumPy .npz archive: tensors as they are, other fields as JSON, a SHA-256 checksum. The same density gives the
    same bytes. An existing file is replaced in one step: readers see the old one or the new one, whole.

    Raises:
        TypeError: not one of the densities of `bitlens.densities`, a noise model other than those of `bitlens.noise`,
            a field that a file cannot hold, or a path that is not text.
        OSError: the file cannot be written; what was there before is as it was.
    """
    target = os.path.realpath(_file_name(path))  # a link stays a link
    content = _encoded(density)
    temporary = os.path.join(os.path.dirname(target), f".bitlens-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):  # it may not be there; the error that is raised says why
            os.unlink(temporary)
        raise


def load_density(path: str | os.PathLike[str]) -> Density:
    """The density that `save_density` wrote to `path`, on the CPU: the same `log_prob`, bit for bit.

    Nothing in the file is executed: the classes are those of `bitlens.densities` and `bitlens.noise`.

    Raises:
        FileNotFoundError: no such file; other OSErrors where it cannot be read.
        TypeError: a path that is not text.
        ValueError: a file that is empty, cut off, damaged, of a newer format, or not a density at all.
    """
    name = _file_name(path)
    with open(name, "rb") as file:
        content = file.read()
    try:
        return _decoded(content)
    except _RefusedError as error:
        reason, cause = str(error), error.__cause__
    except Exception as error:  # bytes of unknown origin: whatever a parser trips over, the file is at fault
        reason, cause = f"damaged ({type(error).__name__}: {error})", error
    raise ValueError(f"path: need a file written by save_density, got {name!r}: {reason}") from cause


def _file_name(path: object) -> str:
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(name, str):
        raise TypeError(f"path: need a str or a path, got {type(path).__name__}")
    return name


def _encoded(density: object) -> bytes:
    kind = type(density)
    if not isinstance(density, Density) or _DENSITIES.get(kind.__name__) is not kind:
        raise TypeError(f"density: need one of {', '.join(_DENSITIES)}, got {kind.__name__}")
    tensors: dict[str, np.ndarray] = {}
    fields = {name: _packed(getattr(density, name), name, tensors) for name in _field_names(kind)}
    header = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "bitlens_version": __version__,
        "class": kind.__name__,
        "fields": fields,
    }
    text = json.dumps(header, allow_nan=False, indent=1).encode()
    entries = {
        _HEADER: np.frombuffer(text, np.uint8),
        _CHECKSUM: np.frombuffer(_checksum(text, tensors), np.uint8),
        **tensors,
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in entries.items():
            # A ZipInfo of our own has a fixed date.
            with archive.open(zipfile.ZipInfo(name + _ARRAY_SUFFIX), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    return buffer.getvalue()


def _decoded(content: bytes) -> Density:
    entries = _entries(content)
    if _HEADER not in entries:
        raise _RefusedError("an archive without a header, which is no density")
    text = _array(entries.pop(_HEADER)).tobytes()
    header = json.loads(text)
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise _RefusedError("an archive of something else than a density")
    version = header.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _RefusedError(f"damaged (format version {version!r})")
    if version > _FORMAT_VERSION:
        raise _RefusedError(
            f"format version {version} of bitlens {header.get('bitlens_version')}, and bitlens {__version__} reads "
            f"versions up to {_FORMAT_VERSION}"
        )
    if _CHECKSUM not in entries:
        raise _RefusedError("damaged (it has no checksum)")
    expected = _array(entries.pop(_CHECKSUM)).tobytes()
    arrays = {name: _array(entry) for name, entry in entries.items()}
    if _checksum(text, arrays) != expected:
        raise _RefusedError("damaged (its checksum is not that of its contents)")
    kind = _DENSITIES.get(header["class"])
    if kind is None:
        raise _RefusedError(f"a density of unknown class {header['class']!r}")
    stored, wanted = set(header["fields"]), set(_field_names(kind))
    if stored != wanted:
        raise _RefusedError(
            f"fields of {kind.__name__} without {sorted(wanted - stored)} and with {sorted(stored - wanted)}"
        )
    return kind(**{name: _unpacked(value, arrays) for name, value in header["fields"].items()})


def _entries(content: bytes) -> dict[str, bytes]:
    """Contents of the members of an archive, each as its own CRC says it was."""
    if not content:
        raise _RefusedError("an empty file")
    if not content.startswith(_ARCHIVE_START):
        raise _RefusedError("not an .npz archive")
    if not content[-_ARCHIVE_END_BYTES:].startswith(_ARCHIVE_END):
        raise _RefusedError("cut off, or with something behind its end")
    entries: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        # Readers of archives look past what stands before one.
        if min((info.header_offset for info in archive.infolist()), default=0) != 0:
            raise _RefusedError("damaged (something stands before its contents)")
        # Nothing is compressed, so that a small file cannot ask for much memory.
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise _RefusedError("a compressed archive, which save_density does not write")
        if sum(info.file_size for info in archive.infolist()) > len(content):
            raise _RefusedError("damaged (its contents are larger than itself)")
        for info in archive.infolist():
            name = info.filename.removesuffix(_ARRAY_SUFFIX)
            if name in entries or name == info.filename:
                raise _RefusedError(f"an archive of something else than a density (it has {info.filename!r})")
            entries[name] = archive.read(info)
    return entries


def _array(entry: bytes) -> np.ndarray:
    return np.lib.format.read_array(io.BytesIO(entry), allow_pickle=False)


def _checksum(header: bytes, tensors: dict[str, np.ndarray]) -> bytes:
    """SHA-256 of the header, then of name, type, shape and values of each tensor by name, each part with its length."""
    digest = hashlib.sha256(b"%d:" % len(header))
    digest.update(header)
    for name in sorted(tensors):
        array = tensors[name]
        about = json.dumps([name, array.dtype.str, array.shape]).encode()
        digest.update(b"%d:" % len(about))
        digest.update(about)
        digest.update(array.tobytes())
    return digest.digest()


def _field_names(kind: type[Density]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))  # type: ignore[arg-type]  # the base is none


def _packed(value: object, name: str, tensors: dict[str, np.ndarray]) -> object:
    """`value` as JSON; its tensors go into `tensors`. What JSON has no word for becomes an object of one kind.

    Raises:
        TypeError: a value that a file cannot hold.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        # JSON knows neither NaN nor infinity; it keeps every other float64 exactly.
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, tuple | list):
        items = [_packed(item, f"{name}.{place}", tensors) for place, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9_.\-]+", key):
                raise TypeError(f"{name}: need names of letters, digits, dots and dashes, got {key!r}")
        return {"dict": {key: _packed(item, f"{name}.{key}", tensors) for key, item in value.items()}}
    if isinstance(value, Tensor):
        return _packed_tensor(value, name, tensors)
    if isinstance(value, nn.Module):
        return _packed_noise(value, name, tensors)
    raise TypeError(f"{name}: need a tensor, number, text, tuple or dict of these to save, got {type(value).__name__}")


def _packed_tensor(value: Tensor, name: str, tensors: dict[str, np.ndarray]) -> object:
    if value.dtype not in _DTYPES or value.layout != torch.strided:
        kind = str(value.dtype).removeprefix("torch.")
        raise TypeError(f"{name}: need a dense tensor of a type that NumPy has to save, got {kind}, {value.layout}")
    entry = f"{_TENSOR}{name}"
    if entry in tensors:
        raise TypeError(f"{name}: need one tensor of this name to save, got two")
    array = value.detach().cpu().resolve_conj().resolve_neg().contiguous().numpy()
    tensors[entry] = array.astype(array.dtype.newbyteorder("<"), copy=False)
    # Axes as they lie in memory, slowest first: products of matrices that lie otherwise are rounded otherwise.
    strides = value.stride()
    order = sorted(range(value.ndim), key=strides.__getitem__, reverse=True)
    packed: dict[str, object] = {"tensor": entry, "memory_order": order}
    if isinstance(value, nn.Parameter):
        packed["parameter_requires_grad"] = value.requires_grad
    return packed


def _packed_noise(noise: nn.Module, name: str, tensors: dict[str, np.ndarray]) -> object:
    kind, parameters = _NOISES.get(type(noise).__name__, (None, ()))
    if type(noise) is not kind:
        raise TypeError(f"{name}: need one of {', '.join(_NOISES)} to save, got {type(noise).__name__}")
    packed = {each: _packed(getattr(noise, each), f"{name}.{each}", tensors) for each in parameters}
    return {"noise": type(noise).__name__, "parameters": packed}


def _unpacked(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The inverse of `_packed`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    match value:
        case {"float": "nan" | "inf" | "-inf" as number}:
            return float(number)
        case {"tuple": list(items)}:
            return tuple(_unpacked(item, arrays) for item in items)
        case {"list": list(items)}:
            return [_unpacked(item, arrays) for item in items]
        case {"dict": dict(items)}:
            return {key: _unpacked(item, arrays) for key, item in items.items()}
        case {"tensor": str(name), "memory_order": list(order)}:
            tensor = _tensor(arrays[name], order)
            requires_grad = value.get("parameter_requires_grad")
            return tensor if requires_grad is None else nn.Parameter(tensor, requires_grad=requires_grad)
        case {"noise": str(name), "parameters": dict(parameters)}:
            if name not in _NOISES:
                raise _RefusedError(f"a noise model of unknown class {name!r}")
            return _noise(_NOISES[name][0], {key: _unpacked(item, arrays) for key, item in parameters.items()})
    raise _RefusedError(f"damaged (a value that is none: {value!r:.80})")


def _tensor(array: np.ndarray, order: list[int]) -> Tensor:
    native = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    inverse = [order.index(axis) for axis in range(native.ndim)]
    # A copy lies where torch aligns it.
    return native.permute(order).clone(memory_format=torch.contiguous_format).permute(inverse)


def _noise(kind: type[NoiseModel], parameters: dict[str, Any]) -> NoiseModel:
    """The model as its own checks let it pass, then with the very tensors of the file."""
    noise = kind(**parameters)
    for name, value in parameters.items():
        if isinstance(value, Tensor):
            setattr(noise, name, value)
    return noise
