"""Cost against size: clipbench's seconds on 1, 2, 4 and 8 times the items, and the exponent with which they grow."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from clipbench.peers import ours
from clipbench.peers.bench import STEPS, Bench
from clipbench.peers.work import Outcome


@dataclass(frozen=True)
class Growth:
    """`values`: one for each of `sizes` (items). `exponent`: the slope of their logarithms; 1 is linear, 0 is flat."""

    what: str
    sizes: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def exponent(self) -> float:
        return float(np.polyfit(np.log(self.sizes), np.log(self.values), 1)[0])


def cost_against_size(bench: Bench, clock: Callable[[], float] = time.perf_counter) -> list[Growth]:
    """Return the growth of seconds for captions and for images; medians over rounds that run up and down the sizes."""
    items = bench.items(max(STEPS) * bench.sizes.steps_images)
    parts = [items[: step * bench.sizes.steps_images] for step in STEPS]
    found = []
    for what, encode in (("captions", ours.encoded_captions), ("images from files", ours.encoded_images)):
        call: Callable[..., Outcome] = encode
        call(bench.encoder, parts[0], bench.settings)
        seconds: list[list[float]] = [[] for _ in parts]
        for number in range(bench.sizes.steps_rounds):
            bench.say(f"cost against size, {what}: round {number + 1} of {bench.sizes.steps_rounds}")
            for place in _up_and_down(len(parts), number):
                start = clock()
                call(bench.encoder, parts[place], bench.settings)
                seconds[place].append(clock() - start)
        counts = [sum(len(i.captions) for i in part) if what == "captions" else len(part) for part in parts]
        found.append(Growth(what, tuple(counts), tuple(median(row) for row in seconds)))
    return found


def _up_and_down(n: int, number: int) -> Sequence[int]:
    return range(n) if number % 2 == 0 else range(n - 1, -1, -1)
