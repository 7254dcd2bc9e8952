"""Models of measurements and of noise, by the names of the original."""

from bitlens.compat.encoding_information.models.conditional_entropy_models import (
    AnalyticComplexPixelGaussianNoiseModel,
    AnalyticGaussianNoiseModel,
    GaussianNoiseModel,
    PoissonNoiseModel,
    UniformNoiseModel,
)
from bitlens.compat.encoding_information.models.gaussian_process import (
    FullGaussianProcess,
    StationaryGaussianProcess,
)
from bitlens.compat.encoding_information.models.model_base_class import MeasurementModel, MeasurementNoiseModel
from bitlens.compat.encoding_information.models.pixel_cnn import PixelCNN

__all__ = [
    "AnalyticComplexPixelGaussianNoiseModel",
    "AnalyticGaussianNoiseModel",
    "FullGaussianProcess",
    "GaussianNoiseModel",
    "MeasurementModel",
    "MeasurementNoiseModel",
    "PixelCNN",
    "PoissonNoiseModel",
    "StationaryGaussianProcess",
    "UniformNoiseModel",
]
