"""The coverage gate: what the base had and the head has not is undecided, never passed over; what is new is said and neutral."""

from collections.abc import Iterator, Sequence

from clipbench.judge.finding import Finding, about
from clipbench.judge.matching_results import Matched, Pair
from clipbench.judge.probe_compare import PROBED, model_of
from clipbench.judge.tolerances import Rules
from clipbench.result import Result, Run, Skip
from clipbench.run_file import Timing

NAMED = 5


def coverage(matched: Matched, base: Run, head: Run, rules: Rules) -> Iterator[Finding]:
    """Yield a finding on each result, metric and item of the base that vanished or was skipped, and notes on what is new."""
    for result in matched.missing:
        yield about(result, "coverage", "inconclusive", _why_missing(result, matched, head))
    yield from _probes(matched, base, head)
    for pair in matched.pairs:
        yield from _skipped(pair, base, head)
        yield from _metrics(pair, rules)
        yield from _outcomes(pair)
        yield from _items(pair)
    for result in matched.new:
        yield about(result, "new", "note", "new in head: nothing in base to compare it with")


def vanished_tests(base: Run, head: Run, before: Sequence[Timing], after: Sequence[Timing]) -> Iterator[Finding]:
    """Yield a finding on each timed test of the base that the head did not run, nor measured in another way.

    A test is known by its name, not its path: where pytest was started from says nothing about what ran.
    """
    there = {timing.test for timing in after}
    measured = {(r.model.name, metric) for r in head.results for metric in r.metrics}
    for timing in before:
        plain = timing.test.split("[")[0].removeprefix("test_")
        if timing.test not in there and (timing.model, plain) not in measured:
            reason = f"the test {timing.test} was timed in base and did not run in head"
            yield Finding("coverage", "inconclusive", "speed", timing.model or "-", "-", reason, plain)


def _why_missing(result: Result, matched: Matched, head: Run) -> str:
    if reasons := [s.reason for s in head.skipped if _is_about(s, result)]:
        return f"skipped in head: {reasons[0]}"
    same = [r for r in matched.new if (r.experiment, r.model.name) == (result.experiment, result.model.name)]
    if same:
        return f"vanished: head measured it on {same[0].dataset.name}, base on {result.dataset.name}"
    return "vanished: base has it, head has not"


def _skipped(pair: Pair, base: Run, head: Run) -> Iterator[Finding]:
    before = [s for s in base.skipped if _is_about(s, pair.base)]
    if not before and (after := [s.reason for s in head.skipped if _is_about(s, pair.head)]):
        yield about(pair.base, "coverage", "inconclusive", f"skipped in part in head: {'; '.join(after)}")


def _probes(matched: Matched, base: Run, head: Run) -> Iterator[Finding]:
    """A probe that vanished beside a result on the very items it is taken on: what a session leaves out takes both along."""
    before, after = ({model_of(probe) for probe in run.probes} for run in (base, head))
    for pair in matched.pairs:
        name = pair.base.model.name
        if pair.base.experiment == PROBED and name in before - after:
            yield about(pair.base, "coverage", "inconclusive", "the probe vanished: base has it, head has not")


def _metrics(pair: Pair, rules: Rules) -> Iterator[Finding]:
    for metric in pair.base.metrics:
        if metric not in pair.head.metrics:
            shown_only = pair.base.experiment == "speed" and rules.speed_rule(metric) is None
            word = "note" if shown_only else "inconclusive"
            yield about(pair.base, "coverage", word, "vanished: base has it, head has not", metric)  # type: ignore[arg-type]
    if new := [metric for metric in pair.head.metrics if metric not in pair.base.metrics]:
        yield about(pair.head, "new", "note", f"new in head: {', '.join(new)}")


def _outcomes(pair: Pair) -> Iterator[Finding]:
    for metric in pair.base.metrics:
        if metric in pair.head.metrics and metric in pair.base.items.outcomes.keys() - pair.head.items.outcomes.keys():
            reason = "its outcomes by item vanished: base has them, head has the value alone"
            yield about(pair.base, "coverage", "inconclusive", reason, metric)


def _items(pair: Pair) -> Iterator[Finding]:
    seen = set()
    for outcomes in pair.aligned.values():
        for word, ids in (("vanished", outcomes.missing), ("new", outcomes.new)):
            if ids and (word, ids) not in seen:
                seen.add((word, ids))
                reason = f"{len(ids):,} item(s) {word} in head: {_listed(ids)}"
                kind, verdict = ("coverage", "inconclusive") if word == "vanished" else ("new", "note")
                yield about(pair.base, kind, verdict, reason)  # type: ignore[arg-type]


def _is_about(skip: Skip, result: Result) -> bool:
    """A skip names the model with its weights ("ViT-B/16 (openai)") or without, and a data set after a colon where there are several."""
    experiment, _, dataset = skip.experiment.partition(":")
    is_model = skip.model == result.model.name or skip.model.startswith(f"{result.model.name} (")
    return experiment == result.experiment and dataset in ("", result.dataset.name) and is_model


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")
