"""What the demo says: tables, findings in words, and the report around the figures."""

from __future__ import annotations

from collections.abc import Mapping

from bitlens import __version__
from bitlens.datasets import FITTING_SCENES, REPORTING_SCENES
from bitlens.demo.study import (
    DESIGN_PHOTONS,
    READ_STD_ELECTRONS,
    START_DEFOCUS_WAVES,
    Study,
    paired_gain,
)
from bitlens.design import DesignResult
from bitlens.estimators import InformationEstimate
from bitlens.report import Picture, Report, Section, Table


def with_interval(estimate: InformationEstimate) -> str:
    """Bits per pixel and their interval, as "1.492 [1.17, 1.81]"."""
    value = f"{estimate.bits_per_pixel:.3f}"
    interval = estimate.confidence_interval_bits_per_pixel
    return value if interval is None else f"{value} [{interval[0]:.2f}, {interval[1]:.2f}]"


def with_error(result: DesignResult) -> str:
    """The gain in bits per pixel and its standard error, as "+0.412 (0.031)"."""
    error = result.gain_stderr_bits_per_pixel
    return f"{result.gain_bits_per_pixel:+.3f}" + ("" if error is None else f" ({error:.3f})")


def tables(study: Study) -> tuple[Table, Table]:
    """Designs against light, and the two design runs."""
    light = Table(
        "Bits per pixel with 95 % intervals: three designs, three light levels",
        ("design", *(f"{photons:g} photons" for photons in study.photons)),
        tuple((name, *(with_interval(e) for e in row)) for name, row in study.estimates.items()),
    )
    runs = Table(
        f"Two designs at {DESIGN_PHOTONS:g} photons, bits per pixel with 95 % intervals; bounds in bits per image",
        ("design", "before", "after", "gain (standard error)", "lower bound / its ceiling", "upper bound"),
        (_run("pupil, from aberrations", study.pupil), _run("free phase mask, from in focus", study.phase)),
    )
    return light, runs


def _run(name: str, result: DesignResult) -> tuple[str, ...]:
    after = result.after
    return (
        name,
        with_interval(result.before),
        with_interval(after),
        with_error(result),
        "none" if after.lower_bits is None else f"{after.lower_bits:.2f} / {after.ceiling_bits:.2f}",
        "none" if after.upper_bits is None else f"{after.upper_bits:.0f}",
    )


def findings(study: Study) -> tuple[str, str]:
    """What came of the two designs, one sentence each."""
    gain = study.pupil.gain_bits_per_pixel
    error = study.pupil.gain_stderr_bits_per_pixel
    certainty = f" ({gain / error:.1f} standard errors)" if error else ""
    pupil = (
        f"The designed pupil gains {gain:.3f} bits per pixel{certainty} over the aberrated lens and "
        f"reaches {100 * study.pupil_share_of_in_focus:.1f} % of the camera in focus."
    )
    found = "A phase mask was found" if study.phase_mask_gains else "No phase mask was found"
    gain, error = paired_gain(study.phase_gain_by_image)
    phase = (
        f"{found} that carries more bits than the lens in focus: {study.phase.gain_bits_per_pixel:+.4f} bits per pixel "
        f"as judged, and {gain:+.5f} (standard error {error:.5f}) by the Gaussian closed form image by image."
    )
    return pupil, phase


def make_report(study: Study, pictures: Mapping[str, Picture]) -> Report:
    """The report of a study around its figures."""
    light, runs = tables(study)
    about_pupil, about_phase = findings(study)
    settings = study.settings
    size = settings.patch_pixels
    return Report(
        title="How many bits about the scene does a camera's measurement carry?",
        opening=(
            f"Three designs of one camera look at {settings.n_patches} random patches of {size} x {size} pixels from "
            f"{len(REPORTING_SCENES)} real images; then two more designs are found by climbing the information itself, "
            f"on {len(FITTING_SCENES)} other images. Every number below is bits per pixel that the measurement carries "
            "about the scene, before any algorithm has touched it."
        ),
        sections=(
            Section(
                "Three designs",
                (
                    "A lens of f/8 at 550 nm before pixels of 3.45 µm; the sensor has a read noise of "
                    f"{READ_STD_ELECTRONS:g} electrons. The three differ in focus and aperture at equal exposure "
                    "time, so half the aperture gets a quarter of the light; the photon level is that of the full "
                    "aperture.",
                ),
                (light,),
                (pictures["bits_against_photons"], pictures["psf"], pictures["measurements"]),
            ),
            Section(
                "A pupil designed by information",
                (
                    f"The start has {START_DEFOCUS_WAVES:g} wave of defocus and astigmatism, coma, trefoil and "
                    "spherical aberration. Defocus and seven Zernike coefficients may change. No sharp picture, no "
                    "target and no decoder takes part: only the bits in the measurement.",
                    about_pupil,
                ),
                (runs,),
                (pictures["before_after_pupil"], pictures["history_pupil"]),
                study.pupil.warnings,
            ),
            Section(
                "A free phase mask",
                (
                    "Starting from the lens in focus, every sample of a phase mask in the pupil may change by up "
                    "to half a wave.",
                    about_phase,
                    "The bits as judged are upper bounds at both ends, and how tight they are changes with the images: "
                    "such a gain may lie further from the truth than its standard error, so the mask counts as found "
                    "only if the closed form finds a gain too.",
                    "Theory expects none of the estimate used here: a phase mask lowers the modulation transfer at "
                    "every frequency or leaves it as it is, and for stationary Gaussian statistics and equal light "
                    "less contrast never means more bits. A straight ramp over the mask only shifts the image.",
                ),
                (),
                (pictures["before_after_phase_mask"], pictures["history_phase_mask"]),
                study.phase.warnings,
            ),
            Section(
                "How to read the numbers",
                (
                    "Bits are about which scene it was, drawn from these images; other scenes have other bits.",
                    "The values are upper bounds: the entropy of the noise is exact, that of the measurements is the "
                    "cross-entropy of a Gaussian density that was fitted to other images than those it is judged on. "
                    "Real images are not Gaussian, so the truth may lie well below; comparisons between designs on the "
                    "same scenes are firmer than the values.",
                    "The lower bound, from the known noise alone, cannot pass the logarithm of the number of "
                    "independent scenes. It stands at that ceiling here and only says that the scenes can be told "
                    "apart.",
                    "The intervals are statistical, over the reporting images, and wide because images differ. The "
                    "standard error of a gain is far smaller: it is taken from the gain of each image, since both "
                    "ends of a design see the same scenes with the same noise draws.",
                ),
                notes=study.in_focus.warnings,
            ),
        ),
        footer=(
            f"bitlens {__version__}, backend {study.in_focus.backend}, seed {settings.seed}, {study.seconds:.0f} s. "
            f"Fitted on {', '.join(FITTING_SCENES)}; reported on {', '.join(REPORTING_SCENES)} "
            "(scikit-image, scikit-learn)."
        ),
    )
