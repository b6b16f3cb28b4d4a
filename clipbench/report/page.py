"""A report as one page: a file that needs no other, asks the network for nothing, and runs no script but its own.

Jinja2 escapes whatever is put into the template, after `sanitize`. The policy names the page's own style and script by their hashes, so
that nothing else could take effect even if it got in.
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipbench.errors import sanitize
from clipbench.report.document import Block, Chart

if TYPE_CHECKING:
    from jinja2 import Template

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640.0, 240.0, 56.0, 16.0, 12.0, 30.0
"""Of a chart, and what stands around its area, in units of its view box."""
MOST_PLACES_NAMED = 12
BADGES = {"pass": "✔", "fail": "✖", "inconclusive": "?", "note": "–", "accepted": "✔"}
"""A shape beside each word: colour alone says nothing to some, and nothing on paper."""
KINDS = {"lost": "fail", "gained": "pass", "moved": "note"}


def to_html(blocks: Sequence[Block], title: str) -> str:
    """Return the blocks as one self-contained page; all text is sanitized and escaped, so no data can make a tag."""
    style, script = (_own(name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; "
        "form-action 'none'"
    )
    return _template().render(blocks=list(blocks), title=title, policy=policy, style=style, script=script)


@cache
def _own(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


@cache
def _template() -> "Template":
    from jinja2 import Environment
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return sanitize(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(autoescape=True, finalize=shown, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"drawn": drawn, "badges": BADGES, "kinds": KINDS}
    environment.filters |= {"kind": lambda block: type(block).__name__, "own": lambda text: Markup(text)}  # noqa: S704  # our own files
    return environment.from_string(_own("page.html"))


@dataclass(frozen=True)
class Drawn:
    """A chart in the units of its view box."""

    grid: Sequence[tuple[float, str]]
    places: Sequence[tuple[float, str]]
    lines: Sequence[tuple[str, str, Sequence[tuple[float, float, float, float, str]]]]
    bars: Sequence[tuple[float, float, float, float, str]]
    limit: float | None


def drawn(chart: Chart) -> Drawn:
    """Return where everything of a chart stands: `lines` are (name, path, marks), a mark (x, y, low y, high y, words)."""
    known = [v for line in chart.lines for v in line.values if v is not None and math.isfinite(v)]
    ends = [end for line in chart.lines for pair in line.intervals if pair for end in pair if math.isfinite(end)]
    found = [*known, *ends, *([chart.limit] if chart.limit is not None else [])] or [0.0]
    low, high = (0.0, max(found) or 1.0) if chart.is_bars else (min(found), max(found))
    if not chart.is_bars:
        room = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
        low, high = low - room, high + room
        low, high = (max(0.0, low), min(1.0, high)) if min(found) >= 0 and max(found) <= 1 else (low, high)
    ticks = _ticks(low, high)
    n = max(1, len(chart.places))

    def x(k: float) -> float:
        return round(LEFT + (k + 0.5) * (WIDTH - LEFT - RIGHT) / n, 1)

    def y(value: float) -> float:
        share = (value - low) / (high - low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP), 1)

    every = -(-n // MOST_PLACES_NAMED)
    places = [(x(k), name) for k, name in enumerate(chart.places) if k % every == 0]
    grid = [(y(tick), f"{tick:,.6g}") for tick in ticks]
    limit = None if chart.limit is None else y(chart.limit)
    if chart.is_bars:
        width = round((WIDTH - LEFT - RIGHT) / n * 0.9, 1)
        heights = [(k, v or 0.0) for k, v in enumerate(chart.lines[0].values)]
        bars = [
            (round(x(k) - width / 2, 1), y(v), width, round(y(0) - y(v), 1), f"{chart.places[k]}: {v:g}")
            for k, v in heights
        ]
        return Drawn(grid, places, [], bars, limit)
    lines = []
    for line in chart.lines:
        marks = []
        for k, value in enumerate(line.values):
            if value is None or not math.isfinite(value):
                continue
            pair = line.intervals[k] if k < len(line.intervals) else None
            words = f"{line.name}, {chart.places[k]}: {value:,.4g}" + (
                f" ({pair[0]:,.4g} to {pair[1]:,.4g})" if pair else ""
            )
            ends_of = pair or (value, value)
            marks.append((x(k), y(value), y(ends_of[0]), y(ends_of[1]), words))
        path = " ".join(f"{'L' if k else 'M'}{mx} {my}" for k, (mx, my, *_) in enumerate(marks))
        lines.append((line.name, path, marks))
    return Drawn(grid, places, lines, [], limit)


def _ticks(low: float, high: float) -> list[float]:
    """Up to six round numbers between two, the second of which is larger."""
    raw = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * k for k in (1, 2, 5, 10) if size * k >= raw)
    first = math.ceil(low / step)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]
