"""What a project has chosen once for all its sessions: `clipbench.toml`, or `[tool.clipbench]` in its pyproject.toml.

Every option of `clipbench run` that is no act of one session is a key, without its dashes; what has no option stands in tables: floors,
tolerances, items that must pass, prompts. All of it is laid over what ships, and the command line is laid over all of it.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from clipbench.errors import UsageError, closest
from clipbench.judge.references import Floor
from clipbench.judge.tolerances import Rules, rules_over
from clipbench.paths import expanded, read_toml, strict_row

FILE, PROJECT, TABLE = "clipbench.toml", "pyproject.toml", "clipbench"
NONE = "none"
"""`--settings none`: no file, whatever lies there."""

ACTS = frozenset({"accept", "only", "reason", "update_baseline", "settings", "resume"})
"""Options that are meant for one session: no settings may ask for them every time."""

RULES = ("statistics", "rows", "outcomes", "metric", "budget", "must_pass", "cutoff")
"""Tables of fixtures/tolerances.toml that settings may hold."""

TABLES = (*RULES, "tolerance", "floor", "prompts")


@dataclass(frozen=True)
class Settings:
    """The settings in a file, checked. `path`: None where there is none.

    `options`: values as the command line would give them, by the option's name in Python; relative paths begin at the file.
    `rules`: tables laid over fixtures/tolerances.toml; `tolerances` by metric, "" for all. `prompts`: templates by data set.
    """

    path: Path | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    rules: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    tolerances: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    floors: tuple[Floor, ...] = ()
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))

    def judged_by(self) -> Rules:
        """Return the rules that ship with these over them. Raises: DataError for tables that cannot be meant."""
        return replace(rules_over(self.rules, str(self.path)), overrides=self.tolerances)


NO_SETTINGS = Settings()


def find_settings(start: Path) -> Path | None:
    """Return the file with settings in this folder or the nearest one above it, up to the root of its repository; None without one.

    Raises: DataError for a pyproject.toml that is no TOML.
    """
    for folder in (start, *start.parents):
        if (folder / FILE).is_file():
            return folder / FILE
        project = folder / PROJECT
        if project.is_file() and TABLE in read_toml(project).get("tool", {}):
            return project
        if (folder / ".git").exists():
            return None
    return None


def settings_for(given: str | None, start: Path, declared: Callable[[], Mapping[str, Mapping[str, Any]]]) -> Settings:
    """Return the settings of a file that was given, of none ("none"), or of the one that is found from a folder on.

    Raises: as `read_settings`.
    """
    if given == NONE:
        return NO_SETTINGS
    path = start / expanded(given) if given else find_settings(start)
    return NO_SETTINGS if path is None else read_settings(path, declared())


def read_settings(path: Path, declared: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Return the settings in a TOML file. `declared`: the arguments to argparse for each option, by its name in Python.

    Raises: DataUnavailableError for a file that is absent; DataError for one that is no TOML, or rows of a table that cannot be meant;
    UsageError for an unknown key (with the closest), an option that a value does not fit, an unknown experiment or metric.
    """
    tables = read_toml(path)
    if path.name == PROJECT:
        tables = tables.get("tool", {}).get(TABLE, {})
    known = [name for name in declared if name not in ACTS]
    options, own = {}, {}
    for key, value in tables.items():
        name, where = key.replace("-", "_"), f"{path}: {key}"
        if name in TABLES:
            own[name] = value
        elif name in known:
            options[name] = option_value(where, value, declared[name], path.parent)
        elif name in ACTS:
            raise UsageError(
                f"{where}: --{key.replace('_', '-')} is meant for one session; give it on the command line"
            )
        else:
            names = sorted({*(one.replace("_", "-") for one in known), *TABLES})
            raise UsageError(f"{where}: unknown key; did you mean {closest(key, names) or ', '.join(names)}?")
    settings = Settings(
        path,
        options,
        {name: own[name] for name in RULES if name in own},
        _tolerances(f"{path}: tolerance", own.get("tolerance", {})),
        tuple(_floor(f"{path}: [[floor]] number {k}", row) for k, row in enumerate(_rows(path, own, "floor"), 1)),
        _prompts(f"{path}: prompts", own.get("prompts", {})),
    )
    settings.judged_by()
    return settings


