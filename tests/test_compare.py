"""Comparing two runs: what passes, what fails, what cannot be told, each shown; and what an absence becomes."""

from dataclasses import replace

import numpy as np
import pytest
from fakes import card
from paired_runs import (
    EYE,
    NAMES,
    RULES,
    compared,
    crops,
    flipped,
    hits,
    moved,
    natural,
    scored,
    several,
    verdict_of,
    verdicts_of,
    with_score,
)

from clipbench.judge.tolerances import MustPass, with_options
from clipbench.types import Matrix, MetricSpec, Verdict

# Question 2: declared metrics on sets large enough.


def test_identical_outcomes_on_identical_items_pass_as_identical():
    comparison = compared(*crops())
    assert comparison.outcome == "pass"
    assert verdict_of(comparison, "identical").reason.startswith("identical")


def test_a_drop_within_what_is_excluded_passes():
    comparison = compared(*crops(lost=10, gained=8))
    assert verdict_of(comparison, "in general").outcome == "pass"
    assert comparison.exit_code == 0


def test_a_drop_that_is_shown_and_exceeds_the_tolerance_fails_and_says_by_how_much():
    comparison = compared(*crops(lost=120, gained=20))
    found = verdict_of(comparison, "in general")
    assert (found.outcome, comparison.exit_code) == ("fail", 1)
    assert "fell by 0.02, more than the 0.01 allowed" in found.reason
    assert (found.lost, found.gained) == (120, 20)


def test_a_drop_neither_shown_nor_excluded_is_undecided_and_says_what_this_n_would_fail():
    comparison = compared(*crops(lost=40, gained=35, outcomes=hits(600, 300)))
    found = verdict_of(comparison, "in general")
    assert (found.outcome, comparison.exit_code) == ("inconclusive", 3)
    assert "this n would fail a drop of" in found.reason


def test_a_drop_that_is_shown_within_the_tolerance_passes_and_is_told():
    found = verdict_of(compared(*crops(lost=20)), "in general")
    assert found.outcome == "pass"
    assert "a drop of 0.004 is shown, within the tolerance" in found.reason


def test_an_asked_tolerance_decides_in_place_of_the_declared_one():
    pair = crops(lost=120, gained=20)
    assert compared(*pair, rules=with_options(RULES, ["acc1=0.05"], None, ["acc1"])).outcome == "pass"
    assert compared(*pair, rules=with_options(RULES, ["0.05"], None, [])).outcome == "pass"
    assert compared(*pair, rules=with_options(RULES, ["acc5=0.05"], None, ["acc5"])).outcome == "fail"


def test_a_tolerance_by_name_declares_a_metric_that_nobody_declared():
    mine = MetricSpec("my_score", "probability")
    pair = crops(lost=120, gained=20, metric=mine, experiment="mine")
    assert verdict_of(compared(*pair), "same items").outcome == "inconclusive"
    rules = with_options(RULES, ["my_score=0.01"], None, ["my_score"])
    assert verdict_of(compared(*pair, rules=rules), "in general").outcome == "fail"


def test_holm_asks_more_of_each_of_several_metrics():
    rules = with_options(RULES, ["0.001"], None, [])
    outcomes = hits(5000, 4000)
    worse = flipped(outcomes, lost=27, gained=14)
    one = [scored(outcomes)], [scored(worse)]
    assert verdict_of(compared(*one, rules=rules), "in general").outcome == "fail"
    both = [several({"acc1": outcomes, "acc5": outcomes})], [several({"acc1": worse, "acc5": outcomes})]
    assert verdict_of(compared(*both, rules=rules), "in general").outcome == "inconclusive"


def test_outcomes_that_are_no_rates_are_judged_by_the_paired_bootstrap():
    rng = np.random.default_rng(0)
    before, noise = rng.uniform(0.2, 0.8, 80), rng.normal(0, 1, 80)
    noise -= noise.mean()
    verdicts = []
    for drop, spread in ((0.001, 0.01), (0.05, 0.01), (0.005, 0.1)):
        after = before - drop + spread * noise
        pair = [scored(v, "mean_average_precision", "coco_multilabel") for v in (before, after)]
        verdicts.append(verdict_of(compared(pair[:1], pair[1:]), "in general"))
    assert [f.outcome for f in verdicts] == ["pass", "fail", "inconclusive"]
    assert "fell by 0.005" in verdicts[2].reason
    assert "would fail a drop of 0.03" in verdicts[2].reason


