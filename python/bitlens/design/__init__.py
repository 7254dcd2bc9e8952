"""Optimise an encoder or a sensor so that its measurement carries more bits about the scene."""

from bitlens.design.constraints import Box, Constraint, Energy
from bitlens.design.objective import gaussian_information
from bitlens.design.optimize import optimize_design
from bitlens.design.result import DesignResult, DesignStep

__all__ = [
    "Box",
    "Constraint",
    "DesignResult",
    "DesignStep",
    "Energy",
    "gaussian_information",
    "optimize_design",
]
