"""Sets of scenes that say more about themselves than about the optics: copies, few scenes, one that outweighs all."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.densities._channel_mixture import electrons
from bitlens.estimators._inputs import Groups
from bitlens.noise import GaussianNoise, NoiseModel, PoissonGaussianNoise, PoissonNoise
from bitlens.noise._abilities import HasLimits

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
_REPEATS = (
    ": repeats of a scene are no independent draws, and tests share scenes with fits. Give them one label of `groups`"
)
_TO_BITS = 1.0 / math.log(2.0)


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
