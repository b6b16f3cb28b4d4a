"""How rows were made, judged: rows that no model confirmed, and results of a shortcut that was found wrong elsewhere."""

from collections.abc import Iterator
from dataclasses import replace

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
    """Return what was measured with a shortcut of a model's that disagreed with the plain call in another of its results.

    There the sample did not find it; nothing says that the rest of the rows is right.
    """
    for name in dict.fromkeys(r.model.name for r in run.results):
        results = [r for r in run.results if r.model.name == name]
        dropped = [
            r.experiment for r in results if any(p.get("dropped") for p in r.protocol.get("execution", {}).values())
        ]
        for r in results:
            if dropped and r.protocol.get("shortcuts"):
                taken = ", ".join(r.protocol["shortcuts"])
                yield (
                    f"{r.experiment} of {name} took shortcuts ({taken}), and one disagreed with the plain call in "
                    f"{', '.join(dropped)}; run again with --plain"
                )
