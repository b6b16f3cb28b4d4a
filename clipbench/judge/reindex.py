"""Must I re-index? What an index made by the base model is worth to queries of the head model. Pure, imports no torch.

Old and new are base and head. "new on old" is what a service gives that changes the model and keeps its index, "old on old"
what it gives today, "new on new" what a fresh index would give. The answer holds for an index like the sample: a larger one
is denser, and overlaps less.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clipbench.metrics import Floats, Ints, Nearest, hits_at, nearest, overlap
from clipbench.paths import fixtures
from clipbench.result import Metric
from clipbench.statistics import (
    Clusters,
    Float64s,
    bootstrap_interval,
    clustered_wilson_interval,
    paired_difference_interval,
)

Answer = Literal["re-index", "no need", "cannot tell"]
CutOffs = Literal["hold", "break", "cannot tell"]
TODAY, MIXED, BACKWARD, FRESH = "old on old", "new on old", "old on new", "new on new"
KS = (1, 5, 10)


@dataclass(frozen=True)
class ReindexRules:
    """What the answer is held to: fixtures/reindex.toml says what each number is and where it comes from."""

    k: int
    queries: int
    rows: int
    overlap: float
    recall_loss: float
    confidence: float
    quantiles: Sequence[float]
    cutoff_share: float
    source: str


@dataclass(frozen=True)
class Sample:
    """Queries by both models and rows of the same items: `old_*` and `new_*` align item by item.

    `old_queries`, `new_queries`: (queries, dim); `old_rows`, `new_rows`: (rows, dim), the latter None where the items were
    not encoded anew; `clusters`: (queries,) what is resampled together; `truth`: (queries,) int64, each query's right row,
    or None where nobody knows. All unit rows. Old and new dims may differ.
    """

    what: str
    old_queries: Floats
    new_queries: Floats
    old_rows: Floats
    new_rows: Floats | None
    clusters: Clusters
    truth: Ints | None = None


@dataclass(frozen=True)
class CutOff:
    """A cut-off at the `quantile` of today's best scores: the share of queries that pass it today and with the new model.

    `change` is the difference of the shares with its interval.
    """

    quantile: float
    score: float
    today: float
    new: float
    change: Metric


@dataclass(frozen=True)
class Reindex:
    """The answer, its reason in words, and the figures. Figures are keyed by (queries on rows); what was not measured is absent.

    `overlap_today`, `overlap_fresh`: overlap@k with "old on old", with "new on new"; `recall`: by k; `scores`: the quantiles of
    the best score of each query, in the order of `quantiles`; `cutoffs_on`: which search the cut-offs are about.
    """

    what: str
    answer: Answer
    reason: str
    queries: int
    rows: int
    k: int
    overlap_today: Mapping[str, Metric] = field(default_factory=dict)
    overlap_fresh: Mapping[str, Metric] = field(default_factory=dict)
    recall: Mapping[str, Mapping[int, Metric]] = field(default_factory=dict)
    recall_loss: Metric | None = None
    quantiles: Sequence[float] = ()
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    cutoffs: Sequence[CutOff] = ()
    cutoffs_word: CutOffs = "cannot tell"
    cutoffs_on: str = ""


@cache
def reindex_rules() -> ReindexRules:
    """Return fixtures/reindex.toml."""
    return ReindexRules(**tomllib.loads((fixtures() / "reindex.toml").read_text(encoding="utf-8")))


def must_i_reindex(sample: Sample, rules: ReindexRules) -> Reindex:
    """Return the answer for one sample.

    "re-index" where new queries cannot be searched in old rows at all (dims differ), or are shown to do worse there than in a fresh
    index; "no need" where that is excluded; else, and for a sample too small, "cannot tell", with what to supply. Worse is: where
    the truth is known, a recall that is lower by more than `rules.recall_loss`, and then overlap is shown and does not decide
    (other results can be as right); else a mean overlap@k with the fresh index under `rules.overlap`. Without new rows there
    is no fresh index: queries that find in the old rows what is found today need none, of others it cannot be told. Intervals
    are two-sided at `rules.confidence`, clusters resampled whole.

    Raises: ValueError for old queries and old rows, or new queries and new rows, of different dim.
    """
    searches = _searches(sample, rules.k)
    if MIXED not in searches:
        reason = (
            f"dims differ: the index has rows of dim {sample.old_rows.shape[1]}, the new model's queries have "
            f"{sample.new_queries.shape[1]}, so no new query can be searched in it"
        )
        return Reindex(sample.what, "re-index", reason, len(sample.old_queries), len(sample.old_rows), rules.k)
    figures = _figures(sample, searches, rules)
    answer, reason = _answer(sample, figures, rules)
    on = FRESH if answer == "re-index" and FRESH in searches else MIXED
    cutoffs = _cutoffs(searches[TODAY].best, searches[on].best, sample.clusters, rules)
    word = _cutoffs_word(cutoffs, rules) if len(set(sample.clusters)) >= rules.queries else "cannot tell"
    return Reindex(
        sample.what,
        answer,
        reason,
        len(sample.old_queries),
        len(sample.old_rows),
        rules.k,
        **figures,
        quantiles=tuple(rules.quantiles),
        scores={name: tuple(np.quantile(s.best, rules.quantiles).tolist()) for name, s in searches.items()},
        cutoffs=cutoffs,
        cutoffs_word=word,
        cutoffs_on=on,
    )


def _searches(sample: Sample, k: int) -> dict[str, Nearest]:
    sides = {"old": (sample.old_queries, sample.old_rows), "new": (sample.new_queries, sample.new_rows)}
    found = {}
    for name in (TODAY, MIXED, BACKWARD, FRESH):
        queries, rows = sides[name[:3]][0], sides[name[-3:]][1]
        if rows is not None and (name in (TODAY, FRESH) or queries.shape[1] == rows.shape[1]):
            found[name] = nearest(queries, rows, k, sample.truth)
    return found


def _figures(sample: Sample, searches: Mapping[str, Nearest], rules: ReindexRules) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for key, reference in (("overlap_today", TODAY), ("overlap_fresh", FRESH)):
        if reference in searches and len(sample.old_rows) > rules.k:
            others = {name: s for name, s in searches.items() if name != reference}
            figures[key] = {name: _overlap(s, searches[reference], sample, rules) for name, s in others.items()}
    if sample.truth is None:
        return figures
    hits = {name: {k: hits_at(s.ranks, k) for k in KS} for name, s in searches.items() if s.ranks is not None}
    few = len(sample.old_rows)
    figures["recall"] = {
        name: {k: _recall(h, sample.clusters, rules) for k, h in by_k.items() if k < few} for name, by_k in hits.items()
    }
    if FRESH in hits:
        k = max(KS)
        low, high = paired_difference_interval(hits[MIXED][k], hits[FRESH][k], rules.confidence, sample.clusters)
        loss = float(np.mean(hits[FRESH][k])) - float(np.mean(hits[MIXED][k]))
        figures["recall_loss"] = Metric(loss, len(hits[MIXED][k]), low, high)
    return figures


def _overlap(one: Nearest, other: Nearest, sample: Sample, rules: ReindexRules) -> Metric:
    shares = overlap(one, other)
    interval = bootstrap_interval(shares, rules.confidence, sample.clusters)
    return Metric(float(shares.mean()), len(shares), *(interval or (None, None)))


def _recall(hits: npt.NDArray[np.bool_], clusters: Clusters, rules: ReindexRules) -> Metric:
    return Metric(float(np.mean(hits)), len(hits), *clustered_wilson_interval(hits, clusters, rules.confidence))


def _answer(sample: Sample, figures: Mapping[str, Any], rules: ReindexRules) -> tuple[Answer, str]:
    queries, rows = len(set(np.asarray(sample.clusters).tolist())), len(sample.old_rows)
    if queries < rules.queries or rows < rules.rows:
        return "cannot tell", (
            f"{queries} independent queries on {rows} rows are too few (at least {rules.queries} and {rules.rows:,} are asked "
            f"for); supply your own with --index OLD.npy NEW.npy --queries TEXTS.txt, or measure both runs with "
            f"--coco ROOT --save-embeddings"
        )
    if sample.new_rows is None:
        kept: Metric = figures["overlap_today"][MIXED]
        finding = f"new queries find {_of(kept, rules)} of what is found today in the old rows"
        if (kept.low or 0) >= rules.overlap:
            return "no need", finding
        return "cannot tell", (
            f"{finding}; whether a fresh index would find the same is not known: supply the same items encoded by the new "
            f"model, --index OLD.npy NEW.npy (a sample of {rules.rows:,} rows of each will do)"
        )
    shared: Metric = figures["overlap_fresh"][MIXED]
    if (loss := figures.get("recall_loss")) is not None:
        reason = f"recall@{max(KS)} of new queries is {_change(loss)} on old rows than in a fresh index; of its lists they find "
        reason += _of(shared, rules)
        worse, good = loss.low > rules.recall_loss, loss.high <= rules.recall_loss
        asked = f"lower by at most {rules.recall_loss:g}"
    else:
        reason = f"new queries on old rows find {_of(shared, rules)} of what a fresh index gives"
        worse, good = (shared.high or 0) < rules.overlap, (shared.low or 0) >= rules.overlap
        asked = f"{rules.overlap:g} or more"
    if worse or good:
        return ("re-index" if worse else "no need"), reason
    return "cannot tell", f"{reason}; asked: {asked}; supply more queries"


def _change(loss: Metric) -> str:
    word, sign = ("lower", 1) if loss.value >= 0 else ("higher", -1)
    low, high = sorted((sign * (loss.low or 0.0), sign * (loss.high or 0.0)))
    return f"{abs(loss.value):.3f} ({low:.3f} to {high:.3f}) {word}"


def _of(share: Metric, rules: ReindexRules) -> str:
    return f"{share.value:.3f} ({share.low:.3f} to {share.high:.3f}, overlap@{rules.k})"


def _cutoffs(today: Float64s, new: Float64s, clusters: Clusters, rules: ReindexRules) -> tuple[CutOff, ...]:
    found = []
    for quantile in rules.quantiles:
        score = float(np.quantile(today, quantile))
        before, after = today >= score, new >= score
        low, high = paired_difference_interval(before, after, rules.confidence, clusters)
        shares = float(before.mean()), float(after.mean())
        found.append(CutOff(quantile, score, *shares, Metric(shares[1] - shares[0], len(today), low, high)))
    return tuple(found)


def _cutoffs_word(cutoffs: Sequence[CutOff], rules: ReindexRules) -> CutOffs:
    allowed = rules.cutoff_share
    changes = [(c.change.low or 0.0, c.change.high or 0.0) for c in cutoffs]
    if any(low > allowed or high < -allowed for low, high in changes):
        return "break"
    return "hold" if all(-allowed <= low and high <= allowed for low, high in changes) else "cannot tell"
