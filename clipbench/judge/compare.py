"""Two runs compared, cell by cell: subject, trace, rows, quality, speed, and whether head has all that base had.

A cell is one judgement, with an id such as `quality[zero_shot/shapes/prod]`, and one verdict or several. `rows` and `quality` hold the
rules; here results are paired, cells are made, and what was accepted or left out on purpose is taken into account. Where nothing was
judged the comparison is inconclusive.
"""

import fnmatch
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from clipbench.errors import EXIT, UsageError, closest
from clipbench.judge.cutoffs import judged_cutoffs
from clipbench.judge.quality import (
    Larger,
    Pair,
    answers_of,
    decided_by_test,
    incomparable,
    margins_of,
    quality,
    worse_than_first,
)
from clipbench.judge.reindex import Reindex
from clipbench.judge.rows import Change, Moved, change_of, listed, rows_moved, shared, subject_verdict, trace_verdict
from clipbench.judge.tolerances import Rules, SpeedRule
from clipbench.judge.trace import TraceFinding, compare_traces, trace_in
from clipbench.statistics import unpaired_ratio
from clipbench.storage import Timing
from clipbench.types import (
    SEVERITY,
    Answers,
    FloatArray,
    Key,
    MetricSpec,
    ModelIdentity,
    Outcome,
    Result,
    Run,
    Skip,
    SubjectRecord,
    Tower,
    Verdict,
    by_severity,
    overall,
    short,
)  # fmt: skip

STATED = ("floor", "published", "contract")
"""Kinds of reference that a session judges by itself; baseline and anchor are comparisons."""
NEVER_ACCEPTED = ("reference", "repeat")
"""Kinds of verdict that --accept does not lift: floors and published values, and rows that do not repeat."""
COMPLETE = "complete"
LEAST_PROCESSES = 3
MACHINE = ("processor", "accelerator", "driver", "threads")
SpeedMode = Literal["off", "note", "gate"]
Exact = Callable[[Key, Tower, Sequence[str]], FloatArray | None]


@dataclass(frozen=True)
class ItemChange:
    """One item whose outcome changed, with its margins and its five best candidates where the results say what it was taken for.

    `label`: the one that is right, "" where several may be; `group`: its slice.
    """

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
    label: str = ""
    group: str = ""


@dataclass(frozen=True)
class Confusion:
    """A pair of classes that head confuses more often than base: items of class `right` taken for `picked`, of so many of it."""

    key: Key
    right: str
    picked: str
    before: int
    after: int
    of: int


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
class Cell:
    """One judgement against a base. `accepted`: why somebody accepts what it says; "" where nobody did."""

    id: str
    verdicts: tuple[Verdict, ...]
    accepted: str = ""

    @property
    def found(self) -> Outcome:
        """The worst of the verdicts, whatever was accepted."""
        return overall(self.verdicts)

    @property
    def is_acceptable(self) -> bool:
        """False where a floor, a published value or the trace's repeat is what fails."""
        return not any(v.kind in NEVER_ACCEPTED and v.outcome == "fail" for v in self.verdicts)

    @property
    def is_accepted(self) -> bool:
        """True where it did not pass, and somebody may and did accept that."""
        return bool(self.accepted) and self.is_acceptable and self.found in ("fail", "inconclusive")

    @property
    def outcome(self) -> Outcome:
        """What counts: a note where it was accepted."""
        return "note" if self.is_accepted else self.found

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is said by the verdicts that decide the cell, metric by metric."""
        said = [v for v in self.verdicts if v.outcome == self.found]
        return tuple(dict.fromkeys(reason_of(v) for v in said))

    @property
    def way_out(self) -> str:
        """The words that accept it; "" where it passes, or nobody may accept it."""
        if self.outcome not in ("fail", "inconclusive") or not self.is_acceptable:
            return ""
        return f'--accept "{self.id}" --reason TEXT'


def reason_of(verdict: Verdict) -> str:
    """Return the reason with its experiment's metric before it, and with base's and head's value, where there are any."""
    if not verdict.metric:
        return verdict.reason
    values = [_number(value) for value in (verdict.base, verdict.head) if value is not None]
    return f"{verdict.metric}{f' {values[0]} -> {values[1]}' if len(values) == 2 else ''}: {verdict.reason}"


