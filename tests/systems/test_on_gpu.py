"""Systems, estimates and designs on a GPU against the same on the CPU."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU on this machine", allow_module_level=True)

import bitlens
from bitlens.densities import AutoregressiveDensity
from bitlens.noise import PoissonGaussianNoise


def _load(name: str):
    folder = Path(__file__).parent
    specification = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


_load("system_case")
CASES = [case for path in sorted(Path(__file__).parent.glob("cases_*.py")) for case in _load(path.stem).CASES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_mean_and_gradient_are_those_of_the_cpu(case) -> None:
    results = []
    for device in ("cpu", "cuda"):
        encoder, _, scenes = case.make(case.shapes[1], case.parameters)
        encoder, scenes = encoder.double().to(device), scenes.double().to(device)
        mean = encoder(scenes)
        weight = torch.cos(torch.arange(mean.numel(), dtype=torch.float64)).reshape(mean.shape).to(device)
        leaves = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        found = torch.autograd.grad((mean.abs() * weight).sum(), leaves, allow_unused=True)
        results.append([mean.detach().cpu(), *(g.cpu() for g in found if g is not None)])
    assert len(results[0]) == len(results[1])
    for here, there in zip(*results, strict=True):
        assert float((here - there).norm()) <= 1e-8 * float(here.norm()) + 1e-300


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_noise_is_drawn_on_the_gpu(case) -> None:
    encoder, noise, scenes = case.make(case.shapes[0], ())
    generator = torch.Generator("cuda").manual_seed(0)
    with torch.no_grad():
        measured = noise.sample(encoder.cuda()(scenes.cuda()), generator=generator)
    assert measured.is_cuda
    assert bool(measured.isfinite().all())


def _measured(n: int = 400) -> tuple[torch.Tensor, torch.Tensor, PoissonGaussianNoise]:
    generator = torch.Generator().manual_seed(0)
    noise = PoissonGaussianNoise(read_std=2.0)
    basis = torch.randn(6, 36, generator=generator).abs()
    mean = (20 * torch.rand(n, 6, generator=generator) @ basis).reshape(n, 1, 6, 6)
    return mean, noise.sample(mean, generator=generator), noise


METHODS = (
    "auto", "gaussian", "stationary_gaussian", "gaussian_mixture", "gaussian_copula", "independent_pixels",
    "scale_mixture", "shift_mixture", "scene_mixture", "factor_mixture", "known_channel",
)  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_bits_are_those_of_the_cpu(method: str) -> None:
    mean, measured, noise = _measured()
    results = [
        bitlens.estimate_information(
            measured.to(device), noise, mean=mean.to(device), method=method, generator=torch.Generator().manual_seed(1)
        )
        for device in ("cpu", "cuda")
    ]
    assert math.isclose(results[0].bits, results[1].bits, rel_tol=1e-3)
    assert math.isfinite(results[1].confidence_interval_bits[0])


@pytest.mark.parametrize("name", ["FlowDensity", "AutoregressiveDensity"])
def test_networks_fit_and_draw(name: str) -> None:
    _, measured, _ = _measured()
    whole = measured.round().cuda()
    density = bitlens.densities.FlowDensity(dequantize=True) if name == "FlowDensity" else AutoregressiveDensity()
    fitted = density.fit(whole, generator=torch.Generator().manual_seed(0))
    assert bool(fitted.log_prob(whole[:5]).isfinite().all())
    assert fitted.log_prob(whole[:5]).is_cuda
    assert bool(fitted.sample(3, generator=torch.Generator().manual_seed(0)).isfinite().all())


def test_one_generator_of_the_cpu_draws_one_sample_everywhere() -> None:
    mean, _, noise = _measured()
    here, there = (noise.sample(m, generator=torch.Generator().manual_seed(2)) for m in (mean, mean.cuda()))
    assert there.is_cuda
    assert torch.equal(here, there.cpu())


def test_mutual_information_and_the_task() -> None:
    generator = torch.Generator().manual_seed(0)
    scene = torch.randn(600, 3, generator=generator)
    seen = scene + 0.5 * torch.randn(600, 3, generator=generator)
    label = (scene[:, 0] > 0).long()
    found = bitlens.estimate_mutual_information(scene.cuda(), seen.cuda(), generator=generator)
    assert 2.0 < found.bits < 4.0  # 1.5 log2 5 = 3.48
    task = bitlens.estimate_task_information(seen.cuda(), label.cuda(), generator=generator)
    assert 0.2 < task.bits <= 1.0


@pytest.mark.parametrize("objective", ["gaussian", "known_channel", "density", "critic"])
def test_a_design_climbs_on_the_gpu(objective: str) -> None:
    encoder, noise, scenes = bitlens.systems.single_pixel_camera(
        "random_binary", shape=(8, 8), n_patterns=16, exposure_photons=2e4, dark_electrons=1e3, n_scenes=400,
        learn=("patterns",),
    )  # fmt: skip
    designed = bitlens.optimize_design(
        encoder.cuda(), noise, scenes.cuda(), objective=objective, n_steps=30, judge_method="gaussian",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert math.isfinite(designed.after.bits)
    if objective == "gaussian":  # 30 steps are few for the others
        assert designed.after.bits > designed.before.bits + 3 * designed.gain_stderr_bits
    assert all(parameter.is_cuda for parameter in designed.encoder.parameters())


def _single_pixel():
    encoder, noise, scenes = bitlens.systems.single_pixel_camera(
        shape=(16, 16), n_patterns=32, exposure_photons=2e4, dark_electrons=1e3, n_scenes=200, learn=("patterns",)
    )
    return bitlens.systems.ImagingSystem(encoder.cuda(), noise, scenes.cuda())


@pytest.mark.parametrize("decoder", ["LinearDecoder", "UNetDecoder"])
def test_decoders_are_trained_on_the_gpu(decoder: str) -> None:
    kind = getattr(bitlens.validation, decoder)
    result = bitlens.validate(
        {"given": _single_pixel()}, bitlens.validation.Reconstruction(), decoder=kind(), n_seeds=1, method="gaussian",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert 10 < result.rows[0].scores["psnr"] < 60


def test_end_to_end_training_on_the_gpu() -> None:
    trained = bitlens.train_end_to_end(
        *_single_pixel(), bitlens.validation.Reconstruction(), bitlens.validation.UNetDecoder(channels=4, n_steps=60),
        n_steps=60, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert math.isfinite(trained.scores["psnr"])
    assert all(parameter.is_cuda for parameter in trained.encoder.parameters())


def test_classifiers_and_metrics_on_the_gpu() -> None:
    system = _single_pixel()
    labels = (system.scenes.mean((1, 2, 3)) > system.scenes.mean()).long()
    for decoder in (bitlens.validation.LogisticDecoder(), bitlens.validation.ClassifierDecoder(n_steps=30)):
        result = bitlens.validate(
            {"given": system}, bitlens.validation.Classification(labels), decoder=decoder, n_seeds=1,
            method="gaussian", generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        assert 0.4 < result.rows[0].scores["accuracy"] <= 1
    here = bitlens.validation.condition_number(system.encoder.cpu(), (1, 16, 16))
    there = bitlens.validation.condition_number(system.encoder.cuda(), (1, 16, 16))
    assert math.isclose(here, there, rel_tol=1e-6)
