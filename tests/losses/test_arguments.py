"""What the losses refuse, and how they say so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from bitlens import losses, ops

sys.path.insert(0, str(Path(__file__).parent))


def test_wrong_arguments_are_named() -> None:
    query, key = torch.ones(3, 2), torch.ones(4, 2)
    scores = ops.infonce_scores(query, key)
    for kind, match, call in (
        (TypeError, "query: need a torch.Tensor or InfoNCEScores, got list", lambda: losses.NWJ()([1.0], key)),
        (TypeError, "key: need a torch.Tensor, got NoneType", lambda: losses.NWJ()(query)),
        (TypeError, "key: need a torch.Tensor, got NoneType", lambda: losses.SMILE()(query)),
        (TypeError, "PairwiseMapSums, got InfoNCEScores", lambda: losses.SMILE()(scores)),
        (ValueError, "key: need None beside InfoNCEScores", lambda: losses.NWJ()(scores, key)),
        (ValueError, "scale: need 1 beside InfoNCEScores, got 2", lambda: losses.NWJ()(scores, scale=2.0)),
        (ValueError, "temperature", lambda: losses.InfoNCE(temperature=0.5)(scores)),
        (ValueError, "temperature: need a finite number above 0, got -1", lambda: losses.InfoNCE(temperature=-1.0)),
        (TypeError, "temperature: need a number, got str", lambda: losses.NTXent(temperature="1")),
        (ValueError, "alpha: need a number from 0 to 1, got 1.5", lambda: losses.Interpolated(1.5)),
        (ValueError, "clip: need a number above 0 and at most 600, got 0", lambda: losses.SMILE(clip=0.0)),
        (ValueError, "read_off: need one of 'nwj', 'dv', got 'kl'", lambda: losses.JensenShannon(read_off="kl")),
        (ValueError, r"log_baseline: need a tensor .* got None", lambda: losses.Interpolated(0.5)(query, key)),
        (ValueError, r"u: need shape \(..., n\) with 3", lambda: losses.FLO()(query, key, u=torch.zeros(4))),
        (TypeError, "u: need float32, got float64", lambda: losses.FLO()(query, key, u=torch.zeros(3).double())),
        (ValueError, r"second: need the shape of first, \(3, 2\)", lambda: losses.NTXent()(query, key)),
        (ValueError, r"query: need at least one row", lambda: losses.NWJ()(query[:0], key)),
        (ValueError, r"query: need at least one row", lambda: losses.SMILE()(query[:0], key)),
    ):
        with pytest.raises(kind, match=match):
            call()
