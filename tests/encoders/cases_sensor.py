"""Linear encoders of the sensor's side: apertures, filters, patterns, motion, pixels and PSFs."""

from __future__ import annotations

import torch
from linear_case import LinearCase
from torch import Tensor

from bitlens.encoders.color_filter import (
    BAYER,
    RGB_SPECTRA,
    RGBW,
    RGBW_SPECTRA,
    XTRANS,
    ColorFilterArray,
    choice_logits,
)
from bitlens.encoders.convolution import DepthStackConvolution, PSFConvolution
from bitlens.encoders.detector import PixelSampling
from bitlens.encoders.dispersion import DispersedCodedAperture
from bitlens.encoders.motion import MotionSmear, TimeDelayIntegration
from bitlens.encoders.patterns import HadamardPatterns, Patterns


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Within 0.1 to 0.9, so that a finite difference stays in the domain."""
    return 0.1 + 0.8 * torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def psf(*shape: int) -> Tensor:
    values = rand(*shape)
    return values / values.sum(dim=(-2, -1), keepdim=True)


SPECTRA = rand(4, 6, seed=1)
MEAN_MASK = float(rand(9, 12).mean())

CASES = [
    # ---- coded apertures ----
    LinearCase(
        "dispersed aperture",
        lambda: DispersedCodedAperture(rand(9, 12), n_bands=5),
        (5, 9, 12),
        ("mask",),
        flux=MEAN_MASK,
    ),
    LinearCase(
        "dispersed aperture, two columns a band, a mask for each",
        lambda: DispersedCodedAperture(rand(4, 9, 12), n_bands=4, step=2, learn=("mask",)),
        (4, 9, 12),
        ("mask",),
    ),
    LinearCase(
        "dispersed aperture, a fraction of a column a band",
        lambda: DispersedCodedAperture(rand(9, 12), n_bands=5, step=0.7),
        (5, 9, 12),
        ("mask",),
        flux=MEAN_MASK,
    ),
    LinearCase(
        "dispersed aperture, a prism",
        lambda: DispersedCodedAperture(torch.ones(9, 12), n_bands=3, step=(0.0, 1.3, 4.25)),
        (3, 9, 12),
        flux=1.0,
    ),
    # ---- colour filters ----
    LinearCase("Bayer", lambda: ColorFilterArray(BAYER, RGB_SPECTRA), (3, 7, 10), ("spectra",), flux=1 / 3),
    LinearCase("X-Trans", lambda: ColorFilterArray(XTRANS, RGB_SPECTRA), (3, 9, 14), ("spectra",), flux=1 / 3),
    # Half of the pixels are clear and pass all of the light, the others a third.
    LinearCase("RGBW", lambda: ColorFilterArray(RGBW, RGBW_SPECTRA), (3, 8, 12), ("spectra",), flux=2 / 3),
    LinearCase(
        "soft choice of filters",
        lambda: ColorFilterArray(
            choice_logits(((0, 1, 2), (3, 0, 1)), 4, share=0.6) + rand(4, 2, 3, seed=2),
            SPECTRA,
            sharpness=1.5,
            learn=("choice_logits", "spectra"),
        ),
        (6, 7, 10),
        ("choice_logits", "spectra"),
    ),
    # ---- patterns ----
    LinearCase("patterns", lambda: Patterns(rand(11, 5, 6), learn=("patterns",)), (2, 5, 6), ("patterns",), flux=None),
    LinearCase(
        "patterns in differential pairs",
        lambda: Patterns(2 * rand(7, 5, 6) - 1, display="differential"),
        (1, 5, 6),
        ("patterns",),
    ),
    *(
        LinearCase(
            f"Hadamard patterns, {order}, {display}",
            lambda order=order, display=display, count=count: HadamardPatterns(
                (8, 16), order=order, display=display, n_patterns=count
            ),
            (2, 8, 16),
            flux=flux,
        )
        # One pattern is open throughout, the others halfway.
        for order, display, count, flux in (
            ("natural", "signed", None, 1.0),
            ("walsh", "transmission", 50, 25.5),
            ("cake_cutting", "differential", 37, 37.0),
        )
    ),
    # ---- motion ----
    LinearCase(
        "smear",
        lambda: MotionSmear(3.3, direction_degrees=25.0, boundary="circular", learn=("length_pixels",)),
        (2, 11, 14),
        ("length_pixels", "direction_degrees", "shutter"),
        flux=1.0,
        shifts=True,
    ),
    LinearCase(
        "smear, cropped",
        lambda: MotionSmear(2.6, direction_degrees=-70.0),
        (1, 12, 15),
        ("length_pixels", "direction_degrees"),
        flux=6 * 9 / (12 * 15),
    ),
    LinearCase(
        "smear, coded exposure",
        lambda: MotionSmear(4.7, direction_degrees=10.0, shutter=(0.9, 0.2, 0.6, 0.3), boundary="zero"),
        (1, 9, 15),
        ("length_pixels", "direction_degrees", "shutter"),
        shifts=True,
    ),
    LinearCase(
        "time delay integration",
        lambda: TimeDelayIntegration(
            8, mismatch_pixels=0.13, drift_pixels=-0.07, n_phases=2, boundary="circular", learn=("mismatch_pixels",)
        ),
        (1, 11, 14),
        ("mismatch_pixels", "drift_pixels"),
        flux=1.0,
        shifts=True,
    ),
    # ---- pixels ----
    LinearCase("pixels", lambda: PixelSampling(3), (2, 9, 12), flux=1 / 9),
    LinearCase(
        "pixels with dead borders",
        lambda: PixelSampling(4, fill_factor=0.45),
        (2, 8, 12),
        ("fill_factor",),
        flux=0.45 / 16,
    ),
    # ---- PSFs ----
    *(
        LinearCase(
            f"PSF {h} x {w}, {mode}, {boundary}",
            lambda h=h, w=w, mode=mode, boundary=boundary: PSFConvolution(
                psf(h, w), mode=mode, boundary=boundary, learn=("psf",)
            ),
            (2, 10, 13),
            ("psf",),
            flux=flux,
            shifts=mode == "same",
        )
        for h, w, mode, boundary, flux in (
            (3, 5, "same", "zero", None),
            (4, 6, "same", "zero", None),
            (8, 9, "same", "zero", None),
            (4, 3, "same", "circular", 1.0),
            (12, 16, "same", "circular", 1.0),
            (4, 5, "full", "zero", 1.0),
            (4, 5, "valid", "zero", 7 * 9 / (10 * 13)),
        )
    ),
    LinearCase(
        "PSF for each channel, cropped",
        lambda: PSFConvolution(psf(3, 4, 5), mode="full", crop=(6, 8), image_size=(10, 13)),
        (3, 10, 13),
        ("psf",),
        flux=None,
    ),
    LinearCase(
        "depths before a small sensor",
        lambda: DepthStackConvolution(psf(4, 9, 10), crop=(7, 6), image_size=(10, 13), learn=("psf",)),
        (4, 10, 13),
        ("psf",),
    ),
    LinearCase(
        "depths before a colour sensor",
        lambda: DepthStackConvolution(psf(2, 3, 4, 4), boundary="circular"),
        (3, 10, 13),
        ("psf",),
        flux=2.0,
        shifts=True,
    ),
]
