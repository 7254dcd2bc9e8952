"""A single-pixel camera: one detector reads the scene behind pattern after pattern, all within one exposure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.datasets import scene_patches
from bitlens.encoders import HadamardPatterns, LinearEncoder, MaskTransmission, Patterns, random_patterns
from bitlens.encoders.detector import as_planes, as_real, as_values, hold, within
from bitlens.encoders.masks import MaskKind
from bitlens.encoders.patterns import HadamardOrder
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems._checks import check_count, check_names, scenes_and_shape
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription

SinglePixelDesign = Literal["hadamard", "hadamard_differential", "random_binary", "random_real", "raster"]

Display = Literal["transmission", "differential"]

DESCRIPTION = SystemDescription(
    name="single_pixel_camera",
    designs=get_args(SinglePixelDesign),
    formula="z_m = N_m + n_m, N_m ~ Poisson(share_m (photons sum(pattern_m scene) + dark)), n_m ~ Normal(0, read^2)",
    reference="Duarte et al. 2008, doi:10.1109/MSP.2007.914730; Harwit and Sloane, Hadamard Transform Optics, 1979",
)


@final
class MirrorPatterns(LinearEncoder):
    """y[m] = sum_{r, c} mask[m, r, c] scene[r, c] of a `MaskTransmission` (m, row, column): mirrors that stay binary.

    "differential" shows each pattern and then 1 minus it. Shapes as in `bitlens.encoders.Patterns`.

    Reference: Duarte et al. 2008, doi:10.1109/MSP.2007.914730.
    """

    def __init__(self, mask: MaskTransmission, *, display: Display = "transmission") -> None:
        super().__init__()
        self.mask = mask
        self.display: Display = display

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """The detector's signals (batch, channel, reading, 1) of scenes (batch, channel, row, column)."""
        rows, columns = self.mask.parameter.shape[1:]
        scene = as_planes("scene", scene, rows=rows, columns=columns)
        return (scene.flatten(-2) @ self._shown().to(scene.dtype).flatten(1).T).unsqueeze(-1)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """The sum of what was shown, weighted by the signals: (batch, channel, row, column)."""
        shown = self._shown()
        measured = as_planes("measured", measured, rows=len(shown), columns=1)
        return (measured[..., 0] @ shown.to(measured.dtype).flatten(1)).unflatten(-1, shown.shape[1:])

    def _shown(self) -> Tensor:
        mask = self.mask()
        return mask if self.display == "transmission" else torch.stack((mask, 1 - mask), dim=1).flatten(0, 1)


Shown = Patterns | HadamardPatterns | MirrorPatterns


