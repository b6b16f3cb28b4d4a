"""Two runs compared: pass, fail, or cannot tell, with the reasons. The rules, in the order in which they decide:

1. **Hard failures, at any n**: an item that must pass and does no more; a score that falls to zero or by more than half; a floor or
   published value that held in base and fails in head; speed or memory beyond what is allowed between processes.
2. **Not comparable** (other items, n, prompts, preprocessing, metric version): undecided, never a pass.
3. **Worse in general?** A paired non-inferiority test of each declared metric on a set large enough: pass, fail or undecided.
4. **Changed on these items?** For the rest: agreeing within the numeric budget passes; beyond it is undecided, or a note where
   question 3 was answered for the same model.
5. **Completeness**: what base had and head has not is undecided; what is new is a note. So are suspicious gains, and churn.

A run in which nothing was judged is undecided.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clipbench.errors import EXIT, UsageError, closest
from clipbench.judge.reindex import Reindex
from clipbench.judge.tolerances import Budget, Declared, Rules
from clipbench.judge.trace import TraceFinding, compare_traces, model_of
from clipbench.statistics import (
    POWER,
    Float64s,
    drop_upper_bound,
    effective_n,
    failed_drop,
    holm,
    mcnemar,
    paired_bootstrap,
    paired_difference_interval,
)  # fmt: skip
from clipbench.storage import Timing
from clipbench.types import (
    Answers,
    Key,
    Matrix,
    MetricSpec,
    ModelIdentity,
    Outcome,
    Outcomes,
    Result,
    Run,
    Skip,
    Verdict,
    by_severity,
    overall,
    short,
)  # fmt: skip

Bools = npt.NDArray[np.bool_]

LISTED = 5
STATED = ("floor", "published", "contract")
"""Kinds of reference that a session judges by itself; baseline and anchor are comparisons."""
CHURN_EACH_WAY, CHURN_SHARE = 5, 0.01
ROUNDING = 1e-9
SOFTMAX_GAIN = 0.5
"""A softmax at scale s moves by at most s / 2 times the largest move of a cosine: s p (1 - p) * 2, p (1 - p) <= 1 / 4."""
MACHINE, SETTINGS, SETTING_KEYS = ("processor", "accelerator", "driver"), ("threads",), ("batch",)

Kind = Literal[
    "identical",
    "same items",
    "in general",
    "must pass",
    "collapse",
    "reference",
    "speed",
    "completeness",
    "not comparable",
    "gain",
    "churn",
    "new",
    "shown",
    "index",
]


@dataclass(frozen=True)
class ItemChange:
    """One item whose outcome changed, with its margins and its five best candidates where the results say what it was taken for."""

    key: Key
    metric: str
    item: str
    direction: Literal["lost", "gained"]
    before: float
    after: float
    margin_before: float | None = None
    margin_after: float | None = None
    top_before: tuple[tuple[str, float], ...] = ()
    top_after: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Difference:
    """Something beside the outcomes that the two runs do not share, or are known to share: (what, in base, in head)."""

    what: str
    base: str
    head: str

    @property
    def is_change(self) -> bool:
        """False for a line that says that something stayed the same."""
        return self.base != self.head


@dataclass(frozen=True)
class Comparison:
    """Everything `compare` has to say, the most severe verdicts first; `index` answers `--index`, where that was asked.

    `stages` says of each model which stage of the trace moved: it explains the outcome and has no part in it. `specs`: what each
    metric of a result is, by key and name.
    """

    verdicts: tuple[Verdict, ...]
    items: tuple[ItemChange, ...] = ()
    differences: tuple[Difference, ...] = ()
    alpha: float = 0.05
    index: tuple[Reindex, ...] = ()
    stages: tuple[TraceFinding, ...] = ()
    specs: Mapping[tuple[Key, str], MetricSpec] = field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        """The worst of the verdicts; inconclusive where nothing was judged at all."""
        return "inconclusive" if (worst := overall(self.verdicts)) == "note" else worst

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 inconclusive."""
        return EXIT["compare"][self.outcome]

    def count(self, outcome: Outcome) -> int:
        """Return how many verdicts have this outcome."""
        return len(self.of(outcome))

    def of(self, outcome: Outcome) -> list[Verdict]:
        """Return the verdicts with this outcome."""
        return [v for v in self.verdicts if v.outcome == outcome]


def incomparable(one: Result, other: Result) -> tuple[str, ...]:
    """Return why the scores of two results may not be compared, in words; empty when they may.

    They may exactly when protocol, class list and items (the fingerprint) are equal: how they were made does not matter.
    `compare` asks for equal preprocessing too (`Pair.obstacles`): two models may differ in it, one model before and after not.
    """
    found = []
    if one.dataset.fingerprint != other.dataset.fingerprint:
        prints = (d.fingerprint[:12] or "none" for d in (one.dataset, other.dataset))
        found.append(f"other items (fingerprint {' -> '.join(prints)})")
    if one.dataset.n != other.dataset.n:
        found.append(f"n {one.dataset.n:,} -> {other.dataset.n:,}")
    before, after = one.protocol.entries(), other.protocol.entries()
    differing = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    return (*found, *(f"{key} {short(before.get(key))} -> {short(after.get(key))}" for key in differing))


