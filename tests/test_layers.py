"""Imports go downwards only."""

from __future__ import annotations

import ast
from pathlib import Path

import bitlens

ROOT = Path(bitlens.__file__).parent
ORDER = (
    "sweeps",
    "distillation",
    "recovery",
    "validation",
    "design",
    "estimators",
    "densities",
    "systems",
    "encoders",
    "noise",
    "critics",
    "losses",
    "ops",
    "kernels",
    "_files",
)
# These may import anything, and nothing imports them.
FREE = ("compat", "plots", "report", "cli", "_cli_design", "_cli_estimate", "_plots_validation", "demo")


def _imports(path: Path) -> set[str]:
    """First part below `bitlens` of everything a file imports from the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("bitlens.")}
    return found


def _layer(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_imports_go_downwards() -> None:
    files = [path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.name != "__init__.py"]
    assert len(files) > 20
    wrong = []
    for path in files:
        layer = _layer(path)
        for target in _imports(path):
            if target == layer:
                continue
            if layer in FREE:
                continue
            if layer == "datasets":
                allowed = target not in ORDER and target not in FREE
            else:
                allowed = target not in FREE and (
                    target not in ORDER or (layer in ORDER and ORDER.index(target) > ORDER.index(layer))
                )
            if not allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports bitlens.{target}")
    assert not wrong, wrong


def test_every_folder_has_a_place_in_the_order() -> None:
    layers = {_layer(path) for path in ROOT.rglob("*.py")} - {"__init__", "datasets"}
    assert layers <= set(ORDER) | set(FREE), layers - set(ORDER) - set(FREE)
