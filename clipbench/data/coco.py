"""COCO in its published folder layout: boxes to classify, images with several labels, images with captions.

All three readers take the root of the official layout and decide the split alone: val2017 where its annotation file is, else val2014;
captions follow a Karpathy split file where there is one, as the published retrieval values do. No image is opened here. What is left
out, or kept on purpose, is counted in `Dataset.exclusions`, zeros included. pycocotools trusts its input: files are checked row by row
first, and whatever is wrong is named by file, annotation and key.

Source: Lin et al., Microsoft COCO, ECCV 2014 (https://cocodataset.org, #format-data); Karpathy and Fei-Fei, CVPR 2015 (test split).
"""

import contextlib
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clipbench.data.dataset import (
    Choice,
    DataOptions,
    Dataset,
    ImageRef,
    Item,
    Root,
    Source,
    count_links,
    find_images,
    required,
)
from clipbench.data.packaged import packaged_coco
from clipbench.errors import DataError, DataUnavailableError, UsageError
from clipbench.paths import read_json
from clipbench.types import short

if TYPE_CHECKING:
    from pycocotools.coco import COCO

CROP = Choice(
    "coco-crop",
    ("square", "tight"),
    "crops of ground-truth boxes: the published 1.5 x square with white padding (default), or the tight box",
)
LAYOUT = (
    "COCO's official layout: val2017/, annotations/instances_val2017.json and annotations/captions_val2017.json "
    "(or val2014/ with annotations/instances_val2014.json and a Karpathy split dataset_coco.json)"
)
KARPATHY_FILES = ("dataset_coco.json", "annotations/dataset_coco.json")
KARPATHY_SPLIT = "karpathy test"
KARPATHY_SOURCE = "COCO val2014, Karpathy test split, https://cs.stanford.edu/people/karpathy/deepimagesent/"


def _check_layout(name: str, root: Path) -> None:
    """Raises: DataUnavailableError for a folder without any annotations of the layout."""
    files = [*(root / "annotations").glob("instances_val*.json"), *(root / "annotations").glob("captions_val*.json")]
    if not files and _split_file(root) is None:
        raise DataUnavailableError(f"{root} holds no annotations; expected {LAYOUT}")
    if not (root / "val2014").is_dir():
        required(root, "val2017/", LAYOUT)


COCO_ROOT = Root("coco", "COCO in its official layout, in place of the packaged miniature", check=_check_layout)
CAPTIONS_PER_IMAGE = 5  # Source: the published retrieval values; ten of the 5,000 images' 25,010 captions are beyond
SQUARE_SCALE = 1.5
SQUARE_PADDING = 600

_HALF = re.compile("[\ud800-\udfff]")

Crop = tuple[int, int, int, int]
Images = Mapping[str, ImageRef]


def coco_crops(root: Path, crop: str = "square", images: Images | None = None) -> Dataset:
    """Return one item for each annotated box, its label an index into the classes (in the order of category ids).

    Ids are annotation ids; boxes of one image are neighbours. "square" is the published protocol (see `square_crop`): every
    annotation, crowd boxes included. "tight" is the box itself, without crowd boxes, which hold many objects. Boxes without area or
    wholly outside their image are left out of both. `images` says where each `file_name` is when not in the split's folder.

    Raises: UsageError for another crop; DataUnavailableError for a missing folder or file of the layout, or when no image is there;
    DataError for malformed annotations.
    """
    if crop not in CROPS:
        raise UsageError(f"unknown crop {crop!r}; expected one of {', '.join(CROPS)}")
    return _crops(_open_instances(root, images), crop)


