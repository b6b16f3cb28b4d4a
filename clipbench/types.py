"""The vocabulary: what a metric, an outcome, a result, a verdict and a run are. Imports nothing of the package; read it first.

An experiment turns (embedder, data set) into scores; with its evidence that is a `Result`; judging adds `Verdict`s; a `Run` is all
results of one invocation. What a metric *is* stands in its `MetricSpec`: nobody asks its name. What was *asked* is the `Protocol`,
and decides what may be compared; how it *went* is the `Provenance`, and is only reported. `storage` writes and reads all of it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]
JsonObject = dict[str, Any]
MetricKind = Literal["rate", "mean", "cosine", "probability", "count", "per_second", "seconds", "bytes"]
MatrixKind = Literal["cosine", "probability", "count"]
Tower = Literal["images", "texts"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Outcome = Literal["pass", "fail", "inconclusive", "note"]
ReferenceKind = Literal["published", "floor", "contract", "baseline", "anchor"]

SEVERITY: Final[tuple[Outcome, ...]] = ("fail", "inconclusive", "note", "pass")


class Key(NamedTuple):
    """What results, skips and verdicts are about."""

    experiment: str
    model: str
    dataset: str

    def __str__(self) -> str:
        on = f" on {self.dataset}" if self.dataset not in ("", self.experiment) else ""
        return f"{self.experiment} of {self.model}{on}"


Plan = tuple[Key, ...]
"""The keys that an invocation asks for, known before anything is loaded."""


@dataclass(frozen=True)
class MetricSpec:
    """What a metric is. Declared by its experiment, stored with each value.

    `better`: which way is an improvement; "neither" for a description. `cluster`: its items may be dependent, and `Outcomes.clusters`
    then names the witness that each belongs to. `ranked`: models are ranked by it. `headline`: a summary leads with it, and a
    comparison must decide it. `answers` names the `Answers` that say what its items were taken for. `unit` is written behind a
    value that is neither a fraction nor a count.
    """

    name: str
    kind: MetricKind
    better: Literal["higher", "lower", "neither"] = "higher"
    cluster: bool = False
    ranked: bool = False
    headline: bool = False
    answers: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Outcomes:
    """One value per item, (n,) float64, with the items' ids and, where they are dependent, the cluster of each.

    `axis` names the list of ids in a run file ("ids", "image_ids", "text_ids", "classes"): equal lists are stored once.

    Raises: ValueError for lists of different length.
    """

    ids: tuple[str, ...]
    values: FloatArray
    clusters: tuple[str, ...] | None = None
    axis: str = "ids"

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.ids),) or (self.clusters is not None and len(self.clusters) != len(self.ids)):
            raise ValueError(f"{self.values.shape[0]} outcomes for {len(self.ids)} ids")


@dataclass(frozen=True)
class Score:
    """One metric's value over `n` outcomes with its 95 % interval, where one can be given, and the outcomes themselves.

    `spread`: how far the repeats of a timing lie apart (5th to 95th percentile), as a share of their median. `processes`: the seconds
    (or bytes) that each of several fresh processes measured.
    """

    spec: MetricSpec
    value: float
    n: int
    interval: tuple[float, float] | None = None
    outcomes: Outcomes | None = None
    spread: float | None = None
    processes: tuple[float, ...] = ()


@dataclass(frozen=True)
class Matrix:
    """A table of numbers to draw and to compare: `values` (rows, columns) float64, with what its rows and columns are.

    `scale` is what the cosines behind "probability" were multiplied by.
    """

    kind: MatrixKind
    values: FloatArray
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    scale: float = 1.0

    @property
    def is_matching(self) -> bool:
        """True where rows and columns are the same items, so that own pairs stand on the diagonal."""
        return self.rows == self.columns


@dataclass(frozen=True)
class Answers:
    """What each of `ids` (queries) was taken for.

    `top`: (n, k) int32 indices into `candidates`, best first, k at most 5, with their `scores` (n, k) float32; a tie counts against
    the right one. `margins`: (n,) float32, the best right score minus the best wrong one, NaN where nothing is right. `labels`:
    (n,) int32, the right candidate, None where several may be. `groups`: the slice of each query; `languages`: its language.
    """

    ids: tuple[str, ...]
    candidates: tuple[str, ...]
    top: IntArray
    scores: FloatArray
    margins: FloatArray
    labels: IntArray | None = None
    groups: tuple[str, ...] | None = None
    languages: tuple[str, ...] | None = None

    @property
    def slices(self) -> dict[str, IntArray]:
        """Places of the queries of each slice, under its name: groups as they are called, languages as "language de"."""
        found: dict[str, list[int]] = {}
        for place, name in enumerate(self.groups or ()):
            found.setdefault(name, []).append(place)
        for place, name in enumerate(self.languages or ()):
            found.setdefault(f"language {name}" if name else "", []).append(place)
        return {name: np.array(places, dtype=np.int64) for name, places in found.items() if name}

    def confusion(self) -> IntArray:
        """Return (candidates, candidates) int64: row the right one, column the one picked. Raises: ValueError without labels."""
        if self.labels is None:
            raise ValueError("several candidates are right for a query, so none can be confused with another")
        counts = np.zeros((len(self.candidates),) * 2, dtype=np.int64)
        np.add.at(counts, (self.labels, self.top[:, 0]), 1)
        return counts


@dataclass(frozen=True)
class Evidence:
    """What is kept of each item of one tower, so that two runs can be held against each other item by item.

    `contents`: (n,) uint64, the first 64 bits of the SHA-256 of the file, or of the text; `pixels`: (n,) uint64 of the decoded
    pixels, empty for texts. `lengths`: (n,) float32, the raw rows' before they are normalised; `sketches`: (n, 16) int16, see
    `embed.evidence.sketch`; `dim` of the rows. For class rows an item is a class.
    """

    ids: tuple[str, ...]
    contents: npt.NDArray[np.uint64]
    pixels: npt.NDArray[np.uint64]
    lengths: FloatArray
    sketches: npt.NDArray[np.int16]
    dim: int


@dataclass(frozen=True)
class Encoding:
    """How the rows of one tower were made. `n` were asked for; of these `shared` came from this session and `cached` from a cache.

    `checked` rows were encoded again by the reference path, and are no further from it than `largest_distance`. `dropped`: why
    the reference path encoded all of them after all; "" where it did not have to.
    """

    n: int
    shared: int = 0
    cached: int = 0
    checked: int = 0
    largest_distance: float = 0.0
    dropped: str = ""

    def __add__(self, other: "Encoding") -> "Encoding":
        return Encoding(
            self.n + other.n,
            self.shared + other.shared,
            self.cached + other.cached,
            self.checked + other.checked,
            max(self.largest_distance, other.largest_distance),
            self.dropped or other.dropped,
        )


@dataclass(frozen=True)
class ModelIdentity:
    """Which encoder a result is about.

    `weights_sha256` is over the state dict before any cast (see `models.checkpoint.weights_sha256`), `file_sha256` over
    the file it came from; both are "" for an encoder that is not ours. `activation` is "quickgelu", "gelu" or "" where
    the architecture knows only one. `preprocessing` is one line that changes whenever a pixel would. `known_as`: the name under
    which references know the model, where `name` is an alias.
    """

    name: str
    pretrained: str
    weights_sha256: str = ""
    file_sha256: str = ""
    activation: str = ""
    precision: str = "fp32"
    device: str = "cpu"
    preprocessing: str = ""
    known_as: str = ""

    @property
    def reference_name(self) -> str:
        """The name under which published values know it."""
        return self.known_as or self.name

    @property
    def is_random(self) -> bool:
        """True for seeded random weights: measured, and held to their card alone."""
        return self.pretrained.split(":")[0] == "random"

    @property
    def label(self) -> str:
        """The model's name with its weights, as people call it."""
        return self.name if self.pretrained in ("", "factory", self.name) else f"{self.name} ({self.pretrained})"


