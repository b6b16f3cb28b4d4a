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

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from clipbench.errors import UsageError, closest
from clipbench.judge.references import is_unconfirmed
from clipbench.judge.reindex import Reindex
from clipbench.judge.rules import Budget, Declared, Rules
from clipbench.judge.trace import TRACED, TraceFinding, compare_traces, model_of
from clipbench.result import Items, ModelIdentity, Result, Run, Skip, VerdictWord
from clipbench.run_file import Timing
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
)

Bools = npt.NDArray[np.bool_]
Key = tuple[str, str, str]

SPEED: Final = "speed"
UNSCORED = ("model_card", SPEED)
HOW_IT_WENT = ("shortcuts", "execution", "other_activation", "notes")
"""Protocol keys that say how it went, not what was asked: a difference is reported and hinders no comparison."""

LISTED, TOP = 5, 5
CHURN_EACH_WAY, CHURN_SHARE = 5, 0.01
ROUNDING = 1e-9
MEAN_TOLERANCE = 1e-6
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
    "coverage",
    "not comparable",
    "gain",
    "churn",
    "new",
    "shown",
    "index",
]
Word = Literal["pass", "fail", "inconclusive", "note"]

SEVERITY: Final[Mapping[Word, int]] = {"fail": 0, "inconclusive": 1, "note": 2, "pass": 3}
EXIT_CODES: Final[Mapping[VerdictWord, int]] = {"pass": 0, "fail": 1, "inconclusive": 3}


@dataclass(frozen=True)
class Finding:
    """One statement. `base` and `head` are the metric's values, `lost` and `gained` count items; None where there are none.

    `interval`: the two-sided 95 % interval of head minus base, from the outcomes paired by item.
    """

    kind: Kind
    verdict: Word
    experiment: str
    model: str
    dataset: str
    reason: str
    metric: str = ""
    base: float | None = None
    head: float | None = None
    n: int = 0
    lost: int | None = None
    gained: int | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class ItemChange:
    """One item whose outcome changed. `top_before` and `top_after` are its five best candidates with their cosines.

    Margins are the item's own cosine minus the best wrong one in the metric's direction. Margins and tops are empty where
    no matrix is stored.
    """

    experiment: str
    model: str
    dataset: str
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
    """Everything `compare` has to say, the most severe findings first; `index` answers `--index`, where that was asked.

    `stages` says of each model which stage of the probe moved: it explains the verdict and has no part in it.
    """

    findings: tuple[Finding, ...]
    items: tuple[ItemChange, ...] = ()
    differences: tuple[Difference, ...] = ()
    alpha: float = 0.05
    index: tuple[Reindex, ...] = ()
    stages: tuple[TraceFinding, ...] = ()

    @property
    def verdict(self) -> VerdictWord:
        """fail if any finding fails, else inconclusive if any is, or if nothing was judged at all; else pass."""
        words = {f.verdict for f in self.findings}
        if "fail" in words:
            return "fail"
        return "pass" if "pass" in words and "inconclusive" not in words else "inconclusive"

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 undecided."""
        return EXIT_CODES[self.verdict]

    def count(self, word: Word) -> int:
        """Return how many findings have this verdict."""
        return sum(f.verdict == word for f in self.findings)

    def of(self, word: Word) -> list[Finding]:
        """Return the findings with this verdict."""
        return [f for f in self.findings if f.verdict == word]


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings, failures first, then what is undecided, notes and passes; otherwise in their order."""
    return tuple(sorted(findings, key=lambda f: SEVERITY[f.verdict]))


