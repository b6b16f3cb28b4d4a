"""The data set: an immutable list of items with a fingerprint, and the one way to find and to open an item's image."""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from clipbench.errors import ClipbenchError, DataError, DataUnavailableError
from clipbench.paths import LARGEST_DATA_BYTES, free_bytes, open_data

Key = TypeVar("Key", bound=Hashable)

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What pictures come in. Not EPS, for which Pillow starts a program, nor the thirty formats that nobody has."""

MAX_PIXELS = 1 << 26
"""Of a picture: 256 MiB decoded. Some hundred lie in memory at once where a model takes large batches."""


@dataclass(frozen=True)
class ImageRef:
    """Where an item's image is, and which part of it: resolved only when opened.

    `crop` is (left, top, right, bottom) in pixels of the whole image, right and bottom exclusive; what lies outside the image is white.
    `sha256` pins the file's content ("" = not pinned). `size`: the (width, height) that the crop was made for, None where nobody says.
    `converts_depth`: a picture of more than eight bits is converted, not left out (see HIGH_BIT_DEPTH).
    """

    path: Path
    sha256: str = ""
    crop: tuple[int, int, int, int] | None = None
    size: tuple[int, int] | None = None
    converts_depth: bool = False

    def open(self) -> Image.Image:
        """Return the image as RGB, cropped, fully decoded. Raises: as `check`; DataError when it cannot be decoded."""
        self.check()
        return self.cut(read_image(self.path, self.converts_depth))

    def cut(self, image: Image.Image) -> Image.Image:
        """Return this part of the whole, decoded RGB image (the image itself where there is no crop).

        Raises: DataError when the image is not of the size that the crop was made for, or the part larger than any image.
        """
        if self.crop is None:
            return image
        left, top, right, bottom = self.crop
        if self.size is not None and self.size != image.size:
            raise DataError(
                f"{self.path} has {image.width} x {image.height} pixels, and its annotation says {self.size[0]} x {self.size[1]}: its "
                f"boxes are of another picture; give the pictures that were annotated"
            )
        if (right - left) * (bottom - top) > MAX_PIXELS:
            raise DataError(f"{self.path}: the part {self.crop} has more than {MAX_PIXELS:,} pixels; mend its box")
        part = Image.new("RGB", (right - left, bottom - top), "white")
        part.paste(image, (-left, -top))
        return part

    def check(self) -> None:
        """Raises: DataUnavailableError when the file is missing or is not the pinned one."""
        if not self.path.is_file():
            raise DataUnavailableError(f"image not found: {self.path}")
        if self.sha256 and (found := file_sha256(self.path)) != self.sha256:
            raise DataUnavailableError(
                f"{self.path.name} is not the expected picture: SHA-256 {found[:16]}..., expected {self.sha256[:16]}... "
                f"(in {self.path.parent}); install the pinned versions of the demo extra"
            )


@dataclass(frozen=True)
class Item:
    """One image with its texts and labels. `labels` index into the data set's `classes`; `group` names its slice, `languages` that
    of each caption (of the one label, where there is none). A comparison fails where an item that `must_pass` is lost."""

    id: str
    image: ImageRef
    captions: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    group: str = ""
    languages: tuple[str, ...] = ()
    must_pass: bool = False

    def language(self, place: int | None = None) -> str:
        """Return the language of a caption; of the picture's, where all are of one."""
        if place is not None:
            return self.languages[place] if self.languages else ""
        return self.languages[0] if len(set(self.languages)) == 1 else ""


