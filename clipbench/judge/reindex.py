"""Must I re-index? What an index made by the base model is worth to queries of the head model. Imports no torch for saved rows.

Old and new are base and head. "old on old" is what a service gives today, "new on new" what a fresh index would give, "new on old"
(backward compatibility) what a service gives that changes the model and keeps its index. The answer holds for an index like the
sample: a larger one is denser, and overlaps less.

`clipbench compare BASE HEAD --index` takes the rows that both runs saved with `--save-embeddings`; they know which image a caption
belongs to, hence recall. `--index OLD.npy [NEW.npy] --queries TEXTS.txt` takes your own index, or a sample of it: NEW holds the same
items by the head model, without which it cannot be shown that re-indexing would help. TEXTS.txt is encoded here, which imports torch,
by the models that `--model` names: a run file is untrusted, so the names in it are compared with those and never resolved.
`--queries OLD.npy NEW.npy` takes rows encoded where the models live.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from clipbench.errors import UsageError
from clipbench.metrics import Ints, Nearest, hits_at, nearest, overlap
from clipbench.paths import fixtures, read_toml
from clipbench.saved_rows import (
    EmbeddingsFileError,
    Rows,
    SavedRows,
    read_index,
    read_queries,
    read_rows,
    saved_beside,
)
from clipbench.statistics import (
    Clusters,
    Float64s,
    bootstrap_interval,
    clustered_wilson_interval,
    paired_difference_interval,
)
from clipbench.types import ModelIdentity, Result, Run

if TYPE_CHECKING:
    from clipbench.models.zoo import ModelSpec

Answer = Literal["re-index", "no need", "inconclusive"]
CutOffs = Literal["hold", "break", "inconclusive"]
SELF_OLD, CROSS_MODEL, CROSS_REVERSED, SELF_NEW = "old on old", "new on old", "old on new", "new on new"
KS = (1, 5, 10)

_HOW = "measure both with `pytest benchmarks --coco ROOT --save-embeddings`, or give --index OLD.npy NEW.npy --queries TEXTS.txt"
_SAME_MODEL = (
    "both runs have the same weights in the same precision: what differs is software, and texts encoded here would not show "
    "it; encode the queries in both environments and give --queries OLD.npy NEW.npy, or use --save-embeddings in both"
)


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
class SearchSample:
    """Queries by both models and rows of the same items: `old_*` and `new_*` align item by item.

    Queries (queries, dim) and rows (rows, dim) are unit rows, whose dim may differ from old to new; `new_rows` is None where the
    items were not encoded anew. `clusters`: (queries,) what is resampled together; `truth`: (queries,) int64, each query's right
    row, None where nobody knows.
    """

    what: str
    old_queries: Rows
    new_queries: Rows
    old_rows: Rows
    new_rows: Rows | None
    clusters: Clusters
    truth: Ints | None = None


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` queries with its interval at `rules.confidence`, None for both ends where there can be none."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class CutOff:
    """A cut-off at the `quantile` of today's best scores: the shares of queries that pass it `today` and with the `new` model."""

    quantile: float
    score: float
    today: float
    new: float
    change: Estimate


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
    overlap_today: Mapping[str, Estimate] = field(default_factory=dict)
    overlap_fresh: Mapping[str, Estimate] = field(default_factory=dict)
    recall: Mapping[str, Mapping[int, Estimate]] = field(default_factory=dict)
    recall_loss: Estimate | None = None
    quantiles: Sequence[float] = ()
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    cutoffs: Sequence[CutOff] = ()
    cutoffs_word: CutOffs = "inconclusive"
    cutoffs_on: str = ""


@dataclass(frozen=True)
class QueryModels:
    """The models that may encode queries, as the command line names them: one of each for both runs, or base's and head's."""

    models: Sequence[str] = ()
    pretrained: Sequence[str] = ()
    activation: str | None = None
    offline: bool = False


@cache
def reindex_rules() -> ReindexRules:
    """Return fixtures/reindex.toml."""
    return ReindexRules(**read_toml(fixtures() / "reindex.toml"))


