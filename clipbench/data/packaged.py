"""Packaged data sets: pictures that pip installs, named by a manifest in fixtures/ with package, file, SHA-256 and caption.

A new packaged data set is one TOML file. Its pictures are looked up in the installed package, which is never imported.
"""

import re
import tomllib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from clipbench.data.dataset import Dataset, ImageRef, Item
from clipbench.errors import DataError, DataUnavailableError, closest
from clipbench.paths import fixtures

_TEXT_KEYS = ("name", "source", "licence", "prompt")
_KEYS = (*_TEXT_KEYS, "versions", "item")
_ITEM_KEYS = ("id", "package", "module", "file", "sha256", "caption", "source")
_OPTIONAL_ITEM_KEYS = ("modality",)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def packaged_dataset(name: str) -> Dataset:
    """Return the data set that fixtures/<name>.toml lists, in the order of its items, every file checked.

    `protocol` holds {"prompts": the manifest's prompt around {caption}}.

    Raises: DataError when the manifest is absent or malformed, naming the file, the item and the key;
    DataUnavailableError when a package is not installed, or a picture is missing or is not the pinned one.
    """
    path = fixtures() / f"{name}.toml"
    manifest = _manifest(path)
    _check_top(path, manifest)
    return Dataset(
        name=name,
        items=tuple(_item(path, number, row, manifest["versions"]) for number, row in enumerate(manifest["item"], 1)),
        source=manifest["source"],
        protocol=MappingProxyType({"prompts": manifest["prompt"]}),
    )


def _manifest(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"no packaged data set {path.stem!r}: {path} does not exist") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid TOML: {error}") from error


def _check_top(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raises: DataError by key when what stands above the items is not what a data set needs."""
    _check_keys(f"{path}", manifest, _KEYS, _TEXT_KEYS)
    if manifest["name"] != path.stem:
        raise DataError(f"{path}: name = {manifest['name']!r}; expected {path.stem!r}, the name of the file")
    prompt = manifest["prompt"]
    if "{caption}" not in prompt or re.search(r"[{}]", prompt.replace("{caption}", "")):
        raise DataError(f"{path}: prompt = {prompt!r}; expected {{caption}} in it and no other placeholder")
    versions, rows = manifest["versions"], manifest["item"]
    if not isinstance(versions, dict) or not all(isinstance(version, str) for version in versions.values()):
        raise DataError(f"{path}: versions = {versions!r}; expected a table of package = version")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected at least one [[item]] and nothing else called item")


def _item(path: Path, number: int, row: Mapping[str, Any], versions: Mapping[str, str]) -> Item:
    where = f"{path}, item {number} ({row.get('id', 'without id')})"
    text_keys = (*_ITEM_KEYS, *(key for key in _OPTIONAL_ITEM_KEYS if key in row))
    _check_keys(where, row, text_keys, text_keys)
    if not _SHA256.fullmatch(row["sha256"]):
        raise DataError(f"{where}: sha256 = {row['sha256']!r}; expected 64 lower-case hexadecimal digits")
    if row["package"] not in versions:
        raise DataError(f"{where}: package {row['package']!r} is missing in `versions`, which pins each package")
    if not row["module"].isidentifier():  # a dotted name could not be looked up without importing its parent
        raise DataError(f"{where}: module = {row['module']!r}; expected the name of a top-level module")
    image = ImageRef(_installed_file(row["package"], row["module"], row["file"]), row["sha256"])
    try:
        image.check()
    except DataUnavailableError as error:
        pin = f"{row['package']}=={versions[row['package']]}"
        raise DataUnavailableError(f'{error}; this picture is pinned in {pin}: pip install "{pin}"') from error
    return Item(id=row["id"], image=image, captions=(row["caption"],))


def _check_keys(where: str, table: Mapping[str, Any], expected: tuple[str, ...], text: tuple[str, ...]) -> None:
    """Raises: DataError naming the first key that is unknown, missing, or should be a text and is not."""
    for key in table:
        if key not in expected:
            likely = closest(key, expected) or ", ".join(expected)
            raise DataError(f"{where}: unknown key {key!r}; did you mean {likely}?")
    for key in expected:
        if key not in table:
            raise DataError(f"{where}: the key {key!r} is missing; expected {', '.join(expected)}")
    for key in text:
        if not isinstance(table[key], str) or not table[key].strip():
            raise DataError(f"{where}: {key} = {table[key]!r}; expected a text that is not empty")


def _installed_file(package: str, module: str, file: str) -> Path:
    """Where an installed module keeps a file (which may be missing there). The module is not imported.

    Raises: DataUnavailableError when the module is not installed.
    """
    spec = find_spec(module)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    if not folders:
        raise DataUnavailableError(
            f'the package {package} (module {module}) is not installed and its pictures are needed; pip install "clipbench[demo]"'
        )
    return next((folder / file for folder in folders if (folder / file).is_file()), folders[0] / file)
