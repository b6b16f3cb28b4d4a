"""A comparison as text for a terminal, as JSON, as GitHub annotations, and as Markdown for a pull request.

The text of the runs is untrusted: it is sanitized where a line, an annotation or a page is made of it.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

from clipbench.errors import sanitize
from clipbench.judge.compare import Cell, Comparison, ItemChange, headline
from clipbench.judge.reindex import CROSS_MODEL, CROSS_REVERSED, KS, SELF_NEW, SELF_OLD, Answer, Estimate, Reindex
from clipbench.judge.trace import sentence
from clipbench.report.document import (
    Block,
    Code,
    Details,
    Heading,
    MarkdownBlock,
    Paragraph,
    Table,
    aligned,
    fitted,
    to_markdown,
    value_text,
)
from clipbench.storage import dump_json
from clipbench.types import JsonObject, Key, Outcome, Score, Verdict

ROW_KINDS = ("quality", "speed", "reference")
METRICS_HEADER = (
    "model", "experiment", "data set", "metric", "base", "head", "change", "95 % interval", "lost", "gained", "verdict",
)  # fmt: skip
LEVELS = {"fail": "error", "inconclusive": "warning", "note": "notice", "pass": "notice"}
ADVICE = {
    "pass": "Nothing that was compared is worse beyond what is allowed.",
    "fail": "Do not ship this as it is: what failed is worse than the base, with the evidence beside it.",
    "inconclusive": "Not enough to say: nothing failed, and something could not be decided, compared or found. See the reasons.",
}
TEXT_ITEMS = 20
COMMENT_BYTES = 60_000
"""Of the Markdown for a pull request, whose comment GitHub cuts at 65,536 characters."""
OPEN_VERDICTS, OPEN_ITEMS = 12, 10
"""Lines before the fold: what a reader takes in within half a minute."""
INDEX_OUTCOMES: dict[Answer, Outcome] = {"no need": "pass", "re-index": "fail", "inconclusive": "inconclusive"}
MEANING = {
    SELF_OLD: "today",
    CROSS_MODEL: "new model, index kept",
    CROSS_REVERSED: "old model, fresh index",
    SELF_NEW: "new model, fresh index",
}
CUTOFFS_HEADER = ("cut-off at today's", "score", "queries that pass it today", "then", "change")


def to_text(comparison: Comparison, command: str) -> str:
    """Return the comparison as lines: verdict, reasons, what differs, which items, all metrics, how to reproduce."""
    lines = [headline(comparison), ""]
    for cell in comparison.cells:
        said = cell.reasons
        lines += [f"  {_word(cell):12} {cell.id}" + (f": {said[0]}" if len(said) == 1 else "")]
        lines += [f"               {reason}" for reason in (said if len(said) > 1 else ())]
        lines += [f"               {line}" for line in _beside(cell)]
    lines += ["", "what changed"]
    lines += list(_difference_lines(comparison)) or ["  nothing but the outcomes, if at all"]
    if rows := _stage_rows(comparison):
        lines += ["", "first stage that moved", *(f"  {model}: {words}" for model, words in rows)]
    if comparison.items:
        lines += ["", "which items", *_item_lines(comparison)]
    if metrics := _metric_rows(comparison):
        lines += ["", *aligned(Table(METRICS_HEADER, metrics))]
    if comparison.index:
        lines += ["", *index_lines(comparison.index)][:-1]
    return "\n".join(map(sanitize, [*lines, "", f"reproduce: {command}"])) + "\n"


def to_json(comparison: Comparison, command: str) -> str:
    """Return the comparison as JSON with sorted keys: verdict, exit_code, headline, cells, findings, items, differences, stages,
    command; and index where `--index` was given.
    """
    return dump_json(
        {
            "verdict": comparison.outcome,
            "exit_code": comparison.exit_code,
            "headline": headline(comparison),
            "alpha": comparison.alpha,
            "cells": [
                {
                    "id": cell.id,
                    "verdict": cell.outcome,
                    "found": cell.found,
                    "accepted": cell.accepted if cell.is_accepted else "",
                    "reasons": list(cell.reasons),
                    "items": sorted({item for v in cell.verdicts for item in v.items}),
                    "to_accept": cell.way_out,
                }
                for cell in comparison.cells
            ],
            "findings": [
                _entry(v, "outcome", "reference", "expected") | {"verdict": v.outcome} for v in comparison.verdicts
            ],
            "items": [_entry(change) for change in comparison.items],
            "differences": [dataclasses.asdict(d) | {"changed": d.is_change} for d in comparison.differences],
            "stages": [dataclasses.asdict(f) for f in comparison.stages],
            "command": command,
        }
        | ({"index": [dataclasses.asdict(answer) for answer in comparison.index]} if comparison.index else {})
    )


def to_github(comparison: Comparison) -> str:
    """Return GitHub workflow commands: the verdict first, then an annotation for each cell that is no pass.

    Source: https://docs.github.com/actions/reference/workflow-commands-for-github-actions
    """
    found = [(LEVELS[comparison.outcome], "clipbench", headline(comparison))]
    for cell in _pressing(comparison):
        found.append((LEVELS[cell.outcome], f"clipbench {_word(cell)}, {cell.id}", "; ".join(cell.reasons)))
    moved = {f.model for f in comparison.stages if f.moved}
    stages = [f"{model}: {words}" for model, words in _stage_rows(comparison) if model in moved]
    found += [("notice", "clipbench, first stage that moved", stage) for stage in stages]
    return "".join(f"::{level} title={_property(title)}::{_message(text)}\n" for level, title, text in found)


def to_pull_request(comparison: Comparison, command: str) -> str:
    """Return the comparison as GitHub-flavoured Markdown: verdict, reasons, what differs, items, command, folded tables.

    All text of the runs is escaped.
    """
    blocks: list[MarkdownBlock] = [
        Heading(headline(comparison), 2),
        Paragraph(ADVICE[comparison.outcome]),
    ]
    pressing = _pressing(comparison)
    blocks += _cell_blocks(pressing[:OPEN_VERDICTS])
    if len(pressing) > OPEN_VERDICTS:
        blocks.append(Paragraph(f"and {len(pressing) - OPEN_VERDICTS} more, folded below"))
    blocks += _difference_blocks(comparison)
    if stages := _stage_rows(comparison):
        blocks += [Heading("First stage that moved", 3), Table(("model", "what the trace says"), stages)]
    if comparison.items:
        blocks += _item_blocks("Which items", _items_at_a_glance(comparison, OPEN_ITEMS))
    blocks += index_blocks(comparison.index)
    blocks += [Heading("Reproduce", 3), Code(command)]
    blocks += _folded(comparison, pressing)
    return to_markdown(fitted(blocks, COMMENT_BYTES))


def _difference_lines(comparison: Comparison) -> Iterator[str]:
    width = max((len(d.what) for d in comparison.differences), default=0)
    for d in comparison.differences:
        yield f"  {d.what:{width}}  {f'{d.base} -> {d.head}' if d.is_change else f'the same ({d.base})'}"


def _item_lines(comparison: Comparison) -> Iterator[str]:
    place, listed = "", _items_at_a_glance(comparison, TEXT_ITEMS)
    for change in listed:
        if _where(change) != place:
            place = _where(change)
            yield f"  {place}"
        yield f"    {change.direction:6} {change.item}  {_margin_text(change)}"
        if change.top_before:
            yield f"           before: {_top_text(change.top_before)}"
            yield f"           after:  {_top_text(change.top_after)}"
    if len(comparison.items) > len(listed):
        yield f"    and {len(comparison.items) - len(listed)} more: --format json has them"


def _entry(about: Verdict | ItemChange, *without: str) -> JsonObject:
    """A verdict or a changed item as a JSON object."""
    entry = {name: value for name, value in dataclasses.asdict(about).items() if name not in ("key", *without)}
    return entry | about.key._asdict()


def _message(text: str) -> str:
    return sanitize(text).replace("%", "%25")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def _cell_blocks(cells: Sequence[Cell], title: str = "Why") -> list[Block]:
    rows = [(_word(c), c.id, "; ".join([*c.reasons, *_beside(c)])) for c in cells]
    return [Heading(title, 3), Table(("verdict", "cell", "reason"), rows)] if rows else []


def _word(cell: Cell) -> str:
    return "accepted" if cell.is_accepted else cell.outcome


def _beside(cell: Cell) -> list[str]:
    """What stands under a cell's reasons: why it was accepted, or how to accept it."""
    if cell.is_accepted:
        return [f"accepted: {cell.accepted}"]
    return [f"to accept it: {cell.way_out}"] if cell.way_out else []


