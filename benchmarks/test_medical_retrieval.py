"""The whole of ROCO (`--roco ROOT`): retrieval both ways, and the medical matrix of eight repeated in random groups."""

import pytest

pytestmark = pytest.mark.experiment("medical_retrieval", "natural")


def test_groups_of_eight_fail_as_expected(subject):
    """The contract of test_medical.py, with as many outcomes as the collection has whole groups of eight."""
    subject.measure("natural", "medical_retrieval")
    subject.require("medical_retrieval", "text_to_image_top1")
