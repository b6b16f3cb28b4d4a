"""Intervals, tests and power against enumeration, simulation, scipy and hand-worked cases."""

import math
import subprocess
import sys

import numpy as np
import oracles
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import gammaln, xlogy

from clipbench.statistics import (
    CELLS_AT_ONCE,
    EXACT_UP_TO,
    McNemar,
    _restricted_rates,
    accuracy_difference_interval,
    bootstrap_interval,
    clustered_wilson_interval,
    decided_drop,
    drop_bounds,
    drop_upper_bound,
    effective_n,
    failed_drop,
    flip_test,
    gate_power,
    holm,
    items_that_decide,
    judged_ratio,
    mcnemar,
    mean_change,
    paired_difference_interval,
    pass_chance,
    round_ratio,
    rounds_needed,
    unpaired_ratio,
    wilson_interval,
)

COUNTS = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def clustered_outcomes(rng, clusters, size, rate, agreement):
    """0/1 outcomes of which a share `agreement` copies its cluster's own draw."""
    codes = np.repeat(np.arange(clusters), size)
    shared = (rng.random(clusters) < rate)[codes]
    return np.where(rng.random(len(codes)) < agreement, shared, rng.random(len(codes)) < rate).astype(float), codes


def test_eight_of_eight_leaves_room_for_two_thirds():
    assert wilson_interval(8, 8) == (pytest.approx(0.6756, abs=1e-4), 1.0)


@given(COUNTS, st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_that_of_scipy(count, confidence):
    hits, n = count
    expected = stats.binomtest(hits, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(hits, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(COUNTS)
def test_wilson_mirrors_when_hits_become_misses(count):
    hits, n = count
    low, high = wilson_interval(hits, n)
    assert wilson_interval(n - hits, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    assert 0 <= low <= hits / n <= high <= 1
    assert low < high


@pytest.mark.parametrize(("hits", "n"), [(1, 0), (-1, 5), (6, 5), (float("nan"), 5), (1, float("nan"))])
def test_counts_that_make_no_rate_are_refused(hits, n):
    with pytest.raises(ValueError, match=r"expected n > 0 and hits in 0\.\.n"):
        wilson_interval(hits, n)


def test_a_rate_imports_no_scipy():
    code = "import sys; from clipbench.statistics import wilson_interval as w; w(1, 2); print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_members_that_all_agree_are_worth_one_each_cluster():
    values, clusters = np.repeat([1.0, 0.0, 1.0, 1.0], 5), np.repeat(list("abcd"), 5)
    assert effective_n(values, clusters) == 4


def test_members_that_have_nothing_in_common_are_worth_themselves():
    assert effective_n([1.0, 0.0] * 10, np.repeat(range(10), 2)) == 20
    assert effective_n([1.0, 0.0, 0.0], list("abc")) == 3


def test_values_that_do_not_vary_are_worth_their_clusters():
    assert effective_n(np.ones(20), np.repeat(range(4), 5)) == 4
    assert effective_n(np.ones(10), [0] * 9 + [1]) == pytest.approx(100 / 82)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 1.0])), min_size=1, max_size=40))
def test_the_effective_number_lies_between_agreement_and_independence(pairs):
    clusters, values = (np.array(column) for column in zip(*pairs, strict=True))
    sizes = np.bincount(clusters)
    least = len(values) ** 2 / np.sum(sizes.astype(float) ** 2)
    assert least - 1e-9 <= effective_n(values, clusters) <= len(values) + 1e-9


def test_with_one_outcome_a_cluster_the_interval_is_wilson():
    assert clustered_wilson_interval([1, 0, 1, 1], list("abcd")) == pytest.approx(wilson_interval(3, 4))


def test_one_cluster_says_nothing():
    assert clustered_wilson_interval([1, 1, 1], list("aaa")) == (0.0, 1.0)


def test_clustered_wilson_covers_where_the_plain_one_does_not():
    rng, plain, ours = np.random.default_rng(0), 0, 0
    for _ in range(400):
        outcomes, clusters = clustered_outcomes(rng, clusters=60, size=5, rate=0.7, agreement=0.7)
        low, high = clustered_wilson_interval(outcomes, clusters)
        ours += low <= 0.7 <= high
        low, high = wilson_interval(outcomes.sum(), len(outcomes))
        plain += low <= 0.7 <= high
    # 400 draws at .95 have a standard error of .011.
    assert ours / 400 > 0.92
    assert plain / 400 < 0.85


