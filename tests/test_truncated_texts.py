"""Texts longer than the context: counted exactly where the tokenizer cuts them."""

from types import SimpleNamespace

import pytest
from fakes import ColourEncoder, custom

from clipbench.models.open_clip import OpenClipEncoder, load_open_clip
from clipbench.models.zoo import ModelSpec


@pytest.fixture(scope="module")
def encoder(tiny_models):
    return load_open_clip(ModelSpec("tiny-vit", "random", "random:0", "tiny-vit", "gelu"), "cpu", "fp32", True)


@pytest.mark.parametrize("word", ["cat", "a", "pneumonoultramicroscopic", "猫"])
def test_a_text_counts_exactly_when_the_tokenizer_drops_a_token(encoder, word):
    for count in (1, 12, 37, 38, 74, 75, 76, 80, 300):
        text = " ".join([word] * count)
        whole = encoder.tokenizer([text], context_length=4096)
        assert encoder.count_truncated([text]) == int((whole != 0).sum() > 77)


def test_every_text_is_counted_once(encoder):
    assert encoder.count_truncated(["cat " * 100, "cat", "dog " * 200, "", "\ud800" * 3]) == 2
    assert encoder.count_truncated([]) == 0


def test_a_tokenizer_of_a_hub_is_asked_without_cutting(encoder):
    def ids(texts, truncation, padding, verbose):
        assert (truncation, padding, verbose) == (False, False, False)
        return {"input_ids": [[101, *range(len(text.split())), 102] for text in texts]}

    asked = OpenClipEncoder.__new__(OpenClipEncoder)
    asked.card, asked.tokenizer = {"context_length": 77}, SimpleNamespace(tokenizer=ids)
    assert asked.count_truncated(["word " * 75, "word " * 76, "short"]) == 1
    asked.tokenizer = lambda texts: texts
    assert asked.count_truncated(["word " * 500]) is None


def test_an_encoder_that_is_not_ours_may_say_and_else_nothing_is_claimed():
    assert custom(ColourEncoder()).count_truncated(["x" * 999]) is None
    telling = ColourEncoder()
    telling.count_truncated = lambda texts: sum(len(text) > 5 for text in texts)
    assert custom(telling).count_truncated(["short", "longer text"]) == 1
