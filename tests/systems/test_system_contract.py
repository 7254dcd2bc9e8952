"""One list of systems, every contract over the list."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bitlens
from bitlens import encoders, systems

pytestmark = pytest.mark.usefixtures("one_thread")


def _load(name: str, folder: Path = Path(__file__).parent):
    specification = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


gradient_check = _load("gradient_check", Path(__file__).parents[1])
_load("system_case")
CASES = [case for path in sorted(Path(__file__).parent.glob("cases_*.py")) for case in _load(path.stem).CASES]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
NAMED = [(case, name) for case in CASES for name in case.parameters]
NAMED_IDS = [f"{index}-{case.name}-{name}" for index, case in enumerate(CASES) for name in case.parameters]
BOTH = pytest.mark.parametrize("which", [0, 1], ids=["square", "not-square"])


def _public_modules() -> list[type[nn.Module]]:
    found = []
    for package in (encoders, systems):
        for entry in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{entry.name}")
            found += [
                member
                for name, member in inspect.getmembers(module, inspect.isclass)
                if issubclass(member, nn.Module) and member.__module__ == module.__name__ and name[0] != "_"
            ]
    return [module for module in found if not inspect.isabstract(module)]


PUBLIC_MODULES = _public_modules()


def in_double(case, which: int, learn: tuple[str, ...] = ()) -> systems.ImagingSystem:
    encoder, noise, scenes = case.make(case.shapes[which], learn)
    return systems.ImagingSystem(encoder.double(), noise, scenes.double())


def along(encoder: nn.Module, name: str, scene: Tensor):
    keys = [key for key, _ in encoder.named_parameters() if key == name or key.endswith(f".{name}")]
    assert len(keys) == 1, f"{name} among {[key for key, _ in encoder.named_parameters()]}"
    return gradient_check.Along.of(encoder, keys[0], scene)


def test_the_gradient_check_sees_a_doubled_and_a_zero_gradient() -> None:
    def scaled(factor: float, slope: float) -> Callable[[Tensor], Tensor]:
        def mean(u: Tensor) -> Tensor:
            doubled = factor * u + (1 - factor) * u.detach()
            return 1 + slope * doubled.sum() * torch.linspace(-1, 1, 30, dtype=torch.float64)

        return mean

    check, like = gradient_check.check_gradient, torch.zeros(4)
    for slope in (1e-3, 10.0):
        check(scaled(1.0, slope), like, "right")
        for factor in (0.0, 2.0, 1.01):
            with pytest.raises(AssertionError, match="wrong: off by"):
                check(scaled(factor, slope), like, "wrong")
    with pytest.raises(AssertionError, match="flat: the case starts at a stationary point"):
        check(scaled(1.0, 1e-6), like, "flat")


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


@pytest.mark.parametrize(("case", "name"), NAMED, ids=NAMED_IDS)
def test_gradients_in_every_named_parameter(case, name: str) -> None:
    encoder, _, scenes = in_double(case, 1, case.parameters)
    mean = along(encoder, name, scenes[:1])
    gradient_check.check_gradient(mean, mean.start, name)


@pytest.mark.parametrize(("case", "name"), NAMED, ids=NAMED_IDS)
def test_first_step_of_an_optimiser_changes_the_mean_by_little(case, name: str) -> None:
    """A first step is 0.05 `parameter_scale` in every entry, within the domain: neither lost in noise nor a jump."""
    encoder, _, scenes = in_double(case, 1, case.parameters)
    moved = along(encoder, name, scenes[:2])
    signs = torch.randn(moved.start.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).sign()
    with torch.no_grad():
        at_start = moved(torch.zeros_like(moved.start))
        changes = [
            float((moved(0.05 * sign * signs, within_domain=True) - at_start).square().mean().sqrt())
            for sign in (-1.0, 1.0)
        ]
    # One of the two may be against an end of the domain.
    assert 1e-4 <= max(changes) <= 0.3, f"{name}: relative rms {changes} for a step of 0.05 x {moved.scale:g}"


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
def test_what_was_learned_loads_into_the_plain_encoder(case) -> None:
    learned, _, scenes = in_double(case, 1, case.parameters)
    with torch.no_grad():
        for value in learned.parameters():
            value.mul_(1.001)
    plain = in_double(case, 1).encoder
    plain.load_state_dict(learned.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(plain(scenes[:1]), learned(scenes[:1]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("module", PUBLIC_MODULES, ids=lambda module: module.__qualname__)
def test_every_public_module_has_a_reference(module: type[nn.Module]) -> None:
    assert "Reference:" in (inspect.getdoc(module) or "")


@pytest.mark.parametrize("name", [description.name for description in systems.descriptions()])
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("n_scenes", 0),
        ("n_scenes", -3),
        ("n_scenes", 2.5),
        ("shape", (0, 8)),
        ("shape", (8,)),
        ("shape", (8.5, 8)),
        ("scenes", torch.ones(2, 8, 8)),
        ("scenes", torch.full((2, 1, 8, 8), math.nan)),
        ("scenes", torch.ones(0, 1, 8, 8)),
        ("scenes", "a scene"),
    ],
    ids=("none", "negative", "half", "no-rows", "one-axis", "half-rows", "three-axes", "nan", "empty", "text"),
)
def test_bad_input_is_named(name: str, argument: str, value: object) -> None:
    factory = getattr(systems, name)
    if argument not in inspect.signature(factory).parameters:
        pytest.skip(f"{name} takes no {argument}")
    with pytest.raises((TypeError, ValueError), match=rf"^{argument}: need "):
        factory(**{argument: value})


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
