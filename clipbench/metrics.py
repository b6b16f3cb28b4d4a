"""Pure numpy: scores -> one outcome per item. Means and intervals are taken one layer up (`experiments`, `judge`).

Ties always count against the model: an item is right only where its own score is higher than every competitor's, so a model that
gives everything the same row scores 0, not 1. Scores within `TIE` of each other, relative to the largest there is, are ties: the
same two rows multiplied at another place of a matrix differ by about 1e-16 (blocked BLAS kernels). Unequal float32 scores are
further apart.

Exact search (`nearest`) holds only a block of the (queries, rows) scores. A block is first scored in float32, which takes half the
time, and only to rule out: what float32's largest error cannot rule out is scored again, and float64 decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

TIE = 1e-12
TOP = 5

_QUERIES, _ROWS, _CELLS, _KEPT = 8192, 4096, 1 << 22, 1 << 20
"""At most at once: queries, rows, scores (queries x rows; 17 MB in float32), pairs kept (queries x k)."""
_PAIRS = 64
"""Pairs scored together: few, so that their rows stay in the processor's cache."""
_CROWDED = 32
"""Where one pair in so many must be scored in float64, the whole block is: by the pair it would take longer."""

Floats = npt.NDArray[np.floating[Any]]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_Best = tuple[Float64s, Ints]


class TakenFor(NamedTuple):
    """What queries were taken for: `top` (queries, k) int32 candidates, best first, k at most 5, their `scores` (queries, k)
    float32, and `margins` (queries,) float32, the best right score minus the best wrong one."""

    top: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    margins: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ranked:
    """`ranks` (queries,) int64: how many wrong candidates score at least as high as the best right one; and what was picked."""

    ranks: Ints
    taken_for: TakenFor


@dataclass(frozen=True)
class Retrieval:
    """Both ways: each text among all images, each image among all texts."""

    text_to_image: Ranked
    image_to_text: Ranked


@dataclass(frozen=True)
class PerClass:
    """`values` (present,) float64 of the classes that can be measured; `classes` (present,) int64, ascending."""

    classes: Ints
    values: Float64s


@dataclass(frozen=True)
class Nearest:
    """`top`: (queries, k) int64, the nearest rows, best first. `best`: (queries,) float64, the nearest row's cosine.

    `ranks`: (queries,) int64, how many rows score at least as high as the query's own (0 is best); None without truth.
    """

    top: Ints
    best: Float64s
    ranks: Ints | None = None


def text_to_image_hits(similarity: Floats) -> Bools:
    """Return (n,) bool: is a text's own image its best?

    `similarity`: (texts, images) float, square, own pairs on the diagonal. A tie is a miss.
    Raises: ValueError for a matrix that is not square, not finite, or smaller than 2 x 2 (there a hit would say nothing).
    Source: openai/CLIP notebooks/Interacting_with_CLIP.ipynb, its 8 x 8 matrix read by rows.
    """
    return _leads(similarity)[0] > 0


def image_to_text_hits(similarity: Floats) -> Bools:
    """Return (n,) bool: is an image's own text its best? `similarity`: (texts, images), read by columns.

    Ties, `Raises:` and `Source:` as `text_to_image_hits`.
    """
    return _leads(similarity)[1] > 0


def margins(similarity: Floats) -> Float64s:
    """Return (n,) float64: own score minus the best wrong cell in its row or column; positive exactly where both hits are, 0 for a tie.

    `similarity` and `Raises:` as `text_to_image_hits`.
    Source: this project; the multi-class margin (own score minus best other), taken both ways.
    """
    return np.minimum(*_leads(similarity))


def grouped_text_to_image_hits(image_emb: Floats, text_emb: Floats, groups: Sequence[Sequence[int]]) -> Bools:
    """Return (sum of group sizes,) bool, group after group: does a text pick its own image out of its group?

    `image_emb`, `text_emb`: (n, dim) float, row i of one belongs to row i of the other; `groups`: rows of each group.
    Chance is 1 / group size, so groups of one size are what can be averaged. A tie is a miss.
    Raises: ValueError for rows of different shape, for NaN or infinity, for no group, for a group of fewer than two.
    Source: the study's medical experiment, a matrix of eight, repeated over a larger collection.
    """
    if image_emb.shape != text_emb.shape:
        raise ValueError(
            f"image_emb {image_emb.shape} and text_emb {text_emb.shape}: expected one image row for each text row"
        )
    if len(groups) == 0:
        raise ValueError("groups: got none, expected at least one group of rows")
    images, texts = _finite(image_emb, "image_emb"), _finite(text_emb, "text_emb")
    rows = [_indices(group, "a group", len(group), len(images)) for group in groups]
    return np.concatenate([text_to_image_hits(texts[group] @ images[group].T) for group in rows])


