"""Exact search: by hand, against the whole float64 matrix, with ties, with scores float32 cannot tell apart, and in memory."""

import tracemalloc

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

import clipbench.metrics as module
from clipbench.metrics import TIE, Nearest, nearest, overlap, retrieval

# Blocks so small that a few rows cross their borders; the sizes that are used otherwise.
SMALL = {"_QUERIES": 7, "_ROWS": 11, "_CELLS": 40, "_KEPT": 60, "_PAIRS": 3}
# Crowded or not is a matter of speed: both ways are tried on everything.
BY_THE_PAIR, WHOLE = {"_CROWDED": 0.1}, {"_CROWDED": 1 << 40}
WAYS = pytest.mark.parametrize("way", [{}, BY_THE_PAIR, WHOLE, SMALL | BY_THE_PAIR, SMALL | WHOLE])


def unit(drawn):
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def rows(n, dim=6, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((n, dim)))


def cosines(queries, index):
    """The whole matrix in float64, (queries, rows)."""
    one, other = (
        a.astype(np.float64) / np.linalg.norm(a.astype(np.float64), axis=1)[:, None] for a in (queries, index)
    )
    return one @ other.T


def search(way, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in way.items():
            patch.setattr(module, name, value)
        return nearest(*arguments)


def check(way, queries, index, k, own):
    """Compare with the whole matrix: the same rows in the same order, the same ranks, the same best score."""
    found, scores = search(way, queries, index, k, own), cosines(queries, index)
    assert found.top.tolist() == oracles.nearest(scores.tolist(), k, TIE)
    assert found.ranks.tolist() == oracles.ranks_of_own(scores.tolist(), own.tolist(), TIE)
    np.testing.assert_allclose(found.best, scores.max(axis=1), rtol=0, atol=1e-12)


def hardly_apart(dim=64):
    """(queries, rows) whose cosines all differ in float64 and mostly fall together or change places in float32."""
    rng = np.random.default_rng(5)
    base = rng.standard_normal((1, dim))
    return unit(base + 0.1 * rng.standard_normal((9, dim))), unit(base + 1e-7 * rng.standard_normal((300, dim)))


def test_the_nearest_row_comes_first_with_its_cosine():
    found = nearest(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [0.6, 0.8], [1.0, 0.0]]), 2)
    assert found.top.tolist() == [[2, 1]]
    assert found.best.tolist() == [1.0]
    assert found.ranks is None


@st.composite
def searches(draw):
    """(queries, index, k, own) in which rows are often repeated, in the order of their cosines, or fewer than k."""
    count, size, seed = draw(st.integers(1, 20)), draw(st.integers(1, 60)), draw(st.integers(0, 99))
    distinct = rows(draw(st.integers(1, size)), draw(st.integers(2, 6)), seed)
    index = distinct[np.random.default_rng(seed).integers(0, len(distinct), size)]
    asked = rows(count, index.shape[1], seed + 100)
    if draw(st.booleans()):
        index = index[np.argsort(draw(st.sampled_from([1, -1])) * (index @ asked[0]), kind="stable")]
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    own = np.random.default_rng(seed + 200).integers(0, size, count)
    return asked.astype(dtype), index.astype(dtype), draw(st.integers(1, 70)), own


@WAYS
@given(case=searches())
def test_it_is_the_whole_matrix_sorted_and_cut_at_k(way, case):
    check(way, *case)


@given(searches())
def test_more_of_the_nearest_begin_with_fewer(case):
    queries, index, k, own = case
    fewer, more = (search(SMALL, queries, index, n, own).top for n in (k, k + 3))
    assert more[:, :k].tolist() == fewer.tolist()


@WAYS
def test_scores_that_float32_cannot_tell_apart_are_told_apart(way):
    queries, index = hardly_apart()
    in_float32, exact = np.argsort(-(queries @ index.T), axis=1), np.argsort(-cosines(queries, index), axis=1)
    assert (in_float32[:, :10] != exact[:, :10]).any(axis=1).all()
    check(way, queries, index, 10, np.arange(9) * 30)


def test_without_the_bound_on_float32s_error_they_are_not(monkeypatch):
    monkeypatch.setattr(module, "_float32_error", lambda dim: 0.0)
    with pytest.raises(AssertionError):
        check(SMALL | BY_THE_PAIR, *hardly_apart(), 10, np.arange(9) * 30)


