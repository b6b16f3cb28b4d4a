"""Paired comparisons: the same items, scored before (base) and after (head). Is head worse in general?

A drop is base's mean minus head's. An item is lost when it was right and is wrong now, gained the other way round.
Where `clusters` names the image of each outcome, lost, gained and n are divided by the design effect of the differences
(Rao & Scott 1992, Biometrics 48:577), so that five captions of one image are not five witnesses.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clipbench.judge.intervals import Clusters, Float64s, Interval, Values, bootstrap_interval, effective_n

Counts = float | npt.NDArray[np.float64]


@dataclass(frozen=True)
class McNemar:
    """Items gained and lost, and how likely as many flips of that kind are if either way is equally likely.

    `p_worse` is one-sided (as many lost or more), `p_differs` two-sided. Both are 1 without a flip.
    """

    gained: int
    lost: int
    p_worse: float
    p_differs: float


def mcnemar(base: Values, head: Values, clusters: Clusters | None = None) -> McNemar:
    """Return the exact McNemar test of two (n,) rows of 0/1 outcomes on the same items.

    Raises: ValueError for outcomes other than 0 and 1, none, or rows of different length.
    Source: McNemar 1947, Psychometrika 12:153; exact binomial form, equal to scipy.stats.binomtest(lost, flips).
    """
    lost, gained, _ = _flips(base, head, clusters)
    worse, better = float(_tail(lost, gained)), float(_tail(gained, lost))
    difference = np.asarray(head, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    counts = int(np.sum(difference > 0)), int(np.sum(difference < 0))
    return McNemar(*counts, p_worse=worse, p_differs=min(1.0, 2 * min(worse, better)))


def drop_bounds(lost: Counts, gained: Counts, n: float, alpha: float = 0.05) -> tuple[Float64s, Float64s]:
    """Return the one-sided lower and the one-sided upper 1 - alpha confidence bound on the true drop.

    `lost`, `gained`: scalars or arrays of one shape, fractional counts allowed. The exact (Clopper-Pearson) limits of
    the two shares are combined by MOVER, with their multinomial correlation at those limits. Without a flip the upper
    bound is 1 - alpha ** (1 / n): .312 at n = 8, .030 at 100, .0006 at 5,000. The lower bound is above 0 exactly where
    `McNemar.p_worse` <= alpha, the upper one below 0 exactly where head is shown better.
    Chosen for its coverage, by enumeration: never below nominal for n of 8 to 5,000 while fewer than nine items in ten
    flip, never by more than two points beyond that. Tango's score interval is about half an item narrower, but covers
    .915 in place of .95 where flips are few.
    Raises: ValueError for n <= 0, negative counts, more flips than n, alpha outside 0..0.5.
    Source: Zou & Donner 2008, Statistics in Medicine 27:1693 (MOVER); Clopper & Pearson 1934, Biometrika 26:404;
    compared with Tango 1998, Statistics in Medicine 17:891.
    """
    lose, gain = np.asarray(lost, dtype=np.float64), np.asarray(gained, dtype=np.float64)
    if not (n > 0 and np.all(lose >= 0) and np.all(gain >= 0) and np.all(lose + gain <= n * (1 + 1e-12))):
        raise ValueError(
            f"lost {lost}, gained {gained}, n {n}: expected counts from 0 up that add to no more than n > 0"
        )
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha is {alpha}, expected a fraction between 0 and 0.5, such as 0.05")
    p, q = lose / n, gain / n
    p_low, p_high = _exact_limits(lose, n, alpha)
    q_low, q_high = _exact_limits(gain, n, alpha)
    low = p - q - _combined(p - p_low, q_high - q, _correlation(p_low, q_high))
    high = p - q + _combined(p_high - p, q - q_low, _correlation(p_high, q_low))
    low = np.where(_tail(lose, gain) > alpha, np.minimum(low, 0.0), low)
    high = np.where(_tail(gain, lose) > alpha, np.maximum(high, 0.0), high)
    return np.clip(low, -1.0, 1.0), np.clip(high, -1.0, 1.0)


def drop_upper_bound(base: Values, head: Values, alpha: float = 0.05, clusters: Clusters | None = None) -> float:
    """Return the drop that is excluded: with confidence 1 - alpha the true drop is smaller (non-inferiority).

    `base`, `head`: (n,) of 0 and 1 on the same items. Method, `Raises:` and `Source:` as `drop_bounds` and `mcnemar`.
    """
    return float(drop_bounds(*_flips(base, head, clusters), alpha)[1])


def drop_lower_bound(base: Values, head: Values, alpha: float = 0.05, clusters: Clusters | None = None) -> float:
    """Return the drop that is shown: with confidence 1 - alpha the true drop is larger. 0 or less where none is shown.

    `base`, `head`: (n,) of 0 and 1 on the same items. Method, `Raises:` and `Source:` as `drop_bounds` and `mcnemar`.
    """
    return float(drop_bounds(*_flips(base, head, clusters), alpha)[0])


def paired_difference_interval(
    base: Values, head: Values, confidence: float = 0.95, clusters: Clusters | None = None
) -> Interval:
    """Return the two-sided interval of head's rate minus base's: both one-sided bounds at half the error, negated.

    `base`, `head`: (n,) of 0 and 1 on the same items. Method, `Raises:` and `Source:` as `drop_bounds` and `mcnemar`.
    """
    low, high = drop_bounds(*_flips(base, head, clusters), (1 - confidence) / 2)
    return -float(high), -float(low)


def paired_bootstrap(
    base: Values,
    head: Values,
    confidence: float = 0.95,
    clusters: Clusters | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval | None:
    """Return the bootstrap interval of the mean of head minus base, for outcomes that are not 0/1 (margins, precision).

    `base`, `head`: (n,) float on the same items. An end of the interval at confidence 1 - 2 alpha is the one-sided
    bound at alpha. None for one item; width 0 where every item moved alike. Method and `Source:` as
    `bootstrap_interval`.
    Raises: ValueError for rows of different length and as `bootstrap_interval`.
    """
    return bootstrap_interval(_differences(base, head), confidence, clusters, seed, resamples)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return the p-values adjusted for being several: a name is shown at level alpha where its adjusted value <= alpha.

    In the order of `p_values`; empty for none. Raises: ValueError for a value outside 0..1.
    Source: Holm 1979, Scandinavian Journal of Statistics 6:65.
    """
    if wrong := [name for name, p in p_values.items() if not 0 <= p <= 1]:
        raise ValueError(f"{wrong[0]} has p = {p_values[wrong[0]]}, expected a probability")
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def drop_power(n: int, drop: float, discordance: float, alpha: float = 0.05) -> float:
    """Return how often the one-sided exact McNemar test would show this drop on n items.

    `discordance`: the share of items that flip without any drop, half of them either way; `drop` is lost on top.
    Raises: ValueError for n < 1, a negative share, or shares that add to more than 1.
    Source: exact power, summed over the number of flips (binomial) and of losses among them (binomial).
    """
    if n < 1 or drop < 0 or discordance < 0 or drop + discordance > 1 + 1e-12:
        raise ValueError(
            f"n {n}, drop {drop}, discordance {discordance}: expected n >= 1 and shares from 0 up that add to at most 1"
        )
    if drop + discordance == 0:
        return 0.0
    from scipy.stats import binom

    flip = min(1.0, drop + discordance)
    reach = 8 * math.sqrt(n * flip * (1 - flip)) + 8
    flips = np.arange(max(1, math.floor(n * flip - reach)), min(n, math.ceil(n * flip + reach)) + 1)
    needed = binom.isf(alpha, flips, 0.5) + 1
    shown = binom.sf(needed - 1, flips, (discordance / 2 + drop) / flip)
    return float(np.sum(binom.pmf(flips, n, flip) * shown))


