"""The progress bar: on a terminal, past pytest's capturing; in a pipe, nothing."""

import os
from collections.abc import Iterable
from typing import TextIO

from clipbench.settings import T


class ProgressBar:
    """Shows a bar for work of three steps or more. `is_silent`: never."""

    def __init__(self, is_silent: bool) -> None:
        self._terminal = None if is_silent else _own_terminal()

    def __call__(self, iterable: Iterable[T], total: int, what: str) -> Iterable[T]:
        """Return the iterable, with a bar around it where there is a terminal."""
        if self._terminal is None or total < 3:
            return iterable
        from tqdm import tqdm

        bar: Iterable[T] = tqdm(iterable, f"clipbench {what}", total, False, self._terminal, dynamic_ncols=True)
        return bar


def _own_terminal() -> TextIO | None:
    """A stream to the terminal that pytest's capturing does not reach, or None when there is no terminal."""
    try:
        return os.fdopen(os.dup(2), "w") if os.isatty(2) else None
    except OSError:
        return None