def _crops(opened: "_Instances", crop: str, name: str = "") -> Dataset:
    """One item for each box that has an area in its image."""
    exclusions = Counter(crowd_boxes_kept=0, crowd_boxes_dropped=0, empty_boxes_dropped=0, outside_boxes_dropped=0)
    exclusions.update(boxes_of_absent_images_dropped=0, images_absent=len(opened.index.imgs) - len(opened.refs))
    exclusions["links_followed"] = count_links(opened.refs.values())
    items = []
    for image_id, annotations in sorted(opened.index.imgToAnns.items()):
        if image_id not in opened.refs:
            exclusions["boxes_of_absent_images_dropped"] += len(annotations)
            continue
        ref, image = opened.refs[image_id], opened.index.imgs[image_id]
        for annotation in sorted(annotations, key=itemgetter("id")):
            box, is_crowd = annotation["bbox"], annotation["iscrowd"]
            if is_crowd and crop != "square":
                exclusions["crowd_boxes_dropped"] += 1
            elif is_empty(box):
                exclusions["empty_boxes_dropped"] += 1
            elif is_outside(box, image["width"], image["height"]):
                exclusions["outside_boxes_dropped"] += 1
            else:
                exclusions["crowd_boxes_kept"] += is_crowd
                size = image["width"], image["height"]
                part = ImageRef(ref.path, ref.sha256, CROPS[crop](box, *size), size)
                label = opened.labels[annotation["category_id"]]
                items.append(Item(str(annotation["id"]), part, labels=(label,)))
    options = {"split": opened.split, "crop": crop, "crowd_boxes": "kept" if crop == "square" else "dropped"}
    return opened.dataset(items, exclusions, options, name)


def coco_multilabel(root: Path, images: Images | None = None) -> Dataset:
    """Return one item for each image, its labels the classes that it shows, ascending (indices into the classes).

    A crowd box is evidence that its class is there, so it counts. An image without any box stays, with no labels: it is a wrong answer
    to every class, as in the published protocol (all 40,504 images of val2014). `images`, Raises: as `coco_crops`.
    """
    opened = _open_instances(root, images)
    items, only_crowd = [], 0
    for image_id in sorted(opened.refs):
        annotations = opened.index.imgToAnns.get(image_id, [])
        classes = {opened.labels[a["category_id"]] for a in annotations}
        only_crowd += len(classes - {opened.labels[a["category_id"]] for a in annotations if not a["iscrowd"]})
        items.append(Item(str(image_id), opened.refs[image_id], labels=tuple(sorted(classes))))
    exclusions = {
        "images_absent": len(opened.index.imgs) - len(opened.refs),
        "images_without_labels_kept": sum(not item.labels for item in items),
        "labels_from_crowd_boxes_only": only_crowd,
        "links_followed": count_links(opened.refs.values()),
    }
    return opened.dataset(items, exclusions, {"split": opened.split})


def coco_retrieval(root: Path, images: Images | None = None) -> Dataset:
    """Return one item for each image with its captions, in the order of image ids.

    With `dataset_coco.json` (Karpathy's split, in the root or in annotations/) these are its 5,000 test images, all of val2014; without
    it, val2017. At most the first five captions of an image are kept, as published. Blank captions are dropped, images without any
    caption too; captions that repeat another one stay. `images`, Raises: as `coco_crops`.
    """
    split_file = _split_file(root)
    if split_file is not None and images is None:
        split, source = KARPATHY_SPLIT, KARPATHY_SOURCE
        names, captions = _karpathy_test(root, split_file)
        refs = _image_refs(root, "./", names, split_file, None)
    else:
        split, path = "val2017", root / "annotations/captions_val2017.json"
        index = _index(root, path, _CAPTIONS)
        source = _source(index)
        names = {key: image["file_name"] for key, image in index.imgs.items()}
        captions = {key: [row["caption"] for row in rows] for key, rows in index.imgToAnns.items()}
        refs = _image_refs(root, "val2017/", names, path, images)
    items, exclusions = _captioned(names, captions, refs)
    options = {"split": split, "captions_per_image": f"the first {CAPTIONS_PER_IMAGE}"}
    return Dataset(_name(root, split, images), _some(items, root), source, options=options, exclusions=exclusions)


def _captioned(
    names: Mapping[int, str], captions: Mapping[int, list[str]], refs: Mapping[int, ImageRef]
) -> tuple[list[Item], dict[str, int]]:
    """Items with their first captions, and what was left out."""
    exclusions = Counter(images_without_captions_dropped=0, blank_captions_dropped=0, captions_beyond_five_dropped=0)
    exclusions.update(duplicate_captions_kept=0, images_absent=len(names) - len(refs))
    exclusions["links_followed"] = count_links(refs.values())
    items: list[Item] = []
    seen: set[str] = set()
    for image_id in sorted(refs):
        every = captions.get(image_id, [])
        written = [caption for caption in every if caption.strip()]
        kept = written[:CAPTIONS_PER_IMAGE]
        exclusions["blank_captions_dropped"] += len(every) - len(written)
        exclusions["captions_beyond_five_dropped"] += len(written) - len(kept)
        exclusions["duplicate_captions_kept"] += len(kept) - len(set(kept) - seen)
        exclusions["images_without_captions_dropped"] += not kept
        seen.update(kept)
        if kept:
            items.append(Item(str(image_id), refs[image_id], captions=tuple(kept)))
    return items, dict(exclusions)


