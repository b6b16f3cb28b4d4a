"""Paired comparisons against enumeration, simulation and hand-worked cases."""

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clipbench.judge.paired import (
    McNemar,
    detectable_drop,
    drop_bounds,
    drop_lower_bound,
    drop_power,
    drop_upper_bound,
    holm,
    mcnemar,
    paired_bootstrap,
    paired_difference_interval,
)

PAIRS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)


def outcomes(lost, gained, n):
    """Base and head with so many items lost and gained, half of the rest right in both."""
    same = n - lost - gained
    base = [1] * lost + [0] * gained + [1] * (same // 2) + [0] * (same - same // 2)
    head = [0] * lost + [1] * gained + [1] * (same // 2) + [0] * (same - same // 2)
    return base, head


def test_five_lost_and_none_gained_of_a_hundred_is_one_in_thirty_two():
    assert mcnemar(*outcomes(5, 0, 100)) == McNemar(
        gained=0, lost=5, p_worse=pytest.approx(1 / 32), p_differs=pytest.approx(1 / 16)
    )


def test_without_a_flip_nothing_is_shown():
    assert mcnemar([1, 0, 1], [1, 0, 1]) == McNemar(0, 0, 1.0, 1.0)


@given(PAIRS)
def test_mcnemar_is_the_binomial_tail(pairs):
    base, head = zip(*pairs, strict=True)
    found = mcnemar(base, head)
    flips = found.lost + found.gained
    assert (found.lost, found.gained) == (pairs.count((1, 0)), pairs.count((0, 1)))
    assert found.p_worse == pytest.approx(oracles.fair_flips_tail(found.lost, flips))
    assert found.p_differs == pytest.approx(stats.binomtest(found.lost, flips).pvalue if flips else 1.0)


@given(PAIRS)
def test_swapping_base_and_head_swaps_lost_and_gained(pairs):
    base, head = zip(*pairs, strict=True)
    there, back = mcnemar(base, head), mcnemar(head, base)
    assert (there.lost, there.gained, there.p_differs) == (back.gained, back.lost, back.p_differs)
    low, high = paired_difference_interval(base, head)
    assert paired_difference_interval(head, base) == pytest.approx((-high, -low))


def test_captions_that_flip_together_are_one_witness_an_image():
    base, head = outcomes(5, 0, 100)
    five_times = [np.repeat(row, 5) for row in (base, head)]
    images = np.repeat(np.arange(100), 5)
    naive, fair = mcnemar(*five_times), mcnemar(*five_times, clusters=images)
    assert naive.p_worse < 1e-6
    # The effective number is estimated from deviations around a mean of -.05: a little under five flips.
    assert fair.p_worse == pytest.approx(1 / 32, rel=0.05)
    assert (fair.lost, fair.gained) == (25, 0)


@pytest.mark.parametrize(("n", "bound"), [(8, 0.3124), (100, 0.0295), (5000, 0.0006)])
def test_without_a_flip_the_excluded_drop_is_exact(n, bound):
    assert drop_upper_bound([1] * n, [1] * n) == pytest.approx(1 - 0.05 ** (1 / n))
    assert drop_upper_bound([1] * n, [1] * n) == pytest.approx(bound, abs=1e-4)


def test_without_a_flip_captions_exclude_what_their_images_exclude():
    images = np.repeat(np.arange(8), 5)
    assert drop_upper_bound([1] * 40, [1] * 40, clusters=images) == pytest.approx(1 - 0.05 ** (1 / 8))


def test_every_item_lost_is_a_drop_of_nearly_all():
    # At the limit of what 100 of 100 allow, the few that were not lost may all have been gained.
    assert drop_lower_bound([1] * 100, [0] * 100) == pytest.approx(2 * 0.05 ** (1 / 100) - 1)
    assert drop_upper_bound([1] * 100, [0] * 100) == 1.0


@pytest.mark.parametrize("n", [8, 50, 500])
def test_a_drop_is_shown_exactly_where_mcnemar_shows_one(n):
    for lost in range(min(n, 30) + 1):
        for gained in range(min(n, 30) + 1 - lost):
            shown = oracles.fair_flips_tail(lost, lost + gained) <= 0.05
            low, high = drop_bounds(lost, gained, n)
            assert (low > 0) == shown, (lost, gained, low)
            assert low <= (lost - gained) / n <= high


@given(st.integers(0, 20), st.integers(0, 20))
def test_one_more_loss_never_lowers_the_excluded_drop(lost, gained):
    assert drop_bounds(lost + 1, gained, 60)[1] >= drop_bounds(lost, gained, 60)[1]


@pytest.mark.parametrize(("lost", "gained", "n"), [(1, 0, 0), (-1, 0, 5), (3, 3, 5), (float("nan"), 0, 5)])
def test_counts_that_cannot_be_are_refused(lost, gained, n):
    with pytest.raises(ValueError, match="expected counts from 0 up"):
        drop_bounds(lost, gained, n)


@pytest.mark.parametrize("alpha", [0, 0.5, 5])
def test_an_alpha_that_is_no_small_fraction_is_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha is {alpha}"):
        drop_bounds(1, 0, 5, alpha)


@pytest.mark.parametrize(
    ("base", "head", "message"),
    [([1, 0], [1], "same items"), ([], [], "same items"), ([0.5], [1], "base holds"), ([1], [np.nan], "head holds")],
)
def test_rows_that_are_no_paired_outcomes_are_refused(base, head, message):
    with pytest.raises(ValueError, match=message):
        mcnemar(base, head)


def test_the_paired_bootstrap_sees_a_small_shift_under_a_large_spread():
    rng = np.random.default_rng(7)
    base = rng.normal(scale=10, size=200)
    low, high = paired_bootstrap(base, base - 0.1 + rng.normal(scale=0.1, size=200))
    assert -0.13 < low < -0.1 < high < -0.07


def test_items_that_all_moved_alike_have_an_interval_of_no_width_and_one_item_none():
    assert paired_bootstrap([1.0, 2.0], [1.5, 2.5]) == (0.5, 0.5)
    assert paired_bootstrap([1.0], [1.5]) is None


def test_values_of_different_items_are_refused():
    with pytest.raises(ValueError, match="same items"):
        paired_bootstrap([1.0, 2.0], [1.0])


def test_holm_of_a_worked_case():
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == {
        "a": pytest.approx(0.03),
        "b": pytest.approx(0.06),
        "c": pytest.approx(0.06),
        "d": pytest.approx(0.02),
    }
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert holm({}) == {}


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=8))
def test_holm_raises_each_value_the_smallest_by_their_number_and_keeps_their_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= adjusted[name] <= 1 for name, p in p_values.items())
    ranked = sorted(p_values, key=p_values.__getitem__)
    assert [adjusted[name] for name in ranked] == sorted(adjusted.values())
    assert min(adjusted.values()) == pytest.approx(min(1.0, len(p_values) * min(p_values.values())))


