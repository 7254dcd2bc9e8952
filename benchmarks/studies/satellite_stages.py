"""Push-broom imagers: delay stages, lost synchronism, aperture and bands, at equal light and at equal scan time.

A line sensor in orbit reads blue, green and red radiance through one telescope; orbit, ground sample and line time are
those of all designs. What a design may choose is how many stages add up the light of a place, how well they follow it,
the aperture, and the bands. The rule of both lists, laid down before their scores: around one reference (16 stages that
follow the ground, f/20, bands of 60 nm) what the list lets differ is made better and worse, alone and together. At
equal light, set by neutral filters, that is sharpness (slip, drift, diffraction) and colour (where the bands are); at
equal scan time it is the light as well: stages, aperture and width bring it, from 0.06 to 4 times the reference's.

Scenes: Landsat 7 (radiance by the calibration of its high gain) and Sentinel 2 (from reflectance), regions that share
no pixel, three samples of either per pixel; bundled photographs where these are absent. Asked for is the mean radiance
within each pixel in the three bands. A band between or beside those of the data is interpolated from them.
Bits by the stationary Gaussian: a line that moves over the ground treats all places alike, and of the densities it
promises least, which for an upper bound is best; full covariances and mixtures have more parameters than there are
independent regions.

Scores: a survey serves users who do not ask for the same: one reads brightness, another the difference of two bands, a
third edges. So the lists are scored by decoded bits, which weigh all components of the radiance alike on a scale of
their own, by a linear decoder that treats all places alike, as the density does; and by the squared error over all
bands, of a U-Net. Axes and decoder of the decoded bits were chosen by how much they decode of six designs, no ranking
of them having been looked at; that the squared error ranks otherwise was known by then.

Designed by information: synchronism, and how a total width is shared among the bands, by gradients; the number of
stages of a line whose clock and heading are off, by choice from a list.

What was found: at equal light bits rank the designs as decoded bits do, and better than every other figure. The squared
error ranks otherwise, and no decoder or estimate of the bits mends it: of an oracle, the best linear decoder with its
covariances known, bits and error correlate as little as here, bits and those about the target fully. Colour that is
lost by bands that lie close is few components with large errors, sharpness that is lost is many with small ones. The
mean over bands of the logarithm of the error ranks as the error of all, each band being a mixture of the components.
The SNR ranks the squared error well at equal light, since blur and close bands lower the mean square of the signal a
little.
At equal scan time decoded bits, too, are ranked less well, since errors hang together between components. That was
found on held-out regions with one band, no detail within the pixels and a decoder that knows optics and covariance. It
decodes little more and ranks the same, so neither detail that sampling folds over nor the decoder is why, and up to a
quarter of the bits are about places that blur brings in. But where there is much light and blur the errors of different
components are correlated, and the sum, which takes each alone, falls to seven tenths of the log determinant. The log
score of that decoder with its error's covariance, which sees them together, is ranked nearly without fault. Information
chooses more stages of a line that slips than the squared error does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _decoded_bits import SCORE, StationaryDecoder, oracle, with_decoded_bits, write
from _design_study import Settings, compare_designs
from _satellite_imager import (
    OVERSAMPLING,
    READ_ELECTRONS,
    Design,
    Scenes,
    imager,
    light,
    pixel_radiance,
    read_scenes,
)
from _validation_study import Metric, arguments, run_study, standard_metrics
from torch import Tensor

from bitlens import estimate_information
from bitlens._files import replace_file
from bitlens.design import Box, Total
from bitlens.systems import ImagingSystem
from bitlens.systems.satellite_imager import SatelliteImager
from bitlens.validation import Reconstruction, UNetDecoder, WienerDecoder, point_response

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
# Of the reference's light, in the list of equal light: what f/40 leaves.
LIGHT_SHARE = 0.25
N_SCENES, ORACLE_SCENES = 800, 3000
METHOD = "stationary_gaussian"
TOTAL_WIDTH_NM = 180.0
# Less at the Nyquist frequency counts as none.
LEAST_TRANSFER = 0.01
STAGES = (1, 2, 4, 8, 16, 32, 64)
# Rows and columns that the image leaves the charge in each stage, where the number of stages is to be chosen.
SLIP_A_STAGE = 0.03

CLOSE_NM, PANCHROMATIC_NM = (540.0, 560.0, 580.0), (575.0, 575.0, 575.0)
EQUAL_LIGHT = {
    "in step, f/20": Design(),
    "f/30": Design(f_number=30.0),
    "f/40": Design(f_number=40.0),
    "1 row of slip": Design(row_slip=1.0),
    "2 rows of slip": Design(row_slip=2.0),
    "2 columns of drift": Design(column_slip=2.0),
    "1 of slip and drift": Design(row_slip=1.0, column_slip=1.0),
    "2 of slip and drift": Design(row_slip=2.0, column_slip=2.0),
    "f/30, 1 row of slip": Design(f_number=30.0, row_slip=1.0),
    "f/40, 2 rows of slip": Design(f_number=40.0, row_slip=2.0),
    "close bands": Design(center_nm=CLOSE_NM),
    "close bands, 2 rows of slip": Design(center_nm=CLOSE_NM, row_slip=2.0),
    "close bands, f/40": Design(center_nm=CLOSE_NM, f_number=40.0),
    "panchromatic lines": Design(center_nm=PANCHROMATIC_NM, width_nm=(240.0, 240.0, 240.0)),
}
EQUAL_TIME = {
    "single line": Design(stages=1),
    "4 stages": Design(stages=4),
    "16 stages": Design(),
    "64 stages": Design(stages=64),
    "4 stages, 1 row of slip": Design(stages=4, row_slip=1.0),
    "16 stages, 1 row of slip": Design(row_slip=1.0),
    "16 stages, 2 rows of slip": Design(row_slip=2.0),
    "64 stages, 2 rows of slip": Design(stages=64, row_slip=2.0),
    "16 stages, 2 columns of drift": Design(column_slip=2.0),
    "64 stages, 2 of slip and drift": Design(stages=64, row_slip=2.0, column_slip=2.0),
    "16 stages, f/30": Design(f_number=30.0),
    "16 stages, f/40": Design(f_number=40.0),
    "bands of 15 nm": Design(width_nm=(15.0, 15.0, 15.0)),
    "bands of 150 nm": Design(width_nm=(150.0, 150.0, 150.0)),
    "bands close together": Design(center_nm=CLOSE_NM),
    "three panchromatic lines": Design(center_nm=PANCHROMATIC_NM, width_nm=(240.0, 240.0, 240.0)),
}


def equal_light(radiance: Tensor) -> dict[str, ImagingSystem]:
    """The designs behind neutral filters that leave each the same light."""
    full = {name: light(imager(design, radiance)) for name, design in EQUAL_LIGHT.items()}
    level = LIGHT_SHARE * full["in step, f/20"]
    return {
        name: imager(design, radiance, transmission=0.7 * level / full[name]) for name, design in EQUAL_LIGHT.items()
    }


def equal_time(radiance: Tensor) -> dict[str, ImagingSystem]:
    """The designs as they are."""
    return {name: imager(design, radiance) for name, design in EQUAL_TIME.items()}


def metrics() -> dict[str, Metric]:
    """MTF50, SNR and condition number; the transfer at the Nyquist frequency, and its product with the SNR."""

    def shape(system: ImagingSystem, pixels: int) -> tuple[int, int, int]:
        encoder = system.encoder
        assert isinstance(encoder, SatelliteImager)
        return (3, *encoder.scene_size(pixels, pixels))

    def nyquist(system: ImagingSystem) -> float:
        response = point_response(system.encoder, shape(system, 12), samples_per_pixel=OVERSAMPLING)
        transfer = torch.fft.fft2(response / response.sum()).abs()
        quarter = response.shape[0] // (2 * OVERSAMPLING)
        along = float(transfer[quarter, 0] + transfer[0, response.shape[1] // (2 * OVERSAMPLING)])
        return max(LEAST_TRANSFER, 0.5 * along)

    def standard(name: str, pixels: int) -> Metric:
        return lambda system: standard_metrics(shape(system, pixels), samples_per_pixel=OVERSAMPLING)[name](system)

    signal = standard("snr_db", 12)
    return {
        "mtf50": standard("mtf50", 12),
        "snr_db": signal,
        "condition_number": standard("condition_number", 4),
        "transfer at Nyquist": nyquist,
        "SNR x transfer": lambda system: nyquist(system) * 10 ** (signal(system) / 20),
    }


def choose_stages(
    scenes: Scenes, slip_a_stage: float, numbers: Sequence[int] = STAGES, seed: int = 0
) -> dict[int, dict[str, float]]:
    """Bits of each number of stages of a line that is off by as much a stage, and the PSNR of a Wiener estimate."""
    found = {}
    target = pixel_radiance(scenes.radiance)
    test = scenes.groups % 4 == 0
    for stages in numbers:
        system = imager(Design(stages=1) if stages == 1 else _slipping(stages, slip_a_stage), scenes.radiance)
        with torch.no_grad():
            mean = torch.cat([system.encoder(part) for part in system.scenes.split(64)])
            measured = system.noise.sample(mean, torch.Generator().manual_seed(seed))  # type: ignore[operator]
        estimate = estimate_information(
            measured,
            system.noise,  # type: ignore[arg-type]
            mean=mean,
            method=METHOD,
            groups=scenes.groups,
            generator=torch.Generator().manual_seed(seed),
        )
        decoder = WienerDecoder().fit(
            measured[~test],
            target[~test],
            groups=scenes.groups[~test],
            generator=torch.Generator().manual_seed(seed),
        )
        score = Reconstruction(target).score(decoder(measured[test]), target[test], data_range=float(target.max()))
        found[stages] = {"bits": estimate.bits, "stderr_bits": estimate.stderr_bits, "psnr": score["psnr"]}
    return found


def _slipping(stages: int, slip_a_stage: float) -> Design:
    return Design(stages=stages, row_slip=slip_a_stage * stages, column_slip=slip_a_stage * stages)


def run(out: Path, data: Path, *, quick: bool, seeds: int) -> dict[str, Any]:
    """Both lists, the choice of stages and the design by gradients; what the summary file says."""
    scenes = read_scenes(data, 40 if quick else N_SCENES)
    target = pixel_radiance(scenes.radiance)
    decoder = UNetDecoder(n_steps=3 if quick else 200)
    print(f"scenes: {scenes.source}\n")
    lists = {
        "satellite_equal_light": (equal_light, "light"),
        "satellite_equal_time": (equal_time, "scan time; light is not"),
    }
    found: dict[str, Any] = {"scenes": scenes.source}
    for name, (build, equal) in lists.items():
        systems = build(scenes.radiance)
        extra = {"scenes": scenes.source, "equal": equal}
        result = run_study(
            name,
            systems,
            Reconstruction(target),
            metrics(),
            quick=quick,
            out=out,
            groups=scenes.groups,
            decoder=decoder,
            n_seeds=1 if quick else seeds,
            method=METHOD,
            bound=not quick,
            extra=extra,
        ).result
        # The joint covariance is that of 864 values: not for a short run.
        linear = WienerDecoder() if quick else StationaryDecoder()
        decoded = with_decoded_bits(result, systems, target, linear, scenes.groups)
        many = read_scenes(data, 40 if quick else ORACLE_SCENES, seed=1)
        wanted = pixel_radiance(many.radiance)
        limits = {
            each: oracle(system, wanted, read_electrons=READ_ELECTRONS) for each, system in build(many.radiance).items()
        }
        write(f"{name}_decoded", decoded, limits, out, extra)
        found[name] = {
            "light": {row.design: row.light for row in result.rows},
            "bits": result.mean("bits"),
            "psnr": result.mean("psnr"),
            SCORE: decoded.mean(SCORE),
        }
    chosen = choose_stages(scenes, SLIP_A_STAGE, STAGES[::3] if quick else STAGES)
    best = {by: max(chosen, key=lambda stages: chosen[stages][by]) for by in ("bits", "psnr")}
    lines = [f"stages of a line that is off by {SLIP_A_STAGE} rows and columns a stage"]
    lines += [
        f"  {stages:>2}: {value['bits']:.0f} +- {value['stderr_bits']:.0f} bits, {value['psnr']:.2f} dB"
        for stages, value in chosen.items()
    ]
    lines += [f"  chosen by information: {best['bits']}; best for the squared error: {best['psnr']}", ""]
    print("\n".join(lines))
    replace_file(out / "satellite_chosen_stages.txt", "\n".join(lines).encode())
    found["stages"] = {"slip_a_stage": SLIP_A_STAGE, "of": chosen, "best": best}
    found["design"] = design(scenes, out, quick=quick, seeds=seeds)
    replace_file(out / "satellite_stages.json", json.dumps(found, indent=2).encode())
    return found


START = Design(row_slip=1.6, column_slip=1.0)


def design(scenes: Scenes, out: Path, *, quick: bool, seeds: int) -> dict[str, Any]:
    """Synchronism and the shares of the total width of the bands, from a line that is off and even shares."""
    names = ("width_nm", "mismatch_pixels", "drift_pixels")
    judged = scenes.groups % 2 == 0
    start = imager(START, scenes.radiance, learn=names)
    comparison, _ = compare_designs(
        "satellite",
        start._replace(scenes=start.scenes[judged]),
        start.scenes[~judged],
        Reconstruction(pixel_radiance(scenes.radiance[judged])),
        Settings(
            constraints={"width_nm": (Box(lower=5.0), Total(TOTAL_WIDTH_NM))},
            n_steps=30,
            batch_size=8 if quick else 256,
            objective="gaussian",
        ),
        quick=quick,
        out=out,
        groups=scenes.groups[judged],
        decoder=UNetDecoder(n_steps=3 if quick else 200),
        n_seeds=1 if quick else seeds,
        method=METHOD,
    )
    return {
        "gain_bits": comparison.gain_bits,
        "gain_stderr_bits": comparison.gain_stderr_bits,
        "gain_sigmas": comparison.gain_sigmas,
        "scores": comparison.scores,
        "score_gain": comparison.score_gain,
    }


def main() -> None:
    """Both lists, the designs, and their files."""
    given = arguments(__doc__, DATA, "satellite/")
    torch.set_num_threads(given.threads)
    run(given.out, given.data, quick=given.quick, seeds=given.seeds)


if __name__ == "__main__":
    main()
