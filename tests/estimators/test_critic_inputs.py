"""What critics see of samples, and the Gaussian log ratio that they start from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special, stats

from bitlens.estimators._critic_inputs import fit_input_map
from bitlens.estimators._critic_models import SeparableCritic
from bitlens.estimators._critic_models import fit_gaussian_ratio as fit_ratio

# ---- What critics see ----


def test_ranks_do_not_see_increasing_maps_and_stand_in_the_order_of_the_samples() -> None:
    random = np.random.default_rng(0)
    training, other = random.standard_normal((400, 1)), random.standard_normal((50, 1))
    plain = fit_input_map(torch.from_numpy(training), "rank")
    cubed = fit_input_map(torch.from_numpy(np.sinh(3 * training)), "rank")
    assert torch.equal(plain(torch.from_numpy(training)), cubed(torch.from_numpy(np.sinh(3 * training))))
    mapped = plain(torch.from_numpy(training))[:, 0]
    assert torch.equal(torch.argsort(mapped), torch.from_numpy(np.argsort(training[:, 0])))
    expected = special.ndtri(np.arange(1, 401) / 401)
    torch.testing.assert_close(mapped.sort().values, torch.from_numpy(expected).float())
    inside = np.sort(other[np.abs(other) < np.abs(training).max()])
    assert (np.diff(plain(torch.from_numpy(inside[:, None]))[:, 0].numpy()) > 0).all()
    # Rows outside the training range are clamped to it: the map does not look at them.
    assert float(plain(torch.tensor([[1e300]], dtype=torch.float64))[0, 0]) == pytest.approx(expected[-1], rel=1e-6)


def test_maps_of_discrete_constant_and_heavy_tailed_coordinates_stay_finite() -> None:
    random = np.random.default_rng(0)
    values = np.stack([random.poisson(0.3, 300), np.full(300, 7.0), random.standard_cauchy(300) * 1e200], axis=1)
    for preprocess in ("rank", "standardize"):
        mapped = fit_input_map(torch.from_numpy(values), preprocess)(torch.from_numpy(values))
        assert mapped.shape == (300, 4)
        assert bool(torch.isfinite(mapped).all())
        assert float(mapped.abs().max()) < 10
        zeros = values[:, 0] == 0
        assert len(mapped[torch.from_numpy(zeros), 0].unique()) == 1
        assert float(mapped[:, 1].abs().max()) == pytest.approx(0.0, abs=1e-6)


def test_common_size_is_the_last_column() -> None:
    random = np.random.default_rng(0)
    size = np.exp(3 * random.standard_normal(2000))
    values = random.standard_normal((2000, 30)) * size[:, None]
    mapped = fit_input_map(torch.from_numpy(values), "auto")(torch.from_numpy(values))
    assert stats.spearmanr(mapped[:, -1].numpy(), size).statistic > 0.99


# ---- The Gaussian log ratio ----


def test_critic_starts_at_the_gaussian_log_ratio() -> None:
    covariance = np.full((6, 6), 0.5) + 0.5 * np.eye(6)
    samples = np.random.default_rng(1).multivariate_normal(np.zeros(6), covariance, 50_000)
    x, z = (torch.from_numpy(part).float() for part in (samples[:, :3], samples[:, 3:]))
    critic = SeparableCritic(
        2,
        fit_ratio(x, z),
        (3, 3),
        (3, 3),
        hidden=8,
        features=4,
        generator=torch.Generator().manual_seed(0),
        with_row_shift=False,
    )
    assert len(critic.correlation) == 1
    assert float(critic.correlation[0]) == pytest.approx(3 / 4, abs=0.01)
    found = critic.mean(x[:40], z[:40]).scores().positive.detach().numpy()
    both = np.concatenate([x[:40], z[:40]], axis=1)
    true = (
        stats.multivariate_normal(np.zeros(6), covariance).logpdf(both)
        - stats.multivariate_normal(np.zeros(3), covariance[:3, :3]).logpdf(both[:, :3])
        - stats.multivariate_normal(np.zeros(3), covariance[:3, :3]).logpdf(both[:, 3:])
    )
    np.testing.assert_allclose(found, true, atol=0.08)


def test_correlations_are_freed_of_what_many_coordinates_add() -> None:
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.standard_normal((1000, 40)))
    z = torch.from_numpy(random.standard_normal((1000, 40)))
    # The largest sample correlation of independent samples is near 2 sqrt(0.04 0.96) = 0.39 here.
    centred = [torch.linalg.qr(side - side.mean(0)).Q for side in (x, z)]
    assert float(torch.linalg.svdvals(centred[0].mT @ centred[1])[0]) > 0.33
    independent = fit_ratio(x, z).correlation
    assert float(independent.square().sum()) < 0.1
    z[:, 0] = 0.8 * x[:, 0] + 0.6 * z[:, 0]
    # Sampling deviation of a correlation of 0.8 from 1000 pairs: 0.0114.
    assert float(fit_ratio(x, z).correlation[0]) == pytest.approx(0.8, abs=0.04)
