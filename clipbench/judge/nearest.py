"""Exact search: the nearest rows of every query, by cosine, in blocks, so that an index larger than memory's share works."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipbench.metrics import TIE

Rows = npt.NDArray[np.floating[Any]]
Float64s = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_QUERIES, _ROWS = 512, 1 << 14


@dataclass(frozen=True)
class Nearest:
    """`top`: (queries, k) int64, the nearest rows, best first. `best`: (queries,) float64, the nearest row's cosine.

    `ranks`: (queries,) int64, how many rows score at least as high as the query's own (0 is best); None without truth.
    """

    top: Ints
    best: Float64s
    ranks: Ints | None = None


def nearest(queries: Rows, rows: Rows, k: int, own: Ints | None = None) -> Nearest:
    """Return the k nearest rows of each query, all rows where there are fewer than k.

    `queries`: (queries, dim), `rows`: (rows, dim), finite, near unit length (scaled to it); `own`: (queries,) int64, the
    right row of each query. Cosines are taken in float64. Rows within `metrics.TIE` of each other are tied: in `top` the
    one of lower number comes first, in `ranks` they count against the query's own, as in `metrics.retrieval_ranks`.

    Raises: ValueError for dims that differ, no query, no row, or k < 1.
    """
    if queries.ndim != 2 or queries.shape[1:] != rows.shape[1:] or 0 in (len(queries), len(rows)) or k < 1:
        raise ValueError(f"queries {queries.shape}, rows {rows.shape}, k {k}: expected one dim, and k of 1 or more")
    parts = [
        _block(_unit(queries[s : s + _QUERIES]), rows, k, None if own is None else own[s : s + _QUERIES])
        for s in range(0, len(queries), _QUERIES)
    ]
    ranks = None if own is None else np.concatenate([p.ranks for p in parts if p.ranks is not None])
    return Nearest(np.concatenate([p.top for p in parts]), np.concatenate([p.best for p in parts]), ranks)


def overlap(one: Nearest, other: Nearest) -> Float64s:
    """Return (queries,) float64: the share of a query's nearest rows that both searches list, in whatever order.

    Raises: ValueError for searches of different shape.
    """
    if one.top.shape != other.top.shape:
        raise ValueError(f"tops are {one.top.shape} and {other.top.shape}, expected the same queries and k")
    shared = (one.top[:, :, None] == other.top[:, None, :]).any(axis=2)
    return np.asarray(shared.mean(axis=1), dtype=np.float64)


def _block(queries: Float64s, rows: Rows, k: int, own: Ints | None) -> Nearest:
    """One block of queries against all rows, a block of rows at a time; the k best so far are carried along."""
    least = np.full(len(queries), np.inf)
    if own is not None:
        least = np.einsum("qd,qd->q", queries, _unit(rows[own])) - TIE
    ahead = np.zeros(len(queries), dtype=np.int64)
    scores, places = np.empty((len(queries), 0)), np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(rows), _ROWS):
        found = queries @ _unit(rows[start : start + _ROWS]).T
        ahead += np.count_nonzero(found >= least[:, None], axis=1)
        picked = _highest(found, k)
        scores = np.hstack([scores, np.take_along_axis(found, picked, axis=1)])
        places = np.hstack([places, picked + start])
        kept = _ordered(scores, places)[:, :k]
        scores, places = np.take_along_axis(scores, kept, axis=1), np.take_along_axis(places, kept, axis=1)
    return Nearest(places, scores.max(axis=1), None if own is None else ahead - 1)


def _highest(scores: Float64s, k: int) -> Ints:
    """(queries, min(k, rows)) places of the highest scores; among those tied for the last place the lower number wins."""
    rows = scores.shape[1]
    if rows <= k:
        return np.broadcast_to(np.arange(rows), scores.shape).astype(np.int64)
    picked = np.argpartition(scores, rows - k, axis=1)[:, rows - k :]
    last = np.take_along_axis(scores, picked, axis=1).min(axis=1)
    crowded = np.flatnonzero(np.count_nonzero(scores >= last[:, None] - TIE, axis=1) > k)
    for query in crowded:
        places = np.flatnonzero(scores[query] >= last[query] - TIE)
        picked[query] = places[_ordered(scores[query, places][None], places[None])[0, :k]]
    return np.asarray(picked, dtype=np.int64)


def _ordered(scores: Float64s, places: Ints) -> Ints:
    """The order of each query's candidates: best first, ties by the lower number."""
    order = np.lexsort((places, -np.round(scores, 11)), axis=1)
    return np.asarray(order, dtype=np.int64)


def _unit(rows: Rows) -> Float64s:
    block = np.asarray(rows, dtype=np.float64)
    return np.asarray(block / np.sqrt(np.einsum("nd,nd->n", block, block))[:, None])
