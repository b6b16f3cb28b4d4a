"""COCO crops: ground-truth boxes, cut out and classified over the 80 classes with one prompt. The confusions are a figure."""

import pytest

pytestmark = pytest.mark.experiment("coco_crops")


def test_crops_reach_the_floor(subject):
    """On the full set the floor is the published value less sampling error and stated spread, its arithmetic in the reason."""
    subject.require("coco_crops", kind="floor")


def test_crops_are_not_suspiciously_good(subject):
    """A value far above the published one fails too: leaked data, changed prompts or another split look like that."""
    subject.require("coco_crops", kind="published")