def caption_file(name: str, path: Path) -> Dataset:
    """Return one item for each image of a captions file in COCO's format, wherever it lies. Raises: as `coco_retrieval`."""
    index, refs, names = _own_file(path, _CAPTIONS)
    captions = {key: [row["caption"] for row in rows] for key, rows in index.imgToAnns.items()}
    items, exclusions = _captioned(names, captions, refs)
    options = {"captions_per_image": f"the first {CAPTIONS_PER_IMAGE}"}
    return Dataset(name, _some(items, path), _source(index), options=options, exclusions=exclusions)


def instance_file(name: str, path: Path) -> Dataset:
    """Return one item for each box of an instances file in COCO's format, wherever it lies. Raises: as `coco_crops`."""
    index, refs, _ = _own_file(path, _INSTANCES)
    return _crops(_Instances(index, path.stem, refs, _labels(path, index), path.parent, None), "square", name)


def _own_file(path: Path, tables: Mapping[str, "_Keys"]) -> tuple["COCO", dict[int, ImageRef], dict[int, str]]:
    """The checked file, where its images are, and their names.

    They are looked for beside the file, in images/, and, for a file in annotations/, beside that folder, in the split's own too.
    """
    index = _index(path.parent, path, tables)
    names = {key: image["file_name"] for key, image in index.imgs.items()}
    above = path.parent.parent if path.parent.name == "annotations" else path.parent
    split = path.stem.rpartition("_")[2]
    tried = list(dict.fromkeys(f for f in (above / split, above / "images", above, path.parent) if f.is_dir()))
    for folder in tried:
        if refs := find_images(folder, "./", names, path):
            return index, refs, names
    where = ", ".join(map(str, tried))
    raise DataUnavailableError(f"none of the {len(names):,} images that {path} names is in {where}; put them there")


def sources(options: DataOptions, read: Callable[..., Dataset], is_captions: bool = False) -> tuple[Source, ...]:
    """Return the data set that `read` makes of the folder that was given, else of the packaged miniature."""
    root = options.folder(COCO_ROOT)
    if root is None:
        return (Source("coco_mini", lambda: read(**packaged_coco()._asdict())),)
    split = _boxes_split(root) if not is_captions else "val2017" if _split_file(root) is None else KARPATHY_SPLIT
    return (Source(_name(root, split, None), partial(read, root)),)


def crop_sources(options: DataOptions) -> tuple[Source, ...]:
    """Return `sources` of boxes, cut as was chosen."""
    return sources(options, partial(coco_crops, crop=options.chosen(CROP)))


def square_crop(box: Sequence[float], width: int, height: int) -> Crop:
    """Return the published crop: a square of 1.5 times the longer side, centred on the box, white outside the image.

    `box` is [left, top, width, height], `width` and `height` the image's, all in pixels; the result is (left, top, right, bottom), right
    and bottom exclusive. Left, top and sides are first cut to whole pixels (sides to at least 1), corners afterwards, so the crop is
    square to within one pixel. The image counts as padded by 600 px; what would reach further is cut off there, one pixel earlier at
    the right and the bottom.

    Source: SunzeY/AlphaCLIP train/dataset/mask_image_test.py, COCO_Masked_Test (functions masked_crop and crop).
    """
    padded_left, padded_top = int(box[0] + SQUARE_PADDING), int(box[1] + SQUARE_PADDING)
    box_width, box_height = max(1, int(box[2])), max(1, int(box[3]))
    side = max(box_width, box_height)
    left, right = _square_span(padded_left, box_width, side, width)
    top, bottom = _square_span(padded_top, box_height, side, height)
    return left, top, right, bottom


def _square_span(start: int, length: int, side: int, size: int) -> tuple[int, int]:
    """One axis of the square, in and out of padded coordinates."""
    middle_start, beyond, end = start - (side - length) / 2, (SQUARE_SCALE - 1) / 2 * side, size + 2 * SQUARE_PADDING
    low, high = middle_start - beyond, middle_start + side + beyond
    return max(0, int(low)) - SQUARE_PADDING, (int(high) if high < end else end - 1) - SQUARE_PADDING


