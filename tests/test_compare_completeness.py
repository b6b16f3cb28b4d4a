"""What cannot be compared and what is not there: told, and never a pass."""

from dataclasses import replace

import pytest
from paired_runs import (
    EYE,
    RIGHT,
    RULES,
    compared,
    finding,
    hits,
    natural,
    run_of,
    scored,
    several,
    speed,
)

from clipbench.errors import UsageError
from clipbench.judge.compare import compare_runs
from clipbench.result import DatasetIdentity, Skip
from clipbench.run_file import Timing


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset": DatasetIdentity("items", "e" * 64, 5000)}, "fingerprint"),
        ({"dataset": DatasetIdentity("items", "f" * 64, 4999)}, "n 5,000 -> 4,999"),
        ({"protocol": {"prompts": "other"}}, "prompts a photo of a {}. -> other"),
        ({"protocol": {"metric_version": 2}}, "metric_version 1 -> 2"),
        ({"protocol": {"preprocessing": "bilinear"}}, "preprocessing bicubic -> bilinear"),
        ({"protocol": {"crop": "tight"}}, "crop absent -> tight"),
    ],
)
def test_another_protocol_or_other_items_are_not_comparable_and_never_a_pass(change, words):
    comparison = compared([scored(RIGHT)], [scored(RIGHT, **change)])
    (found,) = [f for f in comparison.findings if f.kind == "not comparable" and not f.metric]
    assert (found.verdict, comparison.exit_code) == ("inconclusive", 3)
    assert words in found.reason
    assert comparison.count("pass") == 0


def test_a_score_that_collapses_under_another_prompt_fails_all_the_same():
    head = scored(hits(5000, 0), protocol={"prompts": "other"})
    assert compared([scored(RIGHT)], [head]).verdict == "fail"


@pytest.mark.parametrize("key", ["shortcuts", "notes", "other_activation"])
def test_what_only_says_how_it_went_hinders_no_comparison_and_is_told(key):
    comparison = compared([scored(RIGHT)], [scored(RIGHT, protocol={key: ["x"]})])
    assert comparison.verdict == "pass"
    assert any(key in d.what for d in comparison.differences)


def test_items_are_followed_by_id_whatever_their_order():
    ids = [f"i{k}" for k in range(5000)]
    comparison = compared([scored(RIGHT, ids=ids)], [scored(RIGHT[::-1], ids=ids[::-1])])
    assert finding(comparison, "identical").verdict == "pass"


def test_items_of_the_base_that_vanished_are_undecided_and_named():
    ids = [f"i{k}" for k in range(5000)]
    comparison = compared([scored(RIGHT, ids=ids)], [scored(RIGHT, ids=["new", *ids[1:]])])
    assert finding(comparison, "coverage").reason == "1 item(s) vanished in head: i0"
    assert finding(comparison, "new").verdict == "note"
    assert comparison.verdict == "inconclusive"
    assert finding(comparison, "in general").verdict == "inconclusive"


@pytest.mark.parametrize("vanished", ["experiment", "model", "metric"])
def test_what_the_base_had_and_the_head_has_not_is_undecided(vanished):
    both = {"acc1": RIGHT, "acc5": RIGHT}
    base = [natural(), several(both), several(both, model="RN50")]
    head = {
        "experiment": [several(both), several(both, model="RN50")],
        "model": [natural(), several(both)],
        "metric": [natural(), several(both), scored(RIGHT, model="RN50")],
    }[vanished]
    comparison = compared(base, head)
    assert finding(comparison, "coverage").verdict == "inconclusive"
    assert comparison.exit_code == 3
    assert compared(head, base).exit_code == 0
    assert finding(compared(head, base), "new").verdict == "note"


def test_a_skip_in_the_head_is_named_as_the_reason():
    skip = Skip("natural", "ViT-B/32 (openai)", "no scikit-image")
    comparison = compare_runs(run_of(natural(), scored(RIGHT)), run_of(scored(RIGHT), skipped=[skip]), RULES)
    assert finding(comparison, "coverage").reason == "skipped in head: no scikit-image"


def test_a_part_that_is_skipped_in_head_alone_is_undecided():
    skip = Skip("natural", "ViT-B/32", "random weights")
    base, head = run_of(natural()), run_of(natural(), skipped=[skip])
    assert compare_runs(base, head, RULES).exit_code == 3
    assert compare_runs(head, head, RULES).exit_code == 0


def folder(name):
    """A result of a zero-shot folder, which is asked for and skipped as zero_shot:NAME."""
    return scored(RIGHT, experiment="zero_shot", dataset=DatasetIdentity(name, "f" * 64, 5000))