@dataclass(frozen=True)
class DatasetIdentity:
    """Which items a result is about: `n` counts the items that were scored."""

    name: str
    fingerprint: str
    n: int


@dataclass(frozen=True)
class Protocol:
    """What was asked: prompts, the class list, and options such as split and crop. It decides what may be compared."""

    prompts: tuple[str, ...] = ()
    metric_version: int = 1
    classes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def entries(self) -> JsonObject:
        """Return all of it as one flat object."""
        classes = {"classes": list(self.classes)} if self.classes else {}
        return {"prompts": list(self.prompts), "metric_version": self.metric_version, **self.options, **classes}


@dataclass(frozen=True)
class Provenance:
    """How it went. Reported, never an obstacle.

    `optimizations` name what was done otherwise than on the reference path; `exclusions` count items that were left out, changed
    or counted on purpose; `broken` names files that could not be decoded, the first 20. `card`: what a CUDA card was doing when a
    speed was timed, see `models.device.card_state`. `must_pass`: items that fail a comparison alone. `resumed`: when the session began
    that measured it and did not come to its end, see `resume`; "" where it was measured in the session of its run.
    """

    optimizations: tuple[str, ...] = ()
    encoding: Mapping[Tower, Encoding] = field(default_factory=dict)
    exclusions: Mapping[str, int] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    card: Mapping[str, float] = field(default_factory=dict)
    must_pass: tuple[str, ...] = ()
    resumed: str = ""

    @property
    def left_out(self) -> str:
        """Which images were asked for and not measured, in words; "" where none were."""
        absent, broken = (self.exclusions.get(name, 0) for name in ("images_absent", "broken_images"))
        found = [f"{absent:,} absent image(s)"] if absent else []
        found += [f"{broken:,} broken image(s): {', '.join(self.broken)}"] if broken else []
        return ", ".join(found)


