"""A run on disk: its JSON (pytest-benchmark's own plus one key, `clipbench`), written whole or not at all, and read as data alone.

`run.schema.json` describes the JSON. Long columns of evidence are base64 of little-endian numbers; lists of ids stand once per
result and are named where they are used. Rows on disk are `saved_rows`'s.
"""

import base64
import binascii
import dataclasses
import errno
import glob
import hashlib
import json
import math
import os
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipbench.errors import ClipbenchError, DataError, DataUnavailableError, TooLargeError
from clipbench.paths import LARGEST_RUN_BYTES, read_json
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
COSINE_STEP = 2.0**-14
MAX_COLUMN_BYTES = 1 << 28
MAX_DEPTH = 64
MAX_STORED_CELLS = 256 * 256
MEAN_TOLERANCE = 1e-6
_LONGEST_WRITE_SECONDS = 600.0
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
        "subjects": [_fields(subject) for subject in run.subjects],
        "traces": list(run.traces),
        "accepted": list(run.accepted),
    }


def result_to_json(result: Result) -> JsonObject:
    """Return the JSON object of a result. Matrices over 256 x 256 cells are not stored.

    Raises: ValueError for NaN or infinity among values, naming experiment and model.
    """
    lists: dict[tuple[str, ...], str] = {}
    try:
        items: JsonObject = {"ids": [], "axes": {}, "clusters": {}}
        reserved = {*result.scores, "axes", "clusters"}
        if "ids" in reserved or len(reserved) < len(result.scores) + 2:
            raise ValueError("a metric cannot be called ids, axes or clusters")
        for name, score in result.scores.items():
            if score.outcomes is not None:
                axis = _name_in(lists, score.outcomes.ids, score.outcomes.axis, reserved)
                items[name] = [_finite(value, name) for value in score.outcomes.values.tolist()]
                items["axes"] |= {} if axis == "ids" else {name: axis}
                if (clusters := score.outcomes.clusters) is not None:
                    items["clusters"].setdefault(axis, list(clusters))
                    items["clusters"] |= {} if items["clusters"][axis] == list(clusters) else {name: list(clusters)}
        items |= {name: list(ids) for ids, name in lists.items()}
        entry = {
            "experiment": result.experiment,
            "model": _fields(result.model),
            "dataset": _fields(result.dataset),
            "protocol": _fields(result.protocol),
            "metrics": {name: _score_to_json(score) for name, score in result.scores.items()},
            "metric_order": list(result.scores),
            "items": items,
            "matrices": {
                name: _fields(matrix) | {"values": _finite_rows(matrix)}
                for name, matrix in result.matrices.items()
                if matrix.values.size <= MAX_STORED_CELLS
            },
            "answers": {name: _answers_to_json(answers, lists) for name, answers in result.answers.items()},
            "evidence": {tower: _evidence_to_json(tower, one, lists) for tower, one in result.evidence.items()},
            "provenance": _fields(result.provenance),
            "verdicts": [_verdict_to_json(verdict) for verdict in result.verdicts],
        }
    except ValueError as error:
        raise ValueError(f"{result.experiment} of {result.model.name}: {error}") from error
    kept = {"ids", *items["axes"].values()}
    return entry | {"lists": {name: list(ids) for ids, name in lists.items() if name not in kept}}


def _fields(one: Any) -> JsonObject:
    """A dataclass as a JSON object, tuples as lists."""

    def entries(pairs: list[tuple[str, Any]]) -> JsonObject:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in pairs}

    found: JsonObject = dataclasses.asdict(one, dict_factory=entries)
    return found


def _name_in(
    lists: dict[tuple[str, ...], str], ids: tuple[str, ...], wanted: str, reserved: Collection[str] = ()
) -> str:
    """The name under which these ids are kept in the lists: the wanted one, with a number where something else has it."""
    if ids not in lists:
        taken = {*lists.values(), *reserved}
        names = (wanted, *(f"{wanted}_{k}" for k in range(2, len(taken) + 3)))
        lists[ids] = next(name for name in names if name not in taken)
    return lists[ids]


