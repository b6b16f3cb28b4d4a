"""What cannot be compared and what is not there: said by name, and never a pass."""

from dataclasses import replace

import numpy as np
import pytest
from paired_runs import (
    EYE,
    INT8,
    NAMES,
    PROTOCOL,
    RIGHT,
    RULES,
    cell,
    compared,
    crops,
    evidence,
    hits,
    natural,
    run_of,
    scored,
    several,
    speed,
    trace_of,
    verdict_of,
    verdicts_of,
    with_score,
)

from clipbench.errors import UsageError
from clipbench.judge.compare import compare_runs
from clipbench.storage import Timing
from clipbench.types import Answers, DatasetIdentity, Encoding, Key, Matrix, Provenance, Skip, Verdict

NAMED = Key("coco_crops", "ViT-B/32", "items")
IDS = tuple(f"i{k}" for k in range(5000))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": ("other",)}, 'prompts ["a photo of a {}."] -> ["other"]'),
        ({"metric_version": 2}, "metric_version 1 -> 2"),
        ({"classes": ("a", "b")}, 'classes absent -> ["a", "b"]'),
        ({"options": {"crop": "tight"}}, "crop absent -> tight"),
    ],
)
def test_another_protocol_is_not_comparable_however_good_or_bad_the_scores_are(change, words):
    for right in (0, 3000, 5000):
        comparison = compared([scored(RIGHT)], [scored(hits(5000, right), protocol=replace(PROTOCOL, **change))])
        assert cell(comparison, "quality").reasons == (f"not comparable: {words}",)
        assert comparison.exit_code == 3


def gallery(candidates):
    ids = tuple(f"t{k}" for k in range(300))
    top, ones = np.zeros((300, 1), np.int32), np.ones(300, np.float32)
    answers = Answers(ids, candidates, top, ones[:, None], ones)
    return replace(
        scored([1] * 300, "text_retrieval_recall@1", "coco_retrieval", ids=ids), answers={"text_to_image": answers}
    )


def test_a_gallery_with_other_candidates_is_not_comparable_whatever_was_found_in_it():
    other = compared([gallery(("a", "b"))], [gallery(("a", "b", "c"))])
    assert "text_to_image has other candidates (2 -> 3)" in cell(other, "quality").reasons[0]
    assert other.exit_code == 3
    assert compared([gallery(("a", "b"))], [gallery(("a", "b"))]).exit_code == 0


@pytest.mark.parametrize(
    ("key", "provenance"),
    [("optimizations", Provenance(("x",))), ("exclusions", Provenance(exclusions={"truncated_texts": 1}))],
)
def test_what_only_says_how_it_went_hinders_no_comparison_and_is_told(key, provenance):
    comparison = compared([scored(RIGHT)], [replace(scored(RIGHT), provenance=provenance)])
    assert comparison.outcome == "pass"
    assert any(key in d.what for d in comparison.differences)


def test_items_are_followed_by_id_whatever_their_order():
    comparison = compared([scored(RIGHT, ids=IDS)], [scored(RIGHT[::-1], ids=IDS[::-1])])
    assert comparison.outcome == "pass"


def test_items_that_are_gone_are_named_and_inconclusive_and_new_ones_are_a_note():
    base, head = scored(RIGHT, ids=IDS), scored(RIGHT[1:], ids=IDS[1:])
    gone = compared([base], [head])
    assert verdict_of(gone, "items").reason == "1 item(s) of base are gone: i0"
    assert verdict_of(gone, "items").items == ("i0",)
    assert (gone.outcome, cell(gone, "quality").outcome) == ("inconclusive", "inconclusive")
    grown = compared([head], [base])
    assert verdict_of(grown, "new").reason == "1 item(s) are new: i0"
    assert grown.outcome == "pass"


def test_head_s_results_on_exactly_the_items_of_base_decide_where_its_data_grew():
    base, grown = gallery(("a", "b")), gallery(("a", "b", "c"))
    again = compared([base], [grown], rescored=[base])
    assert again.outcome == "pass"
    assert "scored again on exactly base's items" in verdict_of(again, "new").reason


