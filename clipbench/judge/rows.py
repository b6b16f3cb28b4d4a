"""Rows of two runs held against each other, item by item: what changed of a subject, and how far each tower's rows moved.

Rows are compared by their sketches. The first class that applies decides: another dim; rows that are zero or not finite; rows lost
(items share a row that had two); another item's row; another space; equivalent; apart (some items far beyond the others); moved
together. A move that nobody asked for is never a pass beyond what software, machine, threads and the measured noise of batches
explain. Thresholds are `tolerances.Moves`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clipbench.embed.evidence import STEP
from clipbench.judge.tolerances import Moves, Rules
from clipbench.judge.trace import trace_in
from clipbench.types import Evidence, FloatArray, IntArray, JsonObject, Outcome, Run, SubjectRecord

NUMERIC = frozenset({"precision", "backend", "loader", "device"})
BEHAVIOURAL = frozenset({"weights", "preprocessing", "activation", "tokenizer", "output"})
"""What somebody can ask to change. A numeric change moves all rows alike, a behavioural one as it likes. A key of an encoder's own
`config` that is none of these counts as another loader, which is numeric; "output" is dimensions, quantized rows, temperature."""

LOW_PRECISIONS = ("fp16", "bf16", "int8")
SCALES = ("logit_scale", "logit_bias")
GRID = 256
"""Sketches in one cell of this grid (.016) are the same row."""
LISTED = 5
SOUGHT = 2000
"""Of items that moved far so many, evenly spread, are looked for among base's rows."""

State = Literal["equivalent", "together", "apart", "void", "unknown"]


@dataclass(frozen=True)
class Change:
    """What is known of two subjects beside their rows.

    `because`: what was asked to change. `unasked`: what was observed to change although nobody asked. `idle`: what was asked to
    change and is what it was. `precision`: head's. `base_noise`, `head_noise`: how far another batch moves a row, from the traces.
    `loaders`: what loaded each.
    """

    because: frozenset[str] = frozenset()
    unasked: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()
    precision: str = "fp32"
    base_noise: float = 0.0
    head_noise: float = 0.0
    scales: tuple[tuple[str, float, float], ...] = ()
    loaders: tuple[str, str] = ("", "")

    @property
    def is_behavioural(self) -> bool:
        """True where something was asked to change that moves rows as it likes."""
        return bool(self.because & BEHAVIOURAL)

    @cached_property
    def asked(self) -> str:
        """What was asked to change, in words."""
        return ", ".join(sorted(self.because))


def change_of(base: Run, head: Run, name: str) -> Change | None:
    """Return what changed of a subject between two runs; None where one of them does not describe it."""
    records = [{s.model: s for s in run.subjects}.get(name) for run in (base, head)]
    if records[0] is None or records[1] is None:
        return None
    sides = [(_asked(r), _observed(r, run)) for r, run in zip(records, (base, head), strict=True) if r is not None]
    asked, moved = (_differing(*(side[k] for side in sides)) for k in (0, 1))
    stems = {PurePath(str(side[0].get("weights", ""))).stem for side in sides}
    if "weights" not in moved and (len(stems) == 1 or "loader" in asked):
        asked.discard("weights")  # the same ones in another container, or by another loader, which names them otherwise
    precision = str(sides[1][0].get("precision", ""))
    because = asked | (moved & {"device"} if precision in LOW_PRECISIONS else set())
    # Numbers of another precision hash differently: the rows tell whether they are the same weights.
    explained = because | {"device"} | ({"weights"} if asked & (NUMERIC - {"device"}) else set())
    observed = [side[1] for side in sides]
    idle = {key for key in asked & set(observed[0]) & set(observed[1]) if _is_stated(key, sides[0][0], sides[1][0])}
    noise = [float((trace_in(run, name) or {}).get("batches", 0.0)) for run in (base, head)]
    scales = {key: [float(r.observed[key]) for r in records if r and key in r.observed] for key in SCALES}
    if (
        len(scales["logit_bias"]) == 1 and len(scales["logit_scale"]) == 2
    ):  # one who states its scale and no bias has none
        scales["logit_bias"] = [float(r.observed.get("logit_bias", 0.0)) for r in records if r]
    return Change(
        frozenset(because),
        frozenset(moved - explained),
        frozenset(idle - moved),
        precision,
        noise[0],
        noise[1],
        tuple((key, both[0], both[1]) for key, both in scales.items() if len(both) == 2),
        (_loader(records[0]), _loader(records[1])),
    )


