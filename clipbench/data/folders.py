"""Any labelled folder (one folder for each class, images inside), its class names and the templates that make texts of them.

Class names that ship are one file in `fixtures/classes/`. A user's own data need none: the names of the class folders are
used, or a `classes.toml` beside them with any of `classes`, `folders`, `templates` and `source`. Folders that are called by WordNet
ids (n01440764) get ImageNet's names and templates, whatever the data set is called: "a photo of a n01440764." means nothing.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from clipbench.data.dataset import Dataset, ImageRef, Item, Root
from clipbench.errors import DataError, DataUnavailableError, UsageError, closest
from clipbench.paths import fixtures, read_toml, strict_row

CLASS_FILE = "classes.toml"
DEFAULT_TEMPLATES = ("a photo of a {}.",)
IMAGENET = "imagenet1k"
ALL_OF_IMAGENET = ("imagenetv2", "imagenet-v2", "imagenet_sketch", "imagenet-sketch")
"""Data sets that have all of ImageNet's classes, whichever folders are there; ImageNet-R and -A are published over their own 200.

Source: Recht et al. 2019 (arXiv:1902.10811), Wang et al. 2019 (arXiv:1905.13549), Hendrycks et al. 2020 (arXiv:2006.16241).
"""
_WORDNET = re.compile(r"n\d{8}")
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_SUFFIXES = ", ".join(sorted(IMAGE_SUFFIXES))


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


@dataclass(frozen=True)
class _ClassFile:
    classes: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    source: str = f"class names: {CLASS_FILE} of the data set"
    texts_from_open_clip: bool = False


def labelled_folder(name: str, root: Path) -> Dataset:
    """Return one item for each image of `root/CLASS/`, its label an index into the classes of `class_set(name, root)`, its prompts
    that set's templates.

    Ids are "CLASS/FILE"; items are in the order of classes, then of file names. A class without a folder or an image stays among the
    classes (it is a wrong answer all the same) and is counted. Files that are no images by their suffix, files beside the class folders,
    and folders inside them are left alone and counted; names that start with a dot are not looked at. A folder's spelling may differ
    from the class's in case, underscores, hyphens and spaces.

    Raises: DataUnavailableError when there is no class folder or no image; DataError for a folder that is no class, two folders that
    are the same class, or malformed class names.

    Links are followed, as hubs, DVC and git-annex lay files out, and counted.
    """
    folders = class_folders(root)
    names = class_set(name, root)
    labels = labels_by_folder(folders, names, root)
    beside = [entry.name for entry in root.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    exclusions = Counter(other_files_ignored=len(beside) - beside.count(CLASS_FILE), inner_folders_ignored=0)
    exclusions.update(empty_class_folders=0, links_followed=0, classes_without_folder=len(names.classes) - len(folders))
    items: list[Item] = []
    for folder in sorted(folders, key=labels.__getitem__):
        entries = sorted(entry for entry in (root / folder).iterdir() if not entry.name.startswith("."))
        inner = {entry for entry in entries if entry.is_dir()}
        images = [entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES and entry not in inner]
        exclusions["links_followed"] += (root / folder).is_symlink() + sum(image.is_symlink() for image in images)
        exclusions["inner_folders_ignored"] += len(inner)
        exclusions["other_files_ignored"] += len(entries) - len(inner) - len(images)
        exclusions["empty_class_folders"] += not images
        items += [Item(f"{folder}/{image.name}", ImageRef(image), labels=(labels[folder],)) for image in images]
    if not items:
        raise DataUnavailableError(f"no class folder of {len(folders)} in {root} holds an image; expected {_SUFFIXES}")
    return Dataset(name, tuple(items), names.source, names.classes, names.templates, exclusions=dict(exclusions))


def shipped_class_sets() -> tuple[str, ...]:
    """Return the names whose classes and templates ship with clipbench, sorted."""
    return tuple(sorted(path.stem for path in (fixtures() / "classes").glob("*.toml")))


def class_set(name: str, root: Path | None = None) -> ClassSet:
    """Return the class set that ships under `name`, or the one of the class folders in `root`.

    For a name that does not ship: `root/classes.toml` where it is, else the folders' own names, underscores read as spaces, with the
    template "a photo of a {}.".

    Raises: UsageError for an unknown name without a root; DataUnavailableError when `root` holds no class folder; DataError for a
    malformed file, or a `classes.toml` that a shipped name would silently overrule.
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
    return class_set_of(name, root, class_folders(root))


