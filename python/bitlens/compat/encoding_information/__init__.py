"""The names of the package `encoding_information` (Pinkard et al., arXiv 2405.20559), on bitlens densities.

A script runs after `encoding_information` in its imports is changed to `bitlens.compat.encoding_information`. Arrays of
NumPy go in and come out; there is neither JAX nor TensorFlow. Numbers differ where the originals are off:

* The entropy of Poisson noise is exact with clean images, almost unbiased with noisy ones alone, where the original
  takes 0.5 log(2 pi e z) of the counts: information that is 0.48 bits per pixel too high at half a photon.
* U[0, 1) is added to whole numbers only. The original adds it to any data, by 0.6 bits per pixel at unit scale.
* The expected cost of fitting a Gaussian to few images is taken off (`subtract_excess`); the original leaves it in.
* The interval includes that another training set gives another model, which the original leaves out.
* The stationary covariance is that of largest likelihood and may be oblique; the original forces C(dy, dx) = C(dy, -dx)
  and clips eigenvalues.
* Seeds are kept: a result repeats bit for bit, and results come in the order of the images.
"""

from bitlens.compat.encoding_information.image_utils import add_noise, extract_patches, normalize_image_stack
from bitlens.compat.encoding_information.information_estimation import (
    analytic_multivariate_gaussian_entropy,
    estimate_information,
    estimate_mutual_information,
)

__all__ = [
    "add_noise",
    "analytic_multivariate_gaussian_entropy",
    "estimate_information",
    "estimate_mutual_information",
    "extract_patches",
    "normalize_image_stack",
]
