"""Question 1: has it changed on these items? Decided at any n, without inference.

Matrices of cosines, outcomes and card values either agree within the numeric budget of the precision or they do not. A flip
counts unless the stored matrices show a near tie: a margin that lies, before and after, within what two cosines may move.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from clipbench.judge.item_changes import margins_of
from clipbench.judge.matching_results import Aligned, Pair
from clipbench.judge.tolerances import Budget

Bools = npt.NDArray[np.bool_]
State = Literal["identical", "agrees", "changed"]

SOFTMAX_GAIN = 0.5
"""A softmax at scale s moves by at most s / 2 times the largest move of a cosine: s p (1 - p) * 2, p (1 - p) <= 1 / 4."""

WHOLE_STEP, RELATIVE_STEP = 1.0, 0.01
"""Outcomes beyond -1..1 (ranks, counts) may move by one, or by 1 % of base: deep ranks shuffle by rounding alone."""

NAMED = 5


@dataclass(frozen=True)
class Agreement:
    """The answer to question 1 for one pair of results, with the reason in words."""

    state: State
    reason: str


def agreement(pair: Pair, budget: Budget, judged: frozenset[str] = frozenset()) -> Agreement:
    """Return whether a comparable pair agrees on its items; metrics in `judged` are left to question 2.

    "identical": every outcome and value is the same. "agrees": within the budget. "changed": beyond it, the reason naming what.
    """
    widest = _largest_move(pair)
    outcomes = {m: a for m, a in pair.aligned.items() if m not in judged}
    changed = _changes(pair, outcomes, widest, budget)
    if changed:
        return Agreement("changed", "; ".join(changed))
    values_equal = all(
        pair.base.metrics[m].value == pair.head.metrics[m].value for m in pair.base.metrics if m in pair.head.metrics
    )
    if values_equal and all(a.is_identical for a in outcomes.values()):
        return Agreement("identical", "every outcome is the same")
    flips = sum(a.lost + a.gained for a in outcomes.values() if a.is_binary)
    seen = [f"cosines moved by up to {widest:.2g}"] if pair.base.arrays else []
    seen += [f"{flips} flip(s), of near ties or a share within the budget"] if flips else []
    return Agreement("agrees", f"within the budget of {budget.precision}" + (f": {', '.join(seen)}" if seen else ""))


def _changes(pair: Pair, outcomes: Mapping[str, Aligned], widest: float, budget: Budget) -> list[str]:
    """What changed beyond the budget: flips, then cosines; what merely follows from cosines only where none are stored."""
    told = {m: words for m, a in outcomes.items() if (words := _changed_outcomes(pair, m, a, budget))}
    flips = [words for m, words in told.items() if outcomes[m].is_binary]
    if widest > budget.cosine:
        return [*flips, f"cosines moved by up to {widest:.2g} (budget {budget.cosine:g})"]
    return [*flips, *(words for m, words in told.items() if not outcomes[m].is_binary), *_changed_values(pair, budget)]


def _largest_move(pair: Pair) -> float:
    """The largest move of any stored cosine, probabilities divided by what a softmax makes of a cosine."""
    largest = 0.0
    for name, before in pair.base.arrays.items():
        after = pair.head.arrays.get(name)
        scale = _scale(pair, name)
        if scale and after is not None and after.shape == before.shape and before.size:
            largest = max(largest, float(np.max(np.abs(after - before))) / scale)
    return largest


def _scale(pair: Pair, name: str) -> float:
    """What a move of 1 in a cosine makes of this array or outcome; 0 for arrays that hold no cosines (counts)."""
    if name.startswith("similarity"):
        return 1.0
    if "probabilit" in name:
        return float(pair.base.protocol.get("logit_scale", 1.0)) * SOFTMAX_GAIN
    return 0.0


def _changed_outcomes(pair: Pair, metric: str, outcomes: Aligned, budget: Budget) -> str:
    """What changed beyond the budget in one metric's outcomes, "" when nothing did."""
    scale = max(1.0, _scale(pair, metric))
    moved = _moved(outcomes, budget.cosine * scale)
    if outcomes.is_binary:
        moved &= ~_near_ties(pair, metric, outcomes, budget)
    count = int(moved.sum())
    if count <= budget.flips * len(outcomes.ids):
        return ""
    if not outcomes.is_binary:
        furthest = int(np.argmax(np.abs(outcomes.head - outcomes.base)))
        step = outcomes.head[furthest] - outcomes.base[furthest]
        return f"{metric} moved for {count} of {len(outcomes.ids)} items, most {outcomes.ids[furthest]} ({step:+.2g})"
    return f"{metric}: {_named('lost', outcomes, moved, -1)}, {_named('gained', outcomes, moved, 1)}"


def _moved(outcomes: Aligned, allowed: float) -> Bools:
    large = bool(np.abs(outcomes.base).max(initial=0) > 1 or np.abs(outcomes.head).max(initial=0) > 1)
    step = np.maximum(WHOLE_STEP, RELATIVE_STEP * np.abs(outcomes.base)) if large else allowed
    return np.asarray(np.abs(outcomes.head - outcomes.base) > step)


def _near_ties(pair: Pair, metric: str, outcomes: Aligned, budget: Budget) -> Bools:
    before, after = margins_of(pair.base, metric), margins_of(pair.head, metric)
    same_order = tuple(pair.base.items.ids) == tuple(pair.head.items.ids) == outcomes.ids
    if before is None or after is None or not same_order:
        return np.zeros(len(outcomes.ids), dtype=bool)
    return np.asarray((np.abs(before) <= 2 * budget.cosine) & (np.abs(after) <= 2 * budget.cosine))


def _named(word: str, outcomes: Aligned, moved: Bools, sign: int) -> str:
    there = moved & (np.sign(outcomes.head - outcomes.base) == sign)
    names = [outcomes.ids[k] for k in np.flatnonzero(there)]
    listed = f" ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})" if names else ""
    return f"{len(names)} {word}{listed}"


def _changed_values(pair: Pair, budget: Budget) -> list[str]:
    """Metrics without outcomes of their own: a model card's counts, the smallest margin."""
    found = []
    for metric, before in pair.base.metrics.items():
        after = pair.head.metrics.get(metric)
        if after is None or metric in pair.aligned:
            continue
        if before.n != after.n:
            found.append(f"{metric} has n {before.n:,} -> {after.n:,}")
        small = max(abs(before.value), abs(after.value)) <= 1
        if abs(after.value - before.value) > (budget.cosine if small else 0.0):
            found.append(f"{metric} {before.value:,.12g} -> {after.value:,.12g}")
    return found