@dataclass(frozen=True)
class Dataset:
    """An immutable list of items.

    `classes` are the class names that labels index; `prompts` the texts around a caption or a class name; `options` what a result on
    these items depends on beside the files (split, crop). `exclusions` counts what was left out or changed on purpose.
    """

    name: str
    items: tuple[Item, ...]
    source: str
    classes: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    exclusions: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for item in self.items:
            if item.id in seen:
                raise DataError(f"data set {self.name!r} holds the item id {item.id!r} twice; ids must be unique")
            seen.add(item.id)

    def __len__(self) -> int:
        return len(self.items)

    def part(self, ids: Collection[str], classes: Sequence[str]) -> "Dataset":
        """Return the items of these ids alone, with these classes alone; labels of other classes are left out."""
        wanted, number = set(ids), {name: k for k, name in enumerate(classes)}
        names = [number.get(name, -1) for name in self.classes]
        items = []
        for item in self.items:
            labels = tuple(names[label] for label in item.labels if names[label] >= 0)
            if item.id in wanted and (labels or not item.labels):
                items.append(replace(item, labels=labels))
        return replace(self, items=tuple(items), classes=tuple(classes))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over every item's id, file content, crop, captions and labels, and the class names, in order."""
        digest = hashlib.sha256()
        for item in self.items:
            path, crop = item.image.path, item.image.crop
            # An absent image changes the fingerprint, it does not hide: the word can be no hash.
            content = file_sha256(path) if path.is_file() else "absent"
            row = [item.id, content, list(crop) if crop else None, list(item.captions), list(item.labels)]
            digest.update(json.dumps(row, ensure_ascii=True).encode())
        digest.update(json.dumps(list(self.classes)).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Root:
    """A folder of data that a user may give: `--OPTION ROOT`, or `--OPTION NAME=ROOT`, repeatable, where it is `named`.

    `check(name, root)` raises a ClipbenchError where what is asked for is not there: before anything is measured.
    """

    option: str
    help: str
    is_named: bool = False
    check: Callable[[str, Path], object] | None = None

    @property
    def metavar(self) -> str:
        """What stands behind the option."""
        return "NAME=ROOT" if self.is_named else "ROOT"


@dataclass(frozen=True)
class Choice:
    """How data are read, one of `values`, the first unless `--OPTION VALUE` asks for another."""

    option: str
    values: tuple[str, ...]
    help: str


HIGH_BIT_DEPTH = Choice(
    "high-bit-depth",
    ("leave-out", "convert"),
    "pictures of 16 or 32 bits or floats: named and left out (default), or converted as Pillow's convert does: white or black, mostly",
)


@dataclass(frozen=True)
class DataOptions:
    """What somebody chose of data: `roots`, (name, folder) pairs by option ("" as the name of an unnamed one), `choices`, and how many
    items at most are taken of each data set."""

    roots: Mapping[str, tuple[tuple[str, Path], ...]] = field(default_factory=dict)
    choices: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None

    def folder(self, root: Root) -> Path | None:
        """Return the folder that was given for a root without a name, None where there is none."""
        return next((path for _, path in self.folders(root)), None)

    def folders(self, root: Root) -> tuple[tuple[str, Path], ...]:
        """Return the (name, folder) pairs that were given for a root."""
        return self.roots.get(root.option, ())

    def chosen(self, choice: Choice) -> str:
        """Return the value that was chosen, else the first."""
        return self.choices.get(choice.option, choice.values[0])


@dataclass(frozen=True)
class Source:
    """A data set that can be loaded: its name is known before its items are."""

    name: str
    load: Callable[[], Dataset]


def at_depth(dataset: Dataset, options: DataOptions) -> Dataset:
    """Return the data set with its pictures of more than eight bits converted, where that was asked for; the protocol says so."""
    if options.chosen(HIGH_BIT_DEPTH) == HIGH_BIT_DEPTH.values[0]:
        return dataset
    items = tuple(replace(item, image=replace(item.image, converts_depth=True)) for item in dataset.items)
    return replace(dataset, items=items, options={**dataset.options, "high_bit_depth": options.chosen(HIGH_BIT_DEPTH)})


def limited(dataset: Dataset, options: DataOptions) -> Dataset:
    """Return the part of the data set that `--limit` leaves, which the protocol names: the same items every time, whatever their order.

    Those whose ids have the smallest hashes, in the data set's own order. All classes stay: each is a wrong answer all the same.
    """
    if options.limit is None or len(dataset) <= options.limit:
        return dataset
    drawn = sorted(dataset.items, key=lambda item: hashlib.sha256(item.id.encode(errors="surrogatepass")).digest())
    kept = {item.id for item in drawn[: options.limit]}
    items = tuple(item for item in dataset.items if item.id in kept)
    return replace(dataset, items=items, options={**dataset.options, "limit": options.limit})


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes; it is read again only when its size or time of change moved. Raises: OSError."""
    status = path.stat()
    return _file_sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=65536)
def _file_sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_image(path: Path, converts_depth: bool = False) -> Image.Image:
    """Return the file's picture as RGB, fully decoded: a copy that the caller may change.

    Like the study (and OpenAI's notebook) this is `Image.open(path).convert("RGB")`: transparency is dropped, greyscale and palettes are
    expanded, CMYK is converted, EXIF orientation is not applied. Pictures of 16 or 32 bits or floats, which this makes white or black,
    are refused unless `converts_depth`. DICOM files are rendered as a radiologist would see them. Inside `kept_pictures` a file (known by
    path, size and time of change) is decoded once.

    Raises: DataUnavailableError when the file is missing; DataError when it is none of FORMATS, truncated, or larger than MAX_PIXELS.
    """
    return read_stored(path, converts_depth)[0]


def read_stored(path: Path, converts_depth: bool = False) -> tuple[Image.Image, str]:
    """Return `read_image`, and the file's own colour mode ("" of DICOM), which that was converted from."""
    if not _KEPT.budget or not path.is_file():
        return _decoded(path, converts_depth)
    status = path.stat()
    key = (path, status.st_size, status.st_mtime_ns)
    found = _KEPT.pictures.get(key)
    if found is None:
        found = _decoded(path, converts_depth)
        size = found[0].width * found[0].height * 4  # Pillow pads the three bands to four
        with _KEPT.lock:
            if key in _KEPT.pictures or _KEPT.held + size > _KEPT.budget:
                return found
            _KEPT.pictures[key] = found
            _KEPT.held += size
    return found[0].copy(), found[1]


def _decoded(path: Path, converts_depth: bool) -> tuple[Image.Image, str]:
    if path.suffix.lower() == ".dcm":
        from clipbench.data.dicom import read_dicom

        return read_dicom(path), ""
    try:
        with _opened(path) as image:
            if (image.mode.startswith("I") or image.mode == "F") and not converts_depth:
                raise DataError(
                    f"{path} has more than eight bits a pixel (mode {image.mode}), which become white or black when converted; save it as "
                    f"eight bits, or measure that on purpose with --{HIGH_BIT_DEPTH.option} {HIGH_BIT_DEPTH.values[1]}"
                )
            return image.convert("RGB"), image.mode
    except ClipbenchError:
        raise
    except Exception as error:  # a decoder raises anything on a broken file
        raise DataError(
            f"cannot decode the image {path}: {error or type(error).__name__}; replace the file or remove it from the data set"
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture in a file, its header read and its size checked, no pixel made. Raises: as `open_data`; whatever Pillow raises."""
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    with open_data(path, LARGEST_DATA_BYTES) as file, Image.open(file, formats=known) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"it has {image.width} x {image.height} pixels, and at most {MAX_PIXELS:,} are decoded")
        yield image


def stored_mode(path: Path) -> str:
    """Return the file's own colour mode, read off its header; "" for what Pillow does not open (DICOM)."""
    try:
        with _opened(path) as image:
            return image.mode
    except (OSError, ClipbenchError):
        return ""


class _Kept:
    """Decoded pictures by path, size and time of change. None makes room: a pass over more than fit would find none of them."""

    def __init__(self) -> None:
        self.budget = self.held = 0
        self.pictures: dict[tuple[Path, int, int], tuple[Image.Image, str]] = {}
        self.lock = threading.Lock()


_KEPT = _Kept()


@contextmanager
def kept_pictures(budget_bytes: int) -> Iterator[None]:
    """Keep up to so many bytes of decoded pictures in memory until the context is left; more are decoded again."""
    _KEPT.budget = budget_bytes
    try:
        yield
    finally:
        with _KEPT.lock:
            _KEPT.pictures.clear()
            _KEPT.budget = _KEPT.held = 0


def held_bytes() -> int:
    """Return how much memory kept pictures take now: not what a model needs."""
    return _KEPT.held


def picture_budget_bytes() -> int:
    """Return a quarter of the memory that is free now."""
    return free_bytes() // 4


def required(root: Path, relative: str, layout: str) -> None:
    """Raises: DataUnavailableError with the `layout` expected, where `root / relative` is no folder (it ends in "/") or no file."""
    if not root.is_dir():
        raise DataUnavailableError(f"there is no folder {root}; expected {layout}")
    path = root / relative
    if not (path.is_dir() if relative.endswith("/") else path.is_file()):
        raise DataUnavailableError(f"{root} lacks {relative}; expected {layout}")


def find_images(root: Path, folder: str, names: Mapping[Key, str], named_by: Path) -> dict[Key, ImageRef]:
    """Return where each image is, under the keys of `names`; absent images are left out. No image is opened.

    `names` are file names relative to `root / folder`; `named_by` is the file that gives them. Links in the folder are
    followed wherever they lead, as hubs, DVC and git-annex lay files out (see `count_links`): who laid out the folder chose them.

    Raises: DataError for a name that itself leaves the root, which the author of `named_by` chose: absolute, or through "..".
    """
    base = root / folder
    bounds = (os.path.realpath(root), os.path.realpath(base))
    listed: dict[Path, frozenset[str]] = {}
    found: dict[Key, ImageRef] = {}
    for key, name in names.items():
        path = base / name
        is_name = bool(name) and "\0" not in name and not Path(name).is_absolute()
        if not is_name or (".." in Path(name).parts and not _inside(path, bounds)):
            raise DataError(
                f"{named_by} names the image {name!r}, which leaves {root}: refused; expected a file inside it"
            )
        if path.parent not in listed:
            listed[path.parent] = _files_without_links(path.parent)
        if path.name in listed[path.parent] or _is_file(path):
            found[key] = ImageRef(path)
    return found


def count_links(refs: Iterable[ImageRef]) -> int:
    """Return how many of the images' files are links, or lie in a folder that is one."""
    paths = [ref.path for ref in refs]
    linked = {folder: folder.is_symlink() for folder in {path.parent for path in paths}}
    return sum(linked[path.parent] or path.is_symlink() for path in paths)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


def _inside(path: Path, bounds: tuple[str, ...]) -> bool:
    real = os.path.realpath(path)
    return any(os.path.commonpath((real, bound)) == bound for bound in bounds)


def _files_without_links(folder: Path) -> frozenset[str]:
    """One listing instead of one look-up for each of thousands of names."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    except OSError:  # absent or not a folder: nothing is found in it, which the caller counts
        return frozenset()
