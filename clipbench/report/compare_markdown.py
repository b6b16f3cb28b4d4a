"""A comparison for a pull request: ship or not, what changed, which items, one command to reproduce, the full table folded."""

from collections.abc import Iterator, Sequence

from clipbench.judge.compare import Comparison, Finding, ItemChange
from clipbench.report.compare_words import (
    METRICS_HEADER,
    WORDS,
    headline,
    items_at_a_glance,
    items_worst_first,
    margin_text,
    metric_rows,
    passes,
    plain,
    pressing,
    reason_of,
    stage_rows,
    top_text,
    where,
)
from clipbench.report.document import Block, Code, Details, Heading, Paragraph, Table, to_markdown
from clipbench.report.reindex_text import index_blocks

ADVICE = {
    "pass": "Nothing that was compared is worse beyond what is allowed.",
    "fail": "Do not ship this as it is: what failed is worse than the base, with the evidence beside it.",
    "inconclusive": "Not enough to say: nothing failed, and something could not be told, compared or found. See the reasons.",
}
OPEN_FINDINGS, OPEN_ITEMS = 12, 10
"""Lines shown before the fold: what a reader takes in within half a minute."""


def to_pull_request(comparison: Comparison, command: str) -> str:
    """Return the comparison as GitHub-flavoured Markdown, all text of the runs escaped."""
    return to_markdown(comparison_blocks(comparison, command))


def comparison_blocks(comparison: Comparison, command: str) -> list[Block]:
    """Return the comparison as blocks of a document: verdict, reasons, what differs, items, command, folded tables."""
    blocks: list[Block] = [Heading(headline(comparison), 2), Paragraph(ADVICE[comparison.verdict])]
    told = pressing(comparison)
    blocks += _findings(told[:OPEN_FINDINGS], len(told) - OPEN_FINDINGS)
    blocks += _differences(comparison)
    if stages := stage_rows(comparison):
        blocks += [Heading("First stage that moved", 3), Table(("model", "what the probe says"), stages)]
    if comparison.items:
        blocks += _items("Which items", items_at_a_glance(comparison, OPEN_ITEMS))
    blocks += index_blocks(comparison.index)
    blocks += [Heading("Reproduce", 3), Code(plain(command))]
    blocks += _folded(comparison, told)
    return blocks


def _findings(findings: Sequence[Finding], more: int, title: str = "Why") -> Iterator[Block]:
    if findings:
        yield Heading(title, 3)
        yield Table(("verdict", "where", "reason"), [(WORDS[f.verdict], where(f), reason_of(f)) for f in findings])
    if more > 0:
        yield Paragraph(f"and {more} more, folded below")


def _differences(comparison: Comparison) -> Iterator[Block]:
    yield Heading("What changed", 3)
    changed = [d for d in comparison.differences if d.is_change]
    same = [d.what for d in comparison.differences if not d.is_change]
    if changed:
        yield Table(("what", "base", "head"), [[plain(cell) for cell in (d.what, d.base, d.head)] for d in changed])
    else:
        yield Paragraph("Neither software, machine, weights nor protocol.")
    if same:
        yield Paragraph(f"The same: {plain(', '.join(same))}.")


def _items(title: str, changes: Sequence[ItemChange]) -> Iterator[Block]:
    header = ("where", "item", "", "moved", "best five before", "best five after")
    rows = [
        (where(c), plain(c.item), c.direction, margin_text(c), top_text(c.top_before), top_text(c.top_after))
        for c in changes
    ]
    yield Heading(title, 3)
    yield Table(header, rows)


def _folded(comparison: Comparison, told: Sequence[Finding]) -> Iterator[Block]:
    if rows := metric_rows(comparison):
        yield Details(f"All {len(rows)} metrics", [Table(METRICS_HEADER, rows)])
    if passed := passes(comparison):
        yield Details(f"{len(passed)} that pass", list(_findings(passed, 0, "What passes")))
    if len(told) > OPEN_FINDINGS:
        yield Details(
            f"The other {len(told) - OPEN_FINDINGS} findings", list(_findings(told[OPEN_FINDINGS:], 0, "More"))
        )
    if len(comparison.items) > len(items_at_a_glance(comparison, OPEN_ITEMS)):
        yield Details(
            f"All {len(comparison.items)} changed items shown", list(_items("Items", items_worst_first(comparison)))
        )
