"""What network densities cost and gain: held-out cross-entropy and CPU time beside Gaussians and truth.

    python benchmarks/studies/network_densities.py [CASE ...] [--n-train 4000] [--seeds 1] [--threads 2]

Cases: gamma (independent gamma pixels, shape 4, 100 photons, 8x8; truth: negative binomial), gaussian (16x16 field and
white noise; truth: determinant), natural (16x16 patches of bundled photographs at 200 photons, fitted on some images
and scored on others). Excess over truth and cross-entropy are in bits per pixel, time in CPU seconds of the fit.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from bitlens.datasets import FITTING_SCENES, REPORTING_SCENES, scene_patches
from bitlens.densities import Density, GaussianDensity, StationaryGaussianDensity
from bitlens.densities.autoregressive import AutoregressiveDensity
from bitlens.densities.flow import FlowDensity

_N_TEST = 4000
_LN2 = math.log(2.0)


class Case(NamedTuple):
    """Images to fit and to score, and the log density of the latter where it is known, (n,) nats."""

    train: Tensor
    test: Tensor
    truth: Tensor | None


def gamma(n_train: int, seed: int) -> Case:
    """Independent pixels whose counts are negative binomial."""
    random = np.random.default_rng(seed)
    images = random.poisson(random.gamma(4.0, 25.0, (n_train + _N_TEST, 8, 8))).astype(np.float64)
    truth = torch.from_numpy(stats.nbinom.logpmf(images[n_train:], 4, 4 / 104).sum((1, 2)))
    return Case(torch.from_numpy(images[:n_train]), torch.from_numpy(images[n_train:]), truth)


def gaussian(n_train: int, seed: int) -> Case:
    """A field of correlation exp(-distance / 4) and white noise of a tenth of its variance."""
    row, column = torch.arange(16).repeat_interleave(16).double(), torch.arange(16).repeat(16).double()
    distance = torch.hypot(row[:, None] - row, column[:, None] - column)
    covariance = torch.exp(-distance / 4) + 0.1 * torch.eye(256, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(n_train + _N_TEST, 256, generator=generator, dtype=torch.float64)
    images = white @ torch.linalg.cholesky(covariance).mT
    law = torch.distributions.MultivariateNormal(torch.zeros(256, dtype=torch.float64), covariance)
    truth = law.log_prob(images[n_train:])
    images = images.reshape(-1, 16, 16)
    return Case(images[:n_train], images[n_train:], truth)


def natural(n_train: int, seed: int) -> Case:
    """Photographs at 200 photons; no image has patches on both sides."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for n, names in ((n_train, FITTING_SCENES), (_N_TEST, REPORTING_SCENES)):
        scenes = scene_patches(n, 16, names=names, mean=200.0, generator=generator).scenes[:, 0].double()
        parts.append(torch.poisson(scenes, generator=generator))
    return Case(parts[0], parts[1], None)


def natural_many(n_train: int, seed: int) -> Case:
    """As `natural`, but fitted on every second of all images and scored on the others."""
    generator = torch.Generator().manual_seed(seed)
    names = (*FITTING_SCENES, *REPORTING_SCENES)
    parts = []
    for n, first in ((n_train, 0), (_N_TEST, 1)):
        scenes = scene_patches(n, 16, names=names[first::2], mean=200.0, generator=generator).scenes[:, 0].double()
        parts.append(torch.poisson(scenes, generator=generator))
    return Case(parts[0], parts[1], None)


CASES: dict[str, Callable[[int, int], Case]] = {
    case.__name__: case for case in (gamma, gaussian, natural, natural_many)
}
DENSITIES: dict[str, Callable[[Case], Density]] = {
    "gaussian": lambda case: GaussianDensity(),
    "stationary": lambda case: StationaryGaussianDensity(),
    "autoregressive": lambda case: AutoregressiveDensity(),
    "flow": lambda case: FlowDensity(dequantize=bool((case.train == case.train.round()).all())),
}


def main() -> None:
    """Prints one line per case, density and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", choices=[[], *CASES], default=[])
    parser.add_argument("--densities", nargs="+", choices=list(DENSITIES), default=list(DENSITIES))
    parser.add_argument("--n-train", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{'case':14}{'density':16}{'seed':>5}{'bits/pixel':>12}{'+- 1 sd':>9}{'excess':>9}{'fit s':>8}{'score s':>9}"
        f"{'passes':>8}  converged"
    )
    for name in arguments.cases or CASES:
        for seed in range(arguments.seeds):
            case = CASES[name](arguments.n_train, seed)
            for density in arguments.densities:
                _line(name, density, seed, case)


def _line(name: str, density: str, seed: int, case: Case) -> None:
    start = time.process_time()
    fitted = DENSITIES[density](case).fit(case.train)
    fit = time.process_time() - start
    log_prob = fitted.log_prob(case.test)
    score = time.process_time() - start - fit
    to_bits = 1.0 / (case.test[0].numel() * _LN2)
    excess = "" if case.truth is None else f"{float((case.truth - log_prob).mean()) * to_bits:.4f}"
    sd = float(log_prob.std()) / math.sqrt(len(log_prob)) * to_bits
    passes = len(getattr(fitted, "validation_nats_per_pixel", ())) - 1
    print(
        f"{name:14}{density:16}{seed:5}{-float(log_prob.mean()) * to_bits:12.4f}{sd:9.4f}{excess:>9}{fit:8.1f}"
        f"{score:9.1f}{passes if passes > 0 else '':>8}  {fitted.converged}",
        flush=True,
    )


if __name__ == "__main__":
    main()
