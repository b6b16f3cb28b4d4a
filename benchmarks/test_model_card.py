"""The model card: is this the model its name says? Parameters, input size, context, vocabulary, embedding dim."""

import pytest

pytestmark = pytest.mark.experiment("model_card")


@pytest.mark.parametrize(
    "metric", ["params", "params_image", "params_text", "image_size", "context_length", "vocab_size", "embed_dim"]
)
def test_card_equals_the_published_one(subject, metric):
    """Exact equality with the published card; holds for random weights too."""
    subject.require("model_card", metric)
