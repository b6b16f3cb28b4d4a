"""Comparing two runs: what passes, what fails, what cannot be told, each shown; and what an absence becomes."""

from dataclasses import replace

import numpy as np
import pytest
from paired_runs import (
    EYE,
    RULES,
    compared,
    crops,
    finding,
    flipped,
    hits,
    moved,
    natural,
    scored,
    several,
)

from clipbench.judge.rules import MustPass, with_options
from clipbench.result import DatasetIdentity, Items, Metric, ModelIdentity, Result, Verdict

# Question 2: declared metrics on sets large enough.


def test_identical_outcomes_on_identical_items_pass_as_identical():
    comparison = compared(*crops())
    assert comparison.verdict == "pass"
    assert finding(comparison, "identical").reason.startswith("identical")


def test_a_drop_within_what_is_excluded_passes():
    comparison = compared(*crops(lost=10, gained=8))
    assert finding(comparison, "in general").verdict == "pass"
    assert comparison.exit_code == 0


def test_a_drop_that_is_shown_and_exceeds_the_tolerance_fails_and_says_by_how_much():
    comparison = compared(*crops(lost=120, gained=20))
    found = finding(comparison, "in general")
    assert (found.verdict, comparison.exit_code) == ("fail", 1)
    assert "fell by 0.02, more than the 0.01 allowed" in found.reason
    assert (found.lost, found.gained) == (120, 20)


def test_a_drop_neither_shown_nor_excluded_is_undecided_and_says_what_this_n_would_fail():
    comparison = compared(*crops(lost=40, gained=35, outcomes=hits(600, 300)))
    found = finding(comparison, "in general")
    assert (found.verdict, comparison.exit_code) == ("inconclusive", 3)
    assert "this n would fail a drop of" in found.reason


def test_a_drop_that_is_shown_within_the_tolerance_passes_and_is_told():
    found = finding(compared(*crops(lost=20)), "in general")
    assert found.verdict == "pass"
    assert "a drop of 0.004 is shown, within the tolerance" in found.reason


def test_an_asked_tolerance_decides_in_place_of_the_declared_one():
    pair = crops(lost=120, gained=20)
    assert compared(*pair, rules=with_options(RULES, ["acc1=0.05"], None, [])).verdict == "pass"
    assert compared(*pair, rules=with_options(RULES, ["0.05"], None, [])).verdict == "pass"
    assert compared(*pair, rules=with_options(RULES, ["acc5=0.05"], None, [])).verdict == "fail"


def test_a_tolerance_by_name_declares_a_metric_that_nobody_declared():
    pair = crops(lost=120, gained=20, metric="my_rate", experiment="mine")
    assert finding(compared(*pair), "same items").verdict == "inconclusive"
    rules = with_options(RULES, ["my_rate=0.01"], None, ["my_rate"])
    assert finding(compared(*pair, rules=rules), "in general").verdict == "fail"


def test_holm_asks_more_of_each_of_several_metrics():
    rules = with_options(RULES, ["0.001"], None, [])
    outcomes = hits(5000, 4000)
    worse = flipped(outcomes, lost=27, gained=14)
    one = [scored(outcomes)], [scored(worse)]
    assert finding(compared(*one, rules=rules), "in general").verdict == "fail"
    both = [several({"acc1": outcomes, "acc5": outcomes})], [several({"acc1": worse, "acc5": outcomes})]
    assert finding(compared(*both, rules=rules), "in general").verdict == "inconclusive"


def test_outcomes_that_are_no_rates_are_judged_by_the_paired_bootstrap():
    rng = np.random.default_rng(0)
    before, noise = rng.uniform(0.2, 0.8, 80), rng.normal(0, 1, 80)
    noise -= noise.mean()
    verdicts = []
    for drop, spread in ((0.001, 0.01), (0.05, 0.01), (0.005, 0.1)):
        after = before - drop + spread * noise
        pair = [scored(v, "mean_average_precision", "coco_multilabel") for v in (before, after)]
        verdicts.append(finding(compared(pair[:1], pair[1:]), "in general"))
    assert [f.verdict for f in verdicts] == ["pass", "fail", "inconclusive"]
    assert "fell by 0.005" in verdicts[2].reason
    assert "would fail a drop of 0.03" in verdicts[2].reason


