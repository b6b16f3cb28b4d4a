"""COCO crops: ground-truth boxes, cut out and classified over the 80 classes with one prompt. The confusions are a figure."""

import pytest

pytestmark = pytest.mark.experiment("coco_crops")


def test_crops_agree_with_what_is_published(subject):
    """Where a value is published: at least that less sampling error and stated spread, and not suspiciously far above it either.

    Leaked data, changed prompts or another split look like that. The arithmetic is in the reason.
    """
    subject.require("coco_crops")
