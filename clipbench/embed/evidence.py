"""Evidence per item: hashes of its content and of its pixels, the length of its raw row, and a sketch of its direction.

A sketch is a short random projection by which the rows of two runs are compared item by item without keeping them.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clipbench.types import Evidence, FloatArray

if TYPE_CHECKING:
    from PIL import Image

PROJECTIONS, STEP, VERSION = 16, 2.0**-14, 1

Int16s = npt.NDArray[np.int16]


@cache
def signs(dim: int) -> FloatArray:
    """Return (dim, 16) float64 of +-1 from SHAKE-128, the same everywhere and for ever."""
    count = dim * PROJECTIONS
    digest = hashlib.shake_128(f"sketch/{VERSION}/{dim}".encode()).digest(-(-count // 8))
    return np.unpackbits(np.frombuffer(digest, np.uint8))[:count].reshape(dim, PROJECTIONS).astype(np.float64) * 2 - 1


def sketch(rows: FloatArray) -> Int16s:
    """Return (n, 16) int16 of (n, dim) unit rows: a quarter of the sum of each row under 16 patterns of signs, in steps of 2^-14.

    The distance of two sketches, times 2^-14, is that of their unit rows with a standard deviation of 18 %.
    Source: Achlioptas 2003, "Database-friendly random projections".
    """
    projected = np.asarray(rows, dtype=np.float64) @ signs(rows.shape[1]) / 4
    return np.clip(np.round(projected / STEP), -32768, 32767).astype(np.int16)


def evidence_of(
    ids: Sequence[str], raw: FloatArray, unit: FloatArray, contents: Sequence[int], pixels: Sequence[int] = ()
) -> Evidence:
    """Return the evidence of (n, dim) `raw` rows, whose directions are `unit`; `pixels` is empty for texts."""
    lengths = np.linalg.norm(np.asarray(raw, dtype=np.float64), axis=1).astype(np.float32)
    hashes = np.array(contents, dtype=np.uint64), np.array(pixels, dtype=np.uint64)
    return Evidence(tuple(ids), *hashes, lengths, sketch(unit), raw.shape[1])


def hash_text(text: str) -> int:
    """Return the first 64 bits of the SHA-256 of a text (UTF-8, lone surrogates kept)."""
    return first_bits(hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest())


def hash_pixels(picture: "Image.Image") -> int:
    """Return 64 bits that tell a picture's size, mode and decoded pixels from others by chance alone.

    They are of a SHA-256 over 1,024 words at a time, each word times an odd weight, summed modulo 2^64, and over what is left. A third
    of the time of one over all pixels, which took a tenth of all that is done to a picture of 640 x 480.
    """
    content, weights = picture.tobytes(), _weights()
    whole = len(content) // weights.nbytes * weights.nbytes
    words = np.frombuffer(content, "<u8", whole // 8).reshape(-1, len(weights))
    digest = hashlib.sha256(f"{picture.mode} {picture.width} {picture.height} ".encode())
    digest.update(np.einsum("nd,d->n", words, weights).astype("<u8").tobytes())
    digest.update(content[whole:])
    return first_bits(digest.hexdigest())


@cache
def _weights() -> npt.NDArray[np.uint64]:
    return np.frombuffer(hashlib.shake_128(b"pixels").digest(8 * 1024), "<u8") | np.uint64(1)


def first_bits(sha256: str) -> int:
    """Return the first 64 bits of a hash in hexadecimal digits."""
    return int(sha256[:16], 16)