def _score_to_json(score: Score) -> JsonObject:
    spec = _fields(score.spec)
    entry: JsonObject = {"value": _finite(score.value, spec.pop("name")), "n": score.n, "spec": spec}
    if score.interval is not None:
        entry["low"], entry["high"] = (_finite(end, score.spec.name) for end in score.interval)
    entry |= {} if score.spread is None else {"spread": score.spread}
    return entry | ({"processes": list(score.processes)} if score.processes else {})


def _answers_to_json(answers: Answers, lists: dict[tuple[str, ...], str]) -> JsonObject:
    entry: JsonObject = {
        "ids": _name_in(lists, answers.ids, "queries"),
        "candidates": _name_in(lists, answers.candidates, "candidates"),
        "top": _pack(answers.top, _index_dtype(answers)),
        "scores": _pack_cosines(answers.scores),
        "margins": _pack(answers.margins, "<f4"),
    }
    entry |= {} if answers.labels is None else {"labels": _pack(answers.labels, _index_dtype(answers))}
    columns = {"groups": answers.groups, "languages": answers.languages}
    return entry | {name: list(column) for name, column in columns.items() if column is not None}


def _evidence_to_json(tower: str, evidence: Evidence, lists: dict[tuple[str, ...], str]) -> JsonObject:
    return {
        "ids": _name_in(lists, evidence.ids, f"{tower.removesuffix('s')}_ids"),
        "dim": evidence.dim,
        "contents": _pack(evidence.contents, "<u8"),
        "pixels": _pack(evidence.pixels, "<u8"),
        "lengths": _pack(evidence.lengths, "<f2" if _fits_half(evidence.lengths) else "<f4"),
        "sketches": _pack(evidence.sketches, "<i2"),
    }


def _verdict_to_json(verdict: Verdict) -> JsonObject:
    without = ("key", "items")
    stated = {name: value for name, value in _fields(verdict).items() if value is not None and name not in without}
    return stated | {"verdict": stated.pop("outcome")}


def _finite(value: float, what: str) -> float | int:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{what} has {number}; only finite numbers are recorded")
    return int(number) if number.is_integer() and abs(number) < 1e15 else number


def _finite_rows(matrix: Matrix) -> list[list[float]]:
    if not np.isfinite(matrix.values).all():
        raise ValueError("a matrix holds NaN or infinity; only finite numbers are recorded")
    return [[round(float(cell), 7) for cell in row] for row in matrix.values]


def _pack(array: npt.NDArray[Any], dtype: str) -> JsonObject:
    """A column: its bytes in base64, deflated where that makes them a tenth smaller."""
    stored = np.ascontiguousarray(array).astype(dtype)
    content, entry = stored.tobytes(), {"dtype": dtype, "shape": list(stored.shape)}
    deflated = zlib.compress(content, 6)
    if len(deflated) < 0.9 * len(content):
        return entry | {"deflated": True, "base64": base64.b64encode(deflated).decode()}
    return entry | {"base64": base64.b64encode(content).decode()}


def _pack_cosines(scores: npt.NDArray[Any]) -> JsonObject:
    """Cosines in steps of 2^-14, as sketches are; what is none as it is."""
    if not scores.size or not np.abs(scores).max() < 2:  # written so that NaN is kept
        return _pack(scores, "<f4")
    return _pack(np.round(scores.astype(np.float64) / COSINE_STEP), "<i2") | {"step": COSINE_STEP}


def _index_dtype(answers: Answers) -> str:
    return "<u2" if len(answers.candidates) < 1 << 16 else "<i4"


def _fits_half(lengths: npt.NDArray[Any]) -> bool:
    """Half a thousandth is near enough for a length, where half precision can hold it."""
    return bool(lengths.size) and bool((lengths > 1e-3).all() and (lengths < 6e4).all())


def _unpack(entry: JsonObject) -> npt.NDArray[Any]:
    """Raises: ValueError for more or fewer numbers than the shape says."""
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    size = math.prod(shape) * dtype.itemsize
    if size > MAX_COLUMN_BYTES:
        raise ValueError(f"a column has shape {shape}: more than {MAX_COLUMN_BYTES:,} bytes")
    try:
        content = base64.b64decode(entry["base64"], validate=True)
        if entry.get("deflated"):
            content = zlib.decompressobj().decompress(content, size + 1)  # never more than the shape says
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"a column is damaged: {error}") from error
    if len(content) != size:
        raise ValueError(f"a column has {len(content)} bytes of {entry['dtype']} for shape {shape}")
    column = np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))
    return column * np.float32(entry["step"]) if "step" in entry else column


