"""Decoded pictures, kept while a session needs them again: several experiments and models look at the same files.

Off unless `kept_pictures` is entered. What no longer fits is decoded again; nothing is thrown out for something newer, since a
pass over more pictures than fit would find none of them.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

_Key = tuple[Path, int, int]


_GROUP_MEMORY = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


class _Kept:
    """Pictures by file, as long as they fit."""

    def __init__(self) -> None:
        self.budget = self.held = 0
        self.pictures: dict[_Key, Image.Image] = {}
        self.lock = threading.Lock()


_KEPT = _Kept()


def picture_budget_bytes() -> int:
    """Return how much decoded pictures may take of memory: a quarter of what this machine, or this process's group, has free now."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_free_in_group()]) // 4


def _free_in_group() -> list[int]:
    """What a container may still take (cgroup v2, then v1), where it has a limit."""
    for limit, used in _GROUP_MEMORY:
        if limit.is_file() and used.is_file() and limit.read_text().strip().isdecimal():
            return [max(0, int(limit.read_text()) - int(used.read_text()))]
    return []


@contextmanager
def kept_pictures(budget_bytes: int) -> Iterator[None]:
    """Keep up to so many bytes of decoded pictures in memory until the context is left."""
    _KEPT.budget = budget_bytes
    try:
        yield
    finally:
        with _KEPT.lock:
            _KEPT.pictures.clear()
            _KEPT.budget = _KEPT.held = 0


def held_bytes() -> int:
    """Return how much memory kept pictures take now: not what a model needs."""
    return _KEPT.held


def kept_or_decoded(path: Path, decode: Callable[[Path], Image.Image]) -> Image.Image:
    """Return the file's picture, decoded now or kept from before: a copy that the caller may change.

    A file is known by path, size and time of change. Raises: what `decode` raises; a missing file is left to it.
    """
    if not _KEPT.budget or not path.is_file():
        return decode(path)
    status = path.stat()
    key = (path, status.st_size, status.st_mtime_ns)
    image = _KEPT.pictures.get(key)
    if image is None:
        image = decode(path)
        size = image.width * image.height * (1 if len(image.getbands()) == 1 else 4)  # Pillow pads three bands to four
        with _KEPT.lock:
            if key in _KEPT.pictures or _KEPT.held + size > _KEPT.budget:
                return image
            _KEPT.pictures[key] = image
            _KEPT.held += size
    return image.copy()
