"""`--dataset NAME=PATH`: data of your own in whichever shape they have, found out by looking at them.

A place on the hub (hf:ORG/REPO@REVISION), else what lies there, in this order: a list of pictures (metadata.jsonl or .csv), COCO's
annotation files, webdataset shards, class folders. What a data set holds decides which experiments run on it: one label each
`zero_shot`, several `multilabel`, texts `retrieval`; a COCO file of boxes `zero_shot` on their crops. What is none of it is refused
before anything is measured, with what lies there.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path

from clipbench.data import coco, hub, metadata, shards
from clipbench.data.dataset import DataOptions, Dataset, ImageRef, Root, Source
from clipbench.data.folders import (
    ClassSet,
    check_folders,
    class_folders,
    class_set_of,
    has_image,
    labelled_folder,
    labels_by_folder,
)
from clipbench.errors import DataError, DataUnavailableError
from clipbench.paths import read_json, user_cache

EXPECTED = "expected metadata.jsonl or metadata.csv, COCO's annotations, webdataset shards (.tar), or a folder of images for each class"
_MOST_LISTED = 4


Found = dict[str, Callable[[], Dataset]]
"""What lies at a path: the data set that each experiment takes of it."""


def own_sources(experiment: str, options: DataOptions) -> tuple[Source, ...]:
    """Return the data sets of `--dataset` that an experiment can run on."""
    found = [(name, look(name, path)) for name, path in options.folders(DATASET_ROOT)]
    return tuple(Source(name, one[experiment]) for name, one in found if experiment in one)


def look(name: str, path: Path) -> Found:
    """Return what a data set of that name at that path is.

    Raises: DataUnavailableError where nothing is there; DataError for what is not understood, or is malformed.
    """
    if str(path).startswith(hub.PREFIX):
        return _look(name, path, ())
    if not path.exists():
        raise DataUnavailableError(f"there is no {path}; {EXPECTED}")
    entries = sorted(path.iterdir()) if path.is_dir() else [path]
    state = tuple((entry.name, entry.stat().st_mtime_ns) for entry in entries if entry.exists())
    return _look(name, path, state)


@lru_cache(maxsize=64)
def _look(name: str, path: Path, _state: tuple[tuple[str, int], ...]) -> Found:
    """`look`, once for each state of the path: the data sets of a session are asked for often."""
    if str(path).startswith(hub.PREFIX):
        place = hub.Place.of(str(path))
        return hub.hub_datasets(name, *hub.fetch(place), user_cache())
    if path.is_file():
        return _file(name, path)
    for listed in metadata.NAMES:
        if (path / listed).is_file():
            return _listed(name, path / listed)
    annotations = [*sorted((path / "annotations").glob("*.json")), *sorted(path.glob("*.json"))]
    known = [file for file in annotations if file.name.startswith(("captions", "instances"))]
    if known:
        return _annotated(name, path, known)
    if len(annotations) == 1 and _is_coco(annotations[0]):
        return _file(name, annotations[0])
    if shards.is_shards(path):
        return _sharded(name, path)
    folders = class_folders(path) if any(entry.is_dir() and entry.name[0] != "." for entry in path.iterdir()) else ()
    if any(has_image(path / folder) for folder in folders):
        check_folders(name, path)
        return {"zero_shot": partial(labelled_folder, name, path)}
    raise DataError(f"--dataset {name}={path}: {_lies_there(path)}; {EXPECTED}")


def _file(name: str, path: Path) -> Found:
    if path.suffix.lower() in metadata.SUFFIXES:
        return _listed(name, path)
    if path.suffix.lower() == ".tar":
        return _sharded(name, path)
    if path.suffix.lower() == ".json":
        if _is_coco(path):
            return _coco(name, path, "caption" in read_json(path)["annotations"][0])
        raise DataError(f"{path} is not COCO's: an object with lists of images and annotations; {EXPECTED}")
    raise DataError(f"--dataset {name}={path}: a file {path.suffix or 'without suffix'}; {EXPECTED}")


def _is_coco(path: Path) -> bool:
    content = read_json(path)
    lists = [content.get(key) for key in ("images", "annotations")] if isinstance(content, dict) else []
    return bool(lists) and all(isinstance(one, list) and one and isinstance(one[0], dict) for one in lists)


def _annotated(name: str, root: Path, files: list[Path]) -> Found:
    """COCO's annotations in a folder: one file of captions and one of boxes at most. Raises: DataError for several."""
    found: Found = {}
    for kind in ("captions", "instances"):
        own = [file for file in files if file.name.startswith(kind)]
        if len(own) > 1:
            names = ", ".join(file.name for file in own[:_MOST_LISTED])
            raise DataError(
                f"--dataset {name}={root}: {len(own)} files of {kind} ({names}); give the one: {name}={own[-1]}"
            )
        if own:
            found |= _coco(name, own[0], kind == "captions")
    return found


