"""Images to rows: decoded ahead in threads, encoded in batches, each broken image named."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TypeVar

import numpy as np
from PIL import Image

from clipbench.data.dataset import Item, read_image
from clipbench.errors import DataError
from clipbench.models.encoder import Encoder, Rows
from clipbench.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True)
class EmbeddedImages:
    """`rows`: (kept, dim) float32 unit rows. `kept`: the items they belong to. `broken`: one reason an image left out."""

    rows: Rows
    kept: tuple[Item, ...]
    broken: tuple[str, ...]


def embed_images(encoder: Encoder, items: Sequence[Item], settings: Settings) -> EmbeddedImages:
    """Return one row an image, in the order of `items`, by the encoder's plain call in batches of `settings.batch_size`.

    An image that cannot be decoded is left out and named in `broken`; a missing or wrong file is an error.

    Raises: DataUnavailableError for a file that is missing or not the pinned one; DataError when no image is left.
    """
    rows: list[Rows] = []
    kept: list[Item] = []
    broken: list[str] = []
    good = _decoded(items, settings.workers, broken)
    batches = range(-(-len(items) // settings.batch_size))
    for _ in settings.progress(batches, len(batches), "images"):
        batch = list(islice(good, settings.batch_size))
        if batch:
            rows.append(encoder.encode_images([image for _, image in batch]))
            kept += [item for item, _ in batch]
    if not rows:
        raise DataError(
            f"none of {len(items)} images could be decoded" + (f"; the first: {broken[0]}" if broken else "")
        )
    return EmbeddedImages(np.concatenate(rows), tuple(kept), tuple(broken))


def _decoded(items: Sequence[Item], workers: int, broken: list[str]) -> Iterator[tuple[Item, Image.Image]]:
    """Each item with its picture; `workers` threads decode ahead (0: in the calling thread).

    Neighbours cut from one file (the boxes of a COCO image) share one decoding; the parts are cut when they are asked for.
    """
    groups = [list(group) for _, group in groupby(items, key=lambda item: (item.image.path, item.image.sha256))]
    with ThreadPoolExecutor(workers) if workers else nullcontext() as pool:
        for group, opened in _ahead(pool, groups, _whole, 4 * max(1, workers)):
            try:
                image = opened()
            except DataError as error:
                broken += [f"{item.id}: {error}" for item in group]
                continue
            for item in group:
                yield item, item.image.cut(image)


def _whole(group: Sequence[Item]) -> Image.Image:
    """The decoded file that all items of the group are parts of."""
    group[0].image.check()
    return read_image(group[0].image.path)


def _ahead(
    pool: ThreadPoolExecutor | None, inputs: Iterable[T], work: Callable[[T], Image.Image], depth: int
) -> Iterator[tuple[T, Callable[[], Image.Image]]]:
    """Each input with a call that gives its outcome (or raises its error), at most `depth` under way, in order."""
    if pool is None:
        for entry in inputs:
            yield entry, lambda entry=entry: work(entry)  # type: ignore[misc]  # a default argument binds the loop's value
        return
    source = iter(inputs)
    queue: list[tuple[T, Future[Image.Image]]] = [(e, pool.submit(work, e)) for e in islice(source, depth)]
    while queue:
        entry, future = queue.pop(0)
        yield entry, future.result
        queue += [(e, pool.submit(work, e)) for e in islice(source, 1)]
