"""A report as a list of blocks, its Markdown and HTML, and the words that all reports share.

Text from data sets and files is untrusted: every rendering sanitizes all of it, and escapes what is markup to it.
"""

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clipbench.errors import sanitize
from clipbench.types import Score

# An underscore inside a word (a metric's name) is plain text in GitHub's Markdown; every other special character is escaped.
_MARKDOWN = re.compile(r"([\\`*{}\[\]<>#|~!&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_AUTOLINK = re.compile(r"@(?=\w)|:(?=//)|\bwww(?=\.)", re.IGNORECASE)
_WORD_JOINER = "\u2060"  # invisible, and no letter: breaks what GitHub would link of itself
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}
td,th{border:1px solid #d0d7de;padding:.3rem .6rem;text-align:left;vertical-align:top}
th{background:#f6f8fa}td.pass{background:#dafbe1}td.fail{background:#ffd7d5}td.inconclusive{background:#fff1c2}
img{max-width:100%;border:1px solid #d0d7de}figure{margin:1.5rem 0}figcaption{color:#57606a}
"""


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
class Table:
    """A table; every row has as many cells as the header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A figure by its path relative to the summary."""

    path: str
    caption: str


@dataclass(frozen=True)
class Details:
    """Blocks folded under one line, which opens them."""

    title: str
    blocks: "Sequence[Block]"


Block = Heading | Paragraph | Table | Picture
MarkdownBlock = Block | Code | Details
"""What a comparison has: it is never rendered to HTML."""


def to_markdown(blocks: Sequence[MarkdownBlock]) -> str:
    """Return the blocks as GitHub-flavoured Markdown; all text is escaped, so no data can make a link, image or tag."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def fitted(blocks: Sequence[MarkdownBlock], largest_bytes: int) -> list[MarkdownBlock]:
    """Return the blocks whose Markdown fits into so many bytes: the first ones, of a table its first rows. What was cut stands second.

    Source: GitHub drops a step summary beyond 1,024 kB, and takes 65,536 characters of a comment.
    """
    sizes = [len(_markdown(block).encode()) + 2 for block in blocks]
    if sum(sizes) <= largest_bytes:
        return list(blocks)
    room = largest_bytes - 1000  # what was cut is said in less
    kept: list[MarkdownBlock] = []
    cut: list[str] = []
    title = ""
    for block, size in zip(blocks, sizes, strict=True):
        title = block.text if isinstance(block, Heading) else block.title if isinstance(block, Details) else title
        if size > room and isinstance(block, Table) and (rows := int(len(block.rows) * 0.9 * room / size)):
            cut.append(f"{len(block.rows) - rows:,} of {len(block.rows):,} rows of {title}")
            block = Table(block.header, block.rows[:rows])  # what is left of it
            size = len(_markdown(block).encode()) + 2
        if size <= room:
            kept.append(block)
            room -= size
        else:
            cut.append(title)
    said = ", ".join(dict.fromkeys(cut))
    whole = f"Cut to {largest_bytes:,} bytes; not shown: {said[:600]}{'...' if len(said) > 600 else ''}. The run file has all of it."
    return [*kept[:1], Paragraph(whole), *kept[1:]]


def to_html(blocks: Sequence[Block], title: str) -> str:
    """Return the blocks as one self-contained page without scripts; all text is escaped."""
    body = "\n".join(_html(block) for block in blocks)
    policy = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_plain(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _escaped(text: str) -> str:
    """Text that stays text: no markup, and no address or @name that GitHub makes a link or a notification of."""
    escaped = _MARKDOWN.sub(r"\\\1", " ".join(sanitize(text).split()))
    return _AUTOLINK.sub(lambda found: f"{found[0]}{_WORD_JOINER}", escaped)


def _plain(text: str) -> str:
    """Text that is no markup of a page."""
    return html.escape(sanitize(text))


def _markdown(block: MarkdownBlock) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_escaped(text)}"
        case Paragraph(text):
            return _escaped(text)
        case Code(text):
            return f"    {sanitize(text)}"
        case Picture(path, caption):
            return f"![{_escaped(caption)}](<{path}>)"
        case Details(title, blocks):
            return f"<details>\n<summary>{_plain(title)}</summary>\n\n{to_markdown(blocks)}\n</details>"
        case Table(header, rows):
            lines = [header, ["---"] * len(header), *rows]
            return "\n".join(
                "| " + " | ".join(cell if cell == "---" else _escaped(cell) for cell in line) + " |" for line in lines
            )


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_plain(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_plain(text)}</p>"
        case Picture(path, caption):
            safe = _plain(path)
            return (
                f'<figure><img src="{safe}" alt="{_plain(caption)}"><figcaption>{_plain(caption)}</figcaption></figure>'
            )
        case Table(header, rows):
            head = "".join(f"<th>{_plain(cell)}</th>" for cell in header)
            lines = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
            return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _cell(cell: str) -> str:
    kind = f' class="{cell}"' if cell in ("pass", "fail", "inconclusive") else ""
    return f"<td{kind}>{_plain(cell)}</td>"


def aligned(table: Table, indent: int = 2) -> Iterator[str]:
    """Yield a table as lines of text, each column as wide as its widest cell."""
    rows = [[sanitize(cell) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(table.header))]
    for row in rows:
        cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield " " * indent + cells.rstrip()


def value_text(score: Score) -> str:
    """Return a score as people read it: with its interval where it has one, counts with separators, times with units."""
    value, spec = score.value, score.spec
    if spec.kind == "bytes":
        return f"{value / 2**20:,.0f} MiB"
    if spec.kind == "seconds":
        return f"{value * 1e3:,.2f} ms"
    if spec.kind == "per_second":
        return f"{value:,.1f} {spec.unit or '/s'}"
    if score.interval is not None:
        low, high = score.interval
        text = f"{value:.3f} [{low:.3f}, {high:.3f}]"
    elif float(value).is_integer() and (spec.kind == "count" or abs(value) > 1):
        text = f"{value:,.0f}"
    else:
        text = f"{value:.4f}"
    return f"{text} {spec.unit}".rstrip()