def _loader(record: SubjectRecord) -> str:
    """What loaded a subject, with what it was asked to load."""
    loader, weights = (str(record.asked.get(key, "")) for key in ("loader", "weights"))
    if loader.partition(" ")[0] == "factory":
        return loader if " " in loader else f"factory {record.model}"
    return weights if weights.startswith(f"{loader}:") else f"{loader} {weights}".strip()


def _asked(record: SubjectRecord) -> JsonObject:
    """What was chosen, by what it changes; keys of an encoder's own config that say nothing known are its loader."""
    asked = {key: value for key, value in record.asked.items() if key in NUMERIC | BEHAVIOURAL and key != "device"}
    config = record.asked.get("config") or {}
    known = {key: value for key, value in config.items() if key in NUMERIC | BEHAVIOURAL}
    rest = {key: value for key, value in config.items() if key not in known}
    return asked | known | ({"loader": [known.get("loader", asked.get("loader")), rest]} if rest else {})


def _observed(record: SubjectRecord, run: Run) -> JsonObject:
    found = {key: value for key, value in record.observed.items() if key in NUMERIC | BEHAVIOURAL}
    machine = run.environment.get("machine", {})
    where = machine.get("accelerator") or machine.get("processor") or ""
    return found | ({"device": [str(found["device"]).partition(":")[0], where]} if "device" in found else {})


def _differing(one: JsonObject, other: JsonObject) -> set[str]:
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


def _is_stated(key: str, base: JsonObject, head: JsonObject) -> bool:
    """Is this a wish, before and after? Leaving an option out is none."""
    return bool(base.get(key)) and bool(head.get(key)) and key != "device"


def subject_verdict(change: Change) -> tuple[Outcome, str]:
    """Return whether the subject is what was asked for: an upgrade may load another activation, a tag be uploaded anew."""
    if change.unasked:
        return "inconclusive", f"{', '.join(sorted(change.unasked))} changed, and nobody asked for it"
    if change.idle:
        return "inconclusive", f"{', '.join(sorted(change.idle))} was asked to change, and is what it was"
    if not change.because:
        return "pass", "the same as in base"
    was, now = change.loaders
    by = f" ({was} -> {now})" if "loader" in change.because and was != now else ""
    return "pass", f"what was asked for: {change.asked} changed{by}"


def trace_verdict(base: JsonObject | None, head: JsonObject, change: Change, rules: Rules) -> tuple[Outcome, str]:
    """Return whether the head gives the same rows again: in the same batch, and as nearly as its precision in others."""
    ceiling, moves = rules.ceiling(change.precision), rules.moves
    repeat, batches = (float(head.get(key, math.nan)) for key in ("repeat", "batches"))
    knows_its_items_alone = "error" in head and base is not None and "error" in base
    if "error" in head and not knows_its_items_alone:
        return "fail", f"the trace could not be made: {head['error']}"
    if not repeat <= moves.repeat and not knows_its_items_alone:  # written so that NaN fails
        return "fail", f"the same batch twice gives rows {repeat:.3g} apart, allowed {moves.repeat:g}"
    if not batches <= ceiling and not knows_its_items_alone:
        return "fail", f"another batch size moves a row by {batches:.3g}, allowed {ceiling:g} in {change.precision}"
    for tower, again in sorted((head.get("again") or {}).items()):
        if not float(again["largest"]) <= ceiling:
            named = f": {', '.join(again['items'][:5])}" if again.get("items") else ""
            reason = f"{again['n']} {tower} encoded twice: one is {float(again['largest']):.3g} away from its own row"
            return "fail", f"{reason}, allowed {ceiling:g}{named}"
    if knows_its_items_alone:
        return (
            "pass" if head.get("again") else "note"
        ), "the encoder takes its own items alone: it has no trace of the fixed ones"
    if batches > 3 * max(change.base_noise, ceiling / 10) and not change.because:
        return (
            "inconclusive",
            f"rows depend on their batch more than base's: {batches:.3g}, base {change.base_noise:.3g}",
        )
    return "pass", f"repeats: {repeat:.1g} in the same batch, {batches:.1g} in others"


