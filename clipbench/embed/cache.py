"""Rows of one encoder that need not be encoded again: in memory for a session, and in a store on disk (`--cache DIR`).

A row's address is a hash over everything that it depends on: what the encoder says of itself (weights, activation, architecture,
preprocessing, precision, tokenizer, optimizations), kind of device, versions of the libraries that compute it, this package's own
code, and the item's content. Rows from a cache are checked on a sample like any other optimization.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clipbench.models.device import device_kind
from clipbench.models.encoder import Encoder

if TYPE_CHECKING:
    from clipbench.embed.store import RowStore

MEMORY_BYTES = 1 << 28
"""Rows kept in memory for one encoder: 256 MiB are 130,000 rows of dim 512. What does not fit is encoded anew."""

COMPUTED_BY = (
    "torch", "torchvision", "open_clip_torch", "pillow", "timm", "transformers", "tokenizers", "ftfy", "regex", "numpy", "pydicom",
)  # fmt: skip
_OWN_CODE = ("data", "embed", "models")
_HASH_BYTES = 8


class Row(NamedTuple):
    """One item's raw row, (dim,) float32, and the 64-bit hash of its decoded pixels (0 for a text)."""

    raw: npt.NDArray[np.float32]
    pixels: int = 0


class EmbeddingCache:
    """Rows of one encoder by item: in memory and, where a store is given, on disk under this encoder's `key`.

    `reads`: False where the store is written alone, since what it holds was not executed now.
    """

    def __init__(self, store: "RowStore | None" = None, key: bytes = b"", reads: bool = True) -> None:
        self._memory: dict[str, Row] = {}
        self._bytes = 0
        self._is_valid = True
        self._store, self._key, self._reads = store, key, reads
        self._generation = store.get([key]).get(key, b"") if store is not None else b""

    @property
    def is_empty(self) -> bool:
        """True where no row can be had: nobody needs to ask by name."""
        return not self._memory and (self._store is None or not self._reads)

    def get(self, names: Sequence[str]) -> tuple[dict[str, Row], dict[str, Row]]:
        """Return the rows this session encoded, and those of the store; a stored one that is no finite row is left out."""
        if not self._is_valid:
            return {}, {}
        shared = {name: self._memory[name] for name in names if name in self._memory}
        is_read = self._store is not None and self._reads
        addresses = {self._address(name): name for name in names if name not in shared} if is_read else {}
        stored = self._store.get(list(addresses)) if self._store is not None and addresses else {}
        read = ((addresses[address], _row(value)) for address, value in stored.items())
        return shared, {name: row for name, row in read if row is not None}

    def add(self, rows: Mapping[str, Row]) -> None:
        """Keep rows that were just encoded and checked."""
        if not self._is_valid:
            return
        for name, row in rows.items():
            if self._bytes < MEMORY_BYTES:
                self._memory[name] = row
                self._bytes += row.raw.nbytes
        if self._store is not None and rows:
            self._store.put({self._address(name): _value(row) for name, row in rows.items()})

    def invalidate(self) -> None:
        """Forget everything, make all that the store holds of this encoder unreachable, and keep nothing more in this session."""
        self._is_valid = False
        self.clear_memory()
        if self._store is not None:
            self._store.put({self._key: hashlib.sha256(self._key + self._generation).digest()})

    def without_rows(self) -> "EmbeddingCache":
        """Return the cache of the same encoder with nothing in it: it keeps rows where this one does, and takes none from there."""
        return EmbeddingCache(self._store, self._key, reads=False)

    def clear_memory(self) -> None:
        """Let go of the rows in memory."""
        self._memory.clear()
        self._bytes = 0

    def _address(self, name: str) -> bytes:
        return hashlib.sha256(self._key + self._generation + name.encode()).digest()


def cache_of(encoder: Encoder, device: str, store: "RowStore | None", reads: bool = True) -> EmbeddingCache:
    """Return the cache of an encoder; in memory alone for one that does not say what its rows depend on (`Encoder.depends_on`)."""
    depends: Mapping[str, Any] | None = encoder.depends_on()
    if store is None or depends is None:
        return EmbeddingCache()
    what = {"encoder": dict(depends), "device": device_kind(device), "versions": _versions(), "code": own_code()}
    return EmbeddingCache(store, hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).digest(), reads)


def _value(row: Row) -> bytes:
    return row.pixels.to_bytes(_HASH_BYTES, "big") + row.raw.astype("<f4").tobytes()


def _row(value: bytes) -> Row | None:
    if len(value) <= _HASH_BYTES or (len(value) - _HASH_BYTES) % 4:
        return None
    raw = np.frombuffer(value, "<f4", offset=_HASH_BYTES).astype(np.float32)
    return Row(raw, int.from_bytes(value[:_HASH_BYTES], "big")) if np.isfinite(raw).all() and raw.any() else None


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in COMPUTED_BY:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def own_code() -> str:
    """Return a hash over the modules of this package that rows pass through: an edit of ours encodes every row anew."""
    digest = hashlib.sha256()
    for file in sorted(p for room in _OWN_CODE for p in (Path(__file__).parents[1] / room).glob("*.*") if p.is_file()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
