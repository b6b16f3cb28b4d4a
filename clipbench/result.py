"""The vocabulary: what a measurement, a verdict and a run are, and their JSON. Imports nothing of the package but errors.

Read this file first. An experiment turns (encoder, data set) into a `Result`; judging adds `Verdict`s; a `Run` is all
results of one invocation with their environment. A run's JSON is pytest-benchmark's own plus one key, `clipbench`, whose
value `Run.to_json` makes and `run.schema.json` describes.
"""

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

SCHEMA_VERSION = 1
MAX_STORED_CELLS = 256 * 256

FloatArray = npt.NDArray[np.floating[Any]]
JsonObject = dict[str, Any]
VerdictWord = Literal["pass", "fail", "inconclusive"]
ReferenceKind = Literal["published", "floor", "baseline", "anchor"]


@dataclass(frozen=True)
class ModelIdentity:
    """Which encoder a result is about.

    `weights_sha256` is over the state dict before any cast (see `models.checkpoint.weights_sha256`), `file_sha256` over
    the file it came from; both are "" for an encoder that is not ours. `activation` is "quickgelu", "gelu" or "" where
    the architecture knows only one.
    """

    name: str
    pretrained: str
    weights_sha256: str = ""
    file_sha256: str = ""
    activation: str = ""
    precision: str = "fp32"
    device: str = "cpu"

    @property
    def is_random(self) -> bool:
        """True for seeded random weights: measured and recorded, never held to a floor or a published value."""
        return self.pretrained.split(":")[0] == "random"


@dataclass(frozen=True)
class DatasetIdentity:
    """Which items a result is about: `n` counts the items that were scored."""

    name: str
    fingerprint: str
    n: int