@dataclass(frozen=True)
class PairedOutcomes:
    """One metric's outcomes on the items that both runs scored, (n,) float64, in base's order; `missing`, `new`: ids of one alone."""

    ids: tuple[str, ...]
    base: Float64s
    head: Float64s
    clusters: tuple[str, ...] | None
    missing: tuple[str, ...]
    new: tuple[str, ...]

    @cached_property
    def is_binary(self) -> bool:
        return bool(np.isin(self.base, (0.0, 1.0)).all() and np.isin(self.head, (0.0, 1.0)).all())

    @property
    def is_identical(self) -> bool:
        return not self.missing and not self.new and bool(np.array_equal(self.base, self.head))

    @property
    def drop(self) -> float:
        return float(self.base.mean() - self.head.mean())

    @property
    def lost(self) -> int:
        return int(np.sum(self.head < self.base))

    @property
    def gained(self) -> int:
        return int(np.sum(self.head > self.base))

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The two-sided 95 % interval of head minus base; None where a bootstrap has nothing to resample."""
        if not len(self.ids) or (self.is_identical and not self.is_binary):
            return None
        interval = paired_difference_interval if self.is_binary else paired_bootstrap
        return interval(self.base, self.head, clusters=self.clusters)

    def flips(self) -> str:
        words = ("lost", "gained") if self.is_binary else ("fell", "rose")
        return f"{self.lost:,} {words[0]}, {self.gained:,} {words[1]} of {len(self.ids):,}"


@dataclass(frozen=True)
class Pair:
    """A result of the base and the head's result of the same experiment, model and data set."""

    base: Result
    head: Result

    @property
    def key(self) -> Key:
        """What both are about."""
        return self.base.key

    @cached_property
    def shared(self) -> list[str]:
        """The metrics that both have."""
        return [metric for metric in self.base.scores if metric in self.head.scores]

    @cached_property
    def outcomes(self) -> Mapping[str, PairedOutcomes]:
        found = {metric: _align(*(r.scores[metric].outcomes for r in (self.base, self.head))) for metric in self.shared}
        return {metric: outcomes for metric, outcomes in found.items() if outcomes is not None}

    @cached_property
    def obstacles(self) -> tuple[str, ...]:
        """What makes the two not comparable, in words; empty when they are: another preprocessing is no score of this model."""
        before, after = (r.model.preprocessing for r in (self.base, self.head))
        changed = (f"preprocessing {before} -> {after}",) if before != after else ()
        return (*incomparable(self.base, self.head), *changed)

    @property
    def has_same_items(self) -> bool:
        """Items can be followed even where a prompt or resize differs."""
        versions = {r.protocol.metric_version for r in (self.base, self.head)}
        same = self.base.dataset == self.head.dataset and len(versions) == 1
        return same and not any(o.missing or o.new for o in self.outcomes.values())

    def verdict(self, kind: Kind, outcome: Outcome, reason: str, metric: str = "", n: int = 0) -> Verdict:
        before, after = (r.scores[metric].value if metric in r.scores else None for r in (self.base, self.head))
        return Verdict(self.key, metric, kind, outcome, reason, base=before, head=after, n=n)

    def with_flips(self, verdict: Verdict) -> Verdict:
        outcomes = self.outcomes.get(verdict.metric)
        if outcomes is None:
            return verdict
        return replace(verdict, lost=outcomes.lost, gained=outcomes.gained, interval=outcomes.interval)


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
    if only:
        known = {r.experiment for side in (base, head) for r in side.results}
        if (unknown := next((name for name in only if name not in known), None)) is not None:
            likely = closest(unknown, known) or ", ".join(sorted(known))
            raise UsageError(f"--only {unknown}: neither run has it; did you mean {likely}?")
        base, head = _only(base, only), _only(head, only)
    before, after = _by_key(base, "base"), _by_key(head, "head")
    pairs = [Pair(result, after[key]) for key, result in before.items() if key in after]
    scored = [pair for pair in pairs if not pair.base.is_timed]
    found = list(_vanished_results(before, after, head))
    found += _vanished_traces(base, head) if not only else ()
    for pair in pairs:
        found += _vanished_parts(pair, base, head, rules)
    new = "new in head: nothing in base to compare it with"
    found += [Verdict(key, "", "new", "note", new) for key in after if key not in before]
    if head_timings is not None and (not only or any(r.is_timed for r in base.results)):
        found += _vanished_tests(base, head, base_timings, head_timings)
    for pair in pairs:
        found += _hard_failures(pair, rules)
        if pair.base.is_timed:
            found += _speed(pair, base, head, rules)
    answers = list(_non_inferiority([pair for pair in scored if not pair.obstacles], rules))
    found += answers
    judged = {v.key.model for v in answers if v.kind in ("in general", "identical")}
    for pair in scored:
        tested = {v.metric for v in answers if v.key == pair.key}
        found += _same_items(pair, rules, tested, pair.key.model in judged)
    changes = [change for pair in pairs for change in _item_changes(pair, rules)]
    stages = tuple(compare_traces(base.traces, head.traces, rules))
    specs = {(r.key, name): s.spec for side in (base, head) for r in side.results for name, s in r.scores.items()}
    differences = _differences(base, head, pairs)
    return Comparison(by_severity(found), tuple(changes), differences, rules.alpha, stages=stages, specs=specs)


