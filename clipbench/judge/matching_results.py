"""Which result of the head answers which result of the base, may they be compared, and their outcomes item by item."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from clipbench.errors import UsageError
from clipbench.judge.execution import is_unconfirmed
from clipbench.judge.intervals import Float64s
from clipbench.result import Items, Result, Run

ResultKey = tuple[str, str, str]

SUBJECT_KEYS = ("shortcuts", "execution", "other_activation", "notes")
"""Keys of a protocol that say how it went, not what was asked: a difference is reported and hinders no comparison."""

TEXT_IDS = "text_ids"
"""The id list whose ids are "<image id>#<place>": the captions of one image are one cluster."""

SHOWN_LETTERS = 60


@dataclass(frozen=True)
class Aligned:
    """One metric's outcomes on the items that both runs scored, (n,) float64, in base's order.

    `clusters` names the image of each text where the ids say so. `missing` and `new`: ids of base or head alone.
    """

    ids: tuple[str, ...]
    base: Float64s
    head: Float64s
    clusters: tuple[str, ...] | None
    missing: tuple[str, ...]
    new: tuple[str, ...]

    @cached_property
    def is_binary(self) -> bool:
        """True when every outcome is 0 or 1."""
        return bool(np.isin(self.base, (0.0, 1.0)).all() and np.isin(self.head, (0.0, 1.0)).all())

    @property
    def is_identical(self) -> bool:
        """True when both runs scored the same items alike."""
        return not self.missing and not self.new and bool(np.array_equal(self.base, self.head))

    @property
    def lost(self) -> int:
        """How many outcomes are lower now."""
        return int(np.sum(self.head < self.base))

    @property
    def gained(self) -> int:
        """How many outcomes are higher now."""
        return int(np.sum(self.head > self.base))


@dataclass(frozen=True)
class Pair:
    """A result of the base and the head's result of the same experiment, model and data set."""

    base: Result
    head: Result

    @cached_property
    def obstacles(self) -> tuple[str, ...]:
        """What makes the two not comparable, in words; empty when they are."""
        return tuple(_obstacles(self.base, self.head))

    @cached_property
    def aligned(self) -> Mapping[str, Aligned]:
        """The outcomes of every metric that both runs scored by item."""
        common = [m for m in self.base.metrics if m in self.head.metrics]
        found = {m: _aligned(self.base.items, self.head.items, m) for m in common}
        return {m: a for m, a in found.items() if a is not None}

    @property
    def has_same_items(self) -> bool:
        """True when fingerprint, n and metric version agree: items can be followed even where a prompt or resize differs."""
        version = "metric_version"
        return (
            self.base.dataset == self.head.dataset
            and self.base.protocol.get(version) == self.head.protocol.get(version)
            and not any(a.missing or a.new for a in self.aligned.values())
        )


@dataclass(frozen=True)
class Matched:
    """Results that answer each other, and those that only one run has."""

    pairs: tuple[Pair, ...]
    missing: tuple[Result, ...]
    new: tuple[Result, ...]


def match_results(base: Run, head: Run) -> Matched:
    """Return the results of two runs, matched by experiment, model name and data set name, in base's order.

    Raises: UsageError when a run holds two results of one key: which of them is meant cannot be told.
    """
    before, after = _by_key(base, "base"), _by_key(head, "head")
    return Matched(
        pairs=tuple(Pair(result, after[key]) for key, result in before.items() if key in after),
        missing=tuple(result for key, result in before.items() if key not in after),
        new=tuple(result for key, result in after.items() if key not in before),
    )


def key_of(result: Result) -> ResultKey:
    """Return (experiment, model name, data set name)."""
    return result.experiment, result.model.name, result.dataset.name


def _by_key(run: Run, which: str) -> dict[ResultKey, Result]:
    found: dict[ResultKey, Result] = {}
    for result in run.results:
        if key_of(result) in found:
            experiment, model, dataset = key_of(result)
            raise UsageError(
                f"{which} holds two results of {experiment} of {model} on {dataset}; compare runs with one result each"
            )
        found[key_of(result)] = result
    return found


def _obstacles(base: Result, head: Result) -> list[str]:
    found = []
    if base.dataset.fingerprint != head.dataset.fingerprint:
        found.append(
            f"other items (fingerprint {base.dataset.fingerprint[:12] or 'none'} -> {head.dataset.fingerprint[:12] or 'none'})"
        )
    if base.dataset.n != head.dataset.n:
        found.append(f"n {base.dataset.n:,} -> {head.dataset.n:,}")
    for key in sorted({*base.protocol, *head.protocol} - set(SUBJECT_KEYS)):
        before, after = base.protocol.get(key), head.protocol.get(key)
        if before != after:
            found.append(f"{key} {shown(before)} -> {shown(after)}")
    for which, result in (("base", base), ("head", head)):
        if is_unconfirmed(result):
            found.append(
                f"{which}'s rows came from a cache and its model was not run; measure it again without --cache"
            )
    return found


def shown(value: Any) -> str:
    """Return a protocol's value in one short line."""
    text = value if isinstance(value, str) else "absent" if value is None else json.dumps(value, sort_keys=True)
    return text if len(text) <= SHOWN_LETTERS else f"{text[: SHOWN_LETTERS - 3]}..."


def _aligned(base: Items, head: Items, metric: str) -> Aligned | None:
    if metric not in base.outcomes or metric not in head.outcomes:
        return None
    before_ids, after_ids = tuple(base.ids_of(metric)), tuple(head.ids_of(metric))
    before = np.asarray(base.outcomes[metric], dtype=np.float64)
    after = np.asarray(head.outcomes[metric], dtype=np.float64)
    missing: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    if before_ids != after_ids:
        place = {item: k for k, item in enumerate(after_ids)}
        there = set(before_ids)
        missing = tuple(item for item in before_ids if item not in place)
        new = tuple(item for item in after_ids if item not in there)
        kept = [k for k, item in enumerate(before_ids) if item in place]
        before_ids, before = tuple(before_ids[k] for k in kept), before[kept]
        after = after[[place[item] for item in before_ids]]
    clusters = _clusters(before_ids) if base.axes.get(metric) == TEXT_IDS else None
    return Aligned(before_ids, before, after, clusters, missing, new)


def _clusters(ids: Sequence[str]) -> tuple[str, ...] | None:
    """The image of each text id, or None where the ids do not say."""
    if not all("#" in item for item in ids):
        return None
    return tuple(item.rpartition("#")[0] for item in ids)
