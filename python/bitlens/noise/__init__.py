"""Noise models p(measured | mean): sample, log_prob, entropy; and the entropy of noise from noisy data alone."""

from bitlens.noise.base import NoiseModel, ScoreFeatures
from bitlens.noise.calibration import CalibrationResult, calibrate
from bitlens.noise.check import NoiseCheck, check_noise
from bitlens.noise.conditional import EntropyEstimate, conditional_entropy, conditional_entropy_per_sample
from bitlens.noise.gaussian import GaussianNoise
from bitlens.noise.poisson import PoissonNoise
from bitlens.noise.poisson_gaussian import PoissonGaussianNoise

__all__ = [
    "CalibrationResult",
    "EntropyEstimate",
    "GaussianNoise",
    "NoiseCheck",
    "NoiseModel",
    "PoissonGaussianNoise",
    "PoissonNoise",
    "ScoreFeatures",
    "calibrate",
    "check_noise",
    "conditional_entropy",
    "conditional_entropy_per_sample",
]
