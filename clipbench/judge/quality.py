"""Outcomes of one result held against base's: is it as good as it was?

Where the rows of both towers are equivalent, outcomes must be equal but for near ties, else scoring changed. Otherwise each headline
metric must be shown to be not worse by more than a tolerance (paired non-inferiority), on enough witnesses; a significant loss
beyond it fails. What is too small for that passes as a checklist or as a sample of a larger set, or is inconclusive.

Passing is not corrected for being several (intersection-union test, Berger 1982); failing is (Holm, within a result).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from clipbench.embed.evidence import STEP
from clipbench.judge.rows import Change, Moved, listed, shared
from clipbench.judge.tolerances import Declared, Rules
from clipbench.redact import pseudonym
from clipbench.statistics import (
    Interval,
    drop_upper_bound,
    fewest,
    flip_test,
    holm,
    items_that_decide,
    mcnemar,
    mean_change,
    paired_difference_interval,
)  # fmt: skip
from clipbench.types import (
    Answers,
    Evidence,
    FloatArray,
    IntArray,
    Matrix,
    MetricSpec,
    Outcome,
    Result,
    Tower,
    Verdict,
    overall,
    short,
)  # fmt: skip

ROUNDING = 1e-9
SOFTMAX_GAIN = 0.5
"""A softmax at scale s moves by at most s / 2 times the largest move of a cosine: s p (1 - p) * 2, p (1 - p) <= 1 / 4."""
CLASS_ALPHA = 0.001
MOST_SLICES = 20
FEW_CHANGES = 3
UNEXPLAINED = 0.02
"""The share of outcomes that near ties may change where no margin says which they are: acc5, average precision."""
FEWEST_TO_PLAN, PLANNED_FLIPS = 100, 0.01
"""A smaller set does not tell how many items flip: then as many are planned for as bf16 and int8 flip at most."""


def incomparable(one: Result, other: Result, items: bool = True) -> tuple[str, ...]:
    """Return why the scores of two results may not be compared, in words; empty when they may.

    They may exactly when protocol, class list and items (the fingerprint) are equal: how they were made does not matter. Without
    `items` the protocol alone is asked for.
    """
    found = []
    if items and one.dataset.fingerprint != other.dataset.fingerprint:
        prints = (d.fingerprint[:12] or "none" for d in (one.dataset, other.dataset))
        found.append(f"other items (fingerprint {' -> '.join(prints)})")
    if items and one.dataset.n != other.dataset.n:
        found.append(f"n {one.dataset.n:,} -> {other.dataset.n:,}")
    before, after = one.protocol.entries(), other.protocol.entries()
    differing = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    return (*found, *(f"{key} {short(before.get(key))} -> {short(after.get(key))}" for key in differing))


@dataclass(frozen=True)
class PairedOutcomes:
    """One metric's outcomes on the items that both runs scored, (n,) float64, in base's order; `missing`, `new`: ids of one alone.

    `witnesses`: (n,) int64, which outcomes are not independent (items of one file, one content), None where all are. Outcomes of
    classes (`is_of_classes`) are all there are: what varies is the `n_items` behind them.
    """

    spec: MetricSpec
    ids: tuple[str, ...]
    base: FloatArray
    head: FloatArray
    witnesses: IntArray | None
    missing: tuple[str, ...]
    new: tuple[str, ...]
    is_of_classes: bool = False
    n_items: int = 0

    @cached_property
    def is_binary(self) -> bool:
        return self.spec.kind == "rate" and bool(np.isin([self.base, self.head], (0.0, 1.0)).all())

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.base).all() and np.isfinite(self.head).all()) and len(self.ids) > 0

    @cached_property
    def n(self) -> int:
        """How many independent witnesses there are."""
        if self.is_of_classes:
            return self.n_items
        return len(self.ids) if self.witnesses is None else int(self.witnesses.max(initial=-1)) + 1

    @cached_property
    def change(self) -> FloatArray:
        """Head minus base, (n,)."""
        return np.asarray(self.head - self.base)

    @property
    def lost(self) -> int:
        return int(np.sum(self.change < -1e-6))

    @property
    def gained(self) -> int:
        return int(np.sum(self.change > 1e-6))

    @cached_property
    def interval(self) -> Interval | None:
        """The two-sided 95 % interval of head minus base; None for one witness."""
        if self.is_binary and not self.is_of_classes:
            return paired_difference_interval(self.base, self.head, clusters=self.witnesses)
        low, high = (mean_change(sign * self.change, self.n, 0.025, self.witnesses) for sign in (1, -1))
        return (low, -high) if len(self.ids) > 1 else None

    def lower(self, alpha: float) -> float:
        """Return the one-sided lower limit of head minus base."""
        if self.is_binary and not self.is_of_classes:
            return -drop_upper_bound(self.base, self.head, alpha, self.witnesses)
        return mean_change(self.change, self.n, alpha, self.witnesses)

    def p_worse(self) -> float:
        """Return how likely as large a loss is if either direction is equally likely."""
        if self.is_binary and self.witnesses is None:
            return mcnemar(self.base, self.head).p_worse
        return flip_test(self.change, self.witnesses)

    def flips(self) -> str:
        words = ("lost", "gained") if self.is_binary else ("fell", "rose")
        return f"{self.lost:,} {words[0]}, {self.gained:,} {words[1]} of {len(self.ids):,}"

    def of(self, places: IntArray) -> "PairedOutcomes":
        """Return the outcomes of these places alone."""
        inverse = None if self.witnesses is None else np.unique(self.witnesses[places], return_inverse=True)[1]
        ids = tuple(self.ids[k] for k in places)
        return replace(self, ids=ids, base=self.base[places], head=self.head[places], witnesses=inverse)


@dataclass(frozen=True)
class Pair:
    """A result of the base and the head's result of the same experiment, model and data set."""

    base: Result
    head: Result

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics that both have."""
        return [metric for metric in self.base.scores if metric in self.head.scores]

    @cached_property
    def outcomes(self) -> Mapping[str, PairedOutcomes]:
        found = {metric: self._outcomes(metric) for metric in self.metrics}
        return {metric: outcomes for metric, outcomes in found.items() if outcomes is not None}

    def _outcomes(self, metric: str) -> PairedOutcomes | None:
        base, head = (r.scores[metric].outcomes for r in (self.base, self.head))
        if base is None or head is None:
            return None
        place, there = {item: k for k, item in enumerate(head.ids)}, set(base.ids)
        kept = [k for k, item in enumerate(base.ids) if item in place and item not in self.changed]
        names = tuple(base.ids[k] for k in kept)
        before = np.asarray(base.values, dtype=np.float64)[kept]
        after = np.asarray(head.values, dtype=np.float64)[[place[item] for item in names]]
        missing = tuple(item for item in base.ids if item not in place)
        new = tuple(item for item in head.ids if item not in there)
        is_of_classes = base.axis == "classes"
        if is_of_classes and self.has_other_items:
            return self._recall_on_shared(metric)
        clusters = None if base.clusters is None else np.asarray(base.clusters)[kept]
        witnesses = None if is_of_classes else witnesses_of(names, clusters, self.base.evidence.get("images"))
        spec = self.base.scores[metric].spec
        return PairedOutcomes(spec, names, before, after, witnesses, missing, new, is_of_classes, self.base.dataset.n)

    @cached_property
    def changed(self) -> frozenset[str]:
        """Items of one id and another content or label: their outcomes say nothing of the model."""
        found = set(self.relabelled)
        for tower, before in self.base.evidence.items():
            after = self.head.evidence.get(tower)
            found |= set(shared(before, after).changed) if after is not None else set()
        return frozenset(found)

    @cached_property
    def relabelled(self) -> tuple[str, ...]:
        """Items that have another label in head, in base's order."""
        found: dict[str, None] = {}
        for name, before in self.base.answers.items():
            after = self.head.answers.get(name)
            if after is None or before.labels is None or after.labels is None:
                continue
            old, new = (
                np.asarray(a.candidates)[labels] for a, labels in ((before, before.labels), (after, after.labels))
            )
            place = {item: k for k, item in enumerate(after.ids)}
            found |= {item: None for k, item in enumerate(before.ids) if item in place and old[k] != new[place[item]]}
        return tuple(found)

    @cached_property
    def has_other_items(self) -> bool:
        """True where one of the two scored pictures that the other did not."""
        if self.changed:
            return True
        ids = [set(r.evidence["images"].ids) if "images" in r.evidence else None for r in (self.base, self.head)]
        return ids[0] != ids[1]

    def _recall_on_shared(self, metric: str) -> PairedOutcomes | None:
        """Per-class recall on the items that both scored, by what they were taken for; None where that is not known."""
        spec = self.base.scores[metric].spec
        answers = [r.answers.get(spec.answers) for r in (self.base, self.head)]
        place = [{item: k for k, item in enumerate(a.ids)} if a is not None else {} for a in answers]
        ids = [item for item in place[0] if item in place[1] and item not in self.changed]
        found: list[FloatArray] = []
        for a, at in zip(answers, place, strict=True):
            if a is None or a.labels is None or not ids:
                return None
            rows = [at[item] for item in ids]
            labels, hits = a.labels[rows], (a.margins[rows] > 0).astype(np.float64)
            counts = np.bincount(labels, minlength=len(a.candidates))
            found.append((np.bincount(labels, hits, len(a.candidates)) / np.maximum(counts, 1))[counts > 0])
            names = tuple(np.asarray(a.candidates)[counts > 0].tolist())
        if len(found[0]) != len(found[1]):
            return None
        return PairedOutcomes(spec, names, found[0], found[1], None, (), (), True, len(ids))

    def verdict(self, outcome: Outcome, reason: str, metric: str = "", kind: str = "quality") -> Verdict:
        """Return a verdict of this pair, with the values and flips of the metric."""
        before, after = (r.scores[metric].value if metric in r.scores else None for r in (self.base, self.head))
        n = self.base.scores[metric].n if metric in self.base.scores else self.base.dataset.n
        found = Verdict(self.base.key, metric, kind, outcome, reason, base=before, head=after, n=n)
        paired = self.outcomes.get(metric)
        if paired is None or not paired.is_finite:
            return found
        return replace(found, lost=paired.lost, gained=paired.gained, interval=paired.interval)


