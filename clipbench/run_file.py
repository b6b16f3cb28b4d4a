"""Reading a run's JSON file: checked against the published schema, with one line for whatever is wrong."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from clipbench.errors import ClipbenchError
from clipbench.result import SCHEMA_VERSION, JsonObject, Run, run_from_json

_HINT = "make one with `pytest benchmarks --benchmark-json run.json`"


class RunFormatError(ClipbenchError):
    """A file that is no run, or a damaged one (exit code 2)."""


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
    entry = _read_json(path)
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
    try:
        run = run_from_json(entry["clipbench"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunFormatError(f"{path}: {error}; the file is damaged, {_HINT}") from error
    for result in run.results:
        _check_items(path, f"{result.experiment} of {result.model.name}", result.items)
    return run


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


def _check_items(path: Path, where: str, items: Any) -> None:
    for name, ids in {"ids": items.ids, **items.id_lists}.items():
        if len(set(ids)) != len(ids):
            twice = next(i for i in ids if list(ids).count(i) > 1)
            raise RunFormatError(f"{path}: {where}: {name} holds {twice!r} more than once; ids must be unique, {_HINT}")
    for metric, name in items.axes.items():
        if name not in items.id_lists:
            raise RunFormatError(
                f"{path}: {where}: axes says {metric} goes by {name!r}, which is not there; the file is damaged, {_HINT}"
            )
    for metric, values in items.outcomes.items():
        numbers = all(isinstance(v, int | float) and math.isfinite(v) for v in values)
        if numbers and len(values) != len(items.ids_of(metric)):
            raise RunFormatError(
                f"{path}: {where}: {metric} has {len(values)} outcomes for {len(items.ids_of(metric))} ids; the file is damaged, {_HINT}"
            )
