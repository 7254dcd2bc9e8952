"""Densities as files: a NumPy archive of tensors under a JSON header, without pickle and with a checksum."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitlens import __version__
from bitlens._files import ArchiveFormat, RefusedError, file_name, pack_archive, replace_file, unpack_archive
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

# A change of the layout below, or of the fields of a class, is a new version.
_FORMAT = ArchiveFormat("bitlens density", 1, __version__, "a density", "save_density")

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

_TENSOR = "tensor."
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


def save_density(density: Density, path: str | os.PathLike[str]) -> None:
    """One file with all that `density`, fitted or not, holds; the path is used as it is given, no suffix is added.

    A NumPy .npz archive: tensors as they are, other fields as JSON, a SHA-256 checksum. The same density gives the
    same bytes. An existing file is replaced in one step: readers see the old one or the new one, whole.

    Raises:
        TypeError: not one of the densities of `bitlens.densities`, a noise model other than those of `bitlens.noise`,
            a field that a file cannot hold, or a path that is not text.
        OSError: the file cannot be written; what was there before is as it was.
    """
    file_name(path)
    replace_file(path, _encoded(density))


def load_density(path: str | os.PathLike[str]) -> Density:
    """The density that `save_density` wrote to `path`, on the CPU: the same `log_prob`, bit for bit.

    Nothing in the file is executed: the classes are those of `bitlens.densities` and `bitlens.noise`.

    Raises:
        FileNotFoundError: no such file; other OSErrors where it cannot be read.
        TypeError: a path that is not text.
        ValueError: a file that is empty, cut off, damaged, of a newer format, or not a density at all.
    """
    name = file_name(path)
    with open(name, "rb") as file:
        content = file.read()
    try:
        return _decoded(content)
    except RefusedError as error:
        reason, cause = str(error), error.__cause__
    except Exception as error:  # bytes of unknown origin: whatever a parser trips over, the file is at fault
        reason, cause = f"damaged ({type(error).__name__}: {error})", error
    raise ValueError(f"path: need a file written by save_density, got {name!r}: {reason}") from cause


def _encoded(density: object) -> bytes:
    kind = type(density)
    if not isinstance(density, Density) or _DENSITIES.get(kind.__name__) is not kind:
        raise TypeError(f"density: need one of {', '.join(_DENSITIES)}, got {kind.__name__}")
    tensors: dict[str, np.ndarray] = {}
    fields = {name: _packed(getattr(density, name), name, tensors) for name in _field_names(kind)}
    return pack_archive(_FORMAT, {"class": kind.__name__, "fields": fields}, tensors)


def _decoded(content: bytes) -> Density:
    header, arrays = unpack_archive(_FORMAT, content)
    kind = _DENSITIES.get(header["class"])
    if kind is None:
        raise RefusedError(f"a density of unknown class {header['class']!r}")
    stored, wanted = set(header["fields"]), set(_field_names(kind))
    if stored != wanted:
        raise RefusedError(
            f"fields of {kind.__name__} without {sorted(wanted - stored)} and with {sorted(stored - wanted)}"
        )
    return kind(**{name: _unpacked(value, arrays) for name, value in header["fields"].items()})


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
                raise RefusedError(f"a noise model of unknown class {name!r}")
            return _noise(_NOISES[name][0], {key: _unpacked(item, arrays) for key, item in parameters.items()})
    raise RefusedError(f"damaged (a value that is none: {value!r:.80})")


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
