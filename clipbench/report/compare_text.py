"""A comparison for a terminal, for a program (JSON) and as GitHub annotations."""

import dataclasses
from collections.abc import Iterator, Sequence

from clipbench.judge.compare import Comparison, Finding
from clipbench.report.compare_words import (
    METRICS_HEADER,
    VERDICTS,
    WORDS,
    headline,
    items_at_a_glance,
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
from clipbench.report.reindex_text import index_lines
from clipbench.result import dump_json

SHOWN_ITEMS = 20
LEVELS = {"fail": "error", "inconclusive": "warning", "note": "notice"}


def to_text(comparison: Comparison, command: str) -> str:
    """Return the comparison as lines: verdict, reasons, what differs, which items, all metrics, how to reproduce."""
    lines = [headline(comparison), ""]
    lines += [
        f"  {WORDS[f.verdict]:12} {where(f)}: {reason_of(f)}" for f in [*pressing(comparison), *passes(comparison)]
    ]
    lines += ["", "what changed"]
    lines += list(_differences(comparison)) or ["  nothing but the outcomes, if at all"]
    if rows := stage_rows(comparison):
        lines += ["", "first stage that moved", *(f"  {model}: {words}" for model, words in rows)]
    if comparison.items:
        lines += ["", "which items", *_items(comparison)]
    if metrics := metric_rows(comparison):
        lines += ["", *_table([METRICS_HEADER, *metrics])]
    if comparison.index:
        lines += ["", *(plain(line) for line in index_lines(comparison.index))][:-1]
    return "\n".join([*lines, "", f"reproduce: {plain(command)}"]) + "\n"


def to_json(comparison: Comparison, command: str) -> str:
    """Return the comparison as JSON with sorted keys: verdict, exit_code, headline, findings, items, differences, stages, command;
    and index where `--index` was given.
    """
    return dump_json(
        {
            "verdict": comparison.verdict,
            "exit_code": comparison.exit_code,
            "headline": headline(comparison),
            "alpha": comparison.alpha,
            "findings": [dataclasses.asdict(f) for f in comparison.findings],
            "items": [dataclasses.asdict(change) for change in comparison.items],
            "differences": [dataclasses.asdict(d) | {"changed": d.is_change} for d in comparison.differences],
            "stages": [dataclasses.asdict(f) for f in comparison.stages],
            "command": command,
        }
        | ({"index": [dataclasses.asdict(answer) for answer in comparison.index]} if comparison.index else {})
    )


def to_github(comparison: Comparison) -> str:
    """Return GitHub workflow commands: the verdict first, then an annotation for each finding that is no pass.

    Source: https://docs.github.com/actions/reference/workflow-commands-for-github-actions
    """
    level = {"fail": "error", "inconclusive": "warning", "pass": "notice"}[comparison.verdict]
    lines = [f"::{level} title=clipbench::{_message(headline(comparison))}"]
    lines += [_annotation(f) for f in pressing(comparison)]
    moved = {plain(f.model) for f in comparison.stages if f.moved}
    title = "clipbench, first stage that moved"
    lines += [
        f"::notice title={_property(title)}::{_message(f'{m}: {words}')}"
        for m, words in stage_rows(comparison)
        if m in moved
    ]
    return "\n".join(lines) + "\n"


def _annotation(finding: Finding) -> str:
    title = f"clipbench {VERDICTS.get(finding.verdict, 'note')}, {where(finding)}"
    return f"::{LEVELS[finding.verdict]} title={_property(title)}::{_message(reason_of(finding))}"


def _message(text: str) -> str:
    return plain(text).replace("%", "%25")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def _differences(comparison: Comparison) -> Iterator[str]:
    width = max((len(d.what) for d in comparison.differences), default=0)
    for d in comparison.differences:
        yield plain(f"  {d.what:{width}}  {f'{d.base} -> {d.head}' if d.is_change else f'the same ({d.base})'}")


def _items(comparison: Comparison) -> Iterator[str]:
    place, shown = "", items_at_a_glance(comparison, SHOWN_ITEMS)
    for change in shown:
        if where(change) != place:
            place = where(change)
            yield f"  {place}"
        yield f"    {change.direction:6} {plain(change.item)}  {margin_text(change)}"
        if change.top_before:
            yield f"           before: {top_text(change.top_before)}"
            yield f"           after:  {top_text(change.top_after)}"
    if len(comparison.items) > len(shown):
        yield f"    and {len(comparison.items) - len(shown)} more: --format json has them"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
