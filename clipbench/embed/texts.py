"""Texts to rows, in batches."""

from collections.abc import Sequence

import numpy as np

from clipbench.errors import DataError
from clipbench.models.encoder import Encoder, Rows
from clipbench.settings import Settings


def embed_texts(encoder: Encoder, texts: Sequence[str], settings: Settings) -> Rows:
    """Return (texts, dim) float32 unit rows, in the order given, by the encoder's plain call in batches.

    Raises: DataError when there is no text.
    """
    if not texts:
        raise DataError("no texts to embed; a data set needs at least one caption")
    starts = range(0, len(texts), settings.batch_size)
    batches = settings.progress(starts, len(starts), "texts")
    return np.concatenate([encoder.encode_texts(texts[start : start + settings.batch_size]) for start in batches])
