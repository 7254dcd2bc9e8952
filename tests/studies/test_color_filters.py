"""The study of colour filter arrays: its list, its figures where they are known, and that it runs through."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # On the path, because processes that measure costs import it by name.
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("color_filters")


def test_arrays_differ_and_tell_three_colours_apart(study: ModuleType) -> None:
    arrays = study.mosaics()
    assert len(arrays) >= 12
    scenes = torch.zeros(1, 3, 18, 18)
    fields = {}
    for name, array in arrays.items():
        filters = study.filters_of(study.camera(array, scenes))
        assert float(filters.min()) >= 0
        assert float(filters.max()) <= 0.95
        assert int(torch.linalg.matrix_rank(filters.flatten(1))) == 3
        times = [math.ceil(24 / side) for side in filters.shape[1:]]
        fields[name] = filters.repeat(1, *times)[:, :24, :24]
    names = list(fields)
    for index, name in enumerate(names):
        assert not any(torch.equal(fields[name], fields[other]) for other in names[:index])


def test_free_array_starts_as_bayer(study: ModuleType) -> None:
    designs = importlib.import_module("_color_filter_designs")
    scenes = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fixed = study.camera(study.mosaics()["Bayer"], scenes)
    free = designs.before_pixels(designs.starts()["Bayer"], designs.behind_lens(scenes), learn=("spectra",))
    torch.testing.assert_close(free.encoder(free.scenes), fixed.encoder(scenes))
    other = designs.before_pixels(designs.starts()["random"], free.scenes)
    assert not torch.allclose(other.encoder(free.scenes), free.encoder(free.scenes), rtol=0.1)


@pytest.mark.usefixtures("study")
def test_an_array_at_less_exposure_gets_less_light() -> None:
    designs = importlib.import_module("_color_filter_designs")
    system = designs.before_pixels(designs.starts()["random"], torch.rand(4, 3, 8, 8) * 100)
    dimmed = designs._dimmed(system, 0.4)
    torch.testing.assert_close(dimmed.encoder(system.scenes), 0.4 * system.encoder(system.scenes))


@pytest.mark.parametrize(
    ("name", "gap"),
    [("stripes", 1.0), ("wide stripes", 2.0), ("Bayer", math.sqrt(2)), ("hexadeca Bayer", 2 * math.sqrt(2))],
)
def test_sampling_gap(study: ModuleType, name: str, gap: float) -> None:
    arrays = importlib.import_module("_color_filter_arrays")
    system = study.camera(study.mosaics()[name], torch.zeros(1, 3, 18, 18))
    assert arrays.sampling_gap(system) == pytest.approx(gap)


def test_ideal_filters_in_equal_parts_have_condition_1(study: ModuleType) -> None:
    arrays = importlib.import_module("_color_filter_arrays")
    array = study.Mosaic(study.mosaics()["stripes"].tile, torch.eye(3, dtype=torch.float64))
    assert arrays.colour_condition(study.camera(array, torch.zeros(1, 3, 18, 18))) == pytest.approx(1.0)


def test_regions_that_judge_are_no_others(study: ModuleType) -> None:
    image = torch.arange(300 * 400, dtype=torch.float32).reshape(1, 300, 400).repeat(3, 1, 1)
    judging, designing = study.regions_of([image])
    values = torch.cat([region[0].flatten() for region in (*judging, *designing)])
    assert values.sort().values.equal(image[0].flatten())


def test_quick_form(study: ModuleType, tmp_path: Path) -> None:
    equal_light, exposure, comparisons = study.run(tmp_path, data=tmp_path / "none", quick=True)
    for found in (equal_light, exposure):
        assert len(found.result.designs) >= 12
        assert all(math.isfinite(row.bits) for row in found.result.rows)
    light = [row.light for row in equal_light.result.rows]
    assert max(light) < 1.05 * min(light)
    # Clear pixels get more of the same exposure, and broad dyes more than narrow ones.
    unequal = {row.design: row.light for row in exposure.result.rows}
    assert unequal["mostly clear"] > unequal["RGBW"] > unequal["Bayer"]
    assert unequal["Bayer, broad dyes"] > unequal["Bayer"]
    assert list(comparisons) == ["Bayer", "random"]
    assert set(comparisons["Bayer"].cost) == {"designed by information", "trained end to end"}
    for comparison in comparisons.values():
        spectra = comparison.systems["designed by information"].encoder.spectra.detach()
        assert 0.0 <= float(spectra.min()) <= float(spectra.max()) <= 0.95
    found = json.loads((tmp_path / "color_filters_order.json").read_text())
    assert list(found)[:4] == ["Bayer", "random", "trained end to end", "designed by information"]
    equal = json.loads((tmp_path / "color_filters_designs_equal_light.json").read_text())["rows"]
    assert len(equal) == 5
    assert max(row["light"] for row in equal) < 1.001 * min(row["light"] for row in equal)
    for name in (
        "color_filters.txt",
        "color_filters.png",
        "color_filters_arrays.png",
        "color_filters_designed_arrays.png",
        "color_filters_order.txt",
        "color_filters_end_to_end.txt",
    ):
        assert (tmp_path / name).stat().st_size > 0
