"""The linear estimate of least squared error of a face where the sensor's noise is told and need not be learned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from scipy import stats
from torch import Tensor

from bitlens.noise import PoissonGaussianNoise

_TEST_SHARE = 4  # one photograph of so many


def told_error(mean: Tensor, noise: PoissonGaussianNoise, target: Tensor, groups: Tensor) -> float:
    """Mean squared error on photographs that were not fitted to; covariances of noiseless images, noise added as known.

    `mean` (n, ...) and `target` (n, ...) of the same scenes, `groups` (n,) the photograph of each.
    """
    clean, wanted = mean.flatten(1).double(), target.flatten(1).double()
    n_photographs = int(groups.max()) + 1
    order = torch.randperm(n_photographs, generator=torch.Generator().manual_seed(0))
    test = torch.isin(groups, order[: n_photographs // _TEST_SHARE])
    center, offset = clean[~test].mean(0), wanted[~test].mean(0)
    inputs, outputs = clean[~test] - center, wanted[~test] - offset
    variance = noise.variance(mean[~test]).flatten(1).double().mean(0)
    weights = torch.linalg.solve(
        inputs.T @ inputs / len(inputs) + torch.diag(variance), inputs.T @ outputs / len(inputs)
    )
    measured = noise.sample(mean, torch.Generator().manual_seed(1)).flatten(1).double()[test]
    return float(((measured - center) @ weights + offset - wanted[test]).square().mean())


def told_text(bits: Mapping[str, float], psnr: Mapping[str, float], errors: Mapping[str, float]) -> str:
    """Spearman of the bits with the decoder's PSNR, and with the errors of an estimate that is told the noise."""
    found = [[value[name] for name in errors] for value in (bits, psnr, errors)]
    learned, told = stats.spearmanr(found[0], found[1])[0], -stats.spearmanr(found[0], found[2])[0]
    return (
        f"Spearman of the bits with the PSNR of an estimate that learns the noise: {learned:.3f}\n"
        f"and with the error of one that is told it: {told:.3f}\n"
    )
