"""Models of the density of a measurement: fit, log_prob, sample."""

from bitlens.densities.autoregressive import AutoregressiveDensity
from bitlens.densities.base import Density
from bitlens.densities.copula import GaussianCopulaDensity
from bitlens.densities.factor_mixture import FactorMixtureDensity
from bitlens.densities.flow import FlowDensity
from bitlens.densities.gaussian import GaussianDensity, held_out_bias_nats, plug_in_bias_nats
from bitlens.densities.gaussian_mixture import GaussianMixtureDensity
from bitlens.densities.independent_pixels import IndependentPixelsDensity
from bitlens.densities.scale_mixture import ScaleMixtureDensity
from bitlens.densities.scene_mixture import SceneMixtureDensity
from bitlens.densities.shift_mixture import ShiftMixtureDensity
from bitlens.densities.stationary import StationaryGaussianDensity
from bitlens.densities.storage import load_density, save_density

__all__ = [
    "AutoregressiveDensity",
    "Density",
    "FactorMixtureDensity",
    "FlowDensity",
    "GaussianCopulaDensity",
    "GaussianDensity",
    "GaussianMixtureDensity",
    "IndependentPixelsDensity",
    "ScaleMixtureDensity",
    "SceneMixtureDensity",
    "ShiftMixtureDensity",
    "StationaryGaussianDensity",
    "held_out_bias_nats",
    "load_density",
    "plug_in_bias_nats",
    "save_density",
]
