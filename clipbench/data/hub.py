"""`--dataset NAME=hf:ORG/REPO@REVISION[:SPLIT]`: a data set of the Hugging Face hub, pinned, with its pictures, labels and texts.

The revision is asked for, since a branch moves under a gate; it stands in the protocol. No code of a repository is run: data sets that
need some cannot be read. Pictures are unpacked once, as they were uploaded, into the user's cache.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from clipbench.data.coco import is_text
from clipbench.data.dataset import Dataset, ImageRef, Item
from clipbench.data.folders import class_set_of
from clipbench.errors import DataError, DataUnavailableError
from clipbench.paths import read_bytes

PREFIX = "hf:"
IMAGES = ("image", "img", "picture", "jpg", "png", "webp")
LABELS = ("label", "labels", "cls", "fine_label", "class")
TEXTS = ("texts", "text", "captions", "caption", "txt", "sentences")
SPLITS = ("test", "validation", "val")
_PLACE = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(:(?P<split>[\w.-]+))?")
_HOW = "expected hf:ORG/REPO@REVISION or hf:ORG/REPO@REVISION:SPLIT"


@dataclass(frozen=True)
class Place:
    """Where a data set is on the hub."""

    repository: str
    revision: str
    split: str

    @classmethod
    def of(cls, text: str) -> "Place":
        """Return what a text names. Raises: DataError for another form, and without a revision."""
        found = _PLACE.fullmatch(text)
        if found is None:
            raise DataError(f"{text} names no data set of the hub; {_HOW}")
        if not found["revision"]:
            raise DataError(
                f"{text} names no revision, and a branch moves under a gate; give the commit or a tag: {text}@REVISION"
            )
        return cls(found["repository"], found["revision"], found["split"] or "")


def fetch(place: Place) -> tuple[Place, Any]:
    """Return the place with its split, and the split's table (datasets.Dataset), fetched or from the cache.

    Raises: DataUnavailableError where the package or the data cannot be had; DataError for a split that is not there.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataUnavailableError(
            'the package datasets is not installed; pip install "clipbench[datasets]"'
        ) from error
    try:
        splits = datasets.load_dataset(place.repository, revision=place.revision)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataUnavailableError(
            f"{place.repository}@{place.revision} cannot be had from the hub: {reason}"
        ) from error
    names = [place.split] if place.split else [*(name for name in SPLITS if name in splits), *splits][:1]
    if names[0] not in splits:
        raise DataError(f"{place.repository} has no split {names[0]!r}; it has {', '.join(splits)}")
    return replace(place, split=names[0]), splits[names[0]]


def hub_datasets(name: str, place: Place, table: Any, cache: Path) -> dict[str, Callable[[], Dataset]]:
    """Return by experiment the data sets of a table. Raises: DataError for columns that are not understood, with those that are there."""
    columns = list(table.column_names)
    image, label, text = (next((c for c in known if c in columns), "") for known in (IMAGES, LABELS, TEXTS))
    if not image or not (label or text):
        listed = ", ".join(columns[:12])
        raise DataError(
            f"{place.repository} has the columns {listed}; expected {IMAGES[0]} and {LABELS[0]} or {TEXTS[0]}"
        )
    found: dict[str, Callable[[], Dataset]] = {}
    if label:
        found["zero_shot"] = partial(_dataset, name, place, table, cache, image, label, "")
    if text:
        found["retrieval"] = partial(_dataset, name, place, table, cache, image, "", text)
    return found


def _dataset(name: str, place: Place, table: Any, cache: Path, image: str, label: str, text: str) -> Dataset:
    """One item for each row, in the order of the table; ids are its rows' numbers."""
    import datasets

    names = getattr(table.features.get(label), "names", None) if label else None
    rows = table.select_columns([image, *filter(None, (label, text))]).cast_column(image, datasets.Image(decode=False))
    about = f"{place.repository}@{place.revision}:{place.split}"
    folder = cache / "hub" / hashlib.sha256(about.encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    read = list(_rows(rows, place, folder, image, label, text))
    options: Mapping[str, str] = {"revision": place.revision, "split": place.split}
    if not label:
        return Dataset(name, tuple(item for item, _ in read), about, options=options)
    if names is None:
        if bad := [k for k, (_, value) in enumerate(read) if not (is_text(value) and value.strip())]:
            raise DataError(
                f"{about}: row {bad[0]} has {label} = {read[bad[0]][1]!r}, and nothing says what it is called; fetch the repository and "
                "give its folder, with classnames.txt beside its shards"
            )
        names = sorted({value for _, value in read})
        number = {value: k for k, value in enumerate(names)}
        labels = [number[value] for _, value in read]
    else:
        labels = [value if type(value) is int else -1 for _, value in read]
        if bad := [k for k, value in enumerate(labels) if not 0 <= value < len(names)]:
            raise DataError(
                f"{about}: row {bad[0]} has the label {read[bad[0]][1]!r} of {len(names)} classes; take another split"
            )
    classes = class_set_of(name, folder, tuple(names))
    places = {folder: k for k, folder in enumerate(classes.folders)}
    items = tuple(
        Item(item.id, item.image, labels=(places.get(names[value], value),))
        for (item, _), value in zip(read, labels, strict=True)
    )
    return Dataset(name, items, f"{about}; {classes.source}", classes.classes, classes.templates, options)


def _rows(rows: Any, place: Place, folder: Path, image: str, label: str, text: str) -> Iterator[tuple[Item, Any]]:
    for number, row in enumerate(rows):
        picture = row[image] or {}
        content = picture.get("bytes") or _fetched(picture.get("path"))
        if not content:
            raise DataError(f"{place.repository}: row {number} has no picture; take another split or revision")
        path = folder / f"{number}.img"
        if not (path.is_file() and path.stat().st_size == len(content)):
            path.write_bytes(content)
        texts = row[text] if text else []
        texts = [texts] if isinstance(texts, str) else list(texts or ())
        if (text and not all(is_text(one) and one.strip() for one in texts)) or (text and not texts):
            raise DataError(
                f"{place.repository}: row {number} has {text} = {str(row[text])[:60]!r}; expected a text, or a list of some"
            )
        yield Item(str(number), ImageRef(path), tuple(texts)), row.get(label)


def _fetched(path: str | None) -> bytes:
    """The bytes of a file that the package fetched; a table may name any file of this machine, which is nobody's to read."""
    import datasets

    place = os.path.realpath(path or "")
    bound = os.path.realpath(datasets.config.HF_CACHE_HOME)
    return read_bytes(Path(place)) if path and os.path.commonpath((place, bound)) == bound else b""
