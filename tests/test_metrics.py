"""Matching and classification metrics against hand-worked cases and slow oracles. Ties count against the model."""

import ast
from pathlib import Path

import numpy as np
import oracles
import pytest
from fakes import confusion
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clipbench import metrics
from clipbench.metrics import (
    average_precision,
    grouped_text_to_image_hits,
    hits_at,
    image_to_text_hits,
    label_ranks,
    margins,
    per_class_recall,
    text_to_image_hits,
)

# Few levels, exact in binary: ties are common and sums are exact, so oracle and subject must agree to the last bit.
LEVELS = st.integers(-4, 4).map(lambda level: level / 4)


def unit_rows(rng, n, dim=16):
    rows = rng.normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@st.composite
def squares(draw):
    n = draw(st.integers(2, 6))
    return draw(arrays(np.float64, (n, n), elements=LEVELS))


@st.composite
def classified(draw):
    images, classes = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    scores = draw(arrays(np.float64, (images, classes), elements=LEVELS))
    return scores, draw(arrays(np.int64, images, elements=st.integers(0, classes - 1)))


def test_a_worked_matrix_gives_hits_by_row_hits_by_column_and_margins():
    similarity = np.array([[0.5, 0.25, 0.0], [0.75, 0.5, 0.25], [0.0, 0.25, 1.0]])
    assert text_to_image_hits(similarity).tolist() == [True, False, True]
    assert image_to_text_hits(similarity).tolist() == [False, True, True]
    assert margins(similarity).tolist() == [-0.25, -0.25, 0.75]


def test_a_tie_is_a_miss_and_a_margin_of_zero():
    similarity = np.array([[0.5, 0.5], [0.0, 0.25]])
    assert text_to_image_hits(similarity).tolist() == [False, True]
    assert margins(similarity).tolist() == [0.0, -0.25]


def test_a_model_that_gives_everything_one_row_matches_nothing():
    assert not text_to_image_hits(np.ones((8, 8))).any()
    assert not image_to_text_hits(np.ones((8, 8))).any()


def test_a_difference_of_rounding_is_a_tie_and_one_of_float32_is_not():
    assert not text_to_image_hits(np.array([[0.3 + 1e-16, 0.3], [0.0, 1.0]]))[0]
    above = float(np.nextafter(np.float32(0.3), np.float32(1)))
    assert text_to_image_hits(np.array([[above, float(np.float32(0.3))], [0.0, 1.0]]))[0]


@given(squares())
def test_matching_agrees_with_the_oracle(similarity):
    assert text_to_image_hits(similarity).tolist() == oracles.text_to_image_hits(similarity)
    assert image_to_text_hits(similarity).tolist() == oracles.image_to_text_hits(similarity)
    assert margins(similarity).tolist() == oracles.margins(similarity)


@given(squares())
def test_a_transposed_matrix_swaps_the_directions_and_keeps_the_margins(similarity):
    assert text_to_image_hits(similarity.T).tolist() == image_to_text_hits(similarity).tolist()
    assert margins(similarity.T).tolist() == margins(similarity).tolist()


@given(squares())
def test_a_margin_is_positive_exactly_where_both_directions_hit(similarity):
    both = text_to_image_hits(similarity) & image_to_text_hits(similarity)
    assert (margins(similarity) > 0).tolist() == both.tolist()


@given(squares(), st.randoms(use_true_random=False), st.sampled_from([0.125, 2.0, 64.0]))
def test_margins_follow_a_permutation_of_the_items_and_a_scale(similarity, random, scale):
    order = random.sample(range(len(similarity)), len(similarity))
    assert margins(scale * similarity[np.ix_(order, order)]).tolist() == (scale * margins(similarity)[order]).tolist()


@pytest.mark.parametrize("measure", [text_to_image_hits, image_to_text_hits, margins])
@pytest.mark.parametrize("similarity", [np.ones((2, 3)), np.ones((1, 1)), np.empty((0, 0)), np.ones(4)])
def test_a_matrix_that_cannot_be_matched_is_refused_with_its_shape(measure, similarity):
    with pytest.raises(ValueError, match=rf"similarity is \({similarity.shape[0]},"):
        measure(similarity)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_cell_that_is_no_number_is_named_with_its_place(bad):
    with pytest.raises(ValueError, match=rf"similarity holds {bad} at \(1, 0\)"):
        text_to_image_hits(np.array([[1.0, 0.0], [bad, 1.0]]))


def test_a_text_is_matched_within_its_group_only():
    images = np.eye(4)
    texts = images[[1, 0, 2, 3]]
    assert grouped_text_to_image_hits(images, texts, [[0, 2], [1, 3]]).tolist() == [False, True, False, True]
    assert grouped_text_to_image_hits(images, texts, [[0, 1], [2, 3]]).tolist() == [False, False, True, True]


def test_one_group_of_all_is_the_whole_matrix():
    rng = np.random.default_rng(0)
    images, texts = unit_rows(rng, 24, 4), unit_rows(rng, 24, 4)
    whole = oracles.text_to_image_hits(texts.astype(np.float64) @ images.T.astype(np.float64))
    assert grouped_text_to_image_hits(images, texts, [range(24)]).tolist() == whole


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "at least one group"),
        ([[0]], "at least two items"),
        ([[0, 4]], "expected 0..3"),
        ([[-1, 0]], "expected 0..3"),
    ],
)
def test_groups_that_cannot_be_matched_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        grouped_text_to_image_hits(np.eye(4), np.eye(4), groups)