@pytest.mark.parametrize("dim", [1, 2, 16, 512, 3000])
@pytest.mark.parametrize("kind", ["signs", "positive", "even"])
def test_float32_is_never_off_by_more_than_the_bound(dim, kind):
    drawn = np.random.default_rng(dim).standard_normal((200, dim))
    drawn = {"signs": drawn, "positive": np.abs(drawn), "even": np.full((200, dim), 0.1) + 1e-6 * drawn}[kind]
    exact = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    single = exact.astype(np.float32)
    one_by_one = np.add.accumulate(single[0] * single, axis=1, dtype=np.float32)[:, -1]
    for found in (single[0] @ single.T, one_by_one):
        assert np.abs(found - exact[0] @ exact.T).max() <= module._float32_error(dim)


def test_tied_rows_come_by_their_number_also_across_blocks_and_at_the_last_place(monkeypatch):
    index = np.tile([[0.6, 0.8]], (9, 1))
    index[4] = [1.0, 0.0]
    for block in (3, 100):
        monkeypatch.setattr(module, "_ROWS", block)
        assert nearest(np.array([[1.0, 0.0]]), index, 4).top.tolist() == [[4, 0, 1, 2]]


@WAYS
def test_a_row_that_stands_many_times_is_listed_by_number_and_counts_against_the_query(way):
    queries, index, copies = rows(12, 33, seed=1), rows(500, 33, seed=2), np.arange(499, 0, -25)
    index[copies] = queries[3]
    found = search(way, queries, index, 15, np.full(12, 249))
    assert found.top[3].tolist() == sorted(copies.tolist())[:15]
    assert found.ranks[3] == len(copies) - 1


def test_ranks_are_those_of_the_retrieval_experiment_ties_against_the_query():
    images, truth = rows(30), np.repeat(np.arange(30), 2)
    images[7] = images[3]
    texts = rows(60, seed=9)
    found = nearest(texts, images, 10, truth)
    assert found.ranks.tolist() == retrieval(images, texts, truth).text_to_image.ranks.tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_index_on_disk_is_searched_like_one_in_memory(tmp_path, dtype):
    queries, index, own = rows(40, 16, seed=3), rows(3000, 16, seed=4).astype(dtype), np.arange(40) * 70
    np.save(tmp_path / "index.npy", index)
    mapped = np.load(tmp_path / "index.npy", mmap_mode="r")
    check({"_ROWS": 256}, queries, mapped, 20, own)
    assert nearest(queries, mapped, 20, own).top.tolist() == nearest(queries, index, 20, own).top.tolist()


@pytest.mark.parametrize("same", [False, True])
def test_the_whole_matrix_is_never_held(same):
    queries, index, own = rows(300, 16, seed=5), rows(40_000, 16, seed=6), np.arange(300)
    index = np.repeat(index[:1], 40_000, axis=0) if same else index
    whole = 300 * 40_000 * 8
    assert peak(cosines, queries, index) >= whole
    assert peak(nearest, queries, index, 100, own) < whole / 3


def peak(function, *arguments):
    """The most bytes allocated at once during the call."""
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_rows_of_nearly_unit_length_are_scaled_to_cosines():
    assert nearest(np.array([[1.0, 0.0]]), np.array([[0.995, 0.0]]), 1).best == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("queries", "items", "k"), [((2, 3), (4, 2), 1), ((0, 3), (4, 3), 1), ((2, 3), (0, 3), 1), ((2, 3), (4, 3), 0)]
)
def test_shapes_that_cannot_be_searched_are_refused(queries, items, k):
    with pytest.raises(ValueError, match="expected one dim, and k of 1 or more"):
        nearest(np.ones(queries), np.ones(items), k)


def test_overlap_counts_shared_rows_in_whatever_order():
    one, other = (Nearest(np.array([t]), np.zeros(1)) for t in ([1, 2, 3, 4], [4, 3, 9, 8]))
    assert overlap(one, other).tolist() == [0.5]
    with pytest.raises(ValueError, match="expected the same queries and k"):
        overlap(one, Nearest(np.array([[1]]), np.zeros(1)))
