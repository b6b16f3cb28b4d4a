"""The trace: what a model makes of eight fixed pictures and eight texts, stage by stage, small enough to keep in every run.

`judge.trace` reads two of them and names the first stage that moved. A trace always goes through the reference path, the call that
production makes; no optimization may stand in for it. Each array is kept as a `Sample`: its hash, and its values whole or at fixed
positions. The pictures are drawn here, so that every run has the same: what people's pictures are like where pipelines go wrong.
"""

import base64
import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clipbench.errors import EncoderError
from clipbench.types import FloatArray, JsonObject

if TYPE_CHECKING:
    from PIL import Image

    from clipbench.models.encoder import Encoder

TRACE_VERSION = 3
WHOLE_TOKENS, WHOLE_ROW = 1024, 2048
"""Texts up to so many tokens and rows up to so large a dim are kept whole; what is longer is sampled."""

POSITIONS = 256
PARTS = (1, 3)
"""Sizes of the other batches in which the eight are encoded."""

PICTURES: Mapping[str, tuple[str, int, int]] = {
    "landscape": ("RGB", 320, 213),
    "portrait, turned by EXIF": ("RGB", 160, 240),
    "tiny": ("RGB", 5, 3),
    "narrow": ("RGB", 300, 24),
    "grey": ("L", 224, 224),
    "palette": ("P", 128, 96),
    "transparent": ("RGBA", 200, 200),
    "fine detail": ("RGB", 512, 384),
}
"""Name -> (mode of the file, width, height)."""

TEXTS = (
    "a photo of a dog",
    "A PHOTO OF A DOG!",
    "two red circles, left of a blue square.",
    "3 cats & 4 dogs (1998); 50 % off...",
    "caf\u00e9, na\u00efve, \u6f22\u5b57",
    "  spaces   and\nlines ",
    "x",
    " ".join(f"word{k} in a caption that is longer than any context," for k in range(40)),
)
_EXIF_ORIENTATION, _TURNED = 0x0112, 6
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


@cache
def pictures() -> tuple["Image.Image", ...]:
    """Return the fixed pictures, read from files (PNG, in memory) as production reads them: `Image.open(file).convert("RGB")`."""
    return tuple(_read(*drawn) for drawn in (_drawn(*how) for how in PICTURES.values()))


def _drawn(mode: str, width: int, height: int) -> tuple["Image.Image", bool]:
    """A smooth background with a disc, a square and lines in it, and whether its file says that it is turned."""
    from PIL import Image

    y, x = np.mgrid[0:height, 0:width].astype(np.float64) + 0.5
    u, v = x / width, y / height
    colours = np.stack([255 * u, 255 * (1 - v), 127 + 127 * np.sin(9 * u * v)], axis=2)
    colours[(u - 0.3) ** 2 + (v - 0.4) ** 2 < 0.03] = (220, 30, 40)
    colours[(abs(u - 0.7) < 0.15) & (abs(v - 0.6) < 0.2)] = (20, 60, 200)
    colours[(x // 2 + y // 3) % 7 < 1] = (250, 250, 240)
    picture = Image.fromarray(np.floor(colours).clip(0, 255).astype(np.uint8))
    if mode == "RGBA":
        picture.putalpha(Image.fromarray((255 * u).astype(np.uint8)))
    elif mode == "P":
        picture = picture.quantize(16)
    return picture.convert(mode) if mode == "L" else picture, height > width


def _read(picture: "Image.Image", is_turned: bool) -> "Image.Image":
    from PIL import Image

    exif = Image.Exif()
    if is_turned:
        exif[_EXIF_ORIENTATION] = _TURNED
    file = io.BytesIO()
    picture.save(file, "png", exif=exif)
    return Image.open(file).convert("RGB")


def trace_of(encoder: "Encoder") -> JsonObject:
    """Return the trace of an encoder: JSON, the same every time.

    `stages`: lists of samples, one per picture or text: decoded_pixels (height, width, 3), preprocessed_tensor, tokens
    (context_length,), image_rows and text_rows (dim,); see `sample`. What an encoder does not show is absent; `activations`: how many
    modules of each kind the live model has. `repeat`: how far a unit row lies from itself in the same batch, `batches`: in
    batches of other sizes. Whatever an encoder raises stands under `error`, and the rest is absent: one that knows nothing but its
    own items has no trace.
    """
    found: JsonObject = {
        "version": TRACE_VERSION,
        "model": asdict(replace(encoder.identity, preprocessing=encoder.preprocessing)),
        "stages": {"decoded_pixels": [sample(np.asarray(picture)) for picture in pictures()]},
    }
    try:
        images, texts = _encoded(encoder.encode_images, pictures()), _encoded(encoder.encode_texts, TEXTS)
        found["stages"] |= inputs_of(encoder, pictures(), TEXTS)
    except Exception as error:  # noqa: BLE001  # somebody else's encoder
        return found | {"error": f"{type(error).__name__}: {error}"}
    found["stages"] |= {
        name: [sample(row, WHOLE_ROW) for row in one[0]] for name, one in (("image_rows", images), ("text_rows", texts))
    }
    noise = {"repeat": max(images[1], texts[1]), "batches": max(images[2], texts[2])}
    return found | noise | activations_of(encoder)


def _encoded(encode: Callable[[Any], FloatArray], inputs: Sequence[Any]) -> tuple[FloatArray, float, float]:
    """Unit rows, how far they lie from those of the same call again, and from those of other batches."""
    from clipbench.models.encoder import unit_rows

    rows = unit_rows(encode(list(inputs)))
    again = unit_rows(encode(list(inputs)))
    parts = [
        np.concatenate([unit_rows(encode(list(inputs[k : k + size]))) for k in range(0, len(inputs), size)])
        for size in PARTS
    ]
    return rows, furthest(rows, again), max(furthest(rows, part) for part in parts)


def furthest(rows: FloatArray, others: FloatArray) -> float:
    """Return the largest distance of two (n, dim) arrays' rows."""
    return float(np.linalg.norm(rows.astype(np.float64) - others, axis=1).max(initial=0.0))


def inputs_of(encoder: "Encoder", shown: Sequence["Image.Image"], texts: Sequence[str]) -> JsonObject:
    """Return the stages preprocessed_tensor and tokens, for an encoder that shows what its model is given."""
    stages: JsonObject = {}
    pixels, tokens = getattr(encoder, "pixels", None), getattr(encoder, "tokens", None)
    if callable(pixels):
        stages["preprocessed_tensor"] = [sample(pixels([picture])[0].float().numpy()) for picture in shown]
    if callable(tokens):
        stages["tokens"] = [sample(row, WHOLE_TOKENS) for row in tokens(list(texts)).cpu().numpy()]
    return stages


def activations_of(encoder: "Encoder") -> JsonObject:
    """Return how many activation modules of each kind the live model has: what it computes, whatever its name says."""
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
