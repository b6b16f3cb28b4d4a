"""What fails alone, at any n: items that must pass, a score that collapses, a claim that held in the base and fails in the head.

And what is flagged without deciding anything: a gain too good to be true, and churn behind a score that stood still.
"""

from collections.abc import Iterator
from dataclasses import replace

from clipbench.judge.finding import Finding, about
from clipbench.judge.matching_results import Aligned, Pair
from clipbench.judge.paired import mcnemar
from clipbench.judge.tolerances import MustPass, Rules
from clipbench.result import Verdict

NO_SCORES = ("model_card", "speed")
CHURN_EACH_WAY, CHURN_SHARE = 5, 0.01
"""Flips worth a word although the score stood still: five each way, and one item in a hundred."""


def fails_alone(pair: Pair, rules: Rules) -> Iterator[Finding]:
    """Yield what fails alone, and the flags, of one pair of results.

    Items and scores are followed wherever both runs scored the same items, also where a prompt or resize differs: a score
    that falls to zero needs no finer comparison.
    """
    yield from _references(pair)
    if pair.base.experiment in NO_SCORES or not pair.has_same_items:
        return
    for row in rules.must_pass:
        yield from _must_pass(pair, row)
    for metric in pair.base.metrics:
        if metric in pair.head.metrics and (_is_rate(pair, metric) or rules.declared(pair.base.experiment, metric)):
            yield from _collapse(pair, metric)
    for metric, outcomes in pair.aligned.items():
        if outcomes.is_binary and not outcomes.is_identical:
            yield from _flags(pair, metric, outcomes, rules)


def _must_pass(pair: Pair, row: MustPass) -> Iterator[Finding]:
    base = pair.base
    if (row.experiment, row.dataset) != (base.experiment, base.dataset.name) or row.metric not in pair.aligned:
        return
    if row.models and base.model.name not in row.models:
        return
    outcomes = pair.aligned[row.metric]
    place = {item: k for k, item in enumerate(outcomes.ids)}
    there = [item for item in row.items if item in place]
    lost = [item for item in there if outcomes.base[place[item]] > 0 and outcomes.head[place[item]] <= 0]
    if lost:
        reason = f"{', '.join(lost)} must pass and does no more ({row.source})"
        yield about(base, "must pass", "fail", reason, row.metric, pair.head, len(outcomes.ids))
    if absent := [item for item in row.items if item not in place]:
        reason = f"{', '.join(absent)} must pass and was not scored: mend the list of items or the data"
        yield about(base, "must pass", "inconclusive", reason, row.metric, pair.head, len(outcomes.ids))


def _is_rate(pair: Pair, metric: str) -> bool:
    stored = pair.base.items.outcomes.get(metric, ())
    return len(stored) > 0 and all(outcome in (0, 1) for outcome in stored)


def _collapse(pair: Pair, metric: str) -> Iterator[Finding]:
    """By the outcomes and by the value itself, whichever fell: they can only differ in a file that was changed."""
    outcomes, n = pair.aligned.get(metric), pair.base.metrics[metric].n
    seen = [(pair.base.metrics[metric].value, pair.head.metrics[metric].value)]
    if outcomes is not None and len(outcomes.ids):
        seen.insert(0, (float(outcomes.base.mean()), float(outcomes.head.mean())))
    for before, after in seen:
        if before > 0 and after < before / 2:
            how = "fell to zero" if after <= 0 else "fell by more than half"
            reason = f"{how}: {before:.3g} -> {after:.3g} at n={n:,}; that fails at any n"
            finding = about(pair.base, "collapse", "fail", reason, metric, pair.head, n)
            yield replace(finding, lost=outcomes.lost, gained=outcomes.gained) if outcomes is not None else finding
            return


def _flags(pair: Pair, metric: str, outcomes: Aligned, rules: Rules) -> Iterator[Finding]:
    test, n = mcnemar(outcomes.base, outcomes.head, outcomes.clusters), len(outcomes.ids)
    gain = float(outcomes.head.mean() - outcomes.base.mean())
    better = mcnemar(outcomes.head, outcomes.base, outcomes.clusters).p_worse
    if gain >= rules.suspicious_gain and better <= rules.alpha:
        reason = (
            f"suspicious gain: rose by {gain:.3g} (p = {better:.2g} at n={n:,}); look for leaked items, changed prompts or other "
            f"weights before you are glad"
        )
        yield about(pair.base, "gain", "note", reason, metric, pair.head, n)
    several = min(test.lost, test.gained) >= CHURN_EACH_WAY and test.lost + test.gained >= CHURN_SHARE * n
    if several and test.p_differs > rules.alpha:
        reason = (
            f'churn, not "no change": {test.lost:,} lost and {test.gained:,} gained of {n:,} '
            f"({(test.lost + test.gained) / n:.1%} of the items), net {gain:+.3g}"
        )
        yield about(pair.base, "churn", "note", reason, metric, pair.head, n)


def _references(pair: Pair) -> Iterator[Finding]:
    """Floors and published values as each run judged itself against them."""
    held = {(v.metric, v.reference, str(v.kind)): v for v in pair.base.verdicts}
    for verdict in pair.head.verdicts:
        if verdict.verdict == "fail" and verdict.kind in ("floor", "published"):
            yield _reference(pair, verdict, held.get((verdict.metric, verdict.reference, verdict.kind)))


def _reference(pair: Pair, verdict: Verdict, before: Verdict | None) -> Finding:
    told = f"{verdict.reason} ({verdict.kind}: {verdict.reference})"
    metric = verdict.metric
    if before is None:
        return about(pair.base, "reference", "note", f"fails, and base was not held to it: {told}", metric, pair.head)
    if before.verdict == "fail":
        return about(pair.base, "reference", "note", f"fails as it did in base: {told}", metric, pair.head)
    return about(pair.base, "reference", "fail", f"fails, and was {before.verdict} in base: {told}", metric, pair.head)
