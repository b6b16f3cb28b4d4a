"""Known rows: what a session keeps of one encoder, so that no item is encoded twice, and what a cache kept of earlier ones."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from clipbench.embed.rows import Row

if TYPE_CHECKING:
    from clipbench.embed.store import RowStore

MEMORY_BYTES = 1 << 28
"""Rows kept in memory for one encoder: 256 MiB are 130,000 rows of dim 512. What does not fit is encoded anew."""

_UNIT_WITHIN = 1e-3


class KnownRows:
    """Rows of one encoder by item: in memory and, where a store is given, on disk under this encoder's `key`."""

    def __init__(self, store: "RowStore | None" = None, key: bytes = b"") -> None:
        self._memory: dict[str, Row] = {}
        self._bytes = 0
        self.is_trusted = True
        self._store, self._key = store, key
        self._generation = store.get([key]).get(key, b"") if store is not None else b""

    def get(self, names: Sequence[str]) -> tuple[dict[str, Row], dict[str, Row]]:
        """Return the rows this session made, and those of the store; what the store holds and is no unit row is made anew."""
        if not self.is_trusted:
            return {}, {}
        shared = {name: self._memory[name] for name in names if name in self._memory}
        cached = self._stored([name for name in names if name not in shared])
        return shared, cached

    def add(self, rows: Mapping[str, Row]) -> None:
        """Keep rows that were just made and checked."""
        if not self.is_trusted:
            return
        for name, row in rows.items():
            if self._bytes < MEMORY_BYTES:
                self._memory[name] = row
                self._bytes += row.nbytes
        if self._store is not None and rows:
            self._store.put({self._address(name): row.astype("<f4").tobytes() for name, row in rows.items()})

    def distrust(self) -> None:
        """Forget everything, make all that the store holds of this encoder unreachable, and keep nothing more in this session."""
        self.is_trusted = False
        self.forget()
        if self._store is not None:
            self._store.put({self._key: hashlib.sha256(self._key + self._generation).digest()})

    def forget(self) -> None:
        """Let go of the rows in memory."""
        self._memory.clear()
        self._bytes = 0

    def flags(self, names: Sequence[str]) -> dict[str, bool]:
        """Return what `add_flags` kept of these in the store."""
        if self._store is None:
            return {}
        addresses = {self._address(name): name for name in names}
        return {addresses[a]: value == b"\x01" for a, value in self._store.get(list(addresses)).items()}

    def add_flags(self, flags: Mapping[str, bool]) -> None:
        """Keep a yes or no by name, beside the rows."""
        if self._store is not None and flags:
            self._store.put({self._address(name): bytes([flag]) for name, flag in flags.items()})

    def _stored(self, names: Sequence[str]) -> dict[str, Row]:
        if self._store is None or not names:
            return {}
        addresses = {self._address(name): name for name in names}
        found = {addresses[a]: np.frombuffer(value, "<f4") for a, value in self._store.get(list(addresses)).items()}
        return {name: row for name, row in found.items() if abs(float(np.linalg.norm(row)) - 1) < _UNIT_WITHIN}

    def _address(self, name: str) -> bytes:
        return hashlib.sha256(self._key + self._generation + name.encode()).digest()
