"""One stage of two probes: is it the same, and if not, how far apart? Each function answers (state, words, numbers).

Raises DamagedProbeError where the two cannot be compared.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clipbench.embed.sample import Sample
from clipbench.judge.probe_samples import DamagedProbeError
from clipbench.judge.rules import Budget

State = Literal["same", "moved", "cannot tell"]
Answer = tuple[State, str, Mapping[str, float]]
Floats = npt.NDArray[np.float64]

TENSOR_BUDGET = 1e-5
"""A preprocessed pixel (about -2.7 to 2.7) may move by so much: float32 rounds it at 2.4e-7, a resize adds a few roundings; one
level of 255 in the picture is 1.4e-2."""


def pixels_moved(before: Sequence[Sample], after: Sequence[Sample], budget: float, unit: str = "") -> Answer:
    """Pictures or tensors, by hash; where hashes differ, by how much at the sampled positions (beyond `budget`: moved).

    A hash that differs while every sampled value is equal is a change elsewhere in the picture: rounding would show here.
    """
    changed = [(b, a) for b, a in zip(before, after, strict=True) if b.sha256 != a.sha256]
    n = len(before)
    if not changed:
        return "same", "every bit", {"changed": 0}
    if other := next(((b, a) for b, a in changed if b.shape != a.shape), None):
        return "moved", f"shape {other[0].shape} -> {other[1].shape}", {"changed": len(changed)}
    gaps = np.concatenate([np.abs(a.values - b.values) for b, a in changed])
    numbers = {"changed": len(changed), "mean_abs": float(gaps.mean()), "max_abs": float(gaps.max())}
    if 0 < numbers["max_abs"] <= budget:
        return "same", f"rounding, at most {gaps.max():.1g}", numbers
    where = "" if gaps.any() else ", not at the sampled positions"
    words = f"mean abs {gaps.mean():.2g}{unit}, max {gaps.max():.2g}, {len(changed)} of {n} pictures{where}"
    return "moved", words, numbers


def texts_moved(before: Any, after: Any) -> Answer:
    """The texts with their prompt, exactly."""
    for texts in (before, after):
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise DamagedProbeError("a probe has no texts")
    if before == after:
        return "same", "every text", {}
    if len(before) != len(after):
        return "moved", f"{len(before)} -> {len(after)} texts", {}
    other = [k for k, text in enumerate(before) if text != after[k]]
    shown = f"{before[other[0]][:60]!r} -> {after[other[0]][:60]!r}"
    return "moved", f"{len(other)} of {len(before)}: {shown}", {"changed": len(other)}


def tokens_moved(before: Sequence[Sample], after: Sequence[Sample]) -> Answer:
    """The tokens of each text, exactly."""
    changed = [(b, a) for b, a in zip(before, after, strict=True) if b.sha256 != a.sha256]
    if not changed:
        return "same", "every token", {"changed": 0}
    b, a = changed[0]
    words = f"{len(changed)} of {len(before)} texts"
    if b.shape != a.shape:
        return "moved", f"{words}, context length {b.shape[0]} -> {a.shape[0]}", {"changed": len(changed)}
    place = int(np.argmax(b.values != a.values))
    seen = f"token {place}: {b.values[place]:.0f} -> {a.values[place]:.0f}"
    return "moved", f"{words}, {seen}", {"changed": len(changed)}


def statement_moved(before: Any, after: Any, shown: int = 40) -> Answer:
    """What two encoders say of themselves; nothing said cannot be compared."""
    if not all(isinstance(value, str) and value for value in (before, after)):
        raise DamagedProbeError("not stated by the encoder")
    if before == after:
        return "same", before[:shown], {}
    return "moved", f"{before[:shown]} -> {after[:shown]}", {}


def activation_moved(before: Any, after: Any) -> Answer:
    """How many activation modules of each kind the live models hold, whatever their names say."""
    if not all(isinstance(kinds, dict) and kinds for kinds in (before, after)):
        raise DamagedProbeError("not shown by the encoder")
    words = [", ".join(f"{n} {name}" for name, n in sorted(kinds.items())) for kinds in (before, after)]
    return ("same", words[0], {}) if before == after else ("moved", " -> ".join(words), {})


def rows_moved(before: Sequence[Sample], after: Sequence[Sample], budget: Budget) -> Answer:
    """Unit rows, by their distance from base's: moved beyond half the budget of cosines."""
    if before[0].shape != after[0].shape:
        return "moved", f"dim {before[0].shape[0]} -> {after[0].shape[0]}", {}
    base, head = (_unit(np.stack([s.values for s in side])) for side in (before, after))
    distances = np.sqrt(np.sum((head - base) ** 2, axis=1))
    cosines = 1 - distances**2 / 2  # of unit rows; exact where a product would round
    numbers = {
        "cosine_min": float(cosines.min()),
        "cosine_mean": float(cosines.mean()),
        "distance_max": float(distances.max()),
    }
    words = f"cosine to base min {_short(cosines.min())}, mean {_short(cosines.mean())}"
    return ("moved" if distances.max() > budget.cosine / 2 else "same"), words, numbers


