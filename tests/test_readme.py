"""The README's example runs as written, and what it says exists."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

import bitlens

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def text() -> str:
    return README.read_text(encoding="utf-8")


def test_example_runs_as_written(text: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for line in code.splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 20
    names: dict[str, object] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(README), "exec"), names)
    result = names["result"]
    assert isinstance(result, bitlens.DesignResult)
    assert result.after.bits > result.before.bits
    assert abs(result.encoder.defocus_waves.item()) < 0.35
    assert "its ceiling" in printed.getvalue()


def test_named_functions_exist(text: str) -> None:
    table = text.split("## Public names")[1].split("## Adding a kernel")[0]
    names = [
        name
        for cell in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE)
        for name in re.findall(r"`(.*?)`", cell)
    ]
    assert len(names) > 15
    for name in names:
        owner: object = bitlens
        for part in name.split("."):
            owner = getattr(owner, part)


def test_linked_files_exist(text: str) -> None:
    root = README.parent
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (root / target).exists(), target
    for target in re.findall(r"`((?:csrc|tests|benchmarks)/[\w./]+)`", text):
        assert (root / target).exists(), target
