"""What the losses refuse, and how they say so."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitlens import losses, ops

sys.path.insert(0, str(Path(__file__).parent))
from definitions import LOSSES, extra_of, normal, problem


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
        (ValueError, "scale: need 1 beside InfoNCEScores", lambda: losses.NWJ()(scores, scale=torch.tensor(1.0))),
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
        (
            ValueError,
            r"second: need the shape of first, \(0, 2\), n > 0",
            lambda: losses.NTXent()(query[:0], query[:0]),
        ),
        (ValueError, r"first: need shape \(..., n, d\), got \(2,\)", lambda: losses.NTXent().value(query[0], key[0])),
        (
            ValueError,
            r"u: need shape \(..., n\) with 3 .* got \(\)",
            lambda: losses.FLO()(query, key, u=torch.tensor(0.0)),
        ),
        (ValueError, r"u: need shape .* got \(\)", lambda: losses.FLO()(query, key, u=0.0)),
        (TypeError, "scale: need a number or a torch.Tensor, got str", lambda: losses.InfoNCE()(query, key, scale="a")),
        (
            TypeError,
            "scale: need a number or a torch.Tensor, got NoneType",
            lambda: losses.NWJ()(query, key, scale=None),
        ),
        (
            TypeError,
            "scale: need a number or a torch.Tensor, got list",
            lambda: losses.SMILE()(query, key, scale=[1.0]),
        ),
        (ValueError, r"key: need shape \(..., m, d\), got \(2,\)", lambda: losses.SMILE()(query, key[0])),
        (TypeError, "clip: need a number, got str", lambda: losses.SMILE(clip="5")),
        (ValueError, "clip: need a number above 0 and at most 600, got inf", lambda: losses.SMILE(clip=math.inf)),
        (ValueError, "clip: need a number above 0 and at most 600, got nan", lambda: losses.SMILE(clip=math.nan)),
        (ValueError, "clip: need at most 64 in torch.float32, got 100", lambda: losses.SMILE(100.0)(query, key)),
        (ValueError, "n_keys: need at least 1, got 0", lambda: losses.InfoNCE().ceiling_nats(3, 0)),
        (ValueError, "n_queries: need at least 1, got 0", lambda: losses.InfoNCE(two_sided=True).ceiling_nats(0, 3)),
        (ValueError, "n_pairs: need at least 1, got 0", lambda: losses.NTXent().ceiling_nats(0)),
        (ValueError, "n_keys: need at least 2, got 1", lambda: losses.Interpolated(0.5).ceiling_nats(1, 1)),
        (ValueError, "n_queries: need at least 1, got 0", lambda: losses.Interpolated(0.5).ceiling_nats(0, 2)),
    ):
        with pytest.raises(kind, match=match):
            call()


def test_scores_go_with_no_temperature_and_no_normalisation() -> None:
    scores = ops.infonce_scores(torch.ones(3, 2), torch.ones(4, 2))
    for module in (
        losses.InfoNCE(learn_temperature=True),
        losses.InfoNCE(normalize=True),
        losses.InfoNCE(temperature=2),
    ):
        with pytest.raises(ValueError, match=r"query: need a torch.Tensor where there is a temperature.*InfoNCEScores"):
            module(scores)


def test_two_sided_scores_need_their_positives() -> None:
    query, key, _, _, _, positive = problem(4, 6)
    module = losses.InfoNCE(two_sided=True)
    scores = ops.infonce_scores(query, key, positive=positive)
    with pytest.raises(ValueError, match=r"positive: need the column of .* since the scores do not tell it, got None"):
        module(scores)
    for kind, match, bad in (
        (TypeError, "positive: need a torch.Tensor, got list", positive.tolist()),
        (TypeError, "positive: need int64, got int32", positive.int()),
        (ValueError, r"positive: need shape \(..., n\), here \(4,\), got \(3,\)", positive[:3]),
        (ValueError, r"positive: need shape \(..., n\), here \(4,\), got \(\)", positive[0]),
        (ValueError, r"positive: need shape \(..., n\), here \(4,\), got \(2, 4\)", positive.expand(2, 4)),
        (ValueError, "positive: need columns from 0 to 5, got values from 3 to 6", torch.tensor([3, 4, 5, 6])),
        (ValueError, "positive: need columns from 0 to 5, got values from -1 to 5", torch.tensor([3, 4, 5, -1])),
        (ValueError, "positive: need a key of its own for every query when two-sided", torch.tensor([3, 4, 5, 3])),
    ):
        with pytest.raises(kind, match=match):
            module(scores, positive=bad)
        with pytest.raises(kind, match=match):
            module.value(scores, positive=bad)
    with pytest.raises(ValueError, match="positive: need a key of its own for every query when two-sided"):
        module(query, key, positive=torch.tensor([3, 4, 5, 3]))
    batch = ops.infonce_scores(query.expand(2, 4, 3), key, positive=positive)
    torch.testing.assert_close(module(batch, positive=positive), module(scores, positive=positive))
    assert float(losses.InfoNCE()(query, key, positive=torch.tensor([3, 4, 5, 3])).detach()) > 0  # one-sided may repeat


def test_masked_rows_may_repeat_a_positive() -> None:
    query, key, _, _, _, _ = problem(4, 6)
    bias = torch.zeros(4, dtype=torch.float64).index_fill(0, torch.tensor([2, 3]), -math.inf)
    positive = torch.tensor([0, 1, 0, 0])
    module = losses.InfoNCE(two_sided=True)
    expected = module(query[:2], key, positive=positive[:2])
    torch.testing.assert_close(module(query, key, positive=positive, query_bias=bias), expected)
    scores = ops.infonce_scores(query, key, positive=positive, query_bias=bias)
    torch.testing.assert_close(module(scores, positive=positive), expected)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "InfoNCE two-sided"])
def test_a_positive_beside_scores_or_sums_is_refused(name: str) -> None:
    module = LOSSES[name][0]
    query, key, _, _, extra, positive = problem(4, 6)
    scores = ops.infonce_scores(query, key)
    softplus = ops.pairwise_map_sums(query, key, map="softplus")
    clipped = ops.pairwise_map_sums(query, key, map="clipped_exp", limit=1.2)
    calls = {"JensenShannon": (module.forward, softplus), "SMILE": (module.value, clipped)}
    call, made = calls.get(name, (module.forward, scores))
    with pytest.raises(ValueError, match=rf"positive: need None beside {type(made).__name__}, got Tensor"):
        call(made, positive=positive, **extra_of(name, extra))


# ---- Sums know their map ----


def test_sums_of_another_map_are_refused() -> None:
    query, key = normal(4, 3), normal(6, 3, seed=1)
    softplus = ops.pairwise_map_sums(query, key, map="softplus")
    clipped = ops.pairwise_map_sums(query, key, map="clipped_exp", limit=1.0)
    for match, call, sums in (
        ("of 'softplus', whose limit is 0, got those with limit 1", losses.JensenShannon(), clipped),
        ("of 'clipped_exp', whose limit is 5, got those with limit 0", losses.SMILE().value, softplus),
        ("of 'clipped_exp', whose limit is 5, got those with limit 1", losses.SMILE(5.0).value, clipped),
    ):
        with pytest.raises(ValueError, match=f"query: need PairwiseMapSums {match}"):
            call(sums)
        # Where values are not looked at, NaN says so.
        torch.compiler.reset()
        assert bool(torch.compile(call, fullgraph=True, backend="aot_eager")(sums).isnan())
        many = ops.PairwiseMapSums(*(torch.stack([part, part]) for part in sums))
        assert torch.func.vmap(call)(many).isnan().all()
        assert torch.compile(call, fullgraph=True, backend="aot_eager")(many).isnan().all()
        with pytest.raises(ValueError, match=f"query: need PairwiseMapSums {match}"):
            call(many)
    assert float(losses.SMILE(1.0).value(clipped)) == float(losses.SMILE(1.0).value(query, key))


@pytest.mark.parametrize("name", ["JensenShannon", "SMILE"])
def test_sums_pass_through_compile_and_vmap(name: str) -> None:
    query, key = normal(3, 4, 2), normal(3, 6, 2, seed=1)
    module = losses.JensenShannon() if name == "JensenShannon" else losses.SMILE(1.0)
    call = module.forward if name == "JensenShannon" else module.value

    def sums_of(query: Tensor, key: Tensor) -> ops.PairwiseMapSums:
        if name == "JensenShannon":
            return ops.pairwise_map_sums(query, key, map="softplus")
        return ops.pairwise_map_sums(query, key, map="clipped_exp", limit=1.0)

    expected = torch.stack([call(query[b], key[b]) for b in range(3)])
    many = torch.func.vmap(sums_of)(query, key)
    assert isinstance(many, ops.PairwiseMapSums)
    torch.testing.assert_close(torch.func.vmap(lambda *pair: call(sums_of(*pair)))(query, key), expected)
    torch.testing.assert_close(call(many), expected.mean() if name == "JensenShannon" else expected)
    torch.compiler.reset()
    traced = torch.compile(sums_of, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(call(traced(query[0], key[0])), expected[0])
    traced_loss = torch.compile(lambda *pair: call(sums_of(*pair)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced_loss(query[0], key[0]), expected[0])


def test_sums_without_rows_or_negatives_are_refused() -> None:
    query, key = normal(4, 3), normal(6, 3, seed=1)
    for call, arguments in (
        (losses.JensenShannon(), {"map": "softplus"}),
        (losses.SMILE(1.0).value, {"map": "clipped_exp", "limit": 1.0}),
    ):
        with pytest.raises(ValueError, match=r"query: need at least one row, got shape \(0,\)"):
            call(ops.pairwise_map_sums(query[:0], key, **arguments))
        with pytest.raises(ValueError, match=r"key: need at least 2 keys.*got PairwiseMapSums without any"):
            call(ops.pairwise_map_sums(query[:1], key[:1], **arguments))
        masked = torch.full((4,), -math.inf, dtype=torch.float64)
        assert bool(call(ops.pairwise_map_sums(query, key, query_bias=masked, **arguments)).isnan())


# ---- What they look like ----


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (losses.InfoNCE(temperature=0.1), "InfoNCE(temperature=0.1, two_sided=False, normalize=False)"),
        (
            losses.InfoNCE(temperature=0.5, learn_temperature=True, two_sided=True, normalize=True),
            "InfoNCE(temperature=0.5, learn_temperature=True, two_sided=True, normalize=True)",
        ),
        (losses.NTXent(temperature=0.5), "NTXent(temperature=0.5)"),
        (losses.NWJ(), "NWJ()"),
        (losses.DonskerVaradhan(), "DonskerVaradhan()"),
        (losses.LeaveOneOut(), "LeaveOneOut()"),
        (losses.Interpolated(0.25), "Interpolated(alpha=0.25)"),
        (losses.FLO(), "FLO()"),
        (losses.JensenShannon(read_off="dv"), "JensenShannon(read_off='dv')"),
        (losses.SMILE(3.0), "SMILE(clip=3)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_are_printed(module: torch.nn.Module, text: str) -> None:
    assert repr(module) == text
