"""Files of densities: what comes back is what went in, bit for bit, and what is not such a file is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bitlens
from bitlens import GaussianNoise, PoissonGaussianNoise, PoissonNoise, densities
from bitlens.densities import (
    AutoregressiveDensity,
    Density,
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
    storage,
)
from bitlens.densities.storage import load_density, save_density
from bitlens.noise import NoiseModel

pytestmark = pytest.mark.usefixtures("one_thread")

MIXTURES: tuple[Callable[[NoiseModel], Density], ...] = (
    IndependentPixelsDensity,
    ScaleMixtureDensity,
    SceneMixtureDensity,
    ShiftMixtureDensity,
)
ROWS, COLUMNS = 4, 5
MAP = torch.linspace(1.0, 3.0, ROWS * COLUMNS, dtype=torch.float64).reshape(ROWS, COLUMNS)
NOISES: dict[str, NoiseModel] = {
    "gaussian": GaussianNoise(3.0),
    "gaussian with a map": GaussianNoise(MAP.mT.contiguous().mT),
    "poisson": PoissonNoise(),
    "sensor": PoissonGaussianNoise(gain=2.0, offset=100.0, read_std=3.0),
    "sensor with maps": PoissonGaussianNoise(gain=MAP, offset=10.0 * MAP, read_std=MAP.float()),
    "camera": PoissonGaussianNoise(gain=2.0, offset=10.0, read_std=MAP, adc_bits=8, full_well_electrons=90.5),
    "sensor to be optimised": PoissonGaussianNoise(gain=nn.Parameter(torch.tensor(0.3)), read_std=nn.Parameter(MAP)),
    "single precision": PoissonGaussianNoise(gain=0.3, read_std=1.1).float(),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counts(*shape: int, seed: int = 1) -> Tensor:
    level = 30.0 * torch.rand(shape[0], *(1,) * (len(shape) - 1), generator=generator(seed), dtype=torch.float64)
    return torch.poisson(level.expand(shape), generator=generator(seed + 1))


def values(*shape: int) -> Tensor:
    return counts(*shape) + torch.randn(shape, generator=generator(7), dtype=torch.float64)


def measured_by(noise: NoiseModel) -> Tensor:
    return noise.sample(counts(60, ROWS, COLUMNS), generator(5)).detach().to(torch.float64)


# Each class with settings of its own, and what it is fitted to.
FREE: dict[str, tuple[Density, Tensor]] = {
    "copula": (GaussianCopulaDensity(), values(60, 5, 4)),
    "factor mixture": (FactorMixtureDensity(), values(120, 5, 4)),
    "factor mixture, given": (
        FactorMixtureDensity(n_components=3, rank=2, max_iterations=9, seed=4),
        values(120, 5, 4),
    ),
    "factor mixture, full": (FactorMixtureDensity("full", n_components=2), values(120, 5, 4)),
    "gaussian": (GaussianDensity(), values(300, 12, 13)),
    "gaussian in single precision and one axis": (GaussianDensity(), values(90, 7).float()),
    "stationary": (StationaryGaussianDensity(), values(50, 11, 9)),
    "stationary in channels": (StationaryGaussianDensity(7, 1e-3), values(60, 3, 4, 5)),
    "gaussian mixture": (GaussianMixtureDensity(), values(120, 5, 4)),
    "autoregressive": (AutoregressiveDensity(4, 1, 3, 2, seed=3), counts(60, 5, 4)),
    "autoregressive with limits": (
        AutoregressiveDensity(4, 0, 2, 1, limits=(-math.inf, 255.0), discrete=True),
        counts(60, 5, 4),
    ),
    "autoregressive in channels": (AutoregressiveDensity(4, 1, 3, 1, 1 / 3, 0.2), values(60, 2, 5, 4)),
    "flow": (FlowDensity(hidden=8, max_passes=1, learning_rate=math.pi / 1000), values(60, 3, 4)),
    "flow of counts": (FlowDensity(n_splines=2, hidden=8, max_passes=1, dequantize=True, seed=11), counts(60, 3, 4)),
}
USED: dict[Callable[[NoiseModel], Density], tuple[str, ...]] = {
    IndependentPixelsDensity: ("gaussian with a map", "poisson", "sensor with maps"),
    ScaleMixtureDensity: ("gaussian with a map", "poisson", "sensor", "sensor with maps", "camera", "single precision"),
    SceneMixtureDensity: ("gaussian", "poisson", "sensor with maps"),
    ShiftMixtureDensity: ("gaussian", "poisson", "single precision"),
}
CASES: dict[str, tuple[Density, Tensor]] = {
    **FREE,
    **{
        f"{kind.__name__}, {name}": (kind(noise), measured_by(noise))  # type: ignore[attr-defined]
        for kind in MIXTURES
        for name, noise in NOISES.items()
        if name in USED[kind]
    },
}
every_case = pytest.mark.parametrize("case", CASES)


def assert_same(first: object, second: object, where: str = "density") -> None:
    """The same types and values all the way down, and tensors that lie alike in memory."""
    assert type(first) is type(second), where
    if dataclasses.is_dataclass(first):
        for field in dataclasses.fields(first):
            assert_same(getattr(first, field.name), getattr(second, field.name), f"{where}.{field.name}")
    elif isinstance(first, nn.Module):
        assert isinstance(second, nn.Module)
        for name in ("std", "gain", "offset", "read_std", "full_well_electrons", "adc_bits", "discrete"):
            assert_same(getattr(first, name, ...), getattr(second, name, ...), f"{where}.{name}")
        for part in ("named_parameters", "named_buffers"):
            names = [[name for name, _ in getattr(noise, part)()] for noise in (first, second)]
            assert names[0] == names[1], where
    elif isinstance(first, Tensor):
        assert isinstance(second, Tensor)
        assert first.dtype == second.dtype, where
        assert first.requires_grad == second.requires_grad, where
        # Bytes, so that NaN and the sign of zero count.
        assert first.shape == second.shape, where
        assert first.detach().numpy().tobytes() == second.detach().numpy().tobytes(), where
        order = [sorted(range(each.ndim), key=each.stride().__getitem__) for each in (first, second)]
        assert order[0] == order[1], where
    elif isinstance(first, dict):
        assert isinstance(second, dict)
        assert list(first) == list(second), where
        for name, value in first.items():
            assert_same(value, second[name], f"{where}.{name}")
    elif isinstance(first, tuple | list):
        assert isinstance(second, tuple | list)
        assert len(first) == len(second), where
        for place, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same(one, other, f"{where}.{place}")
    else:
        assert first == second or (first != first and second != second), where


def kept(density: Density, folder: Path) -> Density:
    save_density(density, folder / "density.npz")
    return load_density(folder / "density.npz")


@pytest.fixture(scope="module")
def fitted() -> Callable[[str], Density]:
    found: dict[str, Density] = {}

    def fit(case: str) -> Density:
        if case not in found:
            density, measured = CASES[case]
            found[case] = density.fit(measured)
        return found[case]

    return fit


def exported() -> dict[str, type[Density]]:
    names = {name: getattr(densities, name) for name in densities.__all__}
    return {
        name: kind
        for name, kind in names.items()
        if isinstance(kind, type) and issubclass(kind, Density) and kind is not Density
    }


def test_every_exported_density_can_be_stored() -> None:
    assert exported() == storage._DENSITIES
    assert {type(density).__name__ for density, _ in CASES.values()} == set(exported())


def test_every_noise_model_can_be_stored() -> None:
    models = {
        name: kind
        for name, kind in vars(bitlens.noise).items()
        if isinstance(kind, type) and issubclass(kind, NoiseModel) and kind is not NoiseModel
    }
    assert {name: kind for name, (kind, _) in storage._NOISES.items()} == models
    assert {type(noise).__name__ for noise in NOISES.values()} == set(models)


@every_case
def test_fitted_densities_come_back_bit_for_bit(case: str, fitted: Callable[[str], Density], tmp_path: Path) -> None:
    density, measured = fitted(case), CASES[case][1]
    loaded = kept(density, tmp_path)
    assert_same(density, loaded)
    held_out = torch.cat([measured.flip(-1), measured.roll(1, 0)])
    expected = density.log_prob(held_out)
    assert bool(torch.isfinite(expected).any())
    assert torch.equal(loaded.log_prob(held_out), expected)
    assert torch.equal(loaded.log_prob(held_out[:3]), density.log_prob(held_out[:3]))
    assert torch.equal(loaded.sample(9, generator(2)), density.sample(9, generator(2)))


@every_case
def test_settings_of_fit_come_back(case: str, fitted: Callable[[str], Density], tmp_path: Path) -> None:
    density, measured = CASES[case]
    loaded = kept(density, tmp_path)
    assert_same(density, loaded)
    with pytest.raises(RuntimeError, match="call fit first"):
        loaded.log_prob(measured)
    assert_same(loaded.fit(measured), fitted(case))


@pytest.mark.parametrize("case", ["stationary", "autoregressive", "flow", "SceneMixtureDensity, poisson"])
def test_a_loaded_density_is_fitted_again_alike(case: str, fitted: Callable[[str], Density], tmp_path: Path) -> None:
    density, measured = fitted(case), CASES[case][1][:50]
    assert_same(kept(density, tmp_path).fit(measured), density.fit(measured))


def test_a_gradient_still_reaches_the_parameters_of_the_noise(tmp_path: Path) -> None:
    noise = NOISES["sensor to be optimised"]
    loaded = kept(ScaleMixtureDensity(noise), tmp_path)
    assert isinstance(loaded, ScaleMixtureDensity)
    gain = loaded.noise.get_parameter("gain")
    assert gain.dtype == torch.float32
    loaded.noise.log_prob(MAP, MAP).sum().backward()
    noise.log_prob(MAP, MAP).sum().backward()
    assert torch.equal(gain.grad, noise.get_parameter("gain").grad)
    noise.zero_grad(set_to_none=True)


def test_odd_numbers_come_back(tmp_path: Path) -> None:
    mean = torch.tensor([math.nan, -0.0, math.inf, 5e-324, -math.inf], dtype=torch.float64)
    for bias in (math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1 + 0.2, 1.7976931348623157e308):
        density = GaussianDensity(mean, None, 2**70, bias, True)
        loaded = kept(density, tmp_path)
        assert_same(density, loaded)
        assert math.copysign(1.0, loaded.held_out_bias_nats) == math.copysign(1.0, bias)


def test_numpy_numbers_become_plain_ones(tmp_path: Path) -> None:
    loaded = kept(AutoregressiveDensity(width=np.int64(5), learning_rate=np.float64(0.1)), tmp_path)  # type: ignore
    assert_same(loaded, AutoregressiveDensity(width=5, learning_rate=0.1))


@pytest.mark.parametrize("dtype", sorted(storage._DTYPES, key=str))
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, 3, 4)])
def test_tensors_of_every_type_and_shape(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = (100.0 * torch.rand(shape, generator=generator())).to(dtype)
    turned = tensor.permute(list(reversed(range(tensor.ndim))))
    for dense in (tensor, turned):
        assert_same(GaussianDensity(dense), kept(GaussianDensity(dense), tmp_path))
    for each in (tensor.expand(2, *shape), torch.stack([tensor, tensor], -1)[..., 0]):
        loaded = kept(GaussianDensity(each), tmp_path)
        assert isinstance(loaded, GaussianDensity)
        assert loaded.mean is not None
        assert loaded.mean.dtype == dtype
        assert torch.equal(loaded.mean, each)


def test_conjugated_spectra(tmp_path: Path) -> None:
    spectrum = torch.randn(3, 4, dtype=torch.complex128, generator=generator())
    for each in (spectrum.conj(), spectrum.mH, spectrum.conj().imag):
        loaded = kept(StationaryGaussianDensity(spectrum=each), tmp_path)
        assert isinstance(loaded, StationaryGaussianDensity)
        assert loaded.spectrum is not None
        assert torch.equal(loaded.spectrum, each)


# The file.


@pytest.fixture
def small() -> Density:
    return GaussianDensity().fit(values(20, 2, 1))


@pytest.fixture
def path(small: Density, tmp_path: Path) -> Path:
    save_density(small, tmp_path / "density.npz")
    return tmp_path / "density.npz"


def test_numpy_reads_the_archive(path: Path, small: GaussianDensity) -> None:
    with np.load(path, allow_pickle=False) as archive:
        header = json.loads(archive["header"].tobytes())
        assert set(archive.files) == {"header", "sha256", "tensor.mean", "tensor.cholesky"}
        assert np.array_equal(archive["tensor.mean"], small.mean.numpy())  # type: ignore[union-attr]
        assert np.array_equal(archive["tensor.cholesky"], small.cholesky.numpy())  # type: ignore[union-attr]
    assert header["format"] == "bitlens density"
    assert header["format_version"] == 1
    assert header["bitlens_version"] == bitlens.__version__
    assert header["class"] == "GaussianDensity"


def test_the_same_density_gives_the_same_bytes(path: Path, small: Density) -> None:
    again = path.with_name("again")
    save_density(small, again)
    assert again.read_bytes() == path.read_bytes()
    save_density(load_density(path), again)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["density", "density.npz", "density.bits", "a b.é", ".hidden", "d" * 255])
@pytest.mark.parametrize("kind", [str, Path])
def test_the_path_is_used_as_given(
    name: str, kind: type, small: Density, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_density(small, kind(tmp_path / name))
    assert os.listdir(tmp_path) == [name]
    assert_same(load_density(kind(tmp_path / name)), small)
    monkeypatch.chdir(tmp_path)
    save_density(small, kind(name))
    assert os.listdir(tmp_path) == [name]
    assert_same(load_density(kind(name)), small)


def test_an_ordinary_file_is_written(path: Path, small: Density) -> None:
    other = path.with_name("other")
    other.write_bytes(b"")
    assert path.stat().st_mode == other.stat().st_mode
    link = path.with_name("link")
    link.symlink_to(other.name)
    save_density(small, link)
    assert link.is_symlink()
    assert other.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("wrong", [3, None, b"density.npz", io.BytesIO()])
def test_a_path_is_text(wrong: Any, small: Density) -> None:
    with pytest.raises(TypeError, match="path: need a str or a path, got"):
        save_density(small, wrong)
    with pytest.raises(TypeError, match="path: need a str or a path, got"):
        load_density(wrong)


class Laplace(NoiseModel):
    def sample(self, mean: Any, generator: torch.Generator | None = None) -> Tensor:
        return torch.as_tensor(mean)

    def log_prob(self, measured: Any, mean: Any) -> Tensor:
        return -(torch.as_tensor(measured) - torch.as_tensor(mean)).abs()

    def entropy(self, mean: Any) -> Tensor:
        return torch.as_tensor(mean)


def test_what_cannot_be_saved_leaves_no_file(tmp_path: Path) -> None:
    class OwnDensity(GaussianDensity):  # type: ignore[misc]
        pass

    OwnDensity.__name__ = "GaussianDensity"
    refused: dict[str, Any] = {
        "density: need one of": OwnDensity(),
        "density: need one of .*, got str": "density",
        "density: need one of .*, got ABCMeta": GaussianDensity,
        "noise: need one of .*, got Laplace": ScaleMixtureDensity(Laplace()),
        "noise: need one of .*, got Linear": ScaleMixtureDensity(nn.Linear(1, 1)),  # type: ignore[arg-type]
        "mean: .* got bfloat16": GaussianDensity(torch.zeros(2, dtype=torch.bfloat16)),
        "mean: .* torch.sparse_coo": GaussianDensity(torch.zeros(2, 2).to_sparse()),
        "mean: need .*, got ndarray": GaussianDensity(np.zeros(2)),  # type: ignore[arg-type]
        "parameters: need names": AutoregressiveDensity(parameters={"../a": MAP}),
        "parameters.a.b: need one tensor": AutoregressiveDensity(parameters={"a": {"b": MAP}, "a.b": MAP}),  # type: ignore[dict-item]
    }
    for message, density in refused.items():
        with pytest.raises(TypeError, match=message):
            save_density(density, tmp_path / "density.npz")
    assert os.listdir(tmp_path) == []


# Writing that fails.


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space"), SystemExit])
@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_an_interrupted_write_changes_nothing(
    function: str, error: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    reached = []

    def interrupted(*arguments: object) -> None:
        reached.append(len(os.listdir(path.parent)))
        raise error

    other = ScaleMixtureDensity(PoissonNoise())
    with monkeypatch.context() as patched:
        patched.setattr(os, function, interrupted)
        with pytest.raises(error if isinstance(error, type) else type(error)):
            save_density(other, path)
        with pytest.raises(error if isinstance(error, type) else type(error)):
            save_density(other, path.with_name("new.npz"))
    assert reached == [2, 2]  # the temporary file lay in the folder of the file
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == before
    save_density(other, path)
    assert_same(load_density(path), other)


def test_contents_are_on_the_disk_before_they_have_a_name(
    small: Density, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        steps.append(f"fsync {os.fstat(descriptor).st_size}")
        fsync(descriptor)

    def replaced(source: str, target: str) -> None:
        assert Path(source).parent == Path(target).parent == tmp_path.resolve()
        steps.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    save_density(small, tmp_path / "density.npz")
    assert steps == [f"fsync {(tmp_path / 'density.npz').stat().st_size}", "replace"]


def test_folders_that_take_no_file(small: Density, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        save_density(small, path.parent / "missing" / "density.npz")
    with pytest.raises(NotADirectoryError):
        save_density(small, path / "density.npz")
    folder = path.parent / "folder"
    folder.mkdir()
    with pytest.raises(IsADirectoryError):
        save_density(small, folder)
    with pytest.raises(IsADirectoryError):
        load_density(folder)
    assert sorted(os.listdir(path.parent)) == [path.name, "folder"]
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):  # the superuser writes anywhere

        def refused(*arguments: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(PermissionError):
        save_density(small, folder / "density.npz")
    assert os.listdir(folder) == []


# Files that are refused.


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_density(path)
    message = str(caught.value)
    assert message.startswith(f"path: need a file written by save_density, got {str(path)!r}: ")
    return message.removeprefix(f"path: need a file written by save_density, got {str(path)!r}: ")


def test_a_missing_file_stays_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_density(tmp_path / "density.npz")


def test_every_single_byte(path: Path, small: Density) -> None:
    """A changed byte is refused wherever contents lie; in what else an archive has, it changes nothing."""
    content = path.read_bytes()
    assert len(content) < 4000
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        inside = set()
        for info in archive.infolist():
            name_bytes, extra_bytes = (
                int.from_bytes(content[info.header_offset + o :][:2], "little") for o in (26, 28)
            )
            start = info.header_offset + 30 + name_bytes + extra_bytes
            inside |= set(range(start, start + info.file_size))
    assert len(inside) > len(content) // 2
    harmless = 0
    for place in range(len(content)):
        for change in (0x01, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[place] ^= change
            path.write_bytes(damaged)
            try:
                loaded = load_density(path)
            except ValueError as error:
                assert str(path) in str(error)  # noqa: PT017
                continue
            assert place not in inside, place
            harmless += 1
            assert_same(loaded, small)
    assert harmless < 0.3 * 3 * len(content)


def test_every_truncation(path: Path) -> None:
    content = path.read_bytes()
    assert refusal(path, b"") == "an empty file"
    for length in range(1, len(content)):
        assert refusal(path, content[:length])
    for start in (1, 4, 30, len(content) // 2):
        assert refusal(path, content[start:])


@pytest.mark.parametrize("case", ["flow of counts", "ScaleMixtureDensity, camera"])
def test_damage_in_larger_files(case: str, fitted: Callable[[str], Density], tmp_path: Path) -> None:
    density = fitted(case)
    path = tmp_path / "density.npz"
    save_density(density, path)
    content = path.read_bytes()
    random = np.random.default_rng(0)
    for place in random.integers(len(content) - 64, size=60):
        damaged = content[:place] + random.bytes(64) + content[place + 64 :]
        assert refusal(path, damaged)
    for length in random.integers(len(content), size=30):
        assert refusal(path, content[:length])
        assert refusal(path, content[:length] + bytes(len(content) - length))
        assert refusal(path, content + content[:length])
        assert refusal(path, content[:length] + content)


class Bomb:
    """What a reader of pickles would run."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("exploded",)


