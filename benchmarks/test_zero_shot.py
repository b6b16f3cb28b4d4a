"""Zero-shot classification of the labelled folders that were given: --zero-shot imagenet1k=ROOT, cifar10, cifar100, your own."""

import pytest

pytestmark = pytest.mark.experiment("zero_shot")


def test_accuracy_reaches_the_floor(subject, dataset):
    """Where an accuracy is published, the floor is that less sampling error and stated spread, its arithmetic in the reason."""
    subject.require("zero_shot", dataset=dataset, kind="floor")


def test_accuracy_is_not_suspiciously_good(subject, dataset):
    """A value far above the published one fails too: leaked data, changed prompts or another split look like that."""
    subject.require("zero_shot", dataset=dataset, kind="published")
