"""Common mistakes that the inputs of an estimate show, in words: noise, sample size, and sets of scenes too peaked.

Each function returns the warnings that hold, most often none; thresholds are set so that honest data of any kind pass.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.densities._channel_mixture import electrons
from bitlens.estimators._inputs import Groups
from bitlens.noise import GaussianNoise, NoiseCheck, NoiseModel, PoissonGaussianNoise, PoissonNoise, check_noise
from bitlens.noise._abilities import HasLimits
from bitlens.noise.base import LOG_TWO_PI_E

# Scenes whose repeats are looked at; the rest would tell the same.
_MOST_SCENES = 16
_LEVEL = 0.01  # share of right noise models that may be called wrong
# Finite-sample excess over the estimate above which its size is a matter of the sample.
_LARGE_EXCESS_SHARE, _LARGE_EXCESS_BITS = 0.15, 1.0
_FEW_FOR_UNKNOWN_EXCESS = 200
# Standard errors beyond which something is said to exceed what the data allow.
_SIGMAS = 4.0
# Pixels x pairs of images that are compared, a twentieth of a second; pixels beyond these are left out.
_PAIR_PIXELS, _MOST_COMPARED, _LEAST_COMPARED = 10_000_000, 256, 64
# Scenes further apart than so many standard deviations of the distance between two exposures of one are two scenes.
_APART_SIGMAS = 4.0
# Excess of the squared distance within a scene, in that of a pair one noise deviation apart, and in standard errors.
_SAME, _SAME_SIGMAS = 0.1, 3.0
# Distances between _APART and this many times it are rare where scenes are separate.
_GAP, _MOST_IN_GAP = 2.0, 0.02
_DOMINANT = 0.5  # share of the images that makes one scene, or one source, most of the set
_FEW = 0.2  # distinct scenes over images
_MOST_DISTINCT, _MOST_LOOKING_DISTINCT = 0.9, 0.6  # distinct scenes over images below which images are repeats
_NEAR_SET = 0.7  # estimate over the entropy of which scene it is
_MOST_COINCIDENCES = 1e-3  # expected number of equal pairs of images
_TO_BITS = 1.0 / math.log(2.0)
_REPEATS = (
    ": repeats of a scene are no independent draws, and tests share scenes with fits. Give them one label of `groups`"
)


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
    return (f"the noise model does not fit the repeats{which}: {found}. {_worth(wrong, n_pixels)}",)


def _worth(wrong: list[NoiseCheck], n_pixels: int) -> str:
    """In bits per image: of the variance found against that predicted, and of 5 % of each parameter."""
    dispersion = sum(check.dispersion for check in wrong) / len(wrong)
    said = "The bits cannot be trusted without a noise model that fits"
    if dispersion > 0.0:
        # The entropy of a pixel is about 0.5 log variance, all else alike.
        shift = 0.5 * math.log2(dispersion) * n_pixels
        said = f"The variance found puts the estimate about {abs(shift):.3g} bits too {'high' if shift > 0 else 'low'}"
    shifts = wrong[0].information_shift
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


# ---- Sets of scenes too peaked ----


def scene_set_warnings(
    measured: Tensor, mean: Tensor | None, noise: NoiseModel, groups: Groups, *, bits: float, stderr_bits: float
) -> tuple[str, ...]:
    """Copies, few scenes, one scene or source that makes most of the set, no scenes to tell apart at all.

    Args:
        measured, mean: (n, ...) float64; distances between noisy images are compared on 64 to 256 of them.
        bits: the estimate, with its standard error.
    """
    notes = [*_copies(measured, noise, groups), *_one_source(groups)]
    about_scenes = [] if mean is None else _few_means(mean, groups, bits)
    values = _clear_values(noise, measured)
    if values is not None and not about_scenes:
        unseen = bits <= _SAME_SIGMAS * stderr_bits
        about_scenes = (_no_variation(values, groups) if unseen else []) or _from_distances(
            _distances(values), groups, bits
        )
    return (*notes, *about_scenes)


def _one_source(groups: Groups) -> list[str]:
    if not groups.given or groups.count < 3:
        return []
    share = float(torch.bincount(groups.labels).max()) / len(groups.labels)
    if share <= _DOMINANT:
        return []
    return [
        f"one of {groups.count} groups holds {100 * share:.0f} % of the images: the estimate says more about that "
        "source than about the optics"
    ]


def _keys(images: Tensor) -> Tensor:
    """One number per image, equal for equal images only."""
    flat = images.flatten(1)
    weight = torch.rand(flat.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(flat.device)
    return torch.stack([(row * weight).sum() for row in flat]) if len(flat) else flat.new_empty(0)


def _copies(measured: Tensor, noise: NoiseModel, groups: Groups) -> list[str]:
    """Equal images of different groups that no noise gives twice."""
    inverse, counts = torch.unique(_keys(measured), return_inverse=True, return_counts=True)[1:]
    repeated = torch.nonzero(counts[inverse] > 1)[:, 0]
    if len(repeated) == 0 or not isinstance(noise, GaussianNoise | PoissonNoise | PoissonGaussianNoise):
        return []
    if groups.given:
        pairs = torch.unique(torch.stack([inverse[repeated], groups.labels[repeated]]), dim=1)[0]
        outside = torch.bincount(pairs, minlength=len(counts)) > 1
        repeated = repeated[outside[inverse[repeated]]]
    images = measured[repeated]
    if noise.discrete or bool((measured == measured.round()).all()):
        step = torch.ones((), dtype=torch.float64)
    else:
        step = 1e-6 * measured.abs().max()  # of single precision
    variance = noise.variance(electrons(_unlimited(noise), images).clamp(min=0.0)) if len(images) else images
    if isinstance(noise, HasLimits) and len(images):
        variance = variance.masked_fill(noise.at_limit(images), 0.0)
    # A pixel repeats its value with probability step / (2 sqrt(pi variance)) where its noise spreads over the step.
    log_chance = (torch.log(step) - 0.5 * torch.log(4.0 * math.pi * variance)).clamp(max=0.0)
    log_pairs = 2.0 * math.log(len(measured)) - math.log(2.0)
    n_copies = int((log_chance.flatten(1).sum(1) + log_pairs < math.log(_MOST_COINCIDENCES)).sum())
    if n_copies == 0:
        return []
    return [
        f"{n_copies} of {len(measured)} measured images are copies of others to the last digit, which noise does not "
        "give: fits and their tests share them. Take the copies out, or give them one label of `groups`"
    ]


def _few_means(mean: Tensor, groups: Groups, bits: float) -> list[str]:
    counts = torch.unique(_keys(mean), return_counts=True)[1]
    n_images, n_distinct = len(mean), len(counts)
    if n_distinct == 1:
        return ["all images of `mean` are equal: there is one scene, about which nothing can be learned"]
    found = f"`mean` holds {n_distinct} distinct scenes for {n_images} images"
    notes = _peaked(counts.to(torch.float64) / n_images, found, n_images, bits)
    if not notes and not groups.given and _FEW * n_images < n_distinct <= _MOST_DISTINCT * n_images:
        return [found + _REPEATS]
    return notes


def _peaked(shares: Tensor, found: str, n_images: int, bits: float) -> list[str]:
    entropy = float(torch.special.entr(shares).sum()) * _TO_BITS
    notes = []
    if len(shares) <= _FEW * n_images and bits > _NEAR_SET * entropy:
        notes.append(
            f"{found} whose shares have an entropy of {entropy:.3g} bits, the most that any optics could say: the "
            f"estimate of {bits:.3g} bits says more about this set than about the optics. Take more different scenes"
        )
    if float(shares.max()) > _DOMINANT and len(shares) > 2:
        notes.append(
            f"{found if not notes else 'these scenes'}: one of them makes {100 * float(shares.max()):.0f} % of the "
            "images, and the estimate says how often it comes up rather than what the optics do"
        )
    return notes


def _unlimited(noise: NoiseModel) -> NoiseModel:
    if isinstance(noise, PoissonGaussianNoise) and noise.limited:
        rounding = 0.0 if noise.adc_bits is None else 1.0 / 12.0
        read_std = torch.sqrt(noise.read_std.detach() ** 2 + rounding)
        return PoissonGaussianNoise(noise.gain.detach(), noise.offset.detach(), read_std=read_std)
    return noise


class _Values(NamedTuple):
    """Estimates of the mean (n, pixels), photo-electrons or the unit of Gaussian noise, and their variance there."""

    signal: Tensor
    slope: Tensor  # of the variance against the mean, (pixels,)
    dark: Tensor  # variance at a mean of zero, (pixels,)


def _clear_values(noise: NoiseModel, measured: Tensor) -> _Values | None:
    """The pixels clear of the ends of the scale; None where there are none or the model is a user's own."""
    if not isinstance(noise, GaussianNoise | PoissonNoise | PoissonGaussianNoise):
        return None
    plain = _unlimited(noise)
    assert isinstance(plain, GaussianNoise | PoissonNoise | PoissonGaussianNoise)
    shape = measured.shape[1:]
    zero = torch.zeros(shape, dtype=torch.float64, device=measured.device)
    signal = electrons(plain, measured).flatten(1)
    gain = plain.expected(zero + 1.0) - plain.expected(zero)
    dark = (plain.variance(zero) / gain.square()).flatten()
    slope = (plain.variance(zero + 1.0) / gain.square()).flatten() - dark
    kept = torch.ones_like(dark, dtype=torch.bool)
    if isinstance(noise, HasLimits):
        kept = noise.at_limit(measured).flatten(1).double().mean(0) < 1e-3
    if not bool(kept.any()):
        return None
    return _Values(signal[:, kept], slope[kept], dark[kept])


