"""How often the gate is right, by simulation through `compare` itself: its errors and its power, one seed each."""

import numpy as np
import pytest
from paired_runs import INT8, RULES, compared, several

from clipbench.judge.tolerances import with_options
from clipbench.statistics import failed_drop, gate_power, power_table

RUNS = 200
ALPHA, FAIL = RULES.alpha, RULES.alpha_fail


def at_most(alpha, runs=RUNS):
    """A share of runs that a rate of `alpha` exceeds once in a thousand."""
    return alpha + 3 * np.sqrt(alpha * (1 - alpha) / runs)


def verdicts(n, drop, discordance, tolerance=0.01, metrics=("acc1",), runs=RUNS):
    """The verdicts of `runs` comparisons of items that flip independently, `drop` more often for the worse."""
    rules, rng = with_options(RULES, [str(tolerance)], None, []), np.random.default_rng(7)
    found = []
    for _ in range(runs):
        before, after = {}, {}
        for metric in metrics:
            kind = rng.choice(3, size=n, p=[1 - discordance - drop, discordance / 2 + drop, discordance / 2])
            right = rng.random(n) < 0.6
            before[metric] = np.where(kind == 0, right, kind == 1).astype(int).tolist()
            after[metric] = np.where(kind == 0, right, kind == 2).astype(int).tolist()
        found.append(compared([several(before)], [several(after, **INT8)], rules).outcome)
    return {word: found.count(word) / runs for word in ("pass", "fail", "inconclusive")}


def test_the_drop_of_the_power_table_is_failed_nine_times_in_ten_at_5000_items():
    shares = verdicts(5000, failed_drop(5000, 0.05, 0.01, FAIL), 0.05)
    assert shares["fail"] == pytest.approx(0.9, abs=3 * np.sqrt(0.9 * 0.1 / RUNS))
    assert verdicts(5000, 0.02, 0.05, runs=60)["fail"] >= 0.98


def test_without_a_drop_the_gate_passes_and_never_fails_at_5000_items():
    shares = verdicts(5000, 0.0, 0.02, runs=100)
    assert shares["fail"] == 0
    assert shares["pass"] >= 0.98


def test_without_a_drop_and_without_a_tolerance_it_fails_no_more_than_alpha():
    assert verdicts(1000, 0.0, 0.1, tolerance=0.0)["fail"] <= at_most(FAIL)


def test_six_metrics_together_without_a_drop_fail_no_more_than_alpha():
    names = [f"acc{k}" for k in range(6)]
    tolerances = [f"{name}=0" for name in names]
    rules, rng = with_options(RULES, tolerances, None, names), np.random.default_rng(3)
    failed, runs = 0, 80
    for _ in range(runs):
        before = {name: (rng.random(600) < 0.5).astype(int).tolist() for name in names}
        after = {name: np.where(rng.random(600) < 0.1, 1 - np.array(v), v).tolist() for name, v in before.items()}
        failed += compared([several(before)], [several(after, **INT8)], rules).outcome == "fail"
    assert failed / runs <= at_most(FAIL, runs)


def test_a_drop_of_exactly_the_tolerance_passes_no_more_than_alpha():
    assert verdicts(2000, 0.02, 0.05, tolerance=0.02)["pass"] <= at_most(ALPHA)


def test_at_500_items_that_flip_much_the_gate_is_inconclusive():
    shares = verdicts(500, 0.0, 0.08, runs=60)
    assert shares["inconclusive"] >= 0.9
    assert shares["fail"] <= at_most(FAIL, 60)


def test_the_calculated_power_is_that_of_the_simulation():
    shares = verdicts(500, 0.03, 0.05)
    assert shares["fail"] == pytest.approx(gate_power(500, 0.03, 0.05, 0.01, FAIL), abs=0.1)


def test_the_power_table_has_a_row_for_each_size_and_larger_sets_see_more():
    rows = power_table(0.01)
    assert {row.n for row in rows} == {100, 500, 5000, 25000}
    for tight, loose in zip(rows, rows[4:], strict=False):
        assert loose.failed < tight.failed
        assert loose.excluded < tight.excluded
    assert all(row.failed[0] > 0.01 for row in rows)
    assert all(row.failed[1] >= row.failed[0] and row.excluded[1] >= row.excluded[0] for row in rows)
