"""Natural images: eight pictures and their captions, as a matrix of text-image cosines whose diagonal should win."""

import pytest

pytestmark = pytest.mark.experiment("natural")


def test_every_caption_finds_its_own_image(subject):
    """In the rows of the matrix the caption's own image is strictly the best: all that are claimed of the model, and more than chance.

    A tie counts against the model.
    """
    subject.require("natural", "text_to_image_top1")


def test_every_image_finds_its_own_caption(subject):
    """In the columns the image's own caption is strictly the best."""
    subject.require("natural", "image_to_text_top1")


def test_matrix_equals_the_published_one(subject):
    """Where somebody published the matrix of this model and these weights, each cell is within its tolerance."""
    subject.require("natural", "similarity")


def test_activation_is_the_trained_one(subject):
    """For weights from a file: the matrix is not clearly better with the other activation (GELU or QuickGELU)."""
    subject.require("natural", "activation")
