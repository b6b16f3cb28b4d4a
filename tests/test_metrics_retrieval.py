"""Retrieval ranks against a hand-worked case and a slow oracle, in any block, with ties against the model."""

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clipbench.metrics import retrieval

# Few levels, exact in binary: ties are common and sums are exact, so oracle and subject must agree to the last bit.
LEVELS = st.integers(-4, 4).map(lambda level: level / 4)


@st.composite
def captioned(draw):
    """(image_emb, text_emb, text_image) in which every image has a text."""
    images, extra, dim = draw(st.integers(1, 5)), draw(st.integers(0, 5)), draw(st.integers(1, 3))
    text_image = draw(st.permutations(list(range(images)) + draw(st.lists(st.integers(0, images - 1), max_size=extra))))
    rows = [arrays(np.float64, (n, dim), elements=LEVELS) for n in (images, len(text_image))]
    return draw(rows[0]), draw(rows[1]), np.array(text_image)


def test_a_worked_retrieval_counts_a_duplicated_image_and_a_borrowed_text_against_the_model():
    images = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    texts = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.6, 0.8]])
    found = retrieval(images, texts, [0, 1, 2, 2])
    assert found.text_to_image.ranks.tolist() == [1, 2, 0, 0]
    assert found.image_to_text.ranks.tolist() == [0, 3, 1]


@given(captioned(), st.integers(1, 4))
def test_retrieval_agrees_with_the_oracle_for_any_block(case, block):
    images, texts, text_image = case
    found = retrieval(images, texts, text_image, block=block)
    of_texts, of_images = oracles.retrieval_ranks((texts @ images.T).tolist(), text_image.tolist())
    assert found.text_to_image.ranks.tolist() == of_texts
    assert found.image_to_text.ranks.tolist() == of_images


@given(captioned())
def test_with_one_text_an_image_swapping_the_sides_swaps_the_directions(case):
    images, texts, text_image = case
    texts = texts[[text_image.tolist().index(i) for i in range(len(images))]]
    there, back = (retrieval(a, b, np.arange(len(images))) for a, b in ((images, texts), (texts, images)))
    assert there.text_to_image.ranks.tolist() == back.image_to_text.ranks.tolist()
    assert there.image_to_text.ranks.tolist() == back.text_to_image.ranks.tolist()


@given(captioned(), st.randoms(use_true_random=False), st.sampled_from([0.125, 32.0]))
def test_retrieval_ranks_follow_a_permutation_of_the_images_and_ignore_the_scale(case, random, scale):
    images, texts, text_image = case
    order = random.sample(range(len(images)), len(images))
    moved = np.array([order.index(i) for i in text_image])
    base, other = retrieval(images, texts, text_image), retrieval(scale * images[order], texts, moved)
    assert other.text_to_image.ranks.tolist() == base.text_to_image.ranks.tolist()
    assert other.image_to_text.ranks.tolist() == base.image_to_text.ranks[order].tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_exact_duplicates_tie_wherever_they_stand_in_the_matrix(dtype):
    rng = np.random.default_rng(3)
    images = rng.normal(size=(101, 513)).astype(dtype)
    images[[50, 100]] = images[0]
    texts = rng.normal(size=(101, 513)).astype(dtype)
    texts[[0, 50, 100]] = images[0]
    found = retrieval(images, texts, np.arange(101), block=7)
    assert found.text_to_image.ranks[[0, 50, 100]].tolist() == [2, 2, 2]
    assert found.image_to_text.ranks[[0, 50, 100]].tolist() == [2, 2, 2]


def test_an_image_without_a_text_is_named():
    with pytest.raises(ValueError, match="1 of 3 images have no text, first image 1"):
        retrieval(np.eye(3), np.eye(3), [0, 0, 2])


@pytest.mark.parametrize("texts", [np.ones((2, 4)), np.ones(3)])
def test_rows_of_different_dim_are_refused(texts):
    with pytest.raises(ValueError, match="expected one dim"):
        retrieval(np.eye(3), texts, [0, 1])


@pytest.mark.parametrize("which", ["image_emb", "text_emb"])
def test_rows_with_a_number_that_is_none_are_named(which):
    rows = {"image_emb": np.eye(2), "text_emb": np.eye(2)}
    rows[which] = np.array([[1.0, np.nan], [0.0, 1.0]])
    with pytest.raises(ValueError, match=rf"{which} holds nan at \(0, 1\)"):
        retrieval(**rows, text_image=[0, 1])