def _coco(name: str, path: Path, is_captions: bool) -> Found:
    if is_captions:
        return {"retrieval": partial(coco.caption_file, name, path)}
    return {"zero_shot": partial(coco.instance_file, name, path)}


def _sharded(name: str, path: Path) -> Found:
    found = shards.read_shards(path)
    task = "retrieval" if found.is_retrieval else "zero_shot"
    return {task: partial(shards.shard_dataset, name, found, user_cache())}


def _listed(name: str, path: Path) -> Found:
    rows, images = metadata.read_rows(path)
    labelled, captioned = (any(getattr(row, what) for row in rows) for what in ("labels", "texts"))
    several = any(len(row.labels) > 1 for row in rows)
    found: Found = {}
    if labelled:
        own = sorted({label for row in rows for label in row.labels})
        names = class_set_of(name, path.parent, tuple(own))
        labels = labels_by_folder(tuple(own), names, path)
        task = "multilabel" if several else "zero_shot"
        found[task] = partial(_labelled, name, path, rows, images, names, labels)
    if captioned:
        found["retrieval"] = partial(_captioned, name, path, rows, images)
    return found


def _labelled(
    name: str, path: Path, rows: list[metadata.Row], images: list[ImageRef], names: ClassSet, labels: Mapping[str, int]
) -> Dataset:
    items = [
        row.item(image, tuple(sorted({labels[label] for label in row.labels})))
        for row, image in zip(rows, images, strict=True)
        if row.labels
    ]
    exclusions = {"rows_without_labels": len(rows) - len(items)}
    return Dataset(
        name, tuple(items), f"{path.name}; {names.source}", names.classes, names.templates, exclusions=exclusions
    )


def _captioned(name: str, path: Path, rows: list[metadata.Row], images: list[ImageRef]) -> Dataset:
    items = [row.item(image, ()) for row, image in zip(rows, images, strict=True) if row.texts]
    exclusions = {"rows_without_texts": len(rows) - len(items)}
    return Dataset(name, tuple(items), path.name, exclusions=exclusions)


def _lies_there(path: Path) -> str:
    """What a folder holds, in words."""
    entries = [entry for entry in path.iterdir() if entry.name[0] != "."]
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    files = Counter(entry.suffix.lower() or "no suffix" for entry in entries if not entry.is_dir())
    words = [f"{len(folders)} folders without images ({', '.join(folders[:_MOST_LISTED])})"] if folders else []
    words += [f"{n} files of {suffix}" for suffix, n in files.most_common(_MOST_LISTED)]
    return f"it holds {', '.join(words)}" if words else "it is empty"


DATASET_ROOT = Root(
    "dataset",
    "data of yours: a folder of class folders, with metadata.jsonl or .csv, COCO's annotations or webdataset shards; hf:ORG/REPO@REVISION; "
    "repeatable",
    is_named=True,
    check=look,
)