@dataclass(frozen=True)
class PairedOutcomes:
    """One metric's outcomes on the items that both runs scored, (n,) float64, in base's order.

    `clusters` names the image of each text where the ids say so. `missing` and `new`: ids of base or head alone.
    """

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

    @cached_property
    def shared(self) -> list[str]:
        """The metrics that both have."""
        return [metric for metric in self.base.metrics if metric in self.head.metrics]

    @cached_property
    def outcomes(self) -> Mapping[str, PairedOutcomes]:
        found = {metric: _align(self.base.items, self.head.items, metric) for metric in self.shared}
        return {metric: outcomes for metric, outcomes in found.items() if outcomes is not None}

    @cached_property
    def obstacles(self) -> tuple[str, ...]:
        """What makes the two not comparable, in words; empty when they are."""
        base, head = self.base, self.head
        found = []
        if base.dataset.fingerprint != head.dataset.fingerprint:
            prints = (d.fingerprint[:12] or "none" for d in (base.dataset, head.dataset))
            found.append(f"other items (fingerprint {' -> '.join(prints)})")
        if base.dataset.n != head.dataset.n:
            found.append(f"n {base.dataset.n:,} -> {head.dataset.n:,}")
        asked = sorted({*base.protocol, *head.protocol} - set(HOW_IT_WENT))
        values = ((key, base.protocol.get(key), head.protocol.get(key)) for key in asked)
        found += [f"{key} {_short(before)} -> {_short(after)}" for key, before, after in values if before != after]
        for which, result in (("base", base), ("head", head)):
            if is_unconfirmed(result):
                found.append(
                    f"{which}'s rows came from a cache and its model was not run; measure it again without --cache"
                )
        return tuple(found)

    @property
    def has_same_items(self) -> bool:
        """Items can be followed even where a prompt or resize differs."""
        versions = {r.protocol.get("metric_version") for r in (self.base, self.head)}
        same = self.base.dataset == self.head.dataset and len(versions) == 1
        return same and not any(o.missing or o.new for o in self.outcomes.values())

    def finding(self, kind: Kind, verdict: Word, reason: str, metric: str = "", n: int = 0) -> Finding:
        base = self.base
        before, after = (r.metrics[metric].value if metric in r.metrics else None for r in (base, self.head))
        return Finding(kind, verdict, *key_of(base), reason, metric, before, after, n)

    def with_flips(self, finding: Finding) -> Finding:
        outcomes = self.outcomes.get(finding.metric)
        if outcomes is None:
            return finding
        return replace(finding, lost=outcomes.lost, gained=outcomes.gained, interval=outcomes.interval)


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
    before, after = _by_key(base, "base"), _by_key(head, "head")
    pairs = [Pair(result, after[key]) for key, result in before.items() if key in after]
    findings = list(_vanished_results(before, after, head))
    for pair in pairs:
        findings += _vanished_parts(pair, base, head, rules)
    findings += [
        _about(after[key], "new", "note", "new in head: nothing in base to compare it with")
        for key in after
        if key not in before
    ]
    if head_timings is not None and (not only or SPEED in only):
        findings += _vanished_tests(head, base_timings, head_timings)
    for pair in pairs:
        findings += _contradictions(pair)
        findings += _hard_failures(pair, rules)
        if pair.base.experiment == SPEED:
            findings += _speed(pair, base, head, rules, base_timings)
    answers = list(_non_inferiority([p for p in pairs if p.base.experiment != SPEED and not p.obstacles], rules))
    findings += answers
    judged = {f.model for f in answers if f.kind in ("in general", "identical")}
    for pair in pairs:
        if pair.base.experiment != SPEED:
            tested = {f.metric for f in answers if _key(f) == key_of(pair.base)}
            findings += _same_items(pair, rules, tested, pair.base.model.name in judged)
    changes = [change for pair in pairs for change in _item_changes(pair, rules)]
    stages = tuple(compare_traces(base.probes, head.probes, rules))
    return Comparison(
        by_severity(findings), tuple(changes), _differences(base, head, pairs), rules.alpha, stages=stages
    )


def key_of(result: Result) -> Key:
    """Return (experiment, model name, data set name)."""
    return result.experiment, result.model.name, result.dataset.name


# Completeness: what the base had and the head has not.


def _vanished_results(before: Mapping[Key, Result], after: Mapping[Key, Result], head: Run) -> Iterator[Finding]:
    for key, result in before.items():
        if key in after:
            continue
        skipped = [s.reason for s in head.skipped if _is_about(s, result)]
        elsewhere = [name for experiment, model, name in after.keys() - before.keys() if (experiment, model) == key[:2]]
        reason = "vanished: base has it, head has not"
        if skipped:
            reason = f"skipped in head: {skipped[0]}"
        elif elsewhere:
            reason = f"vanished: head measured it on {elsewhere[0]}, base on {result.dataset.name}"
        yield _about(result, "coverage", "inconclusive", reason)


