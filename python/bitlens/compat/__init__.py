"""The call shapes of other packages, so that scripts written for them run after changing an import."""

from bitlens.compat import encoding_information

__all__ = ["encoding_information"]
