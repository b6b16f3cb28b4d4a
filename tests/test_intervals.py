"""Intervals of one measurement, against scipy, hand-worked cases and their own coverage."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clipbench.judge.intervals import (
    CELLS_AT_ONCE,
    bootstrap_interval,
    clustered_wilson_interval,
    effective_n,
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


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_that_is_no_fraction_is_refused(confidence):
    with pytest.raises(ValueError, match=f"confidence is {confidence}"):
        wilson_interval(1, 2, confidence)
    with pytest.raises(ValueError, match=f"confidence is {confidence}"):
        bootstrap_interval([1, 2], confidence)


def test_a_rate_imports_no_scipy():
    code = (
        "import sys; from clipbench.judge.intervals import wilson_interval as w; w(1, 2); print('scipy' in sys.modules)"
    )
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


def test_no_resample_is_refused():
    with pytest.raises(ValueError, match="resamples is 0"):
        bootstrap_interval([1.0, 2.0], resamples=0)
