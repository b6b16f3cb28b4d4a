"""A run on disk: its JSON (pytest-benchmark's own plus one key, `clipbench`), written whole or not at all, and read as data alone.

`run.schema.json` describes the JSON. Long columns of evidence are base64 of little-endian numbers; lists of ids stand once per
result and are named where they are used. Rows on disk are `saved_rows`'s.
"""

import base64
import binascii
import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipbench.errors import ClipbenchError
from clipbench.types import (
    Answers,
    DatasetIdentity,
    Encoding,
    Evidence,
    JsonObject,
    Key,
    Matrix,
    MetricSpec,
    ModelIdentity,
    Outcomes,
    Protocol,
    Provenance,
    Result,
    Run,
    Score,
    Skip,
    SubjectRecord,
    Verdict,
)  # fmt: skip

SCHEMA_VERSION = 2
MAX_STORED_CELLS = 256 * 256
MEAN_TOLERANCE = 1e-6
_DTYPES = ("<i2", "<i4", "<f4", "<u8")
_HINT = "make one with `pytest benchmarks --benchmark-json run.json`"


class RunFormatError(ClipbenchError):
    """A file that is no run, or a damaged one (exit code 2)."""


@dataclass(frozen=True)
class Timing:
    """One of pytest-benchmark's own timings: the test's name, the model it is about ("" = none of ours), seconds per round."""

    test: str
    model: str
    seconds: tuple[float, ...]


def run_to_json(run: Run) -> JsonObject:
    """Return the value of the run file's `clipbench` key.

    Raises: ValueError for NaN or infinity among values, naming experiment and model.
    """
    return {
        "schema": SCHEMA_VERSION,
        "id": run.id,
        "time": run.time,
        "environment": dict(run.environment),
        "plan": [list(key) for key in run.plan],
        "results": [result_to_json(result) for result in run.results],
        "skipped": [{**skip.key._asdict(), "reason": skip.reason} for skip in run.skipped],
        "subjects": [dataclasses.asdict(subject) for subject in run.subjects],
        "traces": list(run.traces),
    }


def result_to_json(result: Result) -> JsonObject:
    """Return the JSON object of a result. Matrices over 256 x 256 cells are not stored.

    Raises: ValueError for NaN or infinity among values, naming experiment and model.
    """
    lists = _Lists()
    try:
        items: JsonObject = {"ids": [], "axes": {}, "clusters": {}}
        for name, score in result.scores.items():
            if score.outcomes is not None:
                axis = lists.name(score.outcomes.ids, score.outcomes.axis)
                items[name] = [_finite(value, name) for value in score.outcomes.values.tolist()]
                items["axes"] |= {} if axis == "ids" else {name: axis}
                items["clusters"] |= {} if score.outcomes.clusters is None else {axis: list(score.outcomes.clusters)}
        outcomes_axes = dict(lists.found)
        entry = {
            "experiment": result.experiment,
            "model": dataclasses.asdict(result.model),
            "dataset": dataclasses.asdict(result.dataset),
            "protocol": {
                "prompts": list(result.protocol.prompts),
                "metric_version": result.protocol.metric_version,
                "classes": list(result.protocol.classes),
                "options": dict(result.protocol.options),
            },
            "metrics": {name: _score_to_json(score) for name, score in result.scores.items()},
            "metric_order": list(result.scores),
            "matrices": {
                name: {**_fields(matrix), "values": _finite_rows(matrix)}
                for name, matrix in result.matrices.items()
                if matrix.values.size <= MAX_STORED_CELLS
            },
            "answers": {name: _answers_to_json(answers, lists) for name, answers in result.answers.items()},
            "evidence": {tower: _evidence_to_json(tower, one, lists) for tower, one in result.evidence.items()},
            "provenance": {
                "optimizations": list(result.provenance.optimizations),
                "encoding": {tower: dataclasses.asdict(how) for tower, how in result.provenance.encoding.items()},
                "exclusions": dict(result.provenance.exclusions),
                "broken": list(result.provenance.broken),
            },
            "verdicts": [_verdict_to_json(verdict) for verdict in result.verdicts],
        }
    except ValueError as error:
        raise ValueError(f"{result.experiment} of {result.model.name}: {error}") from error
    items |= {name: list(ids) for ids, name in outcomes_axes.items()}
    rest = {name: list(ids) for ids, name in lists.found.items() if ids not in outcomes_axes}
    return {**entry, "items": items, "lists": rest}


