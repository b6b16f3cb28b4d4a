"""A published folder layout: what must be there, what is read from it, and what may not leave it."""

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TypeVar

from clipbench.data.dataset import ImageRef
from clipbench.errors import DataError, DataUnavailableError

Key = TypeVar("Key", bound=Hashable)


def required(root: Path, relative: str, layout: str) -> Path:
    """Return `root / relative`, which must be a folder when `relative` ends in "/" and a file otherwise.

    Raises: DataUnavailableError that says what is missing and what `layout` (words for people) expects.
    """
    if not root.is_dir():
        raise DataUnavailableError(f"there is no folder {root}; expected {layout}")
    path = root / relative
    if not (path.is_dir() if relative.endswith("/") else path.is_file()):
        raise DataUnavailableError(f"{root} lacks {relative}; expected {layout}")
    return path


def find_images(root: Path, folder: str, names: Mapping[Key, str], named_by: Path) -> dict[Key, ImageRef]:
    """Return where each image is, under the keys of `names`; absent images are left out. No image is opened.

    `names` are file names relative to `root / folder`; `named_by` is the file that gives them. A link inside the folder
    is followed only to a place inside `root` or inside the folder's own target (so `val2017` itself may be a link).

    Raises: DataError for a name that leaves the root: absolute, through "..", or through a link.
    """
    base = root / folder
    bounds = (os.path.realpath(root), os.path.realpath(base))
    plain_files: dict[Path, frozenset[str]] = {}
    found: dict[Key, ImageRef] = {}
    for key, name in names.items():
        if not name or "\0" in name or Path(name).is_absolute():
            raise _leaves(root, name, named_by)
        path = base / name
        if path.parent not in plain_files:
            plain_files[path.parent] = _plain_files(path.parent) if _inside(path.parent, bounds) else frozenset()
        if path.name in plain_files[path.parent]:
            found[key] = ImageRef(path)
        elif not _inside(path, bounds):
            raise _leaves(root, name, named_by)
        elif _is_file(path):
            found[key] = ImageRef(path)
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


def _inside(path: Path, bounds: tuple[str, ...]) -> bool:
    real = os.path.realpath(path)
    return any(os.path.commonpath((real, bound)) == bound for bound in bounds)


def _plain_files(folder: Path) -> frozenset[str]:
    """Names of files that are no links: one listing instead of one look-up for each of thousands of names."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    except OSError:  # absent or not a folder: nothing is found in it, which the caller counts
        return frozenset()


def _leaves(root: Path, name: str, named_by: Path) -> DataError:
    return DataError(f"{named_by} names the image {name!r}, which leaves {root}: refused; expected a file inside it")