@dataclass(frozen=True)
class Verdict:
    """One judgement, with the reason in words: a score against a reference, or a head against its base.

    `metric` is "" where the whole result is meant. `reference` and `expected` say what it was held to; `base`, `head`, `lost`,
    `gained` and `interval` (of head minus base) what changed, in comparisons; `cell` is the judgement that it is part of, `items` are
    those that it names. `is_loss`: a loss that is significant and within what is allowed.
    """

    key: Key
    metric: str
    kind: str
    outcome: Outcome
    reason: str
    reference: str = ""
    expected: float | str | None = None
    base: float | None = None
    head: float | None = None
    n: int = 0
    lost: int | None = None
    gained: int | None = None
    interval: tuple[float, float] | None = None
    cell: str = ""
    items: tuple[str, ...] = ()
    is_loss: bool = False

    @property
    def finding(self) -> str:
        """The reason with the metric before it, and in comparisons the values of base and head."""
        if self.base is not None and self.head is not None:
            return f"{self.metric} {self.base:.4g} -> {self.head:.4g}: {self.reason}"
        return f"{self.metric}: {self.reason}" if self.metric not in self.reason else self.reason


@dataclass(frozen=True)
class Result:
    """What one experiment gave on one encoder and data set: scores by metric name, and the evidence behind them."""

    experiment: str
    model: ModelIdentity
    dataset: DatasetIdentity
    protocol: Protocol
    scores: Mapping[str, Score]
    matrices: Mapping[str, Matrix] = field(default_factory=dict)
    answers: Mapping[str, Answers] = field(default_factory=dict)
    evidence: Mapping[Tower, Evidence] = field(default_factory=dict)
    provenance: Provenance = Provenance()
    verdicts: tuple[Verdict, ...] = ()

    @property
    def key(self) -> Key:
        """What the result is about."""
        return Key(self.experiment, self.model.name, self.dataset.name)

    @property
    def is_timed(self) -> bool:
        """True for a result of timings and memory alone, which depends on the machine."""
        kinds = {score.spec.kind for score in self.scores.values()}
        return bool(kinds) and kinds <= {"per_second", "seconds", "bytes"}

    @property
    def is_counted(self) -> bool:
        """True for a result of plain counts alone, read off the model."""
        return {score.spec.kind for score in self.scores.values()} == {"count"}


@dataclass(frozen=True)
class Skip:
    """Something that was not measured, and why."""

    key: Key
    reason: str


@dataclass(frozen=True)
class SubjectRecord:
    """A model under test: what somebody chose (`asked`), and what was found to be so (`observed`), as JSON values.

    Asked: alias, loader, weights, precision, activation, preprocessing, `config` of an own encoder. Observed: hashes of weights and
    of every tensor, activation, preprocessing, tokenizer, dim, logit scale and bias, device.
    """

    model: str
    asked: JsonObject
    observed: JsonObject


@dataclass(frozen=True)
class Run:
    """All results of one invocation, with what it was asked for. `traces`: see `embed.trace`. `accepted`: cells that did not pass and
    that somebody accepted, with numbers, reason, author and date.
    """

    environment: Mapping[str, Any]
    results: tuple[Result, ...] = ()
    skipped: tuple[Skip, ...] = ()
    subjects: tuple[SubjectRecord, ...] = ()
    traces: tuple[JsonObject, ...] = ()
    plan: Plan = ()
    id: str = ""
    time: str = ""
    accepted: tuple[JsonObject, ...] = ()


def overall(outcomes: Iterable[Verdict | Outcome]) -> Outcome:
    """Return the worst of them: fail, inconclusive, pass; "note" where nothing was judged, which is no pass."""
    found = {o if isinstance(o, str) else o.outcome for o in outcomes} - {"note"}
    return next((outcome for outcome in SEVERITY if outcome in found), "note")


def by_severity(verdicts: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """Return the verdicts: what fails, what is inconclusive, notes, passes; otherwise in their order."""
    return tuple(sorted(verdicts, key=lambda verdict: SEVERITY.index(verdict.outcome)))


def short(value: Any, letters: int = 60) -> str:
    """Return a value of a protocol in at most so many letters."""
    value = "absent" if value is None else value
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= letters else f"{text[: letters - 3]}..."
