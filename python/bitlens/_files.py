"""Files of our own: replaced in one step, and NumPy archives with a JSON header and a checksum, without pickle."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import zipfile
from typing import Any, NamedTuple

import numpy as np

_HEADER, _CHECKSUM = "header", "sha256"
_ARRAY_SUFFIX = ".npy"
_ARCHIVE_START, _ARCHIVE_END = b"PK\x03\x04", b"PK\x05\x06"
_ARCHIVE_END_BYTES = 22


class RefusedError(ValueError):
    """What is wrong with a file, in words of its own."""


class ArchiveFormat(NamedTuple):
    """What an archive says it is: a `name`, the newest `version` that is read, `bitlens_version` of who writes it.

    `noun` is what it holds, with its article, and `writer` the function that writes it, for messages.
    """

    name: str
    version: int
    bitlens_version: str
    noun: str
    writer: str


def file_name(path: object) -> str:
    """The path as text.

    Raises:
        TypeError: neither a str nor a path.
    """
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(name, str):
        raise TypeError(f"path: need a str or a path, got {type(path).__name__}")
    return name


def replace_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content`: readers see the old file or the new one, whole; a link stays a link.

    Raises:
        OSError: the file cannot be written; what was there before is as it was.
    """
    target = os.path.realpath(file_name(path))
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


def pack_archive(kind: ArchiveFormat, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    """A NumPy .npz archive: arrays as they are, `header` as JSON, a SHA-256 checksum; the same bytes for the same."""
    whole = {"format": kind.name, "format_version": kind.version, "bitlens_version": kind.bitlens_version, **header}
    text = json.dumps(whole, allow_nan=False, indent=1).encode()
    entries = {
        _HEADER: np.frombuffer(text, np.uint8),
        _CHECKSUM: np.frombuffer(_checksum(text, arrays), np.uint8),
        **arrays,
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in entries.items():
            # A ZipInfo of our own has a fixed date.
            with archive.open(zipfile.ZipInfo(name + _ARRAY_SUFFIX), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    return buffer.getvalue()


def unpack_archive(kind: ArchiveFormat, content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of what `pack_archive` made.

    Raises:
        RefusedError: empty, cut off, damaged, of a newer version, or something else; a parser of what is damaged
            may raise anything.
    """
    entries = _entries(kind, content)
    if _HEADER not in entries:
        raise RefusedError(f"an archive without a header, which is no {kind.noun.partition(' ')[2]}")
    text = _array(entries.pop(_HEADER)).tobytes()
    header = json.loads(text)
    if not isinstance(header, dict) or header.get("format") != kind.name:
        raise RefusedError(f"an archive of something else than {kind.noun}")
    version = header.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RefusedError(f"damaged (format version {version!r})")
    if version > kind.version:
        raise RefusedError(
            f"format version {version} of bitlens {header.get('bitlens_version')}, and bitlens "
            f"{kind.bitlens_version} reads versions up to {kind.version}"
        )
    if _CHECKSUM not in entries:
        raise RefusedError("damaged (it has no checksum)")
    expected = _array(entries.pop(_CHECKSUM)).tobytes()
    arrays = {name: _array(entry) for name, entry in entries.items()}
    if _checksum(text, arrays) != expected:
        raise RefusedError("damaged (its checksum is not that of its contents)")
    return header, arrays


def _entries(kind: ArchiveFormat, content: bytes) -> dict[str, bytes]:
    """Contents of the members of an archive, each as its own CRC says it was."""
    if not content:
        raise RefusedError("an empty file")
    if not content.startswith(_ARCHIVE_START):
        raise RefusedError("not an .npz archive")
    if not content[-_ARCHIVE_END_BYTES:].startswith(_ARCHIVE_END):
        raise RefusedError("cut off, or with something behind its end")
    entries: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        # Readers of archives look past what stands before one.
        if min((info.header_offset for info in archive.infolist()), default=0) != 0:
            raise RefusedError("damaged (something stands before its contents)")
        # Nothing is compressed, so that a small file cannot ask for much memory.
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise RefusedError(f"a compressed archive, which {kind.writer} does not write")
        if sum(info.file_size for info in archive.infolist()) > len(content):
            raise RefusedError("damaged (its contents are larger than itself)")
        for info in archive.infolist():
            name = info.filename.removesuffix(_ARRAY_SUFFIX)
            if name in entries or name == info.filename:
                raise RefusedError(f"an archive of something else than {kind.noun} (it has {info.filename!r})")
            entries[name] = archive.read(info)
    return entries


def _array(entry: bytes) -> np.ndarray:
    return np.lib.format.read_array(io.BytesIO(entry), allow_pickle=False)


def _checksum(header: bytes, arrays: dict[str, np.ndarray]) -> bytes:
    """SHA-256 of the header, then of name, type, shape and values of each array by name, each part with its length."""
    digest = hashlib.sha256(b"%d:" % len(header))
    digest.update(header)
    for name in sorted(arrays):
        array = arrays[name]
        about = json.dumps([name, array.dtype.str, array.shape]).encode()
        digest.update(b"%d:" % len(about))
        digest.update(about)
        digest.update(array.tobytes())
    return digest.digest()
