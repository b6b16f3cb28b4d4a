"""Baselines and anchors: a session judged against a stored run, and the stored run replaced, on purpose and with a reason.

A baseline is a run file with one key more, `clipbench_baseline`. It keeps its history: why it was replaced each time, and what was
accepted then; and of each result of which base's own outcomes are no longer the first since something was accepted, those: an
automatic anchor, by which small losses that passed one by one are seen together. An anchor is any run file: nothing here writes one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from clipbench.errors import UsageError
from clipbench.judge.compare import Cell, Comparison, Exact, SpeedMode, cell_of, compare_runs, reason_of, under_one_name
from clipbench.judge.rows import Change, trace_verdict
from clipbench.judge.tolerances import Rules
from clipbench.paths import LARGEST_RUN_BYTES
from clipbench.saved_rows import read_rows, saved_beside
from clipbench.storage import (
    RunFormatError,
    Timing,
    check_document,
    dump_json,
    read_document,
    result_from_json,
    result_to_json,
    run_of,
    timings_of,
    write_atomically,
)
from clipbench.types import FloatArray, JsonObject, Key, ReferenceKind, Result, Run, Tower, Verdict

HISTORY_KEY = "clipbench_baseline"
WHOLE_RESULT = "outcomes"
"""The metric that a verdict on a whole result names."""
LOCK_SECONDS = 60


@dataclass(frozen=True)
class Base:
    """A run that others are held to, as it was read: with the timings of its file, and its automatic anchors."""

    path: Path
    kind: ReferenceKind
    run: Run
    timings: tuple[Timing, ...] = ()
    anchors: Mapping[Key, Result] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is and where it came from."""
        return f"{self.kind} {self.path}"

    def of(self, models: Sequence[str]) -> "Base":
        """Return what it says of these models."""
        kept = tuple(result for result in self.run.results if result.model.name in models)
        return replace(self, run=replace(self.run, results=kept))


def read_base(path: Path, kind: ReferenceKind, largest_bytes: int = LARGEST_RUN_BYTES) -> Base:
    """Return the run in a file as a base. Raises: RunFormatError for a file that is absent, no run, or a run that cannot be one."""
    document = read_document(path, largest_bytes)
    run = run_of(path, document)
    if not run.results:
        raise RunFormatError(f"{path} has no results, and a base without any would pass everything; make another one")
    keys = [result.key for result in run.results]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise RunFormatError(f"{path} holds two results of {twice}; a base holds one of each")
    return Base(path, kind, run, timings_of(document), _anchors(path, document))


