"""`--resume`: a session that did not come to its end is continued by one that was asked for the same.

A result is taken over where all that it was made with is the same (`made_with`), the trace is, and a sample of its rows, encoded
again, is. Whatever is not, and what keeps no rows (a model card, speed), is measured anew, and the session says why.
"""

import hashlib
import json
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path

from clipbench.data.dataset import Dataset, file_sha256
from clipbench.embed.embedder import ENCODED_AGAIN, Embedder
from clipbench.errors import UsageError
from clipbench.experiments import Experiment, Measured
from clipbench.judge.rows import Change, rows_moved, shared
from clipbench.judge.tolerances import read_rules
from clipbench.judge.trace import compare_traces, sentence
from clipbench.models.encoder import Encoder, find_factory
from clipbench.models.zoo import ModelSpec
from clipbench.parts import Parts, read_parts, unfinished
from clipbench.redact import pseudonym
from clipbench.types import JsonObject, Key, Plan, Result, SubjectRecord

DEPENDS: Mapping[str, str] = {
    "software": "the versions of Python and of packages",
    "machine": "the machine",
    "code": "the code of clipbench or of the experiment",
    "model": "the model: its weights, preprocessing, tokenizer or settings",
    "source": "the source of the encoder",
    "data": "the data set: its files, captions, labels, prompts or options",
}
"""What a result depends on, by the name that its part has for it, in words."""

MOST_SOURCES = 10_000
"""Files of Python that an encoder's distribution may have; more are not looked through."""


@dataclass(frozen=True)
class Left:
    """A result that an unfinished session left: what it was `made_with`, the trace of its model, and when its session began."""

    result: Result
    made_with: Mapping[str, str]
    trace: JsonObject
    time: str


def results_left(results: Path, plan: Plan, asked: Mapping[str, str], largest_bytes: int) -> dict[Key, list[Left]]:
    """Return what unfinished sessions on a folder left that were asked for the same, the latest first; {} where there is none.

    Raises: UsageError where all that are there were asked for something else; RunFormatError for a damaged part.
    """
    sessions = [read_parts(folder, largest_bytes) for folder in unfinished(results)]
    sessions.sort(key=lambda parts: parts.run.time, reverse=True)
    same = [parts for parts in sessions if not _otherwise(parts, plan, asked)]
    if sessions and not same:
        latest = sessions[0]
        raise UsageError(
            f"--resume: the session in {latest.folder} was asked for something else ({', '.join(_otherwise(latest, plan, asked))}); "
            "ask for the same, or leave --resume out and measure anew"
        )
    left: dict[Key, list[Left]] = {}
    for parts in same:
        traces = {str(trace["model"]["name"]): trace for trace in parts.run.traces}
        for result in parts.run.results:
            if result.evidence.get("images") is not None and result.model.name in traces:
                made_with, began = parts.made_with.get(result.key, {}), result.provenance.resumed or parts.run.time
                left.setdefault(result.key, []).append(Left(result, made_with, traces[result.model.name], began))
    return left


def _otherwise(parts: Parts, plan: Plan, asked: Mapping[str, str]) -> list[str]:
    """What a session was asked otherwise, by the options' names."""
    names = [name for name in asked.keys() | parts.asked.keys() if asked.get(name) != parts.asked.get(name)]
    return sorted(names)[:5] or ([] if parts.run.plan == plan else ["other benchmarks, by -k or path"])


def made_with(
    spec: ModelSpec,
    encoder: Encoder,
    subject: SubjectRecord,
    one: Experiment,
    dataset: Dataset,
    environment: JsonObject,
) -> dict[str, str]:
    """Return a hash of each of `DEPENDS`; "" where that is not known, which is like nothing."""
    machine = {name: value for name, value in environment["machine"].items() if name != "threads"}
    return {
        "software": _sha256(environment["software"]),
        "machine": _sha256(machine),
        "code": _code_sha256(one),
        "model": _sha256([asdict(subject), asdict(encoder.identity), encoder.preprocessing]),
        "source": _source_sha256(spec, encoder),
        "data": _data_sha256(dataset),
    }


def why_not(left: Left, now: Mapping[str, str], trace: JsonObject) -> str:
    """Return why a result cannot be taken over, as far as hashes and the traces tell, in words; "" where nothing stands against it."""
    if not now["source"]:
        return (
            "it is not known what the encoder depends on: state a `config`, and define its factory in a file of Python"
        )
    if changed := [words for name, words in DEPENDS.items() if not now[name] or left.made_with.get(name) != now[name]]:
        return f"changed since: {'; '.join(changed)}"
    findings = compare_traces([left.trace], [trace])
    return sentence(findings, left.result.model.name) if any(found.moved for found in findings) else ""