@pytest.mark.parametrize("outcomes", [[0.5, 1.0], [2, 0], [], [np.nan, 1.0]])
def test_outcomes_other_than_hit_and_miss_are_refused(outcomes):
    with pytest.raises(ValueError, match="outcomes"):
        clustered_wilson_interval(outcomes, ["a"] * len(outcomes))


def test_clusters_of_another_length_are_refused():
    with pytest.raises(ValueError, match="one name for each of 2 values"):
        effective_n([1.0, 0.0], ["a"])


def test_the_bootstrap_of_many_values_is_the_normal_interval():
    values = np.random.default_rng(1).exponential(size=4000)
    low, high = bootstrap_interval(values, resamples=4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    # 4,000 resamples place a 2.5 % quantile within a few percent of the half width.
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_the_same_seed_gives_the_same_interval_and_another_another():
    values = np.arange(30.0)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_one_value_or_one_cluster_has_no_interval():
    assert bootstrap_interval([0.5]) is None
    assert bootstrap_interval([0.5, 0.7], clusters=["a", "a"]) is None


def test_values_that_do_not_vary_have_an_interval_of_no_width():
    assert bootstrap_interval([0.1] * 7) == (0.1, 0.1)


@given(st.lists(st.integers(-8, 8), min_size=2, max_size=12), st.sampled_from([0.5, 4.0]), st.integers(-3, 3))
def test_the_bootstrap_follows_scale_and_shift(values, scale, shift):
    low, high = bootstrap_interval(values, resamples=50)
    expected = scale * low + shift, scale * high + shift
    assert bootstrap_interval([scale * v + shift for v in values], resamples=50) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("n", "least"), [(8, 0.91), (40, 0.92)])
def test_the_bootstrap_covers_the_mean_of_few_values(n, least):
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(400, n))
    bounds = [bootstrap_interval(row, seed=i, resamples=500) for i, row in enumerate(rows)]
    assert np.mean([low <= 0 <= high for low, high in bounds]) > least


def test_resampling_whole_clusters_widens_the_interval_of_members_that_agree():
    values, clusters = np.repeat(np.random.default_rng(4).normal(size=40), 5), np.repeat(np.arange(40), 5)
    low, high = bootstrap_interval(values)
    low_by_cluster, high_by_cluster = bootstrap_interval(values, clusters=clusters)
    # Five members that agree: the square root of five, give or take the resampling.
    assert (high_by_cluster - low_by_cluster) / (high - low) == pytest.approx(5**0.5, rel=0.15)


def test_clusters_of_uneven_size_weigh_by_their_members():
    values, clusters = np.array([0.0] * 9 + [1.0]), ["a"] * 9 + ["b"]
    low, high = bootstrap_interval(values, clusters=clusters, resamples=200)
    assert (low, high) == (0.0, 1.0)


def test_drawing_in_several_chunks_gives_every_resample():
    values = np.random.default_rng(5).normal(size=CELLS_AT_ONCE // 3)
    low, high = bootstrap_interval(values, resamples=10)
    assert low < values.mean() < high


@pytest.mark.parametrize("values", [[], [np.nan, 1.0], [np.inf, 1.0], [[1.0, 2.0]]])
def test_values_that_are_no_row_of_numbers_are_refused(values):
    with pytest.raises(ValueError, match="at least one value in a row"):
        bootstrap_interval(values)


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
    assert drop_bounds(100, 0, 100)[0] == pytest.approx(2 * 0.05 ** (1 / 100) - 1)
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


@pytest.mark.parametrize(
    ("base", "head", "message"),
    [([1, 0], [1], "same items"), ([], [], "same items"), ([0.5], [1], "base holds"), ([1], [np.nan], "head holds")],
)
def test_rows_that_are_no_paired_outcomes_are_refused(base, head, message):
    with pytest.raises(ValueError, match=message):
        mcnemar(base, head)


def test_the_limit_of_a_mean_change_is_students_t():
    changes = np.random.default_rng(7).normal(-0.1, 0.1, size=200)
    expected = stats.ttest_1samp(changes, 0).confidence_interval(0.90).low
    assert mean_change(changes, 10**9) == pytest.approx(expected)


def test_changes_that_all_agree_exclude_no_more_than_the_rule_of_three():
    assert mean_change(np.zeros(299), 299) == pytest.approx(-0.01, abs=5e-5)
    assert mean_change(np.full(100, 0.5), 100) == pytest.approx(0.5 - (1 - 0.05**0.01))
    assert mean_change([0.5], 1) == mean_change([0.1, 0.2], 2, clusters=["a", "a"]) == -1


def test_members_of_one_cluster_are_one_witness_of_a_change():
    changes, clusters = np.repeat(np.random.default_rng(0).normal(0, 0.1, 50), 4), np.repeat(range(50), 4)
    assert mean_change(changes, 200) > mean_change(changes, 200, clusters=clusters) + 0.005


def test_the_limit_of_a_mean_change_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = [mean_change(rng.exponential(0.1, 100) - 0.15, 100) <= -0.05 for _ in range(2000)]
    assert np.mean(covered) > 0.94


@given(st.integers(0, 12), st.integers(0, 12))
def test_a_flip_test_of_whole_items_is_mcnemar(lost, gained):
    changes = [-1.0] * lost + [1.0] * gained + [0.0] * 5
    expected = mcnemar([1] * lost + [0] * gained + [1], [0] * lost + [1] * gained + [1]).p_worse
    # 20,000 draws, or 2,000 where nothing is near to significant.
    assert flip_test(changes) == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 2000) + 1e-3)