def tight_crop(box: Sequence[float], width: int, height: int) -> Crop:
    """Return the box itself: (left, top, right, bottom), right and bottom exclusive, clipped to the image.

    Edges are rounded outwards, so that no pixel the box touches is lost and a box of positive area is at least 1 px wide and high.
    """
    left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    return left, top, min(width, math.ceil(box[0] + box[2])), min(height, math.ceil(box[1] + box[3]))


def is_empty(box: Sequence[float]) -> bool:
    """Return whether the box has no area."""
    return box[2] <= 0 or box[3] <= 0


def is_outside(box: Sequence[float], width: int, height: int) -> bool:
    """Return whether the box, which has an area, shares none of it with the image."""
    return box[0] >= width or box[1] >= height or box[0] + box[2] <= 0 or box[1] + box[3] <= 0


CROPS: Mapping[str, Callable[[Sequence[float], int, int], Crop]] = {"square": square_crop, "tight": tight_crop}


class _Instances(NamedTuple):
    """An instances file, with the images that are there."""

    index: "COCO"
    split: str
    refs: Mapping[int, ImageRef]
    labels: Mapping[int, int]
    root: Path
    images: Images | None

    def dataset(
        self, items: list[Item], exclusions: Mapping[str, int], options: Mapping[str, str], name: str = ""
    ) -> Dataset:
        classes = tuple(self.index.cats[category]["name"] for category in self.labels)
        name = name or _name(self.root, self.split, self.images)
        return Dataset(name, _some(items, self.root), _source(self.index), classes, (), options, dict(exclusions))


def _boxes_split(root: Path) -> str:
    return next((s for s in ("val2017", "val2014") if (root / f"annotations/instances_{s}.json").is_file()), "val2017")


def _split_file(root: Path) -> Path | None:
    return next((root / name for name in KARPATHY_FILES if (root / name).is_file()), None)


def _open_instances(root: Path, images: Images | None) -> _Instances:
    split = _boxes_split(root)
    path = root / f"annotations/instances_{split}.json"
    index = _index(root, path, _INSTANCES)
    labels = _labels(path, index)
    names = {key: image["file_name"] for key, image in index.imgs.items()}
    refs = _image_refs(root, f"{split}/", names, path, images)
    return _Instances(index, split, refs, labels, root, images)


def _labels(path: Path, index: "COCO") -> dict[int, int]:
    """Label by category id, in their order. Raises: DataError for two of one name."""
    called = Counter(category["name"] for category in index.cats.values())
    if repeated := sorted(name for name, n in called.items() if n > 1):
        raise DataError(f"{path}: more than one category is called {', '.join(map(repr, repeated))}")
    return {category: label for label, category in enumerate(sorted(index.cats))}


def _karpathy_test(root: Path, path: Path) -> tuple[dict[int, str], dict[int, list[str]]]:
    """File names, relative to the root, and captions of the split file's test images."""
    required(root, "val2014/", f"the images of {path.name} (without that file, val2017 is read)")
    names: dict[int, str] = {}
    captions: dict[int, list[str]] = {}
    for number, image in enumerate(_checked(read_json(path), {"images": _LIST}, str(path))["images"], 1):
        where = f"{path}: image number {number}"
        if _checked(image, {"split": _TEXT}, where)["split"] != "test":
            continue
        key = "cocoid" if "cocoid" in image else "imgid"
        row = {"filepath": "val2014"} | image
        _checked(row, {key: _WHOLE, "filename": _TEXT, "filepath": _TEXT, "sentences": _LIST}, where)
        if row[key] in names:
            raise DataError(f"{where} has {key} = {row[key]}, which appears twice; ids must be unique")
        names[row[key]] = f"{row['filepath']}/{row['filename']}"
        captions[row[key]] = [_checked(s, {"raw": _TEXT}, f"{where}, a sentence")["raw"] for s in row["sentences"]]
    if not names:
        raise DataError(f"{path} has no image whose split is 'test'; expected Karpathy's dataset_coco.json")
    return names, captions


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
    stated = [str(info[key]) for key in ("description", "url") if info.get(key)] if isinstance(info, dict) else []
    return ", ".join(stated) or "an annotation file in COCO's format that does not say where it is from"


