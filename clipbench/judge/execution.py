"""How rows were made, judged: rows that no model confirmed, and rows of a shortcut that was found wrong in the same result."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from clipbench.result import Result, Run, Verdict

UNCONFIRMED = "from the cache alone: the model was not run on these rows; run again without --cache"


def is_unconfirmed(result: Result) -> bool:
    """Return True where rows came from a cache and none of those was made again by the model: it says nothing of the model now."""
    execution = result.protocol.get("execution")
    parts = execution.values() if isinstance(execution, dict) else ()
    return any(part.get("unconfirmed", 0) for part in parts if isinstance(part, dict))


def confirmed_only(result: Result, verdicts: tuple[Verdict, ...]) -> tuple[Verdict, ...]:
    """Return the verdicts, none of them a pass where the rows are unconfirmed."""
    if not is_unconfirmed(result):
        return verdicts
    return tuple(
        replace(v, verdict="inconclusive", reason=f"{v.reason}; {UNCONFIRMED}") if v.verdict == "pass" else v
        for v in verdicts
    )


def doubtful(run: Run) -> Iterator[str]:
    """Return the results that hold rows of a shortcut which disagreed with the plain call for other rows of the same result.

    Where all rows of a result were made plainly after a disagreement, none of them is in doubt.
    """
    for r in run.results:
        for kind, part in _parts(r).items():
            if part.get("dropped") and (part.get("checked") or part.get("unconfirmed")):
                yield (
                    f"some {kind} of {r.experiment} of {r.model.name} were made by shortcuts "
                    f"({', '.join(r.protocol.get('shortcuts', ()))}), and one disagreed with the plain call for others; "
                    f"run again with --plain"
                )


def dropped_shortcuts(run: Run) -> Iterator[str]:
    """Return notes: each shortcut that was dropped, what that cost, and the model's other results that took shortcuts.

    Their own sample agreed with the plain call.
    """
    for name in dict.fromkeys(r.model.name for r in run.results):
        results = [r for r in run.results if r.model.name == name]
        dropped = [(r, kind, part) for r in results for kind, part in _parts(r).items() if part.get("dropped")]
        for r, kind, part in dropped:
            yield f"shortcut dropped: {r.experiment} of {name}, {part.get('n', 0):,} {kind} made again: {part['dropped']}"
        taken = [r for r in results if r.protocol.get("shortcuts") and all(r is not d for d, _, _ in dropped)]
        if dropped and taken:
            which = ", ".join(f"{r.experiment} ({', '.join(r.protocol['shortcuts'])})" for r in taken)
            yield f"shortcuts of {name} whose own sample agreed with the plain call: {which}"


def _parts(result: Result) -> dict[str, dict[str, Any]]:
    execution = result.protocol.get("execution")
    return execution if isinstance(execution, dict) else {}