def _vanished_parts(pair: Pair, base: Run, head: Run, rules: Rules) -> Iterator[Finding]:
    """Skips, probe, metrics, outcomes and items that one of two results lacks."""
    model = pair.base.model.name
    reasons = [s.reason for s in head.skipped if _is_about(s, pair.head)]
    if reasons and not any(_is_about(s, pair.base) for s in base.skipped):
        yield pair.finding("coverage", "inconclusive", f"skipped in part in head: {'; '.join(reasons)}")
    probed = [{model_of(probe) for probe in run.probes} for run in (base, head)]
    if pair.base.experiment == TRACED and model in probed[0] - probed[1]:
        yield pair.finding("coverage", "inconclusive", "the probe vanished: base has it, head has not")
    for metric in pair.base.metrics:
        if metric not in pair.head.metrics:
            is_shown_only = pair.base.experiment == SPEED and rules.speed_rule(metric) is None
            word: Word = "note" if is_shown_only else "inconclusive"
            yield pair.finding("coverage", word, "vanished: base has it, head has not", metric)
        elif metric in pair.base.items.outcomes.keys() - pair.head.items.outcomes.keys():
            reason = "its outcomes by item vanished: base has them, head has the value alone"
            yield pair.finding("coverage", "inconclusive", reason, metric)
    if new := [metric for metric in pair.head.metrics if metric not in pair.base.metrics]:
        yield pair.finding("new", "note", f"new in head: {', '.join(new)}")
    parts: tuple[tuple[Kind, Word, str], ...] = (("coverage", "inconclusive", "vanished"), ("new", "note", "new"))
    for kind, verdict, how in parts:
        lists = dict.fromkeys(o.missing if kind == "coverage" else o.new for o in pair.outcomes.values())
        for ids in filter(None, lists):
            yield pair.finding(kind, verdict, f"{len(ids):,} item(s) {how} in head: {_listed(ids)}")


def _vanished_tests(head: Run, before: Sequence[Timing], after: Sequence[Timing]) -> Iterator[Finding]:
    """A test is known by its name, not its path: where pytest was started from says nothing about what ran."""
    ran = {timing.test for timing in after}
    measured = {(r.model.name, metric) for r in head.results for metric in r.metrics}
    for timing in before:
        metric = timing.test.split("[")[0].removeprefix("test_")
        if timing.test not in ran and (timing.model, metric) not in measured:
            reason = f"the test {timing.test} was timed in base and did not run in head"
            yield Finding("coverage", "inconclusive", SPEED, timing.model or "-", "-", reason, metric)


def _contradictions(pair: Pair) -> Iterator[Finding]:
    for which, result in (("base", pair.base), ("head", pair.head)):
        for metric in (m for m in result.metrics if m in pair.base.metrics):
            if reason := _contradiction(which, result, metric):
                yield pair.finding("coverage", "inconclusive", reason, metric)


def _contradiction(which: str, result: Result, metric: str) -> str:
    """A metric's value is the mean of its outcomes; where it is not, the file was changed."""
    outcomes, value, n = result.items.outcomes.get(metric, ()), result.metrics[metric].value, result.metrics[metric].n
    if not len(outcomes):
        return ""
    if abs(float(np.mean(outcomes)) - value) > MEAN_TOLERANCE * max(1.0, abs(value)):
        return f"{which}'s outcomes do not average to its value {value:.6g}: the file was changed, measure it again"
    if len(outcomes) != n:
        return f"{which} stores {len(outcomes):,} outcomes of n={n:,}: the file was changed, measure it again"
    return ""


# Hard failures, at any n, and flags that decide nothing.


def _hard_failures(pair: Pair, rules: Rules) -> Iterator[Finding]:
    yield from _references(pair)
    if pair.base.experiment in UNSCORED or not pair.has_same_items:
        return
    yield from _must_pass(pair, rules)
    for metric in pair.shared:
        stored = pair.base.items.outcomes.get(metric, ())
        is_rate = len(stored) > 0 and all(outcome in (0, 1) for outcome in stored)
        if is_rate or rules.declared(pair.base.experiment, metric):
            yield from _collapse(pair, metric)
    for metric, outcomes in pair.outcomes.items():
        if outcomes.is_binary and not outcomes.is_identical:
            yield from _flags(pair, metric, outcomes, rules)


