"""Embeddings held to a file, in anybody's tests: `def test_embeddings(embedding_regression): embedding_regression.check(encoder)`.

The idiom is pytest-regressions': a file beside the test, made on purpose (`--clipbench-update --clipbench-reason TEXT`), and never by
a first run. It is JSON for tests in other languages, too: see `docs/fixture.md`. No torch is needed but for models by name.
"""

import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipbench.data.dataset import read_image
from clipbench.embed.trace import (
    PICTURES,
    TEXTS,
    TRACE_VERSION,
    WHOLE_ROW,
    activations_of,
    inputs_of,
    pictures,
    read_sample,
    sample,
)
from clipbench.errors import DataError, EncoderError, UsageError, sanitize
from clipbench.judge.tolerances import read_rules
from clipbench.judge.trace import compare_traces, sentence
from clipbench.models.encoder import Encoder, Rows, as_encoder, unit_rows
from clipbench.paths import read_json
from clipbench.storage import write_atomically
from clipbench.types import JsonObject, Tower

if TYPE_CHECKING:
    from PIL import Image

FORMAT = "clipbench embeddings 1"
LARGEST_BYTES = 100_000_000
BATCH = 8
NAMED = 5
"""Items that a message names of each tower, the furthest first."""

DIGITS = 7
"""Decimals of a stored number: a row of 1,024 is then kept within a cosine distance of 1e-12."""

TOWERS: tuple[Tower, ...] = ("images", "texts")
Pictures = Mapping[str, "Image.Image | Path | str"] | Sequence[Path | str]