def test_items_with_other_content_are_named_and_not_held_against_each_other():
    files = ("another file", *IDS[1:])
    comparison = compared([scored(RIGHT)], [scored(RIGHT, files=files)])
    assert cell(comparison, "rows").reasons == ("1 items have other content: i0",)
    assert verdict_of(comparison, "rows").outcome == "pass"
    assert comparison.exit_code == 3


def test_other_decoded_pixels_of_the_same_file_are_told():
    comparison = compared([scored(RIGHT)], [scored(RIGHT, pictures=("decoded otherwise", *IDS[1:]))])
    assert comparison.outcome == "pass"
    assert "the decoded pixels of 1 differ" in cell(comparison, "rows").reasons[0]


def test_other_labels_are_named_and_inconclusive():
    base = scored(RIGHT, answers={})
    labels = base.answers["images"].labels.copy()
    labels[7] = 8
    head = replace(base, answers={"images": replace(base.answers["images"], labels=labels)})
    comparison = compared([base], [head])
    assert verdict_of(comparison, "items").reason == "1 item(s) have another label: i7"
    assert comparison.outcome == "inconclusive"
    assert not verdicts_of(compared([base], [base]), "items")


@pytest.mark.parametrize("which", ["base", "head"])
def test_rows_from_a_cache_were_not_executed_and_are_inconclusive(which):
    cached = replace(scored(RIGHT), provenance=Provenance(encoding={"images": Encoding(5000, cached=7)}))
    sides = {"base": [scored(RIGHT)], "head": [scored(RIGHT)]} | {which: [cached]}
    comparison = compared(sides["base"], sides["head"])
    assert comparison.exit_code == 3
    assert cell(comparison, "rows").reasons[0].startswith(f"7 rows of {which} came from a cache")


@pytest.mark.parametrize(
    ("limit", "outcome", "words"),
    [
        (3e-3, "pass", "no row moved by a cosine distance over 0.003"),
        (2e-4, "inconclusive", "sketches cannot say"),
        (2e-5, "fail", "rows moved by a cosine distance over 2e-05: i"),
    ],
)
def test_the_owner_of_an_index_may_limit_how_far_each_row_moves(limit, outcome, words):
    comparison = compared(*crops(), rules=replace(RULES, row_limit=limit))  # moved by .02: a cosine distance of 2e-4
    assert (cell(comparison, "rows").outcome, comparison.outcome) == (outcome, outcome)
    assert any(words in reason for reason in cell(comparison, "rows").reasons)


# What base had and head has not.


@pytest.mark.parametrize("vanished", ["experiment", "model", "metric"])
def test_what_the_base_had_and_the_head_has_not_is_inconclusive(vanished):
    both = {"acc1": RIGHT, "acc5": RIGHT}
    base = [natural(), several(both), several(both, model="RN50")]
    head = {
        "experiment": [several(both), several(both, model="RN50")],
        "model": [natural(), several(both)],
        "metric": [natural(), several(both), scored(RIGHT, model="RN50")],
    }[vanished]
    comparison = compared(base, head)
    assert (cell(comparison, "complete").outcome, comparison.exit_code) == ("inconclusive", 3)
    assert compared(head, base).exit_code == 0
    notes = [v.reason for v in compared(head, base).verdicts if v.outcome == "note"]
    assert len(notes) == 1
    assert "new in head" in notes[0]