def _anchors(path: Path, document: JsonObject) -> dict[Key, Result]:
    kept = document.get(HISTORY_KEY)
    entries = kept.get("anchors", ()) if isinstance(kept, dict) else ()
    try:
        results = [result_from_json(entry) for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise RunFormatError(f"{path}: {HISTORY_KEY}: {type(error).__name__}: {error}; the file is damaged") from error
    return {result.key: result for result in results}


def compare_with(
    base: Base,
    head: Run,
    rules: Rules,
    timings: Sequence[Timing] | None = None,
    only: Sequence[str] = (),
    accepted: Mapping[str, str] | None = None,
    speed: SpeedMode = "note",
    rescored: Sequence[Result] = (),
    rows: Path | None = None,
) -> Comparison:
    """Return what changed from a base to a head, its automatic anchors included.

    `rows`: the folder in which head saved rows, for a limit that sketches cannot decide. Other arguments and `Raises:` as
    `compare_runs`.
    """
    exact = exact_distances(base.path.parent, rows) if rows is not None and rules.row_limit is not None else None
    return compare_runs(
        base.run, head, rules, base.timings, timings, only, accepted, speed, rescored, base.anchors, exact
    )


def exact_distances(base: Path, head: Path) -> Exact:
    """Return a function that gives the cosine distances of rows saved in both folders (`--save-embeddings`), None of others."""
    saved = [
        {(s.experiment, s.dataset.name): s for s in map(read_rows, saved_beside(f / "run.json"))} for f in (base, head)
    ]

    def distances(key: Key, tower: Tower, ids: Sequence[str]) -> FloatArray | None:
        found = [side.get((key.experiment, key.dataset)) for side in saved]
        sides = []
        for one in found:
            if one is None:
                return None
            names, rows = (one.image_ids, one.image_rows) if tower == "images" else (one.text_ids, one.text_rows)
            place = {name: k for k, name in enumerate(names)}
            if not all(item in place for item in ids):
                return None
            sides.append(rows[[place[item] for item in ids]].astype(np.float64))
        return None if sides[0].shape != sides[1].shape else np.asarray(1 - np.einsum("nd,nd->n", *sides))

    return distances


def with_verdicts(head: Run, base: Base, comparison: Comparison) -> Run:
    """Return the head's run, each of its results with the verdicts that a base has on it."""
    found: dict[Key, list[Verdict]] = {}
    for v in comparison.verdicts:
        if v.outcome != "note":
            expected = "the same" if v.base is None else v.base
            accepted = any(cell.id == v.cell and cell.is_accepted for cell in comparison.cells)
            said = replace(
                v,
                metric=v.metric or WHOLE_RESULT,
                kind=base.kind,
                outcome="note" if accepted else v.outcome,
                reference=f"{base.kind} {base.path.name}",
                expected=expected,
            )
            found.setdefault(v.key, []).append(said)
    known = under_one_name(base.run, head).results
    pairs = zip(head.results, known, strict=True)
    results = tuple(replace(r, verdicts=(*r.verdicts, *found.get(as_in_base.key, ()))) for r, as_in_base in pairs)
    return replace(head, results=results)


def accepted_entry(cell: Cell, author: str, date: str) -> JsonObject:
    """Return what is kept of a cell that was accepted: its outcome, numbers, reason, author and date."""
    numbers = {
        v.metric: {"base": v.base, "head": v.head, "lost": v.lost, "gained": v.gained}
        for v in cell.verdicts
        if v.metric and v.base is not None and v.head is not None
    }
    return {
        "cell": cell.id,
        "outcome": cell.found,
        "because": list(cell.reasons),
        "numbers": numbers,
        "reason": cell.accepted,
        "author": author,
        "date": date,
    }


def not_a_baseline(head: Run, rules: Rules) -> list[str]:
    """Return why a run cannot be a first baseline, in words: what was asked for and not measured, and rows that do not repeat."""
    measured = {result.key for result in head.results}
    found = [f"{key} was asked for and not measured" for key in head.plan if key not in measured]
    for trace in head.traces:
        change = Change(precision=str(trace["model"].get("precision", "")))
        outcome, reason = trace_verdict(trace, trace, change, rules)
        found += [f"trace[{trace['model']['name']}]: {reason}"] if outcome == "fail" else []
    return found if head.results else ["the run has no results, and a baseline without any would pass everything"]


def update_baseline(
    path: Path,
    document: JsonObject,
    reason: str,
    author: str,
    date: str,
    comparison: Comparison | None,
    protected: Sequence[Path] = (),
    largest_bytes: int = LARGEST_RUN_BYTES,
) -> tuple[str, ...]:
    """Write a run file as the baseline, whole or not at all, under a lock, with its history; return what changed in words.

    Where the path is a link, the file that it leads to is the baseline, and stays one for everything else that leads there.

    `document`: the run file's JSON object. `comparison`: with the baseline that it replaces, None for the first one; the caller
    has seen that nothing in it stands against an update. `protected`: files that must stay as they are (anchors).

    Raises: UsageError for a blank reason, a path that is not the baseline's to write, or one that somebody else is writing;
    RunFormatError when the document or the file at the path is no run; OSError when it cannot be written (the old one is
    then untouched).
    """
    from filelock import FileLock, Timeout

    if not reason.strip():
        raise UsageError("--update-baseline needs --reason TEXT: why is the change accepted?")
    if path.suffix != ".json":
        raise UsageError(
            f"{path} is not a baseline: expected a .json file; floors and published values are never updated"
        )
    if path.resolve() in {p.resolve() for p in protected}:
        raise UsageError(f"{path} is also the anchor, which is frozen: give the baseline a file of its own")
    head, path = run_of(path, check_document(path, document)), path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_SECONDS):
            kept: JsonObject = {}
            anchors: dict[Key, Result] = {}
            changed: tuple[str, ...] = ("the first baseline",)
            if path.exists():
                before = read_base(path, "baseline", largest_bytes)
                if comparison is None:
                    raise UsageError(f"{path} appeared meanwhile: compare with it before it is replaced")
                history = read_document(path, largest_bytes).get(HISTORY_KEY)
                kept = history if isinstance(history, dict) else {}
                anchors, changed = _next_anchors(before, head, comparison), _changes(comparison)
            entry = {"reason": reason.strip(), "author": author, "date": date, "changed": list(changed)}
            entry["accepted"] = list(document["clipbench"].get("accepted", ()))
            keep = {
                "history": [*kept.get("history", ()), entry],
                "anchors": [result_to_json(result) for result in anchors.values()],
            }
            write_atomically(path, dump_json(document | {HISTORY_KEY: keep}))
    except Timeout as error:
        raise UsageError(f"{path} is being written by another session; try again") from error
    return changed


def _next_anchors(before: Base, head: Run, comparison: Comparison) -> dict[Key, Result]:
    """The first outcomes since the last acceptance, of results that have them elsewhere than in the new baseline itself."""
    accepted = {cell.id for cell in comparison.cells if cell.is_accepted}
    anchors = {}
    here = {result.key for result in head.results}
    for result in before.run.results:
        if result.key in here and cell_of(result.key) not in accepted and not result.is_timed:
            first = before.anchors.get(result.key, result)
            anchors[result.key] = replace(first, matrices={}, answers={}, evidence={}, verdicts=())
    return anchors


def _changes(comparison: Comparison) -> tuple[str, ...]:
    """What an update changes, one line each: what was accepted, then metrics, software, weights and protocol."""
    said = [
        f"accepted: {cell.id}: {reason}" for cell in comparison.cells if cell.is_accepted for reason in cell.reasons
    ]
    moved = [
        v for v in comparison.verdicts if v.metric and v.base != v.head and v.base is not None and v.head is not None
    ]
    beside = [f"{d.what}: {d.base} -> {d.head}" for d in comparison.differences if d.is_change]
    return tuple(dict.fromkeys([*said, *(f"{v.key}, {reason_of(v)}" for v in moved), *beside])) or ("nothing",)