def test_groups_of_rows_that_do_not_pair_up_are_refused():
    with pytest.raises(ValueError, match="one image row for each text row"):
        grouped_text_to_image_hits(np.eye(4), np.eye(4)[:3], [[0, 1]])


def test_worked_scores_give_ranks_with_ties_against_the_model():
    scores = np.array([[0.5, 0.25, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.25]])
    assert label_ranks(scores, [0, 1, 2]).tolist() == [0, 1, 2]
    assert label_ranks(scores, [2, 2, 0]).tolist() == [2, 2, 2]


@given(classified())
def test_label_ranks_agree_with_the_oracle(case):
    scores, labels = case
    assert label_ranks(scores, labels).tolist() == oracles.label_ranks(scores, labels)


@given(classified(), st.randoms(use_true_random=False))
def test_label_ranks_do_not_depend_on_the_order_of_the_classes(case, random):
    scores, labels = case
    order = random.sample(range(scores.shape[1]), scores.shape[1])
    moved = np.array([order.index(label) for label in labels])
    assert label_ranks(scores[:, order], moved).tolist() == label_ranks(scores, labels).tolist()


@given(arrays(np.int64, 6, elements=st.integers(0, 9)), st.integers(1, 9))
def test_hits_grow_with_k_and_reach_all_at_the_number_of_candidates(ranks, k):
    assert (hits_at(ranks, k) <= hits_at(ranks, k + 1)).all()
    assert hits_at(ranks, 10).all()


def test_a_k_below_one_is_refused():
    with pytest.raises(ValueError, match="k is 0"):
        hits_at(np.array([0]), 0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3], r"labels holds 0\.\.3, expected 0\.\.2"),
        ([-1, 0], "expected 0..2"),
        ([0], r"\(1,\)"),
        ([0.0, 1.0], "float64"),
    ],
)
def test_labels_that_name_no_class_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        label_ranks(np.zeros((2, 3)), labels)


def test_recall_leaves_out_classes_without_an_image():
    recall = per_class_recall(np.array([True, False, True]), [0, 0, 2], n_classes=4)
    assert recall.classes.tolist() == [0, 2]
    assert recall.values.tolist() == [0.5, 1.0]


@given(classified())
def test_recall_and_confusion_agree_with_the_oracle(case):
    scores, labels = case
    hits = hits_at(label_ranks(scores, labels), 1)
    recall = per_class_recall(hits, labels, scores.shape[1])
    assert dict(zip(recall.classes.tolist(), recall.values.tolist(), strict=True)) == oracles.per_class_recall(
        hits, labels
    )
    assert confusion(scores, labels) == oracles.confusion_matrix(scores, labels, scores.shape[1])


@given(classified())
def test_the_confusion_diagonal_counts_the_hits(case):
    scores, labels = case
    counts = np.array(confusion(scores, labels))
    assert np.trace(counts) == hits_at(label_ranks(scores, labels), 1).sum()
    assert counts.sum(axis=1).tolist() == np.bincount(labels, minlength=scores.shape[1]).tolist()


def test_a_tie_for_best_is_confused_with_the_first_competitor():
    assert confusion(np.array([[0.5, 0.5, 0.5]]), [1]) == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_worked_average_precision_ranks_a_tied_negative_first():
    scores = np.array([[4.0, 1.0], [3.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    relevant = np.array([[True, False], [False, False], [True, True], [False, False]])
    found = average_precision(scores, relevant)
    assert found.values.tolist() == pytest.approx([(1 / 1 + 2 / 3) / 2, 1 / 4])


def test_average_precision_leaves_out_classes_without_a_relevant_image():
    relevant = np.array([[False, True], [False, False]])
    assert average_precision(np.eye(2), relevant).classes.tolist() == [1]
    with pytest.raises(ValueError, match="none of 2 classes has a relevant image"):
        average_precision(np.eye(2), np.zeros((2, 2), dtype=bool))


@given(arrays(np.float64, 7, elements=LEVELS), arrays(np.bool_, 7))
def test_average_precision_agrees_with_the_oracle(scores, relevant):
    relevant[0] = True
    found = average_precision(scores[:, None], relevant[:, None]).values
    assert found.tolist() == pytest.approx([oracles.average_precision(scores, relevant)], abs=1e-12)


@given(arrays(np.float64, 7, elements=LEVELS), st.permutations(range(7)), st.sampled_from([0.25, 8.0]))
def test_average_precision_ignores_the_order_of_the_images_and_the_scale(scores, order, scale):
    relevant = np.array([True, False, True, False, False, True, False])
    base = average_precision(scores[:, None], relevant[:, None]).values
    assert average_precision(scale * scores[order][:, None], relevant[order][:, None]).values.tolist() == base.tolist()


def test_the_module_imports_nothing_but_numpy_and_the_standard_library():
    tree = ast.parse(Path(metrics.__file__).read_text(encoding="utf-8"))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names == {"numpy", "numpy.typing", "collections.abc", "dataclasses", "typing"}