@pytest.mark.parametrize("n", [20, 5000])
def test_outcomes_that_vanished_beside_a_value_that_stayed_are_inconclusive(n):
    base = scored(hits(n, n // 2))
    comparison = compared([base], [with_score(base, "acc1", outcomes=None)])
    assert comparison.exit_code == 3
    assert "its outcomes by item vanished" in cell(comparison, "complete").reasons[0]


PASSED, NOTED = (Verdict(NAMED, "acc1", "floor", outcome, "at least .5") for outcome in ("pass", "note"))
ONE = scored(RIGHT)


@pytest.mark.parametrize(
    ("had", "has", "words"),
    [
        ({"matrices": {"likeness": Matrix("cosine", EYE, NAMES, NAMES)}}, {}, "the matrix likeness"),
        ({"answers": scored(RIGHT, answers={}).answers}, {}, "the answers images"),
        ({}, {"evidence": {}}, "the evidence images"),
        ({"verdicts": (PASSED,)}, {}, "floor held in base and was not judged in head"),
        ({"verdicts": (PASSED,)}, {"verdicts": (NOTED,)}, "floor held in base and was not judged in head"),
        ({"verdicts": (PASSED,)}, {"verdicts": (replace(NOTED, outcome="inconclusive"),)}, "is inconclusive in head"),
    ],
)
def test_evidence_a_matrix_answers_or_a_held_reference_that_vanished_is_inconclusive(had, has, words):
    comparison = compared([replace(ONE, **had)], [replace(ONE, **has)])
    assert words in cell(comparison, "complete").reasons[0]
    assert comparison.exit_code == 3
    assert compared([replace(ONE, **had)], [replace(ONE, **had)]).exit_code == 0


def test_a_base_without_evidence_is_to_be_measured_again():
    old = replace(ONE, evidence={})
    assert any("measure it again" in reason for reason in cell(compared([old], [ONE]), "complete").reasons)


@pytest.mark.parametrize(("traces", "has", "words"), [(1, 0, "the trace vanished"), (0, 0, "head has no trace")])
def test_a_trace_that_is_not_there_is_inconclusive(traces, has, words):
    one = trace_of(natural().model)
    comparison = compare_runs(run_of(natural(), traces=[one] * traces), run_of(natural(), traces=[one] * has), RULES)
    assert words in cell(comparison, "trace").reasons[0]
    assert comparison.exit_code == 3


def test_a_run_that_does_not_say_what_was_asked_of_its_models_is_to_be_measured_again():
    comparison = compare_runs(replace(run_of(ONE), subjects=()), run_of(ONE), RULES)
    assert cell(comparison, "subject").reasons == ("a run does not say what was asked of it: measure again",)


def folder(name):
    """A result of a zero-shot folder."""
    return scored(RIGHT, experiment="zero_shot", dataset=DatasetIdentity(name, "f" * 64, 5000))


@pytest.mark.parametrize("only", [(), ("zero_shot",)])
def test_a_zero_shot_part_skipped_in_the_head_is_inconclusive_and_concerns_its_folder_alone(only):
    skip = Skip(Key("zero_shot", "ViT-B/32", "shapes"), "random weights")
    base, head = run_of(folder("shapes"), folder("dogs")), run_of(folder("shapes"), folder("dogs"), skipped=(skip,))
    comparison = compare_runs(base, head, RULES, only=only)
    assert cell(comparison, "complete").reasons == (
        "zero_shot of ViT-B/32 on shapes: skipped in part in head: random weights",
    )
    assert comparison.exit_code == 3
    assert compare_runs(head, head, RULES, only=only).exit_code == 0


SKIPPED = (Skip(NAMED, "no such folder"),)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({}, "has not, and did not ask for it"),
        ({"plan": (NAMED,)}, "asked for it and has not measured it"),
        ({"plan": (NAMED,), "skipped": SKIPPED}, "was skipped in head: no such folder"),
    ],
)
def test_a_result_that_vanished_is_told_from_one_that_was_not_asked_for_or_was_skipped(head, words):
    comparison = compare_runs(run_of(ONE, natural()), run_of(natural(), **head), RULES)
    assert words in cell(comparison, "complete").reasons[0]
    assert comparison.exit_code == 3


def test_the_same_experiment_on_another_data_set_is_missing_and_says_so():
    other = replace(natural(), dataset=DatasetIdentity("other", "0" * 64, 8))
    assert "measured it on other" in cell(compared([natural()], [other]), "complete").reasons[0]


def test_a_timed_test_that_vanished_is_inconclusive():
    before = [Timing("test_mine", "", (1.0,)), Timing("test_images_per_second[ViT-B/32]", "ViT-B/32", (1.0,))]
    runs = run_of(natural(), speed()), run_of(natural(), speed())
    gone = compare_runs(*runs, RULES, before, ())
    assert cell(gone, "complete").reasons == ("the test test_mine was timed in base and did not run in head",)
    assert compare_runs(*runs, RULES, before, before).exit_code == 0


@pytest.mark.parametrize("head", [(), (natural(),)])
def test_a_base_without_results_judges_nothing_and_that_is_no_pass(head):
    assert compared((), head).exit_code == 3


# Which run it is.


