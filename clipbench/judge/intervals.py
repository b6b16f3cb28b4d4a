"""Intervals of one measurement: how far may the value lie from the one that endless items of this kind would give?

Captions of one image are not independent. Where `clusters` names the image of each outcome, the number of outcomes is
replaced by the effective one, or whole clusters are resampled. Nothing here answers "has it changed on these items":
that needs no inference.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Values = Sequence[float] | npt.NDArray[Any]
Clusters = Sequence[str] | Sequence[int] | npt.NDArray[Any]
Interval = tuple[float, float]

CELLS_AT_ONCE = 1 << 20


def wilson_interval(hits: float, n: float, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval of a rate of `hits` in `n` independent outcomes.

    Either may be fractional, as after division by a design effect. Always within 0..1, never of width 0.
    Raises: ValueError for n <= 0, hits outside 0..n, confidence outside 0..1.
    Source: Wilson 1927, J. Am. Stat. Assoc. 22:209; equal to scipy.stats.binomtest(...).proportion_ci("wilson").
    """
    _check_confidence(confidence)
    if not (n > 0 and 0 <= hits <= n):
        raise ValueError(f"hits is {hits} and n is {n}, expected n > 0 and hits in 0..n")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, shrink = hits / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return (0.0 if hits == 0 else max(0.0, centre - half), 1.0 if hits == n else min(1.0, centre + half))


def clustered_wilson_interval(outcomes: Values, clusters: Clusters, confidence: float = 0.95) -> Interval:
    """Return the Wilson interval of the mean of 0/1 outcomes that come in clusters, on their effective number.

    `outcomes`: (n,) of 0 and 1; `clusters`: (n,) the cluster of each. The effective number is cut by (z / t) squared,
    Student's t having one degree of freedom less than there are clusters: the design effect is itself estimated.
    One cluster alone gives (0, 1). At no hit or all hits the effective number is that of clusters whose members agree.
    With one outcome a cluster it is `wilson_interval`.
    Raises: ValueError for outcomes other than 0 and 1, none, clusters of another length, confidence outside 0..1.
    Source: Korn & Graubard 1998, Survey Methodology 24:193 (effective number with the t correction); Dean & Pagano
    2015, J. Survey Stat. Methodol. 3:484 (Wilson on it).
    """
    _check_confidence(confidence)
    array = _binary(outcomes, "outcomes")
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
    """Return how many independent outcomes these are worth: their number divided by the estimated design effect.

    `values`: (n,) float; `clusters`: (n,) the cluster of each. Between n (members of a cluster have nothing in common)
    and n squared / sum of squared cluster sizes (they all agree); the latter where the values do not vary.
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
    """Return the expanded percentile bootstrap interval of the mean, or None for one value or one cluster.

    `values`: (n,) float; `clusters`: (n,) the cluster of each, resampled whole. The percentiles lie further out than
    (1 - confidence) / 2, by Student's t and n / (n - 1), since plain percentiles are too narrow for few values; under
    five values they still are. Values that do not vary give an interval of width 0: the bootstrap knows only what it
    saw; use `wilson_interval` for rates. The same seed gives the same interval. Memory is bounded for any n.
    Raises: ValueError for no value, NaN or infinity, clusters of another length, confidence outside 0..1, or
    resamples < 1.
    Source: Hesterberg 2015, The American Statistician 69:371 (expanded percentile interval).
    """
    _check_confidence(confidence)
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, expected 1 or more")
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
    array = _finite(outcomes, name)
    if not np.isin(array, (0.0, 1.0)).all():
        raise ValueError(f"{name} holds {array[~np.isin(array, (0.0, 1.0))][0]}, expected outcomes of 0 and 1")
    return array


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a fraction between 0 and 1, such as 0.95")
