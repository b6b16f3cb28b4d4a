"""The embedder: what experiments see of an encoder. Every item once, by the optimized path where a sample of it agrees with the
reference path, else by that; with the evidence that a run keeps of each row.

The rule for every optimization: it is named in the result, a sample of its rows is encoded again by the reference path in the same
run, and where one disagrees, all rows of that tower are, in that result and in this encoder's later ones.
"""

import copy
import hashlib
import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipbench.data.dataset import ImageRef, Item, file_sha256, read_stored, stored_mode
from clipbench.embed.cache import EmbeddingCache, Row
from clipbench.embed.evidence import evidence_of, first_bits, hash_pixels, hash_text
from clipbench.errors import DataError, EncoderError
from clipbench.models.device import AHEAD_BYTES, Resources, feed_of, keep_to_one_thread
from clipbench.models.encoder import Encoder, Optimized, Rows, unit_rows
from clipbench.types import Encoding, Evidence, JsonObject, Tower

T = TypeVar("T")
Origin = Literal["shared_rows", "cached_rows", "encoded"]

AT_ONCE = 4096
"""Items that are encoded, checked and kept together: a run that is killed loses no more than these from a cache."""

ITEMS_PER_SAMPLE = 100
"""One item in 100 is checked, a batch of the reference path's at least, MOST_CHECKED at most, of shared, cached and new rows alike."""

MOST_CHECKED = 8

ENCODED_AGAIN = 299
"""Rows of a tower that a gate encodes twice: where one row in 100 does not repeat, so many show it 95 times in 100."""

TOLERANCE = {"fp32": (1e-5, 1e-3), "tf32": (5e-3, 5e-3), "fp16": (5e-3, 1e-2), "bf16": (4e-2, 5e-2)}
"""How far a unit row may be from the reference path's: what rounding in this precision makes, and the most that is allowed where
this device's rows are found to depend on the size of their batch.

Source: measured on a CPU with ViT-B/32 (random weights, 27 captions): 1.0e-6 (fp32), 1.3e-3 (fp16) and 9.8e-3 (bf16), while the
closest two captions are .46 apart; a factor in TF32 has as many bits as one in fp16, and the batch's size decides whether there is one.
"""

BATCH_MARGIN = 8
"""How many times what another batch size moves on a few items is allowed: the largest of many rows moves more than theirs."""

GREYSCALE = frozenset({"1", "L", "LA", "La", "I", "I;16", "F"})
BROKEN_NAMED = 20


class Progress(Protocol):
    """Wraps an iterable and shows how far it has come; `no_progress` shows nothing."""

    def __call__(self, iterable: Iterable[T], total: int, what: str) -> Iterable[T]: ...


def no_progress(iterable: Iterable[T], total: int, what: str) -> Iterable[T]:
    """Return the iterable as it is."""
    return iterable


class DisagreementError(Exception):
    """A row of the optimized path is not the reference path's; it never leaves this module."""


@dataclass(frozen=True)
class Embedded:
    """Rows of one tower: `rows` (n, dim) float32 unit rows, one per id of the evidence, with how they were made.

    `kept`: (n,) places of the rows among the inputs. `broken`: one reason per input that was left out; `broken_names`: the files of
    the first 20. `exclusions` count what was left out, changed or cut.
    """

    rows: Rows
    evidence: Evidence
    encoding: Encoding
    optimizations: frozenset[str] = frozenset()
    kept: tuple[int, ...] = ()
    broken: tuple[str, ...] = ()
    broken_names: tuple[str, ...] = ()
    exclusions: Mapping[str, int] = field(default_factory=dict)

    @property
    def ids(self) -> tuple[str, ...]:
        """What each row is of."""
        return self.evidence.ids


class _Kept(NamedTuple):
    """A row that may be encoded again: its random number, its item's name, what was encoded, and the raw row."""

    place: float
    name: str
    input: Any
    raw: npt.NDArray[np.float32]