def _number(value: float) -> str:
    """A whole number in full: parameters are counted to the last one."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.6g}"


@dataclass(frozen=True)
class Comparison:
    """Everything `compare` has to say; `index` answers `--index`, where that was asked.

    `accepted`: reasons by cell. `stages` says of each model which stage of the trace moved: it explains the outcome and has no part in
    it. `specs`: what each metric of a result is, by key and name.
    """

    verdicts: tuple[Verdict, ...]
    items: tuple[ItemChange, ...] = ()
    differences: tuple[Difference, ...] = ()
    alpha: float = 0.05
    index: tuple[Reindex, ...] = ()
    stages: tuple[TraceFinding, ...] = ()
    specs: Mapping[tuple[Key, str], MetricSpec] = field(default_factory=dict)
    accepted: Mapping[str, str] = field(default_factory=dict)
    confusions: tuple[Confusion, ...] = ()

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The judgements, those that fail first."""
        found: dict[str, list[Verdict]] = defaultdict(list)
        for v in self.verdicts:
            found[v.cell].append(v)
        cells = [Cell(name, tuple(said), self.accepted.get(name, "")) for name, said in found.items()]
        return tuple(sorted(cells, key=lambda cell: SEVERITY.index(cell.outcome)))

    @property
    def outcome(self) -> Outcome:
        """The worst of the cells; inconclusive where nothing was judged at all."""
        cells = self.cells
        worst = overall(cell.outcome for cell in cells)
        if worst == "note":
            return "pass" if any(cell.is_accepted for cell in cells) else "inconclusive"
        return worst

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 inconclusive."""
        return EXIT["compare"][self.outcome]

    def count(self, outcome: Outcome) -> int:
        """Return how many cells have this outcome; accepted ones count as notes."""
        return sum(cell.outcome == outcome for cell in self.cells)

    def of(self, outcome: Outcome) -> list[Verdict]:
        """Return the verdicts with this outcome."""
        return [v for v in self.verdicts if v.outcome == outcome]


def headline(comparison: Comparison, cells: int | None = None) -> str:
    """Return the outcome in one line, with the number of cells behind it; `cells`: how many there were to judge."""
    found = comparison.cells
    accepted = sum(cell.is_accepted for cell in found)
    words = [f"{comparison.count(outcome)} {outcome}" for outcome in ("fail", "inconclusive")]
    words = [word for word in words if not word.startswith("0 ")]
    words += [f"{comparison.count('pass')} pass"] + ([f"{accepted} accepted"] if accepted else [])
    losses = [f"{v.cell} {v.metric}" for v in comparison.verdicts if v.outcome == "pass" and v.is_loss]
    words += [f"a significant loss within what is allowed: {', '.join(losses)}"] if losses else []
    if overall(found_cell.found for found_cell in found) == "note":
        words = ["nothing was compared"]
    outcome = comparison.outcome.upper()
    if cells is not None and len(found) < cells and outcome == "PASS":
        outcome = f"PASS IN PART ({len(found)} of {cells} cells)"
    return f"{outcome}: {', '.join(words)}"


def with_anchor(comparison: Comparison, anchor: Comparison) -> Comparison:
    """Return a comparison with the cells of another one, of the same head with an anchor, beside its own."""
    cells = tuple(replace(v, cell=f"anchor {v.cell}") for v in anchor.verdicts)
    specs = {**anchor.specs, **comparison.specs}
    return replace(comparison, verdicts=by_severity((*comparison.verdicts, *cells)), specs=specs)


def compare_runs(
    base: Run,
    head: Run,
    rules: Rules,
    base_timings: Sequence[Timing] = (),
    head_timings: Sequence[Timing] | None = None,
    only: Sequence[str] = (),
    accepted: Mapping[str, str] | None = None,
    speed: SpeedMode = "note",
    rescored: Sequence[Result] = (),
    anchors: Mapping[Key, Result] | None = None,
    exact: Exact | None = None,
) -> Comparison:
    """Return what changed from base to head and what it means.

    `base_timings`, `head_timings`: pytest-benchmark's own timings in the files; without head's (None) no test is missed. `only`:
    cells by glob, or experiments; none means all. `accepted`: reasons by cell. `rescored`: head's results on exactly the items and
    classes of base's, where head's data grew. `anchors`: by key, the first outcomes since something was accepted. `exact`:
    (key, tower, ids) -> (n,) cosine distances of rows that both runs saved, or None, for the limit in `rules`.

    Raises: UsageError for a name in `only` or `accepted` that is no cell, or a run with two results of one key.
    """
    head = under_one_name(base, head)
    before, after = _by_key(base, "base"), _by_key(head, "head")
    again = {result.key: result for result in rescored}
    pairs = [Pair(result, again.get(key, after[key])) for key, result in before.items() if key in after]
    models = [m for m in dict.fromkeys(key.model for key in before) if any(key.model == m for key in after)]
    found: list[Verdict] = []
    for model in models:
        change = change_of(base, head, model)
        own = [pair for pair in pairs if pair.base.model.name == model]
        found += _subject(base, head, model, change, rules)
        found += _model_cells(own, change or Change(), rules, exact)
        for pair in own:
            if pair.base.is_timed:
                found += _speed(pair, base, head, rules, speed)
    for key, first in (anchors or {}).items():
        if key in after:
            since = Pair(first, again.get(key, after[key]))
            found += (replace(v, cell=cell_of(key)) for v in worse_than_first(since, rules))
    for pair in pairs:
        if pair.base.key in again:
            reason = "head's data grew: scored again on exactly base's items"
            found.append(replace(pair.verdict("note", reason, kind="new"), cell=cell_of(pair.base.key)))
    found += [
        replace(v, cell=COMPLETE)
        for v in _incomplete(base, head, before, after, pairs, rules, base_timings, head_timings)
    ]
    experiments: dict[str, set[str]] = defaultdict(set)
    for v in found:
        experiments[v.cell].add(v.key.experiment)
    chosen = set(named_cells(experiments, only))
    check_accepted(accepted or (), experiments)
    found = [v for v in found if v.cell in chosen]
    scored = [pair for pair in pairs if not pair.base.is_timed and cell_of(pair.base.key) in chosen]
    changes = [change for pair in scored for change in _item_changes(pair, rules)]
    confusions = [confusion for pair in scored for confusion in _grown_confusions(pair)]
    stages = tuple(compare_traces(base.traces, head.traces, rules))
    specs = {(r.key, name): s.spec for side in (base, head) for r in side.results for name, s in r.scores.items()}
    differences = _differences(base, head, pairs)
    return Comparison(
        by_severity(found),
        tuple(changes),
        differences,
        rules.alpha,
        (),
        stages,
        specs,
        dict(accepted or {}),
        tuple(sorted(confusions, key=lambda one: one.before - one.after)),
    )


def cell_of(key: Key) -> str:
    """Return the id of the cell that judges a result: its quality, or its speed."""
    return f"quality[{key.experiment}/{key.dataset}/{key.model}]"


def rows_cell(tower: Tower, key: Key) -> str:
    """Return the id of the cell that judges the rows of a tower on a data set."""
    return f"rows[{tower}/{key.dataset}/{key.model}]"


def cells_of(base: Run, keys: Iterable[Key], speed: SpeedMode = "note") -> dict[str, set[str]]:
    """Return the cells that a base is for these keys, in the order in which they are judged (`complete` last), each with the
    experiments that it is about."""
    found: dict[str, set[str]] = {}
    results = {result.key: result for result in base.results}
    wanted = [results[key] for key in keys if key in results]
    for model in dict.fromkeys(result.model.name for result in wanted):
        own = [result for result in wanted if result.model.name == model]
        found |= {f"subject[{model}]": {"subject"}}
        found |= {f"trace[{model}]": {"trace"}} if _has_rows(base, model) else {}
        for result in own:
            for tower in result.evidence:
                found.setdefault(rows_cell(tower, result.key), set()).add(result.experiment)
        found |= {cell_of(result.key): {result.experiment} for result in own if not result.is_timed}
        timed = {result.experiment for result in own if result.is_timed}
        found |= {f"speed[{model}]": timed} if timed and speed != "off" else {}
    return found | {COMPLETE: {COMPLETE}}


def _has_rows(base: Run, model: str) -> bool:
    """Was anything encoded but for its time? Then there is a trace, or there should be."""
    return any(r.evidence for r in base.results if r.model.name == model) or trace_in(base, model) is not None


def named_cells(cells: Mapping[str, set[str]], only: Sequence[str]) -> list[str]:
    """Return the cells that these patterns name, all where there is none. Raises: UsageError for one that names none."""
    for pattern in only:
        if not any(matches(cell, pattern, names) for cell, names in cells.items()):
            known = [*cells, *{name for names in cells.values() for name in names}]
            likely = closest(pattern, known) or ", ".join(sorted(cells))
            raise UsageError(f"--only {pattern}: there is no such cell; did you mean {likely}?")
    return [cell for cell, names in cells.items() if not only or any(matches(cell, one, names) for one in only)]


def check_accepted(accepted: Iterable[str], cells: Collection[str]) -> None:
    """Raises: UsageError for a cell that there is not."""
    for cell in accepted:
        if cell not in cells:
            likely = closest(cell, cells) or ", ".join(sorted(cells))
            raise UsageError(f"--accept {cell}: there is no such cell; did you mean {likely}?")


def matches(cell: str, pattern: str, experiments: Iterable[str] = ()) -> bool:
    """Return whether a pattern names a cell: a glob whose brackets are the cell's own, or an experiment's name."""
    if pattern in experiments:
        return True
    return fnmatch.fnmatchcase(cell, pattern.replace("[", "\0").replace("]", "[]]").replace("\0", "[[]"))


def under_one_name(base: Run, head: Run) -> Run:
    """Return head with base's name for the one encoder of somebody's own that each of them has: `acme:fp32` and `acme:int8` are one subject
    whose loader changed."""
    names = [
        [s.model for s in run.subjects if str(s.asked.get("loader", "")).partition(" ")[0] == "factory"]
        for run in (base, head)
    ]
    if any(len(run.subjects) != 1 for run in (base, head)) or [len(n) for n in names] != [1, 1] or names[0] == names[1]:
        return head
    (old,), (new,) = names

    def key(one: Key) -> Key:
        return one._replace(model=old) if one.model == new else one

    def renamed(model: ModelIdentity) -> ModelIdentity:
        return replace(model, name=old)

    subject: SubjectRecord = head.subjects[0]
    return replace(
        head,
        results=tuple(replace(r, model=renamed(r.model)) for r in head.results),
        skipped=tuple(Skip(key(s.key), s.reason) for s in head.skipped),
        plan=tuple(key(one) for one in head.plan),
        traces=tuple({**t, "model": {**t["model"], "name": old}} for t in head.traces),
        subjects=(replace(subject, model=old, asked={**subject.asked, "loader": f"factory {new}"}),),
    )


def _subject(base: Run, head: Run, model: str, change: Change | None, rules: Rules) -> Iterator[Verdict]:
    """The cells of a subject and of its trace."""
    key, cell = Key("subject", model, ""), f"subject[{model}]"
    if change is None:
        reason = "a run does not say what was asked of it: measure again"
        yield Verdict(key, "", "subject", "inconclusive", reason, cell=cell)
        return
    yield Verdict(key, "", "subject", *subject_verdict(change), cell=cell)
    traces = [trace_in(run, model) for run in (base, head)]
    if not _has_rows(base, model):
        return
    if traces[1] is None:
        how = "head has no trace" if traces[0] is None else "the trace vanished: base has it, head has not"
        yield Verdict(Key("trace", model, ""), "", "trace", "inconclusive", how, cell=f"trace[{model}]")
        return
    outcome, reason = trace_verdict(traces[0], traces[1], change, rules)
    kind = "repeat" if outcome == "fail" else "trace"
    yield Verdict(Key("trace", model, ""), "", kind, outcome, reason, cell=f"trace[{model}]")


def _model_cells(pairs: Sequence[Pair], change: Change, rules: Rules, exact: Exact | None) -> Iterator[Verdict]:
    """The cells of rows and of quality of one model; larger results first, since smaller ones may lean on them."""
    seen: dict[tuple[Any, ...], Moved] = {}
    larger: list[Larger] = []
    for pair in sorted((p for p in pairs if not p.base.is_timed), key=lambda pair: -pair.base.dataset.n):
        key, moved = pair.base.key, {}
        for tower in pair.base.evidence:
            verdicts, moved[tower] = _rows(pair, tower, change, rules, seen, exact)
            yield from verdicts
        found = [*quality(pair, moved, change, rules, larger), *_references(pair)]
        if not incomparable(pair.base, pair.head, items=False):
            equivalent = bool(moved) and all(one.is_equivalent for one in moved.values())
            found += judged_cutoffs(pair, equivalent, rules)
        if decided_by_test(pair, moved, rules, found):
            larger.append(Larger(str(key), pair.base.dataset.n, moved))
        nothing = [pair.verdict("note", "there is no metric of it")]
        yield from (replace(v, cell=cell_of(key)) for v in found or nothing)


def _rows(
    pair: Pair, tower: Tower, change: Change, rules: Rules, seen: dict[tuple[Any, ...], Moved], exact: Exact | None
) -> tuple[list[Verdict], Moved]:
    """The verdicts on one tower's rows of a result; several results of the same items say so once."""
    key, cell = pair.base.key, rows_cell(tower, pair.base.key)

    def verdict(outcome: Outcome, reason: str, items: Sequence[str] = (), kind: str = "rows") -> Verdict:
        return Verdict(key, "", kind, outcome, reason, cell=cell, items=tuple(items))

    before, after = pair.base.evidence[tower], pair.head.evidence.get(tower)
    if after is None:
        moved = Moved("inconclusive", "unknown", "head keeps no evidence of its rows: measure again")
        return [verdict(moved.outcome, moved.reason)], moved
    found = []
    for which, result in (("base", pair.base), ("head", pair.head)):
        encoding = result.provenance.encoding.get(tower)
        if encoding is not None and encoding.cached:
            reason = f"{encoding.cached:,} rows of {which} came from a cache, where nothing is executed: measure without --cache"
            found.append(verdict("inconclusive", reason))
    both = shared(before, after)
    if both.changed:
        what = "items have other content" if tower == "images" else "texts are others"
        reason = f"{len(both.changed):,} {what}: {listed(both.changed)}"
        found.append(verdict("inconclusive", reason, both.changed, "items"))
    identity = (tower, key.dataset, both.base.ids, both.base.sketches.tobytes(), both.head.sketches.tobytes())
    known = seen.get(identity)
    moved = known or rows_moved(both.base, both.head, change, rules.moves)
    seen[identity] = moved
    if known is None:
        pixels = both.base.pixels, both.head.pixels
        others = int(np.sum(pixels[0] != pixels[1])) if len(pixels[0]) == len(pixels[1]) else 0
        reason = moved.reason + (f"; the decoded pixels of {others:,} differ" if others else "")
        found.append(verdict(moved.outcome, reason, moved.items))
        if rules.row_limit is not None:
            distances = exact(key, tower, both.base.ids) if exact is not None else None
            found.append(verdict(*_within_limit(moved, both.base.ids, rules.row_limit, distances)))
    return found, moved


