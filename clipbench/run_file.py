"""Reading a run's JSON file: checked against the published schema, with one line for whatever is wrong."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from clipbench.errors import ClipbenchError
from clipbench.result import SCHEMA_VERSION, Items, JsonObject, Result, Run, run_from_json

_HINT = "make one with `pytest benchmarks --benchmark-json run.json`"


class RunFormatError(ClipbenchError):
    """A file that is no run, or a damaged one (exit code 2)."""


@dataclass(frozen=True)
class Timing:
    """One of pytest-benchmark's own timings: the test's name, the model it is about ("" = none of ours), seconds a round."""

    test: str
    model: str
    seconds: tuple[float, ...]


@cache
def run_schema() -> JsonObject:
    """Return the JSON Schema of a run file."""
    schema: JsonObject = json.loads(Path(__file__).with_name("run.schema.json").read_text(encoding="utf-8"))
    return schema


def read_run(path: Path) -> Run:
    """Return the run in a file.

    Raises: RunFormatError naming the file, the place in it, and the next step: missing, no JSON, truncated, NaN, no run, another
    schema version, a key missing or of the wrong type, duplicate ids, lists of different length.
    """
    return run_of(path, read_document(path))


def read_document(path: Path) -> JsonObject:
    """Return a run file's whole JSON object, checked against the schema. Raises: RunFormatError as `read_run`."""
    return check_document(path, _read_json(path))


def check_document(path: Path, entry: Any) -> JsonObject:
    """Return the JSON value of a run file once it holds to the schema; `path` is for messages. Raises: RunFormatError."""
    if not isinstance(entry, dict) or "clipbench" not in entry:
        kind = (
            "a pytest-benchmark file without the key `clipbench`"
            if isinstance(entry, dict) and "benchmarks" in entry
            else "no run"
        )
        raise RunFormatError(f"{path} is {kind}; {_HINT}")
    version = entry["clipbench"].get("schema") if isinstance(entry["clipbench"], dict) else None
    if version != SCHEMA_VERSION:
        raise RunFormatError(
            f"{path} has run schema {version!r}, this clipbench reads {SCHEMA_VERSION}; convert it by measuring again with this version"
        )
    _validate(path, entry)
    checked: JsonObject = entry
    return checked


def run_of(path: Path, document: JsonObject) -> Run:
    """Return the run of a document that `read_document` gave; `path` is for messages. Raises: RunFormatError."""
    try:
        run = run_from_json(document["clipbench"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunFormatError(f"{path}: {error}; the file is damaged, {_HINT}") from error
    for result in run.results:
        where = f"{path}: {result.experiment} of {result.model.name}"
        _check_items(where, result.items)
        _check_finite(where, result)
    return run


def timings_of(document: JsonObject) -> tuple[Timing, ...]:
    """Return pytest-benchmark's timings of a document; what is not in its usual form is left out."""
    return tuple(t for entry in document.get("benchmarks", ()) if (t := _timing(entry)) is not None)


def _timing(entry: Any) -> Timing | None:
    try:
        seconds = tuple(float(s) for s in entry["stats"].get("data", ()))
        parameters = entry.get("params") or {}
        return Timing(str(entry["name"]), str(parameters.get("subject", "")), seconds)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _read_json(path: Path) -> Any:
    def refuse(word: str) -> float:
        raise ValueError(f"it holds {word}, and a run holds finite numbers only")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except FileNotFoundError as error:
        raise RunFormatError(f"{path} is not there; {_HINT}") from error
    except json.JSONDecodeError as error:
        raise RunFormatError(
            f"{path} is not JSON, or cut short: line {error.lineno}, column {error.colno}: {error.msg}; {_HINT}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunFormatError(f"{path} cannot be read: {error}; {_HINT}") from error


def _validate(path: Path, entry: JsonObject) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    error = best_match(Draft202012Validator(run_schema()).iter_errors(entry))
    if error is not None:
        place = ".".join(str(p) for p in error.absolute_path) or "the file"
        raise RunFormatError(f"{path}: {place}: {error.message[:200]}; the file is damaged, {_HINT}")


def _check_items(where: str, items: Items) -> None:
    for name, ids in {"ids": items.ids, **items.id_lists}.items():
        if not all(isinstance(i, str) for i in ids):
            raise RunFormatError(f"{where}: {name} holds something other than texts; the file is damaged, {_HINT}")
        if (twice := _first_repeated(ids)) is not None:
            raise RunFormatError(f"{where}: {name} holds {twice!r} more than once; ids must be unique, {_HINT}")
    for metric, name in items.axes.items():
        if name not in items.id_lists:
            raise RunFormatError(
                f"{where}: axes says {metric} goes by {name!r}, which is not there; the file is damaged, {_HINT}"
            )
    for metric, values in items.outcomes.items():
        if values and all(isinstance(v, str) for v in values):
            continue  # a list of ids that no metric goes by
        if not all(_is_finite(v) for v in values):
            raise RunFormatError(f"{where}: {metric} has an outcome that is no finite number; {_HINT}")
        if len(values) != len(items.ids_of(metric)):
            raise RunFormatError(
                f"{where}: {metric} has {len(values)} outcomes for {len(items.ids_of(metric))} ids; the file is damaged, {_HINT}"
            )


def _first_repeated(ids: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            return name
        seen.add(name)
    return None


def _check_finite(where: str, result: Result) -> None:
    for name, metric in result.metrics.items():
        if not all(_is_finite(v) for v in (metric.value, metric.low or 0, metric.high or 0)):
            raise RunFormatError(f"{where}: {name} is no finite number; {_HINT}")
    for name, array in result.arrays.items():
        if not np.isfinite(array).all():
            raise RunFormatError(f"{where}: the array {name} holds infinity; a run holds finite numbers only, {_HINT}")


def _is_finite(value: Any) -> bool:
    """True for a number that float64 holds: JSON's 1e999 reads as infinity, and whole numbers have no end."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False
