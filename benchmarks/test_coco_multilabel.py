"""COCO multi-label: how well each class's text ranks all images by whether they show the class, as average precision."""

import pytest

pytestmark = pytest.mark.experiment("coco_multilabel")


def test_mean_average_precision_agrees_with_what_is_published(subject):
    """Where a value is published: at least that less sampling error and stated spread, and not suspiciously far above it either.

    Leaked data, changed prompts or another split look like that. The arithmetic is in the reason.
    """
    subject.require("coco_multilabel")
