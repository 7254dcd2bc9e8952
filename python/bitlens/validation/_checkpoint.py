"""Finished rows of a validation in a JSON file, so that an interrupted run goes on where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bitlens._files import replace_file
from bitlens.validation.result import ValidationRow

_FORMAT = "bitlens validation 1"
_FIELDS = {field.name for field in dataclasses.fields(ValidationRow)}


class Kept(NamedTuple):
    """What a file holds: the seed of the run, and rows by design and seed number."""

    seed: int
    rows: dict[tuple[str, int], ValidationRow]


def read(path: Path, fingerprint: str) -> Kept | None:
    """The content of a file, None if there is none.

    Raises:
        ValueError: a file that is damaged, of another kind, or of another run.
    """
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise ValueError(f"checkpoint: need a file in a folder that exists, got {str(path)!r}")
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"checkpoint: need a file of format {_FORMAT!r}, got {content['format']!r} in {path}")
        theirs, seed = content["fingerprint"], content["seed"]
        if any(set(row) != _FIELDS for row in content["rows"]) or not isinstance(seed, int):
            raise KeyError("rows")
        rows = {(row["design"], row["seed"]): ValidationRow(**row) for row in content["rows"]}
        checksum = content["checksum"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint: need a whole file that validate wrote, got a damaged one, {path}") from error
    if checksum != _checksum(content):
        raise ValueError(f"checkpoint: need a whole file that validate wrote, got a damaged one, {path}")
    if theirs != fingerprint:
        raise ValueError(
            f"checkpoint: need the file of these designs, scenes, task and settings, got another's, {path}"
        )
    return Kept(seed, rows)


def write(path: Path, fingerprint: str, kept: Kept) -> None:
    """Replace the file in one step: a reader sees the old one or the new one, whole."""
    content: dict[str, Any] = {
        "format": _FORMAT,
        "fingerprint": fingerprint,
        "seed": kept.seed,
        "rows": [dataclasses.asdict(row) for row in kept.rows.values()],
    }
    content["checksum"] = _checksum(content)
    replace_file(path, json.dumps(content).encode())


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps({name: value for name, value in content.items() if name != "checksum"}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
