"""Baselines and anchors: a session judged against a stored run, and the stored run replaced, on purpose and with a reason.

A baseline is a run file with one key more, `clipbench_baseline`, that keeps why it was replaced each time. An anchor is any run
file: nothing here writes one. Floors and published values are other files, which an update never opens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clipbench.errors import UsageError
from clipbench.judge.compare import Comparison, compare_runs
from clipbench.judge.tolerances import Rules
from clipbench.storage import Timing, check_document, dump_json, read_document, run_of, timings_of, write_atomically
from clipbench.types import JsonObject, Key, ReferenceKind, Run, Verdict

HISTORY_KEY = "clipbench_baseline"
WHOLE_RESULT = "outcomes"
"""The metric that a verdict on a whole result names: changed on its items, not comparable, skipped."""


@dataclass(frozen=True)
class Judged:
    """A run whose results carry their verdicts against a reference, and the comparison behind them.

    `comparison` also holds what no result can carry: results of the reference that vanished.
    """

    run: Run
    comparison: Comparison


@dataclass(frozen=True)
class Update:
    """What an update wrote: the file, whether it is the first, and what changed in words."""

    path: Path
    is_first: bool
    changed: tuple[str, ...]


def judge_against(
    head: Run, reference: Path, kind: ReferenceKind, rules: Rules, timings: Sequence[Timing] | None = None
) -> Judged:
    """Return the head's run with verdicts of this kind ("baseline" or "anchor") against the run in a file.

    Every rule of `compare` holds; an anchor differs only in being old, so that small drops that were accepted one by one are
    seen together. `timings`: head's own, where tests that vanished shall be missed.

    Raises: RunFormatError when the file is absent or no run; UsageError when a run holds two results of one key.
    """
    document = read_document(reference)
    base = run_of(reference, document)
    comparison = compare_runs(base, head, rules, timings_of(document), timings)
    found: dict[Key, list[Verdict]] = {}
    for v in comparison.verdicts:
        if v.outcome != "note":
            expected = "the same" if v.base is None else v.base
            said = Verdict(
                v.key, v.metric or WHOLE_RESULT, kind, v.outcome, v.reason, f"{kind} {reference.name}", expected
            )
            found.setdefault(v.key, []).append(said)
    results = tuple(replace(r, verdicts=(*r.verdicts, *found.get(r.key, ()))) for r in head.results)
    return Judged(replace(head, results=results), comparison)


def update_baseline(
    path: Path, document: JsonObject, reason: str, author: str, date: str, rules: Rules, protected: Sequence[Path] = ()
) -> Update:
    """Write a run file as the baseline, whole or not at all, with its history; return what changed.

    `document`: the run file's JSON object. `protected`: files that must stay as they are (anchors).

    Raises: UsageError for a blank reason, a path that is not the baseline's to write, or a run without results; RunFormatError
    when the document or the file at the path is no run; OSError when it cannot be written (the old one is then untouched).
    """
    if not reason.strip():
        raise UsageError("--update-baseline needs --reason TEXT: why is the change accepted?")
    if path.suffix != ".json":
        raise UsageError(
            f"{path} is not a baseline: expected a .json file; floors and published values are never updated"
        )
    if path.resolve() in {p.resolve() for p in protected}:
        raise UsageError(f"{path} is also the anchor, which is frozen: give the baseline a file of its own")
    head = run_of(path, check_document(path, document))
    if not head.results:
        raise UsageError(
            f"{path} stays as it is: the run has no results, and a baseline without any would pass everything"
        )
    is_first = not path.exists()
    history: list[JsonObject] = []
    changed: tuple[str, ...] = ("the first baseline",)
    if not is_first:
        before = read_document(path)
        comparison = compare_runs(run_of(path, before), head, rules, timings_of(before), timings_of(document))
        changed = _changes(comparison)
        kept = before.get(HISTORY_KEY)
        history = list(kept.get("history", ())) if isinstance(kept, dict) else []
    history.append({"reason": reason.strip(), "author": author, "date": date, "changed": list(changed)})
    write_atomically(path, dump_json(document | {HISTORY_KEY: {"history": history}}))
    return Update(path, is_first, changed)


def _changes(comparison: Comparison) -> tuple[str, ...]:
    """What an update changes, one line each: all that does not simply pass, then software, weights and protocol."""
    said = [_line(v) for v in comparison.verdicts if v.outcome != "pass" and v.kind not in ("shown", "churn")]
    moved = [v for v in comparison.verdicts if v.metric and v.kind in ("shown", "in general") and v.base != v.head]
    beside = [f"{d.what}: {d.base} -> {d.head}" for d in comparison.differences if d.is_change]
    return tuple(dict.fromkeys([*said, *(_line(v) for v in moved), *beside])) or ("nothing",)


def _line(verdict: Verdict) -> str:
    metric = f", {verdict.metric}" if verdict.metric else ""
    values = "" if verdict.base is None or verdict.head is None else f" {verdict.base:.6g} -> {verdict.head:.6g}"
    reason = "" if verdict.kind == "shown" else f": {verdict.reason}"
    return f"{verdict.key.experiment} of {verdict.key.model}{metric}{values}{reason}"