def _references(pair: Pair) -> Iterator[Finding]:
    """Floors and published values as each run judged itself against them."""
    held = {(v.metric, v.reference, v.kind): v.verdict for v in pair.base.verdicts}
    for v in pair.head.verdicts:
        if v.verdict != "fail" or v.kind not in ("floor", "published"):
            continue
        before = held.get((v.metric, v.reference, v.kind))
        how = {None: "fails, and base was not held to it", "fail": "fails as it did in base"}.get(
            before, f"fails, and was {before} in base"
        )
        word: Word = "note" if before in (None, "fail") else "fail"
        yield pair.finding("reference", word, f"{how}: {v.reason} ({v.kind}: {v.reference})", v.metric)


def _must_pass(pair: Pair, rules: Rules) -> Iterator[Finding]:
    for row in rules.must_pass:
        outcomes = pair.outcomes.get(row.metric)
        is_meant = (row.experiment, row.dataset) == (pair.base.experiment, pair.base.dataset.name)
        if outcomes is None or not is_meant or (row.models and pair.base.model.name not in row.models):
            continue
        place = {item: k for k, item in enumerate(outcomes.ids)}
        lost = [i for i in row.items if i in place and outcomes.base[place[i]] > 0 >= outcomes.head[place[i]]]
        absent = [i for i in row.items if i not in place]
        n = len(outcomes.ids)
        if lost:
            reason = f"{', '.join(lost)} must pass and does no more ({row.source})"
            yield pair.finding("must pass", "fail", reason, row.metric, n)
        if absent:
            reason = f"{', '.join(absent)} must pass and was not scored: mend the list of items or the data"
            yield pair.finding("must pass", "inconclusive", reason, row.metric, n)


def _collapse(pair: Pair, metric: str) -> Iterator[Finding]:
    """By the outcomes and by the value itself, whichever fell: they can only differ in a file that was changed."""
    outcomes, n = pair.outcomes.get(metric), pair.base.metrics[metric].n
    seen = [(pair.base.metrics[metric].value, pair.head.metrics[metric].value)]
    if outcomes is not None and len(outcomes.ids):
        seen.insert(0, (float(outcomes.base.mean()), float(outcomes.head.mean())))
    fell = next(((before, after) for before, after in seen if before > 0 and after < before / 2), None)
    if fell is not None:
        how = "fell to zero" if fell[1] <= 0 else "fell by more than half"
        reason = f"{how}: {fell[0]:.3g} -> {fell[1]:.3g} at n={n:,}; that fails at any n"
        finding = pair.finding("collapse", "fail", reason, metric, n)
        yield replace(finding, lost=outcomes.lost, gained=outcomes.gained) if outcomes is not None else finding


def _flags(pair: Pair, metric: str, outcomes: PairedOutcomes, rules: Rules) -> Iterator[Finding]:
    n, gain = len(outcomes.ids), float(outcomes.head.mean() - outcomes.base.mean())
    better = mcnemar(outcomes.head, outcomes.base, outcomes.clusters).p_worse
    if gain >= rules.suspicious_gain and better <= rules.alpha:
        reason = (
            f"suspicious gain: rose by {gain:.3g} (p = {better:.2g} at n={n:,}); look for leaked items, changed prompts or other "
            f"weights before you are glad"
        )
        yield pair.finding("gain", "note", reason, metric, n)
    test = mcnemar(outcomes.base, outcomes.head, outcomes.clusters)
    flips = test.lost + test.gained
    is_several = min(test.lost, test.gained) >= CHURN_EACH_WAY and flips >= CHURN_SHARE * n
    if is_several and test.p_differs > rules.alpha:
        counts = f"{test.lost:,} lost and {test.gained:,} gained of {n:,} ({flips / n:.1%} of the items)"
        yield pair.finding("churn", "note", f'churn, not "no change": {counts}, net {gain:+.3g}', metric, n)


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


def _non_inferiority(pairs: Sequence[Pair], rules: Rules) -> Iterator[Finding]:
    """A finding for each declared metric on a set large enough, adjusted within one model and experiment."""
    families: dict[tuple[str, str], list[tuple[Pair, str, PairedOutcomes, Declared]]] = defaultdict(list)
    for pair in pairs:
        for metric in pair.shared:
            declared, n = rules.declared(pair.base.experiment, metric), pair.base.metrics[metric].n
            if declared is None or min(n, pair.head.metrics[metric].n) < declared.minimum_n:
                continue
            outcomes = pair.outcomes.get(metric)
            wrong = _why_untestable(pair, metric, outcomes)
            if wrong or outcomes is None:
                yield pair.finding("in general", "inconclusive", wrong, metric, n)
            else:
                families[pair.base.model.name, pair.base.experiment].append((pair, metric, outcomes, declared))
    for family in families.values():
        tests = [_Test(*asked, *_tested(asked[2], rules.alpha, len(family))) for asked in family]
        adjusted = holm({str(k): test.p for k, test in enumerate(tests)})
        for k, test in enumerate(tests):
            yield test.pair.with_flips(_answer(test, adjusted[str(k)], rules.alpha))


