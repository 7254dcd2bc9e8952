"""Optimise an encoder or a sensor so that its measurement carries more bits about the scene."""

from bitlens.design._plateau import has_plateaued
from bitlens.design.binary import Binary
from bitlens.design.constraints import (
    Box,
    Constraint,
    Energy,
    MinimumFeature,
    Monotone,
    Simplex,
    Total,
)
from bitlens.design.objective import gaussian_information
from bitlens.design.objectives import (
    Batch,
    CriticObjective,
    DensityObjective,
    GaussianObjective,
    KnownChannelObjective,
    Objective,
)
from bitlens.design.optimize import optimize_design
from bitlens.design.result import DesignResult, DesignStep, StartSummary
from bitlens.design.subset import SubsetResult, SubsetStep, choose_subset

__all__ = [
    "Batch",
    "Binary",
    "Box",
    "Constraint",
    "CriticObjective",
    "DensityObjective",
    "DesignResult",
    "DesignStep",
    "Energy",
    "GaussianObjective",
    "KnownChannelObjective",
    "MinimumFeature",
    "Monotone",
    "Objective",
    "Simplex",
    "StartSummary",
    "SubsetResult",
    "SubsetStep",
    "Total",
    "choose_subset",
    "gaussian_information",
    "has_plateaued",
    "optimize_design",
]
