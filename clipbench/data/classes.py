"""Class names, the folders they are found under, and the templates that make texts of them.

A row that ships is one file in `fixtures/classes/`. A user's own data need none: the names of the class folders are
used, or a `classes.toml` beside them with any of `classes`, `folders`, `templates` and `source`.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipbench.data.layout import read_text
from clipbench.errors import DataError, DataUnavailableError, UsageError
from clipbench.paths import fixtures

DEFAULT_TEMPLATES = ("a photo of a {}.",)
CLASS_FILE = "classes.toml"


@dataclass(frozen=True)
class ClassSet:
    """Classes and what is said about them.

    `classes` as they stand in a text, `folders` (same length and order) as they stand on disk; each of `templates` has
    one "{}" where the class goes.
    """

    name: str
    classes: tuple[str, ...]
    folders: tuple[str, ...]
    templates: tuple[str, ...]
    source: str


def shipped_class_sets() -> tuple[str, ...]:
    """Return the names whose classes and templates ship with clipbench, sorted."""
    return tuple(sorted(path.stem for path in (fixtures() / "classes").glob("*.toml")))


def class_set(name: str, root: Path | None = None) -> ClassSet:
    """Return the class set that ships under `name`, or the one of the class folders in `root`.

    For a name that does not ship: `root/classes.toml` where it is, else the folders' own names, underscores read as
    spaces, with the template "a photo of a {}.". ImageNet's texts come from open_clip, whose import takes seconds.

    Raises: UsageError for an unknown name without a root; DataUnavailableError when `root` holds no class folder;
    DataError for a malformed file, or a `classes.toml` that a shipped name would silently overrule.
    """
    if name in shipped_class_sets():
        if root is not None and (root / CLASS_FILE).is_file():
            raise DataError(
                f"{name} has class names and templates of its own, so {root / CLASS_FILE} would not be read; "
                "remove that file, or give the data set another name"
            )
        return _from_file(name, fixtures() / "classes" / f"{name}.toml", ())
    if root is None:
        raise UsageError(f"no class names ship under {name!r}; expected one of {', '.join(shipped_class_sets())}")
    folders = class_folders(root)
    if (root / CLASS_FILE).is_file():
        return _from_file(name, root / CLASS_FILE, folders)
    names = tuple(folder.replace("_", " ") for folder in folders)
    return ClassSet(name, names, folders, DEFAULT_TEMPLATES, f"class names: the folders of {root.name}")


def class_folders(root: Path) -> tuple[str, ...]:
    """Return the names of the folders in `root`, sorted, less those that start with a dot.

    Raises: DataUnavailableError when there is none.
    """
    if not root.is_dir():
        raise DataUnavailableError(f"there is no folder {root}; expected a folder of class folders")
    folders = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    if not folders:
        raise DataUnavailableError(f"{root} holds no class folder; expected one folder for each class, images inside")
    return folders


def _from_file(name: str, path: Path, folders: tuple[str, ...]) -> ClassSet:
    """`folders` stand in where the file names neither classes nor folders."""
    try:
        row = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is not TOML: {error}") from error
    if unknown := sorted(set(row) - {"classes", "folders", "templates", "source", "texts_from_open_clip"}):
        raise DataError(f"{path} has the key {unknown[0]!r}; expected classes, folders, templates, source")
    if row.pop("texts_from_open_clip", False):
        row |= _open_clip_texts()
    on_disk = _texts(path, row, "folders", _texts(path, row, "classes", folders))
    classes = _texts(path, row, "classes", tuple(folder.replace("_", " ") for folder in on_disk))
    templates = _texts(path, row, "templates", DEFAULT_TEMPLATES)
    if len(classes) != len(on_disk):
        raise DataError(f"{path} has {len(classes)} classes but {len(on_disk)} folders; expected one folder for each")
    if len(set(on_disk)) != len(on_disk):
        raise DataError(f"{path} names a class folder twice")
    if wrong := [t for t in templates if t.count("{}") != 1 or t.count("{") + t.count("}") != 2]:
        raise DataError(f'{path} has the template {wrong[0]!r}; expected one "{{}}" where the class goes')
    return ClassSet(
        name, classes, on_disk, templates, str(row.get("source", f"class names: {path.name} of the data set"))
    )


def _texts(path: Path, row: dict[str, Any], key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    values = row.get(key, default)
    if not isinstance(values, (list, tuple)) or not values or not all(isinstance(v, str) and v.strip() for v in values):
        raise DataError(f"{path} has {key} = {str(values)[:80]}; expected a list of texts, none of them blank")
    return tuple(values)


def _open_clip_texts() -> dict[str, list[str]]:
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    return {"classes": list(IMAGENET_CLASSNAMES), "templates": [fill("{}") for fill in OPENAI_IMAGENET_TEMPLATES]}