@final
class PatternExposure(LinearEncoder):
    """y[m] = share_m exposure_photons sum_{r, c} pattern_m[r, c] scene[r, c], shares of one exposure: their sum is 1.

    share_m = time_weights_m / sum of all: the more patterns, the less light for each. Patterns and how they are shown:
    `bitlens.encoders.Patterns`. Shapes: (batch, channel, row, column) -> (batch, channel, reading, 1).
    `load_state_dict` takes learned grey patterns in the place of a Hadamard transform.

    Reference: Duarte et al. 2008, doi:10.1109/MSP.2007.914730.
    """

    # Weights only compare; away from 0 their sum stays above it.
    parameter_domain: ClassVar[Mapping[str, tuple[float | None, float | None]]] = {"time_weights": (1e-3, None)}

    time_weights: Tensor
    exposure_photons: Tensor

    def __init__(
        self,
        shown: Shown,
        *,
        exposure_photons: float,
        time_weights: Tensor | np.ndarray | None = None,
        learn: Sequence[str] = (),
    ) -> None:
        """Takes the patterns, and the photo-electrons of the whole exposure from a pixel where scene and pattern are 1.

        Args:
            time_weights: (reading,), in proportion to the time that each stays; default even.
            learn: "time_weights", or nothing.

        Raises:
            ValueError: a number that is not positive, or another number of weights than readings.
        """
        super().__init__()
        self.shown = shown
        readings = _readings(shown)
        start = torch.ones(readings, dtype=torch.float64) if time_weights is None else time_weights
        weights = as_values("time_weights", start, "(reading,)", (1,)).to(torch.float64)
        if len(weights) != readings or not bool((weights > 0).all()):
            raise ValueError(f"time_weights: need {readings} positive numbers, got {weights.tolist()}")
        photons = within("exposure_photons", as_values("exposure_photons", exposure_photons, "a number", (0,)), 0.0)
        self.register_buffer("exposure_photons", photons)
        self.parameter_scale: Mapping[str, float] = {"time_weights": float(weights.mean())}
        hold(self, {"time_weights": weights}, learn)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        if isinstance(self.shown, HadamardPatterns) and f"{prefix}shown.patterns" in state_dict:
            # A matrix is what learned patterns are; to hold one for a transform that does without would cost its speed.
            self.shown = _as_matrix(self.shown).to(self.time_weights)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def shares(self) -> Tensor:
        """Each reading's share of the exposure, (reading,)."""
        return self.time_weights / self.time_weights.sum()

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photo-electrons of light (batch, channel, reading, 1)."""
        signals = self.shown.A(scene)
        return signals * (self.exposure_photons * self.shares()).to(signals.dtype)[:, None]

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """The sum of the patterns, weighted by the readings and their exposures: (batch, channel, row, column)."""
        measured = as_real("measured", measured)
        return self.shown.A_adjoint(measured * (self.exposure_photons * self.shares()).to(measured.dtype)[:, None])


@final
class SinglePixelCamera(nn.Module):
    """mean = linear.A(scene) + share_m dark_electrons, photo-electrons of each reading.

    `linear` is a `PatternExposure`; the dark signal is that of the whole exposure. Shapes: (batch, channel, row,
    column) -> (batch, channel, reading, 1).

    Reference: Duarte et al. 2008, doi:10.1109/MSP.2007.914730.
    """

    dark_electrons: Tensor

    def __init__(self, linear: PatternExposure, *, dark_electrons: float = 0.0) -> None:
        super().__init__()
        self.linear = linear
        dark = within("dark_electrons", as_values("dark_electrons", dark_electrons, "a number", (0,)), 0.0)
        self.register_buffer("dark_electrons", dark)

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """The linear part, without the dark signal: `linear.A(scene)`."""
        return self.linear.A(scene)

    def A_adjoint(self, measured: Tensor) -> Tensor:
        """The adjoint of `A`: `linear.A_adjoint(measured)`."""
        return self.linear.A_adjoint(measured)

    def forward(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photo-electrons (batch, channel, reading, 1)."""
        light = self.linear.A(scene)
        return light + (self.dark_electrons * self.linear.shares()).to(light.dtype)[:, None]


