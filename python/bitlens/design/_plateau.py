"""Whether the steps of a design still gain: a test on noisy objectives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

# What a further window of steps must be able to gain, as a share of the objective, for the climb to go on.
TOLERANCE = 2e-3
_CONFIDENCE = 0.95
_FEWEST = 8


def has_plateaued(objective_bits: Sequence[float]) -> bool:
    """Whether as many steps again would gain less than 0.2 % of the objective, at 95 % confidence.

    A line is fitted to the objectives of the window, and the upper confidence limit of its slope counts; batches are
    drawn afresh, but the design that they see changes slowly, so the error of the slope is widened by the correlation
    of neighbouring residuals. A window too noisy to tell is no plateau.
    """
    values = np.asarray(objective_bits, dtype=np.float64)
    n = len(values)
    if n < _FEWEST or not np.isfinite(values).all():
        return False
    steps = np.arange(n) - 0.5 * (n - 1)
    spread = float(steps @ steps)
    slope = float(steps @ values) / spread
    residual = values - values.mean() - slope * steps
    power = float(residual @ residual)
    correlation = float(residual[1:] @ residual[:-1]) / power if power > 0 else 0.0
    # Of a first-order autoregression, whose sums have (1 + r) / (1 - r) times the variance of independent terms; after
    # a line is taken off, its estimate is low by about (2 + 4 r) / n.
    correlation = min(max(correlation + (2 + 4 * correlation) / n, 0.0), 0.99)
    stderr = math.sqrt(power / (n - 2) / spread * (1 + correlation) / (1 - correlation))
    highest = slope + float(stats.t.ppf(_CONFIDENCE, n - 2)) * stderr
    return highest * n < TOLERANCE * abs(float(values.mean()))