def test_a_flip_test_is_the_same_every_time_and_takes_a_cluster_for_one_coin():
    assert flip_test([-1.0] * 20) == flip_test([-1.0] * 20) < 1e-4
    assert flip_test([-1.0] * 20, ["one"] * 20) == pytest.approx(0.5, abs=0.05)
    assert flip_test([0.0, 0.0]) == 1


def test_a_flip_test_over_classes_sees_one_that_fell_while_the_others_rose():
    changes, classes = np.repeat([-1.0, 1.0], 20), np.repeat([0, *range(1, 21)], [20] + [1] * 20)
    assert flip_test(changes) > 0.3
    assert flip_test(changes, classes=classes) < 1e-3
    assert flip_test(changes, classes=np.arange(40)) > 0.3


def test_holm_of_a_worked_case():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_raises_each_value_the_smallest_by_their_number_and_keeps_their_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= found <= 1 for p, found in zip(p_values, adjusted, strict=True))
    assert [adjusted[k] for k in np.argsort(p_values, kind="stable")] == sorted(adjusted)
    assert min(adjusted) == pytest.approx(min(1.0, len(p_values) * min(p_values)))


@pytest.mark.parametrize(("n", "drop", "discordance"), [(100, 0.1, 0.05), (500, 0.04, 0.05), (20, 0.36, 0.0)])
def test_power_is_how_often_a_simulated_drop_is_shown(n, drop, discordance):
    rng = np.random.default_rng(8)
    shares = [discordance / 2 + drop, discordance / 2, 1 - discordance - drop]
    lost, gained, _ = rng.multinomial(n, shares, size=20000).T
    shown = np.mean(stats.binom.sf(lost - 1, lost + gained, 0.5) <= 0.05)
    # 20,000 draws have a standard error of .003.
    assert gate_power(n, drop, discordance, 0.0) == pytest.approx(shown, abs=0.012)


def test_power_agrees_with_the_oracle():
    expected = sum(
        chance
        for lost, gained, chance in oracles.trinomial(12, 0.4, 0.1)
        if oracles.fair_flips_tail(lost, lost + gained) <= 0.05
    )
    assert gate_power(12, 0.3, 0.2, 0.0) == pytest.approx(expected)


def test_without_a_drop_the_test_shows_one_no_more_often_than_alpha():
    assert 0 < gate_power(5000, 0.0, 0.1, 0.0) <= 0.05
    assert gate_power(5000, 0.0, 0.0, 0.0) == 0


@pytest.mark.parametrize(("n", "discordance"), [(8, 0.0), (100, 0.05), (5000, 0.02)])
def test_the_detectable_drop_is_where_power_reaches_nine_in_ten(n, discordance):
    drop = failed_drop(n, discordance, 0.0)
    assert gate_power(n, drop, discordance, 0.0) >= 0.9
    assert gate_power(n, 0.999 * drop, discordance, 0.0) < 0.9


