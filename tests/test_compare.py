"""Is the head as good as the base? What passes, what fails, and what is inconclusive, each shown both ways."""

from dataclasses import replace

import numpy as np
import pytest
from fakes import card
from paired_runs import (
    CLASSES,
    EYE,
    INT8,
    NAMES,
    RIGHT,
    RULES,
    cell,
    compared,
    crops,
    flipped,
    hits,
    moved,
    natural,
    quality,
    run_of,
    scored,
    several,
    verdict_of,
    verdicts_of,
    with_score,
)

from clipbench.judge.compare import compare_runs, headline
from clipbench.judge.tolerances import MustPass, with_options
from clipbench.metrics import hits_at, ranked
from clipbench.types import Answers, DatasetIdentity, Matrix, MetricSpec, Verdict

# Rows moved, and somebody asked for it: the head must be shown to be not worse.


@pytest.mark.parametrize(
    ("n", "right", "lost", "gained", "outcome", "words"),
    [
        (5000, 3000, 10, 8, "pass", "a drop beyond 0.01 is excluded"),
        (5000, 3000, 120, 20, "fail", "fell by 0.02, more than the 0.01 allowed"),
        (600, 300, 20, 18, "inconclusive", "fell by 0.00333, could be a drop of"),
        (
            5000,
            3000,
            50,
            0,
            "inconclusive",
            "no number of items is likely to exclude it",
        ),  # the tolerance exactly does not exceed it
        (5000, 3000, 51, 0, "fail", "fell by 0.0102, "),
        (100, 80, 20, 0, "fail", "fell by 0.2, "),  # a hundred items show a large loss, and exclude none
        (100, 80, 2, 0, "inconclusive", "100 items decide nothing by themselves"),
        (10_000, 150, 65, 0, "fail", "fell by 0.0065, more than the 0.003 allowed"),  # a fifth of few hits
        (10_000, 150, 10, 0, "pass", "a drop beyond 0.003 is excluded"),
        (5000, 0, 0, 0, "inconclusive", "no hit, so that nothing can be lost"),
    ],
)
def test_a_drop_is_excluded_or_shown_or_neither(n, right, lost, gained, outcome, words):
    comparison = compared(*crops(lost, gained, hits(n, right)))
    found = quality(comparison)
    assert (comparison.outcome, found.outcome) == (outcome, outcome)
    assert words in found.reason
    assert (found.lost, found.gained) == (lost, gained)
    could_be_decided = outcome == "inconclusive" and right > 0 and lost - gained < 0.01 * n
    assert (" items would decide" in found.reason) is could_be_decided


