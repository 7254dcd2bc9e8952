"""What a validation holds: bits and scores of every design and seed, and how well one ranks the other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import numpy as np
from numpy.typing import NDArray

from bitlens.estimators._seeds import derived_seed
from bitlens.validation._ranking import interval_over_seeds, seed_noise, spearman
from bitlens.validation.scores import LOWER_IS_BETTER

Over = Literal["both", "seeds", "designs"]
_N_RESAMPLES = 2000


@final
@dataclass(frozen=True)
class ValidationRow:
    """One design with one seed: `bits` and their kind as in `InformationEstimate`, and the decoder's scores.

    `light` is the sum over pixels of the mean measurement, mean over scenes: photo-electrons per image where the noise
    is a sensor's. `seconds` is CPU time.
    """

    design: str
    seed: int
    bits: float
    stderr_bits: float | None
    lower_bits: float | None
    upper_bits: float | None
    bound: str
    method: str
    scores: Mapping[str, float]
    light: float
    seconds: float


@final
@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's coefficient over designs of means over seeds, with an interval.

    Positive says that a better value of `by` goes with a better `score`. None where all designs have one value. `over`
    says of what the interval is: "seeds", for these designs if there were endless seeds; "designs", for all designs
    from which these were drawn; "both".
    """

    spearman: float | None
    interval: tuple[float, float] | None
    n_designs: int
    n_seeds: int
    by: str
    score: str
    over: Over


