"""Lensless camera: one lens, several lenslets, diffusers and masks, few photons and many.

    python benchmarks/studies/lensless.py [--data FOLDER] [--out FOLDER] [--quick] [--seeds N]

Equal in all designs is the light on the sensor: each is exposed until a pixel has 20, or 320, photo-electrons in the
mean. The sensor is hardly larger than a lens's image and its pixels twice the scene's samples, so that several
lenslets see between each other's pixels, and what their images share of the sensor costs them shot noise.

The list was not changed after its scores, though some masks like these had been scored before: a lens in and out of
focus, more and more lenslets (at half and at whole pixels, in a grid and at random), diffusers of small to large
bumps, an amplitude mask, a pinhole and nothing at all.

Scenes are handwritten digits at random places. Pixels that hardly any digit lights make a Gaussian fitted to centred
digits useless at many photons; at random places a full covariance, not the same everywhere, can be fitted.

What was found: by a Gaussian of full covariance, few photons favour one lens and more of them two and four lenslets;
diffusers and the amplitude mask share too much light between pixels of such digits. Bits rank the squared error well
at 20 photons and less well at 320, where the masks that never look between the pixels (one lens, four lenslets at
whole pixels) measure what they see ever more finely, which counts in bits, while their error stays that of what they
do not see. But these bits are too high: digits are sparse, and pixels taken for independent, with the right
marginals, bound them lower than the covariance does, the more so the more the pixels correlate. A Gaussian copula,
sparse marginals and correlations together, bounds them far lower than either; by its bits the masks are ranked less
well at both levels (about 0.8, on one split), below the autocorrelation peak at 20 photons, and the designed places
carry no more than the start, although their error is smaller. Which density is nearest the truth here is open, and so
is the ranking.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _design_study import Comparison, Settings, by_information, compare_designs
from _validation_study import run_study, standard_metrics
from matplotlib.figure import Figure
from torch import Tensor, nn

from bitlens import report
from bitlens._files import replace_file
from bitlens.datasets import scene_patches
from bitlens.encoders.detector import as_planes
from bitlens.estimators import estimate_information
from bitlens.estimators._judge import Judged, judge, stderr_of_difference_bits
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems import ImagingSystem
from bitlens.systems.lensless_camera import LenslessCamera, binary_squares, diffuser_relief, lenslet_relief
from bitlens.validation import Decoder, LinearDecoder, Reconstruction, UNetDecoder

ROOT = Path(__file__).resolve().parents[2]
SCENE, PIXELS, MASK, WINDOW = 24, 20, 48, 72
PIXEL_UM, DISTANCE_MM, WAVELENGTH_NM, OVERSAMPLING = 26.0, 4.0, 532.0, 4
READ_ELECTRONS = 1.5
FEW, MANY = 20.0, 320.0
HALF_PIXEL_UM = PIXEL_UM / 2
SAMPLE_UM = HALF_PIXEL_UM / OVERSAMPLING
SIZE = (MASK * OVERSAMPLING, MASK * OVERSAMPLING)
# Middles of lenslets in half pixels: an odd number apart, one sees between the pixels of the other.
_FOUR_HALVES, _FOUR_WHOLES = ((a, b) for a in (-8, 7) for b in (-8, 7)), ((a, b) for a in (-8, 8) for b in (-8, 8))
_NINE = ((a, b) for a in (-8, -1, 8) for b in (-8, -1, 8))
GRIDS: Mapping[str, tuple[tuple[float, float], ...]] = {
    "one lens": ((0, 0),),
    "two lenslets": ((-7.5, -7.5), (7.5, 7.5)),
    "four, half pixels apart": tuple(_FOUR_HALVES),
    "four, whole pixels apart": tuple(_FOUR_WHOLES),
    "nine lenslets": tuple(_NINE),
}
_SWEPT = (*("one lens", "two lenslets", "four, half pixels apart"), *("nine lenslets", "diffuser, bumps of 60 um"))
_SWEEP = (5.0, 20.0, 80.0, 320.0)


class Mask(NamedTuple):
    """Relief (um) and amplitude of a mask, both (row, column), and the middles of its lenslets, if it has any."""

    height_um: Tensor
    amplitude: Tensor
    places_um: Tensor | None = None


def masks() -> dict[str, Mask]:
    """Every mask of the study."""
    found = {name: lenslets(HALF_PIXEL_UM * torch.tensor(grid).double()) for name, grid in GRIDS.items()}
    for share in (0.05, 0.2):
        found[f"one lens, {share:.0%} out of focus"] = lenslets(torch.zeros(1, 2).double(), focus=1 + share)
    for name, count in (("five", 5), ("sixteen", 16)):
        found[f"{name} at random places"] = lenslets(random_places(count, seed=count))
    for bump in (30, 60, 120):
        draws = torch.Generator().manual_seed(bump)
        relief = diffuser_relief(SIZE, SAMPLE_UM, bump_um=bump, focal_length_mm=DISTANCE_MM, generator=draws)
        found[f"diffuser, bumps of {bump} um"] = Mask(relief, torch.ones_like(relief))
    flat = torch.zeros(SIZE, dtype=torch.float64)
    squares = binary_squares(SIZE, round(52 / SAMPLE_UM), generator=torch.Generator().manual_seed(0))
    found["random squares of 52 um"] = Mask(flat, squares)
    row = SAMPLE_UM * (torch.arange(SIZE[0], dtype=torch.float64) - 0.5 * (SIZE[0] - 1))
    # Where diffraction at this distance is as wide as the hole.
    found["pinhole of 70 um"] = Mask(flat, (torch.hypot(row[:, None], row) < 35).double())
    found["no mask"] = Mask(flat, torch.ones_like(flat))
    return found


def lenslets(places_um: Tensor, focus: float = 1.0) -> Mask:
    """Lenslets (lenslet, 2) side by side, focused at `focus` times the sensor's distance."""
    relief = lenslet_relief(SIZE, SAMPLE_UM, places_um, focal_length_mm=focus * DISTANCE_MM)
    return Mask(relief, torch.ones_like(relief), places_um if focus == 1.0 else None)


