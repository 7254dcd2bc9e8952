"""Systems of wave optics on one thread: time forward, and forward with gradients in every design parameter."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bitlens.systems import ImagingSystem
from bitlens.systems.fluorescence_microscope import fluorescence_microscope
from bitlens.systems.fourier_ptychography import fourier_ptychography
from bitlens.systems.inline_holography import inline_holography
from bitlens.systems.optical_telescope import optical_telescope
from bitlens.systems.phase_contrast_microscope import phase_contrast_microscope

SHAPE, N_SCENES = (32, 32), 64
_LEARN: dict[str, tuple[str, ...]] = {
    "fluorescence_microscope": ("numerical_aperture", "defocus_um", "zernike_waves", "pupil_phase_waves"),
    "optical_telescope": ("obstruction_ratio", "zernike_waves", "pupil_phase_waves", "pupil_transmission"),
    "phase_contrast_microscope": ("source_weights", "ring_phase_rad", "defocus_um", "zernike_waves"),
    "inline_holography": ("distance_mm", "tilt_rad", "shift_um"),
    "fourier_ptychography": ("led_position_mm", "led_gain", "numerical_aperture", "zernike_waves"),
}
SYSTEMS: dict[str, Callable[[tuple[str, ...]], ImagingSystem]] = {
    "fluorescence_microscope": lambda learn: fluorescence_microscope(shape=SHAPE, n_scenes=N_SCENES, learn=learn),
    "optical_telescope": lambda learn: optical_telescope(shape=SHAPE, n_scenes=N_SCENES, learn=learn),
    "phase_contrast_microscope": lambda learn: phase_contrast_microscope(shape=SHAPE, n_scenes=N_SCENES, learn=learn),
    "inline_holography": lambda learn: inline_holography(shape=SHAPE, n_scenes=N_SCENES, learn=learn),
    "fourier_ptychography": lambda learn: fourier_ptychography(shape=SHAPE, n_scenes=N_SCENES, learn=learn),
}


class WaveSystems:
    """64 scenes of 32 x 32 pixels, the default design of each system."""

    param_names = ("system",)
    params = (list(SYSTEMS),)
    timeout = 120

    def setup(self, name: str) -> None:
        torch.set_num_threads(1)
        self.encoder, _, self.scenes = SYSTEMS[name](_LEARN[name])
        self.parameters = list(self.encoder.parameters())
        self.encoder(self.scenes)

    def time_forward(self, name: str) -> None:
        with torch.no_grad():
            self.encoder(self.scenes)

    def time_forward_backward(self, name: str) -> None:
        torch.autograd.grad(self.encoder(self.scenes).sum(), self.parameters)
