"""COCO retrieval: captions find their image, images find one of their captions; recall at 1, 5 and 10 both ways."""

import pytest

pytestmark = pytest.mark.experiment("coco_retrieval")


def test_recall_agrees_with_what_is_published(subject):
    """Where a value is published: at least that less sampling error and stated spread, and not suspiciously far above it either.

    Leaked data, changed prompts or another split look like that. The arithmetic is in the reason.
    """
    subject.require("coco_retrieval")
