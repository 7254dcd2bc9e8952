"""Information in measurements: bounds and estimates, as one frozen result."""

from bitlens.estimators.information import estimate_information
from bitlens.estimators.result import InformationEstimate

__all__ = ["InformationEstimate", "estimate_information"]