def reindex_answers(
    base: tuple[Path, Run],
    head: tuple[Path, Run],
    index: Sequence[Path],
    queries: Sequence[Path],
    by: QueryModels = QueryModels(),
) -> tuple[Reindex, ...]:
    """Return the answers that `compare --index` asks for; `base` and `head` are a run's file and the run in it.

    `index`: [] (the rows saved beside both files), [OLD.npy] or [OLD.npy, NEW.npy]; `queries`: [TEXTS.txt], encoded `by` these
    models, or [OLD.npy, NEW.npy]. One answer per retrieval experiment that both runs saved, else one: "inconclusive" where none was.

    Raises: UsageError for options that cannot be meant, and for texts without a model to encode them; EmbeddingsFileError for a file
    that is absent, damaged, not of this run, or of dims that do not fit; WeightsUnavailableError when weights cannot be had here.
    """
    rules = reindex_rules()
    if len(index) > 2 or len(queries) > 2 or (bool(index) != bool(queries)):
        raise UsageError(
            "--index takes no file (the rows both runs saved), or OLD.npy [NEW.npy] together with --queries TEXTS.txt (or "
            "--queries OLD.npy NEW.npy)"
        )
    if not index:
        return _from_saved(base, head, rules)
    return (_from_own(base[1], head[1], index, queries, by, rules),)


def _from_saved(base: tuple[Path, Run], head: tuple[Path, Run], rules: ReindexRules) -> tuple[Reindex, ...]:
    # One model on either side, whatever its name: then the one replaces the other.
    single = all(len({r.model.name for r in run.results}) == 1 for _, run in (base, head))
    olds, news = (_saved_of(*side) for side in (base, head))
    answers = []
    for old, old_result in olds:
        for new, new_result in news:
            same = (old.experiment, old.dataset.fingerprint) == (new.experiment, new.dataset.fingerprint)
            if not same or not (single or old.model.name == new.model.name):
                continue
            sample = saved_sample(old, new)
            answer = reindex_advice(sample, rules)
            if len(sample.old_rows) == len(old.image_ids) == len(new.image_ids):
                _check_recall(base[0], answer, SELF_OLD, old_result)
                _check_recall(head[0], answer, SELF_NEW, new_result)
            answers.append(answer)
    if not answers:
        reason = f"no retrieval rows of the same data set are saved beside both {base[0]} and {head[0]}; {_HOW}"
        return (Reindex("saved rows", "inconclusive", reason, 0, 0, rules.k),)
    return tuple(answers)


def _saved_of(path: Path, run: Run) -> list[tuple[SavedRows, Result]]:
    """The rows beside a run that belong to one of its results; files of other models, weights and data sets are passed over."""
    results = {(result.experiment, result.model, result.dataset): result for result in run.results}
    rows = [(saved, (saved.experiment, saved.model, saved.dataset)) for saved in map(read_rows, saved_beside(path))]
    return [(saved, results[about]) for saved, about in rows if about in results]


def saved_sample(old: SavedRows, new: SavedRows) -> SearchSample:
    """Return the items that both runs scored, in base's order: captions (one image's are one cluster) as queries, images as rows.

    Raises: EmbeddingsFileError when they share no image.
    """
    places = {name: k for k, name in enumerate(new.image_ids)}
    kept = [k for k, name in enumerate(old.image_ids) if name in places]
    if not kept:
        raise EmbeddingsFileError(f"{old.experiment}: the two runs saved rows of different images; {_HOW}")
    moved = {k: place for place, k in enumerate(kept)}
    texts = {name: k for k, name in enumerate(new.text_ids)}
    asked = [k for k, name in enumerate(old.text_ids) if name in texts and int(old.text_image[k]) in moved]
    truth = np.array([moved[int(old.text_image[k])] for k in asked], dtype=np.int64)
    names = old.model.name if old.model.name == new.model.name else f"{old.model.name} -> {new.model.name}"
    return SearchSample(
        what=f"{names} on {old.experiment} ({old.dataset.name})",
        old_queries=old.text_rows[asked],
        new_queries=new.text_rows[[texts[old.text_ids[k]] for k in asked]],
        old_rows=old.image_rows[kept],
        new_rows=new.image_rows[[places[old.image_ids[k]] for k in kept]],
        clusters=truth,
        truth=truth,
    )


