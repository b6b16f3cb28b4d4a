"""`--resume`: a session that did not come to its end is continued by one that was asked for the same.

A result is taken over where all that it was made with is the same (`made_with`), the trace is, and a sample of its rows, encoded
again, is. Whatever is not, and what keeps no rows (a model card, speed), is measured anew, and the session says why.
"""

import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path

from clipbench.data.dataset import Dataset, file_sha256
from clipbench.embed.embedder import ENCODED_AGAIN
from clipbench.errors import UsageError
from clipbench.experiments import Experiment
from clipbench.judge.rows import Change, rows_moved, shared
from clipbench.judge.tolerances import read_rules
from clipbench.judge.trace import compare_traces, sentence
from clipbench.models.encoder import Encoder
from clipbench.models.zoo import ModelSpec
from clipbench.parts import Parts, read_parts, unfinished
from clipbench.paths import fixtures
from clipbench.redact import pseudonym
from clipbench.storage import sha256_of_json
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

MACHINE = ("processor", "cores", "architecture", "accelerator", "driver", "cuda", "tf32")
"""What of a machine decides a row: not its memory nor its kernel, so that the next one of its kind may continue."""

SOURCES = frozenset({".py", ".so", ".pyd", ".json", ".toml", ".yaml", ".yml", ".txt", ".csv"})
MOST_FILES = 20_000
"""A package may have so many files; in a larger one nobody looks for its source."""

MOST_SHARED = 0.9
"""Of the rows that are encoded again at least so many must be among those that were stored."""


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
    return sorted(names)[:5] or ([] if set(parts.run.plan) == set(plan) else ["other benchmarks, by -k or path"])


def made_with(
    encoder: Encoder,
    source: str,
    subject: SubjectRecord,
    one: Experiment,
    environment: JsonObject,
) -> dict[str, str]:
    """Return a hash of each of `DEPENDS` but the data; "" where that is not known, which is like nothing. `source`: see `source_sha256`."""
    machine = {name: value for name, value in environment["machine"].items() if name in MACHINE}
    return {
        "software": sha256_of_json(environment["software"]),
        "machine": sha256_of_json(machine),
        "code": _code_sha256(one),
        "model": sha256_of_json([asdict(subject), asdict(encoder.identity), encoder.preprocessing]),
        "source": source,
    }


def why_not(left: Left, now: Mapping[str, str], trace: JsonObject) -> str:
    """Return why a result cannot be taken over, as far as hashes and the traces tell, in words; "" where nothing stands against it."""
    if not now["source"]:
        return (
            "it is not known what the encoder depends on: state a `config`, and define its factory in a file of Python"
        )
    if changed := [words for name, words in DEPENDS.items() if not now[name] or left.made_with.get(name) != now[name]]:
        return f"changed since: {'; '.join(changed)}"
    was, is_now = ((one["version"], *sorted(one["stages"]), "error" in one) for one in (left.trace, trace))
    if was != is_now:
        return "its trace shows other stages now"
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
        if len(both.base.ids) < MOST_SHARED * len(after.ids):
            return f"of {len(after.ids):,} of its {tower}, encoded again, {len(both.base.ids):,} are among those that were stored"
        if both.changed or not moved.is_equivalent:
            return f"its {tower}, encoded again, differ: {moved.reason}"
    return ""


def _hashed(root: Path, files: Iterable[Path]) -> str:
    """A hash over files below a folder, by name and content; "" of none, and where one cannot be read."""
    try:
        found = [(path.relative_to(root).as_posix(), file_sha256(path)) for path in sorted(files)]
    except OSError:
        return ""
    return sha256_of_json(found) if found else ""


def _folder_sha256(root: Path) -> str:
    """A hash over the sources and tables below a folder; "" where there is none, or more files than MOST_FILES."""
    paths = list(islice(root.rglob("*"), MOST_FILES + 1))
    return (
        ""
        if len(paths) > MOST_FILES
        else _hashed(root, (path for path in paths if path.suffix in SOURCES and path.is_file()))
    )


@cache
def package_sha256() -> str:
    """Return a hash over this package's own code, tables and fixtures, as they are when it is first asked for."""
    return sha256_of_json([_folder_sha256(Path(__file__).parent), _folder_sha256(fixtures())])


def module_sha256(module: str) -> str:
    """Return a hash over the package that an imported module lies in, over its own file where it is in none; "" where that is no Python."""
    roots = [Path(root) for root in getattr(sys.modules.get(module.partition(".")[0]), "__path__", ())]
    own = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    if own.suffix != ".py":
        return ""
    hashes = [_folder_sha256(root) for root in roots] or [_hashed(own.parent, [own])]
    return sha256_of_json(hashes) if all(hashes) else ""


def source_sha256(spec: ModelSpec, encoder: Encoder) -> str:
    """Return a hash over what an encoder's rows come from beside what it says of itself; "" where that is not known.

    The package or file of a factory, whose encoder states a `config`; rows' own files; else the weights. To be asked for when the encoder
    was just loaded: what is edited afterwards is not what runs.
    """
    if spec.source == "embeddings":
        return _hashed(Path(spec.location), (path for path in Path(spec.location).iterdir() if path.is_file()))
    if spec.source != "factory" or not spec.location:
        return encoder.identity.weights_sha256
    is_known = encoder.depends_on() is not None or bool(encoder.asked().get("config"))
    return module_sha256(spec.location.partition(":")[0]) if is_known else ""


def _code_sha256(one: Experiment) -> str:
    """A hash over this package's code, and over that of an experiment that lies outside of it; "" where that is not known."""
    module = getattr(one.measure, "func", one.measure).__module__
    own = "ours" if module.startswith("clipbench.") else module_sha256(module)
    return own and sha256_of_json([package_sha256(), own])


def data_sha256(dataset: Dataset) -> str:
    """Return a hash over what a result on these items depends on."""
    items = [[item.id, item.group, item.languages, item.must_pass, item.image.converts_depth] for item in dataset.items]
    said = [dataset.name, dataset.fingerprint, dataset.prompts, dict(dataset.options), dict(dataset.exclusions), items]
    return sha256_of_json(said)
