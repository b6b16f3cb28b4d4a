"""Named errors at clipbench's boundary, `sanitize` for all that is shown, and exit codes.

Each error carries one message for the person at the keyboard. It says what went wrong, where, what was expected, and the next step.
The plugin and the command line print it without a traceback; inside a notebook it is an ordinary exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final
from unicodedata import category

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
    """Anything a user can mend: the base of the errors below. Its message quotes files, so it is sanitized here, once."""

    def __init__(self, message: str) -> None:
        super().__init__(sanitize(message))


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


class TooLargeError(DataError):
    """A file of more bytes than are read."""


class EncoderError(ClipbenchError):
    """An encoder that returned something other than one finite row for each input."""


def sanitize(text: str) -> str:
    """Return untrusted text as one line that is safe on a terminal, in a page, in JUnit's XML and in a CI log; twice is as once.

    Control, bidirectional, zero-width and line-separator characters, surrogates (bytes of a name that is not UTF-8) and what is no
    character are shown escaped, as in Python; every kind of space is a plain one. GitHub takes a line that starts with "::", or holds
    "##[", for a command: both are broken up.

    Source: https://github.com/actions/runner, ActionCommand.cs (TryParse, TryParseV2).
    """
    if not text.isprintable():
        escaped = (" " if category(c) == "Zs" else c.encode("unicode_escape").decode() for c in text)
        text = "".join(c if c.isprintable() else shown for c, shown in zip(text, escaped, strict=True))
    if text.lstrip().startswith("::"):
        text = text.replace("::", r"\x3a:", 1)
    return text.replace("##[", r"#\x23[")


def closest(name: str, known: Iterable[str], n: int = 5) -> str:
    """Return the known names most like `name`, closest first, as one comma-separated string ("" when none is close)."""
    by_folded = {k.casefold(): k for k in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=n, cutoff=0.4)
    return ", ".join(by_folded[f] for f in found)
