"""COCO in its published folder layout: boxes to classify, images with several labels, images with captions.

All three readers take the root of the official layout and decide the split alone: val2017 where its annotation file is,
else val2014; captions follow a Karpathy split file where there is one, as the published retrieval values do. Nothing is
opened or decoded here. What is left out, or kept on purpose, is counted in `Dataset.notes`, zeros included.

Source: Lin et al., Microsoft COCO, ECCV 2014 (https://cocodataset.org); Karpathy and Fei-Fei, CVPR 2015 (test split).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from clipbench.data.coco_annotations import LAYOUT, LIST, TEXT, WHOLE, check_row, load_captions, load_instances
from clipbench.data.coco_boxes import Crop, is_empty, is_outside, square_crop, tight_crop
from clipbench.data.dataset import Dataset, ImageRef, Item
from clipbench.data.layout import find_images, read_json, required
from clipbench.errors import DataError, DataUnavailableError, UsageError

if TYPE_CHECKING:
    from pycocotools.coco import COCO

CAPTIONS_PER_IMAGE = (
    5  # Source: the published retrieval values; of 25,010 captions of the 5,000 images, ten are beyond.
)
KARPATHY_FILES = ("dataset_coco.json", "annotations/dataset_coco.json")
CROPS: Mapping[str, Callable[[Sequence[float], int, int], Crop]] = {"square": square_crop, "tight": tight_crop}

KARPATHY_SOURCE = "COCO val2014, Karpathy test split, https://cs.stanford.edu/people/karpathy/deepimagesent/"

_CROP_NOTES = (
    "crowd_boxes_kept",
    "crowd_boxes_dropped",
    "empty_boxes_dropped",
    "outside_boxes_dropped",
    "boxes_of_absent_images_dropped",
)
_CAPTION_NOTES = (
    "images_without_captions_dropped",
    "blank_captions_dropped",
    "captions_beyond_five_dropped",
    "duplicate_captions_kept",
)

CropName = Literal["square", "tight"]
Images = Mapping[str, ImageRef]


def coco_crops(root: Path, crop: CropName = "square", images: Images | None = None) -> Dataset:
    """Return one item for each annotated box, its label an index into the classes (in the order of category ids).

    Ids are annotation ids; boxes of one image are neighbours. "square" is the published protocol (see
    `coco_boxes.square_crop`): every annotation, crowd boxes included. "tight" is the box itself, and leaves crowd boxes
    out, for they hold many objects. Boxes without area or wholly outside their image are left out of both.
    `images` says where each `file_name` is when not in the split's folder (the packaged miniature).

    Raises: UsageError for another crop; DataUnavailableError for a missing folder or file of the layout, or when none
    of the images is there; DataError for malformed annotations.
    """
    if crop not in CROPS:
        raise UsageError(f"unknown crop {crop!r}; expected one of {', '.join(CROPS)}")
    opened = _open_instances(root, images)
    notes = Counter(dict.fromkeys(_CROP_NOTES, 0) | {"images_absent": len(opened.index.imgs) - len(opened.refs)})
    items = []
    for image_id, annotations in sorted(opened.index.imgToAnns.items()):
        if image_id not in opened.refs:
            notes["boxes_of_absent_images_dropped"] += len(annotations)
            continue
        ref, image = opened.refs[image_id], opened.index.imgs[image_id]
        for annotation in sorted(annotations, key=_id):
            if reason := _why_dropped(annotation, image, crop):
                notes[reason] += 1
                continue
            notes["crowd_boxes_kept"] += annotation["iscrowd"]
            pixels = CROPS[crop](annotation["bbox"], image["width"], image["height"])
            label = opened.labels[annotation["category_id"]]
            items.append(Item(str(annotation["id"]), ImageRef(ref.path, ref.sha256, pixels), labels=(label,)))
    protocol = {"split": opened.split, "crop": crop, "crowd_boxes": "kept" if crop == "square" else "dropped"}
    return opened.dataset(items, notes, protocol)


def coco_multilabel(root: Path, images: Images | None = None) -> Dataset:
    """Return one item for each image, its labels the classes that it shows, ascending (indices into the classes).

    A crowd box is evidence that its class is there, so it counts. An image without any box stays, with no labels: it is
    a wrong answer to every class, as in the published protocol (all 40,504 images of val2014). `images`: see
    `coco_crops`.

    Raises: as `coco_crops`.
    """
    opened = _open_instances(root, images)
    items, only_crowd = [], 0
    for image_id in sorted(opened.refs):
        annotations = opened.index.imgToAnns.get(image_id, [])
        shown = {opened.labels[a["category_id"]] for a in annotations}
        only_crowd += len(shown - {opened.labels[a["category_id"]] for a in annotations if not a["iscrowd"]})
        items.append(Item(str(image_id), opened.refs[image_id], labels=tuple(sorted(shown))))
    notes = {
        "images_absent": len(opened.index.imgs) - len(opened.refs),
        "images_without_labels_kept": sum(not item.labels for item in items),
        "labels_from_crowd_boxes_only": only_crowd,
    }
    return opened.dataset(items, notes, {"split": opened.split})


def coco_retrieval(root: Path, images: Images | None = None) -> Dataset:
    """Return one item for each image with its captions, in the order of image ids.

    With `dataset_coco.json` (Karpathy's split, in the root or in annotations/) these are its 5,000 test images, all of
    val2014; without it, val2017. At most the first five captions of an image are kept, as published. Blank captions are
    dropped, images without any caption too; captions that repeat another one stay. `images`: see `coco_crops`.

    Raises: as `coco_crops`.
    """
    split_file = next((root / name for name in KARPATHY_FILES if (root / name).is_file()), None)
    if split_file is not None and images is None:
        split, rows, source = "karpathy test", _karpathy_rows(root, split_file), KARPATHY_SOURCE
        refs = _image_refs(root, "./", {row.id: row.file_name for row in rows}, split_file, None)
    else:
        index = load_captions(root, "val2017")
        split, rows, source = "val2017", _caption_rows(index), _source(index)
        names = {row.id: row.file_name for row in rows}
        refs = _image_refs(root, "val2017/", names, root / "annotations/captions_val2017.json", images)
    items, notes = _captioned(sorted(row for row in rows if row.id in refs), refs)
    notes["images_absent"] = len(rows) - len(refs)
    protocol = {"split": split, "captions_per_image": f"the first {CAPTIONS_PER_IMAGE}"}
    return Dataset(_name(root, split, images), _some(items, root), source, notes=notes, protocol=protocol)


class _CaptionRow(NamedTuple):
    id: int
    file_name: str
    captions: tuple[str, ...]


def _captioned(rows: Sequence[_CaptionRow], refs: Mapping[int, ImageRef]) -> tuple[list[Item], dict[str, int]]:
    items: list[Item] = []
    seen: set[str] = set()
    notes = dict.fromkeys(_CAPTION_NOTES, 0)
    for row in rows:
        written = [caption for caption in row.captions if caption.strip()]
        kept = written[:CAPTIONS_PER_IMAGE]
        notes["blank_captions_dropped"] += len(row.captions) - len(written)
        notes["captions_beyond_five_dropped"] += len(written) - len(kept)
        notes["duplicate_captions_kept"] += len(kept) - len(set(kept) - seen)
        notes["images_without_captions_dropped"] += not kept
        seen.update(kept)
        if kept:
            items.append(Item(str(row.id), refs[row.id], captions=tuple(kept)))
    return items, notes


def _caption_rows(index: "COCO") -> list[_CaptionRow]:
    captions = {key: tuple(a["caption"] for a in rows) for key, rows in index.imgToAnns.items()}
    return [_CaptionRow(key, image["file_name"], captions.get(key, ())) for key, image in index.imgs.items()]


def _karpathy_rows(root: Path, path: Path) -> list[_CaptionRow]:
    """The test images of the split file, their file names relative to the root."""
    required(root, "val2014/", f"the images of {path.name} (without that file, val2017 is read)")
    content = check_row(read_json(path), {"images": LIST}, str(path))
    rows: dict[int, _CaptionRow] = {}
    for number, image in enumerate(content["images"], 1):
        where = f"{path}: image number {number}"
        if check_row(image, {"split": TEXT}, where)["split"] != "test":
            continue
        key = "cocoid" if "cocoid" in image else "imgid"
        check_row(image, {key: WHOLE, "filename": TEXT, "sentences": LIST}, where)
        folder = check_row({"filepath": "val2014"} | image, {"filepath": TEXT}, where)["filepath"]
        captions = [check_row(s, {"raw": TEXT}, f"{where}, a sentence")["raw"] for s in image["sentences"]]
        if image[key] in rows:
            raise DataError(f"{where} has {key} = {image[key]}, which appears twice; ids must be unique")
        rows[image[key]] = _CaptionRow(image[key], f"{folder}/{image['filename']}", tuple(captions))
    if not rows:
        raise DataError(f"{path} has no image whose split is 'test'; expected Karpathy's dataset_coco.json")
    return list(rows.values())


class _Instances(NamedTuple):
    """An instances file, with the images that are there."""

    index: "COCO"
    split: str
    refs: Mapping[int, ImageRef]
    labels: Mapping[int, int]
    root: Path
    images: Images | None

    def dataset(self, items: list[Item], notes: Mapping[str, int], protocol: Mapping[str, str]) -> Dataset:
        classes = tuple(self.index.cats[category]["name"] for category in self.labels)
        name = _name(self.root, self.split, self.images)
        return Dataset(name, _some(items, self.root), _source(self.index), classes, dict(notes), protocol)


def _open_instances(root: Path, images: Images | None) -> _Instances:
    there = [split for split in ("val2017", "val2014") if (root / f"annotations/instances_{split}.json").is_file()]
    split = there[0] if there else "val2017"
    index = load_instances(root, split)
    names = {key: image["file_name"] for key, image in index.imgs.items()}
    refs = _image_refs(root, f"{split}/", names, root / f"annotations/instances_{split}.json", images)
    labels = {category: label for label, category in enumerate(sorted(index.cats))}
    return _Instances(index, split, refs, labels, root, images)


def _image_refs(
    root: Path, folder: str, names: Mapping[int, str], named_by: Path, images: Images | None
) -> dict[int, ImageRef]:
    if images is not None:
        refs = {key: images[name] for key, name in names.items() if name in images}
    else:
        required(root, folder, LAYOUT)
        refs = find_images(root, folder, names, named_by)
    if not refs:
        raise DataUnavailableError(f"none of the images that {named_by} names is in {root / folder}; expected {LAYOUT}")
    return refs


def _name(root: Path, split: str, images: Images | None) -> str:
    return f"coco_{split.replace(' ', '_')}" if images is None else root.name


def _source(index: "COCO") -> str:
    info = index.dataset.get("info")
    told = [str(info[key]) for key in ("description", "url") if info.get(key)] if isinstance(info, dict) else []
    return ", ".join(told) or "an annotation file in COCO's format that does not say where it is from"


def _some(items: list[Item], root: Path) -> tuple[Item, ...]:
    if not items:
        raise DataError(f"nothing is left of {root}: its annotations hold no box or caption that can be used")
    return tuple(items)


def _why_dropped(annotation: Mapping[str, Any], image: Mapping[str, Any], crop: str) -> str:
    if annotation["iscrowd"] and crop != "square":
        return "crowd_boxes_dropped"
    if is_empty(annotation["bbox"]):
        return "empty_boxes_dropped"
    outside = is_outside(annotation["bbox"], image["width"], image["height"])
    return "outside_boxes_dropped" if outside else ""


def _id(annotation: Mapping[str, Any]) -> int:
    number: int = annotation["id"]
    return number