class Embedder:
    """One encoder, and every item once."""

    def __init__(
        self,
        encoder: Encoder,
        resources: Resources,
        cache: EmbeddingCache | None = None,
        optimize: bool = True,
        progress: Progress = no_progress,
    ) -> None:
        """`cache`: rows that need not be encoded again. `optimize`: False for the reference path alone."""
        self.encoder, self.resources, self.progress = encoder, resources, progress
        self.cache = EmbeddingCache() if cache is None else cache
        self._optimized: Optimized | None = encoder.optimized() if optimize else None
        self._dropped: dict[Tower, str] = {}
        self._kept: dict[Tower, list[_Kept]] = {"images": [], "texts": []}
        self._random = random.Random(0)  # noqa: S311  # which rows are encoded again is no secret

    @property
    def batch_size(self) -> int:
        """Items per batch of the reference path."""
        return self.resources.batch_size

    def without_cache(self) -> "Embedder":
        """Return this embedder with no row known yet: all are encoded, and are among those that `encode_again` draws from."""
        found = copy.copy(self)
        found.cache = self.cache.without_rows()
        return found

    def release_rows(self) -> None:
        """Let go of the rows in memory."""
        self.cache.clear_memory()

    def images(self, items: Sequence[Item], *, reference: bool = False) -> Embedded:
        """Return one row per image, in the order of `items`.

        An image that cannot be decoded is left out and named in `broken`; a missing or wrong file is an error.

        Raises: DataUnavailableError for a file that is missing or not the pinned one; DataError when no image is left;
        EncoderError for something other than one finite row per image.
        """
        work = _Images(self, items)
        rows, encoding, optimizations = self._rows(work, reference)
        broken = tuple(work.broken[k] for k in sorted(work.broken))
        if not rows:
            raise DataError(
                f"none of {len(items)} images could be decoded" + (f"; the first: {broken[0]}" if broken else "")
            )
        kept = tuple(sorted(rows))
        self._keep("images", {items[k].id: (items[k], rows[k].raw) for k in kept})
        lost = list(dict.fromkeys(items[k].image.path for k in sorted(work.broken)))
        paths = dict.fromkeys(items[k].image.path for k in kept)
        modes = [work.modes[path] if path in work.modes else stored_mode(path) for path in paths]
        raw = np.stack([rows[k].raw for k in kept])
        unit = unit_rows(raw)
        contents = [first_bits(file_sha256(items[k].image.path)) for k in kept]
        exclusions = {
            "broken_images": len(lost),
            "greyscale_images": sum(mode in GREYSCALE for mode in modes),
            "cmyk_images": sum(mode == "CMYK" for mode in modes),
        }
        evidence = evidence_of([items[k].id for k in kept], raw, unit, contents, [rows[k].pixels for k in kept])
        names = tuple(path.name for path in lost[:BROKEN_NAMED])
        return Embedded(unit, evidence, encoding, optimizations, kept, broken, names, exclusions)

    def texts(self, texts: Sequence[str], ids: Sequence[str] = (), *, reference: bool = False) -> Embedded:
        """Return one row per text, in the order given; `ids` name them, else they name themselves.

        Raises: DataError when there is no text; EncoderError for something other than one finite row per text.
        """
        raw, encoding, optimizations = self._raw_texts(texts, reference)
        unit = unit_rows(raw)
        evidence = evidence_of(ids or texts, raw, unit, [hash_text(text) for text in texts])
        return Embedded(unit, evidence, encoding, optimizations, tuple(range(len(texts))), exclusions=self._cut(texts))

    def classes(self, names: Sequence[str], templates: Sequence[str], ids: Sequence[str] = ()) -> Embedded:
        """Return one row per class: the mean over templates of unit text rows, renormalised. `{}` in a template is the name.

        Raises: DataError for no class or no template; EncoderError when the rows of a class cancel out.
        Source: openai/CLIP notebooks/Prompt_Engineering_for_ImageNet.ipynb.
        """
        prompts = [[template.replace("{}", name) for template in templates] for name in names]
        texts = [text for own in prompts for text in own]
        raw, encoding, optimizations = self._raw_texts(texts, reference=False)
        means = unit_rows(raw).reshape(len(names), len(templates), -1).mean(axis=1, dtype=np.float64)
        unit = unit_rows(means, f"{self.encoder.identity.name}: mean over {len(templates)} templates")
        evidence = evidence_of(ids or names, means, unit, [hash_text("\n".join(own)) for own in prompts])
        return Embedded(unit, evidence, encoding, optimizations, tuple(range(len(names))), exclusions=self._cut(texts))

    def _raw_texts(self, texts: Sequence[str], reference: bool) -> tuple[Rows, Encoding, frozenset[str]]:
        if not texts:
            raise DataError("no texts to embed; a data set needs at least one caption")
        rows, encoding, optimizations = self._rows(_Texts(self, texts), reference)
        self._keep("texts", {text: (text, rows[k].raw) for k, text in enumerate(texts)})
        return np.stack([rows[k].raw for k in range(len(texts))]), encoding, optimizations

    def _keep(self, tower: Tower, rows: Mapping[str, tuple[Any, npt.NDArray[np.float32]]]) -> None:
        """Keep a random sample of all rows so far, ENCODED_AGAIN at most: those of the smallest random numbers."""
        drawn = [_Kept(self._random.random(), name, *row) for name, row in rows.items()]
        first = sorted([*self._kept[tower], *drawn], key=lambda kept: kept.place)[:ENCODED_AGAIN]
        self._kept[tower] = [one._replace(raw=one.raw.copy()) for one in first]  # a row holds its whole batch

    def encode_again(self) -> dict[Tower, JsonObject]:
        """Encode a random sample of the rows of each tower again, in other batches, by the reference path.

        Returns {"n", "largest": the largest distance of a unit row from itself, "items": the five that moved most} of each tower
        that has rows.
        Raises: EncoderError for something other than one finite row for each input.
        """
        found: dict[Tower, JsonObject] = {}
        for tower, kept in self._kept.items():
            moved: list[tuple[float, str]] = []
            for start in range(0, len(kept), self.batch_size):
                batch = kept[start : start + self.batch_size]
                if tower == "images":
                    again = self.encoder.encode_images([one.input.image.open() for one in batch])
                else:
                    again = self.encoder.encode_texts([one.input for one in batch])
                pairs = zip(unit_rows(again), unit_rows(np.stack([one.raw for one in batch])), strict=True)
                distances = [float(np.linalg.norm(a.astype(np.float64) - b)) for a, b in pairs]
                moved += zip(distances, (one.name for one in batch), strict=True)
            if moved:
                moved.sort(reverse=True)
                items = [name for distance, name in moved[:5] if distance > 0]
                found[tower] = {"n": len(moved), "largest": moved[0][0], "items": items}
        return found

    def _cut(self, texts: Sequence[str]) -> Mapping[str, int]:
        count = self.encoder.count_truncated(texts)
        return {} if count is None else {"truncated_texts": count}

    def _rows(self, work: "_Images | _Texts", reference: bool) -> tuple[dict[int, Row], Encoding, frozenset[str]]:
        """Rows by place (absent: the image could not be decoded), how they were made, and the optimizations taken."""
        everything = range(work.n)
        if reference or self._optimized is None:
            return work.encode(None, everything, ()), Encoding(work.n), frozenset()
        if work.tower not in self._dropped:
            try:
                return self._optimized_rows(work, self._optimized)
            except (DisagreementError, EncoderError) as error:  # a row of NaN may be the optimization's fault
                self._dropped[work.tower] = str(error)
                self.cache.invalidate()
        work.broken.clear()
        return work.encode(None, everything, ()), Encoding(work.n, dropped=self._dropped[work.tower]), frozenset()

    def _optimized_rows(
        self, work: "_Images | _Texts", optimized: Optimized
    ) -> tuple[dict[int, Row], Encoding, frozenset[str]]:
        """Raises: DisagreementError when a sampled row is further from the reference path's than is allowed."""
        found: dict[int, Row] = {}
        repeated = work.n - len(set(work.first))
        distinct = {f"distinct_{work.tower}"} if repeated else set[str]()
        own = sorted({*optimized.names(work.tower), *distinct})
        encoding, taken = Encoding(0), distinct
        for places in work.parts():
            rows, how, names = self._part(work, optimized, places, own)
            found |= rows
            encoding += how
            taken |= names
        rows = {k: found[first] for k, first in enumerate(work.first) if first in found}
        return rows, encoding + Encoding(repeated, shared=repeated), frozenset(taken)

    def _part(
        self, work: "_Images | _Texts", optimized: Optimized, places: Sequence[int], own: Sequence[str]
    ) -> tuple[dict[int, Row], Encoding, set[str]]:
        """Rows of these places from memory, cache, or the optimized path, which takes the optimizations `own`; a sample of each
        origin checked; new ones kept."""
        shared, cached = ({}, {}) if self.cache.is_empty else self.cache.get([work.names[k] for k in places])
        known = shared | cached
        origin: dict[int, Origin] = {
            k: "encoded"
            if not known or work.names[k] not in known
            else "shared_rows"
            if work.names[k] in shared
            else "cached_rows"
            for k in places
        }
        found = {k: known[work.names[k]] for k in places if origin[k] != "encoded"}
        missing = [k for k in places if origin[k] == "encoded"]
        made = work.encode(optimized, missing, self._sample(missing)) if missing else {}
        found |= made
        taken = set(own) if made else set()
        checked: list[Origin] = ["encoded"] if taken else []
        checked += [name for name in ("shared_rows", "cached_rows") if name in origin.values()]
        origins = list(origin.values())
        how = Encoding(len(places), origins.count("shared_rows"), origins.count("cached_rows"))
        for name in checked:
            those = [k for k in work.by_cut(places) if k in found and origin[k] == name]
            how += self._check(work, found, those, own if name == "encoded" else (name,))
        self.cache.add({work.names[k]: row for k, row in made.items()})
        return found, how, taken | {name for name in checked if name != "encoded"}

    def _check(
        self, work: "_Images | _Texts", found: Mapping[int, Row], places: Sequence[int], names: Sequence[str]
    ) -> Encoding:
        """Encode a sample of these places, whose rows are due to the optimizations of these names, again by the reference path."""
        sample, size, furthest = self._sample(places), self.resources.batch_size, 0.0
        for start in range(0, len(sample), size):
            batch = sample[start : start + size]
            again, taken = work.again(batch), np.stack([found[k].raw for k in batch])
            if again.shape != taken.shape:
                raise DisagreementError(
                    f"with {', '.join(names)} a sampled row has {taken.shape[1]} dimensions, the reference path's {again.shape[1]}"
                )
            furthest = max(furthest, _furthest(again, taken))
        if furthest > (tolerance := self._tolerance(work, sample, furthest)):
            raise DisagreementError(
                f"with {', '.join(names)} a sampled row is {furthest:.2g} away from the reference path's, "
                f"allowed {tolerance:.1g}: the reference path encoded all of them"
            )
        return Encoding(0, checked=len(sample), largest_distance=furthest)

    def _tolerance(self, work: "_Images | _Texts", sample: Sequence[int], furthest: float) -> float:
        """How far the sample's rows may be from the reference path's. Only where they are further than rounding brings them, the
        reference path itself is asked how far another batch size moves them."""
        rounding, most = TOLERANCE[self.encoder.identity.precision]
        if furthest <= rounding:
            return rounding
        alone = np.concatenate([work.again([k]) for k in sample])
        return max(rounding, min(most, BATCH_MARGIN * _furthest(work.again(sample), alone)))

    def _sample(self, places: Sequence[int]) -> list[int]:
        """Which of these places are checked: evenly spread, the first and the last among them.

        One in ITEMS_PER_SAMPLE, but no fewer than a batch (a fault may sit behind a batch's first item), and MOST_CHECKED at most.
        """
        n = len(places)
        count = min(n, MOST_CHECKED, max(self.resources.batch_size, 2, n // ITEMS_PER_SAMPLE))
        return [places[round(k * (n - 1) / max(1, count - 1))] for k in range(count)]


class _Texts:
    """Texts to encode: each distinct one once, the shortest first."""

    tower: Tower = "texts"

    def __init__(self, embedder: Embedder, texts: Sequence[str]) -> None:
        self._embedder, self._texts, self.n = embedder, texts, len(texts)
        self.broken: dict[int, str] = {}
        place: dict[str, int] = {}
        self.first = [place.setdefault(text, k) for k, text in enumerate(texts)]

    @cached_property
    def names(self) -> list[str]:
        """What each text's row is kept under."""
        return [f"text:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}" for text in self._texts]

    def parts(self) -> Iterator[list[int]]:
        """The places of distinct texts, AT_ONCE at a time."""
        places = sorted(set(self.first))
        yield from (places[start : start + AT_ONCE] for start in range(0, len(places), AT_ONCE))

    def by_cut(self, places: Sequence[int]) -> list[int]:
        """These places, the shortest text, which is cut most, first."""
        return sorted(places, key=lambda k: len(self._texts[k]))

    def encode(self, optimized: Optimized | None, places: Sequence[int], hold: Collection[int]) -> dict[int, Row]:
        """The raw rows of these places."""
        resources, progress = self._embedder.resources, self._embedder.progress
        texts = [self._texts[k] for k in places]
        if optimized is not None:
            raw = optimized.encode_texts(texts, resources.batch_size, resources.text_positions, progress)
        else:
            starts = range(0, len(texts), resources.batch_size)
            batches = progress(starts, len(starts), "texts")
            encode = self._embedder.encoder.encode_texts
            raw = np.concatenate([encode(texts[start : start + resources.batch_size]) for start in batches])
        return {k: Row(row) for k, row in zip(places, raw, strict=True)}

    def again(self, places: Sequence[int]) -> Rows:
        """(texts, dim) raw rows by the reference path, in one batch."""
        return self._embedder.encoder.encode_texts([self._texts[k] for k in places])


class _Images:
    """Images to encode: decoded and prepared in threads, crops of one file together; each broken image named by its place."""

    tower: Tower = "images"

    def __init__(self, embedder: Embedder, items: Sequence[Item]) -> None:
        self._embedder, self._items, self.n = embedder, items, len(items)
        self.broken: dict[int, str] = {}
        self.first = range(len(items))
        self.modes: dict[Path, str] = {}
        self._pixels: dict[int, int] = {}
        self._held: dict[int, Image.Image] = {}  # the sample's, from their decoding until they are checked

    @cached_property
    def names(self) -> list[str]:
        """What each image's row is kept under: its file's content and the part of it. Raises: DataUnavailableError."""
        files = [self._items[group[0]].image for group in self._groups(range(self.n))]
        files = [image for image in files if image.path not in self.modes]  # the others were hashed with their decoding
        with self._threads() as pool:
            deque((pool.map if pool else map)(_checked, files), maxlen=0)  # beside each other, once
        return [f"image:{file_sha256(i.image.path)}:{i.image.crop or ''}" for i in self._items]

    def parts(self) -> Iterator[list[int]]:
        """Places in parts of AT_ONCE or a little more, so that no file's neighbouring crops are divided."""
        for batch in _batches(self._groups(range(self.n)), AT_ONCE):
            self._held.clear()
            yield [k for group in batch for k in group]

    def by_cut(self, places: Sequence[int]) -> Sequence[int]:
        """These places as they are: no image is cut more than another."""
        return places

    def again(self, places: Sequence[int]) -> Rows:
        """(images, dim) raw rows by the reference path, in one batch."""
        pictures = [self._held.get(k) or self._items[k].image.open() for k in places]
        return self._embedder.encoder.encode_images(pictures)

    def encode(self, optimized: Optimized | None, places: Sequence[int], hold: Collection[int]) -> dict[int, Row]:
        """The raw rows of these places, and their pixels' hashes; pictures in `hold` stay at hand for `again`.

        Rows are fetched when all batches have been started: a device with a queue never waits for this thread.
        """
        resources = self._embedder.resources
        known = self._embedder.encoder.by_id("images", [self._items[k].id for k in places])
        if known is not None:
            row = dict(zip(places, known, strict=True))
            read = [k for batch in self._prepared(places, lambda picture: None, ()) for k, _ in batch]
            return {k: Row(row[k], self._pixels[k]) for k in read}
        prepare = (lambda picture: picture) if optimized is None else optimized.prepare
        start = self._start if optimized is None else optimized.start_images
        with feed_of(resources.device).alone():
            batches = _evenly(self._prepared(places, prepare, frozenset(hold)), resources.batch_size)
            started = [([k for k, _ in batch], start([ready for _, ready in batch])) for batch in batches]
            rows = [(k, row) for done, rows in started for k, row in zip(done, rows(), strict=True)]
        return {k: Row(row, self._pixels[k]) for k, row in rows}

    def _start(self, pictures: Sequence[Image.Image]) -> Callable[[], Rows]:
        rows = self._embedder.encoder.encode_images(pictures)
        return lambda: rows

    def _prepared(
        self, places: Sequence[int], prepare: Callable[[Image.Image], Any], hold: Collection[int]
    ) -> Iterator[list[tuple[int, Any]]]:
        """What the model is given, in order: many at once between its calls, or beside them where the device has a queue."""
        resources, groups = self._embedder.resources, self._groups(places)
        feed = feed_of(resources.device)
        limit, workers = feed.images_at_once(resources.batch_size, resources.workers), max(1, resources.workers)
        most, waiting = workers, 0  # until it is known how large one is
        queue: deque[tuple[int, Callable[[], dict[int, Any]]]] = deque()

        def finished() -> list[tuple[int, Any]]:
            nonlocal limit, most, waiting
            ready: list[tuple[int, Any]] = []
            for _ in range(1 if feed.is_queue else len(queue)):
                n, job = queue.popleft()
                waiting -= n
                ready += job().items()
            largest = max((_bytes_of(value) for _, value in ready), default=0)
            most = limit = min(limit, max(workers, AHEAD_BYTES // max(1, largest)))
            return ready

        with self._threads() as pool:
            for group in self._embedder.progress(groups, len(groups), "images"):
                job = partial(self._prepare, group, prepare, hold)
                queue.append((len(group), pool.submit(job).result if pool else job))
                waiting += len(group)
                while waiting >= most:
                    yield finished()
            while queue:
                yield finished()

    def _prepare(
        self, places: Sequence[int], prepare: Callable[[Image.Image], Any], hold: Collection[int]
    ) -> dict[int, Any]:
        """Decode one file, cut and prepare each part of it."""
        image = self._items[places[0]].image
        _checked(image)
        try:
            whole, self.modes[image.path] = read_stored(image.path, image.converts_depth)
        except DataError as error:
            self.broken.update({k: f"{self._items[k].id}: {error}" for k in places})
            return {}
        prepared = {}
        for k in places:
            try:
                picture = self._items[k].image.cut(whole)
            except DataError as error:
                self.broken[k] = f"{self._items[k].id}: {error}"
                continue
            self._pixels[k] = hash_pixels(picture)
            prepared[k] = prepare(picture)
            if k in hold:
                self._held[k] = picture
        return prepared

    def _threads(self) -> AbstractContextManager[ThreadPoolExecutor | None]:
        """Threads that prepare images; None where this one does."""
        workers = self._embedder.resources.workers
        return ThreadPoolExecutor(workers, initializer=keep_to_one_thread) if workers else nullcontext()

    def _groups(self, places: Sequence[int]) -> list[list[int]]:
        """Places beside each other that are parts of one file, together."""
        images = ((k, self._items[k].image) for k in places)
        groups = groupby(images, key=lambda entry: (entry[1].path, entry[1].sha256))
        return [[k for k, _ in group] for _, group in groups]


def _furthest(rows: Rows, others: Rows) -> float:
    """The largest distance of two unit rows at the same place."""
    return float(np.linalg.norm(unit_rows(rows).astype(np.float64) - unit_rows(others), axis=1).max())


def _checked(image: ImageRef) -> None:
    """Check that a file is there and the pinned one, and hash it: what asks for its hash afterwards has it at hand."""
    image.check()
    file_sha256(image.path)


def _bytes_of(prepared: Any) -> int:
    """Memory of a prepared image, whether a picture or an array; Pillow pads three bands to four."""
    return prepared.width * prepared.height * 4 if isinstance(prepared, Image.Image) else getattr(prepared, "nbytes", 0)


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
