"""A comparison as text for a terminal, as JSON, as GitHub annotations, and as Markdown for a pull request.

The text of the runs is untrusted: it is sanitized where a line, an annotation or a page is made of it.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from clipbench.errors import sanitize
from clipbench.judge.compare import Cell, Comparison, Confusion, ItemChange, headline
from clipbench.judge.reindex import CROSS_MODEL, CROSS_REVERSED, KS, SELF_NEW, SELF_OLD, Answer, Estimate, Reindex
from clipbench.report.document import Block, Code, Details, Heading, Paragraph, Table, aligned, to_markdown
from clipbench.report.story import (
    OPEN_CONFUSIONS,
    answer_lines,
    change_blocks,
    glance,
    item_blocks,
    item_groups,
    margin_text,
    metric_table,
    model_answers,
    name_of,
    stage_rows,
)
from clipbench.report.thumbs import Gallery
from clipbench.storage import dump_json
from clipbench.types import JsonObject, Key, Outcome, Run, Verdict

LEVELS = {"fail": "error", "inconclusive": "warning", "note": "notice", "pass": "notice"}
LARGEST_COMMENT = 60_000
"""GitHub takes comments of 65,536 characters."""
INDEX_OUTCOMES: dict[Answer, Outcome] = {"no need": "pass", "re-index": "fail", "inconclusive": "inconclusive"}
MEANING = {
    SELF_OLD: "today",
    CROSS_MODEL: "new model, index kept",
    CROSS_REVERSED: "old model, fresh index",
    SELF_NEW: "new model, fresh index",
}
CUTOFFS_HEADER = ("cut-off at today's", "score", "queries that pass it today", "then", "change")


def to_text(comparison: Comparison, command: str, head: Run | None = None) -> str:
    """Return the comparison as lines: verdict, reasons, what differs, which items, all metrics, how to reproduce."""
    lines = [headline(comparison), "", *answer_lines(model_answers(comparison, head)), ""]
    for cell in comparison.cells:
        said = cell.reasons
        lines += [f"  {_word(cell):12} {cell.id}" + (f": {said[0]}" if len(said) == 1 else "")]
        lines += [f"               {reason}" for reason in (said if len(said) > 1 else ())]
        lines += [f"               {line}" for line in _beside(cell)]
    lines += ["", "what else differs"]
    lines += list(_difference_lines(comparison)) or ["  nothing but the outcomes, if at all"]
    if rows := stage_rows(comparison):
        lines += ["", "first stage that moved", *(f"  {model}: {words}" for model, words in rows)]
    if comparison.items:
        lines += ["", "which items", *_item_lines(comparison)]
    if metrics := metric_table(comparison, several=True):
        lines += ["", *aligned(metrics)]
    if comparison.index:
        lines += ["", *index_lines(comparison.index)][:-1]
    return "\n".join(map(sanitize, [*lines, "", f"reproduce: {command}"])) + "\n"


def to_json(comparison: Comparison, command: str) -> str:
    """Return the comparison as JSON with sorted keys: verdict, exit_code, headline, cells, findings, items, confusions, differences,
    stages, command; and index where `--index` was given.
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
            "confusions": [_entry(confusion) for confusion in comparison.confusions],
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
    for cell in comparison.cells:
        if cell.outcome != "pass":
            found.append((LEVELS[cell.outcome], f"clipbench {_word(cell)}, {cell.id}", "; ".join(cell.reasons)))
    moved = {f.model for f in comparison.stages if f.moved}
    stages = [f"{model}: {words}" for model, words in stage_rows(comparison) if model in moved]
    found += [("notice", "clipbench, first stage that moved", stage) for stage in stages]
    return "".join(f"::{level} title={_property(title)}::{_message(text)}\n" for level, title, text in found)


def to_pull_request(
    comparison: Comparison,
    command: str,
    gallery: Gallery | None = None,
    head: Run | None = None,
    most: int = LARGEST_COMMENT,
) -> str:
    """Return the comparison as GitHub-flavoured Markdown: verdict, what changed, which items, the command, the rest folded.

    All text of the runs is escaped. `gallery` knows captions, `head` its models' names; `most`: bytes, beyond which less is shown.
    """
    said, comma, losses = headline(comparison).partition(
        ", a significant loss"
    )  # of what passes: not in the largest letters
    blocks: list[Block] = [Heading(said, 2), *model_answers(comparison, head)]
    blocks += [Paragraph(f"{comma[2:].capitalize()}{losses}.")] if losses else []
    blocks += change_blocks(comparison, "the base", _has_several(comparison), level=3)
    blocks += item_blocks(comparison, gallery or Gallery([]), level=3)
    blocks += index_blocks(comparison.index)
    blocks += [Heading("Reproduce", 3), Code(command)]
    blocks += _folded(comparison)
    return to_markdown(blocks, most)


def _has_several(comparison: Comparison) -> bool:
    return len({v.key.model for v in comparison.verdicts if v.key.model not in ("", "-")}) > 1


def _difference_lines(comparison: Comparison) -> Iterator[str]:
    width = max((len(d.what) for d in comparison.differences), default=0)
    for d in comparison.differences:
        yield f"  {d.what:{width}}  {f'{d.base} -> {d.head}' if d.is_change else f'the same ({d.base})'}"


def _item_lines(comparison: Comparison) -> Iterator[str]:
    for c in comparison.confusions[:OPEN_CONFUSIONS]:
        yield f"  {name_of(c.key, '')}: {c.right} taken for {c.picked}: {c.before} -> {c.after} of {c.of}"
    if len(comparison.confusions) > OPEN_CONFUSIONS:
        yield f"  {OPEN_CONFUSIONS} of {len(comparison.confusions)} pairs shown: --format json has all"
    for (key, metric), changes in item_groups(comparison):
        listed = glance(changes)
        cut = f" ({len(listed)} of {len(changes)} shown: --format json has all)" if len(listed) < len(changes) else ""
        yield f"  {name_of(key, metric)}, {key.model}{cut}"
        for change in listed:
            margin = "" if change.margin_before is None else "margin "
            yield f"    {change.direction:6} {change.item}  {margin}{margin_text(change)}"
            if change.top_before:
                yield f"           before: {_top_text(change.top_before)}"
                yield f"           after:  {_top_text(change.top_after)}"


def _entry(about: Verdict | ItemChange | Confusion, *without: str) -> JsonObject:
    """A verdict, a changed item or a confusion as a JSON object."""
    entry = {name: value for name, value in dataclasses.asdict(about).items() if name not in ("key", *without)}
    return entry | about.key._asdict()


def _message(text: str) -> str:
    return sanitize(text).replace("%", "%25")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def _word(cell: Cell) -> str:
    return "accepted" if cell.is_accepted else cell.outcome


def _beside(cell: Cell) -> list[str]:
    """What stands under a cell's reasons: why it was accepted, or how to accept it."""
    if cell.is_accepted:
        return [f"accepted: {cell.accepted}"]
    return [f"to accept it: {cell.way_out}"] if cell.way_out else []


def _folded(comparison: Comparison) -> Iterator[Details]:
    if table := metric_table(comparison, _has_several(comparison)):
        yield Details(f"All {len(table.rows)} metrics", [table])
    if passed := [(_word(c), c.id, "; ".join(c.reasons)) for c in comparison.cells if c.outcome == "pass"]:
        yield Details(
            f"{len(passed)} that pass", [Heading("What passes", 3), Table(("verdict", "cell", "reason"), passed)]
        )


def _top_text(top: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in top) or "-"


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
