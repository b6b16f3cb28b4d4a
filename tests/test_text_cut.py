"""Texts cut short: the same rows as open_clip's own encode_text where the tower's layout allows it, no cut where it does not."""

import numpy as np
import open_clip
import pytest
import torch
from fakes import TINY_RESNET, TINY_VIT
from open_clip.model import CLIP, CustomTextCLIP

from clipbench.models.open_clip import text_cut

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


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=-1).numpy()


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("config", [TINY_VIT, TINY_RESNET], ids=["vit", "resnet"])
def test_a_causal_tower_gives_encode_texts_rows_at_every_length_that_covers_the_text(config, quick_gelu):
    model = made(config, quick_gelu)
    cut = text_cut(model)
    expected = unit(model.encode_text(tokens()))
    needed = cut.lengths(tokens())
    for k, length in enumerate(needed.tolist()):
        for longer in {length, min(length + 5, 77), 77}:
            found = unit(cut.forward(tokens()[k : k + 1, :longer]))
            np.testing.assert_allclose(found, expected[k : k + 1], atol=1e-5)


def test_the_length_a_text_needs_ends_with_its_end_token():
    lengths = text_cut(made(TINY_VIT)).lengths(tokens()).tolist()
    assert lengths == [4, 2, 11, 26, 77]


def test_one_token_too_few_gives_other_rows():
    model = made(TINY_VIT)
    cut = text_cut(model)
    short = tokens()[2:3, :10]
    assert np.abs(unit(cut.forward(short)) - unit(model.encode_text(tokens()[2:3]))).max() > 1e-4


@pytest.mark.parametrize("pool", ["argmax", "eos"])
def test_a_text_transformer_of_its_own_is_cut_too(pool):
    model = made(TINY_VIT, pool_type=pool, eos_id=49407)
    cut = text_cut(model)
    longest = int(cut.lengths(tokens()[:4]).max())
    found = unit(cut.forward(tokens()[:4, :longest]))
    np.testing.assert_allclose(found, unit(model.encode_text(tokens()[:4])), atol=1e-5)
    assert longest == 26


def test_a_text_whose_end_token_was_lost_reads_out_what_open_clip_reads_out():
    model = made(TINY_VIT, pool_type="eos", eos_id=49407)
    cut = text_cut(model)
    lost = tokens()[3:4].clone()
    lost[lost == 49407] = 5
    assert cut.lengths(lost).tolist() == [1]
    np.testing.assert_allclose(unit(cut.forward(lost[:, :1])), unit(model.encode_text(lost)), atol=1e-5)


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
    text_cut(model).forward(tokens()[:1, :4])
    np.testing.assert_array_equal(unit(model.encode_text(tokens())), before)
    assert model.attn_mask.shape == (77, 77)