# Completeness: what the base had and the head has not.


def _vanished_results(before: Mapping[Key, Result], after: Mapping[Key, Result], head: Run) -> Iterator[Verdict]:
    for key in before:
        if key in after:
            continue
        skipped = [s.reason for s in head.skipped if _is_about(s, key)]
        elsewhere = [other.dataset for other in after.keys() - before.keys() if other[:2] == key[:2]]
        how = "asked for it and has not measured it" if key in head.plan else "has not, and did not ask for it"
        reason = f"vanished: base has it, head {how}"
        if skipped:
            reason = f"skipped in head: {skipped[0]}"
        elif elsewhere:
            reason = f"vanished: head measured it on {elsewhere[0]}, base on {key.dataset}"
        yield Verdict(key, "", "completeness", "inconclusive", reason)


def _vanished_traces(base: Run, head: Run) -> Iterator[Verdict]:
    before, after = ({model_of(trace) for trace in run.traces} for run in (base, head))
    models = {r.model.name for r in head.results}
    for model in sorted((before - after) & models):
        reason = "the trace vanished: base has it, head has not"
        yield Verdict(Key("trace", model, ""), "", "completeness", "inconclusive", reason)


def _vanished_parts(pair: Pair, base: Run, head: Run, rules: Rules) -> Iterator[Verdict]:
    """Skips, metrics, outcomes and items that one of two results lacks."""
    reasons = [s.reason for s in head.skipped if _is_about(s, pair.key)]
    if reasons and not any(_is_about(s, pair.key) for s in base.skipped):
        yield pair.verdict("completeness", "inconclusive", f"skipped in part in head: {'; '.join(reasons)}")
    for metric, score in pair.base.scores.items():
        if metric not in pair.head.scores:
            is_shown_only = pair.base.is_timed and rules.speed_rule(score.spec) is None
            outcome: Outcome = "note" if is_shown_only else "inconclusive"
            yield pair.verdict("completeness", outcome, "vanished: base has it, head has not", metric)
        elif score.outcomes is not None and pair.head.scores[metric].outcomes is None:
            reason = "its outcomes by item vanished: base has them, head has the value alone"
            yield pair.verdict("completeness", "inconclusive", reason, metric)
    for what, had, has in (
        ("matrix", pair.base.matrices, pair.head.matrices),
        ("answers", pair.base.answers, pair.head.answers),
        ("evidence", pair.base.evidence, pair.head.evidence),
    ):
        if gone := [str(name) for name in had if name not in has]:
            reason = f"vanished: base has the {what} {', '.join(gone)}, head has not"
            yield pair.verdict("completeness", "inconclusive", reason)
    yield from _vanished_verdicts(pair)
    if new := [metric for metric in pair.head.scores if metric not in pair.base.scores]:
        yield pair.verdict("new", "note", f"new in head: {', '.join(new)}")
    for ids in filter(None, dict.fromkeys(o.missing for o in pair.outcomes.values())):
        yield pair.verdict("completeness", "inconclusive", f"{len(ids):,} item(s) vanished in head: {_listed(ids)}")
    for ids in filter(None, dict.fromkeys(o.new for o in pair.outcomes.values())):
        yield pair.verdict("new", "note", f"{len(ids):,} item(s) new in head: {_listed(ids)}")


def _vanished_verdicts(pair: Pair) -> Iterator[Verdict]:
    """References that base was seen to hold and head was not: not judged, or inconclusive."""
    held = {(v.metric, v.kind): v for v in pair.base.verdicts if v.outcome == "pass" and v.kind in STATED}
    seen: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for v in pair.head.verdicts:
        seen[v.metric, v.kind].append(v.outcome)
    for (metric, kind), v in held.items():
        found = overall(seen[metric, kind])
        if found in ("note", "inconclusive"):
            how = "is inconclusive" if found == "inconclusive" else "was not judged"
            yield pair.verdict(
                "completeness", "inconclusive", f"{kind} held in base and {how} in head: {v.reason}", metric
            )


def _vanished_tests(base: Run, head: Run, before: Sequence[Timing], after: Sequence[Timing]) -> Iterator[Verdict]:
    """A test is known by its name, not its path: where pytest was started from says nothing about what ran.

    A test that did not run is no loss where head holds every timed metric that base holds of its model.
    """
    ran = {timing.test for timing in after}
    timed = [{(r.model.name, metric) for r in run.results if r.is_timed for metric in r.scores} for run in (base, head)]
    complete = {model for model, _ in timed[0]} - {model for model, _ in timed[0] - timed[1]}
    for timing in before:
        if timing.test not in ran and timing.model not in complete:
            reason = f"the test {timing.test} was timed in base and did not run in head"
            yield Verdict(Key("speed", timing.model or "-", "-"), "", "completeness", "inconclusive", reason)


