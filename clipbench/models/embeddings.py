"""`embeddings:FOLDER`: rows made elsewhere, by another program, language or service. Imports no torch.

    images.npy     (images, dim) float16, float32 or float64      image_ids.txt    the id of each, one a line
    texts.npy      (texts, dim)                                   texts.txt        each text, one a line; or texts.jsonl, each a JSON string
    about.json     optional: {"config": {...}, "logit_scale": 100.0, "logit_bias": 0.0}

Ids are those of the data set: CLASS/FILE of class folders, `id` or the file of a list, image ids of COCO. Texts are the captions, or
for classes every template with every class's name in it, as they reach a tokenizer.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipbench.errors import ClipbenchError, DataError, DataUnavailableError, EncoderError
from clipbench.models.encoder import Encoder, Ready, Rows, checked_rows
from clipbench.models.grammar import EXPECTED
from clipbench.paths import LARGEST_SETTINGS_BYTES, parse_json, read_json, read_text
from clipbench.saved_rows import read_matrix
from clipbench.types import JsonObject, ModelIdentity, Tower

_NAMED = 3


class SavedEncoder(Encoder):
    """Gives the row that lies under an item's id, or under a text. It encodes nothing: what has no row is an error."""

    preprocessing = "rows made elsewhere"
    card: Mapping[str, int] = {}

    def __init__(self, folder: Path, name: str, pretrained: str, precision: str = "fp32") -> None:
        """Raises: DataError for rows and ids of different number, ids that repeat, towers of different dim, rows that are none."""
        self.identity = ModelIdentity(name, pretrained, precision=precision, device="cpu")
        texts = folder / "texts.jsonl"
        said = _json_lines(texts) if texts.is_file() else _lines(folder / "texts.txt")
        ids = {"images": _lines(folder / "image_ids.txt"), "texts": said}
        self._rows: dict[Tower, Rows] = {}
        self._place: dict[Tower, dict[str, int]] = {}
        for tower in ("images", "texts"):
            path = folder / f"{tower}.npy"
            rows, names = read_matrix(path), ids[tower]
            if len(rows) != len(names):
                raise DataError(
                    f"{path} has {len(rows):,} rows for {len(names):,} {tower} that are named; expected one for each"
                )
            place = {key: k for k, key in enumerate(names)}
            if len(place) < len(names):
                twice = next(key for k, key in enumerate(names) if place[key] != k)
                raise DataError(f"{folder}: {tower} name {twice[:80]!r} twice; give each one row")
            self._rows[tower] = checked_rows(rows, len(rows), str(path))
            self._place[tower] = place
        dims = [self._rows[tower].shape[1] for tower in ("images", "texts")]
        if dims[0] != dims[1]:
            raise DataError(
                f"{folder}: images.npy has rows of dim {dims[0]}, texts.npy of dim {dims[1]}; expected the same dim"
            )
        self._about = _about(folder / "about.json")

    def by_id(self, tower: Tower, names: Sequence[str]) -> Rows:
        """Return (names, dim) rows. Raises: DataUnavailableError where none of them has a row; DataError where some have none."""
        place = self._place[tower]
        absent = [name for name in names if name not in place]
        if absent:
            what = "id" if tower == "images" else "text"
            listed = ", ".join(repr(name[:80]) for name in absent[:_NAMED])
            text = f"{self.identity.name} has no row for {len(absent):,} of {len(names):,} {tower}, such as the {what} {listed}"
            raise (DataUnavailableError if len(absent) == len(names) else DataError)(f"{text}; add their rows")
        return self._rows[tower][[place[name] for name in names]]

    def encode_images(self, images: Sequence[Image.Image]) -> Rows:
        raise EncoderError(f"{self.identity.name}: rows made elsewhere, by id: no picture can be encoded")

    def encode_texts(self, texts: Sequence[str]) -> Rows:
        return self.by_id("texts", texts)

    def ready_images(self, images: Sequence[Image.Image]) -> Ready:
        raise DataUnavailableError(f"{self.identity.name}: rows made elsewhere: there is nothing to time")

    def ready_texts(self, texts: Sequence[str]) -> Ready:
        return self.ready_images([])

    def asked(self) -> JsonObject:
        config = self._about.get("config")
        return {"config": config} if config else {}

    def observed(self) -> JsonObject:
        scales = {key: float(self._about[key]) for key in ("logit_scale", "logit_bias") if key in self._about}
        return {"preprocessing": self.preprocessing, "dim": self._rows["images"].shape[1], "device": "cpu", **scales}

    def close(self) -> None:
        self._rows, self._place = {}, {}


def load_embeddings(folder: Path, name: str, pretrained: str, precision: str) -> SavedEncoder:
    """Return the encoder of a folder of rows. Raises: DataError naming the file that is absent or malformed, with what is expected."""
    try:
        return SavedEncoder(folder, name, pretrained, precision)
    except ClipbenchError as error:
        raise DataError(f"{error}; expected {EXPECTED['embeddings']}") from error


def _lines(path: Path) -> list[str]:
    lines = read_text(path).split("\n")
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def _json_lines(path: Path) -> list[str]:
    found = [parse_json(line, f"{path}:{number}") for number, line in enumerate(_lines(path), 1)]
    if (bad := next((k for k, text in enumerate(found, 1) if not isinstance(text, str)), None)) is not None:
        raise DataError(f"{path}:{bad} is {json.dumps(found[bad - 1])[:60]}; expected a JSON string")
    return found


def _about(path: Path) -> Mapping[str, Any]:
    about = read_json(path, LARGEST_SETTINGS_BYTES) if path.is_file() else {}
    numbers = [about[key] for key in ("logit_scale", "logit_bias") if key in about] if isinstance(about, dict) else [""]
    if not all(type(n) in (int, float) and np.isfinite(n) for n in numbers) or not isinstance(
        about.get("config", {}), dict
    ):
        raise DataError(
            f"{path} is not as expected: an object with config (an object), logit_scale and logit_bias (numbers)"
        )
    return dict(about)