def label_ranks(scores: Floats, labels: npt.ArrayLike) -> Ints:
    """Return (images,) int64: how many other classes score at least as high as an image's own (0 is best).

    `scores`: (images, classes) float; `labels`: (images,) int in 0..classes-1. Accuracy at k is the mean of `hits_at(ranks, k)`.
    Raises: ValueError for NaN or infinity in scores, no image, labels of another length or outside the classes.
    Source: openai/CLIP notebooks/Prompt_Engineering_for_ImageNet.ipynb and LAION-AI/CLIP_benchmark, `accuracy`.
    """
    table = _finite(scores, "scores")
    own = _indices(labels, "labels", len(table), table.shape[1])
    least = table[np.arange(len(table)), own] - _allowance(table)
    return np.asarray((table >= least[:, None]).sum(axis=1) - 1, dtype=np.int64)


def ranked(scores: Floats, own: npt.ArrayLike) -> Ranked:
    """Return `label_ranks` and what each query was taken for. `scores`: (queries, candidates) float; `own`: (queries,) int, the right one.

    A candidate that ties with the right one stands before it.
    Raises: ValueError as `label_ranks`.
    """
    ranks, table = label_ranks(scores, own), np.array(scores, dtype=np.float64)
    right, every = np.asarray(own, dtype=np.int64), np.arange(len(table))
    own_scores = table[every, right]
    table[every, right] = -np.inf
    return Ranked(ranks, _taken_for(_best(table, 0), ranks, right, own_scores))


def multilabel_answers(scores: Floats, relevant: Bools) -> TakenFor:
    """Return what each image was taken for. `scores`: (images, classes) float; `relevant`: (images, classes) bool.

    Among tied classes the wrong ones come first. The margin of an image without a right class, or without a wrong one, is NaN.
    Raises: ValueError for NaN or infinity, no image, and shapes that differ.
    """
    table, truth = _scores_and_truth(scores, relevant)
    right, wrong = (np.where(kind, table, -np.inf).max(axis=1) for kind in (truth, ~truth))
    allowance = _allowance(table)
    margins = np.where(np.abs(right - wrong) <= allowance, 0.0, right - wrong)
    margins[~np.isfinite(margins)] = np.nan
    _, top = _best(np.where(truth, np.nextafter(table - allowance, -np.inf), table), 0)
    found = np.take_along_axis(table, top, axis=1)
    return TakenFor(top.astype(np.int32), found.astype(np.float32), margins.astype(np.float32))