def _no_variation(values: _Values, groups: Groups) -> list[str]:
    """That the variance over the images is that of the noise alone, within its error."""
    signal, slope, dark = values
    n_images = len(signal)
    expected = (dark + slope * signal.mean(0)).clamp(min=1e-12)
    excess = (signal - signal.mean(0)).square() * (n_images / (n_images - 1)) - (dark + slope * signal)
    rows = (excess / expected)[:, expected > 1e-9].sum(1)
    if len(rows) == 0 or float(rows.mean()) > _SAME_SIGMAS * groups.standard_error(rows):
        return []
    return [
        f"no difference between the {n_images} images beyond the noise is seen: they may show one scene, or the light "
        "is too little for the number of images"
    ]


class _Distances(NamedTuple):
    """Pairs of m images: squared distance in noise units less what one scene gives, (m, m); its freedom."""

    excess: Tensor
    freedom: Tensor


def _distances(values: _Values) -> _Distances:
    """(z_i - z_j)^2 over the variance of that difference, summed over pixels, less the pixels with any noise.

    For counts of one scene a pixel's share is 1 on average whatever the mean: the variance of a difference, the sum of
    two counts given, is that sum.
    """
    signal, slope, dark = values
    n_compared = max(_LEAST_COMPARED, min(_MOST_COMPARED, math.isqrt(_PAIR_PIXELS // signal.shape[1])))
    chosen = torch.linspace(0, len(signal) - 1, min(len(signal), n_compared), device=signal.device).round().long()
    pixels = torch.linspace(0, signal.shape[1] - 1, min(signal.shape[1], 4096), device=signal.device).round().long()
    signal, slope, dark = signal[chosen][:, pixels], slope[pixels], dark[pixels]
    if not bool(slope.any()):
        scaled = signal / torch.sqrt(2.0 * dark)
        squares = torch.cdist(scaled, scaled).square()
        freedom = torch.full_like(squares, float(scaled.shape[1]))
        return _Distances(squares - freedom, freedom)
    distances, freedoms = [], []
    for row in signal:
        variance = slope * (signal + row).clamp(min=0.0) + 2.0 * dark
        noisy = variance > 0.0
        distances.append(torch.where(noisy, (signal - row).square() / variance, 0.0).sum(1))
        freedoms.append(noisy.sum(1).to(signal.dtype))
    freedom = torch.stack(freedoms)
    return _Distances(torch.stack(distances) - freedom, freedom)


def _from_distances(distances: _Distances, groups: Groups, bits: float) -> list[str]:
    """That the images are exposures of few scenes, or most of them of one, seen from noisy data alone."""
    excess, freedom = distances
    n_images = len(excess)
    if n_images < 20:
        return []
    limit = _APART_SIGMAS * torch.sqrt(2.0 * freedom).clamp(min=1.0)
    near = excess <= limit
    gap = (excess > limit) & (excess <= _GAP * limit)
    left = torch.ones(n_images, dtype=torch.bool, device=excess.device)
    sizes: list[int] = []
    for _ in range(math.ceil(_MOST_LOOKING_DISTINCT * n_images)):
        if not bool(left.any()):
            break
        hub = int((near & left).sum(1).masked_fill(~left, -1).argmax())
        members = near[hub] & left
        size = int(members.sum())
        if size < 2 or not _one_scene(excess, freedom, members):
            break
        # Scenes that shade into each other are not few, whatever their number here.
        if float(gap[members][:, left & ~members].double().sum()) > _MOST_IN_GAP * size * int((left & ~members).sum()):
            break
        sizes.append(size)
        left &= ~members
    rest = int(left.sum())
    if not sizes or len(sizes) + rest < 2:
        return []
    shares = torch.tensor(sizes + [1] * rest, dtype=torch.float64) / n_images
    words = f"the images look like exposures of {len(shares)} distinct scenes (of {n_images} compared)"
    notes = _peaked(shares, words, n_images, bits)
    few, repeats = _FEW * n_images, _MOST_LOOKING_DISTINCT * n_images
    return [words + _REPEATS] if not notes and not groups.given and few < len(shares) <= repeats else notes


def _one_scene(excess: Tensor, freedom: Tensor, members: Tensor) -> bool:
    """Whether the images differ by no more than the noise, on average over their pairs."""
    size = int(members.sum())
    pairs = size * (size - 1)
    mean = float(excess[members][:, members].sum() - torch.diagonal(excess)[members].sum()) / pairs
    stderr = math.sqrt(2.0 * float(freedom[members][:, members].mean()) / (size - 1))
    return mean <= _SAME + _SAME_SIGMAS * stderr