SKETCH_LOW, SKETCH_HIGH = 0.5, 1.8
"""A distance of sketches is that of the rows within these factors: 16 projections, a standard deviation of 18 %, all of 50,000 items."""


def _within_limit(
    moved: Moved, ids: Sequence[str], limit: float, exact: FloatArray | None
) -> tuple[Outcome, str, tuple[str, ...]]:
    """Whether every item's row stayed within a cosine distance: by the rows themselves where both runs saved them."""
    if moved.state in ("void", "unknown") or len(moved.distances) != len(ids):
        return "fail" if moved.state == "void" else "inconclusive", f"no row can be held to {limit:g}", ()
    cosine = moved.distances**2 / 2 if exact is None else exact
    low, high = (SKETCH_LOW**2, SKETCH_HIGH**2) if exact is None else (1.0, 1.0)
    surely, perhaps = np.flatnonzero(~(cosine * low <= limit)), np.flatnonzero(~(cosine * high <= limit))
    if len(surely):
        names = tuple(ids[k] for k in surely[np.argsort(-cosine[surely], kind="stable")].tolist())
        return "fail", f"{len(surely):,} rows moved by a cosine distance over {limit:g}: {listed(names)}", names
    if len(perhaps):
        names = tuple(ids[k] for k in perhaps.tolist())
        reason = f"{len(perhaps):,} rows may have moved by more than {limit:g}, sketches cannot say: {listed(names)}"
        return "inconclusive", f"{reason}; save exact rows of both with --save-embeddings", names
    return "pass", f"no row moved by a cosine distance over {limit:g}", ()


