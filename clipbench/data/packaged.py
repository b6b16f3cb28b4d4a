"""Packaged data sets: pictures that pip installs, named in fixtures/ with package, file, SHA-256 and caption or boxes.

A new set of captioned pictures is one TOML file. `fixtures/coco_mini/` holds boxes and captions in COCO's format, written
for clipbench, the boxes checked by drawing them. No picture is in the repository, and no package is imported.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from clipbench.data.dataset import Dataset, ImageRef, Item
from clipbench.errors import DataError, DataUnavailableError
from clipbench.paths import fixtures, installed_file, read_toml, strict_row


@dataclass(frozen=True)
class _Manifest:
    name: str
    source: str
    licence: str
    prompt: str
    versions: Mapping[str, str]
    item: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class _Row:
    id: str
    package: str
    module: str
    file: str
    sha256: str
    caption: str
    source: str
    modality: str = ""


class PackagedCoco(NamedTuple):
    """A root in COCO's layout, less its image folder, and where each `file_name` is instead."""

    root: Path
    images: Mapping[str, ImageRef]


def packaged_dataset(name: str) -> Dataset:
    """Return the data set that fixtures/<name>.toml lists, in the order of its items, every file checked.

    Its one prompt is the manifest's, around {caption}.

    Raises: DataError when the manifest is absent or malformed, naming the file, the item and the key;
    DataUnavailableError when a package is not installed, or a picture is missing or is not the pinned one.
    """
    path = fixtures() / f"{name}.toml"
    if not path.is_file():
        raise DataError(f"no packaged data set {name!r}: {path} does not exist")
    manifest = strict_row(f"{path}", read_toml(path), _Manifest)
    items = tuple(_item(path, number, row, manifest.versions) for number, row in enumerate(manifest.item, 1))
    return Dataset(name, items, manifest.source, prompts=(manifest.prompt,))


def packaged_coco() -> PackagedCoco:
    """Return a miniature of COCO, for `coco_crops(mini.root, images=mini.images)` and its neighbours.

    Twelve pictures: enough to run every step, never enough to judge a model.

    Raises: DataUnavailableError when a package is not installed, or holds another picture than the pinned one.
    """
    root = fixtures() / "coco_mini"
    rows = json.loads((root / "annotations/instances_val2017.json").read_bytes())["images"]
    images = {}
    for row in rows:  # `file_name` starts with the folder of its module
        file = row["file_name"].removeprefix(f"{row['module']}/")
        images[row["file_name"]] = _picture(row["package"], row["module"], file, row["sha256"])
        images[row["file_name"]].check()
    return PackagedCoco(root, images)


def _item(path: Path, number: int, table: Mapping[str, Any], versions: Mapping[str, str]) -> Item:
    where = f"{path}, item {number} ({table.get('id', 'without id')})"
    row = strict_row(where, table, _Row)
    image = _picture(row.package, row.module, row.file, row.sha256)
    try:
        image.check()
    except DataUnavailableError as error:
        pin = f"{row.package}=={versions[row.package]}"
        raise DataUnavailableError(f'{error}; this picture is pinned in {pin}: pip install "{pin}"') from error
    return Item(row.id, image, captions=(row.caption,))


def _picture(package: str, module: str, file: str, sha256: str) -> ImageRef:
    path = installed_file(module, file)
    if path is None:
        raise DataUnavailableError(
            f"the package {package} (module {module}) is not installed and its pictures are needed; "
            'pip install "clipbench[demo]"'
        )
    return ImageRef(path, sha256)