def _difference_blocks(comparison: Comparison) -> Iterator[Block]:
    yield Heading("What changed", 3)
    changed = [d for d in comparison.differences if d.is_change]
    same = [d.what for d in comparison.differences if not d.is_change]
    if changed:
        yield Table(("what", "base", "head"), [(d.what, d.base, d.head) for d in changed])
    else:
        yield Paragraph("Neither software, machine, weights nor protocol.")
    if same:
        yield Paragraph(f"The same: {', '.join(same)}.")


def _item_blocks(title: str, changes: Sequence[ItemChange]) -> list[Block]:
    header = ("where", "item", "", "moved", "best five before", "best five after")
    rows = [
        (_where(c), c.item, c.direction, _margin_text(c), _top_text(c.top_before), _top_text(c.top_after))
        for c in changes
    ]
    return [Heading(title, 3), Table(header, rows)]


def _folded(comparison: Comparison, pressing: Sequence[Cell]) -> Iterator[Details]:
    if rows := _metric_rows(comparison):
        yield Details(f"All {len(rows)} metrics", [Table(METRICS_HEADER, rows)])
    if passed := [cell for cell in comparison.cells if cell.outcome == "pass"]:
        yield Details(f"{len(passed)} that pass", _cell_blocks(passed, "What passes"))
    if rest := pressing[OPEN_VERDICTS:]:
        yield Details(f"The other {len(rest)} findings", _cell_blocks(rest, "More"))
    if len(comparison.items) > len(_items_at_a_glance(comparison, OPEN_ITEMS)):
        items = _item_blocks("Items", _items_worst_first(comparison))
        yield Details(f"All {len(comparison.items)} changed items shown", items)


