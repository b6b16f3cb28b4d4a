"""What a comparison is held to: allowed drops, budgets and items that must pass, read from fixtures/tolerances.toml.

What is allowed goes by a metric's kind; a row that names metrics, or an experiment, stands before it and overrides it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from clipbench.errors import DataError, UsageError, closest
from clipbench.paths import fixtures, read_toml, strict_row
from clipbench.types import MetricSpec

T = TypeVar("T")


@dataclass(frozen=True)
class _Row:
    source: str
    kind: str = ""
    metrics: tuple[str, ...] = ()
    experiment: str = ""

    def covers(self, experiment: str, spec: MetricSpec) -> bool:
        """Is the row about this metric: by its name, else by its kind, in the experiment that it names, else in any?"""
        named = spec.name in self.metrics if self.metrics else spec.kind == self.kind
        return named and self.experiment in ("", experiment)


@dataclass(frozen=True)
class Declared(_Row):
    """Metrics of which it is asked whether the model is worse.

    `tolerance`: the drop of the mean that is allowed; `relative`: at most this share of base's value, which counts where hits are rare.
    """

    tolerance: float = math.nan
    relative: float = math.inf

    def allowed(self, base: float) -> float:
        """Return the drop that is allowed from this value of base's."""
        return min(self.tolerance, self.relative * base)


@dataclass(frozen=True)
class SpeedRule(_Row):
    """By what share of base's time or memory a metric may be worse.

    `allowed`: between one process a side, which is a note; `gated`: between several, by `--speed gate`; `tail` for p99, where a few
    calls speak.
    """

    allowed: float = math.nan
    gated: float = math.nan
    tail: float = math.nan


@dataclass(frozen=True)
class Budget:
    """Of one precision: by how much a cosine of the trace may move and count as the same, and the ceiling of what another batch may
    move a unit row by."""

    precision: str
    cosine: float
    ceiling: float
    source: str


@dataclass(frozen=True)
class Moves:
    """How far rows may move, as distances of unit rows.

    `repeat`: the same batch twice. `median`, `item`: what software, machine, threads and batches may move fp32 rows by. `noise`: at
    most so much is forgiven as noise of batches, or a noisy head would set its own bar. `plausible`: the median move that a numeric
    change explains. `far`: the median move from which on it is another space.
    """

    repeat: float
    median: float
    item: float
    noise: float
    plausible: float
    far: float
    source: str


@dataclass(frozen=True)
class Limits:
    """Limits on outcomes. `churn`: the share of items that may change under a numeric change. `gain`: more is too good to be true.

    `class_items`, `class_share`: a class is lost when at least so many items, and this share of it, are.
    """

    churn: float
    gain: float
    class_items: int
    class_share: float
    source: str


@dataclass(frozen=True)
class MustPass:
    """Items that fail alone: right in the base, wrong in the head. No `models`: every model."""

    experiment: str
    dataset: str
    metric: str
    items: tuple[str, ...]
    source: str
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cutoff:
    """A score from which on an application takes the best candidate of a query: a cosine. `score_in_base`: what base's was.

    `answers`: whose queries, by their name in a result (images; text_to_image, image_to_text). `tolerance`: the drop of precision, and
    of recall, that is allowed.
    """

    name: str
    experiment: str
    dataset: str
    score: float
    source: str
    answers: str = "images"
    tolerance: float = 0.01
    score_in_base: float | None = None


@dataclass(frozen=True)
class _Statistics:
    alpha: float
    alpha_fail: float
    source: str