def _check_recall(path: Path, answer: Reindex, search: str, result: Result) -> None:
    """Rows of an older session beside a newer run would answer another question: their recall must be the run's own."""
    for k in KS:
        name, found = f"image_retrieval_recall@{k}", answer.recall.get(search, {}).get(k)
        if found and name in result.scores and abs(found.value - result.scores[name].value) > 1e-9:
            raise EmbeddingsFileError(
                f"{path}: the rows saved beside it give {name} = {found.value:.4f}, the run says "
                f"{result.scores[name].value:.4f}: they are of another session; measure again with --save-embeddings"
            )


def _from_own(
    base: Run, head: Run, index: Sequence[Path], queries: Sequence[Path], by: QueryModels, rules: ReindexRules
) -> Reindex:
    rows = [read_index(path) for path in index]
    if len(rows) == 2 and len(rows[0]) != len(rows[1]):
        raise EmbeddingsFileError(
            f"{index[0]} has {len(rows[0])} rows, {index[1]} has {len(rows[1])}; expected row i of both to be the same item"
        )
    if len(queries) == 2:
        old, new = (read_index(path) for path in queries)
        if len(old) != len(new):
            raise EmbeddingsFileError(
                f"{queries[0]} has {len(old)} rows, {queries[1]} has {len(new)}; expected row i of both to be the same query"
            )
        clusters: Sequence[int] | Sequence[str] = range(len(old))
    else:
        clusters = read_queries(queries[0])
        models = [_the_model(side, run) for side, run in (("BASE", base), ("HEAD", head))]
        if len({replace(model, device="") for model in models}) == 1 and models[0].pretrained != "factory":
            return Reindex(index[0].name, "inconclusive", _SAME_MODEL, 0, 0, rules.k)
        specs = _specs(by, models)
        old, new = (encode_queries(*pair, clusters, by.offline) for pair in zip(specs, models, strict=True))
    for path, one, asked, side in zip(index, rows, (old, new), ("base", "head"), strict=False):
        if one.shape[1] != asked.shape[1]:
            raise EmbeddingsFileError(
                f"{path} has rows of dim {one.shape[1]}, the {side} model's queries have {asked.shape[1]}; expected an index "
                f"that the {side} model made"
            )
    what = f"{index[0].name} ({len(clusters)} queries)"
    sample = SearchSample(what, old, new, rows[0], rows[1] if len(rows) == 2 else None, np.asarray(clusters))
    return reindex_advice(sample, rules)


def _the_model(side: str, run: Run) -> ModelIdentity:
    models = list(dict.fromkeys(result.model for result in run.results))
    if len(models) != 1:
        names = ", ".join(f"{m.name} ({m.pretrained})" for m in models) or "none"
        raise UsageError(f"--queries: {side} has results of {len(models)} models ({names}); expected one: the index's")
    return models[0]


def _specs(by: QueryModels, models: Sequence[ModelIdentity]) -> list["ModelSpec"]:
    """What to load for base and for head: named by the user alone, and the run's model by name."""
    from clipbench.models.zoo import expand, resolve

    names = expand(by.models)
    if not 0 < len(names) < 3 or len(by.pretrained) > 2:
        raise UsageError(
            f"--queries TEXTS.txt is encoded by models that you name, here {len(names)}: add --model NAME (twice where base and "
            "head differ, base's first; --pretrained likewise), or give --queries OLD.npy NEW.npy"
        )
    specs = []
    for side, model, k in (("BASE", models[0], 0), ("HEAD", models[1], -1)):
        (spec,) = resolve([names[k]], by.pretrained[k] if by.pretrained else None, by.activation)
        if spec.name != model.name:
            raise UsageError(
                f"--model {names[k].rest} is {spec.name!r}, but {side} was measured with {model.name!r}; name the run's "
                "own model (--model twice, base's first, where they differ), or give --queries OLD.npy NEW.npy"
            )
        specs.append(spec)
    return specs


