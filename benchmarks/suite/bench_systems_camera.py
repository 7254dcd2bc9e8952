"""Cameras on one thread: time forward, and forward with gradients in all design parameters, with the system as axis."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from bitlens.systems import ImagingSystem
from bitlens.systems.color_camera import color_camera
from bitlens.systems.face_recognition_camera import face_recognition_camera
from bitlens.systems.infrared_camera import infrared_camera
from bitlens.systems.lensless_camera import lensless_camera
from bitlens.systems.satellite_imager import satellite_imager

_N_SCENES = 16


def _scenes(channels: int, rows: int, columns: int) -> torch.Tensor:
    return torch.rand(_N_SCENES, channels, rows, columns, generator=torch.Generator().manual_seed(0))


def _color() -> ImagingSystem:
    # 64 x 64 pixels and 6 at each edge, of 3 samples.
    return color_camera("learned", scenes=_scenes(3, 228, 228), learn=("choice_logits", "spectra"))


def _lensless() -> ImagingSystem:
    scenes = _scenes(4, 128, 128)
    depths = (50.0, 100.0, 200.0, math.inf)
    return lensless_camera("diffuser", depths_mm=depths, shape=(128, 128), scenes=scenes, learn=("height_um",))


def _infrared() -> ImagingSystem:
    # 64 x 64 pixels; 4 and, for 6 pixels of motion in twice the exposure, 7 at each edge, of 3 samples.
    scenes = 295.0 + 10.0 * _scenes(1, 258, 258)
    learn = ("exposure_ms", "short_um", "long_um", "f_number")
    return infrared_camera(pixels_per_s=1000.0, scenes=scenes, learn=learn)


def _satellite() -> ImagingSystem:
    # 64 x 64 pixels; 8 and 1 at each edge, of 4 samples.
    scenes = 80.0 * _scenes(1, 328, 328)
    return satellite_imager(mismatch_pixels=0.02, scenes=scenes, learn=("mismatch_pixels", "width_nm", "f_number"))


def _face() -> ImagingSystem:
    # 48 x 48 pixels and 8 at each edge, of 2 samples.
    learn = ("aperture_radius", "defocus_waves", "phase_mask_waves")
    return face_recognition_camera(scenes=_scenes(1, 128, 128), learn=learn)


CASES: dict[str, Callable[[], ImagingSystem]] = {
    "color_camera": _color,
    "lensless_camera": _lensless,
    "infrared_camera": _infrared,
    "satellite_imager": _satellite,
    "face_recognition_camera": _face,
}


class Systems:
    """One system, 16 scenes at a time."""

    param_names = ("system",)
    params = (list(CASES),)
    timeout = 120

    def setup(self, name: str) -> None:
        torch.set_num_threads(1)
        self.encoder, _, self.scenes = CASES[name]()
        self.learned = list(self.encoder.parameters())
        with torch.no_grad():
            self.encoder(self.scenes)

    def time_forward(self, name: str) -> None:
        with torch.no_grad():
            self.encoder(self.scenes)

    def time_forward_backward(self, name: str) -> None:
        torch.autograd.grad(self.encoder(self.scenes).sum(), self.learned)