def test_a_p_value_that_is_no_probability_is_named():
    with pytest.raises(ValueError, match=r"b has p = 1\.5"):
        holm({"a": 0.1, "b": 1.5})


@pytest.mark.parametrize(("n", "drop", "discordance"), [(100, 0.1, 0.05), (500, 0.04, 0.05), (20, 0.36, 0.0)])
def test_power_is_how_often_a_simulated_drop_is_shown(n, drop, discordance):
    rng = np.random.default_rng(8)
    shares = [discordance / 2 + drop, discordance / 2, 1 - discordance - drop]
    lost, gained, _ = rng.multinomial(n, shares, size=20000).T
    shown = np.mean(stats.binom.sf(lost - 1, lost + gained, 0.5) <= 0.05)
    # 20,000 draws have a standard error of .003.
    assert drop_power(n, drop, discordance) == pytest.approx(shown, abs=0.012)


def test_power_agrees_with_the_oracle():
    expected = sum(
        chance
        for lost, gained, chance in oracles.trinomial(12, 0.4, 0.1)
        if oracles.fair_flips_tail(lost, lost + gained) <= 0.05
    )
    assert drop_power(12, 0.3, 0.2) == pytest.approx(expected)


def test_without_a_drop_the_test_shows_one_no_more_often_than_alpha():
    assert 0 < drop_power(5000, 0.0, 0.1) <= 0.05
    assert drop_power(5000, 0.0, 0.0) == 0


@pytest.mark.parametrize(("n", "discordance"), [(8, 0.0), (100, 0.05), (5000, 0.02)])
def test_the_detectable_drop_is_where_power_reaches_nine_in_ten(n, discordance):
    drop = detectable_drop(n, discordance)
    assert drop_power(n, drop, discordance) >= 0.9
    assert drop_power(n, 0.999 * drop, discordance) < 0.9


def test_more_items_show_smaller_drops_and_more_flips_hide_larger_ones():
    assert detectable_drop(5000, 0.05) < detectable_drop(500, 0.05) < detectable_drop(50, 0.05)
    assert detectable_drop(500, 0.0) < detectable_drop(500, 0.05) < detectable_drop(500, 0.2)


def test_four_items_can_show_no_drop_at_all():
    assert detectable_drop(4, 0.0) is None
    assert detectable_drop(5, 0.0) == pytest.approx(0.9**0.2, abs=1e-3)


@pytest.mark.parametrize(("n", "drop", "discordance"), [(0, 0.1, 0), (5, -0.1, 0), (5, 0.6, 0.6), (5, 0.1, -0.1)])
def test_shares_that_cannot_be_are_refused(n, drop, discordance):
    with pytest.raises(ValueError, match="add to at most 1"):
        drop_power(n, drop, discordance)


def test_a_power_that_is_no_fraction_is_refused():
    with pytest.raises(ValueError, match="power is 90"):
        detectable_drop(10, 0.0, power=90)
