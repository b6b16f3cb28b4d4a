"""Exact search: by hand, against a full sort, and with ties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import clipbench.judge.nearest as module
from clipbench.judge.nearest import Nearest, nearest, overlap
from clipbench.metrics import retrieval_ranks


def rows(n, dim=6, seed=0):
    drawn = np.random.default_rng(seed).standard_normal((n, dim))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def test_the_nearest_row_comes_first_with_its_cosine():
    found = nearest(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [0.6, 0.8], [1.0, 0.0]]), 2)
    assert found.top.tolist() == [[2, 1]]
    assert found.best.tolist() == [1.0]
    assert found.ranks is None


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 12), st.integers(0, 5))
def test_it_is_a_full_sort_cut_at_k_whatever_the_blocks(queries, items, k, seed):
    asked, index = rows(queries, seed=seed), rows(items, seed=seed + 100)
    scores = asked.astype(np.float64) @ index.astype(np.float64).T
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_QUERIES", 7)
        patch.setattr(module, "_ROWS", 11)
        found = nearest(asked, index, k)
    assert found.top.tolist() == expected.tolist()
    np.testing.assert_allclose(found.best, scores.max(axis=1), atol=1e-6)


def test_tied_rows_come_by_their_number_also_across_blocks_and_at_the_last_place(monkeypatch):
    index = np.tile([[0.6, 0.8]], (9, 1))
    index[4] = [1.0, 0.0]
    for block in (3, 100):
        monkeypatch.setattr(module, "_ROWS", block)
        assert nearest(np.array([[1.0, 0.0]]), index, 4).top.tolist() == [[4, 0, 1, 2]]


def test_ranks_are_those_of_the_retrieval_experiment_ties_against_the_query():
    images, truth = rows(30), np.repeat(np.arange(30), 2)
    images[7] = images[3]
    texts = rows(60, seed=9)
    found = nearest(texts, images, 10, truth)
    assert found.ranks.tolist() == retrieval_ranks(images, texts, truth).text_to_image.tolist()


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
