"""Memory of a design of many numbers does not grow with its steps; what leaks on purpose is seen to grow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MOST_GROWTH_MB = 4.0
# A phase mask of 161 x 161 in float64; a copy of it is 0.2 MB, and 50 of them are beyond the limit.
MARGIN_PIXELS, PATCH_PIXELS = 40, 8
FIRST, LAST, WINDOW = 10, 60, 8
LEAKS = ("nothing", "the graph of each step", "a copy of the mask at each step")


def growth_mb(leak: str) -> float:
    """Resident memory around step 60 less that around step 10, MB, each the lowest of some steps."""
    import re

    import torch
    from torch import Tensor, nn

    from bitlens import optimize_design
    from bitlens.encoders import Camera
    from bitlens.noise import PoissonGaussianNoise

    torch.set_num_threads(1)
    kept: list[Tensor] = []

    class Leaking(nn.Module):
        """The camera, which keeps what it should not."""

        def __init__(self) -> None:
            super().__init__()
            self.camera = Camera(
                wavelength_nm=550,
                f_number=8,
                pixel_um=3.45,
                margin_pixels=MARGIN_PIXELS,
                exposure_photons=200.0,
                defocus_waves=1.0,
                learn=("phase_mask_waves",),
            )

        def forward(self, scene: Tensor) -> Tensor:
            mean = self.camera(scene)
            if leak == LEAKS[1]:
                kept.append(mean)
            if leak == LEAKS[2] and mean.requires_grad:
                kept.append(self.camera.phase_mask_waves.detach().clone())
            return mean

    encoder = Leaking()
    size = encoder.camera.scene_size(PATCH_PIXELS)
    scenes = torch.rand(24, 1, size, size, generator=torch.Generator().manual_seed(0))
    memory: list[float] = []

    def look(step: object) -> None:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        memory.append(int(found.group(1)) * 1024 / 1e6)

    optimize_design(
        encoder,
        PoissonGaussianNoise(read_std=2.0),
        scenes,
        objective="gaussian",
        n_steps=LAST,
        batch_size=4,
        judge_scenes=scenes[:12],
        callback=look,
        generator=torch.Generator().manual_seed(0),
    )
    return min(memory[-WINDOW:]) - min(memory[FIRST - 1 : FIRST - 1 + WINDOW])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("leak", LEAKS)
def test_memory_grows_with_the_steps_only_where_something_is_kept(leak: str) -> None:
    # In a process of its own: memory that earlier tests have given back would hide what is kept.
    run = subprocess.run([sys.executable, __file__, leak], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    growth = float(run.stdout)
    assert (growth <= MOST_GROWTH_MB) == (leak == LEAKS[0]), growth


if __name__ == "__main__":
    print(growth_mb(sys.argv[1]))
