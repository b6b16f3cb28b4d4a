"""Speed: measured here, judged by comparing runs. The timed call is checked to do the model's work; the device is waited for."""

import pytest

pytestmark = pytest.mark.experiment("speed")


def test_images_per_second(subject, benchmark):
    """The model alone on a prepared batch of images, after a warm-up."""
    assert subject.time("images_per_second", benchmark).value > 0


def test_texts_per_second(subject, benchmark):
    """The model alone on a prepared batch of texts, after a warm-up."""
    assert subject.time("texts_per_second", benchmark).value > 0


def test_latency_and_peak_memory(subject):
    """One decoded image to its row at batch 1, and the peak memory of one batch of each."""
    assert subject.time("latency_p50").value > 0
