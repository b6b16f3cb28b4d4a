"""Speed: a note between one process a side, a verdict between several, and nothing at all on another machine."""

import pytest
from paired_runs import MACHINE, RULES, cell, compared, natural, run_of, speed, verdict_of

from clipbench.judge.compare import compare_runs
from clipbench.judge.tolerances import with_options

STEADY, SLOWER = (0.0100, 0.0101, 0.0099, 0.0100), (0.0120, 0.0121, 0.0119, 0.0120)
NOISY = (0.0090, 0.0110, 0.0125, 0.0100)
SPEED = "speed[ViT-B/32]"


def gated(metric="images_per_second", base=STEADY, head=STEADY, rules=RULES, **more):
    """The outcome of a gate on what several processes a side measured."""
    sides = ([natural(), speed(processes={metric: times}, **more)] for times in (base, head))
    return verdict_of(compared(*sides, rules=rules, speed="gate"), "speed", metric)


@pytest.mark.parametrize(
    ("metric", "value", "beyond"),
    [
        ("images_per_second", 81.0, False),
        ("images_per_second", 79.0, True),
        ("images_per_second", 300.0, False),
        ("latency_p50", 0.0124, False),
        ("latency_p50", 0.0126, True),
        ("peak_memory_bytes", 1.09e9, False),
        ("peak_memory_bytes", 1.11e9, True),
    ],
)
def test_one_process_a_side_gives_a_note_that_names_what_is_beyond_the_usual(metric, value, beyond):
    comparison = compared([natural(), speed()], [natural(), speed(**{metric: value})])
    found = verdict_of(comparison, "speed", metric)
    assert (found.outcome, comparison.outcome) == ("note", "pass")
    assert ("`clipbench ab` can tell whether it is noise" in found.reason) is beyond


@pytest.mark.parametrize(
    ("base", "head", "outcome", "words"),
    [
        (STEADY, STEADY, "pass", "+0.0% time"),
        (STEADY, SLOWER, "fail", "+20.0% time"),
        (SLOWER, STEADY, "pass", "-16.7% time"),
        (STEADY, NOISY, "inconclusive", "allowed +5%; 4 and 4 processes"),
        (STEADY, STEADY[:2], "inconclusive", "4 processes of base, 2 of head: 3 a side are needed"),
        ((), (), "inconclusive", "0 processes of base, 0 of head: 3 a side are needed"),
    ],
)
def test_several_processes_a_side_decide_where_speed_is_gated(base, head, outcome, words):
    found = gated(base=base, head=head)
    assert found.outcome == outcome
    assert words in found.reason


def test_memory_of_several_processes_is_gated_and_so_is_what_many_calls_add():
    assert gated("peak_memory_bytes", (1e9,) * 3, (1.1e9,) * 3).outcome == "fail"
    assert gated("memory_growth_bytes", (0.0,) * 3, (1e6,) * 3, memory_growth_bytes=0.0).outcome == "pass"
    assert gated("memory_growth_bytes", (0.0,) * 3, (1e8,) * 3, memory_growth_bytes=0.0).outcome == "fail"


def test_single_calls_on_an_accelerator_are_bound_by_their_launch_and_never_judged():
    assert gated("latency_p50", STEADY, SLOWER).outcome == "fail"
    assert gated("latency_p50", STEADY, SLOWER, device="cuda:0").outcome == "note"


def test_an_asked_allowance_of_a_speed_metric_holds():
    rules = with_options(RULES, ["images_per_second=0.5"], None, ["images_per_second"])
    assert gated(head=SLOWER, rules=rules).outcome == "pass"


def test_tails_may_be_missing_and_headlines_may_not():
    base = [natural(), speed(latency_p99=0.02)]
    assert compared(base, [natural(), speed()]).outcome == "pass"
    head = speed()
    del head.scores["texts_per_second"]
    assert compared(base, [natural(), head]).outcome == "inconclusive"


@pytest.mark.parametrize(
    ("head", "machine", "words"),
    [
        ({}, {"processor": "Q"}, "processor P -> Q"),
        ({}, {"accelerator": "H200"}, "accelerator none -> H200"),
        ({}, {"threads": 1}, "threads 2 -> 1"),
        ({"batch": 8}, {}, "batch 4 -> 8"),
        ({"device": "cuda:0"}, {}, "device cpu -> cuda:0"),
    ],
)
@pytest.mark.parametrize(("mode", "outcome"), [("gate", "inconclusive"), ("note", "note")])
def test_another_machine_or_another_setting_is_not_comparable(head, machine, words, mode, outcome):
    times = {"images_per_second": STEADY}
    base, after = speed(processes=times), speed(processes=times, **head)
    comparison = compare_runs(run_of(base), run_of(after, machine=MACHINE | machine), RULES, speed=mode)
    found = cell(comparison, SPEED)
    assert found.outcome == outcome
    assert words in found.verdicts[0].reason


def test_a_machine_that_is_not_recorded_is_not_comparable_and_off_says_nothing():
    run = run_of(natural(), speed(), machine={})
    assert "the machine is not recorded" in cell(compare_runs(run, run, RULES), SPEED).verdicts[0].reason
    assert not [one for one in compare_runs(run, run, RULES, speed="off").cells if one.id == SPEED]