# Hard failures, at any n, and flags that decide nothing.


def _hard_failures(pair: Pair, rules: Rules) -> Iterator[Verdict]:
    yield from _references(pair)
    if pair.base.is_timed or pair.base.is_counted or not pair.has_same_items:
        return
    yield from _must_pass(pair, rules)
    for metric in pair.shared:
        spec = pair.base.scores[metric].spec
        if spec.kind == "rate" or rules.declared(pair.key.experiment, spec):
            yield from _collapse(pair, metric)
    for metric, outcomes in pair.outcomes.items():
        if outcomes.is_binary and not outcomes.is_identical:
            yield from _flags(pair, metric, outcomes, rules)


def _references(pair: Pair) -> Iterator[Verdict]:
    """Floors and published values as each run judged itself against them."""
    held = {(v.metric, v.reference, v.kind): v.outcome for v in pair.base.verdicts}
    for v in pair.head.verdicts:
        if v.outcome != "fail" or v.kind not in STATED:
            continue
        before = held.get((v.metric, v.reference, v.kind))
        how = {None: "fails, and base was not held to it", "fail": "fails as it did in base"}.get(
            before, f"fails, and was {before} in base"
        )
        outcome: Outcome = "note" if before in (None, "fail") else "fail"
        yield pair.verdict("reference", outcome, f"{how}: {v.reason} ({v.kind}: {v.reference})", v.metric)


def _must_pass(pair: Pair, rules: Rules) -> Iterator[Verdict]:
    for row in rules.must_pass:
        outcomes = pair.outcomes.get(row.metric)
        is_meant = (row.experiment, row.dataset) == (pair.key.experiment, pair.key.dataset)
        if outcomes is None or not is_meant or (row.models and pair.key.model not in row.models):
            continue
        place = {item: k for k, item in enumerate(outcomes.ids)}
        lost = [i for i in row.items if i in place and outcomes.base[place[i]] > 0 >= outcomes.head[place[i]]]
        absent = [i for i in row.items if i not in place]
        n = len(outcomes.ids)
        if lost:
            reason = f"{', '.join(lost)} must pass and does no more ({row.source})"
            yield pair.verdict("must pass", "fail", reason, row.metric, n)
        if absent:
            reason = f"{', '.join(absent)} must pass and was not scored: mend the list of items or the data"
            yield pair.verdict("must pass", "inconclusive", reason, row.metric, n)


def _collapse(pair: Pair, metric: str) -> Iterator[Verdict]:
    before, after = (r.scores[metric] for r in (pair.base, pair.head))
    if before.spec.better == "higher" and before.value > 0 and after.value < before.value / 2:
        how = "fell to zero" if after.value <= 0 else "fell by more than half"
        reason = f"{how}: {before.value:.3g} -> {after.value:.3g} at n={before.n:,}; that fails at any n"
        yield replace(pair.with_flips(pair.verdict("collapse", "fail", reason, metric, before.n)), interval=None)


def _flags(pair: Pair, metric: str, outcomes: PairedOutcomes, rules: Rules) -> Iterator[Verdict]:
    n, gain = len(outcomes.ids), float(outcomes.head.mean() - outcomes.base.mean())
    if gain >= rules.suspicious_gain:
        better = mcnemar(outcomes.head, outcomes.base, outcomes.clusters).p_worse
        reason = (
            f"suspicious gain: rose by {gain:.3g} (p = {better:.2g} at n={n:,}); look for leaked items, changed prompts or other "
            f"weights before you are glad"
        )
        if better <= rules.alpha:
            yield pair.verdict("gain", "note", reason, metric, n)
    test = mcnemar(outcomes.base, outcomes.head, outcomes.clusters)
    flips = test.lost + test.gained
    is_several = min(test.lost, test.gained) >= CHURN_EACH_WAY and flips >= CHURN_SHARE * n
    if is_several and test.p_differs > rules.alpha:
        counts = f"{test.lost:,} lost and {test.gained:,} gained of {n:,} ({flips / n:.1%} of the items)"
        yield pair.verdict("churn", "note", f'churn, not "no change": {counts}, net {gain:+.3g}', metric, n)


# Worse in general? Passing is not corrected for being several (intersection-union test, Berger 1982); failing is (Holm).


@dataclass(frozen=True)
class _Test:
    pair: Pair
    metric: str
    outcomes: PairedOutcomes
    declared: Declared
    upper: float
    p: float
    error: float = 0.0


