"""One list of linear encoders, every contract over the list."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitlens.encoders.linear import LinearEncoder, channels_to_complex, complex_to_channels


def _load(name: str, folder: Path = Path(__file__).parent):
    specification = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


gradient_check = _load("gradient_check", Path(__file__).parents[1])
_load("linear_case")
CASES = [case for path in sorted(Path(__file__).parent.glob("cases_*.py")) for case in _load(path.stem).CASES]
NAMED = [(case, name) for case in CASES for name in case.parameters]
NAMED_IDS = [f"{case.name}-{name}" for case, name in NAMED]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def those(chosen: Callable[[Any], object]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [case for case in CASES if chosen(case)], ids=lambda case: case.name)


def scenes(case, batch: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *case.scene_shape, dtype=dtype, generator=generator)


def like(value: Tensor, seed: int = 1) -> Tensor:
    return torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(seed))


def test_there_are_cases() -> None:
    assert len(CASES) >= 10
    assert len({case.name for case in CASES}) == len(CASES)


@cases
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_adjoint_is_exact(case, dtype: torch.dtype, tolerance: float) -> None:
    """|<A x, z> - <x, A* z>| over |A x| |z|, on a scene that is not square."""
    encoder: LinearEncoder = case.make().to(dtype)
    scene = scenes(case, dtype=dtype)
    with torch.no_grad():
        mean = encoder.A(scene)
        measured = like(mean)
        back = encoder.A_adjoint(measured)
    assert mean.dtype == dtype
    assert back.shape == scene.shape
    left, right = (mean.double() * measured.double()).sum(), (scene.double() * back.double()).sum()
    scale = mean.double().norm() * measured.double().norm()
    assert float(scale) > 0.0
    assert abs(float(left - right)) <= tolerance * float(scale)


@cases
def test_adjoint_is_what_autograd_goes_back_by(case) -> None:
    encoder: LinearEncoder = case.make()
    scene = scenes(case).requires_grad_()
    mean = encoder.A(scene)
    measured = like(mean)
    (gradient,) = torch.autograd.grad(mean, scene, measured)
    torch.testing.assert_close(encoder.A_adjoint(measured), gradient, rtol=1e-10, atol=1e-10)


@cases
def test_linear_and_batched(case) -> None:
    encoder: LinearEncoder = case.make()
    first, second = scenes(case, seed=2), scenes(case, seed=3)
    with torch.no_grad():
        together = encoder(2.0 * first - 0.5 * second)
        apart = 2.0 * encoder(first) - 0.5 * encoder(second)
        one_by_one = torch.cat([encoder(first[:1]), encoder(first[1:])])
        all_at_once = encoder(first)
        none = encoder(first[:0])
    torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one_by_one, all_at_once, rtol=1e-12, atol=1e-12)
    assert none.shape == (0, *all_at_once.shape[1:])


@pytest.mark.parametrize(("case", "name"), NAMED, ids=NAMED_IDS)
def test_gradients_in_parameters(case, name: str) -> None:
    mean = gradient_check.Along.of(case.make(), name, scenes(case, batch=1))
    gradient_check.check_gradient(mean, mean.start, name)


@those(lambda case: case.flux is not None)
def test_flux(case) -> None:
    scene = torch.ones(1, *case.scene_shape, dtype=torch.float64)
    with torch.no_grad():
        share = float(case.make()(scene).sum() / scene.sum())
    assert share == pytest.approx(case.flux, rel=1e-6)


@those(lambda case: case.shifts)
def test_shift(case) -> None:
    scene = torch.zeros(1, *case.scene_shape, dtype=torch.float64)
    rows, columns = case.scene_shape[1:]
    scene[..., rows // 2, columns // 2] = 1.0
    with torch.no_grad():
        encoder = case.make()
        here, there = encoder(scene), encoder(scene.roll(1, -1))
    torch.testing.assert_close(there[..., 2:-2], here.roll(1, -1)[..., 2:-2], rtol=1e-9, atol=1e-9)


def test_complex_fields_are_pairs_of_channels() -> None:
    field = torch.randn(2, 3, 4, 5, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    channels = complex_to_channels(field)
    assert channels.shape == (2, 6, 4, 5)
    assert torch.equal(channels[:, 2], field[:, 1].real)
    assert torch.equal(channels[:, 5], field[:, 2].imag)
    assert torch.equal(channels_to_complex(channels), field)
    with pytest.raises(TypeError, match="field: need a complex tensor"):
        complex_to_channels(channels)
    with pytest.raises(ValueError, match="channels: need shape"):
        channels_to_complex(channels[:, :5])
