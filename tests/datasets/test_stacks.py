"""Reading stacks: values kept, pickles never opened, and one clear line for every way a file can be wrong."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import torch

from bitlens.datasets import read_stack
from bitlens.datasets.stacks import read_measurements


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 2, 4, 3)])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", torch.float32),
        ("float64", torch.float64),
        ("float16", torch.float32),
        (">f4", torch.float32),
        ("uint8", torch.float32),
        ("uint16", torch.float32),
        ("int32", torch.float64),
        ("int64", torch.float64),
        ("bool", torch.float32),
    ],
)
def test_npy(tmp_path: Path, shape: tuple[int, ...], dtype: str, expected: torch.dtype) -> None:
    values = (np.random.default_rng(0).random(shape) * 200).astype(dtype)
    np.save(tmp_path / "stack.npy", values)
    stack = read_stack(tmp_path / "stack.npy")
    assert stack.dtype == expected
    assert stack.shape == (5, shape[1] if len(shape) == 4 else 1, 4, 3)
    np.testing.assert_array_equal(stack.numpy().reshape(shape), values.astype(np.float64))


def test_extreme_integers_stay_what_they_are(tmp_path: Path) -> None:
    for dtype, value in [("uint16", 65535), ("uint32", 2**32 - 1), ("int64", 2**53), ("int64", -(2**53))]:
        np.save(tmp_path / "stack.npy", np.full((1, 2, 2), value, dtype=dtype))
        assert int(read_stack(str(tmp_path / "stack.npy"))[0, 0, 0, 0].item()) == value


def test_npz_with_one_array_and_with_a_name(tmp_path: Path) -> None:
    measured, mean = np.ones((2, 3, 3)), np.zeros((2, 3, 3), dtype=np.float32)
    np.savez_compressed(tmp_path / "one.npz", measured=measured)
    assert read_stack(tmp_path / "one.npz").shape == (2, 1, 3, 3)
    np.savez(tmp_path / "two.npz", measured=measured, mean=mean)
    assert read_stack(tmp_path / "two.npz", name="mean").dtype == torch.float32


def test_fortran_order_is_read_in_the_order_of_its_axes(tmp_path: Path) -> None:
    values = np.asfortranarray(np.arange(24.0).reshape(2, 3, 4))
    np.save(tmp_path / "stack.npy", values)
    stack = read_stack(tmp_path / "stack.npy")
    assert stack.is_contiguous()
    np.testing.assert_array_equal(stack[:, 0].numpy(), values)


class Bomb:
    """Whoever unpickles this makes the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("kind", ["npy", "npz", "pickle"])
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "it_ran"
    objects = np.array([Bomb(marker)], dtype=object)
    path = tmp_path / ("stack.npz" if kind == "npz" else "stack.npy")
    if kind == "npy":
        np.save(path, objects, allow_pickle=True)
    elif kind == "npz":
        np.savez(path, objects)
    else:
        path.write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(ValueError, match="a pickle") as caught:
        read_stack(path)
    assert not marker.exists()
    assert "\n" not in str(caught.value)


def write_text(path: Path) -> None:
    path.write_text("1.0 2.0 3.0\n4.0 5.0 6.0\n")


def write_truncated(path: Path) -> None:
    np.save(path, np.zeros((10, 32, 32)))
    path.write_bytes(path.read_bytes()[:500])


def write_short_header(path: Path) -> None:
    path.write_bytes(b"\x93NUMPY\x01\x00")


def write_broken_zip(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), np.zeros((10, 8, 8)))
    path.write_bytes(path.with_suffix(".npz").read_bytes()[:300])


def write_zip_of_text(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no array")


def save(values: np.ndarray) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, values)

    return write


def save_many(**arrays: np.ndarray) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **arrays)

    return write


