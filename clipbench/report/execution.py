"""How rows were made, in words: shortcuts with their check, rows from a cache, what was dropped. A run file is untrusted here."""

from collections.abc import Iterator
from typing import Any

from clipbench.judge.execution import UNCONFIRMED, is_unconfirmed
from clipbench.report.document import Block, Heading, Paragraph, Table
from clipbench.result import Result, Run

EXPLAINED = (
    "A shortcut gives the plain call's rows with less work; a sample of them is made again by the plain call in the same run, and "
    "where one is further away than rounding can bring it, all rows are made plainly (`dropped`). --plain takes none."
)


def execution_blocks(run: Run) -> Iterator[Block]:
    """Return a heading, a table with a line for the images and one for the texts of each result that took a shortcut, and a word."""
    rows = [
        (r.model.name, r.experiment, kind, ", ".join(r.protocol.get("shortcuts", ())) or "-", part_text(part))
        for r in run.results
        for kind, part in parts(r)
        if r.protocol.get("shortcuts") or part.get("dropped")
    ]
    if rows:
        yield Heading("How rows were made")
        yield Table(("model", "experiment", "rows of", "shortcuts of the result", "made"), rows)
        yield Paragraph(EXPLAINED)


def execution_lines(run: Run) -> Iterator[str]:
    """Return what somebody must know at the end of a session: shortcuts that were dropped, rows that no model confirmed."""
    for r in run.results:
        for kind, part in parts(r):
            if part.get("dropped"):
                yield f"shortcut dropped: {r.experiment} of {r.model.name}, {kind}: {part['dropped']}"
    for name in dict.fromkeys(r.model.name for r in run.results):
        unconfirmed = {r.experiment: None for r in run.results if r.model.name == name and is_unconfirmed(r)}
        if unconfirmed:
            yield f"{', '.join(unconfirmed)} of {name}: {UNCONFIRMED}"


def part_text(part: dict[str, Any]) -> str:
    """Return the counts of one kind of row in a sentence."""
    words = [f"{part.get('n', 0):,} rows"]
    words += [
        f"{part[key]:,} {name}" for key, name in (("shared", "shared"), ("cached", "from the cache")) if part.get(key)
    ]
    if part.get("checked"):
        words.append(f"{part['checked']} checked, at most {part.get('largest_distance', 0.0):.1e} away")
    if part.get("dropped"):
        words.append(f"dropped: {part['dropped']}")
    return "; ".join(words)


def parts(result: Result) -> list[tuple[str, dict[str, Any]]]:
    """Return (images or texts, counts) of a result; empty where it does not say."""
    execution = result.protocol.get("execution")
    return list(execution.items()) if isinstance(execution, dict) else []
