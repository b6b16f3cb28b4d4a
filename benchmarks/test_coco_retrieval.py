"""COCO retrieval: captions find their image, images find one of their captions; recall at 1, 5 and 10 both ways."""

import pytest

pytestmark = pytest.mark.experiment("coco_retrieval")


def test_recall_reaches_the_floor(subject):
    """On the full set the floor is the published value less sampling error and stated spread, its arithmetic in the reason."""
    subject.require("coco_retrieval", kind="floor")


def test_recall_is_not_suspiciously_good(subject):
    """A value far above the published one fails too: leaked data, changed prompts or another split look like that."""
    subject.require("coco_retrieval", kind="published")
