"""What cannot be compared and what is not there: told, and never a pass."""

from dataclasses import replace

import pytest
from paired_runs import (
    EYE,
    NAMES,
    PROTOCOL,
    RIGHT,
    RULES,
    compared,
    hits,
    natural,
    run_of,
    scored,
    several,
    speed,
    verdict_of,
    with_score,
)

from clipbench.errors import UsageError
from clipbench.judge.compare import compare_runs
from clipbench.storage import Timing
from clipbench.types import DatasetIdentity, Key, Matrix, Protocol, Provenance, Skip, Verdict

OTHER = Protocol(("other",))
NAMED = Key("coco_crops", "ViT-B/32", "items")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset": DatasetIdentity("items", "e" * 64, 5000)}, "fingerprint"),
        ({"dataset": DatasetIdentity("items", "f" * 64, 4999)}, "n 5,000 -> 4,999"),
        ({"protocol": OTHER}, 'prompts ["a photo of a {}."] -> ["other"]'),
        ({"protocol": replace(PROTOCOL, metric_version=2)}, "metric_version 1 -> 2"),
        ({"protocol": replace(PROTOCOL, classes=("a", "b"))}, 'classes absent -> ["a", "b"]'),
        ({"protocol": replace(PROTOCOL, options={"crop": "tight"})}, "crop absent -> tight"),
        ({"preprocessing": "bilinear"}, "preprocessing bicubic -> bilinear"),
        ({"preprocessing": "bicubic" + " " * 90 + "std 0.5"}, "std 0.5"),
    ],
)
def test_another_protocol_or_other_items_are_not_comparable_and_never_a_pass(change, words):
    comparison = compared([scored(RIGHT)], [scored(RIGHT, **change)])
    found = verdict_of(comparison, "not comparable", "")
    assert (found.outcome, comparison.exit_code) == ("inconclusive", 3)
    assert words in found.reason
    assert comparison.count("pass") == 0


def test_a_score_that_collapses_under_another_prompt_fails_all_the_same():
    head = scored(hits(5000, 0), protocol=OTHER)
    assert compared([scored(RIGHT)], [head]).outcome == "fail"


@pytest.mark.parametrize(
    ("key", "provenance"),
    [("optimizations", Provenance(("x",))), ("exclusions", Provenance(exclusions={"truncated_texts": 1}))],
)
def test_what_only_says_how_it_went_hinders_no_comparison_and_is_told(key, provenance):
    comparison = compared([scored(RIGHT)], [replace(scored(RIGHT), provenance=provenance)])
    assert comparison.outcome == "pass"
    assert any(key in d.what for d in comparison.differences)


def test_items_are_followed_by_id_whatever_their_order():
    ids = [f"i{k}" for k in range(5000)]
    comparison = compared([scored(RIGHT, ids=ids)], [scored(RIGHT[::-1], ids=ids[::-1])])
    assert verdict_of(comparison, "identical").outcome == "pass"


def test_items_of_the_base_that_vanished_are_undecided_and_named():
    ids = [f"i{k}" for k in range(5000)]
    comparison = compared([scored(RIGHT, ids=ids)], [scored(RIGHT, ids=["new", *ids[1:]])])
    assert verdict_of(comparison, "completeness").reason == "1 item(s) vanished in head: i0"
    assert verdict_of(comparison, "new").outcome == "note"
    assert comparison.outcome == "inconclusive"
    assert verdict_of(comparison, "in general").outcome == "inconclusive"


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
    assert verdict_of(comparison, "completeness").outcome == "inconclusive"
    assert comparison.exit_code == 3
    assert compared(head, base).exit_code == 0
    assert verdict_of(compared(head, base), "new").outcome == "note"


def test_a_skip_in_the_head_is_named_as_the_reason():
    skip = Skip(Key("natural", "ViT-B/32", "natural"), "no scikit-image")
    comparison = compare_runs(run_of(natural(), scored(RIGHT)), run_of(scored(RIGHT), skipped=[skip]), RULES)
    assert verdict_of(comparison, "completeness").reason == "skipped in head: no scikit-image"


def test_a_part_that_is_skipped_in_head_alone_is_undecided():
    skip = Skip(Key("natural", "ViT-B/32", "natural"), "random weights")
    base, head = run_of(natural()), run_of(natural(), skipped=[skip])
    assert compare_runs(base, head, RULES).exit_code == 3
    assert compare_runs(head, head, RULES).exit_code == 0


def folder(name):
    """A result of a zero-shot folder."""
    return scored(RIGHT, experiment="zero_shot", dataset=DatasetIdentity(name, "f" * 64, 5000))


