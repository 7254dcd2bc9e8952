"""Call shapes of other packages, on bitlens estimators."""

from bitlens.compat import encoding_information

__all__ = ["encoding_information"]
