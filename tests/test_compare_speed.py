"""Speed between two processes: a quarter, the spread of the base, and the machine."""

import pytest
from paired_runs import (
    MACHINE,
    RULES,
    compared,
    natural,
    run_of,
    speed,
    verdict_of,
)

from clipbench.judge.compare import compare_runs
from clipbench.judge.tolerances import with_options


@pytest.mark.parametrize(
    ("metric", "value", "verdict"),
    [
        ("images_per_second", 76.0, "pass"),
        ("images_per_second", 74.0, "fail"),
        ("images_per_second", 300.0, "pass"),
        ("latency_p50", 0.0124, "pass"),
        ("latency_p50", 0.0126, "fail"),
        ("peak_memory_bytes", 1.09e9, "pass"),
        ("peak_memory_bytes", 1.11e9, "fail"),
    ],
)
def test_speed_fails_beyond_a_quarter_and_memory_beyond_a_tenth(metric, value, verdict):
    comparison = compared([speed()], [speed(**{metric: value})])
    assert verdict_of(comparison, "speed", metric).outcome == comparison.outcome == verdict


def test_a_base_whose_repeats_spread_widens_the_allowance_but_never_beyond_half():
    def verdict(spread, rate):
        base = speed(spread={"images_per_second": spread})
        comparison = compared([base], [speed(images_per_second=rate)])
        return verdict_of(comparison, "speed", "images_per_second").outcome

    assert [verdict(0.1, 65.0), verdict(0.45, 65.0), verdict(1.8, 49.0)] == ["fail", "pass", "fail"]


def test_every_timed_metric_has_the_spread_of_its_own_repeats():
    head = speed(latency_p50=0.0135)
    assert compared([speed(spread={"latency_p50": 0.1})], [head]).outcome == "fail"
    assert compared([speed(spread={"images_per_second": 0.4})], [head]).outcome == "fail"
    assert compared([speed(spread={"latency_p50": 0.4})], [head]).outcome == "pass"


def test_tails_are_shown_and_neither_judged_nor_missed():
    base = speed(latency_p99=0.02)
    assert compared([base], [speed(latency_p99=0.2)]).outcome == "pass"
    assert compared([base], [speed()]).outcome == "pass"


@pytest.mark.parametrize(("key", "value"), [("processor", "Q"), ("accelerator", "H200"), ("driver", "550")])
def test_speed_on_another_machine_is_undecided_and_no_pass(key, value):
    base, head = run_of(speed()), run_of(speed(images_per_second=1.0), machine=MACHINE | {key: value})
    comparison = compare_runs(base, head, RULES)
    assert verdict_of(comparison, "not comparable").outcome == "inconclusive"
    assert f"{key} " in verdict_of(comparison, "not comparable").reason
    assert comparison.exit_code == 3


def test_speed_with_other_threads_or_another_batch_decides_nothing_and_is_told():
    threads = run_of(natural(), speed(images_per_second=1.0), machine=MACHINE | {"threads": 1})
    comparison = compare_runs(run_of(natural(), speed()), threads, RULES)
    assert "threads 2 -> 1" in verdict_of(comparison, "not comparable").reason
    assert comparison.exit_code == 0
    batch = compared([natural(), speed()], [natural(), speed(8, images_per_second=1.0)])
    assert "batch 4 -> 8" in verdict_of(batch, "not comparable").reason
    assert batch.exit_code == 0
    assert compared([speed()], [speed(8)]).exit_code == 3


def test_speed_on_a_machine_that_is_not_recorded_is_undecided():
    runs = [run_of(speed(), machine={"x": 1}), run_of(speed(), machine={})]
    assert compare_runs(runs[1], runs[1], RULES).exit_code == 3


def test_an_asked_allowance_of_a_speed_metric_holds():
    rules = with_options(RULES, ["images_per_second=0.5"], None, ["images_per_second"])
    assert compared([speed()], [speed(images_per_second=60.0)], rules=rules).outcome == "pass"