class _Lists:
    """Lists of ids, each kept once under a name."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, ...], str] = {}

    def name(self, ids: tuple[str, ...], wanted: str) -> str:
        """Return the name under which these ids are kept: the wanted one, with a number where another list has it."""
        if ids not in self.found:
            taken = set(self.found.values())
            names = (wanted, *(f"{wanted}_{k}" for k in range(2, len(taken) + 3)))
            self.found[ids] = next(name for name in names if name not in taken)
        return self.found[ids]


def _score_to_json(score: Score) -> JsonObject:
    spec = {k: v for k, v in dataclasses.asdict(score.spec).items() if k != "name"}
    entry: JsonObject = {"value": _finite(score.value, score.spec.name), "n": score.n, "spec": spec}
    if score.interval is not None:
        entry["low"], entry["high"] = (_finite(end, score.spec.name) for end in score.interval)
    return entry | ({} if score.spread is None else {"spread": score.spread})


def _answers_to_json(answers: Answers, lists: _Lists) -> JsonObject:
    entry: JsonObject = {
        "ids": lists.name(answers.ids, "queries"),
        "candidates": lists.name(answers.candidates, "candidates"),
        "top": _pack(answers.top, "<i4"),
        "scores": _pack(answers.scores, "<f4"),
        "margins": _pack(answers.margins, "<f4"),
    }
    entry |= {} if answers.labels is None else {"labels": _pack(answers.labels, "<i4")}
    return entry | ({} if answers.groups is None else {"groups": list(answers.groups)})


def _evidence_to_json(tower: str, evidence: Evidence, lists: _Lists) -> JsonObject:
    return {
        "ids": lists.name(evidence.ids, f"{tower.removesuffix('s')}_ids"),
        "dim": evidence.dim,
        "contents": _pack(evidence.contents, "<u8"),
        "pixels": _pack(evidence.pixels, "<u8"),
        "lengths": _pack(evidence.lengths, "<f4"),
        "sketches": _pack(evidence.sketches, "<i2"),
    }


def _verdict_to_json(verdict: Verdict) -> JsonObject:
    entry = {k: v for k, v in dataclasses.asdict(verdict).items() if v is not None and k not in ("key", "outcome")}
    entry |= {} if verdict.interval is None else {"interval": list(verdict.interval)}
    return entry | {"verdict": verdict.outcome}


def _fields(matrix: Matrix) -> JsonObject:
    return {"kind": matrix.kind, "rows": list(matrix.rows), "columns": list(matrix.columns), "scale": matrix.scale}


def _finite(value: Any, what: str) -> float | int:
    number = value.item() if isinstance(value, np.generic) else value
    if not math.isfinite(number):
        raise ValueError(f"{what} has {number}; only finite numbers are recorded")
    is_whole = isinstance(number, float) and number.is_integer() and abs(number) < 1e15
    return int(number) if is_whole or isinstance(number, bool) else number


def _finite_rows(matrix: Matrix) -> list[list[float]]:
    if not np.isfinite(matrix.values).all():
        raise ValueError("a matrix holds NaN or infinity; only finite numbers are recorded")
    return [[round(float(cell), 7) for cell in row] for row in matrix.values]


def _pack(array: npt.NDArray[Any], dtype: str) -> JsonObject:
    stored = np.ascontiguousarray(array).astype(dtype)
    return {"dtype": dtype, "shape": list(stored.shape), "base64": base64.b64encode(stored.tobytes()).decode()}


def _unpack(entry: JsonObject) -> npt.NDArray[Any]:
    """Raises: ValueError for another kind of number than we write, or more or fewer of them than the shape says."""
    shape, dtype = tuple(int(size) for size in entry["shape"]), entry["dtype"]
    try:
        content = base64.b64decode(entry["base64"], validate=True)
    except binascii.Error as error:
        raise ValueError(f"a column is no base64: {error}") from error
    if dtype not in _DTYPES or len(content) != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError(f"a column has {len(content)} bytes of {dtype} for shape {shape}")
    return np.frombuffer(content, dtype).reshape(shape).astype(np.dtype(dtype).newbyteorder("="))


def run_from_json(entry: JsonObject) -> Run:
    """Return the run that `run_to_json` wrote. Unknown keys are ignored; validate against `run.schema.json` first.

    Raises: KeyError, TypeError or ValueError when the entry is no run.
    """
    return Run(
        environment=entry["environment"],
        results=tuple(result_from_json(result) for result in entry["results"]),
        skipped=tuple(Skip(_key(skip), skip["reason"]) for skip in entry["skipped"]),
        subjects=tuple(_take(SubjectRecord, subject) for subject in entry["subjects"]),
        traces=tuple(entry["traces"]),
        plan=tuple(Key(*key) for key in entry["plan"]),
        id=entry["id"],
        time=entry["time"],
    )


def result_from_json(entry: JsonObject) -> Result:
    """Return the result that `result_to_json` wrote. Raises: as `run_from_json`."""
    items, axes = entry["items"], entry["items"]["axes"]
    clusters = items.get("clusters", {})
    lists = {name: tuple(ids) for name, ids in {**items, **entry["lists"]}.items() if isinstance(ids, list)}
    model, dataset = _take(ModelIdentity, entry["model"]), _take(DatasetIdentity, entry["dataset"])
    key = Key(entry["experiment"], model.name, dataset.name)
    scores = {}
    order = {name: place for place, name in enumerate(entry.get("metric_order", ()))}
    for name, metric in sorted(entry["metrics"].items(), key=lambda pair: order.get(pair[0], len(order))):
        outcomes, axis = None, axes.get(name, "ids")
        if name in items:
            own = tuple(clusters[axis]) if axis in clusters and metric["spec"]["cluster"] else None
            if any(isinstance(value, str) for value in items[name]):
                raise ValueError(f"{name} has an outcome that is a text, no number")
            outcomes = Outcomes(_ids(lists, axis), np.asarray(items[name], dtype=np.float64), own, axis)
        interval = (metric["low"], metric["high"]) if "low" in metric and "high" in metric else None
        spec = _take(MetricSpec, {"name": name, **metric["spec"]})
        scores[name] = Score(spec, metric["value"], metric["n"], interval, outcomes, metric.get("spread"))
    return Result(
        key.experiment,
        model,
        dataset,
        _protocol(entry["protocol"]),
        scores,
        {name: _matrix(matrix) for name, matrix in entry["matrices"].items()},
        {name: _answers(answers, lists) for name, answers in entry["answers"].items()},
        {tower: _evidence(evidence, lists) for tower, evidence in entry["evidence"].items()},
        _provenance(entry["provenance"]),
        tuple(_verdict(key, verdict) for verdict in entry["verdicts"]),
    )


def _ids(lists: Mapping[str, tuple[str, ...]], name: str) -> tuple[str, ...]:
    if not all(isinstance(item, str) for item in lists[name]):
        raise ValueError(f"{name} holds something other than texts")
    return lists[name]


def _key(entry: JsonObject) -> Key:
    return Key(entry["experiment"], entry["model"], entry["dataset"])


def _protocol(entry: JsonObject) -> Protocol:
    return Protocol(tuple(entry["prompts"]), entry["metric_version"], tuple(entry["classes"]), entry["options"])


def _matrix(entry: JsonObject) -> Matrix:
    values = np.array(entry["values"], dtype=np.float64)
    if values.shape != (len(entry["rows"]), len(entry["columns"])):
        raise ValueError(
            f"a matrix is {values.shape} for {len(entry['rows'])} rows and {len(entry['columns'])} columns"
        )
    return Matrix(entry["kind"], values, tuple(entry["rows"]), tuple(entry["columns"]), entry["scale"])


def _answers(entry: JsonObject, lists: Mapping[str, tuple[str, ...]]) -> Answers:
    ids, candidates = _ids(lists, entry["ids"]), _ids(lists, entry["candidates"])
    top, labels = _unpack(entry["top"]), _unpack(entry["labels"]) if "labels" in entry else None
    margins, scores = _unpack(entry["margins"]), _unpack(entry["scores"])
    groups = tuple(entry["groups"]) if "groups" in entry else None
    columns = [margins.shape, top.shape[:1]]
    columns += [] if labels is None else [labels.shape]
    columns += [] if groups is None else [(len(groups),)]
    picked = np.concatenate([top.ravel(), np.array([], dtype=np.int32) if labels is None else labels])
    if (
        top.ndim != 2
        or scores.shape != top.shape
        or set(columns) != {(len(ids),)}
        or not ((picked >= 0) & (picked < len(candidates))).all()
    ):
        raise ValueError("answers do not fit their queries and candidates")
    return Answers(ids, candidates, top, scores, margins, labels, groups)


def _evidence(entry: JsonObject, lists: Mapping[str, tuple[str, ...]]) -> Evidence:
    ids = _ids(lists, entry["ids"])
    contents, pixels, lengths, sketches = (_unpack(entry[k]) for k in ("contents", "pixels", "lengths", "sketches"))
    columns = {contents.shape, lengths.shape, sketches.shape[:1], *([pixels.shape] if pixels.size else [])}
    if columns != {(len(ids),)} or sketches.ndim != 2:
        raise ValueError("evidence does not fit its items")
    return Evidence(ids, contents, pixels, lengths, sketches, entry["dim"])


def _provenance(entry: JsonObject) -> Provenance:
    encoding = {tower: _take(Encoding, how) for tower, how in entry["encoding"].items()}
    return Provenance(tuple(entry["optimizations"]), encoding, entry["exclusions"], tuple(entry["broken"]))


def _verdict(key: Key, entry: JsonObject) -> Verdict:
    interval = {"interval": tuple(entry["interval"])} if "interval" in entry else {}
    verdict: Verdict = _take(Verdict, {**entry, "key": key, "outcome": entry["verdict"], **interval})
    return verdict


def _take(kind: Any, entry: JsonObject) -> Any:
    """Build a dataclass from the keys it knows."""
    names = {f.name for f in dataclasses.fields(kind)}
    return kind(**{key: value for key, value in entry.items() if key in names})


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
        is_benchmark = isinstance(entry, dict) and "benchmarks" in entry
        kind = "a pytest-benchmark file without the key `clipbench`" if is_benchmark else "no run"
        raise RunFormatError(f"{path} is {kind}; {_HINT}")
    version = entry["clipbench"].get("schema") if isinstance(entry["clipbench"], dict) else None
    if version != SCHEMA_VERSION:
        raise RunFormatError(
            f"{path} has run schema {version!r}, this clipbench reads {SCHEMA_VERSION}: it stores evidence that an older run does "
            f"not have; measure again with this version"
        )
    _validate(path, entry)
    checked: JsonObject = entry
    return checked


def run_of(path: Path, document: JsonObject) -> Run:
    """Return the run of a document that `read_document` gave; `path` is for messages. Raises: RunFormatError."""
    try:
        run = run_from_json(document["clipbench"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunFormatError(f"{path}: {type(error).__name__}: {error}; the file is damaged, {_HINT}") from error
    for result in run.results:
        _check_result(f"{path}: {result.experiment} of {result.model.name}", result)
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


def _check_result(where: str, result: Result) -> None:
    """What the schema cannot say: JSON's 1e999 reads as infinity, and ids are unique."""
    for name, score in result.scores.items():
        if not _are_finite([score.value, *(score.interval or ())]):
            raise RunFormatError(f"{where}: {name} is no finite number; {_HINT}")
        if score.outcomes is None:
            continue
        if not np.isfinite(score.outcomes.values).all():
            raise RunFormatError(f"{where}: {name} has an outcome that is no finite number; {_HINT}")
        mean = float(np.mean(score.outcomes.values)) if score.n else score.value
        if score.n != len(score.outcomes.ids) or abs(mean - score.value) > MEAN_TOLERANCE * max(1.0, abs(score.value)):
            raise RunFormatError(
                f"{where}: {name} is {score.value:.6g} at n={score.n}, and its {len(score.outcomes.ids)} outcomes average to "
                f"{mean:.6g}: the file was changed; {_HINT}"
            )
        if (twice := _first_repeated(score.outcomes.ids)) is not None:
            raise RunFormatError(f"{where}: {name} has the id {twice!r} more than once; ids must be unique, {_HINT}")
    for name, matrix in result.matrices.items():
        if not np.isfinite(matrix.values).all():
            raise RunFormatError(f"{where}: {name} holds infinity; a run holds finite numbers only, {_HINT}")


def _are_finite(values: Iterable[float]) -> bool:
    """True for numbers that float64 holds: whole numbers have no end."""
    try:
        return all(math.isfinite(value) for value in values)
    except OverflowError:
        return False


def _first_repeated(ids: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            return name
        seen.add(name)
    return None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: into a temporary neighbour, flushed, then renamed. Parents are made.

    Raises: OSError when the disk is full or the folder cannot be written; the old file, if any, is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def dump_json(entry: JsonObject) -> str:
    """Return JSON with sorted keys, refusing NaN and infinity.

    Raises: ValueError for NaN and infinity.
    """
    return json.dumps(entry, sort_keys=True, allow_nan=False, indent=1) + "\n"
