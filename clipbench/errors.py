"""Named errors at clipbench's boundary: each carries one message for the person at the keyboard.

The message says what went wrong, where, what was expected, and the next step. The plugin and the command line print it
without a traceback; inside a notebook it is an ordinary exception.
"""

import difflib
from collections.abc import Iterable


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