@final
@dataclass(frozen=True)
class ValidationResult:
    """Bits against scores: `rows` by design, then seed; `metrics` name -> design -> value.

    `score_names` has the main score first; `lower_is_better` names scores and metrics of which less is better.
    """

    rows: tuple[ValidationRow, ...]
    metrics: Mapping[str, Mapping[str, float]]
    score_names: tuple[str, ...]
    lower_is_better: tuple[str, ...]
    decoder: str
    n_training: int
    n_test: int
    seed: int
    version: str
    warnings: tuple[str, ...]

    @property
    def designs(self) -> tuple[str, ...]:
        """Names in the order they were given."""
        return tuple(dict.fromkeys(row.design for row in self.rows))

    @property
    def n_seeds(self) -> int:
        """Splits and noise draws per design."""
        return len({row.seed for row in self.rows})

    def values(self, name: str) -> NDArray[np.float64]:
        """(design, seed) of "bits", a score, "light" or a metric, which is the same for all seeds.

        Raises:
            ValueError: a name that is none of these.
        """
        shape = (len(self.designs), self.n_seeds)
        if name in self.metrics:
            column = np.array([self.metrics[name][design] for design in self.designs], dtype=np.float64)
            return np.broadcast_to(column[:, None], shape).copy()
        if name in ("bits", "light"):
            flat = [getattr(row, name) for row in self.rows]
        elif name in self.score_names:
            flat = [row.scores[name] for row in self.rows]
        else:
            known = ("bits", "light", *self.score_names, *self.metrics)
            raise ValueError(f"name: need one of {', '.join(known)}, got {name!r}")
        return np.array(flat, dtype=np.float64).reshape(shape)

    def mean(self, name: str) -> dict[str, float]:
        """Mean over seeds for each design."""
        return dict(zip(self.designs, self.values(name).mean(1).tolist(), strict=True))

    def deviation(self, name: str, *, paired: bool = False) -> dict[str, float]:
        """Standard deviation over seeds for each design; 0 with one seed.

        `paired`: of what is left after the mean over designs of each seed, which shares its test scenes among all.
        """
        values = self.values(name)
        if paired:
            values = values - values.mean(0)
        spread = values.std(1, ddof=1) if values.shape[1] > 1 else np.zeros(len(values))
        return dict(zip(self.designs, spread.tolist(), strict=True))

    def rank_correlation(
        self, score: str | None = None, *, by: str = "bits", over: Over = "both", confidence: float = 0.95
    ) -> RankCorrelation:
        """How well `by` ("bits" or a metric) ranks the designs as `score` (default the main one) does.

        "designs": percentiles of 2000 resamples of them. "seeds" keeps the designs and draws noise from the residuals
        of all of them, so that it holds for two or three seeds. "both": percentiles of resamples of designs and seeds
        (the same for all), and never less than "seeds". With one seed "both" is "designs", and "seeds" gives none.

        Raises:
            ValueError: an unknown name, or fewer than 3 designs.

        Reference: Spearman 1904, doi:10.2307/1412159; Efron and Tibshirani 1993, An Introduction to the Bootstrap.
        """
        score = self.score_names[0] if score is None else score
        truth, drawn = self._correlations((by,), score, over)
        found = self._found(truth[0], drawn[0], by, score, over, confidence)
        if over == "designs" or found.interval is None or self.n_seeds < 2:
            return found
        random = np.random.default_rng(derived_seed(self.seed, "rank correlation seeds"))
        low, high = interval_over_seeds(self._oriented(by), self._oriented(score), confidence, random)
        if over == "both":  # resamples of two or three seeds alone are too much alike
            low, high = min(low, found.interval[0]), max(high, found.interval[1])
        return dataclasses.replace(found, interval=(low, high))

    def advantage(
        self, metric: str, score: str | None = None, *, over: Over = "both", confidence: float = 0.95
    ) -> RankCorrelation:
        """Spearman's coefficient of the bits less that of a metric, on the same resamples; one value for all counts 0.

        Over "seeds" the interval is the quantiles together with those mirrored at the difference.

        Raises:
            ValueError: an unknown name, or fewer than 3 designs.
        """
        score = self.score_names[0] if score is None else score
        truth, drawn = self._correlations(("bits", metric), score, over)
        difference = np.nan_to_num(truth[0]) - np.nan_to_num(truth[1])
        resampled = np.nan_to_num(drawn[0]) - np.nan_to_num(drawn[1])
        found = self._found(float(difference), resampled, f"bits - {metric}", score, over, confidence)
        if over != "seeds" or found.interval is None:
            return found
        low, high = found.interval
        ends = min(low, 2 * difference - high), max(high, 2 * difference - low)
        return dataclasses.replace(found, interval=(max(float(ends[0]), -2.0), min(float(ends[1]), 2.0)))

    def to_dict(self) -> dict[str, Any]:
        """Fields, means over seeds and rank correlations as plain values; None for what is not finite."""
        found = _plain(dataclasses.asdict(self))
        found["mean"] = _plain({name: self.mean(name) for name in ("bits", *self.score_names)})
        if len(self.designs) >= 3:
            found["rank_correlations"] = [
                _plain(dataclasses.asdict(self.rank_correlation(score, by=by)))
                for score in self.score_names
                for by in ("bits", *self.metrics)
            ]
        return found

    def table(self) -> str:
        """Designs by falling bits with mean and deviation over seeds, then the rank correlations, as text."""
        columns = ("bits", *self.score_names)
        heads = ("design", *columns, *self.metrics)
        means = {name: self.mean(name) for name in columns}
        spreads = {name: self.deviation(name) for name in columns}
        order = sorted(self.designs, key=lambda design: -means["bits"][design])
        lines = [
            (
                design,
                *(f"{means[name][design]:.4g} ± {spreads[name][design]:.2g}" for name in columns),
                *(f"{self.metrics[name][design]:.4g}" for name in self.metrics),
            )
            for design in order
        ]
        text = [_aligned((heads, *lines))]
        if len(self.designs) >= 3:
            ranked = [("Spearman of", "with", "coefficient", "95 % interval over designs and seeds")]
            ranked += [
                (by, score, *_shown(self.rank_correlation(score, by=by)))
                for score in self.score_names
                for by in ("bits", *self.metrics)
            ]
            text.append(_aligned(ranked))
        text += [f"note: {note}" for note in self.warnings]
        return "\n\n".join(text)

    def _correlations(
        self, names: tuple[str, ...], score: str, over: Over
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Coefficients (name,) of the means and (name, resample) of resamples, NaN where all designs have one value."""
        if over not in get_args(Over):
            raise ValueError(f"over: need one of {get_args(Over)}, got {over!r}")
        if len(self.designs) < 3:
            raise ValueError(f"systems: need at least 3 designs to rank, got {len(self.designs)}")
        values = [self._oriented(name) for name in (*names, score)]
        n_designs, n_seeds = values[0].shape
        truth = np.array([spearman(v.mean(1)[None], values[-1].mean(1)[None])[0] for v in values[:-1]])
        random = np.random.default_rng(derived_seed(self.seed, f"rank correlation {over}"))
        if over == "seeds":
            if n_seeds < 2:
                return truth, np.full((len(names), 1), np.nan)
            noise = seed_noise(tuple(values), _N_RESAMPLES, random)
            noisy = [value.mean(1) + drawn for value, drawn in zip(values, noise, strict=True)]
            return truth, np.stack([spearman(value, noisy[-1]) for value in noisy[:-1]])
        seeds = random.integers(n_seeds, size=(_N_RESAMPLES, n_seeds))
        designs = random.integers(n_designs, size=(_N_RESAMPLES, n_designs))
        if over == "designs":
            seeds[:] = np.arange(n_seeds)
        resampled = [value[designs[:, :, None], seeds[:, None, :]].mean(2) for value in values]
        return truth, np.stack([spearman(value, resampled[-1]) for value in resampled[:-1]])

    def _oriented(self, name: str) -> NDArray[np.float64]:
        return -self.values(name) if name in self.lower_is_better else self.values(name)

    def _found(
        self, truth: float, drawn: NDArray[np.float64], by: str, score: str, over: Over, confidence: float
    ) -> RankCorrelation:
        if not 0 < confidence < 1:
            raise ValueError(f"confidence: need a value between 0 and 1, got {confidence}")
        usable = drawn[np.isfinite(drawn)]
        interval = None
        if np.isfinite(truth) and len(usable) and not (over == "seeds" and self.n_seeds < 2):
            low, high = np.quantile(usable, [0.5 - confidence / 2, 0.5 + confidence / 2])
            interval = (float(low), float(high))
        coefficient = float(truth) if np.isfinite(truth) else None
        return RankCorrelation(coefficient, interval, len(self.designs), self.n_seeds, by, score, over)


def less_is_better(score_names: tuple[str, ...], metrics: tuple[str, ...]) -> tuple[str, ...]:
    """The names, of scores and of metrics, of which less is better."""
    return (*(name for name in score_names if name in LOWER_IS_BETTER), *metrics)


def _shown(found: RankCorrelation) -> tuple[str, str]:
    coefficient = "one value" if found.spearman is None else f"{found.spearman:.3f}"
    return coefficient, "" if found.interval is None else f"[{found.interval[0]:.3f}, {found.interval[1]:.3f}]"


def _aligned(rows: Any) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
