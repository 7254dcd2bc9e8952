"""Figures: what is drawn is what came in; a report holds its figures and nothing foreign."""

from __future__ import annotations

import base64
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from bitlens import plots, report
from bitlens._files import replace_file
from bitlens.design import DesignResult, DesignStep
from bitlens.estimators import InformationEstimate
from bitlens.noise import GaussianNoise

PIXELS = 64


def estimate(bits_per_pixel: float, **changes: object) -> InformationEstimate:
    bits = bits_per_pixel * PIXELS
    made = InformationEstimate(
        bits=bits,
        bits_per_pixel=bits_per_pixel,
        bound="upper",
        lower_bits=3.0,
        upper_bits=bits,
        ceiling_bits=5.0,
        stderr_bits=2.0,
        confidence_interval_bits=(bits - 4.0, bits + 6.0),
        method="gaussian",
        n_samples=100,
        seed=0,
        version="0",
        backend="cpu",
        converged=True,
        warnings=(),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def design_result(n_steps: int) -> DesignResult:
    history = tuple(DesignStep(i, 64.0 * i, float(i), 1.0, 0.1) for i in range(n_steps))
    return DesignResult(
        nn.Identity(),
        GaussianNoise(1.0),
        history,
        estimate(0.5),
        estimate(1.0),
        (),
        {},
        0,
        1.0,
        {},
        "gaussian",
        "named",
        True,
        (),
    )


DRAWINGS: dict[str, Callable[[Axes | None], Axes]] = {
    "psf": lambda axes: plots.psf(torch.rand(9, 9), sample_um=1.5, reach_um=4.0, axes=axes),
    "wavefront": lambda axes: plots.wavefront(torch.rand(9, 9), torch.ones(9, 9) > 0, step=0.25, axes=axes),
    "flat wavefront": lambda axes: plots.wavefront(np.zeros((9, 9)), np.ones((9, 9)) > 0, step=0.25, axes=axes),
    "measurement": lambda axes: plots.measurement(torch.rand(6, 8), limits=(0.0, 1.0), axes=axes),
    "bits": lambda axes: plots.bits_against_photons([20.0, 200.0], {"a": [estimate(1), estimate(2)]}, axes=axes),
    "design": lambda axes: plots.design(design_result(40), reference=("best", 41.0), axes=axes),
    "short design": lambda axes: plots.design(design_result(1), axes=axes),
    "before and after": lambda axes: plots.before_after({"a": estimate(0.5), "b": estimate(1.0)}, axes=axes),
    "estimate": lambda axes: plots.estimate(estimate(1.0), axes=axes),
    "upper only": lambda axes: plots.estimate(estimate(1.0, lower_bits=None, ceiling_bits=None), axes=axes),
    "no bits": lambda axes: plots.estimate(estimate(0.0), axes=axes),
    "no interval": lambda axes: plots.estimate(estimate(1.0, confidence_interval_bits=None), axes=axes),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_draws_on_given_axes_or_makes_its_own(name: str) -> None:
    own = DRAWINGS[name](None)
    assert isinstance(own.figure, Figure)
    assert report.to_png(own.figure).startswith(b"\x89PNG")
    given = Figure().add_subplot()
    assert DRAWINGS[name](given) is given
    # Every axis that shows numbers says what they are.
    for axis in (own.xaxis, own.yaxis):
        words = own.get_xticklabels() if axis is own.xaxis else own.get_yticklabels()
        named = any(label.get_text() and not label.get_text()[-1].isdigit() for label in words)
        assert axis.get_label_text() or len(axis.get_ticklocs()) == 0 or named


def test_no_pyplot_state() -> None:
    script = (
        "import sys; from bitlens import plots; plots.measurement(__import__('numpy').ones((3, 3))).figure; "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_bits_and_intervals_are_those_of_the_estimates() -> None:
    axes = plots.bits_against_photons([20.0, 200.0], {"one": [estimate(1.0), estimate(2.0)]})
    (container,) = axes.containers
    line, _, (bars,) = container.lines
    assert list(line.get_ydata()) == [1.0, 2.0]
    ends = np.array([segment[:, 1] for segment in bars.get_segments()], dtype=float)
    np.testing.assert_allclose(ends, [[1 - 4 / PIXELS, 1 + 6 / PIXELS], [2 - 4 / PIXELS, 2 + 6 / PIXELS]])


def test_interval_in_bits_of_an_image_is_that_of_the_estimate() -> None:
    # At 0 bits the number of pixels cannot be told, but the interval of the image is there.
    for bits_per_pixel in (0.0, 1.0):
        result = estimate(bits_per_pixel)
        (container,) = plots.estimate(result).containers
        (bars,) = container.lines[2]
        ends = np.array([segment[:, 0] for segment in bars.get_segments()], dtype=float)
        np.testing.assert_allclose(ends, [result.confidence_interval_bits])


def test_design_draws_its_history() -> None:
    lines = plots.design(design_result(40)).get_lines()
    np.testing.assert_array_equal(lines[0].get_ydata(), np.arange(40.0))
    # The moving mean of a straight line is the line.
    np.testing.assert_allclose(lines[1].get_xdata(), lines[1].get_ydata())


def test_design_overview_shows_every_parameter() -> None:
    values = {"mask": torch.eye(4), "angles": torch.arange(5.0), "gain": torch.tensor(2.0)}
    changed = {name: value + 1.0 for name, value in values.items()}
    result = dataclasses.replace(design_result(40), initial_parameters=values, parameters=changed)
    figure = plots.design_overview(result)
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles[1:] == ["mask", "angles", "gain"]
    images = [image for axes in figure.axes for image in axes.get_images()]
    np.testing.assert_array_equal(images[0].get_array(), np.eye(4))
    np.testing.assert_array_equal(images[1].get_array(), np.eye(4) + 1)
    # One scale for both.
    assert images[0].get_clim() == images[1].get_clim() == (0.0, 2.0)
    lines = figure.subfigs[2].axes[0].get_lines()
    np.testing.assert_array_equal(lines[1].get_ydata(), np.arange(5.0) + 1)
    figure.canvas.draw()


def test_psf_is_centred_and_in_micrometres() -> None:
    intensity = np.zeros((9, 9))
    intensity[4, 4] = 1.0
    (image,) = plots.psf(intensity, sample_um=2.0).get_images()
    assert image.get_extent() == [-9.0, 9.0, 9.0, -9.0]
    assert np.unravel_index(np.argmax(image.get_array()), (9, 9)) == (4, 4)


def test_picture_needs_two_axes() -> None:
    with pytest.raises(ValueError, match=r"\(row, column\)"):
        plots.measurement(torch.ones(2, 3, 4))


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def example_report() -> report.Report:
    png = report.to_png(plots.measurement(np.eye(4)).figure)  # type: ignore[arg-type]
    table = report.Table("a & b", ("x", "y"), (("1 < 2", "<script>"), ("3", "4")))
    section = report.Section("One", ("text",), (table,), (report.Picture("eye", 'an "eye"', png),), ("note",))
    return report.Report("Title", "Opening", (section,), "Footer")


def test_report_is_self_contained_and_escaped(tmp_path: Path) -> None:
    path = report.write_report(example_report(), tmp_path / "new" / "folder")
    page = path.read_text()
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert len(tags.sources) == 1
    assert tags.sources[0].startswith("data:image/png;base64,")
    assert not re.search(r"https?://", page)
    assert "<script>" in tags.text
    assert base64.b64decode(tags.sources[0].partition(",")[2]) == (path.parent / "eye.png").read_bytes()
    assert {entry.name for entry in path.parent.iterdir()} == {"report.html", "eye.png"}


def test_same_report_same_bytes(tmp_path: Path) -> None:
    first, second = (report.write_report(example_report(), tmp_path / name).read_bytes() for name in "ab")
    assert first == second


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_table_lines_up() -> None:
    lines = report.to_text(report.Table("caption", ("a", "long head"), (("1", "2"), ("longer", "3")))).splitlines()
    assert lines[0] == "caption"
    assert [line.rstrip() for line in lines[1:]] == ["a       long head", "------  ---------", "1       2", "longer  3"]
