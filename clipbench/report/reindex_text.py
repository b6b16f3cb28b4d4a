"""The answer to "must I re-index?" as findings and as tables, for every format of `clipbench compare`."""

from collections.abc import Iterator, Sequence

from clipbench.judge.compare import Finding, Word
from clipbench.judge.reindex import BACKWARD, FRESH, KS, MIXED, TODAY, Answer, Reindex
from clipbench.report.document import Block, Heading, Paragraph, Table
from clipbench.result import Metric

VERDICTS: dict[Answer, Word] = {"no need": "pass", "re-index": "fail", "cannot tell": "inconclusive"}
MEANING = {
    TODAY: "today",
    MIXED: "new model, index kept",
    BACKWARD: "old model, fresh index",
    FRESH: "new model, fresh index",
}
CUTOFFS_HEADER = ("cut-off at today's", "score", "queries that pass it today", "then", "change")


def index_findings(answers: Sequence[Reindex]) -> list[Finding]:
    """Return one finding an answer (no need: pass, re-index: fail, cannot tell: inconclusive), and a note on cut-offs that break."""
    found = []
    for a in answers:
        found.append(Finding("index", VERDICTS[a.answer], "index", a.what, "-", f"{a.answer}: {a.reason}", n=a.queries))
        if a.cutoffs_word == "break":
            found.append(Finding("index", "note", "index", a.what, "-", cutoffs_text(a), n=a.queries))
    return found


def cutoffs_text(answer: Reindex) -> str:
    """Return what happens to fixed cut-offs on the best score, in words."""
    if not answer.cutoffs:
        return ""
    worst = max(answer.cutoffs, key=lambda c: abs(c.change.value))
    words = {"break": "break: set them anew", "hold": "hold", "cannot tell": "cannot be told: too few queries"}
    return (
        f"fixed cut-offs on the best score {words[answer.cutoffs_word]} ({answer.cutoffs_on}): {worst.score:.3f} lets "
        f"{worst.today:.3f} of the queries pass today, then {worst.new:.3f}"
    )


def searches_table(answer: Reindex) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Return (header, rows): a row for each search, with overlaps, recall and score quantiles; "-" where not measured."""
    header = (
        "queries on rows",
        "",
        f"overlap@{answer.k} with today",
        "with a fresh index",
        *(f"recall@{k}" for k in KS),
    )
    header = (*header, *(f"p{q * 100:g}" for q in answer.quantiles))
    rows = []
    for name, scores in answer.scores.items():
        recall = [_cell(answer.recall.get(name, {}).get(k)) for k in KS]
        overlaps = [_cell(answer.overlap_today.get(name)), _cell(answer.overlap_fresh.get(name))]
        rows.append((name, MEANING[name], *overlaps, *recall, *(f"{score:.3f}" for score in scores)))
    return header, rows


def cutoffs_table(answer: Reindex) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Return (header, rows): a row for each cut-off at a quantile of today's best scores."""
    rows = [
        (f"p{c.quantile * 100:g}", f"{c.score:.3f}", f"{c.today:.3f}", f"{c.new:.3f}", _interval(c.change, "+.3f"))
        for c in answer.cutoffs
    ]
    return CUTOFFS_HEADER, rows


def index_blocks(answers: Sequence[Reindex]) -> Iterator[Block]:
    """Yield the answers as blocks of a document: answer, reason, cut-offs, both tables; nothing where none was asked for."""
    for answer in answers:
        yield Heading(f"Must I re-index? {answer.answer.capitalize()}", 3)
        yield Paragraph(f"{answer.what}: {answer.reason}.")
        if answer.scores:
            yield Table(*searches_table(answer))
            yield Paragraph(f"{cutoffs_text(answer).capitalize()}.")
            yield Table(*cutoffs_table(answer))


def index_lines(answers: Sequence[Reindex]) -> Iterator[str]:
    """Yield the answers as lines of plain text."""
    for answer in answers:
        yield f"must I re-index? {answer.answer} ({answer.what})"
        yield f"  {answer.reason}"
        if answer.scores:
            yield from _aligned(*searches_table(answer))
            yield f"  {cutoffs_text(answer)}"
            yield from _aligned(*cutoffs_table(answer))
        yield ""


def _cell(found: Metric | None) -> str:
    return _interval(found, ".3f") if found else "-"


def _interval(metric: Metric, style: str) -> str:
    if metric.low is None or metric.high is None:
        return f"{metric.value:{style}}"
    return f"{metric.value:{style}} ({metric.low:{style}} to {metric.high:{style}})"


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    for row in [header, *rows]:
        yield "    " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
