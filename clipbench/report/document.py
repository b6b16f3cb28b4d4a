"""A report as a list of blocks, its Markdown, and the words that all reports share. `page` makes HTML of the same blocks.

Text from data sets and files is untrusted: every rendering sanitizes all of it, and escapes what is markup to it.
"""

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clipbench.errors import sanitize
from clipbench.types import MetricSpec, Outcome, Score

# An underscore inside a word (a metric's name) is plain text in GitHub's Markdown; every other special character is escaped.
_MARKDOWN = re.compile(r"([\\`*{}\[\]<>#|~!&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_AUTOLINK = re.compile(r"@(?=\w)|:(?=//)|\bwww(?=\.)", re.IGNORECASE)
_WORD_JOINER = "\u2060"  # invisible, and no letter: breaks what GitHub would link of itself


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 to 3."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Code:
    """A command to copy."""

    text: str


@dataclass(frozen=True)
class Thumb:
    """A small picture as a data URI, "" where it is not at hand; `text` stands in its place, and beside it for who cannot see it."""

    source: str
    text: str
    is_hit: bool = False


@dataclass(frozen=True)
class Bar:
    """A value with its interval on a line from `start` to `end`; `before`: base's value."""

    value: float
    low: float
    high: float
    before: float | None = None
    start: float = 0.0
    end: float = 1.0

    def x(self, value: float) -> float:
        """Return where a value stands, in hundredths of the line."""
        share = (value - self.start) / (self.end - self.start) if self.end > self.start else 0.0
        return round(100 * min(1.0, max(0.0, share)), 2)


@dataclass(frozen=True)
class Shown:
    """A cell with more than text: small pictures, or a bar. Markdown and the terminal have the text alone."""

    text: str
    thumbs: tuple[Thumb, ...] = ()
    bar: Bar | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """A table; every row has as many cells as the header."""

    header: Sequence[str]
    rows: Sequence[Sequence["str | Shown"]]


@dataclass(frozen=True)
class Picture:
    """A figure by its path relative to the summary. Only Markdown has it: a page draws its own."""

    path: str
    caption: str


@dataclass(frozen=True)
class Answer:
    """What a reader wants to know first, of one model: may it be shipped, why, and what to do next. `outcome` picks the badge."""

    about: str
    outcome: Outcome
    word: str
    reason: str
    then: str = ""


@dataclass(frozen=True)
class GridCell:
    """One number of a grid. `level`: its colour, 0 to 9, or -5 to 5 where a grid is of differences. `marks`: "row", "column" where it is
    the largest of its row or column; `is_hit`: of a right pair. `name`: the pair in words.
    """

    text: str
    level: int
    name: str
    marks: tuple[str, ...] = ()
    is_hit: bool = False


@dataclass(frozen=True)
class Grid:
    """A matrix to look at, with pictures at its edges; only a page has it."""

    title: str
    rows: Sequence[Shown]
    columns: Sequence[Shown]
    cells: Sequence[Sequence[GridCell]]
    note: str = ""
    is_difference: bool = False


@dataclass(frozen=True)
class Line:
    """One series of a chart: a value at each place, None where there is none, with its interval where it has one."""

    name: str
    values: Sequence[float | None]
    intervals: Sequence[tuple[float, float] | None] = ()


@dataclass(frozen=True)
class Chart:
    """Lines over named places, or (`is_bars`) counts; only a page has it. `limit`: a level to be held, drawn across."""

    title: str
    places: Sequence[str]
    lines: Sequence[Line]
    note: str = ""
    limit: float | None = None
    is_bars: bool = False


@dataclass(frozen=True)
class Details:
    """Blocks folded under one line, which opens them."""

    title: str
    blocks: "Sequence[Block]"


Block = Heading | Paragraph | Table | Picture | Code | Answer | Grid | Chart | Details


def to_markdown(blocks: Sequence[Block], most: int | None = None) -> str:
    """Return the blocks as GitHub-flavoured Markdown; all text is escaped, so no data can make a link, image or tag.

    `most`: characters; what goes beyond is left out, rows of a table first, and it is said how much.
    """
    if most is None:
        return "\n\n".join(text for block in blocks if (text := _markdown(block))) + "\n"
    written, left, room = [], 0, most - len(LEFT_OUT) - 20
    for block in blocks:
        text = _markdown(block)
        if len(text.encode()) > room and not left:
            text = _markdown(cut) if (cut := _within(block, room)) else ""
            left += not text
        elif left or len(text.encode()) > room:
            left, text = left + bool(text), ""
        if text:
            written.append(text)
            room -= len(text.encode()) + 2
    return "\n\n".join([*written, *([LEFT_OUT.format(left)] if left else [])]) + "\n"


LEFT_OUT = "{} more parts are left out here for their length: summary.html has them."


def _within(block: Block, room: int) -> Block | None:
    """As much of a table, or of what is folded, as there is room for; None where that is nothing."""
    match block:
        case Table(header, rows):
            few = len(rows)
            while few and len(_markdown(Table(header, rows[:few])).encode()) + 60 > room:
                few = few * 3 // 4
            return Details(f"{few} of {len(rows)} rows", [Table(header, rows[:few])]) if few else None
        case Details(title, blocks):
            kept: list[Block] = []
            for inner in blocks:
                over = len(_markdown(Details(title, [*kept, inner])).encode()) > room
                part = _within(inner, room - len(_markdown(Details(title, kept)).encode()) - 40) if over else inner
                if part is None:
                    break
                kept.append(part)
            return Details(title, kept) if kept else None
    return None


def _escaped(text: str) -> str:
    """Text that stays text: no markup, and no address or @name that GitHub makes a link or a notification of."""
    escaped = _MARKDOWN.sub(r"\\\1", " ".join(sanitize(text).split()))
    return _AUTOLINK.sub(lambda found: f"{found[0]}{_WORD_JOINER}", escaped)


def _plain(text: str) -> str:
    """Text that is no markup of a page."""
    return html.escape(sanitize(text))


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_escaped(text)}"
        case Paragraph(text):
            return _escaped(text)
        case Code(text):
            return f"    {sanitize(text)}"
        case Picture(path, caption):
            return f"![{_escaped(caption)}](<{path}>)"
        case Answer(about, _, word, reason, then):
            said = f"**{_escaped(word)}: {_escaped(about)}.** {_escaped(reason)}"
            return said + (f"\n\nNext: {_escaped(then)}." if then else "")
        case Grid() | Chart():
            return ""
        case Details(title, blocks):
            return f"<details>\n<summary>{_plain(title)}</summary>\n\n{to_markdown(blocks)}\n</details>"
        case Table(header, rows):
            written = [[_escaped(str(cell)) for cell in line] for line in (header, *rows)]
            return "\n".join(f"| {' | '.join(line)} |" for line in (written[0], ["---"] * len(header), *written[1:]))


def aligned(table: Table, indent: int = 2) -> Iterator[str]:
    """Yield a table as lines of text, each column as wide as its widest cell."""
    rows = [[sanitize(str(cell)) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(table.header))]
    for row in rows:
        cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield " " * indent + cells.rstrip()


def with_unit(spec: MetricSpec, value: float) -> str:
    """Return a size, a time or a rate a second in the unit that people read; "" for what has none of these."""
    if spec.kind == "bytes":
        return f"{value / 2**20:,.0f} MiB"
    if spec.kind == "seconds":
        return f"{value * 1e3:,.2f} ms"
    return f"{value:,.1f} {spec.unit or '/s'}" if spec.kind == "per_second" else ""


def value_text(score: Score) -> str:
    """Return a score as people read it: with its interval where it has one, counts with separators, times with units."""
    value, spec = score.value, score.spec
    if text := with_unit(spec, value):
        return text
    if score.interval is not None:
        low, high = score.interval
        text = f"{value:.3f} [{low:.3f}, {high:.3f}]"
    elif float(value).is_integer() and (spec.kind == "count" or abs(value) > 1):
        text = f"{value:,.0f}"
    else:
        text = f"{value:.4f}"
    return f"{text} {spec.unit}".rstrip()