def run_from_json(entry: JsonObject) -> Run:
    """Return the run that `run_to_json` wrote. Unknown keys are ignored; validate against `run.schema.json` first.

    Raises: KeyError, TypeError or ValueError when the entry is no run.
    """
    return Run(
        environment=entry["environment"],
        results=tuple(result_from_json(result) for result in entry["results"]),
        skipped=tuple(Skip(_take(Key, skip), skip["reason"]) for skip in entry["skipped"]),
        subjects=tuple(_take(SubjectRecord, subject) for subject in entry["subjects"]),
        traces=tuple(entry["traces"]),
        plan=tuple(Key(*key) for key in entry["plan"]),
        id=entry["id"],
        time=entry["time"],
        accepted=tuple(entry.get("accepted", ())),
    )


def result_from_json(entry: JsonObject) -> Result:
    """Return the result that `result_to_json` wrote. Raises: as `run_from_json`."""
    items, axes, clusters = entry["items"], entry["items"]["axes"], entry["items"].get("clusters", {})
    lists = {name: tuple(items[name]) for name in {"ids", *axes.values()}}
    lists |= {name: tuple(ids) for name, ids in entry["lists"].items()}
    model, dataset = _take(ModelIdentity, entry["model"]), _take(DatasetIdentity, entry["dataset"])
    key = Key(entry["experiment"], model.name, dataset.name)
    scores = {}
    order = {name: place for place, name in enumerate(entry.get("metric_order", ()))}
    for name, metric in sorted(entry["metrics"].items(), key=lambda pair: order.get(pair[0], len(order))):
        outcomes, axis = None, axes.get(name, "ids")
        if name in items:
            of = next((tuple(clusters[place]) for place in (name, axis) if place in clusters), None)
            own = of if metric["spec"]["cluster"] else None
            if not all(type(value) in (int, float) for value in items[name]):
                raise ValueError(f"{name} has an outcome that is no finite number")
            outcomes = Outcomes(_ids(lists, axis), np.asarray(items[name], dtype=np.float64), own, axis)
        interval = (metric["low"], metric["high"]) if "low" in metric and "high" in metric else None
        spec = _take(MetricSpec, {"name": name, **metric["spec"]})
        repeats = metric.get("spread"), tuple(metric.get("processes", ()))
        scores[name] = Score(spec, metric["value"], metric["n"], interval, outcomes, *repeats)
    asked, how = entry["protocol"], entry["provenance"]
    encoding = {tower: _take(Encoding, made) for tower, made in how["encoding"].items()}
    return Result(
        key.experiment,
        model,
        dataset,
        Protocol(tuple(asked["prompts"]), asked["metric_version"], tuple(asked["classes"]), asked["options"]),
        scores,
        {name: _matrix(matrix) for name, matrix in entry["matrices"].items()},
        {name: _answers(answers, lists) for name, answers in entry["answers"].items()},
        {tower: _evidence(evidence, lists) for tower, evidence in entry["evidence"].items()},
        Provenance(
            tuple(how["optimizations"]),
            encoding,
            how["exclusions"],
            tuple(how["broken"]),
            how.get("card", {}),
            tuple(how.get("must_pass", ())),
            how.get("resumed", ""),
        ),
        tuple(_verdict(key, verdict) for verdict in entry["verdicts"]),
    )


def _ids(lists: Mapping[str, tuple[str, ...]], name: str) -> tuple[str, ...]:
    if not all(isinstance(item, str) for item in lists[name]):
        raise ValueError(f"{name} holds something other than texts")
    return lists[name]


def _matrix(entry: JsonObject) -> Matrix:
    rows, columns = tuple(entry["rows"]), tuple(entry["columns"])
    if len(rows) * len(columns) > MAX_STORED_CELLS:
        raise ValueError(f"a matrix of {len(rows)} x {len(columns)} cells; expected {MAX_STORED_CELLS} at most")
    values = np.array(entry["values"], dtype=np.float64)
    if values.shape != (len(rows), len(columns)):
        raise ValueError(f"a matrix is {values.shape} for {len(rows)} rows and {len(columns)} columns")
    return Matrix(entry["kind"], values, rows, columns, entry["scale"])


