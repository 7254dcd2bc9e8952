"""Calibration and noise checks on frames of real detectors: a table, a figure and JSON for each.

    python benchmarks/studies/real_detectors.py [STUDY ...] [--data FOLDER] [--out FOLDER]

Studies: tomography (flats and darks of a synchrotron camera), ccd (one frame of the night sky), scmos (measured maps
of gain and read noise, frames simulated from them), fluorescence (noisy frames and averages of 50). A study whose
data is absent says so and is skipped.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from bitlens import CalibrationResult, NoiseCheck, PoissonGaussianNoise, calibrate, check_noise, ops, plots, report
from bitlens.report import Table

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Result = tuple[Table, Figure, dict[str, Any]]
ROOT = Path(__file__).resolve().parents[2]


def tomography(data: Path) -> Result:
    """Ten flats and ten darks: does one gain serve the detector, and are its pixels independent?"""
    import h5py

    with h5py.File(data / "ct" / "tooth.h5") as file:
        flats, darks = file["exchange/data_white"][:], file["exchange/data_dark"][:]
    result = calibrate(flats, darks)
    check = check_noise(result.noise, flats)
    rows = [_calibrated("whole detector", result)]
    for name, half in (("left half", slice(0, 320)), ("right half", slice(320, 640))):
        rows.append(_calibrated(name, calibrate(flats[..., half], darks[..., half])))
    table = Table("", ("part", "gain, ADU/e", "± 1 sd", "offset, ADU", "read noise, ADU"), tuple(rows))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    plots.photon_transfer(result, left)
    _histogram(right, check, "flats under the calibrated model")
    return table, figure, {"calibration": result.to_dict(), "check": check.to_dict()}


def ccd(data: Path) -> Result:
    """Even and odd columns of empty sky stand for two repeats: the gain in the header against that of the noise."""
    sky, header_gain = _fits(data / "astro" / "sep_image.fits")
    tiles = np.stack([sky[:, 0::2], sky[:, 1::2]]).reshape(2, 32, 8, 16, 8).swapaxes(2, 3).reshape(2, -1, 64)
    middle = np.median(sky)
    deviation = 1.4826 * np.median(np.abs(sky - middle))
    empty = tiles[:, (tiles < middle + 4.5 * deviation).all(axis=(0, 2))]
    rows, fields = [], {"header_gain": header_gain, "tiles": int(empty.shape[1])}
    claimed = check_noise(PoissonGaussianNoise(header_gain, 0.0, read_std=5.0), empty)
    gains = {"of the header": header_gain, "of the noise": header_gain * claimed.dispersion}
    checks = {}
    for name, gain in gains.items():
        check = checks[name] = check_noise(PoissonGaussianNoise(gain, 0.0, read_std=5.0), empty)
        rows.append((name, f"{gain:.3f}", f"{check.dispersion:.3f} ± {check.dispersion_stderr:.3f}", _verdict(check)))
        fields[f"gain {name}"] = {"gain": gain, "check": check.to_dict()}
    table = Table("", ("gain", "ADU/e", "variance / predicted", "verdict"), tuple(rows))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(sky, cmap="gray", vmin=middle - 3 * deviation, vmax=middle + 8 * deviation)
    left.set(title="sky", xlabel="column, pixels", ylabel="row, pixels")
    _histogram(right, checks["of the noise"], "empty sky, gain of the noise")
    return table, figure, fields


def scmos(data: Path) -> Result:
    """Frames simulated from measured maps: how well maps come back, and what one gain for all pixels costs."""
    with np.load(data / "detector" / "scmos_gain_variance_maps.npz") as maps:
        gain, variance = (maps[name][100:228, 100:228].astype(np.float64) for name in ("gain", "variance"))
    read_std = np.sqrt(variance)
    generator = np.random.default_rng(0)

    def expose(electrons: float, n_frames: int) -> Array:
        counts = generator.poisson(electrons, (n_frames, *gain.shape))
        return gain * counts + 100 + read_std * generator.standard_normal(counts.shape)

    flats, darks, repeats = expose(200, 240), expose(0, 60), expose(5, 20)
    scalar, found = calibrate(flats[:20], darks[:20]).noise, calibrate(flats, darks).noise_maps
    assert found is not None
    truth = PoissonGaussianNoise(gain, 100.0, read_std=read_std)
    rows, fields = [], {}
    for name, noise in (("true maps", truth), ("calibrated maps", found), ("one gain for all", scalar)):
        check = check_noise(noise, repeats)
        dispersion = f"{check.dispersion:.3f} ± {check.dispersion_stderr:.3f}"
        shift = f"{check.information_shift.read_std:+.4f}"
        rows.append((name, dispersion, shift, _verdict(check)))
        fields[name] = check.to_dict()
    recovered = found.gain.numpy()
    fields["relative error of the gain map"] = {
        "median": float(np.median(recovered / gain) - 1),
        "sd": float(np.std(recovered / gain)),
    }
    table = Table("", ("model", "variance / predicted", "bits/pixel per +5 % read noise", "verdict"), tuple(rows))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, true, ours, name in zip(
        figure.subplots(1, 2),
        (gain, read_std),
        (recovered, found.read_std.numpy()),
        ("gain", "read noise"),
        strict=True,
    ):
        unit = "ADU/e" if name == "gain" else "ADU"
        ends = [true.min(), true.max()]
        draw = axes.plot if name == "gain" else axes.loglog
        draw(true.ravel(), ours.ravel(), ".", markersize=2, alpha=0.4)
        draw(ends, ends, "k-", linewidth=1, label="equal")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(frameon=False)
        axes.set(xlabel=f"measured {name}, {unit}", ylabel=f"recovered {name}, {unit}", title=f"{name} of each pixel")
    return table, figure, fields


def fluorescence(data: Path) -> Result:
    """A noisy frame beside the average of 50: the photon-transfer line, and whether Poisson-Gaussian is the noise.

    Both the line (slope of the variance) and the likelihood (exact, all three parameters) give a gain. They agree
    where the model is right. Its parameters are fitted on the upper half of the image and judged on the lower one.
    They part where one electron gives a spread of values, as in a photomultiplier, or values were processed.
    """
    with np.load(data / "fluorescence" / "fmd_noisy_clean_pairs.npz") as pairs:
        images = {"confocal": (pairs["confocal_fish_noisy"], pairs["confocal_fish_avg50"])}
        for channel, colour in enumerate(("red", "green", "blue")):
            both = (pairs[f"widefield_bpae_{kind}"][..., channel] for kind in ("noisy", "avg50"))
            images[f"widefield, {colour}"] = tuple(both)  # type: ignore[assignment]
    rows, fields = [], {}
    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, (name, (noisy, average)) in zip(figure.subplots(2, 2).ravel(), images.items(), strict=True):
        pair = noisy.astype(np.float64), average.astype(np.float64)
        mean, variance, error = _transfer(*pair)
        # Chosen by the average: what a noisy value itself decides would bias the fit.
        usable = (pair[1] >= mean.min()) & (pair[1] <= mean.max())
        slope, intercept = np.polyfit(mean, variance, 1, w=1 / error)
        upper, lower = (
            tuple(image[half] for image in (*pair, usable)) for half in (slice(None, 256), slice(256, None))
        )
        noise = _most_likely(*upper, gain=max(float(slope), 0.5))
        misfit, misfit_error, dispersion = _misfit(noise, *lower)
        gain, offset, read_std = (float(part) for part in (noise.gain, noise.offset, noise.read_std))
        predicted = gain * np.maximum(mean - offset, 0) + read_std**2
        bends = float(np.max(np.abs(variance / predicted - 1)))
        fits = abs(misfit) < max(0.02, 5 * misfit_error) and abs(dispersion - 1) < 0.05 and bends < 0.2
        rows.append(
            (
                name,
                f"{slope:.2f}",
                f"{gain:.2f}",
                f"{offset:.1f}",
                f"{read_std:.2f}",
                f"{dispersion:.3f}",
                f"{misfit:+.3f} ± {misfit_error:.3f}",
                _in_words(fits, gain / float(slope)),
            )
        )
        fields[name] = {
            "gain_of_the_line": float(slope),
            "gain": gain,
            "offset": offset,
            "read_std": read_std,
            "dispersion_of_the_other_half": dispersion,
            "misfit_nats_per_pixel": misfit,
            "misfit_stderr": misfit_error,
            "largest_relative_distance_from_the_line": bends,
            "fits": bool(fits),
        }
        axes.errorbar(mean, variance, yerr=1.96 * error, fmt="o", markersize=4, label="noisy - average")
        line = np.linspace(0, mean.max(), 50)
        axes.plot(line, slope * line + intercept, label=f"line, gain {slope:.3g}")
        axes.plot(line, gain * np.maximum(line - offset, 0) + read_std**2, "--", label=f"likelihood, gain {gain:.3g}")
        axes.set(title=name, xlabel="mean of 50, ADU", ylabel="variance, ADU²", ylim=(0, None))
        axes.legend(frameon=False)
    columns = (
        "image",
        "gain, line",
        "gain",
        "offset",
        "read noise",
        "variance / predicted",
        "misfit, nats/pixel",
        "verdict",
    )
    return Table("", columns, tuple(rows)), figure, fields


def _in_words(fits: bool, gain_over_line: float) -> str:
    """Where the light spans a narrow range, gain, offset and read noise cannot be told apart."""
    if not fits:
        return "does not fit"
    return "fits" if 0.7 < gain_over_line < 1.4 else "fits, gain not determined"


def _transfer(noisy: Array, average: Array) -> tuple[Array, Array, Array]:
    """Mean, variance and its error in classes of brightness that the ends of the scale do not touch."""
    classes = np.digitize(average.ravel(), np.unique(np.round(np.quantile(average, np.linspace(0, 1, 41)))))
    residual, level = (noisy - average).ravel(), average.ravel()
    ends = (noisy.ravel() <= 0) | (noisy.ravel() >= 255)
    rows = []
    for number in np.unique(classes):
        here = classes == number
        if here.sum() < 400 or ends[here].mean() > 1e-3:
            continue
        square = (residual[here] - residual[here].mean()) ** 2
        rows.append((level[here].mean(), square.mean(), square.std() / math.sqrt(here.sum())))
    mean, variance, error = np.array(rows).T
    # A frame that is one of the 50 differs from their average by 49/50 of its variance.
    return mean, variance / 0.98, error / 0.98


def _most_likely(noisy: Array, average: Array, usable: Mask, gain: float) -> PoissonGaussianNoise:
    """Gain, offset and read noise that make the noisy frame most likely, by the exact gradient of the likelihood.

    Their variance is that about the average of 50 with this frame among them, 2 % below that of a frame.
    """
    z, level = (torch.from_numpy(image[usable][::4].copy()) for image in (noisy, average))
    start = [math.log(gain), 0.5 * float(level.min()), 0.0]
    parameters = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], lr=0.5, max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        log_gain, offset, log_read_std = parameters
        electrons = ((level - offset) / log_gain.exp()).clamp(min=1e-3)
        value = ops.poisson_gaussian_log_prob(
            z, electrons, gain=log_gain.exp(), offset=offset, read_std=log_read_std.exp().clamp(min=0.3)
        )
        total = -value.mean()
        total.backward()
        return total

    optimizer.step(loss)
    log_gain, offset, log_read_std = parameters.tolist()
    return PoissonGaussianNoise(math.exp(log_gain), offset, read_std=max(math.exp(log_read_std), 0.3))


def _misfit(noise: PoissonGaussianNoise, noisy: Array, average: Array, usable: Mask) -> tuple[float, float, float]:
    """Mean of log p + entropy, its error over rows, and the variance over that predicted."""
    mean = torch.from_numpy(((average - float(noise.offset)) / float(noise.gain)).clip(0))
    nats = (noise.log_prob(torch.from_numpy(noisy), mean) + noise.entropy(mean)).numpy()
    per_row = np.array([row[chosen].mean() for row, chosen in zip(nats, usable, strict=True) if chosen.any()])
    predicted = noise.variance(mean).numpy()[usable].mean()
    dispersion = float(((noisy - average)[usable] ** 2).mean() / predicted)
    return float(per_row.mean()), float(per_row.std(ddof=1) / math.sqrt(per_row.size)), dispersion


def _calibrated(name: str, result: CalibrationResult) -> tuple[str, ...]:
    noise = result.noise
    gain, offset, read_std = (float(part) for part in (noise.gain, noise.offset, noise.read_std))
    return name, f"{gain:.3f}", f"{result.standard_errors.gain:.3f}", f"{offset:.1f}", f"{read_std:.2f}"


def _verdict(check: NoiseCheck) -> str:
    return "fits" if check.fits else check.findings[0].split(":")[0]


def _histogram(axes: Axes, check: NoiseCheck, title: str) -> None:
    axes.bar(np.arange(10) / 10 + 0.05, 10 * np.array(check.pit_histogram), width=0.09)
    axes.axhline(1, color="black", linewidth=1)
    axes.set(title=title, xlabel="probability-integral transform", ylabel="density (1 is right)", xlim=(0, 1))


def _fits(path: Path) -> tuple[Array, float]:
    """Pixels and gain of a FITS image of 16-bit integers."""
    raw = path.read_bytes()
    end = raw.index(b"END" + b" " * 77)
    cards = [raw[start : start + 80].decode() for start in range(0, end, 80)]

    def number(key: str) -> float:
        (card,) = (card for card in cards if card.split("=")[0].strip() == key)
        return float(card.split("=")[1].split("/")[0])

    rows, columns = int(number("NAXIS2")), int(number("NAXIS1"))
    pixels = np.frombuffer(raw, ">i2", rows * columns, (end // 2880 + 1) * 2880).reshape(rows, columns)
    return pixels * number("BSCALE") + number("BZERO"), number("HIERARCH ESO DET GAIN")


STUDIES: dict[str, tuple[Callable[[Path], Result], str]] = {
    "tomography": (tomography, "ct/tooth.h5"),
    "ccd": (ccd, "astro/sep_image.fits"),
    "scmos": (scmos, "detector/scmos_gain_variance_maps.npz"),
    "fluorescence": (fluorescence, "fluorescence/fmd_noisy_clean_pairs.npz"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", metavar="STUDY", choices=[*STUDIES, []], help="all by default")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real data")
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for figures and JSON")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.studies or STUDIES:
        study, file = STUDIES[name]
        if not (arguments.data / file).is_file():
            print(f"{name}: skipped, no data at {arguments.data / file}\n")
            continue
        table, figure, fields = study(arguments.data)
        print(f"{name}: {study.__doc__.splitlines()[0]}\n{report.to_text(table)}\n")
        (arguments.out / f"{name}.png").write_bytes(report.to_png(figure))
        (arguments.out / f"{name}.json").write_text(json.dumps(fields, indent=2, allow_nan=False))


if __name__ == "__main__":
    main()
