"""What is done of a design, as a file from which an interrupted run goes on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bitlens import __version__
from bitlens._files import ArchiveFormat, RefusedError, file_name, pack_archive, replace_file, unpack_archive
from bitlens.noise import NoiseModel

_FORMAT = ArchiveFormat("bitlens design checkpoint", 1, __version__, "a checkpoint of a design", "optimize_design")
_SUBSET = ArchiveFormat("bitlens subset checkpoint", 1, __version__, "a checkpoint of a subset", "choose_subset")


class Saved(NamedTuple):
    """The seed, whether each start is finished (with what stopped it), and its state."""

    seed: int
    stops: tuple[tuple[str, bool], ...]
    states: tuple[dict[str, Tensor], ...]


def save(path: str | os.PathLike[str], fingerprint: str, saved: Saved) -> None:
    """Replace the file in one step."""
    arrays = {
        f"{start}/{name}": value.detach().cpu().numpy()
        for start, state in enumerate(saved.states)
        for name, value in state.items()
    }
    header = {"fingerprint": fingerprint, "seed": saved.seed, "stops": [list(stop) for stop in saved.stops]}
    replace_file(path, pack_archive(_FORMAT, header, arrays))


def load(path: str | os.PathLike[str], fingerprint: str) -> Saved | None:
    """What `save` wrote for the run of this fingerprint; None where there is no file.

    Raises:
        TypeError: a path that is not text.
        ValueError: a file that is damaged, or of another run.
    """
    read = _read(_FORMAT, path, fingerprint)
    if read is None:
        return None
    header, arrays = read
    stops = tuple((str(reason), bool(converged)) for reason, converged in header["stops"])
    states: list[dict[str, Tensor]] = [{} for _ in stops]
    for key, array in arrays.items():
        start, _, entry = key.partition("/")
        states[int(start)][entry] = torch.from_numpy(np.array(array))
    return Saved(int(header["seed"]), stops, tuple(states))


class SavedSubset(NamedTuple):
    """The seed, and bits per image of every subset that was evaluated."""

    seed: int
    values: Mapping[tuple[int, ...], float]


def save_subset(path: str | os.PathLike[str], fingerprint: str, saved: SavedSubset) -> None:
    """Replace the file in one step."""
    arrays = {
        "sizes": np.array([len(subset) for subset in saved.values], dtype=np.int64),
        "parts": np.array([part for subset in saved.values for part in subset], dtype=np.int64),
        "bits": np.array(list(saved.values.values()), dtype=np.float64),
    }
    replace_file(path, pack_archive(_SUBSET, {"fingerprint": fingerprint, "seed": saved.seed}, arrays))


def load_subset(path: str | os.PathLike[str], fingerprint: str) -> SavedSubset | None:
    """What `save_subset` wrote for the run of this fingerprint; None where there is no file.

    Raises:
        TypeError, ValueError: as `load`.
    """
    read = _read(_SUBSET, path, fingerprint)
    if read is None:
        return None
    header, arrays = read
    parts = iter(arrays["parts"].tolist())
    subsets = [tuple(next(parts) for _ in range(size)) for size in arrays["sizes"].tolist()]
    return SavedSubset(int(header["seed"]), dict(zip(subsets, arrays["bits"].tolist(), strict=True)))


def _read(
    kind: ArchiveFormat, path: str | os.PathLike[str], fingerprint: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    name = file_name(path)
    # Before anything is computed: a run that cannot be kept must not end in that.
    if Path(name).is_dir() or not Path(name).resolve().parent.is_dir():
        raise ValueError(f"checkpoint: need a file in a folder that exists, got {name!r}")
    if not Path(name).exists():
        return None
    need = f"checkpoint: need a file written by {kind.writer}, got {name!r}"
    try:
        header, arrays = unpack_archive(kind, Path(name).read_bytes())
    except RefusedError as error:
        raise ValueError(f"{need}: {error}") from error
    except Exception as error:  # bytes of unknown origin: whatever a parser trips over, the file is at fault
        raise ValueError(f"{need}: damaged") from error
    if header["fingerprint"] != fingerprint:
        raise ValueError(
            f"checkpoint: {name!r} is of another run (other system, noise, scenes or arguments); "
            "give a new path, or remove it to begin anew"
        )
    return header, arrays


def fingerprint_of(modules: Mapping[str, object], tensors: Mapping[str, Tensor], settings: Mapping[str, object]) -> str:
    """SHA-256 of the parameters and buffers of modules, of tensors, and of settings by their text."""
    digest = hashlib.sha256()
    for name, module in modules.items():
        digest.update(f"{name}:{type(module).__qualname__}".encode())
        if isinstance(module, nn.Module):
            for key, value in sorted(module.state_dict().items()):
                _add(digest, key, value)
    for name, tensor in tensors.items():
        _add(digest, name, tensor)
    for name, setting in settings.items():
        digest.update(f"{name}={setting!r};".encode())
    return digest.hexdigest()


@torch.no_grad()
def behaviour_of(encoder: Callable[[Tensor], Tensor], noise: NoiseModel, scenes: Tensor) -> dict[str, Tensor]:
    """Means of two scenes and a measurement of them: what attributes and closures decide shows there."""
    mean = encoder(scenes[:2])
    draws = torch.Generator(device=mean.device).manual_seed(0)
    return {"mean": mean, "measured": noise.sample(mean, draws)}


def _add(digest: hashlib._Hash, name: str, value: Tensor) -> None:
    digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
    digest.update(value.detach().cpu().contiguous().numpy().tobytes())
