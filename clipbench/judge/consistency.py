"""Does a result say the same twice? A metric's value is the mean of its outcomes by item; where it is not, the file was changed."""

from collections.abc import Iterator

import numpy as np

from clipbench.judge.finding import Finding, about
from clipbench.judge.matching_results import Pair
from clipbench.result import Result

MEAN_TOLERANCE = 1e-6
"""A metric's value is the mean of its outcomes, up to rounding."""


def contradiction(which: str, result: Result, metric: str) -> str:
    """Return how a metric's value and its outcomes contradict each other, "" where they agree or no outcomes are stored."""
    row = np.asarray(result.items.outcomes.get(metric, ()), dtype=np.float64)
    value, n = result.metrics[metric].value, result.metrics[metric].n
    if not row.size:
        return ""
    if abs(float(row.mean()) - value) > MEAN_TOLERANCE * max(1.0, abs(value)):
        return f"{which}'s outcomes do not average to its value {value:.6g}: the file was changed, measure it again"
    if len(row) != n:
        return f"{which} stores {len(row):,} outcomes of n={n:,}: the file was changed, measure it again"
    return ""


def contradictions(pair: Pair) -> Iterator[Finding]:
    """Yield a finding on every metric of which base or head says two things: nothing can be told of it."""
    for which, result in (("base", pair.base), ("head", pair.head)):
        for metric in (m for m in result.metrics if m in pair.base.metrics):
            if reason := contradiction(which, result, metric):
                yield about(pair.base, "coverage", "inconclusive", reason, metric, pair.head)
