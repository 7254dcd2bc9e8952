"""Log densities differentiate in the measurement: designs climb them."""

from __future__ import annotations

import pytest
import torch

from bitlens.densities import (
    Density,
    FactorMixtureDensity,
    GaussianCopulaDensity,
    GaussianDensity,
    GaussianMixtureDensity,
    StationaryGaussianDensity,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "density",
    [
        GaussianDensity(),
        GaussianMixtureDensity(),
        StationaryGaussianDensity(),
        FactorMixtureDensity(),
        GaussianCopulaDensity(),
    ],
    ids=lambda density: type(density).__name__,
)
def test_gradient_of_a_log_density(density: Density) -> None:
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(400, 5, 5, dtype=torch.float64, generator=generator)
    brightness = 1.0 + torch.rand(400, 1, 1, dtype=torch.float64, generator=generator)
    images = brightness * (white[:, :4, :4] + white[:, 1:, :4] + 5.0)
    fitted = density.fit(images[:300])
    measured = images[300:303].clone().requires_grad_()
    assert torch.autograd.gradcheck(fitted.log_prob, (measured,), eps=1e-6, atol=1e-4, rtol=1e-4)
    assert not fitted.fit(images.clone().requires_grad_()).log_prob(images[:2]).requires_grad
