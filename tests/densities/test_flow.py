"""Flow density: a density that starts as a Gaussian and learns what that cannot; needs zuko."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens.densities import GaussianDensity
from bitlens.densities.flow import FlowDensity

pytestmark = pytest.mark.usefixtures("one_thread")
needs_zuko = pytest.mark.skipif(importlib.util.find_spec("zuko") is None, reason="zuko is not installed")

SMALL = FlowDensity(hidden=32, max_passes=6)


def crescent(n: int, seed: int, rows: int = 1) -> tuple[Tensor, Tensor]:
    """Pairs (x, x^2 / 2 + 0.3 e), one a row, and their log density."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, rows, generator=generator, dtype=torch.float64)
    e = torch.randn(n, rows, generator=generator, dtype=torch.float64)
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    truth = (normal.log_prob(x) + normal.log_prob(e) - math.log(0.3)).sum(1)
    return torch.stack([x, x**2 / 2 + 0.3 * e], -1), truth


@needs_zuko
def test_density_integrates_to_one() -> None:
    images, _ = crescent(600, 0)
    density = SMALL.fit(images)
    across = torch.linspace(-8, 8, 1201, dtype=torch.float64)
    along = torch.linspace(-8, 14, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(across, along).reshape(-1, 1, 2)
    integral = density.log_prob(grid).exp().sum() * (across[1] - across[0]) * (along[1] - along[0])
    assert float(integral) == pytest.approx(1.0, abs=2e-3)


@needs_zuko
def test_learns_a_law_that_is_far_from_gaussian() -> None:
    train, _ = crescent(3000, 1, rows=2)
    test, truth = crescent(3000, 2, rows=2)
    density = FlowDensity(hidden=64).fit(train)
    excess = float((truth - density.log_prob(test)).mean()) / 4
    gaussian = float((truth - GaussianDensity().fit(train).log_prob(test)).mean()) / 4
    assert gaussian > 0.3
    assert 0.0 < excess < 0.03


@needs_zuko
def test_gaussian_images_cost_little_more_than_their_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(16, dtype=torch.float64) + 0.5 * torch.eye(16, dtype=torch.float64).roll(1, 0)
    law = torch.distributions.MultivariateNormal(torch.zeros(16, dtype=torch.float64), mixing @ mixing.mT)

    def draw(n: int) -> Tensor:
        return (torch.randn(n, 16, generator=generator, dtype=torch.float64) @ mixing.mT).reshape(n, 4, 4)

    density, test = SMALL.fit(draw(2000)), draw(4000)
    cross_entropy = -density.log_prob(test)
    excess = float(cross_entropy.mean() - law.entropy()) / 16
    assert abs(excess - 0.01) < 0.01 + 4 * float(cross_entropy.std()) / math.sqrt(4000) / 16


@needs_zuko
def test_samples_follow_the_density() -> None:
    images, _ = crescent(3000, 3)
    density = FlowDensity(hidden=64).fit(images)
    drawn = density.sample(4000, torch.Generator().manual_seed(0))
    assert drawn.shape == (4000, 1, 2)
    assert drawn.dtype == torch.float64
    # The density's own entropy two ways: over its samples, and over a grid.
    across = torch.linspace(-6, 6, 601, dtype=torch.float64)
    along = torch.linspace(-6, 12, 601, dtype=torch.float64)
    log_q = density.log_prob(torch.cartesian_prod(across, along).reshape(-1, 1, 2))
    entropy = -float((log_q.exp() * log_q).sum() * (across[1] - across[0]) * (along[1] - along[0]))
    own = density.log_prob(drawn)
    assert float(-own.mean()) == pytest.approx(entropy, abs=0.01 + 4 * float(own.std()) / math.sqrt(4000))
    assert float(torch.corrcoef(torch.stack([drawn[:, 0, 0] ** 2, drawn[:, 0, 1]]))[0, 1]) > 0.8


@needs_zuko
def test_counts_are_dequantised_on_request_only_and_bound_their_probability_from_below() -> None:
    generator = torch.Generator().manual_seed(1)
    counts = torch.poisson(torch.full((4000, 1, 2), 4.0, dtype=torch.float64), generator=generator)
    with pytest.raises(ValueError, match="dequantize"):
        SMALL.fit(counts)
    with pytest.raises(ValueError, match="dequantize"):
        SMALL.fit(counts + 0.1 * torch.rand(counts.shape, generator=generator)).fit(counts)
    density = dataclasses.replace(SMALL, dequantize=True, n_draws=64).fit(counts)
    test = torch.poisson(torch.full((4000, 1, 2), 4.0, dtype=torch.float64), generator=generator)
    truth = torch.distributions.Poisson(torch.tensor(4.0, dtype=torch.float64)).log_prob(test).sum((1, 2))
    excess = float((truth - density.log_prob(test)).mean()) / 2
    assert 0.0 < excess < 0.04
    axis = torch.arange(-20.0, 60.0, dtype=torch.float64)
    total = density.log_prob(torch.cartesian_prod(axis, axis).reshape(-1, 1, 2)).exp().sum()
    assert float(total) == pytest.approx(1.0, abs=0.03)
    drawn = density.sample(500, torch.Generator().manual_seed(2))
    assert bool((drawn == drawn.round()).all())
    assert float(drawn.mean()) == pytest.approx(4.0, abs=0.3)
    with pytest.raises(ValueError, match="whole numbers"):
        density.log_prob(test + 0.5)


@needs_zuko
def test_log_prob_of_an_image_does_not_depend_on_its_company() -> None:
    counts = torch.poisson(torch.full((100, 2, 2), 4.0), generator=torch.Generator().manual_seed(1))
    density = dataclasses.replace(SMALL, dequantize=True).fit(counts)
    torch.testing.assert_close(density.log_prob(counts)[:5], density.log_prob(counts[:5]))


@needs_zuko
def test_one_seed_gives_one_fit_bit_for_bit() -> None:
    images, _ = crescent(200, 4)
    before = torch.get_rng_state()
    first, second = SMALL.fit(images), SMALL.fit(np.asarray(images))  # type: ignore[arg-type]
    assert torch.equal(first.log_prob(images), second.log_prob(images))
    given = SMALL.fit(images, generator=torch.Generator().manual_seed(5))
    assert not torch.equal(first.log_prob(images), given.log_prob(images))
    assert torch.equal(*(given.sample(4, torch.Generator().manual_seed(0)) for _ in range(2)))
    assert torch.equal(before, torch.get_rng_state())
    values = {f.name: getattr(first, f.name) for f in dataclasses.fields(first)}
    assert torch.equal(FlowDensity(**values).log_prob(images), first.log_prob(images))


@needs_zuko
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 2), (2, 2, 2)])
def test_any_shape_of_up_to_three_axes(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(60, *shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        density = SMALL.fit(images)
    assert bool(torch.isfinite(density.log_prob(images)).all())
    assert density.sample(3, generator).shape == (3, *shape)


@needs_zuko
@pytest.mark.parametrize(
    ("measured", "match"),
    [
        (torch.rand(5, 3, 3), "at least 10"),
        (torch.rand(20, 1, 1, 2, 2), "column"),
        (torch.full((20, 2, 2), 0.5), "vary"),
        (torch.full((20, 2, 2), math.inf), "finite"),
    ],
)
def test_bad_images_are_named(measured: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SMALL.fit(measured)


@pytest.mark.parametrize(
    ("change", "error"),
    [({"bins": 1}, ValueError), ({"hidden": 1.5}, TypeError), ({"learning_rate": -1.0}, ValueError)],
)
def test_bad_settings_are_named(change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(change))):
        FlowDensity(**change)


def test_use_before_fit_is_refused() -> None:
    with pytest.raises(RuntimeError, match="call fit first"):
        FlowDensity().log_prob(torch.rand(3, 2, 2))
    with pytest.raises(RuntimeError, match="call fit first"):
        FlowDensity().sample(2)


def test_absent_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name == "zuko":
            raise ModuleNotFoundError("No module named 'zuko'")
        return genuine(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ModuleNotFoundError, match="pip install zuko"):
        FlowDensity().fit(torch.rand(20, 2, 2))