def _why_untestable(pair: Pair, metric: str, outcomes: PairedOutcomes | None) -> str:
    before, after = pair.base.metrics[metric], pair.head.metrics[metric]
    if outcomes is None:
        return "no outcomes by item are stored, so nothing can be paired: measure both runs with this version"
    if before.n != after.n or outcomes.missing or outcomes.new:
        return f"not comparable: scored on other items (n {before.n:,} -> {after.n:,}, {len(outcomes.ids):,} in both)"
    return _contradiction("base", pair.base, metric) or _contradiction("head", pair.head, metric)


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


def _answer(test: _Test, p: float, alpha: float) -> Finding:
    outcomes, tolerance, drop = test.outcomes, test.declared.tolerance, test.outcomes.drop
    n, is_significant, level = len(outcomes.ids), p <= alpha, f"{100 * (1 - alpha):g} %"
    if outcomes.is_identical:
        return test.pair.finding(
            "identical", "pass", f"identical: every outcome is the same at n={n:,}", test.metric, n
        )
    if test.upper <= tolerance + ROUNDING:
        reason = (
            f"a drop beyond {tolerance:g} is excluded (below {max(test.upper, 0.0):.2g} at {level}); {outcomes.flips()}"
        )
        reason += f"; a drop of {drop:.2g} is shown, within the tolerance" if is_significant else ""
        return test.pair.finding("in general", "pass", reason, test.metric, n)
    if is_significant and drop > tolerance + ROUNDING:
        reason = f"fell by {drop:.3g}, more than the {tolerance:g} allowed (shown, p = {p:.2g}); {outcomes.flips()}"
        return test.pair.finding("in general", "fail", reason, test.metric, n)
    detectable = _detectable(test, alpha)
    could = "no drop" if detectable is None else f"a drop of {detectable:.2g}"
    change = f"fell by {drop:.3g}" if drop > 0 else f"rose by {-drop:.3g}"
    reason = (
        f"{change}; a drop beyond the {tolerance:g} allowed is neither shown nor excluded (below {test.upper:.2g} at {level}); "
        f"{outcomes.flips()}; this n would fail {could} 9 times in 10"
    )
    return test.pair.finding("in general", "inconclusive", reason, test.metric, n)


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


def _same_items(pair: Pair, rules: Rules, tested: set[str], is_answered: bool) -> list[Finding]:
    """One finding on the result, and a line for each metric that was not tested."""
    n = pair.base.dataset.n
    if pair.obstacles:
        reason = f"not comparable: {'; '.join(pair.obstacles)}"
        lines = [_value_line(pair, metric, "not comparable") for metric in pair.shared]
        return [pair.finding("not comparable", "inconclusive", reason, n=n), *lines]
    budget = rules.budget(pair.base.model.precision, pair.head.model.precision)
    state, reason = _agreement(pair, budget, tested)
    rest = [metric for metric in pair.shared if metric not in tested]
    lines = [_value_line(pair, metric, state) for metric in rest]
    if state == "changed":
        too_few = f"n={n:,} is too few items to say whether it is worse in general: compare on a large set, or look at the items"
        why = "" if is_answered else f"; {too_few}" if n else "; it is another model than it was"
        word: Word = "note" if is_answered else "inconclusive"
        return [pair.finding("same items", word, f"changed on these items: {reason}{why}", n=n), *lines]
    if not rest:
        return lines
    kind: Kind = "identical" if state == "identical" else "same items"
    return [pair.finding(kind, "pass", f"{state}{':' if state == 'identical' else ''} {reason}", n=n), *lines]