def option_value(where: str, value: Any, how: Mapping[str, Any], folder: Path) -> Any:
    """Return a value, checked, as the command line would give it; relative paths begin at `folder`.

    `how`: the arguments to argparse for the option. Raises: UsageError for a value that does not fit.
    """
    kind, is_named = how.get("type", str), str(how.get("metavar", "")).startswith("NAME=")
    if how.get("action") == "store_true":
        if not isinstance(value, bool):
            raise UsageError(f"{where} = {value!r}; expected true or false")
        return value
    if how.get("action") == "append":
        if is_named and isinstance(value, Mapping):
            return [f"{name}={_placed(where, one, folder)}" for name, one in value.items()]
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str) and one for one in values):
            raise UsageError(
                f"{where} = {value!r}; expected {'a table NAME = PATH' if is_named else 'a list of texts'}"
            )
        pairs = [one.partition("=") for one in values] if is_named else []
        return [f"{name}={_placed(where, rest, folder)}" for name, _, rest in pairs] if is_named else values
    if kind is Path:
        return folder / expanded(_text(where, str(value) if isinstance(value, Path) else value))
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
            raise UsageError(f"{where} = {value!r}; expected a {'whole ' if kind is int else ''}number")
        return value
    if "choices" in how and value not in how["choices"]:
        raise UsageError(f"{where} = {value!r}; expected one of {', '.join(how['choices'])}")
    return _text(where, value)


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where} = {value!r}; expected a text")
    return value


def _placed(where: str, value: Any, folder: Path) -> str:
    """What lies there, from the settings' folder on; anything else as it is, for whoever reads it to understand or to refuse."""
    place = folder / expanded(_text(where, value))
    return str(place) if place.exists() else str(value)


def _rows(path: Path, own: Mapping[str, Any], table: str) -> Sequence[Mapping[str, Any]]:
    rows = own.get(table, [])
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise UsageError(f"{path}: expected rows of [[{table}]], got {rows!r:.80}")
    return rows


def _floor(where: str, row: Mapping[str, Any]) -> Floor:
    """A floor of somebody's own: for every model and any weights, where the row names none. Raises: as `read_settings`."""
    from clipbench.experiments import experiment

    floor = strict_row(where, {"models": ["*"], "weights": "*", "source": "the project's settings", **row}, Floor)
    try:
        kinds = {spec.name: spec.kind for spec in experiment(floor.experiment).metrics}
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    for metric in floor.metrics:
        if metric not in kinds:
            likely = closest(metric, kinds) or ", ".join(kinds)
            raise UsageError(f"{where}: {floor.experiment} has no metric {metric!r}; did you mean {likely}?")
        if kinds[metric] in ("rate", "mean", "probability", "cosine") and not -1 <= floor.at_least <= 1:
            raise UsageError(f"{where}: at_least = {floor.at_least:g}, and {metric} is a fraction; write 0.85 for 85 %")
    return floor


def _tolerances(where: str, value: Any) -> dict[str, float]:
    """By metric; one number is for all of them."""
    from clipbench.experiments import all_experiments

    names = {spec.name for one in all_experiments().values() for spec in one.metrics}
    found = value if isinstance(value, Mapping) else {"": value}
    for metric, number in found.items():
        if metric and metric not in names:
            likely = closest(metric, names) or ", ".join(sorted(names))
            raise UsageError(f"{where}: there is no metric {metric!r}; did you mean {likely}?")
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 1:
            raise UsageError(f"{where}: {metric or 'it'} = {number!r}; expected a fraction such as 0.01")
    return dict(found)


def _prompts(where: str, value: Any) -> dict[str, tuple[str, ...]]:
    found = value if isinstance(value, Mapping) else {"": value}
    for name, templates in found.items():
        is_list = isinstance(templates, list) and bool(templates) and all(isinstance(t, str) for t in templates)
        if not (name and is_list and all(t.count("{}") == 1 == t.count("{") == t.count("}") for t in templates)):
            raise UsageError(
                f'{where}: {name} = {templates!r:.80}; expected NAME = ["a photo of a {{}}.", ...], one "{{}}" in each'
            )
    return {name: tuple(templates) for name, templates in found.items()}


class Replacing(argparse.Action):
    """As "append", but what is given replaces the default, which settings may have made."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        given = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, [*(given if given is not self.default and given else []), values])
