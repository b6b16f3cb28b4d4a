"""Retrieval on captioned data of your own: captions find their image, images one of their captions; --dataset NAME=PATH."""

import pytest

pytestmark = pytest.mark.experiment("retrieval")


def test_recall_is_at_least_its_floor(subject, dataset):
    """Where a floor is stated for this model and data set; else it is measured and shown."""
    subject.require("retrieval", dataset=dataset)
