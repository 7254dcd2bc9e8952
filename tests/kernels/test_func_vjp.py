"""`torch.func.vjp` goes back when its transform has ended, on every backend: the pullback is the gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bitlens import ops
from bitlens.encoders import PSFConvolution

PSF = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
KEY = torch.randn(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def image() -> Tensor:
    return torch.rand(2, 1, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "psf_convolve": lambda x: ops.psf_convolve(x, PSF),
    "psf_convolve, circular": lambda x: ops.psf_convolve(x, PSF, boundary="circular").square(),
    "psf_convolve, in the PSF": lambda x: ops.psf_convolve(image(), x),
    "psf_convolve_channels": lambda x: ops.psf_convolve_channels(x, PSF[None, None]),
    "psf_deconvolve": lambda x: ops.psf_deconvolve(x, PSF, regularization=0.1),
    "fourier_filter": lambda x: ops.fourier_filter(torch.complex(x, x), torch.complex(x[0, 0], x[1, 0])).abs(),
    "poisson_gaussian_log_prob": lambda x: ops.poisson_gaussian_log_prob(x, x.square() + 1.0, read_std=1.0),
    "poisson_gaussian_log_prob_pairs": lambda x: ops.poisson_gaussian_log_prob_pairs(x, x.square() + 1.0, read_std=1.0),
    "infonce_scores": lambda x: ops.infonce_scores(x[0, 0], KEY).row_logsumexp,
    "encoder": lambda x: PSFConvolution(PSF)(x).square(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("backend", [None, "numba", "reference"])
def test_the_pullback_is_the_gradient(name: str, backend: str | None) -> None:
    def run() -> tuple[Tensor, Tensor]:
        function = FUNCTIONS[name]
        value, pullback = torch.func.vjp(function, image())
        direction = torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(3))
        (found,) = pullback(direction)
        leaf = image().requires_grad_()
        (expected,) = torch.autograd.grad(function(leaf), leaf, direction)
        return found, expected

    if backend is None:
        found, expected = run()
    else:
        with ops.use_backend(backend):
            found, expected = run()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
