"""The probe: what a model makes of eight fixed pictures and captions, stage by stage, small enough to keep in every run.

`judge.trace` reads two of them and names the first stage that moved. A probe always goes through the encoder's
plain call, the one that production makes; no shortcut may stand in for it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from PIL import Image

from clipbench.data.dataset import Dataset
from clipbench.embed.sample import sample
from clipbench.models.encoder import Encoder, Rows
from clipbench.result import JsonObject, Result
from clipbench.settings import Settings

PROBE_VERSION = 1
MAX_PROBE_BYTES = 256 * 1024
ITEMS = 8
WHOLE_TOKENS, WHOLE_ROW = 1024, 2048
"""Texts up to so many tokens and rows up to so large a dim are kept whole; what is longer is sampled, to stay in 256 KiB."""

ROWS = ("image_rows", "text_rows")
_ACTIVATION = re.compile(r"LU|Sigmoid|Tanh|Swish|Mish|Activation")

Pair = tuple[Rows, Rows]


def probe_of(encoder: Encoder, dataset: Dataset, settings: Settings, rows: Pair | None = None) -> JsonObject:
    """Return the probe of an encoder on the first eight items of a data set: JSON of at most 256 KiB, the same every time.

    Each of its `stages` is a list of samples, one an item: decoded_pixels (height, width, 3) and preprocessed_tensor of
    an image, tokens (context_length,) of a text, image_rows and text_rows (dim,), similarities (images,) of a text; see
    `embed.sample`. What an encoder does not show is absent: preprocessed_tensor, tokens, and `activations` (how many
    modules of each kind the live model has).
    `rows` are (images, dim) and (texts, dim) of the same items where the plain call was made already.

    Raises: DataUnavailableError or DataError when a picture cannot be opened; EncoderError for rows or pixels that are
    no numbers.
    """
    items = dataset.items[:ITEMS]
    images = [item.image.open() for item in items]
    texts = [str(dataset.protocol["prompts"]).format(caption=item.captions[0]) for item in items]
    found = rows or (
        np.concatenate([encoder.encode_images(part) for part in _batches(images, settings.batch_size)]),
        np.concatenate([encoder.encode_texts(part) for part in _batches(texts, settings.batch_size)]),
    )
    image_rows, text_rows = (part[:ITEMS] for part in found)
    return {
        "version": PROBE_VERSION,
        "model": asdict(encoder.identity),
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint, "n": len(items)},
        "preprocessing": encoder.preprocessing,
        "images": [item.id for item in items],
        "texts": texts,
        "stages": {
            "decoded_pixels": [sample(np.asarray(image)) for image in images],
            **_inputs(encoder, images, texts),
            "image_rows": [sample(row, WHOLE_ROW) for row in image_rows],
            "text_rows": [sample(row, WHOLE_ROW) for row in text_rows],
            "similarities": [sample(row) for row in text_rows.astype(np.float64) @ image_rows.astype(np.float64).T],
        },
    } | _activations(encoder)


def probed(encoder: Encoder, dataset: Dataset, settings: Settings, result: Result) -> tuple[Result, JsonObject]:
    """Return a matching result without its rows, and the probe that they went into.

    Rows that a shortcut made are not taken; the plain call is made for the probe then, as for a result without rows.
    """
    rows = [result.arrays[name].astype(np.float32) for name in ROWS if name in result.arrays]
    shared = (rows[0], rows[1]) if len(rows) == len(ROWS) and not result.protocol["shortcuts"] else None
    rest = {name: array for name, array in result.arrays.items() if name not in ROWS}
    return replace(result, arrays=rest), probe_of(encoder, dataset, settings, shared)


def _inputs(encoder: Encoder, images: Sequence[Image.Image], texts: Sequence[str]) -> JsonObject:
    """What the model itself is given, for an encoder that shows it."""
    stages: JsonObject = {}
    pixels, tokens = getattr(encoder, "pixels", None), getattr(encoder, "tokens", None)
    if callable(pixels):
        stages["preprocessed_tensor"] = [sample(pixels([image])[0].float().numpy()) for image in images]
    if callable(tokens):
        stages["tokens"] = [sample(row, WHOLE_TOKENS) for row in tokens(texts).cpu().numpy()]
    return stages


def _activations(encoder: Encoder) -> JsonObject:
    """How many activation modules of each kind the live model has: what it computes, whatever its name says."""
    modules = getattr(getattr(encoder, "model", None), "modules", None)
    if not callable(modules):
        return {}
    kinds = Counter(type(m).__name__ for m in modules() if _ACTIVATION.search(type(m).__name__))
    return {"activations": dict(sorted(kinds.items()))}


def _batches(inputs: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [inputs[start : start + size] for start in range(0, len(inputs), size)]