def _non_inferiority(pairs: Sequence[Pair], rules: Rules) -> Iterator[Verdict]:
    """A verdict on each declared metric on a set large enough, adjusted within one model and experiment."""
    families: dict[tuple[str, str], list[tuple[Pair, str, PairedOutcomes, Declared]]] = defaultdict(list)
    for pair in pairs:
        for metric in pair.shared:
            score = pair.base.scores[metric]
            declared, n = rules.declared(pair.key.experiment, score.spec), score.n
            if declared is None or min(n, pair.head.scores[metric].n) < declared.minimum_n:
                continue
            outcomes = pair.outcomes.get(metric)
            wrong = _why_untestable(pair, metric, outcomes)
            if wrong or outcomes is None:
                yield pair.verdict("in general", "inconclusive", wrong, metric, n)
            else:
                families[pair.key.model, pair.key.experiment].append((pair, metric, outcomes, declared))
    for family in families.values():
        tests = [_Test(*asked, *_tested(asked[2], rules.alpha, len(family))) for asked in family]
        adjusted = holm([test.p for test in tests])
        for test, p in zip(tests, adjusted, strict=True):
            yield test.pair.with_flips(_answer(test, p, rules.alpha))


def _why_untestable(pair: Pair, metric: str, outcomes: PairedOutcomes | None) -> str:
    before, after = pair.base.scores[metric], pair.head.scores[metric]
    if outcomes is None:
        return "no outcomes by item are stored, so nothing can be paired: measure both runs with this version"
    if before.n != after.n or outcomes.missing or outcomes.new:
        return f"not comparable: scored on other items (n {before.n:,} -> {after.n:,}, {len(outcomes.ids):,} in both)"
    return ""


def _tested(outcomes: PairedOutcomes, alpha: float, family: int) -> tuple[float, float, float]:
    """(upper bound of the drop, one-sided p, standard error); a bootstrapped p is the smallest alpha / k that shows a drop."""
    base, head, clusters = outcomes.base, outcomes.head, outcomes.clusters
    if outcomes.is_identical:
        return 0.0, 1.0, 0.0
    if outcomes.is_binary:
        return drop_upper_bound(base, head, alpha, clusters), mcnemar(base, head, clusters).p_worse, 0.0
    upper, p, error = 1.0, 1.0, 0.0
    for k in range(1, family + 1):
        ends = paired_bootstrap(base, head, 1 - 2 * alpha / k, clusters)
        if ends is None:
            break
        if k == 1:
            upper, error = -ends[0], (ends[1] - ends[0]) / (2 * NormalDist().inv_cdf(1 - alpha))
        if -ends[1] <= 0:
            break
        p = alpha / k
    return upper, p, error


def _answer(test: _Test, p: float, alpha: float) -> Verdict:
    outcomes, tolerance, drop = test.outcomes, test.declared.tolerance, test.outcomes.drop
    n, is_significant, level = len(outcomes.ids), p <= alpha, f"{100 * (1 - alpha):g} %"
    if outcomes.is_identical:
        return test.pair.verdict(
            "identical", "pass", f"identical: every outcome is the same at n={n:,}", test.metric, n
        )
    if test.upper <= tolerance + ROUNDING:
        reason = (
            f"a drop beyond {tolerance:g} is excluded (below {max(test.upper, 0.0):.2g} at {level}); {outcomes.flips()}"
        )
        reason += f"; a drop of {drop:.2g} is shown, within the tolerance" if is_significant else ""
        return test.pair.verdict("in general", "pass", reason, test.metric, n)
    if is_significant and drop > tolerance + ROUNDING:
        reason = f"fell by {drop:.3g}, more than the {tolerance:g} allowed (shown, p = {p:.2g}); {outcomes.flips()}"
        return test.pair.verdict("in general", "fail", reason, test.metric, n)
    detectable = _detectable(test, alpha)
    could = "no drop" if detectable is None else f"a drop of {detectable:.2g}"
    change = f"fell by {drop:.3g}" if drop > 0 else f"rose by {-drop:.3g}"
    reason = (
        f"{change}; a drop beyond the {tolerance:g} allowed is neither shown nor excluded (below {test.upper:.2g} at {level}); "
        f"{outcomes.flips()}; this n would fail {could} 9 times in 10"
    )
    return test.pair.verdict("in general", "inconclusive", reason, test.metric, n)


def _detectable(test: _Test, alpha: float) -> float | None:
    """The drop that this set would have failed nine times in ten, flipping as it did; None where there is none."""
    outcomes, tolerance = test.outcomes, test.declared.tolerance
    if not outcomes.is_binary:
        power = NormalDist().inv_cdf(POWER)
        return max(tolerance + power * test.error, (NormalDist().inv_cdf(1 - alpha) + power) * test.error)
    n = len(outcomes.ids)
    anyway = 2 * min(outcomes.lost, outcomes.gained) / n
    if outcomes.clusters is not None:
        n = max(1, round(effective_n(outcomes.head - outcomes.base, outcomes.clusters)))
    return failed_drop(n, anyway, tolerance, alpha)


# Changed on these items? Decided at any n, without inference.


