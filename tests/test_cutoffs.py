"""Cut-offs of an application: precision and recall at them, judged on the same queries, and the value that would keep the recall."""

import re
from dataclasses import replace

import numpy as np
import pytest
from paired_runs import INT8, run_of, several

from clipbench.errors import ClipbenchError
from clipbench.judge.compare import compare_runs
from clipbench.judge.tolerances import rules_over

N = 2000
ROW = {"name": "show", "experiment": "coco_crops", "dataset": "items", "score": 0.24, "tolerance": 0.02}


def queries(seed=0, shift=0.0, noise=0.0, n=N, **more):
    """A result whose queries' best cosines are known: nine in ten are right, and right ones score higher; `noise` is head's own."""
    generator = np.random.default_rng(7)
    right = generator.random(n) < 0.9
    scores = np.where(right, 0.28, 0.23) + 0.03 * generator.standard_normal(n) + shift
    scores += noise * np.random.default_rng(100 + seed).standard_normal(n)
    result = several({"acc1": right.astype(float)}, answers={}, **more)
    (answers,) = result.answers.values()
    cosines = np.stack([scores, scores - 0.1], axis=1).astype(np.float32)
    return replace(result, answers={"images": replace(answers, scores=cosines)})


def verdicts(base, head, row=ROW, **more):
    comparison = compare_runs(run_of(base), run_of(head), rules_over({"cutoff": [{**row, **more}]}, "settings"))
    return {v.metric.partition("@")[0]: v for v in comparison.verdicts if v.kind == "cut-off"}


def by_hand(result, cutoff):
    """(precision, recall), query by query."""
    answers, passed, hits = result.answers["images"], 0, 0
    for score, margin in zip(answers.scores[:, 0], answers.margins, strict=True):
        passed += score >= cutoff
        hits += score >= cutoff and margin > 0
    return hits / passed, hits / len(answers.ids)


def test_precision_and_recall_are_those_of_a_count_by_hand():
    base, head = queries(), queries(shift=0.005, **INT8)
    found = verdicts(base, head)
    assert (found["precision"].base, found["recall"].base) == pytest.approx(by_hand(base, 0.24))
    assert (found["precision"].head, found["recall"].head) == pytest.approx(by_hand(head, 0.24))


def test_equivalent_rows_pass():
    found = verdicts(queries(), queries())
    assert {v.outcome for v in found.values()} == {"pass"}
    assert "cut-off of" not in found["recall"].reason


def test_a_little_noise_passes_by_the_test():
    found = verdicts(queries(), queries(noise=0.001, **INT8))
    assert [found[what].outcome for what in ("precision", "recall")] == ["pass", "pass"]
    assert found["recall"].reason.startswith("a drop beyond 0.02 is excluded; a cut-off of 0.2")


def test_scores_that_sank_fail_the_recall_and_the_new_value_is_proposed_with_its_interval():
    found = verdicts(queries(), queries(shift=-0.04, noise=0.002, **INT8))
    assert (found["recall"].outcome, found["precision"].outcome) == ("fail", "pass")
    numbers = re.search(
        r"a cut-off of ([\d.]+) \(([\d.]+) to ([\d.]+)\) keeps the recall at ([\d.]+)", found["recall"].reason
    )
    value, low, high, recall = map(float, numbers.groups())
    assert low <= value <= high
    assert (low, high) == pytest.approx((0.2, 0.2), abs=0.003)
    assert recall == pytest.approx(found["recall"].base, abs=0.001)


def test_the_proposed_value_passes_when_it_is_taken():
    head = queries(shift=-0.04, noise=0.001, **INT8)
    found = verdicts(queries(), head, score=0.2, score_in_base=0.24)
    assert {v.outcome for v in found.values()} == {"pass"}


def test_wrong_ones_that_rose_fail_the_precision():
    base, head = queries(), queries(**INT8)
    answers = head.answers["images"]
    scores = answers.scores + np.where(answers.margins < 0, 0.1, 0.0).astype(np.float32)[:, None]
    found = verdicts(base, replace(head, answers={"images": replace(answers, scores=scores)}))
    assert (found["precision"].outcome, found["recall"].outcome) == ("fail", "pass")


def test_few_queries_are_inconclusive_with_the_number_that_would_do():
    found = verdicts(queries(n=60), queries(n=60, noise=0.001, **INT8))
    assert {v.outcome for v in found.values()} == {"inconclusive"}
    assert "149 are needed" in found["recall"].reason


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"score": 0.9}, "no query of base reaches 0.9"),
        ({"answers": "texts"}, r"no answers 'texts' \(there are: images\)"),
    ],
)
def test_what_cannot_be_judged_is_no_pass(row, words):
    (verdict,) = verdicts(queries(), queries(**INT8), **row).values()
    assert verdict.outcome == "inconclusive"
    assert re.search(words, verdict.reason)


def test_where_too_few_are_right_no_cutoff_keeps_the_recall():
    base, head = queries(), queries(**INT8)
    answers = head.answers["images"]
    margins = np.where(np.arange(N) % 2, answers.margins, -0.1).astype(np.float32)
    found = verdicts(base, replace(head, answers={"images": replace(answers, margins=margins)}))
    assert found["recall"].outcome == "fail"
    assert "no cut-off keeps the recall: without any it is 0.4" in found["recall"].reason


def test_of_heads_without_a_loss_hardly_any_fails_and_of_heads_that_lose_what_is_allowed_hardly_any_passes(monkeypatch):
    """60 heads each. Failing is at alpha .01: 4 or more in 60 happen once in 300 suites. Passing at a true loss of .024 is rarer than
    at .02, where it happens 5 times in 100: 9 or more in 60 happen once in 300 suites."""
    monkeypatch.setattr("clipbench.judge.cutoffs.RESAMPLES", 2)
    base = queries()
    found = [
        [verdicts(base, queries(seed, shift, 0.01, **INT8))["recall"] for seed in range(60)]
        for shift in (0.002, -0.0025)
    ]
    losses = [float(np.mean([v.base - v.head for v in one])) for one in found]
    assert losses[0] < 0.001
    assert 0.02 < losses[1] < 0.03
    none, allowed = ([v.outcome for v in one] for one in found)
    assert none.count("fail") < 4
    assert allowed.count("pass") < 9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score": 24}, "expected cosines from -1 to 1"),
        ({"score_in_base": "x"}, "expected cosines"),
        ({"tolerance": 0}, "tolerance above 0"),
        ({"tolerance": 2.0}, "expected a fraction"),
        ({"scor": 1}, "unknown key 'scor'; did you mean score"),
    ],
)
def test_rows_that_cannot_be_meant_are_refused(change, words):
    with pytest.raises(ClipbenchError, match=words):
        rules_over({"cutoff": [{**ROW, **change}]}, "settings")
