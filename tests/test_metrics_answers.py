"""What each query was taken for, against hand-worked cases and a slow oracle: candidates, scores, margins, ties against the model."""

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_metrics_retrieval import LEVELS, captioned

from clipbench.metrics import label_ranks, multilabel_answers, ranked, retrieval


@st.composite
def labelled(draw):
    """(scores, labels) of two candidates or more."""
    queries, candidates = draw(st.integers(1, 6)), draw(st.integers(2, 8))
    labels = draw(st.lists(st.integers(0, candidates - 1), min_size=queries, max_size=queries))
    return draw(arrays(np.float64, (queries, candidates), elements=LEVELS)), np.array(labels)


@st.composite
def marked(draw):
    """(scores, relevant) of one class or more, any of them relevant."""
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 8)))
    return draw(arrays(np.float64, shape, elements=LEVELS)), draw(arrays(np.bool_, shape))


def test_a_worked_query_lists_its_five_best_and_how_far_the_right_one_leads():
    scores = np.array([[0.1, 0.9, 0.3, 0.2, 0.0, 0.5, 0.4]])
    found = ranked(scores, [1]).taken_for
    assert found.top.tolist() == [[1, 5, 6, 2, 3]]
    assert found.scores.tolist() == [pytest.approx([0.9, 0.5, 0.4, 0.3, 0.2])]
    assert found.margins.tolist() == [pytest.approx(0.4)]
    behind = ranked(scores, [6]).taken_for
    assert behind.top.tolist() == [[1, 5, 6, 2, 3]]
    assert behind.margins.tolist() == [pytest.approx(-0.5)]


def test_the_right_candidate_is_not_listed_where_five_wrong_ones_come_first():
    found = ranked(np.array([[0.6, 0.5, 0.4, 0.3, 0.2, 0.1]]), [5]).taken_for
    assert found.top.tolist() == [[0, 1, 2, 3, 4]]


def test_the_right_candidate_stands_behind_all_that_tie_with_it():
    found = ranked(np.array([[0.5, 0.5, 0.5, 0.1]]), [0]).taken_for
    assert found.top.tolist() == [[1, 2, 0, 3]]
    assert found.margins.tolist() == [0]


@pytest.mark.parametrize("last_digit", [-1e-16, 0.0, 1e-16])
def test_a_lead_by_rounding_alone_is_no_margin_and_no_hit(last_digit):
    one = np.array([[0.5 + last_digit, 0.5, 0.1]])
    for found in (ranked(one, [0]).taken_for, multilabel_answers(one, np.array([[True, False, False]]))):
        assert found.top[0, 0] == 1
        assert found.margins[0] <= 0


@given(labelled())
def test_answers_agree_with_the_oracle(case):
    scores, labels = case
    found = ranked(scores, labels).taken_for
    for query, label in enumerate(labels):
        best, margin = oracles.taken_for(scores[query].tolist(), [label], 5)
        assert found.top[query].tolist() == best
        assert found.scores[query].tolist() == scores[query][best].tolist()
        assert found.margins[query] == margin


@given(labelled())
def test_a_hit_is_where_the_right_one_is_first_and_where_its_margin_is_positive(case):
    scores, labels = case
    found, hits = ranked(scores, labels).taken_for, label_ranks(scores, labels) == 0
    assert (found.top[:, 0] == labels).tolist() == hits.tolist()
    assert (found.margins > 0).tolist() == hits.tolist()


@given(captioned().filter(lambda case: len(case[0]) > 1), st.integers(1, 4))
def test_what_retrieval_takes_each_query_for_agrees_with_the_oracle_for_any_block(case, block):
    images, texts, text_image = case
    cosines, found = texts @ images.T, retrieval(images, texts, text_image, block=block)
    by_text, by_image = found.text_to_image.taken_for, found.image_to_text.taken_for
    for text, own in enumerate(text_image):
        best, margin = oracles.taken_for(cosines[text].tolist(), [own], 5)
        assert by_text.top[text].tolist() == best
        assert by_text.scores[text].tolist() == cosines[text][best].tolist()
        assert by_text.margins[text] == margin
    fewest = min(int((text_image != image).sum()) for image in range(len(images)))
    for image in range(len(images)):
        right = np.flatnonzero(text_image == image).tolist()
        best, margin = oracles.taken_for(cosines[:, image].tolist(), right, min(5, fewest + 1))
        assert cosines[by_image.top[image], image].tolist() == cosines[best, image].tolist()
        assert [t for t in by_image.top[image] if t not in right] == [t for t in best if t not in right]
        assert by_image.margins[image] == margin


@given(captioned().filter(lambda case: len(case[0]) > 1))
def test_in_retrieval_too_hit_first_place_and_positive_margin_are_one(case):
    images, texts, text_image = case
    found = retrieval(images, texts, text_image)
    by_text, by_image = found.text_to_image, found.image_to_text
    hits = (by_text.ranks == 0).tolist()
    assert (by_text.taken_for.top[:, 0] == text_image).tolist() == hits
    assert (by_text.taken_for.margins > 0).tolist() == hits
    hits = (by_image.ranks == 0).tolist()
    assert (text_image[by_image.taken_for.top[:, 0]] == np.arange(len(images))).tolist() == hits
    assert (by_image.taken_for.margins > 0).tolist() == hits


@given(marked())
def test_the_first_class_of_an_image_is_right_exactly_where_the_margin_is_positive(case):
    scores, relevant = case
    found = multilabel_answers(scores, relevant)
    for image, truth in enumerate(relevant):
        row = scores[image]
        assert found.scores[image].tolist() == row[found.top[image]].tolist()
        if truth.all() or not truth.any():
            assert np.isnan(found.margins[image])
        else:
            assert found.top[image].tolist() == sorted(range(len(row)), key=lambda c: (-row[c], truth[c], c))[:5]
            assert found.margins[image] == row[truth].max() - row[~truth].max()
            assert (found.margins[image] > 0) == truth[found.top[image, 0]]


def test_classes_of_another_shape_and_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="expected both"):
        multilabel_answers(np.ones((2, 3)), np.ones((2, 2), dtype=bool))
    with pytest.raises(ValueError, match="nan at"):
        multilabel_answers(np.array([[1.0, np.nan]]), np.ones((1, 2), dtype=bool))
