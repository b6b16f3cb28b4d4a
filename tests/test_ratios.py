"""Ratios of speed: intervals by hand and by simulation, verdicts both ways."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clipbench.judge.ratios import judged_ratio, round_ratio, rounds_needed

RATES, MEMORY = "images_per_second", "peak_memory_bytes"


def judged(ratios, metric=RATES, tolerance=0.05):
    return judged_ratio(metric, [(r, 100.0, 100.0 * r) for r in ratios], tolerance)


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
    ("ratios", "metric", "direction", "verdict"),
    [
        ([0.90, 0.91, 0.90], RATES, "worse", "fail"),
        ([0.97, 0.975, 0.97], RATES, "worse", "pass"),
        ([1.00, 1.01, 0.99], RATES, "cannot tell", "pass"),
        ([1.10, 1.11, 1.10], RATES, "better", "pass"),
        ([0.90, 1.00, 0.95], RATES, "cannot tell", "inconclusive"),
        ([0.94, 0.96, 0.95], RATES, "worse", "inconclusive"),
        ([1.10, 1.11, 1.10], "latency_p50", "worse", "fail"),
        ([0.90, 0.91, 0.90], "latency_p50", "better", "pass"),
        ([1.20, 1.20, 1.20], MEMORY, "worse", "fail"),
        ([1.00, 1.00, 1.00], MEMORY, "cannot tell", "pass"),
        ([0.50], RATES, "cannot tell", "inconclusive"),
    ],
)
def test_a_loss_beyond_the_tolerance_fails_when_shown_and_passes_when_excluded(ratios, metric, direction, verdict):
    found = judged(ratios, metric)
    assert (found.direction, found.verdict) == (direction, verdict)


@pytest.mark.parametrize(
    ("ratios", "tolerance"), [([], 0.05), ([0.0, 1.0], 0.05), ([math.nan], 0.05), ([1.0, 1.0], 1.0)]
)
def test_what_is_no_ratio_or_tolerance_is_refused(ratios, tolerance):
    with pytest.raises(ValueError, match="expected ratios above 0, tolerance in 0"):
        judged(ratios, tolerance=tolerance)


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
