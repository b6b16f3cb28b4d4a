"""Intervals, tests and power: how far a value may lie from the one that endless items of this kind would give.

Captions of one image are not independent. Where `clusters` names the image of each outcome, the number of outcomes is replaced by
the effective one (Rao & Scott 1992, Biometrics 48:577), or whole clusters are resampled. Paired: the same items before (base) and
after (head); a drop is base's mean minus head's, an item is lost when it was right and is wrong now, gained the other way round.
Unpaired: rates of different items. Ratios: of speeds, over rounds of two fresh processes.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clipbench.types import Outcome

Float64s = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Values = Sequence[float] | npt.NDArray[Any]
Clusters = Sequence[str] | Sequence[int] | npt.NDArray[Any]
Counts = float | npt.NDArray[np.float64]
Interval = tuple[float, float]
Direction = Literal["better", "worse", "inconclusive"]

CELLS_AT_ONCE = 1 << 20
POWER = 0.9
POWER_SIZES = (100, 500, 5_000, 25_000)
POWER_FLIPS = (0.0, 0.01, 0.05, 0.10)
TOGETHER = 6
"""Metrics of one result in the tables of power: the recalls of a retrieval."""
EXACT_UP_TO = 50
"""Items per side up to which `accuracy_difference_interval` is exact; its grid of unknown rates and its first step follow."""
NUISANCE_POINTS = 401
STEP = 0.01
RATIO_CONFIDENCE = 0.95
DRAWS, FIRST_DRAWS = 20_000, 2_000
PLAINLY_NOT = 0.05
"""Draws of `flip_test`: more than the first where fewer than this share are as large, so that Holm's .01 / 20 can be reached."""
ROUNDING = 1e-9


