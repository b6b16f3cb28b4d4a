"""Small pictures and captions of items, kept beside a run by the hash of their content, so that a page can show them without the data."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from clipbench.errors import ClipbenchError
from clipbench.paths import open_data, read_json
from clipbench.report.document import Thumb
from clipbench.storage import write_atomically
from clipbench.types import Key, Run

if TYPE_CHECKING:
    from clipbench.data.dataset import Dataset, Item

FOLDER, TEXTS = "thumbs", "texts.json"
SIDE, QUALITY = 112, 72
"""Pixels of the longer side, twice what a page shows; some 2.5 kB as JPEG."""
MOST_MADE, MOST_SHOWN_BYTES = 300, 3_000_000
"""Pictures made by one session; what pictures may add to a page of 5 MB."""
LARGEST_THUMB, LARGEST_TEXTS, LONGEST_TEXT = 100_000, 10_000_000, 300
_OURS = re.compile(r"[0-9a-f]{16}\.jpg")


class Gallery:
    """The pictures and captions of the items of some runs, for who asks: from `folder`, else made from a data set at hand.

    What a page asks for and is made is kept in the folder, the rest of it goes (`keep`). `pictures`, `texts`: whether there are any.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        folders: Sequence[Path] = (),
        datasets: Iterable[Dataset] = (),
        pictures: bool = True,
        texts: bool = True,
    ) -> None:
        self.pictures, self.texts = pictures, texts
        self._folders = folders
        self._hashes: dict[Key, dict[str, int]] = {}
        self._text_hashes: dict[Key, dict[str, int]] = {}
        self._items: dict[Key, dict[str, Item]] = {}
        self._made: dict[str, bytes] = {}
        self._said: dict[str, str] = {}
        self._budget = MOST_SHOWN_BYTES
        self._known = self._read_texts()
        at_hand = {dataset.fingerprint: dataset for dataset in datasets}
        for result in (result for run in runs for result in run.results):
            images, words = result.evidence.get("images"), result.evidence.get("texts")
            if images is not None:
                hashes = images.pixels if len(images.pixels) else images.contents
                found = self._hashes.setdefault(result.key, {})
                found |= {i: h for i, h in zip(images.ids, hashes.tolist(), strict=True) if i not in found}
            if words is not None:
                known = self._text_hashes.setdefault(result.key, {})
                known |= {i: h for i, h in zip(words.ids, words.contents.tolist(), strict=True) if i not in known}
            if dataset := at_hand.get(result.dataset.fingerprint):
                self._items[result.key] = {item.id: item for item in dataset.items}

    def without_pictures(self) -> Gallery:
        """Return the same captions without pictures."""
        found = copy.copy(self)
        found.pictures = False
        return found

    def has_picture(self, key: Key, item: str) -> bool:
        """Return whether this names a picture of a result, whether or not it is at hand."""
        return item in self._hashes.get(key, {})

    def thumb(self, key: Key, item: str, is_hit: bool = False) -> Thumb:
        """Return the small picture of an item, or its name where there is none."""
        words = self.words(key, item)
        content = self._content(key, item) if self.pictures else None
        if content is None or len(content) * 4 / 3 > self._budget:
            return Thumb("", words, is_hit)
        self._budget -= len(content) * 4 // 3
        return Thumb(f"data:image/jpeg;base64,{base64.b64encode(content).decode()}", words, is_hit)

    def thumbs(self, key: Key, item: str, is_hit: bool = False) -> tuple[Thumb, ...]:
        """Return `thumb` alone, () for what names no picture."""
        return (self.thumb(key, item, is_hit),) if self.has_picture(key, item) else ()

    def words(self, key: Key, item: str) -> str:
        """Return an item's name with its caption, where it has one."""
        caption = self.caption(key, item)
        return f"{item}: {caption}" if caption else item

    def caption(self, key: Key, item: str) -> str:
        """Return the caption of an item; "" where none is known."""
        code = self._text_hashes.get(key, {}).get(item)
        if code is None or not self.texts:
            return ""
        name = f"{code:016x}"
        text = self._known.get(name, "") or self._caption_at_hand(key, item)
        if text:
            self._said[name] = text[:LONGEST_TEXT]
        return text[:LONGEST_TEXT]

    def _caption_at_hand(self, key: Key, item: str) -> str:
        """A text is called as its picture is, with its place behind "#" where there are several."""
        items = self._items.get(key, {})
        name, _, place = (item, "", "0") if item in items else item.rpartition("#")
        captions = items[name].captions if name in items else ()
        return captions[int(place)] if place.isdecimal() and int(place) < len(captions) else ""

    def _content(self, key: Key, item: str) -> bytes | None:
        code = self._hashes.get(key, {}).get(item)
        if code is None:
            return None
        name = f"{code:016x}.jpg"
        if name not in self._made:
            content = self._kept(name) or self._drawn(key, item)
            if content is None:
                return None
            self._made[name] = content
        return self._made[name]

    def _kept(self, name: str) -> bytes | None:
        for folder in self._folders:
            with suppress(ClipbenchError, OSError), open_data(folder / name, LARGEST_THUMB) as file:
                content = file.read()
                if content.startswith(b"\xff\xd8"):
                    return content
        return None

    def _drawn(self, key: Key, item: str) -> bytes | None:
        found = self._items.get(key, {}).get(item)
        if found is None or len(self._made) >= MOST_MADE:
            return None
        try:
            picture = found.image.open()
        except ClipbenchError:
            return None  # its name stands in for a picture that cannot be opened any more
        picture.thumbnail((SIDE, SIDE))
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=QUALITY)
        return stream.getvalue()

    def _read_texts(self) -> Mapping[str, str]:
        known: dict[str, str] = {}
        for folder in self._folders:
            with suppress(ClipbenchError, OSError):
                found = read_json(folder / TEXTS, LARGEST_TEXTS)
                if isinstance(found, dict):
                    known |= {name: text for name, text in found.items() if isinstance(text, str)}
        return known

    def keep(self, folder: Path) -> None:
        """Write what was asked for into a folder, and remove what an earlier session left there. Raises: OSError."""
        for name, content in self._made.items():
            if not (folder / name).exists():
                write_atomically(folder / name, content)
        if self._said:
            write_atomically(folder / TEXTS, json.dumps(self._said, sort_keys=True, indent=1))
        for path in folder.glob("*.jpg") if folder.is_dir() else ():
            if _OURS.fullmatch(path.name) and path.name not in self._made:
                path.unlink()
        if not self._said:
            (folder / TEXTS).unlink(missing_ok=True)
