"""Named errors at clipbench's boundary, and exit codes: each error carries one message for the person at the keyboard.

The message says what went wrong, where, what was expected, and the next step. The plugin and the command line print it
without a traceback; inside a notebook it is an ordinary exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from clipbench.types import Outcome

UNREADABLE: Final = 2
"""A command's exit code for an error below: bad usage, input that is absent or damaged. pytest's own for bad usage is 4."""

EXIT: Final[Mapping[str, Mapping[Outcome, int]]] = {
    "compare": {"pass": 0, "fail": 1, "inconclusive": 3, "note": 3},
    "session": {"pass": 0, "fail": 1, "inconclusive": 0, "note": 0},
    "session --require-all": {"pass": 0, "fail": 1, "inconclusive": 1, "note": 1},
}
"""Exit code by command (`ab` has those of `compare`) and `overall` outcome."""


class ClipbenchError(ValueError):
    """Anything a user can mend: the base of the errors below."""


class UsageError(ClipbenchError):
    """An option or a combination of options that cannot be meant (exit code 4 of `pytest benchmarks`)."""


class UnknownModelError(UsageError):
    """A model name that no table, open_clip configuration or factory answers to."""


class WeightsUnavailableError(ClipbenchError):
    """Weights that cannot be had here: offline without a cached copy, or a missing package. The tests skip."""


class CheckpointError(ClipbenchError):
    """A checkpoint that is there but corrupt, foreign to the architecture, or refused. The tests fail."""


class DataUnavailableError(ClipbenchError):
    """Images or captions that are not installed or not where they were said to be. The tests skip."""


class DataError(ClipbenchError):
    """Data that are there but malformed: a broken image, a broken annotation file."""


class EncoderError(ClipbenchError):
    """An encoder that returned something other than one finite row for each input."""


def closest(name: str, known: Iterable[str], n: int = 5) -> str:
    """Return the known names most like `name`, closest first, as one comma-separated string ("" when none is close)."""
    by_folded = {k.casefold(): k for k in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=n, cutoff=0.4)
    return ", ".join(by_folded[f] for f in found)
