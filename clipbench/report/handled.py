"""What was handled on purpose while items were read and encoded: counted in the results, shown to a person. A run file is untrusted."""

from collections.abc import Iterator

from clipbench.report.document import Block, Heading, Paragraph, Table
from clipbench.result import Result, Run

EXPLAINED = "Items that a data set names and that were left out, changed or counted on purpose; broken files by name."


def handled_blocks(run: Run) -> Iterator[Block]:
    """Return a heading, a table with a line for each result that has something to say, and a word; nothing where none has."""
    rows = [(r.model.name, r.experiment, r.dataset.name, text) for r in run.results if (text := _counts(r))]
    if rows:
        yield Heading("What was handled")
        yield Table(("model", "experiment", "data set", "counts"), rows)
        yield Paragraph(EXPLAINED)


def left_out_lines(run: Run) -> Iterator[str]:
    """Return a line for each result that was measured without images it should have had."""
    for r in run.results:
        if lost := left_out(r):
            yield f"left out: {r.experiment} of {r.model.name} on {r.dataset.name}: {lost}"


def left_out(result: Result) -> str:
    """Return which images were asked for and not measured, "" where none were."""
    notes, found = _notes(result), []
    if absent := notes.get("images_absent", 0):
        found.append(f"{absent:,} absent image(s)")
    if broken := notes.get("broken_images", 0):
        found.append(f"{broken:,} broken image(s): {_names(result)}")
    return ", ".join(found)


def _counts(result: Result) -> str:
    counted = [f"{name} {count:,}" for name, count in _notes(result).items() if count]
    names = _names(result)
    return ", ".join(counted) + (f" ({names})" if names else "") if counted else ""


def _names(result: Result) -> str:
    names = result.protocol.get("broken_images")
    return ", ".join(str(name) for name in names) if isinstance(names, list) else ""


def _notes(result: Result) -> dict[str, int]:
    notes = result.protocol.get("notes")
    counts = notes.items() if isinstance(notes, dict) else ()
    return {str(name): count for name, count in counts if isinstance(count, int)}
