"""What changed, item by item: the worst losses and the best gains of a metric, with their five best candidates."""

from dataclasses import dataclass

import numpy as np

from clipbench.judge.finding import ItemChange
from clipbench.judge.intervals import Float64s
from clipbench.judge.matching_results import Aligned, Pair
from clipbench.result import Result

SHOWN = 5
TOP = 5


@dataclass(frozen=True)
class _Grid:
    """Cosines with a row for each item that asks and a column for each candidate, own pairs on the diagonal."""

    ids: tuple[str, ...]
    cosines: Float64s

    def margins(self) -> Float64s:
        """(n,) own cosine minus the best wrong one of its row."""
        wrong = self.cosines.copy()
        np.fill_diagonal(wrong, -np.inf)
        return np.asarray(np.diag(self.cosines) - wrong.max(axis=1))

    def top(self, row: int) -> tuple[tuple[str, float], ...]:
        """The best candidates of a row with their cosines, best first."""
        best = np.argsort(-self.cosines[row], kind="stable")[:TOP]
        return tuple((self.ids[k], round(float(self.cosines[row, k]), 4)) for k in best)


def item_changes(pair: Pair, metric: str, outcomes: Aligned) -> list[ItemChange]:
    """Return the worst losses, then the best gains, up to five each; empty when nothing moved.

    Worst: where a matrix is stored, by the fall of the margin; else by how far the outcome moved and by how many of the
    result's metrics the item lost with it (a caption lost at 1, 5 and 10 before one lost at 1), then in base's order.
    """
    before, after = _grid(pair.base, metric), _grid(pair.head, metric)
    if before is None or after is None or before.ids != after.ids or not set(outcomes.ids) <= set(before.ids):
        before = after = None
    if before is not None and after is not None:
        place = {item: k for k, item in enumerate(before.ids)}
        rows = [place[item] for item in outcomes.ids]
        margins = before.margins()[rows], after.margins()[rows]
        weight = margins[1] - margins[0]
    else:
        rows, margins = [], None
        weight = _weight(pair, metric, outcomes)
    step = outcomes.head - outcomes.base
    changes = []
    for sign in (-1, 1):
        moved = np.flatnonzero(np.sign(step) == sign)
        for k in moved[np.argsort(-sign * weight[moved], kind="stable")][:SHOWN]:
            shown = (before.top(rows[k]), after.top(rows[k])) if before is not None and after is not None else ((), ())
            changes.append(
                ItemChange(
                    pair.base.experiment,
                    pair.base.model.name,
                    pair.base.dataset.name,
                    metric,
                    outcomes.ids[k],
                    "lost" if sign < 0 else "gained",
                    float(outcomes.base[k]),
                    float(outcomes.head[k]),
                    None if margins is None else round(float(margins[0][k]), 5),
                    None if margins is None else round(float(margins[1][k]), 5),
                    *shown,
                )
            )
    return changes


def margins_of(result: Result, metric: str) -> Float64s | None:
    """Return (n,) margins of a metric's items in the order of `items.ids`, or None where no square matrix is stored."""
    grid = _grid(result, metric)
    return None if grid is None else grid.margins()


def _grid(result: Result, metric: str) -> _Grid | None:
    cosines, ids = result.arrays.get("similarity"), tuple(result.items.ids)
    if cosines is None or cosines.shape != (len(ids), len(ids)) or len(ids) < 2 or metric in result.items.axes:
        return None
    table = np.asarray(cosines, dtype=np.float64)
    return _Grid(ids, table.T if metric.startswith("image_to_text") else table)


def _weight(pair: Pair, metric: str, outcomes: Aligned) -> Float64s:
    """(n,) how far an item moved, summed over the metrics that go by the same ids."""
    total = np.zeros(len(outcomes.ids))
    for other in pair.aligned.values():
        if other.ids == outcomes.ids:
            total += other.head - other.base
    return total