@dataclass(frozen=True)
class Metric:
    """A value with the number of outcomes behind it and, where one can be given, a 95 % interval."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None

    def to_json(self) -> JsonObject:
        """Raises: ValueError for NaN and infinity: a number that is no number is never written."""
        entry = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        for key, value in entry.items():
            if not math.isfinite(value):
                raise ValueError(f"metric has {key} = {value}; only finite numbers are recorded")
        return entry


@dataclass(frozen=True)
class Items:
    """Per-item outcomes. `outcomes[metric]` aligns with `ids`, or with `id_lists[axes[metric]]` where `axes` names one."""

    ids: tuple[str, ...] = ()
    outcomes: Mapping[str, Sequence[float]] = field(default_factory=dict)
    id_lists: Mapping[str, Sequence[str]] = field(default_factory=dict)
    axes: Mapping[str, str] = field(default_factory=dict)

    def ids_of(self, metric: str) -> Sequence[str]:
        """Return the ids that `outcomes[metric]` aligns with."""
        return self.id_lists[self.axes[metric]] if metric in self.axes else self.ids

    def to_json(self) -> JsonObject:
        entry: JsonObject = {"ids": list(self.ids), "axes": dict(self.axes)}
        entry |= {name: list(ids) for name, ids in self.id_lists.items()}
        for metric, values in self.outcomes.items():
            if len(values) != len(self.ids_of(metric)):
                raise ValueError(f"{metric}: {len(values)} outcomes for {len(self.ids_of(metric))} ids")
            entry[metric] = [_plain(v) for v in values]
        return entry


@dataclass(frozen=True)
class Verdict:
    """One metric held against one reference, with the reason in words."""

    metric: str
    reference: str
    kind: ReferenceKind
    expected: float | str
    verdict: VerdictWord
    reason: str


@dataclass(frozen=True)
class Result:
    """Metrics, per-item outcomes and arrays to draw, of one experiment on one encoder."""

    experiment: str
    model: ModelIdentity
    dataset: DatasetIdentity
    protocol: Mapping[str, Any]
    metrics: Mapping[str, Metric]
    items: Items = field(default_factory=Items)
    arrays: Mapping[str, FloatArray] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()

    def to_json(self) -> JsonObject:
        """Return the JSON object of the contract. Arrays over 256 x 256 cells are not stored.

        Raises: ValueError for NaN or infinity anywhere, naming the experiment and the metric.
        """
        try:
            return {
                "experiment": self.experiment,
                "model": dataclasses.asdict(self.model),
                "dataset": dataclasses.asdict(self.dataset),
                "protocol": dict(self.protocol),
                "metrics": {name: metric.to_json() for name, metric in self.metrics.items()},
                "items": self.items.to_json(),
                "arrays": {n: _finite_list(a) for n, a in self.arrays.items() if a.size <= MAX_STORED_CELLS},
                "verdicts": [dataclasses.asdict(v) for v in self.verdicts],
            }
        except ValueError as error:
            raise ValueError(f"{self.experiment} of {self.model.name}: {error}") from error


@dataclass(frozen=True)
class Skip:
    """Something that was not measured or not held to its reference, and why."""

    experiment: str
    model: str
    reason: str


@dataclass(frozen=True)
class Run:
    """All results of one invocation."""

    environment: Mapping[str, Any]
    results: tuple[Result, ...] = ()
    skipped: tuple[Skip, ...] = ()
    probes: tuple[JsonObject, ...] = ()

    def to_json(self) -> JsonObject:
        """Return the value of the run file's `clipbench` key.

        Raises: ValueError for NaN or infinity, naming where.
        """
        return {
            "schema": SCHEMA_VERSION,
            "environment": dict(self.environment),
            "results": [r.to_json() for r in self.results],
            "probes": list(self.probes),
            "skipped": [dataclasses.asdict(s) for s in self.skipped],
        }


def run_from_json(entry: JsonObject) -> Run:
    """Return the run that `Run.to_json` wrote. Unknown keys are ignored; validate against `run.schema.json` first.

    Raises: KeyError, TypeError or ValueError when the entry is no run.
    """
    if entry["schema"] != SCHEMA_VERSION:
        raise ValueError(f"run has schema {entry['schema']!r}, this clipbench reads schema {SCHEMA_VERSION}")
    return Run(
        environment=entry["environment"],
        results=tuple(_result_from_json(r) for r in entry["results"]),
        skipped=tuple(_take(Skip, s) for s in entry["skipped"]),
        probes=tuple(entry.get("probes", ())),
    )


def _result_from_json(entry: JsonObject) -> Result:
    items = dict(entry.get("items", {}))
    ids, axes = tuple(items.pop("ids", ())), items.pop("axes", {})
    id_lists = {name: items.pop(name) for name in sorted(set(axes.values())) if name in items}
    return Result(
        experiment=entry["experiment"],
        model=_take(ModelIdentity, entry["model"]),
        dataset=_take(DatasetIdentity, entry["dataset"]),
        protocol=entry["protocol"],
        metrics={name: _take(Metric, m) for name, m in entry["metrics"].items()},
        items=Items(ids=ids, outcomes=items, id_lists=id_lists, axes=axes),
        arrays={name: np.array(a, dtype=np.float64) for name, a in entry.get("arrays", {}).items()},
        verdicts=tuple(_take(Verdict, v) for v in entry.get("verdicts", ())),
    )


def _take(kind: Any, entry: JsonObject) -> Any:
    """Build a dataclass from the keys it knows."""
    names = {f.name for f in dataclasses.fields(kind)}
    return kind(**{key: value for key, value in entry.items() if key in names})


def _plain(value: float) -> float | int:
    number = value.item() if isinstance(value, np.generic) else value
    if not math.isfinite(number):
        raise ValueError(f"an item's outcome is {number}; only finite numbers are recorded")
    return int(number) if isinstance(number, bool) else number


def _finite_list(array: FloatArray) -> Any:
    if not np.isfinite(array).all():
        raise ValueError("an array holds NaN or infinity; only finite numbers are recorded")
    return [[round(float(cell), 7) for cell in row] for row in array] if array.ndim == 2 else array.tolist()


def write_whole(path: Path, content: str | bytes) -> None:
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