def _references(pair: Pair) -> Iterator[Verdict]:
    """Floors and published values as each run judged itself against them: what fails in head fails, unless it did in base."""
    held = {(v.metric, v.reference, v.kind): v.outcome for v in pair.base.verdicts}
    for v in pair.head.verdicts:
        if v.outcome != "fail" or v.kind not in STATED:
            continue
        before = held.get((v.metric, v.reference, v.kind))
        how = {None: "fails, and base was not held to it", "fail": "fails as it did in base"}.get(
            before, f"fails, and was {before} in base"
        )
        outcome: Outcome = "note" if before == "fail" else "fail"
        yield pair.verdict(outcome, f"{how}: {v.reason} ({v.kind}: {v.reference})", v.metric, "reference")


# Completeness: what the base had and the head has not.


def _incomplete(
    base: Run,
    head: Run,
    before: Mapping[Key, Result],
    after: Mapping[Key, Result],
    pairs: Sequence[Pair],
    rules: Rules,
    base_timings: Sequence[Timing],
    head_timings: Sequence[Timing] | None,
) -> Iterator[Verdict]:
    yield from _identity(base, head)
    lost = list(_vanished_results(before, after, head))
    if not before:
        reason = "base has no results, and without any everything would pass"
        lost.append(Verdict(Key(COMPLETE, "", ""), "", COMPLETE, "inconclusive", reason))
    for pair in pairs:
        lost += _vanished_parts(pair, base, head)
    if head_timings is not None:
        lost += _vanished_tests(base, head, base_timings, head_timings)
    yield from lost
    if overall(lost) == "note":
        yield Verdict(Key(COMPLETE, "", ""), "", COMPLETE, "pass", "head has everything that base has")
    new = "new in head: nothing in base to compare it with"
    yield from (Verdict(key, "", "new", "note", new) for key in after if key not in before)