def hits_at(ranks: Ints, k: int) -> Bools:
    """Return bool of the shape of `ranks`: is the 0-based rank among the first k? Always true where k >= candidates.

    Raises: ValueError for k < 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}, expected 1 or more")
    return np.asarray(ranks) < k


def per_class_recall(hits: Bools, labels: npt.ArrayLike, n_classes: int) -> PerClass:
    """Return the share of hits among the images of each class; classes without an image are left out.

    `hits`: (images,) bool; `labels`: (images,) int. The mean of `values` is the mean per-class recall.
    Raises: ValueError for no image, labels of another length than hits, or labels outside 0..n_classes-1.
    Source: scikit-learn, `balanced_accuracy_score`, as used by LAION-AI/CLIP_benchmark.
    """
    own = _indices(labels, "labels", len(hits), n_classes)
    images = np.bincount(own, minlength=n_classes)
    right = np.bincount(own, weights=np.asarray(hits, dtype=np.float64), minlength=n_classes)
    classes = np.flatnonzero(images)
    return PerClass(classes, right[classes] / images[classes])


def average_precision(scores: Floats, relevant: Bools) -> PerClass:
    """Return the average precision of each class that has a relevant image; the others are left out.

    `scores`: (images, classes) float; `relevant`: (images, classes) bool. Among tied images the irrelevant come first.
    The mean of `values` is the mean average precision (clip_benchmark counts a class without a relevant image as 0).
    Raises: ValueError for NaN or infinity, no image, shapes that differ, and when no class has a relevant image.
    Source: scikit-learn, `average_precision_score`; LAION-AI/CLIP_benchmark, `average_precision_per_class`.
    """
    table, truth = _scores_and_truth(scores, relevant)
    classes = np.flatnonzero(truth.any(axis=0))
    if len(classes) == 0:
        raise ValueError(f"relevant: none of {truth.shape[1]} classes has a relevant image, so nothing can be ranked")
    allowance = _allowance(table)
    return PerClass(classes, np.array([_average_precision(table[:, c], truth[:, c], allowance) for c in classes]))


def retrieval(image_emb: Floats, text_emb: Floats, text_image: npt.ArrayLike, block: int = 1024) -> Retrieval:
    """Return the rank of each text's image among all images, and of each image's best text among the others' texts, with the five
    best candidates of each: the wrong ones in their order, the best right one at its rank.

    `image_emb`: (images, dim) float; `text_emb`: (texts, dim) float; `text_image`: (texts,) int, the image of each text.
    `hits_at(ranks, k)` is "at least one correct item in the top k", as CLIP papers count recall. Products are float64's, `block` x
    `block` at a time: neither the whole matrix is held nor a copy of the rows.
    Raises: ValueError for NaN or infinity, no item, dims that differ, text_image of another length or outside the images, an image
    without a text (it has no right answer: leave it out), and block < 1.
    Source: LAION-AI/CLIP_benchmark, zeroshot_retrieval (image_retrieval_recall, text_retrieval_recall).
    """
    if image_emb.ndim != 2 or image_emb.shape[1:] != text_emb.shape[1:] or block < 1:
        raise ValueError(
            f"image_emb {image_emb.shape}, text_emb {text_emb.shape}, block {block}: expected one dim and block >= 1"
        )
    allowance = TIE * _longest(image_emb, "image_emb", block) * _longest(text_emb, "text_emb", block)
    own = _indices(text_image, "text_image", len(text_emb), n := len(image_emb))
    if len(lone := np.flatnonzero(np.bincount(own, minlength=n) == 0)):
        raise ValueError(f"text_image: {len(lone)} of {n} images have no text, first image {lone[0]}; leave them out")
    texts, images = ([slice(s, min(s + block, m)) for s in range(0, m, block)] for m in (len(own), n))
    own_scores, best = np.empty(len(own)), np.full(n, -np.inf)
    for t in texts:
        np.einsum("td,td->t", text_emb[t], image_emb[own[t]], dtype=np.float64, out=own_scores[t])
    np.maximum.at(best, own, own_scores)
    text_ranks, image_ranks = np.zeros(len(own), dtype=np.int64), np.zeros(n, dtype=np.int64)
    best_images = [_none(t.stop - t.start) for t in texts]
    best_texts: list[_Best] = []
    for i in images:
        rows = np.asarray(image_emb[i], dtype=np.float64)
        top = _none(len(rows))
        for k, t in enumerate(texts):
            scores = _scores_of_others(text_emb[t], rows, own[t] - i.start)
            text_ranks[t] += np.count_nonzero(scores >= own_scores[t, None] - allowance, axis=1)
            image_ranks[i] += np.count_nonzero(scores >= best[i] - allowance, axis=0)
            best_images[k] = _merged(best_images[k], _best(scores, i.start))
            top = _merged(top, _best(scores.T, t.start))
        best_texts.append(top)
    best_text = np.zeros(n, dtype=np.int64)
    order = np.argsort(own_scores, kind="stable")
    best_text[own[order]] = order  # the last one written is the best
    others = [
        (np.concatenate([scores for scores, _ in parts]), np.concatenate([columns for _, columns in parts]))
        for parts in (best_images, best_texts)
    ]
    return Retrieval(
        Ranked(text_ranks, _taken_for(others[0], text_ranks, own, own_scores)),
        Ranked(image_ranks, _taken_for(others[1], image_ranks, best_text, best)),
    )


def nearest(queries: Floats, rows: Floats, k: int, own: Ints | None = None) -> Nearest:
    """Return the k nearest rows of each query, all rows where there are fewer than k.

    `queries`: (queries, dim), `rows`: (rows, dim), float16, float32 or float64, in memory or mapped from a file; finite, near unit
    length (scaled to it); `own`: (queries,) int64, the right row of each query. Of tied rows the one of lower number comes first in
    `top`; in `ranks` they count against the query's own.
    Raises: ValueError for dims that differ, no query, no row, or k < 1.
    """
    if queries.ndim != 2 or queries.shape[1:] != rows.shape[1:] or 0 in (len(queries), len(rows)) or k < 1:
        raise ValueError(f"queries {queries.shape}, rows {rows.shape}, k {k}: expected one dim, and k of 1 or more")
    k = min(k, len(rows))
    size = max(1, min(_QUERIES, _KEPT // k))
    parts = [
        _search_block(_unit(queries[s : s + size]), rows, k, None if own is None else own[s : s + size])
        for s in range(0, len(queries), size)
    ]
    ranks = None if own is None else np.concatenate([p.ranks for p in parts if p.ranks is not None])
    return Nearest(np.concatenate([p.top for p in parts]), np.concatenate([p.best for p in parts]), ranks)


def overlap(one: Nearest, other: Nearest) -> Float64s:
    """Return (queries,) float64: the share of a query's nearest rows that both searches list, in whatever order.

    Raises: ValueError for searches of different shape.
    """
    if one.top.shape != other.top.shape:
        raise ValueError(f"tops are {one.top.shape} and {other.top.shape}, expected the same queries and k")
    listed = np.sort(np.concatenate([one.top, other.top], axis=1), axis=1)
    return np.asarray((np.diff(listed, axis=1) == 0).sum(axis=1) / one.top.shape[1], dtype=np.float64)


def _none(n: int) -> _Best:
    return np.empty((n, 0)), np.empty((n, 0), dtype=np.int64)


def _best(scores: Float64s, start: int) -> _Best:
    """The five best of each row, best first, equal ones by column: scores and columns, counted from `start`.

    -inf is no candidate's score.
    """
    left, every = np.array(scores, order="C"), np.arange(len(scores))
    k = min(TOP, scores.shape[1])
    found, columns = np.empty((len(left), k)), np.empty((len(left), k), dtype=np.int64)
    for place in range(k):  # five passes are many times faster than a sort, and `argmax` takes the first of equals
        columns[:, place] = left.argmax(axis=1)
        found[:, place] = left[every, columns[:, place]]
        left[every, columns[:, place]] = -np.inf
    return found, columns + start


def _merged(one: _Best, other: _Best) -> _Best:
    """The five best of two lists of best."""
    scores, columns = (np.concatenate(pair, axis=1) for pair in zip(one, other, strict=True))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(columns, order, axis=1).astype(np.int64)


def _taken_for(others: _Best, ranks: Ints, own: Ints, own_scores: Float64s) -> TakenFor:
    """The best wrong candidates with the right one put in at its rank, where that is among the first five."""
    scores, columns = others
    wrong = int(np.isfinite(scores).sum(axis=1).min())  # fewer than five where few candidates are wrong
    places = np.arange(min(scores.shape[1], wrong + 1))
    is_own, is_before = places == ranks[:, None], places < ranks[:, None]
    shifted = np.where(is_before, places, np.maximum(places - 1, 0))
    top = np.where(is_own, own[:, None], np.take_along_axis(columns, shifted, axis=1))
    found = np.where(is_own, own_scores[:, None], np.take_along_axis(scores, shifted, axis=1))
    margins = own_scores - scores[:, 0]
    margins = np.where(ranks > 0, np.minimum(margins, 0.0), margins)  # a tie is none, whatever its last digit says
    return TakenFor(top.astype(np.int32), found.astype(np.float32), margins.astype(np.float32))


def _leads(similarity: Floats) -> tuple[Float64s, Float64s]:
    """Own score minus the best other one, by row and by column; exactly 0 for a tie."""
    table = _finite(similarity, "similarity")
    if table.shape[0] != table.shape[1] or len(table) < 2:
        raise ValueError(f"similarity is {table.shape}, expected a square (texts, images) matrix of at least two items")
    others = table.copy()
    np.fill_diagonal(others, -np.inf)
    leads = np.diag(table) - np.stack([others.max(axis=1), others.max(axis=0)])
    leads[np.abs(leads) <= _allowance(table)] = 0.0
    return leads[0], leads[1]


def _average_precision(scores: Float64s, truth: Bools, allowance: float) -> float:
    order = np.argsort(-scores, kind="stable")
    tie_group = np.concatenate([[0], np.cumsum(-np.diff(scores[order]) > allowance)])
    ranked = truth[order][np.lexsort((truth[order], tie_group))]
    found = np.flatnonzero(ranked)
    return float(np.mean(np.arange(1, len(found) + 1) / (found + 1)))


def _scores_and_truth(scores: Floats, relevant: Bools) -> tuple[Float64s, Bools]:
    table, truth = _finite(scores, "scores"), np.asarray(relevant, dtype=bool)
    if table.shape != truth.shape:
        raise ValueError(f"scores are {table.shape}, relevant is {truth.shape}; expected both (images, classes)")
    return table, truth


def _scores_of_others(texts: Floats, images: Float64s, own: Ints) -> Float64s:
    """(texts, images) float64 products, -inf at each text's own image; `own` may lie outside of these images."""
    scores = np.asarray(texts, dtype=np.float64) @ images.T
    inside = np.flatnonzero((own >= 0) & (own < len(images)))
    scores[inside, own[inside]] = -np.inf
    return np.asarray(scores)