def test_captions_of_one_image_are_no_five_witnesses():
    images = tuple(f"{image}" for image in range(200) for _ in range(5))
    before = [1] * 1000
    together = [0 if k < 20 else 1 for k in range(1000)]
    apart = [0 if k % 50 == 0 else 1 for k in range(1000)]
    verdicts = []
    for after in (apart, together):
        name = "image_retrieval_recall@1"
        pair = [[scored(outcomes, name, "coco_retrieval", clusters=images)] for outcomes in (before, after)]
        verdicts.append(verdict_of(compared(*pair), "in general").outcome)
    assert verdicts == ["fail", "inconclusive"]


def test_crops_of_one_picture_are_no_five_witnesses():
    pictures = tuple(f"{k // 5}" for k in range(1000))
    before, together = [1] * 1000, hits(1000, 980)[::-1]
    apart = crops(lost=20, outcomes=before)
    files = [scored(before, clusters=pictures)], [scored(together, clusters=pictures)]
    assert verdict_of(compared(*apart), "in general").outcome == "fail"
    assert verdict_of(compared(*files), "in general").outcome == "inconclusive"


def test_a_declared_metric_without_outcomes_is_undecided():
    base, head = crops(lost=2)
    head = [with_score(head[0], "acc1", outcomes=None)]
    assert verdict_of(compared(base, head), "in general").outcome == "inconclusive"


def test_a_drop_of_the_tolerance_exactly_does_not_exceed_it():
    outcomes = hits(5000, 4000)
    for lost, gained in ((75, 25), (50, 0)):
        pair = [scored(outcomes)], [scored(flipped(outcomes, lost, gained))]
        assert verdict_of(compared(*pair), "in general").outcome == "inconclusive"
    beyond = [scored(outcomes)], [scored(flipped(outcomes, 76, 25))]
    assert verdict_of(compared(*beyond), "in general").outcome == "fail"


def test_a_hundred_items_show_a_large_drop_and_exclude_none():
    outcomes = hits(100, 80)
    for lost, verdict in ((20, "fail"), (2, "inconclusive")):
        pair = [scored(outcomes)], [scored(flipped(outcomes, lost))]
        assert verdict_of(compared(*pair), "in general").outcome == verdict


# Question 1: the same items, at any n.


def test_noise_of_another_batch_size_agrees():
    noise = np.random.default_rng(0).normal(0, 1e-7, (8, 8))
    comparison = compared([natural()], [natural(EYE + noise)])
    assert (comparison.outcome, verdict_of(comparison, "same items").outcome) == ("pass", "pass")


def test_cosines_that_move_beyond_the_budget_are_changed_and_undecided_at_small_n():
    comparison = compared([natural()], [natural(EYE + 0.002)])
    found = verdict_of(comparison, "same items")
    assert (found.outcome, comparison.exit_code) == ("inconclusive", 3)
    assert "cosines moved by up to 0.002 (budget 0.0001)" in found.reason
    assert "n=8" in found.reason


def test_a_coarser_precision_has_a_wider_budget_and_two_precisions_the_finer_one():
    def pair(before, after):
        return [natural(precision=before)], [natural(EYE + 0.002, precision=after)]

    assert compared(*pair("bf16", "bf16")).outcome == "pass"
    assert compared(*pair("fp32", "bf16")).outcome == "inconclusive"
    assert compared(*pair("int4", "int4")).outcome == "inconclusive"


def test_a_flip_of_a_near_tie_agrees_and_a_flip_beyond_the_budget_is_changed():
    tie, lost = moved(EYE, 2, 5, EYE[2, 2] - 1e-6), moved(EYE, 2, 5, EYE[2, 2] + 1e-6)
    comparison = compared([natural(tie)], [natural(lost)])
    assert comparison.outcome == "pass"
    assert "near ties" in verdict_of(comparison, "same items").reason
    changed = compared([natural()], [natural(moved(EYE, 2, 5, 0.5))])
    assert changed.outcome == "inconclusive"
    assert "text_to_image_top1: 1 lost (astronaut), 0 gained" in verdict_of(changed, "same items").reason


def test_a_change_on_a_small_set_is_a_note_once_a_large_set_answered_for_the_model():
    large = crops(lost=10, gained=8)
    comparison = compared([natural(), *large[0]], [natural(EYE + 0.002), *large[1]])
    assert verdict_of(comparison, "same items").outcome == "note"
    assert comparison.outcome == "pass"
    other = crops(lost=10, gained=8, model="RN50")
    assert compared([natural(), *other[0]], [natural(EYE + 0.002), *other[1]]).outcome == "inconclusive"