def _identity(base: Run, head: Run) -> Iterator[Verdict]:
    key = Key(COMPLETE, "", "")
    if base.id and base.id == head.id:
        reason = f"head is the base itself (run {base.id}): nothing was measured against it"
        yield Verdict(key, "", COMPLETE, "inconclusive", reason)
    elif base.time and head.time and head.time < base.time:
        yield Verdict(key, "", COMPLETE, "note", f"head ({head.time}) is older than base ({base.time})")


def _vanished_results(before: Mapping[Key, Result], after: Mapping[Key, Result], head: Run) -> Iterator[Verdict]:
    for key in before:
        if key in after:
            continue
        skipped = [s.reason for s in head.skipped if _is_about(s, key)]
        elsewhere = [other.dataset for other in after.keys() - before.keys() if other[:2] == key[:2]]
        how = "asked for it and has not measured it" if key in head.plan else "has not, and did not ask for it"
        reason = f"{key} vanished: base has it, head {how}"
        if skipped:
            reason = f"{key} was skipped in head: {skipped[0]}"
        elif elsewhere:
            reason = f"{key} vanished: head measured it on {elsewhere[0]}, base on {key.dataset}"
        yield Verdict(key, "", COMPLETE, "inconclusive", reason)


def _vanished_parts(pair: Pair, base: Run, head: Run) -> Iterator[Verdict]:
    """Skips, metrics, outcomes, evidence and verdicts that one of two results lacks."""

    def lost(reason: str, metric: str = "", outcome: Outcome = "inconclusive") -> Verdict:
        return pair.verdict(outcome, f"{pair.base.key}: {reason}", metric, COMPLETE)

    reasons = [s.reason for s in head.skipped if _is_about(s, pair.base.key)]
    if reasons and not any(_is_about(s, pair.base.key) for s in base.skipped):
        yield lost(f"skipped in part in head: {'; '.join(reasons)}")
    for metric, score in pair.base.scores.items():
        if metric not in pair.head.scores:
            is_tail = pair.base.is_timed and not score.spec.headline  # a slow machine has too few samples for it
            yield lost("vanished: base has it, head has not", metric, "note" if is_tail else "inconclusive")
        elif score.outcomes is not None and pair.head.scores[metric].outcomes is None:
            yield lost("its outcomes by item vanished: base has them, head has the value alone", metric)
    for what, had, has in (
        ("matrix", pair.base.matrices, pair.head.matrices),
        ("answers", pair.base.answers, pair.head.answers),
        ("evidence", pair.base.evidence, pair.head.evidence),
    ):
        if gone := [str(name) for name in had if name not in has]:
            yield lost(f"base has the {what} {', '.join(gone)}, head has not")
    if not pair.base.evidence and any(score.outcomes is not None for score in pair.base.scores.values()):
        yield lost("base keeps no evidence of its rows: measure it again")
    held = {(v.metric, v.kind): v for v in pair.base.verdicts if v.outcome == "pass" and v.kind in STATED}
    seen: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for v in pair.head.verdicts:
        seen[v.metric, v.kind].append(v.outcome)
    for (metric, kind), v in held.items():
        found = overall(seen[metric, kind])
        if found in ("note", "inconclusive"):
            how = "is inconclusive" if found == "inconclusive" else "was not judged"
            yield lost(f"{kind} held in base and {how} in head: {v.reason}", metric)
    if new := [metric for metric in pair.head.scores if metric not in pair.base.scores]:
        yield lost(f"new in head: {', '.join(new)}", outcome="note")


