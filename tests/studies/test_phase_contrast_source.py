"""The study of sources for phase contrast: its list, its optics, its targets, and that it runs through."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bitlens.datasets.phantoms_microscopy import transparent_cells

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("phase_contrast_source")


@pytest.fixture
def scenes(study: ModuleType) -> ModuleType:
    return importlib.import_module("_phase_contrast_scenes")


def cells(scenes: ModuleType, peak_rad: float) -> torch.Tensor:
    return transparent_cells(
        2,
        (16, 16),
        sample_um=scenes.PIXEL_UM,
        peak_phase_rad=peak_rad,
        absorption=0.0,
        generator=torch.Generator().manual_seed(0),
    ).double()


def test_every_design_spends_one_dose_in_four_exposures(study: ModuleType, scenes: ModuleType) -> None:
    sources = study.designs()
    assert len(sources) >= 12
    images = torch.ones(1, sources["disc"].shape[1], 4, 4, dtype=torch.float64)
    for source in sources.values():
        with torch.no_grad():
            mean = study.equal_dose(source, images).encoder(images) - scenes.DARK_ELECTRONS
        torch.testing.assert_close(mean, torch.full_like(mean, scenes.LIGHT_ELECTRONS / scenes.EXPOSURES))
    flat = [tuple(source.flatten().tolist()) for source in sources.values()]
    assert len(set(flat)) == len(flat)


def test_mixed_images_of_single_lamps_are_those_of_the_whole_source(study: ModuleType, scenes: ModuleType) -> None:
    objects = cells(scenes, 1.0)
    source = study.designs()["half circles and dark field"]
    with torch.no_grad():
        encoder = study.equal_dose(source, scenes.single_images(objects)).encoder
        mixed = encoder(scenes.single_images(objects)) - scenes.DARK_ELECTRONS
        whole = study.lens(source)(objects)
    # The lens counts an electron per lamp; here the lamps of an exposure share its part of the light.
    share = scenes.LIGHT_ELECTRONS / scenes.EXPOSURES / source.sum(1)
    torch.testing.assert_close(mixed, whole * share[:, None, None])


def test_a_symmetric_source_shows_no_weak_phase(study: ModuleType) -> None:
    sources = study.designs()
    images = torch.ones(1, sources["disc"].shape[1], 4, 4)
    for name, seen in (("disc", False), ("rings", False), ("LED on the axis", False), ("half circles", True)):
        gain = study.phase_gain(study.equal_dose(sources[name], images).encoder)
        assert bool((gain > 0).any()) == seen


def test_whitened_phase_has_every_frequency_that_passes_alike(study: ModuleType, scenes: ModuleType) -> None:
    phase = cells(scenes, 0.5)[:, 1:]
    power = torch.fft.fft2(scenes.whitened(phase)).abs().square().mean((0, 1))
    passed = study.passes(16)
    torch.testing.assert_close(power[passed], power[passed].mean().expand(int(passed.sum())))
    assert float(power[~passed].max()) < 1e-9 * float(power[passed].mean())


def test_study_runs_through(study: ModuleType, tmp_path: Path) -> None:
    study.run(tmp_path, tmp_path / "none", quick=True, seeds=1)
    for name in ("phase", "whitened", "thick", "cells"):
        found = json.loads((tmp_path / f"phase_contrast_source_{name}.json").read_text())
        rows = found["rows"]
        assert {row["design"] for row in rows} == set(study.designs())
        assert all(math.isfinite(row["bits"]) for row in rows)
        assert (tmp_path / f"phase_contrast_source_{name}.png").stat().st_size > 10_000
    for name in ("phase", "thick", "cells"):
        decoded = json.loads((tmp_path / f"phase_contrast_source_{name}_decoded.json").read_text())
        assert set(decoded["limits"]) == set(study.designs())
        best, none = (decoded["mean"]["decoded_bits"][each] for each in ("quarter circles", "disc"))
        assert best > 5 * none
    compared = json.loads((tmp_path / "phase_contrast_source_comparison.json").read_text())
    assert compared["gain_sigmas"] > 3