def _agreement(pair: Pair, budget: Budget, tested: set[str]) -> tuple[str, str]:
    """("identical" | "agrees" | "changed", why)."""
    outcomes = {metric: o for metric, o in pair.outcomes.items() if metric not in tested}
    scales = {name: _scale(pair, name) for name in (*pair.base.arrays, *outcomes)}
    moves = [
        float(np.max(np.abs(pair.head.arrays[name] - before))) / scales[name]
        for name, before in pair.base.arrays.items()
        if scales[name] and before.size and pair.head.arrays.get(name, np.empty(0)).shape == before.shape
    ]
    widest = max(moves, default=0.0)
    words = {m: w for m, o in outcomes.items() if (w := _moved_outcomes(pair, m, o, budget, max(1.0, scales[m])))}
    changed = [w for m, w in words.items() if outcomes[m].is_binary]
    if widest > budget.cosine:
        changed.append(f"cosines moved by up to {widest:.2g} (budget {budget.cosine:g})")
    else:  # without stored cosines that moved, what would merely follow from them counts
        changed += [*(w for m, w in words.items() if not outcomes[m].is_binary), *_moved_values(pair, budget)]
    if changed:
        return "changed", "; ".join(changed)
    values = all(pair.base.metrics[m].value == pair.head.metrics[m].value for m in pair.shared)
    if values and all(o.is_identical for o in outcomes.values()):
        return "identical", "every outcome is the same"
    flips = sum(o.lost + o.gained for o in outcomes.values() if o.is_binary)
    seen = [f"cosines moved by up to {widest:.2g}"] if pair.base.arrays else []
    seen += [f"{flips} flip(s), of near ties or a share within the budget"] if flips else []
    return "agrees", f"within the budget of {budget.precision}" + (f": {', '.join(seen)}" if seen else "")


def _scale(pair: Pair, name: str) -> float:
    """What a move of 1 in a cosine makes of this array or outcome; 0 for arrays that hold no cosines (counts)."""
    if "probabilit" in name:
        return float(pair.base.protocol.get("logit_scale", 1.0)) * SOFTMAX_GAIN
    return 1.0 if name.startswith("similarity") else 0.0


def _moved_outcomes(pair: Pair, metric: str, outcomes: PairedOutcomes, budget: Budget, scale: float) -> str:
    """What moved beyond the budget; ranks and counts (beyond 1) may move by one, or by 1 %. A flip of a near tie is none."""
    step = outcomes.head - outcomes.base
    is_large = bool(np.abs([outcomes.base, outcomes.head]).max(initial=0) > 1)
    allowed = np.maximum(1.0, 0.01 * np.abs(outcomes.base)) if is_large else budget.cosine * scale
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
    tables = [_oriented(result, metric, outcomes.ids) for result in (pair.base, pair.head)]
    if any(table is None for table in tables):
        return np.zeros(len(outcomes.ids), dtype=bool)
    before, after = (np.abs(_margins(table)) <= width for table in tables if table is not None)
    return np.asarray(before & after)


def _moved_values(pair: Pair, budget: Budget) -> Iterator[str]:
    """Metrics without outcomes of their own: a model card's counts, the smallest margin."""
    for metric in pair.shared:
        before, after = pair.base.metrics[metric], pair.head.metrics[metric]
        if metric in pair.outcomes:
            continue
        if before.n != after.n:
            yield f"{metric} has n {before.n:,} -> {after.n:,}"
        is_small = max(abs(before.value), abs(after.value)) <= 1
        if abs(after.value - before.value) > (budget.cosine if is_small else 0.0):
            yield f"{metric} {before.value:,.12g} -> {after.value:,.12g}"


def _value_line(pair: Pair, metric: str, state: str) -> Finding:
    """Its reason is "same" where this metric did not move, else what is said of the whole result."""
    before, after, outcomes = pair.base.metrics[metric], pair.head.metrics[metric], pair.outcomes.get(metric)
    is_same = before.value == after.value and (outcomes is None or outcomes.is_identical) and not pair.obstacles
    return pair.with_flips(pair.finding("shown", "note", "same" if is_same else state, metric, before.n))


# Speed and memory between two processes of one machine.


def _speed(pair: Pair, base: Run, head: Run, rules: Rules, timings: Sequence[Timing]) -> Iterator[Finding]:
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
        yield pair.finding("not comparable", "inconclusive" if machine else "note", reason)
        return
    for metric in pair.shared:
        yield _speed_metric(pair, metric, rules, timings)