def _vanished_tests(base: Run, head: Run, before: Sequence[Timing], after: Sequence[Timing]) -> Iterator[Verdict]:
    """A test is known by its name, not its path: where pytest was started from says nothing about what ran.

    A test that did not run is no loss where head holds every timed metric that base holds of its model.
    """
    ran = {timing.test for timing in after}
    timed = [
        {(r.model.name, m) for r in run.results if r.is_timed for m, score in r.scores.items() if score.spec.headline}
        for run in (base, head)
    ]
    complete = {model for model, _ in timed[0]} - {model for model, _ in timed[0] - timed[1]}
    for timing in before:
        if timing.test not in ran and timing.model not in complete:
            reason = f"the test {timing.test} was timed in base and did not run in head"
            yield Verdict(Key("speed", timing.model or "-", "-"), "", COMPLETE, "inconclusive", reason)


# Speed and memory between two processes of one machine.


def _speed(pair: Pair, base: Run, head: Run, rules: Rules, mode: SpeedMode) -> Iterator[Verdict]:
    """What changed of speed; it decides only where `mode` is "gate", and then by several processes a side."""
    if mode == "off":
        return
    cell = f"speed[{pair.base.model.name}]"
    found = list(_not_as_timed(pair, base, head))
    for metric in pair.metrics if not found else ():
        found.append(pair.verdict(*_timing(pair, metric, rules, mode), metric, "speed"))
    for v in found:
        yield replace(v, cell=cell, outcome=v.outcome if mode == "gate" else "note")


