"""Common mistakes that the inputs of an estimate show, in words: a noise model that does not fit, too few samples.

Each function returns the warnings that hold, most often none; thresholds are set so that honest data of any kind pass.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitlens.estimators._inputs import Groups
from bitlens.noise import GaussianNoise, NoiseCheck, NoiseModel, PoissonGaussianNoise, check_noise
from bitlens.noise.base import LOG_TWO_PI_E

# Scenes whose repeats are looked at; the rest would tell the same.
_MOST_SCENES = 16
_LEVEL = 0.01  # share of right noise models that may be called wrong
# Standard deviations of the noise in the dark that values are below the dark level, and share of such that is chance.
_DARK_SIGMAS, _MOST_BELOW_DARK = 6.0, 1e-3
_FINE_STD = 0.25  # of noise that shows between whole numbers
# Finite-sample excess over the estimate above which its size is a matter of the sample.
_LARGE_EXCESS_SHARE, _LARGE_EXCESS_BITS = 0.15, 1.0
_FEW_FOR_UNKNOWN_EXCESS = 200
# Standard errors beyond which something is said to exceed what the data allow.
_SIGMAS = 4.0
_TO_BITS = 1.0 / math.log(2.0)


# ---- The noise model against repeats ----


def noise_warnings(noise: NoiseModel, repeats: Tensor, image_shape: torch.Size) -> tuple[str, ...]:
    """What repeats of a scene say against `noise`, and how many bits per image it is worth.

    Args:
        repeats: (n_repeats, *image_shape) of one still scene, or (n_scenes, n_repeats, *image_shape), in the unit of
            the sensor.

    Raises:
        TypeError: a noise model of the user's own, which `check_noise` does not know.
        ValueError: another shape, fewer than 2 repeats.
    """
    stacks = _stacks(repeats, image_shape)
    flat = _on_rows(noise, image_shape)
    chosen = torch.linspace(0, len(stacks) - 1, min(len(stacks), _MOST_SCENES)).round().long().tolist()
    level = _LEVEL / len(chosen)
    n_pixels = math.prod(image_shape)
    checks = [check_noise(flat, stacks[scene].numpy(), level=level) for scene in chosen]
    wrong = [check for check in checks if not check.fits]
    if not wrong:
        return ()
    worst = min(wrong, key=lambda check: check.p_value)
    which = "" if len(checks) == 1 else f" for {len(wrong)} of {len(checks)} scenes"
    found = "; ".join(worst.findings) if worst.findings else "their distribution differs from the model's"
    return (f"the noise model does not fit the repeats{which}: {found}. {_worth(checks, wrong[0], n_pixels)}",)


def _worth(checks: list[NoiseCheck], wrong: NoiseCheck, n_pixels: int) -> str:
    """In bits per image: of the variance found against that predicted, and of 5 % of each parameter."""
    said = "The bits cannot be trusted without a noise model that fits"
    if all(check.dispersion > 0.0 for check in checks):
        # The entropy of a pixel is about 0.5 log variance, all else alike; scenes that fit count as the others do.
        shift = sum(0.5 * math.log2(check.dispersion) for check in checks) / len(checks) * n_pixels
        said = f"The variance found puts the estimate about {abs(shift):.3g} bits too {'high' if shift > 0 else 'low'}"
    shifts = wrong.information_shift
    parts = [
        f"{name} {value * n_pixels:+.3g}"
        for name, value in (("gain", shifts.gain), ("offset", shifts.offset), ("read noise", shifts.read_std))
        if value is not None
    ]
    return said + (f"; 5 % more of a parameter moves it by (bits): {', '.join(parts)}" if parts else "")


def _stacks(repeats: Tensor, image_shape: torch.Size) -> Tensor:
    """(n_scenes, n_repeats, row, column) float64, channels one below the other."""
    need = f"(n_repeats, *{tuple(image_shape)}) or (n_scenes, n_repeats, *{tuple(image_shape)})"
    extra = repeats.ndim - len(image_shape)
    if extra not in (1, 2) or repeats.shape[extra:] != image_shape:
        raise ValueError(f"repeats: need shape {need}, got {tuple(repeats.shape)}")
    stacks = repeats if extra == 2 else repeats[None]
    if stacks.shape[0] == 0 or stacks.shape[1] < 2:
        raise ValueError(f"repeats: need at least 2 repeats of a scene, got shape {tuple(repeats.shape)}")
    columns = image_shape[-1]
    return stacks.detach().cpu().to(torch.float64).reshape(*stacks.shape[:2], -1, columns)


def _on_rows(noise: NoiseModel, image_shape: torch.Size) -> NoiseModel:
    """The model for images whose channels lie one below the other."""

    def rows(value: Tensor) -> Tensor:
        value = value.detach().cpu()
        return value if value.numel() == 1 else value.expand(image_shape).reshape(-1, image_shape[-1])

    if isinstance(noise, GaussianNoise):
        return GaussianNoise(rows(noise.std))
    if isinstance(noise, PoissonGaussianNoise):
        well = noise.full_well_electrons
        return PoissonGaussianNoise(
            rows(noise.gain),
            rows(noise.offset),
            read_std=rows(noise.read_std),
            adc_bits=noise.adc_bits,
            full_well_electrons=None if well is None else rows(torch.as_tensor(well)),
        )
    return noise


# ---- The noise model against the values ----


def value_warnings(measured: Tensor, noise: NoiseModel) -> tuple[str, ...]:
    """Values that the noise model gives at no mean: below the darkest signal, or whole numbers where noise is finer."""
    notes = []
    if isinstance(noise, PoissonGaussianNoise):
        zero = torch.zeros(measured.shape[1:], dtype=torch.float64, device=measured.device)
        dark = noise.expected(zero) - _DARK_SIGMAS * noise.variance(zero).sqrt()
        share = float((measured < dark).double().mean())
        if share > _MOST_BELOW_DARK:
            notes.append(
                f"{100 * share:.2g} % of the values lie more than {_DARK_SIGMAS:g} standard deviations below the dark "
                "level of the noise model, where no light leads: check offset, gain and read_std. The bits are not to "
                "be trusted"
            )
    std = _continuous_std(noise)
    if std is not None and std < _FINE_STD and bool((measured == measured.round()).all()):
        notes.append(
            f"all values are whole numbers, which noise with a standard deviation of {std:.3g} does not leave: they "
            "are rounded, or in another unit than the noise. The bits are not to be trusted"
        )
    return tuple(notes)


def _continuous_std(noise: NoiseModel) -> float | None:
    """Standard deviation of the noise that is added to each value, of models without rounding."""
    if isinstance(noise, GaussianNoise):
        return float(noise.std.detach().mean())
    if isinstance(noise, PoissonGaussianNoise) and noise.adc_bits is None:
        return float(noise.read_std.detach().mean())
    return None


# ---- Numbers that the sample or the noise cannot carry ----


def sample_size_warnings(
    n_training: int, n_pixels: int, density: str, excess_bits: float, bits: float
) -> tuple[str, ...]:
    """That too few images were fitted for what the density has to learn from them.

    Args:
        density: its name.
        excess_bits: expected finite-sample excess of the upper bound per image; NaN where it is not known.
        bits: the estimate.
    """
    if math.isfinite(excess_bits) and excess_bits > max(_LARGE_EXCESS_BITS, _LARGE_EXCESS_SHARE * abs(bits)):
        return (
            f"{n_training} images for fitting are few for {n_pixels} pixels and the {density} density: its expected "
            f"finite-sample excess of {excess_bits:.3g} bits is {100 * excess_bits / max(abs(bits), 1e-9):.0f} % of "
            "the estimate; more images, fewer pixels or a density with fewer parameters make it certain",
        )
    if not math.isfinite(excess_bits) and n_training < _FEW_FOR_UNKNOWN_EXCESS:
        return (
            f"{n_training} images for fitting are few, and nobody knows what fitting the {density} density to them "
            "costs: its upper bound carries that. n_extrapolate= estimates it from fits to parts of the images",
        )
    return ()


def certificate_warnings(
    measured: Tensor,
    conditional: Tensor,
    discrete: bool,
    groups: Groups,
    *,
    bits: float,
    stderr_bits: float,
    lower_bits: float | None = None,
    lower_name: str = "",
) -> tuple[str, ...]:
    """More bits than the spread of the values over the noise allows, or a lower bound that the sample cannot certify.

    h(measured) is at most that of independent Gaussian pixels of the same variances, sum_p 0.5 log(2 pi e var_p),
    whatever the scenes; for counts var_p + 1/12. So bits <= sum_p 0.5 log2(2 pi e var_p) - h(measured | scene).

    Args:
        conditional: h(measured | scene) of each image, (n,) nats.
        lower_name: which quantities the lower bound takes as given besides the noise model.

    Reference: Cover and Thomas 2006, theorem 8.6.5; McAllester and Stratos 2020, arXiv 1811.04251.
    """
    notes = []
    values = measured.flatten(1)
    variance = values.var(0) + (1.0 / 12.0 if discrete else 0.0)
    alive = variance > 0.0
    if bool(alive.any()):
        values, variance = values[:, alive], variance[alive]
        most = float(0.5 * (LOG_TWO_PI_E + torch.log(variance)).sum() - conditional.mean())
        # Half a log of a sample variance is low by 1 / (2 n), more for heavy tails.
        squares = (values - values.mean(0)).square() / variance
        most += 0.25 * float((squares.square().mean(0) - squares.mean(0).square()).sum()) / len(values)
        error = groups.standard_error(0.5 * squares.sum(1) - conditional) * _TO_BITS
        most *= _TO_BITS
        if bits > most + _SIGMAS * math.hypot(error, stderr_bits) + 1e-6 * abs(most) + 1e-9:
            notes.append(
                f"{bits:.4g} bits are more than the {most:.4g} that images of this spread can carry through this "
                "noise: independent Gaussian pixels of the same variances would have no more. The bound is a loose one"
            )
    limit = math.log2(groups.count)
    if lower_bits is not None and lower_bits > limit:
        what = "groups of images" if groups.given else "images"
        notes.append(
            f"the lower bound of {lower_bits:.2f} bits passes log2({groups.count}) = {limit:.2f}: so many {what} "
            "alone certify no more than about that (arXiv 1811.04251); beyond it, it rests on the noise model"
            f"{' and ' + lower_name if lower_name else ''}"
        )
    return tuple(notes)
