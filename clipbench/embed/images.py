"""Images to rows: decoded and preprocessed in threads, encoded in batches, each broken image named."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image

from clipbench.data.dataset import ImageRef, Item, file_sha256, read_image
from clipbench.embed.rows import AT_ONCE, DisagreementError, Made, Part, Row, gather, shortcuts_of
from clipbench.errors import DataError
from clipbench.models.device import batches_ahead, images_at_once, keep_to_one_thread, single_threaded_feed
from clipbench.models.encoder import Encoder, Rows, Shortcuts
from clipbench.settings import Settings


@dataclass(frozen=True)
class EmbeddedImages:
    """`rows`: (kept, dim) float32 unit rows. `kept`: the items they belong to. `broken`: one reason an image left out.

    `made`: how the rows were made.
    """

    rows: Rows
    kept: tuple[Item, ...]
    broken: tuple[str, ...]
    made: Made


def embed_images(encoder: Encoder, items: Sequence[Item], settings: Settings) -> EmbeddedImages:
    """Return one row an image, in the order of `items`; by the plain call where a shortcut disagrees with it or is off.

    An image that cannot be decoded is left out and named in `broken`; a missing or wrong file is an error.

    Raises: DataUnavailableError for a file that is missing or not the pinned one; DataError when no image is left.
    """
    shortcuts = shortcuts_of(encoder, settings)
    with single_threaded_feed(settings.device):
        try:
            rows, broken, made = _embed(encoder, items, shortcuts, settings)
        except DisagreementError as error:
            rows, broken, made = _embed(encoder, items, None, settings)
            made += Made(0, dropped=str(error))
    if not rows:
        reasons = list(broken.values())
        first = f"; the first: {reasons[0]}" if reasons else ""
        raise DataError(f"none of {len(items)} images could be decoded{first}")
    places = sorted(rows)
    return EmbeddedImages(
        np.stack([rows[k] for k in places]),
        tuple(items[k] for k in places),
        tuple(broken[k] for k in sorted(broken)),
        made,
    )


def _embed(
    encoder: Encoder, items: Sequence[Item], shortcuts: Shortcuts | None, settings: Settings
) -> tuple[dict[int, Row], dict[int, str], Made]:
    """Rows and reasons for broken images, both by place."""
    broken: dict[int, str] = {}
    if shortcuts is None:
        work = _Work(lambda image: image, lambda images: _done(encoder.encode_images(images)), settings, broken)
        return work.rows(items, range(len(items))), broken, Made(len(items))
    rows: dict[int, Row] = {}
    made = Made(0)
    for places in _parts(items):
        broken_here: dict[int, str] = {}
        part = _part(encoder, [items[k] for k in places], shortcuts, settings, broken_here)
        found, how = gather(part, encoder, settings)
        rows |= {places[k]: row for k, row in found.items()}
        broken |= {places[k]: reason for k, reason in broken_here.items()}
        made += how
    return rows, broken, made


def _done(rows: Rows) -> Callable[[], Rows]:
    return lambda: rows


def _part(
    encoder: Encoder, items: Sequence[Item], shortcuts: Shortcuts, settings: Settings, broken: dict[int, str]
) -> Part:
    held: dict[int, Image.Image] = {}  # pictures of the sample, kept from their decoding until they are checked

    def make(missing: Sequence[int], sample: Collection[int]) -> Mapping[int, Row]:
        work = _Work(shortcuts.prepare, shortcuts.start_images, settings, broken, frozenset(sample), held)
        return work.rows(items, missing)

    return Part(
        names=[image_name(item.image) for item in items],
        order=range(len(items)),
        make=make,
        plain=lambda places: encoder.encode_images([held.get(k) or items[k].image.open() for k in places]),
        used=lambda: shortcuts.of_images,
    )


@dataclass(frozen=True)
class _Work:
    """How pictures become rows: `prepare` one in a thread, `start` the model on a batch of what it gave. Broken ones are noted
    by place, those in `hold` are `held`."""

    prepare: Callable[[Image.Image], Any]
    start: Callable[[Sequence[Any]], Callable[[], Rows]]
    settings: Settings
    broken: dict[int, str]
    hold: Collection[int] = ()
    held: dict[int, Image.Image] | None = None

    def rows(self, items: Sequence[Item], places: Sequence[int]) -> dict[int, Row]:
        """The rows of these places; items of one file beside each other share one decoding.

        A batch is fetched only when the next one has been started: a device with a queue never waits for this thread.
        """
        settings = self.settings
        at_once = images_at_once(settings.device, settings.batch_size, settings.workers)
        batches = _batches(_groups(items, places), at_once)
        prepared = settings.progress(self._prepared(items, batches), len(batches), "images")
        found: dict[int, Row] = {}
        started: deque[tuple[list[int], Callable[[], Rows]]] = deque()
        for batch in _evenly(prepared, settings.batch_size):
            started.append(([k for k, _ in batch], self.start([ready for _, ready in batch])))
            if len(started) > 1:
                found |= _fetched(*started.popleft())
        return found | (_fetched(*started.popleft()) if started else {})

    def _prepared(
        self, items: Sequence[Item], batches: Sequence[Sequence[Sequence[int]]]
    ) -> Iterator[list[tuple[int, Any]]]:
        """What the model is given, batch after batch: all threads on the next one, or some batches ahead of the model."""
        workers, ahead = self.settings.workers, batches_ahead(self.settings.device)
        with ThreadPoolExecutor(workers, initializer=keep_to_one_thread) if workers else nullcontext() as pool:
            queue: deque[list[Callable[[], dict[int, Any]]]] = deque()
            for batch in batches:
                work: list[Callable[[], dict[int, Any]]] = [
                    partial(self._prepare_group, items, group) for group in batch
                ]
                queue.append([pool.submit(one).result for one in work] if pool else work)
                if len(queue) > ahead:
                    yield [entry for result in queue.popleft() for entry in result().items()]
            while queue:
                yield [entry for result in queue.popleft() for entry in result().items()]

    def _prepare_group(self, items: Sequence[Item], places: Sequence[int]) -> dict[int, Any]:
        """Decode one file, cut and prepare each part of it."""
        ref = items[places[0]].image
        ref.check()
        try:
            whole = read_image(ref.path)
        except DataError as error:
            self.broken.update({k: f"{items[k].id}: {error}" for k in places})
            return {}
        prepared = {}
        for k in places:
            image = items[k].image.cut(whole)
            prepared[k] = self.prepare(image)
            if k in self.hold and self.held is not None:
                self.held[k] = image
        return prepared


def _fetched(places: Sequence[int], rows: Callable[[], Rows]) -> dict[int, Row]:
    return dict(zip(places, rows(), strict=True))


def _evenly(batches: Iterable[list[tuple[int, Any]]], size: int) -> Iterator[list[tuple[int, Any]]]:
    """The same entries in batches of `size`; the last one holds what is left."""
    waiting: list[tuple[int, Any]] = []
    for batch in batches:
        waiting += batch
        whole = len(waiting) // size * size
        yield from (waiting[start : start + size] for start in range(0, whole, size))
        waiting = waiting[whole:]
    if waiting:
        yield waiting


def _groups(items: Sequence[Item], places: Sequence[int]) -> list[list[int]]:
    """Places beside each other that are parts of one file, together."""
    return [list(group) for _, group in groupby(places, key=lambda k: (items[k].image.path, items[k].image.sha256))]


def _batches(groups: Sequence[Sequence[int]], size: int) -> list[list[Sequence[int]]]:
    """Groups of places, gathered until a batch holds `size` of them or more."""
    batches: list[list[Sequence[int]]] = []
    held = size
    for group in groups:
        if held >= size:
            batches.append([])
            held = 0
        batches[-1].append(group)
        held += len(group)
    return batches


def _parts(items: Sequence[Item]) -> list[list[int]]:
    """Places in parts of AT_ONCE or a little more, so that no file's neighbouring crops are divided."""
    return [[k for group in batch for k in group] for batch in _batches(_groups(items, range(len(items))), AT_ONCE)]


def image_name(ref: ImageRef) -> str:
    """Return what an image's row is kept under: its file's content and the part of it. Raises: DataUnavailableError."""
    ref.check()
    return f"image:{file_sha256(ref.path)}:{ref.crop or ''}"