def _some(items: list[Item], root: Path) -> tuple[Item, ...]:
    if not items:
        raise DataError(f"nothing is left of {root}: its annotations hold no box or caption that can be used")
    return tuple(items)


def is_text(value: object) -> bool:
    """Return whether a value is a text that a file name or a tokenizer can have: JSON can also write half a character."""
    return isinstance(value, str) and not _HALF.search(value)


# What a value of an annotation file must be, and the words for it.
_Kind = tuple[Callable[[Any], bool], str]
_WHOLE: _Kind = (lambda value: type(value) is int, "a whole number")
_SIZE: _Kind = (lambda value: type(value) is int and value > 0, "a whole number of pixels above 0")
_TEXT: _Kind = (lambda value: is_text(value), "a text")
_NAME: _Kind = (lambda value: is_text(value) and bool(value.strip()), "a text that is not blank")
_FLAG: _Kind = (lambda value: type(value) in (bool, int) and value in (0, 1), "0 or 1")
_LIST: _Kind = (lambda value: isinstance(value, list), "a list")
_BOX: _Kind = (  # NaN compares false; the bound keeps out infinity and whole numbers that no float can hold
    lambda value: (
        isinstance(value, list)
        and len(value) == 4
        and all(type(number) in (int, float) and -1e7 < number < 1e7 for number in value)
    ),
    "[left, top, width, height], four finite numbers of pixels",
)

_Keys = Mapping[str, _Kind]
_IMAGE: _Keys = {"id": _WHOLE, "file_name": _TEXT}
_SIZED_IMAGE: _Keys = {**_IMAGE, "width": _SIZE, "height": _SIZE}
_CATEGORY: _Keys = {"id": _WHOLE, "name": _NAME}
_INSTANCE: _Keys = {"id": _WHOLE, "image_id": _WHOLE, "category_id": _WHOLE, "bbox": _BOX, "iscrowd": _FLAG}
_CAPTION: _Keys = {"id": _WHOLE, "image_id": _WHOLE, "caption": _TEXT}
_INSTANCES = {"categories": _CATEGORY, "images": _SIZED_IMAGE, "annotations": _INSTANCE}
_CAPTIONS = {"images": _IMAGE, "annotations": _CAPTION}


def _index(root: Path, path: Path, tables: Mapping[str, _Keys]) -> "COCO":
    """The checked annotation file: images, categories, and annotations by image."""
    from pycocotools.coco import COCO

    required(root, path.relative_to(root).as_posix(), LAYOUT)
    content = read_json(path, object_hook=_without_outline)
    _checked(content, dict.fromkeys(tables, _LIST), str(path))
    ids = {table: _checked_ids(path, table, content[table], keys) for table, keys in tables.items()}
    for annotation in content["annotations"]:
        for key, table in (("image_id", "images"), ("category_id", "categories")):
            if table in ids and annotation[key] not in ids[table]:
                raise DataError(
                    f"{path}: annotation {annotation['id']} has {key} = {annotation[key]}, which is none of the "
                    f"{len(ids[table])} ids in {table!r}"
                )
    index = COCO()
    index.dataset = {
        name: content[name] for name in (*tables, "info") if name in content
    }  # what was checked, and no more
    with contextlib.redirect_stdout(io.StringIO()):  # it prints "creating index..."
        index.createIndex()
    return index


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)  # most of a file, and no experiment looks at it
    return entry


def _checked_ids(path: Path, table: str, rows: list[Any], keys: _Keys) -> set[int]:
    word = {"categories": "category", "images": "image", "annotations": "annotation"}[table]
    ids: set[int] = set()
    for number, row in enumerate(rows, 1):
        has_id = isinstance(row, dict) and type(row.get("id")) is int
        where = f"{path}: {word} {row['id']}" if has_id else f"{path}: {word} number {number} (without a whole id)"
        if _checked(row, keys, where)["id"] in ids:
            raise DataError(f"{where} appears twice; ids must be unique")
        ids.add(row["id"])
    return ids


def _checked(row: Any, keys: _Keys, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where} is {short(repr(row), 80)}; expected an object with {', '.join(keys)}")
    for key, (fits, words) in keys.items():
        if key not in row:
            raise DataError(f"{where} lacks the key {key!r}; expected {words}")
        if not fits(row[key]):
            raise DataError(f"{where} has {key} = {short(repr(row[key]), 80)}; expected {words}")
    return row