def _where(about: Verdict | ItemChange) -> str:
    experiment, model, dataset = about.key
    items = "" if dataset in ("", "-", "none", experiment) else f" on {dataset}"
    metric = f", {about.metric}" if about.metric else ""
    return f"{experiment} of {model}{items}{metric}"


def _pressing(comparison: Comparison) -> list[Cell]:
    """What a reader must see: cells that do not simply pass."""
    return [cell for cell in comparison.cells if cell.outcome != "pass"]


def _metric_rows(comparison: Comparison) -> list[Sequence[str]]:
    """One row per metric of both runs, under `METRICS_HEADER`."""
    rows: dict[tuple[Key, str], Sequence[str]] = {}
    for v in comparison.verdicts:
        if v.kind in ROW_KINDS and v.metric and v.base is not None and v.head is not None:
            flips = ["-" if count is None else f"{count:,}" for count in (v.lost, v.gained)]
            interval = "-" if v.interval is None else f"{v.interval[0]:+.4f} to {v.interval[1]:+.4f}"
            values = [_value(comparison, v, value) for value in (v.base, v.head)]
            row = (
                v.key.model, v.key.experiment, v.key.dataset, v.metric, *values, _change(v.base, v.head), interval, *flips, v.outcome,
            )  # fmt: skip
            rows.setdefault((v.key, v.metric), row)
    return sorted(rows.values(), key=lambda row: tuple(row[:4]))


def _value(comparison: Comparison, verdict: Verdict, value: float | None) -> str:
    if value is None:
        return "absent"
    return value_text(Score(comparison.specs[verdict.key, verdict.metric], value, verdict.n))


def _change(base: float, head: float) -> str:
    if base == head:
        return "0"
    small = max(abs(base), abs(head)) <= 1
    return f"{head - base:+.2g}" if small or base == 0 else f"{(head - base) / base:+.1%}"


def _items_worst_first(comparison: Comparison) -> list[ItemChange]:
    """The changed items: of metrics that failed, of results that failed, of undecided ones, the rest; losses as they stand."""
    metrics = {(v.key, v.metric) for v in comparison.of("fail")}
    failed, undecided = ({v.key for v in comparison.of(outcome)} for outcome in ("fail", "inconclusive"))

    def rank(change: ItemChange) -> int:
        if (change.key, change.metric) in metrics:
            return 0
        return 1 if change.key in failed else 2 if change.key in undecided else 3

    return sorted(comparison.items, key=rank)


def _items_at_a_glance(comparison: Comparison, limit: int) -> list[ItemChange]:
    """Up to `limit` changed items, worst first, of each metric no more than three losses and two gains."""
    seen: Counter[tuple[Key, str, str]] = Counter()
    chosen = []
    for change in _items_worst_first(comparison):
        like = (change.key, change.metric, change.direction)
        seen[like] += 1
        if seen[like] <= (3 if change.direction == "lost" else 2):
            chosen.append(change)
    return chosen[:limit]