def test_captions_of_one_image_are_no_five_witnesses():
    ids = [f"{image}#{k}" for image in range(200) for k in range(5)]
    before = [1] * 1000
    together = [0 if k < 20 else 1 for k in range(1000)]
    apart = [0 if k % 50 == 0 else 1 for k in range(1000)]
    verdicts = []
    for after in (apart, together):
        pair = []
        for outcomes in (before, after):
            items = Items(
                outcomes={"image_retrieval_recall@1": outcomes},
                id_lists={"text_ids": ids},
                axes={"image_retrieval_recall@1": "text_ids"},
            )
            result = scored(outcomes, "image_retrieval_recall@1", "coco_retrieval")
            pair.append([replace(result, items=items)])
        verdicts.append(finding(compared(*pair), "in general").verdict)
    assert verdicts == ["fail", "inconclusive"]


@pytest.mark.parametrize("change", [{"metrics": {"acc1": Metric(0.9, 5000)}}, {"items": Items()}])
def test_a_declared_metric_without_outcomes_that_average_to_it_is_undecided(change):
    base, head = crops(lost=2)
    head = [replace(head[0], **change)]
    assert finding(compared(base, head), "in general").verdict == "inconclusive"


def test_a_drop_of_the_tolerance_exactly_does_not_exceed_it():
    outcomes = hits(5000, 4000)
    for lost, gained in ((75, 25), (50, 0)):
        pair = [scored(outcomes)], [scored(flipped(outcomes, lost, gained))]
        assert finding(compared(*pair), "in general").verdict == "inconclusive"
    beyond = [scored(outcomes)], [scored(flipped(outcomes, 76, 25))]
    assert finding(compared(*beyond), "in general").verdict == "fail"


def test_a_hundred_items_show_a_large_drop_and_exclude_none():
    outcomes = hits(100, 80)
    for lost, verdict in ((20, "fail"), (2, "inconclusive")):
        pair = [scored(outcomes)], [scored(flipped(outcomes, lost))]
        assert finding(compared(*pair), "in general").verdict == verdict


# Question 1: the same items, at any n.


def test_noise_of_another_batch_size_agrees():
    noise = np.random.default_rng(0).normal(0, 1e-7, (8, 8))
    comparison = compared([natural()], [natural(EYE + noise)])
    assert (comparison.verdict, finding(comparison, "same items").verdict) == ("pass", "pass")


def test_cosines_that_move_beyond_the_budget_are_changed_and_undecided_at_small_n():
    comparison = compared([natural()], [natural(EYE + 0.002)])
    found = finding(comparison, "same items")
    assert (found.verdict, comparison.exit_code) == ("inconclusive", 3)
    assert "cosines moved by up to 0.002 (budget 0.0001)" in found.reason
    assert "n=8" in found.reason


def test_a_coarser_precision_has_a_wider_budget_and_two_precisions_the_finer_one():
    def pair(before, after):
        return [natural(precision=before)], [natural(EYE + 0.002, precision=after)]

    assert compared(*pair("bf16", "bf16")).verdict == "pass"
    assert compared(*pair("fp32", "bf16")).verdict == "inconclusive"
    assert compared(*pair("int4", "int4")).verdict == "inconclusive"


def test_a_flip_of_a_near_tie_agrees_and_a_flip_beyond_the_budget_is_changed():
    tie, lost = moved(EYE, 2, 5, EYE[2, 2] - 1e-6), moved(EYE, 2, 5, EYE[2, 2] + 1e-6)
    comparison = compared([natural(tie)], [natural(lost)])
    assert comparison.verdict == "pass"
    assert "near ties" in finding(comparison, "same items").reason
    changed = compared([natural()], [natural(moved(EYE, 2, 5, 0.5))])
    assert changed.verdict == "inconclusive"
    assert "text_to_image_top1: 1 lost (astronaut), 0 gained" in finding(changed, "same items").reason


def test_a_change_on_a_small_set_is_a_note_once_a_large_set_answered_for_the_model():
    large = crops(lost=10, gained=8)
    comparison = compared([natural(), *large[0]], [natural(EYE + 0.002), *large[1]])
    assert finding(comparison, "same items").verdict == "note"
    assert comparison.verdict == "pass"
    other = crops(lost=10, gained=8, model="RN50")
    assert compared([natural(), *other[0]], [natural(EYE + 0.002), *other[1]]).verdict == "inconclusive"


