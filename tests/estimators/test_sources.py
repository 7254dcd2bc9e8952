"""Every source gives the same images, some at a time, and says what is wrong with it where it is passed."""

from __future__ import annotations

import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import torch
from torch.utils.data import DataLoader, TensorDataset

from bitlens import GaussianNoise, estimate_information
from bitlens.estimators.metric import InformationMetric
from bitlens.estimators.sources import Batch, batches

N, SHAPE = 23, (3, 4)


def stack(dtype: str = "float32", n: int = N) -> np.ndarray:
    values = np.random.default_rng(0).normal(100.0, 9.0, (n, *SHAPE))
    return values.astype(dtype)


class OnDisk:
    """An array of another package that counts the largest part it was asked for."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.shape = values.shape
        self.dtype = values.dtype
        self.largest = 0

    def __getitem__(self, index: Any) -> np.ndarray:
        part = np.asarray(self.values[index])
        self.largest = max(self.largest, len(part))
        return part


def save_h5(path: Path, **arrays: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, chunks=True, compression="gzip")
    return path


def save_npy(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def save_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def save_tiff(path: Path, values: np.ndarray) -> Path:
    tifffile.imwrite(path, values, photometric="minisblack")
    return path


SOURCES: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "array": lambda values, folder: values,
    "foreign_byte_order": lambda values, folder: values.astype(values.dtype.newbyteorder(">")),
    "backwards": lambda values, folder: np.ascontiguousarray(values[::-1])[::-1],
    "memory_map": lambda values, folder: np.load(save_npy(folder / "a.npy", values), mmap_mode="r"),
    "tensor": lambda values, folder: torch.from_numpy(values),
    "on_disk": lambda values, folder: OnDisk(values),
    "loader": lambda values, folder: DataLoader(TensorDataset(torch.from_numpy(values)), batch_size=9),
    "list": lambda values, folder: [values[:2], values[2:]],
    "generator": lambda values, folder: (values[i : i + 1] for i in range(len(values))),
    "npy": lambda values, folder: save_npy(folder / "a.npy", values),
    "npy_name": lambda values, folder: str(save_npy(folder / "a.npy", values)),
    "npz": lambda values, folder: save_npz(folder / "a.npz", images=values),
    "tiff": lambda values, folder: save_tiff(folder / "a.tif", values),
    "h5": lambda values, folder: save_h5(folder / "a.h5", images=values),
}


@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16"])
@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_its_images(kind: str, dtype: str, batch_size: int, tmp_path: Path) -> None:
    values = stack(dtype)
    found = list(batches(SOURCES[kind](values, tmp_path), batch_size))
    assert all(batch.mean is None and 1 <= len(batch.measured) <= batch_size for batch in found)
    joined = torch.cat([batch.measured for batch in found])
    assert joined.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert np.array_equal(joined.numpy(), values)


@pytest.mark.parametrize(
    "pair",
    [
        lambda z, y, folder: (z, y),
        lambda z, y, folder: (torch.from_numpy(z), OnDisk(y)),
        lambda z, y, folder: DataLoader(TensorDataset(torch.from_numpy(z), torch.from_numpy(y)), batch_size=5),
        lambda z, y, folder: [(z[:9], y[:9]), (z[9:], y[9:])],
        lambda z, y, folder: iter([{"measured": z, "mean": y}]),
        lambda z, y, folder: save_npz(folder / "a.npz", other=z[:1], mean=y, measured=z),
        lambda z, y, folder: save_h5(folder / "a.hdf5", mean=y, measured=z),
    ],
)
def test_pairs_stay_together(pair: Callable[..., Any], tmp_path: Path) -> None:
    z, y = stack(), stack("float64") + 1
    found = list(batches(pair(z, y, tmp_path), 4))
    assert max(len(batch.measured) for batch in found) == 4
    assert all(batch.mean is not None for batch in found)
    assert np.array_equal(torch.cat([batch.measured for batch in found]).numpy(), z)
    assert np.array_equal(torch.cat([batch.mean for batch in found if batch.mean is not None]).numpy(), y)


def test_one_batch_at_a_time_is_read(tmp_path: Path) -> None:
    disk = OnDisk(stack(n=1_000))
    for _ in batches(disk, 8):
        pass
    assert disk.largest == 8

    def endless() -> Iterator[np.ndarray]:
        while True:
            yield stack(n=2)

    found = batches(endless(), 8)
    assert [len(next(found).measured) for _ in range(5)] == [2] * 5
    # A member of an archive is unpacked in parts: what comes after the damage is not read before its turn.
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("z.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**6, *SHAPE)})
        file.write(stack(n=10).tobytes())
    parts = batches(path, 5)
    assert len(next(parts).measured) == len(next(parts).measured) == 5
    with pytest.raises(ValueError, match="the file ends early, after 10 of 1000000 images"):
        next(parts)


def test_pages_with_colours_have_them_first(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (5, 6, 7, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tiff", values, photometric="rgb")
    found = torch.cat([batch.measured for batch in batches(tmp_path / "a.tiff", 2)])
    assert np.array_equal(found.numpy(), np.moveaxis(values, 3, 1))


def test_channels_and_times_of_a_hyperstack(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 99, (25, 2, 3, 4)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, metadata={"axes": "TCYX"})
    found = list(batches(tmp_path / "a.tif", 10))
    assert [len(batch.measured) for batch in found] == [10, 10, 5]
    assert np.array_equal(torch.cat([batch.measured for batch in found]).numpy(), values)


def test_a_tiff_of_which_a_part_is_gone_is_refused_at_once(tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", np.zeros((200, 32, 32), dtype=np.uint16))
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"a\.tif: the file ends early"):
        batches(path, 8)
    # An array of images of three columns looks like one picture with colours.
    tifffile.imwrite(path, np.zeros((500, 3, 3)), photometric="rgb")
    with pytest.raises(ValueError, match=r"got one page with colours, axes YXS \(500, 3, 3\)"):
        batches(path, 8)


def test_array_of_a_file_is_chosen_by_name(tmp_path: Path) -> None:
    z, y = stack(), stack() + 1
    for path in (save_npz(tmp_path / "a.npz", first=z, second=y), save_h5(tmp_path / "a.h5", first=z, second=y)):
        (batch,) = batches(path, 100, name="second")
        assert np.array_equal(batch.measured.numpy(), y)
        with pytest.raises(ValueError, match=r"holds 2 arrays; choose one with name=: first, second"):
            batches(path, 100)
        with pytest.raises(ValueError, match="name: need one of first, second, got 'third'"):
            batches(path, 100, name="third")
    with h5py.File(tmp_path / "deep.h5", "w") as file:
        file.create_group("entry").create_dataset("data", data=z)
    (batch,) = batches(tmp_path / "deep.h5", 100)
    assert np.array_equal(batch.measured.numpy(), z)
    with h5py.File(tmp_path / "deep.h5") as file:
        (batch,) = batches(file["entry/data"], 100)
    assert np.array_equal(batch.measured.numpy(), z)


def test_integers_stay_what_they_are() -> None:
    for dtype, value, expected in (
        ("int8", -128, torch.float32),
        ("uint16", 65535, torch.float32),
        ("uint32", 2**32 - 1, torch.float64),
        ("int64", -(2**53), torch.float64),
        ("bool", True, torch.float32),
    ):
        array = np.full((2, 3), value, dtype=dtype)
        for source in (array, torch.from_numpy(array)):
            (batch,) = batches(source, 2)
            assert batch.measured.dtype == expected
            assert (batch.measured.numpy() == array).all()
    for large in (np.full((2, 3), 2**53 + 1), torch.full((2, 3), -(2**53) - 1)):
        with pytest.raises(ValueError, match=r"need integers of at most 2\^53"):
            batches(large, 2)


def test_metric_takes_batches_from_a_file(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    measured = 3.0 * torch.randn(3_000, 2, 2, generator=rng)
    metric = InformationMetric(GaussianNoise(1.0), generator=rng)
    for batch in batches(save_npy(tmp_path / "a.npy", measured.numpy()), 64):
        assert isinstance(batch, Batch)
        metric.update(*batch)
    result = metric.compute()
    whole = estimate_information(measured, GaussianNoise(1.0), method="gaussian", generator=rng)
    assert result.n_samples == 3_000
    assert result.stderr_bits is not None
    assert abs(result.bits - whole.bits) < 4 * result.stderr_bits


# ---- What is refused, where it is passed ----


def bad_values(bad: float) -> np.ndarray:
    values = stack()
    values[9, 1, 1] = bad
    return values


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (np.zeros((0, 3, 4)), ValueError, "source: need at least one image, got none"),
        (np.zeros((3, 0)), ValueError, "source: need at least one image, got none"),
        ([], ValueError, "source: need at least one image, got none"),
        (np.zeros(5), ValueError, r"source: need images \(n, ...\), got shape \(5,\)"),
        (np.zeros((5, 2), dtype=complex), TypeError, "source: need real numbers, got complex128"),
        (np.array([["a"]]), TypeError, "source: need real numbers, got <U1"),
        (torch.zeros(5, 2, dtype=torch.complex64), TypeError, "source: need real numbers, got torch.complex64"),
        (bad_values(np.nan), ValueError, r"from image 0: need finite values, got 1 NaN or infinite of 276"),
        (bad_values(np.inf), ValueError, "need finite values"),
        ((stack(), stack()[:4]), ValueError, r"need mean of the shape of measured, \(23, 3, 4\), got \(4, 3, 4\)"),
        ([stack(), "text"], TypeError, "got str as batch 1"),
        ([[[1.0, 2.0]]], TypeError, "got list as batch 0"),
        (3.0, TypeError, "source: need an array, a .* pair, an iterable of batches or a path, got float"),
        ([stack(), stack()[:, :2]], ValueError, r"from image 23: need images of shape \(3, 4\) as before"),
        ([(stack(), stack()), stack()], ValueError, "need a mean in every batch"),
        (
            DataLoader(TensorDataset(torch.zeros(9, 2, 2), torch.arange(9)), batch_size=4),
            ValueError,
            r"source, batch 0: need noiseless images of shape \(4, 2, 2\) .* got shape \(4,\), as labels have",
        ),
    ],
)
def test_sources_that_cannot_be_used_are_named(source: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(batches(source, 100))


def test_position_of_a_bad_value_is_said() -> None:
    found = batches(bad_values(np.nan), 4)
    assert len(next(found).measured) == len(next(found).measured) == 4
    with pytest.raises(ValueError, match="source, from image 8: need finite values, got 1 NaN"):
        next(found)


def test_batch_size_is_checked() -> None:
    for size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="batch_size: need a whole number of at least 1"):
            batches(stack(), size)  # type: ignore[arg-type]
    assert len(list(batches(stack(), np.int32(5)))) == 5  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name: need None for a source that is not a file"):
        batches(stack(), 3, name="z")


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.npy: no such file"):
        batches(tmp_path / "none.npy", 3)
    for suffix in ("npy", "npz", "tif", "h5"):
        path = tmp_path / f"empty.{suffix}"
        path.touch()
        with pytest.raises(ValueError, match=rf"empty.{suffix}: the file is empty"):
            batches(path, 3)
        path.write_bytes(b"this is neither of them, though it has the name" * 20)
        with pytest.raises(ValueError, match=rf"empty.{suffix}: cannot be read") as caught:
            batches(path, 3)
        assert "pickle" not in str(caught.value)
    path = tmp_path / "a.csv"
    path.write_text("1,2")
    with pytest.raises(ValueError, match=r"need a .npy, .npz, .tiff, .h5 or .zarr file, got .csv"):
        batches(path, 3)
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="holds Python objects"):
        batches(tmp_path / "objects.npy", 3)
    save_npz(tmp_path / "fortran.npz", z=np.asfortranarray(stack()))
    with pytest.raises(ValueError, match="need an array in C order"):
        batches(tmp_path / "fortran.npz", 3)
    with pytest.raises(ValueError, match=r"name: need None for a .npy file"):
        batches(save_npy(tmp_path / "a.npy", stack()), 3, name="z")


class Group:
    """A zarr group, as far as it is read."""

    def __init__(self, **arrays: OnDisk) -> None:
        self.arrays = arrays

    def array_keys(self) -> Iterator[str]:
        return iter(self.arrays)

    def __getitem__(self, name: str) -> OnDisk:
        return self.arrays[name]


@pytest.mark.parametrize("grouped", [False, True])
def test_zarr_is_read_by_slices(grouped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A stand-in: the calls are those of zarr 2 and 3.
    z, y = OnDisk(stack()), OnDisk(stack() + 1)
    opened = Group(measured=z, mean=y) if grouped else z
    module = types.SimpleNamespace(open=lambda path, mode: opened if mode == "r" else None)
    monkeypatch.setitem(sys.modules, "zarr", module)  # type: ignore[arg-type]
    (tmp_path / "a.zarr").mkdir()
    found = list(batches(tmp_path / "a.zarr", 6))
    assert z.largest == 6
    assert np.array_equal(torch.cat([batch.measured for batch in found]).numpy(), z.values)
    assert all((batch.mean is not None) == grouped for batch in found)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_h5(tmp_path / "a.h5", z=stack())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match=r"a.h5: to read such a file needs h5py.*pip install h5py"):
        batches(path, 3)
    (tmp_path / "a.zarr").mkdir()
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs zarr"):
        batches(tmp_path / "a.zarr", 3)
