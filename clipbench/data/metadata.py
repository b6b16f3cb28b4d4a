"""A list of pictures in a file: `metadata.jsonl` (one object a line) or `metadata.csv` (one row a picture, names in the first).

Keys, of which the picture and its texts or labels are needed:

    image (or file_name)             its file, relative to the list's folder
    texts (or text, captions, caption)     one text, or a list
    labels (or label)                one class, or a list
    id                               what the item is called; without it, its file
    group                            its slice, such as the season it was taken in
    language                         of its texts: one for all, or a list as long as `texts`
    must_pass                        true where a comparison fails if this item alone is lost

Other keys are left alone, unless they are spelt nearly like one of these. In CSV a list is written as JSON.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from clipbench.data.coco import is_text
from clipbench.data.dataset import ImageRef, Item, find_images
from clipbench.errors import DataError
from clipbench.paths import parse_json, read_text

NAMES = ("metadata.jsonl", "metadata.csv")
SUFFIXES = (".jsonl", ".csv")
_ALIKE = {
    "image": "image", "file_name": "image", "texts": "texts", "text": "texts", "captions": "texts", "caption": "texts",
    "labels": "labels", "label": "labels", "id": "id", "group": "group", "language": "language", "must_pass": "must_pass",
}  # fmt: skip
_MISSPELT = 0.8
_FLAGS: Mapping[Any, bool] = {True: True, False: False, "true": True, "false": False, "1": True, "0": False, "": False}


@dataclass(frozen=True)
class Row:
    """One line of the list: `where` it stands, the picture's file, and what is said of it."""

    where: str
    id: str
    image: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    group: str
    languages: tuple[str, ...]
    must_pass: bool

    def item(self, image: ImageRef, labels: tuple[int, ...]) -> Item:
        """Return the item, its labels as numbers."""
        return Item(self.id, image, self.texts, labels, self.group, self.languages, self.must_pass)


def read_rows(path: Path) -> tuple[list[Row], list[ImageRef]]:
    """Return the rows of a list and where the picture of each is. No picture is opened.

    Raises: DataError naming file and line for what does not parse, an id that repeats, a picture that is not there or lies outside
    the list's folder, and a row with neither text nor label; DataUnavailableError where the file cannot be read.
    """
    rows: list[Row] = []
    seen: dict[str, str] = {}
    for where, entry in _csv(path) if path.suffix.lower() == ".csv" else _jsonl(path):
        row = _row(where, entry)
        if row.id in seen:
            raise DataError(f"{where} repeats the id {row.id!r} of {seen[row.id]}; give each its own `id`")
        seen[row.id] = where
        rows.append(row)
    if not rows:
        raise DataError(f"{path} holds no item; expected one object a line with `image` and `texts` or `labels`")
    refs = find_images(path.parent, "./", {k: row.image for k, row in enumerate(rows)}, path)
    absent = [row for k, row in enumerate(rows) if k not in refs]
    if absent:
        more = f" ({len(absent):,} of {len(rows):,} pictures are absent)" if len(absent) > 1 else ""
        raise DataError(
            f"{absent[0].where} names the picture {absent[0].image!r}, which is not in {path.parent}{more}; "
            "add the file or take out the line"
        )
    return rows, [refs[k] for k in range(len(rows))]


def _jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        entry = parse_json(line, f"{path}:{number}")
        if not isinstance(entry, dict):
            raise DataError(
                f"{path}:{number} is {line[:60]!r}; expected an object with `image` and `texts` or `labels`"
            )
        yield f"{path}:{number}", entry


def _csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        names = next(reader, [])
        for values in reader:
            where = f"{path}:{reader.line_num}"
            if not values:
                continue
            if len(values) != len(names):
                raise DataError(
                    f"{where} has {len(values)} columns, and the first line names {len(names)}; mend the line"
                )
            entry: dict[str, Any] = dict(zip(names, values, strict=True))
            for key, value in entry.items():
                if _ALIKE.get(key) in ("texts", "labels", "language") and value.lstrip().startswith("["):
                    entry[key] = parse_json(value, f"{where}, {key}")
            yield where, {key: value for key, value in entry.items() if value != ""}
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num} is no CSV: {error}; mend the line") from error


def _row(where: str, entry: Mapping[str, Any]) -> Row:
    known: dict[str, Any] = {}
    for key, value in entry.items():
        name = _ALIKE.get(key)
        if name is None and (near := get_close_matches(key, _ALIKE, n=1, cutoff=_MISSPELT)):
            raise DataError(f"{where} has the key {key!r}; did you mean {near[0]}?")
        if name is not None and value is not None:
            if name in known:
                raise DataError(f"{where} says {name} twice ({key!r} is another word for it); keep one")
            known[name] = value
    image = known.get("image")
    if not isinstance(image, str) or not image.strip():
        raise DataError(f"{where} has no `image`; expected the picture's file, relative to the list's folder")
    texts, labels = (_texts(where, name, known.get(name)) for name in ("texts", "labels"))
    if not texts and not labels:
        raise DataError(f"{where} has neither `texts` nor `labels`; nothing can be measured on it")
    languages = _texts(where, "language", known.get("language"))
    if len(languages) == 1:
        languages *= max(1, len(texts))
    if languages and len(languages) != max(1, len(texts)):
        raise DataError(
            f"{where} has {len(languages)} languages for {len(texts)} texts; give one, or one for each text"
        )
    must = known.get("must_pass", False)
    if not isinstance(must, bool | str) or (must.lower() if isinstance(must, str) else must) not in _FLAGS:
        raise DataError(f"{where} has must_pass = {must!r}; expected true or false")
    (group,) = _texts(where, "group", known.get("group")) or ("",)
    name = known.get("id", image)
    if not isinstance(name, str | int) or not str(name).strip():
        raise DataError(f"{where} has id = {name!r}; expected a text")
    is_flag = _FLAGS[must.lower() if isinstance(must, str) else must]
    return Row(where, str(name), image, texts, labels, group, languages, is_flag)


def _texts(where: str, name: str, value: Any) -> tuple[str, ...]:
    """One text or a list of some."""
    if value is None:
        return ()
    values = value if isinstance(value, list) else [str(value) if type(value) is int else value]
    is_one = name == "group" and len(values) != 1
    if is_one or not all(isinstance(v, str) and v.strip() and is_text(v) for v in values):
        expected = "one text" if name == "group" else "a text, or a list of some, none of them blank"
        raise DataError(f"{where} has {name} = {json.dumps(value)[:60]}; expected {expected}")
    return tuple(values)
