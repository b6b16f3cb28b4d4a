"""Rows by item: what this session knows already, how rows were made, and the check of every shortcut against the plain call.

The rule for all of it: a shortcut is named in the result, checked on a sample in the same run, and dropped when it disagrees.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from clipbench.models.encoder import Encoder, Rows, Shortcuts
from clipbench.result import JsonObject
from clipbench.settings import Settings

SHARED, CACHED, DISTINCT = "shared_rows", "cached_rows", "distinct_texts"
_MADE = "made"

AT_ONCE = 4096
"""Items that are encoded, checked and kept together: a run that is killed loses no more than these from a cache."""

ITEMS_A_SAMPLE = 100
"""One item in 100 is checked, a batch of the plain call's at least, MOST_CHECKED at most, of shared, cached and new rows alike."""

MOST_CHECKED = 8

TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2}
"""The largest distance of a unit row from the plain call's that the order of additions may make.

Source: measured on a CPU with ViT-B/32 (random weights, 27 captions): 1.0e-6, 1.3e-3 and 9.8e-3, while the closest two captions
are .46 apart.
"""

Row = Rows


class Known(Protocol):
    """Rows of items by name; what a session keeps for one encoder."""

    @property
    def is_trusted(self) -> bool:
        """False after `distrust`: this encoder is called plainly from then on."""
        ...

    def get(self, names: Sequence[str]) -> tuple[dict[str, Row], dict[str, Row]]:
        """Return the rows this session made, and those of a cache."""
        ...

    def add(self, rows: Mapping[str, Row]) -> None:
        """Keep rows that were just made and checked."""
        ...

    def distrust(self) -> None:
        """Forget all rows of this encoder, and keep nothing more: one disagreed with the plain call."""
        ...


class NothingKnown:
    """No memory: every row is made."""

    is_trusted = True

    def get(self, names: Sequence[str]) -> tuple[dict[str, Row], dict[str, Row]]:
        """Return nothing."""
        return {}, {}

    def add(self, rows: Mapping[str, Row]) -> None:
        """Keep nothing."""

    def distrust(self) -> None:
        """Nothing to forget."""


@dataclass(frozen=True)
class Made:
    """How rows were made. `n` were asked for; of these `shared` came from this session and `cached` from a cache.

    `checked` rows were made again by the plain call, and are no further from it than `largest_distance`. `unconfirmed` of the
    cached ones stand beside no cached one that was checked. `dropped`: why the plain call was made for all of them after all.
    """

    n: int
    shortcuts: frozenset[str] = frozenset()
    shared: int = 0
    cached: int = 0
    checked: int = 0
    unconfirmed: int = 0
    largest_distance: float = 0.0
    dropped: str = ""

    def __add__(self, other: "Made") -> "Made":
        return Made(
            self.n + other.n,
            self.shortcuts | other.shortcuts,
            self.shared + other.shared,
            self.cached + other.cached,
            self.checked + other.checked,
            self.unconfirmed + other.unconfirmed,
            max(self.largest_distance, other.largest_distance),
            self.dropped or other.dropped,
        )

    def to_json(self) -> JsonObject:
        """Return the counts that are not zero; `n` and `checked` always."""
        entry = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "shortcuts"}
        return {name: value for name, value in entry.items() if value or name in ("n", "checked")}


class DisagreementError(Exception):
    """A row made by a shortcut is not the plain call's; it never leaves `embed`."""


@dataclass(frozen=True)
class Part:
    """Items to gather rows for. `names` identify their content, `order` lists their places as a sample is to be spread over them.

    `make(missing, sample)` gives rows by place and may keep what the sample's check will need; `plain(places)` the plain call's
    rows of these; `used()` names what `make` does otherwise.
    """

    names: Sequence[str]
    order: Sequence[int]
    make: Callable[[Sequence[int], Collection[int]], Mapping[int, Row]]
    plain: Callable[[Sequence[int]], Rows]
    used: Callable[[], tuple[str, ...]]


def gather(part: Part, encoder: Encoder, settings: Settings) -> tuple[dict[int, Row], Made]:
    """Return rows by place (absent: the item could not be decoded) and how they were made.

    Raises: DisagreementError when a sampled row is further than TOLERANCE from the plain call's.
    """
    known = settings.known or NothingKnown()
    shared, cached = known.get(part.names)
    origin = [SHARED if name in shared else CACHED if name in cached else _MADE for name in part.names]
    found = {k: shared[n] if n in shared else cached[n] for k, n in enumerate(part.names) if origin[k] != _MADE}
    missing = [k for k in range(len(origin)) if origin[k] == _MADE]
    made = part.make(missing, spread(missing, settings.batch_size)) if missing else {}
    found |= made
    used = part.used() if made else ()
    counts = {name: origin.count(name) for name in (SHARED, CACHED)}
    names = frozenset({*used, *(name for name, count in counts.items() if count)})
    how = Made(len(origin), names, counts[SHARED], counts[CACHED])
    if names and (encoder.is_loaded or settings.must_check):
        kinds = [name for name in (SHARED, CACHED, _MADE) if name in names or (name == _MADE and used)]
        groups = [[k for k in part.order if k in found and origin[k] == kind] for kind in kinds]
        how += _checked(part, found, groups, names, TOLERANCE[encoder.identity.precision], settings)
    else:
        how += Made(0, unconfirmed=counts[CACHED])
    known.add({part.names[k]: row for k, row in made.items()})
    return found, how


def _checked(
    part: Part,
    found: Mapping[int, Row],
    groups: Sequence[Sequence[int]],
    names: Collection[str],
    tolerance: float,
    settings: Settings,
) -> Made:
    """A sample of each group made again by the plain call, in its own batches."""
    places = [k for group in groups for k in spread(group, settings.batch_size)]
    batches = [places[start : start + settings.batch_size] for start in range(0, len(places), settings.batch_size)]
    furthest = 0.0
    for batch in batches:
        plain = part.plain(batch).astype(np.float64)
        taken = np.stack([found[k] for k in batch])
        distances = np.linalg.norm(plain - taken, axis=1) if plain.shape == taken.shape else np.array([np.inf])
        furthest = max(furthest, float(distances.max()) if np.isfinite(distances).all() else np.inf)
    if furthest > tolerance:
        (settings.known or NothingKnown()).distrust()
        raise DisagreementError(
            f"with {', '.join(sorted(names))} a sampled row is {furthest:.2g} away from the plain call's, allowed {tolerance:.0e}: "
            f"all made plainly, which is slower, and so is what this model encodes afterwards"
        )
    return Made(0, checked=len(places), largest_distance=furthest)


def spread(places: Sequence[int], batch_size: int) -> list[int]:
    """Return which of these places are checked, evenly spread, the first and the last among them.

    One in ITEMS_A_SAMPLE, but no fewer than a batch (a fault may sit behind a batch's first item), and MOST_CHECKED at most.
    """
    n = len(places)
    count = min(n, MOST_CHECKED, max(batch_size, 2, n // ITEMS_A_SAMPLE))
    return [places[round(k * (n - 1) / max(1, count - 1))] for k in range(count)]


def shortcuts_of(encoder: Encoder, settings: Settings) -> Shortcuts | None:
    """Return the encoder's shortcuts, None where they are off (`settings.plain`), one was found wrong, or it is not ours."""
    return None if settings.plain or not (settings.known or NothingKnown()).is_trusted else encoder.shortcuts()


def text_name(text: str) -> str:
    """Return what a text's row is kept under."""
    return f"text:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"
