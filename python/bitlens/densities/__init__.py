"""Models of the density of a measurement: fit, log_prob, sample."""

from bitlens.densities.base import Density
from bitlens.densities.gaussian import GaussianDensity, held_out_bias_nats, plug_in_bias_nats
from bitlens.densities.stationary import StationaryGaussianDensity

__all__ = [
    "Density",
    "GaussianDensity",
    "StationaryGaussianDensity",
    "held_out_bias_nats",
    "plug_in_bias_nats",
]