def wilson_interval(hits: float, n: float, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval of a rate of `hits` in `n` independent outcomes.

    Either may be fractional, as after division by a design effect. Always within 0..1, never of width 0.
    Raises: ValueError for n <= 0, hits outside 0..n.
    Source: Wilson 1927, J. Am. Stat. Assoc. 22:209; equal to scipy.stats.binomtest(...).proportion_ci("wilson").
    """
    if not (n > 0 and 0 <= hits <= n):
        raise ValueError(f"hits is {hits} and n is {n}, expected n > 0 and hits in 0..n")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, shrink = hits / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return (0.0 if hits == 0 else max(0.0, centre - half), 1.0 if hits == n else min(1.0, centre + half))


def clustered_wilson_interval(outcomes: Values, clusters: Clusters, confidence: float = 0.95) -> Interval:
    """Return the Wilson interval of the mean of (n,) outcomes of 0 and 1, on their effective number.

    That is cut by (z / t) squared, Student's t having one degree of freedom less than there are clusters: the design effect is
    itself estimated. One cluster alone gives (0, 1); one outcome per cluster gives `wilson_interval`.
    Raises: ValueError for outcomes other than 0 and 1, none, clusters of another length.
    Source: Korn & Graubard 1998, Survey Methodology 24:193 (effective number with the t correction); Dean & Pagano
    2015, J. Survey Stat. Methodol. 3:484 (Wilson on it).
    """
    array = _binary(_finite(outcomes, "outcomes"), "outcomes")
    codes = _codes(clusters, len(array))
    count = int(codes.max()) + 1
    if count < 2:
        return 0.0, 1.0
    from scipy.special import stdtrit

    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    t = float(stdtrit(count - 1, 0.5 + confidence / 2))
    n = effective_n(array, codes) * ((z / t) ** 2 if count < len(array) else 1.0)
    return wilson_interval(float(array.mean()) * n, n, confidence)


def effective_n(values: Values, clusters: Clusters) -> float:
    """Return how many independent outcomes (n,) values are worth: their number divided by the estimated design effect.

    Between n (members of a cluster have nothing in common) and n squared / sum of squared cluster sizes (they all agree); the
    latter where the values do not vary.
    Raises: ValueError for no value, NaN or infinity, clusters of another length.
    Source: Kish 1965, Survey Sampling, ch. 5 and 8: variance of the ratio mean over that of a simple random sample.
    """
    array = _finite(values, "values")
    sums, sizes = _totals(array, _codes(clusters, len(array)))
    n, count = len(array), len(sums)
    least = n * n / float(np.sum(sizes**2))
    spread = float(np.sum((array - array.mean()) ** 2))
    if count == n:
        return float(n)
    if count < 2 or np.ptp(array) == 0:
        return least
    clustered = count / (count - 1) * float(np.sum((sums - array.mean() * sizes) ** 2)) / n**2
    alone = spread / (n - 1)
    return min(float(n), max(least, alone / clustered)) if clustered > 0 else float(n)


def bootstrap_interval(
    values: Values, confidence: float = 0.95, clusters: Clusters | None = None, seed: int = 0, resamples: int = 2000
) -> Interval | None:
    """Return the expanded percentile bootstrap interval of the mean of (n,) values; None for one value or one cluster.

    Clusters are resampled whole. The percentiles lie further out than (1 - confidence) / 2, by Student's t and n / (n - 1), since
    plain ones are too narrow for few values; under five values these still are. Values that do not vary give an interval of
    width 0: use `wilson_interval` for rates. The same seed gives the same interval. Memory is bounded for any n.
    Raises: ValueError for no value, NaN or infinity, clusters of another length.
    Source: Hesterberg 2015, The American Statistician 69:371 (expanded percentile interval).
    """
    array = _finite(values, "values")
    sums, sizes = _totals(array, np.arange(len(array)) if clusters is None else _codes(clusters, len(array)))
    count = len(sums)
    if count < 2:
        return None
    if np.ptp(array) == 0:
        return float(array[0]), float(array[0])
    from scipy.special import ndtr, stdtrit

    tail = float(ndtr(math.sqrt(count / (count - 1)) * stdtrit(count - 1, (1 - confidence) / 2)))
    low, high = np.quantile(_resampled_means(sums, sizes, seed, resamples), [tail, 1 - tail])
    return float(low), float(high)


def _resampled_means(sums: Float64s, sizes: Float64s, seed: int, resamples: int) -> Float64s:
    """Means of `resamples` draws, with replacement, of as many clusters as there are."""
    generator, count = np.random.default_rng(seed), len(sums)
    at_once = max(1, CELLS_AT_ONCE // count)
    even = bool(np.all(sizes == sizes[0]))
    means = []
    for start in range(0, resamples, at_once):
        drawn = generator.integers(count, size=(min(at_once, resamples - start), count), dtype=np.int32)
        total = count * sizes[0] if even else sizes[drawn].sum(axis=1)
        means.append(sums[drawn].sum(axis=1) / total)
    return np.concatenate(means)


def _totals(values: Float64s, codes: Ints) -> tuple[Float64s, Float64s]:
    """Sum and size of each cluster."""
    return np.bincount(codes, weights=values).astype(np.float64), np.bincount(codes).astype(np.float64)


def _codes(clusters: Clusters, n: int) -> Ints:
    """Each cluster's name as a number from 0 up."""
    names = np.asarray(clusters)
    if names.shape != (n,):
        raise ValueError(f"clusters is {names.shape}, expected one name for each of {n} values")
    return np.asarray(np.unique(names, return_inverse=True)[1], dtype=np.int64)


def _finite(values: Values, name: str) -> Float64s:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name}: got shape {array.shape}, expected at least one value in a row, all of them finite")
    return array