@dataclass(frozen=True)
class Rules:
    """Everything that a comparison is held to.

    `alpha`, `alpha_fail`: one-sided error rates of a pass and of a failure. `overrides`: tolerances asked for by metric; "" is every
    declared metric's. `row_limit`: the cosine distance that no item's row may move beyond, where somebody asked for one.
    """

    alpha: float
    alpha_fail: float
    moves: Moves
    limits: Limits
    metrics: tuple[Declared, ...]
    speed: tuple[SpeedRule, ...]
    budgets: tuple[Budget, ...]
    must_pass: tuple[MustPass, ...]
    cutoffs: tuple[Cutoff, ...] = ()
    overrides: Mapping[str, float] = field(default_factory=dict)
    row_limit: float | None = None

    def declared(self, experiment: str, spec: MetricSpec) -> Declared | None:
        """Return what is declared of a metric, with the tolerance that was asked for; None where nothing is.

        A description ("neither" is better) is never asked. A tolerance asked for by name declares the metric in every experiment, and
        is taken as it is.
        """
        found = next((row for row in self.metrics if row.covers(experiment, spec)), None)
        found = None if spec.better == "neither" else found
        asked = self.overrides.get(spec.name, self.overrides.get("") if found else None)
        if found is None and asked is not None:
            return Declared("--tolerance", "", (spec.name,), experiment, asked, math.inf)
        return found if asked is None or found is None else replace(found, tolerance=asked, relative=math.inf)

    def speed_rule(self, spec: MetricSpec) -> SpeedRule | None:
        """Return the rule of a speed metric, with the share that was asked for; None for one that is shown only."""
        found = next((row for row in self.speed if row.covers("", spec)), None)
        if found is None or spec.name not in self.overrides:
            return found
        asked = self.overrides[spec.name]
        return replace(found, allowed=asked, gated=asked)

    def ceiling(self, precision: str) -> float:
        """Return what another batch may move a unit row by; the widest of all for a precision that no row names."""
        rows = {row.precision: row.ceiling for row in self.budgets}
        return rows.get(precision, max(rows.values()))

    def budget(self, *precisions: str) -> Budget:
        """Return the finest budget of these precisions; one that no row names is held to the finest of all."""
        rows = {row.precision: row for row in self.budgets}
        finest = min(self.budgets, key=lambda row: row.cosine)
        return min((rows.get(p, finest) for p in precisions), key=lambda row: row.cosine)

    def names(self) -> list[str]:
        """Return every metric that a row names."""
        return [name for row in (*self.metrics, *self.speed) for name in row.metrics]


def read_rules(path: Path | None = None) -> Rules:
    """Return the rules in a TOML file, by default fixtures/tolerances.toml.

    Raises: DataUnavailableError for a file that is absent; DataError for one that is no TOML, an unknown or missing key, or a
    number out of range.
    """
    path = path or fixtures() / "tolerances.toml"
    return _rules_of(read_toml(path), str(path))


def rules_over(own: Mapping[str, Any], where: str) -> Rules:
    """Return the rules of fixtures/tolerances.toml with tables of somebody's own over them: keys replace keys, rows stand before rows.

    A budget replaces that of its precision. `where` says in messages whose tables they are. Raises: DataError as `read_rules`.
    """
    tables = read_toml(fixtures() / "tolerances.toml")
    source = {"source": where}
    for name, table in own.items():
        shipped = tables.get(name, [])
        is_row = isinstance(shipped, dict)
        if not (
            isinstance(table, dict) if is_row else isinstance(table, list) and all(isinstance(r, dict) for r in table)
        ):
            raise DataError(
                f"{where}: {name} is {table!r:.60}; expected {f'[{name}]' if is_row else f'rows of [[{name}]]'}"
            )
        if is_row:
            tables[name] = shipped | table
        else:
            taken = [row.get("precision") for row in table if name == "budget"]
            kept = [row for row in shipped if not taken or row["precision"] not in taken]
            tables[name] = [*(source | row for row in table), *kept]
    return _rules_of(tables, where)


