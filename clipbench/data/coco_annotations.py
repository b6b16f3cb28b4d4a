"""COCO's annotation files, checked row by row and then indexed by pycocotools.

pycocotools trusts its input and prints while it loads, so the file is parsed and checked here first: whatever is wrong
is named by file, annotation and key. Outlines (`segmentation`) are dropped while parsing; they are most of a file and
no experiment looks at them.

Source: format https://cocodataset.org/#format-data.
"""

import contextlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipbench.data.layout import read_json, required
from clipbench.errors import DataError, DataUnavailableError

if TYPE_CHECKING:
    from pycocotools.coco import COCO

LAYOUT = (
    "COCO's official layout: val2017/, annotations/instances_val2017.json and annotations/captions_val2017.json "
    "(or val2014/ with annotations/instances_val2014.json and a Karpathy split dataset_coco.json)"
)

# What a value must be, and the words for it.
Kind = tuple[Callable[[Any], bool], str]
WHOLE: Kind = (lambda value: type(value) is int, "a whole number")
SIZE: Kind = (lambda value: type(value) is int and value > 0, "a whole number of pixels above 0")
TEXT: Kind = (lambda value: isinstance(value, str), "a text")
NAME: Kind = (lambda value: isinstance(value, str) and bool(value.strip()), "a text that is not blank")
FLAG: Kind = (lambda value: type(value) in (bool, int) and value in (0, 1), "0 or 1")
LIST: Kind = (lambda value: isinstance(value, list), "a list")
BOX: Kind = (
    lambda value: isinstance(value, list) and len(value) == 4 and all(map(_is_pixel, value)),
    "[left, top, width, height], four finite numbers of pixels",
)

Keys = Mapping[str, Kind]
IMAGE: Keys = {"id": WHOLE, "file_name": TEXT}
SIZED_IMAGE: Keys = {**IMAGE, "width": SIZE, "height": SIZE}
CATEGORY: Keys = {"id": WHOLE, "name": NAME}
INSTANCE: Keys = {"id": WHOLE, "image_id": WHOLE, "category_id": WHOLE, "bbox": BOX, "iscrowd": FLAG}
CAPTION: Keys = {"id": WHOLE, "image_id": WHOLE, "caption": TEXT}


def load_instances(root: Path, split: str) -> "COCO":
    """Return the index of `annotations/instances_<split>.json`: images with their sizes, categories, boxes.

    Raises: DataUnavailableError when the file is missing; DataError when it is malformed, naming file, row and key.
    """
    path = required(root, f"annotations/instances_{split}.json", LAYOUT)
    tables = {"categories": CATEGORY, "images": SIZED_IMAGE, "annotations": INSTANCE}
    content = _checked(path, tables)
    names = [category["name"] for category in content["categories"]]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: more than one category is called {', '.join(map(repr, repeated))}")
    return _indexed(content)


def load_captions(root: Path, split: str) -> "COCO":
    """Return the index of `annotations/captions_<split>.json`: images and captions.

    Raises: DataUnavailableError when the file is missing; DataError when it is malformed, naming file, row and key.
    """
    path = required(root, f"annotations/captions_{split}.json", LAYOUT)
    return _indexed(_checked(path, {"images": IMAGE, "annotations": CAPTION}))


def check_row(row: Any, keys: Keys, where: str) -> dict[str, Any]:
    """Return `row` when it is an object that has every key with a value of its kind.

    Raises: DataError that names the key, what it holds, and `where`.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where} is {_shown(row)}; expected an object with {', '.join(keys)}")
    for key, (fits, words) in keys.items():
        if key not in row:
            raise DataError(f"{where} lacks the key {key!r}; expected {words}")
        if not fits(row[key]):
            raise DataError(f"{where} has {key} = {_shown(row[key])}; expected {words}")
    return row


def _checked(path: Path, tables: Mapping[str, Keys]) -> dict[str, Any]:
    content = check_row(read_json(path, _without_outline), dict.fromkeys(tables, LIST), str(path))
    ids = {table: _checked_ids(path, table, content[table], keys) for table, keys in tables.items()}
    for annotation in content["annotations"]:
        for key, table in (("image_id", "images"), ("category_id", "categories")):
            if table in ids and annotation[key] not in ids[table]:
                raise DataError(
                    f"{path}: annotation {annotation['id']} has {key} = {annotation[key]}, which is none of the "
                    f"{len(ids[table])} ids in {table!r}"
                )
    return content


def _checked_ids(path: Path, table: str, rows: list[Any], keys: Keys) -> set[int]:
    word = {"categories": "category", "images": "image", "annotations": "annotation"}[table]
    ids: set[int] = set()
    for number, row in enumerate(rows, 1):
        known = isinstance(row, dict) and type(row.get("id")) is int
        where = f"{path}: {word} {row['id']}" if known else f"{path}: {word} number {number} (without a whole id)"
        check_row(row, keys, where)
        if row["id"] in ids:
            raise DataError(f"{where} appears twice; ids must be unique")
        ids.add(row["id"])
    return ids


def _indexed(content: dict[str, Any]) -> "COCO":
    try:
        from pycocotools.coco import COCO
    except ModuleNotFoundError as error:
        raise DataUnavailableError(
            "COCO is read with pycocotools, which is missing: pip install pycocotools"
        ) from error
    index = COCO()
    index.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # it prints "creating index..."
        index.createIndex()
    return index


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    return entry


def _is_pixel(value: Any) -> bool:
    # NaN compares false; the bound keeps out infinity and whole numbers that no float can hold.
    return type(value) in (int, float) and -1e7 < value < 1e7


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