def test_a_run_compared_with_itself_is_inconclusive_and_an_older_head_is_told():
    one, other = run_of(natural(), id="1", time="2026-01-02"), run_of(natural(), id="2", time="2026-01-01")
    assert compare_runs(one, one, RULES).exit_code == 3
    assert "head is the base itself (run 1)" in cell(compare_runs(one, one, RULES), "complete").reasons[0]
    older = compare_runs(one, other, RULES)
    assert older.exit_code == 0
    assert [v.reason for v in older.of("note")] == ["head (2026-01-01) is older than base (2026-01-02)"]
    assert not compare_runs(other, one, RULES).of("note")


def test_two_results_of_one_key_are_refused():
    with pytest.raises(UsageError, match="base holds two results of natural of ViT-B/32;"):
        compared([natural(), natural()], [natural()])


@pytest.mark.parametrize(("loader", "is_one"), [("factory", True), ("open_clip", False)])
def test_the_one_encoder_of_somebody_s_own_in_each_run_is_one_subject_whose_loader_changed(loader, is_one):
    base = run_of(scored(RIGHT, model="acme:fp32"), asked={"loader": loader})
    head = run_of(scored(RIGHT, model="acme:int8", move=0.02), asked={"loader": loader})
    comparison = compare_runs(base, head, RULES)
    assert comparison.outcome == ("pass" if is_one else "inconclusive")
    assert {v.key.model for v in comparison.verdicts if v.key.model} == (
        {"acme:fp32"} if is_one else {"acme:fp32", "acme:int8"}
    )
    if is_one:
        assert cell(comparison, "subject[acme:fp32]").reasons == (
            "what was asked for: loader changed (factory acme:fp32 -> factory acme:int8)",
        )
        two = [run_of(*r.results, natural(), asked={"loader": loader}) for r in (base, head)]
        assert compare_runs(*two, RULES).outcome == "inconclusive"  # which of several is meant, nobody said


@pytest.mark.parametrize(
    ("base", "head", "outcome", "words"),
    [
        ({}, {"observed": {"activation": "gelu"}}, "inconclusive", "activation changed, and nobody asked for it"),
        ({}, {"asked": {"preprocessing": "p1"}}, "pass", "what was asked for: preprocessing changed"),
        (
            {"asked": {"activation": "gelu"}, "observed": {"activation": "gelu"}},
            {"asked": {"activation": "quickgelu"}, "observed": {"activation": "gelu"}},
            "inconclusive",
            "activation was asked to change, and is what it was",
        ),
        ({}, {}, "pass", "the same as in base"),
    ],
)
def test_a_subject_is_what_was_asked_for(base, head, outcome, words):
    found = cell(compare_runs(run_of(ONE, **base), run_of(ONE, **head), RULES), "subject")
    assert (found.outcome, found.reasons) == (outcome, (words,))


def test_each_tower_s_rows_are_judged_once_for_all_results_of_the_same_items():
    other = replace(natural(), experiment="natural_labels")
    cells = [c.id for c in compared([natural(), other], [natural(), other]).cells]
    assert [c for c in cells if c.startswith("rows")] == [f"rows[{t}/natural/ViT-B/32]" for t in ("images", "texts")]
    head = replace(natural(), evidence={"images": evidence(NAMES, 0.02), "texts": evidence(NAMES)})
    assert [c.id for c in compared([natural()], [head]).cells if c.outcome == "inconclusive"] == [
        "rows[images/natural/ViT-B/32]", "quality[natural/natural/ViT-B/32]",
    ]  # fmt: skip


@pytest.mark.parametrize(("asked", "named"), [({}, 5000), (INT8, 1)])
def test_every_item_that_moved_unasked_is_named_and_of_a_move_that_was_asked_for_those_apart(asked, named):
    base, head = scored(RIGHT), scored(RIGHT, **{**asked, "move": 0.05})
    kept = head.evidence["images"]
    sketches = kept.sketches.copy()
    sketches[7] = -sketches[7]
    head = replace(head, evidence={"images": replace(kept, sketches=sketches)})
    rows = verdict_of(compared([base], [head]), "rows")
    assert rows.reason.startswith("1 of 5,000 items moved apart from the others")
    assert (rows.items[0], len(rows.items)) == ("i7", named)
