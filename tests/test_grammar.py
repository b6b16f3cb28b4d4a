"""The grammar of `--model`: pure, so every case is a line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipbench.errors import UsageError
from clipbench.models.grammar import KINDS, ModelWord, is_repository, parse_arguments, parse_list, parse_model


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("ViT-B/32", [("name", "ViT-B/32", "")]),
        ("ViT-B/32, RN50,lite", [("name", "ViT-B/32", ""), ("name", "RN50", ""), ("name", "lite", "")]),
        ("acme:fp32", [("factory", "acme:fp32", "")]),
        ("acme.clip:int8,lite", [("factory", "acme.clip:int8", ""), ("name", "lite", "")]),
        ("prod=acme:fp32", [("factory", "acme:fp32", "prod")]),
        ("prod=ViT-B/32", [("name", "ViT-B/32", "prod")]),
        ("open_clip:ViT-B-32@laion2b_s34b_b79k", [("open_clip", "ViT-B-32@laion2b_s34b_b79k", "")]),
        ("best=open_clip:RN50@a,b=c.pt", [("open_clip", "RN50@a,b=c.pt", "best")]),
        ("hf-hub:org/repo@abc", [("hf-hub", "org/repo@abc", "")]),
        ("local-dir:/data/a=b,c", [("local-dir", "/data/a=b,c", "")]),
        ("q=onnx:C:/models/x=y", [("onnx", "C:/models/x=y", "q")]),
        ("embeddings:rows", [("embeddings", "rows", "")]),
        ("lists/models.txt", [("list", "lists/models.txt", "")]),
    ],
)
def test_each_value_has_one_meaning(value, words):
    assert [(w.kind, w.rest, w.alias) for w in parse_model(value)] == words


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "empty name"),
        ("a,,b", "empty name"),
        ("prod=", "empty name"),
        ("hf:", "nothing stands behind hf:"),
        ("lite,onnx:x", "a comma list holds plain names alone"),
        ("prod=a,b", "an alias names one model"),
        ("prod=models.txt", "lists several"),
        ("hf_hub:org/repo", "'hf_hub' is no kind of model .*hf-hub"),
        ("a/b=lite", "'a/b' is no alias"),
    ],
)
def test_what_has_no_meaning_is_refused_with_what_has(value, message):
    with pytest.raises(UsageError, match=message):
        parse_model(value)


@given(st.sampled_from(KINDS), st.from_regex(r"[A-Za-z0-9][\w.+-]{0,8}", fullmatch=True), st.text(min_size=1))
def test_an_alias_and_a_kind_leave_the_rest_as_it_was(kind, alias, rest):
    if rest.strip():
        assert parse_model(f"{alias}={kind}:{rest}") == (ModelWord(kind, rest.strip(), alias),)


def test_a_list_is_read_as_clip_benchmark_reads_it_and_holds_aliases_too():
    text = "ViT-B-32,laion2b_e16\n\n# a comment\nRN50 , openai\nprod=acme:fp32\nlite\n"
    assert [(w.kind, w.rest, w.alias) for w in parse_list(text, "models.txt")] == [
        ("open_clip", "ViT-B-32@laion2b_e16", ""),
        ("open_clip", "RN50@openai", ""),
        ("factory", "acme:fp32", "prod"),
        ("name", "lite", ""),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "models.txt names no model"),
        ("lite\nViT-B-32,\n", "models.txt:2 is 'ViT-B-32,'"),
        ("\nbad:thing:x\n", "models.txt:2: .*'bad' is no kind"),
        ("others.txt", "models.txt:1 names another list"),
    ],
)
def test_a_list_that_cannot_be_read_names_the_line(text, message):
    with pytest.raises(UsageError, match=message):
        parse_list(text, "models.txt")


def test_arguments_are_numbers_lists_and_texts():
    given = ["force_image_size=336", "image_resize_mode=squash", "image_mean=[0.5, 0.5, 0.5]", "path=a=b", "fast=true"]
    assert parse_arguments(given) == {
        "force_image_size": 336,
        "image_resize_mode": "squash",
        "image_mean": [0.5, 0.5, 0.5],
        "path": "a=b",
        "fast": True,
    }


@pytest.mark.parametrize("pair", ["force_image_size", "=3", "a b=3", "size="])
def test_an_argument_that_is_no_pair_is_refused(pair):
    with pytest.raises(UsageError, match="expected KEY=VALUE"):
        parse_arguments([pair])
    with pytest.raises(UsageError, match="twice"):
        parse_arguments(["a=1", "a=2"])


def test_a_repository_is_told_from_a_folder():
    assert is_repository("openai/clip-vit-base-patch32@main")
    assert not any(map(is_repository, ["./model", "/data/model", "model", "a/b/c", "~/m"]))