def _binary(outcomes: Values, name: str) -> Float64s:
    array = np.asarray(outcomes, dtype=np.float64)
    if not np.isin(array, (0.0, 1.0)).all():
        raise ValueError(f"{name} holds {array[~np.isin(array, (0.0, 1.0))][0]}, expected outcomes of 0 and 1")
    return array


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

    Raises: ValueError for other outcomes, none, or rows of different length.
    Source: McNemar 1947, Psychometrika 12:153; exact binomial form, equal to scipy.stats.binomtest(lost, flips).
    """
    lost, gained, _ = _flips(base, head, clusters)
    worse, better = float(_tail(lost, gained)), float(_tail(gained, lost))
    difference = _differences(base, head)
    counts = int(np.sum(difference > 0)), int(np.sum(difference < 0))
    return McNemar(*counts, p_worse=worse, p_differs=min(1.0, 2 * min(worse, better)))


def drop_bounds(lost: Counts, gained: Counts, n: float, alpha: float = 0.05) -> tuple[Float64s, Float64s]:
    """Return the one-sided lower and the one-sided upper 1 - alpha confidence bound on the true drop.

    `lost`, `gained`: scalars or arrays of one shape, fractional counts allowed. The exact (Clopper-Pearson) limits of the two
    shares are combined by MOVER, with their multinomial correlation at those limits. Without a flip the upper bound is
    1 - alpha ** (1 / n). The lower bound is above 0 exactly where `McNemar.p_worse` <= alpha, the upper one below 0 exactly where
    head is significantly better. Chosen for its coverage, by enumeration: never below nominal for n of 8 to 5,000 while fewer
    than nine items in ten flip; Tango's score interval is half an item narrower, but covers .915 for .95 where flips are few.
    Raises: ValueError for n <= 0, negative counts, more flips than n.
    Source: Zou & Donner 2008, Statistics in Medicine 27:1693 (MOVER); Clopper & Pearson 1934, Biometrika 26:404;
    compared with Tango 1998, Statistics in Medicine 17:891.
    """
    lose, gain = np.asarray(lost, dtype=np.float64), np.asarray(gained, dtype=np.float64)
    if not (n > 0 and np.all(lose >= 0) and np.all(gain >= 0) and np.all(lose + gain <= n * (1 + 1e-12))):
        raise ValueError(
            f"lost {lost}, gained {gained}, n {n}: expected counts from 0 up that add to no more than n > 0"
        )
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


def paired_difference_interval(
    base: Values, head: Values, confidence: float = 0.95, clusters: Clusters | None = None
) -> Interval:
    """Return the two-sided interval of head's rate minus base's: both one-sided bounds at half the error, negated.

    `base`, `head`: (n,) of 0 and 1 on the same items. Method, `Raises:` and `Source:` as `drop_bounds` and `mcnemar`.
    """
    low, high = drop_bounds(*_flips(base, head, clusters), (1 - confidence) / 2)
    return -float(high), -float(low)


def mean_change(differences: Values, n: int, alpha: float = 0.05, clusters: Clusters | None = None) -> float:
    """Return the one-sided lower 1 - alpha limit of the mean of (m,) differences, head minus base, that are not all -1, 0 or 1.

    `n`: how many independent witnesses are behind them. Student's t on the totals of clusters, but never closer than the rule of
    three: what no witness showed may still befall one in 1 / (1 - alpha ** (1 / n)).
    Raises: ValueError for no difference, NaN or infinity, clusters of another length.
    Source: ratio estimator, Cochran 1977, Sampling Techniques, ch. 6; Hanley & Lippman-Hand 1983, JAMA 249:1743.
    """
    array = _finite(differences, "differences")
    sums, sizes = _totals(array, np.arange(len(array)) if clusters is None else _codes(clusters, len(array)))
    mean, count = float(array.mean()), len(sums)
    if count < 2:
        return -1.0
    from scipy.special import stdtrit

    error = math.sqrt(float(np.sum((sums - mean * sizes) ** 2)) * count / (count - 1)) / len(array)
    least: float = 1 - alpha ** (1 / n)
    return max(-1.0, mean - max(float(stdtrit(count - 1, 1 - alpha)) * error, least))


def flip_test(
    differences: Values, clusters: Clusters | None = None, classes: npt.NDArray[np.integer[Any]] | None = None
) -> float:
    """Return how likely as large a loss is if the sign of each cluster's differences is a coin's: 1 where nothing changed.

    With `classes`, (m,) the class of each difference, the loss is the sum of the squared net losses of classes, jointly over all.
    20,000 draws at most (2,000 with classes), fewer where it is plain that nothing is significant; the same every time.
    Raises: ValueError for no difference, NaN or infinity, clusters of another length.
    Source: Fisher's randomisation test; Pitman 1937, J. R. Stat. Soc. Suppl. 4:119.
    """
    array = _finite(differences, "differences")
    codes = np.arange(len(array)) if clusters is None else _codes(clusters, len(array))
    moved = np.flatnonzero(array)
    if not len(moved):
        return 1.0
    group = np.unique(codes[moved], return_inverse=True)[1]
    generator, count, drawn = np.random.default_rng(0), 0, 0
    if classes is None:
        totals = np.bincount(group, array[moved])
        observed = totals.sum() + ROUNDING
    else:
        of = np.unique(classes[moved], return_inverse=True)[1]
        observed = float((np.maximum(-np.bincount(of, array[moved]), 0) ** 2).sum()) - ROUNDING
    size = int(group.max()) + 1
    at_once = max(1, min(FIRST_DRAWS, CELLS_AT_ONCE * 4 // size))
    most = DRAWS if classes is None else FIRST_DRAWS
    while drawn < most and not (drawn >= FIRST_DRAWS and count > drawn * PLAINLY_NOT):
        signs = generator.integers(0, 2, size=(at_once, size), dtype=np.int8).astype(np.float64) * 2 - 1
        if classes is None:
            count += int(np.sum(signs @ totals <= observed))
        else:
            flipped = signs[:, group] * array[moved]
            net = np.stack([np.bincount(of, row) for row in flipped])
            count += int(np.sum((np.maximum(-net, 0) ** 2).sum(axis=1) >= observed))
        drawn += at_once
    return (count + 1) / (drawn + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for being several, in their order: significant at level alpha are those that are <= alpha.

    Source: Holm 1979, Scandinavian Journal of Statistics 6:65.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        adjusted[k] = largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[k]))
    return adjusted


def _flips(base: Values, head: Values, clusters: Clusters | None) -> tuple[float, float, float]:
    """Lost, gained and n, divided by the design effect of the differences where there are clusters."""
    differences = _differences(base, head)
    _binary(base, "base")
    _binary(head, "head")
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


@dataclass(frozen=True)
class PowerRow:
    """For `n` independent outcomes of which the share `flips` flips without any drop, half of them either way.

    `excluded`: the drop that is excluded nine times in ten where there is none; `failed`: the drop that the gate fails nine times in
    ten, None where it fails none. Each for one metric, and for the worst of six that are judged together.
    """

    n: int
    flips: float
    excluded: tuple[float, float]
    failed: tuple[float | None, float | None]


def gate_power(n: int, drop: float, discordance: float, tolerance: float, alpha: float = 0.05) -> float:
    """Return how often the gate fails a true drop: one-sided exact McNemar at alpha, and more than `tolerance` lost.

    `discordance`: the share of items that flip without any drop, half of them either way; `drop` is lost on top. One metric;
    where Holm shares alpha among m of them, at worst as with alpha / m.
    Source: exact power, summed over the number of flips (binomial) and of losses among them (binomial).
    """
    if drop + discordance == 0:
        return 0.0
    from scipy.stats import binom

    flip = min(1.0, drop + discordance)
    reach = 8 * math.sqrt(n * flip * (1 - flip)) + 8
    flips = np.arange(max(1, math.floor(n * flip - reach)), min(n, math.ceil(n * flip + reach)) + 1)
    beyond = np.floor((flips + tolerance * n) / 2 + 1e-9) + 1  # lost - gained > tolerance * n
    needed = np.maximum(binom.isf(alpha, flips, 0.5) + 1, beyond)
    failed = binom.sf(needed - 1, flips, (discordance / 2 + drop) / flip)
    return float(np.sum(binom.pmf(flips, n, flip) * failed))


def failed_drop(n: int, discordance: float, tolerance: float, alpha: float = 0.05) -> float | None:
    """Return the smallest drop that the gate fails nine times in ten, to four digits; None where it fails none.

    With `tolerance` 0 it is the smallest drop that is significant.
    Source: `gate_power`, inverted by bisection; it grows with the drop.
    """
    low, high = 0.0, 1 - discordance
    if gate_power(n, high, discordance, tolerance, alpha) < POWER:
        return None
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        enough = gate_power(n, middle, discordance, tolerance, alpha) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high


def pass_chance(n: int, flips: float, tolerance: float, alpha: float = 0.05) -> float:
    """Return how often the gate passes a head without a drop: `drop_bounds` excludes one of `tolerance`.

    `flips`: the share of the n items that flip, half of them either way. One metric.
    Source: exact power, summed over the number of flips (binomial) and of losses among them (binomial). The most losses that pass
    are calculated for 17 numbers of flips, and lie on a smooth curve between them.
    """
    from scipy.special import bdtr
    from scipy.stats import binom

    reach = 6 * math.sqrt(n * flips * (1 - flips)) + 6
    numbers = np.arange(max(0, math.floor(n * flips - reach)), min(n, math.ceil(n * flips + reach)) + 1)
    nodes = np.unique(np.linspace(numbers[0], numbers[-1], 17).round())
    passing = nodes / 2
    for _ in range(6):  # Newton's steps: another loss in place of a gain moves the bound by about 2 / n
        excess = drop_bounds(passing, nodes - passing, n, alpha)[1] - tolerance
        passing = np.clip(passing - excess * n / 2, 0, nodes)
    passing = np.where(drop_bounds(0 * nodes, nodes, n, alpha)[1] <= tolerance, passing, -1.0)
    most = np.floor(np.interp(numbers, nodes, passing) + 1e-3)
    chance = np.where(most < 0, 0.0, bdtr(np.clip(most, 0, numbers), numbers, 0.5))
    return float(
        np.sum(np.exp(binom.logpmf(numbers, n, flips)) * chance)
    )  # pmf overflows where flips is next to nothing


def fewest(tolerance: float, alpha: float) -> int:
    """Return how many outcomes, none of which flips, exclude a drop of `tolerance`: 1 - alpha ** (1 / n) <= tolerance.

    1 without a tolerance, where no number does.
    """
    return max(1, math.ceil(math.log(alpha) / math.log1p(-tolerance))) if 0 < tolerance < 1 else 1


def items_that_decide(flips: float, tolerance: float, alpha: float = 0.05, tests: int = 1) -> int:
    """Return from how many items on a head without a drop passes nine times in ten, to 2 % where passing jumps with n.

    `flips`: the share of items that flip without any drop; `tests`: how many metrics have to pass together. Each then passes with
    probability .9 ** (1 / tests), which is enough where they are independent and more than enough where they are not; Holm asks
    alpha of the last of them and less of those before, which adds 1 or 2 % that are not counted. From 1 % of flips on a rule of
    thumb is 8.6 flips / tolerance ** 2 for one metric, 14 for six. Fewer than log(alpha) / log(1 - tolerance) items never pass.
    Source: `pass_chance`, inverted.
    """
    wanted = POWER ** (1 / tests)

    def passes(n: int) -> bool:
        return bool(pass_chance(n, flips, tolerance, alpha) >= wanted)

    quantiles = NormalDist().inv_cdf(1 - alpha) + NormalDist().inv_cdf(wanted)
    least = fewest(tolerance, alpha)
    high = least + math.ceil(flips * (quantiles / tolerance) ** 2)
    while not passes(high):
        high += math.ceil(high / 8)
    low = high
    while low >= least and passes(
        low
    ):  # the chance of passing falls a little before each number of items that forgives one more loss
        high, low = low, low - math.ceil(low / 50)
    low = max(low, least - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def decided_drop(n: int, flips: float, alpha: float = 0.05, tests: int = 1) -> float:
    """Return the smallest drop that n items decide, to three digits: where there is none, it is excluded nine times in ten.

    It is the smallest tolerance with which n items pass. Arguments and `Source:` as `items_that_decide`, of which it is the inverse.
    """
    low, high = 0.0, 1.0
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        enough = pass_chance(n, flips, middle, alpha) >= POWER ** (1 / tests)
        low, high = (low, middle) if enough else (middle, high)
    return high


def power_table(
    tolerance: float,
    alpha: float = 0.05,
    sizes: Sequence[int] = POWER_SIZES,
    flips: Sequence[float] = POWER_FLIPS,
) -> list[PowerRow]:
    """Return one row per size and share of flips. The worst of six fails at alpha / 6 (Holm)."""
    return [
        PowerRow(
            n,
            share,
            (decided_drop(n, share, alpha), decided_drop(n, share, alpha, TOGETHER)),
            (failed_drop(n, share, tolerance, alpha), failed_drop(n, share, tolerance, alpha / TOGETHER)),
        )
        for n in sizes
        for share in flips
    ]


def accuracy_difference_interval(hits_a: int, n_a: int, hits_b: int, n_b: int, confidence: float = 0.95) -> Interval:
    """Return the interval of rate a minus rate b, two independent samples.

    Up to 50 items per side it is exact and unconditional: two one-sided score tests are inverted, the p-value being the largest
    over the unknown rate b (on a grid of 401), so that it covers at least `confidence`. 8 of 8 against 3 of 8 gives (.17, .91).
    Where only one side has more, the exact (Clopper-Pearson) limits of both rates are combined (MOVER), which covers by
    enumeration where Newcombe's falls to .92 (8 items against 60). Beyond it is Newcombe's hybrid score interval, the same
    combination of Wilson limits, which covers `confidence` on average.
    Raises: ValueError for no item, hits outside 0..n.
    Source: Chan & Zhang 1999, Biometrics 55:1202; score with rates restricted to the difference: Farrington & Manning
    1990, Statistics in Medicine 9:1447. Beyond: Newcombe 1998, Statistics in Medicine 17:873, method 10.
    """
    low_a, high_a = wilson_interval(hits_a, n_a, confidence)
    low_b, high_b = wilson_interval(hits_b, n_b, confidence)
    if max(n_a, n_b) <= EXACT_UP_TO:
        alpha = (1 - confidence) / 2
        return _exact_low(hits_a, n_a, hits_b, n_b, alpha), -_exact_low(hits_b, n_b, hits_a, n_a, alpha)
    if min(n_a, n_b) <= EXACT_UP_TO:
        tail = (1 - confidence) / 2
        low_a, high_a = map(float, _exact_limits(np.asarray(float(hits_a)), n_a, tail))
        low_b, high_b = map(float, _exact_limits(np.asarray(float(hits_b)), n_b, tail))
    a, b = hits_a / n_a, hits_b / n_b
    return a - b - math.hypot(a - low_a, high_b - b), a - b + math.hypot(high_a - a, b - low_b)


def _exact_low(hits_a: int, n_a: int, hits_b: int, n_b: int, alpha: float) -> float:
    """The smallest difference that the test for a larger one does not reject: a walk up from -1, then bisection."""
    low, high = -1.0, -1.0 + STEP
    while high < hits_a / n_a - hits_b / n_b and _p_value(hits_a, n_a, hits_b, n_b, high) <= alpha:
        low, high = high, high + STEP
    if low == -1.0:
        return low
    while high - low > 1e-6:
        middle = (low + high) / 2
        rejected = _p_value(hits_a, n_a, hits_b, n_b, middle) <= alpha
        low, high = (middle, high) if rejected else (low, middle)
    return low


def _p_value(hits_a: int, n_a: int, hits_b: int, n_b: int, difference: float) -> float:
    """Chance of a score at least as high, at the rates of this difference that make it largest."""
    scores = _scores(n_a, n_b, difference)
    extreme = scores >= scores[hits_a, hits_b] - 1e-9
    rates_b = np.linspace(max(0.0, -difference), min(1.0, 1.0 - difference), NUISANCE_POINTS)
    chances = (_binomial(n_a, rates_b + difference) @ extreme) * _binomial(n_b, rates_b)
    return float(chances.sum(axis=1).max())


def _binomial(n: int, rates: Float64s) -> Float64s:
    """(rates, n + 1) chances of 0..n hits."""
    k = np.arange(n + 1)
    ways = np.array([math.comb(n, int(i)) for i in k], dtype=np.float64)
    rate = np.clip(rates, 0.0, 1.0)[:, None]
    return np.asarray(ways * rate**k * (1 - rate) ** (n - k))


def _scores(n_a: int, n_b: int, difference: float) -> Float64s:
    """(n_a + 1, n_b + 1) score statistic of every table: observed less this difference, over its restricted error."""
    a, b = np.arange(n_a + 1)[:, None] / n_a, np.arange(n_b + 1)[None, :] / n_b
    rate_a = _restricted_rates(a, b, n_b / n_a, difference)
    rate_b = np.clip(rate_a - difference, 0.0, 1.0)
    error = np.sqrt(rate_a * (1 - rate_a) / n_a + rate_b * (1 - rate_b) / n_b)
    beyond = a - b - difference
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error > 1e-9, beyond / error, np.where(np.abs(beyond) < 1e-9, 0.0, np.sign(beyond) * np.inf))


def _restricted_rates(a: Float64s, b: Float64s, ratio: float, difference: float) -> Float64s:
    """The likeliest rate a where rate a minus rate b is the difference: a root of a cubic (Farrington & Manning)."""
    cubic = 1 + ratio
    square = -(1 + ratio + a + ratio * b + difference * (ratio + 2))
    linear = difference**2 + difference * (2 * a + ratio + 1) + a + ratio * b
    constant = -a * difference * (1 + difference)
    v = square**3 / (3 * cubic) ** 3 - square * linear / (6 * cubic**2) + constant / (2 * cubic)
    u = np.where(v >= 0, 1.0, -1.0) * np.sqrt(np.maximum(square**2 / (3 * cubic) ** 2 - linear / (3 * cubic), 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.where(np.abs(u) > 1e-12, v / u**3, 0.0)
    angle = (math.pi + np.arccos(np.clip(cosine, -1.0, 1.0))) / 3
    root = 2 * u * np.cos(angle) - square / (3 * cubic)
    return np.asarray(np.clip(root, max(0.0, difference), min(1.0, 1.0 + difference)))


@dataclass(frozen=True)
class Ratio:
    """head / base of one metric. `rounds` holds each round's ratio; `low`, `high` the 95 % interval, None for one round.

    `base` and `head` are the medians over the rounds, in the metric's unit. `direction`: which way it differs significantly from 1;
    `verdict`: whether a loss beyond the tolerance is excluded (pass), significant (fail), or neither. `better`: which way is no loss.
    """

    metric: str
    better: Literal["higher", "lower"]
    base: float
    head: float
    rounds: tuple[float, ...]
    ratio: float
    low: float | None
    high: float | None
    direction: Direction
    verdict: Outcome


def round_ratio(base: Sequence[float], head: Sequence[float]) -> float:
    """Return the median of head / base over the turns of one round; `base[i]` and `head[i]` were taken one after the other.

    Raises: ValueError for no turn, rows of different length, or a value that is not above 0.
    """
    if not base or len(base) != len(head) or not all(0 < v < math.inf for v in (*base, *head)):
        raise ValueError(
            f"{len(base)} turns of base and {len(head)} of head: expected as many, each with a time above 0"
        )
    return math.exp(statistics.median(math.log(h / b) for b, h in zip(base, head, strict=True)))


def judged_ratio(
    metric: str,
    rounds: Sequence[tuple[float, float, float]],
    tolerance: float,
    better: Literal["higher", "lower"] = "higher",
) -> Ratio:
    """Return the geometric mean of the rounds' ratios with Student's t interval on their logarithms, judged.

    `rounds`: (ratio, base's value, head's value) of each. A loss is a ratio under 1 - tolerance, or over 1 + tolerance where lower is
    better. One round has no interval and cannot be judged; rounds that all agree give one of width 0.

    Source: paired t on log ratios, Kalibera & Jones 2013, Rigorous Benchmarking in Reasonable Time, ISMM: the unit of
    repetition is the process, not the iteration.
    """
    ratios = tuple(r for r, _, _ in rounds)
    logs = [math.log(r) for r in ratios]
    centre, low, high = statistics.fmean(logs), None, None
    direction: Direction = "inconclusive"
    verdict: Outcome = "inconclusive"
    if len(logs) > 1:
        from scipy.special import stdtrit

        half = float(stdtrit(len(logs) - 1, 0.5 + RATIO_CONFIDENCE / 2)) * statistics.stdev(logs) / math.sqrt(len(logs))
        low, high = math.exp(centre - half), math.exp(centre + half)
        if not low <= 1 <= high:
            direction = "worse" if (low > 1) == (better == "lower") else "better"
        if better == "lower":
            verdict = "fail" if low > 1 + tolerance else "pass" if high <= 1 + tolerance else "inconclusive"
        else:
            verdict = "fail" if high < 1 - tolerance else "pass" if low >= 1 - tolerance else "inconclusive"
    base, head = (statistics.median(column) for column in list(zip(*rounds, strict=True))[1:])
    return Ratio(metric, better, base, head, ratios, math.exp(centre), low, high, direction, verdict)


def unpaired_ratio(base: Sequence[float], head: Sequence[float]) -> tuple[float, float, float]:
    """Return (head / base, its low, its high): the ratio of geometric means, with Welch's 95 % interval on the logarithms.

    `base`, `head`: what each of several processes measured, two a side or more.
    Raises: ValueError for fewer, or a value that is not above 0.
    Source: Welch 1947, Biometrika 34:28; the unit of repetition is the process (Kalibera & Jones 2013).
    """
    if min(len(base), len(head)) < 2 or not all(0 < v < math.inf for v in (*base, *head)):
        raise ValueError(f"{len(base)} and {len(head)} processes: expected two or more, each with a value above 0")
    from scipy.special import stdtrit

    logs = [[math.log(value) for value in side] for side in (base, head)]
    centre = statistics.fmean(logs[1]) - statistics.fmean(logs[0])
    parts = [statistics.variance(side) / len(side) for side in logs]
    total = sum(parts)
    if total == 0:
        return (math.exp(centre),) * 3
    freedom = total**2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, logs, strict=True))
    half = float(stdtrit(freedom, 0.5 + RATIO_CONFIDENCE / 2)) * math.sqrt(total)
    return math.exp(centre), math.exp(centre - half), math.exp(centre + half)


def rounds_needed(ratio: Ratio, tolerance: float) -> int | None:
    """Return about how many rounds make the interval half as wide as the distance to the tolerance, at this spread.

    None where no number would: one round, or a ratio that lies on the tolerance.
    """
    if ratio.low is None or ratio.high is None:
        return None
    edge = math.log(1 + tolerance) if ratio.better == "lower" else math.log(1 - tolerance)
    distance, half = abs(math.log(ratio.ratio) - edge), math.log(ratio.high / ratio.low) / 2
    return None if distance < half / 10 else math.ceil(len(ratio.rounds) * (1.2 * half / distance) ** 2)
