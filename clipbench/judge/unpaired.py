"""The difference between two rates that were measured on different items, as natural images against medical ones."""

import math

import numpy as np
import numpy.typing as npt

from clipbench.judge.intervals import Interval, wilson_interval

Float64s = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

EXACT_UP_TO = 50
NUISANCE_POINTS = 401
STEP = 0.01


def accuracy_difference_interval(hits_a: int, n_a: int, hits_b: int, n_b: int, confidence: float = 0.95) -> Interval:
    """Return the interval of rate a minus rate b, two independent samples.

    Up to 50 items a side it is exact and unconditional: two one-sided score tests are inverted, the p-value being the
    largest over the unknown rate b (on a grid of 401), so coverage is at least `confidence`. 8 of 8 against 0 of 8
    gives (.59, 1), against 3 of 8 (.17, .91), against 8 of 8 (-.37, .37). Where only one side has more than 50, the
    exact (Clopper-Pearson) limits of both rates are combined (MOVER): coverage, by enumeration, is at least
    `confidence`, where Newcombe's falls to .92 for 8 items against 60 or more. Beyond 50 a side it is Newcombe's hybrid
    score interval, the same combination of Wilson limits, which covers `confidence` on average.
    Raises: ValueError for no item, hits outside 0..n, confidence outside 0..1.
    Source: Chan & Zhang 1999, Biometrics 55:1202; score with rates restricted to the difference: Farrington & Manning
    1990, Statistics in Medicine 9:1447. Beyond: Newcombe 1998, Statistics in Medicine 17:873, method 10.
    """
    low_a, high_a = wilson_interval(hits_a, n_a, confidence)
    low_b, high_b = wilson_interval(hits_b, n_b, confidence)
    if max(n_a, n_b) <= EXACT_UP_TO:
        alpha = (1 - confidence) / 2
        return _exact_low(hits_a, n_a, hits_b, n_b, alpha), -_exact_low(hits_b, n_b, hits_a, n_a, alpha)
    if min(n_a, n_b) <= EXACT_UP_TO:
        low_a, high_a = _exact_limits(hits_a, n_a, confidence)
        low_b, high_b = _exact_limits(hits_b, n_b, confidence)
    a, b = hits_a / n_a, hits_b / n_b
    return a - b - math.hypot(a - low_a, high_b - b), a - b + math.hypot(high_a - a, b - low_b)


def _exact_limits(hits: int, n: int, confidence: float) -> Interval:
    """Clopper-Pearson limits of one rate."""
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = float(betaincinv(hits, n - hits + 1, tail)) if hits else 0.0
    return low, float(betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0


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
