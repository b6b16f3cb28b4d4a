"""Any labelled folder: one folder for each class, images inside."""

from collections import Counter
from pathlib import Path

from clipbench.data.classes import CLASS_FILE, ClassSet, class_folders, class_set
from clipbench.data.dataset import Dataset, ImageRef, Item
from clipbench.errors import DataError, DataUnavailableError, closest

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def labelled_folder(name: str, root: Path) -> Dataset:
    """Return one item for each image of `root/CLASS/`, its label an index into the classes of `class_set(name, root)`.

    Ids are "CLASS/FILE"; items are in the order of classes, then of file names. A class without a folder or without an
    image stays among the classes (it is a wrong answer all the same) and is counted. Files that are no images by their
    suffix, files beside the class folders, and folders inside them are left alone and counted; names that start with a
    dot are not looked at. A folder's spelling may differ from the class's in case, and in underscores, hyphens or
    spaces.

    Raises: DataUnavailableError when there is no class folder or no image; DataError for a folder that is no class, two
    folders that are the same class, or malformed class names.
    """
    folders = class_folders(root)
    names = class_set(name, root)
    labels = _labels_by_folder(folders, names, root)
    notes = Counter(other_files_ignored=_files_beside(root), inner_folders_ignored=0, empty_class_folders=0)
    notes["classes_without_folder"] = len(names.classes) - len(folders)
    items: list[Item] = []
    for folder in sorted(folders, key=labels.__getitem__):
        entries = sorted(entry for entry in (root / folder).iterdir() if not entry.name.startswith("."))
        inner = {entry for entry in entries if entry.is_dir()}
        images = [entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES and entry not in inner]
        notes["inner_folders_ignored"] += len(inner)
        notes["other_files_ignored"] += len(entries) - len(inner) - len(images)
        notes["empty_class_folders"] += not images
        items += [Item(f"{folder}/{image.name}", ImageRef(image), labels=(labels[folder],)) for image in images]
    if not items:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataUnavailableError(f"no class folder of {len(folders)} in {root} holds an image; expected {suffixes}")
    return Dataset(name, tuple(items), names.source, names.classes, notes=dict(notes))


def _labels_by_folder(folders: tuple[str, ...], names: ClassSet, root: Path) -> dict[str, int]:
    """Label by folder: spelt exactly, or alike and like no other class."""
    exact = {text: label for label, text in enumerate(names.folders)}
    alike: dict[str, set[int]] = {}
    for texts in (names.folders, names.classes):
        for label, text in enumerate(texts):
            alike.setdefault(_folded(text), set()).add(label)
    taken: dict[int, str] = {}
    for folder in folders:
        label = exact.get(folder, -1)
        if label < 0 and len(candidates := alike.get(_folded(folder), set())) == 1:
            (label,) = candidates
        if label < 0:
            near = closest(folder, (*names.folders, *names.classes)) or names.folders[0]
            raise DataError(
                f"{root / folder} is none of the {len(names.classes)} classes of {names.name}; expected a folder such "
                f"as {near}"
            )
        if label in taken:
            raise DataError(f"{root} holds {taken[label]} and {folder}, which are the same class; expected one of them")
        taken[label] = folder
    return {folder: label for label, folder in taken.items()}


def _folded(text: str) -> str:
    return text.casefold().replace("_", " ").replace("-", " ")


def _files_beside(root: Path) -> int:
    beside = (entry for entry in root.iterdir() if entry.is_file() and not entry.name.startswith("."))
    return sum(entry.name != CLASS_FILE for entry in beside)