@dataclass(frozen=True)
class Moved:
    """How one tower's rows moved on the items that both runs have. `distances`: (n,) float64 of unit rows, by their sketches.

    `items`: those that the reason names, and whatever else moved although nothing was asked to change, the farthest first.
    """

    outcome: Outcome
    state: State
    reason: str
    items: tuple[str, ...] = ()
    distances: FloatArray = field(default_factory=lambda: np.zeros(0))

    @property
    def is_equivalent(self) -> bool:
        """True where nothing moved beyond what software, machine, threads and batches explain."""
        return self.state == "equivalent"

    @cached_property
    def median(self) -> float:
        """The median distance; 0 of no items."""
        return float(np.median(self.distances)) if len(self.distances) else 0.0

    @cached_property
    def largest(self) -> float:
        """The largest distance; 0 of no items."""
        return float(self.distances.max(initial=0.0))


@dataclass(frozen=True)
class Shared:
    """Evidence of the items that both runs have with the same content, aligned; and the ids of those with another."""

    base: Evidence
    head: Evidence
    changed: tuple[str, ...]


def shared(base: Evidence, head: Evidence) -> Shared:
    """Return what can be held against each other: items of one id, and of one content."""
    if base.ids == head.ids and np.array_equal(base.contents, head.contents):
        return Shared(base, head, ())
    place = {item: k for k, item in enumerate(head.ids)}
    both = [(k, place[item]) for k, item in enumerate(base.ids) if item in place]
    pixels = len(base.pixels) == len(base.ids) and len(head.pixels) == len(head.ids)

    def is_same(k: int, other: int) -> bool:
        """Of one file, or of one picture: a file that was saved again without a loss is the same."""
        return bool(base.contents[k] == head.contents[other] or (pixels and base.pixels[k] == head.pixels[other]))

    same = [(k, other) for k, other in both if is_same(k, other)]
    return Shared(
        _taken(base, [k for k, _ in same]),
        _taken(head, [other for _, other in same]),
        tuple(base.ids[k] for k, other in both if not is_same(k, other)),
    )


def _taken(evidence: Evidence, places: list[int]) -> Evidence:
    columns: dict[str, Any] = {name: getattr(evidence, name) for name in ("contents", "pixels", "lengths", "sketches")}
    columns = {name: column[places] if len(column) else column for name, column in columns.items()}
    return replace(evidence, ids=tuple(evidence.ids[k] for k in places), **columns)


def listed(ids: Sequence[str]) -> str:
    """Return the first of these names, and how many there are more."""
    return ", ".join(ids[:LISTED]) + (f" and {len(ids) - LISTED:,} more" if len(ids) > LISTED else "")


