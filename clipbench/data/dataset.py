"""The data set: an immutable list of items with a fingerprint, and the one way to open an item's image."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType

from PIL import Image, ImageOps, UnidentifiedImageError

from clipbench.data.pictures import kept_or_decoded
from clipbench.errors import DataError, DataUnavailableError

WHITE = (255, 255, 255)


@dataclass(frozen=True)
class ImageRef:
    """Where an item's image is, and which part of it: resolved only when opened.

    `crop` is (left, top, right, bottom) in pixels of the whole image, right and bottom exclusive; it may leave the image,
    what lies outside is white. `sha256` pins the file's content ("" = not pinned).
    """

    path: Path
    sha256: str = ""
    crop: tuple[int, int, int, int] | None = None

    def open(self) -> Image.Image:
        """Return the image as RGB, cropped, fully decoded.

        Raises: DataUnavailableError when the file is missing or its content is not the pinned one; DataError when it
        cannot be decoded (the message names the file).
        """
        self.check()
        return self.cut(read_image(self.path))

    def cut(self, image: Image.Image) -> Image.Image:
        """Return this part of the whole, decoded image (the image itself where there is no crop)."""
        if self.crop is None:
            return image
        left, top, right, bottom = self.crop
        if left < 0 or top < 0 or right > image.width or bottom > image.height:
            border = (max(0, -left), max(0, -top), max(0, right - image.width), max(0, bottom - image.height))
            image = ImageOps.expand(image, border, fill=WHITE)
            left, top, right, bottom = left + border[0], top + border[1], right + border[0], bottom + border[1]
        return image.crop((left, top, right, bottom))

    def check(self) -> None:
        """Raises: DataUnavailableError when the file is missing or is not the pinned one."""
        if not self.path.is_file():
            raise DataUnavailableError(f"image not found: {self.path}")
        if self.sha256 and (found := file_sha256(self.path)) != self.sha256:
            raise DataUnavailableError(
                f"{self.path.name} is not the expected picture: SHA-256 {found[:16]}..., expected {self.sha256[:16]}... "
                f"(in {self.path.parent}); install the pinned versions of the demo extra"
            )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes; a file is read again only when its size or time of change moved.

    Raises: FileNotFoundError.
    """
    status = path.stat()
    return _file_sha256(path, status.st_size, status.st_mtime_ns)


def forget_hashes() -> None:
    """Read every file again for its next hash."""
    _file_sha256.cache_clear()


@lru_cache(maxsize=65536)
def _file_sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_image(path: Path) -> Image.Image:
    """Return the file's picture as RGB, fully decoded. DICOM files are rendered as a radiologist would see them.

    Like the study (and OpenAI's notebook) this is `Image.open(path).convert("RGB")`: transparency is dropped, greyscale
    and palettes are expanded, CMYK is converted, EXIF orientation is not applied.

    Raises: DataUnavailableError when the file is missing; DataError when it is no image or truncated.
    """
    return kept_or_decoded(path, _decoded)


def _decoded(path: Path) -> Image.Image:
    if path.suffix.lower() == ".dcm":
        from clipbench.data.dicom import read_dicom

        return read_dicom(path)
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataUnavailableError(f"image not found: {path}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"cannot decode the image {path}: {error}; replace the file or remove it from the data set"
        ) from error


@dataclass(frozen=True)
class Item:
    """One image with its texts and labels. `labels` index into the data set's `classes`."""

    id: str
    image: ImageRef
    captions: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """An immutable list of items.

    `classes` are the class names that labels index; `notes` counts what was handled on the way (boxes dropped, captions
    cut) and lands in the result's protocol; `protocol` holds what a result on these items depends on beside the files.
    """

    name: str
    items: tuple[Item, ...]
    source: str
    classes: tuple[str, ...] = ()
    notes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    protocol: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for item in self.items:
            if item.id in seen:
                raise DataError(f"data set {self.name!r} holds the item id {item.id!r} twice; ids must be unique")
            seen.add(item.id)

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over every item's id, file content, crop, captions and labels, and the class names, in order."""
        digest = hashlib.sha256()
        for item in self.items:
            crop = list(item.image.crop) if item.image.crop else None
            row = [item.id, _content_or_absent(item.image.path), crop, list(item.captions), list(item.labels)]
            digest.update(json.dumps(row, ensure_ascii=True).encode())
        digest.update(json.dumps(list(self.classes)).encode())
        return digest.hexdigest()


def _content_or_absent(path: Path) -> str:
    """The file's hash, or a word that can be no hash: an absent image changes the fingerprint, it does not hide."""
    return file_sha256(path) if path.is_file() else "absent"
