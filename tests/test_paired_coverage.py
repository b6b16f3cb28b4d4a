"""How often the bounds on a drop hold, calculated over every outcome n items can have."""

import numpy as np
import oracles
import pytest
from scipy.special import gammaln, xlogy

from clipbench.judge.paired import drop_bounds, drop_upper_bound

FLIP_RATES = [(0.005, 0.005), (0.02, 0.0), (0.05, 0.05), (0.1, 0.02), (0.02, 0.1), (0.3, 0.3)]


def likely_flips(n, p_lost, p_gained):
    """(lost, gained, chance) of all but a 1e-6 of what n items can do."""

    def reach(p):
        spread = 5.5 * np.sqrt(n * p * (1 - p)) + 6
        return np.arange(max(0, int(n * p - spread)), min(n, int(n * p + spread)) + 1)

    lost, gained = (side.ravel().astype(float) for side in np.meshgrid(reach(p_lost), reach(p_gained), indexing="ij"))
    lost, gained = lost[lost + gained <= n], gained[lost + gained <= n]
    same = n - lost - gained
    ways = gammaln(n + 1) - gammaln(lost + 1) - gammaln(gained + 1) - gammaln(same + 1)
    logs = xlogy(lost, p_lost) + xlogy(gained, p_gained) + xlogy(same, 1 - p_lost - p_gained)
    return lost, gained, np.exp(ways + logs)


@pytest.mark.parametrize("rates", FLIP_RATES)
@pytest.mark.parametrize("n", [8, 20, 50, 500, 5000])
def test_both_bounds_cover_the_drop_by_enumeration(n, rates):
    lost, gained, chance = likely_flips(n, *rates)
    assert chance.sum() == pytest.approx(1, abs=1e-5)
    low, high = drop_bounds(lost, gained, n)
    drop = rates[0] - rates[1]
    assert chance[high >= drop - 1e-12].sum() >= 0.95 - 1e-5
    assert chance[low <= drop + 1e-12].sum() >= 0.95 - 1e-5


@pytest.mark.parametrize("rates", [(0.05, 0.05), (0.1, 0.02), (0.02, 0.1), (0.3, 0.3)])
@pytest.mark.parametrize("n", [500, 5000])
def test_the_bounds_waste_under_two_points_where_flips_are_many(n, rates):
    lost, gained, chance = likely_flips(n, *rates)
    low, high = drop_bounds(lost, gained, n)
    assert chance[high >= rates[0] - rates[1]].sum() <= 0.97
    assert chance[low <= rates[0] - rates[1]].sum() <= 0.97


def test_the_coverage_check_would_catch_a_bound_that_is_too_low():
    lost, gained, chance = likely_flips(50, 0.02, 0.0)
    wald = (lost - gained) / 50 + 1.645 * np.sqrt(lost + gained - (lost - gained) ** 2 / 50) / 50
    assert chance[wald >= 0.02].sum() < 0.7


@pytest.mark.parametrize("n", [5, 8, 20])
def test_the_bounds_cover_even_where_nearly_every_item_flips(n):
    shares = np.linspace(0, 1, 26)
    for p_lost in shares:
        for p_gained in shares[shares <= 1 - p_lost + 1e-9]:
            lost, gained, chance = likely_flips(n, p_lost, min(p_gained, 1 - p_lost))
            low, high = drop_bounds(lost, gained, n)
            drop = p_lost - p_gained
            assert min(chance[high >= drop - 1e-9].sum(), chance[low <= drop + 1e-9].sum()) > 0.93, (p_lost, p_gained)


def test_enumeration_agrees_with_the_oracle_and_with_a_simulation():
    lost, gained, chance = likely_flips(20, 0.1, 0.02)
    table = {(a, b): c for a, b, c in oracles.trinomial(20, 0.1, 0.02)}
    assert [table[int(a), int(b)] for a, b in zip(lost, gained, strict=True)] == pytest.approx(
        chance.tolist(), abs=1e-9
    )
    draws = np.random.default_rng(0).multinomial(20, [0.1, 0.02, 0.88], size=20000)
    covered = np.mean(drop_bounds(draws[:, 0], draws[:, 1], 20)[1] >= 0.08)
    assert covered == pytest.approx(chance[drop_bounds(lost, gained, 20)[1] >= 0.08].sum(), abs=0.006)


def test_bounds_over_clusters_cover_where_plain_ones_do_not():
    rng, fair, plain = np.random.default_rng(6), 0, 0
    images = np.repeat(np.arange(80), 5)
    for _ in range(300):
        flips = rng.choice([-1, 1, 0], p=[0.15, 0.05, 0.8], size=80)[images]
        base, head = (flips < 0).astype(int), (flips > 0).astype(int)
        fair += drop_upper_bound(base, head, clusters=images) >= 0.1
        plain += drop_upper_bound(base, head) >= 0.1
    # 300 draws at .95 have a standard error of .013.
    assert fair / 300 > 0.91
    assert plain / 300 < 0.85
