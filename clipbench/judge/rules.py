"""What a comparison is held to: declared metrics, budgets and items that must pass, read from fixtures/tolerances.toml."""

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from clipbench.errors import DataError, UsageError, closest
from clipbench.paths import fixtures

T = TypeVar("T")

_TYPES: Mapping[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number", lambda value: type(value) is int),
    str: ("a text", lambda value: isinstance(value, str)),
    Sequence[str]: (
        "a list of texts",
        lambda value: isinstance(value, list) and all(isinstance(i, str) for i in value),
    ),
}
"""What a row's values must be; fractions and words to choose from are checked with their range, in `read_rules`."""


@dataclass(frozen=True)
class Declared:
    """A metric of which it is asked whether the model is worse in general.

    `tolerance`: the drop of the mean that is allowed. `minimum_n`: outcomes from which on it is asked.
    """

    experiment: str
    metrics: Sequence[str]
    tolerance: float
    minimum_n: int
    source: str


@dataclass(frozen=True)
class SpeedRule:
    """By what share of base's value a metric may be worse between processes; base's spread widens it up to `widest`."""

    metrics: Sequence[str]
    better: Literal["higher", "lower"]
    allowed: float
    widest: float
    source: str


@dataclass(frozen=True)
class Budget:
    """How far a cosine may move, and which share of outcomes may, before rows count as changed."""

    precision: str
    cosine: float
    flips: float
    source: str


@dataclass(frozen=True)
class MustPass:
    """Items that fail alone: right in the base, wrong in the head. No `models`: every model."""

    experiment: str
    dataset: str
    metric: str
    items: Sequence[str]
    source: str
    models: Sequence[str] = ()


@dataclass(frozen=True)
class Rules:
    """Everything that a comparison is held to. `overrides`: tolerances asked for by metric; "" is every declared metric's."""

    alpha: float
    suspicious_gain: float
    metrics: tuple[Declared, ...]
    speed: tuple[SpeedRule, ...]
    budgets: tuple[Budget, ...]
    must_pass: tuple[MustPass, ...]
    overrides: Mapping[str, float] = field(default_factory=dict)

    def declared(self, experiment: str, metric: str) -> Declared | None:
        """Return what is declared of a metric, with the tolerance that was asked for; None where nothing is.

        A tolerance asked for by name declares the metric in every experiment, from the number of outcomes on that exclude
        it when none of them flips.
        """
        found = next((d for d in self.metrics if metric in d.metrics and d.experiment == experiment), None)
        asked = self.overrides.get(metric, self.overrides.get("") if found else None)
        if found is None and asked is not None:
            return Declared(experiment, (metric,), asked, fewest(asked, self.alpha), "--tolerance")
        return found if asked is None or found is None else replace(found, tolerance=asked)

    def speed_rule(self, metric: str) -> SpeedRule | None:
        """Return the rule of a speed metric, with the share that was asked for; None for one that is shown only."""
        found = next((rule for rule in self.speed if metric in rule.metrics), None)
        if found is None or metric not in self.overrides:
            return found
        asked = self.overrides[metric]
        return replace(found, allowed=asked, widest=asked)

    def budget(self, *precisions: str) -> Budget:
        """Return the finest budget of these precisions; one that no row names is held to the finest of all."""
        rows = {row.precision: row for row in self.budgets}
        finest = min(self.budgets, key=lambda row: row.cosine)
        return min((rows.get(p, finest) for p in precisions), key=lambda row: row.cosine)

    def names(self) -> list[str]:
        """Return every metric that a tolerance is declared for."""
        return [name for row in self.metrics for name in row.metrics] + [n for row in self.speed for n in row.metrics]


def fewest(tolerance: float, alpha: float) -> int:
    """Return how many outcomes, none of which flips, exclude a drop of `tolerance`: 1 - alpha ** (1 / n) <= tolerance.

    Without a tolerance no number does; 1 is returned, and the verdict says that it cannot tell.
    """
    return max(1, math.ceil(math.log(alpha) / math.log1p(-tolerance))) if 0 < tolerance < 1 else 1


def read_rules(path: Path | None = None) -> Rules:
    """Return the rules in a TOML file, by default fixtures/tolerances.toml.

    Raises: DataError for a file that is absent or no TOML, an unknown or missing key, or a number out of range.
    """
    path = path or fixtures() / "tolerances.toml"
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read: {error}; expected a TOML file like fixtures/tolerances.toml"
        ) from error
    _refuse_unknown(f"{path}", tables, ("statistics", "metric", "speed", "budget", "must_pass"))
    statistics = tables.get("statistics", {})
    _refuse_unknown(f"{path}: [statistics]", statistics, ("alpha", "suspicious_gain", "source"))
    rules = Rules(
        alpha=statistics.get("alpha", 0.05),
        suspicious_gain=statistics.get("suspicious_gain", 0.05),
        metrics=_rows(path, tables, "metric", Declared),
        speed=_rows(path, tables, "speed", SpeedRule),
        budgets=_rows(path, tables, "budget", Budget),
        must_pass=_rows(path, tables, "must_pass", MustPass),
    )
    if not rules.budgets:
        raise DataError(f"{path} has no [[budget]]; expected one for fp32 at least")
    if wrong := [row for row in rules.speed if row.better not in ("higher", "lower")]:
        raise DataError(f"{path}: better is {wrong[0].better!r}; expected higher or lower")
    for name, value in _numbers(rules):
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise DataError(f"{path}: {name} is {value!r}; expected a fraction from 0 to 1")
    check_alpha(rules.alpha, f"{path}: alpha")
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


def _rows(path: Path, tables: Mapping[str, Any], table: str, kind: type[T]) -> tuple[T, ...]:
    return tuple(_row(f"{path}: [[{table}]] number {k}", row, kind) for k, row in enumerate(tables.get(table, ()), 1))


def _row(where: str, row: Mapping[str, Any], kind: type[T]) -> T:
    known = {f.name: f.default is MISSING for f in fields(kind)}  # type: ignore[arg-type]
    _refuse_unknown(where, row, tuple(known))
    if missing := [name for name, needed in known.items() if needed and row.get(name, "") in ("", [])]:
        raise DataError(f"{where} lacks {', '.join(missing)}; every row has {', '.join(known)}")
    for key, type_ in get_type_hints(kind).items():
        expected, is_one = _TYPES.get(type_, ("", lambda value: True))
        if key in row and not is_one(row[key]):
            raise DataError(f"{where}: {key} is {row[key]!r}; expected {expected}")
    return kind(**row)


def _refuse_unknown(where: str, table: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in table:
        if key not in known:
            raise DataError(f"{where}: unknown key {key!r}; did you mean {closest(key, known) or ', '.join(known)}?")


def _numbers(rules: Rules) -> list[tuple[str, float]]:
    return [
        ("alpha", rules.alpha),
        ("suspicious_gain", rules.suspicious_gain),
        *((f"tolerance of {row.metrics[0]}", row.tolerance) for row in rules.metrics),
        *((f"allowed of {row.metrics[0]}", row.allowed) for row in rules.speed),
        *((f"widest of {row.metrics[0]}", row.widest) for row in rules.speed),
        *((f"cosine of {row.precision}", row.cosine) for row in rules.budgets),
        *((f"flips of {row.precision}", row.flips) for row in rules.budgets),
    ]