def _same_items(pair: Pair, rules: Rules, tested: set[str], is_answered: bool) -> list[Verdict]:
    """One verdict on the result, and a line for each metric that was not tested."""
    n = pair.base.dataset.n
    if pair.obstacles:
        reason = f"not comparable: {'; '.join(pair.obstacles)}"
        lines = [_value_line(pair, metric, "not comparable") for metric in pair.shared]
        return [pair.verdict("not comparable", "inconclusive", reason, n=n), *lines]
    budget = rules.budget(pair.base.model.precision, pair.head.model.precision)
    state, reason = _agreement(pair, budget, tested)
    rest = [metric for metric in pair.shared if metric not in tested]
    lines = [_value_line(pair, metric, state) for metric in rest]
    if state == "changed":
        too_few = f"n={n:,} is too few items to say whether it is worse in general: compare on a large set, or look at the items"
        why = "" if is_answered else f"; {too_few}" if n else "; it is another model than it was"
        outcome: Outcome = "note" if is_answered else "inconclusive"
        return [pair.verdict("same items", outcome, f"changed on these items: {reason}{why}", n=n), *lines]
    if not rest:
        return lines
    kind: Kind = "identical" if state == "identical" else "same items"
    return [pair.verdict(kind, "pass", f"{state}{':' if state == 'identical' else ''} {reason}", n=n), *lines]


def _agreement(pair: Pair, budget: Budget, tested: set[str]) -> tuple[str, str]:
    """("identical" | "agrees" | "changed", why)."""
    outcomes = {metric: o for metric, o in pair.outcomes.items() if metric not in tested}
    matrices = [(before, pair.head.matrices.get(name)) for name, before in pair.base.matrices.items()]
    moves = [
        float(np.max(np.abs(after.values - before.values))) / _gain(before)
        for before, after in matrices
        if after is not None and _gain(before) and before.values.size and after.values.shape == before.values.shape
    ]
    widest = max(moves, default=0.0)
    words = {m: w for m, o in outcomes.items() if (w := _moved_outcomes(pair, m, o, budget))}
    changed = [w for m, w in words.items() if outcomes[m].is_binary]
    if widest > budget.cosine:
        changed.append(f"cosines moved by up to {widest:.2g} (budget {budget.cosine:g})")
    else:  # without stored cosines that moved, what would merely follow from them counts
        changed += [*(w for m, w in words.items() if not outcomes[m].is_binary), *_moved_values(pair, budget)]
    if changed:
        return "changed", "; ".join(changed)
    values = all(pair.base.scores[m].value == pair.head.scores[m].value for m in pair.shared)
    if values and all(o.is_identical for o in outcomes.values()):
        return "identical", "every outcome is the same"
    flips = sum(o.lost + o.gained for o in outcomes.values() if o.is_binary)
    seen = [f"cosines moved by up to {widest:.2g}"] if pair.base.matrices else []
    seen += [f"{flips} flip(s), of near ties or a share within the budget"] if flips else []
    return "agrees", f"within the budget of {budget.precision}" + (f": {', '.join(seen)}" if seen else "")


def _gain(matrix: Matrix) -> float:
    """How much the numbers of a matrix may move when a cosine moves by 1; 0 where they are no cosines (counts)."""
    return {"cosine": 1.0, "probability": matrix.scale * SOFTMAX_GAIN, "count": 0.0}[matrix.kind]


def _moved_outcomes(pair: Pair, metric: str, outcomes: PairedOutcomes, budget: Budget) -> str:
    """What moved beyond the budget; ranks and counts (beyond 1) may move by one, or by 1 %. A flip of a near tie is none."""
    step = outcomes.head - outcomes.base
    is_large = bool(np.abs([outcomes.base, outcomes.head]).max(initial=0) > 1)
    gains = [_gain(m) for m in pair.base.matrices.values() if m.kind == pair.base.scores[metric].spec.kind]
    cosine = budget.cosine * max([1.0, *gains])
    allowed = np.maximum(1.0, 0.01 * np.abs(outcomes.base)) if is_large else cosine
    moved = np.abs(step) > allowed
    if outcomes.is_binary:
        moved &= ~_near_ties(pair, metric, outcomes, 2 * budget.cosine)
    if moved.sum() <= budget.flips * len(step):
        return ""
    if not outcomes.is_binary:
        k = int(np.argmax(np.abs(step)))
        return f"{metric} moved for {moved.sum()} of {len(step)} items, most {outcomes.ids[k]} ({step[k]:+.2g})"
    named = []
    for word, sign in (("lost", -1), ("gained", 1)):
        ids = [outcomes.ids[k] for k in np.flatnonzero(moved & (np.sign(step) == sign))]
        named.append(f"{len(ids)} {word}" + (f" ({_listed(ids)})" if ids else ""))
    return f"{metric}: {', '.join(named)}"


