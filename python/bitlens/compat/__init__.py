"""The call shapes of other packages, so that scripts written for them run after changing an import.

`bitlens.compat.deepinv` needs that package, and is imported when it is asked for.
"""

import importlib
from types import ModuleType

from bitlens.compat import encoding_information

__all__ = ["encoding_information"]


def __getattr__(name: str) -> ModuleType:
    if name == "deepinv":
        return importlib.import_module("bitlens.compat.deepinv")
    raise AttributeError(f"module 'bitlens.compat' has no attribute {name!r}")
