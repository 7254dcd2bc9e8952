"""The study of coded apertures in its quick form."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES))
    spec = importlib.util.spec_from_file_location("spectral_aperture", STUDIES / "spectral_aperture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "spectral_aperture", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", [8, 16])
def test_every_aperture_is_half_open(study: ModuleType, size: int) -> None:
    apertures = study.apertures(size)
    assert len(apertures) >= 12
    for name, aperture in apertures.items():
        assert aperture.shape == (size, size), name
        assert set(aperture.unique().tolist()) == {0.0, 1.0}, name
        assert float(aperture.mean()) == pytest.approx(0.5, abs=0.04), name


def test_patterns_are_what_they_are_called(study: ModuleType) -> None:
    apertures = study.apertures(16)
    rows = 2 * apertures["Hadamard rows"][:15] - 1
    torch.testing.assert_close(rows @ rows.T, 16 * torch.eye(15, dtype=torch.float64))
    # A maximal-length sequence: the same autocorrelation at every shift but zero.
    code = 2 * apertures["one shifted sequence"][0, :15] - 1
    assert [int(code @ code.roll(shift)) for shift in range(15)] == [15] + 14 * [-1]
    # Blue noise has less power at low frequencies than a random pattern.
    frequency = torch.fft.fftfreq(16)
    low = torch.hypot(frequency[:, None], frequency) < 0.2
    power = {name: torch.fft.fft2(apertures[name] - 0.5).abs().square() for name in ("blue noise", "random, 1 px")}
    assert float(power["blue noise"][low].sum()) < 0.3 * float(power["random, 1 px"][low].sum())


def test_patches_of_a_cube_keep_to_their_region(study: ModuleType, tmp_path: Path) -> None:
    """Cubes whose regions differ in brightness: each patch has the brightness of its group."""
    aviris_um = np.linspace(0.4, 2.4, 224)
    level = np.add.outer(5 * (np.arange(40) // 20), np.arange(60) // 20) + 1.0
    cube = np.repeat(level[..., None], 224, axis=2)
    band = np.arange(1, 199).astype(np.uint8)
    np.savez(tmp_path / "jasper_ridge.npz", cube=cube[..., :198], band_index_1based_of_224=band)
    np.savez(tmp_path / "salton_sea_roi.npz", cube=cube, wavelength_um=aviris_um)
    np.savez(tmp_path / "pavia_lowres.npz", cube=cube[..., :103], wavelength_um=np.linspace(0.43, 0.86, 103))
    found = study.measured_scenes(tmp_path, 72)
    flat = found.cubes.flatten(1)
    assert len(found.groups.unique()) == 18
    assert torch.equal(flat.amin(1), flat.amax(1))
    for group in found.groups.unique():
        assert len(flat[found.groups == group].unique()) == 1
    assert study.measured_scenes(tmp_path / "none", 10) is None


def test_coherence_of_known_matrices(study: ModuleType) -> None:
    largest, mean = study.coherence(torch.eye(3, dtype=torch.float64))
    assert (largest, mean) == (0.0, 0.0)
    # Three columns, two of them at 60 degrees and the third along the first; a dark one does not count.
    matrix = torch.tensor([[1.0, 0.5, 2.0, 0.0], [0.0, 0.75**0.5, 0.0, 0.0]], dtype=torch.float64)
    largest, mean = study.coherence(matrix)
    assert largest == pytest.approx(1.0)
    assert mean == pytest.approx(((0.25 + 1 + 0.25) / 3) ** 0.5)


@pytest.mark.usefixtures("one_thread")
def test_quick_form_writes_what_it_found(study: ModuleType, tmp_path: Path) -> None:
    found, comparison = study.main(tmp_path, quick=True, data=tmp_path / "none")
    assert all(path.is_file() for path in found.files)
    light = found.result.mean("light")
    assert len(light) >= 12
    assert max(light.values()) <= 1.05 * min(light.values())
    bits = found.result.mean("bits")
    assert all(0 < value < 1000 for value in bits.values())
    # Half of the rows see nothing: less than when every row sees half.
    assert bits["half field"] < bits["random, 1 px"]
    assert set(comparison.scores["psnr"]) == {"start", "designed by information", "trained end to end"}
    assert comparison.saved_memory is not None
    for design, system in comparison.systems.items():
        mask = system.encoder.linear.mask.detach()
        assert set(mask.unique().tolist()) == {0.0, 1.0}, design
        assert float(mask.mean()) == 0.5, design
    for name in ("spectral_aperture_end_to_end.txt", "spectral_aperture_apertures.png"):
        assert (tmp_path / name).stat().st_size > 0
