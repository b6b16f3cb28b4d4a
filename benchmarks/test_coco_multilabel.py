"""COCO multi-label: how well each class's text ranks all images by whether they show the class, as average precision."""

import pytest

pytestmark = pytest.mark.experiment("coco_multilabel")


def test_mean_average_precision_reaches_the_floor(subject):
    """On the full set the floor is the published value less sampling error and stated spread, its arithmetic in the reason."""
    subject.require("coco_multilabel", kind="floor")


def test_mean_average_precision_is_not_suspiciously_good(subject):
    """A value far above the published one fails too: leaked data, changed prompts or another split look like that."""
    subject.require("coco_multilabel", kind="published")
