"""A piece of work done by clipbench and by a peer: first shown to be the same work, then timed in turns."""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from clipbench.errors import ClipbenchError
from clipbench.statistics import Ratio, judged_ratio, round_ratio

AGREE = 1e-5
"""The largest difference of an element of a unit row between the sides: what the order of float32 additions makes. A recall
that differs by one hit differs by more, on fewer than 100,000 queries."""

Outcome = Mapping[str, npt.NDArray[Any]]
"""Named arrays that a side gives: rows (n, dim), unit length; recalls."""


class PeerError(ClipbenchError):
    """A peer that is not installed, does other work than clipbench, or a process of a comparison that failed."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one piece of work, by side: for the peer all it runs, for clipbench what is useful."""

    peer: float
    ours: float


@dataclass(frozen=True)
class Work:
    """What is timed. `at_least`: by how much clipbench is to be faster (a rate over the peer's).

    A round is `turns` pairs, one after the other; its ratio is their median.
    """

    name: str
    what: str
    peer: str
    at_least: float
    ours: Callable[[], Outcome]
    theirs: Callable[[], Outcome]
    flops: Flops
    rounds: int
    turns: int = 1


def check_same(name: str, ours: Outcome, theirs: Outcome) -> None:
    """Raises: PeerError when the sides did not compute the same thing, so that no clock is read over different work."""
    if not theirs or ours.keys() != theirs.keys():
        raise PeerError(f"{name}: clipbench gives {sorted(ours)}, the peer {sorted(theirs)}; expected the same arrays")
    for what, expected in theirs.items():
        got = ours[what]
        if got.shape != expected.shape:
            raise PeerError(f"{name}: {what} of clipbench has shape {got.shape}, the peer's {expected.shape}")
        difference = float(np.abs(np.subtract(got, expected, dtype=np.float64)).max())
        if not difference <= AGREE:
            raise PeerError(
                f"{name}: {what} of clipbench differs from the peer's by {difference:.2g}, allowed {AGREE:.0e}; "
                "nothing is timed before both do the same work"
            )


def timed(work: Work, say: Callable[[str], None], clock: Callable[[], float] = time.perf_counter) -> Ratio:
    """Return the peer's seconds over clipbench's (`base`: clipbench's seconds, `head`: the peer's), with its interval.

    Both sides run once before, to be warm and to be checked; then they take turns, and which one starts alternates.

    Raises: PeerError when the sides do not agree.
    """
    say(f"{work.name}: is it the same work?")
    check_same(work.name, work.ours(), work.theirs())
    rounds = []
    for number in range(work.rounds):
        say(f"{work.name}: round {number + 1} of {work.rounds}")
        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        for turn in range(work.turns):
            for side in ("ours", "theirs") if (number + turn) % 2 == 0 else ("theirs", "ours"):
                seconds[side].append(_seconds(getattr(work, side), clock))
        ratio = round_ratio(seconds["ours"], seconds["theirs"])
        rounds.append((ratio, median(seconds["ours"]), median(seconds["theirs"])))
    return judged_ratio(work.name, rounds, 0)


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    gc.collect()
    start = clock()
    call()
    return clock() - start