def _speed_metric(pair: Pair, metric: str, rules: Rules, timings: Sequence[Timing]) -> Finding:
    rule = rules.speed_rule(metric)
    if rule is None:
        return pair.finding("shown", "note", "shown, not judged: its repeats are not known", metric)
    before, after = pair.base.metrics[metric].value, pair.head.metrics[metric].value
    if before <= 0:
        return pair.finding(SPEED, "inconclusive", f"base is {before:g}: measure it again", metric)
    worse = (before - after if rule.better == "higher" else after - before) / before
    spread = _spread(pair.base, metric, timings)
    allowed = min(max(rule.allowed, spread), max(rule.allowed, rule.widest))
    why = f"{rule.allowed:.0%} between processes"
    why = f"{allowed:.0%}: base's own repeats spread by {spread:.0%}" if allowed > rule.allowed else why
    change = f"worse by {worse:.1%}" if worse > 0 else f"better by {-worse:.1%}" if worse < 0 else "the same"
    if worse > allowed:
        return pair.finding(SPEED, "fail", f"{change}, beyond the allowed {why}", metric)
    noise = "; not told from noise: `clipbench ab` settles it" if worse > rule.allowed else ""
    return pair.finding(SPEED, "pass", f"{change}, within the allowed {why}{noise}", metric)


def _spread(base: Result, metric: str, timings: Sequence[Timing]) -> float:
    """How far base's own repeats lie apart (5th to 95th percentile), as a share of their median; 0 where none are stored."""
    if metric == "latency_p50" and "latency_p90" in base.metrics and base.metrics[metric].value > 0:
        return base.metrics["latency_p90"].value / base.metrics[metric].value - 1
    for timing in timings:
        is_its = timing.test.split("[")[0].endswith(metric) and timing.model == base.model.name
        if is_its and len(timing.seconds) > 1 and np.median(timing.seconds) > 0:
            low, high = np.quantile(timing.seconds, [0.05, 0.95])
            return float((high - low) / np.median(timing.seconds))
    return 0.0


# What a reader wants beside the verdict: the items that changed, and what else differs.


def _item_changes(pair: Pair, rules: Rules) -> Iterator[ItemChange]:
    """The worst losses, then the best gains, up to five each, of scores (margins and cosines are none)."""
    for metric, outcomes in pair.outcomes.items():
        if outcomes.is_identical or not (outcomes.is_binary or rules.declared(pair.base.experiment, metric)):
            continue
        tables = [_oriented(result, metric, outcomes.ids) for result in (pair.base, pair.head)]
        margins = None if any(t is None for t in tables) else [_margins(t) for t in tables if t is not None]
        step = outcomes.head - outcomes.base
        same_ids = [o.head - o.base for o in pair.outcomes.values() if o.ids == outcomes.ids]
        weight = np.sum(same_ids, axis=0) if margins is None else margins[1] - margins[0]
        for word, sign in (("lost", -1), ("gained", 1)):
            moved = np.flatnonzero(np.sign(step) == sign)
            for k in moved[np.argsort(-sign * weight[moved], kind="stable")][:LISTED]:
                scores = float(outcomes.base[k]), float(outcomes.head[k])
                change = ItemChange(*key_of(pair.base), metric, outcomes.ids[k], word, *scores)  # type: ignore[arg-type]
                if margins is not None:
                    first, second = (round(float(m[k]), 5) for m in margins)
                    tops = [_top(outcomes.ids, t[k]) for t in tables if t is not None]
                    change = replace(
                        change, margin_before=first, margin_after=second, top_before=tops[0], top_after=tops[1]
                    )
                yield change


def _oriented(result: Result, metric: str, ids: tuple[str, ...]) -> Float64s | None:
    """Stored cosines with a row for each item that asks, own pairs on the diagonal; None where no square matrix is stored."""
    cosines = result.arrays.get("similarity")
    if cosines is None or cosines.shape != (len(ids),) * 2 or len(ids) < 2 or tuple(result.items.ids) != ids:
        return None
    return np.asarray(cosines.T if metric.startswith("image_to_text") else cosines, dtype=np.float64)


def _margins(cosines: Float64s) -> Float64s:
    wrong = cosines.copy()
    np.fill_diagonal(wrong, -np.inf)
    return np.asarray(np.diag(cosines) - wrong.max(axis=1))


def _top(ids: Sequence[str], row: Float64s) -> tuple[tuple[str, float], ...]:
    return tuple((ids[k], round(float(row[k]), 4)) for k in np.argsort(-row, kind="stable")[:TOP])