def test_a_card_that_changed_is_another_model():
    def card(params):
        identity = ModelIdentity("mine", "factory")
        return Result("model_card", identity, DatasetIdentity("none", "", 0), {}, {"params": Metric(params, 1)})

    assert compared([card(10**8)], [card(10**8)]).verdict == "pass"
    comparison = compared([card(10**8)], [card(10**8 + 1)])
    assert comparison.verdict == "inconclusive"
    assert "params 100,000,000 -> 100,000,001" in finding(comparison, "same items").reason


def test_probabilities_have_the_budget_of_a_softmax():
    def labels(shift):
        table = np.full((8, 4), 0.25)
        table[:, 0] += shift
        result = scored(table[:, 0], "top1_probability", "natural_labels", protocol={"logit_scale": 100.0})
        return replace(result, arrays={"probabilities": table})

    assert compared([labels(0)], [labels(0.004)]).verdict == "pass"
    assert compared([labels(0)], [labels(0.01)]).verdict == "inconclusive"


# What fails alone.


@pytest.mark.parametrize(
    ("right", "left", "word"), [(5, 3, None), (5, 2, "more than half"), (1, 0, "zero"), (8, 4, None)]
)
def test_a_score_that_falls_to_zero_or_by_more_than_half_fails_at_any_n(right, left, word):
    before, after = hits(8, right), hits(8, left)
    comparison = compared([scored(before, "top1", "mine")], [scored(after, "top1", "mine")])
    found = [f for f in comparison.findings if f.kind == "collapse"]
    assert [f.verdict for f in found] == (["fail"] if word else [])
    assert comparison.verdict == ("fail" if word else "inconclusive")
    assert not word or word in found[0].reason


def test_an_item_that_must_pass_and_does_no_more_fails_alone():
    comparison = compared([natural()], [natural(moved(EYE, 7, 3, 0.4))])
    assert finding(comparison, "must pass").verdict == "fail"
    assert "coffee" in finding(comparison, "must pass").reason
    assert not [f for f in compared([natural()], [natural()]).findings if f.kind == "must pass"]


def test_an_item_that_must_pass_and_never_did_is_no_change():
    broken = moved(EYE, 7, 3, 0.4)
    assert compared([natural(broken)], [natural(broken)]).verdict == "pass"


def test_an_item_that_must_pass_and_was_not_scored_is_undecided():
    row = MustPass("natural", "natural", "text_to_image_top1", ("unicorn",), "a test")
    rules = replace(RULES, must_pass=(row,))
    assert finding(compared([natural()], [natural()], rules=rules), "must pass").verdict == "inconclusive"


def test_must_pass_binds_the_models_that_it_names():
    row = MustPass("natural", "natural", "text_to_image_top1", ("page",), "a test", ("RN50",))
    after = natural(moved(EYE, 0, 3, 0.4))
    assert not [
        f for f in compared([natural()], [after], replace(RULES, must_pass=(row,))).findings if f.kind == "must pass"
    ]


@pytest.mark.parametrize(
    ("before", "after", "word"), [("pass", "fail", "fail"), ("inconclusive", "fail", "fail"), ("fail", "fail", "note")]
)
def test_a_claim_that_held_in_base_and_fails_in_head_fails(before, after, word):
    def judged(verdict):
        return replace(natural(), verdicts=(Verdict("margin_min", "a floor", "floor", 0.1, verdict, "because"),))

    assert finding(compared([judged(before)], [judged(after)]), "reference").verdict == word
    assert not [f for f in compared([judged("fail")], [judged("pass")]).findings if f.kind == "reference"]
    assert finding(compared([natural()], [judged("fail")]), "reference").verdict == "note"


# Flags that decide nothing.


def test_a_gain_too_good_to_be_true_is_flagged_and_fails_nothing():
    comparison = compared(*crops(gained=500))
    assert finding(comparison, "gain").verdict == "note"
    assert "suspicious" in finding(comparison, "gain").reason
    assert comparison.exit_code == 0
    assert not [f for f in compared(*crops(gained=100)).findings if f.kind == "gain"]


def test_two_hundred_flips_each_way_are_churn_and_not_no_change():
    comparison = compared(*crops(lost=200, gained=200))
    found = finding(comparison, "churn")
    assert "200 lost and 200 gained of 5,000 (8.0% of the items), net +0" in found.reason
    assert not [f for f in compared(*crops(lost=3, gained=3)).findings if f.kind == "churn"]