def rows_moved(b: Evidence, h: Evidence, change: Change, moves: Moves) -> Moved:
    """Return how the rows of these items, aligned, moved from base to head."""
    behavioural, because = change.is_behavioural, change.because
    softened: Outcome = "inconclusive" if behavioural else "fail"

    distances, noise = np.zeros(len(b.ids)), 0.0

    def found(outcome: Outcome, state: State, reason: str, places: Iterable[int] = ()) -> Moved:
        ids = [b.ids[k] for k in places]
        named = f": {listed(ids)}" if ids else ""
        if outcome != "pass" and not because:  # whatever moved unasked, the farthest first
            moved = np.argsort(-distances, kind="stable")[: int(np.sum(distances > max(moves.item, noise)))]
            ids = list(dict.fromkeys([*ids, *(b.ids[k] for k in moved)]))
        return Moved(outcome, state, reason + named, tuple(ids), distances)

    if b.dim != h.dim:
        return found(softened, "void", f"another space: {b.dim} -> {h.dim} dimensions")
    if not len(b.ids):
        return found("inconclusive", "unknown", "no item is in both runs")
    distances = np.linalg.norm((h.sketches.astype(np.float64) - b.sketches) * STEP, axis=1)
    lengths = h.lengths.astype(np.float64), b.lengths.astype(np.float64)
    sound = [np.isfinite(each) & (each > 0) for each in lengths]
    if len(broken := np.flatnonzero(~(sound[0] & sound[1]))):
        return found("fail", "void", f"{len(broken):,} rows are zero or not finite", broken)
    if len(lost := _lost(b, h)):
        return found(
            "fail", "apart", f"{len(lost):,} items have a row that another one has too, and had their own", lost
        )
    median = float(np.median(distances))
    noise = 0.0 if behavioural else min(moves.noise, 4 * max(change.base_noise, change.head_noise))
    swapped = _of_another_item(b, h, distances, 0.1 if behavioural else math.inf)
    if len(swapped) >= 3:
        return found("fail", "apart", f"{len(swapped):,} items have another item's row", swapped)
    ratio = lengths[0] / lengths[1]
    scale, spread = abs(float(np.median(ratio)) - 1), float(np.median(np.abs(ratio - 1)))
    stretch = np.abs(ratio / np.median(ratio) - 1)
    limit = 0.05 if because else 0.01  # a scale of 100, whose logarithm is stored in bf16, is 98.9
    factors = [one for one in change.scales if not abs(one[2] - one[1]) <= limit * abs(one[1])]  # NaN is one
    if median > moves.far or max(scale, spread) > limit or factors:
        what = f"median move {median:.2g}, lengths {scale:+.1%} and {spread:.1%} each"
        what += "".join(f", {name} {before:g} -> {after:g}" for name, before, after in factors)
        return found(softened, "void", f"another space: {what}: stored indexes and cut-offs are void")
    least = float(distances.max())
    if median <= max(moves.median, noise) and least <= max(moves.item, noise) and stretch.max() <= 0.1:
        return found("pass", "equivalent", f"equivalent: moved by {least:.2g} at most")
    if not because & (BEHAVIOURAL - {"weights"}):
        medians, floor = (20.0, 0.3) if behavioural else (8.0 if because else 20.0, 0.02)
        beyond = distances > max(moves.item, noise, floor, _far_off(distances, medians))
        longer = (stretch > max(0.1, _far_off(stretch, medians))) & (not behavioural)
        if len(apart := np.flatnonzero(beyond | longer)):
            apart = apart[np.argsort(-distances[apart], kind="stable")]
            reason = f"{len(apart):,} of {len(distances):,} items moved apart from the others (median {median:.2g})"
            return found(softened, "apart", reason, apart)
    if because and not behavioural and median > moves.plausible:
        return found("inconclusive", "together", f"rows moved by {median:.2g}: more than {change.asked} explains")
    if because:
        reason = f"moved together by {median:.2g}, explained by {change.asked}: quality decides"
        return found("pass", "together", reason)
    reason = f"rows moved (median {median:.2g}, at most {least:.2g}) and nothing was asked to change"
    return found("inconclusive", "together", reason, np.argsort(-distances, kind="stable")[:5])


def _far_off(d: FloatArray, least: float) -> float:
    """What 99 of 100 benign sets of that size stay below: `least` medians, or up to 20 where the quartiles tell of a heavy tail.

    The lower quartile counts too, which a third of broken items does not move.
    """
    lower, median, upper = np.quantile(d, (0.25, 0.5, 0.75))
    if not median > 0:
        return 0.0
    from scipy.special import ndtri

    spread = math.log(min(upper / median, (median / max(lower, 1e-9)) ** 2)) / 0.674
    return float(median * max(least, min(20.0, math.exp(-spread * ndtri(0.01 / len(d))))))


def _lost(b: Evidence, h: Evidence) -> IntArray:
    """Items whose head sketch is another item's although their base sketches were well apart."""
    cells = np.ascontiguousarray(h.sketches // GRID)
    _, group = np.unique(cells.view(np.dtype((np.void, cells.dtype.itemsize * cells.shape[1]))), return_inverse=True)
    sizes, order = np.bincount(group.ravel()), np.argsort(group.ravel(), kind="stable")
    ends = np.cumsum(sizes)
    found: list[int] = []
    for number in np.flatnonzero(sizes > 1):
        members = order[ends[number] - sizes[number] : ends[number]]
        was, now = (_apart(one.sketches[members]) for one in (b, h))
        found += members.tolist() if was > max(0.1, 8 * now) else []
    return np.array(sorted(found), dtype=np.int64)


def _apart(sketches: npt.NDArray[np.int16]) -> float:
    """The largest distance from the first of these sketches."""
    return float(np.linalg.norm((sketches - sketches[0].astype(np.float64)) * STEP, axis=1).max())


def _of_another_item(b: Evidence, h: Evidence, d: FloatArray, limit: float) -> IntArray:
    """Items of those that moved far whose head row is much nearer to another item's base row than to their own."""
    far = np.flatnonzero(d > 0.1)
    far = far[:: max(1, len(far) // SOUGHT)]
    if not len(far):
        return far
    from scipy.spatial import cKDTree

    nearest, who = cKDTree(b.sketches * STEP).query(h.sketches[far] * STEP)
    return np.asarray(far[(who != far) & (nearest < np.minimum(d[far] / 4, limit))], dtype=np.int64)