def class_set_of(name: str, root: Path, folders: tuple[str, ...]) -> ClassSet:
    """Return `class_set` of a data set whose labels are called so, whether they are folders or stand in a list."""
    if name in shipped_class_sets() or (root / CLASS_FILE).is_file():
        return class_set(name) if name in shipped_class_sets() else _from_file(name, root / CLASS_FILE, folders)
    is_numbered = name in ALL_OF_IMAGENET and all(folder.isdecimal() for folder in folders)
    if is_numbered or any(map(_WORDNET.fullmatch, folders)):
        return _imagenet(name, root, folders, is_numbered)
    return ClassSet(name, _spaced(folders), folders, DEFAULT_TEMPLATES, f"class names: as {root.name} has them")


def _imagenet(name: str, root: Path, folders: tuple[str, ...], is_numbered: bool) -> ClassSet:
    """ImageNet's names for the WordNet ids that are there; for all of them where the data set has them all by its name.

    Raises: DataError for labels of which only some are WordNet ids of ImageNet-1k.
    """
    whole = class_set(IMAGENET)
    if is_numbered:  # as ImageNet-V2 lies on the disk of whoever fetched it: 0 to 999
        return replace(whole, name=name, folders=tuple(map(str, range(len(whole.folders)))))
    if foreign := [folder for folder in folders if folder not in whole.folders]:
        raise DataError(
            f"{root} has {len(folders) - len(foreign)} classes of ImageNet-1k, and {foreign[0]!r} is none of it; name the classes in a "
            f"{CLASS_FILE} beside them (classes = [...], folders = [...])"
        )
    if name in ALL_OF_IMAGENET or len(folders) == len(whole.folders):
        return replace(whole, name=name)
    kept = [k for k, folder in enumerate(whole.folders) if folder in folders]
    return replace(
        whole,
        name=name,
        classes=tuple(whole.classes[k] for k in kept),
        folders=tuple(whole.folders[k] for k in kept),
        source=f"{len(kept)} of ImageNet's 1,000 classes, by the ids that are there; {whole.source}",
    )


def class_folders(root: Path) -> tuple[str, ...]:
    """Return the names of the folders in `root`, sorted, less those that start with a dot. Raises: DataUnavailableError for none."""
    if not root.is_dir():
        raise DataUnavailableError(f"there is no folder {root}; expected a folder of class folders")
    folders = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    if not folders:
        raise DataUnavailableError(f"{root} holds no class folder; expected one folder for each class, images inside")
    return folders


def _from_file(name: str, path: Path, folders: tuple[str, ...]) -> ClassSet:
    """`folders` stand in where the file names neither classes nor folders."""
    row = strict_row(f"{path}", read_toml(path), _ClassFile)
    if row.texts_from_open_clip:
        from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

        templates = tuple(fill("{}") for fill in OPENAI_IMAGENET_TEMPLATES)
        row = replace(row, classes=tuple(IMAGENET_CLASSNAMES), templates=templates)
    on_disk = row.folders or row.classes or folders
    classes = row.classes or _spaced(on_disk)
    if len(classes) != len(on_disk):
        raise DataError(f"{path} has {len(classes)} classes but {len(on_disk)} folders; expected one folder for each")
    if len(set(on_disk)) != len(on_disk):
        raise DataError(f"{path} names a class folder twice")
    if wrong := [t for t in row.templates if t.count("{}") != 1 or t.count("{") + t.count("}") != 2]:
        raise DataError(f'{path} has the template {wrong[0]!r}; expected one "{{}}" where the class goes')
    return ClassSet(name, classes, on_disk, row.templates, row.source)


def _spaced(folders: tuple[str, ...]) -> tuple[str, ...]:
    """What stands in a text: a byte that is no UTF-8 is "?", since no tokenizer takes half a character."""
    return tuple(folder.replace("_", " ").encode(errors="replace").decode() for folder in folders)


def labels_by_folder(folders: tuple[str, ...], names: ClassSet, root: Path) -> dict[str, int]:
    """Label by folder or by name in a list: spelt exactly, or alike and like no other class."""
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


def has_image(folder: Path) -> bool:
    """Return whether a file in the folder is an image by its suffix."""
    return any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in folder.iterdir())


def check_folders(name: str, root: Path) -> None:
    """Raises: as `labelled_folder`, of which it is the quick part."""
    folders = class_folders(root)
    labels_by_folder(folders, class_set(name, root), root)
    if not any(has_image(root / folder) for folder in folders):
        raise DataUnavailableError(f"no class folder of {len(folders)} in {root} holds an image; expected {_SUFFIXES}")


ZERO_SHOT_ROOT = Root("zero-shot", "a folder of class folders; repeatable", is_named=True, check=check_folders)
