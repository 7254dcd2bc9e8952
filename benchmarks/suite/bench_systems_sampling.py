"""Systems that sample transforms of a scene, on one thread: time forward, and forward with gradients in the design."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bitlens.systems import ImagingSystem
from bitlens.systems.coded_aperture_spectral_imager import coded_aperture_spectral_imager
from bitlens.systems.mri import mri
from bitlens.systems.radio_interferometer import radio_interferometer
from bitlens.systems.single_pixel_camera import single_pixel_camera
from bitlens.systems.x_ray_ct import x_ray_ct

Learn = tuple[str, ...]
Case = tuple[Callable[[Learn], ImagingSystem], Learn]


def _scenes(*shape: int) -> torch.Tensor:
    return 0.02 * torch.rand(shape, generator=torch.Generator().manual_seed(0))


# Name: the system for some names to learn, and those that gradients are timed in.
CASES: dict[str, Case] = {
    "single-pixel camera, 64^2, 1024 Hadamard patterns": (
        lambda learn: single_pixel_camera("hadamard", shape=(64, 64), scenes=_scenes(16, 1, 64, 64), learn=learn),
        ("patterns",),
    ),
    "spectral imager, 28 x 128^2": (
        lambda learn: coded_aperture_spectral_imager(shape=(128, 128), scenes=_scenes(1, 28, 128, 128), learn=learn),
        ("mask", "dispersion_pixels"),
    ),
    "CT, parallel, 180 views of 256^2": (
        lambda learn: x_ray_ct(
            shape=(256, 256), pixel_mm=1.5, views=180, scenes=_scenes(1, 1, 256, 256), learn=learn
        ),
        ("photons_per_view", "angles_rad"),
    ),
    "CT, fan, 180 views of 256^2": (
        lambda learn: x_ray_ct(
            "fan", shape=(256, 256), pixel_mm=1.5, views=180, scenes=_scenes(1, 1, 256, 256), learn=learn
        ),
        ("photons_per_view", "angles_rad"),
    ),
    "MRI, lines, 8 coils of 256^2": (
        lambda learn: mri(shape=(256, 256), scenes=_scenes(1, 1, 256, 256), learn=learn),
        ("mask",),
    ),
    "MRI, spiral, 8 coils of 256^2": (
        lambda learn: mri("spiral", shape=(256, 256), scenes=_scenes(1, 1, 256, 256), learn=learn),
        ("trajectory",),
    ),
    "interferometer, 27 antennas, 8 times, 128^2": (
        lambda learn: radio_interferometer(
            shape=(128, 128), n_stations=27, scenes=_scenes(1, 1, 128, 128), learn=learn
        ),
        ("stations_m",),
    ),
}  # fmt: skip


class Systems:
    """One system at a size that users have."""

    param_names = ("system",)
    params = (list(CASES),)
    timeout = 120

    def setup(self, name: str) -> None:
        torch.set_num_threads(1)
        make, learn = CASES[name]
        self.encoder, _, self.scenes = make(())
        self.learned = make(learn).encoder
        with torch.no_grad():
            self.encoder(self.scenes)

    def time_forward(self, name: str) -> None:
        with torch.no_grad():
            self.encoder(self.scenes)

    def time_forward_backward(self, name: str) -> None:
        torch.autograd.grad(self.learned(self.scenes).sum(), list(self.learned.parameters()))