def _not_as_timed(pair: Pair, base: Run, head: Run) -> Iterator[Verdict]:
    """Why nothing can be said: another machine, other threads, another batch."""
    machines = base.environment.get("machine", {}), head.environment.get("machine", {})
    values = ((key, *(table.get(key, "unknown") for table in machines)) for key in MACHINE)
    differing = [f"{key} {before or 'none'} -> {after or 'none'}" for key, before, after in values if before != after]
    differing += [] if all(machines) else ["the machine is not recorded"]
    devices = [r.model.device for r in (pair.base, pair.head)]
    differing += [f"device {' -> '.join(devices)}"] if len({d.split(":")[0] for d in devices}) > 1 else []
    differing += incomparable(pair.base, pair.head)
    if differing:
        reason = f"speed is not comparable: {'; '.join(differing)}; measure both on one machine"
        yield pair.verdict("inconclusive", reason, kind="speed")


def _timing(pair: Pair, metric: str, rules: Rules, mode: SpeedMode) -> tuple[Outcome, str]:
    """Time, not rate: 30 % more time is 23 % less rate."""
    base, after = pair.base.scores[metric], pair.head.scores[metric]
    spec, rule = base.spec, rules.speed_rule(base.spec)
    sides = base.processes, after.processes
    is_launch_bound = spec.kind == "seconds" and not pair.head.model.device.startswith("cpu")
    if rule is None or is_launch_bound:
        return "note", "shown, not judged" + (": single calls are bound by their launch" if is_launch_bound else "")
    what = "memory" if spec.kind == "bytes" else "time"
    if mode != "gate" or (not spec.headline and not all(sides)):
        if base.value <= 0 or after.value <= 0:
            return "note", f"{base.value:g} -> {after.value:g}"
        ratio = base.value / after.value if spec.kind == "per_second" else after.value / base.value
        beyond = (
            ""
            if ratio - 1 <= rule.allowed
            else f", beyond {rule.allowed:+.0%}: `clipbench ab` can tell whether it is noise"
        )
        return "note", f"{ratio - 1:+.1%} {what}{beyond}"
    if min(len(side) for side in sides) < LEAST_PROCESSES:
        counts = f"{len(sides[0])} processes of base, {len(sides[1])} of head"
        return (
            "inconclusive",
            f"{counts}: {LEAST_PROCESSES} a side are needed; measure both with --speed gate, or use `clipbench ab`",
        )
    if spec.kind == "bytes" and not spec.headline:  # what many calls add: as a share of the memory in use
        return _growth(pair, sides, rule)
    allowed = rule.gated if spec.headline else rule.tail
    ratio, low, high = unpaired_ratio(*sides)
    counts = f"{len(sides[0])} and {len(sides[1])} processes"
    said = f"{ratio - 1:+.1%} {what} ({low - 1:+.1%} to {high - 1:+.1%}), allowed {allowed:+.0%}; {counts}"
    if low > 1 + allowed:
        return "fail", said
    return ("pass" if high <= 1 + allowed else "inconclusive"), said


def _growth(pair: Pair, sides: tuple[Sequence[float], Sequence[float]], rule: SpeedRule) -> tuple[Outcome, str]:
    """Memory that calls add and never give back: head's least process against base's worst, as a share of the memory in use."""
    whole = next((s.value for s in pair.base.scores.values() if s.spec.kind == "bytes" and s.spec.headline), 0.0)
    more = (min(sides[1]) - max(sides[0])) / whole if whole else 0.0
    said = f"many calls add {min(sides[1]):,.0f} bytes at least, {max(sides[0]):,.0f} at most in base"
    return ("fail" if more > rule.gated else "pass"), said


# What a reader wants beside the verdict: the items that changed, and what else differs.


