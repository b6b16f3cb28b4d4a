"""What the gate can see: the drop that it fails nine times in ten, by the number of items and how much they flip anyway."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIZES = (100, 500, 5_000, 25_000)
DISCORDANCES = (0.0, 0.01, 0.05, 0.10)
POWER = 0.9


@dataclass(frozen=True)
class PowerRow:
    """For `n` independent outcomes of which the share `discordance` flips without any drop, half of them either way.

    `clean_bound`: the drop excluded when nothing flips. `shown`: the drop shown to be one nine times in ten. `failed`: the
    drop failed nine times in ten at the tolerance. None where no drop is.
    """

    n: int
    discordance: float
    clean_bound: float
    shown: float | None
    failed: float | None


def gate_power(n: int, drop: float, discordance: float, tolerance: float, alpha: float = 0.05) -> float:
    """Return how often the gate fails a true drop: one-sided exact McNemar at alpha, and more than `tolerance` lost.

    `discordance`: the share of items that flip without any drop, half of them either way; `drop` is lost on top. One metric;
    where Holm shares alpha among m of them, at worst as with alpha / m.
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
    beyond = np.floor((flips + tolerance * n) / 2 + 1e-9) + 1  # lost - gained > tolerance * n
    needed = np.maximum(binom.isf(alpha, flips, 0.5) + 1, beyond)
    failed = binom.sf(needed - 1, flips, (discordance / 2 + drop) / flip)
    return float(np.sum(binom.pmf(flips, n, flip) * failed))


def failed_drop(
    n: int, discordance: float, tolerance: float, alpha: float = 0.05, power: float = POWER
) -> float | None:
    """Return the smallest drop that the gate fails with this power, to four digits; None where it fails none.

    With `tolerance` 0 it is the smallest drop that is shown to be one.
    Raises: ValueError as `gate_power`, and for power outside 0..1.
    Source: `gate_power`, inverted by bisection; it grows with the drop.
    """
    if not 0 < power < 1:
        raise ValueError(f"power is {power}, expected a fraction between 0 and 1, such as 0.9")
    low, high = 0.0, 1 - discordance
    if gate_power(n, high, discordance, tolerance, alpha) < power:
        return None
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        enough = gate_power(n, middle, discordance, tolerance, alpha) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def power_table(
    tolerance: float,
    alpha: float = 0.05,
    sizes: Sequence[int] = SIZES,
    discordances: Sequence[float] = DISCORDANCES,
) -> list[PowerRow]:
    """Return a row for each size and discordance. Raises: ValueError as `failed_drop`."""
    return [
        PowerRow(
            n,
            discordance,
            1 - alpha ** (1 / n),
            failed_drop(n, discordance, 0.0, alpha),
            failed_drop(n, discordance, tolerance, alpha),
        )
        for n in sizes
        for discordance in discordances
    ]
