"""The trace: what a model makes of eight fixed pictures and captions, stage by stage, small enough to keep in every run.

`judge.trace` reads two of them and names the first stage that moved. A trace always goes through the reference path, the call that
production makes; no optimization may stand in for it. Each array is kept as a `Sample`: its hash, and its values whole or at fixed
positions.
"""

import base64
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clipbench.errors import EncoderError
from clipbench.types import JsonObject

if TYPE_CHECKING:
    from PIL import Image

    from clipbench.data.dataset import Dataset
    from clipbench.embed.embedder import Embedded
    from clipbench.models.encoder import Encoder

TRACE_VERSION = 2
ITEMS = 8
WHOLE_TOKENS, WHOLE_ROW = 1024, 2048
"""Texts up to so many tokens and rows up to so large a dim are kept whole; what is longer is sampled."""

POSITIONS = 256
_ACTIVATION = re.compile(r"LU|Sigmoid|Tanh|Swish|Mish|Activation")
_GOLDEN = 0.6180339887498949
_STORED = {"u": "<u1", "i": "<i4", "f": "<f4"}
_DTYPES = {"uint8": "<u1", "int32": "<i4", "float32": "<f4"}


@dataclass(frozen=True)
class Sample:
    """An array's shape and hash, and its `values`: float64, flat, whole or at `positions`."""

    shape: tuple[int, ...]
    sha256: str
    values: npt.NDArray[np.float64]


def trace_of(encoder: "Encoder", dataset: "Dataset", images: "Embedded", texts: "Embedded") -> JsonObject:
    """Return the trace of an encoder on the first eight items of a data set: JSON, the same every time.

    Each of its `stages` is a list of samples, one per item: decoded_pixels (height, width, 3) and preprocessed_tensor of
    an image, tokens (context_length,) of a text, image_rows and text_rows (dim,), similarities (images,) of a text; see
    `sample`. What an encoder does not show is absent: preprocessed_tensor, tokens, and `activations` (how many
    modules of each kind the live model has). `images` and `texts`: the items' rows by the reference path.

    Raises: DataUnavailableError or DataError when a picture cannot be opened; EncoderError for pixels that are no numbers.
    """
    items = dataset.items[:ITEMS]
    pictures = [item.image.open() for item in items]
    captions = [dataset.prompts[0].format(caption=item.captions[0]) for item in items]
    image_rows, text_rows = images.rows[:ITEMS], texts.rows[:ITEMS]
    return {
        "version": TRACE_VERSION,
        "model": asdict(replace(encoder.identity, preprocessing=encoder.preprocessing)),
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint, "n": len(items)},
        "images": [item.id for item in items],
        "texts": captions,
        "stages": {
            "decoded_pixels": [sample(np.asarray(picture)) for picture in pictures],
            **_inputs(encoder, pictures, captions),
            "image_rows": [sample(row, WHOLE_ROW) for row in image_rows],
            "text_rows": [sample(row, WHOLE_ROW) for row in text_rows],
            "similarities": [sample(row) for row in text_rows.astype(np.float64) @ image_rows.astype(np.float64).T],
        },
    } | _activations(encoder)


def _inputs(encoder: "Encoder", pictures: "Sequence[Image.Image]", texts: Sequence[str]) -> JsonObject:
    """What the model itself is given, for an encoder that shows it."""
    stages: JsonObject = {}
    pixels, tokens = getattr(encoder, "pixels", None), getattr(encoder, "tokens", None)
    if callable(pixels):
        stages["preprocessed_tensor"] = [sample(pixels([picture])[0].float().numpy()) for picture in pictures]
    if callable(tokens):
        stages["tokens"] = [sample(row, WHOLE_TOKENS) for row in tokens(texts).cpu().numpy()]
    return stages


def _activations(encoder: "Encoder") -> JsonObject:
    """How many activation modules of each kind the live model has: what it computes, whatever its name says."""
    modules = getattr(getattr(encoder, "model", None), "modules", None)
    if not callable(modules):
        return {}
    kinds = Counter(type(m).__name__ for m in modules() if _ACTIVATION.search(type(m).__name__))
    return {"activations": dict(sorted(kinds.items()))}


def sample(array: npt.NDArray[Any], whole: int = POSITIONS) -> JsonObject:
    """Return {dtype, shape, sha256, values} of an array: whole up to `whole` elements, else at that many `positions`.

    Integers are kept as uint8 or int32, other numbers as float32; `values` are base64, little-endian.
    Raises: EncoderError for NaN or infinity.
    """
    stored = np.ascontiguousarray(array, dtype=np.dtype(_STORED[array.dtype.kind]))
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise EncoderError("a preprocessed picture holds NaN or infinity; check the encoder's preprocessing")
    values = stored.ravel()[positions(stored.size, whole)]
    return {
        "dtype": str(stored.dtype),
        "shape": list(stored.shape),
        "sha256": _sha256(stored),
        "values": base64.b64encode(values.tobytes()).decode(),
    }


def read_sample(entry: Any) -> Sample:
    """Return the sample that `sample` wrote, its form as the schema has it.

    Raises: ValueError for values that are cut short, not finite or no base64.
    """
    shape = tuple(entry["shape"])
    stored = np.frombuffer(base64.b64decode(entry["values"], validate=True), dtype=_DTYPES[entry["dtype"]])
    if not min(math.prod(shape), POSITIONS) <= stored.size <= math.prod(shape):
        raise ValueError(f"{stored.size} values for shape {shape}")
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise ValueError("NaN or infinity among the values")
    return Sample(shape, entry["sha256"], stored.astype(np.float64))


def positions(size: int, count: int = POSITIONS) -> npt.NDArray[np.int64]:
    """Return (min(size, count),) int64: which elements of a flat array are kept, all of them when they are few.

    Spread evenly and without a period, so that no row, column or colour channel is left out.
    Source: the Kronecker sequence of the golden ratio, k * .618... mod 1.
    """
    if size <= count:
        return np.arange(size, dtype=np.int64)
    place: npt.NDArray[np.int64] = np.floor((np.arange(count) * _GOLDEN % 1.0) * size).astype(np.int64)
    return place


def _sha256(stored: npt.NDArray[Any]) -> str:
    """The hash over one line of JSON, [dtype, shape], and the bytes of an array of little-endian numbers, row-major."""
    line = json.dumps([str(stored.dtype), list(stored.shape)], separators=(",", ":")) + "\n"
    return hashlib.sha256(line.encode() + stored.tobytes()).hexdigest()