def _margin_text(change: ItemChange) -> str:
    """How an item moved: its margin where it is known, else its outcome."""
    if change.margin_before is None or change.margin_after is None:
        return f"{change.before:g} -> {change.after:g}"
    return f"margin {change.margin_before:+.4f} -> {change.margin_after:+.4f}"


def _top_text(top: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in top) or "-"


def _stage_rows(comparison: Comparison) -> list[tuple[str, str]]:
    """(Model, which stage moved first, by how much, and which did not) for each model that has a trace."""
    models = dict.fromkeys(f.model for f in comparison.stages)
    return [(model, sentence(comparison.stages, model)) for model in models]


def index_verdicts(answers: Sequence[Reindex]) -> list[Verdict]:
    """Return one verdict per answer (no need: pass, re-index: fail, inconclusive), and a note on cut-offs that break."""
    found = []
    for a in answers:
        key, reason = Key("index", a.what, "-"), f"{a.answer}: {a.reason}"
        found.append(Verdict(key, "", "index", INDEX_OUTCOMES[a.answer], reason, n=a.queries, cell="index"))
        if a.cutoffs_word == "break":
            found.append(Verdict(key, "", "index", "note", _cutoffs_text(a), n=a.queries, cell="index"))
    return found


def index_blocks(answers: Sequence[Reindex]) -> Iterator[Block]:
    """Yield the answers as blocks of a document: answer, reason, cut-offs, both tables; nothing where none was asked for."""
    for answer in answers:
        yield Heading(f"Must I re-index? {answer.answer.capitalize()}", 3)
        yield Paragraph(f"{answer.what}: {answer.reason}.")
        if answer.scores:
            yield _searches(answer)
            yield Paragraph(f"{_cutoffs_text(answer).capitalize()}.")
            yield _cutoffs(answer)


def index_lines(answers: Sequence[Reindex]) -> Iterator[str]:
    """Yield the answers as lines of plain text."""
    for answer in answers:
        yield f"must I re-index? {answer.answer} ({answer.what})"
        yield f"  {answer.reason}"
        if answer.scores:
            yield from aligned(_searches(answer), indent=4)
            yield f"  {_cutoffs_text(answer)}"
            yield from aligned(_cutoffs(answer), indent=4)
        yield ""


def _cutoffs_text(answer: Reindex) -> str:
    if not answer.cutoffs:
        return ""
    worst = max(answer.cutoffs, key=lambda c: abs(c.change.value))
    words = {"break": "break: set them anew", "hold": "hold", "inconclusive": "cannot be decided: too few queries"}
    return (
        f"fixed cut-offs on the best score {words[answer.cutoffs_word]} ({answer.cutoffs_on}): {worst.score:.3f} lets "
        f"{worst.today:.3f} of the queries pass today, then {worst.new:.3f}"
    )


def _searches(answer: Reindex) -> Table:
    """A row for each search, with overlaps, recall and score quantiles; "-" where not measured."""
    header = (
        "queries on rows",
        "",
        f"overlap@{answer.k} with today",
        "with a fresh index",
        *(f"recall@{k}" for k in KS),
        *(f"p{q * 100:g}" for q in answer.quantiles),
    )
    rows = []
    for name, scores in answer.scores.items():
        recall = [_cell(answer.recall.get(name, {}).get(k)) for k in KS]
        overlaps = [_cell(answer.overlap_today.get(name)), _cell(answer.overlap_fresh.get(name))]
        rows.append((name, MEANING[name], *overlaps, *recall, *(f"{score:.3f}" for score in scores)))
    return Table(header, rows)


def _cutoffs(answer: Reindex) -> Table:
    """A row for each cut-off at a quantile of today's best scores."""
    rows = [
        (f"p{c.quantile * 100:g}", f"{c.score:.3f}", f"{c.today:.3f}", f"{c.new:.3f}", _interval(c.change, "+.3f"))
        for c in answer.cutoffs
    ]
    return Table(CUTOFFS_HEADER, rows)


def _cell(found: Estimate | None) -> str:
    return _interval(found, ".3f") if found else "-"


def _interval(found: Estimate, style: str) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:{style}}"
    return f"{found.value:{style}} ({found.low:{style}} to {found.high:{style}})"
