"""Published definitions of the losses on full matrices, and one list of the modules that are held against them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bitlens import losses

INFINITY = math.inf


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


# ---- Definitions on the full matrix: S (n, m), positive (n,), extra = u or log baseline (n,) ----


def own(scores: Tensor, positive: Tensor) -> Tensor:
    return scores[torch.arange(len(scores)), positive]


def negatives(scores: Tensor, positive: Tensor) -> Tensor:
    """The scores of every row's negatives, (n, m - 1)."""
    keep = torch.ones_like(scores, dtype=torch.bool)
    keep[torch.arange(len(scores)), positive] = False
    return scores[keep].reshape(len(scores), -1)


def info_nce(scores: Tensor, positive: Tensor, extra: Tensor) -> Tensor:
    return math.log(scores.shape[1]) - torch.nn.functional.cross_entropy(scores, positive)


def info_nce_two_sided(scores: Tensor, positive: Tensor, extra: Tensor) -> Tensor:
    columns = torch.nn.functional.cross_entropy(scores[:, positive].T, torch.arange(len(scores)))
    return 0.5 * (info_nce(scores, positive, extra) + math.log(len(scores)) - columns)


def nwj(scores: Tensor, positive: Tensor, extra: Tensor) -> Tensor:
    return own(scores, positive).mean() - torch.exp(negatives(scores, positive) - 1).mean()


def donsker_varadhan(scores: Tensor, positive: Tensor, extra: Tensor) -> Tensor:
    return own(scores, positive).mean() - torch.exp(negatives(scores, positive)).mean().log()


def leave_one_out(scores: Tensor, positive: Tensor, extra: Tensor) -> Tensor:
    return (own(scores, positive) - torch.exp(negatives(scores, positive)).mean(dim=1).log()).mean()


def interpolated(alpha: float) -> Callable[..., Tensor]:
    def value(scores: Tensor, positive: Tensor, extra: Tensor) -> Tensor:
        k, q = scores.shape[1], torch.exp(extra)
        a, other = own(scores, positive), torch.exp(negatives(scores, positive))
        m_own = (torch.exp(a) + (k - 2) / (k - 1) * other.sum(dim=1)) / (k - 1)
        m_other = other.mean(dim=1)
        joint = a - torch.log(alpha * m_own + (1 - alpha) * q)
        return 1 + joint.mean() - (m_other / (alpha * m_other + (1 - alpha) * q)).mean()

    return value


def flo(scores: Tensor, positive: Tensor, extra: Tensor) -> Tensor:
    contrast = torch.exp(-extra[:, None] + negatives(scores, positive) - own(scores, positive)[:, None])
    return 1 - (extra + contrast.mean(dim=1)).mean()


def jensen_shannon(scores: Tensor, positive: Tensor, extra: Tensor) -> Tensor:
    def softplus(x: Tensor) -> Tensor:
        return torch.log1p(torch.exp(x))

    return -softplus(-own(scores, positive)).mean() - softplus(negatives(scores, positive)).mean()


def smile(scores: Tensor, positive: Tensor, extra: Tensor) -> Tensor:
    clipped = torch.exp(negatives(scores, positive).clamp(-1.2, 1.2))
    return own(scores, positive).mean() - clipped.mean().log()


# name -> module, definition of minus its loss up to a constant, sign of the value in the loss, name of the extra input
LOSSES: dict[str, tuple[torch.nn.Module, Callable[..., Tensor], str | None]] = {
    "InfoNCE": (losses.InfoNCE(), info_nce, None),
    "InfoNCE two-sided": (losses.InfoNCE(two_sided=True), info_nce_two_sided, None),
    "NWJ": (losses.NWJ(), nwj, None),
    "DonskerVaradhan": (losses.DonskerVaradhan(), donsker_varadhan, None),
    "LeaveOneOut": (losses.LeaveOneOut(), leave_one_out, None),
    "Interpolated 0": (losses.Interpolated(0.0), interpolated(0.0), "log_baseline"),
    "Interpolated 0.3": (losses.Interpolated(0.3), interpolated(0.3), "log_baseline"),
    "Interpolated 1": (losses.Interpolated(1.0), interpolated(1.0), "log_baseline"),
    "FLO": (losses.FLO(), flo, "u"),
    "JensenShannon": (losses.JensenShannon(), jensen_shannon, None),
    "SMILE": (losses.SMILE(clip=1.2), smile, None),
}
FROM_SCORES = [name for name in LOSSES if name not in ("JensenShannon", "SMILE")]


def extra_of(name: str, extra: Tensor) -> dict[str, Tensor]:
    keyword = LOSSES[name][2]
    return {} if keyword is None else {keyword: extra}


def problem(n: int, m: int, d: int = 3, seed: int = 0) -> tuple[Tensor, ...]:
    """query, key, query_bias, key_bias, extra, and distinct positives."""
    parts = (normal(n, d, seed=seed), normal(m, d, seed=seed + 1), normal(n, seed=seed + 2), normal(m, seed=seed + 3))
    positive = torch.randperm(m, generator=generator(seed + 4))[:n]
    return (*(part.requires_grad_() for part in (*parts, normal(n, seed=seed + 5))), positive)


def matrix(query: Tensor, key: Tensor, query_bias: Tensor, key_bias: Tensor) -> Tensor:
    return 0.7 * (query @ key.T) + query_bias[:, None] + key_bias[None, :]


def sign_of(name: str) -> float:
    return 1.0 if name == "LeaveOneOut" else -1.0