def sample_of(dataset: Dataset, left: Left) -> Dataset:
    """Return the part of a data set whose rows are encoded again: 299 of its images, in its own protocol.

    Of classes those of these images, where there are more than 299.
    """
    stored = left.result.evidence["images"].ids
    known = {pseudonym(item.id): item.id for item in dataset.items}
    own = {item.id for item in dataset.items}
    drawn = random.Random(str(left.result.key)).sample(stored, min(len(stored), ENCODED_AGAIN))  # noqa: S311  # no secret
    ids = {item if item in own else known.get(item, item) for item in drawn}
    classes: Sequence[str] = dataset.classes
    if len(classes) > ENCODED_AGAIN:
        labels = {label for item in dataset.items if item.id in ids for label in item.labels}
        classes = [classes[k] for k in sorted({*labels, 0, 1})]
    return replace(dataset.part(ids, classes), prompts=left.result.protocol.prompts)


def rows_differ(left: Left, again: Result, trace: JsonObject) -> str:
    """Return how rows that were encoded again differ from those of a result, in words; "" where they agree."""
    if left.result.evidence.keys() != again.evidence.keys():
        return "it has rows of other towers now"
    noise = [float(one.get("batches", 0.0)) for one in (left.trace, trace)]
    change, moves = (
        Change(frozenset(), precision=again.model.precision, base_noise=noise[0], head_noise=noise[1]),
        read_rules().moves,
    )
    for tower, after in again.evidence.items():
        both = shared(left.result.evidence[tower], after)
        moved = rows_moved(both.base, both.head, change, moves)
        if both.changed or not moved.is_equivalent:
            return f"its {tower}, encoded again, differ: {moved.reason}"
    return ""


def measured_again(one: Experiment, embedder: Embedder, dataset: Dataset, left: Left) -> tuple[Dataset, Measured]:
    """Return a sample of what a result is of, and what it gives now: no row comes from a cache. Raises: as measuring does."""
    part = sample_of(dataset, left)
    return part, one.measure(embedder.without_cache(), part)


def _sha256(entry: object) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True, default=str).encode()).hexdigest()


def _hashed(root: Path, files: Iterable[Path]) -> str:
    """A hash over files below a folder, by name and content; "" of none, and where one cannot be read."""
    try:
        found = [(path.relative_to(root).as_posix(), file_sha256(path)) for path in sorted(files)]
    except OSError:
        return ""
    return _sha256(found) if found else ""


@cache
def package_sha256() -> str:
    """Return a hash over this package's own files of Python and tables."""
    root = Path(__file__).parent
    return _hashed(root, (path for path in root.rglob("*") if path.suffix in (".py", ".toml", ".json", ".txt")))


def _source_sha256(spec: ModelSpec, encoder: Encoder) -> str:
    """A hash over what an encoder's rows come from beside what it says of itself: its factory's source, or the rows' own files."""
    if spec.source == "embeddings":
        return _hashed(Path(spec.location), (path for path in Path(spec.location).iterdir() if path.is_file()))
    if spec.source != "factory":
        return encoder.identity.weights_sha256
    is_known = encoder.depends_on() is not None or bool(encoder.asked().get("config"))
    return factory_source_sha256(spec.location) if is_known else ""


def factory_source_sha256(name: str) -> str:
    """Return a hash over the source of the package that `package.module:factory` lies in, of its module's file where it is in none.

    "" where that is no Python, or more than 10,000 files.
    """
    find_factory(name)
    module = name.partition(":")[0]
    roots = [Path(root) for root in getattr(sys.modules[module.partition(".")[0]], "__path__", ())]
    own = Path(getattr(sys.modules[module], "__file__", None) or "")
    if own.suffix != ".py":
        return ""
    if not roots:
        return _hashed(own.parent, [own])
    found = [list(islice(root.rglob("*.py"), MOST_SOURCES + 1)) for root in roots]
    hashes = [_hashed(root, files) for root, files in zip(roots, found, strict=True)]
    return _sha256(hashes) if all(hashes) and max(map(len, found)) <= MOST_SOURCES else ""


def _code_sha256(one: Experiment) -> str:
    """A hash over this package's code, and over the file of an experiment that lies outside of it; "" where that has none."""
    module = getattr(one.measure, "func", one.measure).__module__
    if module.startswith("clipbench."):
        return package_sha256()
    file = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    own = _hashed(file.parent, [file])
    return own and _sha256([package_sha256(), own])


def _data_sha256(dataset: Dataset) -> str:
    """A hash over what a result on these items depends on."""
    items = [[item.id, item.group, item.languages, item.must_pass, item.image.converts_depth] for item in dataset.items]
    said = [dataset.name, dataset.fingerprint, dataset.prompts, dict(dataset.options), dict(dataset.exclusions), items]
    return _sha256(said)