def test_a_card_that_changed_is_another_model():
    before, after = (card("mine", "factory", params=params) for params in (10**8, 10**8 + 1))
    assert compared([before], [before]).outcome == "pass"
    comparison = compared([before], [after])
    assert comparison.outcome == "inconclusive"
    assert "params 100,000,000 -> 100,000,001" in verdict_of(comparison, "same items").reason


def test_probabilities_have_the_budget_of_a_softmax():
    def labels(shift):
        table = np.full((8, 4), 0.25)
        table[:, 0] += shift
        result = scored(table[:, 0], "top1_probability", "natural_labels", ids=NAMES)
        matrix = Matrix("probability", table, NAMES, tuple("abcd"), scale=100.0)
        return replace(result, matrices={"probabilities": matrix})

    assert compared([labels(0)], [labels(0.004)]).outcome == "pass"
    assert compared([labels(0)], [labels(0.01)]).outcome == "inconclusive"


# What fails alone.


@pytest.mark.parametrize(
    ("right", "left", "word"), [(5, 3, None), (5, 2, "more than half"), (1, 0, "zero"), (8, 4, None)]
)
def test_a_score_that_falls_to_zero_or_by_more_than_half_fails_at_any_n(right, left, word):
    before, after = hits(8, right), hits(8, left)
    comparison = compared([scored(before, "top1", "mine")], [scored(after, "top1", "mine")])
    found = verdicts_of(comparison, "collapse")
    assert [f.outcome for f in found] == (["fail"] if word else [])
    assert comparison.outcome == ("fail" if word else "inconclusive")
    assert not word or word in found[0].reason


def test_an_item_that_must_pass_and_does_no_more_fails_alone():
    comparison = compared([natural()], [natural(moved(EYE, 7, 3, 0.4))])
    assert verdict_of(comparison, "must pass").outcome == "fail"
    assert "coffee" in verdict_of(comparison, "must pass").reason
    assert not verdicts_of(compared([natural()], [natural()]), "must pass")


def test_an_item_that_must_pass_and_never_did_is_no_change():
    broken = moved(EYE, 7, 3, 0.4)
    assert compared([natural(broken)], [natural(broken)]).outcome == "pass"


def test_an_item_that_must_pass_and_was_not_scored_is_undecided():
    row = MustPass("natural", "natural", "text_to_image_top1", ("unicorn",), "a test")
    rules = replace(RULES, must_pass=(row,))
    assert verdict_of(compared([natural()], [natural()], rules=rules), "must pass").outcome == "inconclusive"


def test_must_pass_binds_the_models_that_it_names():
    row = MustPass("natural", "natural", "text_to_image_top1", ("page",), "a test", ("RN50",))
    after = natural(moved(EYE, 0, 3, 0.4))
    assert not verdicts_of(compared([natural()], [after], replace(RULES, must_pass=(row,))), "must pass")


@pytest.mark.parametrize(
    ("before", "after", "word"), [("pass", "fail", "fail"), ("inconclusive", "fail", "fail"), ("fail", "fail", "note")]
)
def test_a_claim_that_held_in_base_and_fails_in_head_fails(before, after, word):
    def judged(outcome):
        result = natural()
        return replace(
            result, verdicts=(Verdict(result.key, "margin_min", "floor", outcome, "because", "a floor", 0.1),)
        )

    assert verdict_of(compared([judged(before)], [judged(after)]), "reference").outcome == word
    assert not verdicts_of(compared([judged("fail")], [judged("pass")]), "reference")
    assert verdict_of(compared([natural()], [judged("fail")]), "reference").outcome == "note"


# Flags that decide nothing.


def test_a_gain_too_good_to_be_true_is_flagged_and_fails_nothing():
    comparison = compared(*crops(gained=500))
    assert verdict_of(comparison, "gain").outcome == "note"
    assert "suspicious" in verdict_of(comparison, "gain").reason
    assert comparison.exit_code == 0
    assert not verdicts_of(compared(*crops(gained=100)), "gain")


def test_two_hundred_flips_each_way_are_churn_and_not_no_change():
    comparison = compared(*crops(lost=200, gained=200))
    found = verdict_of(comparison, "churn")
    assert "200 lost and 200 gained of 5,000 (8.0% of the items), net +0" in found.reason
    assert not verdicts_of(compared(*crops(lost=3, gained=3)), "churn")
