"""Score cut-offs that an application uses: precision and recall at them, base against head, and the value that keeps the recall.

A query passes a cut-off where the cosine of its best candidate reaches it. Precision: of the queries that pass, the share whose best
candidate is a right one. Recall: of all queries, the share that passes with a right one. A new model needs other cut-offs:
`score_in_base` says what the base's was.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from clipbench.judge.quality import Pair, witnesses_of
from clipbench.judge.tolerances import Cutoff, Rules
from clipbench.statistics import drop_upper_bound, fewest, flip_test, mean_change
from clipbench.types import Answers, FloatArray, IntArray, Outcome, Verdict

RESAMPLES = 400
ROUNDING = 1e-9
Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Side:
    """The queries of one run: (n,) cosine of the best candidate, whether it is a right one, and the cut-off."""

    scores: FloatArray
    right: Booleans
    cutoff: float

    @cached_property
    def passes(self) -> Booleans:
        return np.asarray(self.scores >= self.cutoff)

    @cached_property
    def hits(self) -> FloatArray:
        """1 where a query passes with a right candidate."""
        return np.asarray(self.passes & self.right, dtype=np.float64)

    @property
    def precision(self) -> float:
        return float(self.hits.sum() / max(1, self.passes.sum()))

    @property
    def recall(self) -> float:
        return float(self.hits.mean())


def judged_cutoffs(pair: Pair, is_equivalent: bool, rules: Rules) -> Iterator[Verdict]:
    """Yield a verdict on precision and one on recall at each cut-off that is about this pair of results.

    `is_equivalent`: the rows of both towers are. Queries that both runs have with the same content are held against each other.
    """
    for row in rules.cutoffs:
        if (row.experiment, row.dataset) != (pair.base.experiment, pair.base.dataset.name):
            continue
        sides = [result.answers.get(row.answers) for result in (pair.base, pair.head)]
        if sides[0] is None or sides[1] is None:
            known = ", ".join(pair.base.answers) or "none"
            yield _verdict(
                pair, row, "recall", "inconclusive", f"there are no answers {row.answers!r} (there are: {known})"
            )
            continue
        yield from _judged(pair, row, sides[0], sides[1], is_equivalent, rules)


def _judged(
    pair: Pair, row: Cutoff, before: Answers, after: Answers, is_equivalent: bool, rules: Rules
) -> Iterator[Verdict]:
    place = {item: k for k, item in enumerate(after.ids)}
    kept = [k for k, item in enumerate(before.ids) if item in place and item not in pair.changed]
    ids = tuple(before.ids[k] for k in kept)
    base = _side(before, kept, row.score if row.score_in_base is None else row.score_in_base)
    head = _side(after, [place[item] for item in ids], row.score)
    if not base.passes.any():
        reason = f"no query of base reaches {base.cutoff:g}: nothing can be lost; mend the cut-off"
        yield _verdict(pair, row, "recall", "inconclusive", reason)
        return
    axis = next(
        (o.clusters for m, s in pair.base.scores.items() if s.spec.answers == row.answers and (o := s.outcomes)), None
    )
    clusters = np.asarray(axis)[kept] if axis is not None and len(axis) == len(before.ids) else None
    witnesses = witnesses_of(ids, clusters, pair.base.evidence.get("images"))
    n = len(ids) if witnesses is None else int(witnesses.max()) + 1
    # What a query adds to precision, at base's: its sum is 0 in base, and head's precision minus base's times those that pass in head.
    parts = [side.hits - base.precision * side.passes for side in (base, head)]
    allowance = row.tolerance * head.passes
    judged = (
        (
            "precision",
            base.precision,
            head.precision,
            parts[1] - parts[0],
            mean_change(parts[1] - parts[0] + allowance, n, rules.alpha, witnesses),
        ),
        (
            "recall",
            base.recall,
            head.recall,
            head.hits - base.hits,
            row.tolerance - drop_upper_bound(base.hits, head.hits, rules.alpha, witnesses),
        ),
    )
    proposed = "" if is_equivalent else f"; {_proposal(base, head, witnesses)}"
    for what, value, now, change, slack in judged:
        p = flip_test(change, witnesses) if change.any() else 1.0
        outcome, reason = _decided(value - now, p, slack, n, row, is_equivalent, rules)
        yield _verdict(
            pair, row, what, outcome, reason + (proposed if outcome != "pass" or what == "recall" else ""), value, now
        )


def _decided(
    drop: float, p: float, slack: float, n: int, row: Cutoff, is_equivalent: bool, rules: Rules
) -> tuple[Outcome, str]:
    """`slack`: the lower limit of how much of what is allowed is left."""
    allowed = f"allowed {row.tolerance:g} ({row.source})"
    if drop > row.tolerance + ROUNDING and p <= rules.alpha_fail:
        return "fail", f"fell by {drop:.3g}, {allowed}, p = {p:.2g}"
    if is_equivalent:
        return "pass", "rows are equivalent"
    if n < fewest(row.tolerance, rules.alpha):
        return (
            "inconclusive",
            f"{n:,} queries exclude no drop of {row.tolerance:g}: {fewest(row.tolerance, rules.alpha):,} are needed",
        )
    if slack >= -ROUNDING:
        return "pass", f"a drop beyond {row.tolerance:g} is excluded"
    return (
        "inconclusive",
        f"{'fell' if drop > 0 else 'rose'} by {abs(drop):.3g}, and a drop beyond what is {allowed} is not excluded",
    )


def _side(answers: Answers, rows: list[int], cutoff: float) -> _Side:
    return _Side(answers.scores[rows, 0].astype(np.float64), np.asarray(answers.margins[rows] > 0), cutoff)


def _proposal(base: _Side, head: _Side, witnesses: IntArray | None) -> str:
    """The cut-off by which head answers as many queries rightly as base does, with its 95 % interval, in words."""
    found = _same_recall(base.hits, head.scores, head.right)
    if found is None:
        return f"no cut-off keeps the recall: without any it is {head.right.mean():.3f}"
    codes = np.arange(len(base.hits)) if witnesses is None else witnesses
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    generator, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([members[k] for k in generator.integers(0, len(members), len(members))])
        drawn.append(_same_recall(base.hits[chosen], head.scores[chosen], head.right[chosen]))
    values = [value for value in drawn if value is not None]
    low, high = np.quantile(values, (0.025, 0.975)) if values else (found, found)
    there = replace(head, cutoff=found)
    return (
        f"a cut-off of {found:.4f} ({low:.4f} to {high:.4f}) keeps the recall at {there.recall:.3f}, with a precision of "
        f"{there.precision:.3f}, {base.precision:.3f} in base"
    )


def _same_recall(hits: FloatArray, scores: FloatArray, right: Booleans) -> float | None:
    """The largest cut-off by which as many pass rightly as in base; None where too few are right."""
    wanted, ranked = int(hits.sum()), np.sort(scores[right])[::-1]
    return float(ranked[wanted - 1]) if 0 < wanted <= len(ranked) else None


def _verdict(
    pair: Pair,
    row: Cutoff,
    what: str,
    outcome: Outcome,
    reason: str,
    base: float | None = None,
    head: float | None = None,
) -> Verdict:
    found = pair.verdict(outcome, reason, f"{what}@{row.name}", "cut-off")
    return replace(found, base=base, head=head)