def _rules_of(tables: Mapping[str, Any], path: str) -> Rules:
    known = ("statistics", "rows", "outcomes", "metric", "speed", "budget", "must_pass", "cutoff")
    if (unknown := next((key for key in tables if key not in known), None)) is not None:
        raise DataError(f"{path}: unknown key {unknown!r}; did you mean {closest(unknown, known) or ', '.join(known)}?")
    statistics = strict_row(f"{path}: [statistics]", tables.get("statistics", {}), _Statistics)
    rules = Rules(
        alpha=statistics.alpha,
        alpha_fail=statistics.alpha_fail,
        moves=strict_row(f"{path}: [rows]", tables.get("rows", {}), Moves),
        limits=strict_row(f"{path}: [outcomes]", tables.get("outcomes", {}), Limits),
        metrics=_rows(path, tables, "metric", Declared),
        speed=_rows(path, tables, "speed", SpeedRule),
        budgets=_rows(path, tables, "budget", Budget),
        must_pass=_rows(path, tables, "must_pass", MustPass),
        cutoffs=_rows(path, tables, "cutoff", Cutoff),
    )
    if not rules.budgets:
        raise DataError(f"{path} has no [[budget]]; expected one for fp32 at least")
    for row in (*rules.metrics, *rules.speed):
        if bool(row.kind) == bool(row.metrics):
            raise DataError(
                f"{path}: a row has kind = {row.kind!r} and metrics = {list(row.metrics)}; expected one of them"
            )
    for cutoff in rules.cutoffs:
        scores = (cutoff.score, cutoff.score if cutoff.score_in_base is None else cutoff.score_in_base)
        if not all(type(score) in (int, float) and -1 <= score <= 1 for score in scores) or cutoff.tolerance == 0:
            raise DataError(f"{path}: [[cutoff]] {cutoff.name}: expected cosines from -1 to 1, and a tolerance above 0")
    for name, value in _fractions(rules):
        if not 0 <= value <= 1:
            raise DataError(f"{path}: {name} is {value!r}; expected a fraction from 0 to 1")
    check_alpha(rules.alpha, f"{path}: alpha")
    check_alpha(rules.alpha_fail, f"{path}: alpha_fail")
    return rules


def with_options(rules: Rules, tolerances: Sequence[str], alpha: float | None, known: Sequence[str]) -> Rules:
    """Return the rules with `--tolerance` (METRIC=VALUE or VALUE, several allowed) and `--alpha` put in.

    `known`: the metrics of the two runs. Raises: UsageError for a value out of range or a metric that nobody knows.
    """
    overrides = dict(rules.overrides)
    for text in tolerances:
        name, separator, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 <= value < 1 or (separator and not name):
            raise UsageError(f"--tolerance {text}: expected METRIC=VALUE or VALUE, the value a fraction such as 0.01")
        if name and name not in known and name not in rules.names():
            likely = closest(name, dict.fromkeys((*known, *rules.names()))) or ", ".join(sorted(known))
            raise UsageError(f"--tolerance {text}: neither run has the metric {name!r}; did you mean {likely}?")
        overrides[name] = value
    if alpha is not None:
        check_alpha(alpha, "--alpha")
    return replace(rules, overrides=overrides, alpha=rules.alpha if alpha is None else alpha)


def check_alpha(alpha: float, where: str) -> None:
    """Raises: UsageError for an error rate outside 0..0.5."""
    if not 0 < alpha < 0.5:
        raise UsageError(f"{where} is {alpha}; expected a fraction between 0 and 0.5, such as 0.05")


def _rows(path: str, tables: Mapping[str, Any], table: str, kind: type[T]) -> tuple[T, ...]:
    where = f"{path}: [[{table}]] number"
    return tuple(strict_row(f"{where} {k}", row, kind) for k, row in enumerate(tables.get(table, ()), 1))


def _fractions(rules: Rules) -> list[tuple[str, float]]:
    return [
        *(
            (f"{name} of [rows]", getattr(rules.moves, name))
            for name in ("repeat", "median", "item", "noise", "plausible", "far")
        ),
        *((f"{name} of [outcomes]", getattr(rules.limits, name)) for name in ("churn", "gain", "class_share")),
        *((f"tolerance of {row.kind or row.metrics[0]}", row.tolerance) for row in rules.metrics),
        *((f"tolerance of [[cutoff]] {row.name}", row.tolerance) for row in rules.cutoffs),
        *((f"allowed of {row.kind or row.metrics[0]}", row.allowed) for row in rules.speed),
        *((f"gated of {row.kind or row.metrics[0]}", row.gated) for row in rules.speed),
        *((f"cosine of {row.precision}", row.cosine) for row in rules.budgets),
        *((f"ceiling of {row.precision}", row.ceiling) for row in rules.budgets),
    ]
