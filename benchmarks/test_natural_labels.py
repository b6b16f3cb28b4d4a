"""Labels on natural images: the eight pictures against the 100 CIFAR-100 names, as softmax(100 x cosine), top five drawn."""

import pytest

pytestmark = pytest.mark.experiment("natural_labels")


def test_winning_labels_equal_the_published_ones(subject):
    """Where somebody published the figure of this model and these weights: the winners, and their probabilities."""
    subject.require("natural_labels")
