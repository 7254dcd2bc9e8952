"""A camera that is to tell people apart: scenes with labels, and pixels or apertures that trade detail for light."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bitlens.datasets import linearize_srgb
from bitlens.encoders import Camera
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems._camera_scenes import LENS_NAMES, camera_scenes, lens_names
from bitlens.systems._checks import check_count, check_number, check_positive, check_shape
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription

FaceCameraDesign = Literal["fine_pixels", "coarse_pixels", "small_aperture"]

DESCRIPTION = SystemDescription(
    name="face_recognition_camera",
    designs=get_args(FaceCameraDesign),
    formula="z = N + n, N ~ Poisson(photons (4 radius pixel / F)^2 pixels(PSF * face) + dark), n ~ Normal(0, std^2)",
    reference="Samaria and Harter 1994, doi:10.1109/ACV.1994.341300 (ORL faces); Huang et al. 2007 (LFW)",
)

# 0.5 wavelength f_number, the finest that the lens resolves.
_SAMPLE_UM, _WAVELENGTH_NM, _FASTEST = 1.1, 550.0, 4.0
_MARGIN_SAMPLES = 16
_SAMPLES_PER_PIXEL = {"fine_pixels": 2, "coarse_pixels": 8, "small_aperture": 2}
_APERTURE_RADIUS = {"fine_pixels": 1.0, "coarse_pixels": 1.0, "small_aperture": 0.5}


class FaceScenes(NamedTuple):
    """`scenes` (n, 1, row, column), linear light of mean 1, and `labels` (n,) int64: who, or whether it is a face."""

    scenes: Tensor
    labels: Tensor


def face_scenes(
    file: str | Path | None = None, *, size: tuple[int, int] = (96, 96), margin_samples: int = _MARGIN_SAMPLES
) -> FaceScenes:
    """Faces of `size` samples, rows and columns, and an edge around them, with their labels.

    Without a file 100 faces and 100 other patches of scikit-image's `lfw_subset`, labels 1 and 0. A file is an npz with
    `images` (n, row, column), 8 bit, and `subject` (n,), whole numbers, such as the ORL faces (40 people, 10 pictures
    each). Images are enlarged until they cover `size`, linearised, and cut around their middle; the edge repeats the
    last samples, for the camera's PSF. The labels go to `estimate_task_information`.

    Raises:
        ValueError: the file lacks an array, or they do not fit.
        ModuleNotFoundError: scikit-image is not installed.
    """
    size, margin_samples = check_shape(size, "size"), check_count("margin_samples", margin_samples, least=0)
    images, labels = _bundled() if file is None else _read(Path(file))
    linear = torch.from_numpy(linearize_srgb(images).astype(np.float32))[:, None]
    scale = max(size[0] / linear.shape[-2], size[1] / linear.shape[-1])
    covering = [max(wanted, round(n * scale)) for wanted, n in zip(size, linear.shape[-2:], strict=True)]
    large = functional.interpolate(linear, size=covering, mode="bilinear", antialias=True)
    top, left = ((n - wanted) // 2 for n, wanted in zip(covering, size, strict=True))
    faces = large[..., top : top + size[0], left : left + size[1]]
    edged = functional.pad(faces, (margin_samples,) * 4, mode="replicate")
    return FaceScenes(edged / faces.mean(), torch.from_numpy(labels.astype(np.int64)))


def face_recognition_camera(
    design: FaceCameraDesign = "fine_pixels",
    *,
    photons_per_um2: float = 2.0,
    read_std: float = 2.0,
    f_number: float = 4.0,
    pixel_um: float | None = None,
    dark_electrons: float = 0.05,
    shape: tuple[int, int] | None = None,
    scenes: Tensor | np.ndarray | None = None,
    learn: tuple[str, ...] = (),
) -> ImagingSystem:
    """mean = photons (4 radius pixel / F)^2 pixels(PSF * face) + dark, electrons: a face 106 um wide, at 550 nm.

    "fine_pixels": 2.2 um, 48 across the face. "coarse_pixels": 8.8 um, 12 across, each with 16 times the light.
    "small_aperture": half the diameter, a quarter of the light. They are compared at equal exposure, not equal light.
    `face_scenes` gives scenes of a file, and labels: with `measured` they go to `bitlens.estimate_task_information`.

    Args:
        photons_per_um2: photo-electrons per square micrometre at f/4 where the scene is 1, the mean of the faces.
        f_number: at least 4, which the samples of 1.1 um resolve.
        pixel_um: 1.1 times 1, 2, 4, 8 or 16, instead of the design's.
        shape: pixels, rows and columns, of the default scenes; default the whole face.
        scenes: (n, 1, row, column), linear light, 1.1 um per sample, with an edge of 16 samples.
        learn: "aperture_radius" trades detail for light; "defocus_waves", "phase_mask_waves", "exposure_photons",
            "quantum_efficiency", "dark_electrons".

    Reference: Sony IMX250 and smaller: 2.2 to 8.8 um pixels, 2 electrons of read noise, quantum efficiency included.
    """
    if design not in get_args(FaceCameraDesign):
        raise ValueError(f"design: need one of {get_args(FaceCameraDesign)}, got {design!r}")
    check_positive("photons_per_um2", photons_per_um2)
    check_number("read_std", read_std)
    check_number("dark_electrons", dark_electrons)
    if not check_number("f_number", f_number) >= _FASTEST:
        raise ValueError(f"f_number: need at least {_FASTEST:g}, whose PSF samples of 1.1 um resolve, got {f_number}")
    samples = _SAMPLES_PER_PIXEL[design] if pixel_um is None else _samples(pixel_um)
    light = photons_per_um2 * (samples * _SAMPLE_UM * _FASTEST / f_number) ** 2
    shape = (96 // samples, 96 // samples) if shape is None else check_shape(shape)
    encoder = Camera(
        wavelength_nm=_WAVELENGTH_NM,
        f_number=f_number,
        pixel_um=samples * _SAMPLE_UM,
        aperture_radius=_APERTURE_RADIUS[design],
        exposure_photons=light,
        dark_electrons=dark_electrons,
        oversampling=samples,
        margin_pixels=_MARGIN_SAMPLES // samples,
        learn=lens_names(learn, of_lens=(*LENS_NAMES, "dark_electrons")),
    )
    if scenes is None:
        scenes = face_scenes(size=(shape[0] * samples, shape[1] * samples)).scenes
    found = camera_scenes(
        scenes,
        lambda rows, columns: (encoder.scene_size(rows), encoder.scene_size(columns)),
        shape=shape,
    )
    return ImagingSystem(encoder, PoissonGaussianNoise(read_std=read_std), found)


def _samples(pixel_um: float) -> int:
    """Samples per pixel, which must divide the edge of the scenes."""
    wanted = check_number("pixel_um", pixel_um)
    for samples in (1, 2, 4, 8, 16):
        if math.isclose(wanted, samples * _SAMPLE_UM):
            return samples
    raise ValueError(f"pixel_um: need 1.1 um times 1, 2, 4, 8 or 16, got {pixel_um}")


def _bundled() -> tuple[np.ndarray, np.ndarray]:
    try:
        data: Any = importlib.import_module("skimage.data")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "file: the bundled faces need scikit-image, which is not installed: pip install scikit-image"
        ) from error
    return np.asarray(data.lfw_subset()), np.repeat([1, 0], 100)


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(file, allow_pickle=False) as archive:
        missing = [name for name in ("images", "subject") if name not in archive]
        if missing:
            raise ValueError(f"{file}: need arrays images and subject, got none named {missing[0]}")
        images, labels = archive["images"], archive["subject"]
    if (
        images.ndim != 3
        or images.dtype != np.uint8
        or labels.shape != images.shape[:1]
        or labels.dtype.kind not in "iu"
    ):
        raise ValueError(
            f"{file}: need images (n, row, column) of 8 bits and as many whole numbers in subject, "
            f"got {images.dtype} {images.shape} and {labels.dtype} {labels.shape}"
        )
    return images / 255, labels