def _item_changes(pair: Pair, rules: Rules) -> Iterator[ItemChange]:
    """The losses, worst first, then the gains, best first, of scores (margins and cosines are none)."""
    for metric, outcomes in pair.outcomes.items():
        declared = rules.declared(pair.base.experiment, pair.base.scores[metric].spec)
        if not (outcomes.lost or outcomes.gained) or not (outcomes.is_binary or declared):
            continue
        margins = [m for r in (pair.base, pair.head) if (m := margins_of(r, outcomes)) is not None]
        sides = [_Taken(a) for r in (pair.base, pair.head) if (a := answers_of(r, metric)) is not None]
        step = outcomes.head - outcomes.base
        same_ids = [o.head - o.base for o in pair.outcomes.values() if o.ids == outcomes.ids]
        weight = np.sum(same_ids, axis=0) if len(margins) < 2 else margins[1] - margins[0]
        for word, sign in (("lost", -1), ("gained", 1)):
            moved = np.flatnonzero(np.sign(step) == sign)
            for k in moved[np.argsort(-sign * weight[moved], kind="stable")]:
                scores, item = (float(outcomes.base[k]), float(outcomes.head[k])), outcomes.ids[k]
                change = ItemChange(pair.base.key, metric, item, word, *scores)  # type: ignore[arg-type]  # two words
                if len(margins) == 2:
                    first, second = (round(float(m[k]), 5) for m in margins)
                    change = replace(change, margin_before=first, margin_after=second)
                    change = replace(change, top_before=sides[0].top(item), top_after=sides[1].top(item))
                    change = replace(change, label=sides[0].label(item), group=sides[0].group(item))
                yield change


class _Taken:
    """What the items of a result were taken for, by id."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.place = {item: k for k, item in enumerate(answers.ids)}

    def top(self, item: str) -> tuple[tuple[str, float], ...]:
        row, a = self.place[item], self.answers
        pairs = zip(a.top[row].tolist(), a.scores[row].tolist(), strict=True)
        return tuple((a.candidates[k], round(score, 4)) for k, score in pairs)

    def label(self, item: str) -> str:
        labels = self.answers.labels
        return "" if labels is None else self.answers.candidates[labels[self.place[item]]]

    def group(self, item: str) -> str:
        return "" if self.answers.groups is None else self.answers.groups[self.place[item]]


def _grown_confusions(pair: Pair) -> Iterator[Confusion]:
    """The pairs of classes that head confuses more often, on the items that both have."""
    for name, before in pair.base.answers.items():
        after = pair.head.answers.get(name)
        classes = pair.base.protocol.classes
        if after is None or before.labels is None or not classes or before.candidates != after.candidates:
            continue
        place = {item: k for k, item in enumerate(after.ids)}
        here = [k for k, item in enumerate(before.ids) if item in place]
        there = [place[before.ids[k]] for k in here]
        labels, size = before.labels[here], len(before.candidates)
        if not here or before.top.shape[1] == 0 or after.top.shape[1] == 0:
            continue
        keys = [labels.astype(np.int64) * size + a.top[rows, 0] for a, rows in ((before, here), (after, there))]
        counts = [dict(zip(*(x.tolist() for x in np.unique(k, return_counts=True)), strict=True)) for k in keys]
        of = np.bincount(labels, minlength=size)
        for code, now in counts[1].items():
            right, picked = divmod(code, size)
            if right != picked and now > counts[0].get(code, 0):
                names = before.candidates[right], before.candidates[picked]
                yield Confusion(pair.base.key, *names, counts[0].get(code, 0), now, int(of[right]))


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
                what = f"{key} of {pair.base.experiment}{aside}"
                found[Difference(what, values[0], values[1] + further)] = None
    return tuple(found | dict.fromkeys(environment_differences(base, head)))


def environment_differences(base: Run, head: Run) -> Iterator[Difference]:
    """Yield what differs of software, then of the machine, each by name."""
    for part in ("software", "machine"):
        tables = base.environment.get(part, {}), head.environment.get(part, {})
        for name in sorted({*tables[0], *tables[1]}):
            first, second = (str(table.get(name, "absent")) or "none" for table in tables)
            if first != second:
                yield Difference(name, first, second)


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


def _by_key(run: Run, which: str) -> dict[Key, Result]:
    found: dict[Key, Result] = {}
    for result in run.results:
        if result.key in found:
            raise UsageError(f"{which} holds two results of {result.key}; compare runs with one result each")
        found[result.key] = result
    return found


def _is_about(skip: Skip, key: Key) -> bool:
    """A skip without a data set is about all that the experiment has."""
    return skip.key[:2] == key[:2] and skip.key.dataset in ("", key.dataset)
