"""What the studies of discrete designs share: parts chosen by information against a start, and bounds on errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from _design_study import DESIGNED, START, Comparison, summary
from _validation_study import Study, run_study
from torch import Tensor, nn

from bitlens import report
from bitlens._files import replace_file
from bitlens.design import SubsetResult, choose_subset
from bitlens.estimators._judge import judge, stderr_of_difference_bits
from bitlens.noise import NoiseModel
from bitlens.systems import ImagingSystem
from bitlens.validation import (
    LinearDecoder,
    Reconstruction,
    gaussian_reconstruction_bound,
    validate,
)
from bitlens.validation.decoder import Decoder

Subset = tuple[int, ...]
Make = Callable[[Subset], tuple[nn.Module, NoiseModel]]


def chosen_by_information(make: Make, n_candidates: int, size: int, scenes: Tensor, seed: int) -> SubsetResult:
    """The parts that greedy choice and exchanges find, by the closed form of a Gaussian."""
    return choose_subset(
        make, n_candidates, size, scenes, objective="gaussian", generator=torch.Generator().manual_seed(seed)
    )


def gain_bits(start: ImagingSystem, designed: ImagingSystem, groups: Any, seed: int) -> tuple[float, float]:
    """Bits gained and their standard error, with the same scenes, noise draws and splits for both."""
    judged = []
    for encoder, noise, scenes in (start, designed):
        with torch.no_grad():
            mean = encoder(scenes).double()
            measured = noise.sample(mean, torch.Generator().manual_seed(seed))  # type: ignore[operator]
        splits = torch.Generator().manual_seed(seed)
        judged.append(judge(measured, noise, mean=mean, method="gaussian", groups=groups, generator=splits))  # type: ignore[arg-type]
    return judged[1].estimate.bits - judged[0].estimate.bits, stderr_of_difference_bits(*judged)


def compare_subsets(
    name: str,
    make: Make,
    n_candidates: int,
    start: Subset,
    design_scenes: Tensor,
    scenes: Tensor,
    *,
    quick: bool,
    out: Path,
    groups: Any,
    decoder: Decoder,
    n_seeds: int,
    others: Mapping[str, Subset] | None = None,
    seed: int = 0,
) -> tuple[Comparison, Study, dict[str, Subset]]:
    """Choose as many parts as `start` has on `design_scenes`, then judge start and choices on `scenes`.

    Bits and scores come from scenes that the choice has not seen, scores from a new decoder for each design. `others`
    are judged beside them. Writes `name`_designs.{txt,png,json} and `name`_comparison.{txt,json} into `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = chosen_by_information(make, n_candidates, len(start), design_scenes, seed)
    parts = {START: start, DESIGNED: found.chosen, **dict(others or {})}
    systems = {key: ImagingSystem(*make(each), scenes) for key, each in parts.items()}
    gain, stderr = gain_bits(systems[START], systems[DESIGNED], groups, seed)
    study = run_study(
        f"{name}_designs", systems, Reconstruction(), {}, quick=quick, out=out, groups=groups, decoder=decoder,
        n_seeds=n_seeds, method="gaussian", seed=seed, bound=False,
    )  # fmt: skip
    result = study.result
    psnr = result.values("psnr")
    gains = psnr[result.designs.index(DESIGNED)] - psnr[result.designs.index(START)]
    comparison = Comparison(
        gain_bits=gain,
        gain_stderr_bits=stderr,
        gain_sigmas=gain / stderr if stderr > 0 else math.inf,
        objective=found.objective,
        objective_reason=f"{found.n_evaluations} subsets evaluated",
        scores={score: dict(result.mean(score)) for score in result.score_names},
        score_gain=tuple(float(each) for each in gains),
        cost={},
        warnings=found.warnings,
    )
    text = summary(name, comparison) + "".join(f"  {key}: parts {list(each)}\n" for key, each in parts.items())
    print(text)
    values = asdict(comparison) | {
        "parts": parts,
        "n_evaluations": found.n_evaluations,
        "converged": found.converged,
    }
    replace_file(out / f"{name}_comparison.json", json.dumps(values, indent=2).encode())
    replace_file(out / f"{name}_comparison.txt", text.encode())
    return comparison, study, parts


def linear_rank_correlations(
    name: str, systems: Mapping[str, Mapping[str, ImagingSystem]], groups: Any, out: Path, seed: int = 0
) -> dict[str, Any]:
    """Spearman of bits with the PSNR of the linear decoder, its interval and both values, for each set of systems.

    One split each; the interval is over designs. Written to `name`_linear.json.
    """
    found: dict[str, Any] = {}
    for label, several in systems.items():
        result = validate(
            several, Reconstruction(), decoder=LinearDecoder(), n_seeds=1, groups=groups, method="gaussian",
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        correlation = result.rank_correlation("psnr")
        found[label] = {
            "spearman": correlation.spearman,
            "interval": correlation.interval,
            "psnr": dict(result.mean("psnr")),
            "bits": dict(result.mean("bits")),
        }
        print(f"linear decoder, {label}: Spearman {correlation.spearman:.3f}, interval {correlation.interval}")
    replace_file(out / f"{name}_linear.json", json.dumps(found, indent=2).encode())
    return found


def gaussian_bounds(name: str, study: Study, target: Tensor, out: Path) -> dict[str, float]:
    """Least mean squared error that the bits of each design allow a Gaussian target of the same covariance.

    Images with a black background have no finite differential entropy, so that Shannon's bound says nothing about them.
    Prints the errors beside it and writes `name`_bound.txt.
    """
    flat = target.flatten(1).double()
    eigenvalues = torch.linalg.svdvals(flat - flat.mean(0)).square() / (len(flat) - 1)
    padded = torch.cat([eigenvalues, eigenvalues.new_zeros(flat.shape[1] - len(eigenvalues))])
    bits, error = study.result.mean("bits"), study.result.mean("mse")
    bounds = {design: gaussian_reconstruction_bound(bits[design], padded) for design in bits}
    rows = tuple((design, f"{error[design]:.4g}", f"{bounds[design]:.4g}") for design in bits)
    text = report.to_text(report.Table("", ("design", "mse", "best code of so many bits, Gaussian target"), rows))
    print(text)
    replace_file(out / f"{name}_bound.txt", text.encode())
    return bounds