class EmbeddingsMovedError(AssertionError):
    """Rows that are further from the stored ones than is allowed, or no file to hold them against."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(map(sanitize, lines)))


@dataclass
class EmbeddingRegression:
    """The fixture. `path`: where the file of a test lies, unless it names another; `update`: write it, because of `reason`."""

    path: Path
    update: bool = False
    reason: str = ""
    author: str = ""
    test: str = ""
    written: list[Path] = field(default_factory=list)
    _used: set[Path] = field(default_factory=set)

    def check(
        self,
        encoder: Any,
        *,
        images: Pictures | None = None,
        texts: Sequence[str] | None = None,
        max_cosine_distance: float | None = None,
        basename: str = "",
    ) -> None:
        """Assert that an encoder gives the stored rows.

        `encoder`: an object with encode_images and encode_texts, or a model's name as on the command line (loaded on the CPU, in fp32).
        `images`: files, or pictures and files by id; `texts`; by default eight of each that clipbench brings along. `max_cosine_distance`:
        of any item to its stored row; by default what the file says, which by default is what its precision explains.
        `basename`: the file's name, where a test has several.

        Raises: EmbeddingsMovedError for rows that moved, items that are not the stored ones, and a file that is not there;
        WeightsUnavailableError, EncoderError, DataError as they come; UsageError for two checks of one file.
        """
        __tracebackhide__ = True
        path = self.path.with_name(f"{basename}.json") if basename else self.path
        if path in self._used:
            raise UsageError(f"{path.name} was checked already in this test; give each check a basename of its own")
        self._used.add(path)
        if max_cosine_distance is not None and not 0 <= max_cosine_distance <= 2:
            raise UsageError(f"max_cosine_distance = {max_cosine_distance}; expected a number from 0 to 2")
        if not (self.update or path.exists()):
            raise EmbeddingsMovedError(
                f"no stored embeddings: {path} is not there", f"make it: {self._command('first')}"
            )
        found = embeddings_of(_encoder_of(encoder), images, texts)
        if self.update:
            self._write(path, found, max_cosine_distance)
            return
        stored = read_embeddings(path)
        limit = stored["max_cosine_distance"] if max_cosine_distance is None else max_cosine_distance
        if lines := differences(stored, found, limit):
            accept = f"to accept: {self._command('why they moved')}"
            raise EmbeddingsMovedError(f"embeddings differ from {path}", *(f"  {line}" for line in lines), accept)

    def _write(self, path: Path, found: JsonObject, limit: float | None) -> None:
        history = read_embeddings(path)["history"] if path.exists() else []
        if limit is None:
            limit = read_rules().budget(found["model"]["precision"]).cosine
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        entry = {"date": date, "author": self.author, "reason": self.reason}
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {"format": FORMAT, "max_cosine_distance": limit, "history": [*history, entry], **found}
        write_atomically(path, _text_of(document))
        self.written.append(path)

    def _command(self, reason: str) -> str:
        return f'pytest "{self.test}" --clipbench-update --clipbench-reason "{reason}"'


def embeddings_of(encoder: Encoder, images: Pictures | None, texts: Sequence[str] | None) -> JsonObject:
    """Return what a file holds of an encoder: `images` and `texts`, lists of {id, row} (unit rows), `model`, `stages`, `activations`.

    Raises: UsageError for ids that repeat; EncoderError for rows that are none; DataError for a picture that cannot be read.
    """
    named = _pictures_of(images)
    asked = list(TEXTS if texts is None else texts)
    for what, given in (("image", [name for name, _ in named]), ("text", asked)):
        if twice := next((one for one in given if given.count(one) > 1), None):
            raise UsageError(f"the {what} {twice!r} is given twice; expected each once")
    shown = [picture for _, picture in named]
    rows = (
        ("images", [name for name, _ in named], _rows(encoder.encode_images, shown)),
        ("texts", asked, _rows(encoder.encode_texts, asked)),
    )
    try:
        inputs = inputs_of(encoder, shown, asked)
    except Exception as error:  # somebody else's encoder
        raise EncoderError(
            f"{encoder.identity.name} does not show its inputs: {type(error).__name__}: {error}"
        ) from error
    found: JsonObject = {tower: [{"id": i, "row": _listed(r)} for i, r in zip(ids, made)] for tower, ids, made in rows}
    return found | {
        "model": asdict(replace(encoder.identity, preprocessing=encoder.preprocessing)),
        "stages": {"decoded_pixels": [sample(np.asarray(picture)) for picture in shown], **inputs},
        **activations_of(encoder),
    }


def read_embeddings(path: Path) -> JsonObject:
    """Return the JSON object of a file, checked. Raises: DataUnavailableError, DataError for what is no such file."""
    document = read_json(path, LARGEST_BYTES)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError(f'{path} is no file of embeddings; expected "format": "{FORMAT}"')
    try:
        limit = float(document["max_cosine_distance"])
        history, model, stages = list(document["history"]), dict(document["model"]), dict(document["stages"])
        towers: JsonObject = {
            tower: [{"id": str(e["id"]), "row": [float(v) for v in e["row"]]} for e in document[tower]]
            for tower in TOWERS
        }
        entries = [entry for tower in TOWERS for entry in towers[tower]]
        dims = {len(entry["row"]) for entry in entries}
        if len(dims) != 1 or not all(abs(_length(entry["row"]) - 1) < 0.01 for entry in entries):
            raise ValueError(f"rows of dim {sorted(dims)}; expected unit rows of one dim")
        if not 0 <= limit <= 2 or any(len({e["id"] for e in towers[t]}) < len(towers[t]) for t in TOWERS):
            raise ValueError("expected a limit from 0 to 2, and each id once")
        for sampled in (one for samples in stages.values() for one in samples):
            _check_sample(sampled)
        model["name"], model["precision"], model["weights_sha256"] = (
            str(model[k]) for k in ("name", "precision", "weights_sha256")
        )
        activations = {str(k): int(n) for k, n in dict(document.get("activations", {})).items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} is damaged: {type(error).__name__}: {error}; make it again") from error
    known = {"activations": activations} if activations else {}
    return {"max_cosine_distance": limit, "history": history, "model": model, "stages": stages, **towers, **known}


def _check_sample(entry: JsonObject) -> None:
    """Raises: ValueError, KeyError or TypeError for what `read_sample` does not expect."""
    shape = entry["shape"]
    if not (isinstance(shape, list) and all(type(n) is int and 0 <= n < 1 << 31 for n in shape)):
        raise ValueError(f"a shape {shape!r:.60}")
    if not all(isinstance(entry[key], str) for key in ("dtype", "sha256", "values")):
        raise ValueError("a stage whose dtype, sha256 or values are no text")
    read_sample(entry)


def differences(stored: JsonObject, found: JsonObject, limit: float) -> list[str]:
    """Return how the rows found differ from those stored, in words; [] where none is further away than `limit`."""
    lines: list[str] = []
    for tower in TOWERS:
        before, after = ({e["id"]: np.array(e["row"]) for e in side[tower]} for side in (stored, found))
        gone, new = [i for i in before if i not in after], [i for i in after if i not in before]
        lines += [f"{tower}: {len(gone)} of the stored are not given: {_named(gone)}"] if gone else []
        lines += [f"{tower}: {len(new)} are not stored: {_named(new)}"] if new else []
        both = [i for i in before if i in after]
        dims = {len(side[i]) for i in both for side in (before, after)}
        if len(dims) > 1:
            lines.append(f"{tower}: dim {len(before[both[0]])} -> {len(after[both[0]])}")
            continue
        distances = {i: float(np.sum((_unit(before[i]) - _unit(after[i])) ** 2) / 2) for i in both}
        moved = sorted((i for i in both if not distances[i] <= limit), key=lambda i: -distances[i])
        if moved:
            named = _named([f"{i[:60]} ({distances[i]:.3g})" for i in moved])
            lines.append(f"{tower}: {len(moved)} of {len(both)} are further than {limit:g} from their row: {named}")
    if lines and all(len(stored[tower]) == len(found[tower]) for tower in TOWERS):
        lines.append(
            f"first stage that moved: {sentence(compare_traces([_trace(stored)], [_trace(found)]), 'encoder')}"
        )
    return lines


def _encoder_of(given: Any) -> Encoder:
    if not isinstance(given, str):
        precision = getattr(getattr(given, "identity", None), "precision", "fp32")
        return as_encoder(given, type(given).__name__, "cpu", precision)
    from clipbench.models import load_encoder
    from clipbench.models.device import resolve_resources
    from clipbench.models.zoo import resolve
    from clipbench.options import is_offline

    specs = resolve((given,), None, None)
    if len(specs) != 1:
        raise UsageError(f"{given} names {len(specs)} models; check one at a time")
    return load_encoder(specs[0], resolve_resources("cpu", "fp32", None, None), is_offline())


def _pictures_of(images: Pictures | None) -> list[tuple[str, "Image.Image"]]:
    """(id, RGB picture) pairs; a file in a list is called by its name."""
    if images is None:
        return list(zip(PICTURES, pictures()))
    pairs = images.items() if isinstance(images, Mapping) else [(Path(one).name, one) for one in images]
    return [(str(i), read_image(Path(one)) if isinstance(one, str | Path) else one.convert("RGB")) for i, one in pairs]


def _rows(encode: Any, inputs: Sequence[Any]) -> Rows:
    parts = [unit_rows(encode(list(inputs[k : k + BATCH]))) for k in range(0, len(inputs), BATCH)]
    return np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)


def _listed(row: Rows) -> list[float]:
    return [round(value, DIGITS) for value in row.astype(float).tolist()]


def _length(row: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in row))


def _unit(row: Any) -> Any:
    return row / np.linalg.norm(row)


def _named(items: Sequence[str]) -> str:
    return ", ".join(items[:NAMED]) + (f" and {len(items) - NAMED} more" if len(items) > NAMED else "")


def _trace(side: JsonObject) -> JsonObject:
    """What a file holds as a trace, by which the first stage that moved is found."""
    rows = {
        f"{tower[:-1]}_rows": [sample(np.array(e["row"], dtype=np.float32), WHOLE_ROW) for e in side[tower]]
        for tower in TOWERS
    }
    stages = {name: samples for name, samples in (side["stages"] | rows).items() if samples}
    trace = {"version": TRACE_VERSION, "model": side["model"] | {"name": "encoder"}, "stages": stages}
    return trace | ({"activations": side["activations"]} if "activations" in side else {})


def _text_of(document: JsonObject) -> str:
    """JSON with sorted keys and one item a line, so that a change can be read in a diff."""

    def compact(value: Any) -> str:
        return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    parts = []
    for key, value in sorted(document.items()):
        body = (
            "[\n  " + ",\n  ".join(map(compact, value)) + "\n]" if isinstance(value, list) and value else compact(value)
        )
        parts.append(f'"{key}": {body}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def file_of(test: Path, name: str) -> Path:
    """Return where the file of a test lies: TEST_MODULE/TEST_NAME.json beside it, as pytest-regressions has it."""
    return test.parent / test.stem / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}.json"
