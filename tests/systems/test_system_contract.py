"""One list of systems, every contract over the list."""

from __future__ import annotations

import importlib.util
import inspect
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import bitlens
from bitlens import systems

pytestmark = pytest.mark.usefixtures("one_thread")


def _load(name: str):
    specification = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


_load("system_case")
CASES = [case for path in sorted(Path(__file__).parent.glob("cases_*.py")) for case in _load(path.stem).CASES]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
BOTH = pytest.mark.parametrize("which", [0, 1], ids=["square", "not-square"])


def in_double(case, which: int, learn: tuple[str, ...] = ()) -> systems.ImagingSystem:
    encoder, noise, scenes = case.make(case.shapes[which], learn)
    return systems.ImagingSystem(encoder.double(), noise, scenes.double())


def test_every_system_has_a_case_and_a_row() -> None:
    rows = {description.name: description for description in systems.descriptions()}
    assert {case.name for case in CASES} == set(rows) - {"camera"}
    assert len(rows) >= 16
    for case in CASES:
        row = rows[case.name]
        assert row.formula
        assert row.reference
        assert row.designs
        assert callable(getattr(systems, case.name))
        assert "Reference:" in (inspect.getdoc(getattr(systems, case.name)) or "")


@cases
@BOTH
def test_forward_is_finite_and_counts_are_not_negative(case, which: int) -> None:
    assert case.shapes[1][0] != case.shapes[1][1]
    encoder, noise, scenes = case.make(case.shapes[which], ())
    with torch.no_grad():
        mean = encoder(scenes[:4])
        nothing = encoder(torch.zeros_like(scenes[:2]))
    assert scenes.ndim == 4
    assert mean.shape[0] == 4
    assert torch.isfinite(mean).all()
    assert torch.isfinite(nothing).all()
    assert float(mean.std()) > 0.0
    if case.counts:
        assert float(mean.min()) >= 0.0
        assert float(nothing.min()) >= 0.0
    measured = noise.sample(mean, torch.Generator().manual_seed(0))
    assert measured.shape == mean.shape
    assert torch.isfinite(measured).all()


@cases
def test_images_of_a_batch_do_not_meet(case) -> None:
    encoder, _, scenes = in_double(case, 1)
    with torch.no_grad():
        together, apart = encoder(scenes[:3]), torch.cat([encoder(scenes[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9 * float(together.abs().max()))


@cases
def test_an_empty_batch_gives_an_empty_one(case) -> None:
    encoder, _, scenes = case.make(case.shapes[1], ())
    with torch.no_grad():
        nothing, one = encoder(scenes[:0]), encoder(scenes[:1])
    assert nothing.shape == (0, *one.shape[1:])


@cases
def test_gradients_in_every_named_parameter(case) -> None:
    assert case.parameters
    encoder, _, scenes = in_double(case, 1, case.parameters)
    named = dict(encoder.named_parameters())
    for name in case.parameters:
        full = [key for key in named if key == name or key.endswith(f".{name}")]
        assert len(full) == 1, f"{name} among {list(named)}"
        value = named[full[0]].detach().clone().requires_grad_()
        scale = float(encoder(scenes[:1]).detach().abs().max())

        def mean(value: Tensor, key: str = full[0], scale: float = scale) -> Tensor:
            return torch.func.functional_call(encoder, {key: value}, (scenes[:1],)) / scale

        assert torch.autograd.gradcheck(mean, (value,), eps=1e-6, atol=1e-5, rtol=1e-3, fast_mode=True), name


@cases
def test_gradients_in_the_scene(case) -> None:
    encoder, _, scenes = in_double(case, 1)
    scene = scenes[:1].clone().requires_grad_()
    mean = encoder(scene)
    direction = torch.randn(mean.shape, dtype=mean.dtype, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((mean * direction).sum(), scene)
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().max()) > 0.0


@cases
def test_adjoint_is_exact(case) -> None:
    if not case.linear:
        assert not hasattr(case.make(case.shapes[0], ())[0], "A_adjoint")
        return
    encoder, _, scenes = case.make(case.shapes[1], ())
    encoder, scenes = encoder.float(), scenes[:2].float()
    with torch.no_grad():
        image = encoder.A(scenes)
        z = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
        back = encoder.A_adjoint(z)
        left, right = (image.double() * z.double()).sum(), (scenes.double() * back.double()).sum()
    assert back.shape == scenes.shape
    assert abs(float(left - right)) <= 1e-6 * float(image.double().norm() * z.double().norm())


@cases
def test_information_has_two_finite_sides(case) -> None:
    encoder, noise, scenes = case.make(case.shapes[0], ())
    with torch.no_grad():
        mean = encoder(scenes)
    measured = noise.sample(mean, torch.Generator().manual_seed(2))
    found = bitlens.estimate_information(measured, noise, mean=mean, generator=torch.Generator().manual_seed(3))
    assert found.lower_bits is not None
    assert found.upper_bits is not None
    assert found.confidence_interval_bits is not None
    assert all(math.isfinite(value) for value in (found.lower_bits, found.upper_bits, *found.confidence_interval_bits))
    assert found.stderr_bits is not None
    assert found.lower_bits <= found.upper_bits + 4.0 * found.stderr_bits
    assert found.upper_bits > 0.0
