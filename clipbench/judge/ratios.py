"""Speed of head over speed of base from interleaved pairs: a ratio a round, an interval over the rounds, a verdict.

A round is one pair of fresh processes that take turns; its ratio is the median over the turns, so that what the machine does to
both cancels. What a fresh process is by chance (memory layout, clocks) does not cancel within a round: only rounds count.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clipbench.result import VerdictWord

CONFIDENCE = 0.95
LOWER_IS_BETTER = ("latency_p50", "peak_memory_bytes")
Direction = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True)
class Ratio:
    """head / base of one metric. `rounds` holds each round's ratio; `low`, `high` the 95 % interval, None for one round.

    `base` and `head` are the medians over the rounds, in the metric's unit. `direction`: which way it is shown to differ from 1;
    `verdict`: whether a loss beyond the tolerance is excluded (pass), shown (fail), or neither.
    """

    metric: str
    base: float
    head: float
    rounds: tuple[float, ...]
    ratio: float
    low: float | None
    high: float | None
    direction: Direction
    verdict: VerdictWord


def round_ratio(base: Sequence[float], head: Sequence[float]) -> float:
    """Return the median of head / base over the turns of one round; `base[i]` and `head[i]` were taken one after the other.

    Raises: ValueError for no turn, rows of different length, or a value that is not above 0.
    """
    if not base or len(base) != len(head) or not all(0 < v < math.inf for v in (*base, *head)):
        raise ValueError(
            f"{len(base)} turns of base and {len(head)} of head: expected as many, each with a time above 0"
        )
    return math.exp(statistics.median(math.log(h / b) for b, h in zip(base, head, strict=True)))


def judged_ratio(metric: str, rounds: Sequence[tuple[float, float, float]], tolerance: float) -> Ratio:
    """Return the geometric mean of the rounds' ratios with Student's t interval on their logarithms, judged.

    `rounds`: (ratio, base's value, head's value) of each. A loss is a ratio under 1 - tolerance, or over 1 + tolerance where lower is
    better (latency, memory). One round has no interval and cannot be judged; rounds that all agree give one of width 0.

    Raises: ValueError for no round, a ratio that is not above 0, or a tolerance outside 0..1.
    Source: paired t on log ratios, Kalibera & Jones 2013, Rigorous Benchmarking in Reasonable Time, ISMM: the unit of
    repetition is the process, not the iteration.
    """
    if not rounds or not all(0 < r < math.inf for r, _, _ in rounds) or not 0 <= tolerance < 1:
        raise ValueError(
            f"{metric}: {len(rounds)} rounds, tolerance {tolerance}: expected ratios above 0, tolerance in 0..1"
        )
    ratios = tuple(r for r, _, _ in rounds)
    logs = [math.log(r) for r in ratios]
    centre, low, high = statistics.fmean(logs), None, None
    if len(logs) > 1:
        from scipy.special import stdtrit

        half = float(stdtrit(len(logs) - 1, 0.5 + CONFIDENCE / 2)) * statistics.stdev(logs) / math.sqrt(len(logs))
        low, high = math.exp(centre - half), math.exp(centre + half)
    return Ratio(
        metric,
        statistics.median(b for _, b, _ in rounds),
        statistics.median(h for _, _, h in rounds),
        ratios,
        math.exp(centre),
        low,
        high,
        _direction(metric, low, high),
        _verdict(metric, low, high, tolerance),
    )


def rounds_needed(ratio: Ratio, tolerance: float) -> int | None:
    """Return about how many rounds make the interval half as wide as the distance to the tolerance, at this spread.

    None where no number would: one round, or a ratio that lies on the tolerance.
    """
    if ratio.low is None or ratio.high is None:
        return None
    edge = math.log(1 + tolerance) if ratio.metric in LOWER_IS_BETTER else math.log(1 - tolerance)
    distance, half = abs(math.log(ratio.ratio) - edge), math.log(ratio.high / ratio.low) / 2
    return None if distance < half / 10 else math.ceil(len(ratio.rounds) * (1.2 * half / distance) ** 2)


def _direction(metric: str, low: float | None, high: float | None) -> Direction:
    if low is None or high is None or low <= 1 <= high:
        return "cannot tell"
    return "worse" if (low > 1) == (metric in LOWER_IS_BETTER) else "better"


def _verdict(metric: str, low: float | None, high: float | None, tolerance: float) -> VerdictWord:
    if low is None or high is None:
        return "inconclusive"
    if metric in LOWER_IS_BETTER:
        return "fail" if low > 1 + tolerance else "pass" if high <= 1 + tolerance else "inconclusive"
    return "fail" if high < 1 - tolerance else "pass" if low >= 1 - tolerance else "inconclusive"