def random_places(count: int, seed: int) -> Tensor:
    """(lenslet, 2) um, uniform within ten half pixels of the middle, where most of an image falls on the sensor."""
    draws = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(count, 2, dtype=torch.float64, generator=draws) - 1) * 10 * HALF_PIXEL_UM


class LenslessSensor(nn.Module):
    """mean = exposure pixels(PSF * scene), the exposure such that a pixel has `photons` electrons for `mean_scene`.

    Scenes (batch, 1, 24, 24) before the middle of a mask of 24 x 24 pixels, on a sensor of 20 x 20; a scene's sample
    moves the mask's image by half a pixel. With `learn` the middles of the lenslets may move and make the relief.
    """

    places_um: Tensor
    indices: Tensor
    mean_scene: Tensor
    fixed: Tensor | None

    def __init__(self, mask: Mask, photons: float, mean_scene: Tensor, *, learn: bool = False) -> None:
        super().__init__()
        # Held apart: nothing of the camera but the relief, which its caller gives, is optimised here.
        self._camera = (
            LenslessCamera(
                height_um=mask.height_um,
                amplitude=mask.amplitude,
                distance_mm=DISTANCE_MM,
                pixel_um=HALF_PIXEL_UM,
                oversampling=OVERSAMPLING,
                wavelength_nm=WAVELENGTH_NM,
                exposure_photons=1.0,
                psf_pixels=(WINDOW, WINDOW),
            ),
        )
        self.photons = photons
        self.register_buffer("mean_scene", mean_scene.double().flatten())
        line = 2 * torch.arange(PIXELS)[:, None] - torch.arange(SCENE) - (2 * PIXELS - SCENE) // 2 + WINDOW // 2
        index = line[:, None, :, None] * (WINDOW - 1) + line[None, :, None, :]
        self.register_buffer("indices", index.reshape(-1), persistent=False)
        # A quarter of an image's side changes a lot.
        self.parameter_scale = {"places_um": 0.25 * SCENE * HALF_PIXEL_UM}
        if learn:
            if mask.places_um is None:
                raise ValueError("mask: need lenslets to learn their places, got none")
            self.places_um = nn.Parameter(mask.places_um.clone())
            self.register_buffer("fixed", None)
        else:
            with torch.no_grad():
                self.register_buffer("fixed", self.matrix(self._camera[0].psf()[0]))

    @property
    def parameter_domain(self) -> Mapping[str, tuple[float, float]]:
        """Middles of lenslets stay on the mask."""
        half = 0.5 * MASK * HALF_PIXEL_UM
        return {"places_um": (-half, half)}

    def psf(self) -> Tensor:
        """(WINDOW, WINDOW) on half pixels."""
        (camera,) = self._camera
        if self.fixed is not None:
            return camera.psf()[0]
        relief = lenslet_relief(SIZE, SAMPLE_UM, self.places_um, focal_length_mm=DISTANCE_MM)
        return torch.func.functional_call(_Response(camera), {"camera.height_um": relief}, ())

    def matrix(self, psf: Tensor) -> Tensor:
        """(pixel, scene sample), electrons, of a PSF (row, column) on half pixels."""
        pixel = psf[:-1, :-1] + psf[1:, :-1] + psf[:-1, 1:] + psf[1:, 1:]
        weights = pixel.reshape(-1).index_select(0, self.indices).reshape(PIXELS**2, SCENE**2)
        return weights * (self.photons * PIXELS**2 / (weights @ self.mean_scene).sum())

    def forward(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean electrons (batch, 1, row, column)."""
        scene = as_planes("scene", scene, channels=1, rows=SCENE, columns=SCENE)
        matrix = self.fixed
        if matrix is None:
            matrix = self.matrix(self.psf())
        mean = scene.flatten(1) @ matrix.to(scene.dtype).T
        return mean.clamp(min=0).reshape(-1, 1, PIXELS, PIXELS)


class _Response(nn.Module):
    """The PSF as a module's call, which takes another relief in place of the camera's own."""

    def __init__(self, camera: LenslessCamera) -> None:
        super().__init__()
        self.camera = camera

    def forward(self) -> Tensor:
        return self.camera.psf()[0]


def digits(data: Path, n_scenes: int) -> tuple[Tensor, str]:
    """Digits (n, 1, 24, 24) at random places, and what they are: bundled photographs where there are no digits."""
    file = data / "mnist" / "t10k-images-idx3-ubyte.gz"
    if not file.is_file():
        draws = torch.Generator().manual_seed(0)
        return scene_patches(n_scenes, SCENE, generator=draws).scenes, "bundled photographs"
    with gzip.open(file) as opened:
        images = np.frombuffer(opened.read()[16:], np.uint8).reshape(-1, 28, 28)[:n_scenes]
    random = np.random.default_rng(0)
    places = random.integers(0, 28 - SCENE + 1, (len(images), 2))
    cut = np.stack([image[a : a + SCENE, b : b + SCENE] for image, (a, b) in zip(images, places, strict=True)])
    # Grey levels have a width; values that only ever are whole would have no density to bound an error by.
    light = (cut + random.random(cut.shape)) / 256
    return torch.from_numpy(light.astype(np.float32))[:, None], "handwritten digits"


def cameras(scenes: Tensor, photons: float, chosen: Mapping[str, Mask]) -> dict[str, ImagingSystem]:
    """Masks before one sensor, at equal light."""
    mean = scenes.double().mean(dim=0)
    return {
        name: ImagingSystem(LenslessSensor(mask, photons, mean), PoissonGaussianNoise(read_std=READ_ELECTRONS), scenes)
        for name, mask in chosen.items()
    }


def autocorrelation_peak(system: ImagingSystem) -> float:
    """sum PSF^2 / (sum PSF)^2: the height of the PSF's autocorrelation, by which lensless masks are compared."""
    assert isinstance(system.encoder, LenslessSensor)
    with torch.no_grad():
        psf = system.encoder.psf()
    return float(psf.square().sum() / psf.sum() ** 2)


def once(metric: Callable[[ImagingSystem], float]) -> Callable[[ImagingSystem], float]:
    """`metric`, computed once for each mask: all that differs at another light is a factor."""
    known: dict[float, float] = {}

    def found(system: ImagingSystem) -> float:
        encoder = system.encoder
        assert isinstance(encoder, LenslessSensor)
        assert encoder.fixed is not None
        mark = round(float(encoder.fixed.square().sum().sqrt() / encoder.photons), 9)
        if mark not in known:
            known[mark] = metric(system)
        return known[mark]

    return found


def sweep(scenes: Tensor, out: Path, method: str, levels: tuple[float, ...] = _SWEEP) -> dict[str, list[float]]:
    """Bits of some masks for each light, and which mask carries most."""
    found: dict[str, list[float]] = {name: [] for name in _SWEPT}
    chosen = {name: mask for name, mask in masks().items() if name in _SWEPT}
    for photons in levels:
        for name, (encoder, noise, _) in cameras(scenes, photons, chosen).items():
            with torch.no_grad():
                mean = encoder(scenes)
                measured = noise.sample(mean, torch.Generator().manual_seed(0))  # type: ignore[operator]
            estimate = estimate_information(
                measured,
                noise,  # type: ignore[arg-type]
                mean=mean,
                method=method,
                generator=torch.Generator().manual_seed(0),
            )
            found[name].append(estimate.bits)
    heads = ("photo-electrons a pixel", *(f"{level:g}" for level in levels))
    rows = [(name, *(f"{bits:.0f}" for bits in values)) for name, values in found.items()]
    best = [max(found, key=lambda name: found[name][index]) for index in range(len(levels))]
    text = report.to_text(report.Table("", heads, tuple(rows))) + f"\nmost bits: {', '.join(best)}\n"
    print(text)
    replace_file(out / "lensless_light.txt", text.encode())
    drawn = Figure(figsize=(8, 4), layout="constrained")
    axis = drawn.subplots()
    for name, values in found.items():
        axis.plot(levels, [value / found["one lens"][k] for k, value in enumerate(values)], "o-", label=name)
    axis.set(xscale="log", xlabel="photo-electrons per pixel", ylabel="bits relative to one lens")
    axis.set_xticks(levels, [f"{level:g}" for level in levels])
    axis.minorticks_off()
    drawn.legend(loc="outside right center", fontsize=8)
    replace_file(out / "lensless_light.png", report.to_png(drawn))
    return found


def show_masks(out: Path) -> None:
    """Every relief or amplitude with the PSF that it makes."""
    found = masks()
    drawn = Figure(figsize=(2 * len(found) / 2, 9), layout="constrained")
    axes = drawn.subplots(4, (len(found) + 1) // 2)
    for axis in axes.ravel():
        axis.set_axis_off()
    for index, (name, mask) in enumerate(found.items()):
        block, column = divmod(index, axes.shape[1])
        encoder = LenslessSensor(mask, 1.0, torch.ones(SCENE, SCENE))
        with torch.no_grad():
            psf = encoder.psf()
        relief = mask.amplitude if float(mask.amplitude.min()) < 1 else mask.height_um
        axes[2 * block, column].imshow(relief.numpy(), cmap="gray")
        axes[2 * block, column].set_title(name.replace(", ", ",\n"), fontsize=7)
        axes[2 * block + 1, column].imshow(psf.sqrt().numpy(), cmap="inferno")
    drawn.suptitle("masks (relief or amplitude), and below each the root of its PSF")
    replace_file(out / "lensless_masks.png", report.to_png(drawn))


class Gain(NamedTuple):
    """Bits gained, one full covariance fitted to each design's measurements of the same digits."""

    before_bits: float
    after_bits: float
    stderr_bits: float

    @property
    def sigmas(self) -> float:
        """Gain over its standard error."""
        return (self.after_bits - self.before_bits) / self.stderr_bits


def design(
    data: Path, out: Path, *, quick: bool, seeds: int, method: str, decoder: UNetDecoder
) -> tuple[Comparison, Gain]:
    """Places of five lenslets that began at random, by information and end to end, at many photons."""
    n_judged, n_design = (60, 60) if quick else (N_JUDGED, 1500)
    scenes, _ = digits(data, n_judged + n_design)
    judged, given = scenes[:n_judged], scenes[n_judged:]
    encoder = LenslessSensor(lenslets(random_places(5, seed=5)), MANY, scenes.double().mean(dim=0), learn=True)
    step_um = 0.05 * encoder.parameter_scale["places_um"]
    start = ImagingSystem(encoder, PoissonGaussianNoise(read_std=READ_ELECTRONS), judged)
    settings = Settings(
        parameters=("places_um",),
        n_steps=8 if quick else 80,
        batch_size=16 if quick else 256,
        objective="gaussian",
        end_to_end_steps=END_TO_END_STEPS,
        end_to_end_rate={"places_um": step_um},
    )
    comparison, _ = compare_designs(
        "lensless",
        start,
        given,
        Reconstruction(judged, data_range=1.0),
        settings,
        quick=quick,
        out=out,
        design_task=Reconstruction(given, data_range=1.0),
        decoder=decoder,
        n_seeds=1 if quick else seeds,
        method=method,
    )
    # The same design again, whose own judge may take little time: that of the rankings follows.
    designed = by_information(start, given, start._replace(scenes=judged[:40]), None, settings, seed=0)
    show_places(encoder.places_um.detach(), designed.parameters["places_um"], out)
    first, last = (_judged(each, start.noise, judged, method) for each in (encoder, designed.encoder))
    gain = Gain(first.estimate.bits, last.estimate.bits, stderr_of_difference_bits(first, last))
    text = (
        f"lensless by {method}, {n_judged} digits: {gain.before_bits:.0f} to {gain.after_bits:.0f} bits, "
        f"{gain.after_bits - gain.before_bits:+.0f} +- {gain.stderr_bits:.0f} ({gain.sigmas:.1f} standard errors)\n"
    )
    print(text)
    replace_file(out / "lensless_gain.txt", text.encode())
    return comparison, gain


@torch.no_grad()
def _judged(encoder: Callable[[Tensor], Tensor], noise: Any, scenes: Tensor, method: str) -> Judged:
    mean = encoder(scenes).double()
    measured = noise.sample(mean, torch.Generator().manual_seed(0))
    return judge(measured, noise, mean=mean, method=method, generator=torch.Generator().manual_seed(0))


def show_places(first: Tensor, last: Tensor, out: Path) -> None:
    """Middles of the lenslets on the mask, before and after."""
    drawn = Figure(figsize=(5, 4.5), layout="constrained")
    axis = drawn.subplots()
    before, after = first.numpy(), last.numpy()
    for places, mark, label in ((before, "o", "start"), (after, "s", "designed by information")):
        axis.plot(places[:, 1], places[:, 0], mark, label=label)
    for one, other in zip(before.tolist(), after.tolist(), strict=True):
        axis.plot((one[1], other[1]), (one[0], other[0]), color="0.7", lw=1, zorder=0)
    half = 0.5 * MASK * HALF_PIXEL_UM
    axis.set(
        xlim=(-half, half), ylim=(half, -half), aspect="equal", xlabel="column on the mask (um)", ylabel="row (um)"
    )
    axis.legend(fontsize=8)
    replace_file(out / "lensless_places.png", report.to_png(drawn))


# Fewer do not fix a covariance of 400 pixels.
N_JUDGED = 2500
# Over the last fifth of them the validation loss falls by some 2 %.
END_TO_END_STEPS = 800


def run(out: Path, data: Path, *, quick: bool, seeds: int) -> dict[str, Any]:
    """Masks, both rankings, the light between them, and the design; what the summary file says."""
    out.mkdir(parents=True, exist_ok=True)
    # A covariance of 400 pixels takes more scenes than a look at whether all runs.
    scenes, source = digits(data, 60 if quick else 1800)
    method = "stationary_gaussian" if quick else "gaussian"
    network = UNetDecoder(channels=8, n_steps=3 if quick else 150, initial="linear")
    print(f"scenes: {source}\n")
    show_masks(out)
    found: dict[str, Any] = {"scenes": source}
    metrics = standard_metrics((1, SCENE, SCENE), samples_per_pixel=2) | {"autocorrelation_peak": autocorrelation_peak}
    metrics |= {name: once(metric) for name, metric in metrics.items() if name != "snr_db"}

    def rank(photons: float, decoder: Decoder, name: str, n_seeds: int, bound: bool = True) -> None:
        result = run_study(
            name,
            cameras(scenes, photons, masks()),
            Reconstruction(scenes, data_range=1.0),
            metrics,
            quick=quick,
            out=out,
            decoder=decoder,
            n_seeds=n_seeds,
            method=method,
            bound=bound,
            extra={"scenes": source, "equal": "light on the sensor", "photo_electrons_per_pixel": photons},
        ).result
        found[name] = {
            "light": {row.design: row.light for row in result.rows},
            "bits": result.mean("bits"),
            "psnr": result.mean("psnr"),
        }

    for photons in (FEW, MANY):
        rank(photons, LinearDecoder(), f"lensless_{photons:g}_photons", 1 if quick else seeds)
    found["light"] = {"levels": _SWEEP, "bits": sweep(scenes, out, method)}
    comparison, gain = design(data, out, quick=quick, seeds=seeds, method=method, decoder=network)
    found["design"] = asdict(comparison) | {"gain": gain._asdict() | {"sigmas": gain.sigmas}}
    # Whether a decoder that knows digits better ranks the masks otherwise.
    rank(MANY, LinearDecoder() if quick else network, f"lensless_{MANY:g}_photons_network", 1, bound=False)
    replace_file(out / "lensless.json", json.dumps(found, indent=2).encode())
    return found


def main() -> None:
    """Everything of the study, and its files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for tables, figures and JSON")
    parser.add_argument("--quick", action="store_true", help="few scenes, steps and seeds, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3, help="splits, noise draws and decoders per design")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder that holds mnist/")
    given = parser.parse_args()
    torch.set_num_threads(1)
    run(given.out, given.data, quick=given.quick, seeds=given.seeds)


if __name__ == "__main__":
    main()