def detectable_drop(n: int, discordance: float, power: float = 0.9, alpha: float = 0.05) -> float | None:
    """Return the smallest drop that n items show with this power, to four digits; None where no drop would be.

    `discordance` as `drop_power`. With none, .76 at n = 8, .078 at 100, .0016 at 5,000; five items or more must be
    lost to show anything at alpha = .05, so under five items the answer is None.
    Raises: ValueError as `drop_power`, and for power outside 0..1.
    Source: `drop_power`, inverted by bisection; it grows with the drop.
    """
    if not 0 < power < 1:
        raise ValueError(f"power is {power}, expected a fraction between 0 and 1, such as 0.9")
    low, high = 0.0, 1 - discordance
    if drop_power(n, high, discordance, alpha) < power:
        return None
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if drop_power(n, middle, discordance, alpha) >= power else (middle, high)
    return high


def _flips(base: Values, head: Values, clusters: Clusters | None) -> tuple[float, float, float]:
    """Lost, gained and n, divided by the design effect of the differences where there are clusters."""
    differences = _differences(base, head)
    for name, row in (("base", base), ("head", head)):
        if not np.isin(np.asarray(row, dtype=np.float64), (0.0, 1.0)).all():
            raise ValueError(f"{name} holds values other than 0 and 1; use paired_bootstrap for those")
    n = float(len(differences)) if clusters is None else effective_n(differences, clusters)
    return float(np.mean(differences < 0)) * n, float(np.mean(differences > 0)) * n, n


def _differences(base: Values, head: Values) -> Float64s:
    before, after = np.asarray(base, dtype=np.float64), np.asarray(head, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 1 or len(before) == 0:
        raise ValueError(f"base {before.shape} and head {after.shape}: expected one outcome for each of the same items")
    return after - before


def _tail(more: Counts, fewer: Counts) -> Float64s:
    """P(at least `more` of more + fewer fair coin flips), continued to fractional counts."""
    from scipy.special import betainc

    k, rest = np.asarray(more, dtype=np.float64), np.asarray(fewer, dtype=np.float64)
    return np.where(k > 0, betainc(np.maximum(k, 1e-300), rest + 1, 0.5), 1.0)


def _exact_limits(count: Float64s, n: float, alpha: float) -> tuple[Float64s, Float64s]:
    """Clopper-Pearson one-sided limits of count / n, continued to fractional counts."""
    from scipy.special import betaincinv

    rest = np.maximum(n - count, 0.0)
    low = np.where(count > 0, betaincinv(np.maximum(count, 1e-300), rest + 1, alpha), 0.0)
    high = np.where(rest > 0, betaincinv(count + 1, np.maximum(rest, 1e-300), 1 - alpha), 1.0)
    return low, high


def _combined(one: Float64s, other: Float64s, correlation: Float64s) -> Float64s:
    return np.asarray(np.sqrt(np.maximum(one**2 + other**2 - 2 * correlation * one * other, 0.0)))


def _correlation(p: Float64s, q: Float64s) -> Float64s:
    """Correlation of two shares of one multinomial; -1 where they fill it."""
    rest = np.maximum((1 - p) * (1 - q), 1e-300)
    return np.asarray(-np.minimum(np.sqrt(p * q / rest), 1.0))