with_nan = np.zeros((2, 3, 3))
with_nan[1, 2, 0] = np.nan
with_infinity = np.zeros((2, 1, 3, 3), dtype=np.float32)
with_infinity[0, 0, 0, :2] = np.inf


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.mkdir(), "need a file, got a directory"),
        (write_text, "need a file that numpy.save or numpy.savez wrote"),
        (write_truncated, "cannot be read"),
        (write_short_header, "cannot be read"),
        (write_broken_zip, "cannot be read"),
        (write_zip_of_text, "need 'notes.txt' to be an array"),
        (save(np.zeros((4, 4))), r"need \(n, row, column\) or .*, got \(4, 4\)"),
        (save(np.zeros((1, 1, 1, 4, 4))), r"got \(1, 1, 1, 4, 4\)"),
        (save(np.zeros((0, 4, 4))), r"need at least one image of at least one pixel, got shape \(0, 4, 4\)"),
        (save(np.zeros((3, 4, 0))), r"at least one pixel, got shape \(3, 4, 0\)"),
        (save(with_nan), "need finite values, got 1 NaN or infinite of 18"),
        (save(with_infinity), "need finite values, got 2 NaN or infinite of 18"),
        (save(np.zeros((2, 3, 3), dtype=complex)), "need real numbers, got dtype complex128"),
        (save(np.full((2, 3, 3), "text")), "need real numbers, got dtype <U4"),
        (save(np.zeros((2, 3, 3), dtype="datetime64[s]")), "need real numbers, got dtype datetime64"),
        (save(np.zeros((2, 3, 3), dtype=[("a", "f4")])), "need real numbers, got dtype"),
        (save(np.full((1, 1, 1), 2**60)), r"need integers of at most 2\^53"),
        (save_many(), "the npz file holds no arrays"),
        (
            save_many(a=np.zeros(3), b=np.zeros(3)),
            "holds 2 arrays; choose one with name=: a, b",
        ),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "stack.npy"
    write(path)
    with pytest.raises(ValueError, match=message) as caught:
        read_stack(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_header_that_promises_more_than_the_file_holds(tmp_path: Path) -> None:
    # A terabyte for a file of a kilobyte: no memory may be asked for.
    path = tmp_path / "stack.npy"
    np.save(path, np.zeros((100, 2, 2)))
    honest = path.read_bytes()
    header = b"(99999999, 99, 99), }"
    path.write_bytes(honest.replace(b"(100, 2, 2), }".ljust(len(header)), header))
    assert path.read_bytes() != honest
    with pytest.raises(ValueError, match="cannot be read"):
        read_stack(path)


def test_a_missing_file_is_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npy: no such file"):
        read_stack(tmp_path / "nowhere.npy")


def test_a_wrong_name_lists_the_right_ones(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", mean=np.zeros((1, 2, 2)), measured=np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match="need name to be one of mean, measured, got 'clean'"):
        read_stack(tmp_path / "two.npz", name="clean")
    np.save(tmp_path / "one.npy", np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match="name: need None for an npy file, got 'mean'"):
        read_stack(tmp_path / "one.npy", name="mean")


def cubes(*shape: int, dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def save_pages(path: Path, values: np.ndarray, **settings: Any) -> None:
    with tifffile.TiffWriter(path) as file:
        for page in values:
            file.write(page, contiguous=False, photometric="minisblack", **settings)


@pytest.mark.parametrize(
    ("write", "shape", "first_to_last"),
    [
        (lambda path, z: tifffile.imwrite(path, z, photometric="minisblack"), (7, 5, 6), None),
        (lambda path, z: tifffile.imwrite(path, z, photometric="minisblack", bigtiff=True), (7, 5, 6), None),
        (lambda path, z: tifffile.imwrite(path, z, photometric="minisblack", compression="zlib"), (7, 5, 6), None),
        (lambda path, z: tifffile.imwrite(path, z, photometric="minisblack", byteorder=">"), (7, 5, 6), None),
        (lambda path, z: tifffile.imwrite(path, z, photometric="minisblack"), (7, 2, 5, 6), None),
        (lambda path, z: tifffile.imwrite(path, z, photometric="rgb"), (7, 5, 6, 3), (3, 1)),
        (lambda path, z: tifffile.imwrite(path, z, photometric="rgb", planarconfig="separate"), (7, 3, 5, 6), None),
        (lambda path, z: tifffile.imwrite(path, z, imagej=True, metadata={"axes": "TYX"}), (7, 5, 6), None),
        (lambda path, z: tifffile.imwrite(path, z, imagej=True, metadata={"axes": "TCYX"}), (7, 2, 5, 6), None),
        (lambda path, z: tifffile.imwrite(path, z, ome=True, metadata={"axes": "TCYX"}), (7, 2, 5, 6), None),
        (lambda path, z: tifffile.imwrite(path, z, ome=True, metadata={"axes": "CTYX"}), (2, 7, 5, 6), (0, 1)),
        (save_pages, (7, 5, 6), None),
        (lambda path, z: save_pages(path, z, metadata=None), (7, 5, 6), None),
        (lambda path, z: tifffile.imwrite(path, z, photometric="minisblack", truncate=True), (7, 5, 6), None),
    ],
)
def test_axes_of_a_tiff_are_read(
    tmp_path: Path,
    write: Callable[[Path, np.ndarray], None],
    shape: tuple[int, ...],
    first_to_last: tuple[int, int] | None,
) -> None:
    values = cubes(*shape)
    write(tmp_path / "a.tif", values)
    expected = values if first_to_last is None else np.moveaxis(values, *first_to_last)
    found = read_stack(tmp_path / "a.tif").numpy()
    np.testing.assert_array_equal(found, expected.reshape(7, -1, 5, 6))


def write_cut(n_bytes: int, **settings: Any) -> Callable[[Path], None]:
    """Only the first bytes, or all but the last, of a file of 200 pages."""

    def write(path: Path) -> None:
        tifffile.imwrite(path, cubes(200, 32, 32), photometric="minisblack", **settings)
        path.write_bytes(path.read_bytes()[:n_bytes])

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_cut(20_000), "ends early"),
        (write_cut(-1_000), "ends early"),
        (write_cut(20_000, metadata=None), "ends early"),
        (write_cut(-10, compression="zlib"), "ends early"),
        (write_cut(100_000, compression="zlib"), "ends early"),
        (write_cut(20_000, bigtiff=True), "ends early"),
        (write_cut(20_000, truncate=True), "200 images .* promise, got 1 pages"),
        (write_cut(12), "cannot be read"),
        (lambda path: tifffile.imwrite(path, np.zeros((500, 3, 3)), photometric="rgb"), r"a stack of 500 images"),
        (lambda path: tifffile.imwrite(path, cubes(3, 8, 8), photometric="rgb", planarconfig="separate"), "one page"),
        (lambda path: tifffile.imwrite(path, cubes(5, 4, 8, 8), imagej=True, metadata={"axes": "TZYX"}), "TZYX"),
        (lambda path: tifffile.imwrite(path, cubes(5, 8, 8), ome=True, metadata={"axes": "CYX"}), "one axis of images"),
        (lambda path: save_two(path), "need pages of one shape and type"),
    ],
)
def test_a_tiff_that_says_less_than_it_needs_to_is_refused(
    tmp_path: Path, write: Callable[[Path], object], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.tif"
    write(path)
    with pytest.raises(ValueError, match=message) as caught:
        read_stack(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def save_two(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        file.write(cubes(3, 8, 8), photometric="minisblack")
        file.write(cubes(3, 6, 8), photometric="minisblack")


def test_a_ring_of_pages_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, cubes(8, 8), photometric="minisblack", metadata=None)
    content = bytearray(path.read_bytes())
    first = int.from_bytes(content[4:8], "little")
    after = first + 2 + 12 * int.from_bytes(content[first : first + 2], "little")
    content[after : after + 4] = first.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="ring"):
        read_stack(path)


def test_hdf5_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["entry/data"] = cubes(4, 5, 6)
    np.testing.assert_array_equal(read_stack(path)[:, 0].numpy(), cubes(4, 5, 6))
    with h5py.File(path, "a") as file:
        file["dark"] = np.zeros((2, 5, 6))
        file["label"] = "a word"
    np.testing.assert_array_equal(read_stack(path, name="entry/data")[:, 0].numpy(), cubes(4, 5, 6))
    with pytest.raises(ValueError, match=r"holds 3 arrays; choose one with name=: dark, entry/data, label"):
        read_stack(path)
    with pytest.raises(ValueError, match=r"need name to be one of dark, entry/data, label, got 'entry'"):
        read_stack(path, name="entry")
    with pytest.raises(ValueError, match="need real numbers"):
        read_stack(path, name="label")
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match=r"a\.h5: cannot be read"):
        read_stack(path)


def test_measured_and_mean_of_one_file(tmp_path: Path) -> None:
    measured, mean = cubes(4, 5, 6), cubes(4, 5, 6) + 0.5
    np.savez(tmp_path / "a.npz", other=np.zeros(3), measured=measured, mean=mean)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["measured"], file["mean"] = measured, mean
    for name in ("a.npz", "a.h5"):
        found = read_measurements(tmp_path / name)
        assert found.mean is not None
        np.testing.assert_array_equal(found.measured[:, 0].numpy(), measured)
        np.testing.assert_array_equal(found.mean[:, 0].numpy(), mean)
        chosen = read_measurements(tmp_path / name, name="mean")
        assert chosen.mean is None
        np.testing.assert_array_equal(chosen.measured[:, 0].numpy(), mean)
    np.savez(tmp_path / "b.npz", measured=measured, mean=mean[:3])
    with pytest.raises(ValueError, match=r"b\.npz: need mean of the shape of measured, \(4, 1, 5, 6\)"):
        read_measurements(tmp_path / "b.npz")
    np.save(tmp_path / "c.npy", measured)
    assert read_measurements(tmp_path / "c.npy").mean is None
