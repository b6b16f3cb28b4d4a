"""Medical images: two matrices of eight radiology figures, where OpenAI's models should fail, held against the natural one."""

import pytest

pytestmark = pytest.mark.experiment("medical", "natural", "medical_other")


def test_medical_captions_fail_as_expected(subject):
    """Natural images must be matched better by more than a stated margin, shown by an exact interval on the difference.

    The two sets of eight are pooled: eight alone can show that a model fails, but not that it no longer does.
    """
    subject.measure("natural", "medical_other", "medical")
    subject.require("medical", "text_to_image_top1")
