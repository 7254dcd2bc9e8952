"""Do the bits predict what a decoder achieves? Standard decoders and scores, traditional metrics, bounds, baseline."""

from bitlens.noise._surrogate import differentiable_sample
from bitlens.validation._joint import JointStep
from bitlens.validation.bounds import (
    SourceEntropy,
    accuracy_bound,
    gaussian_entropy,
    gaussian_reconstruction_bound,
    reconstruction_bound,
    source_entropy,
)
from bitlens.validation.classifier import ClassifierDecoder, LogisticDecoder
from bitlens.validation.compare import validate
from bitlens.validation.cost import Cost, PeakMemory, measure_cost
from bitlens.validation.decoder import Decoder, FitStep, FittedDecoder, TrainableDecoder
from bitlens.validation.end_to_end import EndToEndResult, train_end_to_end
from bitlens.validation.implied import ImpliedBound, ImpliedBounds, implied_bounds
from bitlens.validation.linear import LinearDecoder, WienerDecoder
from bitlens.validation.metrics import condition_number, jacobian, mtf50, point_response, singular_values, snr_db
from bitlens.validation.result import RankCorrelation, ValidationResult, ValidationRow
from bitlens.validation.scores import accuracy, cross_entropy_bits, mean_squared_error, psnr_db, ssim
from bitlens.validation.tasks import Classification, Reconstruction
from bitlens.validation.unet import UNetDecoder

__all__ = [
    "Classification",
    "ClassifierDecoder",
    "Cost",
    "Decoder",
    "EndToEndResult",
    "FitStep",
    "FittedDecoder",
    "ImpliedBound",
    "ImpliedBounds",
    "JointStep",
    "LinearDecoder",
    "LogisticDecoder",
    "PeakMemory",
    "RankCorrelation",
    "Reconstruction",
    "SourceEntropy",
    "TrainableDecoder",
    "UNetDecoder",
    "ValidationResult",
    "ValidationRow",
    "WienerDecoder",
    "accuracy",
    "accuracy_bound",
    "condition_number",
    "cross_entropy_bits",
    "differentiable_sample",
    "gaussian_entropy",
    "gaussian_reconstruction_bound",
    "implied_bounds",
    "jacobian",
    "mean_squared_error",
    "measure_cost",
    "mtf50",
    "point_response",
    "psnr_db",
    "reconstruction_bound",
    "singular_values",
    "snr_db",
    "source_entropy",
    "ssim",
    "train_end_to_end",
    "validate",
]