def _unit(rows: Floats) -> Floats:
    norms = np.sqrt(np.sum(rows**2, axis=1, keepdims=True))
    if not norms.all():
        raise DamagedProbeError("a row of a probe is zero")
    unit: Floats = rows / norms
    return unit


def similarities_moved(before: Sequence[Sample], after: Sequence[Sample], budget: Budget) -> Answer:
    """The matrix of cosines: moved beyond the budget, with the rankings that changed."""
    if before[0].shape != after[0].shape:
        raise DamagedProbeError("the matrices have other shapes")
    base, head = (np.stack([s.values for s in side]) for side in (before, after))
    flips, pairs = rank_flips(base, head, 2 * budget.cosine)
    winners = sum(other_winners(b, h, 2 * budget.cosine) for b, h in ((base, head), (base.T, head.T)))
    widest = float(np.abs(head - base).max())
    numbers = {"max_abs": widest, "rank_flips": flips, "pairs": pairs, "other_winners": winners}
    words = f"by up to {widest:.2g}, rank flips {flips} of {pairs}, other winners {winners} of {sum(base.shape)}"
    return ("moved" if widest > budget.cosine else "same"), words, numbers


def rank_flips(base: Floats, head: Floats, tie: float) -> tuple[int, int]:
    """Return (flips, pairs): how many pairs of cells of a row or column swapped their order, of how many pairs there are.

    `base`, `head`: (texts, images). A pair closer than `tie` before and after is a near tie, and no flip.
    """
    flips = pairs = 0
    for before, after in ((base, head), (base.T, head.T)):
        first, second = np.triu_indices(before.shape[1], 1)
        gap_before, gap_after = before[:, first] - before[:, second], after[:, first] - after[:, second]
        near = (np.abs(gap_before) <= tie) & (np.abs(gap_after) <= tie)
        flips += int(np.sum((np.sign(gap_before) != np.sign(gap_after)) & ~near))
        pairs += gap_before.size
    return flips, pairs


def other_winners(base: Floats, head: Floats, tie: float) -> int:
    """Return in how many rows another cell is the largest, near ties (as in `rank_flips`) left out."""
    rows, before, after = np.arange(len(base)), base.argmax(axis=1), head.argmax(axis=1)
    near = (base[rows, before] - base[rows, after] <= tie) & (head[rows, after] - head[rows, before] <= tie)
    return int(np.sum((before != after) & ~near))


def _short(cosine: float) -> str:
    """Five digits, and never "1" for a cosine that is not: 0.99999998 is written in full."""
    return f"{cosine:.5f}" if abs(1 - cosine) >= 1e-5 or cosine == 1 else f"1 - {1 - cosine:.1g}"
