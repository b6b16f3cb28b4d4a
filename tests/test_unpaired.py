"""The difference of two independent rates: exact for few items, Newcombe's beyond."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clipbench.judge.unpaired import EXACT_UP_TO, _restricted_rates, accuracy_difference_interval

EIGHTS = st.integers(0, 8)


@pytest.fixture(scope="module")
def eight_against_eight():
    return {(a, b): accuracy_difference_interval(a, 8, b, 8) for a in range(9) for b in range(9)}


def test_eight_of_eight_against_three_of_eight_is_shown_and_against_five_is_not(eight_against_eight):
    assert eight_against_eight[8, 3] == (pytest.approx(0.173, abs=1e-3), pytest.approx(0.915, abs=1e-3))
    assert eight_against_eight[8, 0] == (pytest.approx(0.588, abs=1e-3), 1.0)
    assert eight_against_eight[8, 5][0] < 0


def test_the_exact_interval_covers_whatever_the_two_rates_are(eight_against_eight):
    k = np.arange(9)
    low, high = (np.array([[eight_against_eight[a, b][side] for b in k] for a in k]) for side in (0, 1))
    for rate_a in np.linspace(0, 1, 21):
        for rate_b in np.linspace(0, 1, 21):
            covers = (low - 1e-6 <= rate_a - rate_b) & (rate_a - rate_b <= high + 1e-6)
            assert stats.binom.pmf(k, 8, rate_a) @ covers @ stats.binom.pmf(k, 8, rate_b) >= 0.95, (rate_a, rate_b)


def test_the_exact_interval_excludes_no_difference_exactly_where_barnards_test_does(eight_against_eight):
    for (a, b), (low, _) in eight_against_eight.items():
        if 0 < a + b < 16:
            p = stats.barnard_exact([[a, b], [8 - a, 8 - b]], alternative="greater", n=64).pvalue
            assert (low > 0) == (p <= 0.025), (a, b, low, p)


@given(a=EIGHTS, b=st.integers(0, 5))
@settings(deadline=None, max_examples=15)
def test_swapping_the_sides_negates_the_interval(a, b):
    low, high = accuracy_difference_interval(a, 8, b, 5)
    assert accuracy_difference_interval(b, 5, a, 8) == pytest.approx((-high, -low), abs=1e-5)
    assert -1 <= low <= a / 8 - b / 5 <= high <= 1


def test_counting_misses_for_hits_negates_the_interval(eight_against_eight):
    for (a, b), (low, high) in eight_against_eight.items():
        assert eight_against_eight[8 - a, 8 - b] == pytest.approx((-high, -low), abs=1e-5)


def test_one_more_hit_never_lowers_either_end(eight_against_eight):
    for a in range(8):
        for b in range(9):
            assert eight_against_eight[a, b] <= eight_against_eight[a + 1, b]
            assert eight_against_eight[a, b][1] <= eight_against_eight[a + 1, b][1] + 1e-6


@pytest.mark.parametrize("difference", [-0.6, 0.0, 0.25])
def test_the_restricted_rates_are_the_likeliest(difference):
    a, b = np.arange(9)[:, None] / 8, np.arange(13)[None, :] / 12
    grid = np.linspace(max(0.0, difference), min(1.0, 1 + difference), 4001)[1:-1]
    of_a = 8 * (a[..., None] * np.log(grid) + (1 - a[..., None]) * np.log(1 - grid))
    of_b = 12 * (b[..., None] * np.log(grid - difference) + (1 - b[..., None]) * np.log(1 - grid + difference))
    expected = grid[(of_a + of_b).argmax(axis=-1)]
    assert np.abs(_restricted_rates(a, b, 12 / 8, difference) - expected).max() < 1e-3


def test_beyond_fifty_items_the_interval_is_newcombes():
    # Newcombe 1998, Statistics in Medicine 17:873, table II, example (a), method 10.
    assert accuracy_difference_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_both_methods_agree_where_they_meet():
    n = EXACT_UP_TO
    exact, beyond = accuracy_difference_interval(30, n, 20, n), accuracy_difference_interval(30, n + 1, 20, n + 1)
    assert exact == pytest.approx(beyond, abs=0.03)


@pytest.mark.parametrize("counts", [(9, 8, 0, 8), (-1, 8, 0, 8), (0, 0, 0, 8), (1, 8, 99, 8)])
def test_counts_that_make_no_rate_are_refused(counts):
    with pytest.raises(ValueError, match=r"expected n > 0 and hits in 0\.\.n"):
        accuracy_difference_interval(*counts)