def _answers(entry: JsonObject, lists: Mapping[str, tuple[str, ...]]) -> Answers:
    ids, candidates = _ids(lists, entry["ids"]), _ids(lists, entry["candidates"])
    top, scores, margins = (_unpack(entry[name]) for name in ("top", "scores", "margins"))
    top = top.astype(np.int32)
    labels = _unpack(entry["labels"]).astype(np.int32) if "labels" in entry else None
    groups, languages = (tuple(entry[name]) if name in entry else None for name in ("groups", "languages"))
    aligned = [column for column in (top, margins, labels, groups, languages) if column is not None]
    indices = [column for column in (top, labels) if column is not None]
    if (
        top.ndim != 2
        or scores.shape != top.shape
        or any(len(column) != len(ids) for column in aligned)
        or any(((column < 0) | (column >= len(candidates))).any() for column in indices)
        or not np.isfinite(scores).all()
    ):
        raise ValueError("answers do not fit their queries and candidates")
    return Answers(ids, candidates, top, scores, margins, labels, groups, languages)


def _evidence(entry: JsonObject, lists: Mapping[str, tuple[str, ...]]) -> Evidence:
    ids = _ids(lists, entry["ids"])
    contents, pixels, lengths, sketches = (_unpack(entry[k]) for k in ("contents", "pixels", "lengths", "sketches"))
    if (
        {len(contents), len(lengths), len(sketches), len(pixels) or len(ids)} != {len(ids)}
        or sketches.ndim != 2
        or not np.isfinite(lengths).all()
    ):
        raise ValueError("evidence does not fit its items")
    return Evidence(ids, contents, pixels, lengths.astype(np.float32), sketches, entry["dim"])


def _verdict(key: Key, entry: JsonObject) -> Verdict:
    interval = {"interval": tuple(entry["interval"])} if "interval" in entry else {}
    verdict: Verdict = _take(Verdict, {**entry, "key": key, "outcome": entry["verdict"], **interval})
    return verdict


def _take(kind: Any, entry: JsonObject) -> Any:
    """Build a dataclass, or a named tuple, from the keys it knows."""
    return kind(**{name: entry[name] for name in kind.__annotations__ if name in entry})


@cache
def run_schema() -> JsonObject:
    """Return the JSON Schema of a run file."""
    schema: JsonObject = json.loads(Path(__file__).with_name("run.schema.json").read_text(encoding="utf-8"))
    return schema


def read_run(path: Path, largest_bytes: int = LARGEST_RUN_BYTES) -> Run:
    """Return the run in a file.

    Raises: RunFormatError naming the file, the place in it, and the next step: missing, no regular file, too large, no JSON, truncated,
    NaN, no run, another schema version, a key missing or of the wrong type, duplicate ids, lists of different length.
    """
    return run_of(path, read_document(path, largest_bytes))


def read_document(path: Path, largest_bytes: int = LARGEST_RUN_BYTES) -> JsonObject:
    """Return a run file's whole JSON object, checked against the schema. Raises: RunFormatError as `read_run`."""
    return check_document(path, read_finite(path, largest_bytes))


def read_finite(path: Path, largest_bytes: int = LARGEST_RUN_BYTES) -> Any:
    """Return the JSON value in a file. Raises: RunFormatError for what is no JSON, or holds NaN or infinity; as `read_run`."""
    try:
        return read_json(path, largest_bytes, parse_float=_finite_number)
    except TooLargeError as error:
        raise RunFormatError(f"{error}; --max-file-size MB raises that") from error
    except (DataError, DataUnavailableError) as error:
        raise RunFormatError(f"{error}; {_HINT}") from error


