"""Exact search: the nearest rows of every query, by cosine; of the (queries, rows) scores only a block is ever held.

float64 decides. A block is first scored in float32, which takes half the time, and only to rule out: pairs that float32's
largest error (`_float32_error`) cannot rule out are scored again in float64. So the answer is that of the whole float64 matrix.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipbench.metrics import TIE

Rows = npt.NDArray[np.floating[Any]]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_QUERIES, _ROWS, _CELLS, _KEPT = 8192, 4096, 1 << 22, 1 << 20
"""At most at once: queries, rows, scores (queries x rows; 17 MB in float32), pairs kept (queries x k)."""
_PAIRS = 64
"""Pairs scored together: few, so that their rows stay in the processor's cache."""
_CROWDED = 32
"""Where one pair in so many must be scored in float64, the whole block is: by the pair it would take longer."""


@dataclass(frozen=True)
class Nearest:
    """`top`: (queries, k) int64, the nearest rows, best first. `best`: (queries,) float64, the nearest row's cosine.

    `ranks`: (queries,) int64, how many rows score at least as high as the query's own (0 is best); None without truth.
    """

    top: Ints
    best: Float64s
    ranks: Ints | None = None


@dataclass(frozen=True)
class _Pairs:
    """Pairs that may be among the k nearest: query and row numbers, (pairs,) int64, and their float64 cosines."""

    query: Ints
    row: Ints
    score: Float64s


def nearest(queries: Rows, rows: Rows, k: int, own: Ints | None = None) -> Nearest:
    """Return the k nearest rows of each query, all rows where there are fewer than k.

    `queries`: (queries, dim), `rows`: (rows, dim), float16, float32 or float64, in memory or mapped from a file; finite, near
    unit length (scaled to it); `own`: (queries,) int64, the right row of each query. Cosines are float64's. Rows within
    `metrics.TIE` of each other are tied: in `top` the one of lower number comes first, in `ranks` they count against the
    query's own, as in `metrics.retrieval_ranks`.

    Raises: ValueError for dims that differ, no query, no row, or k < 1.
    """
    if queries.ndim != 2 or queries.shape[1:] != rows.shape[1:] or 0 in (len(queries), len(rows)) or k < 1:
        raise ValueError(f"queries {queries.shape}, rows {rows.shape}, k {k}: expected one dim, and k of 1 or more")
    k = min(k, len(rows))
    size = max(1, min(_QUERIES, _KEPT // k))
    parts = [
        _block(_unit(queries[s : s + size]), rows, k, None if own is None else own[s : s + size])
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


def _block(queries: Float64s, rows: Rows, k: int, own: Ints | None) -> Nearest:
    """One block of queries against all rows. A block of rows doubles those seen, and so brings about k pairs a query."""
    count, queries32 = len(queries), queries.astype(np.float32)
    least = None if own is None else np.einsum("qd,qd->q", queries, _unit(rows[own])) - TIE
    ahead, floor = np.zeros(count, dtype=np.int64), np.full(count, -np.inf)
    kept: list[_Pairs] = []
    start, most = 0, min(_ROWS, max(1, _CELLS // count))
    while start < len(rows):
        block = _unit(rows[start : start + min(max(start, k), most)])
        found, reached = _score(queries, queries32, block, floor, least)
        kept.append(_Pairs(found.query, found.row + start, found.score))
        ahead, start = ahead + reached, start + len(block)
        if sum(len(pairs.query) for pairs in kept) >= 2 * k * count:
            kept = [_first(kept, k)]
            floor = kept[0].score.reshape(count, k).min(axis=1)
    last = _first(kept, k)
    best = last.score.reshape(count, k).max(axis=1)
    return Nearest(last.row.reshape(count, k), best, None if own is None else ahead - 1)


def _score(
    queries: Float64s, queries32: Float32s, rows: Float64s, floor: Float64s, least: Float64s | None
) -> tuple[_Pairs, Ints]:
    """The pairs that beat `floor`, and how many rows reach `least`, (queries,) int64; 0 where that is None.

    A row tied with `floor` does not beat it: rows come in order, and of tied ones the first is kept.
    """
    screen, error = queries32 @ rows.astype(np.float32).T, _float32_error(rows.shape[1])
    maybe = _reach(screen, floor - error)
    sure = unsure = np.zeros((len(queries), 0), dtype=np.bool_)
    if least is not None:
        sure = _reach(screen, least + error)
        unsure = sure ^ _reach(screen, least - error)
    if np.count_nonzero(maybe) + np.count_nonzero(unsure) > screen.size // _CROWDED:
        return _score_whole(queries, rows, floor, least)
    query, row = _places(maybe)
    scores = _score_pairs(queries, rows, query, row)
    beats = scores > floor[query] + TIE
    reached = np.count_nonzero(sure, axis=1)
    if least is not None:
        asked, place = _places(unsure)
        reaches = _score_pairs(queries, rows, asked, place) >= least[asked]
        reached += np.bincount(asked[reaches], minlength=len(queries))
    return _Pairs(query[beats], row[beats], scores[beats]), reached


def _score_whole(queries: Float64s, rows: Float64s, floor: Float64s, least: Float64s | None) -> tuple[_Pairs, Ints]:
    """What `_score` returns, of all pairs in float64."""
    scores = queries @ rows.T
    limit = np.full(len(queries), np.inf) if least is None else least
    query, row = _places(scores > (floor + TIE)[:, None])
    return _Pairs(query, row, scores[query, row]), np.count_nonzero(scores >= limit[:, None], axis=1)


def _score_pairs(queries: Float64s, rows: Float64s, query: Ints, row: Ints) -> Float64s:
    scores = np.empty(len(query))
    for s in range(0, len(query), _PAIRS):
        part = slice(s, s + _PAIRS)
        np.einsum("pd,pd->p", queries[query[part]], rows[row[part]], out=scores[part])
    return scores


def _float32_error(dim: int) -> float:
    """The most that a float32 product of unit rows can differ from the exact one, in whatever order it is summed.

    Of n roundings in a row each changes a number by 2**-24 of it at most, all of them by g = n u / (1 - n u) with u = 2**-24.
    A term of the sum is rounded in either row, in its product and in dim - 1 additions; the limit it is compared with is
    rounded, and one is to spare. The terms' sizes sum to 1 at most (Cauchy), so the sum differs by g at most.
    Source: Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1 and section 3.5.
    """
    changed = (dim + 4) * 2.0**-24
    return changed / (1 - changed)


def _reach(screen: Float32s, limit: Float64s) -> Bools:
    return np.asarray(screen >= limit.astype(np.float32)[:, None])


def _places(chosen: Bools) -> tuple[Ints, Ints]:
    return np.divmod(np.flatnonzero(chosen), chosen.shape[1])


def _first(parts: list[_Pairs], k: int) -> _Pairs:
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


def _unit(rows: Rows) -> Float64s:
    block = np.asarray(rows, dtype=np.float64)
    return np.asarray(block / np.sqrt(np.einsum("nd,nd->n", block, block))[:, None])
