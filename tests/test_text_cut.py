"""Texts cut short: the same rows as open_clip's own encode_text where the tower's layout allows it, no cut where it does not."""

import numpy as np
import open_clip
import pytest
import torch
from fakes import TINY_RESNET, TINY_VIT
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.model import CLIP, CustomTextCLIP

from clipbench.embed.embedder import no_progress
from clipbench.models import device
from clipbench.models.open_clip import load_open_clip, text_cut
from clipbench.models.zoo import ModelSpec

TEXTS = ["a cat", "", "This is a page of text about segmentation", "two dogs " * 12, "word " * 100]
TEXT = TINY_VIT["text_cfg"]


def made(config, quick_gelu=False, **text):
    """A seeded open_clip model; text-tower settings beyond `config` make it a CustomTextCLIP."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind = CustomTextCLIP if text or config.get("custom_text") else CLIP
        model = kind(
            config["embed_dim"],
            open_clip.CLIPVisionCfg(**config["vision_cfg"]),
            open_clip.CLIPTextCfg(**{**config["text_cfg"], **text}),
            quick_gelu=quick_gelu,
        )
    return model.eval().requires_grad_(False)


def tokens():
    return open_clip.get_tokenizer("ViT-B-32")(TEXTS)


def unit(raw):
    return torch.nn.functional.normalize(raw, dim=-1).numpy()


def rows(cut, tokens):
    return cut.forward(*cut.inputs(tokens))


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("config", [TINY_VIT, TINY_RESNET], ids=["vit", "resnet"])
def test_a_causal_tower_gives_encode_texts_rows_at_every_length_that_covers_the_text(config, quick_gelu):
    model = made(config, quick_gelu)
    cut = text_cut(model)
    expected = unit(model.encode_text(tokens()))
    needed = cut.lengths(tokens())
    for k, length in enumerate(needed.tolist()):
        for longer in {length, min(length + 5, 77), 77}:
            found = unit(rows(cut, tokens()[k : k + 1, :longer]))
            np.testing.assert_allclose(found, expected[k : k + 1], atol=1e-5)


def test_the_length_a_text_needs_ends_with_its_end_token():
    lengths = text_cut(made(TINY_VIT)).lengths(tokens()).tolist()
    assert lengths == [4, 2, 11, 26, 77]


def test_one_token_too_few_gives_other_rows():
    model = made(TINY_VIT)
    cut = text_cut(model)
    short = tokens()[2:3, :10]
    assert np.abs(unit(rows(cut, short)) - unit(model.encode_text(tokens()[2:3]))).max() > 1e-4


@pytest.mark.parametrize("pool", ["argmax", "eos"])
def test_a_text_transformer_of_its_own_is_cut_too(pool):
    model = made(TINY_VIT, pool_type=pool, eos_id=49407)
    cut = text_cut(model)
    longest = int(cut.lengths(tokens()[:4]).max())
    found = unit(rows(cut, tokens()[:4, :longest]))
    np.testing.assert_allclose(found, unit(model.encode_text(tokens()[:4])), atol=1e-5)
    assert longest == 26


def test_a_text_whose_end_token_was_lost_reads_out_what_open_clip_reads_out():
    model = made(TINY_VIT, pool_type="eos", eos_id=49407)
    cut = text_cut(model)
    lost = tokens()[3:4].clone()
    lost[lost == 49407] = 5
    assert cut.lengths(lost).tolist() == [1]
    np.testing.assert_allclose(unit(rows(cut, lost[:, :1])), unit(model.encode_text(lost)), atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        {"no_causal_mask": True},
        {"embed_cls": True},
        {"pool_type": "last"},
        {"pool_type": "first"},
        {"output_tokens": True},
    ],
    ids=lambda text: "+".join(text),
)
def test_a_tower_that_is_not_causal_or_of_unknown_layout_has_no_cut(text):
    assert text_cut(made(TINY_VIT, **text)) is None


def test_a_mask_that_is_not_the_causal_one_has_no_cut():
    model = made(TINY_VIT)
    model.attn_mask[3, 60] = 0.0
    assert text_cut(model) is None


def test_blocks_of_another_kind_have_no_cut():
    assert text_cut(made(TINY_VIT, block_type="custom")) is None


START, END = 49406, 49407


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(1, 3), max_size=6), min_size=1, max_size=12), st.booleans())
def test_texts_that_begin_alike_have_the_rows_that_each_has_alone(bodies, is_sorted):
    texts = [[START, *body, END] for body in (sorted(bodies) if is_sorted else bodies)]
    longest = max(map(len, texts))
    batch = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    expected = torch.cat([rows(ALIKE, torch.tensor([text])) for text in texts])
    np.testing.assert_allclose(unit(rows(ALIKE, batch)), unit(expected), atol=1e-5)
    whole = torch.tensor([text + [0] * (77 - len(text)) for text in texts])
    np.testing.assert_allclose(unit(rows(ALIKE, batch)), unit(MODEL.encode_text(whole)), atol=1e-5)


MODEL = made(TINY_VIT)
ALIKE = text_cut(MODEL)


def test_what_texts_begin_with_alike_goes_through_the_layers_once():
    batch = torch.tensor([[START, 5, 6, END, 0], [START, 5, 6, 7, END], [START, 5, 8, END, 0]])
    seen = []
    hook = MODEL.token_embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].tolist()))
    rows(ALIKE, batch)
    hook.remove()
    assert seen == [[START, 5, 6, END, 7, END, 8, END]]


WRITTEN = st.lists(
    st.one_of(
        st.text(st.sampled_from("aB3 .,'&<>;_-\t\n|é日\x1b"), max_size=12),
        st.text(max_size=8),
        st.sampled_from(
            ["dog's", "<start_of_text>", "&amp;amp; x", "two  spaces ", "word " * 90, "antidisestablishment " * 20]
        ),
    ),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module")
def encoder(tiny_models):
    return load_open_clip(ModelSpec("tiny-vit", "random", "random:0", "tiny-vit", "gelu"), "cpu", "fp32", offline=True)


@settings(deadline=None, max_examples=60)
@given(WRITTEN)
def test_any_text_is_tokenized_as_the_models_tokenizer_does(encoder, texts):
    found, expected = encoder.optimized().encode_texts(texts, 4, 0, no_progress), encoder.encode_texts(texts)
    np.testing.assert_allclose(unit(torch.from_numpy(found)), unit(torch.from_numpy(expected)), atol=1e-5)


def test_each_word_is_tokenized_once(encoder, monkeypatch):
    words, encode = [], encoder.tokenizer.encode
    monkeypatch.setattr(encoder.tokenizer, "encode", lambda word: words.append(word) or encode(word))
    encoder.optimized().encode_texts(["a red cat", "a red dog", "a cat", "une pâte"], 4, 0, no_progress)
    assert words == ["a", "red", "cat", "dog", "une pâte"]


def test_a_device_with_a_queue_is_given_texts_while_the_next_ones_are_tokenized(encoder, monkeypatch):
    from test_feed import StandIn

    texts = [f"{k} cats" for k in range(40)]
    expected = encoder.encode_texts(texts)
    monkeypatch.setitem(device.FEEDS, "cpu", StandIn)
    monkeypatch.setattr("clipbench.models.open_clip.TEXTS_BESIDE", 16)
    events, encode = [], encoder.tokenizer.encode
    monkeypatch.setattr(encoder.tokenizer, "encode", lambda word: events.append("tokenize") or encode(word))
    hook = encoder.model.token_embedding.register_forward_hook(lambda *_: events.append("start"))
    found = encoder.optimized().encode_texts(texts, 4, 0, no_progress)
    hook.remove()
    np.testing.assert_allclose(unit(torch.from_numpy(found)), unit(torch.from_numpy(expected)), atol=1e-5)
    assert "tokenize" in events[events.index("start") :]


def test_a_class_derived_from_open_clips_has_no_cut():
    model = made(TINY_VIT)
    model.__class__ = type("Changed", (CLIP,), {})
    assert text_cut(model) is None


def test_an_encode_text_put_on_the_model_has_no_cut():
    model = made(TINY_VIT)
    model.encode_text = lambda tokens: tokens
    assert text_cut(model) is None


def test_the_model_is_as_before_after_a_cut_call():
    model = made(TINY_VIT)
    before = unit(model.encode_text(tokens()))
    rows(text_cut(model), tokens()[:1, :4])
    np.testing.assert_array_equal(unit(model.encode_text(tokens())), before)
    assert model.attn_mask.shape == (77, 77)