def _near_ties(pair: Pair, metric: str, outcomes: PairedOutcomes, width: float) -> Bools:
    """Which items won or lost by less than rounding can move, of a square matrix of own pairs."""
    margins = [_margins(result, metric, outcomes.ids) for result in (pair.base, pair.head)]
    if any(m is None for m in margins) or not any(m.is_matching for m in pair.base.matrices.values()):
        return np.zeros(len(outcomes.ids), dtype=bool)
    before, after = (np.abs(m) <= width for m in margins if m is not None)
    return np.asarray(before & after)


def _moved_values(pair: Pair, budget: Budget) -> Iterator[str]:
    """Metrics without outcomes of their own: a model card's counts, the smallest margin."""
    for metric in pair.shared:
        before, after = pair.base.scores[metric], pair.head.scores[metric]
        if metric in pair.outcomes:
            continue
        if before.n != after.n:
            yield f"{metric} has n {before.n:,} -> {after.n:,}"
        is_small = max(abs(before.value), abs(after.value)) <= 1
        if abs(after.value - before.value) > (budget.cosine if is_small else 0.0):
            yield f"{metric} {before.value:,.12g} -> {after.value:,.12g}"


def _value_line(pair: Pair, metric: str, state: str) -> Verdict:
    """Its reason is "same" where this metric did not move, else what is said of the whole result."""
    before, after, outcomes = pair.base.scores[metric], pair.head.scores[metric], pair.outcomes.get(metric)
    is_same = before.value == after.value and (outcomes is None or outcomes.is_identical) and not pair.obstacles
    return pair.with_flips(pair.verdict("shown", "note", "same" if is_same else state, metric, before.n))


# Speed and memory between two processes of one machine.


def _speed(pair: Pair, base: Run, head: Run, rules: Rules) -> Iterator[Verdict]:
    machines = base.environment.get("machine", {}), head.environment.get("machine", {})
    machine, settings = _differing(machines, MACHINE), _differing(machines, SETTINGS)
    machine += [] if all(machines) else ["the machine is not recorded"]
    devices = [r.model.device for r in (pair.base, pair.head)]
    machine += [f"device {' -> '.join(devices)}"] if len({d.split(":")[0] for d in devices}) > 1 else []
    for obstacle in pair.obstacles:
        (settings if obstacle.split(" ")[0] in SETTING_KEYS else machine).append(obstacle)
    if machine or settings:
        reason = f"speed is not comparable: {'; '.join(machine + settings)}"
        reason += "; measure both on one machine, or judge the rest alone with --only" if machine else ""
        yield pair.verdict("not comparable", "inconclusive" if machine else "note", reason)
        return
    for metric in pair.shared:
        yield _speed_metric(pair, metric, rules)


def _speed_metric(pair: Pair, metric: str, rules: Rules) -> Verdict:
    base, after = pair.base.scores[metric], pair.head.scores[metric].value
    rule = rules.speed_rule(base.spec)
    if rule is None:
        return pair.verdict("shown", "note", "shown, not judged: its repeats are not known", metric)
    if base.value <= 0:
        return pair.verdict("speed", "inconclusive", f"base is {base.value:g}: measure it again", metric)
    worse = (base.value - after if base.spec.better == "higher" else after - base.value) / base.value
    spread = base.spread or 0.0
    allowed = max(rule.allowed, min(spread, rule.widest))
    why = f"{rule.allowed:.0%} between processes"
    why = f"{allowed:.0%}: base's own repeats spread by {spread:.0%}" if allowed > rule.allowed else why
    change = f"worse by {worse:.1%}" if worse > 0 else f"better by {-worse:.1%}" if worse < 0 else "the same"
    if worse > allowed:
        return pair.verdict("speed", "fail", f"{change}, beyond the allowed {why}", metric)
    noise = "; it may be noise: `clipbench ab` settles it" if worse > rule.allowed else ""
    return pair.verdict("speed", "pass", f"{change}, within the allowed {why}{noise}", metric)


# What a reader wants beside the verdict: the items that changed, and what else differs.


def _item_changes(pair: Pair, rules: Rules) -> Iterator[ItemChange]:
    """The worst losses, then the best gains, up to five each, of scores (margins and cosines are none)."""
    for metric, outcomes in pair.outcomes.items():
        declared = rules.declared(pair.key.experiment, pair.base.scores[metric].spec)
        if outcomes.is_identical or not (outcomes.is_binary or declared):
            continue
        margins = [m for r in (pair.base, pair.head) if (m := _margins(r, metric, outcomes.ids)) is not None]
        step = outcomes.head - outcomes.base
        same_ids = [o.head - o.base for o in pair.outcomes.values() if o.ids == outcomes.ids]
        weight = np.sum(same_ids, axis=0) if len(margins) < 2 else margins[1] - margins[0]
        for word, sign in (("lost", -1), ("gained", 1)):
            moved = np.flatnonzero(np.sign(step) == sign)
            for k in moved[np.argsort(-sign * weight[moved], kind="stable")][:LISTED]:
                scores = float(outcomes.base[k]), float(outcomes.head[k])
                change = ItemChange(pair.key, metric, outcomes.ids[k], word, *scores)  # type: ignore[arg-type]  # two words
                if len(margins) == 2:
                    first, second = (round(float(m[k]), 5) for m in margins)
                    tops = [_top(r, metric, outcomes.ids[k]) for r in (pair.base, pair.head)]
                    change = replace(
                        change, margin_before=first, margin_after=second, top_before=tops[0], top_after=tops[1]
                    )
                yield change