def witnesses_of(ids: Sequence[str], clusters: npt.NDArray[np.str_] | None, images: Evidence | None) -> IntArray | None:
    """Return (n,) which outcomes go by one witness: a declared cluster, one file, one picture, however often it was stored.

    None where each is its own. `clusters`: the declared ones; those of texts are ids of images.
    """
    columns: list[IntArray] = [] if clusters is None else [np.unique(clusters, return_inverse=True)[1]]
    if images is not None:
        place = {item: k for k, item in enumerate(images.ids)}
        found = [place.get(item, -1) for item in ids]
        if clusters is not None and -1 in found:
            found = [place.get(str(name), -1) for name in clusters]
        if -1 not in found:
            hashes = (images.contents, images.pixels) if len(images.pixels) else (images.contents,)
            columns += [np.unique(each[found], return_inverse=True)[1] for each in hashes]
    columns = [column for column in columns if int(column.max(initial=-1)) + 1 < len(ids)]
    joined = columns[0] if columns else None
    for column in columns[1:]:
        joined = _joined(joined, column)
    return joined


def _joined(one: IntArray | None, other: IntArray) -> IntArray:
    """The finest grouping that neither of two groupings divides."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first = np.zeros_like(other) if one is None else one
    offset = int(first.max()) + 1
    size = offset + int(other.max()) + 1
    edges = coo_array((np.ones(len(other)), (first, other + offset)), shape=(size, size))
    labels = connected_components(edges, directed=False)[1][first]
    return np.asarray(np.unique(labels, return_inverse=True)[1], dtype=np.int64)


@dataclass(frozen=True)
class Larger:
    """A result whose quality was decided by a test, and how far its rows moved: what a smaller sample may lean on."""

    name: str
    n: int
    moved: Mapping[Tower, Moved] = field(default_factory=dict)

    def covers(self, n: int, moved: Mapping[Tower, Moved]) -> bool:
        """True where it is larger, and moved as much: its median at least two thirds, its largest move at least half."""

        def as_much(tower: Tower, own: Moved) -> bool:
            there = self.moved.get(tower)
            if own.is_equivalent or there is None:
                return own.is_equivalent
            return there.median >= own.median * 2 / 3 and there.largest >= own.largest / 2

        return self.n > n and all(as_much(tower, own) for tower, own in moved.items())


def quality(
    pair: Pair, moved: Mapping[Tower, Moved], change: Change, rules: Rules, larger: Sequence[Larger] = ()
) -> list[Verdict]:
    """Return a verdict on each metric, and on the whole result where it says something of its items or its scoring.

    `moved`: how the rows of its towers did. `larger`: results of the same model that were decided by a test.
    """
    if obstacles := (*incomparable(pair.base, pair.head, items=False), *_other_candidates(pair)):
        lines = [pair.verdict("note", "not comparable", metric) for metric in pair.metrics]
        return [pair.verdict("inconclusive", f"not comparable: {'; '.join(obstacles)}"), *lines]
    if pair.base.is_counted:
        return [_count(pair, metric) for metric in pair.metrics]
    found = list(_other_items(pair))
    found += _must_pass(pair, rules)
    judge = _Judge(pair, moved, change, rules, larger)
    return [*found, *judge.scoring(), *judge.metrics(), *judge.slices()]


def worse_than_first(pair: Pair, rules: Rules) -> Iterator[Verdict]:
    """Yield a failure for each metric that is significantly worse than the automatic anchor, beyond the tolerance.

    Small losses that passed one by one are seen together here; nothing else is asked of an anchor.
    """
    if incomparable(pair.base, pair.head, items=False):
        return
    asked = {m: o for m, o in pair.outcomes.items() if o.is_finite and rules.declared(pair.base.experiment, o.spec)}
    for (metric, o), p in zip(asked.items(), holm([o.p_worse() for o in asked.values()]), strict=True):
        declared, drop = rules.declared(pair.base.experiment, o.spec), -float(o.change.mean())
        if declared is not None and p <= rules.alpha_fail and drop > declared.allowed(float(o.base.mean())) + ROUNDING:
            reason = f"fell by {drop:.3g} since the first outcomes that this baseline was accepted with (p = {p:.2g}): {o.flips()}"
            yield pair.verdict("fail", reason, metric, "creeping loss")


def decided_by_test(pair: Pair, moved: Mapping[Tower, Moved], rules: Rules, found: Sequence[Verdict]) -> bool:
    """Return whether a result passed, and by a test: its rows moved, and every headline metric has enough witnesses."""
    if all(one.is_equivalent for one in moved.values()) or overall(found) != "pass":
        return False
    for o in pair.outcomes.values():
        declared = rules.declared(pair.base.experiment, o.spec)
        tolerance = declared.allowed(float(o.base.mean())) if declared is not None and o.spec.headline else 0.0
        if 0 < tolerance < 1 and o.n >= fewest(tolerance, rules.alpha):
            return True
    return False


def _other_candidates(pair: Pair) -> Iterator[str]:
    """Queries of another gallery cannot be compared, whatever they found."""
    for name, before in pair.base.answers.items():
        after = pair.head.answers.get(name)
        if after is not None and set(before.candidates) != set(after.candidates):
            counts = f"{len(before.candidates):,} -> {len(after.candidates):,}"
            yield f"{name} has other candidates ({counts}); measure both on the same items"
        if other := sorted(pair.changed.intersection(before.candidates)):
            yield f"{name}: {len(other):,} candidates have other content: {listed(other)}"


def _count(pair: Pair, metric: str) -> Verdict:
    before, after = (r.scores[metric].value for r in (pair.base, pair.head))
    if before == after:
        return pair.verdict("pass", f"{metric} is what it was", metric)
    return pair.verdict("inconclusive", f"{metric} changed: it is another model than it was", metric)


def _other_items(pair: Pair) -> Iterator[Verdict]:
    """Items that are gone, new, or have another label."""
    for ids in filter(None, dict.fromkeys(o.missing for o in pair.outcomes.values())):
        reason = f"{len(ids):,} item(s) of base are gone: {listed(ids)}"
        yield replace(pair.verdict("inconclusive", reason, kind="items"), items=ids)
    for ids in filter(None, dict.fromkeys(o.new for o in pair.outcomes.values())):
        yield replace(pair.verdict("note", f"{len(ids):,} item(s) are new: {listed(ids)}", kind="new"), items=ids)
    if pair.relabelled:
        reason = f"{len(pair.relabelled):,} item(s) have another label: {listed(pair.relabelled)}"
        yield replace(pair.verdict("inconclusive", reason, kind="items"), items=pair.relabelled)


def _must_pass(pair: Pair, rules: Rules) -> Iterator[Verdict]:
    experiment, model, dataset = pair.base.key
    for row in rules.must_pass:
        outcomes = pair.outcomes.get(row.metric)
        is_meant = (row.experiment, row.dataset) == (experiment, dataset)
        if outcomes is None or not is_meant or (row.models and model not in row.models):
            continue
        place = {item: k for k, item in enumerate(outcomes.ids)}
        items = [item if item in place or pseudonym(item) not in place else pseudonym(item) for item in row.items]
        lost = [i for i in items if i in place and outcomes.base[place[i]] > 0 >= outcomes.head[place[i]]]
        absent = [i for i in items if i not in place]
        if lost:
            yield pair.verdict("fail", f"{', '.join(lost)} must pass and does no more ({row.source})", row.metric)
        if absent:
            reason = f"{', '.join(absent)} must pass and was not scored: mend the list of items or the data"
            yield pair.verdict("inconclusive", reason, row.metric)
    must = set(pair.base.provenance.must_pass) | set(pair.head.provenance.must_pass)
    for metric, outcomes in pair.outcomes.items() if must else ():
        if not outcomes.spec.ranked:
            continue
        lost = [
            name
            for k, name in enumerate(outcomes.ids)
            if (name in must or name.rpartition("#")[0] in must) and outcomes.base[k] > 0 >= outcomes.head[k]
        ]
        if lost:
            yield pair.verdict(
                "fail", f"{', '.join(lost)} must pass and does no more (must_pass of the data set)", metric
            )


@dataclass(frozen=True)
class _Judge:
    """The decision on one pair of results, metric by metric."""

    pair: Pair
    moved: Mapping[Tower, Moved]
    change: Change
    rules: Rules
    larger: Sequence[Larger]

    @cached_property
    def is_equivalent(self) -> bool:
        return bool(self.moved) and all(one.is_equivalent for one in self.moved.values())

    @cached_property
    def _p_adjusted(self) -> Mapping[str, float]:
        """The p of a loss of each metric that is asked for, adjusted for their number."""
        asked = [m for m, o in self.pair.outcomes.items() if o.is_finite and self._declared(m) is not None]
        return dict(zip(asked, holm([self.pair.outcomes[m].p_worse() for m in asked]), strict=True))

    def _declared(self, metric: str) -> Declared | None:
        return self.rules.declared(self.pair.base.experiment, self.pair.base.scores[metric].spec)

    def scoring(self) -> Iterator[Verdict]:
        """What is wrong with outcomes that their rows do not explain, and with answers."""
        for name, before in self.pair.base.answers.items():
            after = self.pair.head.answers.get(name)
            if after is not None and self.is_equivalent:
                other = self._surprising_answers(before, after)
                if other:
                    reason = f"rows are equivalent and {len(other):,} are taken for something else: scoring changed"
                    yield replace(self.pair.verdict("fail", f"{reason}: {listed(other)}"), items=tuple(other))
            if after is not None and not self.is_equivalent and self._are_copies(before, after):
                yield self.pair.verdict("inconclusive", "rows moved and no margin did: outcomes of other rows")

    def _are_copies(self, before: Answers, after: Answers) -> bool:
        images = self.moved.get("images")
        if images is None or images.is_equivalent or not len(before.ids) or before.ids != after.ids:
            return False
        return bool(np.array_equal(before.margins, after.margins, equal_nan=True) and np.isfinite(before.margins).any())

    def _surprising_answers(self, before: Answers, after: Answers) -> list[str]:
        """Queries with another first candidate although it was further behind than the rows moved."""
        place = {item: k for k, item in enumerate(after.ids)}
        changed = self.pair.changed
        both = [(k, place[item]) for k, item in enumerate(before.ids) if item in place and item not in changed]
        if not both or not before.top.shape[1] or not after.top.shape[1]:
            return []
        here, there = np.array(both).T
        number = {name: k for k, name in enumerate(before.candidates)}
        renamed = np.array([number.get(name, -1) for name in after.candidates])
        first = renamed[after.top[there, 0]]
        is_first = before.top[here] == first[:, None]
        known = is_first.any(axis=1)
        rank = np.where(known, is_first.argmax(axis=1), before.top.shape[1] - 1)
        behind = before.scores[here, 0] - before.scores[here, rank]
        reach = self._reach(tuple(before.ids[k] for k in here))
        wrong = (first != before.top[here, 0]) & ~(behind <= reach)
        if (
            before.labels is None
        ):  # of several right ones only the best is kept, so that nobody knows how far behind another was
            wrong &= (before.margins[here] < -reach) & (after.margins[there] < -reach)
        return [before.ids[here[k]] for k in np.flatnonzero(wrong)]

    def _reach(self, ids: tuple[str, ...]) -> FloatArray:
        """(n,) by how much the difference of two cosines of each query can have moved: its own row's move and the other tower's."""
        reach = np.full(len(ids), 4 * STEP)
        for tower, moved in self.moved.items():
            shared_ids = self.pair.base.evidence[tower].ids if tower in self.pair.base.evidence else ()
            own = dict(zip(shared_ids, moved.distances, strict=True)) if len(shared_ids) == len(moved.distances) else {}
            mine = [own.get(item, moved.largest) for item in ids]
            candidates = self._is_query(tower, ids)
            reach += 2 * (np.asarray(mine) if candidates else moved.largest)
        return reach

    def _is_query(self, tower: Tower, ids: tuple[str, ...]) -> bool:
        evidence = self.pair.base.evidence.get(tower)
        return evidence is not None and bool(ids) and ids[0] in set(evidence.ids)

    def metrics(self) -> Iterator[Verdict]:
        """A verdict on each metric."""
        for metric in self.pair.metrics:
            outcomes = self.pair.outcomes.get(metric)
            if outcomes is None:
                yield self._without_outcomes(metric)
            elif not outcomes.is_finite:
                yield self.pair.verdict("inconclusive", "an outcome is no number, or there is none", metric)
            else:
                found = self.pair.verdict(*self._decision(metric, outcomes), metric)
                p = self._p_adjusted.get(metric, 1.0)
                is_loss = found.outcome == "pass" and p <= self.rules.alpha_fail and float(outcomes.change.sum()) < 0
                yield replace(found, is_loss=is_loss)

    def _without_outcomes(self, metric: str) -> Verdict:
        before, after = self.pair.base.scores[metric], self.pair.head.scores[metric]
        if before.outcomes is not None and self.pair.has_other_items:
            reason = "its classes were scored on other items: a session with --baseline scores exactly base's"
            return self.pair.verdict("inconclusive", reason, metric)
        if self.is_equivalent:
            near = abs(after.value - before.value) <= self._reach(("",))[0] * self._gain(before.spec)
            if not near:
                return self.pair.verdict("fail", "rows are equivalent and it moved: scoring changed", metric)
            return self.pair.verdict("pass", "rows are equivalent", metric)
        return self.pair.verdict("note", "without outcomes by item nothing can be paired", metric)

    def _gain(self, spec: MetricSpec) -> float:
        gains = [_gain(m) for m in self.pair.base.matrices.values() if m.kind == spec.kind]
        return max([1.0, *gains])

    def _decision(self, metric: str, outcomes: PairedOutcomes) -> tuple[Outcome, str]:
        declared = self._declared(metric)
        if self.is_equivalent and (wrong := self._unexplained(metric, outcomes)):
            return "fail", wrong
        if declared is None:
            return ("pass", "rows are equivalent") if self.is_equivalent else ("note", self._described(outcomes))
        drop, p = -float(outcomes.change.mean()), self._p_adjusted[metric]
        tolerance = declared.allowed(float(outcomes.base.mean()))
        if dead := self._lost_classes(metric, outcomes):
            return "fail", f"classes lost: {listed(dead)}"
        if p <= self.rules.alpha_fail and drop > tolerance + ROUNDING:
            reason = f"fell by {drop:.3g}, more than the {tolerance:.3g} allowed (p = {p:.2g}); {outcomes.flips()}"
            return "fail", reason
        if self.is_equivalent:
            changed = int(np.sum(np.abs(outcomes.change) > 1e-6))
            return "pass", f"rows are equivalent; {changed:,} near tie(s) changed" if changed else "rows are equivalent"
        outcome, reason = self._not_inferior(metric, outcomes, drop, tolerance, p)
        if outcome == "inconclusive" and not outcomes.spec.headline:
            return "note", reason
        return outcome, reason

    def _not_inferior(
        self, metric: str, o: PairedOutcomes, drop: float, tolerance: float, p: float
    ) -> tuple[Outcome, str]:
        """The decision on rows that moved."""
        limits = self.rules.limits
        changes = float(np.abs(o.change).sum())
        if changes > max(FEW_CHANGES, limits.churn * len(o.ids)) and not self.change.is_behavioural:
            return "inconclusive", f"{changes / len(o.ids):.0%} of the items changed: {o.flips()}"
        if not 0 < tolerance < 1:
            nothing = "nothing is allowed, and no number of items excludes every loss"
            return (
                "inconclusive",
                nothing if o.base.any() else "base has no hit, so that nothing can be lost: no evidence",
            )
        if o.n < fewest(tolerance, self.rules.alpha):
            return self._small(metric, o, tolerance)
        if -drop > limits.gain:
            return "inconclusive", f"rose by {-drop:.3g}: too good to be true; look for leaked items or changed labels"
        low = o.lower(self.rules.alpha)
        if low >= -tolerance - ROUNDING:
            reason = f"a drop beyond {tolerance:.3g} is excluded (below {max(-low, 0.0):.2g}); {o.flips()}"
            if p <= self.rules.alpha_fail:
                reason += f"; a loss of {drop:.2g} is significant and within what is allowed"
            return "pass", reason
        change = f"fell by {drop:.3g}" if drop > 0 else f"rose by {-drop:.3g}" if drop < 0 else "stood still"
        reason = f"{change}, could be a drop of {-low:.3g}, allowed {tolerance:.3g}; {o.flips()}"
        return "inconclusive", f"{reason}; {self._enough(o, tolerance)}"

    def _enough(self, o: PairedOutcomes, tolerance: float) -> str:
        """How many items would decide, at this share of flips and this loss."""
        is_planned = len(o.ids) < FEWEST_TO_PLAN
        flips = PLANNED_FLIPS if is_planned else min(0.5, max(float(np.mean(o.change**2)), 1 / len(o.ids)))
        room = tolerance if is_planned else tolerance - max(0.0, -float(o.change.mean()))
        if room < tolerance / 10:
            how = "about" if room > -tolerance / 10 else "more than"
            return f"no number of items is likely to exclude it: the loss is {how} what is allowed"
        items = items_that_decide(flips, room, self.rules.alpha)
        return f"about {float(f'{items:.2g}'):,.0f} items would decide, where {flips:.1%} of them flip"

    def _small(self, metric: str, o: PairedOutcomes, tolerance: float) -> tuple[Outcome, str]:
        """Too few witnesses for a test: a checklist, a sample of something larger, or no answer."""
        few = f"{o.n:,} items decide nothing by themselves"
        widest = self._widest_cosine(o.spec.answers)
        if self.change.because and widest is not None:
            margins = [m for r in (self.pair.base, self.pair.head) if (m := margins_of(r, o)) is not None]
            steady = len(margins) == 2 and bool((np.abs(np.concatenate(margins)) >= 2 * widest).all())
            if not o.lost and steady:
                return "pass", f"a checklist: no item lost, cosines moved by {widest:.2g}, every margin is twice that"
        beside = list(self._exact_beside(metric)) if o.is_of_classes and not o.lost else []
        if beside and all(self._small(m, self.pair.outcomes[m], tolerance)[0] == "pass" for m in beside):
            return "pass", f"it follows from {', '.join(beside)}, which passes"
        leaned = next((one for one in self.larger if one.covers(o.n, self.moved)), None)
        if leaned is not None and all(one.outcome == "pass" for one in self.moved.values()):
            return "pass", f"a sample: {leaned.name} moved as much and is not worse; {o.flips()}"
        return "inconclusive", f"{few}: {o.flips()}; {self._enough(o, tolerance)}"

    def _widest_cosine(self, name: str) -> float | None:
        """The largest change of a cosine, of what both runs have among the first five; None where items are not matched with their own."""
        before, after = (result.answers.get(name) for result in (self.pair.base, self.pair.head))
        if before is None or after is None or not before.ids == before.candidates == after.ids == after.candidates:
            return None
        same = before.top[:, :, None] == after.top[:, None, :]
        moves = np.abs(before.scores[:, :, None].astype(np.float64) - after.scores[:, None, :])[same]
        return float(moves.max(initial=0.0))

    def _described(self, o: PairedOutcomes) -> str:
        return "the same" if not (o.lost or o.gained) else f"{o.flips()}: a description, nothing is claimed of it"

    def _unexplained(self, metric: str, o: PairedOutcomes) -> str:
        """Why outcomes changed more than equivalent rows can make them; "" where they did not."""
        changed = np.abs(o.change) > 1e-6
        if not changed.any():
            return ""
        if o.is_binary and (gaps := self._gaps(o)) is not None:
            wrong = np.flatnonzero(changed & ~(gaps <= self._reach(o.ids)))
            if len(wrong):
                named = listed([o.ids[k] for k in wrong])
                return f"rows are equivalent and {len(wrong):,} outcomes are no near ties: scoring changed: {named}"
            return ""
        if o.spec.kind in ("cosine", "probability"):
            reach = float(self._reach(("",))[0]) * self._gain(o.spec)
            wrong = np.flatnonzero(~(np.abs(o.change) <= reach))
            return f"rows are equivalent and {len(wrong):,} outcomes moved: scoring changed" if len(wrong) else ""
        beside = [self.pair.outcomes[m] for m in self._exact_beside(metric)] if o.is_of_classes else []
        if beside:  # it follows from hits that are judged one by one
            flips = sum(other.lost + other.gained for other in beside)
            return "" if flips else "rows are equivalent, no hit changed and this did: scoring changed"
        share = float(np.abs(o.change).sum()) / len(o.ids)
        allowed = max(UNEXPLAINED, 2 / max(1, o.n_items))  # where no margin says which are near ties
        return f"rows are equivalent and {share:.1%} of it changed: scoring changed" if share > allowed else ""

    def _gaps(self, o: PairedOutcomes) -> FloatArray | None:
        """(n,) by how much each hit or miss is one: the margin where that decides, else the distance to the last that is listed."""
        margins = margins_of(self.pair.base, o)
        if margins is not None and np.array_equal(margins > 0, o.base > 0):
            return np.abs(margins)
        return self._gaps_of_listed(o)

    def _gaps_of_listed(self, o: PairedOutcomes) -> FloatArray | None:
        """(n,) how far the right candidate is behind the last that is listed, in the run that does not list it; inf where both do.

        None unless a hit of base is to be listed: acc5, recall@5.
        """
        gaps = np.full(len(o.ids), np.inf)
        for result, values in ((self.pair.base, o.base), (self.pair.head, o.head)):
            answers = result.answers.get(o.spec.answers)
            place = {item: k for k, item in enumerate(answers.ids)} if answers is not None else {}
            if answers is None or answers.labels is None or not all(item in place for item in o.ids):
                return None
            at = [place[item] for item in o.ids]
            is_out = ~(answers.top[at] == answers.labels[at, None]).any(axis=1)
            is_listed_hit = is_out == (values == 0)
            if values is o.base and not is_listed_hit.all():
                return None
            scores = answers.scores[at].astype(np.float64)
            behind = scores[:, -1] - (scores[:, 0] + answers.margins[at])
            gaps[is_out & is_listed_hit] = np.minimum(gaps, behind)[is_out & is_listed_hit]
        return gaps

    def _exact_beside(self, metric: str) -> Iterator[str]:
        """Metrics of the same answers whose every outcome is explained by a margin."""
        answers = self.pair.base.scores[metric].spec.answers
        for other, o in self.pair.outcomes.items():
            if other != metric and answers and o.spec.answers == answers and o.is_binary and not o.is_of_classes:
                margins = margins_of(self.pair.base, o)
                if margins is not None and np.array_equal(margins > 0, o.base > 0):
                    yield other

    def _lost_classes(self, metric: str, o: PairedOutcomes) -> list[str]:
        """Classes of which too many items are lost, where a joint test over all classes says that something was."""
        answers = self.pair.base.answers.get(o.spec.answers)
        if answers is None or answers.labels is None or answers.ids == answers.candidates or not o.spec.ranked:
            return []
        place = {item: k for k, item in enumerate(answers.ids)}
        if o.is_of_classes or not all(item in place for item in o.ids):
            return []
        of = answers.labels[[place[item] for item in o.ids]]
        net, size = -np.bincount(of, o.change), np.bincount(of)
        limits = self.rules.limits
        named = np.flatnonzero((net >= limits.class_items) & (net >= limits.class_share * size))
        if not len(named) or flip_test(o.change, o.witnesses, of) > CLASS_ALPHA:
            return []
        return [f"{answers.candidates[k]} ({net[k]:.0f} of {size[k]} lost)" for k in named]

    def slices(self) -> Iterator[Verdict]:
        """The same test on each slice that the items name, corrected for their number: what fails is said."""
        for metric, o in self.pair.outcomes.items():
            answers = self.pair.base.answers.get(o.spec.answers)
            declared = self._declared(metric)
            if answers is None or declared is None or answers.ids != o.ids or not o.is_finite:
                continue
            slices = answers.slices
            names = list(slices)[:MOST_SLICES]
            parts = [o.of(slices[name]) for name in names]
            for name, part, p in zip(names, parts, holm([part.p_worse() for part in parts]), strict=True):
                drop, tolerance = -float(part.change.mean()), declared.allowed(float(part.base.mean()))
                if p <= self.rules.alpha_fail and drop > tolerance + ROUNDING:
                    reason = f"slice {name}: fell by {drop:.3g}, allowed {tolerance:.3g} (p = {p:.2g}); {part.flips()}"
                    yield replace(self.pair.verdict("fail", reason, metric), interval=part.interval)


def _gain(matrix: Matrix) -> float:
    """How much the numbers of a matrix may move when a cosine moves by 1; 0 where they are no cosines (counts)."""
    return {"cosine": 1.0, "probability": matrix.scale * SOFTMAX_GAIN, "count": 0.0}[matrix.kind]


def answers_of(result: Result, metric: str) -> Answers | None:
    """Return what the items of a metric were taken for, where the result says so."""
    return result.answers.get(result.scores[metric].spec.answers)


def margins_of(result: Result, outcomes: PairedOutcomes) -> FloatArray | None:
    """Return (n,) margins of the outcomes' items; None where nothing says what they were taken for."""
    answers = result.answers.get(outcomes.spec.answers)
    if answers is None:
        return None
    if answers.ids == outcomes.ids:
        return answers.margins.astype(np.float64)
    place = {item: k for k, item in enumerate(answers.ids)}
    if not all(item in place for item in outcomes.ids):
        return None
    return np.asarray(answers.margins[[place[item] for item in outcomes.ids]], dtype=np.float64)