def encode_queries(spec: "ModelSpec", model: ModelIdentity, texts: Sequence[str], offline: bool = False) -> Rows:
    """Return (texts, dim) float32 unit rows by the model of `spec`, in the precision of the run's `model`. Imports torch.

    Raises: EmbeddingsFileError when its weights or activation are not the run's; otherwise as loading does.
    """
    from clipbench.embed.embedder import Embedder
    from clipbench.models import load_encoder
    from clipbench.models.device import float32_as_asked, resolve_resources
    from clipbench.models.weights import go_offline
    from clipbench.options import PRECISIONS

    if (precision := next((p for p in PRECISIONS if p == model.precision), None)) is None:
        raise EmbeddingsFileError(f"the run has precision {model.precision!r}, expected one of {', '.join(PRECISIONS)}")
    if offline:
        go_offline()
    resources = resolve_resources("auto", precision, None, 0)
    encoder = load_encoder(spec, resources, offline)
    try:
        if encoder.identity.weights_sha256 != model.weights_sha256:
            raise EmbeddingsFileError(
                f"the weights of {spec.label} here (SHA-256 {encoder.identity.weights_sha256[:12]}...) are not the run's "
                f"({model.weights_sha256[:12]!r}...); name the run's with --pretrained, or encode the queries where they are and "
                f"give --queries OLD.npy NEW.npy"
            )
        if encoder.identity.activation != model.activation:
            raise EmbeddingsFileError(
                f"{spec.label} has activation {encoder.identity.activation!r} here, the run's model {model.activation!r}; give "
                f"--activation, or --queries OLD.npy NEW.npy"
            )
        with float32_as_asked(resources.device, resources.precision):
            return Embedder(encoder, resources, optimize=False).texts(texts).rows
    finally:
        encoder.close()


def reindex_advice(sample: SearchSample, rules: ReindexRules) -> Reindex:
    """Return the answer for one sample.

    "re-index" where new queries cannot be searched in old rows at all (dims differ), or do significantly worse there than in a fresh
    index; "no need" where that is excluded; else, and for a sample too small, "inconclusive", with what to supply. Worse is, where
    the truth is known, a recall that is lower by more than `rules.recall_loss` (other results can be as right); else a mean
    overlap@k with the fresh index under `rules.overlap`. Without new rows queries that find what is found today need no new index;
    for others the answer stays open. Intervals are two-sided at `rules.confidence`, clusters resampled whole.
    """
    searches = _searches(sample, rules.k)
    if CROSS_MODEL not in searches:
        reason = (
            f"dims differ: the index has rows of dim {sample.old_rows.shape[1]}, the new model's queries have "
            f"{sample.new_queries.shape[1]}, so no new query can be searched in it"
        )
        return Reindex(sample.what, "re-index", reason, len(sample.old_queries), len(sample.old_rows), rules.k)
    figures = _figures(sample, searches, rules)
    answer, reason = _answer(sample, figures, rules)
    on = SELF_NEW if answer == "re-index" and SELF_NEW in searches else CROSS_MODEL
    cutoffs = _cutoffs(searches[SELF_OLD].best, searches[on].best, sample.clusters, rules)
    word = _cutoffs_word(cutoffs, rules) if len(set(sample.clusters)) >= rules.queries else "inconclusive"
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


def _searches(sample: SearchSample, k: int) -> dict[str, Nearest]:
    queries = {"old": sample.old_queries, "new": sample.new_queries}
    rows = {"old": sample.old_rows, "new": sample.new_rows}
    found = {}
    for name in (SELF_OLD, CROSS_MODEL, CROSS_REVERSED, SELF_NEW):
        asked, index = queries[name[:3]], rows[name[-3:]]
        if index is not None and (name[:3] == name[-3:] or asked.shape[1] == index.shape[1]):
            found[name] = nearest(asked, index, k, sample.truth)
    return found


