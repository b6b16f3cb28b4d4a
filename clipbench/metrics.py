"""Pure numpy: scores -> one outcome per item. Means and intervals are taken one layer up (`experiments`, `judge`).

Ties always count against the model: an item is right only where its own score is higher than every competitor's, so a
model that gives everything the same row scores 0, not 1. Scores within `TIE` of each other, relative to the largest
there is, are ties: the same two rows multiplied at another place of a matrix differ by about 1e-16 (blocked BLAS
kernels), and a duplicated image must not win or lose by that. Unequal float32 scores are further apart than `TIE`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

TIE = 1e-12

Floats = npt.NDArray[np.floating[Any]]
Float64s = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RetrievalRanks:
    """0-based ranks, int64: `text_to_image` (texts,) of a text's image, `image_to_text` (images,) of its best text."""

    text_to_image: Ints
    image_to_text: Ints


@dataclass(frozen=True)
class PerClass:
    """`values` (present,) float64 of the classes that can be measured; `classes` (present,) int64, ascending."""

    classes: Ints
    values: Float64s


def text_to_image_hits(similarity: Floats) -> Bools:
    """Return (n,) bool: is a text's own image its best?

    `similarity`: (texts, images) float, square, own pairs on the diagonal. A tie is a miss.
    Raises: ValueError for a matrix that is not square, not finite, or smaller than 2 x 2: with one item there is
    nothing to mistake it for, and a hit would say nothing.
    Source: openai/CLIP notebooks/Interacting_with_CLIP.ipynb, its 8 x 8 matrix read by rows.
    """
    return _leads(similarity)[0] > 0


def image_to_text_hits(similarity: Floats) -> Bools:
    """Return (n,) bool: is an image's own text its best? `similarity`: (texts, images), read by columns.

    Ties, `Raises:` and `Source:` as `text_to_image_hits`.
    """
    return _leads(similarity)[1] > 0


def margins(similarity: Floats) -> Float64s:
    """Return (n,) float64: own score minus the best wrong cell in its row or column.

    Positive exactly where both hits are; a tie with the best wrong cell is 0. `similarity` and `Raises:` as
    `text_to_image_hits`.
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

    `scores`: (images, classes) float; `labels`: (images,) int in 0..classes-1. Accuracy at k is the mean of
    `hits_at(ranks, k)`.
    Raises: ValueError for NaN or infinity in scores, no image, labels of another length or outside the classes.
    Source: openai/CLIP notebooks/Prompt_Engineering_for_ImageNet.ipynb and LAION-AI/CLIP_benchmark, `accuracy`.
    """
    table = _finite(scores, "scores")
    own = _indices(labels, "labels", len(table), table.shape[1])
    least = table[np.arange(len(table)), own] - _allowance(table)
    return np.asarray((table >= least[:, None]).sum(axis=1) - 1, dtype=np.int64)


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


def confusion_matrix(scores: Floats, labels: npt.ArrayLike) -> Ints:
    """Return (classes, classes) int64: row the true class, column the class picked, so the diagonal counts the hits.

    Where an image's own class is only tied for best, the pick is the first of its best competitors. Arguments and
    `Raises:` as `label_ranks`.
    Source: scikit-learn, `confusion_matrix`.
    """
    right, table = label_ranks(scores, labels) == 0, np.array(scores, dtype=np.float64)
    own = np.asarray(labels, dtype=np.int64)
    table[np.arange(len(own)), own] = -np.inf
    picked = np.where(right, own, table.argmax(axis=1))
    counts = np.zeros((table.shape[1], table.shape[1]), dtype=np.int64)
    np.add.at(counts, (own, picked), 1)
    return counts


def average_precision(scores: Floats, relevant: Bools) -> PerClass:
    """Return the average precision of each class that has a relevant image; the others are left out.

    `scores`: (images, classes) float; `relevant`: (images, classes) bool. Among tied images the irrelevant come first.
    The mean of `values` is the mean average precision (clip_benchmark counts a class without a relevant image as 0).
    Raises: ValueError for NaN or infinity, no image, shapes that differ, and when no class has a relevant image.
    Source: scikit-learn, `average_precision_score`; LAION-AI/CLIP_benchmark, `average_precision_per_class`.
    """
    table, truth = _finite(scores, "scores"), np.asarray(relevant, dtype=bool)
    if table.shape != truth.shape:
        raise ValueError(f"scores are {table.shape}, relevant is {truth.shape}; expected both (images, classes)")
    classes = np.flatnonzero(truth.any(axis=0))
    if len(classes) == 0:
        raise ValueError(f"relevant: none of {truth.shape[1]} classes has a relevant image, so nothing can be ranked")
    allowance = _allowance(table)
    return PerClass(classes, np.array([_average_precision(table[:, c], truth[:, c], allowance) for c in classes]))


def retrieval_ranks(
    image_emb: Floats, text_emb: Floats, text_image: npt.ArrayLike, block: int = 1024
) -> RetrievalRanks:
    """Return the rank of each text's image among all images, and of each image's best text among the others' texts.

    `image_emb`: (images, dim) float; `text_emb`: (texts, dim) float; `text_image`: (texts,) int, the image of each text.
    `hits_at(ranks, k)` is "at least one correct item in the top k", as CLIP papers count recall. Products are taken in
    float64, `block` x `block` at a time: the whole matrix is never held, nor a copy of the rows.
    Raises: ValueError for NaN or infinity, no item, dims that differ, text_image of another length or outside the images,
    an image without a text (it has no right answer: leave it out), and block < 1.
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
    texts, images = ([slice(s, s + block) for s in range(0, size, block)] for size in (len(own), n))
    own_scores, best = np.empty(len(own)), np.full(n, -np.inf)
    for t in texts:
        np.einsum("td,td->t", text_emb[t], image_emb[own[t]], dtype=np.float64, out=own_scores[t])
    np.maximum.at(best, own, own_scores)
    text_ranks, image_ranks = np.zeros(len(own), dtype=np.int64), np.zeros(n, dtype=np.int64)
    for i in images:
        rows = np.asarray(image_emb[i], dtype=np.float64)
        for t in texts:
            scores = _scores_of_others(text_emb[t], rows, own[t] - i.start)
            text_ranks[t] += np.count_nonzero(scores >= own_scores[t, None] - allowance, axis=1)
            image_ranks[i] += np.count_nonzero(scores >= best[i] - allowance, axis=0)
    return RetrievalRanks(text_ranks, image_ranks)


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
