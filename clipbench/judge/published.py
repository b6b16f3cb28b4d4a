"""Floors and ceilings derived from published values, where the run follows the published protocol; what differs elsewhere.

Data: fixtures/published/coco.toml and zero_shot.toml. A published value holds for one protocol. Where the run's is the same,
the value less (and plus) sampling error and the stated spread between public re-runs is enforced, with the arithmetic in the
reason; where it is not, the value is shown beside the measured one and nothing is enforced.
"""

import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from clipbench.judge.references import weights_of
from clipbench.paths import fixtures
from clipbench.result import Metric, Result, Verdict

FILES = ("coco.toml", "zero_shot.toml")
Z = 1.96
"""Two-sided 95 % of a normal distribution."""


@dataclass(frozen=True)
class PublishedTable:
    """Published values of one protocol: `values[model][metric]`, fractions; see the head of fixtures/published/coco.toml."""

    experiment: str
    weights: str
    source: str
    values: Mapping[str, Mapping[str, float]]
    dataset: str = ""
    items: int = 0
    least_items: int = 0
    spread: float = 0.0
    spread_source: str = ""
    requires: Mapping[str, str] = field(default_factory=dict)
    prompt_count: int = 0
    unenforced: str = ""


@dataclass(frozen=True)
class Shown:
    """A published value beside a measured one that it is not held to, and why."""

    metric: str
    published: float
    measured: Metric
    why: str
    source: str


@cache
def published_tables() -> tuple[PublishedTable, ...]:
    """Return every table of the published values."""
    texts = [(fixtures() / "published" / name).read_text(encoding="utf-8") for name in FILES]
    return tuple(PublishedTable(**row) for text in texts for row in tomllib.loads(text)["table"])


def published_verdicts(result: Result) -> Iterator[Verdict]:
    """Yield a floor (kind floor) and a ceiling (kind published) for each published value whose protocol the run follows.

    Floor and ceiling are the value -+ 1.96 sqrt(p (1 - p) / n) -+ spread. A value above the ceiling fails: leaked data,
    changed prompts or another split look like that, and no reproduction does.
    """
    for table, published in _speaking_of(result):
        if not differences(table, result):
            for metric, value in published.items():
                if metric in result.metrics:
                    yield from _held_to(result, table, metric, value)


def shown_only(result: Result) -> list[Shown]:
    """Return the published values that the result is not held to because something differs; [] for random weights."""
    found = []
    for table, published in () if result.model.is_random else _speaking_of(result):
        why = "; ".join(differences(table, result))
        measured = [(m, value) for m, value in published.items() if m in result.metrics and why]
        found += [Shown(m, value, result.metrics[m], why, table.source) for m, value in measured]
    return found


def differences(table: PublishedTable, result: Result) -> list[str]:
    """Return how the run's protocol differs from the published one, in words; [] when the value can be enforced."""
    protocol, n = result.protocol, result.dataset.n
    found = [table.unenforced] if table.unenforced else []
    for key, wanted in table.requires.items():
        got = str(protocol.get(key, "not stated"))
        if wanted not in got if key == "preprocessing" else wanted != got:
            found.append(f"{key} is {got!r}, published with {wanted!r}")
    prompts = protocol.get("prompts", ())
    count = 1 if isinstance(prompts, str) else len(prompts)
    if table.prompt_count and count != table.prompt_count:
        found.append(f"{count} prompt template(s), published with {table.prompt_count}")
    if table.items and not table.least_items <= n <= table.items:
        found.append(f"{n:,} items, published over {table.items:,} (enforced from {table.least_items:,})")
    return found


def sampling_n(result: Result, metric: str) -> float:
    """Return the number of independent outcomes behind a metric, for its sampling error.

    Captions of one image count as one; for a mean over classes it is classes^2 / sum(1 / items of a class), which gives the
    error of that mean when every class has the same rate.
    """
    if metric.startswith("image_retrieval"):
        return float(result.dataset.n)
    if metric == "mean_per_class_recall":
        sizes = [float(row.sum()) for row in result.arrays["confusion"] if row.sum() > 0]
        return len(sizes) ** 2 / sum(1 / size for size in sizes)
    return float(result.metrics[metric].n)


def _speaking_of(result: Result) -> Iterator[tuple[PublishedTable, Mapping[str, float]]]:
    """The tables about this experiment (and labelled folder), these weights and this model, with the model's values."""
    name, weights = result.experiment, weights_of(result.model)
    for table in published_tables():
        right_data = table.dataset in ("", result.dataset.name)
        if (table.experiment, table.weights) == (name, weights) and right_data and result.model.name in table.values:
            yield table, table.values[result.model.name]


def _held_to(result: Result, table: PublishedTable, metric: str, value: float) -> Iterator[Verdict]:
    found, n = result.metrics[metric].value, sampling_n(result, metric)
    error = Z * math.sqrt(value * (1 - value) / n)
    floor, ceiling = value - error - table.spread, value + error + table.spread
    because = f"(1.96 x sqrt({value:.4f} x {1 - value:.4f} / {n:,.0f}))"
    sum_of = f"published {value:.4f} {{0}} {error:.4f} {because} {{0}} {table.spread:.4f} ({table.spread_source})"
    at = f"{metric} is {found:.4f} at n={result.metrics[metric].n:,}"
    reason = f"{at}, the floor is {floor:.4f} = {sum_of.format('-')}"
    yield _verdict(metric, table, "floor", floor, found >= floor, reason)
    reason = f"{at}, published {value:.4f}; at most {ceiling:.4f} = {sum_of.format('+')}"
    if found > ceiling:
        reason = f"suspiciously above: leaked data, changed prompts or another split? {reason}"
    yield _verdict(metric, table, "published", value, found <= ceiling, reason)


def _verdict(metric: str, table: PublishedTable, kind: Any, expected: float, passed: bool, reason: str) -> Verdict:
    return Verdict(metric, table.source, kind, round(expected, 6), "pass" if passed else "fail", reason)
