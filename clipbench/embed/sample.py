"""Samples: an array kept as its hash and its values, whole or at fixed positions, as JSON; written and read here."""

import base64
import binascii
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipbench.errors import EncoderError
from clipbench.result import JsonObject

POSITIONS = 256
_GOLDEN = 0.6180339887498949
_STORED = {"u": "<u1", "i": "<i4", "f": "<f4"}
_DTYPES = {"uint8": "<u1", "int32": "<i4", "float32": "<f4"}


@dataclass(frozen=True)
class Sample:
    """An array's shape and hash, and its `values`: float64, flat, whole or at `positions`."""

    shape: tuple[int, ...]
    sha256: str
    values: npt.NDArray[np.float64]


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
    """Return the sample that `sample` wrote.

    Raises: ValueError, naming what, when a key is missing or of another kind, the values are no base64, hold NaN, are more or
    fewer than the shape allows, or are whole and do not have the hash.
    """
    try:
        dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(int(size) for size in entry["shape"])
        stored = np.frombuffer(base64.b64decode(entry["values"], validate=True), dtype=dtype)
        sha256 = str(entry["sha256"])
    except (KeyError, TypeError, binascii.Error) as error:
        raise ValueError(f"a sample cannot be read: {type(error).__name__}: {error}") from error
    size = math.prod(shape)
    if not min(size, POSITIONS) <= stored.size <= size or not size:
        raise ValueError(f"{stored.size} values for shape {shape}")
    if not np.isfinite(stored).all():
        raise ValueError("a value is NaN or infinite")
    if len(sha256) != 64 or (stored.size == size and _sha256(stored.reshape(shape)) != sha256):
        raise ValueError("a sample does not have its hash")
    return Sample(shape, sha256, stored.astype(np.float64))


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