def _answers(result: Result, metric: str) -> Answers | None:
    return result.answers.get(result.scores[metric].spec.answers)


def _margins(result: Result, metric: str, ids: tuple[str, ...]) -> Float64s | None:
    """(n,) margins of these items; None where nothing says what they were taken for."""
    answers = _answers(result, metric)
    if answers is None or not set(ids) <= set(answers.ids):
        return None
    if answers.ids == ids:
        return answers.margins.astype(np.float64)
    place = {item: k for k, item in enumerate(answers.ids)}
    return np.asarray(answers.margins[[place[item] for item in ids]], dtype=np.float64)


def _top(result: Result, metric: str, item: str) -> tuple[tuple[str, float], ...]:
    answers = _answers(result, metric)
    if answers is None:
        return ()
    row = answers.ids.index(item)
    pairs = zip(answers.top[row].tolist(), answers.scores[row].tolist(), strict=True)
    return tuple((answers.candidates[k], round(score, 4)) for k, score in pairs)


def _differences(base: Run, head: Run, pairs: Sequence[Pair]) -> tuple[Difference, ...]:
    """Weights (also where they are the same), identity, protocol, software and machine."""
    found: dict[Difference, None] = {}
    for pair in pairs:
        found |= dict.fromkeys(_model_differences(pair.base.model, pair.head.model))
    for pair in pairs:
        sides = [(r.protocol.entries(), _how_it_went(r)) for r in (pair.base, pair.head)]
        for (before, after), aside in zip(zip(*sides, strict=True), ("", " (hinders no comparison)"), strict=True):
            for key in sorted(k for k in {*before, *after} if before.get(k) != after.get(k)):
                values = short(before.get(key)), short(after.get(key))
                further = " (differs further on)" if values[0] == values[1] else ""
                what = f"{key} of {pair.key.experiment}{aside}"
                found[Difference(what, values[0], values[1] + further)] = None
    for part in ("software", "machine"):
        tables = base.environment.get(part, {}), head.environment.get(part, {})
        for name in sorted({*tables[0], *tables[1]}):
            first, second = (str(table.get(name, "absent")) or "none" for table in tables)
            if first != second:
                found[Difference(name, first, second)] = None
    return tuple(found)


def _how_it_went(result: Result) -> Mapping[str, Any]:
    provenance = result.provenance
    return {"optimizations": list(provenance.optimizations), "exclusions": dict(provenance.exclusions)}


def _model_differences(base: ModelIdentity, head: ModelIdentity) -> Iterator[Difference]:
    if base.weights_sha256 and head.weights_sha256:
        yield Difference(f"weights of {base.name}", base.weights_sha256[:12], head.weights_sha256[:12])
    for name in ("pretrained", "activation", "precision", "device", "preprocessing"):
        before, after = getattr(base, name) or "none", getattr(head, name) or "none"
        if before != after:
            yield Difference(f"{name} of {base.name}", before, after)


# Matching, and small words.


def _align(base: Outcomes | None, head: Outcomes | None) -> PairedOutcomes | None:
    if base is None or head is None:
        return None
    place, there = {item: k for k, item in enumerate(head.ids)}, set(base.ids)
    kept = [k for k, item in enumerate(base.ids) if item in place]
    names = tuple(base.ids[k] for k in kept)
    before = np.asarray(base.values, dtype=np.float64)[kept]
    after = np.asarray(head.values, dtype=np.float64)[[place[item] for item in names]]
    clusters = None if base.clusters is None else tuple(base.clusters[k] for k in kept)
    missing = tuple(item for item in base.ids if item not in place)
    return PairedOutcomes(names, before, after, clusters, missing, tuple(item for item in place if item not in there))


def _by_key(run: Run, which: str) -> dict[Key, Result]:
    found: dict[Key, Result] = {}
    for result in run.results:
        if result.key in found:
            raise UsageError(f"{which} holds two results of {result.key}; compare runs with one result each")
        found[result.key] = result
    return found


def _only(run: Run, only: Sequence[str]) -> Run:
    results = tuple(r for r in run.results if r.experiment in only)
    return replace(run, results=results, skipped=tuple(s for s in run.skipped if s.key.experiment in only))


def _is_about(skip: Skip, key: Key) -> bool:
    """A skip without a data set is about all that the experiment has."""
    return skip.key[:2] == key[:2] and skip.key.dataset in ("", key.dataset)


def _differing(tables: tuple[Mapping[str, Any], Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    values = ((key, *(table.get(key, "unknown") for table in tables)) for key in keys)
    return [f"{key} {before or 'none'} -> {after or 'none'}" for key, before, after in values if before != after]


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(ids[:LISTED]) + (", ..." if len(ids) > LISTED else "")