@pytest.mark.parametrize("only", [(), ("zero_shot",)])
def test_a_zero_shot_part_skipped_in_the_head_is_undecided_and_concerns_its_folder_alone(only):
    skip = Skip("zero_shot:shapes", "ViT-B/32 (openai)", "random weights")
    base, head = run_of(folder("shapes"), folder("dogs")), run_of(folder("shapes"), folder("dogs"), skipped=[skip])
    comparison = compare_runs(base, head, RULES, only=only)
    found = finding(comparison, "coverage")
    assert (found.dataset, found.reason) == ("shapes", "skipped in part in head: random weights")
    assert comparison.exit_code == 3
    assert compare_runs(head, head, RULES, only=only).exit_code == 0


def test_the_reason_of_a_zero_shot_folder_skipped_as_a_whole_is_named():
    skip = Skip("zero_shot:shapes", "ViT-B/32", "no such folder")
    comparison = compare_runs(run_of(folder("shapes"), folder("dogs")), run_of(folder("dogs"), skipped=[skip]), RULES)
    assert finding(comparison, "coverage").reason == "skipped in head: no such folder"


@pytest.mark.parametrize("n", [20, 5000])
@pytest.mark.parametrize(("value", "exit_code"), [(0.0, 1), (0.2, 1), (0.5, 3), (0.6, 0)])
def test_a_value_that_its_outcomes_do_not_average_to_is_no_pass_and_fails_where_it_collapsed(n, value, exit_code):
    outcomes = hits(n, 6 * n // 10)
    head = scored(outcomes)
    head = replace(head, metrics={"acc1": replace(head.metrics["acc1"], value=value)})
    assert compared([scored(outcomes)], [head]).exit_code == exit_code
    if exit_code == 3:
        reasons = [f.reason for f in compared([scored(outcomes)], [head]).findings]
        assert any("head's outcomes do not average to its value 0.5" in reason for reason in reasons)


def test_an_n_that_is_not_the_number_of_outcomes_is_undecided():
    head = scored(hits(20, 12))
    head = replace(head, metrics={"acc1": replace(head.metrics["acc1"], n=100)})
    assert compared([scored(hits(20, 12))], [head]).exit_code == 3


@pytest.mark.parametrize("n", [20, 5000])
def test_outcomes_that_vanished_beside_a_value_that_stayed_are_undecided(n):
    base = scored(hits(n, n // 2))
    head = replace(base, items=replace(base.items, outcomes={}))
    comparison = compared([base], [head])
    assert comparison.exit_code == 3
    assert any("outcomes by item vanished" in f.reason for f in comparison.findings)


def test_a_probe_that_vanished_beside_the_result_it_is_taken_with_is_undecided():
    probes = [{"model": {"name": "ViT-B/32"}}]
    gone = compare_runs(run_of(natural(), probes=probes), run_of(natural()), RULES)
    assert finding(gone, "coverage").reason == "the probe vanished: base has it, head has not"
    assert gone.exit_code == 3
    without = compare_runs(run_of(scored(RIGHT), probes=probes), run_of(scored(RIGHT)), RULES)
    assert without.exit_code == 0


def test_the_same_experiment_on_another_data_set_is_missing_and_says_so():
    other = replace(natural(), dataset=DatasetIdentity("other", "0" * 64, 8))
    assert "measured it on other" in finding(compared([natural()], [other]), "coverage").reason


def test_a_timed_test_that_vanished_is_undecided():
    before = [Timing("test_mine", "", (1.0,)), Timing("test_images_per_second[ViT-B/32]", "ViT-B/32", (1.0,))]
    runs = run_of(speed()), run_of(speed())
    gone = compare_runs(*runs, RULES, before, ())
    assert finding(gone, "coverage").reason == "the test test_mine was timed in base and did not run in head"
    assert compare_runs(*runs, RULES, before, before).exit_code == 0


@pytest.mark.parametrize("runs", [((), ()), ((), (natural(),))])
def test_nothing_judged_is_no_pass(runs):
    assert compared(*runs).exit_code == 3


def test_only_compares_the_named_experiments():
    base, head = [natural(), scored(RIGHT)], [natural(EYE + 0.05), scored(RIGHT)]
    assert compared(base, head, only=["coco_crops"]).exit_code == 0
    assert {f.experiment for f in compared(base, head, only=["natural"]).findings} == {"natural"}
    with pytest.raises(UsageError, match="did you mean natural"):
        compared(base, head, only=["natral"])


def test_two_results_of_one_key_are_refused():
    with pytest.raises(UsageError, match="base holds two results of natural of ViT-B/32 on natural"):
        compared([natural(), natural()], [natural()])
