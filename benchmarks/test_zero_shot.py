"""Zero-shot classification of the labelled folders that were given: --zero-shot imagenet1k=ROOT, cifar10, cifar100, your own."""

import pytest

pytestmark = pytest.mark.experiment("zero_shot")


def test_accuracy_agrees_with_what_is_published(subject, dataset):
    """Where a value is published: at least that less sampling error and stated spread, and not suspiciously far above it either.

    Leaked data, changed prompts or another split look like that. The arithmetic is in the reason.
    """
    subject.require("zero_shot", dataset=dataset)
