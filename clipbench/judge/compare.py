"""Two runs compared: pass, fail, or cannot tell, with the reasons. The rules, in the order in which they decide:

1. **Fails alone, at any n**: an item that must pass and does no more; a score that falls to zero or by more than half; a floor or
   published value that held in base and fails in head; speed or memory beyond what is allowed between processes.
2. **Not comparable** (other items, n, prompts, preprocessing, metric version): undecided, never a pass.
3. **Worse in general?** (`in_general`) for declared metrics on sets large enough: pass, fail or undecided.
4. **Changed on these items?** (`same_items`) for the rest: agreeing within the numeric budget passes. Outcomes or cosines that moved
   beyond it are listed and do not fail by themselves, since eight items cannot say whether a change is for the worse. They are
   undecided, unless question 3 was put to the same model on a large set: that answers it, and the change is a note.
5. **Coverage**: what base had and head has not is undecided; what is new is a note. So are gains too good to be true, and churn.

A run in which nothing was judged is undecided.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from clipbench.errors import UsageError, closest
from clipbench.judge.consistency import contradictions
from clipbench.judge.coverage import coverage, vanished_tests
from clipbench.judge.differences import differences
from clipbench.judge.fails_alone import fails_alone
from clipbench.judge.finding import Comparison, Finding, ItemChange, about, pressing_first
from clipbench.judge.in_general import Question, answers, questions, with_pairing
from clipbench.judge.item_changes import item_changes
from clipbench.judge.matching_results import Pair, match_results
from clipbench.judge.probe_compare import compare_probes
from clipbench.judge.same_items import Agreement, agreement
from clipbench.judge.speed import EXPERIMENT as SPEED
from clipbench.judge.speed import speed_findings
from clipbench.judge.tolerances import Rules
from clipbench.result import Run, Skip
from clipbench.run_file import Timing

SMALL = "too few items to say whether it is worse in general: compare on a large set, or look at the items"


def compare_runs(
    base: Run,
    head: Run,
    rules: Rules,
    base_timings: Sequence[Timing] = (),
    head_timings: Sequence[Timing] | None = None,
    only: Sequence[str] = (),
) -> Comparison:
    """Return what changed from base to head and what it means.

    `base_timings`, `head_timings`: pytest-benchmark's own timings in the files; without head's (None) no test is missed.
    `only`: experiments to compare; none means all.

    Raises: UsageError for an experiment that neither run has, or a run with two results of one experiment, model and data set.
    """
    base, head = _only(base, only, base, head), _only(head, only, base, head)
    matched = match_results(base, head)
    findings: list[Finding] = list(coverage(matched, base, head, rules))
    if head_timings is not None and (not only or SPEED in only):
        findings += vanished_tests(base, head, base_timings, head_timings)
    families: dict[tuple[str, str], list[Question]] = defaultdict(list)
    for pair in matched.pairs:
        findings += contradictions(pair)
        findings += fails_alone(pair, rules)
        if pair.base.experiment == SPEED:
            findings += speed_findings(pair, base, head, rules, base_timings)
        elif not pair.obstacles:
            asked, unasked = questions(pair, rules)
            families[pair.base.model.name, pair.base.experiment] += asked
            findings += unasked
    for family in families.values():
        findings += answers(family, rules)
    answered = {f.model for f in findings if f.kind in ("in general", "identical")}
    for pair in matched.pairs:
        if pair.base.experiment != SPEED:
            judged = frozenset(f.metric for f in findings if f.kind in ("in general", "identical") and _is_of(f, pair))
            findings += _on_these_items(pair, rules, judged, answered)
    changes = [change for pair in matched.pairs for change in _changes(pair, rules)]
    stages = tuple(compare_probes(base.probes, head.probes, rules))
    told = differences(base, head, matched)
    return Comparison(pressing_first(findings), tuple(changes), told, rules.alpha, stages=stages)


def _on_these_items(pair: Pair, rules: Rules, judged: frozenset[str], answered: set[str]) -> list[Finding]:
    """The result's finding on question 1, or on why it was not comparable, and a line for each metric that is not judged."""
    if pair.obstacles:
        reason = f"not comparable: {'; '.join(pair.obstacles)}"
        values = [
            _value_line(pair, metric, "not comparable") for metric in pair.base.metrics if metric in pair.head.metrics
        ]
        return [about(pair.base, "not comparable", "inconclusive", reason, n=pair.base.dataset.n), *values]
    budget = rules.budget(pair.base.model.precision, pair.head.model.precision)
    seen = agreement(pair, budget, judged)
    rest = [metric for metric in pair.base.metrics if metric in pair.head.metrics and metric not in judged]
    lines = [_value_line(pair, metric, seen.state) for metric in rest]
    if not rest and seen.state != "changed":
        return lines
    return [_agreement_finding(pair, seen, answered), *lines]


def _agreement_finding(pair: Pair, seen: Agreement, answered: set[str]) -> Finding:
    n = pair.base.dataset.n
    if seen.state == "identical":
        return about(pair.base, "identical", "pass", f"identical: {seen.reason}", n=n)
    if seen.state == "agrees":
        return about(pair.base, "same items", "pass", f"agrees {seen.reason}", n=n)
    if pair.base.model.name in answered:
        return about(pair.base, "same items", "note", f"changed on these items: {seen.reason}", n=n)
    why = f"n={n:,} is {SMALL}" if n else "it is another model than it was"
    return about(pair.base, "same items", "inconclusive", f"changed on these items: {seen.reason}; {why}", n=n)


def _value_line(pair: Pair, metric: str, state: str) -> Finding:
    """A line of the table: its reason is "same" where this metric did not move, else what is said of the whole result."""
    before, after, outcomes = pair.base.metrics[metric], pair.head.metrics[metric], pair.aligned.get(metric)
    same = before.value == after.value and (outcomes is None or outcomes.is_identical)
    reason = "same" if same and not pair.obstacles else state
    line = about(pair.base, "shown", "note", reason, metric, pair.head, before.n)
    return line if outcomes is None else with_pairing(line, outcomes)


def _changes(pair: Pair, rules: Rules) -> list[ItemChange]:
    """Items are followed wherever both runs scored them, also where a prompt differs; margins and cosines are not scores."""
    return [
        change
        for metric, outcomes in pair.aligned.items()
        if (outcomes.is_binary or rules.declared(pair.base.experiment, metric)) and not outcomes.is_identical
        for change in item_changes(pair, metric, outcomes)
    ]


def _only(run: Run, only: Sequence[str], base: Run, head: Run) -> Run:
    known = {r.experiment for side in (base, head) for r in side.results}
    for name in only:
        if name not in known:
            raise UsageError(
                f"--only {name}: neither run has it; did you mean {closest(name, known) or ', '.join(sorted(known))}?"
            )
    if not only:
        return run
    results = tuple(r for r in run.results if r.experiment in only)
    skipped: tuple[Skip, ...] = tuple(s for s in run.skipped if s.experiment.partition(":")[0] in only)
    return replace(run, results=results, skipped=skipped)


def _is_of(finding: Finding, pair: Pair) -> bool:
    base = pair.base
    return (finding.experiment, finding.model, finding.dataset) == (base.experiment, base.model.name, base.dataset.name)
