"""The words that all formats of a comparison share: headline, lines, table rows. Text of the runs is untrusted and made plain."""

import re
from collections.abc import Sequence

from clipbench.judge.compare import Comparison, Finding, ItemChange
from clipbench.judge.probe_compare import sentence
from clipbench.report.summary import value_text
from clipbench.result import Metric

VERDICTS = {"pass": "PASS", "fail": "FAIL", "inconclusive": "CANNOT TELL"}
WORDS = {"fail": "fail", "inconclusive": "cannot tell", "note": "note", "pass": "pass"}
ROW_KINDS = ("in general", "identical", "speed", "shown", "not comparable")
METRICS_HEADER = (
    "model",
    "experiment",
    "metric",
    "base",
    "head",
    "change",
    "95 % interval",
    "lost",
    "gained",
    "verdict",
)
STATES = ("same", "agrees", "changed", "not comparable")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]+")


def plain(text: str) -> str:
    """Return the text in one line without control characters: nothing in a run can steer a terminal or start a line."""
    return _CONTROL.sub(" ", text)


def headline(comparison: Comparison) -> str:
    """Return the verdict and the counts behind it. What nobody could judge is never called a pass."""
    counts = f"{comparison.count('fail')} fail, {comparison.count('inconclusive')} cannot tell, {comparison.count('pass')} pass"
    if not {"fail", "inconclusive", "pass"} & {f.verdict for f in comparison.findings}:
        counts = "nothing was compared"
    return f"{VERDICTS[comparison.verdict]}: {counts}"


def where(finding: Finding | ItemChange) -> str:
    """Return which metric of which experiment, model and data set it is about."""
    items = "" if finding.dataset in ("", "-", "none", finding.experiment) else f" on {finding.dataset}"
    metric = f", {finding.metric}" if finding.metric else ""
    return plain(f"{finding.experiment} of {finding.model}{items}{metric}")


def pressing(comparison: Comparison) -> list[Finding]:
    """Return the findings that a reader must see: failures, what is undecided, notes other than plain values."""
    return [f for f in comparison.findings if f.verdict != "pass" and not _is_value(f)]


def passes(comparison: Comparison) -> list[Finding]:
    """Return what passed."""
    return comparison.of("pass")


def reason_of(finding: Finding) -> str:
    """Return a finding's reason, with both values where it is about a metric."""
    change = f"{_value(finding, finding.base)} -> {_value(finding, finding.head)}: " if _has_values(finding) else ""
    return plain(f"{change}{finding.reason}")


def metric_rows(comparison: Comparison) -> list[Sequence[str]]:
    """Return a row for each metric of both runs, under `METRICS_HEADER`."""
    rows = []
    for f in comparison.findings:
        if f.kind in ROW_KINDS and _has_values(f) and f.base is not None and f.head is not None:
            verdict = f.verdict if f.verdict != "note" else _shown(f)
            flips = ["-" if count is None else f"{count:,}" for count in (f.lost, f.gained)]
            interval = "-" if f.interval is None else f"{f.interval[0]:+.4f} to {f.interval[1]:+.4f}"
            values = (_value(f, f.base), _value(f, f.head), _change(f.base, f.head), interval)
            rows.append([plain(cell) for cell in (f.model, f.experiment, f.metric, *values, *flips, verdict)])
    return sorted(rows, key=lambda row: (row[0], row[1], row[2]))


def items_worst_first(comparison: Comparison) -> list[ItemChange]:
    """Return the changed items: of metrics that failed, of results that failed, of undecided ones, the rest; losses as they stand."""
    results: dict[tuple[str, str, str], set[str]] = {}
    failed = set()
    for f in comparison.findings:
        results.setdefault((f.experiment, f.model, f.dataset), set()).add(f.verdict)
        if f.verdict == "fail":
            failed.add((f.experiment, f.model, f.dataset, f.metric))

    def rank(change: ItemChange) -> int:
        key = (change.experiment, change.model, change.dataset)
        words = results.get(key, set())
        return 0 if (*key, change.metric) in failed else 1 if "fail" in words else 2 if "inconclusive" in words else 3

    return sorted(comparison.items, key=rank)


def items_at_a_glance(comparison: Comparison, limit: int) -> list[ItemChange]:
    """Return up to `limit` changed items, worst first, of each metric no more than three losses and two gains."""
    seen: dict[tuple[str, str, str, str, str], int] = {}
    chosen = []
    for change in items_worst_first(comparison):
        key = (change.experiment, change.model, change.dataset, change.metric, change.direction)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= (3 if change.direction == "lost" else 2):
            chosen.append(change)
    return chosen[:limit]


def margin_text(change: ItemChange) -> str:
    """Return how an item moved: its margin where it is known, else its outcome."""
    if change.margin_before is None or change.margin_after is None:
        return f"{change.before:g} -> {change.after:g}"
    return f"margin {change.margin_before:+.4f} -> {change.margin_after:+.4f}"


def top_text(top: Sequence[tuple[str, float]]) -> str:
    """Return the five best candidates with their cosines in one line, "-" where none are known."""
    return plain(", ".join(f"{name} {value:.3f}" for name, value in top)) or "-"


def stage_rows(comparison: Comparison) -> list[tuple[str, str]]:
    """Return (model, which stage moved first, by how much, and which did not) for each model that has a probe."""
    models = dict.fromkeys(f.model for f in comparison.stages)
    return [(plain(model), plain(sentence(comparison.stages, model))) for model in models]


def _value(finding: Finding, value: float | None) -> str:
    return "absent" if value is None else value_text(finding.metric, Metric(value, finding.n))


def _change(base: float, head: float) -> str:
    if base == head:
        return "0"
    small = max(abs(base), abs(head)) <= 1
    return f"{head - base:+.2g}" if small or base == 0 else f"{(head - base) / base:+.1%}"


def _shown(finding: Finding) -> str:
    return finding.reason if finding.reason in STATES else finding.kind


def _has_values(finding: Finding) -> bool:
    return bool(finding.metric) and (finding.base is not None or finding.head is not None)


def _is_value(finding: Finding) -> bool:
    return finding.verdict == "note" and (
        finding.kind == "shown" or (finding.kind == "not comparable" and bool(finding.metric))
    )
