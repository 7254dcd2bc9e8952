"""Packages that some files need and bitlens does not install."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any


def package_for(package: str, path: Path) -> Any:
    """The package, imported.

    Raises:
        ModuleNotFoundError: it is not installed; the message names it and the file.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: to read such a file needs {package}, which is not installed: pip install {package}"
        ) from error