def test_about_as_many_items_would_decide_as_decide():
    reason = quality(compared(*crops(10, 10, hits(600, 300)))).reason
    enough = int(reason.rpartition("about ")[2].split()[0].replace(",", ""))
    flips = round(enough / 60)
    assert quality(compared(*crops(flips, flips, hits(enough, enough // 2)))).outcome == "pass"


def test_a_significant_loss_within_the_tolerance_passes_and_stands_in_the_headline():
    comparison = compared(*crops(lost=30))
    assert comparison.outcome == "pass"
    assert "a loss of 0.006 is significant and within what is allowed" in quality(comparison).reason
    assert "a significant loss within what is allowed: quality[coco_crops/items/ViT-B/32] acc1" in headline(comparison)
    assert "significant" not in headline(compared(*crops(lost=3)))


def test_an_asked_tolerance_decides_in_place_of_the_declared_one():
    pair = crops(lost=120, gained=20)
    assert compared(*pair, rules=with_options(RULES, ["acc1=0.05"], None, ["acc1"])).outcome == "pass"
    assert compared(*pair, rules=with_options(RULES, ["0.05"], None, [])).outcome == "pass"
    assert compared(*pair, rules=with_options(RULES, ["acc5=0.05"], None, ["acc5"])).outcome == "fail"
    none = quality(compared(*crops(), rules=with_options(RULES, ["0"], None, [])))
    assert (none.outcome, none.reason[:18]) == ("inconclusive", "nothing is allowed")


def test_a_tolerance_by_name_declares_a_metric_that_nobody_declared():
    pair = crops(lost=120, gained=20, metric=MetricSpec("my_score", "probability"), experiment="mine")
    assert quality(compared(*pair), "my_score").outcome == "note"
    rules = with_options(RULES, ["my_score=0.01"], None, ["my_score"])
    assert quality(compared(*pair, rules=rules), "my_score").outcome == "fail"


def test_holm_asks_more_of_each_of_several_metrics():
    rules = with_options(RULES, ["0.001"], None, [])
    worse = flipped(RIGHT, lost=28, gained=12)
    assert quality(compared([scored(RIGHT)], [scored(worse, **INT8)], rules)).outcome == "fail"
    both = [several({"acc1": RIGHT, "acc5": RIGHT})], [several({"acc1": worse, "acc5": RIGHT}, **INT8)]
    assert quality(compared(*both, rules=rules)).outcome == "inconclusive"


def test_headlines_alone_must_be_decided():
    aside = MetricSpec("aside", "rate")
    for metric, outcome in (("acc1", "inconclusive"), (aside, "note")):
        comparison = compared(*crops(lost=20, gained=18, outcomes=hits(600, 300), metric=metric))
        assert quality(comparison, getattr(metric, "name", metric)).outcome == outcome
    assert compared(*crops(lost=120, metric=aside)).outcome == "fail"


def test_average_precisions_of_classes_are_judged_by_the_items_behind_them():
    rng = np.random.default_rng(0)
    before, noise = rng.uniform(0.2, 0.8, 80), rng.normal(0, 1, 80)
    noise -= noise.mean()
    found = []
    for drop, spread in ((0.001, 0.01), (0.05, 0.01), (0.005, 0.05)):
        values = before, before - drop + spread * noise
        how = {"axis": "classes", "ids": CLASSES[:80], "dataset": DatasetIdentity("items", "f" * 64, 5000)}
        base, head = (scored(v, "mean_average_precision", "coco_multilabel", **how) for v in values)
        head = replace(head, evidence=natural(move=0.02).evidence)
        base = replace(base, evidence=natural().evidence)
        comparison = compare_runs(run_of(base), run_of(head, asked={"precision": "int8"}), RULES)
        found.append(quality(comparison, "mean_average_precision").outcome)
    assert found == ["pass", "fail", "inconclusive"]


FIVES = tuple(f"{k // 5}" for k in range(2000))


@pytest.mark.parametrize("how", ["clusters", "files", "pictures"])
def test_captions_of_an_image_crops_of_a_file_and_copies_of_a_picture_are_one_witness(how):
    apart, together = ([0 if lost else 1 for lost in ks] for ks in (np.arange(2000) % 80 == 0, np.arange(2000) < 25))
    found = []
    for after in (apart, together):
        pair = [scored([1] * 2000, **{how: FIVES})], [scored(after, **{how: FIVES}, **INT8)]
        found.append(quality(compared(*pair)).outcome)
    assert found == ["fail", "inconclusive"]
    assert quality(compared([scored([1] * 2000)], [scored(together, **INT8)])).outcome == "fail"


def grouped(lost, gained, **answers):
    """5,000 items, 50 a class; these are lost and those gained, with what else is known of them."""
    before = np.array(RIGHT)[np.random.default_rng(0).permutation(5000)]
    before[lost], before[gained] = 1, 0
    after = before.copy()
    after[lost], after[gained] = 0, 1
    return [scored(before, answers=answers)], [scored(after, answers={"margin": 0.11} | answers, **INT8)]


@pytest.mark.parametrize(("lost", "outcome"), [(np.arange(20) * 100, "fail"), (np.arange(20) * 101, "pass")])
def test_a_class_that_lost_a_fifth_of_its_items_fails_whatever_the_others_gained(lost, outcome):
    comparison = compared(*grouped(lost, np.arange(20) * 101 + 50))
    assert comparison.outcome == outcome
    assert (quality(comparison).reason == "classes lost: class 0 (20 of 50 lost)") is (outcome == "fail")


@pytest.mark.parametrize(("lost", "outcome"), [(np.arange(20) * 10, "fail"), (np.arange(20) * 240, "pass")])
def test_a_slice_that_fell_fails_whatever_the_others_gained(lost, outcome):
    groups = tuple("night" if k < 400 else "day" for k in range(5000))
    comparison = compared(*grouped(lost, np.arange(20) * 231 + 401, groups=groups))
    assert comparison.outcome == outcome
    said = [v.reason for v in comparison.of("fail")]
    assert [reason[:38] for reason in said] == (["slice night: fell by 0.05, allowed 0.0"] if outcome == "fail" else [])


TUNED = {"pretrained": "tuned", "weights_sha256": "b" * 64, "move": 0.02}


@pytest.mark.parametrize(
    ("lost", "gained", "how", "words"),
    [
        (300, 300, INT8, "12% of the items changed: 300 lost, 300 gained of 5,000"),  # churn
        (300, 300, TUNED, ""),  # which new weights may have
        (0, 600, TUNED, "rose by 0.12: too good to be true"),
        (0, 400, TUNED, ""),
    ],
)
def test_churn_under_a_numeric_change_and_a_gain_too_good_to_be_true_are_inconclusive(lost, gained, how, words):
    comparison = compared([scored(RIGHT)], [scored(flipped(RIGHT, lost, gained), **how)])
    assert comparison.outcome == ("inconclusive" if words else "pass")
    assert words in quality(comparison).reason


# Rows did not move: outcomes must not either.


@pytest.mark.parametrize(
    ("lost", "answers", "outcome", "words"),
    [
        (0, {}, "pass", "rows are equivalent"),
        (1, {}, "fail", "1 outcomes are no near ties: scoring changed: i0"),
        (1, {"margin": 1e-5}, "pass", "rows are equivalent; 1 near tie(s) changed"),
        (200, None, "fail", "4.0% of it changed: scoring changed"),
    ],
)
def test_equal_rows_with_other_outcomes_are_another_scoring_but_for_near_ties(lost, answers, outcome, words):
    pair = [[scored(o, answers=answers)] for o in (RIGHT, flipped(RIGHT, lost))]
    comparison = compared(*pair)
    assert (comparison.outcome, quality(comparison).outcome) == (outcome, outcome)
    assert words in quality(comparison).reason


def among_five(gap, value=None):
    """200 items with one taken for its own class, which is the 5th of 20 but for item 0: there it is `gap` from the fifth place."""
    scores = np.tile(np.float32([0.4, 0.38, 0.36, 0.34, 0.32, 0.3]), (200, 1))
    scores[0, 4] = scores[0, 5] + gap
    own = np.full(200, 4)
    found = ranked(np.pad(scores, ((0, 0), (0, 14))), own)
    result = several({"acc1": hits_at(found.ranks, 1), "acc5": hits_at(found.ranks, 5)}, answers={})
    ids, labels = result.answers["images"].ids, own.astype(np.int32)
    result = replace(result, answers={"images": Answers(ids, CLASSES[:20], *found.taken_for, labels)})
    if value is None:
        return result
    outcomes = result.scores["acc5"].outcomes
    return with_score(result, "acc5", outcomes=replace(outcomes, values=np.r_[value, outcomes.values[1:]]))


@pytest.mark.parametrize(
    ("head", "outcome"),
    [(among_five(-1e-6), "pass"), (among_five(-0.01), "fail"), (among_five(1e-6, value=0.0), "fail")],
)
def test_among_the_first_five_near_ties_may_change_though_no_first_one_does(head, outcome):
    comparison = compared([among_five(1e-6)], [head])
    assert comparison.outcome == outcome
    assert ("are no near ties: scoring changed: i0" in verdict_of(comparison, "quality", "acc5").reason) is (
        outcome == "fail"
    )


@pytest.mark.parametrize("margin", [0.1, 1e-5])
def test_wrong_answers_that_become_other_wrong_answers_are_another_scoring_but_for_near_ties(margin):
    base = scored(RIGHT, answers={"margin": margin})
    answers = base.answers["images"]
    top = answers.top.copy()
    top[4000, 0] = (top[4000, 0] + 1) % 100  # wrong before, wrong in another way now
    comparison = compared([base], [replace(base, answers={"images": replace(answers, top=top)})])
    assert comparison.outcome == ("fail" if margin == 0.1 else "pass")
    said = [v.reason for v in comparison.of("fail")]
    assert said == (["rows are equivalent and 1 are taken for something else: scoring changed: i4000"] if said else [])


@pytest.mark.parametrize(("shift", "outcome"), [(1e-7, "pass"), (0.002, "fail")])
def test_cosines_of_equal_rows_do_not_move(shift, outcome):
    assert compared([natural()], [natural(EYE + shift)]).outcome == outcome


@pytest.mark.parametrize(("shift", "outcome"), [(0.004, "pass"), (0.05, "fail")])
def test_probabilities_of_equal_rows_move_no_further_than_a_softmax_takes_them(shift, outcome):
    def labels(by):
        table = np.full((8, 4), 0.25)
        table[:, 0] += by
        result = scored(table[:, 0], "top1_probability", "natural_labels", ids=NAMES)
        matrix = Matrix("probability", table, NAMES, tuple("abcd"), scale=100.0)
        return replace(result, matrices={"probabilities": matrix})

    assert compared([labels(0)], [labels(shift)]).outcome == outcome


@pytest.mark.parametrize(("value", "how", "outcome"), [(0.6, {}, "pass"), (0.5, {}, "fail"), (0.5, INT8, "note")])
def test_without_outcomes_by_item_equal_rows_have_equal_values_and_nothing_else_is_said(value, how, outcome):
    base, head = scored(RIGHT), scored(RIGHT, **how)
    base, head = with_score(base, "acc1", outcomes=None), with_score(head, "acc1", outcomes=None, value=value)
    assert quality(compared([base], [head])).outcome == outcome


def test_rows_that_moved_while_no_margin_did_are_outcomes_of_other_rows():
    pair = [scored(RIGHT, answers={})], [scored(RIGHT, answers={}, **INT8)]
    assert "outcomes of other rows" in verdict_of(compared(*pair), "quality", "").reason
    other = [scored(RIGHT, answers={"margin": 0.11}, **INT8)]
    assert compared(pair[0], other).outcome == "pass"


# Sets too small for a test.


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (natural(EYE * 0.99, **INT8), ""),
        (
            natural(EYE * 0.6, **INT8),
            "8 items decide nothing by themselves",
        ),  # cosines moved by more than half a margin
        (natural(moved(EYE * 0.99, 2, 5, 0.298), **INT8), "8 items decide nothing by themselves"),
        (natural(EYE * 0.99, move=0.02), "8 items decide nothing by themselves"),  # nobody asked
    ],
)
def test_a_checklist_passes_a_move_that_was_asked_for_where_no_item_came_near_to_being_lost(head, words):
    comparison = compared([natural()], [head])
    assert comparison.outcome == ("inconclusive" if words else "pass")
    assert (words or "a checklist: no item lost") in quality(comparison, "text_to_image_top1").reason


def small(right=40, **more):
    return scored(hits(50, right), "acc1", "zero_shot", dataset=DatasetIdentity("small", "e" * 64, 50), **more)


LARGE = crops(10, 8)


@pytest.mark.parametrize(
    ("large", "outcome"),
    [
        (LARGE, "pass"),
        ((LARGE[0], LARGE[0]), "inconclusive"),  # it is identical: that says nothing of a move
        ((LARGE[0], [scored(RIGHT, precision="int8", move=0.012)]), "inconclusive"),  # it moved less
        (crops(10, 8, model="RN50"), "inconclusive"),
        (crops(10, 8, hits(40, 30), dataset=DatasetIdentity("items", "f" * 64, 40)), "inconclusive"),  # it is smaller
        ((), "inconclusive"),
    ],
)
def test_a_sample_leans_on_a_larger_set_that_moved_as_much_and_passed_by_a_test(large, outcome):
    base, head = large or ([], [])
    comparison = compared([small(), *base], [small(39, **INT8), *head])
    found = cell(comparison, "quality[zero_shot/")
    assert found.outcome == outcome
    words = (
        "a sample: coco_crops of ViT-B/32 on items moved as much"
        if outcome == "pass"
        else "decide nothing by themselves"
    )
    assert words in found.reasons[0]


def test_a_sample_leans_on_no_larger_set_that_failed():
    comparison = compared([small(), *LARGE[0]], [small(39, **INT8), scored(flipped(RIGHT, 200), **INT8)])
    assert cell(comparison, "quality[zero_shot/").outcome == "inconclusive"


# What fails or is inconclusive alone.


def test_a_card_that_changed_is_another_model():
    before, after = (card("mine", "factory", params=params) for params in (10**8, 10**8 + 1))
    assert cell(compared([before], [before]), "quality").outcome == "pass"
    assert cell(compared([before], [after]), "quality").reasons == (
        "params 100,000,000 -> 100,000,001: params changed: it is another model than it was",
    )


UNICORN = MustPass("natural", "natural", "text_to_image_top1", ("unicorn",), "a test")
OF_ANOTHER = MustPass("natural", "natural", "text_to_image_top1", ("page",), "a test", ("RN50",))
LOST = moved(EYE, 7, 3, 0.4)


@pytest.mark.parametrize(
    ("rows", "base", "head", "outcome"),
    [
        (RULES.must_pass, EYE, LOST, "fail"),
        (RULES.must_pass, EYE, EYE, ""),
        (RULES.must_pass, LOST, LOST, ""),  # it never did
        ((UNICORN,), EYE, EYE, "inconclusive"),  # it was not scored
        ((OF_ANOTHER,), EYE, moved(EYE, 0, 3, 0.4), ""),
    ],
)
def test_an_item_that_must_pass_and_does_no_more_fails_alone(rows, base, head, outcome):
    rules = replace(RULES, must_pass=rows)
    comparison = compared([natural(base)], [natural(head * 0.99, **INT8)], rules)
    found = [v.outcome for v in verdicts_of(comparison, "quality", "text_to_image_top1") if "must pass" in v.reason]
    assert found == ([outcome] if outcome else [])


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        ("pass", "fail", "fail"),
        ("inconclusive", "fail", "fail"),
        (None, "fail", "fail"),
        ("fail", "fail", "note"),
        ("fail", "pass", ""),
    ],
)
def test_a_floor_that_head_does_not_hold_fails_unless_base_did_not_either(before, after, outcome):
    def judged(outcome):
        result = natural()
        floor = Verdict(result.key, "margin_min", "floor", outcome, "because", "a floor", 0.1)
        return replace(result, verdicts=(floor,) if outcome else ())

    comparison = compared([judged(before)], [judged(after)])
    assert [v.outcome for v in verdicts_of(comparison, "reference")] == ([outcome] if outcome else [])
    assert comparison.outcome == ("fail" if outcome == "fail" else "pass")


@pytest.mark.parametrize("bias", [{"logit_bias": -10.0}, {}])
def test_a_sigmoid_models_bias_that_changed_or_got_lost_is_another_space(bias):
    base = run_of(scored(RIGHT), observed={"logit_scale": 110.0, "logit_bias": -16.5})
    head = run_of(scored(RIGHT), observed={"logit_scale": 110.0, **bias})
    rows = [v for v in compare_runs(base, head, RULES).verdicts if v.cell.startswith("rows[")]
    assert [v.outcome for v in rows] == ["fail"]
    assert "another space" in rows[0].reason
    assert "logit_bias -16.5 -> " in rows[0].reason