def test_more_items_show_smaller_drops_and_more_flips_hide_larger_ones():
    assert failed_drop(5000, 0.05, 0.0) < failed_drop(500, 0.05, 0.0) < failed_drop(50, 0.05, 0.0)
    assert failed_drop(500, 0.0, 0.0) < failed_drop(500, 0.05, 0.0) < failed_drop(500, 0.2, 0.0)


def test_four_items_can_show_no_drop_at_all():
    assert failed_drop(4, 0.0, 0.0) is None
    assert failed_drop(5, 0.0, 0.0) == pytest.approx(0.9**0.2, abs=1e-3)


def simulated_passes(n, flips, tolerance, draws=20000):
    """How often the bound excludes a drop of the tolerance where the flips are as often gained as lost."""
    lost, gained, _ = np.random.default_rng(9).multinomial(n, [flips / 2, flips / 2, 1 - flips], size=draws).T
    pairs, count = np.unique(np.stack([lost, gained]), axis=1, return_counts=True)
    return float(count[drop_bounds(*pairs, n)[1] <= tolerance].sum()) / draws


@pytest.mark.parametrize(
    ("flips", "one", "six"), [(0.001, 473, 631), (0.005, 773, 1095), (0.01, 1139, 1688), (0.05, 4498, 7308)]
)
def test_the_items_that_decide_are_those_of_an_independent_simulation(flips, one, six):
    # Simulated before this was written, at sizes some percent apart; six metrics together under Holm.
    assert items_that_decide(flips, 0.01) == pytest.approx(one, rel=0.04)
    assert items_that_decide(flips, 0.01, tests=6) == pytest.approx(six, rel=0.04)


@pytest.mark.parametrize(("flips", "tolerance"), [(0.001, 0.01), (0.01, 0.01), (0.05, 0.02), (0.1, 0.05)])
def test_so_many_items_pass_nine_times_in_ten_and_a_tenth_fewer_do_not(flips, tolerance):
    n = items_that_decide(flips, tolerance)
    # 20,000 draws have a standard error of .002.
    assert simulated_passes(n, flips, tolerance) >= 0.9 - 0.006
    assert simulated_passes(n * 9 // 10, flips, tolerance) < 0.9
    assert pass_chance(n, flips, tolerance) == pytest.approx(simulated_passes(n, flips, tolerance), abs=0.008)


def test_the_chance_of_passing_agrees_with_the_oracle():
    expected = sum(
        chance for lost, gained, chance in oracles.trinomial(40, 0.05, 0.05) if drop_bounds(lost, gained, 40)[1] <= 0.12
    )
    assert pass_chance(40, 0.1, 0.12) == pytest.approx(expected)


def test_without_flips_the_items_that_decide_are_those_whose_clean_bound_is_the_tolerance():
    assert items_that_decide(0.0, 0.01) == items_that_decide(0.0, 0.01, tests=6) == 299
    assert items_that_decide(0.0, 0.01, alpha=0.01) == 459


@given(st.floats(0, 0.3), st.floats(0.005, 0.2), st.integers(1, 8))
@example(2.2250738585072014e-308, 0.125, 1)
@settings(max_examples=25, deadline=None)
def test_the_drop_that_items_decide_is_the_one_that_asks_for_so_many(flips, tolerance, tests):
    n = items_that_decide(flips, tolerance, tests=tests)
    assert decided_drop(n, flips, tests=tests) <= tolerance * 1.001
    assert items_that_decide(flips, tolerance, tests=tests + 1) >= n


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
def test_counts_that_make_no_difference_of_rates_are_refused(counts):
    with pytest.raises(ValueError, match=r"expected n > 0 and hits in 0\.\.n"):
        accuracy_difference_interval(*counts)


def judged(ratios, better="higher", tolerance=0.05):
    return judged_ratio("a metric", [(r, 100.0, 100.0 * r) for r in ratios], tolerance, better)


def test_a_round_is_the_median_of_its_turns_so_that_one_disturbed_turn_does_not_count():
    assert round_ratio([1, 1, 2, 1, 1], [1.1, 1.1, 2.2, 9.0, 1.1]) == pytest.approx(1.1)


@pytest.mark.parametrize(("base", "head"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([1.0], [math.inf])])
def test_turns_without_a_partner_or_a_time_are_refused(base, head):
    with pytest.raises(ValueError, match="expected as many, each with a time above 0"):
        round_ratio(base, head)


def test_the_interval_is_students_t_on_the_logarithms():
    ratios = [0.93, 0.95, 0.96, 0.94, 0.97]
    found = judged(ratios)
    low, high = stats.t.interval(0.95, 4, np.log(ratios).mean(), stats.sem(np.log(ratios)))
    assert (found.ratio, found.low, found.high) == pytest.approx((stats.gmean(ratios), math.exp(low), math.exp(high)))


@pytest.mark.parametrize(
    ("ratios", "better", "direction", "verdict"),
    [
        ([0.90, 0.91, 0.90], "higher", "worse", "fail"),
        ([0.97, 0.975, 0.97], "higher", "worse", "pass"),
        ([1.00, 1.01, 0.99], "higher", "inconclusive", "pass"),
        ([1.10, 1.11, 1.10], "higher", "better", "pass"),
        ([0.90, 1.00, 0.95], "higher", "inconclusive", "inconclusive"),
        ([0.94, 0.96, 0.95], "higher", "worse", "inconclusive"),
        ([1.10, 1.11, 1.10], "lower", "worse", "fail"),
        ([0.90, 0.91, 0.90], "lower", "better", "pass"),
        ([1.20, 1.20, 1.20], "lower", "worse", "fail"),
        ([1.00, 1.00, 1.00], "lower", "inconclusive", "pass"),
        ([0.50], "higher", "inconclusive", "inconclusive"),
    ],
)
def test_a_loss_beyond_the_tolerance_fails_when_shown_and_passes_when_excluded(ratios, better, direction, verdict):
    found = judged(ratios, better)
    assert (found.direction, found.verdict) == (direction, verdict)


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=9))
def test_exchanging_the_sides_inverts_ratio_and_interval(ratios):
    one, other = judged(ratios), judged([1 / r for r in ratios])
    assert (one.ratio, one.low, one.high) == pytest.approx((1 / other.ratio, 1 / other.high, 1 / other.low))