def _figures(sample: SearchSample, searches: Mapping[str, Nearest], rules: ReindexRules) -> dict[str, Any]:
    confidence, clusters, count = rules.confidence, sample.clusters, len(sample.old_queries)
    figures: dict[str, Any] = {}
    for key, reference in (("overlap_today", SELF_OLD), ("overlap_fresh", SELF_NEW)):
        if reference in searches and len(sample.old_rows) > rules.k:
            shares = {name: overlap(s, searches[reference]) for name, s in searches.items() if name != reference}
            figures[key] = {
                name: Estimate(
                    float(share.mean()), count, *(bootstrap_interval(share, confidence, clusters) or (None, None))
                )
                for name, share in shares.items()
            }
    hits = {name: {k: hits_at(s.ranks, k) for k in KS} for name, s in searches.items() if s.ranks is not None}
    if hits:
        figures["recall"] = {
            name: {
                k: Estimate(float(h.mean()), count, *clustered_wilson_interval(h, clusters, confidence))
                for k, h in by_k.items()
                if k < len(sample.old_rows)
            }
            for name, by_k in hits.items()
        }
    if SELF_NEW in hits:
        kept, fresh = hits[CROSS_MODEL][max(KS)], hits[SELF_NEW][max(KS)]
        interval = paired_difference_interval(kept, fresh, confidence, clusters)
        figures["recall_loss"] = Estimate(float(fresh.mean()) - float(kept.mean()), count, *interval)
    return figures


def _answer(sample: SearchSample, figures: Mapping[str, Any], rules: ReindexRules) -> tuple[Answer, str]:
    queries, rows = len(set(np.asarray(sample.clusters).tolist())), len(sample.old_rows)
    if queries < rules.queries or rows < rules.rows:
        return "inconclusive", (
            f"{queries} independent queries on {rows} rows are too few (at least {rules.queries} and {rules.rows:,} are asked "
            f"for); supply your own with --index OLD.npy NEW.npy --queries TEXTS.txt, or measure both runs with "
            f"--coco ROOT --save-embeddings"
        )
    if sample.new_rows is None:
        kept: Estimate = figures["overlap_today"][CROSS_MODEL]
        finding = f"new queries find {_of(kept, rules)} of what is found today in the old rows"
        if (kept.low or 0) >= rules.overlap:
            return "no need", finding
        return "inconclusive", (
            f"{finding}; whether a fresh index would find the same is not known: supply the same items encoded by the new "
            f"model, --index OLD.npy NEW.npy (a sample of {rules.rows:,} rows of each will do)"
        )
    shared: Estimate = figures["overlap_fresh"][CROSS_MODEL]
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
    return "inconclusive", f"{reason}; asked: {asked}; supply more queries"


def _change(loss: Estimate) -> str:
    word, sign = ("lower", 1) if loss.value >= 0 else ("higher", -1)
    low, high = sorted((sign * (loss.low or 0.0), sign * (loss.high or 0.0)))
    return f"{abs(loss.value):.3f} ({low:.3f} to {high:.3f}) {word}"


def _of(share: Estimate, rules: ReindexRules) -> str:
    return f"{share.value:.3f} ({share.low:.3f} to {share.high:.3f}, overlap@{rules.k})"


def _cutoffs(today: Float64s, new: Float64s, clusters: Clusters, rules: ReindexRules) -> tuple[CutOff, ...]:
    found = []
    for quantile in rules.quantiles:
        score = float(np.quantile(today, quantile))
        before, after = today >= score, new >= score
        low, high = paired_difference_interval(before, after, rules.confidence, clusters)
        shares = float(before.mean()), float(after.mean())
        found.append(CutOff(quantile, score, *shares, Estimate(shares[1] - shares[0], len(today), low, high)))
    return tuple(found)


def _cutoffs_word(cutoffs: Sequence[CutOff], rules: ReindexRules) -> CutOffs:
    allowed = rules.cutoff_share
    changes = [(c.change.low or 0.0, c.change.high or 0.0) for c in cutoffs]
    if any(low > allowed or high < -allowed for low, high in changes):
        return "break"
    return "hold" if all(-allowed <= low and high <= allowed for low, high in changes) else "inconclusive"