def check_document(path: Path, entry: Any) -> JsonObject:
    """Return the JSON value of a run file once it holds to the schema; `path` is for messages. Raises: RunFormatError."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    if not isinstance(entry, dict) or "clipbench" not in entry:
        is_benchmark = isinstance(entry, dict) and "benchmarks" in entry
        kind = "a pytest-benchmark file without the key `clipbench`" if is_benchmark else "no run"
        raise RunFormatError(f"{path} is {kind}; {_HINT}")
    version = entry["clipbench"].get("schema") if isinstance(entry["clipbench"], dict) else None
    if version != SCHEMA_VERSION:
        raise RunFormatError(
            f"{path} has run schema {version!r}, this clipbench reads {SCHEMA_VERSION}: it stores evidence that an older run does "
            f"not have; measure again with this version (a baseline: remove the file first)"
        )
    if _depth(entry) > MAX_DEPTH:
        raise RunFormatError(f"{path} is nested more than {MAX_DEPTH} deep; the file is damaged, {_HINT}")
    error = best_match(islice(Draft202012Validator(run_schema()).iter_errors(entry), 20))
    if error is not None:
        place = ".".join(map(str, error.absolute_path))
        raise RunFormatError(f"{path}: {place}: {error.message[:200]}; the file is damaged, {_HINT}")
    return entry


def run_of(path: Path, document: JsonObject) -> Run:
    """Return the run of a document that `read_document` gave; `path` is for messages. Raises: RunFormatError."""
    try:
        run = run_from_json(document["clipbench"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunFormatError(f"{path}: {type(error).__name__}: {error}; the file is damaged, {_HINT}") from error
    for result in run.results:
        for name, score in result.scores.items():
            _check_score(f"{path}: {result.experiment} of {result.model.name}: {name}", score)
    return run


def timings_of(document: JsonObject) -> tuple[Timing, ...]:
    """Return pytest-benchmark's timings of a document; what is not in its usual form is left out."""
    found = []
    for entry in document.get("benchmarks", ()):
        with suppress(AttributeError, KeyError, TypeError, ValueError):
            seconds = tuple(float(s) for s in entry["stats"].get("data", ()))
            found.append(Timing(str(entry["name"]), str((entry.get("params") or {}).get("subject", "")), seconds))
    return tuple(found)


def _finite_number(word: str) -> float:
    if not math.isfinite(number := float(word)):
        raise ValueError(f"it holds {word}, and a run holds finite numbers only")
    return number


def _depth(entry: Any) -> int:
    """How deeply lists and objects are nested: of texts and numbers 0."""
    depth, level = 0, [entry]
    while level := [
        inner
        for one in level
        if isinstance(one, dict | list)
        for inner in (one.values() if isinstance(one, dict) else one)
    ]:
        depth += 1
    return depth


def _check_score(where: str, score: Score) -> None:
    """What the schema cannot say: a value is the mean of its outcomes, ids are unique, and JSON's whole numbers have no end."""
    if any(abs(number) > sys.float_info.max for number in (score.value, *(score.interval or ()))):
        raise RunFormatError(f"{where} is no finite number; {_HINT}")
    if score.outcomes is None:
        return
    ids, mean = score.outcomes.ids, float(np.mean(score.outcomes.values)) if score.n else score.value
    if score.n != len(ids) or abs(mean - score.value) > MEAN_TOLERANCE * max(1.0, abs(score.value)):
        raise RunFormatError(
            f"{where} is {score.value:.6g} at n={score.n}, and its {len(ids)} outcomes average to {mean:.6g}: the file was "
            f"changed; {_HINT}"
        )
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise RunFormatError(f"{where} has the id {twice!r} more than once; ids must be unique, {_HINT}")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: into a temporary neighbour, flushed, then renamed, and the folder flushed. Parents are made.

    What a writer that was killed left behind goes, once nobody can be writing it any more.

    Raises: OSError when the disk is full or the folder cannot be written; the old file, if any, is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name[:100]}."
    handle, temporary = tempfile.mkstemp(".part", prefix, path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            now = os.fstat(file.fileno()).st_mtime
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)
    for left in path.parent.glob(f"{glob.escape(prefix)}*.part"):
        with suppress(OSError):  # another writer's, gone by now
            if left.lstat().st_mtime < now - _LONGEST_WRITE_SECONDS:
                left.unlink()


def _flush_folder(folder: Path) -> None:
    """A rename is on the disk when its folder is. Not on Windows, which opens no folder."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network file systems that have no such thing
                raise
        finally:
            os.close(handle)


def sha256_of_json(entry: Any) -> str:
    """Return the SHA-256 (hex) of a JSON value, whatever the order of its keys. Raises: ValueError for NaN and infinity."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True, allow_nan=False).encode()).hexdigest()


def dump_json(entry: JsonObject) -> str:
    """Return JSON with sorted keys. Raises: ValueError for NaN and infinity."""
    return json.dumps(entry, sort_keys=True, allow_nan=False, indent=1) + "\n"
