"""Texts to rows: each distinct text once, shortest first, cut to the longest of its batch; or the plain call in batches."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clipbench.embed.rows import (
    AT_ONCE,
    DISTINCT,
    DisagreementError,
    Made,
    Part,
    Row,
    gather,
    shortcuts_of,
    text_name,
)
from clipbench.errors import DataError
from clipbench.models.encoder import Encoder, Rows, Shortcuts
from clipbench.settings import Settings


@dataclass(frozen=True)
class EmbeddedTexts:
    """`rows`: (texts, dim) float32 unit rows of `texts`, in their order. `made`: how."""

    rows: Rows
    texts: Sequence[str]
    made: Made


def embed_texts(encoder: Encoder, texts: Sequence[str], settings: Settings) -> EmbeddedTexts:
    """Return one row a text, in the order given; by the plain call where a shortcut disagrees with it or is off.

    Raises: DataError when there is no text.
    """
    if not texts:
        raise DataError("no texts to embed; a data set needs at least one caption")
    shortcuts = shortcuts_of(encoder, settings)
    if shortcuts is None:
        return EmbeddedTexts(_plain_rows(encoder, texts, settings), texts, Made(len(texts)))
    try:
        return _embed(encoder, texts, shortcuts, settings)
    except DisagreementError as error:
        return EmbeddedTexts(_plain_rows(encoder, texts, settings), texts, Made(len(texts), dropped=str(error)))


def _embed(encoder: Encoder, texts: Sequence[str], shortcuts: Shortcuts, settings: Settings) -> EmbeddedTexts:
    place: dict[str, int] = {}
    for text in texts:
        place.setdefault(text, len(place))
    distinct = list(place)
    repeated = len(texts) - len(distinct)
    how = Made(repeated, shared=repeated)
    repeats = (DISTINCT,) if repeated else ()
    rows: list[Row] = []
    for start in range(0, len(distinct), AT_ONCE):
        part = _part(encoder, distinct[start : start + AT_ONCE], shortcuts, repeats, settings)
        found, made = gather(part, encoder, settings)
        rows += [found[k] for k in sorted(found)]
        how += made
    return EmbeddedTexts(np.stack(rows)[[place[text] for text in texts]], texts, how)


def _part(
    encoder: Encoder, texts: Sequence[str], shortcuts: Shortcuts, repeats: tuple[str, ...], settings: Settings
) -> Part:
    def make(missing: Sequence[int], sample: Collection[int]) -> Mapping[int, Row]:
        wanted = [texts[k] for k in missing]
        return dict(zip(missing, shortcuts.rows_of_texts(wanted, settings), strict=True))

    return Part(
        names=[text_name(text) for text in texts],
        order=sorted(range(len(texts)), key=lambda k: len(texts[k])),  # the shortest are cut most
        make=make,
        plain=lambda places: encoder.encode_texts([texts[k] for k in places]),
        used=lambda: (*shortcuts.of_texts, *repeats),
    )


def _plain_rows(encoder: Encoder, texts: Sequence[str], settings: Settings) -> Rows:
    starts = range(0, len(texts), settings.batch_size)
    batches = settings.progress(starts, len(starts), "texts")
    return np.concatenate([encoder.encode_texts(texts[start : start + settings.batch_size]) for start in batches])