def single_pixel_camera(
    design: SinglePixelDesign = "hadamard",
    *,
    shape: tuple[int, int] | None = None,
    n_patterns: int | None = None,
    exposure_photons: float = 1e5,
    dark_electrons: float = 1e5,
    read_electrons: float = 1000.0,
    order: HadamardOrder = "cake_cutting",
    kind: MaskKind = "grey",
    n_scenes: int = 512,
    scenes: Tensor | np.ndarray | None = None,
    learn: tuple[str, ...] = (),
) -> ImagingSystem:
    """z_m = N_m + n_m, N_m ~ Poisson(share_m (photons sum(pattern_m scene) + dark)), n_m ~ Normal(0, read^2).

    "hadamard": (1 + h) / 2 in the given order; "hadamard_differential": that and then (1 - h) / 2 of each, two
    readings; "random_binary", "random_real": 0 and 1, or 0 to 1; "raster": pixel after pixel. Compared at equal total
    time, not equal light: half of the mirrors send theirs to the detector, of "raster" one.

    Args:
        shape, n_patterns: default 32 x 32 (Hadamard: powers of two), and a quarter of the pixels ("raster": all).
        exposure_photons: electrons of the exposure per pixel of 1, mirrors on: a finer shape has more of them in all.
        dark_electrons, read_electrons: dark signal of the whole exposure; read noise of one reading.
        kind: "grey" patterns, or "binary", "annealed" (0.2 and 0.8) mirrors of a `MaskTransmission`.
        learn: "patterns", "time_weights".

    Reference: Duarte et al. 2008, doi:10.1109/MSP.2007.914730; read noise: 3.2 ppm of 50 pC, data sheet of the DDC112.
    """
    if design not in get_args(SinglePixelDesign):
        raise ValueError(f"design: need one of {get_args(SinglePixelDesign)}, got {design!r}")
    check_names(learn)
    unknown = [name for name in learn if name not in ("patterns", "time_weights")]
    if unknown:
        raise ValueError(f"learn: need names among patterns, time_weights, got {unknown[0]!r}")
    if kind not in get_args(MaskKind):
        raise ValueError(f"kind: need one of {get_args(MaskKind)}, got {kind!r}")
    scenes, shape = scenes_and_shape(scenes, shape, n_scenes, default=(32, 32))
    pixels = shape[0] * shape[1]
    count = pixels if design == "raster" else max(1, pixels // 4)
    if n_patterns is not None:
        count = check_count("n_patterns", n_patterns)
    given = _shown(design, shape, count, order)
    shown: Shown = given
    if kind != "grey":
        shown = _mirrors(given, kind, learn="patterns" in learn)
    elif "patterns" in learn:
        shown = _as_matrix(given, learn=("patterns",))
    linear = PatternExposure(
        shown, exposure_photons=exposure_photons, learn=tuple(name for name in learn if name == "time_weights")
    )
    if scenes is None:
        scenes = _image_scenes(n_scenes, shape)
    encoder = SinglePixelCamera(linear, dark_electrons=dark_electrons)
    return ImagingSystem(encoder, PoissonGaussianNoise(read_std=read_electrons), scenes)


def _shown(
    design: SinglePixelDesign, shape: tuple[int, int], count: int, order: HadamardOrder
) -> Patterns | HadamardPatterns:
    if design in ("hadamard", "hadamard_differential"):
        if any(size & (size - 1) for size in shape):
            raise ValueError(f"shape: need powers of two for Hadamard patterns, got {shape}")
        display: Display = "differential" if design == "hadamard_differential" else "transmission"
        return HadamardPatterns(shape, n_patterns=count, order=order, display=display)
    if design == "raster":
        pixels = shape[0] * shape[1]
        if not 1 <= count <= pixels:
            raise ValueError(f"n_patterns: need 1 to {pixels}, got {count}")
        return Patterns(torch.eye(pixels, dtype=torch.float64)[:count].unflatten(-1, shape))
    generator = torch.Generator().manual_seed(0)
    values: Literal["binary", "uniform"] = "binary" if design == "random_binary" else "uniform"
    return Patterns(random_patterns(count, shape, kind=values, generator=generator).double())


def _as_matrix(shown: Patterns | HadamardPatterns, learn: Sequence[str] = ()) -> Patterns:
    """The same patterns one by one, shown in the same way."""
    if isinstance(shown, Patterns):
        return Patterns(shown.patterns, display=shown.display, learn=learn)
    signed = shown.patterns()
    return Patterns((1 + signed) / 2 if shown.display == "transmission" else signed, display=shown.display, learn=learn)


def _mirrors(shown: Patterns | HadamardPatterns, kind: MaskKind, *, learn: bool) -> MirrorPatterns:
    """The same patterns, each a transmission; of "annealed" ones nearer to each other."""
    display: Display = "differential" if shown.display == "differential" else "transmission"
    transmission = _as_matrix(shown).patterns
    if display == "differential":
        transmission = (1 + transmission) / 2
    if kind == "annealed":
        # At the ends of the range its parameter has no gradient to speak of.
        transmission = 0.2 + 0.6 * transmission
    return MirrorPatterns(MaskTransmission(transmission, kind=kind, learn=learn), display=display)


def _readings(shown: Shown) -> int:
    if isinstance(shown, HadamardPatterns):
        patterns = len(shown.indices)
    else:
        patterns = len(shown.mask.parameter if isinstance(shown, MirrorPatterns) else shown.patterns)
    return 2 * patterns if shown.display == "differential" else patterns


def _image_scenes(n_scenes: int, shape: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rows, columns = shape
    return scene_patches(n_scenes, max(shape), generator=generator).scenes[..., :rows, :columns]