def archive_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


def npz(compressed: bool = False, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def test_files_of_something_else(path: Path, small: Density, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    array, torch_file = io.BytesIO(), io.BytesIO()
    np.save(array, np.zeros(3))
    torch.save({"mean": torch.zeros(3), "bomb": Bomb()}, torch_file)
    with np.load(path) as archive:
        members = dict(archive)
    refused = {
        "not an .npz archive": [
            b"x",
            bytes(1000),
            b'{"format": "bitlens density"}',
            pickle.dumps(Bomb()),
            pickle.dumps(small),
            array.getvalue(),
        ],
        "an archive of something else than a density": [
            torch_file.getvalue(),
            archive_of(readme__txt=b"text"),
            npz(header=np.frombuffer(b'{"format": "a picture"}', np.uint8)),
            npz(header=np.frombuffer(b"[1, 2]", np.uint8)),
        ],
        "an archive without a header": [npz(images=np.zeros((3, 4, 4))), npz()],
        "a compressed archive": [npz(compressed=True, **members)],
        "damaged": [
            npz(header=np.array([Bomb()], dtype=object)),
            npz(**{**members, "tensor.mean": np.array([Bomb()], dtype=object)}),
            npz(**{**members, "sha256": np.array([Bomb()], dtype=object)}),
            npz(header=np.frombuffer(b"[" * 100_000, np.uint8)),
            npz(header=members["header"]),
            archive_of(header__npy=b"no array"),
        ],
    }
    for reason, contents in refused.items():
        for content in contents:
            message = refusal(path, content)
            # An archive of nothing has no first member and does not look like one.
            assert reason in message or content == npz(), message
    assert not Path("exploded").exists()


def rewritten(content: bytes, **changes: Any) -> bytes:
    """The file with another header or other tensors, and the checksum of these."""
    with np.load(io.BytesIO(content)) as archive:
        arrays = dict(archive)
    header = json.loads(arrays.pop("header").tobytes())
    arrays.pop("sha256")
    for name, value in changes.items():
        if isinstance(value, np.ndarray):
            arrays[name] = value
        else:
            header[name] = value
    text = json.dumps(header).encode()
    digest = hashlib.sha256(f"{len(text)}:".encode() + text)
    for name, array in sorted(arrays.items()):
        about = json.dumps([name, array.dtype.str, array.shape]).encode()
        digest.update(f"{len(about)}:".encode() + about + array.tobytes())
    return npz(header=np.frombuffer(text, np.uint8), sha256=np.frombuffer(digest.digest(), np.uint8), **arrays)


def test_headers_that_are_refused(path: Path, small: Density) -> None:
    content = path.read_bytes()
    path.write_bytes(rewritten(content))
    assert_same(load_density(path), small)  # so that what follows is refused for what it says
    with np.load(io.BytesIO(content)) as archive:
        fields = json.loads(archive["header"].tobytes())["fields"]
    huge = {"tensor": "tensor.mean", "memory_order": [0, 1, 2]}
    for message, changes in {
        f"format version 2 of bitlens 9.0, and bitlens {bitlens.__version__} reads versions up to 1": {
            "format_version": 2,
            "bitlens_version": "9.0",
        },
        "damaged (format version 0)": {"format_version": 0},
        "damaged (format version '1')": {"format_version": "1"},
        "damaged (format version None)": {"format_version": None},
        "something else than a density": {"format": "bitlens design"},
        "a density of unknown class 'Popen'": {"class": "Popen"},
        "fields of FlowDensity without": {"class": "FlowDensity"},
        "fields of GaussianDensity without [] and with ['code']": {"fields": {**fields, "code": "import os"}},
        "fields of GaussianDensity without ['mean'] and with []": {
            "fields": {name: value for name, value in fields.items() if name != "mean"}
        },
        "a value that is none: {'run': 'rm'}": {"fields": {**fields, "mean": {"run": "rm"}}},
        "a value that is none: [1]": {"fields": {**fields, "mean": [1]}},
        "a noise model of unknown class 'Linear'": {
            "fields": {**fields, "mean": {"noise": "Linear", "parameters": {}}}
        },
        "damaged (ValueError: std: need values above 0": {
            "fields": {**fields, "mean": {"noise": "GaussianNoise", "parameters": {"std": -1.0}}}
        },
        "damaged (RuntimeError": {"fields": {**fields, "mean": huge}},
        "damaged (KeyError: 'tensor.absent')": {
            "fields": {**fields, "mean": {"tensor": "tensor.absent", "memory_order": []}}
        },
    }.items():
        assert message in refusal(path, rewritten(content, **changes))


def test_the_checksum_holds_header_and_tensors_together(path: Path) -> None:
    content = path.read_bytes()
    with np.load(io.BytesIO(content)) as archive:
        arrays = dict(archive)
    reason = "damaged (its checksum is not that of its contents)"
    mean = arrays["tensor.mean"]
    header = arrays["header"].tobytes()
    other = header.replace(b'"n_samples": 20', b'"n_samples": 21')
    assert other != header
    for change in (
        {"tensor.mean": mean + 1e-13},
        {"tensor.mean": mean.reshape(-1)},
        {"tensor.mean": mean.view(np.int64)},
        {"tensor.mean": arrays["tensor.cholesky"], "tensor.cholesky": mean},
        {"tensor.more": mean},
        {"header": np.frombuffer(other, np.uint8)},
        {"sha256": arrays["sha256"][:-1]},
        {"sha256": np.zeros(0, np.uint8)},
    ):
        assert refusal(path, npz(**{**arrays, **change})) == reason
    assert refusal(path, npz(**{name: arrays[name] for name in arrays if name != "tensor.mean"})) == reason