def _differences(base: Run, head: Run, pairs: Sequence[Pair]) -> tuple[Difference, ...]:
    """Weights (also where they are the same), identity, protocol, software and machine."""
    found: dict[Difference, None] = {}
    for pair in pairs:
        found |= dict.fromkeys(_model_differences(pair.base.model, pair.head.model))
    for pair in pairs:
        before, after = pair.base.protocol, pair.head.protocol
        for key in sorted(k for k in {*before, *after} if before.get(k) != after.get(k)):
            aside = " (hinders no comparison)" if key in HOW_IT_WENT else ""
            values = _short(before.get(key)), _short(after.get(key))
            further = " (differs further on)" if values[0] == values[1] else ""
            found[Difference(f"{key} of {pair.base.experiment}{aside}", values[0], values[1] + further)] = None
    for part in ("software", "machine"):
        tables = base.environment.get(part, {}), head.environment.get(part, {})
        for name in sorted({*tables[0], *tables[1]}):
            first, second = (str(table.get(name, "absent")) or "none" for table in tables)
            if first != second:
                found[Difference(name, first, second)] = None
    return tuple(found)


def _model_differences(base: ModelIdentity, head: ModelIdentity) -> Iterator[Difference]:
    if base.weights_sha256 and head.weights_sha256:
        yield Difference(f"weights of {base.name}", base.weights_sha256[:12], head.weights_sha256[:12])
    for name in ("pretrained", "activation", "precision", "device"):
        before, after = getattr(base, name) or "none", getattr(head, name) or "none"
        if before != after:
            yield Difference(f"{name} of {base.name}", before, after)


# Matching, and small words.


def _align(base: Items, head: Items, metric: str) -> PairedOutcomes | None:
    if metric not in base.outcomes or metric not in head.outcomes:
        return None
    place = {item: k for k, item in enumerate(head.ids_of(metric))}
    ids, there = base.ids_of(metric), set(base.ids_of(metric))
    kept = [k for k, item in enumerate(ids) if item in place]
    names = tuple(ids[k] for k in kept)
    before = np.asarray(base.outcomes[metric], dtype=np.float64)[kept]
    after = np.asarray(head.outcomes[metric], dtype=np.float64)[[place[item] for item in names]]
    is_text = base.axes.get(metric) == "text_ids" and all("#" in item for item in names)
    clusters = tuple(item.rpartition("#")[0] for item in names) if is_text else None
    missing = tuple(item for item in ids if item not in place)
    return PairedOutcomes(names, before, after, clusters, missing, tuple(item for item in place if item not in there))


def _by_key(run: Run, which: str) -> dict[Key, Result]:
    found: dict[Key, Result] = {}
    for result in run.results:
        if key_of(result) in found:
            experiment, model, dataset = key_of(result)
            raise UsageError(
                f"{which} holds two results of {experiment} of {model} on {dataset}; compare runs with one result each"
            )
        found[key_of(result)] = result
    return found


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
    return replace(
        run, results=results, skipped=tuple(s for s in run.skipped if s.experiment.partition(":")[0] in only)
    )


def _key(finding: Finding) -> Key:
    return finding.experiment, finding.model, finding.dataset


def _about(result: Result, kind: Kind, verdict: Word, reason: str) -> Finding:
    return Finding(kind, verdict, *key_of(result), reason)


def _is_about(skip: Skip, result: Result) -> bool:
    """A skip names the model with its weights ("ViT-B/16 (openai)") or without, and a data set after a colon where there are several."""
    experiment, _, dataset = skip.experiment.partition(":")
    is_model = skip.model == result.model.name or skip.model.startswith(f"{result.model.name} (")
    return experiment == result.experiment and dataset in ("", result.dataset.name) and is_model


def _differing(tables: tuple[Mapping[str, Any], Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    values = ((key, *(table.get(key, "unknown") for table in tables)) for key in keys)
    return [f"{key} {before or 'none'} -> {after or 'none'}" for key, before, after in values if before != after]


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(ids[:LISTED]) + (", ..." if len(ids) > LISTED else "")


def _short(value: Any, letters: int = 60) -> str:
    text = value if isinstance(value, str) else "absent" if value is None else json.dumps(value, sort_keys=True)
    return text if len(text) <= letters else f"{text[: letters - 3]}..."