def test_the_interval_covers_the_true_ratio_as_often_as_it_says():
    generator = np.random.default_rng(0)
    found = [judged(np.exp(generator.normal(math.log(0.95), 0.04, 7))) for _ in range(2000)]
    covered = np.mean([f.low <= 0.95 <= f.high for f in found])
    assert covered == pytest.approx(0.95, abs=0.02)


def test_seven_rounds_that_repeat_within_two_percent_show_a_loss_of_five_percent_nine_times_in_ten():
    generator = np.random.default_rng(1)
    found = [judged(np.exp(generator.normal(math.log(0.95), 0.02, 7)), tolerance=0.02) for _ in range(1000)]
    assert np.mean([f.direction == "worse" for f in found]) > 0.99
    assert np.mean([f.verdict == "fail" for f in found]) > 0.9
    equal = [judged(np.exp(generator.normal(0.0, 0.02, 7)), tolerance=0.02) for _ in range(1000)]
    assert np.mean([f.verdict == "fail" for f in equal]) < 0.01


def test_the_rounds_that_would_tell_are_more_where_the_ratio_is_nearer_the_tolerance():
    near, far = judged([0.95, 0.97, 0.93, 0.99]), judged([0.98, 1.00, 0.96, 1.02])
    assert rounds_needed(near, 0.05) > rounds_needed(far, 0.05)
    assert rounds_needed(judged([0.9]), 0.05) is None
    assert rounds_needed(judged([0.94, 0.95, 0.96]), 0.05) is None


def test_the_ratio_of_processes_that_were_not_paired_is_welchs():
    base, head = [1.0, 1.1, 0.9, 1.05], [1.3, 1.2, 1.4]
    ratio, low, high = unpaired_ratio(base, head)
    welch = stats.ttest_ind(np.log(head), np.log(base), equal_var=False).confidence_interval(0.95)
    assert (ratio, low, high) == pytest.approx(
        (stats.gmean(head) / stats.gmean(base), *np.exp([welch.low, welch.high]))
    )
    assert unpaired_ratio([1.0, 1.0], [2.0, 2.0]) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(("base", "head"), [([1.0], [1.0, 1.0]), ([1.0, 1.0], [1.0, 0.0]), ([], [])])
def test_processes_that_are_too_few_or_took_no_time_are_refused(base, head):
    with pytest.raises(ValueError, match="expected two or more"):
        unpaired_ratio(base, head)