@pytest.mark.parametrize("only", [(), ("zero_shot",)])
def test_a_zero_shot_part_skipped_in_the_head_is_undecided_and_concerns_its_folder_alone(only):
    skip = Skip(Key("zero_shot", "ViT-B/32", "shapes"), "random weights")
    base, head = run_of(folder("shapes"), folder("dogs")), run_of(folder("shapes"), folder("dogs"), skipped=[skip])
    comparison = compare_runs(base, head, RULES, only=only)
    found = verdict_of(comparison, "completeness")
    assert (found.key.dataset, found.reason) == ("shapes", "skipped in part in head: random weights")
    assert comparison.exit_code == 3
    assert compare_runs(head, head, RULES, only=only).exit_code == 0


def test_the_reason_of_a_zero_shot_folder_skipped_as_a_whole_is_named():
    skip = Skip(Key("zero_shot", "ViT-B/32", "shapes"), "no such folder")
    comparison = compare_runs(run_of(folder("shapes"), folder("dogs")), run_of(folder("dogs"), skipped=[skip]), RULES)
    assert verdict_of(comparison, "completeness").reason == "skipped in head: no such folder"


@pytest.mark.parametrize("n", [20, 5000])
def test_outcomes_that_vanished_beside_a_value_that_stayed_are_undecided(n):
    base = scored(hits(n, n // 2))
    head = with_score(base, "acc1", outcomes=None)
    comparison = compared([base], [head])
    assert comparison.exit_code == 3
    assert any("outcomes by item vanished" in f.reason for f in comparison.verdicts)


PASSED, NOTED = (Verdict(NAMED, "acc1", "floor", outcome, "at least .5") for outcome in ("pass", "note"))


@pytest.mark.parametrize(
    ("had", "has", "words"),
    [
        ({"matrices": {"likeness": Matrix("cosine", EYE, NAMES, NAMES)}}, {}, "the matrix likeness"),
        ({"verdicts": (PASSED,)}, {}, "floor held in base and was not judged in head"),
        ({"verdicts": (PASSED,)}, {"verdicts": (NOTED,)}, "floor held in base and was not judged in head"),
        ({"verdicts": (PASSED,)}, {"verdicts": (replace(NOTED, outcome="inconclusive"),)}, "is inconclusive in head"),
    ],
)
def test_a_matrix_or_a_held_reference_that_vanished_is_undecided(had, has, words):
    one = scored(RIGHT)
    comparison = compared([replace(one, **had)], [replace(one, **has)])
    assert words in verdict_of(comparison, "completeness").reason
    assert comparison.exit_code == 3
    assert compared([replace(one, **had)], [replace(one, **had)]).exit_code == 0


def test_a_trace_that_vanished_beside_the_result_it_is_taken_with_is_undecided():
    traces = [{"model": {"name": "ViT-B/32"}}]
    gone = compare_runs(run_of(natural(), traces=traces), run_of(natural()), RULES)
    assert verdict_of(gone, "completeness").reason == "the trace vanished: base has it, head has not"
    assert gone.exit_code == 3


def test_the_same_experiment_on_another_data_set_is_missing_and_says_so():
    other = replace(natural(), dataset=DatasetIdentity("other", "0" * 64, 8))
    assert "measured it on other" in verdict_of(compared([natural()], [other]), "completeness").reason


def test_a_timed_test_that_vanished_is_undecided():
    before = [Timing("test_mine", "", (1.0,)), Timing("test_images_per_second[ViT-B/32]", "ViT-B/32", (1.0,))]
    runs = run_of(speed()), run_of(speed())
    gone = compare_runs(*runs, RULES, before, ())
    assert verdict_of(gone, "completeness").reason == "the test test_mine was timed in base and did not run in head"
    assert compare_runs(*runs, RULES, before, before).exit_code == 0


@pytest.mark.parametrize("runs", [((), ()), ((), (natural(),))])
def test_nothing_judged_is_no_pass(runs):
    assert compared(*runs).exit_code == 3


def test_only_compares_the_named_experiments():
    base, head = [natural(), scored(RIGHT)], [natural(EYE + 0.05), scored(RIGHT)]
    assert compared(base, head, only=["coco_crops"]).exit_code == 0
    assert {v.key.experiment for v in compared(base, head, only=["natural"]).verdicts} == {"natural"}
    with pytest.raises(UsageError, match="did you mean natural"):
        compared(base, head, only=["natral"])


def test_two_results_of_one_key_are_refused():
    with pytest.raises(UsageError, match="base holds two results of natural of ViT-B/32;"):
        compared([natural(), natural()], [natural()])


@pytest.mark.parametrize(
    ("plan", "words"), [(True, "asked for it and has not measured it"), (False, "did not ask for it")]
)
def test_a_result_that_vanished_is_told_from_one_that_was_not_asked_for(plan, words):
    base, head = run_of(scored(RIGHT), natural()), run_of(natural())
    comparison = compare_runs(base, replace(head, plan=(scored(RIGHT).key,) if plan else ()), RULES)
    assert words in verdict_of(comparison, "completeness").reason
    assert comparison.outcome == "inconclusive"