def _allowance(table: Float64s) -> float:
    return TIE * float(np.abs(table).max())


def _longest(rows: Floats, name: str, block: int) -> float:
    """The length of the longest row, once all are known to be finite, `block` rows at a time."""
    parts = (_finite(rows[s : s + block], name, s) for s in range(0, max(1, len(rows)), block))
    return max(float(np.linalg.norm(part, axis=1).max()) for part in parts)


def _finite(values: Floats, name: str, start: int = 0) -> Float64s:
    """The values as float64, once they are known to be a non-empty table of finite numbers; its first row is `start`."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name} is {array.shape}, expected 2 axes and at least one value")
    if not np.isfinite(array).all():
        i, j = (int(place) for place in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name} holds {array[i, j]} at {(start + i, j)}; only finite numbers can be ranked")
    return array


def _indices(values: npt.ArrayLike, name: str, n: int, limit: int) -> Ints:
    """The values as int64, once they are known to be n > 0 whole numbers in 0..limit-1."""
    array = np.asarray(values)
    if array.shape != (n,) or n == 0 or array.dtype.kind not in "iu":
        raise ValueError(f"{name} is {array.shape} {array.dtype}, expected ({n},) whole numbers, at least one")
    if array.min() < 0 or array.max() >= limit:
        raise ValueError(f"{name} holds {array.min()}..{array.max()}, expected 0..{limit - 1}")
    return array.astype(np.int64)


@dataclass(frozen=True)
class _Pairs:
    """Pairs that may be among the k nearest: query and row numbers, (pairs,) int64, and their float64 cosines."""

    query: Ints
    row: Ints
    score: Float64s


def _search_block(queries: Float64s, rows: Floats, k: int, own: Ints | None) -> Nearest:
    """One block of queries against all rows. A block of rows doubles those seen, and so brings about k pairs a query."""
    count, queries32 = len(queries), queries.astype(np.float32)
    least = None if own is None else np.einsum("qd,qd->q", queries, _unit(rows[own])) - TIE
    ahead, floor = np.zeros(count, dtype=np.int64), np.full(count, -np.inf)
    kept: list[_Pairs] = []
    start, most = 0, min(_ROWS, max(1, _CELLS // count))
    while start < len(rows):
        block = _unit(rows[start : start + min(max(start, k), most)])
        found, reached = _score_block(queries, queries32, block, floor, least)
        kept.append(_Pairs(found.query, found.row + start, found.score))
        ahead, start = ahead + reached, start + len(block)
        if sum(len(pairs.query) for pairs in kept) >= 2 * k * count:
            kept = [_first_k(kept, k)]
            floor = kept[0].score.reshape(count, k).min(axis=1)
    last = _first_k(kept, k)
    best = last.score.reshape(count, k).max(axis=1)
    return Nearest(last.row.reshape(count, k), best, None if own is None else ahead - 1)


def _score_block(
    queries: Float64s, queries32: Float32s, rows: Float64s, floor: Float64s, least: Float64s | None
) -> tuple[_Pairs, Ints]:
    """The pairs that beat `floor`, and how many rows reach `least`, (queries,) int64; 0 where that is None.

    A row tied with `floor` does not beat it: rows come in order, and of tied ones the first is kept.
    """
    screen, error = queries32 @ rows.astype(np.float32).T, _float32_error(rows.shape[1])
    maybe = screen >= (floor - error).astype(np.float32)[:, None]
    sure = unsure = np.zeros((len(queries), 0), dtype=np.bool_)
    if least is not None:
        sure = screen >= (least + error).astype(np.float32)[:, None]
        unsure = sure ^ (screen >= (least - error).astype(np.float32)[:, None])
    if np.count_nonzero(maybe) + np.count_nonzero(unsure) > screen.size // _CROWDED:
        scores = queries @ rows.T  # all of them in float64
        query, row = _places(scores > (floor + TIE)[:, None])
        limit = np.full(len(queries), np.inf) if least is None else least
        return _Pairs(query, row, scores[query, row]), np.count_nonzero(scores >= limit[:, None], axis=1)
    query, row = _places(maybe)
    scores = _score_pairs(queries, rows, query, row)
    beats = scores > floor[query] + TIE
    reached = np.count_nonzero(sure, axis=1)
    if least is not None:
        asked, place = _places(unsure)
        reaches = _score_pairs(queries, rows, asked, place) >= least[asked]
        reached += np.bincount(asked[reaches], minlength=len(queries))
    return _Pairs(query[beats], row[beats], scores[beats]), reached


def _score_pairs(queries: Float64s, rows: Float64s, query: Ints, row: Ints) -> Float64s:
    scores = np.empty(len(query))
    for s in range(0, len(query), _PAIRS):
        part = slice(s, s + _PAIRS)
        np.einsum("pd,pd->p", queries[query[part]], rows[row[part]], out=scores[part])
    return scores


def _float32_error(dim: int) -> float:
    """The most that a float32 product of unit rows can differ from the exact one, in whatever order it is summed.

    n roundings change a number by a share of g = n u / (1 - n u) at most, u = 2**-24. A term of the sum is rounded in either row,
    in its product and in dim - 1 additions; the limit it is compared with is rounded, and one is to spare. The terms' sizes sum
    to 1 at most (Cauchy).
    Source: Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1 and section 3.5.
    """
    changed = (dim + 4) * 2.0**-24
    return changed / (1 - changed)


def _places(chosen: Bools) -> tuple[Ints, Ints]:
    return np.divmod(np.flatnonzero(chosen), chosen.shape[1])


def _first_k(parts: list[_Pairs], k: int) -> _Pairs:
    """The first k pairs of each query, query by query: best first, those tied by their row."""
    query, row = np.concatenate([p.query for p in parts]), np.concatenate([p.row for p in parts])
    score = np.concatenate([p.score for p in parts])
    order = np.argsort(-score)
    # Not np.lexsort, which takes six times as long: of 16-bit numbers the stable sort is a radix sort.
    order = order[np.argsort(query[order].astype(np.int16), kind="stable")]
    query = query[order]
    starts = np.concatenate([[True], (np.diff(query) > 0) | (np.diff(score[order]) < -TIE)])
    tied = np.flatnonzero(~(starts & np.append(starts[1:], True)))
    order[tied] = order[tied][np.lexsort((row[order[tied]], np.cumsum(starts)[tied]))]
    chosen = np.arange(len(query)) - np.searchsorted(query, query) < k
    return _Pairs(query[chosen], row[order[chosen]], score[order[chosen]])


def _unit(rows: Floats) -> Float64s:
    block = np.asarray(rows, dtype=np.float64)
    return np.asarray(block / np.sqrt(np.einsum("nd,nd->n", block, block))[:, None])
